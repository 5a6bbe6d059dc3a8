// Products of a warpgroup (four warps, the first of them a multiple of four) on the tensor cores of compute capability 9.0
// (PTX ISA 9.0, wgmma.mma_async): D (64, N) f32 += A (64, 16) B (16, N), bf16, both operands read from shared memory while
// the threads go on.
//
// Operands  lie in rows of 128 bytes, eight of which are an atom of 1024, aligned to as much; chunk c (16 bytes) of row r of
//           an atom stands at c ^ r. A and a B with its depth along the rows ("K-major"): a row is a row of A, or a column of B,
//           64 deep; atoms follow each other down; the next 16 of the depth begin 32 bytes further. A B with its columns along
//           the rows ("MN-major"): a row is 64 columns of one k; atoms follow each other along k; the next 64 columns begin
//           `across` bytes further, the next 16 of the depth 2048.
// D         of warp w of the group, with g = lane / 4 and t = lane % 4, in columns 8 j to 8 j + 7:
//             d[j][0] D[16w+g][8j+2t]   d[j][1] D[16w+g][8j+2t+1]   d[j][2] D[16w+g+8][8j+2t]   d[j][3] D[16w+g+8][8j+2t+1]
//           as the fragments of mma.sync.
// Order     fence_async by each thread that wrote the operands, then a barrier; wgmma_fence, products, wgmma_commit; what
//           the products read may be overwritten, and their sums read, after the wgmma_wait that covers them.
// CPU       the twin reads what the descriptors say. Forwards it multiplies at once; with lanes in reverse at the wait, so
//           that sums read too early and operands overwritten too early are seen. A fence that is missing is an error.
#pragma once
#include "qe.cuh"

namespace qe {
constexpr int kAtom = 1024;  // bytes

// What wgmma reads from `tile` on (shared memory): `across` as above, 0 for an operand whose rows are its depth.
QE_DEV unsigned long long operand(const void* tile, int across = 0) {
#if defined(__CUDACC__)
  const unsigned long long at = static_cast<unsigned long long>(__cvta_generic_to_shared(tile));
#else
  const unsigned long long at = static_cast<const unsigned char*>(tile) - host::current.shared;
#endif
  // Bits 0-13 the address, 16-29 and 32-45 the distances between atoms, all in units of 16 bytes; 62-63: 1, rows of 128 bytes.
  return (at & 0x3FFFF) >> 4 | static_cast<unsigned long long>(across >> 4) << 16 |
         static_cast<unsigned long long>(kAtom >> 4) << 32 | 1ull << 62;
}
// The same, `bytes` further.
QE_DEV unsigned long long further(unsigned long long operand, int bytes) { return operand + (bytes >> 4); }

#if defined(__CUDACC__)
#define QE_SUMS4(j) "+f"(d[j][0]), "+f"(d[j][1]), "+f"(d[j][2]), "+f"(d[j][3])
#define QE_SUMS16(j) QE_SUMS4(j), QE_SUMS4(j + 1), QE_SUMS4(j + 2), QE_SUMS4(j + 3)
#define QE_SUMS64(j) QE_SUMS16(j), QE_SUMS16(j + 4), QE_SUMS16(j + 8), QE_SUMS16(j + 12)

// TRANS_B: B has its columns along the rows.
template <int N, bool TRANS_B>
QE_DEV void wgmma(float (&d)[N / 8][4], unsigned long long a, unsigned long long b) {
  static_assert(N == 128 || N == 256, "written out for these");
  if constexpr (N == 128)
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n128k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,"
        "%61,%62,%63}, %64, %65, 1, 1, 1, 0, %66;\n"
        : QE_SUMS64(0)
        : "l"(a), "l"(b), "n"(TRANS_B ? 1 : 0));
  else
    asm volatile(
        "wgmma.mma_async.sync.aligned.m64n256k16.f32.bf16.bf16 {"
        "%0,%1,%2,%3,%4,%5,%6,%7,%8,%9,%10,%11,%12,%13,%14,%15,%16,%17,%18,%19,%20,%21,%22,%23,%24,%25,%26,%27,%28,%29,%30,%31,"
        "%32,%33,%34,%35,%36,%37,%38,%39,%40,%41,%42,%43,%44,%45,%46,%47,%48,%49,%50,%51,%52,%53,%54,%55,%56,%57,%58,%59,%60,"
        "%61,%62,%63,%64,%65,%66,%67,%68,%69,%70,%71,%72,%73,%74,%75,%76,%77,%78,%79,%80,%81,%82,%83,%84,%85,%86,%87,%88,%89,"
        "%90,%91,%92,%93,%94,%95,%96,%97,%98,%99,%100,%101,%102,%103,%104,%105,%106,%107,%108,%109,%110,%111,%112,%113,%114,"
        "%115,%116,%117,%118,%119,%120,%121,%122,%123,%124,%125,%126,%127}, %128, %129, 1, 1, 1, 0, %130;\n"
        : QE_SUMS64(0), QE_SUMS64(16)
        : "l"(a), "l"(b), "n"(TRANS_B ? 1 : 0));
}
#undef QE_SUMS4
#undef QE_SUMS16
#undef QE_SUMS64

// Before the first product of a group: orders it after what the threads did with its sums.
QE_DEV void wgmma_fence() { asm volatile("wgmma.fence.sync.aligned;\n" ::: "memory"); }
// Closes a group: the products since the last one.
QE_DEV void wgmma_commit() { asm volatile("wgmma.commit_group.sync.aligned;\n" ::: "memory"); }
// Waits until at most the `N` newest groups are under way.
template <int N>
QE_DEV void wgmma_wait() {
  asm volatile("wgmma.wait_group.sync.aligned %0;\n" ::"n"(N) : "memory");
}
// Makes what this thread has written to shared memory visible to wgmma.
QE_DEV void fence_async() { asm volatile("fence.proxy.async.shared::cta;\n" ::: "memory"); }
#else
template <int N, bool TRANS_B>
QE_DEV void wgmma(float (&d)[N / 8][4], unsigned long long a, unsigned long long b, int line = __builtin_LINE()) {
  host::wgmma(host::Wgmma{d[0], a, b, N, TRANS_B}, line);
}
QE_DEV void wgmma_fence() { host::wgmma_fence(); }
QE_DEV void wgmma_commit() { host::wgmma_commit(); }
template <int N>
QE_DEV void wgmma_wait(int line = __builtin_LINE()) {
  host::wgmma_wait(N, line);
}
QE_DEV void fence_async() { host::fence_async(); }
#endif
}  // namespace qe
