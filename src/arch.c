#include "arch.h"

#include <math.h>
#include <stddef.h>

/* Every arch.* key; an unknown one would change the numbers, so it is refused. */
static const char *const arch_keys[] = {
    "arch.family",       "arch.hidden_size", "arch.intermediate_size",
    "arch.layers",       "arch.heads",       "arch.kv_heads",
    "arch.head_dim",     "arch.vocab_size",  "arch.max_seq_len",
    "arch.norm_eps",     "arch.norm",        "arch.position",
    "arch.rope_theta",   "arch.rope_scale",  "arch.rope_frequencies",
    "arch.alibi_slopes", "arch.activation",  "arch.gated",
    "arch.parallel",     "arch.clip_qkv",    "arch.sliding_window",
};

static int arch_check_keys(const tc__model_file *file, tc_error *err) {
    for (size_t i = 0; i < file->meta_count; i++) {
        const tc__meta *meta = &file->metas[i];
        if (meta->key_len < 5 || memcmp(meta->key, "arch.", 5) != 0) continue;
        bool known = false;
        for (size_t k = 0; k < TC_COUNT(arch_keys); k++)
            known |= tc__find_meta(file, arch_keys[k]) == meta;
        if (!known)
            return tc__fail(err, TC_ERR_UNSUPPORTED,
                            "model file: unknown hyper-parameter '%.*s'; this program is too old "
                            "for the file",
                            (int)meta->key_len, meta->key);
    }
    return TC_OK;
}

/* The caps are far above any model; they keep every later product of two sizes inside 64 bits. */
static int arch_read_sizes(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    const struct {
        const char *key;
        uint32_t *value, max;
    } sizes[] = {
        {"arch.hidden_size", &arch->hidden_size, 1u << 17},
        {"arch.intermediate_size", &arch->intermediate_size, 1u << 20},
        {"arch.layers", &arch->layers, 1024},
        {"arch.heads", &arch->heads, 1024},
        {"arch.kv_heads", &arch->kv_heads, 1024},
        {"arch.head_dim", &arch->head_dim, 1024},
        {"arch.vocab_size", &arch->vocab_size, 1u << 21},
        {"arch.max_seq_len", &arch->max_seq_len, 1u << 24},
    };
    for (size_t i = 0; i < TC_COUNT(sizes); i++) {
        int code = tc__meta_u32(file, sizes[i].key, sizes[i].value, err);
        if (code) return code;
        if (*sizes[i].value < 1 || *sizes[i].value > sizes[i].max)
            return tc__fail(err, TC_ERR_FORMAT, "model file: %s is %u; expected 1 to %u",
                            sizes[i].key, (unsigned)*sizes[i].value, (unsigned)sizes[i].max);
    }
    if (arch->heads % arch->kv_heads || arch->head_dim % 2 || arch->intermediate_size % 8)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: %u heads, %u KV heads, head_dim %u, intermediate_size %u do "
                        "not fit together; expected KV heads that divide the heads, an even "
                        "head_dim and an intermediate_size that is a multiple of 8",
                        (unsigned)arch->heads, (unsigned)arch->kv_heads, (unsigned)arch->head_dim,
                        (unsigned)arch->intermediate_size);
    return TC_OK;
}

/* What a block is made of: numbers that name a kind, 0 or 1 each. */
static int arch_read_kinds(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    uint32_t gated, parallel;
    const struct {
        const char *key;
        uint32_t missing, *value;
        const char *kinds;
    } kinds[] = {
        {"arch.norm", TC__NORM_RMS, &arch->norm, "0 (RMSNorm) and 1 (LayerNorm)"},
        {"arch.position", TC__POSITION_ROPE, &arch->position, "0 (RoPE) and 1 (ALiBi)"},
        {"arch.activation", TC__ACT_SILU, &arch->activation, "0 (SiLU) and 1 (GELU)"},
        {"arch.gated", 1, &gated, "0 (no) and 1 (yes)"},
        {"arch.parallel", 0, &parallel, "0 (no) and 1 (yes)"},
    };
    for (size_t i = 0; i < TC_COUNT(kinds); i++) {
        int code = tc__meta_u32_or(file, kinds[i].key, kinds[i].missing, kinds[i].value, err);
        if (code) return code;
        if (*kinds[i].value > 1)
            return tc__fail(err, TC_ERR_UNSUPPORTED, "model file: %s is %u; supported: %s",
                            kinds[i].key, (unsigned)*kinds[i].value, kinds[i].kinds);
    }
    arch->gated = gated != 0;
    arch->parallel = parallel != 0;
    return tc__meta_u32_or(file, "arch.sliding_window", 0, &arch->sliding_window, err);
}

