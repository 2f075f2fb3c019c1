/* hf_config - a Hugging Face folder's config.json, generation_config.json and quant_config.json:
 * which family, hyper-parameters, stop ids, what the folder says about its quantisation.
 *
 * What the keys are called and what a missing one means is in the family's page (families.c);
 * null counts as absent. Whatever would change the model's numbers and is not implemented is
 * refused by name.
 */
#ifndef CONVERT_HF_CONFIG_H
#define CONVERT_HF_CONFIG_H

#include "families.h"
#include "rope.h"

#define HF_MAX_STOP_IDS 64

typedef struct hf_config {
    char *name_or_path; /* config.json's _name_or_path; "" if there is none */
    const family *family;
    uint32_t hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    uint32_t sliding_window; /* 0: none that matters; else it is what ends max_seq_len */
    double norm_eps;
    double clip_qkv; /* 0: none */
    rope rope;
    float *alibi_slopes; /* [heads] with ALiBi, owned */
    bool tied;
    int64_t stop_ids[HF_MAX_STOP_IDS]; /* eos_token_id of both files, each once, as they stand */
    size_t stop_count;

    char quant_method[32];           /* lower case; "" if config.json has no quantization_config */
    char quant_version[32];          /* lower case; "" if not given */
    int64_t quant_bits, quant_group; /* 0 if not given; group -1: whole rows */
    bool quant_desc_act;             /* GPTQ with act-order */
    bool quant_zeros_whole;  /* GPTQ's format gptq_v2: zero points are not stored less one */
    char quant_problem[160]; /* what cannot be read, or "" */
} hf_config;

/* "DIR/file", malloc'ed; NULL if there is nothing of that name. What cannot be read (a link to
 * nowhere, a folder) is there, and named when it is opened. */
char *hf_path(const char *dir, const char *file);

/* Reads the folder. Remarks are added to `notes`, a line each. Errors: IO (no config.json), FORMAT
 * (bad JSON, a missing or impossible number), UNSUPPORTED, MEMORY. On failure nothing is held. */
int hf_config_read(const char *dir, hf_config *config, tc__buf *notes, tc_error *err);
void hf_config_free(hf_config *config);

/* Refuses a quantisation that the folder's own weights are said to have and that cannot be read: an
 * unknown method, other than 4 bits, quantised activations... Not to be asked when weights come
 * from somewhere else. Errors: UNSUPPORTED. */
int hf_config_check_quant(const hf_config *config, const char *dir, tc_error *err);

#endif /* CONVERT_HF_CONFIG_H */
