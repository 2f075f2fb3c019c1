#include "layout.h"

#include <math.h>

/* Where packing A keeps row n & 7 of a word: the inverse of the order 0 2 4 6 1 3 5 7. */
static const unsigned layout_a_place[8] = {0, 4, 1, 5, 2, 6, 3, 7};

const char *layout_name(layout_kind kind) {
    static const char *const names[] = {"16-bit",    "packing A", "packing B",
                                        "packing C", "GPTQ",      "compressed-tensors"};
    return names[kind];
}

const char *layout_title(layout_kind kind) {
    static const char *const titles[] = {"16-bit",
                                         "AWQ packing A (AutoAWQ gemm, early llm-awq)",
                                         "AWQ packing B (llm-awq 2023, AutoAWQ gemv)",
                                         "AWQ packing C (llm-awq v2, AutoAWQ gemv_fast)",
                                         "GPTQ",
                                         "compressed-tensors pack-quantized"};
    return titles[kind];
}

bool layout_by_columns(layout_kind kind) {
    return kind == LAYOUT_A || kind == LAYOUT_GPTQ;
}

/* ---- detection ---- */

#define LAYOUT_SUPPORTED                                                                           \
    "4-bit AWQ (llm-awq, AutoAWQ), GPTQ without act-order, compressed-tensors pack-quantized, "    \
    "F16, "                                                                                        \
    "BF16, F32"

/* The tensor "name.part", NULL if there is none. */
static const ckpt_tensor *layout_find(const checkpoint *ckpt, const char *name, const char *part) {
    char full[512];
    int len = snprintf(full, sizeof full, "%s.%s", name, part);
    return len > 0 && (size_t)len < sizeof full ? ckpt_find(ckpt, full) : NULL;
}

bool layout_is_quantised(const checkpoint *ckpt, const char *name) {
    return layout_find(ckpt, name, "qweight") || layout_find(ckpt, name, "weight_packed");
}

static bool layout_is_float(ckpt_dtype dtype) {
    return dtype == CKPT_F16 || dtype == CKPT_BF16 || dtype == CKPT_F32;
}

static int layout_bad_tensor(const ckpt_tensor *tensor, const char *expected, tc_error *err) {
    char shape[CKPT_SHAPE_TEXT];
    return tc__fail(err, TC_ERR_FORMAT, "%s: tensor '%s' is %s; expected %s", tensor->file,
                    tensor->name, ckpt_shape_text(tensor, shape), expected);
}

/* Other people's formats, by the tensors that give them away. */
static int layout_refuse_foreign(const checkpoint *ckpt, const char *name, tc_error *err) {
    static const struct {
        const char *part, *unless, *what;
    } signs[] = {
        {"B", NULL, "Marlin"},
        {"workspace", NULL, "Marlin"},
        {"W_q", NULL, "HQQ"},
        {"weight.absmax", NULL, "bitsandbytes"},
        {"SCB", NULL, "bitsandbytes int8"},
        {"weight_scale", "weight_packed", "quantised with weight_scale (fp8 or int8)"},
        {"weight_global_scale", NULL, "compressed-tensors with global scales (nvfp4)"},
        {"weight_g_idx", NULL, "compressed-tensors with act-order (actorder group)"},
    };
    for (size_t i = 0; i < TC_COUNT(signs); i++)
        if (layout_find(ckpt, name, signs[i].part) &&
            !(signs[i].unless && layout_find(ckpt, name, signs[i].unless)))
            return tc__fail(
                err, TC_ERR_UNSUPPORTED,
                "layer '%s' is %s, which is not supported; supported: " LAYOUT_SUPPORTED, name,
                signs[i].what);
    return TC_OK;
}

static int layout_detect_plain(const ckpt_tensor *weight, layout_matrix *m, tc_error *err) {
    if (weight->ndim != 2 || !layout_is_float(weight->dtype) || weight->shape[0] < 1 ||
        weight->shape[1] < 1 || weight->shape[0] > INT32_MAX || weight->shape[1] > INT32_MAX)
        return layout_bad_tensor(weight, "a matrix of F16, BF16 or F32", err);
    m->kind = LAYOUT_PLAIN;
    m->weight = weight;
    m->dtype = weight->dtype;
    m->rows = (uint32_t)weight->shape[0];
    m->columns = (uint32_t)weight->shape[1];
    return TC_OK;
}

