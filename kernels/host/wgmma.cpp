// The twin of wgmma: what a warp of the group computes, from what the descriptors say (kernels/include/wgmma.cuh).
#include "../include/qe.cuh"

namespace qe {
namespace host {
namespace {
// Bytes from the start of shared memory, as the hardware reckons: chunks of 16 bytes are permuted by bits 7 to 9 of the place
// at which they would stand.
struct Operand {
  size_t at, across, down;
  bool valid;  // rows of 128 bytes, and no offset of atoms

  explicit Operand(uint64_t bits)
      : at((bits & 0x3FFF) << 4), across((bits >> 16 & 0x3FFF) << 4), down((bits >> 32 & 0x3FFF) << 4),
        valid(bits >> 62 == 1 && (bits >> 46 & 0xFFFF) == 0) {}
};

// Eight neighbours, as floats. False: they lie outside of shared memory.
bool read_chunk(size_t place, float* to) {
  const size_t at = place ^ (place >> 7 & 7) << 4;
  if (at + 16 > current.shared_bytes) return false;
  unsigned short bits[8];
  memcpy(bits, current.shared + at, 16);
  for (int i = 0; i < 8; ++i) to[i] = __uint_as_float(static_cast<uint32_t>(bits[i]) << 16);
  return true;
}

template <int N>
const char* product(const Wgmma& w, float* const (&d)[QE_WARP], int first_row) {
  typedef float Four __attribute__((vector_size(16)));
  float a[16][16], b[16][N];
  const Operand of_a(w.a), of_b(w.b);
  if (!of_a.valid || !of_b.valid) return "a product of operands that are not laid out in rows of 128 bytes";
  bool inside = true;
  for (int r = 0; r < 16; ++r)
    for (int c = 0; c < 2; ++c) {
      const int row = first_row + r;
      inside &= read_chunk(of_a.at + row / 8 * of_a.down + row % 8 * 128 + c * 16, &a[r][8 * c]);
    }
  if (w.trans_b) {
    for (int k = 0; k < 16; ++k)
      for (int n = 0; n < N; n += 8)
        inside &= read_chunk(of_b.at + n / 64 * of_b.across + k / 8 * of_b.down + k % 8 * 128 + n % 64 * 2, &b[k][n]);
  } else {
    for (int n = 0; n < N; ++n)
      for (int c = 0; c < 2; ++c) {
        float column[8];
        inside &= read_chunk(of_b.at + n / 8 * of_b.down + n % 8 * 128 + c * 16, column);
        for (int i = 0; i < 8; ++i) b[8 * c + i][n] = column[i];
      }
  }
  if (!inside) return "a product of operands that pass the end of shared memory";
  for (int r = 0; r < 16; ++r) {
    Four sum[N / 4];
    for (int n = 0; n < N; n += 2) memcpy(reinterpret_cast<float*>(sum) + n, d[r % 8 * 4 + n % 8 / 2] + n / 8 * 4 + r / 8 * 2, 8);
    for (int k = 0; k < 16; ++k) {
      Four of_k[N / 4];
      memcpy(of_k, b[k], sizeof of_k);
      for (int n = 0; n < N / 4; ++n) sum[n] += a[r][k] * of_k[n];
    }
    for (int n = 0; n < N; n += 2) memcpy(d[r % 8 * 4 + n % 8 / 2] + n / 8 * 4 + r / 8 * 2, reinterpret_cast<float*>(sum) + n, 8);
  }
  return nullptr;
}
}  // namespace

const char* multiply(const Wgmma& w, float* const (&d)[QE_WARP], int first_row) {
  return w.n == 128 ? product<128>(w, d, first_row) : product<256>(w, d, first_row);
}

}  // namespace host
}  // namespace qe
