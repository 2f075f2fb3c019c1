/* Models, tokens and sessions through the public API: on a fake backend where the bookkeeping is
 * what matters, on the CPU where the numbers are. */
#include "fake_backend.h"
#include "program.h"
#include "test.h"
#include "tiny_model.h"

#include <math.h>
#include <pthread.h>

static char folder[PROGRAM_PATH];

/* The path of a file in the tests' folder; valid until the fourth next call. */
static const char *in_folder(const char *name) {
    static char paths[4][PROGRAM_PATH + 64];
    static int next;
    char *path = paths[next++ & 3];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

static tc_model *cpu_model(const char *path, int threads) {
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    tc_error err;
    params.device = "cpu";
    params.threads = threads;
    if (tc_model_open(path, &params, &model, &err)) fprintf(stderr, "%s\n", err.message);
    return model;
}

static tc_session *session_of(tc_model *model, int ctx_size) {
    tc_session_params params = tc_session_default_params();
    tc_session *session;
    tc_error err;
    params.ctx_size = ctx_size;
    if (tc_session_open(model, &params, &session, &err)) fprintf(stderr, "%s\n", err.message);
    return session;
}

/* Ids 0 .. vocab-1 that look random. */
static void some_ids(int32_t *ids, size_t n, unsigned seed) {
    uint64_t state = seed;
    for (size_t i = 0; i < n; i++) ids[i] = (int32_t)(tiny_random(&state) % TINY_VOCAB);
}

/* ---- models ---- */

TEST(default_parameters_are_the_manual_s) {
    tc_model_params model = tc_model_default_params();
    tc_session_params session = tc_session_default_params();
    CHECK(strcmp(model.device, "auto") == 0 && model.threads == 0 && !model.progress && !model.log);
    CHECK(session.ctx_size == -1);
    CHECK(strcmp(tc_version(), TC_VERSION) == 0);
    char version[32];
    snprintf(version, sizeof version, "%d.%d.%d", TC_VERSION_MAJOR, TC_VERSION_MINOR,
             TC_VERSION_PATCH);
    CHECK(strcmp(version, TC_VERSION) == 0);
}

TEST(every_code_has_a_name) {
    for (int code = TC_OK; code <= TC_ERR_NUMERIC; code++)
        for (int other = TC_OK; other < code; other++)
            CHECK(strcmp(tc_strerror(code), tc_strerror(other)) != 0);
    CHECK(strcmp(tc_strerror(TC_ERR_FORMAT), "format") == 0);
    CHECK(strcmp(tc_strerror(TC_ERR_MEMORY), "out of memory") == 0);
    CHECK(tc_strerror(-1) && tc_strerror(1000) && *tc_strerror(1000));
}

static int opening_fails(const char *path, const char *device, int threads, const char *says) {
    tc_model_params params = tc_model_default_params();
    tc_model *model = (tc_model *)&params; /* must be set to NULL */
    tc_error err;
    params.device = device;
    params.threads = threads;
    int code = tc_model_open(path, &params, &model, &err);
    CHECK(model == NULL && code != TC_OK && err.code == code);
    CHECK_MSG(strstr(err.message, says), "'%s' does not say '%s'", err.message, says);
    CHECK(tc_model_open(path, &params, &model, NULL) == code);
    return code;
}

TEST(opening_names_what_is_wrong) {
    CHECK(opening_fails(in_folder("none.bin"), NULL, 0, "none.bin") == TC_ERR_IO);
    CHECK(opening_fails(folder, "cpu", 0, folder) == TC_ERR_IO);
    CHECK(opening_fails(in_folder("tiny.bin"), "cuda", 0, "cuda") == TC_ERR_DEVICE);
    CHECK(opening_fails(in_folder("tiny.bin"), "cuda:1", 0, "cuda:1") == TC_ERR_DEVICE);
    CHECK(opening_fails(in_folder("tiny.bin"), "tpu", 0, "tpu") == TC_ERR_ARGUMENT);
    CHECK(opening_fails(in_folder("tiny.bin"), "cpu", -1, "threads") == TC_ERR_ARGUMENT);
    CHECK(opening_fails(in_folder("tiny.bin"), "cpu", 100000, "threads") == TC_ERR_ARGUMENT);
    CHECK(opening_fails(NULL, "cpu", 0, "path") == TC_ERR_ARGUMENT);
    FILE *file = fopen(in_folder("text.bin"), "wb");
    REQUIRE(file);
    fputs("this is no model file, but it is long enough for a header to be read out of it......",
          file);
    fclose(file);
    CHECK(opening_fails(in_folder("text.bin"), "cpu", 0, "text.bin") == TC_ERR_FORMAT);
    tiny_model odd = tiny_model_default();
    odd.stop_ids[0] = TINY_VOCAB;
    REQUIRE(tiny_model_write(&odd, in_folder("odd.bin")) == 0);
    CHECK(opening_fails(in_folder("odd.bin"), "cpu", 0, "stop_ids") == TC_ERR_FORMAT);
}

/* Nor does the CPU take the GPU's place, as it would without. */
TEST(an_8_bit_head_is_for_a_gpu) {
    static const struct {
        const char *device;
        int bits, code;
        const char *says;
    } cases[] = {{"cpu", 8, TC_ERR_UNSUPPORTED, "8-bit head"},
                 {"auto", 8, TC_ERR_DEVICE, ""},
                 {"auto", 4, TC_ERR_ARGUMENT, "head_bits is 4; expected 8"},
                 {"cpu", 16, TC_ERR_ARGUMENT, "head_bits is 16; expected 8"},
                 {"cuda", 1, TC_ERR_ARGUMENT, "head_bits is 1; expected 8"}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        tc_model_params params = tc_model_default_params();
        tc_model *model;
        tc_error err;
        params.device = cases[i].device;
        params.head_bits = cases[i].bits;
        int code = tc_model_open(in_folder("tiny.bin"), &params, &model, &err);
        CHECK_MSG(code == cases[i].code && strstr(err.message, cases[i].says), "%s, %d bits: %d, %s",
                  cases[i].device, cases[i].bits, code, err.message);
        tc_model_close(model);
    }
}

static int refuse_at;
static int refuse_progress(void *user, double fraction, const char *what) {
    int *calls = user;
    CHECK(fraction >= 0 && fraction <= 1 && what && *what);
    return ++*calls == refuse_at;
}

TEST(progress_may_cancel_opening) {
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    tc_error err;
    int calls = 0, all;
    params.progress = refuse_progress;
    params.user = &calls;
    refuse_at = 0;
    CHECK(tc_model_open(in_folder("tiny.bin"), &params, &model, &err) == TC_OK && calls >= 2);
    tc_model_close(model);
    all = calls;
    for (refuse_at = 1; refuse_at <= all; refuse_at++) {
        calls = 0;
        CHECK(tc_model_open(in_folder("tiny.bin"), &params, &model, &err) == TC_ERR_CANCELLED);
        CHECK(model == NULL && calls == refuse_at);
    }
}

static void count_lines(void *user, const char *line) {
    CHECK(line && *line && !strchr(line, '\n'));
    ++*(int *)user;
}

TEST(remarks_come_where_they_should) {
    tiny_model options = tiny_model_default();
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    int lines = 0;
    params.device = "cpu"; /* auto says why it is not the GPU */
    params.log = count_lines;
    params.user = &lines;
    options.stop_ids[0] = -1;
    REQUIRE(tiny_model_write(&options, in_folder("endless.bin")) == 0);
    CHECK(tc_model_open(in_folder("tiny.bin"), &params, &model, NULL) == TC_OK && lines == 0);
    tc_model_close(model);
    CHECK(tc_model_open(in_folder("endless.bin"), &params, &model, NULL) == TC_OK && lines == 1);
    tc_model_close(model);
}

TEST(info_is_what_the_file_says) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    REQUIRE(model);
    tc_model_info info = tc_model_get_info(model);
    CHECK(strcmp(info.name, "tiny") == 0 && strcmp(info.family, "llama") == 0);
    CHECK(strcmp(info.precision, "W4A16 g32") == 0 && strcmp(info.device, "fake") == 0);
    CHECK(strcmp(info.template_name, "tiny-chat") == 0);
    CHECK(info.vocab_size == TINY_VOCAB && info.layers == 2 && info.hidden_size == 128);
    CHECK(info.heads == 4 && info.kv_heads == 2 && info.head_dim == 32);
    CHECK(info.max_seq_len == 512 && info.bos_id == TINY_BOS && info.has_tokenizer == 1);
    size_t layer = 2 * 128 + 256 * 128 + 128 * 128 + 512 * 128 + 128 * 256;
    CHECK(info.parameters == 2 * layer + 128 + 2 * (size_t)TINY_VOCAB * 128);
    CHECK(info.kv_bytes_per_token == 1024);
    CHECK(info.weight_bytes > info.bytes_per_token && info.bytes_per_token > info.weight_bytes / 2);
    CHECK(tc_is_stop_id(model, TINY_EOS) == 1);
    CHECK(tc_is_stop_id(model, TINY_BOS) == 0 && tc_is_stop_id(model, -1) == 0);
    tc_model_close(model);
    tc_model_close(NULL);
}

