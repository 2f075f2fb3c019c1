#include "session.h"
#include "shapes.h"

#include <time.h>

#define API_VERIFY_PIECE ((size_t)16 << 20) /* bytes between two calls of the progress callback */
#define API_BANDWIDTH_BYTES ((size_t)1 << 30)

/* ---- version, errors, time ---- */

const char *tc_version(void) {
    return TC_VERSION;
}

const char *tc_strerror(int code) {
    static const char *const names[] = {"no error",    "argument",      "input/output", "format",
                                        "unsupported", "out of memory", "context full", "device",
                                        "cancelled",   "numeric error"};
    return code >= 0 && (size_t)code < TC_COUNT(names) ? names[code] : "unknown error";
}

double tc_seconds(void) {
    struct timespec now;
    clock_gettime(CLOCK_MONOTONIC, &now);
    return (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
}

/* ---- opening a model ---- */

tc_model_params tc_model_default_params(void) {
    tc_model_params params = {"auto", 0, NULL, NULL, NULL, NULL, 0};
    return params;
}

static int api_progress(const tc_model_params *params, double fraction, const char *what,
                        tc_error *err) {
    if (!params->progress || !params->progress(params->user, fraction, what)) return TC_OK;
    return tc__fail(err, TC_ERR_CANCELLED, "opening the model was cancelled");
}

/* A NUL-terminated copy of a text in the metadata. */
static int api_copy_text(const tc__model_file *file, const char *key, char **copy, tc_error *err) {
    const char *text;
    size_t len;
    int code = tc__meta_text(file, key, &text, &len, err);
    if (code) return code;
    *copy = tc__copy(text, len);
    return *copy ? TC_OK : tc__fail_memory(err, key, len);
}

static int api_read_stop_ids(tc_model *model, tc_error *err) {
    const tc__meta *meta = tc__find_meta(&model->file, "chat.stop_ids");
    if (!meta) return TC_OK;
    if (meta->type != TC__META_U32)
        return tc__fail(err, TC_ERR_FORMAT, "model file: chat.stop_ids are not numbers");
    model->stop_ids = tc__calloc(meta->count, sizeof *model->stop_ids);
    if (!model->stop_ids) return tc__fail_memory(err, "the stop ids", meta->count * 4);
    for (; model->n_stop_ids < meta->count; model->n_stop_ids++) {
        uint32_t id = tc__meta_u32_at(meta, model->n_stop_ids);
        if (id >= model->weights.arch.vocab_size)
            return tc__fail(err, TC_ERR_FORMAT,
                            "model file: chat.stop_ids has %u; the vocabulary has %u", (unsigned)id,
                            (unsigned)model->weights.arch.vocab_size);
        model->stop_ids[model->n_stop_ids] = (int32_t)id;
    }
    return TC_OK;
}

/* What to open: a file, a built-in shape, or a shape of the library's own. */
typedef struct api_source {
    const char *path, *shape; /* one of them and `spec` is not NULL */
    const tc__shape_spec *spec;
    const char *precision;
    int group_size;
} api_source;

/* The tables; a shape's weights too if the backend is one that reads them in memory. */
static int api_read_tables(tc_model *model, const api_source *source, const tc_model_params *params,
                           tc_error *err) {
    bool in_memory = model->backend != tc__cuda_backend(); /* which makes them itself */
    if (source->path) return tc__model_file_open(source->path, &model->file, err);
    if (source->spec)
        return tc__shape_make(source->spec, source->precision, source->group_size, in_memory,
                              params, &model->file, err);
    return tc__shape_open(source->shape, source->precision, source->group_size, in_memory, params,
                          &model->file, err);
}

/* Everything but the device. */
static int api_read_model(tc_model *model, const api_source *source, const tc_model_params *params,
                          tc_error *err) {
    int code = api_read_tables(model, source, params, err);
    if (!code) code = tc__weights_open(&model->file, &model->weights, err);
    if (code) return code;
    if (params->head_bits == 8) tc__weights_head_in_8(&model->weights);
    tc__precision_name(&model->weights, model->precision, sizeof model->precision);
    code = api_copy_text(&model->file, "general.name", &model->name, err);
    if (!code) code = api_copy_text(&model->file, "arch.family", &model->family, err);
    if (!code) code = api_read_stop_ids(model, err);
    if (!code)
        code = tc__tokenizer_open(&model->file, model->weights.arch.vocab_size, &model->tokenizer,
                                  err);
    if (!code && model->tokenizer)
        code =
            tc__template_load(&model->file, &model->chat_template, &model->template_storage, err);
    return code;
}

static int api_open_on(const tc__backend *backend, const api_source *source,
                       const tc_model_params *params, tc_model **model, tc_error *err) {
    *model = NULL;
    if (params->head_bits != 0 && params->head_bits != 8)
        return tc__fail(err, TC_ERR_ARGUMENT, "head_bits is %d; expected 8, or 0 for the file's",
                        params->head_bits);
    int code = api_progress(params, 0, "reading the model file", err);
    if (code) return code;
    tc_model *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a model", sizeof *made);
    made->backend = backend;
    code = api_read_model(made, source, params, err);
    if (!code) code = backend->open(&made->weights, params, &made->device, err);
    if (!code) code = api_progress(params, 1, "ready", err);
    if (code) {
        tc_model_close(made);
        return code;
    }
    if (params->log && !made->tokenizer && source->path)
        params->log(params->user, "this model file has no tokenizer: only token ids can be used");
    else if (params->log && made->tokenizer && made->n_stop_ids == 0)
        params->log(params->user, "this model file has no stop ids: a reply ends at a stop string, "
                                  "at its token limit or with the context");
    *model = made;
    return tc__ok(err);
}

int tc__model_open_with(const tc__backend *backend, const char *path, const tc_model_params *params,
                        tc_model **model, tc_error *err) {
    api_source source = {path, NULL, NULL, NULL, 0};
    return api_open_on(backend, &source, params, model, err);
}

int tc__model_open_spec(const tc__backend *backend, const tc__shape_spec *spec,
                        const char *precision, int group_size, const tc_model_params *params,
                        tc_model **model, tc_error *err) {
    api_source source = {NULL, NULL, spec, precision, group_size};
    return api_open_on(backend, &source, params, model, err);
}

/* The GPU if it can be used for this model; else the CPU, and why is said, unless something was
 * asked for that only a GPU has. */
static int api_open_auto(const api_source *source, const tc_model_params *params, tc_model **model,
                         tc_error *err) {
    tc_error why;
    int code = api_open_on(tc__cuda_backend(), source, params, model, &why);
    bool no_gpu = code == TC_ERR_DEVICE || code == TC_ERR_UNSUPPORTED || code == TC_ERR_MEMORY;
    if (!no_gpu || params->head_bits) {
        if (err) *err = why;
        return code;
    }
    code = api_open_on(tc__cpu_backend(), source, params, model, err);
    if (!code && params->log) {
        char line[sizeof why.message + 32];
        snprintf(line, sizeof line, "using the CPU: %s", why.message);
        params->log(params->user, line);
    }
    return code;
}

/* A GPU asked for by name: what is wrong with it begins with that name. */
static int api_open_cuda(const api_source *source, const tc_model_params *params, tc_model **model,
                         tc_error *err) {
    tc_error why;
    int code = api_open_on(tc__cuda_backend(), source, params, model, &why);
    if (code == TC_ERR_DEVICE)
        return tc__fail(err, code, "device '%s': %s", params->device, why.message);
    if (err) *err = why;
    return code;
}

static int api_open(const api_source *source, const tc_model_params *params, tc_model **model,
                    tc_error *err) {
    tc_model_params defaults = tc_model_default_params();
    if (!params) params = &defaults;
    const char *device = params->device ? params->device : "auto";
    if (strcmp(device, "auto") == 0) return api_open_auto(source, params, model, err);
    if (strcmp(device, "cpu") == 0)
        return api_open_on(tc__cpu_backend(), source, params, model, err);
    if (strcmp(device, "cuda") == 0 || strncmp(device, "cuda:", 5) == 0)
        return api_open_cuda(source, params, model, err);
    return tc__fail(err, TC_ERR_ARGUMENT, "device '%s'; expected auto, cpu, cuda or cuda:N",
                    device);
}

int tc_model_open(const char *path, const tc_model_params *params, tc_model **model,
                  tc_error *err) {
    api_source source = {path, NULL, NULL, NULL, 0};
    int code = tc__need(model, "model", err);
    if (code) return code;
    *model = NULL;
    code = tc__need(path, "path", err);
    return code ? code : api_open(&source, params, model, err);
}

int tc_model_open_shape(const char *name, const char *precision, int group_size,
                        const tc_model_params *params, tc_model **model, tc_error *err) {
    api_source source = {NULL, name, NULL, precision ? precision : "w4a16", group_size};
    int code = tc__need(model, "model", err);
    if (code) return code;
    *model = NULL;
    code = tc__need(name, "name", err);
    return code ? code : api_open(&source, params, model, err);
}

void tc_model_close(tc_model *model) {
    if (!model) return;
    if (model->device) model->backend->close(model->device);
    tc__tokenizer_close(model->tokenizer);
    tc__buf_free(&model->template_storage);
    free(model->stop_ids);
    free(model->name);
    free(model->family);
    tc__weights_close(&model->weights);
    tc__model_file_close(&model->file);
    free(model);
}

/* ---- facts about a model ---- */

tc_model_info tc_model_get_info(const tc_model *model) {
    tc_model_info info;
    memset(&info, 0, sizeof info);
    if (!model) return info;
    const tc__arch *arch = &model->weights.arch;
    info.name = model->name;
    info.family = model->family;
    info.precision = model->precision;
    info.device = model->backend->name(model->device);
    info.device_details = model->backend->details(model->device);
    info.template_name = model->tokenizer ? model->chat_template.name : "";
    info.parameters = model->weights.parameters;
    info.layer_parameters = model->weights.layer_parameters;
    info.weight_bytes = model->weights.tensor_bytes + model->weights.head_apart_bytes;
    info.bytes_per_token = model->weights.bytes_per_token;
    info.kv_bytes_per_token = model->backend->kv_bytes_per_token(model->device);
    info.vocab_size = (int)arch->vocab_size;
    info.layers = (int)arch->layers;
    info.hidden_size = (int)arch->hidden_size;
    info.heads = (int)arch->heads;
    info.kv_heads = (int)arch->kv_heads;
    info.head_dim = (int)arch->head_dim;
    info.max_seq_len = (int)arch->max_seq_len;
    info.bos_id = model->tokenizer ? (int)tc__tokenizer_bos(model->tokenizer) : -1;
    info.has_tokenizer = model->tokenizer != NULL;
    return info;
}

int tc_is_stop_id(const tc_model *model, int32_t id) {
    for (size_t i = 0; model && i < model->n_stop_ids; i++)
        if (model->stop_ids[i] == id) return 1;
    return 0;
}

int tc_model_verify(const tc_model *model,
                    int (*progress)(void *user, double fraction, const char *what), void *user,
                    tc_error *err) {
    int code = tc__need(model, "model", err);
    if (code) return code;
    double done = 0, all = (double)model->weights.tensor_bytes;
    if (!model->file.map.data)
        return tc__fail(err, TC_ERR_ARGUMENT, "a shape has no file that could be verified");
    for (size_t i = 0; i < model->file.tensor_count; i++) {
        const tc__tensor *tensor = &model->file.tensors[i];
        uint32_t crc = 0;
        for (size_t at = 0; at < tensor->size;) {
            size_t left = tensor->size - at;
            size_t piece = left < API_VERIFY_PIECE ? left : API_VERIFY_PIECE;
            crc = tc__crc32(crc, tensor->data + at, piece);
            at += piece;
            done += (double)piece;
            if (progress && progress(user, done / all, "verifying"))
                return tc__fail(err, TC_ERR_CANCELLED, "the verification was cancelled");
        }
        if (crc != tensor->crc)
            return tc__fail(err, TC_ERR_FORMAT,
                            "tensor '%.*s' is damaged: checksum %08x, expected %08x; convert the "
                            "checkpoint or copy the file again",
                            (int)tensor->name_len, tensor->name, (unsigned)crc,
                            (unsigned)tensor->crc);
    }
    return tc__ok(err);
}

int tc_model_export_kernels(const tc_model *model, const char *path, tc_error *err) {
    int code = tc__need(model && path, model ? "path" : "model", err);
    if (code) return code;
    if (!model->backend->export_kernels)
        return tc__fail(
            err, TC_ERR_UNSUPPORTED,
            "the model is on the %s, where nothing is compiled: there are no kernels to "
            "export; use --device cuda",
            model->backend->name(model->device));
    code = model->backend->export_kernels(model->device, path, err);
    return code ? code : tc__ok(err);
}

int tc_read_bandwidth(const tc_model *model, size_t bytes, double *bytes_per_second,
                      tc_error *err) {
    int code = tc__need(model && bytes_per_second, model ? "bytes_per_second" : "model", err);
    if (code) return code;
    if (bytes == 0) {
        size_t half = model->backend->free_bytes(model->device) / 2;
        bytes = half < API_BANDWIDTH_BYTES ? half : API_BANDWIDTH_BYTES;
    }
    return model->backend->read_bandwidth(model->device, bytes, bytes_per_second, err);
}

/* ---- tokens ---- */

int tc__need_tokenizer(const tc_model *model, tc_error *err) {
    if (!model || model->tokenizer) return tc__need(model, "model", err);
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "this model file has no tokenizer, only token ids can be used; convert the "
                    "checkpoint from a folder with its tokenizer");
}

