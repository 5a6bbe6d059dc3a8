#include "layer_norm.h"

#include "include/norm.cuh"

namespace {
using namespace qe;

static_assert(LAYER_NORM_BLOCK == kNormBlock && LAYER_NORM_WARP == kNormWarp, "what the header promises");
constexpr int kPack = 8;  // bf16 in 16 bytes

struct Smem {
  float partial[LAYER_NORM_BLOCK / QE_WARP];
};
static_assert(sizeof(Smem) == LAYER_NORM_SHARED, "what the header promises");
static_assert(sizeof(NormSums) == LAYER_NORM_SUMS && kNormColumns == LAYER_NORM_COLUMNS, "what the header promises");

struct Stats {
  float mean, rstd;
};

// Of a row, by two passes over its registers; the same bits in every thread.
template <int N>
QE_DEV Stats stats_of(const Team& team, const Share<N>& x, const bf16* from, int n, float eps) {
  float sum = 0;
  for_share<N>(team, n, [&](int c, int k) {
    float v[N];
    widen(v, x, k, from + c);
    for (int i = 0; i < N; ++i) sum += v[i];
  });
  const float mean = team.sum(sum) / static_cast<float>(n);
  float squares = 0;
  for_share<N>(team, n, [&](int c, int k) {
    float v[N];
    widen(v, x, k, from + c);
    for (int i = 0; i < N; ++i) squares += (v[i] - mean) * (v[i] - mean);
  });
  return {mean, rsqrtf(team.sum(squares) / static_cast<float>(n) + eps)};
}

template <int N>
QE_DEV void forward(const LayerNormFwd& p, const Team& team, long long row) {
  const bf16* x = p.x + row * p.n;
  bf16* y = p.y + row * p.n;
  Share<N> kept;
  kept.read(team, x, p.n);
  const Stats s = stats_of(team, kept, x, p.n, p.eps);
  for_share<N>(team, p.n, [&](int c, int k) {
    float v[N], w[N], b[N] = {};
    widen(v, kept, k, x + c);
    widen(w, p.w + c);
    if (p.b != nullptr) widen(b, p.b + c);
    for (int i = 0; i < N; ++i) v[i] = (v[i] - s.mean) * s.rstd * w[i] + b[i];
    narrow(y + c, v);
  });
}

template <int N>
QE_DEV void backward(const LayerNormBwd& p, const Team& team, long long row) {
  const bf16 *x = p.x + row * p.n, *dy = p.dy + row * p.n;
  bf16* dx = p.dx + row * p.n;
  Share<N> kept, kept_dy;
  kept.read(team, x, p.n);
  kept_dy.read(team, dy, p.n);
  const Stats s = stats_of(team, kept, x, p.n, p.eps);
  if (p.stats != nullptr && team.rank == 0) {
    p.stats[2 * row] = s.mean;
    p.stats[2 * row + 1] = s.rstd;
  }
  float sum = 0, product = 0;
  for_share<N>(team, p.n, [&](int c, int k) {
    float v[N], d[N], w[N];
    widen(v, kept, k, x + c);
    widen(d, kept_dy, k, dy + c);
    widen(w, p.w + c);
    for (int i = 0; i < N; ++i) {
      const float g = d[i] * w[i];
      sum += g;
      product += g * ((v[i] - s.mean) * s.rstd);
    }
  });
  const float n = static_cast<float>(p.n), mean_g = team.sum(sum) / n, mean_gh = team.sum(product) / n;
  for_share<N>(team, p.n, [&](int c, int k) {
    float v[N], d[N], w[N], before[N] = {};
    widen(v, kept, k, x + c);
    widen(d, kept_dy, k, dy + c);
    widen(w, p.w + c);
    if (p.add) widen(before, dx + c);
    for (int i = 0; i < N; ++i) {
      const float h = (v[i] - s.mean) * s.rstd;
      v[i] = before[i] + s.rstd * (d[i] * w[i] - mean_g - h * mean_gh);
    }
    narrow(dx + c, v);
  });
}
}  // namespace

QE_KERNEL(layer_norm_fwd, LayerNormFwd, LAYER_NORM_BLOCK) {
  Team team;
  long long row;
  if (!find_group(p.live, p.rows, 1, p.n, shared<Smem>().partial, &team, &row)) return;
  if (packs<kPack>(p.x, p.n) && packs<kPack>(p.y, p.n) && packs<kPack>(p.w, p.n) && packs<kPack>(p.b, p.n)) {
    forward<kPack>(p, team, row);
  } else {
    forward<1>(p, team, row);
  }
}

QE_KERNEL(layer_norm_bwd, LayerNormBwd, LAYER_NORM_BLOCK) {
  Team team;
  long long row;
  if (!find_group(p.live, p.rows, 1, p.n, shared<Smem>().partial, &team, &row)) return;
  if (packs<kPack>(p.x, p.n) && packs<kPack>(p.dy, p.n) && packs<kPack>(p.dx, p.n) && packs<kPack>(p.w, p.n)) {
    backward<kPack>(p, team, row);
  } else {
    backward<1>(p, team, row);
  }
}

QE_KERNEL(layer_norm_weight, LayerNormWeight, LAYER_NORM_BLOCK) {
  const long long rows = live_rows(p.live, p.rows);
  NormSums& sums = shared<NormSums>();
  if (p.dw != nullptr) {
    sum_rows(p.dw, rows, p.n, sums, [&](long long r, int c) {
      return f32(p.dy[r * p.n + c]) * ((f32(p.x[r * p.n + c]) - p.stats[2 * r]) * p.stats[2 * r + 1]);
    });
  }
  if (p.db != nullptr) sum_rows(p.db, rows, p.n, sums, [&](long long r, int c) { return f32(p.dy[r * p.n + c]); });
}
