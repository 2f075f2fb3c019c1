/* The GPU engine, but for what its kernels compute, on machines without a GPU: models of every family
 * and precision, the built-in shapes and every architecture, with a driver that is as strict as the
 * real one (fake_cuda.c). Kernels must be in the programs they are looked for in, with launches that
 * fit; memory, handles and contexts must be as they were when all is closed.
 *
 * The kernels are compiled by the real NVRTC, mostly to PTX (fake_nvrtc.c), and kept in
 * build/kernels-of-tests, so that only the first run takes long.
 */
#include "fake_cuda.h"
#include "program.h"
#include "src/gpu_driver.h"
#include "src/session.h"
#include "test.h"
#include "tiny_model.h"

#include <pthread.h>

/* One of so many built-in shapes: a sanitizer sees the same in all of them. */
#if defined(__SANITIZE_ADDRESS__)
#define FEW 4
#else
#define FEW 1
#endif

#define MEMORY ((size_t)256 << 30) /* of the GPU, unless a test says otherwise */

static fake_driver *fake;
static fake_depth_fn *depth;
static char fakes[1024];          /* the folder of the fake libraries */
static char folder[PROGRAM_PATH]; /* for files */
static char real_nvrtc[512];      /* "": there is none */
static char why_not[sizeof((tc_error *)NULL)->message];

#define NEEDS_NVRTC                                                                                \
    if (!*real_nvrtc) SKIP("needs NVRTC: %s", why_not)

/* ---- GPUs ---- */

static const struct gpu {
    int arch, sm_count;
} gpus[] = {{80, 108}, {86, 82}, {87, 16}, {89, 128}, {90, 132}, {100, 148}, {120, 170}};

/* A machine with this GPU, and kernels made fast, as PTX, or as machine code. */
static void use_gpu(int arch, bool machine_code) {
    char cache[1200];
    fake->arch = arch;
    fake->memory = MEMORY;
    for (size_t i = 0; i < TC_COUNT(gpus); i++)
        if (gpus[i].arch == arch) fake->sm_count = gpus[i].sm_count;
    snprintf(cache, sizeof cache, "%s/../../../kernels-of-tests/%s", fakes,
             machine_code ? "cubin" : "ptx");
    setenv("TINYCHAT_CACHE", cache, 1);
    if (machine_code)
        unsetenv("FAKE_NVRTC_QUICK");
    else
        setenv("FAKE_NVRTC_QUICK", "1", 1);
}

/* Whether this NVRTC knows an architecture. */
static bool known(int arch) {
    tc__nvrtc nvrtc;
    int count = 0, archs[128];
    bool found = false;
    if (tc__nvrtc_open(&nvrtc, 0, NULL)) return false;
    if (nvrtc.arch_count(&count) || count > 128 || nvrtc.archs(archs)) count = 0;
    for (int i = 0; i < count; i++) found |= archs[i] == arch;
    tc__nvrtc_close(&nvrtc);
    return found;
}

static void check_state(const char *when) {
    CHECK_MSG(!fake->wrong, "%s: %d wrong calls of the driver; the first: %s", when, fake->wrong,
              fake->complaint);
    fake->wrong = 0;
}

/* Nothing is held that a model or a session should have given back. */
static void check_nothing_held(const char *when) {
    CHECK_MSG(!fake->allocations && !fake->pinned_blocks && !fake->modules && !fake->streams &&
                  !fake->events && !fake->graphs && !fake->contexts && !fake->pushed && !depth(),
              "%s: %d allocations, %d pinned, %d modules, %d streams, %d events, %d graphs, %d "
              "contexts held; %d pushed",
              when, fake->allocations, fake->pinned_blocks, fake->modules, fake->streams,
              fake->events, fake->graphs, fake->contexts, fake->pushed);
    check_state(when);
}

/* ---- models ---- */

static void remark(void *user, const char *line) {
    snprintf(user, 1024, "%s", line);
}

static tc_model_params on_gpu(void) {
    tc_model_params params = tc_model_default_params();
    params.device = "cuda";
    params.threads = 1;
    return params;
}

#define SIZES(hidden, inner, heads, kv_heads, head_dim)                                            \
    hidden, inner, 2, heads, kv_heads, head_dim, 1003, 4096, .norm_eps = 1e-5
#define ROPE .rope_theta = 1e4
static const struct small {
    tc__shape_spec spec;
    const char *precision;
    int group_size;
    bool everywhere; /* on every architecture; else on sm_86 and sm_90 */
    int head_bits;
} smalls[] = {
    {{"llama g128", "llama", SIZES(256, 512, 4, 2, 64), ROPE, .gated = 1}, "w4a16", 128, true, 0},
    {{"llama w16", "llama", SIZES(256, 512, 2, 2, 128), ROPE, .gated = 1}, "w16a16", 0, false, 8},
    {{"falcon g32, two norms, head 80", "falcon", SIZES(480, 992, 6, 1, 80), ROPE, .norm = 1,
      .activation = 1, .parallel = 1, .norm_bias = true, .tied = true, .act_scales = true},
     "w4a16",
     32,
     false,
     0},
    {{"mpt w16, clipped, head 256", "mpt", SIZES(512, 768, 2, 1, 256), .norm = 1, .position = 1,
      .activation = 1, .clip_qkv = 6, .tied = true},
     "w16a16",
     0,
     false,
     8},
};

