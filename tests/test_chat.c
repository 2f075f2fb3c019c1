/* The chat through the public API: what a reply is made of, what the conversation holds after it,
 * what the KV cache is spared, and the conversation file. */
#include "fake_backend.h"
#include "program.h"
#include "test.h"
#include "tiny_model.h"

#include <pthread.h>

#define S "\xE2\x96\x81" /* the space of SentencePiece */
#define BAD "\xEF\xBF\xBD"

static char folder[PROGRAM_PATH];

static const char *in_folder(const char *name) {
    static char paths[4][PROGRAM_PATH + 64];
    static int next;
    char *path = paths[next++ & 3];
    snprintf(path, sizeof paths[0], "%s/%s", folder, name);
    return path;
}

/* ---- a chat on the fake backend ---- */

static tc_model *model; /* of the running test */
static tc_chat *chat;
static tc_reply reply;
static tc_error err;

static void close_all(void) {
    tc_chat_close(chat);
    tc_model_close(model);
    chat = NULL;
    model = NULL;
}

static bool open_with(const char *file, const tc_chat_params *params) {
    fake_reset();
    model = fake_model(in_folder(file));
    int code = model ? tc_chat_open(model, params, &chat, &err) : TC_ERR_IO;
    if (code) fprintf(stderr, "%s\n", err.message);
    return code == TC_OK;
}

static tc_chat_params greedy_params(int ctx_size) {
    tc_chat_params params = tc_chat_default_params();
    params.ctx_size = ctx_size;
    params.sampling.temperature = 0;
    params.sampling.repeat_penalty = 1;
    return params;
}

static bool open_chat(int ctx_size) {
    tc_chat_params params = greedy_params(ctx_size);
    return open_with("tiny.bin", &params);
}

static int32_t script[256];

/* The next reply: pieces separated by '|', the last one NULL-terminated; "\xNN" bytes that are no
 * piece become byte pieces. */
static void say(const char *pieces) {
    size_t n = 0;
    while (*pieces) {
        char piece[32];
        size_t len = strcspn(pieces, "|");
        snprintf(piece, sizeof piece, "%.*s", (int)len, pieces);
        int id = tiny_id(piece);
        if (id >= 0)
            script[n++] = id;
        else
            for (size_t i = 0; i < len; i++) script[n++] = TINY_BYTES + (unsigned char)piece[i];
        pieces += len + (pieces[len] == '|');
    }
    fake.script = script;
    fake.script_len = n;
    fake.evaluations = fake.tokens = 0;
}

typedef struct pieces {
    char text[4096];
    size_t len, calls, refuse_at;
    bool broken;     /* a piece was empty or not whole characters */
    tc_chat *cancel; /* is cancelled in the call cancel_at */
    size_t cancel_at;
} pieces;

static int collect(void *user, const char *text, size_t len) {
    pieces *p = user;
    p->broken |= len == 0 || p->len + len >= sizeof p->text;
    for (size_t at = 0; at < len;) {
        uint32_t code;
        at += tc__utf8_decode(text + at, len - at, &code);
        p->broken |= code == UINT32_MAX;
    }
    if (p->broken) return 1;
    memcpy(p->text + p->len, text, len);
    p->len += len;
    p->text[p->len] = 0;
    p->calls++;
    if (p->cancel && p->calls == p->cancel_at) tc_chat_cancel(p->cancel);
    return p->calls == p->refuse_at;
}

/* Sends `text`; checks that streamed text, reply text and the turn's text are `expected`. */
static void send_expect(const char *text, const char *expected, int stop) {
    pieces p;
    memset(&p, 0, sizeof p);
    int code = tc_chat_send(chat, text, strlen(text), collect, &p, &reply, &err);
    CHECK_MSG(code == TC_OK && err.code == TC_OK, "%s", err.message);
    if (code) return;
    size_t len = 0;
    const char *kept = tc_chat_reply_text(chat, tc_chat_turns(chat) - 1, &len);
    CHECK_MSG(strcmp(reply.text, expected) == 0 && reply.len == strlen(expected),
              "reply '%s', expected '%s'", reply.text, expected);
    CHECK_MSG(strcmp(p.text, expected) == 0 && !p.broken, "streamed '%s', expected '%s'", p.text,
              expected);
    CHECK(kept == reply.text && len == reply.len);
    CHECK_MSG(reply.stop == stop, "stop %d, expected %d", reply.stop, stop);
}

/* The prompt that a turn `user` (NULL: none) would have now. */
static tc__ids rendered(const char *user) {
    tc__ids ids = {NULL, 0, 0, false};
    size_t n = 0;
    int32_t found[2048];
    int code = tc_chat_render(chat, user, user ? strlen(user) : 0, found, 2048, &n, &err);
    CHECK_MSG(code == TC_OK && n <= 2048, "%s", err.message);
    if (!code && n <= 2048) tc__ids_add(&ids, found, n);
    return ids;
}

/* ids begins with `text` (special pieces recognised), tokenized at the start of a text. */
static bool ids_are(const int32_t *ids, size_t n, const char *text) {
    int32_t expected[2048];
    size_t count = 0;
    int flags = TC_TOKENIZE_SPECIAL | TC_TOKENIZE_BOS;
    int code = tc_tokenize(model, text, strlen(text), flags, expected, 2048, &count, &err);
    bool same = !code && count == n && memcmp(ids, expected, n * sizeof *ids) == 0;
    char back[4096] = "";
    size_t len = 0;
    if (!same) tc_detokenize(model, ids, n, back, sizeof back - 1, &len, &err);
    if (!same) fprintf(stderr, "%zu ids, expected %zu: '%.*s'\n", n, count, (int)len, back);
    return same;
}

static bool prompt_is(const char *user, const char *text) {
    tc__ids ids = rendered(user);
    bool same = ids_are(ids.data, ids.len, text);
    tc__ids_free(&ids);
    return same;
}

/* ---- one reply ---- */

TEST(a_reply_is_streamed_and_kept) {
    REQUIRE(open_chat(256));
    CHECK(tc_chat_turns(chat) == 0);
    CHECK(prompt_is("hello", "USER: hello ASSISTANT:"));
    tc__ids prompt = rendered("hello");
    say(S "hello|" S "world|</s>");
    send_expect("hello", "hello world", TC_STOP_ID);
    CHECK(reply.prompt_tokens == prompt.len && reply.reused_tokens == 0);
    CHECK(reply.reply_tokens == 3 && reply.dropped_turns == 0);
    CHECK(fake.evaluations == 3 && fake.tokens == prompt.len + 2); /* not the stop id */
    CHECK(reply.prefill_seconds >= 0 && reply.ttft_seconds >= reply.prefill_seconds);
    CHECK(reply.decode_seconds >= 0);
    tc_session *session = tc_chat_session(chat);
    CHECK(tc_kv_length(session) == prompt.len + 2);
    CHECK(memcmp(tc_kv_ids(session), prompt.data, prompt.len * sizeof(int32_t)) == 0);
    CHECK(strcmp(tc_chat_user_text(chat, 0, NULL), "hello") == 0);
    CHECK(prompt_is(NULL, "USER: hello ASSISTANT: hello world</s>"));
    tc__ids_free(&prompt);
    close_all();
}

