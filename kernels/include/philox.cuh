// Random numbers by counter, the bits of src/ops/philox.rs. Philox4x32-10, Salmon et al. 2011.
#pragma once
#include "qe.cuh"

namespace qe {
struct Philox {
  unsigned w[4];
};
// Four random words for the block `index` of the stream (seed, step, module).
QE_DEV Philox philox(unsigned long long seed, unsigned step, unsigned module, unsigned long long index) {
  unsigned k0 = static_cast<unsigned>(seed), k1 = static_cast<unsigned>(seed >> 32);
  unsigned c0 = static_cast<unsigned>(index), c1 = static_cast<unsigned>(index >> 32), c2 = step, c3 = module;
#pragma unroll 1  // independent calls would otherwise be interleaved, at the price of many registers
  for (int round = 0; round < 10; ++round) {
    const unsigned hi0 = __umulhi(c0, 0xD2511F53u), lo0 = c0 * 0xD2511F53u;
    const unsigned hi1 = __umulhi(c2, 0xCD9E8D57u), lo1 = c2 * 0xCD9E8D57u;
    c0 = hi1 ^ c1 ^ k0;
    c1 = lo1;
    c2 = hi0 ^ c3 ^ k1;
    c3 = lo0;
    k0 += 0x9E3779B9u;
    k1 += 0xBB67AE85u;
  }
  return {{c0, c1, c2, c3}};
}
// A word as a number in [0, 1) with 24 bits.
QE_DEV float philox_unit(unsigned word) { return static_cast<float>(word >> 8) * (1.0f / 16777216.0f); }
// The `index`-th number of the stream in [0, 1).
QE_DEV float philox_uniform(unsigned long long seed, unsigned step, unsigned module, unsigned long long index) {
  const Philox p = philox(seed, step, module, index / 4);
  const unsigned low = index & 1 ? p.w[1] : p.w[0], high = index & 1 ? p.w[3] : p.w[2];
  return philox_unit(index & 2 ? high : low);
}
}  // namespace qe