/* Which packing the shapes are (docs: the detection rules, in their order), or a refusal. */
static int layout_detect_kind(layout_matrix *m, tc_error *err) {
    const ckpt_tensor *q = m->weight, *s = m->scales, *z = m->zeros;
    int64_t r = q->shape[0], c = q->shape[1], a = s->shape[0], b = s->shape[1];
    bool integers = q->dtype == CKPT_I32 && z->dtype == CKPT_I32;
    int64_t rows = 0, columns = 0;
    if (q->dtype == CKPT_I16 && layout_is_float(z->dtype) && b == 4 * r && z->shape[0] == a &&
        z->shape[1] == b) {
        m->kind = LAYOUT_C, rows = 4 * r, columns = c;
    } else if (integers && b == 8 * c && z->shape[0] == a && z->shape[1] == c && a < r) {
        /* (a == r: packing B with 32 columns, not A with groups of one) */
        m->kind = LAYOUT_A, rows = 8 * c, columns = r;
    } else if (integers && a == r && z->shape[0] == r && b == 8 * z->shape[1]) {
        m->kind = LAYOUT_B, rows = r, columns = 8 * c;
    } else if (integers && b == c && z->shape[0] == a && z->shape[1] == c / 8) {
        m->kind = LAYOUT_GPTQ, rows = c, columns = 8 * r;
        m->zero_bias = 1;
    } else {
        char qs[CKPT_SHAPE_TEXT], ss[CKPT_SHAPE_TEXT], zs[CKPT_SHAPE_TEXT];
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "layer '%s': qweight %s, scales %s, zero points %s are none of the "
                        "packings A, B and C of AWQ nor GPTQ's of 4 bits",
                        m->name, ckpt_shape_text(q, qs), ckpt_shape_text(s, ss),
                        ckpt_shape_text(z, zs));
    }
    if (rows < 1 || columns < 1 || rows > INT32_MAX || columns > INT32_MAX)
        return layout_bad_tensor(q, "a matrix of a sensible size", err);
    if (m->kind == LAYOUT_C && columns % 64)
        return layout_bad_tensor(q, "a number of columns that is a multiple of 64", err);
    m->rows = (uint32_t)rows;
    m->columns = (uint32_t)columns;
    return TC_OK;
}

/* Element [i0, i1] of a matrix of floating-point numbers. */
static float layout_float_at(const ckpt_tensor *tensor, int64_t i0, int64_t i1) {
    int64_t index = i0 * tensor->stride[0] + i1 * tensor->stride[1];
    const uint8_t *at = tensor->data + (size_t)index * ckpt_dtype_size(tensor->dtype);
    if (tensor->dtype == CKPT_F32) {
        float value;
        memcpy(&value, at, sizeof value);
        return value;
    }
    uint16_t bits;
    memcpy(&bits, at, sizeof bits);
    return tensor->dtype == CKPT_F16 ? tc__f16_to_f32(bits) : tc__bf16_to_f32(bits);
}

/* Whether the scales of a row lie side by side. */
static bool layout_scales_by_row(const layout_matrix *m) {
    return m->kind == LAYOUT_B || m->kind == LAYOUT_COMPRESSED;
}

static float layout_scale_at(const layout_matrix *m, int64_t row, int64_t group) {
    return layout_scales_by_row(m) ? layout_float_at(m->scales, row, group)
                                   : layout_float_at(m->scales, group, row);
}

/* Places for groups in one row of the scales: their number, padding included. */
static int64_t layout_places(const layout_matrix *m) {
    return m->scales->shape[layout_scales_by_row(m) ? 1 : 0];
}

