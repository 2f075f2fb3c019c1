#include "hf_config.h"

#include "json.h"

#include <ctype.h>
#include <math.h>
#include <sys/stat.h>

/* One file being read. */
typedef struct hf_file {
    const char *path;
    json_doc doc;
    const json_value *root;
    tc_error *err;
} hf_file;

char *hf_path(const char *dir, const char *file) {
    tc__buf path = {0};
    struct stat info;
    tc__buf_printf(&path, "%s/%s", dir, file);
    if (path.failed || stat(path.data, &info) || !S_ISREG(info.st_mode)) tc__buf_free(&path);
    return path.data;
}

/* A member, with null counting as absent. */
static const json_value *hf_get(const hf_file *file, const json_value *object, const char *key) {
    const json_value *value = json_get(&file->doc, object, key);
    return json_type(value) == JSON_NULL ? NULL : value;
}

static int hf_bad(const hf_file *file, const char *key, const char *expected) {
    return tc__fail(file->err, TC_ERR_FORMAT, "%s: '%s' is not %s", file->path, key, expected);
}

/* fallback < 0: the key is required. The caps are those of the model file's reader. */
static int hf_u32(const hf_file *file, const char *key, int64_t fallback, uint32_t max,
                  uint32_t *out) {
    const json_value *value = hf_get(file, file->root, key);
    int64_t number = fallback;
    if (!value && fallback < 0)
        return tc__fail(file->err, TC_ERR_FORMAT, "%s: '%s' is missing", file->path, key);
    if ((value && !json_int(&file->doc, value, &number)) || number < 1 || number > max)
        return tc__fail(file->err, TC_ERR_FORMAT, "%s: '%s' is not an integer from 1 to %u",
                        file->path, key, (unsigned)max);
    *out = (uint32_t)number;
    return TC_OK;
}

static int hf_double(const hf_file *file, const json_value *object, const char *key, double *out) {
    const json_value *value = hf_get(file, object, key);
    if (value && (!json_double(&file->doc, value, out) || !(*out > 0) || !isfinite(*out)))
        return hf_bad(file, key, "a positive number");
    return TC_OK;
}

/* A string, lower case, cut to fit; "" if absent or no string. */
static void hf_word(const hf_file *file, const json_value *value, char *out, size_t size) {
    tc__buf text = {0};
    out[0] = 0;
    if (json_string(&file->doc, value, &text) && !text.failed && text.data) {
        snprintf(out, size, "%s", text.data);
        for (char *c = out; *c; c++) *c = (char)tolower((unsigned char)*c);
    }
    tc__buf_free(&text);
}

/* ---- what is refused ---- */

#define HF_SUPPORTED "supported: LLaMA, LLaMA-2 and Vicuna (model_type llama, LlamaForCausalLM)"

static int hf_check_family(const hf_file *file) {
    char type[64], architecture[64];
    hf_word(file, hf_get(file, file->root, "model_type"), type, sizeof type);
    const json_value *list = hf_get(file, file->root, "architectures");
    hf_word(file, json_type(list) == JSON_ARRAY ? json_first(list) : NULL, architecture,
            sizeof architecture);
    if (strcmp(type, "llama") != 0 && (type[0] || !architecture[0]))
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: model_type '%s' is not supported; " HF_SUPPORTED, file->path, type);
    if (architecture[0] && strcmp(architecture, "llamaforcausallm") != 0)
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: architecture '%s' is not supported; " HF_SUPPORTED, file->path,
                        architecture);
    return TC_OK;
}

