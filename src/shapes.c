#include "shapes.h"

#include "threads.h"

#define SHAPES_NAME_ROOM 24 /* of a tensor: "79.mlp_norm" */
#define SHAPES_METAS 13
#define SHAPES_PER_LAYER 6
#define SHAPES_BESIDE 3 /* embed, norm, head */

/* In the order of shapes_keys. */
enum { SHAPES_HIDDEN, SHAPES_INTERMEDIATE, SHAPES_LAYERS, SHAPES_HEADS, SHAPES_KV_HEADS };
enum { SHAPES_HEAD_DIM = 5, SHAPES_VOCAB, SHAPES_MAX_SEQ, SHAPES_SIZES };
static const char *const shapes_keys[SHAPES_SIZES] = {
    "arch.hidden_size", "arch.intermediate_size", "arch.layers",     "arch.heads",
    "arch.kv_heads",    "arch.head_dim",          "arch.vocab_size", "arch.max_seq_len"};

typedef struct shapes_shape {
    const char *name, *family; /* as model files spell it; one that the engine lacks: to come */
    uint32_t sizes[SHAPES_SIZES];
    double norm_eps, rope_theta;
} shapes_shape;

/* Sizes out of the models' config.json. All rows are multiples of 16. */
static const shapes_shape shapes_table[] = {
    {"llama-2-7b", "llama", {4096, 11008, 32, 32, 32, 128, 32000, 4096}, 1e-5, 10000},
    {"llama-2-13b", "llama", {5120, 13824, 40, 40, 40, 128, 32000, 4096}, 1e-5, 10000},
    {"llama-2-70b", "llama", {8192, 28672, 80, 64, 8, 128, 32000, 4096}, 1e-5, 10000},
    {"llama-3-8b", "llama", {4096, 14336, 32, 32, 8, 128, 128256, 8192}, 1e-5, 500000},
    {"tiny", "llama", {256, 512, 2, 4, 2, 64, 512, 256}, 1e-5, 10000},
    {"mpt-7b", "mpt", {0}, 0, 0},
    {"mpt-30b", "mpt", {0}, 0, 0},
    {"falcon-7b", "falcon", {0}, 0, 0},
    {"qwen2.5-7b", "qwen2", {0}, 0, 0},
};

const char *tc_shape_name(int index, int *supported) {
    if (index < 0 || (size_t)index >= TC_COUNT(shapes_table)) return NULL;
    if (supported) *supported = shapes_table[index].sizes[SHAPES_HIDDEN] > 0;
    return shapes_table[index].name;
}

/* The refusal of an unknown name. */
static int shapes_unknown(const char *name, tc_error *err) {
    tc__buf names = {NULL, 0, 0, false};
    for (int i = 0, good; tc_shape_name(i, &good); i++)
        if (good) tc__buf_printf(&names, "%s%s", names.len ? ", " : "", tc_shape_name(i, NULL));
    int code = names.failed ? tc__fail_memory(err, "a list of names", names.len)
                            : tc__fail(err, TC_ERR_ARGUMENT,
                                       "there is no built-in shape '%.80s'; expected one of %s",
                                       name, names.data);
    tc__buf_free(&names);
    return code;
}

static int shapes_find(const char *name, const shapes_shape **shape, tc_error *err) {
    size_t i = 0;
    while (i < TC_COUNT(shapes_table) && strcmp(shapes_table[i].name, name)) i++;
    if (i == TC_COUNT(shapes_table)) return shapes_unknown(name, err);
    *shape = &shapes_table[i];
    if ((*shape)->sizes[SHAPES_HIDDEN]) return TC_OK;
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "shape '%s' comes with the model family '%s', which this version lacks", name,
                    (*shape)->family);
}

static int shapes_check_precision(const char *precision, int *group_size, uint32_t *type,
                                  tc_error *err) {
    *type = TC__W4;
    if (strcmp(precision, "w16a16") == 0)
        *type = TC__F16;
    else if (strcmp(precision, "w4a16"))
        return tc__fail(err, TC_ERR_ARGUMENT, "precision '%.80s'; expected w4a16 or w16a16",
                        precision);
    if (*type == TC__W4 && *group_size == 0) *group_size = 128;
    bool known = *group_size == 32 || *group_size == 64 || *group_size == 128;
    if (*type == TC__W4 ? known : *group_size == 0) return TC_OK;
    return tc__fail(err, TC_ERR_ARGUMENT, "group size %d with precision %s; expected %s",
                    *group_size, precision, *type == TC__W4 ? "32, 64 or 128" : "none");
}

/* ---- the tables ---- */

static tc__meta *shapes_meta(tc__model_file *file, const char *key, uint32_t type,
                             const void *value, size_t count, size_t size) {
    tc__meta *meta = &file->metas[file->meta_count++];
    meta->key = key;
    meta->key_len = strlen(key);
    meta->type = type;
    meta->count = count;
    meta->value = value;
    meta->size = size;
    return meta;
}

static void shapes_text(tc__model_file *file, const char *key, const char *text) {
    shapes_meta(file, key, TC__META_BYTES, text, strlen(text), strlen(text));
}