TEST(a_model_without_a_tokenizer_takes_ids_only) {
    tiny_model options = tiny_model_default();
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    tc_chat *chat;
    tc_error err;
    int lines = 0;
    size_t n;
    options.no_tokenizer = 1;
    REQUIRE(tiny_model_write(&options, in_folder("ids.bin")) == 0);
    params.log = count_lines;
    params.user = &lines;
    REQUIRE(tc_model_open(in_folder("ids.bin"), &params, &model, &err) == TC_OK);
    CHECK(lines >= 1);
    tc_model_info info = tc_model_get_info(model);
    CHECK(!info.has_tokenizer && info.bos_id == -1 && *info.template_name == 0);
    CHECK(tc_tokenize(model, "a", 1, 0, NULL, 0, &n, &err) == TC_ERR_UNSUPPORTED);
    CHECK(tc_detokenize(model, (int32_t[]){1}, 1, NULL, 0, &n, &err) == TC_ERR_UNSUPPORTED);
    CHECK(tc_chat_open(model, NULL, &chat, &err) == TC_ERR_UNSUPPORTED && !chat);
    tc_session *session = session_of(model, 64);
    int32_t ids[5] = {5, 300, 2, 7, 1}, id = -1;
    CHECK(tc_eval(session, ids, 5, &err) == TC_OK && tc_sample(session, NULL, &id, &err) == TC_OK);
    CHECK(id >= 0 && id < info.vocab_size);
    tc_session_close(session);
    tc_model_close(model);
}

