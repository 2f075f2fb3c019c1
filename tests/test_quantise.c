/* 4-bit numbers by convert, from every source: compressed-tensors, GPTQ, rows in Falcon-40B's order
 * (tests/make_quant_data.py made these and knows what they hold), AWQ search results applied to
 * 16-bit weights, and rounding to nearest.
 *
 * Where $TINYCHAT_FIXTURES has checkpoints of the original llm-awq code, what the search results
 * give must be what llm-awq gave, tensor by tensor.
 */
#include "convert.h"
#include "convert/json.h"
#include "forge.h"
#include "inspect.h"
#include "program.h"
#include "quantise.h"
#include "src/arch.h"
#include "test.h"

#include <math.h>

#define DATA "tests/data/quant/"

/* ---- converting ---- */

typedef struct run {
    char folder[PROGRAM_PATH], output[PROGRAM_PATH + 16];
    convert_options options;
    convert_summary summary;
    tc_error err;
    tc__buf notes;
    tc__model_file file;
    bool open;
} run;

static void keep_note(void *user, const char *line) {
    tc__buf_printf(user, "%s\n", line);
}

static bool run_begin(run *r, const char *hf) {
    memset(r, 0, sizeof *r);
    if (!program_folder(r->folder)) return false;
    snprintf(r->output, sizeof r->output, "%s/model.bin", r->folder);
    r->options.hf = hf;
    r->options.output = r->output;
    r->options.no_tokenizer = true;
    r->options.note = keep_note;
    r->options.user = &r->notes;
    return true;
}

static int run_convert(run *r) {
    int code = convert_run(&r->options, &r->summary, &r->err);
    if (code) return code;
    r->open = tc__model_file_open(r->output, &r->file, &r->err) == TC_OK;
    CHECK_MSG(r->open, "%s", r->err.message);
    tc__weights weights;
    CHECK_MSG(tc__weights_open(&r->file, &weights, &r->err) == TC_OK, "%s", r->err.message);
    tc__weights_close(&weights);
    return r->open ? TC_OK : TC_ERR_FORMAT;
}

static void run_end(run *r) {
    if (r->open) tc__model_file_close(&r->file);
    tc__buf_free(&r->notes);
    program_remove_folder(r->folder);
}

/* ---- reading W4 tensors, by docs/format.md ---- */

static void w4_group(const tc__tensor *t, size_t row, size_t group, uint8_t *q, uint16_t *scale,
                     uint8_t *zero) {
    size_t g = t->group_size;
    const uint8_t *unit = t->data + (row / 16 * (t->columns / g) + group) * (8 * g + 64);
    uint16_t pair[2];
    for (size_t k = 0; k < g; k++) {
        unsigned offset, shift;
        tc__unit_place((unsigned)g, (unsigned)(row % 16), (unsigned)k, &offset, &shift);
        q[k] = unit[offset] >> shift & 15;
    }
    memcpy(pair, unit + 8 * g + 8 * (row & 7) + 4 * (row >> 3 & 1), sizeof pair);
    *scale = pair[0];
    *zero = (uint8_t)tc__f16_to_f32(pair[1]);
}

/* ---- where the rows of a checkpoint's layer are in the model file ---- */

typedef struct sizes {
    uint32_t heads, kv_heads, head_dim;
} sizes;

static size_t same(const sizes *s, size_t row) {
    (void)s;
    return row;
}

static size_t gate(const sizes *s, size_t row) {
    (void)s;
    return row / 8 * 16 + row % 8;
}

static size_t up(const sizes *s, size_t row) {
    return gate(s, row) + 8;
}

static size_t k_rows(const sizes *s, size_t row) {
    return s->heads * s->head_dim + row;
}

static size_t v_rows(const sizes *s, size_t row) {
    return (s->heads + s->kv_heads) * s->head_dim + row;
}

