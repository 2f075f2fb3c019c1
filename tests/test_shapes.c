/* Built-in shapes: the sizes that the models' publishers state, weights by the documented rule, the
 * same on every device, and logits that are numbers. */
#include "test.h"

#include "session.h"
#include "shapes.h"

#include <math.h>

static tc_model_params params_for(const char *device, int threads) {
    tc_model_params params = tc_model_default_params();
    params.device = device;
    params.threads = threads;
    return params;
}

/* ---- tables ---- */

/* Parameters counted from the published checkpoints; W4 adds AWQ's act_scales. */
TEST(shapes_have_the_published_sizes) {
    static const struct {
        const char *name;
        size_t parameters;
        size_t act_scales;
        unsigned group_size; /* the default */
    } published[] = {
        {"llama-2-7b", 6738415616u, 0, 128},       {"llama-2-13b", 13015864320u, 0, 128},
        {"llama-2-70b", 68976648192u, 0, 128},     {"llama-3-8b", 8030261248u, 0, 128},
        {"llama-3.2-1b", 1235814400u, 0, 128},     {"mistral-7b", 7241732096u, 0, 128},
        {"qwen2.5-7b", 7615616512u, 0, 128},       {"qwen3-8b", 8190735360u, 0, 128},
        {"mpt-7b", 6649286656u, 32 * 16384, 128},  {"mpt-30b", 29957200896u, 48 * 28672, 128},
        {"falcon-7b", 6921720704u, 32 * 18176, 64}};
    static const char *const precisions[] = {"w4a16", "w16a16"};
    tc_model_params params = params_for("cpu", 1);
    for (size_t i = 0; i < TC_COUNT(published); i++)
        for (int p = 0; p < 2; p++) {
            tc__model_file file;
            tc__weights weights;
            tc_error err;
            int code =
                tc__shape_open(published[i].name, precisions[p], 0, false, &params, &file, &err);
            if (!code) code = tc__weights_open(&file, &weights, &err);
            CHECK_MSG(code == TC_OK, "%s: %s", published[i].name, err.message);
            if (code) continue;
            size_t expected = published[i].parameters + (p ? 0 : published[i].act_scales);
            CHECK_MSG(weights.parameters == expected, "%s: %zu", published[i].name,
                      weights.parameters);
            size_t table = weights.embed->rows * weights.embed->columns;
            size_t tables = weights.head == weights.embed ? table : 2 * table;
            size_t vectors = weights.parameters - tables - weights.layer_parameters;
            unsigned g = published[i].group_size;
            CHECK(weights.layers[0].down->group_size == (p ? 0 : g));
            /* a group is g / 2 bytes of numbers, a scale and a zero */
            double each = p ? 2 : 0.5 + 4.0 / g;
            double bytes =
                (double)weights.layer_parameters * each + 2 * (double)tables + 4 * (double)vectors;
            CHECK_MSG(fabs((double)weights.tensor_bytes - bytes) < 1, "%zu bytes",
                      weights.tensor_bytes);
            CHECK(weights.data == NULL && weights.data_bytes >= weights.tensor_bytes);
            tc__weights_close(&weights);
            tc__model_file_close(&file);
        }
}

/* What the blocks of the families are made of, by the models' descriptions. */
TEST(shapes_are_of_their_families) {
    tc_model_params params = params_for("cpu", 1);
    for (int i = 0; tc_shape_name(i); i++) {
        tc__model_file file;
        tc__weights weights;
        tc_error err;
        REQUIRE(tc__shape_open(tc_shape_name(i), "w4a16", 0, false, &params, &file, &err) == TC_OK);
        REQUIRE(tc__weights_open(&file, &weights, &err) == TC_OK);
        const tc__arch *arch = &weights.arch;
        const tc__layer *layer = &weights.layers[arch->layers - 1];
        const char *name = tc_shape_name(i);
        bool mpt = strncmp(name, "mpt", 3) == 0, falcon = strncmp(name, "falcon", 6) == 0;
        CHECK(arch->norm == (mpt || falcon ? TC__NORM_LAYER : TC__NORM_RMS));
        CHECK(arch->position == (mpt ? TC__POSITION_ALIBI : TC__POSITION_ROPE));
        CHECK(arch->activation == (mpt || falcon ? TC__ACT_GELU : TC__ACT_SILU));
        CHECK(arch->gated == !(mpt || falcon) && arch->parallel == falcon);
        CHECK(!layer->act_scales == !(mpt || falcon) && !layer->attn_norm_bias == !falcon);
        CHECK(!layer->mlp_norm == falcon && !layer->mlp_norm_bias && !weights.norm_bias == !falcon);
        CHECK(!layer->qkv_bias == (strncmp(name, "qwen2", 5) != 0));
        CHECK(!layer->q_norm == (strncmp(name, "qwen3", 5) != 0));
        tc__weights_close(&weights);
        tc__model_file_close(&file);
    }
}

