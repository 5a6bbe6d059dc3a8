// layer_norm: layer norm of rows, forward and backward.
//
//   forward    mean = mean_c x[c], rstd = 1 / sqrt(mean_c (x[c] - mean)^2 + eps), h[c] = (x[c] - mean) * rstd
//              y[c] = h[c] * w[c] + b[c]
//   backward   g = dy * w;  dx[c] = rstd * (g[c] - mean_c g - h[c] * mean_c (g * h))  (+ dx[c] with `add`)
//   weight     dw[c] += sum over rows of dy[c] * h[c], db[c] += sum over rows of dy[c]; each of 8 warps sums every eighth row
//
// Source   Ba, Kiros & Hinton 2016, arXiv:1607.06450; backward by hand, proved by tests/ops/layer_norm.rs.
// Shapes   x, y, dx, dy (rows, n) bf16; w, b (n) bf16; dw, db (n) f32. All sums f32; one rounding at the end.
// Launch   fwd, bwd: n <= LAYER_NORM_WARP: a row a warp, grid = ceil(rows / (LAYER_NORM_BLOCK / 32)); larger ones: a row a
//          block, grid = rows. block = LAYER_NORM_BLOCK, shared LAYER_NORM_SHARED. A row is read once.
//          weight: grid = ceil(n / LAYER_NORM_COLUMNS), shared LAYER_NORM_SUMS; after bwd, which leaves mean and rstd.
// Writes   y and dx of the live rows are overwritten (dx read first with `add`); dw and db are added to.
// Bound    memory: forward moves 4 bytes an element, backward 6 (8 with `add`), weight 4.
#pragma once
#include "include/abi.h"

#define LAYER_NORM_BLOCK 256
#define LAYER_NORM_WARP 1024
#define LAYER_NORM_SHARED 32
#define LAYER_NORM_COLUMNS 64
#define LAYER_NORM_SUMS 2048

typedef struct {
  bf16* y;               // (rows, n), written
  const bf16* x;         // (rows, n)
  const bf16* w;         // (n)
  const bf16* b;         // (n); null: none
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
  int n;
  float eps;  // added to the variance
} LayerNormFwd;

typedef struct {
  bf16* dx;              // (rows, n), written
  float* stats;          // (rows, 2), written: mean and rstd; null: not wanted
  const bf16* x;         // (rows, n)
  const bf16* w;         // (n)
  const bf16* dy;        // (rows, n)
  const unsigned* live;  // as above
  long long rows;
  int n;
  int add;  // 1: dx is added to
  float eps;
} LayerNormBwd;

typedef struct {
  float* dw;             // (n), added to; null: not wanted
  float* db;             // (n), added to; null: not wanted
  const float* stats;    // (rows, 2)
  const bf16* x;         // (rows, n)
  const bf16* dy;        // (rows, n)
  const unsigned* live;  // as above
  long long rows;
  int n;
} LayerNormWeight;
