/* inspect - prints what is in a checkpoint or model file, and checks a model file's checksums.
 */
#ifndef CONVERT_INSPECT_H
#define CONVERT_INSPECT_H

#include "src/base.h"

/* Lists a model file (metadata, tensors), a checkpoint file, a split folder, a Hugging Face folder
 * (also its hyper-parameters) or AWQ search results on `out`: formats, shapes, packings, group
 * sizes. Nothing is executed and no tensor data beyond a row of scales is read.
 * Errors: as ckpt_open_any and tc__model_file_open. */
int inspect_file(const char *path, FILE *out, tc_error *err);

/* Compares every tensor of a model file with its checksum and checks that an engine would accept
 * its hyper-parameters, tokenizer and chat template. `progress` may be NULL.
 * Errors: FORMAT naming the first damaged tensor, UNSUPPORTED, IO, MEMORY. */
int inspect_verify(const char *path, FILE *out, void (*progress)(void *user, double fraction),
                   void *user, tc_error *err);

#endif /* CONVERT_INSPECT_H */
