/* reference - a converted checkpoint against stored fp32 logits of transformers: what test_fixtures
 * and test_families share. refs/refs.json of a folder describes its references:
 *
 *     vocab_ids   the ids whose logits are stored
 *     sequences   name: token ids
 *     runs        name: {logits: {sequence: {file, positions, argmax, logsumexp, top5_ids,
 *                 top5_logits}}, greedy: {prompt: sequence, ids}}
 *
 * A file holds float32, [positions, vocab_ids]; logsumexp and the top five may be missing.
 */
#ifndef TEST_REFERENCE_H
#define TEST_REFERENCE_H

#include "program.h"
#include "convert/json.h"
#include "src/model_file.h"
#include "tinychat.h"
#include "test.h"

#include <math.h>

#define TOLERANCE 1e-3 /* relative L2 error of the stored logits of one position */
#define GREEDY_MAX 64

/* With sanitizers each level takes long, and test_cpu_kernels is there for what differs. */
#if defined(__SANITIZE_ADDRESS__)
#define BEST_LEVEL_ONLY true
#else
#define BEST_LEVEL_ONLY false
#endif

/* ---- reading references ---- */

typedef struct refs {
    char folder[PROGRAM_PATH];
    json_doc doc;
    int32_t *vocab_ids; /* the ids whose logits are stored */
    size_t n_vocab_ids;
    const json_value *run; /* the run that is compared with */
    double tolerance;
} refs;

/* A JSON array of integers; NULL if it is none. The caller frees it. */
static int32_t *refs_ints(const refs *r, const json_value *list, size_t *n) {
    const json_value *item;
    int32_t *numbers;
    int64_t number;
    *n = 0;
    if (json_type(list) != JSON_ARRAY) return NULL;
    numbers = tc__calloc(json_count(list), sizeof *numbers);
    for (item = json_first(list); numbers && item; item = json_next(list, item)) {
        if (!json_int(&r->doc, item, &number)) break;
        numbers[(*n)++] = (int32_t)number;
    }
    return numbers;
}

static const json_value *refs_get(const refs *r, const json_value *object, const char *key) {
    return json_get(&r->doc, object, key);
}

/* Element i of an array. */
static const json_value *refs_at(const json_value *list, size_t i) {
    const json_value *item = json_first(list);
    while (item && i--) item = json_next(list, item);
    return item;
}

static double refs_number_at(const refs *r, const json_value *list, size_t i) {
    double number = NAN;
    json_double(&r->doc, refs_at(list, i), &number);
    return number;
}

static int32_t *refs_sequence(const refs *r, const char *name, size_t *n) {
    return refs_ints(r, refs_get(r, refs_get(r, json_root(&r->doc), "sequences"), name), n);
}

static void refs_close(refs *r) {
    json_close(&r->doc);
    free(r->vocab_ids);
}

/* To be closed in any case. */
static bool refs_open(refs *r, const char *folder, const char *run) {
    char path[PROGRAM_PATH + 32];
    const json_value *root;
    tc_error err;
    memset(r, 0, sizeof *r);
    snprintf(r->folder, sizeof r->folder, "%s", folder);
    snprintf(path, sizeof path, "%s/refs/refs.json", folder);
    if (json_open(path, &r->doc, &err)) {
        fprintf(stderr, "%s\n", err.message);
        return false;
    }
    root = json_root(&r->doc);
    r->vocab_ids = refs_ints(r, refs_get(r, root, "vocab_ids"), &r->n_vocab_ids);
    r->run = refs_get(r, refs_get(r, root, "runs"), run);
    return r->n_vocab_ids && r->run;
}

/* ---- comparing logits ---- */

/* Compares every stored position of one sequence as tc_eval_all hands it over. */
typedef struct comparison {
    const refs *refs;
    const json_value *logsumexp, *top5_ids, *top5_logits; /* NULL where not stored */
    int32_t *positions, *argmax;                          /* [n] */
    size_t n, next;
    const float *stored; /* [n, refs->n_vocab_ids], mapped */
    tc__map map;
    double worst; /* largest relative error so far */
    size_t worst_position;
    int wrong; /* argmax, logsumexp or top 5 that differ */
} comparison;

