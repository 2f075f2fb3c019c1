/* cpu_kernels - the arithmetic of the CPU: products of a weight matrix with fp32 vectors, and the
 * two halves of attention. One set of kernels for each kind of processor, chosen at run time.
 *
 * The rule that everything here obeys: an output element is computed by the same operations in the
 * same order whatever else is computed in the same call. A row's dot product with a vector runs
 * over the columns in steps of LANES (the vector width, see tc__kernels); lane i adds up elements
 * i, i + LANES, i + 2 LANES, ... of the ordered vector, one fused multiply-add each; a fixed tree
 * adds the lanes. So results are bit-equal for any number of vectors in a call, any cut of a matrix
 * into shares, any number of threads. Different kernel sets agree to rounding.
 *
 * Where the processor has instructions for it, products of W4 matrices are computed in integers
 * instead, under the same rule: see cpu_fixed.h.
 */
#ifndef TC_CPU_KERNELS_H
#define TC_CPU_KERNELS_H

#include "cpu_fixed.h"
#include "model_file.h"

/* Matrices are worked on in blocks of 16 rows: a W4 unit's height. */
#define TC__BLOCK 16u
/* Vectors have room for a multiple of this many elements, zero behind the last. */
#define TC__LANES_MAX 16u
/* Rows of floats that kernels read in parallel lie this much further apart than a multiple of
 * TC__LANES_MAX, so that equal columns do not fall into the same cache set. */
#define TC__SKEW 16u

/* The order of a vector's elements that a matrix wants: that in which its bytes hold the columns,
 * so that the kernels need no shuffles. */
typedef enum tc__order {
    TC__ORDER_PLAIN, /* as they are: binary16, bfloat16 */
    TC__ORDER_W4_32, /* W4 with group size 32 */
    TC__ORDER_W4_64  /* W4 with group sizes 64 and 128 */
} tc__order;

TC_INTERNAL tc__order tc__order_of(const tc__tensor *matrix);

/* The place of element `column`. With docs/format.md's names for a column's parts (l, w, c = the
 * nibble pair's column): chunks of 64 (of 32) columns are sorted by c in the order 0, 2, 1, 3 in
 * which a word's bytes hold it, then by l & 3, then by w. */
static inline size_t tc__ordered(tc__order order, size_t column) {
    size_t pair = (column & 1) << 1 | (column >> 1 & 1);
    switch (order) {
    case TC__ORDER_W4_32: return (column & ~(size_t)31) + 8 * pair + (column >> 2 & 7);
    case TC__ORDER_W4_64:
        return (column & ~(size_t)63) + 16 * pair + 4 * (column >> 3 & 3) + 2 * (column >> 5 & 1) +
               (column >> 2 & 1);
    default: return column;
    }
}

/* Stores four elements from column on, a multiple of 4 (in W4's orders). */
static inline void tc__put4(tc__order order, float *x, size_t column, const float values[4]) {
    size_t step = order == TC__ORDER_PLAIN ? 1 : order == TC__ORDER_W4_32 ? 8 : 16;
    bool plain = step == 1;
    x += tc__ordered(order, column);
    x[0] = values[0];
    x[plain ? 1 : 2 * step] = values[1];
    x[plain ? 2 : step] = values[2];
    x[3 * step] = values[3];
}

/* One set of kernels. Vectors `x` are ordered and padded with zeros. A tile is 16 rows of floats.
 * The sums of a row are `lanes` floats: what each lane of its dot product has added up. */
