#include "attention.h"

#include "include/attention.cuh"

namespace {
using namespace qe;
using namespace qe::attention;

constexpr int kTile = ATTENTION_TILE;

// The spans as a (query, key) pair sees them.
struct Spans {
  const unsigned* at;
  int window;  // at most rows
  QE_DEV int rows() const { return static_cast<int>(at[0]); }
  // The keys that query i sees: from here to i.
  QE_DEV int first_key(int i) const {
    const int first = static_cast<int>(at[2 + 2LL * i]);
    return window > 0 ? max(first, i - window + 1) : first;
  }
  // The queries that see key j: from j to before here.
  QE_DEV int past_query(int j) const {
    const int past = static_cast<int>(at[3 + 2LL * j]);
    return window > 0 ? min(past, j + window) : past;
  }
};

// ---------------------------------------------------------------------------------------------------- forward
template <int DIM>
QE_DEV void forward(const AttentionFwd& p) {
  constexpr bool kKept = DIM <= 128;
  constexpr int kKeys = kTile / 8;  // fragments of a tile of keys
  const int head = static_cast<int>(blockIdx.x), kv = head / (p.heads / p.kv_heads);
  // The last tiles of a span have most keys: they go first.
  const int first = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kTile;
  const Spans spans{p.spans, p.window};
  if (first >= spans.rows()) return;
  const int past = min(first + kTile, spans.rows());
  const int begin = spans.first_key(first) / kTile * kTile, all_see = spans.first_key(past - 1);

  bf16* tiles = &shared<bf16>();
  bf16 *k_tile = tiles, *v_tile = tiles + kTile * DIM, *q_tile = kKept ? v_tile : tiles + 2 * kTile * DIM;
  const Rows<const bf16> q = head_of(p.q, p.heads, head, p.head_dim);
  const Rows<const bf16> k = head_of(p.k, p.kv_heads, kv, p.head_dim), v = head_of(p.v, p.kv_heads, kv, p.head_dim);
  fetch<DIM, kTile, ATTENTION_BLOCK>(q_tile, q, first, past);
  fetch<DIM, kTile, ATTENTION_BLOCK>(k_tile, k, first, past);
  cp_async_commit();
  cp_async_wait<0>();
  sync_block();  // Q complete
  Operand<DIM, kKept> queries;
  queries.take(q_tile, warp() * kWarpRows);

  // Of rows g and g + 8: the row, its first key, and largest score and sum of the softmax so far.
  int row[2], low[2];
  float most[2] = {minus_infinity(), minus_infinity()}, sum[2] = {0, 0};
  for (int r = 0; r < 2; ++r) {
    row[r] = first + warp() * kWarpRows + frag_row() + 8 * r;
    low[r] = row[r] < past ? spans.first_key(row[r]) : 0;
  }
  const Scores how = scores_of(p, head);
  float o[DIM / 8][4];
  clear(o);
  // From the diagonal to the left: every row sees a key in the first tile.
  for (int key = first; key >= begin; key -= kTile) {
    cp_async_wait<0>();
    sync_block();  // K complete; V of the tile before (at first, Q) read by all
    fetch<DIM, kTile, ATTENTION_BLOCK>(v_tile, v, key, past);
    cp_async_commit();
    float s[kKeys][4];
    queries.matmul(s, k_tile);
    cp_async_wait<0>();
    sync_block();  // V complete; K read by all
    if (key > begin) fetch<DIM, kTile, ATTENTION_BLOCK>(k_tile, k, key - kTile, past);
    cp_async_commit();

    if (!how.plain) {
#pragma unroll
      for (int n = 0; n < kKeys; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          float slack;
          s[n][e] = score(p, how.slope, s[n][e], key + 8 * n + frag_col() + e % 2 - row[e / 2], &slack);
        }
    }
    if (key == first || all_see > key) {
#pragma unroll
      for (int n = 0; n < kKeys; ++n)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int j = key + 8 * n + frag_col() + e % 2;
          if (j < low[e / 2] || j > row[e / 2]) s[n][e] = minus_infinity();
        }
    }
    float base[2];
#pragma unroll
    for (int r = 0; r < 2; ++r) {
      float m = most[r];
#pragma unroll
      for (int n = 0; n < kKeys; ++n) m = fmaxf(m, fmaxf(s[n][2 * r], s[n][2 * r + 1]));
      m = fmaxf(m, shfl_xor(m, 1));
      m = fmaxf(m, shfl_xor(m, 2));
      base[r] = m * how.factor;
      const float shrink = exp2_approx(most[r] * how.factor - base[r]);
      most[r] = m;
      sum[r] *= shrink;
#pragma unroll
      for (int n = 0; n < DIM / 8; ++n) {
        o[n][2 * r] *= shrink;
        o[n][2 * r + 1] *= shrink;
      }
    }
#pragma unroll
    for (int n = 0; n < kKeys; ++n)
#pragma unroll
      for (int e = 0; e < 4; ++e) {
        s[n][e] = exp2_approx(s[n][e] * how.factor - base[e / 2]);
        sum[e / 2] += s[n][e];
      }
#pragma unroll
    for (int i = 0; i < kTile / 16; ++i) {
      unsigned a[4];
      to_fragment(a, s, i);
      matmul_cols<DIM>(o, a, v_tile, i, 0);
    }
  }
  cp_async_wait<0>();

