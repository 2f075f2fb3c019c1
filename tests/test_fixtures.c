/* The engine against transformers, end to end: every checkpoint is converted by the real program
 * and evaluated through the public API, and the logits are compared with stored fp32 references.
 *
 * Two sets of checkpoints: the small ones in tests/data (tests/make_data.py), always; and those
 * that the original llm-awq code wrote, where $TINYCHAT_FIXTURES names the folder they are in.
 */
#include "reference.h"

/* ---- q, scales and zero points against digests of the original integers ---- */

/* Reads one row of a W4 tensor: q [columns], and scale bits and zero points [columns / group]. */
static void read_row(const tc__tensor *t, size_t row, uint8_t *q, uint16_t *scales,
                     uint8_t *zeros) {
    size_t group = t->group_size, groups = t->columns / group, in = row % TC__UNIT_ROWS, j, k;
    for (j = 0; j < groups; j++) {
        const uint8_t *unit = t->data + (row / TC__UNIT_ROWS * groups + j) * TC__UNIT_BYTES(group);
        uint16_t pair[2];
        memcpy(pair, unit + 8 * group + 8 * (in & 7) + 4 * (in >> 3), sizeof pair);
        scales[j] = pair[0];
        zeros[j] = (uint8_t)tc__f16_to_f32(pair[1]);
        for (k = 0; k < group; k++) {
            unsigned offset, shift;
            tc__unit_place((unsigned)group, (unsigned)in, (unsigned)k, &offset, &shift);
            q[j * group + k] = unit[offset] >> shift & 15;
        }
    }
}

/* Where rows of a checkpoint's matrix lie in the model file's. */
typedef struct place {
    const char *suffix, *tensor;
    int part; /* of qkv: how many heads' rows lie before; of gate_up: 0 gate, 1 up */
} place;

static size_t place_row(const place *p, size_t row, const tc__model_file *file, tc_error *err) {
    uint32_t heads = 0, kv_heads = 0, head_dim = 0;
    if (!strcmp(p->tensor, "gate_up")) return row / 8 * 16 + (size_t)p->part * 8 + row % 8;
    if (strcmp(p->tensor, "qkv")) return row;
    tc__meta_u32(file, "arch.heads", &heads, err);
    tc__meta_u32(file, "arch.kv_heads", &kv_heads, err);
    tc__meta_u32(file, "arch.head_dim", &head_dim, err);
    return row + (size_t)head_dim * (p->part == 0 ? 0 : p->part == 1 ? heads : heads + kv_heads);
}

static void check_digest(const refs *r, const tc__model_file *file, const json_value *key) {
    static const place places[] = {{"self_attn.q_proj", "qkv", 0},
                                   {"self_attn.k_proj", "qkv", 1},
                                   {"self_attn.v_proj", "qkv", 2},
                                   {"self_attn.o_proj", "o", 0},
                                   {"mlp.gate_proj", "gate_up", 0},
                                   {"mlp.up_proj", "gate_up", 1},
                                   {"mlp.down_proj", "down", 0},
                                   /* MPT; Falcon with one KV head: q, k and v are joined already */
                                   {"attn.Wqkv", "qkv", 0},
                                   {"attn.out_proj", "o", 0},
                                   {"ffn.up_proj", "up", 0},
                                   {"ffn.down_proj", "down", 0},
                                   {"self_attention.query_key_value", "qkv", 0},
                                   {"self_attention.dense", "o", 0},
                                   {"mlp.dense_h_to_4h", "up", 0},
                                   {"mlp.dense_4h_to_h", "down", 0}};
    const json_value *entry = json_member(key);
    const place *p = places;
    tc__buf name = {0};
    char tensor_name[64], want[4][16], got[4][16];
    static const char *const keys[] = {"q_crc32", "z_crc32", "s_crc32", "w_f32_crc32"};
    uint32_t crc[4] = {0};
    const tc__tensor *t;
    int64_t n = 0, k = 0;
    size_t row, j;
    int layer;
    tc_error err;
    uint8_t *q, *zeros;
    uint16_t *scales;
    float *w;
    json_string(&r->doc, key, &name);
    REQUIRE(name.data && sscanf(name.data, "%*[a-z.]%d.", &layer) == 1);
    while (p < places + TC_COUNT(places) && !strstr(name.data, p->suffix)) p++;
    REQUIRE(p < places + TC_COUNT(places));
    snprintf(tensor_name, sizeof tensor_name, "%d.%s", layer, p->tensor);
    t = tc__find_tensor(file, tensor_name);
    REQUIRE(t && t->type == TC__W4);
    REQUIRE(json_int(&r->doc, refs_get(r, entry, "n"), &n) && n > 0);
    REQUIRE(json_int(&r->doc, refs_get(r, entry, "k"), &k) && (size_t)k == t->columns);
    q = tc__calloc((size_t)k, 1), zeros = tc__calloc((size_t)k, 1);
    scales = tc__calloc((size_t)k, sizeof *scales), w = tc__calloc((size_t)k, sizeof *w);
    for (row = 0; row < (size_t)n; row++) {
        read_row(t, place_row(p, row, file, &err), q, scales, zeros);
        for (j = 0; j < (size_t)k; j++) {
            size_t g = j / t->group_size;
            w[j] = tc__f16_to_f32(scales[g]) * (float)((int)q[j] - (int)zeros[g]);
        }
        crc[0] = tc__crc32(crc[0], q, (size_t)k);
        crc[1] = tc__crc32(crc[1], zeros, (size_t)k / t->group_size);
        crc[2] = tc__crc32(crc[2], scales, (size_t)k / t->group_size * sizeof *scales);
        crc[3] = tc__crc32(crc[3], w, (size_t)k * sizeof *w);
    }
    for (j = 0; j < 4; j++) {
        tc__buf text = {0};
        json_string(&r->doc, refs_get(r, entry, keys[j]), &text);
        snprintf(want[j], sizeof want[j], "%s", text.data ? text.data : "missing");
        snprintf(got[j], sizeof got[j], "%08x", (unsigned)crc[j]);
        CHECK_MSG(!strcmp(want[j], got[j]), "%s %s: %s, not %s", name.data, keys[j], got[j],
                  want[j]);
        tc__buf_free(&text);
    }
    free(q), free(zeros), free(scales), free(w);
    tc__buf_free(&name);
}

