/* The engine on a GPU against stored references, against the CPU backend and against itself.
 * Skipped where there is none. tests/gpu_test.sh runs it for several architectures and under tools.
 *
 *   TINYCHAT_TEST_DEVICE    "cuda" (default), or "cpu" to try this program itself
 *   TINYCHAT_GPU_QUICK      1: accuracy and a few shapes; 2: fewer still, for slow tools; 3: for the
 *                           slowest, every kernel once
 *   TINYCHAT_GPU_PART       memory: only what looks at the GPU's free memory, for which nobody else
 *                           may use it; other: all but that
 *   TINYCHAT_GPU_REQUIRED   1: a GPU that cannot be used is a failure
 *   TINYCHAT_GPU_ONE        1: everything in one process, for tools that watch one
 *   TINYCHAT_GPU_CASE       0 to 7: with QUICK=3, one model only
 *   TINYCHAT_FIXTURES       the folder of the checkpoints that the original llm-awq code wrote
 *
 * Each test runs in a process of its own, because an illegal access spoils CUDA for the rest of the
 * process; models that need kernels of their own are tried side by side, because compiling takes
 * longest.
 */
#include "program.h"
#include "convert/json.h"
#include "convert/writer.h"
#include "src/gpu_driver.h"
#include "src/model_file.h"
#include "src/session.h"
#include "src/threads.h"
#include "random_checkpoint.h"
#include "tiny_model.h"
#include "tinychat.h"
#include "test.h"

#include <dlfcn.h>
#include <math.h>
#include <pthread.h>

#define TOLERANCE 5e-3        /* relative L2 error of one position's logits */
#define TOLERANCE_8 2e-2      /* the same where the GPU makes 8 bits of the head */
#define SECONDS_OF_A_TEST 180 /* then it counts as failed */
#define MAX_JOBS 8

static struct {
    const char *device;
    int quick;
    bool one_process;
    char folder[PROGRAM_PATH]; /* for files, removed at the end */
} settings;

static void settings_read(void) {
    const char *device = getenv("TINYCHAT_TEST_DEVICE"), *quick = getenv("TINYCHAT_GPU_QUICK");
    const char *one = getenv("TINYCHAT_GPU_ONE");
    settings.device = device && *device ? device : "cuda";
    settings.quick = quick ? atoi(quick) : 0;
    if (settings.quick < 0 || settings.quick > 3) settings.quick = 3;
    settings.one_process = one && *one == '1';
}

static bool on_gpu(void) {
    return strcmp(settings.device, "cpu") != 0;
}

/* A file's path in the folder; processes side by side use different names. */
static void temporary(char path[2 * PROGRAM_PATH], const char *name) {
    snprintf(path, 2 * PROGRAM_PATH, "%s/%ld-%s", settings.folder, (long)getpid(), name);
}

/* ---- processes ---- */

/* Runs body(item) for n items of `size` bytes, each in a process of its own, some at a time, and
 * prints what they print in the order of the items. */
typedef struct job {
    pid_t pid;
    FILE *output;
} job;

static job job_start(void (*body)(const void *item), const void *item) {
    job started;
    fflush(NULL);
    started.output = program_temporary();
    started.pid = fork();
    if (started.pid == 0) {
        test_bad_ = 0;
        alarm(SECONDS_OF_A_TEST);
        if (!started.output || dup2(fileno(started.output), 1) < 0 || dup2(1, 2) < 0) _exit(127);
        setvbuf(stdout, NULL, _IOLBF, 0);
        body(item);
        fflush(NULL);
        _exit(test_bad_ != 0);
    }
    return started;
}

static void job_finish(job *started) {
    char text[4096];
    size_t n;
    int status = -1;
    if (started->pid > 0) waitpid(started->pid, &status, 0);
    if (started->output) {
        rewind(started->output);
        while ((n = fread(text, 1, sizeof text, started->output)) > 0) fwrite(text, 1, n, stdout);
        fclose(started->output);
    }
    CHECK_MSG(WIFEXITED(status), "ended by signal %d", WTERMSIG(status));
    if (!WIFEXITED(status) || WEXITSTATUS(status)) test_bad_++;
}

static void in_parallel(void (*body)(const void *item), const void *items, size_t size, size_t n) {
    job jobs[MAX_JOBS];
    size_t started = 0, done = 0, most = (size_t)tc__processors();
    if (most > MAX_JOBS) most = MAX_JOBS;
    for (; settings.one_process && done < n; done++) body((const char *)items + done * size);
    while (done < n)
        if (started < n && started - done < most) {
            jobs[started % MAX_JOBS] = job_start(body, (const char *)items + started * size);
            started++;
        } else {
            job_finish(&jobs[done++ % MAX_JOBS]);
        }
}

/* ---- models, sessions, logits ---- */

static tc_model *open_on(const char *device, const char *path) {
    tc_model_params params = tc_model_default_params();
    tc_model *model = NULL;
    tc_error err;
    params.device = device;
    params.threads = strcmp(device, "cpu") ? 0 : 2;
    CHECK_MSG(tc_model_open(path, &params, &model, &err) == TC_OK, "%s on %s: %s", path, device,
              err.message);
    return model;
}

static tc_session *new_session(tc_model *model) {
    tc_session_params params = tc_session_default_params();
    tc_session *session = NULL;
    tc_error err;
    params.ctx_size = 0;
    CHECK_MSG(tc_session_open(model, &params, &session, &err) == TC_OK, "%s", err.message);
    return session;
}

/* tc_eval that is expected to work. */
static bool evaluate(tc_session *session, const int32_t *ids, size_t n) {
    tc_error err;
    int code = tc_eval(session, ids, n, &err);
    CHECK_MSG(code == TC_OK, "evaluating %zu tokens after %zu: %s", n, tc_kv_length(session),
              err.message);
    return code == TC_OK;
}

/* The model of most tests; settled here so that its kernels are compiled once. */
static tiny_model usual_model(void) {
    tiny_model model = tiny_model_default();
    model.group_size = 128;
    model.hidden = 256, model.intermediate = 384;
    model.heads = 4, model.kv_heads = 2, model.head_dim = 64;
    model.max_seq_len = 512;
    return model;
}

static void random_ids(int32_t *ids, size_t n, int vocab, uint64_t seed) {
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(tiny_random(&seed) % (unsigned)vocab);
}

/* Relative L2 error of a against b; infinite if one is not finite. */
static double distance(const float *a, const float *b, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        double delta = (double)a[i] - b[i];
        difference += delta * delta;
        size += (double)b[i] * b[i];
    }
    double error = sqrt(difference / size);
    return isfinite(error) ? error : INFINITY;
}

static double worst_distance(const float *a, const float *b, size_t positions, size_t vocab,
                             size_t *at) {
    double worst = 0;
    for (size_t i = 0; i < positions; i++) {
        double error = distance(a + i * vocab, b + i * vocab, vocab);
        if (error > worst) worst = error, *at = i;
    }
    return worst;
}

static int keep_position(void *user, size_t position, const float *logits, int vocab_size) {
    memcpy((float *)user + position * (size_t)vocab_size, logits, (size_t)vocab_size * 4);
    return 0;
}

/* All positions' logits into all [n, vocab], evaluated in pieces of `step`; step 1 is decoding. */
static bool all_logits(tc_session *session, const int32_t *ids, size_t n, size_t step, float *all,
                       size_t vocab) {
    tc_error err;
    int code = TC_OK;
    tc_kv_truncate(session, 0);
    for (size_t at = 0; at < n && !code; at += step) {
        size_t piece = n - at < step ? n - at : step;
        if (step > 1) {
            code = tc_eval_all(session, ids + at, piece, keep_position, all, &err);
        } else {
            code = tc_eval(session, ids + at, 1, &err);
            const float *logits = code ? NULL : tc_logits(session);
            CHECK(code || logits);
            if (logits) memcpy(all + at * vocab, logits, vocab * 4);
        }
    }
    CHECK_MSG(code == TC_OK, "%s", err.message);
    return code == TC_OK;
}

/* ---- stored references ---- */

typedef struct fixture {
    const char *folder, *hf, *awq, *run; /* arguments of convert in the folder; key in refs.json */
    bool tokenizer;
    const char *group; /* not NULL: 16-bit weights rounded to 4 bits in groups of this size */
} fixture;

typedef struct refs {
    char folder[PROGRAM_PATH];
    json_doc doc;
    const json_value *run;
    int32_t *vocab_ids; /* [n_ids]: the ids whose logits are stored */
    size_t n_ids;
} refs;

static const json_value *refs_get(const refs *r, const json_value *object, const char *key) {
    return json_get(&r->doc, object, key);
}

/* A JSON array of integers, to be freed. */
static int32_t *refs_ints(const refs *r, const json_value *list, size_t *n) {
    int32_t *numbers = tc__calloc(json_count(list) + 1, sizeof *numbers);
    int64_t number;
    *n = 0;
    for (const json_value *item = json_first(list); numbers && item; item = json_next(list, item))
        if (json_int(&r->doc, item, &number)) numbers[(*n)++] = (int32_t)number;
    return numbers;
}

static bool refs_open(refs *r, const char *folder, const char *run) {
    char path[PROGRAM_PATH + 32];
    tc_error err;
    memset(r, 0, sizeof *r);
    snprintf(r->folder, sizeof r->folder, "%s", folder);
    snprintf(path, sizeof path, "%s/refs/refs.json", folder);
    CHECK_MSG(json_open(path, &r->doc, &err) == TC_OK, "%s", err.message);
    const json_value *root = json_root(&r->doc);
    r->vocab_ids = refs_ints(r, refs_get(r, root, "vocab_ids"), &r->n_ids);
    r->run = refs_get(r, refs_get(r, root, "runs"), run);
    CHECK_MSG(r->run && r->n_ids, "%s has no run %s", path, run);
    return r->run && r->n_ids;
}

static void refs_close(refs *r) {
    json_close(&r->doc);
    free(r->vocab_ids);
}

/* One sequence: its ids, and the stored logits of some of its positions. */
typedef struct sequence {
    const refs *refs;
    char name[32];
    int32_t *ids, *positions;
    size_t n, n_positions, seen;
    const float *stored; /* [n_positions, refs->n_ids] */
    tc__map map;
    /* The largest absolute error of a logit and relative error of a position: what transformers
     * is off by in fp16 if refs.json says so; the relative one at least TOLERANCE. */
    double allowed, allowed_relative;
    double worst, worst_absolute;
} sequence;

