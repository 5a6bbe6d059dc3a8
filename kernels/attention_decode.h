// attention_decode: attention of one query a sequence, the last, over keys and values kept in pages.
//
//   s[j] = scale * q . k[j]                         over the last `window` of the sequence's keys (all of them with 0)
//   s[j] = softcap * tanh(s[j] / softcap)           with a soft-cap
//   s[j] = s[j] + slopes[h] * (j - (length - 1))    with ALiBi
//   o    = sum_j e^s[j] * v[j] / sum_j e^s[j]
//
// Source   Dao et al. 2023, "Flash-Decoding for long-context inference"; pages: Kwon et al. 2023, arXiv:2309.06180, section 4.
// Shapes   q, o (sequences, heads * head_dim) bf16. Key j of sequence n is row pages[n * width + j / page] * page + j % page
//          of k and v (any number of pages, each `page` rows; kv_heads * head_dim) bf16. partial (sequences, heads, splits,
//          head_dim + 2) f32: of one split sum_j e^(s[j] - m) * v[j], then log2(e) * m, then sum_j e^(s[j] - m).
// Rounding p to bf16 before the product with v, not yet divided by its sum; sums in f32; o once at the end.
// Splits   Keys ATTENTION_DECODE_KEYS * i .. of the sequence are split i, whatever else is in the batch: neither the batch
//          nor `splits` changes a bit.
// Launch   split_D  grid (splits, kv_heads * ceil(heads / kv_heads / ATTENTION_DECODE_HEADS), sequences), block
//                   ATTENTION_DECODE_BLOCK; head_dim <= D; shared: ATTENTION_DECODE_BLOCK * 2 * D bytes of tiles, then
//                   ATTENTION_DECODE_BLOCK floats
//          merge    grid ceil(sequences * heads / (ATTENTION_DECODE_BLOCK / 32)), block ATTENTION_DECODE_BLOCK; after it
// Writes   o of sequences that have a key (the others are left as they are); of `partial`, the splits that hold a key.
// Bound    memory: 4 kv_heads head_dim bytes a key; 4 heads head_dim FLOP a key.
#pragma once
#include "include/abi.h"

#define ATTENTION_DECODE_BLOCK 128
#define ATTENTION_DECODE_KEYS 256
#define ATTENTION_DECODE_HEADS 16  // query heads a block: the rows of a product

typedef struct {
  bf16* o;                  // (sequences, heads * head_dim), written by merge
  float* partial;           // (sequences, heads, splits, head_dim + 2), written by split_D
  const bf16* q;            // (sequences, heads * head_dim)
  const bf16* k;            // (pages, page, kv_heads * head_dim)
  const bf16* v;            // (pages, page, kv_heads * head_dim)
  const unsigned* pages;    // (sequences, width)
  const unsigned* lengths;  // (sequences): keys, at most splits * ATTENTION_DECODE_KEYS and width * page
  const float* slopes;      // (heads) of ALiBi; null: none
  int sequences;
  int width;  // pages that a sequence can have
  int page;   // keys of a page: a multiple of 16
  int heads;
  int kv_heads;  // divides heads
  int head_dim;
  int window;  // 0: none
  int splits;
  float scale;
  float softcap;  // 0: none
} AttentionDecode;