/* The model file holds exactly the integers and scales that the original packers were given. */
static void check_digests(const char *folder, const fixture *f) {
    char temporary[PROGRAM_PATH], path[2 * PROGRAM_PATH];
    const json_value *linears, *key;
    tc__model_file file;
    refs r;
    tc_error err;
    memset(&r, 0, sizeof r);
    REQUIRE(program_folder(temporary));
    snprintf(path, sizeof path, "%s/quant_digest.json", folder);
    CHECK_MSG(json_open(path, &r.doc, &err) == TC_OK, "%s", err.message);
    snprintf(path, sizeof path, "%s/model.bin", temporary);
    if (convert(folder, f, path)) {
        CHECK_MSG(tc__model_file_open(path, &file, &err) == TC_OK, "%s", err.message);
        linears = refs_get(&r, json_root(&r.doc), "linears");
        CHECK(json_count(linears) > 0);
        for (key = json_first(linears); key; key = json_next(linears, key))
            check_digest(&r, &file, key);
        tc__model_file_close(&file);
    }
    json_close(&r.doc);
    program_remove_folder(temporary);
}

/* ---- the tests ---- */

/* The folder of a model among the unpacked fixtures; false where they are not. */
static bool fixture_folder(char folder[PROGRAM_PATH], const char *model) {
    const char *root = getenv("TINYCHAT_FIXTURES");
    if (!root) return false;
    snprintf(folder, PROGRAM_PATH, "%s/%s", root, model);
    return access(folder, R_OK) == 0;
}

#define NO_FIXTURES "$TINYCHAT_FIXTURES names no folder with %s", folder

static const fixture llama_tiny_files[] = {
    {"hf", "quant/llama-tiny-w4-g128-awq.pt", "w4", true, 0, NULL},
    {"hf", "quant/llama-tiny-w4-g128-awq-a.pt", "w4", true, 0, NULL},
    {"hf", "quant/llama-tiny-w4-g128-awq-v2.pt", "w4", true, 0, NULL},
    {"hf", "quant/llama-tiny-w4-g128-awq", "w4", true, 0, NULL},
    {"hf", "quant/llama-tiny-w4-g128-awq-legacy.pt", "w4", true, 0, NULL},
    {"autoawq", NULL, "w4", true, 0, NULL},
    {"hf", NULL, "w16", true, 0, NULL},
    {"hf-bin", NULL, "w16", true, 0, NULL},
};

static const fixture llama_gqa_tiny_files[] = {
    {"hf", "quant/llama-gqa-tiny-w4-g128-awq.pt", "w4", false, 0, NULL},
    {"hf", "quant/llama-gqa-tiny-w4-g128-awq-a.pt", "w4", false, 0, NULL},
    {"hf", "quant/llama-gqa-tiny-w4-g128-awq-v2.pt", "w4", false, 0, NULL},
    {"hf", NULL, "w16", false, 0, NULL},
};

static const fixture mpt_tiny_files[] = {
    {"hf", "quant/mpt-tiny-w4-g128-awq.pt", "w4", true, 0, NULL},
    {"hf", "quant/mpt-tiny-w4-g128-awq-a.pt", "w4", true, 0, NULL},
    {"hf", "quant/mpt-tiny-w4-g128-awq-v2.pt", "w4", true, 0, NULL},
    {"hf", NULL, "w16", true, 0, NULL},
};

static const fixture falcon_tiny_files[] = {
    {"hf", "quant/falcon-tiny-w4-g64-awq.pt", "w4", true, 0, NULL},
    {"hf", "quant/falcon-tiny-w4-g64-awq-a.pt", "w4", true, 0, NULL},
    {"hf", NULL, "w16", true, 0, NULL},
};

