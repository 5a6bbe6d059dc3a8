// What the attention kernels share: tiles in shared memory, their products, and the scores.
#pragma once
#include "cp_async.cuh"
#include "exp2.cuh"
#include "mma.cuh"
#include "qe.cuh"

namespace qe {
namespace attention {
constexpr int kPack = 8;       // bf16 in 16 bytes: a chunk
constexpr int kWarpRows = 16;  // rows of a product that a warp computes
constexpr float kLog2e = 1.44269504088896340736f;
constexpr float kLn2 = 0.69314718055994530942f;

QE_DEV float minus_infinity() { return __uint_as_float(0xFF800000u); }

// A place in a fragment (see mma.cuh): row g and g + 8, columns 2t and 2t + 1.
QE_DEV int frag_row() { return lane() >> 2; }
QE_DEV int frag_col() { return 2 * (lane() & 3); }

// ---------------------------------------------------------------------------------------------------- tiles
// A tile is (rows, DIM) bf16 in shared memory. Its chunks are permuted within each row, kGroup neighbours among themselves, so
// that the eight rows that ldmatrix reads at one column fall into eight different groups of four banks.
template <int DIM>
constexpr int kGroup = DIM / kPack % 8 == 0 ? 8 : DIM / kPack % 4 == 0 ? 4 : 2;
template <int DIM>
QE_DEV int place(int row, int chunk) {
  const int turn = kGroup<DIM> == 8 ? row & 7 : kGroup<DIM> == 4 ? row >> 1 & 3 : row >> 2 & 1;
  return row * DIM + (chunk ^ turn) * kPack;
}

// Rows of one head in global memory.
template <class T>
struct Rows {
  T* at;             // row 0
  long long stride;  // elements from a row to the next
  int dim;           // elements of a row
  bool packed;       // whether rows can be read in chunks
};
template <class T>
QE_DEV Rows<T> head_of(T* data, int heads, int head, int dim) {
  const long long stride = static_cast<long long>(heads) * dim;
  return {data + static_cast<long long>(head) * dim, stride, dim, packs<kPack>(data, dim)};
}

// Starts to copy rows first .. first + ROWS to a tile, zeros from row `past` and column `dim` on; by THREADS neighbouring
// threads: the block, or each warp its own tile.
template <int DIM, int ROWS, int THREADS>
QE_DEV void fetch(bf16* tile, const Rows<const bf16>& from, int first, int past) {
  constexpr int kChunks = DIM / kPack;
  const int thread = THREADS == QE_WARP ? lane() : static_cast<int>(threadIdx.x);
  if (from.packed && THREADS % kChunks == 0) {
    // A thread's chunks lie in one column.
    constexpr int kStep = THREADS / kChunks;
    const int row = thread / kChunks, chunk = thread % kChunks;
    const bf16* src = from.at + (first + row) * from.stride + chunk * kPack;
    const int rows = chunk * kPack < from.dim ? past - first - row : 0;
#pragma unroll
    for (int i = 0; i < ROWS / kStep; ++i) {
      cp_async16(tile + place<DIM>(row + i * kStep, chunk), src, i * kStep < rows);
      src += kStep * from.stride;
    }
  } else if (from.packed) {
#pragma unroll
    for (int i = 0; i < ROWS * kChunks / THREADS; ++i) {
      const int at = i * THREADS + thread, row = at / kChunks, chunk = at % kChunks;
      const bool valid = first + row < past && chunk * kPack < from.dim;
      const bf16* src = from.at + (valid ? (first + row) * from.stride + chunk * kPack : 0);
      cp_async16(tile + place<DIM>(row, chunk), src, valid);
    }
    static_assert(ROWS * kChunks % THREADS == 0, "every thread copies as many chunks");
  } else {
    for (int at = thread; at < ROWS * DIM; at += THREADS) {
      const int row = at / DIM, c = at % DIM;
      const bool valid = first + row < past && c < from.dim;
      tile[place<DIM>(row, c / kPack) + c % kPack] = valid ? from.at[(first + row) * from.stride + c] : to_bf16(0);
    }
  }
}

// Writes accumulators (16 rows, 8 N columns; row g times `low`, row g + 8 times `high`) to rows first + row .. of `to`, of
// which those from `past` on do not exist, by way of the warp's own rows of a tile. Columns start at 8 * chunk.
template <int DIM, int N>
QE_DEV void write_result(const Rows<bf16>& to, int first, int past, bf16* tile, int row, int chunk, const float (&acc)[N][4],
                         float low, float high) {
#pragma unroll
  for (int n = 0; n < N; ++n) {
    const int g = row + frag_row(), c = chunk + n;
    store(tile + place<DIM>(g, c) + frag_col(), Pack<bf16, 2>{{to_bf16(acc[n][0] * low), to_bf16(acc[n][1] * low)}});
    store(tile + place<DIM>(g + 8, c) + frag_col(), Pack<bf16, 2>{{to_bf16(acc[n][2] * high), to_bf16(acc[n][3] * high)}});
  }
  sync_warp();  // the warp's rows of the tile complete
  for (int i = lane(); i < kWarpRows * N; i += QE_WARP) {
    const int r = row + i / N, c = chunk + i % N;
    if (first + r >= past || c * kPack >= to.dim) continue;
    const Pack<bf16, kPack> x = load<kPack>(tile + place<DIM>(r, c));
    bf16* dst = to.at + (first + r) * to.stride + c * kPack;
    if (to.packed) {
      store(dst, x);
    } else {
      for (int j = 0; j < kPack && c * kPack + j < to.dim; ++j) dst[j] = x.v[j];
    }
  }
}

// ---------------------------------------------------------------------------------------------------- products
// A fragment: rows row .. row + 16, columns 16 k .. of a tile.
template <int DIM>
QE_DEV void load_a(unsigned (&a)[4], const bf16* tile, int row, int k) {
  ldmatrix_x4(a, tile + place<DIM>(row + (lane() & 15), 2 * k + (lane() >> 4)));
}

// acc += A B^T over step k of the columns: A a fragment, B the 8 N rows of a tile.
template <int DIM, int N>
QE_DEV void matmul_rows(float (&acc)[N][4], const unsigned (&a)[4], const bf16* tile, int k) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    unsigned b[4];
    ldmatrix_x4(b, tile + place<DIM>(8 * n + (lane() & 7) + (lane() >> 4) * 8, 2 * k + (lane() >> 3 & 1)));
    mma_bf16_pair(acc, n, a, b);
  }
}

