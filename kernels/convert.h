// convert: f32 to bf16, rounded to nearest, ties to even.
//
//   y[i] = bf16(x[i])
//
// Shapes   x (n) f32, y (n) bf16, both aligned to 16.
// Launch   grid = ceil(n / (CONVERT_BLOCK * CONVERT_PACK)), block = CONVERT_BLOCK.
// Writes   y is overwritten.
// Bound    memory: 6 bytes an element.
#pragma once
#include "include/abi.h"

#define CONVERT_BLOCK 256
#define CONVERT_PACK 4  // elements a thread

typedef struct {
  bf16* y;         // (n), written
  const float* x;  // (n)
  long long n;
} ConvertF32Bf16;