/* ---- a session ---- */

static int count_logits(void *user, size_t position, const float *logits, int vocab_size) {
    (void)position;
    *(int *)user += logits[0] == 0 && logits[vocab_size - 1] == 0;
    return 0;
}

/* Evaluates n ids at position `at`. */
static void check_eval(tc_session *session, size_t at, size_t n) {
    int32_t *ids = calloc(n, sizeof *ids);
    tc_error err;
    tc_kv_truncate(session, at);
    CHECK(tc_kv_length(session) == at);
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(i % 300);
    const int code = tc_eval(session, ids, n, &err);
    CHECK_MSG(code == TC_OK, "%zu tokens at %zu: %s", n, at, err.message);
    CHECK(depth() == 0);
    free(ids);
}

/* All that a session can do. `most`: positions it has. */
static void check_session(tc_session *session, size_t most) {
    static const size_t pieces[] = {1, 5, 60, 300, 2049, 3000}; /* 2048: the most at once */
    static const int32_t ids[20] = {1, 2, 3};
    tc_sampling sampling = tc_default_sampling();
    tc_error err;
    int32_t id = -1;
    int seen = 0;
    long launches = fake->launches, graphs = fake->graph_launches;
    for (size_t i = 0; i < TC_COUNT(pieces); i++)
        if (pieces[i] <= most) check_eval(session, 0, pieces[i]);
    CHECK(fake->launches > launches && fake->graph_launches > graphs);
    CHECK_MSG(!fake->alone, "a prompt's last token went the way of several");
    if (most > 3000) check_eval(session, 2900, most - 2900); /* to the context's end */
    check_eval(session, 3, 17);                              /* behind a few */
    check_eval(session, tc_kv_length(session) - 7, 9);
    tc_kv_truncate(session, 4);
    for (int i = 0; i < 3; i++) { /* decode, and the token that was evaluated ahead */
        CHECK_MSG(tc_eval(session, i ? &id : ids, 1, &err) == TC_OK, "%s", err.message);
        CHECK(tc_logits(session) != NULL);
        CHECK_MSG(tc_sample(session, &sampling, &id, &err) == TC_OK && id == 0, "%s", err.message);
        CHECK_MSG(tc_sample(session, &sampling, &id, &err) == TC_OK, "%s", err.message);
        sampling.temperature = 0;
    }
    CHECK_MSG(tc_eval_all(session, ids, 20, count_logits, &seen, &err) == TC_OK && seen == 20,
              "%d: %s", seen, err.message);
    CHECK(tc_eval_all(session, ids, 1, count_logits, &seen, &err) == TC_OK && seen == 21);
    check_state("a session");
}

/* Opens, runs, closes; two sessions at once. */
static void check_model(tc_model *model, const char *name) {
    tc_session_params size = {0};
    tc_session *sessions[2] = {NULL, NULL};
    tc_error err = {0, ""};
    const tc_model_info info = tc_model_get_info(model);
    const int bad = test_bad_;
    size.ctx_size = info.max_seq_len < 3500 ? info.max_seq_len : 3500;
    const size_t most = (size_t)size.ctx_size;
    CHECK_MSG(tc_session_open(model, &size, &sessions[0], &err) == TC_OK, "%s", err.message);
    size.ctx_size = 40;
    CHECK_MSG(tc_session_open(model, &size, &sessions[1], &err) == TC_OK, "%s", err.message);
    if (sessions[0]) check_session(sessions[0], most);
    if (sessions[1]) check_session(sessions[1], 40);
    if (sessions[0]) check_eval(sessions[0], 1, 1);
    tc_session_close(sessions[0]);
    tc_session_close(sessions[1]);
    if (test_bad_ != bad) fprintf(stderr, "    that was %s on %s\n", name, info.device);
}

static void check_small(const struct small *small, int arch, bool machine_code) {
    tc_model_params params = on_gpu();
    tc_model *model;
    tc_error err;
    char device[64];
    use_gpu(arch, machine_code);
    params.head_bits = small->head_bits;
    int code = tc__model_open_spec(tc__cuda_backend(), &small->spec, small->precision,
                                   small->group_size, &params, &model, &err);
    CHECK_MSG(code == TC_OK, "%s on sm_%d: %s", small->spec.name, arch, err.message);
    if (code) return;
    snprintf(device, sizeof device, "Fake GPU (sm_%d%s, %d SMs)", arch, arch == 90 ? "a" : "",
             fake->sm_count);
    CHECK_MSG(!strcmp(tc_model_get_info(model).device, device), "%s",
              tc_model_get_info(model).device);
    check_model(model, small->spec.name);
    tc_model_close(model);
    check_nothing_held(small->spec.name);
}

