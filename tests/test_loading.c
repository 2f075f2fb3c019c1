/* What lies around the kernels - opening the GPU, compiling, loading, sessions, sharing memory, carrying
 * kernels - with a driver that computes nothing but keeps memory (fake_cuda.c). The kernels are compiled
 * by the real NVRTC.
 */
#include "program.h"
#include "convert/writer.h"
#include "src/gpu_driver.h"
#include "src/session.h"
#include "fake_cuda.h"
#include "test.h"

#include <errno.h>

static fake_driver *fake;
static char folder[PROGRAM_PATH], path[PROGRAM_PATH + 16];

/* A model file of about 90 MB, more than all staging buffers hold. */
static const tc__shape_spec large = {
    "large",          "llama",           1024,      512, 1, 8, 8, 128, 20000, 512,
    .norm_eps = 1e-5, .rope_theta = 1e4, .gated = 1};

static bool write_model(void) {
    tc_model_params params = tc_model_default_params();
    tc__model_file file;
    writer w;
    tc_error err;
    int code = tc__shape_make(&large, "w4a16", 128, true, &params, &file, &err);
    writer_init(&w);
    for (size_t i = 0; i < file.meta_count && !code; i++) writer_meta(&w, &file.metas[i]);
    for (size_t i = 0; i < file.tensor_count && !code; i++) {
        const tc__tensor *t = &file.tensors[i];
        writer_declare(&w, t->name, t->type, t->group_size, t->rows, t->columns);
    }
    if (!code) code = writer_begin(&w, path, &err);
    for (size_t i = 0; i < file.tensor_count && !code; i++)
        code = writer_put(&w, file.tensors[i].data, file.tensors[i].size, &err);
    if (!code) code = writer_finish(&w, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    writer_free(&w);
    tc__model_file_close(&file);
    return code == TC_OK;
}

static tc_model_params on_fake(void) {
    tc_model_params params = tc_model_default_params();
    params.device = "cuda";
    return params;
}

/* Nothing is held that a model or a session should have given back. */
static void check_nothing_held(const char *when) {
    CHECK_MSG(!fake->allocations && !fake->pinned_blocks && !fake->modules && !fake->streams &&
                  !fake->events && !fake->graphs && !fake->contexts && !fake->pushed,
              "%s: %d allocations, %d pinned, %d modules, %d streams, %d events, %d graphs, %d "
              "contexts, %d pushed",
              when, fake->allocations, fake->pinned_blocks, fake->modules, fake->streams,
              fake->events, fake->graphs, fake->contexts, fake->pushed);
    CHECK_MSG(!fake->wrong, "%s: %d wrong calls of the driver: %s", when, fake->wrong,
              fake->complaint);
}

/* ---- loading ---- */

static void check_weights_arrive(int managed) {
    tc_model_params params = on_fake();
    tc__model_file file;
    tc_model *model = NULL;
    tc_error err;
    fake->most_pinned = 0;
    int code = tc_model_open(path, &params, &model, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    REQUIRE(!code && tc__model_file_open(path, &file, &err) == TC_OK);
    const tc__tensor *last = &file.tensors[file.tensor_count - 1];
    const size_t bytes = last->offset + last->size;
    CHECK(bytes > 4 * (8u << 20) && fake->largest_bytes >= bytes);
    CHECK(fake->largest && !memcmp(fake->largest, file.tensors[0].data, bytes));
    CHECK_MSG(fake->managed == managed, "%d allocations are shared", fake->managed);
    CHECK_MSG(fake->most_pinned <= (managed ? 0 : (size_t)64 << 20), "%zu bytes pinned",
              fake->most_pinned);
    CHECK(!strstr(tc_model_get_info(model).device, "shared memory") == !managed);
    tc__model_file_close(&file);
    tc_model_close(model);
    check_nothing_held("after closing");
}

TEST(weights_arrive_as_they_are_in_the_file) {
    check_weights_arrive(0);
}

TEST(integrated_gpus_share_the_memory) {
    fake->integrated = 1;
    check_weights_arrive(1);
    fake->integrated = 0;
    setenv("TINYCHAT_INTEGRATED", "1", 1);
    check_weights_arrive(1);
    setenv("TINYCHAT_INTEGRATED", "0", 1);
    check_weights_arrive(0);
    unsetenv("TINYCHAT_INTEGRATED");
}

/* Cuts the file off while it is being loaded. */
static int cut_off(void *user, double fraction, const char *what) {
    (void)user, (void)fraction;
    const bool failed = strcmp(what, "preparing kernels") == 0 && truncate(path, 50 << 20) != 0;
    errno = EINTR; /* of before: the end of the file is no interrupted call */
    return failed;
}

static int stop_at_half(void *user, double fraction, const char *what) {
    (void)user;
    return strcmp(what, "loading") == 0 && fraction > 0.5;
}

TEST(a_file_that_changes_is_an_error) {
    tc_model_params params = on_fake();
    tc_model *model;
    tc_error err;
    params.progress = cut_off;
    CHECK(tc_model_open(path, &params, &model, &err) == TC_ERR_IO && !model);
    CHECK_MSG(strstr(err.message, "was it changed"), "%s", err.message);
    check_nothing_held("after a file that is too short");
    REQUIRE(write_model());
    params.progress = stop_at_half;
    CHECK(tc_model_open(path, &params, &model, &err) == TC_ERR_CANCELLED && !model);
    check_nothing_held("after a cancellation");
}

/* ---- memory ---- */

TEST(out_of_memory_says_what_fits) {
    tc_model_params params = on_fake();
    tc_session_params size = {0};
    tc_model *model;
    tc_session *session = NULL;
    tc_error err;
    const size_t memory = fake->memory;
    fake->memory = 40 << 20;
    CHECK(tc_model_open(path, &params, &model, &err) == TC_ERR_MEMORY && !model);
    CHECK_MSG(strstr(err.message, "weights alone need 0.08 GiB") &&
                  strstr(err.message, "no --max-seq-len fits"),
              "%s", err.message);
    fake->memory = memory;
    REQUIRE(tc_model_open(path, &params, &model, &err) == TC_OK);
    /* room for the smallest session, and 64 positions of 4 KB */
    REQUIRE(tc_session_open(model, &size, &session, &err) == TC_OK);
    tc_session_info all = tc_session_get_info(session);
    tc_session_close(session);
    CHECK(all.ctx_size == 512 && all.workspace_bytes <= (size_t)256 << 20);
    fake->memory = fake->allocated + all.kv_bytes / 2 + all.workspace_bytes;
    CHECK(tc_session_open(model, &size, &session, &err) == TC_ERR_MEMORY && !session);
    const char *words = "largest --max-seq-len that fits is ", *at = strstr(err.message, words);
    CHECK_MSG(at && strstr(err.message, "KV cache") && strstr(err.message, "weights"), "%s",
              err.message);
    REQUIRE(at);
    size.ctx_size = atoi(at + strlen(words)) + 1;
    CHECK(tc_session_open(model, &size, &session, &err) == TC_ERR_MEMORY);
    size.ctx_size--;
    CHECK_MSG(tc_session_open(model, &size, &session, &err) == TC_OK, "%s", err.message);
    tc_session_close(session);
    size.ctx_size = -1; /* chosen to fit */
    fake->memory = fake->allocated + all.kv_bytes + all.workspace_bytes;
    CHECK_MSG(tc_session_open(model, &size, &session, &err) == TC_OK, "%s", err.message);
    CHECK(tc_session_get_info(session).ctx_size < 512);
    tc_session_close(session);
    tc_model_close(model);
    fake->memory = memory;
    check_nothing_held("after running out of memory");
}

/* Whichever call of the driver fails: an error, nothing held, and no crash. */
TEST(every_call_of_the_driver_may_fail) {
    static const int32_t ids[] = {1, 2, 3, 4, 5};
    tc_model_params params = on_fake();
    long calls = 0, failures = 0;
    for (long at = 1;; at += at < 60 ? 1 : at < 400 ? 7 : 23) {
        tc_model *model = NULL;
        tc_session *session = NULL;
        tc_session_params size = {64};
        tc_error err = {0, ""};
        int32_t id;
        fake->calls = 0;
        fake->fail_at = at;
        int code = tc_model_open(path, &params, &model, &err);
        if (!code) code = tc_session_open(model, &size, &session, &err);
        if (!code) code = tc_eval(session, ids, 5, &err);
        if (!code) code = tc_eval(session, ids, 1, &err);
        if (!code) code = tc_sample(session, NULL, &id, &err);
        if (!code && !tc_logits(session)) code = TC_ERR_DEVICE;
        const bool reached = fake->fail_at == 0;
        fake->fail_at = 0;
        calls = fake->calls;
        CHECK_MSG(!reached || code, "call %ld failed and nobody noticed", at);
        CHECK_MSG(!reached || !*err.message || strstr(err.message, "told to fail") ||
                      code == TC_ERR_DEVICE,
                  "%s", err.message);
        failures += reached;
        tc_session_close(session);
        tc_model_close(model);
        check_nothing_held("after a failed call");
        if (!reached) {
            CHECK_MSG(code == TC_OK, "%s", err.message);
            break;
        }
    }
    printf("    %ld calls, %ld of them failed\n", calls, failures);
    CHECK(failures > 60);
}

/* ---- kernels ---- */

TEST(kernels_are_carried) {
    char kernels[PROGRAM_PATH + 16], cache[PROGRAM_PATH + 16];
    tc_model_params params = on_fake();
    tc_model *model;
    tc_error err;
    snprintf(kernels, sizeof kernels, "%s/kernels", folder);
    snprintf(cache, sizeof cache, "%s/none", folder);
    const char *chosen = getenv("TINYCHAT_NVRTC");
    char *kept_cache = tc__copy(getenv("TINYCHAT_CACHE"), strlen(getenv("TINYCHAT_CACHE")));
    REQUIRE(tc_model_open(path, &params, &model, &err) == TC_OK);
    CHECK_MSG(tc_model_export_kernels(model, kernels, &err) == TC_OK, "%s", err.message);
    tc_model_close(model);
    setenv("TINYCHAT_NVRTC", "/nonexistent", 1);
    setenv("TINYCHAT_CACHE", cache, 1);
    CHECK(tc_model_open(path, &params, &model, &err) == TC_ERR_DEVICE);
    params.kernels = kernels;
    CHECK_MSG(tc_model_open(path, &params, &model, &err) == TC_OK, "%s", err.message);
    tc_model_close(model);
    CHECK(tc_model_open_shape("tiny", NULL, 0, &params, &model, &err) == TC_ERR_UNSUPPORTED);
    CHECK_MSG(strstr(err.message, "hidden size 1024") && strstr(err.message, "hidden size 256"),
              "%s", err.message);
    CHECK(access(cache, F_OK) != 0);
    if (chosen)
        setenv("TINYCHAT_NVRTC", chosen, 1);
    else
        unsetenv("TINYCHAT_NVRTC");
    setenv("TINYCHAT_CACHE", kept_cache, 1);
    free(kept_cache);
    unlink(kernels);
    check_nothing_held("after carried kernels");
}

/* ---- running ---- */

int main(void) {
    char cache[PROGRAM_PATH + 16];
    tc__nvrtc nvrtc;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) {
        printf("  skip   everything: %s (needs NVRTC)\n0 passed, 0 failed, 1 skipped\n",
               err.message);
        return 0;
    }
    /* it stays open: what it keeps for good would look like a leak if it were unloaded */
    fake = fake_cuda_open();
    if (!fake || !program_folder(folder)) return 1;
    snprintf(path, sizeof path, "%s/model.bin", folder);
    snprintf(cache, sizeof cache, "%s/cache", folder);
    setenv("TINYCHAT_CACHE", cache, 1);
    if (!write_model()) return 1;
    RUN(weights_arrive_as_they_are_in_the_file)
    RUN(integrated_gpus_share_the_memory)
    RUN(a_file_that_changes_is_an_error)
    RUN(out_of_memory_says_what_fits)
    RUN(every_call_of_the_driver_may_fail)
    RUN(kernels_are_carried)
    program_remove_folder(cache);
    program_remove_folder(folder);
    printf("%d passed, %d failed, %d skipped\n", test_passed_, test_failed_, test_skipped_);
    return test_failed_ != 0;
}
