/* template - chat templates as data: patterns with {system}, {user}, {reply} (docs/format.md), and
 * the rendering of a conversation to spans of trusted and untrusted bytes.
 *
 * White space around everything between {trim} and {/trim}, whoever wrote it, is removed: this is
 * the str.strip() of Hugging Face's chat templates, with Python's idea of white space. LLaMA-2's
 * strips system block and user text as one string, which no flag "trim the user text" can express.
 *
 * The built-in table serves `--template NAME` and convert, which copies one into the model file.
 */
#ifndef TC_TEMPLATE_H
#define TC_TEMPLATE_H

#include "tokenizer.h"

#define TC__MAX_STOP_STRINGS 8

typedef struct tc__template {
    const char *name;
    const char *first;        /* opens a conversation without a system text: {user} */
    const char *first_system; /* opens one with {system}: {user} as well */
    const char *next;         /* from the end of a reply to the next one: {user} */
    const char *reply;        /* a finished reply: {reply} and what closes it */
    const char *system;       /* default system text, "" for none */
    const char
        *start; /* NULL or "" mostly: how a reply begins that is yet to be generated; it is no
                                 part of the reply, and gone once the reply is history */
    const char
        *next_system; /* NULL or "" mostly: `next` with {system} in front of the last user text,
                                 for templates that keep the system text there */
    const char *stop_strings[TC__MAX_STOP_STRINGS + 1]; /* NULL-terminated */
} tc__template;

/* The built-in templates by index (NULL past the end) and by name (NULL if unknown). */
TC_INTERNAL const tc__template *tc__template_at(int index);
TC_INTERNAL const tc__template *tc__template_find(const char *name);

/* A template out of a model file's metadata. The strings are copied into `storage`, which the
 * caller zero-initialises and frees after the template's last use; on failure it is empty.
 * Errors: FORMAT (a pattern without its placeholder, with another's or with unpaired {trim}; a NUL
 * in a text; too many or empty stop strings), MEMORY. */
TC_INTERNAL int tc__template_load(const tc__model_file *file, tc__template *out, tc__buf *storage,
                                  tc_error *err);

/* One turn as the renderer sees it. */
typedef struct tc__turn {
    const char *user;
    size_t user_len;
    const char *reply; /* text of the reply; ignored while ids are there */
    size_t reply_len;
    const int32_t *ids; /* [n_ids] the reply as it was generated, or NULL: encode the text */
    size_t n_ids;
    bool ended;     /* the last of ids is the stop id that ended the reply */
    bool has_reply; /* false only for a last turn that awaits its reply */
} tc__turn;

/* Appends the ids of a conversation: BOS if the tokenizer adds one and the template's text does not
 * begin with it, then every turn. system NULL or "" = none (the template's own is not used).
 *
 * Replies given as text are rendered as text, so that the ids equal those of one encoding of the
 * whole conversation. A reply with ids is taken as generated, never re-tokenized, and what the
 * pattern has before {reply} is left out (the model wrote its own). What the pattern has behind it
 * follows, except that when `ended` is set, everything up to and including its first special piece
 * is already there; if it has no special piece, the stop id is no part of the template's text and
 * is left out instead. Only where the pattern takes an {answer} out of a reply that holds a
 * </think>, it is the text that counts.
 * Errors: MEMORY, ARGUMENT (text too long). */
TC_INTERNAL int tc__render(const tc__template *chat_template, const tc__tokenizer *tokenizer,
                           const char *system, size_t system_len, const tc__turn *turns,
                           size_t n_turns, tc__ids *ids, tc_error *err);

/* The special piece with which the template closes a reply: a model that was made for it ends its
 * replies with that id. False if it has none. */
TC_INTERNAL bool tc__template_closing(const tc__template *chat_template,
                                      const tc__tokenizer *tokenizer, int32_t *id);
/* The same as text, such as </s>, whether the tokenizer knows it or not. NULL if there is none. */
TC_INTERNAL const char *tc__template_closing_text(const tc__template *chat_template, size_t *len);

#endif /* TC_TEMPLATE_H */
