#include "session.h"
#include "shapes.h"
#include "threads.h"

#include <limits.h>
#include <math.h>
#include <pthread.h>

/* The self-test: small models of every kind, with random weights, on the GPU and on the CPU. Each
 * row is a model with kernels of its own, which take seconds to compile the first time, so several
 * are worked on at once. */

#define SELFTEST_LIMIT 5e-3   /* relative L2 error of a position's logits */
#define SELFTEST_LIMIT_8 2e-2 /* with a head in 8 bits; the CPU's has what the file has */
#define SELFTEST_DRAWS 40     /* choices compared for each way of sampling */
#define SELFTEST_VOCAB 397    /* a prime: no tile divides it */
#define SELFTEST_PROMPT 48    /* tokens, of a model file */

/* What LLaMA, MPT and Falcon have. */
#define SELFTEST_LLAMA .norm_eps = 1e-5, .rope_theta = 1e4, .gated = 1
#define SELFTEST_MPT                                                                               \
    .norm_eps = 1e-5, .norm = TC__NORM_LAYER, .position = TC__POSITION_ALIBI,                      \
    .activation = TC__ACT_GELU
#define SELFTEST_FALCON                                                                            \
    .norm_eps = 1e-5, .rope_theta = 1e4, .norm = TC__NORM_LAYER, .norm_bias = true,                \
    .activation = TC__ACT_GELU, .parallel = 1

typedef struct selftest_case {
    const char *what; /* that is tried here first of all */
    int group_size;   /* 0: W16A16 */
    int tokens;
    bool sampling; /* choices are compared instead of logits */
    tc__shape_spec spec;
} selftest_case;

/* Sizes: hidden, MLP, layers, heads, KV heads, head size; then what differs from zero. */
#define SELFTEST_ROW(what, group_size, tokens, ...)                                                \
    {                                                                                              \
        what, group_size, tokens, false, {                                                         \
            "self-test", "self-test", __VA_ARGS__                                                  \
        }                                                                                          \
    }
#define SELFTEST_SIZES(hidden, inner, layers, heads, kv_heads, head_dim)                           \
    hidden, inner, layers, heads, kv_heads, head_dim, SELFTEST_VOCAB, 0

/* The slow ones first, so that none is left alone at the end; but the very first is small: what is
 * wrong with the machine shows there. */
static const selftest_case selftest_cases[] = {
    SELFTEST_ROW("SiLU-gated MLP, RMSNorm", 128, 300, SELFTEST_SIZES(256, 384, 2, 4, 4, 64),
                 SELFTEST_LLAMA),
    SELFTEST_ROW("a layer of LLaMA-2-7B", 128, 80, SELFTEST_SIZES(4096, 11008, 1, 32, 32, 128),
                 SELFTEST_LLAMA),
    SELFTEST_ROW("long context", 128, 4096, SELFTEST_SIZES(256, 256, 1, 4, 1, 128), SELFTEST_LLAMA),
    SELFTEST_ROW("long context, ALiBi", 0, 4096, SELFTEST_SIZES(128, 96, 1, 4, 4, 64),
                 SELFTEST_MPT),
    SELFTEST_ROW("large tiles", 128, 1024, SELFTEST_SIZES(256, 3328, 1, 2, 1, 128), SELFTEST_LLAMA),
    SELFTEST_ROW("large tiles, large heads", 0, 1024, SELFTEST_SIZES(128, 3328, 1, 2, 2, 256),
                 SELFTEST_LLAMA),
    {"sampling",
     128,
     SELFTEST_DRAWS,
     true,
     {"self-test", "self-test", 128, 128, 1, 2, 2, 64, 50021, 0, SELFTEST_LLAMA}},
    SELFTEST_ROW("ALiBi, GELU, act scales, clipping", 128, 700,
                 SELFTEST_SIZES(512, 384, 2, 4, 4, 128), SELFTEST_MPT, .clip_qkv = 0.2,
                 .act_scales = true, .tied = true),
    SELFTEST_ROW("parallel, LayerNorm with bias", 64, 700, SELFTEST_SIZES(320, 640, 2, 5, 1, 64),
                 SELFTEST_FALCON, .shared_norm = true, .tied = true, .act_scales = true),
    SELFTEST_ROW("parallel, two norms", 0, 300, SELFTEST_SIZES(160, 96, 2, 6, 2, 80),
                 SELFTEST_FALCON),
    SELFTEST_ROW("biases of q, k and v", 128, 700, SELFTEST_SIZES(384, 256, 2, 14, 2, 64),
                 SELFTEST_LLAMA, .qkv_bias = true),
    SELFTEST_ROW("norms of q and k", 64, 300, SELFTEST_SIZES(128, 192, 2, 4, 2, 128),
                 SELFTEST_LLAMA, .qk_norm = true),
    SELFTEST_ROW("GELU-gated MLP", 32, 300, SELFTEST_SIZES(96, 160, 2, 4, 1, 112), SELFTEST_LLAMA,
                 .activation = TC__ACT_GELU),
    SELFTEST_ROW("odd sizes", 64, 300, SELFTEST_SIZES(192, 320, 2, 4, 2, 80), SELFTEST_LLAMA,
                 .tied = true),
    SELFTEST_ROW("odd sizes", 0, 300, SELFTEST_SIZES(160, 96, 2, 9, 1, 96), SELFTEST_LLAMA),
    SELFTEST_ROW("large heads", 64, 300, SELFTEST_SIZES(256, 192, 1, 6, 1, 256), SELFTEST_LLAMA),
};
enum { SELFTEST_CASES = TC_COUNT(selftest_cases) };

