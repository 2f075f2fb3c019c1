#include "src/base.h"

#include "json.h"
#include "safetensors.h"

typedef struct st_reader {
    const char *file;
    const uint8_t *data; /* after the header */
    size_t data_size;
    json_doc header;
    st_file *st;
    tc_error *err;
} st_reader;

static uint64_t st_header_size(const uint8_t *bytes) {
    uint64_t size;
    memcpy(&size, bytes, sizeof size);
    return size;
}

bool st_detect(const uint8_t *bytes, size_t size) {
    return size > 8 && bytes[8] == '{' && st_header_size(bytes) <= UINT32_MAX;
}

static int st_fail(const st_reader *r, int code, const char *name, const char *what) {
    return tc__fail(r->err, code, "%s: tensor '%.300s' %s", r->file, name, what);
}

static int st_read_dtype(st_reader *r, const json_value *entry, st_tensor *tensor) {
    const json_value *dtype = json_get(&r->header, entry, "dtype");
    for (int i = 0; i < CKPT_DTYPES; i++)
        if (json_is(&r->header, dtype, ckpt_dtype_name((ckpt_dtype)i))) {
            tensor->dtype = (ckpt_dtype)i;
            return TC_OK;
        }
    tc__buf text = {0};
    bool named = json_string(&r->header, dtype, &text) && !text.failed;
    int code = named
                   ? tc__fail(r->err, TC_ERR_UNSUPPORTED,
                              "%s: tensor '%.300s' has elements of type %.40s; known are F64, F32, "
                              "F16, BF16, I64, I32, I16, I8, U8 and BOOL",
                              r->file, tensor->name, text.data)
                   : st_fail(r, TC_ERR_FORMAT, tensor->name, "has no dtype");
    tc__buf_free(&text);
    return code;
}

/* Reads the shape and leaves the bytes that it takes in tensor->size. */
static int st_read_shape(st_reader *r, const json_value *entry, st_tensor *tensor) {
    const json_value *shape = json_get(&r->header, entry, "shape");
    if (json_type(shape) != JSON_ARRAY)
        return st_fail(r, TC_ERR_FORMAT, tensor->name, "has no shape");
    if (json_count(shape) > CKPT_MAX_DIMS)
        return st_fail(r, TC_ERR_UNSUPPORTED, tensor->name, "has more than 8 dimensions");
    bool empty = false, fits = true;
    tensor->size = ckpt_dtype_size(tensor->dtype);
    for (const json_value *dim = json_first(shape); dim; dim = json_next(shape, dim)) {
        int64_t value;
        if (!json_int(&r->header, dim, &value) || value < 0)
            return st_fail(r, TC_ERR_FORMAT, tensor->name, "has a dimension that is no size");
        tensor->shape[tensor->ndim++] = value;
        if (value == 0) empty = true;
        if ((uint64_t)value > SIZE_MAX / tensor->size)
            fits = false;
        else if (value)
            tensor->size *= (size_t)value;
    }
    if (empty) tensor->size = 0;
    return fits || empty ? TC_OK
                         : st_fail(r, TC_ERR_FORMAT, tensor->name, "has an impossible shape");
}

static int st_read_place(st_reader *r, const json_value *entry, st_tensor *tensor) {
    const json_value *offsets = json_get(&r->header, entry, "data_offsets");
    const json_value *first = json_first(offsets);
    int64_t begin, end;
    if (json_type(offsets) != JSON_ARRAY || json_count(offsets) != 2 ||
        !json_int(&r->header, first, &begin) ||
        !json_int(&r->header, json_next(offsets, first), &end) || begin < 0 || end < begin)
        return st_fail(r, TC_ERR_FORMAT, tensor->name, "has no valid data_offsets");
    if ((uint64_t)end > r->data_size)
        return st_fail(r, TC_ERR_FORMAT, tensor->name,
                       "lies past the end of the file (an interrupted download?)");
    if ((uint64_t)(end - begin) != tensor->size)
        return st_fail(r, TC_ERR_FORMAT, tensor->name,
                       "has data_offsets that contradict its shape");
    tensor->data = r->data + begin;
    return TC_OK;
}

