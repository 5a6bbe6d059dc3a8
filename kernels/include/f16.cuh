// IEEE half precision (5 bits of exponent, 10 of mantissa) beside bf16, and the verbs by which code is written for either.
// Storage alone, as bf16: arithmetic is in f32. Numbers of 65520 and more become infinite.
#pragma once
#include "qe.cuh"

#if defined(__CUDACC__)
#include <cuda_fp16.h>
typedef __half f16;
#else
struct f16 {
  unsigned short bits;
};
#endif

namespace qe {
#if defined(__CUDACC__)
QE_DEV float f32(f16 x) { return __half2float(x); }
// Rounds to nearest, ties to even.
QE_DEV f16 to_f16(float x) { return __float2half_rn(x); }
QE_DEV unsigned short bits_of(f16 x) { return __half_as_ushort(x); }
#else
// Exact: the product moves the exponent, and makes normal numbers of subnormal ones.
inline float f32(f16 x) {
  const uint32_t h = x.bits, infinite = (h & 0x7C00) == 0x7C00 ? 0x7F800000u : 0u;
  const float moved = __uint_as_float((h & 0x7FFF) << 13) * 0x1p112f;
  return __uint_as_float(__float_as_uint(moved) | infinite | (h & 0x8000) << 16);
}
inline f16 to_f16(float x) {
  const uint32_t bits = __float_as_uint(x), sign = bits >> 16 & 0x8000, size = bits & 0x7FFFFFFF;
  if (size > 0x7F800000) return f16{0x7FFF};  // the GPU's NaN
  uint32_t h;
  if (size >= 0x477FF000) h = 0x7C00;  // 65520: half way to what would be the next number
  else if (size >= 0x38800000) h = (size + 0xFFF + (size >> 13 & 1) - 0x38000000) >> 13;
  else h = __float_as_uint(__uint_as_float(size) + 0.5f) - 0x3F000000;  // subnormal: units of 2^-24, as beside 1/2
  return f16{static_cast<unsigned short>(sign | h)};
}
inline unsigned short bits_of(f16 x) { return x.bits; }
#endif

// Two floats as two f16 in one register, `lo` in the low half.
QE_DEV unsigned pack_f16(float lo, float hi) {
#if defined(__CUDACC__)
  const __half2 both = __floats2half2_rn(lo, hi);  // one instruction
  return static_cast<unsigned>(bits_of(both.x)) | static_cast<unsigned>(bits_of(both.y)) << 16;
#else
  return static_cast<unsigned>(bits_of(to_f16(lo))) | static_cast<unsigned>(bits_of(to_f16(hi))) << 16;
#endif
}

// Of the type E: which it is, a float rounded to it, and two of them in a register.
template <class E>
constexpr bool kIsF16 = false;
template <>
constexpr bool kIsF16<f16> = true;
template <class E>
QE_DEV E rounded(float x) = delete;
template <>
QE_DEV bf16 rounded<bf16>(float x) {
  return to_bf16(x);
}
template <>
QE_DEV f16 rounded<f16>(float x) {
  return to_f16(x);
}
template <class E>
QE_DEV unsigned pack(float lo, float hi) = delete;
template <>
QE_DEV unsigned pack<bf16>(float lo, float hi) {
  return pack_bf16(lo, hi);
}
template <>
QE_DEV unsigned pack<f16>(float lo, float hi) {
  return pack_f16(lo, hi);
}
}  // namespace qe