/* ---- comparing ---- */

/* A model on the device under test and on the CPU, with a session on each. */
typedef struct selftest_pair {
    tc_model *models[2];
    tc_session *sessions[2];
} selftest_pair;

static void selftest_close(selftest_pair *pair) {
    for (int i = 0; i < 2; i++) {
        tc_session_close(pair->sessions[i]);
        tc_model_close(pair->models[i]);
    }
}

static int selftest_sessions(selftest_pair *pair, int tokens, tc_error *err) {
    tc_session_params params = {tokens};
    int code = TC_OK;
    for (int i = 0; i < 2 && !code; i++)
        code = tc_session_open(pair->models[i], &params, &pair->sessions[i], err);
    return code;
}

/* Relative L2 error; infinite if a number is not finite. */
static double selftest_distance(const float *got, const float *want, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        const double delta = (double)got[i] - want[i];
        difference += delta * delta;
        size += (double)want[i] * want[i];
    }
    const double error = sqrt(difference / size);
    return isfinite(error) ? error : (double)INFINITY;
}

static int selftest_keep(void *user, size_t position, const float *logits, int vocab_size) {
    memcpy((float *)user + position * (size_t)vocab_size, logits, (size_t)vocab_size * 4);
    return 0;
}

typedef struct selftest_check {
    const float *want; /* [tokens, vocab] */
    double worst;
} selftest_check;

static int selftest_compare(void *user, size_t position, const float *logits, int vocab_size) {
    selftest_check *check = user;
    const size_t n = (size_t)vocab_size;
    const double error = selftest_distance(logits, check->want + position * n, n);
    if (error > check->worst) check->worst = error;
    return 0;
}

