// adamw: one optimizer step over the flat parameters, with clipping, and their bf16 copy.
//
//   clip   min(1, max_norm / (norm + 1e-6)), or 1 if max_norm is 0; in f64, rounded once to f32
//   g'     = clip * g
//   m      = beta1 * m + rest1 * g'
//   v      = beta2 * v + rest2 * g' * g'
//   p      = p * shrink - step_size * m / (sqrt(v) / root2 + eps)      (shrink is 1 where weight decay does not apply)
//   copy   = bf16(p)
//
// Nothing is changed if norm or loss is not finite.
//
// Source   Loshchilov & Hutter 2019, arXiv:1711.05101, in PyTorch's form.
// Bits     f32, every operation rounded by itself, from left to right: those of src/ops/adamw on the CPU.
// Shapes   p, m, v, g (n) f32 and copy (n) bf16, aligned to 16; ends (groups); norm, loss (1) f64; step (1).
// Launch   grid = ceil(n / (ADAMW_BLOCK * ADAMW_PACK)), block = ADAMW_BLOCK.
// Writes   p, m, v are changed in place; copy is overwritten.
// Bound    memory: 28 bytes an element, 30 with the copy.
#pragma once
#include "include/abi.h"

#define ADAMW_BLOCK 256
#define ADAMW_PACK 4  // elements a thread

// What changes from step to step, in device memory.
typedef struct {
  double max_norm;  // 0: no clipping
  float beta1, beta2;
  float rest1, rest2;  // 1 - beta
  float step_size;     // lr / (1 - beta1^t)
  float root2;         // sqrt(1 - beta2^t)
  float shrink;        // 1 - lr * weight_decay
  float eps;
} AdamWStep;

typedef struct {
  float* p;               // (n), changed
  float* m;               // (n), changed
  float* v;               // (n), changed
  bf16* copy;             // (n), written; null: none
  const float* g;         // (n)
  const AdamWStep* step;  // (1)
  const double* norm;     // (1): of g
  const double* loss;     // (1)
  const unsigned long long* ends;  // (groups): element after each group, ascending; the last is n
  long long n;
  int groups;  // runs of elements that decay or do not, in turns
  int decays;  // 1: the first group decays
} AdamWUpdate;
