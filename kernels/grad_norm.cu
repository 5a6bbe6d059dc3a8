#include "grad_norm.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = 4;  // f32 in 16 bytes
constexpr int kSteps = GRAD_NORM_CHUNK / (GRAD_NORM_BLOCK * kPack);
static_assert(kSteps * GRAD_NORM_BLOCK * kPack == GRAD_NORM_CHUNK, "threads share a chunk evenly");

struct Smem {
  double partial[GRAD_NORM_BLOCK / QE_WARP];
};

QE_DEV double square(float x) { return static_cast<double>(x) * static_cast<double>(x); }
}  // namespace

QE_KERNEL(grad_norm_partial, GradNormPartial, GRAD_NORM_BLOCK) {
  Smem& s = shared<Smem>();
  const long long start = static_cast<long long>(blockIdx.x) * GRAD_NORM_CHUNK;
  const long long left = min(p.n - start, static_cast<long long>(GRAD_NORM_CHUNK));
  const float* g = p.g + start;
  double sum = 0;
  // All loads of a whole chunk are under way together.
  if (left == GRAD_NORM_CHUNK) {
    Pack<float, kPack> x[kSteps];
#pragma unroll
    for (int i = 0; i < kSteps; ++i) x[i] = load<kPack>(g + (i * GRAD_NORM_BLOCK + static_cast<int>(threadIdx.x)) * kPack);
#pragma unroll
    for (int i = 0; i < kSteps; ++i)
      for (int k = 0; k < kPack; ++k) sum += square(x[i].v[k]);
  } else {
    // The same elements in the same order.
    for (int i = 0; i < kSteps; ++i) {
      const long long at = static_cast<long long>(i * GRAD_NORM_BLOCK + static_cast<int>(threadIdx.x)) * kPack;
      for (int k = 0; k < kPack; ++k)
        if (at + k < left) sum += square(g[at + k]);
    }
  }
  sum = block_sum(sum, s.partial);
  if (threadIdx.x == 0) p.partial[blockIdx.x] = sum;
}

QE_KERNEL(grad_norm_total, GradNormTotal, GRAD_NORM_BLOCK) {
  Smem& s = shared<Smem>();
  double sum = 0;
  for (long long i = threadIdx.x; i < p.chunks; i += GRAD_NORM_BLOCK) sum += p.partial[i];
  sum = block_sum(sum, s.partial);
  if (threadIdx.x == 0) *p.norm = sqrt(sum);
}
