#include "cpu_kernels.h"
#include "cpu_simd.h"

#include <math.h>

/* Columns expanded at a time, a multiple of every group size: 16 rows of them stay in the nearest
 * caches. Their sums are loaded and stored once in 32 steps. */
#define CPU_TILE(lanes) (32 * (lanes))

/* Bytes that the software prefetch runs ahead in a product with one vector: in the one stream of W4
 * units, and in each of four streams of halves. */
#define CPU_AHEAD_W4 8192
#define CPU_AHEAD_HALVES 2048

/* Keeps 32 floats in memory, from where a broadcast is free: compilers like to hold them in
 * registers and spend a shuffle on each. */
#define CPU_IN_MEMORY(array) __asm__("" : "+m"(*(float(*)[32])(array)))

/* ---- the operations of a level ----
 *
 * cpu_LEVEL_f, _u and _i are vectors of LANES floats, u32 and i32; for each level
 *   load, store   unaligned
 *   set1(a)       all lanes a
 *   fma(a, b, c)  a * b + c, in one rounding where the processor has it
 *   words(p)      LANES u32 of a W4 unit
 *   nibble(v, s)  bits s .. s+3 of each u32 as a float (s must become a constant)
 *   f16, bf16     LANES halves, exact
 *   reduce        see tc__kernels
 * Macros with a level as parameter write the kernels in these operations.
 */

#define CPU_VECTORS(level, lanes)                                                                  \
    typedef float cpu_##level##_f __attribute__((vector_size(4 * (lanes))));                       \
    typedef uint32_t cpu_##level##_u __attribute__((vector_size(4 * (lanes))));                    \
    typedef int32_t cpu_##level##_i __attribute__((vector_size(4 * (lanes))));

/* Four lanes in the compiler's portable vectors: SSE2 on x86-64, NEON on AArch64. */
#define CPU_FOUR_LANES(level)                                                                      \
    CPU_VECTORS(level, 4)                                                                          \
    CPU_INLINE cpu_##level##_f cpu_##level##_load(const float *p) {                                \
        cpu_##level##_f v;                                                                         \
        memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                  \
    }                                                                                              \
    CPU_INLINE void cpu_##level##_store(float *p, cpu_##level##_f v) {                             \
        memcpy(p, &v, sizeof v);                                                                   \
    }                                                                                              \
    CPU_INLINE cpu_##level##_f cpu_##level##_set1(float a) {                                       \
        return (cpu_##level##_f){a, a, a, a};                                                      \
    }                                                                                              \
    CPU_INLINE cpu_##level##_u cpu_##level##_words(const uint8_t *p) {                             \
        cpu_##level##_u v;                                                                         \
        memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                  \
    }                                                                                              \
    CPU_INLINE cpu_##level##_f cpu_##level##_nibble(cpu_##level##_u v, unsigned shift) {           \
        return __builtin_convertvector((cpu_##level##_i)(v >> shift & 15), cpu_##level##_f);       \
    }                                                                                              \
    CPU_INLINE cpu_##level##_u cpu_##level##_halves(const uint16_t *p) {                           \
        return (cpu_##level##_u){p[0], p[1], p[2], p[3]};                                          \
    }                                                                                              \
    CPU_INLINE cpu_##level##_f cpu_##level##_bf16(const uint16_t *p) {                             \
        return (cpu_##level##_f)(cpu_##level##_halves(p) << 16);                                   \
    }                                                                                              \
    static void cpu_##level##_reduce(const float *s, float *y) {                                   \
        for (int r = 0; r < 16; r++, s += 4) y[r] = (s[0] + s[1]) + (s[2] + s[3]);                 \
    }

CPU_FOUR_LANES(portable)
#define CPU_PORTABLE /* target attributes: none */

CPU_INLINE cpu_portable_f cpu_portable_fma(cpu_portable_f a, cpu_portable_f b, cpu_portable_f c) {
    return a * b + c;
}
/* The exponent moves from bit 10 to bit 23 and gains 127 - 15: as a product, which also normalises
 * subnormal numbers. What comes out at 65536 and above was infinity or no number. */
CPU_INLINE cpu_portable_f cpu_portable_f16(const uint16_t *p) {
    cpu_portable_u half = cpu_portable_halves(p), sign = (half & 0x8000) << 16;
    cpu_portable_f value = (cpu_portable_f)((half & 0x7fff) << 13) * 0x1p112f;
    cpu_portable_u huge = (cpu_portable_u)(value >= 65536.0f) & 0x7f800000;
    return (cpu_portable_f)((cpu_portable_u)value | huge | sign);
}

#if CPU_NEON
CPU_FOUR_LANES(neon)
#define CPU_NEON_TARGET /* none: part of the base architecture */

