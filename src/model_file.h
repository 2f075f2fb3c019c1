/* model_file - the flat model file, version 1: constants shared by reader and writer, and the
 * reader. docs/format.md is the specification; this header follows it.
 *
 *     header 64 B | metadata | tensor table | tensors, each at a multiple of 256 B
 *
 * The reader trusts nothing: header, metadata and table carry checksums that are verified at every
 * open, every number is range-checked, and offsets are proved to lie inside the file before use.
 */
#ifndef TC_MODEL_FILE_H
#define TC_MODEL_FILE_H

#include "base.h"

#define TC__FILE_MAGIC "TINYCHAT"
#define TC__FILE_VERSION 1u
#define TC__HEADER_SIZE 64u
#define TC__DATA_ALIGN 256u

/* Types of metadata values. */
enum {
    TC__META_U32 = 1,    /* array of u32 */
    TC__META_F64 = 2,    /* array of f64 */
    TC__META_BYTES = 3,  /* count bytes: text or raw */
    TC__META_F32 = 4,    /* array of f32 */
    TC__META_STRINGS = 5 /* count strings, each u32 length + bytes */
};

/* Element types of tensors. */
enum {
    TC__F32 = 1,
    TC__F16 = 2,
    TC__BF16 = 3,
    TC__W4 = 4 /* 4-bit weights in units, see below */
};

/* A W4 matrix [n, k] with group size g (32, 64 or 128, divides k) is stored as units of 16 rows x g
 * columns. Unit (b, j) holds rows 16b..16b+15 and columns j*g..j*g+g-1 and lies at index b*(k/g)+j;
 * rows from n up to the next multiple of 16 exist and hold scale 0. A unit is
 *
 *     8*g bytes   the 4-bit numbers q, as u32 words for 32 lanes l (a warp):
 *                 g = 128: words 0-3 of lane l at byte 16*l, words 4-7 at byte 512 + 16*l
 *                 g =  64: words 0-3 of lane l at byte 16*l
 *                 g =  32: words 0-1 of lane l at byte 8*l
 *                 nibble e (bits 4e..4e+3) of word w is row (l>>2) + 8*(e&1),
 *                 column 32*(w>>1) + 8*(l&3) + 4*(w&1) + 2*((e>>1)&1) + (e>>2)
 *     64 bytes    for r = 0..7: scale of row r, zero of row r, scale of row r+8, zero of row r+8,
 *                 each as binary16 (the zero point is an integer 0..15)
 *
 * and the weight is scale * (q - zero). The order of the nibbles is the register order of the A
 * operand of the GPU's 16x8x16 matrix product; a CPU reads the 16 words of 64 bytes as two rows. */
#define TC__UNIT_ROWS 16u
#define TC__UNIT_BYTES(group_size) (8u * (group_size) + 64u)

/* Where q of (row, column), both relative to the unit, lies: byte offset and shift (0 or 4). */
TC_INTERNAL void tc__unit_place(unsigned group_size, unsigned row, unsigned column,
                                unsigned *byte_offset, unsigned *shift);

/* Bytes of a tensor of this type and shape: dimension 0 is rows. 0 if it overflows or the shape
 * does not suit the type. `columns` is 1 for a vector. */
TC_INTERNAL size_t tc__tensor_bytes(uint32_t type, uint32_t group_size, size_t rows,
                                    size_t columns);

typedef struct tc__tensor {
    const char *name; /* not NUL-terminated */
    size_t name_len;
    uint32_t type;        /* TC__F32, ... */
    uint32_t group_size;  /* of W4, else 0 */
    size_t rows, columns; /* a vector has columns == 1 */
    const uint8_t *data;  /* in the mapped file; a multiple of 256 from its start. NULL: nowhere */
    size_t offset;        /* from the first tensor's data */
    size_t size;
    uint32_t crc;
} tc__tensor;

typedef struct tc__meta {
    const char *key; /* not NUL-terminated */
    size_t key_len;
    uint32_t type;
    size_t count;         /* of elements; bytes for TC__META_BYTES */
    const uint8_t *value; /* unaligned: read with memcpy */
    size_t size;          /* bytes of the value */
} tc__meta;

typedef struct tc__model_file {
    tc__map map;
    int fd;          /* of the mapped file; only where there is one */
    tc__meta *metas; /* [meta_count], in the file's order, keys distinct */
    size_t meta_count;
    tc__tensor *tensors; /* [tensor_count], in the file's order, names distinct */
    size_t tensor_count;
    char *names; /* of the tensors, and their data, when there is no file (shapes.h); else NULL */
    void *data;
    uint64_t fingerprint; /* names the contents: checksums of metadata (high half) and table */
} tc__model_file;

/* Maps and checks a file. On failure nothing is held. Errors: IO, FORMAT, UNSUPPORTED (another
 * version), MEMORY. */
TC_INTERNAL int tc__model_file_open(const char *path, tc__model_file *file, tc_error *err);
TC_INTERNAL void tc__model_file_close(tc__model_file *file);

/* Look-ups; NULL if absent. */
TC_INTERNAL const tc__meta *tc__find_meta(const tc__model_file *file, const char *key);
TC_INTERNAL const tc__tensor *tc__find_tensor(const tc__model_file *file, const char *name);

/* Metadata with a type: FORMAT if the key is missing, of another type or has no element. */
TC_INTERNAL int tc__meta_u32(const tc__model_file *file, const char *key, uint32_t *value,
                             tc_error *err);
TC_INTERNAL int tc__meta_f64(const tc__model_file *file, const char *key, double *value,
                             tc_error *err);
/* As above, with a value for a missing key. */
TC_INTERNAL int tc__meta_u32_or(const tc__model_file *file, const char *key, uint32_t fallback,
                                uint32_t *value, tc_error *err);
/* Text: points into the file, not terminated. An absent key gives "" and length 0. */
TC_INTERNAL int tc__meta_text(const tc__model_file *file, const char *key, const char **text,
                              size_t *len, tc_error *err);
/* Element i of an array. The type must have been checked and i < count. */
TC_INTERNAL uint32_t tc__meta_u32_at(const tc__meta *meta, size_t i);

/* Walks the strings of a TC__META_STRINGS value: start with a cursor over value/size; false at the
 * end. The lengths were checked by tc__model_file_open. */
TC_INTERNAL bool tc__next_string(tc__cursor *cursor, const char **text, size_t *len);

#endif /* TC_MODEL_FILE_H */
