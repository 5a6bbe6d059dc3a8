// columns: a matrix that stands in some columns of another, copied out of it or into it.
//
//   to[r, c] = from[r, c], row r of `to` at to + r * to_stride, of `from` at from + r * from_stride
//
// Shapes   rows of cols bf16 each; strides in elements, at least cols.
// Launch   a row a block, grid = rows, block = COLUMNS_BLOCK or fewer whole warps.
// Writes   the live rows of `to`, and nothing between them.
// Bound    memory: 4 bytes an element.
#pragma once
#include "include/abi.h"

#define COLUMNS_BLOCK 256
#define COLUMNS_PACK 8

typedef struct {
  bf16* to;              // rows of cols, written
  const bf16* from;      // rows of cols
  const unsigned* live;  // rows that hold something; null: all
  long long rows;
  int cols;
  int to_stride;
  int from_stride;
} ColumnsCopy;
