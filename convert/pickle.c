/* The language is Python's (Lib/pickletools.py describes every opcode); what torch.save makes of it
 * was read in torch/serialization.py and torch/_utils.py. */
#include "src/base.h"

#include "pickle.h"

#define PKL_MAX_STACK (1u << 16)
#define PKL_MAX_MEMO (2u << 20)
#define PKL_CHUNK ((size_t)64 << 10)
#define PKL_MAX_GLOBAL 200 /* bytes of a module's or a global's name */

enum {
    PKL_OP_MARK = '(',
    PKL_OP_STOP = '.',
    PKL_OP_BINFLOAT = 'G',
    PKL_OP_BININT = 'J',
    PKL_OP_BININT1 = 'K',
    PKL_OP_BININT2 = 'M',
    PKL_OP_NONE = 'N',
    PKL_OP_BINPERSID = 'Q',
    PKL_OP_REDUCE = 'R',
    PKL_OP_BINUNICODE = 'X',
    PKL_OP_EMPTY_LIST = ']',
    PKL_OP_APPEND = 'a',
    PKL_OP_BUILD = 'b',
    PKL_OP_GLOBAL = 'c',
    PKL_OP_APPENDS = 'e',
    PKL_OP_BINGET = 'h',
    PKL_OP_LONG_BINGET = 'j',
    PKL_OP_BINPUT = 'q',
    PKL_OP_LONG_BINPUT = 'r',
    PKL_OP_SETITEM = 's',
    PKL_OP_TUPLE = 't',
    PKL_OP_EMPTY_TUPLE = ')',
    PKL_OP_SETITEMS = 'u',
    PKL_OP_EMPTY_DICT = '}',
    PKL_OP_PROTO = 0x80,
    PKL_OP_TUPLE1 = 0x85,
    PKL_OP_TUPLE2 = 0x86,
    PKL_OP_TUPLE3 = 0x87,
    PKL_OP_NEWTRUE = 0x88,
    PKL_OP_NEWFALSE = 0x89,
    PKL_OP_LONG1 = 0x8a
};

/* Opcodes of the language that state dicts do not need: named in the message that refuses them. */
static const struct {
    uint8_t op;
    const char *name;
} pkl_refused[] = {
    {'0', "POP"},
    {'1', "POP_MARK"},
    {'2', "DUP"},
    {'F', "FLOAT"},
    {'I', "INT"},
    {'L', "LONG"},
    {'B', "BINBYTES"},
    {'C', "SHORT_BINBYTES"},
    {'P', "PERSID"},
    {'S', "STRING"},
    {'T', "BINSTRING"},
    {'U', "SHORT_BINSTRING"},
    {'V', "UNICODE"},
    {'d', "DICT"},
    {'g', "GET"},
    {'i', "INST"},
    {'l', "LIST"},
    {'o', "OBJ"},
    {'p', "PUT"},
    {0x81, "NEWOBJ"},
    {0x82, "EXT1"},
    {0x83, "EXT2"},
    {0x84, "EXT4"},
    {0x8b, "LONG4"},
    {0x8c, "SHORT_BINUNICODE"},
    {0x8d, "BINUNICODE8"},
    {0x8e, "BINBYTES8"},
    {0x8f, "EMPTY_SET"},
    {0x90, "ADDITEMS"},
    {0x91, "FROZENSET"},
    {0x92, "NEWOBJ_EX"},
    {0x93, "STACK_GLOBAL"},
    {0x94, "MEMOIZE"},
    {0x95, "FRAME"},
    {0x96, "BYTEARRAY8"},
    {0x97, "NEXT_BUFFER"},
    {0x98, "READONLY_BUFFER"},
};

/* What a global means; storage classes are PKL_GLOBAL_STORAGE + their ckpt_dtype. */
enum {
    PKL_GLOBAL_ORDERED_DICT,
    PKL_GLOBAL_TENSOR,
    PKL_GLOBAL_TENSOR_V2,
    PKL_GLOBAL_PARAMETER,
    PKL_GLOBAL_STORAGE
};

