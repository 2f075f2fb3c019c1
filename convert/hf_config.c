#include "hf_config.h"

#include <ctype.h>
#include <errno.h>
#include <math.h>
#include <sys/stat.h>

char *hf_path(const char *dir, const char *file) {
    tc__buf path = {0};
    struct stat info;
    tc__buf_printf(&path, "%s/%s", dir, file);
    bool there =
        !path.failed && (!lstat(path.data, &info) || (errno != ENOENT && errno != ENOTDIR));
    if (!there) tc__buf_free(&path);
    return path.data;
}

/* ---- the family ---- */

static int hf_refuse_family(const hf_file *file, const char *key, const char *value) {
    char list[640];
    family_list(list, sizeof list);
    return tc__fail(file->err, TC_ERR_UNSUPPORTED, "%s: %s '%s' is not supported; supported: %s",
                    file->path, key, value, list);
}

/* The page's type with that name; NULL if it has none. */
static const family_type *hf_type_of(const family *page, const char *name) {
    for (size_t i = 0; i < TC_COUNT(page->types) && page->types[i].name; i++)
        if (strcmp(page->types[i].name, name) == 0) return &page->types[i];
    return NULL;
}

static bool hf_is_architecture(const family *page, const char *name) {
    for (size_t i = 0; i < TC_COUNT(page->architectures) && page->architectures[i]; i++)
        if (strcmp(page->architectures[i], name) == 0) return true;
    return false;
}

/* The first of the settings that does not have its value, NULL if all do. `implied`: the name of
 * one that counts as true where it is missing, or NULL. */
static const family_setting *hf_unmet(const hf_file *file, const family_setting *settings,
                                      const char *implied) {
    for (; settings->key; settings++) {
        const json_value *value = hf_get(file, file->root, settings->key);
        double missing = implied && !strcmp(implied, settings->key) ? 1 : settings->missing;
        if (value ? !hf_equals(file, value, settings->value) : missing != settings->value)
            return settings;
    }
    return NULL;
}

static int hf_refuse_setting(const hf_file *file, const family *page,
                             const family_setting *setting) {
    const json_value *value = hf_get(file, file->root, setting->key);
    char found[64], expected[32];
    json_show(&file->doc, value, found, sizeof found);
    snprintf(expected, sizeof expected, "%g", setting->value);
    if (json_type(value) == JSON_BOOL)
        snprintf(expected, sizeof expected, "%s", setting->value ? "true" : "false");
    return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                    "%s: '%s' is %s, which is not supported and would change the model's answers; "
                    "supported with %s: %s",
                    file->path, setting->key, found, page->models, expected);
}

/* A config.json without model_type is known by its architecture. */
static int hf_find_family(const hf_file *file, hf_config *config) {
    char type[64], architecture[64];
    hf_word(file, hf_get(file, file->root, "model_type"), type, sizeof type);
    const json_value *list = hf_get(file, file->root, "architectures");
    hf_word(file, json_type(list) == JSON_ARRAY ? json_first(list) : NULL, architecture,
            sizeof architecture);
    const family *page, *other = NULL; /* a page of this type that is for other settings */
    const family_setting *unmet = NULL;
    for (int i = 0; (page = family_at(i)) != NULL; i++) {
        const family_type *found = hf_type_of(page, type);
        if (!found && (type[0] || !hf_is_architecture(page, architecture))) continue;
        other = page;
        unmet = hf_unmet(file, page->when, found ? found->implies : NULL);
        if (!unmet) break;
    }
    if (!other) return hf_refuse_family(file, "model_type", type);
    if (unmet) return hf_refuse_setting(file, other, unmet);
    if (architecture[0] && !hf_is_architecture(page, architecture))
        return hf_refuse_family(file, "architecture", architecture);
    config->family = page;
    return TC_OK;
}

/* ---- settings ---- */

static bool hf_has_setting(const family *page, const char *key) {
    const family_setting *lists[] = {page->settings, page->when};
    for (size_t i = 0; i < TC_COUNT(lists); i++)
        for (const family_setting *setting = lists[i]; setting->key; setting++)
            if (strcmp(setting->key, key) == 0) return true;
    return false;
}

