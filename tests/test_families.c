/* Every family against transformers, end to end: checkpoints made by rule from tests/data/families
 * (tests/make_family_data.py) are converted by the real program and evaluated through the public
 * API; see reference.h for what is compared.
 */
#include "random_checkpoint.h"
#include "reference.h"

static char folder[PROGRAM_PATH]; /* the checkpoint that is tested */

/* Makes hf/ in the tests' folder: the family's config.json and model.safetensors. */
static bool make_checkpoint(const char *family) {
    char from[PROGRAM_PATH], to[PROGRAM_PATH + 32];
    tc__map config = {NULL, 0};
    snprintf(from, sizeof from, "tests/data/families/%s/config.json", family);
    snprintf(to, sizeof to, "%s/config.json", folder);
    FILE *file = fopen(to, "wb");
    bool good = file && tc__map_open(from, &config, NULL) == TC_OK &&
                fwrite(config.data, 1, config.size, file) == config.size;
    if (file) good &= fclose(file) == 0;
    tc__map_close(&config);
    snprintf(from, sizeof from, "tests/data/families/%s/header.json", family);
    snprintf(to, sizeof to, "%s/model.safetensors", folder);
    return good && random_checkpoint_write(from, to);
}

/* The weights as they are, and rounded to 4 bits. Without any rounding the engine is as exact as
 * fp32: GELU by tanh instead of erf is 2e-4 away. */
static void check_family(const char *family, const char *group, const char *cut) {
    const fixture files[] = {{".", NULL, "w16", false, 3e-5, NULL},
                             {".", NULL, "w4", false, 0, group}};
    char references[PROGRAM_PATH];
    snprintf(references, sizeof references, "tests/data/families/%s", family);
    REQUIRE(make_checkpoint(family));
    check_folder(references, folder, files, 2, cut);
}

TEST(mpt) {
    check_family("mpt", "64", "len100");
}
TEST(mpt_112) {
    check_family("mpt-112", "64", "len100");
}
TEST(falcon) {
    check_family("falcon", "64", "len100");
}
TEST(falcon_new) {
    check_family("falcon-new", "64", "len100");
}
TEST(llama3) {
    check_family("llama3", "128", "len100");
}
TEST(llama_linear) {
    check_family("llama-linear", "64", "len100");
}
TEST(llama_dynamic) {
    check_family("llama-dynamic", "64", "len64");
}
TEST(mistral) {
    check_family("mistral", "64", "len48");
}
TEST(qwen2_yarn) {
    check_family("qwen2-yarn", "32", "len100");
}
TEST(qwen3) {
    check_family("qwen3", "64", "len100");
}

/* Both end where the model would begin to differ from what the engine computes. */
TEST(contexts_end_where_the_numbers_would_change) {
    static const struct {
        const char *family, *message;
    } cases[] = {
        {"mistral", "expected 1 to 48 (the model's maximum: it has a sliding window of 48 "},
        {"llama-dynamic", "expected 1 to 64 (the model's maximum)"},
    };
    static const fixture file = {".", NULL, "w16", false, 0, NULL};
    char path[PROGRAM_PATH + 32];
    snprintf(path, sizeof path, "%s/model.bin", folder);
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        bool missing;
        tc_session_params params = {65};
        tc_session *session;
        tc_error err;
        REQUIRE(make_checkpoint(cases[i].family) && convert(folder, &file, path));
        tc_model *model = open_model(path, NULL, 1, &missing);
        REQUIRE(model);
        CHECK(tc_session_open(model, &params, &session, &err) == TC_ERR_ARGUMENT && !session);
        CHECK_MSG(strstr(err.message, cases[i].message), "%s", err.message);
        tc_model_close(model);
    }
}

/* clang-format off */
TEST_MAIN(
    if (!program_folder(folder)) return 1;
    RUN(mpt)
    RUN(mpt_112)
    RUN(falcon)
    RUN(falcon_new)
    RUN(llama3)
    RUN(llama_linear)
    RUN(llama_dynamic)
    RUN(mistral)
    RUN(qwen2_yarn)
    RUN(qwen3)
    RUN(contexts_end_where_the_numbers_would_change)
    program_remove_folder(folder);)