/* Whether there may be more places than groups: then a scale is never 0, which marks the rest. */
static bool layout_is_padded(const layout_matrix *m) {
    return m->kind == LAYOUT_B || m->kind == LAYOUT_C;
}

/* Packings B and C pad the groups of a row to whole words of zero points. */
static int64_t layout_padded(int64_t groups, int64_t group_size) {
    int64_t multiple = group_size >= 128 ? 1 : group_size == 64 ? 2 : 4;
    int64_t words = (groups + 7) / 8;
    return (words + multiple - 1) / multiple * multiple * 8;
}

/* Sets source_group and group. The number of groups is the number of scales, or of those that are
 * not padding. */
static int layout_detect_group(layout_matrix *m, tc_error *err) {
    int64_t places = layout_places(m), groups = places;
    if (layout_is_padded(m))
        for (groups = 0; groups < places && layout_scale_at(m, 0, groups) != 0; groups++) {}
    if (groups < 1 || m->columns % groups)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "layer '%s': %lld groups in a row of %u columns; expected a number that "
                        "divides it",
                        m->name, (long long)groups, (unsigned)m->columns);
    int64_t size = m->columns / groups;
    m->source_group = (uint32_t)size;
    for (m->group = 128; size % m->group; m->group /= 2)
        if (m->group == 32)
            return tc__fail(err, TC_ERR_UNSUPPORTED,
                            "layer '%s' has group size %lld; expected 32, 64, 128 or a multiple",
                            m->name, (long long)size);
    if (layout_is_padded(m) && places != layout_padded(groups, size))
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: tensor '%s' has %lld scales for a row, %lld of them not zero; group "
                        "size %lld needs %lld",
                        m->scales->file, m->scales->name, (long long)places, (long long)groups,
                        (long long)size, (long long)layout_padded(groups, size));
    return TC_OK;
}

/* The group of every column; only the order as it is can be used, since a unit of the model file
 * holds neighbouring columns. */
static int layout_check_g_idx(layout_matrix *m, const ckpt_tensor *g_idx, tc_error *err) {
    if (g_idx->dtype != CKPT_I32 || g_idx->ndim != 1 || g_idx->shape[0] != m->columns)
        return layout_bad_tensor(g_idx, "I32, a number for each column", err);
    m->has_g_idx = true;
    for (uint32_t k = 0; k < m->columns; k++) {
        int32_t group;
        memcpy(&group, g_idx->data + 4 * (size_t)(k * g_idx->stride[0]), sizeof group);
        if (group < 0 || (uint32_t)group != k / m->source_group)
            return tc__fail(
                err, TC_ERR_UNSUPPORTED,
                "layer '%s' is GPTQ with act-order (desc_act): '%s' puts column %u into "
                "group %d, not %u; supported: GPTQ without act-order",
                m->name, g_idx->name, (unsigned)k, (int)group, (unsigned)(k / m->source_group));
    }
    return TC_OK;
}

/* compressed-tensors: the zero points, if there are any, in one of two forms. */
static int layout_check_zero_point(const layout_matrix *m, tc_error *err) {
    const ckpt_tensor *z = m->zeros;
    int64_t groups = m->scales->shape[1];
    if (!z) return TC_OK;
    bool packed = z->dtype == CKPT_I32 && z->ndim == 2 && z->shape[0] == (m->rows + 7) / 8;
    bool bytes = z->dtype == CKPT_I8 && z->ndim == 2 && z->shape[0] == m->rows;
    if ((!packed && !bytes) || z->shape[1] != groups)
        return layout_bad_tensor(z, "I32 [rows / 8, groups] or I8 [rows, groups]", err);
    return TC_OK;
}

