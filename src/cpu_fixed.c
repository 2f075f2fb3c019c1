#include "cpu_fixed.h"
#include "cpu_simd.h"

#include <math.h>

#if CPU_X86
#define FIXED_VNNI __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")))

/* 32-bit lanes. GCC copies registers in loops that sum in __m512i, whose lanes have 64. */
typedef int32_t fixed_lanes __attribute__((vector_size(64)));

/* ---- vectors ---- */

/* The exponent e of the step 2^e: the largest magnitude becomes at most 0x7f7f7f, the largest
 * number that three limbs hold. `bits` are the magnitude's; above 2^127 or so, and for what is no
 * number, there is none: 0xff. Biased by 127. */
static uint32_t fixed_step(uint32_t bits) {
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    largest *= 1.004f; /* 2^23 / 0x7f7f7f, and some */
    memcpy(&bits, &largest, sizeof bits);
    uint32_t exponent = bits >> 23;
    return exponent == 0xff ? 0xff : exponent < 23 ? 1 : exponent - 22;
}

/* Bits 8 k .. 8 k + 7 of u[0..3] as a signed limb in bytes 0..3; u have 128 added to every limb. */
FIXED_VNNI CPU_INLINE __m256i fixed_limb(const __m256i u[4], const unsigned k) {
    __m256i limb = _mm256_set1_epi32((int)0x80808080);
    CPU_TIMES(m, 4) {
        __m256i byte = _mm256_and_si256(_mm256_srli_epi32(u[m], 8 * k), _mm256_set1_epi32(255));
        limb = _mm256_xor_si256(limb, _mm256_slli_epi32(byte, 8 * m));
    }
    return limb;
}

/* Where words of a unit are `places` in a row (see cpu_kernels.c), element places * m + p of an
 * ordered chunk is byte m of word p: so are the limbs, and the kernels need no shuffles. */
FIXED_VNNI void tc__vnni_fix(const float *x, unsigned group_size, float *fixed) {
    const unsigned places = group_size == 32 ? 8 : 16;
    __m512i largest = _mm512_setzero_si512();
    for (unsigned i = 0; i < group_size; i += 16)
        largest = _mm512_max_epu32(
            largest, _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi32(0x7fffffff)));
    const uint32_t exponent = fixed_step(_mm512_reduce_max_epu32(largest));
    const uint32_t bits[2] = {exponent << 23, (254 - exponent) << 23};
    float step, inverse;
    memcpy(&step, &bits[0], sizeof step);
    memcpy(&inverse, &bits[1], sizeof inverse);
    if (exponent == 0xff) step = NAN, inverse = 0;

    uint8_t *to = (uint8_t *)fixed;
    __m256i totals[3] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (unsigned column = 0; column < group_size; column += 4 * places)
        for (unsigned p = 0; p < places; p += 8) {
            __m256i u[4];
            CPU_TIMES(m, 4) {
                __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + column + places * m + p),
                                         _mm256_set1_ps(inverse));
                u[m] = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(0x808080));
            }
            CPU_TIMES(k, 3) {
                __m256i limb = fixed_limb(u, k);
                totals[k] = _mm256_dpbusd_epi32(totals[k], _mm256_set1_epi8(1), limb);
                _mm256_storeu_si256((__m256i *)(to + (2 - k) * group_size + column + 4 * p), limb);
            }
        }

    int16_t sums[4] = {0, 0, 0, 0};
    for (unsigned k = 0; k < 3; k++) {
        int32_t lanes[8];
        _mm256_storeu_si256((__m256i *)lanes, totals[k]);
        for (unsigned i = 0; i < 8; i++) sums[k] = (int16_t)(sums[k] + lanes[i]);
    }
    memcpy(to + 3 * group_size, &step, sizeof step);
    memcpy(to + 3 * group_size + sizeof step, sums, sizeof sums);
}

/* ---- units ---- */

