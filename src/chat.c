#include "session.h"

/* One finished turn, owned. */
typedef struct chat_turn {
    tc__buf user, reply; /* data is never NULL */
    tc__ids ids;         /* the reply as generated; empty: it is encoded from its text */
    bool ended;          /* the last of ids is the stop id that ended the reply */
} chat_turn;

typedef struct chat_turns {
    chat_turn *data;
    size_t len, cap;
} chat_turns;

struct tc_chat {
    tc_model *model;
    tc_session *session;
    const tc__template *chat_template; /* the model's or a built-in one */
    char *system;                      /* NULL: the template's own */
    char **stops;                      /* NULL-terminated: the template's and the caller's */
    tc_sampling sampling;              /* its seed is the session's */
    int max_tokens, context_policy;
    chat_turns turns;
};

/* ---- turns ---- */

static void chat_turn_free(chat_turn *turn) {
    tc__buf_free(&turn->user);
    tc__buf_free(&turn->reply);
    tc__ids_free(&turn->ids);
    memset(turn, 0, sizeof *turn);
}

/* Texts of a new turn; false when memory is short. */
static bool chat_turn_make(chat_turn *turn, const char *user, size_t user_len, const char *reply,
                           size_t reply_len) {
    memset(turn, 0, sizeof *turn);
    tc__buf_add(&turn->user, user, user_len);
    tc__buf_add(&turn->reply, reply, reply_len);
    return !turn->user.failed && !turn->reply.failed;
}

/* Room for one more turn, so that a later chat_turns_push cannot fail. */
static bool chat_turns_reserve(chat_turns *turns) {
    size_t bytes;
    if (turns->len < turns->cap) return true;
    size_t cap = turns->cap + turns->cap / 2 + 8;
    if (!tc__mul(cap, sizeof *turns->data, &bytes)) return false;
    chat_turn *data = realloc(turns->data, bytes);
    if (!data) return false;
    turns->data = data;
    turns->cap = cap;
    return true;
}

/* Takes over what `turn` owns. */
static void chat_turns_push(chat_turns *turns, chat_turn *turn) {
    turns->data[turns->len++] = *turn;
    memset(turn, 0, sizeof *turn);
}

/* Removes turns [from, to). */
static void chat_turns_remove(chat_turns *turns, size_t from, size_t to) {
    for (size_t i = from; i < to; i++) chat_turn_free(&turns->data[i]);
    if (to > from && to < turns->len)
        memmove(turns->data + from, turns->data + to, (turns->len - to) * sizeof *turns->data);
    turns->len -= to - from;
}

static void chat_turns_free(chat_turns *turns) {
    chat_turns_remove(turns, 0, turns->len);
    free(turns->data);
    memset(turns, 0, sizeof *turns);
}

/* ---- opening and closing ---- */

tc_chat_params tc_chat_default_params(void) {
    tc_chat_params params = {-1, NULL, NULL, tc_default_sampling(), 0, TC_CONTEXT_SHIFT, NULL};
    return params;
}

const char *tc_template_name(int index) {
    const tc__template *found = index < 0 ? NULL : tc__template_at(index);
    return found ? found->name : NULL;
}

static int chat_find_template(tc_chat *chat, const char *name, tc_error *err) {
    chat->chat_template = name ? tc__template_find(name) : &chat->model->chat_template;
    if (!chat->chat_template && strcmp(name, chat->model->chat_template.name) == 0)
        chat->chat_template = &chat->model->chat_template;
    if (chat->chat_template) return TC_OK;
    tc__buf known = {NULL, 0, 0, false};
    for (int i = 0; tc_template_name(i); i++)
        tc__buf_printf(&known, "%s%s", i ? ", " : "", tc_template_name(i));
    int code = tc__fail(err, TC_ERR_ARGUMENT, "unknown chat template '%s'; known: %s", name,
                        known.failed ? "(out of memory)" : known.data);
    tc__buf_free(&known);
    return code;
}

/* A template that was made for another tokenizer: the model cannot say that its reply is over. */
static int chat_check_template(const tc_chat *chat, tc_error *err) {
    size_t len;
    int32_t id;
    const tc__template *own = &chat->model->chat_template, *chosen = chat->chat_template;
    const char *mark = tc__template_closing_text(chosen, &len);
    if (!mark || chat->stops[0] || strcmp(chosen->name, own->name) == 0 ||
        tc__template_closing(chosen, chat->model->tokenizer, &id))
        return TC_OK;
    return tc__fail(
        err, TC_ERR_ARGUMENT,
        "chat template '%s' does not fit: it ends replies with '%.*s', and the tokenizer of "
        "this model has no such special token; take the model file's own template, '%s', or give "
        "a stop string",
        chosen->name, (int)len, mark, own->name);
}

