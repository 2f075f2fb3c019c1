#include "rope.h"

#include <math.h>

#define ROPE_PI 3.14159265358979323846

/* The scaling being read. */
typedef struct rope_source {
    const hf_file *file;
    const json_value *object; /* rope_scaling or rope_parameters; NULL: no scaling */
    const char *key;          /* its name */
    uint32_t head_dim;
    double positions; /* max_position_embeddings */
    rope *out;
} rope_source;

static int rope_number(const rope_source *s, const char *key, double *out) {
    return hf_double(s->file, s->object, key, out);
}

/* A number that has no default. */
static int rope_required(const rope_source *s, const char *key, double *out) {
    if (!hf_get(s->file, s->object, key))
        return tc__fail(s->file->err, TC_ERR_FORMAT, "%s: '%s' of type '%s' has no '%s'",
                        s->file->path, s->key, s->out->type, key);
    return rope_number(s, key, out);
}

/* The context that the model was trained with before it was extended. */
static int rope_original(const rope_source *s, double *out) {
    static const char key[] = "original_max_position_embeddings";
    *out = s->positions;
    int code = hf_double(s->file, s->file->root, key, out);
    return code ? code : rope_number(s, key, out);
}

static int rope_linear(rope_source *s, uint32_t *positions) {
    double factor, longest = 0;
    int code = rope_required(s, "factor", &factor);
    if (!code) code = hf_double(s->file, s->file->root, "max_sequence_length", &longest);
    if (code) return code;
    for (uint32_t i = 0; i < s->head_dim / 2; i++) s->out->frequencies[i] /= factor;
    /* Vicuna-16k: max_position_embeddings is still LLaMA-2's */
    if (longest > *positions && longest < 1u << 24) *positions = (uint32_t)longest;
    return TC_OK;
}

/* transformers: base' = base * (factor * length / positions - (factor - 1))^(d / (d - 2)) with a
 * length of at least positions: up to there nothing is scaled. */
static int rope_dynamic(rope_source *s, uint32_t *positions) {
    double factor;
    int code = rope_required(s, "factor", &factor);
    if (code) return code;
    tc__buf_printf(s->file->notes,
                   "dynamic RoPE scaling changes the model beyond max_position_embeddings: the "
                   "context is limited to these %u positions\n",
                   (unsigned)*positions);
    free(s->out->frequencies);
    s->out->frequencies = NULL; /* the plain ones */
    return TC_OK;
}

static int rope_llama3(rope_source *s, uint32_t *positions) {
    double factor, low, high, original;
    (void)positions;
    int code = rope_required(s, "factor", &factor);
    if (!code) code = rope_required(s, "low_freq_factor", &low);
    if (!code) code = rope_required(s, "high_freq_factor", &high);
    if (!code) code = rope_original(s, &original);
    if (code) return code;
    if (low >= high)
        return tc__fail(s->file->err, TC_ERR_FORMAT,
                        "%s: '%s': low_freq_factor %g is not below high_freq_factor %g",
                        s->file->path, s->key, low, high);
    for (uint32_t i = 0; i < s->head_dim / 2; i++) {
        double *f = &s->out->frequencies[i], wavelength = 2 * ROPE_PI / *f;
        double t = (original / wavelength - low) / (high - low);
        if (wavelength > original / low)
            *f /= factor;
        else if (wavelength >= original / high)
            *f = (1 - t) * *f / factor + t * *f;
    }
    return TC_OK;
}

/* The dimension that turns `turns` times within the original context. */
static double rope_turning(const rope_source *s, double turns, double original) {
    return s->head_dim * log(original / (turns * 2 * ROPE_PI)) / (2 * log(s->out->theta));
}

static double rope_mscale(double factor, double mscale) {
    return factor <= 1 ? 1 : 0.1 * mscale * log(factor) + 1;
}

static int rope_yarn(rope_source *s, uint32_t *positions) {
    double original, fast = 32, slow = 1, attention = 0, mscale = 0, mscale_all = 0;
    int code = rope_original(s, &original);
    double factor = s->positions / original;
    bool truncate = true;
    json_bool(hf_get(s->file, s->object, "truncate"), &truncate);
    if (!code && original == s->positions) code = rope_required(s, "factor", &factor);
    if (!code) code = rope_number(s, "factor", &factor);
    if (!code) code = rope_number(s, "beta_fast", &fast);
    if (!code) code = rope_number(s, "beta_slow", &slow);
    if (!code) code = rope_number(s, "attention_factor", &attention);
    if (!code) code = rope_number(s, "mscale", &mscale);
    if (!code) code = rope_number(s, "mscale_all_dim", &mscale_all);
    if (code) return code;
    if (!attention)
        attention = mscale && mscale_all
                        ? rope_mscale(factor, mscale) / rope_mscale(factor, mscale_all)
                        : rope_mscale(factor, 1);
    double low = rope_turning(s, fast, original), high = rope_turning(s, slow, original);
    if (truncate) low = floor(low), high = ceil(high);
    if (low < 0) low = 0;
    if (high > s->head_dim - 1.0) high = s->head_dim - 1.0;
    if (low == high) high += 0.001;
    for (uint32_t i = 0; i < s->head_dim / 2; i++) {
        double ramp = (i - low) / (high - low);
        ramp = ramp < 0 ? 0 : ramp > 1 ? 1 : ramp;
        double *f = &s->out->frequencies[i];
        *f = *f / factor * ramp + *f * (1 - ramp);
    }
    s->out->scale = attention;
    if (factor * original > *positions && factor * original <= 1u << 24)
        *positions = (uint32_t)(factor * original);
    return TC_OK;
}

