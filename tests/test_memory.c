/* Out of memory, everywhere: a whole life of model, session and chat is run again and again, and
 * each time another allocation (or start of a thread) fails. Every failure must come back as
 * TC_ERR_MEMORY, leave no memory behind and the conversation as it was.
 *
 * The library is compiled into this program with its allocations going through the functions below;
 * the one that other tests link stays untouched. */
#define TC_API static
#define TC_INTERNAL static

#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* and POSIX, as src/base.h asks for it */
#endif
#define _FILE_OFFSET_BITS 64
#include <errno.h>
#include <pthread.h>
#include <stdlib.h>

static long memory_calls, memory_fail_at, memory_fail_more; /* the failing call; 1: all later too */
static long memory_held;                                    /* blocks not yet freed */

static int memory_refused(void) {
    long call = __atomic_add_fetch(&memory_calls, 1, __ATOMIC_RELAXED);
    return memory_fail_at &&
           (call == memory_fail_at || (memory_fail_more && call > memory_fail_at));
}
static void *memory_counted(void *block) {
    if (block)
        __atomic_add_fetch(&memory_held, 1, __ATOMIC_RELAXED);
    else
        errno = ENOMEM;
    return block;
}
static void *memory_malloc(size_t size) {
    return memory_counted(memory_refused() ? NULL : malloc(size));
}
static void *memory_calloc(size_t count, size_t size) {
    return memory_counted(memory_refused() ? NULL : calloc(count, size));
}
static void *memory_realloc(void *block, size_t size) {
    if (!block) return memory_malloc(size);
    if (!memory_refused()) return realloc(block, size);
    errno = ENOMEM;
    return NULL;
}
static int memory_memalign(void **block, size_t alignment, size_t size) {
    if (memory_refused() || posix_memalign(block, alignment, size)) return ENOMEM;
    memory_counted(*block);
    return 0;
}
static void memory_free(void *block) {
    if (block) __atomic_sub_fetch(&memory_held, 1, __ATOMIC_RELAXED);
    free(block);
}
static int memory_thread(pthread_t *thread, const pthread_attr_t *attributes, void *(*run)(void *),
                         void *user) {
    return memory_refused() ? EAGAIN : pthread_create(thread, attributes, run, user);
}

#define malloc memory_malloc
#define calloc memory_calloc
#define realloc memory_realloc
#define posix_memalign memory_memalign
#define free memory_free
#define pthread_create memory_thread

#if defined(__GNUC__)
#pragma GCC diagnostic ignored "-Wunused-function"
#endif
/* clang-format off: the order of src/amalgamate.sh */
#include "src/base.c"
#include "src/model_file.c"
#include "src/arch.c"
#include "src/unicode.c"
#include "src/split.c"
#include "src/vocabulary.c"
#include "src/tokenizer.c"
#include "src/template.c"
#include "src/stream.c"
#include "src/sampler.c"
#include "src/threads.c"
#include "src/shapes.c"
#include "src/cpu_fixed.c"
#include "src/cpu_kernels.c"
#include "src/cpu.c"
#include "src/kernels.c"
#include "src/gpu_driver.c"
#include "src/jit.c"
#include "src/gpu_programs.c"
#include "src/cuda.c"
#include "src/session.c"
#include "src/chat.c"
#include "src/doctor.c"
#include "src/api.c"
/* clang-format on */

#undef malloc
#undef calloc
#undef realloc
#undef posix_memalign
#undef free
#undef pthread_create

#include "program.h"
#include "test.h"
#include "tiny_model.h"

static char folder[PROGRAM_PATH], model_path[PROGRAM_PATH + 16], talk_path[PROGRAM_PATH + 16];

/* ---- one life ---- */

/* A call that may fail: stops the life at the first failure. */
#define LIVE(call)                                                                                 \
    if (!code) code = (call)

/* The conversation's ids, for comparison before and after a failed call. */
typedef struct snapshot {
    int32_t ids[1024];
    size_t n, turns;
} snapshot;

/* Taken with allocations allowed, out of the count. */
static snapshot look(const tc_chat *chat) {
    snapshot now;
    long fail_at = memory_fail_at, calls = memory_calls;
    memory_fail_at = 0;
    memset(&now, 0, sizeof now);
    if (tc_chat_render(chat, NULL, 0, now.ids, TC_COUNT(now.ids), &now.n, NULL)) now.n = SIZE_MAX;
    now.turns = tc_chat_turns(chat);
    memory_fail_at = fail_at;
    memory_calls = calls;
    return now;
}

static void unchanged(const tc_chat *chat, const snapshot *before) {
    snapshot now = look(chat);
    CHECK(now.turns == before->turns && now.n == before->n && now.n <= TC_COUNT(now.ids));
    if (now.n == before->n && now.n <= TC_COUNT(now.ids))
        CHECK(memcmp(now.ids, before->ids, now.n * sizeof *now.ids) == 0);
}

