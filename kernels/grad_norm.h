// grad_norm: Euclidean norm of the flat gradient, norm = sqrt(sum g^2); NaN or infinite if any element is.
//
// Bits     squares are exact in f64 and summed in f64: a thread's in order, threads and warps of a chunk pairwise and in
//          order, chunks in grad_norm_total likewise. A function of the elements alone.
// Shapes   g (n) f32, aligned to 16; partial (chunks) f64 with chunks = ceil(n / GRAD_NORM_CHUNK); norm (1) f64.
// Launch   partial: a chunk a block, grid = chunks, block = GRAD_NORM_BLOCK. total: one block of GRAD_NORM_BLOCK, after it.
//          Both: GRAD_NORM_BLOCK / QE_WARP f64 of shared memory.
// Writes   partial and norm are overwritten. No elements: total alone, norm = 0.
// Bound    memory: 4 bytes an element.
#pragma once
#include "include/abi.h"

#define GRAD_NORM_BLOCK 256
#define GRAD_NORM_CHUNK 16384  // elements

typedef struct {
  double* partial;  // (chunks), written
  const float* g;   // (n)
  long long n;
} GradNormPartial;

typedef struct {
  double* norm;           // (1), written
  const double* partial;  // (chunks)
  long long chunks;
} GradNormTotal;