/* Adds copies of a NULL-terminated array's strings to chat->stops, which has room. */
static bool chat_copy_stops(tc_chat *chat, size_t *n, const char *const *stops) {
    for (; stops && *stops; stops++) {
        if (!**stops) continue;
        chat->stops[*n] = tc__copy(*stops, strlen(*stops));
        if (!chat->stops[*n]) return false;
        ++*n;
    }
    return true;
}

static int chat_set_stops(tc_chat *chat, const char *const *extra, tc_error *err) {
    size_t room = TC__MAX_STOP_STRINGS + 1, n = 0;
    for (const char *const *stop = extra; stop && *stop; stop++) room++;
    chat->stops = tc__calloc(room, sizeof *chat->stops);
    if (chat->stops && chat_copy_stops(chat, &n, chat->chat_template->stop_strings) &&
        chat_copy_stops(chat, &n, extra))
        return TC_OK;
    return tc__fail_memory(err, "the stop strings", room * sizeof *chat->stops);
}

static int chat_open(tc_chat *chat, const tc_chat_params *params, tc_error *err) {
    tc_session_params session_params = tc_session_default_params();
    session_params.ctx_size = params->ctx_size;
    chat->sampling = params->sampling;
    chat->max_tokens = params->max_tokens;
    chat->context_policy = params->context_policy;
    int code = tc__need_tokenizer(chat->model, err);
    if (!code) code = tc__sampling_check(&params->sampling, err);
    if (!code && params->context_policy != TC_CONTEXT_SHIFT &&
        params->context_policy != TC_CONTEXT_STOP)
        code = tc__fail(err, TC_ERR_ARGUMENT,
                        "context_policy is %d; expected TC_CONTEXT_SHIFT or TC_CONTEXT_STOP",
                        params->context_policy);
    if (!code) code = chat_find_template(chat, params->template_name, err);
    if (!code) code = chat_set_stops(chat, params->stop, err);
    if (!code) code = chat_check_template(chat, err);
    if (!code) code = tc_chat_set_system(chat, params->system, err);
    if (!code) code = tc_session_open(chat->model, &session_params, &chat->session, err);
    if (!code) tc_session_seed(chat->session, params->sampling.seed);
    return code;
}

int tc_chat_open(tc_model *model, const tc_chat_params *params, tc_chat **chat, tc_error *err) {
    tc_chat_params defaults = tc_chat_default_params();
    int code = tc__need(chat, "chat", err);
    if (code) return code;
    *chat = NULL;
    code = tc__need(model, "model", err);
    if (code) return code;
    tc_chat *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a chat", sizeof *made);
    made->model = model;
    code = chat_open(made, params ? params : &defaults, err);
    if (code) {
        tc_chat_close(made);
        return code;
    }
    *chat = made;
    return tc__ok(err);
}

void tc_chat_close(tc_chat *chat) {
    if (!chat) return;
    chat_turns_free(&chat->turns);
    for (char **stop = chat->stops; stop && *stop; stop++) free(*stop);
    free(chat->stops);
    free(chat->system);
    tc_session_close(chat->session);
    free(chat);
}

/* ---- rendering ---- */

/* The ids of turns [first, base), then, unless `user` is NULL, of a turn that awaits its reply. */
static int chat_render(const tc_chat *chat, size_t first, size_t base, const char *user,
                       size_t user_len, tc__ids *ids, tc_error *err) {
    size_t n = base - first;
    tc__turn *views = tc__calloc(n + 1, sizeof *views);
    if (!views) return tc__fail_memory(err, "the prompt", (n + 1) * sizeof *views);
    for (size_t i = 0; i < n; i++) {
        const chat_turn *turn = &chat->turns.data[first + i];
        views[i].user = turn->user.data;
        views[i].user_len = turn->user.len;
        views[i].reply = turn->reply.data;
        views[i].reply_len = turn->reply.len;
        views[i].ids = turn->ids.len ? turn->ids.data : NULL;
        views[i].n_ids = turn->ids.len;
        views[i].ended = turn->ended;
        views[i].has_reply = true;
    }
    if (user) {
        views[n].user = user;
        views[n++].user_len = user_len;
    }
    const char *system = tc_chat_system(chat);
    ids->len = 0;
    int code = tc__render(chat->chat_template, chat->model->tokenizer, system, strlen(system),
                          views, n, ids, err);
    if (!code && ids->failed) code = tc__fail_memory(err, "the prompt's token ids", ids->len);
    free(views);
    return code;
}

