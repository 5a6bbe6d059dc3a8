#include "swiglu.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = SWIGLU_PACK;

// Beyond 88 in magnitude e^-g is infinite or 0, and sigma 0 or 1.
QE_DEV float sigma(float g) { return __fdividef(1.0f, 1.0f + __expf(-g)); }

QE_DEV bf16 value(bf16 gate, bf16 up) {
  const float g = f32(gate);
  return to_bf16(g * sigma(g) * f32(up));
}

// gate and up become their gradients.
QE_DEV void gradient(bf16* gate, bf16* up, bf16 dh) {
  const float g = f32(*gate), u = f32(*up), d = f32(dh), s = sigma(g);
  *up = to_bf16(d * g * s);
  *gate = to_bf16(d * u * s * (1.0f + g * (1.0f - s)));
}

QE_DEV long long first_of_thread() {
  return (static_cast<long long>(blockIdx.x) * SWIGLU_BLOCK + static_cast<long long>(threadIdx.x)) * kPack;
}
}  // namespace

QE_KERNEL(swiglu_fwd, SwigluFwd, SWIGLU_BLOCK) {
  const long long n = live_rows(p.live, p.rows) * p.cols, at = first_of_thread();
  if (at >= n) return;
  if (at + kPack <= n && packs<kPack>(p.h, kPack) && packs<kPack>(p.gate, kPack) && packs<kPack>(p.up, kPack)) {
    const Pack<bf16, kPack> gate = load<kPack>(p.gate + at), up = load<kPack>(p.up + at);
    Pack<bf16, kPack> h;
    for (int i = 0; i < kPack; ++i) h.v[i] = value(gate.v[i], up.v[i]);
    store(p.h + at, h);
  } else {
    for (long long i = at; i < min(at + kPack, n); ++i) p.h[i] = value(p.gate[i], p.up[i]);
  }
}

QE_KERNEL(swiglu_bwd, SwigluBwd, SWIGLU_BLOCK) {
  const long long n = live_rows(p.live, p.rows) * p.cols, at = first_of_thread();
  if (at >= n) return;
  if (at + kPack <= n && packs<kPack>(p.gate, kPack) && packs<kPack>(p.up, kPack) && packs<kPack>(p.dh, kPack)) {
    Pack<bf16, kPack> gate = load<kPack>(p.gate + at), up = load<kPack>(p.up + at);
    const Pack<bf16, kPack> dh = load<kPack>(p.dh + at);
    for (int i = 0; i < kPack; ++i) gradient(&gate.v[i], &up.v[i], dh.v[i]);
    store(p.gate + at, gate);
    store(p.up + at, up);
  } else {
    for (long long i = at; i < min(at + kPack, n); ++i) gradient(&p.gate[i], &p.up[i], p.dh[i]);
  }
}