/* Switches and factors that would change the numbers unless they have their neutral value. */
static int hf_check_neutral(const hf_file *file, const json_value *object) {
    static const struct {
        const char *key;
        double neutral; /* false is 0, null always neutral */
    } switches[] = {
        {"attention_bias", 0},
        {"mlp_bias", 0},
        {"bias", 0},
        {"qkv_bias", 0},
        {"alibi", 0},
        {"use_qk_norm", 0},
        {"qk_norm", 0},
        {"qk_layernorm", 0},
        {"partial_rotary_factor", 1},
        {"rotary_pct", 1},
        {"attn_logit_softcapping", 0},
        {"final_logit_softcapping", 0},
        {"embedding_multiplier", 1},
        {"residual_multiplier", 1},
        {"logits_scaling", 1},
        {"logit_scale", 1},
    };
    for (size_t i = 0; i < TC_COUNT(switches); i++) {
        const json_value *value = hf_get(file, object, switches[i].key);
        bool flag;
        double number;
        if (!value || (json_bool(value, &flag) && flag == (switches[i].neutral != 0)) ||
            (json_double(&file->doc, value, &number) && number == switches[i].neutral))
            continue;
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: '%s' has a value that is not implemented yet and would change the "
                        "model's answers",
                        file->path, switches[i].key);
    }
    return TC_OK;
}

/* rope_scaling or rope_parameters: only the type "default". */
static int hf_check_rope(const hf_file *file, const char *key) {
    const json_value *rope = hf_get(file, file->root, key);
    if (!rope) return TC_OK;
    if (json_type(rope) != JSON_OBJECT) return hf_bad(file, key, "an object");
    char type[64];
    const json_value *value = hf_get(file, rope, "rope_type");
    if (!value) value = hf_get(file, rope, "type");
    hf_word(file, value, type, sizeof type);
    for (const json_value *item = json_first(rope); item; item = json_next(rope, item))
        if (json_type(json_member(item)) == JSON_OBJECT) snprintf(type, sizeof type, "per layer");
    if (value && !type[0]) return hf_bad(file, key, "an object with a type that is a string");
    if ((type[0] && strcmp(type, "default") != 0) || (!type[0] && hf_get(file, rope, "factor")))
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: '%s' of type '%s' is not implemented yet and would change the model's "
                        "answers; supported: default",
                        file->path, key, type);
    return hf_check_neutral(file, rope);
}

static int hf_check_window(const hf_file *file) {
    const json_value *window = hf_get(file, file->root, "sliding_window");
    const json_value *types = hf_get(file, file->root, "layer_types");
    bool used = true;
    json_bool(hf_get(file, file->root, "use_sliding_window"), &used);
    bool matters = window && used;
    for (const json_value *item = json_first(types); item; item = json_next(types, item))
        matters |= json_type(types) == JSON_ARRAY && !json_is(&file->doc, item, "full_attention");
    if (!matters) return TC_OK;
    return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                    "%s: '%s': sliding-window attention is not implemented yet and would change "
                    "the model's answers",
                    file->path, window && used ? "sliding_window" : "layer_types");
}

static int hf_check(const hf_file *file) {
    char activation[64];
    const json_value *value = hf_get(file, file->root, "hidden_act");
    hf_word(file, value, activation, sizeof activation);
    if (value && strcmp(activation, "silu") != 0 && strcmp(activation, "swish") != 0)
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: hidden_act '%s' is not implemented yet; supported: silu", file->path,
                        activation);
    int code = hf_check_neutral(file, file->root);
    if (!code) code = hf_check_rope(file, "rope_scaling");
    if (!code) code = hf_check_rope(file, "rope_parameters");
    if (!code) code = hf_check_window(file);
    return code;
}

/* ---- what is read ---- */

static int hf_add_stop(const hf_file *file, const json_value *value, hf_config *config) {
    int64_t id;
    if (!json_int(&file->doc, value, &id))
        return hf_bad(file, "eos_token_id", "an integer or a list of integers");
    for (size_t i = 0; i < config->stop_count; i++)
        if (config->stop_ids[i] == id) return TC_OK;
    if (config->stop_count == HF_MAX_STOP_IDS)
        return tc__fail(file->err, TC_ERR_UNSUPPORTED, "%s: more than %d stop ids", file->path,
                        HF_MAX_STOP_IDS);
    if (id >= 0) config->stop_ids[config->stop_count++] = id;
    return TC_OK;
}