/* weight_shape is the shape before packing. */
static int layout_check_shape(const layout_matrix *m, const ckpt_tensor *shape, tc_error *err) {
    if (!shape) return TC_OK;
    bool wide = shape->dtype == CKPT_I64;
    if ((!wide && shape->dtype != CKPT_I32) || shape->ndim != 1 || shape->shape[0] != 2)
        return layout_bad_tensor(shape, "I64 [2]", err);
    int64_t size[2];
    for (int i = 0; i < 2; i++) {
        const uint8_t *at = shape->data + (size_t)(i * shape->stride[0]) * (wide ? 8 : 4);
        int32_t narrow;
        if (wide) memcpy(&size[i], at, 8);
        memcpy(&narrow, at, 4);
        if (!wide) size[i] = narrow;
    }
    if (size[0] == m->rows && size[1] == m->columns) return TC_OK;
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "layer '%s' has weight_shape [%lld, %lld] and packed numbers for [%u, %u]; "
                    "supported: 4 bits, and columns that are a multiple of 32",
                    m->name, (long long)size[0], (long long)size[1], (unsigned)m->rows,
                    (unsigned)m->columns);
}

static int layout_detect_compressed(const checkpoint *ckpt, layout_matrix *m, tc_error *err) {
    const ckpt_tensor *w = m->weight;
    m->kind = LAYOUT_COMPRESSED;
    m->scales = layout_find(ckpt, m->name, "weight_scale");
    m->zeros = layout_find(ckpt, m->name, "weight_zero_point");
    if (!m->scales)
        return tc__fail(err, TC_ERR_FORMAT, "tensor '%s.weight_scale' is missing beside '%s'",
                        m->name, w->name);
    if (w->dtype != CKPT_I32 || w->ndim != 2 || w->shape[0] < 1 || w->shape[1] < 1 ||
        w->shape[0] > INT32_MAX || w->shape[1] > INT32_MAX / 8)
        return layout_bad_tensor(w, "a matrix of I32", err);
    m->rows = (uint32_t)w->shape[0];
    m->columns = 8 * (uint32_t)w->shape[1];
    int code = layout_check_shape(m, layout_find(ckpt, m->name, "weight_shape"), err);
    if (code) return code;
    if (m->scales->ndim != 2 || !layout_is_float(m->scales->dtype) ||
        m->scales->shape[0] != m->rows)
        return layout_bad_tensor(m->scales, "F16, BF16 or F32 [rows, groups]", err);
    m->dtype = m->scales->dtype;
    code = layout_check_zero_point(m, err);
    return code ? code : layout_detect_group(m, err);
}

static int layout_detect_packed(const checkpoint *ckpt, layout_matrix *m, tc_error *err) {
    m->scales = layout_find(ckpt, m->name, "scales");
    m->zeros = layout_find(ckpt, m->name, "scaled_zeros");
    if (!m->zeros) m->zeros = layout_find(ckpt, m->name, "qzeros");
    if (!m->scales)
        return tc__fail(err, TC_ERR_FORMAT, "tensor '%s.scales' is missing beside '%s'", m->name,
                        m->weight->name);
    if (m->scales->ndim != 2 || !layout_is_float(m->scales->dtype))
        return layout_bad_tensor(m->scales, "a matrix of F16, BF16 or F32", err);
    if (m->weight->ndim != 2) return layout_bad_tensor(m->weight, "a matrix of I32 or I16", err);
    if (!m->zeros && m->weight->dtype == CKPT_I32 && 2 * m->scales->shape[1] == m->weight->shape[1])
        return tc__fail(
            err, TC_ERR_UNSUPPORTED,
            "layer '%s' is Marlin, which is not supported; supported: " LAYOUT_SUPPORTED, m->name);
    if (!m->zeros)
        return tc__fail(err, TC_ERR_FORMAT, "tensor '%s.qzeros' is missing beside '%s'", m->name,
                        m->weight->name);
    if (m->zeros->ndim != 2) return layout_bad_tensor(m->zeros, "a matrix", err);
    int code = layout_detect_kind(m, err);
    if (code) return code;
    m->dtype = m->scales->dtype;
    code = layout_detect_group(m, err);
    const ckpt_tensor *g_idx = layout_find(ckpt, m->name, "g_idx");
    return code || !g_idx ? code : layout_check_g_idx(m, g_idx, err);
}

