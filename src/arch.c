#include "arch.h"

#include <math.h>

/* Every arch.* key of the family; an unknown one would change the numbers, so it is refused. */
static const char *const arch_keys[] = {
    "arch.family",      "arch.hidden_size", "arch.intermediate_size", "arch.layers",
    "arch.heads",       "arch.kv_heads",    "arch.head_dim",          "arch.vocab_size",
    "arch.max_seq_len", "arch.norm_eps",    "arch.rope_theta",
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
    const char *family;
    size_t len;
    int code = tc__meta_text(file, "arch.family", &family, &len, err);
    if (code) return code;
    if (len != 5 || memcmp(family, "llama", 5) != 0)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "model file: model family '%.*s' is not supported; supported: llama",
                        (int)(len < 64 ? len : 64), family);
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

/* Angles per position: theta^(-2i / head_dim). */
static int arch_frequencies(tc__arch *arch, double theta, tc_error *err) {
    size_t half = arch->head_dim / 2;
    arch->frequencies = tc__calloc(half, sizeof *arch->frequencies);
    if (!arch->frequencies) return tc__fail_memory(err, "RoPE's frequencies", half * sizeof(double));
    for (size_t i = 0; i < half; i++)
        arch->frequencies[i] = pow(theta, -2.0 * (double)i / arch->head_dim);
    return TC_OK;
}

static int arch_read(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    double eps = 0, theta = 0;
    int code = arch_check_keys(file, err);
    if (!code) code = arch_read_sizes(file, arch, err);
    if (!code) code = tc__meta_f64(file, "arch.norm_eps", &eps, err);
    if (!code) code = tc__meta_f64(file, "arch.rope_theta", &theta, err);
    if (code) return code;
    arch->norm_eps = (float)eps;
    if (!(eps > 0 && eps < 1) || !(theta >= 1 && isfinite(theta)))
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: norm_eps %g or rope_theta %g is impossible", eps, theta);
    arch->gated = true;
    arch->rope_scale = 1;
    return arch_frequencies(arch, theta, err);
}

static const char *arch_type_name(uint32_t type) {
    return type == TC__F32 ? "F32" : type == TC__F16 ? "F16" : type == TC__BF16 ? "BF16" : "W4";
}

enum { ARCH_NORM, ARCH_TABLE, ARCH_MATRIX }; /* F32; F16 or BF16; F16, BF16 or W4 */

static bool arch_type_suits(int kind, uint32_t type) {
    if (kind == ARCH_NORM) return type == TC__F32;
    return type == TC__F16 || type == TC__BF16 || (kind == ARCH_MATRIX && type == TC__W4);
}

/* Finds "name" (layer < 0) or "layer.name" and checks type and shape. */
static int arch_tensor(const tc__model_file *file, long layer, const char *name, int kind,
                       size_t rows, size_t columns, const tc__tensor **out, tc_error *err) {
    char full[64];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "%ld.%s", layer, name);
    const tc__tensor *tensor = tc__find_tensor(file, full);
    if (!tensor) return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' is missing", full);
    if (!arch_type_suits(kind, tensor->type))
        return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' has type %s; expected %s",
                        full, arch_type_name(tensor->type),
                        kind == ARCH_NORM    ? "F32"
                        : kind == ARCH_TABLE ? "F16 or BF16"
                                             : "W4, F16 or BF16");
    if (tensor->rows != rows || tensor->columns != columns)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: tensor '%s' has shape [%zu, %zu]; expected [%zu, %zu]", full,
                        tensor->rows, tensor->columns, rows, columns);
    *out = tensor;
    return TC_OK;
}

static int arch_layer(const tc__model_file *file, const tc__arch *arch, long i, tc__layer *layer,
                      tc_error *err) {
    size_t hidden = arch->hidden_size, intermediate = arch->intermediate_size;
    size_t head_dim = arch->head_dim;
    size_t qkv_rows = (arch->heads + 2 * (size_t)arch->kv_heads) * head_dim;
    const struct {
        const char *name;
        int kind;
        size_t rows, columns;
        const tc__tensor **out;
    } wanted[] = {
        {"attn_norm", ARCH_NORM, hidden, 1, &layer->attn_norm},
        {"qkv", ARCH_MATRIX, qkv_rows, hidden, &layer->qkv},
        {"o", ARCH_MATRIX, hidden, arch->heads * head_dim, &layer->o},
        {"mlp_norm", ARCH_NORM, hidden, 1, &layer->mlp_norm},
        {"gate_up", ARCH_MATRIX, 2 * intermediate, hidden, &layer->gate_up},
        {"down", ARCH_MATRIX, hidden, intermediate, &layer->down},
    };
    for (size_t k = 0; k < TC_COUNT(wanted); k++) {
        int code = arch_tensor(file, i, wanted[k].name, wanted[k].kind, wanted[k].rows,
                               wanted[k].columns, wanted[k].out, err);
        if (code) return code;
    }
    return TC_OK;
}

static void arch_count(const tc__model_file *file, tc__weights *weights) {
    const tc__tensor *last = &file->tensors[file->tensor_count - 1];
    weights->data = file->tensors[0].data;
    weights->data_bytes = last->offset + last->size;
    weights->in_file = file->map.data != NULL;
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

int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err) {
    memset(weights, 0, sizeof *weights);
    tc__arch *arch = &weights->arch;
    int code = arch_read(file, arch, err);
    if (!code) weights->layers = tc__calloc(arch->layers, sizeof *weights->layers);
    if (!code && !weights->layers)
        code = tc__fail_memory(err, "the table of layers", arch->layers * sizeof(tc__layer));
    if (code) {
        tc__weights_close(weights);
        return code;
    }
    size_t hidden = arch->hidden_size, vocab = arch->vocab_size;
    code = arch_tensor(file, -1, "embed", ARCH_TABLE, vocab, hidden, &weights->embed, err);
    for (uint32_t i = 0; i < arch->layers && !code; i++)
        code = arch_layer(file, arch, (long)i, &weights->layers[i], err);
    if (!code) code = arch_tensor(file, -1, "norm", ARCH_NORM, hidden, 1, &weights->norm, err);
    weights->head = weights->embed;
    if (!code && tc__find_tensor(file, "head"))
        code = arch_tensor(file, -1, "head", ARCH_TABLE, vocab, hidden, &weights->head, err);
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

void tc__precision_name(const tc__weights *weights, char *text, size_t size) {
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
