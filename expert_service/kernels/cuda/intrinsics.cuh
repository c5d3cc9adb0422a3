#pragma once

// What C++ has no words for: PTX for devices, and beside it the same as host
// code for the emulation in tests. Needs compute capability 8.0.

#include <cuda_runtime.h>

#include <cstdint>

#if defined(EXPERTMESH_CUDA_EMULATION)
#include "tests/support/cuda_emulation/tensor_core.h"
#endif

namespace expertmesh::expert {

#if defined(EXPERTMESH_CUDA_EMULATION)

using cuda_emulation::BitsOf;
using cuda_emulation::BytePermute;
using cuda_emulation::CommitCopies;
using cuda_emulation::CopyAsync16;
using cuda_emulation::F16BitsToF32;
using cuda_emulation::FloatOf;
using cuda_emulation::FmaBf16x2;
using cuda_emulation::Load16;
using cuda_emulation::Load16Once;
using cuda_emulation::Load4;
using cuda_emulation::Mma;
using cuda_emulation::WaitForCopies;

#else

__device__ __forceinline__ uint32_t BitsOf(float x) {
  return __float_as_uint(x);
}
__device__ __forceinline__ float FloatOf(uint32_t bits) {
  return __uint_as_float(bits);
}
__device__ __forceinline__ float F16BitsToF32(uint16_t bits) {
  float x;
  asm("cvt.f32.f16 %0, %1;" : "=f"(x) : "h"(bits));
  return x;
}

// Byte i of the result is the byte of b:a that digit i of `selector` names.
__device__ __forceinline__ uint32_t BytePermute(uint32_t a, uint32_t b,
                                                uint32_t selector) {
  return __byte_perm(a, b, selector);
}

// a b + c of two bf16, each rounded once.
__device__ __forceinline__ uint32_t FmaBf16x2(uint32_t a, uint32_t b,
                                              uint32_t c) {
  uint32_t d;
  asm("fma.rn.bf16x2 %0, %1, %2, %3;" : "=r"(d) : "r"(a), "r"(b), "r"(c));
  return d;
}

// c += A B: m16n8k16 of bf16 with sums in f32 (fragment_layout.h).
__device__ __forceinline__ void Mma(const uint32_t (&a)[4], uint32_t b0,
                                    uint32_t b1, float (&c)[4]) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32 "
      "{%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a[0]), "r"(a[1]), "r"(a[2]), "r"(a[3]), "r"(b0), "r"(b1));
}

// From memory that nothing writes while the kernel runs.
__device__ __forceinline__ uint32_t Load4(const void* from) {
  uint32_t x;
  asm("ld.global.nc.u32 %0, [%1];" : "=r"(x) : "l"(from));
  return x;
}
__device__ __forceinline__ uint4 Load16(const void* from) {
  uint4 x;
  asm("ld.global.nc.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(from));
  return x;
}
// Of what this multiprocessor needs no second time.
__device__ __forceinline__ uint4 Load16Once(const void* from) {
  uint4 x;
  asm("ld.global.nc.L1::no_allocate.v4.u32 {%0, %1, %2, %3}, [%4];"
      : "=r"(x.x), "=r"(x.y), "=r"(x.z), "=r"(x.w)
      : "l"(from));
  return x;
}

// Copies to shared memory that go on while the thread does, in groups that
// CommitCopies closes. WaitForCopies<n> waits for all but the last n groups of
// the thread; others see the copies after a barrier behind that.
__device__ __forceinline__ void CopyAsync16(void* shared, const void* global) {
  const auto to = static_cast<uint32_t>(__cvta_generic_to_shared(shared));
  asm volatile("cp.async.cg.shared.global [%0], [%1], 16;" ::"r"(to),
               "l"(global)
               : "memory");
}
__device__ __forceinline__ void CommitCopies() {
  asm volatile("cp.async.commit_group;" ::: "memory");
}
template <int kGroups>
__device__ __forceinline__ void WaitForCopies() {
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
}

#endif

// Rounds to nearest, ties to even; NaN stays NaN (quiet), as ToBF16.
__device__ __forceinline__ uint16_t Bf16BitsOf(float x) {
  const uint32_t bits = BitsOf(x);
  if ((bits & 0x7fffffffu) > 0x7f800000u) {
    return static_cast<uint16_t>((bits >> 16) | 0x0040u);
  }
  return static_cast<uint16_t>((bits + 0x7fffu + ((bits >> 16) & 1u)) >> 16);
}

__device__ __forceinline__ float Bf16BitsToF32(uint16_t bits) {
  return FloatOf(static_cast<uint32_t>(bits) << 16);
}

}  // namespace expertmesh::expert
