/* template - see template.h. */
#include "template.h"

/* ---- the built-in templates ---- */

/* What TinyChat (mit-han-lab/llm-awq, tinychat/utils/prompt_templates.py) says in front of every
 * LLaMA conversation that is not a Vicuna's: data of compatibility, to the byte. */
#define TEMPLATE_SYSTEM(who)                                                                       \
    "A chat between a curious " who " and an artificial intelligence assistant. The assistant "    \
    "gives helpful, detailed, and polite answers to the " who "'s questions."
/* MosaicML's system texts for MPT-chat: of its chat_template, and the earlier one of TinyChat. */
#define TEMPLATE_MOSAIC_SYSTEM                                                                     \
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful "    \
    "and honest answers."
#define TEMPLATE_MPT_SYSTEM                                                                        \
    "- You are a helpful assistant chatbot trained by MosaicML.\n"                                 \
    "- You answer questions.\n"                                                                    \
    "- You are excited to be able to help the user, but will refuse to do anything that could be " \
    "considered harmful to the user.\n"                                                            \
    "- You are more than just an information source, you are also able to write poetry, short "    \
    "stories, and make jokes."
#define TEMPLATE_ONE_SHOT                                                                          \
    "### Human: Got any creative ideas for a 10 year old's birthday?\n"                            \
    "### Assistant: Of course! Here are some creative ideas for a 10-year-old's birthday party:\n" \
    "1. Treasure Hunt: Organize a treasure hunt in your backyard or nearby park. Create clues "    \
    "and riddles for the kids to solve, leading them to hidden treasures and surprises.\n"         \
    "2. Science Party: Plan a science-themed party where kids can engage in fun and interactive "  \
    "experiments. You can set up different stations with activities like making slime, erupting "  \
    "volcanoes, or creating simple chemical reactions.\n"                                          \
    "3. Outdoor Movie Night: Set up a backyard movie night with a projector and a large screen "   \
    "or white sheet. Create a cozy seating area with blankets and pillows, and serve popcorn and " \
    "snacks while the kids enjoy a favorite movie under the stars.\n"                              \
    "4. DIY Crafts Party: Arrange a craft party where kids can unleash their creativity. Provide " \
    "a variety of craft supplies like beads, paints, and fabrics, and let them create their own "  \
    "unique masterpieces to take home as party favors.\n"                                          \
    "5. Sports Olympics: Host a mini Olympics event with various sports and games. Set up "        \
    "different stations for activities like sack races, relay races, basketball shooting, and "    \
    "obstacle courses. Give out medals or certificates to the participants.\n"                     \
    "6. Cooking Party: Have a cooking-themed party where the kids can prepare their own mini "     \
    "pizzas, cupcakes, or cookies. Provide toppings, frosting, and decorating supplies, and let "  \
    "them get hands-on in the kitchen.\n"                                                          \
    "7. Superhero Training Camp: Create a superhero-themed party where the kids can engage in "    \
    "fun training activities. Set up an obstacle course, have them design their own superhero "    \
    "capes or masks, and organize superhero-themed games and challenges.\n"                        \
    "8. Outdoor Adventure: Plan an outdoor adventure party at a local park or nature reserve. "    \
    "Arrange activities like hiking, nature scavenger hunts, or a picnic with games. Encourage "   \
    "exploration and appreciation for the outdoors.\n"                                             \
    "Remember to tailor the activities to the birthday child's interests and preferences. Have a " \
    "great celebration!</s>"

/* ChatML. */
#define TEMPLATE_IM_SYSTEM "<|im_start|>system\n{system}<|im_end|>\n"
#define TEMPLATE_IM_USER "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
#define TEMPLATE_CHATML(reply_pattern, system_text)                                                \
    .first = TEMPLATE_IM_USER, .first_system = TEMPLATE_IM_SYSTEM TEMPLATE_IM_USER,                \
    .next = TEMPLATE_IM_USER, .reply = reply_pattern "<|im_end|>\n", .system = system_text

