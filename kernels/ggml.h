// ggml: matrices in blocks of ggml (as GGUF files hold them) to bf16.
//
//   F16            y = the half
//   Q4_0, Q5_0     y = d * (q - 8), d * (q - 16)                 Q8_0   y = d * q
//   Q4_1, Q5_1     y = d * q + m
//   Q2_K           y = (d * scale) * q - dmin * min, a scale and a min of 4 bits for 16 elements
//   Q3_K, Q6_K     y = (d * scale) * q, a scale of 6 or 8 bits, signed, for 16 elements
//   Q4_K, Q5_K     y = (d * scale) * q - dmin * min, 6 bits each for 32 elements
//
// Source   the f32 values of the Python package `gguf` 0.17, which has ggml's; layouts: include/ggml.cuh.
// Bits     f32, every operation rounded by itself; y rounded once more, to bf16.
// Shapes   blocks are whole, of 32 or 256 elements (F16: any number). data aligned to 2, to 4 for Q4_1, Q5_1 and Q2_K, to 16 for
//          Q4_K and Q5_K (F16: fast if it is 16), with GGML_SLACK bytes past its end that may be read; y aligned to 16.
// Launch   ggml_dequantise_T: grid = ceil(count / (GGML_BLOCK * GGML_CHUNK)), block = GGML_BLOCK, shared GGML_SHARED (F16:
//          none is needed): a chunk of 32 neighbouring elements a thread.
// Writes   y is overwritten.
// Bound    memory: 2 bytes an element written, 0.33 (Q2_K) to 2 read.
#pragma once
#include "include/abi.h"
#include "include/ggml_blocks.h"

#define GGML_BLOCK 256
#define GGML_SHARED 16384

typedef struct {
  bf16* y;                    // (count), written
  const unsigned char* data;  // blocks, the first of them whole
  long long count;
} GgmlDequantise;
