// swiglu: gated SiLU, forward and backward, element by element.
//
//   forward    h = g * sigma(g) * u,  sigma(g) = 1 / (1 + e^-g)
//   backward   up = dh * g * sigma(g);  gate = dh * u * sigma(g) * (1 + g * (1 - sigma(g))), in the places of u and g
//
// Source   Shazeer 2020, arXiv:2002.05202; backward by hand, proved by tests/ops/swiglu.rs.
// Shapes   all (rows, cols) bf16; sums and sigma in f32, one rounding at the end.
// Launch   SWIGLU_PACK elements a thread, grid = ceil(rows * cols / (SWIGLU_PACK * SWIGLU_BLOCK)), block = SWIGLU_BLOCK.
// Writes   the live rows of h are overwritten, backward those of gate and up.
// Bound    memory: forward moves 6 bytes an element, backward 10.
#pragma once
#include "include/abi.h"

#define SWIGLU_BLOCK 256
#define SWIGLU_PACK 8

typedef struct {
  bf16* h;               // (rows, cols), written
  const bf16* gate;      // (rows, cols)
  const bf16* up;        // (rows, cols)
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
  long long cols;
} SwigluFwd;

typedef struct {
  bf16* gate;            // (rows, cols), overwritten by its gradient
  bf16* up;              // (rows, cols), overwritten by its gradient
  const bf16* dh;        // (rows, cols)
  const unsigned* live;  // as above
  long long rows;
  long long cols;
} SwigluBwd;