/* Falcon-40B: for each key-value head its query heads, its key, its value. */
static size_t falcon_rows(const sizes *s, size_t row) {
    size_t head = row / s->head_dim, queries = s->heads / s->kv_heads, in = row % s->head_dim;
    size_t group = head / (queries + 2), at = head % (queries + 2);
    if (at < queries) return (group * queries + at) * s->head_dim + in;
    return at == queries ? k_rows(s, group * s->head_dim + in)
                         : v_rows(s, group * s->head_dim + in);
}

static const struct {
    const char *layer, *tensor;
    size_t (*row)(const sizes *s, size_t row);
} places[] = {
    {"self_attn.q_proj", "0.qkv", same},   {"self_attn.k_proj", "0.qkv", k_rows},
    {"self_attn.v_proj", "0.qkv", v_rows}, {"self_attn.o_proj", "0.o", same},
    {"mlp.gate_proj", "0.gate_up", gate},  {"mlp.up_proj", "0.gate_up", up},
    {"mlp.down_proj", "0.down", same},     {"attn.Wqkv", "0.qkv", same},
    {"attn.out_proj", "0.o", same},        {"ffn.up_proj", "0.up", same},
    {"ffn.down_proj", "0.down", same},     {"self_attention.query_key_value", "0.qkv", falcon_rows},
    {"self_attention.dense", "0.o", same}, {"mlp.dense_h_to_4h", "0.up", same},
    {"mlp.dense_4h_to_h", "0.down", same},
};

/* ---- digests ---- */

static void check_crc(const json_doc *doc, const json_value *want, uint32_t crc, const char *what) {
    tc__buf text = {0};
    char got[16];
    json_string(doc, want, &text);
    snprintf(got, sizeof got, "%08x", (unsigned)crc);
    CHECK_MSG(text.data && !strcmp(text.data, got), "%s: %s, not %s", what, got,
              text.data ? text.data : "there");
    tc__buf_free(&text);
}

static void check_linear(const run *r, const json_doc *doc, const json_value *key) {
    static const char *const keys[] = {"q_crc32", "z_crc32", "s_crc32"};
    const json_value *entry = json_member(key);
    tc__buf name = {0};
    size_t p = 0;
    int64_t n = 0;
    uint32_t crc[3] = {0};
    sizes s = {0, 0, 0};
    tc_error err;
    json_string(doc, key, &name);
    while (p < TC_COUNT(places) && !strstr(name.data, places[p].layer)) p++;
    REQUIRE(p < TC_COUNT(places) && json_int(doc, json_get(doc, entry, "n"), &n));
    const tc__tensor *t = tc__find_tensor(&r->file, places[p].tensor);
    REQUIRE(t && t->type == TC__W4 && (size_t)n <= t->rows);
    tc__meta_u32(&r->file, "arch.heads", &s.heads, &err);
    tc__meta_u32(&r->file, "arch.kv_heads", &s.kv_heads, &err);
    tc__meta_u32(&r->file, "arch.head_dim", &s.head_dim, &err);
    for (size_t row = 0; row < (size_t)n; row++)
        for (size_t j = 0; j < t->columns / t->group_size; j++) {
            uint8_t q[128], zero;
            uint16_t scale;
            w4_group(t, places[p].row(&s, row), j, q, &scale, &zero);
            crc[0] = tc__crc32(crc[0], q, t->group_size);
            crc[1] = tc__crc32(crc[1], &zero, 1);
            crc[2] = tc__crc32(crc[2], &scale, 2);
        }
    for (int i = 0; i < 3; i++) {
        char what[256];
        snprintf(what, sizeof what, "%s %s", name.data, keys[i]);
        check_crc(doc, json_get(doc, entry, keys[i]), crc[i], what);
    }
    tc__buf_free(&name);
}

static void check_vector(const run *r, const json_doc *doc, const json_value *key) {
    tc__buf name = {0};
    json_string(doc, key, &name);
    const tc__tensor *t = tc__find_tensor(&r->file, name.data ? name.data : "");
    CHECK_MSG(t && t->type == TC__F32, "%s is missing", name.data);
    if (t) check_crc(doc, json_member(key), tc__crc32(0, t->data, t->size), name.data);
    tc__buf_free(&name);
}