TEST(verify_finds_a_flipped_bit) {
    fake_reset();
    tc_error err;
    tc_model *model = fake_model(in_folder("tiny.bin"));
    REQUIRE(model);
    CHECK(tc_model_verify(model, NULL, NULL, &err) == TC_OK);
    int calls = 0;
    refuse_at = 3;
    CHECK(tc_model_verify(model, refuse_progress, &calls, &err) == TC_ERR_CANCELLED && calls == 3);
    long end = (long)model->file.map.size;
    const tc__tensor *down = tc__find_tensor(&model->file, "1.down");
    REQUIRE(down);
    long inside = (long)(down->data - model->file.map.data) + 100;
    tc_model_close(model);

    FILE *from = fopen(in_folder("tiny.bin"), "rb"), *to = fopen(in_folder("flip.bin"), "wb");
    REQUIRE(from && to);
    for (long i = 0; i < end; i++) fputc(fgetc(from) ^ (i == inside ? 1 : 0), to);
    fclose(from);
    fclose(to);
    model = fake_model(in_folder("flip.bin")); /* data is not checked on opening */
    REQUIRE(model);
    CHECK(tc_model_verify(model, NULL, NULL, &err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "'1.down'"), "%s", err.message);
    tc_model_close(model);
}

/* ---- tokens ---- */

TEST(tokenize_counts_before_it_writes) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_error err;
    int32_t ids[16];
    size_t n = 99;
    REQUIRE(model);
    CHECK(tc_tokenize(model, "hello world", 11, 0, NULL, 0, &n, &err) == TC_OK && n == 2);
    ids[0] = ids[1] = -7;
    CHECK(tc_tokenize(model, "hello world", 11, 0, ids, 1, &n, &err) == TC_OK && n == 2);
    CHECK(tc_tokenize(model, "hello world", 11, 0, ids, 2, &n, &err) == TC_OK && n == 2);
    CHECK(ids[0] == tiny_id("\xE2\x96\x81hello") && ids[1] == tiny_id("\xE2\x96\x81world"));
    CHECK(tc_tokenize(model, "", 0, 0, ids, 16, &n, &err) == TC_OK && n == 0);
    CHECK(tc_tokenize(model, NULL, 0, TC_TOKENIZE_BOS, ids, 16, &n, &err) == TC_OK && n == 1);
    CHECK(ids[0] == TINY_BOS);
    CHECK(tc_tokenize(model, "hello", 5, TC_TOKENIZE_CONTINUE, ids, 16, &n, &err) == TC_OK);
    CHECK(n == 1 && ids[0] == tiny_id("hello"));
    CHECK(tc_tokenize(model, "hello", 5, 64, ids, 16, &n, &err) == TC_ERR_ARGUMENT);
    tc_model_close(model);
}

TEST(special_text_is_special_only_when_asked) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_error err;
    int32_t ids[16];
    size_t n, plain;
    REQUIRE(model);
    CHECK(tc_tokenize(model, "hello</s>", 9, 0, ids, 16, &plain, &err) == TC_OK && plain > 2);
    for (size_t i = 0; i < plain && i < 16; i++) CHECK(ids[i] != TINY_EOS);
    CHECK(tc_tokenize(model, "hello</s>", 9, TC_TOKENIZE_SPECIAL | TC_TOKENIZE_BOS, ids, 16, &n,
                      &err) == TC_OK);
    CHECK(n == 3 && ids[0] == TINY_BOS && ids[2] == TINY_EOS);
    tc_model_close(model);
}

