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

/* Parameters counted from the published checkpoints. */
TEST(shapes_have_the_published_sizes) {
    static const struct {
        const char *name;
        size_t parameters;
    } published[] = {{"llama-2-7b", 6738415616u},
                     {"llama-2-13b", 13015864320u},
                     {"llama-2-70b", 68976648192u},
                     {"llama-3-8b", 8030261248u}};
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
            CHECK_MSG(weights.parameters == published[i].parameters, "%s: %zu", published[i].name,
                      weights.parameters);
            size_t tables = 2 * weights.embed->rows * weights.embed->columns;
            size_t norms = (2 * (size_t)weights.arch.layers + 1) * weights.arch.hidden_size;
            CHECK(weights.layer_parameters + tables + norms == weights.parameters);
            /* W4 with group size 128: 17 bytes hold 32 weights */
            double each = p ? 2 : 17.0 / 32;
            double bytes =
                (double)weights.layer_parameters * each + 2 * (double)tables + 4 * (double)norms;
            CHECK_MSG(fabs((double)weights.tensor_bytes - bytes) < 1, "%zu bytes",
                      weights.tensor_bytes);
            CHECK(weights.data == NULL && weights.data_bytes >= weights.tensor_bytes);
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
    int supported = 0, n = 0, good = 0;
    for (const char *name; (name = tc_shape_name(n, &supported)) != NULL; n++) {
        good += supported;
        for (int i = 0; i < n; i++) CHECK(strcmp(tc_shape_name(i, NULL), name) != 0);
        tc__model_file file;
        tc_model_params params = params_for("cpu", 1);
        int code = tc__shape_open(name, "w4a16", 0, false, &params, &file, NULL);
        CHECK_MSG(code == (supported ? TC_OK : TC_ERR_UNSUPPORTED), "%s: code %d", name, code);
        if (!code) tc__model_file_close(&file);
    }
    CHECK(good == 5 && n == 9 && tc_shape_name(-1, NULL) == NULL);
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

TEST(halves_and_norms_follow_their_rule) {
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
        float one;
        memcpy(&one, norm->data + 4 * i, sizeof one);
        CHECK(one == 1.0f);
    }
    /* SplitMix64 started at 0: its first output, with the rule's mask, in the second word of all */
    uint64_t word, first = 0xe220a8397b1dcdafu;
    memcpy(&word, file.tensors[0].data + 8, sizeof word);
    CHECK(word == ((first & 0x83ff83ff83ff83ffu) | 0x2000200020002000u));
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
        {"mpt-7b", NULL, 0, TC_ERR_UNSUPPORTED, "family 'mpt'"},
        {"falcon-7b", "w16a16", 0, TC_ERR_UNSUPPORTED, "family 'falcon'"},
        {"qwen2.5-7b", NULL, 0, TC_ERR_UNSUPPORTED, "family 'qwen2'"},
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
    RUN(tensors_lie_one_behind_the_other)
    RUN(every_name_is_listed_once)
    RUN(w4_weights_are_random_around_zero)
    RUN(halves_and_norms_follow_their_rule)
    RUN(threads_do_not_change_the_weights)
    RUN(logits_are_of_a_model_s_size)
    RUN(a_gpu_makes_the_same_weights)
    RUN(a_shape_is_a_model_without_a_tokenizer)
    RUN(errors_say_what_is_expected)
    RUN(what_does_not_fit_is_refused))
