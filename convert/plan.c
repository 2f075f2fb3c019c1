#include "plan.h"

#include "search.h"

/* What a plan is made from, and which tensors of the checkpoint it has used. */
typedef struct plan_state {
    const hf_config *config;
    const checkpoint *ckpt;
    plan *p;
    uint8_t *used; /* [ckpt->count] */
    tc__buf *notes;
    tc_error *err;
} plan_state;

static void plan_use(plan_state *state, const ckpt_tensor *tensor) {
    if (!tensor || state->used[tensor - state->ckpt->tensors]) return;
    state->used[tensor - state->ckpt->tensors] = 1;
    state->p->input_bytes += ckpt_elements(tensor) * ckpt_dtype_size(tensor->dtype);
}

static plan_tensor *plan_add(plan_state *state, long layer, const char *name) {
    plan_tensor *tensor = &state->p->tensors[state->p->count++];
    if (layer < 0)
        snprintf(tensor->name, sizeof tensor->name, "%s", name);
    else
        snprintf(tensor->name, sizeof tensor->name, "%ld.%s", layer, name);
    return tensor;
}

static uint32_t plan_dim(const hf_config *c, family_dim dim) {
    switch (dim) {
    case FAMILY_H: return c->hidden_size;
    case FAMILY_I: return c->intermediate_size;
    case FAMILY_Q: return c->heads * c->head_dim;
    case FAMILY_KV: return c->kv_heads * c->head_dim;
    case FAMILY_QKV: return (c->heads + 2 * c->kv_heads) * c->head_dim;
    case FAMILY_D: return c->head_dim;
    default: return 1;
    }
}

/* The name of a part in the checkpoint. */
static void plan_name(const plan_state *state, long layer, const char *part, char name[80]) {
    if (layer < 0)
        snprintf(name, 80, "%s", part);
    else
        snprintf(name, 80, "%s%ld.%s", state->config->family->layer, layer, part);
}

static int plan_missing(const plan_state *state, const char *name) {
    return tc__fail(state->err, TC_ERR_FORMAT,
                    "tensor '%s' is missing; does the checkpoint belong to this config.json?",
                    name);
}

/* ---- vectors ---- */

float plan_number(const ckpt_tensor *part, int64_t i) {
    const uint8_t *at = part->data + (size_t)(i * part->stride[0]) * ckpt_dtype_size(part->dtype);
    float value;
    uint16_t half;
    if (part->dtype == CKPT_F32) {
        memcpy(&value, at, sizeof value);
        return value;
    }
    memcpy(&half, at, sizeof half);
    return part->dtype == CKPT_F16 ? tc__f16_to_f32(half) : tc__bf16_to_f32(half);
}

/* Adds a part of a vector; NULL: ones. */
static int plan_vector_part(plan_state *state, plan_tensor *tensor, const char *name,
                            uint32_t length) {
    plan_vector *v = &tensor->vector;
    const ckpt_tensor *part = ckpt_find(state->ckpt, name);
    char shape[CKPT_SHAPE_TEXT];
    v->parts[v->part_count++] = part;
    v->length += length;
    if (!part) return TC_OK;
    bool number = part->dtype == CKPT_F16 || part->dtype == CKPT_BF16 || part->dtype == CKPT_F32;
    if (!number || part->ndim != 1 || part->shape[0] != length)
        return tc__fail(state->err, TC_ERR_FORMAT,
                        "%s: tensor '%s' is %s; expected F16, BF16 or F32 [%u]", part->file, name,
                        ckpt_shape_text(part, shape), (unsigned)length);
    plan_use(state, part);
    return TC_OK;
}

static int plan_vector_of(plan_state *state, long layer, const family_tensor *source) {
    plan_tensor *tensor = plan_add(state, layer, source->name);
    int code = TC_OK, missing = -1;
    tensor->vector.divisor = source->presence == FAMILY_ONES;
    for (int i = 0; i < FAMILY_MAX_PARTS && source->parts[i].name && !code; i++) {
        char *name = tensor->part_names[i];
        plan_name(state, layer, source->parts[i].name, name);
        code =
            plan_vector_part(state, tensor, name, plan_dim(state->config, source->parts[i].rows));
        if (!tensor->vector.parts[i]) missing = i;
    }
    if (!code && missing >= 0 && source->presence == FAMILY_REQUIRED)
        code = plan_missing(state, tensor->part_names[missing]);
    return code;
}

/* ---- matrices ---- */