TEST(small_models_on_every_architecture) {
    NEEDS_NVRTC;
    for (size_t i = 0; i < TC_COUNT(smalls); i++)
        for (size_t k = 0; k < TC_COUNT(gpus); k++) {
            const int arch = gpus[k].arch;
            if (smalls[i].everywhere ? known(arch) : arch == 86 || arch == 90)
                check_small(&smalls[i], arch, false);
        }
}

/* The same programs to the end, so that registers are known too. */
TEST(machine_code_is_as_its_ptx) {
    NEEDS_NVRTC;
    check_small(&smalls[0], 86, true);
    check_small(&smalls[0], 90, true);
    CHECK_MSG(*fake->last_cluster, "no kernel was launched in clusters on sm_90");
}

TEST(files_of_all_precisions) {
    static const struct {
        const char *name;
        int group_size;
    } files[] = {{"g64", 64}, {"bfloat16", -1}};
    char path[PROGRAM_PATH + 16];
    NEEDS_NVRTC;
    use_gpu(90, false);
    snprintf(path, sizeof path, "%s/model.bin", folder);
    for (size_t i = 0; i <= TC_COUNT(files); i++) {
        const bool demo = i == TC_COUNT(files);
        tc_model_params params = on_gpu();
        tiny_model tiny = tiny_model_default();
        tc_model *model;
        tc_error err;
        if (!demo) tiny.group_size = files[i].group_size, tiny.seed = 7;
        REQUIRE(demo || tiny_model_write(&tiny, path) == 0);
        int code = tc_model_open(demo ? "models/demo.bin" : path, &params, &model, &err);
        CHECK_MSG(code == TC_OK, "%s", err.message);
        if (code) continue;
        CHECK(fake->most_pinned <= (size_t)64 << 20 && fake->pinned == 0);
        check_model(model, demo ? "the demo" : files[i].name);
        tc_model_close(model);
        check_nothing_held("after a file");
    }
}

/* ---- the built-in shapes ---- */

/* What the engine takes on the GPU is weights, KV cache and at most 256 MB, at any context. */
static void check_budget(tc_model *model, const char *name) {
    const tc_model_info info = tc_model_get_info(model);
    const int sizes[] = {1, 512, 4096, 20000, info.max_seq_len};
    for (size_t i = 0; i < TC_COUNT(sizes); i++) {
        tc_session_params size = {sizes[i]};
        tc_session *session;
        tc_error err;
        if (sizes[i] > info.max_seq_len) continue;
        int code = tc_session_open(model, &size, &session, &err);
        CHECK_MSG(code == TC_OK, "%s, %d positions: %s", name, sizes[i], err.message);
        if (code) continue;
        const tc_session_info session_info = tc_session_get_info(session);
        const size_t kv = info.kv_bytes_per_token * (size_t)sizes[i];
        const double more = (double)fake->allocated - (double)info.weight_bytes - (double)kv;
        CHECK(session_info.kv_bytes == kv);
        CHECK_MSG(more > 0 && more <= 256e6,
                  "%s, %d positions: %.0f MB beside weights and KV cache", name, sizes[i],
                  more / 1e6);
        CHECK_MSG(fake->pinned <= 8u << 20, "%zu bytes are pinned", fake->pinned);
        /* what was foretold is what was taken */
        const double foretold = (double)(session_info.workspace_bytes + kv);
        const double taken = (double)fake->allocated - (double)fake->largest_bytes;
        CHECK_MSG(fake->largest_bytes < info.weight_bytes || foretold >= taken,
                  "%s, %d positions: %.0f foretold, %.0f taken", name, sizes[i], foretold, taken);
        tc_session_close(session);
    }
}

static void check_shape(const char *name, const char *precision, int arch) {
    tc_model_params params = on_gpu();
    tc_model *model;
    tc_error err;
    use_gpu(arch, false);
    int code = tc_model_open_shape(name, precision, 0, &params, &model, &err);
    CHECK_MSG(code == TC_OK, "%s on sm_%d: %s", name, arch, err.message);
    if (code) return;
    check_model(model, name);
    check_budget(model, name);
    tc_model_close(model);
    check_nothing_held(name);
}

TEST(built_in_shapes) {
    NEEDS_NVRTC;
    for (int i = 0; tc_shape_name(i); i++) {
        if (i % FEW == 0) check_shape(tc_shape_name(i), "w4a16", 90);
        if (i % (2 * FEW) == 0) check_shape(tc_shape_name(i), "w4a16", 86);
    }
    check_shape("llama-2-7b", "w4a16", 80);
    check_shape("llama-2-7b", "w16a16", 90);
}

/* ---- contexts, threads, many ---- */