static double logsumexp(const float *logits, int n) {
    double largest = -INFINITY, sum = 0;
    int i;
    for (i = 0; i < n; i++) largest = logits[i] > largest ? logits[i] : largest;
    for (i = 0; i < n; i++) sum += exp(logits[i] - largest);
    return largest + log(sum);
}

static int argmax(const float *logits, int n) {
    int best = 0, i;
    for (i = 1; i < n; i++) best = logits[i] > logits[best] ? i : best;
    return best;
}

/* The five largest logits have the stored values, and nothing else is as large as the fifth. */
static bool top5_agree(const comparison *c, const float *logits, int vocab_size) {
    const json_value *ids = refs_at(c->top5_ids, c->next),
                     *values = refs_at(c->top5_logits, c->next);
    double fifth = refs_number_at(c->refs, values, 4);
    int larger = 0, i;
    for (i = 0; i < 5; i++) {
        double id = refs_number_at(c->refs, ids, (size_t)i);
        double value = refs_number_at(c->refs, values, (size_t)i);
        if (!(id >= 0 && id < vocab_size && fabs(logits[(int)id] - value) < 2e-3)) return false;
    }
    for (i = 0; i < vocab_size; i++) larger += logits[i] > fifth + 2e-3;
    return larger <= 4;
}

static int compare_position(void *user, size_t position, const float *logits, int vocab_size) {
    comparison *c = user;
    const float *stored;
    double difference = 0, size = 0, error;
    size_t i;
    if (c->next == c->n || (size_t)c->positions[c->next] != position) return 0;
    stored = c->stored + c->next * c->refs->n_vocab_ids;
    for (i = 0; i < c->refs->n_vocab_ids; i++) {
        double delta = (double)logits[c->refs->vocab_ids[i]] - stored[i];
        difference += delta * delta;
        size += (double)stored[i] * stored[i];
    }
    error = sqrt(difference / size);
    if (!(error <= c->worst)) c->worst = error, c->worst_position = position; /* also NaN */
    c->wrong += argmax(logits, vocab_size) != c->argmax[c->next];
    if (c->logsumexp) {
        double want = refs_number_at(c->refs, c->logsumexp, c->next);
        c->wrong += !(fabs(logsumexp(logits, vocab_size) - want) < 1e-3);
    }
    if (c->top5_ids) c->wrong += !top5_agree(c, logits, vocab_size);
    c->next++;
    return 0;
}

/* Opens the stored logits of one sequence; `key` is a key of the run's "logits". */
static bool comparison_open(comparison *c, const refs *r, const json_value *entry) {
    tc__buf file = {0};
    char path[2 * PROGRAM_PATH];
    size_t n_argmax;
    tc_error err;
    bool ok;
    memset(c, 0, sizeof *c);
    c->refs = r;
    c->logsumexp = refs_get(r, entry, "logsumexp");
    c->top5_ids = refs_get(r, entry, "top5_ids");
    c->top5_logits = refs_get(r, entry, "top5_logits");
    c->positions = refs_ints(r, refs_get(r, entry, "positions"), &c->n);
    c->argmax = refs_ints(r, refs_get(r, entry, "argmax"), &n_argmax);
    json_string(&r->doc, refs_get(r, entry, "file"), &file);
    snprintf(path, sizeof path, "%s/%s", r->folder, file.data ? file.data : "");
    tc__buf_free(&file);
    ok = c->n && n_argmax == c->n && tc__map_open(path, &c->map, &err) == TC_OK &&
         c->map.size == c->n * r->n_vocab_ids * sizeof(float);
    c->stored = (const float *)(const void *)c->map.data;
    return ok;
}

static void comparison_close(comparison *c) {
    tc__map_close(&c->map);
    free(c->positions);
    free(c->argmax);
}

static tc_session *new_session(tc_model *model) {
    tc_session *session = NULL;
    tc_error err;
    CHECK_MSG(tc_session_open(model, NULL, &session, &err) == TC_OK, "%s", err.message);
    return session;
}

