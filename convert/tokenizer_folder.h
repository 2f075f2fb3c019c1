/* tokenizer_folder - the tokenizer of a Hugging Face folder: tokenizer.model (tokenizer_spm.h), or
 * where there is none tokenizer.json (tokenizer_json.h), with tokenizer_config.json and
 * added_tokens.json.
 *
 * Reading rules for tokenizer.model (transformers' LlamaTokenizer): add_bos_token defaults to true,
 * legacy to true; the dummy prefix is the SentencePiece model's own when legacy, else
 * add_prefix_space (default true). A tokenizer.json says all that itself; of the configuration only
 * add_bos_token counts, for the classes that heed it.
 */
#ifndef CONVERT_TOKENIZER_FOLDER_H
#define CONVERT_TOKENIZER_FOLDER_H

#include "tokenizer_import.h"

/* Reads the tokenizer of the folder and has the engine's tokenizer try it. Ids that are not below
 * vocab_size, the rows of the embedding, are left out with a remark in `notes`; pieces beyond it
 * are an error.
 * Errors: IO, FORMAT, UNSUPPORTED (also: no tokenizer in the folder), MEMORY. */
int tokenizer_folder_read(const char *dir, uint32_t vocab_size, tokenizer_import *import,
                          tc__buf *notes, tc_error *err);

#endif /* CONVERT_TOKENIZER_FOLDER_H */