int tc_tokenize(const tc_model *model, const char *text, size_t len, int flags, int32_t *ids,
                size_t cap, size_t *n, tc_error *err) {
    int code = tc__need(n, "n", err);
    if (code) return code;
    *n = 0;
    code = tc__need((text || !len) && (ids || !cap), text || !len ? "ids" : "text", err);
    if (code) return code;
    if (flags & ~(TC_TOKENIZE_BOS | TC_TOKENIZE_SPECIAL | TC_TOKENIZE_CONTINUE))
        return tc__fail(err, TC_ERR_ARGUMENT, "tc_tokenize: unknown flags %#x", (unsigned)flags);
    code = tc__need_tokenizer(model, err);
    if (code) return code;
    tc__ids found = {NULL, 0, 0, false};
    tc__span span = {text, len, (flags & TC_TOKENIZE_SPECIAL) != 0};
    if (flags & TC_TOKENIZE_BOS && tc__tokenizer_adds_bos(model->tokenizer))
        tc__ids_push(&found, tc__tokenizer_bos(model->tokenizer));
    int before = flags & TC_TOKENIZE_CONTINUE ? TC__AFTER_TEXT : TC__AT_START;
    code = tc__encode(model->tokenizer, &span, 1, before, &found, err);
    if (!code && found.failed) code = tc__fail_memory(err, "the token ids", len);
    if (!code) {
        *n = found.len;
        if (found.len && found.len <= cap) memcpy(ids, found.data, found.len * sizeof *ids);
    }
    tc__ids_free(&found);
    return code ? code : tc__ok(err);
}

int tc_detokenize(const tc_model *model, const int32_t *ids, size_t n, char *text, size_t cap,
                  size_t *len, tc_error *err) {
    int code = tc__need(len, "len", err);
    if (code) return code;
    *len = 0;
    code = tc__need((ids || !n) && (text || !cap), ids || !n ? "text" : "ids", err);
    if (!code) code = tc__need_tokenizer(model, err);
    if (code) return code;
    tc__buf decoded = {NULL, 0, 0, false};
    code = tc__decode(model->tokenizer, ids, n, &decoded, err);
    if (!code) {
        *len = decoded.len;
        if (decoded.len && decoded.len <= cap) memcpy(text, decoded.data, decoded.len);
    }
    tc__buf_free(&decoded);
    return code ? code : tc__ok(err);
}