/* DeepSeek's marks are written with U+FF5C for bars and U+2581 for spaces. */
#define TEMPLATE_R1_MARK(text) "<\xEF\xBD\x9C" text "\xEF\xBD\x9C>"
#define TEMPLATE_R1_BEGIN TEMPLATE_R1_MARK("begin\xE2\x96\x81of\xE2\x96\x81sentence")
#define TEMPLATE_R1_USER TEMPLATE_R1_MARK("User") "{user}" TEMPLATE_R1_MARK("Assistant")

/* LLaMA-3. */
#define TEMPLATE_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define TEMPLATE_L3_USER                                                                           \
    TEMPLATE_HEADER("user") "{trim}{user}{/trim}<|eot_id|>" TEMPLATE_HEADER("assistant")
#define TEMPLATE_L3_SYSTEM                                                                         \
    "<|begin_of_text|>" TEMPLATE_HEADER("system") "{trim}{system}{/trim}<|eot_id|>"
#define TEMPLATE_L31_DATES                                                                         \
    "<|begin_of_text|>" TEMPLATE_HEADER("system") "Cutting Knowledge Date: December 2023\n"        \
                                                  "Today Date: 26 Jul 2024\n\n"
#define TEMPLATE_L31_EMPTY TEMPLATE_L31_DATES "<|eot_id|>"
#define TEMPLATE_L31_SYSTEM TEMPLATE_L31_DATES "{trim}{system}{/trim}<|eot_id|>"