int tc_chat_render(const tc_chat *chat, const char *user_text, size_t len, int32_t *ids, size_t cap,
                   size_t *n, tc_error *err) {
    int code = tc__need(chat && n, chat ? "n" : "chat", err);
    if (code) return code;
    *n = 0;
    code = tc__need(ids || !cap, "ids", err);
    if (code) return code;
    tc__ids found = {NULL, 0, 0, false};
    code = chat_render(chat, 0, chat->turns.len, user_text, len, &found, err);
    if (!code) {
        *n = found.len;
        if (found.len && found.len <= cap) memcpy(ids, found.data, found.len * sizeof *ids);
    }
    tc__ids_free(&found);
    return code ? code : tc__ok(err);
}

/* Finds the smallest number of oldest turns, at least 1, whose absence makes the prompt at most
 * `goal` ids long; leaves that prompt in `ids`. *drop = 0 if there is none. */
static int chat_drop_until(const tc_chat *chat, size_t base, const tc__buf *user, size_t goal,
                           size_t *drop, tc__ids *ids, tc_error *err) {
    size_t too_few = 0, enough = base;
    int code = chat_render(chat, base, base, user->data, user->len, ids, err);
    if (code || ids->len > goal) {
        *drop = 0;
        return code;
    }
    while (enough - too_few > 1) {
        size_t middle = too_few + (enough - too_few) / 2;
        if ((code = chat_render(chat, middle, base, user->data, user->len, ids, err)) != TC_OK)
            return code;
        if (ids->len > goal)
            too_few = middle;
        else
            enough = middle;
    }
    *drop = enough;
    return chat_render(chat, enough, base, user->data, user->len, ids, err);
}

/* The prompt for `user` after turns [0, base), with as many of the oldest left out as the policy
 * documented at tc_chat_params demands. */
static int chat_prompt(const tc_chat *chat, size_t base, const tc__buf *user, size_t *drop,
                       tc__ids *ids, tc_error *err) {
    size_t ctx = (size_t)chat->session->ctx_size, quarter = ctx / 4, room = quarter;
    if (chat->max_tokens > 0 && (size_t)chat->max_tokens < room) room = (size_t)chat->max_tokens;
    *drop = 0;
    int code = chat_render(chat, 0, base, user->data, user->len, ids, err);
    if (code) return code;
    if (chat->context_policy == TC_CONTEXT_SHIFT && base > 0 && ids->len + room > ctx) {
        code = chat_drop_until(chat, base, user, ctx - room - quarter, drop, ids, err);
        if (!code && !*drop) code = chat_drop_until(chat, base, user, ctx - room, drop, ids, err);
        if (!code && !*drop) {
            *drop = base;
            code = chat_render(chat, base, base, user->data, user->len, ids, err);
        }
    }
    if (!code && ids->len == 0) code = tc__fail(err, TC_ERR_ARGUMENT, "the prompt is empty");
    if (code || ids->len <= ctx) return code;
    char text[TC__LIMIT_TEXT];
    const char *limit = tc__context_limit(chat->session, text);
    return tc__fail(
        err, TC_ERR_CONTEXT, "the prompt has %zu tokens, the context %zu%s%s; shorten the text%s%s",
        ids->len, ctx, limit ? ", " : "", limit ? limit : "",
        base > *drop ? ", drop earlier turns" : "", limit ? "" : " or use a larger context");
}

/* ---- one reply ---- */

typedef struct chat_run {
    tc_chat *chat;
    chat_turn *turn; /* the turn in the making */
    tc_text_fn on_text;
    void *user;
    bool refused; /* on_text asked to stop */
    tc__decoder decoder;
    tc__stream stream;
    tc__buf raw; /* bytes of the current token */
} chat_run;

/* A reply begins a text of its own, without the space that SentencePiece puts before a first word,
 * if the template has that space; else its text follows the prompt's directly. */
