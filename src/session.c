#include "session.h"

#define SESSION_DEFAULT_CTX 4096 /* the default context, unless model or memory allow less */
#define SESSION_LEAST_CTX 256    /* a smaller one is not chosen unasked: it would surprise */

tc_session_params tc_session_default_params(void) {
    tc_session_params params = {-1};
    return params;
}

/* ---- how large a context fits ---- */

static size_t session_workspace_bytes(const tc_model *model, int ctx_size) {
    size_t bytes = (size_t)ctx_size * sizeof(int32_t) + sizeof(tc_session);
    size_t backend = model->backend->workspace_bytes(model->device, ctx_size);
    return tc__add(bytes, backend, &bytes) ? bytes : SIZE_MAX;
}

static size_t session_kv_bytes(const tc_model *model, int ctx_size) {
    size_t bytes = model->backend->kv_bytes_per_token(model->device);
    return tc__mul(bytes, (size_t)ctx_size, &bytes) ? bytes : SIZE_MAX;
}

static bool session_fits(const tc_model *model, int ctx_size, size_t room) {
    size_t bytes = 0;
    return tc__add(session_kv_bytes(model, ctx_size), session_workspace_bytes(model, ctx_size),
                   &bytes) &&
           bytes <= room;
}

/* The largest context of at most `limit` positions that fits into `room` bytes; 0 if none does. */
static int session_largest(const tc_model *model, int limit, size_t room) {
    int fits = 0, too_large = limit + 1;
    while (too_large - fits > 1) {
        int middle = fits + (too_large - fits) / 2;
        if (session_fits(model, middle, room))
            fits = middle;
        else
            too_large = middle;
    }
    return fits;
}

static const char *session_size_text(size_t bytes, char text[24]) {
    bool large = bytes >= (size_t)1 << 30;
    snprintf(text, 24, large ? "%.2f GiB" : "%.2f MiB",
             (double)bytes / (large ? 1 << 30 : 1 << 20));
    return text;
}

static int session_fail_memory(const tc_model *model, int ctx_size, size_t room, tc_error *err) {
    char kv[24], workspace[24], weights[24], available[24], advice[64];
    int largest = session_largest(model, ctx_size, room);
    if (largest >= ctx_size) /* there seemed to be room, but the system gave none */
        snprintf(advice, sizeof advice, "ask for a smaller context");
    else if (largest > 0)
        snprintf(advice, sizeof advice, "the largest --max-seq-len that fits is %d", largest);
    else
        snprintf(advice, sizeof advice, "not even one position fits");
    return tc__fail(err, TC_ERR_MEMORY,
                    "out of memory: a context of %d positions needs %s of KV cache and %s of "
                    "workspace besides %s of weights; %s are available; %s",
                    ctx_size, session_size_text(session_kv_bytes(model, ctx_size), kv),
                    session_size_text(session_workspace_bytes(model, ctx_size), workspace),
                    session_size_text(model->weights.tensor_bytes, weights),
                    session_size_text(room, available), advice);
}

static const char *session_limit(const tc_model *model, char text[TC__LIMIT_TEXT]) {
    const unsigned window = (unsigned)model->weights.arch.sliding_window;
    if (!window) return "the model's maximum";
    snprintf(
        text, TC__LIMIT_TEXT,
        "the model's maximum: it has a sliding window of %u positions, and to forget what lies "
        "further back is not supported",
        window);
    return text;
}

const char *tc__context_limit(const tc_session *session, char text[TC__LIMIT_TEXT]) {
    const bool largest = session->ctx_size == (int)session->model->weights.arch.max_seq_len;
    return largest ? session_limit(session->model, text) : NULL;
}

/* Turns what the caller asked for into a number of positions that should fit. */
static int session_choose_ctx(const tc_model *model, int asked, int *ctx_size, tc_error *err) {
    int most = (int)model->weights.arch.max_seq_len;
    char limit[TC__LIMIT_TEXT];
    size_t room = model->backend->free_bytes(model->device);
    if (asked < -1 || asked > most)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "context size %d; expected 1 to %d (%s), 0 for that maximum or -1 for the "
                        "default",
                        asked, most, session_limit(model, limit));
    if (asked >= 0) {
        *ctx_size = asked ? asked : most;
        return session_fits(model, *ctx_size, room)
                   ? TC_OK
                   : session_fail_memory(model, *ctx_size, room, err);
    }
    int wanted = most < SESSION_DEFAULT_CTX ? most : SESSION_DEFAULT_CTX;
    int least = wanted < SESSION_LEAST_CTX ? wanted : SESSION_LEAST_CTX;
    *ctx_size = session_largest(model, wanted, room - room / 8); /* leave some to the others */
    return *ctx_size >= least ? TC_OK : session_fail_memory(model, wanted, room, err);
}

/* ---- opening and closing ---- */

int tc_session_open(tc_model *model, const tc_session_params *params, tc_session **session,
                    tc_error *err) {
    int ctx_size = 0, code = tc__need(session, "session", err);
    if (code) return code;
    *session = NULL;
    code = tc__need(model, "model", err);
    if (!code) code = session_choose_ctx(model, params ? params->ctx_size : -1, &ctx_size, err);
    if (code) return code;
    tc_session *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a session", sizeof *made);
    made->model = model;
    made->ctx_size = ctx_size;
    made->seed = tc__random_seed();
    made->ids = tc__calloc((size_t)ctx_size, sizeof *made->ids);
    code = made->ids ? model->backend->cache_open(model->device, ctx_size, &made->cache, err)
                     : TC_ERR_MEMORY;
    if (code == TC_ERR_MEMORY)
        session_fail_memory(model, ctx_size, model->backend->free_bytes(model->device), err);
    if (code) {
        tc_session_close(made);
        return code;
    }
    *session = made;
    return tc__ok(err);
}

