#include "gelu.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = GELU_PACK;
constexpr float kRoot2OverPi = 0.7978845608f, kCubic = 0.044715f;
constexpr float kRootHalf = 0.7071067812f;        // 1 / sqrt 2
constexpr float kDensity = 0.3989422804f;         // 1 / sqrt(2 pi)

// The share of x that passes.
QE_DEV float gate(float x, bool tanh) {
  if (!tanh) return 0.5f * erfcf(-x * kRootHalf);
  const float u = kRoot2OverPi * (x + kCubic * x * x * x);
  return __fdividef(1.0f, 1.0f + __expf(-2.0f * u));
}

QE_DEV bf16 value(bf16 x, bool tanh) { return to_bf16(f32(x) * gate(f32(x), tanh)); }

QE_DEV bf16 gradient(bf16 at, bf16 dy, bool tanh) {
  const float x = f32(at), s = gate(x, tanh);
  const float slope = tanh ? s * (1.0f - s) * 2.0f * kRoot2OverPi * (1.0f + 3.0f * kCubic * x * x)
                           : kDensity * __expf(-0.5f * x * x);
  return to_bf16(f32(dy) * (s + x * slope));
}

QE_DEV long long first_of_thread() {
  return (static_cast<long long>(blockIdx.x) * GELU_BLOCK + static_cast<long long>(threadIdx.x)) * kPack;
}
}  // namespace

QE_KERNEL(gelu_fwd, GeluFwd, GELU_BLOCK) {
  const long long n = live_rows(p.live, p.rows) * p.cols, at = first_of_thread();
  if (at >= n) return;
  if (at + kPack <= n && packs<kPack>(p.y, kPack) && packs<kPack>(p.x, kPack)) {
    Pack<bf16, kPack> x = load<kPack>(p.x + at);
    for (int i = 0; i < kPack; ++i) x.v[i] = value(x.v[i], p.tanh);
    store(p.y + at, x);
  } else {
    for (long long i = at; i < min(at + kPack, n); ++i) p.y[i] = value(p.x[i], p.tanh);
  }
}

QE_KERNEL(gelu_bwd, GeluBwd, GELU_BLOCK) {
  const long long n = live_rows(p.live, p.rows) * p.cols, at = first_of_thread();
  if (at >= n) return;
  if (at + kPack <= n && packs<kPack>(p.x, kPack) && packs<kPack>(p.dy, kPack)) {
    Pack<bf16, kPack> x = load<kPack>(p.x + at);
    const Pack<bf16, kPack> dy = load<kPack>(p.dy + at);
    for (int i = 0; i < kPack; ++i) x.v[i] = gradient(x.v[i], dy.v[i], p.tanh);
    store(p.x + at, x);
  } else {
    for (long long i = at; i < min(at + kPack, n); ++i) p.x[i] = gradient(p.x[i], p.dy[i], p.tanh);
  }
}
