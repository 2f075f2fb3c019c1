#include "convert.h"

#include "chat_template.h"
#include "plan.h"
#include "tokenizer_folder.h"

#include <dirent.h>
#include <math.h>
#include <sys/stat.h>

/* Everything that one conversion holds. */
typedef struct convert_job {
    const convert_options *options;
    convert_summary *summary;
    tc_error *err;
    hf_config config;
    checkpoint ckpt, search;
    plan p;
    tokenizer_import tokenizer;
    bool has_tokenizer;
    chat_choice chat;
    int64_t closing; /* the token with which chat closes a reply; -1: there is none */
    writer out;
    tc__buf notes;
    uint8_t *buffer; /* what is on its way to the file */
    size_t buffer_size;
    uint64_t bytes_done, bytes_total; /* of tensor data, for the progress */
    uint64_t unreleased;              /* bytes of a matrix read since its pages were let go */
    uint64_t rounded_weights, rounded_scales, narrowed_weights;
} convert_job;

/* ---- talking ---- */

/* Hands on the remarks collected so far, line by line. */
static void convert_tell(convert_job *job) {
    const convert_options *o = job->options;
    char *line = job->notes.len ? job->notes.data : NULL;
    while (line && *line) {
        char *end = strchr(line, '\n');
        if (end) *end = 0;
        for (char *c = line; *c; c++)
            if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
        if (o->note) o->note(o->user, line);
        line = end ? end + 1 : NULL;
    }
    job->notes.len = 0;
}

static int convert_step(convert_job *job, size_t bytes) {
    const convert_options *o = job->options;
    job->bytes_done += bytes;
    if (o->progress) o->progress(o->user, (double)job->bytes_done / (double)job->bytes_total);
    if (o->cancel && tc__flag_get(o->cancel))
        return tc__fail(job->err, TC_ERR_CANCELLED, "cancelled; nothing was written");
    return TC_OK;
}

/* Lets go of the pages of a matrix that have been read, so that few are resident at once however
 * large it is. */
#define CONVERT_RESIDENT (32u << 20)
#define CONVERT_BAND (20u << 20)

static void convert_release(convert_job *job, const repack_matrix *m) {
    for (int i = 0; i < m->part_count; i++) ckpt_release(&job->ckpt, m->parts[i].weight);
    job->unreleased = 0;
}

/* For what is read row by row. */
static void convert_relax(convert_job *job, const repack_matrix *m, size_t bytes) {
    job->unreleased += bytes;
    if (job->unreleased >= CONVERT_RESIDENT && !layout_by_columns(m->parts[0].kind))
        convert_release(job, m);
}

/* For what is read by columns, where every band of rows touches all pages: the units after which
 * they are let go. All of them, if the matrix is not that large. */
static uint32_t convert_span(const repack_matrix *m) {
    uint32_t group = m->parts[0].group, units = m->columns / group;
    uint64_t span = 4ull * CONVERT_RESIDENT / ((uint64_t)m->rows * group / 2) + 1;
    return layout_by_columns(m->parts[0].kind) && span < units ? (uint32_t)span : units;
}

static int convert_room(convert_job *job, size_t bytes) {
    if (bytes <= job->buffer_size) return TC_OK;
    free(job->buffer);
    job->buffer = malloc(bytes);
    job->buffer_size = job->buffer ? bytes : 0;
    return job->buffer ? TC_OK : tc__fail_memory(job->err, "a band of rows", bytes);
}

/* ---- tensors ---- */

/* What AWQ does to a norm or a bias: in binary16, the last numbers divided by the scales. `place`
 * counts from the end, -1 being the last. */
static float convert_divide(float value, const ckpt_tensor *by, int64_t place) {
    value = quantise_round16(value);
    if (place + by->shape[0] < 0) return value;
    return quantise_round16(value / quantise_round16(plan_number(by, place + by->shape[0])));
}

