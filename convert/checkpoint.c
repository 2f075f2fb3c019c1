/* How a checkpoint is put together: every file is mapped and recognised by its first bytes, its
 * reader (zip and pickle, safetensors) yields tensors and the storages they lie in, and at the end
 * the tensors of all files are sorted by name. Names are copied; data never is. */
#define _DEFAULT_SOURCE /* madvise: posix_madvise does not drop pages with glibc */
#define _DARWIN_C_SOURCE

#include "src/model_file.h"

#include "checkpoint.h"
#include "json.h"
#include "pickle.h"
#include "safetensors.h"
#include "zip.h"

#include <dirent.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#define CKPT_MAX_NAME 500
#define CKPT_MAX_FILES 65536
#define CKPT_CRC_PIECE ((size_t)16 << 20)
#define CKPT_TEXT_CHUNK ((size_t)32 << 10)

typedef struct ckpt_file {
    const char *path;
    const char *format; /* "torch zip"... */
    tc__map map;
} ckpt_file;

/* The bytes behind one or several tensors. */
typedef struct ckpt_storage {
    const uint8_t *data;
    size_t size;
    const char *file;
    const char *member; /* in a zip file */
    uint32_t crc;
    bool unchecked; /* has a crc that was not compared yet */
} ckpt_storage;

/* Strings live in chunks that never move. */
typedef struct ckpt_text {
    struct ckpt_text *previous;
    char bytes[];
} ckpt_text;

struct ckpt_state {
    ckpt_file *files;
    size_t file_count, file_cap;
    ckpt_storage *storages;
    size_t storage_count, storage_cap;
    ckpt_tensor *tensors;
    size_t tensor_count, tensor_cap;
    ckpt_search *search;
    size_t search_count, search_cap;
    const char **layers; /* of all search entries */
    ckpt_text *texts;
    size_t text_left;
    char *text_at;
};

/* While a checkpoint is being opened. */
typedef struct ckpt_builder {
    struct ckpt_state *s;
    const char *file; /* being read */
    ckpt_kind kind;
    bool allow_search;
    tc_error *err;
} ckpt_builder;

/* ---- memory ---- */

static int ckpt_fail(ckpt_builder *b, int code, const char *what) {
    return tc__fail(b->err, code, "%s: %s", b->file, what);
}

/* Makes room for one more element of `size` bytes in the array `data`; it doubles. */
static int ckpt_grow(ckpt_builder *b, void **data, size_t *cap, size_t count, size_t size) {
    if (count < *cap) return TC_OK;
    size_t larger = *cap ? 2 * *cap : 16;
    void *moved = realloc(*data, larger * size);
    if (!moved) return tc__fail_memory(b->err, b->file, larger * size);
    *data = moved;
    *cap = larger;
    return TC_OK;
}

/* A copy of the text that lives as long as the checkpoint; NULL (and an error) on failure. */
static const char *ckpt_keep(ckpt_builder *b, const char *text, size_t len) {
    struct ckpt_state *s = b->s;
    if (len >= s->text_left) {
        size_t room = len < CKPT_TEXT_CHUNK ? CKPT_TEXT_CHUNK : len + 1;
        ckpt_text *chunk = malloc(sizeof *chunk + room);
        if (!chunk) {
            tc__fail_memory(b->err, b->file, room);
            return NULL;
        }
        chunk->previous = s->texts;
        s->texts = chunk;
        s->text_left = room;
        s->text_at = chunk->bytes;
    }
    char *copy = s->text_at;
    memcpy(copy, text, len);
    copy[len] = 0;
    s->text_at += len + 1;
    s->text_left -= len + 1;
    return copy;
}

/* A name out of a file, kept. Refuses what could not be shown or compared: empty and very long
 * names, control characters, malformed UTF-8. */
static int ckpt_keep_name(ckpt_builder *b, const char *text, size_t len, const char **name) {
    bool good = len > 0 && len <= CKPT_MAX_NAME;
    for (size_t i = 0; good && i < len;) {
        uint32_t code;
        i += tc__utf8_decode(text + i, len - i, &code);
        good = code != UINT32_MAX && code >= 0x20 && !(code >= 0x7F && code < 0xA0);
    }
    if (!good)
        return tc__fail(b->err, TC_ERR_FORMAT,
                        "%s: '%.*s' is no name: expected 1 to %d bytes of UTF-8 without control "
                        "characters",
                        b->file, (int)(len < 100 ? len : 100), text, CKPT_MAX_NAME);
    *name = ckpt_keep(b, text, len);
    return *name ? TC_OK : TC_ERR_MEMORY;
}

static int ckpt_add_storage(ckpt_builder *b, const uint8_t *data, size_t size, uint32_t *index) {
    struct ckpt_state *s = b->s;
    void *storages = s->storages;
    int code = ckpt_grow(b, &storages, &s->storage_cap, s->storage_count, sizeof *s->storages);
    s->storages = storages;
    if (code) return code;
    ckpt_storage storage = {.data = data, .size = size, .file = b->file};
    *index = (uint32_t)s->storage_count;
    s->storages[s->storage_count++] = storage;
    return TC_OK;
}

/* Adds a tensor whose name is kept already. */
static int ckpt_add_tensor(ckpt_builder *b, const ckpt_tensor *tensor) {
    struct ckpt_state *s = b->s;
    void *tensors = s->tensors;
    int code = ckpt_grow(b, &tensors, &s->tensor_cap, s->tensor_count, sizeof *s->tensors);
    s->tensors = tensors;
    if (!code) s->tensors[s->tensor_count++] = *tensor;
    return code;
}

/* ---- names in order ---- */

static bool ckpt_is_digit(char c) {
    return c >= '0' && c <= '9';
}

/* Compares the runs of digits at *a and *b by value and moves behind them. */
static int ckpt_compare_numbers(const char **a, const char **b) {
    while (**a == '0') ++*a;
    while (**b == '0') ++*b;
    const char *x = *a, *y = *b;
    while (ckpt_is_digit(**a)) ++*a;
    while (ckpt_is_digit(**b)) ++*b;
    size_t x_len = (size_t)(*a - x), y_len = (size_t)(*b - y);
    if (x_len != y_len) return x_len < y_len ? -1 : 1;
    return memcmp(x, y, x_len);
}

/* The order of names: bytes, but runs of digits by value; strcmp between "01" and "1". */
static int ckpt_compare_names(const char *name, const char *other) {
    const char *a = name, *b = other;
    while (*a && *b) {
        if (ckpt_is_digit(*a) && ckpt_is_digit(*b)) {
            int order = ckpt_compare_numbers(&a, &b);
            if (order) return order;
        } else if (*a != *b) {
            return (unsigned char)*a < (unsigned char)*b ? -1 : 1;
        } else {
            a++, b++;
        }
    }
    if (*a || *b) return *a ? 1 : -1;
    return strcmp(name, other);
}

static int ckpt_by_name(const void *a, const void *b) {
    return ckpt_compare_names(((const ckpt_tensor *)a)->name, ((const ckpt_tensor *)b)->name);
}

