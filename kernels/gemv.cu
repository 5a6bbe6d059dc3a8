#include "gemv.h"

#include "include/ggml.cuh"
#include "include/mma.cuh"
#include "include/nf4.cuh"
#include "include/stream.cuh"

namespace {
using namespace qe;

constexpr int kWarps = GEMV_BLOCK / QE_WARP;
constexpr int kPack = 8;                        // bf16 in 16 bytes
constexpr int kChunk = GEMV_STEP / 4;           // elements of a row of W that a lane holds a step: four lanes share a row
constexpr int kPacks = kChunk / kPack;

// Rows of W are the rows of a product of mma_bf16, rows of x its columns. Which element of k stands where in the product
// does not matter as long as it is the same for both, so a lane reads its elements as they lie in memory, 8 at a time:
// elements 2 e and 2 e + 1 of a pack are in register e, and registers 0, 1 and 2, 3 are those of two products.
QE_DEV int row_of_lane() { return lane() >> 2; }
QE_DEV int part_of_lane() { return lane() & 3; }

// 8 elements of a row from column k on; zeros past its end.
template <bool ONCE>
QE_DEV void read_pack(unsigned (&to)[4], const bf16* row, long long k, long long cols, bool packed) {
  if (packed) {
    Pack<unsigned, 4> x{};
    if (k < cols) x = ONCE ? load_once(row + k) : load<4>(reinterpret_cast<const unsigned*>(row + k));
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = x.v[e];
  } else {
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const unsigned lo = k + 2 * e < cols ? bits_of(row[k + 2 * e]) : 0u;
      const unsigned hi = k + 2 * e + 1 < cols ? bits_of(row[k + 2 * e + 1]) : 0u;
      to[e] = lo | hi << 16;
    }
  }
}

// ---------------------------------------------------------------------------------------------------- kinds of W
// Each reads what a lane needs of a row for a step (Raw), makes of it what the packs are cut from (Ready), and cuts them.
// kNear: the packs of a lane are neighbours; otherwise those of the four lanes of a row are.
struct Dense {
  static constexpr bool kNear = false;
  struct Raw {
    unsigned v[kPacks][4];
  };
  using Ready = Raw;
  const bf16* w;
  long long rows, cols;
  bool packed;

  QE_DEV void fetch(Raw& raw, long long row, long long step) const {
    const bf16* from = w + row * cols;
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      read_pack<true>(raw.v[i], from, step * GEMV_STEP + i * kChunk + part_of_lane() * kPack, cols, packed);
    }
  }
  QE_DEV void prepare(Ready& ready, const Raw& raw, long long) const { ready = raw; }
  QE_DEV void pack(unsigned (&to)[4], const Ready& ready, int i) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) to[e] = ready.v[i][e];
  }
};
QE_DEV Dense dense(const bf16* w, long long rows, long long cols) { return {w, rows, cols, packs<kPack>(w, cols)}; }

// Tables in shared memory.
struct Nf4Tables {
  float code[16], code2[NF4_BLOCK2];
};

struct Nf4 {
  static constexpr bool kNear = true;
  struct Raw {
    Pack<unsigned, 4> codes;
    Nf4Scale scale;
  };
  struct Ready {
    unsigned codes[4];
    float absmax;
  };
  Nf4Blocks w;
  long long rows, cols;
  const Nf4Tables* tables;
  float offset;

  // A chunk lies within one block.
  QE_DEV void fetch(Raw& raw, long long row, long long step) const {
    const long long k = step * GEMV_STEP + part_of_lane() * kChunk, at = row * cols + k;
    raw.codes = Pack<unsigned, 4>{};
    raw.scale = Nf4Scale{0, 0};
    if (k >= cols) return;
    raw.codes = load_once(w.packed + at / 2);
    raw.scale = nf4_scale(w, at / NF4_BLOCK);
  }
  QE_DEV void prepare(Ready& ready, const Raw& raw, long long) const {
#pragma unroll
    for (int e = 0; e < 4; ++e) ready.codes[e] = raw.codes.v[e];
    ready.absmax = nf4_absmax(w, raw.scale, tables->code2, offset);
  }
  QE_DEV void pack(unsigned (&to)[4], const Ready& ready, int i) const {
    const unsigned word = ready.codes[i];
#pragma unroll
    for (int e = 0; e < 4; ++e) {
      const float lo = __fmul_rn(tables->code[word >> (8 * e + 4) & 15u], ready.absmax);
      const float hi = __fmul_rn(tables->code[word >> 8 * e & 15u], ready.absmax);
      to[e] = pack_bf16(lo, hi);
    }
  }
};

template <int TYPE>
struct Ggml {
  static constexpr bool kNear = true;
  using Raw = ggml::Raw;
  using Ready = ggml::Chunk;
  using Format = ggml::Format<TYPE>;
  static constexpr int kChunks = Format::kBlock / GGML_CHUNK;  // of a block
  static_assert(kChunk == GGML_CHUNK, "a lane decodes a chunk");
  const unsigned char* w;
  long long rows, cols;