static void check_digests(const run *r, const char *hf) {
    char path[PROGRAM_PATH];
    json_doc doc;
    tc_error err;
    snprintf(path, sizeof path, "%s/digest.json", hf);
    REQUIRE(json_open(path, &doc, &err) == TC_OK);
    const json_value *linears = json_get(&doc, json_root(&doc), "linears"),
                     *vectors = json_get(&doc, json_root(&doc), "vectors");
    CHECK(json_count(linears) >= 4);
    for (const json_value *key = json_first(linears); key; key = json_next(linears, key))
        check_linear(r, &doc, key);
    for (const json_value *key = json_first(vectors); key; key = json_next(vectors, key))
        check_vector(r, &doc, key);
    json_close(&doc);
}

TEST(every_source_gives_the_numbers_it_was_made_of) {
    static const struct {
        const char *hf, *search, *source;
    } cases[] = {
        {DATA "ct-sym", NULL, "compressed-tensors pack-quantized, group size 32"},
        {DATA "ct-asym", NULL, "compressed-tensors pack-quantized, group size 32"},
        {DATA "ct-asym-bytes", NULL, "compressed-tensors"},
        {DATA "ct-channel", NULL, "group size 64 (and others)"},
        {DATA "gptq", NULL, "GPTQ, group size 32"},
        {DATA "gptq-v2", NULL, "GPTQ, group size 32"},
        {DATA "falcon-40b-a", NULL, "AWQ packing A"},
        {DATA "falcon-40b-b", NULL, "AWQ packing B"},
        {DATA "search-qwen2", DATA "search-qwen2/search.pt", "F16 quantised with AWQ search"},
        {DATA "search-mpt", DATA "search-mpt/search.pt", "F16 quantised with AWQ search"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        run r;
        REQUIRE(run_begin(&r, cases[i].hf));
        r.options.search = cases[i].search;
        int code = run_convert(&r);
        CHECK_MSG(code == TC_OK, "%s: %s", cases[i].hf, r.err.message);
        if (r.open) {
            check_digests(&r, cases[i].hf);
            CHECK_MSG(strstr(r.summary.source, cases[i].source), "%s: %s", cases[i].hf,
                      r.summary.source);
            CHECK_MSG(!r.notes.len, "%s: %s", cases[i].hf, r.notes.data);
        }
        run_end(&r);
    }
}

/* act_scales of ones are left out. */
TEST(activation_scales_are_kept_only_if_they_say_something) {
    run r;
    REQUIRE(run_begin(&r, DATA "falcon-40b-b"));
    CHECK(run_convert(&r) == TC_OK && r.open && !tc__find_tensor(&r.file, "0.act_scales"));
    run_end(&r);
    REQUIRE(run_begin(&r, DATA "search-mpt"));
    r.options.search = DATA "search-mpt/search.pt";
    CHECK(run_convert(&r) == TC_OK && r.open && tc__find_tensor(&r.file, "0.act_scales"));
    run_end(&r);
}

TEST(act_order_is_refused_by_name) {
    static const char *const folders[] = {DATA "ct-act-order", DATA "gptq-act-order"};
    for (size_t i = 0; i < TC_COUNT(folders); i++) {
        run r;
        REQUIRE(run_begin(&r, folders[i]));
        CHECK(run_convert(&r) == TC_ERR_UNSUPPORTED);
        CHECK_MSG(strstr(r.err.message, "act-order") && strstr(r.err.message, "supported: "), "%s",
                  r.err.message);
        run_end(&r);
    }
}

/* ---- the fixtures ---- */

static int count_differences(const tc__model_file *a, const tc__model_file *b) {
    int different = a->tensor_count != b->tensor_count;
    for (size_t i = 0; i < a->tensor_count && i < b->tensor_count; i++) {
        const tc__tensor *x = &a->tensors[i], *y = &b->tensors[i];
        different += x->name_len != y->name_len || memcmp(x->name, y->name, x->name_len) ||
                     x->type != y->type || x->group_size != y->group_size || x->size != y->size ||
                     memcmp(x->data, y->data, x->size);
    }
    return different;
}

TEST(search_results_give_what_llm_awq_gave) {
    static const struct {
        const char *model;
        uint32_t group;
    } cases[] = {{"llama-tiny", 128},
                 {"llama-gqa-tiny", 128},
                 {"mpt-tiny", 128},
                 {"falcon-tiny", 64},
                 {"qwen2-tiny", 128}};
    const char *root = getenv("TINYCHAT_FIXTURES");
    if (!root) SKIP("$TINYCHAT_FIXTURES names no folder of checkpoints by llm-awq");
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        char hf[2 * PROGRAM_PATH], search[2 * PROGRAM_PATH], dump[2 * PROGRAM_PATH];
        const char *model = cases[i].model;
        unsigned group = (unsigned)cases[i].group;
        run one, other;
        snprintf(hf, sizeof hf, "%s/%s/hf", root, model);
        snprintf(search, sizeof search, "%s/%s/awq_cache/%s-w4-g%u.pt", root, model, model, group);
        snprintf(dump, sizeof dump, "%s/%s/quant/%s-w4-g%u-awq.pt", root, model, model, group);
        REQUIRE(run_begin(&one, hf));
        one.options.search = search;
        one.options.group = i % 2 ? 0 : group; /* the search results say it, too */
        CHECK_MSG(run_convert(&one) == TC_OK, "%s: %s", model, one.err.message);
        REQUIRE(run_begin(&other, hf));
        other.options.awq = dump;
        CHECK_MSG(run_convert(&other) == TC_OK, "%s: %s", model, other.err.message);
        if (one.open && other.open) {
            int different = count_differences(&one.file, &other.file);
            CHECK_MSG(different == 0, "%s: %d tensors differ", model, different);
        }
        run_end(&one);
        run_end(&other);
    }
}