/* ---- what a state dict or a search result becomes ---- */

/* Where the storages of a pickle lie: storage i of the pickle is storages[bound[i]]. */
typedef struct ckpt_pickle {
    pkl p;
    pkl_value root;
    uint32_t *bound;
} ckpt_pickle;

static int ckpt_add_pickled(ckpt_builder *b, const ckpt_pickle *pickle, const char *name,
                            const pkl_value *value) {
    const pkl_tensor *source = &pickle->p.tensors[value->as.integer];
    const ckpt_storage *storage = &b->s->storages[pickle->bound[source->storage]];
    ckpt_tensor tensor = {.name = name,
                          .dtype = pickle->p.storages[source->storage].dtype,
                          .ndim = source->ndim,
                          .file = b->file,
                          .storage = pickle->bound[source->storage]};
    memcpy(tensor.shape, source->shape, sizeof tensor.shape);
    memcpy(tensor.stride, source->stride, sizeof tensor.stride);
    size_t offset = (size_t)source->offset * ckpt_dtype_size(tensor.dtype);
    tensor.data = storage->data + offset;
    tensor.available = storage->size - offset;
    return ckpt_add_tensor(b, &tensor);
}

static int ckpt_collect_weights(ckpt_builder *b, const ckpt_pickle *pickle) {
    const pkl_list *dict = pickle->root.as.list;
    for (size_t i = 0; i < dict->count; i += 2) {
        const pkl_value *key = &dict->items[i], *value = &dict->items[i + 1];
        const char *name;
        int code = ckpt_keep_name(b, key->as.text, key->length, &name);
        if (code) return code;
        if (value->kind != PKL_TENSOR)
            return tc__fail(b->err, TC_ERR_UNSUPPORTED,
                            "%s: '%.300s' is %s, not a tensor: expected a state dict (names to "
                            "tensors)%s",
                            b->file, name, pkl_kind_name(value),
                            value->kind == PKL_DICT
                                ? "; a training checkpoint? save only the model's "
                                  "state_dict() to a file of its own"
                                : "");
        code = ckpt_add_pickled(b, pickle, name, value);
        if (code) return code;
    }
    return TC_OK;
}

/* Reads ("prev", ("layer", ...), tensor) or ("layer", tensor) and adds it as a tensor with a name
 * made of these. `layers` has room for the layers. */
static int ckpt_collect_entry(ckpt_builder *b, const ckpt_pickle *pickle, bool clip, size_t index,
                              const pkl_value *entry, const char **layers) {
    struct ckpt_state *s = b->s;
    const pkl_value *item = entry->as.items, *last = &item[clip ? 1 : 2];
    ckpt_search search = {.is_clip = clip, .layers = layers};
    int code = ckpt_keep_name(b, item->as.text, item->length, &search.op);
    tc__buf name = {0};
    if (!code) {
        tc__buf_printf(&name, "%s[%zu] ", clip ? "clip" : "scale", index);
        tc__buf_str(&name, search.op);
    }
    for (uint32_t i = 0; !code && !clip && i < item[1].length; i++) {
        const pkl_value *layer = &item[1].as.items[i];
        code = ckpt_keep_name(b, layer->as.text, layer->length, &layers[i]);
        if (code) break;
        tc__buf_str(&name, i ? ", " : " -> ");
        tc__buf_str(&name, layers[i]);
        search.layer_count++;
    }
    if (!code && name.failed) code = tc__fail_memory(b->err, b->file, name.len);
    const char *kept = code ? NULL : ckpt_keep(b, name.data, name.len);
    tc__buf_free(&name);
    if (!kept) return code ? code : TC_ERR_MEMORY;
    code = ckpt_add_pickled(b, pickle, kept, last);
    if (code) return code;
    void *entries = s->search;
    code = ckpt_grow(b, &entries, &s->search_cap, s->search_count, sizeof *s->search);
    s->search = entries;
    if (!code) s->search[s->search_count++] = search;
    return code;
}

/* Whether an entry of a search result is what ckpt_collect_entry expects. */
static bool ckpt_is_entry(const pkl_value *entry, bool clip) {
    const pkl_value *item = entry->as.items;
    if (entry->kind != PKL_TUPLE || entry->length != (clip ? 2 : 3)) return false;
    if (item[0].kind != PKL_STRING || item[entry->length - 1].kind != PKL_TENSOR) return false;
    if (clip) return true;
    if (item[1].kind != PKL_TUPLE || item[1].length == 0) return false;
    for (uint32_t i = 0; i < item[1].length; i++)
        if (item[1].as.items[i].kind != PKL_STRING) return false;
    return true;
}

static int ckpt_collect_search(ckpt_builder *b, const ckpt_pickle *pickle) {
    static const char *const keys[] = {"scale", "clip"};
    b->kind = CKPT_SEARCH;
    if (!b->allow_search)
        return ckpt_fail(b, TC_ERR_UNSUPPORTED,
                         "this file holds AWQ search results (scales and clips), not quantised "
                         "weights: give it to --awq-search, with the 16-bit checkpoint");
    const pkl_list *lists[2];
    size_t layer_count = 0;
    for (int clip = 0; clip < 2; clip++) {
        lists[clip] = pkl_get(&pickle->root, keys[clip])->as.list;
        for (size_t i = 0; i < lists[clip]->count; i++) {
            if (!ckpt_is_entry(&lists[clip]->items[i], clip))
                return tc__fail(b->err, TC_ERR_FORMAT,
                                "%s: entry %zu of '%s' is not what an AWQ search writes", b->file,
                                i, keys[clip]);
            if (!clip) layer_count += lists[0]->items[i].as.items[1].length;
        }
    }
    b->s->layers = tc__calloc(layer_count, sizeof *b->s->layers);
    if (!b->s->layers) return tc__fail_memory(b->err, b->file, layer_count * sizeof *b->s->layers);
    const char **layers = b->s->layers;
    for (int clip = 0; clip < 2; clip++)
        for (size_t i = 0; i < lists[clip]->count; i++) {
            const pkl_value *entry = &lists[clip]->items[i];
            int code = ckpt_collect_entry(b, pickle, clip, i, entry, layers);
            if (code) return code;
            if (!clip) layers += entry->as.items[1].length;
        }
    return TC_OK;
}

static int ckpt_collect(ckpt_builder *b, const ckpt_pickle *pickle) {
    const pkl_value *scale = pkl_get(&pickle->root, "scale"),
                    *clip = pkl_get(&pickle->root, "clip");
    if (pickle->root.kind != PKL_DICT)
        return tc__fail(b->err, TC_ERR_UNSUPPORTED,
                        "%s: holds %s: expected a state dict (names to tensors)", b->file,
                        pkl_kind_name(&pickle->root));
    if (scale && clip && scale->kind == PKL_LIST && clip->kind == PKL_LIST)
        return ckpt_collect_search(b, pickle);
    b->kind = CKPT_WEIGHTS;
    return ckpt_collect_weights(b, pickle);
}

