#include "rms_norm.h"

#include "include/norm.cuh"

namespace {
using namespace qe;

static_assert(RMS_NORM_BLOCK == kNormBlock && RMS_NORM_WARP == kNormWarp, "what the header promises");
constexpr int kPack = 8;  // bf16 in 16 bytes

struct Smem {
  float partial[RMS_NORM_BLOCK / QE_WARP];
};
static_assert(sizeof(Smem) == RMS_NORM_SHARED, "what the header promises");
static_assert(sizeof(NormSums) == RMS_NORM_SUMS && kNormColumns == RMS_NORM_COLUMNS, "what the header promises");

// 1 / root mean square of a group; the same bits in every thread.
template <int N>
QE_DEV float rstd_of(const Team& team, const Share<N>& x, const bf16* from, int n, float eps) {
  float sum = 0;
  for_share<N>(team, n, [&](int c, int k) {
    float v[N];
    widen(v, x, k, from + c);
    for (int i = 0; i < N; ++i) sum += v[i] * v[i];
  });
  return rsqrtf(team.sum(sum) / static_cast<float>(n) + eps);
}

template <int N>
QE_DEV void forward(const RmsNormFwd& p, const Team& team, long long group) {
  const bf16* x = p.x + group * p.n;
  bf16* y = p.y + group * p.n;
  Share<N> kept;
  kept.read(team, x, p.n);
  const float rstd = rstd_of(team, kept, x, p.n, p.eps);
  for_share<N>(team, p.n, [&](int c, int k) {
    float v[N], w[N];
    widen(v, kept, k, x + c);
    widen(w, p.w + c);
    for (int i = 0; i < N; ++i) v[i] = v[i] * rstd * w[i];
    narrow(y + c, v);
  });
}

template <int N>
QE_DEV void backward(const RmsNormBwd& p, const Team& team, long long group) {
  const bf16 *x = p.x + group * p.n, *dy = p.dy + group * p.n;
  bf16* dx = p.dx + group * p.n;
  Share<N> kept, kept_dy;
  kept.read(team, x, p.n);
  kept_dy.read(team, dy, p.n);
  const float rstd = rstd_of(team, kept, x, p.n, p.eps);
  if (p.rstd != nullptr && team.rank == 0) p.rstd[group] = rstd;
  float m = 0;
  for_share<N>(team, p.n, [&](int c, int k) {
    float v[N], d[N], w[N];
    widen(v, kept, k, x + c);
    widen(d, kept_dy, k, dy + c);
    widen(w, p.w + c);
    for (int i = 0; i < N; ++i) m += d[i] * w[i] * v[i];
  });
  const float f = rstd * rstd * (team.sum(m) / static_cast<float>(p.n));
  for_share<N>(team, p.n, [&](int c, int k) {
    float v[N], d[N], w[N], before[N] = {};
    widen(v, kept, k, x + c);
    widen(d, kept_dy, k, dy + c);
    widen(w, p.w + c);
    if (p.add) widen(before, dx + c);
    for (int i = 0; i < N; ++i) v[i] = before[i] + rstd * (d[i] * w[i] - v[i] * f);
    narrow(dx + c, v);
  });
}
}  // namespace

QE_KERNEL(rms_norm_fwd, RmsNormFwd, RMS_NORM_BLOCK) {
  Team team;
  long long group;
  if (!find_group(p.live, p.rows, p.per_row, p.n, shared<Smem>().partial, &team, &group)) return;
  if (packs<kPack>(p.x, p.n) && packs<kPack>(p.y, p.n) && packs<kPack>(p.w, p.n)) {
    forward<kPack>(p, team, group);
  } else {
    forward<1>(p, team, group);
  }
}

QE_KERNEL(rms_norm_bwd, RmsNormBwd, RMS_NORM_BLOCK) {
  Team team;
  long long group;
  if (!find_group(p.live, p.rows, p.per_row, p.n, shared<Smem>().partial, &team, &group)) return;
  if (packs<kPack>(p.x, p.n) && packs<kPack>(p.dy, p.n) && packs<kPack>(p.dx, p.n) && packs<kPack>(p.w, p.n)) {
    backward<kPack>(p, team, group);
  } else {
    backward<1>(p, team, group);
  }
}

QE_KERNEL(rms_norm_weight, RmsNormWeight, RMS_NORM_BLOCK) {
  const long long groups = live_rows(p.live, p.rows) * p.per_row;
  sum_rows(p.dw, groups, p.n, shared<NormSums>(),
           [&](long long g, int c) { return f32(p.dy[g * p.n + c]) * f32(p.x[g * p.n + c]) * p.rstd[g]; });
}