/* ---- binary16 ---- */

TEST(rounding_to_binary16_is_exact) {
    uint64_t state = 1;
    for (uint32_t half = 0; half < 0x7c00; half++) { /* each number, and around each midpoint */
        float value = tc__f16_to_f32((uint16_t)half), next = tc__f16_to_f32((uint16_t)(half + 1));
        float middle = (value + next) / 2;
        const float tries[] = {value, middle, nextafterf(middle, 0), nextafterf(middle, 1e9f)};
        for (size_t i = 0; i < TC_COUNT(tries) && half < 0x7bff; i++) {
            float want = tc__f16_to_f32(tc__f32_to_f16(tries[i]));
            CHECK(quantise_round16(tries[i]) == want && quantise_round16(-tries[i]) == -want);
        }
    }
    for (int i = 0; i < 1000000; i++) {
        state = state * 6364136223846793005u + 1442695040888963407u;
        float value = ldexpf((float)(int32_t)(state >> 32), (int)(state >> 20 & 63) - 78);
        float want = tc__f16_to_f32(tc__f32_to_f16(value)), got = quantise_round16(value);
        CHECK(got == want || (isinf(want) && fabsf(got) >= 65536));
    }
    CHECK(quantise_round16(65520) >= 65536 && quantise_round16(65519.99f) == 65504);
}

/* ---- rounding to nearest ---- */

/* A folder with a LLaMA of 64 columns whose weights are `weight(layer, i)`. */
typedef float weight_fn(const char *name, size_t i);

static const struct {
    const char *name;
    uint32_t rows, columns; /* columns 0: a vector */
} tiny[] = {
    {"model.embed_tokens.weight", 16, 64},
    {"model.norm.weight", 64, 0},
    {"model.layers.0.input_layernorm.weight", 64, 0},
    {"model.layers.0.post_attention_layernorm.weight", 64, 0},
    {"model.layers.0.self_attn.q_proj.weight", 64, 64},
    {"model.layers.0.self_attn.k_proj.weight", 64, 64},
    {"model.layers.0.self_attn.v_proj.weight", 64, 64},
    {"model.layers.0.self_attn.o_proj.weight", 64, 64},
    {"model.layers.0.mlp.gate_proj.weight", 32, 64},
    {"model.layers.0.mlp.up_proj.weight", 32, 64},
    {"model.layers.0.mlp.down_proj.weight", 64, 32},
};

