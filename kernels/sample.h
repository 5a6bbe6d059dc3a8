// sample: what the next token is chosen from: the largest logit, or the k largest, after penalties.
//
//   for each mark (id, count) of a row:
//     x[id] = f32(x[id] < 0 ? x[id] * repetition : x[id] / repetition)
//     x[id] = f32((x[id] - presence) - frequency * count)                    if count > 0
//   max = the largest x, id = the first that has it
//   candidates = every id with x[id] >= the k-th largest x, ascending (more than k where others equal the k-th)
//
// Source   penalties: src/infer/sample.rs. The k-th largest: radix select (Alabi et al. 2012, "Fast k-selection algorithms for
//          graphics processing units", section 3.3) on whole numbers in the order of the floats, 8 bits at a time.
// Bits     the same as src/ops/sample/cpu.rs: penalties in f64, each line rounded once to f32, no fused multiply-add; the rest
//          only compares. -0 equals 0. Counters are whole numbers, so that the order of the threads makes no difference.
// Shapes   rows (rows): where a row's logits (vocab) bf16 lie, its settings and its marks in `marks` (each id at most once in a
//          row, below vocab). parts (rows, chunks), part_ids and part_logits (rows, chunks, SAMPLE_CANDIDATES) with chunks =
//          ceil(vocab / SAMPLE_CHUNK): of a chunk, its candidates for its own k-th largest, those that equal that one only as
//          far as there is room. (They are enough: the row's k-th largest is no smaller; and where it is no larger either, the
//          row has more candidates than there is room for.)
//          heads (rows); ids, logits (rows, SAMPLE_CANDIDATES).
// Launch   split  grid (chunks, rows), block SAMPLE_BLOCK, shared sizeof(SampleSplitSmem)
//          merge  grid rows, block SAMPLE_BLOCK, shared sizeof(SampleMergeSmem); after it
// Writes   split: parts, and as many of part_ids and part_logits as they say; merge: heads, and as many of ids and logits as they
//          say. With top_k = 0 the lists are not touched and may be null.
// Bound    memory: 2 bytes a logit, read once; then at most k * chunks candidates, which lie in L2. Launches are the larger part: a
//          row of 150,000 is 300 KB. (One block a row would need no merge, but one multiprocessor alone reads those in
//          several microseconds, and four more times for the digits, since they do not fit into its memory.)
#pragma once
#include "include/abi.h"

#define SAMPLE_BLOCK 256
#define SAMPLE_CHUNK 8192       // logits a block
#define SAMPLE_CANDIDATES 1024  // of a row at most; top_k is no more
#define SAMPLE_DIGITS 256

// state
#define SAMPLE_FINE 0
#define SAMPLE_STRANGE 1  // a logit is not finite, before or after the penalties: nothing else holds
#define SAMPLE_MANY 2     // more candidates than there is room for: none is written

typedef struct {
  unsigned bins[SAMPLE_DIGITS];  // how many keys have which digit
  unsigned digit, left;          // that of the k-th largest, and its rank among those that have it
} SampleSelect;

typedef struct {
  float x[SAMPLE_CHUNK + SAMPLE_CHUNK / 32];  // one of 33 is unused, so that threads read 32 neighbours each without conflict
  SampleSelect select;
  unsigned long long best[SAMPLE_BLOCK / QE_WARP];
  unsigned counts[SAMPLE_BLOCK / QE_WARP];
} SampleSplitSmem;

typedef struct {
  SampleSelect select;
  unsigned long long best[SAMPLE_BLOCK / QE_WARP];
} SampleMergeSmem;

typedef struct {
  unsigned id;
  unsigned count;  // how often it stands in the answer; 0: in the prompt alone
} SampleMark;

typedef struct {
  unsigned long long logits;  // the address of (vocab) bf16
  double repetition;          // above 0; 1: none
  double presence;            // 0: none
  double frequency;           // 0: none
  unsigned long long marks;   // the first of its marks
  unsigned marked;            // how many it has
  unsigned top_k;             // at most SAMPLE_CANDIDATES, below vocab; 0: no candidates are asked for
} SampleRow;

typedef struct {
  unsigned long long best;  // key of the largest logit, then the complement of its id: the largest of these is the first
  unsigned count;           // candidates, also those that have no room in the lists
  unsigned kept;            // of them, those of the row
} SamplePart;

typedef struct {
  float max;
  unsigned id;
  unsigned count;  // candidates, also if they are too many
  unsigned state;
} SampleHead;

typedef struct {
  SampleHead* heads;        // (rows), written by merge
  unsigned* ids;            // (rows, SAMPLE_CANDIDATES), written by merge
  float* logits;            // (rows, SAMPLE_CANDIDATES), written by merge
  SamplePart* parts;        // (rows, chunks), written by split
  unsigned* part_ids;       // (rows, chunks, SAMPLE_CANDIDATES), written by split
  float* part_logits;       // (rows, chunks, SAMPLE_CANDIDATES), written by split
  const SampleRow* rows;    // (rows)
  const SampleMark* marks;  // those of all rows
  int vocab;
  int chunks;
} Sample;
