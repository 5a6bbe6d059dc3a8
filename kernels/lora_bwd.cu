#include "lora_bwd.h"

#include "include/gemm.cuh"

namespace {
using namespace qe;
using namespace qe::gemm;

// A step multiplies a tile of dy, 64 rows of 128 columns, with the tile of B beside it and with that of P below it.
using OfQ = Shape<bf16, 64, LORA_BWD_RANKS, 128, 4, 1, 1, 2>;
using OfB = Shape<bf16, 128, LORA_BWD_RANKS, 64, 4, 1, 1, 2>;
using TileY = TilesOf<OfQ, Op::kNn>::A;
using TileB = TilesOf<OfQ, Op::kNn>::B;
using TileP = TilesOf<OfB, Op::kTn>::B;
constexpr int kRows = TileY::kRows, kCols = TileY::kCols;
// A block's columns are two tiles, which are its two stages as well.
constexpr int kHalves = LORA_BWD_COLUMNS / kCols;
static_assert(kHalves == 2 && LORA_BWD_ROWS % kRows == 0 && OfQ::kThreads == LORA_BWD_BLOCK, "as lora_bwd.h says");

struct PartsSmem {
  TileY dy[kHalves];
  TileP p[2];
  TileB b[kHalves];
};
static_assert(sizeof(PartsSmem) == LORA_BWD_SHARED, "as lora_bwd.h says");

template <class T>
using WalkDown = Walk<T, LORA_BWD_BLOCK, true>;

template <class T>
QE_DEV void copy(WalkDown<T>& walk, T& tile, bool whole) {
  if (whole)
    walk.fetch(tile);
  else
    walk.fetch_ragged(tile);
}

// Writes the block's tile of f32 sums, of which `rows` and `cols` hold something.
template <class S>
QE_DEV void write_sums(const Sums<S>& sums, float* to, int pitch, int rows, int cols) {
  const int g = lane() / 4, t = lane() % 4;
#pragma unroll
  for (int i = 0; i < S::kFragsM; ++i)
#pragma unroll
    for (int j = 0; j < S::kFragsN; ++j) {
      if (j * 8 >= cols) continue;
      const int row = warp_row<S>() + i * 16 + g;
      float* at = to + static_cast<long long>(row) * pitch + j * 8 + 2 * t;
      if (row < rows) store(at, Pack<float, 2>{{sums[i][j][0], sums[i][j][1]}});
      if (row + 8 < rows) store(at + 8 * pitch, Pack<float, 2>{{sums[i][j][2], sums[i][j][3]}});
    }
}

QE_DEV int pitch_of(const LoraBwd& m) { return (m.r + 7) / 8 * 8; }
}  // namespace

QE_KERNEL(lora_bwd_parts, LoraBwdGroup, LORA_BWD_BLOCK) {
  PartsSmem& s = shared<PartsSmem>();
  const Part part = part_of(p.ends, blockIdx.x);
  const LoraBwd& m = p.of[part.member];
  const unsigned chunks = static_cast<unsigned>((m.r + LORA_BWD_RANKS - 1) / LORA_BWD_RANKS);
  const int rank = static_cast<int>(part.at % chunks * LORA_BWD_RANKS);  // neighbours in time share their tiles of dy
  const int block = static_cast<int>(part.at / chunks), col = block * LORA_BWD_COLUMNS;
  const int begin = static_cast<int>(blockIdx.y) * LORA_BWD_ROWS, live = static_cast<int>(live_rows(p.live, p.rows));
  const int end = min(begin + LORA_BWD_ROWS, live);
  if (begin >= end) return;

  WalkDown<TileY> dy[kHalves];
  WalkDown<TileB> b[kHalves];
  WalkDown<TileP> of_p;
  of_p.begin(m.p, m.r, end, m.r, begin, rank);
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    dy[h].begin(m.dy, m.out, end, m.out, begin, col + h * kCols);
    b[h].begin(m.b, m.r, m.out, m.r, col + h * kCols, rank);
  }
  const bool whole = dy[0].whole() && dy[1].whole() && of_p.whole() && b[0].whole();
#pragma unroll
  for (int h = 0; h < kHalves; ++h) copy(b[h], s.b[h], whole);
  copy(of_p, s.p[0], whole);
  copy(dy[0], s.dy[0], whole);
  cp_async_commit();

  const int pitch = pitch_of(m);
  Sums<OfB> of_b[kHalves] = {};
  const int steps = (end - begin + kRows - 1) / kRows;
#pragma unroll 1
  for (int step = 0; step < steps; ++step) {
    Sums<OfQ> q = {};
#pragma unroll
    for (int h = 0; h < kHalves; ++h) {
      cp_async_wait<0>();
      sync_block();  // this half's tiles complete; those of the half before read by all
      if (h == 0) {
        copy(dy[1], s.dy[1], whole);
      } else if (step + 1 < steps) {
        copy(of_p, s.p[(step + 1) % 2], whole);
        copy(dy[0], s.dy[0], whole);
      }
      cp_async_commit();
      multiply<OfQ, Op::kNn>(q, s.dy[h], s.b[h]);
      multiply<OfB, Op::kTn>(of_b[h], s.dy[h], s.p[step % 2]);
    }
    const int row = begin + step * kRows;
    float* to = m.q_parts + (block * p.rows + row) * pitch + rank;
    write_sums<OfQ>(q, to, pitch, end - row, pitch - rank);
  }
  if (m.db == nullptr) return;
#pragma unroll
  for (int h = 0; h < kHalves; ++h) {
    const int row = col + h * kCols;
    float* to = m.b_parts + (blockIdx.y * m.out + row) * pitch + rank;
    write_sums<OfB>(of_b[h], to, pitch, static_cast<int>(m.out) - row, pitch - rank);
  }
}

QE_KERNEL(lora_bwd_sum, LoraBwdGroup, LORA_BWD_SUM_BLOCK) {
  const Part part = part_of(p.ends, blockIdx.x);
  const LoraBwd& m = p.of[part.member];
  const long long i = static_cast<long long>(part.at) * LORA_BWD_SUM_BLOCK + threadIdx.x;
  const long long live = live_rows(p.live, p.rows), pitch = pitch_of(m);
  const bool of_q = i < p.rows * m.r;
  const long long at = of_q ? i : i - p.rows * m.r, row = at / m.r, col = at % m.r;
  if (of_q ? row >= live : row >= m.out || m.db == nullptr) return;
  const float* from = (of_q ? m.q_parts : m.b_parts) + row * pitch + col;
  const long long apart = (of_q ? p.rows : m.out) * pitch;
  const long long parts = of_q ? (m.out + LORA_BWD_COLUMNS - 1) / LORA_BWD_COLUMNS : (live + LORA_BWD_ROWS - 1) / LORA_BWD_ROWS;
  float sum = 0;
  for (long long n = 0; n < parts; ++n) sum += from[n * apart];
  if (of_q)
    m.q[at] = to_bf16(m.scale * sum);
  else
    m.db[at] += sum;
}
