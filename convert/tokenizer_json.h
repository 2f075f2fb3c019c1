/* tokenizer_json - tokenizer.json, the file of the tokenizers package: BPE over bytes (GPT-NeoX,
 * Falcon, LLaMA-3, Qwen) or over characters with U+2581 for spaces (LLaMA-2's and Mistral's).
 *
 * The file describes a pipeline (normalizer, pre-tokenizer, model, post-processor, decoder) of
 * parts that can be combined at will. The combinations that src/tokenizer.c does exactly are
 * recognised part by part; anything else is refused by name.
 */
#ifndef CONVERT_TOKENIZER_JSON_H
#define CONVERT_TOKENIZER_JSON_H

#include "tokenizer_import.h"

/* Fills *import, which is zeroed, all but what tokenizer_config.json says. Errors: IO, FORMAT,
 * UNSUPPORTED, MEMORY. */
int tokenizer_json_read(const char *path, uint32_t vocab_size, tokenizer_import *import,
                        tc__buf *notes, tc_error *err);

/* The same for a text in memory; `file` is for messages. */
int tokenizer_json_parse(const char *file, const char *text, size_t len, uint32_t vocab_size,
                         tokenizer_import *import, tc__buf *notes, tc_error *err);

/* The flags (TC__ADDED_*) of an added token as this file and tokenizer_config.json write it. */
uint8_t tokenizer_json_flags(const json_doc *doc, const json_value *token, const tc__buf *text);

#endif /* CONVERT_TOKENIZER_JSON_H */