TEST(a_further_turn_evaluates_only_what_is_new) {
    REQUIRE(open_chat(256));
    say(S "hello|</s>");
    send_expect("one", "hello", TC_STOP_ID);
    size_t held = tc_kv_length(tc_chat_session(chat));
    tc__ids prompt = rendered("two");
    say(S "world|</s>");
    send_expect("two", "world", TC_STOP_ID);
    CHECK(reply.prompt_tokens == prompt.len && reply.reused_tokens == held);
    CHECK(fake.tokens == prompt.len - held + 1);
    CHECK(prompt_is(NULL, "USER: one ASSISTANT: hello</s>USER: two ASSISTANT: world</s>"));
    tc__ids_free(&prompt);
    close_all();
}

/* The reply's text would be tokenized otherwise. */
TEST(generated_ids_are_never_tokenized_again) {
    REQUIRE(open_chat(256));
    say(S "|h|e|llo|</s>");
    send_expect("one", "hello", TC_STOP_ID);
    tc__ids ids = rendered("two");
    tc__ids first = rendered(NULL);
    REQUIRE(first.len > 5);
    CHECK(memcmp(first.data + first.len - 5, script, 5 * sizeof(int32_t)) == 0);
    CHECK(memcmp(ids.data, first.data, first.len * sizeof(int32_t)) == 0);
    say("</s>");
    send_expect("two", "", TC_STOP_ID);
    CHECK(reply.reused_tokens == first.len - 1);
    tc__ids_free(&ids);
    tc__ids_free(&first);
    close_all();
}

TEST(any_stop_id_ends_a_reply_and_special_tokens_have_no_text) {
    tiny_model options = tiny_model_default();
    options.stop_ids[0] = tiny_id("###");
    options.stop_ids[1] = TINY_EOS;
    REQUIRE(tiny_model_write(&options, in_folder("stops.bin")) == 0);
    tc_chat_params params = greedy_params(256);
    REQUIRE(open_with("stops.bin", &params));
    say(S "hello|<s>|" S "world|###|" S "world");
    send_expect("one", "hello world", TC_STOP_ID);
    CHECK(reply.reply_tokens == 4);
    say(S "hello|</s>|" S "world");
    send_expect("two", "hello", TC_STOP_ID);
    tc__ids ids = rendered("three");
    size_t stops = 0;
    for (size_t i = 0; i < ids.len; i++) stops += ids.data[i] == tiny_id("###");
    CHECK(stops == 1); /* as it was generated */
    tc__ids_free(&ids);
    close_all();
}

TEST(characters_arrive_whole) {
    REQUIRE(open_chat(256));
    say(S
        "hello|\xF0\x9F\x99\x82|\xC3|</s>"); /* U+1F642 out of four byte pieces, half a character */
    send_expect("one", "hello\xF0\x9F\x99\x82" BAD, TC_STOP_ID);
    say("\x80|\xFE|h|</s>");
    send_expect("two", BAD BAD "h", TC_STOP_ID);
    tc_chat_set_max_tokens(chat, 3);
    say("\xF0\x9F\x99\x82");
    send_expect("three", BAD BAD BAD, TC_STOP_LENGTH);
    close_all();
}

TEST(length_limits_end_a_reply) {
    REQUIRE(open_chat(64));
    tc_chat_set_max_tokens(chat, 2);
    say(S "hello|" S "world|" S "hello");
    send_expect("one", "hello world", TC_STOP_LENGTH);
    CHECK(reply.reply_tokens == 2);
    CHECK(prompt_is("two", "USER: one ASSISTANT: hello world</s>USER: two ASSISTANT:"));
    tc_chat_reset(chat);
    tc_chat_set_max_tokens(chat, 0);
    for (size_t i = 0; i < 256; i++) script[i] = tiny_id("h");
    fake.script_len = 256;
    pieces p;
    memset(&p, 0, sizeof p);
    CHECK(tc_chat_send(chat, "one", 3, collect, &p, &reply, &err) == TC_OK);
    CHECK(reply.stop == TC_STOP_CONTEXT && tc_kv_length(tc_chat_session(chat)) == 64);
    CHECK(reply.reply_tokens == 64 - reply.prompt_tokens + 1 && p.len == reply.reply_tokens);
    close_all();
}

TEST(odd_texts_are_allowed) {
    REQUIRE(open_chat(256));
    say("</s>");
    CHECK(tc_chat_send(chat, NULL, 0, NULL, NULL, NULL, NULL) == TC_OK);
    CHECK(tc_chat_turns(chat) == 1 && *tc_chat_user_text(chat, 0, NULL) == 0);
    static const char text[] = "a\0b\xFF</s>\n";
    say("</s>");
    CHECK(tc_chat_send(chat, text, sizeof text - 1, NULL, NULL, &reply, &err) == TC_OK);
    size_t len = 0;
    const char *kept = tc_chat_user_text(chat, 1, &len);
    CHECK(len == sizeof text - 1 && memcmp(kept, text, sizeof text) == 0);
    tc__ids ids = rendered("hello</s>"); /* nobody ends a turn by typing it */
    size_t stops = 0;
    for (size_t i = 0; i < ids.len; i++) stops += ids.data[i] == TINY_EOS;
    CHECK_MSG(stops == 2, "%zu", stops);
    tc__ids_free(&ids);
    close_all();
}

/* ---- stop strings ---- */

TEST(a_stop_string_is_never_shown) {
    static const char *const stops[] = {"###", "end", "", NULL};
    static const struct {
        const char *pieces, *text;
        size_t exact; /* ids that are kept as generated */
    } cases[] = {
        {S "hello|###|" S "world", "hello", 1},
        {S "hello|#|#|#|" S "world", "hello", 1},
        {S "hello|##|#|h", "hello", 1},
        {S "hello|#|##|h", "hello", 1},
        {S "hello|##|he|##|#", "hello##he", 3},
        {S "hello|" S "###|h", "hello ", 1}, /* begins inside a token */
        {S "hello|##|##|h", "hello", 1},     /* ends inside a token */
        {S "hello|" S "w|or|ld|en|d|h", "hello world", 4},
        {S "hello|" S "|end|h", "hello ", 2},
        {"###|h", "", 0},
        {S "###|h", "", 0},
        {"\xC3|###", BAD, 1},
        {"\xC3|\xA9|" S "###", "\xC3\xA9 ", 2},
    };
    tc_chat_params params = greedy_params(256);
    params.stop = stops;
    for (size_t k = 0; k < TC_COUNT(cases); k++) {
        REQUIRE(open_with("tiny.bin", &params));
        tc__ids first = rendered("one");
        say(cases[k].pieces);
        size_t generated = fake.script_len;
        int32_t said[16];
        memcpy(said, script, sizeof said);
        send_expect("one", cases[k].text, TC_STOP_STRING);
        CHECK_MSG(reply.reply_tokens <= generated, "case %zu", k);
        /* The next prompt goes on with the ids kept, and they spell the text. */
        tc__ids next = rendered("two");
        REQUIRE(next.len > first.len + cases[k].exact);
        CHECK_MSG(memcmp(next.data, first.data, first.len * sizeof(int32_t)) == 0, "case %zu", k);
        CHECK_MSG(memcmp(next.data + first.len, said, cases[k].exact * sizeof(int32_t)) == 0,
                  "case %zu", k);
        char text[256], expected[256];
        size_t len = 0;
        CHECK(tc_detokenize(model, next.data, next.len, text, sizeof text, &len, &err) == TC_OK);
        snprintf(expected, sizeof expected, "USER: one ASSISTANT:%s%sUSER: two ASSISTANT:",
                 said[0] < TINY_FIRST_PIECE && cases[k].exact ? "" : " ", cases[k].text);
        CHECK_MSG(len == strlen(expected) && memcmp(text, expected, len) == 0,
                  "case %zu: '%.*s', expected '%s'", k, (int)len, text, expected);
        say("</s>");
        send_expect("two", "", TC_STOP_ID);
        CHECK_MSG(reply.reused_tokens >= first.len + cases[k].exact, "case %zu: %zu", k,
                  reply.reused_tokens);
        tc__ids_free(&first);
        tc__ids_free(&next);
        close_all();
    }
}

