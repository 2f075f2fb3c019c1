#include "model_file.h"

#include <unistd.h>

#define MODEL_FILE_MAX_METAS 4096u
#define MODEL_FILE_MAX_TENSORS 8192u
#define MODEL_FILE_MAX_NAME 256u

/* ---- W4 units ---- */

void tc__unit_place(unsigned group_size, unsigned row, unsigned column, unsigned *byte_offset,
                    unsigned *shift) {
    unsigned lane = (row & 7) * 4 + (column >> 3 & 3);
    unsigned word = (column >> 5) * 2 + (column >> 2 & 1);
    unsigned nibble = (row >> 3) + 2 * (column >> 1 & 1) + 4 * (column & 1);
    unsigned at =
        group_size == 32 ? 8 * lane + 4 * word : 512 * (word >> 2) + 16 * lane + 4 * (word & 3);
    *byte_offset = at + nibble / 2;
    *shift = 4 * (nibble & 1);
}

static size_t model_file_w4_bytes(uint32_t group_size, size_t rows, size_t columns) {
    size_t units;
    bool known = group_size == 32 || group_size == 64 || group_size == 128;
    if (!known || columns % group_size || rows > SIZE_MAX - 15) return 0;
    if (!tc__mul((rows + 15) / 16, columns / group_size, &units)) return 0;
    return tc__mul(units, TC__UNIT_BYTES(group_size), &units) ? units : 0;
}

size_t tc__tensor_bytes(uint32_t type, uint32_t group_size, size_t rows, size_t columns) {
    size_t bytes;
    if (type == TC__W4) return model_file_w4_bytes(group_size, rows, columns);
    size_t element = type == TC__F32 ? 4 : type == TC__F16 || type == TC__BF16 ? 2 : 0;
    if (group_size || !tc__mul(rows, columns, &bytes) || !tc__mul(bytes, element, &bytes)) return 0;
    return bytes;
}

/* ---- reading ---- */

/* "path: what" as a FORMAT error. */
static int model_file_bad(const char *path, const char *what, tc_error *err) {
    return tc__fail(err, TC_ERR_FORMAT, "%s: damaged model file: %s; convert or copy it again",
                    path, what);
}

static size_t model_file_meta_bytes(uint32_t type, uint64_t count, tc__cursor rest) {
    size_t size = 0;
    if (count > tc__cursor_left(&rest)) return SIZE_MAX; /* no element is shorter than a byte */
    switch (type) {
    case TC__META_BYTES: return (size_t)count;
    case TC__META_U32:
    case TC__META_F32: return tc__mul((size_t)count, 4, &size) ? size : SIZE_MAX;
    case TC__META_F64: return tc__mul((size_t)count, 8, &size) ? size : SIZE_MAX;
    case TC__META_STRINGS: {
        const uint8_t *start = rest.at;
        for (uint64_t i = 0; i < count && !rest.failed; i++) tc__take(&rest, tc__take_u32(&rest));
        return rest.failed ? SIZE_MAX : (size_t)(rest.at - start);
    }
    default: return SIZE_MAX;
    }
}

static bool model_file_read_meta(tc__cursor *cursor, tc__meta *meta) {
    uint32_t key_len = tc__take_u32(cursor);
    meta->type = tc__take_u32(cursor);
    uint64_t count = tc__take_u64(cursor);
    if (key_len == 0 || key_len > MODEL_FILE_MAX_NAME) return false;
    meta->key_len = key_len;
    meta->key = (const char *)tc__take(cursor, key_len);
    meta->size = model_file_meta_bytes(meta->type, count, *cursor);
    if (cursor->failed || meta->size == SIZE_MAX) return false;
    meta->count = (size_t)count;
    meta->value = tc__take(cursor, meta->size);
    return !cursor->failed;
}

/* Reads one table entry. `floor` is the first byte a tensor may use; it moves behind this one. */
static bool model_file_read_tensor(tc__cursor *cursor, const tc__map *map, uint64_t *floor,
                                   tc__tensor *tensor) {
    uint32_t name_len = tc__take_u32(cursor);
    tensor->type = tc__take_u32(cursor);
    tensor->group_size = tc__take_u32(cursor);
    uint32_t dimensions = tc__take_u32(cursor);
    uint64_t rows = tc__take_u64(cursor), columns = tc__take_u64(cursor);
    uint64_t offset = tc__take_u64(cursor), size = tc__take_u64(cursor);
    tensor->crc = tc__take_u32(cursor);
    if (name_len == 0 || name_len > MODEL_FILE_MAX_NAME) return false;
    tensor->name_len = name_len;
    tensor->name = (const char *)tc__take(cursor, name_len);
    if (cursor->failed || dimensions < 1 || dimensions > 2) return false;
    if (rows < 1 || columns < 1 || (dimensions == 1 && columns != 1)) return false;
    if (rows > INT32_MAX || columns > INT32_MAX) return false; /* kernels index with 32 bits */
    if (offset % TC__DATA_ALIGN || offset < *floor || offset > map->size) return false;
    if (size == 0 || size > map->size - offset) return false;
    if (size != tc__tensor_bytes(tensor->type, tensor->group_size, (size_t)rows, (size_t)columns))
        return false;
    tensor->rows = (size_t)rows;
    tensor->columns = (size_t)columns;
    tensor->size = (size_t)size;
    tensor->data = map->data + offset;
    *floor = offset + size;
    return true;
}

