/* tokenizer_import - the tokenizer of a Hugging Face folder: tokenizer.model (a SentencePiece
 * ModelProto, read here), or where there is none tokenizer.json (tokenizer_json.h), with
 * tokenizer_config.json and added_tokens.json.
 *
 * Only what src/tokenizer.c does exactly is accepted. Of SentencePiece: BPE, identity
 * normalisation, escaped white space; unigram models, character maps, extra-space removal are
 * refused by name.
 *
 * Reading rules for tokenizer.model (transformers' LlamaTokenizer): add_bos_token defaults to true,
 * legacy to true; the dummy prefix is the SentencePiece model's own when legacy, else
 * add_prefix_space (default true). A tokenizer.json says all that itself; of the configuration only
 * add_bos_token counts, for the classes that heed it.
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

/* Reads the tokenizer of the folder and has the engine's tokenizer try it. Ids that are not below
 * vocab_size, the rows of the embedding, are left out with a remark in `notes`; pieces beyond it
 * are an error.
 * Errors: IO, FORMAT, UNSUPPORTED (also: no tokenizer in the folder), MEMORY. */
int tokenizer_import_read(const char *dir, uint32_t vocab_size, tokenizer_import *import,
                          tc__buf *notes, tc_error *err);
void tokenizer_import_free(tokenizer_import *import);

/* For tokenizer_json.c and here: adds a token, unless it is there already; with a remark if its id
 * lies outside the model. Errors: FORMAT (a second id for the text), MEMORY. */
int tokenizer_import_add(tokenizer_import *import, uint32_t vocab_size, int64_t id,
                         const tc__buf *text, uint8_t flags, tc__buf *notes, tc_error *err);

/* The metadata tokenizer.* in memory; the values live here and in the tokenizer. */
typedef struct tokenizer_metas {
    uint32_t numbers[9];
    tc__meta metas[24];
    size_t count;
} tokenizer_metas;

void tokenizer_import_metas(const tokenizer_import *import, tokenizer_metas *metas);

/* The engine's tokenizer out of it, which must outlive that. Errors: those
 * of tc__tokenizer_open. */
int tokenizer_import_open(const tokenizer_import *import, uint32_t vocab_size,
                          tc__tokenizer **tokenizer, tc_error *err);

/* Adds the metadata tokenizer.*; import NULL: none. */
void tokenizer_import_write(const tokenizer_import *import, writer *w);

#endif /* CONVERT_TOKENIZER_IMPORT_H */