/* ---- torch zip ---- */

/* Finds the only "PREFIX/data.pkl"; *prefix_len counts the slash. */
static const zip_member *ckpt_find_pickle(const zip_archive *zip, size_t *prefix_len) {
    const zip_member *found = NULL;
    for (size_t i = 0; i < zip->count; i++) {
        const zip_member *member = &zip->members[i];
        const char *slash = memchr(member->name, '/', member->name_len);
        size_t prefix = slash ? (size_t)(slash - member->name) + 1 : 0;
        if (!slash || member->name_len - prefix != 8 || memcmp(slash + 1, "data.pkl", 8)) continue;
        if (found) return NULL;
        found = member;
        *prefix_len = prefix;
    }
    return found;
}

/* The member PREFIX + name. */
static const zip_member *ckpt_find_member(const zip_archive *zip, const zip_member *pickle,
                                          size_t prefix_len, const char *name, size_t name_len) {
    char path[1024];
    if (prefix_len + name_len > sizeof path) return NULL;
    memcpy(path, pickle->name, prefix_len);
    memcpy(path + prefix_len, name, name_len);
    return zip_find(zip, path, prefix_len + name_len);
}

static int ckpt_check_pickle(ckpt_builder *b, const zip_archive *zip, const zip_member *pickle,
                             size_t prefix_len) {
    if (ckpt_find_member(zip, pickle, prefix_len, "constants.pkl", 13))
        return ckpt_fail(b, TC_ERR_UNSUPPORTED,
                         "is a TorchScript program (it holds constants.pkl): expected a state dict "
                         "written by torch.save(model.state_dict(), ...)");
    const zip_member *order = ckpt_find_member(zip, pickle, prefix_len, "byteorder", 9);
    if (order && (order->size != 6 || memcmp(order->data, "little", 6)))
        return ckpt_fail(b, TC_ERR_UNSUPPORTED, "was written on a big-endian machine");
    if (pickle->crc && tc__crc32(0, pickle->data, pickle->size) != pickle->crc)
        return ckpt_fail(b, TC_ERR_FORMAT,
                         "member 'data.pkl' does not match its checksum: the file is damaged");
    return TC_OK;
}

/* Gives every storage of the pickle its member "data/<key>"; tied tensors share one. */
static int ckpt_bind_zip(ckpt_builder *b, const zip_archive *zip, const zip_member *pickle,
                         size_t prefix_len, ckpt_pickle *content, uint32_t *member_storage) {
    for (size_t i = 0; i < content->p.storage_count; i++) {
        const pkl_storage *source = &content->p.storages[i];
        char name[300] = "data/";
        size_t len = 5 + source->key_len;
        if (source->key_len > sizeof name - 5)
            return ckpt_fail(b, TC_ERR_FORMAT, "a storage has a key of more than 295 bytes");
        memcpy(name + 5, source->key, source->key_len);
        const zip_member *member = ckpt_find_member(zip, pickle, prefix_len, name, len);
        if (!member)
            return tc__fail(b->err, TC_ERR_FORMAT, "%s: member '%.*s' is missing", b->file,
                            (int)len, name);
        if (source->numel * ckpt_dtype_size(source->dtype) > member->size)
            return tc__fail(
                b->err, TC_ERR_FORMAT,
                "%s: member '%.*s' is too short: expected %llu elements of %s, found %zu "
                "bytes",
                b->file, (int)len, name, (unsigned long long)source->numel,
                ckpt_dtype_name(source->dtype), member->size);
        uint32_t *index = &member_storage[member - zip->members];
        if (*index == UINT32_MAX) {
            int code = ckpt_add_storage(b, member->data, member->size, index);
            if (code) return code;
            ckpt_storage *storage = &b->s->storages[*index];
            storage->member = ckpt_keep(b, name, len);
            if (!storage->member) return TC_ERR_MEMORY;
            storage->crc = member->crc;
            storage->unchecked = member->crc != 0;
        }
        content->bound[i] = *index;
    }
    return TC_OK;
}

static int ckpt_new_bound(ckpt_builder *b, size_t count, uint32_t **bound) {
    *bound = tc__calloc(count, sizeof **bound);
    if (!*bound) return tc__fail_memory(b->err, b->file, count * sizeof **bound);
    memset(*bound, 0xFF, count * sizeof **bound);
    return TC_OK;
}

static int ckpt_read_zip_members(ckpt_builder *b, const zip_archive *zip, ckpt_pickle *content) {
    size_t prefix_len = 0;
    const zip_member *pickle = ckpt_find_pickle(zip, &prefix_len);
    if (!pickle)
        return ckpt_fail(b, TC_ERR_UNSUPPORTED,
                         "is a zip archive, but not a PyTorch checkpoint: expected one member "
                         "'*/data.pkl'");
    int code = ckpt_check_pickle(b, zip, pickle, prefix_len);
    if (code) return code;
    tc__cursor at = tc__cursor_make(pickle->data, pickle->size);
    code = pkl_run(&content->p, b->file, PKL_ZIP, &at, &content->root, b->err);
    uint32_t *member_storage = NULL;
    if (!code) code = ckpt_new_bound(b, content->p.storage_count, &content->bound);
    if (!code) code = ckpt_new_bound(b, zip->count, &member_storage);
    if (!code) code = ckpt_bind_zip(b, zip, pickle, prefix_len, content, member_storage);
    free(member_storage);
    return code ? code : ckpt_collect(b, content);
}

static int ckpt_read_zip(ckpt_builder *b, const tc__map *map, ckpt_pickle *content) {
    zip_archive zip;
    int code = zip_open(b->file, map->data, map->size, &zip, b->err);
    if (code) return code;
    code = ckpt_read_zip_members(b, &zip, content);
    zip_close(&zip);
    return code;
}

/* ---- torch legacy ---- */

/* The number 0x1950a86a20f9469cfc6c, by which torch knows its own files. */
static const uint8_t ckpt_legacy_magic[10] = {0x6C, 0xFC, 0x9C, 0x46, 0xF9,
                                              0x20, 0x6A, 0xA8, 0x50, 0x19};

static bool ckpt_detect_legacy(const uint8_t *bytes, size_t size) {
    return size >= 15 && bytes[0] == 0x80 && bytes[1] >= 2 && bytes[1] <= 5 && bytes[2] == 0x8A &&
           bytes[3] == sizeof ckpt_legacy_magic &&
           !memcmp(bytes + 4, ckpt_legacy_magic, sizeof ckpt_legacy_magic) && bytes[14] == '.';
}