static bool write_file(const char *folder, const char *name, const void *bytes, size_t len) {
    char path[2 * PROGRAM_PATH];
    snprintf(path, sizeof path, "%s/%s", folder, name);
    FILE *file = fopen(path, "wb");
    bool good = file && fwrite(bytes, 1, len, file) == len;
    return file && fclose(file) == 0 && good;
}

static void write_tiny(const char *folder, const char *dtype, weight_fn *weight) {
    static const char config[] =
        "{\"model_type\":\"llama\",\"hidden_size\":64,\"intermediate_size\":32,"
        "\"num_hidden_layers\":1,\"num_attention_heads\":2,\"vocab_size\":16,"
        "\"rms_norm_eps\":1e-5,\"eos_token_id\":2,\"tie_word_embeddings\":true}";
    tc__buf header = {0}, data = {0}, file = {0};
    for (size_t t = 0; t < TC_COUNT(tiny); t++) {
        size_t count = tiny[t].rows * (tiny[t].columns ? tiny[t].columns : 1), begin = data.len;
        for (size_t i = 0; i < count; i++) {
            float value = weight(tiny[t].name, i);
            uint16_t half = tc__f32_to_f16(value);
            uint32_t bits;
            memcpy(&bits, &value, 4);
            if (!strcmp(dtype, "BF16")) half = (uint16_t)(bits >> 16);
            if (!strcmp(dtype, "F32"))
                tc__buf_add(&data, &value, 4);
            else
                tc__buf_add(&data, &half, 2);
        }
        tc__buf_printf(&header, "%s\"%s\":{\"dtype\":\"%s\",\"shape\":[%u", t ? "," : "{",
                       tiny[t].name, dtype, (unsigned)tiny[t].rows);
        if (tiny[t].columns) tc__buf_printf(&header, ",%u", (unsigned)tiny[t].columns);
        tc__buf_printf(&header, "],\"data_offsets\":[%zu,%zu]}", begin, data.len);
    }
    tc__buf_str(&header, "}");
    forge_safetensors(&file, header.data, data.data, data.len);
    CHECK(write_file(folder, "model.safetensors", file.data, file.len));
    CHECK(write_file(folder, "config.json", config, sizeof config - 1));
    tc__buf_free(&header), tc__buf_free(&data), tc__buf_free(&file);
}

/* Groups of 32: random ones; all zeros; all positive; one number; one that is huge. */
static float some_weight(const char *name, size_t i) {
    uint32_t hash = 2166136261u;
    for (; *name; name++) hash = (hash ^ (uint8_t)*name) * 16777619u;
    hash = (hash ^ (uint32_t)i) * 2246822519u;
    hash = (hash ^ hash >> 13) * 3266489917u;
    float value = (float)((int)(hash >> 8 & 127) - 64) / 512; /* as it is in every 16-bit type */
    switch (i / 32 % 7) {
    case 1: return 0;
    case 3: return fabsf(value) + 0.25f;
    case 4: return -0.375f;
    case 6: return i % 32 ? value : 3;
    default: return value;
    }
}