static tc__decoder chat_decoder(const tc_chat *chat) {
    static const char trim[] = "{trim}";
    const char *pattern = chat->chat_template->reply, *end = strstr(pattern, "{reply}");
    size_t len = end ? (size_t)(end - pattern) : 0, mark = sizeof trim - 1;
    if (len >= mark && memcmp(pattern + len - mark, trim, mark) == 0) len -= mark;
    return tc__decoder_make(chat->model->tokenizer, len > 0 && pattern[len - 1] == ' ');
}

/* Hands the text from byte `from` on to the caller. */
static void chat_show(chat_run *run, size_t from) {
    const tc__buf *text = &run->turn->reply;
    if (run->on_text && !run->refused && text->len > from)
        run->refused = run->on_text(run->user, text->data + from, text->len - from) != 0;
}

/* Turns one token into text. */
static int chat_take(chat_run *run, int32_t id, tc_error *err) {
    tc__buf *text = &run->turn->reply;
    size_t from = text->len;
    run->raw.len = 0;
    tc__decode_one(&run->decoder, id, &run->raw, NULL);
    tc__stream_feed(&run->stream, run->raw.data, run->raw.len, text);
    if (run->raw.failed || text->failed) return tc__fail_memory(err, "the reply's text", text->len);
    chat_show(run, from);
    return TC_OK;
}

/* Samples, shows and evaluates tokens until something ends the reply. The logits are there. */
static int chat_decode(chat_run *run, tc_reply *reply, double started, tc_error *err) {
    tc_chat *chat = run->chat;
    tc_session *session = chat->session;
    double first = 0;
    for (;;) {
        int32_t id = 0;
        int code = tc_sample(session, &chat->sampling, &id, err);
        if (code) return code;
        double now = tc_seconds();
        if (reply->reply_tokens++ == 0) first = now;
        reply->ttft_seconds = first - started;
        reply->decode_seconds = now - first;
        tc__ids_push(&run->turn->ids, id);
        if (run->turn->ids.failed) return tc__fail_memory(err, "the reply's token ids", sizeof id);

        reply->stop = TC_STOP_ID;
        run->turn->ended = tc_is_stop_id(chat->model, id) != 0;
        if (run->turn->ended) return TC_OK;
        if ((code = chat_take(run, id, err)) != TC_OK) return code;
        reply->stop = TC_STOP_STRING;
        if (run->stream.stopped) return TC_OK;
        reply->stop = TC_STOP_CANCELLED;
        if (run->refused) return TC_OK;
        reply->stop = TC_STOP_LENGTH;
        if (chat->max_tokens > 0 && reply->reply_tokens >= (size_t)chat->max_tokens) return TC_OK;
        reply->stop = TC_STOP_CONTEXT;
        if (session->length == (size_t)session->ctx_size) return TC_OK;

        code = tc_eval(session, &id, 1, err);
        reply->stop = TC_STOP_CANCELLED;
        if (code) return code == TC_ERR_CANCELLED ? TC_OK : code;
    }
}

/* Evaluates what the KV cache does not hold of the prompt, but at least its last id. */
static int chat_prefill(tc_session *session, const tc__ids *prompt, tc_reply *reply,
                        tc_error *err) {
    size_t same = 0, most = session->length < prompt->len ? session->length : prompt->len;
    while (same < most && session->ids[same] == prompt->data[same]) same++;
    if (same == prompt->len && same > 0) same--;
    tc_kv_truncate(session, same);
    reply->prompt_tokens = prompt->len;
    reply->reused_tokens = same;
    double start = tc_seconds();
    int code = tc_eval(session, prompt->data + same, prompt->len - same, err);
    reply->prefill_seconds = tc_seconds() - start;
    return code;
}

/* How many of the bytes `raw` the first `text_len` bytes of their text stand for: a malformed byte
 * became U+FFFD, which has three. */
static size_t chat_raw_length(const tc__buf *raw, size_t text_len) {
    size_t at = 0, text = 0;
    while (at < raw->len && text < text_len) {
        uint32_t code;
        size_t n = tc__utf8_decode(raw->data + at, raw->len - at, &code);
        text += code == UINT32_MAX ? 3 : n;
        at += n;
    }
    return at;
}

/* After a stop string: keeps the ids whose bytes lie before it. What the next token has before it
 * is encoded anew, so that the ids spell exactly the text and the KV cache fits up to there. A
 * reply that begins with such a token keeps no ids: it is encoded from its text with the
 * template. */
