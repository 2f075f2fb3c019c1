#include "families.h"

/* ---- settings ---- */

/* Switches and factors of other models' config files: any other value would change the numbers. */
const family_setting family_common[] = {
    {"attention_bias", 0, 0},
    {"mlp_bias", 0, 0},
    {"bias", 0, 0},
    {"qkv_bias", 0, 0},
    {"alibi", 0, 0},
    {"use_qk_norm", 0, 0},
    {"qk_norm", 0, 0},
    {"qk_layernorm", 0, 0},
    {"partial_rotary_factor", 1, 1},
    {"rotary_pct", 1, 1},
    {"attn_logit_softcapping", 0, 0},
    {"final_logit_softcapping", 0, 0},
    {"embedding_multiplier", 1, 1},
    {"residual_multiplier", 1, 1},
    {"logits_scaling", 1, 1},
    {"logit_scale", 1, 1},
    {"rope_interleaved", 0, 0},
    {"use_mrope", 0, 0},
    {"attention_chunk_size", 0, 0},
    {NULL, 0, 0},
};

static const family_setting no_settings[] = {{NULL, 0, 0}};

/* ---- the tables' shorthand ---- */

/* clang-format off */
#define VECTOR(name, ...) {name, FAMILY_ONE, FAMILY_JOINED, FAMILY_REQUIRED, {__VA_ARGS__}}
#define ONES(name, ...) {name, FAMILY_ONE, FAMILY_JOINED, FAMILY_ONES, {__VA_ARGS__}}
#define MATRIX(name, columns, ...) {name, columns, FAMILY_JOINED, FAMILY_REQUIRED, {__VA_ARGS__}}
#define EIGHTS(name, columns, ...) {name, columns, FAMILY_EIGHTS, FAMILY_REQUIRED, {__VA_ARGS__}}
#define GROUPED(name, columns, ...) {name, columns, FAMILY_GROUPED, FAMILY_REQUIRED, {__VA_ARGS__}}
#define END {NULL, FAMILY_ONE, FAMILY_JOINED, FAMILY_REQUIRED, {{NULL, FAMILY_ONE}}}

/* ---- LLaMA and what is built like it ---- */

static const family_tensor llama_layer[] = {
    VECTOR("attn_norm", {"input_layernorm.weight", FAMILY_H}),
    MATRIX("qkv", FAMILY_H, {"self_attn.q_proj", FAMILY_Q}, {"self_attn.k_proj", FAMILY_KV},
           {"self_attn.v_proj", FAMILY_KV}),
    MATRIX("o", FAMILY_Q, {"self_attn.o_proj", FAMILY_H}),
    VECTOR("mlp_norm", {"post_attention_layernorm.weight", FAMILY_H}),
    EIGHTS("gate_up", FAMILY_H, {"mlp.gate_proj", FAMILY_I}, {"mlp.up_proj", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"mlp.down_proj", FAMILY_H}),
    END,
};

/* With biases of q, k and v. */
static const family_tensor qwen2_layer[] = {
    VECTOR("attn_norm", {"input_layernorm.weight", FAMILY_H}),
    MATRIX("qkv", FAMILY_H, {"self_attn.q_proj", FAMILY_Q}, {"self_attn.k_proj", FAMILY_KV},
           {"self_attn.v_proj", FAMILY_KV}),
    VECTOR("qkv_bias", {"self_attn.q_proj.bias", FAMILY_Q}, {"self_attn.k_proj.bias", FAMILY_KV},
           {"self_attn.v_proj.bias", FAMILY_KV}),
    MATRIX("o", FAMILY_Q, {"self_attn.o_proj", FAMILY_H}),
    VECTOR("mlp_norm", {"post_attention_layernorm.weight", FAMILY_H}),
    EIGHTS("gate_up", FAMILY_H, {"mlp.gate_proj", FAMILY_I}, {"mlp.up_proj", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"mlp.down_proj", FAMILY_H}),
    END,
};

