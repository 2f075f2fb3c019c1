#include "shapes.h"

#include "threads.h"
#include <math.h>

#define SHAPES_NAME_ROOM 24 /* of a tensor: "79.attn_norm_bias" */
#define SHAPES_METAS 20     /* at most */
#define SHAPES_PER_LAYER 12 /* tensors, at most */
#define SHAPES_BESIDE 4     /* embed, norm, norm_bias, head */

/* What LLaMA, Mistral and Qwen have in common; MPT; Falcon with one norm. */
#define SHAPES_LLAMA .gated = 1
#define SHAPES_MPT                                                                                 \
    .norm = TC__NORM_LAYER, .position = TC__POSITION_ALIBI, .activation = TC__ACT_GELU,            \
    .tied = true, .act_scales = true
#define SHAPES_FALCON                                                                              \
    .norm = TC__NORM_LAYER, .norm_bias = true, .activation = TC__ACT_GELU, .parallel = 1,          \
    .shared_norm = true, .tied = true, .act_scales = true

/* Sizes out of the models' config.json. The scaling of LLaMA 3.2's RoPE is left out. */
static const tc__shape_spec shapes_table[] = {
    {"llama-2-7b", "llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096, 1e-5, 10000, SHAPES_LLAMA},
    {"llama-2-13b", "llama", 5120, 13824, 40, 40, 40, 128, 32000, 4096, 1e-5, 10000, SHAPES_LLAMA},
    {"llama-2-70b", "llama", 8192, 28672, 80, 64, 8, 128, 32000, 4096, 1e-5, 10000, SHAPES_LLAMA},
    {"llama-3-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 1e-5, 5e5, SHAPES_LLAMA},
    {"llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 1e-5, 5e5, SHAPES_LLAMA,
     .tied = true},
    {"mistral-7b", "mistral", 4096, 14336, 32, 32, 8, 128, 32000, 32768, 1e-5, 1e6, SHAPES_LLAMA},
    {"qwen2.5-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, 1e-6, 1e6, SHAPES_LLAMA,
     .qkv_bias = true},
    {"qwen3-8b", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 40960, 1e-6, 1e6, SHAPES_LLAMA,
     .qk_norm = true},
    {"mpt-7b", "mpt", 4096, 16384, 32, 32, 32, 128, 50432, 2048, 1e-5, 0, SHAPES_MPT},
    {"mpt-30b", "mpt", 7168, 28672, 48, 64, 64, 112, 50432, 8192, 1e-5, 0, SHAPES_MPT},
    {"falcon-7b", "falcon", 4544, 18176, 32, 71, 1, 64, 65024, 2048, 1e-5, 10000, SHAPES_FALCON},
    {"tiny", "llama", 256, 512, 2, 4, 2, 64, 512, 256, 1e-5, 10000, SHAPES_LLAMA},
};

const char *tc_shape_name(int index) {
    return index < 0 || (size_t)index >= TC_COUNT(shapes_table) ? NULL : shapes_table[index].name;
}

static int shapes_find(const char *name, const tc__shape_spec **spec, tc_error *err) {
    for (size_t i = 0; i < TC_COUNT(shapes_table); i++) {
        *spec = &shapes_table[i];
        if (strcmp((*spec)->name, name) == 0) return TC_OK;
    }
    tc__buf names = {NULL, 0, 0, false};
    for (size_t i = 0; i < TC_COUNT(shapes_table); i++)
        tc__buf_printf(&names, "%s%s", i ? ", " : "", shapes_table[i].name);
    int code = names.failed ? tc__fail_memory(err, "a list of names", names.len)
                            : tc__fail(err, TC_ERR_ARGUMENT,
                                       "there is no built-in shape '%.80s'; expected one of %s",
                                       name, names.data);
    tc__buf_free(&names);
    return code;
}

static bool shapes_divides(const tc__shape_spec *spec, uint32_t size) {
    return spec->hidden_size % size == 0 && spec->intermediate_size % size == 0 &&
           spec->heads * spec->head_dim % size == 0;
}

/* The group size is the largest one that divides the columns if none is given. */
static int shapes_check_precision(const tc__shape_spec *spec, const char *precision,
                                  int *group_size, uint32_t *type, tc_error *err) {
    *type = TC__W4;
    if (strcmp(precision, "w16a16") == 0)
        *type = TC__F16;
    else if (strcmp(precision, "w4a16"))
        return tc__fail(err, TC_ERR_ARGUMENT, "precision '%.80s'; expected w4a16 or w16a16",
                        precision);
    const bool w4 = *type == TC__W4;
    if (w4 && *group_size == 0)
        *group_size = shapes_divides(spec, 128) ? 128 : shapes_divides(spec, 64) ? 64 : 32;
    bool known = *group_size == 32 || *group_size == 64 || *group_size == 128;
    if (w4 ? !known : *group_size != 0)
        return tc__fail(err, TC_ERR_ARGUMENT, "group size %d with precision %s; expected %s",
                        *group_size, precision, w4 ? "32, 64 or 128" : "none");
    if (w4 && !shapes_divides(spec, (uint32_t)*group_size))
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "group size %d does not divide the matrices' columns of %s: %u, %u, %u",
                        *group_size, spec->name, (unsigned)spec->hidden_size,
                        (unsigned)(spec->heads * spec->head_dim),
                        (unsigned)spec->intermediate_size);
    if (shapes_divides(spec, TC__UNIT_ROWS) && spec->kv_heads * spec->head_dim % TC__UNIT_ROWS == 0)
        return TC_OK;
    return tc__fail(err, TC_ERR_ARGUMENT, "the sizes of %s are not multiples of %u", spec->name,
                    TC__UNIT_ROWS);
}

/* ---- the tables ---- */

/* What the tables point to: part of tc__model_file.names. */
typedef struct shapes_values {
    tc__shape_spec spec;
    float *slopes; /* [heads] */
} shapes_values;

static void shapes_meta(tc__model_file *file, const char *key, uint32_t type, const void *value,
                        size_t count) {
    tc__meta *meta = &file->metas[file->meta_count++];
    const size_t each = type == TC__META_BYTES ? 1 : type == TC__META_F64 ? 8 : 4;
    meta->key = key;
    meta->key_len = strlen(key);
    meta->type = type;
    meta->count = count;
    meta->value = value;
    meta->size = count * each;
}

static void shapes_metas(const shapes_values *values, tc__model_file *file) {
    const tc__shape_spec *spec = &values->spec;
    const struct {
        const char *key;
        const uint32_t *value;
    } numbers[] = {
        {"arch.hidden_size", &spec->hidden_size},
        {"arch.intermediate_size", &spec->intermediate_size},
        {"arch.layers", &spec->layers},
        {"arch.heads", &spec->heads},
        {"arch.kv_heads", &spec->kv_heads},
        {"arch.head_dim", &spec->head_dim},
        {"arch.vocab_size", &spec->vocab_size},
        {"arch.max_seq_len", &spec->max_seq_len},
        {"arch.norm", &spec->norm},
        {"arch.position", &spec->position},
        {"arch.activation", &spec->activation},
        {"arch.gated", &spec->gated},
        {"arch.parallel", &spec->parallel},
    };
    shapes_meta(file, "general.name", TC__META_BYTES, spec->name, strlen(spec->name));
    shapes_meta(file, "arch.family", TC__META_BYTES, spec->family, strlen(spec->family));
    shapes_meta(file, "tokenizer.type", TC__META_BYTES, "none", 4);
    for (size_t i = 0; i < TC_COUNT(numbers); i++)
        shapes_meta(file, numbers[i].key, TC__META_U32, numbers[i].value, 1);
    shapes_meta(file, "arch.norm_eps", TC__META_F64, &spec->norm_eps, 1);
    if (spec->position == TC__POSITION_ALIBI)
        shapes_meta(file, "arch.alibi_slopes", TC__META_F32, values->slopes, spec->heads);
    else
        shapes_meta(file, "arch.rope_theta", TC__META_F64, &spec->rope_theta, 1);
    if (spec->rope_scale > 0)
        shapes_meta(file, "arch.rope_scale", TC__META_F64, &spec->rope_scale, 1);
    if (spec->clip_qkv > 0) shapes_meta(file, "arch.clip_qkv", TC__META_F64, &spec->clip_qkv, 1);
}

/* MPT's slopes: 2^(-8 i / n), i = 1 .. n, for a power of two n; of the next larger one's, other
 * numbers of heads take the second, fourth, ... and then the first, third, ... */
static void shapes_slopes(float *slopes, uint32_t heads) {
    uint32_t n = 1;
    while (n < heads) n *= 2;
    for (uint32_t h = 0; h < heads; h++) {
        uint32_t i = n == heads ? h + 1 : h < n / 2 ? 2 * h + 2 : 2 * (h - n / 2) + 1;
        slopes[h] = (float)exp2(-8.0 * i / n);
    }
}

typedef struct shapes_tables {
    tc__model_file *file;
    char *names;               /* room for the next tensor's */
    uint32_t type, group_size; /* of the matrices */
} shapes_tables;

/* The next tensor, if it is there at all. One column: a vector. */
static void shapes_tensor(shapes_tables *tables, bool there, long layer, const char *name,
                          uint32_t type, size_t rows, size_t columns) {
    if (!there) return;
    tc__tensor *tensor = &tables->file->tensors[tables->file->tensor_count++];
    size_t end = tables->file->tensor_count > 1 ? tensor[-1].offset + tensor[-1].size : 0;
    if (layer < 0)
        snprintf(tables->names, SHAPES_NAME_ROOM, "%s", name);
    else
        snprintf(tables->names, SHAPES_NAME_ROOM, "%ld.%s", layer, name);
    tensor->name = tables->names;
    tensor->name_len = strlen(tables->names);
    tables->names += SHAPES_NAME_ROOM;
    tensor->type = type;
    tensor->group_size = type == TC__W4 ? tables->group_size : 0;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->offset = (end + TC__DATA_ALIGN - 1) & ~(size_t)(TC__DATA_ALIGN - 1);
    tensor->size = tc__tensor_bytes(type, tensor->group_size, rows, columns);
}

static void shapes_layer(shapes_tables *tables, const tc__shape_spec *spec, long l) {
    const size_t hidden = spec->hidden_size, inner = spec->intermediate_size, d = spec->head_dim;
    const size_t heads = spec->heads * d, qkv = heads + 2 * spec->kv_heads * d;
    const uint32_t type = tables->type;
    const bool mlp_norm = !spec->shared_norm, mlp_bias = mlp_norm && spec->norm_bias;
    shapes_tensor(tables, true, l, "attn_norm", TC__F32, hidden, 1);
    shapes_tensor(tables, spec->norm_bias, l, "attn_norm_bias", TC__F32, hidden, 1);
    shapes_tensor(tables, true, l, "qkv", type, qkv, hidden);
    shapes_tensor(tables, spec->qkv_bias, l, "qkv_bias", TC__F32, qkv, 1);
    shapes_tensor(tables, spec->qk_norm, l, "q_norm", TC__F32, d, 1);
    shapes_tensor(tables, spec->qk_norm, l, "k_norm", TC__F32, d, 1);
    shapes_tensor(tables, true, l, "o", type, hidden, heads);
    shapes_tensor(tables, mlp_norm, l, "mlp_norm", TC__F32, hidden, 1);
    shapes_tensor(tables, mlp_bias, l, "mlp_norm_bias", TC__F32, hidden, 1);
    shapes_tensor(tables, spec->gated, l, "gate_up", type, 2 * inner, hidden);
    shapes_tensor(tables, !spec->gated, l, "up", type, inner, hidden);
    shapes_tensor(tables, spec->act_scales, l, "act_scales", TC__F32, inner, 1);
    shapes_tensor(tables, true, l, "down", type, hidden, inner);
}

static void shapes_tensors(shapes_tables *tables, const tc__shape_spec *spec) {
    const size_t hidden = spec->hidden_size, vocab = spec->vocab_size;
    shapes_tensor(tables, true, -1, "embed", TC__F16, vocab, hidden);
    for (long l = 0; l < (long)spec->layers; l++) shapes_layer(tables, spec, l);
    shapes_tensor(tables, true, -1, "norm", TC__F32, hidden, 1);
    shapes_tensor(tables, spec->norm_bias, -1, "norm_bias", TC__F32, hidden, 1);
    shapes_tensor(tables, !spec->tied, -1, "head", TC__F16, vocab, hidden);
}

/* ---- the weights ---- */

tc__pattern tc__shape_pattern(const tc__tensor *tensor) {
    /* halves of a W4 unit's tail, the lowest first: scale 0.002, zero 7, scale 0.002, zero 8 */
    tc__pattern w4 = {tensor->group_size + 8, tensor->group_size, UINT64_MAX, 0,
                      0x4800181947001819u};
    tc__pattern halves = {1, 1, 0x83ff83ff83ff83ffu, 0x2000200020002000u, 0};
    tc__pattern biases = {1, 1, 0x807fffff807fffffu, 0x3d8000003d800000u, 0};
    tc__pattern factors = {1, 1, 0x001fffff001fffffu, 0x3f8000003f800000u, 0};
    if (tensor->type == TC__W4) return w4;
    if (tensor->type == TC__F16) return halves;
    const bool bias =
        tensor->name_len > 5 && memcmp(tensor->name + tensor->name_len - 5, "_bias", 5) == 0;
    return bias ? biases : factors;
}

/* The same in src/kernels/rows.cuh. */
static uint64_t shapes_hash(uint64_t n) {
    uint64_t z = n * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct shapes_task {
    const tc__tensor *tensor;
    uint8_t *data; /* of all tensors */
    int workers;
} shapes_task;

static void shapes_fill_share(void *user, int worker) {
    const shapes_task *task = user;
    const tc__tensor *tensor = task->tensor;
    const tc__pattern pattern = tc__shape_pattern(tensor);
    uint64_t *words = (uint64_t *)(void *)(task->data + tensor->offset);
    const uint64_t first = tensor->offset / 8;
    size_t i, end;
    tc__share(tensor->size / 8, worker, task->workers, &i, &end);
    for (size_t place = i % pattern.unit; i < end; i++) {
        words[i] = place < pattern.random ? (shapes_hash(first + i) & pattern.mask) | pattern.bits
                                          : pattern.tail;
        if (++place == pattern.unit) place = 0;
    }
}

static int shapes_fill(tc__model_file *file, uint8_t *data, const tc_model_params *params,
                       tc_error *err) {
    tc__team *team = NULL;
    int workers = params->threads ? params->threads : tc__processors();
    if (workers < 1 || workers > TC__THREADS_MAX) workers = 1; /* the backend says what is wrong */
    int code = tc__team_open(workers, &team, err);
    for (size_t i = 0; i < file->tensor_count && !code; i++) {
        shapes_task task = {&file->tensors[i], data, workers};
        tc__team_run(team, shapes_fill_share, &task);
        file->tensors[i].data = data + file->tensors[i].offset;
        double done = (double)(i + 1) / (double)file->tensor_count;
        if (params->progress && params->progress(params->user, done, "making random weights"))
            code = tc__fail(err, TC_ERR_CANCELLED, "opening the model was cancelled");
    }
    tc__team_close(team);
    return code;
}

/* From calloc, so that the threads that fill the pages are the first to touch them. */
static int shapes_make_data(const char *name, const tc_model_params *params, tc__model_file *file,
                            tc_error *err) {
    const tc__tensor *last = &file->tensors[file->tensor_count - 1];
    size_t bytes = last->offset + last->size, room = tc__available_memory();
    if (bytes > room)
        return tc__fail(err, TC_ERR_MEMORY,
                        "out of memory: the weights of %s need %.2f GiB, %.2f GiB are available",
                        name, (double)bytes / (1 << 30), (double)room / (1 << 30));
    file->data = tc__calloc(1, bytes + TC__DATA_ALIGN);
    if (!file->data) return tc__fail_memory(err, "random weights", bytes);
    uintptr_t at = ((uintptr_t)file->data + TC__DATA_ALIGN - 1) & ~(uintptr_t)(TC__DATA_ALIGN - 1);
    return shapes_fill(file, (uint8_t *)at, params, err);
}

int tc__shape_make(const tc__shape_spec *spec, const char *precision, int group_size,
                   bool in_memory, const tc_model_params *params, tc__model_file *file,
                   tc_error *err) {
    uint32_t type = 0;
    memset(file, 0, sizeof *file);
    int code = shapes_check_precision(spec, precision, &group_size, &type, err);
    if (code) return code;
    const size_t tensors = SHAPES_BESIDE + SHAPES_PER_LAYER * (size_t)spec->layers;
    const size_t values_bytes = sizeof(shapes_values) + spec->heads * sizeof(float);
    file->metas = tc__calloc(SHAPES_METAS, sizeof *file->metas);
    file->tensors = tc__calloc(tensors, sizeof *file->tensors);
    file->names = tc__calloc(1, values_bytes + tensors * SHAPES_NAME_ROOM);
    if (file->metas && file->tensors && file->names) {
        shapes_values *values = (shapes_values *)(void *)file->names;
        values->spec = *spec;
        values->slopes = (float *)(void *)(values + 1);
        shapes_slopes(values->slopes, spec->heads);
        shapes_metas(values, file);
        shapes_tables tables = {file, file->names + values_bytes, type, (uint32_t)group_size};
        shapes_tensors(&tables, spec);
        if (in_memory) code = shapes_make_data(spec->name, params, file, err);
    } else {
        code = tc__fail_memory(err, "a shape", tensors * sizeof *file->tensors);
    }
    if (code) tc__model_file_close(file);
    return code ? code : tc__ok(err);
}

int tc__shape_open(const char *name, const char *precision, int group_size, bool in_memory,
                   const tc_model_params *params, tc__model_file *file, tc_error *err) {
    const tc__shape_spec *known = NULL;
    memset(file, 0, sizeof *file);
    int code = shapes_find(name, &known, err);
    if (code) return code;
    tc__shape_spec spec = *known;
    spec.act_scales &= strcmp(precision, "w4a16") == 0; /* AWQ made them */
    return tc__shape_make(&spec, precision, group_size, in_memory, params, file, err);
}