static int convert_vector(convert_job *job, const plan_vector *v) {
    size_t bytes = v->length * sizeof(float);
    int code = convert_room(job, bytes);
    uint8_t *out = job->buffer;
    for (int i = 0; i < v->part_count && !code; i++) {
        const ckpt_tensor *part = v->parts[i];
        if (part) code = ckpt_check_crc(&job->ckpt, part, job->err);
        int64_t count = part ? part->shape[0] : (int64_t)v->length; /* ones have one part */
        for (int64_t k = 0; k < count && !code; k++, out += sizeof(float)) {
            float value = part ? plan_number(part, k) : 1;
            if (v->divide[i]) value = convert_divide(value, v->divide[i], k - count);
            if (!isfinite(value) || (v->divisor && !(value > 0)))
                code = tc__fail(job->err, TC_ERR_FORMAT,
                                "%s: tensor '%s', number %lld is %g; expected a %s number",
                                part->file, part->name, (long long)k, (double)value,
                                v->divisor ? "positive" : "finite");
            memcpy(out, &value, sizeof value);
        }
    }
    if (!code) code = writer_put(&job->out, job->buffer, bytes, job->err);
    return code ? code : convert_step(job, bytes);
}

/* A run of rows of one part of a plain matrix, as it lies in the checkpoint: in the mapped file, or
 * copied to `room` if it is a strided view. */
static const uint8_t *convert_rows(const layout_matrix *part, uint32_t row, uint32_t count,
                                   uint8_t *room) {
    size_t row_bytes = (size_t)part->columns * ckpt_dtype_size(part->dtype);
    if (ckpt_contiguous(part->weight)) return part->weight->data + row * row_bytes;
    ckpt_copy(part->weight, row, count, room);
    return room;
}

/* How many values of a binary32 matrix each 16-bit type cannot hold. */
typedef struct convert_losses {
    uint64_t f16, bf16;
} convert_losses;

static void convert_count(const uint8_t *values, size_t count, convert_losses *losses) {
    for (size_t i = 0; i < count; i++) {
        uint32_t bits;
        memcpy(&bits, values + 4 * i, sizeof bits);
        losses->bf16 += (bits & 0xffff) != 0;
        float value;
        memcpy(&value, values + 4 * i, sizeof value);
        losses->f16 += tc__f16_to_f32(tc__f32_to_f16(value)) != value; /* NaN: never equal */
    }
}

static int convert_narrow(convert_job *job, const layout_matrix *part, const uint8_t *values,
                          size_t count, bool bf16, uint8_t *out) {
    for (size_t i = 0; i < count; i++) {
        uint16_t half;
        if (bf16) {
            memcpy(&half, values + 4 * i + 2, sizeof half); /* the upper half, exact */
        } else {
            float value;
            memcpy(&value, values + 4 * i, sizeof value);
            half = tc__f32_to_f16(value);
            if ((half & 0x7fff) >= 0x7c00)
                return tc__fail(job->err, TC_ERR_UNSUPPORTED,
                                "%s: tensor '%s' holds %g, which binary16 cannot; convert the "
                                "checkpoint to bfloat16 first",
                                part->weight->file, part->weight->name, (double)value);
        }
        memcpy(out + 2 * i, &half, sizeof half);
    }
    return TC_OK;
}

/* Rows of a plain matrix that are handled at once: about 256 KB, which fits a core's cache. */
static uint32_t convert_piece(const repack_matrix *m) {
    size_t rows = (256 << 10) / ((size_t)m->columns * ckpt_dtype_size(m->parts[0].dtype));
    return rows > 8 ? (uint32_t)rows : 8;
}

/* Walks the rows of a plain matrix in the file's order, a piece at a time. */
typedef int convert_visit(convert_job *job, const layout_matrix *part, const uint8_t *rows,
                          size_t values, void *user);

static int convert_walk(convert_job *job, const repack_matrix *m, uint8_t *room,
                        convert_visit *visit, void *user) {
    int code = TC_OK;
    for (uint32_t row = 0, count; row < m->rows && !code; row += count) {
        int part;
        uint32_t part_row;
        repack_locate(m, row, &part, &part_row, &count);
        if (count > convert_piece(m)) count = convert_piece(m);
        const uint8_t *rows = convert_rows(&m->parts[part], part_row, count, room);
        convert_relax(job, m, (size_t)count * m->columns * ckpt_dtype_size(m->parts[part].dtype));
        code = visit(job, &m->parts[part], rows, (size_t)count * m->columns, user);
    }
    return code;
}

