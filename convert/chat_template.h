/* chat_template - which of the built-in templates (src/template.h) a checkpoint is to be used with.
 *
 * Asked for by name; else the checkpoint's own chat_template, recognised by its fingerprint, or by
 * the marks in it; else by the model's name; else plain completion. All but the first two are said
 * aloud. Jinja is not interpreted.
 */
#ifndef CONVERT_CHAT_TEMPLATE_H
#define CONVERT_CHAT_TEMPLATE_H

#include "src/template.h"
#include "tokenizer_import.h"
#include "writer.h"

typedef struct chat_choice {
    const tc__template *chosen;
    const char *system; /* the default system text, which the checkpoint's template may change */
    const char *reason; /* "asked for", "the checkpoint's chat_template", ... */
} chat_choice;

/* CRC-32 of a Jinja text in which every run of white space is one space, none at the ends. */
uint32_t chat_fingerprint(const char *text, size_t len);

/* `asked`: a template's name (which must exist) or NULL. `names`: texts that may tell what the
 * model is, NULL-terminated. What a person should know is added to `notes`.
 * Errors: FORMAT and IO for a damaged tokenizer_config.json or chat_template file, MEMORY. */
int chat_choose(const char *dir, const char *asked, const char *const *names, chat_choice *choice,
                tc__buf *notes, tc_error *err);

/* The id with which the template closes a reply; -1 if it is no token of this tokenizer. */
int64_t chat_closing_id(const chat_choice *choice, const tokenizer_import *tokenizer,
                        uint32_t vocab_size);

/* Adds the metadata chat.*; stop_ids are the ids that end a reply. */
void chat_write(const chat_choice *choice, const uint32_t *stop_ids, size_t stop_count, writer *w);

#define CHAT_MAX_NAMES 512

/* "llama-2, vicuna, ..." into text. */
void chat_names(char *text, size_t size);

#endif /* CONVERT_CHAT_TEMPLATE_H */
