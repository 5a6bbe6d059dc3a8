// gelu: Gaussian error linear unit, forward and backward, element by element.
//
//   exact   y = x * P(x), P(x) = erfc(-x / sqrt 2) / 2;  dx = dy * (P(x) + x * e^(-x^2 / 2) / sqrt(2 pi))
//   tanh    y = x * s, s = sigma(2 u), u = sqrt(2 / pi) (x + 0.044715 x^3), which is x (1 + tanh u) / 2
//           dx = dy * (s + x * s * (1 - s) * 2 u'), u' = sqrt(2 / pi) (1 + 3 * 0.044715 x^2)
//
// Source   Hendrycks & Gimpel 2016, arXiv:1606.08415; backward by hand, proved by tests/ops/gelu.rs.
// Shapes   all (rows, cols) bf16; everything in f32, one rounding at the end.
// Launch   GELU_PACK elements a thread, grid = ceil(rows * cols / (GELU_PACK * GELU_BLOCK)), block = GELU_BLOCK.
// Writes   the live rows of y are overwritten; backward those of x, by their gradient.
// Bound    memory: forward moves 4 bytes an element, backward 6.
#pragma once
#include "include/abi.h"

#define GELU_BLOCK 256
#define GELU_PACK 8

typedef struct {
  bf16* y;               // (rows, cols), written
  const bf16* x;         // (rows, cols)
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
  long long cols;
  int tanh;  // 1: the tanh form
} GeluFwd;

typedef struct {
  bf16* x;               // (rows, cols), overwritten by its gradient
  const bf16* dy;        // (rows, cols)
  const unsigned* live;  // as above
  long long rows;
  long long cols;
  int tanh;
} GeluBwd;
