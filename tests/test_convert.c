/* convert from checkpoints to model files: packings and group sizes, 16- and 32-bit weights,
 * hyper-parameters, tokenizer, chat template, refusals and exit codes. (Real checkpoints, the
 * digests of their integers and transformers' references: test_fixtures. Damage: test_robustness.)
 *
 * Checkpoints are made here: every linear layer has integers, scales and zero points that follow
 * from its name, which are packed by the published formulas, one element at a time, converted, and
 * compared with what the model file holds. The packers themselves are compared with vectors that
 * the original packers of llm-awq produced.
 */
#include "chat_template.h"
#include "convert.h"
#include "forge.h"
#include "inspect.h"
#include "layout.h"
#include "program.h"
#include "src/arch.h"
#include "src/tokenizer.h"
#include "test.h"
#include "tokenizer_folder.h"
#include "writer.h"

#include <math.h>
#include <signal.h>

/* ---- reference numbers ---- */

static uint32_t mix(const char *name, uint32_t a, uint32_t b) {
    uint32_t hash = 2166136261u;
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 16777619u;
    hash = (hash ^ a) * 2246822519u;
    hash = (hash ^ hash >> 15 ^ b) * 3266489917u;
    return hash ^ hash >> 13;
}

static uint32_t ref_q(const char *name, uint32_t n, uint32_t k) {
    return mix(name, n, k) & 15;
}

static uint32_t ref_z(const char *name, uint32_t n, uint32_t j) {
    return mix(name, n, j) >> 8 & 15;
}

/* Bits of a positive normal binary16 number. */
static uint16_t ref_s(const char *name, uint32_t n, uint32_t j) {
    return (uint16_t)(0x0400 + (mix(name, n, j) >> 16) % 0x3000);
}

/* ---- packing, an element at a time ---- */

typedef struct linear {
    const char *name;
    char packing; /* 'A', 'B', 'C' */
    uint32_t n, k, g;
} linear;

static uint32_t padded_words(uint32_t k, uint32_t g) {
    uint32_t groups = k / g, multiple = g >= 128 ? 1 : g == 64 ? 2 : 4;
    return ((groups + 7) / 8 + multiple - 1) / multiple * multiple;
}

static const unsigned place_a[8] = {0, 4, 1, 5, 2, 6, 3, 7};

static void set_nibble(uint8_t *bytes, size_t word, size_t word_bytes, unsigned place,
                       uint32_t value) {
    bytes[word * word_bytes + place / 2] |= (uint8_t)(value << 4 * (place % 2));
}

/* Where q[n][k] lies: word and nibble. */
static void put_q(const linear *l, uint8_t *q, uint32_t n, uint32_t k, uint32_t value) {
    if (l->packing == 'A') {
        set_nibble(q, (size_t)k * (l->n / 8) + n / 8, 4, place_a[n & 7], value);
    } else if (l->packing == 'B') {
        set_nibble(q, (size_t)n * (l->k / 8) + k / 8, 4, k & 7, value);
    } else {
        uint32_t r = k & 31, p = (k & 32) | (r >> 1 & 3) << 3 | (r & 1) << 2 | r >> 3;
        size_t word = (size_t)(n >> 2) * l->k + (k >> 6) * 64 + (n & 3) * 16 + (p >> 2);
        set_nibble(q, word, 2, p & 3, value);
    }
}

typedef struct packed {
    uint8_t *q, *z;
    uint16_t *s;
    size_t q_bytes, z_bytes, s_count;
} packed;

static packed pack_empty(const linear *l) {
    packed p;
    uint32_t groups = l->k / l->g, words = padded_words(l->k, l->g);
    p.q_bytes = (size_t)l->n * l->k / 2;
    p.s_count = (size_t)l->n * (l->packing == 'A' ? groups : 8 * words);
    p.z_bytes = l->packing == 'A'   ? (size_t)groups * l->n / 2
                : l->packing == 'B' ? (size_t)l->n * words * 4
                                    : p.s_count * 2;
    p.q = tc__calloc(p.q_bytes, 1);
    p.z = tc__calloc(p.z_bytes, 1);
    p.s = tc__calloc(p.s_count, 2);
    return p;
}

static void pack_free(packed *p) {
    free(p->q), free(p->z), free(p->s);
}

static void put_group(const linear *l, packed *p, uint32_t n, uint32_t j, uint16_t scale,
                      uint32_t zero) {
    uint32_t words = padded_words(l->k, l->g);
    if (l->packing == 'A') {
        p->s[(size_t)j * l->n + n] = scale;
        set_nibble(p->z, (size_t)j * (l->n / 8) + n / 8, 4, place_a[n & 7], zero);
    } else if (l->packing == 'B') {
        p->s[(size_t)n * 8 * words + j] = scale;
        set_nibble(p->z, (size_t)n * words + j / 8, 4, j & 7, zero);
    } else {
        float product = tc__f16_to_f32(scale) * (float)zero;
        uint16_t scaled = tc__f32_to_f16(-product); /* zero 0 gives -0.0, as the original does */
        p->s[(size_t)j * l->n + n] = scale;
        memcpy(p->z + 2 * ((size_t)j * l->n + n), &scaled, 2);
    }
}

static packed pack_linear(const linear *l) {
    packed p = pack_empty(l);
    for (uint32_t n = 0; n < l->n; n++) {
        for (uint32_t k = 0; k < l->k; k++) put_q(l, p.q, n, k, ref_q(l->name, n, k));
        for (uint32_t j = 0; j < l->k / l->g; j++)
            put_group(l, &p, n, j, ref_s(l->name, n, j), ref_z(l->name, n, j));
    }
    return p;
}

/* ---- checkpoints ---- */

#define MAX_ENTRIES 128

typedef struct entry {
    char name[96];
    const char *dtype;
    uint32_t shape[2]; /* shape[1] == 0: a vector */
    uint8_t *data;
    size_t bytes;
} entry;

/* A Hugging Face folder being made: config.json's members and the tensors of model.safetensors. */
typedef struct model {
    uint32_t hidden, intermediate, layers, heads, kv_heads, head_dim, vocab, group;
    char packing;        /* 0: plain */
    const char *dtype;   /* of plain layers, embedding and head */
    const char *config;  /* more members of config.json: the last of equal keys counts */
    const char *no_head; /* not NULL: leave it out */
    entry entries[MAX_ENTRIES];
    size_t count;
} model;

static const model model_default = {.hidden = 128,
                                    .intermediate = 64,
                                    .layers = 1,
                                    .heads = 2,
                                    .kv_heads = 1,
                                    .head_dim = 32,
                                    .vocab = 40,
                                    .group = 64,
                                    .packing = 'B',
                                    .dtype = "F16",
                                    .config = ""};

/* Takes the data, which is malloc'ed. */
static entry *model_add(model *m, const char *name, const char *dtype, uint32_t rows,
                        uint32_t columns, void *data, size_t bytes) {
    entry *e = &m->entries[m->count++];
    snprintf(e->name, sizeof e->name, "%s", name);
    e->dtype = dtype;
    e->shape[0] = rows, e->shape[1] = columns;
    e->data = data;
    e->bytes = bytes;
    return e;
}

/* Value i of a plain tensor as binary32. */
static float ref_value(const char *name, size_t i) {
    return (float)((int)(mix(name, (uint32_t)i, 77) % 4001) - 2000) / 1024;
}

static void model_add_plain(model *m, const char *name, const char *dtype, uint32_t rows,
                            uint32_t columns) {
    size_t count = (size_t)rows * (columns ? columns : 1), size = strcmp(dtype, "F32") ? 2 : 4;
    uint8_t *data = tc__calloc(count, size);
    for (size_t i = 0; i < count; i++) {
        float value = ref_value(name, i);
        uint16_t half = tc__f32_to_f16(value);
        uint32_t bits;
        memcpy(&bits, &value, 4);
        if (!strcmp(dtype, "BF16")) half = (uint16_t)(bits >> 16);
        memcpy(data + i * size, size == 4 ? (void *)&value : (void *)&half, size);
    }
    model_add(m, name, dtype, rows, columns, data, count * size);
}

static void model_add_linear(model *m, const char *name, uint32_t n, uint32_t k) {
    char full[96];
    if (!m->packing) {
        snprintf(full, sizeof full, "%s.weight", name);
        model_add_plain(m, full, m->dtype, n, k);
        return;
    }
    linear l = {name, m->packing, n, k, m->group};
    packed p = pack_linear(&l);
    uint32_t groups = k / m->group, words = padded_words(k, m->group);
    snprintf(full, sizeof full, "%s.qweight", name);
    if (m->packing == 'A') model_add(m, full, "I32", k, n / 8, p.q, p.q_bytes);
    if (m->packing == 'B') model_add(m, full, "I32", n, k / 8, p.q, p.q_bytes);
    if (m->packing == 'C') model_add(m, full, "I16", n / 4, k, p.q, p.q_bytes);
    snprintf(full, sizeof full, "%s.%s", name, m->packing == 'C' ? "scaled_zeros" : "qzeros");
    if (m->packing == 'A') model_add(m, full, "I32", groups, n / 8, p.z, p.z_bytes);
    if (m->packing == 'B') model_add(m, full, "I32", n, words, p.z, p.z_bytes);
    if (m->packing == 'C') model_add(m, full, "F16", 8 * words, n, p.z, p.z_bytes);
    snprintf(full, sizeof full, "%s.scales", name);
    if (m->packing == 'A') model_add(m, full, "F16", groups, n, p.s, 2 * p.s_count);
    if (m->packing == 'B') model_add(m, full, "F16", n, 8 * words, p.s, 2 * p.s_count);
    if (m->packing == 'C') model_add(m, full, "F16", 8 * words, n, p.s, 2 * p.s_count);
}

/* The linear layers of a block: name, and shape by the model's sizes. */
static const char *const linear_names[7] = {
    "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
    "mlp.gate_proj",    "mlp.up_proj",      "mlp.down_proj"};

static void linear_shape(const model *m, int i, uint32_t *n, uint32_t *k) {
    uint32_t q = m->heads * m->head_dim, kv = m->kv_heads * m->head_dim;
    const uint32_t rows[7] = {q, kv, kv, m->hidden, m->intermediate, m->intermediate, m->hidden};
    *n = rows[i];
    *k = i == 3 ? q : i == 6 ? m->intermediate : m->hidden;
}

static void model_fill(model *m) {
    char name[80];
    model_add_plain(m, "model.embed_tokens.weight", m->dtype, m->vocab, m->hidden);
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        for (int i = 0; i < 7; i++) {
            uint32_t n, k;
            linear_shape(m, i, &n, &k);
            snprintf(name, sizeof name, "model.layers.%u.%s", (unsigned)layer, linear_names[i]);
            model_add_linear(m, name, n, k);
        }
        snprintf(name, sizeof name, "model.layers.%u.input_layernorm.weight", (unsigned)layer);
        model_add_plain(m, name, "F16", m->hidden, 0);
        snprintf(name, sizeof name, "model.layers.%u.post_attention_layernorm.weight",
                 (unsigned)layer);
        model_add_plain(m, name, "BF16", m->hidden, 0);
    }
    model_add_plain(m, "model.norm.weight", "F32", m->hidden, 0);
    if (!m->no_head) model_add_plain(m, "lm_head.weight", m->dtype, m->vocab, m->hidden);
}

static void model_free(model *m) {
    for (size_t i = 0; i < m->count; i++) free(m->entries[i].data);
    m->count = 0;
}

/* The entry whose name ends like this; NULL if there is none. */
static entry *model_find(model *m, const char *end) {
    for (size_t i = 0; i < m->count; i++) {
        size_t len = strlen(m->entries[i].name), tail = strlen(end);
        if (len >= tail && !strcmp(m->entries[i].name + len - tail, end)) return &m->entries[i];
    }
    return NULL;
}

