#include "quantise.h"

#include "src/model_file.h"

#include <math.h>

/* Loops run over this many numbers, a divisor of every group, so that compilers can vectorise them
 * without looking at what is left over. */
#define QUANTISE_RUN 32
#define QUANTISE_MAX16 65504.0f /* the largest binary16 number */
#define QUANTISE_MAX_RTN 4.9e5f /* its range is at most 15 times the largest scale */

/* ---- numbers ---- */

static inline uint32_t quantise_bits(float x) {
    uint32_t bits;
    memcpy(&bits, &x, sizeof bits);
    return bits;
}

static inline float quantise_float(uint32_t bits) {
    float x;
    memcpy(&x, &bits, sizeof x);
    return x;
}

/* Without branches. Normal numbers lose 13 bits of their fraction; below 2^-14, binary16 has
 * multiples of 2^-24, which is the last place of numbers around 0.75. */
static inline float quantise_to16(float x) {
    uint32_t bits = quantise_bits(x), magnitude = bits & 0x7fffffffu;
    float small = x + 0.75f - 0.75f;
    uint32_t normal = (bits + 0xfffu + (bits >> 13 & 1)) & ~0x1fffu;
    uint32_t is_small = 0u - (uint32_t)(magnitude < 0x38800000u);
    return quantise_float((quantise_bits(small) & is_small) | (normal & ~is_small));
}

float quantise_round16(float x) {
    return quantise_to16(x);
}

/* Exact; infinity and NaN become 65536 and more. */
static inline float quantise_from16(uint16_t half) {
    float magnitude = quantise_float((uint32_t)(half & 0x7fff) << 13) * 0x1p112f;
    return quantise_float(quantise_bits(magnitude) | (uint32_t)(half & 0x8000) << 16);
}

/* To the nearest integer, to even; exact below 2^22, and still beyond 0..15 above. */
static inline float quantise_rint(float x) {
    return x + 12582912.0f - 12582912.0f;
}

static inline float quantise_clamp(float x, float low, float high) {
    x = x > low ? x : low;
    return x < high ? x : high;
}

/* ---- a row ---- */

/* A row of a part as floats. */
static void quantise_read(quantise *q, const layout_matrix *part, uint32_t row) {
    uint32_t columns = q->m->columns;
    float *out = q->row;
    ckpt_copy(part->weight, row, 1, q->bytes);
    if (part->dtype == CKPT_F32) {
        memcpy(out, q->bytes, columns * sizeof *out);
        return;
    }
    const uint16_t *halves = (const uint16_t *)(const void *)q->bytes; /* malloc'ed: aligned */
    for (uint32_t k = 0; k < columns; k += QUANTISE_RUN)
        for (uint32_t i = 0; i < QUANTISE_RUN; i++)
            out[k + i] = part->dtype == CKPT_F16 ? quantise_from16(halves[k + i])
                                                 : quantise_float((uint32_t)halves[k + i] << 16);
}

/* The largest magnitude of a row, more than any float if a number is NaN. */
static float quantise_largest(const float *row, uint32_t columns) {
    uint32_t largest = 0;
    for (uint32_t k = 0; k < columns; k += QUANTISE_RUN)
        for (uint32_t i = 0; i < QUANTISE_RUN; i++) {
            uint32_t magnitude = quantise_bits(row[k + i]) & 0x7fffffffu;
            largest = magnitude > largest ? magnitude : largest;
        }
    return largest > 0x7f800000u ? INFINITY : quantise_float(largest);
}

static int quantise_check(const quantise *q, const layout_matrix *part, uint32_t row, float limit,
                          tc_error *err) {
    float largest = quantise_largest(q->row, q->m->columns);
    bool infinite = part->dtype == CKPT_F16 ? largest > QUANTISE_MAX16 : largest == INFINITY;
    if (largest <= limit && !infinite) return TC_OK;
    if (infinite)
        return tc__fail(err, TC_ERR_FORMAT, "%s: tensor '%s', row %u: a weight is not finite",
                        part->weight->file, part->weight->name, (unsigned)row);
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "%s: tensor '%s', row %u: a weight of %g is beyond what 4-bit weights with "
                    "binary16 scales hold",
                    part->weight->file, part->weight->name, (unsigned)row, (double)largest);
}

static void quantise_narrow(quantise *q) {
    uint64_t rounded = 0;
    for (uint32_t k = 0; k < q->m->columns; k++) {
        float value = quantise_to16(q->row[k]);
        rounded += value != q->row[k];
        q->row[k] = value;
    }
    q->rounded += rounded;
}