static tc_model *open_tiny(void) {
    tc_model_params params = on_gpu();
    tc_model *model;
    tc_error err;
    int code = tc_model_open_shape("tiny", NULL, 0, &params, &model, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    return model;
}

/* Is this the thread's context? */
static bool is_current(const tc__cu *cu, tc__cu_context context) {
    tc__cu_context top = NULL;
    return depth() == 1 && !cu->context_pop(&top) && !cu->context_push(top) && top == context;
}

TEST(the_callers_context_stays_current) {
    static const int32_t ids[3] = {1, 2, 3};
    tc__cu_context mine;
    tc__cu cu;
    tc_session *session = NULL;
    tc_error err;
    int32_t id;
    double rate;
    NEEDS_NVRTC;
    use_gpu(90, false);
    fake->devices = 2;
    REQUIRE(tc__cu_open(&cu, &err) == TC_OK);
    REQUIRE(!cu.context_retain(&mine, 1) && !cu.context_push(mine));
    tc_model *model = open_tiny();
    CHECK(is_current(&cu, mine));
    CHECK(model && tc_session_open(model, NULL, &session, &err) == TC_OK && is_current(&cu, mine));
    CHECK(tc_eval(session, ids, 3, &err) == TC_OK && is_current(&cu, mine));
    CHECK(tc_sample(session, NULL, &id, &err) == TC_OK && is_current(&cu, mine));
    CHECK(tc_eval(session, ids, 1, &err) == TC_OK && is_current(&cu, mine));
    CHECK(tc_logits(session) && is_current(&cu, mine));
    CHECK(tc_read_bandwidth(model, 0, &rate, &err) == TC_OK && is_current(&cu, mine));
    CHECK(fake->pinned > 0);
    tc_session_close(session);
    CHECK(is_current(&cu, mine));
    tc_model_close(model);
    CHECK(is_current(&cu, mine));
    cu.context_pop(&mine);
    cu.context_release(1);
    tc__cu_close(&cu);
    fake->devices = 1;
    check_nothing_held("beside another context");
}

TEST(the_second_gpu) {
    tc_model_params params = on_gpu();
    tc_model *models[2];
    tc_error err;
    NEEDS_NVRTC;
    use_gpu(90, false);
    fake->devices = 2;
    params.device = "cuda:1";
    REQUIRE(tc_model_open_shape("tiny", NULL, 0, &params, &models[0], &err) == TC_OK);
    models[1] = open_tiny();
    check_model(models[0], "on GPU 1");
    if (models[1]) check_model(models[1], "on GPU 0");
    tc_model_close(models[0]);
    tc_model_close(models[1]);
    fake->devices = 1;
    check_nothing_held("after two GPUs");
}

typedef struct worker {
    tc_model *model; /* NULL: opens its own */
    int failures, depth;
} worker;

static void *work(void *argument) {
    static const int32_t ids[70] = {5, 6, 7};
    worker *w = argument;
    tc_model *own = NULL;
    tc_session *session = NULL;
    tc_model_params params = on_gpu();
    tc_error err;
    int32_t id;
    if (!w->model)
        w->failures += tc_model_open_shape("tiny", NULL, 0, &params, &own, &err) != TC_OK;
    tc_model *model = w->model ? w->model : own;
    w->failures += !model || tc_session_open(model, NULL, &session, &err) != TC_OK;
    for (int i = 0; i < 40 && session; i++) {
        tc_kv_truncate(session, 0);
        w->failures += tc_eval(session, ids, 70, &err) != TC_OK || !tc_logits(session);
        w->failures += tc_sample(session, NULL, &id, &err) != TC_OK;
        w->failures += tc_eval(session, &id, 1, &err) != TC_OK;
    }
    tc_session_close(session);
    tc_model_close(own);
    w->depth = depth();
    return NULL;
}

TEST(threads) {
    enum { THREADS = 4 };
    pthread_t threads[THREADS];
    worker workers[THREADS];
    NEEDS_NVRTC;
    use_gpu(90, false);
    tc_model *model = open_tiny();
    REQUIRE(model);
    memset(workers, 0, sizeof workers);
    workers[0].model = workers[1].model = model;
    for (int i = 0; i < THREADS; i++) pthread_create(&threads[i], NULL, work, &workers[i]);
    for (int i = 0; i < THREADS; i++) {
        pthread_join(threads[i], NULL);
        CHECK_MSG(!workers[i].failures && !workers[i].depth, "thread %d: %d failures, %d pushed", i,
                  workers[i].failures, workers[i].depth);
    }
    tc_model_close(model);
    check_nothing_held("after threads");
}

TEST(a_hundred_models) {
    NEEDS_NVRTC;
    use_gpu(90, false);
    for (int i = 0; i < 100; i++) {
        tc_session *session = NULL;
        tc_model *model = open_tiny();
        REQUIRE(model);
        CHECK(tc_session_open(model, NULL, &session, NULL) == TC_OK);
        if (session) check_eval(session, 0, 1);
        tc_session_close(session);
        tc_model_close(model);
    }
    check_nothing_held("after a hundred models");
}

/* ---- memory ---- */

TEST(the_default_context_fits_into_what_is_free) {
    tc_session *session;
    tc_error err;
    NEEDS_NVRTC;
    use_gpu(86, false);
    tc_model_params params = on_gpu();
    tc_model *model;
    REQUIRE(tc_model_open_shape("llama-2-7b", NULL, 0, &params, &model, &err) == TC_OK);
    REQUIRE(tc_session_open(model, NULL, &session, &err) == TC_OK);
    CHECK(tc_session_get_info(session).ctx_size == 4096);
    tc_session_close(session);
    fake->memory = (size_t)6 << 30; /* a laptop's */
    const size_t room = fake->memory - fake->allocated;
    REQUIRE(tc_session_open(model, NULL, &session, &err) == TC_OK);
    const tc_session_info info = tc_session_get_info(session);
    CHECK_MSG(info.ctx_size >= 256 && info.ctx_size < 4096, "%d positions", info.ctx_size);
    CHECK(info.kv_bytes + info.workspace_bytes <= room - room / 8);
    CHECK(info.kv_bytes + info.workspace_bytes + (1 << 20) > room - room / 8);
    check_session(session, (size_t)info.ctx_size);
    tc_session_close(session);
    tc_model_close(model);
    /* 6476 million weights of 4.25 bits and twice 131 million of 16 */
    fake->memory = (size_t)3 << 30;
    CHECK(tc_model_open_shape("llama-2-7b", NULL, 0, &params, &model, &err) == TC_ERR_MEMORY);
    CHECK_MSG(
        !strcmp(err.message,
                "out of GPU memory: the weights alone need 3.69 GiB (and 1024 positions of KV "
                "cache 0.50 GiB); Fake GPU has 3.00 GiB free: no --max-seq-len fits"),
        "%s", err.message);
    check_nothing_held("after running out of memory");
}

/* ---- architectures asked for, and NVRTCs that do not know the GPU ---- */

/* Opens "tiny"; what the device is called, or the error. */
static const char *device_of_tiny(char remarks[1024]) {
    static char text[sizeof((tc_error *)NULL)->message];
    tc_model_params params = on_gpu();
    tc_model *model;
    tc_error err;
    params.log = remark;
    params.user = remarks;
    remarks[0] = 0;
    if (tc_model_open_shape("tiny", NULL, 0, &params, &model, &err)) {
        snprintf(text, sizeof text, "%s", err.message);
    } else {
        snprintf(text, sizeof text, "%s", tc_model_get_info(model).device);
        check_model(model, "tiny");
        tc_model_close(model);
    }
    check_nothing_held("after an architecture");
    return text;
}

TEST(architectures_are_asked_for) {
    static const struct {
        int gpu;
        const char *asked, *found;
    } cases[] = {
        {90, "compute_80", "Fake GPU (compute_80, 132 SMs)"},
        {90, "compute_89", "Fake GPU (compute_89, 132 SMs)"},
        {90, "compute_90", "Fake GPU (compute_90, 132 SMs)"},
        {90, "", "Fake GPU (sm_90a, 132 SMs)"},
        {90, "compute_100",
         "device 'cuda': TINYCHAT_ARCH is 'compute_100'; expected compute_80 to compute_90"},
        {90, "compute_75",
         "device 'cuda': TINYCHAT_ARCH is 'compute_75'; expected compute_80 to compute_90"},
        {86, "sm_80", "device 'cuda': TINYCHAT_ARCH is 'sm_80'; expected compute_80 to compute_86"},
    };
    char remarks[1024];
    NEEDS_NVRTC;
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        use_gpu(cases[i].gpu, false);
        setenv("TINYCHAT_ARCH", cases[i].asked, 1);
        const char *found = device_of_tiny(remarks);
        CHECK_MSG(!strcmp(found, cases[i].found), "%s on %d: %s", cases[i].asked, cases[i].gpu,
                  found);
        CHECK(!*remarks);
    }
    unsetenv("TINYCHAT_ARCH");
}