/* With norms of each head's query and key. */
static const family_tensor qwen3_layer[] = {
    VECTOR("attn_norm", {"input_layernorm.weight", FAMILY_H}),
    MATRIX("qkv", FAMILY_H, {"self_attn.q_proj", FAMILY_Q}, {"self_attn.k_proj", FAMILY_KV},
           {"self_attn.v_proj", FAMILY_KV}),
    VECTOR("q_norm", {"self_attn.q_norm.weight", FAMILY_D}),
    VECTOR("k_norm", {"self_attn.k_norm.weight", FAMILY_D}),
    MATRIX("o", FAMILY_Q, {"self_attn.o_proj", FAMILY_H}),
    VECTOR("mlp_norm", {"post_attention_layernorm.weight", FAMILY_H}),
    EIGHTS("gate_up", FAMILY_H, {"mlp.gate_proj", FAMILY_I}, {"mlp.up_proj", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"mlp.down_proj", FAMILY_H}),
    END,
};

static const family_tensor llama_end[] = {VECTOR("norm", {"model.norm.weight", FAMILY_H}), END};

static const family_word llama_words[] = {{"hidden_act", {"silu", "swish"}}, {NULL, {NULL}}};

/* What the pages of this section share. */
#define LLAMA                                                                                      \
    .when = no_settings,                                                                           \
    .sizes = {[FAMILY_HIDDEN] = {{"hidden_size"}, 0},                                              \
              [FAMILY_INTERMEDIATE] = {{"intermediate_size"}, 0},                                  \
              [FAMILY_LAYERS] = {{"num_hidden_layers"}, 0},                                        \
              [FAMILY_HEADS] = {{"num_attention_heads"}, 0},                                       \
              [FAMILY_KV_HEADS] = {{"num_key_value_heads"}, 0},                                    \
              [FAMILY_HEAD_DIM] = {{"head_dim"}, 0},                                               \
              [FAMILY_VOCAB] = {{"vocab_size"}, 0},                                                \
              [FAMILY_POSITIONS] = {{"max_position_embeddings", "max_sequence_length"}, 2048}},    \
    .eps_key = "rms_norm_eps", .eps = 1e-6, .settings = no_settings, .words = llama_words,         \
    .norm = TC__NORM_RMS, .position = TC__POSITION_ROPE, .activation = TC__ACT_SILU,               \
    .gated = true, .embed = "model.embed_tokens", .head = "lm_head", .layer = "model.layers.",     \
    .end_tensors = llama_end

static const family llama = {
    LLAMA,
    .name = "llama",
    .models = "LLaMA 1 to 3, Vicuna, CodeLlama, TinyLlama (llama)",
    .types = {{"llama", NULL}},
    .architectures = {"llamaforcausallm"},
    .window = true,
    .layer_tensors = llama_layer,
};

static const family mistral = {
    LLAMA,
    .name = "mistral",
    .models = "Mistral (mistral)",
    .types = {{"mistral", NULL}},
    .architectures = {"mistralforcausallm"},
    .window = true,
    .layer_tensors = llama_layer,
};

static const family qwen2 = {
    LLAMA,
    .name = "qwen2",
    .models = "Qwen2 and Qwen2.5 (qwen2)",
    .types = {{"qwen2", NULL}},
    .architectures = {"qwen2forcausallm"},
    .layer_tensors = qwen2_layer,
};

static const family qwen3 = {
    LLAMA,
    .name = "qwen3",
    .models = "Qwen3 (qwen3)",
    .types = {{"qwen3", NULL}},
    .architectures = {"qwen3forcausallm"},
    .layer_tensors = qwen3_layer,
};

/* ---- MPT ---- */

static const family_tensor mpt_layer[] = {
    VECTOR("attn_norm", {"norm_1.weight", FAMILY_H}),
    MATRIX("qkv", FAMILY_H, {"attn.Wqkv", FAMILY_QKV}),
    MATRIX("o", FAMILY_Q, {"attn.out_proj", FAMILY_H}),
    VECTOR("mlp_norm", {"norm_2.weight", FAMILY_H}),
    MATRIX("up", FAMILY_H, {"ffn.up_proj", FAMILY_I}),
    ONES("act_scales", {"ffn.act.scales", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"ffn.down_proj", FAMILY_H}),
    END,
};

static const family_tensor mpt_end[] = {VECTOR("norm", {"transformer.norm_f.weight", FAMILY_H}),
                                        END};