static const tc__template template_table[] = {
    /* The chat_template of meta-llama/Llama-2-*-chat-hf, also CodeLlama's: system block and user
     * text are stripped as one string, and each turn opens with a BOS of its own. */
    {.name = "llama-2",
     .first = "<s>[INST] {trim}{user}{/trim} [/INST]",
     .first_system = "<s>[INST] {trim}<<SYS>>\n{system}\n<</SYS>>\n\n{user}{/trim} [/INST]",
     .next = "<s>[INST] {trim}{user}{/trim} [/INST]",
     .reply = " {trim}{reply}{/trim} </s>",
     .system = ""},
    /* FastChat's vicuna_v1.1 (Vicuna 1.1 and 1.5), which TinyChat uses as well. */
    {.name = "vicuna",
     .first = "USER: {user} ASSISTANT:",
     .first_system = "{system} USER: {user} ASSISTANT:",
     .next = "USER: {user} ASSISTANT:",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = TEMPLATE_SYSTEM("user")},
    /* TinyChat's for every LLaMA that is not a Vicuna. The stop string is ours: a model that writes
     * it has begun to speak for the person (TinyChat lets it). */
    {.name = "human",
     .first = TEMPLATE_ONE_SHOT "### Human: {user}\n### Assistant:",
     .first_system = "{system}\n" TEMPLATE_ONE_SHOT "### Human: {user}\n### Assistant:",
     .next = "### Human: {user}\n### Assistant:",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = TEMPLATE_SYSTEM("human"),
     .stop_strings = {"### Human:", NULL}},
    /* Meta-Llama-3-*-Instruct. */
    {.name = "llama-3",
     .first = "<|begin_of_text|>" TEMPLATE_L3_USER,
     .first_system = TEMPLATE_L3_SYSTEM TEMPLATE_L3_USER,
     .next = TEMPLATE_L3_USER,
     .reply = "{trim}{reply}{/trim}<|eot_id|>",
     .system = ""},
    /* Llama-3.1, 3.2, 3.3: always a system block, with dates. "Today" stays the day that 3.1's
     * template names: a prompt does not depend on the clock. */
    {.name = "llama-3.1",
     .first = TEMPLATE_L31_EMPTY TEMPLATE_L3_USER,
     .first_system = TEMPLATE_L31_SYSTEM TEMPLATE_L3_USER,
     .next = TEMPLATE_L3_USER,
     .reply = "{trim}{reply}{/trim}<|eot_id|>",
     .system = ""},
    /* Mistral-7B-Instruct. The first two knew no system text; it goes where the later ones have it.
     * v0.1 and v0.2 differ in a space behind </s>. */
    {.name = "mistral-v0.1",
     .first = "<s>[INST] {user} [/INST]",
     .first_system = "<s>[INST] {system}\n\n{user} [/INST]",
     .next = "[INST] {user} [/INST]",
     .reply = "{reply}</s> ",
     .system = ""},
    {.name = "mistral-v0.2",
     .first = "<s>[INST] {user} [/INST]",
     .first_system = "<s>[INST] {system}\n\n{user} [/INST]",
     .next = "[INST] {user} [/INST]",
     .reply = "{reply}</s>",
     .system = ""},
    /* What both got later: spaces in front. */
    {.name = "mistral-v0.2-spaced",
     .first = "<s> [INST] {user} [/INST]",
     .first_system = "<s> [INST] {system}\n\n{user} [/INST]",
     .next = " [INST] {user} [/INST]",
     .reply = " {reply}</s>",
     .system = ""},
    /* v0.3: [INST] and [/INST] are tokens; the system text stands before the last user text. */
    {.name = "mistral-v0.3",
     .first = "<s>[INST] {user}[/INST]",
     .first_system = "<s>[INST] {system}\n\n{user}[/INST]",
     .next = "[INST] {user}[/INST]",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = "",
     .next_system = "[INST] {system}\n\n{user}[/INST]"},
    {.name = "chatml", TEMPLATE_CHATML("{reply}", "")},
    {.name = "qwen2", TEMPLATE_CHATML("{reply}", "You are a helpful assistant.")},
    {.name = "qwen2.5",
     TEMPLATE_CHATML("{reply}",
                     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")},
    /* What Qwen3 thought is not repeated in later turns; "nothink" hands it an empty thought. */
    {.name = "qwen3", TEMPLATE_CHATML("{bare_answer}", "")},
    {.name = "qwen3-nothink",
     TEMPLATE_CHATML("{bare_answer}", ""),
     .start = "<think>\n\n</think>\n\n"},
    /* DeepSeek-R1-Distill-*: begins to think, later turns leave the thought out. */
    {.name = "deepseek-r1",
     .first = TEMPLATE_R1_BEGIN TEMPLATE_R1_USER,
     .first_system = TEMPLATE_R1_BEGIN "{system}" TEMPLATE_R1_USER,
     .next = TEMPLATE_R1_USER,
     .reply = "{answer}" TEMPLATE_R1_MARK("end\xE2\x96\x81of\xE2\x96\x81sentence"),
     .system = "",
     .start = "<think>\n"},
    /* Zephyr and TinyLlama-Chat. */
    {.name = "zephyr",
     .first = "<|user|>\n{user}</s>\n<|assistant|>\n",
     .first_system = "<|system|>\n{system}</s>\n<|user|>\n{user}</s>\n<|assistant|>\n",
     .next = "<|user|>\n{user}</s>\n<|assistant|>\n",
     .reply = "{reply}</s>\n",
     .system = ""},
    /* MPT-*-chat as MosaicML talked with it (llm-foundry's hf_chat). Where the tokenizer lacks the
     * two marks, they are text: then a string has to end the reply. */
    {.name = "mpt-chat",
     TEMPLATE_CHATML("{reply}", TEMPLATE_MOSAIC_SYSTEM),
     .stop_strings = {"<|im_end|>", NULL}},
    /* The chat_template that its folders got later, which does not close the system text. */
    {.name = "mpt-chat-hf",
     .first = TEMPLATE_IM_USER,
     .first_system = "<|im_start|>system\n{trim}{system}{/trim}\n" TEMPLATE_IM_USER,
     .next = TEMPLATE_IM_USER,
     .reply = "{reply}<|im_end|>\n",
     .system = TEMPLATE_MOSAIC_SYSTEM,
     .stop_strings = {"<|im_end|>", NULL}},
    /* Falcon-*-instruct's chat_template, but for blank lines inside of a text, which it removes. */
    {.name = "falcon",
     .first = "\n\nUser: {trim}{user}{/trim}\n\nAssistant:",
     .first_system = "{trim}{system}{/trim}\n\nUser: {trim}{user}{/trim}\n\nAssistant:",
     .next = "\n\nUser: {trim}{user}{/trim}\n\nAssistant:",
     .reply = " {trim}{reply}{/trim}",
     .system = "",
     .stop_strings = {"\nUser:", NULL}},
    /* TinyChat's for the other families. The stop strings are ours. */
    {.name = "tinychat-falcon",
     .first = "User: {user}\n\nAssistant:",
     .first_system = "{system}\n\nUser: {user}\n\nAssistant:",
     .next = "User: {user}\n\nAssistant:",
     .reply = " {trim}{reply}{/trim}\n\n",
     .system = "",
     .stop_strings = {"\nUser:", NULL}},
    {.name = "tinychat-mpt-chat",
     .first = "<|im_start|>user: {user}<|im_end|>\n<|im_start|>assistant:",
     .first_system =
         TEMPLATE_IM_SYSTEM "<|im_start|>user: {user}<|im_end|>\n<|im_start|>assistant:",
     .next = "<|im_start|>user: {user}<|im_end|>\n<|im_start|>assistant:",
     .reply = " {trim}{reply}{/trim}<|im_end|>\n",
     .system = TEMPLATE_MPT_SYSTEM,
     .stop_strings = {"<|im_end|>", NULL}},
    {.name = "tinychat-mpt",
     .first = "### Human: {user}\n### Assistant:",
     .first_system = "{system}\n### Human: {user}\n### Assistant:",
     .next = "### Human: {user}\n### Assistant:",
     .reply = " {trim}{reply}{/trim}\n",
     .system = TEMPLATE_SYSTEM("human"),
     .stop_strings = {"### Human:", NULL}},
    /* For models without a chat format: the model continues the text; a further turn goes on behind
     * it on a new line. */
    {.name = "plain",
     .first = "{user}",
     .first_system = "{system}\n{user}",
     .next = "\n{user}",
     .reply = "{reply}",
     .system = ""},
};

const tc__template *tc__template_at(int index) {
    return index >= 0 && (size_t)index < TC_COUNT(template_table) ? &template_table[index] : NULL;
}

const tc__template *tc__template_find(const char *name) {
    for (size_t i = 0; i < TC_COUNT(template_table); i++)
        if (!strcmp(template_table[i].name, name)) return &template_table[i];
    return NULL;
}

/* ---- patterns ---- */

enum { /* parts of a pattern, as bits */
       TEMPLATE_TEXT = 0,
       TEMPLATE_HAS_SYSTEM = 1,
       TEMPLATE_HAS_USER = 2,
       TEMPLATE_HAS_REPLY = 4,
       TEMPLATE_TRIM = 8,
       TEMPLATE_TRIM_END = 16,
       TEMPLATE_ANSWER = 32, /* beside TEMPLATE_HAS_REPLY: what is behind its last </think> */
       TEMPLATE_BARE = 64    /* and without the newlines there */
};

/* The placeholder at the beginning of a text and its length; TEMPLATE_TEXT if there is none. */
static int template_mark(const char *text, size_t *len) {
    static const struct {
        const char *mark;
        int part;
    } marks[] = {{"{system}", TEMPLATE_HAS_SYSTEM},
                 {"{user}", TEMPLATE_HAS_USER},
                 {"{reply}", TEMPLATE_HAS_REPLY},
                 {"{answer}", TEMPLATE_HAS_REPLY | TEMPLATE_ANSWER},
                 {"{bare_answer}", TEMPLATE_HAS_REPLY | TEMPLATE_ANSWER | TEMPLATE_BARE},
                 {"{trim}", TEMPLATE_TRIM},
                 {"{/trim}", TEMPLATE_TRIM_END}};
    for (size_t i = 0; *text == '{' && i < TC_COUNT(marks); i++) {
        *len = strlen(marks[i].mark);
        if (!strncmp(text, marks[i].mark, *len)) return marks[i].part;
    }
    return TEMPLATE_TEXT;
}

/* Takes the next part off a pattern: a placeholder, or the text up to the next one. False at the
 * end. */
static bool template_next(const char **pattern, int *part, const char **text, size_t *len) {
    size_t mark_len;
    *text = *pattern;
    if (!**pattern) return false;
    *part = template_mark(*pattern, len);
    if (*part == TEMPLATE_TEXT)
        for (*len = 1; (*text)[*len] && !template_mark(*text + *len, &mark_len);) ++*len;
    *pattern += *len;
    return true;
}

/* Holds exactly the placeholders of `wanted`, each once, and {trim}, {/trim} in pairs. */
static int template_check(const char *pattern, const char *key, int wanted, tc_error *err) {
    const char *text;
    size_t len;
    int part, seen = 0;
    bool trimming = false;
    while (template_next(&pattern, &part, &text, &len)) {
        bool trim = part == TEMPLATE_TRIM, end = part == TEMPLATE_TRIM_END;
        part &= ~(TEMPLATE_ANSWER | TEMPLATE_BARE);
        if (trim || end ? trimming == trim : (part & seen) || (part & ~wanted))
            return tc__fail(err, TC_ERR_FORMAT, "model file: unexpected %.*s in '%s'", (int)len,
                            text, key);
        if (trim || end)
            trimming = trim;
        else
            seen |= part;
    }
    if (seen != wanted || trimming)
        return tc__fail(err, TC_ERR_FORMAT, "model file: no %s in '%s'",
                        trimming                             ? "{/trim}"
                        : wanted & ~seen & TEMPLATE_HAS_USER ? "{user}"
                        : wanted & TEMPLATE_HAS_REPLY        ? "{reply}"
                                                             : "{system}",
                        key);
    return TC_OK;
}

/* ---- templates out of a model file ---- */

/* Appends text and a NUL to the storage. */
static int template_store(const char *key, const char *text, size_t len, tc__buf *storage,
                          tc_error *err) {
    if (len && memchr(text, 0, len))
        return tc__fail(err, TC_ERR_FORMAT, "model file: a NUL byte in '%s'", key);
    tc__buf_add(storage, text, len);
    tc__buf_add(storage, "", 1);
    return storage->failed ? tc__fail_memory(err, "the chat template", len) : TC_OK;
}

static int template_store_stops(const tc__model_file *file, size_t *n, tc__buf *storage,
                                tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, "chat.stop_strings");
    *n = 0;
    if (!meta) return TC_OK;
    if (meta->type != TC__META_STRINGS || meta->count > TC__MAX_STOP_STRINGS)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: 'chat.stop_strings' should be at most %d strings",
                        TC__MAX_STOP_STRINGS);
    tc__cursor cursor = tc__cursor_make(meta->value, meta->size);
    const char *text;
    size_t len;
    while (tc__next_string(&cursor, &text, &len)) {
        if (!len)
            return tc__fail(err, TC_ERR_FORMAT,
                            "model file: an empty string in 'chat.stop_strings'");
        int code = template_store("chat.stop_strings", text, len, storage, err);
        if (code) return code;
        ++*n;
    }
    return TC_OK;
}

