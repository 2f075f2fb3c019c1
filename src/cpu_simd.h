/* cpu_simd - what the sources of the CPU's kernels share: the processors' intrinsics, and functions
 * and loops that must become straight-line code.
 */
#ifndef TC_CPU_SIMD_H
#define TC_CPU_SIMD_H

#if defined(__x86_64__)
#define CPU_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#define CPU_NEON 1
#include <arm_neon.h>
#endif

#define CPU_ALIGNED __attribute__((aligned(64))) /* a cache line, the longest vector */

#define CPU_INLINE static inline __attribute__((always_inline))

/* A loop over i = 0 .. n-1 with a constant n <= 16 that must become straight-line code, so that the
 * arrays of vectors it indexes live in registers. */
#if defined(__clang__)
#define CPU_TIMES(i, n) _Pragma("clang loop unroll(full)") for (unsigned i = 0; i < (n); i++)
#else
#define CPU_TIMES(i, n) _Pragma("GCC unroll 16") for (unsigned i = 0; i < (n); i++)
#endif

#endif /* TC_CPU_SIMD_H */