static const family_setting mpt_settings[] = {
    {"no_bias", 1, 1},
    {"attn_config.alibi", 1, 1},
    {"attn_config.rope", 0, 0},
    {"attn_config.qk_ln", 0, 0},
    {"attn_config.qk_gn", 0, 0},
    {"attn_config.prefix_lm", 0, 0},
    {"attn_config.attn_uses_sequence_id", 0, 0},
    {"attn_config.softmax_scale", 0, 0},
    {"attn_config.sliding_window_size", -1, -1},
    {"attn_config.attn_logit_softcapping", 0, 0},
    {NULL, 0, 0},
};

static const family_word mpt_words[] = {
    {"norm_type", {"low_precision_layernorm", "layernorm"}},
    {"attn_config.attn_type", {"multihead_attention"}},
    {"ffn_config.ffn_type", {"mptmlp"}},
    {"ffn_config.ffn_act_fn", {NULL}},
    {NULL, {NULL}},
};

static const family mpt = {
    .name = "mpt",
    .models = "MPT (mpt)",
    .types = {{"mpt", NULL}},
    .architectures = {"mptforcausallm"},
    .when = no_settings,
    .sizes = {[FAMILY_HIDDEN] = {{"d_model", "hidden_size"}, 0},
              [FAMILY_LAYERS] = {{"n_layers", "num_hidden_layers"}, 0},
              [FAMILY_HEADS] = {{"n_heads", "num_attention_heads"}, 0},
              [FAMILY_VOCAB] = {{"vocab_size"}, 0},
              [FAMILY_POSITIONS] = {{"max_seq_len"}, 2048}},
    .ratio_key = "expansion_ratio",
    .ratio = 4,
    .eps_key = "layer_norm_epsilon",
    .eps = 1e-5,
    .tied = true,
    .clip_qkv = "attn_config.clip_qkv",
    .alibi_bias_max = "attn_config.alibi_bias_max",
    .settings = mpt_settings,
    .words = mpt_words,
    .norm = TC__NORM_LAYER,
    .position = TC__POSITION_ALIBI,
    .activation = TC__ACT_GELU,
    .embed = "transformer.wte",
    .head = "lm_head",
    .layer = "transformer.blocks.",
    .layer_tensors = mpt_layer,
    .end_tensors = mpt_end,
};

/* ---- Falcon ---- */

/* One norm, one key-value head. */
static const family_tensor falcon_7b_layer[] = {
    VECTOR("attn_norm", {"input_layernorm.weight", FAMILY_H}),
    VECTOR("attn_norm_bias", {"input_layernorm.bias", FAMILY_H}),
    MATRIX("qkv", FAMILY_H, {"self_attention.query_key_value", FAMILY_QKV}),
    MATRIX("o", FAMILY_Q, {"self_attention.dense", FAMILY_H}),
    MATRIX("up", FAMILY_H, {"mlp.dense_h_to_4h", FAMILY_I}),
    ONES("act_scales", {"mlp.act.scales", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"mlp.dense_4h_to_h", FAMILY_H}),
    END,
};

/* One norm, several key-value heads. */
static const family_tensor falcon_11b_layer[] = {
    VECTOR("attn_norm", {"input_layernorm.weight", FAMILY_H}),
    VECTOR("attn_norm_bias", {"input_layernorm.bias", FAMILY_H}),
    GROUPED("qkv", FAMILY_H, {"self_attention.query_key_value", FAMILY_QKV}),
    MATRIX("o", FAMILY_Q, {"self_attention.dense", FAMILY_H}),
    MATRIX("up", FAMILY_H, {"mlp.dense_h_to_4h", FAMILY_I}),
    ONES("act_scales", {"mlp.act.scales", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"mlp.dense_4h_to_h", FAMILY_H}),
    END,
};

/* Two norms of the same input, several key-value heads. */
static const family_tensor falcon_40b_layer[] = {
    VECTOR("attn_norm", {"ln_attn.weight", FAMILY_H}),
    VECTOR("attn_norm_bias", {"ln_attn.bias", FAMILY_H}),
    GROUPED("qkv", FAMILY_H, {"self_attention.query_key_value", FAMILY_QKV}),
    MATRIX("o", FAMILY_Q, {"self_attention.dense", FAMILY_H}),
    VECTOR("mlp_norm", {"ln_mlp.weight", FAMILY_H}),
    VECTOR("mlp_norm_bias", {"ln_mlp.bias", FAMILY_H}),
    MATRIX("up", FAMILY_H, {"mlp.dense_h_to_4h", FAMILY_I}),
    ONES("act_scales", {"mlp.act.scales", FAMILY_I}),
    MATRIX("down", FAMILY_I, {"mlp.dense_4h_to_h", FAMILY_H}),
    END,
};