/* In one prefill, then in pieces of all lengths that are treated differently, then one by one. */
static int selftest_logits(selftest_pair *pair, const int32_t *ids, size_t n, float *want,
                           tc_selftest_row *row, tc_error *err) {
    static const size_t pieces[] = {1, 2, 5, 8, 17, 64, 33, 128, 1, 300};
    tc_session *session = pair->sessions[0];
    selftest_check prefill = {want, 0}, decode = {want, 0};
    int code = tc_eval_all(pair->sessions[1], ids, n, selftest_keep, want, err);
    if (!code) code = tc_eval_all(session, ids, n, selftest_compare, &prefill, err);
    tc_kv_truncate(session, 0);
    for (size_t at = 0, i = 0; at < n && !code; at += pieces[i++ % TC_COUNT(pieces)]) {
        const size_t piece = pieces[i % TC_COUNT(pieces)], left = n - at;
        code = tc_eval_all(session, ids + at, piece < left ? piece : left, selftest_compare,
                           &prefill, err);
    }
    tc_kv_truncate(session, 0);
    for (size_t at = 0; at < n && !code; at++) {
        code = tc_eval(session, ids + at, 1, err);
        const float *logits = code ? NULL : tc_logits(session);
        if (logits)
            selftest_compare(&decode, at, logits, tc_model_get_info(pair->models[0]).vocab_size);
        else if (!code)
            code = tc__fail(err, TC_ERR_DEVICE, "copying logits from the GPU failed");
    }
    row->prefill_error = prefill.worst;
    row->decode_error = decode.worst;
    row->ok = prefill.worst <= row->limit && decode.worst <= row->limit;
    return code;
}

/* Draws from the device's logits, there and by the CPU's sampler: the share that differs. Single
 * draws may fall on the other side of a border, as the device computes in binary32. */
static int selftest_sampling(selftest_pair *pair, const int32_t *ids, size_t n,
                             tc_selftest_row *row, tc_error *err) {
    const tc_sampling ways[] = {tc_default_sampling(),
                                {0, 1, 0, 0, 1.3f, 64, 1},
                                {1, 1, 0, 0, 1, -1, 1},
                                {1.5f, 0.9f, 0, 0.02f, 1.1f, -1, 1}};
    tc_session *session = pair->sessions[0];
    const int vocab = tc_model_get_info(pair->models[0]).vocab_size;
    tc__candidate *candidates = tc__calloc((size_t)vocab, sizeof *candidates);
    uint8_t *seen = tc__calloc((size_t)vocab, 1);
    int code = candidates && seen ? TC_OK : tc__fail_memory(err, "sampling", (size_t)vocab);
    int draws = 0, different = 0;
    for (size_t way = 0; way < TC_COUNT(ways) && !code; way++) {
        const tc_sampling *sampling = &ways[way];
        tc_kv_truncate(session, 0);
        tc_session_seed(session, 1);
        for (size_t i = 0; i < n && !code; i++) {
            int32_t id = 0, want = 0;
            code = tc_eval(session, ids + i, 1, err);
            const size_t last =
                sampling->repeat_last_n < 0 ? i + 1 : (size_t)sampling->repeat_last_n;
            const size_t window = last < i + 1 ? last : i + 1;
            const float *logits = code ? NULL : tc_logits(session);
            if (!code && !logits) code = tc__fail(err, TC_ERR_DEVICE, "no logits from the GPU");
            if (!code)
                code = tc__sample(logits, vocab, sampling, tc_kv_ids(session) + i + 1 - window,
                                  window, tc__random(1, i), candidates, seen, &want, err);
            if (!code) code = tc_sample(session, sampling, &id, err);
            draws++;
            different += id != want;
        }
    }
    free(candidates);
    free(seen);
    row->decode_error = draws ? (double)different / draws : 0;
    row->limit = 0.05;
    row->ok = row->decode_error <= row->limit;
    return code;
}

/* Fills in what a row says about its model and compares. */
static int selftest_run(selftest_pair *pair, bool sampling, int tokens, tc_selftest_row *row,
                        tc_error *err) {
    const tc_model_info info = tc_model_get_info(pair->models[0]);
    const size_t n = (size_t)tokens, vocab = (size_t)info.vocab_size;
    int32_t *ids = tc__calloc(n, sizeof *ids);
    float *want = sampling ? NULL : tc__calloc(n * vocab, sizeof *want);
    int code = ids && (want || sampling)
                   ? selftest_sessions(pair, tokens, err)
                   : tc__fail_memory(err, "the self-test", n * vocab * sizeof *want);
    for (size_t i = 0; i < n && !code; i++)
        ids[i] = (int32_t)(tc__random(1, i) * (double)info.vocab_size);
    if (!code)
        code = sampling ? selftest_sampling(pair, ids, n, row, err)
                        : selftest_logits(pair, ids, n, want, row, err);
    free(ids);
    free(want);
    return code;
}