int layout_detect(const checkpoint *ckpt, const char *name, layout_matrix *m, tc_error *err) {
    memset(m, 0, sizeof *m);
    m->name = name;
    int code = layout_refuse_foreign(ckpt, name, err);
    if (code) return code;
    const ckpt_tensor *plain = layout_find(ckpt, name, "weight");
    m->weight = layout_find(ckpt, name, "qweight");
    if (m->weight) return layout_detect_packed(ckpt, m, err);
    m->weight = layout_find(ckpt, name, "weight_packed");
    if (m->weight) return layout_detect_compressed(ckpt, m, err);
    if (plain) return layout_detect_plain(plain, m, err);
    return tc__fail(err, TC_ERR_FORMAT,
                    "tensor '%s.weight' (or '.qweight') is missing; does the checkpoint belong to "
                    "this config.json?",
                    name);
}

/* ---- loading ---- */

static int layout_bad_scale(const layout_matrix *m, const ckpt_tensor *tensor, uint32_t row,
                            int64_t group, double value, const char *expected, tc_error *err) {
    return tc__fail(err, TC_ERR_FORMAT,
                    "%s: tensor '%s', row %u, group %lld of %u: found %g; expected %s",
                    tensor->file, tensor->name, (unsigned)row, (long long)group,
                    (unsigned)(m->columns / m->source_group), value, expected);
}

static int layout_load_scale(layout_matrix *m, uint32_t row, int64_t group, uint16_t *out,
                             tc_error *err) {
    float scale = layout_scale_at(m, row, group);
    if (scale == 0 && layout_is_padded(m))
        return layout_bad_scale(m, m->scales, row, group, scale,
                                "a scale (the first row has that many groups)", err);
    *out = tc__f32_to_f16(scale);
    float stored = tc__f16_to_f32(*out);
    if (!isfinite(stored))
        return layout_bad_scale(m, m->scales, row, group, scale, "a finite binary16 number", err);
    m->rounded += stored != scale;
    return TC_OK;
}

/* Packing C: -s*z rounded to 16 bits: the quotient is within 0.05 of z. */
static int layout_load_scaled_zero(const layout_matrix *m, uint32_t row, int64_t group,
                                   uint8_t *out, tc_error *err) {
    float scale = layout_scale_at(m, row, group);
    double zero = -(double)layout_float_at(m->zeros, group, row) / scale;
    double nearest = floor(zero + 0.5);
    if (!(nearest >= 0 && nearest <= 15 && fabs(zero - nearest) < 0.25))
        return layout_bad_scale(m, m->zeros, row, group, zero,
                                "a multiple 0 to 15 of the scale, negated", err);
    *out = (uint8_t)nearest;
    return TC_OK;
}

/* The nibble `place` of a word of a matrix of int32. */
static uint32_t layout_nibble(const ckpt_tensor *tensor, int64_t i0, int64_t i1, unsigned place) {
    uint32_t word;
    memcpy(&word, tensor->data + 4 * (i0 * tensor->stride[0] + i1 * tensor->stride[1]), 4);
    return word >> 4 * place & 15;
}

static int layout_load_zero(layout_matrix *m, uint32_t row, int64_t group, uint8_t *out,
                            tc_error *err) {
    const ckpt_tensor *z = m->zeros;
    unsigned in_row = row & 7, in_group = (unsigned)(group & 7);
    uint32_t zero = 8;
    if (m->kind == LAYOUT_C) return layout_load_scaled_zero(m, row, group, out, err);
    if (m->kind == LAYOUT_A) {
        zero = layout_nibble(z, group, row >> 3, layout_a_place[in_row]);
    } else if (m->kind == LAYOUT_B) {
        zero = layout_nibble(z, row, group >> 3, in_group);
    } else if (m->kind == LAYOUT_GPTQ) {
        zero = layout_nibble(z, group, row >> 3, in_row) + m->zero_bias;
    } else if (z && z->dtype == CKPT_I32) {
        zero = layout_nibble(z, row >> 3, group, in_row);
    } else if (z) { /* signed bytes */
        zero = (z->data[row * z->stride[0] + group * z->stride[1]] + 8u) & 255;
    }
    if (zero > 15)
        return layout_bad_scale(m, z, row, group, zero,
                                m->kind == LAYOUT_GPTQ
                                    ? "a zero point of 1 to 15 (stored less one: 15 is ambiguous)"
                                    : "a zero point of 0 to 15",
                                err);
    *out = (uint8_t)zero;
    return TC_OK;
}

