/* fake_backend - a backend without arithmetic, for tests of the session and the chat: its logits
 * are either a hash of all ids in the cache (so that a wrong position or a stale cache shows) or
 * follow a script. It records what it was asked and fails where it is told to.
 */
#ifndef FAKE_BACKEND_H
#define FAKE_BACKEND_H

#include "session.h"

typedef struct fake_state {
    /* what it does */
    const int32_t *script; /* [script_len] the ids that win, one per evaluation; NULL: hashes */
    size_t script_len;     /* behind the script the EOS id 2 wins */
    size_t free_bytes, kv_bytes_per_token, workspace_bytes; /* per session; workspace + 16 ctx */
    int fail_at, fail_code; /* the fail_at-th evaluation from now (1 = next) fails; 0: none */
    int nan_at;             /* the logit of this id is NaN from the nan_from-th evaluation on */
    int nan_from;
    int refuse_cache;            /* 1: no memory for caches */
    void (*on_eval)(void *user); /* called in every evaluation, before *cancel is looked at */
    void *user;
    /* what it was asked */
    size_t evaluations, tokens, last_n, last_pos;
    int caches; /* open now */
} fake_state;

static fake_state fake; /* reset with fake_reset */

static inline void fake_reset(void) {
    memset(&fake, 0, sizeof fake);
    fake.free_bytes = (size_t)1 << 30;
    fake.kv_bytes_per_token = 1024;
    fake.workspace_bytes = 4096;
}

struct tc__device {
    int vocab_size;
};

struct tc__cache {
    int32_t *ids; /* [ctx_size] */
    float *logits;
    tc__candidate *candidates;
    uint8_t *seen;
    int vocab_size;
};

/* ---- the device ---- */

static int fake_open(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                     tc_error *err) {
    (void)params;
    *device = tc__calloc(1, sizeof **device);
    if (!*device) return tc__fail_memory(err, "the fake device", sizeof **device);
    (*device)->vocab_size = (int)weights->arch.vocab_size;
    return tc__ok(err);
}
static void fake_close(tc__device *device) {
    free(device);
}
static const char *fake_name(const tc__device *device) {
    (void)device;
    return "fake";
}
static const char *fake_details(const tc__device *device) {
    (void)device;
    return "";
}
static size_t fake_kv_bytes(const tc__device *device) {
    (void)device;
    return fake.kv_bytes_per_token;
}
static size_t fake_workspace(const tc__device *device, int ctx_size) {
    (void)device;
    return fake.workspace_bytes + 16 * (size_t)ctx_size;
}
static size_t fake_free(const tc__device *device) {
    (void)device;
    return fake.free_bytes;
}
static int fake_bandwidth(tc__device *device, size_t bytes, double *rate, tc_error *err) {
    (void)device;
    *rate = (double)bytes;
    return tc__ok(err);
}

/* ---- the cache ---- */

static void fake_cache_close(tc__cache *cache) {
    free(cache->ids);
    free(cache->logits);
    free(cache->candidates);
    free(cache->seen);
    free(cache);
    fake.caches--;
}

static int fake_cache_open(tc__device *device, int ctx_size, tc__cache **cache, tc_error *err) {
    size_t vocab = (size_t)device->vocab_size;
    *cache = NULL;
    tc__cache *made = fake.refuse_cache ? NULL : tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "the fake cache", (size_t)ctx_size);
    fake.caches++;
    made->vocab_size = device->vocab_size;
    made->ids = tc__calloc((size_t)ctx_size, sizeof *made->ids);
    made->logits = tc__calloc(vocab, sizeof *made->logits);
    made->candidates = tc__calloc(vocab, sizeof *made->candidates);
    made->seen = tc__calloc(vocab, 1);
    if (!made->ids || !made->logits || !made->candidates || !made->seen) {
        fake_cache_close(made);
        return tc__fail_memory(err, "the fake cache", (size_t)ctx_size);
    }
    *cache = made;
    return tc__ok(err);
}

/* Logits of position n - 1: -8..8, a pure function of the ids up to there. */
static inline void fake_hash_logits(const int32_t *ids, size_t n, float *logits, int vocab_size) {
    uint64_t state = 88172645463325252u;
    for (size_t i = 0; i < n; i++)
        state = (state ^ (uint64_t)(ids[i] + 1)) * 6364136223846793005u + 1442695040888963407u;
    for (int v = 0; v < vocab_size; v++) {
        uint64_t bits = (state ^ (uint64_t)v * 11400714819323198485u) * 6364136223846793005u;
        bits ^= bits >> 29;
        logits[v] = (float)((double)(bits % 1000003) / 1000003 * 16 - 8);
    }
}

static void fake_logits_of(tc__cache *cache, size_t n) {
    if (fake.script) {
        size_t at = fake.evaluations - 1;
        for (int v = 0; v < cache->vocab_size; v++) cache->logits[v] = 0;
        cache->logits[at < fake.script_len ? fake.script[at] : 2] = 1000;
    } else {
        fake_hash_logits(cache->ids, n, cache->logits, cache->vocab_size);
    }
    if (fake.nan_from && (int)fake.evaluations >= fake.nan_from)
        cache->logits[fake.nan_at] = 0.0f / 0.0f;
}

static int fake_eval(tc__cache *cache, const int32_t *ids, size_t n, size_t pos, tc__logits_fn each,
                     void *user, const tc__flag *cancel, tc_error *err) {
    fake.evaluations++;
    fake.last_n = n;
    fake.last_pos = pos;
    if (fake.on_eval) fake.on_eval(fake.user);
    for (size_t i = 0; i < n; i++) {
        if (tc__flag_get(cancel)) return tc__fail(err, TC_ERR_CANCELLED, "cancelled");
        if (fake.fail_at && i + 1 == n && --fake.fail_at == 0)
            return tc__fail(err, fake.fail_code, "the fake backend was told to fail");
        cache->ids[pos + i] = ids[i];
        fake.tokens++;
        if (!each && i + 1 < n) continue;
        fake_logits_of(cache, pos + i + 1);
        if (each && each(user, pos + i, cache->logits, cache->vocab_size))
            return tc__fail(err, TC_ERR_CANCELLED, "cancelled");
    }
    return tc__ok(err);
}

static const float *fake_logits(tc__cache *cache) {
    return cache->logits;
}

static int fake_sample(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                       size_t n_context, double u, int32_t *id, tc_error *err) {
    return tc__sample(cache->logits, cache->vocab_size, sampling, context, n_context, u,
                      cache->candidates, cache->seen, id, err);
}

static const tc__backend fake_backend = {fake_open,        fake_close,
                                         fake_name,        fake_details,
                                         fake_kv_bytes,    fake_workspace,
                                         fake_free,        fake_cache_open,
                                         fake_cache_close, fake_eval,
                                         fake_logits,      fake_sample,
                                         fake_bandwidth,   NULL};

/* A model file on this backend; NULL (and a message) if it cannot be opened. */
static inline tc_model *fake_model(const char *path) {
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    tc_error err;
    if (tc__model_open_with(&fake_backend, path, &params, &model, &err))
        fprintf(stderr, "%s\n", err.message);
    return model;
}

#endif /* FAKE_BACKEND_H */