/* Evaluates every stored sequence of the run. Returns the largest relative error. */
static double compare_run(tc_model *model, const refs *r, const char *label) {
    const json_value *all = refs_get(r, r->run, "logits"), *key;
    double worst = 0;
    CHECK(json_count(all) > 0);
    for (key = json_first(all); key; key = json_next(all, key)) {
        tc_session *session = new_session(model);
        tc__buf name = {0};
        comparison c;
        size_t n;
        int32_t *ids;
        tc_error err;
        json_string(&r->doc, key, &name);
        ids = refs_sequence(r, name.data, &n);
        CHECK(comparison_open(&c, r, json_member(key)));
        if (session && c.stored && n) {
            size_t first = (size_t)c.positions[0]; /* nothing is stored for those before it */
            int code = first ? tc_eval(session, ids, first, &err) : TC_OK;
            if (!code)
                code = tc_eval_all(session, ids + first, n - first, compare_position, &c, &err);
            CHECK_MSG(code == TC_OK, "%s: %s", label, err.message);
            CHECK_MSG(c.next == c.n, "%s %s: %zu of %zu positions seen", label, name.data, c.next,
                      c.n);
            CHECK_MSG(c.worst <= r->tolerance, "%s %s: relative error %.2e at position %zu", label,
                      name.data, c.worst, c.worst_position);
            CHECK_MSG(!c.wrong, "%s %s: argmax, logsumexp or top 5 differ %d times", label,
                      name.data, c.wrong);
            worst = c.worst > worst ? c.worst : worst;
        }
        comparison_close(&c);
        tc__buf_free(&name);
        free(ids);
        tc_session_close(session);
    }
    return worst;
}

/* The stored greedy continuation, token by token through the sampler. */
static void compare_greedy(tc_model *model, const refs *r, const char *label) {
    const json_value *greedy = refs_get(r, r->run, "greedy");
    tc_session *session = new_session(model);
    tc_sampling sampling = tc_default_sampling();
    tc__buf name = {0};
    size_t n_prompt, n, i;
    int32_t *want = refs_ints(r, refs_get(r, greedy, "ids"), &n), *prompt;
    tc_error err;
    sampling.temperature = 0;
    sampling.repeat_penalty = 1;
    CHECK(json_string(&r->doc, refs_get(r, greedy, "prompt"), &name));
    prompt = refs_sequence(r, name.data, &n_prompt);
    CHECK(session && n > 0 && n_prompt > 0);
    CHECK_MSG(tc_eval(session, prompt, n_prompt, &err) == TC_OK, "%s", err.message);
    for (i = 0; i < n; i++) {
        int32_t id = -1;
        CHECK_MSG(tc_sample(session, &sampling, &id, &err) == TC_OK, "%s", err.message);
        CHECK_MSG(id == want[i], "%s: greedy token %zu is %d, not %d", label, i, (int)id,
                  (int)want[i]);
        if (id != want[i] || tc_eval(session, &id, 1, &err)) break;
    }
    tc__buf_free(&name);
    free(want);
    free(prompt);
    tc_session_close(session);
}

/* ---- how a sequence is cut ---- */

/* Evaluates ids[first..n) in pieces of `step` on top of what the session holds and compares the
 * last logits of every piece with all [n, vocab], bit by bit. */
static int cut_differences(tc_session *session, const int32_t *ids, size_t first, size_t n,
                           size_t step, const float *all, size_t vocab) {
    size_t at = first, piece;
    int different = 0;
    tc_error err;
    for (; at < n; at += piece) {
        piece = n - at < step ? n - at : step;
        if (tc_eval(session, ids + at, piece, &err)) return -1;
        different += memcmp(tc_logits(session), all + (at + piece - 1) * vocab, vocab * 4) != 0;
    }
    return different;
}

static int keep_position(void *user, size_t position, const float *logits, int vocab_size) {
    memcpy((float *)user + position * (size_t)vocab_size, logits, (size_t)vocab_size * 4);
    return 0;
}

/* The logits do not depend on how a sequence is cut into calls, nor on what the cache held before a
 * truncation, nor on the number of threads (`other` is the same model with another number). */
