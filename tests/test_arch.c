/* What tc__weights_open makes of a model file's hyper-parameters and tensors: everything that
 * docs/format.md lists is read, and whatever contradicts it is refused with a line that names it.
 * The files are tables in memory, made like the built-in shapes and then changed.
 */
#include "test.h"

#include "shapes.h"

#include <math.h>

/* Everything optional at once. */
static const tc__shape_spec everything = {"everything",
                                          "family",
                                          64,
                                          128,
                                          3,
                                          6,
                                          2,
                                          16,
                                          48,
                                          100,
                                          1e-6,
                                          5e4,
                                          .rope_scale = 1.25,
                                          .clip_qkv = 4,
                                          .norm = TC__NORM_LAYER,
                                          .activation = TC__ACT_GELU,
                                          .parallel = 1,
                                          .norm_bias = true,
                                          .qkv_bias = true,
                                          .qk_norm = true,
                                          .act_scales = true};
static const tc__shape_spec plain = {"plain", "llama", 64,  128,  3,   4,         4,
                                     16,      48,      100, 1e-5, 1e4, .gated = 1};

enum { ROOM = 4 }; /* for metadata and tensors that a test adds */

/* The tables of a shape with room for more. */
static tc__model_file make(const tc__shape_spec *spec) {
    tc_model_params params = tc_model_default_params();
    tc__model_file file;
    tc_error err;
    params.threads = 1;
    if (tc__shape_make(spec, "w4a16", 32, true, &params, &file, &err)) {
        fprintf(stderr, "%s\n", err.message);
        abort();
    }
    file.metas = realloc(file.metas, (file.meta_count + ROOM) * sizeof *file.metas);
    file.tensors = realloc(file.tensors, (file.tensor_count + ROOM) * sizeof *file.tensors);
    if (!file.metas || !file.tensors) abort();
    return file;
}

static void set_meta(tc__model_file *file, const char *key, uint32_t type, const void *value,
                     size_t count) {
    tc__meta *meta = (tc__meta *)tc__find_meta(file, key);
    if (!meta) meta = &file->metas[file->meta_count++];
    const size_t each = type == TC__META_BYTES ? 1 : type == TC__META_F64 ? 8 : 4;
    tc__meta made = {key, strlen(key), type, count, value, count * each};
    *meta = made;
}

static void remove_meta(tc__model_file *file, const char *key) {
    tc__meta *meta = (tc__meta *)tc__find_meta(file, key);
    if (meta) *meta = file->metas[--file->meta_count];
}

static tc__tensor *tensor_of(tc__model_file *file, const char *name) {
    return (tc__tensor *)tc__find_tensor(file, name);
}

static void remove_tensor(tc__model_file *file, const char *name) {
    tc__tensor *tensor = tensor_of(file, name);
    if (tensor) *tensor = file->tensors[--file->tensor_count];
}

/* A copy of a tensor under another name. */
static void add_tensor(tc__model_file *file, const char *like, const char *name) {
    file->tensors[file->tensor_count] = *tensor_of(file, like);
    file->tensors[file->tensor_count].name = name;
    file->tensors[file->tensor_count++].name_len = strlen(name);
}

/* Opens the weights of the file, checks the code and what an error says, and closes it. */
static void opening_gives(tc__model_file *file, int code, const char *message) {
    tc__weights weights;
    tc_error err;
    int got = tc__weights_open(file, &weights, &err);
    CHECK_MSG(got == code, "'%s': code %d, not %d (%s)", message, got, code, err.message);
    CHECK_MSG(got == TC_OK || strstr(err.message, message), "'%s' does not say '%s'", err.message,
              message);
    CHECK(got == TC_OK || !weights.layers);
    tc__weights_close(&weights);
    tc__model_file_close(file);
}

/* ---- what is read ---- */