static void quantise_columns(float *restrict row, const float *restrict by, uint32_t columns) {
    for (uint32_t k = 0; k < columns; k += QUANTISE_RUN)
        for (uint32_t i = 0; i < QUANTISE_RUN; i++)
            row[k + i] = quantise_to16(row[k + i] * by[k + i]);
}

static void quantise_divide(float *row, float by, uint32_t columns) {
    for (uint32_t k = 0; k < columns; k += QUANTISE_RUN)
        for (uint32_t i = 0; i < QUANTISE_RUN; i++) row[k + i] = quantise_to16(row[k + i] / by);
}

/* Number i of a tensor in C order whose strides are its own. */
static float quantise_number(const ckpt_tensor *tensor, int64_t i0, int64_t i1) {
    int64_t at = i0 * tensor->stride[0] + (tensor->ndim > 1 ? i1 * tensor->stride[1] : 0);
    const uint8_t *bytes = tensor->data + (size_t)at * ckpt_dtype_size(tensor->dtype);
    uint16_t half;
    float value;
    if (tensor->dtype == CKPT_F32) {
        memcpy(&value, bytes, sizeof value);
        return quantise_to16(value);
    }
    memcpy(&half, bytes, sizeof half);
    return tensor->dtype == CKPT_F16 ? quantise_from16(half) : quantise_to16(tc__bf16_to_f32(half));
}

static int quantise_clip(quantise *q, const ckpt_tensor *by, uint32_t row, tc_error *err) {
    for (uint32_t j = 0; j < q->m->columns / q->group; j++) {
        float limit = quantise_number(by, row, j), *at = q->row + j * q->group;
        if (!(limit >= 0 && limit <= QUANTISE_MAX16))
            return tc__fail(err, TC_ERR_FORMAT,
                            "%s: '%s', row %u, group %u: a limit of %g; expected a binary16 number "
                            "that is not negative",
                            by->file, by->name, (unsigned)row, (unsigned)j, (double)limit);
        for (uint32_t k = 0; k < q->group; k += QUANTISE_RUN)
            for (uint32_t i = 0; i < QUANTISE_RUN; i++)
                at[k + i] = quantise_clamp(at[k + i], -limit, limit);
    }
    return TC_OK;
}

static int quantise_apply(quantise *q, int part, uint32_t row, tc_error *err) {
    const quantise_steps *steps = &q->steps[part];
    int code = TC_OK;
    for (int i = 0; i < steps->count && !code; i++) {
        const quantise_step *step = &steps->steps[i];
        const float *factors = q->factors[part][i];
        if (step->op == QUANTISE_COLUMNS) {
            quantise_columns(q->row, factors, q->m->columns);
        } else if (step->op == QUANTISE_CLIP) {
            code = quantise_clip(q, step->by, row, err);
        } else {
            uint32_t kept = q->m->parts[part].rows - (uint32_t)step->by->shape[0];
            if (row >= kept) quantise_divide(q->row, factors[row - kept], q->m->columns);
        }
    }
    return code;
}

/* ---- a group ---- */

typedef struct quantise_group {
    float scale, zero;
} quantise_group;

static quantise_group quantise_range(const quantise *q, const float *w) {
    float low = w[0], high = w[0];
    for (uint32_t k = 0; k < q->group; k++) {
        low = w[k] < low ? w[k] : low;
        high = w[k] > high ? w[k] : high;
    }
    quantise_group g;
    if (q->awq) {
        float range = quantise_to16(high - low), least = quantise_to16(1e-5f);
        g.scale = quantise_to16((range > least ? range : least) / 15);
        g.zero = quantise_clamp(-quantise_rint(quantise_to16(low / g.scale)), 0, 15);
        return g;
    }
    low = low < 0 ? low : 0, high = high > 0 ? high : 0;
    float range = high - low > 1e-5f ? high - low : 1e-5f;
    g.scale = quantise_to16(range / 15);
    g.zero = quantise_clamp(quantise_rint(-low / g.scale), 0, 15);
    return g;
}

/* The words of a group, eight columns each, the first in the lowest bits. */
static void quantise_pack(const quantise *q, const float *w, quantise_group g, uint32_t *words) {
    for (uint32_t k = 0; k < q->group; k += QUANTISE_RUN) {
        uint32_t numbers[QUANTISE_RUN];
        for (uint32_t i = 0; i < QUANTISE_RUN; i++) {
            float x = w[k + i] / g.scale;
            if (q->awq) x = quantise_to16(x);
            x = quantise_rint(quantise_clamp(x, -65536, 65536)) + g.zero;
            numbers[i] = (uint32_t)(int32_t)quantise_clamp(x, 0, 15);
        }
        for (uint32_t i = 0; i < QUANTISE_RUN; i += 8) {
            uint32_t word = 0;
            for (uint32_t e = 0; e < 8; e++) word |= numbers[i + e] << 4 * e;
            *words++ = word;
        }
    }
}