  float inverse[2];
  for (int r = 0; r < 2; ++r) {
    sum[r] += shfl_xor(sum[r], 1);
    sum[r] += shfl_xor(sum[r], 2);
    inverse[r] = 1.0f / sum[r];
    if (lane() % 4 == 0 && row[r] < past) {
      p.lse[static_cast<long long>(row[r]) * p.heads + head] = most[r] * how.factor * kLn2 + logf(sum[r]);
    }
  }
  // Nobody has read K since the last barrier.
  const Rows<bf16> to = head_of(p.o, p.heads, head, p.head_dim);
  write_result<DIM>(to, first, past, k_tile, warp() * kWarpRows, 0, o, inverse[0], inverse[1]);
}

// ---------------------------------------------------------------------------------------------------- backward
// p and ds of one pair, from the products q . k and d_o . v; lse2 is log2(e) * lse.
struct Pair {
  float p, ds;
};
template <bool PLAIN, class P>
QE_DEV Pair pair_of(const P& p, const Scores& how, float qk, float dp, float lse2, float delta, int distance) {
  float slack = 1.0f;
  if (!PLAIN) qk = score(p, how.slope, qk, distance, &slack);
  const float prob = exp2_approx(qk * how.factor - lse2);
  return {prob, p.scale * slack * prob * (dp - delta)};
}