static int convert_visit_count(convert_job *job, const layout_matrix *part, const uint8_t *rows,
                               size_t values, void *user) {
    (void)job, (void)part;
    convert_count(rows, values, user);
    return TC_OK;
}

/* user: whether a binary32 matrix becomes bfloat16; its narrowed rows go to the buffer's front. */
static int convert_visit_put(convert_job *job, const layout_matrix *part, const uint8_t *rows,
                             size_t values, void *user) {
    const bool *bf16 = user;
    int code = TC_OK;
    if (part->dtype == CKPT_F32) {
        code = convert_narrow(job, part, rows, values, *bf16, job->buffer);
        rows = job->buffer;
    }
    if (!code) code = writer_put(&job->out, rows, 2 * values, job->err);
    return code ? code : convert_step(job, 2 * values);
}

static int convert_plain(convert_job *job, const repack_matrix *m) {
    size_t narrow = (size_t)convert_piece(m) * m->columns * 2;
    int code = convert_room(job, 3 * narrow); /* narrowed rows, then a copy of wide ones */
    convert_losses losses = {0, 0};
    bool bf16 = false;
    if (code) return code;
    if (m->parts[0].dtype == CKPT_F32) {
        convert_walk(job, m, job->buffer + narrow, convert_visit_count, &losses);
        bf16 = losses.f16 && !losses.bf16;
        if (!bf16) job->rounded_weights += losses.f16;
        writer_set_type(&job->out, bf16 ? TC__BF16 : TC__F16);
    }
    return convert_walk(job, m, job->buffer + narrow, convert_visit_put, &bf16);
}

static int convert_packed(convert_job *job, const repack_matrix *m) {
    uint32_t blocks = (m->rows + TC__UNIT_ROWS - 1) / TC__UNIT_ROWS, band = repack_band(m);
    uint32_t units = m->columns / m->parts[0].group, span = convert_span(m);
    /* Pages that are let go come back with every band: then few large ones are better. */
    while (span < units && repack_bytes(m, 2 * band) <= CONVERT_BAND) band *= 2;
    int code = convert_room(job, repack_bytes(m, band));
    for (uint32_t block = 0; block < blocks && !code; block += band) {
        uint32_t now = blocks - block < band ? blocks - block : band;
        size_t bytes = repack_bytes(m, now);
        for (uint32_t unit = 0; unit < units; unit += span) {
            uint32_t count = units - unit < span ? units - unit : span;
            repack_blocks(m, block, now, unit, count, job->buffer);
            if (span < units) convert_release(job, m);
        }
        code = writer_put(&job->out, job->buffer, bytes, job->err);
        if (!code) code = convert_step(job, bytes);
        convert_relax(job, m, bytes);
    }
    for (int i = 0; i < m->part_count; i++) job->rounded_scales += m->parts[i].rounded;
    return code;
}

static int convert_quantised(convert_job *job, const plan_tensor *tensor) {
    const repack_matrix *m = &tensor->matrix;
    uint32_t blocks = (m->rows + TC__UNIT_ROWS - 1) / TC__UNIT_ROWS, group = job->p.group;
    size_t block_bytes = (size_t)(m->columns / group) * TC__UNIT_BYTES(group);
    quantise q;
    int code = quantise_open(&q, m, tensor->steps, job->p.awq, group, job->err);
    if (!code) code = convert_room(job, QUANTISE_BAND * block_bytes);
    for (uint32_t block = 0; block < blocks && !code; block += QUANTISE_BAND) {
        uint32_t now = blocks - block < QUANTISE_BAND ? blocks - block : QUANTISE_BAND;
        code = quantise_blocks(&q, block, now, job->buffer, job->err);
        if (!code) code = writer_put(&job->out, job->buffer, now * block_bytes, job->err);
        if (!code) code = convert_step(job, now * block_bytes);
        convert_relax(job, m, (size_t)now * TC__UNIT_ROWS * m->columns * 2);
    }
    job->narrowed_weights += q.rounded;
    quantise_close(&q);
    return code;
}

