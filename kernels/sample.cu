#include "sample.h"

#include "include/qe.cuh"

namespace {
using namespace qe;

constexpr int kPack = 8;  // bf16 in 16 bytes
constexpr int kWarps = SAMPLE_BLOCK / QE_WARP;
constexpr int kOwn = SAMPLE_CHUNK / SAMPLE_BLOCK;  // neighbouring logits that a thread looks at
static_assert(kOwn == 32, "a pad behind 32 logits leaves every thread a bank of its own");
static_assert(SAMPLE_CHUNK < 1 << 16, "two counts of a chunk fit into a word");
static_assert(SAMPLE_DIGITS == QE_WARP * 8, "a lane adds up 8 bins");

constexpr unsigned kStrange = 0xFFFFFFFFu;  // the key of what is no finite number, above all others
constexpr unsigned kNone = 0;               // of a logit that is not there, below all others

// Whole numbers in the order of the floats; -0 is 0.
QE_DEV unsigned key_of(float x) {
  const unsigned bits = __float_as_uint(x);
  if ((bits & 0x7F800000u) == 0x7F800000u) return kStrange;
  if ((bits & 0x7FFFFFFFu) == 0) return 0x80000000u;
  return bits & 0x80000000u ? ~bits : bits | 0x80000000u;
}
QE_DEV float float_of(unsigned key) { return __uint_as_float(key & 0x80000000u ? key & 0x7FFFFFFFu : ~key); }

// How many candidates of a chunk are listed.
QE_DEV int listed(const SamplePart& part) { return min(static_cast<int>(part.count), SAMPLE_CANDIDATES); }

QE_DEV int place(int i) { return i + i / kOwn; }

// The arithmetic of src/ops/sample/cpu.rs, to the bit.
QE_DEV float penalised(float logit, const SampleRow& r, unsigned count) {
  double x = static_cast<double>(logit);
  x = static_cast<double>(static_cast<float>(x < 0 ? __dmul_rn(x, r.repetition) : __ddiv_rn(x, r.repetition)));
  if (count > 0) {
    x = __dadd_rn(__dadd_rn(x, -r.presence), -__dmul_rn(r.frequency, static_cast<double>(count)));
  }
  return static_cast<float>(x);
}

typedef unsigned long long Best;
QE_DEV Best best_of(unsigned key, unsigned id) { return static_cast<Best>(key) << 32 | ~id; }
QE_DEV unsigned key_of(Best best) { return static_cast<unsigned>(best >> 32); }

// The largest over the block, the same in every thread. `partial` may not be used again before a barrier.
QE_DEV Best block_best(Best v, Best* partial) {
  for (int m = QE_WARP / 2; m > 0; m /= 2) {
    const Best other = shfl_xor(v, m);
    v = other > v ? other : v;
  }
  if (lane() == 0) partial[warp()] = v;
  sync_block();  // partial[] complete
  for (int w = 0; w < kWarps; ++w) v = partial[w] > v ? partial[w] : v;
  return v;
}

// Sum over the lanes before this one.
QE_DEV unsigned warp_sum_before(unsigned v) {
  unsigned sum = v;
  for (int d = 1; d < QE_WARP; d *= 2) {
    const unsigned other = shfl(sum, lane() - d);
    if (lane() >= d) sum += other;
  }
  return sum - v;
}

// The k-th largest key of the block, of at least k. each(f) calls f with every key that is the thread's.
template <class Each>
QE_DEV unsigned kth_largest(const Each& each, unsigned k, SampleSelect& s) {
  unsigned prefix = 0, mask = 0;  // the digits that are known, and where they stand
  for (int shift = 24; shift >= 0; shift -= 8) {
    for (int b = static_cast<int>(threadIdx.x); b < SAMPLE_DIGITS; b += SAMPLE_BLOCK) s.bins[b] = 0;
    sync_block();  // bins[] cleared; digit and left of the last round read by all
    each([&](unsigned key) {
      if ((key & mask) == prefix) add_shared(&s.bins[key >> shift & 255], 1u);
    });
    sync_block();  // bins[] complete
    if (warp() == 0) {
      // A lane's bins, from the highest digit down.
      const int first = SAMPLE_DIGITS - 1 - lane() * 8;
      unsigned own = 0;
      for (int b = first; b > first - 8; --b) own += s.bins[b];
      unsigned above = warp_sum_before(own);
      if (above < k && k <= above + own) {
        int b = first;
        for (; k > above + s.bins[b]; --b) above += s.bins[b];
        s.digit = static_cast<unsigned>(b);
        s.left = k - above;
      }
    }
    sync_block();  // digit and left complete
    prefix |= s.digit << shift;
    mask |= 255u << shift;
    k = s.left;
  }
  return prefix;
}

// Logits first .. first + n of a row, in f32, penalised, in shared memory.
QE_DEV void read(const Sample& p, const SampleRow& r, long long first, int n, float* x) {
  const bf16* from = reinterpret_cast<const bf16*>(r.logits) + first;
  const int whole = packs<kPack>(from, 0) ? n / kPack * kPack : 0;
  for (int i = static_cast<int>(threadIdx.x) * kPack; i < whole; i += SAMPLE_BLOCK * kPack) {
    const Pack<bf16, kPack> pack = load<kPack>(from + i);
    for (int j = 0; j < kPack; ++j) x[place(i + j)] = f32(pack.v[j]);
  }
  for (int i = whole + static_cast<int>(threadIdx.x); i < n; i += SAMPLE_BLOCK) x[place(i)] = f32(from[i]);
  sync_block();  // x[] complete
  for (unsigned m = threadIdx.x; m < r.marked; m += SAMPLE_BLOCK) {
    const SampleMark mark = p.marks[r.marks + m];
    const long long at = static_cast<long long>(mark.id) - first;
    if (at < 0 || at >= n) continue;
    float& logit = x[place(static_cast<int>(at))];
    // What is not finite stays so: a penalty may not hide it.
    if (key_of(logit) != kStrange) logit = penalised(logit, r, mark.count);
  }
  sync_block();  // penalties complete
}
}  // namespace

