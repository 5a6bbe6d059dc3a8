#include "adamw.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

// (The largest finite f64; NaN is not below it.)
QE_DEV bool is_finite(double x) { return fabs(x) <= 1.7976931348623157e308; }

// Factor on the gradient.
QE_DEV float clip_of(double max_norm, double norm) {
  if (!(max_norm > 0.0)) return 1.0f;
  const double factor = max_norm / (norm + 1e-6);
  return static_cast<float>(factor < 1.0 ? factor : 1.0);
}

// Walks upwards through the groups: what p is multiplied by.
struct Shrink {
  const unsigned long long* ends;
  unsigned long long end;
  float shrink;
  bool decays;
  int group;

  // Starts at the group that holds element `at`, below n.
  QE_DEV Shrink(const unsigned long long* all, int groups, int first_decays, float factor, long long at)
      : ends(all), shrink(factor), decays(first_decays != 0) {
    int low = 0, high = groups - 1;
    while (low < high) {
      const int middle = (low + high) / 2;
      if (ends[middle] <= static_cast<unsigned long long>(at)) low = middle + 1;
      else high = middle;
    }
    group = low;
    end = ends[low];
  }
  QE_DEV float at(long long i) {
    while (end <= static_cast<unsigned long long>(i)) end = ends[++group];
    return (group % 2 == 0) == decays ? shrink : 1.0f;
  }
};

struct Element {
  float p, m, v;
};

QE_DEV void update(Element& e, float g, float clip, float shrink, const AdamWStep& a) {
  g = __fmul_rn(g, clip);
  e.m = __fadd_rn(__fmul_rn(a.beta1, e.m), __fmul_rn(a.rest1, g));
  e.v = __fadd_rn(__fmul_rn(a.beta2, e.v), __fmul_rn(__fmul_rn(a.rest2, g), g));
  const float root = __fadd_rn(__fdiv_rn(__fsqrt_rn(e.v), a.root2), a.eps);
  e.p = __fsub_rn(__fmul_rn(e.p, shrink), __fdiv_rn(__fmul_rn(a.step_size, e.m), root));
}

constexpr int kCodes = 256;
constexpr int kHalves = 2;  // of a state block: a lane takes four neighbouring elements of each
static_assert(kHalves * QE_WARP * ADAMW_PACK == ADAMW_STATE_BLOCK, "a warp holds a state block");
static_assert(ADAMW_TILE_8BIT == ADAMW_BLOCK / QE_WARP * ADAMW_STATE_BLOCK, "a state block a warp");
static_assert(ADAMW_BLOCK == kCodes, "a thread loads a value of each map");

// An 8-bit map and the midpoints of its neighbouring values; the last midpoint is not used.
struct Map {
  float value[kCodes], middle[kCodes];
};
struct Smem8 {
  Map m, v;
};

QE_DEV void load_map(Map& to, const float* code) {
  const int i = static_cast<int>(threadIdx.x);
  to.value[i] = code[i];
  to.middle[i] = i + 1 < kCodes ? __fmul_rn(0.5f, __fadd_rn(code[i], code[i + 1])) : code[i];
}

// Number of midpoints strictly below x; one less where a number below 0 would become 0.
QE_DEV unsigned encode(const Map& map, float x) {
  int code = 0;
#pragma unroll
  for (int step = kCodes / 2; step > 0; step /= 2)
    if (map.middle[code + step - 1] < x) code += step;
  return static_cast<unsigned>(x < 0.0f && map.value[code] >= 0.0f ? code - 1 : code);
}
}  // namespace

QE_KERNEL(adamw_step, AdamWUpdate, ADAMW_BLOCK) {
  const double norm = *p.norm;
  if (!is_finite(norm) || !is_finite(*p.loss)) return;
  const AdamWStep a = *p.step;
  const float clip = clip_of(a.max_norm, norm);
  const long long first = static_cast<long long>(blockIdx.x) * (ADAMW_BLOCK * ADAMW_PACK);
  const long long at = first + static_cast<long long>(threadIdx.x) * ADAMW_PACK;
  if (at >= p.n) return;
  // The same search in every thread of the block, then a few steps on.
  Shrink shrink(p.ends, p.groups, p.decays, a.shrink, first);
  if (at + ADAMW_PACK <= p.n) {
    Pack<float, ADAMW_PACK> w = load<ADAMW_PACK>(p.p + at), m = load<ADAMW_PACK>(p.m + at), v = load<ADAMW_PACK>(p.v + at);
    const Pack<float, ADAMW_PACK> g = load<ADAMW_PACK>(p.g + at);
    Pack<bf16, ADAMW_PACK> copy;
#pragma unroll
    for (int i = 0; i < ADAMW_PACK; ++i) {
      Element e{w.v[i], m.v[i], v.v[i]};
      update(e, g.v[i], clip, shrink.at(at + i), a);
      w.v[i] = e.p, m.v[i] = e.m, v.v[i] = e.v;
      copy.v[i] = to_bf16(e.p);
    }
    store(p.p + at, w), store(p.m + at, m), store(p.v + at, v);
    if (p.copy != nullptr) store(p.copy + at, copy);
    return;
  }
  for (long long i = at; i < p.n; ++i) {
    Element e{p.p[i], p.m[i], p.v[i]};
    update(e, p.g[i], clip, shrink.at(i), a);
    p.p[i] = e.p, p.m[i] = e.m, p.v[i] = e.v;
    if (p.copy != nullptr) p.copy[i] = to_bf16(e.p);
  }
}

