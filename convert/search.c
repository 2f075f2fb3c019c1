#include "search.h"

/* ---- finding what an entry names ---- */

/* The part of a matrix or vector with that name in the checkpoint; NULL: none. */
static plan_tensor *search_find(plan *p, const char *name, int *part) {
    for (size_t i = 0; i < p->count; i++) {
        plan_tensor *tensor = &p->tensors[i];
        int count = tensor->vector.length ? tensor->vector.part_count : tensor->matrix.part_count;
        for (*part = 0; *part < count; ++*part)
            if (strcmp(tensor->part_names[*part], name) == 0) return tensor;
    }
    return NULL;
}

static plan_tensor *search_find_matrix(plan *p, const char *name, int *part) {
    plan_tensor *tensor = search_find(p, name, part);
    return tensor && tensor->quantise ? tensor : NULL;
}

static plan_tensor *search_find_vector(plan *p, const char *module, const char *what, int *part) {
    char name[512];
    snprintf(name, sizeof name, "%s.%s", module, what);
    plan_tensor *tensor = search_find(p, name, part);
    return tensor && tensor->vector.length ? tensor : NULL;
}

static int search_unknown(const ckpt_search *entry, const char *module, tc_error *err) {
    return tc__fail(
        err, TC_ERR_FORMAT,
        "%s: '%s': the model has no module '%s' that is quantised; do the search results "
        "belong to this model?",
        entry->tensor->file, entry->tensor->name, module);
}

static int search_bad_shape(const ckpt_search *entry, const char *expected, tc_error *err) {
    char shape[CKPT_SHAPE_TEXT];
    return tc__fail(err, TC_ERR_FORMAT, "%s: '%s' is %s; expected %s", entry->tensor->file,
                    entry->tensor->name, ckpt_shape_text(entry->tensor, shape), expected);
}

static bool search_is_float(const ckpt_tensor *tensor) {
    return tensor->dtype == CKPT_F16 || tensor->dtype == CKPT_BF16 || tensor->dtype == CKPT_F32;
}

/* ---- steps ---- */

static int search_step(const ckpt_search *entry, plan_tensor *tensor, int part, quantise_op op,
                       tc_error *err) {
    quantise_steps *steps = &tensor->steps[part];
    if (steps->count == QUANTISE_MAX_STEPS)
        return tc__fail(err, TC_ERR_UNSUPPORTED, "%s: '%s' is changed more than %d times",
                        entry->tensor->file, tensor->part_names[part], QUANTISE_MAX_STEPS);
    steps->steps[steps->count++] = (quantise_step){op, entry->tensor};
    return TC_OK;
}

static int search_divide(const ckpt_search *entry, plan_tensor *tensor, int part, tc_error *err) {
    plan_vector *v = &tensor->vector;
    if (v->divide[part] || !v->parts[part])
        return tc__fail(err, TC_ERR_UNSUPPORTED, "%s: '%s' is changed twice", entry->tensor->file,
                        tensor->part_names[part]);
    if (entry->tensor->shape[0] > v->parts[part]->shape[0])
        return search_bad_shape(entry, "as many numbers as the module puts out", err);
    v->divide[part] = entry->tensor;
    return TC_OK;
}

/* Whether the entry's module is the activation of a layer: then its scales become act_scales. */
static int search_activation(const ckpt_search *entry, plan_tensor *scales, tc_error *err) {
    plan_vector *v = &scales->vector;
    if (v->parts[0])
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "'%s' is in the checkpoint already: its weights have been scaled before",
                        scales->part_names[0]);
    if (entry->tensor->shape[0] != v->length)
        return search_bad_shape(entry, "as many numbers as the MLP is wide", err);
    v->parts[0] = entry->tensor;
    return TC_OK;
}

/* What the module of a `scale` entry puts out is divided. */
static int search_before(const ckpt_search *entry, plan *p, tc_error *err) {
    int part, bias_part;
    plan_tensor *tensor = search_find_vector(p, entry->op, "scales", &part);
    if (tensor) return search_activation(entry, tensor, err);
    plan_tensor *bias = search_find_vector(p, entry->op, "bias", &bias_part);
    tensor = search_find_vector(p, entry->op, "weight", &part);
    int code = TC_OK;
    if (tensor) {
        code = search_divide(entry, tensor, part, err);
    } else {
        tensor = search_find_matrix(p, entry->op, &part);
        if (!tensor) return search_unknown(entry, entry->op, err);
        if (entry->tensor->shape[0] > tensor->matrix.parts[part].rows)
            return search_bad_shape(entry, "no more numbers than the layer has rows", err);
        code = search_step(entry, tensor, part, QUANTISE_ROWS, err);
    }
    return code || !bias ? code : search_divide(entry, bias, bias_part, err);
}