static const struct {
    const char *module, *name;
    int meaning;
} pkl_globals[] = {
    {"collections", "OrderedDict", PKL_GLOBAL_ORDERED_DICT},
    {"torch._utils", "_rebuild_tensor", PKL_GLOBAL_TENSOR},
    {"torch._utils", "_rebuild_tensor_v2", PKL_GLOBAL_TENSOR_V2},
    {"torch._utils", "_rebuild_parameter", PKL_GLOBAL_PARAMETER},
    {"torch", "DoubleStorage", PKL_GLOBAL_STORAGE + CKPT_F64},
    {"torch", "FloatStorage", PKL_GLOBAL_STORAGE + CKPT_F32},
    {"torch", "HalfStorage", PKL_GLOBAL_STORAGE + CKPT_F16},
    {"torch", "BFloat16Storage", PKL_GLOBAL_STORAGE + CKPT_BF16},
    {"torch", "LongStorage", PKL_GLOBAL_STORAGE + CKPT_I64},
    {"torch", "IntStorage", PKL_GLOBAL_STORAGE + CKPT_I32},
    {"torch", "ShortStorage", PKL_GLOBAL_STORAGE + CKPT_I16},
    {"torch", "CharStorage", PKL_GLOBAL_STORAGE + CKPT_I8},
    {"torch", "ByteStorage", PKL_GLOBAL_STORAGE + CKPT_U8},
    {"torch", "BoolStorage", PKL_GLOBAL_STORAGE + CKPT_BOOL},
};

struct pkl_chunk {
    struct pkl_chunk *previous;
    pkl_value values[]; /* tuples' items; the chunk is filled from its end */
};

/* One run. */
typedef struct pkl_machine {
    pkl *p;
    const char *file;
    pkl_format format;
    const uint8_t *begin; /* of this pickle */
    tc__cursor *at;
    size_t op_at; /* offset of the opcode being executed */
    pkl_value *stack;
    size_t depth, stack_cap;
    pkl_value *memo; /* indexed as the pickle says; PKL_UNSET where nothing was put */
    size_t memo_count, memo_cap;
    tc_error *err;
} pkl_machine;

/* ---- errors and memory ---- */

static int pkl_error(pkl_machine *m, int code, const char *what, const char *detail) {
    return tc__fail(m->err, code, "%s: pickle, byte %zu: %s%s", m->file, m->op_at, what, detail);
}

static int pkl_damaged(pkl_machine *m, const char *what) {
    return pkl_error(m, TC_ERR_FORMAT, what, "");
}

/* Counts `bytes` of memory, which the caller is about to allocate, against the limit. */
static int pkl_account(pkl_machine *m, size_t bytes) {
    if (bytes > PKL_MAX_BYTES - m->p->used)
        return pkl_error(m, TC_ERR_UNSUPPORTED, "more objects than a checkpoint can need", "");
    m->p->used += bytes;
    return TC_OK;
}

/* Makes room for one more element of `size` bytes in *data; the array doubles. */
static int pkl_grow(pkl_machine *m, void **data, size_t *cap, size_t count, size_t size) {
    if (count < *cap) return TC_OK;
    size_t larger = *cap ? 2 * *cap : 8;
    int code = pkl_account(m, (larger - *cap) * size);
    if (code) return code;
    void *moved = realloc(*data, larger * size);
    if (!moved) return tc__fail_memory(m->err, m->file, larger * size);
    *data = moved;
    *cap = larger;
    return TC_OK;
}

/* Memory for `count` values (at least one) that lives until pkl_close. */
static int pkl_values(pkl_machine *m, size_t count, pkl_value **values) {
    pkl *p = m->p;
    if (count > p->chunk_left) {
        size_t room = PKL_CHUNK / sizeof **values;
        if (count > room) room = count;
        size_t bytes = sizeof(struct pkl_chunk) + room * sizeof **values;
        int code = pkl_account(m, bytes);
        if (code) return code;
        struct pkl_chunk *chunk = malloc(bytes);
        if (!chunk) return tc__fail_memory(m->err, m->file, bytes);
        chunk->previous = p->chunks;
        p->chunks = chunk;
        p->chunk_left = room;
    }
    p->chunk_left -= count;
    *values = p->chunks->values + p->chunk_left;
    return TC_OK;
}

