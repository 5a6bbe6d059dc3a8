// Copies from global to shared memory that run beside the arithmetic (PTX ISA 9.0, cp.async). On the CPU the bytes land at
// the wait and not before, so that a missing wait is seen; with lanes in reverse order at once, so that a copy is seen which
// overwrites what others still read.
#pragma once
#include "qe.cuh"

namespace qe {
#if defined(__CUDACC__)
// 16 bytes from `src` (global) to `dst` (shared), both aligned to 16; zeros if not `valid` (`src` is then not read, but aligned too).
QE_DEV void cp_async16(void* dst, const void* src, bool valid = true) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(dst));
  const int bytes = valid ? 16 : 0;
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;\n" ::"r"(to), "l"(src), "r"(bytes) : "memory");
}
// 4 bytes, aligned to 4.
QE_DEV void cp_async4(void* dst, const void* src, bool valid = true) {
  const unsigned to = static_cast<unsigned>(__cvta_generic_to_shared(dst));
  const int bytes = valid ? 4 : 0;
  asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;\n" ::"r"(to), "l"(src), "r"(bytes) : "memory");
}
// Closes a group: the copies since the last one.
QE_DEV void cp_async_commit() { asm volatile("cp.async.commit_group;\n" ::: "memory"); }
// Waits until at most the `N` newest groups of this thread are under way. Other threads see the bytes after a barrier.
template <int N>
QE_DEV void cp_async_wait() {
  asm volatile("cp.async.wait_group %0;\n" ::"n"(N) : "memory");
}
#else
QE_DEV void cp_async16(void* dst, const void* src, bool valid = true, int line = __builtin_LINE()) {
  host::cp_async(dst, src, 16, valid, line);
}
QE_DEV void cp_async4(void* dst, const void* src, bool valid = true, int line = __builtin_LINE()) {
  host::cp_async(dst, src, 4, valid, line);
}
QE_DEV void cp_async_commit() { host::cp_async_commit(); }
template <int N>
QE_DEV void cp_async_wait() {
  host::cp_async_wait(N);
}
#endif
}  // namespace qe
