// cross_entropy: loss of rows of logits against targets, and its gradient in their place: linear_cross_entropy without its
// products. The rows of a batch come in chunks.
//
//   live   counts[i] = live rows of chunk i: between 0 and `chunk`
//   rows   lse = log sum_c e^x[r,c];  loss[r] = lse - x[r, target[r]];  with `gradient`
//          dx[r,c] = (e^(x[r,c] - lse) - (c == target[r])) * step.scale
//   sum    total += sum_r loss[r], in a fixed order, f64
//
// Source   log-sum-exp in one pass: Milakov & Gimelshein 2018, arXiv:1805.02867; proved by tests/ops/linear_cross_entropy.rs.
// Shapes   logits (rows, pitch) f32, of which `vocab` columns hold something; pitch is a multiple of 8, logits are aligned to
//          32 bytes. dx (rows, 2 * pitch) bf16 in the same memory: row r begins where row r of the logits did, and its columns
//          from vocab on are not defined. loss, targets (rows); each target below vocab.
// Launch   live: grid = ceil(chunks / CROSS_ENTROPY_BLOCK). rows: a row a block, shared sizeof(CrossEntropySmem).
//          sum: one block, the same shared memory. block = CROSS_ENTROPY_BLOCK.
// Rounds   everything in f32, dx once to bf16; losses are f32, their sum is f64.
// Bound    memory: a logit is read twice (4 bytes) and written once (2 bytes).
#pragma once
#include "include/abi.h"

#define CROSS_ENTROPY_BLOCK 512

typedef struct {
  double sums[CROSS_ENTROPY_BLOCK / QE_WARP];
  float maxima[CROSS_ENTROPY_BLOCK / QE_WARP];
} CrossEntropySmem;

typedef struct {
  unsigned* counts;      // (chunks), written
  const unsigned* live;  // rows of the batch that hold something
  long long chunk;       // rows of a chunk
  int chunks;
} CrossEntropyLive;

typedef struct {
  float* loss;              // (rows), written
  float* logits;            // (rows, pitch), overwritten with `gradient`
  const unsigned* targets;  // (rows)
  const unsigned* live;     // rows that hold something; null: all
  const Step* step;         // the gradient's scale
  long long rows;           // of this chunk
  long long pitch;          // floats from a row of logits to the next
  int vocab;
  int gradient;  // 1: logits become their gradient
} CrossEntropyRows;

typedef struct {
  double* total;         // (1), added to
  const float* loss;     // (rows)
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
} CrossEntropySum;
