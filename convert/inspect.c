#include "inspect.h"

#include "hf_config.h"
#include "layout.h"
#include "src/arch.h"
#include "src/template.h"

/* Text out of a file: quoted, control characters as escapes, cut to `max` bytes. */
static void inspect_text(FILE *out, const char *text, size_t len, size_t max) {
    fputc('"', out);
    for (size_t i = 0; i < len && i < max; i++) {
        unsigned char c = (unsigned char)text[i];
        if (c == '\n')
            fputs("\\n", out);
        else if (c == '"' || c == '\\')
            fprintf(out, "\\%c", c);
        else if (c < 0x20 || c == 0x7f)
            fprintf(out, "\\x%02x", c);
        else
            fputc(c, out);
    }
    fprintf(out, len > max ? "...\" (%zu bytes)" : "\"", len);
}

/* A name out of a model file, at most 256 bytes: control characters as '?', padded. */
static void inspect_name(FILE *out, const char *name, size_t len, int width) {
    char text[257];
    size_t n = len < sizeof text ? len : sizeof text - 1;
    for (size_t i = 0; i < n; i++) {
        unsigned char c = (unsigned char)name[i];
        text[i] = c < 0x20 || c == 0x7f ? '?' : name[i];
    }
    text[n] = 0;
    fprintf(out, "  %-*s ", width, text);
}

/* ---- model files ---- */

#define INSPECT_ELEMENTS 8 /* of an array that are shown */

static void inspect_strings(FILE *out, const tc__meta *meta) {
    tc__cursor cursor = tc__cursor_make(meta->value, meta->size);
    const char *text;
    size_t len;
    for (size_t i = 0; i < INSPECT_ELEMENTS && tc__next_string(&cursor, &text, &len); i++) {
        if (i) fputc(' ', out);
        inspect_text(out, text, len, 60);
    }
}

static void inspect_numbers(FILE *out, const tc__meta *meta) {
    for (size_t i = 0; i < meta->count && i < INSPECT_ELEMENTS; i++) {
        if (i) fputc(' ', out);
        if (meta->type == TC__META_U32) {
            fprintf(out, "%u", (unsigned)tc__meta_u32_at(meta, i));
        } else if (meta->type == TC__META_F64) {
            double value;
            memcpy(&value, meta->value + i * sizeof value, sizeof value);
            fprintf(out, "%.12g", value);
        } else {
            float value;
            memcpy(&value, meta->value + i * sizeof value, sizeof value);
            fprintf(out, "%.9g", (double)value);
        }
    }
}

/* A table of bytes, such as the pieces' types, is no text. */
static bool inspect_is_text(const tc__meta *meta) {
    for (size_t i = 0; i < meta->size; i++)
        if (meta->value[i] < 0x20 && !memchr("\n\t\r", meta->value[i], 3)) return false;
    return true;
}

static void inspect_meta(FILE *out, const tc__meta *meta) {
    inspect_name(out, meta->key, meta->key_len, 28);
    if (meta->type == TC__META_BYTES && inspect_is_text(meta))
        inspect_text(out, (const char *)meta->value, meta->size, 200);
    else if (meta->type == TC__META_BYTES)
        fprintf(out, "%zu bytes", meta->size);
    else if (meta->type == TC__META_STRINGS)
        inspect_strings(out, meta);
    else
        inspect_numbers(out, meta);
    if (meta->type != TC__META_BYTES && meta->count > INSPECT_ELEMENTS)
        fprintf(out, " ... (%zu)", meta->count);
    fputc('\n', out);
}

static void inspect_model_tensor(FILE *out, const tc__model_file *file, const tc__tensor *tensor) {
    static const char *const types[] = {"?", "F32", "F16", "BF16", "W4"};
    char shape[64], type[32];
    snprintf(shape, sizeof shape, tensor->columns == 1 ? "[%zu]" : "[%zu, %zu]", tensor->rows,
             tensor->columns);
    snprintf(type, sizeof type, tensor->group_size ? "%s g%u" : "%s", types[tensor->type],
             (unsigned)tensor->group_size);
    inspect_name(out, tensor->name, tensor->name_len, 24);
    fprintf(out, "%-8s %-18s %12zu bytes at %-12zu crc %08x\n", type, shape, tensor->size,
            (size_t)(tensor->data - file->map.data), (unsigned)tensor->crc);
}

static int inspect_model(const char *path, FILE *out, tc_error *err) {
    tc__model_file file;
    int code = tc__model_file_open(path, &file, err);
    if (code) return code;
    fprintf(out, "%s: tinychat model file, version %u, %zu bytes\nmetadata (%zu):\n", path,
            TC__FILE_VERSION, file.map.size, file.meta_count);
    for (size_t i = 0; i < file.meta_count; i++) inspect_meta(out, &file.metas[i]);
    fprintf(out, "tensors (%zu):\n", file.tensor_count);
    for (size_t i = 0; i < file.tensor_count; i++)
        inspect_model_tensor(out, &file, &file.tensors[i]);
    tc__model_file_close(&file);
    return TC_OK;
}

/* ---- checkpoints ---- */

/* Prints the layer if the tensor is its packed weight, whose name ends like that. */
static bool inspect_layer(FILE *out, const checkpoint *ckpt, const ckpt_tensor *weight,
                          const char *end, bool first) {
    char name[512];
    tc_error err;
    layout_matrix m;
    size_t len = strlen(weight->name), tail = strlen(end);
    if (len <= tail || strcmp(weight->name + len - tail, end) != 0) return false;
    if (first) fprintf(out, "quantised layers:\n");
    snprintf(name, sizeof name, "%.*s", (int)(len - tail), weight->name);
    if (layout_detect(ckpt, name, &m, &err))
        fprintf(out, "  %-52s %s\n", name, err.message);
    else
        fprintf(out, "  %-52s %s, [%u, %u], group size %u, scales %s\n", name, layout_name(m.kind),
                (unsigned)m.rows, (unsigned)m.columns, (unsigned)m.source_group,
                ckpt_dtype_name(m.dtype));
    return true;
}

