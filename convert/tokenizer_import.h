/* tokenizer_import - a tokenizer on its way from a checkpoint to a model file: what the readers
 * (tokenizer_spm.h, tokenizer_json.h) fill, and its metadata. They accept only what src/tokenizer.c
 * does exactly. tokenizer_folder.h reads a whole one.
 */
#ifndef CONVERT_TOKENIZER_IMPORT_H
#define CONVERT_TOKENIZER_IMPORT_H

#include "json.h"
#include "src/tokenizer.h"
#include "writer.h"

typedef struct tokenizer_import {
    tc__buf pieces;      /* in the form of writer_strings */
    tc__buf scores;      /* float32 each */
    tc__buf types;       /* one byte each, TC__PIECE_* */
    uint32_t count;      /* of pieces */
    tc__buf added;       /* in the form of writer_strings */
    tc__buf added_ids;   /* u32 each */
    tc__buf added_flags; /* one byte each, TC__ADDED_* */
    uint32_t added_count;
    bool has_merges; /* out of a tokenizer.json; then no scores but these: */
    tc__buf merges;  /* u32 left, right, joined each */
    uint32_t merge_count;
    bool bytes, nfc, ignore_merges, single_prefix;
    int split;                      /* TC__SPLIT_* */
    int64_t unk_id, bos_id, eos_id; /* -1: none */
    bool add_bos, dummy_prefix, legacy, spm_prefix;
    tc__buf unk_surface;
} tokenizer_import;

void tokenizer_import_free(tokenizer_import *import);

/* Adds a token, unless it is there already; with a remark if its id lies outside the model. Errors:
 * FORMAT (a second id for the text), MEMORY. */
int tokenizer_import_add(tokenizer_import *import, uint32_t vocab_size, int64_t id,
                         const tc__buf *text, uint8_t flags, tc__buf *notes, tc_error *err);

/* The id that a text has as an added token or a piece; -1 if it is none. */
int64_t tokenizer_import_lookup(const tokenizer_import *import, const tc__buf *text);
bool tokenizer_import_is_added(const tokenizer_import *import, const tc__buf *text);

/* The metadata tokenizer.* in memory; the values live here and in the tokenizer. */
typedef struct tokenizer_metas {
    uint32_t numbers[9];
    tc__meta metas[24];
    size_t count;
} tokenizer_metas;

void tokenizer_import_metas(const tokenizer_import *import, tokenizer_metas *metas);

/* The engine's tokenizer out of it, which must outlive that. Errors: those of
 * tc__tokenizer_open. */
int tokenizer_import_open(const tokenizer_import *import, uint32_t vocab_size,
                          tc__tokenizer **tokenizer, tc_error *err);

/* Adds the metadata tokenizer.*; import NULL: none. */
void tokenizer_import_write(const tokenizer_import *import, writer *w);

#endif /* CONVERT_TOKENIZER_IMPORT_H */