static int hf_read_stops(const hf_file *file, hf_config *config) {
    const json_value *eos = hf_get(file, file->root, "eos_token_id");
    if (!eos) return TC_OK;
    if (json_type(eos) != JSON_ARRAY) return hf_add_stop(file, eos, config);
    int code = TC_OK;
    for (const json_value *item = json_first(eos); item && !code; item = json_next(eos, item))
        code = hf_add_stop(file, item, config);
    return code;
}

static int hf_read_sizes(const hf_file *file, hf_config *config) {
    const struct {
        const char *key;
        int64_t fallback;
        uint32_t max, *out;
    } sizes[] = {
        {"hidden_size", -1, 1u << 17, &config->hidden_size},
        {"intermediate_size", -1, 1u << 20, &config->intermediate_size},
        {"num_hidden_layers", -1, 1024, &config->layers},
        {"num_attention_heads", -1, 1024, &config->heads},
        {"vocab_size", -1, 1u << 21, &config->vocab_size},
        {"max_sequence_length", 2048, 1u << 24, &config->max_seq_len}, /* LLaMA's first configs */
    };
    int code = TC_OK;
    for (size_t i = 0; i < TC_COUNT(sizes) && !code; i++)
        code = hf_u32(file, sizes[i].key, sizes[i].fallback, sizes[i].max, sizes[i].out);
    if (!code) code = hf_u32(file, "num_key_value_heads", config->heads, 1024, &config->kv_heads);
    if (!code)
        code =
            hf_u32(file, "head_dim", config->hidden_size / config->heads, 1024, &config->head_dim);
    if (!code)
        code = hf_u32(file, "max_position_embeddings", config->max_seq_len, 1u << 24,
                      &config->max_seq_len);
    if (code) return code;
    if (config->heads % config->kv_heads || config->head_dim % 2 || config->intermediate_size % 8)
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: %u heads, %u key-value heads, head_dim %u, intermediate_size %u: "
                        "expected heads that are a multiple of the key-value heads, an even "
                        "head_dim, an intermediate_size that is a multiple of 8",
                        file->path, (unsigned)config->heads, (unsigned)config->kv_heads,
                        (unsigned)config->head_dim, (unsigned)config->intermediate_size);
    return TC_OK;
}

static int hf_read_numbers(const hf_file *file, hf_config *config, tc__buf *notes) {
    config->norm_eps = 1e-6;
    config->rope_theta = 10000;
    if (!hf_get(file, file->root, "rms_norm_eps"))
        tc__buf_printf(notes, "%s: no 'rms_norm_eps'; 1e-6 is used\n", file->path);
    const json_value *rope = hf_get(file, file->root, "rope_parameters");
    int code = hf_double(file, file->root, "rms_norm_eps", &config->norm_eps);
    if (!code) code = hf_double(file, file->root, "rope_theta", &config->rope_theta);
    if (!code) code = hf_double(file, rope, "rope_theta", &config->rope_theta);
    return code;
}

/* quantization_config, or the old quant_config.json whose names end differently. */
static void hf_read_quant(const hf_file *file, const json_value *quant, hf_config *config) {
    const json_value *bits = hf_get(file, quant, "bits"),
                     *group = hf_get(file, quant, "group_size");
    if (!bits) bits = hf_get(file, quant, "w_bit");
    if (!group) group = hf_get(file, quant, "q_group_size");
    hf_word(file, hf_get(file, quant, "quant_method"), config->quant_method,
            sizeof config->quant_method);
    hf_word(file, hf_get(file, quant, "version"), config->quant_version,
            sizeof config->quant_version);
    if (!config->quant_method[0])
        snprintf(config->quant_method, sizeof config->quant_method, "awq");
    if (!json_int(&file->doc, bits, &config->quant_bits)) config->quant_bits = 0;
    if (!json_int(&file->doc, group, &config->quant_group)) config->quant_group = 0;
}