static int convert_matrix(convert_job *job, plan_tensor *tensor) {
    repack_matrix *m = &tensor->matrix;
    int code = TC_OK;
    for (int i = 0; i < m->part_count && !code; i++)
        code = layout_open(&m->parts[i], &job->ckpt, job->err);
    if (!code && tensor->quantise)
        code = convert_quantised(job, tensor);
    else if (!code)
        code = m->parts[0].kind == LAYOUT_PLAIN ? convert_plain(job, m) : convert_packed(job, m);
    for (int i = 0; i < m->part_count; i++) layout_close(&m->parts[i], &job->ckpt);
    return code;
}

/* ---- the model file ---- */

static void convert_declare(convert_job *job) {
    for (size_t i = 0; i < job->p.count; i++) {
        const plan_tensor *tensor = &job->p.tensors[i];
        const repack_matrix *m = &tensor->matrix;
        if (tensor->vector.length) {
            writer_declare(&job->out, tensor->name, TC__F32, 0, tensor->vector.length, 0);
        } else {
            const layout_matrix *part = &m->parts[0];
            uint32_t plain = part->dtype == CKPT_BF16 ? TC__BF16 : TC__F16;
            bool packed = tensor->quantise || part->kind != LAYOUT_PLAIN;
            writer_declare(&job->out, tensor->name, packed ? TC__W4 : plain,
                           tensor->quantise ? job->p.group : part->group, m->rows, m->columns);
        }
    }
}

static void convert_position(convert_job *job) {
    const hf_config *c = &job->config;
    writer *w = &job->out;
    if (c->alibi_slopes) {
        writer_f32s(w, "arch.alibi_slopes", c->alibi_slopes, c->heads);
        return;
    }
    writer_f64(w, "arch.rope_theta", c->rope.theta);
    if (c->rope.frequencies)
        writer_f64s(w, "arch.rope_frequencies", c->rope.frequencies, c->head_dim / 2);
    if (c->rope.scale != 1) writer_f64(w, "arch.rope_scale", c->rope.scale);
}

static void convert_arch(convert_job *job) {
    const hf_config *c = &job->config;
    const family *page = c->family;
    const struct {
        const char *key;
        uint32_t value, missing; /* what a file without the key means; required ones are never 0 */
    } numbers[] = {
        {"arch.hidden_size", c->hidden_size, 0},
        {"arch.intermediate_size", c->intermediate_size, 0},
        {"arch.layers", c->layers, 0},
        {"arch.heads", c->heads, 0},
        {"arch.kv_heads", c->kv_heads, 0},
        {"arch.head_dim", c->head_dim, 0},
        {"arch.vocab_size", c->vocab_size, 0},
        {"arch.max_seq_len", c->max_seq_len, 0},
        {"arch.norm", page->norm, TC__NORM_RMS},
        {"arch.position", page->position, TC__POSITION_ROPE},
        {"arch.activation", page->activation, TC__ACT_SILU},
        {"arch.gated", page->gated, 1},
        {"arch.parallel", page->parallel, 0},
        {"arch.sliding_window", c->sliding_window, 0},
    };
    writer_text(&job->out, "arch.family", page->name, strlen(page->name));
    for (size_t i = 0; i < TC_COUNT(numbers); i++)
        if (numbers[i].value != numbers[i].missing)
            writer_u32(&job->out, numbers[i].key, &numbers[i].value, 1);
    writer_f64(&job->out, "arch.norm_eps", c->norm_eps);
    if (c->clip_qkv) writer_f64(&job->out, "arch.clip_qkv", c->clip_qkv);
    convert_position(job);
}

/* A template that was made for another tokenizer: the model cannot say that its reply is over. An
 * error if it was asked for, as chat has it; a remark if it is the checkpoint's own. */
