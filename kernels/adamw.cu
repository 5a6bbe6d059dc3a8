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

// The group that holds element `at`.
QE_DEV int group_of(const AdamWUpdate& p, unsigned long long at) {
  int low = 0, high = p.groups - 1;
  while (low < high) {
    const int middle = (low + high) / 2;
    if (p.ends[middle] <= at) low = middle + 1;
    else high = middle;
  }
  return low;
}

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
  int group = group_of(p, static_cast<unsigned long long>(first));
  unsigned long long end = p.ends[group];
  const auto shrink_at = [&](long long i) {
    while (end <= static_cast<unsigned long long>(i)) end = p.ends[++group];
    return (group % 2 == 0) == (p.decays != 0) ? a.shrink : 1.0f;
  };
  if (at + ADAMW_PACK <= p.n) {
    Pack<float, ADAMW_PACK> w = load<ADAMW_PACK>(p.p + at), m = load<ADAMW_PACK>(p.m + at), v = load<ADAMW_PACK>(p.v + at);
    const Pack<float, ADAMW_PACK> g = load<ADAMW_PACK>(p.g + at);
    Pack<bf16, ADAMW_PACK> copy;
#pragma unroll
    for (int i = 0; i < ADAMW_PACK; ++i) {
      Element e{w.v[i], m.v[i], v.v[i]};
      update(e, g.v[i], clip, shrink_at(at + i), a);
      w.v[i] = e.p, m.v[i] = e.m, v.v[i] = e.v;
      copy.v[i] = to_bf16(e.p);
    }
    store(p.p + at, w), store(p.m + at, m), store(p.v + at, v);
    if (p.copy != nullptr) store(p.copy + at, copy);
    return;
  }
  for (long long i = at; i < p.n; ++i) {
    Element e{p.p[i], p.m[i], p.v[i]};
    update(e, p.g[i], clip, shrink_at(i), a);
    p.p[i] = e.p, p.m[i] = e.m, p.v[i] = e.v;
    if (p.copy != nullptr) p.copy[i] = to_bf16(e.p);
  }
}