/* ---- stack and memo ---- */

static int pkl_push(pkl_machine *m, pkl_value value) {
    if (m->depth == PKL_MAX_STACK)
        return pkl_error(m, TC_ERR_UNSUPPORTED, "its stack is deeper than a checkpoint needs", "");
    void *stack = m->stack;
    int code = pkl_grow(m, &stack, &m->stack_cap, m->depth, sizeof *m->stack);
    m->stack = stack;
    if (!code) m->stack[m->depth++] = value;
    return code;
}

static int pkl_push_int(pkl_machine *m, pkl_kind kind, int64_t integer) {
    pkl_value value = {kind, 0, {.integer = integer}};
    return pkl_push(m, value);
}

/* The value `below` the top, NULL if the stack is too short. */
static pkl_value *pkl_top(pkl_machine *m, size_t below) {
    return m->depth > below ? &m->stack[m->depth - 1 - below] : NULL;
}

/* Whether the top `count` values are there and are values, not marks. */
static bool pkl_has(const pkl_machine *m, size_t count) {
    if (m->depth < count) return false;
    for (size_t i = m->depth - count; i < m->depth; i++)
        if (m->stack[i].kind == PKL_MARK) return false;
    return true;
}

/* The index of the first value above the last mark. */
static bool pkl_find_mark(const pkl_machine *m, size_t *first) {
    for (*first = m->depth; *first > 0; --*first)
        if (m->stack[*first - 1].kind == PKL_MARK) return true;
    return false;
}

static int pkl_put(pkl_machine *m, size_t index) {
    if (!pkl_has(m, 1)) return pkl_damaged(m, "nothing on the stack to remember");
    if (index >= PKL_MAX_MEMO)
        return pkl_error(m, TC_ERR_UNSUPPORTED, "it remembers more than a checkpoint needs", "");
    while (index >= m->memo_count) {
        void *memo = m->memo;
        int code = pkl_grow(m, &memo, &m->memo_cap, m->memo_count, sizeof *m->memo);
        m->memo = memo;
        if (code) return code;
        m->memo[m->memo_count++].kind = PKL_UNSET;
    }
    m->memo[index] = *pkl_top(m, 0);
    return TC_OK;
}

static int pkl_get_memo(pkl_machine *m, size_t index) {
    if (index >= m->memo_count || m->memo[index].kind == PKL_UNSET)
        return pkl_damaged(m, "it recalls something that was never remembered");
    return pkl_push(m, m->memo[index]);
}

/* ---- containers ---- */

/* A new list or dict in *value, not on the stack. */
static int pkl_new_list(pkl_machine *m, pkl_kind kind, pkl_value *value) {
    int code = pkl_account(m, sizeof(pkl_list));
    if (code) return code;
    pkl_list *list = calloc(1, sizeof *list);
    if (!list) return tc__fail_memory(m->err, m->file, sizeof *list);
    list->previous = m->p->lists;
    m->p->lists = list;
    value->kind = kind;
    value->length = 0;
    value->as.list = list;
    return TC_OK;
}

static int pkl_push_list(pkl_machine *m, pkl_kind kind) {
    pkl_value value;
    int code = pkl_new_list(m, kind, &value);
    return code ? code : pkl_push(m, value);
}

static int pkl_add_item(pkl_machine *m, pkl_list *list, pkl_value item) {
    void *items = list->items;
    int code = pkl_grow(m, &items, &list->cap, list->count, sizeof item);
    list->items = items;
    if (!code) list->items[list->count++] = item;
    return code;
}

/* Replaces the values from index `first` on, and what lies between them and `rest`, by a tuple. */
static int pkl_make_tuple(pkl_machine *m, size_t first, size_t rest) {
    size_t count = m->depth - first;
    pkl_value *items = NULL;
    int code = count ? pkl_values(m, count, &items) : TC_OK;
    if (code) return code;
    if (count) memcpy(items, m->stack + first, count * sizeof *items);
    m->depth = rest;
    pkl_value tuple = {PKL_TUPLE, (uint32_t)count, {.items = items}};
    return pkl_push(m, tuple);
}