static int convert_check_template(convert_job *job) {
    const tc__template *chosen = job->chat.chosen;
    size_t len;
    const char *mark = tc__template_closing_text(chosen, &len);
    if (!job->has_tokenizer || !mark || chosen->stop_strings[0] || job->closing >= 0) return TC_OK;
    if (job->options->template_name)
        return tc__fail(job->err, TC_ERR_ARGUMENT,
                        "--template %s does not fit: it ends replies with '%.*s', and the "
                        "checkpoint's tokenizer has no such special token; leave --template out, "
                        "or name the template that the model was trained with",
                        chosen->name, (int)len, mark);
    tc__buf_printf(&job->notes,
                   "chat template '%s' (%s) does not fit: it ends replies with '%.*s', and the "
                   "tokenizer has no such special token; --template NAME chooses another\n",
                   chosen->name, job->chat.reason, (int)len, mark);
    return TC_OK;
}

/* The ids that end a reply: eos_token_id of config.json and generation_config.json, or else the
 * tokenizer's. */
static void convert_stops(convert_job *job) {
    uint32_t ids[HF_MAX_STOP_IDS + 1];
    size_t count = 0, same = 0;
    for (size_t i = 0; i < job->config.stop_count; i++) {
        if (job->config.stop_ids[i] < job->config.vocab_size)
            ids[count++] = (uint32_t)job->config.stop_ids[i];
        else
            tc__buf_printf(&job->notes, "eos_token_id %lld is outside the vocabulary: left out\n",
                           (long long)job->config.stop_ids[i]);
    }
    if (count == 0 && job->has_tokenizer && job->tokenizer.eos_id >= 0)
        ids[count++] = (uint32_t)job->tokenizer.eos_id;
    /* MPT's folders, for one, name <|endoftext|> only, not what ends a turn */
    while (same < count && ids[same] != job->closing) same++;
    if (same == count && job->closing >= 0) ids[count++] = (uint32_t)job->closing;
    if (count == 0)
        tc__buf_printf(&job->notes, "no eos_token_id: replies end only at their length limit\n");
    chat_write(&job->chat, ids, count, &job->out);
}

/* The last component of a path or repository name, malloc'ed. */
static char *convert_base(const char *path) {
    size_t len = strlen(path);
    while (len > 1 && path[len - 1] == '/') len--;
    size_t start = len;
    while (start > 0 && path[start - 1] != '/') start--;
    return tc__copy(path + start, len - start);
}

/* Names that say nothing about the model: ".", a snapshot's hash, "hf"... */
static bool convert_is_dull(const char *name) {
    static const char *const dull[] = {"", ".", "..", "/", "hf", "model", "models", "checkpoint"};
    for (size_t i = 0; i < TC_COUNT(dull); i++)
        if (strcmp(name, dull[i]) == 0) return true;
    return strlen(name) == 40 && strspn(name, "0123456789abcdef") == 40;
}

/* NAME of a folder .../models--OWNER--NAME/snapshots/HASH, as the Hub's cache has them; else "".
 * malloc'ed. */
static char *convert_cached(const char *path) {
    const char *start = strstr(path, "/models--");
    const char *end = start ? strstr(start, "/snapshots/") : NULL, *name = end;
    while (name && memcmp(name - 2, "--", 2) != 0) name--;
    return tc__copy(end ? name : "", end ? (size_t)(end - name) : 0);
}

/* The model's name, malloc'ed: --name, or the first of these that says something: the folder's
 * name, the repository's, _name_or_path's last part, the name of the folder that holds the folder.
 */
static char *convert_name(const convert_job *job, const char *path) {
    const char *asked = job->options->name;
    if (asked) return tc__copy(asked, strlen(asked));
    const char *slash = strrchr(path, '/');
    char *parent = tc__copy(path, slash ? (size_t)(slash - path) : 0);
    char *names[] = {convert_base(path), convert_cached(path),
                     convert_base(job->config.name_or_path), convert_base(parent ? parent : "")};
    size_t best = 0;
    while (best < TC_COUNT(names) && names[best] && convert_is_dull(names[best])) best++;
    if (best == TC_COUNT(names)) best = 0;
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (i != best) free(names[i]);
    free(parent);
    return names[best];
}

