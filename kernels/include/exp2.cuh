// 2^x as the special function unit computes it (PTX ISA 9.0, ex2.approx.ftz.f32): relative error at most 2^-22, 0 for
// -infinity, results below 2^-126 flushed to 0.
#pragma once
#include "qe.cuh"

namespace qe {
#if defined(__CUDACC__)
QE_DEV float exp2_approx(float x) {
  float y;
  asm("ex2.approx.ftz.f32 %0, %1;\n" : "=f"(y) : "f"(x));
  return y;
}
#else
QE_DEV float exp2_approx(float x) {
  const float y = exp2f(x);
  return y < 0x1p-126f ? 0.0f : y;  // (NaN stays NaN)
}
#endif
}  // namespace qe
