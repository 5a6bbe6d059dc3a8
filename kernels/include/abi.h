// What every kernel header starts from. It is read three times: by nvcc, by the host's C++ compiler (host-run kernels)
// and by bindgen (Rust's view of the parameter structs), so it holds plain C only.
#pragma once

#if defined(QE_BINDGEN)
typedef unsigned short bf16;  // replaced by half::bf16
#elif defined(__CUDACC__)
#include <cuda_bf16.h>
typedef __nv_bfloat16 bf16;
#else
struct bf16 {
  unsigned short bits;
};
#endif

// Limits that every supported card has (compute capability 8.6 is the tightest).
#define QE_MAX_PARAM_BYTES 4096
#define QE_MAX_SHARED_BYTES 101376  // 99 KB a block
// Of kernels that compute capability 9.0 alone runs: 227 KB.
#define QE_MAX_SHARED_BYTES_SM90 232448
#define QE_WARP 32

// What changes from step to step, in device memory, so that a captured graph can be replayed: counts of the batch (tensors
// have rows up to the bucket's size; rows past the true count hold nothing), and what random numbers depend on.
typedef struct {
  unsigned tokens;      // true number of tokens
  unsigned sequences;   // spans of cu_seqlens
  unsigned loss_rows;   // rows that reach the head
  unsigned micro_step;  // counts micro-batches over the run
  unsigned long long seed;
  float scale;  // 1 / labels of the optimizer step
  float noise;  // NEFTune's bound alpha / sqrt(L d), 0 without
} Step;