// Queries of one tile: dq, with KEYS keys at a time.
template <int DIM, int KEYS>
QE_DEV void backward_q(const AttentionBwd& p) {
  constexpr bool kKept = DIM <= 128;
  constexpr int kPart = 32;  // keys whose scores are in registers at a time
  static_assert(!kKept || KEYS == kTile, "Q and d_o pass through the tiles of K and V");
  const int head = static_cast<int>(blockIdx.x), kv = head / (p.heads / p.kv_heads);
  const int first = static_cast<int>(gridDim.y - 1 - blockIdx.y) * kTile;
  const Spans spans{p.spans, p.window};
  if (first >= spans.rows()) return;
  const int past = min(first + kTile, spans.rows());
  const int begin = spans.first_key(first) / KEYS * KEYS, all_see = spans.first_key(past - 1);

  bf16* tiles = &shared<bf16>();
  bf16 *k_tile = tiles, *v_tile = tiles + KEYS * DIM;
  bf16* q_tile = kKept ? k_tile : tiles + 2 * KEYS * DIM;
  bf16* do_tile = kKept ? v_tile : q_tile + kTile * DIM;
  const Rows<const bf16> q = head_of(p.q, p.heads, head, p.head_dim), d_o = head_of(p.d_o, p.heads, head, p.head_dim);
  // (Where a head lies is worked out anew each time: registers are scarce.)
  const auto fetch_k = [&](int key) {
    fetch<DIM, KEYS, ATTENTION_BLOCK>(k_tile, head_of(p.k, p.kv_heads, kv, p.head_dim), key, past);
  };
  const auto fetch_v = [&](int key) {
    fetch<DIM, KEYS, ATTENTION_BLOCK>(v_tile, head_of(p.v, p.kv_heads, kv, p.head_dim), key, past);
  };
  fetch<DIM, kTile, ATTENTION_BLOCK>(q_tile, q, first, past);
  fetch<DIM, kTile, ATTENTION_BLOCK>(do_tile, d_o, first, past);
  cp_async_commit();
  cp_async_wait<0>();
  sync_block();  // Q and d_o complete
  const int own = warp() * kWarpRows;
  Operand<DIM, kKept> queries, d_outs;
  queries.take(q_tile, own);
  d_outs.take(do_tile, own);
  if (kKept) sync_block();  // Q and d_o read by all

  int row[2], low[2];
  float lse2[2] = {0, 0}, delta[2] = {0, 0};
  for (int r = 0; r < 2; ++r) {
    row[r] = first + own + frag_row() + 8 * r;
    low[r] = 0;
    if (row[r] < past) {
      const long long at = static_cast<long long>(row[r]) * p.heads + head;
      low[r] = spans.first_key(row[r]);
      lse2[r] = p.lse[at] * kLog2e;
      delta[r] = p.delta[at];
    }
  }
  const Scores how = scores_of(p, head);
  float dq[DIM / 8][4];
  clear(dq);
  fetch_v(begin);
  cp_async_commit();
  fetch_k(begin);
  cp_async_commit();
  for (int key = begin; key < past; key += KEYS) {
    const bool more = key + KEYS < past;
    float dp[KEYS / 8][4];
    cp_async_wait<1>();
    sync_block();  // V complete
    d_outs.matmul(dp, v_tile);
    cp_async_wait<0>();
    sync_block();  // K complete; V read by all
    if (more) fetch_v(key + KEYS);
    cp_async_commit();
    const bool masked = key + KEYS > first || all_see > key;
#pragma unroll
    for (int part = 0; part < KEYS; part += kPart) {
      float s[kPart / 8][4];
      queries.matmul(s, k_tile + part * DIM);
      const int at = key + part + frag_col();  // the key of s[0][0]
      with_plain(how, [&](auto plain) {
#pragma unroll
        for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int distance = at + 8 * n + e % 2 - row[e / 2];
            s[n][e] = pair_of<plain.value>(p, how, s[n][e], dp[part / 8 + n][e], lse2[e / 2], delta[e / 2], distance).ds;
          }
      });
      if (masked) {
#pragma unroll
        for (int n = 0; n < kPart / 8; ++n)
#pragma unroll
          for (int e = 0; e < 4; ++e) {
            const int j = at + 8 * n + e % 2;
            if (j < low[e / 2] || j > row[e / 2]) s[n][e] = 0;
          }
      }
#pragma unroll
      for (int i = 0; i < kPart / 16; ++i) {
        unsigned a[4];
        to_fragment(a, s, i);
        matmul_cols<DIM>(dq, a, k_tile, part / 16 + i, 0);
      }
    }
    sync_block();  // K read by all
    if (more) fetch_k(key + KEYS);
    cp_async_commit();
  }
  cp_async_wait<0>();
  // Nobody reads K any more; of Q's tile, each warp has read its own rows only.
  const Rows<bf16> to = head_of(p.dq, p.heads, head, p.head_dim);
  write_result<DIM>(to, first, past, q_tile, own, 0, dq, 1.0f, 1.0f);
}

template <int DIM, int QUERIES>
struct KvSmem {
  bf16 k[kTile * DIM], v[kTile * DIM], q[QUERIES * DIM], d_o[QUERIES * DIM];
  float lse[QUERIES], delta[QUERIES];
};

