// The verbs that kernels are written in: identity, barriers, warp collectives, bf16, 16-byte packs, reductions. On the GPU
// they are intrinsics; on the CPU (host/cuda_on_host.h) they are twins with the same meaning.
#pragma once
#include "abi.h"

#if defined(__CUDACC__)
#define QE_DEV __device__ __forceinline__
#define QE_CONST static __device__ const

// A kernel `name` with the one parameter struct `P`, for at most `threads` threads a block. The body follows; `p` is the
// struct. (build.rs reads these lines.)
#define QE_KERNEL(name, P, threads)                                                     \
  static_assert(sizeof(P) <= QE_MAX_PARAM_BYTES, "parameters over what a launch takes"); \
  extern "C" __global__ void __launch_bounds__(threads) name(const __grid_constant__ P p)

namespace qe {
// Waits for every thread of the block.
QE_DEV void sync_block() { __syncthreads(); }
// Waits for the 32 threads of the warp.
QE_DEV void sync_warp() { __syncwarp(); }
template <class T>
QE_DEV T shfl(T v, int lane) {
  return __shfl_sync(0xFFFFFFFFu, v, lane);
}
template <class T>
QE_DEV T shfl_xor(T v, int mask) {
  return __shfl_xor_sync(0xFFFFFFFFu, v, mask);
}
QE_DEV unsigned ballot(bool b) { return __ballot_sync(0xFFFFFFFFu, b); }
// Adds to a counter in shared memory. Whole numbers alone: their sum is the same in whatever order the threads come.
QE_DEV void add_shared(unsigned* at, unsigned n) { atomicAdd(at, n); }

QE_DEV float f32(bf16 x) { return __bfloat162float(x); }
// Rounds to nearest, ties to even.
QE_DEV bf16 to_bf16(float x) { return __float2bfloat16_rn(x); }
QE_DEV unsigned short bits_of(bf16 x) { return __bfloat16_as_ushort(x); }
QE_DEV bf16 bf16_of(unsigned short bits) { return __ushort_as_bfloat16(bits); }

// The block's dynamic shared memory as a `Smem`.
template <class Smem>
QE_DEV Smem& shared() {
  extern __shared__ __align__(1024) unsigned char qe_shared_memory[];
  return *reinterpret_cast<Smem*>(qe_shared_memory);
}
}  // namespace qe
#else
#include "../host/cuda_on_host.h"
#endif

namespace qe {
// A thread's place in its warp, and the warp's in the block (blocks are one-dimensional).
QE_DEV int lane() { return static_cast<int>(threadIdx.x) & (QE_WARP - 1); }
QE_DEV int warp() { return static_cast<int>(threadIdx.x) / QE_WARP; }

// The rows that hold something: all of them, or as many as the step says.
QE_DEV long long live_rows(const unsigned* live, long long rows) {
  return live != nullptr && *live < rows ? static_cast<long long>(*live) : rows;
}

// `N` elements read or written as one access (16 bytes at best); `at` must be aligned to the whole pack.
template <class T, int N>
struct alignas(sizeof(T) * N) Pack {
  T v[N];
};
template <int N, class T>
QE_DEV Pack<T, N> load(const T* at) {
  return *reinterpret_cast<const Pack<T, N>*>(at);
}
template <int N, class T>
QE_DEV void store(T* at, const Pack<T, N>& x) {
  *reinterpret_cast<Pack<T, N>*>(at) = x;
}
// Whether rows of `cols` elements starting at `at` can be read in packs of N.
template <int N, class T>
QE_DEV bool packs(const T* at, long long cols) {
  return cols % N == 0 && reinterpret_cast<unsigned long long>(at) % (sizeof(T) * N) == 0;
}

// Two floats as two bf16 in one register, `lo` in the low half.
QE_DEV unsigned pack_bf16(float lo, float hi) {
#if defined(__CUDACC__)
  const __nv_bfloat162 both = __floats2bfloat162_rn(lo, hi);  // one instruction
  return static_cast<unsigned>(bits_of(both.x)) | static_cast<unsigned>(bits_of(both.y)) << 16;
#else
  return static_cast<unsigned>(bits_of(to_bf16(lo))) | static_cast<unsigned>(bits_of(to_bf16(hi))) << 16;
#endif
}

// Sum and maximum over the warp, the same bits in every lane.
QE_DEV float warp_sum(float v) {
  for (int m = QE_WARP / 2; m > 0; m /= 2) v += shfl_xor(v, m);
  return v;
}
QE_DEV double warp_sum(double v) {
  for (int m = QE_WARP / 2; m > 0; m /= 2) v += shfl_xor(v, m);
  return v;
}
QE_DEV float warp_max(float v) {
  for (int m = QE_WARP / 2; m > 0; m /= 2) v = fmaxf(v, shfl_xor(v, m));
  return v;
}

// Sum over the block, the same bits in every thread. `partial` is shared memory of one element a warp; it may be used
// again right away.
template <class T>
QE_DEV T block_sum(T v, T* partial) {
  v = warp_sum(v);
  if (lane() == 0) partial[warp()] = v;
  sync_block();  // partial[] complete
  T total = 0;
  for (int w = 0; w < static_cast<int>(blockDim.x) / QE_WARP; ++w) total += partial[w];
  sync_block();  // partial[] read by all
  return total;
}
}  // namespace qe