/* Every weight is within half a step of its own, or a little more where the scale was rounded. */
static void check_nearest(const run *r, const char *layer, const char *tensor,
                          size_t (*place)(const sizes *s, size_t row), weight_fn *weight) {
    static const sizes s = {2, 2, 32};
    const tc__tensor *t = tc__find_tensor(&r->file, tensor);
    int bad = 0;
    char name[128];
    snprintf(name, sizeof name, "model.layers.0.%s.weight", layer);
    REQUIRE(t && t->type == TC__W4 && t->group_size == 32);
    for (size_t row = 0; row < (strstr(layer, "mlp.") && t->columns == 64 ? 32 : 64); row++)
        for (size_t j = 0; j < t->columns / 32; j++) {
            uint8_t q[32], zero;
            uint16_t bits;
            float low = 0, high = 0;
            w4_group(t, place(&s, row), j, q, &bits, &zero);
            float scale = tc__f16_to_f32(bits);
            for (size_t k = 0; k < 32; k++) {
                float want = weight(name, row * t->columns + j * 32 + k);
                float got = scale * ((float)q[k] - (float)zero);
                low = want < low ? want : low, high = want > high ? want : high;
                bad += !(fabsf(got - want) <= 0.51f * scale);
            }
            float range = high - low > 1e-5f ? high - low : 1e-5f;
            bad += !(fabsf(scale - range / 15) <= 0.001f * scale + 1e-7f);
        }
    CHECK_MSG(bad == 0, "%s: %d numbers are wrong", layer, bad);
}

TEST(rounding_to_nearest_is_within_half_a_step) {
    static const char *const types[] = {"F16", "BF16", "F32"};
    char folder[PROGRAM_PATH];
    REQUIRE(program_folder(folder));
    for (size_t i = 0; i < TC_COUNT(types); i++) {
        run r;
        write_tiny(folder, types[i], some_weight);
        REQUIRE(run_begin(&r, folder));
        r.options.quantise = true;
        CHECK_MSG(run_convert(&r) == TC_OK, "%s", r.err.message);
        CHECK(strstr(r.summary.source, "quantised by rounding to nearest, group size 32"));
        if (r.open) {
            check_nearest(&r, "self_attn.q_proj", "0.qkv", same, some_weight);
            check_nearest(&r, "self_attn.v_proj", "0.qkv", v_rows, some_weight);
            check_nearest(&r, "self_attn.o_proj", "0.o", same, some_weight);
            check_nearest(&r, "mlp.up_proj", "0.gate_up", up, some_weight);
            check_nearest(&r, "mlp.down_proj", "0.down", same, some_weight);
        }
        run_end(&r);
    }
    program_remove_folder(folder);
}

static float infinite_weight(const char *name, size_t i) {
    return strstr(name, "up_proj") && i == 70 ? INFINITY : some_weight(name, i);
}

static float missing_weight(const char *name, size_t i) {
    return strstr(name, "up_proj") && i == 70 ? NAN : some_weight(name, i);
}

static float large_weight(const char *name, size_t i) {
    return strstr(name, "up_proj") && i == 70 ? 1e6f : some_weight(name, i);
}

TEST(weights_that_cannot_be_are_named) {
    static const struct {
        weight_fn *weight;
        const char *dtype, *message;
        int code;
    } cases[] = {
        {infinite_weight, "F16", "up_proj.weight', row 1: a weight is not finite", TC_ERR_FORMAT},
        {missing_weight, "F16", "row 1: a weight is not finite", TC_ERR_FORMAT},
        {missing_weight, "F32", "row 1: a weight is not finite", TC_ERR_FORMAT},
        {infinite_weight, "BF16", "row 1: a weight is not finite", TC_ERR_FORMAT},
        {large_weight, "BF16", "a weight of 999424 is beyond", TC_ERR_UNSUPPORTED},
    };
    char folder[PROGRAM_PATH];
    REQUIRE(program_folder(folder));
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        run r;
        write_tiny(folder, cases[i].dtype, cases[i].weight);
        REQUIRE(run_begin(&r, folder));
        r.options.quantise = true;
        CHECK(run_convert(&r) == cases[i].code);
        CHECK_MSG(strstr(r.err.message, cases[i].message), "%s", r.err.message);
        run_end(&r);
    }
    program_remove_folder(folder);
}

/* ---- damage ---- */

static bool read_file(const char *folder, const char *name, tc__buf *out) {
    char path[2 * PROGRAM_PATH];
    tc__map map;
    tc_error err;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    if (tc__map_open(path, &map, &err)) return false;
    tc__buf_add(out, map.data, map.size);
    tc__map_close(&map);
    return !out->failed;
}