TEST(detokenize_returns_the_text) {
    static const char text[] = "hello w\xC3\xA9rld </s> \xF0\x9F\x99\x82 ###\n end";
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_error err;
    int32_t ids[64];
    char back[64];
    size_t n, len = 0;
    REQUIRE(model);
    CHECK(tc_tokenize(model, text, sizeof text - 1, TC_TOKENIZE_BOS, ids, 64, &n, &err) == TC_OK);
    REQUIRE(n <= 64);
    CHECK(tc_detokenize(model, ids, n, NULL, 0, &len, &err) == TC_OK && len == sizeof text - 1);
    CHECK(tc_detokenize(model, ids, n, back, sizeof back, &len, &err) == TC_OK);
    CHECK(len == sizeof text - 1 && memcmp(back, text, len) == 0);
    CHECK(tc_detokenize(model, ids, 0, back, sizeof back, &len, &err) == TC_OK && len == 0);
    ids[0] = TINY_VOCAB;
    CHECK(tc_detokenize(model, ids, 1, back, sizeof back, &len, &err) == TC_ERR_ARGUMENT);
    ids[0] = -1;
    CHECK(tc_detokenize(model, ids, 1, back, sizeof back, &len, &err) == TC_ERR_ARGUMENT);
    tc_model_close(model);
}

/* ---- how large a context is chosen ---- */

static int default_ctx(tc_model *model) {
    tc_session *session = session_of(model, -1);
    int ctx_size = session ? tc_session_get_info(session).ctx_size : 0;
    tc_session_close(session);
    return ctx_size;
}

TEST(the_default_context_is_the_smallest_of_three) {
    tiny_model options = tiny_model_default();
    tc_error err;
    tc_session *session;
    options.max_seq_len = 20000;
    REQUIRE(tiny_model_write(&options, in_folder("long.bin")) == 0);
    fake_reset();
    tc_model *model = fake_model(in_folder("long.bin")), *small = fake_model(in_folder("tiny.bin"));
    REQUIRE(model && small);
    CHECK(default_ctx(model) == 4096);
    CHECK(default_ctx(small) == 512);

    session = session_of(model, 0);
    REQUIRE(session);
    tc_session_info info = tc_session_get_info(session);
    CHECK(info.ctx_size == 20000 && info.kv_bytes == 20000 * 1024);
    CHECK(info.workspace_bytes >= 4096 + 20 * 20000 && info.workspace_bytes < 8192 + 20 * 20000);
    tc_session_close(session);
    session = session_of(model, 1);
    CHECK(session && tc_session_get_info(session).ctx_size == 1);
    tc_session_close(session);

    fake.free_bytes = 2 << 20; /* 1044 bytes a position: 2008 would fill it, headroom is left */
    int ctx_size = default_ctx(model);
    CHECK_MSG(ctx_size > 1500 && ctx_size < 1900, "%d", ctx_size);
    session = session_of(model, 1990); /* who asks may fill it */
    CHECK(session != NULL);
    tc_session_close(session);

    tc_session_params params = {4000};
    CHECK(tc_session_open(model, &params, &session, &err) == TC_ERR_MEMORY && !session);
    int fits = 0;
    const char *number = strstr(err.message, "that fits is ");
    REQUIRE(number && sscanf(number, "that fits is %d", &fits) == 1);
    CHECK(strstr(err.message, "4000") && strstr(err.message, "weights"));
    CHECK(strstr(err.message, "3.91 MiB of KV cache") && strstr(err.message, "2.00 MiB are"));
    params.ctx_size = fits;
    CHECK(tc_session_open(model, &params, &session, &err) == TC_OK);
    tc_session_close(session);
    params.ctx_size = fits + 1;
    CHECK(tc_session_open(model, &params, &session, &err) == TC_ERR_MEMORY);

    fake.free_bytes = 100 << 10; /* 100 positions: nobody would expect that */
    CHECK(tc_session_open(model, NULL, &session, &err) == TC_ERR_MEMORY);
    fake.free_bytes = 1000;
    CHECK(tc_session_open(model, NULL, &session, &err) == TC_ERR_MEMORY);
    CHECK_MSG(strstr(err.message, "not even one"), "%s", err.message);
    fake.kv_bytes_per_token = SIZE_MAX / 2; /* no overflow, no huge context */
    CHECK(tc_session_open(model, NULL, &session, &err) == TC_ERR_MEMORY);

    fake_reset();
    fake.refuse_cache = 1;
    CHECK(tc_session_open(model, NULL, &session, &err) == TC_ERR_MEMORY && !session);
    CHECK_MSG(strstr(err.message, "smaller"), "%s", err.message);
    fake_reset();
    static const int wrong[] = {-2, 20001, INT32_MIN, INT32_MAX};
    for (size_t i = 0; i < TC_COUNT(wrong); i++) {
        params.ctx_size = wrong[i];
        CHECK(tc_session_open(model, &params, &session, &err) == TC_ERR_ARGUMENT && !session);
        CHECK_MSG(strstr(err.message, "20000"), "%s", err.message);
    }
    CHECK(fake.caches == 0);
    tc_model_close(model);
    tc_model_close(small);
    tc_session_close(NULL);
}

/* ---- evaluating ---- */