static int layout_load_scales(layout_matrix *m, tc_error *err) {
    int64_t groups = m->columns / m->source_group, places = layout_places(m);
    size_t count = (size_t)m->rows * (size_t)groups;
    m->s = tc__calloc(count, sizeof *m->s);
    m->z = tc__calloc(count, sizeof *m->z);
    if (!m->s || !m->z) return tc__fail_memory(err, "a layer's scales", 3 * count);
    for (uint32_t row = 0; row < m->rows; row++) {
        size_t at = (size_t)row * (size_t)groups;
        for (int64_t j = 0; j < groups; j++) {
            int code = layout_load_scale(m, row, j, &m->s[at + (size_t)j], err);
            if (!code) code = layout_load_zero(m, row, j, &m->z[at + (size_t)j], err);
            if (code) return code;
        }
        for (int64_t j = groups; j < places; j++)
            if (layout_scale_at(m, row, j) != 0)
                return layout_bad_scale(m, m->scales, row, j, layout_scale_at(m, row, j),
                                        "padding, 0 (the first row has fewer groups)", err);
    }
    return TC_OK;
}

static int layout_load_numbers(layout_matrix *m, tc_error *err) {
    const ckpt_tensor *q = m->weight;
    m->q = q->data;
    if (ckpt_contiguous(q)) return TC_OK;
    size_t bytes = (size_t)ckpt_elements(q) * ckpt_dtype_size(q->dtype);
    m->copy = malloc(bytes);
    if (!m->copy) return tc__fail_memory(err, "a layer that is a strided view", bytes);
    ckpt_copy(q, 0, q->shape[0], m->copy);
    m->q = m->copy;
    return TC_OK;
}

int layout_open(layout_matrix *m, checkpoint *ckpt, tc_error *err) {
    int code = ckpt_check_crc(ckpt, m->weight, err);
    if (code || m->kind == LAYOUT_PLAIN) return code;
    code = ckpt_check_crc(ckpt, m->scales, err);
    if (!code && m->zeros) code = ckpt_check_crc(ckpt, m->zeros, err);
    if (!code) code = layout_load_scales(m, err);
    if (!code) code = layout_load_numbers(m, err);
    return code;
}

void layout_close(layout_matrix *m, const checkpoint *ckpt) {
    free(m->s);
    free(m->z);
    free(m->copy);
    m->s = NULL, m->z = NULL, m->copy = NULL, m->q = NULL;
    const ckpt_tensor *used[] = {m->weight, m->scales, m->zeros};
    for (size_t i = 0; i < TC_COUNT(used); i++)
        if (used[i]) ckpt_release(ckpt, used[i]);
}

/* ---- the numbers ---- */