static int hf_check_settings(const hf_file *file, const family *page) {
    const family_setting *unmet = hf_unmet(file, page->settings, NULL);
    if (unmet) return hf_refuse_setting(file, page, unmet);
    for (const family_setting *setting = family_common; setting->key; setting++) {
        family_setting one[2] = {*setting, {NULL, 0, 0}};
        if (!hf_has_setting(page, setting->key) && hf_unmet(file, one, NULL))
            return hf_refuse_setting(file, page, setting);
    }
    return TC_OK;
}

static int hf_check_words(const hf_file *file, const family *page) {
    for (const family_word *word = page->words; word->key; word++) {
        const json_value *value = hf_get(file, file->root, word->key);
        bool known = !value;
        char text[64];
        hf_word(file, value, text, sizeof text);
        for (size_t i = 0; i < TC_COUNT(word->values) && word->values[i]; i++)
            known |= strcmp(text, word->values[i]) == 0;
        if (!known)
            return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                            "%s: %s '%s' is not supported with %s; supported: %s", file->path,
                            word->key, text, page->models,
                            word->values[0] ? word->values[0] : "none");
    }
    return TC_OK;
}

/* Within the window, attention sees everything: there sliding windows change nothing. */
static int hf_read_window(const hf_file *file, hf_config *config) {
    const json_value *window = hf_get(file, file->root, "sliding_window");
    const json_value *types = hf_get(file, file->root, "layer_types");
    bool used = config->family->window;
    int64_t width = 0;
    json_bool(hf_get(file, file->root, "use_sliding_window"), &used);
    if (window && (!json_int(&file->doc, window, &width) || width < 1))
        return hf_bad(file, "sliding_window", "a positive integer");
    for (const json_value *item = json_first(types); item; item = json_next(types, item)) {
        if (json_type(types) != JSON_ARRAY) return hf_bad(file, "layer_types", "a list");
        if (json_is(&file->doc, item, "full_attention")) continue;
        if (!json_is(&file->doc, item, "sliding_attention") || !window)
            return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                            "%s: 'layer_types' has a layer that is neither full_attention nor "
                            "sliding_attention with a sliding_window",
                            file->path);
        used = true;
    }
    if (!window || !used || width >= config->max_seq_len) return TC_OK;
    config->sliding_window = (uint32_t)width;
    tc__buf_printf(file->notes,
                   "sliding windows are not implemented: the context is limited to the window, %u "
                   "of %u positions, within which the answers are the same\n",
                   (unsigned)config->sliding_window, (unsigned)config->max_seq_len);
    config->max_seq_len = config->sliding_window;
    return TC_OK;
}

/* ---- stop ids ---- */

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

/* ---- sizes and numbers ---- */

/* A size by the first of its keys that is there. Without any: the fallback; 0: that is an error.
 * The caps are those of the model file's reader. */
static int hf_size(const hf_file *file, const family_keys *keys, uint32_t fallback, uint32_t max,
                   uint32_t *out) {
    const json_value *value = NULL;
    const char *key = keys->keys[0] ? keys->keys[0] : "?";
    for (size_t i = 0; i < FAMILY_MAX_KEYS && keys->keys[i] && !value; i++) {
        value = hf_get(file, file->root, keys->keys[i]);
        if (value) key = keys->keys[i];
    }
    int64_t number = fallback;
    if (!value && !fallback)
        return tc__fail(file->err, TC_ERR_FORMAT, "%s: '%s' is missing", file->path, key);
    if ((value && !json_int(&file->doc, value, &number)) || number < 1 || number > max)
        return tc__fail(file->err, TC_ERR_FORMAT, "%s: '%s' is not an integer from 1 to %u",
                        file->path, key, (unsigned)max);
    *out = (uint32_t)number;
    return TC_OK;
}