/* ---- the table ---- */

typedef struct selftest_result {
    tc_selftest_row row;
    char name[128], shape[128], device[256];
    tc_error error;
    bool done;
} selftest_result;

typedef struct selftest_work {
    const tc__backend *backend;
    int most_tokens;
    const tc_model_params *params; /* of the caller, for the progress callback */
    selftest_result results[SELFTEST_CASES];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int next;
    bool stop;
} selftest_work;

static void selftest_describe(const tc_model *model, const char *what, int tokens,
                              selftest_result *result) {
    const tc_model_info info = tc_model_get_info(model);
    snprintf(result->name, sizeof result->name, "%s %s", info.precision, what);
    snprintf(result->shape, sizeof result->shape, "%dx%u, %d/%d heads of %d", info.hidden_size,
             (unsigned)model->weights.arch.intermediate_size, info.heads, info.kv_heads,
             info.head_dim);
    snprintf(result->device, sizeof result->device, "%s", info.device);
    result->row.tokens = tokens;
}

/* One row, by one thread of the CPU. */
static int selftest_case_run(const selftest_work *work, const selftest_case *test,
                             selftest_result *result) {
    const char *precision = test->group_size ? "w4a16" : "w16a16";
    tc_model_params params = tc_model_default_params();
    tc__shape_spec spec = test->spec;
    selftest_pair pair = {{NULL, NULL}, {NULL, NULL}};
    tc_error *err = &result->error;
    params.device = work->params->device;
    params.threads = 1;
    const int tokens = test->tokens < work->most_tokens ? test->tokens : work->most_tokens;
    spec.max_seq_len = (uint32_t)tokens;
    snprintf(result->name, sizeof result->name, "%s", test->what);
    int code = tc__model_open_spec(work->backend, &spec, precision, test->group_size, &params,
                                   &pair.models[0], err);
    if (!code)
        code = tc__model_open_spec(tc__cpu_backend(), &spec, precision, test->group_size, &params,
                                   &pair.models[1], err);
    if (!code) {
        selftest_describe(pair.models[0], test->what, tokens, result);
        code = selftest_run(&pair, test->sampling, tokens, &result->row, err);
    }
    selftest_close(&pair);
    return code;
}

static void selftest_finish(selftest_result *result, int code) {
    tc_selftest_row *row = &result->row;
    row->name = result->name;
    row->shape = result->shape;
    row->device = result->device;
    row->error = code ? result->error.message : NULL;
    if (code) row->ok = 0;
}

static void *selftest_worker(void *argument) {
    selftest_work *work = argument;
    for (;;) {
        pthread_mutex_lock(&work->lock);
        const int i = work->stop ? SELFTEST_CASES : work->next++;
        pthread_mutex_unlock(&work->lock);
        if (i >= SELFTEST_CASES) return NULL;
        selftest_result *result = &work->results[i];
        const int code = selftest_case_run(work, &selftest_cases[i], result);
        pthread_mutex_lock(&work->lock);
        selftest_finish(result, code);
        result->done = true;
        pthread_cond_broadcast(&work->changed);
        pthread_mutex_unlock(&work->lock);
    }
}

/* Hands the rows over in their order, as they come. */
static int selftest_hand_over(selftest_work *work, void (*row)(void *, const tc_selftest_row *),
                              void *user, tc_error *err) {
    const tc_model_params *params = work->params;
    for (int i = 0; i < SELFTEST_CASES; i++) {
        pthread_mutex_lock(&work->lock);
        while (!work->results[i].done) pthread_cond_wait(&work->changed, &work->lock);
        pthread_mutex_unlock(&work->lock);
        row(user, &work->results[i].row);
        if (params->progress &&
            params->progress(params->user, (i + 1.0) / SELFTEST_CASES, "self-test"))
            return tc__fail(err, TC_ERR_CANCELLED, "the self-test was cancelled");
    }
    return TC_OK;
}

