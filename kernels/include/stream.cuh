// Streams. Reads of what a kernel needs once: past the first-level cache, so that what is read again stays there (PTX ISA 9.0,
// ld.global.nc with L1::no_allocate). Nothing may write there while the kernel runs.
#pragma once
#include "qe.cuh"

namespace qe {
// 16 bytes, aligned to 16.
#if defined(__CUDACC__)
QE_DEV Pack<unsigned, 4> load_once(const void* at) {
  Pack<unsigned, 4> x;
  asm("ld.global.nc.L1::no_allocate.L2::128B.v4.u32 {%0,%1,%2,%3}, [%4];\n"
      : "=r"(x.v[0]), "=r"(x.v[1]), "=r"(x.v[2]), "=r"(x.v[3])
      : "l"(at));
  return x;
}
#else
QE_DEV Pack<unsigned, 4> load_once(const void* at, int line = __builtin_LINE()) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) host::fail("16 bytes are read at an address that is no multiple of 16", line);
  Pack<unsigned, 4> x;
  memcpy(&x, at, sizeof x);
  return x;
}
#endif

// Writes 16 bytes, aligned to 16, as one access. (Stores of a Pack may be taken apart where the compiler knows each word.)
#if defined(__CUDACC__)
QE_DEV void store16(void* at, const Pack<unsigned, 4>& x) {
  asm volatile("st.global.v4.u32 [%0], {%1,%2,%3,%4};\n" ::"l"(at), "r"(x.v[0]), "r"(x.v[1]), "r"(x.v[2]), "r"(x.v[3]) : "memory");
}
#else
QE_DEV void store16(void* at, const Pack<unsigned, 4>& x, int line = __builtin_LINE()) {
  if (reinterpret_cast<uintptr_t>(at) % 16 != 0) host::fail("16 bytes are written at an address that is no multiple of 16", line);
  memcpy(at, &x, sizeof x);
}
#endif

// The bits of an IEEE half as f32, exactly.
#if defined(__CUDACC__)
QE_DEV float f32_of_half(unsigned bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;\n" : "=f"(x) : "h"(static_cast<unsigned short>(bits)));
  return x;
}
#else
QE_DEV float f32_of_half(unsigned bits) {
  const unsigned sign = (bits & 0x8000u) << 16, exponent = bits >> 10 & 31u, fraction = bits & 0x3FFu;
  if (exponent == 31) return __uint_as_float(sign | 0x7F800000u | fraction << 13);
  if (exponent > 0) return __uint_as_float(sign | (exponent + 112) << 23 | fraction << 13);
  const float small = static_cast<float>(fraction) * 0x1p-24f;
  return sign != 0 ? -small : small;
}
#endif

// Bytes s, s + 1, s + 2, s + 3 of the eight bytes hi:lo, for 16-bit steps: s is 0 or 2.
QE_DEV unsigned bytes_from(unsigned lo, unsigned hi, unsigned s) {
#if defined(__CUDACC__)
  return __funnelshift_r(lo, hi, 8 * s);
#else
  return s == 0 ? lo : lo >> 16 | hi << 16;
#endif
}
// Byte `i` (known when compiled) of a word as a float, by way of the number 2^23 + byte.
template <int I>
QE_DEV float byte_above_2_23(unsigned word) {
#if defined(__CUDACC__)
  return __uint_as_float(__byte_perm(word, 0x4B000000u, 0x7440 | I));
#else
  return __uint_as_float(0x4B000000u | (word >> 8 * I & 255u));
#endif
}
}  // namespace qe