QE_KERNEL(sample_split, Sample, SAMPLE_BLOCK) {
  SampleSplitSmem& s = shared<SampleSplitSmem>();
  const SampleRow r = p.rows[blockIdx.y];
  const long long first = static_cast<long long>(blockIdx.x) * SAMPLE_CHUNK;
  const int n = static_cast<int>(min(p.vocab - first, static_cast<long long>(SAMPLE_CHUNK)));
  read(p, r, first, n, s.x);

  const int own = static_cast<int>(threadIdx.x) * kOwn;
  unsigned key[kOwn];
  Best best = 0;
#pragma unroll
  for (int i = 0; i < kOwn; ++i) {
    key[i] = own + i < n ? key_of(s.x[place(own + i)]) : kNone;
    const Best other = best_of(key[i], static_cast<unsigned>(first + own + i));
    best = other > best ? other : best;
  }
  best = block_best(best, s.best);

  const long long part = static_cast<long long>(blockIdx.y) * p.chunks + blockIdx.x;
  unsigned count = 0;
  if (r.top_k > 0 && key_of(best) != kStrange) {
    unsigned least = kNone + 1;
    if (static_cast<unsigned>(n) > r.top_k) {
      least = kth_largest(
          [&](auto f) {
#pragma unroll
            for (int i = 0; i < kOwn; ++i)
              if (own + i < n) f(key[i]);
          },
          r.top_k, s.select);
    }
    // Those above it and those that equal it, of this thread and of the threads before.
    unsigned counts = 0;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) counts += key[i] > least ? 1u << 16 : key[i] == least ? 1u : 0u;
    unsigned before = warp_sum_before(counts), all = 0;
    if (lane() == QE_WARP - 1) s.counts[warp()] = before + counts;
    sync_block();  // counts[] complete
    for (int w = 0; w < kWarps; ++w) {
      if (w < warp()) before += s.counts[w];
      all += s.counts[w];
    }
    const unsigned room = SAMPLE_CANDIDATES - (all >> 16);  // at least 1: fewer than k are above the k-th
    unsigned equal = before & 0xFFFF, at = (before >> 16) + (equal < room ? equal : room);
    count = (all >> 16) + (all & 0xFFFF);
    unsigned* ids = p.part_ids + part * SAMPLE_CANDIDATES;
    float* logits = p.part_logits + part * SAMPLE_CANDIDATES;
#pragma unroll
    for (int i = 0; i < kOwn; ++i) {
      if (key[i] > least || (key[i] == least && equal++ < room)) {
        ids[at] = static_cast<unsigned>(first + own + i);
        logits[at++] = float_of(key[i]);
      }
    }
  }
  if (threadIdx.x == 0) {
    p.parts[part].best = best;
    p.parts[part].count = count;
  }
}