// Keys of one tile: dk and dv. Scores are computed transposed (keys by queries), so that p and ds are A fragments of the
// products that follow. PARTS warps share 16 keys: each has the same scores, and its part of the columns of dk and dv.
template <int DIM, int QUERIES, int PARTS>
QE_DEV void backward_kv(const AttentionBwd& p) {
  constexpr int kThreads = ATTENTION_BLOCK * PARTS, kColumns = DIM / PARTS / 8;
  const int kv = static_cast<int>(blockIdx.x), group = p.heads / p.kv_heads;
  // The first tiles of a span have most queries.
  const int first = static_cast<int>(blockIdx.y) * kTile;
  const Spans spans{p.spans, p.window};
  if (first >= spans.rows()) return;
  const int past = min(first + kTile, spans.rows());
  // Queries first .. end see some key of the tile; those before all_seen, past the diagonal, see all.
  const int end = spans.past_query(past - 1), all_seen = past - first == kTile ? spans.past_query(first) : 0;

  KvSmem<DIM, QUERIES>& sm = shared<KvSmem<DIM, QUERIES>>();
  const Rows<const bf16> k = head_of(p.k, p.kv_heads, kv, p.head_dim), v = head_of(p.v, p.kv_heads, kv, p.head_dim);
  // A step: QUERIES queries from `query` on of one head of the group; then the next ones, then the next head's.
  struct Turn {
    int head, query;
  };
  const int past_head = (kv + 1) * group;
  const auto after = [&](const Turn& x) {
    return x.query + QUERIES < end ? Turn{x.head, x.query + QUERIES} : Turn{x.head + 1, first};
  };
  const auto fetch_do = [&](const Turn& x) {
    fetch<DIM, QUERIES, kThreads>(sm.d_o, head_of(p.d_o, p.heads, x.head, p.head_dim), x.query, end);
  };
  const auto fetch_q = [&](const Turn& x) {
    fetch<DIM, QUERIES, kThreads>(sm.q, head_of(p.q, p.heads, x.head, p.head_dim), x.query, end);
    const int t = static_cast<int>(threadIdx.x);
    if (t < QUERIES) {
      const bool valid = x.query + t < end;
      const long long at = valid ? static_cast<long long>(x.query + t) * p.heads + x.head : 0;
      cp_async4(&sm.lse[t], p.lse + at, valid);
      cp_async4(&sm.delta[t], p.delta + at, valid);
    }
  };
  fetch<DIM, kTile, kThreads>(sm.v, v, first, past);
  Turn now{kv * group, first};
  fetch_do(now);
  cp_async_commit();
  fetch<DIM, kTile, kThreads>(sm.k, k, first, past);
  fetch_q(now);
  cp_async_commit();

  const int own = warp() / PARTS * kWarpRows, chunk = warp() % PARTS * kColumns;
  Operand<DIM, false> keys, values;
  keys.take(sm.k, own);
  values.take(sm.v, own);
  int row[2], high[2];
  for (int r = 0; r < 2; ++r) {
    row[r] = first + own + frag_row() + 8 * r;
    high[r] = row[r] < past ? spans.past_query(row[r]) : 0;
  }
  float dk[kColumns][4], dv[kColumns][4];
  clear(dk);
  clear(dv);
  while (now.head < past_head) {
    const Turn next = after(now);
    const bool more = next.head < past_head;
    const Scores how = scores_of(p, now.head);
    float s[QUERIES / 8][4], dp[QUERIES / 8][4];
    cp_async_wait<1>();
    sync_block();  // d_o (at first V too) complete
    values.matmul(dp, sm.d_o);
    cp_async_wait<0>();
    sync_block();  // Q, lse, delta (at first K too) complete
    keys.matmul(s, sm.q);
    const int at = now.query + frag_col();  // the query of s[0][0]
    with_plain(how, [&](auto plain) {
#pragma unroll
      for (int c = 0; c < QUERIES / 8; ++c) {
        const Pack<float, 2> lse = load<2>(&sm.lse[8 * c + frag_col()]), delta = load<2>(&sm.delta[8 * c + frag_col()]);
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int distance = row[e / 2] - (at + 8 * c + e % 2);
          const Pair x =
              pair_of<plain.value>(p, how, s[c][e], dp[c][e], lse.v[e % 2] * kLog2e, delta.v[e % 2], distance);
          s[c][e] = x.p;
          dp[c][e] = x.ds;
        }
      }
    });
    if (now.query < first + kTile || now.query + QUERIES > all_seen) {
#pragma unroll
      for (int c = 0; c < QUERIES / 8; ++c)
#pragma unroll
        for (int e = 0; e < 4; ++e) {
          const int i = at + 8 * c + e % 2;
          if (i < row[e / 2] || i >= high[e / 2]) s[c][e] = dp[c][e] = 0;
        }
    }
#pragma unroll
    for (int i = 0; i < QUERIES / 16; ++i) {
      unsigned a[4];
      to_fragment(a, s, i);
      matmul_cols<DIM>(dv, a, sm.d_o, i, chunk);
    }
    sync_block();  // d_o read by all
    if (more) fetch_do(next);
    cp_async_commit();
#pragma unroll
    for (int i = 0; i < QUERIES / 16; ++i) {
      unsigned a[4];
      to_fragment(a, dp, i);
      matmul_cols<DIM>(dk, a, sm.q, i, chunk);
    }
    sync_block();  // Q, lse, delta read by all; at the end K and V too
    if (more) fetch_q(next);
    cp_async_commit();
    now = next;
  }
  cp_async_wait<0>();
  const Rows<bf16> to_k = head_of(p.dk, p.kv_heads, kv, p.head_dim), to_v = head_of(p.dv, p.kv_heads, kv, p.head_dim);
  write_result<DIM>(to_k, first, past, sm.k, own, chunk, dk, 1.0f, 1.0f);
  write_result<DIM>(to_v, first, past, sm.v, own, chunk, dv, 1.0f, 1.0f);
}
}  // namespace