TEST(nvrtc_older_than_the_gpu) {
    static const struct {
        int gpu;
        const char *newest;
        const char *found, *remark; /* parts */
    } cases[] = {
        {130, "90", "Fake GPU (sm_130",
         "is older than the GPU: the kernels are made for compute_90 and"},
        {90, "86", "Fake GPU (sm_90a",
         "is older than the GPU: the kernels are made for compute_86 and"},
        {90, "75", "knows no architecture from 8.0 to the GPU's 9.0; install a newer one", ""},
    };
    char remarks[1024], cache[PROGRAM_PATH + 16];
    NEEDS_NVRTC;
    snprintf(cache, sizeof cache, "%s/cache", folder);
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        use_gpu(cases[i].gpu, false);
        setenv("TINYCHAT_CACHE", cache, 1);
        setenv("FAKE_NVRTC_NEWEST", cases[i].newest, 1);
        const char *found = device_of_tiny(remarks);
        CHECK_MSG(strstr(found, cases[i].found), "%d: %s", cases[i].gpu, found);
        CHECK_MSG(strstr(remarks, cases[i].remark), "%d: '%s'", cases[i].gpu, remarks);
        program_remove_folder(cache);
    }
    unsetenv("FAKE_NVRTC_NEWEST");
}

/* What it has made is kept, but only until there is another one. */
TEST(nvrtc_is_replaced) {
    static const struct {
        const char *version, *newest, *remark;
    } cases[] = {
        {"11080", "90", "NVRTC 11.80 "},
        {"11080", "90", NULL}, /* kept */
        {"12000", "86", "are made for compute_86 and translated by the driver"},
        {"12000", "86", NULL},
        {"13000", "90", NULL}, /* made anew: it knows all */
        {"11080", "86", NULL}, /* kept */
    };
    char remarks[1024], cache[PROGRAM_PATH + 16];
    NEEDS_NVRTC;
    snprintf(cache, sizeof cache, "%s/cache", folder);
    use_gpu(90, false);
    setenv("TINYCHAT_CACHE", cache, 1);
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        setenv("FAKE_NVRTC_VERSION", cases[i].version, 1);
        setenv("FAKE_NVRTC_NEWEST", cases[i].newest, 1);
        const char *found = device_of_tiny(remarks);
        CHECK_MSG(strstr(found, "Fake GPU (sm_90a"), "%s", found);
        CHECK_MSG(cases[i].remark ? strstr(remarks, cases[i].remark) != NULL : !*remarks,
                  "case %zu: '%s'", i, remarks);
    }
    program_remove_folder(cache);
    unsetenv("FAKE_NVRTC_VERSION");
    unsetenv("FAKE_NVRTC_NEWEST");
}

