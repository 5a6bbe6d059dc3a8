// gemm_nf4: the products of gemm.h with an NF4 matrix for B, dequantised inside the kernel.
//
//   nt   Y (m, out) = alpha * (P B2^T + X W^T) + bias + add       W (out, in) = B (n, k)
//   nn   dX (m, in) = alpha * (Q A2 + dY W) + bias + add          the same W = B (k, n)
//
// Types     bf16, what a model trains and runs in; and f16 (names that end so), bitsandbytes' 4-bit product with float16 as its
//           compute dtype, for layers on their own: A, B2, bias, add and C are then f16 as well.
// Source    Dettmers et al. 2023, arXiv:2305.14314; an element of W is code * absmax rounded to the type once, as
//           src/quant/nf4.rs.
// Rounding  as gemm.h with that W: the same bits as dequantising first.
// Range     of f16: results and elements of W of 65520 and more become infinite, as IEEE 754 rounds; sums do not overflow
//           before that, being f32.
// Shapes    in (nt: k, nn: n) a multiple of NF4_BLOCK; packed aligned to 8 bytes. b and ldb are not used.
// Launch    as gemm.h, groups too, with GEMM_NF4_<shape>_SHARED.
#pragma once
#include "include/gemm.h"
#include "include/nf4_blocks.h"

#define GEMM_NF4_128_SHARED 42048
#define GEMM_NF4_64_SHARED 25664

// A group of products: member i is g.of[i] with the matrix w[i].
typedef struct {
  GemmGroup g;
  Nf4Blocks w[GEMM_MEMBERS];
} GemmNf4;
