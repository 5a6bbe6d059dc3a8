#include "nf4.h"

#include "include/nf4.cuh"
#include "include/qe.cuh"
#include "include/stream.cuh"

namespace {
using namespace qe;

constexpr int kPack = 8;                                 // codes in a 4-byte word, elements a lane works on at a time
constexpr int kSharers = NF4_BLOCK / kPack;         // neighbouring lanes that hold a block
constexpr int kWarpTile = NF4_DEQUANTISE_TILE / (NF4_THREADS / QE_WARP);
constexpr int kRounds = kWarpTile / (QE_WARP * kPack);
constexpr int kAbsmaxThreads = NF4_BLOCK2;
static_assert(NF4_QUANTISE_TILE == NF4_THREADS * kPack, "8 elements a thread");
static_assert(kRounds * QE_WARP * kPack == kWarpTile && kWarpTile / NF4_BLOCK < QE_WARP, "a lane decodes an absmax");

struct DequantiseSmem {
  float code[16];
};
struct MeanSmem {
  double lane[NF4_MEAN_LANES];
};
struct AbsmaxSmem {
  float code2[NF4_BLOCK2];
  float warp_max[kAbsmaxThreads / QE_WARP];
};

QE_DEV Pack<float, kPack> read(const bf16* x) {
  const Pack<bf16, kPack> b = load<kPack>(x);
  Pack<float, kPack> v;
  for (int i = 0; i < kPack; ++i) v.v[i] = f32(b.v[i]);
  return v;
}
QE_DEV Pack<float, kPack> read(const float* x) {
  const Pack<float, 4> a = load<4>(x), b = load<4>(x + 4);
  Pack<float, kPack> v;
  for (int i = 0; i < 4; ++i) v.v[i] = a.v[i], v.v[4 + i] = b.v[i];
  return v;
}
QE_DEV float as_f32(bf16 x) { return f32(x); }
QE_DEV float as_f32(float x) { return x; }

template <class T>
QE_DEV bool aligned16(const T* at) {
  return reinterpret_cast<unsigned long long>(at) % 16 == 0;
}

// Number of midpoints strictly below `x`.
QE_DEV unsigned nearest(float x) {
  unsigned count = 0;
#pragma unroll
  for (int i = 0; i < 15; ++i) count += x > (kNf4Code[i] + kNf4Code[i + 1]) * 0.5f ? 1u : 0u;
  return count;
}

// Eight lanes quantise a block together, eight neighbouring elements each.
template <class T>
QE_DEV void quantise(const Nf4Quantise& p, const T* x) {
  const long long at = static_cast<long long>(blockIdx.x) * NF4_QUANTISE_TILE + threadIdx.x * kPack;
  const int count = static_cast<int>(max(min(p.n - at, static_cast<long long>(kPack)), 0LL));
  Pack<float, kPack> v = {};
  if (count == kPack && aligned16(x)) v = read(x + at);
  else
    for (int i = 0; i < kPack; ++i) v.v[i] = i < count ? as_f32(x[at + i]) : 0.0f;
  // Without sign the bits of floats order as the floats do, with infinity and then NaN on top.
  unsigned top = 0;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const unsigned bits = __float_as_uint(v.v[i]) & 0x7FFFFFFFu;
    top = bits > top ? bits : top;
  }
#pragma unroll
  for (int m = 1; m < kSharers; m *= 2) {
    const unsigned other = shfl_xor(top, m);
    top = other > top ? other : top;
  }
  if (count == 0) return;
  float absmax = __uint_as_float(top);
  const long long block = at / NF4_BLOCK;
  const bool whole = (block + 1) * NF4_BLOCK <= p.n;
  const float divisor = fmaxf(absmax, static_cast<float>(NF4_TINY));
  const float inverse = __frcp_rn(divisor);
  if (!whole && absmax == absmax) absmax = divisor;
  if (static_cast<int>(threadIdx.x) % kSharers == 0) p.absmax[block] = absmax;
  unsigned word = 0;
#pragma unroll
  for (int i = 0; i < kPack; ++i) {
    const float scaled = whole ? __fmul_rn(v.v[i], inverse) : __fdiv_rn(v.v[i], divisor);
    const unsigned code = i < count ? nearest(scaled) : NF4_ZERO;
    word |= code << (i / 2 * 8 + (i % 2 == 0 ? 4 : 0));
  }
  if (count == kPack) *reinterpret_cast<unsigned*>(p.packed + at / 2) = word;
  else
    for (int i = 0; i < (count + 1) / 2; ++i) p.packed[at / 2 + i] = static_cast<unsigned char>(word >> (i * 8));
}

QE_DEV void write(bf16* y, const float (&v)[kPack]) {
  Pack<unsigned, kPack / 2> out;
#pragma unroll
  for (int i = 0; i < kPack / 2; ++i) out.v[i] = pack_bf16(v[2 * i], v[2 * i + 1]);
  store16(y, out);
}
QE_DEV void write(float* y, const float (&v)[kPack]) {
  store(y, Pack<float, 4>{v[0], v[1], v[2], v[3]});
  store(y + 4, Pack<float, 4>{v[4], v[5], v[6], v[7]});
}
QE_DEV void write(bf16* y, float v) { *y = to_bf16(v); }
QE_DEV void write(float* y, float v) { *y = v; }