/* Chooses the chat template; without a tokenizer nobody can chat, so that none is looked for. */
static int convert_choose(convert_job *job, const char *name, const char *folder) {
    const convert_options *o = job->options;
    char *dump = convert_base(o->awq ? o->awq : "");
    if (!dump) return tc__fail_memory(job->err, "a name", 64);
    const char *names[] = {name, job->config.name_or_path, folder, dump, NULL};
    const char *asked = o->template_name;
    if (!asked && o->no_tokenizer) asked = "plain";
    int code = chat_choose(o->hf, asked, names, &job->chat, &job->notes, job->err);
    job->closing = -1;
    if (!code && job->has_tokenizer)
        job->closing = chat_closing_id(&job->chat, &job->tokenizer, job->config.vocab_size);
    free(dump);
    return code;
}

static int convert_metadata(convert_job *job) {
    const char *hf = job->options->hf;
    char *path = realpath(hf, NULL);
    char *folder = convert_base(path ? path : hf);
    char *name = convert_name(job, path ? path : hf);
    int code = folder && name ? convert_choose(job, name, folder)
                              : tc__fail_memory(job->err, "a name", 64);
    if (!code) code = convert_check_template(job);
    if (!code) {
        writer_text(&job->out, "general.name", name, strlen(name));
        writer_text(&job->out, "general.source", job->summary->source,
                    strlen(job->summary->source));
        convert_arch(job);
        tokenizer_import_write(job->has_tokenizer ? &job->tokenizer : NULL, &job->out);
        convert_stops(job);
    }
    free(path);
    free(folder);
    free(name);
    return code;
}

/* ---- what was found ---- */

/* Tells when the folder's own description differs from its tensors, which are followed. */
static void convert_cross_check(convert_job *job) {
    static const struct {
        const char *method, *version;
    } kinds[] = {{"", ""},     {"awq", "gemm"},           {"awq", "gemv"}, {"awq", "gemv_fast"},
                 {"gptq", ""}, {"compressed-tensors", ""}};
    const hf_config *c = &job->config;
    const plan *p = &job->p;
    if (job->options->awq || !c->quant_method[0]) return;
    if (!p->packed) {
        tc__buf_printf(&job->notes,
                       "config.json says that the model is quantised, but its tensors are not\n");
        return;
    }
    const char *method = kinds[p->kind].method, *version = kinds[p->kind].version;
    bool same = strcmp(c->quant_method, method) == 0;
    if (same && version[0] && c->quant_version[0])
        same = strcmp(c->quant_version, version) == 0 ||
               (p->kind == LAYOUT_A && (strncmp(c->quant_version, "exllama", 7) == 0 ||
                                        strcmp(c->quant_version, "ipex") == 0));
    if (!same)
        tc__buf_printf(&job->notes,
                       "config.json says %s version '%s', the tensors are %s ('%s'): the tensors "
                       "are followed\n",
                       c->quant_method, c->quant_version, layout_name(p->kind),
                       version[0] ? version : method);
    if (c->quant_group > 0 && c->quant_group != p->source_group && !p->mixed)
        tc__buf_printf(&job->notes,
                       "config.json says group size %lld, the tensors have %u: the tensors are "
                       "followed\n",
                       (long long)c->quant_group, (unsigned)p->source_group);
}

static void convert_describe(convert_job *job) {
    convert_summary *s = job->summary;
    const plan *p = &job->p;
    char layers[128];
    if (p->quantise) {
        snprintf(layers, sizeof layers, "%s quantised %s, group size %u", ckpt_dtype_name(p->dtype),
                 p->awq ? "with AWQ search results" : "by rounding to nearest", (unsigned)p->group);
        snprintf(s->precision, sizeof s->precision, "W4A16 g%u", (unsigned)p->group);
    } else if (!p->packed) {
        snprintf(layers, sizeof layers, "%s", ckpt_dtype_name(p->dtype));
        snprintf(s->precision, sizeof s->precision, "W16A16");
    } else {
        snprintf(layers, sizeof layers, "%s, group size %u%s%s", layout_title(p->kind),
                 (unsigned)p->source_group, p->mixed ? " (and others)" : "",
                 p->plain ? ", some layers 16-bit" : "");
        snprintf(s->precision, sizeof s->precision, "W4A16 g%u", (unsigned)p->group);
    }
    snprintf(s->source, sizeof s->source, "%s; %s", layers, job->ckpt.format);
    s->input_bytes = p->input_bytes;
    s->tensors = p->count;
    s->template_name = NULL;
}