/* The scalings that are understood. */
static const struct {
    const char *name;
    int (*apply)(rope_source *s, uint32_t *positions);
} rope_types[] = {{"linear", rope_linear},
                  {"dynamic", rope_dynamic},
                  {"llama3", rope_llama3},
                  {"yarn", rope_yarn}};

/* Finds the scaling's object and its type. */
static int rope_find(rope_source *s) {
    const hf_file *file = s->file;
    s->key = "rope_scaling";
    s->object = hf_get(file, file->root, s->key);
    if (!s->object) {
        s->key = "rope_parameters";
        s->object = hf_get(file, file->root, s->key);
    }
    snprintf(s->out->type, sizeof s->out->type, "default");
    if (!s->object) return TC_OK;
    if (json_type(s->object) != JSON_OBJECT) return hf_bad(file, s->key, "an object");
    const json_value *type = hf_get(file, s->object, "rope_type");
    if (!type) type = hf_get(file, s->object, "type");
    if (type) hf_word(file, type, s->out->type, sizeof s->out->type);
    if (!s->out->type[0]) return hf_bad(file, s->key, "an object with a type that is a string");
    for (const json_value *item = json_first(s->object); item; item = json_next(s->object, item))
        if (json_type(json_member(item)) == JSON_OBJECT)
            snprintf(s->out->type, sizeof s->out->type, "per layer");
    if (!type && hf_get(file, s->object, "factor"))
        snprintf(s->out->type, sizeof s->out->type, "unknown");
    const json_value *partial = hf_get(file, s->object, "partial_rotary_factor");
    if (partial && !hf_equals(file, partial, 1))
        return tc__fail(file->err, TC_ERR_UNSUPPORTED,
                        "%s: '%s': a 'partial_rotary_factor' other than 1 is not supported",
                        file->path, s->key);
    return TC_OK;
}

static int rope_scale(rope_source *s, uint32_t *positions) {
    for (size_t i = 0; i < TC_COUNT(rope_types); i++)
        if (strcmp(s->out->type, rope_types[i].name) == 0) return rope_types[i].apply(s, positions);
    return tc__fail(s->file->err, TC_ERR_UNSUPPORTED,
                    "%s: '%s' of type '%s' is not supported and would change the model's answers; "
                    "supported: default, linear, dynamic, llama3, yarn",
                    s->file->path, s->key, s->out->type);
}

/* What the model file's reader accepts. */
static int rope_check(const rope_source *s) {
    bool good = s->out->scale >= 1e-3 && s->out->scale <= 1e3;
    for (uint32_t i = 0; i < s->head_dim / 2 && s->out->frequencies; i++)
        good &= s->out->frequencies[i] >= 0 && s->out->frequencies[i] <= 4;
    if (good) return TC_OK;
    return tc__fail(s->file->err, TC_ERR_FORMAT, "%s: '%s' of type '%s' has impossible numbers",
                    s->file->path, s->key, s->out->type);
}

int rope_read(const hf_file *file, uint32_t head_dim, uint32_t *positions, rope *out) {
    rope_source s = {file, NULL, NULL, head_dim, *positions, out};
    memset(out, 0, sizeof *out);
    out->theta = 10000;
    out->scale = 1;
    int code = rope_find(&s);
    if (!code) code = hf_double(file, file->root, "rope_theta", &out->theta);
    if (!code) code = hf_double(file, s.object, "rope_theta", &out->theta);
    if (code) return code;
    if (out->theta <= 1 || out->theta > 1e15)
        return hf_bad(file, "rope_theta", "a number above 1, up to 1e15");
    if (strcmp(out->type, "default") == 0) return TC_OK;
    out->frequencies = tc__calloc(head_dim / 2, sizeof *out->frequencies);
    if (!out->frequencies)
        return tc__fail_memory(file->err, "RoPE's angles", head_dim * sizeof(double) / 2);
    for (uint32_t i = 0; i < head_dim / 2; i++)
        out->frequencies[i] = pow(out->theta, -2.0 * i / head_dim);
    code = rope_scale(&s, positions);
    if (!code) code = rope_check(&s);
    if (code) rope_free(out);
    return code;
}

void rope_free(rope *r) {
    free(r->frequencies);
    r->frequencies = NULL;
}
