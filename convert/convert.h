/* convert - a checkpoint to a model file: finds every tensor of the model in the checkpoint, plans
 * the file, and streams it out.
 *
 * Weights: binary16 and bfloat16 are copied bit for bit; packed layers become W4 units with the
 * same q, scales and zero points; binary32 becomes binary16 where that is exact, else bfloat16
 * where that is exact, else binary16 rounded to nearest (with a remark that counts the rounded
 * values; a value beyond binary16 is an error). Norms become binary32, which is exact. An lm_head
 * that is the embedding once more is left out when the folder says that they are tied.
 *
 * Memory: one band of rows at a time (at most 20 MB) and the scales of one matrix; of the mapped
 * files, about 130 MB are resident at once.
 */
#ifndef CONVERT_CONVERT_H
#define CONVERT_CONVERT_H

#include "src/base.h"

typedef struct convert_options {
    const char *hf;     /* Hugging Face folder: hyper-parameters, tokenizer, weights unless awq */
    const char *awq;    /* NULL, or the llm-awq dump (file or split folder) with the weights */
    const char *search; /* NULL, or AWQ search results by which 16-bit weights are quantised */
    bool quantise;      /* 16-bit weights are quantised by rounding to nearest */
    uint32_t group;     /* with either: 32, 64 or 128; 0: what suits */
    const char *output; /* the model file */
    const char *template_name; /* NULL: found out */
    const char *name;          /* NULL: the folder's */
    bool no_tokenizer;
    const tc__flag *cancel;                        /* NULL, or raised to stop */
    void (*note)(void *user, const char *line);    /* remarks, without newline; NULL: none */
    void (*found)(void *user, const char *line);   /* what was found, before the work; NULL */
    void (*progress)(void *user, double fraction); /* NULL: none */
    void *user;
} convert_options;

typedef struct convert_summary {
    uint64_t input_bytes, output_bytes; /* of the checkpoint's tensors; of the model file */
    size_t tensors;
    char source[256];   /* "AWQ packing B, group size 128; torch zip" */
    char precision[64]; /* "W4A16 g128" */
    const char *template_name;
} convert_summary;

/* Errors: IO, FORMAT, UNSUPPORTED, MEMORY; ARGUMENT (an unknown template or one for another
 * tokenizer, an output that is one of the inputs); CANCELLED. Nothing is left behind on failure; an
 * existing output is untouched. */
int convert_run(const convert_options *options, convert_summary *summary, tc_error *err);

#endif /* CONVERT_CONVERT_H */