// acc += A B over the rows 16 k .. 16 k + 16 of a tile: A a fragment, B columns 8 * chunk .. 8 * (chunk + N) of those rows.
template <int DIM, int N>
QE_DEV void matmul_cols(float (&acc)[N][4], const unsigned (&a)[4], const bf16* tile, int k, int chunk) {
#pragma unroll
  for (int n = 0; n < N; n += 2) {
    unsigned b[4];
    ldmatrix_x4_trans(b, tile + place<DIM>(16 * k + (lane() & 15), chunk + n + (lane() >> 4)));
    mma_bf16_pair(acc, n, a, b);
  }
}

// Columns 16 k .. of accumulators as an A fragment, rounded to bf16.
template <int N>
QE_DEV void to_fragment(unsigned (&a)[4], const float (&x)[N][4], int k) {
  a[0] = pack_bf16(x[2 * k][0], x[2 * k][1]);
  a[1] = pack_bf16(x[2 * k][2], x[2 * k][3]);
  a[2] = pack_bf16(x[2 * k + 1][0], x[2 * k + 1][1]);
  a[3] = pack_bf16(x[2 * k + 1][2], x[2 * k + 1][3]);
}

template <int N>
QE_DEV void clear(float (&x)[N][4]) {
#pragma unroll
  for (int n = 0; n < N; ++n)
#pragma unroll
    for (int e = 0; e < 4; ++e) x[n][e] = 0;
}

// The 16 rows of a warp as A fragments, kept in registers where they fit and else read from their tile each time.
template <int DIM, bool KEPT>
struct Operand {
  unsigned a[DIM / 16][4];
  QE_DEV void take(const bf16* tile, int row) {
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) load_a<DIM>(a[k], tile, row, k);
  }
  // acc = rows * (rows of `other`)^T
  template <int N>
  QE_DEV void matmul(float (&acc)[N][4], const bf16* other) {
    clear(acc);
#pragma unroll
    for (int k = 0; k < DIM / 16; ++k) matmul_rows<DIM>(acc, a[k], other, k);
  }
};
template <int DIM>
struct Operand<DIM, false> {
  const bf16* own;
  int row;
  QE_DEV void take(const bf16* tile, int r) {
    own = tile;
    row = r;
  }
  template <int N>
  QE_DEV void matmul(float (&acc)[N][4], const bf16* other) {
    clear(acc);
    // Places repeat from group to group of chunks: their addresses are worked out once.
#pragma unroll
    for (int at = 0; at < DIM; at += kGroup<DIM> * kPack)
#pragma unroll
      for (int k = 0; k < kGroup<DIM> / 2; ++k) {
        unsigned a[4];
        load_a<DIM>(a, own + at, row, k);
        matmul_rows<DIM>(acc, a, other + at, k);
      }
  }
};

// ---------------------------------------------------------------------------------------------------- scores
// What a product q . k becomes before the softmax: log2(e) * s = factor * score.
struct Scores {
  float factor, slope;  // slope: of ALiBi
  bool plain;           // the score is the product
};
template <class P>
QE_DEV Scores scores_of(const P& p, int head) {
  const float slope = p.slopes != nullptr ? p.slopes[head] : 0.0f;
  const bool plain = slope == 0.0f && !(p.softcap > 0.0f);
  return {plain ? p.scale * kLog2e : kLog2e, slope, plain};
}
// Calls f with whether the score is the product as a type: pairs of plain scores then have no branch between them.
template <bool PLAIN>
struct Plain {
  static constexpr bool value = PLAIN;
};
template <class F>
QE_DEV void with_plain(const Scores& how, F f) {
  if (how.plain)
    f(Plain<true>{});
  else
    f(Plain<false>{});
}
// `distance` is j - i. `*slack` becomes the derivative by the product, over the scale.
template <class P>
QE_DEV float score(const P& p, float slope, float product, int distance, float* slack) {
  float x = p.scale * product;
  *slack = 1.0f;
  if (p.softcap > 0.0f) {
    // tanh y = 1 - 2 / (1 + e^2y), to an error of a few 2^-24
    const float t = 1.0f - 2.0f / (1.0f + exp2_approx(2 * kLog2e * x / p.softcap));
    x = p.softcap * t;
    *slack = 1.0f - t * t;
  }
  return x + slope * static_cast<float>(distance);
}
}  // namespace attention
}  // namespace qe
