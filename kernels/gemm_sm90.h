// gemm_sm90: the products nt and nn of gemm.h on the tensor cores of compute capability 9.0 (wgmma), which mma.sync uses to
// about two thirds. Formulas, groups and what is written: gemm.h.
//
// Rounding  as gemm.h.
// Bits      of a row of C depend on that row of A alone, and not on which of the two tiles; on a card they need not be those of
//           gemm.h's kernels, whose instructions may add in another order.
// Shapes    rows of all operands are whole chunks, as for gemm.h's 128. No dropout.
// Launch    as gemm.h: a tile is GEMM_SM90_M x 128 or 256, block = GEMM_SM90_BLOCK, shared memory GEMM_SM90_<columns>_SHARED.
// Bound     compute: 2 m n (k + k2) operations. Of shared memory a step of 64 deep reads (64 + N) 16 2 bytes for each 64 x N x 16
//           and is written (128 + N) 64 2: 128 bytes a clock, which is the limit, with N = 256, and 160 with 128, where the
//           tensor cores are never idle.
#pragma once
#include "include/gemm.h"

#define GEMM_SM90_M 128
#define GEMM_SM90_BLOCK 256
#define GEMM_SM90_128_SHARED 131072
#define GEMM_SM90_256_SHARED 196608
