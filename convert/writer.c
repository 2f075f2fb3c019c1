#include "writer.h"

#include <errno.h>
#include <fcntl.h>

static const uint8_t writer_zeros[TC__DATA_ALIGN];

static void writer_add_u32(tc__buf *buf, uint32_t value) {
    tc__buf_add(buf, &value, sizeof value);
}

static void writer_add_u64(tc__buf *buf, uint64_t value) {
    tc__buf_add(buf, &value, sizeof value);
}

void writer_init(writer *w) {
    memset(w, 0, sizeof *w);
}

void writer_free(writer *w) {
    if (w->open) tc__replace_abort(&w->replace);
    for (size_t i = 0; i < w->tensor_count; i++) free(w->tensors[i].name);
    free(w->tensors);
    tc__buf_free(&w->metas);
    tc__buf_free(&w->table);
    memset(w, 0, sizeof *w);
}

/* ---- metadata ---- */

static void writer_value(writer *w, const char *key, uint32_t type, size_t count, const void *value,
                         size_t size) {
    tc__meta meta = {key, strlen(key), type, count, value, size};
    writer_meta(w, &meta);
}

void writer_meta(writer *w, const tc__meta *meta) {
    writer_add_u32(&w->metas, (uint32_t)meta->key_len);
    writer_add_u32(&w->metas, meta->type);
    writer_add_u64(&w->metas, meta->count);
    tc__buf_add(&w->metas, meta->key, meta->key_len);
    tc__buf_add(&w->metas, meta->value, meta->size);
    w->meta_count++;
}

void writer_u32(writer *w, const char *key, const uint32_t *values, size_t count) {
    writer_value(w, key, TC__META_U32, count, values, count * sizeof *values);
}

void writer_f64(writer *w, const char *key, double value) {
    writer_f64s(w, key, &value, 1);
}

void writer_f64s(writer *w, const char *key, const double *values, size_t count) {
    writer_value(w, key, TC__META_F64, count, values, count * sizeof *values);
}

void writer_f32s(writer *w, const char *key, const float *values, size_t count) {
    writer_value(w, key, TC__META_F32, count, values, count * sizeof *values);
}

void writer_text(writer *w, const char *key, const char *text, size_t len) {
    writer_value(w, key, TC__META_BYTES, len, text, len);
}

void writer_strings(writer *w, const char *key, const tc__buf *strings, size_t count) {
    if (strings->failed) w->failed = true;
    writer_value(w, key, TC__META_STRINGS, count, strings->data, strings->len);
}

void writer_add_string(tc__buf *strings, const char *text, size_t len) {
    writer_add_u32(strings, (uint32_t)len);
    tc__buf_add(strings, text, len);
}

/* ---- tensors ---- */

void writer_declare(writer *w, const char *name, uint32_t type, uint32_t group_size, uint64_t rows,
                    uint64_t columns) {
    if (w->tensor_count == w->tensor_cap) {
        size_t cap = w->tensor_cap ? 2 * w->tensor_cap : 64;
        writer_tensor *more = realloc(w->tensors, cap * sizeof *more);
        if (!more) {
            w->failed = true;
            return;
        }
        w->tensors = more;
        w->tensor_cap = cap;
    }
    writer_tensor *tensor = &w->tensors[w->tensor_count];
    memset(tensor, 0, sizeof *tensor);
    tensor->name = tc__copy(name, strlen(name));
    if (!tensor->name) {
        w->failed = true;
        return;
    }
    tensor->type = type;
    tensor->group_size = group_size;
    tensor->rows = rows;
    tensor->columns = columns; /* 0: a vector, until the table is written */
    w->tensor_count++;
}

void writer_set_type(writer *w, uint32_t type) {
    w->tensors[w->current].type = type;
}

static size_t writer_columns(const writer_tensor *tensor) {
    return tensor->columns ? (size_t)tensor->columns : 1;
}

/* The table as it stands: complete once every checksum is. */
static void writer_make_table(writer *w) {
    w->table.len = 0;
    for (size_t i = 0; i < w->tensor_count; i++) {
        const writer_tensor *tensor = &w->tensors[i];
        writer_add_u32(&w->table, (uint32_t)strlen(tensor->name));
        writer_add_u32(&w->table, tensor->type);
        writer_add_u32(&w->table, tensor->group_size);
        writer_add_u32(&w->table, tensor->columns ? 2 : 1);
        writer_add_u64(&w->table, tensor->rows);
        writer_add_u64(&w->table, writer_columns(tensor));
        writer_add_u64(&w->table, tensor->offset);
        writer_add_u64(&w->table, tensor->size);
        writer_add_u32(&w->table, tensor->crc);
        tc__buf_str(&w->table, tensor->name);
    }
}

/* Gives every tensor its size and place. */
static int writer_place(writer *w, tc_error *err) {
    writer_make_table(w); /* for its length, which no later change alters */
    uint64_t at = TC__HEADER_SIZE + (uint64_t)w->metas.len + w->table.len;
    for (size_t i = 0; i < w->tensor_count; i++) {
        writer_tensor *tensor = &w->tensors[i];
        tensor->size = tc__tensor_bytes(tensor->type, tensor->group_size, (size_t)tensor->rows,
                                        writer_columns(tensor));
        if (!tensor->size)
            return tc__fail(err, TC_ERR_ARGUMENT, "tensor '%s' cannot be written: bad shape",
                            tensor->name);
        tensor->offset = (at + TC__DATA_ALIGN - 1) / TC__DATA_ALIGN * TC__DATA_ALIGN;
        at = tensor->offset + tensor->size;
    }
    w->file_bytes = at;
    return TC_OK;
}