static void check_cuts(tc_model *model, tc_model *other, const refs *r, const char *sequence,
                       const char *label) {
    static const size_t steps[] = {1, 2, 7, 8, 33, 64};
    size_t vocab = (size_t)tc_model_get_info(model).vocab_size, n, i;
    int32_t *ids = refs_sequence(r, sequence, &n);
    float *all = tc__calloc(n * vocab, sizeof *all);
    tc_session *session = new_session(model), *threads = new_session(other);
    tc_error err;
    REQUIRE(ids && all && session && threads && n > 4);
    CHECK(tc_eval_all(session, ids, n, keep_position, all, &err) == TC_OK);
    CHECK_MSG(cut_differences(threads, ids, 0, n, 5, all, vocab) == 0, "%s: 1 and 3 threads differ",
              label);
    for (i = 0; i < TC_COUNT(steps); i++) {
        int different;
        if (steps[i] >= n) continue;
        tc_kv_truncate(session, 0);
        different = cut_differences(session, ids, 0, n, steps[i], all, vocab);
        CHECK_MSG(different == 0, "%s: in pieces of %zu, %d logits differ", label, steps[i],
                  different);
        CHECK(tc_kv_length(session) == n && !memcmp(tc_kv_ids(session), ids, n * sizeof *ids));
    }
    /* Other tokens from position i on, then the right ones again. */
    for (i = 0; i < n; i += n / 4 + 1) {
        tc_kv_truncate(session, i);
        CHECK(tc_logits(session) == NULL);
        CHECK(tc_eval(session, ids, n - i < 5 ? n - i : 5, &err) == TC_OK);
        tc_kv_truncate(session, i);
        CHECK(tc_kv_length(session) == i);
        CHECK_MSG(cut_differences(session, ids, i, n, n, all, vocab) == 0,
                  "%s: truncated to %zu, the logits differ", label, i);
    }
    tc_session_close(threads);
    tc_session_close(session);
    free(all);
    free(ids);
}

/* ---- converting ---- */

typedef struct fixture {
    const char *hf, *awq; /* arguments of convert, in the checkpoints' folder; awq may be NULL */
    const char *run;      /* of refs.json */
    bool tokenizer;       /* the folder has one */
    double tolerance;     /* 0: TOLERANCE */
    const char *group;    /* not NULL: rounded to nearest with this group size */
} fixture;

static bool convert(const char *checkpoints, const fixture *f, const char *output) {
    char hf[2 * PROGRAM_PATH], awq[2 * PROGRAM_PATH], messages[4096];
    const char *argv[14] = {program_convert(), "--hf", hf, "-o", output};
    int n = 5, status;
    snprintf(hf, sizeof hf, "%s/%s", checkpoints, f->hf);
    snprintf(awq, sizeof awq, "%s/%s", checkpoints, f->awq ? f->awq : "");
    if (f->awq) argv[n++] = "--awq", argv[n++] = awq;
    if (!f->tokenizer) argv[n++] = "--no-tokenizer";
    if (f->group) {
        argv[n++] = "--quantize", argv[n++] = "rtn";
        argv[n++] = "--group-size", argv[n++] = f->group;
    }
    status = program_run(argv, NULL, 0, messages, sizeof messages);
    CHECK_MSG(status == 0, "convert %s %s: exit status %d\n%s", hf, f->awq ? awq : "", status,
              messages);
    return status == 0;
}

/* Same tensors, bit by bit, and the same metadata apart from where they came from. */
static void check_same_model(const char *path, const char *other_path, const char *label) {
    tc__model_file file, other;
    size_t i;
    tc_error err;
    REQUIRE(tc__model_file_open(path, &file, &err) == TC_OK);
    if (tc__model_file_open(other_path, &other, &err)) {
        tc__model_file_close(&file);
        REQUIRE(false);
    }
    CHECK_MSG(file.tensor_count == other.tensor_count && file.meta_count == other.meta_count, "%s",
              label);
    for (i = 0; i < file.tensor_count && i < other.tensor_count; i++) {
        const tc__tensor *a = &file.tensors[i], *b = &other.tensors[i];
        CHECK_MSG(a->name_len == b->name_len && !memcmp(a->name, b->name, a->name_len) &&
                      a->type == b->type && a->group_size == b->group_size && a->crc == b->crc &&
                      a->size == b->size && !memcmp(a->data, b->data, a->size),
                  "%s: tensor %.*s differs", label, (int)a->name_len, a->name);
    }
    for (i = 0; i < file.meta_count && i < other.meta_count; i++) {
        const tc__meta *a = &file.metas[i], *b = &other.metas[i];
        if (a->key_len > 8 && !memcmp(a->key, "general.", 8)) continue;
        CHECK_MSG(a->key_len == b->key_len && !memcmp(a->key, b->key, a->key_len) &&
                      a->type == b->type && a->size == b->size &&
                      !memcmp(a->value, b->value, a->size),
                  "%s: %.*s differs", label, (int)a->key_len, a->key);
    }
    tc__model_file_close(&file);
    tc__model_file_close(&other);
}