TEST(the_model_file_s_stop_string_counts_too) {
    tiny_model options = tiny_model_default();
    options.stop_string = "world";
    REQUIRE(tiny_model_write(&options, in_folder("string.bin")) == 0);
    tc_chat_params params = greedy_params(256);
    static const char *const stops[] = {"hello", NULL};
    params.stop = stops;
    REQUIRE(open_with("string.bin", &params));
    say(S "the|" S "world");
    send_expect("one", "the ", TC_STOP_STRING);
    say(S "the|" S "hello");
    send_expect("one", "the ", TC_STOP_STRING);
    say(S "the|</s>");
    send_expect("one", "the", TC_STOP_ID);
    close_all();
}

/* The plain template: the reply follows the person's text directly and keeps its space. */
TEST(a_plain_completion_keeps_its_first_space) {
    tc_chat_params params = greedy_params(256);
    params.template_name = "plain";
    REQUIRE(open_with("tiny.bin", &params));
    say(S "world|</s>");
    send_expect("hello", " world", TC_STOP_ID);
    CHECK(prompt_is(NULL, "hello world"));
    close_all();
}

/* ---- cancelling ---- */

TEST(a_cancelled_reply_is_kept) {
    REQUIRE(open_chat(256));
    pieces p;
    memset(&p, 0, sizeof p);
    p.refuse_at = 2;
    say(S "hello|" S "world|" S "hello|</s>");
    CHECK(tc_chat_send(chat, "one", 3, collect, &p, &reply, &err) == TC_OK);
    CHECK(reply.stop == TC_STOP_CANCELLED && strcmp(reply.text, "hello world") == 0 &&
          p.calls == 2);
    CHECK(prompt_is(NULL, "USER: one ASSISTANT: hello world</s>"));

    memset(&p, 0, sizeof p);
    p.cancel = chat;
    p.cancel_at = 1;
    say(S "hello|" S "world|</s>");
    CHECK(tc_chat_send(chat, "two", 3, collect, &p, &reply, &err) == TC_OK);
    CHECK(reply.stop == TC_STOP_CANCELLED && strcmp(reply.text, "hello") == 0 && p.calls == 1);
    CHECK(tc_chat_turns(chat) == 2);

    static const char *const stops[] = {"lox", NULL}; /* holds back "lo" */
    tc_chat_params params = greedy_params(256);
    tc_chat *other;
    params.stop = stops;
    REQUIRE(tc_chat_open(model, &params, &other, &err) == TC_OK);
    memset(&p, 0, sizeof p);
    p.refuse_at = 1;
    say(S "hello|" S "world|</s>");
    CHECK(tc_chat_send(other, "one", 3, collect, &p, &reply, &err) == TC_OK);
    CHECK(p.calls == 1 && strcmp(p.text, "hel") == 0); /* not called again */
    CHECK(reply.stop == TC_STOP_CANCELLED && strcmp(reply.text, "hello") == 0);
    tc_chat_close(other);

    say(S "hello|" S "world|</s>"); /* the request is used up */
    send_expect("three", "hello world", TC_STOP_ID);

    memset(&p, 0, sizeof p); /* a request that meets the end of the reply is used up as well */
    p.cancel = chat;
    p.cancel_at = 1;
    tc_chat_set_max_tokens(chat, 1);
    say(S "hello|</s>");
    CHECK(tc_chat_send(chat, "four", 4, collect, &p, &reply, &err) == TC_OK);
    CHECK(reply.stop == TC_STOP_LENGTH);
    tc_chat_set_max_tokens(chat, 0);
    say(S "hello|</s>");
    send_expect("five", "hello", TC_STOP_ID);

    tc_chat_cancel(chat); /* before: the next one */
    tc_chat_cancel(NULL);
    say(S "hello|</s>");
    send_expect("six", "", TC_STOP_CANCELLED);
    CHECK(reply.reply_tokens == 0 && tc_chat_turns(chat) == 6);
    say(S "hello|</s>");
    CHECK(tc_chat_regenerate(chat, NULL, NULL, &reply, &err) == TC_OK);
    CHECK(strcmp(reply.text, "hello") == 0 && tc_chat_turns(chat) == 6);
    close_all();
}

static void cancel_prefill(void *user) {
    if (fake.evaluations == 1) tc_chat_cancel(user);
}

TEST(prefill_can_be_cancelled) {
    REQUIRE(open_chat(256));
    fake.on_eval = cancel_prefill;
    fake.user = chat;
    say(S "hello|</s>");
    send_expect("one", "", TC_STOP_CANCELLED);
    CHECK(tc_kv_length(tc_chat_session(chat)) == 0 && tc_chat_turns(chat) == 1);
    fake.on_eval = NULL;
    say(S "hello|</s>");
    send_expect("two", "hello", TC_STOP_ID);
    close_all();
}

/* ---- errors ---- */

TEST(after_an_error_the_conversation_is_as_before) {
    REQUIRE(open_chat(256));
    say(S "hello|</s>");
    send_expect("one", "hello", TC_STOP_ID);
    tc__ids before = rendered("two");
    for (int at = 1; at <= 3; at++)
        for (int again = 0; again < 2; again++) {
            say(S "hello|" S "world|</s>");
            fake.fail_at = at;
            fake.fail_code = TC_ERR_DEVICE;
            int code = again ? tc_chat_regenerate(chat, NULL, NULL, &reply, &err)
                             : tc_chat_send(chat, "two", 3, NULL, NULL, &reply, &err);
            CHECK(code == TC_ERR_DEVICE && err.code == TC_ERR_DEVICE);
            CHECK(reply.text == NULL && reply.prompt_tokens == 0);
            CHECK(tc_chat_turns(chat) == 1);
            CHECK(strcmp(tc_chat_reply_text(chat, 0, NULL), "hello") == 0);
            tc__ids after = rendered("two");
            CHECK(after.len == before.len &&
                  memcmp(after.data, before.data, after.len * sizeof(int32_t)) == 0);
            tc__ids_free(&after);
        }
    say(S "hello|" S "world|</s>");
    fake.nan_at = 9;
    fake.nan_from = 2;
    CHECK(tc_chat_send(chat, "two", 3, NULL, NULL, &reply, &err) == TC_ERR_NUMERIC);
    CHECK(strstr(err.message, "id 9") && tc_chat_turns(chat) == 1);
    fake.nan_from = 0;
    say(S "world|</s>");
    send_expect("two", "world", TC_STOP_ID);
    CHECK(reply.prompt_tokens == before.len);
    tc__ids_free(&before);
    close_all();
}

