// gemv: a linear layer on few rows, for decoding.
//
//   y (rows, n) = alpha * (x2 W2^T + x W^T) + bias + add       x (rows, k), W (n, k); x2 (rows, k2), W2 (n, k2)
//
// (with an adapter: P = s x A^T first, alpha = s, then y with x2 = P, W2 = B). W is dense bf16, NF4 or blocks of ggml.
//
// Rounding  an element of W is what dequantising to bf16 makes of it (nf4.h, ggml.h); sums f32; alpha, bias and add in f32, in
//           this order, each rounded; the result rounded once.
// Bits      of an element of y depend on its row of x and of W alone: neither rows nor the grid change one. Each of 8 warps
//           sums every eighth GEMV_STEP of k2, then of k, in the order of mma.sync; the warps' sums are added in order.
// Shapes    any rows, n, k, k2 (0: no second pair). dense: fast where k is a multiple of 8 and addresses of 16 bytes (for each
//           operand by itself). nf4: k a multiple of NF4_BLOCK, packed aligned to 16. ggml: as ggml.h.
// Launch    gemv_W_R: grid = (ceil(n / GEMV_R_N), ceil(rows / GEMV_R_ROWS)), block = GEMV_BLOCK, shared GEMV_R_SHARED, with
//           NF4 GEMV_NF4_R_SHARED. R is 8 or 32: for up to 8 rows, and for more. Both give the same bits.
// Writes    the live rows of y.
// Bound     memory: every block of threads reads its rows of W once, 16 bytes a load (8 loads under way a thread and step), and
//           rows of x from the second-level cache: rows / 16 (R = 8) or rows / 32 of the elements of W.
//           Bytes of W a row of k: dense 2 k, NF4 0.516 k (0.5 of codes, 1/64 and 1/4096 of absmax), Q4_K 0.5625 k,
//           Q6_K 0.82 k, Q8_0 1.06 k. The products are on tensor cores, 256 elements of W an instruction: nothing beside that.
//           Instructions an element of W: dense 0.1; NF4 4.5 (shift, mask, look-up, product, half a rounding) of which one
//           look-up in shared memory, 32 an SM and clock; ggml 5 (byte to float 1, offset, product, minimum, half a rounding,
//           half to cut bits). At 128 instructions an SM and clock, elements a second that the cores allow against those
//           that memory brings, in 10^12: RTX 3080 (68 SMs, 1.7 GHz, 760 GB/s) NF4 3.3 against 1.5, Q4_K 3.0 against 1.35;
//           RTX 4090 (128, 2.5, 1008) NF4 9.1 against 2.0, Q4_K 8.2 against 1.8; H100 (132, 1.75, 3350) NF4 6.6 against 6.5,
//           Q4_K 5.9 against 6.0. So 80 to 90 % of the bandwidth is expected of the first two and for dense matrices, where n is
//           large enough to fill the card (16 rows of W a block: 2 blocks an SM from n = 2,200 on a 3080, 4,200 on an H100), and
//           60 to 75 % for 4 bits on an H100.
#pragma once
#include "include/abi.h"
#include "include/ggml_blocks.h"
#include "include/nf4_blocks.h"

#define GEMV_BLOCK 256
#define GEMV_STEP 128  // elements of k that a warp works on at a time

#define GEMV_8_N 16
#define GEMV_8_ROWS 8
#define GEMV_8_SHARED 5120
#define GEMV_NF4_8_SHARED 6208

#define GEMV_32_N 32
#define GEMV_32_ROWS 32
#define GEMV_32_SHARED 36864
#define GEMV_NF4_32_SHARED 37952

typedef struct {
  bf16* y;               // (rows, n), written
  const bf16* x;         // (rows, k)
  const bf16* w;         // (n, k), dense only
  const bf16* x2;        // (rows, k2); unused if k2 is 0
  const bf16* w2;        // (n, k2)
  const bf16* bias;      // (n); null: none
  const bf16* add;       // (rows, n), may be y; null: none
  const unsigned* live;  // rows that hold something; null: all
  long long rows, n, k, k2;
  float alpha;
} Gemv;

typedef struct {
  Gemv g;
  Nf4Blocks w;
} GemvNf4;

typedef struct {
  Gemv g;
  const unsigned char* w;  // (n, k) in blocks
} GemvGgml;