static int chat_cut_ids(const tc_chat *chat, chat_turn *turn, tc_error *err) {
    size_t n = turn->ids.len, kept = 0;
    tc__buf raw = {NULL, 0, 0, false};
    size_t *ends = tc__calloc(n, sizeof *ends); /* bytes up to the end of each token */
    tc__decoder decoder = chat_decoder(chat);
    for (size_t i = 0; ends && i < n; i++) {
        tc__decode_one(&decoder, turn->ids.data[i], &raw, NULL);
        ends[i] = raw.len;
    }
    int code = TC_OK;
    if (!ends || raw.failed) {
        code = tc__fail_memory(err, "the reply's token ids", n * sizeof *ends);
    } else {
        size_t end = chat_raw_length(&raw, turn->reply.len);
        while (kept < n && ends[kept] <= end) kept++;
        turn->ids.len = kept;
        tc__span rest = {raw.data, 0, false};
        if (kept) {
            rest.text += ends[kept - 1];
            rest.len = end - ends[kept - 1];
        }
        if (rest.len)
            code = tc__encode(chat->model->tokenizer, &rest, 1, TC__AFTER_TEXT, &turn->ids, err);
        if (!code && turn->ids.failed)
            code = tc__fail_memory(err, "the reply's token ids", rest.len);
    }
    tc__buf_free(&raw);
    free(ends);
    return code;
}

/* Prefill and decoding of turn->user after the prompt. On success the turn is complete. */
static int chat_run_reply(chat_run *run, const tc__ids *prompt, tc_reply *reply, double started,
                          tc_error *err) {
    chat_turn *turn = run->turn;
    int code = chat_prefill(run->chat->session, prompt, reply, err);
    if (code == TC_ERR_CANCELLED) {
        reply->stop = TC_STOP_CANCELLED;
        return TC_OK;
    }
    if (!code) code = chat_decode(run, reply, started, err);
    if (code) return code;
    if (reply->stop == TC_STOP_STRING) return chat_cut_ids(run->chat, turn, err);
    size_t from = turn->reply.len;
    tc__stream_end(&run->stream, &turn->reply);
    if (turn->reply.failed) return tc__fail_memory(err, "the reply's text", turn->reply.len);
    chat_show(run, from);
    return TC_OK;
}

/* Generates a reply to turn->user after turns [0, base) and, if that works, makes it the turn that
 * follows them. Takes over what `turn` owns in any case. */
static int chat_generate(tc_chat *chat, size_t base, chat_turn *turn, tc_text_fn on_text,
                         void *user, tc_reply *reply, tc_error *err) {
    double started = tc_seconds();
    size_t drop = 0;
    tc__ids prompt = {NULL, 0, 0, false};
    chat_run run;
    memset(&run, 0, sizeof run);
    run.chat = chat;
    run.turn = turn;
    run.on_text = on_text;
    run.user = user;
    run.decoder = chat_decoder(chat);
    tc__stream_init(&run.stream, (const char *const *)chat->stops);

    int code = TC_OK;
    if (!chat_turns_reserve(&chat->turns))
        code = tc__fail_memory(err, "the conversation", sizeof *chat->turns.data);
    if (!code) code = chat_prompt(chat, base, &turn->user, &drop, &prompt, err);
    if (!code) code = chat_run_reply(&run, &prompt, reply, started, err);
    if (!code) {
        chat_turns_remove(&chat->turns, base, chat->turns.len);
        chat_turns_remove(&chat->turns, 0, drop);
        reply->dropped_turns = (int)drop;
        reply->text = turn->reply.data;
        reply->len = turn->reply.len;
        chat_turns_push(&chat->turns, turn);
    }
    tc__flag_set(&chat->session->cancel, false); /* a request was for this reply */
    tc__stream_free(&run.stream);
    tc__buf_free(&run.raw);
    tc__ids_free(&prompt);
    chat_turn_free(turn);
    return code ? code : tc__ok(err);
}

/* Also where *reply of the caller is filled: all zero after an error. */
static int chat_reply(tc_chat *chat, size_t base, const char *text, size_t len, tc_text_fn on_text,
                      void *user, tc_reply *reply, tc_error *err) {
    chat_turn turn;
    tc_reply report, zero;
    memset(&zero, 0, sizeof zero);
    report = zero;
    int code;
    if (chat_turn_make(&turn, text, len, "", 0)) {
        code = chat_generate(chat, base, &turn, on_text, user, &report, err);
    } else {
        chat_turn_free(&turn);
        code = tc__fail_memory(err, "the new turn", len);
    }
    if (reply) *reply = code ? zero : report;
    return code;
}