/* Counts a linear layer for the summary. */
static void plan_count(plan *p, const layout_matrix *m) {
    if (m->kind == LAYOUT_PLAIN) {
        p->plain++;
        return;
    }
    if (p->packed++ == 0) {
        p->kind = m->kind;
        p->source_group = m->source_group;
        p->group = m->group;
    }
    p->mixed |= p->kind != m->kind || p->source_group != m->source_group;
}

static const char *plan_describe(const layout_matrix *m, char text[64]) {
    if (m->kind == LAYOUT_PLAIN)
        snprintf(text, 64, "%s", ckpt_dtype_name(m->dtype));
    else
        snprintf(text, 64, "%s with group size %u", layout_name(m->kind),
                 (unsigned)m->source_group);
    return text;
}

/* The parts of a joined matrix must be alike. */
static int plan_check_join(const plan_state *state, const repack_matrix *m) {
    const layout_matrix *first = &m->parts[0];
    for (int i = 1; i < m->part_count; i++) {
        const layout_matrix *part = &m->parts[i];
        bool same = part->kind == first->kind && part->source_group == first->source_group &&
                    (part->kind != LAYOUT_PLAIN || part->dtype == first->dtype);
        char one[64], other[64];
        if (!same)
            return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                            "'%s' is %s but '%s' is %s; expected the same, because the two are "
                            "joined to one matrix",
                            first->name, plan_describe(first, one), part->name,
                            plan_describe(part, other));
    }
    return TC_OK;
}

static int plan_part_of(plan_state *state, layout_matrix *m, const char *name, size_t rows,
                        size_t columns) {
    int code = layout_detect(state->ckpt, name, m, state->err);
    if (code) return code;
    if (m->rows != rows || m->columns != columns)
        return tc__fail(state->err, TC_ERR_FORMAT,
                        "layer '%s' is [%u, %u]; config.json says [%zu, %zu]", name,
                        (unsigned)m->rows, (unsigned)m->columns, rows, columns);
    plan_use(state, m->weight);
    plan_use(state, m->scales);
    plan_use(state, m->zeros);
    static const char *const others[] = {"g_idx", "weight_shape"}; /* looked at by layout_detect */
    for (size_t i = 0; i < TC_COUNT(others); i++) {
        char full[96];
        snprintf(full, sizeof full, "%s.%s", name, others[i]);
        plan_use(state, ckpt_find(state->ckpt, full));
    }
    if (m->kind != LAYOUT_GPTQ) return TC_OK;
    if (state->config->quant_desc_act && !m->has_g_idx)
        return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                        "layer '%s' is GPTQ with act-order (desc_act), and its '%s.g_idx' is "
                        "missing; supported: GPTQ without act-order",
                        name, name);
    if (state->config->quant_zeros_whole) m->zero_bias = 0;
    return TC_OK;
}

/* A matrix of a block, joined of one to three linear layers. */
static int plan_matrix(plan_state *state, long layer, const family_tensor *source) {
    const hf_config *c = state->config;
    plan_tensor *tensor = plan_add(state, layer, source->name);
    repack_matrix *m = &tensor->matrix;
    m->order = source->order;
    m->columns = plan_dim(c, source->columns);
    m->heads = c->heads, m->kv_heads = c->kv_heads, m->head_dim = c->head_dim;
    for (int i = 0; i < FAMILY_MAX_PARTS && source->parts[i].name; i++) {
        uint32_t rows = plan_dim(c, source->parts[i].rows);
        plan_name(state, layer, source->parts[i].name, tensor->part_names[i]);
        int code = plan_part_of(state, &m->parts[i], tensor->part_names[i], rows, m->columns);
        if (code) return code;
        plan_count(state->p, &m->parts[i]);
        m->part_count++;
        m->rows += rows;
    }
    if (m->order == FAMILY_GROUPED && m->parts[0].kind != LAYOUT_PLAIN && m->head_dim % 8)
        return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                        "'%s': head_dim %u; 4-bit weights in this order need a multiple of 8",
                        tensor->part_names[0], (unsigned)m->head_dim);
    tensor->quantise = state->p->quantise;
    for (int i = 0; i < m->part_count && tensor->quantise; i++)
        if (m->parts[i].kind != LAYOUT_PLAIN)
            return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                            "layer '%s' is quantised already; --awq-search and --quantize need a "
                            "16-bit checkpoint",
                            tensor->part_names[i]);
    return plan_check_join(state, m);
}

static int plan_tensors(plan_state *state, long layer, const family_tensor *source) {
    int code = TC_OK;
    for (; source->name && !code; source++)
        code = source->columns == FAMILY_ONE ? plan_vector_of(state, layer, source)
                                             : plan_matrix(state, layer, source);
    return code;
}