TEST(everything_is_read) {
    tc__model_file file = make(&everything);
    double angles[8] = {1, 0.5, 0.25, 0.125, 0.0625, 0.03125, 0.015625, 0};
    uint32_t window = 77;
    set_meta(&file, "arch.rope_frequencies", TC__META_F64, angles, 8);
    set_meta(&file, "arch.sliding_window", TC__META_U32, &window, 1);
    tc__weights weights;
    tc_error err;
    int code = tc__weights_open(&file, &weights, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    REQUIRE(code == TC_OK);
    const tc__arch *arch = &weights.arch;
    CHECK(arch->norm == TC__NORM_LAYER && arch->position == TC__POSITION_ROPE);
    CHECK(arch->activation == TC__ACT_GELU && !arch->gated && arch->parallel);
    CHECK(arch->norm_eps == 1e-6f && arch->clip_qkv == 4 && arch->rope_scale == 1.25f);
    CHECK(arch->sliding_window == 77 && !arch->slopes);
    CHECK(memcmp(arch->frequencies, angles, sizeof angles) == 0);
    CHECK(weights.norm == tensor_of(&file, "norm") && weights.head == tensor_of(&file, "head"));
    CHECK(weights.norm_bias == tensor_of(&file, "norm_bias") && weights.norm_bias);
    for (int i = 0; i < 3; i++) {
        const tc__layer *layer = &weights.layers[i];
        const struct {
            const char *name;
            const tc__tensor *tensor;
        } parts[] = {{"attn_norm", layer->attn_norm},
                     {"attn_norm_bias", layer->attn_norm_bias},
                     {"qkv", layer->qkv},
                     {"qkv_bias", layer->qkv_bias},
                     {"q_norm", layer->q_norm},
                     {"k_norm", layer->k_norm},
                     {"o", layer->o},
                     {"mlp_norm", layer->mlp_norm},
                     {"mlp_norm_bias", layer->mlp_norm_bias},
                     {"up", layer->gate_up},
                     {"act_scales", layer->act_scales},
                     {"down", layer->down}};
        for (size_t k = 0; k < TC_COUNT(parts); k++) {
            char name[32];
            snprintf(name, sizeof name, "%d.%s", i, parts[k].name);
            CHECK_MSG(parts[k].tensor && parts[k].tensor == tensor_of(&file, name), "%s", name);
        }
    }
    tc__weights_close(&weights);
    tc__model_file_close(&file);
}

/* Keys that are missing mean a LLaMA block. */
TEST(missing_keys_have_defaults) {
    static const char *const keys[] = {"arch.norm",  "arch.position", "arch.activation",
                                       "arch.gated", "arch.parallel", "arch.family"};
    tc__model_file file = make(&plain);
    for (size_t i = 0; i < TC_COUNT(keys); i++) remove_meta(&file, keys[i]);
    tc__weights weights;
    tc_error err;
    int code = tc__weights_open(&file, &weights, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    REQUIRE(code == TC_OK);
    const tc__arch *arch = &weights.arch;
    CHECK(arch->norm == TC__NORM_RMS && arch->position == TC__POSITION_ROPE);
    CHECK(arch->activation == TC__ACT_SILU && arch->gated && !arch->parallel);
    CHECK(arch->clip_qkv == 0 && arch->rope_scale == 1 && arch->sliding_window == 0);
    for (int i = 0; i < 8; i++) CHECK(fabs(arch->frequencies[i] - pow(1e4, -i / 8.0)) < 1e-15);
    const tc__layer *layer = &weights.layers[2];
    CHECK(!layer->attn_norm_bias && !layer->qkv_bias && !layer->q_norm && !layer->k_norm);
    CHECK(!layer->mlp_norm_bias && !layer->act_scales && !weights.norm_bias);
    tc__weights_close(&weights);
    tc__model_file_close(&file);
}

/* The family is for people. */
TEST(any_family_is_a_label) {
    tc__model_file file = make(&plain);
    set_meta(&file, "arch.family", TC__META_BYTES, "mamba", 5);
    opening_gives(&file, TC_OK, "");
}

/* ---- hyper-parameters that are refused ---- */

TEST(keys_that_are_not_known_are_refused) {
    uint32_t one = 1;
    tc__model_file file = make(&plain);
    set_meta(&file, "arch.softcap", TC__META_U32, &one, 1);
    opening_gives(&file, TC_ERR_UNSUPPORTED, "'arch.softcap'");
    file = make(&plain);
    set_meta(&file, "general.whatever", TC__META_U32, &one, 1);
    opening_gives(&file, TC_OK, "");
}

TEST(numbers_out_of_range_are_refused) {
    static const struct {
        const char *key;
        uint32_t value;
        int code;
        const char *message;
    } cases[] = {
        {"arch.hidden_size", 0, TC_ERR_FORMAT, "arch.hidden_size is 0; expected 1 to 131072"},
        {"arch.layers", 1025, TC_ERR_FORMAT, "arch.layers is 1025; expected 1 to 1024"},
        {"arch.kv_heads", 3, TC_ERR_FORMAT, "4 heads, 3 KV heads"},
        {"arch.head_dim", 15, TC_ERR_FORMAT, "head_dim 15"},
        {"arch.intermediate_size", 124, TC_ERR_FORMAT, "intermediate_size 124"},
        {"arch.norm", 2, TC_ERR_UNSUPPORTED, "arch.norm is 2; supported: 0 (RMSNorm) and 1"},
        {"arch.position", 2, TC_ERR_UNSUPPORTED, "arch.position is 2; supported: 0 (RoPE)"},
        {"arch.activation", 7, TC_ERR_UNSUPPORTED, "arch.activation is 7; supported: 0 (SiLU)"},
        {"arch.gated", 2, TC_ERR_UNSUPPORTED, "arch.gated is 2"},
        {"arch.parallel", UINT32_MAX, TC_ERR_UNSUPPORTED, "arch.parallel is 4294967295"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        tc__model_file file = make(&plain);
        set_meta(&file, cases[i].key, TC__META_U32, &cases[i].value, 1);
        opening_gives(&file, cases[i].code, cases[i].message);
    }
    static const struct {
        const char *key;
        double value;
    } reals[] = {{"arch.norm_eps", 0},       {"arch.norm_eps", 1},          {"arch.norm_eps", NAN},
                 {"arch.rope_theta", 0.5},   {"arch.rope_theta", HUGE_VAL}, {"arch.rope_scale", 0},
                 {"arch.rope_scale", NAN},   {"arch.clip_qkv", 0},          {"arch.clip_qkv", -1},
                 {"arch.clip_qkv", HUGE_VAL}};
    for (size_t i = 0; i < TC_COUNT(reals); i++) {
        char message[64];
        tc__model_file file = make(&plain);
        set_meta(&file, reals[i].key, TC__META_F64, &reals[i].value, 1);
        snprintf(message, sizeof message, "%s is ", reals[i].key);
        opening_gives(&file, TC_ERR_FORMAT, message);
    }
}

TEST(required_keys_are_required) {
    static const char *const keys[] = {
        "arch.hidden_size", "arch.intermediate_size", "arch.layers",     "arch.heads",
        "arch.kv_heads",    "arch.head_dim",          "arch.vocab_size", "arch.max_seq_len",
        "arch.norm_eps",    "arch.rope_theta"};
    for (size_t i = 0; i < TC_COUNT(keys); i++) {
        char message[64];
        tc__model_file file = make(&plain);
        remove_meta(&file, keys[i]);
        snprintf(message, sizeof message, "'%s' is missing", keys[i]);
        opening_gives(&file, TC_ERR_FORMAT, message);
    }
    tc__model_file file = make(&plain);
    float theta = 1e4f;
    set_meta(&file, "arch.rope_theta", TC__META_F32, &theta, 1);
    opening_gives(&file, TC_ERR_FORMAT, "'arch.rope_theta' has type 4");
}

TEST(positions_must_not_contradict_themselves) {
    double angles[9] = {1, 0.5, 0.25, 0.1, 0.1, 0.1, 0.1, 0.1, 0.1};
    float slopes[4] = {0.5f, 0.25f, 0.125f, 0.0625f};
    uint32_t alibi = TC__POSITION_ALIBI;
    tc__model_file file = make(&plain);
    set_meta(&file, "arch.rope_frequencies", TC__META_F64, angles, 9);
    opening_gives(&file, TC_ERR_FORMAT,
                  "arch.rope_frequencies has type 2 and 9 elements; expected type 2 "
                  "and 8");
    angles[3] = -0.1;
    file = make(&plain);
    set_meta(&file, "arch.rope_frequencies", TC__META_F64, angles, 8);
    opening_gives(&file, TC_ERR_FORMAT, "arch.rope_frequencies[3] is -0.1");
    angles[3] = NAN;
    file = make(&plain);
    set_meta(&file, "arch.rope_frequencies", TC__META_F64, angles, 8);
    opening_gives(&file, TC_ERR_FORMAT, "arch.rope_frequencies[3] is ");
    file = make(&plain);
    set_meta(&file, "arch.alibi_slopes", TC__META_F32, slopes, 4);
    opening_gives(&file, TC_ERR_FORMAT,
                  "'arch.alibi_slopes' does not go with arch.position 0 (RoPE)");

    file = make(&plain);
    set_meta(&file, "arch.position", TC__META_U32, &alibi, 1);
    set_meta(&file, "arch.alibi_slopes", TC__META_F32, slopes, 4);
    opening_gives(&file, TC_ERR_FORMAT,
                  "'arch.rope_theta' does not go with arch.position 1 (ALiBi)");
    file = make(&plain);
    set_meta(&file, "arch.position", TC__META_U32, &alibi, 1);
    remove_meta(&file, "arch.rope_theta");
    opening_gives(&file, TC_ERR_FORMAT, "'arch.alibi_slopes' is missing");
    file = make(&plain);
    set_meta(&file, "arch.position", TC__META_U32, &alibi, 1);
    remove_meta(&file, "arch.rope_theta");
    set_meta(&file, "arch.alibi_slopes", TC__META_F32, slopes, 3);
    opening_gives(&file, TC_ERR_FORMAT, "arch.alibi_slopes has type 4 and 3 elements");
    slopes[2] = INFINITY;
    file = make(&plain);
    set_meta(&file, "arch.position", TC__META_U32, &alibi, 1);
    remove_meta(&file, "arch.rope_theta");
    set_meta(&file, "arch.alibi_slopes", TC__META_F32, slopes, 4);
    opening_gives(&file, TC_ERR_FORMAT, "arch.alibi_slopes[2] is inf");
}

/* ---- tensors that are refused ---- */

TEST(tensors_are_there_for_all_layers_or_for_none) {
    static const char *const optional[] = {"attn_norm_bias", "qkv_bias", "mlp_norm",
                                           "mlp_norm_bias", "act_scales"};
    char name[32], message[64];
    for (size_t i = 0; i < TC_COUNT(optional); i++)
        for (int layer = 0; layer < 3; layer++) {
            tc__model_file file = make(&everything);
            snprintf(name, sizeof name, "%d.%s", layer, optional[i]);
            remove_tensor(&file, name);
            if (layer) /* missing in a later layer; or, if layer 0 lacks it, one too many in layer 1 */
                snprintf(message, sizeof message, "tensor '%s' is missing", name);
            else if (!strcmp(optional[i], "mlp_norm"))
                snprintf(message, sizeof message, "'0.mlp_norm' is missing; '0.mlp_norm_bias' is");
            else
                snprintf(message, sizeof message, "tensor '1.%s' has no place", optional[i]);
            int code = strstr(message, "no place") ? TC_ERR_UNSUPPORTED : TC_ERR_FORMAT;
            opening_gives(&file, code, message);
        }
    tc__model_file file = make(&everything); /* none has one: that is fine */
    for (int layer = 0; layer < 3; layer++) {
        snprintf(name, sizeof name, "%d.qkv_bias", layer);
        remove_tensor(&file, name);
    }
    opening_gives(&file, TC_OK, "");
}

TEST(tensors_come_together_or_not_at_all) {
    char name[32];
    tc__model_file file = make(&everything);
    for (int layer = 0; layer < 3; layer++) {
        snprintf(name, sizeof name, "%d.k_norm", layer);
        remove_tensor(&file, name);
    }
    opening_gives(&file, TC_ERR_FORMAT, "'0.k_norm' is missing; '0.q_norm' is there");
    file = make(&plain); /* only a parallel block can do without */
    for (int layer = 0; layer < 3; layer++) {
        snprintf(name, sizeof name, "%d.mlp_norm", layer);
        remove_tensor(&file, name);
    }
    opening_gives(&file, TC_ERR_FORMAT, "'0.mlp_norm' is missing");
}

TEST(tensors_without_a_place_are_refused) {
    tc__model_file file = make(&plain); /* RMSNorm has no bias */
    add_tensor(&file, "norm", "norm_bias");
    opening_gives(&file, TC_ERR_UNSUPPORTED, "'norm_bias' has no place");
    file = make(&plain);
    add_tensor(&file, "0.attn_norm", "0.o_bias");
    opening_gives(&file, TC_ERR_UNSUPPORTED, "'0.o_bias' has no place");
    file = make(&plain); /* of a fourth layer */
    add_tensor(&file, "0.attn_norm", "3.attn_norm");
    opening_gives(&file, TC_ERR_UNSUPPORTED, "'3.attn_norm' has no place");
    file = make(&everything);
    add_tensor(&file, "0.up", "0.gate_up");
    opening_gives(&file, TC_ERR_UNSUPPORTED, "'0.gate_up' has no place");
}

TEST(types_and_shapes_are_checked) {
    tc__model_file file = make(&everything);
    tensor_of(&file, "1.qkv_bias")->rows--;
    opening_gives(&file, TC_ERR_FORMAT, "'1.qkv_bias' has shape [159, 1]; expected [160, 1]");
    file = make(&everything);
    tensor_of(&file, "2.q_norm")->rows = 64;
    opening_gives(&file, TC_ERR_FORMAT, "'2.q_norm' has shape [64, 1]; expected [16, 1]");
    file = make(&everything);
    tensor_of(&file, "0.up")->rows *= 2;
    opening_gives(&file, TC_ERR_FORMAT, "'0.up' has shape [256, 64]; expected [128, 64]");
    file = make(&everything);
    tensor_of(&file, "0.act_scales")->type = TC__F16;
    opening_gives(&file, TC_ERR_FORMAT, "'0.act_scales' has type F16; expected F32");
    file = make(&everything);
    tensor_of(&file, "0.down")->type = TC__F32;
    opening_gives(&file, TC_ERR_FORMAT, "'0.down' has type F32; expected W4, F16 or BF16");
    file = make(&everything);
    tensor_of(&file, "embed")->type = TC__W4;
    opening_gives(&file, TC_ERR_FORMAT, "'embed' has type W4; expected F16 or BF16");
}

static void set_element(tc__model_file *file, const char *name, size_t i, float value) {
    memcpy((uint8_t *)tensor_of(file, name)->data + i * sizeof value, &value, sizeof value);
}

TEST(vectors_must_be_numbers) {
    tc__model_file file = make(&everything);
    set_element(&file, "1.attn_norm", 63, NAN);
    opening_gives(&file, TC_ERR_FORMAT, "1.attn_norm[63] is ");
    file = make(&everything);
    set_element(&file, "2.qkv_bias", 5, -INFINITY);
    opening_gives(&file, TC_ERR_FORMAT, "2.qkv_bias[5] is -inf; expected a finite number");
    file = make(&everything);
    set_element(&file, "0.act_scales", 0, 0);
    opening_gives(&file, TC_ERR_FORMAT,
                  "0.act_scales[0] is 0; expected a finite number other than 0");
    file = make(&everything);
    set_element(&file, "0.mlp_norm_bias", 0, 0);
    opening_gives(&file, TC_OK, "");
}

/* clang-format off */
/* ---- a head in 8 bits ---- */

TEST(a_head_in_8_bits_is_counted) {
    static const struct {
        uint32_t hidden;
        size_t group;
    } sizes[] = {{256, 128}, {192, 64}, {96, 32}};
    for (size_t i = 0; i < 3 * TC_COUNT(sizes); i++) {
        const bool few = i % 3 == 2;
        const size_t hidden = sizes[i / 3].hidden, stored = few ? 8 : 48, rows = few ? 16 : 48;
        tc__shape_spec spec = plain;
        tc__weights before, weights;
        tc_error err;
        char name[48];
        spec.hidden_size = sizes[i / 3].hidden;
        spec.vocab_size = (uint32_t)stored;
        spec.tied = i % 3 == 1;
        tc__model_file file = make(&spec);
        REQUIRE(tc__weights_open(&file, &weights, &err) == TC_OK);
        before = weights;
        tc__weights_head_in_8(&weights);
        /* a byte for each number, and a scale in binary16 for each row and group */
        const size_t bytes = rows * (hidden + 2 * hidden / sizes[i / 3].group);
        CHECK(tc__head_8_group(&weights) == sizes[i / 3].group);
        CHECK(tc__head_8_bytes(&weights) == bytes); /* whole blocks of 16 rows */
        CHECK(weights.head_apart_bytes == (spec.tied || few ? bytes : 0));
        /* a tied head was the embedding's row as well */
        CHECK(weights.bytes_per_token ==
              before.bytes_per_token - 2 * stored * hidden + bytes + (spec.tied ? 2 * hidden : 0));
        tc__precision_name(&weights, name, sizeof name);
        CHECK_MSG(!strcmp(name, "W4A16 g32, int8 head"), "%s", name);
        tc__weights_close(&weights);
        tc__model_file_close(&file);
    }
}

TEST_MAIN(
    RUN(everything_is_read)
    RUN(missing_keys_have_defaults)
    RUN(any_family_is_a_label)
    RUN(keys_that_are_not_known_are_refused)
    RUN(numbers_out_of_range_are_refused)
    RUN(required_keys_are_required)
    RUN(positions_must_not_contradict_themselves)
    RUN(tensors_are_there_for_all_layers_or_for_none)
    RUN(tensors_come_together_or_not_at_all)
    RUN(tensors_without_a_place_are_refused)
    RUN(types_and_shapes_are_checked)
    RUN(vectors_must_be_numbers)
    RUN(a_head_in_8_bits_is_counted))