TEST(tensors_lie_one_behind_the_other) {
    tc_model_params params = params_for("cpu", 1);
    tc__model_file file;
    REQUIRE(tc__shape_open("llama-2-70b", "w4a16", 64, false, &params, &file, NULL) == TC_OK);
    size_t end = 0;
    for (size_t i = 0; i < file.tensor_count; i++) {
        const tc__tensor *tensor = &file.tensors[i];
        CHECK(tensor->offset % TC__DATA_ALIGN == 0 && tensor->offset >= end &&
              tensor->offset < end + TC__DATA_ALIGN && tensor->size % 8 == 0);
        CHECK(tensor->columns == 1 || tensor->rows % TC__UNIT_ROWS == 0);
        end = tensor->offset + tensor->size;
    }
    tc__model_file_close(&file);
}

TEST(every_name_is_listed_once) {
    int n = 0;
    for (const char *name; (name = tc_shape_name(n)) != NULL; n++)
        for (int i = 0; i < n; i++) CHECK(strcmp(tc_shape_name(i), name) != 0);
    CHECK(n == 12 && tc_shape_name(-1) == NULL);
}

/* A shape of one's own has exactly what it asks for, and ALiBi's slopes for any number of heads. */
TEST(shapes_can_be_made) {
    static const tc__shape_spec spec = {"made",
                                        "family",
                                        96,
                                        192,
                                        3,
                                        12,
                                        4,
                                        16,
                                        100,
                                        64,
                                        1e-6,
                                        .clip_qkv = 2.5,
                                        .norm = TC__NORM_LAYER,
                                        .position = TC__POSITION_ALIBI,
                                        .activation = TC__ACT_GELU,
                                        .parallel = 1,
                                        .norm_bias = true,
                                        .qkv_bias = true,
                                        .qk_norm = true,
                                        .act_scales = true};
    tc_model_params params = params_for("cpu", 1);
    tc__model_file file;
    tc__weights weights;
    tc_error err;
    REQUIRE(tc__shape_make(&spec, "w4a16", 0, true, &params, &file, &err) == TC_OK);
    int code = tc__weights_open(&file, &weights, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    REQUIRE(code == TC_OK);
    const tc__arch *arch = &weights.arch;
    CHECK(arch->hidden_size == 96 && arch->heads == 12 && arch->kv_heads == 4);
    CHECK(arch->clip_qkv == 2.5f && arch->norm_eps == 1e-6f && arch->frequencies == NULL);
    CHECK(!arch->gated && arch->parallel && weights.norm_bias && weights.head != weights.embed);
    const tc__layer *layer = &weights.layers[2];
    CHECK(layer->attn_norm_bias && layer->mlp_norm_bias && layer->qkv_bias && layer->q_norm &&
          layer->k_norm && layer->act_scales && layer->qkv->group_size == 32);
    /* The rule by which MPT takes the slopes of 16 heads: 2^-1, 2^-2, ..., then 2^-0.5, ... */
    for (int h = 0; h < 12; h++)
        CHECK(fabs(arch->slopes[h] - pow(2, h < 8 ? -(h + 1) : -(h - 8 + 0.5))) < 1e-7);
    tc__weights_close(&weights);
    tc__model_file_close(&file);

    tc__shape_spec odd = spec;
    odd.head_dim = 24; /* 4 KV heads of it: 96 rows, and 288 columns */
    CHECK(tc__shape_make(&odd, "w4a16", 0, false, &params, &file, &err) == TC_OK);
    tc__model_file_close(&file);
    CHECK(tc__shape_make(&odd, "w4a16", 64, false, &params, &file, &err) == TC_ERR_ARGUMENT);
    CHECK_MSG(strcmp(err.message, "group size 64 does not divide the matrices' columns of made: "
                                  "96, 288, 192") == 0,
              "%s", err.message);
    odd.kv_heads = 3; /* 72 rows */
    CHECK(tc__shape_make(&odd, "w16a16", 0, false, &params, &file, &err) == TC_ERR_ARGUMENT);
    CHECK_MSG(strcmp(err.message, "the sizes of made are not multiples of 16") == 0, "%s",
              err.message);
}

/* ---- weights ---- */

static float half_at(const uint8_t *bytes) {
    uint16_t half;
    memcpy(&half, bytes, sizeof half);
    return tc__f16_to_f32(half);
}

/* The value of a W4 weight as docs/format.md defines it. */
static double w4_weight(const tc__tensor *tensor, size_t row, size_t column, unsigned *q) {
    unsigned g = tensor->group_size, place, shift, r = (unsigned)(row % 16);
    const uint8_t *unit =
        tensor->data + (row / 16 * (tensor->columns / g) + column / g) * TC__UNIT_BYTES(g);
    tc__unit_place(g, r, (unsigned)(column % g), &place, &shift);
    const uint8_t *pair = unit + 8 * g + 8 * (r % 8) + 4 * (r / 8);
    *q = (unsigned)(unit[place] >> shift & 15);
    CHECK(fabs(half_at(pair) - 0.002) < 1e-6 && half_at(pair + 2) == (r < 8 ? 7.0f : 8.0f));
    return (double)half_at(pair) * ((double)*q - half_at(pair + 2));
}

TEST(w4_weights_are_random_around_zero) {
    static const int groups[] = {32, 64, 128};
    tc_model_params params = params_for("cpu", 2);
    for (size_t i = 0; i < TC_COUNT(groups); i++) {
        tc__model_file file;
        size_t counts[16] = {0};
        double sum = 0, squares = 0;
        REQUIRE(tc__shape_open("tiny", "w4a16", groups[i], true, &params, &file, NULL) == TC_OK);
        const tc__tensor *tensor = tc__find_tensor(&file, "1.gate_up");
        REQUIRE(tensor && tensor->data && tensor->group_size == (uint32_t)groups[i]);
        for (size_t row = 0; row < tensor->rows; row++)
            for (size_t column = 0; column < tensor->columns; column++) {
                unsigned q;
                double w = w4_weight(tensor, row, column, &q);
                counts[q]++;
                sum += w;
                squares += w * w;
            }
        double n = (double)(tensor->rows * tensor->columns);
        CHECK_MSG(fabs(sum / n) < 1e-4, "mean %g", sum / n);
        double deviation = sqrt(squares / n);
        CHECK_MSG(fabs(deviation - 0.002 * 4.637) < 2e-4, "deviation %g", deviation);
        for (int q = 0; q < 16; q++) /* 16384 each: 6 standard deviations are 5 % */
            CHECK_MSG(fabs((double)counts[q] * 16 / n - 1) < 0.05, "q %d: %zu", q, counts[q]);
        tc__model_file_close(&file);
    }
}

static float float_at(const uint8_t *bytes) {
    float value;
    memcpy(&value, bytes, sizeof value);
    return value;
}

TEST(halves_and_vectors_follow_their_rule) {
    tc_model_params params = params_for("cpu", 1);
    tc__model_file file;
    REQUIRE(tc__shape_open("tiny", "w16a16", 0, true, &params, &file, NULL) == TC_OK);
    const tc__tensor *head = tc__find_tensor(&file, "head"), *norm = tc__find_tensor(&file, "norm");
    REQUIRE(head && norm);
    size_t negative = 0;
    for (size_t i = 0; i < head->size / 2; i++) {
        float w = half_at(head->data + 2 * i);
        CHECK(fabsf(w) >= 1.0f / 128 && fabsf(w) < 1.0f / 64);
        negative += w < 0;
    }
    CHECK(negative > head->size / 5 && negative < head->size * 3 / 10);
    for (size_t i = 0; i < norm->rows; i++) {
        float factor = float_at(norm->data + 4 * i);
        CHECK(factor >= 1 && factor < 1.25f && (!i || factor != float_at(norm->data)));
    }
    /* SplitMix64 started at 0: its first output, with the rule's mask, in the second word of all */
    uint64_t word, first = 0xe220a8397b1dcdafu;
    memcpy(&word, file.tensors[0].data + 8, sizeof word);
    CHECK(word == ((first & 0x83ff83ff83ff83ffu) | 0x2000200020002000u));
    tc__model_file_close(&file);
    tc__shape_spec biased = {"biased", "", 64, 64,   1,   4,          4,
                             16,       32, 32, 1e-5, 1e4, .gated = 1, .qkv_bias = true};
    REQUIRE(tc__shape_make(&biased, "w16a16", 0, true, &params, &file, NULL) == TC_OK);
    const tc__tensor *bias = tc__find_tensor(&file, "0.qkv_bias");
    REQUIRE(bias && bias->rows == 192);
    negative = 0;
    for (size_t i = 0; i < bias->rows; i++) {
        float value = float_at(bias->data + 4 * i);
        CHECK(fabsf(value) >= 0.0625f && fabsf(value) < 0.125f);
        negative += value < 0;
    }
    CHECK(negative > 48 && negative < 144);
    tc__model_file_close(&file);
}

TEST(threads_do_not_change_the_weights) {
    tc__model_file files[2];
    for (int i = 0; i < 2; i++) {
        tc_model_params params = params_for("cpu", i ? 5 : 1);
        REQUIRE(tc__shape_open("tiny", "w4a16", 0, true, &params, &files[i], NULL) == TC_OK);
    }
    for (size_t i = 0; i < files[0].tensor_count; i++)
        CHECK(memcmp(files[0].tensors[i].data, files[1].tensors[i].data,
                     files[0].tensors[i].size) == 0);
    for (int i = 0; i < 2; i++) tc__model_file_close(&files[i]);
}

/* ---- models ---- */

enum { IDS = 40, VOCAB = 512 };

/* The logits of the tiny shape's last position. 0: done; 1: the device cannot be used. */
static int tiny_logits(const char *device, const char *precision, int group_size, float *logits) {
    tc_model_params params = params_for(device, 2);
    tc_model *model;
    tc_session *session = NULL;
    tc_error err;
    int32_t ids[IDS];
    for (int i = 0; i < IDS; i++) ids[i] = (i * 37 + 11) % VOCAB;
    int code = tc_model_open_shape("tiny", precision, group_size, &params, &model, &err);
    if (code == TC_ERR_DEVICE) return 1;
    if (!code) code = tc_session_open(model, NULL, &session, &err);
    if (!code) code = tc_eval(session, ids, IDS, &err);
    CHECK_MSG(code == TC_OK, "%s %s: %s", device, precision, err.message);
    if (!code) memcpy(logits, tc_logits(session), VOCAB * sizeof *logits);
    tc_session_close(session);
    tc_model_close(model);
    return 0;
}

static double spread(const float *logits) {
    double sum = 0, squares = 0;
    for (int i = 0; i < VOCAB; i++) {
        CHECK(isfinite(logits[i]));
        sum += logits[i];
        squares += (double)logits[i] * logits[i];
    }
    return sqrt(squares / VOCAB - sum * sum / VOCAB / VOCAB);
}

static const struct {
    const char *precision;
    int group_size;
} kinds[] = {{"w4a16", 32}, {"w4a16", 64}, {"w4a16", 128}, {"w16a16", 0}};

TEST(logits_are_of_a_model_s_size) {
    float logits[VOCAB] = {0};
    for (size_t i = 0; i < TC_COUNT(kinds); i++) {
        REQUIRE(tiny_logits("cpu", kinds[i].precision, kinds[i].group_size, logits) == 0);
        double s = spread(logits);
        CHECK_MSG(s > 0.05 && s < 5, "%s: deviation %g", kinds[i].precision, s);
    }
}

/* The GPU makes its weights itself: the same ones. */
TEST(a_gpu_makes_the_same_weights) {
    float cpu[VOCAB] = {0}, gpu[VOCAB] = {0};
    for (size_t i = 0; i < TC_COUNT(kinds); i++) {
        const char *precision = kinds[i].precision;
        if (tiny_logits("cuda", precision, kinds[i].group_size, gpu)) SKIP("no GPU can be used");
        REQUIRE(tiny_logits("cpu", precision, kinds[i].group_size, cpu) == 0);
        double error = 0, all = 0;
        for (int k = 0; k < VOCAB; k++) {
            error += ((double)gpu[k] - cpu[k]) * ((double)gpu[k] - cpu[k]);
            all += (double)cpu[k] * cpu[k];
        }
        CHECK_MSG(sqrt(error / all) < 5e-3, "%s group size %d: relative error %g", precision,
                  kinds[i].group_size, sqrt(error / all));
    }
}

TEST(a_shape_is_a_model_without_a_tokenizer) {
    tc_model_params params = params_for("cpu", 2);
    tc_model *model;
    tc_chat *chat;
    tc_error err;
    REQUIRE(tc_model_open_shape("tiny", NULL, 0, &params, &model, &err) == TC_OK);
    tc_model_info info = tc_model_get_info(model);
    CHECK(strcmp(info.name, "tiny") == 0 && strcmp(info.family, "llama") == 0 &&
          strcmp(info.precision, "W4A16 g128") == 0);
    CHECK(info.vocab_size == VOCAB && !info.has_tokenizer && info.bos_id == -1);
    CHECK(info.layer_parameters < info.parameters && info.layer_parameters > 0);
    CHECK(tc_chat_open(model, NULL, &chat, &err) == TC_ERR_UNSUPPORTED && chat == NULL);
    CHECK(tc_model_verify(model, NULL, NULL, &err) == TC_ERR_ARGUMENT);
    tc_model_close(model);
}

/* ---- errors ---- */

static int stop(void *user, double fraction, const char *what) {
    const char *step = user;
    (void)fraction;
    return strcmp(step, what) == 0;
}

TEST(errors_say_what_is_expected) {
    static const struct {
        const char *name, *precision;
        int group_size, code;
        const char *message;
    } cases[] = {
        {"llama", NULL, 0, TC_ERR_ARGUMENT, "'llama'; expected one of llama-2-7b, "},
        {"", NULL, 0, TC_ERR_ARGUMENT, "''"},
        {"LLAMA-2-7B", NULL, 0, TC_ERR_ARGUMENT, "'LLAMA-2-7B'"},
        {"falcon-7b", NULL, 128, TC_ERR_ARGUMENT, "of falcon-7b: 4544, 4544, 18176"},
        {"tiny", "W4A16", 0, TC_ERR_ARGUMENT, "expected w4a16 or w16a16"},
        {"tiny", NULL, 16, TC_ERR_ARGUMENT, "expected 32, 64 or 128"},
        {"tiny", NULL, -128, TC_ERR_ARGUMENT, "expected 32, 64 or 128"},
        {"tiny", "w16a16", 128, TC_ERR_ARGUMENT, "expected none"},
    };
    tc_model_params params = params_for("cpu", 1);
    tc_model *model;
    tc_error err;
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        int code = tc_model_open_shape(cases[i].name, cases[i].precision, cases[i].group_size,
                                       &params, &model, &err);
        CHECK_MSG(code == cases[i].code && model == NULL && strstr(err.message, cases[i].message),
                  "case %zu: code %d: %s", i, code, err.message);
    }
    CHECK(tc_model_open_shape(NULL, NULL, 0, &params, &model, &err) == TC_ERR_ARGUMENT);
    CHECK(tc_model_open_shape("tiny", NULL, 0, &params, NULL, &err) == TC_ERR_ARGUMENT);
    params.threads = -1;
    CHECK(tc_model_open_shape("tiny", NULL, 0, &params, &model, &err) == TC_ERR_ARGUMENT);
    params = params_for("abacus", 1);
    CHECK(tc_model_open_shape("tiny", NULL, 0, &params, &model, &err) == TC_ERR_ARGUMENT);
    params = params_for("cpu", 1);
    params.progress = stop;
    params.user = "making random weights";
    CHECK(tc_model_open_shape("tiny", NULL, 0, &params, &model, &err) == TC_ERR_CANCELLED);
    CHECK(model == NULL);
}

TEST(what_does_not_fit_is_refused) {
    tc_model_params params = params_for("cpu", 1);
    tc_model *model;
    tc_error err;
    if (tc__available_memory() > (size_t)128 << 30) SKIP("this machine has memory for that model");
    CHECK(tc_model_open_shape("llama-2-70b", "w16a16", 0, &params, &model, &err) == TC_ERR_MEMORY);
    CHECK_MSG(strstr(err.message, "llama-2-70b need 128.") && strstr(err.message, " are available"),
              "%s", err.message);
}

/* clang-format off */
TEST_MAIN(
    RUN(shapes_have_the_published_sizes)
    RUN(shapes_are_of_their_families)
    RUN(tensors_lie_one_behind_the_other)
    RUN(every_name_is_listed_once)
    RUN(shapes_can_be_made)
    RUN(w4_weights_are_random_around_zero)
    RUN(halves_and_vectors_follow_their_rule)
    RUN(threads_do_not_change_the_weights)
    RUN(logits_are_of_a_model_s_size)
    RUN(a_gpu_makes_the_same_weights)
    RUN(a_shape_is_a_model_without_a_tokenizer)
    RUN(errors_say_what_is_expected)
    RUN(what_does_not_fit_is_refused))