/* `missing` is the value of a missing key; NAN: the key is required. */
static int arch_number(const tc__model_file *file, const char *key, double missing, double least,
                       double most, double *value, tc_error *err) {
    *value = missing;
    if (!isnan(missing) && !tc__find_meta(file, key)) return TC_OK;
    int code = tc__meta_f64(file, key, value, err);
    if (code || (*value >= least && *value <= most)) return code;
    return tc__fail(err, TC_ERR_FORMAT, "model file: %s is %g; expected %g to %g", key, *value,
                    least, most);
}

/* The `count` numbers of a key; NULL: there is no such key. */
static int arch_array(const tc__model_file *file, const char *key, uint32_t type, size_t count,
                      const uint8_t **values, tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, key);
    *values = meta ? meta->value : NULL;
    if (!meta || (meta->type == type && meta->count == count)) return TC_OK;
    return tc__fail(err, TC_ERR_FORMAT,
                    "model file: %s has type %u and %zu elements; expected type %u and %zu", key,
                    (unsigned)meta->type, meta->count, (unsigned)type, count);
}

static int arch_bad_number(const char *what, size_t index, double value, const char *expected,
                           tc_error *err) {
    return tc__fail(err, TC_ERR_FORMAT, "model file: %s[%zu] is %g; expected %s", what, index,
                    value, expected);
}

/* Angles per position: the file's, or theta^(-2i / head_dim). */
static int arch_read_rope(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    const char *key = "arch.rope_frequencies";
    const size_t half = arch->head_dim / 2;
    const uint8_t *given = NULL;
    double theta = 0, scale = 1;
    int code = arch_number(file, "arch.rope_theta", NAN, 1, 1e15, &theta, err);
    if (!code) code = arch_number(file, "arch.rope_scale", 1, 1e-3, 1e3, &scale, err);
    if (!code) code = arch_array(file, key, TC__META_F64, half, &given, err);
    if (code) return code;
    arch->rope_scale = (float)scale;
    arch->frequencies = tc__calloc(half, sizeof *arch->frequencies);
    if (!arch->frequencies)
        return tc__fail_memory(err, "RoPE's frequencies", half * sizeof(double));
    for (size_t i = 0; i < half; i++) {
        double *frequency = &arch->frequencies[i];
        *frequency = pow(theta, -2.0 * (double)i / arch->head_dim);
        if (given) memcpy(frequency, given + i * sizeof *frequency, sizeof *frequency);
        if (!(*frequency >= 0 && *frequency <= 4))
            return arch_bad_number(key, i, *frequency, "0 to 4 radians per position", err);
    }
    return TC_OK;
}

static int arch_read_alibi(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    const char *key = "arch.alibi_slopes";
    const size_t bytes = arch->heads * sizeof *arch->slopes;
    const uint8_t *given = NULL;
    int code = arch_array(file, key, TC__META_F32, arch->heads, &given, err);
    if (code) return code;
    if (!given)
        return tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' is missing; ALiBi needs it",
                        key);
    arch->slopes = tc__calloc(1, bytes);
    if (!arch->slopes) return tc__fail_memory(err, "ALiBi's slopes", bytes);
    memcpy(arch->slopes, given, bytes);
    for (size_t i = 0; i < arch->heads; i++)
        if (!(arch->slopes[i] >= 0 && arch->slopes[i] <= 16))
            return arch_bad_number(key, i, (double)arch->slopes[i], "0 to 16", err);
    return TC_OK;
}

/* A key that belongs to the other kind of position contradicts arch.position. */
static int arch_read_position(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    static const char *const keys[] = {"arch.alibi_slopes", "arch.rope_theta", "arch.rope_scale",
                                       "arch.rope_frequencies"};
    const bool rope = arch->position == TC__POSITION_ROPE;
    for (size_t i = rope ? 0 : 1; i < (rope ? 1 : TC_COUNT(keys)); i++)
        if (tc__find_meta(file, keys[i]))
            return tc__fail(err, TC_ERR_FORMAT,
                            "model file: metadata '%s' does not go with arch.position %u (%s)",
                            keys[i], (unsigned)arch->position, rope ? "RoPE" : "ALiBi");
    return rope ? arch_read_rope(file, arch, err) : arch_read_alibi(file, arch, err);
}

