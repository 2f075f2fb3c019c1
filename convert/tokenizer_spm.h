/* tokenizer_spm - tokenizer.model, a SentencePiece ModelProto: BPE, identity normalisation, escaped
 * white space. Unigram models, character maps, extra-space removal are refused by name.
 */
#ifndef CONVERT_TOKENIZER_SPM_H
#define CONVERT_TOKENIZER_SPM_H

#include "tokenizer_import.h"

/* Fills *import, which is zeroed, all but what tokenizer_config.json says; more than vocab_size
 * pieces are an error. Errors: IO, FORMAT, UNSUPPORTED, MEMORY. */
int tokenizer_spm_read(const char *path, uint32_t vocab_size, tokenizer_import *import,
                       tc_error *err);

#endif /* CONVERT_TOKENIZER_SPM_H */