/* The pickles in front: magic number, protocol version, a description of the machine. */
static int ckpt_read_legacy_head(ckpt_builder *b, ckpt_pickle *content, tc__cursor *at) {
    pkl_value magic, version, machine;
    int code = pkl_run(&content->p, b->file, PKL_LEGACY, at, &magic, b->err);
    if (!code) code = pkl_run(&content->p, b->file, PKL_LEGACY, at, &version, b->err);
    if (!code) code = pkl_run(&content->p, b->file, PKL_LEGACY, at, &machine, b->err);
    if (code) return code;
    if (version.kind != PKL_INT || version.as.integer != 1001)
        return ckpt_fail(b, TC_ERR_UNSUPPORTED,
                         "is a legacy PyTorch stream of another version than 1001");
    const pkl_value *little = pkl_get(&machine, "little_endian");
    if (!little || little->kind != PKL_BOOL)
        return ckpt_fail(b, TC_ERR_FORMAT, "does not say whether it is little-endian");
    if (!little->as.integer)
        return ckpt_fail(b, TC_ERR_UNSUPPORTED, "was written on a big-endian machine");
    return TC_OK;
}

/* A storage of the pickle under its key, to be found by it. */
typedef struct ckpt_key {
    const char *text;
    size_t len;
    size_t index; /* of the pickle's storage */
} ckpt_key;

static int ckpt_by_key(const void *a, const void *b) {
    const ckpt_key *x = a, *y = b;
    if (x->len != y->len) return x->len < y->len ? -1 : 1;
    return memcmp(x->text, y->text, x->len);
}

/* Reads the data of the storage with this key: i64 number of elements, then the elements. All the
 * pickle's storages with the key, which are neighbours in `keys`, get it. */
static int ckpt_read_legacy_storage(ckpt_builder *b, ckpt_pickle *content, const ckpt_key *keys,
                                    const pkl_value *key, tc__cursor *at) {
    ckpt_key wanted = {key->as.text, key->length, 0};
    size_t count = content->p.storage_count;
    const ckpt_key *first = bsearch(&wanted, keys, count, sizeof *keys, ckpt_by_key);
    if (!first) return ckpt_fail(b, TC_ERR_FORMAT, "has data that belongs to no tensor");
    while (first > keys && !ckpt_by_key(first - 1, &wanted)) first--;
    const pkl_storage *source = &content->p.storages[first->index];
    if (content->bound[first->index] != UINT32_MAX)
        return ckpt_fail(b, TC_ERR_FORMAT, "has the data of a storage twice");
    uint64_t numel = tc__take_u64(at);
    size_t left = tc__cursor_left(at), size = ckpt_dtype_size(source->dtype);
    if (at->failed || numel > left / size)
        return ckpt_fail(b, TC_ERR_FORMAT,
                         "incomplete: the data of a tensor is missing (an interrupted download?)");
    const uint8_t *data = tc__take(at, (size_t)numel * size);
    uint32_t index;
    int code = ckpt_add_storage(b, data, (size_t)numel * size, &index);
    if (code) return code;
    for (; first < keys + count && !ckpt_by_key(first, &wanted); first++) {
        const pkl_storage *tied = &content->p.storages[first->index];
        if (tied->dtype != source->dtype || tied->numel != numel)
            return ckpt_fail(b, TC_ERR_FORMAT,
                             "has a storage whose size is not what tensors expect");
        content->bound[first->index] = index;
    }
    return TC_OK;
}

static int ckpt_read_legacy_data(ckpt_builder *b, ckpt_pickle *content, const pkl_value *list,
                                 ckpt_key *keys, tc__cursor *at) {
    size_t count = content->p.storage_count;
    for (size_t i = 0; i < count; i++) {
        const pkl_storage *storage = &content->p.storages[i];
        ckpt_key key = {storage->key, storage->key_len, i};
        keys[i] = key;
    }
    qsort(keys, count, sizeof *keys, ckpt_by_key);
    if (list->kind != PKL_LIST)
        return ckpt_fail(b, TC_ERR_FORMAT, "has no list of storages after its tensors");
    for (size_t i = 0; i < list->as.list->count; i++) {
        const pkl_value *key = &list->as.list->items[i];
        if (key->kind != PKL_STRING)
            return ckpt_fail(b, TC_ERR_FORMAT, "has a storage key that is no string");
        int code = ckpt_read_legacy_storage(b, content, keys, key, at);
        if (code) return code;
    }
    for (size_t i = 0; i < count; i++)
        if (content->bound[i] == UINT32_MAX)
            return ckpt_fail(b, TC_ERR_FORMAT, "has a tensor without data");
    if (tc__cursor_left(at))
        return tc__fail(b->err, TC_ERR_FORMAT, "%s: %zu bytes after the last tensor", b->file,
                        tc__cursor_left(at));
    return TC_OK;
}

static int ckpt_read_legacy(ckpt_builder *b, const tc__map *map, ckpt_pickle *content) {
    tc__cursor at = tc__cursor_make(map->data, map->size);
    pkl_value list;
    int code = ckpt_read_legacy_head(b, content, &at);
    if (!code) code = pkl_run(&content->p, b->file, PKL_LEGACY, &at, &content->root, b->err);
    if (!code) code = pkl_run(&content->p, b->file, PKL_LEGACY, &at, &list, b->err);
    if (!code) code = ckpt_new_bound(b, content->p.storage_count, &content->bound);
    if (code) return code;
    ckpt_key *keys = tc__calloc(content->p.storage_count, sizeof *keys);
    if (!keys) return tc__fail_memory(b->err, b->file, content->p.storage_count * sizeof *keys);
    code = ckpt_read_legacy_data(b, content, &list, keys, &at);
    free(keys);
    return code ? code : ckpt_collect(b, content);
}

/* ---- safetensors ---- */

static int ckpt_add_safetensor(ckpt_builder *b, const st_tensor *source) {
    ckpt_tensor tensor = {.dtype = source->dtype,
                          .ndim = source->ndim,
                          .data = source->data,
                          .available = source->size,
                          .file = b->file};
    memcpy(tensor.shape, source->shape, sizeof tensor.shape);
    int64_t stride = 1;
    for (int i = tensor.ndim - 1; i >= 0; i--) {
        tensor.stride[i] = stride;
        if (source->size) stride *= tensor.shape[i]; /* cannot overflow: divides the size */
    }
    int code = ckpt_keep_name(b, source->name, source->name_len, &tensor.name);
    if (!code) code = ckpt_add_storage(b, source->data, source->size, &tensor.storage);
    return code ? code : ckpt_add_tensor(b, &tensor);
}

static int ckpt_read_safetensors(ckpt_builder *b, const tc__map *map) {
    st_file st;
    int code = st_open(b->file, map->data, map->size, &st, b->err);
    if (code) return code;
    b->kind = CKPT_WEIGHTS;
    for (size_t i = 0; !code && i < st.count; i++) code = ckpt_add_safetensor(b, &st.tensors[i]);
    st_close(&st);
    return code;
}

/* ---- one file ---- */

