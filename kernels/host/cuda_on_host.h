// Runs kernels on the CPU, for tests: the same .cu files, compiled as C++, one fiber per CUDA thread.
//
// A fiber runs until it meets a barrier or a warp collective, and goes on when all that belong to it have arrived at the
// same line; whatever cannot go on is an error that names the line. Shared memory is a heap block of exactly the launched
// size, full of 0xFF (NaN) for every block. It proves function, never speed.
#pragma once
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <cstring>

#define QE_DEV inline
#define QE_CONST static const
#define __restrict__ __restrict

// The body becomes the template `name##_body`, called with the parameters of the launch by the entry that Rust links to.
#define QE_KERNEL(name, P, threads)                                                                \
  static_assert(sizeof(P) <= QE_MAX_PARAM_BYTES, "parameters over what a launch takes");            \
  static void name##_body(const P& p);                                                             \
  extern "C" void qe_host_##name(const void* params) { name##_body(*static_cast<const P*>(params)); } \
  extern "C" const unsigned qe_host_##name##_threads, qe_host_##name##_bytes;                       \
  const unsigned qe_host_##name##_threads = (threads), qe_host_##name##_bytes = sizeof(P);          \
  static void name##_body(const P& p)

namespace qe {
namespace host {

struct Dim3 {
  unsigned x, y, z;
};

// What a fiber waits for.
enum class Wait : unsigned char { kNothing, kBlock, kWarp, kDone };
// Collectives of a warp; each gathers what its 32 lanes brought.
enum class Collective : unsigned char { kSync, kShuffle, kBallot, kMma, kLdmatrix, kLdmatrixTrans, kWgmma, kWgmmaWait };

struct PendingCopy {
  void* dst;
  const void* src;  // null: zeros
  int bytes, group;
};

constexpr int kMaxPending = 256;  // copies that one thread has under way

// A product of a warpgroup as one thread issues it: its first sum, the operands, columns, and how B lies.
struct Wgmma {
  float* d;  // those of 8 columns more: 4 further
  uint64_t a, b;
  int n;
  bool trans_b;
};
constexpr int kMaxProducts = 16;  // that are under way

// What a thread has to do with products of warpgroups.
struct Products {
  Wgmma pending[kMaxProducts];
  int group[kMaxProducts];
  int count, groups;
  int line;            // of the last one
  bool fenced;         // since the last group was closed
  bool unseen;         // has copied what wgmma may not see yet
  bool unseen_by_all;  // had so at the block's last barrier
  uint64_t trace;      // of all, to compare warps by
};

struct Fiber {
  void* sp;        // saved stack pointer while it does not run
  char* stack;     // its lowest address
  Wait wait;
  Collective collective;
  int line;        // where it waits
  int copy_line;   // where it last began an asynchronous copy
  void* argument;  // what it brought to the collective
  unsigned thread;
  int pending_count;
  int groups;            // closed groups, and the open one's number
  PendingCopy* pending;  // kMaxPending, in order; apart from what is looked at all the time
  Products* products;    // the same
  void* asan_stack;
};

// The launch as seen by the running fiber.
struct Current {
  Fiber* fiber;
  Dim3 thread, block, block_dim, grid_dim;
  unsigned char* shared;
  size_t shared_bytes;
};
extern __thread Current current;  // (not thread_local: that would be a call at each use)

void wait_block(int line);
void wait_warp(Collective what, void* argument, int line);
[[noreturn]] void fail(const char* why, int line);

void wgmma_fence();
void wgmma(Wgmma w, int line);
void wgmma_commit();
void wgmma_wait(int newest, int line);
void fence_async();
// Adds to the sums `d` of a warp's lanes its 16 rows of the product, from `first_row` on. Returns what is wrong, or null.
const char* multiply(const Wgmma& w, float* const (&d)[QE_WARP], int first_row);

void cp_async(void* dst, const void* src, int bytes, bool valid, int line);
void cp_async_commit();
void cp_async_wait(int newest);

struct Shuffle {
  uint64_t value, result;
  int from;  // lane
};
struct Ballot {
  bool value;
  unsigned result;
};
// Products of `count` A fragments, the registers of each behind those of the one before, with one B of `width` (8 or 16) columns.
struct Mma {
  float* d;  // of product i: from d + i * apart on, 4 for each 8 columns
  const unsigned *a, *b;
  int count, apart, width;
  bool f16;  // the operands' elements; otherwise bf16
};
struct Ldmatrix {
  unsigned* r;
  const void* row;
};

inline void mma(Mma m, int line) { wait_warp(Collective::kMma, &m, line); }
inline void ldmatrix_x4(unsigned (&r)[4], const void* row, bool trans, int line) {
  if (reinterpret_cast<uintptr_t>(row) % 16 != 0) fail("ldmatrix of an unaligned row", line);
  Ldmatrix m{r, row};
  wait_warp(trans ? Collective::kLdmatrixTrans : Collective::kLdmatrix, &m, line);
}

template <class T>
T shuffle(T v, int from, int line) {
  static_assert(sizeof(T) <= 8, "a register or two");
  Shuffle s{0, 0, from};
  memcpy(&s.value, &v, sizeof(T));
  wait_warp(Collective::kShuffle, &s, line);
  memcpy(&v, &s.result, sizeof(T));
  return v;
}

}  // namespace host

inline void sync_block(int line = __builtin_LINE()) { host::wait_block(line); }
inline void sync_warp(int line = __builtin_LINE()) { host::wait_warp(host::Collective::kSync, nullptr, line); }
template <class T>
T shfl(T v, int lane, int line = __builtin_LINE()) {
  return host::shuffle(v, lane & 31, line);
}
template <class T>
T shfl_xor(T v, int mask, int line = __builtin_LINE()) {
  return host::shuffle(v, static_cast<int>(host::current.thread.x & 31) ^ mask, line);
}
inline unsigned ballot(bool b, int line = __builtin_LINE()) {
  host::Ballot v{b, 0};
  host::wait_warp(host::Collective::kBallot, &v, line);
  return v.result;
}
// (The fibers of a block take turns.)
inline void add_shared(unsigned* at, unsigned n) { *at += n; }

inline float f32(bf16 x) {
  const uint32_t bits = static_cast<uint32_t>(x.bits) << 16;
  float y;
  memcpy(&y, &bits, 4);
  return y;
}
inline bf16 to_bf16(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  if ((bits & 0x7FFFFFFFu) > 0x7F800000u) return bf16{0x7FFF};  // the GPU's NaN
  return bf16{static_cast<unsigned short>((bits + 0x7FFFu + ((bits >> 16) & 1)) >> 16)};
}
inline unsigned short bits_of(bf16 x) { return x.bits; }
inline bf16 bf16_of(unsigned short bits) { return bf16{bits}; }

template <class Smem>
Smem& shared() {
  return *reinterpret_cast<Smem*>(host::current.shared);
}

}  // namespace qe

