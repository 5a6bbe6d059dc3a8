// Blocks of ggml as kernels read them: 32 neighbouring elements, a chunk, at a time. A chunk becomes 32 bytes in the order of
// its elements, and a scale (and a minimum) for each half of it; an element is then
//
//   scale * (byte - kOffset) (+ minimum)
//
// with every operation rounded by itself: the f32 values of the `gguf` Python package. Layouts: docs of GGUF; the bits of
// src/quant/ggml.
#pragma once
#include "ggml_blocks.h"
#include "stream.cuh"

namespace qe {
namespace ggml {
// What is read of a chunk; each type uses a part of it.
struct Raw {
  unsigned q[8], h[8];  // low bits, high bits
  unsigned s[3];        // scales of the chunk's block
  unsigned d;           // one or two halves
};
// What it becomes.
struct Chunk {
  unsigned q[8];      // a byte an element
  float d[2], m[2];   // of elements 0 .. 15 and 16 .. 31
};

QE_DEV unsigned u16(const unsigned char* at) { return *reinterpret_cast<const unsigned short*>(at); }
QE_DEV unsigned u32(const unsigned char* at) { return *reinterpret_cast<const unsigned*>(at); }

// The first N words of `w` from `at`, which is a multiple of ALIGN (2, 4 or 16). With 2, up to two more bytes are read.
template <int N, int ALIGN, int SIZE>
QE_DEV void read(unsigned (&w)[SIZE], const unsigned char* at) {
  static_assert(N <= SIZE, "room");
  if (ALIGN == 16) {
#pragma unroll
    for (int i = 0; i < N / 4; ++i) {
      const Pack<unsigned, 4> x = load<4>(reinterpret_cast<const unsigned*>(at) + 4 * i);
#pragma unroll
      for (int e = 0; e < 4; ++e) w[4 * i + e] = x.v[e];
    }
  } else if (ALIGN == 4) {
#pragma unroll
    for (int i = 0; i < N; ++i) w[i] = u32(at + 4 * i);
  } else {
    const unsigned past = static_cast<unsigned>(reinterpret_cast<unsigned long long>(at) & 2);
    const unsigned char* words = at - past;
    unsigned last = u32(words);
#pragma unroll
    for (int i = 0; i < N; ++i) {
      const unsigned next = i + 1 < N || past != 0 ? u32(words + 4 * (i + 1)) : 0;
      w[i] = bytes_from(last, next, past);
      last = next;
    }
  }
}

constexpr unsigned kNibbles = 0x0F0F0F0Fu, kTwoBits = 0x03030303u, kBit = 0x01010101u;

// Bits 4 i .. 4 i + 3 of `bits` as the lowest bits of the four bytes of a word.
QE_DEV unsigned spread(unsigned bits, int i) { return (bits >> 4 * i & 15u) * 0x00204081u & kBit; }
QE_DEV unsigned byte_of(const unsigned* words, int i) { return words[i / 4] >> i % 4 * 8 & 255u; }

// 32 elements a block: 16 bytes of nibbles (elements 0 .. 15 low, 16 .. 31 high), a fifth bit each in `h`.
template <bool FIFTH>
QE_DEV void nibbles_of_32(Chunk& c, const Raw& r) {
#pragma unroll
  for (int i = 0; i < 4; ++i) {
    c.q[i] = r.q[i] & kNibbles;
    c.q[i + 4] = r.q[i] >> 4 & kNibbles;
  }
  if (FIFTH) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c.q[i] |= spread(r.h[0], i) << 4;
  }
}
QE_DEV void one_scale(Chunk& c, unsigned d, float m) {
  c.d[0] = c.d[1] = f32_of_half(d & 0xFFFFu);
  c.m[0] = c.m[1] = m;
}
// Scale and minimum `j` of eight, six bits each in 12 bytes.
QE_DEV void six_bit_scales(Chunk& c, const Raw& r, int j) {
  const int at = j & 3;
  const unsigned low = r.s[0] >> 8 * at, mid = r.s[1] >> 8 * at, high = r.s[2] >> 8 * at;
  const unsigned scale = j < 4 ? low & 63u : (high & 15u) | (low >> 2 & 48u);
  const unsigned least = j < 4 ? mid & 63u : (high >> 4 & 15u) | (mid >> 2 & 48u);
  c.d[0] = c.d[1] = __fmul_rn(f32_of_half(r.d & 0xFFFFu), static_cast<float>(scale));
  c.m[0] = c.m[1] = -__fmul_rn(f32_of_half(r.d >> 16), static_cast<float>(least));
}

// A type: elements and bytes of a block, what is taken off a byte, whether a minimum is added; how chunk `j` of a block is
// read, and what it means.
template <int TYPE>
struct Format;

template <>
struct Format<GGML_Q4_0> {
  static constexpr int kBlock = 32, kBytes = 18, kOffset = 8;
  static constexpr bool kMin = false;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int) {
    r.d = u16(b);
    read<4, 2>(r.q, b + 2);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int) {
    nibbles_of_32<false>(c, r);
    one_scale(c, r.d, 0);
  }
};
template <>
struct Format<GGML_Q4_1> {
  static constexpr int kBlock = 32, kBytes = 20, kOffset = 0;
  static constexpr bool kMin = true;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int) {
    r.d = u32(b);
    read<4, 4>(r.q, b + 4);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int) {
    nibbles_of_32<false>(c, r);
    one_scale(c, r.d, f32_of_half(r.d >> 16));
  }
};
template <>
struct Format<GGML_Q5_0> {
  static constexpr int kBlock = 32, kBytes = 22, kOffset = 16;
  static constexpr bool kMin = false;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int) {
    r.d = u16(b);
    r.h[0] = u16(b + 2) | u16(b + 4) << 16;
    read<4, 2>(r.q, b + 6);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int) {
    nibbles_of_32<true>(c, r);
    one_scale(c, r.d, 0);
  }
};
template <>
struct Format<GGML_Q5_1> {
  static constexpr int kBlock = 32, kBytes = 24, kOffset = 0;
  static constexpr bool kMin = true;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int) {
    r.d = u32(b);
    r.h[0] = u32(b + 4);
    read<4, 4>(r.q, b + 8);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int) {
    nibbles_of_32<true>(c, r);
    one_scale(c, r.d, f32_of_half(r.d >> 16));
  }
};
template <>
struct Format<GGML_Q8_0> {
  static constexpr int kBlock = 32, kBytes = 34, kOffset = 128;
  static constexpr bool kMin = false;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int) {
    r.d = u16(b);
    read<8, 2>(r.q, b + 2);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c.q[i] = r.q[i] ^ 0x80808080u;
    one_scale(c, r.d, 0);
  }
};
// 256 elements a block, in two halves: the four chunks of a half are the pairs of bits of its 32 bytes.
template <>
struct Format<GGML_Q2_K> {
  static constexpr int kBlock = 256, kBytes = 84, kOffset = 0;
  static constexpr bool kMin = true;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int j) {
    r.s[0] = u16(b + 2 * j);
    read<8, 4>(r.q, b + 16 + j / 4 * 32);
    r.d = u32(b + 80);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c.q[i] = r.q[i] >> 2 * (j & 3) & kTwoBits;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const unsigned s = r.s[0] >> 8 * g;
      c.d[g] = __fmul_rn(f32_of_half(r.d & 0xFFFFu), static_cast<float>(s & 15u));
      c.m[g] = -__fmul_rn(f32_of_half(r.d >> 16), static_cast<float>(s >> 4 & 15u));
    }
  }
};
// As Q2_K, with a third bit in bit j of 32 bytes more; 16 scales of six bits in 12 bytes.
template <>
struct Format<GGML_Q3_K> {
  static constexpr int kBlock = 256, kBytes = 110, kOffset = 4;
  static constexpr bool kMin = false;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int j) {
    read<8, 2>(r.h, b);
    read<8, 2>(r.q, b + 32 + j / 4 * 32);
    read<3, 2>(r.s, b + 96);
    r.d = u16(b + 108);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c.q[i] = (r.q[i] >> 2 * (j & 3) & kTwoBits) | (r.h[i] >> j & kBit) << 2;
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int n = 2 * j + g, at = n & 7;
      const unsigned half = at < 4 ? r.s[0] : r.s[1];
      const unsigned low = half >> 8 * (at & 3) >> 4 * (n >> 3) & 15u;
      const unsigned high = r.s[2] >> 8 * (n & 3) >> 2 * (n >> 2) & 3u;
      c.d[g] = __fmul_rn(f32_of_half(r.d), static_cast<float>(static_cast<int>(low | high << 4) - 32));
      c.m[g] = 0;
    }
  }
};
// Chunks 2 i and 2 i + 1 of the eight are the low and high nibbles of 32 bytes.
template <>
struct Format<GGML_Q4_K> {
  static constexpr int kBlock = 256, kBytes = 144, kOffset = 0;
  static constexpr bool kMin = true;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int j) {
    unsigned head[4];
    read<4, 16>(head, b);
    r.d = head[0];
    for (int i = 0; i < 3; ++i) r.s[i] = head[i + 1];
    read<8, 16>(r.q, b + 16 + j / 2 * 32);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c.q[i] = r.q[i] >> 4 * (j & 1) & kNibbles;
    six_bit_scales(c, r, j);
  }
};
// As Q4_K, with a fifth bit in bit j of 32 bytes more.
template <>
struct Format<GGML_Q5_K> {
  static constexpr int kBlock = 256, kBytes = 176, kOffset = 0;
  static constexpr bool kMin = true;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int j) {
    unsigned head[4];
    read<4, 16>(head, b);
    r.d = head[0];
    for (int i = 0; i < 3; ++i) r.s[i] = head[i + 1];
    read<8, 16>(r.h, b + 16);
    read<8, 16>(r.q, b + 48 + j / 2 * 32);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int j) {
#pragma unroll
    for (int i = 0; i < 8; ++i) c.q[i] = (r.q[i] >> 4 * (j & 1) & kNibbles) | (r.h[i] >> j & kBit) << 4;
    six_bit_scales(c, r, j);
  }
};
// Of each half of the block, 64 bytes of nibbles: chunks 0 and 1 are low nibbles, 2 and 3 high ones of the same bytes; and two
// bits more of each chunk in 32 bytes.
template <>
struct Format<GGML_Q6_K> {
  static constexpr int kBlock = 256, kBytes = 210, kOffset = 32;
  static constexpr bool kMin = false;
  static QE_DEV void fetch(Raw& r, const unsigned char* b, int j) {
    read<8, 2>(r.q, b + j / 4 * 64 + (j & 1) * 32);
    read<8, 2>(r.h, b + 128 + j / 4 * 32);
    r.s[0] = u16(b + 192 + 2 * j);
    r.d = u16(b + 208);
  }
  static QE_DEV void prepare(Chunk& c, const Raw& r, int j) {
    const int part = j & 3;
#pragma unroll
    for (int i = 0; i < 8; ++i) {
      c.q[i] = (r.q[i] >> 4 * (part >> 1) & kNibbles) | (r.h[i] >> 2 * part & kTwoBits) << 4;
    }
#pragma unroll
    for (int g = 0; g < 2; ++g) {
      const int scale = static_cast<signed char>(r.s[0] >> 8 * g & 255u);
      c.d[g] = __fmul_rn(f32_of_half(r.d), static_cast<float>(scale));
      c.m[g] = 0;
    }
  }
};

// Two elements, at byte 0 or 2 of word `w` of a chunk, rounded to bf16 in one register.
template <int TYPE, int BYTE>
QE_DEV unsigned pair(const Chunk& c, int w) {
  using F = Format<TYPE>;
  const float d = c.d[w / 4], m = c.m[w / 4];
  float lo = __fmul_rn(d, byte_above_2_23<BYTE>(c.q[w]) - (8388608.0f + F::kOffset));
  float hi = __fmul_rn(d, byte_above_2_23<BYTE + 1>(c.q[w]) - (8388608.0f + F::kOffset));
  if (F::kMin) {
    lo = __fadd_rn(lo, m);
    hi = __fadd_rn(hi, m);
  }
  return pack_bf16(lo, hi);
}
// Elements 8 i .. 8 i + 8 of a chunk in bf16, two a register.
template <int TYPE>
QE_DEV void eight(unsigned (&to)[4], const Chunk& c, int i) {
#pragma unroll
  for (int w = 0; w < 2; ++w) {
    to[2 * w] = pair<TYPE, 0>(c, 2 * i + w);
    to[2 * w + 1] = pair<TYPE, 2>(c, 2 * i + w);
  }
}
}  // namespace ggml
}  // namespace qe
