#include "kv_write.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = 8;  // bf16 in 16 bytes

template <int N>
QE_DEV void copy_row(const KvWrite& p, long long from, long long to) {
  for (int c = lane() * N; c < p.cols; c += QE_WARP * N) {
    const Pack<bf16, N> k = load<N>(p.k + from + c), v = load<N>(p.v + from + c);
    store(p.cache_k + to + c, k);
    store(p.cache_v + to + c, v);
  }
}
}  // namespace

QE_KERNEL(kv_write, KvWrite, KV_WRITE_BLOCK) {
  const long long row = static_cast<long long>(blockIdx.x) * (KV_WRITE_BLOCK / QE_WARP) + warp();
  if (row >= live_rows(p.live, p.rows)) return;
  const long long from = row * p.cols, to = static_cast<long long>(p.at[row]) * p.cols;
  const bool packed = packs<kPack>(p.k, p.cols) && packs<kPack>(p.v, p.cols) && packs<kPack>(p.cache_k, p.cols) &&
                      packs<kPack>(p.cache_v, p.cols);
  if (packed) copy_row<kPack>(p, from, to);
  else copy_row<1>(p, from, to);
}