/* The tokenizer has </s>; other special tokens it lacks. */
TEST(a_template_for_another_tokenizer_is_refused) {
    static const struct {
        const char *name, *mark; /* NULL: it fits */
    } cases[] = {{"vicuna", NULL},          {"llama-2", NULL},          {"zephyr", NULL},
                 {"plain", NULL},           {"falcon", NULL},           {"mpt-chat", NULL},
                 {"tiny-chat", NULL},       {"chatml", "<|im_end|>"},   {"qwen3", "<|im_end|>"},
                 {"llama-3", "<|eot_id|>"}, {"deepseek-r1", "sentence"}};
    fake_reset();
    model = fake_model(in_folder("tiny.bin"));
    REQUIRE(model);
    tc_chat_params params = tc_chat_default_params();
    for (size_t i = 0; i < sizeof cases / sizeof *cases; i++) {
        params.template_name = cases[i].name;
        const int code = tc_chat_open(model, &params, &chat, &err);
        CHECK_MSG(code == (cases[i].mark ? TC_ERR_ARGUMENT : TC_OK), "%s: %d", cases[i].name, code);
        CHECK_MSG(!code || (strstr(err.message, cases[i].name) && !chat &&
                            strstr(err.message, cases[i].mark) && strstr(err.message, "tiny-chat")),
                  "%s", err.message);
        tc_chat_close(chat);
    }
    chat = NULL;
    close_all();
}

TEST(opening_a_chat_names_what_is_wrong) {
    fake_reset();
    model = fake_model(in_folder("tiny.bin"));
    REQUIRE(model);
    tc_chat_params params = tc_chat_default_params();
    params.template_name = "no-such";
    CHECK(tc_chat_open(model, &params, &chat, &err) == TC_ERR_ARGUMENT && !chat);
    CHECK_MSG(strstr(err.message, "no-such"), "%s", err.message);
    static const char *const stops[] = {"###", NULL};
    char known[sizeof err.message];
    memcpy(known, err.message, sizeof known);
    int names = 0;
    for (; tc_template_name(names); names++) {
        CHECK_MSG(strstr(known, tc_template_name(names)), "%s", known);
        params.template_name = tc_template_name(names);
        params.stop = stops;
        CHECK(tc_chat_open(model, &params, &chat, &err) == TC_OK);
        CHECK(strcmp(tc_chat_template(chat), tc_template_name(names)) == 0);
        tc_chat_close(chat);
    }
    params.stop = NULL;
    CHECK(names >= 4 && !tc_template_name(-1));
    params.template_name = "tiny-chat"; /* the model file's own */
    CHECK(tc_chat_open(model, &params, &chat, &err) == TC_OK);
    CHECK(strcmp(tc_chat_template(chat), "tiny-chat") == 0);
    tc_chat_close(chat);
    params = tc_chat_default_params();
    params.sampling.min_p = 2;
    CHECK(tc_chat_open(model, &params, &chat, &err) == TC_ERR_ARGUMENT);
    params = tc_chat_default_params();
    params.context_policy = 2;
    CHECK(tc_chat_open(model, &params, &chat, &err) == TC_ERR_ARGUMENT);
    params = tc_chat_default_params();
    params.ctx_size = 513;
    CHECK(tc_chat_open(model, &params, &chat, &err) == TC_ERR_ARGUMENT && !chat);
    fake.free_bytes = 0;
    CHECK(tc_chat_open(model, NULL, &chat, &err) == TC_ERR_MEMORY && !chat);
    fake_reset();
    CHECK(tc_chat_open(model, NULL, &chat, &err) == TC_OK && fake.caches == 1);
    CHECK(strcmp(tc_chat_template(chat), "tiny-chat") == 0);
    close_all();
    CHECK(fake.caches == 0);
    tc_chat_close(NULL);
}

/* ---- a full context ---- */

TEST(a_prompt_longer_than_the_context_is_an_error) {
    char text[200];
    for (int policy = 0; policy < 2; policy++) {
        tc_chat_params params = greedy_params(64);
        params.context_policy = policy ? TC_CONTEXT_STOP : TC_CONTEXT_SHIFT;
        REQUIRE(open_with("tiny.bin", &params));
        say(S "hello|</s>");
        send_expect("one", "hello", TC_STOP_ID);
        memset(text, 'x', sizeof text);
        say(S "hello|</s>");
        CHECK(tc_chat_send(chat, text, 100, NULL, NULL, &reply, &err) == TC_ERR_CONTEXT);
        CHECK(fake.evaluations == 0 && tc_chat_turns(chat) == 1);
        int tokens = 0, ctx = 0;
        CHECK_MSG(sscanf(err.message, "the prompt has %d tokens, the context %d", &tokens, &ctx) ==
                      2,
                  "%s", err.message);
        size_t alone = 0, with = 0;
        tc_chat_render(chat, text, 100, NULL, 0, &with, &err);
        CHECK(tc_chat_undo(chat) == 1);
        tc_chat_render(chat, text, 100, NULL, 0, &alone, &err);
        CHECK_MSG(ctx == 64 && (size_t)tokens == (policy ? with : alone), "%d of %d", tokens, ctx);
        /* Exactly the context: one token, and no place to evaluate it. */
        size_t fits = 100 - (alone - 64);
        say(S "hello|</s>");
        CHECK(tc_chat_send(chat, text, fits + 1, NULL, NULL, &reply, &err) == TC_ERR_CONTEXT);
        CHECK(tc_chat_send(chat, text, fits, NULL, NULL, &reply, &err) == TC_OK);
        CHECK(reply.prompt_tokens == 64 && reply.reply_tokens == 1);
        CHECK(reply.stop == TC_STOP_CONTEXT && strcmp(reply.text, "hello") == 0);
        close_all();
    }
}

/* Turn after turn in a small context, with the rule of tinychat.h worked out by rendering. */
TEST(a_full_context_drops_the_oldest_turns) {
    enum { CTX = 160 };
    static const int limits[] = {0, 10, 1000};
    for (size_t k = 0; k < TC_COUNT(limits); k++) {
        tc_chat_params params = greedy_params(CTX);
        params.system = "the world";
        params.max_tokens = limits[k];
        REQUIRE(open_with("tiny.bin", &params));
        size_t room = limits[k] && limits[k] < CTX / 4 ? (size_t)limits[k] : CTX / 4;
        int shifts = 0, sent = 0;
        size_t dropped = 0;
        for (; sent < 60; sent++) {
            char text[32];
            size_t turns = tc_chat_turns(chat), n = 0, expected = 0;
            snprintf(text, sizeof text, "hello %d %.*s", sent, sent * 7 % 13, "zzzzzzzzzzzzz");
            /* What should be dropped: render the rest in a chat of its own. */
            tc_chat_render(chat, text, strlen(text), NULL, 0, &n, &err);
            if (n + room > CTX) {
                tc_chat *other;
                REQUIRE(tc_chat_save(chat, in_folder("shift.txt"), &err) == TC_OK);
                REQUIRE(tc_chat_open(model, &params, &other, &err) == TC_OK);
                while (n + room + CTX / 4 > CTX && expected < turns) {
                    tc_chat_reset(other);
                    for (size_t i = ++expected; i < turns; i++)
                        tc_chat_add_turn(other, tc_chat_user_text(chat, i, NULL),
                                         strlen(tc_chat_user_text(chat, i, NULL)),
                                         tc_chat_reply_text(chat, i, NULL),
                                         strlen(tc_chat_reply_text(chat, i, NULL)), &err);
                    tc_chat_render(other, text, strlen(text), NULL, 0, &n, &err);
                }
                tc_chat_close(other);
            }
            say(S "hello|" S "world|</s>");
            send_expect(text, "hello world", TC_STOP_ID);
            CHECK_MSG((size_t)reply.dropped_turns == expected && reply.prompt_tokens == n,
                      "turn %d: dropped %d, expected %zu; prompt %zu, expected %zu", sent,
                      reply.dropped_turns, expected, reply.prompt_tokens, n);
            CHECK(tc_chat_turns(chat) == turns - expected + 1);
            CHECK(reply.prompt_tokens + room <= CTX);
            dropped += expected;
            shifts += expected > 0;
            /* The oldest turn left is the one after those dropped; the system text is in front. */
            snprintf(text, sizeof text, "hello %zu ", dropped);
            CHECK(strncmp(tc_chat_user_text(chat, 0, NULL), text, strlen(text)) == 0);
            tc__ids ids = rendered(NULL);
            char start[64];
            size_t len;
            snprintf(start, sizeof start,
                     "the world USER: %s ASSISTANT:", tc_chat_user_text(chat, 0, NULL));
            int32_t head[64];
            tc_tokenize(model, start, strlen(start), TC_TOKENIZE_BOS, head, 64, &len, &err);
            CHECK(ids.len > len && memcmp(ids.data, head, len * sizeof *head) == 0);
            tc__ids_free(&ids);
            if (expected == 0 && sent > 0) CHECK(reply.reused_tokens + 30 > reply.prompt_tokens);
        }
        CHECK_MSG(shifts > 2 && shifts < sent / 2, "%d shifts in %d turns", shifts, sent);
        close_all();
    }
}