TEST(evaluation_keeps_the_books) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *session = session_of(model, 16);
    tc_error err;
    int32_t ids[17], id;
    float expected[TINY_VOCAB];
    REQUIRE(session);
    some_ids(ids, 17, 3);
    CHECK(tc_logits(session) == NULL && tc_kv_length(session) == 0);
    CHECK(tc_sample(session, NULL, &id, &err) == TC_ERR_ARGUMENT);
    CHECK(tc_eval(session, ids, 5, &err) == TC_OK && fake.last_n == 5 && fake.last_pos == 0);
    CHECK(tc_eval(session, ids + 5, 1, &err) == TC_OK && fake.last_n == 1 && fake.last_pos == 5);
    CHECK(tc_kv_length(session) == 6 && memcmp(tc_kv_ids(session), ids, 6 * sizeof *ids) == 0);
    fake_hash_logits(ids, 6, expected, TINY_VOCAB);
    REQUIRE(tc_logits(session));
    CHECK(memcmp(tc_logits(session), expected, sizeof expected) == 0);

    tc_kv_truncate(session, 100);
    tc_kv_truncate(session, 6);
    CHECK(tc_kv_length(session) == 6 && tc_logits(session));
    tc_kv_truncate(session, 3);
    CHECK(tc_kv_length(session) == 3 && !tc_logits(session));
    CHECK(tc_eval(session, ids + 3, 3, &err) == TC_OK && fake.last_pos == 3);
    CHECK(memcmp(tc_logits(session), expected, sizeof expected) == 0);

    CHECK(tc_eval(session, ids + 6, 11, &err) == TC_ERR_CONTEXT);
    CHECK_MSG(strstr(err.message, "11 ") && strstr(err.message, "6 ") && strstr(err.message, "16 "),
              "%s", err.message);
    CHECK(strstr(err.message, "or open a larger one"));
    CHECK(tc_kv_length(session) == 6 && tc_logits(session)); /* nothing happened */
    CHECK(tc_eval(session, ids + 6, 10, &err) == TC_OK && tc_kv_length(session) == 16);
    CHECK(tc_eval(session, ids, 1, &err) == TC_ERR_CONTEXT);
    tc_kv_truncate(session, 0);
    CHECK(tc_kv_length(session) == 0);
    CHECK(tc_eval(session, ids, 0, &err) == TC_ERR_ARGUMENT);
    CHECK(tc_eval(session, NULL, 3, &err) == TC_ERR_ARGUMENT);
    ids[2] = TINY_VOCAB;
    CHECK(tc_eval(session, ids, 5, &err) == TC_ERR_ARGUMENT && strstr(err.message, "index 2"));
    ids[2] = -1;
    CHECK(tc_eval(session, ids, 5, &err) == TC_ERR_ARGUMENT && strstr(err.message, "-1"));
    CHECK(tc_kv_length(session) == 0);
    tc_session_close(session);
    tc_model_close(model);
}

/* Who has the largest context there is hears why there is no larger one. */
TEST(a_full_context_names_what_ends_it) {
    static const char *const reasons[] = {
        "16 positions, the model's maximum; truncate it",
        "16 positions, the model's maximum: it has a sliding window of 16 positions"};
    fake_reset();
    for (int window = 0; window <= 16; window += 16) {
        tiny_model options = tiny_model_default();
        tc_session_params params = {17};
        tc_session *session;
        tc_chat *chat;
        tc_error err;
        int32_t ids[17];
        options.max_seq_len = 16;
        options.sliding_window = window;
        REQUIRE(tiny_model_write(&options, in_folder("window.bin")) == 0);
        tc_model *model = fake_model(in_folder("window.bin"));
        REQUIRE(model);
        CHECK(tc_session_open(model, &params, &session, &err) == TC_ERR_ARGUMENT);
        CHECK(!strstr(err.message, "sliding window of 16") == !window);
        session = session_of(model, 0);
        REQUIRE(session);
        some_ids(ids, 17, 3);
        CHECK(tc_eval(session, ids, 17, &err) == TC_ERR_CONTEXT);
        CHECK_MSG(strstr(err.message, reasons[window > 0]), "%s", err.message);
        CHECK(!strstr(err.message, "larger"));
        tc_session_close(session);
        CHECK(tc_chat_open(model, NULL, &chat, &err) == TC_OK);
        const char *text = "12345678901234567890";
        CHECK(tc_chat_send(chat, text, strlen(text), NULL, NULL, NULL, &err) == TC_ERR_CONTEXT);
        CHECK_MSG(strstr(err.message, "16, the model's maximum") && !strstr(err.message, "larger"),
                  "%s", err.message);
        tc_chat_close(chat);
        tc_model_close(model);
    }
}

