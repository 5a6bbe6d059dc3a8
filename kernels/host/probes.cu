#include "probes.h"

#include "../include/cp_async.cuh"
#include "../include/mma.cuh"
#include "../include/qe.cuh"
#include "../include/wgmma.cuh"

namespace {
using namespace qe;

int thread() { return static_cast<int>(threadIdx.x); }
}  // namespace

// out[t] = in of the thread a warp further on, by way of shared memory. 1: without the barrier.
QE_KERNEL(probe_barrier, Probe, PROBE_THREADS) {
  float* s = &shared<float>();
  s[thread()] = p.in[thread()];
  if (p.which == 0) sync_block();  // s[] complete
  p.out[thread()] = s[(thread() + QE_WARP) % static_cast<int>(blockDim.x)];
}

// A thread leaves before: 1 a barrier, 2 a shuffle, 3 a product. 4: two halves wait at two barriers.
QE_KERNEL(probe_divergence, Probe, PROBE_THREADS) {
  if (p.which > 0 && p.which < 4 && thread() == 3) return;
  if (p.which == 2) {
    p.out[thread()] = shfl_xor(p.in[thread()], 1);
  } else if (p.which == 3) {
    float d[4] = {};
    const unsigned a[4] = {}, b[2] = {};
    mma_bf16(d, a, b);
  } else if (p.which == 4 && thread() < QE_WARP) {
    sync_block();  // the other half's is on another line
  } else {
    sync_block();  // all have come here
  }
  p.out[thread()] = p.in[thread()];
}

// Past the end, by one element: 1 write shared, 2 read shared, 3 write out, 4 read in. 5: four at once, unaligned. Launched
// with n floats of shared memory.
QE_KERNEL(probe_overrun, Probe, PROBE_THREADS) {
  float* s = &shared<float>();
  if (thread() > 0) return;
  const long long past = p.n;
  s[past - 1] = p.in[past - 1];
  if (p.which == 1) s[past] = 1;
  if (p.which == 2) s[past - 1] = s[past];
  if (p.which == 3) p.out[past] = 1;
  if (p.which == 4) s[past - 1] = p.in[past];
  if (p.which == 5) s[past - 1] = load<4>(p.in + 1).v[0];
  p.out[0] = s[past - 1];
}

// out = in, four floats a thread, by asynchronous copies. 1: without the wait before they are read. 2: without any wait.
// 3: the wait lets one group be under way still, and it is the one that is read. 4: out of the next thread's four (the
// last: its own), and before all are read copies of zeros over them have begun.
QE_KERNEL(probe_copy, Probe, PROBE_THREADS) {
  float* s = &shared<float>();
  const int at = 4 * thread();
  cp_async16(s + at, p.in + at);
  cp_async_commit();
  if (p.which == 0 || p.which == 4) cp_async_wait<0>();
  if (p.which == 3) cp_async_wait<1>();
  sync_block();  // every thread's copies, if they have landed
  if (p.which == 4) {
    cp_async16(s + at, p.in, false);
    cp_async_commit();
  }
  const bool next = p.which == 4 && thread() + 1 < static_cast<int>(blockDim.x);
  const int from = next ? at + 4 : at;
  for (int i = 0; i < 4; ++i) p.out[at + i] = s[from + i];
  if (p.which == 1 || p.which >= 3) cp_async_wait<0>();
}

namespace {
// out (16, 8) = A B^T, A (16, 16) and B (8, 16) row-major in `in`, as elements of type E. 1: two registers of A swapped. 2:
// those of B. 3: A's blocks transposed.
template <class E>
void product(const Probe& p) {
  struct Smem {
    E a[16][16], b[16][16];
  };
  Smem& s = shared<Smem>();
  for (int i = lane(); i < 16 * 16; i += QE_WARP) s.a[i / 16][i % 16] = rounded<E>(p.in[i]);
  for (int i = lane(); i < 8 * 16; i += QE_WARP) s.b[i / 16][i % 16] = rounded<E>(p.in[16 * 16 + i]);
  sync_warp();  // a, b complete
  unsigned a[4], b[4];
  const int row = lane() % 8 + 8 * (lane() / 8 % 2), col = 8 * (lane() / 16);
  if (p.which == 3) ldmatrix_x4_trans(a, &s.a[row][col]);
  else ldmatrix_x4(a, &s.a[row][col]);
  // Matrices 0 and 1: the left and right half of B's eight rows. The other two are not used.
  ldmatrix_x4(b, &s.b[lane() % 8][8 * (lane() / 8 % 2)]);
  float d[4] = {};
  const unsigned swapped_a[4] = {a[0], a[2], a[1], a[3]}, right_b[2] = {b[0], b[1]}, swapped_b[2] = {b[1], b[0]};
  if (p.which == 1) mma<E>(d, swapped_a, right_b);
  else if (p.which == 2) mma<E>(d, a, swapped_b);
  else mma<E>(d, a, right_b);
  const int g = lane() / 4, t = lane() % 4;
  for (int i = 0; i < 4; ++i) p.out[(g + 8 * (i / 2)) * 8 + 2 * t + i % 2] = d[i];
}
}  // namespace

QE_KERNEL(probe_product, Probe, QE_WARP) { product<bf16>(p); }
QE_KERNEL(probe_product_f16, Probe, QE_WARP) { product<f16>(p); }

// out (64, 128) = A B^T by a warpgroup; A (64, 64) and B (128, 64) lie row-major in `in`, two bf16 a float. 1: without
// fence_async. 2: without wgmma_fence. 3: the sums are read before the wait. 4: copies of zeros over A begin before it. 5:
// without the wait. 6: one warp leaves out a product. 7: A passes the end. 8: a lane names another A.
QE_KERNEL(probe_wgmma, Probe, PROBE_THREADS) {
  unsigned char* s = &shared<unsigned char>();
  const int which = p.which;
  for (int i = thread(); i < (64 + 128) * 8; i += PROBE_THREADS)
    cp_async16(s + (i ^ i / 8 % 8) * 16, p.in + 4 * i);
  cp_async_commit();
  cp_async_wait<0>();
  if (which != 1) fence_async();
  sync_block();  // A, B complete
  unsigned long long a = operand(s);
  if (which == 7) a = further(a, static_cast<int>(p.n) * 4);
  if (which == 8 && thread() == 5) a = further(a, 32);
  float d[16][4] = {};
  if (which != 2) wgmma_fence();
  for (int k = 0; k < 4; ++k)
    if (which != 6 || k < 3 || warp() != 2) wgmma<128, false>(d, further(a, 32 * k), further(operand(s + 64 * 128), 32 * k));
  wgmma_commit();
  if (which == 4) {
    sync_block();  // all have issued their products
    for (int i = thread(); i < 64 * 8; i += PROBE_THREADS) cp_async16(s + i * 16, p.in, false);
    cp_async_commit();
  }
  if (which != 3 && which != 5) wgmma_wait<0>();
  const int row = 16 * warp() + lane() / 4, col = lane() % 4 * 2;
  for (int j = 0; j < 16; ++j)
    for (int i = 0; i < 4; ++i) p.out[(row + i / 2 * 8) * 128 + 8 * j + col + i % 2] = d[j][i];
  if (which == 3) wgmma_wait<0>();
  cp_async_wait<0>();
}

// out = in, rounded to f16.
QE_KERNEL(probe_f16, Probe, PROBE_THREADS) {
  const long long i = static_cast<long long>(blockIdx.x) * PROBE_THREADS + thread();
  if (i < p.n) p.out[i] = f32(to_f16(p.in[i]));
}
