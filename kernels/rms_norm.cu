#include "rms_norm.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = 8;  // bf16 in 16 bytes

// Calls f(c, elements) over this lane's share of a group, in packs where the addresses allow it.
template <class F>
QE_DEV void for_lane(bool packed, int n, F f) {
  if (packed) {
    for (int c = lane() * kPack; c < n; c += QE_WARP * kPack) f(c, kPack);
  } else {
    for (int c = lane(); c < n; c += QE_WARP) f(c, 1);
  }
}

QE_DEV void read(float (&to)[kPack], const bf16* from, int count) {
  if (count == kPack) {
    const Pack<bf16, kPack> p = load<kPack>(from);
    for (int i = 0; i < kPack; ++i) to[i] = f32(p.v[i]);
  } else {
    to[0] = f32(from[0]);
  }
}

QE_DEV void write(bf16* to, const float (&from)[kPack], int count) {
  if (count == kPack) {
    Pack<bf16, kPack> p;
    for (int i = 0; i < kPack; ++i) p.v[i] = to_bf16(from[i]);
    store(to, p);
  } else {
    to[0] = to_bf16(from[0]);
  }
}

// 1 / root mean square of a group; the same bits in every lane.
QE_DEV float rstd_of(const bf16* x, int n, float eps, bool packed) {
  float sum = 0;
  for_lane(packed, n, [&](int c, int count) {
    float v[kPack];
    read(v, x + c, count);
    for (int i = 0; i < count; ++i) sum += v[i] * v[i];
  });
  return rsqrtf(warp_sum(sum) / static_cast<float>(n) + eps);
}

// The group that this warp works on, or false past the last live one.
QE_DEV bool group_of_warp(const unsigned* live, long long rows, int per_row, long long* group) {
  *group = static_cast<long long>(blockIdx.x) * (RMS_NORM_BLOCK / QE_WARP) + warp();
  return *group < live_rows(live, rows) * per_row;
}
}  // namespace

QE_KERNEL(rms_norm_fwd, RmsNormFwd, RMS_NORM_BLOCK) {
  long long group;
  if (!group_of_warp(p.live, p.rows, p.per_row, &group)) return;
  const bf16* x = p.x + group * p.n;
  bf16* y = p.y + group * p.n;
  const bool packed = packs<kPack>(x, p.n) && packs<kPack>(y, p.n) && packs<kPack>(p.w, p.n);
  const float rstd = rstd_of(x, p.n, p.eps, packed);
  for_lane(packed, p.n, [&](int c, int count) {
    float v[kPack], w[kPack];
    read(v, x + c, count);
    read(w, p.w + c, count);
    for (int i = 0; i < count; ++i) v[i] = v[i] * rstd * w[i];
    write(y + c, v, count);
  });
}

QE_KERNEL(rms_norm_bwd, RmsNormBwd, RMS_NORM_BLOCK) {
  long long group;
  if (!group_of_warp(p.live, p.rows, p.per_row, &group)) return;
  const bf16 *x = p.x + group * p.n, *dy = p.dy + group * p.n;
  bf16* dx = p.dx + group * p.n;
  const bool packed =
      packs<kPack>(x, p.n) && packs<kPack>(dy, p.n) && packs<kPack>(dx, p.n) && packs<kPack>(p.w, p.n);
  const float rstd = rstd_of(x, p.n, p.eps, packed);
  float m = 0;
  for_lane(packed, p.n, [&](int c, int count) {
    float v[kPack], d[kPack], w[kPack];
    read(v, x + c, count);
    read(d, dy + c, count);
    read(w, p.w + c, count);
    for (int i = 0; i < count; ++i) m += d[i] * w[i] * v[i];
  });
  const float k = rstd * rstd * (warp_sum(m) / static_cast<float>(p.n));
  for_lane(packed, p.n, [&](int c, int count) {
    float v[kPack], d[kPack], w[kPack], before[kPack] = {};
    read(v, x + c, count);
    read(d, dy + c, count);
    read(w, p.w + c, count);
    if (p.add) read(before, dx + c, count);
    for (int i = 0; i < count; ++i) v[i] = before[i] + rstd * (d[i] * w[i] - v[i] * k);
    write(dx + c, v, count);
  });
}

QE_KERNEL(rms_norm_weight, RmsNormWeight, RMS_NORM_BLOCK) {
  const int c = static_cast<int>(blockIdx.x * RMS_NORM_BLOCK + threadIdx.x);
  const int first = static_cast<int>(blockIdx.x * RMS_NORM_BLOCK) + warp() * QE_WARP;
  if (first >= p.n) return;
  const long long groups = live_rows(p.live, p.rows) * p.per_row;
  float sum = 0;
  for (long long g = 0; g < groups; ++g) {
    const bf16 *x = p.x + g * p.n, *dy = p.dy + g * p.n;
    const float rstd = rstd_of(x, p.n, p.eps, packs<kPack>(x, p.n));
    if (c < p.n) sum += f32(dy[c]) * f32(x[c]) * rstd;
  }
  if (c < p.n) p.dw[c] += sum;
}