static int template_fill(const tc__model_file *file, tc__template *out, tc__buf *storage,
                         tc_error *err) {
    static const struct {
        const char *key;
        int wanted; /* placeholders; -1: not a pattern */
        bool optional;
    } texts[] = {{"chat.template", -1, true},
                 {"chat.first", TEMPLATE_HAS_USER, false},
                 {"chat.first_system", TEMPLATE_HAS_SYSTEM | TEMPLATE_HAS_USER, false},
                 {"chat.next", TEMPLATE_HAS_USER, false},
                 {"chat.reply", TEMPLATE_HAS_REPLY, false},
                 {"chat.system", -1, true},
                 {"chat.start", -1, true},
                 {"chat.next_system", TEMPLATE_HAS_SYSTEM | TEMPLATE_HAS_USER, true}};
    size_t offsets[TC_COUNT(texts)], n_stops;
    for (size_t i = 0; i < TC_COUNT(texts); i++) {
        const char *text;
        size_t len;
        int code = tc__meta_text(file, texts[i].key, &text, &len, err);
        offsets[i] = storage->len;
        if (code || (code = template_store(texts[i].key, text, len, storage, err))) return code;
        if (texts[i].wanted >= 0 && (len || !texts[i].optional) &&
            (code = template_check(storage->data + offsets[i], texts[i].key, texts[i].wanted, err)))
            return code;
    }
    size_t at = storage->len;
    int code = template_store_stops(file, &n_stops, storage, err);
    if (code) return code;

    const char *data = storage->data; /* moves no more */
    memset(out, 0, sizeof *out);
    out->name = data + offsets[0];
    out->first = data + offsets[1];
    out->first_system = data + offsets[2];
    out->next = data + offsets[3];
    out->reply = data + offsets[4];
    out->system = data + offsets[5];
    out->start = data + offsets[6];
    out->next_system = data + offsets[7];
    for (size_t i = 0; i < n_stops; i++) {
        out->stop_strings[i] = data + at;
        at += strlen(data + at) + 1;
    }
    return tc__ok(err);
}