TEST(drivers_that_cannot_overlap_kernels) {
    const int before = fake->driver;
    char remarks[1024];
    NEEDS_NVRTC;
    setenv("FAKE_NVRTC_VERSION", "12000", 1);
    for (int driver = 12020; driver <= 12030; driver += 10) {
        use_gpu(90, false);
        fake->driver = driver;
        device_of_tiny(remarks);
        CHECK_MSG((strstr(remarks, "the driver runs CUDA 12.2;") != NULL) == (driver == 12020) &&
                      (driver == 12020) == (*remarks != 0),
                  "%d: '%s'", driver, remarks);
    }
    fake->driver = before;
    unsetenv("FAKE_NVRTC_VERSION");
}

/* ---- the program ---- */

/* Runs chat on the GPU with the driver of our own, which says what is left at its end. */
static int chat(const char *const *arguments, char messages[4096]) {
    const char *argv[20] = {program_chat(), "--device", "cuda"};
    size_t n = strcmp(arguments[0], "--device") ? 3 : 1;
    while (*arguments) argv[n++] = *arguments++;
    argv[n] = NULL;
    setenv("LD_LIBRARY_PATH", fakes, 1);
    setenv("FAKE_CUDA_REPORT", "1", 1);
    int status = program_run(argv, NULL, 0, messages, 4096);
    unsetenv("LD_LIBRARY_PATH");
    unsetenv("FAKE_CUDA_REPORT");
    CHECK_MSG(!strstr(messages, "fake_cuda:"), "%s", messages);
    return status;
}

static const struct {
    const char *variable, *value; /* NULL: none */
    const char *arguments[8];
    int status;
    const char *message; /* part of stderr */
    bool nvrtc;
} sayings[] = {
    {NULL,
     NULL,
     {"--device", "cuda:7", "--bench", "tiny"},
     4,
     "chat: device 'cuda:7': there is no GPU 7: the driver shows 1",
     false},
    {"FAKE_CUDA_DEVICES",
     "0",
     {"--bench", "tiny"},
     4,
     "there is no GPU 0: the driver shows 0",
     false},
    {"FAKE_CUDA_INIT",
     "100",
     {"--bench", "tiny"},
     4,
     "there is no NVIDIA GPU that the driver",
     false},
    {"FAKE_CUDA_ARCH",
     "75",
     {"--bench", "tiny"},
     4,
     "Fake GPU has compute capability 7.5; tinychat needs 8.0 or newer; use --device cpu",
     false},
    {"FAKE_CUDA_DRIVER",
     "11080",
     {"--bench", "tiny"},
     4,
     "is newer than what the driver runs, CUDA 11.8, and there is no other",
     true},
    {"TINYCHAT_NVRTC",
     "/nonexistent",
     {"--bench", "llama-3-8b", "--precision", "w16a16"},
     4,
     "TINYCHAT_NVRTC names /nonexistent, which is not a usable NVRTC",
     false},
    {"FAKE_CUDA_FAIL",
     "cuDevicePrimaryCtxRetain:1",
     {"--bench", "tiny"},
     4,
     "opening the GPU failed: told to fail (CUDA error 9999)",
     false},
    {"FAKE_CUDA_DEVICES",
     "0",
     {"models/demo.bin", "-p", "Hello", "--head", "int8"},
     4,
     "there is no GPU 0: the driver shows 0",
     false},
    {NULL,
     NULL,
     {"models/demo.bin", "-p", "Hello", "-n", "8", "--head", "int8"},
     0,
     "",
     true},
    {NULL, NULL, {"models/demo.bin", "-p", "Hello", "-n", "8"}, 0, "", true},
    {"TINYCHAT_INTEGRATED", "1", {"models/demo.bin", "-p", "Hello", "-n", "8"}, 0, "", true},
    {"FAKE_CUDA_INTEGRATED", "1", {"models/demo.bin", "-p", "Hello", "-n", "8"}, 0, "", true},
    {"FAKE_CUDA_FAIL",
     "cuGraphLaunch:3",
     {"models/demo.bin", "-p", "Hello", "-n", "8"},
     4,
     "failed: told to fail (CUDA error 9999)",
     true},
    {"FAKE_CUDA_FAIL",
     "cuLaunchKernelEx:90",
     {"models/demo.bin", "-p", "Hello", "-n", "8"},
     4,
     "failed: told to fail (CUDA error 9999)",
     true},
    {"FAKE_CUDA_MEMORY",
     "1000000",
     {"models/demo.bin", "-p", "Hello"},
     5,
     "out of GPU memory: the weights alone need",
     true},
};

