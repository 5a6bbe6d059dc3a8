// kv_write: the keys and values of new tokens, each into its row of the cache.
//
//   cache_k[at[r]] = k[r],  cache_v[at[r]] = v[r]      for the live rows r; no row of the cache twice
//
// Shapes   k, v (rows, cols), cache_k, cache_v (any, cols) bf16; at (rows), each a row of the cache.
// Launch   grid = ceil(rows / (KV_WRITE_BLOCK / 32)), block = KV_WRITE_BLOCK: a row of both a warp.
// Writes   the named rows of the cache; the others are left as they are.
// Bound    memory: 8 bytes an element (k and v, read and written).
#pragma once
#include "include/abi.h"

#define KV_WRITE_BLOCK 128

typedef struct {
  bf16* cache_k;         // (any, cols), rows `at` written
  bf16* cache_v;         // (any, cols), rows `at` written
  const bf16* k;         // (rows, cols)
  const bf16* v;         // (rows, cols)
  const unsigned* at;    // (rows)
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
  int cols;
} KvWrite;
