// The main loop that all products share: tiles of both operands on their way into shared memory (cp.async, several stages),
// ldmatrix, mma.sync, and a result that is finished 8 elements at a time. What is computed: kernels/gemm.h.
#pragma once
#include "cp_async.cuh"
#include "gemm.h"
#include "mma.cuh"
#include "nf4.cuh"
#include "philox.cuh"

namespace qe {
namespace gemm {

enum class Op { kNt, kNn, kTn };

// A block computes an M x N tile, K of the depth at a time, with a grid of warps over the tile (and over the depth of a
// step), and STAGES steps in shared memory. Its elements are of type E: bf16, or f16.
template <class E, int M, int N, int K, int WARPS_M, int WARPS_N, int WARPS_K, int STAGES>
struct Shape {
  using Elem = E;
  static constexpr int kM = M, kN = N, kK = K, kStages = STAGES;
  static constexpr int kWarpsM = WARPS_M, kWarpsN = WARPS_N, kWarpsK = WARPS_K;
  static constexpr int kThreads = QE_WARP * WARPS_M * WARPS_N * WARPS_K;
  static constexpr int kWarpM = M / WARPS_M, kWarpN = N / WARPS_N;       // of a warp
  static constexpr int kFragsM = kWarpM / 16, kFragsN = kWarpN / 8;      // products of mma in it
  static constexpr int kStage = 16 * (kWarpN + 8);                       // floats that a warp needs to write its result
  static_assert(kWarpM % 16 == 0 && kWarpN % 16 == 0 && K % (16 * WARPS_K) == 0, "whole fragments");
};
template <class E>
using LargeOf = Shape<E, 128, 128, 32, 2, 4, 1, 3>;
template <class E>
using SmallOf = Shape<E, 64, 64, 32, 2, 2, 1, 4>;
using Large = LargeOf<bf16>;
using Small = SmallOf<bf16>;
using Thin = Shape<bf16, 32, 32, 128, 1, 1, 8, 3>;
using Wide = Shape<bf16, 32, 128, 32, 1, 4, 1, 4>;

// ROWS x COLS elements in shared memory, in chunks of 16 bytes that are permuted within a row so that neither ldmatrix (8 rows of
// one chunk) nor the copies (rows of neighbouring chunks) meet in a bank.
template <class E, int ROWS, int COLS>
struct Tile {
  using Elem = E;
  static constexpr int kRows = ROWS, kCols = COLS, kChunks = COLS / 8;
  static constexpr int kPeriod = kChunks < 8 ? kChunks : 8;  // 128 bytes, all banks, hold 8 chunks
  unsigned short v[ROWS * COLS];

  QE_DEV void* chunk(int row, int c) { return v + row * COLS + (c ^ (row / (8 / kPeriod)) % kPeriod) * 8; }
};

// Which elements dropout keeps, of a matrix of `cols` columns.
struct Mask {
  unsigned long long seed;
  unsigned step, module, below;
  float keep;
  long long cols;

  QE_DEV Philox words(unsigned long long block) const { return philox(seed, step, module, block); }
  QE_DEV unsigned keeps(unsigned word) const { return word >> 8 >= below ? 1 : 0; }
  // Dropped elements become 0 whatever they were.
  QE_DEV float apply(float x, unsigned word) const { return keeps(word) ? x * keep : 0.0f; }
};
QE_DEV Mask mask_of(const Gemm& p, long long cols) {
  return {p.step->seed, p.step->micro_step, p.module, p.drop_below, p.keep, cols};
}

template <class E>
using Chunk = Pack<E, 8>;

// The first `count` of eight elements; the others 0.
template <class E>
QE_DEV Chunk<E> read_chunk(const E* at, int count, bool aligned) {
  if (aligned && count >= 8) return load<8>(at);
  Chunk<E> x;
#pragma unroll 1
  for (int i = 0; i < 8; ++i) x.v[i] = i < count ? at[i] : E{};
  return x;
}

template <class E>
QE_DEV void drop(Chunk<E>& x, const Mask& mask, int row, int col) {
  const unsigned long long first = static_cast<unsigned long long>(row * mask.cols + col);
  Philox p = mask.words(first / 4);
#pragma unroll 1
  for (int i = 0; i < 8; ++i) {
    const unsigned at = static_cast<unsigned>((first + i) % 4);
    if (i > 0 && at == 0) p = mask.words((first + i) / 4);
    const unsigned word = at == 0 ? p.w[0] : at == 1 ? p.w[1] : at == 2 ? p.w[2] : p.w[3];
    x.v[i] = rounded<E>(mask.apply(f32(x.v[i]), word));
  }
}

// Copies one tile after the other of a matrix into shared memory, along the depth: down its rows (DOWN) or along them. What
// lies outside the matrix is 0.
template <class T, int THREADS, bool DOWN>
struct Walk {
  using E = typename T::Elem;
  static constexpr int kDeep = DOWN ? T::kRows : T::kCols;  // a step
  static constexpr int kApart = THREADS / T::kChunks;       // rows between a thread's chunks
  static constexpr int kCount = T::kRows / kApart;          // chunks of a thread
  static_assert(THREADS % T::kChunks == 0 && T::kRows % kApart == 0, "the same number for every thread");

