// lora_bwd: what the adapter of a linear layer takes from dy, in one pass over dy: Q, and the gradient of B.
//
//   parts   q_parts[j] (rows, pitch) = dy B over the columns of block j;   b_parts[i] (out, pitch) = dy^T P over the rows of block i
//   sum     Q (rows, r) = s * sum_j q_parts[j];   dB (out, r) += sum_i b_parts[i]
//
// Source    Hu et al. 2021, arXiv:2106.09685, with P = s drop(x) A^T; one pass: both products read a tile of dy where it lies in
//           shared memory.
// Rounding  operands are bf16, sums f32: 16 of the depth at a time within a block, the blocks in their order. Q is rounded once.
// Bits      those of a row of Q depend on that row alone; blocks are the same whatever the device.
// Shapes    any rows and out; r up to LORA_BWD_RANK (a larger one makes too many parts of Q: gemm_nn and gemm_tn). pitch: r
//           rounded up to a multiple of 8; the columns from r on hold zeros.
// Groups    up to GEMM_MEMBERS layers with the same rows in one launch, each with the bits that it has alone.
// Launch    parts: grid = (of all members ceil(out / LORA_BWD_COLUMNS) * ceil(r / LORA_BWD_RANKS), ceil(rows / LORA_BWD_ROWS)),
//           block = LORA_BWD_BLOCK, shared memory LORA_BWD_SHARED.
//           sum: grid = ceil((rows + out) * r / LORA_BWD_SUM_BLOCK) of all members, block = LORA_BWD_SUM_BLOCK.
// Writes    the live rows of Q.
// Bound     memory: dy is read once (of more than LORA_BWD_RANKS ranks from L2 again), and of the parts 4 * rows * out * r *
//           (1 / LORA_BWD_COLUMNS + 1 / LORA_BWD_ROWS) bytes are written and read.
#pragma once
#include "include/gemm.h"

#define LORA_BWD_RANK 32
#define LORA_BWD_RANKS 16
#define LORA_BWD_COLUMNS 256
#define LORA_BWD_ROWS 256
#define LORA_BWD_BLOCK 128
#define LORA_BWD_SHARED 45056
#define LORA_BWD_SUM_BLOCK 256

typedef struct {
  bf16* q;         // (rows, r), written
  const bf16* dy;  // (rows, out)
  const bf16* b;   // (out, r)
  const bf16* p;   // (rows, r)
  float* db;       // (out, r), added to; null: B is frozen
  float* q_parts;  // (blocks of columns, rows, pitch)
  float* b_parts;  // (blocks of rows, out, pitch); unused without db
  long long out;
  int r;
  float scale;
} LoraBwd;

typedef struct {
  LoraBwd of[GEMM_MEMBERS];
  unsigned ends[GEMM_MEMBERS];  // where the blocks of each member end; the last one repeated where there are fewer
  const unsigned* live;         // rows that hold something; null: all
  long long rows;
} LoraBwdGroup;