typedef struct tc__kernels {
    const char *name;  /* for people: "AVX-512" */
    const char *level; /* for TINYCHAT_CPU: "avx512" */
    unsigned lanes;    /* 4, 8 or 16 */
    unsigned single;   /* up to so many vectors it is fastest to read the weights once for each */
    unsigned most;     /* vectors that `multiply` takes at most */

    /* sums[16][lanes] of a row block of `groups` W4 units, and of 16 rows of n halves: [0]
     * binary16, [1] bfloat16. */
    void (*w4_sums)(const uint8_t *unit, size_t groups, unsigned group_size, const float *x,
                    float *sums);
    void (*half_sums[2])(const uint16_t *const rows[16], size_t n, const float *x, float *sums);
    /* The same weights as a tile with rows `stride` apart, in x's order; rows of halves are
     * completed with zeros to a multiple of `lanes`. */
    void (*w4_expand)(const uint8_t *unit, unsigned group_size, float *tile, size_t stride);
    void (*half_expand[2])(const uint16_t *const rows[16], size_t n, float *tile, size_t stride);
    /* multiply[c - 1]: sums[c][16][lanes] += a tile's n columns (a multiple of `lanes`) times c
     * vectors. */
    void (*multiply[6])(const float *tile, size_t stride, size_t n, const float *x, size_t x_stride,
                        float *sums);
    /* y[16] = the lanes of sums[16][lanes] added up. */
    void (*reduce)(const float *sums, float *y);

    /* p[j] = exp(p[j] - shift) for j < n, zeros up to a multiple of TC__LANES_MAX; returns their
     * sum, added up in an order that depends on n only. */
    float (*exponential)(float *p, size_t n, float shift);
    /* out[i] += p[0] rows[i] + p[1] rows[stride + i] + ..., i < width (a multiple of
     * TC__LANES_MAX), row after row. */
    void (*blend)(const float *p, size_t n, const float *rows, size_t stride, size_t width,
                  float *out);

    /* Products of W4 matrices in fixed point, see cpu_fixed.h; NULL: in floats, as above. */
    void (*fix)(const float *x, unsigned group_size, float *fixed);
    void (*unpack)(const uint8_t *unit, unsigned group_size, tc__fixed_unit *to);
    void (*multiply_fixed)(const tc__fixed_unit *units, size_t blocks, unsigned group_size,
                           const float *fixed, size_t count, float *y);
} tc__kernels;

/* The best set for this processor, or the one named by `level` ("portable", "avx2", "avx512",
 * "avx512vnni", "neon"); NULL for the best. Errors: DEVICE (unknown, or this processor lacks it).
 */
TC_INTERNAL int tc__kernels_choose(const char *level, const tc__kernels **kernels, tc_error *err);

/* The products of a tile with any number of vectors: see `multiply`. */
TC_INTERNAL void tc__multiply_tile(const tc__kernels *kernels, const float *tile, size_t stride,
                                   size_t n, const float *x, size_t x_stride, size_t count,
                                   float *sums);

/* Whether products with the matrix read vectors in fixed point. */
static inline bool tc__fixes(const tc__kernels *kernels, const tc__tensor *matrix) {
    return kernels->fix && matrix->type == TC__W4;
}

/* `count` ordered vectors to fixed point: of their groups, [columns / group size][count], those
 * numbered begin .. end - 1. In `fixed`, [count * columns], they lie in that order. */
TC_INTERNAL void tc__fix(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                         size_t end, const float *x, size_t x_stride, size_t count, float *fixed);

/* Receives 16 rows (fewer at the end of the matrix) of product number `vector`. */
typedef void (*tc__rows_fn)(void *user, size_t vector, size_t row, size_t rows, const float *y);

/* Floats of scratch memory (64-byte aligned) that tc__multiply_rows needs for `count` vectors. */
TC_INTERNAL size_t tc__multiply_scratch(size_t count);

/* Products of row blocks [begin, end) of the matrix with `count` vectors (in fixed point if
 * tc__fixes), handed to `take`. Every weight is read from memory once and in the file's order:
 * 17/32 bytes each for W4 with group size 128, 2 bytes each for halves; vectors, tiles and sums are
 * to stay in the caches. */
TC_INTERNAL void tc__multiply_rows(const tc__kernels *kernels, const tc__tensor *matrix,
                                   size_t begin, size_t end, const float *x, size_t x_stride,
                                   size_t count, float *scratch, tc__rows_fn take, void *user);

#endif /* TC_CPU_KERNELS_H */