static bool write_file(const char *folder, const char *name, const void *bytes, size_t len) {
    char path[2 * PROGRAM_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    bool good = file && fwrite(bytes, 1, len, file) == len;
    return file && fclose(file) == 0 && good;
}

static void model_write(const model *m, const char *folder) {
    tc__buf header = {0}, data = {0}, file = {0}, config = {0};
    for (size_t i = 0; i < m->count; i++) {
        const entry *e = &m->entries[i];
        if (!e->data) continue; /* taken out by a test */
        tc__buf_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", header.len ? "," : "{",
                       e->name, e->dtype, (unsigned)e->shape[0]);
        if (e->shape[1]) tc__buf_printf(&header, ",%u", (unsigned)e->shape[1]);
        tc__buf_printf(&header, "],\"data_offsets\":[%zu,%zu]}", data.len, data.len + e->bytes);
        tc__buf_add(&data, e->data, e->bytes);
    }
    tc__buf_str(&header, "}");
    forge_safetensors(&file, header.data, data.data, data.len);
    tc__buf_printf(&config,
                   "{\"model_type\":\"llama\",\"hidden_size\":%u,\"intermediate_size\":%u,"
                   "\"num_hidden_layers\":%u,\"num_attention_heads\":%u,"
                   "\"num_key_value_heads\":%u,\"head_dim\":%u,\"vocab_size\":%u,"
                   "\"rms_norm_eps\":1e-5,\"eos_token_id\":2%s%s}",
                   (unsigned)m->hidden, (unsigned)m->intermediate, (unsigned)m->layers,
                   (unsigned)m->heads, (unsigned)m->kv_heads, (unsigned)m->head_dim,
                   (unsigned)m->vocab, m->config[0] ? "," : "", m->config);
    CHECK(!header.failed && !data.failed && !file.failed && !config.failed);
    CHECK(write_file(folder, "model.safetensors", file.data, file.len));
    CHECK(write_file(folder, "config.json", config.data, config.len));
    tc__buf_free(&header), tc__buf_free(&data), tc__buf_free(&file), tc__buf_free(&config);
}

/* ---- conversions ---- */

typedef struct run {
    char folder[PROGRAM_PATH], output[PROGRAM_PATH + 16];
    convert_options options;
    convert_summary summary;
    tc_error err;
    tc__buf notes;
    tc__model_file file; /* after run_convert */
    bool open;
} run;

static void keep_note(void *user, const char *line) {
    tc__buf_printf(user, "%s\n", line);
}

static bool run_begin(run *r) {
    memset(r, 0, sizeof *r);
    if (!program_folder(r->folder)) return false;
    snprintf(r->output, sizeof r->output, "%s/model.bin", r->folder);
    r->options.hf = r->folder;
    r->options.output = r->output;
    r->options.no_tokenizer = true;
    r->options.note = keep_note;
    r->options.user = &r->notes;
    return true;
}

/* Converts; if that succeeds the model file is opened. Returns convert_run's code. */
static int run_convert(run *r) {
    if (r->open) tc__model_file_close(&r->file);
    r->open = false;
    r->notes.len = 0;
    if (r->notes.data) r->notes.data[0] = 0;
    int code = convert_run(&r->options, &r->summary, &r->err);
    if (code) return code;
    r->open = tc__model_file_open(r->output, &r->file, &r->err) == TC_OK;
    CHECK_MSG(r->open, "%s", r->err.message);
    return code;
}

static int run_model(run *r, const model *m) {
    model_write(m, r->folder);
    return run_convert(r);
}

static bool run_noted(const run *r, const char *text) {
    return r->notes.data && strstr(r->notes.data, text) != NULL;
}

static void run_end(run *r) {
    if (r->open) tc__model_file_close(&r->file);
    tc__buf_free(&r->notes);
    program_remove_folder(r->folder);
}

static int count_files(const char *folder) {
    DIR *dir = opendir(folder);
    int n = -2;
    while (dir && readdir(dir)) n++;
    if (dir) closedir(dir);
    return n;
}

/* ---- what a model file holds ---- */

/* q, scale bits and zero point of an element of a W4 tensor, by docs/format.md. */
static void w4_at(const tc__tensor *t, size_t row, size_t column, uint32_t *q, uint16_t *scale,
                  uint16_t *zero) {
    size_t g = t->group_size;
    const uint8_t *unit = t->data + (row / 16 * (t->columns / g) + column / g) * (8 * g + 64);
    unsigned r = row % 16, k = (unsigned)(column % g), offset, shift;
    tc__unit_place((unsigned)g, r, k, &offset, &shift);
    *q = unit[offset] >> shift & 15;
    memcpy(scale, unit + 8 * g + 8 * (r & 7) + 4 * (r >> 3), 2);
    memcpy(zero, unit + 8 * g + 8 * (r & 7) + 4 * (r >> 3) + 2, 2);
}

/* Counts the elements of layer `name` that differ; row `n` of it is row place(n) of the tensor. */
static size_t w4_differences(const tc__tensor *t, const char *name, uint32_t n_rows, uint32_t group,
                             size_t first, bool interleaved, int part) {
    size_t bad = 0;
    for (uint32_t n = 0; n < n_rows; n++) {
        size_t row = interleaved ? n / 8 * 16 + (size_t)part * 8 + n % 8 : first + n;
        for (uint32_t k = 0; k < t->columns; k++) {
            uint32_t q;
            uint16_t scale, zero;
            w4_at(t, row, k, &q, &scale, &zero);
            bad += q != ref_q(name, n, k) || scale != ref_s(name, n, k / group) ||
                   zero != tc__f32_to_f16((float)ref_z(name, n, k / group));
        }
    }
    return bad;
}

static size_t plain_differences(const tc__tensor *t, const entry *e, size_t first, bool interleaved,
                                int part) {
    size_t bad = 0, row_bytes = t->columns * 2;
    for (uint32_t n = 0; n < e->shape[0]; n++) {
        size_t row = interleaved ? n / 8 * 16 + (size_t)part * 8 + n % 8 : first + n;
        bad += memcmp(t->data + row * row_bytes, e->data + n * row_bytes, row_bytes) != 0;
    }
    return bad;
}

/* Every linear layer of the converted file against the numbers it was made from. */
static void check_layers(const run *r, model *m, uint32_t file_group) {
    static const struct {
        const char *tensor;
        int part;
    } places[7] = {{"qkv", 0},     {"qkv", 1},     {"qkv", 2}, {"o", 0},
                   {"gate_up", 0}, {"gate_up", 1}, {"down", 0}};
    char name[80], weight[96], tensor[32];
    for (uint32_t layer = 0; layer < m->layers; layer++) {
        size_t first = 0;
        for (int i = 0; i < 7; i++) {
            uint32_t n, k;
            linear_shape(m, i, &n, &k);
            if (places[i].part == 0) first = 0;
            snprintf(name, sizeof name, "model.layers.%u.%s", (unsigned)layer, linear_names[i]);
            snprintf(tensor, sizeof tensor, "%u.%s", (unsigned)layer, places[i].tensor);
            const tc__tensor *t = tc__find_tensor(&r->file, tensor);
            bool joined = !strcmp(places[i].tensor, "gate_up");
            REQUIRE(t && t->columns == k);
            CHECK(t->group_size == (m->packing ? file_group : 0));
            size_t bad;
            if (m->packing) {
                bad = w4_differences(t, name, n, m->group, first, joined, places[i].part);
            } else {
                snprintf(weight, sizeof weight, "%s.weight", name);
                bad = plain_differences(t, model_find(m, weight), first, joined, places[i].part);
            }
            CHECK_MSG(bad == 0, "%s: %zu differences", name, bad);
            first += n;
        }
    }
}

/* Rows that pad a tensor to whole blocks: scale 0. */
static void check_padding(const run *r, const char *tensor) {
    const tc__tensor *t = tc__find_tensor(&r->file, tensor);
    REQUIRE(t && t->type == TC__W4);
    CHECK(t->rows % 16 != 0);
    for (size_t row = t->rows; row % 16; row++)
        for (size_t k = 0; k < t->columns; k++) {
            uint32_t q;
            uint16_t scale, zero;
            w4_at(t, row, k, &q, &scale, &zero);
            CHECK(scale == 0);
        }
}

/* ---- packings ---- */

/* Vectors of the original packers: q[n][k] = (k + 5n + 3 (k >> 4)) & 15, z[n] = (3n + 1) & 15. */
static const uint16_t golden_c[64] = {
    0xB380, 0xC491, 0xD5A2, 0xE6B3, 0xF7C4, 0x08D5, 0x19E6, 0x2AF7, 0x19E6, 0x2AF7, 0x3B08,
    0x4C19, 0x5D2A, 0x6E3B, 0x7F4C, 0x805D, 0x08D5, 0x19E6, 0x2AF7, 0x3B08, 0x4C19, 0x5D2A,
    0x6E3B, 0x7F4C, 0x6E3B, 0x7F4C, 0x805D, 0x916E, 0xA27F, 0xB380, 0xC491, 0xD5A2, 0x5D2A,
    0x6E3B, 0x7F4C, 0x805D, 0x916E, 0xA27F, 0xB380, 0xC491, 0xB380, 0xC491, 0xD5A2, 0xE6B3,
    0xF7C4, 0x08D5, 0x19E6, 0x2AF7, 0xA27F, 0xB380, 0xC491, 0xD5A2, 0xE6B3, 0xF7C4, 0x08D5,
    0x19E6, 0x08D5, 0x19E6, 0x2AF7, 0x3B08, 0x4C19, 0x5D2A, 0x6E3B, 0x7F4C};

static uint32_t golden_q(uint32_t n, uint32_t k) {
    return (k + 5 * n + 3 * (k >> 4)) & 15;
}

static packed golden_pack(const linear *l) {
    packed p = pack_empty(l);
    for (uint32_t n = 0; n < l->n; n++) {
        for (uint32_t k = 0; k < l->k; k++) put_q(l, p.q, n, k, golden_q(n, k));
        put_group(l, &p, n, 0, 0x3c00, (3 * n + 1) & 15);
    }
    return p;
}

/* Unpacks packed words and counts what differs from the formula. */
static size_t golden_differences(const linear *l, const uint8_t *q) {
    layout_matrix m = {.kind = l->packing == 'A'   ? LAYOUT_A
                               : l->packing == 'B' ? LAYOUT_B
                                                   : LAYOUT_C,
                       .rows = l->n,
                       .columns = l->k,
                       .source_group = l->k,
                       .group = 32,
                       .q = q};
    uint32_t step = l->n < 8 ? l->n : 8;
    size_t bad = 0;
    for (uint32_t n = 0; n < l->n; n += step)
        for (uint32_t k = 0; k < l->k; k += 32) {
            layout_words words[8];
            layout_unpack(&m, n, step, k, 32, words);
            for (uint32_t i = 0; i < step * 32; i++)
                bad += (words[i / 32][i % 32 / 8] >> 4 * (i % 8) & 15) !=
                       golden_q(n + i / 32, k + i % 32);
        }
    return bad;
}

static uint32_t word_at(const uint8_t *bytes, size_t index) {
    uint32_t word;
    memcpy(&word, bytes + 4 * index, 4);
    return word;
}

TEST(golden_vectors_of_the_original_packers) {
    static const uint32_t a0[4] = {0x39F5E4A0, 0xB17D6C28, 0x39F5E4A0, 0xB17D6C28};
    static const uint32_t a17[4] = {0x7D3928E4, 0xF5B1A06C, 0x7D3928E4, 0xF5B1A06C};
    static const uint32_t az[4] = {0x60A43D71, 0xE82CB5F9, 0x60A43D71, 0xE82CB5F9};
    static const uint32_t b0[4] = {0x76543210, 0xFEDCBA98, 0xA9876543, 0x210FEDCB};
    static const uint32_t b5[4] = {0x0FEDCBA9, 0x87654321, 0x3210FEDC, 0xBA987654};
    static const uint32_t bz[5] = {1, 4, 7, 10, 13};
    linear c = {"golden", 'C', 4, 64, 64}, a = {"golden", 'A', 32, 128, 128};
    linear b = {"golden", 'B', 32, 128, 128};
    CHECK(golden_differences(&c, (const uint8_t *)golden_c) == 0);
    packed pc = golden_pack(&c), pa = golden_pack(&a), pb = golden_pack(&b);
    CHECK(memcmp(pc.q, golden_c, sizeof golden_c) == 0); /* the test's own packers are right */
    for (size_t i = 0; i < 4; i++) {
        CHECK(word_at(pa.q, i) == a0[i] && word_at(pa.q, 17 * 4 + i) == a17[i]);
        CHECK(word_at(pa.z, i) == az[i]);
        CHECK(word_at(pb.q, i) == b0[i] && word_at(pb.q, 5 * 16 + i) == b5[i]);
    }
    for (size_t i = 0; i < 5; i++) CHECK(word_at(pb.z, i) == bz[i]);
    CHECK(golden_differences(&a, pa.q) == 0);
    CHECK(golden_differences(&b, pb.q) == 0);
    pack_free(&pa), pack_free(&pb), pack_free(&pc);
}

/* Converts a model of random integers and finds every one of them in the model file. */
static void check_round_trip(const model *shape, uint32_t file_group) {
    run r;
    model m = *shape;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    int code = run_model(&r, &m);
    CHECK_MSG(code == TC_OK, "%s", r.err.message);
    if (r.open) {
        tc__weights weights;
        CHECK_MSG(tc__weights_open(&r.file, &weights, &r.err) == TC_OK, "%s", r.err.message);
        tc__weights_close(&weights);
        check_layers(&r, &m, file_group);
        tc_error err;
        FILE *nowhere = program_temporary();
        CHECK(inspect_verify(r.output, nowhere, NULL, NULL, &err) == TC_OK);
        fclose(nowhere);
    }
    model_free(&m);
    run_end(&r);
}

TEST(every_packing_and_group_size_round_trips) {
    static const char packings[] = "ABC";
    static const uint32_t groups[] = {32, 64, 128};
    for (int p = 0; p < 3; p++)
        for (int g = 0; g < 3; g++) {
            model m = model_default;
            m.packing = packings[p];
            m.group = groups[g];
            m.hidden = 384, m.intermediate = 256, m.head_dim = 64, m.layers = 2;
            check_round_trip(&m, groups[g]);
        }
}

/* AutoAWQ's gemv_fast is packing C with another name for the zero points. */
TEST(zero_points_of_gemv_fast_are_called_qzeros) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    m.packing = 'C';
    m.config = "\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,"
               "\"version\":\"gemv_fast\",\"modules_to_not_convert\":[\"lm_head\"]}";
    model_fill(&m);
    for (size_t i = 0; i < m.count; i++) {
        char *end = strstr(m.entries[i].name, "scaled_zeros");
        if (end) memcpy(end, "qzeros", sizeof "qzeros");
    }
    CHECK_MSG(run_model(&r, &m) == TC_OK, "%s", r.err.message);
    if (r.open) check_layers(&r, &m, 64);
    CHECK_MSG(!r.notes.len, "%s", r.notes.data);
    model_free(&m);
    run_end(&r);
}

