#include "columns.h"

#include "include/qe.cuh"

using namespace qe;

QE_KERNEL(columns_copy, ColumnsCopy, COLUMNS_BLOCK) {
  const long long r = blockIdx.x;
  if (r >= live_rows(p.live, p.rows)) return;
  const int t = static_cast<int>(threadIdx.x), threads = static_cast<int>(blockDim.x);
  bf16* to = p.to + r * p.to_stride;
  const bf16* from = p.from + r * p.from_stride;
  if (packs<COLUMNS_PACK>(to, p.cols) && packs<COLUMNS_PACK>(from, p.cols)) {
    for (int c = t * COLUMNS_PACK; c < p.cols; c += threads * COLUMNS_PACK) store(to + c, load<COLUMNS_PACK>(from + c));
  } else {
    for (int c = t; c < p.cols; c += threads) to[c] = from[c];
  }
}