CPU_INLINE cpu_neon_f cpu_neon_fma(cpu_neon_f a, cpu_neon_f b, cpu_neon_f c) {
    return (cpu_neon_f)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
CPU_INLINE cpu_neon_f cpu_neon_f16(const uint16_t *p) {
    return (cpu_neon_f)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
#endif

#if CPU_X86
#define CPU_AVX2 __attribute__((target("avx2,fma,f16c")))
CPU_VECTORS(avx2, 8)

CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_load(const float *p) {
    return _mm256_loadu_ps(p);
}
CPU_AVX2 CPU_INLINE void cpu_avx2_store(float *p, cpu_avx2_f v) {
    _mm256_storeu_ps(p, v);
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_set1(float a) {
    return _mm256_set1_ps(a);
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_fma(cpu_avx2_f a, cpu_avx2_f b, cpu_avx2_f c) {
    return _mm256_fmadd_ps(a, b, c);
}
CPU_AVX2 CPU_INLINE cpu_avx2_u cpu_avx2_words(const uint8_t *p) {
    return (cpu_avx2_u)_mm256_loadu_si256((const __m256i *)p);
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_nibble(cpu_avx2_u v, unsigned shift) {
    return _mm256_cvtepi32_ps((__m256i)(v >> shift & 15));
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_bf16(const uint16_t *p) {
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (cpu_avx2_f)_mm256_slli_epi32(words, 16);
}
/* Four rows of 8 lanes: the sum of each. */
CPU_AVX2 CPU_INLINE __m128 cpu_avx2_add4(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
CPU_AVX2 static void cpu_avx2_reduce(const float *s, float *y) {
    for (int r = 0; r < 16; r += 4, s += 32)
        _mm_storeu_ps(y + r, cpu_avx2_add4(_mm256_loadu_ps(s), _mm256_loadu_ps(s + 8),
                                           _mm256_loadu_ps(s + 16), _mm256_loadu_ps(s + 24)));
}

#define CPU_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")))
CPU_VECTORS(avx512, 16)

CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_load(const float *p) {
    return _mm512_loadu_ps(p);
}
CPU_AVX512 CPU_INLINE void cpu_avx512_store(float *p, cpu_avx512_f v) {
    _mm512_storeu_ps(p, v);
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_set1(float a) {
    return _mm512_set1_ps(a);
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_fma(cpu_avx512_f a, cpu_avx512_f b, cpu_avx512_f c) {
    return _mm512_fmadd_ps(a, b, c);
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_bf16(const uint16_t *p) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (cpu_avx512_f)_mm512_slli_epi32(words, 16);
}
/* The upper half of a row's lanes onto the lower half. */
CPU_AVX512 CPU_INLINE __m256 cpu_avx512_fold(const float *s) {
    return _mm256_add_ps(_mm256_loadu_ps(s), _mm256_loadu_ps(s + 8));
}
CPU_AVX512 static void cpu_avx512_reduce(const float *s, float *y) {
    for (int r = 0; r < 16; r += 4, s += 64)
        _mm_storeu_ps(y + r, cpu_avx2_add4(cpu_avx512_fold(s), cpu_avx512_fold(s + 16),
                                           cpu_avx512_fold(s + 32), cpu_avx512_fold(s + 48)));
}
#endif /* CPU_X86 */

/* ---- products of a tile with vectors ---- */

/* tc__kernels' multiply for COUNT vectors: sums of 4 rows x COUNT vectors in registers, so that
 * 4 * COUNT multiply-adds take 4 + COUNT loads. */
#define CPU_MULTIPLY(level, TARGET, LANES, COUNT)                                                  \
    TARGET static void cpu_##level##_multiply##COUNT(const float *tile, size_t stride, size_t n,   \
                                                     const float *x, size_t x_stride,              \
                                                     float *sums) {                                \
        for (int r = 0; r < 16; r += 4, tile += 4 * stride, sums += 4 * LANES) {                   \
            cpu_##level##_f c[COUNT][4], xs[COUNT];                                                \
            CPU_TIMES(v, COUNT) CPU_TIMES(k, 4) {                                                  \
                c[v][k] = cpu_##level##_load(sums + (16 * v + k) * LANES);                         \
            }                                                                                      \
            for (size_t i = 0; i < n; i += LANES) {                                                \
                CPU_TIMES(v, COUNT) {                                                              \
                    xs[v] = cpu_##level##_load(x + v * x_stride + i);                              \
                }                                                                                  \
                CPU_TIMES(k, 4) {                                                                  \
                    cpu_##level##_f w = cpu_##level##_load(tile + k * stride + i);                 \
                    CPU_TIMES(v, COUNT) {                                                          \
                        c[v][k] = cpu_##level##_fma(w, xs[v], c[v][k]);                            \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            CPU_TIMES(v, COUNT) CPU_TIMES(k, 4) {                                                  \
                cpu_##level##_store(sums + (16 * v + k) * LANES, c[v][k]);                         \
            }                                                                                      \
        }                                                                                          \
    }

/* 1 to 3 vectors at a time where there are 16 registers, 1 to 6 where there are 32. */
#define CPU_MULTIPLY_3(level, TARGET, LANES)                                                       \
    CPU_MULTIPLY(level, TARGET, LANES, 1)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 2)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 3)
#define CPU_MULTIPLIES_3(level)                                                                    \
    cpu_##level##_multiply1, cpu_##level##_multiply2, cpu_##level##_multiply3
#define CPU_MULTIPLY_6(level, TARGET, LANES)                                                       \
    CPU_MULTIPLY_3(level, TARGET, LANES)                                                           \
    CPU_MULTIPLY(level, TARGET, LANES, 4)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 5)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 6)
#define CPU_MULTIPLIES_6(level)                                                                    \
    CPU_MULTIPLIES_3(level), cpu_##level##_multiply4, cpu_##level##_multiply5,                     \
        cpu_##level##_multiply6

CPU_MULTIPLY_3(portable, CPU_PORTABLE, 4)
#if CPU_NEON
CPU_MULTIPLY_6(neon, CPU_NEON_TARGET, 4)
#endif
#if CPU_X86
CPU_MULTIPLY_3(avx2, CPU_AVX2, 8)
CPU_MULTIPLY_6(avx512, CPU_AVX512, 16)
#endif

/* ---- 4-bit weights ----
 *
 * A unit's words lie in chunks of 64 columns with 16 places, or of 32 columns with 8 places when
 * the group size is 32. In a chunk the words of rows i and i + 8 are one run of `places` words. Of
 * word p bits 8 m .. 8 m + 3 belong to row i, the next four to row i + 8; both belong to element
 * `places * m + p` of the chunk's ordered vector.
 *
 * A weight scale * (q - zero) is computed as q * scale + (-zero * scale), without any rounding
 * error: scale has 11 bits, q and zero have 4. */

#define CPU_PLACES(group_size) ((group_size) == 32 ? 8u : 16u)

#define CPU_W4(level, TARGET, LANES)                                                               \
    /* pairs (scale, -zero * scale): of row i at 4 i, of row i + 8 at 4 i + 2 */                   \
    TARGET CPU_INLINE void cpu_##level##_scales(const uint8_t *halves, float pairs[32]) {          \
        for (int i = 0; i < 32; i += LANES)                                                        \
            cpu_##level##_store(pairs + i, cpu_##level##_f16((const uint16_t *)halves + i));       \
        for (int i = 0; i < 32; i += 2) pairs[i + 1] *= -pairs[i];                                 \
        CPU_IN_MEMORY(pairs);                                                                      \
    }                                                                                              \
    TARGET CPU_INLINE cpu_##level##_f cpu_##level##_weight(cpu_##level##_u words, unsigned shift,  \
                                                           const float *pair) {                    \
        return cpu_##level##_fma(cpu_##level##_nibble(words, shift), cpu_##level##_set1(pair[0]),  \
                                 cpu_##level##_set1(pair[1]));                                     \
    }                                                                                              \
    /* One unit to rows of ordered floats, `stride` apart. */                                      \
    TARGET static void cpu_##level##_w4_expand(const uint8_t *unit, unsigned group_size,           \
                                               float *tile, size_t stride) {                       \
        const unsigned places = CPU_PLACES(group_size);                                            \
        CPU_ALIGNED float pairs[32];                                                               \
        cpu_##level##_scales(unit + 8 * group_size, pairs);                                        \
        for (unsigned i = 0; i < 8; i++)                                                           \
            for (unsigned column = 0; column < group_size; column += 4 * places)                   \
                for (unsigned p = 0; p < places; p += LANES) {                                     \
                    cpu_##level##_u v =                                                            \
                        cpu_##level##_words(unit + 8 * column + 4 * (places * i + p));             \
                    float *low = tile + i * stride + column + p, *high = low + 8 * stride;         \
                    CPU_TIMES(m, 4) {                                                              \
                        cpu_##level##_store(low + places * m,                                      \
                                            cpu_##level##_weight(v, 8 * m, pairs + 4 * i));        \
                        cpu_##level##_store(                                                       \
                            high + places * m,                                                     \
                            cpu_##level##_weight(v, 8 * m + 4, pairs + 4 * i + 2));                \
                    }                                                                              \
                }                                                                                  \
    }                                                                                              \
    /* sums[16][LANES] of `groups` units that follow each other */                                 \
    TARGET CPU_INLINE void cpu_##level##_w4_run(const uint8_t *unit, size_t groups,                \
                                                unsigned group_size, const unsigned places,        \
                                                const float *x, float *sums) {                     \
        for (; groups; groups--, x += group_size, unit += TC__UNIT_BYTES(group_size)) {            \
            CPU_ALIGNED float pairs[32];                                                           \
            cpu_##level##_scales(unit + 8 * group_size, pairs);                                    \
            for (unsigned i = 0; i < 8; i++) {                                                     \
                cpu_##level##_f low = cpu_##level##_load(sums + i * LANES);                        \
                cpu_##level##_f high = cpu_##level##_load(sums + (i + 8) * LANES);                 \
                for (unsigned column = 0; column < group_size; column += 4 * places) {             \
                    const uint8_t *words = unit + 8 * column + 4 * places * i;                     \
                    __builtin_prefetch(words + CPU_AHEAD_W4);                                      \
                    CPU_TIMES(m, 4) CPU_TIMES(s, places / LANES) {                                 \
                        cpu_##level##_f xs =                                                       \
                            cpu_##level##_load(x + column + places * m + LANES * s);               \
                        cpu_##level##_u v = cpu_##level##_words(words + 4 * LANES * s);            \
                        low = cpu_##level##_fma(cpu_##level##_weight(v, 8 * m, pairs + 4 * i), xs, \
                                                low);                                              \
                        high = cpu_##level##_fma(                                                  \
                            cpu_##level##_weight(v, 8 * m + 4, pairs + 4 * i + 2), xs, high);      \
                    }                                                                              \
                }                                                                                  \
                cpu_##level##_store(sums + i * LANES, low);                                        \
                cpu_##level##_store(sums + (i + 8) * LANES, high);                                 \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    TARGET static void cpu_##level##_w4_sums(const uint8_t *unit, size_t groups,                   \
                                             unsigned group_size, const float *x, float *sums) {   \
        memset(sums, 0, 16 * LANES * sizeof *sums);                                                \
        if (group_size == 32)                                                                      \
            cpu_##level##_w4_run(unit, groups, group_size, 8, x, sums);                            \
        else                                                                                       \
            cpu_##level##_w4_run(unit, groups, group_size, 16, x, sums);                           \
    }

CPU_W4(portable, CPU_PORTABLE, 4)
#if CPU_NEON
CPU_W4(neon, CPU_NEON_TARGET, 4)
#endif
#if CPU_X86
CPU_W4(avx2, CPU_AVX2, 8)

/* AVX-512, group sizes 64 and 128: 64 bytes are rows i and i + 8 of 64 columns. A permutation looks
 * only at the low 4 bits of each index, so that one shift and one look-up in a register that holds
 * the 16 possible weights of a row and group replace mask, conversion and scaling. */

CPU_AVX512 CPU_INLINE void cpu_avx512_scales(const uint8_t *halves, float pairs[32]) {
    for (int i = 0; i < 32; i += 16) {
        __m512 v = cpu_avx512_f16((const uint16_t *)halves + i);
        __m512 minus_scale = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_moveldup_ps(v));
        _mm512_storeu_ps(pairs + i, _mm512_mask_mul_ps(v, 0xaaaa, v, minus_scale));
    }
    CPU_IN_MEMORY(pairs);
}
/* The weights that q = 0..15 stand for. */
CPU_AVX512 CPU_INLINE __m512 cpu_avx512_table(const float *pair) {
    const __m512 q = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_fmadd_ps(q, _mm512_set1_ps(pair[0]), _mm512_set1_ps(pair[1]));
}
CPU_AVX512 CPU_INLINE __m512 cpu_avx512_weight(__m512i words, unsigned shift, __m512 table) {
    return _mm512_permutexvar_ps(shift ? _mm512_srli_epi32(words, shift) : words, table);
}

CPU_AVX512 static void cpu_avx512_w4_expand(const uint8_t *unit, unsigned group_size, float *tile,
                                            size_t stride) {
    if (group_size == 32) {
        cpu_avx2_w4_expand(unit, group_size, tile, stride);
        return;
    }
    CPU_ALIGNED float pairs[32];
    cpu_avx512_scales(unit + 8 * group_size, pairs);
    for (unsigned i = 0; i < 8; i++) {
        __m512 low = cpu_avx512_table(pairs + 4 * i);
        __m512 high = cpu_avx512_table(pairs + 4 * i + 2);
        for (unsigned column = 0; column < group_size; column += 64) {
            __m512i v = _mm512_loadu_si512(unit + 8 * column + 64 * i);
            float *to = tile + i * stride + column;
            CPU_TIMES(m, 4) {
                _mm512_storeu_ps(to + 16 * m, cpu_avx512_weight(v, 8 * m, low));
                _mm512_storeu_ps(to + 8 * stride + 16 * m, cpu_avx512_weight(v, 8 * m + 4, high));
            }
        }
    }
}

CPU_AVX512 CPU_INLINE void cpu_avx512_w4_run(const uint8_t *unit, size_t groups,
                                             const unsigned chunks, const float *x, float *sums) {
    __m512 c[16];
    CPU_TIMES(r, 16) {
        c[r] = _mm512_setzero_ps();
    }
    for (; groups; groups--, x += 64 * chunks, unit += 512 * chunks + 64) {
        CPU_ALIGNED float pairs[32];
        cpu_avx512_scales(unit + 512 * chunks, pairs);
        CPU_TIMES(i, 8) {
            __m512 low = cpu_avx512_table(pairs + 4 * i);
            __m512 high = cpu_avx512_table(pairs + 4 * i + 2);
            CPU_TIMES(chunk, chunks) {
                const uint8_t *words = unit + 512 * chunk + 64 * i;
                __m512i v = _mm512_loadu_si512(words);
                __builtin_prefetch(words + CPU_AHEAD_W4);
                CPU_TIMES(m, 4) {
                    __m512 xs = _mm512_loadu_ps(x + 64 * chunk + 16 * m);
                    c[i] = _mm512_fmadd_ps(cpu_avx512_weight(v, 8 * m, low), xs, c[i]);
                    c[i + 8] = _mm512_fmadd_ps(cpu_avx512_weight(v, 8 * m + 4, high), xs, c[i + 8]);
                }
            }
        }
    }
    CPU_TIMES(r, 16) {
        _mm512_storeu_ps(sums + 16 * r, c[r]);
    }
}
CPU_AVX512 static void cpu_avx512_w4_sums(const uint8_t *unit, size_t groups, unsigned group_size,
                                          const float *x, float *sums) {
    if (group_size == 128) {
        cpu_avx512_w4_run(unit, groups, 2, x, sums);
    } else if (group_size == 64) {
        cpu_avx512_w4_run(unit, groups, 1, x, sums);
    } else { /* 64 bytes hold four rows of 32 columns: through a tile, in the same order */
        CPU_ALIGNED float tile[16 * 256];
        memset(sums, 0, 16 * 16 * sizeof *sums);
        for (size_t now; groups; groups -= now, x += 32 * now) {
            now = groups < 8 ? groups : 8;
            for (size_t i = 0; i < now; i++, unit += TC__UNIT_BYTES(32))
                cpu_avx2_w4_expand(unit, 32, tile + 32 * i, 256);
            cpu_avx512_multiply1(tile, 256, 32 * now, x, 0, sums);
        }
    }
}
#endif /* CPU_X86 */

/* ---- 16-bit weights ---- */

/* TYPE is f16 or bf16. The last, incomplete step of a row is completed with zeros. */
#define CPU_HALVES(level, TARGET, LANES, TYPE)                                                     \
    TARGET CPU_INLINE cpu_##level##_f cpu_##level##_##TYPE##_rest(const uint16_t *p, size_t n) {   \
        uint16_t rest[LANES] = {0};                                                                \
        memcpy(rest, p, n * sizeof *p);                                                            \
        return cpu_##level##_##TYPE(rest);                                                         \
    }                                                                                              \
    TARGET static void cpu_##level##_##TYPE##_expand(const uint16_t *const rows[16], size_t n,     \
                                                     float *tile, size_t stride) {                 \
        for (int r = 0; r < 16; r++, tile += stride) {                                             \
            size_t i = 0;                                                                          \
            for (; i + LANES <= n; i += LANES)                                                     \
                cpu_##level##_store(tile + i, cpu_##level##_##TYPE(rows[r] + i));                  \
            if (i < n)                                                                             \
                cpu_##level##_store(tile + i, cpu_##level##_##TYPE##_rest(rows[r] + i, n - i));    \
        }                                                                                          \
    }                                                                                              \
    /* four rows at a time: four streams, four chains */                                           \
    TARGET static void cpu_##level##_##TYPE##_sums(const uint16_t *const rows[16], size_t n,       \
                                                   const float *x, float *sums) {                  \
        for (int r = 0; r < 16; r += 4, rows += 4, sums += 4 * LANES) {                            \
            cpu_##level##_f c[4];                                                                  \
            CPU_TIMES(k, 4) {                                                                      \
                c[k] = cpu_##level##_set1(0);                                                      \
            }                                                                                      \
            size_t i = 0;                                                                          \
            for (; i + LANES <= n; i += LANES) {                                                   \
                cpu_##level##_f xs = cpu_##level##_load(x + i);                                    \
                CPU_TIMES(k, 4) {                                                                  \
                    __builtin_prefetch((const uint8_t *)(rows[k] + i) + CPU_AHEAD_HALVES);         \
                    c[k] = cpu_##level##_fma(cpu_##level##_##TYPE(rows[k] + i), xs, c[k]);         \
                }                                                                                  \
            }                                                                                      \
            CPU_TIMES(k, 4) {                                                                      \
                if (i < n)                                                                         \
                    c[k] = cpu_##level##_fma(cpu_##level##_##TYPE##_rest(rows[k] + i, n - i),      \
                                             cpu_##level##_load(x + i), c[k]);                     \
                cpu_##level##_store(sums + k * LANES, c[k]);                                       \
            }                                                                                      \
        }                                                                                          \
    }