TEST(a_failed_evaluation_leaves_the_old_length) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *session = session_of(model, 32);
    tc_error err;
    int32_t ids[20];
    float expected[TINY_VOCAB];
    REQUIRE(session);
    some_ids(ids, 20, 4);
    CHECK(tc_eval(session, ids, 4, &err) == TC_OK);
    fake.fail_at = 1;
    fake.fail_code = TC_ERR_DEVICE;
    CHECK(tc_eval(session, ids + 4, 6, &err) == TC_ERR_DEVICE);
    CHECK(tc_kv_length(session) == 4 && tc_logits(session) == NULL);
    CHECK(tc_eval(session, ids + 4, 6, &err) == TC_OK && fake.last_pos == 4);
    fake_hash_logits(ids, 10, expected, TINY_VOCAB);
    CHECK(memcmp(tc_logits(session), expected, sizeof expected) == 0);
    tc_session_close(session);
    tc_model_close(model);
}

typedef struct each_state {
    int32_t *ids;
    size_t next, stop_at;
    int bad;
} each_state;

static int check_each(void *user, size_t position, const float *logits, int vocab_size) {
    each_state *state = user;
    float expected[TINY_VOCAB];
    fake_hash_logits(state->ids, position + 1, expected, TINY_VOCAB);
    state->bad += position != state->next || vocab_size != TINY_VOCAB ||
                  memcmp(logits, expected, sizeof expected) != 0;
    state->next++;
    return position == state->stop_at;
}

TEST(eval_all_hands_over_every_position) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *session = session_of(model, 32);
    tc_error err;
    int32_t ids[20];
    REQUIRE(session);
    some_ids(ids, 20, 5);
    each_state state = {ids, 3, 1000, 0};
    CHECK(tc_eval(session, ids, 3, &err) == TC_OK);
    CHECK(tc_eval_all(session, ids + 3, 7, check_each, &state, &err) == TC_OK);
    CHECK(state.next == 10 && state.bad == 0 && tc_kv_length(session) == 10);
    CHECK(tc_logits(session) != NULL);
    state.stop_at = 12;
    CHECK(tc_eval_all(session, ids + 10, 7, check_each, &state, &err) == TC_ERR_CANCELLED);
    CHECK(state.next == 13 && state.bad == 0 && tc_kv_length(session) == 10);
    CHECK(tc_eval_all(session, ids, 1, NULL, NULL, &err) == TC_ERR_ARGUMENT);
    tc_session_close(session);
    tc_model_close(model);
}

static void cancel_session(void *user) {
    if (fake.evaluations == 2) tc_session_cancel(user);
}

TEST(a_cancellation_is_used_up_by_the_call_it_stops) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *session = session_of(model, 32);
    tc_error err;
    int32_t ids[20];
    REQUIRE(session);
    some_ids(ids, 20, 6);
    tc_session_cancel(NULL);
    tc_session_cancel(session); /* before: stops the next one */
    CHECK(tc_eval(session, ids, 4, &err) == TC_ERR_CANCELLED && tc_kv_length(session) == 0);
    CHECK(tc_eval(session, ids, 4, &err) == TC_OK);
    fake.on_eval = cancel_session; /* within */
    fake.user = session;
    CHECK(tc_eval(session, ids + 4, 4, &err) == TC_ERR_CANCELLED && tc_kv_length(session) == 4);
    CHECK(tc_eval(session, ids + 4, 4, &err) == TC_OK && tc_kv_length(session) == 8);
    tc_session_close(session);
    tc_model_close(model);
}

/* ---- sampling ---- */

TEST(the_seed_decides_the_draws) {
    fake_reset();
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *a = session_of(model, 64), *b = session_of(model, 64);
    tc_sampling wide = {3, 1, 0, 0, 1, -1, 0}, greedy = wide;
    tc_error err;
    int32_t start = 7, first[20], id = 0;
    REQUIRE(a && b);
    greedy.temperature = 0;
    CHECK(tc_session_seed(a, 11) == 11 && tc_session_seed(b, 11) == 11);
    tc_eval(a, &start, 1, &err);
    tc_eval(b, &start, 1, &err);
    for (int i = 0; i < 20; i++) {
        CHECK(tc_sample(a, &wide, &first[i], &err) == TC_OK);
        CHECK(tc_sample(b, &greedy, &id, &err) == TC_OK); /* uses up no random number */
        CHECK(tc_sample(b, &wide, &id, &err) == TC_OK && id == first[i]);
    }
    tc_session_seed(a, 11);
    for (int i = 0; i < 20; i++) CHECK(tc_sample(a, &wide, &id, &err) == TC_OK && id == first[i]);
    int equal = 0;
    tc_session_seed(a, 12);
    for (int i = 0; i < 20; i++) equal += tc_sample(a, &wide, &id, &err) == TC_OK && id == first[i];
    CHECK(equal < 10);
    CHECK(tc_session_seed(a, TC_SEED_RANDOM) != tc_session_seed(b, TC_SEED_RANDOM));
    wide.top_p = 0;
    CHECK(tc_sample(a, &wide, &id, &err) == TC_ERR_ARGUMENT && strstr(err.message, "top_p"));
    CHECK(tc_sample(a, NULL, NULL, &err) == TC_ERR_ARGUMENT);
    tc_session_close(a);
    tc_session_close(b);
    tc_model_close(model);
}