static int selftest_table(selftest_work *work, void (*row)(void *, const tc_selftest_row *),
                          void *user, tc_error *err) {
    pthread_t threads[SELFTEST_CASES];
    int count = work->params->threads ? work->params->threads : tc__processors(), running = 0;
    if (count > SELFTEST_CASES) count = SELFTEST_CASES;
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->changed, NULL);
    while (running < count && !pthread_create(&threads[running], NULL, selftest_worker, work))
        running++;
    if (!running) selftest_worker(work);
    int code = selftest_hand_over(work, row, user, err);
    pthread_mutex_lock(&work->lock);
    work->stop = true;
    pthread_mutex_unlock(&work->lock);
    while (running > 0) pthread_join(threads[--running], NULL);
    pthread_cond_destroy(&work->changed);
    pthread_mutex_destroy(&work->lock);
    return code;
}

/* ---- entry points ---- */

int tc__selftest_with(const tc__backend *backend, int most_tokens, const tc_model_params *params,
                      void (*row)(void *user, const tc_selftest_row *row), void *user,
                      tc_error *err) {
    selftest_work *work = tc__calloc(1, sizeof *work);
    if (!work) return tc__fail_memory(err, "the self-test", sizeof *work);
    work->backend = backend;
    work->most_tokens = most_tokens;
    work->params = params;
    for (int i = 0; i < SELFTEST_CASES; i++) work->results[i].row.limit = SELFTEST_LIMIT;
    selftest_result *first = &work->results[0];
    int code = selftest_case_run(work, &selftest_cases[0], first);
    if (code == TC_ERR_DEVICE) { /* the machine, not a kernel */
        if (err) *err = first->error;
    } else {
        selftest_finish(first, code);
        first->done = true;
        work->next = 1;
        code = selftest_table(work, row, user, err);
    }
    free(work);
    return code ? code : tc__ok(err);
}

int tc__selftest_model(const tc__backend *backend, const char *path, const tc_model_params *params,
                       void (*row)(void *user, const tc_selftest_row *row), void *user,
                       tc_error *err) {
    selftest_pair pair = {{NULL, NULL}, {NULL, NULL}};
    selftest_result *result = tc__calloc(1, sizeof *result);
    tc_model_params exact = *params;
    if (!result) return tc__fail_memory(err, "the self-test", sizeof *result);
    exact.head_bits = 0;
    result->row.limit = params->head_bits ? SELFTEST_LIMIT_8 : SELFTEST_LIMIT;
    int code = tc__model_open_with(backend, path, params, &pair.models[0], err);
    if (!code) code = tc__model_open_with(tc__cpu_backend(), path, &exact, &pair.models[1], err);
    if (!code) {
        const tc_model_info info = tc_model_get_info(pair.models[0]);
        const int tokens = info.max_seq_len < SELFTEST_PROMPT ? info.max_seq_len : SELFTEST_PROMPT;
        selftest_describe(pair.models[0], info.name, tokens, result);
        code = selftest_run(&pair, false, tokens, &result->row, &result->error);
        selftest_finish(result, code);
        row(user, &result->row);
        code = TC_OK;
    }
    selftest_close(&pair);
    free(result);
    return code ? code : tc__ok(err);
}

int tc_selftest(const char *path, const tc_model_params *params,
                void (*row)(void *user, const tc_selftest_row *row), void *user, tc_error *err) {
    tc_model_params own = params ? *params : tc_model_default_params();
    int code = tc__need(row != NULL, "row", err);
    if (code) return code;
    if (!own.device || strcmp(own.device, "auto") == 0) own.device = "cuda";
    if (strncmp(own.device, "cuda", 4))
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "device '%s': the self-test compares a GPU with the CPU; expected cuda or "
                        "cuda:N",
                        own.device);
    if (!path && own.head_bits)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "head_bits is %d: an 8-bit head is for a model, not for the self-test without "
                        "one",
                        own.head_bits);
    return path ? tc__selftest_model(tc__cuda_backend(), path, &own, row, user, err)
                : tc__selftest_with(tc__cuda_backend(), INT_MAX, &own, row, user, err);
}