static int arch_read(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    double eps = 0, clip = 0;
    int code = arch_check_keys(file, err);
    if (!code) code = arch_read_sizes(file, arch, err);
    if (!code) code = arch_read_kinds(file, arch, err);
    if (!code) code = arch_number(file, "arch.norm_eps", NAN, 1e-20, 0.5, &eps, err);
    if (!code) code = arch_number(file, "arch.clip_qkv", 0, 1e-6, 1e6, &clip, err);
    if (code) return code;
    arch->norm_eps = (float)eps;
    arch->clip_qkv = (float)clip;
    return arch_read_position(file, arch, err);
}

/* ---- tensors ---- */

static const char *arch_type_name(uint32_t type) {
    return type == TC__F32 ? "F32" : type == TC__F16 ? "F16" : type == TC__BF16 ? "BF16" : "W4";
}

/* F32; F32 without zeros; F16 or BF16; F16, BF16 or W4 */
enum { ARCH_VECTOR, ARCH_DIVISOR, ARCH_TABLE, ARCH_MATRIX };

static bool arch_type_suits(int kind, uint32_t type) {
    if (kind == ARCH_VECTOR || kind == ARCH_DIVISOR) return type == TC__F32;
    return type == TC__F16 || type == TC__BF16 || (kind == ARCH_MATRIX && type == TC__W4);
}

/* Whether a model has a tensor. */
enum { ARCH_NEVER, ARCH_MAYBE, ARCH_ALWAYS };

typedef struct arch_part {
    const char *name;
    int kind, presence;
    size_t rows, columns;
    size_t place; /* of the pointer, in tc__weights or tc__layer */
} arch_part;

/* Vectors are short enough to be looked through: one bad number in them would spoil every result
 * without a word. */
static int arch_check_vector(const tc__tensor *tensor, const char *name, bool divisor,
                             tc_error *err) {
    for (size_t i = 0; tensor->data && i < tensor->rows; i++) {
        float value;
        memcpy(&value, tensor->data + i * sizeof value, sizeof value);
        if (!isfinite(value) || (divisor && value == 0))
            return arch_bad_number(name, i, (double)value,
                                   divisor ? "a finite number other than 0" : "a finite number",
                                   err);
    }
    return TC_OK;
}

static int arch_check_tensor(const tc__tensor *tensor, const char *name, const arch_part *part,
                             tc_error *err) {
    const bool vector = part->kind == ARCH_VECTOR || part->kind == ARCH_DIVISOR;
    if (!arch_type_suits(part->kind, tensor->type))
        return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' has type %s; expected %s",
                        name, arch_type_name(tensor->type),
                        vector                     ? "F32"
                        : part->kind == ARCH_TABLE ? "F16 or BF16"
                                                   : "W4, F16 or BF16");
    if (tensor->rows != part->rows || tensor->columns != part->columns)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: tensor '%s' has shape [%zu, %zu]; expected [%zu, %zu]", name,
                        tensor->rows, tensor->columns, part->rows, part->columns);
    return vector ? arch_check_vector(tensor, name, part->kind == ARCH_DIVISOR, err) : TC_OK;
}

/* Finds and checks the parts of `owner`: of a layer, or with layer < 0 of the weights beside them.
 * What layer 0, `first`, has or lacks, the others must have or lack. `used` notes what is found. */
static int arch_find(const tc__model_file *file, long layer, const arch_part *parts, size_t count,
                     void *owner, const void *first, bool *used, tc_error *err) {
    for (size_t k = 0; k < count; k++) {
        const arch_part *part = &parts[k];
        const tc__tensor **out = (void *)((char *)owner + part->place);
        const tc__tensor *const *model = (const void *)((const char *)first + part->place);
        char name[64];
        if (part->presence == ARCH_NEVER) continue;
        if (part->presence == ARCH_MAYBE && owner != first && !*model) continue;
        if (layer < 0)
            snprintf(name, sizeof name, "%s", part->name);
        else
            snprintf(name, sizeof name, "%ld.%s", layer, part->name);
        *out = tc__find_tensor(file, name);
        if (!*out && part->presence == ARCH_MAYBE && owner == first) continue;
        if (!*out) return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' is missing", name);
        used[*out - file->tensors] = true;
        int code = arch_check_tensor(*out, name, part, err);
        if (code) return code;
    }
    return TC_OK;
}