  // Past the end of a row the last chunk is read again, and meets zeros of x.
  QE_DEV long long chunk_of(long long step) const { return min(4 * step + part_of_lane(), cols / kChunk - 1); }
  QE_DEV void fetch(Raw& raw, long long row, long long step) const {
    const long long at = chunk_of(step), blocks = cols / Format::kBlock;
    Format::fetch(raw, w + (row * blocks + at / kChunks) * Format::kBytes, static_cast<int>(at % kChunks));
  }
  QE_DEV void prepare(Ready& ready, const Raw& raw, long long step) const {
    Format::prepare(ready, raw, static_cast<int>(chunk_of(step) % kChunks));
  }
  QE_DEV void pack(unsigned (&to)[4], const Ready& ready, int i) const { ggml::eight<TYPE>(to, ready, i); }
};

// ---------------------------------------------------------------------------------------------------- the product
// A block computes 16 M columns of y (rows of W) and 8 N rows.
template <int M, int N>
struct Tile {
  static constexpr int kN = 16 * M, kRows = 8 * N;
  static constexpr int kStride = kN + 4;  // neighbouring rows of `sum` start 8 banks apart, two by two
  float sum[kWarps][kRows][kStride];
};
static_assert(sizeof(Tile<1, 1>) == GEMV_8_SHARED && sizeof(Tile<2, 4>) == GEMV_32_SHARED, "what the header promises");

// What one warp adds up: acc += W x^T over its steps.
template <int M, int N, class W>
QE_DEV void add_product(float (&acc)[M][N][4], const W& w, const bf16* x, long long first_n, long long first_row,
                        long long past_row) {
  const long long steps = (w.cols + GEMV_STEP - 1) / GEMV_STEP;
  const bool packed = packs<kPack>(x, w.cols);
  long long row[M][2];
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int h = 0; h < 2; ++h) row[m][h] = min(first_n + 16 * m + 8 * h + row_of_lane(), w.rows - 1);  // ones past the end: not written
  typename W::Raw raw[M][2];
  const auto fetch = [&](long long step) {
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) w.fetch(raw[m][h], row[m][h], step);
  };
  if (warp() < steps) fetch(warp());
  for (long long step = warp(); step < steps; step += kWarps) {
    typename W::Ready ready[M][2];
#pragma unroll
    for (int m = 0; m < M; ++m)
#pragma unroll
      for (int h = 0; h < 2; ++h) w.prepare(ready[m][h], raw[m][h], step);
    if (M == 1 && step + kWarps < steps) fetch(step + kWarps);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      const int near = W::kNear ? part_of_lane() * kChunk + i * kPack : i * kChunk + part_of_lane() * kPack;
      const long long k = step * GEMV_STEP + near;
      unsigned b[N][4];
#pragma unroll
      for (int n = 0; n < N; ++n) {
        const long long r = first_row + 8 * n + row_of_lane();
        read_pack<false>(b[n], x + r * w.cols, k, r < past_row ? w.cols : 0, packed);
      }
#pragma unroll
      for (int m = 0; m < M; ++m) {
        unsigned low[4], high[4];
        w.pack(low, ready[m][0], i);
        w.pack(high, ready[m][1], i);
#pragma unroll
        for (int n = 0; n < N; ++n) {
          mma_bf16(acc[m][n], {low[0], high[0], low[1], high[1]}, {b[n][0], b[n][1]});
          mma_bf16(acc[m][n], {low[2], high[2], low[3], high[3]}, {b[n][2], b[n][3]});
        }
      }
    }
    if (M > 1 && step + kWarps < steps) fetch(step + kWarps);
  }
}

template <int M, int N, class W>
QE_DEV void gemv(const Gemv& p, const W& w, Tile<M, N>& tile) {
  using T = Tile<M, N>;
  const long long past_row = live_rows(p.live, p.rows);
  const long long first_n = static_cast<long long>(blockIdx.x) * T::kN;
  const long long first_row = static_cast<long long>(blockIdx.y) * T::kRows;
  if (first_row >= past_row) return;
  float acc[M][N][4] = {};
  if (p.k2 > 0) add_product<M, N>(acc, dense(p.w2, p.n, p.k2), p.x2, first_n, first_row, past_row);
  add_product<M, N>(acc, w, p.x, first_n, first_row, past_row);
#pragma unroll
  for (int m = 0; m < M; ++m)
#pragma unroll
    for (int n = 0; n < N; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        tile.sum[warp()][8 * n + 2 * part_of_lane() + e % 2][16 * m + row_of_lane() + e / 2 * 8] = acc[m][n][e];
      }
  sync_block();  // sum[] complete
  for (int i = static_cast<int>(threadIdx.x); i < T::kN * T::kRows; i += GEMV_BLOCK) {
    const int r = i / T::kN, c = i % T::kN;
    const long long row = first_row + r, col = first_n + c;
    if (row >= past_row || col >= p.n) continue;
    float sum = tile.sum[0][r][c];
#pragma unroll
    for (int k = 1; k < kWarps; ++k) sum = __fadd_rn(sum, tile.sum[k][r][c]);
    sum = __fmul_rn(p.alpha, sum);
    if (p.bias != nullptr) sum = __fadd_rn(sum, f32(p.bias[col]));
    if (p.add != nullptr) sum = __fadd_rn(sum, f32(p.add[row * p.n + col]));
    p.y[row * p.n + col] = to_bf16(sum);
  }
}

