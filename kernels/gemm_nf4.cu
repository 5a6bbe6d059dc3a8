#include "gemm_nf4.h"

#include "include/gemm.cuh"

namespace {
using namespace qe;
using namespace qe::gemm;

using LargeF16 = LargeOf<f16>;
using SmallF16 = SmallOf<f16>;

static_assert(sizeof(Nf4Smem<Large, Op::kNt>) == GEMM_NF4_128_SHARED, "as gemm_nf4.h says");
static_assert(sizeof(Nf4Smem<Large, Op::kNn>) == GEMM_NF4_128_SHARED, "as gemm_nf4.h says");
static_assert(sizeof(Nf4Smem<Small, Op::kNt>) == GEMM_NF4_64_SHARED, "as gemm_nf4.h says");
static_assert(sizeof(Nf4Smem<Small, Op::kNn>) == GEMM_NF4_64_SHARED, "as gemm_nf4.h says");
}  // namespace

// 128 x 128: declared for twice the threads, as in gemm.cu.
QE_KERNEL(gemm_nf4_nt_128, GemmNf4, 512) { with_nf4<Large, Op::kNt>(p.g, p.w); }
QE_KERNEL(gemm_nf4_nt_64, GemmNf4, Small::kThreads) { with_nf4<Small, Op::kNt>(p.g, p.w); }
QE_KERNEL(gemm_nf4_nn_128, GemmNf4, 512) { with_nf4<Large, Op::kNn>(p.g, p.w); }
QE_KERNEL(gemm_nf4_nn_64, GemmNf4, Small::kThreads) { with_nf4<Small, Op::kNn>(p.g, p.w); }

QE_KERNEL(gemm_nf4_nt_128_f16, GemmNf4, 512) { with_nf4<LargeF16, Op::kNt>(p.g, p.w); }
QE_KERNEL(gemm_nf4_nt_64_f16, GemmNf4, SmallF16::kThreads) { with_nf4<SmallF16, Op::kNt>(p.g, p.w); }
QE_KERNEL(gemm_nf4_nn_128_f16, GemmNf4, 512) { with_nf4<LargeF16, Op::kNn>(p.g, p.w); }
QE_KERNEL(gemm_nf4_nn_64_f16, GemmNf4, SmallF16::kThreads) { with_nf4<SmallF16, Op::kNn>(p.g, p.w); }