/* 8 columns of 16 rows from the nibbles of 8 x 2 words. */
FIXED_VNNI CPU_INLINE void fixed_nibbles(__m512i words, uint8_t to[2][64]) {
    const __m512i mask = _mm512_set1_epi8(15);
    _mm512_store_si512(to[0], _mm512_and_si512(words, mask));
    _mm512_store_si512(to[1], _mm512_and_si512(_mm512_srli_epi16(words, 4), mask));
}

/* Group sizes 64 and 128: 64 bytes are a row's eight pairs of words for 64 columns (and the row's
 * that is 8 further). Transposed, 64 bytes are pair t of eight rows in the order 0, 4, 1, 5, ... */
FIXED_VNNI CPU_INLINE void fixed_transpose(const uint8_t *words, uint8_t to[8][2][64]) {
    __m512i rows[8], pairs[4];
    CPU_TIMES(i, 8) {
        rows[i] = _mm512_loadu_si512(words + 64 * i);
    }
    CPU_TIMES(odd, 2) {
        CPU_TIMES(i, 4) {
            pairs[i] = odd ? _mm512_unpackhi_epi64(rows[i], rows[i + 4])
                           : _mm512_unpacklo_epi64(rows[i], rows[i + 4]);
        }
        __m512i a = _mm512_shuffle_i32x4(pairs[0], pairs[1], 0x44);
        __m512i b = _mm512_shuffle_i32x4(pairs[2], pairs[3], 0x44);
        __m512i c = _mm512_shuffle_i32x4(pairs[0], pairs[1], 0xee);
        __m512i d = _mm512_shuffle_i32x4(pairs[2], pairs[3], 0xee);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0x88), to[odd]);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0xdd), to[odd + 2]);
        fixed_nibbles(_mm512_shuffle_i32x4(c, d, 0x88), to[odd + 4]);
        fixed_nibbles(_mm512_shuffle_i32x4(c, d, 0xdd), to[odd + 6]);
    }
}

/* Group size 32: 64 bytes are the four pairs of words of two rows. */
FIXED_VNNI CPU_INLINE void fixed_transpose_32(const uint8_t *words, uint8_t to[4][2][64]) {
    __m512i rows[4];
    CPU_TIMES(i, 4) {
        rows[i] = _mm512_loadu_si512(words + 64 * i);
    }
    CPU_TIMES(odd, 2) {
        __m512i a =
            odd ? _mm512_unpackhi_epi64(rows[0], rows[2]) : _mm512_unpacklo_epi64(rows[0], rows[2]);
        __m512i b =
            odd ? _mm512_unpackhi_epi64(rows[1], rows[3]) : _mm512_unpacklo_epi64(rows[1], rows[3]);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0x88), to[odd]);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0xdd), to[odd + 2]);
    }
}

FIXED_VNNI void tc__vnni_unpack(const uint8_t *unit, unsigned group_size, tc__fixed_unit *to) {
    if (group_size == 32)
        fixed_transpose_32(unit, to->q);
    else
        for (unsigned column = 0; column < group_size; column += 64)
            fixed_transpose(unit + 8 * column, to->q + column / 8);

    /* scale and zero of row r, scale and zero of row r + 8; r = 0..3 and r = 4..7 */
    const __m256i *halves = (const __m256i *)(unit + 8 * group_size);
    __m512 a = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
    __m512 b = _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1));
    __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    _mm512_store_pd(to->scales, _mm512_unpacklo_pd(low, high));
    __m512i zeros = _mm512_cvtps_epi32(_mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    __m512i minus = _mm512_sub_epi32(_mm512_setzero_si512(), zeros);
    __m512i low_half = _mm512_and_si512(minus, _mm512_set1_epi32(0xffff));
    _mm512_store_si512(to->zeros, _mm512_or_si512(low_half, _mm512_slli_epi32(minus, 24)));
}

/* ---- products ---- */

