/* hf_config - a Hugging Face folder's config.json, generation_config.json and quant_config.json:
 * hyper-parameters, stop ids, what the folder says about its quantisation.
 *
 * Reading rules: num_key_value_heads defaults to num_attention_heads, head_dim to hidden_size /
 * num_attention_heads, rope_theta to 10000, rms_norm_eps to 1e-6, max_position_embeddings to 2048,
 * tie_word_embeddings to false (the defaults of transformers' LlamaConfig); null counts as absent.
 * rope_theta and the scaling are also read from rope_parameters, where transformers 5 keeps them.
 *
 * Whatever would change the model's numbers and is not implemented is refused by name.
 */
#ifndef CONVERT_HF_CONFIG_H
#define CONVERT_HF_CONFIG_H

#include "src/base.h"

#define HF_MAX_STOP_IDS 64

typedef struct hf_config {
    char *name_or_path; /* config.json's _name_or_path; "" if there is none */
    uint32_t hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    double norm_eps, rope_theta;
    bool tied;
    int64_t stop_ids[HF_MAX_STOP_IDS]; /* eos_token_id of both files, each once, as they stand */
    size_t stop_count;

    char quant_method[32];           /* lower case; "" if config.json has no quantization_config */
    char quant_version[32];          /* lower case; "" if not given */
    int64_t quant_bits, quant_group; /* 0 if not given; group -1: whole rows */
} hf_config;

/* "DIR/file" if it exists as a file, else NULL; malloc'ed. */
char *hf_path(const char *dir, const char *file);

/* Reads the folder. Remarks are added to `notes`, a line each. Errors: IO (no config.json), FORMAT
 * (bad JSON, a missing or impossible number), UNSUPPORTED, MEMORY. On failure nothing is held. */
int hf_config_read(const char *dir, hf_config *config, tc__buf *notes, tc_error *err);
void hf_config_free(hf_config *config);

/* Refuses a quantisation that the folder's own weights are said to have and that cannot be read:
 * another method than AWQ, other than 4 bits, Marlin. Not to be asked when weights come from
 * somewhere else. Errors: UNSUPPORTED. */
int hf_config_check_quant(const hf_config *config, const char *dir, tc_error *err);

#endif /* CONVERT_HF_CONFIG_H */