/* Changes a byte: digits, which are sizes and offsets, become other digits. */
static void damage(char *bytes, size_t len, uint64_t *state) {
    *state = *state * 6364136223846793005u + 1442695040888963407u;
    size_t at = (size_t)(*state >> 33) % len;
    unsigned value = (unsigned)(*state >> 20) & 255;
    for (size_t i = 0; i < 100 && (value & 3); i++, at = (at + 1) % len)
        if (bytes[at] >= '0' && bytes[at] <= '9') {
            bytes[at] = (char)('0' + value % 10);
            return;
        }
    bytes[at] = (char)value;
}

/* Whatever the header of the weights or config.json says: a model file that an engine accepts, or
 * one error. (Sanitizers watch the rest.) */
TEST(damaged_checkpoints_are_refused_or_converted) {
    static const char *const folders[] = {"ct-asym",      "ct-asym-bytes", "gptq",
                                          "falcon-40b-a", "search-qwen2",  "search-mpt"};
    static const char *const names[] = {"model.safetensors", "config.json"};
    uint64_t state = 2;
    FILE *nowhere = program_temporary();
    int converted = 0, refused = 0;
    for (size_t f = 0; f < TC_COUNT(folders); f++)
        for (int round = 0; round < 60; round++) {
            char from[PROGRAM_PATH], search[2 * PROGRAM_PATH], folder[PROGRAM_PATH];
            run r;
            snprintf(from, sizeof from, DATA "%s", folders[f]);
            snprintf(search, sizeof search, "%s/search.pt", from);
            REQUIRE(program_folder(folder) && run_begin(&r, folder));
            for (int i = 0; i < 2; i++) {
                tc__buf bytes = {0};
                REQUIRE(read_file(from, names[i], &bytes));
                size_t header = i ? bytes.len : 1200; /* of the weights: the first names */
                if (i == round % 2) damage(bytes.data, header, &state);
                CHECK(write_file(folder, names[i], bytes.data, bytes.len));
                tc__buf_free(&bytes);
            }
            if (!access(search, R_OK)) r.options.search = search;
            int code = run_convert(&r);
            CHECK_MSG(!code || code == TC_ERR_FORMAT || code == TC_ERR_UNSUPPORTED, "%s: %d: %s",
                      folders[f], code, r.err.message);
            if (!code)
                CHECK_MSG(!inspect_verify(r.output, nowhere, NULL, NULL, &r.err), "%s: %s",
                          folders[f], r.err.message);
            *(code ? &refused : &converted) += 1;
            run_end(&r);
            program_remove_folder(folder);
        }
    fclose(nowhere);
    CHECK_MSG(converted > 20 && refused > 100, "%d converted, %d refused", converted, refused);
}

