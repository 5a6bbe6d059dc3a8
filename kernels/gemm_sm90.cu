#include "gemm_sm90.h"

#include "include/gemm.cuh"
#include "include/wgmma.cuh"

namespace {
using namespace qe;
using namespace qe::gemm;

// Two warpgroups, one above the other: each of the eight warps holds 16 rows of the tile, over all of its columns.
template <int N>
using Hopper = Shape<bf16, GEMM_SM90_M, N, 64, 8, 1, 1, 4>;

// A tile of B (k, n) as wgmma reads it: 64 columns after the other, each with 64 rows of 128 bytes.
template <int COLS>
struct Panels {
  using Elem = bf16;
  static constexpr int kRows = 64, kCols = COLS, kChunks = COLS / 8;
  static constexpr int kPanel = 64 * 64;
  unsigned short v[64 * COLS];

  QE_DEV void* chunk(int row, int c) { return v + c / 8 * kPanel + row * 64 + (c % 8 ^ row % 8) * 8; }
};

template <class S, Op OP>
struct TilesOf90;
template <class S>
struct TilesOf90<S, Op::kNt> {
  using A = Tile<bf16, S::kM, S::kK>;
  using B = Tile<bf16, S::kN, S::kK>;
  static constexpr int kAcross = 0, kDeeper = 32;  // bytes: to B's next 64 columns, and its next 16 of the depth
};
template <class S>
struct TilesOf90<S, Op::kNn> {
  using A = Tile<bf16, S::kM, S::kK>;
  using B = Panels<S::kN>;
  static constexpr int kAcross = B::kPanel * 2, kDeeper = 16 * 128;
};

template <class S, Op OP>
struct alignas(kAtom) Smem {
  typename TilesOf90<S, OP>::A a[S::kStages];
  typename TilesOf90<S, OP>::B b[S::kStages];
};

// Adds the products of `steps` tiles, which fetch(step, stage) starts to copy. The products of a step are under way while the
// next one's tiles are waited for, so tiles are copied over those of two steps before.
template <class S, Op OP, class Fetch>
QE_DEV void stream_sm90(Sums<S>& sums, Smem<S, OP>& s, int steps, const Fetch& fetch) {
  using T = TilesOf90<S, OP>;
  constexpr int kAhead = S::kStages - 2;
  const int group = warp() / 4;
#pragma unroll 1
  for (int step = 0; step < kAhead; ++step) {
    if (step < steps) fetch(step, step);
    cp_async_commit();
  }
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<kAhead - 1>();
    fence_async();
    sync_block();  // this step's tiles complete; those of two steps before read by all
    const int stage = step % S::kStages;
    const unsigned long long a = operand(s.a[stage].chunk(64 * group, 0)), b = operand(&s.b[stage], T::kAcross);
    wgmma_fence();
#pragma unroll
    for (int k = 0; k < S::kK / 16; ++k)
      wgmma<S::kN, OP == Op::kNn>(sums[0], further(a, 32 * k), further(b, T::kDeeper * k));
    wgmma_commit();
    wgmma_wait<1>();  // those of the step before
    if (step + kAhead < steps) fetch(step + kAhead, (step + kAhead) % S::kStages);
    cp_async_commit();
  }
  cp_async_wait<0>();
  wgmma_wait<0>();
}

template <int N, Op OP>
QE_DEV void dense_sm90(const GemmGroup& group) {
  using S = Hopper<N>;
  auto& s = shared<Smem<S, OP>>();
  const Place at = place<S>(group);
  const Gemm& p = group.of[at.member];
  const int rows = static_cast<int>(live_rows(p.live, p.m));
  if (at.row >= rows) return;
  Sums<S> sums = {};
#pragma unroll 1
  for (int pair = p.k2 > 0 ? 0 : 1; pair < 2; ++pair) {
    Feed<S, OP, true, TilesOf90<S, OP>> feed;
    feed.begin(p, at, rows, pair == 0);
    stream_sm90<S, OP>(sums, s, steps_of<S>(pair == 0 ? p.k2 : p.k), [&](int, int to) {
      feed.a.fetch(s.a[to]);
      feed.b.fetch(s.b[to]);
    });
    sync_block();  // the tiles read by all
  }
  write_result<S>(result<bf16>(p, rows), sums, &s, at.row, at.col);
}

template <int N>
constexpr bool fits(size_t shared) {
  using S = Hopper<N>;
  return S::kThreads == GEMM_SM90_BLOCK && sizeof(Smem<S, Op::kNt>) == shared && sizeof(Smem<S, Op::kNn>) == shared &&
         S::kThreads / QE_WARP * S::kStage * sizeof(float) <= shared;
}
static_assert(fits<128>(GEMM_SM90_128_SHARED) && fits<256>(GEMM_SM90_256_SHARED), "as gemm_sm90.h says");
}  // namespace

QE_KERNEL(gemm_nt_128_sm90, GemmGroup, GEMM_SM90_BLOCK) { dense_sm90<128, Op::kNt>(p); }
QE_KERNEL(gemm_nt_256_sm90, GemmGroup, GEMM_SM90_BLOCK) { dense_sm90<256, Op::kNt>(p); }
QE_KERNEL(gemm_nn_128_sm90, GemmGroup, GEMM_SM90_BLOCK) { dense_sm90<128, Op::kNn>(p); }
QE_KERNEL(gemm_nn_256_sm90, GemmGroup, GEMM_SM90_BLOCK) { dense_sm90<256, Op::kNn>(p); }