static bool model_file_same(const char *a, size_t a_len, const char *b, size_t b_len) {
    return a_len == b_len && memcmp(a, b, a_len) == 0;
}

static int model_file_read_metas(tc__model_file *file, const char *path, tc__cursor cursor,
                                 tc_error *err) {
    for (size_t i = 0; i < file->meta_count; i++) {
        tc__meta *meta = &file->metas[i];
        if (!model_file_read_meta(&cursor, meta))
            return model_file_bad(path, "a metadata entry is malformed", err);
        for (size_t j = 0; j < i; j++)
            if (model_file_same(meta->key, meta->key_len, file->metas[j].key,
                                file->metas[j].key_len))
                return model_file_bad(path, "a metadata key occurs twice", err);
    }
    if (tc__cursor_left(&cursor))
        return model_file_bad(path, "metadata is longer than its entries", err);
    return TC_OK;
}

static int model_file_read_table(tc__model_file *file, const char *path, tc__cursor cursor,
                                 uint64_t data_start, tc_error *err) {
    for (size_t i = 0; i < file->tensor_count; i++)
        if (!model_file_read_tensor(&cursor, &file->map, &data_start, &file->tensors[i]))
            return model_file_bad(path, "a tensor's entry is malformed or points outside", err);
    for (size_t i = 0; i < file->tensor_count; i++)
        file->tensors[i].offset = (size_t)(file->tensors[i].data - file->tensors[0].data);
    for (size_t i = 1; i < file->tensor_count; i++)
        for (size_t j = 0; j < i; j++)
            if (model_file_same(file->tensors[i].name, file->tensors[i].name_len,
                                file->tensors[j].name, file->tensors[j].name_len))
                return model_file_bad(path, "a tensor's name occurs twice", err);
    if (tc__cursor_left(&cursor))
        return model_file_bad(path, "the tensor table is longer than its entries", err);
    if (data_start != file->map.size)
        return model_file_bad(path, "the file does not end with its last tensor", err);
    return TC_OK;
}

typedef struct model_file_header {
    uint64_t metadata_size, table_size;
    uint32_t meta_count, metadata_crc, tensor_count, table_crc;
} model_file_header;

/* Checks the 64 bytes and that metadata and table lie inside the file. */
static int model_file_read_header(const tc__map *map, const char *path, model_file_header *header,
                                  tc_error *err) {
    tc__cursor cursor = tc__cursor_make(map->data, map->size);
    const uint8_t *magic = tc__take(&cursor, 8);
    if (!magic || memcmp(magic, TC__FILE_MAGIC, 8) != 0)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: not a tinychat model file (it does not begin with " TC__FILE_MAGIC
                        "); make one from a checkpoint with convert",
                        path);
    uint32_t version = tc__take_u32(&cursor);
    if (version != TC__FILE_VERSION && map->size >= TC__HEADER_SIZE)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "%s: model file version %u; this program reads version %u; convert the "
                        "checkpoint again",
                        path, (unsigned)version, TC__FILE_VERSION);
    uint32_t header_crc = tc__take_u32(&cursor);
    uint64_t file_size = tc__take_u64(&cursor), metadata_at = tc__take_u64(&cursor);
    header->metadata_size = tc__take_u64(&cursor);
    header->meta_count = tc__take_u32(&cursor);
    header->metadata_crc = tc__take_u32(&cursor);
    header->tensor_count = tc__take_u32(&cursor);
    header->table_crc = tc__take_u32(&cursor);
    header->table_size = tc__take_u64(&cursor);
    if (cursor.failed) return model_file_bad(path, "it ends inside the header", err);
    if (header_crc != tc__crc32(0, map->data + 16, TC__HEADER_SIZE - 16))
        return model_file_bad(path, "the header's checksum is wrong", err);
    if (file_size != map->size)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: damaged model file: it has %zu bytes, expected %llu; an interrupted "
                        "copy? copy it again",
                        path, map->size, (unsigned long long)file_size);
    uint64_t room = map->size - TC__HEADER_SIZE;
    if (metadata_at != TC__HEADER_SIZE || header->metadata_size > room ||
        header->table_size > room - header->metadata_size ||
        header->meta_count > MODEL_FILE_MAX_METAS || header->tensor_count > MODEL_FILE_MAX_TENSORS)
        return model_file_bad(path, "the header's sizes are impossible", err);
    return TC_OK;
}

