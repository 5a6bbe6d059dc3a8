// rope: rotary position embedding of the heads of q and of k in the half-split form, after their RMS norms where a family
// has them.
//
//   forward    n = x, or with w: n[c] = x[c] * rstd * w[c], rstd = 1 / sqrt(mean_c x[c]^2 + eps)
//              y[i] = n[i] cos - n[i + half] s,  y[i + half] = n[i + half] cos + n[i] s,  s = sign * sin, i < half,
//              with cos and sin of the row's position; sign -1 turns back, which is the backward pass without a norm
//   backward   (of the forward with w and sign 1) g = dy turned back, m = mean_c g[c] * w[c] * x[c]
//              dx[c] = rstd * (g[c] * w[c] - x[c] * rstd^2 * m);  where rstd is wanted also dy = g: for the gradient of w
//
// Source   Su et al. 2021, arXiv:2104.09864; the norm as in rms_norm.h; backward by hand, proved by tests/ops.
// Shapes   x, y, dx, dy (rows, heads * 2 * half) bf16, q's heads and k's in tensors of their own; w (2 * half) bf16; table
//          (positions, 2 * half) f32, a row is the cosines and then the sines; positions (rows), each below the table's.
// Launch   2^shift lanes a head (at most 32), q's heads of a row and then k's; grid = ceil(rows * (q's heads + k's) *
//          2^shift / ROPE_BLOCK); rows * (q's heads + k's) below 2^31. Both have a norm, or neither has.
// Rounds   once, at the end: between norm and turn values are f32.
// Writes   the live rows of y and dx are overwritten; y may be x, dx may be neither x nor dy.
// Bound    memory: forward moves 4 bytes an element, backward 6 (8 with rstd); the table stays in the caches.
#pragma once
#include "include/abi.h"

#define ROPE_BLOCK 256

typedef struct {
  bf16* y;        // (rows, heads * 2 * half), written; may be x
  const bf16* x;  // (rows, heads * 2 * half)
  const bf16* w;  // (2 * half), the norm's scale; null: no norm
  int heads;
} RopeHeads;

typedef struct {
  RopeHeads q, k;
  const float* table;         // (positions, 2 * half)
  const unsigned* positions;  // (rows)
  const unsigned* live;       // rows that hold something; null: all
  long long rows;
  int half;   // half the elements of a head
  int shift;  // 2^shift lanes work on a head
  float sign;
  float eps;
} RopeFwd;

typedef struct {
  bf16* dx;       // (rows, heads * 2 * half), written
  bf16* dy;       // (rows, heads * 2 * half); turned back in place if rstd is wanted
  float* rstd;    // (rows, heads), written; null: not wanted
  const bf16* x;  // (rows, heads * 2 * half), what the forward saw
  const bf16* w;  // (2 * half)
  int heads;
} RopeHeadsGrad;

typedef struct {
  RopeHeadsGrad q, k;
  const float* table;         // (positions, 2 * half)
  const unsigned* positions;  // (rows)
  const unsigned* live;       // as above
  long long rows;
  int half;
  int shift;
  float eps;
} RopeBwd;