int tc__template_load(const tc__model_file *file, tc__template *out, tc__buf *storage,
                      tc_error *err) {
    int code = template_fill(file, out, storage, err);
    if (code) tc__buf_free(storage);
    return code;
}

/* ---- rendering ---- */

typedef struct template_render {
    const tc__tokenizer *tokenizer;
    tc__ids *ids;
    tc__span *spans; /* text not yet encoded */
    size_t n_spans, cap;
    int before;       /* what it follows, as tc__encode wants to know */
    size_t trim_from; /* first span of the open {trim} */
    bool trim_left;   /* its left end is there to be trimmed, not in ids already */
    bool failed;
} template_render;

static void template_span(template_render *r, const char *text, size_t len, bool trusted) {
    if (!len || r->failed) return;
    if (r->n_spans == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 16;
        tc__span *spans = realloc(r->spans, cap * sizeof *spans);
        if (!spans) {
            r->failed = true;
            return;
        }
        r->spans = spans;
        r->cap = cap;
    }
    r->spans[r->n_spans++] = (tc__span){text, len, trusted};
}

/* White space as Python's str.strip sees it. */
static bool template_is_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/* Bytes of white space that a text begins with. */
static size_t template_leading(const char *text, size_t len) {
    size_t at = 0;
    while (at < len) {
        uint32_t code;
        size_t n = tc__utf8_decode(text + at, len - at, &code);
        if (!template_is_space(code)) break;
        at += n;
    }
    return at;
}