static void convert_found(convert_job *job) {
    const convert_options *o = job->options;
    const hf_config *c = &job->config;
    char line[1024], scaling[64] = "", tokenizer[64] = "no tokenizer";
    if (job->has_tokenizer)
        snprintf(tokenizer, sizeof tokenizer, "%s tokenizer, %u pieces",
                 !job->tokenizer.has_merges ? "SentencePiece"
                 : job->tokenizer.bytes     ? "byte-level BPE"
                                            : "BPE",
                 (unsigned)job->tokenizer.count);
    if (!c->alibi_slopes && strcmp(c->rope.type, "default") != 0)
        snprintf(scaling, sizeof scaling, ", RoPE scaling %s", c->rope.type);
    snprintf(
        line, sizeof line,
        "%s, %u layers, hidden %u, %u heads (%u KV), vocabulary %u%s | %s | %s | chat template "
        "%s (%s)",
        c->family->name, (unsigned)c->layers, (unsigned)c->hidden_size, (unsigned)c->heads,
        (unsigned)c->kv_heads, (unsigned)c->vocab_size, scaling, job->summary->source, tokenizer,
        job->chat.chosen->name, job->chat.reason);
    if (o->found) o->found(o->user, line);
}

static void convert_rounded(convert_job *job) {
    if (job->rounded_weights)
        tc__buf_printf(&job->notes,
                       "%llu weights are binary32 numbers that neither 16-bit type holds exactly: "
                       "rounded to binary16\n",
                       (unsigned long long)job->rounded_weights);
    if (job->narrowed_weights)
        tc__buf_printf(&job->notes,
                       "%llu weights were rounded to binary16 first, in which AWQ quantises\n",
                       (unsigned long long)job->narrowed_weights);
    if (job->rounded_scales)
        tc__buf_printf(&job->notes, "%llu scales were rounded to binary16\n",
                       (unsigned long long)job->rounded_scales);
}

/* ---- the whole ---- */

/* Whether `path` is there and the same file as `other`. */
static bool convert_is_file(const char *path, const struct stat *other) {
    struct stat info;
    return !stat(path, &info) && info.st_dev == other->st_dev && info.st_ino == other->st_ino;
}

/* Whether it is one of the folder's small files that convert or transformers reads. */
static bool convert_is_in_folder(const char *dir, const struct stat *file) {
    static const char *const names[] = {
        "config.json",         "generation_config.json",      "tokenizer.model",
        "tokenizer.json",      "tokenizer_config.json",       "added_tokens.json",
        "chat_template.jinja", "chat_template.json",          "special_tokens_map.json",
        "quant_config.json",   "quantize_config.json",        "model.safetensors.index.json",
        "vocab.json",          "pytorch_model.bin.index.json"};
    bool found = false;
    for (size_t i = 0; i < TC_COUNT(names) && !found; i++) {
        char *path = hf_path(dir, names[i]);
        found = path && convert_is_file(path, file);
        free(path);
    }
    return found;
}

/* Whether it is a file of the folder whose name says that it holds weights: --awq takes others, and
 * these are not read. */
static bool convert_is_weights(const char *dir, const struct stat *file) {
    DIR *stream = opendir(dir);
    bool found = false;
    for (struct dirent *entry; stream && !found && (entry = readdir(stream)) != NULL;) {
        const char *name = entry->d_name, *point = strrchr(name, '.');
        if ((!point || strcmp(point, ".safetensors")) && strncmp(name, "pytorch_model", 13))
            continue;
        char *path = hf_path(dir, name);
        found = path && convert_is_file(path, file);
        free(path);
    }
    if (stream) closedir(stream);
    return found;
}