/* ---- the file ---- */

/* Has the system write out what has piled up, without waiting for it: the disk works while the next
 * tensors are made, and few pages are left for the final fsync. (The advice drops only pages that
 * are on the disk already, and these have just been written to.) */
#define WRITER_PUSH (32u << 20)

static void writer_push(writer *w) {
    if (w->at - w->pushed < WRITER_PUSH) return;
    posix_fadvise(fileno(w->replace.file), (off_t)w->pushed, (off_t)(w->at - w->pushed),
                  POSIX_FADV_DONTNEED);
    w->pushed = w->at;
}

static int writer_write(writer *w, const void *bytes, size_t len, tc_error *err) {
    if (len && fwrite(bytes, 1, len, w->replace.file) != len)
        return tc__fail(err, TC_ERR_IO, "%s: cannot write: %s", w->replace.path, strerror(errno));
    w->at += len;
    writer_push(w);
    return TC_OK;
}

static int writer_pad(writer *w, uint64_t bytes, tc_error *err) {
    int code = TC_OK;
    while (bytes && !code) {
        size_t now = bytes < sizeof writer_zeros ? (size_t)bytes : sizeof writer_zeros;
        code = writer_write(w, writer_zeros, now, err);
        bytes -= now;
    }
    return code;
}

int writer_begin(writer *w, const char *path, tc_error *err) {
    int code = writer_place(w, err);
    if (code) return code;
    if (w->failed || w->metas.failed || w->table.failed)
        return tc__fail_memory(err, "the model file's metadata", w->metas.len);
    if (w->tensor_count == 0)
        return tc__fail(err, TC_ERR_ARGUMENT, "%s: a model file without tensors", path);
    code = tc__replace_open(&w->replace, path, err);
    if (code) return code;
    w->open = true;
    setvbuf(w->replace.file, NULL, _IONBF, 0); /* what is put comes in large pieces already */
    code = writer_pad(w, TC__HEADER_SIZE, err);
    if (!code) code = writer_write(w, w->metas.data, w->metas.len, err);
    uint64_t at = TC__HEADER_SIZE + (uint64_t)w->metas.len;
    if (!code) code = writer_pad(w, w->tensors[0].offset - at, err);
    return code;
}

int writer_put(writer *w, const void *bytes, size_t len, tc_error *err) {
    if (w->current >= w->tensor_count || len > w->tensors[w->current].size - w->put)
        return tc__fail(err, TC_ERR_ARGUMENT, "%s: more bytes than tensors", w->replace.path);
    writer_tensor *tensor = &w->tensors[w->current];
    int code = writer_write(w, bytes, len, err);
    if (code) return code;
    tensor->crc = tc__crc32(tensor->crc, bytes, len);
    w->put += len;
    if (w->put < tensor->size) return TC_OK;
    w->put = 0;
    w->current++;
    if (w->current == w->tensor_count) return TC_OK;
    return writer_pad(w, tensor[1].offset - (tensor->offset + tensor->size), err);
}

static void writer_make_header(const writer *w, uint8_t header[TC__HEADER_SIZE]) {
    uint32_t version = TC__FILE_VERSION, crc;
    uint64_t metas_at = TC__HEADER_SIZE, metas_size = w->metas.len, table_size = w->table.len;
    uint32_t tensor_count = (uint32_t)w->tensor_count;
    uint32_t metas_crc = tc__crc32(0, w->metas.data, w->metas.len);
    uint32_t table_crc = tc__crc32(0, w->table.data, w->table.len);
    memcpy(header, TC__FILE_MAGIC, 8);
    memcpy(header + 8, &version, 4);
    memcpy(header + 16, &w->file_bytes, 8);
    memcpy(header + 24, &metas_at, 8);
    memcpy(header + 32, &metas_size, 8);
    memcpy(header + 40, &w->meta_count, 4);
    memcpy(header + 44, &metas_crc, 4);
    memcpy(header + 48, &tensor_count, 4);
    memcpy(header + 52, &table_crc, 4);
    memcpy(header + 56, &table_size, 8);
    crc = tc__crc32(0, header + 16, TC__HEADER_SIZE - 16);
    memcpy(header + 12, &crc, 4);
}

int writer_finish(writer *w, tc_error *err) {
    if (w->current != w->tensor_count)
        return tc__fail(err, TC_ERR_ARGUMENT, "%s: tensor '%s' is incomplete", w->replace.path,
                        w->tensors[w->current].name);
    writer_make_table(w);
    if (w->table.failed) return tc__fail_memory(err, "the tensor table", w->table.len);
    uint8_t header[TC__HEADER_SIZE];
    writer_make_header(w, header);
    int code = TC_OK;
    if (fseeko(w->replace.file, 0, SEEK_SET))
        code = tc__fail(err, TC_ERR_IO, "%s: cannot seek: %s", w->replace.path, strerror(errno));
    if (!code) code = writer_write(w, header, sizeof header, err);
    if (!code && fseeko(w->replace.file, (off_t)(TC__HEADER_SIZE + w->metas.len), SEEK_SET))
        code = tc__fail(err, TC_ERR_IO, "%s: cannot seek: %s", w->replace.path, strerror(errno));
    if (!code) code = writer_write(w, w->table.data, w->table.len, err);
    if (code) return code;
    w->open = false;
    return tc__replace_commit(&w->replace, err);
}
