// attention: causal attention over sequences (spans) laid end to end, with grouped queries and an optional sliding window.
//
//   forward    s[i,j] = scale * q[i] . k[j]                       over the keys j that query i sees
//              s[i,j] = softcap * tanh(s[i,j] / softcap)          with a soft-cap
//              s[i,j] = s[i,j] + slopes[h] * (j - i)              with ALiBi
//              lse[i] = log sum_j e^s[i,j];  o[i] = sum_j e^(s[i,j] - lse[i]) * v[j]
//   backward   p[i,j] = e^(s[i,j] - lse[i]);  delta[i] = sum_c o[i,c] * d_o[i,c]
//              ds[i,j] = scale * p[i,j] * (d_o[i] . v[j] - delta[i])   (* 1 - tanh^2 with a soft-cap)
//              dv[j] = sum_i p[i,j] * d_o[i];  dk[j] = sum_i ds[i,j] * q[i];  dq[i] = sum_j ds[i,j] * k[j]
//
// Query i sees key j if both are of one span, j <= i, and j > i - window.
//
// Source   Dao et al. 2022, arXiv:2205.14135, appendix B; Dao 2023, arXiv:2307.08691, sections 3.1 and 3.2.
// Shapes   q, o, d_o, dq (rows, heads * head_dim); k, v, dk, dv (rows, kv_heads * head_dim) bf16; lse, delta (rows, heads) f32.
//          spans: spans[0] is the number of rows that belong to a span (they come first), spans[1] is not read, and
//          spans[2 + 2 i], spans[3 + 2 i] are the first row of row i's span and the row past its last.
// Rounding p and ds to bf16 before the products (p before it is divided by its sum in the forward); sums in f32; o, dq, dk,
//          dv once at the end.
// Tiles    Queries and keys in tiles of ATTENTION_TILE rows, counted from row 0 of the tensors and not from a span's start:
//          the grid is then a matter of `rows` alone, and short spans share a tile. A (query tile, key tile) pair where
//          nobody sees anything is not computed. A span's bits depend on its place within a tile, and on nothing else
//          in the batch.
// Launch   The suffix is the head size in shared memory, in which head_dim <= the suffix is padded with zeros.
//          fwd_D      grid (heads, ceil(rows / ATTENTION_TILE)), block ATTENTION_BLOCK, shared tiles K, V (and Q above 128)
//          bwd_delta  grid ceil(rows * heads / (ATTENTION_BLOCK / 32)), block ATTENTION_BLOCK; before the other two
//          bwd_q_D    grid as fwd, block ATTENTION_BLOCK; shared K, V of ATTENTION_TILE keys, or above 128 of half as many
//                     beside Q and d_o of ATTENTION_TILE queries
//          bwd_kv_D   grid (kv_heads, ceil(rows / ATTENTION_TILE)), block ATTENTION_BLOCK, above 128 twice that; shared K and
//                     V of ATTENTION_TILE keys, Q, d_o, lse and delta of ATTENTION_QUERIES_D queries
// Writes   Rows that belong to a span are overwritten, the others left as they are (and never read into a result).
// Bound    tensor cores: with n pairs that see each other, forward 4 n heads head_dim FLOP, backward 14 n heads head_dim
//          (bwd_q 6, bwd_kv 8; bwd_kv above 128 12, since two warps compute the same scores).
#pragma once
#include "include/abi.h"

#define ATTENTION_TILE 64
#define ATTENTION_BLOCK 128  // 16 rows a warp
// Queries that bwd_kv holds at a time, so that two blocks fit on a multiprocessor of 100 KB.
#define ATTENTION_QUERIES_32 32
#define ATTENTION_QUERIES_64 64
#define ATTENTION_QUERIES_80 64
#define ATTENTION_QUERIES_96 32
#define ATTENTION_QUERIES_128 32
#define ATTENTION_QUERIES_256 32

typedef struct {
  bf16* o;                // (rows, heads * head_dim), written
  float* lse;             // (rows, heads), written
  const bf16* q;          // (rows, heads * head_dim)
  const bf16* k;          // (rows, kv_heads * head_dim)
  const bf16* v;          // (rows, kv_heads * head_dim)
  const unsigned* spans;  // (rows + 1, 2)
  const float* slopes;    // (heads) of ALiBi; null: none
  int heads;
  int kv_heads;  // divides heads
  int head_dim;
  int window;     // keys a query sees, itself included; 0: all before it
  float scale;    // above 0
  float softcap;  // 0: none
} AttentionFwd;

typedef struct {
  bf16* dq;               // (rows, heads * head_dim), written by bwd_q
  bf16* dk;               // (rows, kv_heads * head_dim), written by bwd_kv
  bf16* dv;               // (rows, kv_heads * head_dim), written by bwd_kv
  float* delta;           // (rows, heads), written by bwd_delta
  const bf16* q;          // (rows, heads * head_dim)
  const bf16* k;          // (rows, kv_heads * head_dim)
  const bf16* v;          // (rows, kv_heads * head_dim)
  const bf16* o;          // (rows, heads * head_dim)
  const bf16* d_o;        // (rows, heads * head_dim)
  const float* lse;       // (rows, heads)
  const unsigned* spans;  // as above
  const float* slopes;
  int heads;
  int kv_heads;
  int head_dim;
  int window;
  float scale;
  float softcap;
} AttentionBwd;