TEST(a_large_turn_gets_what_room_there_is) {
    char text[200];
    memset(text, 'x', sizeof text);
    REQUIRE(open_chat(128));
    for (int i = 0; i < 3; i++) {
        say(S "hello|</s>");
        send_expect("one", "hello", TC_STOP_ID);
    }
    say(S "hello|</s>"); /* neither a quarter nor an eighth would be left: all turns go */
    CHECK(tc_chat_send(chat, text, 90, NULL, NULL, &reply, &err) == TC_OK);
    CHECK_MSG(reply.dropped_turns == 3 && tc_chat_turns(chat) == 1, "%d", reply.dropped_turns);
    CHECK(strcmp(reply.text, "hello") == 0);
    close_all();
}

TEST(without_shift_the_conversation_stops) {
    tc_chat_params params = greedy_params(128);
    params.context_policy = TC_CONTEXT_STOP;
    REQUIRE(open_with("tiny.bin", &params));
    int code = TC_OK, sent = 0;
    for (; sent < 20 && !code; sent += !code) {
        size_t n = 0;
        tc_chat_render(chat, "hello", 5, NULL, 0, &n, &err);
        say(S "hello|</s>");
        code = tc_chat_send(chat, "hello", 5, NULL, NULL, &reply, &err);
        CHECK((code == TC_OK) == (n <= 128));
    }
    CHECK(code == TC_ERR_CONTEXT && sent > 3 && tc_chat_turns(chat) == (size_t)sent);
    close_all();
}

/* ---- the conversation ---- */

TEST(regenerate_replaces_the_last_reply) {
    tc_chat_params params = greedy_params(256);
    params.sampling.temperature = 1;
    params.sampling.top_k = 0;
    params.sampling.top_p = 1;
    params.sampling.seed = 5;
    params.max_tokens = 12;
    REQUIRE(open_with("tiny.bin", &params)); /* hashes: ids depend on the whole context */
    CHECK(tc_chat_regenerate(chat, NULL, NULL, &reply, &err) == TC_ERR_ARGUMENT);
    CHECK(tc_chat_send(chat, "one", 3, NULL, NULL, &reply, &err) == TC_OK);
    size_t prompt = reply.prompt_tokens;
    tc__ids first = rendered(NULL);
    CHECK(tc_chat_regenerate(chat, NULL, NULL, &reply, &err) == TC_OK);
    CHECK(reply.prompt_tokens == prompt && reply.reused_tokens == prompt - 1);
    CHECK(tc_chat_turns(chat) == 1 && strcmp(tc_chat_user_text(chat, 0, NULL), "one") == 0);
    tc__ids second = rendered(NULL);
    CHECK(first.len != second.len || memcmp(first.data, second.data, 4 * first.len) != 0);

    tc_chat *again; /* the same seed from the start: the same two replies */
    REQUIRE(tc_chat_open(model, &params, &again, &err) == TC_OK);
    for (int i = 0; i < 2; i++) {
        int32_t ids[300];
        size_t n = 0;
        const tc__ids *expected = i ? &second : &first;
        CHECK((i ? tc_chat_regenerate(again, NULL, NULL, NULL, &err)
                 : tc_chat_send(again, "one", 3, NULL, NULL, NULL, &err)) == TC_OK);
        CHECK(tc_chat_render(again, NULL, 0, ids, 300, &n, &err) == TC_OK);
        CHECK(n == expected->len && memcmp(ids, expected->data, n * sizeof *ids) == 0);
    }
    tc_chat_close(again);
    tc__ids_free(&first);
    tc__ids_free(&second);
    close_all();
}

TEST(history_can_be_edited) {
    REQUIRE(open_chat(256));
    CHECK(tc_chat_undo(chat) == 0);
    CHECK(tc_chat_add_turn(chat, "one", 3, "hello", 5, &err) == TC_OK);
    CHECK(tc_chat_add_turn(chat, "two", 3, "world", 5, &err) == TC_OK);
    CHECK(prompt_is("three", "USER: one ASSISTANT: hello</s>USER: two ASSISTANT: world</s>"
                             "USER: three ASSISTANT:"));
    say(S "hello|</s>");
    send_expect("three", "hello", TC_STOP_ID);
    CHECK(tc_chat_undo(chat) == 1 && tc_chat_undo(chat) == 1 && tc_chat_turns(chat) == 1);
    CHECK(tc_chat_user_text(chat, 1, NULL) == NULL && tc_chat_reply_text(chat, 1, NULL) == NULL);
    CHECK(tc_chat_set_system(chat, "the end", &err) == TC_OK);
    CHECK(strcmp(tc_chat_system(chat), "the end") == 0);
    CHECK(prompt_is("x", "the end USER: one ASSISTANT: hello</s>USER: x ASSISTANT:"));
    say(S "hello|</s>");
    send_expect("x", "hello", TC_STOP_ID);
    CHECK(reply.reused_tokens <= 2); /* BOS, perhaps a common first piece */
    CHECK(tc_chat_set_system(chat, NULL, &err) == TC_OK && *tc_chat_system(chat) == 0);
    tc_chat_reset(chat);
    CHECK(tc_chat_turns(chat) == 0 && prompt_is("x", "USER: x ASSISTANT:"));
    CHECK(tc_chat_regenerate(chat, NULL, NULL, NULL, &err) == TC_ERR_ARGUMENT);
    close_all();
}