static int hf_read_config(hf_file *file, hf_config *config, tc__buf *notes) {
    int code = hf_check_family(file);
    if (!code) code = hf_read_sizes(file, config);
    if (!code) code = hf_check(file);
    if (!code) code = hf_read_numbers(file, config, notes);
    if (!code) code = hf_read_stops(file, config);
    if (code) return code;
    json_bool(hf_get(file, file->root, "tie_word_embeddings"), &config->tied);
    const json_value *quant = hf_get(file, file->root, "quantization_config");
    if (quant) hf_read_quant(file, quant, config);
    tc__buf name = {0};
    json_string(&file->doc, hf_get(file, file->root, "_name_or_path"), &name);
    config->name_or_path = name.data ? name.data : tc__copy("", 0);
    if (name.failed || !config->name_or_path) return tc__fail_memory(file->err, "a name", name.len);
    return TC_OK;
}

static int hf_read_generation(hf_file *file, hf_config *config, tc__buf *notes) {
    (void)notes;
    return hf_read_stops(file, config);
}

static int hf_read_quant_file(hf_file *file, hf_config *config, tc__buf *notes) {
    (void)notes;
    if (!config->quant_method[0]) hf_read_quant(file, file->root, config);
    return TC_OK;
}

/* Opens DIR/name, which must hold an object, and hands it to `read`. */
static int hf_read_file(const char *dir, const char *name, bool required, hf_config *config,
                        tc__buf *notes, int (*read)(hf_file *, hf_config *, tc__buf *),
                        tc_error *err) {
    char *path = hf_path(dir, name);
    struct stat info;
    if (!path && !required) return TC_OK;
    if (!path && (stat(dir, &info) || !S_ISDIR(info.st_mode)))
        return tc__fail(err, TC_ERR_IO, "%s: no such folder; expected a Hugging Face model folder",
                        dir);
    if (!path)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: no %s in this folder; expected a Hugging Face model folder", dir,
                        name);
    hf_file file = {path, {0}, NULL, err};
    int code = json_open(path, &file.doc, err);
    if (!code) {
        file.root = json_root(&file.doc);
        if (json_type(file.root) != JSON_OBJECT)
            code = tc__fail(err, TC_ERR_FORMAT, "%s: not a JSON object", path);
        else
            code = read(&file, config, notes);
        json_close(&file.doc);
    }
    free(path);
    return code;
}

int hf_config_read(const char *dir, hf_config *config, tc__buf *notes, tc_error *err) {
    memset(config, 0, sizeof *config);
    int code = hf_read_file(dir, "config.json", true, config, notes, hf_read_config, err);
    if (!code)
        code = hf_read_file(dir, "generation_config.json", false, config, notes, hf_read_generation,
                            err);
    if (!code)
        code =
            hf_read_file(dir, "quant_config.json", false, config, notes, hf_read_quant_file, err);
    if (code) hf_config_free(config);
    return code;
}

void hf_config_free(hf_config *config) {
    free(config->name_or_path);
    config->name_or_path = NULL;
}

int hf_config_check_quant(const hf_config *config, const char *dir, tc_error *err) {
    static const struct {
        const char *method, *what;
    } later[] = {
        {"gptq", "GPTQ checkpoints are not supported yet"},
        {"marlin", "Marlin checkpoints are not supported yet"},
        {"compressed-tensors", "compressed-tensors checkpoints are not supported yet"},
    };
    if (!config->quant_method[0]) return TC_OK;
    for (size_t i = 0; i < TC_COUNT(later); i++)
        if (strcmp(config->quant_method, later[i].method) == 0)
            return tc__fail(err, TC_ERR_UNSUPPORTED,
                            "%s: %s; use an AWQ or a 16-bit checkpoint of the model", dir,
                            later[i].what);
    if (strcmp(config->quant_method, "awq") != 0)
        return tc__fail(
            err, TC_ERR_UNSUPPORTED,
            "%s: quant_method '%s' is not supported; supported: awq, or no quantisation", dir,
            config->quant_method);
    if (strncmp(config->quant_version, "marlin", 6) == 0)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "%s: AWQ version '%s' (Marlin) is not supported yet; use a checkpoint of "
                        "version gemm or gemv",
                        dir, config->quant_version);
    if (config->quant_bits && config->quant_bits != 4)
        return tc__fail(err, TC_ERR_UNSUPPORTED, "%s: quantised to %lld bits; supported: 4", dir,
                        (long long)config->quant_bits);
    return TC_OK;
}