/* The embedding or the head: 16-bit tables, never packed. */
static int plan_table(plan_state *state, const char *name, const char *source) {
    plan_tensor *tensor = plan_add(state, -1, name);
    repack_matrix *m = &tensor->matrix;
    snprintf(tensor->part_names[0], sizeof tensor->part_names[0], "%s", source);
    if (layout_is_quantised(state->ckpt, source))
        return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                        "'%s' is quantised; supported: a 16-bit embedding and head", source);
    m->part_count = 1;
    m->rows = state->config->vocab_size;
    m->columns = state->config->hidden_size;
    int code = plan_part_of(state, &m->parts[0], tensor->part_names[0], m->rows, m->columns);
    if (!code) state->p->dtype = m->parts[0].dtype;
    return code;
}

/* ---- head ---- */

static bool plan_same_rows(const ckpt_tensor *a, const ckpt_tensor *b, int64_t first, int64_t count,
                           size_t row, uint8_t *buffer) {
    ckpt_copy(a, first, count, buffer);
    ckpt_copy(b, first, count, buffer + (size_t)count * row);
    return memcmp(buffer, buffer + (size_t)count * row, (size_t)count * row) == 0;
}

/* Whether the head is a second copy of the embedding; the shapes agree. */
static int plan_same(const ckpt_tensor *a, const ckpt_tensor *b, bool *same, tc_error *err) {
    *same = a->dtype == b->dtype;
    if (!*same || a->data == b->data) return TC_OK;
    size_t row = (size_t)a->shape[1] * ckpt_dtype_size(a->dtype);
    uint8_t *buffer = malloc(2 * 8 * row);
    if (!buffer) return tc__fail_memory(err, "two pieces of the embedding", 16 * row);
    for (int64_t i = 0; *same && i < a->shape[0]; i += 8)
        *same = plan_same_rows(a, b, i, a->shape[0] - i < 8 ? a->shape[0] - i : 8, row, buffer);
    free(buffer);
    return TC_OK;
}

static int plan_head(plan_state *state) {
    const char *source = state->config->family->head;
    char name[80];
    snprintf(name, sizeof name, "%s.weight", source);
    const ckpt_tensor *head = ckpt_find(state->ckpt, name);
    if (!head && !layout_is_quantised(state->ckpt, source)) {
        if (!state->config->tied)
            tc__buf_printf(state->notes, "the checkpoint has no %s: the embedding is used\n", name);
        return TC_OK;
    }
    int code = plan_table(state, "head", source);
    if (code || !state->config->tied) return code;
    bool same;
    code = plan_same(state->p->tensors[0].matrix.parts[0].weight, head, &same, state->err);
    if (code) return code;
    if (same)
        state->p->count--; /* tied: the embedding serves as head */
    else
        tc__buf_printf(state->notes,
                       "config.json says that head and embedding are tied, but they differ: %s is "
                       "used\n",
                       name);
    return TC_OK;
}

/* ---- what need not be there ---- */

/* Whether a vector says nothing: no part of it is there, or all its numbers are one. */
static bool plan_is_ones(const plan_vector *v) {
    for (int i = 0; i < v->part_count; i++)
        for (int64_t k = 0; v->parts[i] && k < v->parts[i]->shape[0]; k++)
            if (plan_number(v->parts[i], k) != 1) return false;
    return true;
}

/* Leaves out vectors that are ones in every layer. The layers' tensors lie behind the embedding,
 * `per_layer` for each. */
static void plan_drop_ones(plan_state *state, size_t per_layer) {
    plan *p = state->p;
    const family_tensor *source = state->config->family->layer_tensors;
    uint8_t drop[FAMILY_MAX_TENSORS] = {0};
    for (size_t t = 0; t < per_layer; t++) {
        drop[t] = source[t].presence == FAMILY_ONES;
        for (uint32_t layer = 0; layer < state->config->layers && drop[t]; layer++)
            drop[t] = plan_is_ones(&p->tensors[1 + layer * per_layer + t].vector);
    }
    size_t count = p->count, layers_end = 1 + state->config->layers * per_layer;
    p->count = 0;
    for (size_t i = 0; i < count; i++)
        if (i == 0 || i >= layers_end || !drop[(i - 1) % per_layer])
            p->tensors[p->count++] = p->tensors[i];
}

/* ---- quantising ---- */