TEST(the_system_text_has_a_default) {
    tiny_model options = tiny_model_default();
    options.system = "the world";
    REQUIRE(tiny_model_write(&options, in_folder("system.bin")) == 0);
    tc_chat_params params = greedy_params(256);
    REQUIRE(open_with("system.bin", &params));
    CHECK(strcmp(tc_chat_system(chat), "the world") == 0);
    CHECK(prompt_is("x", "the world USER: x ASSISTANT:"));
    CHECK(tc_chat_set_system(chat, "", &err) == TC_OK && *tc_chat_system(chat) == 0);
    CHECK(prompt_is("x", "USER: x ASSISTANT:"));
    CHECK(tc_chat_set_system(chat, NULL, &err) == TC_OK);
    CHECK(prompt_is("x", "the world USER: x ASSISTANT:"));
    close_all();
}

TEST(render_counts_before_it_writes) {
    REQUIRE(open_chat(256));
    int32_t ids[64];
    size_t n = 0, again = 0;
    CHECK(tc_chat_render(chat, "one", 3, NULL, 0, &n, &err) == TC_OK && n > 3 && n <= 64);
    CHECK(tc_chat_render(chat, "one", 3, ids, n - 1, &again, &err) == TC_OK && again == n);
    CHECK(tc_chat_render(chat, "one", 3, ids, n, &again, &err) == TC_OK && again == n);
    CHECK(ids_are(ids, n, "USER: one ASSISTANT:"));
    close_all();
}

TEST(sampling_can_be_changed) {
    tc_chat_params params = tc_chat_default_params();
    params.sampling.seed = 3;
    params.max_tokens = 10;
    REQUIRE(open_with("tiny.bin", &params));
    tc_sampling s = tc_chat_get_sampling(chat);
    CHECK(s.seed == 3 && s.temperature == 0.7f && s.top_k == 40);
    s.temperature = -1;
    CHECK(tc_chat_set_sampling(chat, &s, &err) == TC_ERR_ARGUMENT);
    CHECK(tc_chat_get_sampling(chat).temperature == 0.7f);
    char texts[4][512];
    for (int i = 0; i < 4; i++) { /* one sequence of random numbers; a new seed restarts it */
        tc_chat_reset(chat);
        s = tc_chat_get_sampling(chat);
        s.temperature = 2;
        if (i == 2) s.seed = 4;
        if (i == 3) s.seed = 3;
        CHECK(tc_chat_set_sampling(chat, &s, &err) == TC_OK);
        CHECK(tc_chat_send(chat, "one", 3, NULL, NULL, &reply, &err) == TC_OK);
        snprintf(texts[i], sizeof texts[i], "%s", reply.text);
    }
    CHECK(strcmp(texts[0], texts[1]) != 0 && strcmp(texts[0], texts[2]) != 0);
    CHECK(strcmp(texts[0], texts[3]) == 0);
    s.seed = TC_SEED_RANDOM;
    CHECK(tc_chat_set_sampling(chat, &s, &err) == TC_OK);
    CHECK(tc_chat_get_sampling(chat).seed != TC_SEED_RANDOM);
    close_all();
}

/* ---- the conversation file ---- */

static size_t read_file(const char *path, char *text, size_t size) {
    FILE *file = fopen(path, "rb");
    size_t len = file ? fread(text, 1, size - 1, file) : 0;
    if (file) fclose(file);
    text[len] = 0;
    return len;
}

static void write_file(const char *path, const char *text, size_t len) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(text, 1, len, file) == len);
    if (file) fclose(file);
}

/* Three turns: ended by the stop id, by a limit, and without ids. */
static void converse(void) {
    static const char odd[] = "line\nreply 3\n\0x";
    say(S "|h|e|llo|</s>");
    send_expect("one", "hello", TC_STOP_ID);
    tc_chat_set_max_tokens(chat, 2);
    say(S "world|\xC3");
    CHECK(tc_chat_send(chat, odd, sizeof odd - 1, NULL, NULL, &reply, &err) == TC_OK);
    tc_chat_set_max_tokens(chat, 0);
    CHECK(tc_chat_add_turn(chat, "", 0, "said", 4, &err) == TC_OK);
}

TEST(a_saved_conversation_comes_back) {
    for (int own = 0; own < 2; own++) {
        REQUIRE(open_chat(256));
        if (own) CHECK(tc_chat_set_system(chat, "the\nworld", &err) == TC_OK);
        converse();
        tc__ids before = rendered("next");
        CHECK(tc_chat_save(chat, in_folder("talk.txt"), &err) == TC_OK);
        tc_chat_reset(chat);
        CHECK(tc_chat_set_system(chat, "other", &err) == TC_OK);
        CHECK(tc_chat_load(chat, in_folder("talk.txt"), &err) == TC_OK);
        CHECK(strcmp(tc_chat_system(chat), own ? "the\nworld" : "") == 0);
        CHECK(tc_chat_turns(chat) == 3);
        size_t len = 0;
        CHECK(memcmp(tc_chat_user_text(chat, 1, &len), "line\nreply 3\n\0x", 15) == 0 && len == 15);
        CHECK(strcmp(tc_chat_reply_text(chat, 1, &len), "world" BAD) == 0);
        tc__ids after = rendered("next");
        CHECK(after.len == before.len && memcmp(after.data, before.data, 4 * after.len) == 0);
        size_t held = tc_kv_length(tc_chat_session(chat));
        say("</s>");
        send_expect("next", "", TC_STOP_ID);
        CHECK(reply.reused_tokens == held); /* the KV cache still fits */
        tc__ids_free(&before);
        tc__ids_free(&after);
        close_all();
    }
}

/* docs/format.md, "The conversation file", to the byte. */
TEST(the_file_is_as_documented) {
    REQUIRE(open_chat(256));
    CHECK(tc_chat_set_system(chat, "sys", &err) == TC_OK);
    say(S "hello|</s>");
    send_expect("one", "hello", TC_STOP_ID);
    CHECK(tc_chat_add_turn(chat, "a\nb", 3, "", 0, &err) == TC_OK);
    CHECK(tc_chat_save(chat, in_folder("talk.txt"), &err) == TC_OK);
    char text[1024], expected[1024];
    read_file(in_folder("talk.txt"), text, sizeof text);
    snprintf(expected, sizeof expected,
             "tinychat conversation 1\nmodel %016llx\nsystem 3\nsys\nuser 3\none\nreply 5\nhello\n"
             "ids 2 1\n%d 2\nuser 3\na\nb\nreply 0\n\n",
             (unsigned long long)model->file.fingerprint, tiny_id(S "hello"));
    CHECK_MSG(strcmp(text, expected) == 0, "'%s', expected '%s'", text, expected);
    close_all();
}

TEST(another_model_s_ids_are_not_used) {
    tiny_model options = tiny_model_default();
    options.seed = 77;
    REQUIRE(tiny_model_write(&options, in_folder("other.bin")) == 0);
    REQUIRE(open_chat(256));
    converse();
    CHECK(tc_chat_save(chat, in_folder("talk.txt"), &err) == TC_OK);
    close_all();
    tc_chat_params params = greedy_params(256);
    REQUIRE(open_with("other.bin", &params));
    CHECK(tc_chat_load(chat, in_folder("talk.txt"), &err) == TC_OK && tc_chat_turns(chat) == 3);
    CHECK(tc_chat_undo(chat) && tc_chat_undo(chat));
    CHECK(prompt_is(NULL, "USER: one ASSISTANT: hello</s>")); /* tokenized from its text */
    close_all();
}