/* Bytes of white space that a text ends with. */
static size_t template_trailing(const char *text, size_t len) {
    size_t left = len;
    while (left) {
        uint32_t code;
        size_t n = 1;
        while (n < 4 && n < left && ((uint8_t)text[left - n] & 0xC0) == 0x80) n++;
        if (tc__utf8_decode(text + left - n, n, &code) != n || !template_is_space(code)) break;
        left -= n;
    }
    return len - left;
}

static void template_trim_begin(template_render *r, bool left) {
    r->trim_from = r->n_spans;
    r->trim_left = left;
}

/* Closes a {trim}: removes white space at the ends of the spans since then. */
static void template_trim(template_render *r) {
    for (size_t i = r->trim_from; r->trim_left && i < r->n_spans; i++) {
        size_t n = template_leading(r->spans[i].text, r->spans[i].len);
        r->spans[i].text += n;
        r->spans[i].len -= n;
        if (r->spans[i].len) break;
    }
    for (size_t i = r->n_spans; i-- > r->trim_from;) {
        r->spans[i].len -= template_trailing(r->spans[i].text, r->spans[i].len);
        if (r->spans[i].len) break;
    }
}

/* Bytes of a reply up to the end of its last </think>; 0 if there is none. */
static size_t template_thought(const tc__turn *turn) {
    static const char mark[] = "</think>";
    const size_t n = sizeof mark - 1;
    for (size_t end = turn->reply_len; end >= n; end--)
        if (!memcmp(turn->reply + end - n, mark, n)) return end;
    return 0;
}