/* Moves the values from index `first` on into the list or dict at index `into`; drops the rest. */
static int pkl_fill(pkl_machine *m, pkl_kind kind, size_t into, size_t first) {
    pkl_value target = m->stack[into];
    if (target.kind != (uint32_t)kind)
        return pkl_damaged(m, kind == PKL_LIST ? "append to something that is no list"
                                               : "an item for something that is no dict");
    if (kind == PKL_DICT && (m->depth - first) % 2) return pkl_damaged(m, "a key without a value");
    for (size_t i = first; i < m->depth; i++) {
        if (kind == PKL_DICT && (i - first) % 2 == 0 && m->stack[i].kind != PKL_STRING)
            return pkl_error(m, TC_ERR_UNSUPPORTED, "a dict with a key that is ",
                             pkl_kind_name(&m->stack[i]));
        int code = pkl_add_item(m, target.as.list, m->stack[i]);
        if (code) return code;
    }
    m->depth = into + 1;
    return TC_OK;
}

/* APPENDS, SETITEMS: target, mark, values. */
static int pkl_fill_from_mark(pkl_machine *m, pkl_kind kind) {
    size_t first;
    if (!pkl_find_mark(m, &first) || first < 2) return pkl_damaged(m, "no mark on the stack");
    return pkl_fill(m, kind, first - 2, first);
}

/* APPEND, SETITEM: target, `count` values. */
static int pkl_fill_from_top(pkl_machine *m, pkl_kind kind, size_t count) {
    if (!pkl_has(m, count + 1)) return pkl_damaged(m, "the stack is too short");
    return pkl_fill(m, kind, m->depth - count - 1, m->depth - count);
}

/* ---- tensors ---- */

static int pkl_global(pkl_machine *m) {
    const char *text[2];
    size_t len[2];
    for (int i = 0; i < 2; i++) {
        size_t left = tc__cursor_left(m->at);
        const uint8_t *end = left ? memchr(m->at->at, '\n', left) : NULL;
        if (!end) return pkl_damaged(m, "it ends inside a global");
        len[i] = (size_t)(end - m->at->at);
        text[i] = (const char *)tc__take(m->at, len[i] + 1);
    }
    for (size_t i = 0; i < TC_COUNT(pkl_globals); i++)
        if (len[0] == strlen(pkl_globals[i].module) && len[1] == strlen(pkl_globals[i].name) &&
            !memcmp(text[0], pkl_globals[i].module, len[0]) &&
            !memcmp(text[1], pkl_globals[i].name, len[1]))
            return pkl_push_int(m, PKL_GLOBAL, pkl_globals[i].meaning);
    for (int i = 0; i < 2; i++)
        if (len[i] > PKL_MAX_GLOBAL) len[i] = PKL_MAX_GLOBAL;
    return tc__fail(
        m->err, TC_ERR_UNSUPPORTED,
        "%s: pickle, byte %zu: refused: it asks for '%.*s.%.*s', which is not needed to "
        "describe weights (nothing was executed)",
        m->file, m->op_at, (int)len[0], text[0], (int)len[1], text[1]);
}