TEST(files_that_cannot_be_are_reported) {
    REQUIRE(open_chat(256));
    CHECK(tc_chat_add_turn(chat, "one", 3, "hello", 5, &err) == TC_OK);
    CHECK(tc_chat_save(chat, in_folder("no-folder/talk.txt"), &err) == TC_ERR_IO);
    CHECK_MSG(strstr(err.message, "no-folder"), "%s", err.message);
    CHECK(tc_chat_load(chat, in_folder("no-file.txt"), &err) == TC_ERR_IO);
    CHECK(tc_chat_load(chat, folder, &err) == TC_ERR_IO);
    /* escape, C1 control, right-to-left override and isolate, but not the letters beside them */
    const char *odd = in_folder("a\033b\302\233c\342\200\256d\342\201\246\303\251\342\200\245.txt");
    CHECK(tc_chat_load(chat, odd, &err) == TC_ERR_IO);
    CHECK_MSG(strstr(err.message, "/a?b?c?d?\303\251\342\200\245.txt: "), "%s", err.message);
    CHECK(tc_chat_turns(chat) == 1);
    char model_line[64], text[512];
    snprintf(model_line, sizeof model_line, "model %016llx\n",
             (unsigned long long)model->file.fingerprint);
    static const struct {
        const char *text; /* % stands for the first line and the model's line, ~ for NUL */
        int line;         /* 0: good */
    } cases[] = {
        {"", 1},
        {"tinychat conversation 2\n", 1},
        {"tinychat conversation 1", 1},
        {"tinychat conversation 1\n", 2},
        {"tinychat conversation 1\nmodel 12345\n", 2},
        {"tinychat conversation 1\nmodel 0123456789ABCDEF\n", 2},
        {"tinychat conversation 1\nmodel 0123456789abcdef0\n", 2},
        {"tinychat conversation 1\nmodel 0123456789abcdef\n", 0},
        {"%", 0},
        {"%system 2\nab\n", 0},
        {"%system 3\na~b\n", 5},
        {"%system -1\n\n", 3},
        {"%system 99999999999999999999999\n\n", 3},
        {"%system 18446744073709551615\n\n", 3},
        {"%system 3\nab", 4},
        {"%system 1\nab\n", 4},
        {"%hello\n", 3},
        {"%user 1\na\n", 5},
        {"%user 1\na\nreply 1\nb\n", 0},
        {"%user 1\na\nreply 1\nb\n\n", 7},
        {"%user 1 \na\nreply 1\nb\n", 3},
        {"%user 1\r\na\r\n", 3},
        {"%user 1\na\nreply 1\nb\nids 1 0\n5\n", 0},
        {"%user 1\na\nreply 1\nb\nids 2 1\n5 2\n", 0},
        {"%user 1\na\nreply 1\nb\nids 2 1\n2 5\n", 8},
        {"%user 1\na\nreply 1\nb\nids 0 0\n\n", 7},
        {"%user 1\na\nreply 1\nb\nids 1 2\n2\n", 7},
        {"%user 1\na\nreply 1\nb\nids 1\n2\n", 7},
        {"%user 1\na\nreply 1\nb\nids 2 0\n5\n", 8},
        {"%user 1\na\nreply 1\nb\nids 2 0\n5  6\n", 8},
        {"%user 1\na\nreply 1\nb\nids 2 0\n5 6 7\n", 8},
        {"%user 1\na\nreply 1\nb\nids 1 0\n100000\n", 8},
        {"%user 1\na\nreply 1\nb\nids 1 0\n-5\n", 8},
        {"%user 1\na\nreply 1\nb\nids 4000000000 0\n5\n", 7},
        {"%reply 1\nb\nuser 1\na\n", 3},
        {"%user 1\na\nreply 1\nb\nsystem 1\na\n", 7},
    };
    for (size_t k = 0; k < TC_COUNT(cases); k++) {
        const char *rest = cases[k].text;
        bool head = *rest == '%';
        size_t at =
            head ? (size_t)snprintf(text, sizeof text, "tinychat conversation 1\n%s", model_line)
                 : 0;
        size_t len = strlen(rest + head);
        memcpy(text + at, rest + head, len);
        if (memchr(text, '~', at + len)) *(char *)memchr(text, '~', at + len) = 0;
        write_file(in_folder("case.txt"), text, at + len);
        tc_chat_reset(chat);
        CHECK(tc_chat_add_turn(chat, "one", 3, "hello", 5, &err) == TC_OK);
        int code = tc_chat_load(chat, in_folder("case.txt"), &err);
        CHECK_MSG(code == (cases[k].line ? TC_ERR_FORMAT : TC_OK), "case %zu: %s", k, err.message);
        if (!code) continue;
        char where[32];
        snprintf(where, sizeof where, "case.txt: line %d ", cases[k].line);
        CHECK_MSG(strstr(err.message, where), "case %zu: %s", k, err.message);
        CHECK(tc_chat_turns(chat) == 1 && strcmp(tc_chat_user_text(chat, 0, NULL), "one") == 0);
    }
    close_all();
}

TEST(damaged_files_do_no_harm) {
    REQUIRE(open_chat(256));
    CHECK(tc_chat_set_system(chat, "the world", &err) == TC_OK);
    converse();
    CHECK(tc_chat_save(chat, in_folder("talk.txt"), &err) == TC_OK);
    char good[1024], bad[1024];
    size_t len = read_file(in_folder("talk.txt"), good, sizeof good), whole = 0;
    for (size_t cut = 0; cut <= len; cut++) {
        tc_chat_reset(chat);
        write_file(in_folder("cut.txt"), good, cut);
        int code = tc_chat_load(chat, in_folder("cut.txt"), &err);
        whole += code == TC_OK;
        if (code) CHECK(code == TC_ERR_FORMAT && tc_chat_turns(chat) == 0);
    }
    /* After the head, the system text, each turn, and a reply whose ids are missing (twice). */
    CHECK_MSG(whole == 7, "%zu prefixes are whole", whole);
    uint64_t state = 5;
    for (int round = 0; round < 2000; round++) {
        memcpy(bad, good, len);
        for (uint32_t n = 1 + tiny_random(&state) % 3; n; n--)
            bad[tiny_random(&state) % len] =
                (char)(tiny_random(&state) % 3 ? '0' + tiny_random(&state) % 10
                                               : tiny_random(&state) % 256);
        write_file(in_folder("flip.txt"), bad, len);
        int code = tc_chat_load(chat, in_folder("flip.txt"), &err);
        CHECK(code == TC_OK || code == TC_ERR_FORMAT);
        size_t n;
        if (!code) CHECK(tc_chat_render(chat, "x", 1, NULL, 0, &n, &err) == TC_OK);
    }
    close_all();
}

TEST(saving_replaces_a_file_only_when_it_is_complete) {
    REQUIRE(open_chat(256));
    write_file(in_folder("talk.txt"), "old", 3);
    CHECK(tc_chat_save(chat, in_folder("talk.txt"), &err) == TC_OK);
    char text[256];
    read_file(in_folder("talk.txt"), text, sizeof text);
    CHECK(strncmp(text, "tinychat conversation 1\n", 24) == 0);
    /* what is no regular file stays what it is */
    CHECK(mkdir(in_folder("busy"), 0700) == 0);
    CHECK(tc_chat_save(chat, in_folder("busy"), &err) == TC_ERR_IO);
    CHECK(rmdir(in_folder("busy")) == 0);
    CHECK(mkfifo(in_folder("pipe"), 0600) == 0);
    CHECK(tc_chat_save(chat, in_folder("pipe"), &err) == TC_ERR_IO);
    CHECK(strstr(err.message, "not a regular file") && unlink(in_folder("pipe")) == 0);
    close_all();
}

