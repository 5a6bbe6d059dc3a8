#include "rope.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = 8;  // bf16 in 16 bytes

// Elements i .. i + N of the first half of a head, and those that turn with them.
template <int N>
struct Pair {
  float lo[N], hi[N];
};

template <int N>
QE_DEV Pair<N> read(const bf16* head, int i, int half) {
  const Pack<bf16, N> lo = load<N>(head + i), hi = load<N>(head + half + i);
  Pair<N> x;
  for (int j = 0; j < N; ++j) {
    x.lo[j] = f32(lo.v[j]);
    x.hi[j] = f32(hi.v[j]);
  }
  return x;
}

template <int N>
QE_DEV void write(bf16* head, int i, int half, const Pair<N>& x) {
  Pack<bf16, N> lo, hi;
  for (int j = 0; j < N; ++j) {
    lo.v[j] = to_bf16(x.lo[j]);
    hi.v[j] = to_bf16(x.hi[j]);
  }
  store(head + i, lo);
  store(head + half + i, hi);
}

// `row` is the table's row of the position.
template <int N>
QE_DEV Pair<N> turn(const Pair<N>& x, const float* row, int i, int half, float sign) {
  constexpr int n = N < 4 ? N : 4;  // floats in 16 bytes
  Pair<N> y;
  for (int k = 0; k < N; k += n) {
    const Pack<float, n> cos = load<n>(row + i + k), sin = load<n>(row + half + i + k);
    for (int j = 0; j < n; ++j) {
      const float c = cos.v[j], s = sin.v[j] * sign, a = x.lo[k + j], b = x.hi[k + j];
      y.lo[k + j] = a * c - b * s;
      y.hi[k + j] = b * c + a * s;
    }
  }
  return y;
}

template <int N>
QE_DEV Pair<N> times(const Pair<N>& a, const Pair<N>& b) {
  Pair<N> y;
  for (int j = 0; j < N; ++j) {
    y.lo[j] = a.lo[j] * b.lo[j];
    y.hi[j] = a.hi[j] * b.hi[j];
  }
  return y;
}

template <int N>
QE_DEV float dot(const Pair<N>& a, const Pair<N>& b) {
  float sum = 0;
  for (int j = 0; j < N; ++j) sum += a.lo[j] * b.lo[j] + a.hi[j] * b.hi[j];
  return sum;
}

// Sum over the lanes of a head, the same bits in each. Every lane of the warp takes part.
QE_DEV float head_sum(float v, int shift) {
  for (int m = (1 << shift) / 2; m > 0; m /= 2) v += shfl_xor(v, m);
  return v;
}

// What the lanes of a head work on.
struct Place {
  long long at;      // where the head begins
  const float* row;  // of the table
  int lane;          // within the head
  bool live;
};

// False where the whole warp has nothing to do; a lane without a head still takes part in the sums.
template <class P>
QE_DEV bool find(const P& p, Place* place) {
  const unsigned heads = static_cast<unsigned>(live_rows(p.live, p.rows) * p.heads);
  const unsigned first = blockIdx.x * (ROPE_BLOCK >> p.shift) + (warp() * QE_WARP >> p.shift);
  if (first >= heads) return false;
  const unsigned head = first + (lane() >> p.shift);
  place->live = head < heads;
  place->lane = lane() & ((1 << p.shift) - 1);
  place->at = static_cast<long long>(head) * (2 * p.half);
  const unsigned row = head / static_cast<unsigned>(p.heads);
  place->row = p.table + (place->live ? static_cast<long long>(p.positions[row]) * (2 * p.half) : 0);
  return true;
}

// The first share of a lane stays in registers; heads of more than 2^shift packs have more of them.
template <int N>
QE_DEV void forward(const RopeFwd& p, const Place& place) {
  const bf16* x = p.x + place.at;
  bf16* y = p.y + place.at;
  const int half = p.half, i0 = place.lane * N, step = N << p.shift;
  const bool mine = place.live && i0 < half;
  Pair<N> v = {};
  if (mine) v = read<N>(x, i0, half);
  float rstd = 1;
  if (p.w != nullptr) {
    float sum = dot(v, v);
    for (int i = i0 + step; place.live && i < half; i += step) {
      const Pair<N> more = read<N>(x, i, half);
      sum += dot(more, more);
    }
    rstd = rsqrtf(head_sum(sum, p.shift) / static_cast<float>(2 * half) + p.eps);
  }
  if (!mine) return;
  for (int i = i0;;) {
    if (p.w != nullptr) {
      const Pair<N> w = read<N>(p.w, i, half);
      for (int j = 0; j < N; ++j) {
        v.lo[j] *= rstd * w.lo[j];
        v.hi[j] *= rstd * w.hi[j];
      }
    }
    write(y, i, half, turn(v, place.row, i, half, p.sign));
    i += step;
    if (i >= half) return;
    v = read<N>(x, i, half);
  }
}

// The gradient of the norm's output times w. With `turned` the gradient itself is written over dy, which is not read again.
template <int N>
QE_DEV Pair<N> weighted(const RopeBwd& p, const Place& place, int i, bool turned) {
  bf16* dy = p.dy + place.at;
  const Pair<N> g = turn(read<N>(dy, i, p.half), place.row, i, p.half, -1);
  if (turned) write(dy, i, p.half, g);
  return times(g, read<N>(p.w, i, p.half));
}

template <int N>
QE_DEV void backward(const RopeBwd& p, const Place& place) {
  const bf16* x = p.x + place.at;
  const int half = p.half, i0 = place.lane * N, step = N << p.shift;
  const bool mine = place.live && i0 < half;
  Pair<N> v = {}, g = {};
  if (mine) {
    v = read<N>(x, i0, half);
    g = weighted<N>(p, place, i0, p.rstd != nullptr);
  }
  float square = dot(v, v), m = dot(g, v);
  for (int i = i0 + step; place.live && i < half; i += step) {
    const Pair<N> more = read<N>(x, i, half);
    square += dot(more, more);
    m += dot(weighted<N>(p, place, i, false), more);
  }
  const float n = static_cast<float>(2 * half);
  const float rstd = rsqrtf(head_sum(square, p.shift) / n + p.eps);
  const float k = rstd * rstd * (head_sum(m, p.shift) / n);
  if (!mine) return;
  if (p.rstd != nullptr && place.lane == 0) p.rstd[place.at / (2 * half)] = rstd;
  for (int i = i0;;) {
    for (int j = 0; j < N; ++j) {
      v.lo[j] = rstd * (g.lo[j] - v.lo[j] * k);
      v.hi[j] = rstd * (g.hi[j] - v.hi[j] * k);
    }
    write(p.dx + place.at, i, half, v);
    i += step;
    if (i >= half) return;
    v = read<N>(x, i, half);
    g = weighted<N>(p, place, i, p.rstd != nullptr);
  }
}
}  // namespace

QE_KERNEL(rope_fwd, RopeFwd, ROPE_BLOCK) {
  Place place;
  if (!find(p, &place)) return;
  if (packs<kPack>(p.x, p.half) && packs<kPack>(p.y, p.half) && packs<kPack>(p.w, p.half)) {
    forward<kPack>(p, place);
  } else {
    forward<1>(p, place);
  }
}

QE_KERNEL(rope_bwd, RopeBwd, ROPE_BLOCK) {
  Place place;
  if (!find(p, &place)) return;
  if (packs<kPack>(p.x, p.half) && packs<kPack>(p.dx, p.half) && packs<kPack>(p.dy, p.half) &&
      packs<kPack>(p.w, p.half)) {
    backward<kPack>(p, place);
  } else {
    backward<1>(p, place);
  }
}
