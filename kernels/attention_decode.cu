#include "attention_decode.h"

#include "include/attention.cuh"

namespace {
using namespace qe;
using namespace qe::attention;

constexpr int kWarps = ATTENTION_DECODE_BLOCK / QE_WARP;
constexpr int kStep = kWarpRows * kWarps;  // keys that a block works on at a time, 16 a warp

// The keys that the query of a sequence sees.
struct Seen {
  int first, past;
};
QE_DEV Seen seen(const AttentionDecode& p, int sequence) {
  const int length = static_cast<int>(p.lengths[sequence]);
  return {p.window > 0 ? max(0, length - p.window) : 0, length};
}

// Where a split of a (sequence, head) keeps its sums.
QE_DEV float* partial_of(const AttentionDecode& p, int sequence, int head, int split) {
  return p.partial + ((static_cast<long long>(sequence) * p.heads + head) * p.splits + split) * (p.head_dim + 2);
}

// Tiles of a warp, then its sums; the warps' largest scores and sums of the softmax.
template <int DIM>
struct Smem {
  union Warp {
    struct {
      bf16 k[kWarpRows * DIM], v[kWarpRows * DIM];
    } tile;
    float o[kWarpRows][DIM];
  } warp[kWarps];
  float most[kWarps][kWarpRows], sum[kWarps][kWarpRows];
};

// Each warp goes its own way through every fourth 16 keys of the split, with the query heads of one kv head as rows.
template <int DIM>
QE_DEV void split_keys(const AttentionDecode& p) {
  const int group = p.heads / p.kv_heads, parts = (group + ATTENTION_DECODE_HEADS - 1) / ATTENTION_DECODE_HEADS;
  const int kv = static_cast<int>(blockIdx.y) / parts, part = static_cast<int>(blockIdx.y) % parts;
  const int head = kv * group + part * ATTENTION_DECODE_HEADS;
  const int heads = min(ATTENTION_DECODE_HEADS, group - part * ATTENTION_DECODE_HEADS);
  const int split = static_cast<int>(blockIdx.x), sequence = static_cast<int>(blockIdx.z);
  const Seen all = seen(p, sequence);
  const int from = max(all.first, split * ATTENTION_DECODE_KEYS);
  const int past = min(all.past, (split + 1) * ATTENTION_DECODE_KEYS);
  if (from >= past) return;

  Smem<DIM>& sm = shared<Smem<DIM>>();
  auto& own = sm.warp[warp()];
  const unsigned* pages = p.pages + static_cast<long long>(sequence) * p.width;
  // 16 keys from a multiple of 16 on are of one page.
  const auto fetch_keys = [&](bf16* tile, const bf16* data, int key) {
    if (key >= past) return;
    Rows<const bf16> rows = head_of(data, p.kv_heads, kv, p.head_dim);
    rows.at += (static_cast<long long>(pages[key / p.page]) * p.page + key % p.page) * rows.stride;
    fetch<DIM, kWarpRows, QE_WARP>(tile, rows, 0, past - key);
  };

  const bf16* q = p.q + (static_cast<long long>(sequence) * p.heads + head) * p.head_dim;
  fetch<DIM, kWarpRows, QE_WARP>(own.tile.v, head_of(q, 1, 0, p.head_dim), 0, heads);
  cp_async_commit();
  cp_async_wait<0>();
  sync_warp();  // Q complete
  Operand<DIM, true> queries;
  queries.take(own.tile.v, 0);
  sync_warp();  // Q read by the warp

  const int row = frag_row();
  float slope[2];
  for (int r = 0; r < 2; ++r) slope[r] = p.slopes != nullptr && row + 8 * r < heads ? p.slopes[head + row + 8 * r] : 0.0f;
  const bool plain = p.slopes == nullptr && !(p.softcap > 0.0f);
  const float factor = plain ? p.scale * kLog2e : kLog2e;
  float most[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0, 0};
  float o[DIM / 8][4];
  clear(o);
  const int begin = from / kWarpRows * kWarpRows + warp() * kWarpRows;
  fetch_keys(own.tile.k, p.k, begin);
  cp_async_commit();
  for (int key = begin; key < past; key += kStep) {
    fetch_keys(own.tile.v, p.v, key);
    cp_async_commit();
    cp_async_wait<1>();
    sync_warp();  // K complete
    float s[2][4];
    queries.matmul(s, own.tile.k);
    sync_warp();  // K read by the warp
    fetch_keys(own.tile.k, p.k, key + kStep);
    cp_async_commit();
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        const int j = key + 8 * n + frag_col() + e % 2;
        float slack;
        if (!plain) s[n][e] = score(p, slope[e / 2], s[n][e], j - (all.past - 1), &slack);
        if (j < from || j >= past) s[n][e] = minus_infinity();
      }
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      // Each of these tiles holds a key that is seen.
      float m = fmaxf(most[r], fmaxf(fmaxf(s[0][2 * r], s[0][2 * r + 1]), fmaxf(s[1][2 * r], s[1][2 * r + 1])));
      m = fmaxf(m, shfl_xor(m, 1));
      m = fmaxf(m, shfl_xor(m, 2));
      const float shrink = exp2_approx((most[r] - m) * factor);
      most[r] = m;
      sum[r] *= shrink;
#pragma unroll
      for (int n = 0; n < DIM / 8; ++n) {
        o[n][2 * r] *= shrink;
        o[n][2 * r + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < 2; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] = exp2_approx((s[n][e] - most[e / 2]) * factor);
        sum[e / 2] += s[n][e];
      }
    unsigned a[4];
    to_fragment(a, s, 0);
    cp_async_wait<1>();
    sync_warp();  // V complete
    matmul_cols<DIM>(o, a, own.tile.v, 0, 0);
    sync_warp();  // V read by the warp
  }
  cp_async_wait<0>();

