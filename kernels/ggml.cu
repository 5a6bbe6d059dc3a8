#include "ggml.h"

#include "include/ggml.cuh"

namespace {
using namespace qe;

constexpr int kPacks = GGML_CHUNK / 8;  // of 16 bytes, a chunk
struct Smem {
  Pack<unsigned, 4> chunk[GGML_BLOCK / QE_WARP][QE_WARP * kPacks];
};
static_assert(sizeof(Smem) == GGML_SHARED, "what the header promises");

// Chunk `at` of the matrix as 16 registers of two bf16.
template <int TYPE>
QE_DEV void decode(unsigned (&to)[kPacks][4], const GgmlDequantise& p, long long at) {
  using F = ggml::Format<TYPE>;
  constexpr int kChunks = F::kBlock / GGML_CHUNK;
  ggml::Raw raw;
  ggml::Chunk c;
  const int j = static_cast<int>(at % kChunks);
  F::fetch(raw, p.data + at / kChunks * F::kBytes, j);
  F::prepare(c, raw, j);
#pragma unroll
  for (int i = 0; i < kPacks; ++i) ggml::eight<TYPE>(to[i], c, i);
}

// A lane decodes a chunk; the warp's chunks change places in shared memory, so that its writes are of neighbours.
template <int TYPE>
QE_DEV void dequantise(const GgmlDequantise& p) {
  auto& own = shared<Smem>().chunk[warp()];
  const long long first = (static_cast<long long>(blockIdx.x) * (GGML_BLOCK / QE_WARP) + warp()) * QE_WARP;
  const long long at = first + lane(), chunks = p.count / GGML_CHUNK;
  // Pack i of lane l lies at 4 l + (i ^ l / 2 % 4): eight lanes that write one pack fall into different banks.
  if (at < chunks) {
    unsigned x[kPacks][4];
    decode<TYPE>(x, p, at);
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
      own[kPacks * lane() + (i ^ (lane() >> 1 & 3))] = Pack<unsigned, 4>{{x[i][0], x[i][1], x[i][2], x[i][3]}};
    }
  }
  sync_warp();  // the warp's chunks complete
  Pack<unsigned, 4>* y = reinterpret_cast<Pack<unsigned, 4>*>(p.y) + first * kPacks;
#pragma unroll
  for (int r = 0; r < kPacks; ++r) {
    const int i = r * QE_WARP + lane(), from = i / kPacks;
    if (first + from < chunks) y[i] = own[kPacks * from + (i % kPacks ^ (from >> 1 & 3))];
  }
}
}  // namespace

QE_KERNEL(ggml_dequantise_f16, GgmlDequantise, GGML_BLOCK) {
  const unsigned short* from = reinterpret_cast<const unsigned short*>(p.data);
  const bool packed = packs<8>(from, 8);
#pragma unroll
  for (int r = 0; r < kPacks; ++r) {
    const long long at = ((static_cast<long long>(blockIdx.x) * kPacks + r) * GGML_BLOCK + threadIdx.x) * 8;
    if (packed && at + 8 <= p.count) {
      const Pack<unsigned short, 8> x = load<8>(from + at);
      Pack<bf16, 8> y;
#pragma unroll
      for (int i = 0; i < 8; ++i) y.v[i] = to_bf16(f32_of_half(x.v[i]));
      store(p.y + at, y);
    } else {
      for (int i = 0; i < 8 && at + i < p.count; ++i) p.y[at + i] = to_bf16(f32_of_half(from[at + i]));
    }
  }
}
QE_KERNEL(ggml_dequantise_q4_0, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q4_0>(p); }
QE_KERNEL(ggml_dequantise_q4_1, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q4_1>(p); }
QE_KERNEL(ggml_dequantise_q5_0, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q5_0>(p); }
QE_KERNEL(ggml_dequantise_q5_1, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q5_1>(p); }
QE_KERNEL(ggml_dequantise_q8_0, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q8_0>(p); }
QE_KERNEL(ggml_dequantise_q2_k, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q2_K>(p); }
QE_KERNEL(ggml_dequantise_q3_k, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q3_K>(p); }
QE_KERNEL(ggml_dequantise_q4_k, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q4_K>(p); }
QE_KERNEL(ggml_dequantise_q5_k, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q5_K>(p); }
QE_KERNEL(ggml_dequantise_q6_k, GgmlDequantise, GGML_BLOCK) { dequantise<GGML_Q6_K>(p); }