/* Norms and the activation's scales. */
TEST(vectors_that_cannot_be_are_named) {
    static const struct {
        const char *from, *tensor;
        uint16_t bits;
        const char *message;
    } cases[] = {
        {"falcon-40b-b", "transformer.h.0.mlp.act.scales", 0, "number 5 is 0; expected a positive"},
        {"falcon-40b-b", "transformer.h.0.ln_mlp.bias", 0x7c00, "is inf; expected a finite number"},
        {"search-qwen2", "model.norm.weight", 0x7e00, "expected a finite number"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        char from[PROGRAM_PATH], folder[PROGRAM_PATH];
        tc__buf bytes = {0}, config = {0};
        run r;
        snprintf(from, sizeof from, DATA "%s", cases[i].from);
        REQUIRE(program_folder(folder) && run_begin(&r, folder));
        REQUIRE(read_file(from, "model.safetensors", &bytes));
        REQUIRE(read_file(from, "config.json", &config));
        char *name = strstr(bytes.data + 8, cases[i].tensor);
        char *offsets = name ? strstr(name, "\"data_offsets\":[") : NULL;
        uint64_t header;
        REQUIRE(offsets);
        memcpy(&header, bytes.data, sizeof header);
        size_t begin = strtoull(offsets + strlen("\"data_offsets\":["), NULL, 10);
        memcpy(bytes.data + 8 + header + begin + 2 * 5, &cases[i].bits, 2);
        CHECK(write_file(folder, "model.safetensors", bytes.data, bytes.len));
        CHECK(write_file(folder, "config.json", config.data, config.len));
        CHECK(run_convert(&r) == TC_ERR_FORMAT);
        CHECK_MSG(strstr(r.err.message, cases[i].message) && strstr(r.err.message, cases[i].tensor),
                  "%s", r.err.message);
        tc__buf_free(&bytes), tc__buf_free(&config);
        run_end(&r);
        program_remove_folder(folder);
    }
}

/* ---- what is refused ---- */

TEST(search_results_of_something_else_are_refused) {
    static const struct {
        const char *hf, *search;
        uint32_t group;
        const char *message;
    } cases[] = {
        {DATA "search-mpt", DATA "search-qwen2/search.pt", 0, "belong to this model?"},
        {DATA "search-qwen2", DATA "search-mpt/search.pt", 0, "belong to this model?"},
        {DATA "search-qwen2", DATA "search-qwen2/search.pt", 64,
         "for group size 32, --group-size says 64"},
        {DATA "search-qwen2", DATA "search-mpt/model.safetensors", 0, "holds weights"},
        {DATA "gptq", DATA "search-qwen2/search.pt", 0, "is quantised already"},
        {DATA "gptq", NULL, 0, "is quantised already"},
        {DATA "search-qwen2", NULL, 128, "64 columns, which groups of 128 do not divide"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        run r;
        REQUIRE(run_begin(&r, cases[i].hf));
        r.options.search = cases[i].search;
        r.options.quantise = !cases[i].search;
        r.options.group = cases[i].group;
        int code = run_convert(&r);
        CHECK_MSG(code == TC_ERR_UNSUPPORTED || code == TC_ERR_FORMAT, "%zu: code %d", i, code);
        CHECK_MSG(strstr(r.err.message, cases[i].message), "%zu: %s", i, r.err.message);
        run_end(&r);
    }
}

TEST(arguments_that_contradict_are_wrong_usage) {
    char messages[1024];
    static const struct {
        const char *arguments[7];
        const char *message;
    } cases[] = {
        {{"--quantize", "awq"}, "expected rtn, not awq"},
        {{"--quantize", "rtn", "--awq-search", "x"}, "exclude each other"},
        {{"--group-size", "128"}, "belongs to"},
        {{"--quantize", "rtn", "--group-size", "100"}, "expected 32, 64 or 128"},
    };
    if (access(program_convert(), X_OK)) SKIP("%s is not built", program_convert());
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        const char *argv[12] = {program_convert(), "--hf", DATA "search-qwen2"};
        for (size_t k = 0; k < TC_COUNT(cases[i].arguments) && cases[i].arguments[k]; k++)
            argv[3 + k] = cases[i].arguments[k];
        CHECK(program_run(argv, NULL, 0, messages, sizeof messages) == 2);
        CHECK_MSG(strstr(messages, cases[i].message), "%s", messages);
    }
}

/* clang-format off */
TEST_MAIN(
    RUN(every_source_gives_the_numbers_it_was_made_of)
    RUN(activation_scales_are_kept_only_if_they_say_something)
    RUN(act_order_is_refused_by_name)
    RUN(search_results_give_what_llm_awq_gave)
    RUN(rounding_to_binary16_is_exact)
    RUN(rounding_to_nearest_is_within_half_a_step)
    RUN(weights_that_cannot_be_are_named)
    RUN(damaged_checkpoints_are_refused_or_converted)
    RUN(vectors_that_cannot_be_are_named)
    RUN(search_results_of_something_else_are_refused)
    RUN(arguments_that_contradict_are_wrong_usage))