/* Files that people take for checkpoints, known by their first bytes. */
static const struct {
    size_t offset;
    const char *bytes;
    size_t len;
    const char *what;
} ckpt_foreign[] = {
#define CKPT_BYTES(text) text, sizeof text - 1
    {0, CKPT_BYTES(LFS_START), LFS_POINTER},
    {0, CKPT_BYTES("PYTORCH1"),
     "is in PyTorch's preview format of 2018: save it again with "
     "a current PyTorch"},
    {257, CKPT_BYTES("ustar"),
     "is a tar archive; if PyTorch before 0.2 wrote it, save it again "
     "with a current PyTorch"},
    {0, CKPT_BYTES("TINYCHAT"), "is a tinychat model file: it is converted already"},
    {0, CKPT_BYTES("GGUF"),
     "is a GGUF file (llama.cpp): expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("tjgg"),
     "is a GGML file (llama.cpp): expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("fmgg"),
     "is a GGML file (llama.cpp): expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("lmgg"),
     "is a GGML file (llama.cpp): expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("\x93NUMPY"), "is a NumPy array: expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("\x89HDF"), "is an HDF5 file: expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("\x1f\x8b"), "is compressed (gzip): unpack it first"},
    {0,
     CKPT_BYTES("\xfd"
                "7zXZ"),
     "is compressed (xz): unpack it first"},
    {0, CKPT_BYTES("\x28\xb5\x2f\xfd"), "is compressed (zstd): unpack it first"},
    {0, CKPT_BYTES("<!DOCTYPE"), "is a web page, not a checkpoint: the download went wrong"},
    {0, CKPT_BYTES("<!doctype"), "is a web page, not a checkpoint: the download went wrong"},
    {0, CKPT_BYTES("<html"), "is a web page, not a checkpoint: the download went wrong"},
    {0, CKPT_BYTES("{"), "is a JSON text: expected a PyTorch or safetensors checkpoint"},
    {0, CKPT_BYTES("\x80\x02"), "is a bare pickle, which torch.save does not write"},
    {0, CKPT_BYTES("\x80\x03"), "is a bare pickle, which torch.save does not write"},
    {0, CKPT_BYTES("\x80\x04"), "is a bare pickle, which torch.save does not write by default"},
    {0, CKPT_BYTES("\x80\x05"), "is a bare pickle, which torch.save does not write by default"},
#undef CKPT_BYTES
};

static int ckpt_refuse(ckpt_builder *b, const tc__map *map) {
    if (!map->size) return ckpt_fail(b, TC_ERR_FORMAT, "is empty");
    for (size_t i = 0; i < TC_COUNT(ckpt_foreign); i++)
        if (map->size >= ckpt_foreign[i].offset + ckpt_foreign[i].len &&
            !memcmp(map->data + ckpt_foreign[i].offset, ckpt_foreign[i].bytes, ckpt_foreign[i].len))
            return ckpt_fail(b, TC_ERR_UNSUPPORTED, ckpt_foreign[i].what);
    return ckpt_fail(b, TC_ERR_UNSUPPORTED,
                     "is not a checkpoint: expected a PyTorch file (.pt, .bin) or safetensors");
}

static int ckpt_read_mapped(ckpt_builder *b, ckpt_file *file) {
    const tc__map *map = &file->map;
    if (st_detect(map->data, map->size)) {
        file->format = "safetensors";
        return ckpt_read_safetensors(b, map);
    }
    bool zip = zip_detect(map->data, map->size);
    if (!zip && !ckpt_detect_legacy(map->data, map->size)) return ckpt_refuse(b, map);
    file->format = zip ? "torch zip" : "torch legacy";
    ckpt_pickle content = {.bound = NULL};
    int code = zip ? ckpt_read_zip(b, map, &content) : ckpt_read_legacy(b, map, &content);
    pkl_close(&content.p);
    free(content.bound);
    return code;
}

/* Maps a file and adds what it holds. */
static int ckpt_read_file(ckpt_builder *b, const char *path) {
    struct ckpt_state *s = b->s;
    b->file = ckpt_keep(b, path, strlen(path));
    if (!b->file) return TC_ERR_MEMORY;
    void *files = s->files;
    int code = ckpt_grow(b, &files, &s->file_cap, s->file_count, sizeof *s->files);
    s->files = files;
    if (code) return code;
    ckpt_file file = {.path = b->file};
    code = tc__map_open(path, &file.map, b->err);
    if (code) return code;
    s->files[s->file_count] = file;
    code = ckpt_read_mapped(b, &s->files[s->file_count++]);
    /* The pages that were read for the directory are not needed any more: with a thousand files
     * they would add up. */
    if (file.map.data) madvise((void *)(uintptr_t)file.map.data, file.map.size, MADV_DONTNEED);
    return code;
}

/* ---- folders ---- */

typedef struct ckpt_names {
    char **items;
    size_t count, cap;
} ckpt_names;

static int ckpt_names_add(ckpt_builder *b, ckpt_names *names, const char *text, size_t len) {
    if (names->count == CKPT_MAX_FILES)
        return ckpt_fail(b, TC_ERR_UNSUPPORTED, "names more than 65536 files");
    void *items = names->items;
    int code = ckpt_grow(b, &items, &names->cap, names->count, sizeof *names->items);
    names->items = items;
    if (code) return code;
    char *copy = tc__copy(text, len);
    if (!copy) return tc__fail_memory(b->err, b->file, len);
    names->items[names->count++] = copy;
    return TC_OK;
}

static int ckpt_by_text(const void *a, const void *b) {
    return ckpt_compare_names(*(char *const *)a, *(char *const *)b);
}

/* Sorts and drops repetitions. */
static void ckpt_names_sort(ckpt_names *names) {
    size_t kept = 0;
    if (names->count) qsort(names->items, names->count, sizeof *names->items, ckpt_by_text);
    for (size_t i = 0; i < names->count; i++)
        if (kept && !strcmp(names->items[kept - 1], names->items[i]))
            free(names->items[i]);
        else
            names->items[kept++] = names->items[i];
    names->count = kept;
}

static void ckpt_names_free(ckpt_names *names) {
    for (size_t i = 0; i < names->count; i++) free(names->items[i]);
    free(names->items);
    memset(names, 0, sizeof *names);
}

static bool ckpt_has_suffix(const char *name, const char *suffix) {
    size_t len = strlen(name), suffix_len = strlen(suffix);
    return len > suffix_len && !strcmp(name + len - suffix_len, suffix);
}

/* The names in a folder that end in one of the suffixes (NULL-terminated), sorted; hidden ones are
 * passed over. */
static int ckpt_list(ckpt_builder *b, const char *dir, const char *const *suffixes,
                     ckpt_names *names) {
    b->file = dir;
    DIR *stream = opendir(dir);
    if (!stream) return ckpt_fail(b, TC_ERR_IO, "cannot open the folder");
    int code = TC_OK;
    for (struct dirent *entry; !code && (entry = readdir(stream));)
        for (const char *const *suffix = suffixes; *suffix; suffix++)
            if (entry->d_name[0] != '.' && ckpt_has_suffix(entry->d_name, *suffix)) {
                code = ckpt_names_add(b, names, entry->d_name, strlen(entry->d_name));
                break;
            }
    closedir(stream);
    ckpt_names_sort(names);
    return code;
}

/* "dir/name", kept; NULL on failure. */
static const char *ckpt_join(ckpt_builder *b, const char *dir, const char *name) {
    tc__buf path = {0};
    tc__buf_str(&path, dir);
    if (!ckpt_has_suffix(dir, "/")) tc__buf_str(&path, "/");
    tc__buf_str(&path, name);
    const char *kept = NULL;
    if (path.failed)
        tc__fail_memory(b->err, dir, path.len);
    else
        kept = ckpt_keep(b, path.data, path.len);
    tc__buf_free(&path);
    return kept;
}

static bool ckpt_is_dir(const char *path) {
    struct stat st;
    return stat(path, &st) == 0 && S_ISDIR(st.st_mode);
}

static int ckpt_read_in(ckpt_builder *b, const char *dir, const char *name) {
    const char *path = ckpt_join(b, dir, name);
    return path ? ckpt_read_file(b, path) : TC_ERR_MEMORY;
}

/* A folder without .pt files, perhaps one of Hugging Face. */
static int ckpt_fail_split(ckpt_builder *b, const char *dir) {
    static const char *const suffixes[] = {".safetensors", ".bin", NULL};
    ckpt_names names = {0};
    int code = ckpt_list(b, dir, suffixes, &names);
    if (!code && names.count)
        code = tc__fail(b->err, TC_ERR_UNSUPPORTED,
                        "%s: no .pt files in this folder, but %.100s: --awq takes what "
                        "split_ckpt.py writes, one <name>.pt per tensor; a Hugging Face folder, "
                        "AutoAWQ's too, goes with --hf and without --awq",
                        dir, names.items[0]);
    else if (!code)
        code = ckpt_fail(b, TC_ERR_UNSUPPORTED,
                         "no .pt files in this folder: expected what split_ckpt.py writes, one "
                         "<name>.pt per tensor");
    ckpt_names_free(&names);
    return code;
}

/* DIR/<key>.pt: one tensor each. */
static int ckpt_read_split(ckpt_builder *b, const char *dir) {
    static const char *const suffixes[] = {".pt", NULL};
    ckpt_names names = {0};
    int code = ckpt_list(b, dir, suffixes, &names);
    if (!code && !names.count) code = ckpt_fail_split(b, dir);
    for (size_t i = 0; !code && i < names.count; i++) {
        size_t before = b->s->tensor_count;
        code = ckpt_read_in(b, dir, names.items[i]);
        size_t added = b->s->tensor_count - before;
        if (!code && added != 1)
            code = tc__fail(b->err, TC_ERR_FORMAT,
                            "%s: holds %zu tensors: in a split folder every .pt file holds one; if "
                            "this is a whole checkpoint, give its name instead of the folder's",
                            b->file, added);
    }
    ckpt_names_free(&names);
    return code;
}

/* The files that an index names; they must lie in its folder. */
static int ckpt_read_shards(ckpt_builder *b, const char *dir, const json_doc *doc,
                            const json_value *map) {
    ckpt_names shards = {0};
    tc__buf name = {0};
    int code = TC_OK;
    for (const json_value *key = json_first(map); !code && key; key = json_next(map, key)) {
        name.len = 0;
        bool good = json_string(doc, json_member(key), &name);
        if (name.failed)
            code = tc__fail_memory(b->err, b->file, name.cap);
        else if (!good || !name.len || memchr(name.data, '/', name.len) ||
                 memchr(name.data, 0, name.len))
            code = ckpt_fail(b, TC_ERR_FORMAT, "a shard in weight_map is not a plain file name");
        else if (!shards.count || strcmp(shards.items[shards.count - 1], name.data))
            code = ckpt_names_add(b, &shards, name.data, name.len);
        if (!code && shards.count == CKPT_MAX_FILES) ckpt_names_sort(&shards);
    }
    tc__buf_free(&name);
    ckpt_names_sort(&shards);
    for (size_t i = 0; !code && i < shards.count; i++) {
        code = ckpt_read_in(b, dir, shards.items[i]);
        if (code == TC_ERR_IO && access(b->file, F_OK))
            code = tc__fail(b->err, TC_ERR_FORMAT,
                            "%s: shard %zu of %zu is missing: the index of this folder names it; "
                            "download it",
                            b->file, i + 1, shards.count);
    }
    ckpt_names_free(&shards);
    return code;
}

static int ckpt_read_index(ckpt_builder *b, const char *dir, const char *index, json_doc *doc) {
    int code = json_open(index, doc, b->err);
    if (code) return code;
    const json_value *map = json_get(doc, json_root(doc), "weight_map");
    b->file = index;
    if (json_type(map) != JSON_OBJECT || !json_count(map))
        return ckpt_fail(b, TC_ERR_FORMAT, "has no weight_map with the names of its tensors");
    return ckpt_read_shards(b, dir, doc, map);
}

/* ---- opening ---- */

/* Sorts the tensors and makes the checkpoint. */
static int ckpt_finish(ckpt_builder *b, bool split, checkpoint *out) {
    struct ckpt_state *s = b->s;
    if (!s->tensor_count) return ckpt_fail(b, TC_ERR_UNSUPPORTED, "holds no tensors");
    qsort(s->tensors, s->tensor_count, sizeof *s->tensors, ckpt_by_name);
    for (size_t i = 1; i < s->tensor_count; i++) {
        const ckpt_tensor *a = &s->tensors[i - 1], *c = &s->tensors[i];
        if (!strcmp(a->name, c->name))
            return tc__fail(b->err, TC_ERR_FORMAT, "%s: tensor '%.300s' occurs twice%s%.300s",
                            a->file, a->name, a->file == c->file ? "" : ", also in ",
                            a->file == c->file ? "" : c->file);
    }
    /* Sorted, the clips come first, then the scales, each in the order of their numbers. */
    size_t scales = 0;
    while (scales < s->search_count && !s->search[scales].is_clip) scales++;
    for (size_t i = 0; i < s->search_count; i++)
        s->search[i].tensor = &s->tensors[i < scales ? s->search_count - scales + i : i - scales];

    char text[64];
    if (split)
        snprintf(text, sizeof text, "split directory (%zu files)", s->file_count);
    else if (s->file_count > 1)
        snprintf(text, sizeof text, "%s, %zu shards", s->files[0].format, s->file_count);
    else
        snprintf(text, sizeof text, "%s", s->files[0].format);
    checkpoint result = {.kind = b->kind,
                         .format = ckpt_keep(b, text, strlen(text)),
                         .tensors = s->tensors,
                         .count = s->tensor_count,
                         .search = s->search,
                         .search_count = s->search_count,
                         .file_count = s->file_count,
                         .state = s};
    if (!result.format) return TC_ERR_MEMORY;
    for (size_t i = 0; i < s->file_count; i++) result.file_bytes += s->files[i].map.size;
    *out = result;
    return tc__ok(b->err);
}

static void ckpt_free_state(struct ckpt_state *s) {
    if (!s) return;
    for (size_t i = 0; i < s->file_count; i++) tc__map_close(&s->files[i].map);
    for (ckpt_text *text = s->texts, *previous; text; text = previous) {
        previous = text->previous;
        free(text);
    }
    free(s->files);
    free(s->storages);
    free(s->tensors);
    free(s->search);
    free(s->layers);
    free(s);
}

static int ckpt_begin(ckpt_builder *b, const char *path, bool allow_search, checkpoint *out,
                      tc_error *err) {
    memset(out, 0, sizeof *out);
    ckpt_builder builder = {.file = path, .allow_search = allow_search, .err = err};
    builder.s = calloc(1, sizeof *builder.s);
    *b = builder;
    return b->s ? TC_OK : tc__fail_memory(err, path, sizeof *b->s);
}

/* The end of every way to open: makes the checkpoint or cleans up. */
static int ckpt_end(ckpt_builder *b, int code, bool split, checkpoint *out) {
    if (!code) code = ckpt_finish(b, split, out);
    if (!code) return TC_OK;
    if (b->kind == CKPT_SEARCH && !b->allow_search) out->kind = CKPT_SEARCH;
    ckpt_free_state(b->s);
    return code;
}

static int ckpt_open_path(const char *path, bool allow_search, checkpoint *out, tc_error *err) {
    ckpt_builder b;
    bool split = ckpt_is_dir(path);
    int code = ckpt_begin(&b, path, allow_search && !split, out, err);
    if (code) return code;
    code = split ? ckpt_read_split(&b, path) : ckpt_read_file(&b, path);
    return ckpt_end(&b, code, split, out);
}

int ckpt_open(const char *path, checkpoint *out, tc_error *err) {
    return ckpt_open_path(path, false, out, err);
}

/* The fixed names of Hugging Face folders, in the order in which transformers looks for them. */
static const struct {
    const char *name;
    bool is_index;
} ckpt_hf_names[] = {{"model.safetensors", false},
                     {"model.safetensors.index.json", true},
                     {"pytorch_model.bin", false},
                     {"pytorch_model.bin.index.json", true}};

/* Finds which of these is there: its place in the table, or TC_COUNT; the path in *path. */
static int ckpt_find_hf(ckpt_builder *b, const char *dir, size_t *which, const char **path) {
    struct stat st;
    for (*which = 0; *which < TC_COUNT(ckpt_hf_names); ++*which) {
        *path = ckpt_join(b, dir, ckpt_hf_names[*which].name);
        if (!*path) return TC_ERR_MEMORY;
        if (lstat(*path, &st) == 0) break; /* a dangling link is named when it is opened */
    }
    return TC_OK;
}

bool ckpt_is_model(const char *path) {
    char magic[8];
    struct stat info;
    if (stat(path, &info) || !S_ISREG(info.st_mode)) return false;
    FILE *file = fopen(path, "rb");
    bool is = file && fread(magic, 1, 8, file) == 8 && memcmp(magic, TC__FILE_MAGIC, 8) == 0;
    if (file) fclose(file);
    return is;
}

/* Drops model files, which an earlier conversion has left in the folder; but never all names. */
static int ckpt_drop_models(ckpt_builder *b, const char *dir, ckpt_names *names) {
    for (size_t i = names->count; i-- > 0 && names->count > 1;) {
        const char *path = ckpt_join(b, dir, names->items[i]);
        if (!path) return TC_ERR_MEMORY;
        if (!ckpt_is_model(path)) continue;
        free(names->items[i]);
        names->count--;
        memmove(names->items + i, names->items + i + 1, (names->count - i) * sizeof *names->items);
    }
    return TC_OK;
}

/* The only file with a suffix of checkpoints; safetensors before the others. */
static int ckpt_read_lone(ckpt_builder *b, const char *dir) {
    static const char *const suffixes[2][4] = {{".safetensors", NULL},
                                               {".pt", ".pth", ".bin", NULL}};
    ckpt_names names = {0};
    int code = TC_OK;
    for (int i = 0; !code && !names.count && i < 2; i++)
        code = ckpt_list(b, dir, suffixes[i], &names);
    if (!code) code = ckpt_drop_models(b, dir, &names);
    if (!code && names.count == 1) {
        code = ckpt_read_in(b, dir, names.items[0]);
    } else if (!code && names.count) {
        code = tc__fail(b->err, TC_ERR_UNSUPPORTED,
                        "%s: %zu files that could be checkpoints (%.100s, %.100s...) and no index: "
                        "expected model.safetensors, pytorch_model.bin, or one of them with "
                        ".index.json",
                        dir, names.count, names.items[0], names.items[1]);
    } else if (!code) {
        code =
            ckpt_fail(b, TC_ERR_FORMAT,
                      "no weights in this folder: expected model.safetensors, pytorch_model.bin, "
                      "or shards and their .index.json");
    }
    ckpt_names_free(&names);
    return code;
}

/* Proves that every tensor of the index is there, in the shard that it names. */
static int ckpt_check_index(const checkpoint *ckpt, const char *index, const json_doc *doc,
                            tc_error *err) {
    const json_value *map = json_get(doc, json_root(doc), "weight_map");
    tc__buf name = {0};
    int code = TC_OK;
    for (const json_value *key = json_first(map); !code && key; key = json_next(map, key)) {
        name.len = 0;
        json_string(doc, key, &name);
        if (name.failed) {
            code = tc__fail_memory(err, index, name.len);
            break;
        }
        const ckpt_tensor *tensor = ckpt_find(ckpt, name.data);
        const char *slash = tensor ? strrchr(tensor->file, '/') : NULL;
        if (!tensor)
            code = tc__fail(err, TC_ERR_FORMAT, "%s: tensor '%.300s' is in none of the shards",
                            index, name.data);
        else if (!json_is(doc, json_member(key), slash ? slash + 1 : tensor->file))
            code = tc__fail(err, TC_ERR_FORMAT, "%s: tensor '%.300s' lies in another shard, %.300s",
                            index, name.data, tensor->file);
    }
    tc__buf_free(&name);
    return code;
}

int ckpt_open_hf(const char *dir, checkpoint *out, tc_error *err) {
    ckpt_builder b;
    const char *path = NULL;
    size_t which;
    json_doc index = {0};
    int code = ckpt_begin(&b, dir, false, out, err);
    if (code) return code;
    code = ckpt_find_hf(&b, dir, &which, &path);
    bool found = which < TC_COUNT(ckpt_hf_names), sharded = found && ckpt_hf_names[which].is_index;
    if (!code) {
        if (sharded)
            code = ckpt_read_index(&b, dir, path, &index);
        else
            code = found ? ckpt_read_file(&b, path) : ckpt_read_lone(&b, dir);
    }
    code = ckpt_end(&b, code, false, out);
    if (!code && sharded) code = ckpt_check_index(out, path, &index, err);
    json_close(&index);
    if (code && out->state) ckpt_close(out);
    return code;
}

/* Whether a folder has weights under a name that Hugging Face uses. */
static int ckpt_is_hf(const char *dir, bool *is_hf, tc_error *err) {
    static const char *const suffixes[] = {".safetensors", NULL};
    checkpoint unused;
    ckpt_builder b;
    ckpt_names names = {0};
    const char *path;
    size_t which;
    int code = ckpt_begin(&b, dir, false, &unused, err);
    if (code) return code;
    code = ckpt_find_hf(&b, dir, &which, &path);
    if (!code) code = ckpt_list(&b, dir, suffixes, &names);
    *is_hf = which < TC_COUNT(ckpt_hf_names) || names.count;
    ckpt_names_free(&names);
    ckpt_free_state(b.s);
    return code;
}

int ckpt_open_any(const char *path, checkpoint *out, tc_error *err) {
    bool is_hf = false;
    memset(out, 0, sizeof *out);
    int code = ckpt_is_dir(path) ? ckpt_is_hf(path, &is_hf, err) : TC_OK;
    if (code) return code;
    return is_hf ? ckpt_open_hf(path, out, err) : ckpt_open_path(path, true, out, err);
}

void ckpt_close(checkpoint *ckpt) {
    ckpt_free_state(ckpt->state);
    memset(ckpt, 0, sizeof *ckpt);
}

/* ---- using ---- */

const ckpt_tensor *ckpt_find(const checkpoint *ckpt, const char *name) {
    size_t first = 0, end = ckpt->count;
    while (first < end) {
        size_t middle = first + (end - first) / 2;
        int order = ckpt_compare_names(name, ckpt->tensors[middle].name);
        if (!order) return &ckpt->tensors[middle];
        if (order < 0)
            end = middle;
        else
            first = middle + 1;
    }
    return NULL;
}

/* Drops the pages that lie wholly inside the bytes. */
static void ckpt_drop(const uint8_t *bytes, size_t size) {
    uintptr_t page = (uintptr_t)sysconf(_SC_PAGESIZE);
    uintptr_t first = ((uintptr_t)bytes + page - 1) & ~(page - 1);
    uintptr_t end = ((uintptr_t)bytes + size) & ~(page - 1);
    if (end > first) madvise((void *)first, end - first, MADV_DONTNEED);
}

int ckpt_check_crc(checkpoint *ckpt, const ckpt_tensor *tensor, tc_error *err) {
    ckpt_storage *storage = &ckpt->state->storages[tensor->storage];
    if (!storage->unchecked) return tc__ok(err);
    uint32_t crc = 0;
    for (size_t at = 0, piece; at < storage->size; at += piece) {
        piece = storage->size - at < CKPT_CRC_PIECE ? storage->size - at : CKPT_CRC_PIECE;
        crc = tc__crc32(crc, storage->data + at, piece);
        if (storage->size > 4 * CKPT_CRC_PIECE) ckpt_drop(storage->data + at, piece);
    }
    if (crc != storage->crc)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: member '%s' (tensor '%.300s') does not match its checksum: expected "
                        "%08x, found %08x; the file is damaged",
                        storage->file, storage->member, tensor->name, (unsigned)storage->crc,
                        (unsigned)crc);
    storage->unchecked = false;
    return tc__ok(err);
}