TEST(row_counts_need_not_be_multiples_of_16) {
    static const struct {
        char packing;
        uint32_t heads, head_dim, hidden, intermediate, group;
    } cases[] = {{'B', 16, 6, 160, 32, 32},
                 {'B', 32, 2, 128, 64, 64},
                 {'B', 32, 18, 64, 64, 64},
                 {'C', 16, 4, 64, 64, 64},
                 {'C', 16, 12, 192, 64, 64},
                 {'A', 4, 8, 96, 32, 32}}; /* k_proj and v_proj in one block of 16 rows */
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        model m = model_default;
        run r;
        m.packing = cases[i].packing;
        m.heads = cases[i].heads;
        m.head_dim = cases[i].head_dim;
        m.hidden = cases[i].hidden;
        m.intermediate = cases[i].intermediate;
        m.group = cases[i].group;
        REQUIRE(run_begin(&r));
        model_fill(&m);
        int code = run_model(&r, &m);
        CHECK_MSG(code == TC_OK, "%s", r.err.message);
        if (r.open) {
            check_layers(&r, &m, m.group);
            if (m.packing != 'A') check_padding(&r, "0.qkv");
        }
        model_free(&m);
        run_end(&r);
    }
}

TEST(large_groups_and_whole_rows_are_expanded) {
    static const struct {
        uint32_t hidden, intermediate, head_dim, group, file_group;
    } cases[] = {
        {512, 256, 128, 256, 128}, /* group size 256 */
        {768, 384, 192, 384, 128}, /* 384 */
        {640, 640, 320, 640, 128}, /* whole rows */
        {320, 320, 160, 320, 64},  /* whole rows that 128 does not divide */
        {96, 96, 48, 96, 32},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++)
        for (int p = 0; p < 3; p++) {
            model m = model_default;
            m.packing = "ABC"[p];
            if (m.packing == 'C' && cases[i].hidden % 64) continue; /* its packer could not */
            m.hidden = cases[i].hidden, m.intermediate = cases[i].intermediate;
            m.head_dim = cases[i].head_dim;
            m.group = cases[i].group;
            if (m.group < 128 && m.group != 64 && m.packing != 'A') continue; /* no such padding */
            check_round_trip(&m, cases[i].file_group);
        }
}

/* BF16 and F32 scales: exact where binary16 can hold them. */
TEST(scales_of_other_types_are_converted_exactly) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    m.group = 128;
    m.packing = 'C';
    m.intermediate = 128;
    m.head_dim = 64;
    model_fill(&m);
    for (size_t i = 0; i < m.count; i++) {
        entry *e = &m.entries[i];
        if (!strstr(e->name, "scale") || strcmp(e->dtype, "F16")) continue;
        float *wide = tc__calloc(e->bytes / 2, sizeof *wide);
        for (size_t k = 0; k < e->bytes / 2; k++) {
            uint16_t half;
            memcpy(&half, e->data + 2 * k, 2);
            wide[k] = tc__f16_to_f32(half);
        }
        free(e->data);
        e->data = (uint8_t *)wide;
        e->dtype = "F32";
        e->bytes *= 2;
    }
    int code = run_model(&r, &m);
    CHECK_MSG(code == TC_OK, "%s", r.err.message);
    if (r.open) check_layers(&r, &m, 128);
    CHECK(!run_noted(&r, "rounded"));
    /* a scale between two binary16 numbers */
    float between = 1.0f + 1.0f / 4096,
          *scales = (float *)(void *)model_find(&m, "q_proj.scales")->data;
    scales[0] = between;
    memset(model_find(&m, "q_proj.scaled_zeros")->data, 0, 4);
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(run_noted(&r, "1 scales were rounded"));
    scales[0] = 1e6f;
    CHECK(run_model(&r, &m) == TC_ERR_FORMAT && strstr(r.err.message, "binary16"));
    model_free(&m);
    run_end(&r);
}

/* ---- plain weights ---- */

TEST(sixteen_bit_weights_are_copied_bit_for_bit) {
    static const char *const types[] = {"F16", "BF16"};
    for (int i = 0; i < 2; i++) {
        run r;
        model m = model_default;
        REQUIRE(run_begin(&r));
        m.packing = 0;
        m.dtype = types[i];
        m.layers = 2;
        model_fill(&m);
        int code = run_model(&r, &m);
        CHECK_MSG(code == TC_OK, "%s", r.err.message);
        if (r.open) {
            const tc__tensor *embed = tc__find_tensor(&r.file, "embed");
            const tc__tensor *head = tc__find_tensor(&r.file, "head");
            const tc__tensor *norm = tc__find_tensor(&r.file, "1.mlp_norm");
            const entry *e = model_find(&m, "embed_tokens.weight");
            check_layers(&r, &m, 0);
            REQUIRE(embed && head && norm);
            CHECK(embed->type == (i ? TC__BF16 : TC__F16) && embed->size == e->bytes);
            CHECK(memcmp(embed->data, e->data, e->bytes) == 0);
            CHECK(memcmp(head->data, model_find(&m, "lm_head.weight")->data, head->size) == 0);
            CHECK(norm->type == TC__F32 && norm->rows == m.hidden);
            for (uint32_t k = 0; k < m.hidden; k++) {
                uint16_t half;
                float value;
                memcpy(&half, model_find(&m, "1.post_attention_layernorm.weight")->data + 2 * k, 2);
                memcpy(&value, norm->data + 4 * k, 4);
                CHECK(value == tc__bf16_to_f32(half));
            }
        }
        model_free(&m);
        run_end(&r);
    }
}

static float *plain_floats(model *m, const char *end) {
    return (float *)(void *)model_find(m, end)->data;
}

TEST(binary32_weights_become_16_bit) {
    run r;
    model m = model_default;
    uint16_t half;
    REQUIRE(run_begin(&r));
    m.packing = 0;
    m.dtype = "F32";
    model_fill(&m);
    float *o = plain_floats(&m, "o_proj.weight"), *down = plain_floats(&m, "down_proj.weight");
    uint32_t n, k;
    linear_shape(&m, 3, &n, &k);
    for (size_t i = 0; i < (size_t)n * k; i++) o[i] = ldexpf(1.0f, -30 - (int)(i % 8));
    down[5] = 1.0f + ldexpf(1.0f, -12); /* neither type holds it */
    CHECK(run_model(&r, &m) == TC_OK);
    REQUIRE(r.open);
    const tc__tensor *t = tc__find_tensor(&r.file, "0.qkv"); /* exact in binary16 */
    CHECK(t->type == TC__F16);
    float value = plain_floats(&m, "q_proj.weight")[3];
    memcpy(&half, t->data + 6, 2);
    CHECK(tc__f16_to_f32(half) == value);
    t = tc__find_tensor(&r.file, "0.o"); /* only bfloat16 has such small numbers */
    CHECK(t->type == TC__BF16);
    memcpy(&half, t->data + 4, 2);
    CHECK(tc__bf16_to_f32(half) == o[2]);
    t = tc__find_tensor(&r.file, "0.down");
    CHECK(t->type == TC__F16 && run_noted(&r, "1 weights are binary32"));
    memcpy(&half, t->data + 10, 2);
    CHECK(half == 0x3c00);
    CHECK(tc__find_tensor(&r.file, "0.gate_up")->type == TC__F16);
    down[5] = 1e9f, down[6] = 1.0f + ldexpf(1.0f, -20);
    CHECK(run_model(&r, &m) == TC_ERR_UNSUPPORTED && strstr(r.err.message, "down_proj.weight"));
    model_free(&m);
    run_end(&r);
}

TEST(a_tied_head_is_left_out) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    m.config = "\"tie_word_embeddings\":true";
    model_fill(&m);
    entry *head = model_find(&m, "lm_head.weight"), *embed = model_find(&m, "embed_tokens.weight");
    CHECK(run_model(&r, &m) == TC_OK); /* said to be tied, but different: it is used */
    CHECK(r.open && tc__find_tensor(&r.file, "head") && run_noted(&r, "tied, but they differ"));
    memcpy(head->data, embed->data, embed->bytes);
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(r.open && !tc__find_tensor(&r.file, "head"));
    m.config = ""; /* the same, but not said to be tied: kept */
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(r.open && tc__find_tensor(&r.file, "head"));
    free(head->data);
    head->data = NULL; /* not there at all */
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(r.open && !tc__find_tensor(&r.file, "head") && run_noted(&r, "no lm_head.weight"));
    model_free(&m);
    run_end(&r);
}

/* ---- what is refused ---- */

/* A quantization_config of llm-compressor. */
#define COMPRESSED(weights, activations)                                                           \
    "\"quantization_config\":{\"quant_method\":\"compressed-tensors\",\"format\":"                 \
    "\"pack-quantized\",\"config_groups\":{\"group_0\":{\"targets\":[\"Linear\"],\"weights\":"     \
    "{" weights "},\"input_activations\":" activations "}}}"

static const struct {
    const char *config, *message; /* message NULL: accepted */
} settings[] = {
    {"\"model_type\":\"gemma\"", "model_type 'gemma' is not supported; supported: LLaMA"},
    {"\"model_type\":\"mistral\"", NULL},
    {"\"model_type\":\"mistral\",\"architectures\":[\"LlamaForCausalLM\"]", "architecture"},
    {"\"model_type\":\"falcon\",\"multi_query\":false", "'multi_query'"},
    {"\"model_type\":null", "model_type '' is not supported"},
    {"\"architectures\":[\"LlamaForSequenceClassification\"]",
     "'llamaforsequenceclassification'"},
    {"\"architectures\":[\"LlamaForCausalLM\"]", NULL},
    {"\"model_type\":null,\"architectures\":[\"LlamaForCausalLM\"]", NULL},
    {"\"hidden_act\":\"gelu\"", "hidden_act 'gelu'"},
    {"\"hidden_act\":\"silu\"", NULL},
    {"\"attention_bias\":true", "'attention_bias' is true, which is not supported"},
    {"\"attention_bias\":false", NULL},
    {"\"mlp_bias\":true", "mlp_bias"},
    {"\"rope_scaling\":null", NULL},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}", NULL},
    {"\"rope_scaling\":{\"type\":\"linear\"}", "has no 'factor'"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":-1}", "'factor'"},
    {"\"rope_scaling\":{\"rope_type\":\"llama3\",\"factor\":8}", "low_freq_factor"},
    {"\"rope_scaling\":{\"rope_type\":\"longrope\",\"factor\":8}",
     "type 'longrope' is not supported and would change the model's answers; supported: "
     "default, linear"},
    {"\"rope_scaling\":{\"rope_type\":\"default\"}", NULL},
    {"\"rope_scaling\":{\"factor\":2}", "rope_scaling"},
    {"\"rope_scaling\":\"linear\"", "rope_scaling"},
    {"\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":5e5}", NULL},
    {"\"rope_parameters\":{\"rope_type\":\"yarn\",\"rope_theta\":5e5}", "has no 'factor'"},
    {"\"rope_parameters\":{\"full_attention\":{\"rope_type\":\"default\"}}", "per layer"},
    {"\"rope_parameters\":{\"rope_type\":\"default\",\"partial_rotary_factor\":0.5}",
     "partial_rotary_factor"},
    {"\"partial_rotary_factor\":0.5", "partial_rotary_factor"},
    {"\"partial_rotary_factor\":1.0", NULL},
    {"\"sliding_window\":1024,\"max_position_embeddings\":4096", NULL},
    {"\"sliding_window\":\"wide\"", "'sliding_window'"},
    {"\"sliding_window\":null", NULL},
    {"\"sliding_window\":1024,\"use_sliding_window\":false", NULL},
    {"\"layer_types\":[\"sliding_attention\"]", "'layer_types'"},
    {"\"layer_types\":[\"full_attention\"]", NULL},
    {"\"final_logit_softcapping\":30.0", "final_logit_softcapping"},
    {"\"residual_multiplier\":0.22", "residual_multiplier"},
    {"\"pretraining_tp\":2", NULL},
    {"\"rope_theta\":-1", "rope_theta"},
    {"\"rope_theta\":1e30", "rope_theta"},
    {"\"rms_norm_eps\":1e-30", "'rms_norm_eps' is not a number from 1e-20"},
    {"\"rope_scaling\":{\"type\":\"linear\",\"factor\":1e-3}", "impossible numbers"},
    {"\"rms_norm_eps\":\"1e-5\"", "rms_norm_eps"},
    {"\"num_hidden_layers\":0", "num_hidden_layers"},
    {"\"num_hidden_layers\":2000", "1 to 1024"},
    {"\"num_key_value_heads\":3", "multiple of the key-value heads"},
    {"\"head_dim\":31", "even"},
    {"\"eos_token_id\":\"two\"", "eos_token_id"},
    {"\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"group_size\":64,"
     "\"version\":\"gemv\"}",
     NULL},
    {"\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4}", NULL}, /* a note */
    {"\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":8}", "gptq of 8 bits"},
    {"\"quantization_config\":{\"quant_method\":\"gptq\",\"bits\":4,"
     "\"checkpoint_format\":\"marlin\"}",
     "gptq in the format 'marlin'"},
    {"\"quantization_config\":{\"quant_method\":\"gptq\",\"is_marlin_format\":true}",
     "'marlin'"},
    {"\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":8}", "8 bits"},
    {"\"quantization_config\":{\"quant_method\":\"awq\",\"bits\":4,\"version\":\"Marlin\"}",
     "in the format 'marlin' is not supported; supported: 4-bit awq"},
    {"\"quantization_config\":{\"quant_method\":\"compressed-tensors\","
     "\"format\":\"float-quantized\"}",
     "compressed-tensors (float-quantized) with another format"},
    {COMPRESSED("\"num_bits\":8,\"type\":\"int\"", "null"), "compressed-tensors of 8 bits"},
    {COMPRESSED("\"num_bits\":4,\"type\":\"float\"", "null"), "not integers"},
    {COMPRESSED("\"num_bits\":4,\"strategy\":\"tensor\"", "null"), "neither group nor channel"},
    {COMPRESSED("\"num_bits\":4,\"actorder\":\"group\"", "null"), "act-order"},
    {COMPRESSED("\"num_bits\":4,\"actorder\":\"weight\"", "null"), NULL},
    {COMPRESSED("\"num_bits\":4", "{\"num_bits\":8}"), "quantised activations"},
    {"\"quantization_config\":{\"quant_method\":\"bitsandbytes\"}", "'bitsandbytes'"},
};