template <int M, int N>
QE_DEV void with_dense(const Gemv& p) {
  gemv<M, N>(p, dense(p.w, p.n, p.k), shared<Tile<M, N>>());
}

template <int M, int N>
struct Nf4Smem {
  Tile<M, N> tile;
  Nf4Tables tables;
};
static_assert(sizeof(Nf4Smem<1, 1>) == GEMV_NF4_8_SHARED && sizeof(Nf4Smem<2, 4>) == GEMV_NF4_32_SHARED,
              "what the header promises");
static_assert(GEMV_BLOCK == NF4_BLOCK2, "a thread copies a value of code2");

template <int M, int N>
QE_DEV void with_nf4(const GemvNf4& p) {
  Nf4Smem<M, N>& s = shared<Nf4Smem<M, N>>();
  const bool twice = p.w.absmax == nullptr;
  if (threadIdx.x < 16) s.tables.code[threadIdx.x] = kNf4Code[threadIdx.x];
  s.tables.code2[threadIdx.x] = twice ? p.w.code2[threadIdx.x] : 0.0f;
  sync_block();  // tables complete
  gemv<M, N>(p.g, Nf4{p.w, p.g.n, p.g.k, &s.tables, twice ? *p.w.offset : 0.0f}, s.tile);
}

template <int M, int N, int TYPE>
QE_DEV void with_ggml(const GemvGgml& p) {
  gemv<M, N>(p.g, Ggml<TYPE>{p.w, p.g.n, p.g.k}, shared<Tile<M, N>>());
}
}  // namespace

QE_KERNEL(gemv_dense_8, Gemv, GEMV_BLOCK) { with_dense<1, 1>(p); }
QE_KERNEL(gemv_dense_32, Gemv, GEMV_BLOCK) { with_dense<2, 4>(p); }
QE_KERNEL(gemv_nf4_8, GemvNf4, GEMV_BLOCK) { with_nf4<1, 1>(p); }
QE_KERNEL(gemv_nf4_32, GemvNf4, GEMV_BLOCK) { with_nf4<2, 4>(p); }
QE_KERNEL(gemv_q4_0_8, GemvGgml, GEMV_BLOCK) { with_ggml<1, 1, GGML_Q4_0>(p); }
QE_KERNEL(gemv_q4_0_32, GemvGgml, GEMV_BLOCK) { with_ggml<2, 4, GGML_Q4_0>(p); }
QE_KERNEL(gemv_q5_0_8, GemvGgml, GEMV_BLOCK) { with_ggml<1, 1, GGML_Q5_0>(p); }
QE_KERNEL(gemv_q5_0_32, GemvGgml, GEMV_BLOCK) { with_ggml<2, 4, GGML_Q5_0>(p); }
QE_KERNEL(gemv_q8_0_8, GemvGgml, GEMV_BLOCK) { with_ggml<1, 1, GGML_Q8_0>(p); }
QE_KERNEL(gemv_q8_0_32, GemvGgml, GEMV_BLOCK) { with_ggml<2, 4, GGML_Q8_0>(p); }
QE_KERNEL(gemv_q4_k_8, GemvGgml, GEMV_BLOCK) { with_ggml<1, 1, GGML_Q4_K>(p); }
QE_KERNEL(gemv_q4_k_32, GemvGgml, GEMV_BLOCK) { with_ggml<2, 4, GGML_Q4_K>(p); }
QE_KERNEL(gemv_q5_k_8, GemvGgml, GEMV_BLOCK) { with_ggml<1, 1, GGML_Q5_K>(p); }
QE_KERNEL(gemv_q5_k_32, GemvGgml, GEMV_BLOCK) { with_ggml<2, 4, GGML_Q5_K>(p); }
QE_KERNEL(gemv_q6_k_8, GemvGgml, GEMV_BLOCK) { with_ggml<1, 1, GGML_Q6_K>(p); }
QE_KERNEL(gemv_q6_k_32, GemvGgml, GEMV_BLOCK) { with_ggml<2, 4, GGML_Q6_K>(p); }