/* ---- attention ---- */

/* WIDTH vectors of the result in registers. */
#define CPU_BLEND(level, TARGET, LANES, WIDTH)                                                     \
    TARGET CPU_INLINE void cpu_##level##_blend##WIDTH(const float *p, size_t n, const float *rows, \
                                                      size_t stride, float *out) {                 \
        cpu_##level##_f c[WIDTH];                                                                  \
        CPU_TIMES(v, WIDTH) {                                                                      \
            c[v] = cpu_##level##_load(out + v * LANES);                                            \
        }                                                                                          \
        for (size_t j = 0; j < n; j++, rows += stride) {                                           \
            cpu_##level##_f weight = cpu_##level##_set1(p[j]);                                     \
            CPU_TIMES(v, WIDTH) {                                                                  \
                c[v] = cpu_##level##_fma(weight, cpu_##level##_load(rows + v * LANES), c[v]);      \
            }                                                                                      \
        }                                                                                          \
        CPU_TIMES(v, WIDTH) {                                                                      \
            cpu_##level##_store(out + v * LANES, c[v]);                                            \
        }                                                                                          \
    }

/* exp(x) for x clamped to -87..88: x = n ln 2 + r, |r| <= ln 2 / 2; the series of exp(r), its
 * exponent raised by n. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. The
 * relative error is below 3e-7. */
