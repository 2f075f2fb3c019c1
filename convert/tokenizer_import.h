/* tokenizer_import - the tokenizer of a Hugging Face folder: tokenizer.model (a SentencePiece
 * ModelProto, read here) with tokenizer_config.json and added_tokens.json.
 *
 * Only what src/tokenizer.c does exactly is accepted: BPE, identity normalisation, escaped white
 * space. Unigram models, character maps, extra-space removal are refused by name.
 *
 * Reading rules (transformers' LlamaTokenizer): add_bos_token defaults to true, legacy to true; the
 * dummy prefix is the SentencePiece model's own when legacy, else add_prefix_space (default true).
 */
#ifndef CONVERT_TOKENIZER_IMPORT_H
#define CONVERT_TOKENIZER_IMPORT_H

#include "writer.h"

typedef struct tokenizer_import {
    tc__buf pieces;    /* in the form of writer_strings */
    tc__buf scores;    /* float32 each */
    tc__buf types;     /* one byte each, TC__PIECE_* */
    uint32_t count;    /* of pieces */
    tc__buf added;     /* in the form of writer_strings */
    tc__buf added_ids; /* u32 each */
    uint32_t added_count;
    int64_t unk_id, bos_id, eos_id; /* -1: none */
    bool add_bos, dummy_prefix, legacy, spm_prefix;
    tc__buf unk_surface;
} tokenizer_import;

/* Reads the tokenizer of the folder and has the engine's tokenizer try it. Ids that are not below
 * vocab_size, the rows of the embedding, are left out with a remark in `notes`; pieces beyond it
 * are an error.
 * Errors: IO, FORMAT, UNSUPPORTED (also: no tokenizer.model in the folder), MEMORY. */
int tokenizer_import_read(const char *dir, uint32_t vocab_size, tokenizer_import *import,
                          tc__buf *notes, tc_error *err);
void tokenizer_import_free(tokenizer_import *import);

/* Adds the metadata tokenizer.*; import NULL: none. */
void tokenizer_import_write(const tokenizer_import *import, writer *w);

#endif /* CONVERT_TOKENIZER_IMPORT_H */
