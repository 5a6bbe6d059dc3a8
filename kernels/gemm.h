// gemm: bf16 products on tensor cores, with what a linear layer adds to them.
//
//   nt   C (m, n) = alpha * (A2 B2^T + A B^T) + bias + add (+ C)     A (m, k), B (n, k); A2 (m, k2), B2 (n, k2)
//   nn   C (m, n) = alpha * (A2 B2 + A B) + bias + add (+ C)         A (m, k), B (k, n); A2 (m, k2), B2 (k2, n)
//   tn   C (m, n) += alpha * A^T B, summed over live rows            A (k, m), B (k, n); C f32
//
// Rounding  operands are bf16, sums f32 in the order of k (the second pair first), bias, add and C are added in f32, and the
//           result is rounded once. A dropped operand is rounded to bf16 after its division by 1 - rate.
// f16       exists of the products with an NF4 matrix alone (gemm_nf4.h).
// Bits      the same whatever the tile, except `thin`, in which each of 8 warps sums every eighth 16 of k. Those of a row of
//           nt and nn depend on that row of A alone. tn sums blocks of `split` rows, and these in their order.
// Shapes    any m, n, k, leading dimensions from 1 to 2^31 - 129; fast where they are multiples of 8 and addresses of 16 bytes.
//           128: only where rows of all operands are whole chunks: columns and leading dimensions multiples of 8 (nt: k, k2; nn:
//           k, k2, n; tn: m, n), addresses of 16 bytes.
// Groups    one launch computes up to GEMM_MEMBERS independent products, each with the bits that it has alone. All but columns
//           take a group; a single product is a group of one. nt, nn: the members have the same m and the same live rows, and
//           their columns of tiles lie side by side: 8 rows of tiles of all members come before the next 8, so that what they
//           read of a common A (x of q, k and v) is read from L2 by all but the first. tn: the members have the same k and the
//           same split; one's tiles follow the other's within each split, so the common rows are in L2 here as well.
// Launch    grid = (tiles of all members, tn: ceil(k / split)); a tile is GEMM_<shape>_M x GEMM_<shape>_N,
//           block = GEMM_<shape>_BLOCK, shared memory GEMM_<shape>_SHARED.
//           Dropout: GEMM_DROP_A by thin, GEMM_DROP_B by wide, GEMM_DROP_SECOND by nn_64.
//           thin (nt): few columns, a low rank; wide (tn): few rows, the same.
//           sum: grid = ceil(m * n / GEMM_SUM_BLOCK) of all members, after a split tn: C += alpha * sum over splits of partial.
//           columns: grid = ceil(n / 32), block = GEMM_COLUMNS_BLOCK: C (1, n) f32 += sum over live rows of A (k, n).
// Writes    the live rows of C.
// Bound     compute: 2 m n (k + k2) operations; thin, wide: memory.
#pragma once
#include "include/gemm.h"

#define GEMM_128_M 128
#define GEMM_128_N 128
#define GEMM_128_BLOCK 256
#define GEMM_128_SHARED 49152

#define GEMM_64_M 64
#define GEMM_64_N 64
#define GEMM_64_BLOCK 128
#define GEMM_64_SHARED 32768

#define GEMM_THIN_M 32
#define GEMM_THIN_N 32
#define GEMM_THIN_BLOCK 256
#define GEMM_THIN_SHARED 49152

#define GEMM_WIDE_M 32
#define GEMM_WIDE_N 128
#define GEMM_WIDE_BLOCK 128
#define GEMM_WIDE_SHARED 40960

#define GEMM_SUM_BLOCK 256
#define GEMM_COLUMNS_BLOCK 256
#define GEMM_COLUMNS_SHARED 1024