/* hidden_size times a ratio, where the family has one; 0 if it has none. */
static int hf_ratio(const hf_file *file, const hf_config *config, uint32_t *out) {
    const family *page = config->family;
    double ratio = page->ratio;
    int code = page->ratio_key ? hf_double(file, file->root, page->ratio_key, &ratio) : TC_OK;
    if (code) return code;
    if (ratio > 64 || ratio * config->hidden_size != floor(ratio * config->hidden_size))
        return hf_bad(file, page->ratio_key ? page->ratio_key : "ratio", "a ratio of two sizes");
    *out = (uint32_t)(ratio * config->hidden_size);
    return TC_OK;
}

static int hf_read_sizes(const hf_file *file, hf_config *config) {
    const family_keys *sizes = config->family->sizes;
    uint32_t ratio = 0;
    const struct {
        family_size size;
        uint32_t max, *out;
    } plain[] = {
        {FAMILY_HIDDEN, 1u << 17, &config->hidden_size},
        {FAMILY_LAYERS, 1024, &config->layers},
        {FAMILY_HEADS, 1024, &config->heads},
        {FAMILY_VOCAB, 1u << 21, &config->vocab_size},
        {FAMILY_POSITIONS, 1u << 24, &config->max_seq_len},
    };
    int code = TC_OK;
    for (size_t i = 0; i < TC_COUNT(plain) && !code; i++) {
        const family_keys *keys = &sizes[plain[i].size];
        code = hf_size(file, keys, keys->fallback, plain[i].max, plain[i].out);
    }
    if (!code) code = hf_ratio(file, config, &ratio);
    if (!code)
        code =
            hf_size(file, &sizes[FAMILY_INTERMEDIATE], ratio, 1u << 20, &config->intermediate_size);
    uint32_t kv_heads = sizes[FAMILY_KV_HEADS].fallback;
    if (!code)
        code = hf_size(file, &sizes[FAMILY_KV_HEADS], kv_heads ? kv_heads : config->heads, 1024,
                       &config->kv_heads);
    if (!code)
        code = hf_size(file, &sizes[FAMILY_HEAD_DIM], config->hidden_size / config->heads, 1024,
                       &config->head_dim);
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

/* Slopes as llm-foundry and transformers compute them: 2^(-bias_max (i + 1) / n) for the next
 * power of two n; if that is more than the heads, every other one from the second, then from the
 * first. */
static int hf_read_slopes(const hf_file *file, hf_config *config) {
    double bias_max = 8;
    const char *key = config->family->alibi_bias_max;
    int code = key ? hf_double(file, file->root, key, &bias_max) : TC_OK;
    if (code) return code;
    uint32_t heads = config->heads, n = 1;
    while (n < heads) n *= 2;
    config->alibi_slopes = tc__calloc(heads, sizeof *config->alibi_slopes);
    if (!config->alibi_slopes) return tc__fail_memory(file->err, "slopes", heads * sizeof(float));
    for (uint32_t head = 0; head < heads; head++) {
        uint32_t i = n == heads ? head : head < n / 2 ? 2 * head + 1 : 2 * (head - n / 2);
        config->alibi_slopes[head] = (float)pow(2, -bias_max * (i + 1) / n);
    }
    return TC_OK;
}

static int hf_read_numbers(const hf_file *file, hf_config *config) {
    const family *page = config->family;
    config->norm_eps = page->eps;
    /* (LayerNorms have torch's 1e-5 and seldom say so; RMSNorms have 1e-5 or 1e-6) */
    if (page->norm == TC__NORM_RMS && !hf_get(file, file->root, page->eps_key))
        tc__buf_printf(file->notes, "%s: no '%s'; %g is used\n", file->path, page->eps_key,
                       page->eps);
    int code = hf_double(file, file->root, page->eps_key, &config->norm_eps);
    const json_value *clip = page->clip_qkv ? hf_get(file, file->root, page->clip_qkv) : NULL;
    if (!code && clip && !hf_equals(file, clip, 0))
        code = hf_double(file, file->root, page->clip_qkv, &config->clip_qkv);
    if (code) return code;
    /* what the model file's reader accepts */
    if (config->norm_eps < 1e-20 || config->norm_eps > 0.5)
        return hf_bad(file, page->eps_key, "a number from 1e-20 to 0.5");
    if (config->clip_qkv && (config->clip_qkv < 1e-6 || config->clip_qkv > 1e6))
        return hf_bad(file, page->clip_qkv, "a number from 1e-6 to 1e6");
    if (page->position == TC__POSITION_ALIBI) return hf_read_slopes(file, config);
    return rope_read(file, config->head_dim, &config->max_seq_len, &config->rope);
}

/* ---- quantisation ---- */

/* quantization_config, or the old files quant_config.json (AutoAWQ) and quantize_config.json
 * (AutoGPTQ), whose names end differently. */
static void hf_read_quant(const hf_file *file, const json_value *quant, const char *method,
                          hf_config *config) {
    const json_value *bits = hf_get(file, quant, "bits"),
                     *group = hf_get(file, quant, "group_size"),
                     *version = hf_get(file, quant, "version");
    if (!bits) bits = hf_get(file, quant, "w_bit");
    if (!group) group = hf_get(file, quant, "q_group_size");
    if (!version) version = hf_get(file, quant, "checkpoint_format");
    if (!version) version = hf_get(file, quant, "format");
    hf_word(file, hf_get(file, quant, "quant_method"), config->quant_method,
            sizeof config->quant_method);
    hf_word(file, version, config->quant_version, sizeof config->quant_version);
    if (!config->quant_method[0])
        snprintf(config->quant_method, sizeof config->quant_method, "%s", method);
    if (!json_int(&file->doc, bits, &config->quant_bits)) config->quant_bits = 0;
    if (!json_int(&file->doc, group, &config->quant_group)) config->quant_group = 0;
    json_bool(hf_get(file, quant, "desc_act"), &config->quant_desc_act);
    config->quant_zeros_whole = strcmp(config->quant_version, "gptq_v2") == 0;
    if (hf_equals(file, hf_get(file, quant, "is_marlin_format"), 1))
        snprintf(config->quant_version, sizeof config->quant_version, "marlin");
}

/* What one group of compressed-tensors layers has that is not supported; NULL: nothing. */
static const char *hf_compressed_group(const hf_file *file, const json_value *group) {
    const json_value *weights = hf_get(file, group, "weights"),
                     *format = hf_get(file, group, "format"),
                     *bits = hf_get(file, weights, "num_bits");
    char type[32], strategy[32], order[32];
    hf_word(file, hf_get(file, weights, "type"), type, sizeof type);
    hf_word(file, hf_get(file, weights, "strategy"), strategy, sizeof strategy);
    hf_word(file, hf_get(file, weights, "actorder"), order, sizeof order);
    if (hf_get(file, group, "input_activations") || hf_get(file, group, "output_activations"))
        return "quantised activations";
    if (format && !json_is(&file->doc, format, "pack-quantized")) return "a format of its own";
    if (type[0] && strcmp(type, "int") != 0) return "weights that are not integers";
    if (bits && !hf_equals(file, bits, 4)) return "other than 4 bits";
    if (strategy[0] && strcmp(strategy, "group") != 0 && strcmp(strategy, "channel") != 0)
        return "a strategy that is neither group nor channel";
    if (strcmp(order, "group") == 0 || strcmp(order, "dynamic") == 0)
        return "act-order (actorder group)";
    return NULL;
}

/* llm-compressor's quantization_config: quantised layers in groups. */
static void hf_read_compressed(const hf_file *file, const json_value *quant, hf_config *config) {
    const char *problem = NULL;
    const json_value *groups = hf_get(file, quant, "config_groups");
    if (strcmp(config->quant_version, "pack-quantized") != 0) problem = "another format";
    if (hf_get(file, quant, "kv_cache_scheme")) problem = "a quantised KV cache";
    for (const json_value *key = json_first(groups); key && !problem; key = json_next(groups, key))
        problem = hf_compressed_group(file, json_member(key));
    const json_value *first = json_member(json_first(groups));
    json_int(&file->doc, hf_get(file, first, "weights.num_bits"), &config->quant_bits);
    json_int(&file->doc, hf_get(file, first, "weights.group_size"), &config->quant_group);
    if (problem)
        snprintf(config->quant_problem, sizeof config->quant_problem,
                 "compressed-tensors (%s) with %s", config->quant_version, problem);
}

int hf_config_check_quant(const hf_config *config, const char *dir, tc_error *err) {
    static const char *const methods[] = {"", "awq", "gptq", "compressed-tensors"};
    bool known = false;
    for (size_t i = 0; i < TC_COUNT(methods); i++)
        known |= strcmp(config->quant_method, methods[i]) == 0;
    char problem[160];
    snprintf(problem, sizeof problem, "%s", config->quant_problem);
    if (!known)
        snprintf(problem, sizeof problem, "quant_method '%s'", config->quant_method);
    else if (strncmp(config->quant_version, "marlin", 6) == 0)
        snprintf(problem, sizeof problem, "%s in the format '%s'", config->quant_method,
                 config->quant_version);
    else if (config->quant_bits && config->quant_bits != 4)
        snprintf(problem, sizeof problem, "%s of %lld bits", config->quant_method,
                 (long long)config->quant_bits);
    if (!problem[0]) return TC_OK;
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "%s: %s is not supported; supported: 4-bit awq (gemm, gemv, gemv_fast), gptq "
                    "without act-order, compressed-tensors pack-quantized (W4A16), or no "
                    "quantisation",
                    dir, problem);
}