static void shapes_metas(const shapes_shape *shape, tc__model_file *file) {
    shapes_text(file, "general.name", shape->name);
    shapes_text(file, "arch.family", shape->family);
    shapes_text(file, "tokenizer.type", "none");
    for (size_t i = 0; i < SHAPES_SIZES; i++)
        shapes_meta(file, shapes_keys[i], TC__META_U32, &shape->sizes[i], 1, sizeof(uint32_t));
    shapes_meta(file, "arch.norm_eps", TC__META_F64, &shape->norm_eps, 1, sizeof(double));
    shapes_meta(file, "arch.rope_theta", TC__META_F64, &shape->rope_theta, 1, sizeof(double));
}

/* The next tensor; `name` has its room in *names, which moves on. */
static void shapes_tensor(tc__model_file *file, char **names, long layer, const char *name,
                          uint32_t type, uint32_t group_size, size_t rows, size_t columns) {
    tc__tensor *tensor = &file->tensors[file->tensor_count++];
    size_t end = file->tensor_count > 1 ? tensor[-1].offset + tensor[-1].size : 0;
    if (layer < 0)
        snprintf(*names, SHAPES_NAME_ROOM, "%s", name);
    else
        snprintf(*names, SHAPES_NAME_ROOM, "%ld.%s", layer, name);
    tensor->name = *names;
    tensor->name_len = strlen(*names);
    *names += SHAPES_NAME_ROOM;
    tensor->type = type;
    tensor->group_size = type == TC__W4 ? group_size : 0;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->offset = (end + TC__DATA_ALIGN - 1) & ~(size_t)(TC__DATA_ALIGN - 1);
    tensor->size = tc__tensor_bytes(type, tensor->group_size, rows, columns);
}

static void shapes_tensors(const shapes_shape *shape, uint32_t type, uint32_t group_size,
                           char *names, tc__model_file *file) {
    const uint32_t *sizes = shape->sizes;
    size_t hidden = sizes[SHAPES_HIDDEN], vocab = sizes[SHAPES_VOCAB];
    size_t heads = (size_t)sizes[SHAPES_HEADS] * sizes[SHAPES_HEAD_DIM];
    size_t qkv = heads + 2 * (size_t)sizes[SHAPES_KV_HEADS] * sizes[SHAPES_HEAD_DIM];
    size_t inner = sizes[SHAPES_INTERMEDIATE];
    shapes_tensor(file, &names, -1, "embed", TC__F16, 0, vocab, hidden);
    for (long l = 0; l < (long)sizes[SHAPES_LAYERS]; l++) {
        shapes_tensor(file, &names, l, "attn_norm", TC__F32, 0, hidden, 1);
        shapes_tensor(file, &names, l, "qkv", type, group_size, qkv, hidden);
        shapes_tensor(file, &names, l, "o", type, group_size, hidden, heads);
        shapes_tensor(file, &names, l, "mlp_norm", TC__F32, 0, hidden, 1);
        shapes_tensor(file, &names, l, "gate_up", type, group_size, 2 * inner, hidden);
        shapes_tensor(file, &names, l, "down", type, group_size, hidden, inner);
    }
    shapes_tensor(file, &names, -1, "norm", TC__F32, 0, hidden, 1);
    shapes_tensor(file, &names, -1, "head", TC__F16, 0, vocab, hidden);
}

/* ---- the weights ---- */

tc__pattern tc__shape_pattern(const tc__tensor *tensor) {
    /* halves of a W4 unit's tail, the lowest first: scale 0.002, zero 7, scale 0.002, zero 8 */
    tc__pattern w4 = {tensor->group_size + 8, tensor->group_size, UINT64_MAX, 0,
                      0x4800181947001819u};
    tc__pattern halves = {1, 1, 0x83ff83ff83ff83ffu, 0x2000200020002000u, 0};
    tc__pattern ones = {1, 0, 0, 0, 0x3f8000003f800000u};
    return tensor->type == TC__W4 ? w4 : tensor->type == TC__F16 ? halves : ones;
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

int tc__shape_open(const char *name, const char *precision, int group_size, bool in_memory,
                   const tc_model_params *params, tc__model_file *file, tc_error *err) {
    const shapes_shape *shape = NULL;
    uint32_t type = 0;
    memset(file, 0, sizeof *file);
    int code = shapes_find(name, &shape, err);
    if (!code) code = shapes_check_precision(precision, &group_size, &type, err);
    if (code) return code;
    size_t tensors = SHAPES_BESIDE + SHAPES_PER_LAYER * (size_t)shape->sizes[SHAPES_LAYERS];
    file->metas = tc__calloc(SHAPES_METAS, sizeof *file->metas);
    file->tensors = tc__calloc(tensors, sizeof *file->tensors);
    file->names = tc__calloc(tensors, SHAPES_NAME_ROOM);
    if (file->metas && file->tensors && file->names) {
        shapes_metas(shape, file);
        shapes_tensors(shape, type, (uint32_t)group_size, file->names, file);
        if (in_memory) code = shapes_make_data(name, params, file, err);
    } else {
        code = tc__fail_memory(err, "a shape", tensors * sizeof *file->tensors);
    }
    if (code) tc__model_file_close(file);
    return code ? code : tc__ok(err);
}