int tc_chat_send(tc_chat *chat, const char *text, size_t len, tc_text_fn on_text, void *user,
                 tc_reply *reply, tc_error *err) {
    int code = tc__need(chat && (text || !len), chat ? "text" : "chat", err);
    if (code && reply) memset(reply, 0, sizeof *reply);
    if (code) return code;
    return chat_reply(chat, chat->turns.len, text, len, on_text, user, reply, err);
}

int tc_chat_regenerate(tc_chat *chat, tc_text_fn on_text, void *user, tc_reply *reply,
                       tc_error *err) {
    if (tc_chat_turns(chat) == 0) {
        if (reply) memset(reply, 0, sizeof *reply);
        int code = tc__need(chat, "chat", err);
        if (code) return code;
        return tc__fail(err, TC_ERR_ARGUMENT, "there is no reply yet to generate again");
    }
    const chat_turn *last = &chat->turns.data[chat->turns.len - 1];
    return chat_reply(chat, chat->turns.len - 1, last->user.data, last->user.len, on_text, user,
                      reply, err);
}

void tc_chat_cancel(tc_chat *chat) {
    if (chat) tc_session_cancel(chat->session);
}

/* ---- the conversation ---- */

int tc_chat_add_turn(tc_chat *chat, const char *user_text, size_t user_len, const char *reply_text,
                     size_t reply_len, tc_error *err) {
    bool given = (user_text || !user_len) && (reply_text || !reply_len);
    int code = tc__need(chat && given, chat ? "a text" : "chat", err);
    if (code) return code;
    chat_turn turn;
    if (chat_turn_make(&turn, user_text, user_len, reply_text, reply_len) &&
        chat_turns_reserve(&chat->turns)) {
        chat_turns_push(&chat->turns, &turn);
        return tc__ok(err);
    }
    chat_turn_free(&turn);
    return tc__fail_memory(err, "the new turn", user_len);
}

int tc_chat_undo(tc_chat *chat) {
    if (tc_chat_turns(chat) == 0) return 0;
    chat_turns_remove(&chat->turns, chat->turns.len - 1, chat->turns.len);
    return 1;
}

void tc_chat_reset(tc_chat *chat) {
    if (chat) chat_turns_remove(&chat->turns, 0, chat->turns.len);
}

int tc_chat_set_system(tc_chat *chat, const char *system, tc_error *err) {
    int code = tc__need(chat, "chat", err);
    if (code) return code;
    char *copy = system ? tc__copy(system, strlen(system)) : NULL;
    if (system && !copy) return tc__fail_memory(err, "the system text", strlen(system));
    free(chat->system);
    chat->system = copy;
    return tc__ok(err);
}

const char *tc_chat_system(const tc_chat *chat) {
    if (!chat) return "";
    return chat->system ? chat->system : chat->chat_template->system;
}

const char *tc_chat_template(const tc_chat *chat) {
    return chat ? chat->chat_template->name : "";
}

tc_sampling tc_chat_get_sampling(const tc_chat *chat) {
    if (!chat) return tc_default_sampling();
    tc_sampling sampling = chat->sampling;
    sampling.seed = chat->session->seed;
    return sampling;
}

int tc_chat_set_sampling(tc_chat *chat, const tc_sampling *sampling, tc_error *err) {
    int code = tc__need(chat && sampling, chat ? "sampling" : "chat", err);
    if (!code) code = tc__sampling_check(sampling, err);
    if (code) return code;
    chat->sampling = *sampling;
    if (sampling->seed != chat->session->seed) tc_session_seed(chat->session, sampling->seed);
    return tc__ok(err);
}

void tc_chat_set_max_tokens(tc_chat *chat, int max_tokens) {
    if (chat) chat->max_tokens = max_tokens;
}

size_t tc_chat_turns(const tc_chat *chat) {
    return chat ? chat->turns.len : 0;
}

static const char *chat_text(const tc__buf *text, size_t *len) {
    if (len) *len = text ? text->len : 0;
    return text ? text->data : NULL;
}

const char *tc_chat_user_text(const tc_chat *chat, size_t index, size_t *len) {
    return chat_text(index < tc_chat_turns(chat) ? &chat->turns.data[index].user : NULL, len);
}

const char *tc_chat_reply_text(const tc_chat *chat, size_t index, size_t *len) {
    return chat_text(index < tc_chat_turns(chat) ? &chat->turns.data[index].reply : NULL, len);
}