/* The output must not be one of the files that are read, nor other weights of the folder. */
static int convert_check_output(const convert_job *job) {
    const char *path = job->options->output, *search = job->options->search;
    struct stat out;
    if (stat(path, &out)) return TC_OK; /* not there yet */
    if (S_ISDIR(out.st_mode))
        return tc__fail(job->err, TC_ERR_ARGUMENT, "%s: is a folder; give -o a file name", path);
    if (!S_ISREG(out.st_mode))
        return tc__fail(job->err, TC_ERR_ARGUMENT,
                        "%s: is not a regular file; give -o another name", path);
    bool input = convert_is_in_folder(job->options->hf, &out) ||
                 convert_is_weights(job->options->hf, &out) ||
                 (search && convert_is_file(search, &out));
    const char *last = NULL;
    for (size_t i = 0; i < job->ckpt.count && !input; i++) {
        const char *file = job->ckpt.tensors[i].file;
        input = file != last && convert_is_file(file, &out);
        last = file;
    }
    if (!input) return TC_OK;
    return tc__fail(job->err, TC_ERR_ARGUMENT,
                    "%s: is a part of the checkpoint; give -o another name", path);
}

static int convert_open_search(convert_job *job) {
    int code = ckpt_open_any(job->options->search, &job->search, job->err);
    if (code || job->search.kind == CKPT_SEARCH) return code;
    return tc__fail(job->err, TC_ERR_UNSUPPORTED,
                    "%s: holds weights, not AWQ search results; weights go with --awq",
                    job->options->search);
}

static int convert_open(convert_job *job) {
    const convert_options *o = job->options;
    int code = hf_config_read(o->hf, &job->config, &job->notes, job->err);
    if (code) return code;
    if (o->awq) {
        code = ckpt_open(o->awq, &job->ckpt, job->err);
    } else {
        code = hf_config_check_quant(&job->config, o->hf, job->err);
        if (!code) code = ckpt_open_hf(o->hf, &job->ckpt, job->err);
    }
    if (!code && o->search) code = convert_open_search(job);
    if (!code) code = convert_check_output(job);
    plan_quantise how = {o->search ? &job->search : NULL, o->group};
    if (!code)
        code = plan_make(&job->config, &job->ckpt, o->search || o->quantise ? &how : NULL, &job->p,
                         &job->notes, job->err);
    if (code || o->no_tokenizer) return code;
    code = tokenizer_folder_read(o->hf, job->config.vocab_size, &job->tokenizer, &job->notes,
                                 job->err);
    job->has_tokenizer = !code;
    return code;
}

static int convert_write(convert_job *job) {
    int code = writer_begin(&job->out, job->options->output, job->err);
    job->bytes_total = job->out.file_bytes;
    for (size_t i = 0; i < job->p.count && !code; i++) {
        plan_tensor *tensor = &job->p.tensors[i];
        code = tensor->vector.length ? convert_vector(job, &tensor->vector)
                                     : convert_matrix(job, tensor);
    }
    job->summary->output_bytes = job->out.file_bytes;
    if (!code) code = writer_finish(&job->out, job->err);
    return code;
}

int convert_run(const convert_options *options, convert_summary *summary, tc_error *err) {
    convert_job job;
    memset(&job, 0, sizeof job);
    memset(summary, 0, sizeof *summary);
    job.options = options;
    job.summary = summary;
    job.err = err;
    writer_init(&job.out);
    int code = TC_OK;
    if (options->template_name && !tc__template_find(options->template_name))
        code = tc__fail(err, TC_ERR_ARGUMENT, "no chat template '%s'", options->template_name);
    if (!code) code = convert_open(&job);
    if (!code) {
        convert_describe(&job);
        convert_cross_check(&job);
        convert_declare(&job);
        code = convert_metadata(&job);
    }
    convert_tell(&job);
    if (!code) {
        summary->template_name = job.chat.chosen->name;
        convert_found(&job);
        code = convert_write(&job);
    }
    if (!code) convert_rounded(&job);
    convert_tell(&job);
    writer_free(&job.out);
    plan_free(&job.p);
    if (job.has_tokenizer) tokenizer_import_free(&job.tokenizer);
    ckpt_close(&job.ckpt);
    ckpt_close(&job.search);
    hf_config_free(&job.config);
    tc__buf_free(&job.notes);
    free(job.buffer);
    return code ? code : tc__ok(err);
}