static inline uint32_t layout_u32(const uint8_t *at) {
    uint32_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

static inline uint64_t layout_u64(const uint8_t *at) {
    uint64_t value;
    memcpy(&value, at, sizeof value);
    return value;
}

/* Transposes 8 words of 8 nibbles: nibble i of w[p] becomes nibble p of w[i]. Halves, then bytes,
 * then nibbles change places. */
static inline void layout_transpose_8x8(uint32_t w[8]) {
    for (int i = 0; i < 4; i++) {
        uint32_t a = w[i], b = w[i + 4];
        w[i] = (a & 0xffff) | b << 16;
        w[i + 4] = a >> 16 | (b & 0xffff0000);
    }
    for (int i = 0; i < 8; i += 4)
        for (int j = i; j < i + 2; j++) {
            uint32_t a = w[j], b = w[j + 2];
            w[j] = (a & 0x00ff00ff) | (b & 0x00ff00ff) << 8;
            w[j + 2] = (a >> 8 & 0x00ff00ff) | (b & 0xff00ff00);
        }
    for (int i = 0; i < 8; i += 2) {
        uint32_t a = w[i], b = w[i + 1];
        w[i] = (a & 0x0f0f0f0f) | (b & 0x0f0f0f0f) << 4;
        w[i + 1] = (a >> 4 & 0x0f0f0f0f) | (b & 0xf0f0f0f0);
    }
}

/* Transposes 4 halves of 4 nibbles within 64 bits. */
static inline uint64_t layout_transpose_4x4(uint64_t x) {
    uint64_t t = (x ^ x >> 12) & 0x0000f0f00000f0f0u;
    x ^= t ^ t << 12;
    t = (x ^ x >> 24) & 0x00000000ff00ff00u;
    return x ^ t ^ t << 24;
}

/* One word holds one column of eight rows, so eight words (columns) make eight words (rows). */
static void layout_unpack_a(const layout_matrix *m, uint32_t row, uint32_t column, uint32_t width,
                            layout_words *words) {
    size_t stride = (size_t)m->rows / 8 * 4;
    const uint8_t *at = m->q + (size_t)column * stride + (size_t)row / 8 * 4;
    for (uint32_t j = 0; j < width / 8; j++, at += 8 * stride) {
        uint32_t w[8];
        for (size_t i = 0; i < 8; i++) w[i] = layout_u32(at + i * stride);
        layout_transpose_8x8(w);
        for (int i = 0; i < 8; i++) words[i][j] = w[layout_a_place[i]];
    }
}

static void layout_unpack_b(const layout_matrix *m, uint32_t row, uint32_t count, uint32_t column,
                            uint32_t width, layout_words *words) {
    size_t stride = (size_t)m->columns / 2;
    const uint8_t *at = m->q + (size_t)row * stride + column / 2;
    for (uint32_t i = 0; i < count; i++, at += stride) memcpy(words[i], at, width / 2);
}

static void layout_unpack_gptq(const layout_matrix *m, uint32_t row, uint32_t column,
                               uint32_t width, layout_words *words) {
    const uint8_t *at = m->q + 4 * ((size_t)(column / 8) * m->rows + row);
    for (uint32_t j = 0; j < width / 8; j++, at += 4 * (size_t)m->rows)
        for (uint32_t i = 0; i < 8; i++) words[i][j] = layout_u32(at + 4 * i);
}

/* 32 columns of a row are eight 16-bit halves: nibble i of half c is column 8 i + c. */
static void layout_unpack_c(const layout_matrix *m, uint32_t row, uint32_t count, uint32_t column,
                            uint32_t width, layout_words *words) {
    for (uint32_t i = 0; i < count; i++) {
        uint32_t n = row + i;
        const uint8_t *tile = m->q + 2 * ((size_t)(n >> 2) * m->columns + (n & 3) * 16);
        for (uint32_t k = column; k < column + width; k += 32) {
            const uint8_t *at = tile + 2 * ((size_t)(k >> 6) * 64 + (k >> 5 & 1) * 8);
            uint64_t low = layout_transpose_4x4(layout_u64(at));
            uint64_t high = layout_transpose_4x4(layout_u64(at + 8));
            uint32_t *out = &words[i][(k - column) / 8];
            for (int j = 0; j < 4; j++)
                out[j] = (uint32_t)(low >> 16 * j & 0xffff) | (uint32_t)(high >> 16 * j & 0xffff)
                                                                  << 16;
        }
    }
}

void layout_unpack(const layout_matrix *m, uint32_t row, uint32_t count, uint32_t column,
                   uint32_t width, layout_words *words) {
    if (m->kind == LAYOUT_A)
        layout_unpack_a(m, row, column, width, words);
    else if (m->kind == LAYOUT_GPTQ)
        layout_unpack_gptq(m, row, column, width, words);
    else if (m->kind == LAYOUT_B || m->kind == LAYOUT_COMPRESSED)
        layout_unpack_b(m, row, count, column, width, words);
    else
        layout_unpack_c(m, row, count, column, width, words);
}