#define CPU_ATTENTION(level, TARGET, LANES, WIDTH)                                                 \
    TARGET CPU_INLINE cpu_##level##_f cpu_##level##_exp(cpu_##level##_f x) {                       \
        static const float series[] = {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24,                 \
                                       1.f / 6,    1.f / 2,   1,         1};                       \
        const cpu_##level##_f least = cpu_##level##_set1(-87), most = cpu_##level##_set1(88);      \
        cpu_##level##_u low = (cpu_##level##_u)(x < least), high = (cpu_##level##_u)(x > most);    \
        x = (cpu_##level##_f)((low & (cpu_##level##_u)least) | (high & (cpu_##level##_u)most) |    \
                              (~(low | high) & (cpu_##level##_u)x));                               \
        const cpu_##level##_f magic = cpu_##level##_set1(0x1.8p23f);                               \
        cpu_##level##_f t = cpu_##level##_fma(x, cpu_##level##_set1(1.44269504f), magic);          \
        cpu_##level##_f n = t - magic;                                                             \
        cpu_##level##_f r = cpu_##level##_fma(n, cpu_##level##_set1(-0x1.62e4p-1f), x);            \
        r = cpu_##level##_fma(n, cpu_##level##_set1(-0x1.7f7d1cp-20f), r);                         \
        cpu_##level##_f y = cpu_##level##_set1(series[0]);                                         \
        CPU_TIMES(i, 7) {                                                                          \
            y = cpu_##level##_fma(y, r, cpu_##level##_set1(series[i + 1]));                        \
        }                                                                                          \
        return (cpu_##level##_f)((cpu_##level##_u)y + ((cpu_##level##_u)t << 23));                 \
    }                                                                                              \
    TARGET static float cpu_##level##_exponential(float *p, size_t n, float shift) {               \
        static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};   \
        cpu_##level##_i left; /* of each lane: places up to n, its own included */                 \
        memcpy(&left, numbers, sizeof left);                                                       \
        left = (int32_t)n - left;                                                                  \
        cpu_##level##_f total = cpu_##level##_set1(0);                                             \
        for (size_t i = 0; i < n || i % TC__LANES_MAX; i += LANES, left -= LANES) {                \
            cpu_##level##_f x = cpu_##level##_load(p + i) - cpu_##level##_set1(shift);             \
            cpu_##level##_u y = (cpu_##level##_u)cpu_##level##_exp(x);                             \
            y &= (cpu_##level##_u)(left > 0);                                                      \
            cpu_##level##_store(p + i, (cpu_##level##_f)y);                                        \
            total += (cpu_##level##_f)y;                                                           \
        }                                                                                          \
        float sum = 0;                                                                             \
        CPU_TIMES(i, LANES) {                                                                      \
            sum += total[i];                                                                       \
        }                                                                                          \
        return sum;                                                                                \
    }                                                                                              \
    CPU_BLEND(level, TARGET, LANES, WIDTH)                                                         \
    CPU_BLEND(level, TARGET, LANES, 1)                                                             \
    TARGET static void cpu_##level##_blend(const float *p, size_t n, const float *rows,            \
                                           size_t stride, size_t width, float *out) {              \
        size_t i = 0;                                                                              \
        for (; i + WIDTH * LANES <= width; i += WIDTH * LANES)                                     \
            cpu_##level##_blend##WIDTH(p, n, rows + i, stride, out + i);                           \
        for (; i < width; i += LANES) cpu_##level##_blend1(p, n, rows + i, stride, out + i);       \
    }

/* ---- the sets ---- */

/* MOST: of CPU_MULTIPLY_MOST; WIDTH: of CPU_BLEND; SINGLE: see tc__kernels; FIX and the rest: the
 * kernels of fixed point or NULLs. */
#define CPU_KERNELS(level, LANES, MOST, SINGLE, FIX, UNPACK, MULTIPLY)                             \
    LANES, SINGLE, MOST, cpu_##level##_w4_sums, {cpu_##level##_f16_sums, cpu_##level##_bf16_sums}, \
        cpu_##level##_w4_expand, {cpu_##level##_f16_expand, cpu_##level##_bf16_expand},            \
        {CPU_MULTIPLIES_##MOST(level)}, cpu_##level##_reduce, cpu_##level##_exponential,           \
        cpu_##level##_blend, FIX, UNPACK, MULTIPLY
#define CPU_SET(level, NAME, TARGET, LANES, MOST, WIDTH, SINGLE)                                   \
    CPU_HALVES(level, TARGET, LANES, f16)                                                          \
    CPU_HALVES(level, TARGET, LANES, bf16)                                                         \
    CPU_ATTENTION(level, TARGET, LANES, WIDTH)                                                     \
    static const tc__kernels cpu_##level = {                                                       \
        NAME, #level, CPU_KERNELS(level, LANES, MOST, SINGLE, NULL, NULL, NULL)};

CPU_SET(portable, "portable", CPU_PORTABLE, 4, 3, 4, 1)
#if CPU_NEON
CPU_SET(neon, "NEON", CPU_NEON_TARGET, 4, 6, 8, 1)
#endif
#if CPU_X86
CPU_SET(avx2, "AVX2", CPU_AVX2, 8, 3, 8, 1)
CPU_SET(avx512, "AVX-512", CPU_AVX512, 16, 6, 8, 3)
static const tc__kernels cpu_vnni = {
    "AVX-512 VNNI", "avx512vnni",
    CPU_KERNELS(avx512, 16, 6, 3, tc__vnni_fix, tc__vnni_unpack, tc__vnni_multiply)};
#endif

/* Whether this processor and its operating system have what the set needs. */
static bool cpu_has(const tc__kernels *kernels) {
#if CPU_X86
    unsigned a, b, c, d;
    if (kernels == &cpu_portable) return true;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return false;
    if (kernels == &cpu_avx2) return true;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return false;
    return kernels == &cpu_avx512 || __builtin_cpu_supports("avx512vnni");
#else
    (void)kernels;
    return true;
#endif
}

int tc__kernels_choose(const char *level, const tc__kernels **kernels, tc_error *err) {
    static const tc__kernels *const sets[] = {
#if CPU_X86
        &cpu_vnni,
        &cpu_avx512,
        &cpu_avx2,
#endif
#if CPU_NEON
        &cpu_neon,
#endif
        &cpu_portable
    }; /* the best first */
    char have[64] = "";
    for (size_t i = 0; i < TC_COUNT(sets); i++) {
        if (!cpu_has(sets[i])) continue;
        if (!level || strcmp(level, sets[i]->level) == 0) {
            *kernels = sets[i];
            return TC_OK;
        }
        size_t len = strlen(have);
        snprintf(have + len, sizeof have - len, "%s%s", len ? ", " : "", sets[i]->level);
    }
    return tc__fail(err, TC_ERR_DEVICE,
                    "TINYCHAT_CPU: no kernels '%s' for this processor; there are: %s", level, have);
}

/* ---- whole products in floats ---- */

tc__order tc__order_of(const tc__tensor *matrix) {
    if (matrix->type != TC__W4) return TC__ORDER_PLAIN;
    return matrix->group_size == 32 ? TC__ORDER_W4_32 : TC__ORDER_W4_64;
}

/* Where a block's columns from `column` on begin in a W4 matrix. */
static const uint8_t *cpu_unit(const tc__tensor *matrix, size_t block, size_t column) {
    size_t unit = (block * matrix->columns + column) / matrix->group_size;
    return matrix->data + unit * TC__UNIT_BYTES(matrix->group_size);
}

/* The same for a 16-bit matrix's 16 rows; those beyond the last repeat it. */
static void cpu_rows(const tc__tensor *matrix, size_t block, size_t column,
                     const uint16_t *rows[16]) {
    const uint16_t *data = (const uint16_t *)matrix->data + column;
    for (size_t r = 0; r < TC__BLOCK; r++) {
        size_t row = TC__BLOCK * block + r;
        rows[r] = data + (row < matrix->rows ? row : matrix->rows - 1) * matrix->columns;
    }
}

/* y[16] = a block's rows times one vector. Reads each weight once, in the file's order. */
static void cpu_product(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                        const float *x, float *y) {
    CPU_ALIGNED float sums[TC__BLOCK * TC__LANES_MAX];
    if (matrix->type == TC__W4) {
        kernels->w4_sums(cpu_unit(matrix, block, 0), matrix->columns / matrix->group_size,
                         matrix->group_size, x, sums);
    } else {
        const uint16_t *rows[TC__BLOCK];
        cpu_rows(matrix, block, 0, rows);
        kernels->half_sums[matrix->type == TC__BF16](rows, matrix->columns, x, sums);
    }
    kernels->reduce(sums, y);
}

/* A block's columns column .. column + n - 1 to rows of ordered floats, `stride` apart. `column` is
 * a multiple of the group size. */
static void cpu_expand(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                       size_t column, size_t n, float *tile, size_t stride) {
    if (matrix->type == TC__W4) {
        const uint8_t *unit = cpu_unit(matrix, block, column);
        for (size_t i = 0; i < n; i += matrix->group_size) {
            kernels->w4_expand(unit, matrix->group_size, tile + i, stride);
            unit += TC__UNIT_BYTES(matrix->group_size);
        }
    } else {
        const uint16_t *rows[TC__BLOCK];
        cpu_rows(matrix, block, column, rows);
        kernels->half_expand[matrix->type == TC__BF16](rows, n, tile, stride);
    }
}

void tc__multiply_tile(const tc__kernels *kernels, const float *tile, size_t stride, size_t n,
                       const float *x, size_t x_stride, size_t count, float *sums) {
    /* as few calls as possible, of about equal size */
    for (size_t calls = (count + kernels->most - 1) / kernels->most; calls; calls--) {
        size_t now = (count + calls - 1) / calls;
        kernels->multiply[now - 1](tile, stride, n, x, x_stride, sums);
        count -= now;
        x += now * x_stride;
        sums += now * TC__BLOCK * kernels->lanes;
    }
}

/* Asks for bytes that are read soon, before the stream of reads pauses for some microseconds. */
static void cpu_fetch(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

/* Products of a block with several vectors: a piece of the weights is expanded to floats in the
 * first level cache and then multiplied with all vectors. */
static void cpu_products(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                         const float *x, size_t x_stride, size_t count, float *scratch) {
    const size_t lanes = kernels->lanes, columns = matrix->columns, width = CPU_TILE(lanes);
    float *sums = scratch, *tile = scratch + count * TC__BLOCK * lanes;
    memset(sums, 0, count * TC__BLOCK * lanes * sizeof *sums);
    for (size_t column = 0; column < columns; column += width) {
        size_t n = columns - column < width ? columns - column : width;
        cpu_expand(kernels, matrix, block, column, n, tile, width);
        if (matrix->type == TC__W4) cpu_fetch(cpu_unit(matrix, block, column + n), n * 17 / 2);
        tc__multiply_tile(kernels, tile, width, (n + lanes - 1) / lanes * lanes, x + column,
                          x_stride, count, sums);
    }
}

static void cpu_float_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                           size_t end, const float *x, size_t x_stride, size_t count,
                           float *scratch, tc__rows_fn take, void *user) {
    const bool together = count > kernels->single;
    float y[TC__BLOCK];
    for (size_t block = begin; block < end; block++) {
        size_t row = TC__BLOCK * block, rows = matrix->rows - row;
        if (rows > TC__BLOCK) rows = TC__BLOCK;
        if (together) cpu_products(kernels, matrix, block, x, x_stride, count, scratch);
        for (size_t v = 0; v < count; v++) {
            if (together)
                kernels->reduce(scratch + v * TC__BLOCK * kernels->lanes, y);
            else
                cpu_product(kernels, matrix, block, x + v * x_stride, y);
            take(user, v, row, rows, y);
        }
    }
}

/* ---- whole products in fixed point ---- */

void tc__fix(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin, size_t end,
             const float *x, size_t x_stride, size_t count, float *fixed) {
    const unsigned group_size = matrix->group_size;
    for (size_t i = begin; i < end; i++)
        kernels->fix(x + i % count * x_stride + i / count * group_size, group_size,
                     fixed + i * group_size);
}

/* y[blocks][count][16] of up to TC__FIXED_BLOCKS row blocks, unit by unit: the weights of a unit
 * become bytes in the first level cache and are then multiplied with all vectors. */
static void cpu_fixed_products(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                               size_t blocks, const float *fixed, size_t count, float *y) {
    CPU_ALIGNED tc__fixed_unit units[TC__FIXED_BLOCKS];
    const unsigned group_size = matrix->group_size;
    const size_t bytes = TC__UNIT_BYTES(group_size), ahead = blocks == 1 ? CPU_AHEAD_W4 : bytes;
    memset(y, 0, blocks * count * TC__BLOCK * sizeof *y);
    for (size_t column = 0; column < matrix->columns; column += group_size) {
        for (size_t b = 0; b < blocks; b++) {
            const uint8_t *unit = cpu_unit(matrix, block + b, column);
            cpu_fetch(unit + ahead, bytes);
            kernels->unpack(unit, group_size, &units[b]);
        }
        kernels->multiply_fixed(units, blocks, group_size, fixed + column * count, count, y);
    }
}

static void cpu_fixed_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                           size_t end, const float *fixed, size_t count, float *scratch,
                           tc__rows_fn take, void *user) {
    const size_t most = count < 4 ? 1 : TC__FIXED_BLOCKS; /* few vectors: the file's order */
    for (size_t block = begin, now; block < end; block += now) {
        now = end - block < most ? end - block : most;
        cpu_fixed_products(kernels, matrix, block, now, fixed, count, scratch);
        const float *sums = scratch;
        for (size_t row = TC__BLOCK * block; row < TC__BLOCK * (block + now); row += TC__BLOCK) {
            size_t rows = matrix->rows - row < TC__BLOCK ? matrix->rows - row : TC__BLOCK;
            for (size_t v = 0; v < count; v++, sums += TC__BLOCK) {
                float y[TC__BLOCK];
                for (size_t r = 0; r < TC__BLOCK; r++) y[r] = sums[TC__FIXED_ROW(r)];
                take(user, v, row, rows, y);
            }
        }
    }
}

/* ---- whole products of either kind ---- */

/* A tile and sums; in fixed point fewer sums and no tile. */
size_t tc__multiply_scratch(size_t count) {
    return TC__BLOCK * (CPU_TILE(TC__LANES_MAX) + count * TC__LANES_MAX);
}

void tc__multiply_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                       size_t end, const float *x, size_t x_stride, size_t count, float *scratch,
                       tc__rows_fn take, void *user) {
    if (tc__fixes(kernels, matrix))
        cpu_fixed_rows(kernels, matrix, begin, end, x, count, scratch, take, user);
    else
        cpu_float_rows(kernels, matrix, begin, end, x, x_stride, count, scratch, take, user);
}