/* Everything that changes a conversation. */
static int live_chat(tc_chat *chat, tc_error *err) {
    static const char letters[] = "zqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzqzq";
    tc_reply reply;
    int code = TC_OK;
    for (int step = 0; step < 9 && !code; step++) {
        snapshot before = look(chat);
        tc_sampling sampling = tc_chat_get_sampling(chat);
        switch (step) {
        case 0: code = tc_chat_send(chat, "hello world", 11, NULL, NULL, NULL, err); break;
        case 1: code = tc_chat_send(chat, "\xE2\x82\xAC \xFF", 5, NULL, NULL, NULL, err); break;
        case 2: code = tc_chat_regenerate(chat, NULL, NULL, NULL, err); break;
        case 3: code = tc_chat_save(chat, talk_path, err); break;
        case 4: code = tc_chat_add_turn(chat, "the", 3, "end", 3, err); break;
        case 5: code = tc_chat_set_system(chat, "the world", err); break;
        case 6: code = tc_chat_load(chat, talk_path, err); break;
        case 7: code = tc_chat_set_sampling(chat, &sampling, err); break;
        case 8: /* one token a letter: the oldest turns are dropped */
            code = tc_chat_send(chat, letters, sizeof letters - 1, NULL, NULL, &reply, err);
            if (!code) CHECK(reply.dropped_turns > 0);
            break;
        }
        if (code) unchanged(chat, &before);
    }
    return code;
}

static int live(tc_error *err) {
    static const char *const stops[] = {"a", "e", "th", NULL}; /* likely in random text */
    tc_model_params model_params = tc_model_default_params();
    model_params.device = "cpu"; /* auto would answer a failure of the GPU's side with the CPU */
    tc_chat_params chat_params = tc_chat_default_params();
    tc_session_params session_params = tc_session_default_params();
    tc_model *model = NULL, *shape = NULL;
    tc_session *session = NULL;
    tc_chat *chat = NULL;
    int32_t ids[64], id = 0;
    char text[64];
    size_t n = 0;
    double rate;
    model_params.threads = 2;
    session_params.ctx_size = 64;
    chat_params.ctx_size = 80;
    chat_params.max_tokens = 12;
    chat_params.sampling.seed = 1;
    chat_params.stop = stops;
    int code = tc_model_open(model_path, &model_params, &model, err);
    LIVE(tc_tokenize(model, "hello </s>", 10, TC_TOKENIZE_SPECIAL, ids, 64, &n, err));
    LIVE(tc_detokenize(model, ids, n, text, sizeof text, &n, err));
    LIVE(tc_session_open(model, &session_params, &session, err));
    LIVE(tc_eval(session, ids, 3, err));
    LIVE(tc_sample(session, NULL, &id, err));
    LIVE(tc_eval(session, &id, 1, err));
    LIVE(tc_read_bandwidth(model, 1 << 16, &rate, err));
    LIVE(tc_model_open_shape("tiny", "w4a16", 64, &model_params, &shape, err));
    LIVE(tc_chat_open(model, &chat_params, &chat, err));
    LIVE(live_chat(chat, err));
    tc_chat_close(chat);
    tc_session_close(session);
    tc_model_close(shape);
    tc_model_close(model);
    return code;
}

/* ---- tests ---- */

static void fail_everywhere(int more) {
    tc_error err;
    memory_fail_at = memory_calls = 0;
    REQUIRE(live(&err) == TC_OK);
    long all = memory_calls;
    CHECK_MSG(all > 100 && memory_held == 0, "%ld allocations, %ld held", all, memory_held);
    memory_fail_more = more;
    for (long at = 1; at <= all; at++) {
        memory_fail_at = at;
        memory_calls = 0;
        int code = live(&err);
        CHECK_MSG(code == TC_ERR_MEMORY && err.code == TC_ERR_MEMORY && *err.message,
                  "allocation %ld: code %d: %s", at, code, err.message);
        CHECK_MSG(memory_held == 0, "allocation %ld: %ld blocks held", at, memory_held);
        if (memory_held) memory_held = 0;
        if (test_bad_ > 20) return; /* enough to see what is wrong */
    }
    memory_fail_at = 0;
    CHECK(live(&err) == TC_OK && memory_held == 0);
}

TEST(a_failed_allocation_is_an_error_and_no_leak) {
    fail_everywhere(0);
}

TEST(no_memory_from_some_point_on_is_an_error_and_no_leak) {
    fail_everywhere(1);
}

static int prepare(void) {
    tiny_model options = tiny_model_default();
    if (!program_folder(folder)) return -1;
    snprintf(model_path, sizeof model_path, "%s/tiny.bin", folder);
    snprintf(talk_path, sizeof talk_path, "%s/talk.txt", folder);
    options.group_size = 64;
    options.stop_string = "he";
    return tiny_model_write(&options, model_path);
}

/* clang-format off */
TEST_MAIN(
    if (prepare()) return 1;
    RUN(a_failed_allocation_is_an_error_and_no_leak)
    RUN(no_memory_from_some_point_on_is_an_error_and_no_leak)
    program_remove_folder(folder);)