static int arch_layers(const tc__model_file *file, tc__weights *weights, bool *used,
                       tc_error *err) {
    const tc__arch *arch = &weights->arch;
    const size_t hidden = arch->hidden_size, inner = arch->intermediate_size, d = arch->head_dim;
    const size_t heads = arch->heads * d, qkv = heads + 2 * (size_t)arch->kv_heads * d;
    const int bias = arch->norm == TC__NORM_LAYER ? ARCH_MAYBE : ARCH_NEVER;
    const int mlp_norm = arch->parallel ? ARCH_MAYBE : ARCH_ALWAYS;
#define ARCH_PLACE(field) offsetof(tc__layer, field)
    const arch_part parts[] = {
        {"attn_norm", ARCH_VECTOR, ARCH_ALWAYS, hidden, 1, ARCH_PLACE(attn_norm)},
        {"attn_norm_bias", ARCH_VECTOR, bias, hidden, 1, ARCH_PLACE(attn_norm_bias)},
        {"qkv", ARCH_MATRIX, ARCH_ALWAYS, qkv, hidden, ARCH_PLACE(qkv)},
        {"qkv_bias", ARCH_VECTOR, ARCH_MAYBE, qkv, 1, ARCH_PLACE(qkv_bias)},
        {"q_norm", ARCH_VECTOR, ARCH_MAYBE, d, 1, ARCH_PLACE(q_norm)},
        {"k_norm", ARCH_VECTOR, ARCH_MAYBE, d, 1, ARCH_PLACE(k_norm)},
        {"o", ARCH_MATRIX, ARCH_ALWAYS, hidden, heads, ARCH_PLACE(o)},
        {"mlp_norm", ARCH_VECTOR, mlp_norm, hidden, 1, ARCH_PLACE(mlp_norm)},
        {"mlp_norm_bias", ARCH_VECTOR, bias, hidden, 1, ARCH_PLACE(mlp_norm_bias)},
        {arch->gated ? "gate_up" : "up", ARCH_MATRIX, ARCH_ALWAYS, arch->gated ? 2 * inner : inner,
         hidden, ARCH_PLACE(gate_up)},
        {"act_scales", ARCH_DIVISOR, ARCH_MAYBE, inner, 1, ARCH_PLACE(act_scales)},
        {"down", ARCH_MATRIX, ARCH_ALWAYS, hidden, inner, ARCH_PLACE(down)},
    };
#undef ARCH_PLACE
    tc__layer *first = &weights->layers[0];
    for (uint32_t i = 0; i < arch->layers; i++) {
        int code =
            arch_find(file, (long)i, parts, TC_COUNT(parts), &weights->layers[i], first, used, err);
        if (code) return code;
    }
    if (!first->q_norm != !first->k_norm)
        return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '0.%s' is missing; '0.%s' is there",
                        first->q_norm ? "k_norm" : "q_norm", first->q_norm ? "q_norm" : "k_norm");
    if (first->mlp_norm_bias && !first->mlp_norm)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: tensor '0.mlp_norm' is missing; '0.mlp_norm_bias' is there");
    return TC_OK;
}

static int arch_beside_layers(const tc__model_file *file, tc__weights *weights, bool *used,
                              tc_error *err) {
    const size_t hidden = weights->arch.hidden_size, vocab = weights->arch.vocab_size;
    const int bias = weights->arch.norm == TC__NORM_LAYER ? ARCH_MAYBE : ARCH_NEVER;
#define ARCH_PLACE(field) offsetof(tc__weights, field)
    const arch_part parts[] = {
        {"embed", ARCH_TABLE, ARCH_ALWAYS, vocab, hidden, ARCH_PLACE(embed)},
        {"norm", ARCH_VECTOR, ARCH_ALWAYS, hidden, 1, ARCH_PLACE(norm)},
        {"norm_bias", ARCH_VECTOR, bias, hidden, 1, ARCH_PLACE(norm_bias)},
        {"head", ARCH_TABLE, ARCH_MAYBE, vocab, hidden, ARCH_PLACE(head)},
    };
#undef ARCH_PLACE
    int code = arch_find(file, -1, parts, TC_COUNT(parts), weights, weights, used, err);
    if (!weights->head) weights->head = weights->embed;
    return code;
}

/* A tensor that nobody asked for would have changed the numbers. */
static int arch_check_used(const tc__model_file *file, const bool *used, tc_error *err) {
    for (size_t i = 0; i < file->tensor_count; i++)
        if (!used[i])
            return tc__fail(err, TC_ERR_UNSUPPORTED,
                            "model file: tensor '%.*s' has no place in this model: its "
                            "hyper-parameters or its layer 0 know no such tensor",
                            (int)file->tensors[i].name_len, file->tensors[i].name);
    return TC_OK;
}