TEST(settings_that_would_change_answers_are_refused) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    for (size_t i = 0; i < TC_COUNT(settings); i++) {
        m.config = settings[i].config;
        int code = run_model(&r, &m);
        if (!settings[i].message) {
            CHECK_MSG(code == TC_OK, "%s: %s", settings[i].config, r.err.message);
        } else {
            CHECK_MSG(code == TC_ERR_UNSUPPORTED || code == TC_ERR_FORMAT, "%s: code %d",
                      settings[i].config, code);
            CHECK_MSG(code && strstr(r.err.message, settings[i].message), "%s: %s", settings[i].config,
                      r.err.message);
            CHECK(code == TC_OK || strstr(r.err.message, r.folder));
        }
    }
    model_free(&m);
    run_end(&r);
}

/* One change to a good checkpoint's tensors, and what convert says. */
typedef struct change {
    const char *end;    /* of the tensor's name */
    const char *rename; /* its new name; "" takes it out; NULL keeps it */
    const char *dtype;  /* NULL keeps it */
    uint32_t shape[2];  /* 0: kept */
    int code;
    const char *message;
} change;

static void check_change(char packing, const change *c) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    m.packing = packing;
    model_fill(&m);
    entry *e = model_find(&m, c->end);
    REQUIRE(e);
    if (c->rename && c->rename[0]) snprintf(e->name, sizeof e->name, "%s", c->rename);
    if (c->rename && !c->rename[0]) free(e->data), e->data = NULL;
    if (c->dtype) e->dtype = c->dtype;
    if (c->shape[0]) memcpy(e->shape, c->shape, sizeof e->shape);
    int code = run_model(&r, &m);
    CHECK_MSG(code == c->code, "%s: code %d: %s", c->end, code, r.err.message);
    CHECK_MSG(!code || strstr(r.err.message, c->message), "%s: %s", c->end, r.err.message);
    CHECK(count_files(r.folder) == (code ? 2 : 3)); /* nothing left behind */
    model_free(&m);
    run_end(&r);
}

TEST(tensors_that_do_not_fit_are_named) {
    /* model_default, packing B: q_proj [64, 128], k_proj [32, 128], group 64 */
    static const change changes[] = {
        {"0.mlp.up_proj.qweight", "", NULL, {0, 0}, TC_ERR_FORMAT, "'model.layers.0.mlp.up_proj"},
        {"k_proj.scales", "", NULL, {0, 0}, TC_ERR_FORMAT, "k_proj.scales' is missing"},
        {"k_proj.qzeros", "", NULL, {0, 0}, TC_ERR_FORMAT, "k_proj.qzeros' is missing"},
        {"model.norm.weight", "", NULL, {0, 0}, TC_ERR_FORMAT, "'model.norm.weight' is missing"},
        {"embed_tokens.weight", "", NULL, {0, 0}, TC_ERR_FORMAT, "'model.embed_tokens.weight"},
        {"0.input_layernorm.weight", NULL, NULL, {64, 2}, TC_ERR_FORMAT, "expected F16"},
        {"lm_head.weight", NULL, NULL, {80, 64}, TC_ERR_FORMAT, "config.json says [40, 128]"},
        {"embed_tokens.weight", NULL, "I16", {0, 0}, TC_ERR_FORMAT, "F16, BF16 or F32"},
        {"lm_head.weight", "lm_head.qweight", NULL, {0, 0}, TC_ERR_UNSUPPORTED, "quantised"},
        {"lm_head.weight",
         "model.layers.0.self_attn.q_proj.bias",
         NULL,
         {0, 0},
         TC_ERR_UNSUPPORTED,
         "q_proj.bias"},
        {"lm_head.weight", "lm_head.bias", NULL, {0, 0}, TC_ERR_UNSUPPORTED, "lm_head.bias"},
        {"lm_head.weight",
         "model.layers.1.self_attn.q_norm.weight",
         NULL,
         {0, 0},
         TC_ERR_UNSUPPORTED,
         "family llama with 1 layers"},
        {"lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq", NULL, {0, 0}, TC_OK, ""},
        {"lm_head.weight", "vision.weight", NULL, {0, 0}, TC_OK, ""},
        {"lm_head.weight",
         "model.layers.0.mlp.down_proj.g_idx",
         NULL,
         {0, 0},
         TC_ERR_FORMAT,
         "a number for each column"},
        {"lm_head.weight",
         "model.layers.0.mlp.down_proj.weight_packed",
         NULL,
         {0, 0},
         TC_ERR_UNSUPPORTED,
         "weight_packed' has no place"},
        {"lm_head.weight",
         "model.layers.0.mlp.down_proj.weight_g_idx",
         NULL,
         {0, 0},
         TC_ERR_UNSUPPORTED,
         "act-order"},
        {"lm_head.weight",
         "model.layers.0.mlp.down_proj.weight_scale",
         NULL,
         {0, 0},
         TC_ERR_UNSUPPORTED,
         "fp8 or int8"},
        {"lm_head.weight",
         "model.layers.0.mlp.down_proj.workspace",
         NULL,
         {0, 0},
         TC_ERR_UNSUPPORTED,
         "Marlin"},
        {"k_proj.qweight", NULL, NULL, {16, 32}, TC_ERR_UNSUPPORTED, "packings A, B and C"},
    };
    for (size_t i = 0; i < TC_COUNT(changes); i++) check_change('B', &changes[i]);
}

/* Replaces layer `name`'s tensors by others of the same size and new shapes. */
static void check_foreign_layer(const uint32_t q[2], const uint32_t s[2], const uint32_t z[2],
                                const char *message) {
    run r;
    model m = model_default;
    char name[96];
    REQUIRE(run_begin(&r));
    model_fill(&m);
    const char *parts[3] = {"o_proj.qweight", "o_proj.scales", "o_proj.qzeros"};
    const uint32_t *shapes[3] = {q, s, z};
    for (int i = 0; i < 3; i++) {
        entry *e = model_find(&m, parts[i]);
        snprintf(name, sizeof name, "%s", e->name);
        e->bytes = (size_t)shapes[i][0] * shapes[i][1] * (i == 1 ? 2 : 4);
        free(e->data);
        e->data = shapes[i][0] ? tc__calloc(e->bytes, 1) : NULL;
        memcpy(e->shape, shapes[i], sizeof e->shape);
    }
    CHECK(run_model(&r, &m) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(r.err.message, message) && strstr(r.err.message, "o_proj"), "%s",
              r.err.message);
    model_free(&m);
    run_end(&r);
}

TEST(foreign_layers_are_recognised_by_shape) {
    const uint32_t none[2] = {0, 0};
    check_foreign_layer((uint32_t[2]){16, 128}, (uint32_t[2]){1, 128}, (uint32_t[2]){1, 32},
                        "GPTQ's of 4 bits"); /* GPTQ of 8 */
    check_foreign_layer((uint32_t[2]){4, 256}, (uint32_t[2]){1, 128}, none, "Marlin");
}

TEST(parts_of_a_joined_matrix_must_be_alike) {
    run r;
    model m = model_default, other = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    /* k_proj in 16 bits beside packed q_proj and v_proj */
    for (int i = 0; i < 2; i++) {
        entry *e = model_find(&m, i ? "k_proj.scales" : "k_proj.qzeros");
        free(e->data), e->data = NULL;
    }
    entry *k = model_find(&m, "k_proj.qweight");
    snprintf(k->name, sizeof k->name, "model.layers.0.self_attn.k_proj.weight");
    k->dtype = "F16";
    k->shape[0] = 32, k->shape[1] = 128, k->bytes = 32 * 128 * 2;
    free(k->data);
    k->data = tc__calloc(k->bytes, 1);
    CHECK(run_model(&r, &m) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(r.err.message, "q_proj' is packing B") &&
                  strstr(r.err.message, "k_proj' is F16"),
              "%s", r.err.message);
    model_free(&m);
    /* up_proj with another group size than gate_proj */
    m = model_default;
    m.intermediate = 128, m.head_dim = 64;
    model_fill(&m);
    other = m;
    other.count = 0;
    other.group = 32;
    model_add_linear(&other, "model.layers.0.mlp.up_proj", m.intermediate, m.hidden);
    for (size_t i = 0; i < other.count; i++) {
        entry *e = model_find(&m, other.entries[i].name);
        free(e->data);
        *e = other.entries[i];
    }
    CHECK(run_model(&r, &m) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(r.err.message, "group size 64") && strstr(r.err.message, "group size 32"),
              "%s", r.err.message);
    model_free(&m);
    /* a whole joined matrix, or a single one, in 16 bits is fine (modules_to_not_convert) */
    m = model_default;
    model_fill(&m);
    other = m;
    other.count = 0;
    other.packing = 0;
    model_add_linear(&other, "model.layers.0.mlp.down_proj", m.hidden, m.intermediate);
    static const char *const gone[] = {"down_proj.qzeros", "down_proj.scales"};
    for (size_t i = 0; i < 2; i++) {
        entry *e = model_find(&m, gone[i]);
        free(e->data), e->data = NULL;
    }
    entry *down = model_find(&m, "down_proj.qweight");
    free(down->data);
    *down = other.entries[0];
    CHECK(run_model(&r, &m) == TC_OK && r.open);
    CHECK(tc__find_tensor(&r.file, "0.down")->type == TC__F16);
    CHECK(tc__find_tensor(&r.file, "0.o")->type == TC__W4);
    CHECK(strstr(r.summary.source, "some layers 16-bit") != NULL);
    model_free(&m);
    run_end(&r);
}

/* Scales and zero points out of range, and padding that is none, in packings B and C. */
TEST(bad_scales_are_named_with_row_and_group) {
    static const struct {
        char packing;
        const char *tensor;
        size_t index; /* of the 16-bit number */
        uint16_t bits;
        const char *message;
    } cases[] = {
        /* B: 16 places a row of q_proj, of which 2 are groups */
        {'B', "q_proj.scales", 3 * 16 + 1, 0x7c00, "row 3, group 1"},
        {'B', "q_proj.scales", 5 * 16, 0x7e00, "row 5, group 0"},
        {'B', "q_proj.scales", 7 * 16 + 1, 0x0000, "row 7, group 1"},
        {'B', "q_proj.scales", 9 * 16 + 2, 0x3c00, "expected padding"},
        {'A', "q_proj.scales", 64 + 6, 0xfc00, "row 6, group 1"},
        {'C', "q_proj.scales", 64 + 6, 0xfc00, "row 6, group 1"},
        {'C', "q_proj.scaled_zeros", 64 + 6, 0x7bff, "multiple 0 to 15"},
        {'C', "q_proj.scaled_zeros", 64 + 6, 0x7e00, "multiple 0 to 15"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        run r;
        model m = model_default;
        REQUIRE(run_begin(&r));
        m.packing = cases[i].packing;
        model_fill(&m);
        memcpy(model_find(&m, cases[i].tensor)->data + 2 * cases[i].index, &cases[i].bits, 2);
        CHECK(run_model(&r, &m) == TC_ERR_FORMAT);
        CHECK_MSG(strstr(r.err.message, cases[i].message) && strstr(r.err.message, cases[i].tensor),
                  "%c: %s", cases[i].packing, r.err.message);
        CHECK(count_files(r.folder) == 2);
        model_free(&m);
        run_end(&r);
    }
}

TEST(impossible_group_sizes_are_refused) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    m.packing = 'A';
    m.group = 16;
    model_fill(&m);
    CHECK(run_model(&r, &m) == TC_ERR_UNSUPPORTED && strstr(r.err.message, "group size 16"));
    model_free(&m);
    m = model_default;
    model_fill(&m); /* only one of two scales: as if for groups of 128, but padded for 64 */
    entry *e = model_find(&m, "q_proj.scales");
    memset(e->data + 2, 0, 2);
    CHECK(run_model(&r, &m) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(r.err.message, "group size 128 needs 8"), "%s", r.err.message);
    model_free(&m);
    run_end(&r);
}

TEST(the_folder_s_description_is_compared) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    m.config = "\"quantization_config\":{\"quant_method\":\"awq\",\"version\":\"GEMM\","
               "\"group_size\":128}";
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(run_noted(&r, "version 'gemm', the tensors are packing B"));
    CHECK(run_noted(&r, "group size 128, the tensors have 64"));
    CHECK(strstr(r.summary.source, "packing B") && strstr(r.summary.source, "group size 64"));
    m.config = "";
    const char old[] = "{\"zero_point\":true,\"q_group_size\":32,\"w_bit\":4,\"version\":\"GEMV\"}";
    CHECK(write_file(r.folder, "quant_config.json", old, strlen(old)));
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(run_noted(&r, "group size 32") && !run_noted(&r, "version"));
    model_free(&m);
    run_end(&r);
}

/* ---- metadata ---- */

