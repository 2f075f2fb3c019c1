/* pickle - an interpreter for the part of Python's pickle language in which torch.save describes
 * tensors. Nothing is imported and nothing is called: the opcodes and the seven kinds of globals
 * that state dicts consist of are understood here, everything else is refused by name.
 *
 * Opcodes: PROTO (2 to 5) STOP GLOBAL BINPUT LONG_BINPUT BINGET LONG_BINGET MARK EMPTY_TUPLE
 * EMPTY_DICT EMPTY_LIST TUPLE TUPLE1 TUPLE2 TUPLE3 APPEND APPENDS SETITEM SETITEMS BINUNICODE
 * BININT1 BININT2 BININT LONG1 BINFLOAT NONE NEWTRUE NEWFALSE BINPERSID REDUCE BUILD.
 * Globals: collections.OrderedDict, torch._utils._rebuild_tensor, _rebuild_tensor_v2 and
 * _rebuild_parameter, and torch.<X>Storage as the name of an element type.
 *
 * The interpreter does not recurse, checks each read, and stops at PKL_MAX_BYTES of memory.
 */
#ifndef CONVERT_PICKLE_H
#define CONVERT_PICKLE_H

#include "dtype.h"

#define PKL_MAX_BYTES ((size_t)96 << 20) /* about 600 bytes are needed per tensor */

typedef enum pkl_kind {
    PKL_UNSET,
    PKL_MARK,
    PKL_NONE,
    PKL_BOOL,    /* integer: 0 or 1 */
    PKL_INT,     /* integer */
    PKL_LONG,    /* text: little-endian two's complement of more than 8 bytes */
    PKL_FLOAT,   /* real */
    PKL_STRING,  /* text, length: UTF-8 in the pickle, not NUL-terminated */
    PKL_TUPLE,   /* items[length] */
    PKL_LIST,    /* list */
    PKL_DICT,    /* list: key, value, key, value; keys are strings; may hold a key twice */
    PKL_GLOBAL,  /* integer: private */
    PKL_STORAGE, /* integer: index into pkl->storages */
    PKL_TENSOR   /* integer: index into pkl->tensors */
} pkl_kind;

typedef struct pkl_value {
    uint32_t kind; /* pkl_kind */
    uint32_t length;
    union {
        int64_t integer;
        double real;
        const char *text;
        const struct pkl_value *items;
        struct pkl_list *list;
    } as;
} pkl_value;

typedef struct pkl_list {
    pkl_value *items;
    size_t count, cap;
    struct pkl_list *previous; /* all lists, for pkl_close */
} pkl_list;

/* A persistent id: ('storage', class, key, location, numel[, view]). */
typedef struct pkl_storage {
    const char *key; /* in the pickle, not NUL-terminated */
    uint32_t key_len;
    ckpt_dtype dtype;
    uint64_t numel; /* elements; numel times size of the type fits into 63 bits */
} pkl_storage;

/* A view of a storage; every element is proved to lie inside it, and the elements are no more than
 * it has from `offset` on (so none of the broadcast views that make a small file look huge). */
typedef struct pkl_tensor {
    uint32_t storage; /* index into pkl->storages */
    int ndim;
    int64_t offset; /* in elements */
    int64_t shape[CKPT_MAX_DIMS];
    int64_t stride[CKPT_MAX_DIMS];
} pkl_tensor;

typedef struct pkl {
    pkl_storage *storages;
    size_t storage_count, storage_cap;
    pkl_tensor *tensors;
    size_t tensor_count, tensor_cap;
    /* private */
    size_t used; /* bytes of memory, see PKL_MAX_BYTES */
    pkl_list *lists;
    struct pkl_chunk *chunks;
    size_t chunk_left;
} pkl;

/* How a persistent id looks. */
typedef enum pkl_format {
    PKL_ZIP,   /* 5 items */
    PKL_LEGACY /* 6 items, the last one None */
} pkl_format;

/* Runs one pickle from *at on (which is moved behind it) and leaves its value in *root. The bytes
 * must stay where they are while `p` is used. Several pickles can be run with the same `p`;
 * zero-initialise it before the first and pkl_close it in any case. `file` is only for messages.
 * Errors: FORMAT, UNSUPPORTED (refused), MEMORY. */
int pkl_run(pkl *p, const char *file, pkl_format format, tc__cursor *at, pkl_value *root,
            tc_error *err);

void pkl_close(pkl *p);

/* Whether the value is that string. */
bool pkl_is(const pkl_value *value, const char *text);

/* The value of the last item of a dict with that key, NULL if there is none or it is no dict. */
const pkl_value *pkl_get(const pkl_value *dict, const char *key);

/* "a dict", "a tuple"... for messages. */
const char *pkl_kind_name(const pkl_value *value);

#endif /* CONVERT_PICKLE_H */