static const family_tensor falcon_end[] = {VECTOR("norm", {"transformer.ln_f.weight", FAMILY_H}),
                                           VECTOR("norm_bias", {"transformer.ln_f.bias", FAMILY_H}),
                                           END};

static const family_setting falcon_settings[] = {
    {"parallel_attn", 1, 1},
    {"apply_residual_connection_post_layernorm", 0, 0},
    {NULL, 0, 0},
};

static const family_word falcon_words[] = {{"activation", {"gelu"}}, {NULL, {NULL}}};

/* What the pages of this section share; the argument is where the number of key-value heads is
 * found. */
#define FALCON(...)                                                                                \
    .name = "falcon", .architectures = {"falconforcausallm", "rwforcausallm"},                     \
    .sizes = {[FAMILY_HIDDEN] = {{"hidden_size", "n_embed"}, 0},                                   \
              [FAMILY_INTERMEDIATE] = {{"ffn_hidden_size"}, 0},                                    \
              [FAMILY_LAYERS] = {{"num_hidden_layers", "n_layer"}, 0},                             \
              [FAMILY_HEADS] = {{"num_attention_heads", "n_head"}, 0},                             \
              [FAMILY_KV_HEADS] = __VA_ARGS__,                                                     \
              [FAMILY_VOCAB] = {{"vocab_size"}, 0},                                                \
              [FAMILY_POSITIONS] = {{"max_position_embeddings"}, 2048}},                           \
    .ratio = 4, .eps_key = "layer_norm_epsilon", .eps = 1e-5, .tied = true,                        \
    .settings = falcon_settings, .words = falcon_words, .norm = TC__NORM_LAYER,                    \
    .position = TC__POSITION_ROPE, .activation = TC__ACT_GELU, .parallel = true,                   \
    .embed = "transformer.word_embeddings", .head = "lm_head", .layer = "transformer.h.",          \
    .end_tensors = falcon_end
/* clang-format on */

static const family_setting falcon_40b_when[] = {
    {"new_decoder_architecture", 1, 0}, {"num_ln_in_parallel_attn", 2, 2}, {NULL, 0, 0}};
static const family_setting falcon_11b_when[] = {
    {"new_decoder_architecture", 1, 0}, {"num_ln_in_parallel_attn", 1, 2}, {NULL, 0, 0}};
static const family_setting falcon_7b_when[] = {{"new_decoder_architecture", 0, 0},
                                                {"multi_query", 1, 1},
                                                {"num_ln_in_parallel_attn", 1, 1},
                                                {NULL, 0, 0}};

static const family falcon_40b = {
    FALCON({{"num_kv_heads", "n_head_kv"}, 0}),
    .models = "Falcon-40B (falcon, RefinedWeb)",
    .types = {{"falcon", NULL}, {"refinedweb", "new_decoder_architecture"}},
    .when = falcon_40b_when,
    .layer_tensors = falcon_40b_layer,
};

static const family falcon_11b = {
    FALCON({{"num_kv_heads", "n_head_kv"}, 0}),
    .models = "Falcon2-11B (falcon)",
    .types = {{"falcon", NULL}},
    .when = falcon_11b_when,
    .layer_tensors = falcon_11b_layer,
};

/* Its config.json may say num_kv_heads = 71; multi-query attention has one. */
static const family falcon_7b = {
    FALCON({{NULL}, 1}),
    .models = "Falcon-7B (falcon, RefinedWebModel)",
    .types = {{"falcon", NULL}, {"refinedwebmodel", NULL}},
    .when = falcon_7b_when,
    .layer_tensors = falcon_7b_layer,
};

/* ---- the list ---- */

static const family *const families[] = {&llama, &mistral,    &qwen2,      &qwen3,
                                         &mpt,   &falcon_40b, &falcon_11b, &falcon_7b};

const family *family_at(int index) {
    return index >= 0 && index < (int)TC_COUNT(families) ? families[index] : NULL;
}

void family_list(char *text, size_t size) {
    size_t len = 0;
    text[0] = 0;
    for (size_t i = 0; i < TC_COUNT(families) && len < size; i++)
        len += (size_t)snprintf(text + len, size - len, "%s%s", i ? ", " : "", families[i]->models);
}