/* ---- one model folder ---- */

/* Opens with the kernels of that level (NULL: the best). *missing is set, and that is no failure,
 * if this processor lacks them. */
static tc_model *open_model(const char *path, const char *level, int threads, bool *missing) {
    tc_model_params params = tc_model_default_params();
    tc_model *model = NULL;
    tc_error err;
    int code;
    params.device = "cpu";
    params.threads = threads;
    if (level) setenv("TINYCHAT_CPU", level, 1);
    code = tc_model_open(path, &params, &model, &err);
    unsetenv("TINYCHAT_CPU");
    *missing = code == TC_ERR_DEVICE && level && strcmp(level, "portable");
    CHECK_MSG(code == TC_OK || *missing, "%s", err.message);
    return model;
}

/* Everything that is compared for one converted file at one level of the CPU. Prints a line. */
static void check_model(const char *path, const refs *r, const char *level, const char *cut,
                        const char *label) {
    bool missing;
    tc_model *model = open_model(path, level, 1, &missing);
    tc_model *other = open_model(path, level, 3, &missing);
    double worst;
    tc_error err;
    if (model && other) {
        CHECK_MSG(tc_model_verify(model, NULL, NULL, &err) == TC_OK, "%s", err.message);
        worst = compare_run(other, r, label);
        compare_greedy(model, r, label);
        if (cut) check_cuts(model, other, r, cut, label);
        printf("    %-54s relative error %.1e  %s\n", label, worst,
               tc_model_get_info(other).device);
    }
    tc_model_close(model);
    tc_model_close(other);
}

/* Converts and checks every fixture of a folder of checkpoints against the references in `folder`.
 * Files of the same run must give the same model; the first of each run is also evaluated at every
 * level of the CPU there is. `cut`: the sequence that check_cuts takes apart. */
static void check_folder(const char *folder, const char *checkpoints, const fixture *fixtures,
                         size_t count, const char *cut) {
    static const char *const levels[] = {"portable", "avx2", "avx512", "avx512vnni", "neon"};
    char temporary[PROGRAM_PATH], path[2][PROGRAM_PATH + 16], label[2 * PROGRAM_PATH];
    size_t i, level;
    refs r;
    REQUIRE(program_folder(temporary));
    snprintf(path[0], sizeof path[0], "%s/first.bin", temporary);
    snprintf(path[1], sizeof path[1], "%s/model.bin", temporary);
    for (i = 0; i < count; i++) {
        const fixture *f = &fixtures[i];
        bool first = i == 0 || strcmp(f->run, fixtures[i - 1].run) != 0;
        const char *output = path[first ? 0 : 1];
        const char *model = strrchr(folder, '/') ? strrchr(folder, '/') + 1 : folder;
        snprintf(label, sizeof label, "%s: %s%s%s%s", model, f->hf, f->awq ? " + " : "",
                 f->awq     ? f->awq
                 : f->group ? " rounded, group size "
                            : "",
                 f->group ? f->group : "");
        CHECK_MSG(refs_open(&r, folder, f->run), "%s: no references for %s", folder, f->run);
        r.tolerance = f->tolerance > 0 ? f->tolerance : TOLERANCE;
        if (r.run && convert(checkpoints, f, output)) {
            if (!first) check_same_model(path[0], output, label);
            if (!first || BEST_LEVEL_ONLY) check_model(output, &r, NULL, first ? cut : NULL, label);
            for (level = 0; first && !BEST_LEVEL_ONLY && level < TC_COUNT(levels); level++)
                check_model(output, &r, levels[level], cut, label);
        }
        refs_close(&r);
    }
    program_remove_folder(temporary);
}

#endif /* TEST_REFERENCE_H */