/* The penalty sees exactly the last repeat_last_n ids of the context. */
TEST(repeat_last_n_limits_the_penalty) {
    static const int32_t script[] = {50, 50, 50, 50};
    fake_reset();
    fake.script = script;
    fake.script_len = 4;
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *session = session_of(model, 64);
    tc_error err;
    int32_t context[] = {50, 60, 70, 80}, id = 0;
    REQUIRE(session);
    CHECK(tc_eval(session, context, 4, &err) == TC_OK);
    /* Id 50 has logit 1000, the others 0; the penalty makes that 1e-35, as probable as they. */
    tc_sampling s = {1, 1, 0, 0, 1e38f, -1, 0};
    static const struct {
        int last_n;
        bool penalized;
    } cases[] = {{-1, true}, {100, true}, {4, true}, {3, false}, {1, false}, {0, false}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        s.repeat_last_n = cases[i].last_n;
        int other = 0;
        tc_session_seed(session, 1);
        for (int k = 0; k < 20; k++)
            other += tc_sample(session, &s, &id, &err) == TC_OK && id != 50;
        CHECK_MSG(cases[i].penalized ? other >= 18 : other == 0, "last_n %d: %d", cases[i].last_n,
                  other);
    }
    tc_session_close(session);
    tc_model_close(model);
}

TEST(logits_that_are_no_numbers_are_reported) {
    fake_reset();
    fake.nan_at = 77;
    fake.nan_from = 1;
    tc_model *model = fake_model(in_folder("tiny.bin"));
    tc_session *session = session_of(model, 64);
    tc_error err;
    int32_t id = 5;
    REQUIRE(session);
    CHECK(tc_eval(session, &id, 1, &err) == TC_OK);
    CHECK(tc_sample(session, NULL, &id, &err) == TC_ERR_NUMERIC && strstr(err.message, "id 77"));
    tc_session_close(session);
    tc_model_close(model);
}

/* ---- on the CPU ---- */

static const int group_sizes[] = {32, 64, 128, 0, -1};

/* A model file of each precision. */
static const char *tiny_path(int group_size) {
    char name[32];
    snprintf(name, sizeof name, "g%d.bin", group_size);
    return in_folder(name);
}

TEST(any_cut_of_a_sequence_gives_the_same_bits) {
    enum { N = 90 };
    int32_t ids[N];
    some_ids(ids, N, 8);
    for (size_t g = 0; g < TC_COUNT(group_sizes); g++) {
        tc_model *model = cpu_model(tiny_path(group_sizes[g]), 2);
        tc_session *whole = session_of(model, 128), *parts = session_of(model, 100);
        tc_error err;
        static const size_t cuts[] = {1, 2, 30, 31, 47, 48, 80, N};
        REQUIRE(whole && parts);
        size_t bytes = (size_t)tc_model_get_info(model).vocab_size * sizeof(float);
        REQUIRE(tc_eval(whole, ids, N, &err) == TC_OK);
        for (size_t i = 0, at = 0; i < TC_COUNT(cuts); at = cuts[i++])
            REQUIRE(tc_eval(parts, ids + at, cuts[i] - at, &err) == TC_OK);
        CHECK(memcmp(tc_logits(whole), tc_logits(parts), bytes) == 0);
        /* Going back and forth as well. */
        tc_kv_truncate(parts, 40);
        int32_t other[20];
        some_ids(other, 20, 9);
        REQUIRE(tc_eval(parts, other, 20, &err) == TC_OK);
        CHECK(memcmp(tc_logits(whole), tc_logits(parts), bytes) != 0);
        tc_kv_truncate(parts, 40);
        REQUIRE(tc_eval(parts, ids + 40, N - 40, &err) == TC_OK);
        CHECK(memcmp(tc_logits(whole), tc_logits(parts), bytes) == 0);
        tc_session_close(whole);
        tc_session_close(parts);
        tc_model_close(model);
    }
}

typedef struct worker {
    tc_model *model;
    unsigned seed;
    int32_t ids[60];
    int code;
} worker;

/* A prompt and a sampled reply. */
static void *work(void *user) {
    worker *w = user;
    tc_session *session = session_of(w->model, 128);
    tc_sampling sampling = tc_default_sampling();
    some_ids(w->ids, 30, w->seed);
    tc_session_seed(session, w->seed);
    w->code = tc_eval(session, w->ids, 30, NULL);
    for (int i = 30; i < 60 && !w->code; i++) {
        w->code = tc_sample(session, &sampling, &w->ids[i], NULL);
        if (!w->code) w->code = tc_eval(session, &w->ids[i], 1, NULL);
    }
    tc_session_close(session);
    return NULL;
}