QE_KERNEL(adamw_step_8bit, AdamWUpdate8, ADAMW_BLOCK) {
  const double norm = *p.norm;
  if (!is_finite(norm) || !is_finite(*p.loss)) return;
  Smem8& s = shared<Smem8>();
  load_map(s.m, p.m_code);
  load_map(s.v, p.v_code);
  sync_block();  // both maps complete
  const AdamWStep a = *p.step;
  const float clip = clip_of(a.max_norm, norm);
  const long long block = static_cast<long long>(blockIdx.x) * (ADAMW_BLOCK / QE_WARP) + warp();
  const long long first = block * ADAMW_STATE_BLOCK;
  if (first >= p.n) return;
  const float m_absmax = p.m_absmax[block], v_absmax = p.v_absmax[block];
  Shrink shrink(p.ends, p.groups, p.decays, a.shrink, first);
  float m[kHalves][ADAMW_PACK] = {}, v[kHalves][ADAMW_PACK] = {};
  float m_top = 0, v_top = 0;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const long long at = first + (h * QE_WARP + lane()) * ADAMW_PACK;
    const bool whole = at + ADAMW_PACK <= p.n;
    const int count = static_cast<int>(max(min(p.n - at, static_cast<long long>(ADAMW_PACK)), 0LL));
    Pack<float, ADAMW_PACK> w = {}, g = {};
    Pack<unsigned char, ADAMW_PACK> mc = {}, vc = {};
    Pack<bf16, ADAMW_PACK> copy;
    if (whole) {
      w = load<ADAMW_PACK>(p.p + at), g = load<ADAMW_PACK>(p.g + at);
      mc = load<ADAMW_PACK>(p.m + at), vc = load<ADAMW_PACK>(p.v + at);
    } else {
      for (int i = 0; i < count; ++i) w.v[i] = p.p[at + i], g.v[i] = p.g[at + i], mc.v[i] = p.m[at + i], vc.v[i] = p.v[at + i];
    }
#pragma unroll
    for (int i = 0; i < ADAMW_PACK; ++i) {
      if (i >= count) break;
      Element e{w.v[i], __fmul_rn(s.m.value[mc.v[i]], m_absmax), __fmul_rn(s.v.value[vc.v[i]], v_absmax)};
      update(e, g.v[i], clip, shrink.at(at + i), a);
      w.v[i] = e.p, m[h][i] = e.m, v[h][i] = e.v;
      m_top = fmaxf(m_top, fabsf(e.m)), v_top = fmaxf(v_top, e.v);
      copy.v[i] = to_bf16(e.p);
    }
    if (whole) {
      store(p.p + at, w);
      if (p.copy != nullptr) store(p.copy + at, copy);
    } else {
      for (int i = 0; i < count; ++i) {
        p.p[at + i] = w.v[i];
        if (p.copy != nullptr) p.copy[at + i] = copy.v[i];
      }
    }
  }
  // Each lane has used the old absmax before it brings its maximum, so they may be written.
  m_top = warp_max(m_top), v_top = warp_max(v_top);
  if (lane() == 0) p.m_absmax[block] = m_top, p.v_absmax[block] = v_top;
  const float m_unit = m_top > 0.0f ? m_top : 1.0f, v_unit = v_top > 0.0f ? v_top : 1.0f;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const long long at = first + (h * QE_WARP + lane()) * ADAMW_PACK;
    Pack<unsigned char, ADAMW_PACK> mc, vc;
#pragma unroll
    for (int i = 0; i < ADAMW_PACK; ++i) {
      mc.v[i] = static_cast<unsigned char>(encode(s.m, __fdiv_rn(m[h][i], m_unit)));
      vc.v[i] = static_cast<unsigned char>(encode(s.v, __fdiv_rn(v[h][i], v_unit)));
    }
    if (at + ADAMW_PACK <= p.n) {
      store(p.m + at, mc), store(p.v + at, vc);
    } else {
      for (int i = 0; i < ADAMW_PACK && at + i < p.n; ++i) p.m[at + i] = mc.v[i], p.v[at + i] = vc.v[i];
    }
  }
}