// A warp decodes kWarpTile elements: its lanes read neighbouring words and write neighbouring packs, and each decodes one
// absmax for all.
template <class T>
QE_DEV void dequantise(const Nf4Dequantise& p, T* out) {
  DequantiseSmem& s = shared<DequantiseSmem>();
  if (threadIdx.x < 16) s.code[threadIdx.x] = kNf4Code[threadIdx.x];
  sync_block();  // code[] complete
  const long long start = static_cast<long long>(blockIdx.x) * NF4_DEQUANTISE_TILE + warp() * kWarpTile;
  if (start >= p.count) return;
  const long long left = p.count - start, from = p.first + start;
  T* y = out + start;
  if (left >= kWarpTile && p.first % kPack == 0 && aligned16(out)) {
    const unsigned* words = reinterpret_cast<const unsigned*>(p.w.packed + from / 2);
    unsigned word[kRounds];
#pragma unroll
    for (int r = 0; r < kRounds; ++r) word[r] = words[r * QE_WARP + lane()];
    // One block more than the tile is long, where it starts inside one.
    const long long block = from / NF4_BLOCK;
    const bool needed = (block + lane()) * NF4_BLOCK < from + kWarpTile;
    const float decoded = needed ? nf4_absmax(p.w, block + lane()) : 0.0f;
    const int inside = static_cast<int>(from % NF4_BLOCK);
#pragma unroll
    for (int r = 0; r < kRounds; ++r) {
      const int at = (r * QE_WARP + lane()) * kPack;
      const float absmax = shfl(decoded, (inside + at) / NF4_BLOCK);
      float v[kPack];
#pragma unroll
      for (int i = 0; i < kPack; ++i) v[i] = __fmul_rn(s.code[word[r] >> (i / 2 * 8 + (i % 2 == 0 ? 4 : 0)) & 15u], absmax);
      write(y + at, v);
    }
    return;
  }
  const int count = static_cast<int>(min(left, static_cast<long long>(kWarpTile)));
  for (int i = lane(); i < count; i += QE_WARP) {
    const long long e = from + i;
    const unsigned code = p.w.packed[e / 2] >> (e % 2 == 0 ? 4 : 0) & 15u;
    write(y + i, __fmul_rn(s.code[code], nf4_absmax(p.w, e / NF4_BLOCK)));
  }
}
}  // namespace

QE_KERNEL(nf4_quantise_bf16, Nf4Quantise, NF4_THREADS) { quantise(p, p.x); }

QE_KERNEL(nf4_quantise_f32, Nf4Quantise, NF4_THREADS) { quantise(p, p.x32); }

QE_KERNEL(nf4_mean, Nf4Mean, NF4_MEAN_LANES) {
  MeanSmem& s = shared<MeanSmem>();
  const int me = static_cast<int>(threadIdx.x);
  double sum = 0;
#pragma unroll 8
  for (long long i = me; i < p.blocks; i += NF4_MEAN_LANES) sum += static_cast<double>(p.absmax[i]);
  s.lane[me] = sum;
  for (int width = NF4_MEAN_LANES / 2; width > 0; width /= 2) {
    sync_block();  // the sums of the lanes up to 2 * width complete
    if (me < width) s.lane[me] += s.lane[me + width];
  }
  if (me == 0) *p.offset = static_cast<float>(s.lane[0] / static_cast<double>(max(p.blocks, 1LL)));
}

QE_KERNEL(nf4_quantise_absmax, Nf4QuantiseAbsmax, NF4_BLOCK2) {
  AbsmaxSmem& s = shared<AbsmaxSmem>();
  const long long block = static_cast<long long>(blockIdx.x) * NF4_BLOCK2 + threadIdx.x;
  const bool mine = block < p.blocks;
  s.code2[threadIdx.x] = p.code2[threadIdx.x];
  const float centred = mine ? __fsub_rn(p.absmax[block], *p.offset) : 0.0f;
  const float of_warp = warp_max(fabsf(centred));
  if (lane() == 0) s.warp_max[warp()] = of_warp;
  sync_block();  // code2[], warp_max[] complete
  float absmax2 = 0;
  for (int w = 0; w < kAbsmaxThreads / QE_WARP; ++w) absmax2 = fmaxf(absmax2, s.warp_max[w]);
  if (threadIdx.x == 0) p.absmax2[blockIdx.x] = absmax2;
  if (!mine) return;
  unsigned code = 0;
  if (absmax2 != 0.0f) {
    const float unit = fminf(fmaxf(__fmul_rn(centred, __frcp_rn(absmax2)), -1.0f), 1.0f);
    const float place = __fadd_rn(__fmul_rn(__fmul_rn(__fadd_rn(unit, 1.0f), 0.5f), 65535.0f), 0.5f);
    const int cell = static_cast<int>(place);
    const float middle = __fadd_rn(-1.0f, __fdiv_rn(2.0f * static_cast<float>(cell), 65535.0f));
    // Midpoints ascend: halves the range in which their number below `middle` lies.
    unsigned high = NF4_BLOCK2 - 1;
    while (code < high) {
      const unsigned i = (code + high) / 2;
      if (__fmul_rn(0.5f, __fadd_rn(s.code2[i], s.code2[i + 1])) < middle) code = i + 1;
      else high = i;
    }
  }
  p.codes[block] = static_cast<unsigned char>(code);
}

QE_KERNEL(nf4_dequantise_bf16, Nf4Dequantise, NF4_THREADS) { dequantise(p, p.y); }

QE_KERNEL(nf4_dequantise_f32, Nf4Dequantise, NF4_THREADS) { dequantise(p, p.y32); }