static const fixture qwen2_tiny_files[] = {
    {"hf", "quant/qwen2-tiny-w4-g128-awq.pt", "w4", true, 0, NULL},
    {"hf", "quant/qwen2-tiny-w4-g128-awq-a.pt", "w4", true, 0, NULL},
    {"hf", "quant/qwen2-tiny-w4-g128-awq-v2.pt", "w4", true, 0, NULL},
    {"autoawq", NULL, "w4", true, 0, NULL},
    {"hf", NULL, "w16", true, 0, NULL},
};

/* The logits of all files of a model, and the integers in its first `packed` ones. */
#define FIXTURE_TESTS(test, model, files, packed)                                                  \
    TEST(test) {                                                                                   \
        char folder[PROGRAM_PATH] = model;                                                         \
        if (!fixture_folder(folder, model)) SKIP(NO_FIXTURES);                                     \
        check_folder(folder, folder, files, TC_COUNT(files), "len17");                             \
    }                                                                                              \
    TEST(test##_integers) {                                                                        \
        char folder[PROGRAM_PATH] = model;                                                         \
        if (!fixture_folder(folder, model)) SKIP(NO_FIXTURES);                                     \
        for (size_t i = 0; i < (packed); i++) check_digests(folder, &(files)[i]);                  \
    }

FIXTURE_TESTS(llama_tiny, "llama-tiny", llama_tiny_files, 3)
FIXTURE_TESTS(llama_gqa_tiny, "llama-gqa-tiny", llama_gqa_tiny_files, 3)
FIXTURE_TESTS(mpt_tiny, "mpt-tiny", mpt_tiny_files, 3)
FIXTURE_TESTS(falcon_tiny, "falcon-tiny", falcon_tiny_files, 2)
FIXTURE_TESTS(qwen2_tiny, "qwen2-tiny", qwen2_tiny_files, 3)

TEST(llama_small) {
    static const fixture files[] = {{"hf", NULL, "w16", false, 0, NULL},
                                    {"hf-bin", NULL, "w16", false, 0, NULL},
                                    {"hf-bf16", NULL, "bf16", false, 0, NULL},
                                    {"hf", "g64-b.pt", "g64", false, 0, NULL},
                                    {"hf", "g64-a.pt", "g64", false, 0, NULL},
                                    {"hf", "g64-c.pt", "g64", false, 0, NULL},
                                    {"hf", "g64-b-legacy.pt", "g64", false, 0, NULL},
                                    {"hf", "g64-b-split", "g64", false, 0, NULL},
                                    {"autoawq", NULL, "g64", false, 0, NULL},
                                    {"hf", "g32-b.pt", "g32", true, 0, NULL},
                                    {"autoawq-mixed", NULL, "mixed", false, 0, NULL}};
    check_folder("tests/data/llama-small", "tests/data/llama-small", files, TC_COUNT(files),
                 "len150");
}

TEST(llama_128) {
    static const fixture files[] = {{"hf-awq", NULL, "g128", false, 0, NULL},
                                    {"hf-awq", "g128-b.pt", "g128", false, 0, NULL},
                                    {"hf-awq", "g128-c.pt", "g128", false, 0, NULL}};
    check_folder("tests/data/llama-128", "tests/data/llama-128", files, TC_COUNT(files), "len150");
}

TEST(llama_rows) {
    static const fixture files[] = {{"autoawq", NULL, "rows", false, 0, NULL},
                                    {"autoawq", "rows-b.pt", "rows", false, 0, NULL},
                                    {"autoawq", "rows-c.pt", "rows", false, 0, NULL}};
    check_folder("tests/data/llama-rows", "tests/data/llama-rows", files, TC_COUNT(files), "len60");
}

TEST(llama_256) {
    static const fixture files[] = {{"hf", "g256-b.pt", "g256", false, 0, NULL}};
    check_folder("tests/data/llama-256", "tests/data/llama-256", files, TC_COUNT(files), "len60");
}

TEST(llama_odd) {
    static const fixture files[] = {{"hf", "g32-c.pt", "g32", false, 0, NULL}};
    check_folder("tests/data/llama-odd", "tests/data/llama-odd", files, TC_COUNT(files), "len256");
}

TEST(llama_odd16) {
    static const fixture files[] = {{"hf", NULL, "w16", false, 0, NULL}};
    check_folder("tests/data/llama-odd16", "tests/data/llama-odd16", files, TC_COUNT(files),
                 "len100");
}

/* clang-format off */
TEST_MAIN(
    RUN(llama_small)
    RUN(llama_128)
    RUN(llama_rows)
    RUN(llama_256)
    RUN(llama_odd)
    RUN(llama_odd16)
    RUN(llama_tiny)
    RUN(llama_tiny_integers)
    RUN(llama_gqa_tiny)
    RUN(llama_gqa_tiny_integers)
    RUN(mpt_tiny)
    RUN(mpt_tiny_integers)
    RUN(falcon_tiny)
    RUN(falcon_tiny_integers)
    RUN(qwen2_tiny)
    RUN(qwen2_tiny_integers))