QE_KERNEL(attention_fwd_32, AttentionFwd, ATTENTION_BLOCK) { forward<32>(p); }
QE_KERNEL(attention_fwd_64, AttentionFwd, ATTENTION_BLOCK) { forward<64>(p); }
QE_KERNEL(attention_fwd_80, AttentionFwd, ATTENTION_BLOCK) { forward<80>(p); }
QE_KERNEL(attention_fwd_96, AttentionFwd, ATTENTION_BLOCK) { forward<96>(p); }
QE_KERNEL(attention_fwd_128, AttentionFwd, ATTENTION_BLOCK) { forward<128>(p); }
QE_KERNEL(attention_fwd_256, AttentionFwd, ATTENTION_BLOCK) { forward<256>(p); }

// A (row, head) a warp.
QE_KERNEL(attention_bwd_delta, AttentionBwd, ATTENTION_BLOCK) {
  const long long at = static_cast<long long>(blockIdx.x) * (ATTENTION_BLOCK / QE_WARP) + warp();
  if (at >= static_cast<long long>(p.spans[0]) * p.heads) return;
  const bf16 *o = p.o + at * p.head_dim, *d_o = p.d_o + at * p.head_dim;
  float sum = 0;
  if (packs<kPack>(o, p.head_dim) && packs<kPack>(d_o, p.head_dim)) {
    for (int c = lane() * kPack; c < p.head_dim; c += QE_WARP * kPack) {
      const Pack<bf16, kPack> x = load<kPack>(o + c), y = load<kPack>(d_o + c);
      for (int i = 0; i < kPack; ++i) sum += f32(x.v[i]) * f32(y.v[i]);
    }
  } else {
    for (int c = lane(); c < p.head_dim; c += QE_WARP) sum += f32(o[c]) * f32(d_o[c]);
  }
  sum = warp_sum(sum);
  if (lane() == 0) p.delta[at] = sum;
}

QE_KERNEL(attention_bwd_q_32, AttentionBwd, ATTENTION_BLOCK) { backward_q<32, 64>(p); }
QE_KERNEL(attention_bwd_q_64, AttentionBwd, ATTENTION_BLOCK) { backward_q<64, 64>(p); }
QE_KERNEL(attention_bwd_q_80, AttentionBwd, ATTENTION_BLOCK) { backward_q<80, 64>(p); }
QE_KERNEL(attention_bwd_q_96, AttentionBwd, ATTENTION_BLOCK) { backward_q<96, 64>(p); }
QE_KERNEL(attention_bwd_q_128, AttentionBwd, ATTENTION_BLOCK) { backward_q<128, 64>(p); }
QE_KERNEL(attention_bwd_q_256, AttentionBwd, ATTENTION_BLOCK) { backward_q<256, 32>(p); }

QE_KERNEL(attention_bwd_kv_32, AttentionBwd, ATTENTION_BLOCK) { backward_kv<32, ATTENTION_QUERIES_32, 1>(p); }
QE_KERNEL(attention_bwd_kv_64, AttentionBwd, ATTENTION_BLOCK) { backward_kv<64, ATTENTION_QUERIES_64, 1>(p); }
QE_KERNEL(attention_bwd_kv_80, AttentionBwd, ATTENTION_BLOCK) { backward_kv<80, ATTENTION_QUERIES_80, 1>(p); }
QE_KERNEL(attention_bwd_kv_96, AttentionBwd, ATTENTION_BLOCK) { backward_kv<96, ATTENTION_QUERIES_96, 1>(p); }
QE_KERNEL(attention_bwd_kv_128, AttentionBwd, ATTENTION_BLOCK) { backward_kv<128, ATTENTION_QUERIES_128, 1>(p); }
QE_KERNEL(attention_bwd_kv_256, AttentionBwd, 2 * ATTENTION_BLOCK) { backward_kv<256, ATTENTION_QUERIES_256, 2>(p); }