static int search_scale(const ckpt_search *entry, plan *p, tc_error *err) {
    if (entry->tensor->ndim != 1 || !search_is_float(entry->tensor))
        return search_bad_shape(entry, "a vector of F16, BF16 or F32", err);
    int code = search_before(entry, p, err);
    for (size_t i = 0; i < entry->layer_count && !code; i++) {
        int part;
        plan_tensor *tensor = search_find_matrix(p, entry->layers[i], &part);
        if (!tensor) return search_unknown(entry, entry->layers[i], err);
        if (entry->tensor->shape[0] != tensor->matrix.columns)
            return search_bad_shape(entry, "as many numbers as the layers have columns", err);
        code = search_step(entry, tensor, part, QUANTISE_COLUMNS, err);
    }
    return code;
}

/* Finds the layer of a `clip` entry. */
static int search_clipped(const ckpt_search *entry, plan *p, plan_tensor **tensor, int *part,
                          tc_error *err) {
    const ckpt_tensor *limits = entry->tensor;
    *tensor = search_find_matrix(p, entry->op, part);
    if (!*tensor) return search_unknown(entry, entry->op, err);
    if (limits->ndim != 3 || limits->shape[2] != 1 || limits->shape[1] < 1 ||
        !search_is_float(limits))
        return search_bad_shape(entry, "F16, BF16 or F32 [rows, groups, 1]", err);
    return TC_OK;
}

static int search_clip(const ckpt_search *entry, plan *p, tc_error *err) {
    const ckpt_tensor *limits = entry->tensor;
    plan_tensor *tensor;
    int part, code = search_clipped(entry, p, &tensor, &part, err);
    if (code) return code;
    if (limits->shape[0] != tensor->matrix.parts[part].rows ||
        limits->shape[1] != tensor->matrix.columns / p->group)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: '%s' has limits for %lld rows of %lld groups; the layer has %u of %u "
                        "(group size %u)",
                        limits->file, limits->name, (long long)limits->shape[0],
                        (long long)limits->shape[1], (unsigned)tensor->matrix.parts[part].rows,
                        (unsigned)(tensor->matrix.columns / p->group), (unsigned)p->group);
    return search_step(entry, tensor, part, QUANTISE_CLIP, err);
}

/* ---- the whole ---- */

/* A layer that the results do not mention was never searched: they are another model's. */
static int search_check_all(const hf_config *config, const checkpoint *search, const plan *p,
                            tc_error *err) {
    for (uint32_t layer = 0; layer < config->layers; layer++) {
        bool touched = false;
        char prefix[16];
        int len = snprintf(prefix, sizeof prefix, "%u.", (unsigned)layer);
        for (size_t i = 0; i < p->count && !touched; i++)
            if (strncmp(p->tensors[i].name, prefix, (size_t)len) == 0)
                for (int part = 0; part < p->tensors[i].matrix.part_count; part++)
                    touched |= p->tensors[i].steps[part].count > 0;
        if (!touched)
            return tc__fail(err, TC_ERR_FORMAT,
                            "%s: no entry for layer %u of %u; do the search results belong to this "
                            "model?",
                            search->tensors[0].file, (unsigned)layer, (unsigned)config->layers);
    }
    return TC_OK;
}

int search_group(const checkpoint *search, plan *p, uint32_t *group, tc_error *err) {
    const ckpt_search *entry = search->search, *end = entry + search->search_count;
    while (entry < end && !entry->is_clip) entry++;
    if (entry == end) return TC_OK;
    plan_tensor *tensor;
    int part, code = search_clipped(entry, p, &tensor, &part, err);
    if (code) return code;
    uint32_t columns = tensor->matrix.columns,
             found = (uint32_t)(columns / entry->tensor->shape[1]);
    if (*group && *group != found)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "%s: these search results are for group size %u, --group-size says %u",
                        entry->tensor->file, (unsigned)found, (unsigned)*group);
    if (found != 32 && found != 64 && found != 128)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "%s: '%s' is for groups of %u of %u columns; supported: 32, 64, 128",
                        entry->tensor->file, entry->tensor->name, (unsigned)found,
                        (unsigned)columns);
    *group = found;
    return TC_OK;
}

int search_bind(const hf_config *config, const checkpoint *search, plan *p, tc_error *err) {
    int code = TC_OK;
    if (!search->search_count)
        return tc__fail(err, TC_ERR_FORMAT, "the file of AWQ search results has no entry");
    for (size_t i = 0; i < search->search_count && !code; i++)
        code = search->search[i].is_clip ? search_clip(&search->search[i], p, err)
                                         : search_scale(&search->search[i], p, err);
    return code ? code : search_check_all(config, search, p, err);
}