TEST(sessions_in_threads_do_not_disturb_each_other) {
    enum { N = 3 };
    tc_model *model = cpu_model(tiny_path(64), 2);
    worker alone[N], together[N];
    pthread_t threads[N];
    REQUIRE(model);
    for (unsigned i = 0; i < N; i++) {
        alone[i].model = together[i].model = model;
        alone[i].seed = together[i].seed = 100 + i;
        work(&alone[i]);
    }
    for (int i = 0; i < N; i++) REQUIRE(!pthread_create(&threads[i], NULL, work, &together[i]));
    for (int i = 0; i < N; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < N; i++) {
        CHECK(alone[i].code == TC_OK && together[i].code == TC_OK);
        CHECK(memcmp(alone[i].ids, together[i].ids, sizeof alone[i].ids) == 0);
    }
    CHECK(memcmp(alone[0].ids + 30, alone[1].ids + 30, 30 * sizeof(int32_t)) != 0);
    tc_model_close(model);
}

static void *cancel_later(void *user) {
    struct timespec pause = {0, 20 * 1000 * 1000};
    nanosleep(&pause, NULL);
    tc_session_cancel(user);
    return NULL;
}

TEST(another_thread_may_cancel) {
    enum { N = 500 };
    tc_model *model = cpu_model(tiny_path(32), 1);
    tc_session *session = session_of(model, 0);
    int32_t ids[N];
    tc_error err;
    pthread_t thread;
    REQUIRE(session);
    some_ids(ids, N, 10);
    REQUIRE(!pthread_create(&thread, NULL, cancel_later, session));
    int code = TC_OK;
    while (!code) { /* much longer than the pause, if it is not cancelled */
        tc_kv_truncate(session, 0);
        code = tc_eval(session, ids, N, &err);
    }
    pthread_join(thread, NULL);
    CHECK(code == TC_ERR_CANCELLED && tc_kv_length(session) == 0);
    CHECK(tc_eval(session, ids, N, &err) == TC_OK);
    tc_session_close(session);
    tc_model_close(model);
}

TEST(bandwidth_is_measured) {
    tc_model *model = cpu_model(tiny_path(32), 1);
    tc_error err;
    double rate = 0;
    REQUIRE(model);
    double start = tc_seconds();
    CHECK(tc_read_bandwidth(model, (size_t)8 << 20, &rate, &err) == TC_OK);
    CHECK_MSG(rate > 1e7 && rate < 1e14, "%g bytes per second", rate);
    CHECK(tc_seconds() >= start);
    tc_model_close(model);
    fake_reset();
    model = fake_model(in_folder("tiny.bin")); /* its "rate" is the number of bytes read */
    REQUIRE(model);
    CHECK(tc_read_bandwidth(model, 0, &rate, &err) == TC_OK && rate == (double)(1 << 29));
    fake.free_bytes = (size_t)1 << 40;
    CHECK(tc_read_bandwidth(model, 0, &rate, &err) == TC_OK && rate == (double)(1 << 30));
    tc_model_close(model);
}

static int prepare(void) {
    tiny_model options = tiny_model_default();
    if (!program_folder(folder) || tiny_model_write(&options, in_folder("tiny.bin"))) return -1;
    for (size_t i = 0; i < TC_COUNT(group_sizes); i++) {
        options.group_size = group_sizes[i];
        if (tiny_model_write(&options, tiny_path(group_sizes[i]))) return -1;
    }
    return 0;
}

/* clang-format off */
TEST_MAIN(
    if (prepare()) return 1;
    RUN(default_parameters_are_the_manual_s)
    RUN(every_code_has_a_name)
    RUN(opening_names_what_is_wrong)
    RUN(an_8_bit_head_is_for_a_gpu)
    RUN(progress_may_cancel_opening)
    RUN(remarks_come_where_they_should)
    RUN(info_is_what_the_file_says)
    RUN(a_model_without_a_tokenizer_takes_ids_only)
    RUN(verify_finds_a_flipped_bit)
    RUN(tokenize_counts_before_it_writes)
    RUN(special_text_is_special_only_when_asked)
    RUN(detokenize_returns_the_text)
    RUN(the_default_context_is_the_smallest_of_three)
    RUN(evaluation_keeps_the_books)
    RUN(a_full_context_names_what_ends_it)
    RUN(a_failed_evaluation_leaves_the_old_length)
    RUN(eval_all_hands_over_every_position)
    RUN(a_cancellation_is_used_up_by_the_call_it_stops)
    RUN(the_seed_decides_the_draws)
    RUN(repeat_last_n_limits_the_penalty)
    RUN(logits_that_are_no_numbers_are_reported)
    RUN(any_cut_of_a_sequence_gives_the_same_bits)
    RUN(sessions_in_threads_do_not_disturb_each_other)
    RUN(another_thread_may_cancel)
    RUN(bandwidth_is_measured)
    program_remove_folder(folder);)