tc_session *tc_chat_session(tc_chat *chat) {
    return chat ? chat->session : NULL;
}

/* ---- the conversation file (docs/format.md): writing ---- */

#define CHAT_FILE_LINE "tinychat conversation 1"

static void chat_write_block(FILE *file, const char *name, const char *text, size_t len) {
    fprintf(file, "%s %zu\n", name, len);
    fwrite(text, 1, len, file);
    fputc('\n', file);
}

static void chat_write_turn(FILE *file, const chat_turn *turn) {
    chat_write_block(file, "user", turn->user.data, turn->user.len);
    chat_write_block(file, "reply", turn->reply.data, turn->reply.len);
    if (turn->ids.len == 0) return;
    fprintf(file, "ids %zu %d\n", turn->ids.len, turn->ended ? 1 : 0);
    for (size_t i = 0; i < turn->ids.len; i++)
        fprintf(file, "%s%ld", i ? " " : "", (long)turn->ids.data[i]);
    fputc('\n', file);
}

int tc_chat_save(const tc_chat *chat, const char *path, tc_error *err) {
    tc__replace replace;
    int code = tc__need(chat && path, chat ? "path" : "chat", err);
    if (!code) code = tc__replace_open(&replace, path, err);
    if (code) return code;
    fprintf(replace.file, "%s\nmodel %016llx\n", CHAT_FILE_LINE,
            (unsigned long long)chat->model->file.fingerprint);
    if (chat->system) chat_write_block(replace.file, "system", chat->system, strlen(chat->system));
    for (size_t i = 0; i < chat->turns.len; i++)
        chat_write_turn(replace.file, &chat->turns.data[i]);
    return tc__replace_commit(&replace, err);
}

/* ---- the conversation file: reading ---- */

typedef struct chat_reader {
    const tc_chat *chat;
    const char *path;
    const char *start, *at, *end; /* the mapped file */
    bool same_model;
    tc_error *err;
} chat_reader;

/* "path: line 3 (byte 41): expected this, found 'that'" */
static int chat_bad(const chat_reader *reader, const char *expected) {
    size_t line = 1, found = 0, left = (size_t)(reader->end - reader->at);
    for (const char *c = reader->start; c < reader->at; c++) line += *c == '\n';
    while (found < left && found < 40 && reader->at[found] != '\n') found++;
    return tc__fail(
        reader->err, TC_ERR_FORMAT, "%s: line %zu (byte %zu): expected %s, found %s%.*s%s",
        reader->path, line, (size_t)(reader->at - reader->start), expected,
        left ? "'" : "the end of the file", (int)found, found ? reader->at : "", left ? "'" : "");
}

/* Skips `text` if it comes next. */
static bool chat_skip(chat_reader *reader, const char *text) {
    size_t len = strlen(text);
    if ((size_t)(reader->end - reader->at) < len || memcmp(reader->at, text, len) != 0)
        return false;
    reader->at += len;
    return true;
}

/* A decimal number of at most `most`; false (and nothing skipped) if there is none. */
static bool chat_read_number(chat_reader *reader, size_t most, size_t *number) {
    const char *at = reader->at;
    size_t value = 0;
    for (; at < reader->end && *at >= '0' && *at <= '9'; at++) {
        size_t digit = (size_t)(*at - '0');
        if (value > (most - digit) / 10 || digit > most) return false;
        value = 10 * value + digit;
    }
    if (at == reader->at) return false;
    reader->at = at;
    *number = value;
    return true;
}

/* "<number>\n<that many bytes>\n": the rest of a block whose name was skipped. */
static int chat_read_block(chat_reader *reader, const char **text, size_t *len) {
    if (!chat_read_number(reader, (size_t)(reader->end - reader->at), len))
        return chat_bad(reader, "a number of bytes no larger than the file");
    if (!chat_skip(reader, "\n")) return chat_bad(reader, "the end of the line");
    if ((size_t)(reader->end - reader->at) < *len)
        return chat_bad(reader, "as many bytes as the line before says");
    *text = reader->at;
    reader->at += *len;
    return chat_skip(reader, "\n") ? TC_OK : chat_bad(reader, "a newline at the end of the block");
}

