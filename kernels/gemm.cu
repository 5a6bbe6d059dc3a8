#include "gemm.h"

#include "include/gemm.cuh"

namespace {
using namespace qe;
using namespace qe::gemm;

template <class S, Op OP>
constexpr bool fits(int m, int n, int threads, size_t shared) {
  return S::kM == m && S::kN == n && S::kThreads == threads && sizeof(DenseSmem<S, OP>) == shared &&
         (S::kWarpsK == 1 ? S::kThreads / QE_WARP * S::kStage : S::kWarpsK * S::kM * (S::kN + 8)) * sizeof(float) <= shared;
}
static_assert(fits<Large, Op::kNt>(GEMM_128_M, GEMM_128_N, GEMM_128_BLOCK, GEMM_128_SHARED), "as gemm.h says");
static_assert(fits<Small, Op::kNt>(GEMM_64_M, GEMM_64_N, GEMM_64_BLOCK, GEMM_64_SHARED), "as gemm.h says");
static_assert(fits<Thin, Op::kNt>(GEMM_THIN_M, GEMM_THIN_N, GEMM_THIN_BLOCK, GEMM_THIN_SHARED), "as gemm.h says");
static_assert(fits<Wide, Op::kTn>(GEMM_WIDE_M, GEMM_WIDE_N, GEMM_WIDE_BLOCK, GEMM_WIDE_SHARED), "as gemm.h says");

struct ColumnsSmem {
  float part[GEMM_COLUMNS_BLOCK / QE_WARP][QE_WARP];
};
static_assert(sizeof(ColumnsSmem) == GEMM_COLUMNS_SHARED, "as gemm.h says");
}  // namespace

// 128 x 128: declared for twice the threads, which holds them to 128 registers, so that an SM runs two blocks.
QE_KERNEL(gemm_nt_128, GemmGroup, 512) { dense<Large, Op::kNt>(p); }
QE_KERNEL(gemm_nt_64, GemmGroup, GEMM_64_BLOCK) { dense<Small, Op::kNt>(p); }
QE_KERNEL(gemm_nt_thin, GemmGroup, GEMM_THIN_BLOCK) { dense<Thin, Op::kNt, true>(p); }
QE_KERNEL(gemm_nn_128, GemmGroup, 512) { dense<Large, Op::kNn>(p); }
QE_KERNEL(gemm_nn_64, GemmGroup, GEMM_64_BLOCK) { dense<Small, Op::kNn>(p); }
QE_KERNEL(gemm_tn_128, GemmGroup, 512) { transposed<Large>(p); }
QE_KERNEL(gemm_tn_64, GemmGroup, GEMM_64_BLOCK) { transposed<Small>(p); }
QE_KERNEL(gemm_tn_wide, GemmGroup, GEMM_WIDE_BLOCK) { transposed<Wide, true>(p); }

QE_KERNEL(gemm_tn_sum, GemmGroup, GEMM_SUM_BLOCK) {
  const Part part = part_of(p.ends, blockIdx.x);
  const Gemm& g = p.of[part.member];
  const long long i = static_cast<long long>(part.at) * GEMM_SUM_BLOCK + threadIdx.x;
  if (i >= g.m * g.n) return;
  const long long parts = (live_rows(g.live, g.k) + g.split - 1) / g.split;
  float sum = 0;
  for (long long s = 0; s < parts; ++s) sum += g.partial[s * g.m * g.n + i];
  static_cast<float*>(g.c)[i / g.n * g.ldc + i % g.n] += g.alpha * sum;
}

QE_KERNEL(gemm_columns, Gemm, GEMM_COLUMNS_BLOCK) {
  ColumnsSmem& s = shared<ColumnsSmem>();
  const long long rows = live_rows(p.live, p.k), col = static_cast<long long>(blockIdx.x) * QE_WARP + lane();
  const bf16* a = static_cast<const bf16*>(p.a);
  float sum = 0;
  if (col < p.n)
    for (long long r = warp(); r < rows; r += GEMM_COLUMNS_BLOCK / QE_WARP) sum += f32(a[r * p.lda + col]);
  s.part[warp()][lane()] = sum;
  sync_block();  // part[][] complete
  if (warp() > 0 || col >= p.n) return;
  sum = 0;
  for (int w = 0; w < GEMM_COLUMNS_BLOCK / QE_WARP; ++w) sum += s.part[w][lane()];
  static_cast<float*>(p.c)[col] += p.alpha * sum;
}