/* ---- bands ---- */

static int quantise_row(quantise *q, uint32_t row, uint32_t at, tc_error *err) {
    int part;
    uint32_t part_row, count, groups = q->m->columns / q->group;
    repack_locate(q->m, row, &part, &part_row, &count);
    const layout_matrix *source = &q->m->parts[part];
    layout_matrix *band = &q->band.parts[0];
    uint32_t *words = (uint32_t *)(void *)(q->q + (size_t)at * q->m->columns / 2);
    quantise_read(q, source, part_row);
    int code = quantise_check(q, source, part_row, q->awq ? QUANTISE_MAX16 : QUANTISE_MAX_RTN, err);
    if (code) return code;
    if (q->awq && source->dtype != CKPT_F16) quantise_narrow(q);
    code = quantise_apply(q, part, part_row, err);
    if (q->awq && !code) code = quantise_check(q, source, part_row, QUANTISE_MAX16, err);
    for (uint32_t j = 0; j < groups && !code; j++) {
        const float *w = q->row + j * q->group;
        quantise_group g = quantise_range(q, w);
        quantise_pack(q, w, g, words + j * q->group / 8);
        band->s[at * groups + j] = tc__f32_to_f16(g.scale);
        band->z[at * groups + j] = (uint8_t)g.zero;
    }
    return code;
}

int quantise_blocks(quantise *q, uint32_t first, uint32_t blocks, uint8_t *out, tc_error *err) {
    uint32_t row = first * TC__UNIT_ROWS, rows = blocks * TC__UNIT_ROWS;
    if (rows > q->m->rows - row) rows = q->m->rows - row;
    for (uint32_t i = 0; i < rows; i++) {
        int code = quantise_row(q, row + i, i, err);
        if (code) return code;
    }
    q->band.rows = q->band.parts[0].rows = rows;
    repack_blocks(&q->band, 0, blocks, 0, q->m->columns / q->group, out);
    return TC_OK;
}

/* ---- opening ---- */

static int quantise_factors(quantise *q, int part, int i, tc_error *err) {
    const ckpt_tensor *by = q->steps[part].steps[i].by;
    size_t count = (size_t)by->shape[0];
    if (q->steps[part].steps[i].op == QUANTISE_CLIP) return TC_OK;
    float *factors = q->factors[part][i] = tc__calloc(count, sizeof *factors);
    if (!factors) return tc__fail_memory(err, "a layer's factors", count * sizeof *factors);
    for (size_t k = 0; k < count; k++) {
        factors[k] = quantise_number(by, (int64_t)k, 0);
        if (!(factors[k] > 0 && factors[k] <= QUANTISE_MAX16))
            return tc__fail(err, TC_ERR_FORMAT,
                            "%s: '%s': number %zu is %g; expected a positive binary16 number",
                            by->file, by->name, k, (double)factors[k]);
    }
    return TC_OK;
}

int quantise_open(quantise *q, const repack_matrix *m, const quantise_steps *steps, bool awq,
                  uint32_t group, tc_error *err) {
    uint32_t rows = QUANTISE_BAND * TC__UNIT_ROWS;
    size_t groups = (size_t)rows * (m->columns / group);
    memset(q, 0, sizeof *q);
    q->m = m, q->steps = steps, q->awq = awq, q->group = group;
    layout_matrix *band = &q->band.parts[0];
    *band = (layout_matrix){.kind = LAYOUT_B, .columns = m->columns, .group = group};
    band->source_group = group;
    q->band.part_count = 1;
    q->band.columns = m->columns;
    q->row = malloc(m->columns * sizeof *q->row);
    q->bytes = malloc(m->columns * sizeof(float));
    band->q = q->q = malloc((size_t)rows * m->columns / 2);
    band->s = malloc(groups * sizeof *band->s);
    band->z = malloc(groups);
    int code = TC_OK;
    if (!q->row || !q->bytes || !q->q || !band->s || !band->z)
        code = tc__fail_memory(err, "a band of rows", (size_t)rows * m->columns / 2);
    for (int part = 0; part < m->part_count; part++)
        for (int i = 0; i < steps[part].count && !code; i++)
            code = quantise_factors(q, part, i, err);
    return code;
}

void quantise_close(quantise *q) {
    for (int part = 0; part < REPACK_MAX_PARTS; part++)
        for (int i = 0; i < QUANTISE_MAX_STEPS; i++) free(q->factors[part][i]);
    free(q->row);
    free(q->bytes);
    free(q->q);
    free(q->band.parts[0].s);
    free(q->band.parts[0].z);
    memset(q, 0, sizeof *q);
}
