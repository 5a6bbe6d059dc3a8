// embedding: rows of a table by number, with NEFTune's noise on request; rows added; its two transposes.
//
//   fwd      x[r] = table[ids[r]] (+ noise * (2 u - 1), u the uniform number r * cols + c of the step's stream `module`)
//   add      x[r] += table[ids[r]], rounded once
//   bwd      dtable[ids[r]] += dx[r], in the order of r
//   scatter  x[ids[r]] = dx[r], each row at most once
//
// Source   NEFTune: Jain et al. 2023, arXiv:2310.05914. The numbers: include/philox.cuh, bit for bit those of the CPU.
// Shapes   table (any, cols), x, dx (rows, cols) bf16; dtable (any, cols) f32; ids (rows), each a row of the table.
// Launch   fwd, add, scatter: a row a block, grid = rows, block = EMBEDDING_BLOCK or fewer whole warps.
//          bwd: grid = (rows, ceil(cols / (EMBEDDING_BLOCK * EMBEDDING_PACK))), block = EMBEDDING_BLOCK, shared
//          sizeof(EmbeddingSmem): the block of the first row with an id adds all rows with it, in order; the others end.
// Writes   fwd, add the live rows of x; bwd adds to dtable; scatter the rows of x that are named.
// Bound    memory: 4 bytes an element, add 6; bwd 2 an element and 8 an element of dtable touched, and rows^2 / 4 of ids in L2.
#pragma once
#include "include/abi.h"

#define EMBEDDING_BLOCK 256
#define EMBEDDING_PACK 8
#define EMBEDDING_STEPS 4  // ids that a thread of bwd looks at between two barriers

typedef struct {
  unsigned found[EMBEDDING_STEPS][EMBEDDING_BLOCK / QE_WARP];  // a bit for each id of a chunk
} EmbeddingSmem;

typedef struct {
  bf16* x;               // (rows, cols), written
  const bf16* table;     // (any, cols)
  const unsigned* ids;   // (rows)
  const unsigned* live;  // rows that hold something; null: all
  const Step* step;      // the noise's bound, seed and micro-step; null: no noise
  long long rows;
  int cols;
  unsigned module;  // the noise's stream
} EmbeddingFwd;

typedef struct {
  bf16* x;               // (rows, cols), added to
  const bf16* table;     // (any, cols)
  const unsigned* ids;   // (rows)
  const unsigned* live;  // as above
  long long rows;
  int cols;
} EmbeddingAdd;

typedef struct {
  float* dtable;         // (any, cols), added to
  const bf16* dx;        // (rows, cols)
  const unsigned* ids;   // (rows)
  const unsigned* live;  // as above
  long long rows;
  int cols;
} EmbeddingBwd;

typedef struct {
  bf16* x;               // (any, cols), rows `ids` written
  const bf16* dx;        // (rows, cols)
  const unsigned* ids;   // (rows)
  const unsigned* live;  // as above
  long long rows;
  int cols;
} EmbeddingScatter;