static int mode_of(const char *name) {
    struct stat info;
    return stat(in_folder(name), &info) ? -1 : (int)(info.st_mode & 0777);
}

TEST(a_saved_file_is_as_private_as_before_and_links_stay) {
    char text[256];
    struct stat info;
    REQUIRE(open_chat(256));
    mode_t mask = umask(022);
    write_file(in_folder("private.txt"), "old", 3);
    for (int mode = 0600; mode <= 0666; mode += 066) { /* 0666: more than umask grants */
        CHECK(chmod(in_folder("private.txt"), (mode_t)mode) == 0);
        CHECK(tc_chat_save(chat, in_folder("private.txt"), &err) == TC_OK);
        CHECK_MSG(mode_of("private.txt") == mode, "%o", (unsigned)mode_of("private.txt"));
    }
    CHECK(tc_chat_save(chat, in_folder("new.txt"), &err) == TC_OK && mode_of("new.txt") == 0644);
    umask(mask);

    write_file(in_folder("private.txt"), "old", 3);
    CHECK(symlink("private.txt", in_folder("link.txt")) == 0);
    CHECK(tc_chat_save(chat, in_folder("link.txt"), &err) == TC_OK);
    CHECK(lstat(in_folder("link.txt"), &info) == 0 && S_ISLNK(info.st_mode));
    read_file(in_folder("private.txt"), text, sizeof text);
    CHECK(strncmp(text, "tinychat conversation 1\n", 24) == 0);
    close_all();
}

/* ---- on the CPU ---- */

static tc_chat *cpu_chat(tc_model *on, uint64_t seed) {
    tc_chat_params params = tc_chat_default_params();
    tc_chat *opened;
    params.sampling.seed = seed;
    params.max_tokens = 14;
    if (tc_chat_open(on, &params, &opened, NULL)) return NULL;
    return opened;
}

static tc_model *cpu_model(const char *file) {
    tc_model_params params = tc_model_default_params();
    tc_model *opened;
    params.threads = 2;
    if (tc_model_open(in_folder(file), &params, &opened, &err))
        fprintf(stderr, "%s\n", err.message);
    return opened;
}

/* What the KV cache holds after several turns gives the very logits of a fresh prefill. */
TEST(reuse_is_bit_equal_to_a_fresh_prefill) {
    static const char *const files[] = {"tiny.bin", "half.bin"};
    for (size_t k = 0; k < TC_COUNT(files); k++) {
        model = cpu_model(files[k]);
        REQUIRE(model);
        chat = cpu_chat(model, 21);
        REQUIRE(chat);
        tc_session *session = tc_chat_session(chat), *fresh;
        REQUIRE(tc_session_open(model, NULL, &fresh, &err) == TC_OK);
        size_t bytes = (size_t)tc_model_get_info(model).vocab_size * sizeof(float);
        for (int turn = 0; turn < 4; turn++) {
            if (turn == 3) tc_chat_undo(chat);
            REQUIRE(tc_chat_send(chat, "hello world", 11, NULL, NULL, &reply, &err) == TC_OK);
            CHECK(turn == 0 || reply.reused_tokens > 10);
            tc_kv_truncate(fresh, 0);
            REQUIRE(tc_eval(fresh, tc_kv_ids(session), tc_kv_length(session), &err) == TC_OK);
            CHECK(memcmp(tc_logits(fresh), tc_logits(session), bytes) == 0);
        }
        tc_session_close(fresh);
        close_all();
    }
}

typedef struct talker {
    tc_model *model;
    uint64_t seed;
    char text[2048];
} talker;

static void *talk(void *user) {
    talker *t = user;
    tc_chat *own = cpu_chat(t->model, t->seed);
    for (int turn = 0; own && turn < 3; turn++) {
        tc_reply r;
        if (tc_chat_send(own, "hello", 5, NULL, NULL, &r, NULL)) break;
        snprintf(t->text + strlen(t->text), sizeof t->text - strlen(t->text), "%s|", r.text);
    }
    tc_chat_close(own);
    return NULL;
}

TEST(chats_in_threads_do_not_disturb_each_other) {
    talker alone[2], together[2];
    pthread_t threads[2];
    model = cpu_model("tiny.bin");
    REQUIRE(model);
    memset(alone, 0, sizeof alone);
    for (int i = 0; i < 2; i++) {
        alone[i].model = model;
        alone[i].seed = (uint64_t)i + 1;
    }
    memcpy(together, alone, sizeof together);
    for (int i = 0; i < 2; i++) talk(&alone[i]);
    for (int i = 0; i < 2; i++) REQUIRE(!pthread_create(&threads[i], NULL, talk, &together[i]));
    for (int i = 0; i < 2; i++) pthread_join(threads[i], NULL);
    for (int i = 0; i < 2; i++) {
        CHECK(*alone[i].text && strcmp(alone[i].text, together[i].text) == 0);
    }
    CHECK(strcmp(alone[0].text, alone[1].text) != 0);
    close_all();
}

static int prepare(void) {
    tiny_model options = tiny_model_default();
    if (!program_folder(folder) || tiny_model_write(&options, in_folder("tiny.bin"))) return -1;
    options.group_size = 0;
    return tiny_model_write(&options, in_folder("half.bin"));
}

/* clang-format off */
TEST_MAIN(
    if (prepare()) return 1;
    RUN(a_reply_is_streamed_and_kept)
    RUN(a_further_turn_evaluates_only_what_is_new)
    RUN(generated_ids_are_never_tokenized_again)
    RUN(any_stop_id_ends_a_reply_and_special_tokens_have_no_text)
    RUN(characters_arrive_whole)
    RUN(length_limits_end_a_reply)
    RUN(odd_texts_are_allowed)
    RUN(a_stop_string_is_never_shown)
    RUN(the_model_file_s_stop_string_counts_too)
    RUN(a_plain_completion_keeps_its_first_space)
    RUN(a_cancelled_reply_is_kept)
    RUN(prefill_can_be_cancelled)
    RUN(after_an_error_the_conversation_is_as_before)
    RUN(a_template_for_another_tokenizer_is_refused)
                                RUN(opening_a_chat_names_what_is_wrong)
    RUN(a_prompt_longer_than_the_context_is_an_error)
    RUN(a_full_context_drops_the_oldest_turns)
    RUN(a_large_turn_gets_what_room_there_is)
    RUN(without_shift_the_conversation_stops)
    RUN(regenerate_replaces_the_last_reply)
    RUN(history_can_be_edited)
    RUN(the_system_text_has_a_default)
    RUN(render_counts_before_it_writes)
    RUN(sampling_can_be_changed)
    RUN(a_saved_conversation_comes_back)
    RUN(the_file_is_as_documented)
    RUN(another_model_s_ids_are_not_used)
    RUN(files_that_cannot_be_are_reported)
    RUN(damaged_files_do_no_harm)
    RUN(saving_replaces_a_file_only_when_it_is_complete)
    RUN(a_saved_file_is_as_private_as_before_and_links_stay)
    RUN(reuse_is_bit_equal_to_a_fresh_prefill)
    RUN(chats_in_threads_do_not_disturb_each_other)
    program_remove_folder(folder);)
