/* rope - RoPE's angles from a config.json: rope_theta and the scalings linear, dynamic, llama3 and
 * yarn, as transformers computes them (modeling_rope_utils.py). Other scalings are refused by name.
 */
#ifndef CONVERT_ROPE_H
#define CONVERT_ROPE_H

#include "hf_file.h"

typedef struct rope {
    char type[32]; /* "default", "linear", ... */
    double theta;
    double
        *frequencies; /* [head_dim / 2] radians per position, owned; NULL: theta^(-2i/head_dim) */
    double scale;     /* of cosines and sines */
} rope;

/* Reads rope_theta and rope_scaling, or rope_parameters where transformers 5 keeps both. *positions
 * is the context, max_position_embeddings; it grows to what a scaling was made for where the file
 * says that. Remarks go to file->notes. Errors: FORMAT, UNSUPPORTED, MEMORY. */
int rope_read(const hf_file *file, uint32_t head_dim, uint32_t *positions, rope *out);
void rope_free(rope *r);

#endif /* CONVERT_ROPE_H */
