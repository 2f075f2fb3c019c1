/* layout - one linear layer as it lies in a checkpoint: which packing, which group size, and its
 * numbers q, scales s and zero points z in one form.
 *
 * The packings of 4-bit weights W[n][k] = s * (q - z), found out from the tensors alone:
 *
 *     A  qweight int32 [K, N/8], qzeros int32 [G, N/8], scales [G, N]; eight neighbouring rows n in
 *        the nibble order 0 2 4 6 1 3 5 7 (llm-awq before September 2023, AutoAWQ "gemm")
 *     B  qweight int32 [N, K/8], qzeros int32 [N, Wz], scales [N, 8 Wz], padded; eight neighbouring
 *        columns in their order (llm-awq until February 2024, AutoAWQ "gemv")
 *     C  qweight int16 [N/4, K], scaled_zeros (AutoAWQ: qzeros) and scales [8 Wz, N], padded; tiles
 *        of 4 rows x 64 columns, s*z negated instead of z (llm-awq v2, AutoAWQ "gemv_fast")
 *
 * GPTQ qweight int32 [K/8, N], eight neighbouring columns of a row in their order; qzeros int32
 *        [G, N/8], less one unless the checkpoint's format is "gptq_v2"; scales [G, N]; g_idx [K],
 *        the group of each column, which must be k / group (else: "act-order")
 *     compressed-tensors (pack-quantized)  weight_packed int32 [N, K/8], as qweight of B;
 *        weight_scale [N, G]; weight_zero_point int32 [N/8, G], eight neighbouring rows in a word,
 *        or int8 [N, G] of z - 8, or none, which is 8; weight_shape [2]
 *
 * A plain layer has a `weight` of F16, BF16 or F32 instead. Marlin, fp8 and other layers are
 * recognised and refused by name.
 *
 * Sources: docs/formats of the project's material restate the packers of llm-awq, AutoGPTQ and
 * compressed-tensors; the golden vectors in tests/test_convert.c were made by those.
 */
#ifndef CONVERT_LAYOUT_H
#define CONVERT_LAYOUT_H

#include "checkpoint.h"

typedef enum layout_kind {
    LAYOUT_PLAIN,
    LAYOUT_A,
    LAYOUT_B,
    LAYOUT_C,
    LAYOUT_GPTQ,
    LAYOUT_COMPRESSED
} layout_kind;

typedef struct layout_matrix {
    const char *name; /* "model.layers.0.mlp.up_proj"; the caller's */
    layout_kind kind;
    uint32_t rows, columns; /* N (out), K (in) */
    uint32_t source_group;  /* columns that share a scale in the checkpoint; plain: 0 */
    uint32_t group;         /* the same in the model file: 32, 64 or 128; plain: 0 */
    ckpt_dtype dtype;       /* of `weight`, or of the scales */
    const ckpt_tensor *weight, *scales, *zeros; /* weight is the packed one unless plain; no zeros:
                                                 * all are 8 */
    uint8_t
        zero_bias;  /* what the stored zero points lack: 1 with GPTQ, unless its caller knows that
                        * the format is gptq_v2 */
    bool has_g_idx; /* with GPTQ: the order of the columns is known */

    /* While open (layout_open to layout_close) of a packed layer: */
    const uint8_t *q; /* the packed words, in C order */
    uint16_t *s;      /* [rows][columns / source_group] binary16 */
    uint8_t *z;       /* the same shape, 0..15 */
    uint64_t rounded; /* scales that binary16 cannot hold exactly and were rounded */
    void *copy;       /* of a qweight that does not lie in C order */
} layout_matrix;

/* "16-bit", "packing A", "GPTQ"...; and at length: "AWQ packing A (AutoAWQ gemm, early llm-awq)" */
const char *layout_name(layout_kind kind);
const char *layout_title(layout_kind kind);

/* Whether neighbouring rows, not neighbouring columns, lie in a cache line: eight rows are unpacked
 * together, and reading a few rows touches every page. */
bool layout_by_columns(layout_kind kind);

/* Finds the tensors of `name` and what they are. Nothing but shapes and, for B and C, the scales
 * of one row is looked at. FORMAT: a tensor is missing or the shapes do not fit together.
 * UNSUPPORTED: Marlin... or a group size that cannot be expressed. */
int layout_detect(const checkpoint *ckpt, const char *name, layout_matrix *m, tc_error *err);

/* Whether the checkpoint holds `name` as 4-bit weights of any kind. */
bool layout_is_quantised(const checkpoint *ckpt, const char *name);

/* Verifies the checksums of the layer's data; then, unless it is plain, checks all scales and zero
 * points (finite, in range, and as many groups as detected in every row) and brings them into one
 * form. layout_close frees them and lets go of the file's pages; it is harmless after a failure.
 * A qweight that is a strided view is copied to memory; those of every known writer are not.
 * Errors: FORMAT naming tensor, row and group; MEMORY; IO. */
int layout_open(layout_matrix *m, checkpoint *ckpt, tc_error *err);
void layout_close(layout_matrix *m, const checkpoint *ckpt);

/* The numbers q of `count` (at most 8) rows from `row` and `width` columns from `column` (both
 * multiples of 32) as words of eight neighbouring columns, the first in the lowest four bits:
 * words[i][j] holds row + i, column + 8 j... With layout_by_columns, row is a multiple of 8 and
 * count 8. */
#define LAYOUT_MAX_WIDTH 128
typedef uint32_t layout_words[LAYOUT_MAX_WIDTH / 8];
void layout_unpack(const layout_matrix *m, uint32_t row, uint32_t count, uint32_t column,
                   uint32_t width, layout_words *words);

#endif /* CONVERT_LAYOUT_H */
