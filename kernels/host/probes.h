// Kernels that are wrong on purpose, for tests/kernels/runtime.rs: what host-run kernels promise to catch, they must catch.
// Compiled for the CPU only. One warp reads `in` as it says; `which` 0 is the right way to do it.
#pragma once
#include "../include/abi.h"

#define PROBE_THREADS 128

typedef struct {
  float* out;
  const float* in;
  long long n;
  int which;
} Probe;