void tc_session_close(tc_session *session) {
    if (!session) return;
    if (session->cache) session->model->backend->cache_close(session->cache);
    free(session->ids);
    free(session);
}

tc_session_info tc_session_get_info(const tc_session *session) {
    tc_session_info info = {0, 0, 0};
    if (!session) return info;
    info.ctx_size = session->ctx_size;
    info.kv_bytes = session_kv_bytes(session->model, session->ctx_size);
    info.workspace_bytes = session_workspace_bytes(session->model, session->ctx_size);
    return info;
}

/* ---- evaluating ---- */

static int session_fail_context(const tc_session *session, size_t n, tc_error *err) {
    char text[TC__LIMIT_TEXT];
    const char *limit = tc__context_limit(session, text);
    return tc__fail(err, TC_ERR_CONTEXT,
                    "%zu tokens after the %zu in the context do not fit; the context has %d "
                    "positions%s%s; truncate it%s",
                    n, session->length, session->ctx_size, limit ? ", " : "", limit ? limit : "",
                    limit ? "" : " or open a larger one");
}

static int session_check(const tc_session *session, const int32_t *ids, size_t n, tc_error *err) {
    int code = tc__need(session, "session", err);
    if (code) return code;
    int vocab_size = (int)session->model->weights.arch.vocab_size;
    if (n == 0 || !ids) return tc__fail(err, TC_ERR_ARGUMENT, "evaluate: no token ids given");
    if (n > (size_t)session->ctx_size - session->length)
        return session_fail_context(session, n, err);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return tc__fail(err, TC_ERR_ARGUMENT,
                            "evaluate: token id %d at index %zu; expected 0 to %d", (int)ids[i], i,
                            vocab_size - 1);
    return TC_OK;
}

static int session_eval(tc_session *session, const int32_t *ids, size_t n, tc__logits_fn each,
                        void *user, tc_error *err) {
    int code = session_check(session, ids, n, err);
    if (code) return code;
    if (tc__flag_get(&session->cancel)) {
        code = tc__fail(err, TC_ERR_CANCELLED, "the evaluation was cancelled");
    } else {
        session->has_logits = false;
        code = session->model->backend->eval(session->cache, ids, n, session->length, each, user,
                                             &session->cancel, err);
    }
    if (code == TC_ERR_CANCELLED) tc__flag_set(&session->cancel, false);
    if (code) return code;
    memcpy(session->ids + session->length, ids, n * sizeof *ids);
    session->length += n;
    session->has_logits = true;
    return tc__ok(err);
}

int tc_eval(tc_session *session, const int32_t *ids, size_t n, tc_error *err) {
    return session_eval(session, ids, n, NULL, NULL, err);
}

int tc_eval_all(tc_session *session, const int32_t *ids, size_t n,
                int (*fn)(void *user, size_t position, const float *logits, int vocab_size),
                void *user, tc_error *err) {
    int code = tc__need(fn != NULL, "fn", err);
    return code ? code : session_eval(session, ids, n, fn, user, err);
}

const float *tc_logits(tc_session *session) {
    return session && session->has_logits ? session->model->backend->logits(session->cache) : NULL;
}

void tc_session_cancel(tc_session *session) {
    if (session) tc__flag_set(&session->cancel, true);
}

/* ---- sampling ---- */

uint64_t tc_session_seed(tc_session *session, uint64_t seed) {
    if (!session) return seed;
    session->seed = seed == TC_SEED_RANDOM ? tc__random_seed() : seed;
    session->draws = 0;
    return session->seed;
}

int tc_sample(tc_session *session, const tc_sampling *sampling, int32_t *id, tc_error *err) {
    tc_sampling defaults = tc_default_sampling();
    if (!sampling) sampling = &defaults;
    int code = tc__need(session && id, session ? "id" : "session", err);
    if (!code) code = tc__sampling_check(sampling, err);
    if (code) return code;
    if (!session->has_logits)
        return tc__fail(err, TC_ERR_ARGUMENT, "tc_sample: there are no logits; evaluate first");
    size_t n = session->length;
    if (sampling->repeat_last_n >= 0 && n > (size_t)sampling->repeat_last_n)
        n = (size_t)sampling->repeat_last_n;
    bool greedy = tc__sampling_greedy(sampling);
    double u = greedy ? 0 : tc__random(session->seed, session->draws);
    code = session->model->backend->sample(session->cache, sampling,
                                           session->ids + (session->length - n), n, u, id, err);
    if (!code && !greedy) session->draws++;
    return code;
}

/* ---- the ids in the KV cache ---- */

size_t tc_kv_length(const tc_session *session) {
    return session ? session->length : 0;
}

const int32_t *tc_kv_ids(const tc_session *session) {
    return session ? session->ids : NULL;
}

void tc_kv_truncate(tc_session *session, size_t length) {
    if (!session || length >= session->length) return;
    session->length = length;
    session->has_logits = false;
}