/* BINPERSID: a tuple becomes a storage. */
static int pkl_persistent(pkl_machine *m) {
    pkl_value *top = pkl_top(m, 0);
    uint32_t count = m->format == PKL_LEGACY ? 6 : 5;
    if (!top || top->kind != PKL_TUPLE || top->length < 1)
        return pkl_damaged(m, "a persistent id that is no tuple");
    const pkl_value *id = top->as.items;
    if (pkl_is(&id[0], "module"))
        return pkl_error(m, TC_ERR_UNSUPPORTED,
                         "it holds a whole module (its source code), not only weights", "");
    if (!pkl_is(&id[0], "storage") || top->length != count || id[1].kind != PKL_GLOBAL ||
        id[1].as.integer < PKL_GLOBAL_STORAGE || id[2].kind != PKL_STRING ||
        id[3].kind != PKL_STRING || id[4].kind != PKL_INT || id[4].as.integer < 0)
        return pkl_damaged(m, "a persistent id that names no storage");
    if (m->format == PKL_LEGACY && id[5].kind != PKL_NONE)
        return pkl_error(m, TC_ERR_UNSUPPORTED, "a storage that is a view of another one", "");
    ckpt_dtype dtype = (ckpt_dtype)(id[1].as.integer - PKL_GLOBAL_STORAGE);
    uint64_t numel = (uint64_t)id[4].as.integer;
    if (numel > (uint64_t)INT64_MAX / ckpt_dtype_size(dtype))
        return pkl_damaged(m, "a storage of an impossible size");

    pkl *p = m->p;
    void *storages = p->storages;
    int code = pkl_grow(m, &storages, &p->storage_cap, p->storage_count, sizeof *p->storages);
    p->storages = storages;
    if (code) return code;
    pkl_storage storage = {id[2].as.text, id[2].length, dtype, numel};
    p->storages[p->storage_count] = storage;
    m->depth--;
    return pkl_push_int(m, PKL_STORAGE, (int64_t)p->storage_count++);
}

/* Reads a tuple of sizes or strides. */
static int pkl_read_dims(pkl_machine *m, const pkl_value *tuple, int64_t dims[CKPT_MAX_DIMS],
                         int *ndim) {
    if (tuple->kind != PKL_TUPLE) return pkl_damaged(m, "a tensor whose shape is no tuple");
    if (tuple->length > CKPT_MAX_DIMS)
        return pkl_error(m, TC_ERR_UNSUPPORTED, "a tensor of more than 8 dimensions", "");
    for (uint32_t i = 0; i < tuple->length; i++) {
        const pkl_value *dim = &tuple->as.items[i];
        if (dim->kind != PKL_INT || dim->as.integer < 0)
            return pkl_damaged(m, "a tensor with a size or stride that is no natural number");
        dims[i] = dim->as.integer;
    }
    *ndim = (int)tuple->length;
    return TC_OK;
}

/* Proves that the elements lie inside a storage of `numel`, and that they are at most as many as it
 * has from the tensor's offset on. */
static int pkl_check_extent(pkl_machine *m, const pkl_tensor *tensor, uint64_t numel) {
    static const char too_many[] = "a tensor that is larger than its storage, or repeats elements";
    uint64_t last = (uint64_t)tensor->offset, elements = 1;
    for (int i = 0; i < tensor->ndim; i++)
        if (tensor->shape[i] == 0)
            return last <= numel ? TC_OK : pkl_damaged(m, "a tensor outside its storage");
    for (int i = 0; i < tensor->ndim; i++) {
        uint64_t size = (uint64_t)tensor->shape[i], stride = (uint64_t)tensor->stride[i];
        if (elements > numel / size || (size > 1 && stride > numel / (size - 1)))
            return pkl_damaged(m, too_many);
        elements *= size;
        last +=
            (size - 1) * stride; /* fits: last < 2^63, and the product is at most numel < 2^63 */
        if (last >= numel) break;
    }
    if (last >= numel) return pkl_damaged(m, "a tensor outside its storage");
    return elements <= numel - (uint64_t)tensor->offset ? TC_OK : pkl_damaged(m, too_many);
}

/* REDUCE of _rebuild_tensor(storage, offset, size, stride) and of _rebuild_tensor_v2, which adds
 * (requires_grad, backward_hooks[, metadata]). */
