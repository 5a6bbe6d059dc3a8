// rms_norm: root-mean-square layer norm of groups of `n` elements (a row, or a head of it), forward and backward.
//
//   forward    rstd = 1 / sqrt(mean_c x[c]^2 + eps);  y[c] = x[c] * rstd * w[c]
//   backward   g = dy * w,  m = mean_c g[c] * x[c];   dx[c] = rstd * (g[c] - x[c] * rstd^2 * m)  (+ dx[c] with `add`)
//   weight     dw[c] += sum over groups of dy[c] * x[c] * rstd, each of 8 warps sums every eighth group
//
// Source   Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4; backward by hand, proved by tests/ops/rms_norm.rs.
// Shapes   x, y, dx, dy (rows, per_row * n) bf16; w (n) bf16; dw (n) f32. All sums f32; one rounding at the end.
// Launch   fwd, bwd: n <= RMS_NORM_WARP: a group a warp, grid = ceil(rows * per_row / (RMS_NORM_BLOCK / 32)); larger ones:
//          a group a block, grid = rows * per_row. block = RMS_NORM_BLOCK, shared RMS_NORM_SHARED. A group is read once.
//          weight: grid = ceil(n / RMS_NORM_COLUMNS), shared RMS_NORM_SUMS; after bwd, which leaves rstd.
// Writes   y and dx of the live rows are overwritten (dx read first with `add`); dw is added to.
// Bound    memory: forward moves 4 bytes an element, backward 6 (8 with `add`).
#pragma once
#include "include/abi.h"

#define RMS_NORM_BLOCK 256
#define RMS_NORM_WARP 1024
#define RMS_NORM_SHARED 32
#define RMS_NORM_COLUMNS 64
#define RMS_NORM_SUMS 2048

typedef struct {
  bf16* y;               // (rows, per_row * n), written
  const bf16* x;         // (rows, per_row * n)
  const bf16* w;         // (n)
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
  int per_row;  // groups a row
  int n;        // elements a group
  float eps;    // added to the mean, not to the root
} RmsNormFwd;

typedef struct {
  bf16* dx;              // (rows, per_row * n), written
  float* rstd;           // (rows, per_row), written; null: not wanted
  const bf16* x;         // (rows, per_row * n)
  const bf16* w;         // (n)
  const bf16* dy;        // (rows, per_row * n)
  const unsigned* live;  // as above
  long long rows;
  int per_row;
  int n;
  int add;  // 1: dx is added to
  float eps;
} RmsNormBwd;

typedef struct {
  float* dw;             // (n), added to
  const float* rstd;     // (rows, per_row)
  const bf16* x;         // (rows, per_row * n)
  const bf16* dy;        // (rows, per_row * n)
  const unsigned* live;  // as above
  long long rows;
  int per_row;
  int n;
} RmsNormWeight;
