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
// adamw_step_8bit keeps m and v as 8-bit codes, ADAMW_STATE_BLOCK elements to an absmax each; p is changed by the new m and
// v before they are rounded:
//
//   decode  m = m_code[code] * absmax
//   encode  absmax = max |m| of the block;  code = number of midpoints of m_code strictly below m / absmax (0 / 1 in a block
//           of zeros); one less where m < 0 would become 0
//
// Source   Loshchilov & Hutter 2019, arXiv:1711.05101, in PyTorch's form; 8 bits: Dettmers et al. 2021, arXiv:2110.02861,
//          with the maps and the rule for signs of bitsandbytes.
// Bits     f32, every operation rounded by itself, from left to right: those of src/ops/adamw on the CPU.
// Shapes   p, m, v, g (n) f32 and copy (n) bf16, aligned to 16; ends (groups); norm, loss (1) f64; step (1).
//          8 bits: m, v (n) bytes, absmax (ceil(n / ADAMW_STATE_BLOCK)) f32, maps (256) f32, ascending.
// Launch   grid = ceil(n / (ADAMW_BLOCK * ADAMW_PACK)), block = ADAMW_BLOCK; 8 bits: grid = ceil(n / ADAMW_TILE_8BIT) and
//          4 * 256 f32 of shared memory.
// Writes   p, m, v and their absmax are changed in place; copy is overwritten.
// Bound    memory: 28 bytes an element, 16 with 8 bits, and 2 for the copy.
#pragma once
#include "include/abi.h"

#define ADAMW_BLOCK 256
#define ADAMW_PACK 4  // elements a thread
#define ADAMW_STATE_BLOCK 256  // elements that share an absmax; a warp works on them
#define ADAMW_TILE_8BIT 2048   // elements a block of threads

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

typedef struct {
  float* p;                // (n), changed
  unsigned char* m;        // (n), changed
  unsigned char* v;        // (n), changed
  float* m_absmax;         // (ceil(n / ADAMW_STATE_BLOCK)), changed
  float* v_absmax;         // likewise
  bf16* copy;              // (n), written; null: none
  const float* g;          // (n)
  const float* m_code;     // (256), both signs
  const float* v_code;     // (256), from 0
  const AdamWStep* step;   // as above, to the end
  const double* norm;
  const double* loss;
  const unsigned long long* ends;
  long long n;
  int groups;
  int decays;
} AdamWUpdate8;