static int pkl_rebuild_tensor(pkl_machine *m, bool v2, pkl_value args, pkl_value *result) {
    const pkl_value *arg = args.as.items;
    if (v2 ? args.length != 6 && args.length != 7 : args.length != 4)
        return pkl_damaged(m, "a tensor with a wrong number of arguments");
    if (arg[0].kind != PKL_STORAGE || arg[1].kind != PKL_INT || arg[1].as.integer < 0)
        return pkl_damaged(m, "a tensor without storage or offset");
    bool lazy = v2 && args.length == 7 && arg[6].kind != PKL_NONE &&
                !(arg[6].kind == PKL_DICT && arg[6].as.list->count == 0);
    if (lazy)
        return pkl_error(m, TC_ERR_UNSUPPORTED,
                         "a tensor with metadata (a lazily negated or conjugated view)", "");
    pkl_tensor tensor = {.storage = (uint32_t)arg[0].as.integer, .offset = arg[1].as.integer};
    int strides;
    int code = pkl_read_dims(m, &arg[2], tensor.shape, &tensor.ndim);
    if (!code) code = pkl_read_dims(m, &arg[3], tensor.stride, &strides);
    if (code) return code;
    if (strides != tensor.ndim) return pkl_damaged(m, "a tensor with more sizes than strides");
    code = pkl_check_extent(m, &tensor, m->p->storages[tensor.storage].numel);
    if (code) return code;

    pkl *p = m->p;
    void *tensors = p->tensors;
    code = pkl_grow(m, &tensors, &p->tensor_cap, p->tensor_count, sizeof *p->tensors);
    p->tensors = tensors;
    if (code) return code;
    p->tensors[p->tensor_count] = tensor;
    result->kind = PKL_TENSOR;
    result->as.integer = (int64_t)p->tensor_count++;
    return TC_OK;
}

/* REDUCE: callable, args. */
static int pkl_reduce(pkl_machine *m) {
    if (!pkl_has(m, 2)) return pkl_damaged(m, "the stack is too short");
    pkl_value callable = *pkl_top(m, 1), args = *pkl_top(m, 0), result = {PKL_NONE, 0, {0}};
    int code;
    if (callable.kind != PKL_GLOBAL || args.kind != PKL_TUPLE)
        return pkl_damaged(m, "a call of something that cannot be called");
    if (callable.as.integer == PKL_GLOBAL_ORDERED_DICT) {
        if (args.length) return pkl_damaged(m, "an OrderedDict with arguments");
        code = pkl_new_list(m, PKL_DICT, &result);
    } else if (callable.as.integer == PKL_GLOBAL_PARAMETER) {
        if (args.length != 3 || args.as.items[0].kind != PKL_TENSOR)
            return pkl_damaged(m, "a parameter without a tensor");
        result = args.as.items[0];
        code = TC_OK;
    } else if (callable.as.integer >= PKL_GLOBAL_STORAGE) {
        return pkl_damaged(m, "a call of a storage class");
    } else {
        code = pkl_rebuild_tensor(m, callable.as.integer == PKL_GLOBAL_TENSOR_V2, args, &result);
    }
    if (code) return code;
    m->depth -= 2;
    return pkl_push(m, result);
}

/* BUILD: object, state. Only the `_metadata` of a state dict (versions of its modules) occurs, and
 * it is of no use here. */
static int pkl_build(pkl_machine *m) {
    if (!pkl_has(m, 2)) return pkl_damaged(m, "the stack is too short");
    const pkl_value *object = pkl_top(m, 1), *state = pkl_top(m, 0);
    if (object->kind != PKL_DICT || state->kind != PKL_DICT)
        return pkl_error(m, TC_ERR_UNSUPPORTED, "refused: a state for ", pkl_kind_name(object));
    const pkl_list *items = state->as.list;
    if (items->count != 2 || !pkl_is(&items->items[0], "_metadata"))
        return pkl_error(m, TC_ERR_UNSUPPORTED,
                         "refused: a dict with attributes other than _metadata", "");
    m->depth--;
    return TC_OK;
}

/* ---- the machine ---- */

static int pkl_unicode(pkl_machine *m) {
    uint32_t len = tc__take_u32(m->at);
    const uint8_t *text = tc__take(m->at, len);
    pkl_value value = {PKL_STRING, len, {.text = (const char *)text}};
    return m->at->failed ? TC_OK : pkl_push(m, value);
}

static int pkl_float(pkl_machine *m) {
    const uint8_t *bytes = tc__take(m->at, 8);
    if (!bytes) return TC_OK;
    uint64_t bits = 0;
    for (int i = 0; i < 8; i++) bits = bits << 8 | bytes[i]; /* the one big-endian number */
    pkl_value value = {PKL_FLOAT, 0, {0}};
    memcpy(&value.as.real, &bits, sizeof bits);
    return pkl_push(m, value);
}