/* "<count> <ended>\n<ids>\n". With another model they are read but not kept. */
static int chat_read_ids(chat_reader *reader, chat_turn *turn) {
    const tc_model *model = reader->chat->model;
    size_t count, ended, id = 0;
    size_t most = reader->same_model ? model->weights.arch.vocab_size - 1 : INT32_MAX;
    if (!chat_read_number(reader, (size_t)(reader->end - reader->at), &count) || count == 0)
        return chat_bad(reader, "a number of ids from 1 on");
    if (!chat_skip(reader, " ") || !chat_read_number(reader, 1, &ended) || !chat_skip(reader, "\n"))
        return chat_bad(reader, "0 or 1 and the end of the line");
    for (size_t i = 0; i < count; i++) {
        if (i && !chat_skip(reader, " ")) return chat_bad(reader, "a space and another id");
        if (!chat_read_number(reader, most, &id))
            return chat_bad(reader, "an id of the model's vocabulary");
        if (reader->same_model) tc__ids_push(&turn->ids, (int32_t)id);
    }
    if (turn->ids.failed) return tc__fail_memory(reader->err, "the reply's token ids", count);
    turn->ended = reader->same_model && ended;
    if (turn->ended && !tc_is_stop_id(model, (int32_t)id))
        return chat_bad(reader, "a stop id of the model before here");
    return chat_skip(reader, "\n") ? TC_OK : chat_bad(reader, "the end of the line");
}

static int chat_read_turn(chat_reader *reader, chat_turns *turns) {
    const char *user = NULL, *reply = NULL;
    size_t user_len = 0, reply_len = 0;
    if (!chat_skip(reader, "user ")) return chat_bad(reader, "'user'");
    int code = chat_read_block(reader, &user, &user_len);
    if (code) return code;
    if (!chat_skip(reader, "reply ")) return chat_bad(reader, "'reply'");
    if ((code = chat_read_block(reader, &reply, &reply_len)) != TC_OK) return code;
    chat_turn turn;
    if (!chat_turn_make(&turn, user, user_len, reply, reply_len) || !chat_turns_reserve(turns))
        code = tc__fail_memory(reader->err, "the conversation", user_len + reply_len);
    else if (chat_skip(reader, "ids "))
        code = chat_read_ids(reader, &turn);
    if (!code) chat_turns_push(turns, &turn);
    chat_turn_free(&turn);
    return code;
}

/* The two lines at the top and the system text (*system NULL: the template's own). */
static int chat_read_head(chat_reader *reader, char **system) {
    char model[32];
    const char *text;
    size_t len;
    snprintf(model, sizeof model, "model %016llx\n",
             (unsigned long long)reader->chat->model->file.fingerprint);
    if (!chat_skip(reader, CHAT_FILE_LINE "\n")) return chat_bad(reader, "'" CHAT_FILE_LINE "'");
    reader->same_model = chat_skip(reader, model);
    if (!reader->same_model) {
        if (!chat_skip(reader, "model ")) return chat_bad(reader, "'model'");
        for (int i = 0; i < 16; i++, reader->at++)
            if (reader->at == reader->end || !strchr("0123456789abcdef", *reader->at) ||
                !*reader->at)
                return chat_bad(reader, "16 hexadecimal digits");
        if (!chat_skip(reader, "\n")) return chat_bad(reader, "the end of the line");
    }
    if (!chat_skip(reader, "system ")) return TC_OK;
    int code = chat_read_block(reader, &text, &len);
    if (code) return code;
    if (memchr(text, 0, len))
        return chat_bad(reader, "a system text without NUL bytes before here");
    *system = tc__copy(text, len);
    return *system ? TC_OK : tc__fail_memory(reader->err, "the system text", len);
}

int tc_chat_load(tc_chat *chat, const char *path, tc_error *err) {
    tc__map map;
    int code = tc__need(chat && path, chat ? "path" : "chat", err);
    if (!code) code = tc__map_open(path, &map, err);
    if (code) return code;
    chat_reader reader;
    memset(&reader, 0, sizeof reader);
    reader.chat = chat;
    reader.path = path;
    reader.start = reader.at = map.size ? (const char *)map.data : "";
    reader.end = reader.start + map.size;
    reader.err = err;
    chat_turns turns = {NULL, 0, 0};
    char *system = NULL;
    code = chat_read_head(&reader, &system);
    while (!code && reader.at < reader.end) code = chat_read_turn(&reader, &turns);
    tc__map_close(&map);
    if (code) {
        chat_turns_free(&turns);
        free(system);
        return code;
    }
    chat_turns_free(&chat->turns);
    chat->turns = turns;
    free(chat->system);
    chat->system = system;
    return tc__ok(err);
}

#undef CHAT_FILE_LINE