TEST(hyper_parameters_reach_the_file) {
    run r;
    model m = model_default;
    uint32_t value = 0;
    double number = 0;
    const char *text;
    size_t len;
    REQUIRE(run_begin(&r));
    m.config = "\"rope_parameters\":{\"rope_type\":\"default\",\"rope_theta\":500000.0},"
               "\"max_position_embeddings\":1234,\"_name_or_path\":\"org/some-model\"";
    model_fill(&m);
    r.options.name = "a name";
    CHECK(run_model(&r, &m) == TC_OK);
    REQUIRE(r.open);
    CHECK(!tc__meta_f64(&r.file, "arch.rope_theta", &number, &r.err) && number == 500000.0);
    CHECK(!tc__meta_f64(&r.file, "arch.norm_eps", &number, &r.err) && number == 1e-5);
    CHECK(!tc__meta_u32(&r.file, "arch.max_seq_len", &value, &r.err) && value == 1234);
    CHECK(!tc__meta_u32(&r.file, "arch.head_dim", &value, &r.err) && value == m.head_dim);
    CHECK(!tc__meta_text(&r.file, "general.name", &text, &len, &r.err) && len == 6 &&
          !memcmp(text, "a name", 6));
    CHECK(!tc__meta_text(&r.file, "tokenizer.type", &text, &len, &r.err) && len == 4);
    model_free(&m);
    run_end(&r);
}

TEST(folders_of_the_hubs_cache_are_named_by_their_repository) {
    static const char *const parts[] = {"models--an-org--Some-Chat-7B", "snapshots",
                                        "0123456789abcdef0123456789abcdef01234567"};
    static const char *const files[] = {"config.json", "model.safetensors"};
    run r;
    model m = model_default;
    const char *text;
    size_t len;
    char folders[4][2 * PROGRAM_PATH], from[3 * PROGRAM_PATH], to[3 * PROGRAM_PATH];
    REQUIRE(run_begin(&r));
    model_fill(&m);
    model_write(&m, r.folder);
    snprintf(folders[0], sizeof folders[0], "%s", r.folder);
    for (int i = 0; i < 3; i++) {
        snprintf(folders[i + 1], sizeof folders[i + 1], "%.400s/%s", folders[i], parts[i]);
        CHECK(mkdir(folders[i + 1], 0700) == 0);
    }
    for (int i = 0; i < 2; i++) {
        snprintf(from, sizeof from, "%s/%s", r.folder, files[i]);
        snprintf(to, sizeof to, "%s/%s", folders[3], files[i]);
        CHECK(rename(from, to) == 0);
    }
    r.options.hf = folders[3];
    CHECK(run_convert(&r) == TC_OK);
    REQUIRE(r.open);
    CHECK(!tc__meta_text(&r.file, "general.name", &text, &len, &r.err) && len == 12 &&
          !memcmp(text, "Some-Chat-7B", 12));
    for (int i = 3; i > 0; i--) program_remove_folder(folders[i]);
    model_free(&m);
    run_end(&r);
}

/* Angles and scale of rotations as transformers 5.24 computes them (modeling_rope_utils.py) for
 * the scalings of Vicuna-16k, LLaMA-3.1-8B, Qwen2.5-7B and one with every setting of yarn. */
TEST(rope_scalings_are_those_of_transformers) {
    static const struct {
        const char *config;
        uint32_t head_dim, positions;
        double scale;
        struct {
            int i;
            double angle;
        } want[6];
    } cases[] = {
        {"\"max_position_embeddings\":4096,\"max_sequence_length\":16384,"
         "\"rope_scaling\":{\"type\":\"linear\",\"factor\":4.0}",
         64,
         16384,
         1,
         {{0, 0.25},
          {8, 0.025},
          {15, 0.0033338037},
          {19, 0.0010542412},
          {24, 0.00025000001},
          {31, 3.3338038e-05}}},
        {"\"max_position_embeddings\":131072,\"rope_theta\":500000.0,\"rope_scaling\":{\"factor\":"
         "8.0,"
         "\"high_freq_factor\":4.0,\"low_freq_factor\":1.0,"
         "\"original_max_position_embeddings\":8192,\"rope_type\":\"llama3\"}",
         128,
         131072,
         1,
         {{0, 1},
          {16, 0.037606031},
          {31, 0.00085675146},
          {35, 9.5562122e-05},
          {48, 6.6478697e-06},
          {63, 3.0689259e-07}}},
        {"\"max_position_embeddings\":32768,\"rope_theta\":1000000.0,\"rope_scaling\":{"
         "\"factor\":4.0,\"original_max_position_embeddings\":32768,\"type\":\"yarn\"}",
         128,
         131072,
         1.138629436111989,
         {{0, 1},
          {16, 0.031622779},
          {31, 0.00080295978},
          {35, 0.00024625839},
          {48, 7.9056936e-06},
          {63, 3.1023444e-07}}},
        {"\"max_position_embeddings\":4096,\"rope_parameters\":{\"rope_theta\":10000.0,"
         "\"factor\":40,\"beta_fast\":32,\"beta_slow\":1,\"mscale\":1.0,\"mscale_all_dim\":0.8,"
         "\"original_max_position_embeddings\":4096,\"rope_type\":\"yarn\",\"truncate\":false}",
         64,
         163840,
         1.0569662567531275,
         {{0, 1},
          {8, 0.1},
          {15, 0.0084462352},
          {19, 0.0013051096},
          {24, 2.4999999e-05},
          {31, 3.3338035e-06}}},
        {"\"max_position_embeddings\":512,\"rope_scaling\":{\"type\":\"dynamic\",\"factor\":2.0}",
         64,
         512,
         1,
         {{-1, 0}}}, /* none of its own up to there */
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        run r;
        model m = model_default;
        uint32_t positions = 0;
        double scale = 1;
        REQUIRE(run_begin(&r));
        m.config = cases[i].config;
        m.head_dim = cases[i].head_dim;
        model_fill(&m);
        CHECK_MSG(run_model(&r, &m) == TC_OK, "%s", r.err.message);
        REQUIRE(r.open);
        const tc__meta *angles = tc__find_meta(&r.file, "arch.rope_frequencies");
        CHECK(!tc__meta_u32(&r.file, "arch.max_seq_len", &positions, &r.err));
        CHECK_MSG(positions == cases[i].positions, "%zu: %u positions", i, (unsigned)positions);
        if (cases[i].scale != 1) CHECK(!tc__meta_f64(&r.file, "arch.rope_scale", &scale, &r.err));
        CHECK_MSG(fabs(scale - cases[i].scale) < 1e-12, "%zu: scale %.17g", i, scale);
        CHECK((angles != NULL) == (cases[i].want[0].i >= 0));
        for (int k = 0; angles && k < 6; k++) {
            double angle;
            memcpy(&angle, angles->value + 8 * cases[i].want[k].i, sizeof angle);
            CHECK_MSG(fabs(angle / cases[i].want[k].angle - 1) < 1e-6, "%zu: angle %d is %.9g", i,
                      cases[i].want[k].i, angle);
        }
        model_free(&m);
        run_end(&r);
    }
}

/* Within its window attention sees everything: the context ends there, and people are told. */
TEST(sliding_windows_limit_the_context) {
    static const struct {
        const char *config;
        uint32_t positions, window;
    } cases[] = {
        {"\"model_type\":\"mistral\",\"sliding_window\":1024,\"max_position_embeddings\":4096",
         1024, 1024},
        {"\"model_type\":\"mistral\",\"sliding_window\":null,\"max_position_embeddings\":4096",
         4096, 0},
        {"\"model_type\":\"mistral\",\"sliding_window\":8192,\"max_position_embeddings\":4096",
         4096, 0},
        {"\"sliding_window\":1024,\"use_sliding_window\":false,\"max_position_embeddings\":4096",
         4096, 0},
        {"\"sliding_window\":64,\"use_sliding_window\":true,\"max_position_embeddings\":4096", 64,
         64},
        {"\"sliding_window\":64,\"use_sliding_window\":false,\"max_position_embeddings\":4096,"
         "\"layer_types\":[\"sliding_attention\"]",
         64, 64},
    };
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        uint32_t positions = 0, window = 0;
        m.config = cases[i].config;
        CHECK_MSG(run_model(&r, &m) == TC_OK, "%s", r.err.message);
        REQUIRE(r.open);
        CHECK(!tc__meta_u32(&r.file, "arch.max_seq_len", &positions, &r.err));
        CHECK(!tc__meta_u32_or(&r.file, "arch.sliding_window", 0, &window, &r.err));
        CHECK_MSG(positions == cases[i].positions && window == cases[i].window, "%s: %u, %u",
                  cases[i].config, (unsigned)positions, (unsigned)window);
        CHECK(run_noted(&r, "limited to the window") == (positions < 4096));
    }
    model_free(&m);
    run_end(&r);
}

/* The stop ids as "1 2 3 " into text. */
static void stop_ids(const run *r, char *text, size_t size) {
    const tc__meta *meta = tc__find_meta(&r->file, "chat.stop_ids");
    text[0] = 0;
    for (size_t i = 0; meta && i < meta->count; i++)
        snprintf(text + strlen(text), size - strlen(text), "%u ",
                 (unsigned)tc__meta_u32_at(meta, i));
}

TEST(stop_ids_of_both_files_are_united) {
    static const struct {
        const char *config, *generation, *ids;
    } cases[] = {
        {"\"eos_token_id\":2", "{\"eos_token_id\":2}", "2 "},
        {"\"eos_token_id\":[5,6]", "{\"eos_token_id\":[6,7,2]}", "5 6 7 2 "},
        {"\"eos_token_id\":null", "{\"eos_token_id\":9}", "9 "},
        {"\"eos_token_id\":2", "{\"eos_token_id\":4000}", "2 "},
        {"\"eos_token_id\":2", "{}", "2 "},
    };
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        char ids[64];
        m.config = cases[i].config;
        CHECK(write_file(r.folder, "generation_config.json", cases[i].generation,
                         strlen(cases[i].generation)));
        CHECK(run_model(&r, &m) == TC_OK);
        if (r.open) stop_ids(&r, ids, sizeof ids);
        CHECK_MSG(r.open && !strcmp(ids, cases[i].ids), "%s + %s: %s", cases[i].config,
                  cases[i].generation, ids);
    }
    CHECK(write_file(r.folder, "generation_config.json", "{\"eos", 5));
    CHECK(run_model(&r, &m) == TC_ERR_FORMAT && strstr(r.err.message, "generation_config.json"));
    model_free(&m);
    run_end(&r);
}

/* ---- tokenizers ---- */

static void proto_varint(tc__buf *out, uint64_t value) {
    for (; value > 127; value >>= 7) forge_byte(out, (unsigned)(value & 127) | 128);
    forge_byte(out, (unsigned)value);
}

static void proto_number(tc__buf *out, unsigned field, uint64_t value) {
    proto_varint(out, field << 3);
    proto_varint(out, value);
}

static void proto_bytes(tc__buf *out, unsigned field, const void *bytes, size_t len) {
    proto_varint(out, field << 3 | 2);
    proto_varint(out, len);
    tc__buf_add(out, bytes, len);
}

static void proto_piece(tc__buf *out, const char *text, float score, unsigned type) {
    tc__buf piece = {0};
    proto_bytes(&piece, 1, text, strlen(text));
    proto_varint(&piece, 2 << 3 | 5);
    tc__buf_add(&piece, &score, 4);
    if (type != 1) proto_number(&piece, 3, type);
    proto_bytes(out, 1, piece.data, piece.len);
    tc__buf_free(&piece);
}

/* A small SentencePiece model: <unk> <s> </s> a b ab, no byte pieces. trainer and normalizer: the
 * fields of the specs, as pairs of number and value, ending with 0. */
static tc__buf proto_model(const unsigned *trainer, const unsigned *normalizer) {
    tc__buf out = {0}, spec = {0};
    proto_piece(&out, "<unk>", 0, TC__PIECE_UNKNOWN);
    proto_piece(&out, "<s>", 0, TC__PIECE_CONTROL);
    proto_piece(&out, "</s>", 0, TC__PIECE_CONTROL);
    proto_piece(&out, "ab", -1, TC__PIECE_NORMAL);
    proto_piece(&out, "a", -2, TC__PIECE_NORMAL);
    proto_piece(&out, "b", -3.5f, TC__PIECE_NORMAL);
    for (; *trainer; trainer += 2) proto_number(&spec, trainer[0], trainer[1]);
    proto_bytes(&out, 2, spec.data, spec.len);
    spec.len = 0;
    for (; *normalizer; normalizer += 2)
        if (normalizer[0] == 2)
            proto_bytes(&spec, 2, "charsmap", normalizer[1]);
        else
            proto_number(&spec, normalizer[0], normalizer[1]);
    proto_bytes(&out, 3, spec.data, spec.len);
    tc__buf_free(&spec);
    return out;
}

static const unsigned proto_bpe[] = {3, 2, 0}, proto_identity[] = {4, 0, 0};

