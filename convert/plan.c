#include "plan.h"

/* What a plan is made from, and which tensors of the checkpoint it has used. */
typedef struct plan_state {
    const hf_config *config;
    const checkpoint *ckpt;
    plan *p;
    uint8_t *used; /* [ckpt->count] */
    tc__buf *notes;
    tc_error *err;
} plan_state;

/* A linear layer that a matrix of the model file is made of. */
typedef struct plan_part {
    const char *name; /* behind "model.layers.N." */
    size_t rows, columns;
} plan_part;

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

/* A norm: a vector of hidden_size numbers. */
static int plan_norm(plan_state *state, long layer, const char *name, const char *source) {
    char full[96], shape[CKPT_SHAPE_TEXT];
    if (layer < 0)
        snprintf(full, sizeof full, "model.%s.weight", source);
    else
        snprintf(full, sizeof full, "model.layers.%ld.%s.weight", layer, source);
    const ckpt_tensor *tensor = ckpt_find(state->ckpt, full);
    if (!tensor)
        return tc__fail(state->err, TC_ERR_FORMAT,
                        "tensor '%s' is missing; does the checkpoint belong to this config.json?",
                        full);
    bool number =
        tensor->dtype == CKPT_F16 || tensor->dtype == CKPT_BF16 || tensor->dtype == CKPT_F32;
    if (!number || tensor->ndim != 1 || tensor->shape[0] != state->config->hidden_size)
        return tc__fail(state->err, TC_ERR_FORMAT,
                        "%s: tensor '%s' is %s; expected F16, BF16 or F32 [%u]", tensor->file, full,
                        ckpt_shape_text(tensor, shape), (unsigned)state->config->hidden_size);
    plan_add(state, layer, name)->norm = tensor;
    plan_use(state, tensor);
    return TC_OK;
}

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
        snprintf(text, 64, "packing %s with group size %u", layout_letter(m->kind),
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
    return TC_OK;
}

/* A matrix of a block, joined of one to three linear layers. */
static int plan_matrix(plan_state *state, long layer, const char *name, const plan_part *parts,
                       int count, bool interleaved) {
    plan_tensor *tensor = plan_add(state, layer, name);
    repack_matrix *m = &tensor->matrix;
    m->interleaved = interleaved;
    m->columns = (uint32_t)parts[0].columns;
    for (int i = 0; i < count; i++) {
        snprintf(tensor->part_names[i], sizeof tensor->part_names[i], "model.layers.%ld.%s", layer,
                 parts[i].name);
        int code = plan_part_of(state, &m->parts[i], tensor->part_names[i], parts[i].rows,
                                parts[i].columns);
        if (code) return code;
        plan_count(state->p, &m->parts[i]);
        m->part_count++;
        m->rows += (uint32_t)parts[i].rows;
    }
    return plan_check_join(state, m);
}

static int plan_layer(plan_state *state, long i) {
    const hf_config *c = state->config;
    size_t h = c->hidden_size, q = (size_t)c->heads * c->head_dim;
    size_t kv = (size_t)c->kv_heads * c->head_dim, m = c->intermediate_size;
    const plan_part qkv[] = {
        {"self_attn.q_proj", q, h}, {"self_attn.k_proj", kv, h}, {"self_attn.v_proj", kv, h}};
    const plan_part o[] = {{"self_attn.o_proj", h, q}};
    const plan_part gate_up[] = {{"mlp.gate_proj", m, h}, {"mlp.up_proj", m, h}};
    const plan_part down[] = {{"mlp.down_proj", h, m}};
    int code = plan_norm(state, i, "attn_norm", "input_layernorm");
    if (!code) code = plan_matrix(state, i, "qkv", qkv, 3, false);
    if (!code) code = plan_matrix(state, i, "o", o, 1, false);
    if (!code) code = plan_norm(state, i, "mlp_norm", "post_attention_layernorm");
    if (!code) code = plan_matrix(state, i, "gate_up", gate_up, 2, true);
    if (!code) code = plan_matrix(state, i, "down", down, 1, false);
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
    const ckpt_tensor *head = ckpt_find(state->ckpt, "lm_head.weight");
    if (!head && !layout_is_quantised(state->ckpt, "lm_head")) {
        if (!state->config->tied)
            tc__buf_printf(state->notes,
                           "the checkpoint has no lm_head.weight: the embedding is used\n");
        return TC_OK;
    }
    int code = plan_table(state, "head", "lm_head");
    if (code || !state->config->tied) return code;
    bool same;
    code = plan_same(state->p->tensors[0].matrix.parts[0].weight, head, &same, state->err);
    if (code) return code;
    if (same)
        state->p->count--; /* tied: the embedding serves as head */
    else
        tc__buf_printf(state->notes, "config.json says that lm_head and embedding are tied, but "
                                     "they differ: lm_head.weight is used\n");
    return TC_OK;
}

/* ---- what is left over ---- */

static bool plan_ends(const char *name, const char *end) {
    size_t len = strlen(name), tail = strlen(end);
    return len >= tail && strcmp(name + len - tail, end) == 0;
}

/* The rotary frequencies are computed; some transformers stored them. Anything else inside a block,
 * and any bias, would take part in the computation. */
static int plan_check_rest(plan_state *state) {
    unsigned shown = 0;
    for (size_t i = 0; i < state->ckpt->count; i++) {
        const ckpt_tensor *tensor = &state->ckpt->tensors[i];
        if (state->used[i] || strstr(tensor->name, ".rotary_emb.")) continue;
        if (strncmp(tensor->name, "model.layers.", 13) == 0 || plan_ends(tensor->name, ".bias"))
            return tc__fail(state->err, TC_ERR_UNSUPPORTED,
                            "%s: tensor '%s' has no place in a LLaMA of %u layers and would change "
                            "the model's answers",
                            tensor->file, tensor->name, (unsigned)state->config->layers);
        if (shown++ < 8)
            tc__buf_printf(state->notes, "tensor '%.200s' is not part of the model: left out\n",
                           tensor->name);
    }
    if (shown > 8) tc__buf_printf(state->notes, "...and %u more tensors\n", shown - 8);
    return TC_OK;
}

int plan_make(const hf_config *config, const checkpoint *ckpt, plan *p, tc__buf *notes,
              tc_error *err) {
    memset(p, 0, sizeof *p);
    plan_state state = {config, ckpt, p, NULL, notes, err};
    state.used = tc__calloc(ckpt->count, 1);
    p->tensors = tc__calloc((size_t)config->layers * 6 + 3, sizeof *p->tensors);
    int code = TC_OK;
    if (!state.used || !p->tensors)
        code = tc__fail_memory(err, "the list of tensors",
                               (size_t)config->layers * sizeof *p->tensors);
    if (!code) code = plan_table(&state, "embed", "model.embed_tokens");
    for (uint32_t i = 0; i < config->layers && !code; i++) code = plan_layer(&state, (long)i);
    if (!code) code = plan_norm(&state, -1, "norm", "norm");
    if (!code) code = plan_head(&state);
    if (!code) code = plan_check_rest(&state);
    free(state.used);
    if (code) plan_free(p);
    return code;
}

void plan_free(plan *p) {
    free(p->tensors);
    memset(p, 0, sizeof *p);
}