#define threadIdx (qe::host::current.thread)
#define blockIdx (qe::host::current.block)
#define blockDim (qe::host::current.block_dim)
#define gridDim (qe::host::current.grid_dim)

// CUDA's arithmetic by its CUDA names. Compiled without contraction, so the `_rn` forms round where they say.
inline float __fmul_rn(float a, float b) { return a * b; }
inline float __fadd_rn(float a, float b) { return a + b; }
inline float __fsub_rn(float a, float b) { return a - b; }
inline float __frcp_rn(float a) { return 1.0f / a; }
inline float __fdiv_rn(float a, float b) { return a / b; }
inline float __fsqrt_rn(float a) { return sqrtf(a); }
inline double __dmul_rn(double a, double b) { return a * b; }
inline double __dadd_rn(double a, double b) { return a + b; }
inline double __ddiv_rn(double a, double b) { return a / b; }
inline float __expf(float x) { return expf(x); }
inline float __logf(float x) { return logf(x); }
inline float __fdividef(float a, float b) { return a / b; }
inline float rsqrtf(float x) { return 1.0f / sqrtf(x); }
inline unsigned __umulhi(unsigned a, unsigned b) { return static_cast<unsigned>((uint64_t{a} * b) >> 32); }
inline int __popc(unsigned x) { return __builtin_popcount(x); }
inline int __ffs(int x) { return __builtin_ffs(x); }
inline unsigned __float_as_uint(float x) {
  unsigned u;
  memcpy(&u, &x, 4);
  return u;
}
inline float __uint_as_float(unsigned u) {
  float x;
  memcpy(&x, &u, 4);
  return x;
}
template <class T>
T __ldg(const T* at) {
  return *at;
}
inline int min(int a, int b) { return a < b ? a : b; }
inline int max(int a, int b) { return a > b ? a : b; }
inline long long min(long long a, long long b) { return a < b ? a : b; }
inline long long max(long long a, long long b) { return a > b ? a : b; }