TEST(tokenizers_that_would_differ_are_refused) {
    static const struct {
        unsigned trainer[7], normalizer[7];
        const char *message;
    } cases[] = {
        {{3, 2}, {4, 0}, NULL},
        {{3, 1}, {4, 0}, "unigram"},
        {{35, 0}, {4, 0}, "unigram"}, /* protobuf's default */
        {{3, 3}, {4, 0}, "word model"},
        {{3, 4}, {4, 0}, "character model"},
        {{3, 2}, {4, 0, 2, 8}, "character map"},
        {{3, 2}, {3, 1}, "extra white space"}, /* on by default */
        {{3, 2, 24, 1}, {4, 0}, "suffix"},
        {{3, 2}, {4, 0, 5, 0}, "not escaped"},
        {{3, 2, 35, 1}, {4, 0}, "byte_fallback"},
    };
    run r;
    REQUIRE(run_begin(&r));
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        tokenizer_import import;
        tc__buf bytes = proto_model(cases[i].trainer, cases[i].normalizer);
        CHECK(write_file(r.folder, "tokenizer.model", bytes.data, bytes.len));
        int code = tokenizer_folder_read(r.folder, 40, &import, &r.notes, &r.err);
        if (!cases[i].message) {
            CHECK_MSG(code == TC_OK, "%s", r.err.message);
            CHECK(import.count == 6 && import.bos_id == 1 && import.eos_id == 2 &&
                  import.unk_id == 0);
            tokenizer_import_free(&import);
        } else {
            CHECK_MSG(code == TC_ERR_UNSUPPORTED && strstr(r.err.message, cases[i].message),
                      "%zu: code %d: %s", i, code, r.err.message);
        }
        tc__buf_free(&bytes);
    }
    tokenizer_import import;
    const char *pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\n";
    CHECK(write_file(r.folder, "tokenizer.model", pointer, strlen(pointer)));
    CHECK(tokenizer_folder_read(r.folder, 40, &import, &r.notes, &r.err) == TC_ERR_UNSUPPORTED);
    CHECK(strstr(r.err.message, "git-LFS pointer") != NULL);
    char path[2 * PROGRAM_PATH];
    json_doc doc;
    snprintf(path, sizeof path, "%s/tokenizer.model", r.folder); /* JSON files likewise */
    CHECK(json_open(path, &doc, &r.err) == TC_ERR_UNSUPPORTED &&
          strstr(r.err.message, "tokenizer.model: is a git-LFS pointer"));
    CHECK(write_file(r.folder, "tokenizer.model", "IQ== 0\nIg== 1\n", 14)); /* a tiktoken file */
    CHECK(tokenizer_folder_read(r.folder, 40, &import, &r.notes, &r.err) == TC_ERR_FORMAT);
    tc__buf bytes = proto_model(proto_bpe, proto_identity);
    CHECK(write_file(r.folder, "tokenizer.model", bytes.data, bytes.len));
    CHECK(tokenizer_folder_read(r.folder, 5, &import, &r.notes, &r.err) == TC_ERR_FORMAT);
    CHECK(strstr(r.err.message, "6 pieces") != NULL);
    size_t piece = 0; /* what the engine refuses is refused here */
    while (memcmp(bytes.data + piece, "\n\2ab", 4)) piece++;
    bytes.data[piece + 2] = '\xff';
    CHECK(write_file(r.folder, "tokenizer.model", bytes.data, bytes.len));
    CHECK(tokenizer_folder_read(r.folder, 40, &import, &r.notes, &r.err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(r.err.message, "tokenizer.model: ") && strstr(r.err.message, "UTF-8"), "%s",
              r.err.message);
    bytes.data[piece + 2] = 'a';
    for (size_t len = 0; len < bytes.len; len++) { /* cut short: an error or fewer pieces */
        CHECK(write_file(r.folder, "tokenizer.model", bytes.data, len));
        if (tokenizer_folder_read(r.folder, 40, &import, &r.notes, &r.err) == TC_OK) {
            CHECK(import.count <= 6);
            tokenizer_import_free(&import);
        }
    }
    tc__buf_free(&bytes);
    run_end(&r);
}

/* Writes tokenizer.model and tokenizer_config.json (NULL: none), reads them and opens the result of
 * a conversion with the engine's tokenizer. */
static int import_tokenizer(run *r, const model *m, const char *config, tc__tokenizer **tokenizer) {
    char path[2 * PROGRAM_PATH];
    tc__buf bytes = proto_model(proto_bpe, proto_identity);
    CHECK(write_file(r->folder, "tokenizer.model", bytes.data, bytes.len));
    snprintf(path, sizeof path, "%s/tokenizer_config.json", r->folder);
    unlink(path);
    if (config) CHECK(write_file(r->folder, "tokenizer_config.json", config, strlen(config)));
    tc__buf_free(&bytes);
    *tokenizer = NULL;
    r->options.no_tokenizer = false;
    int code = run_model(r, m);
    if (!code && r->open)
        CHECK_MSG(!tc__tokenizer_open(&r->file, m->vocab, tokenizer, &r->err), "%s",
                  r->err.message);
    return code;
}

static uint32_t flag_of(const run *r, const char *key) {
    uint32_t value = 99;
    tc_error err;
    tc__meta_u32(&r->file, key, &value, &err);
    return value;
}

TEST(tokenizer_settings_reach_the_file) {
    static const char config[] =
        "{\"add_bos_token\":false,\"legacy\":false,\"eos_token\":\"<end>\",\"bos_token\":"
        "{\"content\":\"<s>\"},\"added_tokens_decoder\":{\"1\":{\"content\":\"<s>\"},"
        "\"30\":{\"content\":\"<end>\",\"lstrip\":true},\"77\":{\"content\":\"<pad>\"}}}";
    run r;
    model m = model_default;
    tc__tokenizer *tokenizer;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    CHECK_MSG(import_tokenizer(&r, &m, NULL, &tokenizer) == TC_OK, "%s", r.err.message);
    CHECK(flag_of(&r, "tokenizer.add_bos") == 1 && flag_of(&r, "tokenizer.legacy") == 1);
    CHECK(flag_of(&r, "tokenizer.dummy_prefix") == 1);
    CHECK(flag_of(&r, "tokenizer.bos_id") == 1 && flag_of(&r, "tokenizer.eos_id") == 2);
    CHECK(!tc__find_meta(&r.file, "tokenizer.added_ids"));
    CHECK(run_noted(&r, "no tokenizer_config.json"));
    tc__tokenizer_close(tokenizer);

    CHECK_MSG(import_tokenizer(&r, &m, config, &tokenizer) == TC_OK, "%s", r.err.message);
    CHECK(flag_of(&r, "tokenizer.add_bos") == 0 && flag_of(&r, "tokenizer.legacy") == 0);
    CHECK(flag_of(&r, "tokenizer.eos_id") == 30 && flag_of(&r, "tokenizer.added_ids") == 30);
    CHECK(run_noted(&r, "'<pad>' with id 77 lies outside"));
    CHECK(run_noted(&r, "'<end>' asks for lstrip"));
    if (tokenizer) {
        tc__ids ids = {0};
        tc__span span = {"ab<end>", 7, true};
        CHECK(tc__encode(tokenizer, &span, 1, false, &ids, &r.err) == TC_OK);
        CHECK(ids.len == 2 && ids.data[0] == 3 && ids.data[1] == 30);
        tc__ids_free(&ids);
    }
    tc__tokenizer_close(tokenizer);

    const char added[] = "{\"<end>\":31}"; /* contradicts the other file */
    CHECK(write_file(r.folder, "added_tokens.json", added, strlen(added)));
    CHECK(import_tokenizer(&r, &m, config, &tokenizer) == TC_ERR_FORMAT);
    CHECK(strstr(r.err.message, "two ids") != NULL);
    CHECK(import_tokenizer(&r, &m, "{\"bos_token\":\"<nope>\"}", &tokenizer) == TC_ERR_FORMAT);
    CHECK(strstr(r.err.message, "'<nope>', which is no token") != NULL);
    model_free(&m);
    run_end(&r);
}

TEST(a_folder_without_a_tokenizer_needs_a_flag) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    r.options.no_tokenizer = false;
    CHECK(run_model(&r, &m) == TC_ERR_UNSUPPORTED);
    CHECK(strstr(r.err.message, "--no-tokenizer") != NULL);
    CHECK(write_file(r.folder, "tokenizer.json", "{}", 2));
    CHECK(run_convert(&r) == TC_ERR_UNSUPPORTED && strstr(r.err.message, "tokenizer.json: "));
    model_free(&m);
    run_end(&r);
}

/* A tokenizer.json of tests/data as the folder's own. */
static bool copy_tokenizer(const run *r, const char *path) {
    tc__map map;
    if (tc__map_open(path, &map, NULL)) return false;
    bool good = write_file(r->folder, "tokenizer.json", map.data, map.size);
    tc__map_close(&map);
    return good;
}

/* Whether it is used, what counts of tokenizer_config.json, and which ids end a reply. */
TEST(a_tokenizer_json_is_imported) {
    static const struct {
        const char *json, *config;
        bool add_bos;
        int64_t bos, eos;
    } cases[] = {
        /* the post-processor adds it; the generic class does not look at add_bos_token */
        {"llama3", "{\"tokenizer_class\":\"PreTrainedTokenizerFast\",\"add_bos_token\":false}",
         true, 700, -1},
        {"llama3", "{\"tokenizer_class\":\"LlamaTokenizerFast\",\"add_bos_token\":false}", false,
         700, -1},
        {"qwen2", "{\"tokenizer_class\":\"Qwen2Tokenizer\",\"eos_token\":\"<|im_end|>\"}", false,
         -1, 702},
        {"neox", "{\"bos_token\":\"<|endoftext|>\",\"eos_token\":{\"content\":\"er\"}}", false, 700,
         258},
        {"llama2json", "{\"tokenizer_class\":\"LlamaTokenizer\"}", true, 1, -1},
    };
    run r;
    REQUIRE(run_begin(&r));
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        char path[100];
        tokenizer_import import;
        snprintf(path, sizeof path, "tests/data/bpe_%s.json", cases[i].json);
        REQUIRE(copy_tokenizer(&r, path));
        CHECK(write_file(r.folder, "tokenizer_config.json", cases[i].config,
                         strlen(cases[i].config)));
        int code = tokenizer_folder_read(r.folder, 1000, &import, &r.notes, &r.err);
        CHECK_MSG(!code, "%s", r.err.message);
        if (code) continue;
        CHECK(import.has_merges && import.add_bos == cases[i].add_bos);
        CHECK_MSG(import.bos_id == cases[i].bos && import.eos_id == cases[i].eos,
                  "%s: bos %lld, eos %lld", cases[i].json, (long long)import.bos_id,
                  (long long)import.eos_id);
        tokenizer_import_free(&import);
        CHECK(tokenizer_folder_read(r.folder, 600, &import, &r.notes, &r.err) == TC_ERR_FORMAT);
        CHECK(strstr(r.err.message, "600 embeddings") != NULL);
    }
    tokenizer_import import;
    tc__buf bytes = proto_model(proto_bpe, proto_identity);
    CHECK(write_file(r.folder, "tokenizer.model", "IQ== 0\n", 7)); /* tiktoken's: no matter */
    CHECK(!tokenizer_folder_read(r.folder, 1000, &import, &r.notes, &r.err) && import.has_merges);
    tokenizer_import_free(&import);
    CHECK(write_file(r.folder, "tokenizer.model", bytes.data, bytes.len)); /* SentencePiece's */
    CHECK(write_file(r.folder, "tokenizer_config.json", "{}", 2));
    CHECK(!tokenizer_folder_read(r.folder, 1000, &import, &r.notes, &r.err) && !import.has_merges);
    tokenizer_import_free(&import);
    tc__buf_free(&bytes);
    run_end(&r);
}

/* A run of a small model whose folder holds this tokenizer. */
static bool begin_with_tokenizer(run *r, model *m, const char *tokenizer) {
    *m = model_default;
    if (!run_begin(r)) return false;
    m->vocab = 800;
    m->config = "\"eos_token_id\":0";
    model_fill(m);
    r->options.no_tokenizer = false;
    return copy_tokenizer(r, tokenizer);
}

/* The token that closes a reply is one, though no configuration says so. */
TEST(a_template_s_closing_token_is_a_stop_id) {
    run r;
    model m;
    REQUIRE(begin_with_tokenizer(&r, &m, "tests/data/bpe_neox.json"));
    r.options.template_name = "mpt-chat";
    CHECK_MSG(run_model(&r, &m) == TC_OK, "%s", r.err.message);
    const tc__meta *stops = tc__find_meta(&r.file, "chat.stop_ids");
    CHECK(stops && stops->count == 2 && tc__meta_u32_at(stops, 0) == 0 &&
          tc__meta_u32_at(stops, 1) == 726);
    model_free(&m);
    run_end(&r);
}

/* A template whose closing mark the tokenizer lacks: its replies could never end. */
TEST(a_template_for_another_tokenizer_is_refused) {
    static const char llama_3[] = "{{ '<|start_header_id|>' }}{{ '<|eot_id|>' }}";
    run r;
    model m;
    REQUIRE(begin_with_tokenizer(&r, &m, "tests/data/bpe_llama2json.json"));
    r.options.template_name = "llama-3";
    CHECK(run_model(&r, &m) == TC_ERR_ARGUMENT && access(r.output, F_OK) != 0);
    CHECK_MSG(strstr(r.err.message, "--template llama-3 does not fit: it ends replies with "
                                    "'<|eot_id|>', and the checkpoint's tokenizer has no such") &&
                  strstr(r.err.message, "leave --template out"),
              "%s", r.err.message);
    r.options.template_name = "mpt-chat"; /* whose mark may be text, a stop string */
    CHECK_MSG(run_convert(&r) == TC_OK && !run_noted(&r, "fit"), "%s", r.err.message);
    r.options.template_name = NULL;
    CHECK(write_file(r.folder, "chat_template.jinja", llama_3, strlen(llama_3)));
    CHECK_MSG(run_convert(&r) == TC_OK, "%s", r.err.message);
    CHECK_MSG(run_noted(&r, "'llama-3' (the marks in the checkpoint's chat_template) does not fit"),
              "%s", r.notes.data);
    r.options.no_tokenizer = true;
    r.options.template_name = "llama-3";
    CHECK_MSG(run_convert(&r) == TC_OK && !run_noted(&r, "fit"), "%s", r.err.message);
    model_free(&m);
    run_end(&r);
}

/* ---- chat templates ---- */

/* The chat_template of Llama-2-7b-chat-hf as its tokenizer_config.json has it. */
static const char llama_2_jinja[] =
    "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}{% set "
    "system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% set "
    "system_message = false %}{% endif %}{% for message in loop_messages %}{% if "
    "(message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Conversation "
    "roles must alternate user/assistant/user/assistant/...') }}{% endif %}{% if loop.index0 == 0 "
    "and system_message != false %}{% set content = '<<SYS>>\\n' + system_message + "
    "'\\n<</SYS>>\\n\\n' + message['content'] %}{% else %}{% set content = message['content'] "
    "%}{% endif %}{% if message['role'] == 'user' %}{{ bos_token + '[INST] ' + content.strip() + ' "
    "[/INST]' }}{% elif message['role'] == 'assistant' %}{{ ' '  + content.strip() + ' ' + "
    "eos_token }}{% endif %}{% endfor %}";