uint64_t ckpt_elements(const ckpt_tensor *tensor) {
    uint64_t elements = 1;
    for (int i = 0; i < tensor->ndim; i++)
        if (tensor->shape[i] == 0) return 0;
    for (int i = 0; i < tensor->ndim; i++) elements *= (uint64_t)tensor->shape[i];
    return elements;
}

bool ckpt_contiguous(const ckpt_tensor *tensor) {
    int64_t expected = 1;
    if (!ckpt_elements(tensor)) return true;
    for (int i = tensor->ndim - 1; i >= 0; i--) {
        if (tensor->shape[i] != 1 && tensor->stride[i] != expected) return false;
        expected *= tensor->shape[i];
    }
    return true;
}

void ckpt_release(const checkpoint *ckpt, const ckpt_tensor *tensor) {
    (void)ckpt;
    uint64_t span = ckpt_elements(tensor) != 0;
    if (span)
        for (int i = 0; i < tensor->ndim; i++)
            span += (uint64_t)(tensor->shape[i] - 1) * (uint64_t)tensor->stride[i];
    ckpt_drop(tensor->data, (size_t)span * ckpt_dtype_size(tensor->dtype));
}

/* Copies `count` elements that lie `stride` elements apart. */
static void ckpt_copy_run(const uint8_t *from, int64_t count, int64_t stride, size_t size,
                          uint8_t *to) {
    if (stride == 1 || count == 1) {
        memcpy(to, from, (size_t)count * size);
        return;
    }
    for (int64_t i = 0; i < count; i++, to += size) {
        const uint8_t *element = from + (size_t)(i * stride) * size;
        switch (size) {
        case 2: memcpy(to, element, 2); break;
        case 4: memcpy(to, element, 4); break;
        default: memcpy(to, element, size);
        }
    }
}