static bool sequence_open(sequence *s, const refs *r, const json_value *key) {
    const json_value *entry = json_member(key), *root = json_root(&r->doc);
    char path[2 * PROGRAM_PATH];
    tc__buf text = {0};
    tc_error err;
    memset(s, 0, sizeof *s);
    s->refs = r;
    json_string(&r->doc, key, &text);
    snprintf(s->name, sizeof s->name, "%s", text.data ? text.data : "");
    text.len = 0;
    json_string(&r->doc, refs_get(r, entry, "file"), &text);
    snprintf(path, sizeof path, "%s/%.*s", r->folder, (int)text.len, text.data ? text.data : "");
    tc__buf_free(&text);
    s->ids = refs_ints(r, refs_get(r, refs_get(r, root, "sequences"), s->name), &s->n);
    s->positions = refs_ints(r, refs_get(r, entry, "positions"), &s->n_positions);
    const json_value *allowed = refs_get(r, r->run, "fp16_evaluation_max_abs_diff");
    const json_value *relative = refs_get(r, r->run, "fp16_evaluation_max_relative_error");
    s->allowed = INFINITY;
    if (allowed) CHECK(json_double(&r->doc, refs_get(r, allowed, s->name), &s->allowed));
    if (relative) CHECK(json_double(&r->doc, refs_get(r, relative, s->name), &s->allowed_relative));
    if (s->allowed_relative < TOLERANCE) s->allowed_relative = TOLERANCE;
    int code = tc__map_open(path, &s->map, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    s->stored = (const float *)(const void *)s->map.data;
    bool good =
        !code && s->n && s->n_positions && s->map.size == s->n_positions * r->n_ids * sizeof(float);
    CHECK_MSG(good, "%s: not the size that refs.json says", path);
    return good;
}

static void sequence_close(sequence *s) {
    tc__map_close(&s->map);
    free(s->ids);
    free(s->positions);
}

/* For tc_eval_all: compares the logits of one position if they are stored. */
static int sequence_compare(void *user, size_t position, const float *logits, int vocab_size) {
    sequence *s = user;
    float *got;
    size_t row = 0;
    (void)vocab_size;
    while (row < s->n_positions && (size_t)s->positions[row] != position) row++;
    if (row == s->n_positions || !(got = tc__calloc(s->refs->n_ids, sizeof *got))) return 0;
    const float *want = s->stored + row * s->refs->n_ids;
    for (size_t i = 0; i < s->refs->n_ids; i++) {
        got[i] = logits[s->refs->vocab_ids[i]];
        double off = fabs((double)got[i] - want[i]);
        if (!(off <= s->worst_absolute)) s->worst_absolute = off; /* also NaN */
    }
    double error = distance(got, want, s->refs->n_ids);
    if (error > s->worst) s->worst = error;
    s->seen++;
    free(got);
    return 0;
}

static void sequence_check(const sequence *s, const char *how, const char *label) {
    CHECK_MSG(s->seen == s->n_positions, "%s %s %s: %zu of %zu positions seen", label, s->name, how,
              s->seen, s->n_positions);
    CHECK_MSG(s->worst <= s->allowed_relative, "%s %s %s: relative error %.2e; allowed %.2e", label,
              s->name, how, s->worst, s->allowed_relative);
    CHECK_MSG(s->worst_absolute <= s->allowed, "%s %s %s: a logit is off by %.4f; allowed %.4f",
              label, s->name, how, s->worst_absolute, s->allowed);
}

/* Largest errors over the sequences of a run. */
typedef struct errors {
    double prefill, decode, absolute, of_allowed;
} errors;

static void errors_take(errors *all, const sequence *s, double *relative) {
    if (s->worst > *relative) *relative = s->worst;
    if (s->worst_absolute > all->absolute) all->absolute = s->worst_absolute;
    if (s->worst_absolute / s->allowed > all->of_allowed)
        all->of_allowed = s->worst_absolute / s->allowed;
}

/* Every stored sequence as one prefill and token by token. */
static void compare_sequences(tc_model *model, const refs *r, const char *label, errors *all) {
    const json_value *logits = refs_get(r, r->run, "logits"), *key;
    tc_session *session = new_session(model);
    tc_error err;
    memset(all, 0, sizeof *all);
    CHECK(json_count(logits) > 0);
    for (key = json_first(logits); key && session; key = json_next(logits, key)) {
        sequence s;
        bool good = sequence_open(&s, r, key);
        tc_kv_truncate(session, 0);
        if (good) {
            int code = tc_eval_all(session, s.ids, s.n, sequence_compare, &s, &err);
            CHECK_MSG(code == TC_OK, "%s", err.message);
            sequence_check(&s, "prefill", label);
            errors_take(all, &s, &all->prefill);
            s.seen = 0, s.worst = s.worst_absolute = 0;
            tc_kv_truncate(session, 0);
            for (size_t i = 0; i < s.n && evaluate(session, s.ids + i, 1); i++) {
                const float *at = tc_logits(session);
                if (at) sequence_compare(&s, i, at, 0);
            }
            sequence_check(&s, "decode", label);
            errors_take(all, &s, &all->decode);
        }
        sequence_close(&s);
    }
    tc_session_close(session);
}

/* The stored greedy continuation; where the two largest logits of the reference are closer than
 * twice the error, either may win and the reference's token is fed. */
static void compare_greedy(tc_model *model, const refs *r, double error, const char *label) {
    const json_value *greedy = refs_get(r, r->run, "greedy");
    const json_value *margin = json_first(refs_get(r, greedy, "top1_minus_top2"));
    tc_session *session = new_session(model);
    tc_sampling sampling = tc_default_sampling();
    tc__buf name = {0};
    size_t n_prompt, n, compared = 0;
    int32_t *want = refs_ints(r, refs_get(r, greedy, "ids"), &n), *prompt, id;
    tc_error err;
    sampling.temperature = 0, sampling.repeat_penalty = 1;
    CHECK(json_string(&r->doc, refs_get(r, greedy, "prompt"), &name));
    prompt = refs_ints(
        r, refs_get(r, refs_get(r, json_root(&r->doc), "sequences"), name.data ? name.data : ""),
        &n_prompt);
    CHECK(n > 0 && n_prompt > 0);
    bool good = session && n_prompt && evaluate(session, prompt, n_prompt);
    for (size_t i = 0; i < n && good; i++) {
        double gap = 0;
        CHECK(json_double(&r->doc, margin, &gap));
        CHECK_MSG(tc_sample(session, &sampling, &id, &err) == TC_OK, "%s", err.message);
        CHECK_MSG(id == want[i] || gap <= 2 * error,
                  "%s: greedy token %zu is %d, not %d; margin %.3f", label, i, (int)id,
                  (int)want[i], gap);
        compared += gap > 2 * error;
        good = evaluate(session, &want[i], 1);
        margin = json_next(refs_get(r, greedy, "top1_minus_top2"), margin);
    }
    CHECK_MSG(2 * compared >= n, "%s: only %zu of %zu greedy tokens decided", label, compared, n);
    tc__buf_free(&name);
    free(want);
    free(prompt);
    tc_session_close(session);
}

static bool convert(const char *folder, const fixture *f, const char *output) {
    char hf[2 * PROGRAM_PATH], awq[2 * PROGRAM_PATH], messages[4096];
    const char *argv[14] = {program_convert(), "--hf", hf, "-o", output};
    int n = 5;
    snprintf(hf, sizeof hf, "%s/%s", folder, f->hf);
    snprintf(awq, sizeof awq, "%s/%s", folder, f->awq ? f->awq : "");
    if (f->awq) argv[n++] = "--awq", argv[n++] = awq;
    if (f->group) {
        argv[n++] = "--quantize", argv[n++] = "rtn";
        argv[n++] = "--group-size", argv[n++] = f->group;
    }
    if (!f->tokenizer) argv[n++] = "--no-tokenizer";
    int status = program_run(argv, NULL, 0, messages, sizeof messages);
    CHECK_MSG(status == 0, "convert %s %s: exit status %d\n%s", hf, f->awq ? awq : "", status,
              messages);
    return status == 0;
}

/* A folder of tests/data, or one in $TINYCHAT_FIXTURES; false where that is not there. */
static bool fixture_folder(const fixture *f, char folder[PROGRAM_PATH]) {
    const char *root = getenv("TINYCHAT_FIXTURES");
    if (strchr(f->folder, '/'))
        snprintf(folder, PROGRAM_PATH, "%s", f->folder);
    else
        snprintf(folder, PROGRAM_PATH, "%s/%s", root ? root : "", f->folder);
    return access(folder, R_OK) == 0;
}

/* Converts what is in `folder` and compares it with the references in another one. */
static void check_converted(const char *folder, const char *references, const fixture *f,
                            const char *label) {
    char path[2 * PROGRAM_PATH];
    errors worst;
    refs r;
    temporary(path, "fixture.bin");
    tc_model *model = convert(folder, f, path) ? open_on(settings.device, path) : NULL;
    if (refs_open(&r, references, f->run) && model) {
        compare_sequences(model, &r, label, &worst);
        compare_greedy(model, &r, worst.absolute, label);
        printf("    %-56s prefill %.1e decode %.1e; logits off by %.4f", label, worst.prefill,
               worst.decode, worst.absolute);
        if (worst.of_allowed > 0) printf(", %.0f%% of what is allowed", 100 * worst.of_allowed);
        printf("\n");
    }
    tc_model_close(model);
    refs_close(&r);
    unlink(path);
}

static void check_fixture(const void *item) {
    const fixture *f = item;
    char folder[PROGRAM_PATH], label[PROGRAM_PATH];
    fixture_folder(f, folder);
    snprintf(label, sizeof label, "%s %s%s%s", strrchr(folder, '/') + 1, f->hf, f->awq ? " + " : "",
             f->awq ? f->awq : "");
    check_converted(folder, folder, f, label);
}

typedef struct family {
    const char *name, *group;
} family;

/* A checkpoint made by rule (random_checkpoint.h) in a folder of its own: as it is, and in 4 bits. */
static void check_family(const void *item) {
    const family *tested = item;
    const char *family = tested->name;
    const fixture files[] = {{"", ".", NULL, "w16", false, NULL},
                             {"", ".", NULL, "w4", false, tested->group}};
    char label[64];
    char folder[PROGRAM_PATH], from[PROGRAM_PATH], to[PROGRAM_PATH + 32];
    tc__map config = {NULL, 0};
    bool good = program_folder(folder);
    snprintf(from, sizeof from, "tests/data/families/%s/config.json", family);
    snprintf(to, sizeof to, "%s/config.json", folder);
    FILE *file = good ? fopen(to, "wb") : NULL;
    good = file && tc__map_open(from, &config, NULL) == TC_OK &&
           fwrite(config.data, 1, config.size, file) == config.size;
    if (file) good &= fclose(file) == 0;
    tc__map_close(&config);
    snprintf(from, sizeof from, "tests/data/families/%s/header.json", family);
    snprintf(to, sizeof to, "%s/model.safetensors", folder);
    good = good && random_checkpoint_write(from, to);
    CHECK_MSG(good, "%s: the checkpoint cannot be made", family);
    snprintf(from, sizeof from, "tests/data/families/%s", family);
    for (size_t i = 0; i < TC_COUNT(files) && good; i++) {
        snprintf(label, sizeof label, "%s %s", family, files[i].run);
        check_converted(folder, from, &files[i], label);
    }
    program_remove_folder(folder);
}

TEST(families_match_their_references) {
    static const family all[] = {{"mpt", "64"},          {"falcon", "64"},        {"qwen3", "64"},
                                 {"falcon-new", "64"},   {"mpt-112", "64"},       {"llama3", "128"},
                                 {"llama-linear", "64"}, {"llama-dynamic", "64"}, {"mistral", "64"},
                                 {"qwen2-yarn", "32"}};
    static const size_t counts[] = {TC_COUNT(all), 4, 0};
    in_parallel(check_family, all, sizeof *all, counts[settings.quick]);
}

TEST(fixtures_match_their_references) {
    static const fixture all[] = {
        {"llama-gqa-tiny", "hf", "quant/llama-gqa-tiny-w4-g128-awq.pt", "w4", false, NULL},
        {"llama-gqa-tiny", "hf", "quant/llama-gqa-tiny-w4-g128-awq-v2.pt", "w4", false, NULL},
        {"llama-gqa-tiny", "hf", NULL, "w16", false, NULL},
        {"llama-tiny", "hf", "quant/llama-tiny-w4-g128-awq.pt", "w4", true, NULL},
        {"llama-tiny", "hf", NULL, "w16", true, NULL},
        {"mpt-tiny", "hf", "quant/mpt-tiny-w4-g128-awq.pt", "w4", false, NULL},
        {"mpt-tiny", "hf", NULL, "w16", false, NULL},
        {"falcon-tiny", "hf", "quant/falcon-tiny-w4-g64-awq.pt", "w4", false, NULL},
        {"falcon-tiny", "hf", NULL, "w16", false, NULL},
        {"qwen2-tiny", "hf", "quant/qwen2-tiny-w4-g128-awq.pt", "w4", false, NULL},
        {"qwen2-tiny", "hf", NULL, "w16", false, NULL}};
    char folder[PROGRAM_PATH];
    for (size_t i = 0; i < TC_COUNT(all); i++)
        if (!fixture_folder(&all[i], folder))
            SKIP("$TINYCHAT_FIXTURES names no folder with %s", all[i].folder);
    in_parallel(check_fixture, all, sizeof *all, settings.quick == 2 ? 1 : TC_COUNT(all));
}

TEST(small_checkpoints_match_their_references) {
    static const fixture all[] = {
        {"tests/data/llama-small", "hf", "g64-b.pt", "g64", false, NULL},
        {"tests/data/llama-small", "hf", "g32-b.pt", "g32", false, NULL},
        {"tests/data/llama-small", "hf", NULL, "w16", false, NULL},
        {"tests/data/llama-small", "hf-bf16", NULL, "bf16", false, NULL},
        {"tests/data/llama-small", "autoawq-mixed", NULL, "mixed", false, NULL},
        {"tests/data/llama-128", "hf-awq", "g128-b.pt", "g128", false, NULL},
        {"tests/data/llama-rows", "autoawq", "rows-c.pt", "rows", false, NULL}};
    static const size_t counts[] = {TC_COUNT(all), 3, 2};
    in_parallel(check_fixture, all, sizeof *all, counts[settings.quick]);
}

/* ---- shapes: prefill, decode and the CPU ---- */

typedef struct shape {
    const char *what;
    int group_size, hidden, intermediate, layers, heads, kv_heads, head_dim, tied, tokens;
} shape;

/* The first ones are the quick mode's: each group size and type, several ratios and head sizes. */
static const shape shapes[] = {
    {"g128, head 128, 5:1", 128, 128, 256, 2, 5, 1, 128, 0, 300},
    {"g64, head 80, 2:1", 64, 192, 320, 2, 4, 2, 80, 0, 300},
    {"g32, head 112, 4:1", 32, 96, 160, 2, 4, 1, 112, 0, 300},
    {"f16, head 96, 9:1", 0, 160, 96, 2, 9, 1, 96, 0, 300},
    {"bf16, head 64, 8:1, tied", -1, 224, 352, 2, 8, 1, 64, 1, 300},
    {"g128, head 64, 1:1", 128, 256, 384, 2, 4, 4, 64, 0, 600},
    {"g64, head 256, 6:1", 64, 256, 192, 1, 6, 1, 256, 0, 600},
    {"g32, head 96, 3:1", 32, 160, 224, 2, 6, 2, 96, 0, 600},
    {"f16, head 64, 7:1", 0, 96, 160, 2, 14, 2, 64, 0, 600},
    {"f16, one head, tied", 0, 64, 64, 1, 1, 1, 64, 1, 200},
    {"g32, head 32, 20:1", 32, 160, 96, 2, 20, 1, 32, 0, 300},
    {"g64, head 48, 16 KV heads", 64, 128, 128, 2, 16, 16, 48, 0, 600},
    {"g128, head 16, 8:1, tied", 128, 128, 128, 3, 16, 2, 16, 1, 200},
    {"g128, head 80, long", 128, 128, 128, 1, 8, 2, 80, 0, 2200},
    {"f16, wide matrices", 0, 128, 3328, 1, 26, 1, 128, 0, 2048},
};

static tiny_model shape_model(const shape *s) {
    tiny_model model = tiny_model_default();
    model.group_size = s->group_size;
    model.hidden = s->hidden, model.intermediate = s->intermediate, model.layers = s->layers;
    model.heads = s->heads, model.kv_heads = s->kv_heads, model.head_dim = s->head_dim;
    model.tied = s->tied;
    model.max_seq_len = s->tokens + 8;
    return model;
}

/* Writes the model and opens it on the device and on the CPU. */
static bool open_both(const tiny_model *tiny, tc_model **model, tc_model **cpu) {
    char path[2 * PROGRAM_PATH];
    temporary(path, "tiny.bin");
    *model = *cpu = NULL;
    CHECK(tiny_model_write(tiny, path) == 0);
    *model = open_on(settings.device, path);
    *cpu = open_on("cpu", path);
    unlink(path); /* both have it mapped */
    return *model && *cpu;
}

static void check_shape(const void *item) {
    static const size_t steps[] = {4096, 1, 33, 128};
    static const char *const names[] = {"prefill", "decode", "pieces of 33", "pieces of 128"};
    const shape *s = item;
    tiny_model tiny = shape_model(s);
    size_t n = settings.quick == 2 ? 70 : (size_t)s->tokens, at = 0, vocab = TINY_VOCAB;
    int32_t *ids = tc__calloc(n, sizeof *ids);
    float *want = tc__calloc(n * vocab, 4), *got[4];
    double worst[4] = {0}, between;
    tc_model *model, *cpu;
    for (size_t i = 0; i < 4; i++) got[i] = tc__calloc(n * vocab, 4);
    random_ids(ids, n, TINY_VOCAB, 3);
    if (open_both(&tiny, &model, &cpu)) {
        tc_session *session = new_session(model), *reference = new_session(cpu);
        bool good = session && reference && all_logits(reference, ids, n, 4096, want, vocab);
        for (size_t i = 0; i < 4 && good; i++) {
            good = all_logits(session, ids, n, steps[i], got[i], vocab);
            worst[i] = worst_distance(got[i], want, n, vocab, &at);
            CHECK_MSG(worst[i] <= TOLERANCE, "%s: %s differs from the CPU by %.2e at position %zu",
                      s->what, names[i], worst[i], at);
        }
        between = worst_distance(got[0], got[1], n, vocab, &at);
        CHECK_MSG(between <= TOLERANCE, "%s: prefill differs from decode by %.2e at position %zu",
                  s->what, between, at);
        /* without asking for every position: another kernel computes the last one's logits */
        tc_kv_truncate(session, 0);
        good = good && evaluate(session, ids, n) && tc_logits(session);
        CHECK(good && distance(tc_logits(session), want + (n - 1) * vocab, vocab) <= TOLERANCE);
        printf("    %-28s %4zu tokens  prefill %.1e decode %.1e pieces %.1e %.1e; between %.1e\n",
               s->what, n, worst[0], worst[1], worst[2], worst[3], between);
        tc_session_close(session);
        tc_session_close(reference);
    }
    tc_model_close(model);
    tc_model_close(cpu);
    for (size_t i = 0; i < 4; i++) free(got[i]);
    free(want);
    free(ids);
}

TEST(prefill_decode_and_the_cpu_agree) {
    static const size_t counts[] = {TC_COUNT(shapes), 5, 3};
    in_parallel(check_shape, shapes, sizeof *shapes, counts[settings.quick]);
}

/* For tools that take a thousand times as long: of each kind of model a prefill, a few tokens and a
 * choice. TINYCHAT_GPU_CASE=N: only one of them. */
typedef struct once {
    const char *what, *precision;
    int group_size, prefill, decode;
    tc__shape_spec spec;
    int head_bits;
} once;

#define ONCE_LLAMA "llama", "llama"
#define ONCE_SIZES(hidden, inner, heads, kv_heads, dim)                                            \
    hidden, inner, 1, heads, kv_heads, dim, 397, 1100, .norm_eps = 1e-5, .rope_theta = 1e4

static const once once_cases[] = {
    {"g128, head 64, 2:1",
     "w4a16",
     128,
     9,
     3,
     {ONCE_LLAMA, ONCE_SIZES(128, 256, 4, 2, 64), .gated = 1},
     0},
    {"f16, parallel, head 80, MQA",
     "w16a16",
     0,
     9,
     3,
     {ONCE_LLAMA, ONCE_SIZES(96, 160, 2, 1, 80), .norm = TC__NORM_LAYER, .norm_bias = true,
      .activation = TC__ACT_GELU, .parallel = 1, .shared_norm = true, .tied = true},
     0},
    {"g32, ALiBi, act scales",
     "w4a16",
     32,
     9,
     3,
     {ONCE_LLAMA, ONCE_SIZES(96, 160, 2, 2, 112), .norm = TC__NORM_LAYER, .clip_qkv = 0.2,
      .position = TC__POSITION_ALIBI, .activation = TC__ACT_GELU, .act_scales = true},
     0},
    {"g64, biases, q/k norms",
     "w4a16",
     64,
     9,
     3,
     {ONCE_LLAMA, ONCE_SIZES(128, 192, 4, 1, 128), .gated = 1, .qkv_bias = true, .qk_norm = true},
     0},
    {"g128, large tiles",
     "w4a16",
     128,
     512,
     0,
     {ONCE_LLAMA, ONCE_SIZES(128, 8192, 2, 1, 64), .gated = 1},
     0},
    {"f16, large tiles",
     "w16a16",
     0,
     300,
     0,
     {ONCE_LLAMA, ONCE_SIZES(128, 8192, 2, 1, 64), .gated = 1},
     0},
    {"g128, 8-bit head", "w4a16", 128, 9, 3, {ONCE_LLAMA, ONCE_SIZES(256, 256, 4, 2, 64)}, 8},
    {"f16, 8-bit head, tied",
     "w16a16",
     0,
     9,
     3,
     {ONCE_LLAMA, ONCE_SIZES(160, 96, 2, 1, 80), .norm = TC__NORM_LAYER, .tied = true},
     8},
};

static void compare_once(const once *c, tc_session *session, tc_session *reference) {
    size_t n = (size_t)(c->prefill + c->decode), first = (size_t)c->prefill, vocab = 397, at = 0;
    int32_t *ids = tc__calloc(n, sizeof *ids), id;
    float *want = tc__calloc(n * vocab, 4), *got = tc__calloc(n * vocab, 4);
    double start = tc_seconds();
    tc_error err;
    random_ids(ids, n, (int)vocab, 3);
    bool good = all_logits(reference, ids, n, 4096, want, vocab) &&
                all_logits(session, ids, first, 4096, got, vocab);
    for (size_t i = first; i < n && good; i++) {
        good = evaluate(session, ids + i, 1) && tc_logits(session);
        if (good) memcpy(got + i * vocab, tc_logits(session), vocab * 4);
    }
    double error = worst_distance(got, want, n, vocab, &at);
    CHECK_MSG(good && error <= (c->head_bits ? TOLERANCE_8 : TOLERANCE),
              "%s: off by %.2e at position %zu", c->what, error, at);
    good = good && tc_sample(session, NULL, &id, &err) == TC_OK;
    CHECK(good && evaluate(session, &id, 1));
    printf("    %-28s %4zu tokens  off by %.1e  %.1f s\n", c->what, n, error, tc_seconds() - start);
    free(want);
    free(got);
    free(ids);
}

static void check_once(const void *item) {
    const once *c = item;
    const char *only = getenv("TINYCHAT_GPU_CASE");
    tc_model_params params = tc_model_default_params();
    tc_model *model = NULL, *cpu = NULL;
    tc_error err;
    if (only && *only && atoi(only) != (int)(c - once_cases)) return;
    params.device = settings.device;
    params.head_bits = on_gpu() ? c->head_bits : 0;
    int code = tc__model_open_spec(on_gpu() ? tc__cuda_backend() : tc__cpu_backend(), &c->spec,
                                   c->precision, c->group_size, &params, &model, &err);
    params.head_bits = 0;
    if (!code)
        code = tc__model_open_spec(tc__cpu_backend(), &c->spec, c->precision, c->group_size,
                                   &params, &cpu, &err);
    CHECK_MSG(code == TC_OK, "%s: %s", c->what, err.message);
    tc_session *session = code ? NULL : new_session(model);
    tc_session *reference = code ? NULL : new_session(cpu);
    if (session && reference) compare_once(c, session, reference);
    tc_session_close(session);
    tc_session_close(reference);
    tc_model_close(model);
    tc_model_close(cpu);
}

TEST(every_kernel_once) {
    in_parallel(check_once, once_cases, sizeof *once_cases, TC_COUNT(once_cases));
}

/* Matrices so large that prefill takes its larger tiles, also for the narrow ones of a block. */
TEST(wide_prefill_agrees_with_narrow) {
    tiny_model tiny = tiny_model_default();
    tc_model *model, *cpu;
    enum { N = 2048, LAST = 64 };
    int32_t *ids = tc__calloc(N, sizeof *ids);
    size_t vocab = TINY_VOCAB, at = 0;
    float *wide = tc__calloc(N * vocab, 4), *narrow = tc__calloc(N * vocab, 4);
    tiny.group_size = 128, tiny.layers = 1;
    tiny.hidden = 3328, tiny.intermediate = 3328, tiny.max_seq_len = N;
    tiny.heads = 26, tiny.kv_heads = 1, tiny.head_dim = 128;
    random_ids(ids, N, TINY_VOCAB, 5);
    if (open_both(&tiny, &model, &cpu)) {
        tc_session *session = new_session(model), *reference = new_session(cpu);
        bool good = session && reference && all_logits(session, ids, N, N, wide, vocab) &&
                    all_logits(session, ids, N, 128, narrow, vocab);
        double error = worst_distance(wide, narrow, N, vocab, &at);
        CHECK_MSG(good && error <= TOLERANCE, "wide and narrow differ by %.2e at %zu", error, at);
        printf("    wide and narrow differ by %.1e", error);
        good = good && all_logits(reference, ids, LAST, LAST, narrow, vocab);
        error = worst_distance(wide, narrow, LAST, vocab, &at);
        CHECK_MSG(good && error <= TOLERANCE, "wide and the CPU differ by %.2e at %zu", error, at);
        printf(", wide and the CPU by %.1e\n", error);
        tc_session_close(session);
        tc_session_close(reference);
    }
    tc_model_close(model);
    tc_model_close(cpu);
    free(ids);
    free(wide);
    free(narrow);
}

/* One token more than the largest piece that prefill takes at once: against pieces of 128 tokens,
 * whose last one is a token of its own, and so decoded. */
TEST(a_prompt_one_longer_than_a_piece) {
    enum { N = 2049 };
    tiny_model tiny = usual_model();
    tc_model *model, *cpu;
    int32_t *ids = tc__calloc(N, sizeof *ids);
    float *once = tc__calloc(N * TINY_VOCAB, 4), *pieces = tc__calloc(N * TINY_VOCAB, 4);
    size_t at = 0;
    tiny.max_seq_len = N;
    random_ids(ids, N, TINY_VOCAB, 8);
    if (open_both(&tiny, &model, &cpu)) {
        tc_session *session = new_session(model);
        bool good = session && all_logits(session, ids, N, N, once, TINY_VOCAB) &&
                    all_logits(session, ids, N, 128, pieces, TINY_VOCAB);
        double error = worst_distance(once, pieces, N, TINY_VOCAB, &at);
        CHECK_MSG(good && error <= TOLERANCE, "at once and in pieces differ by %.2e at %zu", error,
                  at);
        tc_kv_truncate(session, 0);
        good = good && evaluate(session, ids, N) && tc_logits(session);
        error = good ? distance(tc_logits(session), pieces + (N - 1) * TINY_VOCAB, TINY_VOCAB) : 1;
        CHECK_MSG(error <= TOLERANCE, "the last logits alone are off by %.2e", error);
        printf("    at once and in pieces: the last differ by %.1e\n", error);
        tc_session_close(session);
    }
    tc_model_close(model);
    tc_model_close(cpu);
    free(ids);
    free(once);
    free(pieces);
}

/* Compares positions that a prefill has kept with those of a decode, one at a time. */
TEST(a_7b_prefills_as_it_decodes) {
    enum { N = 2048 };
    tc_model_params params = tc_model_default_params();
    int32_t *ids = tc__calloc(N, sizeof *ids);
    double worst = 0, sum = 0;
    size_t at = 0;
    tc_model *model = NULL;
    tc_error err;
    params.device = settings.device;
    if (!on_gpu()) SKIP("the CPU would take too long");
    int code = tc_model_open_shape("llama-2-7b", NULL, 0, &params, &model, &err);
    if (code == TC_ERR_MEMORY) SKIP("%s", err.message);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    REQUIRE(model);
    size_t vocab = (size_t)tc_model_get_info(model).vocab_size;
    float *all = tc__calloc(N * vocab, sizeof *all);
    tc_session_params size = {N};
    tc_session *session = NULL;
    random_ids(ids, N, (int)vocab, 21);
    CHECK_MSG(tc_session_open(model, &size, &session, &err) == TC_OK, "%s", err.message);
    bool good = session && all_logits(session, ids, N, N, all, vocab);
    if (session) tc_kv_truncate(session, 0);
    for (size_t i = 0; i < N && good; i++) {
        good = evaluate(session, ids + i, 1) && tc_logits(session);
        double error = good ? distance(all + i * vocab, tc_logits(session), vocab) : 0;
        sum += error;
        if (error > worst) worst = error, at = i;
    }
    CHECK(good);
    CHECK_MSG(worst <= TOLERANCE, "prefill and decode differ by %.2e at position %zu", worst, at);
    printf("    prefill and decode differ by at most %.1e, on average %.1e, at %d positions\n",
           worst, sum / N, N);
    tc_session_close(session);
    tc_model_close(model);
    free(all);
    free(ids);
}

/* ---- the demo model ---- */

/* Asks both; counts equal answers and those that the file gives. */
static void ask_both(tc_chat *chat, tc_chat *cpu, const char *question, const char *answer,
                     int *right) {
    tc_reply reply, want;
    tc_error err;
    tc_chat_reset(chat);
    tc_chat_reset(cpu);
    int code = tc_chat_send(cpu, question, strlen(question), NULL, NULL, &want, &err);
    if (!code) code = tc_chat_send(chat, question, strlen(question), NULL, NULL, &reply, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    if (code) return;
    CHECK_MSG(!strcmp(reply.text, want.text), "%s\n  %s\n  on the CPU: %s", question, reply.text,
              want.text);
    const char *text = reply.text + strspn(reply.text, " ");
    *right += strcmp(text, answer) == 0;
}

TEST(demo_model_answers_as_on_the_cpu) {
    enum { QUESTIONS = 20 };
    char line[1024], *question, *answer;
    int asked = 0, right = 0;
    FILE *file = fopen("models/questions.tsv", "r");
    tc_chat_params params = tc_chat_default_params();
    tc_chat *chats[2] = {NULL, NULL};
    tc_error err;
    if (!file || access("models/demo.bin", R_OK)) SKIP("there is no demo model in models");
    tc_model *models[2] = {open_on(settings.device, "models/demo.bin"),
                           open_on("cpu", "models/demo.bin")};
    params.sampling.temperature = 0;
    params.ctx_size = 512;
    for (int i = 0; i < 2 && models[i]; i++)
        CHECK_MSG(tc_chat_open(models[i], &params, &chats[i], &err) == TC_OK, "%s", err.message);
    while (chats[0] && chats[1] && asked < QUESTIONS && fgets(line, sizeof line, file)) {
        if (*line == '#' || !(question = strchr(line, '\t')) ||
            !(answer = strchr(question + 1, '\t')) || strchr(answer + 1, '\t'))
            continue; /* a remark, or two turns */
        *answer++ = 0;
        answer[strcspn(answer, "\r\n")] = 0;
        ask_both(chats[0], chats[1], question + 1, answer, &right);
        asked++;
    }
    printf("    %d questions, %d answered as the file says\n", asked, right);
    CHECK(asked == QUESTIONS && 2 * right > asked);
    for (int i = 0; i < 2; i++) {
        tc_chat_close(chats[i]);
        tc_model_close(models[i]);
    }
    fclose(file);
}

/* ---- KV reuse ---- */

/* Positions 100 to 159 after `session` holds the first 100, against a fresh prefill. */
static void check_second_turn(tc_session *session, const int32_t *ids, const float *fresh,
                              const char *what) {
    enum { FIRST = 100, N = 160 };
    size_t vocab = TINY_VOCAB, at = 0;
    float *got = tc__calloc(N * vocab, 4);
    tc_error err;
    CHECK(tc_kv_length(session) == FIRST);
    int code = tc_eval_all(session, ids + FIRST, N - FIRST, keep_position, got, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    double error =
        worst_distance(got + FIRST * vocab, fresh + FIRST * vocab, N - FIRST, vocab, &at);
    CHECK_MSG(error <= TOLERANCE, "%s: %.2e at position %zu", what, error, at + FIRST);
    printf("    %-44s %.1e\n", what, error);
    CHECK(tc_kv_length(session) == N && !memcmp(tc_kv_ids(session), ids, N * sizeof *ids));
    free(got);
}

TEST(a_second_turn_only_needs_its_own_tokens) {
    enum { N = 160, FIRST = 100 };
    tiny_model tiny = usual_model();
    tc_sampling sampling = tc_default_sampling();
    tc_model *model, *cpu;
    int32_t ids[N], other[40], id;
    size_t vocab = TINY_VOCAB;
    float *fresh = tc__calloc(N * vocab, 4);
    tc_error err;
    random_ids(ids, N, TINY_VOCAB, 7);
    random_ids(other, TC_COUNT(other), TINY_VOCAB, 8);
    REQUIRE(open_both(&tiny, &model, &cpu));
    tc_session *session = new_session(model), *clean = new_session(model);
    REQUIRE(session && clean && all_logits(clean, ids, N, N, fresh, vocab));

    evaluate(session, ids, FIRST);
    check_second_turn(session, ids, fresh, "after one prefill");
    tc_kv_truncate(session, 37);
    CHECK(tc_logits(session) == NULL);
    evaluate(session, other, TC_COUNT(other)); /* overwrites what lies behind */
    tc_kv_truncate(session, 37);
    evaluate(session, ids + 37, FIRST - 37);
    check_second_turn(session, ids, fresh, "truncated, other tokens, truncated again");

    /* a chosen token is evaluated ahead; then it is another one that comes */
    tc_kv_truncate(session, FIRST - 1);
    evaluate(session, ids + FIRST - 1, 1);
    CHECK_MSG(tc_sample(session, &sampling, &id, &err) == TC_OK, "%s", err.message);
    check_second_turn(session, ids, fresh, "after a choice that was not taken");
    tc_kv_truncate(session, FIRST - 2);
    evaluate(session, ids + FIRST - 2, 1);
    CHECK(tc_sample(session, &sampling, &id, &err) == TC_OK);
    evaluate(session, &id, 1); /* taken */
    tc_kv_truncate(session, FIRST - 1);
    evaluate(session, ids + FIRST - 1, 1);
    check_second_turn(session, ids, fresh, "after a choice that was taken back");
    tc_session_close(session);
    tc_session_close(clean);
    tc_model_close(model);
    tc_model_close(cpu);
    free(fresh);
}

/* ---- sampling ---- */

enum { CONTINUED = 20 };

/* A seeded continuation of a prompt, and the logits after it. */
typedef struct continuation {
    int32_t ids[CONTINUED];
    float logits[TINY_VOCAB];
} continuation;

static void continue_sampled(tc_session *session, uint64_t seed, continuation *out) {
    int32_t prompt[40];
    tc_sampling sampling = tc_default_sampling();
    tc_error err;
    memset(out, 0, sizeof *out);
    random_ids(prompt, TC_COUNT(prompt), TINY_VOCAB, 11);
    tc_kv_truncate(session, 0);
    tc_session_seed(session, seed);
    sampling.temperature = 1.5f;
    bool good = evaluate(session, prompt, TC_COUNT(prompt));
    for (int i = 0; i < CONTINUED && good; i++) {
        CHECK_MSG(tc_sample(session, &sampling, &out->ids[i], &err) == TC_OK, "%s", err.message);
        good = evaluate(session, &out->ids[i], 1);
    }
    const float *logits = good ? tc_logits(session) : NULL;
    CHECK(logits);
    if (logits) memcpy(out->logits, logits, sizeof out->logits);
}

static bool same_continuation(const continuation *a, const continuation *b) {
    return !memcmp(a->ids, b->ids, sizeof a->ids) &&
           !memcmp(a->logits, b->logits, sizeof a->logits);
}

/* The usual model on the device only. */
static tc_model *open_usual(void) {
    tiny_model tiny = usual_model();
    char path[2 * PROGRAM_PATH];
    temporary(path, "usual.bin");
    CHECK(tiny_model_write(&tiny, path) == 0);
    tc_model *model = open_on(settings.device, path);
    unlink(path);
    return model;
}

TEST(seeded_replies_repeat_bit_by_bit) {
    tc_model *model = open_usual();
    continuation first, other, again;
    int different = 0;
    REQUIRE(model);
    tc_session *session = new_session(model);
    continue_sampled(session, 17, &first);
    continue_sampled(session, 18, &other);
    CHECK(!same_continuation(&first, &other)); /* else the comparison below shows nothing */
    for (int i = 0; i < 100; i++) {
        if (i % 10 == 9) {
            tc_session_close(session);
            session = new_session(model);
        }
        continue_sampled(session, 17, &again);
        different += !same_continuation(&first, &again);
    }
    CHECK_MSG(different == 0, "%d of 100 repetitions differ", different);
    tc_session_close(session);
    tc_model_close(model);
}

/* What the documented order gives for these logits, by the CPU's code in binary64. */
typedef struct chooser {
    tc__candidate *candidates;
    uint8_t *seen;
    int vocab;
} chooser;

static int32_t choose_on_cpu(chooser *c, const float *logits, tc_session *session,
                             const tc_sampling *sampling, double u) {
    size_t n = tc_kv_length(session);
    const int32_t *end = tc_kv_ids(session) + n;
    int32_t id = -1;
    tc_error err;
    if (sampling->repeat_last_n >= 0 && n > (size_t)sampling->repeat_last_n)
        n = (size_t)sampling->repeat_last_n;
    int code =
        tc__sample(logits, c->vocab, sampling, end - n, n, u, c->candidates, c->seen, &id, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    return id;
}

typedef struct setting {
    const char *what;
    float temperature, top_p;
    int top_k;
    float min_p, penalty;
    int last_n;
} setting;

/* Draws 100 times along a continuation. Returns the choices that differ from the CPU's. */
static int differing_choices(tc_session *session, chooser *c, const setting *s, uint64_t seed) {
    tc_sampling sampling = {s->temperature, s->top_p,  s->top_k, s->min_p,
                            s->penalty,     s->last_n, seed};
    int32_t prompt[64], id, want;
    int different = 0;
    uint64_t draw = 0;
    tc_error err;
    random_ids(prompt, TC_COUNT(prompt), c->vocab, seed);
    tc_kv_truncate(session, 0);
    tc_session_seed(session, seed);
    bool good = evaluate(session, prompt, TC_COUNT(prompt));
    for (int i = 0; i < 100 && good; i++) {
        const float *logits = tc_logits(session);
        CHECK(logits);
        if (!logits) break;
        want = choose_on_cpu(c, logits, session, &sampling, tc__random(seed, draw));
        draw += s->temperature >= 1e-5f;
        good = tc_sample(session, &sampling, &id, &err) == TC_OK;
        CHECK_MSG(good, "%s: %s", s->what, err.message);
        different += good && id != want;
        good = good && evaluate(session, &id, 1);
    }
    return different;
}

static void check_sampling(const void *item) {
    static const setting all[] = {
        {"greedy", 0, 1, 0, 0, 1, -1},
        {"greedy, penalty", 0, 1, 0, 0, 1.3f, 64},
        {"defaults", 0.7f, 0.95f, 40, 0, 1.1f, -1},
        {"all tokens", 1, 1, 0, 0, 1, -1},
        {"top_p, hot", 3, 0.9f, 0, 0, 1, -1},
        {"top_p, cold", 0.6f, 0.5f, 0, 0, 1, -1},
        {"min_p", 1.5f, 1, 0, 0.05f, 1, -1},
        {"min_p, top_p, top_k", 1.5f, 0.9f, 20, 0.1f, 1, -1},
        {"top_k 1", 1, 1, 1, 0, 1, -1},
        {"top_k 5", 2, 1, 5, 0, 1, -1},
        {"top_k 1000", 3, 0.99f, 1000, 0, 1, -1},
        {"top_k 3000", 3, 0.99f, 3000, 0, 1, -1},
        {"penalty 2 of all", 1, 0.95f, 40, 0, 2, -1},
        {"penalty below 1, last 8", 1, 0.95f, 0, 0, 0.8f, 8},
        {"penalty of none", 1, 0.95f, 40, 0, 2, 0},
    };
    tiny_model tiny = usual_model();
    tc_model *model, *cpu;
    chooser c;
    int worst = 0;
    tiny.no_tokenizer = 1;
    tiny.vocab = *(const int *)item;
    c.vocab = tiny.vocab;
    c.candidates = tc__calloc((size_t)c.vocab, sizeof *c.candidates);
    c.seen = tc__calloc((size_t)c.vocab, 1);
    if (open_both(&tiny, &model, &cpu)) {
        tc_session *session = new_session(model);
        for (size_t i = 0; i < TC_COUNT(all) && session; i++) {
            int different = differing_choices(session, &c, &all[i], 100 + i);
            /* binary32 against binary64: a draw may fall on the other side of a border */
            CHECK_MSG(different <= (all[i].temperature > 0 ? 5 : 0),
                      "vocabulary %d, %s: %d of 100 choices differ", c.vocab, all[i].what,
                      different);
            if (different > worst) worst = different;
        }
        printf("    vocabulary %6d: %zu settings, at most %d of 100 choices differ\n", c.vocab,
               TC_COUNT(all), worst);
        tc_session_close(session);
    }
    tc_model_close(model);
    tc_model_close(cpu);
    free(c.candidates);
    free(c.seen);
}

TEST(choices_are_those_of_the_documented_order) {
    static const int vocabularies[] = {394, 32000,
                                       50001}; /* the last one's keys fill no registers */
    in_parallel(check_sampling, vocabularies, sizeof *vocabularies, TC_COUNT(vocabularies));
}

/* A choice does not evaluate the token: the logits stay, and further choices come from them. */
TEST(choices_leave_the_logits_alone) {
    tc_sampling sampling = tc_default_sampling();
    tc_model *model = open_usual();
    tc__candidate candidates[TINY_VOCAB];
    uint8_t seen[TINY_VOCAB] = {0};
    chooser c = {candidates, seen, TINY_VOCAB};
    float want[TINY_VOCAB];
    enum { N = 40 };
    int32_t prompt[N], id;
    tc_error err;
    REQUIRE(model);
    sampling.temperature = 2;
    random_ids(prompt, N, TINY_VOCAB, 19);
    tc_session *session = new_session(model);
    REQUIRE(session);
    for (size_t cut = N - 1; cut <= N; cut++) {    /* behind a decode, behind a prefill */
        for (int asked = 0; asked < 2; asked++) {  /* the logits: afterwards only, and before too */
            for (int turn = 0; turn < 2; turn++) { /* twice; bit-equal for the same cut */
                tc_kv_truncate(session, 0);
                REQUIRE(evaluate(session, prompt, cut));
                REQUIRE(cut == N || evaluate(session, prompt + cut, N - cut));
                if (!turn) REQUIRE(tc_logits(session));
                if (!turn) memcpy(want, tc_logits(session), sizeof want);
            }
            if (asked) CHECK(!memcmp(tc_logits(session), want, sizeof want));
            tc_session_seed(session, 23);
            for (uint64_t draw = 0; draw < 20; draw++) {
                int32_t expected =
                    choose_on_cpu(&c, want, session, &sampling, tc__random(23, draw));
                CHECK(tc_sample(session, &sampling, &id, &err) == TC_OK);
                CHECK_MSG(id == expected, "choice %d from the same logits is %d, not %d",
                          (int)draw + 1, (int)id, (int)expected);
            }
            CHECK(tc_kv_length(session) == N);
            const float *after = tc_logits(session);
            CHECK_MSG(after && !memcmp(after, want, sizeof want), "a choice changed the logits");
        }
    }
    tc_session_close(session);
    tc_model_close(model);
}

/* ---- resources ---- */

/* Free GPU memory, and the process's own. The GPU's context is held so that it stays the same. */
typedef struct watch {
    tc__cu cu;
    tc__cu_context context;
    tc__cu_result (*current)(tc__cu_context *context);
} watch;

static bool watch_open(watch *w) {
    void *address;
    tc__cu_device device;
    tc_error err;
    memset(w, 0, sizeof *w);
    if (!on_gpu()) return true;
    CHECK_MSG(tc__cu_open(&w->cu, &err) == TC_OK, "%s", err.message);
    if (!w->cu.library) return false;
    address = dlsym(w->cu.library, "cuCtxGetCurrent");
    memcpy(&w->current, &address, sizeof address);
    bool good = w->current && !w->cu.device_get(&device, 0) &&
                !w->cu.context_retain(&w->context, device) && !w->cu.context_push(w->context);
    CHECK_MSG(good, "the GPU's context cannot be made current");
    return good;
}

static void watch_read(const watch *w, double *gpu_megabytes, double *own_megabytes) {
    size_t free_bytes = 0, total;
    char text[64] = "";
    unsigned long pages = 0, resident = 0;
    FILE *file = fopen("/proc/self/statm", "r");
    if (file && fgets(text, sizeof text, file)) sscanf(text, "%lu %lu", &pages, &resident);
    if (file) fclose(file);
    if (w->context) CHECK(w->cu.memory_info(&free_bytes, &total) == 0);
    *gpu_megabytes = (double)free_bytes / 1e6;
    *own_megabytes = (double)resident * (double)sysconf(_SC_PAGESIZE) / 1e6;
}

/* Also checks that its context is still the current one. */
static void watch_close(watch *w) {
    tc__cu_context now = NULL;
    if (!w->context) return;
    CHECK(w->current(&now) == 0);
    CHECK_MSG(now == w->context, "the caller's context is no longer current");
    tc__cu_close(&w->cu);
}

static void open_and_close_sessions(tc_model *model, int n) {
    int32_t ids[] = {5, 6, 7}, id;
    tc_error err;
    for (int i = 0; i < n; i++) {
        tc_session *session = new_session(model);
        if (session && evaluate(session, ids, 3))
            CHECK(tc_sample(session, NULL, &id, &err) == TC_OK);
        tc_session_close(session);
    }
}

static void open_and_close_models(int n) {
    for (int i = 0; i < n; i++) {
        tc_model *model = open_usual();
        if (model) open_and_close_sessions(model, 1);
        tc_model_close(model);
    }
}

TEST(nothing_leaks) {
    enum { MODELS = 500, SESSIONS = 500 }; /* a session of its own in each model, too */
    watch w;
    double gpu[2], own[2], start;
    REQUIRE(watch_open(&w));
    open_and_close_models(10); /* what the driver keeps for good */
    tc_model *model = open_usual();
    REQUIRE(model);
    open_and_close_sessions(model, 20);
    tc_model_close(model);
    watch_read(&w, &gpu[0], &own[0]);
    start = tc_seconds();
    model = open_usual();
    REQUIRE(model);
    open_and_close_sessions(model, SESSIONS);
    tc_model_close(model);
    open_and_close_models(MODELS);
    watch_read(&w, &gpu[1], &own[1]);
    printf("    %d sessions, %d models in %.0f s: %.1f MB less GPU memory, %.1f MB more of the "
           "process\n",
           SESSIONS + MODELS, MODELS + 1, tc_seconds() - start, gpu[0] - gpu[1], own[1] - own[0]);
    CHECK_MSG(gpu[0] - gpu[1] <= 4, "%.1f MB of GPU memory are lost", gpu[0] - gpu[1]);
    CHECK_MSG(own[1] - own[0] <= 32, "the process grew by %.1f MB", own[1] - own[0]);
    watch_close(&w);
}

/* The process's memory that no file backs, in MB, now and at most since it was last asked. */
static double anonymous_megabytes(void) {
    char line[128];
    unsigned long kilobytes = 0, part;
    FILE *file = fopen("/proc/self/status", "r");
    while (file && fgets(line, sizeof line, file))
        if (sscanf(line, "RssAnon: %lu", &part) == 1 || sscanf(line, "RssShmem: %lu", &part) == 1)
            kilobytes += part;
    if (file) fclose(file);
    return (double)kilobytes * 1.024e-3;
}

typedef struct loading {
    double most; /* MB */
} loading;

static int on_loading(void *user, double fraction, const char *what) {
    loading *l = user;
    (void)fraction, (void)what;
    l->most = fmax(l->most, anonymous_megabytes());
    return 0;
}

/* Writes a model file of about 600 MB whose pages are zero: they cost no time and no disk. */
static bool write_large(const char *path) {
    static const tc__shape_spec spec = {
        "large",          "llama",           4096,      11008, 3, 32, 32, 128, 32000, 4096,
        .norm_eps = 1e-5, .rope_theta = 1e4, .gated = 1};
    tc_model_params params = tc_model_default_params();
    tc__model_file file;
    writer w;
    tc_error err;
    static uint8_t zeros[1 << 20];
    int code = tc__shape_make(&spec, "w4a16", 128, false, &params, &file, &err);
    writer_init(&w);
    for (size_t i = 0; i < file.meta_count && !code; i++) writer_meta(&w, &file.metas[i]);
    for (size_t i = 0; i < file.tensor_count && !code; i++) {
        const tc__tensor *t = &file.tensors[i];
        writer_declare(&w, t->name, t->type, t->group_size, t->rows, t->columns);
    }
    if (!code) code = writer_begin(&w, path, &err);
    for (size_t i = 0; i < file.tensor_count; i++)
        for (size_t left = file.tensors[i].size, n; left > 0 && !code; left -= n) {
            n = left < sizeof zeros ? left : sizeof zeros;
            code = writer_put(&w, zeros, n, &err);
        }
    if (!code) code = writer_finish(&w, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    writer_free(&w);
    tc__model_file_close(&file);
    return code == TC_OK;
}

/* Loading holds 200 MB at most besides the mapped file: pinned memory (which the system may or may
 * not count as the process's) and the rest. The kernels are in the cache the second time, so that
 * the compiler's memory is not looked at. */
TEST(loading_takes_little_memory) {
    enum { PINNED = 4 * 8 }; /* MiB of staging buffers */
    const bool shared = getenv("TINYCHAT_INTEGRATED") != NULL;
    char path[2 * PROGRAM_PATH];
    watch w;
    REQUIRE(watch_open(&w));
    temporary(path, "large.bin");
    REQUIRE(write_large(path));
    for (int round = 0; round < 2; round++) {
        tc_model_params params = tc_model_default_params();
        loading l = {0};
        tc_model *model = NULL;
        tc_error err;
        double before = anonymous_megabytes();
        params.device = settings.device;
        params.progress = on_loading;
        params.user = &l;
        int code = tc_model_open(path, &params, &model, &err);
        CHECK_MSG(code == TC_OK, "%s", err.message);
        double weights = model ? (double)tc_model_get_info(model).weight_bytes * 1e-6 : 0;
        double most = l.most - before, allowed = shared ? weights + 200 : 200 - PINNED;
        if (round == 1) printf("    %.0f MB loaded with at most %.0f MB\n", weights, most);
        CHECK_MSG(round == 0 || !on_gpu() || most <= allowed, "loading took %.0f MB; allowed %.0f",
                  most, allowed);
        tc_model_close(model);
    }
    unlink(path);
    watch_close(&w);
}

/* What the engine takes on the GPU: weights, KV cache and at most 256 MB, whatever the model; and it
 * is what the session says. Modules and what the driver keeps for them come on top. */
static void check_gpu_memory(const char *shape, const char *precision, int ctx_size) {
    const double modules = 96;
    tc_model_params params = tc_model_default_params();
    tc_session_params size = {ctx_size};
    tc_model *model = NULL;
    tc_session *session = NULL;
    double gpu[3], own;
    watch w;
    tc_error err;
    params.device = settings.device;
    REQUIRE(watch_open(&w));
    watch_read(&w, &gpu[0], &own);
    int code = tc_model_open_shape(shape, precision, 0, &params, &model, &err);
    watch_read(&w, &gpu[1], &own);
    if (!code) code = tc_session_open(model, &size, &session, &err);
    watch_read(&w, &gpu[2], &own);
    if (code == TC_ERR_MEMORY) {
        printf("    %-12s not tried: %s\n", shape, err.message);
    } else {
        CHECK_MSG(code == TC_OK, "%s", err.message);
        double weights = (double)tc_model_get_info(model).weight_bytes * 1e-6;
        tc_session_info info = tc_session_get_info(session);
        double kv = (double)info.kv_bytes * 1e-6, workspace = (double)info.workspace_bytes * 1e-6;
        double more = gpu[0] - gpu[2] - weights - kv;
        printf("    %-12s %s context %6d: weights %6.0f MB, KV cache %6.0f, workspace %4.0f; taken "
               "besides %4.0f\n",
               shape, precision, info.ctx_size, weights, kv, workspace, more);
        CHECK_MSG(workspace <= 256, "%s: %.0f MB of workspace", shape, workspace);
        CHECK_MSG(more <= 256 + modules, "%s: %.0f MB besides weights and KV cache", shape, more);
        CHECK_MSG(fabs(gpu[1] - gpu[2] - kv - workspace) <= 32 + modules,
                  "%s: a session took %.0f MB", shape, gpu[1] - gpu[2]);
    }
    tc_session_close(session);
    tc_model_close(model);
    watch_close(&w);
}

TEST(gpu_memory_is_what_is_said) {
    if (!on_gpu()) SKIP("this looks at the GPU's memory");
    check_gpu_memory("llama-2-7b", "w4a16", 4096);
    check_gpu_memory("llama-2-7b", "w4a16", 16);
    check_gpu_memory("falcon-7b", "w4a16", 2048);
    check_gpu_memory("llama-3.2-1b", "w16a16", 131072);
    check_gpu_memory("qwen2.5-7b", "w4a16", 32768);
    check_gpu_memory("llama-2-70b", "w4a16", 4096);
}

/* The number that a message gives after `words`. */
static int number_after(const char *message, const char *words) {
    const char *at = strstr(message, words);
    return at ? atoi(at + strlen(words)) : 0;
}

/* Contexts of two million positions at 512 KB each, and weights of 700 GB. */
TEST(out_of_memory_says_what_fits) {
    static const tc__shape_spec wide = {
        "wide",           "llama",           256,       256, 4, 128, 128, 256, 397, 2 << 20,
        .norm_eps = 1e-5, .rope_theta = 1e4, .gated = 1};
    static const tc__shape_spec heavy = {
        "heavy",          "llama",           8192,      28672, 400, 64, 8, 128, 397, 4096,
        .norm_eps = 1e-5, .rope_theta = 1e4, .gated = 1};
    tc_model_params params = tc_model_default_params();
    tc_session_params size = {0};
    tc_model *model = NULL;
    tc_session *session = NULL;
    tc_error err;
    params.device = settings.device;
    if (!on_gpu()) SKIP("this looks at the GPU's memory");
    int code = tc__model_open_spec(tc__cuda_backend(), &heavy, "w16a16", 0, &params, &model, &err);
    CHECK(code == TC_ERR_MEMORY && !model);
    CHECK_MSG(strstr(err.message, "weights alone need") && strstr(err.message, "no --max-seq-len"),
              "%s", err.message);
    code = tc__model_open_spec(tc__cuda_backend(), &wide, "w4a16", 128, &params, &model, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    REQUIRE(model);
    CHECK(tc_session_open(model, &size, &session, &err) == TC_ERR_MEMORY && !session);
    printf("    %s\n", err.message);
    int fits = number_after(err.message, "largest --max-seq-len that fits is ");
    CHECK(fits > 4096 && fits < 2 << 20);
    CHECK(strstr(err.message, "KV cache") && strstr(err.message, "workspace") &&
          strstr(err.message, "weights"));
    size.ctx_size = fits + fits / 8;
    CHECK(tc_session_open(model, &size, &session, &err) == TC_ERR_MEMORY && !session);
    size.ctx_size = fits - fits / 16; /* others may use this GPU, too */
    CHECK_MSG(tc_session_open(model, &size, &session, &err) == TC_OK, "%s", err.message);
    tc_session *second = NULL;
    size.ctx_size = -1; /* the default fits into what is left */
    code = tc_session_open(model, &size, &second, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    if (!code) CHECK(tc_session_get_info(second).ctx_size <= 4096);
    tc_session_close(second);
    tc_session_close(session);
    tc_model_close(model);
}

/* A caller with a context of its own, and one with none: both find what they left. */
TEST(the_callers_context_stays) {
    watch w;
    tc__cu_result (*create)(tc__cu_context * context, unsigned flags, tc__cu_device device);
    tc__cu_device device = 0;
    tc__cu_context own = NULL, now = NULL, popped;
    tc_error err;
    if (!on_gpu()) SKIP("there is no context on the CPU");
    REQUIRE(watch_open(&w));
    void *address = dlsym(w.cu.library, "cuCtxCreate_v2");
    memcpy(&create, &address, sizeof create);
    REQUIRE(create && !w.cu.device_get(&device, 0) && !create(&own, 0, device));
    for (int round = 0; round < 2; round++) { /* with a context, without one */
        tc__cu_context before = round ? NULL : own;
        if (round) REQUIRE(!w.cu.context_pop(&popped) && !w.cu.context_pop(&popped));
        REQUIRE(w.current(&now) == 0 && now == before);
        open_and_close_models(1);
        CHECK_MSG(w.current(&now) == 0 && now == before, "round %d: another context is current",
                  round);
        tc_model *broken = NULL;
        tc_model_params params = tc_model_default_params();
        params.device = "cuda:1000";
        CHECK(tc_model_open_shape("tiny", NULL, 0, &params, &broken, &err) == TC_ERR_DEVICE);
        CHECK(w.current(&now) == 0 && now == before);
    }
    tc__cu_close(&w.cu);
}

/* Models of different types side by side give what each gives alone. */
TEST(several_models_in_one_process) {
    static const int groups[] = {128, 0, 32};
    enum { MODELS = TC_COUNT(groups), N = 60 };
    char path[2 * PROGRAM_PATH];
    tc_model *models[MODELS];
    tc_session *sessions[MODELS];
    float *alone[MODELS];
    int32_t ids[N];
    random_ids(ids, N, TINY_VOCAB, 29);
    for (int pass = 0; pass < 2; pass++) {
        for (int i = 0; i < MODELS; i++) {
            tiny_model tiny = usual_model();
            tiny.group_size = groups[i], tiny.seed = 7 + (unsigned)i;
            temporary(path, "several.bin");
            REQUIRE(tiny_model_write(&tiny, path) == 0);
            models[i] = open_on(settings.device, path);
            unlink(path); /* it stays mapped */
            REQUIRE(models[i] && (sessions[i] = new_session(models[i])) != NULL);
            if (pass) continue;
            alone[i] = tc__calloc(N * TINY_VOCAB, 4);
            CHECK(all_logits(sessions[i], ids, N, 1, alone[i], TINY_VOCAB));
            tc_session_close(sessions[i]);
            tc_model_close(models[i]);
        }
        for (int n = 0; pass && n < N; n++)
            for (int i = 0; i < MODELS; i++) {
                const float *want = alone[i] + n * TINY_VOCAB;
                bool good = evaluate(sessions[i], ids + n, 1) && tc_logits(sessions[i]);
                CHECK_MSG(good && !memcmp(tc_logits(sessions[i]), want, TINY_VOCAB * 4),
                          "model %d: position %d differs", i, n);
            }
    }
    for (int i = 0; i < MODELS; i++) {
        tc_session_close(sessions[i]);
        tc_model_close(models[i]);
        free(alone[i]);
    }
}

/* ---- threads ---- */

typedef struct talk {
    tc_model *model;
    uint64_t seed;
    int rounds, different;
    continuation alone;
} talk;

/* CHECK counts without a lock: here only the comparisons that matter, kept per thread. */
static void *talk_thread(void *argument) {
    talk *t = argument;
    tc_session *session = NULL;
    continuation now;
    if (tc_session_open(t->model, NULL, &session, NULL)) {
        t->different = t->rounds;
        return NULL;
    }
    for (int i = 0; i < t->rounds; i++) {
        continue_sampled(session, t->seed, &now);
        t->different += !same_continuation(&now, &t->alone);
    }
    tc_session_close(session);
    return NULL;
}

TEST(two_threads_do_not_disturb_each_other) {
    pthread_t threads[2];
    tc_model *model = open_usual();
    talk talks[2];
    REQUIRE(model);
    for (int i = 0; i < 2; i++) {
        tc_session *session = new_session(model);
        memset(&talks[i], 0, sizeof talks[i]);
        talks[i].model = model, talks[i].seed = (uint64_t)(40 + i), talks[i].rounds = 25;
        continue_sampled(session, talks[i].seed, &talks[i].alone);
        tc_session_close(session);
    }
    for (int i = 0; i < 2; i++)
        REQUIRE(pthread_create(&threads[i], NULL, talk_thread, &talks[i]) == 0);
    for (int i = 0; i < 2; i++) {
        pthread_join(threads[i], NULL);
        CHECK_MSG(talks[i].different == 0, "thread %d: %d of %d replies differ from those alone", i,
                  talks[i].different, talks[i].rounds);
    }
    tc_model_close(model);
}

/* ---- overflow ---- */

/* A model file in memory whose tensors are changed before it is written again. */
typedef struct patch {
    tc__model_file file;
    uint8_t *bytes;
} patch;

static uint8_t *patch_at(const patch *p, const tc__tensor *tensor) {
    return p->bytes + (tensor->data - p->file.map.data);
}

static float half_at(const uint8_t *at) {
    uint16_t half;
    memcpy(&half, at, 2);
    return tc__f16_to_f32(half);
}

static void scale_half(uint8_t *at, float factor) {
    uint16_t half = tc__f32_to_f16(half_at(at) * factor);
    memcpy(at, &half, 2);
}

/* Where row `row` of unit j keeps its scale, from the tensor's start. */
static size_t unit_scale(const tc__tensor *t, size_t row, size_t j) {
    size_t in = row % TC__UNIT_ROWS, units = t->columns / t->group_size;
    return (row / TC__UNIT_ROWS * units + j) * TC__UNIT_BYTES(t->group_size) + 8 * t->group_size +
           8 * (in & 7) + 4 * (in >> 3);
}

static void scale_row(const patch *p, const char *name, size_t row, float factor) {
    const tc__tensor *t = tc__find_tensor(&p->file, name);
    uint8_t *at = patch_at(p, t);
    if (t->type == TC__W4)
        for (size_t j = 0; j < t->columns / t->group_size; j++)
            scale_half(at + unit_scale(t, row, j), factor);
    else
        for (size_t k = 0; k < t->columns; k++) scale_half(at + 2 * (row * t->columns + k), factor);
}

static void set_gain(const patch *p, const char *name, size_t channel, float value) {
    memcpy(patch_at(p, tc__find_tensor(&p->file, name)) + 4 * channel, &value, 4);
}

/* One weight of F32, F16 or W4, after the changes. */
static double weight(const patch *p, const tc__tensor *t, size_t row, size_t column) {
    const uint8_t *at = patch_at(p, t);
    float single;
    if (t->type == TC__F32) {
        memcpy(&single, at + 4 * (row * t->columns + column), 4);
        return single;
    }
    if (t->type != TC__W4) return half_at(at + 2 * (row * t->columns + column));
    unsigned offset, shift;
    size_t group = t->group_size, j = column / group;
    size_t unit = (row / TC__UNIT_ROWS * (t->columns / group) + j) * TC__UNIT_BYTES(group);
    tc__unit_place((unsigned)group, (unsigned)(row % TC__UNIT_ROWS), (unsigned)(column % group),
                   &offset, &shift);
    const uint8_t *scale = at + unit_scale(t, row, j);
    return half_at(scale) * ((at[unit + offset] >> shift & 15) - half_at(scale + 2));
}

static double row_times(const patch *p, const char *name, size_t row, const double *x) {
    const tc__tensor *t = tc__find_tensor(&p->file, name);
    double sum = 0;
    for (size_t k = 0; k < t->columns; k++) sum += weight(p, t, row, k) * x[k];
    return sum;
}

static void rms_norm(const patch *p, const char *name, const double *x, double *out, size_t n) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += x[i] * x[i];
    for (size_t i = 0; i < n; i++)
        out[i] =
            x[i] / sqrt(sum / (double)n + 1e-5) * weight(p, tc__find_tensor(&p->file, name), i, 0);
}

/* Sets a row of F16 or W4 to about `values`: with 4 bits, in steps of a seventh of a group's
 * largest. */
static void set_row(const patch *p, const char *name, size_t row, const double *values) {
    const tc__tensor *t = tc__find_tensor(&p->file, name);
    size_t group = t->type == TC__W4 ? t->group_size : 1;
    for (size_t k = 0; k < t->columns; k += group) {
        double top = 0;
        for (size_t i = 0; i < group; i++) top = fmax(top, fabs(values[k + i]));
        uint16_t half = tc__f32_to_f16((float)values[k]), zero = tc__f32_to_f16(8);
        uint8_t *at = patch_at(p, t);
        if (t->type != TC__W4) {
            memcpy(at + 2 * (row * t->columns + k), &half, 2);
            continue;
        }
        half = tc__f32_to_f16((float)(top / 7));
        memcpy(at + unit_scale(t, row, k / group), &half, 2);
        memcpy(at + unit_scale(t, row, k / group) + 2, &zero, 2);
        at += (row / TC__UNIT_ROWS * (t->columns / group) + k / group) * TC__UNIT_BYTES(group);
        for (size_t i = 0; i < group; i++) {
            unsigned offset, shift,
                q = (unsigned)lrint(8 + (top > 0 ? 7 * values[k + i] / top : 0));
            tc__unit_place((unsigned)group, (unsigned)(row % TC__UNIT_ROWS), (unsigned)i, &offset,
                           &shift);
            at[offset] = (uint8_t)((at[offset] & ~(15u << shift)) | q << shift);
        }
    }
}

/* Layer 0 for one token at position 0, where attention gives its own value, in plain C: the
 * residual x between attention and MLP, and h, what the MLP reads. */
static void first_attention(const patch *p, const tiny_model *m, int32_t id, double *x, double *h) {
    size_t hidden = (size_t)m->hidden, i;
    size_t dim = (size_t)m->head_dim, heads = (size_t)m->heads, kv_heads = (size_t)m->kv_heads;
    double *value = tc__calloc(heads * dim, 8);
    for (i = 0; i < hidden; i++)
        x[i] = weight(p, tc__find_tensor(&p->file, "embed"), (size_t)id, i);
    rms_norm(p, "0.attn_norm", x, h, hidden);
    for (i = 0; i < heads * dim; i++) {
        size_t kv_head = i / dim / (heads / kv_heads);
        value[i] = row_times(p, "0.qkv", (heads + kv_heads + kv_head) * dim + i % dim, h);
    }
    for (i = 0; i < hidden; i++) x[i] += row_times(p, "0.o", i, value);
    rms_norm(p, "0.mlp_norm", x, h, hidden);
    free(value);
}

typedef struct magnitudes {
    double act, down, residual; /* the largest absolute value of each in layer 0 */
} magnitudes;

/* Shows that a planted model does what is claimed of it. */
static magnitudes first_layer(const patch *p, const tiny_model *m, int32_t id) {
    magnitudes largest = {0, 0, 0};
    size_t hidden = (size_t)m->hidden, inner = (size_t)m->intermediate, i;
    double *x = tc__calloc(hidden, 8), *h = tc__calloc(hidden, 8), *act = tc__calloc(inner, 8);
    first_attention(p, m, id, x, h);
    for (i = 0; i < inner; i++) {
        double gate = row_times(p, "0.gate_up", i / 8 * 16 + i % 8, h);
        act[i] = gate / (1 + exp(-gate)) * row_times(p, "0.gate_up", i / 8 * 16 + 8 + i % 8, h);
        largest.act = fmax(largest.act, fabs(act[i]));
    }
    for (i = 0; i < hidden; i++) {
        double down = row_times(p, "0.down", i, act);
        largest.down = fmax(largest.down, fabs(down));
        largest.residual = fmax(largest.residual, fabs(x[i] + down));
    }
    free(x), free(h), free(act);
    return largest;
}

static bool patch_open(patch *p, const tiny_model *tiny, const char *path) {
    tc_error err;
    CHECK(tiny_model_write(tiny, path) == 0);
    int code = tc__model_file_open(path, &p->file, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    if (code) return false;
    p->bytes = malloc(p->file.map.size);
    memcpy(p->bytes, p->file.map.data, p->file.map.size);
    return true;
}

static void patch_write(patch *p, const char *path) {
    FILE *file;
    unlink(path); /* the old file stays mapped */
    file = fopen(path, "wb");
    CHECK(file && fwrite(p->bytes, p->file.map.size, 1, file) == 1 && fclose(file) == 0);
}

static void patch_close(patch *p) {
    tc__model_file_close(&p->file);
    free(p->bytes);
}

/* ---- the head in 8 bits ---- */

/* The head's numbers become whole multiples of 1/512, and 127 of them the first of each group: then
 * 8 bits leave nothing out. */
static void plant_grid(const patch *p, const char *head, size_t group) {
    const tc__tensor *t = tc__find_tensor(&p->file, head);
    uint64_t seed = 9;
    for (size_t i = 0; i < t->rows * t->columns; i++) {
        const int q = i % group ? (int)(tiny_random(&seed) % 255) - 127 : 127;
        const uint16_t half = tc__f32_to_f16((float)q / 512);
        memcpy(patch_at(p, t) + 2 * i, &half, 2);
    }
}

/* How far the logits with 8 bits are from those with the file's 16, of prefill and of decode. */
static bool compare_heads(const char *path, double distances[2]) {
    enum { N = 40 };
    const size_t steps[2] = {N, 1}, vocab = TINY_VOCAB;
    float *logits[2] = {tc__calloc(N * vocab, 4), tc__calloc(N * vocab, 4)};
    tc_model *models[2] = {NULL, NULL};
    int32_t ids[N];
    size_t at;
    tc_error err;
    bool good = true;
    random_ids(ids, N, TINY_VOCAB, 3);
    for (int i = 0; i < 2 && good; i++) {
        tc_model_params params = tc_model_default_params();
        params.device = settings.device;
        params.head_bits = i ? 0 : 8;
        good = tc_model_open(path, &params, &models[i], &err) == TC_OK;
        CHECK_MSG(good, "%s", err.message);
    }
    for (int way = 0; way < 2 && good; way++) {
        for (int i = 0; i < 2 && good; i++) {
            tc_session *session = new_session(models[i]);
            good = session && all_logits(session, ids, N, steps[way], logits[i], vocab);
            tc_session_close(session);
        }
        distances[way] = worst_distance(logits[0], logits[1], N, vocab, &at);
    }
    if (good) {
        const tc_model_info info[2] = {tc_model_get_info(models[0]), tc_model_get_info(models[1])};
        CHECK_MSG(strstr(info[0].precision, ", int8 head"), "%s", info[0].precision);
        CHECK(info[0].bytes_per_token < info[1].bytes_per_token);
    }
    for (int i = 0; i < 2; i++) tc_model_close(models[i]), free(logits[i]);
    return good;
}

/* Numbers that 8 bits hold give the logits of 16 bits; others give nearly those. */
TEST(a_head_in_8_bits) {
    static const struct {
        int hidden, tied, type; /* as tiny_model.group_size */
        size_t group;
    } cases[] = {{256, 0, 128, 128}, {192, 0, -1, 64}, {160, 1, 32, 32}};
    char path[2 * PROGRAM_PATH];
    if (!on_gpu()) SKIP("only a GPU takes an 8-bit head");
    temporary(path, "head.bin");
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        double planted[2] = {9, 9}, random[2] = {0, 0};
        tiny_model tiny = tiny_model_default();
        patch p;
        tiny.group_size = cases[i].type, tiny.tied = cases[i].tied;
        tiny.hidden = cases[i].hidden;
        REQUIRE(patch_open(&p, &tiny, path));
        CHECK(compare_heads(path, random));
        if (cases[i].type >= 0) { /* the head is binary16 */
            plant_grid(&p, cases[i].tied ? "embed" : "head", cases[i].group);
            patch_write(&p, path);
            CHECK(compare_heads(path, planted));
            for (int way = 0; way < 2; way++)
                CHECK_MSG(planted[way] < 1e-5, "hidden size %d: %.1e", tiny.hidden, planted[way]);
        }
        for (int way = 0; way < 2; way++)
            CHECK_MSG(random[way] > 1e-4 && random[way] < TOLERANCE_8, "hidden size %d: %.1e",
                      tiny.hidden, random[way]);
        printf("    groups of %3zu%s: prefill %.1e decode %.1e; of what 8 bits hold %.1e %.1e\n",
               cases[i].group, cases[i].tied ? ", tied" : "", random[0], random[1], planted[0],
               planted[1]);
        patch_close(&p);
    }
    unlink(path);
}

/* Small gains of channel 5 leave the other channels their say, as in trained models. */
static void plant_gains(const patch *p) {
    static const char *const norms[] = {"1.attn_norm", "1.mlp_norm", "norm"};
    for (size_t i = 0; i < TC_COUNT(norms); i++) set_gain(p, norms[i], 5, 1e-3f);
}

/* Massive activations as LLaMA-2 has them, only larger: one token excites one unit of the MLP, which
 * writes into one channel of the residual stream. Rows of gate and up point where that token's
 * vector points; others excite the unit by chance, a thousandth as much. */
static void plant_token(const patch *p, const tiny_model *m, int32_t id) {
    size_t hidden = (size_t)m->hidden;
    double *x = tc__calloc(hidden, 8), *h = tc__calloc(hidden, 8), size = 0;
    double *unit = tc__calloc((size_t)m->intermediate, 8);
    first_attention(p, m, id, x, h);
    for (size_t i = 0; i < hidden; i++) size += h[i] * h[i];
    for (size_t i = 0; i < hidden; i++) h[i] *= 300 / size;
    set_row(p, "0.gate_up", 3, h);
    set_row(p, "0.gate_up", 8 + 3, h);
    unit[3] = 1;
    set_row(p, "0.down", 5, unit);
    plant_gains(p);
    free(x), free(h), free(unit);
}

/* Every token's channel 5 is massive, to an extent that is chance: a sum of random terms times 4e4.
 * All else is what is left beside it, so a position whose terms almost cancel hangs on their last
 * bits. Rounding only keys and values to binary16, as the KV cache does, moves its logits by 3e-3 of
 * their size, rounding only activations by 1e-2 (computed in binary64, this model): no model that
 * answers anything is like this, and TOLERANCE is not to be had. What must hold is that everything
 * stays finite and near. */
static void plant_channel(const patch *p, const tiny_model *m, int32_t id) {
    (void)m, (void)id;
    scale_row(p, "0.down", 5, 4e4f);
    plant_gains(p);
}

/* The MLP's inner vector is what does not fit into binary16. */
static void plant_act(const patch *p, const tiny_model *m, int32_t id) {
    (void)m, (void)id;
    scale_row(p, "0.gate_up", 3, 300);
    scale_row(p, "0.gate_up", 8 + 3, 600);
}

typedef struct planted {
    const char *what;
    int group_size;
    void (*plant)(const patch *p, const tiny_model *m, int32_t id);
    double tolerance;  /* of the logits */
    magnitudes expect; /* at least these */
} planted;

static void compare_planted(const char *path, const int32_t *ids, size_t n, const char *what,
                            double tolerance) {
    static const size_t steps[] = {4096, 1, 8};
    size_t vocab = TINY_VOCAB, at = 0;
    float *want = tc__calloc(n * vocab, 4), *got = tc__calloc(n * vocab, 4);
    tc_model *model = open_on(settings.device, path), *cpu = open_on("cpu", path);
    double worst[3] = {0};
    if (model && cpu) {
        tc_session *session = new_session(model), *reference = new_session(cpu);
        bool good = session && reference && all_logits(reference, ids, n, n, want, vocab);
        for (size_t i = 0; i < n * vocab; i++) good = good && isfinite(want[i]);
        CHECK_MSG(good, "%s: not finite on the CPU", what);
        for (int i = 0; i < 3 && good; i++) {
            good = all_logits(session, ids, n, steps[i], got, vocab);
            worst[i] = worst_distance(got, want, n, vocab, &at);
            CHECK_MSG(worst[i] <= tolerance, "%s: in pieces of %zu off by %.2e at position %zu",
                      what, steps[i], worst[i], at);
        }
        printf(tolerance > TOLERANCE ? "    %-11s near: at once %.1e one by one %.1e pieces %.1e"
                                     : "    %-11s prefill %.1e decode %.1e pieces %.1e",
               what, worst[0], worst[1], worst[2]);
        tc_session_close(session);
        tc_session_close(reference);
    }
    tc_model_close(model);
    tc_model_close(cpu);
    free(want);
    free(got);
}

static void check_planted(const void *item) {
    const planted *plant = item;
    tiny_model tiny = usual_model();
    enum { N = 48 };
    char path[2 * PROGRAM_PATH];
    int32_t ids[N];
    magnitudes largest = {0, 0, 0};
    patch p;
    tiny.group_size = plant->group_size;
    tiny.hidden = 512;
    temporary(path, "planted.bin");
    random_ids(ids, N, TINY_VOCAB, 13);
    if (!patch_open(&p, &tiny, path)) return;
    ids[0] = 3;
    plant->plant(&p, &tiny, ids[0]);
    patch_write(&p, path);
    for (;; ids[0]++) { /* a first token that does it */
        largest = first_layer(&p, &tiny, ids[0]);
        if (ids[0] == 60 ||
            (largest.act >= plant->expect.act && largest.down >= plant->expect.down &&
             largest.residual >= plant->expect.residual))
            break;
    }
    CHECK_MSG(ids[0] < 60, "%s: no token is massive enough", plant->what);
    patch_close(&p);
    compare_planted(path, ids, N, plant->what, plant->tolerance);
    printf("; residual %.0f, down %.0f, act %.0f\n", largest.residual, largest.down, largest.act);
    unlink(path);
}

TEST(massive_activations_stay_finite) {
    static const planted all[] = {
        {"g64 token", 64, plant_token, TOLERANCE, {7e4, 7e4, 7e4}},
        {"f16 token", 0, plant_token, TOLERANCE, {7e4, 7e4, 7e4}},
        {"g64 act", 64, plant_act, TOLERANCE, {7e4, 0, 1e4}},
        {"f16 act", 0, plant_act, TOLERANCE, {7e4, 0, 1e4}},
        {"g64 channel", 64, plant_channel, 0.1, {0, 7e4, 1e4}},
        {"f16 channel", 0, plant_channel, 0.1, {0, 7e4, 1e4}},
    };
    in_parallel(check_planted, all, sizeof *all, settings.quick == 2 ? 1 : TC_COUNT(all));
}

/* A head row of infinities, and an embedding of NaN: no token may come out. */
TEST(logits_that_are_no_numbers_are_an_error) {
    static const struct {
        const char *tensor;
        size_t row;
        uint16_t bits;
    } cases[] = {{"head", 5, 0x7c00}, {"head", 300, 0xfc00}, {"embed", 9, 0x7e00}};
    tiny_model tiny = usual_model();
    tc_sampling sampling[3] = {tc_default_sampling(), tc_default_sampling(), tc_default_sampling()};
    char path[2 * PROGRAM_PATH];
    int32_t ids[] = {3, 4, 9}, id;
    tc_error err;
    patch p;
    sampling[1].temperature = 0;
    sampling[2].top_k = 0;
    temporary(path, "infinite.bin");
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        REQUIRE(patch_open(&p, &tiny, path));
        const tc__tensor *t = tc__find_tensor(&p.file, cases[i].tensor);
        for (size_t k = 0; k < t->columns; k++)
            memcpy(patch_at(&p, t) + 2 * (cases[i].row * t->columns + k), &cases[i].bits, 2);
        patch_write(&p, path);
        patch_close(&p);
        tc_model *model = open_on(settings.device, path);
        tc_session *session = model ? new_session(model) : NULL;
        for (int j = 0; j < 6 && session; j++) { /* after a prefill and after a decode */
            tc_kv_truncate(session, j % 2 ? 2 : 0);
            evaluate(session, ids + tc_kv_length(session), 3 - tc_kv_length(session));
            int code = tc_sample(session, &sampling[j / 2], &id, &err);
            CHECK_MSG(code == TC_ERR_NUMERIC, "%s, sampling %d: %s", cases[i].tensor, j / 2,
                      code ? err.message : "a token was chosen");
        }
        tc_session_close(session);
        tc_model_close(model);
    }
    unlink(path);
}

/* ---- running ---- */

/* Opens the usual model to see whether the device can be used. Returns the error's code. */
static int probe(tc_error *err) {
    tiny_model tiny = usual_model();
    tc_model_params params = tc_model_default_params();
    char path[2 * PROGRAM_PATH];
    tc_model *model = NULL;
    params.device = settings.device;
    temporary(path, "probe.bin");
    if (tiny_model_write(&tiny, path)) return tc__fail(err, TC_ERR_IO, "cannot write %s", path);
    int code = tc_model_open(path, &params, &model, err);
    if (!code) printf("device: %s\n", tc_model_get_info(model).device);
    tc_model_close(model);
    unlink(path);
    return code;
}

/* The same in another process: this one must not have touched CUDA before it forks. */
static int probe_apart(tc_error *err) {
    int ends[2], status;
    memset(err, 0, sizeof *err);
    if (settings.one_process) return probe(err);
    err->code = TC_ERR_IO;
    if (pipe(ends)) return err->code;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS_OF_A_TEST);
        probe(err);
        fflush(NULL);
        _exit(write(ends[1], err, sizeof *err) != sizeof *err);
    }
    close(ends[1]);
    bool whole = child > 0 && read(ends[0], err, sizeof *err) == (ssize_t)sizeof *err;
    close(ends[0]);
    if (child > 0) waitpid(child, &status, 0);
    if (!whole) tc__fail(err, TC_ERR_IO, "the process that tried the device did not end well");
    return err->code;
}

static tc_error not_usable;
static void device_is_usable(void) {
    const char *required = getenv("TINYCHAT_GPU_REQUIRED");
    bool allowed = not_usable.code == TC_ERR_DEVICE && !(required && *required == '1');
    if (not_usable.code && allowed) SKIP("there is no GPU to use: %s", not_usable.message);
    CHECK_MSG(not_usable.code == TC_OK, "%s", not_usable.message);
}

/* Runs one test in a process of its own; quick modes leave those out that are not asked for. */
static void run_apart(const char *name, void (*test)(void), int most_quick) {
    if (settings.quick > most_quick) return;
    double start = tc_seconds();
    int status = -1;
    if (not_usable.code || settings.one_process) {
        test_run_(name, not_usable.code ? device_is_usable : test);
        return;
    }
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) {
        alarm(SECONDS_OF_A_TEST);
        setvbuf(stdout, NULL, _IOLBF, 0);
        test_failed_ = test_skipped_ = 0;
        test_run_(name, test);
        _exit(test_failed_ ? 1 : test_skipped_ ? 2 : 0);
    }
    if (child > 0) waitpid(child, &status, 0);
    bool ended = child > 0 && WIFEXITED(status);
    if (ended && WEXITSTATUS(status) == 0) test_passed_++;
    if (ended && WEXITSTATUS(status) == 2) test_skipped_++;
    if (!ended || WEXITSTATUS(status) == 1 || WEXITSTATUS(status) > 2) test_failed_++;
    if (!ended) printf("  FAILED %s: ended by signal %d\n", name, WTERMSIG(status));
    printf("         %.1f s\n", tc_seconds() - start);
}

#define APART(test, most_quick) run_apart(#test, test, most_quick)

/* With an argument (any) it only says whether the device can be used: exit status 0 or 1. */
int main(int argc, char **argv) {
    settings_read();
    if (!program_folder(settings.folder)) return 1;
    (void)argv;
    probe_apart(&not_usable);
    if (argc > 1) {
        program_remove_folder(settings.folder);
        if (not_usable.code) printf("%s\n", not_usable.message);
        return not_usable.code != TC_OK;
    }
    const char *part = getenv("TINYCHAT_GPU_PART");
    if (!part || !strcmp(part, "other")) {
        if (settings.quick == 3) APART(every_kernel_once, 3);
        APART(fixtures_match_their_references, 2);
        APART(small_checkpoints_match_their_references, 2);
        APART(families_match_their_references, 1);
        APART(prefill_decode_and_the_cpu_agree, 2);
        APART(massive_activations_stay_finite, 2);
        APART(a_head_in_8_bits, 2);
        APART(seeded_replies_repeat_bit_by_bit, 0);
        APART(choices_are_those_of_the_documented_order, 0);
        APART(choices_leave_the_logits_alone, 1);
        APART(a_second_turn_only_needs_its_own_tokens, 1);
        APART(logits_that_are_no_numbers_are_an_error, 1);
        APART(two_threads_do_not_disturb_each_other, 0);
        APART(wide_prefill_agrees_with_narrow, 0);
        APART(a_prompt_one_longer_than_a_piece, 0);
        APART(demo_model_answers_as_on_the_cpu, 0);
        APART(a_7b_prefills_as_it_decodes, 0);
        APART(loading_takes_little_memory, 2);
        APART(several_models_in_one_process, 0);
        APART(the_callers_context_stays, 0);
    }
    if (!part || !strcmp(part, "memory")) {
        APART(gpu_memory_is_what_is_said, 0);
        APART(out_of_memory_says_what_fits, 0);
        APART(nothing_leaks, 0);
    }
    program_remove_folder(settings.folder);
    printf("%d passed, %d failed, %d skipped\n", test_passed_, test_failed_, test_skipped_);
    return test_failed_ != 0;
}