/* The group size must divide the columns of every matrix. Without one, the largest that does. */
static int plan_group(plan_state *state, uint32_t group) {
    plan *p = state->p;
    for (p->group = group ? group : 128; p->group >= 32; p->group /= 2) {
        const plan_tensor *unfit = NULL;
        for (size_t i = 0; i < p->count && !unfit; i++)
            if (p->tensors[i].quantise && p->tensors[i].matrix.columns % p->group)
                unfit = &p->tensors[i];
        if (!unfit) return TC_OK;
        if (group || p->group == 32)
            return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                            "layer '%s' has %u columns, which groups of %u do not divide%s",
                            unfit->part_names[0], (unsigned)unfit->matrix.columns,
                            (unsigned)p->group,
                            p->group > 32 ? "; try a smaller --group-size" : "");
    }
    return TC_OK;
}

static int plan_quantising(plan_state *state, const plan_quantise *how) {
    uint32_t group = how->group;
    int code = TC_OK;
    if (how->search) code = search_group(how->search, state->p, &group, state->err);
    if (!code) code = plan_group(state, group);
    if (!code && how->search) code = search_bind(state->config, how->search, state->p, state->err);
    return code;
}

/* ---- what is left over ---- */

static bool plan_ends(const char *name, const char *end) {
    size_t len = strlen(name), tail = strlen(end);
    return len >= tail && strcmp(name + len - tail, end) == 0;
}

/* Tensors inside of blocks that take no part: rotary frequencies, which are computed and which some
 * transformers stored; biases of zeros, which AutoGPTQ gives every layer. */
static bool plan_is_idle(const ckpt_tensor *tensor) {
    if (strstr(tensor->name, ".rotary_emb.")) return true;
    bool number =
        tensor->dtype == CKPT_F16 || tensor->dtype == CKPT_BF16 || tensor->dtype == CKPT_F32;
    if (!number || tensor->ndim != 1 || !plan_ends(tensor->name, ".bias")) return false;
    for (int64_t i = 0; i < tensor->shape[0]; i++)
        if (plan_number(tensor, i) != 0) return false;
    return true;
}

/* Anything else inside a block, and any bias, would take part in the computation. */
static int plan_check_rest(plan_state *state) {
    const family *page = state->config->family;
    unsigned shown = 0;
    for (size_t i = 0; i < state->ckpt->count; i++) {
        const ckpt_tensor *tensor = &state->ckpt->tensors[i];
        if (state->used[i] || plan_is_idle(tensor)) continue;
        if (strncmp(tensor->name, page->layer, strlen(page->layer)) == 0 ||
            plan_ends(tensor->name, ".bias"))
            return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                            "%s: tensor '%s' has no place in a model of family %s with %u layers "
                            "and would change its answers",
                            tensor->file, tensor->name, page->name,
                            (unsigned)state->config->layers);
        if (shown++ < 8)
            tc__buf_printf(state->notes, "tensor '%.200s' is not part of the model: left out\n",
                           tensor->name);
    }
    if (shown > 8) tc__buf_printf(state->notes, "...and %u more tensors\n", shown - 8);
    return TC_OK;
}

/* ---- the whole ---- */

static size_t plan_length(const family_tensor *list) {
    size_t n = 0;
    while (list[n].name) n++;
    return n;
}

int plan_make(const hf_config *config, const checkpoint *ckpt, const plan_quantise *how, plan *p,
              tc__buf *notes, tc_error *err) {
    memset(p, 0, sizeof *p);
    p->quantise = how != NULL;
    p->awq = how && how->search;
    const family *page = config->family;
    size_t per_layer = plan_length(page->layer_tensors);
    size_t most = config->layers * per_layer + plan_length(page->end_tensors) + 2;
    plan_state state = {config, ckpt, p, NULL, notes, err};
    state.used = tc__calloc(ckpt->count, 1);
    p->tensors = tc__calloc(most, sizeof *p->tensors);
    int code = TC_OK;
    if (!state.used || !p->tensors)
        code = tc__fail_memory(err, "the list of tensors", most * sizeof *p->tensors);
    if (!code) code = plan_table(&state, "embed", page->embed);
    for (uint32_t i = 0; i < config->layers && !code; i++)
        code = plan_tensors(&state, (long)i, page->layer_tensors);
    if (!code) code = plan_tensors(&state, -1, page->end_tensors);
    if (!code) code = plan_head(&state);
    if (!code) code = plan_check_rest(&state);
    if (!code && how) code = plan_quantising(&state, how);
    if (!code) plan_drop_ones(&state, per_layer);
    free(state.used);
    if (code) plan_free(p);
    return code;
}

void plan_free(plan *p) {
    free(p->tensors);
    memset(p, 0, sizeof *p);
}