/* ---- files ---- */

static int hf_read_config(hf_file *file, hf_config *config) {
    int code = hf_find_family(file, config);
    if (!code) code = hf_read_sizes(file, config);
    if (!code) code = hf_check_settings(file, config->family);
    if (!code) code = hf_check_words(file, config->family);
    if (!code) code = hf_read_numbers(file, config);
    if (!code) code = hf_read_window(file, config);
    if (!code) code = hf_read_stops(file, config);
    if (code) return code;
    config->tied = config->family->tied;
    json_bool(hf_get(file, file->root, "tie_word_embeddings"), &config->tied);
    const json_value *quant = hf_get(file, file->root, "quantization_config");
    if (quant) hf_read_quant(file, quant, "awq", config);
    if (strcmp(config->quant_method, "compressed-tensors") == 0)
        hf_read_compressed(file, quant, config);
    tc__buf name = {0};
    json_string(&file->doc, hf_get(file, file->root, "_name_or_path"), &name);
    config->name_or_path = name.data ? name.data : tc__copy("", 0);
    if (name.failed || !config->name_or_path) return tc__fail_memory(file->err, "a name", name.len);
    return TC_OK;
}

static int hf_read_generation(hf_file *file, hf_config *config) {
    return hf_read_stops(file, config);
}