/* Appends the reply, or what it says behind its last thought. */
static void template_reply(template_render *r, int part, const tc__turn *turn) {
    size_t from = part & TEMPLATE_ANSWER ? template_thought(turn) : 0;
    while (from && (part & TEMPLATE_BARE) && from < turn->reply_len && turn->reply[from] == '\n')
        from++;
    if (from < turn->reply_len) template_span(r, turn->reply + from, turn->reply_len - from, false);
}

/* Appends the spans of a pattern. */
static void template_expand(template_render *r, const char *pattern, const char *system,
                            size_t system_len, const tc__turn *turn) {
    const char *text;
    size_t len;
    int part;
    while (template_next(&pattern, &part, &text, &len)) switch (part) {
        case TEMPLATE_HAS_SYSTEM: template_span(r, system, system_len, false); break;
        case TEMPLATE_HAS_USER: template_span(r, turn->user, turn->user_len, false); break;
        case TEMPLATE_TRIM: template_trim_begin(r, true); break;
        case TEMPLATE_TRIM_END: template_trim(r); break;
        case TEMPLATE_TEXT: template_span(r, text, len, true); break;
        default: template_reply(r, part, turn);
        }
}

/* Encodes the spans so far. */
static int template_flush(template_render *r, tc_error *err) {
    if (r->failed) return tc__fail_memory(err, "a conversation", r->cap * sizeof *r->spans);
    int code = tc__encode(r->tokenizer, r->spans, r->n_spans, r->before, r->ids, err);
    r->n_spans = 0;
    return code;
}

/* Behind {reply}, and whether a {trim} is open there. */
static const char *template_behind_reply(const char *pattern, bool *trimming) {
    const char *text;
    size_t len;
    int part;
    *trimming = false;
    while (template_next(&pattern, &part, &text, &len) && !(part & TEMPLATE_HAS_REPLY))
        if (part != TEMPLATE_TEXT) *trimming = part == TEMPLATE_TRIM;
    return pattern;
}

/* Behind the first special piece of a pattern, whose id it gives; NULL if it has none. */
static const char *template_behind_special(const tc__tokenizer *tokenizer, const char *pattern,
                                           bool *trimming, int32_t *id) {
    const char *text;
    size_t len;
    int part;
    while (template_next(&pattern, &part, &text, &len)) {
        for (size_t i = 0, n; i < len && part == TEMPLATE_TEXT; i++)
            if ((n = tc__special_at(tokenizer, text + i, len - i, id))) return text + i + n;
        if (part != TEMPLATE_TEXT) *trimming = part == TEMPLATE_TRIM;
    }
    return NULL;
}

bool tc__template_closing(const tc__template *chat_template, const tc__tokenizer *tokenizer,
                          int32_t *id) {
    bool trimming;
    const char *behind = template_behind_reply(chat_template->reply, &trimming);
    return template_behind_special(tokenizer, behind, &trimming, id) != NULL;
}

const char *tc__template_closing_text(const tc__template *chat_template, size_t *len) {
    bool trimming;
    const char *behind = template_behind_reply(chat_template->reply, &trimming), *text;
    int part;
    while (template_next(&behind, &part, &text, len)) {
        const char *mark = part == TEMPLATE_TEXT ? memchr(text, '<', *len) : NULL;
        const char *end = mark ? memchr(mark, '>', *len - (size_t)(mark - text)) : NULL;
        if (!end) continue;
        *len = (size_t)(end + 1 - mark);
        return mark;
    }
    return NULL;
}