/* LONG1: a length byte, then two's complement of any size. */
static int pkl_long(pkl_machine *m) {
    const uint8_t *len = tc__take(m->at, 1);
    const uint8_t *bytes = len ? tc__take(m->at, *len) : NULL;
    if (m->at->failed) return TC_OK;
    if (*len > 8) {
        pkl_value value = {PKL_LONG, *len, {.text = (const char *)bytes}};
        return pkl_push(m, value);
    }
    uint64_t bits = *len && bytes[*len - 1] & 0x80 ? UINT64_MAX : 0;
    memcpy(&bits, bytes, *len);
    int64_t integer;
    memcpy(&integer, &bits, sizeof integer);
    return pkl_push_int(m, PKL_INT, integer);
}

static int pkl_take_int(pkl_machine *m, size_t size) {
    const uint8_t *bytes = tc__take(m->at, size);
    if (!bytes) return TC_OK;
    uint32_t value = 0;
    memcpy(&value, bytes, size);
    return pkl_push_int(m, PKL_INT, size == 4 ? (int64_t)(int32_t)value : (int64_t)value);
}

/* The index after BINPUT and BINGET (1 byte) or LONG_BINPUT and LONG_BINGET (4 bytes). */
static size_t pkl_take_index(pkl_machine *m, size_t size) {
    const uint8_t *bytes = tc__take(m->at, size);
    uint32_t index = 0;
    if (bytes) memcpy(&index, bytes, size);
    return index;
}

static int pkl_tuple_from_mark(pkl_machine *m) {
    size_t first;
    if (!pkl_find_mark(m, &first)) return pkl_damaged(m, "no mark on the stack");
    return pkl_make_tuple(m, first, first - 1);
}

static int pkl_tuple_from_top(pkl_machine *m, size_t count) {
    if (!pkl_has(m, count)) return pkl_damaged(m, "the stack is too short");
    return pkl_make_tuple(m, m->depth - count, m->depth - count);
}

static int pkl_proto(pkl_machine *m) {
    const uint8_t *version = tc__take(m->at, 1);
    if (!version || (*version >= 2 && *version <= 5)) return TC_OK;
    return pkl_error(m, TC_ERR_UNSUPPORTED, "a pickle protocol other than 2 to 5", "");
}

static int pkl_refuse(pkl_machine *m, uint8_t op) {
    char number[8];
    const char *name = number;
    snprintf(number, sizeof number, "0x%02x", op);
    for (size_t i = 0; i < TC_COUNT(pkl_refused); i++)
        if (pkl_refused[i].op == op) name = pkl_refused[i].name;
    if (name == number) return pkl_error(m, TC_ERR_FORMAT, "no such opcode: ", number);
    return pkl_error(m, TC_ERR_UNSUPPORTED, "refused: a checkpoint does not need the opcode ",
                     name);
}

