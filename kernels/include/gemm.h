// What the matrix products of kernels/gemm*.cu take; formulas and rules: kernels/gemm.h.
#pragma once
#include "abi.h"

// Where dropout is applied; the mask of element (row, col) is that of index row * columns + col, as src/ops/philox.rs.
#define GEMM_DROP_NONE 0
#define GEMM_DROP_A 1       // nt: to A (m, k) as it is read
#define GEMM_DROP_B 2       // tn: to B (k, n) as it is read
#define GEMM_DROP_SECOND 3  // nn: to the product of the second pair, (m, n)

typedef struct {
  // Elements of the kernel's type: bf16, or f16 where its name says so.
  void* c;               // (m, n), written: such elements, or f32 with c_f32
  const void* a;         // nt, nn: (m, k); tn: (k, m)
  const void* b;         // nt: (n, k); nn, tn: (k, n)
  const void* a2;        // nt, nn: (m, k2); unused if k2 is 0
  const void* b2;        // nt: (n, k2); nn: (k2, n)
  const void* bias;      // (n), added to every row; null: none
  const void* add;       // (m, n), added; may be c; null: none
  float* partial;        // tn with split: (splits, m, n), written instead of c
  const unsigned* live;  // nt, nn: rows of A and C that hold something; tn: rows that are summed; null: all
  const Step* step;      // seed and micro_step of dropout; unused without
  long long m, n, k;
  long long lda, ldb, ldc, ldadd;  // elements from one row to the next
  long long lda2, ldb2;
  long long split;  // tn: rows that one of grid.y sums; 0: all
  int k2;
  float alpha;
  int c_f32;
  int accumulate;  // 1: c (f32) is added to
  int dropout;     // GEMM_DROP_*
  unsigned module;      // the stream's
  unsigned drop_below;  // dropped if the 24-bit number is below this: ceil(rate * 2^24)
  float keep;           // 1 / (1 - rate)
} Gemm;

// Independent products that share a launch.
#define GEMM_MEMBERS 3

typedef struct {
  Gemm of[GEMM_MEMBERS];
  // Where the part of each member ends, in ascending order; the last one repeated where there are fewer. nt, nn: columns of
  // tiles, all members having the same m; tn: tiles; sum: blocks.
  unsigned ends[GEMM_MEMBERS];
} GemmGroup;