static const chat_choice *choose(const run *r, const char *asked, const char *name,
                                 tc__buf *notes) {
    static chat_choice choice;
    const char *names[] = {"some", name, NULL};
    tc_error err;
    notes->len = 0;
    int code = chat_choose(r->folder, asked, names, &choice, notes, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    return &choice;
}

TEST(templates_are_chosen_by_flag_fingerprint_and_name) {
    run r;
    tc__buf notes = {0}, json = {0};
    const chat_choice *c;
    REQUIRE(run_begin(&r));
    c = choose(&r, NULL, "vicuna-7b-v1.5", &notes);
    CHECK(!strcmp(c->chosen->name, "vicuna") && strstr(notes.data, "by the name"));
    c = choose(&r, NULL, "Llama-2-13b-Chat-hf", &notes);
    CHECK(!strcmp(c->chosen->name, "llama-2"));
    c = choose(&r, NULL, "Llama-2-13b-hf", &notes); /* the base model does not chat */
    CHECK(!strcmp(c->chosen->name, "plain") && strstr(notes.data, "--template NAME"));
    c = choose(&r, "human", "vicuna", &notes);
    CHECK(!strcmp(c->chosen->name, "human") && notes.len == 0);

    CHECK(write_file(r.folder, "chat_template.jinja", llama_2_jinja, strlen(llama_2_jinja)));
    c = choose(&r, NULL, "vicuna", &notes);
    CHECK(!strcmp(c->chosen->name, "llama-2") && c->system[0] == 0 && notes.len == 0);
    CHECK(write_file(r.folder, "chat_template.jinja", "", 0));

    tc__buf_str(&json, "{\"chat_template\":[{\"name\":\"tools\",\"template\":\"x\"},"
                       "{\"name\":\"default\",\"template\":\"  ");
    for (const char *p = llama_2_jinja; *p; p++) {
        if (*p == '\\') tc__buf_str(&json, "\\");
        tc__buf_add(&json, p, 1);
        if (*p == ' ') tc__buf_str(&json, "\\n "); /* white space is normalised */
    }
    tc__buf_str(&json, "\"}]}");
    CHECK(write_file(r.folder, "tokenizer_config.json", json.data, json.len));
    c = choose(&r, NULL, "x", &notes);
    CHECK(!strcmp(c->chosen->name, "llama-2"));

    const char other[] = "{\"chat_template\":\"{{ messages }}\"}";
    CHECK(write_file(r.folder, "tokenizer_config.json", other, strlen(other)));
    c = choose(&r, NULL, "x", &notes);
    CHECK(!strcmp(c->chosen->name, "plain"));
    CHECK_MSG(strstr(notes.data, "fingerprint") && strstr(notes.data, "llama-2, vicuna, human"),
              "%s", notes.data);
    CHECK(chat_fingerprint("a b", 3) == chat_fingerprint(" a \n b\t", 7));
    CHECK(chat_fingerprint("a b", 3) != chat_fingerprint("ab", 2));
    tc__buf_free(&notes), tc__buf_free(&json);
    run_end(&r);
}

/* A chat_template that somebody changed: its marks tell, aloud. */
TEST(templates_are_recognised_by_marks) {
    static const struct {
        const char *jinja, *name; /* NULL: another thinker */
    } cases[] = {
        {"{{ '<|start_header_id|>' }} Cutting Knowledge Date {{ '<|eot_id|>' }}", "llama-3.1"},
        {"{{ '<|start_header_id|>' }}{{ '<|eot_id|>' }}", "llama-3"},
        {"{{ '<\xEF\xBD\x9CUser\xEF\xBD\x9C>' }}{{ c.split('</think>')[-1] }}", "deepseek-r1"},
        {"{{ '<|im_start|>' }}{{ '</think>' }}{% if enable_thinking %}", "qwen3"},
        {"{{ '<|im_start|>' }}{{ '<think>' }}", NULL},
        {"{{ '<|im_start|>You are Qwen, created by Alibaba Cloud.' }}", "qwen2.5"},
        {"{{ '<|im_start|>system You are a helpful assistant.<|im_end|>' }}", "qwen2"},
        {"{{ '<|im_start|>' }}{{ '<|im_end|>' }}", "chatml"},
        {"{{ '[INST] <<SYS>>' }}", "llama-2"},
        {"{{ '[INST] ' }}{{ \"[AVAILABLE_TOOLS] [\" }}", "mistral-v0.3"},
        {"{{ \" [INST] \" + system_message }}", "mistral-v0.2-spaced"},
        {"{{ '<|user|>' }}{{ '<|assistant|>' + eos_token }}", "zephyr"},
        {"{{ messages }}", NULL},
    };
    run r;
    tc__buf notes = {0};
    REQUIRE(run_begin(&r));
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        const char *jinja = cases[i].jinja, *name = cases[i].name;
        CHECK(write_file(r.folder, "chat_template.jinja", jinja, strlen(jinja)));
        const chat_choice *c = choose(&r, NULL, "x", &notes);
        CHECK_MSG(!strcmp(c->chosen->name, name ? name : "plain"), "%s: %s", jinja,
                  c->chosen->name);
        CHECK_MSG(strstr(notes.data, "fingerprint") && (!name || strstr(notes.data, name)), "%s",
                  notes.data);
    }
    tc__buf_free(&notes);
    run_end(&r);
}

TEST(templates_are_recognised_by_names) {
    static const char *const cases[][2] = {
        {"vicuna-13b-v1.5-awq", "vicuna"},
        {"Llama-2-7b-chat-hf", "llama-2"},
        {"CodeLlama-7b-Instruct-hf", "llama-2"},
        {"Meta-Llama-3-8B-Instruct", "llama-3"},
        {"Meta-Llama-3.1-8B-Instruct-AWQ-INT4", "llama-3.1"},
        {"Llama-3.2-3B-Instruct", "llama-3.1"},
        {"Meta-Llama-3-8B", "plain"},
        {"Mistral-7B-Instruct-v0.1", "mistral-v0.1"},
        {"Mistral-7B-Instruct-v0.2-AWQ", "mistral-v0.2"},
        {"mistral-7b-instruct-v0.3", "mistral-v0.3"},
        {"Mistral-7B-v0.1", "plain"},
        {"Qwen2-7B-Instruct-AWQ", "qwen2"},
        {"Qwen2.5-0.5B-Instruct", "qwen2.5"},
        {"Qwen2.5-7B", "plain"},
        {"Qwen3-8B-AWQ", "qwen3"},
        {"Qwen3-8B-Base", "plain"},
        {"Qwen3-4B-Instruct-2507", "chatml"},
        {"DeepSeek-R1-Distill-Qwen-7B", "deepseek-r1"},
        {"DeepSeek-R1-Distill-Llama-8B", "deepseek-r1"},
        {"TinyLlama-1.1B-Chat-v1.0", "zephyr"},
        {"mpt-7b-chat", "mpt-chat"},
        {"mpt-7b", "plain"},
        {"falcon-7b-instruct", "falcon"},
    };
    run r;
    tc__buf notes = {0};
    REQUIRE(run_begin(&r));
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        const chat_choice *c = choose(&r, NULL, cases[i][0], &notes);
        CHECK_MSG(!strcmp(c->chosen->name, cases[i][1]), "%s: %s", cases[i][0], c->chosen->name);
    }
    tc__buf_free(&notes);
    run_end(&r);
}

/* ---- files ---- */

/* A file that cannot be read is not one that is missing, and nothing waits for a FIFO. */
TEST(files_that_cannot_be_read_are_named) {
    static const char *const names[] = {"config.json", "generation_config.json", "tokenizer.json",
                                        "chat_template.jinja"};
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    m.vocab = 800;
    model_fill(&m);
    r.options.no_tokenizer = false;
    REQUIRE(copy_tokenizer(&r, "tests/data/bpe_neox.json"));
    REQUIRE(run_model(&r, &m) == TC_OK);
    for (size_t i = 0; i < TC_COUNT(names); i++) {
        char path[2 * PROGRAM_PATH], kept[2 * PROGRAM_PATH];
        snprintf(path, sizeof path, "%s/%s", r.folder, names[i]);
        snprintf(kept, sizeof kept, "%s/kept", r.folder);
        bool had = rename(path, kept) == 0;
        CHECK(symlink("nowhere", path) == 0 && run_convert(&r) == TC_ERR_IO);
        CHECK_MSG(strstr(r.err.message, names[i]) && strstr(r.err.message, "No such file"), "%s",
                  r.err.message);
        CHECK(unlink(path) == 0 && mkfifo(path, 0600) == 0 && run_convert(&r) == TC_ERR_IO);
        CHECK_MSG(strstr(r.err.message, names[i]) && strstr(r.err.message, "not a regular file"),
                  "%s", r.err.message);
        CHECK(unlink(path) == 0 && mkdir(path, 0700) == 0 && run_convert(&r) == TC_ERR_IO);
        CHECK_MSG(strstr(r.err.message, names[i]) && strstr(r.err.message, "is a folder"), "%s",
                  r.err.message);
        CHECK(rmdir(path) == 0 && (!had || rename(kept, path) == 0));
    }
    if (geteuid() != 0) { /* root may search every folder */
        CHECK(chmod(r.folder, 0600) == 0 && run_convert(&r) == TC_ERR_IO);
        CHECK_MSG(strstr(r.err.message, "config.json: cannot open: Permission"), "%s",
                  r.err.message);
        CHECK(chmod(r.folder, 0700) == 0);
    }
    CHECK_MSG(run_convert(&r) == TC_OK, "%s", r.err.message);
    model_free(&m);
    run_end(&r);
}

static bool holds(const char *path, const char *text) {
    char bytes[64] = {0};
    FILE *file = fopen(path, "rb");
    size_t n = file ? fread(bytes, 1, sizeof bytes - 1, file) : 0;
    if (file) fclose(file);
    return n == strlen(text) && !strcmp(bytes, text);
}

TEST(an_output_is_replaced_only_after_success) {
    run r;
    model m = model_default;
    tc__flag cancel = {0};
    REQUIRE(run_begin(&r));
    model_fill(&m);
    CHECK(write_file(r.folder, "model.bin", "precious", 8));
    entry *last = model_find(&m, "down_proj.scales"); /* found bad only when it is its turn */
    uint16_t kept, bad = 0x7e00;
    memcpy(&kept, last->data, 2);
    memcpy(last->data + 16 * 2 * 5, &bad, 2);
    CHECK(run_model(&r, &m) == TC_ERR_FORMAT);
    CHECK(holds(r.output, "precious") && count_files(r.folder) == 3);
    memcpy(last->data + 16 * 2 * 5, &kept, 2);
    r.options.cancel = &cancel;
    tc__flag_set(&cancel, true);
    CHECK(run_model(&r, &m) == TC_ERR_CANCELLED);
    CHECK(holds(r.output, "precious") && count_files(r.folder) == 3);
    tc__flag_set(&cancel, false);
    CHECK(run_model(&r, &m) == TC_OK);
    CHECK(r.open && count_files(r.folder) == 3);

    char other[2 * PROGRAM_PATH]; /* a link, and what it points to */
    struct stat info;
    snprintf(other, sizeof other, "%s/other.bin", r.folder);
    CHECK(rename(r.output, other) == 0 && symlink("other.bin", r.output) == 0);
    CHECK(write_file(r.folder, "other.bin", "old", 3) && chmod(other, 0640) == 0);
    CHECK(run_convert(&r) == TC_OK && count_files(r.folder) == 4);
    CHECK(lstat(r.output, &info) == 0 && S_ISLNK(info.st_mode));
    CHECK(stat(other, &info) == 0 && info.st_size > 3 && (info.st_mode & 0777) == 0640);
    model_free(&m);
    run_end(&r);
}

TEST(outputs_that_cannot_be_are_refused) {
    run r;
    model m = model_default;
    char other[2 * PROGRAM_PATH];
    REQUIRE(run_begin(&r));
    model_fill(&m);
    r.options.output = r.folder;
    CHECK(run_model(&r, &m) == TC_ERR_ARGUMENT && strstr(r.err.message, "is a folder"));
    snprintf(other, sizeof other, "%s/./model.safetensors", r.folder);
    r.options.output = other;
    CHECK(run_model(&r, &m) == TC_ERR_ARGUMENT && strstr(r.err.message, "part of the checkpoint"));
    snprintf(other, sizeof other, "%s/config.json", r.folder);
    CHECK(run_model(&r, &m) == TC_ERR_ARGUMENT && strstr(r.err.message, "part of the checkpoint"));
    char dump[2 * PROGRAM_PATH]; /* weights from elsewhere: the folder's own are not read */
    snprintf(dump, sizeof dump, "%s.safetensors", r.folder);
    snprintf(other, sizeof other, "%s/model.safetensors", r.folder);
    CHECK(rename(other, dump) == 0);
    r.options.awq = dump;
    static const char *const weights[] = {"model.safetensors", "model-00001-of-00002.safetensors",
                                          "pytorch_model.bin"};
    for (size_t i = 0; i < TC_COUNT(weights); i++) {
        snprintf(other, sizeof other, "%s/%s", r.folder, weights[i]);
        CHECK(write_file(r.folder, weights[i], "precious", 8));
        CHECK(run_convert(&r) == TC_ERR_ARGUMENT &&
              strstr(r.err.message, "part of the checkpoint"));
        CHECK(unlink(other) == 0);
    }
    r.options.awq = NULL;
    CHECK(unlink(dump) == 0);
    snprintf(other, sizeof other, "%s/no/such/folder/model.bin", r.folder);
    CHECK(run_model(&r, &m) == TC_ERR_IO && strstr(r.err.message, other));
    r.options.output = "/dev/full/x";
    CHECK(run_model(&r, &m) == TC_ERR_IO);
    snprintf(other, sizeof other, "%s/pipe", r.folder);
    r.options.output = other;
    CHECK(mkfifo(other, 0600) == 0);
    CHECK(run_model(&r, &m) == TC_ERR_ARGUMENT && strstr(r.err.message, "not a regular file"));
    CHECK(unlink(other) == 0);
    CHECK(count_files(r.folder) == 2);
    model_free(&m);
    run_end(&r);
}