QE_KERNEL(sample_merge, Sample, SAMPLE_BLOCK) {
  SampleMergeSmem& s = shared<SampleMergeSmem>();
  const long long row = blockIdx.x;
  const unsigned k = p.rows[row].top_k;
  SamplePart* parts = p.parts + row * p.chunks;
  Best best = 0;
  for (int c = static_cast<int>(threadIdx.x); c < p.chunks; c += SAMPLE_BLOCK) best = parts[c].best > best ? parts[c].best : best;
  best = block_best(best, s.best);
  SampleHead head = {float_of(key_of(best)), ~static_cast<unsigned>(best), 0, SAMPLE_FINE};
  if (key_of(best) == kStrange) head.state = SAMPLE_STRANGE;

  if (k > 0 && head.state == SAMPLE_FINE) {
    const unsigned* part_ids = p.part_ids + row * p.chunks * SAMPLE_CANDIDATES;
    const float* part_logits = p.part_logits + row * p.chunks * SAMPLE_CANDIDATES;
    // A chunk a warp.
    const unsigned least = kth_largest(
        [&](auto f) {
          for (int c = warp(); c < p.chunks; c += kWarps) {
            const float* logits = part_logits + static_cast<long long>(c) * SAMPLE_CANDIDATES;
            for (int i = lane(); i < listed(parts[c]); i += QE_WARP) f(key_of(logits[i]));
          }
        },
        k, s.select);
    for (int c = warp(); c < p.chunks; c += kWarps) {
      const float* logits = part_logits + static_cast<long long>(c) * SAMPLE_CANDIDATES;
      const int count = listed(parts[c]);
      unsigned kept = 0;
      for (int i = 0; i < count; i += QE_WARP)
        kept += __popc(qe::ballot(i + lane() < count && key_of(logits[i + lane()]) >= least));
      // Where all of a list is kept, what had no room in it equals the last of them.
      if (lane() == 0) parts[c].kept = kept == SAMPLE_CANDIDATES ? parts[c].count : kept;
    }
    sync_block();  // kept of all chunks complete
    for (int c = 0; c < p.chunks; ++c) head.count += parts[c].kept;
    if (head.count > SAMPLE_CANDIDATES) head.state = SAMPLE_MANY;
    unsigned at = 0;
    for (int c = 0; c < p.chunks && head.state == SAMPLE_FINE; ++c) {
      const float* logits = part_logits + static_cast<long long>(c) * SAMPLE_CANDIDATES;
      const unsigned* ids = part_ids + static_cast<long long>(c) * SAMPLE_CANDIDATES;
      const int count = c % kWarps == warp() ? listed(parts[c]) : 0;
      unsigned to = at;
      for (int i = 0; i < count; i += QE_WARP) {
        const bool keep = i + lane() < count && key_of(logits[i + lane()]) >= least;
        const unsigned kept = qe::ballot(keep);
        if (keep) {
          const long long place = row * SAMPLE_CANDIDATES + to + __popc(kept & ((1u << lane()) - 1));
          p.ids[place] = ids[i + lane()];
          p.logits[place] = logits[i + lane()];
        }
        to += __popc(kept);
      }
      at += parts[c].kept;
    }
  }
  if (threadIdx.x == 0) p.heads[row] = head;
}
