// What the norms share: a group of elements, read once and kept in registers by the warp or the block that works on it.
#pragma once
#include "qe.cuh"

namespace qe {
constexpr int kNormBlock = 256;
constexpr int kNormKeep = 4;  // packs of a thread that stay in registers
// Elements that a warp keeps; larger groups get a block each.
constexpr int kNormWarp = kNormKeep * QE_WARP * 8;

// Who works on a group: a warp, or the whole block.
struct Team {
  int rank, size;
  float* partial;  // shared memory of a float a warp; null: a warp works alone
  // Sum over the team, the same bits in every thread.
  QE_DEV float sum(float v) const { return partial == nullptr ? warp_sum(v) : block_sum(v, partial); }
};

// The team of this thread and the group that it works on; false past the last live one.
QE_DEV bool find_group(const unsigned* live, long long rows, int per_row, int n, float* partial, Team* team,
                       long long* group) {
  if (n > kNormWarp) {
    *team = Team{static_cast<int>(threadIdx.x), kNormBlock, partial};
    *group = blockIdx.x;
  } else {
    *team = Team{lane(), QE_WARP, nullptr};
    *group = static_cast<long long>(blockIdx.x) * (kNormBlock / QE_WARP) + warp();
  }
  return *group < live_rows(live, rows) * per_row;
}

// The share that a thread has of a group of n elements, in packs of N: those at (rank + k * size) * N.
template <int N>
struct Share {
  Pack<bf16, N> kept[kNormKeep];

  QE_DEV void read(const Team& team, const bf16* from, int n) {
    for (int k = 0; k < kNormKeep; ++k) {
      const int c = (team.rank + k * team.size) * N;
      if (c < n) kept[k] = load<N>(from + c);
    }
  }
};

// Calls f(c, k) for each pack of this thread: it begins at element c and is kept[k], or is not kept if k is kNormKeep.
template <int N, class F>
QE_DEV void for_share(const Team& team, int n, F f) {
#pragma unroll
  for (int k = 0; k < kNormKeep; ++k) {
    const int c = (team.rank + k * team.size) * N;
    if (c < n) f(c, k);
  }
  for (int c = (team.rank + kNormKeep * team.size) * N; c < n; c += team.size * N) f(c, kNormKeep);
}

// Pack k of a share, or the one at `at` if it is not kept.
template <int N>
QE_DEV void widen(float (&to)[N], const Share<N>& share, int k, const bf16* at) {
  Pack<bf16, N> p;
  if (k < kNormKeep) p = share.kept[k];
  else p = load<N>(at);
  for (int i = 0; i < N; ++i) to[i] = f32(p.v[i]);
}

template <int N>
QE_DEV void widen(float (&to)[N], const bf16* at) {
  const Pack<bf16, N> p = load<N>(at);
  for (int i = 0; i < N; ++i) to[i] = f32(p.v[i]);
}

// Sums over rows for the gradients of a norm's weights: a block has kNormColumns columns, a pair a lane; its warps take the
// rows in turn, and their sums are added in the order of the warps.
constexpr int kNormColumns = 2 * QE_WARP;

struct NormSums {
  float v[kNormBlock / QE_WARP][kNormColumns];
};

// Adds to[c] += sum over rows of f(row, c) for the columns of this block. Every thread of the block takes part.
template <class F>
QE_DEV void sum_rows(float* to, long long rows, int n, NormSums& sums, F f) {
  const int begin = static_cast<int>(blockIdx.x) * kNormColumns, c = begin + 2 * lane();
  float a = 0, b = 0;
#pragma unroll 4
  for (long long r = warp(); r < rows; r += kNormBlock / QE_WARP) {
    if (c < n) a += f(r, c);
    if (c + 1 < n) b += f(r, c + 1);
  }
  sums.v[warp()][2 * lane()] = a;
  sums.v[warp()][2 * lane() + 1] = b;
  sync_block();  // sums complete
  const int own = static_cast<int>(threadIdx.x);
  if (own < kNormColumns && begin + own < n) {
    float sum = 0;
    for (int w = 0; w < kNormBlock / QE_WARP; ++w) sum += sums.v[w][own];
    to[begin + own] += sum;
  }
  sync_block();  // sums read: they may be used again
}

template <int N>
QE_DEV void narrow(bf16* at, const float (&from)[N]) {
  Pack<bf16, N> p;
  for (int i = 0; i < N; ++i) p.v[i] = to_bf16(from[i]);
  store(at, p);
}
}  // namespace qe
