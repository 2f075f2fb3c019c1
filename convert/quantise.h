/* quantise - 16-bit linear layers to 4 bits, a band of rows at a time: the arithmetic of llm-awq,
 * bit for bit, on the weights that its search results have scaled and clipped; or rounding to
 * nearest for weights as they are.
 *
 * llm-awq works in binary16: the weights become binary16, and every operation on them is rounded to
 * it. For each group of columns
 *
 *     d = max(max - min, 1e-5);  s = d / 15
 *     z = clamp(-rint(min / s));  q = clamp(rint(w / s) + z)
 *
 * (clamp to 0..15, rint to even). The range need not contain 0, so that a group of one sign is
 * clipped: it is what the original does. Rounding to nearest uses a range that contains 0 and
 * rounds only the scale.
 */
#ifndef CONVERT_QUANTISE_H
#define CONVERT_QUANTISE_H

#include "repack.h"

/* What AWQ search results do to a layer before it is quantised, in this order. */
typedef enum quantise_op {
    QUANTISE_COLUMNS, /* column k times by[k] */
    QUANTISE_ROWS,    /* the last rows, as many as by has, divided by it */
    QUANTISE_CLIP     /* row n, group j to +- by[n][j] */
} quantise_op;

typedef struct quantise_step {
    quantise_op op;
    const ckpt_tensor *by; /* F16, BF16 or F32; of a shape that suits the layer */
} quantise_step;

#define QUANTISE_MAX_STEPS 4

typedef struct quantise_steps {
    quantise_step steps[QUANTISE_MAX_STEPS];
    int count;
} quantise_steps;

/* A matrix being quantised: private but for `rounded`. */
typedef struct quantise {
    const repack_matrix *m;
    const quantise_steps *steps; /* [m->part_count] */
    bool awq;
    uint32_t group;
    float *factors[REPACK_MAX_PARTS][QUANTISE_MAX_STEPS]; /* of columns and rows */
    float *row;
    uint8_t *bytes;     /* of a row, as it lies in the checkpoint */
    repack_matrix band; /* one part in packing B: the rows that repack_blocks gets */
    uint8_t *q;
    uint64_t rounded; /* weights that binary16 cannot hold, of those that AWQ needs in it */
} quantise;

#define QUANTISE_BAND 4u /* row blocks that are best done in one call */

/* `m` has plain parts, whose columns are a multiple of `group`. quantise_close is harmless after a
 * failure. Errors: MEMORY; FORMAT for a factor that is not a positive number. */
int quantise_open(quantise *q, const repack_matrix *m, const quantise_steps *steps, bool awq,
                  uint32_t group, tc_error *err);
void quantise_close(quantise *q);

/* Writes the W4 units of row blocks first .. first + blocks - 1 (at most QUANTISE_BAND) to `out`.
 * Errors: FORMAT for a weight that is not finite, UNSUPPORTED for one that binary16 cannot hold. */
int quantise_blocks(quantise *q, uint32_t first, uint32_t blocks, uint8_t *out, tc_error *err);

/* x rounded to binary16, to nearest even; beyond its range: 65536 or more. */
float quantise_round16(float x);

#endif /* CONVERT_QUANTISE_H */