  const E* at;  // this thread's first chunk in the tile that comes next
  int ld;
  int rows, cols;  // that are left from there on
  bool aligned;

  // The matrix (rows, cols) from element (row, col) on.
  QE_DEV void begin(const void* matrix, long long ld_, long long rows_, long long cols_, int row, int col) {
    const int r = row + static_cast<int>(threadIdx.x) / T::kChunks, c = col + static_cast<int>(threadIdx.x) % T::kChunks * 8;
    ld = static_cast<int>(ld_);
    at = static_cast<const E*>(matrix) + static_cast<long long>(r) * ld + c;
    rows = static_cast<int>(rows_) - r;
    cols = static_cast<int>(cols_) - c;
    aligned = packs<8>(static_cast<const E*>(matrix), ld_);
  }
  // Whether every chunk lies inside the matrix or outside of it, aligned.
  QE_DEV bool whole() const { return aligned && cols % 8 == 0; }
  // Starts to copy the next tile of a matrix of whole chunks.
  QE_DEV void fetch(T& tile) {
    const int r = static_cast<int>(threadIdx.x) / T::kChunks, c = static_cast<int>(threadIdx.x) % T::kChunks;
#pragma unroll
    for (int n = 0; n < kCount; ++n)
      cp_async16(tile.chunk(r + n * kApart, c), at + static_cast<long long>(ld) * (n * kApart), n * kApart < rows && cols > 0);
    advance();
  }
  // As fetch, of any matrix: chunks that are not whole are copied at once.
  QE_DEV void fetch_ragged(T& tile) {
    const int r = static_cast<int>(threadIdx.x) / T::kChunks, c = static_cast<int>(threadIdx.x) % T::kChunks;
#pragma unroll
    for (int n = 0; n < kCount; ++n) {
      void* to = tile.chunk(r + n * kApart, c);
      const E* from = at + static_cast<long long>(ld) * (n * kApart);
      const int count = n * kApart < rows ? cols : 0;
      if (aligned && (count <= 0 || count >= 8))
        cp_async16(to, from, count > 0);
      else
        *static_cast<Chunk<E>*>(to) = read_chunk(from, count, false);
    }
    advance();
  }
  // As fetch, with dropout; `row` and `col` are those of the tile.
  QE_DEV void fetch_dropped(T& tile, const Mask& mask, int row, int col) {
    const int r = static_cast<int>(threadIdx.x) / T::kChunks, c = static_cast<int>(threadIdx.x) % T::kChunks;
#pragma unroll 1
    for (int n = 0; n < kCount; ++n) {
      const int count = n * kApart < rows ? cols : 0;
      Chunk<E> x = read_chunk(at + static_cast<long long>(ld) * (n * kApart), count, aligned);
      if (count > 0) drop(x, mask, row + r + n * kApart, col + c * 8);
      *static_cast<Chunk<E>*>(tile.chunk(r + n * kApart, c)) = x;
    }
    advance();
  }
  QE_DEV void advance() {
    if (DOWN) {
      at += static_cast<long long>(ld) * kDeep;
      rows -= kDeep;
    } else {
      at += kDeep;
      cols -= kDeep;
    }
  }
};

template <class S, Op OP>
struct TilesOf {
  using E = typename S::Elem;
  using A = Tile<E, OP == Op::kTn ? S::kK : S::kM, OP == Op::kTn ? S::kM : S::kK>;
  using B = Tile<E, OP == Op::kNt ? S::kN : S::kK, OP == Op::kNt ? S::kK : S::kN>;
};

// The warp's place in the block's tile.
template <class S>
QE_DEV int warp_row() {
  return warp() / S::kWarpsN % S::kWarpsM * S::kWarpM;
}
template <class S>
QE_DEV int warp_col() {
  return warp() % S::kWarpsN * S::kWarpN;
}

template <class S>
using Sums = float[S::kFragsM][S::kFragsN][4];

// Adds the product of two tiles, k in ascending order.
template <class S, Op OP, class A, class B>
QE_DEV void multiply(Sums<S>& sums, A& a, B& b) {
  const int l = lane(), row0 = warp_row<S>(), col0 = warp_col<S>();
#pragma unroll
  for (int step = 0; step < S::kK / 16 / S::kWarpsK; ++step) {
    const int k = step * S::kWarpsK * 16 + (S::kWarpsK > 1 ? warp() / (S::kWarpsM * S::kWarpsN) * 16 : 0);
    unsigned fa[S::kFragsM][4];
#pragma unroll
    for (int i = 0; i < S::kFragsM; ++i) {
      const int m = row0 + i * 16;
      if (OP == Op::kTn)
        ldmatrix_x4_trans(fa[i], a.chunk(k + l % 8 + l / 16 * 8, m / 8 + l / 8 % 2));
      else
        ldmatrix_x4(fa[i], a.chunk(m + l % 16, k / 8 + l / 16));
    }
#pragma unroll
    for (int j = 0; j < S::kFragsN; j += 2) {
      const int n = col0 + j * 8;
      unsigned fb[4];
      if (OP == Op::kNt)
        ldmatrix_x4(fb, b.chunk(n + l % 8 + l / 16 * 8, k / 8 + l / 8 % 2));
      else
        ldmatrix_x4_trans(fb, b.chunk(k + l % 16, n / 8 + l / 16));
      mma_pairs<typename S::Elem>(sums, j, fa, fb);
    }
  }
}

// Which of this thread's sums dropout keeps, a bit each; element (0, 0) of the block's is (row0, col0) of the result. Made
// before there are sums: both at once take too many registers.
template <class S>
QE_DEV unsigned long long kept_sums(const Mask& mask, int row0, int col0) {
  static_assert(S::kFragsM * S::kFragsN <= 16, "a bit for each sum of a thread");
  const int g = lane() / 4, t = lane() % 4;
  const bool odd = t % 2 == 1;
  unsigned long long kept = 0;
#pragma unroll 1
  for (int f = 0; f < S::kFragsM * S::kFragsN; ++f) {
    const int row = row0 + warp_row<S>() + f / S::kFragsN * 16 + g, col = col0 + warp_col<S>() + f % S::kFragsN * 8 + 2 * t;
    unsigned bits = 0;
    if (mask.cols % 4 == 0) {
      // Two lanes need four neighbours of two rows: each makes the numbers of one row.
      const long long mine = (odd ? row + 8 : row) * (mask.cols / 4) + col / 4;
      const Philox p = mask.words(static_cast<unsigned long long>(mine));
      const unsigned x = shfl_xor(odd ? p.w[0] : p.w[2], 1), y = shfl_xor(odd ? p.w[1] : p.w[3], 1);
      bits = mask.keeps(odd ? x : p.w[0]) | mask.keeps(odd ? y : p.w[1]) << 1 | mask.keeps(odd ? p.w[2] : x) << 2 |
             mask.keeps(odd ? p.w[3] : y) << 3;
    } else {
#pragma unroll 1
      for (int e = 0; e < 4; ++e) {
        const unsigned long long at = static_cast<unsigned long long>((row + e / 2 * 8) * mask.cols + col + e % 2);
        const Philox p = mask.words(at / 4);
        const unsigned low = at & 1 ? p.w[1] : p.w[0], high = at & 1 ? p.w[3] : p.w[2];
        bits |= mask.keeps(at & 2 ? high : low) << e;
      }
    }
    kept |= static_cast<unsigned long long>(bits) << 4 * f;
  }
  return kept;
}
template <class S>
QE_DEV void drop_sums(Sums<S>& sums, unsigned long long kept, float keep) {
#pragma unroll
  for (int i = 0; i < S::kFragsM; ++i)
#pragma unroll
    for (int j = 0; j < S::kFragsN; ++j)
#pragma unroll
      for (int e = 0; e < 4; ++e)
        sums[i][j][e] = kept >> ((i * S::kFragsN + j) * 4 + e) & 1 ? sums[i][j][e] * keep : 0.0f;
}

// Where results go, and what is added to them.
template <class E>
struct Result {
  void* c;
  const E *bias, *add;
  long long ldc, ldadd;
  int rows, cols;
  float alpha;
  bool f32, accumulate, aligned;
};
template <class E>
QE_DEV Result<E> result(const Gemm& p, int rows) {
  const E *add = static_cast<const E*>(p.add), *bias = static_cast<const E*>(p.bias);
  const bool c = p.c_f32 ? packs<4>(static_cast<const float*>(p.c), p.ldc) : packs<8>(static_cast<const E*>(p.c), p.ldc);
  const bool aligned =
      c && (p.add == nullptr || packs<8>(add, p.ldadd)) && (p.bias == nullptr || packs<8>(bias, 8));
  return {p.c, bias, add, p.ldc, p.ldadd, rows, static_cast<int>(p.n), p.alpha, p.c_f32 != 0, p.accumulate != 0, aligned};
}

// Writes 8 elements from (row, col) on, as many of them as there are.
template <class E>
QE_DEV void finish(const Result<E>& r, int row, int col, float (&v)[8]) {
  if (row >= r.rows || col >= r.cols) return;
  const long long at = row * r.ldc + col;
  for (int i = 0; i < 8; ++i) v[i] *= r.alpha;
  if (r.aligned && col + 8 <= r.cols) {
    if (r.bias != nullptr) {
      const Chunk<E> x = load<8>(r.bias + col);
      for (int i = 0; i < 8; ++i) v[i] += f32(x.v[i]);
    }
    if (r.add != nullptr) {
      const Chunk<E> x = load<8>(r.add + row * r.ldadd + col);
      for (int i = 0; i < 8; ++i) v[i] += f32(x.v[i]);
    }
    if (r.f32) {
      float* c = static_cast<float*>(r.c) + at;
      for (int h = 0; h < 8; h += 4) {
        Pack<float, 4> x = {};
        if (r.accumulate) x = load<4>(c + h);
        for (int i = 0; i < 4; ++i) x.v[i] += v[h + i];
        store(c + h, x);
      }
    } else {
      Chunk<E> x;
      for (int i = 0; i < 8; ++i) x.v[i] = rounded<E>(v[i]);
      store(static_cast<E*>(r.c) + at, x);
    }
    return;
  }
  for (int i = 0; i < 8 && col + i < r.cols; ++i) {
    float x = v[i];
    if (r.bias != nullptr) x += f32(r.bias[col + i]);
    if (r.add != nullptr) x += f32(r.add[row * r.ldadd + col + i]);
    if (r.f32) {
      float* c = static_cast<float*>(r.c) + at + i;
      *c = r.accumulate ? *c + x : x;
    } else {
      static_cast<E*>(r.c)[at + i] = rounded<E>(x);
    }
  }
}

// Writes the block's tile, whose corner is (row0, col0), by way of `space`: shared memory that no thread reads any more.
template <class S>
QE_DEV void write_result(const Result<typename S::Elem>& r, Sums<S>& sums, void* space, int row0, int col0) {
  const int g = lane() / 4, t = lane() % 4;
  if (S::kWarpsK == 1) {
    constexpr int kLd = S::kWarpN + 8;  // so that the rows of a fragment lie in different banks
    float* mine = static_cast<float*>(space) + warp() * S::kStage;
#pragma unroll
    for (int i = 0; i < S::kFragsM; ++i) {
#pragma unroll
      for (int j = 0; j < S::kFragsN; ++j) {
        store(mine + g * kLd + j * 8 + 2 * t, Pack<float, 2>{{sums[i][j][0], sums[i][j][1]}});
        store(mine + (g + 8) * kLd + j * 8 + 2 * t, Pack<float, 2>{{sums[i][j][2], sums[i][j][3]}});
      }
      sync_warp();  // 16 rows complete
#pragma unroll
      for (int q = lane(); q < 16 * S::kWarpN / 8; q += QE_WARP) {
        const int row = q / (S::kWarpN / 8), col = q % (S::kWarpN / 8) * 8;
        const Pack<float, 4> x = load<4>(mine + row * kLd + col), y = load<4>(mine + row * kLd + col + 4);
        float v[8] = {x.v[0], x.v[1], x.v[2], x.v[3], y.v[0], y.v[1], y.v[2], y.v[3]};
        finish(r, row0 + warp_row<S>() + i * 16 + row, col0 + warp_col<S>() + col, v);
      }
      sync_warp();  // 16 rows read
    }
  } else {
    // Every warp holds a part of the sums of the whole tile.
    constexpr int kLd = S::kN + 8;
    float* parts = static_cast<float*>(space);
    float* mine = parts + warp() * S::kM * kLd;
#pragma unroll
    for (int i = 0; i < S::kFragsM; ++i)
#pragma unroll
      for (int j = 0; j < S::kFragsN; ++j) {
        float* at = mine + (i * 16 + g) * kLd + j * 8 + 2 * t;
        store(at, Pack<float, 2>{{sums[i][j][0], sums[i][j][1]}});
        store(at + 8 * kLd, Pack<float, 2>{{sums[i][j][2], sums[i][j][3]}});
      }
    sync_block();  // the parts of all warps complete
    for (int q = static_cast<int>(threadIdx.x); q < S::kM * S::kN / 8; q += S::kThreads) {
      const int row = q / (S::kN / 8), col = q % (S::kN / 8) * 8;
      float v[8] = {};
      for (int w = 0; w < S::kWarpsK; ++w)
        for (int i = 0; i < 8; ++i) v[i] += parts[(w * S::kM + row) * kLd + col + i];
      finish(r, row0 + row, col0 + col, v);
    }
  }
}

// A member of a group, and a place within its part.
struct Part {
  int member;
  unsigned at;
};
QE_DEV Part part_of(const unsigned (&ends)[GEMM_MEMBERS], unsigned at) {
  int i = 0;
  while (i + 1 < GEMM_MEMBERS && at >= ends[i]) ++i;
  return {i, i > 0 ? at - ends[i - 1] : at};
}

// Tile `at` of `across` columns of tiles: within strips of 8 rows of tiles column by column, so that neighbours in time share
// both operands in L2.
struct Tiles {
  unsigned row, col;
};
template <class S>
QE_DEV Tiles tile_of(unsigned at, long long m, unsigned across) {
  const unsigned down = static_cast<unsigned>((m + S::kM - 1) / S::kM);
  const unsigned strip = at / (8 * across), within = at % (8 * across);
  const unsigned height = down - strip * 8 < 8 ? down - strip * 8 : 8;
  return {strip * 8 + within % height, within / height};
}

// The block's member, and the corner of its tile.
struct Place {
  int member, row, col;
};
// nt, nn: the members' columns of tiles lie side by side, so that a strip of their common rows is read by all members at once.
template <class S>
QE_DEV Place place(const GemmGroup& group) {
  const Tiles t = tile_of<S>(blockIdx.x, group.of[0].m, group.ends[GEMM_MEMBERS - 1]);
  const Part p = part_of(group.ends, t.col);
  return {p.member, static_cast<int>(t.row * S::kM), static_cast<int>(p.at * S::kN)};
}
// tn: one member after the other, all of them for the same rows of the operands before the next rows.
template <class S>
QE_DEV Place place_tn(const GemmGroup& group) {
  const Part p = part_of(group.ends, blockIdx.x);
  const Gemm& g = group.of[p.member];
  const Tiles t = tile_of<S>(p.at, g.m, static_cast<unsigned>((g.n + S::kN - 1) / S::kN));
  return {p.member, static_cast<int>(t.row * S::kM), static_cast<int>(t.col * S::kN)};
}

// Steps of K over a depth.
template <class S>
QE_DEV int steps_of(long long depth) {
  return static_cast<int>((depth + S::kK - 1) / S::kK);
}

template <class S, Op OP>
struct DenseSmem {
  typename TilesOf<S, OP>::A a[S::kStages];
  typename TilesOf<S, OP>::B b[S::kStages];
};

// The operands of nt and nn step by step: the second pair first, so that dropout of its product can be applied to the sums
// before the rest is added. B_TOO: B as well, if it is a dense matrix.
template <class S, Op OP, bool B_TOO, class Tiles = TilesOf<S, OP>>
struct Feed {
  Walk<typename Tiles::A, S::kThreads, false> a;
  Walk<typename Tiles::B, S::kThreads, OP == Op::kNn> b;

