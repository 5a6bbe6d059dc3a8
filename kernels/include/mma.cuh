// Tensor-core products and the loads that feed them (PTX ISA 9.0, mma.sync and ldmatrix): D = A B + D with A (16, 16) row
// major, B (16, 8) column major, D (16, 8) in f32.
//
// Fragments, with g = lane / 4 and t = lane % 4; a register holds two neighbouring elements (bf16, or f16), the lower index low:
//   a[0] A[g][2t..]   a[1] A[g+8][2t..]   a[2] A[g][2t+8..]   a[3] A[g+8][2t+8..]
//   b[0] B[2t..][g]   b[1] B[2t+8..][g]
//   d[0] D[g][2t]     d[1] D[g][2t+1]     d[2] D[g+8][2t]     d[3] D[g+8][2t+1]
// ldmatrix: lane l gives the address of row l % 8 of matrix l / 8 (8 rows of 16 bytes); register i of lane l receives
// elements 2t, 2t+1 of row g of matrix i, or with `trans` elements 2t, 2t+1 of column g.
#pragma once
#include "f16.cuh"

namespace qe {
#if defined(__CUDACC__)
QE_DEV void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  asm volatile(
      "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
      : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
}
// The same of elements of type E.
template <class E>
QE_DEV void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2]) {
  if constexpr (kIsF16<E>)
    asm volatile(
        "mma.sync.aligned.m16n8k16.row.col.f32.f16.f16.f32 {%0,%1,%2,%3}, {%4,%5,%6,%7}, {%8,%9}, {%0,%1,%2,%3};\n"
        : "+f"(d[0]), "+f"(d[1]), "+f"(d[2]), "+f"(d[3])
        : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b[0]), "r"(b[1]));
  else
    mma_bf16(d, a, b);
}
QE_DEV void ldmatrix_x4(unsigned (&r)[4], const void* row) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
QE_DEV void ldmatrix_x4_trans(unsigned (&r)[4], const void* row) {
  const unsigned at = static_cast<unsigned>(__cvta_generic_to_shared(row));
  asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0,%1,%2,%3}, [%4];\n"
               : "=r"(r[0]), "=r"(r[1]), "=r"(r[2]), "=r"(r[3])
               : "r"(at)
               : "memory");
}
// d[i][j] and d[i][j + 1] += A_i times the left and the right 8 columns of B (16, 16): registers b[0], b[1] and b[2], b[3].
template <class E, int I, int J>
QE_DEV void mma_pairs(float (&d)[I][J][4], int j, const unsigned (&a)[I][4], const unsigned (&b)[4]) {
  const unsigned left[2] = {b[0], b[1]}, right[2] = {b[2], b[3]};
#pragma unroll
  for (int i = 0; i < I; ++i) {
    mma<E>(d[i][j], a[i], left);
    mma<E>(d[i][j + 1], a[i], right);
  }
}
// The same of one A, in bf16.
template <int J>
QE_DEV void mma_bf16_pair(float (&d)[J][4], int j, const unsigned (&a)[4], const unsigned (&b)[4]) {
  mma_bf16(d[j], a, {b[0], b[1]});
  mma_bf16(d[j + 1], a, {b[2], b[3]});
}
#else
QE_DEV void mma_bf16(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
  host::mma(host::Mma{d, a, b, 1, 0, 8, false}, line);
}
template <class E>
QE_DEV void mma(float (&d)[4], const unsigned (&a)[4], const unsigned (&b)[2], int line = __builtin_LINE()) {
  host::mma(host::Mma{d, a, b, 1, 0, 8, kIsF16<E>}, line);
}
template <class E, int I, int J>
QE_DEV void mma_pairs(float (&d)[I][J][4], int j, const unsigned (&a)[I][4], const unsigned (&b)[4],
                      int line = __builtin_LINE()) {
  host::mma(host::Mma{d[0][j], a[0], b, I, J * 4, 16, kIsF16<E>}, line);
}
template <int J>
QE_DEV void mma_bf16_pair(float (&d)[J][4], int j, const unsigned (&a)[4], const unsigned (&b)[4],
                          int line = __builtin_LINE()) {
  host::mma(host::Mma{d[j], a, b, 1, 0, 16, false}, line);
}
QE_DEV void ldmatrix_x4(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
  host::ldmatrix_x4(r, row, false, line);
}
QE_DEV void ldmatrix_x4_trans(unsigned (&r)[4], const void* row, int line = __builtin_LINE()) {
  host::ldmatrix_x4(r, row, true, line);
}
#endif
}  // namespace qe