/* A reply as it was generated, and what the pattern has behind it. */
static int template_generated(template_render *r, const char *pattern, const tc__turn *turn,
                              tc_error *err) {
    bool trimming, trimming_there;
    size_t n_ids = turn->n_ids;
    bool ended = turn->ended && n_ids;
    const char *behind = template_behind_reply(pattern, &trimming);
    trimming_there = trimming;
    int32_t id;
    const char *there = template_behind_special(r->tokenizer, behind, &trimming_there, &id);
    if (ended && !there) n_ids--; /* the pattern knows no special piece: nor do later turns */
    if (n_ids) {                  /* without ids, text just goes on */
        int code = template_flush(r, err);
        if (code) return code;
        tc__ids_add(r->ids, turn->ids, n_ids);
        r->before = TC__AFTER_TEXT;
    }
    if (ended && there) {
        r->before = TC__AFTER_SPECIAL;
        behind = there;
        trimming = trimming_there;
    }
    if (trimming) template_trim_begin(r, !n_ids);
    template_expand(r, behind, NULL, 0, turn);
    return TC_OK;
}

/* Whether the ids of a generated reply are what the pattern wants of it: all of it. */
static bool template_keeps_ids(const char *pattern, const tc__turn *turn) {
    bool answer = strstr(pattern, "{answer}") || strstr(pattern, "{bare_answer}");
    return turn->ids && !(answer && template_thought(turn));
}

/* The pattern that leads to the reply of turn i of n. */
static const char *template_lead(const tc__template *t, size_t i, size_t n, bool system) {
    /* late: the system text stands in the last turn */
    bool late = system && t->next_system && *t->next_system;
    bool here = late ? i + 1 == n : i == 0;
    if (i == 0) return system && here ? t->first_system : t->first;
    return late && here ? t->next_system : t->next;
}

int tc__render(const tc__template *chat_template, const tc__tokenizer *tokenizer,
               const char *system, size_t system_len, const tc__turn *turns, size_t n_turns,
               tc__ids *ids, tc_error *err) {
    template_render r = {.tokenizer = tokenizer, .ids = ids, .before = TC__AT_START};
    const char *opening = template_lead(chat_template, 0, n_turns, system && system_len);
    int32_t bos = tc__tokenizer_bos(tokenizer), id;
    int code = TC_OK;
    bool has_bos = tc__special_at(tokenizer, opening, strlen(opening), &id) && id == bos;
    if (tc__tokenizer_adds_bos(tokenizer) && !has_bos) tc__ids_push(ids, bos);
    for (size_t i = 0; i < n_turns && !code; i++) {
        const tc__turn *turn = &turns[i];
        template_expand(&r, template_lead(chat_template, i, n_turns, system && system_len), system,
                        system_len, turn);
        const char *start = chat_template->start ? chat_template->start : "";
        if (!turn->has_reply)
            template_span(&r, start, strlen(start), true);
        else if (template_keeps_ids(chat_template->reply, turn))
            code = template_generated(&r, chat_template->reply, turn, err);
        else
            template_expand(&r, chat_template->reply, NULL, 0, turn);
    }
    if (!code) code = template_flush(&r, err);
    free(r.spans);
    return code ? code : tc__ok(err);
}

#undef TEMPLATE_SYSTEM
#undef TEMPLATE_MOSAIC_SYSTEM
#undef TEMPLATE_MPT_SYSTEM
#undef TEMPLATE_ONE_SHOT
#undef TEMPLATE_IM_SYSTEM
#undef TEMPLATE_IM_USER
#undef TEMPLATE_CHATML
#undef TEMPLATE_R1_MARK
#undef TEMPLATE_R1_BEGIN
#undef TEMPLATE_R1_USER
#undef TEMPLATE_HEADER
#undef TEMPLATE_L3_USER
#undef TEMPLATE_L3_SYSTEM
#undef TEMPLATE_L31_DATES
#undef TEMPLATE_L31_EMPTY
#undef TEMPLATE_L31_SYSTEM
