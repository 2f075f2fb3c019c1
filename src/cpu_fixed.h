/* cpu_fixed - products of W4 matrices in integers: an instruction does four times the
 * multiplications that it does with floats, and three of them give the precision of floats.
 *
 * A vector's elements become fixed-point numbers of 24 bits: in each group of the matrix's columns,
 * integers times a step, the smallest power of two with which the largest magnitude still fits. So
 * an element is off by at most 2^-23 of the group's largest. A number is kept as three limbs of a
 * byte, 2^16 high + 2^8 middle + low, each -128..127: what an instruction multiplies by the bytes
 * 0..15 of weights. Products and sums are exact integers,
 *
 *     sum of scale * (q - zero) * x over a group = scale * step * (2^16 H + (2^8 M + L)),
 *     H = sum of q * high - zero * sum of high, M and L likewise,
 *
 * up to the roundings of the right side, which is computed in floats. Their order does not matter:
 * an output depends on the numbers of its row and vector and the order of the groups only, whatever
 * else is computed in the same call.
 */
#ifndef TC_CPU_FIXED_H
#define TC_CPU_FIXED_H

#include "base.h"

/* Row blocks whose products are computed together: each piece of a vector is read for all. */
#define TC__FIXED_BLOCKS 4u

/* One W4 unit with a byte for each weight. Its rows stand in the order 0, 4, 8, 12, 1, 5, ... 15:
 * TC__FIXED_ROW gives the place of a row. */
typedef struct tc__fixed_unit {
    uint8_t q[16][2][64]; /* [columns / 8][rows / 8][8 rows of 8 columns] */
    float scales[16];
    uint32_t zeros[16]; /* two 16-bit integers: -zero, -zero * 256 */
} tc__fixed_unit;

#define TC__FIXED_ROW(row) (4 * ((row) % 4) + (row) / 4)

#if defined(__x86_64__)
/* For processors with AVX-512 VNNI. */

/* fixed = a group of an ordered vector in fixed point, in the room of as many floats: bytes
 * 0 .. 3 g - 1 are the limbs (high, middle, low), then follow the step as a float and as 16-bit
 * integers the sums of the low, middle and high limbs and 0. */
TC_INTERNAL void tc__vnni_fix(const float *x, unsigned group_size, float *fixed);

TC_INTERNAL void tc__vnni_unpack(const uint8_t *unit, unsigned group_size, tc__fixed_unit *to);

/* y[blocks][count][16] += products of the units of `blocks` row blocks with their group of `count`
 * vectors, which lie behind each other; in a unit's order of rows. */
TC_INTERNAL void tc__vnni_multiply(const tc__fixed_unit *units, size_t blocks, unsigned group_size,
                                   const float *fixed, size_t count, float *y);
#endif

#endif /* TC_CPU_FIXED_H */