/* Executes one opcode. A read past the end shows in m->at->failed. */
static int pkl_step(pkl_machine *m, uint8_t op) {
    switch (op) {
    case PKL_OP_PROTO: return pkl_proto(m);
    case PKL_OP_GLOBAL: return pkl_global(m);
    case PKL_OP_BINPUT: return pkl_put(m, pkl_take_index(m, 1));
    case PKL_OP_LONG_BINPUT: return pkl_put(m, pkl_take_index(m, 4));
    case PKL_OP_BINGET: return pkl_get_memo(m, pkl_take_index(m, 1));
    case PKL_OP_LONG_BINGET: return pkl_get_memo(m, pkl_take_index(m, 4));
    case PKL_OP_MARK: return pkl_push_int(m, PKL_MARK, 0);
    case PKL_OP_EMPTY_TUPLE: return pkl_tuple_from_top(m, 0);
    case PKL_OP_EMPTY_DICT: return pkl_push_list(m, PKL_DICT);
    case PKL_OP_EMPTY_LIST: return pkl_push_list(m, PKL_LIST);
    case PKL_OP_TUPLE: return pkl_tuple_from_mark(m);
    case PKL_OP_TUPLE1: return pkl_tuple_from_top(m, 1);
    case PKL_OP_TUPLE2: return pkl_tuple_from_top(m, 2);
    case PKL_OP_TUPLE3: return pkl_tuple_from_top(m, 3);
    case PKL_OP_APPEND: return pkl_fill_from_top(m, PKL_LIST, 1);
    case PKL_OP_APPENDS: return pkl_fill_from_mark(m, PKL_LIST);
    case PKL_OP_SETITEM: return pkl_fill_from_top(m, PKL_DICT, 2);
    case PKL_OP_SETITEMS: return pkl_fill_from_mark(m, PKL_DICT);
    case PKL_OP_BINUNICODE: return pkl_unicode(m);
    case PKL_OP_BININT1: return pkl_take_int(m, 1);
    case PKL_OP_BININT2: return pkl_take_int(m, 2);
    case PKL_OP_BININT: return pkl_take_int(m, 4);
    case PKL_OP_LONG1: return pkl_long(m);
    case PKL_OP_BINFLOAT: return pkl_float(m);
    case PKL_OP_NONE: return pkl_push_int(m, PKL_NONE, 0);
    case PKL_OP_NEWTRUE: return pkl_push_int(m, PKL_BOOL, 1);
    case PKL_OP_NEWFALSE: return pkl_push_int(m, PKL_BOOL, 0);
    case PKL_OP_BINPERSID: return pkl_persistent(m);
    case PKL_OP_REDUCE: return pkl_reduce(m);
    case PKL_OP_BUILD: return pkl_build(m);
    default: return pkl_refuse(m, op);
    }
}

static int pkl_execute(pkl_machine *m, pkl_value *root) {
    for (;;) {
        m->op_at = (size_t)(m->at->at - m->begin);
        const uint8_t *op = tc__take(m->at, 1);
        if (op && *op == PKL_OP_STOP) break;
        int code = op ? pkl_step(m, *op) : TC_OK;
        if (m->at->failed) return pkl_damaged(m, "it ends too early");
        if (code) return code;
    }
    if (m->depth != 1 || !pkl_has(m, 1)) return pkl_damaged(m, "it leaves no single value");
    *root = m->stack[0];
    return TC_OK;
}

int pkl_run(pkl *p, const char *file, pkl_format format, tc__cursor *at, pkl_value *root,
            tc_error *err) {
    pkl_machine machine = {
        .p = p, .file = file, .format = format, .begin = at->at, .at = at, .err = err};
    int code = pkl_execute(&machine, root);
    free(machine.stack);
    free(machine.memo);
    p->used -= (machine.stack_cap + machine.memo_cap) * sizeof(pkl_value);
    return code ? code : tc__ok(err);
}

void pkl_close(pkl *p) {
    for (pkl_list *list = p->lists, *previous; list; list = previous) {
        previous = list->previous;
        free(list->items);
        free(list);
    }
    for (struct pkl_chunk *chunk = p->chunks, *previous; chunk; chunk = previous) {
        previous = chunk->previous;
        free(chunk);
    }
    free(p->storages);
    free(p->tensors);
    memset(p, 0, sizeof *p);
}

bool pkl_is(const pkl_value *value, const char *text) {
    size_t len = strlen(text);
    return value->kind == PKL_STRING && value->length == len && !memcmp(value->as.text, text, len);
}

const pkl_value *pkl_get(const pkl_value *dict, const char *key) {
    if (dict->kind != PKL_DICT) return NULL;
    const pkl_list *list = dict->as.list;
    for (size_t i = list->count; i > 0; i -= 2)
        if (pkl_is(&list->items[i - 2], key)) return &list->items[i - 1];
    return NULL;
}

const char *pkl_kind_name(const pkl_value *value) {
    static const char *const names[] = {"nothing", "a mark",  "None",      "a bool",  "an int",
                                        "an int",  "a float", "a string",  "a tuple", "a list",
                                        "a dict",  "a class", "a storage", "a tensor"};
    return names[value->kind];
}
