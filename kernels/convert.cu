#include "convert.h"

#include "include/qe.cuh"

using namespace qe;

QE_KERNEL(convert_f32_bf16, ConvertF32Bf16, CONVERT_BLOCK) {
  const long long at = (static_cast<long long>(blockIdx.x) * CONVERT_BLOCK + threadIdx.x) * CONVERT_PACK;
  if (at + CONVERT_PACK <= p.n) {
    const Pack<float, CONVERT_PACK> x = load<CONVERT_PACK>(p.x + at);
    Pack<bf16, CONVERT_PACK> y;
    for (int i = 0; i < CONVERT_PACK; ++i) y.v[i] = to_bf16(x.v[i]);
    store(p.y + at, y);
  } else {
    for (long long i = at; i < p.n; ++i) p.y[i] = to_bf16(p.x[i]);
  }
}
