#include "cross_entropy.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = 8;
constexpr int kStride = CROSS_ENTROPY_BLOCK * kPack;  // columns between two packs of a thread
constexpr float kLowest = -3.402823466e38f;  // the lowest float: below every logit, and e^(kLowest - m) is 0

// Eight logits from column `c` on; past the vocabulary they weigh nothing.
struct Logits {
  float v[kPack];
};
QE_DEV Logits read(const float* row, int c, int vocab) {
  Logits x;
  for (int h = 0; h < kPack; h += 4) {
    const Pack<float, 4> p = load<4>(row + c + h);
    for (int i = 0; i < 4; ++i) x.v[h + i] = p.v[i];
  }
  if (c + kPack > vocab) {
    for (int i = 0; i < kPack; ++i)
      if (c + i >= vocab) x.v[i] = -INFINITY;
  }
  return x;
}

QE_DEV float max_of(const Logits& x) {
  float m = x.v[0];
  for (int i = 1; i < kPack; ++i) m = fmaxf(m, x.v[i]);
  return m;
}

// Maximum over the block, the same bits in every thread. The next use of `partial` must be behind a barrier.
QE_DEV float block_max(float v, float* partial) {
  v = warp_max(v);
  if (lane() == 0) partial[warp()] = v;
  sync_block();  // partial[] complete
  for (int w = 0; w < CROSS_ENTROPY_BLOCK / QE_WARP; ++w) v = fmaxf(v, partial[w]);
  return v;
}

// log sum exp of a row, the same bits in every thread; NaN if a logit is.
QE_DEV float log_sum_exp(const float* row, int vocab, CrossEntropySmem& s) {
  float m = kLowest, sum = 0;
  for (int c = static_cast<int>(threadIdx.x) * kPack; c < vocab; c += kStride) {
    const Logits x = read(row, c, vocab);
    const float higher = fmaxf(m, max_of(x));
    sum *= __expf(m - higher);
    m = higher;
    for (int i = 0; i < kPack; ++i) sum += __expf(x.v[i] - m);
  }
  const float highest = block_max(m, s.maxima);
  return highest + logf(static_cast<float>(block_sum(static_cast<double>(sum * __expf(m - highest)), s.sums)));
}
}  // namespace

QE_KERNEL(cross_entropy_live, CrossEntropyLive, CROSS_ENTROPY_BLOCK) {
  const int i = static_cast<int>(blockIdx.x * CROSS_ENTROPY_BLOCK + threadIdx.x);
  if (i >= p.chunks) return;
  const long long left = static_cast<long long>(*p.live) - p.chunk * i;
  p.counts[i] = static_cast<unsigned>(max(0LL, min(left, p.chunk)));
}

QE_KERNEL(cross_entropy_rows, CrossEntropyRows, CROSS_ENTROPY_BLOCK) {
  CrossEntropySmem& s = shared<CrossEntropySmem>();
  const long long r = blockIdx.x;
  if (r >= live_rows(p.live, p.rows)) return;
  float* row = p.logits + r * p.pitch;
  const int target = static_cast<int>(p.targets[r]);
  const float wanted = row[target];
  const float lse = log_sum_exp(row, p.vocab, s);
  if (threadIdx.x == 0) p.loss[r] = lse - wanted;
  if (!p.gradient) return;
  const float scale = p.step->scale;
  bf16* dx = reinterpret_cast<bf16*>(row);
  for (int begin = 0; begin < p.vocab; begin += kStride) {
    const int c = begin + static_cast<int>(threadIdx.x) * kPack;
    Logits x;
    if (c < p.vocab) x = read(row, c, p.vocab);
    sync_block();  // logits up to begin + kStride read: their places, and those before, may be overwritten
    if (c >= p.vocab) continue;
    Pack<bf16, kPack> d;
    for (int i = 0; i < kPack; ++i) {
      const float e = __expf(x.v[i] - lse);
      d.v[i] = to_bf16((c + i == target ? e - 1.0f : e) * scale);
    }
    store(dx + c, d);
  }
}

QE_KERNEL(cross_entropy_sum, CrossEntropySum, CROSS_ENTROPY_BLOCK) {
  CrossEntropySmem& s = shared<CrossEntropySmem>();
  const long long rows = live_rows(p.live, p.rows);
  double sum = 0;
  for (long long r = threadIdx.x; r < rows; r += CROSS_ENTROPY_BLOCK) sum += static_cast<double>(p.loss[r]);
  sum = block_sum(sum, s.sums);
  if (threadIdx.x == 0) *p.total += sum;
}