void ckpt_copy(const ckpt_tensor *tensor, int64_t first, int64_t count, void *out) {
    size_t size = ckpt_dtype_size(tensor->dtype);
    int64_t shape[CKPT_MAX_DIMS], stride[CKPT_MAX_DIMS], index[CKPT_MAX_DIMS] = {0};
    int inner = tensor->ndim ? tensor->ndim - 1 : 0;
    if (!count || !ckpt_elements(tensor)) return;
    memcpy(shape, tensor->shape, sizeof shape);
    memcpy(stride, tensor->stride, sizeof stride);
    shape[0] = tensor->ndim ? count : 1;

    /* Dimensions inner.. are copied as one run, as far as they lie without gaps. */
    const uint8_t *start = tensor->data + (size_t)(first * stride[0]) * size;
    int64_t run = shape[inner], step = run == 1 ? 1 : stride[inner];
    while (inner > 0 && step == 1 && (shape[inner - 1] == 1 || stride[inner - 1] == run))
        run *= shape[--inner];
    for (uint8_t *to = out;; to += (size_t)run * size) {
        int64_t offset = 0;
        for (int i = 0; i < inner; i++) offset += index[i] * stride[i];
        ckpt_copy_run(start + (size_t)offset * size, run, step, size, to);
        int dim = inner - 1; /* an odometer over the dimensions outside */
        while (dim >= 0 && ++index[dim] == shape[dim]) index[dim--] = 0;
        if (dim < 0) return;
    }
}

const char *ckpt_shape_text(const ckpt_tensor *tensor, char out[CKPT_SHAPE_TEXT]) {
    int at = snprintf(out, CKPT_SHAPE_TEXT, "%s [", ckpt_dtype_name(tensor->dtype));
    for (int i = 0; i < tensor->ndim; i++) /* at most 8 * 22 characters */
        at += snprintf(out + at, CKPT_SHAPE_TEXT - (size_t)at, i ? ", %lld" : "%lld",
                       (long long)tensor->shape[i]);
    snprintf(out + at, CKPT_SHAPE_TEXT - (size_t)at, "]");
    return out;
}