static int arch_find_tensors(const tc__model_file *file, tc__weights *weights, tc_error *err) {
    const size_t layers = weights->arch.layers;
    weights->layers = tc__calloc(layers, sizeof *weights->layers);
    if (!weights->layers)
        return tc__fail_memory(err, "the table of layers", layers * sizeof *weights->layers);
    bool *used = tc__calloc(file->tensor_count, sizeof *used);
    if (!used) return tc__fail_memory(err, "the table of tensors", file->tensor_count);
    int code = arch_beside_layers(file, weights, used, err);
    if (!code) code = arch_layers(file, weights, used, err);
    if (!code) code = arch_check_used(file, used, err);
    free(used);
    return code;
}

static void arch_count(const tc__model_file *file, tc__weights *weights) {
    const tc__tensor *last = &file->tensors[file->tensor_count - 1];
    weights->data = file->tensors[0].data;
    weights->data_bytes = last->offset + last->size;
    weights->in_file = file->map.data != NULL;
    weights->fd = file->fd;
    weights->data_at = weights->in_file ? (size_t)(weights->data - file->map.data) : 0;
    size_t row = weights->embed->columns * 2; /* one token reads one row of the embedding */
    for (size_t i = 0; i < file->tensor_count; i++) {
        const tc__tensor *tensor = &file->tensors[i];
        weights->parameters += tensor->rows * tensor->columns;
        weights->tensor_bytes += tensor->size;
        if (tensor->columns > 1 && tensor != weights->embed && tensor != weights->head)
            weights->layer_parameters += tensor->rows * tensor->columns;
        bool whole = tensor != weights->embed || weights->head == weights->embed;
        weights->bytes_per_token += whole ? tensor->size : row;
    }
}

size_t tc__head_8_group(const tc__weights *weights) {
    const size_t columns = weights->head->columns;
    return columns % 128 == 0 ? 128 : columns % 64 == 0 ? 64 : 32;
}

size_t tc__head_8_bytes(const tc__weights *weights) {
    const size_t groups = weights->head->columns / tc__head_8_group(weights);
    const size_t blocks = (weights->head->rows + TC__UNIT_ROWS - 1) / TC__UNIT_ROWS;
    return blocks * groups * TC__UNIT_ROWS * (tc__head_8_group(weights) + 2);
}

void tc__weights_head_in_8(tc__weights *weights) {
    const size_t bytes = tc__head_8_bytes(weights);
    const bool tied = weights->head == weights->embed;
    weights->head_in_8 = true;
    weights->bytes_per_token += bytes;
    weights->bytes_per_token -= weights->head->size;
    if (tied) weights->bytes_per_token += weights->embed->columns * 2;
    if (tied || bytes > weights->head->size) weights->head_apart_bytes = bytes;
}

int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err) {
    memset(weights, 0, sizeof *weights);
    int code = arch_read(file, &weights->arch, err);
    if (!code) code = arch_find_tensors(file, weights, err);
    if (code) {
        tc__weights_close(weights);
        return code;
    }
    arch_count(file, weights);
    return tc__ok(err);
}

void tc__weights_close(tc__weights *weights) {
    free(weights->layers);
    free(weights->arch.frequencies);
    free(weights->arch.slopes);
    memset(weights, 0, sizeof *weights);
}

/* The kind of a matrix for people: "W4A16 g128", "W16A16", "W16A16 (bf16)". */
static void arch_matrix_name(const tc__tensor *tensor, char *text, size_t size) {
    if (tensor->type == TC__W4)
        snprintf(text, size, "W4A16 g%u", (unsigned)tensor->group_size);
    else
        snprintf(text, size, tensor->type == TC__F16 ? "W16A16" : "W16A16 (bf16)");
}

static void arch_layers_name(const tc__weights *weights, char *text, size_t size) {
    arch_matrix_name(weights->layers[0].qkv, text, size);
    for (uint32_t i = 0; i < weights->arch.layers; i++) {
        const tc__layer *layer = &weights->layers[i];
        const tc__tensor *matrices[] = {layer->qkv, layer->o, layer->gate_up, layer->down};
        for (size_t k = 0; k < TC_COUNT(matrices); k++)
            if (matrices[k]->type != weights->layers[0].qkv->type ||
                matrices[k]->group_size != weights->layers[0].qkv->group_size) {
                snprintf(text, size, "mixed precision");
                return;
            }
    }
}

void tc__precision_name(const tc__weights *weights, char *text, size_t size) {
    char layers[32];
    arch_layers_name(weights, layers, sizeof layers);
    snprintf(text, size, "%s%s", layers, weights->head_in_8 ? ", int8 head" : "");
}