TEST(what_the_program_says) {
    char messages[4096];
    use_gpu(90, false);
    for (size_t i = 0; i < TC_COUNT(sayings); i++) {
        if (sayings[i].nvrtc && !*real_nvrtc) {
            printf("    case %zu needs NVRTC\n", i);
            continue;
        }
        char *before = sayings[i].variable ? getenv(sayings[i].variable) : NULL;
        before = before ? tc__copy(before, strlen(before)) : NULL;
        if (sayings[i].variable) setenv(sayings[i].variable, sayings[i].value, 1);
        int status = chat(sayings[i].arguments, messages);
        CHECK_MSG(status == sayings[i].status, "case %zu: %d instead of %d: %s", i, status,
                  sayings[i].status, messages);
        CHECK_MSG(strstr(messages, sayings[i].message), "case %zu: %s", i, messages);
        if (before)
            setenv(sayings[i].variable, before, 1);
        else if (sayings[i].variable)
            unsetenv(sayings[i].variable);
        free(before);
    }
}

TEST(kernels_are_carried_by_the_program) {
    char messages[4096], file[PROGRAM_PATH + 16];
    const char *to[] = {"models/demo.bin", "--export-kernels", file, NULL};
    const char *from[] = {"models/demo.bin", "--kernels", file, "-p", "Hello", "-n", "4", NULL};
    NEEDS_NVRTC;
    use_gpu(90, false);
    snprintf(file, sizeof file, "%s/kernels", folder);
    CHECK_MSG(chat(to, messages) == 0, "%s", messages);
    setenv("TINYCHAT_NVRTC", "/nonexistent", 1);
    setenv("TINYCHAT_CACHE", "/nonexistent", 1);
    CHECK_MSG(chat(from, messages) == 0, "%s", messages);
    setenv("FAKE_CUDA_SMS", "131", 1);
    CHECK_MSG(chat(from, messages) == 3, "%s", messages);
    CHECK_MSG(strstr(messages, "with 132 SMs") && strstr(messages, "with 131 SMs"), "%s", messages);
    unsetenv("FAKE_CUDA_SMS");
    snprintf(messages, sizeof messages, "%s/libnvrtc.so", fakes);
    setenv("TINYCHAT_NVRTC", messages, 1);
    unlink(file);
}

/* ---- the fake driver itself ---- */

