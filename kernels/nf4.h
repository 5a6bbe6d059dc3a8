// nf4: weights as 4-bit codes, 64 of the flattened matrix to an absmax, and the absmax in 8 bits (double quantisation).
//
//   quantise    absmax[b] = max |x| of block b;  code = number of midpoints of the code book strictly below
//               x * (1 / max(absmax, NF4_TINY)); a last block of fewer than 64: below x / absmax, absmax at least NF4_TINY
//   mean        offset = f32(sum of absmax / blocks) in f64: NF4_MEAN_LANES interleaved sums, added by halves
//   absmax      absmax2[c] = max |absmax - offset| of 256 blocks;  u = clamp((absmax - offset) * (1 / absmax2), -1, 1);
//               cell = trunc((u + 1) * 0.5 * 65535 + 0.5);  code = number of midpoints of code2 strictly below
//               -1 + 2 cell / 65535; all codes 0 where absmax2 is 0
//   dequantise  absmax = code2[codes[b]] * absmax2[b / 256] + offset (or as stored);  y = code book[code] * absmax
//
// Source   Dettmers et al. 2023, arXiv:2305.14314, section 3; the bits of src/quant/nf4.rs, which has bitsandbytes'.
// Bits     f32, every operation rounded by itself; y rounded once more for bf16.
// Shapes   packed ceil(n / 2) bytes, aligned to 4, element 2i in the high nibble of byte i (an odd end is padded with the
//          code of 0); absmax, codes (blocks) with blocks = ceil(n / 64); absmax2 (ceil(blocks / 256)); offset (1); code2
//          (256), ascending. x, y of any alignment; fast if it is 16.
// Launch   quantise: grid = ceil(n / NF4_QUANTISE_TILE), block = NF4_THREADS; a matrix may come in several launches, each but
//          the last of whole blocks. mean: one block of NF4_MEAN_LANES threads, as
//          many f64 of shared memory. absmax: grid = ceil(blocks / 256), block = 256; (256 + 8) f32 of shared memory.
//          dequantise: grid = ceil(count / NF4_DEQUANTISE_TILE), block = NF4_THREADS; 16 f32 of shared memory.
// Writes   all results are overwritten. NaN or infinity in x makes its absmax and the offset not finite; the caller refuses.
// Bound    memory: 2.5 bytes an element of bf16, in either direction.
#pragma once
#include "include/abi.h"
#include "include/nf4_blocks.h"

#define NF4_THREADS 256            // a block of threads
#define NF4_QUANTISE_TILE 2048     // elements a block of threads: 8 a thread
#define NF4_DEQUANTISE_TILE 8192   // elements a block of threads: 32 a thread
#define NF4_MEAN_LANES 1024        // part of the definition of the offset
#define NF4_ZERO 7                 // the code of 0
#define NF4_TINY 1e-38             // smallest absmax divided by

typedef struct {
  unsigned char* packed;  // (ceil(n / 2)), written
  float* absmax;          // (blocks), written
  const bf16* x;          // (n) for nf4_quantise_bf16
  const float* x32;       // (n) for nf4_quantise_f32
  long long n;
} Nf4Quantise;

typedef struct {
  float* offset;        // (1), written
  const float* absmax;  // (blocks)
  long long blocks;
} Nf4Mean;

typedef struct {
  unsigned char* codes;  // (blocks), written
  float* absmax2;        // (ceil(blocks / 256)), written
  const float* absmax;   // (blocks)
  const float* offset;   // (1)
  const float* code2;    // (256)
  long long blocks;
} Nf4QuantiseAbsmax;

typedef struct {
  bf16* y;          // (count), written by nf4_dequantise_bf16
  float* y32;       // (count), written by nf4_dequantise_f32
  Nf4Blocks w;      // the whole matrix
  long long first;  // element of the matrix that y starts with
  long long count;  // elements of y
} Nf4Dequantise;