/* Sums of neighbouring lanes of eight rows and eight rows, in a unit's order. */
FIXED_VNNI CPU_INLINE __m512i fixed_pairs(fixed_lanes low, fixed_lanes high) {
    __m512 a = (__m512)low, b = (__m512)high;
    return (__m512i)((fixed_lanes)_mm512_shuffle_ps(a, b, 0x88) +
                     (fixed_lanes)_mm512_shuffle_ps(a, b, 0xdd));
}

/* y[16] += a unit's product with a vector, out of sums of its high, middle and low limbs; `tail` is
 * what follows the vector's limbs. */
FIXED_VNNI CPU_INLINE void fixed_finish(const tc__fixed_unit *unit, fixed_lanes sums[3][2],
                                        const uint8_t *tail, float *y) {
    float step;
    int32_t totals[2]; /* of low and middle limbs, of high limbs: pairs for `zeros` */
    memcpy(&step, tail, sizeof step);
    memcpy(totals, tail + sizeof step, sizeof totals);
    const __m512i zeros = _mm512_load_si512(unit->zeros);
    __m512i high = fixed_pairs(sums[0][0], sums[0][1]);
    __m512i low = fixed_pairs((sums[1][0] << 8) + sums[2][0], (sums[1][1] << 8) + sums[2][1]);
    high = _mm512_dpwssd_epi32(high, zeros, _mm512_set1_epi32(totals[1]));
    low = _mm512_dpwssd_epi32(low, zeros, _mm512_set1_epi32(totals[0]));
    __m512 sum =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536), _mm512_cvtepi32_ps(low));
    sum = _mm512_mul_ps(sum, _mm512_set1_ps(step));
    _mm512_storeu_ps(y, _mm512_fmadd_ps(sum, _mm512_load_ps(unit->scales), _mm512_loadu_ps(y)));
}

/* One unit's products with `count` vectors. Sums of 16 rows x count vectors x 3 limbs in registers,
 * so that 6 * count multiplications take 2 + 3 * count loads. Two lanes belong to a row. */
FIXED_VNNI CPU_INLINE void fixed_product(const tc__fixed_unit *unit, unsigned group_size,
                                         const float *fixed, const unsigned count, float *y) {
    fixed_lanes sums[4][3][2];
    CPU_TIMES(v, count) CPU_TIMES(k, 3) CPU_TIMES(h, 2) {
        sums[v][k][h] = (fixed_lanes){0};
    }
    for (unsigned column = 0; column < group_size; column += 8) {
        __m512i q[2];
        CPU_TIMES(h, 2) {
            q[h] = _mm512_load_si512(unit->q[column / 8][h]);
        }
        CPU_TIMES(v, count) CPU_TIMES(k, 3) {
            long long eight;
            memcpy(&eight, (const uint8_t *)(fixed + v * group_size) + k * group_size + column, 8);
            __m512i limbs = _mm512_set1_epi64(eight);
            CPU_TIMES(h, 2) {
                sums[v][k][h] =
                    (fixed_lanes)_mm512_dpbusd_epi32((__m512i)sums[v][k][h], q[h], limbs);
            }
        }
    }
    CPU_TIMES(v, count) {
        fixed_finish(unit, sums[v], (const uint8_t *)(fixed + v * group_size) + 3 * group_size,
                     y + 16 * v);
    }
}

FIXED_VNNI void tc__vnni_multiply(const tc__fixed_unit *units, size_t blocks, unsigned group_size,
                                  const float *fixed, size_t count, float *y) {
    size_t done = 0;
    for (size_t now; done < count; done += now, fixed += now * group_size) {
        now = count - done < 4 ? count - done : 4;
        for (size_t b = 0; b < blocks; b++) {
            float *to = y + 16 * (b * count + done);
            switch (now) {
            case 1: fixed_product(&units[b], group_size, fixed, 1, to); break;
            case 2: fixed_product(&units[b], group_size, fixed, 2, to); break;
            case 3: fixed_product(&units[b], group_size, fixed, 3, to); break;
            default: fixed_product(&units[b], group_size, fixed, 4, to); break;
            }
        }
    }
}
#endif /* CPU_X86 */
