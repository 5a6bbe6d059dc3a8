#include "embedding.h"

#include "include/philox.cuh"
#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = EMBEDDING_PACK;
constexpr int kWarps = EMBEDDING_BLOCK / QE_WARP;
constexpr int kSteps = EMBEDDING_STEPS;
constexpr int kChunk = kSteps * EMBEDDING_BLOCK;

QE_DEV void copy_row(bf16* to, const bf16* from, int cols) {
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (packs<kPack>(to, cols) && packs<kPack>(from, cols)) {
    for (int c = t * kPack; c < cols; c += threads * kPack) store(to + c, load<kPack>(from + c));
  } else {
    for (int c = t; c < cols; c += threads) to[c] = from[c];
  }
}

// The number in [-1, 1) is exact.
QE_DEV float noise(unsigned word, float bound) { return __fmul_rn(2.0f * philox_unit(word) - 1.0f, bound); }

QE_DEV void copy_row_noisy(bf16* to, const bf16* from, int cols, long long first, const Step& s, unsigned module) {
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  if (packs<kPack>(to, cols) && packs<kPack>(from, cols)) {
    for (int c = t * kPack; c < cols; c += threads * kPack) {
      Pack<bf16, kPack> x = load<kPack>(from + c);
      for (int b = 0; b < kPack; b += 4) {
        const Philox w = philox(s.seed, s.micro_step, module, static_cast<unsigned long long>(first + c + b) / 4);
        for (int i = 0; i < 4; ++i) x.v[b + i] = to_bf16(__fadd_rn(f32(x.v[b + i]), noise(w.w[i], s.noise)));
      }
      store(to + c, x);
    }
  } else {
    for (int c = t; c < cols; c += threads) {
      const unsigned long long at = static_cast<unsigned long long>(first + c);
      const Philox w = philox(s.seed, s.micro_step, module, at / 4);
      to[c] = to_bf16(__fadd_rn(f32(from[c]), noise(w.w[at % 4], s.noise)));
    }
  }
}

// The columns of a thread: kPack neighbours, or as many each a block apart where addresses are not aligned.
struct Columns {
  int first, step, count;
  bool packed;
};

QE_DEV Columns columns_of_thread(const EmbeddingBwd& p) {
  const int begin = static_cast<int>(blockIdx.y) * EMBEDDING_BLOCK * kPack, t = static_cast<int>(threadIdx.x);
  const bool packed = packs<kPack>(p.dx, p.cols) && packs<4>(p.dtable, p.cols);
  Columns c = {begin + (packed ? t * kPack : t), packed ? 1 : EMBEDDING_BLOCK, 0, packed};
  for (int i = 0; i < kPack; ++i) c.count += c.first + i * c.step < p.cols;
  return c;
}
}  // namespace

QE_KERNEL(embedding_fwd, EmbeddingFwd, EMBEDDING_BLOCK) {
  const long long r = blockIdx.x;
  if (r >= live_rows(p.live, p.rows)) return;
  const bf16* from = p.table + static_cast<long long>(p.ids[r]) * p.cols;
  if (p.step == nullptr) {
    copy_row(p.x + r * p.cols, from, p.cols);
  } else {
    copy_row_noisy(p.x + r * p.cols, from, p.cols, r * p.cols, *p.step, p.module);
  }
}

QE_KERNEL(embedding_add, EmbeddingAdd, EMBEDDING_BLOCK) {
  const long long r = blockIdx.x;
  if (r >= live_rows(p.live, p.rows)) return;
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  const bf16* from = p.table + static_cast<long long>(p.ids[r]) * p.cols;
  bf16* to = p.x + r * p.cols;
  if (packs<kPack>(to, p.cols) && packs<kPack>(from, p.cols)) {
    for (int c = t * kPack; c < p.cols; c += threads * kPack) {
      Pack<bf16, kPack> x = load<kPack>(to + c);
      const Pack<bf16, kPack> more = load<kPack>(from + c);
      for (int i = 0; i < kPack; ++i) x.v[i] = to_bf16(f32(x.v[i]) + f32(more.v[i]));
      store(to + c, x);
    }
  } else {
    for (int c = t; c < p.cols; c += threads) to[c] = to_bf16(f32(to[c]) + f32(from[c]));
  }
}

QE_KERNEL(embedding_scatter, EmbeddingScatter, EMBEDDING_BLOCK) {
  const long long r = blockIdx.x;
  if (r >= live_rows(p.live, p.rows)) return;
  copy_row(p.x + static_cast<long long>(p.ids[r]) * p.cols, p.dx + r * p.cols, p.cols);
}

QE_KERNEL(embedding_bwd, EmbeddingBwd, EMBEDDING_BLOCK) {
  EmbeddingSmem& s = shared<EmbeddingSmem>();
  const long long own = blockIdx.x, rows = live_rows(p.live, p.rows);
  if (own >= rows) return;
  const unsigned id = p.ids[own];
  const Columns cols = columns_of_thread(p);
  float* to = p.dtable + static_cast<long long>(id) * p.cols + cols.first;
  float sum[kPack];
  for (long long begin = 0; begin < rows; begin += kChunk) {
    for (int i = 0; i < kSteps; ++i) {
      const long long r = begin + i * EMBEDDING_BLOCK + threadIdx.x;
      const unsigned found = qe::ballot(r < rows && p.ids[r] == id);
      if (lane() == 0) s.found[i][warp()] = found;
    }
    sync_block();  // found[] complete
    for (int w = 0; w < kSteps * kWarps; ++w) {
      for (unsigned bits = s.found[w / kWarps][w % kWarps]; bits != 0; bits &= bits - 1) {
        const long long r = begin + w * QE_WARP + (__ffs(static_cast<int>(bits)) - 1);
        if (r < own) return;  // the same in every thread: that row's block adds this row too
        const bf16* from = p.dx + r * p.cols + cols.first;
        if (cols.packed && cols.count == kPack) {
          const Pack<bf16, kPack> d = load<kPack>(from);
          if (r == own) {
            for (int h = 0; h < kPack; h += 4) {
              const Pack<float, 4> before = load<4>(to + h);
              for (int i = 0; i < 4; ++i) sum[h + i] = before.v[i];
            }
          }
          for (int i = 0; i < kPack; ++i) sum[i] += f32(d.v[i]);
        } else {
          for (int i = 0; i < kPack; ++i) {
            if (i >= cols.count) continue;
            if (r == own) sum[i] = to[i * cols.step];
            sum[i] += f32(from[i * cols.step]);
          }
        }
      }
    }
    sync_block();  // found[] read by all
  }
  if (cols.packed && cols.count == kPack) {
    for (int h = 0; h < kPack; h += 4) store(to + h, Pack<float, 4>{{sum[h], sum[h + 1], sum[h + 2], sum[h + 3]}});
  } else {
    for (int i = 0; i < kPack; ++i)
      if (i < cols.count) to[i * cols.step] = sum[i];
  }
}
