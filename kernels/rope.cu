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
  long long at;      // where the head begins, in q's tensors or in k's
  const float* row;  // of the table
  int lane;          // within the head
  bool key;          // the head is one of k's
  bool live;
};

// False where the whole warp has nothing to do; a lane without a head still takes part in the sums.
template <class P>
QE_DEV bool find(const P& p, Place* place) {
  const unsigned per_row = static_cast<unsigned>(p.q.heads + p.k.heads);
  const unsigned heads = static_cast<unsigned>(live_rows(p.live, p.rows) * per_row);
  const unsigned first = blockIdx.x * (ROPE_BLOCK >> p.shift) + (warp() * QE_WARP >> p.shift);
  if (first >= heads) return false;
  const unsigned head = first + (lane() >> p.shift);
  const unsigned row = head / per_row;
  const int of_row = static_cast<int>(head - row * per_row);
  place->live = head < heads;
  place->lane = lane() & ((1 << p.shift) - 1);
  place->key = of_row >= p.q.heads;
  const long long before = static_cast<long long>(row) * (place->key ? p.k.heads : p.q.heads);
  place->at = (before + (place->key ? of_row - p.q.heads : of_row)) * (2 * p.half);
  place->row = p.table + (place->live ? static_cast<long long>(p.positions[row]) * (2 * p.half) : 0);
  return true;
}

// The first share of a lane stays in registers; heads of more than 2^shift packs have more of them.
template <int N>
QE_DEV void forward(const RopeFwd& p, const Place& place) {
  const bf16* x = (place.key ? p.k.x : p.q.x) + place.at;
  const bf16* scale = place.key ? p.k.w : p.q.w;
  bf16* y = (place.key ? p.k.y : p.q.y) + place.at;
  const bool norm = p.q.w != nullptr;  // and so k's: the warp takes one way
  const int half = p.half, i0 = place.lane * N, step = N << p.shift;
  const bool mine = place.live && i0 < half;
  Pair<N> v = {};
  if (mine) v = read<N>(x, i0, half);
  float rstd = 1;
  if (norm) {
    float sum = dot(v, v);
    for (int i = i0 + step; place.live && i < half; i += step) {
      const Pair<N> more = read<N>(x, i, half);
      sum += dot(more, more);
    }
    rstd = rsqrtf(head_sum(sum, p.shift) / static_cast<float>(2 * half) + p.eps);
  }
  if (!mine) return;
  for (int i = i0;;) {
    if (norm) {
      const Pair<N> w = read<N>(scale, i, half);
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

// A head's part of what the backward pass reads and writes.
struct Head {
  bf16 *dx, *dy;
  const bf16 *x, *w;
  float* rstd;  // null: not wanted
};

QE_DEV Head head_of(const RopeBwd& p, const Place& place) {
  Head h;
  h.dx = (place.key ? p.k.dx : p.q.dx) + place.at;
  h.dy = (place.key ? p.k.dy : p.q.dy) + place.at;
  h.x = (place.key ? p.k.x : p.q.x) + place.at;
  h.w = place.key ? p.k.w : p.q.w;
  h.rstd = place.key ? p.k.rstd : p.q.rstd;
  if (h.rstd != nullptr) h.rstd += place.at / (2 * p.half);
  return h;
}

// The gradient of the norm's output times w. With `turned` the gradient itself is written over dy, which is not read again.
template <int N>
QE_DEV Pair<N> weighted(const Head& h, const float* row, int i, int half, bool turned) {
  const Pair<N> g = turn(read<N>(h.dy, i, half), row, i, half, -1);
  if (turned) write(h.dy, i, half, g);
  return times(g, read<N>(h.w, i, half));
}

template <int N>
QE_DEV void backward(const RopeBwd& p, const Place& place) {
  const Head h = head_of(p, place);
  const int half = p.half, i0 = place.lane * N, step = N << p.shift;
  const bool mine = place.live && i0 < half, turned = h.rstd != nullptr;
  Pair<N> v = {}, g = {};
  if (mine) {
    v = read<N>(h.x, i0, half);
    g = weighted<N>(h, place.row, i0, half, turned);
  }
  float square = dot(v, v), m = dot(g, v);
  for (int i = i0 + step; place.live && i < half; i += step) {
    const Pair<N> more = read<N>(h.x, i, half);
    square += dot(more, more);
    m += dot(weighted<N>(h, place.row, i, half, false), more);
  }
  const float n = static_cast<float>(2 * half);
  const float rstd = rsqrtf(head_sum(square, p.shift) / n + p.eps);
  const float k = rstd * rstd * (head_sum(m, p.shift) / n);
  if (!mine) return;
  if (turned && place.lane == 0) *h.rstd = rstd;
  for (int i = i0;;) {
    for (int j = 0; j < N; ++j) {
      v.lo[j] = rstd * (g.lo[j] - v.lo[j] * k);
      v.hi[j] = rstd * (g.hi[j] - v.hi[j] * k);
    }
    write(h.dx, i, half, v);
    i += step;
    if (i >= half) return;
    v = read<N>(h.x, i, half);
    g = weighted<N>(h, place.row, i, half, turned);
  }
}

// Whether a head's elements can be read in packs; one answer for q and k, and so for a warp that has heads of both.
QE_DEV bool packed(const RopeHeads& h, int half) {
  return packs<kPack>(h.x, half) && packs<kPack>(h.y, half) && packs<kPack>(h.w, half);
}
QE_DEV bool packed(const RopeHeadsGrad& h, int half) {
  return packs<kPack>(h.x, half) && packs<kPack>(h.dx, half) && packs<kPack>(h.dy, half) && packs<kPack>(h.w, half);
}
}  // namespace

QE_KERNEL(rope_fwd, RopeFwd, ROPE_BLOCK) {
  Place place;
  if (!find(p, &place)) return;
  if (packed(p.q, p.half) && packed(p.k, p.half)) {
    forward<kPack>(p, place);
  } else {
    forward<1>(p, place);
  }
}

QE_KERNEL(rope_bwd, RopeBwd, ROPE_BLOCK) {
  Place place;
  if (!find(p, &place)) return;
  if (packed(p.q, p.half) && packed(p.k, p.half)) {
    backward<kPack>(p, place);
  } else {
    backward<1>(p, place);
  }
}