static int st_read_tensor(st_reader *r, const json_value *key, st_tensor *tensor) {
    size_t start = r->st->names.len;
    json_string(&r->header, key, &r->st->names);
    tc__buf_add(&r->st->names, "", 1);
    if (r->st->names.failed) return tc__fail_memory(r->err, r->file, r->st->names.cap);
    tensor->name = r->st->names.data + start; /* made final by st_read, as the buffer may move */
    tensor->name_len = r->st->names.len - 1 - start;
    const json_value *entry = json_member(key);
    if (json_type(entry) != JSON_OBJECT)
        return st_fail(r, TC_ERR_FORMAT, tensor->name, "is not described by an object");
    int code = st_read_dtype(r, entry, tensor);
    if (!code) code = st_read_shape(r, entry, tensor);
    if (!code) code = st_read_place(r, entry, tensor);
    return code;
}

static int st_by_data(const void *a, const void *b) {
    const st_tensor *x = a, *y = b;
    if (x->data != y->data) return x->data < y->data ? -1 : 1;
    return x->size < y->size ? -1 : x->size > y->size;
}

static int st_check_cover(st_reader *r) {
    st_file *st = r->st;
    const uint8_t *at = r->data;
    qsort(st->tensors, st->count, sizeof *st->tensors, st_by_data);
    for (size_t i = 0; i < st->count; at += st->tensors[i++].size)
        if (st->tensors[i].data != at)
            return st_fail(r, TC_ERR_FORMAT, st->tensors[i].name,
                           st->tensors[i].data < at ? "overlaps another one"
                                                    : "comes after bytes that belong to none");
    size_t rest = (size_t)(r->data + r->data_size - at);
    if (rest)
        return tc__fail(r->err, TC_ERR_FORMAT, "%s: %zu bytes after the last tensor", r->file,
                        rest);
    return TC_OK;
}

static int st_read(st_reader *r) {
    const json_value *root = json_root(&r->header);
    st_file *st = r->st;
    if (json_type(root) != JSON_OBJECT)
        return tc__fail(r->err, TC_ERR_FORMAT, "%s: its header is not an object", r->file);
    st->tensors = tc__calloc(json_count(root), sizeof *st->tensors);
    if (!st->tensors)
        return tc__fail_memory(r->err, r->file, json_count(root) * sizeof *st->tensors);
    for (const json_value *key = json_first(root); key; key = json_next(root, key)) {
        if (json_is(&r->header, key, "__metadata__")) continue;
        int code = st_read_tensor(r, key, &st->tensors[st->count]);
        if (code) return code;
        st->count++;
    }
    const char *name = st->names.data;
    for (size_t i = 0; i < st->count; name += st->tensors[i++].name_len + 1)
        st->tensors[i].name = name;
    return st_check_cover(r);
}

int st_open(const char *file, const uint8_t *bytes, size_t size, st_file *st, tc_error *err) {
    memset(st, 0, sizeof *st);
    if (!st_detect(bytes, size))
        return tc__fail(err, TC_ERR_FORMAT, "%s: not a safetensors file", file);
    uint64_t header_size = st_header_size(bytes);
    if (header_size > size - 8)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: incomplete safetensors file: its header has %llu bytes, the file %zu "
                        "(an interrupted download?)",
                        file, (unsigned long long)header_size, size);
    if (header_size > ST_MAX_HEADER)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "%s: safetensors header of %llu bytes, more than %u", file,
                        (unsigned long long)header_size, ST_MAX_HEADER);
    st_reader reader = {.file = file, .st = st, .err = err};
    reader.data = bytes + 8 + header_size;
    reader.data_size = size - 8 - (size_t)header_size;
    int code = json_parse(file, (const char *)bytes + 8, (size_t)header_size, &reader.header, err);
    if (code) return code;
    code = st_read(&reader);
    json_close(&reader.header);
    if (code) st_close(st);
    return code ? code : tc__ok(err);
}

void st_close(st_file *st) {
    free(st->tensors);
    tc__buf_free(&st->names);
    memset(st, 0, sizeof *st);
}
