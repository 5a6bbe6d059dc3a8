// A matrix in blocks of ggml, in device memory. Each row is whole blocks.
#pragma once
#include "abi.h"

// Numbers of the types, as GGUF files have them.
#define GGML_F16 1
#define GGML_Q4_0 2
#define GGML_Q4_1 3
#define GGML_Q5_0 6
#define GGML_Q5_1 7
#define GGML_Q8_0 8
#define GGML_Q2_K 10
#define GGML_Q3_K 11
#define GGML_Q4_K 12
#define GGML_Q5_K 13
#define GGML_Q6_K 14

#define GGML_CHUNK 32   // neighbouring elements that one lane decodes
#define GGML_SLACK 16   // bytes past the last block that may be read (they are not looked at)