static int hf_read_awq_file(hf_file *file, hf_config *config) {
    if (!config->quant_method[0]) hf_read_quant(file, file->root, "awq", config);
    return TC_OK;
}

static int hf_read_gptq_file(hf_file *file, hf_config *config) {
    if (!config->quant_method[0]) hf_read_quant(file, file->root, "gptq", config);
    return TC_OK;
}

/* Opens DIR/name, which must hold an object, and hands it to `read`. */
static int hf_read_file(const char *dir, const char *name, bool required, hf_config *config,
                        tc__buf *notes, int (*read)(hf_file *, hf_config *), tc_error *err) {
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
    hf_file file = {path, {0}, NULL, notes, err};
    int code = json_open(path, &file.doc, err);
    if (!code) {
        file.root = json_root(&file.doc);
        if (json_type(file.root) != JSON_OBJECT)
            code = tc__fail(err, TC_ERR_FORMAT, "%s: not a JSON object", path);
        else
            code = read(&file, config);
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
        code = hf_read_file(dir, "quant_config.json", false, config, notes, hf_read_awq_file, err);
    if (!code)
        code =
            hf_read_file(dir, "quantize_config.json", false, config, notes, hf_read_gptq_file, err);
    if (code) hf_config_free(config);
    return code;
}

void hf_config_free(hf_config *config) {
    free(config->name_or_path);
    free(config->alibi_slopes);
    rope_free(&config->rope);
    config->name_or_path = NULL;
    config->alibi_slopes = NULL;
}
