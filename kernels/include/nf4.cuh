// NF4 as kernels read it: the one code book, and the absmax of a block. The bits are those of src/quant/nf4.rs: two codes a
// byte, the first in the high nibble; blocks of 64 over the flattened matrix.
#pragma once
#include "nf4_blocks.h"
#include "qe.cuh"

namespace qe {
QE_CONST float kNf4Code[16] = {-1.0f,         -0.6961928f,   -0.52507305f, -0.3949175f, -0.28444138f, -0.18477343f,
                               -0.091050036f, 0.0f,          0.0795803f,   0.1609302f,  0.2461123f,   0.33791524f,
                               0.44070983f,   0.562617f,     0.72295684f,  1.0f};

// The scale of a block as it lies in memory: read early, decoded when the product needs it.
struct Nf4Scale {
  float plain;         // the absmax; double-quantised: absmax2
  unsigned char code;  // double-quantised only
};
QE_DEV Nf4Scale nf4_scale(const Nf4Blocks& w, long long block) {
  if (w.absmax != nullptr) return {__ldg(w.absmax + block), 0};
  return {__ldg(w.absmax2 + block / NF4_BLOCK2), __ldg(w.codes + block)};
}
// The absmax; `code2` and `offset` are w.code2 (or a copy of it) and *w.offset. Two roundings, as bitsandbytes.
QE_DEV float nf4_absmax(const Nf4Blocks& w, Nf4Scale s, const float* code2, float offset) {
  return w.absmax != nullptr ? s.plain : __fadd_rn(__fmul_rn(code2[s.code], s.plain), offset);
}
// The absmax of a block, straight from memory.
QE_DEV float nf4_absmax(const Nf4Blocks& w, long long block) {
  return nf4_absmax(w, nf4_scale(w, block), w.code2, w.absmax != nullptr ? 0.0f : *w.offset);
}
}  // namespace qe