static int model_file_read(tc__model_file *file, const char *path, tc_error *err) {
    model_file_header header = {0, 0, 0, 0, 0, 0};
    int code = model_file_read_header(&file->map, path, &header, err);
    if (code) return code;
    const uint8_t *metadata = file->map.data + TC__HEADER_SIZE;
    const uint8_t *table = metadata + header.metadata_size;
    if (tc__crc32(0, metadata, (size_t)header.metadata_size) != header.metadata_crc)
        return model_file_bad(path, "the metadata's checksum is wrong", err);
    if (tc__crc32(0, table, (size_t)header.table_size) != header.table_crc)
        return model_file_bad(path, "the tensor table's checksum is wrong", err);
    file->fingerprint = (uint64_t)header.metadata_crc << 32 | header.table_crc;
    file->meta_count = header.meta_count;
    file->tensor_count = header.tensor_count;
    file->metas = tc__calloc(file->meta_count, sizeof *file->metas);
    file->tensors = tc__calloc(file->tensor_count, sizeof *file->tensors);
    if (!file->metas || !file->tensors)
        return tc__fail_memory(err, "the tensor table", file->tensor_count * sizeof *file->tensors);
    tc__cursor cursor = tc__cursor_make(metadata, (size_t)header.metadata_size);
    if ((code = model_file_read_metas(file, path, cursor, err)) != TC_OK) return code;
    cursor = tc__cursor_make(table, (size_t)header.table_size);
    uint64_t data_start = TC__HEADER_SIZE + header.metadata_size + header.table_size;
    return model_file_read_table(file, path, cursor, data_start, err);
}

int tc__model_file_open(const char *path, tc__model_file *file, tc_error *err) {
    memset(file, 0, sizeof *file);
    int code = tc__map_open_fd(path, &file->map, &file->fd, err);
    if (code) return code;
    code = model_file_read(file, path, err);
    if (code) tc__model_file_close(file);
    return code ? code : tc__ok(err);
}

void tc__model_file_close(tc__model_file *file) {
    free(file->metas);
    free(file->tensors);
    free(file->names);
    free(file->data);
    if (file->map.data) close(file->fd);
    tc__map_close(&file->map);
    memset(file, 0, sizeof *file);
}

/* ---- look-ups ---- */

const tc__meta *tc__find_meta(const tc__model_file *file, const char *key) {
    for (size_t i = 0; i < file->meta_count; i++)
        if (model_file_same(file->metas[i].key, file->metas[i].key_len, key, strlen(key)))
            return &file->metas[i];
    return NULL;
}

const tc__tensor *tc__find_tensor(const tc__model_file *file, const char *name) {
    for (size_t i = 0; i < file->tensor_count; i++)
        if (model_file_same(file->tensors[i].name, file->tensors[i].name_len, name, strlen(name)))
            return &file->tensors[i];
    return NULL;
}

/* The entry if it has this type and at least one element; else NULL and a FORMAT error. */
static const tc__meta *model_file_typed(const tc__model_file *file, const char *key, uint32_t type,
                                        tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, key);
    if (!meta) {
        tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' is missing", key);
        return NULL;
    }
    if (meta->type == type && meta->count > 0) return meta;
    tc__fail(err, TC_ERR_FORMAT,
             "model file: metadata '%s' has type %u and %zu elements; expected type %u and at "
             "least one",
             key, (unsigned)meta->type, meta->count, (unsigned)type);
    return NULL;
}

int tc__meta_u32(const tc__model_file *file, const char *key, uint32_t *value, tc_error *err) {
    const tc__meta *meta = model_file_typed(file, key, TC__META_U32, err);
    if (!meta) return TC_ERR_FORMAT;
    *value = tc__meta_u32_at(meta, 0);
    return TC_OK;
}

int tc__meta_f64(const tc__model_file *file, const char *key, double *value, tc_error *err) {
    const tc__meta *meta = model_file_typed(file, key, TC__META_F64, err);
    if (!meta) return TC_ERR_FORMAT;
    memcpy(value, meta->value, sizeof *value);
    return TC_OK;
}

int tc__meta_u32_or(const tc__model_file *file, const char *key, uint32_t fallback, uint32_t *value,
                    tc_error *err) {
    *value = fallback;
    return tc__find_meta(file, key) ? tc__meta_u32(file, key, value, err) : TC_OK;
}

int tc__meta_text(const tc__model_file *file, const char *key, const char **text, size_t *len,
                  tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, key);
    *text = "";
    *len = 0;
    if (!meta) return TC_OK;
    if (meta->type != TC__META_BYTES)
        return tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' is not text", key);
    *text = (const char *)meta->value;
    *len = meta->count;
    return TC_OK;
}

uint32_t tc__meta_u32_at(const tc__meta *meta, size_t i) {
    uint32_t value;
    memcpy(&value, meta->value + 4 * i, sizeof value);
    return value;
}

bool tc__next_string(tc__cursor *cursor, const char **text, size_t *len) {
    if (!tc__cursor_left(cursor)) return false;
    *len = tc__take_u32(cursor);
    *text = (const char *)tc__take(cursor, *len);
    return !cursor->failed;
}
