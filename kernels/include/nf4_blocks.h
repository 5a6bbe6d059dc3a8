// An NF4 matrix in device memory.
#pragma once
#include "abi.h"

#define NF4_BLOCK 64    // elements that share one absmax
#define NF4_BLOCK2 256  // absmax that share one absmax2

typedef struct {
  const unsigned char* packed;  // ceil(elements / 2), element 2i in the high nibble of byte i
  const float* absmax;          // one a block, plain; null: double-quantised
  const unsigned char* codes;   // one a block, double-quantised
  const float* absmax2;         // one for 256 blocks
  const float* code2;           // 256 values of the codes
  const float* offset;          // one, added to every absmax
} Nf4Blocks;