/* It would be of no use if it did not see what is wrong. */
TEST(the_driver_sees_mistakes) {
    static const char ptx[] = ".version 8.0\n.target sm_80\n.address_size 64\n"
                              ".global .align 4 .b8 sum_launch[16] = {1, 0, 0, 0, 0, 1};\n"
                              ".visible .entry sum(\n\t.param .align 8 .b8 sum_param_0[16]\n)\n"
                              ".maxntid 256, 1, 1\n{\n\t.shared .align 4 .b8 s[400];\n\tret;\n}\n";
    tc__cu cu;
    tc__cu_context context;
    tc__cu_module module;
    tc__cu_function function;
    tc__cu_ptr memory, variable;
    tc__cu_launch_config config;
    tc__cu_ptr parameters[2] = {0, 0};
    void *arguments[] = {parameters};
    size_t bytes;
    int numbers[4] = {0};
    tc_error err;
    use_gpu(86, false);
    REQUIRE(tc__cu_open(&cu, &err) == TC_OK);
    CHECK(cu.allocate(&memory, 100) == 201); /* no context */
    REQUIRE(!cu.context_retain(&context, 0) && !cu.context_push(context));
    CHECK(cu.module_load(&module, "no image") == 200);
    REQUIRE(!cu.allocate(&memory, 1000) && !cu.module_load(&module, ptx));
    CHECK(cu.module_function(&function, module, "product") == 500);
    CHECK(cu.module_global(&variable, &bytes, module, "product_launch") == 500);
    REQUIRE(!cu.module_function(&function, module, "sum"));
    REQUIRE(!cu.module_global(&variable, &bytes, module, "sum_launch") && bytes == 16);
    CHECK(!cu.copy_to_host(numbers, variable, 16, NULL) && numbers[0] == 1 && numbers[1] == 256);
    CHECK(cu.copy_to_device(memory + 990, numbers, 16, NULL) == 700);
    fake->wrong = 0;
    memset(&config, 0, sizeof config);
    config.grid_x = config.grid_y = config.grid_z = config.block_y = config.block_z = 1;
    config.block_x = 256;
    CHECK(cu.launch(&config, function, arguments, NULL) == 700); /* a null pointer */
    parameters[0] = memory;
    CHECK(cu.launch(&config, function, arguments, NULL) == 0);
    parameters[1] = memory + 5000; /* of nothing */
    CHECK(cu.launch(&config, function, arguments, NULL) == 700);
    parameters[1] = 0;
    config.block_x = 257; /* more than it was compiled for */
    CHECK(cu.launch(&config, function, arguments, NULL) == 1);
    config.block_x = 256, config.grid_y = 70000;
    CHECK(cu.launch(&config, function, arguments, NULL) == 1);
    config.grid_y = 1, config.shared_bytes = 50000; /* without having asked */
    CHECK(cu.launch(&config, function, arguments, NULL) == 1);
    CHECK(cu.function_set(function, TC__CU_FUNCTION_MAX_DYNAMIC_SHARED, (99 << 10) - 399) == 1);
    CHECK(cu.function_set(function, TC__CU_FUNCTION_MAX_DYNAMIC_SHARED, (99 << 10) - 400) == 0);
    CHECK(cu.launch(&config, function, arguments, NULL) == 0);
    CHECK(!cu.release(memory) && cu.release(memory) == 1);
    CHECK(cu.launch(&config, function, arguments, NULL) == 700); /* freed */
    CHECK(!cu.module_unload(module));
    CHECK(cu.launch(&config, function, arguments, NULL) == 400);
    CHECK(fake->wrong == 9);
    fake->wrong = 0;
    CHECK(!cu.allocate(&memory, 10) && !cu.context_pop(&context) && !cu.context_release(0));
    CHECK_MSG(fake->wrong == 1, "memory that was left is not seen");
    REQUIRE(!cu.context_retain(&context, 0) && !cu.context_push(context));
    cu.release(memory);
    cu.context_pop(&context);
    cu.context_release(0);
    tc__cu_close(&cu);
    fake->wrong = 0;
    check_nothing_held("after mistakes");
}

/* The real NVRTC, if there is one; the engine gets ours, which hands on to it. */
static void find_nvrtc(void) {
    char path[1200];
    tc__nvrtc nvrtc;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) {
        snprintf(why_not, sizeof why_not, "%s", err.message);
        return;
    }
    snprintf(real_nvrtc, sizeof real_nvrtc, "%s", nvrtc.path);
    snprintf(path, sizeof path, "%s/libnvrtc.so", fakes); /* the real one stays loaded */
    setenv("FAKE_NVRTC_REAL", real_nvrtc, 1);
    setenv("TINYCHAT_NVRTC", path, 1);
}

static bool begin(void) {
    static const char *const unset[] = {"TINYCHAT_ARCH", "TINYCHAT_INTEGRATED",
                                        "CUDA_VISIBLE_DEVICES", "TINYCHAT_KERNELS"};
    for (size_t i = 0; i < TC_COUNT(unset); i++) unsetenv(unset[i]);
    fake = fake_cuda_open();
    void *library = fake ? dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!library || !fake_cuda_folder(fakes, sizeof fakes) || !program_folder(folder)) return false;
    void *address = dlsym(library, "fake_cuda_depth");
    memcpy((void *)&depth, &address, sizeof address);
    find_nvrtc();
    return true;
}

/* clang-format off */
TEST_MAIN(
    if (!begin()) return 1;
    RUN(the_driver_sees_mistakes)
    RUN(small_models_on_every_architecture)
    RUN(machine_code_is_as_its_ptx)
    RUN(files_of_all_precisions)
    RUN(built_in_shapes)
    RUN(the_callers_context_stays_current)
    RUN(the_second_gpu)
    RUN(threads)
    RUN(a_hundred_models)
    RUN(the_default_context_fits_into_what_is_free)
    RUN(architectures_are_asked_for)
    RUN(nvrtc_older_than_the_gpu)
    RUN(nvrtc_is_replaced)
    RUN(drivers_that_cannot_overlap_kernels)
    RUN(what_the_program_says)
    RUN(kernels_are_carried_by_the_program)
    program_remove_folder(folder);)