TEST(verify_names_the_damaged_tensor) {
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    model_fill(&m);
    REQUIRE(run_model(&r, &m) == TC_OK && r.open);
    const tc__tensor *t = tc__find_tensor(&r.file, "0.gate_up");
    size_t at = (size_t)(t->data - r.file.map.data) + 77;
    int file = open(r.output, O_RDWR);
    uint8_t byte;
    CHECK(pread(file, &byte, 1, (off_t)at) == 1);
    byte ^= 4;
    CHECK(pwrite(file, &byte, 1, (off_t)at) == 1);
    close(file);
    FILE *nowhere = program_temporary();
    CHECK(inspect_verify(r.output, nowhere, NULL, NULL, &r.err) == TC_ERR_FORMAT);
    CHECK(strstr(r.err.message, "'0.gate_up' is damaged") != NULL);
    fclose(nowhere);
    model_free(&m);
    run_end(&r);
}

/* ---- the program ---- */

static int run_program(const char *const *arguments, char *out, char *messages) {
    const char *argv[16] = {program_convert()};
    for (size_t i = 0; arguments[i] && i < TC_COUNT(argv) - 2; i++) argv[i + 1] = arguments[i];
    return program_run(argv, out, 4096, messages, 4096);
}

static int lines(const char *text) {
    int n = 0;
    for (; *text; text++) n += *text == '\n';
    return n;
}

TEST(exit_codes_and_one_line_messages) {
    char out[4096], messages[4096];
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    if (access(program_convert(), X_OK)) {
        run_end(&r);
        SKIP("%s is not built", program_convert());
    }
    model_fill(&m);
    model_write(&m, r.folder);
    const struct {
        const char *arguments[9];
        int code;
        const char *message; /* in stderr, or stdout when it succeeds */
    } cases[] = {
        {{NULL}, 2, "--hf DIR is missing"},
        {{"--help", NULL}, 0, "Exit codes: 0 success"},
        {{"--version", NULL}, 0, TC_VERSION},
        {{"--frobnicate", NULL}, 2, "unknown argument: --frobnicate"},
        {{"--hf", NULL}, 2, "no value after --hf"},
        {{"--awq", "x.pt", NULL}, 2, "--awq needs --hf"},
        {{"--hf", r.folder, "-o", "", NULL}, 2, "--output: expected the name of a file"},
        {{"--hf", r.folder, "--template", "nope", NULL}, 2, "llama-2, vicuna, human, "},
        {{"--inspect", "a", "--verify", "b", NULL}, 2, "stand alone"},
        {{"--hf", "/nonexistent", NULL}, 1, "no such folder"},
        {{"--hf", "/", NULL}, 3, "no config.json"},
        {{"--hf", r.folder, "-o", r.output, NULL}, 3, "--no-tokenizer"},
        {{"--hf", r.folder, "--awq", r.output, "-o", r.output, NULL}, 1, "No such file"},
        {{"--hf", r.folder, "-o", r.folder, "--no-tokenizer", NULL}, 2, "is a folder"},
        {{"--verify", "/nonexistent", NULL}, 1, "No such file"},
        {{"--hf", r.folder, "-o", r.output, "--no-tokenizer", NULL},
         0,
         "group size 64; safetensors"},
        {{"--verify", r.output, NULL}, 0, "all checksums are right"},
        {{"--inspect", r.output, NULL}, 0, "0.gate_up"},
        {{"--inspect", r.folder, NULL}, 0, "packing B, [64, 128], group size 64"},
        {{"-q", "--hf", r.folder, "--output", r.output, "--no-tokenizer", NULL}, 0, ""},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        int code = run_program(cases[i].arguments, out, messages);
        const char *text = cases[i].code ? messages : out;
        CHECK_MSG(code == cases[i].code, "%zu: exit code %d: %s", i, code, messages);
        CHECK_MSG(strstr(text, cases[i].message), "%zu: %s", i, text);
        if (cases[i].code) CHECK_MSG(lines(messages) == 1 && out[0] == 0, "%zu: %s", i, messages);
    }
    CHECK(out[0] == 0 && messages[0] == 0); /* -q */
    model_free(&m);
    run_end(&r);
}

/* The program by way of the shell's `command`, with "$@"; its stdout goes to `out` (-1: ours). */
static pid_t start_program(const run *r, const char *command, int out) {
    const char *argv[] = {"sh",   "-c",      command,          "sh", program_convert(),
                          "--hf", r->folder, "--no-tokenizer", "-o", r->output,
                          NULL};
    pid_t child = fork();
    if (child) return child;
    signal(SIGINT, SIG_DFL);
    if (out >= 0) dup2(out, 1);
    execv("/bin/sh", (char *const *)argv);
    _exit(127);
}

static int end_of(pid_t child) {
    int status;
    if (waitpid(child, &status, 0) != child) return -1;
    return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

/* Converts and sends a signal as soon as the work begins, which the program's first line says. */
static int interrupted(const run *r, const char *command, int number) {
    int ends[2];
    char byte;
    if (pipe(ends)) return -1;
    pid_t child = start_program(r, command, ends[1]);
    close(ends[1]);
    CHECK(read(ends[0], &byte, 1) == 1 && kill(child, number) == 0);
    while (read(ends[0], &byte, 1) == 1) continue;
    close(ends[0]);
    return end_of(child);
}

/* Signals come when they like: the conversion may have ended before. But it is never cut off. */
TEST(no_signal_leaves_a_half_file) {
    static const int numbers[] = {SIGINT, SIGTERM, SIGHUP};
    run r;
    model m = model_default;
    REQUIRE(run_begin(&r));
    if (access(program_convert(), X_OK)) {
        run_end(&r);
        SKIP("%s is not built", program_convert());
    }
    m.hidden = m.intermediate = 1024;
    model_fill(&m);
    model_write(&m, r.folder);
    for (size_t i = 0; i < TC_COUNT(numbers); i++) {
        int code = interrupted(&r, "exec $TEST_WRAPPER \"$@\" 2> /dev/null", numbers[i]);
        CHECK_MSG(code == 0 || code == 1, "signal %d: exit code %d", numbers[i], code);
        if (!code) CHECK(unlink(r.output) == 0);
        CHECK_MSG(count_files(r.folder) == 2, "signal %d", numbers[i]);
        code = interrupted(&r, "trap '' INT TERM HUP; exec $TEST_WRAPPER \"$@\"", numbers[i]);
        CHECK_MSG(code == 0 && unlink(r.output) == 0, "%d, ignored: %d", numbers[i], code);
    }
    int code =
        end_of(start_program(&r, "ulimit -f 8; exec $TEST_WRAPPER \"$@\" > /dev/null 2>&1", -1));
    CHECK_MSG(code == 1 && count_files(r.folder) == 2, "ulimit: exit code %d", code);
    model_free(&m);
    run_end(&r);
}

TEST(help_names_the_program_and_fails_with_its_output) {
    char out[4096], messages[4096], link[2 * PROGRAM_PATH], program[PROGRAM_PATH];
    run r;
    REQUIRE(run_begin(&r));
    snprintf(link, sizeof link, "%s/tinychat-convert", r.folder);
    if (!realpath(program_convert(), program) || symlink(program, link)) {
        run_end(&r);
        SKIP("%s is not built", program_convert());
    }
    const char *help[] = {link, "--help", NULL}, *wrong[] = {link, "--wrong", NULL};
    CHECK(program_run(help, out, sizeof out, messages, sizeof messages) == 0);
    CHECK_MSG(strstr(out, "usage: tinychat-convert --hf DIR [--awq") &&
                  strstr(out, "\n       tinychat-convert --verify model.bin\n"),
              "%s", out);
    CHECK(program_run(wrong, out, sizeof out, messages, sizeof messages) == 2);
    CHECK_MSG(strstr(messages, "tinychat-convert: unknown argument: --wrong; see tinychat-convert"),
              "%s", messages);
    const char *wrapper = getenv("TEST_WRAPPER"); /* of the program, not of the shell */
    char *kept = wrapper ? tc__copy(wrapper, strlen(wrapper)) : NULL;
    const char *full[] = {"sh", "-c", "exec $2 \"$1\" --help > /dev/full",
                          "sh", link, kept ? kept : "", NULL};
    if (access("/dev/full", W_OK) == 0) {
        unsetenv("TEST_WRAPPER");
        CHECK(program_run(full, out, sizeof out, messages, sizeof messages) == 1);
        CHECK_MSG(strstr(messages, "cannot write to standard output"), "%s", messages);
        if (kept) setenv("TEST_WRAPPER", kept, 1);
    }
    free(kept);
    run_end(&r);
}

#if defined(__SANITIZE_ADDRESS__)
#define SANITIZED 1
#elif defined(__has_feature)
#if __has_feature(address_sanitizer)
#define SANITIZED 1
#endif
#endif

#ifndef SANITIZED
/* Converts with 16 MB for data (RLIMIT_DATA counts anonymous memory, not mapped files). `option`
 * and `value` may be NULL. */
static void check_memory(const run *r, const char *option, const char *value) {
    char limited[64] = "ulimit -d 16384 && exec \"$@\"", out[4096], messages[4096];
    const char *argv[] = {"sh",
                          "-c",
                          limited,
                          "sh",
                          program_convert(),
                          "--hf",
                          r->folder,
                          "--no-tokenizer",
                          "-o",
                          r->output,
                          option,
                          value,
                          NULL};
    int code = program_run(argv, out, sizeof out, messages, sizeof messages);
    CHECK_MSG(code == 0, "exit code %d: %s", code, messages);
}
#endif

/* 84 MB of packed weights; then 52 MB of 16-bit ones, copied and quantised. */
TEST(memory_does_not_grow_with_the_model) {
#ifdef SANITIZED
    SKIP("sanitizers reserve memory of their own");
#else
    const char *wrapper = getenv("TEST_WRAPPER");
    run r;
    if (wrapper && wrapper[0]) SKIP("an emulator needs memory of its own");
    if (access(program_convert(), X_OK)) SKIP("%s is not built", program_convert());
    REQUIRE(run_begin(&r));
    for (int plain = 0; plain < 2; plain++) {
        model m = model_default;
        m.vocab = plain ? 1000 : 10000, m.hidden = 2048;
        m.group = 128, m.head_dim = 64, m.intermediate = plain ? 3584 : 128;
        if (plain) m.packing = 0;
        model_fill(&m);
        model_write(&m, r.folder);
        model_free(&m);
        check_memory(&r, NULL, NULL);
        if (plain) check_memory(&r, "--quantize", "rtn");
    }
    run_end(&r);
#endif
}

/* clang-format off */
TEST_MAIN(
    RUN(golden_vectors_of_the_original_packers)
    RUN(every_packing_and_group_size_round_trips)
    RUN(zero_points_of_gemv_fast_are_called_qzeros)
    RUN(row_counts_need_not_be_multiples_of_16)
    RUN(large_groups_and_whole_rows_are_expanded)
    RUN(scales_of_other_types_are_converted_exactly)
    RUN(sixteen_bit_weights_are_copied_bit_for_bit)
    RUN(binary32_weights_become_16_bit)
    RUN(a_tied_head_is_left_out)
    RUN(settings_that_would_change_answers_are_refused)
    RUN(tensors_that_do_not_fit_are_named)
    RUN(foreign_layers_are_recognised_by_shape)
    RUN(parts_of_a_joined_matrix_must_be_alike)
    RUN(bad_scales_are_named_with_row_and_group)
    RUN(impossible_group_sizes_are_refused)
    RUN(the_folder_s_description_is_compared)
    RUN(hyper_parameters_reach_the_file)
    RUN(folders_of_the_hubs_cache_are_named_by_their_repository)
    RUN(rope_scalings_are_those_of_transformers)
    RUN(sliding_windows_limit_the_context)
    RUN(stop_ids_of_both_files_are_united)
    RUN(tokenizers_that_would_differ_are_refused)
    RUN(tokenizer_settings_reach_the_file)
    RUN(a_folder_without_a_tokenizer_needs_a_flag)
    RUN(a_tokenizer_json_is_imported)
    RUN(a_template_s_closing_token_is_a_stop_id)
    RUN(a_template_for_another_tokenizer_is_refused)
    RUN(templates_are_chosen_by_flag_fingerprint_and_name)
    RUN(templates_are_recognised_by_marks)
    RUN(templates_are_recognised_by_names)
    RUN(files_that_cannot_be_read_are_named)
    RUN(an_output_is_replaced_only_after_success)
    RUN(outputs_that_cannot_be_are_refused)
    RUN(verify_names_the_damaged_tensor)
    RUN(exit_codes_and_one_line_messages)
    RUN(no_signal_leaves_a_half_file)
    RUN(help_names_the_program_and_fails_with_its_output)
    RUN(memory_does_not_grow_with_the_model))