static void inspect_layers(FILE *out, const checkpoint *ckpt) {
    bool any = false;
    for (size_t i = 0; i < ckpt->count; i++) {
        const ckpt_tensor *tensor = &ckpt->tensors[i];
        any |= inspect_layer(out, ckpt, tensor, ".qweight", !any) ||
               inspect_layer(out, ckpt, tensor, ".weight_packed", !any);
    }
}

static void inspect_search(FILE *out, const checkpoint *ckpt) {
    fprintf(out, "AWQ search results (scales and clips, no weights): %zu entries\n",
            ckpt->search_count);
    for (size_t i = 0; i < ckpt->search_count; i++) {
        char shape[CKPT_SHAPE_TEXT];
        fprintf(out, "  %-60s %s\n", ckpt->search[i].tensor->name,
                ckpt_shape_text(ckpt->search[i].tensor, shape));
    }
}

static void inspect_config(const char *dir, FILE *out) {
    hf_config c;
    tc__buf notes = {0};
    tc_error err;
    if (hf_config_read(dir, &c, &notes, &err)) {
        fprintf(out, "hyper-parameters: %s\n", err.message);
    } else {
        fprintf(
            out,
            "hyper-parameters: %s, %u layers, hidden %u, intermediate %u, %u heads (%u KV) of %u, "
            "vocabulary %u, %u positions, norm_eps %g%s\n",
            c.family->name, (unsigned)c.layers, (unsigned)c.hidden_size,
            (unsigned)c.intermediate_size, (unsigned)c.heads, (unsigned)c.kv_heads,
            (unsigned)c.head_dim, (unsigned)c.vocab_size, (unsigned)c.max_seq_len, c.norm_eps,
            c.tied ? ", tied embedding" : "");
        if (c.alibi_slopes)
            fprintf(out, "position: ALiBi\n");
        else
            fprintf(out, "position: RoPE, theta %g, scaling %s\n", c.rope.theta, c.rope.type);
        if (c.quant_method[0])
            fprintf(out, "quantization_config: %s, version '%s', %lld bits, group size %lld\n",
                    c.quant_method, c.quant_version, (long long)c.quant_bits,
                    (long long)c.quant_group);
        hf_config_free(&c);
    }
    tc__buf_free(&notes);
}

static int inspect_checkpoint(const char *path, FILE *out, tc_error *err) {
    checkpoint ckpt;
    int code = ckpt_open_any(path, &ckpt, err);
    if (code) return code;
    fprintf(out, "%s: %s, %llu bytes\n", path, ckpt.format, (unsigned long long)ckpt.file_bytes);
    char *config = hf_path(path, "config.json");
    if (config) inspect_config(path, out);
    free(config);
    if (ckpt.kind == CKPT_SEARCH) {
        inspect_search(out, &ckpt);
    } else {
        fprintf(out, "tensors (%zu):\n", ckpt.count);
        for (size_t i = 0; i < ckpt.count; i++) {
            char shape[CKPT_SHAPE_TEXT];
            fprintf(out, "  %-60s %s\n", ckpt.tensors[i].name,
                    ckpt_shape_text(&ckpt.tensors[i], shape));
        }
        inspect_layers(out, &ckpt);
    }
    ckpt_close(&ckpt);
    return TC_OK;
}

int inspect_file(const char *path, FILE *out, tc_error *err) {
    return ckpt_is_model(path) ? inspect_model(path, out, err) : inspect_checkpoint(path, out, err);
}

/* ---- verifying ---- */

static int inspect_tensor_crc(const char *path, const tc__tensor *tensor, tc_error *err) {
    uint32_t crc = tc__crc32(0, tensor->data, tensor->size);
    if (crc == tensor->crc) return TC_OK;
    return tc__fail(err, TC_ERR_FORMAT,
                    "%s: tensor '%.*s' is damaged: checksum %08x, expected %08x; convert the "
                    "checkpoint again, or copy the file again",
                    path, (int)tensor->name_len, tensor->name, (unsigned)crc,
                    (unsigned)tensor->crc);
}

/* What an engine does with the file before it looks at the weights' data. */
static int inspect_usable(const tc__model_file *file, tc_error *err) {
    tc__weights weights;
    tc__tokenizer *tokenizer = NULL;
    tc__template chat;
    tc__buf storage = {0};
    int code = tc__weights_open(file, &weights, err);
    if (code) return code;
    code = tc__tokenizer_open(file, weights.arch.vocab_size, &tokenizer, err);
    if (!code) code = tc__template_load(file, &chat, &storage, err);
    tc__tokenizer_close(tokenizer);
    tc__buf_free(&storage);
    tc__weights_close(&weights);
    return code;
}

int inspect_verify(const char *path, FILE *out, void (*progress)(void *user, double fraction),
                   void *user, tc_error *err) {
    tc__model_file file;
    int code = tc__model_file_open(path, &file, err);
    if (code) return code;
    code = inspect_usable(&file, err);
    for (size_t i = 0; i < file.tensor_count && !code; i++) {
        code = inspect_tensor_crc(path, &file.tensors[i], err);
        if (progress) progress(user, (double)(i + 1) / (double)file.tensor_count);
    }
    if (!code)
        fprintf(out, "%s: %zu metadata entries and %zu tensors, all checksums are right\n", path,
                file.meta_count, file.tensor_count);
    tc__model_file_close(&file);
    return code;
}