  for (int r = 0; r < 2; ++r) {
    sum[r] += shfl_xor(sum[r], 1);
    sum[r] += shfl_xor(sum[r], 2);
    if (lane() % 4 == 0) {
      sm.most[warp()][row + 8 * r] = most[r] * factor;
      sm.sum[warp()][row + 8 * r] = sum[r];
    }
#pragma unroll
    for (int n = 0; n < DIM / 8; ++n)
      store(&own.o[row + 8 * r][8 * n + frag_col()], Pack<float, 2>{{o[n][2 * r], o[n][2 * r + 1]}});
  }
  sync_block();  // every warp's sums complete
  for (int r = warp(); r < heads; r += kWarps) {
    float m = minus_infinity(), total = 0, weight[kWarps];
    for (int w = 0; w < kWarps; ++w) m = fmaxf(m, sm.most[w][r]);
    for (int w = 0; w < kWarps; ++w) {
      weight[w] = exp2_approx(sm.most[w][r] - m);
      total += weight[w] * sm.sum[w][r];
    }
    float* to = partial_of(p, sequence, head + r, split);
    for (int c = lane(); c < p.head_dim; c += QE_WARP) {
      float x = 0;
      for (int w = 0; w < kWarps; ++w) x += weight[w] * sm.warp[w].o[r][c];
      to[c] = x;
    }
    if (lane() == 0) {
      to[p.head_dim] = m;
      to[p.head_dim + 1] = total;
    }
  }
}
}  // namespace

QE_KERNEL(attention_decode_split_32, AttentionDecode, ATTENTION_DECODE_BLOCK) { split_keys<32>(p); }
QE_KERNEL(attention_decode_split_64, AttentionDecode, ATTENTION_DECODE_BLOCK) { split_keys<64>(p); }
QE_KERNEL(attention_decode_split_80, AttentionDecode, ATTENTION_DECODE_BLOCK) { split_keys<80>(p); }
QE_KERNEL(attention_decode_split_96, AttentionDecode, ATTENTION_DECODE_BLOCK) { split_keys<96>(p); }
QE_KERNEL(attention_decode_split_128, AttentionDecode, ATTENTION_DECODE_BLOCK) { split_keys<128>(p); }
QE_KERNEL(attention_decode_split_256, AttentionDecode, ATTENTION_DECODE_BLOCK) { split_keys<256>(p); }

// A (sequence, head) a warp: the splits are added from the first to the last.
QE_KERNEL(attention_decode_merge, AttentionDecode, ATTENTION_DECODE_BLOCK) {
  const long long at = static_cast<long long>(blockIdx.x) * kWarps + warp();
  if (at >= static_cast<long long>(p.sequences) * p.heads) return;
  const int sequence = static_cast<int>(at / p.heads), head = static_cast<int>(at % p.heads);
  const Seen all = seen(p, sequence);
  if (all.first >= all.past) return;
  const int first = all.first / ATTENTION_DECODE_KEYS, last = (all.past - 1) / ATTENTION_DECODE_KEYS;
  float m = minus_infinity(), total = 0;
  for (int i = first; i <= last; ++i) m = fmaxf(m, partial_of(p, sequence, head, i)[p.head_dim]);
  for (int i = first; i <= last; ++i) {
    const float* from = partial_of(p, sequence, head, i) + p.head_dim;
    total += exp2_approx(from[0] - m) * from[1];
  }
  bf16* o = p.o + at * p.head_dim;
  for (int c = lane(); c < p.head_dim; c += QE_WARP) {
    float x = 0;
    for (int i = first; i <= last; ++i) {
      const float* from = partial_of(p, sequence, head, i);
      x += exp2_approx(from[p.head_dim] - m) * from[c];
    }
    o[c] = to_bf16(x / total);
  }
}