  QE_DEV void begin(const Gemm& p, Place at, int rows, bool second) {
    if (second) {
      a.begin(p.a2, p.lda2, rows, p.k2, at.row, 0);
      if (B_TOO && OP == Op::kNt) b.begin(p.b2, p.ldb2, p.n, p.k2, at.col, 0);
      if (B_TOO && OP == Op::kNn) b.begin(p.b2, p.ldb2, p.k2, p.n, 0, at.col);
    } else {
      a.begin(p.a, p.lda, rows, p.k, at.row, 0);
      if (B_TOO && OP == Op::kNt) b.begin(p.b, p.ldb, p.n, p.k, at.col, 0);
      if (B_TOO && OP == Op::kNn) b.begin(p.b, p.ldb, p.k, p.n, 0, at.col);
    }
  }
};

template <class S>
QE_DEV int next_stage(int stage) {
  return stage + 1 < S::kStages ? stage + 1 : 0;
}

// The large tile has registers for one loop only, that for whole chunks.
template <class S>
constexpr bool kWholeOnly = S::kM >= Large::kM && S::kN >= Large::kN;

// Adds the products of `steps` tiles, which fetch(step, stage) starts to copy.
template <class S, Op OP, class Fetch>
QE_DEV void stream(Sums<S>& sums, DenseSmem<S, OP>& s, int steps, const Fetch& fetch) {
#pragma unroll 1
  for (int step = 0; step < S::kStages - 1; ++step) {
    if (step < steps) fetch(step, step);
    cp_async_commit();
  }
  int stage = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<S::kStages - 2>();
    sync_block();  // this step's tiles complete; those of the step before read by all
    const int next = step + S::kStages - 1;
    if (next < steps) fetch(next, stage > 0 ? stage - 1 : S::kStages - 1);
    cp_async_commit();
    multiply<S, OP>(sums, s.a[stage], s.b[stage]);
    stage = next_stage<S>(stage);
  }
  cp_async_wait<0>();
}

// nt and nn.
template <class S, Op OP, bool DROP_A = false>
QE_DEV void dense(const GemmGroup& group) {
  auto& s = shared<DenseSmem<S, OP>>();
  const Place at = place<S>(group);
  const Gemm& p = group.of[at.member];
  const int rows = static_cast<int>(live_rows(p.live, p.m));
  if (at.row >= rows) return;
  constexpr bool kMayDrop = OP == Op::kNn && S::kM < Large::kM;  // the large tile has no registers left for it
  const bool drops = kMayDrop && p.dropout == GEMM_DROP_SECOND && p.k2 > 0;
  volatile unsigned long long kept = 0;  // in memory: it is read once, and the loop needs the registers
  if (drops) kept = kept_sums<S>(mask_of(p, p.n), at.row, at.col);
  const volatile int member = at.member, row = at.row, col = at.col;  // as kept
  Sums<S> sums = {};
#pragma unroll 1
  for (int pair = p.k2 > 0 ? 0 : 1; pair < 2; ++pair) {
    Feed<S, OP, true> feed;
    feed.begin(p, at, rows, pair == 0);
    const int steps = steps_of<S>(pair == 0 ? p.k2 : p.k);
    const bool dropped = DROP_A && p.dropout == GEMM_DROP_A;
    // Two loops: the one for whole chunks, which is nearly always taken, has half as many instructions.
    if (kWholeOnly<S> || (!dropped && feed.a.whole() && feed.b.whole()))
      stream<S, OP>(sums, s, steps, [&](int, int to) {
        feed.a.fetch(s.a[to]);
        feed.b.fetch(s.b[to]);
      });
    else
      stream<S, OP>(sums, s, steps, [&](int step, int to) {
        if (dropped)
          feed.a.fetch_dropped(s.a[to], mask_of(p, p.k), at.row, step * S::kK);
        else
          feed.a.fetch_ragged(s.a[to]);
        feed.b.fetch_ragged(s.b[to]);
      });
    if (drops && pair == 0) drop_sums<S>(sums, kept, p.keep);
    sync_block();  // the tiles read by all
  }
  write_result<S>(result<typename S::Elem>(group.of[member], rows), sums, &s, row, col);
}

// tn: the sum over live rows, or over the part of them that is this block's.
template <class S, bool DROP_B = false>
QE_DEV void transposed(const GemmGroup& group) {
  auto& s = shared<DenseSmem<S, Op::kTn>>();
  const Place at = place_tn<S>(group);
  const Gemm& p = group.of[at.member];
  int begin = 0, end = static_cast<int>(live_rows(p.live, p.k));
  if (p.split > 0) {
    begin = min(static_cast<int>(blockIdx.y * p.split), end);
    end = min(begin + static_cast<int>(p.split), end);
  }
  const int steps = steps_of<S>(end - begin);
  Walk<typename TilesOf<S, Op::kTn>::A, S::kThreads, true> a;
  Walk<typename TilesOf<S, Op::kTn>::B, S::kThreads, true> b;
  a.begin(p.a, p.lda, end, p.m, begin, at.row);
  b.begin(p.b, p.ldb, end, p.n, begin, at.col);
  const bool dropped = DROP_B && p.dropout == GEMM_DROP_B;
  const volatile int member = at.member, row = at.row, col = at.col;  // in memory, as in dense
  Sums<S> sums = {};
  if (kWholeOnly<S> || (!dropped && a.whole() && b.whole()))
    stream<S, Op::kTn>(sums, s, steps, [&](int, int to) {
      a.fetch(s.a[to]);
      b.fetch(s.b[to]);
    });
  else
    stream<S, Op::kTn>(sums, s, steps, [&](int step, int to) {
      a.fetch_ragged(s.a[to]);
      if (dropped)
        b.fetch_dropped(s.b[to], mask_of(p, p.n), begin + step * S::kK, at.col);
      else
        b.fetch_ragged(s.b[to]);
    });
  sync_block();  // the tiles read by all
  const Gemm& g = group.of[member];
  auto r = result<typename S::Elem>(g, static_cast<int>(g.m));
  if (g.split > 0) {
    float* part = g.partial + blockIdx.y * g.m * g.n;
    r = {part, nullptr, nullptr, g.n, 0, r.rows, r.cols, 1.0f, true, false, packs<4>(part, g.n)};
  }
  write_result<S>(r, sums, &s, row, col);
}

template <class S, Op OP>
struct Nf4Smem {
  typename TilesOf<S, OP>::A a[S::kStages];
  typename TilesOf<S, OP>::B b[2];
  float code[16], code2[256];
};

// nt and nn with an NF4 matrix for B. A thread dequantises 16 codes a step: it reads them while the step before is being
// multiplied, and writes them as elements when that is done.
template <class S, Op OP>
QE_DEV void with_nf4(const GemmGroup& group, const Nf4Blocks (&matrices)[GEMM_MEMBERS]) {
  using E = typename S::Elem;
  auto& s = shared<Nf4Smem<S, OP>>();
  using B = typename TilesOf<S, OP>::B;
  static_assert(B::kRows * B::kCols == 16 * S::kThreads, "16 codes a thread");
  const Place at = place<S>(group);
  const Gemm& p = group.of[at.member];
  const Nf4Blocks& w = matrices[at.member];
  const int rows = static_cast<int>(live_rows(p.live, p.m));
  if (at.row >= rows) return;
  const int first = steps_of<S>(p.k2), steps = first + steps_of<S>(p.k);
  const int thread = static_cast<int>(threadIdx.x);
  float offset = 0;
  if (thread < 16) s.code[thread] = kNf4Code[thread];
  if (w.absmax == nullptr) {
    offset = *w.offset;
    for (int i = thread; i < 256; i += S::kThreads) s.code2[i] = w.code2[i];
  }
  sync_block();  // code, code2 complete

  Feed<S, OP, false> feed;
  feed.begin(p, at, rows, first > 0);
  const auto fetch_step = [&](int step, int to) {
    if (step >= steps) return;
    if (step == first && first > 0) feed.begin(p, at, rows, false);
    feed.a.fetch_ragged(s.a[to]);
  };
  // This thread's 16 elements of the tile of B, and of B itself at step 0 of W.
  const int r = thread / (B::kCols / 16), c = thread % (B::kCols / 16) * 2;
  const int row0 = (OP == Op::kNt ? at.col : 0) + r, col0 = (OP == Op::kNt ? 0 : at.col) + c * 8;
  const long long rows_w = OP == Op::kNt ? p.n : p.k, cols_w = OP == Op::kNt ? p.k : p.n;
  Pack<unsigned, 2> codes = {};
  Nf4Scale scale = {};
  bool inside = false;
  const auto read_codes = [&](int step) {
    if (step < first || step >= steps) return;
    const int k = (step - first) * S::kK;
    const int row = row0 + (OP == Op::kNt ? 0 : k), col = col0 + (OP == Op::kNt ? k : 0);
    inside = row < rows_w && col < cols_w;
    if (!inside) return;
    const long long element = row * cols_w + col;
    codes = *reinterpret_cast<const Pack<unsigned, 2>*>(w.packed + element / 2);
    scale = nf4_scale(w, element / NF4_BLOCK);
  };
  const auto write_tile = [&](int step) {
    if (step >= steps) return;
    B& tile = s.b[step % 2];
    if (step < first) {
      const int k = step * S::kK;
      const int row = row0 + (OP == Op::kNt ? 0 : k), col = col0 + (OP == Op::kNt ? k : 0);
      const long long rows_b = OP == Op::kNt ? p.n : p.k2, cols_b = OP == Op::kNt ? p.k2 : p.n;
      const E* b2 = static_cast<const E*>(p.b2);
      const E* from = b2 + row * p.ldb2 + col;
      const int count = row < rows_b ? static_cast<int>(cols_b) - col : 0;
      const bool aligned = packs<8>(b2, p.ldb2);
#pragma unroll 1
      for (int h = 0; h < 2; ++h)
        *static_cast<Chunk<E>*>(tile.chunk(r, c + h)) = read_chunk(from + h * 8, count - h * 8, aligned);
      return;
    }
    const float absmax = inside ? nf4_absmax(w, scale, s.code2, offset) : 0.0f;
#pragma unroll
    for (int h = 0; h < 2; ++h) {
      Pack<unsigned, 4> x;
#pragma unroll
      for (int i = 0; i < 4; ++i) {
        const unsigned byte = codes.v[h] >> 8 * i;
        x.v[i] = pack<E>(__fmul_rn(s.code[byte >> 4 & 15], absmax), __fmul_rn(s.code[byte & 15], absmax));
      }
      if (!inside) x = {};
      *static_cast<Pack<unsigned, 4>*>(tile.chunk(r, c + h)) = x;
    }
  };
  unsigned long long kept = 0;
  if (OP == Op::kNn && p.dropout == GEMM_DROP_SECOND) kept = kept_sums<S>(mask_of(p, p.n), at.row, at.col);
  Sums<S> sums = {};
#pragma unroll 1
  for (int step = 0; step < S::kStages - 1; ++step) {
    fetch_step(step, step);
    cp_async_commit();
  }
  read_codes(0);
  write_tile(0);
  int stage = 0;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    cp_async_wait<S::kStages - 2>();
    sync_block();  // this step's tiles complete; those of the step before read by all
    fetch_step(step + S::kStages - 1, stage > 0 ? stage - 1 : S::kStages - 1);
    cp_async_commit();
    read_codes(step + 1);
    multiply<S, OP>(sums, s.a[stage], s.b[step % 2]);
    stage = next_stage<S>(stage);
    if (OP == Op::kNn && p.dropout == GEMM_DROP_SECOND && step == first - 1)
      drop_sums<S>(sums, kept, p.keep);
    write_tile(step + 1);
  }
  cp_async_wait<0>();
  sync_block();  // the tiles read by all
  write_result<S>(result<E>(p, rows), sums, &s, at.row, at.col);
}

}  // namespace gemm
}  // namespace qe
