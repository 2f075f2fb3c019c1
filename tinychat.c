/* tinychat.c - generated from src/ by "make amalgamate"; change it there. MIT licence. */
#if defined(__GNUC__)
#define TC_INTERNAL __attribute__((unused)) static
#else
#define TC_INTERNAL static
#endif

/* ======== src/base.h ======== */

/* base - what every other room stands on: errors, memory, bytes, half precision, mapped files.
 *
 * Internal names are prefixed tc__ and declared TC_INTERNAL: hidden in the module build, static in
 * the amalgamation. Nothing here allocates unless it says so; nothing here has state.
 */
#ifndef TC_BASE_H
#define TC_BASE_H

#ifndef _POSIX_C_SOURCE
#define _POSIX_C_SOURCE 200809L
#endif
#ifndef _XOPEN_SOURCE
#define _XOPEN_SOURCE 700 /* realpath */
#endif
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error                                                                                             \
    "tinychat files are little-endian and are mapped in place: big-endian hosts are not supported"
#endif

#include "tinychat.h"

#include <stdarg.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#ifndef TC_INTERNAL
#if defined(__GNUC__)
#define TC_INTERNAL __attribute__((visibility("hidden")))
#else
#define TC_INTERNAL
#endif
#endif

#if defined(__GNUC__)
#define TC_PRINTF(format_arg, first_arg) __attribute__((format(printf, format_arg, first_arg)))
#else
#define TC_PRINTF(format_arg, first_arg)
#endif

#define TC_COUNT(array) (sizeof(array) / sizeof((array)[0]))

/* ---- errors ---- */

/* Fills *err (NULL allowed) with a code and a printf-style message, cut to fit and with '?' for
 * every character that could play with a terminal: controls and marks that turn the direction of
 * text (names out of files end up in messages); returns the code. */
TC_INTERNAL int tc__fail(tc_error *err, int code, const char *format, ...) TC_PRINTF(3, 4);

/* The message for a failed allocation of `bytes` for `what`; returns TC_ERR_MEMORY. */
TC_INTERNAL int tc__fail_memory(tc_error *err, const char *what, size_t bytes);

/* TC_ERR_ARGUMENT, saying "`name` is NULL", unless `given`: what a caller must not leave out. */
TC_INTERNAL int tc__need(bool given, const char *name, tc_error *err);

/* Marks success in *err (NULL allowed); returns TC_OK. */
TC_INTERNAL int tc__ok(tc_error *err);

/* ---- memory ---- */

/* a * b and a + b; false if the result does not fit (then *result is unchanged). */
TC_INTERNAL bool tc__mul(size_t a, size_t b, size_t *result);
TC_INTERNAL bool tc__add(size_t a, size_t b, size_t *result);

/* calloc that treats count * size overflow as failure and never returns NULL for size 0. */
TC_INTERNAL void *tc__calloc(size_t count, size_t size);

/* `bytes` zeroed bytes at an address that is a multiple of 64 (a cache line, a vector register);
 * free with tc__free_aligned. NULL on failure. */
TC_INTERNAL void *tc__alloc_aligned(size_t bytes);
TC_INTERNAL void tc__free_aligned(void *memory);

/* Bytes of memory that the system could give without swapping, and the limits of a container
 * leave; all there is where it does not say. */
TC_INTERNAL size_t tc__available_memory(void);
/* Bytes that the control groups leave which the file `groups` names (/proc/self/cgroup) and the
 * folders under `root` describe (/sys/fs/cgroup); SIZE_MAX without a limit. */
TC_INTERNAL size_t tc__group_memory(const char *groups, const char *root);
/* Processors that these groups may keep busy, at least 1; SIZE_MAX without a limit. */
TC_INTERNAL size_t tc__group_processors(const char *groups, const char *root);
/* Processors on which a thread may run, by its status (/proc/thread-self/status); SIZE_MAX if that
 * does not say. */
TC_INTERNAL size_t tc__allowed_processors(const char *status);

/* A growing byte string. Zero-initialise it; `failed` stays set after a failed allocation and every
 * later append is a no-op, so that callers check once at the end. data is NUL-terminated (not
 * counted in len) whenever it is not NULL. */
typedef struct tc__buf {
    char *data;
    size_t len, cap;
    bool failed;
} tc__buf;

TC_INTERNAL void tc__buf_add(tc__buf *buf, const void *bytes, size_t len);
TC_INTERNAL void tc__buf_str(tc__buf *buf, const char *text);
TC_INTERNAL void tc__buf_printf(tc__buf *buf, const char *format, ...) TC_PRINTF(2, 3);
TC_INTERNAL void tc__buf_free(tc__buf *buf);

/* A growing array of token ids; the same rules as tc__buf. */
typedef struct tc__ids {
    int32_t *data;
    size_t len, cap;
    bool failed;
} tc__ids;

TC_INTERNAL void tc__ids_add(tc__ids *ids, const int32_t *more, size_t n);
TC_INTERNAL void tc__ids_push(tc__ids *ids, int32_t id);
TC_INTERNAL void tc__ids_free(tc__ids *ids);

/* malloc'ed copy of len bytes plus a NUL; NULL on failure. */
TC_INTERNAL char *tc__copy(const char *text, size_t len);

/* ---- bytes ---- */

/* A bounds-checked cursor over untrusted bytes. A read past the end sets `failed`, returns zero
 * and leaves the cursor at the end. */
typedef struct tc__cursor {
    const uint8_t *at, *end;
    bool failed;
} tc__cursor;

TC_INTERNAL tc__cursor tc__cursor_make(const void *bytes, size_t len);
TC_INTERNAL size_t tc__cursor_left(const tc__cursor *cursor);
/* The next len bytes, NULL (and failed) if there are fewer. */
TC_INTERNAL const uint8_t *tc__take(tc__cursor *cursor, size_t len);
TC_INTERNAL uint32_t tc__take_u32(tc__cursor *cursor);
TC_INTERNAL uint64_t tc__take_u64(tc__cursor *cursor);

/* CRC-32 as in zip and zlib (polynomial 0xEDB88320, initial and final complement). Start with
 * crc = 0; feed pieces by passing the previous result. About 2.5 GB/s (16 bytes a step). */
TC_INTERNAL uint32_t tc__crc32(uint32_t crc, const void *bytes, size_t len);

/* Decodes the UTF-8 character at s (len >= 1 bytes there). Returns its length in bytes and the code
 * point; for a malformed sequence (overlong forms, surrogates, above U+10FFFF, stray or missing
 * continuation bytes) returns 1 and *code = UINT32_MAX. */
TC_INTERNAL size_t tc__utf8_decode(const char *s, size_t len, uint32_t *code);
/* True if these bytes, too few for a character, may still become one. */
TC_INTERNAL bool tc__utf8_unfinished(const char *s, size_t len);
/* Writes the UTF-8 form of a code point (<= 0x10FFFF) to out, returns 1 to 4. */
TC_INTERNAL size_t tc__utf8_encode(uint32_t code, char out[4]);

/* ---- flags between threads ---- */

/* A flag that one thread or signal handler raises and another one looks at. */
typedef struct tc__flag {
    int raised;
} tc__flag;

TC_INTERNAL void tc__flag_set(tc__flag *flag, bool raised);
TC_INTERNAL bool tc__flag_get(const tc__flag *flag);

/* ---- half precision ---- */

/* IEEE binary16 and bfloat16 to binary32, exact; and back with round-to-nearest-even (overflow
 * becomes infinity, NaN stays NaN). */
TC_INTERNAL float tc__f16_to_f32(uint16_t half);
TC_INTERNAL uint16_t tc__f32_to_f16(float value);
TC_INTERNAL float tc__bf16_to_f32(uint16_t bf16);

/* ---- files ---- */

/* A whole file mapped read-only. An empty file has data == NULL and size 0. */
typedef struct tc__map {
    const uint8_t *data;
    size_t size;
} tc__map;

/* Errors: IO (with the system's reason; directories and special files are refused). */
TC_INTERNAL int tc__map_open(const char *path, tc__map *map, tc_error *err);
/* The same, and leaves the file open for reading beside the mapping (pread), to be closed by the
 * caller; -1 if the file is empty. */
TC_INTERNAL int tc__map_open_fd(const char *path, tc__map *map, int *fd, tc_error *err);
TC_INTERNAL void tc__map_close(tc__map *map);

/* A file written beside its destination and renamed over it by tc__replace_commit (after fsync), so
 * that `path` always holds either the old or the complete new bytes. tc__replace_abort removes the
 * temporary file; both close it. Only regular files are replaced; the new file has the permissions
 * of the old one, and a link stays and what it points to is replaced. Errors: IO. */
typedef struct tc__replace {
    FILE *file; /* write here; check ferror or rely on commit, which does */
    char *path, *temporary;
} tc__replace;

TC_INTERNAL int tc__replace_open(tc__replace *replace, const char *path, tc_error *err);
TC_INTERNAL int tc__replace_commit(tc__replace *replace, tc_error *err);
TC_INTERNAL void tc__replace_abort(tc__replace *replace);

#endif /* TC_BASE_H */

/* ======== src/model_file.h ======== */

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

/* ======== src/arch.h ======== */

/* arch - the hyper-parameters of a model, read and checked once, and the tensors of its layers.
 */
#ifndef TC_ARCH_H
#define TC_ARCH_H


/* What a block computes is data: no code asks for a family's name. The values are those of the
 * model file's keys (docs/format.md). */
enum { TC__NORM_RMS, TC__NORM_LAYER };
enum { TC__POSITION_ROPE, TC__POSITION_ALIBI };
enum { TC__ACT_SILU, TC__ACT_GELU };

typedef struct tc__arch {
    uint32_t hidden_size, intermediate_size, layers;
    uint32_t heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    uint32_t norm, position, activation; /* TC__NORM_RMS, ... */
    bool gated, parallel;
    uint32_t sliding_window; /* 0: none; for messages */
    float norm_eps;
    float clip_qkv;      /* 0: no clipping */
    float rope_scale;    /* of cosines and sines */
    double *frequencies; /* [head_dim / 2] radians per position, with RoPE; owned */
    float *slopes;       /* [heads], with ALiBi; owned */
} tc__arch;

/* Optional tensors are NULL. Vectors are F32. */
typedef struct tc__layer {
    const tc__tensor *attn_norm, *attn_norm_bias; /* [hidden] */
    const tc__tensor *qkv;                        /* [(heads + 2 kv_heads) * head_dim, hidden] */
    const tc__tensor *qkv_bias;                   /* [(heads + 2 kv_heads) * head_dim] */
    const tc__tensor *q_norm, *k_norm;            /* [head_dim], both or none */
    const tc__tensor *o;                          /* [hidden, heads * head_dim] */
    const tc__tensor *mlp_norm, *mlp_norm_bias;   /* [hidden]; none: attention's normed input */
    /* Gated: [2 * intermediate, hidden], rows of gate and up interleaved in eights; else
     * [intermediate, hidden]. */
    const tc__tensor *gate_up;
    const tc__tensor *act_scales; /* [intermediate] */
    const tc__tensor *down;       /* [hidden, intermediate] */
} tc__layer;

/* A model file understood: pointers into the mapped file. */
typedef struct tc__weights {
    tc__arch arch;
    const tc__tensor *embed, *head;     /* head == embed when tied */
    const tc__tensor *norm, *norm_bias; /* [hidden], the final norm */
    tc__layer *layers;                  /* [arch.layers] */
    /* Of all tensors, in the file's order, gaps included; NULL: random numbers, made on the device
     * (shapes.h). */
    const uint8_t *data;
    bool in_file; /* data are pages of a file: the system counts them as available memory */
    size_t data_bytes;
    int fd; /* of that file, and where in it the data begin; only with in_file */
    size_t data_at;
    size_t parameters;       /* weights, embeddings included */
    size_t layer_parameters; /* of these, in the matrices of the layers */
    size_t tensor_bytes;     /* of all tensors */
    size_t bytes_per_token;  /* read to decode one token, KV cache excluded */
    bool head_in_8;          /* the device makes 8 bits of the head's numbers, */
    size_t head_apart_bytes; /* and so many lie apart: the embedding needs the file's, too, or there
                                are 8 rows at most, which take more as a block of 16 */
} tc__weights;

/* Reads arch.* (an unknown arch.* key is refused by name), finds every tensor of the family and
 * checks its type and full shape. On failure nothing is held. The file must outlive the weights.
 * Errors: FORMAT, UNSUPPORTED, MEMORY. */
TC_INTERNAL int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err);
TC_INTERNAL void tc__weights_close(tc__weights *weights);

/* The head shall have 8 bits: whole numbers, and for each row and group of columns a scale in
 * binary16 (quantise_rows of src/kernels/rows.cuh). Changes what is said of the model; its numbers
 * are the device's work. */
TC_INTERNAL void tc__weights_head_in_8(tc__weights *weights);
/* Columns of a group of it; its bytes, whole blocks of 16 rows. */
TC_INTERNAL size_t tc__head_8_group(const tc__weights *weights);
TC_INTERNAL size_t tc__head_8_bytes(const tc__weights *weights);

/* "W4A16 g128", "W16A16, int8 head", ... into text. */
TC_INTERNAL void tc__precision_name(const tc__weights *weights, char *text, size_t size);

#endif /* TC_ARCH_H */

/* ======== src/shapes.h ======== */

/* shapes - the shapes of known models with random weights: how fast would a model be, before it is
 * there? A shape is a model file that no disk holds: the same tables of metadata and tensors, read
 * by the same code. It has no tokenizer.
 *
 * The weights are a pure function of the shape and the precision, the same on every device. They
 * are such that activations keep the size that they have in a trained model and logits are finite.
 */
#ifndef TC_SHAPES_H
#define TC_SHAPES_H


/* How a tensor is filled, in words of 64 bits. Word i of the tensor, which is word n of the data of
 * all tensors, is
 *
 *     i % unit < random ? (hash(n) & mask) | bits : tail
 *
 * where hash(n) is the output of SplitMix64 in the state n * 0x9e3779b97f4a7c15, for n >= 1 thus
 * its n-th output when started at 0.
 * One rule for all types, so that the GPU needs one kernel:
 *     *_bias       both signs, 2^-4 <= magnitude < 2^-3
 *     binary32     the others: 1 <= value < 1.25
 *     binary16     both signs, 2^-7 <= magnitude < 2^-6
 *     W4           any q; scale 0.002; zero 7 in rows 0-7, 8 in rows 8-15: the mean is 0 */
typedef struct tc__pattern {
    unsigned long long unit, random, mask, bits, tail;
} tc__pattern;

TC_INTERNAL tc__pattern tc__shape_pattern(const tc__tensor *tensor);

/* A model's shape: the keys arch.* and the optional tensors of docs/format.md. What is zero is
 * absent; rope_theta is needed with RoPE. MPT's slopes come with ALiBi. */
typedef struct tc__shape_spec {
    const char *name, *family;
    uint32_t hidden_size, intermediate_size, layers, heads, kv_heads, head_dim;
    uint32_t vocab_size, max_seq_len;
    double norm_eps, rope_theta;
    double rope_scale, clip_qkv;
    uint32_t norm, position, activation; /* TC__NORM_RMS, ... */
    uint32_t gated, parallel;
    bool shared_norm; /* no mlp_norm */
    bool norm_bias, qkv_bias, qk_norm, act_scales;
    bool tied; /* no head */
} tc__shape_spec;

/* Makes the tables of a shape; release with tc__model_file_close. precision and group_size as in
 * tc_model_open_shape. The sizes must be multiples of 16 (not the vocabulary); tc__weights_open
 * checks the rest. With `in_memory` the tensors' data are made too, by params->threads threads
 * (0: one per processor), and params->progress is told and may cancel; else there are no data. The
 * strings must outlive the file. Errors: ARGUMENT (precision, group size, sizes), MEMORY,
 * CANCELLED. */
TC_INTERNAL int tc__shape_make(const tc__shape_spec *spec, const char *precision, int group_size,
                               bool in_memory, const tc_model_params *params, tc__model_file *file,
                               tc_error *err);

/* The same for a built-in shape. Errors: ARGUMENT too for an unknown name. */
TC_INTERNAL int tc__shape_open(const char *name, const char *precision, int group_size,
                               bool in_memory, const tc_model_params *params, tc__model_file *file,
                               tc_error *err);

#endif /* TC_SHAPES_H */

/* ======== src/unicode.h ======== */

/* unicode - what tokenizers ask about characters: their class, and canonical composition (NFC).
 *
 * The tables (unicode_tables.h, generated) are lists of the code points at which something changes,
 * looked up by halving; ASCII takes a shortcut. No state, no allocation except into the buffer.
 */
#ifndef TC_UNICODE_H
#define TC_UNICODE_H


/* Classes of characters: \p{L}, \p{N}, and punctuation as the tokenizers package has it (\p{P} of
 * an older Unicode, and all of ASCII's). Spaces are Unicode's White_Space. */
enum {
    TC__CHAR_OTHER = 0,
    TC__CHAR_LETTER = 1,
    TC__CHAR_NUMBER = 2,
    TC__CHAR_PUNCTUATION = 3,
    TC__CHAR_SPACE = 8
};

TC_INTERNAL int tc__char_class(uint32_t code);

/* \w: letters, marks, decimal digits, connecting punctuation. */
TC_INTERNAL bool tc__char_is_word(uint32_t code);

/* Appends the canonical composition (NFC) of a valid UTF-8 text. Linear. Out of memory shows in
 * out->failed. */
TC_INTERNAL void tc__nfc(const char *text, size_t len, tc__buf *out);

#endif /* TC_UNICODE_H */

/* ======== src/unicode_tables.h ======== */

/* unicode_tables - generated by src/make_unicode.py, do not edit. From the tokenizers package
 * 0.23.3 and Unicode 14.0.0. Included by unicode.c only, which says what the tables are. */
#ifndef TC_UNICODE_TABLES_H
#define TC_UNICODE_TABLES_H


/* clang-format off */

static const uint32_t unicode_classes[] = {
    0x2103, 0x3006, 0x3A03, 0x4105, 0x5B03, 0x5F07, 0x6003, 0x6105, 0x7B03, 0x7F00, 0xA103, 0xA200,
    0xA703, 0xA800, 0xAA05, 0xAB03, 0xAC00, 0xB202, 0xB400, 0xB505, 0xB603, 0xB800, 0xB902, 0xBA05,
    0xBB03, 0xBC02, 0xBF03, 0xC005, 0xD700, 0xD805, 0xF700, 0xF805, 0x2C200, 0x2C605, 0x2D200,
    0x2E005, 0x2E500, 0x2EC05, 0x2ED00, 0x2EE05, 0x2EF00, 0x30004, 0x37005, 0x37500, 0x37605,
    0x37800, 0x37A05, 0x37E03, 0x37F05, 0x38000, 0x38605, 0x38703, 0x38805, 0x38B00, 0x38C05,
    0x38D00, 0x38E05, 0x3A200, 0x3A305, 0x3F600, 0x3F705, 0x48200, 0x48304, 0x48A05, 0x53000,
    0x53105, 0x55700, 0x55905, 0x55A03, 0x56005, 0x58903, 0x58B00, 0x59104, 0x5BE03, 0x5BF04,
    0x5C003, 0x5C104, 0x5C303, 0x5C404, 0x5C603, 0x5C704, 0x5C800, 0x5D005, 0x5EB00, 0x5EF05,
    0x5F303, 0x5F500, 0x60903, 0x60B00, 0x60C03, 0x60E00, 0x61004, 0x61B03, 0x61C00, 0x61E03,
    0x62005, 0x64B04, 0x66006, 0x66A03, 0x66E05, 0x67004, 0x67105, 0x6D403, 0x6D505, 0x6D604,
    0x6DD00, 0x6DF04, 0x6E505, 0x6E704, 0x6E900, 0x6EA04, 0x6EE05, 0x6F006, 0x6FA05, 0x6FD00,
    0x6FF05, 0x70003, 0x70E00, 0x71005, 0x71104, 0x71205, 0x73004, 0x74B00, 0x74D05, 0x7A604,
    0x7B105, 0x7B200, 0x7C006, 0x7CA05, 0x7EB04, 0x7F405, 0x7F600, 0x7F703, 0x7FA05, 0x7FB00,
    0x7FD04, 0x7FE00, 0x80005, 0x81604, 0x81A05, 0x81B04, 0x82405, 0x82504, 0x82805, 0x82904,
    0x82E00, 0x83003, 0x83F00, 0x84005, 0x85904, 0x85C00, 0x85E03, 0x85F00, 0x86005, 0x86B00,
    0x87005, 0x88800, 0x88905, 0x88F00, 0x89704, 0x8A005, 0x8CA04, 0x8E200, 0x8E304, 0x90405,
    0x93A04, 0x93D05, 0x93E04, 0x95005, 0x95104, 0x95805, 0x96204, 0x96403, 0x96606, 0x97003,
    0x97105, 0x98104, 0x98400, 0x98505, 0x98D00, 0x98F05, 0x99100, 0x99305, 0x9A900, 0x9AA05,
    0x9B100, 0x9B205, 0x9B300, 0x9B605, 0x9BA00, 0x9BC04, 0x9BD05, 0x9BE04, 0x9C500, 0x9C704,
    0x9C900, 0x9CB04, 0x9CE05, 0x9CF00, 0x9D704, 0x9D800, 0x9DC05, 0x9DE00, 0x9DF05, 0x9E204,
    0x9E400, 0x9E606, 0x9F005, 0x9F200, 0x9F402, 0x9FA00, 0x9FC05, 0x9FD00, 0x9FE04, 0x9FF00,
    0xA0104, 0xA0400, 0xA0505, 0xA0B00, 0xA0F05, 0xA1100, 0xA1305, 0xA2900, 0xA2A05, 0xA3100,
    0xA3205, 0xA3400, 0xA3505, 0xA3700, 0xA3805, 0xA3A00, 0xA3C04, 0xA3D00, 0xA3E04, 0xA4300,
    0xA4704, 0xA4900, 0xA4B04, 0xA4E00, 0xA5104, 0xA5200, 0xA5905, 0xA5D00, 0xA5E05, 0xA5F00,
    0xA6606, 0xA7004, 0xA7205, 0xA7504, 0xA7600, 0xA8104, 0xA8400, 0xA8505, 0xA8E00, 0xA8F05,
    0xA9200, 0xA9305, 0xAA900, 0xAAA05, 0xAB100, 0xAB205, 0xAB400, 0xAB505, 0xABA00, 0xABC04,
    0xABD05, 0xABE04, 0xAC600, 0xAC704, 0xACA00, 0xACB04, 0xACE00, 0xAD005, 0xAD100, 0xAE005,
    0xAE204, 0xAE400, 0xAE606, 0xAF003, 0xAF100, 0xAF905, 0xAFA04, 0xB0000, 0xB0104, 0xB0400,
    0xB0505, 0xB0D00, 0xB0F05, 0xB1100, 0xB1305, 0xB2900, 0xB2A05, 0xB3100, 0xB3205, 0xB3400,
    0xB3505, 0xB3A00, 0xB3C04, 0xB3D05, 0xB3E04, 0xB4500, 0xB4704, 0xB4900, 0xB4B04, 0xB4E00,
    0xB5504, 0xB5800, 0xB5C05, 0xB5E00, 0xB5F05, 0xB6204, 0xB6400, 0xB6606, 0xB7000, 0xB7105,
    0xB7202, 0xB7800, 0xB8204, 0xB8305, 0xB8400, 0xB8505, 0xB8B00, 0xB8E05, 0xB9100, 0xB9205,
    0xB9600, 0xB9905, 0xB9B00, 0xB9C05, 0xB9D00, 0xB9E05, 0xBA000, 0xBA305, 0xBA500, 0xBA805,
    0xBAB00, 0xBAE05, 0xBBA00, 0xBBE04, 0xBC300, 0xBC604, 0xBC900, 0xBCA04, 0xBCE00, 0xBD005,
    0xBD100, 0xBD704, 0xBD800, 0xBE606, 0xBF002, 0xBF300, 0xC0004, 0xC0505, 0xC0D00, 0xC0E05,
    0xC1100, 0xC1205, 0xC2900, 0xC2A05, 0xC3A00, 0xC3C04, 0xC3D05, 0xC3E04, 0xC4500, 0xC4604,
    0xC4900, 0xC4A04, 0xC4E00, 0xC5504, 0xC5700, 0xC5805, 0xC5B00, 0xC5D05, 0xC5E00, 0xC6005,
    0xC6204, 0xC6400, 0xC6606, 0xC7000, 0xC7802, 0xC7F00, 0xC8005, 0xC8104, 0xC8400, 0xC8505,
    0xC8D00, 0xC8E05, 0xC9100, 0xC9205, 0xCA900, 0xCAA05, 0xCB400, 0xCB505, 0xCBA00, 0xCBC04,
    0xCBD05, 0xCBE04, 0xCC500, 0xCC604, 0xCC900, 0xCCA04, 0xCCE00, 0xCD504, 0xCD700, 0xCDD05,
    0xCDF00, 0xCE005, 0xCE204, 0xCE400, 0xCE606, 0xCF000, 0xCF105, 0xCF304, 0xCF400, 0xD0004,
    0xD0405, 0xD0D00, 0xD0E05, 0xD1100, 0xD1205, 0xD3B04, 0xD3D05, 0xD3E04, 0xD4500, 0xD4604,
    0xD4900, 0xD4A04, 0xD4E05, 0xD4F00, 0xD5405, 0xD5704, 0xD5802, 0xD5F05, 0xD6204, 0xD6400,
    0xD6606, 0xD7002, 0xD7900, 0xD7A05, 0xD8000, 0xD8104, 0xD8400, 0xD8505, 0xD9700, 0xD9A05,
    0xDB200, 0xDB305, 0xDBC00, 0xDBD05, 0xDBE00, 0xDC005, 0xDC700, 0xDCA04, 0xDCB00, 0xDCF04,
    0xDD500, 0xDD604, 0xDD700, 0xDD804, 0xDE000, 0xDE606, 0xDF000, 0xDF204, 0xDF403, 0xDF500,
    0xE0105, 0xE3104, 0xE3205, 0xE3404, 0xE3B00, 0xE4005, 0xE4704, 0xE4F03, 0xE5006, 0xE5A03,
    0xE5C00, 0xE8105, 0xE8300, 0xE8405, 0xE8500, 0xE8605, 0xE8B00, 0xE8C05, 0xEA400, 0xEA505,
    0xEA600, 0xEA705, 0xEB104, 0xEB205, 0xEB404, 0xEBD05, 0xEBE00, 0xEC005, 0xEC500, 0xEC605,
    0xEC700, 0xEC804, 0xECF00, 0xED006, 0xEDA00, 0xEDC05, 0xEE000, 0xF0005, 0xF0100, 0xF0403,
    0xF1300, 0xF1403, 0xF1500, 0xF1804, 0xF1A00, 0xF2006, 0xF2A02, 0xF3400, 0xF3504, 0xF3600,
    0xF3704, 0xF3800, 0xF3904, 0xF3A03, 0xF3E04, 0xF4005, 0xF4800, 0xF4905, 0xF6D00, 0xF7104,
    0xF8503, 0xF8604, 0xF8805, 0xF8D04, 0xF9800, 0xF9904, 0xFBD00, 0xFC604, 0xFC700, 0xFD003,
    0xFD500, 0xFD903, 0xFDB00, 0x100005, 0x102B04, 0x103F05, 0x104006, 0x104A03, 0x105005, 0x105604,
    0x105A05, 0x105E04, 0x106105, 0x106204, 0x106505, 0x106704, 0x106E05, 0x107104, 0x107505,
    0x108204, 0x108E05, 0x108F04, 0x109006, 0x109A04, 0x109E00, 0x10A005, 0x10C600, 0x10C705,
    0x10C800, 0x10CD05, 0x10CE00, 0x10D005, 0x10FB03, 0x10FC05, 0x124900, 0x124A05, 0x124E00,
    0x125005, 0x125700, 0x125805, 0x125900, 0x125A05, 0x125E00, 0x126005, 0x128900, 0x128A05,
    0x128E00, 0x129005, 0x12B100, 0x12B205, 0x12B600, 0x12B805, 0x12BF00, 0x12C005, 0x12C100,
    0x12C205, 0x12C600, 0x12C805, 0x12D700, 0x12D805, 0x131100, 0x131205, 0x131600, 0x131805,
    0x135B00, 0x135D04, 0x136003, 0x136902, 0x137D00, 0x138005, 0x139000, 0x13A005, 0x13F600,
    0x13F805, 0x13FE00, 0x140003, 0x140105, 0x166D03, 0x166F05, 0x168000, 0x168105, 0x169B03,
    0x169D00, 0x16A005, 0x16EB03, 0x16EE06, 0x16F105, 0x16F900, 0x170005, 0x171204, 0x171600,
    0x171F05, 0x173204, 0x173503, 0x173700, 0x174005, 0x175204, 0x175400, 0x176005, 0x176D00,
    0x176E05, 0x177100, 0x177204, 0x177400, 0x178005, 0x17B404, 0x17D403, 0x17D705, 0x17D803,
    0x17DB00, 0x17DC05, 0x17DD04, 0x17DE00, 0x17E006, 0x17EA00, 0x17F002, 0x17FA00, 0x180003,
    0x180B04, 0x180E00, 0x180F04, 0x181006, 0x181A00, 0x182005, 0x187900, 0x188005, 0x188504,
    0x188705, 0x18A904, 0x18AA05, 0x18AB00, 0x18B005, 0x18F600, 0x190005, 0x191F00, 0x192004,
    0x192C00, 0x193004, 0x193C00, 0x194403, 0x194606, 0x195005, 0x196E00, 0x197005, 0x197500,
    0x198005, 0x19AC00, 0x19B005, 0x19CA00, 0x19D006, 0x19DA02, 0x19DB00, 0x1A0005, 0x1A1704,
    0x1A1C00, 0x1A1E03, 0x1A2005, 0x1A5504, 0x1A5F00, 0x1A6004, 0x1A7D00, 0x1A7F04, 0x1A8006,
    0x1A8A00, 0x1A9006, 0x1A9A00, 0x1AA003, 0x1AA705, 0x1AA803, 0x1AAE00, 0x1AB004, 0x1ACF00,
    0x1B0004, 0x1B0505, 0x1B3404, 0x1B4505, 0x1B4D00, 0x1B5006, 0x1B5A03, 0x1B6100, 0x1B6B04,
    0x1B7400, 0x1B8004, 0x1B8305, 0x1BA104, 0x1BAE05, 0x1BB006, 0x1BBA05, 0x1BE604, 0x1BF400,
    0x1BFC03, 0x1C0005, 0x1C2404, 0x1C3800, 0x1C3B03, 0x1C4006, 0x1C4A00, 0x1C4D05, 0x1C5006,
    0x1C5A05, 0x1C7E03, 0x1C8005, 0x1C8B00, 0x1C9005, 0x1CBB00, 0x1CBD05, 0x1CC003, 0x1CC800,
    0x1CD004, 0x1CD303, 0x1CD404, 0x1CE905, 0x1CED04, 0x1CEE05, 0x1CF404, 0x1CF505, 0x1CF704,
    0x1CFA05, 0x1CFB00, 0x1D0005, 0x1DC004, 0x1E0005, 0x1F1600, 0x1F1805, 0x1F1E00, 0x1F2005,
    0x1F4600, 0x1F4805, 0x1F4E00, 0x1F5005, 0x1F5800, 0x1F5905, 0x1F5A00, 0x1F5B05, 0x1F5C00,
    0x1F5D05, 0x1F5E00, 0x1F5F05, 0x1F7E00, 0x1F8005, 0x1FB500, 0x1FB605, 0x1FBD00, 0x1FBE05,
    0x1FBF00, 0x1FC205, 0x1FC500, 0x1FC605, 0x1FCD00, 0x1FD005, 0x1FD400, 0x1FD605, 0x1FDC00,
    0x1FE005, 0x1FED00, 0x1FF205, 0x1FF500, 0x1FF605, 0x1FFD00, 0x200C04, 0x200E00, 0x201003,
    0x202800, 0x203003, 0x203F07, 0x204103, 0x204400, 0x204503, 0x205200, 0x205303, 0x205407,
    0x205503, 0x205F00, 0x207002, 0x207105, 0x207200, 0x207402, 0x207A00, 0x207D03, 0x207F05,
    0x208002, 0x208A00, 0x208D03, 0x208F00, 0x209005, 0x209D00, 0x20D004, 0x20F100, 0x210205,
    0x210300, 0x210705, 0x210800, 0x210A05, 0x211400, 0x211505, 0x211600, 0x211905, 0x211E00,
    0x212405, 0x212500, 0x212605, 0x212700, 0x212805, 0x212900, 0x212A05, 0x212E00, 0x212F05,
    0x213A00, 0x213C05, 0x214000, 0x214505, 0x214A00, 0x214E05, 0x214F00, 0x215002, 0x216006,
    0x218305, 0x218506, 0x218902, 0x218A00, 0x230803, 0x230C00, 0x232903, 0x232B00, 0x246002,
    0x249C00, 0x24B604, 0x24EA02, 0x250000, 0x276803, 0x277602, 0x279400, 0x27C503, 0x27C700,
    0x27E603, 0x27F000, 0x298303, 0x299900, 0x29D803, 0x29DC00, 0x29FC03, 0x29FE00, 0x2C0005,
    0x2CE500, 0x2CEB05, 0x2CEF04, 0x2CF205, 0x2CF400, 0x2CF903, 0x2CFD02, 0x2CFE03, 0x2D0005,
    0x2D2600, 0x2D2705, 0x2D2800, 0x2D2D05, 0x2D2E00, 0x2D3005, 0x2D6800, 0x2D6F05, 0x2D7003,
    0x2D7100, 0x2D7F04, 0x2D8005, 0x2D9700, 0x2DA005, 0x2DA700, 0x2DA805, 0x2DAF00, 0x2DB005,
    0x2DB700, 0x2DB805, 0x2DBF00, 0x2DC005, 0x2DC700, 0x2DC805, 0x2DCF00, 0x2DD005, 0x2DD700,
    0x2DD805, 0x2DDF00, 0x2DE004, 0x2E0003, 0x2E2F05, 0x2E3003, 0x2E4300, 0x300103, 0x300400,
    0x300505, 0x300706, 0x300803, 0x301200, 0x301403, 0x302000, 0x302106, 0x302A04, 0x303003,
    0x303105, 0x303600, 0x303806, 0x303B05, 0x303D03, 0x303E00, 0x304105, 0x309700, 0x309904,
    0x309B00, 0x309D05, 0x30A003, 0x30A105, 0x30FB03, 0x30FC05, 0x310000, 0x310505, 0x313000,
    0x313105, 0x318F00, 0x319202, 0x319600, 0x31A005, 0x31C000, 0x31F005, 0x320000, 0x322002,
    0x322A00, 0x324802, 0x325000, 0x325102, 0x326000, 0x328002, 0x328A00, 0x32B102, 0x32C000,
    0x340005, 0x4DC000, 0x4E0005, 0xA48D00, 0xA4D005, 0xA4FE03, 0xA50005, 0xA60D03, 0xA61005,
    0xA62006, 0xA62A05, 0xA62C00, 0xA64005, 0xA66F04, 0xA67303, 0xA67404, 0xA67E03, 0xA67F05,
    0xA69E04, 0xA6A005, 0xA6E606, 0xA6F004, 0xA6F203, 0xA6F800, 0xA71705, 0xA72000, 0xA72205,
    0xA78900, 0xA78B05, 0xA7CE00, 0xA7D005, 0xA7D200, 0xA7D305, 0xA7D400, 0xA7D505, 0xA7DD00,
    0xA7F205, 0xA80204, 0xA80305, 0xA80604, 0xA80705, 0xA80B04, 0xA80C05, 0xA82304, 0xA82800,
    0xA82C04, 0xA82D00, 0xA83002, 0xA83600, 0xA84005, 0xA87403, 0xA87800, 0xA88004, 0xA88205,
    0xA8B404, 0xA8C600, 0xA8CE03, 0xA8D006, 0xA8DA00, 0xA8E004, 0xA8F205, 0xA8F803, 0xA8FB05,
    0xA8FC03, 0xA8FD05, 0xA8FF04, 0xA90006, 0xA90A05, 0xA92604, 0xA92E03, 0xA93005, 0xA94704,
    0xA95400, 0xA95F03, 0xA96005, 0xA97D00, 0xA98004, 0xA98405, 0xA9B304, 0xA9C103, 0xA9CE00,
    0xA9CF05, 0xA9D006, 0xA9DA00, 0xA9DE03, 0xA9E005, 0xA9E504, 0xA9E605, 0xA9F006, 0xA9FA05,
    0xA9FF00, 0xAA0005, 0xAA2904, 0xAA3700, 0xAA4005, 0xAA4304, 0xAA4405, 0xAA4C04, 0xAA4E00,
    0xAA5006, 0xAA5A00, 0xAA5C03, 0xAA6005, 0xAA7700, 0xAA7A05, 0xAA7B04, 0xAA7E05, 0xAAB004,
    0xAAB105, 0xAAB204, 0xAAB505, 0xAAB704, 0xAAB905, 0xAABE04, 0xAAC005, 0xAAC104, 0xAAC205,
    0xAAC300, 0xAADB05, 0xAADE03, 0xAAE005, 0xAAEB04, 0xAAF003, 0xAAF205, 0xAAF504, 0xAAF700,
    0xAB0105, 0xAB0700, 0xAB0905, 0xAB0F00, 0xAB1105, 0xAB1700, 0xAB2005, 0xAB2700, 0xAB2805,
    0xAB2F00, 0xAB3005, 0xAB5B00, 0xAB5C05, 0xAB6A00, 0xAB7005, 0xABE304, 0xABEB03, 0xABEC04,
    0xABEE00, 0xABF006, 0xABFA00, 0xAC0005, 0xD7A400, 0xD7B005, 0xD7C700, 0xD7CB05, 0xD7FC00,
    0xF90005, 0xFA6E00, 0xFA7005, 0xFADA00, 0xFB0005, 0xFB0700, 0xFB1305, 0xFB1800, 0xFB1D05,
    0xFB1E04, 0xFB1F05, 0xFB2900, 0xFB2A05, 0xFB3700, 0xFB3805, 0xFB3D00, 0xFB3E05, 0xFB3F00,
    0xFB4005, 0xFB4200, 0xFB4305, 0xFB4500, 0xFB4605, 0xFBB200, 0xFBD305, 0xFD3E03, 0xFD4000,
    0xFD5005, 0xFD9000, 0xFD9205, 0xFDC800, 0xFDF005, 0xFDFC00, 0xFE0004, 0xFE1003, 0xFE1A00,
    0xFE2004, 0xFE3003, 0xFE3307, 0xFE3503, 0xFE4D07, 0xFE5003, 0xFE5300, 0xFE5403, 0xFE6200,
    0xFE6303, 0xFE6400, 0xFE6803, 0xFE6900, 0xFE6A03, 0xFE6C00, 0xFE7005, 0xFE7500, 0xFE7605,
    0xFEFD00, 0xFF0103, 0xFF0400, 0xFF0503, 0xFF0B00, 0xFF0C03, 0xFF1006, 0xFF1A03, 0xFF1C00,
    0xFF1F03, 0xFF2105, 0xFF3B03, 0xFF3E00, 0xFF3F07, 0xFF4000, 0xFF4105, 0xFF5B03, 0xFF5C00,
    0xFF5D03, 0xFF5E00, 0xFF5F03, 0xFF6605, 0xFFBF00, 0xFFC205, 0xFFC800, 0xFFCA05, 0xFFD000,
    0xFFD205, 0xFFD800, 0xFFDA05, 0xFFDD00, 0x1000005, 0x1000C00, 0x1000D05, 0x1002700, 0x1002805,
    0x1003B00, 0x1003C05, 0x1003E00, 0x1003F05, 0x1004E00, 0x1005005, 0x1005E00, 0x1008005,
    0x100FB00, 0x1010003, 0x1010300, 0x1010702, 0x1013400, 0x1014006, 0x1017502, 0x1017900,
    0x1018A02, 0x1018C00, 0x101FD04, 0x101FE00, 0x1028005, 0x1029D00, 0x102A005, 0x102D100,
    0x102E004, 0x102E102, 0x102FC00, 0x1030005, 0x1032002, 0x1032400, 0x1032D05, 0x1034106,
    0x1034205, 0x1034A06, 0x1034B00, 0x1035005, 0x1037604, 0x1037B00, 0x1038005, 0x1039E00,
    0x1039F03, 0x103A005, 0x103C400, 0x103C805, 0x103D003, 0x103D106, 0x103D600, 0x1040005,
    0x1049E00, 0x104A006, 0x104AA00, 0x104B005, 0x104D400, 0x104D805, 0x104FC00, 0x1050005,
    0x1052800, 0x1053005, 0x1056400, 0x1056F03, 0x1057005, 0x1057B00, 0x1057C05, 0x1058B00,
    0x1058C05, 0x1059300, 0x1059405, 0x1059600, 0x1059705, 0x105A200, 0x105A305, 0x105B200,
    0x105B305, 0x105BA00, 0x105BB05, 0x105BD00, 0x105C005, 0x105F400, 0x1060005, 0x1073700,
    0x1074005, 0x1075600, 0x1076005, 0x1076800, 0x1078005, 0x1078600, 0x1078705, 0x107B100,
    0x107B205, 0x107BB00, 0x1080005, 0x1080600, 0x1080805, 0x1080900, 0x1080A05, 0x1083600,
    0x1083705, 0x1083900, 0x1083C05, 0x1083D00, 0x1083F05, 0x1085600, 0x1085703, 0x1085802,
    0x1086005, 0x1087700, 0x1087902, 0x1088005, 0x1089F00, 0x108A702, 0x108B000, 0x108E005,
    0x108F300, 0x108F405, 0x108F600, 0x108FB02, 0x1090005, 0x1091602, 0x1091C00, 0x1091F03,
    0x1092005, 0x1093A00, 0x1093F03, 0x1094000, 0x1098005, 0x109B800, 0x109BC02, 0x109BE05,
    0x109C002, 0x109D000, 0x109D202, 0x10A0005, 0x10A0104, 0x10A0400, 0x10A0504, 0x10A0700,
    0x10A0C04, 0x10A1005, 0x10A1400, 0x10A1505, 0x10A1800, 0x10A1905, 0x10A3600, 0x10A3804,
    0x10A3B00, 0x10A3F04, 0x10A4002, 0x10A4900, 0x10A5003, 0x10A5900, 0x10A6005, 0x10A7D02,
    0x10A7F03, 0x10A8005, 0x10A9D02, 0x10AA000, 0x10AC005, 0x10AC800, 0x10AC905, 0x10AE504,
    0x10AE700, 0x10AEB02, 0x10AF003, 0x10AF700, 0x10B0005, 0x10B3600, 0x10B3903, 0x10B4005,
    0x10B5600, 0x10B5802, 0x10B6005, 0x10B7300, 0x10B7802, 0x10B8005, 0x10B9200, 0x10B9903,
    0x10B9D00, 0x10BA902, 0x10BB000, 0x10C0005, 0x10C4900, 0x10C8005, 0x10CB300, 0x10CC005,
    0x10CF300, 0x10CFA02, 0x10D0005, 0x10D2404, 0x10D2800, 0x10D3006, 0x10D3A00, 0x10D4006,
    0x10D4A05, 0x10D6600, 0x10D6904, 0x10D6E00, 0x10D6F05, 0x10D8600, 0x10E6002, 0x10E7F00,
    0x10E8005, 0x10EAA00, 0x10EAB04, 0x10EAD00, 0x10EB005, 0x10EB200, 0x10EC205, 0x10EC500,
    0x10EFC04, 0x10F0005, 0x10F1D02, 0x10F2705, 0x10F2800, 0x10F3005, 0x10F4604, 0x10F5102,
    0x10F5500, 0x10F7005, 0x10F8204, 0x10F8600, 0x10FB005, 0x10FC502, 0x10FCC00, 0x10FE005,
    0x10FF700, 0x1100004, 0x1100305, 0x1103804, 0x1104703, 0x1104E00, 0x1105202, 0x1106606,
    0x1107004, 0x1107105, 0x1107304, 0x1107505, 0x1107600, 0x1107F04, 0x1108305, 0x110B004,
    0x110BB03, 0x110BD00, 0x110BE03, 0x110C204, 0x110C300, 0x110D005, 0x110E900, 0x110F006,
    0x110FA00, 0x1110004, 0x1110305, 0x1112704, 0x1113500, 0x1113606, 0x1114003, 0x1114405,
    0x1114504, 0x1114705, 0x1114800, 0x1115005, 0x1117304, 0x1117403, 0x1117605, 0x1117700,
    0x1118004, 0x1118305, 0x111B304, 0x111C105, 0x111C503, 0x111C907, 0x111CA04, 0x111CD03,
    0x111CE04, 0x111D006, 0x111DA05, 0x111DB03, 0x111DC05, 0x111DD03, 0x111E000, 0x111E102,
    0x111F500, 0x1120005, 0x1121200, 0x1121305, 0x1122C04, 0x1123803, 0x1123E04, 0x1123F05,
    0x1124104, 0x1124200, 0x1128005, 0x1128700, 0x1128805, 0x1128900, 0x1128A05, 0x1128E00,
    0x1128F05, 0x1129E00, 0x1129F05, 0x112A903, 0x112AA00, 0x112B005, 0x112DF04, 0x112EB00,
    0x112F006, 0x112FA00, 0x1130004, 0x1130400, 0x1130505, 0x1130D00, 0x1130F05, 0x1131100,
    0x1131305, 0x1132900, 0x1132A05, 0x1133100, 0x1133205, 0x1133400, 0x1133505, 0x1133A00,
    0x1133B04, 0x1133D05, 0x1133E04, 0x1134500, 0x1134704, 0x1134900, 0x1134B04, 0x1134E00,
    0x1135005, 0x1135100, 0x1135704, 0x1135800, 0x1135D05, 0x1136204, 0x1136400, 0x1136604,
    0x1136D00, 0x1137004, 0x1137500, 0x1138005, 0x1138A00, 0x1138B05, 0x1138C00, 0x1138E05,
    0x1138F00, 0x1139005, 0x113B600, 0x113B705, 0x113B804, 0x113C100, 0x113C204, 0x113C300,
    0x113C504, 0x113C600, 0x113C704, 0x113CB00, 0x113CC04, 0x113D105, 0x113D204, 0x113D305,
    0x113D400, 0x113E104, 0x113E300, 0x1140005, 0x1143504, 0x1144705, 0x1144B00, 0x1145006,
    0x1145A00, 0x1145E04, 0x1145F05, 0x1146200, 0x1148005, 0x114B004, 0x114C405, 0x114C603,
    0x114C705, 0x114C800, 0x114D006, 0x114DA00, 0x1158005, 0x115AF04, 0x115B600, 0x115B804,
    0x115C103, 0x115D805, 0x115DC04, 0x115DE00, 0x1160005, 0x1163004, 0x1164103, 0x1164405,
    0x1164500, 0x1165006, 0x1165A00, 0x1168005, 0x116AB04, 0x116B805, 0x116B900, 0x116C006,
    0x116CA00, 0x116D006, 0x116E400, 0x1170005, 0x1171B00, 0x1171D04, 0x1172C00, 0x1173006,
    0x1173A02, 0x1173C03, 0x1173F00, 0x1174005, 0x1174700, 0x1180005, 0x1182C04, 0x1183B00,
    0x118A005, 0x118E006, 0x118EA02, 0x118F300, 0x118FF05, 0x1190700, 0x1190905, 0x1190A00,
    0x1190C05, 0x1191400, 0x1191505, 0x1191700, 0x1191805, 0x1193004, 0x1193600, 0x1193704,
    0x1193900, 0x1193B04, 0x1193F05, 0x1194004, 0x1194105, 0x1194204, 0x1194400, 0x1195006,
    0x1195A00, 0x119A005, 0x119A800, 0x119AA05, 0x119D104, 0x119D800, 0x119DA04, 0x119E105,
    0x119E200, 0x119E305, 0x119E404, 0x119E500, 0x11A0005, 0x11A0104, 0x11A0B05, 0x11A3304,
    0x11A3A05, 0x11A3B04, 0x11A3F00, 0x11A4704, 0x11A4800, 0x11A5005, 0x11A5104, 0x11A5C05,
    0x11A8A04, 0x11A9A00, 0x11A9D05, 0x11A9E00, 0x11AB005, 0x11AF900, 0x11BC005, 0x11BE100,
    0x11BF006, 0x11BFA00, 0x11C0005, 0x11C0900, 0x11C0A05, 0x11C2F04, 0x11C3700, 0x11C3804,
    0x11C4005, 0x11C4100, 0x11C5006, 0x11C5A02, 0x11C6D00, 0x11C7205, 0x11C9000, 0x11C9204,
    0x11CA800, 0x11CA904, 0x11CB700, 0x11D0005, 0x11D0700, 0x11D0805, 0x11D0A00, 0x11D0B05,
    0x11D3104, 0x11D3700, 0x11D3A04, 0x11D3B00, 0x11D3C04, 0x11D3E00, 0x11D3F04, 0x11D4605,
    0x11D4704, 0x11D4800, 0x11D5006, 0x11D5A00, 0x11D6005, 0x11D6600, 0x11D6705, 0x11D6900,
    0x11D6A05, 0x11D8A04, 0x11D8F00, 0x11D9004, 0x11D9200, 0x11D9304, 0x11D9805, 0x11D9900,
    0x11DA006, 0x11DAA00, 0x11EE005, 0x11EF304, 0x11EF700, 0x11F0004, 0x11F0205, 0x11F0304,
    0x11F0405, 0x11F1100, 0x11F1205, 0x11F3404, 0x11F3B00, 0x11F3E04, 0x11F4300, 0x11F5006,
    0x11F5A04, 0x11F5B00, 0x11FB005, 0x11FB100, 0x11FC002, 0x11FD500, 0x1200005, 0x1239A00,
    0x1240006, 0x1246F00, 0x1247003, 0x1247500, 0x1248005, 0x1254400, 0x12F9005, 0x12FF100,
    0x1300005, 0x1343000, 0x1344004, 0x1344105, 0x1344704, 0x1345600, 0x1346005, 0x143FB00,
    0x1440005, 0x1464700, 0x1610005, 0x1611E04, 0x1613006, 0x1613A00, 0x1680005, 0x16A3900,
    0x16A4005, 0x16A5F00, 0x16A6006, 0x16A6A00, 0x16A6E03, 0x16A7005, 0x16ABF00, 0x16AC006,
    0x16ACA00, 0x16AD005, 0x16AEE00, 0x16AF004, 0x16AF503, 0x16AF600, 0x16B0005, 0x16B3004,
    0x16B3703, 0x16B3C00, 0x16B4005, 0x16B4403, 0x16B4500, 0x16B5006, 0x16B5A00, 0x16B5B02,
    0x16B6200, 0x16B6305, 0x16B7800, 0x16B7D05, 0x16B9000, 0x16D4005, 0x16D6D00, 0x16D7006,
    0x16D7A00, 0x16E4005, 0x16E8002, 0x16E9700, 0x16F0005, 0x16F4B00, 0x16F4F04, 0x16F5005,
    0x16F5104, 0x16F8800, 0x16F8F04, 0x16F9305, 0x16FA000, 0x16FE005, 0x16FE200, 0x16FE305,
    0x16FE404, 0x16FE500, 0x16FF004, 0x16FF200, 0x1700005, 0x187F800, 0x1880005, 0x18CD600,
    0x18CFF05, 0x18D0900, 0x1AFF005, 0x1AFF400, 0x1AFF505, 0x1AFFC00, 0x1AFFD05, 0x1AFFF00,
    0x1B00005, 0x1B12300, 0x1B13205, 0x1B13300, 0x1B15005, 0x1B15300, 0x1B15505, 0x1B15600,
    0x1B16405, 0x1B16800, 0x1B17005, 0x1B2FC00, 0x1BC0005, 0x1BC6B00, 0x1BC7005, 0x1BC7D00,
    0x1BC8005, 0x1BC8900, 0x1BC9005, 0x1BC9A00, 0x1BC9D04, 0x1BC9F03, 0x1BCA000, 0x1CCF006,
    0x1CCFA00, 0x1CF0004, 0x1CF2E00, 0x1CF3004, 0x1CF4700, 0x1D16504, 0x1D16A00, 0x1D16D04,
    0x1D17300, 0x1D17B04, 0x1D18300, 0x1D18504, 0x1D18C00, 0x1D1AA04, 0x1D1AE00, 0x1D24204,
    0x1D24500, 0x1D2C002, 0x1D2D400, 0x1D2E002, 0x1D2F400, 0x1D36002, 0x1D37900, 0x1D40005,
    0x1D45500, 0x1D45605, 0x1D49D00, 0x1D49E05, 0x1D4A000, 0x1D4A205, 0x1D4A300, 0x1D4A505,
    0x1D4A700, 0x1D4A905, 0x1D4AD00, 0x1D4AE05, 0x1D4BA00, 0x1D4BB05, 0x1D4BC00, 0x1D4BD05,
    0x1D4C400, 0x1D4C505, 0x1D50600, 0x1D50705, 0x1D50B00, 0x1D50D05, 0x1D51500, 0x1D51605,
    0x1D51D00, 0x1D51E05, 0x1D53A00, 0x1D53B05, 0x1D53F00, 0x1D54005, 0x1D54500, 0x1D54605,
    0x1D54700, 0x1D54A05, 0x1D55100, 0x1D55205, 0x1D6A600, 0x1D6A805, 0x1D6C100, 0x1D6C205,
    0x1D6DB00, 0x1D6DC05, 0x1D6FB00, 0x1D6FC05, 0x1D71500, 0x1D71605, 0x1D73500, 0x1D73605,
    0x1D74F00, 0x1D75005, 0x1D76F00, 0x1D77005, 0x1D78900, 0x1D78A05, 0x1D7A900, 0x1D7AA05,
    0x1D7C300, 0x1D7C405, 0x1D7CC00, 0x1D7CE06, 0x1D80000, 0x1DA0004, 0x1DA3700, 0x1DA3B04,
    0x1DA6D00, 0x1DA7504, 0x1DA7600, 0x1DA8404, 0x1DA8500, 0x1DA8703, 0x1DA8C00, 0x1DA9B04,
    0x1DAA000, 0x1DAA104, 0x1DAB000, 0x1DF0005, 0x1DF1F00, 0x1DF2505, 0x1DF2B00, 0x1E00004,
    0x1E00700, 0x1E00804, 0x1E01900, 0x1E01B04, 0x1E02200, 0x1E02304, 0x1E02500, 0x1E02604,
    0x1E02B00, 0x1E03005, 0x1E06E00, 0x1E08F04, 0x1E09000, 0x1E10005, 0x1E12D00, 0x1E13004,
    0x1E13705, 0x1E13E00, 0x1E14006, 0x1E14A00, 0x1E14E05, 0x1E14F00, 0x1E29005, 0x1E2AE04,
    0x1E2AF00, 0x1E2C005, 0x1E2EC04, 0x1E2F006, 0x1E2FA00, 0x1E4D005, 0x1E4EC04, 0x1E4F006,
    0x1E4FA00, 0x1E5D005, 0x1E5EE04, 0x1E5F005, 0x1E5F106, 0x1E5FB00, 0x1E7E005, 0x1E7E700,
    0x1E7E805, 0x1E7EC00, 0x1E7ED05, 0x1E7EF00, 0x1E7F005, 0x1E7FF00, 0x1E80005, 0x1E8C500,
    0x1E8C702, 0x1E8D004, 0x1E8D700, 0x1E90005, 0x1E94404, 0x1E94B05, 0x1E94C00, 0x1E95006,
    0x1E95A00, 0x1EC7102, 0x1ECAC00, 0x1ECAD02, 0x1ECB000, 0x1ECB102, 0x1ECB500, 0x1ED0102,
    0x1ED2E00, 0x1ED2F02, 0x1ED3E00, 0x1EE0005, 0x1EE0400, 0x1EE0505, 0x1EE2000, 0x1EE2105,
    0x1EE2300, 0x1EE2405, 0x1EE2500, 0x1EE2705, 0x1EE2800, 0x1EE2905, 0x1EE3300, 0x1EE3405,
    0x1EE3800, 0x1EE3905, 0x1EE3A00, 0x1EE3B05, 0x1EE3C00, 0x1EE4205, 0x1EE4300, 0x1EE4705,
    0x1EE4800, 0x1EE4905, 0x1EE4A00, 0x1EE4B05, 0x1EE4C00, 0x1EE4D05, 0x1EE5000, 0x1EE5105,
    0x1EE5300, 0x1EE5405, 0x1EE5500, 0x1EE5705, 0x1EE5800, 0x1EE5905, 0x1EE5A00, 0x1EE5B05,
    0x1EE5C00, 0x1EE5D05, 0x1EE5E00, 0x1EE5F05, 0x1EE6000, 0x1EE6105, 0x1EE6300, 0x1EE6405,
    0x1EE6500, 0x1EE6705, 0x1EE6B00, 0x1EE6C05, 0x1EE7300, 0x1EE7405, 0x1EE7800, 0x1EE7905,
    0x1EE7D00, 0x1EE7E05, 0x1EE7F00, 0x1EE8005, 0x1EE8A00, 0x1EE8B05, 0x1EE9C00, 0x1EEA105,
    0x1EEA400, 0x1EEA505, 0x1EEAA00, 0x1EEAB05, 0x1EEBC00, 0x1F10002, 0x1F10D00, 0x1F13004,
    0x1F14A00, 0x1F15004, 0x1F16A00, 0x1F17004, 0x1F18A00, 0x1FBF006, 0x1FBFA00, 0x2000005,
    0x2A6E000, 0x2A70005, 0x2B73A00, 0x2B74005, 0x2B81E00, 0x2B82005, 0x2CEA200, 0x2CEB005,
    0x2EBE100, 0x2EBF005, 0x2EE5E00, 0x2F80005, 0x2FA1E00, 0x3000005, 0x3134B00, 0x3135005,
    0x323B000, 0xE010004, 0xE01F000,
};

static const uint32_t unicode_combining[] = {
    0x300E6, 0x315E8, 0x316DC, 0x31AE8, 0x31BD8, 0x31CDC, 0x321CA, 0x323DC, 0x327CA, 0x329DC,
    0x33401, 0x339DC, 0x33DE6, 0x345F0, 0x346E6, 0x347DC, 0x34AE6, 0x34DDC, 0x34F00, 0x350E6,
    0x353DC, 0x357E6, 0x358E8, 0x359DC, 0x35BE6, 0x35CE9, 0x35DEA, 0x35FE9, 0x360EA, 0x362E9,
    0x363E6, 0x37000, 0x483E6, 0x48800, 0x591DC, 0x592E6, 0x596DC, 0x597E6, 0x59ADE, 0x59BDC,
    0x59CE6, 0x5A2DC, 0x5A8E6, 0x5AADC, 0x5ABE6, 0x5ADDE, 0x5AEE4, 0x5AFE6, 0x5B00A, 0x5B10B,
    0x5B20C, 0x5B30D, 0x5B40E, 0x5B50F, 0x5B610, 0x5B711, 0x5B812, 0x5B913, 0x5BB14, 0x5BC15,
    0x5BD16, 0x5BE00, 0x5BF17, 0x5C000, 0x5C118, 0x5C219, 0x5C300, 0x5C4E6, 0x5C5DC, 0x5C600,
    0x5C712, 0x5C800, 0x610E6, 0x6181E, 0x6191F, 0x61A20, 0x61B00, 0x64B1B, 0x64C1C, 0x64D1D,
    0x64E1E, 0x64F1F, 0x65020, 0x65121, 0x65222, 0x653E6, 0x655DC, 0x657E6, 0x65CDC, 0x65DE6,
    0x65FDC, 0x66000, 0x67023, 0x67100, 0x6D6E6, 0x6DD00, 0x6DFE6, 0x6E3DC, 0x6E4E6, 0x6E500,
    0x6E7E6, 0x6E900, 0x6EADC, 0x6EBE6, 0x6EDDC, 0x6EE00, 0x71124, 0x71200, 0x730E6, 0x731DC,
    0x732E6, 0x734DC, 0x735E6, 0x737DC, 0x73AE6, 0x73BDC, 0x73DE6, 0x73EDC, 0x73FE6, 0x742DC,
    0x743E6, 0x744DC, 0x745E6, 0x746DC, 0x747E6, 0x748DC, 0x749E6, 0x74B00, 0x7EBE6, 0x7F2DC,
    0x7F3E6, 0x7F400, 0x816E6, 0x81A00, 0x81BE6, 0x82400, 0x825E6, 0x82800, 0x829E6, 0x82E00,
    0x859DC, 0x85C00, 0x8D4E6, 0x8E200, 0x8E3DC, 0x8E4E6, 0x8E6DC, 0x8E7E6, 0x8E9DC, 0x8EAE6,
    0x8EDDC, 0x8F01B, 0x8F11C, 0x8F21D, 0x8F3E6, 0x8F6DC, 0x8F7E6, 0x8F9DC, 0x8FBE6, 0x90000,
    0x93C07, 0x93D00, 0x94D09, 0x94E00, 0x951E6, 0x952DC, 0x953E6, 0x95500, 0x9BC07, 0x9BD00,
    0x9CD09, 0x9CE00, 0xA3C07, 0xA3D00, 0xA4D09, 0xA4E00, 0xABC07, 0xABD00, 0xACD09, 0xACE00,
    0xB3C07, 0xB3D00, 0xB4D09, 0xB4E00, 0xBCD09, 0xBCE00, 0xC4D09, 0xC4E00, 0xC5554, 0xC565B,
    0xC5700, 0xCBC07, 0xCBD00, 0xCCD09, 0xCCE00, 0xD4D09, 0xD4E00, 0xDCA09, 0xDCB00, 0xE3867,
    0xE3A09, 0xE3B00, 0xE486B, 0xE4C00, 0xEB876, 0xEBA00, 0xEC87A, 0xECC00, 0xF18DC, 0xF1A00,
    0xF35DC, 0xF3600, 0xF37DC, 0xF3800, 0xF39D8, 0xF3A00, 0xF7181, 0xF7282, 0xF7300, 0xF7484,
    0xF7500, 0xF7A82, 0xF7E00, 0xF8082, 0xF8100, 0xF82E6, 0xF8409, 0xF8500, 0xF86E6, 0xF8800,
    0xFC6DC, 0xFC700, 0x103707, 0x103800, 0x103909, 0x103B00, 0x108DDC, 0x108E00, 0x135DE6,
    0x136000, 0x171409, 0x171500, 0x173409, 0x173500, 0x17D209, 0x17D300, 0x17DDE6, 0x17DE00,
    0x18A9E4, 0x18AA00, 0x1939DE, 0x193AE6, 0x193BDC, 0x193C00, 0x1A17E6, 0x1A18DC, 0x1A1900,
    0x1A6009, 0x1A6100, 0x1A75E6, 0x1A7D00, 0x1A7FDC, 0x1A8000, 0x1AB0E6, 0x1AB5DC, 0x1ABBE6,
    0x1ABDDC, 0x1ABE00, 0x1B3407, 0x1B3500, 0x1B4409, 0x1B4500, 0x1B6BE6, 0x1B6CDC, 0x1B6DE6,
    0x1B7400, 0x1BAA09, 0x1BAC00, 0x1BE607, 0x1BE700, 0x1BF209, 0x1BF400, 0x1C3707, 0x1C3800,
    0x1CD0E6, 0x1CD300, 0x1CD401, 0x1CD5DC, 0x1CDAE6, 0x1CDCDC, 0x1CE0E6, 0x1CE100, 0x1CE201,
    0x1CE900, 0x1CEDDC, 0x1CEE00, 0x1CF4E6, 0x1CF500, 0x1CF8E6, 0x1CFA00, 0x1DC0E6, 0x1DC2DC,
    0x1DC3E6, 0x1DCADC, 0x1DCBE6, 0x1DCDEA, 0x1DCED6, 0x1DCFDC, 0x1DD0CA, 0x1DD1E6, 0x1DF600,
    0x1DFBE6, 0x1DFCE9, 0x1DFDDC, 0x1DFEE6, 0x1DFFDC, 0x1E0000, 0x20D0E6, 0x20D201, 0x20D4E6,
    0x20D801, 0x20DBE6, 0x20DD00, 0x20E1E6, 0x20E200, 0x20E501, 0x20E7E6, 0x20E8DC, 0x20E9E6,
    0x20EA01, 0x20ECDC, 0x20F0E6, 0x20F100, 0x2CEFE6, 0x2CF200, 0x2D7F09, 0x2D8000, 0x2DE0E6,
    0x2E0000, 0x302ADA, 0x302BE4, 0x302CE8, 0x302DDE, 0x302EE0, 0x303000, 0x309908, 0x309B00,
    0xA66FE6, 0xA67000, 0xA674E6, 0xA67E00, 0xA69EE6, 0xA6A000, 0xA6F0E6, 0xA6F200, 0xA80609,
    0xA80700, 0xA8C409, 0xA8C500, 0xA8E0E6, 0xA8F200, 0xA92BDC, 0xA92E00, 0xA95309, 0xA95400,
    0xA9B307, 0xA9B400, 0xA9C009, 0xA9C100, 0xAAB0E6, 0xAAB100, 0xAAB2E6, 0xAAB4DC, 0xAAB500,
    0xAAB7E6, 0xAAB900, 0xAABEE6, 0xAAC000, 0xAAC1E6, 0xAAC200, 0xAAF609, 0xAAF700, 0xABED09,
    0xABEE00, 0xFB1E1A, 0xFB1F00, 0xFE20E6, 0xFE27DC, 0xFE2EE6, 0xFE3000, 0x101FDDC, 0x101FE00,
    0x102E0DC, 0x102E100, 0x10376E6, 0x1037B00, 0x10A0DDC, 0x10A0E00, 0x10A0FE6, 0x10A1000,
    0x10A38E6, 0x10A3901, 0x10A3ADC, 0x10A3B00, 0x10A3F09, 0x10A4000, 0x10AE5E6, 0x10AE6DC,
    0x10AE700, 0x1104609, 0x1104700, 0x1107F09, 0x1108000, 0x110B909, 0x110BA07, 0x110BB00,
    0x11100E6, 0x1110300, 0x1113309, 0x1113500, 0x1117307, 0x1117400, 0x111C009, 0x111C100,
    0x111CA07, 0x111CB00, 0x1123509, 0x1123607, 0x1123700, 0x112E907, 0x112EA09, 0x112EB00,
    0x1133C07, 0x1133D00, 0x1134D09, 0x1134E00, 0x11366E6, 0x1136D00, 0x11370E6, 0x1137500,
    0x1144209, 0x1144300, 0x1144607, 0x1144700, 0x114C209, 0x114C307, 0x114C400, 0x115BF09,
    0x115C007, 0x115C100, 0x1163F09, 0x1164000, 0x116B609, 0x116B707, 0x116B800, 0x1172B09,
    0x1172C00, 0x11C3F09, 0x11C4000, 0x16AF001, 0x16AF500, 0x16B30E6, 0x16B3700, 0x1BC9E01,
    0x1BC9F00, 0x1D165D8, 0x1D16701, 0x1D16A00, 0x1D16DE2, 0x1D16ED8, 0x1D17300, 0x1D17BDC,
    0x1D18300, 0x1D185E6, 0x1D18ADC, 0x1D18C00, 0x1D1AAE6, 0x1D1AE00, 0x1D242E6, 0x1D24500,
    0x1E000E6, 0x1E00700, 0x1E008E6, 0x1E01900, 0x1E01BE6, 0x1E02200, 0x1E023E6, 0x1E02500,
    0x1E026E6, 0x1E02B00, 0x1E8D0DC, 0x1E8D700, 0x1E944E6, 0x1E94A07, 0x1E94B00,
};

static const uint32_t unicode_parts[] = {
    0xC0, 0x41, 0x300, 0xC1, 0x41, 0x301, 0xC2, 0x41, 0x302, 0xC3, 0x41, 0x303, 0xC4, 0x41, 0x308,
    0xC5, 0x41, 0x30A, 0xC7, 0x43, 0x327, 0xC8, 0x45, 0x300, 0xC9, 0x45, 0x301, 0xCA, 0x45, 0x302,
    0xCB, 0x45, 0x308, 0xCC, 0x49, 0x300, 0xCD, 0x49, 0x301, 0xCE, 0x49, 0x302, 0xCF, 0x49, 0x308,
    0xD1, 0x4E, 0x303, 0xD2, 0x4F, 0x300, 0xD3, 0x4F, 0x301, 0xD4, 0x4F, 0x302, 0xD5, 0x4F, 0x303,
    0xD6, 0x4F, 0x308, 0xD9, 0x55, 0x300, 0xDA, 0x55, 0x301, 0xDB, 0x55, 0x302, 0xDC, 0x55, 0x308,
    0xDD, 0x59, 0x301, 0xE0, 0x61, 0x300, 0xE1, 0x61, 0x301, 0xE2, 0x61, 0x302, 0xE3, 0x61, 0x303,
    0xE4, 0x61, 0x308, 0xE5, 0x61, 0x30A, 0xE7, 0x63, 0x327, 0xE8, 0x65, 0x300, 0xE9, 0x65, 0x301,
    0xEA, 0x65, 0x302, 0xEB, 0x65, 0x308, 0xEC, 0x69, 0x300, 0xED, 0x69, 0x301, 0xEE, 0x69, 0x302,
    0xEF, 0x69, 0x308, 0xF1, 0x6E, 0x303, 0xF2, 0x6F, 0x300, 0xF3, 0x6F, 0x301, 0xF4, 0x6F, 0x302,
    0xF5, 0x6F, 0x303, 0xF6, 0x6F, 0x308, 0xF9, 0x75, 0x300, 0xFA, 0x75, 0x301, 0xFB, 0x75, 0x302,
    0xFC, 0x75, 0x308, 0xFD, 0x79, 0x301, 0xFF, 0x79, 0x308, 0x100, 0x41, 0x304, 0x101, 0x61, 0x304,
    0x102, 0x41, 0x306, 0x103, 0x61, 0x306, 0x104, 0x41, 0x328, 0x105, 0x61, 0x328,
    0x106, 0x43, 0x301, 0x107, 0x63, 0x301, 0x108, 0x43, 0x302, 0x109, 0x63, 0x302,
    0x10A, 0x43, 0x307, 0x10B, 0x63, 0x307, 0x10C, 0x43, 0x30C, 0x10D, 0x63, 0x30C,
    0x10E, 0x44, 0x30C, 0x10F, 0x64, 0x30C, 0x112, 0x45, 0x304, 0x113, 0x65, 0x304,
    0x114, 0x45, 0x306, 0x115, 0x65, 0x306, 0x116, 0x45, 0x307, 0x117, 0x65, 0x307,
    0x118, 0x45, 0x328, 0x119, 0x65, 0x328, 0x11A, 0x45, 0x30C, 0x11B, 0x65, 0x30C,
    0x11C, 0x47, 0x302, 0x11D, 0x67, 0x302, 0x11E, 0x47, 0x306, 0x11F, 0x67, 0x306,
    0x120, 0x47, 0x307, 0x121, 0x67, 0x307, 0x122, 0x47, 0x327, 0x123, 0x67, 0x327,
    0x124, 0x48, 0x302, 0x125, 0x68, 0x302, 0x128, 0x49, 0x303, 0x129, 0x69, 0x303,
    0x12A, 0x49, 0x304, 0x12B, 0x69, 0x304, 0x12C, 0x49, 0x306, 0x12D, 0x69, 0x306,
    0x12E, 0x49, 0x328, 0x12F, 0x69, 0x328, 0x130, 0x49, 0x307, 0x134, 0x4A, 0x302,
    0x135, 0x6A, 0x302, 0x136, 0x4B, 0x327, 0x137, 0x6B, 0x327, 0x139, 0x4C, 0x301,
    0x13A, 0x6C, 0x301, 0x13B, 0x4C, 0x327, 0x13C, 0x6C, 0x327, 0x13D, 0x4C, 0x30C,
    0x13E, 0x6C, 0x30C, 0x143, 0x4E, 0x301, 0x144, 0x6E, 0x301, 0x145, 0x4E, 0x327,
    0x146, 0x6E, 0x327, 0x147, 0x4E, 0x30C, 0x148, 0x6E, 0x30C, 0x14C, 0x4F, 0x304,
    0x14D, 0x6F, 0x304, 0x14E, 0x4F, 0x306, 0x14F, 0x6F, 0x306, 0x150, 0x4F, 0x30B,
    0x151, 0x6F, 0x30B, 0x154, 0x52, 0x301, 0x155, 0x72, 0x301, 0x156, 0x52, 0x327,
    0x157, 0x72, 0x327, 0x158, 0x52, 0x30C, 0x159, 0x72, 0x30C, 0x15A, 0x53, 0x301,
    0x15B, 0x73, 0x301, 0x15C, 0x53, 0x302, 0x15D, 0x73, 0x302, 0x15E, 0x53, 0x327,
    0x15F, 0x73, 0x327, 0x160, 0x53, 0x30C, 0x161, 0x73, 0x30C, 0x162, 0x54, 0x327,
    0x163, 0x74, 0x327, 0x164, 0x54, 0x30C, 0x165, 0x74, 0x30C, 0x168, 0x55, 0x303,
    0x169, 0x75, 0x303, 0x16A, 0x55, 0x304, 0x16B, 0x75, 0x304, 0x16C, 0x55, 0x306,
    0x16D, 0x75, 0x306, 0x16E, 0x55, 0x30A, 0x16F, 0x75, 0x30A, 0x170, 0x55, 0x30B,
    0x171, 0x75, 0x30B, 0x172, 0x55, 0x328, 0x173, 0x75, 0x328, 0x174, 0x57, 0x302,
    0x175, 0x77, 0x302, 0x176, 0x59, 0x302, 0x177, 0x79, 0x302, 0x178, 0x59, 0x308,
    0x179, 0x5A, 0x301, 0x17A, 0x7A, 0x301, 0x17B, 0x5A, 0x307, 0x17C, 0x7A, 0x307,
    0x17D, 0x5A, 0x30C, 0x17E, 0x7A, 0x30C, 0x1A0, 0x4F, 0x31B, 0x1A1, 0x6F, 0x31B,
    0x1AF, 0x55, 0x31B, 0x1B0, 0x75, 0x31B, 0x1CD, 0x41, 0x30C, 0x1CE, 0x61, 0x30C,
    0x1CF, 0x49, 0x30C, 0x1D0, 0x69, 0x30C, 0x1D1, 0x4F, 0x30C, 0x1D2, 0x6F, 0x30C,
    0x1D3, 0x55, 0x30C, 0x1D4, 0x75, 0x30C, 0x1D5, 0xDC, 0x304, 0x1D6, 0xFC, 0x304,
    0x1D7, 0xDC, 0x301, 0x1D8, 0xFC, 0x301, 0x1D9, 0xDC, 0x30C, 0x1DA, 0xFC, 0x30C,
    0x1DB, 0xDC, 0x300, 0x1DC, 0xFC, 0x300, 0x1DE, 0xC4, 0x304, 0x1DF, 0xE4, 0x304,
    0x1E0, 0x226, 0x304, 0x1E1, 0x227, 0x304, 0x1E2, 0xC6, 0x304, 0x1E3, 0xE6, 0x304,
    0x1E6, 0x47, 0x30C, 0x1E7, 0x67, 0x30C, 0x1E8, 0x4B, 0x30C, 0x1E9, 0x6B, 0x30C,
    0x1EA, 0x4F, 0x328, 0x1EB, 0x6F, 0x328, 0x1EC, 0x1EA, 0x304, 0x1ED, 0x1EB, 0x304,
    0x1EE, 0x1B7, 0x30C, 0x1EF, 0x292, 0x30C, 0x1F0, 0x6A, 0x30C, 0x1F4, 0x47, 0x301,
    0x1F5, 0x67, 0x301, 0x1F8, 0x4E, 0x300, 0x1F9, 0x6E, 0x300, 0x1FA, 0xC5, 0x301,
    0x1FB, 0xE5, 0x301, 0x1FC, 0xC6, 0x301, 0x1FD, 0xE6, 0x301, 0x1FE, 0xD8, 0x301,
    0x1FF, 0xF8, 0x301, 0x200, 0x41, 0x30F, 0x201, 0x61, 0x30F, 0x202, 0x41, 0x311,
    0x203, 0x61, 0x311, 0x204, 0x45, 0x30F, 0x205, 0x65, 0x30F, 0x206, 0x45, 0x311,
    0x207, 0x65, 0x311, 0x208, 0x49, 0x30F, 0x209, 0x69, 0x30F, 0x20A, 0x49, 0x311,
    0x20B, 0x69, 0x311, 0x20C, 0x4F, 0x30F, 0x20D, 0x6F, 0x30F, 0x20E, 0x4F, 0x311,
    0x20F, 0x6F, 0x311, 0x210, 0x52, 0x30F, 0x211, 0x72, 0x30F, 0x212, 0x52, 0x311,
    0x213, 0x72, 0x311, 0x214, 0x55, 0x30F, 0x215, 0x75, 0x30F, 0x216, 0x55, 0x311,
    0x217, 0x75, 0x311, 0x218, 0x53, 0x326, 0x219, 0x73, 0x326, 0x21A, 0x54, 0x326,
    0x21B, 0x74, 0x326, 0x21E, 0x48, 0x30C, 0x21F, 0x68, 0x30C, 0x226, 0x41, 0x307,
    0x227, 0x61, 0x307, 0x228, 0x45, 0x327, 0x229, 0x65, 0x327, 0x22A, 0xD6, 0x304,
    0x22B, 0xF6, 0x304, 0x22C, 0xD5, 0x304, 0x22D, 0xF5, 0x304, 0x22E, 0x4F, 0x307,
    0x22F, 0x6F, 0x307, 0x230, 0x22E, 0x304, 0x231, 0x22F, 0x304, 0x232, 0x59, 0x304,
    0x233, 0x79, 0x304, 0x340, 0x300, 0x0, 0x341, 0x301, 0x0, 0x343, 0x313, 0x0,
    0x344, 0x308, 0x301, 0x374, 0x2B9, 0x0, 0x37E, 0x3B, 0x0, 0x385, 0xA8, 0x301,
    0x386, 0x391, 0x301, 0x387, 0xB7, 0x0, 0x388, 0x395, 0x301, 0x389, 0x397, 0x301,
    0x38A, 0x399, 0x301, 0x38C, 0x39F, 0x301, 0x38E, 0x3A5, 0x301, 0x38F, 0x3A9, 0x301,
    0x390, 0x3CA, 0x301, 0x3AA, 0x399, 0x308, 0x3AB, 0x3A5, 0x308, 0x3AC, 0x3B1, 0x301,
    0x3AD, 0x3B5, 0x301, 0x3AE, 0x3B7, 0x301, 0x3AF, 0x3B9, 0x301, 0x3B0, 0x3CB, 0x301,
    0x3CA, 0x3B9, 0x308, 0x3CB, 0x3C5, 0x308, 0x3CC, 0x3BF, 0x301, 0x3CD, 0x3C5, 0x301,
    0x3CE, 0x3C9, 0x301, 0x3D3, 0x3D2, 0x301, 0x3D4, 0x3D2, 0x308, 0x400, 0x415, 0x300,
    0x401, 0x415, 0x308, 0x403, 0x413, 0x301, 0x407, 0x406, 0x308, 0x40C, 0x41A, 0x301,
    0x40D, 0x418, 0x300, 0x40E, 0x423, 0x306, 0x419, 0x418, 0x306, 0x439, 0x438, 0x306,
    0x450, 0x435, 0x300, 0x451, 0x435, 0x308, 0x453, 0x433, 0x301, 0x457, 0x456, 0x308,
    0x45C, 0x43A, 0x301, 0x45D, 0x438, 0x300, 0x45E, 0x443, 0x306, 0x476, 0x474, 0x30F,
    0x477, 0x475, 0x30F, 0x4C1, 0x416, 0x306, 0x4C2, 0x436, 0x306, 0x4D0, 0x410, 0x306,
    0x4D1, 0x430, 0x306, 0x4D2, 0x410, 0x308, 0x4D3, 0x430, 0x308, 0x4D6, 0x415, 0x306,
    0x4D7, 0x435, 0x306, 0x4DA, 0x4D8, 0x308, 0x4DB, 0x4D9, 0x308, 0x4DC, 0x416, 0x308,
    0x4DD, 0x436, 0x308, 0x4DE, 0x417, 0x308, 0x4DF, 0x437, 0x308, 0x4E2, 0x418, 0x304,
    0x4E3, 0x438, 0x304, 0x4E4, 0x418, 0x308, 0x4E5, 0x438, 0x308, 0x4E6, 0x41E, 0x308,
    0x4E7, 0x43E, 0x308, 0x4EA, 0x4E8, 0x308, 0x4EB, 0x4E9, 0x308, 0x4EC, 0x42D, 0x308,
    0x4ED, 0x44D, 0x308, 0x4EE, 0x423, 0x304, 0x4EF, 0x443, 0x304, 0x4F0, 0x423, 0x308,
    0x4F1, 0x443, 0x308, 0x4F2, 0x423, 0x30B, 0x4F3, 0x443, 0x30B, 0x4F4, 0x427, 0x308,
    0x4F5, 0x447, 0x308, 0x4F8, 0x42B, 0x308, 0x4F9, 0x44B, 0x308, 0x622, 0x627, 0x653,
    0x623, 0x627, 0x654, 0x624, 0x648, 0x654, 0x625, 0x627, 0x655, 0x626, 0x64A, 0x654,
    0x6C0, 0x6D5, 0x654, 0x6C2, 0x6C1, 0x654, 0x6D3, 0x6D2, 0x654, 0x929, 0x928, 0x93C,
    0x931, 0x930, 0x93C, 0x934, 0x933, 0x93C, 0x958, 0x915, 0x93C, 0x959, 0x916, 0x93C,
    0x95A, 0x917, 0x93C, 0x95B, 0x91C, 0x93C, 0x95C, 0x921, 0x93C, 0x95D, 0x922, 0x93C,
    0x95E, 0x92B, 0x93C, 0x95F, 0x92F, 0x93C, 0x9CB, 0x9C7, 0x9BE, 0x9CC, 0x9C7, 0x9D7,
    0x9DC, 0x9A1, 0x9BC, 0x9DD, 0x9A2, 0x9BC, 0x9DF, 0x9AF, 0x9BC, 0xA33, 0xA32, 0xA3C,
    0xA36, 0xA38, 0xA3C, 0xA59, 0xA16, 0xA3C, 0xA5A, 0xA17, 0xA3C, 0xA5B, 0xA1C, 0xA3C,
    0xA5E, 0xA2B, 0xA3C, 0xB48, 0xB47, 0xB56, 0xB4B, 0xB47, 0xB3E, 0xB4C, 0xB47, 0xB57,
    0xB5C, 0xB21, 0xB3C, 0xB5D, 0xB22, 0xB3C, 0xB94, 0xB92, 0xBD7, 0xBCA, 0xBC6, 0xBBE,
    0xBCB, 0xBC7, 0xBBE, 0xBCC, 0xBC6, 0xBD7, 0xC48, 0xC46, 0xC56, 0xCC0, 0xCBF, 0xCD5,
    0xCC7, 0xCC6, 0xCD5, 0xCC8, 0xCC6, 0xCD6, 0xCCA, 0xCC6, 0xCC2, 0xCCB, 0xCCA, 0xCD5,
    0xD4A, 0xD46, 0xD3E, 0xD4B, 0xD47, 0xD3E, 0xD4C, 0xD46, 0xD57, 0xDDA, 0xDD9, 0xDCA,
    0xDDC, 0xDD9, 0xDCF, 0xDDD, 0xDDC, 0xDCA, 0xDDE, 0xDD9, 0xDDF, 0xF43, 0xF42, 0xFB7,
    0xF4D, 0xF4C, 0xFB7, 0xF52, 0xF51, 0xFB7, 0xF57, 0xF56, 0xFB7, 0xF5C, 0xF5B, 0xFB7,
    0xF69, 0xF40, 0xFB5, 0xF73, 0xF71, 0xF72, 0xF75, 0xF71, 0xF74, 0xF76, 0xFB2, 0xF80,
    0xF78, 0xFB3, 0xF80, 0xF81, 0xF71, 0xF80, 0xF93, 0xF92, 0xFB7, 0xF9D, 0xF9C, 0xFB7,
    0xFA2, 0xFA1, 0xFB7, 0xFA7, 0xFA6, 0xFB7, 0xFAC, 0xFAB, 0xFB7, 0xFB9, 0xF90, 0xFB5,
    0x1026, 0x1025, 0x102E, 0x1B06, 0x1B05, 0x1B35, 0x1B08, 0x1B07, 0x1B35, 0x1B0A, 0x1B09, 0x1B35,
    0x1B0C, 0x1B0B, 0x1B35, 0x1B0E, 0x1B0D, 0x1B35, 0x1B12, 0x1B11, 0x1B35, 0x1B3B, 0x1B3A, 0x1B35,
    0x1B3D, 0x1B3C, 0x1B35, 0x1B40, 0x1B3E, 0x1B35, 0x1B41, 0x1B3F, 0x1B35, 0x1B43, 0x1B42, 0x1B35,
    0x1E00, 0x41, 0x325, 0x1E01, 0x61, 0x325, 0x1E02, 0x42, 0x307, 0x1E03, 0x62, 0x307,
    0x1E04, 0x42, 0x323, 0x1E05, 0x62, 0x323, 0x1E06, 0x42, 0x331, 0x1E07, 0x62, 0x331,
    0x1E08, 0xC7, 0x301, 0x1E09, 0xE7, 0x301, 0x1E0A, 0x44, 0x307, 0x1E0B, 0x64, 0x307,
    0x1E0C, 0x44, 0x323, 0x1E0D, 0x64, 0x323, 0x1E0E, 0x44, 0x331, 0x1E0F, 0x64, 0x331,
    0x1E10, 0x44, 0x327, 0x1E11, 0x64, 0x327, 0x1E12, 0x44, 0x32D, 0x1E13, 0x64, 0x32D,
    0x1E14, 0x112, 0x300, 0x1E15, 0x113, 0x300, 0x1E16, 0x112, 0x301, 0x1E17, 0x113, 0x301,
    0x1E18, 0x45, 0x32D, 0x1E19, 0x65, 0x32D, 0x1E1A, 0x45, 0x330, 0x1E1B, 0x65, 0x330,
    0x1E1C, 0x228, 0x306, 0x1E1D, 0x229, 0x306, 0x1E1E, 0x46, 0x307, 0x1E1F, 0x66, 0x307,
    0x1E20, 0x47, 0x304, 0x1E21, 0x67, 0x304, 0x1E22, 0x48, 0x307, 0x1E23, 0x68, 0x307,
    0x1E24, 0x48, 0x323, 0x1E25, 0x68, 0x323, 0x1E26, 0x48, 0x308, 0x1E27, 0x68, 0x308,
    0x1E28, 0x48, 0x327, 0x1E29, 0x68, 0x327, 0x1E2A, 0x48, 0x32E, 0x1E2B, 0x68, 0x32E,
    0x1E2C, 0x49, 0x330, 0x1E2D, 0x69, 0x330, 0x1E2E, 0xCF, 0x301, 0x1E2F, 0xEF, 0x301,
    0x1E30, 0x4B, 0x301, 0x1E31, 0x6B, 0x301, 0x1E32, 0x4B, 0x323, 0x1E33, 0x6B, 0x323,
    0x1E34, 0x4B, 0x331, 0x1E35, 0x6B, 0x331, 0x1E36, 0x4C, 0x323, 0x1E37, 0x6C, 0x323,
    0x1E38, 0x1E36, 0x304, 0x1E39, 0x1E37, 0x304, 0x1E3A, 0x4C, 0x331, 0x1E3B, 0x6C, 0x331,
    0x1E3C, 0x4C, 0x32D, 0x1E3D, 0x6C, 0x32D, 0x1E3E, 0x4D, 0x301, 0x1E3F, 0x6D, 0x301,
    0x1E40, 0x4D, 0x307, 0x1E41, 0x6D, 0x307, 0x1E42, 0x4D, 0x323, 0x1E43, 0x6D, 0x323,
    0x1E44, 0x4E, 0x307, 0x1E45, 0x6E, 0x307, 0x1E46, 0x4E, 0x323, 0x1E47, 0x6E, 0x323,
    0x1E48, 0x4E, 0x331, 0x1E49, 0x6E, 0x331, 0x1E4A, 0x4E, 0x32D, 0x1E4B, 0x6E, 0x32D,
    0x1E4C, 0xD5, 0x301, 0x1E4D, 0xF5, 0x301, 0x1E4E, 0xD5, 0x308, 0x1E4F, 0xF5, 0x308,
    0x1E50, 0x14C, 0x300, 0x1E51, 0x14D, 0x300, 0x1E52, 0x14C, 0x301, 0x1E53, 0x14D, 0x301,
    0x1E54, 0x50, 0x301, 0x1E55, 0x70, 0x301, 0x1E56, 0x50, 0x307, 0x1E57, 0x70, 0x307,
    0x1E58, 0x52, 0x307, 0x1E59, 0x72, 0x307, 0x1E5A, 0x52, 0x323, 0x1E5B, 0x72, 0x323,
    0x1E5C, 0x1E5A, 0x304, 0x1E5D, 0x1E5B, 0x304, 0x1E5E, 0x52, 0x331, 0x1E5F, 0x72, 0x331,
    0x1E60, 0x53, 0x307, 0x1E61, 0x73, 0x307, 0x1E62, 0x53, 0x323, 0x1E63, 0x73, 0x323,
    0x1E64, 0x15A, 0x307, 0x1E65, 0x15B, 0x307, 0x1E66, 0x160, 0x307, 0x1E67, 0x161, 0x307,
    0x1E68, 0x1E62, 0x307, 0x1E69, 0x1E63, 0x307, 0x1E6A, 0x54, 0x307, 0x1E6B, 0x74, 0x307,
    0x1E6C, 0x54, 0x323, 0x1E6D, 0x74, 0x323, 0x1E6E, 0x54, 0x331, 0x1E6F, 0x74, 0x331,
    0x1E70, 0x54, 0x32D, 0x1E71, 0x74, 0x32D, 0x1E72, 0x55, 0x324, 0x1E73, 0x75, 0x324,
    0x1E74, 0x55, 0x330, 0x1E75, 0x75, 0x330, 0x1E76, 0x55, 0x32D, 0x1E77, 0x75, 0x32D,
    0x1E78, 0x168, 0x301, 0x1E79, 0x169, 0x301, 0x1E7A, 0x16A, 0x308, 0x1E7B, 0x16B, 0x308,
    0x1E7C, 0x56, 0x303, 0x1E7D, 0x76, 0x303, 0x1E7E, 0x56, 0x323, 0x1E7F, 0x76, 0x323,
    0x1E80, 0x57, 0x300, 0x1E81, 0x77, 0x300, 0x1E82, 0x57, 0x301, 0x1E83, 0x77, 0x301,
    0x1E84, 0x57, 0x308, 0x1E85, 0x77, 0x308, 0x1E86, 0x57, 0x307, 0x1E87, 0x77, 0x307,
    0x1E88, 0x57, 0x323, 0x1E89, 0x77, 0x323, 0x1E8A, 0x58, 0x307, 0x1E8B, 0x78, 0x307,
    0x1E8C, 0x58, 0x308, 0x1E8D, 0x78, 0x308, 0x1E8E, 0x59, 0x307, 0x1E8F, 0x79, 0x307,
    0x1E90, 0x5A, 0x302, 0x1E91, 0x7A, 0x302, 0x1E92, 0x5A, 0x323, 0x1E93, 0x7A, 0x323,
    0x1E94, 0x5A, 0x331, 0x1E95, 0x7A, 0x331, 0x1E96, 0x68, 0x331, 0x1E97, 0x74, 0x308,
    0x1E98, 0x77, 0x30A, 0x1E99, 0x79, 0x30A, 0x1E9B, 0x17F, 0x307, 0x1EA0, 0x41, 0x323,
    0x1EA1, 0x61, 0x323, 0x1EA2, 0x41, 0x309, 0x1EA3, 0x61, 0x309, 0x1EA4, 0xC2, 0x301,
    0x1EA5, 0xE2, 0x301, 0x1EA6, 0xC2, 0x300, 0x1EA7, 0xE2, 0x300, 0x1EA8, 0xC2, 0x309,
    0x1EA9, 0xE2, 0x309, 0x1EAA, 0xC2, 0x303, 0x1EAB, 0xE2, 0x303, 0x1EAC, 0x1EA0, 0x302,
    0x1EAD, 0x1EA1, 0x302, 0x1EAE, 0x102, 0x301, 0x1EAF, 0x103, 0x301, 0x1EB0, 0x102, 0x300,
    0x1EB1, 0x103, 0x300, 0x1EB2, 0x102, 0x309, 0x1EB3, 0x103, 0x309, 0x1EB4, 0x102, 0x303,
    0x1EB5, 0x103, 0x303, 0x1EB6, 0x1EA0, 0x306, 0x1EB7, 0x1EA1, 0x306, 0x1EB8, 0x45, 0x323,
    0x1EB9, 0x65, 0x323, 0x1EBA, 0x45, 0x309, 0x1EBB, 0x65, 0x309, 0x1EBC, 0x45, 0x303,
    0x1EBD, 0x65, 0x303, 0x1EBE, 0xCA, 0x301, 0x1EBF, 0xEA, 0x301, 0x1EC0, 0xCA, 0x300,
    0x1EC1, 0xEA, 0x300, 0x1EC2, 0xCA, 0x309, 0x1EC3, 0xEA, 0x309, 0x1EC4, 0xCA, 0x303,
    0x1EC5, 0xEA, 0x303, 0x1EC6, 0x1EB8, 0x302, 0x1EC7, 0x1EB9, 0x302, 0x1EC8, 0x49, 0x309,
    0x1EC9, 0x69, 0x309, 0x1ECA, 0x49, 0x323, 0x1ECB, 0x69, 0x323, 0x1ECC, 0x4F, 0x323,
    0x1ECD, 0x6F, 0x323, 0x1ECE, 0x4F, 0x309, 0x1ECF, 0x6F, 0x309, 0x1ED0, 0xD4, 0x301,
    0x1ED1, 0xF4, 0x301, 0x1ED2, 0xD4, 0x300, 0x1ED3, 0xF4, 0x300, 0x1ED4, 0xD4, 0x309,
    0x1ED5, 0xF4, 0x309, 0x1ED6, 0xD4, 0x303, 0x1ED7, 0xF4, 0x303, 0x1ED8, 0x1ECC, 0x302,
    0x1ED9, 0x1ECD, 0x302, 0x1EDA, 0x1A0, 0x301, 0x1EDB, 0x1A1, 0x301, 0x1EDC, 0x1A0, 0x300,
    0x1EDD, 0x1A1, 0x300, 0x1EDE, 0x1A0, 0x309, 0x1EDF, 0x1A1, 0x309, 0x1EE0, 0x1A0, 0x303,
    0x1EE1, 0x1A1, 0x303, 0x1EE2, 0x1A0, 0x323, 0x1EE3, 0x1A1, 0x323, 0x1EE4, 0x55, 0x323,
    0x1EE5, 0x75, 0x323, 0x1EE6, 0x55, 0x309, 0x1EE7, 0x75, 0x309, 0x1EE8, 0x1AF, 0x301,
    0x1EE9, 0x1B0, 0x301, 0x1EEA, 0x1AF, 0x300, 0x1EEB, 0x1B0, 0x300, 0x1EEC, 0x1AF, 0x309,
    0x1EED, 0x1B0, 0x309, 0x1EEE, 0x1AF, 0x303, 0x1EEF, 0x1B0, 0x303, 0x1EF0, 0x1AF, 0x323,
    0x1EF1, 0x1B0, 0x323, 0x1EF2, 0x59, 0x300, 0x1EF3, 0x79, 0x300, 0x1EF4, 0x59, 0x323,
    0x1EF5, 0x79, 0x323, 0x1EF6, 0x59, 0x309, 0x1EF7, 0x79, 0x309, 0x1EF8, 0x59, 0x303,
    0x1EF9, 0x79, 0x303, 0x1F00, 0x3B1, 0x313, 0x1F01, 0x3B1, 0x314, 0x1F02, 0x1F00, 0x300,
    0x1F03, 0x1F01, 0x300, 0x1F04, 0x1F00, 0x301, 0x1F05, 0x1F01, 0x301, 0x1F06, 0x1F00, 0x342,
    0x1F07, 0x1F01, 0x342, 0x1F08, 0x391, 0x313, 0x1F09, 0x391, 0x314, 0x1F0A, 0x1F08, 0x300,
    0x1F0B, 0x1F09, 0x300, 0x1F0C, 0x1F08, 0x301, 0x1F0D, 0x1F09, 0x301, 0x1F0E, 0x1F08, 0x342,
    0x1F0F, 0x1F09, 0x342, 0x1F10, 0x3B5, 0x313, 0x1F11, 0x3B5, 0x314, 0x1F12, 0x1F10, 0x300,
    0x1F13, 0x1F11, 0x300, 0x1F14, 0x1F10, 0x301, 0x1F15, 0x1F11, 0x301, 0x1F18, 0x395, 0x313,
    0x1F19, 0x395, 0x314, 0x1F1A, 0x1F18, 0x300, 0x1F1B, 0x1F19, 0x300, 0x1F1C, 0x1F18, 0x301,
    0x1F1D, 0x1F19, 0x301, 0x1F20, 0x3B7, 0x313, 0x1F21, 0x3B7, 0x314, 0x1F22, 0x1F20, 0x300,
    0x1F23, 0x1F21, 0x300, 0x1F24, 0x1F20, 0x301, 0x1F25, 0x1F21, 0x301, 0x1F26, 0x1F20, 0x342,
    0x1F27, 0x1F21, 0x342, 0x1F28, 0x397, 0x313, 0x1F29, 0x397, 0x314, 0x1F2A, 0x1F28, 0x300,
    0x1F2B, 0x1F29, 0x300, 0x1F2C, 0x1F28, 0x301, 0x1F2D, 0x1F29, 0x301, 0x1F2E, 0x1F28, 0x342,
    0x1F2F, 0x1F29, 0x342, 0x1F30, 0x3B9, 0x313, 0x1F31, 0x3B9, 0x314, 0x1F32, 0x1F30, 0x300,
    0x1F33, 0x1F31, 0x300, 0x1F34, 0x1F30, 0x301, 0x1F35, 0x1F31, 0x301, 0x1F36, 0x1F30, 0x342,
    0x1F37, 0x1F31, 0x342, 0x1F38, 0x399, 0x313, 0x1F39, 0x399, 0x314, 0x1F3A, 0x1F38, 0x300,
    0x1F3B, 0x1F39, 0x300, 0x1F3C, 0x1F38, 0x301, 0x1F3D, 0x1F39, 0x301, 0x1F3E, 0x1F38, 0x342,
    0x1F3F, 0x1F39, 0x342, 0x1F40, 0x3BF, 0x313, 0x1F41, 0x3BF, 0x314, 0x1F42, 0x1F40, 0x300,
    0x1F43, 0x1F41, 0x300, 0x1F44, 0x1F40, 0x301, 0x1F45, 0x1F41, 0x301, 0x1F48, 0x39F, 0x313,
    0x1F49, 0x39F, 0x314, 0x1F4A, 0x1F48, 0x300, 0x1F4B, 0x1F49, 0x300, 0x1F4C, 0x1F48, 0x301,
    0x1F4D, 0x1F49, 0x301, 0x1F50, 0x3C5, 0x313, 0x1F51, 0x3C5, 0x314, 0x1F52, 0x1F50, 0x300,
    0x1F53, 0x1F51, 0x300, 0x1F54, 0x1F50, 0x301, 0x1F55, 0x1F51, 0x301, 0x1F56, 0x1F50, 0x342,
    0x1F57, 0x1F51, 0x342, 0x1F59, 0x3A5, 0x314, 0x1F5B, 0x1F59, 0x300, 0x1F5D, 0x1F59, 0x301,
    0x1F5F, 0x1F59, 0x342, 0x1F60, 0x3C9, 0x313, 0x1F61, 0x3C9, 0x314, 0x1F62, 0x1F60, 0x300,
    0x1F63, 0x1F61, 0x300, 0x1F64, 0x1F60, 0x301, 0x1F65, 0x1F61, 0x301, 0x1F66, 0x1F60, 0x342,
    0x1F67, 0x1F61, 0x342, 0x1F68, 0x3A9, 0x313, 0x1F69, 0x3A9, 0x314, 0x1F6A, 0x1F68, 0x300,
    0x1F6B, 0x1F69, 0x300, 0x1F6C, 0x1F68, 0x301, 0x1F6D, 0x1F69, 0x301, 0x1F6E, 0x1F68, 0x342,
    0x1F6F, 0x1F69, 0x342, 0x1F70, 0x3B1, 0x300, 0x1F71, 0x3AC, 0x0, 0x1F72, 0x3B5, 0x300,
    0x1F73, 0x3AD, 0x0, 0x1F74, 0x3B7, 0x300, 0x1F75, 0x3AE, 0x0, 0x1F76, 0x3B9, 0x300,
    0x1F77, 0x3AF, 0x0, 0x1F78, 0x3BF, 0x300, 0x1F79, 0x3CC, 0x0, 0x1F7A, 0x3C5, 0x300,
    0x1F7B, 0x3CD, 0x0, 0x1F7C, 0x3C9, 0x300, 0x1F7D, 0x3CE, 0x0, 0x1F80, 0x1F00, 0x345,
    0x1F81, 0x1F01, 0x345, 0x1F82, 0x1F02, 0x345, 0x1F83, 0x1F03, 0x345, 0x1F84, 0x1F04, 0x345,
    0x1F85, 0x1F05, 0x345, 0x1F86, 0x1F06, 0x345, 0x1F87, 0x1F07, 0x345, 0x1F88, 0x1F08, 0x345,
    0x1F89, 0x1F09, 0x345, 0x1F8A, 0x1F0A, 0x345, 0x1F8B, 0x1F0B, 0x345, 0x1F8C, 0x1F0C, 0x345,
    0x1F8D, 0x1F0D, 0x345, 0x1F8E, 0x1F0E, 0x345, 0x1F8F, 0x1F0F, 0x345, 0x1F90, 0x1F20, 0x345,
    0x1F91, 0x1F21, 0x345, 0x1F92, 0x1F22, 0x345, 0x1F93, 0x1F23, 0x345, 0x1F94, 0x1F24, 0x345,
    0x1F95, 0x1F25, 0x345, 0x1F96, 0x1F26, 0x345, 0x1F97, 0x1F27, 0x345, 0x1F98, 0x1F28, 0x345,
    0x1F99, 0x1F29, 0x345, 0x1F9A, 0x1F2A, 0x345, 0x1F9B, 0x1F2B, 0x345, 0x1F9C, 0x1F2C, 0x345,
    0x1F9D, 0x1F2D, 0x345, 0x1F9E, 0x1F2E, 0x345, 0x1F9F, 0x1F2F, 0x345, 0x1FA0, 0x1F60, 0x345,
    0x1FA1, 0x1F61, 0x345, 0x1FA2, 0x1F62, 0x345, 0x1FA3, 0x1F63, 0x345, 0x1FA4, 0x1F64, 0x345,
    0x1FA5, 0x1F65, 0x345, 0x1FA6, 0x1F66, 0x345, 0x1FA7, 0x1F67, 0x345, 0x1FA8, 0x1F68, 0x345,
    0x1FA9, 0x1F69, 0x345, 0x1FAA, 0x1F6A, 0x345, 0x1FAB, 0x1F6B, 0x345, 0x1FAC, 0x1F6C, 0x345,
    0x1FAD, 0x1F6D, 0x345, 0x1FAE, 0x1F6E, 0x345, 0x1FAF, 0x1F6F, 0x345, 0x1FB0, 0x3B1, 0x306,
    0x1FB1, 0x3B1, 0x304, 0x1FB2, 0x1F70, 0x345, 0x1FB3, 0x3B1, 0x345, 0x1FB4, 0x3AC, 0x345,
    0x1FB6, 0x3B1, 0x342, 0x1FB7, 0x1FB6, 0x345, 0x1FB8, 0x391, 0x306, 0x1FB9, 0x391, 0x304,
    0x1FBA, 0x391, 0x300, 0x1FBB, 0x386, 0x0, 0x1FBC, 0x391, 0x345, 0x1FBE, 0x3B9, 0x0,
    0x1FC1, 0xA8, 0x342, 0x1FC2, 0x1F74, 0x345, 0x1FC3, 0x3B7, 0x345, 0x1FC4, 0x3AE, 0x345,
    0x1FC6, 0x3B7, 0x342, 0x1FC7, 0x1FC6, 0x345, 0x1FC8, 0x395, 0x300, 0x1FC9, 0x388, 0x0,
    0x1FCA, 0x397, 0x300, 0x1FCB, 0x389, 0x0, 0x1FCC, 0x397, 0x345, 0x1FCD, 0x1FBF, 0x300,
    0x1FCE, 0x1FBF, 0x301, 0x1FCF, 0x1FBF, 0x342, 0x1FD0, 0x3B9, 0x306, 0x1FD1, 0x3B9, 0x304,
    0x1FD2, 0x3CA, 0x300, 0x1FD3, 0x390, 0x0, 0x1FD6, 0x3B9, 0x342, 0x1FD7, 0x3CA, 0x342,
    0x1FD8, 0x399, 0x306, 0x1FD9, 0x399, 0x304, 0x1FDA, 0x399, 0x300, 0x1FDB, 0x38A, 0x0,
    0x1FDD, 0x1FFE, 0x300, 0x1FDE, 0x1FFE, 0x301, 0x1FDF, 0x1FFE, 0x342, 0x1FE0, 0x3C5, 0x306,
    0x1FE1, 0x3C5, 0x304, 0x1FE2, 0x3CB, 0x300, 0x1FE3, 0x3B0, 0x0, 0x1FE4, 0x3C1, 0x313,
    0x1FE5, 0x3C1, 0x314, 0x1FE6, 0x3C5, 0x342, 0x1FE7, 0x3CB, 0x342, 0x1FE8, 0x3A5, 0x306,
    0x1FE9, 0x3A5, 0x304, 0x1FEA, 0x3A5, 0x300, 0x1FEB, 0x38E, 0x0, 0x1FEC, 0x3A1, 0x314,
    0x1FED, 0xA8, 0x300, 0x1FEE, 0x385, 0x0, 0x1FEF, 0x60, 0x0, 0x1FF2, 0x1F7C, 0x345,
    0x1FF3, 0x3C9, 0x345, 0x1FF4, 0x3CE, 0x345, 0x1FF6, 0x3C9, 0x342, 0x1FF7, 0x1FF6, 0x345,
    0x1FF8, 0x39F, 0x300, 0x1FF9, 0x38C, 0x0, 0x1FFA, 0x3A9, 0x300, 0x1FFB, 0x38F, 0x0,
    0x1FFC, 0x3A9, 0x345, 0x1FFD, 0xB4, 0x0, 0x2000, 0x2002, 0x0, 0x2001, 0x2003, 0x0,
    0x2126, 0x3A9, 0x0, 0x212A, 0x4B, 0x0, 0x212B, 0xC5, 0x0, 0x219A, 0x2190, 0x338,
    0x219B, 0x2192, 0x338, 0x21AE, 0x2194, 0x338, 0x21CD, 0x21D0, 0x338, 0x21CE, 0x21D4, 0x338,
    0x21CF, 0x21D2, 0x338, 0x2204, 0x2203, 0x338, 0x2209, 0x2208, 0x338, 0x220C, 0x220B, 0x338,
    0x2224, 0x2223, 0x338, 0x2226, 0x2225, 0x338, 0x2241, 0x223C, 0x338, 0x2244, 0x2243, 0x338,
    0x2247, 0x2245, 0x338, 0x2249, 0x2248, 0x338, 0x2260, 0x3D, 0x338, 0x2262, 0x2261, 0x338,
    0x226D, 0x224D, 0x338, 0x226E, 0x3C, 0x338, 0x226F, 0x3E, 0x338, 0x2270, 0x2264, 0x338,
    0x2271, 0x2265, 0x338, 0x2274, 0x2272, 0x338, 0x2275, 0x2273, 0x338, 0x2278, 0x2276, 0x338,
    0x2279, 0x2277, 0x338, 0x2280, 0x227A, 0x338, 0x2281, 0x227B, 0x338, 0x2284, 0x2282, 0x338,
    0x2285, 0x2283, 0x338, 0x2288, 0x2286, 0x338, 0x2289, 0x2287, 0x338, 0x22AC, 0x22A2, 0x338,
    0x22AD, 0x22A8, 0x338, 0x22AE, 0x22A9, 0x338, 0x22AF, 0x22AB, 0x338, 0x22E0, 0x227C, 0x338,
    0x22E1, 0x227D, 0x338, 0x22E2, 0x2291, 0x338, 0x22E3, 0x2292, 0x338, 0x22EA, 0x22B2, 0x338,
    0x22EB, 0x22B3, 0x338, 0x22EC, 0x22B4, 0x338, 0x22ED, 0x22B5, 0x338, 0x2329, 0x3008, 0x0,
    0x232A, 0x3009, 0x0, 0x2ADC, 0x2ADD, 0x338, 0x304C, 0x304B, 0x3099, 0x304E, 0x304D, 0x3099,
    0x3050, 0x304F, 0x3099, 0x3052, 0x3051, 0x3099, 0x3054, 0x3053, 0x3099, 0x3056, 0x3055, 0x3099,
    0x3058, 0x3057, 0x3099, 0x305A, 0x3059, 0x3099, 0x305C, 0x305B, 0x3099, 0x305E, 0x305D, 0x3099,
    0x3060, 0x305F, 0x3099, 0x3062, 0x3061, 0x3099, 0x3065, 0x3064, 0x3099, 0x3067, 0x3066, 0x3099,
    0x3069, 0x3068, 0x3099, 0x3070, 0x306F, 0x3099, 0x3071, 0x306F, 0x309A, 0x3073, 0x3072, 0x3099,
    0x3074, 0x3072, 0x309A, 0x3076, 0x3075, 0x3099, 0x3077, 0x3075, 0x309A, 0x3079, 0x3078, 0x3099,
    0x307A, 0x3078, 0x309A, 0x307C, 0x307B, 0x3099, 0x307D, 0x307B, 0x309A, 0x3094, 0x3046, 0x3099,
    0x309E, 0x309D, 0x3099, 0x30AC, 0x30AB, 0x3099, 0x30AE, 0x30AD, 0x3099, 0x30B0, 0x30AF, 0x3099,
    0x30B2, 0x30B1, 0x3099, 0x30B4, 0x30B3, 0x3099, 0x30B6, 0x30B5, 0x3099, 0x30B8, 0x30B7, 0x3099,
    0x30BA, 0x30B9, 0x3099, 0x30BC, 0x30BB, 0x3099, 0x30BE, 0x30BD, 0x3099, 0x30C0, 0x30BF, 0x3099,
    0x30C2, 0x30C1, 0x3099, 0x30C5, 0x30C4, 0x3099, 0x30C7, 0x30C6, 0x3099, 0x30C9, 0x30C8, 0x3099,
    0x30D0, 0x30CF, 0x3099, 0x30D1, 0x30CF, 0x309A, 0x30D3, 0x30D2, 0x3099, 0x30D4, 0x30D2, 0x309A,
    0x30D6, 0x30D5, 0x3099, 0x30D7, 0x30D5, 0x309A, 0x30D9, 0x30D8, 0x3099, 0x30DA, 0x30D8, 0x309A,
    0x30DC, 0x30DB, 0x3099, 0x30DD, 0x30DB, 0x309A, 0x30F4, 0x30A6, 0x3099, 0x30F7, 0x30EF, 0x3099,
    0x30F8, 0x30F0, 0x3099, 0x30F9, 0x30F1, 0x3099, 0x30FA, 0x30F2, 0x3099, 0x30FE, 0x30FD, 0x3099,
    0xF900, 0x8C48, 0x0, 0xF901, 0x66F4, 0x0, 0xF902, 0x8ECA, 0x0, 0xF903, 0x8CC8, 0x0,
    0xF904, 0x6ED1, 0x0, 0xF905, 0x4E32, 0x0, 0xF906, 0x53E5, 0x0, 0xF907, 0x9F9C, 0x0,
    0xF908, 0x9F9C, 0x0, 0xF909, 0x5951, 0x0, 0xF90A, 0x91D1, 0x0, 0xF90B, 0x5587, 0x0,
    0xF90C, 0x5948, 0x0, 0xF90D, 0x61F6, 0x0, 0xF90E, 0x7669, 0x0, 0xF90F, 0x7F85, 0x0,
    0xF910, 0x863F, 0x0, 0xF911, 0x87BA, 0x0, 0xF912, 0x88F8, 0x0, 0xF913, 0x908F, 0x0,
    0xF914, 0x6A02, 0x0, 0xF915, 0x6D1B, 0x0, 0xF916, 0x70D9, 0x0, 0xF917, 0x73DE, 0x0,
    0xF918, 0x843D, 0x0, 0xF919, 0x916A, 0x0, 0xF91A, 0x99F1, 0x0, 0xF91B, 0x4E82, 0x0,
    0xF91C, 0x5375, 0x0, 0xF91D, 0x6B04, 0x0, 0xF91E, 0x721B, 0x0, 0xF91F, 0x862D, 0x0,
    0xF920, 0x9E1E, 0x0, 0xF921, 0x5D50, 0x0, 0xF922, 0x6FEB, 0x0, 0xF923, 0x85CD, 0x0,
    0xF924, 0x8964, 0x0, 0xF925, 0x62C9, 0x0, 0xF926, 0x81D8, 0x0, 0xF927, 0x881F, 0x0,
    0xF928, 0x5ECA, 0x0, 0xF929, 0x6717, 0x0, 0xF92A, 0x6D6A, 0x0, 0xF92B, 0x72FC, 0x0,
    0xF92C, 0x90CE, 0x0, 0xF92D, 0x4F86, 0x0, 0xF92E, 0x51B7, 0x0, 0xF92F, 0x52DE, 0x0,
    0xF930, 0x64C4, 0x0, 0xF931, 0x6AD3, 0x0, 0xF932, 0x7210, 0x0, 0xF933, 0x76E7, 0x0,
    0xF934, 0x8001, 0x0, 0xF935, 0x8606, 0x0, 0xF936, 0x865C, 0x0, 0xF937, 0x8DEF, 0x0,
    0xF938, 0x9732, 0x0, 0xF939, 0x9B6F, 0x0, 0xF93A, 0x9DFA, 0x0, 0xF93B, 0x788C, 0x0,
    0xF93C, 0x797F, 0x0, 0xF93D, 0x7DA0, 0x0, 0xF93E, 0x83C9, 0x0, 0xF93F, 0x9304, 0x0,
    0xF940, 0x9E7F, 0x0, 0xF941, 0x8AD6, 0x0, 0xF942, 0x58DF, 0x0, 0xF943, 0x5F04, 0x0,
    0xF944, 0x7C60, 0x0, 0xF945, 0x807E, 0x0, 0xF946, 0x7262, 0x0, 0xF947, 0x78CA, 0x0,
    0xF948, 0x8CC2, 0x0, 0xF949, 0x96F7, 0x0, 0xF94A, 0x58D8, 0x0, 0xF94B, 0x5C62, 0x0,
    0xF94C, 0x6A13, 0x0, 0xF94D, 0x6DDA, 0x0, 0xF94E, 0x6F0F, 0x0, 0xF94F, 0x7D2F, 0x0,
    0xF950, 0x7E37, 0x0, 0xF951, 0x964B, 0x0, 0xF952, 0x52D2, 0x0, 0xF953, 0x808B, 0x0,
    0xF954, 0x51DC, 0x0, 0xF955, 0x51CC, 0x0, 0xF956, 0x7A1C, 0x0, 0xF957, 0x7DBE, 0x0,
    0xF958, 0x83F1, 0x0, 0xF959, 0x9675, 0x0, 0xF95A, 0x8B80, 0x0, 0xF95B, 0x62CF, 0x0,
    0xF95C, 0x6A02, 0x0, 0xF95D, 0x8AFE, 0x0, 0xF95E, 0x4E39, 0x0, 0xF95F, 0x5BE7, 0x0,
    0xF960, 0x6012, 0x0, 0xF961, 0x7387, 0x0, 0xF962, 0x7570, 0x0, 0xF963, 0x5317, 0x0,
    0xF964, 0x78FB, 0x0, 0xF965, 0x4FBF, 0x0, 0xF966, 0x5FA9, 0x0, 0xF967, 0x4E0D, 0x0,
    0xF968, 0x6CCC, 0x0, 0xF969, 0x6578, 0x0, 0xF96A, 0x7D22, 0x0, 0xF96B, 0x53C3, 0x0,
    0xF96C, 0x585E, 0x0, 0xF96D, 0x7701, 0x0, 0xF96E, 0x8449, 0x0, 0xF96F, 0x8AAA, 0x0,
    0xF970, 0x6BBA, 0x0, 0xF971, 0x8FB0, 0x0, 0xF972, 0x6C88, 0x0, 0xF973, 0x62FE, 0x0,
    0xF974, 0x82E5, 0x0, 0xF975, 0x63A0, 0x0, 0xF976, 0x7565, 0x0, 0xF977, 0x4EAE, 0x0,
    0xF978, 0x5169, 0x0, 0xF979, 0x51C9, 0x0, 0xF97A, 0x6881, 0x0, 0xF97B, 0x7CE7, 0x0,
    0xF97C, 0x826F, 0x0, 0xF97D, 0x8AD2, 0x0, 0xF97E, 0x91CF, 0x0, 0xF97F, 0x52F5, 0x0,
    0xF980, 0x5442, 0x0, 0xF981, 0x5973, 0x0, 0xF982, 0x5EEC, 0x0, 0xF983, 0x65C5, 0x0,
    0xF984, 0x6FFE, 0x0, 0xF985, 0x792A, 0x0, 0xF986, 0x95AD, 0x0, 0xF987, 0x9A6A, 0x0,
    0xF988, 0x9E97, 0x0, 0xF989, 0x9ECE, 0x0, 0xF98A, 0x529B, 0x0, 0xF98B, 0x66C6, 0x0,
    0xF98C, 0x6B77, 0x0, 0xF98D, 0x8F62, 0x0, 0xF98E, 0x5E74, 0x0, 0xF98F, 0x6190, 0x0,
    0xF990, 0x6200, 0x0, 0xF991, 0x649A, 0x0, 0xF992, 0x6F23, 0x0, 0xF993, 0x7149, 0x0,
    0xF994, 0x7489, 0x0, 0xF995, 0x79CA, 0x0, 0xF996, 0x7DF4, 0x0, 0xF997, 0x806F, 0x0,
    0xF998, 0x8F26, 0x0, 0xF999, 0x84EE, 0x0, 0xF99A, 0x9023, 0x0, 0xF99B, 0x934A, 0x0,
    0xF99C, 0x5217, 0x0, 0xF99D, 0x52A3, 0x0, 0xF99E, 0x54BD, 0x0, 0xF99F, 0x70C8, 0x0,
    0xF9A0, 0x88C2, 0x0, 0xF9A1, 0x8AAA, 0x0, 0xF9A2, 0x5EC9, 0x0, 0xF9A3, 0x5FF5, 0x0,
    0xF9A4, 0x637B, 0x0, 0xF9A5, 0x6BAE, 0x0, 0xF9A6, 0x7C3E, 0x0, 0xF9A7, 0x7375, 0x0,
    0xF9A8, 0x4EE4, 0x0, 0xF9A9, 0x56F9, 0x0, 0xF9AA, 0x5BE7, 0x0, 0xF9AB, 0x5DBA, 0x0,
    0xF9AC, 0x601C, 0x0, 0xF9AD, 0x73B2, 0x0, 0xF9AE, 0x7469, 0x0, 0xF9AF, 0x7F9A, 0x0,
    0xF9B0, 0x8046, 0x0, 0xF9B1, 0x9234, 0x0, 0xF9B2, 0x96F6, 0x0, 0xF9B3, 0x9748, 0x0,
    0xF9B4, 0x9818, 0x0, 0xF9B5, 0x4F8B, 0x0, 0xF9B6, 0x79AE, 0x0, 0xF9B7, 0x91B4, 0x0,
    0xF9B8, 0x96B8, 0x0, 0xF9B9, 0x60E1, 0x0, 0xF9BA, 0x4E86, 0x0, 0xF9BB, 0x50DA, 0x0,
    0xF9BC, 0x5BEE, 0x0, 0xF9BD, 0x5C3F, 0x0, 0xF9BE, 0x6599, 0x0, 0xF9BF, 0x6A02, 0x0,
    0xF9C0, 0x71CE, 0x0, 0xF9C1, 0x7642, 0x0, 0xF9C2, 0x84FC, 0x0, 0xF9C3, 0x907C, 0x0,
    0xF9C4, 0x9F8D, 0x0, 0xF9C5, 0x6688, 0x0, 0xF9C6, 0x962E, 0x0, 0xF9C7, 0x5289, 0x0,
    0xF9C8, 0x677B, 0x0, 0xF9C9, 0x67F3, 0x0, 0xF9CA, 0x6D41, 0x0, 0xF9CB, 0x6E9C, 0x0,
    0xF9CC, 0x7409, 0x0, 0xF9CD, 0x7559, 0x0, 0xF9CE, 0x786B, 0x0, 0xF9CF, 0x7D10, 0x0,
    0xF9D0, 0x985E, 0x0, 0xF9D1, 0x516D, 0x0, 0xF9D2, 0x622E, 0x0, 0xF9D3, 0x9678, 0x0,
    0xF9D4, 0x502B, 0x0, 0xF9D5, 0x5D19, 0x0, 0xF9D6, 0x6DEA, 0x0, 0xF9D7, 0x8F2A, 0x0,
    0xF9D8, 0x5F8B, 0x0, 0xF9D9, 0x6144, 0x0, 0xF9DA, 0x6817, 0x0, 0xF9DB, 0x7387, 0x0,
    0xF9DC, 0x9686, 0x0, 0xF9DD, 0x5229, 0x0, 0xF9DE, 0x540F, 0x0, 0xF9DF, 0x5C65, 0x0,
    0xF9E0, 0x6613, 0x0, 0xF9E1, 0x674E, 0x0, 0xF9E2, 0x68A8, 0x0, 0xF9E3, 0x6CE5, 0x0,
    0xF9E4, 0x7406, 0x0, 0xF9E5, 0x75E2, 0x0, 0xF9E6, 0x7F79, 0x0, 0xF9E7, 0x88CF, 0x0,
    0xF9E8, 0x88E1, 0x0, 0xF9E9, 0x91CC, 0x0, 0xF9EA, 0x96E2, 0x0, 0xF9EB, 0x533F, 0x0,
    0xF9EC, 0x6EBA, 0x0, 0xF9ED, 0x541D, 0x0, 0xF9EE, 0x71D0, 0x0, 0xF9EF, 0x7498, 0x0,
    0xF9F0, 0x85FA, 0x0, 0xF9F1, 0x96A3, 0x0, 0xF9F2, 0x9C57, 0x0, 0xF9F3, 0x9E9F, 0x0,
    0xF9F4, 0x6797, 0x0, 0xF9F5, 0x6DCB, 0x0, 0xF9F6, 0x81E8, 0x0, 0xF9F7, 0x7ACB, 0x0,
    0xF9F8, 0x7B20, 0x0, 0xF9F9, 0x7C92, 0x0, 0xF9FA, 0x72C0, 0x0, 0xF9FB, 0x7099, 0x0,
    0xF9FC, 0x8B58, 0x0, 0xF9FD, 0x4EC0, 0x0, 0xF9FE, 0x8336, 0x0, 0xF9FF, 0x523A, 0x0,
    0xFA00, 0x5207, 0x0, 0xFA01, 0x5EA6, 0x0, 0xFA02, 0x62D3, 0x0, 0xFA03, 0x7CD6, 0x0,
    0xFA04, 0x5B85, 0x0, 0xFA05, 0x6D1E, 0x0, 0xFA06, 0x66B4, 0x0, 0xFA07, 0x8F3B, 0x0,
    0xFA08, 0x884C, 0x0, 0xFA09, 0x964D, 0x0, 0xFA0A, 0x898B, 0x0, 0xFA0B, 0x5ED3, 0x0,
    0xFA0C, 0x5140, 0x0, 0xFA0D, 0x55C0, 0x0, 0xFA10, 0x585A, 0x0, 0xFA12, 0x6674, 0x0,
    0xFA15, 0x51DE, 0x0, 0xFA16, 0x732A, 0x0, 0xFA17, 0x76CA, 0x0, 0xFA18, 0x793C, 0x0,
    0xFA19, 0x795E, 0x0, 0xFA1A, 0x7965, 0x0, 0xFA1B, 0x798F, 0x0, 0xFA1C, 0x9756, 0x0,
    0xFA1D, 0x7CBE, 0x0, 0xFA1E, 0x7FBD, 0x0, 0xFA20, 0x8612, 0x0, 0xFA22, 0x8AF8, 0x0,
    0xFA25, 0x9038, 0x0, 0xFA26, 0x90FD, 0x0, 0xFA2A, 0x98EF, 0x0, 0xFA2B, 0x98FC, 0x0,
    0xFA2C, 0x9928, 0x0, 0xFA2D, 0x9DB4, 0x0, 0xFA2E, 0x90DE, 0x0, 0xFA2F, 0x96B7, 0x0,
    0xFA30, 0x4FAE, 0x0, 0xFA31, 0x50E7, 0x0, 0xFA32, 0x514D, 0x0, 0xFA33, 0x52C9, 0x0,
    0xFA34, 0x52E4, 0x0, 0xFA35, 0x5351, 0x0, 0xFA36, 0x559D, 0x0, 0xFA37, 0x5606, 0x0,
    0xFA38, 0x5668, 0x0, 0xFA39, 0x5840, 0x0, 0xFA3A, 0x58A8, 0x0, 0xFA3B, 0x5C64, 0x0,
    0xFA3C, 0x5C6E, 0x0, 0xFA3D, 0x6094, 0x0, 0xFA3E, 0x6168, 0x0, 0xFA3F, 0x618E, 0x0,
    0xFA40, 0x61F2, 0x0, 0xFA41, 0x654F, 0x0, 0xFA42, 0x65E2, 0x0, 0xFA43, 0x6691, 0x0,
    0xFA44, 0x6885, 0x0, 0xFA45, 0x6D77, 0x0, 0xFA46, 0x6E1A, 0x0, 0xFA47, 0x6F22, 0x0,
    0xFA48, 0x716E, 0x0, 0xFA49, 0x722B, 0x0, 0xFA4A, 0x7422, 0x0, 0xFA4B, 0x7891, 0x0,
    0xFA4C, 0x793E, 0x0, 0xFA4D, 0x7949, 0x0, 0xFA4E, 0x7948, 0x0, 0xFA4F, 0x7950, 0x0,
    0xFA50, 0x7956, 0x0, 0xFA51, 0x795D, 0x0, 0xFA52, 0x798D, 0x0, 0xFA53, 0x798E, 0x0,
    0xFA54, 0x7A40, 0x0, 0xFA55, 0x7A81, 0x0, 0xFA56, 0x7BC0, 0x0, 0xFA57, 0x7DF4, 0x0,
    0xFA58, 0x7E09, 0x0, 0xFA59, 0x7E41, 0x0, 0xFA5A, 0x7F72, 0x0, 0xFA5B, 0x8005, 0x0,
    0xFA5C, 0x81ED, 0x0, 0xFA5D, 0x8279, 0x0, 0xFA5E, 0x8279, 0x0, 0xFA5F, 0x8457, 0x0,
    0xFA60, 0x8910, 0x0, 0xFA61, 0x8996, 0x0, 0xFA62, 0x8B01, 0x0, 0xFA63, 0x8B39, 0x0,
    0xFA64, 0x8CD3, 0x0, 0xFA65, 0x8D08, 0x0, 0xFA66, 0x8FB6, 0x0, 0xFA67, 0x9038, 0x0,
    0xFA68, 0x96E3, 0x0, 0xFA69, 0x97FF, 0x0, 0xFA6A, 0x983B, 0x0, 0xFA6B, 0x6075, 0x0,
    0xFA6C, 0x242EE, 0x0, 0xFA6D, 0x8218, 0x0, 0xFA70, 0x4E26, 0x0, 0xFA71, 0x51B5, 0x0,
    0xFA72, 0x5168, 0x0, 0xFA73, 0x4F80, 0x0, 0xFA74, 0x5145, 0x0, 0xFA75, 0x5180, 0x0,
    0xFA76, 0x52C7, 0x0, 0xFA77, 0x52FA, 0x0, 0xFA78, 0x559D, 0x0, 0xFA79, 0x5555, 0x0,
    0xFA7A, 0x5599, 0x0, 0xFA7B, 0x55E2, 0x0, 0xFA7C, 0x585A, 0x0, 0xFA7D, 0x58B3, 0x0,
    0xFA7E, 0x5944, 0x0, 0xFA7F, 0x5954, 0x0, 0xFA80, 0x5A62, 0x0, 0xFA81, 0x5B28, 0x0,
    0xFA82, 0x5ED2, 0x0, 0xFA83, 0x5ED9, 0x0, 0xFA84, 0x5F69, 0x0, 0xFA85, 0x5FAD, 0x0,
    0xFA86, 0x60D8, 0x0, 0xFA87, 0x614E, 0x0, 0xFA88, 0x6108, 0x0, 0xFA89, 0x618E, 0x0,
    0xFA8A, 0x6160, 0x0, 0xFA8B, 0x61F2, 0x0, 0xFA8C, 0x6234, 0x0, 0xFA8D, 0x63C4, 0x0,
    0xFA8E, 0x641C, 0x0, 0xFA8F, 0x6452, 0x0, 0xFA90, 0x6556, 0x0, 0xFA91, 0x6674, 0x0,
    0xFA92, 0x6717, 0x0, 0xFA93, 0x671B, 0x0, 0xFA94, 0x6756, 0x0, 0xFA95, 0x6B79, 0x0,
    0xFA96, 0x6BBA, 0x0, 0xFA97, 0x6D41, 0x0, 0xFA98, 0x6EDB, 0x0, 0xFA99, 0x6ECB, 0x0,
    0xFA9A, 0x6F22, 0x0, 0xFA9B, 0x701E, 0x0, 0xFA9C, 0x716E, 0x0, 0xFA9D, 0x77A7, 0x0,
    0xFA9E, 0x7235, 0x0, 0xFA9F, 0x72AF, 0x0, 0xFAA0, 0x732A, 0x0, 0xFAA1, 0x7471, 0x0,
    0xFAA2, 0x7506, 0x0, 0xFAA3, 0x753B, 0x0, 0xFAA4, 0x761D, 0x0, 0xFAA5, 0x761F, 0x0,
    0xFAA6, 0x76CA, 0x0, 0xFAA7, 0x76DB, 0x0, 0xFAA8, 0x76F4, 0x0, 0xFAA9, 0x774A, 0x0,
    0xFAAA, 0x7740, 0x0, 0xFAAB, 0x78CC, 0x0, 0xFAAC, 0x7AB1, 0x0, 0xFAAD, 0x7BC0, 0x0,
    0xFAAE, 0x7C7B, 0x0, 0xFAAF, 0x7D5B, 0x0, 0xFAB0, 0x7DF4, 0x0, 0xFAB1, 0x7F3E, 0x0,
    0xFAB2, 0x8005, 0x0, 0xFAB3, 0x8352, 0x0, 0xFAB4, 0x83EF, 0x0, 0xFAB5, 0x8779, 0x0,
    0xFAB6, 0x8941, 0x0, 0xFAB7, 0x8986, 0x0, 0xFAB8, 0x8996, 0x0, 0xFAB9, 0x8ABF, 0x0,
    0xFABA, 0x8AF8, 0x0, 0xFABB, 0x8ACB, 0x0, 0xFABC, 0x8B01, 0x0, 0xFABD, 0x8AFE, 0x0,
    0xFABE, 0x8AED, 0x0, 0xFABF, 0x8B39, 0x0, 0xFAC0, 0x8B8A, 0x0, 0xFAC1, 0x8D08, 0x0,
    0xFAC2, 0x8F38, 0x0, 0xFAC3, 0x9072, 0x0, 0xFAC4, 0x9199, 0x0, 0xFAC5, 0x9276, 0x0,
    0xFAC6, 0x967C, 0x0, 0xFAC7, 0x96E3, 0x0, 0xFAC8, 0x9756, 0x0, 0xFAC9, 0x97DB, 0x0,
    0xFACA, 0x97FF, 0x0, 0xFACB, 0x980B, 0x0, 0xFACC, 0x983B, 0x0, 0xFACD, 0x9B12, 0x0,
    0xFACE, 0x9F9C, 0x0, 0xFACF, 0x2284A, 0x0, 0xFAD0, 0x22844, 0x0, 0xFAD1, 0x233D5, 0x0,
    0xFAD2, 0x3B9D, 0x0, 0xFAD3, 0x4018, 0x0, 0xFAD4, 0x4039, 0x0, 0xFAD5, 0x25249, 0x0,
    0xFAD6, 0x25CD0, 0x0, 0xFAD7, 0x27ED3, 0x0, 0xFAD8, 0x9F43, 0x0, 0xFAD9, 0x9F8E, 0x0,
    0xFB1D, 0x5D9, 0x5B4, 0xFB1F, 0x5F2, 0x5B7, 0xFB2A, 0x5E9, 0x5C1, 0xFB2B, 0x5E9, 0x5C2,
    0xFB2C, 0xFB49, 0x5C1, 0xFB2D, 0xFB49, 0x5C2, 0xFB2E, 0x5D0, 0x5B7, 0xFB2F, 0x5D0, 0x5B8,
    0xFB30, 0x5D0, 0x5BC, 0xFB31, 0x5D1, 0x5BC, 0xFB32, 0x5D2, 0x5BC, 0xFB33, 0x5D3, 0x5BC,
    0xFB34, 0x5D4, 0x5BC, 0xFB35, 0x5D5, 0x5BC, 0xFB36, 0x5D6, 0x5BC, 0xFB38, 0x5D8, 0x5BC,
    0xFB39, 0x5D9, 0x5BC, 0xFB3A, 0x5DA, 0x5BC, 0xFB3B, 0x5DB, 0x5BC, 0xFB3C, 0x5DC, 0x5BC,
    0xFB3E, 0x5DE, 0x5BC, 0xFB40, 0x5E0, 0x5BC, 0xFB41, 0x5E1, 0x5BC, 0xFB43, 0x5E3, 0x5BC,
    0xFB44, 0x5E4, 0x5BC, 0xFB46, 0x5E6, 0x5BC, 0xFB47, 0x5E7, 0x5BC, 0xFB48, 0x5E8, 0x5BC,
    0xFB49, 0x5E9, 0x5BC, 0xFB4A, 0x5EA, 0x5BC, 0xFB4B, 0x5D5, 0x5B9, 0xFB4C, 0x5D1, 0x5BF,
    0xFB4D, 0x5DB, 0x5BF, 0xFB4E, 0x5E4, 0x5BF, 0x1109A, 0x11099, 0x110BA,
    0x1109C, 0x1109B, 0x110BA, 0x110AB, 0x110A5, 0x110BA, 0x1112E, 0x11131, 0x11127,
    0x1112F, 0x11132, 0x11127, 0x1134B, 0x11347, 0x1133E, 0x1134C, 0x11347, 0x11357,
    0x114BB, 0x114B9, 0x114BA, 0x114BC, 0x114B9, 0x114B0, 0x114BE, 0x114B9, 0x114BD,
    0x115BA, 0x115B8, 0x115AF, 0x115BB, 0x115B9, 0x115AF, 0x11938, 0x11935, 0x11930,
    0x1D15E, 0x1D157, 0x1D165, 0x1D15F, 0x1D158, 0x1D165, 0x1D160, 0x1D15F, 0x1D16E,
    0x1D161, 0x1D15F, 0x1D16F, 0x1D162, 0x1D15F, 0x1D170, 0x1D163, 0x1D15F, 0x1D171,
    0x1D164, 0x1D15F, 0x1D172, 0x1D1BB, 0x1D1B9, 0x1D165, 0x1D1BC, 0x1D1BA, 0x1D165,
    0x1D1BD, 0x1D1BB, 0x1D16E, 0x1D1BE, 0x1D1BC, 0x1D16E, 0x1D1BF, 0x1D1BB, 0x1D16F,
    0x1D1C0, 0x1D1BC, 0x1D16F, 0x2F800, 0x4E3D, 0x0, 0x2F801, 0x4E38, 0x0, 0x2F802, 0x4E41, 0x0,
    0x2F803, 0x20122, 0x0, 0x2F804, 0x4F60, 0x0, 0x2F805, 0x4FAE, 0x0, 0x2F806, 0x4FBB, 0x0,
    0x2F807, 0x5002, 0x0, 0x2F808, 0x507A, 0x0, 0x2F809, 0x5099, 0x0, 0x2F80A, 0x50E7, 0x0,
    0x2F80B, 0x50CF, 0x0, 0x2F80C, 0x349E, 0x0, 0x2F80D, 0x2063A, 0x0, 0x2F80E, 0x514D, 0x0,
    0x2F80F, 0x5154, 0x0, 0x2F810, 0x5164, 0x0, 0x2F811, 0x5177, 0x0, 0x2F812, 0x2051C, 0x0,
    0x2F813, 0x34B9, 0x0, 0x2F814, 0x5167, 0x0, 0x2F815, 0x518D, 0x0, 0x2F816, 0x2054B, 0x0,
    0x2F817, 0x5197, 0x0, 0x2F818, 0x51A4, 0x0, 0x2F819, 0x4ECC, 0x0, 0x2F81A, 0x51AC, 0x0,
    0x2F81B, 0x51B5, 0x0, 0x2F81C, 0x291DF, 0x0, 0x2F81D, 0x51F5, 0x0, 0x2F81E, 0x5203, 0x0,
    0x2F81F, 0x34DF, 0x0, 0x2F820, 0x523B, 0x0, 0x2F821, 0x5246, 0x0, 0x2F822, 0x5272, 0x0,
    0x2F823, 0x5277, 0x0, 0x2F824, 0x3515, 0x0, 0x2F825, 0x52C7, 0x0, 0x2F826, 0x52C9, 0x0,
    0x2F827, 0x52E4, 0x0, 0x2F828, 0x52FA, 0x0, 0x2F829, 0x5305, 0x0, 0x2F82A, 0x5306, 0x0,
    0x2F82B, 0x5317, 0x0, 0x2F82C, 0x5349, 0x0, 0x2F82D, 0x5351, 0x0, 0x2F82E, 0x535A, 0x0,
    0x2F82F, 0x5373, 0x0, 0x2F830, 0x537D, 0x0, 0x2F831, 0x537F, 0x0, 0x2F832, 0x537F, 0x0,
    0x2F833, 0x537F, 0x0, 0x2F834, 0x20A2C, 0x0, 0x2F835, 0x7070, 0x0, 0x2F836, 0x53CA, 0x0,
    0x2F837, 0x53DF, 0x0, 0x2F838, 0x20B63, 0x0, 0x2F839, 0x53EB, 0x0, 0x2F83A, 0x53F1, 0x0,
    0x2F83B, 0x5406, 0x0, 0x2F83C, 0x549E, 0x0, 0x2F83D, 0x5438, 0x0, 0x2F83E, 0x5448, 0x0,
    0x2F83F, 0x5468, 0x0, 0x2F840, 0x54A2, 0x0, 0x2F841, 0x54F6, 0x0, 0x2F842, 0x5510, 0x0,
    0x2F843, 0x5553, 0x0, 0x2F844, 0x5563, 0x0, 0x2F845, 0x5584, 0x0, 0x2F846, 0x5584, 0x0,
    0x2F847, 0x5599, 0x0, 0x2F848, 0x55AB, 0x0, 0x2F849, 0x55B3, 0x0, 0x2F84A, 0x55C2, 0x0,
    0x2F84B, 0x5716, 0x0, 0x2F84C, 0x5606, 0x0, 0x2F84D, 0x5717, 0x0, 0x2F84E, 0x5651, 0x0,
    0x2F84F, 0x5674, 0x0, 0x2F850, 0x5207, 0x0, 0x2F851, 0x58EE, 0x0, 0x2F852, 0x57CE, 0x0,
    0x2F853, 0x57F4, 0x0, 0x2F854, 0x580D, 0x0, 0x2F855, 0x578B, 0x0, 0x2F856, 0x5832, 0x0,
    0x2F857, 0x5831, 0x0, 0x2F858, 0x58AC, 0x0, 0x2F859, 0x214E4, 0x0, 0x2F85A, 0x58F2, 0x0,
    0x2F85B, 0x58F7, 0x0, 0x2F85C, 0x5906, 0x0, 0x2F85D, 0x591A, 0x0, 0x2F85E, 0x5922, 0x0,
    0x2F85F, 0x5962, 0x0, 0x2F860, 0x216A8, 0x0, 0x2F861, 0x216EA, 0x0, 0x2F862, 0x59EC, 0x0,
    0x2F863, 0x5A1B, 0x0, 0x2F864, 0x5A27, 0x0, 0x2F865, 0x59D8, 0x0, 0x2F866, 0x5A66, 0x0,
    0x2F867, 0x36EE, 0x0, 0x2F868, 0x36FC, 0x0, 0x2F869, 0x5B08, 0x0, 0x2F86A, 0x5B3E, 0x0,
    0x2F86B, 0x5B3E, 0x0, 0x2F86C, 0x219C8, 0x0, 0x2F86D, 0x5BC3, 0x0, 0x2F86E, 0x5BD8, 0x0,
    0x2F86F, 0x5BE7, 0x0, 0x2F870, 0x5BF3, 0x0, 0x2F871, 0x21B18, 0x0, 0x2F872, 0x5BFF, 0x0,
    0x2F873, 0x5C06, 0x0, 0x2F874, 0x5F53, 0x0, 0x2F875, 0x5C22, 0x0, 0x2F876, 0x3781, 0x0,
    0x2F877, 0x5C60, 0x0, 0x2F878, 0x5C6E, 0x0, 0x2F879, 0x5CC0, 0x0, 0x2F87A, 0x5C8D, 0x0,
    0x2F87B, 0x21DE4, 0x0, 0x2F87C, 0x5D43, 0x0, 0x2F87D, 0x21DE6, 0x0, 0x2F87E, 0x5D6E, 0x0,
    0x2F87F, 0x5D6B, 0x0, 0x2F880, 0x5D7C, 0x0, 0x2F881, 0x5DE1, 0x0, 0x2F882, 0x5DE2, 0x0,
    0x2F883, 0x382F, 0x0, 0x2F884, 0x5DFD, 0x0, 0x2F885, 0x5E28, 0x0, 0x2F886, 0x5E3D, 0x0,
    0x2F887, 0x5E69, 0x0, 0x2F888, 0x3862, 0x0, 0x2F889, 0x22183, 0x0, 0x2F88A, 0x387C, 0x0,
    0x2F88B, 0x5EB0, 0x0, 0x2F88C, 0x5EB3, 0x0, 0x2F88D, 0x5EB6, 0x0, 0x2F88E, 0x5ECA, 0x0,
    0x2F88F, 0x2A392, 0x0, 0x2F890, 0x5EFE, 0x0, 0x2F891, 0x22331, 0x0, 0x2F892, 0x22331, 0x0,
    0x2F893, 0x8201, 0x0, 0x2F894, 0x5F22, 0x0, 0x2F895, 0x5F22, 0x0, 0x2F896, 0x38C7, 0x0,
    0x2F897, 0x232B8, 0x0, 0x2F898, 0x261DA, 0x0, 0x2F899, 0x5F62, 0x0, 0x2F89A, 0x5F6B, 0x0,
    0x2F89B, 0x38E3, 0x0, 0x2F89C, 0x5F9A, 0x0, 0x2F89D, 0x5FCD, 0x0, 0x2F89E, 0x5FD7, 0x0,
    0x2F89F, 0x5FF9, 0x0, 0x2F8A0, 0x6081, 0x0, 0x2F8A1, 0x393A, 0x0, 0x2F8A2, 0x391C, 0x0,
    0x2F8A3, 0x6094, 0x0, 0x2F8A4, 0x226D4, 0x0, 0x2F8A5, 0x60C7, 0x0, 0x2F8A6, 0x6148, 0x0,
    0x2F8A7, 0x614C, 0x0, 0x2F8A8, 0x614E, 0x0, 0x2F8A9, 0x614C, 0x0, 0x2F8AA, 0x617A, 0x0,
    0x2F8AB, 0x618E, 0x0, 0x2F8AC, 0x61B2, 0x0, 0x2F8AD, 0x61A4, 0x0, 0x2F8AE, 0x61AF, 0x0,
    0x2F8AF, 0x61DE, 0x0, 0x2F8B0, 0x61F2, 0x0, 0x2F8B1, 0x61F6, 0x0, 0x2F8B2, 0x6210, 0x0,
    0x2F8B3, 0x621B, 0x0, 0x2F8B4, 0x625D, 0x0, 0x2F8B5, 0x62B1, 0x0, 0x2F8B6, 0x62D4, 0x0,
    0x2F8B7, 0x6350, 0x0, 0x2F8B8, 0x22B0C, 0x0, 0x2F8B9, 0x633D, 0x0, 0x2F8BA, 0x62FC, 0x0,
    0x2F8BB, 0x6368, 0x0, 0x2F8BC, 0x6383, 0x0, 0x2F8BD, 0x63E4, 0x0, 0x2F8BE, 0x22BF1, 0x0,
    0x2F8BF, 0x6422, 0x0, 0x2F8C0, 0x63C5, 0x0, 0x2F8C1, 0x63A9, 0x0, 0x2F8C2, 0x3A2E, 0x0,
    0x2F8C3, 0x6469, 0x0, 0x2F8C4, 0x647E, 0x0, 0x2F8C5, 0x649D, 0x0, 0x2F8C6, 0x6477, 0x0,
    0x2F8C7, 0x3A6C, 0x0, 0x2F8C8, 0x654F, 0x0, 0x2F8C9, 0x656C, 0x0, 0x2F8CA, 0x2300A, 0x0,
    0x2F8CB, 0x65E3, 0x0, 0x2F8CC, 0x66F8, 0x0, 0x2F8CD, 0x6649, 0x0, 0x2F8CE, 0x3B19, 0x0,
    0x2F8CF, 0x6691, 0x0, 0x2F8D0, 0x3B08, 0x0, 0x2F8D1, 0x3AE4, 0x0, 0x2F8D2, 0x5192, 0x0,
    0x2F8D3, 0x5195, 0x0, 0x2F8D4, 0x6700, 0x0, 0x2F8D5, 0x669C, 0x0, 0x2F8D6, 0x80AD, 0x0,
    0x2F8D7, 0x43D9, 0x0, 0x2F8D8, 0x6717, 0x0, 0x2F8D9, 0x671B, 0x0, 0x2F8DA, 0x6721, 0x0,
    0x2F8DB, 0x675E, 0x0, 0x2F8DC, 0x6753, 0x0, 0x2F8DD, 0x233C3, 0x0, 0x2F8DE, 0x3B49, 0x0,
    0x2F8DF, 0x67FA, 0x0, 0x2F8E0, 0x6785, 0x0, 0x2F8E1, 0x6852, 0x0, 0x2F8E2, 0x6885, 0x0,
    0x2F8E3, 0x2346D, 0x0, 0x2F8E4, 0x688E, 0x0, 0x2F8E5, 0x681F, 0x0, 0x2F8E6, 0x6914, 0x0,
    0x2F8E7, 0x3B9D, 0x0, 0x2F8E8, 0x6942, 0x0, 0x2F8E9, 0x69A3, 0x0, 0x2F8EA, 0x69EA, 0x0,
    0x2F8EB, 0x6AA8, 0x0, 0x2F8EC, 0x236A3, 0x0, 0x2F8ED, 0x6ADB, 0x0, 0x2F8EE, 0x3C18, 0x0,
    0x2F8EF, 0x6B21, 0x0, 0x2F8F0, 0x238A7, 0x0, 0x2F8F1, 0x6B54, 0x0, 0x2F8F2, 0x3C4E, 0x0,
    0x2F8F3, 0x6B72, 0x0, 0x2F8F4, 0x6B9F, 0x0, 0x2F8F5, 0x6BBA, 0x0, 0x2F8F6, 0x6BBB, 0x0,
    0x2F8F7, 0x23A8D, 0x0, 0x2F8F8, 0x21D0B, 0x0, 0x2F8F9, 0x23AFA, 0x0, 0x2F8FA, 0x6C4E, 0x0,
    0x2F8FB, 0x23CBC, 0x0, 0x2F8FC, 0x6CBF, 0x0, 0x2F8FD, 0x6CCD, 0x0, 0x2F8FE, 0x6C67, 0x0,
    0x2F8FF, 0x6D16, 0x0, 0x2F900, 0x6D3E, 0x0, 0x2F901, 0x6D77, 0x0, 0x2F902, 0x6D41, 0x0,
    0x2F903, 0x6D69, 0x0, 0x2F904, 0x6D78, 0x0, 0x2F905, 0x6D85, 0x0, 0x2F906, 0x23D1E, 0x0,
    0x2F907, 0x6D34, 0x0, 0x2F908, 0x6E2F, 0x0, 0x2F909, 0x6E6E, 0x0, 0x2F90A, 0x3D33, 0x0,
    0x2F90B, 0x6ECB, 0x0, 0x2F90C, 0x6EC7, 0x0, 0x2F90D, 0x23ED1, 0x0, 0x2F90E, 0x6DF9, 0x0,
    0x2F90F, 0x6F6E, 0x0, 0x2F910, 0x23F5E, 0x0, 0x2F911, 0x23F8E, 0x0, 0x2F912, 0x6FC6, 0x0,
    0x2F913, 0x7039, 0x0, 0x2F914, 0x701E, 0x0, 0x2F915, 0x701B, 0x0, 0x2F916, 0x3D96, 0x0,
    0x2F917, 0x704A, 0x0, 0x2F918, 0x707D, 0x0, 0x2F919, 0x7077, 0x0, 0x2F91A, 0x70AD, 0x0,
    0x2F91B, 0x20525, 0x0, 0x2F91C, 0x7145, 0x0, 0x2F91D, 0x24263, 0x0, 0x2F91E, 0x719C, 0x0,
    0x2F91F, 0x243AB, 0x0, 0x2F920, 0x7228, 0x0, 0x2F921, 0x7235, 0x0, 0x2F922, 0x7250, 0x0,
    0x2F923, 0x24608, 0x0, 0x2F924, 0x7280, 0x0, 0x2F925, 0x7295, 0x0, 0x2F926, 0x24735, 0x0,
    0x2F927, 0x24814, 0x0, 0x2F928, 0x737A, 0x0, 0x2F929, 0x738B, 0x0, 0x2F92A, 0x3EAC, 0x0,
    0x2F92B, 0x73A5, 0x0, 0x2F92C, 0x3EB8, 0x0, 0x2F92D, 0x3EB8, 0x0, 0x2F92E, 0x7447, 0x0,
    0x2F92F, 0x745C, 0x0, 0x2F930, 0x7471, 0x0, 0x2F931, 0x7485, 0x0, 0x2F932, 0x74CA, 0x0,
    0x2F933, 0x3F1B, 0x0, 0x2F934, 0x7524, 0x0, 0x2F935, 0x24C36, 0x0, 0x2F936, 0x753E, 0x0,
    0x2F937, 0x24C92, 0x0, 0x2F938, 0x7570, 0x0, 0x2F939, 0x2219F, 0x0, 0x2F93A, 0x7610, 0x0,
    0x2F93B, 0x24FA1, 0x0, 0x2F93C, 0x24FB8, 0x0, 0x2F93D, 0x25044, 0x0, 0x2F93E, 0x3FFC, 0x0,
    0x2F93F, 0x4008, 0x0, 0x2F940, 0x76F4, 0x0, 0x2F941, 0x250F3, 0x0, 0x2F942, 0x250F2, 0x0,
    0x2F943, 0x25119, 0x0, 0x2F944, 0x25133, 0x0, 0x2F945, 0x771E, 0x0, 0x2F946, 0x771F, 0x0,
    0x2F947, 0x771F, 0x0, 0x2F948, 0x774A, 0x0, 0x2F949, 0x4039, 0x0, 0x2F94A, 0x778B, 0x0,
    0x2F94B, 0x4046, 0x0, 0x2F94C, 0x4096, 0x0, 0x2F94D, 0x2541D, 0x0, 0x2F94E, 0x784E, 0x0,
    0x2F94F, 0x788C, 0x0, 0x2F950, 0x78CC, 0x0, 0x2F951, 0x40E3, 0x0, 0x2F952, 0x25626, 0x0,
    0x2F953, 0x7956, 0x0, 0x2F954, 0x2569A, 0x0, 0x2F955, 0x256C5, 0x0, 0x2F956, 0x798F, 0x0,
    0x2F957, 0x79EB, 0x0, 0x2F958, 0x412F, 0x0, 0x2F959, 0x7A40, 0x0, 0x2F95A, 0x7A4A, 0x0,
    0x2F95B, 0x7A4F, 0x0, 0x2F95C, 0x2597C, 0x0, 0x2F95D, 0x25AA7, 0x0, 0x2F95E, 0x25AA7, 0x0,
    0x2F95F, 0x7AEE, 0x0, 0x2F960, 0x4202, 0x0, 0x2F961, 0x25BAB, 0x0, 0x2F962, 0x7BC6, 0x0,
    0x2F963, 0x7BC9, 0x0, 0x2F964, 0x4227, 0x0, 0x2F965, 0x25C80, 0x0, 0x2F966, 0x7CD2, 0x0,
    0x2F967, 0x42A0, 0x0, 0x2F968, 0x7CE8, 0x0, 0x2F969, 0x7CE3, 0x0, 0x2F96A, 0x7D00, 0x0,
    0x2F96B, 0x25F86, 0x0, 0x2F96C, 0x7D63, 0x0, 0x2F96D, 0x4301, 0x0, 0x2F96E, 0x7DC7, 0x0,
    0x2F96F, 0x7E02, 0x0, 0x2F970, 0x7E45, 0x0, 0x2F971, 0x4334, 0x0, 0x2F972, 0x26228, 0x0,
    0x2F973, 0x26247, 0x0, 0x2F974, 0x4359, 0x0, 0x2F975, 0x262D9, 0x0, 0x2F976, 0x7F7A, 0x0,
    0x2F977, 0x2633E, 0x0, 0x2F978, 0x7F95, 0x0, 0x2F979, 0x7FFA, 0x0, 0x2F97A, 0x8005, 0x0,
    0x2F97B, 0x264DA, 0x0, 0x2F97C, 0x26523, 0x0, 0x2F97D, 0x8060, 0x0, 0x2F97E, 0x265A8, 0x0,
    0x2F97F, 0x8070, 0x0, 0x2F980, 0x2335F, 0x0, 0x2F981, 0x43D5, 0x0, 0x2F982, 0x80B2, 0x0,
    0x2F983, 0x8103, 0x0, 0x2F984, 0x440B, 0x0, 0x2F985, 0x813E, 0x0, 0x2F986, 0x5AB5, 0x0,
    0x2F987, 0x267A7, 0x0, 0x2F988, 0x267B5, 0x0, 0x2F989, 0x23393, 0x0, 0x2F98A, 0x2339C, 0x0,
    0x2F98B, 0x8201, 0x0, 0x2F98C, 0x8204, 0x0, 0x2F98D, 0x8F9E, 0x0, 0x2F98E, 0x446B, 0x0,
    0x2F98F, 0x8291, 0x0, 0x2F990, 0x828B, 0x0, 0x2F991, 0x829D, 0x0, 0x2F992, 0x52B3, 0x0,
    0x2F993, 0x82B1, 0x0, 0x2F994, 0x82B3, 0x0, 0x2F995, 0x82BD, 0x0, 0x2F996, 0x82E6, 0x0,
    0x2F997, 0x26B3C, 0x0, 0x2F998, 0x82E5, 0x0, 0x2F999, 0x831D, 0x0, 0x2F99A, 0x8363, 0x0,
    0x2F99B, 0x83AD, 0x0, 0x2F99C, 0x8323, 0x0, 0x2F99D, 0x83BD, 0x0, 0x2F99E, 0x83E7, 0x0,
    0x2F99F, 0x8457, 0x0, 0x2F9A0, 0x8353, 0x0, 0x2F9A1, 0x83CA, 0x0, 0x2F9A2, 0x83CC, 0x0,
    0x2F9A3, 0x83DC, 0x0, 0x2F9A4, 0x26C36, 0x0, 0x2F9A5, 0x26D6B, 0x0, 0x2F9A6, 0x26CD5, 0x0,
    0x2F9A7, 0x452B, 0x0, 0x2F9A8, 0x84F1, 0x0, 0x2F9A9, 0x84F3, 0x0, 0x2F9AA, 0x8516, 0x0,
    0x2F9AB, 0x273CA, 0x0, 0x2F9AC, 0x8564, 0x0, 0x2F9AD, 0x26F2C, 0x0, 0x2F9AE, 0x455D, 0x0,
    0x2F9AF, 0x4561, 0x0, 0x2F9B0, 0x26FB1, 0x0, 0x2F9B1, 0x270D2, 0x0, 0x2F9B2, 0x456B, 0x0,
    0x2F9B3, 0x8650, 0x0, 0x2F9B4, 0x865C, 0x0, 0x2F9B5, 0x8667, 0x0, 0x2F9B6, 0x8669, 0x0,
    0x2F9B7, 0x86A9, 0x0, 0x2F9B8, 0x8688, 0x0, 0x2F9B9, 0x870E, 0x0, 0x2F9BA, 0x86E2, 0x0,
    0x2F9BB, 0x8779, 0x0, 0x2F9BC, 0x8728, 0x0, 0x2F9BD, 0x876B, 0x0, 0x2F9BE, 0x8786, 0x0,
    0x2F9BF, 0x45D7, 0x0, 0x2F9C0, 0x87E1, 0x0, 0x2F9C1, 0x8801, 0x0, 0x2F9C2, 0x45F9, 0x0,
    0x2F9C3, 0x8860, 0x0, 0x2F9C4, 0x8863, 0x0, 0x2F9C5, 0x27667, 0x0, 0x2F9C6, 0x88D7, 0x0,
    0x2F9C7, 0x88DE, 0x0, 0x2F9C8, 0x4635, 0x0, 0x2F9C9, 0x88FA, 0x0, 0x2F9CA, 0x34BB, 0x0,
    0x2F9CB, 0x278AE, 0x0, 0x2F9CC, 0x27966, 0x0, 0x2F9CD, 0x46BE, 0x0, 0x2F9CE, 0x46C7, 0x0,
    0x2F9CF, 0x8AA0, 0x0, 0x2F9D0, 0x8AED, 0x0, 0x2F9D1, 0x8B8A, 0x0, 0x2F9D2, 0x8C55, 0x0,
    0x2F9D3, 0x27CA8, 0x0, 0x2F9D4, 0x8CAB, 0x0, 0x2F9D5, 0x8CC1, 0x0, 0x2F9D6, 0x8D1B, 0x0,
    0x2F9D7, 0x8D77, 0x0, 0x2F9D8, 0x27F2F, 0x0, 0x2F9D9, 0x20804, 0x0, 0x2F9DA, 0x8DCB, 0x0,
    0x2F9DB, 0x8DBC, 0x0, 0x2F9DC, 0x8DF0, 0x0, 0x2F9DD, 0x208DE, 0x0, 0x2F9DE, 0x8ED4, 0x0,
    0x2F9DF, 0x8F38, 0x0, 0x2F9E0, 0x285D2, 0x0, 0x2F9E1, 0x285ED, 0x0, 0x2F9E2, 0x9094, 0x0,
    0x2F9E3, 0x90F1, 0x0, 0x2F9E4, 0x9111, 0x0, 0x2F9E5, 0x2872E, 0x0, 0x2F9E6, 0x911B, 0x0,
    0x2F9E7, 0x9238, 0x0, 0x2F9E8, 0x92D7, 0x0, 0x2F9E9, 0x92D8, 0x0, 0x2F9EA, 0x927C, 0x0,
    0x2F9EB, 0x93F9, 0x0, 0x2F9EC, 0x9415, 0x0, 0x2F9ED, 0x28BFA, 0x0, 0x2F9EE, 0x958B, 0x0,
    0x2F9EF, 0x4995, 0x0, 0x2F9F0, 0x95B7, 0x0, 0x2F9F1, 0x28D77, 0x0, 0x2F9F2, 0x49E6, 0x0,
    0x2F9F3, 0x96C3, 0x0, 0x2F9F4, 0x5DB2, 0x0, 0x2F9F5, 0x9723, 0x0, 0x2F9F6, 0x29145, 0x0,
    0x2F9F7, 0x2921A, 0x0, 0x2F9F8, 0x4A6E, 0x0, 0x2F9F9, 0x4A76, 0x0, 0x2F9FA, 0x97E0, 0x0,
    0x2F9FB, 0x2940A, 0x0, 0x2F9FC, 0x4AB2, 0x0, 0x2F9FD, 0x29496, 0x0, 0x2F9FE, 0x980B, 0x0,
    0x2F9FF, 0x980B, 0x0, 0x2FA00, 0x9829, 0x0, 0x2FA01, 0x295B6, 0x0, 0x2FA02, 0x98E2, 0x0,
    0x2FA03, 0x4B33, 0x0, 0x2FA04, 0x9929, 0x0, 0x2FA05, 0x99A7, 0x0, 0x2FA06, 0x99C2, 0x0,
    0x2FA07, 0x99FE, 0x0, 0x2FA08, 0x4BCE, 0x0, 0x2FA09, 0x29B30, 0x0, 0x2FA0A, 0x9B12, 0x0,
    0x2FA0B, 0x9C40, 0x0, 0x2FA0C, 0x9CFD, 0x0, 0x2FA0D, 0x4CCE, 0x0, 0x2FA0E, 0x4CED, 0x0,
    0x2FA0F, 0x9D67, 0x0, 0x2FA10, 0x2A0CE, 0x0, 0x2FA11, 0x4CF8, 0x0, 0x2FA12, 0x2A105, 0x0,
    0x2FA13, 0x2A20E, 0x0, 0x2FA14, 0x2A291, 0x0, 0x2FA15, 0x9EBB, 0x0, 0x2FA16, 0x4D56, 0x0,
    0x2FA17, 0x9EF9, 0x0, 0x2FA18, 0x9EFE, 0x0, 0x2FA19, 0x9F05, 0x0, 0x2FA1A, 0x9F0F, 0x0,
    0x2FA1B, 0x9F16, 0x0, 0x2FA1C, 0x9F3B, 0x0, 0x2FA1D, 0x2A600, 0x0,
};

static const uint16_t unicode_composing[] = {
    912, 909, 913, 0, 1, 2, 3, 53, 55, 238, 4, 572, 5, 165, 208, 210, 570, 415, 57, 417, 419, 421,
    59, 61, 63, 65, 6, 425, 67, 427, 431, 433, 429, 7, 8, 9, 598, 69, 71, 73, 10, 596, 77, 212, 214,
    594, 240, 75, 439, 441, 445, 198, 79, 447, 81, 83, 187, 85, 87, 449, 453, 236, 451, 455, 457,
    11, 12, 13, 89, 91, 93, 97, 14, 610, 167, 216, 218, 612, 95, 459, 98, 463, 189, 465, 100, 467,
    102, 106, 469, 104, 475, 473, 477, 479, 481, 200, 108, 15, 483, 112, 485, 110, 489, 487, 16, 17,
    18, 19, 114, 116, 246, 20, 616, 118, 169, 220, 222, 161, 614, 191, 499, 501, 120, 503, 124, 224,
    226, 505, 122, 509, 126, 128, 511, 132, 513, 232, 130, 521, 136, 523, 234, 134, 527, 525, 21,
    22, 23, 138, 140, 142, 24, 640, 144, 146, 171, 228, 230, 163, 638, 529, 148, 533, 531, 539, 541,
    543, 545, 150, 549, 547, 551, 553, 555, 652, 25, 152, 658, 250, 557, 154, 656, 654, 155, 559,
    157, 159, 561, 563, 26, 27, 28, 29, 54, 56, 239, 30, 573, 31, 166, 209, 211, 571, 416, 58, 418,
    420, 422, 60, 62, 64, 66, 32, 426, 68, 428, 432, 434, 430, 33, 34, 35, 599, 70, 72, 74, 36, 597,
    78, 213, 215, 595, 241, 76, 440, 442, 446, 199, 80, 448, 82, 84, 188, 86, 88, 450, 454, 237,
    452, 456, 458, 565, 37, 38, 39, 90, 92, 94, 40, 611, 168, 217, 219, 613, 96, 460, 99, 197, 464,
    190, 466, 101, 468, 103, 107, 470, 105, 476, 474, 478, 480, 482, 201, 109, 41, 484, 113, 486,
    111, 490, 488, 42, 43, 44, 45, 115, 117, 247, 46, 617, 119, 170, 221, 223, 162, 615, 192, 500,
    502, 121, 504, 125, 225, 227, 506, 123, 510, 127, 129, 512, 133, 514, 233, 131, 522, 566, 137,
    524, 235, 135, 528, 526, 47, 48, 49, 139, 141, 143, 50, 641, 145, 147, 172, 229, 231, 164, 639,
    530, 149, 534, 532, 540, 542, 544, 546, 151, 550, 548, 567, 552, 554, 556, 653, 51, 153, 659,
    251, 558, 52, 657, 568, 655, 156, 560, 158, 160, 562, 564, 875, 258, 835, 576, 574, 580, 578,
    181, 202, 204, 185, 423, 602, 600, 606, 604, 461, 620, 618, 624, 622, 491, 244, 493, 242, 206,
    179, 175, 173, 177, 577, 575, 581, 579, 182, 203, 205, 186, 424, 603, 601, 607, 605, 462, 621,
    619, 625, 623, 492, 245, 494, 243, 207, 180, 176, 174, 178, 586, 584, 590, 588, 587, 585, 591,
    589, 435, 437, 436, 438, 495, 497, 496, 498, 515, 516, 517, 518, 535, 536, 537, 538, 569, 630,
    628, 634, 632, 636, 631, 629, 635, 633, 637, 644, 642, 648, 646, 650, 645, 643, 649, 647, 651,
    195, 193, 194, 183, 184, 443, 444, 248, 249, 196, 831, 259, 830, 829, 668, 669, 833, 841, 261,
    682, 683, 843, 262, 696, 697, 845, 857, 263, 856, 855, 268, 712, 713, 883, 264, 726, 727, 874,
    872, 265, 871, 870, 269, 740, 885, 266, 752, 753, 887, 826, 838, 760, 270, 823, 822, 660, 661,
    827, 825, 762, 271, 676, 677, 764, 272, 688, 689, 839, 837, 766, 273, 850, 849, 275, 704, 705,
    853, 768, 277, 720, 721, 866, 867, 770, 278, 863, 862, 276, 732, 733, 868, 772, 279, 744, 745,
    881, 879, 851, 267, 854, 864, 274, 869, 880, 280, 281, 285, 302, 304, 284, 282, 306, 283, 300,
    310, 312, 287, 314, 289, 316, 286, 318, 324, 288, 326, 328, 330, 332, 322, 303, 305, 293, 291,
    307, 292, 301, 311, 313, 296, 315, 290, 317, 295, 319, 325, 297, 327, 329, 331, 333, 323, 294,
    298, 299, 308, 309, 320, 321, 334, 335, 337, 336, 338, 340, 341, 339, 342, 343, 344, 353, 354,
    365, 364, 366, 369, 370, 372, 371, 373, 374, 377, 375, 376, 378, 379, 381, 380, 382, 383, 385,
    384, 403, 404, 405, 406, 407, 408, 409, 410, 411, 412, 413, 414, 471, 472, 507, 508, 519, 520,
    582, 592, 583, 593, 608, 609, 626, 627, 662, 664, 666, 774, 663, 665, 667, 775, 776, 777, 778,
    779, 780, 781, 670, 672, 674, 782, 671, 673, 675, 783, 784, 785, 786, 787, 788, 789, 678, 680,
    679, 681, 684, 686, 685, 687, 690, 692, 694, 790, 691, 693, 695, 791, 792, 793, 794, 795, 796,
    797, 698, 700, 702, 798, 699, 701, 703, 799, 800, 801, 802, 803, 804, 805, 706, 708, 710, 707,
    709, 711, 714, 716, 718, 715, 717, 719, 722, 724, 723, 725, 728, 730, 729, 731, 734, 736, 738,
    735, 737, 739, 741, 742, 743, 746, 748, 750, 806, 747, 749, 751, 807, 808, 809, 810, 811, 812,
    813, 754, 756, 758, 814, 755, 757, 759, 815, 816, 817, 818, 819, 820, 821, 824, 836, 878, 828,
    846, 847, 848, 840, 882, 859, 860, 861, 894, 895, 896, 897, 899, 898, 900, 901, 902, 903, 904,
    905, 906, 907, 908, 911, 910, 914, 915, 916, 917, 918, 919, 920, 921, 930, 931, 922, 923, 924,
    925, 932, 933, 926, 927, 928, 929, 934, 935, 936, 937, 966, 941, 942, 943, 944, 945, 946, 947,
    948, 949, 950, 951, 952, 953, 954, 955, 956, 957, 958, 959, 960, 961, 962, 963, 964, 965, 967,
    993, 968, 969, 970, 971, 972, 973, 974, 975, 976, 977, 978, 979, 980, 981, 982, 983, 984, 985,
    986, 987, 988, 989, 990, 991, 992, 994, 995, 996, 997, 998, 1493, 1494, 1495, 1496, 1497, 1498,
    1499, 1501, 1500, 1502, 1503, 1504, 1505,
};

/* clang-format on */

#endif /* TC_UNICODE_TABLES_H */

/* ======== src/split.h ======== */

/* split - cuts a text into the words that byte-level BPE merges within: the pre-tokenizers of the
 * model families, written out as scanners instead of the regular expressions they are given as.
 *
 * A word is looked for at the place where the last one ended; the rules of split.c are tried in
 * their order. Linear in the text, whatever it is.
 */
#ifndef TC_SPLIT_H
#define TC_SPLIT_H


enum {
    TC__SPLIT_NONE,   /* the text is one word */
    TC__SPLIT_GPT2,   /* GPT-2, GPT-NeoX (MPT) */
    TC__SPLIT_LLAMA3, /* LLaMA-3: numbers in threes */
    TC__SPLIT_QWEN2,  /* Qwen 2, 2.5, 3: digits one by one */
    TC__SPLIT_FALCON  /* punctuation, then GPT-2, then digits in threes */
};

/* "none", "gpt2", ...: NULL past the end; the index is the number above. */
TC_INTERNAL const char *tc__split_name(int index);

typedef struct tc__splitter {
    int kind; /* TC__SPLIT_* */
    const char *text;
    size_t len, at;
    size_t part_end, word_end; /* Falcon: of the run of (no) punctuation, and GPT-2's word in it */
} tc__splitter;

/* Over valid UTF-8, which must stay while it is cut. */
TC_INTERNAL tc__splitter tc__splitter_make(int kind, const char *text, size_t len);

/* The next word, never empty; false at the end. Words follow each other without gaps. */
TC_INTERNAL bool tc__split_next(tc__splitter *splitter, const char **word, size_t *len);

#endif /* TC_SPLIT_H */

/* ======== src/tokenizer.h ======== */

/* tokenizer - text to token ids and back: SentencePiece BPE, exactly as the sentencepiece library
 * does it (identity normalisation, byte fallback), and the BPE of a tokenizer.json, exactly as the
 * tokenizers package does it; plus special tokens cut out of trusted text.
 *
 * SentencePiece: one run of text is escaped (space -> U+2581), gets a dummy prefix where asked, and
 * malformed UTF-8 becomes U+FFFD byte by byte. It is cut into characters (or user-defined pieces,
 * longest first, which never merge); then the pair of neighbours whose joined piece scores highest,
 * the leftmost among equals, is merged until none is left. A heap keeps that at O(n log n). What is
 * no piece is spelled in byte pieces or, in a vocabulary without them, becomes the unknown id, once
 * per stretch.
 *
 * tokenizer.json: the same, but which neighbours merge, and in which order, is a table. Pieces are
 * bytes, which merge within the words that split.h cuts a run into (after NFC, where asked), or
 * characters as above. Added tokens that are text (NeoX's runs of spaces) are looked for in all
 * text, those that are marks for the model in trusted bytes only.
 *
 * Three deliberate differences: a control or unknown piece is never made out of a run of text, not
 * even one of a single character (where sentencepiece would); an added token written like a mark,
 * <think> or [INST], is special although a tokenizer.json calls it none; special tokens are looked
 * for before normalisation, whatever it says.
 */
#ifndef TC_TOKENIZER_H
#define TC_TOKENIZER_H


enum { /* piece types of SentencePiece, as stored in tokenizer.types */
       TC__PIECE_NORMAL = 1,
       TC__PIECE_UNKNOWN = 2,
       TC__PIECE_CONTROL = 3,
       TC__PIECE_USER = 4,
       TC__PIECE_UNUSED = 5,
       TC__PIECE_BYTE = 6
};

#define TC__MAX_PIECE 1024u /* bytes of one piece */

typedef struct tc__tokenizer tc__tokenizer; /* immutable once made; any number of threads */

/* Builds the tokenizer out of a model file's metadata (docs/format.md). *tokenizer is NULL (and the
 * result TC_OK) when the file says it has none. vocab_size bounds every id. The file must outlive
 * the tokenizer.
 * Errors: FORMAT, UNSUPPORTED (another type of tokenizer), MEMORY. */
TC_INTERNAL int tc__tokenizer_open(const tc__model_file *file, uint32_t vocab_size,
                                   tc__tokenizer **tokenizer, tc_error *err);
TC_INTERNAL void tc__tokenizer_close(tc__tokenizer *tokenizer);

/* -1 if there is none. What ends a reply is not the tokenizer's business: chat.stop_ids. */
TC_INTERNAL int32_t tc__tokenizer_bos(const tc__tokenizer *tokenizer);
TC_INTERNAL bool tc__tokenizer_adds_bos(const tc__tokenizer *tokenizer);

/* The longest special piece that the text begins with: its length in bytes and *id; 0 and -1 if
 * there is none. Special are control pieces, the unknown piece, added tokens that are no text. */
TC_INTERNAL size_t tc__special_at(const tc__tokenizer *tokenizer, const char *text, size_t len,
                                  int32_t *id);

/* Text whose bytes are marked as the template's (trusted: special pieces are recognised) or a
 * person's (never). One span per piece of either kind, in order; empty spans are allowed. */
typedef struct tc__span {
    const char *text;
    size_t len;
    bool trusted;
} tc__span;

enum {                       /* what lies before the text that is encoded */
       TC__AFTER_TEXT = 0,   /* tokens of text, which it continues: no dummy prefix */
       TC__AT_START = 1,     /* nothing (or BOS): a dummy prefix */
       TC__AFTER_SPECIAL = 2 /* a special piece: a dummy prefix in legacy mode */
};

/* Encodes the concatenation of the spans and appends the ids. Special pieces are found in trusted
 * bytes only, never across a border to a person's bytes; the text between two of them is encoded as
 * one run, whatever spans it is made of. `before` says what its first byte follows; a run behind a
 * special piece gets a dummy prefix of its own only if the tokenizer is `legacy`.
 *
 * For text that is trusted as a whole the ids are those of transformers 4's slow LlamaTokenizer
 * (use_fast=False, both values of `legacy`), which runs sentencepiece itself. The fast class of 4.x
 * agrees, except that with legacy=False a text that begins with a space or U+2581 gets no prefix
 * from it. 5.x made from a tokenizer.model has that difference for both values, and another merge
 * order, so that it splits runs of spaces otherwise ("  hi"); neither is sentencepiece's answer.
 * Errors: MEMORY, ARGUMENT (more than 700 MB of text). */
TC_INTERNAL int tc__encode(const tc__tokenizer *tokenizer, const tc__span *spans, size_t n_spans,
                           int before, tc__ids *ids, tc_error *err);

/* Decoding, token by token, for streaming. */
typedef struct tc__decoder {
    const tc__tokenizer *tokenizer;
    bool at_start; /* the next text piece loses its dummy prefix, a byte-level one a space */
} tc__decoder;

/* A decoder at the start of a text that has a space before it, or (at_start false) one that
 * continues earlier tokens. */
TC_INTERNAL tc__decoder tc__decoder_make(const tc__tokenizer *tokenizer, bool at_start);

/* Appends the raw bytes of one token: byte pieces give their byte (so the output may end inside a
 * UTF-8 character), the unknown piece its surface; control pieces, added tokens and ids without a
 * piece give nothing. Only the first text of a decoder that begins at a start loses a leading
 * U+2581. id is range-checked by the caller (0 <= id < vocab_size). `special` (NULL allowed) is set
 * to whether the token is a control piece or an added token. */
TC_INTERNAL void tc__decode_one(tc__decoder *decoder, int32_t id, tc__buf *bytes, bool *special);

/* Decodes a whole text: as above, with malformed UTF-8 in a stretch of byte pieces replaced by one
 * U+FFFD per byte. Errors: MEMORY, ARGUMENT (an id is outside the vocabulary). */
TC_INTERNAL int tc__decode(const tc__tokenizer *tokenizer, const int32_t *ids, size_t n,
                           tc__buf *text, tc_error *err);

#endif /* TC_TOKENIZER_H */

/* ======== src/vocabulary.h ======== */

/* vocabulary - what a tokenizer is made of: pieces, merges and added tokens, read out of a model
 * file, checked, and indexed so that they are found by their bytes or by what they are joined of.
 * How text becomes tokens is tokenizer.c's business.
 */
#ifndef TC_VOCABULARY_H
#define TC_VOCABULARY_H


typedef struct tc__piece {
    const char *text; /* in the model file; len 0: the id has no piece */
    uint32_t len;
    uint32_t rank; /* SentencePiece: the lower, the higher the score */
    uint8_t type;
} tc__piece;

/* Pieces that text can become, found by their bytes: open addressing, at most half full. */
typedef struct tc__piece_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
} tc__piece_slot;

/* Merges, found by the ids of the two pieces: open addressing, at most two thirds full. */
typedef struct tc__merge_slot {
    int32_t left, right; /* left -1: empty */
    int32_t id;          /* of both together */
    uint32_t rank;       /* the lowest is merged first */
} tc__merge_slot;

enum {                             /* flags of added tokens, as in tokenizer.added_flags */
       TC__ADDED_TEXT = 1,         /* anybody's text may become it; else it is special */
       TC__ADDED_SHOWN = 2,        /* decoding gives its text; else nothing */
       TC__ADDED_LSTRIP = 4,       /* takes the white space before it */
       TC__ADDED_RSTRIP = 8,       /* and behind it */
       TC__ADDED_SINGLE_WORD = 16, /* not beside a word character */
       TC__ADDED_NORMALIZED = 32,  /* looked for in normalised text */
       TC__ADDED_ALL = 63
};

typedef struct tc__added {
    const char *text;
    size_t len;
    int32_t id;
    uint32_t flags;
    uint32_t order; /* among equal texts the lowest one counts */
} tc__added;

/* Distinct texts in the order of their bytes, for longest-prefix matches. */
typedef struct tc__added_list {
    tc__added *at;
    size_t n;
    bool begins[256]; /* some entry begins with this byte */
} tc__added_list;

struct tc__tokenizer {
    tc__piece *pieces; /* [n_pieces] */
    uint32_t n_pieces, vocab_size;
    uint32_t max_len;      /* bytes of the longest piece that text can become */
    tc__piece_slot *slots; /* NULL when nobody asks for pieces by their bytes */
    uint32_t slot_mask;
    tc__merge_slot *merges; /* NULL: SentencePiece, which merges by score */
    uint32_t merge_mask;
    /* Special tokens; text tokens before and after normalisation; SentencePiece's user-defined
     * pieces. */
    tc__added_list special, plain, normalized, user;
    tc__added *added;   /* [n_added] in the file's order */
    uint32_t *added_at; /* [vocab_size] 1 + index in `added`, 0: not an added token */
    int32_t byte_ids[256];
    bool bytes; /* pieces are bytes; else characters, with U+2581 for a space */
    bool byte_fallback, has_unused, ignore_merges, nfc;
    bool add_bos, dummy_prefix, legacy, single_prefix;
    int split; /* TC__SPLIT_* */
    int32_t unk_id, bos_id;
    const char *unk_surface;
    size_t unk_surface_len;
};

/* The id of the piece with these bytes among those that text can become; -1 if there is none. */
TC_INTERNAL int32_t tc__find_piece(const tc__tokenizer *t, const char *text, size_t len);

/* The merge of two neighbours; NULL if there is none. */
TC_INTERNAL const tc__merge_slot *tc__find_merge(const tc__tokenizer *t, int32_t left,
                                                 int32_t right);

/* The longest entry that text begins with, NULL if none. */
TC_INTERNAL const tc__added *tc__find_added(const tc__added_list *list, const char *text,
                                            size_t len);

/* The value of a piece "<0x1F>"; -1 if it is not written like that. */
TC_INTERNAL int tc__byte_value(const tc__piece *piece);

#endif /* TC_VOCABULARY_H */

/* ======== src/template.h ======== */

/* template - chat templates as data: patterns with {system}, {user}, {reply} (docs/format.md), and
 * the rendering of a conversation to spans of trusted and untrusted bytes.
 *
 * White space around everything between {trim} and {/trim}, whoever wrote it, is removed: this is
 * the str.strip() of Hugging Face's chat templates, with Python's idea of white space. LLaMA-2's
 * strips system block and user text as one string, which no flag "trim the user text" can express.
 *
 * The built-in table serves `--template NAME` and convert, which copies one into the model file.
 */
#ifndef TC_TEMPLATE_H
#define TC_TEMPLATE_H


#define TC__MAX_STOP_STRINGS 8

typedef struct tc__template {
    const char *name;
    const char *first;        /* opens a conversation without a system text: {user} */
    const char *first_system; /* opens one with {system}: {user} as well */
    const char *next;         /* from the end of a reply to the next one: {user} */
    const char *reply;        /* a finished reply: {reply} and what closes it */
    const char *system;       /* default system text, "" for none */
    const char
        *start; /* NULL or "" mostly: how a reply begins that is yet to be generated; it is no
                                 part of the reply, and gone once the reply is history */
    const char
        *next_system; /* NULL or "" mostly: `next` with {system} in front of the last user text,
                                 for templates that keep the system text there */
    const char *stop_strings[TC__MAX_STOP_STRINGS + 1]; /* NULL-terminated */
} tc__template;

/* The built-in templates by index (NULL past the end) and by name (NULL if unknown). */
TC_INTERNAL const tc__template *tc__template_at(int index);
TC_INTERNAL const tc__template *tc__template_find(const char *name);

/* A template out of a model file's metadata. The strings are copied into `storage`, which the
 * caller zero-initialises and frees after the template's last use; on failure it is empty.
 * Errors: FORMAT (a pattern without its placeholder, with another's or with unpaired {trim}; a NUL
 * in a text; too many or empty stop strings), MEMORY. */
TC_INTERNAL int tc__template_load(const tc__model_file *file, tc__template *out, tc__buf *storage,
                                  tc_error *err);

/* One turn as the renderer sees it. */
typedef struct tc__turn {
    const char *user;
    size_t user_len;
    const char *reply; /* text of the reply; ignored while ids are there */
    size_t reply_len;
    const int32_t *ids; /* [n_ids] the reply as it was generated, or NULL: encode the text */
    size_t n_ids;
    bool ended;     /* the last of ids is the stop id that ended the reply */
    bool has_reply; /* false only for a last turn that awaits its reply */
} tc__turn;

/* Appends the ids of a conversation: BOS if the tokenizer adds one and the template's text does not
 * begin with it, then every turn. system NULL or "" = none (the template's own is not used).
 *
 * Replies given as text are rendered as text, so that the ids equal those of one encoding of the
 * whole conversation. A reply with ids is taken as generated, never re-tokenized, and what the
 * pattern has before {reply} is left out (the model wrote its own). What the pattern has behind it
 * follows, except that when `ended` is set, everything up to and including its first special piece
 * is already there; if it has no special piece, the stop id is no part of the template's text and
 * is left out instead. Only where the pattern takes an {answer} out of a reply that holds a
 * </think>, it is the text that counts.
 * Errors: MEMORY, ARGUMENT (text too long). */
TC_INTERNAL int tc__render(const tc__template *chat_template, const tc__tokenizer *tokenizer,
                           const char *system, size_t system_len, const tc__turn *turns,
                           size_t n_turns, tc__ids *ids, tc_error *err);

/* The special piece with which the template closes a reply: a model that was made for it ends its
 * replies with that id. False if it has none. */
TC_INTERNAL bool tc__template_closing(const tc__template *chat_template,
                                      const tc__tokenizer *tokenizer, int32_t *id);
/* The same as text, such as </s>, whether the tokenizer knows it or not. NULL if there is none. */
TC_INTERNAL const char *tc__template_closing_text(const tc__template *chat_template, size_t *len);

#endif /* TC_TEMPLATE_H */

/* ======== src/stream.h ======== */

/* stream - from raw reply bytes to text that may be shown: whole UTF-8 characters only, and nothing
 * that could still turn out to be the beginning of a stop string.
 */
#ifndef TC_STREAM_H
#define TC_STREAM_H


typedef struct tc__stream {
    const char *const *stops; /* NULL-terminated, not owned; NULL = none; "" is ignored */
    tc__buf held;             /* whole characters that begin a stop string */
    char partial[4];          /* [n_partial] the beginning of an unfinished character */
    size_t n_partial;
    bool stopped; /* a stop string was met; it and what follows is discarded */
} tc__stream;

TC_INTERNAL void tc__stream_init(tc__stream *stream, const char *const *stops);
TC_INTERNAL void tc__stream_free(tc__stream *stream);

/* Takes more raw bytes and appends to `out` the text that is safe to show. Malformed UTF-8 becomes
 * one U+FFFD per byte. Sets stream->stopped when a stop string is complete: the first one to be
 * complete counts, the longest of several that end at the same byte, so that the text does not
 * depend on how the bytes are cut into calls. Out of memory sets out->failed. */
TC_INTERNAL void tc__stream_feed(tc__stream *stream, const char *bytes, size_t len, tc__buf *out);

/* The end of the reply: releases what was held back (unfinished characters as U+FFFD per byte). */
TC_INTERNAL void tc__stream_end(tc__stream *stream, tc__buf *out);

#endif /* TC_STREAM_H */

/* ======== src/sampler.h ======== */

/* sampler - from logits to the next token, in the order that tinychat.h documents at tc_sampling.
 */
#ifndef TC_SAMPLER_H
#define TC_SAMPLER_H


/* ARGUMENT with the parameter's name, value and range if one is out of range. */
TC_INTERNAL int tc__sampling_check(const tc_sampling *sampling, tc_error *err);

/* True if these parameters pick the largest logit: no random number is used up. */
TC_INTERNAL bool tc__sampling_greedy(const tc_sampling *sampling);

/* Uniform in [0, 1): draw number `index` of the sequence `seed`. A pure function with 53 random
 * bits, so that any backend can compute it: output number `index` of SplitMix64 started at `seed`
 * (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). */
TC_INTERNAL double tc__random(uint64_t seed, uint64_t index);

/* A seed from the operating system; never TC_SEED_RANDOM. */
TC_INTERNAL uint64_t tc__random_seed(void);

/* Workspace of one session's sampling: [vocab_size] entries. `value` is first the logit after
 * temperature and penalty, then the probability relative to the most probable id. Binary64, so that
 * no finite logit overflows whatever the parameters are. */
typedef struct tc__candidate {
    double value;
    int32_t id;
} tc__candidate;

/* Chooses a token. context [n_context]: the ids that the repetition penalty looks at (already cut
 * to repeat_last_n; all in the vocabulary). u: the random number of this draw, used once; greedy
 * ignores it. `sampling` has passed tc__sampling_check. candidates and seen ([vocab_size] bytes,
 * all zero, left all zero): workspace.
 * Costs O(vocab_size), plus O(log vocab_size) for each id that the filters keep.
 * Errors: NUMERIC if a logit is not finite (names the first id). */
TC_INTERNAL int tc__sample(const float *logits, int vocab_size, const tc_sampling *sampling,
                           const int32_t *context, size_t n_context, double u,
                           tc__candidate *candidates, uint8_t *seen, int32_t *id, tc_error *err);

#endif /* TC_SAMPLER_H */

/* ======== src/threads.h ======== */

/* threads - a team of workers, for a session's computations or for loading, and numbers that they
 * wait for.
 *
 * One task at a time runs on all workers at once; inside it the workers keep step with a barrier.
 * A waiting thread spins for some tens of microseconds (a barrier then costs about one) and sleeps
 * after that, so an idle team uses no processor time. The caller is worker 0: a team of one has no
 * thread of its own and every call below is then a plain function call.
 */
#ifndef TC_THREADS_H
#define TC_THREADS_H


#include <pthread.h>

#define TC__THREADS_MAX 512

/* A number that only grows, from 0, and that threads wait for, as workers do for each other. */
typedef struct tc__count {
    unsigned value;
    int sleepers, spin;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} tc__count;

/* threads: how many will use it. False: the system has no more mutexes; then nothing is held. */
TC_INTERNAL bool tc__count_open(tc__count *count, int threads);
TC_INTERNAL void tc__count_close(tc__count *count);
/* What a thread wrote before it adds is visible to those that wait for the sum. */
TC_INTERNAL void tc__count_add(tc__count *count, unsigned n);
/* Returns when it is `least` or more, by less than 2^31. */
TC_INTERNAL void tc__count_wait(tc__count *count, unsigned least);

typedef struct tc__team tc__team;

/* Starts a team of 1 <= size <= TC__THREADS_MAX workers: size - 1 threads, which block all signals.
 * On failure nothing is held. Errors: MEMORY. */
TC_INTERNAL int tc__team_open(int size, tc__team **team, tc_error *err);
/* Ends the threads. NULL is allowed. No task may be running. */
TC_INTERNAL void tc__team_close(tc__team *team);

/* Runs task(user, worker) on every worker 0 .. size-1 and returns when all are done. Called by one
 * thread at a time; not from inside a task. */
TC_INTERNAL void tc__team_run(tc__team *team, void (*task)(void *user, int worker), void *user);

/* Inside a task, by every worker the same number of times: returns when all have arrived. What a
 * worker wrote before is visible to all after. */
TC_INTERNAL void tc__team_barrier(tc__team *team);

/* The share of worker `worker` of `size` in `items` things: [*begin, *end), contiguous, sizes
 * differing by at most one. */
TC_INTERNAL void tc__share(size_t items, int worker, int size, size_t *begin, size_t *end);

/* The processors that are online, that this thread may run on (taskset, a container's cpuset) and
 * whose time the control groups leave; at least 1, at most TC__THREADS_MAX. */
TC_INTERNAL int tc__processors(void);

#endif /* TC_THREADS_H */

/* ======== src/cpu_fixed.h ======== */

/* cpu_fixed - products of W4 matrices in integers: an instruction does four times the
 * multiplications that it does with floats, and three of them give the precision of floats.
 *
 * A vector's elements become fixed-point numbers of 24 bits: in each group of the matrix's columns,
 * integers times a step, the smallest power of two with which the largest magnitude still fits. So
 * an element is off by at most 2^-23 of the group's largest. A number is kept as three limbs of a
 * byte, 2^16 high + 2^8 middle + low, each -128..127: what an instruction multiplies by the bytes
 * 0..15 of weights. Products and sums are exact integers,
 *
 *     sum of scale * (q - zero) * x over a group = scale * step * (2^16 H + (2^8 M + L)),
 *     H = sum of q * high - zero * sum of high, M and L likewise,
 *
 * up to the roundings of the right side, which is computed in floats. Their order does not matter:
 * an output depends on the numbers of its row and vector and the order of the groups only, whatever
 * else is computed in the same call.
 */
#ifndef TC_CPU_FIXED_H
#define TC_CPU_FIXED_H


/* Row blocks whose products are computed together: each piece of a vector is read for all. */
#define TC__FIXED_BLOCKS 4u

/* One W4 unit with a byte for each weight. Its rows stand in the order 0, 4, 8, 12, 1, 5, ... 15:
 * TC__FIXED_ROW gives the place of a row. */
typedef struct tc__fixed_unit {
    uint8_t q[16][2][64]; /* [columns / 8][rows / 8][8 rows of 8 columns] */
    float scales[16];
    uint32_t zeros[16]; /* two 16-bit integers: -zero, -zero * 256 */
} tc__fixed_unit;

#define TC__FIXED_ROW(row) (4 * ((row) % 4) + (row) / 4)

#if defined(__x86_64__)
/* For processors with AVX-512 VNNI. */

/* fixed = a group of an ordered vector in fixed point, in the room of as many floats: bytes
 * 0 .. 3 g - 1 are the limbs (high, middle, low), then follow the step as a float and as 16-bit
 * integers the sums of the low, middle and high limbs and 0. */
TC_INTERNAL void tc__vnni_fix(const float *x, unsigned group_size, float *fixed);

TC_INTERNAL void tc__vnni_unpack(const uint8_t *unit, unsigned group_size, tc__fixed_unit *to);

/* y[blocks][count][16] += products of the units of `blocks` row blocks with their group of `count`
 * vectors, which lie behind each other; in a unit's order of rows. */
TC_INTERNAL void tc__vnni_multiply(const tc__fixed_unit *units, size_t blocks, unsigned group_size,
                                   const float *fixed, size_t count, float *y);
#endif

#endif /* TC_CPU_FIXED_H */

/* ======== src/cpu_simd.h ======== */

/* cpu_simd - what the sources of the CPU's kernels share: the processors' intrinsics, and functions
 * and loops that must become straight-line code.
 */
#ifndef TC_CPU_SIMD_H
#define TC_CPU_SIMD_H

#if defined(__x86_64__)
#define CPU_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#define CPU_NEON 1
#include <arm_neon.h>
#endif

#define CPU_ALIGNED __attribute__((aligned(64))) /* a cache line, the longest vector */

#define CPU_INLINE static inline __attribute__((always_inline))

/* A loop over i = 0 .. n-1 with a constant n <= 16 that must become straight-line code, so that the
 * arrays of vectors it indexes live in registers. */
#if defined(__clang__)
#define CPU_TIMES(i, n) _Pragma("clang loop unroll(full)") for (unsigned i = 0; i < (n); i++)
#else
#define CPU_TIMES(i, n) _Pragma("GCC unroll 16") for (unsigned i = 0; i < (n); i++)
#endif

#endif /* TC_CPU_SIMD_H */

/* ======== src/cpu_kernels.h ======== */

/* cpu_kernels - the arithmetic of the CPU: products of a weight matrix with fp32 vectors, and the
 * two halves of attention. One set of kernels for each kind of processor, chosen at run time.
 *
 * The rule that everything here obeys: an output element is computed by the same operations in the
 * same order whatever else is computed in the same call. A row's dot product with a vector runs
 * over the columns in steps of LANES (the vector width, see tc__kernels); lane i adds up elements
 * i, i + LANES, i + 2 LANES, ... of the ordered vector, one fused multiply-add each; a fixed tree
 * adds the lanes. So results are bit-equal for any number of vectors in a call, any cut of a matrix
 * into shares, any number of threads. Different kernel sets agree to rounding.
 *
 * Where the processor has instructions for it, products of W4 matrices are computed in integers
 * instead, under the same rule: see cpu_fixed.h.
 */
#ifndef TC_CPU_KERNELS_H
#define TC_CPU_KERNELS_H


/* Matrices are worked on in blocks of 16 rows: a W4 unit's height. */
#define TC__BLOCK 16u
/* Vectors have room for a multiple of this many elements, zero behind the last. */
#define TC__LANES_MAX 16u
/* Rows of floats that kernels read in parallel lie this much further apart than a multiple of
 * TC__LANES_MAX, so that equal columns do not fall into the same cache set. */
#define TC__SKEW 16u

/* The order of a vector's elements that a matrix wants: that in which its bytes hold the columns,
 * so that the kernels need no shuffles. */
typedef enum tc__order {
    TC__ORDER_PLAIN, /* as they are: binary16, bfloat16 */
    TC__ORDER_W4_32, /* W4 with group size 32 */
    TC__ORDER_W4_64  /* W4 with group sizes 64 and 128 */
} tc__order;

TC_INTERNAL tc__order tc__order_of(const tc__tensor *matrix);

/* The place of element `column`. With docs/format.md's names for a column's parts (l, w, c = the
 * nibble pair's column): chunks of 64 (of 32) columns are sorted by c in the order 0, 2, 1, 3 in
 * which a word's bytes hold it, then by l & 3, then by w. */
static inline size_t tc__ordered(tc__order order, size_t column) {
    size_t pair = (column & 1) << 1 | (column >> 1 & 1);
    switch (order) {
    case TC__ORDER_W4_32: return (column & ~(size_t)31) + 8 * pair + (column >> 2 & 7);
    case TC__ORDER_W4_64:
        return (column & ~(size_t)63) + 16 * pair + 4 * (column >> 3 & 3) + 2 * (column >> 5 & 1) +
               (column >> 2 & 1);
    default: return column;
    }
}

/* Stores four elements from column on, a multiple of 4 (in W4's orders). */
static inline void tc__put4(tc__order order, float *x, size_t column, const float values[4]) {
    size_t step = order == TC__ORDER_PLAIN ? 1 : order == TC__ORDER_W4_32 ? 8 : 16;
    bool plain = step == 1;
    x += tc__ordered(order, column);
    x[0] = values[0];
    x[plain ? 1 : 2 * step] = values[1];
    x[plain ? 2 : step] = values[2];
    x[3 * step] = values[3];
}

/* One set of kernels. Vectors `x` are ordered and padded with zeros. A tile is 16 rows of floats.
 * The sums of a row are `lanes` floats: what each lane of its dot product has added up. */
typedef struct tc__kernels {
    const char *name;  /* for people: "AVX-512" */
    const char *level; /* for TINYCHAT_CPU: "avx512" */
    unsigned lanes;    /* 4, 8 or 16 */
    unsigned single;   /* up to so many vectors it is fastest to read the weights once for each */
    unsigned most;     /* vectors that `multiply` takes at most */

    /* sums[16][lanes] of a row block of `groups` W4 units, and of 16 rows of n halves: [0]
     * binary16, [1] bfloat16. */
    void (*w4_sums)(const uint8_t *unit, size_t groups, unsigned group_size, const float *x,
                    float *sums);
    void (*half_sums[2])(const uint16_t *const rows[16], size_t n, const float *x, float *sums);
    /* The same weights as a tile with rows `stride` apart, in x's order; rows of halves are
     * completed with zeros to a multiple of `lanes`. */
    void (*w4_expand)(const uint8_t *unit, unsigned group_size, float *tile, size_t stride);
    void (*half_expand[2])(const uint16_t *const rows[16], size_t n, float *tile, size_t stride);
    /* multiply[c - 1]: sums[c][16][lanes] += a tile's n columns (a multiple of `lanes`) times c
     * vectors. */
    void (*multiply[6])(const float *tile, size_t stride, size_t n, const float *x, size_t x_stride,
                        float *sums);
    /* y[16] = the lanes of sums[16][lanes] added up. */
    void (*reduce)(const float *sums, float *y);

    /* p[j] = exp(p[j] - shift) for j < n, zeros up to a multiple of TC__LANES_MAX; returns their
     * sum, added up in an order that depends on n only. */
    float (*exponential)(float *p, size_t n, float shift);
    /* out[i] += p[0] rows[i] + p[1] rows[stride + i] + ..., i < width (a multiple of
     * TC__LANES_MAX), row after row. */
    void (*blend)(const float *p, size_t n, const float *rows, size_t stride, size_t width,
                  float *out);

    /* Products of W4 matrices in fixed point, see cpu_fixed.h; NULL: in floats, as above. */
    void (*fix)(const float *x, unsigned group_size, float *fixed);
    void (*unpack)(const uint8_t *unit, unsigned group_size, tc__fixed_unit *to);
    void (*multiply_fixed)(const tc__fixed_unit *units, size_t blocks, unsigned group_size,
                           const float *fixed, size_t count, float *y);
} tc__kernels;

/* The best set for this processor, or the one named by `level` ("portable", "avx2", "avx512",
 * "avx512vnni", "neon"); NULL for the best. Errors: DEVICE (unknown, or this processor lacks it).
 */
TC_INTERNAL int tc__kernels_choose(const char *level, const tc__kernels **kernels, tc_error *err);

/* The products of a tile with any number of vectors: see `multiply`. */
TC_INTERNAL void tc__multiply_tile(const tc__kernels *kernels, const float *tile, size_t stride,
                                   size_t n, const float *x, size_t x_stride, size_t count,
                                   float *sums);

/* Whether products with the matrix read vectors in fixed point. */
static inline bool tc__fixes(const tc__kernels *kernels, const tc__tensor *matrix) {
    return kernels->fix && matrix->type == TC__W4;
}

/* `count` ordered vectors to fixed point: of their groups, [columns / group size][count], those
 * numbered begin .. end - 1. In `fixed`, [count * columns], they lie in that order. */
TC_INTERNAL void tc__fix(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                         size_t end, const float *x, size_t x_stride, size_t count, float *fixed);

/* Receives 16 rows (fewer at the end of the matrix) of product number `vector`. */
typedef void (*tc__rows_fn)(void *user, size_t vector, size_t row, size_t rows, const float *y);

/* Floats of scratch memory (64-byte aligned) that tc__multiply_rows needs for `count` vectors. */
TC_INTERNAL size_t tc__multiply_scratch(size_t count);

/* Products of row blocks [begin, end) of the matrix with `count` vectors (in fixed point if
 * tc__fixes), handed to `take`. Every weight is read from memory once and in the file's order:
 * 17/32 bytes each for W4 with group size 128, 2 bytes each for halves; vectors, tiles and sums are
 * to stay in the caches. */
TC_INTERNAL void tc__multiply_rows(const tc__kernels *kernels, const tc__tensor *matrix,
                                   size_t begin, size_t end, const float *x, size_t x_stride,
                                   size_t count, float *scratch, tc__rows_fn take, void *user);

#endif /* TC_CPU_KERNELS_H */

/* ======== src/backend.h ======== */

/* backend - what the session asks of a device. Two structs of functions and nothing else: the
 * session never knows which device it talks to. The CPU is one backend, a CUDA GPU another.
 */
#ifndef TC_BACKEND_H
#define TC_BACKEND_H


typedef struct tc__device tc__device; /* a model's weights on a device */
typedef struct tc__cache tc__cache;   /* a session's KV cache and workspace there */

typedef int (*tc__logits_fn)(void *user, size_t position, const float *logits, int vocab_size);

typedef struct tc__backend {
    /* Makes the weights usable. `threads` as in tc_model_params. The weights outlive the device. */
    int (*open)(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                tc_error *err);
    void (*close)(tc__device *device);

    /* For people: "CPU (AVX-512, 8 threads)". Lives as long as the device. */
    const char *(*name)(const tc__device *device);
    /* For people, what figures depend on besides: "driver 580.65 (CUDA 13.0), up to 1980
     * MHz"; "". */
    const char *(*details)(const tc__device *device);

    /* Bytes of KV cache per position, and bytes of everything else a session needs with this
     * context size. */
    size_t (*kv_bytes_per_token)(const tc__device *device);
    size_t (*workspace_bytes)(const tc__device *device, int ctx_size);
    /* Memory that a new session could take now. */
    size_t (*free_bytes)(const tc__device *device);

    /* An empty cache of ctx_size positions. Errors: MEMORY. */
    int (*cache_open)(tc__device *device, int ctx_size, tc__cache **cache, tc_error *err);
    void (*cache_close)(tc__cache *cache);

    /* Evaluates n >= 1 ids at positions pos .. pos + n - 1 (the cache holds pos positions, ids and
     * sizes were checked). Without `each`, computes the logits of the last one; with it, all of
     * them, handed over in order. Looks at *cancel between pieces of work and returns CANCELLED
     * when it is raised. */
    int (*eval)(tc__cache *cache, const int32_t *ids, size_t n, size_t pos, tc__logits_fn each,
                void *user, const tc__flag *cancel, tc_error *err);
    /* The logits [vocab_size] of the last position evaluated, in host memory until the
     * next call. */
    const float *(*logits)(tc__cache *cache);
    /* Chooses the next token from those logits: context and u as in tc__sample. */
    int (*sample)(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                  size_t n_context, double u, int32_t *id, tc_error *err);

    /* Median bytes per second of a plain read loop over `bytes` of the device's memory. */
    int (*read_bandwidth)(tc__device *device, size_t bytes, double *bytes_per_second,
                          tc_error *err);
    /* Writes the kernels compiled for this model to a file (tc_model_params.kernels); NULL where
     * nothing is compiled. */
    int (*export_kernels)(tc__device *device, const char *path, tc_error *err);
} tc__backend;

/* Each backend casts the two handles to types of its own. */
TC_INTERNAL const tc__backend *tc__cpu_backend(void);
TC_INTERNAL const tc__backend *tc__cuda_backend(void);

#endif /* TC_BACKEND_H */

/* ======== src/gpu_driver.h ======== */

/* gpu_driver - the CUDA driver and NVRTC, opened at run time. Nothing else knows their symbols.
 *
 * The few declarations needed are written out here, so that no CUDA header is needed to build. They
 * follow the CUDA 11.8 to 13 ABI; functions that came later (launch attributes) are optional.
 */
#ifndef TC_GPU_DRIVER_H
#define TC_GPU_DRIVER_H


typedef int tc__cu_result; /* 0 is success */
typedef int tc__cu_device;
typedef unsigned long long tc__cu_ptr; /* an address in device memory */
typedef struct tc__cu_context_ *tc__cu_context;
typedef struct tc__cu_module_ *tc__cu_module;
typedef struct tc__cu_function_ *tc__cu_function;
typedef struct tc__cu_stream_ *tc__cu_stream;
typedef struct tc__cu_event_ *tc__cu_event;
typedef struct tc__cu_graph_ *tc__cu_graph;
typedef struct tc__cu_graph_exec_ *tc__cu_graph_exec;
typedef struct tc__cu_graph_node_ *tc__cu_graph_node;

/* CUlaunchAttribute and CUlaunchConfig: 4-byte id, padding, a 64-byte union. */
typedef struct tc__cu_launch_attribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int value;
    } value;
} tc__cu_launch_attribute;

typedef struct tc__cu_launch_config {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    tc__cu_stream stream;
    tc__cu_launch_attribute *attributes;
    unsigned attribute_count;
} tc__cu_launch_config;

/* CUDA_KERNEL_NODE_PARAMS, the first version. */
typedef struct tc__cu_kernel_node {
    tc__cu_function function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void **arguments, **extra;
} tc__cu_kernel_node;

enum { /* numbers of the driver's enumerations */
       TC__CU_OUT_OF_MEMORY = 2,
       TC__CU_NO_DEVICE = 100,
       TC__CU_DRIVER_MISMATCH = 803,
       TC__CU_NOT_READY = 600,
       TC__CU_UNKNOWN = 999,
       TC__CU_ATTRIBUTE_MAX_SHARED = 97, /* per block, opt-in */
       TC__CU_ATTRIBUTE_SM_COUNT = 16,
       TC__CU_ATTRIBUTE_CLOCK_KHZ = 13,
       TC__CU_ATTRIBUTE_L2_BYTES = 38,
       TC__CU_ATTRIBUTE_INTEGRATED = 18,
       TC__CU_ATTACH_GLOBAL = 1, /* managed memory: any stream may use it */
       TC__CU_ATTACH_HOST = 2,   /* no stream uses it; the CPU may while kernels run */
       TC__CU_ATTRIBUTE_MAJOR = 75,
       TC__CU_ATTRIBUTE_MINOR = 76,
       TC__CU_FUNCTION_LOCAL_BYTES = 3,
       TC__CU_FUNCTION_REGISTERS = 4,
       TC__CU_FUNCTION_MAX_DYNAMIC_SHARED = 8,
       TC__CU_FUNCTION_CARVEOUT = 9,  /* per cent of L1 that is shared memory */
       TC__CU_LAUNCH_PROGRAMMATIC = 6 /* programmatic stream serialization */
};

#define TC__CU_FUNCTIONS(F)                                                                        \
    F(init, "cuInit", (unsigned flags))                                                            \
    F(driver_version, "cuDriverGetVersion", (int *version))                                        \
    F(device_count, "cuDeviceGetCount", (int *count))                                              \
    F(device_get, "cuDeviceGet", (tc__cu_device * device, int ordinal))                            \
    F(device_name, "cuDeviceGetName", (char *name, int len, tc__cu_device device))                 \
    F(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, tc__cu_device device)) \
    F(device_memory, "cuDeviceTotalMem_v2", (size_t * bytes, tc__cu_device device))                \
    F(context_retain, "cuDevicePrimaryCtxRetain",                                                  \
      (tc__cu_context * context, tc__cu_device device))                                            \
    F(context_release, "cuDevicePrimaryCtxRelease_v2", (tc__cu_device device))                     \
    F(context_push, "cuCtxPushCurrent_v2", (tc__cu_context context))                               \
    F(context_pop, "cuCtxPopCurrent_v2", (tc__cu_context * context))                               \
    F(memory_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t * total))                       \
    F(allocate, "cuMemAlloc_v2", (tc__cu_ptr * pointer, size_t bytes))                             \
    F(allocate_managed, "cuMemAllocManaged", (tc__cu_ptr * pointer, size_t bytes, unsigned flags)) \
    F(release, "cuMemFree_v2", (tc__cu_ptr pointer))                                               \
    F(host_allocate, "cuMemHostAlloc", (void **pointer, size_t bytes, unsigned flags))             \
    F(host_release, "cuMemFreeHost", (void *pointer))                                              \
    F(host_register, "cuMemHostRegister_v2", (void *pointer, size_t bytes, unsigned flags))        \
    F(host_unregister, "cuMemHostUnregister", (void *pointer))                                     \
    F(host_device_pointer, "cuMemHostGetDevicePointer_v2",                                         \
      (tc__cu_ptr * pointer, void *host, unsigned flags))                                          \
    F(copy_to_device, "cuMemcpyHtoDAsync_v2",                                                      \
      (tc__cu_ptr to, const void *from, size_t bytes, tc__cu_stream stream))                       \
    F(copy_to_host, "cuMemcpyDtoHAsync_v2",                                                        \
      (void *to, tc__cu_ptr from, size_t bytes, tc__cu_stream stream))                             \
    F(fill_bytes, "cuMemsetD8Async",                                                               \
      (tc__cu_ptr to, unsigned char value, size_t bytes, tc__cu_stream stream))                    \
    F(stream_create, "cuStreamCreate", (tc__cu_stream * stream, unsigned flags))                   \
    F(stream_destroy, "cuStreamDestroy_v2", (tc__cu_stream stream))                                \
    F(stream_wait, "cuStreamSynchronize", (tc__cu_stream stream))                                  \
    F(stream_query, "cuStreamQuery", (tc__cu_stream stream))                                       \
    F(stream_attach, "cuStreamAttachMemAsync",                                                     \
      (tc__cu_stream stream, tc__cu_ptr pointer, size_t bytes, unsigned flags))                    \
    F(event_create, "cuEventCreate", (tc__cu_event * event, unsigned flags))                       \
    F(event_destroy, "cuEventDestroy_v2", (tc__cu_event event))                                    \
    F(event_record, "cuEventRecord", (tc__cu_event event, tc__cu_stream stream))                   \
    F(event_wait, "cuEventSynchronize", (tc__cu_event event))                                      \
    F(event_milliseconds, "cuEventElapsedTime",                                                    \
      (float *milliseconds, tc__cu_event start, tc__cu_event end))                                 \
    F(module_load, "cuModuleLoadData", (tc__cu_module * module, const void *image))                \
    F(module_unload, "cuModuleUnload", (tc__cu_module module))                                     \
    F(module_global, "cuModuleGetGlobal_v2",                                                       \
      (tc__cu_ptr * pointer, size_t * bytes, tc__cu_module module, const char *name))              \
    F(module_function, "cuModuleGetFunction",                                                      \
      (tc__cu_function * function, tc__cu_module module, const char *name))                        \
    F(function_set, "cuFuncSetAttribute", (tc__cu_function function, int attribute, int value))    \
    F(function_get, "cuFuncGetAttribute", (int *value, int attribute, tc__cu_function function))   \
    F(launch, "cuLaunchKernelEx",                                                                  \
      (const tc__cu_launch_config *config, tc__cu_function function, void **arguments,             \
       void **extra))                                                                              \
    F(capture_begin, "cuStreamBeginCapture_v2", (tc__cu_stream stream, int mode))                  \
    F(capture_end, "cuStreamEndCapture", (tc__cu_stream stream, tc__cu_graph * graph))             \
    F(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (tc__cu_graph_exec * exec, tc__cu_graph graph, unsigned long long flags))                    \
    F(graph_roots, "cuGraphGetRootNodes",                                                          \
      (tc__cu_graph graph, tc__cu_graph_node * nodes, size_t * count))                             \
    F(graph_exec_set_kernel, "cuGraphExecKernelNodeSetParams",                                     \
      (tc__cu_graph_exec exec, tc__cu_graph_node node, const tc__cu_kernel_node *kernel))          \
    F(graph_destroy, "cuGraphDestroy", (tc__cu_graph graph))                                       \
    F(graph_exec_destroy, "cuGraphExecDestroy", (tc__cu_graph_exec exec))                          \
    F(graph_launch, "cuGraphLaunch", (tc__cu_graph_exec exec, tc__cu_stream stream))               \
    F(error_text, "cuGetErrorString", (tc__cu_result result, const char **text))

typedef struct tc__cu {
    void *library;
#define TC__CU_MEMBER(member, symbol, arguments) tc__cu_result(*member) arguments;
    TC__CU_FUNCTIONS(TC__CU_MEMBER)
#undef TC__CU_MEMBER
} tc__cu;

/* Opens libcuda and initialises it. Errors: DEVICE (no driver, too old, no device), with the facts
 * and the remedy in one line. */
TC_INTERNAL int tc__cu_open(tc__cu *cu, tc_error *err);
TC_INTERNAL void tc__cu_close(tc__cu *cu);

/* TC_OK, or DEVICE (MEMORY when the device is out of memory) with what was tried and the driver's
 * words for `result`. */
TC_INTERNAL int tc__cu_check(const tc__cu *cu, tc__cu_result result, const char *what,
                             tc_error *err);

/* ---- NVRTC ---- */

typedef struct tc__nvrtc_program_ *tc__nvrtc_program;

#define TC__NVRTC_FUNCTIONS(F)                                                                     \
    F(version, "nvrtcVersion", (int *major, int *minor))                                           \
    F(arch_count, "nvrtcGetNumSupportedArchs", (int *count))                                       \
    F(archs, "nvrtcGetSupportedArchs", (int *archs))                                               \
    F(create, "nvrtcCreateProgram",                                                                \
      (tc__nvrtc_program * program, const char *source, const char *name, int headers,             \
       const char *const *texts, const char *const *names))                                        \
    F(destroy, "nvrtcDestroyProgram", (tc__nvrtc_program * program))                               \
    F(compile, "nvrtcCompileProgram",                                                              \
      (tc__nvrtc_program program, int count, const char *const *options))                          \
    F(log_size, "nvrtcGetProgramLogSize", (tc__nvrtc_program program, size_t * size))              \
    F(log, "nvrtcGetProgramLog", (tc__nvrtc_program program, char *text))                          \
    F(cubin_size, "nvrtcGetCUBINSize", (tc__nvrtc_program program, size_t * size))                 \
    F(cubin, "nvrtcGetCUBIN", (tc__nvrtc_program program, char *image))                            \
    F(ptx_size, "nvrtcGetPTXSize", (tc__nvrtc_program program, size_t * size))                     \
    F(ptx, "nvrtcGetPTX", (tc__nvrtc_program program, char *image))

typedef struct tc__nvrtc {
    void *library;
    char path[512]; /* where it was found */
    int major, minor;
#define TC__NVRTC_MEMBER(member, symbol, arguments) int(*member) arguments;
    TC__NVRTC_FUNCTIONS(TC__NVRTC_MEMBER)
#undef TC__NVRTC_MEMBER
} tc__nvrtc;

/* Looks for NVRTC: TINYCHAT_NVRTC (a file), the dynamic linker's names, CUDA_HOME and CUDA_PATH,
 * the usual folders, Python's packages under VIRTUAL_ENV, CONDA_PREFIX, ~/.local and /usr. driver:
 * the driver's version; an NVRTC of a later major version is passed over, as that driver could not
 * load what it makes; 0: there is no driver, any will do. Errors: DEVICE, saying where it looked
 * and how to install it. */
TC_INTERNAL int tc__nvrtc_open(tc__nvrtc *nvrtc, int driver, tc_error *err);
TC_INTERNAL void tc__nvrtc_close(tc__nvrtc *nvrtc);

#endif /* TC_GPU_DRIVER_H */

/* ======== src/jit.h ======== */

/* jit - from CUDA source to a loadable image: compiled once per GPU architecture and model shape,
 * kept in a cache on disk, or carried in a file to machines without a compiler.
 *
 * The cache is a convenience that is never trusted and never needed: an entry carries its key and a
 * checksum, anything that does not fit is compiled anew, and a folder that cannot be written only
 * costs the next start time. A hit does not open NVRTC, unless it is what one too old for the GPU
 * has made: then another one makes it anew.
 */
#ifndef TC_JIT_H
#define TC_JIT_H


typedef struct tc__jit_target {
    int arch;         /* 90 for compute capability 9.0 */
    bool as_ptx;      /* PTX instead of machine code (TINYCHAT_ARCH, or NVRTC older than the GPU) */
    bool specific;    /* machine code with what only this very architecture has: sm_90a, where the
                         kernels see __CUDA_ARCH_FEAT_SM90_ALL; plain sm_90 if NVRTC is too old */
    int driver;       /* the driver's version: part of the key */
    int shared_limit; /* bytes of dynamic shared memory a block may ask for */
} tc__jit_target;

typedef struct tc__jit_program {
    const char *name; /* for messages and the cache's file name: "decode" */
    const char *text; /* the instances: source that includes the kernels' files */
    tc__buf image;    /* out: cubin or PTX; owned by the caller */
    bool cached;      /* out: it came from the cache */
    tc_error error;   /* out */
} tc__jit_program;

/* Compiles n programs, those that the cache lacks side by side. `progress` (NULL: none): whose
 * callback is told of each and may cancel. Errors: DEVICE (NVRTC missing or the compiler's first
 * complaint, with file and line), MEMORY, CANCELLED. */
TC_INTERNAL int tc__jit(tc__jit_program *programs, size_t n, const tc__jit_target *target,
                        const tc_model_params *progress, tc_error *err);

/* Kernels carried in a file to a machine without NVRTC. `what` tells people whose they are:
 * version, architecture, model. They fit the same sources, sizes and architecture, under any
 * driver. tc__jit_export writes the programs' images (tc__jit has made them). Errors:
 * IO, MEMORY. */
TC_INTERNAL int tc__jit_export(const char *path, const char *what, const tc__jit_program *programs,
                               size_t n, const tc__jit_target *target, tc_error *err);
/* tc__jit_import takes all images from the file. Errors: IO, FORMAT (no such file, damaged),
 * UNSUPPORTED (for another machine, model or version), MEMORY. */
TC_INTERNAL int tc__jit_import(const char *path, const char *what, tc__jit_program *programs,
                               size_t n, const tc__jit_target *target, tc_error *err);

/* The cache's folder into path: TINYCHAT_CACHE, $XDG_CACHE_HOME/tinychat or ~/.cache/tinychat; ""
 * if there is none. */
TC_INTERNAL void tc__jit_folder(char *path, size_t size);

#endif /* TC_JIT_H */

/* ======== src/gpu_programs.h ======== */

/* gpu_programs - which kernels a model needs, as CUDA source: the constants of its shapes, then one
 * line per kernel that instantiates a template of src/kernels. Needs no GPU.
 */
#ifndef TC_GPU_PROGRAMS_H
#define TC_GPU_PROGRAMS_H


/* The four matrices of a block, and how many kinds (type and group size) of one a model may mix. */
enum { TC__QKV, TC__O, TC__GATE_UP, TC__DOWN, TC__ROLES };
#define TC__MAX_KINDS 4

typedef struct tc__kinds {
    struct {
        uint32_t type, group_size;
    } kind[TC__ROLES][TC__MAX_KINDS];
    int count[TC__ROLES];
} tc__kinds;

/* "qkv", "o", "gate_up", "down". */
TC_INTERNAL const char *tc__role_name(int role);
TC_INTERNAL const tc__tensor *tc__role_matrix(const tc__layer *layer, int role);

/* Finds the kinds of all layers' matrices. Errors: UNSUPPORTED (a matrix that the kernels cannot
 * take). */
TC_INTERNAL int tc__kinds_find(const tc__weights *weights, tc__kinds *kinds, tc_error *err);
/* The index of a matrix's kind. It must be one of those found. */
TC_INTERNAL int tc__kind_of(const tc__kinds *kinds, int role, const tc__tensor *matrix);

/* Appends the source of the decode kernels and of the prefill kernels. Kernel names: ROLE_KIND for
 * decode, few_ROLE_KIND for up to 8 tokens, tSIZE_ROLE_KIND for prefill, with tiles of SIZE = 16,
 * 64, 128 and 256 tokens, and those of the list in gpu_programs.c. NAME_launch holds {grid x,
 * threads, shared bytes, vectors, and for few_ROLE and tSIZE what instances.cuh says}. */
TC_INTERNAL void tc__write_decode(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                                  tc__buf *text);
TC_INTERNAL void tc__write_prefill(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                                   tc__buf *text);
TC_INTERNAL void tc__write_prefill_wide(const tc__weights *weights, const tc__kinds *kinds,
                                        int sm_count, tc__buf *text);
TC_INTERNAL void tc__write_prefill_few(const tc__weights *weights, const tc__kinds *kinds,
                                       int sm_count, tc__buf *text);

/* Cuts a program into parts that can be compiled side by side, with part i of n appended to `part`:
 * the lines that begin with a capital letter instantiate kernels (a LAUNCH those of the line
 * above), and each is in one part; all others are in every part. */
TC_INTERNAL void tc__cut_program(const tc__buf *text, size_t i, size_t n, tc__buf *part);

#endif /* TC_GPU_PROGRAMS_H */

/* ======== src/session.h ======== */

/* session - an open model and the KV caches on it: what stands behind tc_model and tc_session.
 *
 * A session knows which ids its cache holds; the cache itself belongs to the backend. Everything a
 * model holds is immutable once it is open, so that any number of sessions may share it.
 */
#ifndef TC_SESSION_H
#define TC_SESSION_H


struct tc_model {
    tc__model_file file;
    tc__weights weights;
    tc__tokenizer *tokenizer;   /* NULL: only token ids can be used */
    tc__template chat_template; /* the model file's; without a tokenizer all of it is NULL */
    tc__buf template_storage;
    int32_t *stop_ids; /* [n_stop_ids], each in the vocabulary */
    size_t n_stop_ids;
    const tc__backend *backend;
    tc__device *device; /* the weights on the backend */
    char *name, *family;
    char precision[48];
};

struct tc_session {
    tc_model *model;
    tc__cache *cache;
    int32_t *ids; /* [ctx_size], the first `length` are in the cache */
    size_t length;
    int ctx_size;
    bool has_logits;      /* of position length - 1 */
    uint64_t seed, draws; /* random numbers used since seeding */
    tc__flag cancel;
};

/* tc_model_open on a backend of the caller's choice (the tests bring their own). Errors: as there.
 * params is not NULL. */
TC_INTERNAL int tc__model_open_with(const tc__backend *backend, const char *path,
                                    const tc_model_params *params, tc_model **model, tc_error *err);

/* The same for a shape of one's own (shapes.h), without a file. */
TC_INTERNAL int tc__model_open_spec(const tc__backend *backend, const tc__shape_spec *spec,
                                    const char *precision, int group_size,
                                    const tc_model_params *params, tc_model **model, tc_error *err);

/* tc_selftest's table with a backend in the GPU's place, and a model file on it. most_tokens: of a
 * row, for the tests of the self-test. */
TC_INTERNAL int tc__selftest_with(const tc__backend *backend, int most_tokens,
                                  const tc_model_params *params,
                                  void (*row)(void *user, const tc_selftest_row *row), void *user,
                                  tc_error *err);
TC_INTERNAL int tc__selftest_model(const tc__backend *backend, const char *path,
                                   const tc_model_params *params,
                                   void (*row)(void *user, const tc_selftest_row *row), void *user,
                                   tc_error *err);

/* UNSUPPORTED if the model has no tokenizer. */
TC_INTERNAL int tc__need_tokenizer(const tc_model *model, tc_error *err);

/* Why this session's context could not be larger, for messages: "the model's maximum", with the
 * sliding window that ends it; NULL if it could. */
#define TC__LIMIT_TEXT 160
TC_INTERNAL const char *tc__context_limit(const tc_session *session, char text[TC__LIMIT_TEXT]);

#endif /* TC_SESSION_H */

/* ======== src/base.c ======== */


#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors ---- */

/* The bytes of the first character if it moves the cursor or reorders text on a terminal, else 0:
 * of all controls and the bidirectional embeddings, overrides and isolates. */
static size_t base_hostile(const char *text) {
    const unsigned char *c = (const unsigned char *)text;
    if (c[0] < 0x20 || c[0] == 0x7f) return 1;
    if (c[0] == 0xc2 && c[1] >= 0x80 && c[1] <= 0x9f) return 2;
    if (c[0] == 0xe2 && c[1] == 0x80 && c[2] >= 0xaa && c[2] <= 0xae) return 3;
    if (c[0] == 0xe2 && c[1] == 0x81 && c[2] >= 0xa6 && c[2] <= 0xa9) return 3;
    return 0;
}

int tc__fail(tc_error *err, int code, const char *format, ...) {
    if (!err) return code;
    err->code = code;
    va_list args;
    va_start(args, format);
    if (vsnprintf(err->message, sizeof err->message, format, args) < 0) err->message[0] = 0;
    va_end(args);
    char *end = err->message;
    for (const char *c = err->message; *c; end++) {
        size_t hostile = base_hostile(c);
        *end = hostile ? '?' : *c;
        c += hostile ? hostile : 1;
    }
    *end = 0;
    return code;
}

int tc__fail_memory(tc_error *err, const char *what, size_t bytes) {
    return tc__fail(err, TC_ERR_MEMORY, "out of memory: %s needs %zu bytes", what, bytes);
}

int tc__need(bool given, const char *name, tc_error *err) {
    return given ? TC_OK : tc__fail(err, TC_ERR_ARGUMENT, "%s is NULL", name);
}

int tc__ok(tc_error *err) {
    if (err) {
        err->code = TC_OK;
        err->message[0] = 0;
    }
    return TC_OK;
}

/* ---- memory ---- */

bool tc__mul(size_t a, size_t b, size_t *result) {
    if (b && a > SIZE_MAX / b) return false;
    *result = a * b;
    return true;
}

bool tc__add(size_t a, size_t b, size_t *result) {
    if (a > SIZE_MAX - b) return false;
    *result = a + b;
    return true;
}

void *tc__calloc(size_t count, size_t size) {
    size_t bytes;
    if (!tc__mul(count, size, &bytes)) return NULL;
    return calloc(1, bytes ? bytes : 1);
}

void *tc__alloc_aligned(size_t bytes) {
    void *memory;
    if (bytes > SIZE_MAX - 64) return NULL;
    bytes = (bytes + 64) & ~(size_t)63; /* never 0 */
    if (posix_memalign(&memory, 64, bytes)) return NULL;
    memset(memory, 0, bytes);
    return memory;
}

void tc__free_aligned(void *memory) {
    free(memory);
}

/* The n numbers, one or two, behind `key` in one of the files that control groups have: all that it
 * says for "". False if there are none ("max"). */
static bool base_group_numbers(const char *group, const char *name, const char *key,
                               unsigned long long *numbers, int n) {
    char line[4096 + 64];
    const size_t len = strlen(key);
    bool found = false;
    snprintf(line, sizeof line, "%s/%s", group, name);
    FILE *file = fopen(line, "r");
    if (!file) return false;
    while (!found && fgets(line, sizeof line, file))
        found = strncmp(line, key, len) == 0 &&
                sscanf(line + len, n == 2 ? "%llu %llu" : "%llu", numbers, numbers + n - 1) == n;
    fclose(file);
    return found;
}

/* What one group leaves: its limit, less what is used and not cached files. */
static size_t base_group_room(const char *group, bool unified) {
    static const char *const stats[2][2] = {{"total_active_file ", "total_inactive_file "},
                                            {"active_file ", "inactive_file "}};
    unsigned long long limit, used, cached = 0, n;
    if (!base_group_numbers(group, unified ? "memory.max" : "memory.limit_in_bytes", "", &limit,
                            1) ||
        !base_group_numbers(group, unified ? "memory.current" : "memory.usage_in_bytes", "", &used,
                            1))
        return SIZE_MAX;
    for (int i = 0; i < 2; i++)
        if (base_group_numbers(group, "memory.stat", stats[unified][i], &n, 1)) cached += n;
    used -= cached < used ? cached : used;
    limit -= used < limit ? used : limit;
    return limit < SIZE_MAX ? (size_t)limit : SIZE_MAX;
}

/* How many processors a group may keep busy. A team whose members wait for each other gains nothing
 * from a part of one. */
static size_t base_group_processors(const char *group, bool unified) {
    unsigned long long of[2]; /* microseconds in every so many */
    const bool limited = unified ? base_group_numbers(group, "cpu.max", "", of, 2)
                                 : base_group_numbers(group, "cpu.cfs_quota_us", "", of, 1) &&
                                       base_group_numbers(group, "cpu.cfs_period_us", "", of + 1, 1);
    if (!limited || !of[1] || of[0] > LLONG_MAX) return SIZE_MAX; /* -1: none */
    return of[0] < of[1] ? 1 : (size_t)(of[0] / of[1]);
}

/* Whether a name is among those of a list with commas. */
static bool base_is_listed(const char *list, const char *name) {
    const size_t len = strlen(name);
    while (*list) {
        const size_t next = strcspn(list, ",");
        if (next == len && !strncmp(list, name, len)) return true;
        list += next + (list[next] == ',');
    }
    return false;
}

/* The least of what `limit` says of the groups of a controller. */
static size_t base_least(const char *groups, const char *root, const char *controller,
                         size_t (*limit)(const char *group, bool unified)) {
    char line[4096], path[sizeof line + 512];
    size_t least = SIZE_MAX;
    FILE *file = fopen(groups, "r");
    while (file && fgets(line, sizeof line, file)) { /* "4:memory:/a/b", of version 2 "0::/a/b" */
        char *names = strchr(line, ':'), *group = names ? strchr(names + 1, ':') : NULL;
        if (!group) continue;
        *group++ = 0;
        group[strcspn(group, "\n")] = 0;
        const bool unified = names[1] == 0;
        if (!unified && !base_is_listed(names + 1, controller)) continue;
        for (char *end = group + strlen(group); end; end = strrchr(group, '/')) {
            *end = 0; /* the group, and those around it */
            snprintf(path, sizeof path, "%.500s%s%s%s", root, unified ? "" : "/",
                     unified ? "" : controller, group);
            const size_t most = limit(path, unified);
            if (most < least) least = most;
        }
    }
    if (file) fclose(file);
    return least;
}

size_t tc__group_memory(const char *groups, const char *root) {
    return base_least(groups, root, "memory", base_group_room);
}

size_t tc__group_processors(const char *groups, const char *root) {
    return base_least(groups, root, "cpu", base_group_processors);
}

size_t tc__allowed_processors(const char *status) {
    char line[4096];
    size_t count = 0;
    FILE *file = fopen(status, "r");
    while (file && !count && fgets(line, sizeof line, file)) {
        if (strncmp(line, "Cpus_allowed:", 13)) continue;
        for (const char *c = line + 13; *c; c++) { /* words of hexadecimal digits with commas */
            static const char digits[] = "0123456789abcdef";
            const char *digit = strchr(digits, *c);
            for (ptrdiff_t bits = digit ? digit - digits : 0; bits; bits &= bits - 1) count++;
        }
    }
    if (file) fclose(file);
    return count ? count : SIZE_MAX;
}

size_t tc__available_memory(void) {
    unsigned long long bytes = 0, kib;
    FILE *file = fopen("/proc/meminfo", "r");
    if (file) {
        char line[128];
        while (!bytes && fgets(line, sizeof line, file))
            if (sscanf(line, "MemAvailable: %llu kB", &kib) == 1) bytes = kib * 1024;
        fclose(file);
    }
#ifdef _SC_PHYS_PAGES
    if (!bytes) {
        long pages = sysconf(_SC_PHYS_PAGES), size = sysconf(_SC_PAGESIZE);
        if (pages > 0 && size > 0) bytes = (unsigned long long)pages * (unsigned long)size;
    }
#endif
    const size_t room = tc__group_memory("/proc/self/cgroup", "/sys/fs/cgroup");
    return bytes < room ? (size_t)bytes : room;
}

/* Makes room for `more` elements of `size` bytes after `len`; returns the new block or NULL. */
static void *base_grow(void *data, size_t *cap, size_t len, size_t more, size_t size) {
    size_t need, bytes;
    if (!tc__add(len, more, &need)) return NULL;
    if (need <= *cap) return data;
    size_t larger = need < 64 ? 64 : need + need / 2;
    if (larger < need || !tc__mul(larger, size, &bytes)) return NULL;
    void *moved = realloc(data, bytes);
    if (moved) *cap = larger;
    return moved;
}

void tc__buf_add(tc__buf *buf, const void *bytes, size_t len) {
    if (buf->failed) return;
    char *data = len < SIZE_MAX ? base_grow(buf->data, &buf->cap, buf->len, len + 1, 1) : NULL;
    if (!data) {
        buf->failed = true;
        return;
    }
    buf->data = data;
    if (len) memcpy(data + buf->len, bytes, len);
    buf->len += len;
    data[buf->len] = 0;
}

void tc__buf_str(tc__buf *buf, const char *text) {
    tc__buf_add(buf, text, strlen(text));
}

void tc__buf_printf(tc__buf *buf, const char *format, ...) {
    char text[1024];
    va_list args;
    va_start(args, format);
    int len = vsnprintf(text, sizeof text, format, args);
    va_end(args);
    if (len < 0 || (size_t)len >= sizeof text) /* longer texts are appended in pieces */
        buf->failed = true;
    else
        tc__buf_add(buf, text, (size_t)len);
}

void tc__buf_free(tc__buf *buf) {
    free(buf->data);
    memset(buf, 0, sizeof *buf);
}

void tc__ids_add(tc__ids *ids, const int32_t *more, size_t n) {
    if (ids->failed || !n) return;
    int32_t *data = base_grow(ids->data, &ids->cap, ids->len, n, sizeof *data);
    if (!data) {
        ids->failed = true;
        return;
    }
    ids->data = data;
    memcpy(data + ids->len, more, n * sizeof *data);
    ids->len += n;
}

void tc__ids_push(tc__ids *ids, int32_t id) {
    tc__ids_add(ids, &id, 1);
}

void tc__ids_free(tc__ids *ids) {
    free(ids->data);
    memset(ids, 0, sizeof *ids);
}

char *tc__copy(const char *text, size_t len) {
    if (len == SIZE_MAX) return NULL;
    char *copy = malloc(len + 1);
    if (!copy) return NULL;
    if (len) memcpy(copy, text, len);
    copy[len] = 0;
    return copy;
}

/* ---- bytes ---- */

tc__cursor tc__cursor_make(const void *bytes, size_t len) {
    tc__cursor cursor = {bytes, bytes, false};
    if (len) cursor.end += len;
    return cursor;
}

size_t tc__cursor_left(const tc__cursor *cursor) {
    return (size_t)(cursor->end - cursor->at);
}

const uint8_t *tc__take(tc__cursor *cursor, size_t len) {
    if (tc__cursor_left(cursor) < len) {
        cursor->failed = true;
        cursor->at = cursor->end;
        return NULL;
    }
    const uint8_t *bytes = cursor->at;
    if (len) cursor->at += len;
    return bytes;
}

uint32_t tc__take_u32(tc__cursor *cursor) {
    uint32_t value = 0;
    const uint8_t *bytes = tc__take(cursor, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

uint64_t tc__take_u64(tc__cursor *cursor) {
    uint64_t value = 0;
    const uint8_t *bytes = tc__take(cursor, sizeof value);
    if (bytes) memcpy(&value, bytes, sizeof value);
    return value;
}

/* Table t gives the CRC of a byte followed by t zero bytes ("slicing by 16"). Built on the caller's
 * stack (16 KB, about 4 us) because the library has no global state. */
static void base_crc_tables(uint32_t table[16][256]) {
    for (uint32_t i = 0; i < 256; i++) {
        uint32_t crc = i;
        for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1)));
        table[0][i] = crc;
    }
    for (int t = 1; t < 16; t++)
        for (int i = 0; i < 256; i++)
            table[t][i] = (table[t - 1][i] >> 8) ^ table[0][table[t - 1][i] & 255];
}

uint32_t tc__crc32(uint32_t crc, const void *bytes, size_t len) {
    const uint8_t *p = bytes;
    crc = ~crc;
    if (len < 512) { /* not worth the tables */
        for (; len; len--) {
            crc ^= *p++;
            for (int bit = 0; bit < 8; bit++) crc = (crc >> 1) ^ (0xEDB88320u & (0u - (crc & 1)));
        }
        return ~crc;
    }
    uint32_t table[16][256];
    base_crc_tables(table);
    for (; len >= 16; len -= 16, p += 16) {
        uint32_t w[4];
        memcpy(w, p, 16);
        w[0] ^= crc;
        crc = 0;
        for (int i = 0; i < 4; i++)
            crc ^= table[15 - 4 * i][w[i] & 255] ^ table[14 - 4 * i][w[i] >> 8 & 255] ^
                   table[13 - 4 * i][w[i] >> 16 & 255] ^ table[12 - 4 * i][w[i] >> 24];
    }
    for (; len; len--) crc = (crc >> 8) ^ table[0][(crc ^ *p++) & 255];
    return ~crc;
}

size_t tc__utf8_decode(const char *s, size_t len, uint32_t *code) {
    const uint8_t *p = (const uint8_t *)s;
    size_t need = p[0] < 0x80 ? 1 : p[0] < 0xC2 ? 0 : p[0] < 0xE0 ? 2 : p[0] < 0xF0 ? 3 : 4;
    *code = UINT32_MAX;
    if (need == 0 || need > len || p[0] > 0xF4) return 1;
    if (need == 1) {
        *code = p[0];
        return 1;
    }
    uint32_t value = p[0] & (0x7Fu >> need);
    for (size_t i = 1; i < need; i++) {
        if ((p[i] & 0xC0) != 0x80) return 1;
        value = value << 6 | (p[i] & 0x3F);
    }
    bool overlong = value < (need == 2 ? 0x80u : need == 3 ? 0x800u : 0x10000u);
    if (overlong || (value >= 0xD800 && value < 0xE000) || value > 0x10FFFF) return 1;
    *code = value;
    return need;
}

bool tc__utf8_unfinished(const char *s, size_t len) {
    uint8_t first = (uint8_t)s[0], low = 0x80, high = 0xBF; /* of the second byte */
    size_t need = first < 0xC2 ? 0 : first < 0xE0 ? 2 : first < 0xF0 ? 3 : first < 0xF5 ? 4 : 0;
    if (len >= need) return false;
    if (first == 0xE0) low = 0xA0;  /* below: overlong */
    if (first == 0xED) high = 0x9F; /* above: surrogates */
    if (first == 0xF0) low = 0x90;  /* below: overlong */
    if (first == 0xF4) high = 0x8F; /* above: beyond U+10FFFF */
    for (size_t i = 1; i < len; i++, low = 0x80, high = 0xBF)
        if ((uint8_t)s[i] < low || (uint8_t)s[i] > high) return false;
    return true;
}

size_t tc__utf8_encode(uint32_t code, char out[4]) {
    if (code < 0x80) {
        out[0] = (char)code;
        return 1;
    }
    size_t n = code < 0x800 ? 2 : code < 0x10000 ? 3 : 4;
    for (size_t i = n - 1; i > 0; i--, code >>= 6) out[i] = (char)(0x80 | (code & 0x3F));
    out[0] = (char)((0xF00u >> n & 0xF0) | code);
    return n;
}

/* ---- flags between threads ---- */

void tc__flag_set(tc__flag *flag, bool raised) {
    __atomic_store_n(&flag->raised, raised ? 1 : 0, __ATOMIC_RELEASE);
}

bool tc__flag_get(const tc__flag *flag) {
    return __atomic_load_n(&flag->raised, __ATOMIC_ACQUIRE) != 0;
}

/* ---- half precision ---- */

static float base_float_of_bits(uint32_t bits) {
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

float tc__f16_to_f32(uint16_t half) {
    uint32_t sign = (uint32_t)(half & 0x8000) << 16, magnitude = half & 0x7FFF;
    if (magnitude >= 0x7C00)
        return base_float_of_bits(sign | 0x7F800000 | (magnitude & 0x3FF) << 13);
    if (magnitude >= 0x0400) return base_float_of_bits(sign | (magnitude + (112u << 10)) << 13);
    float value = (float)magnitude * 0x1p-24f; /* subnormal */
    return sign ? -value : value;
}

uint16_t tc__f32_to_f16(float value) {
    uint32_t bits;
    memcpy(&bits, &value, sizeof bits);
    uint16_t sign = (uint16_t)(bits >> 16 & 0x8000);
    bits &= 0x7FFFFFFF;
    if (bits > 0x7F800000) return sign | 0x7E00;           /* NaN */
    if (bits >= 0x477FF000) return sign | 0x7C00;          /* rounds to 2^16 or more */
    if (bits < 0x38800000) {                               /* below 2^-14: a multiple of 2^-24 */
        float magnitude = base_float_of_bits(bits) + 0.5f; /* the addition rounds to even */
        memcpy(&bits, &magnitude, sizeof bits);
        return sign | (uint16_t)(bits - 0x3F000000);
    }
    bits += 0xFFF + (bits >> 13 & 1);
    return sign | (uint16_t)((bits >> 13) - (112u << 10));
}

float tc__bf16_to_f32(uint16_t bf16) {
    return base_float_of_bits((uint32_t)bf16 << 16);
}

/* ---- files ---- */

int tc__map_open_fd(const char *path, tc__map *map, int *kept, tc_error *err) {
    memset(map, 0, sizeof *map);
    *kept = -1;
    int fd = open(path, O_RDONLY | O_CLOEXEC | O_NONBLOCK); /* a FIFO must not block here */
    struct stat st;
    if (fd < 0 || fstat(fd, &st)) {
        int reason = errno;
        if (fd >= 0) close(fd);
        return tc__fail(err, TC_ERR_IO, "%s: cannot open: %s", path, strerror(reason));
    }
    void *data = NULL;
    int code = TC_OK;
    if (!S_ISREG(st.st_mode))
        code = tc__fail(err, TC_ERR_IO, "%s: is %s; expected a file", path,
                        S_ISDIR(st.st_mode) ? "a folder" : "not a regular file");
    else if ((uintmax_t)st.st_size > SIZE_MAX)
        code = tc__fail(err, TC_ERR_IO, "%s: too large for this machine's addresses", path);
    else if (st.st_size &&
             (data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        code = tc__fail(err, TC_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
    if (code || !st.st_size) close(fd);
    if (code) return code;
    if (st.st_size) *kept = fd;
    map->data = data;
    map->size = (size_t)st.st_size;
    return tc__ok(err);
}

int tc__map_open(const char *path, tc__map *map, tc_error *err) {
    int fd, code = tc__map_open_fd(path, map, &fd, err);
    if (fd >= 0) close(fd);
    return code;
}

void tc__map_close(tc__map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    memset(map, 0, sizeof *map);
}

/* What is replaced: `path`, or what a link there points to; but not by a link of somebody else's,
 * who must not choose which of our files is written. malloc'ed. */
static char *base_replaced(const char *path) {
    struct stat link;
    bool ours = lstat(path, &link) == 0 && S_ISLNK(link.st_mode) && link.st_uid == geteuid();
    char *target = ours ? realpath(path, NULL) : NULL;
    return target ? target : tc__copy(path, strlen(path));
}

/* Creates a file that did not exist, beside the one to replace; leaves its name in
 * replace->temporary, which has `room` bytes. */
static int base_create_beside(tc__replace *replace, size_t room, mode_t mode) {
    for (int attempt = 0; attempt < 100; attempt++) {
        snprintf(replace->temporary, room, "%s.tmp-%ld-%d", replace->path, (long)getpid(), attempt);
        int fd = open(replace->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, mode);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

int tc__replace_open(tc__replace *replace, const char *path, tc_error *err) {
    memset(replace, 0, sizeof *replace);
    struct stat info; /* root could rename over /dev/null, for everyone */
    const bool there = stat(path, &info) == 0;
    if (there && !S_ISREG(info.st_mode))
        return tc__fail(err, TC_ERR_IO, "%s: is not a regular file, so it is not replaced", path);
    replace->path = base_replaced(path);
    size_t room = (replace->path ? strlen(replace->path) : 0) + 48;
    replace->temporary = malloc(room);
    if (!replace->path || !replace->temporary) {
        free(replace->path);
        free(replace->temporary);
        memset(replace, 0, sizeof *replace);
        return tc__fail_memory(err, "a file name", room);
    }
    /* as private as what it replaces, from the first byte on */
    const mode_t mode = there ? info.st_mode & 0777 : 0666;
    int fd = base_create_beside(replace, room, mode);
    if (fd >= 0 && there) (void)!fchmod(fd, mode); /* what umask took away */
    if (fd >= 0) replace->file = fdopen(fd, "wb");
    if (replace->file) return tc__ok(err);
    tc__fail(err, TC_ERR_IO, "%s: cannot create a file beside it: %s", path, strerror(errno));
    if (fd >= 0)
        close(fd);
    else
        replace->temporary[0] = 0; /* not ours: nothing to remove */
    tc__replace_abort(replace);
    return TC_ERR_IO;
}

int tc__replace_commit(tc__replace *replace, tc_error *err) {
    errno = 0;
    bool good =
        fflush(replace->file) == 0 && !ferror(replace->file) && fsync(fileno(replace->file)) == 0;
    int reason = errno;
    if (fclose(replace->file) && good) good = false, reason = errno;
    replace->file = NULL;
    if (good && rename(replace->temporary, replace->path)) good = false, reason = errno;
    int code = good ? tc__ok(err)
                    : tc__fail(err, TC_ERR_IO, "%s: cannot write: %s", replace->path,
                               reason ? strerror(reason) : "unknown reason");
    if (good) replace->temporary[0] = 0; /* nothing left to remove */
    tc__replace_abort(replace);
    return code;
}

void tc__replace_abort(tc__replace *replace) {
    if (replace->file) fclose(replace->file);
    if (replace->temporary && replace->temporary[0]) unlink(replace->temporary);
    free(replace->temporary);
    free(replace->path);
    memset(replace, 0, sizeof *replace);
}

/* ======== src/model_file.c ======== */


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

/* ======== src/arch.c ======== */


#include <math.h>
#include <stddef.h>

/* Every arch.* key; an unknown one would change the numbers, so it is refused. */
static const char *const arch_keys[] = {
    "arch.family",       "arch.hidden_size", "arch.intermediate_size",
    "arch.layers",       "arch.heads",       "arch.kv_heads",
    "arch.head_dim",     "arch.vocab_size",  "arch.max_seq_len",
    "arch.norm_eps",     "arch.norm",        "arch.position",
    "arch.rope_theta",   "arch.rope_scale",  "arch.rope_frequencies",
    "arch.alibi_slopes", "arch.activation",  "arch.gated",
    "arch.parallel",     "arch.clip_qkv",    "arch.sliding_window",
};

static int arch_check_keys(const tc__model_file *file, tc_error *err) {
    for (size_t i = 0; i < file->meta_count; i++) {
        const tc__meta *meta = &file->metas[i];
        if (meta->key_len < 5 || memcmp(meta->key, "arch.", 5) != 0) continue;
        bool known = false;
        for (size_t k = 0; k < TC_COUNT(arch_keys); k++)
            known |= tc__find_meta(file, arch_keys[k]) == meta;
        if (!known)
            return tc__fail(err, TC_ERR_UNSUPPORTED,
                            "model file: unknown hyper-parameter '%.*s'; this program is too old "
                            "for the file",
                            (int)meta->key_len, meta->key);
    }
    return TC_OK;
}

/* The caps are far above any model; they keep every later product of two sizes inside 64 bits. */
static int arch_read_sizes(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    const struct {
        const char *key;
        uint32_t *value, max;
    } sizes[] = {
        {"arch.hidden_size", &arch->hidden_size, 1u << 17},
        {"arch.intermediate_size", &arch->intermediate_size, 1u << 20},
        {"arch.layers", &arch->layers, 1024},
        {"arch.heads", &arch->heads, 1024},
        {"arch.kv_heads", &arch->kv_heads, 1024},
        {"arch.head_dim", &arch->head_dim, 1024},
        {"arch.vocab_size", &arch->vocab_size, 1u << 21},
        {"arch.max_seq_len", &arch->max_seq_len, 1u << 24},
    };
    for (size_t i = 0; i < TC_COUNT(sizes); i++) {
        int code = tc__meta_u32(file, sizes[i].key, sizes[i].value, err);
        if (code) return code;
        if (*sizes[i].value < 1 || *sizes[i].value > sizes[i].max)
            return tc__fail(err, TC_ERR_FORMAT, "model file: %s is %u; expected 1 to %u",
                            sizes[i].key, (unsigned)*sizes[i].value, (unsigned)sizes[i].max);
    }
    if (arch->heads % arch->kv_heads || arch->head_dim % 2 || arch->intermediate_size % 8)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: %u heads, %u KV heads, head_dim %u, intermediate_size %u do "
                        "not fit together; expected KV heads that divide the heads, an even "
                        "head_dim and an intermediate_size that is a multiple of 8",
                        (unsigned)arch->heads, (unsigned)arch->kv_heads, (unsigned)arch->head_dim,
                        (unsigned)arch->intermediate_size);
    return TC_OK;
}

/* What a block is made of: numbers that name a kind, 0 or 1 each. */
static int arch_read_kinds(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    uint32_t gated, parallel;
    const struct {
        const char *key;
        uint32_t missing, *value;
        const char *kinds;
    } kinds[] = {
        {"arch.norm", TC__NORM_RMS, &arch->norm, "0 (RMSNorm) and 1 (LayerNorm)"},
        {"arch.position", TC__POSITION_ROPE, &arch->position, "0 (RoPE) and 1 (ALiBi)"},
        {"arch.activation", TC__ACT_SILU, &arch->activation, "0 (SiLU) and 1 (GELU)"},
        {"arch.gated", 1, &gated, "0 (no) and 1 (yes)"},
        {"arch.parallel", 0, &parallel, "0 (no) and 1 (yes)"},
    };
    for (size_t i = 0; i < TC_COUNT(kinds); i++) {
        int code = tc__meta_u32_or(file, kinds[i].key, kinds[i].missing, kinds[i].value, err);
        if (code) return code;
        if (*kinds[i].value > 1)
            return tc__fail(err, TC_ERR_UNSUPPORTED, "model file: %s is %u; supported: %s",
                            kinds[i].key, (unsigned)*kinds[i].value, kinds[i].kinds);
    }
    arch->gated = gated != 0;
    arch->parallel = parallel != 0;
    return tc__meta_u32_or(file, "arch.sliding_window", 0, &arch->sliding_window, err);
}

/* `missing` is the value of a missing key; NAN: the key is required. */
static int arch_number(const tc__model_file *file, const char *key, double missing, double least,
                       double most, double *value, tc_error *err) {
    *value = missing;
    if (!isnan(missing) && !tc__find_meta(file, key)) return TC_OK;
    int code = tc__meta_f64(file, key, value, err);
    if (code || (*value >= least && *value <= most)) return code;
    return tc__fail(err, TC_ERR_FORMAT, "model file: %s is %g; expected %g to %g", key, *value,
                    least, most);
}

/* The `count` numbers of a key; NULL: there is no such key. */
static int arch_array(const tc__model_file *file, const char *key, uint32_t type, size_t count,
                      const uint8_t **values, tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, key);
    *values = meta ? meta->value : NULL;
    if (!meta || (meta->type == type && meta->count == count)) return TC_OK;
    return tc__fail(err, TC_ERR_FORMAT,
                    "model file: %s has type %u and %zu elements; expected type %u and %zu", key,
                    (unsigned)meta->type, meta->count, (unsigned)type, count);
}

static int arch_bad_number(const char *what, size_t index, double value, const char *expected,
                           tc_error *err) {
    return tc__fail(err, TC_ERR_FORMAT, "model file: %s[%zu] is %g; expected %s", what, index,
                    value, expected);
}

/* Angles per position: the file's, or theta^(-2i / head_dim). */
static int arch_read_rope(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    const char *key = "arch.rope_frequencies";
    const size_t half = arch->head_dim / 2;
    const uint8_t *given = NULL;
    double theta = 0, scale = 1;
    int code = arch_number(file, "arch.rope_theta", NAN, 1, 1e15, &theta, err);
    if (!code) code = arch_number(file, "arch.rope_scale", 1, 1e-3, 1e3, &scale, err);
    if (!code) code = arch_array(file, key, TC__META_F64, half, &given, err);
    if (code) return code;
    arch->rope_scale = (float)scale;
    arch->frequencies = tc__calloc(half, sizeof *arch->frequencies);
    if (!arch->frequencies)
        return tc__fail_memory(err, "RoPE's frequencies", half * sizeof(double));
    for (size_t i = 0; i < half; i++) {
        double *frequency = &arch->frequencies[i];
        *frequency = pow(theta, -2.0 * (double)i / arch->head_dim);
        if (given) memcpy(frequency, given + i * sizeof *frequency, sizeof *frequency);
        if (!(*frequency >= 0 && *frequency <= 4))
            return arch_bad_number(key, i, *frequency, "0 to 4 radians per position", err);
    }
    return TC_OK;
}

static int arch_read_alibi(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    const char *key = "arch.alibi_slopes";
    const size_t bytes = arch->heads * sizeof *arch->slopes;
    const uint8_t *given = NULL;
    int code = arch_array(file, key, TC__META_F32, arch->heads, &given, err);
    if (code) return code;
    if (!given)
        return tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' is missing; ALiBi needs it",
                        key);
    arch->slopes = tc__calloc(1, bytes);
    if (!arch->slopes) return tc__fail_memory(err, "ALiBi's slopes", bytes);
    memcpy(arch->slopes, given, bytes);
    for (size_t i = 0; i < arch->heads; i++)
        if (!(arch->slopes[i] >= 0 && arch->slopes[i] <= 16))
            return arch_bad_number(key, i, (double)arch->slopes[i], "0 to 16", err);
    return TC_OK;
}

/* A key that belongs to the other kind of position contradicts arch.position. */
static int arch_read_position(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    static const char *const keys[] = {"arch.alibi_slopes", "arch.rope_theta", "arch.rope_scale",
                                       "arch.rope_frequencies"};
    const bool rope = arch->position == TC__POSITION_ROPE;
    for (size_t i = rope ? 0 : 1; i < (rope ? 1 : TC_COUNT(keys)); i++)
        if (tc__find_meta(file, keys[i]))
            return tc__fail(err, TC_ERR_FORMAT,
                            "model file: metadata '%s' does not go with arch.position %u (%s)",
                            keys[i], (unsigned)arch->position, rope ? "RoPE" : "ALiBi");
    return rope ? arch_read_rope(file, arch, err) : arch_read_alibi(file, arch, err);
}

static int arch_read(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    double eps = 0, clip = 0;
    int code = arch_check_keys(file, err);
    if (!code) code = arch_read_sizes(file, arch, err);
    if (!code) code = arch_read_kinds(file, arch, err);
    if (!code) code = arch_number(file, "arch.norm_eps", NAN, 1e-20, 0.5, &eps, err);
    if (!code) code = arch_number(file, "arch.clip_qkv", 0, 1e-6, 1e6, &clip, err);
    if (code) return code;
    arch->norm_eps = (float)eps;
    arch->clip_qkv = (float)clip;
    return arch_read_position(file, arch, err);
}

/* ---- tensors ---- */

static const char *arch_type_name(uint32_t type) {
    return type == TC__F32 ? "F32" : type == TC__F16 ? "F16" : type == TC__BF16 ? "BF16" : "W4";
}

/* F32; F32 without zeros; F16 or BF16; F16, BF16 or W4 */
enum { ARCH_VECTOR, ARCH_DIVISOR, ARCH_TABLE, ARCH_MATRIX };

static bool arch_type_suits(int kind, uint32_t type) {
    if (kind == ARCH_VECTOR || kind == ARCH_DIVISOR) return type == TC__F32;
    return type == TC__F16 || type == TC__BF16 || (kind == ARCH_MATRIX && type == TC__W4);
}

/* Whether a model has a tensor. */
enum { ARCH_NEVER, ARCH_MAYBE, ARCH_ALWAYS };

typedef struct arch_part {
    const char *name;
    int kind, presence;
    size_t rows, columns;
    size_t place; /* of the pointer, in tc__weights or tc__layer */
} arch_part;

/* Vectors are short enough to be looked through: one bad number in them would spoil every result
 * without a word. */
static int arch_check_vector(const tc__tensor *tensor, const char *name, bool divisor,
                             tc_error *err) {
    for (size_t i = 0; tensor->data && i < tensor->rows; i++) {
        float value;
        memcpy(&value, tensor->data + i * sizeof value, sizeof value);
        if (!isfinite(value) || (divisor && value == 0))
            return arch_bad_number(name, i, (double)value,
                                   divisor ? "a finite number other than 0" : "a finite number",
                                   err);
    }
    return TC_OK;
}

static int arch_check_tensor(const tc__tensor *tensor, const char *name, const arch_part *part,
                             tc_error *err) {
    const bool vector = part->kind == ARCH_VECTOR || part->kind == ARCH_DIVISOR;
    if (!arch_type_suits(part->kind, tensor->type))
        return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' has type %s; expected %s",
                        name, arch_type_name(tensor->type),
                        vector                     ? "F32"
                        : part->kind == ARCH_TABLE ? "F16 or BF16"
                                                   : "W4, F16 or BF16");
    if (tensor->rows != part->rows || tensor->columns != part->columns)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: tensor '%s' has shape [%zu, %zu]; expected [%zu, %zu]", name,
                        tensor->rows, tensor->columns, part->rows, part->columns);
    return vector ? arch_check_vector(tensor, name, part->kind == ARCH_DIVISOR, err) : TC_OK;
}

/* Finds and checks the parts of `owner`: of a layer, or with layer < 0 of the weights beside them.
 * What layer 0, `first`, has or lacks, the others must have or lack. `used` notes what is found. */
static int arch_find(const tc__model_file *file, long layer, const arch_part *parts, size_t count,
                     void *owner, const void *first, bool *used, tc_error *err) {
    for (size_t k = 0; k < count; k++) {
        const arch_part *part = &parts[k];
        const tc__tensor **out = (void *)((char *)owner + part->place);
        const tc__tensor *const *model = (const void *)((const char *)first + part->place);
        char name[64];
        if (part->presence == ARCH_NEVER) continue;
        if (part->presence == ARCH_MAYBE && owner != first && !*model) continue;
        if (layer < 0)
            snprintf(name, sizeof name, "%s", part->name);
        else
            snprintf(name, sizeof name, "%ld.%s", layer, part->name);
        *out = tc__find_tensor(file, name);
        if (!*out && part->presence == ARCH_MAYBE && owner == first) continue;
        if (!*out) return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' is missing", name);
        used[*out - file->tensors] = true;
        int code = arch_check_tensor(*out, name, part, err);
        if (code) return code;
    }
    return TC_OK;
}

static int arch_layers(const tc__model_file *file, tc__weights *weights, bool *used,
                       tc_error *err) {
    const tc__arch *arch = &weights->arch;
    const size_t hidden = arch->hidden_size, inner = arch->intermediate_size, d = arch->head_dim;
    const size_t heads = arch->heads * d, qkv = heads + 2 * (size_t)arch->kv_heads * d;
    const int bias = arch->norm == TC__NORM_LAYER ? ARCH_MAYBE : ARCH_NEVER;
    const int mlp_norm = arch->parallel ? ARCH_MAYBE : ARCH_ALWAYS;
#define ARCH_PLACE(field) offsetof(tc__layer, field)
    const arch_part parts[] = {
        {"attn_norm", ARCH_VECTOR, ARCH_ALWAYS, hidden, 1, ARCH_PLACE(attn_norm)},
        {"attn_norm_bias", ARCH_VECTOR, bias, hidden, 1, ARCH_PLACE(attn_norm_bias)},
        {"qkv", ARCH_MATRIX, ARCH_ALWAYS, qkv, hidden, ARCH_PLACE(qkv)},
        {"qkv_bias", ARCH_VECTOR, ARCH_MAYBE, qkv, 1, ARCH_PLACE(qkv_bias)},
        {"q_norm", ARCH_VECTOR, ARCH_MAYBE, d, 1, ARCH_PLACE(q_norm)},
        {"k_norm", ARCH_VECTOR, ARCH_MAYBE, d, 1, ARCH_PLACE(k_norm)},
        {"o", ARCH_MATRIX, ARCH_ALWAYS, hidden, heads, ARCH_PLACE(o)},
        {"mlp_norm", ARCH_VECTOR, mlp_norm, hidden, 1, ARCH_PLACE(mlp_norm)},
        {"mlp_norm_bias", ARCH_VECTOR, bias, hidden, 1, ARCH_PLACE(mlp_norm_bias)},
        {arch->gated ? "gate_up" : "up", ARCH_MATRIX, ARCH_ALWAYS, arch->gated ? 2 * inner : inner,
         hidden, ARCH_PLACE(gate_up)},
        {"act_scales", ARCH_DIVISOR, ARCH_MAYBE, inner, 1, ARCH_PLACE(act_scales)},
        {"down", ARCH_MATRIX, ARCH_ALWAYS, hidden, inner, ARCH_PLACE(down)},
    };
#undef ARCH_PLACE
    tc__layer *first = &weights->layers[0];
    for (uint32_t i = 0; i < arch->layers; i++) {
        int code =
            arch_find(file, (long)i, parts, TC_COUNT(parts), &weights->layers[i], first, used, err);
        if (code) return code;
    }
    if (!first->q_norm != !first->k_norm)
        return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '0.%s' is missing; '0.%s' is there",
                        first->q_norm ? "k_norm" : "q_norm", first->q_norm ? "q_norm" : "k_norm");
    if (first->mlp_norm_bias && !first->mlp_norm)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: tensor '0.mlp_norm' is missing; '0.mlp_norm_bias' is there");
    return TC_OK;
}

static int arch_beside_layers(const tc__model_file *file, tc__weights *weights, bool *used,
                              tc_error *err) {
    const size_t hidden = weights->arch.hidden_size, vocab = weights->arch.vocab_size;
    const int bias = weights->arch.norm == TC__NORM_LAYER ? ARCH_MAYBE : ARCH_NEVER;
#define ARCH_PLACE(field) offsetof(tc__weights, field)
    const arch_part parts[] = {
        {"embed", ARCH_TABLE, ARCH_ALWAYS, vocab, hidden, ARCH_PLACE(embed)},
        {"norm", ARCH_VECTOR, ARCH_ALWAYS, hidden, 1, ARCH_PLACE(norm)},
        {"norm_bias", ARCH_VECTOR, bias, hidden, 1, ARCH_PLACE(norm_bias)},
        {"head", ARCH_TABLE, ARCH_MAYBE, vocab, hidden, ARCH_PLACE(head)},
    };
#undef ARCH_PLACE
    int code = arch_find(file, -1, parts, TC_COUNT(parts), weights, weights, used, err);
    if (!weights->head) weights->head = weights->embed;
    return code;
}

/* A tensor that nobody asked for would have changed the numbers. */
static int arch_check_used(const tc__model_file *file, const bool *used, tc_error *err) {
    for (size_t i = 0; i < file->tensor_count; i++)
        if (!used[i])
            return tc__fail(err, TC_ERR_UNSUPPORTED,
                            "model file: tensor '%.*s' has no place in this model: its "
                            "hyper-parameters or its layer 0 know no such tensor",
                            (int)file->tensors[i].name_len, file->tensors[i].name);
    return TC_OK;
}

static int arch_find_tensors(const tc__model_file *file, tc__weights *weights, tc_error *err) {
    const size_t layers = weights->arch.layers;
    weights->layers = tc__calloc(layers, sizeof *weights->layers);
    if (!weights->layers)
        return tc__fail_memory(err, "the table of layers", layers * sizeof *weights->layers);
    bool *used = tc__calloc(file->tensor_count, sizeof *used);
    if (!used) return tc__fail_memory(err, "the table of tensors", file->tensor_count);
    int code = arch_beside_layers(file, weights, used, err);
    if (!code) code = arch_layers(file, weights, used, err);
    if (!code) code = arch_check_used(file, used, err);
    free(used);
    return code;
}

static void arch_count(const tc__model_file *file, tc__weights *weights) {
    const tc__tensor *last = &file->tensors[file->tensor_count - 1];
    weights->data = file->tensors[0].data;
    weights->data_bytes = last->offset + last->size;
    weights->in_file = file->map.data != NULL;
    weights->fd = file->fd;
    weights->data_at = weights->in_file ? (size_t)(weights->data - file->map.data) : 0;
    size_t row = weights->embed->columns * 2; /* one token reads one row of the embedding */
    for (size_t i = 0; i < file->tensor_count; i++) {
        const tc__tensor *tensor = &file->tensors[i];
        weights->parameters += tensor->rows * tensor->columns;
        weights->tensor_bytes += tensor->size;
        if (tensor->columns > 1 && tensor != weights->embed && tensor != weights->head)
            weights->layer_parameters += tensor->rows * tensor->columns;
        bool whole = tensor != weights->embed || weights->head == weights->embed;
        weights->bytes_per_token += whole ? tensor->size : row;
    }
}

size_t tc__head_8_group(const tc__weights *weights) {
    const size_t columns = weights->head->columns;
    return columns % 128 == 0 ? 128 : columns % 64 == 0 ? 64 : 32;
}

size_t tc__head_8_bytes(const tc__weights *weights) {
    const size_t groups = weights->head->columns / tc__head_8_group(weights);
    const size_t blocks = (weights->head->rows + TC__UNIT_ROWS - 1) / TC__UNIT_ROWS;
    return blocks * groups * TC__UNIT_ROWS * (tc__head_8_group(weights) + 2);
}

void tc__weights_head_in_8(tc__weights *weights) {
    const size_t bytes = tc__head_8_bytes(weights);
    const bool tied = weights->head == weights->embed;
    weights->head_in_8 = true;
    weights->bytes_per_token += bytes;
    weights->bytes_per_token -= weights->head->size;
    if (tied) weights->bytes_per_token += weights->embed->columns * 2;
    if (tied || bytes > weights->head->size) weights->head_apart_bytes = bytes;
}

int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err) {
    memset(weights, 0, sizeof *weights);
    int code = arch_read(file, &weights->arch, err);
    if (!code) code = arch_find_tensors(file, weights, err);
    if (code) {
        tc__weights_close(weights);
        return code;
    }
    arch_count(file, weights);
    return tc__ok(err);
}

void tc__weights_close(tc__weights *weights) {
    free(weights->layers);
    free(weights->arch.frequencies);
    free(weights->arch.slopes);
    memset(weights, 0, sizeof *weights);
}

/* The kind of a matrix for people: "W4A16 g128", "W16A16", "W16A16 (bf16)". */
static void arch_matrix_name(const tc__tensor *tensor, char *text, size_t size) {
    if (tensor->type == TC__W4)
        snprintf(text, size, "W4A16 g%u", (unsigned)tensor->group_size);
    else
        snprintf(text, size, tensor->type == TC__F16 ? "W16A16" : "W16A16 (bf16)");
}

static void arch_layers_name(const tc__weights *weights, char *text, size_t size) {
    arch_matrix_name(weights->layers[0].qkv, text, size);
    for (uint32_t i = 0; i < weights->arch.layers; i++) {
        const tc__layer *layer = &weights->layers[i];
        const tc__tensor *matrices[] = {layer->qkv, layer->o, layer->gate_up, layer->down};
        for (size_t k = 0; k < TC_COUNT(matrices); k++)
            if (matrices[k]->type != weights->layers[0].qkv->type ||
                matrices[k]->group_size != weights->layers[0].qkv->group_size) {
                snprintf(text, size, "mixed precision");
                return;
            }
    }
}

void tc__precision_name(const tc__weights *weights, char *text, size_t size) {
    char layers[32];
    arch_layers_name(weights, layers, sizeof layers);
    snprintf(text, size, "%s%s", layers, weights->head_in_8 ? ", int8 head" : "");
}

/* ======== src/unicode.c ======== */

/* unicode - see unicode.h. */


/* In unicode_tables.h:
 *   unicode_classes    code << 8 | class | word bit, at every code point where that changes
 *   unicode_combining  code << 8 | canonical combining class, likewise
 *   unicode_parts      triples: code point and its canonical decomposition (second 0: only one)
 *   unicode_composing  indices of the triples that compose again, by first and second part */
#define UNICODE_WORD 4 /* beside the class in unicode_classes */

/* Hangul syllables are composed by arithmetic: leading consonant, vowel, trailing consonant. */
enum {
    UNICODE_SYLLABLES = 0xAC00,
    UNICODE_LEADING = 0x1100,
    UNICODE_VOWELS = 0x1161,
    UNICODE_TRAILING = 0x11A7, /* the one before the first */
    UNICODE_N_LEADING = 19,
    UNICODE_N_VOWELS = 21,
    UNICODE_N_TRAILING = 28,
    UNICODE_N_SYLLABLES = UNICODE_N_LEADING * UNICODE_N_VOWELS * UNICODE_N_TRAILING
};

/* The value that the last change at or before the code point brought. */
static unsigned unicode_value(const uint32_t *changes, size_t n, uint32_t code) {
    size_t low = 0, high = n; /* changes[low - 1] <= code < changes[high] */
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        if (changes[middle] >> 8 <= code)
            low = middle + 1;
        else
            high = middle;
    }
    return low ? changes[low - 1] & 0xFF : 0;
}

static bool unicode_is_space(uint32_t code) {
    return code == ' ' || (code >= 9 && code <= 13) || code == 0x85 || code == 0xA0 ||
           code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

int tc__char_class(uint32_t code) {
    if ((code | 32) - 'a' < 26) return TC__CHAR_LETTER;
    if (unicode_is_space(code)) return TC__CHAR_SPACE;
    return (int)unicode_value(unicode_classes, TC_COUNT(unicode_classes), code) & ~UNICODE_WORD;
}

bool tc__char_is_word(uint32_t code) {
    return unicode_value(unicode_classes, TC_COUNT(unicode_classes), code) & UNICODE_WORD;
}

/* ---- NFC ---- */

typedef struct unicode_char {
    uint32_t code, combining;
} unicode_char;

/* Appends the full canonical decomposition: at most 4 characters. */
static void unicode_decompose(uint32_t code, unicode_char *out, size_t *n) {
    uint32_t syllable = code - UNICODE_SYLLABLES;
    if (syllable < UNICODE_N_SYLLABLES) {
        uint32_t pair = syllable / UNICODE_N_TRAILING, trailing = syllable % UNICODE_N_TRAILING;
        out[(*n)++] = (unicode_char){UNICODE_LEADING + pair / UNICODE_N_VOWELS, 0};
        out[(*n)++] = (unicode_char){UNICODE_VOWELS + pair % UNICODE_N_VOWELS, 0};
        if (trailing) out[(*n)++] = (unicode_char){UNICODE_TRAILING + trailing, 0};
        return;
    }
    size_t low = 0, high = code < 0xC0 ? 0 : TC_COUNT(unicode_parts) / 3;
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const uint32_t *parts = &unicode_parts[3 * middle];
        if (parts[0] == code) {
            unicode_decompose(parts[1], out, n);
            if (parts[2]) unicode_decompose(parts[2], out, n);
            return;
        }
        if (parts[0] < code)
            low = middle + 1;
        else
            high = middle;
    }
    unsigned combining = unicode_value(unicode_combining, TC_COUNT(unicode_combining), code);
    out[(*n)++] = (unicode_char){code, combining};
}

/* Sorts marks in a row by their combining class, equal ones staying in their order. */
static void unicode_sort_marks(unicode_char *marks, size_t n, unicode_char *room) {
    size_t places[257] = {0};
    for (size_t i = 0; i < n; i++) places[marks[i].combining + 1]++;
    for (size_t i = 1; i < TC_COUNT(places); i++) places[i] += places[i - 1];
    for (size_t i = 0; i < n; i++) room[places[marks[i].combining]++] = marks[i];
    memcpy(marks, room, n * sizeof *marks);
}

/* The character that two compose to; 0 if they do not. */
static uint32_t unicode_compose(uint32_t first, uint32_t second) {
    uint32_t leading = first - UNICODE_LEADING, vowel = second - UNICODE_VOWELS;
    uint32_t syllable = first - UNICODE_SYLLABLES, trailing = second - UNICODE_TRAILING;
    if (leading < UNICODE_N_LEADING && vowel < UNICODE_N_VOWELS)
        return UNICODE_SYLLABLES + (leading * UNICODE_N_VOWELS + vowel) * UNICODE_N_TRAILING;
    if (syllable < UNICODE_N_SYLLABLES && syllable % UNICODE_N_TRAILING == 0 && trailing &&
        trailing < UNICODE_N_TRAILING)
        return first + trailing;
    size_t low = 0, high = TC_COUNT(unicode_composing);
    while (low < high) {
        size_t middle = low + (high - low) / 2;
        const uint32_t *parts = &unicode_parts[3 * unicode_composing[middle]];
        if (parts[1] == first && parts[2] == second) return parts[0];
        if (parts[1] < first || (parts[1] == first && parts[2] < second))
            low = middle + 1;
        else
            high = middle;
    }
    return 0;
}

/* Composes in place, returns how many characters are left. A character joins the last starter
 * (combining class 0) unless one between them has a class that is 0 or not lower than its own. */
static size_t unicode_compose_all(unicode_char *chars, size_t n) {
    size_t kept = 0, starter = SIZE_MAX;
    for (size_t i = 0; i < n; i++) {
        unicode_char c = chars[i];
        bool beside = starter != SIZE_MAX && starter + 1 == kept;
        bool open = beside || (starter != SIZE_MAX && chars[kept - 1].combining < c.combining);
        uint32_t joined = open ? unicode_compose(chars[starter].code, c.code) : 0;
        if (joined) {
            chars[starter].code = joined;
            continue;
        }
        if (!c.combining) starter = kept;
        chars[kept++] = c;
    }
    return kept;
}

/* Text below U+0300 is composed already: nothing in it joins with anything else. */
static bool unicode_is_plain(const char *text, size_t len) {
    for (size_t i = 0; i < len; i++)
        if ((uint8_t)text[i] >= 0xCC) return false;
    return true;
}

static void unicode_nfc(const char *text, size_t len, tc__buf *out) {
    if (unicode_is_plain(text, len)) {
        tc__buf_add(out, text, len);
        return;
    }
    size_t count = 0, n = 0, bytes;
    for (size_t i = 0; i < len; i++) count += ((uint8_t)text[i] & 0xC0) != 0x80;
    bool fits = tc__mul(count, 8 * sizeof(unicode_char), &bytes);
    unicode_char *chars = fits ? malloc(bytes) : NULL; /* 4 of each, and as much to sort marks */
    if (!chars) {
        out->failed = true;
        return;
    }
    for (size_t i = 0; i < len;) {
        uint32_t code;
        i += tc__utf8_decode(text + i, len - i, &code);
        unicode_decompose(code, chars, &n);
    }
    for (size_t i = 0, end; i < n; i = end + 1) {
        for (end = i; end < n && chars[end].combining;) end++;
        if (end > i + 1) unicode_sort_marks(chars + i, end - i, chars + 4 * count);
    }
    n = unicode_compose_all(chars, n);
    for (size_t i = 0; i < n; i++) {
        char utf8[4];
        tc__buf_add(out, utf8, tc__utf8_encode(chars[i].code, utf8));
    }
    free(chars);
}

/* In parts of some KB that begin with ASCII, which joins with nothing before it. */
void tc__nfc(const char *text, size_t len, tc__buf *out) {
    for (size_t begin = 0, end; begin < len; begin = end) {
        for (end = begin + 1; end < len && (end - begin < 4096 || (text[end] & 0x80));) end++;
        unicode_nfc(text + begin, end - begin, out);
    }
}

#undef UNICODE_WORD

/* ======== src/split.c ======== */

/* split - see split.h. The expressions below are those of the families' tokenizer.json. */


const char *tc__split_name(int index) {
    static const char *const names[] = {"none", "gpt2", "llama3", "qwen2", "falcon"};
    return index >= 0 && (size_t)index < TC_COUNT(names) ? names[index] : NULL;
}

/* ---- characters ---- */

/* The class of the character at `at` and where the next one begins; -1 at the end. */
static int split_class(const char *text, size_t len, size_t at, size_t *next) {
    uint32_t code;
    if (at >= len) return -1;
    *next = at + tc__utf8_decode(text + at, len - at, &code);
    return tc__char_class(code);
}

/* [^\s\p{L}\p{N}] */
static bool split_is_mark(int class) {
    return class == TC__CHAR_OTHER || class == TC__CHAR_PUNCTUATION;
}

/* The end of the run that begins at `at` of letters, numbers, spaces or marks. */
static size_t split_run(const char *text, size_t len, size_t at) {
    size_t next = at;
    int first = split_class(text, len, at, &next), class = first;
    while (class == first || (split_is_mark(class) && split_is_mark(first))) {
        at = next;
        class = split_class(text, len, at, &next);
    }
    return at;
}

/* ---- rules: the end of the word that begins at `at`; `at` if the rule does not apply ---- */

/* 's|'t|'re|'ve|'m|'ll|'d, and with any case: S may also be U+017F, which is a small s. */
static size_t split_contraction(const char *text, size_t len, size_t at, bool any_case) {
    static const char *const endings[] = {"s", "t", "re", "ve", "m", "ll", "d"};
    if (text[at] != '\'') return at;
    if (any_case && len - at >= 3 && !memcmp(text + at + 1, "\xC5\xBF", 2)) return at + 3;
    for (size_t i = 0; i < TC_COUNT(endings); i++) {
        size_t n = strlen(endings[i]), same = 0;
        if (len - at - 1 < n) continue;
        for (; same < n; same++) {
            char c = text[at + 1 + same];
            if (any_case && c >= 'A' && c <= 'Z') c = (char)(c | 32);
            if (c != endings[i][same]) break;
        }
        if (same == n) return at + 1 + n;
    }
    return at;
}

/* \s+(?!\S)|\s+ at a space: of several spaces before other text the last one is left to it. */
static size_t split_spaces(const char *text, size_t len, size_t at) {
    size_t end = split_run(text, len, at), last = end - 1;
    if (end == len) return end;
    while (((uint8_t)text[last] & 0xC0) == 0x80) last--;
    return last > at ? last : end;
}

/* 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+ */
static size_t split_gpt2(const char *text, size_t len, size_t at) {
    size_t end = split_contraction(text, len, at, false), next = at;
    if (end > at) return end;
    size_t begin = text[at] == ' ' ? at + 1 : at;
    int class = split_class(text, len, begin, &next);
    return class == TC__CHAR_SPACE || class < 0 ? split_spaces(text, len, at)
                                                : split_run(text, len, begin);
}

static bool split_is_break(char c) {
    return c == '\r' || c == '\n';
}

/* (?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|
 * \s*[\r\n]+|\s+(?!\S)|\s+, with at most `digits` numbers in a row. */
static size_t split_llama3(const char *text, size_t len, size_t at, int digits) {
    size_t end = split_contraction(text, len, at, true), next = at, after;
    if (end > at) return end;
    int class = split_class(text, len, at, &next);
    if (class == TC__CHAR_LETTER) return split_run(text, len, at);
    if (class == TC__CHAR_NUMBER) {
        for (end = next; --digits > 0 && split_class(text, len, end, &next) == TC__CHAR_NUMBER;)
            end = next;
        return end;
    }
    if (!split_is_break(text[at]) && split_class(text, len, next, &after) == TC__CHAR_LETTER)
        return split_run(text, len, next);
    size_t begin = text[at] == ' ' ? at + 1 : at;
    if (split_is_mark(split_class(text, len, begin, &next))) {
        for (end = split_run(text, len, begin); end < len && split_is_break(text[end]);) end++;
        return end;
    }
    for (end = split_run(text, len, at); end > at; end--)
        if (split_is_break(text[end - 1])) return end;
    return split_spaces(text, len, at);
}

/* The end of the run of punctuation, or of anything else, that begins at `at`. */
static size_t split_punctuation(const char *text, size_t len, size_t at) {
    size_t next = at;
    bool first = split_class(text, len, at, &next) == TC__CHAR_PUNCTUATION;
    do at = next;
    while (at < len && (split_class(text, len, at, &next) == TC__CHAR_PUNCTUATION) == first);
    return at;
}

/* Numbers among the characters that byte-level BPE writes bytes as: the ASCII digits, and the bytes
 * that are written as superscripts and fractions, which may be parts of any character. */
static bool split_is_numeric(char c) {
    return (c >= '0' && c <= '9') || (c && strchr("\xB2\xB3\xB9\xBC\xBD\xBE", c));
}

static bool split_is_triple(const char *text, size_t len) {
    for (size_t i = 0; i < 3; i++)
        if (i == len || text[i] < '0' || text[i] > '9') return false;
    return true;
}

/* Falcon's last two steps: runs of numbers apart from the rest, and in them triples of digits. */
static size_t split_digits(const char *text, size_t len, size_t at) {
    bool numeric = split_is_numeric(text[at]);
    if (split_is_triple(text + at, len - at)) return at + 3;
    do at++;
    while (at < len && split_is_numeric(text[at]) == numeric &&
           !split_is_triple(text + at, len - at));
    return at;
}

/* ---- words ---- */

tc__splitter tc__splitter_make(int kind, const char *text, size_t len) {
    tc__splitter splitter = {kind, text, len, 0, 0, 0};
    return splitter;
}

bool tc__split_next(tc__splitter *s, const char **word, size_t *len) {
    size_t at = s->at;
    if (at == s->len) return false;
    switch (s->kind) {
    case TC__SPLIT_GPT2: s->at = split_gpt2(s->text, s->len, at); break;
    case TC__SPLIT_LLAMA3: s->at = split_llama3(s->text, s->len, at, 3); break;
    case TC__SPLIT_QWEN2: s->at = split_llama3(s->text, s->len, at, 1); break;
    case TC__SPLIT_FALCON:
        if (at == s->part_end) s->part_end = split_punctuation(s->text, s->len, at);
        if (at == s->word_end) s->word_end = split_gpt2(s->text, s->part_end, at);
        s->at = split_digits(s->text, s->word_end, at);
        break;
    default: s->at = s->len;
    }
    *word = s->text + at;
    *len = s->at - at;
    return true;
}

/* ======== src/vocabulary.c ======== */

/* vocabulary - see vocabulary.h. In order: look-ups, reading the metadata, indexing, opening. */


#include <math.h>

/* ---- look-ups ---- */

static uint32_t vocabulary_hash(const char *text, size_t len) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < len; i++) hash = (hash ^ (uint8_t)text[i]) * 16777619u;
    return hash ^ hash >> 15;
}

int32_t tc__find_piece(const tc__tokenizer *t, const char *text, size_t len) {
    if (len > t->max_len) return -1;
    uint32_t hash = vocabulary_hash(text, len);
    for (uint32_t i = hash & t->slot_mask; t->slots[i].id >= 0; i = (i + 1) & t->slot_mask) {
        if (t->slots[i].hash != hash) continue;
        const tc__piece *piece = &t->pieces[t->slots[i].id];
        if (piece->len == len && !memcmp(piece->text, text, len)) return t->slots[i].id;
    }
    return -1;
}

static uint32_t vocabulary_hash_pair(int32_t left, int32_t right) {
    uint64_t hash = ((uint64_t)(uint32_t)left << 32 | (uint32_t)right) * 0x9E3779B97F4A7C15u;
    return (uint32_t)(hash >> 32);
}

const tc__merge_slot *tc__find_merge(const tc__tokenizer *t, int32_t left, int32_t right) {
    for (uint32_t i = vocabulary_hash_pair(left, right);; i++) {
        const tc__merge_slot *slot = &t->merges[i & t->merge_mask];
        if (slot->left < 0) return NULL;
        if (slot->left == left && slot->right == right) return slot;
    }
}

static int vocabulary_compare(const void *left, const void *right) {
    const tc__added *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);
    if (order) return order;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static void vocabulary_sort(tc__added_list *list) {
    size_t kept = 0;
    if (list->n) qsort(list->at, list->n, sizeof *list->at, vocabulary_compare);
    for (size_t i = 0; i < list->n; i++) {
        const tc__added *e = &list->at[i], *last = kept ? &list->at[kept - 1] : NULL;
        if (last && last->len == e->len && !memcmp(last->text, e->text, e->len)) continue;
        list->begins[(uint8_t)e->text[0]] = true;
        list->at[kept++] = *e;
    }
    list->n = kept;
}

static void vocabulary_list_add(tc__added_list *list, tc__added added) {
    added.order = (uint32_t)list->n;
    list->at[list->n++] = added;
}

/* Byte by byte, the entries that share the bytes so far are a shrinking range of the sorted list.
 */
const tc__added *tc__find_added(const tc__added_list *list, const char *text, size_t len) {
    const tc__added *best = NULL;
    size_t low = 0, high = list->n;
    if (!len || !list->begins[(uint8_t)text[0]]) return NULL;
    for (size_t depth = 0; low < high; depth++) {
        if (list->at[low].len == depth) best = &list->at[low++];
        if (depth == len) break;
        for (int upper = 0; upper < 2; upper++) { /* the first entry >= byte, then the first > */
            unsigned byte = (uint8_t)text[depth] + (unsigned)upper;
            size_t from = low, to = high;
            while (from < to) {
                size_t middle = from + (to - from) / 2;
                if ((uint8_t)list->at[middle].text[depth] < byte)
                    from = middle + 1;
                else
                    to = middle;
            }
            if (upper)
                high = from;
            else
                low = from;
        }
    }
    return best;
}

int tc__byte_value(const tc__piece *piece) {
    static const char digits[] = "0123456789ABCDEF";
    if (piece->len != 6 || memcmp(piece->text, "<0x", 3) || piece->text[5] != '>') return -1;
    const char *high = memchr(digits, piece->text[3], 16),
               *low = memchr(digits, piece->text[4], 16);
    return high && low ? (int)(high - digits) * 16 + (int)(low - digits) : -1;
}

/* ---- reading ---- */

/* Maps a score to a number that is lower the higher the score is; -0 equals 0. */
static uint32_t vocabulary_rank(float score) {
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static bool vocabulary_is_utf8(const char *text, size_t len) {
    uint32_t code;
    for (size_t i = 0; i < len;) {
        i += tc__utf8_decode(text + i, len - i, &code);
        if (code == UINT32_MAX) return false;
    }
    return true;
}

/* A metadata array of `type` with `count` elements (SIZE_MAX: any number but none). */
static int vocabulary_array(const tc__model_file *file, const char *key, uint32_t type,
                            size_t count, const tc__meta **meta, tc_error *err) {
    *meta = tc__find_meta(file, key);
    if (!*meta) return tc__fail(err, TC_ERR_FORMAT, "model file: no metadata '%s'", key);
    if ((*meta)->type != type)
        return tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' has type %u; expected %u",
                        key, (*meta)->type, type);
    if (count == SIZE_MAX ? !(*meta)->count : (*meta)->count != count)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: metadata '%s' has %zu elements; expected "
                        "one for each piece of the tokenizer",
                        key, (*meta)->count);
    return TC_OK;
}

static int vocabulary_flag(const tc__model_file *file, const char *key, bool fallback, bool *flag,
                           tc_error *err) {
    uint32_t value;
    int code = tc__meta_u32_or(file, key, fallback, &value, err);
    if (!code && value > 1)
        code = tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' is %u; expected 0 or 1", key,
                        value);
    *flag = value == 1;
    return code;
}

static int vocabulary_id(const tc__tokenizer *t, const tc__model_file *file, const char *key,
                         int32_t *id, tc_error *err) {
    uint32_t value;
    *id = -1;
    if (!tc__find_meta(file, key)) return TC_OK;
    int code = tc__meta_u32(file, key, &value, err);
    if (code) return code;
    if (value >= t->vocab_size)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: metadata '%s' is %u, outside the vocabulary of %u", key, value,
                        t->vocab_size);
    *id = (int32_t)value;
    return TC_OK;
}

/* The text of piece i. Only a table of merges may leave ids without a piece, and have pieces that
 * are no characters. */
static int vocabulary_read_piece(const tc__tokenizer *t, tc__cursor *cursor, size_t i,
                                 bool has_merges, tc_error *err) {
    tc__piece *piece = &t->pieces[i];
    size_t len = 0;
    if (!tc__next_string(cursor, &piece->text, &len) || (!len && !has_merges) ||
        len > TC__MAX_PIECE)
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: piece %zu has %zu bytes; expected 1..%u", i,
                        len, TC__MAX_PIECE);
    piece->len = (uint32_t)len;
    if (!t->bytes && !vocabulary_is_utf8(piece->text, len))
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: piece %zu is not UTF-8", i);
    if (piece->type < TC__PIECE_NORMAL || piece->type > TC__PIECE_BYTE)
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: piece %zu has type %u; expected 1..6", i,
                        piece->type);
    return TC_OK;
}

/* Text, type and (without merges) score of every piece. */
static int vocabulary_read_pieces(tc__tokenizer *t, const tc__model_file *file, bool has_merges,
                                  tc_error *err) {
    const tc__meta *texts, *scores = NULL, *types;
    int code = vocabulary_array(file, "tokenizer.pieces", TC__META_STRINGS, SIZE_MAX, &texts, err);
    if (code) return code;
    size_t n = texts->count;
    if (!has_merges &&
        (code = vocabulary_array(file, "tokenizer.scores", TC__META_F32, n, &scores, err)))
        return code;
    if ((code = vocabulary_array(file, "tokenizer.types", TC__META_BYTES, n, &types, err)))
        return code;
    if (n > t->vocab_size)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: %zu pieces do not fit into the model's vocabulary of %u", n,
                        t->vocab_size);
    t->pieces = tc__calloc(n, sizeof *t->pieces);
    if (!t->pieces) return tc__fail_memory(err, "the tokenizer", n * sizeof *t->pieces);
    t->n_pieces = (uint32_t)n;

    tc__cursor cursor = tc__cursor_make(texts->value, texts->size);
    for (size_t i = 0; i < n && !code; i++) {
        float score = 0;
        if (scores) memcpy(&score, scores->value + 4 * i, sizeof score);
        t->pieces[i].type = types->value[i];
        t->pieces[i].rank = vocabulary_rank(score);
        code = vocabulary_read_piece(t, &cursor, i, has_merges, err);
        if (!code && !isfinite(score))
            code =
                tc__fail(err, TC_ERR_FORMAT, "tokenizer: the score of piece %zu is not finite", i);
    }
    return code;
}

/* The arrays of the added tokens; *n 0 if there are none. */
static int vocabulary_added_arrays(const tc__model_file *file, size_t *n, const tc__meta **ids,
                                   const tc__meta **texts, const tc__meta **flags, tc_error *err) {
    *ids = *texts = *flags = NULL;
    *n = 0;
    if (!tc__find_meta(file, "tokenizer.added_ids") &&
        !tc__find_meta(file, "tokenizer.added_pieces"))
        return TC_OK;
    int code = vocabulary_array(file, "tokenizer.added_ids", TC__META_U32, SIZE_MAX, ids, err);
    if (!code) *n = (*ids)->count;
    if (!code)
        code = vocabulary_array(file, "tokenizer.added_pieces", TC__META_STRINGS, *n, texts, err);
    if (!code && tc__find_meta(file, "tokenizer.added_flags"))
        code = vocabulary_array(file, "tokenizer.added_flags", TC__META_BYTES, *n, flags, err);
    return code;
}

static int vocabulary_alloc_lists(tc__tokenizer *t, size_t n, tc_error *err) {
    size_t all = n + t->n_pieces;
    t->added = tc__calloc(n, sizeof *t->added);
    t->added_at = tc__calloc(t->vocab_size, sizeof *t->added_at);
    t->special.at = tc__calloc(all, sizeof *t->special.at);
    t->plain.at = tc__calloc(n, sizeof *t->plain.at);
    t->normalized.at = tc__calloc(n, sizeof *t->normalized.at);
    t->user.at = tc__calloc(t->n_pieces, sizeof *t->user.at);
    if (!t->added || !t->added_at || !t->special.at || !t->plain.at || !t->normalized.at ||
        !t->user.at)
        return tc__fail_memory(err, "the tokenizer's lists", 2 * all * sizeof *t->special.at);
    return TC_OK;
}

/* The added tokens of the checkpoint, into the lists, before the pieces: what they say about a text
 * counts. */
static int vocabulary_read_added(tc__tokenizer *t, const tc__model_file *file, tc_error *err) {
    const tc__meta *ids, *texts, *flags;
    size_t n;
    int code = vocabulary_added_arrays(file, &n, &ids, &texts, &flags, err);
    if (!code) code = vocabulary_alloc_lists(t, n, err);
    if (code) return code;
    tc__cursor cursor = tc__cursor_make(texts ? texts->value : NULL, texts ? texts->size : 0);
    for (size_t i = 0; i < n; i++) {
        tc__added *added = &t->added[i];
        uint32_t id = tc__meta_u32_at(ids, i);
        if (id >= t->vocab_size)
            return tc__fail(err, TC_ERR_FORMAT,
                            "tokenizer: added token %u is outside the vocabulary of %u", id,
                            t->vocab_size);
        if (!tc__next_string(&cursor, &added->text, &added->len) || !added->len ||
            !vocabulary_is_utf8(added->text, added->len))
            return tc__fail(err, TC_ERR_FORMAT, "tokenizer: added token %u has no UTF-8 text", id);
        added->id = (int32_t)id;
        added->flags = flags ? flags->value[i] : 0;
        bool is_text = added->flags & TC__ADDED_TEXT, late = added->flags & TC__ADDED_NORMALIZED;
        if (added->flags & ~(uint32_t)TC__ADDED_ALL || (late && (!is_text || !t->bytes)))
            return tc__fail(err, TC_ERR_FORMAT, "tokenizer: added token %u has flags %u", id,
                            added->flags);
        vocabulary_list_add(late ? &t->normalized : is_text ? &t->plain : &t->special, *added);
        t->added_at[id] = (uint32_t)i + 1;
    }
    return TC_OK;
}

/* ---- indexing ---- */

/* Makes room for the pieces that are looked up by their bytes. */
static int vocabulary_alloc_slots(tc__tokenizer *t, tc_error *err) {
    size_t slots = 16;
    while (slots < 2 * (size_t)t->n_pieces) slots *= 2;
    t->slots = tc__calloc(slots, sizeof *t->slots);
    if (!t->slots) return tc__fail_memory(err, "the tokenizer's table", slots * sizeof *t->slots);
    t->slot_mask = (uint32_t)(slots - 1);
    for (size_t i = 0; i < slots; i++) t->slots[i].id = -1;
    return TC_OK;
}

/* Into the table, if there is one. */
static int vocabulary_insert(tc__tokenizer *t, int32_t id, tc_error *err) {
    const tc__piece *piece = &t->pieces[id];
    if (!t->slots) return TC_OK;
    int32_t other = tc__find_piece(t, piece->text, piece->len);
    if (other >= 0)
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: pieces %d and %d are both \"%.*s\"", other,
                        id, (int)piece->len, piece->text);
    uint32_t hash = vocabulary_hash(piece->text, piece->len);
    uint32_t i = hash & t->slot_mask;
    while (t->slots[i].id >= 0) i = (i + 1) & t->slot_mask;
    t->slots[i] = (tc__piece_slot){hash, id};
    if (piece->len > t->max_len) t->max_len = piece->len;
    return TC_OK;
}

/* The piece that stands for one byte. */
static int vocabulary_set_byte(tc__tokenizer *t, int32_t id, int value, tc_error *err) {
    const tc__piece *piece = &t->pieces[id];
    if (value < 0 || t->byte_ids[value] >= 0)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: byte piece %d is \"%.*s\"; expected "
                        "each of <0x00> to <0xFF> once",
                        id, (int)piece->len, piece->text);
    t->byte_ids[value] = id;
    return TC_OK;
}

static int vocabulary_index_piece(tc__tokenizer *t, int32_t id, tc_error *err) {
    const tc__piece *piece = &t->pieces[id];
    tc__added as_added = {piece->text, piece->len, id, 0, 0};
    if (!piece->len) return TC_OK;
    switch (piece->type) {
    case TC__PIECE_CONTROL:
    case TC__PIECE_UNKNOWN: vocabulary_list_add(&t->special, as_added); return TC_OK;
    case TC__PIECE_BYTE: return vocabulary_set_byte(t, id, tc__byte_value(piece), err);
    case TC__PIECE_USER: vocabulary_list_add(&t->user, as_added); break;
    case TC__PIECE_UNUSED:
        if (t->merges) return TC_OK; /* only decoding knows it */
        t->has_unused = true;
        break;
    default: break;
    }
    if (t->bytes && piece->len == 1) {
        int code = vocabulary_set_byte(t, id, (uint8_t)piece->text[0], err);
        if (code) return code;
    }
    return vocabulary_insert(t, id, err);
}

/* Sorts the pieces into the hash table, the lists and the byte table. */
static int vocabulary_index(tc__tokenizer *t, tc_error *err) {
    int code = t->bytes && !t->ignore_merges ? TC_OK : vocabulary_alloc_slots(t, err);
    unsigned bytes = 0;
    for (unsigned i = 0; i < 256; i++) t->byte_ids[i] = -1;
    for (uint32_t i = 0; i < t->n_pieces && !code; i++)
        code = vocabulary_index_piece(t, (int32_t)i, err);
    if (code) return code;
    vocabulary_sort(&t->special);
    vocabulary_sort(&t->plain);
    vocabulary_sort(&t->normalized);
    vocabulary_sort(&t->user);
    for (unsigned i = 0; i < 256; i++) bytes += t->byte_ids[i] >= 0;
    if (t->bytes) return TC_OK;
    t->byte_fallback = bytes == 256;
    if (bytes && !t->byte_fallback)
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: %u byte pieces; expected all 256 or none",
                        bytes);
    if (!t->byte_fallback && t->unk_id < 0)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: neither byte pieces nor an unknown piece (tokenizer.unk_id)");
    return TC_OK;
}

/* Merge `rank`: left, right, both together. */
static int vocabulary_insert_merge(tc__tokenizer *t, const uint32_t ids[3], uint32_t rank,
                                   tc_error *err) {
    if (ids[0] >= t->n_pieces || ids[1] >= t->n_pieces || ids[2] >= t->n_pieces)
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: merge %u of %u and %u to %u; %u pieces",
                        rank, ids[0], ids[1], ids[2], t->n_pieces);
    const tc__piece *left = &t->pieces[ids[0]], *right = &t->pieces[ids[1]];
    if (!left->len || !right->len || left->len + right->len != t->pieces[ids[2]].len)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: merge %u: piece %u is not as long as %u and %u together", rank,
                        ids[2], ids[0], ids[1]);
    if (tc__find_merge(t, (int32_t)ids[0], (int32_t)ids[1]))
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: merge %u of %u and %u is there already",
                        rank, ids[0], ids[1]);
    uint32_t i = vocabulary_hash_pair((int32_t)ids[0], (int32_t)ids[1]);
    while (t->merges[i & t->merge_mask].left >= 0) i++;
    t->merges[i & t->merge_mask] =
        (tc__merge_slot){(int32_t)ids[0], (int32_t)ids[1], (int32_t)ids[2], rank};
    return TC_OK;
}

static int vocabulary_read_merges(tc__tokenizer *t, const tc__model_file *file, tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, "tokenizer.merges");
    size_t n = meta ? meta->count / 3 : 0, slots = 16;
    if (!meta || meta->type != TC__META_U32 || meta->count % 3 || n > UINT32_MAX / 4)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: '%s' should be three numbers for each merge",
                        "tokenizer.merges");
    while (2 * slots < 3 * n) slots *= 2;
    t->merges = tc__calloc(slots, sizeof *t->merges);
    if (!t->merges) return tc__fail_memory(err, "the merges", slots * sizeof *t->merges);
    t->merge_mask = (uint32_t)(slots - 1);
    for (size_t i = 0; i < slots; i++) t->merges[i].left = -1;
    int code = TC_OK;
    for (size_t i = 0; i < n && !code; i++) {
        uint32_t ids[3];
        memcpy(ids, meta->value + i * sizeof ids, sizeof ids);
        code = vocabulary_insert_merge(t, ids, (uint32_t)i, err);
    }
    return code;
}

/* ---- opening ---- */

/* A text that has to be one of several; an absent key gives the first. */
static int vocabulary_choice(const tc__model_file *file, const char *key,
                             const char *(*name)(int index), int *choice, tc_error *err) {
    const char *text;
    size_t len;
    int code = tc__meta_text(file, key, &text, &len, err);
    if (code || !len) return code;
    for (int i = 0; name(i); i++)
        if (strlen(name(i)) == len && !memcmp(name(i), text, len)) {
            *choice = i;
            return TC_OK;
        }
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "model file: '%s' is \"%.*s\", which this version does not know", key,
                    len < 64 ? (int)len : 64, text);
}

static const char *vocabulary_alphabet(int index) {
    static const char *const names[] = {"characters", "bytes", NULL};
    return names[index];
}

/* What only a table of merges has. */
static int vocabulary_read_rules(tc__tokenizer *t, const tc__model_file *file, tc_error *err) {
    int alphabet = 0;
    int code = vocabulary_choice(file, "tokenizer.alphabet", vocabulary_alphabet, &alphabet, err);
    if (!code) code = vocabulary_choice(file, "tokenizer.split", tc__split_name, &t->split, err);
    if (!code) code = vocabulary_flag(file, "tokenizer.nfc", false, &t->nfc, err);
    if (!code)
        code = vocabulary_flag(file, "tokenizer.ignore_merges", false, &t->ignore_merges, err);
    if (!code)
        code = vocabulary_flag(file, "tokenizer.single_prefix", false, &t->single_prefix, err);
    t->bytes = alphabet == 1;
    if (!code && !t->bytes && (t->split != TC__SPLIT_NONE || t->nfc))
        code = tc__fail(err, TC_ERR_UNSUPPORTED,
                        "model file: 'tokenizer.split' and 'tokenizer.nfc' go with the alphabet "
                        "\"bytes\" only");
    return code;
}

static int vocabulary_build(tc__tokenizer *t, const tc__model_file *file, bool has_merges,
                            tc_error *err) {
    int code = has_merges ? vocabulary_read_rules(t, file, err) : TC_OK;
    if (code || (code = vocabulary_flag(file, "tokenizer.add_bos", false, &t->add_bos, err)) ||
        (code =
             vocabulary_flag(file, "tokenizer.dummy_prefix", !t->bytes, &t->dummy_prefix, err)) ||
        (code = vocabulary_flag(file, "tokenizer.legacy", true, &t->legacy, err)) ||
        (code = vocabulary_id(t, file, "tokenizer.unk_id", &t->unk_id, err)) ||
        (code = vocabulary_id(t, file, "tokenizer.bos_id", &t->bos_id, err)) ||
        (code = tc__meta_text(file, "tokenizer.unk_surface", &t->unk_surface, &t->unk_surface_len,
                              err)) ||
        (code = vocabulary_read_pieces(t, file, has_merges, err)) ||
        (code = vocabulary_read_added(t, file, err)) ||
        (has_merges && (code = vocabulary_read_merges(t, file, err))))
        return code;
    if (t->add_bos && t->bos_id < 0)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: asks for a BOS token but has none (tokenizer.bos_id)");
    if (t->bytes && t->dummy_prefix)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: 'tokenizer.dummy_prefix' with the alphabet \"bytes\"");
    return vocabulary_index(t, err);
}

int tc__tokenizer_open(const tc__model_file *file, uint32_t vocab_size, tc__tokenizer **tokenizer,
                       tc_error *err) {
    const char *type;
    size_t len;
    *tokenizer = NULL;
    int code = tc__meta_text(file, "tokenizer.type", &type, &len, err);
    if (code) return code;
    if (len == 4 && !memcmp(type, "none", 4)) return tc__ok(err);
    if (!len) return tc__fail(err, TC_ERR_FORMAT, "model file: no metadata 'tokenizer.type'");
    bool has_merges = len == 3 && !memcmp(type, "bpe", 3);
    if (!has_merges && (len != 7 || memcmp(type, "spm-bpe", 7)))
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "model file: tokenizer type \"%.*s\"; this version knows spm-bpe and bpe",
                        len < 64 ? (int)len : 64, type);
    if (vocab_size > INT32_MAX)
        return tc__fail(err, TC_ERR_FORMAT, "model file: a vocabulary of %u is too large",
                        vocab_size);
    tc__tokenizer *t = tc__calloc(1, sizeof *t);
    if (!t) return tc__fail_memory(err, "the tokenizer", sizeof *t);
    t->vocab_size = vocab_size;
    if ((code = vocabulary_build(t, file, has_merges, err))) {
        tc__tokenizer_close(t);
        return code;
    }
    *tokenizer = t;
    return tc__ok(err);
}

void tc__tokenizer_close(tc__tokenizer *tokenizer) {
    if (!tokenizer) return;
    free(tokenizer->pieces);
    free(tokenizer->slots);
    free(tokenizer->merges);
    free(tokenizer->special.at);
    free(tokenizer->plain.at);
    free(tokenizer->normalized.at);
    free(tokenizer->user.at);
    free(tokenizer->added);
    free(tokenizer->added_at);
    free(tokenizer);
}

int32_t tc__tokenizer_bos(const tc__tokenizer *tokenizer) {
    return tokenizer->bos_id;
}

bool tc__tokenizer_adds_bos(const tc__tokenizer *tokenizer) {
    return tokenizer->add_bos;
}

/* ======== src/tokenizer.c ======== */

/* tokenizer - see tokenizer.h. The order of work below: normalising a run, its symbols, merging
 * them, words, added tokens, spans, decoding. */


#define TOKENIZER_SPACE "\xE2\x96\x81"       /* U+2581, what a space is written as in pieces */
#define TOKENIZER_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */
#define TOKENIZER_MAX_TEXT (700u << 20)      /* a byte becomes 3 at most; offsets are int32 */

size_t tc__special_at(const tc__tokenizer *tokenizer, const char *text, size_t len, int32_t *id) {
    const tc__added *found = tc__find_added(&tokenizer->special, text, len);
    *id = found ? found->id : -1;
    return found ? found->len : 0;
}

/* ---- encoding one run ---- */

typedef struct tokenizer_symbol {
    int32_t prev, next; /* neighbours, -1 at the ends */
    uint32_t at, len;   /* its bytes in the run's text; len 0: merged into its left neighbour */
    int32_t id;         /* the piece that it is, -1 if none */
    bool frozen;        /* user-defined: never merges */
} tokenizer_symbol;

/* A pair of neighbours that joins to a piece. Stale once its symbols are not both as long as they
 * were; that is looked at when it is taken from the heap. */
typedef struct tokenizer_pair {
    uint64_t key; /* rank of the joined piece, then index of the left symbol: the lowest first */
    uint32_t len; /* of both together */
    int32_t id;   /* the joined piece */
} tokenizer_pair;

typedef struct tokenizer_run { /* buffers, used for one run after the other */
    const tc__tokenizer *t;
    tc__buf text, valid; /* normalised; without malformed bytes */
    const char *word;    /* [word_len] in `text`, what is merged now */
    size_t word_len;
    tokenizer_symbol *symbols;
    size_t n_symbols, symbol_cap;
    tokenizer_pair *heap; /* four children each, the least key on top */
    size_t n_heap, heap_cap;
    /* [n_pieces], NULL without UNUSED pieces: where a join to this UNUSED piece was, 0 if there was
     * none. It is one place: the joins inside a piece do not depend on what is around it. */
    uint32_t *splits;
    bool failed;
} tokenizer_run;

static void tokenizer_run_free(tokenizer_run *run) {
    tc__buf_free(&run->text);
    tc__buf_free(&run->valid);
    free(run->symbols);
    free(run->heap);
    free(run->splits);
}

/* Makes room for `need` elements, at least doubling; NULL (and failed) when memory is out. */
static void *tokenizer_room(tokenizer_run *run, void *array, size_t *cap, size_t need,
                            size_t size) {
    if (need <= *cap) return array;
    size_t grown = *cap > need / 2 ? 2 * *cap : need, bytes;
    void *more = tc__mul(grown, size, &bytes) ? realloc(array, bytes) : NULL;
    if (!more) {
        run->failed = true;
        return array;
    }
    *cap = grown;
    return more;
}

/* ---- normalising ---- */

/* Appends the text with U+FFFD for malformed bytes and, if asked, U+2581 for spaces. */
static void tokenizer_escape(tc__buf *out, const char *text, size_t len, bool spaces) {
    size_t from = 0; /* of what is taken as it is */
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t code;
        n = tc__utf8_decode(text + i, len - i, &code);
        bool space = spaces && code == ' ';
        if (!space && code != UINT32_MAX) continue;
        tc__buf_add(out, text + from, i - from);
        tc__buf_add(out, space ? TOKENIZER_SPACE : TOKENIZER_REPLACEMENT, 3);
        from = i + n;
    }
    tc__buf_add(out, text + from, len - from);
}

static bool tokenizer_begins_with_space(const char *text, size_t len) {
    return *text == ' ' || (len >= 3 && !memcmp(text, TOKENIZER_SPACE, 3));
}

/* Writes run->text. */
static void tokenizer_normalize(tokenizer_run *run, const char *text, size_t len, bool prefix) {
    const tc__tokenizer *t = run->t;
    run->text.len = run->valid.len = 0;
    if (prefix && t->dummy_prefix && !(t->single_prefix && tokenizer_begins_with_space(text, len)))
        tc__buf_add(&run->text, TOKENIZER_SPACE, 3);
    tokenizer_escape(t->nfc ? &run->valid : &run->text, text, len, !t->bytes);
    if (t->nfc) tc__nfc(run->valid.data, run->valid.len, &run->text);
    run->failed |= run->text.failed || run->valid.failed;
}

/* ---- symbols ---- */

/* The next symbol of the word: a byte, a character or a user-defined piece. */
static tokenizer_symbol tokenizer_symbol_at(const tokenizer_run *run, size_t at) {
    const tc__tokenizer *t = run->t;
    const char *text = run->word + at;
    tokenizer_symbol s = {-1, -1, (uint32_t)at, 1, -1, false};
    if (t->bytes) {
        s.id = t->byte_ids[(uint8_t)*text];
        return s;
    }
    const tc__added *user = tc__find_added(&t->user, text, run->word_len - at);
    uint32_t code;
    s.frozen = user != NULL;
    s.len = (uint32_t)(user ? user->len : tc__utf8_decode(text, run->word_len - at, &code));
    s.id = user ? user->id : tc__find_piece(t, text, s.len);
    return s;
}

/* Cuts the word into symbols. A byte that is no piece is dropped if there is no unknown piece. */
static void tokenizer_cut(tokenizer_run *run) {
    bool drops = run->t->bytes && run->t->unk_id < 0;
    run->n_symbols = 0;
    for (size_t i = 0; i < run->word_len;) {
        tokenizer_symbol symbol = tokenizer_symbol_at(run, i);
        i += symbol.len;
        if (drops && symbol.id < 0) continue;
        run->symbols = tokenizer_room(run, run->symbols, &run->symbol_cap, run->n_symbols + 1,
                                      sizeof *run->symbols);
        if (run->failed) return;
        symbol.prev = (int32_t)run->n_symbols - 1;
        symbol.next = (int32_t)run->n_symbols + 1;
        run->symbols[run->n_symbols++] = symbol;
    }
    if (run->n_symbols) run->symbols[run->n_symbols - 1].next = -1;
}

/* ---- merging ---- */

static void tokenizer_sift_down(tokenizer_pair *heap, size_t n, size_t i) {
    tokenizer_pair moving = heap[i];
    for (size_t first, least; (first = 4 * i + 1) < n; i = least) {
        least = first;
        for (size_t child = first + 1; child < n && child < first + 4; child++)
            if (heap[child].key < heap[least].key) least = child;
        if (moving.key <= heap[least].key) break;
        heap[i] = heap[least];
    }
    heap[i] = moving;
}

static tokenizer_pair tokenizer_pop(tokenizer_run *run) {
    tokenizer_pair top = run->heap[0];
    run->heap[0] = run->heap[--run->n_heap];
    tokenizer_sift_down(run->heap, run->n_heap, 0);
    return top;
}

/* Appends the pair of a symbol and its right neighbour to the heap's array if they join to a piece;
 * true if it did. The caller restores the heap's order. */
static bool tokenizer_consider(tokenizer_run *run, int32_t left) {
    const tokenizer_symbol *a = &run->symbols[left];
    if (a->next < 0) return false;
    const tokenizer_symbol *b = &run->symbols[a->next];
    if (a->frozen || b->frozen) return false;
    const tc__tokenizer *t = run->t;
    const tc__merge_slot *merge = t->merges ? tc__find_merge(t, a->id, b->id) : NULL;
    int32_t id = t->merges ? (merge ? merge->id : -1)
                           : tc__find_piece(t, run->word + a->at, a->len + b->len);
    if (id < 0) return false;
    uint32_t rank = merge ? merge->rank : t->pieces[id].rank;
    if (run->splits && t->pieces[id].type == TC__PIECE_UNUSED) run->splits[id] = a->len;
    run->heap = tokenizer_room(run, run->heap, &run->heap_cap, run->n_heap + 1, sizeof *run->heap);
    if (run->failed) return false;
    run->heap[run->n_heap++] =
        (tokenizer_pair){(uint64_t)rank << 32 | (uint32_t)left, a->len + b->len, id};
    return true;
}

static void tokenizer_push(tokenizer_run *run, int32_t left) {
    if (left < 0 || !tokenizer_consider(run, left)) return;
    size_t i = run->n_heap - 1;
    tokenizer_pair moving = run->heap[i];
    for (; i && moving.key < run->heap[(i - 1) / 4].key; i = (i - 1) / 4)
        run->heap[i] = run->heap[(i - 1) / 4];
    run->heap[i] = moving;
}

static void tokenizer_merge(tokenizer_run *run) {
    tokenizer_symbol *symbols = run->symbols;
    run->n_heap = 0;
    for (size_t i = 0; i < run->n_symbols && !run->failed; i++) tokenizer_consider(run, (int32_t)i);
    for (size_t i = (run->n_heap + 2) / 4; i-- > 0;) tokenizer_sift_down(run->heap, run->n_heap, i);

    while (run->n_heap && !run->failed) {
        tokenizer_pair pair = tokenizer_pop(run);
        int32_t left = (int32_t)(uint32_t)pair.key, right = symbols[left].next;
        if (!symbols[left].len || right < 0 || symbols[left].len + symbols[right].len != pair.len)
            continue;
        symbols[left].len = pair.len;
        symbols[left].id = pair.id;
        symbols[left].next = symbols[right].next;
        symbols[right].len = 0;
        if (symbols[left].next >= 0) symbols[symbols[left].next].prev = left;
        tokenizer_push(run, symbols[left].prev);
        tokenizer_push(run, left);
    }
}

/* Appends the id of one symbol: an UNUSED piece is taken apart again, and what is no piece (or an
 * UNUSED one of one character: sentencepiece since 0.2.3) is spelled in bytes. The depth of the
 * recursion is bounded by TC__MAX_PIECE. */
static void tokenizer_emit(tokenizer_run *run, const char *text, uint32_t len, int32_t id,
                           tc__ids *ids, bool *after_unk) {
    const tc__tokenizer *t = run->t;
    if (id >= 0 && t->pieces[id].type == TC__PIECE_UNUSED) {
        uint32_t left = run->splits[id];
        if (left) {
            const char *right = text + left;
            tokenizer_emit(run, text, left, tc__find_piece(t, text, left), ids, after_unk);
            tokenizer_emit(run, right, len - left, tc__find_piece(t, right, len - left), ids,
                           after_unk);
            return;
        }
        id = -1;
    }
    if (id >= 0) {
        tc__ids_push(ids, id);
    } else if (t->byte_fallback) {
        for (uint32_t i = 0; i < len; i++) tc__ids_push(ids, t->byte_ids[(uint8_t)text[i]]);
    } else if (!*after_unk && t->unk_id >= 0) {
        tc__ids_push(ids, t->unk_id);
    }
    *after_unk = id < 0;
}

/* ---- words ---- */

static void tokenizer_encode_word(tokenizer_run *run, const char *word, size_t len, tc__ids *ids) {
    const tc__tokenizer *t = run->t;
    bool after_unk = false;
    int32_t whole = t->ignore_merges ? tc__find_piece(t, word, len) : -1;
    if (whole >= 0) {
        tc__ids_push(ids, whole);
        return;
    }
    run->word = word;
    run->word_len = len;
    tokenizer_cut(run);
    if (!run->failed) tokenizer_merge(run);
    if (run->failed || !run->n_symbols) return;
    for (int32_t i = 0; i >= 0; i = run->symbols[i].next) {
        const tokenizer_symbol *s = &run->symbols[i];
        tokenizer_emit(run, word + s->at, s->len, s->id, ids, &after_unk);
    }
}

static void tokenizer_encode_words(tokenizer_run *run, const char *text, size_t len, tc__ids *ids) {
    tc__splitter splitter = tc__splitter_make(run->t->split, text, len);
    const char *word;
    while (!run->failed && tc__split_next(&splitter, &word, &len))
        tokenizer_encode_word(run, word, len, ids);
}

/* ---- added tokens ---- */

/* A search for added tokens, from the left, the longest first. */
typedef struct tokenizer_search {
    const tc__added_list *special, *plain;
    const char *text;
    size_t len;
    size_t trusted; /* special ones end here at the latest */
    size_t at;      /* where to look next */
    size_t taken;   /* end of the last token and of the white space that it took */
} tokenizer_search;

static uint32_t tokenizer_char_before(const char *text, size_t at, size_t *begin) {
    uint32_t code;
    size_t n = 1;
    while (n < 4 && n < at && ((uint8_t)text[at - n] & 0xC0) == 0x80) n++;
    *begin = at - n;
    return tc__utf8_decode(text + at - n, n, &code) == n ? code : UINT32_MAX;
}

/* Whether the token from `begin` to `end` touches a word character. */
static bool tokenizer_in_word(const tokenizer_search *s, size_t begin, size_t end) {
    uint32_t code = UINT32_MAX;
    size_t at;
    if (begin && tc__char_is_word(tokenizer_char_before(s->text, begin, &at))) return true;
    if (end < s->len) tc__utf8_decode(s->text + end, s->len - end, &code);
    return tc__char_is_word(code);
}

static const tc__added *tokenizer_longest(const tokenizer_search *s) {
    const char *text = s->text + s->at;
    const tc__added *plain = tc__find_added(s->plain, text, s->len - s->at), *special = NULL;
    if (s->special && s->at < s->trusted)
        special = tc__find_added(s->special, text, s->trusted - s->at);
    return special && (!plain || special->len > plain->len) ? special : plain;
}

/* The next token that begins before `stop`, NULL if there is none. The text between the last one
 * and this one is [*from, *to). */
static const tc__added *tokenizer_next_added(tokenizer_search *s, size_t stop, size_t *from,
                                             size_t *to) {
    for (; s->at < stop; s->at++) {
        const tc__added *found = tokenizer_longest(s);
        if (!found) continue;
        size_t begin = s->at, end = begin + found->len, next = end, before;
        if ((found->flags & TC__ADDED_SINGLE_WORD) && tokenizer_in_word(s, begin, end)) {
            s->at = end - 1;
            continue;
        }
        while ((found->flags & TC__ADDED_LSTRIP) && begin > s->taken &&
               tc__char_class(tokenizer_char_before(s->text, begin, &before)) == TC__CHAR_SPACE)
            begin = before;
        for (uint32_t code; (found->flags & TC__ADDED_RSTRIP) && next < s->len; end = next) {
            next += tc__utf8_decode(s->text + next, s->len - next, &code);
            if (tc__char_class(code) != TC__CHAR_SPACE) break;
        }
        *from = s->taken;
        *to = begin > s->taken ? begin : s->taken;
        s->at += found->len;
        s->taken = end;
        return found;
    }
    return NULL;
}

static void tokenizer_encode_run(tokenizer_run *run, const char *text, size_t len, bool prefix,
                                 tc__ids *ids) {
    if (!len || run->failed) return;
    tokenizer_normalize(run, text, len, prefix);
    if (run->failed) return;
    tokenizer_search search = {
        .plain = &run->t->normalized, .text = run->text.data, .len = run->text.len};
    const tc__added *found;
    size_t from, to;
    while (run->t->normalized.n &&
           (found = tokenizer_next_added(&search, search.len, &from, &to))) {
        tokenizer_encode_words(run, search.text + from, to - from, ids);
        tc__ids_push(ids, found->id);
    }
    tokenizer_encode_words(run, search.text + search.taken, search.len - search.taken, ids);
}

/* ---- spans ---- */

/* Walks the joined text: special tokens where the bytes are trusted, added tokens that are text
 * everywhere, runs between them. */
static void tokenizer_encode_text(tokenizer_run *run, const char *text, const tc__span *spans,
                                  size_t n_spans, int before, tc__ids *ids) {
    const tc__tokenizer *t = run->t;
    tokenizer_search search = {.special = &t->special, .plain = &t->plain, .text = text};
    size_t end = 0, from, to; /* of bytes in a row that are trusted or not; of a run */
    for (size_t s = 0; s < n_spans; s++) search.len += spans[s].len;
    for (size_t s = 0; s < n_spans; s++) {
        end += spans[s].len;
        if (s + 1 < n_spans && spans[s].trusted == spans[s + 1].trusted) continue;
        search.trusted = spans[s].trusted ? end : 0;
        if (!spans[s].trusted && !t->plain.n) search.at = end;
        const tc__added *found;
        while ((found = tokenizer_next_added(&search, end, &from, &to))) {
            tokenizer_encode_run(
                run, text + from, to - from,
                before == TC__AT_START || (before == TC__AFTER_SPECIAL && t->legacy), ids);
            tc__ids_push(ids, found->id);
            before = TC__AFTER_SPECIAL;
        }
    }
    tokenizer_encode_run(run, text + search.taken, search.len - search.taken,
                         before == TC__AT_START || (before == TC__AFTER_SPECIAL && t->legacy), ids);
}

int tc__encode(const tc__tokenizer *tokenizer, const tc__span *spans, size_t n_spans, int before,
               tc__ids *ids, tc_error *err) {
    tokenizer_run run = {0};
    tc__buf joined = {0};
    size_t total = 0;
    for (size_t s = 0; s < n_spans; s++) {
        if (spans[s].len > TOKENIZER_MAX_TEXT - total)
            return tc__fail(err, TC_ERR_ARGUMENT, "tokenizer: more than %u MB of text at once",
                            TOKENIZER_MAX_TEXT >> 20);
        total += spans[s].len;
    }
    for (size_t s = 0; s < n_spans && n_spans > 1; s++)
        if (spans[s].len) tc__buf_add(&joined, spans[s].text, spans[s].len);
    const char *text = !total ? "" : n_spans == 1 ? spans[0].text : joined.data;
    run.t = tokenizer;
    if (tokenizer->has_unused) {
        run.splits = tc__calloc(tokenizer->n_pieces, sizeof *run.splits);
        run.failed = !run.splits;
    }
    if (!joined.failed) tokenizer_encode_text(&run, text, spans, n_spans, before, ids);
    bool failed = run.failed || joined.failed || ids->failed;
    tokenizer_run_free(&run);
    tc__buf_free(&joined);
    return failed ? tc__fail_memory(err, "encoding a text", total) : tc__ok(err);
}

/* ---- decoding ---- */

tc__decoder tc__decoder_make(const tc__tokenizer *tokenizer, bool at_start) {
    tc__decoder decoder = {tokenizer, at_start && (tokenizer->dummy_prefix || tokenizer->bytes)};
    return decoder;
}

/* The added token that an id is; NULL if it is none. */
static const tc__added *tokenizer_added(const tc__tokenizer *t, int32_t id) {
    return t->added_at[id] ? &t->added[t->added_at[id] - 1] : NULL;
}

/* Whether decoding gives nothing for the token. */
static bool tokenizer_is_silent(const tc__tokenizer *t, int32_t id) {
    const tc__added *added = tokenizer_added(t, id);
    if (added) return !(added->flags & TC__ADDED_SHOWN);
    return (uint32_t)id < t->n_pieces && t->pieces[id].type == TC__PIECE_CONTROL;
}

/* Whether the token stands for bytes that may be parts of a character. */
static bool tokenizer_is_bytes(const tc__tokenizer *t, int32_t id) {
    if (t->added_at[id] || (uint32_t)id >= t->n_pieces) return false;
    return t->bytes || t->pieces[id].type == TC__PIECE_BYTE;
}

/* Appends a piece of characters, with spaces for U+2581. */
static void tokenizer_unescape(tc__decoder *decoder, const char *text, size_t len, tc__buf *out) {
    const char *end = text + len;
    if (decoder->at_start && len >= 3 && !memcmp(text, TOKENIZER_SPACE, 3)) {
        decoder->at_start = false;
        text += 3;
    }
    while (text < end) {
        bool space = end - text >= 3 && !memcmp(text, TOKENIZER_SPACE, 3);
        tc__buf_add(out, space ? " " : text, 1);
        text += space ? 3 : 1;
    }
}

void tc__decode_one(tc__decoder *decoder, int32_t id, tc__buf *bytes, bool *special) {
    const tc__tokenizer *t = decoder->tokenizer;
    const tc__added *added = tokenizer_added(t, id);
    const tc__piece *piece = (uint32_t)id < t->n_pieces ? &t->pieces[id] : NULL;
    bool silent = tokenizer_is_silent(t, id);
    size_t before = bytes->len;
    if (special) *special = silent;
    if (silent || (!piece && !added)) return;
    if (t->bytes) {
        const char *text = added ? added->text : piece->text;
        size_t len = added ? added->len : piece->len;
        size_t skip = len && decoder->at_start && *text == ' ';
        tc__buf_add(bytes, text + skip, len - skip);
        if (len) decoder->at_start = false;
    } else if (added) {
        tokenizer_unescape(decoder, added->text, added->len, bytes);
    } else if (piece->type == TC__PIECE_BYTE) {
        char byte = (char)tc__byte_value(piece);
        bool prefix = t->merges && decoder->at_start && byte == ' ';
        tc__buf_add(bytes, &byte, prefix ? 0 : 1);
        if (prefix) decoder->at_start = false;
    } else if (piece->type == TC__PIECE_UNKNOWN) {
        tc__buf_add(bytes, t->unk_surface, t->unk_surface_len);
    } else {
        tokenizer_unescape(decoder, piece->text, piece->len, bytes);
    }
    if (bytes->len > before) decoder->at_start = false;
}

/* How many malformed bytes one U+FFFD stands for: sentencepiece's one each, or as many as begin a
 * character, which is what the tokenizers package makes of pieces of bytes (and Unicode of any
 * text). */
static size_t tokenizer_malformed(const tc__tokenizer *t, const char *s, size_t len) {
    size_t n = 1;
    while (t->bytes && n < len && tc__utf8_unfinished(s, n + 1)) n++;
    return n;
}

/* Appends bytes that may be malformed. If those between characters of a tokenizer.json are, the
 * tokenizers package has a U+FFFD for each of them, malformed or not; if not, a space that they
 * begin with at the start of the text counts as a dummy prefix. */
static void tokenizer_add_bytes(const tc__tokenizer *t, const tc__buf *bytes, bool at_start,
                                tc__buf *text) {
    bool all = false;
    uint32_t code;
    for (size_t at = 0; at < bytes->len && t->merges && !t->bytes && !bytes->failed;) {
        at += tc__utf8_decode(bytes->data + at, bytes->len - at, &code);
        all |= code == UINT32_MAX;
    }
    size_t skip = at_start && !all && bytes->len && bytes->data[0] == ' ';
    for (size_t at = skip, len; at < bytes->len && !bytes->failed; at += len) {
        len = tc__utf8_decode(bytes->data + at, bytes->len - at, &code);
        bool bad = all || code == UINT32_MAX;
        tc__buf_add(text, bad ? TOKENIZER_REPLACEMENT : bytes->data + at, bad ? 3 : len);
        if (bad) len = all ? 1 : tokenizer_malformed(t, bytes->data + at, bytes->len - at);
    }
}

int tc__decode(const tc__tokenizer *tokenizer, const int32_t *ids, size_t n, tc__buf *text,
               tc_error *err) {
    tc__decoder decoder = {tokenizer, tokenizer->dummy_prefix};
    tc__buf bytes = {0}; /* a stretch of byte pieces */
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= tokenizer->vocab_size)
            return tc__fail(err, TC_ERR_ARGUMENT,
                            "token id %d at index %zu is outside the vocabulary of %u", ids[i], i,
                            tokenizer->vocab_size);
    for (size_t i = 0; i < n;) {
        if (!tokenizer_is_bytes(tokenizer, ids[i])) {
            tc__decode_one(&decoder, ids[i++], text, NULL);
            continue;
        }
        bool at_start = decoder.at_start && tokenizer->merges;
        if (at_start) decoder.at_start = false;
        bytes.len = 0;
        while (i < n && (tokenizer_is_bytes(tokenizer, ids[i]) ||
                         (tokenizer->merges && tokenizer_is_silent(tokenizer, ids[i]))))
            tc__decode_one(&decoder, ids[i++], &bytes, NULL);
        tokenizer_add_bytes(tokenizer, &bytes, at_start, text);
    }
    bool failed = bytes.failed || text->failed;
    tc__buf_free(&bytes);
    return failed ? tc__fail_memory(err, "decoding a text", n) : tc__ok(err);
}

#undef TOKENIZER_SPACE
#undef TOKENIZER_REPLACEMENT
#undef TOKENIZER_MAX_TEXT

/* ======== src/template.c ======== */

/* template - see template.h. */

/* ---- the built-in templates ---- */

/* What TinyChat (mit-han-lab/llm-awq, tinychat/utils/prompt_templates.py) says in front of every
 * LLaMA conversation that is not a Vicuna's: data of compatibility, to the byte. */
#define TEMPLATE_SYSTEM(who)                                                                       \
    "A chat between a curious " who " and an artificial intelligence assistant. The assistant "    \
    "gives helpful, detailed, and polite answers to the " who "'s questions."
/* MosaicML's system texts for MPT-chat: of its chat_template, and the earlier one of TinyChat. */
#define TEMPLATE_MOSAIC_SYSTEM                                                                     \
    "A conversation between a user and an LLM-based AI assistant. The assistant gives helpful "    \
    "and honest answers."
#define TEMPLATE_MPT_SYSTEM                                                                        \
    "- You are a helpful assistant chatbot trained by MosaicML.\n"                                 \
    "- You answer questions.\n"                                                                    \
    "- You are excited to be able to help the user, but will refuse to do anything that could be " \
    "considered harmful to the user.\n"                                                            \
    "- You are more than just an information source, you are also able to write poetry, short "    \
    "stories, and make jokes."
#define TEMPLATE_ONE_SHOT                                                                          \
    "### Human: Got any creative ideas for a 10 year old's birthday?\n"                            \
    "### Assistant: Of course! Here are some creative ideas for a 10-year-old's birthday party:\n" \
    "1. Treasure Hunt: Organize a treasure hunt in your backyard or nearby park. Create clues "    \
    "and riddles for the kids to solve, leading them to hidden treasures and surprises.\n"         \
    "2. Science Party: Plan a science-themed party where kids can engage in fun and interactive "  \
    "experiments. You can set up different stations with activities like making slime, erupting "  \
    "volcanoes, or creating simple chemical reactions.\n"                                          \
    "3. Outdoor Movie Night: Set up a backyard movie night with a projector and a large screen "   \
    "or white sheet. Create a cozy seating area with blankets and pillows, and serve popcorn and " \
    "snacks while the kids enjoy a favorite movie under the stars.\n"                              \
    "4. DIY Crafts Party: Arrange a craft party where kids can unleash their creativity. Provide " \
    "a variety of craft supplies like beads, paints, and fabrics, and let them create their own "  \
    "unique masterpieces to take home as party favors.\n"                                          \
    "5. Sports Olympics: Host a mini Olympics event with various sports and games. Set up "        \
    "different stations for activities like sack races, relay races, basketball shooting, and "    \
    "obstacle courses. Give out medals or certificates to the participants.\n"                     \
    "6. Cooking Party: Have a cooking-themed party where the kids can prepare their own mini "     \
    "pizzas, cupcakes, or cookies. Provide toppings, frosting, and decorating supplies, and let "  \
    "them get hands-on in the kitchen.\n"                                                          \
    "7. Superhero Training Camp: Create a superhero-themed party where the kids can engage in "    \
    "fun training activities. Set up an obstacle course, have them design their own superhero "    \
    "capes or masks, and organize superhero-themed games and challenges.\n"                        \
    "8. Outdoor Adventure: Plan an outdoor adventure party at a local park or nature reserve. "    \
    "Arrange activities like hiking, nature scavenger hunts, or a picnic with games. Encourage "   \
    "exploration and appreciation for the outdoors.\n"                                             \
    "Remember to tailor the activities to the birthday child's interests and preferences. Have a " \
    "great celebration!</s>"

/* ChatML. */
#define TEMPLATE_IM_SYSTEM "<|im_start|>system\n{system}<|im_end|>\n"
#define TEMPLATE_IM_USER "<|im_start|>user\n{user}<|im_end|>\n<|im_start|>assistant\n"
#define TEMPLATE_CHATML(reply_pattern, system_text)                                                \
    .first = TEMPLATE_IM_USER, .first_system = TEMPLATE_IM_SYSTEM TEMPLATE_IM_USER,                \
    .next = TEMPLATE_IM_USER, .reply = reply_pattern "<|im_end|>\n", .system = system_text

/* DeepSeek's marks are written with U+FF5C for bars and U+2581 for spaces. */
#define TEMPLATE_R1_MARK(text) "<\xEF\xBD\x9C" text "\xEF\xBD\x9C>"
#define TEMPLATE_R1_BEGIN TEMPLATE_R1_MARK("begin\xE2\x96\x81of\xE2\x96\x81sentence")
#define TEMPLATE_R1_USER TEMPLATE_R1_MARK("User") "{user}" TEMPLATE_R1_MARK("Assistant")

/* LLaMA-3. */
#define TEMPLATE_HEADER(role) "<|start_header_id|>" role "<|end_header_id|>\n\n"
#define TEMPLATE_L3_USER                                                                           \
    TEMPLATE_HEADER("user") "{trim}{user}{/trim}<|eot_id|>" TEMPLATE_HEADER("assistant")
#define TEMPLATE_L3_SYSTEM                                                                         \
    "<|begin_of_text|>" TEMPLATE_HEADER("system") "{trim}{system}{/trim}<|eot_id|>"
#define TEMPLATE_L31_DATES                                                                         \
    "<|begin_of_text|>" TEMPLATE_HEADER("system") "Cutting Knowledge Date: December 2023\n"        \
                                                  "Today Date: 26 Jul 2024\n\n"
#define TEMPLATE_L31_EMPTY TEMPLATE_L31_DATES "<|eot_id|>"
#define TEMPLATE_L31_SYSTEM TEMPLATE_L31_DATES "{trim}{system}{/trim}<|eot_id|>"

static const tc__template template_table[] = {
    /* The chat_template of meta-llama/Llama-2-*-chat-hf, also CodeLlama's: system block and user
     * text are stripped as one string, and each turn opens with a BOS of its own. */
    {.name = "llama-2",
     .first = "<s>[INST] {trim}{user}{/trim} [/INST]",
     .first_system = "<s>[INST] {trim}<<SYS>>\n{system}\n<</SYS>>\n\n{user}{/trim} [/INST]",
     .next = "<s>[INST] {trim}{user}{/trim} [/INST]",
     .reply = " {trim}{reply}{/trim} </s>",
     .system = ""},
    /* FastChat's vicuna_v1.1 (Vicuna 1.1 and 1.5), which TinyChat uses as well. */
    {.name = "vicuna",
     .first = "USER: {user} ASSISTANT:",
     .first_system = "{system} USER: {user} ASSISTANT:",
     .next = "USER: {user} ASSISTANT:",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = TEMPLATE_SYSTEM("user")},
    /* TinyChat's for every LLaMA that is not a Vicuna. The stop string is ours: a model that writes
     * it has begun to speak for the person (TinyChat lets it). */
    {.name = "human",
     .first = TEMPLATE_ONE_SHOT "### Human: {user}\n### Assistant:",
     .first_system = "{system}\n" TEMPLATE_ONE_SHOT "### Human: {user}\n### Assistant:",
     .next = "### Human: {user}\n### Assistant:",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = TEMPLATE_SYSTEM("human"),
     .stop_strings = {"### Human:", NULL}},
    /* Meta-Llama-3-*-Instruct. */
    {.name = "llama-3",
     .first = "<|begin_of_text|>" TEMPLATE_L3_USER,
     .first_system = TEMPLATE_L3_SYSTEM TEMPLATE_L3_USER,
     .next = TEMPLATE_L3_USER,
     .reply = "{trim}{reply}{/trim}<|eot_id|>",
     .system = ""},
    /* Llama-3.1, 3.2, 3.3: always a system block, with dates. "Today" stays the day that 3.1's
     * template names: a prompt does not depend on the clock. */
    {.name = "llama-3.1",
     .first = TEMPLATE_L31_EMPTY TEMPLATE_L3_USER,
     .first_system = TEMPLATE_L31_SYSTEM TEMPLATE_L3_USER,
     .next = TEMPLATE_L3_USER,
     .reply = "{trim}{reply}{/trim}<|eot_id|>",
     .system = ""},
    /* Mistral-7B-Instruct. The first two knew no system text; it goes where the later ones have it.
     * v0.1 and v0.2 differ in a space behind </s>. */
    {.name = "mistral-v0.1",
     .first = "<s>[INST] {user} [/INST]",
     .first_system = "<s>[INST] {system}\n\n{user} [/INST]",
     .next = "[INST] {user} [/INST]",
     .reply = "{reply}</s> ",
     .system = ""},
    {.name = "mistral-v0.2",
     .first = "<s>[INST] {user} [/INST]",
     .first_system = "<s>[INST] {system}\n\n{user} [/INST]",
     .next = "[INST] {user} [/INST]",
     .reply = "{reply}</s>",
     .system = ""},
    /* What both got later: spaces in front. */
    {.name = "mistral-v0.2-spaced",
     .first = "<s> [INST] {user} [/INST]",
     .first_system = "<s> [INST] {system}\n\n{user} [/INST]",
     .next = " [INST] {user} [/INST]",
     .reply = " {reply}</s>",
     .system = ""},
    /* v0.3: [INST] and [/INST] are tokens; the system text stands before the last user text. */
    {.name = "mistral-v0.3",
     .first = "<s>[INST] {user}[/INST]",
     .first_system = "<s>[INST] {system}\n\n{user}[/INST]",
     .next = "[INST] {user}[/INST]",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = "",
     .next_system = "[INST] {system}\n\n{user}[/INST]"},
    {.name = "chatml", TEMPLATE_CHATML("{reply}", "")},
    {.name = "qwen2", TEMPLATE_CHATML("{reply}", "You are a helpful assistant.")},
    {.name = "qwen2.5",
     TEMPLATE_CHATML("{reply}",
                     "You are Qwen, created by Alibaba Cloud. You are a helpful assistant.")},
    /* What Qwen3 thought is not repeated in later turns; "nothink" hands it an empty thought. */
    {.name = "qwen3", TEMPLATE_CHATML("{bare_answer}", "")},
    {.name = "qwen3-nothink",
     TEMPLATE_CHATML("{bare_answer}", ""),
     .start = "<think>\n\n</think>\n\n"},
    /* DeepSeek-R1-Distill-*: begins to think, later turns leave the thought out. */
    {.name = "deepseek-r1",
     .first = TEMPLATE_R1_BEGIN TEMPLATE_R1_USER,
     .first_system = TEMPLATE_R1_BEGIN "{system}" TEMPLATE_R1_USER,
     .next = TEMPLATE_R1_USER,
     .reply = "{answer}" TEMPLATE_R1_MARK("end\xE2\x96\x81of\xE2\x96\x81sentence"),
     .system = "",
     .start = "<think>\n"},
    /* Zephyr and TinyLlama-Chat. */
    {.name = "zephyr",
     .first = "<|user|>\n{user}</s>\n<|assistant|>\n",
     .first_system = "<|system|>\n{system}</s>\n<|user|>\n{user}</s>\n<|assistant|>\n",
     .next = "<|user|>\n{user}</s>\n<|assistant|>\n",
     .reply = "{reply}</s>\n",
     .system = ""},
    /* MPT-*-chat as MosaicML talked with it (llm-foundry's hf_chat). Where the tokenizer lacks the
     * two marks, they are text: then a string has to end the reply. */
    {.name = "mpt-chat",
     TEMPLATE_CHATML("{reply}", TEMPLATE_MOSAIC_SYSTEM),
     .stop_strings = {"<|im_end|>", NULL}},
    /* The chat_template that its folders got later, which does not close the system text. */
    {.name = "mpt-chat-hf",
     .first = TEMPLATE_IM_USER,
     .first_system = "<|im_start|>system\n{trim}{system}{/trim}\n" TEMPLATE_IM_USER,
     .next = TEMPLATE_IM_USER,
     .reply = "{reply}<|im_end|>\n",
     .system = TEMPLATE_MOSAIC_SYSTEM,
     .stop_strings = {"<|im_end|>", NULL}},
    /* Falcon-*-instruct's chat_template, but for blank lines inside of a text, which it removes. */
    {.name = "falcon",
     .first = "\n\nUser: {trim}{user}{/trim}\n\nAssistant:",
     .first_system = "{trim}{system}{/trim}\n\nUser: {trim}{user}{/trim}\n\nAssistant:",
     .next = "\n\nUser: {trim}{user}{/trim}\n\nAssistant:",
     .reply = " {trim}{reply}{/trim}",
     .system = "",
     .stop_strings = {"\nUser:", NULL}},
    /* TinyChat's for the other families. The stop strings are ours. */
    {.name = "tinychat-falcon",
     .first = "User: {user}\n\nAssistant:",
     .first_system = "{system}\n\nUser: {user}\n\nAssistant:",
     .next = "User: {user}\n\nAssistant:",
     .reply = " {trim}{reply}{/trim}\n\n",
     .system = "",
     .stop_strings = {"\nUser:", NULL}},
    {.name = "tinychat-mpt-chat",
     .first = "<|im_start|>user: {user}<|im_end|>\n<|im_start|>assistant:",
     .first_system =
         TEMPLATE_IM_SYSTEM "<|im_start|>user: {user}<|im_end|>\n<|im_start|>assistant:",
     .next = "<|im_start|>user: {user}<|im_end|>\n<|im_start|>assistant:",
     .reply = " {trim}{reply}{/trim}<|im_end|>\n",
     .system = TEMPLATE_MPT_SYSTEM,
     .stop_strings = {"<|im_end|>", NULL}},
    {.name = "tinychat-mpt",
     .first = "### Human: {user}\n### Assistant:",
     .first_system = "{system}\n### Human: {user}\n### Assistant:",
     .next = "### Human: {user}\n### Assistant:",
     .reply = " {trim}{reply}{/trim}\n",
     .system = TEMPLATE_SYSTEM("human"),
     .stop_strings = {"### Human:", NULL}},
    /* For models without a chat format: the model continues the text; a further turn goes on behind
     * it on a new line. */
    {.name = "plain",
     .first = "{user}",
     .first_system = "{system}\n{user}",
     .next = "\n{user}",
     .reply = "{reply}",
     .system = ""},
};

const tc__template *tc__template_at(int index) {
    return index >= 0 && (size_t)index < TC_COUNT(template_table) ? &template_table[index] : NULL;
}

const tc__template *tc__template_find(const char *name) {
    for (size_t i = 0; i < TC_COUNT(template_table); i++)
        if (!strcmp(template_table[i].name, name)) return &template_table[i];
    return NULL;
}

/* ---- patterns ---- */

enum { /* parts of a pattern, as bits */
       TEMPLATE_TEXT = 0,
       TEMPLATE_HAS_SYSTEM = 1,
       TEMPLATE_HAS_USER = 2,
       TEMPLATE_HAS_REPLY = 4,
       TEMPLATE_TRIM = 8,
       TEMPLATE_TRIM_END = 16,
       TEMPLATE_ANSWER = 32, /* beside TEMPLATE_HAS_REPLY: what is behind its last </think> */
       TEMPLATE_BARE = 64    /* and without the newlines there */
};

/* The placeholder at the beginning of a text and its length; TEMPLATE_TEXT if there is none. */
static int template_mark(const char *text, size_t *len) {
    static const struct {
        const char *mark;
        int part;
    } marks[] = {{"{system}", TEMPLATE_HAS_SYSTEM},
                 {"{user}", TEMPLATE_HAS_USER},
                 {"{reply}", TEMPLATE_HAS_REPLY},
                 {"{answer}", TEMPLATE_HAS_REPLY | TEMPLATE_ANSWER},
                 {"{bare_answer}", TEMPLATE_HAS_REPLY | TEMPLATE_ANSWER | TEMPLATE_BARE},
                 {"{trim}", TEMPLATE_TRIM},
                 {"{/trim}", TEMPLATE_TRIM_END}};
    for (size_t i = 0; *text == '{' && i < TC_COUNT(marks); i++) {
        *len = strlen(marks[i].mark);
        if (!strncmp(text, marks[i].mark, *len)) return marks[i].part;
    }
    return TEMPLATE_TEXT;
}

/* Takes the next part off a pattern: a placeholder, or the text up to the next one. False at the
 * end. */
static bool template_next(const char **pattern, int *part, const char **text, size_t *len) {
    size_t mark_len;
    *text = *pattern;
    if (!**pattern) return false;
    *part = template_mark(*pattern, len);
    if (*part == TEMPLATE_TEXT)
        for (*len = 1; (*text)[*len] && !template_mark(*text + *len, &mark_len);) ++*len;
    *pattern += *len;
    return true;
}

/* Holds exactly the placeholders of `wanted`, each once, and {trim}, {/trim} in pairs. */
static int template_check(const char *pattern, const char *key, int wanted, tc_error *err) {
    const char *text;
    size_t len;
    int part, seen = 0;
    bool trimming = false;
    while (template_next(&pattern, &part, &text, &len)) {
        bool trim = part == TEMPLATE_TRIM, end = part == TEMPLATE_TRIM_END;
        part &= ~(TEMPLATE_ANSWER | TEMPLATE_BARE);
        if (trim || end ? trimming == trim : (part & seen) || (part & ~wanted))
            return tc__fail(err, TC_ERR_FORMAT, "model file: unexpected %.*s in '%s'", (int)len,
                            text, key);
        if (trim || end)
            trimming = trim;
        else
            seen |= part;
    }
    if (seen != wanted || trimming)
        return tc__fail(err, TC_ERR_FORMAT, "model file: no %s in '%s'",
                        trimming                             ? "{/trim}"
                        : wanted & ~seen & TEMPLATE_HAS_USER ? "{user}"
                        : wanted & TEMPLATE_HAS_REPLY        ? "{reply}"
                                                             : "{system}",
                        key);
    return TC_OK;
}

/* ---- templates out of a model file ---- */

/* Appends text and a NUL to the storage. */
static int template_store(const char *key, const char *text, size_t len, tc__buf *storage,
                          tc_error *err) {
    if (len && memchr(text, 0, len))
        return tc__fail(err, TC_ERR_FORMAT, "model file: a NUL byte in '%s'", key);
    tc__buf_add(storage, text, len);
    tc__buf_add(storage, "", 1);
    return storage->failed ? tc__fail_memory(err, "the chat template", len) : TC_OK;
}

static int template_store_stops(const tc__model_file *file, size_t *n, tc__buf *storage,
                                tc_error *err) {
    const tc__meta *meta = tc__find_meta(file, "chat.stop_strings");
    *n = 0;
    if (!meta) return TC_OK;
    if (meta->type != TC__META_STRINGS || meta->count > TC__MAX_STOP_STRINGS)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: 'chat.stop_strings' should be at most %d strings",
                        TC__MAX_STOP_STRINGS);
    tc__cursor cursor = tc__cursor_make(meta->value, meta->size);
    const char *text;
    size_t len;
    while (tc__next_string(&cursor, &text, &len)) {
        if (!len)
            return tc__fail(err, TC_ERR_FORMAT,
                            "model file: an empty string in 'chat.stop_strings'");
        int code = template_store("chat.stop_strings", text, len, storage, err);
        if (code) return code;
        ++*n;
    }
    return TC_OK;
}

static int template_fill(const tc__model_file *file, tc__template *out, tc__buf *storage,
                         tc_error *err) {
    static const struct {
        const char *key;
        int wanted; /* placeholders; -1: not a pattern */
        bool optional;
    } texts[] = {{"chat.template", -1, true},
                 {"chat.first", TEMPLATE_HAS_USER, false},
                 {"chat.first_system", TEMPLATE_HAS_SYSTEM | TEMPLATE_HAS_USER, false},
                 {"chat.next", TEMPLATE_HAS_USER, false},
                 {"chat.reply", TEMPLATE_HAS_REPLY, false},
                 {"chat.system", -1, true},
                 {"chat.start", -1, true},
                 {"chat.next_system", TEMPLATE_HAS_SYSTEM | TEMPLATE_HAS_USER, true}};
    size_t offsets[TC_COUNT(texts)], n_stops;
    for (size_t i = 0; i < TC_COUNT(texts); i++) {
        const char *text;
        size_t len;
        int code = tc__meta_text(file, texts[i].key, &text, &len, err);
        offsets[i] = storage->len;
        if (code || (code = template_store(texts[i].key, text, len, storage, err))) return code;
        if (texts[i].wanted >= 0 && (len || !texts[i].optional) &&
            (code = template_check(storage->data + offsets[i], texts[i].key, texts[i].wanted, err)))
            return code;
    }
    size_t at = storage->len;
    int code = template_store_stops(file, &n_stops, storage, err);
    if (code) return code;

    const char *data = storage->data; /* moves no more */
    memset(out, 0, sizeof *out);
    out->name = data + offsets[0];
    out->first = data + offsets[1];
    out->first_system = data + offsets[2];
    out->next = data + offsets[3];
    out->reply = data + offsets[4];
    out->system = data + offsets[5];
    out->start = data + offsets[6];
    out->next_system = data + offsets[7];
    for (size_t i = 0; i < n_stops; i++) {
        out->stop_strings[i] = data + at;
        at += strlen(data + at) + 1;
    }
    return tc__ok(err);
}

int tc__template_load(const tc__model_file *file, tc__template *out, tc__buf *storage,
                      tc_error *err) {
    int code = template_fill(file, out, storage, err);
    if (code) tc__buf_free(storage);
    return code;
}

/* ---- rendering ---- */

typedef struct template_render {
    const tc__tokenizer *tokenizer;
    tc__ids *ids;
    tc__span *spans; /* text not yet encoded */
    size_t n_spans, cap;
    int before;       /* what it follows, as tc__encode wants to know */
    size_t trim_from; /* first span of the open {trim} */
    bool trim_left;   /* its left end is there to be trimmed, not in ids already */
    bool failed;
} template_render;

static void template_span(template_render *r, const char *text, size_t len, bool trusted) {
    if (!len || r->failed) return;
    if (r->n_spans == r->cap) {
        size_t cap = r->cap ? 2 * r->cap : 16;
        tc__span *spans = realloc(r->spans, cap * sizeof *spans);
        if (!spans) {
            r->failed = true;
            return;
        }
        r->spans = spans;
        r->cap = cap;
    }
    r->spans[r->n_spans++] = (tc__span){text, len, trusted};
}

/* White space as Python's str.strip sees it. */
static bool template_is_space(uint32_t code) {
    return (code >= 0x09 && code <= 0x0D) || (code >= 0x1C && code <= 0x20) || code == 0x85 ||
           code == 0xA0 || code == 0x1680 || (code >= 0x2000 && code <= 0x200A) || code == 0x2028 ||
           code == 0x2029 || code == 0x202F || code == 0x205F || code == 0x3000;
}

/* Bytes of white space that a text begins with. */
static size_t template_leading(const char *text, size_t len) {
    size_t at = 0;
    while (at < len) {
        uint32_t code;
        size_t n = tc__utf8_decode(text + at, len - at, &code);
        if (!template_is_space(code)) break;
        at += n;
    }
    return at;
}

/* Bytes of white space that a text ends with. */
static size_t template_trailing(const char *text, size_t len) {
    size_t left = len;
    while (left) {
        uint32_t code;
        size_t n = 1;
        while (n < 4 && n < left && ((uint8_t)text[left - n] & 0xC0) == 0x80) n++;
        if (tc__utf8_decode(text + left - n, n, &code) != n || !template_is_space(code)) break;
        left -= n;
    }
    return len - left;
}

static void template_trim_begin(template_render *r, bool left) {
    r->trim_from = r->n_spans;
    r->trim_left = left;
}

/* Closes a {trim}: removes white space at the ends of the spans since then. */
static void template_trim(template_render *r) {
    for (size_t i = r->trim_from; r->trim_left && i < r->n_spans; i++) {
        size_t n = template_leading(r->spans[i].text, r->spans[i].len);
        r->spans[i].text += n;
        r->spans[i].len -= n;
        if (r->spans[i].len) break;
    }
    for (size_t i = r->n_spans; i-- > r->trim_from;) {
        r->spans[i].len -= template_trailing(r->spans[i].text, r->spans[i].len);
        if (r->spans[i].len) break;
    }
}

/* Bytes of a reply up to the end of its last </think>; 0 if there is none. */
static size_t template_thought(const tc__turn *turn) {
    static const char mark[] = "</think>";
    const size_t n = sizeof mark - 1;
    for (size_t end = turn->reply_len; end >= n; end--)
        if (!memcmp(turn->reply + end - n, mark, n)) return end;
    return 0;
}

/* Appends the reply, or what it says behind its last thought. */
static void template_reply(template_render *r, int part, const tc__turn *turn) {
    size_t from = part & TEMPLATE_ANSWER ? template_thought(turn) : 0;
    while (from && (part & TEMPLATE_BARE) && from < turn->reply_len && turn->reply[from] == '\n')
        from++;
    if (from < turn->reply_len) template_span(r, turn->reply + from, turn->reply_len - from, false);
}

/* Appends the spans of a pattern. */
static void template_expand(template_render *r, const char *pattern, const char *system,
                            size_t system_len, const tc__turn *turn) {
    const char *text;
    size_t len;
    int part;
    while (template_next(&pattern, &part, &text, &len)) switch (part) {
        case TEMPLATE_HAS_SYSTEM: template_span(r, system, system_len, false); break;
        case TEMPLATE_HAS_USER: template_span(r, turn->user, turn->user_len, false); break;
        case TEMPLATE_TRIM: template_trim_begin(r, true); break;
        case TEMPLATE_TRIM_END: template_trim(r); break;
        case TEMPLATE_TEXT: template_span(r, text, len, true); break;
        default: template_reply(r, part, turn);
        }
}

/* Encodes the spans so far. */
static int template_flush(template_render *r, tc_error *err) {
    if (r->failed) return tc__fail_memory(err, "a conversation", r->cap * sizeof *r->spans);
    int code = tc__encode(r->tokenizer, r->spans, r->n_spans, r->before, r->ids, err);
    r->n_spans = 0;
    return code;
}

/* Behind {reply}, and whether a {trim} is open there. */
static const char *template_behind_reply(const char *pattern, bool *trimming) {
    const char *text;
    size_t len;
    int part;
    *trimming = false;
    while (template_next(&pattern, &part, &text, &len) && !(part & TEMPLATE_HAS_REPLY))
        if (part != TEMPLATE_TEXT) *trimming = part == TEMPLATE_TRIM;
    return pattern;
}

/* Behind the first special piece of a pattern, whose id it gives; NULL if it has none. */
static const char *template_behind_special(const tc__tokenizer *tokenizer, const char *pattern,
                                           bool *trimming, int32_t *id) {
    const char *text;
    size_t len;
    int part;
    while (template_next(&pattern, &part, &text, &len)) {
        for (size_t i = 0, n; i < len && part == TEMPLATE_TEXT; i++)
            if ((n = tc__special_at(tokenizer, text + i, len - i, id))) return text + i + n;
        if (part != TEMPLATE_TEXT) *trimming = part == TEMPLATE_TRIM;
    }
    return NULL;
}

bool tc__template_closing(const tc__template *chat_template, const tc__tokenizer *tokenizer,
                          int32_t *id) {
    bool trimming;
    const char *behind = template_behind_reply(chat_template->reply, &trimming);
    return template_behind_special(tokenizer, behind, &trimming, id) != NULL;
}

const char *tc__template_closing_text(const tc__template *chat_template, size_t *len) {
    bool trimming;
    const char *behind = template_behind_reply(chat_template->reply, &trimming), *text;
    int part;
    while (template_next(&behind, &part, &text, len)) {
        const char *mark = part == TEMPLATE_TEXT ? memchr(text, '<', *len) : NULL;
        const char *end = mark ? memchr(mark, '>', *len - (size_t)(mark - text)) : NULL;
        if (!end) continue;
        *len = (size_t)(end + 1 - mark);
        return mark;
    }
    return NULL;
}

/* A reply as it was generated, and what the pattern has behind it. */
static int template_generated(template_render *r, const char *pattern, const tc__turn *turn,
                              tc_error *err) {
    bool trimming, trimming_there;
    size_t n_ids = turn->n_ids;
    bool ended = turn->ended && n_ids;
    const char *behind = template_behind_reply(pattern, &trimming);
    trimming_there = trimming;
    int32_t id;
    const char *there = template_behind_special(r->tokenizer, behind, &trimming_there, &id);
    if (ended && !there) n_ids--; /* the pattern knows no special piece: nor do later turns */
    if (n_ids) {                  /* without ids, text just goes on */
        int code = template_flush(r, err);
        if (code) return code;
        tc__ids_add(r->ids, turn->ids, n_ids);
        r->before = TC__AFTER_TEXT;
    }
    if (ended && there) {
        r->before = TC__AFTER_SPECIAL;
        behind = there;
        trimming = trimming_there;
    }
    if (trimming) template_trim_begin(r, !n_ids);
    template_expand(r, behind, NULL, 0, turn);
    return TC_OK;
}

/* Whether the ids of a generated reply are what the pattern wants of it: all of it. */
static bool template_keeps_ids(const char *pattern, const tc__turn *turn) {
    bool answer = strstr(pattern, "{answer}") || strstr(pattern, "{bare_answer}");
    return turn->ids && !(answer && template_thought(turn));
}

/* The pattern that leads to the reply of turn i of n. */
static const char *template_lead(const tc__template *t, size_t i, size_t n, bool system) {
    /* late: the system text stands in the last turn */
    bool late = system && t->next_system && *t->next_system;
    bool here = late ? i + 1 == n : i == 0;
    if (i == 0) return system && here ? t->first_system : t->first;
    return late && here ? t->next_system : t->next;
}

int tc__render(const tc__template *chat_template, const tc__tokenizer *tokenizer,
               const char *system, size_t system_len, const tc__turn *turns, size_t n_turns,
               tc__ids *ids, tc_error *err) {
    template_render r = {.tokenizer = tokenizer, .ids = ids, .before = TC__AT_START};
    const char *opening = template_lead(chat_template, 0, n_turns, system && system_len);
    int32_t bos = tc__tokenizer_bos(tokenizer), id;
    int code = TC_OK;
    bool has_bos = tc__special_at(tokenizer, opening, strlen(opening), &id) && id == bos;
    if (tc__tokenizer_adds_bos(tokenizer) && !has_bos) tc__ids_push(ids, bos);
    for (size_t i = 0; i < n_turns && !code; i++) {
        const tc__turn *turn = &turns[i];
        template_expand(&r, template_lead(chat_template, i, n_turns, system && system_len), system,
                        system_len, turn);
        const char *start = chat_template->start ? chat_template->start : "";
        if (!turn->has_reply)
            template_span(&r, start, strlen(start), true);
        else if (template_keeps_ids(chat_template->reply, turn))
            code = template_generated(&r, chat_template->reply, turn, err);
        else
            template_expand(&r, chat_template->reply, NULL, 0, turn);
    }
    if (!code) code = template_flush(&r, err);
    free(r.spans);
    return code ? code : tc__ok(err);
}

#undef TEMPLATE_SYSTEM
#undef TEMPLATE_MOSAIC_SYSTEM
#undef TEMPLATE_MPT_SYSTEM
#undef TEMPLATE_ONE_SHOT
#undef TEMPLATE_IM_SYSTEM
#undef TEMPLATE_IM_USER
#undef TEMPLATE_CHATML
#undef TEMPLATE_R1_MARK
#undef TEMPLATE_R1_BEGIN
#undef TEMPLATE_R1_USER
#undef TEMPLATE_HEADER
#undef TEMPLATE_L3_USER
#undef TEMPLATE_L3_SYSTEM
#undef TEMPLATE_L31_DATES
#undef TEMPLATE_L31_EMPTY
#undef TEMPLATE_L31_SYSTEM

/* ======== src/stream.c ======== */

/* stream - see stream.h. */

/* Drops the first n bytes of what is held, after showing them. */
static void stream_release(tc__stream *stream, size_t n, tc__buf *out) {
    if (!n) return;
    tc__buf_add(out, stream->held.data, n);
    stream->held.len -= n;
    memmove(stream->held.data, stream->held.data + n, stream->held.len);
}

/* Takes one whole character; if it completes stop strings, what is before the longest is shown. */
static void stream_character(tc__stream *stream, const char *bytes, size_t len, tc__buf *out) {
    size_t longest = 0;
    tc__buf *held = &stream->held;
    tc__buf_add(held, bytes, len);
    for (const char *const *stop = stream->stops; stop && *stop && !held->failed; stop++) {
        size_t n = strlen(*stop);
        if (n > longest && n <= held->len && !memcmp(held->data + held->len - n, *stop, n))
            longest = n;
    }
    if (longest) {
        stream_release(stream, held->len - longest, out);
        stream->stopped = true;
    }
}

/* How many of the held bytes, at their end, begin a stop string. */
static size_t stream_beginning(const tc__stream *stream) {
    const tc__buf *held = &stream->held;
    size_t longest = 0;
    for (const char *const *stop = stream->stops; stop && *stop; stop++) {
        size_t n = strlen(*stop);
        for (size_t k = n && n <= held->len ? n - 1 : n ? held->len : 0; k > longest; k--)
            if (!memcmp(held->data + held->len - k, *stop, k)) longest = k;
    }
    return longest;
}

/* Takes the characters that are whole, and malformed bytes, out of the unfinished ones. */
static void stream_partial(tc__stream *stream, bool at_end, tc__buf *out) {
    while (stream->n_partial && !stream->stopped) {
        uint32_t code;
        size_t n = tc__utf8_decode(stream->partial, stream->n_partial, &code);
        if (code != UINT32_MAX)
            stream_character(stream, stream->partial, n, out);
        else if (!at_end && tc__utf8_unfinished(stream->partial, stream->n_partial))
            return;
        else
            stream_character(stream, "\xEF\xBF\xBD", 3, out);
        stream->n_partial -= n;
        memmove(stream->partial, stream->partial + n, stream->n_partial);
    }
}

void tc__stream_init(tc__stream *stream, const char *const *stops) {
    memset(stream, 0, sizeof *stream);
    stream->stops = stops;
}

void tc__stream_free(tc__stream *stream) {
    tc__buf_free(&stream->held);
}

void tc__stream_feed(tc__stream *stream, const char *bytes, size_t len, tc__buf *out) {
    for (size_t i = 0; i < len && !stream->stopped; i++) {
        stream->partial[stream->n_partial++] = bytes[i];
        stream_partial(stream, false, out);
        stream_release(stream, stream->stopped ? 0 : stream->held.len - stream_beginning(stream),
                       out);
    }
    if (stream->held.failed) out->failed = true;
}

void tc__stream_end(tc__stream *stream, tc__buf *out) {
    stream_partial(stream, true, out);
    if (!stream->stopped) stream_release(stream, stream->held.len, out);
    if (stream->held.failed) out->failed = true;
}

/* ======== src/sampler.c ======== */


#include <fcntl.h>
#include <math.h>
#include <time.h>
#include <unistd.h>

#define SAMPLER_GREEDY_BELOW 1e-5f
#define SAMPLER_LIKELY 0x1p-16 /* relative to the most probable id; affects speed only */

tc_sampling tc_default_sampling(void) {
    tc_sampling sampling = {0.7f, 0.95f, 40, 0.0f, 1.10f, -1, TC_SEED_RANDOM};
    return sampling;
}

int tc__sampling_check(const tc_sampling *sampling, tc_error *err) {
    const struct {
        const char *name, *range;
        double value;
        bool good; /* written so that NaN is not */
    } rules[] = {
        {"temperature", "finite and at least 0", sampling->temperature,
         sampling->temperature >= 0 && isfinite(sampling->temperature)},
        {"top_p", "above 0", sampling->top_p, sampling->top_p > 0},
        {"top_k", "at least 0", sampling->top_k, sampling->top_k >= 0},
        {"min_p", "0 to 1", sampling->min_p, sampling->min_p >= 0 && sampling->min_p <= 1},
        {"repeat_penalty", "finite and above 0", sampling->repeat_penalty,
         sampling->repeat_penalty > 0 && isfinite(sampling->repeat_penalty)},
        {"repeat_last_n", "at least -1", sampling->repeat_last_n, sampling->repeat_last_n >= -1},
    };
    for (size_t i = 0; i < TC_COUNT(rules); i++)
        if (!rules[i].good)
            return tc__fail(err, TC_ERR_ARGUMENT, "sampling: %s is %g; expected %s", rules[i].name,
                            rules[i].value, rules[i].range);
    return TC_OK;
}

bool tc__sampling_greedy(const tc_sampling *sampling) {
    return sampling->temperature < SAMPLER_GREEDY_BELOW;
}

/* ---- random numbers ---- */

static uint64_t sampler_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double tc__random(uint64_t seed, uint64_t index) {
    uint64_t bits = sampler_mix(seed + (index + 1) * UINT64_C(0x9E3779B97F4A7C15));
    return (double)(bits >> 11) * 0x1p-53;
}

uint64_t tc__random_seed(void) {
    uint64_t seed = 0;
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    bool good = fd >= 0 && read(fd, &seed, sizeof seed) == (ssize_t)sizeof seed;
    if (fd >= 0) close(fd);
    if (!good) { /* no such device (a bare container): time and process still differ between runs */
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        seed = sampler_mix((uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec);
        seed = sampler_mix(seed + (uint64_t)getpid());
    }
    return seed == TC_SEED_RANDOM ? 0 : seed;
}

/* ---- steps 1 and 2: temperature and repetition penalty ---- */

static int sampler_scale(const float *logits, int vocab_size, double temperature,
                         tc__candidate *candidates, tc_error *err) {
    for (int i = 0; i < vocab_size; i++) {
        if (!isfinite(logits[i]))
            return tc__fail(
                err, TC_ERR_NUMERIC,
                "the model computed a logit that is not finite: id %d has %g; the model "
                "file may be damaged (verify it) or its numbers overflow",
                i, (double)logits[i]);
        candidates[i].value = logits[i] / temperature;
        candidates[i].id = i;
    }
    return TC_OK;
}

static void sampler_penalize(const int32_t *context, size_t n_context, double penalty,
                             tc__candidate *candidates, uint8_t *seen) {
    for (size_t i = 0; i < n_context; i++) {
        if (seen[context[i]]) continue;
        seen[context[i]] = 1;
        double *value = &candidates[context[i]].value;
        *value = *value > 0 ? *value / penalty : *value * penalty;
    }
    for (size_t i = 0; i < n_context; i++) seen[context[i]] = 0;
}

/* ---- steps 3 to 7: from the distribution to one id ---- */

/* The order of step 3: the more probable first, the lower id among equals. */
static bool sampler_before(const tc__candidate *a, const tc__candidate *b) {
    return a->value > b->value || (a->value == b->value && a->id < b->id);
}

/* Restores the heap (the first in order on top) below `at`. */
static void sampler_sift(tc__candidate *heap, size_t n, size_t at) {
    tc__candidate moving = heap[at];
    for (size_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && sampler_before(&heap[child + 1], &heap[child])) child++;
        if (!sampler_before(&heap[child], &moving)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* Takes candidates in order, at most `limit` of them, none below `floor`, and no more once their
 * sum reaches `goal`. They end up last in the array, the first one in the last place. Returns how
 * many (at least one) and their sum. */
static size_t sampler_take(tc__candidate *heap, size_t n, size_t limit, double floor, double goal,
                           double *sum) {
    size_t taken = 0;
    *sum = 0;
    for (size_t at = n / 2; at-- > 0;) sampler_sift(heap, n, at);
    while (taken < n && taken < limit && (taken == 0 || (heap[0].value >= floor && *sum < goal))) {
        tc__candidate top = heap[0];
        size_t left = n - ++taken;
        heap[0] = heap[left];
        heap[left] = top;
        *sum += top.value;
        if (left) sampler_sift(heap, left, 0);
    }
    return taken;
}

/* Moves the likely ids to the front: of a large vocabulary they are few, and nearly always the only
 * ones worth sorting. Returns how many there are. */
static size_t sampler_likely(tc__candidate *candidates, size_t n) {
    size_t likely = 0;
    for (size_t i = 0; i < n; i++) {
        if (candidates[i].value < SAMPLER_LIKELY) continue;
        tc__candidate found = candidates[i];
        candidates[i] = candidates[likely];
        candidates[likely++] = found;
    }
    return likely;
}

static int32_t sampler_draw(tc__candidate *candidates, size_t n, const tc_sampling *sampling,
                            double total, double u) {
    bool all_k = sampling->top_k == 0 || (size_t)sampling->top_k >= n;
    bool all = all_k && sampling->top_p >= 1 && sampling->min_p == 0;
    /* Nothing is filtered out: sort only as far as the draw reaches, not the whole vocabulary. */
    double goal = all                   ? nextafter(u * total, INFINITY)
                  : sampling->top_p < 1 ? (double)sampling->top_p * total
                                        : INFINITY;
    size_t limit = all_k ? n : (size_t)sampling->top_k, likely = sampler_likely(candidates, n);
    double sum;
    size_t kept = sampler_take(candidates, likely, limit, sampling->min_p, goal, &sum);
    if (kept == likely && likely < n) /* they were not enough */
        kept = sampler_take(candidates, likely = n, limit, sampling->min_p, goal, &sum);
    double target = u * (all ? total : sum), reached = 0;
    const tc__candidate *choice = &candidates[likely - 1];
    for (size_t i = 0; i < kept; i++) {
        const tc__candidate *candidate = &candidates[likely - 1 - i];
        if (candidate->value > 0) choice = candidate; /* rounding never picks an impossible id */
        reached += candidate->value;
        if (target < reached) break;
    }
    return choice->id;
}

int tc__sample(const float *logits, int vocab_size, const tc_sampling *sampling,
               const int32_t *context, size_t n_context, double u, tc__candidate *candidates,
               uint8_t *seen, int32_t *id, tc_error *err) {
    bool greedy = tc__sampling_greedy(sampling);
    int code = sampler_scale(logits, vocab_size, greedy ? 1.0 : (double)sampling->temperature,
                             candidates, err);
    if (code) return code;
    if (sampling->repeat_penalty != 1)
        sampler_penalize(context, n_context, sampling->repeat_penalty, candidates, seen);

    int largest = 0;
    for (int i = 1; i < vocab_size; i++)
        if (candidates[i].value > candidates[largest].value) largest = i;
    *id = largest;
    if (greedy) return tc__ok(err);

    double top = candidates[largest].value, total = 0;
    for (int i = 0; i < vocab_size; i++) {
        candidates[i].value = exp(candidates[i].value - top);
        total += candidates[i].value;
    }
    *id = sampler_draw(candidates, (size_t)vocab_size, sampling, total, u);
    return tc__ok(err);
}

/* ======== src/threads.c ======== */


#include <signal.h>
#include <unistd.h>

/* Turns of the waiting loop before a thread sleeps, 20 to 100 us with the processor's pause. */
#define THREADS_SPIN 2000

typedef struct threads_worker {
    tc__team *team;
    pthread_t thread;
    int index;
} threads_worker;

struct tc__team {
    int size;
    tc__count start, arrival;
    int arrived; /* workers at the current barrier */
    bool quit;
    void (*task)(void *user, int worker);
    void *user;
    threads_worker workers[]; /* [size]; 0 is the caller */
};

/* ---- waiting ---- */

static void threads_pause(void) {
#if defined(__x86_64__) || defined(__i386__)
    __builtin_ia32_pause();
#elif defined(__aarch64__)
    __asm__ __volatile__("isb"); /* longer than "yield", which most cores ignore */
#endif
}

static bool threads_reached(const tc__count *count, unsigned least, int order) {
    return (int)(__atomic_load_n(&count->value, order) - least) >= 0;
}

/* The order of "sleepers++, look at the value" here and "value += n, look at sleepers" in
 * tc__count_add (both sequentially consistent) makes sure that one of the two sees the other. */
void tc__count_wait(tc__count *count, unsigned least) {
    for (int i = 0; i < count->spin; i++) {
        if (threads_reached(count, least, __ATOMIC_ACQUIRE)) return;
        threads_pause();
    }
    pthread_mutex_lock(&count->mutex);
    __atomic_add_fetch(&count->sleepers, 1, __ATOMIC_SEQ_CST);
    while (!threads_reached(count, least, __ATOMIC_SEQ_CST))
        pthread_cond_wait(&count->changed, &count->mutex);
    __atomic_sub_fetch(&count->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&count->mutex);
}

void tc__count_add(tc__count *count, unsigned n) {
    __atomic_add_fetch(&count->value, n, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&count->sleepers, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&count->mutex);
    pthread_cond_broadcast(&count->changed);
    pthread_mutex_unlock(&count->mutex);
}

bool tc__count_open(tc__count *count, int threads) {
    memset(count, 0, sizeof *count);
    /* With more threads than processors the one that is waited for needs the processor. */
    count->spin = threads <= tc__processors() ? THREADS_SPIN : 0;
    if (pthread_mutex_init(&count->mutex, NULL)) return false;
    if (pthread_cond_init(&count->changed, NULL) == 0) return true;
    pthread_mutex_destroy(&count->mutex);
    return false;
}

void tc__count_close(tc__count *count) {
    pthread_cond_destroy(&count->changed);
    pthread_mutex_destroy(&count->mutex);
}

void tc__team_barrier(tc__team *team) {
    if (team->size == 1) return;
    unsigned now = __atomic_load_n(&team->arrival.value, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
        __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED); /* published by the advance */
        tc__count_add(&team->arrival, 1);
    } else {
        tc__count_wait(&team->arrival, now + 1);
    }
}

/* ---- the team ---- */

static void *threads_main(void *argument) {
    threads_worker *worker = argument;
    tc__team *team = worker->team;
    for (unsigned task = 1;; task++) {
        tc__count_wait(&team->start, task);
        if (team->quit) return NULL;
        team->task(team->user, worker->index);
        tc__team_barrier(team);
    }
}

void tc__team_run(tc__team *team, void (*task)(void *user, int worker), void *user) {
    team->task = task;
    team->user = user;
    if (team->size > 1) tc__count_add(&team->start, 1);
    task(user, 0);
    tc__team_barrier(team);
}

/* Ends and joins the first `started` threads (worker 0 counts as one). */
static void threads_end(tc__team *team, int started) {
    team->quit = true;
    tc__count_add(&team->start, 1);
    for (int i = 1; i < started; i++) pthread_join(team->workers[i].thread, NULL);
    tc__count_close(&team->start);
    tc__count_close(&team->arrival);
    free(team);
}

int tc__team_open(int size, tc__team **team, tc_error *err) {
    size_t bytes = sizeof **team + (size_t)size * sizeof(threads_worker);
    tc__team *made = tc__calloc(1, bytes);
    *team = NULL;
    if (!made) return tc__fail_memory(err, "a team of threads", bytes);
    made->size = size;
    if (!tc__count_open(&made->start, size)) {
        free(made);
        return tc__fail(err, TC_ERR_MEMORY, "threads: no memory for a mutex");
    }
    if (!tc__count_open(&made->arrival, size)) {
        tc__count_close(&made->start);
        free(made);
        return tc__fail(err, TC_ERR_MEMORY, "threads: no memory for a mutex");
    }
    sigset_t all, before; /* signals are for the caller's threads */
    sigfillset(&all);
    pthread_sigmask(SIG_SETMASK, &all, &before);
    int started = 1, failure = 0;
    for (; started < size && !failure; started += !failure) {
        threads_worker *worker = &made->workers[started];
        worker->team = made;
        worker->index = started;
        failure = pthread_create(&worker->thread, NULL, threads_main, worker);
    }
    pthread_sigmask(SIG_SETMASK, &before, NULL);
    if (failure) {
        int refused = started;
        threads_end(made, started);
        return tc__fail(err, TC_ERR_MEMORY,
                        "threads: the system refused thread %d of %d: %s; ask for fewer threads",
                        refused + 1, size, strerror(failure));
    }
    *team = made;
    return tc__ok(err);
}

void tc__team_close(tc__team *team) {
    if (team) threads_end(team, team->size);
}

/* ---- sharing work ---- */

void tc__share(size_t items, int worker, int size, size_t *begin, size_t *end) {
    size_t each = items / (size_t)size, more = items % (size_t)size, w = (size_t)worker;
    *begin = each * w + (w < more ? w : more);
    *end = *begin + each + (w < more);
}

int tc__processors(void) {
    const long online = sysconf(_SC_NPROCESSORS_ONLN);
    const size_t limits[] = {TC__THREADS_MAX, tc__allowed_processors("/proc/thread-self/status"),
                             tc__group_processors("/proc/self/cgroup", "/sys/fs/cgroup")};
    size_t count = online < 1 ? 1 : (size_t)online;
    for (size_t i = 0; i < TC_COUNT(limits); i++)
        if (limits[i] < count) count = limits[i];
    return (int)count;
}

/* ======== src/shapes.c ======== */


#include <math.h>

#define SHAPES_NAME_ROOM 24 /* of a tensor: "79.attn_norm_bias" */
#define SHAPES_METAS 20     /* at most */
#define SHAPES_PER_LAYER 12 /* tensors, at most */
#define SHAPES_BESIDE 4     /* embed, norm, norm_bias, head */

/* What LLaMA, Mistral and Qwen have in common; MPT; Falcon with one norm. */
#define SHAPES_LLAMA .gated = 1
#define SHAPES_MPT                                                                                 \
    .norm = TC__NORM_LAYER, .position = TC__POSITION_ALIBI, .activation = TC__ACT_GELU,            \
    .tied = true, .act_scales = true
#define SHAPES_FALCON                                                                              \
    .norm = TC__NORM_LAYER, .norm_bias = true, .activation = TC__ACT_GELU, .parallel = 1,          \
    .shared_norm = true, .tied = true, .act_scales = true

/* Sizes out of the models' config.json. The scaling of LLaMA 3.2's RoPE is left out. */
static const tc__shape_spec shapes_table[] = {
    {"llama-2-7b", "llama", 4096, 11008, 32, 32, 32, 128, 32000, 4096, 1e-5, 10000, SHAPES_LLAMA},
    {"llama-2-13b", "llama", 5120, 13824, 40, 40, 40, 128, 32000, 4096, 1e-5, 10000, SHAPES_LLAMA},
    {"llama-2-70b", "llama", 8192, 28672, 80, 64, 8, 128, 32000, 4096, 1e-5, 10000, SHAPES_LLAMA},
    {"llama-3-8b", "llama", 4096, 14336, 32, 32, 8, 128, 128256, 8192, 1e-5, 5e5, SHAPES_LLAMA},
    {"llama-3.2-1b", "llama", 2048, 8192, 16, 32, 8, 64, 128256, 131072, 1e-5, 5e5, SHAPES_LLAMA,
     .tied = true},
    {"mistral-7b", "mistral", 4096, 14336, 32, 32, 8, 128, 32000, 32768, 1e-5, 1e6, SHAPES_LLAMA},
    {"qwen2.5-7b", "qwen2", 3584, 18944, 28, 28, 4, 128, 152064, 32768, 1e-6, 1e6, SHAPES_LLAMA,
     .qkv_bias = true},
    {"qwen3-8b", "qwen3", 4096, 12288, 36, 32, 8, 128, 151936, 40960, 1e-6, 1e6, SHAPES_LLAMA,
     .qk_norm = true},
    {"mpt-7b", "mpt", 4096, 16384, 32, 32, 32, 128, 50432, 2048, 1e-5, 0, SHAPES_MPT},
    {"mpt-30b", "mpt", 7168, 28672, 48, 64, 64, 112, 50432, 8192, 1e-5, 0, SHAPES_MPT},
    {"falcon-7b", "falcon", 4544, 18176, 32, 71, 1, 64, 65024, 2048, 1e-5, 10000, SHAPES_FALCON},
    {"tiny", "llama", 256, 512, 2, 4, 2, 64, 512, 256, 1e-5, 10000, SHAPES_LLAMA},
};

const char *tc_shape_name(int index) {
    return index < 0 || (size_t)index >= TC_COUNT(shapes_table) ? NULL : shapes_table[index].name;
}

static int shapes_find(const char *name, const tc__shape_spec **spec, tc_error *err) {
    for (size_t i = 0; i < TC_COUNT(shapes_table); i++) {
        *spec = &shapes_table[i];
        if (strcmp((*spec)->name, name) == 0) return TC_OK;
    }
    tc__buf names = {NULL, 0, 0, false};
    for (size_t i = 0; i < TC_COUNT(shapes_table); i++)
        tc__buf_printf(&names, "%s%s", i ? ", " : "", shapes_table[i].name);
    int code = names.failed ? tc__fail_memory(err, "a list of names", names.len)
                            : tc__fail(err, TC_ERR_ARGUMENT,
                                       "there is no built-in shape '%.80s'; expected one of %s",
                                       name, names.data);
    tc__buf_free(&names);
    return code;
}

static bool shapes_divides(const tc__shape_spec *spec, uint32_t size) {
    return spec->hidden_size % size == 0 && spec->intermediate_size % size == 0 &&
           spec->heads * spec->head_dim % size == 0;
}

/* The group size is the largest one that divides the columns if none is given. */
static int shapes_check_precision(const tc__shape_spec *spec, const char *precision,
                                  int *group_size, uint32_t *type, tc_error *err) {
    *type = TC__W4;
    if (strcmp(precision, "w16a16") == 0)
        *type = TC__F16;
    else if (strcmp(precision, "w4a16"))
        return tc__fail(err, TC_ERR_ARGUMENT, "precision '%.80s'; expected w4a16 or w16a16",
                        precision);
    const bool w4 = *type == TC__W4;
    if (w4 && *group_size == 0)
        *group_size = shapes_divides(spec, 128) ? 128 : shapes_divides(spec, 64) ? 64 : 32;
    bool known = *group_size == 32 || *group_size == 64 || *group_size == 128;
    if (w4 ? !known : *group_size != 0)
        return tc__fail(err, TC_ERR_ARGUMENT, "group size %d with precision %s; expected %s",
                        *group_size, precision, w4 ? "32, 64 or 128" : "none");
    if (w4 && !shapes_divides(spec, (uint32_t)*group_size))
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "group size %d does not divide the matrices' columns of %s: %u, %u, %u",
                        *group_size, spec->name, (unsigned)spec->hidden_size,
                        (unsigned)(spec->heads * spec->head_dim),
                        (unsigned)spec->intermediate_size);
    if (shapes_divides(spec, TC__UNIT_ROWS) && spec->kv_heads * spec->head_dim % TC__UNIT_ROWS == 0)
        return TC_OK;
    return tc__fail(err, TC_ERR_ARGUMENT, "the sizes of %s are not multiples of %u", spec->name,
                    TC__UNIT_ROWS);
}

/* ---- the tables ---- */

/* What the tables point to: part of tc__model_file.names. */
typedef struct shapes_values {
    tc__shape_spec spec;
    float *slopes; /* [heads] */
} shapes_values;

static void shapes_meta(tc__model_file *file, const char *key, uint32_t type, const void *value,
                        size_t count) {
    tc__meta *meta = &file->metas[file->meta_count++];
    const size_t each = type == TC__META_BYTES ? 1 : type == TC__META_F64 ? 8 : 4;
    meta->key = key;
    meta->key_len = strlen(key);
    meta->type = type;
    meta->count = count;
    meta->value = value;
    meta->size = count * each;
}

static void shapes_metas(const shapes_values *values, tc__model_file *file) {
    const tc__shape_spec *spec = &values->spec;
    const struct {
        const char *key;
        const uint32_t *value;
    } numbers[] = {
        {"arch.hidden_size", &spec->hidden_size},
        {"arch.intermediate_size", &spec->intermediate_size},
        {"arch.layers", &spec->layers},
        {"arch.heads", &spec->heads},
        {"arch.kv_heads", &spec->kv_heads},
        {"arch.head_dim", &spec->head_dim},
        {"arch.vocab_size", &spec->vocab_size},
        {"arch.max_seq_len", &spec->max_seq_len},
        {"arch.norm", &spec->norm},
        {"arch.position", &spec->position},
        {"arch.activation", &spec->activation},
        {"arch.gated", &spec->gated},
        {"arch.parallel", &spec->parallel},
    };
    shapes_meta(file, "general.name", TC__META_BYTES, spec->name, strlen(spec->name));
    shapes_meta(file, "arch.family", TC__META_BYTES, spec->family, strlen(spec->family));
    shapes_meta(file, "tokenizer.type", TC__META_BYTES, "none", 4);
    for (size_t i = 0; i < TC_COUNT(numbers); i++)
        shapes_meta(file, numbers[i].key, TC__META_U32, numbers[i].value, 1);
    shapes_meta(file, "arch.norm_eps", TC__META_F64, &spec->norm_eps, 1);
    if (spec->position == TC__POSITION_ALIBI)
        shapes_meta(file, "arch.alibi_slopes", TC__META_F32, values->slopes, spec->heads);
    else
        shapes_meta(file, "arch.rope_theta", TC__META_F64, &spec->rope_theta, 1);
    if (spec->rope_scale > 0)
        shapes_meta(file, "arch.rope_scale", TC__META_F64, &spec->rope_scale, 1);
    if (spec->clip_qkv > 0) shapes_meta(file, "arch.clip_qkv", TC__META_F64, &spec->clip_qkv, 1);
}

/* MPT's slopes: 2^(-8 i / n), i = 1 .. n, for a power of two n; of the next larger one's, other
 * numbers of heads take the second, fourth, ... and then the first, third, ... */
static void shapes_slopes(float *slopes, uint32_t heads) {
    uint32_t n = 1;
    while (n < heads) n *= 2;
    for (uint32_t h = 0; h < heads; h++) {
        uint32_t i = n == heads ? h + 1 : h < n / 2 ? 2 * h + 2 : 2 * (h - n / 2) + 1;
        slopes[h] = (float)exp2(-8.0 * i / n);
    }
}

typedef struct shapes_tables {
    tc__model_file *file;
    char *names;               /* room for the next tensor's */
    uint32_t type, group_size; /* of the matrices */
} shapes_tables;

/* The next tensor, if it is there at all. One column: a vector. */
static void shapes_tensor(shapes_tables *tables, bool there, long layer, const char *name,
                          uint32_t type, size_t rows, size_t columns) {
    if (!there) return;
    tc__tensor *tensor = &tables->file->tensors[tables->file->tensor_count++];
    size_t end = tables->file->tensor_count > 1 ? tensor[-1].offset + tensor[-1].size : 0;
    if (layer < 0)
        snprintf(tables->names, SHAPES_NAME_ROOM, "%s", name);
    else
        snprintf(tables->names, SHAPES_NAME_ROOM, "%ld.%s", layer, name);
    tensor->name = tables->names;
    tensor->name_len = strlen(tables->names);
    tables->names += SHAPES_NAME_ROOM;
    tensor->type = type;
    tensor->group_size = type == TC__W4 ? tables->group_size : 0;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->offset = (end + TC__DATA_ALIGN - 1) & ~(size_t)(TC__DATA_ALIGN - 1);
    tensor->size = tc__tensor_bytes(type, tensor->group_size, rows, columns);
}

static void shapes_layer(shapes_tables *tables, const tc__shape_spec *spec, long l) {
    const size_t hidden = spec->hidden_size, inner = spec->intermediate_size, d = spec->head_dim;
    const size_t heads = spec->heads * d, qkv = heads + 2 * spec->kv_heads * d;
    const uint32_t type = tables->type;
    const bool mlp_norm = !spec->shared_norm, mlp_bias = mlp_norm && spec->norm_bias;
    shapes_tensor(tables, true, l, "attn_norm", TC__F32, hidden, 1);
    shapes_tensor(tables, spec->norm_bias, l, "attn_norm_bias", TC__F32, hidden, 1);
    shapes_tensor(tables, true, l, "qkv", type, qkv, hidden);
    shapes_tensor(tables, spec->qkv_bias, l, "qkv_bias", TC__F32, qkv, 1);
    shapes_tensor(tables, spec->qk_norm, l, "q_norm", TC__F32, d, 1);
    shapes_tensor(tables, spec->qk_norm, l, "k_norm", TC__F32, d, 1);
    shapes_tensor(tables, true, l, "o", type, hidden, heads);
    shapes_tensor(tables, mlp_norm, l, "mlp_norm", TC__F32, hidden, 1);
    shapes_tensor(tables, mlp_bias, l, "mlp_norm_bias", TC__F32, hidden, 1);
    shapes_tensor(tables, spec->gated, l, "gate_up", type, 2 * inner, hidden);
    shapes_tensor(tables, !spec->gated, l, "up", type, inner, hidden);
    shapes_tensor(tables, spec->act_scales, l, "act_scales", TC__F32, inner, 1);
    shapes_tensor(tables, true, l, "down", type, hidden, inner);
}

static void shapes_tensors(shapes_tables *tables, const tc__shape_spec *spec) {
    const size_t hidden = spec->hidden_size, vocab = spec->vocab_size;
    shapes_tensor(tables, true, -1, "embed", TC__F16, vocab, hidden);
    for (long l = 0; l < (long)spec->layers; l++) shapes_layer(tables, spec, l);
    shapes_tensor(tables, true, -1, "norm", TC__F32, hidden, 1);
    shapes_tensor(tables, spec->norm_bias, -1, "norm_bias", TC__F32, hidden, 1);
    shapes_tensor(tables, !spec->tied, -1, "head", TC__F16, vocab, hidden);
}

/* ---- the weights ---- */

tc__pattern tc__shape_pattern(const tc__tensor *tensor) {
    /* halves of a W4 unit's tail, the lowest first: scale 0.002, zero 7, scale 0.002, zero 8 */
    tc__pattern w4 = {tensor->group_size + 8, tensor->group_size, UINT64_MAX, 0,
                      0x4800181947001819u};
    tc__pattern halves = {1, 1, 0x83ff83ff83ff83ffu, 0x2000200020002000u, 0};
    tc__pattern biases = {1, 1, 0x807fffff807fffffu, 0x3d8000003d800000u, 0};
    tc__pattern factors = {1, 1, 0x001fffff001fffffu, 0x3f8000003f800000u, 0};
    if (tensor->type == TC__W4) return w4;
    if (tensor->type == TC__F16) return halves;
    const bool bias =
        tensor->name_len > 5 && memcmp(tensor->name + tensor->name_len - 5, "_bias", 5) == 0;
    return bias ? biases : factors;
}

/* The same in src/kernels/rows.cuh. */
static uint64_t shapes_hash(uint64_t n) {
    uint64_t z = n * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

typedef struct shapes_task {
    const tc__tensor *tensor;
    uint8_t *data; /* of all tensors */
    int workers;
} shapes_task;

static void shapes_fill_share(void *user, int worker) {
    const shapes_task *task = user;
    const tc__tensor *tensor = task->tensor;
    const tc__pattern pattern = tc__shape_pattern(tensor);
    uint64_t *words = (uint64_t *)(void *)(task->data + tensor->offset);
    const uint64_t first = tensor->offset / 8;
    size_t i, end;
    tc__share(tensor->size / 8, worker, task->workers, &i, &end);
    for (size_t place = i % pattern.unit; i < end; i++) {
        words[i] = place < pattern.random ? (shapes_hash(first + i) & pattern.mask) | pattern.bits
                                          : pattern.tail;
        if (++place == pattern.unit) place = 0;
    }
}

static int shapes_fill(tc__model_file *file, uint8_t *data, const tc_model_params *params,
                       tc_error *err) {
    tc__team *team = NULL;
    int workers = params->threads ? params->threads : tc__processors();
    if (workers < 1 || workers > TC__THREADS_MAX) workers = 1; /* the backend says what is wrong */
    int code = tc__team_open(workers, &team, err);
    for (size_t i = 0; i < file->tensor_count && !code; i++) {
        shapes_task task = {&file->tensors[i], data, workers};
        tc__team_run(team, shapes_fill_share, &task);
        file->tensors[i].data = data + file->tensors[i].offset;
        double done = (double)(i + 1) / (double)file->tensor_count;
        if (params->progress && params->progress(params->user, done, "making random weights"))
            code = tc__fail(err, TC_ERR_CANCELLED, "opening the model was cancelled");
    }
    tc__team_close(team);
    return code;
}

/* From calloc, so that the threads that fill the pages are the first to touch them. */
static int shapes_make_data(const char *name, const tc_model_params *params, tc__model_file *file,
                            tc_error *err) {
    const tc__tensor *last = &file->tensors[file->tensor_count - 1];
    size_t bytes = last->offset + last->size, room = tc__available_memory();
    if (bytes > room)
        return tc__fail(err, TC_ERR_MEMORY,
                        "out of memory: the weights of %s need %.2f GiB, %.2f GiB are available",
                        name, (double)bytes / (1 << 30), (double)room / (1 << 30));
    file->data = tc__calloc(1, bytes + TC__DATA_ALIGN);
    if (!file->data) return tc__fail_memory(err, "random weights", bytes);
    uintptr_t at = ((uintptr_t)file->data + TC__DATA_ALIGN - 1) & ~(uintptr_t)(TC__DATA_ALIGN - 1);
    return shapes_fill(file, (uint8_t *)at, params, err);
}

int tc__shape_make(const tc__shape_spec *spec, const char *precision, int group_size,
                   bool in_memory, const tc_model_params *params, tc__model_file *file,
                   tc_error *err) {
    uint32_t type = 0;
    memset(file, 0, sizeof *file);
    int code = shapes_check_precision(spec, precision, &group_size, &type, err);
    if (code) return code;
    const size_t tensors = SHAPES_BESIDE + SHAPES_PER_LAYER * (size_t)spec->layers;
    const size_t values_bytes = sizeof(shapes_values) + spec->heads * sizeof(float);
    file->metas = tc__calloc(SHAPES_METAS, sizeof *file->metas);
    file->tensors = tc__calloc(tensors, sizeof *file->tensors);
    file->names = tc__calloc(1, values_bytes + tensors * SHAPES_NAME_ROOM);
    if (file->metas && file->tensors && file->names) {
        shapes_values *values = (shapes_values *)(void *)file->names;
        values->spec = *spec;
        values->slopes = (float *)(void *)(values + 1);
        shapes_slopes(values->slopes, spec->heads);
        shapes_metas(values, file);
        shapes_tables tables = {file, file->names + values_bytes, type, (uint32_t)group_size};
        shapes_tensors(&tables, spec);
        if (in_memory) code = shapes_make_data(spec->name, params, file, err);
    } else {
        code = tc__fail_memory(err, "a shape", tensors * sizeof *file->tensors);
    }
    if (code) tc__model_file_close(file);
    return code ? code : tc__ok(err);
}

int tc__shape_open(const char *name, const char *precision, int group_size, bool in_memory,
                   const tc_model_params *params, tc__model_file *file, tc_error *err) {
    const tc__shape_spec *known = NULL;
    memset(file, 0, sizeof *file);
    int code = shapes_find(name, &known, err);
    if (code) return code;
    tc__shape_spec spec = *known;
    spec.act_scales &= strcmp(precision, "w4a16") == 0; /* AWQ made them */
    return tc__shape_make(&spec, precision, group_size, in_memory, params, file, err);
}

/* ======== src/cpu_fixed.c ======== */


#include <math.h>

#if CPU_X86
#define FIXED_VNNI __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx512vnni,avx2,fma")))

/* 32-bit lanes. GCC copies registers in loops that sum in __m512i, whose lanes have 64. */
typedef int32_t fixed_lanes __attribute__((vector_size(64)));

/* ---- vectors ---- */

/* The exponent e of the step 2^e: the largest magnitude becomes at most 0x7f7f7f, the largest
 * number that three limbs hold. `bits` are the magnitude's; above 2^127 or so, and for what is no
 * number, there is none: 0xff. Biased by 127. */
static uint32_t fixed_step(uint32_t bits) {
    float largest;
    memcpy(&largest, &bits, sizeof largest);
    largest *= 1.004f; /* 2^23 / 0x7f7f7f, and some */
    memcpy(&bits, &largest, sizeof bits);
    uint32_t exponent = bits >> 23;
    return exponent == 0xff ? 0xff : exponent < 23 ? 1 : exponent - 22;
}

/* Bits 8 k .. 8 k + 7 of u[0..3] as a signed limb in bytes 0..3; u have 128 added to every limb. */
FIXED_VNNI CPU_INLINE __m256i fixed_limb(const __m256i u[4], const unsigned k) {
    __m256i limb = _mm256_set1_epi32((int)0x80808080);
    CPU_TIMES(m, 4) {
        __m256i byte = _mm256_and_si256(_mm256_srli_epi32(u[m], 8 * k), _mm256_set1_epi32(255));
        limb = _mm256_xor_si256(limb, _mm256_slli_epi32(byte, 8 * m));
    }
    return limb;
}

/* Where words of a unit are `places` in a row (see cpu_kernels.c), element places * m + p of an
 * ordered chunk is byte m of word p: so are the limbs, and the kernels need no shuffles. */
FIXED_VNNI void tc__vnni_fix(const float *x, unsigned group_size, float *fixed) {
    const unsigned places = group_size == 32 ? 8 : 16;
    __m512i largest = _mm512_setzero_si512();
    for (unsigned i = 0; i < group_size; i += 16)
        largest = _mm512_max_epu32(
            largest, _mm512_and_si512(_mm512_loadu_si512(x + i), _mm512_set1_epi32(0x7fffffff)));
    const uint32_t exponent = fixed_step(_mm512_reduce_max_epu32(largest));
    const uint32_t bits[2] = {exponent << 23, (254 - exponent) << 23};
    float step, inverse;
    memcpy(&step, &bits[0], sizeof step);
    memcpy(&inverse, &bits[1], sizeof inverse);
    if (exponent == 0xff) step = NAN, inverse = 0;

    uint8_t *to = (uint8_t *)fixed;
    __m256i totals[3] = {_mm256_setzero_si256(), _mm256_setzero_si256(), _mm256_setzero_si256()};
    for (unsigned column = 0; column < group_size; column += 4 * places)
        for (unsigned p = 0; p < places; p += 8) {
            __m256i u[4];
            CPU_TIMES(m, 4) {
                __m256 v = _mm256_mul_ps(_mm256_loadu_ps(x + column + places * m + p),
                                         _mm256_set1_ps(inverse));
                u[m] = _mm256_add_epi32(_mm256_cvtps_epi32(v), _mm256_set1_epi32(0x808080));
            }
            CPU_TIMES(k, 3) {
                __m256i limb = fixed_limb(u, k);
                totals[k] = _mm256_dpbusd_epi32(totals[k], _mm256_set1_epi8(1), limb);
                _mm256_storeu_si256((__m256i *)(to + (2 - k) * group_size + column + 4 * p), limb);
            }
        }

    int16_t sums[4] = {0, 0, 0, 0};
    for (unsigned k = 0; k < 3; k++) {
        int32_t lanes[8];
        _mm256_storeu_si256((__m256i *)lanes, totals[k]);
        for (unsigned i = 0; i < 8; i++) sums[k] = (int16_t)(sums[k] + lanes[i]);
    }
    memcpy(to + 3 * group_size, &step, sizeof step);
    memcpy(to + 3 * group_size + sizeof step, sums, sizeof sums);
}

/* ---- units ---- */

/* 8 columns of 16 rows from the nibbles of 8 x 2 words. */
FIXED_VNNI CPU_INLINE void fixed_nibbles(__m512i words, uint8_t to[2][64]) {
    const __m512i mask = _mm512_set1_epi8(15);
    _mm512_store_si512(to[0], _mm512_and_si512(words, mask));
    _mm512_store_si512(to[1], _mm512_and_si512(_mm512_srli_epi16(words, 4), mask));
}

/* Group sizes 64 and 128: 64 bytes are a row's eight pairs of words for 64 columns (and the row's
 * that is 8 further). Transposed, 64 bytes are pair t of eight rows in the order 0, 4, 1, 5, ... */
FIXED_VNNI CPU_INLINE void fixed_transpose(const uint8_t *words, uint8_t to[8][2][64]) {
    __m512i rows[8], pairs[4];
    CPU_TIMES(i, 8) {
        rows[i] = _mm512_loadu_si512(words + 64 * i);
    }
    CPU_TIMES(odd, 2) {
        CPU_TIMES(i, 4) {
            pairs[i] = odd ? _mm512_unpackhi_epi64(rows[i], rows[i + 4])
                           : _mm512_unpacklo_epi64(rows[i], rows[i + 4]);
        }
        __m512i a = _mm512_shuffle_i32x4(pairs[0], pairs[1], 0x44);
        __m512i b = _mm512_shuffle_i32x4(pairs[2], pairs[3], 0x44);
        __m512i c = _mm512_shuffle_i32x4(pairs[0], pairs[1], 0xee);
        __m512i d = _mm512_shuffle_i32x4(pairs[2], pairs[3], 0xee);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0x88), to[odd]);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0xdd), to[odd + 2]);
        fixed_nibbles(_mm512_shuffle_i32x4(c, d, 0x88), to[odd + 4]);
        fixed_nibbles(_mm512_shuffle_i32x4(c, d, 0xdd), to[odd + 6]);
    }
}

/* Group size 32: 64 bytes are the four pairs of words of two rows. */
FIXED_VNNI CPU_INLINE void fixed_transpose_32(const uint8_t *words, uint8_t to[4][2][64]) {
    __m512i rows[4];
    CPU_TIMES(i, 4) {
        rows[i] = _mm512_loadu_si512(words + 64 * i);
    }
    CPU_TIMES(odd, 2) {
        __m512i a =
            odd ? _mm512_unpackhi_epi64(rows[0], rows[2]) : _mm512_unpacklo_epi64(rows[0], rows[2]);
        __m512i b =
            odd ? _mm512_unpackhi_epi64(rows[1], rows[3]) : _mm512_unpacklo_epi64(rows[1], rows[3]);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0x88), to[odd]);
        fixed_nibbles(_mm512_shuffle_i32x4(a, b, 0xdd), to[odd + 2]);
    }
}

FIXED_VNNI void tc__vnni_unpack(const uint8_t *unit, unsigned group_size, tc__fixed_unit *to) {
    if (group_size == 32)
        fixed_transpose_32(unit, to->q);
    else
        for (unsigned column = 0; column < group_size; column += 64)
            fixed_transpose(unit + 8 * column, to->q + column / 8);

    /* scale and zero of row r, scale and zero of row r + 8; r = 0..3 and r = 4..7 */
    const __m256i *halves = (const __m256i *)(unit + 8 * group_size);
    __m512 a = _mm512_cvtph_ps(_mm256_loadu_si256(halves));
    __m512 b = _mm512_cvtph_ps(_mm256_loadu_si256(halves + 1));
    __m512d low = _mm512_castps_pd(_mm512_unpacklo_ps(a, b));
    __m512d high = _mm512_castps_pd(_mm512_unpackhi_ps(a, b));
    _mm512_store_pd(to->scales, _mm512_unpacklo_pd(low, high));
    __m512i zeros = _mm512_cvtps_epi32(_mm512_castpd_ps(_mm512_unpackhi_pd(low, high)));
    __m512i minus = _mm512_sub_epi32(_mm512_setzero_si512(), zeros);
    __m512i low_half = _mm512_and_si512(minus, _mm512_set1_epi32(0xffff));
    _mm512_store_si512(to->zeros, _mm512_or_si512(low_half, _mm512_slli_epi32(minus, 24)));
}

/* ---- products ---- */

/* Sums of neighbouring lanes of eight rows and eight rows, in a unit's order. */
FIXED_VNNI CPU_INLINE __m512i fixed_pairs(fixed_lanes low, fixed_lanes high) {
    __m512 a = (__m512)low, b = (__m512)high;
    return (__m512i)((fixed_lanes)_mm512_shuffle_ps(a, b, 0x88) +
                     (fixed_lanes)_mm512_shuffle_ps(a, b, 0xdd));
}

/* y[16] += a unit's product with a vector, out of sums of its high, middle and low limbs; `tail` is
 * what follows the vector's limbs. */
FIXED_VNNI CPU_INLINE void fixed_finish(const tc__fixed_unit *unit, fixed_lanes sums[3][2],
                                        const uint8_t *tail, float *y) {
    float step;
    int32_t totals[2]; /* of low and middle limbs, of high limbs: pairs for `zeros` */
    memcpy(&step, tail, sizeof step);
    memcpy(totals, tail + sizeof step, sizeof totals);
    const __m512i zeros = _mm512_load_si512(unit->zeros);
    __m512i high = fixed_pairs(sums[0][0], sums[0][1]);
    __m512i low = fixed_pairs((sums[1][0] << 8) + sums[2][0], (sums[1][1] << 8) + sums[2][1]);
    high = _mm512_dpwssd_epi32(high, zeros, _mm512_set1_epi32(totals[1]));
    low = _mm512_dpwssd_epi32(low, zeros, _mm512_set1_epi32(totals[0]));
    __m512 sum =
        _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(65536), _mm512_cvtepi32_ps(low));
    sum = _mm512_mul_ps(sum, _mm512_set1_ps(step));
    _mm512_storeu_ps(y, _mm512_fmadd_ps(sum, _mm512_load_ps(unit->scales), _mm512_loadu_ps(y)));
}

/* One unit's products with `count` vectors. Sums of 16 rows x count vectors x 3 limbs in registers,
 * so that 6 * count multiplications take 2 + 3 * count loads. Two lanes belong to a row. */
FIXED_VNNI CPU_INLINE void fixed_product(const tc__fixed_unit *unit, unsigned group_size,
                                         const float *fixed, const unsigned count, float *y) {
    fixed_lanes sums[4][3][2];
    CPU_TIMES(v, count) CPU_TIMES(k, 3) CPU_TIMES(h, 2) {
        sums[v][k][h] = (fixed_lanes){0};
    }
    for (unsigned column = 0; column < group_size; column += 8) {
        __m512i q[2];
        CPU_TIMES(h, 2) {
            q[h] = _mm512_load_si512(unit->q[column / 8][h]);
        }
        CPU_TIMES(v, count) CPU_TIMES(k, 3) {
            long long eight;
            memcpy(&eight, (const uint8_t *)(fixed + v * group_size) + k * group_size + column, 8);
            __m512i limbs = _mm512_set1_epi64(eight);
            CPU_TIMES(h, 2) {
                sums[v][k][h] =
                    (fixed_lanes)_mm512_dpbusd_epi32((__m512i)sums[v][k][h], q[h], limbs);
            }
        }
    }
    CPU_TIMES(v, count) {
        fixed_finish(unit, sums[v], (const uint8_t *)(fixed + v * group_size) + 3 * group_size,
                     y + 16 * v);
    }
}

FIXED_VNNI void tc__vnni_multiply(const tc__fixed_unit *units, size_t blocks, unsigned group_size,
                                  const float *fixed, size_t count, float *y) {
    size_t done = 0;
    for (size_t now; done < count; done += now, fixed += now * group_size) {
        now = count - done < 4 ? count - done : 4;
        for (size_t b = 0; b < blocks; b++) {
            float *to = y + 16 * (b * count + done);
            switch (now) {
            case 1: fixed_product(&units[b], group_size, fixed, 1, to); break;
            case 2: fixed_product(&units[b], group_size, fixed, 2, to); break;
            case 3: fixed_product(&units[b], group_size, fixed, 3, to); break;
            default: fixed_product(&units[b], group_size, fixed, 4, to); break;
            }
        }
    }
}
#endif /* CPU_X86 */

/* ======== src/cpu_kernels.c ======== */


#include <math.h>

/* Columns expanded at a time, a multiple of every group size: 16 rows of them stay in the nearest
 * caches. Their sums are loaded and stored once in 32 steps. */
#define CPU_TILE(lanes) (32 * (lanes))

/* Bytes that the software prefetch runs ahead in a product with one vector: in the one stream of W4
 * units, and in each of four streams of halves. */
#define CPU_AHEAD_W4 8192
#define CPU_AHEAD_HALVES 2048

/* Keeps 32 floats in memory, from where a broadcast is free: compilers like to hold them in
 * registers and spend a shuffle on each. */
#define CPU_IN_MEMORY(array) __asm__("" : "+m"(*(float(*)[32])(array)))

/* ---- the operations of a level ----
 *
 * cpu_LEVEL_f, _u and _i are vectors of LANES floats, u32 and i32; for each level
 *   load, store   unaligned
 *   set1(a)       all lanes a
 *   fma(a, b, c)  a * b + c, in one rounding where the processor has it
 *   words(p)      LANES u32 of a W4 unit
 *   nibble(v, s)  bits s .. s+3 of each u32 as a float (s must become a constant)
 *   f16, bf16     LANES halves, exact
 *   reduce        see tc__kernels
 * Macros with a level as parameter write the kernels in these operations.
 */

#define CPU_VECTORS(level, lanes)                                                                  \
    typedef float cpu_##level##_f __attribute__((vector_size(4 * (lanes))));                       \
    typedef uint32_t cpu_##level##_u __attribute__((vector_size(4 * (lanes))));                    \
    typedef int32_t cpu_##level##_i __attribute__((vector_size(4 * (lanes))));

/* Four lanes in the compiler's portable vectors: SSE2 on x86-64, NEON on AArch64. */
#define CPU_FOUR_LANES(level)                                                                      \
    CPU_VECTORS(level, 4)                                                                          \
    CPU_INLINE cpu_##level##_f cpu_##level##_load(const float *p) {                                \
        cpu_##level##_f v;                                                                         \
        memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                  \
    }                                                                                              \
    CPU_INLINE void cpu_##level##_store(float *p, cpu_##level##_f v) {                             \
        memcpy(p, &v, sizeof v);                                                                   \
    }                                                                                              \
    CPU_INLINE cpu_##level##_f cpu_##level##_set1(float a) {                                       \
        return (cpu_##level##_f){a, a, a, a};                                                      \
    }                                                                                              \
    CPU_INLINE cpu_##level##_u cpu_##level##_words(const uint8_t *p) {                             \
        cpu_##level##_u v;                                                                         \
        memcpy(&v, p, sizeof v);                                                                   \
        return v;                                                                                  \
    }                                                                                              \
    CPU_INLINE cpu_##level##_f cpu_##level##_nibble(cpu_##level##_u v, unsigned shift) {           \
        return __builtin_convertvector((cpu_##level##_i)(v >> shift & 15), cpu_##level##_f);       \
    }                                                                                              \
    CPU_INLINE cpu_##level##_u cpu_##level##_halves(const uint16_t *p) {                           \
        return (cpu_##level##_u){p[0], p[1], p[2], p[3]};                                          \
    }                                                                                              \
    CPU_INLINE cpu_##level##_f cpu_##level##_bf16(const uint16_t *p) {                             \
        return (cpu_##level##_f)(cpu_##level##_halves(p) << 16);                                   \
    }                                                                                              \
    static void cpu_##level##_reduce(const float *s, float *y) {                                   \
        for (int r = 0; r < 16; r++, s += 4) y[r] = (s[0] + s[1]) + (s[2] + s[3]);                 \
    }

CPU_FOUR_LANES(portable)
#define CPU_PORTABLE /* target attributes: none */

CPU_INLINE cpu_portable_f cpu_portable_fma(cpu_portable_f a, cpu_portable_f b, cpu_portable_f c) {
    return a * b + c;
}
/* The exponent moves from bit 10 to bit 23 and gains 127 - 15: as a product, which also normalises
 * subnormal numbers. What comes out at 65536 and above was infinity or no number. */
CPU_INLINE cpu_portable_f cpu_portable_f16(const uint16_t *p) {
    cpu_portable_u half = cpu_portable_halves(p), sign = (half & 0x8000) << 16;
    cpu_portable_f value = (cpu_portable_f)((half & 0x7fff) << 13) * 0x1p112f;
    cpu_portable_u huge = (cpu_portable_u)(value >= 65536.0f) & 0x7f800000;
    return (cpu_portable_f)((cpu_portable_u)value | huge | sign);
}

#if CPU_NEON
CPU_FOUR_LANES(neon)
#define CPU_NEON_TARGET /* none: part of the base architecture */

CPU_INLINE cpu_neon_f cpu_neon_fma(cpu_neon_f a, cpu_neon_f b, cpu_neon_f c) {
    return (cpu_neon_f)vfmaq_f32((float32x4_t)c, (float32x4_t)a, (float32x4_t)b);
}
CPU_INLINE cpu_neon_f cpu_neon_f16(const uint16_t *p) {
    return (cpu_neon_f)vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(p)));
}
#endif

#if CPU_X86
#define CPU_AVX2 __attribute__((target("avx2,fma,f16c")))
CPU_VECTORS(avx2, 8)

CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_load(const float *p) {
    return _mm256_loadu_ps(p);
}
CPU_AVX2 CPU_INLINE void cpu_avx2_store(float *p, cpu_avx2_f v) {
    _mm256_storeu_ps(p, v);
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_set1(float a) {
    return _mm256_set1_ps(a);
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_fma(cpu_avx2_f a, cpu_avx2_f b, cpu_avx2_f c) {
    return _mm256_fmadd_ps(a, b, c);
}
CPU_AVX2 CPU_INLINE cpu_avx2_u cpu_avx2_words(const uint8_t *p) {
    return (cpu_avx2_u)_mm256_loadu_si256((const __m256i *)p);
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_nibble(cpu_avx2_u v, unsigned shift) {
    return _mm256_cvtepi32_ps((__m256i)(v >> shift & 15));
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_f16(const uint16_t *p) {
    return _mm256_cvtph_ps(_mm_loadu_si128((const __m128i *)p));
}
CPU_AVX2 CPU_INLINE cpu_avx2_f cpu_avx2_bf16(const uint16_t *p) {
    __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)p));
    return (cpu_avx2_f)_mm256_slli_epi32(words, 16);
}
/* Four rows of 8 lanes: the sum of each. */
CPU_AVX2 CPU_INLINE __m128 cpu_avx2_add4(__m256 a, __m256 b, __m256 c, __m256 d) {
    __m256 v = _mm256_hadd_ps(_mm256_hadd_ps(a, b), _mm256_hadd_ps(c, d));
    return _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
}
CPU_AVX2 static void cpu_avx2_reduce(const float *s, float *y) {
    for (int r = 0; r < 16; r += 4, s += 32)
        _mm_storeu_ps(y + r, cpu_avx2_add4(_mm256_loadu_ps(s), _mm256_loadu_ps(s + 8),
                                           _mm256_loadu_ps(s + 16), _mm256_loadu_ps(s + 24)));
}

#define CPU_AVX512 __attribute__((target("avx512f,avx512dq,avx512bw,avx512vl,avx2,fma,f16c")))
CPU_VECTORS(avx512, 16)

CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_load(const float *p) {
    return _mm512_loadu_ps(p);
}
CPU_AVX512 CPU_INLINE void cpu_avx512_store(float *p, cpu_avx512_f v) {
    _mm512_storeu_ps(p, v);
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_set1(float a) {
    return _mm512_set1_ps(a);
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_fma(cpu_avx512_f a, cpu_avx512_f b, cpu_avx512_f c) {
    return _mm512_fmadd_ps(a, b, c);
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_f16(const uint16_t *p) {
    return _mm512_cvtph_ps(_mm256_loadu_si256((const __m256i *)p));
}
CPU_AVX512 CPU_INLINE cpu_avx512_f cpu_avx512_bf16(const uint16_t *p) {
    __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)p));
    return (cpu_avx512_f)_mm512_slli_epi32(words, 16);
}
/* The upper half of a row's lanes onto the lower half. */
CPU_AVX512 CPU_INLINE __m256 cpu_avx512_fold(const float *s) {
    return _mm256_add_ps(_mm256_loadu_ps(s), _mm256_loadu_ps(s + 8));
}
CPU_AVX512 static void cpu_avx512_reduce(const float *s, float *y) {
    for (int r = 0; r < 16; r += 4, s += 64)
        _mm_storeu_ps(y + r, cpu_avx2_add4(cpu_avx512_fold(s), cpu_avx512_fold(s + 16),
                                           cpu_avx512_fold(s + 32), cpu_avx512_fold(s + 48)));
}
#endif /* CPU_X86 */

/* ---- products of a tile with vectors ---- */

/* tc__kernels' multiply for COUNT vectors: sums of 4 rows x COUNT vectors in registers, so that
 * 4 * COUNT multiply-adds take 4 + COUNT loads. */
#define CPU_MULTIPLY(level, TARGET, LANES, COUNT)                                                  \
    TARGET static void cpu_##level##_multiply##COUNT(const float *tile, size_t stride, size_t n,   \
                                                     const float *x, size_t x_stride,              \
                                                     float *sums) {                                \
        for (int r = 0; r < 16; r += 4, tile += 4 * stride, sums += 4 * LANES) {                   \
            cpu_##level##_f c[COUNT][4], xs[COUNT];                                                \
            CPU_TIMES(v, COUNT) CPU_TIMES(k, 4) {                                                  \
                c[v][k] = cpu_##level##_load(sums + (16 * v + k) * LANES);                         \
            }                                                                                      \
            for (size_t i = 0; i < n; i += LANES) {                                                \
                CPU_TIMES(v, COUNT) {                                                              \
                    xs[v] = cpu_##level##_load(x + v * x_stride + i);                              \
                }                                                                                  \
                CPU_TIMES(k, 4) {                                                                  \
                    cpu_##level##_f w = cpu_##level##_load(tile + k * stride + i);                 \
                    CPU_TIMES(v, COUNT) {                                                          \
                        c[v][k] = cpu_##level##_fma(w, xs[v], c[v][k]);                            \
                    }                                                                              \
                }                                                                                  \
            }                                                                                      \
            CPU_TIMES(v, COUNT) CPU_TIMES(k, 4) {                                                  \
                cpu_##level##_store(sums + (16 * v + k) * LANES, c[v][k]);                         \
            }                                                                                      \
        }                                                                                          \
    }

/* 1 to 3 vectors at a time where there are 16 registers, 1 to 6 where there are 32. */
#define CPU_MULTIPLY_3(level, TARGET, LANES)                                                       \
    CPU_MULTIPLY(level, TARGET, LANES, 1)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 2)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 3)
#define CPU_MULTIPLIES_3(level)                                                                    \
    cpu_##level##_multiply1, cpu_##level##_multiply2, cpu_##level##_multiply3
#define CPU_MULTIPLY_6(level, TARGET, LANES)                                                       \
    CPU_MULTIPLY_3(level, TARGET, LANES)                                                           \
    CPU_MULTIPLY(level, TARGET, LANES, 4)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 5)                                                          \
    CPU_MULTIPLY(level, TARGET, LANES, 6)
#define CPU_MULTIPLIES_6(level)                                                                    \
    CPU_MULTIPLIES_3(level), cpu_##level##_multiply4, cpu_##level##_multiply5,                     \
        cpu_##level##_multiply6

CPU_MULTIPLY_3(portable, CPU_PORTABLE, 4)
#if CPU_NEON
CPU_MULTIPLY_6(neon, CPU_NEON_TARGET, 4)
#endif
#if CPU_X86
CPU_MULTIPLY_3(avx2, CPU_AVX2, 8)
CPU_MULTIPLY_6(avx512, CPU_AVX512, 16)
#endif

/* ---- 4-bit weights ----
 *
 * A unit's words lie in chunks of 64 columns with 16 places, or of 32 columns with 8 places when
 * the group size is 32. In a chunk the words of rows i and i + 8 are one run of `places` words. Of
 * word p bits 8 m .. 8 m + 3 belong to row i, the next four to row i + 8; both belong to element
 * `places * m + p` of the chunk's ordered vector.
 *
 * A weight scale * (q - zero) is computed as q * scale + (-zero * scale), without any rounding
 * error: scale has 11 bits, q and zero have 4. */

#define CPU_PLACES(group_size) ((group_size) == 32 ? 8u : 16u)

#define CPU_W4(level, TARGET, LANES)                                                               \
    /* pairs (scale, -zero * scale): of row i at 4 i, of row i + 8 at 4 i + 2 */                   \
    TARGET CPU_INLINE void cpu_##level##_scales(const uint8_t *halves, float pairs[32]) {          \
        for (int i = 0; i < 32; i += LANES)                                                        \
            cpu_##level##_store(pairs + i, cpu_##level##_f16((const uint16_t *)halves + i));       \
        for (int i = 0; i < 32; i += 2) pairs[i + 1] *= -pairs[i];                                 \
        CPU_IN_MEMORY(pairs);                                                                      \
    }                                                                                              \
    TARGET CPU_INLINE cpu_##level##_f cpu_##level##_weight(cpu_##level##_u words, unsigned shift,  \
                                                           const float *pair) {                    \
        return cpu_##level##_fma(cpu_##level##_nibble(words, shift), cpu_##level##_set1(pair[0]),  \
                                 cpu_##level##_set1(pair[1]));                                     \
    }                                                                                              \
    /* One unit to rows of ordered floats, `stride` apart. */                                      \
    TARGET static void cpu_##level##_w4_expand(const uint8_t *unit, unsigned group_size,           \
                                               float *tile, size_t stride) {                       \
        const unsigned places = CPU_PLACES(group_size);                                            \
        CPU_ALIGNED float pairs[32];                                                               \
        cpu_##level##_scales(unit + 8 * group_size, pairs);                                        \
        for (unsigned i = 0; i < 8; i++)                                                           \
            for (unsigned column = 0; column < group_size; column += 4 * places)                   \
                for (unsigned p = 0; p < places; p += LANES) {                                     \
                    cpu_##level##_u v =                                                            \
                        cpu_##level##_words(unit + 8 * column + 4 * (places * i + p));             \
                    float *low = tile + i * stride + column + p, *high = low + 8 * stride;         \
                    CPU_TIMES(m, 4) {                                                              \
                        cpu_##level##_store(low + places * m,                                      \
                                            cpu_##level##_weight(v, 8 * m, pairs + 4 * i));        \
                        cpu_##level##_store(                                                       \
                            high + places * m,                                                     \
                            cpu_##level##_weight(v, 8 * m + 4, pairs + 4 * i + 2));                \
                    }                                                                              \
                }                                                                                  \
    }                                                                                              \
    /* sums[16][LANES] of `groups` units that follow each other */                                 \
    TARGET CPU_INLINE void cpu_##level##_w4_run(const uint8_t *unit, size_t groups,                \
                                                unsigned group_size, const unsigned places,        \
                                                const float *x, float *sums) {                     \
        for (; groups; groups--, x += group_size, unit += TC__UNIT_BYTES(group_size)) {            \
            CPU_ALIGNED float pairs[32];                                                           \
            cpu_##level##_scales(unit + 8 * group_size, pairs);                                    \
            for (unsigned i = 0; i < 8; i++) {                                                     \
                cpu_##level##_f low = cpu_##level##_load(sums + i * LANES);                        \
                cpu_##level##_f high = cpu_##level##_load(sums + (i + 8) * LANES);                 \
                for (unsigned column = 0; column < group_size; column += 4 * places) {             \
                    const uint8_t *words = unit + 8 * column + 4 * places * i;                     \
                    __builtin_prefetch(words + CPU_AHEAD_W4);                                      \
                    CPU_TIMES(m, 4) CPU_TIMES(s, places / LANES) {                                 \
                        cpu_##level##_f xs =                                                       \
                            cpu_##level##_load(x + column + places * m + LANES * s);               \
                        cpu_##level##_u v = cpu_##level##_words(words + 4 * LANES * s);            \
                        low = cpu_##level##_fma(cpu_##level##_weight(v, 8 * m, pairs + 4 * i), xs, \
                                                low);                                              \
                        high = cpu_##level##_fma(                                                  \
                            cpu_##level##_weight(v, 8 * m + 4, pairs + 4 * i + 2), xs, high);      \
                    }                                                                              \
                }                                                                                  \
                cpu_##level##_store(sums + i * LANES, low);                                        \
                cpu_##level##_store(sums + (i + 8) * LANES, high);                                 \
            }                                                                                      \
        }                                                                                          \
    }                                                                                              \
    TARGET static void cpu_##level##_w4_sums(const uint8_t *unit, size_t groups,                   \
                                             unsigned group_size, const float *x, float *sums) {   \
        memset(sums, 0, 16 * LANES * sizeof *sums);                                                \
        if (group_size == 32)                                                                      \
            cpu_##level##_w4_run(unit, groups, group_size, 8, x, sums);                            \
        else                                                                                       \
            cpu_##level##_w4_run(unit, groups, group_size, 16, x, sums);                           \
    }

CPU_W4(portable, CPU_PORTABLE, 4)
#if CPU_NEON
CPU_W4(neon, CPU_NEON_TARGET, 4)
#endif
#if CPU_X86
CPU_W4(avx2, CPU_AVX2, 8)

/* AVX-512, group sizes 64 and 128: 64 bytes are rows i and i + 8 of 64 columns. A permutation looks
 * only at the low 4 bits of each index, so that one shift and one look-up in a register that holds
 * the 16 possible weights of a row and group replace mask, conversion and scaling. */

CPU_AVX512 CPU_INLINE void cpu_avx512_scales(const uint8_t *halves, float pairs[32]) {
    for (int i = 0; i < 32; i += 16) {
        __m512 v = cpu_avx512_f16((const uint16_t *)halves + i);
        __m512 minus_scale = _mm512_sub_ps(_mm512_setzero_ps(), _mm512_moveldup_ps(v));
        _mm512_storeu_ps(pairs + i, _mm512_mask_mul_ps(v, 0xaaaa, v, minus_scale));
    }
    CPU_IN_MEMORY(pairs);
}
/* The weights that q = 0..15 stand for. */
CPU_AVX512 CPU_INLINE __m512 cpu_avx512_table(const float *pair) {
    const __m512 q = _mm512_setr_ps(0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15);
    return _mm512_fmadd_ps(q, _mm512_set1_ps(pair[0]), _mm512_set1_ps(pair[1]));
}
CPU_AVX512 CPU_INLINE __m512 cpu_avx512_weight(__m512i words, unsigned shift, __m512 table) {
    return _mm512_permutexvar_ps(shift ? _mm512_srli_epi32(words, shift) : words, table);
}

CPU_AVX512 static void cpu_avx512_w4_expand(const uint8_t *unit, unsigned group_size, float *tile,
                                            size_t stride) {
    if (group_size == 32) {
        cpu_avx2_w4_expand(unit, group_size, tile, stride);
        return;
    }
    CPU_ALIGNED float pairs[32];
    cpu_avx512_scales(unit + 8 * group_size, pairs);
    for (unsigned i = 0; i < 8; i++) {
        __m512 low = cpu_avx512_table(pairs + 4 * i);
        __m512 high = cpu_avx512_table(pairs + 4 * i + 2);
        for (unsigned column = 0; column < group_size; column += 64) {
            __m512i v = _mm512_loadu_si512(unit + 8 * column + 64 * i);
            float *to = tile + i * stride + column;
            CPU_TIMES(m, 4) {
                _mm512_storeu_ps(to + 16 * m, cpu_avx512_weight(v, 8 * m, low));
                _mm512_storeu_ps(to + 8 * stride + 16 * m, cpu_avx512_weight(v, 8 * m + 4, high));
            }
        }
    }
}

CPU_AVX512 CPU_INLINE void cpu_avx512_w4_run(const uint8_t *unit, size_t groups,
                                             const unsigned chunks, const float *x, float *sums) {
    __m512 c[16];
    CPU_TIMES(r, 16) {
        c[r] = _mm512_setzero_ps();
    }
    for (; groups; groups--, x += 64 * chunks, unit += 512 * chunks + 64) {
        CPU_ALIGNED float pairs[32];
        cpu_avx512_scales(unit + 512 * chunks, pairs);
        CPU_TIMES(i, 8) {
            __m512 low = cpu_avx512_table(pairs + 4 * i);
            __m512 high = cpu_avx512_table(pairs + 4 * i + 2);
            CPU_TIMES(chunk, chunks) {
                const uint8_t *words = unit + 512 * chunk + 64 * i;
                __m512i v = _mm512_loadu_si512(words);
                __builtin_prefetch(words + CPU_AHEAD_W4);
                CPU_TIMES(m, 4) {
                    __m512 xs = _mm512_loadu_ps(x + 64 * chunk + 16 * m);
                    c[i] = _mm512_fmadd_ps(cpu_avx512_weight(v, 8 * m, low), xs, c[i]);
                    c[i + 8] = _mm512_fmadd_ps(cpu_avx512_weight(v, 8 * m + 4, high), xs, c[i + 8]);
                }
            }
        }
    }
    CPU_TIMES(r, 16) {
        _mm512_storeu_ps(sums + 16 * r, c[r]);
    }
}
CPU_AVX512 static void cpu_avx512_w4_sums(const uint8_t *unit, size_t groups, unsigned group_size,
                                          const float *x, float *sums) {
    if (group_size == 128) {
        cpu_avx512_w4_run(unit, groups, 2, x, sums);
    } else if (group_size == 64) {
        cpu_avx512_w4_run(unit, groups, 1, x, sums);
    } else { /* 64 bytes hold four rows of 32 columns: through a tile, in the same order */
        CPU_ALIGNED float tile[16 * 256];
        memset(sums, 0, 16 * 16 * sizeof *sums);
        for (size_t now; groups; groups -= now, x += 32 * now) {
            now = groups < 8 ? groups : 8;
            for (size_t i = 0; i < now; i++, unit += TC__UNIT_BYTES(32))
                cpu_avx2_w4_expand(unit, 32, tile + 32 * i, 256);
            cpu_avx512_multiply1(tile, 256, 32 * now, x, 0, sums);
        }
    }
}
#endif /* CPU_X86 */

/* ---- 16-bit weights ---- */

/* TYPE is f16 or bf16. The last, incomplete step of a row is completed with zeros. */
#define CPU_HALVES(level, TARGET, LANES, TYPE)                                                     \
    TARGET CPU_INLINE cpu_##level##_f cpu_##level##_##TYPE##_rest(const uint16_t *p, size_t n) {   \
        uint16_t rest[LANES] = {0};                                                                \
        memcpy(rest, p, n * sizeof *p);                                                            \
        return cpu_##level##_##TYPE(rest);                                                         \
    }                                                                                              \
    TARGET static void cpu_##level##_##TYPE##_expand(const uint16_t *const rows[16], size_t n,     \
                                                     float *tile, size_t stride) {                 \
        for (int r = 0; r < 16; r++, tile += stride) {                                             \
            size_t i = 0;                                                                          \
            for (; i + LANES <= n; i += LANES)                                                     \
                cpu_##level##_store(tile + i, cpu_##level##_##TYPE(rows[r] + i));                  \
            if (i < n)                                                                             \
                cpu_##level##_store(tile + i, cpu_##level##_##TYPE##_rest(rows[r] + i, n - i));    \
        }                                                                                          \
    }                                                                                              \
    /* four rows at a time: four streams, four chains */                                           \
    TARGET static void cpu_##level##_##TYPE##_sums(const uint16_t *const rows[16], size_t n,       \
                                                   const float *x, float *sums) {                  \
        for (int r = 0; r < 16; r += 4, rows += 4, sums += 4 * LANES) {                            \
            cpu_##level##_f c[4];                                                                  \
            CPU_TIMES(k, 4) {                                                                      \
                c[k] = cpu_##level##_set1(0);                                                      \
            }                                                                                      \
            size_t i = 0;                                                                          \
            for (; i + LANES <= n; i += LANES) {                                                   \
                cpu_##level##_f xs = cpu_##level##_load(x + i);                                    \
                CPU_TIMES(k, 4) {                                                                  \
                    __builtin_prefetch((const uint8_t *)(rows[k] + i) + CPU_AHEAD_HALVES);         \
                    c[k] = cpu_##level##_fma(cpu_##level##_##TYPE(rows[k] + i), xs, c[k]);         \
                }                                                                                  \
            }                                                                                      \
            CPU_TIMES(k, 4) {                                                                      \
                if (i < n)                                                                         \
                    c[k] = cpu_##level##_fma(cpu_##level##_##TYPE##_rest(rows[k] + i, n - i),      \
                                             cpu_##level##_load(x + i), c[k]);                     \
                cpu_##level##_store(sums + k * LANES, c[k]);                                       \
            }                                                                                      \
        }                                                                                          \
    }

/* ---- attention ---- */

/* WIDTH vectors of the result in registers. */
#define CPU_BLEND(level, TARGET, LANES, WIDTH)                                                     \
    TARGET CPU_INLINE void cpu_##level##_blend##WIDTH(const float *p, size_t n, const float *rows, \
                                                      size_t stride, float *out) {                 \
        cpu_##level##_f c[WIDTH];                                                                  \
        CPU_TIMES(v, WIDTH) {                                                                      \
            c[v] = cpu_##level##_load(out + v * LANES);                                            \
        }                                                                                          \
        for (size_t j = 0; j < n; j++, rows += stride) {                                           \
            cpu_##level##_f weight = cpu_##level##_set1(p[j]);                                     \
            CPU_TIMES(v, WIDTH) {                                                                  \
                c[v] = cpu_##level##_fma(weight, cpu_##level##_load(rows + v * LANES), c[v]);      \
            }                                                                                      \
        }                                                                                          \
        CPU_TIMES(v, WIDTH) {                                                                      \
            cpu_##level##_store(out + v * LANES, c[v]);                                            \
        }                                                                                          \
    }

/* exp(x) for x clamped to -87..88: x = n ln 2 + r, |r| <= ln 2 / 2; the series of exp(r), its
 * exponent raised by n. Adding 1.5 * 2^23 rounds to an integer and leaves it in the low bits. The
 * relative error is below 3e-7. */
#define CPU_ATTENTION(level, TARGET, LANES, WIDTH)                                                 \
    TARGET CPU_INLINE cpu_##level##_f cpu_##level##_exp(cpu_##level##_f x) {                       \
        static const float series[] = {1.f / 5040, 1.f / 720, 1.f / 120, 1.f / 24,                 \
                                       1.f / 6,    1.f / 2,   1,         1};                       \
        const cpu_##level##_f least = cpu_##level##_set1(-87), most = cpu_##level##_set1(88);      \
        cpu_##level##_u low = (cpu_##level##_u)(x < least), high = (cpu_##level##_u)(x > most);    \
        x = (cpu_##level##_f)((low & (cpu_##level##_u)least) | (high & (cpu_##level##_u)most) |    \
                              (~(low | high) & (cpu_##level##_u)x));                               \
        const cpu_##level##_f magic = cpu_##level##_set1(0x1.8p23f);                               \
        cpu_##level##_f t = cpu_##level##_fma(x, cpu_##level##_set1(1.44269504f), magic);          \
        cpu_##level##_f n = t - magic;                                                             \
        cpu_##level##_f r = cpu_##level##_fma(n, cpu_##level##_set1(-0x1.62e4p-1f), x);            \
        r = cpu_##level##_fma(n, cpu_##level##_set1(-0x1.7f7d1cp-20f), r);                         \
        cpu_##level##_f y = cpu_##level##_set1(series[0]);                                         \
        CPU_TIMES(i, 7) {                                                                          \
            y = cpu_##level##_fma(y, r, cpu_##level##_set1(series[i + 1]));                        \
        }                                                                                          \
        return (cpu_##level##_f)((cpu_##level##_u)y + ((cpu_##level##_u)t << 23));                 \
    }                                                                                              \
    TARGET static float cpu_##level##_exponential(float *p, size_t n, float shift) {               \
        static const int32_t numbers[] = {0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15};   \
        cpu_##level##_i left; /* of each lane: places up to n, its own included */                 \
        memcpy(&left, numbers, sizeof left);                                                       \
        left = (int32_t)n - left;                                                                  \
        cpu_##level##_f total = cpu_##level##_set1(0);                                             \
        for (size_t i = 0; i < n || i % TC__LANES_MAX; i += LANES, left -= LANES) {                \
            cpu_##level##_f x = cpu_##level##_load(p + i) - cpu_##level##_set1(shift);             \
            cpu_##level##_u y = (cpu_##level##_u)cpu_##level##_exp(x);                             \
            y &= (cpu_##level##_u)(left > 0);                                                      \
            cpu_##level##_store(p + i, (cpu_##level##_f)y);                                        \
            total += (cpu_##level##_f)y;                                                           \
        }                                                                                          \
        float sum = 0;                                                                             \
        CPU_TIMES(i, LANES) {                                                                      \
            sum += total[i];                                                                       \
        }                                                                                          \
        return sum;                                                                                \
    }                                                                                              \
    CPU_BLEND(level, TARGET, LANES, WIDTH)                                                         \
    CPU_BLEND(level, TARGET, LANES, 1)                                                             \
    TARGET static void cpu_##level##_blend(const float *p, size_t n, const float *rows,            \
                                           size_t stride, size_t width, float *out) {              \
        size_t i = 0;                                                                              \
        for (; i + WIDTH * LANES <= width; i += WIDTH * LANES)                                     \
            cpu_##level##_blend##WIDTH(p, n, rows + i, stride, out + i);                           \
        for (; i < width; i += LANES) cpu_##level##_blend1(p, n, rows + i, stride, out + i);       \
    }

/* ---- the sets ---- */

/* MOST: of CPU_MULTIPLY_MOST; WIDTH: of CPU_BLEND; SINGLE: see tc__kernels; FIX and the rest: the
 * kernels of fixed point or NULLs. */
#define CPU_KERNELS(level, LANES, MOST, SINGLE, FIX, UNPACK, MULTIPLY)                             \
    LANES, SINGLE, MOST, cpu_##level##_w4_sums, {cpu_##level##_f16_sums, cpu_##level##_bf16_sums}, \
        cpu_##level##_w4_expand, {cpu_##level##_f16_expand, cpu_##level##_bf16_expand},            \
        {CPU_MULTIPLIES_##MOST(level)}, cpu_##level##_reduce, cpu_##level##_exponential,           \
        cpu_##level##_blend, FIX, UNPACK, MULTIPLY
#define CPU_SET(level, NAME, TARGET, LANES, MOST, WIDTH, SINGLE)                                   \
    CPU_HALVES(level, TARGET, LANES, f16)                                                          \
    CPU_HALVES(level, TARGET, LANES, bf16)                                                         \
    CPU_ATTENTION(level, TARGET, LANES, WIDTH)                                                     \
    static const tc__kernels cpu_##level = {                                                       \
        NAME, #level, CPU_KERNELS(level, LANES, MOST, SINGLE, NULL, NULL, NULL)};

CPU_SET(portable, "portable", CPU_PORTABLE, 4, 3, 4, 1)
#if CPU_NEON
CPU_SET(neon, "NEON", CPU_NEON_TARGET, 4, 6, 8, 1)
#endif
#if CPU_X86
CPU_SET(avx2, "AVX2", CPU_AVX2, 8, 3, 8, 1)
CPU_SET(avx512, "AVX-512", CPU_AVX512, 16, 6, 8, 3)
static const tc__kernels cpu_vnni = {
    "AVX-512 VNNI", "avx512vnni",
    CPU_KERNELS(avx512, 16, 6, 3, tc__vnni_fix, tc__vnni_unpack, tc__vnni_multiply)};
#endif

/* Whether this processor and its operating system have what the set needs. */
static bool cpu_has(const tc__kernels *kernels) {
#if CPU_X86
    unsigned a, b, c, d;
    if (kernels == &cpu_portable) return true;
    if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
        !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
        return false;
    if (kernels == &cpu_avx2) return true;
    if (!__builtin_cpu_supports("avx512f") || !__builtin_cpu_supports("avx512dq") ||
        !__builtin_cpu_supports("avx512bw") || !__builtin_cpu_supports("avx512vl"))
        return false;
    return kernels == &cpu_avx512 || __builtin_cpu_supports("avx512vnni");
#else
    (void)kernels;
    return true;
#endif
}

int tc__kernels_choose(const char *level, const tc__kernels **kernels, tc_error *err) {
    static const tc__kernels *const sets[] = {
#if CPU_X86
        &cpu_vnni,
        &cpu_avx512,
        &cpu_avx2,
#endif
#if CPU_NEON
        &cpu_neon,
#endif
        &cpu_portable
    }; /* the best first */
    char have[64] = "";
    for (size_t i = 0; i < TC_COUNT(sets); i++) {
        if (!cpu_has(sets[i])) continue;
        if (!level || strcmp(level, sets[i]->level) == 0) {
            *kernels = sets[i];
            return TC_OK;
        }
        size_t len = strlen(have);
        snprintf(have + len, sizeof have - len, "%s%s", len ? ", " : "", sets[i]->level);
    }
    return tc__fail(err, TC_ERR_DEVICE,
                    "TINYCHAT_CPU: no kernels '%s' for this processor; there are: %s", level, have);
}

/* ---- whole products in floats ---- */

tc__order tc__order_of(const tc__tensor *matrix) {
    if (matrix->type != TC__W4) return TC__ORDER_PLAIN;
    return matrix->group_size == 32 ? TC__ORDER_W4_32 : TC__ORDER_W4_64;
}

/* Where a block's columns from `column` on begin in a W4 matrix. */
static const uint8_t *cpu_unit(const tc__tensor *matrix, size_t block, size_t column) {
    size_t unit = (block * matrix->columns + column) / matrix->group_size;
    return matrix->data + unit * TC__UNIT_BYTES(matrix->group_size);
}

/* The same for a 16-bit matrix's 16 rows; those beyond the last repeat it. */
static void cpu_rows(const tc__tensor *matrix, size_t block, size_t column,
                     const uint16_t *rows[16]) {
    const uint16_t *data = (const uint16_t *)matrix->data + column;
    for (size_t r = 0; r < TC__BLOCK; r++) {
        size_t row = TC__BLOCK * block + r;
        rows[r] = data + (row < matrix->rows ? row : matrix->rows - 1) * matrix->columns;
    }
}

/* y[16] = a block's rows times one vector. Reads each weight once, in the file's order. */
static void cpu_product(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                        const float *x, float *y) {
    CPU_ALIGNED float sums[TC__BLOCK * TC__LANES_MAX];
    if (matrix->type == TC__W4) {
        kernels->w4_sums(cpu_unit(matrix, block, 0), matrix->columns / matrix->group_size,
                         matrix->group_size, x, sums);
    } else {
        const uint16_t *rows[TC__BLOCK];
        cpu_rows(matrix, block, 0, rows);
        kernels->half_sums[matrix->type == TC__BF16](rows, matrix->columns, x, sums);
    }
    kernels->reduce(sums, y);
}

/* A block's columns column .. column + n - 1 to rows of ordered floats, `stride` apart. `column` is
 * a multiple of the group size. */
static void cpu_expand(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                       size_t column, size_t n, float *tile, size_t stride) {
    if (matrix->type == TC__W4) {
        const uint8_t *unit = cpu_unit(matrix, block, column);
        for (size_t i = 0; i < n; i += matrix->group_size) {
            kernels->w4_expand(unit, matrix->group_size, tile + i, stride);
            unit += TC__UNIT_BYTES(matrix->group_size);
        }
    } else {
        const uint16_t *rows[TC__BLOCK];
        cpu_rows(matrix, block, column, rows);
        kernels->half_expand[matrix->type == TC__BF16](rows, n, tile, stride);
    }
}

void tc__multiply_tile(const tc__kernels *kernels, const float *tile, size_t stride, size_t n,
                       const float *x, size_t x_stride, size_t count, float *sums) {
    /* as few calls as possible, of about equal size */
    for (size_t calls = (count + kernels->most - 1) / kernels->most; calls; calls--) {
        size_t now = (count + calls - 1) / calls;
        kernels->multiply[now - 1](tile, stride, n, x, x_stride, sums);
        count -= now;
        x += now * x_stride;
        sums += now * TC__BLOCK * kernels->lanes;
    }
}

/* Asks for bytes that are read soon, before the stream of reads pauses for some microseconds. */
static void cpu_fetch(const uint8_t *bytes, size_t n) {
    for (size_t i = 0; i < n; i += 64) __builtin_prefetch(bytes + i, 0, 2);
}

/* Products of a block with several vectors: a piece of the weights is expanded to floats in the
 * first level cache and then multiplied with all vectors. */
static void cpu_products(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                         const float *x, size_t x_stride, size_t count, float *scratch) {
    const size_t lanes = kernels->lanes, columns = matrix->columns, width = CPU_TILE(lanes);
    float *sums = scratch, *tile = scratch + count * TC__BLOCK * lanes;
    memset(sums, 0, count * TC__BLOCK * lanes * sizeof *sums);
    for (size_t column = 0; column < columns; column += width) {
        size_t n = columns - column < width ? columns - column : width;
        cpu_expand(kernels, matrix, block, column, n, tile, width);
        if (matrix->type == TC__W4) cpu_fetch(cpu_unit(matrix, block, column + n), n * 17 / 2);
        tc__multiply_tile(kernels, tile, width, (n + lanes - 1) / lanes * lanes, x + column,
                          x_stride, count, sums);
    }
}

static void cpu_float_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                           size_t end, const float *x, size_t x_stride, size_t count,
                           float *scratch, tc__rows_fn take, void *user) {
    const bool together = count > kernels->single;
    float y[TC__BLOCK];
    for (size_t block = begin; block < end; block++) {
        size_t row = TC__BLOCK * block, rows = matrix->rows - row;
        if (rows > TC__BLOCK) rows = TC__BLOCK;
        if (together) cpu_products(kernels, matrix, block, x, x_stride, count, scratch);
        for (size_t v = 0; v < count; v++) {
            if (together)
                kernels->reduce(scratch + v * TC__BLOCK * kernels->lanes, y);
            else
                cpu_product(kernels, matrix, block, x + v * x_stride, y);
            take(user, v, row, rows, y);
        }
    }
}

/* ---- whole products in fixed point ---- */

void tc__fix(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin, size_t end,
             const float *x, size_t x_stride, size_t count, float *fixed) {
    const unsigned group_size = matrix->group_size;
    for (size_t i = begin; i < end; i++)
        kernels->fix(x + i % count * x_stride + i / count * group_size, group_size,
                     fixed + i * group_size);
}

/* y[blocks][count][16] of up to TC__FIXED_BLOCKS row blocks, unit by unit: the weights of a unit
 * become bytes in the first level cache and are then multiplied with all vectors. */
static void cpu_fixed_products(const tc__kernels *kernels, const tc__tensor *matrix, size_t block,
                               size_t blocks, const float *fixed, size_t count, float *y) {
    CPU_ALIGNED tc__fixed_unit units[TC__FIXED_BLOCKS];
    const unsigned group_size = matrix->group_size;
    const size_t bytes = TC__UNIT_BYTES(group_size), ahead = blocks == 1 ? CPU_AHEAD_W4 : bytes;
    memset(y, 0, blocks * count * TC__BLOCK * sizeof *y);
    for (size_t column = 0; column < matrix->columns; column += group_size) {
        for (size_t b = 0; b < blocks; b++) {
            const uint8_t *unit = cpu_unit(matrix, block + b, column);
            cpu_fetch(unit + ahead, bytes);
            kernels->unpack(unit, group_size, &units[b]);
        }
        kernels->multiply_fixed(units, blocks, group_size, fixed + column * count, count, y);
    }
}

static void cpu_fixed_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                           size_t end, const float *fixed, size_t count, float *scratch,
                           tc__rows_fn take, void *user) {
    const size_t most = count < 4 ? 1 : TC__FIXED_BLOCKS; /* few vectors: the file's order */
    for (size_t block = begin, now; block < end; block += now) {
        now = end - block < most ? end - block : most;
        cpu_fixed_products(kernels, matrix, block, now, fixed, count, scratch);
        const float *sums = scratch;
        for (size_t row = TC__BLOCK * block; row < TC__BLOCK * (block + now); row += TC__BLOCK) {
            size_t rows = matrix->rows - row < TC__BLOCK ? matrix->rows - row : TC__BLOCK;
            for (size_t v = 0; v < count; v++, sums += TC__BLOCK) {
                float y[TC__BLOCK];
                for (size_t r = 0; r < TC__BLOCK; r++) y[r] = sums[TC__FIXED_ROW(r)];
                take(user, v, row, rows, y);
            }
        }
    }
}

/* ---- whole products of either kind ---- */

/* A tile and sums; in fixed point fewer sums and no tile. */
size_t tc__multiply_scratch(size_t count) {
    return TC__BLOCK * (CPU_TILE(TC__LANES_MAX) + count * TC__LANES_MAX);
}

void tc__multiply_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                       size_t end, const float *x, size_t x_stride, size_t count, float *scratch,
                       tc__rows_fn take, void *user) {
    if (tc__fixes(kernels, matrix))
        cpu_fixed_rows(kernels, matrix, begin, end, x, count, scratch, take, user);
    else
        cpu_float_rows(kernels, matrix, begin, end, x, x_stride, count, scratch, take, user);
}

/* ======== src/cpu.c ======== */


#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

/* The CPU backend. Weights are used where they lie, in the mapped file. All workers of a session's
 * team run the same forward pass and share out the items of each step (row blocks, positions,
 * heads); a barrier ends the step. No number depends on who computes it or on what is computed
 * beside it, so results are bit-equal for any number of threads and any cut of the ids into calls.
 *
 * Activations, sums and the KV cache are fp32 (inside a product with 4-bit weights also fixed point
 * of that precision, see cpu_fixed.h); angles and the means of norms are double.
 * (With keys and values rounded to binary16 the small models of tests/data miss the accuracy of
 * 1e-3 that the tests ask for: 2.7e-3 instead of 1e-5.) */

#define CPU_BATCH 64   /* positions that go through a layer together */
#define CPU_PIECE 8    /* positions whose logits are computed together */
#define CPU_SPAN 32    /* positions of the KV cache that attention takes together */
#define CPU_QUERIES 24 /* queries that do so together */

struct tc__device {
    const tc__weights *weights;
    const tc__kernels *kernels;
    int threads;
    char name[64];
};

/* Vectors of floats, `stride` apart. */
typedef struct cpu_vectors {
    float *data;
    size_t stride;
} cpu_vectors;

struct tc__cache {
    const tc__device *device;
    tc__team *team;
    /* The KV cache: [layers][kv_heads][ctx_size][head_stride], heads padded with zeros. */
    float *keys, *values;
    size_t ctx_size, head_stride;
    void *kv_memory, *workspace;
    cpu_vectors h;       /* [CPU_BATCH][hidden] the residual stream */
    cpu_vectors x;       /* [CPU_BATCH][hidden] normalised, in the order of the next matrix */
    cpu_vectors qkv;     /* [CPU_BATCH][(heads + 2 kv_heads) head_dim] */
    cpu_vectors mixed;   /* [CPU_BATCH][heads head_dim] out of attention, in o's order */
    cpu_vectors inner;   /* [CPU_BATCH][intermediate] the MLP's activations, in down's order */
    cpu_vectors logits;  /* [CPU_PIECE][vocab_size] */
    cpu_vectors angles;  /* [CPU_BATCH][head_dim] RoPE: cosines, then sines, of each position */
    cpu_vectors scratch; /* [threads] */
    float *fixed;        /* [CPU_BATCH][widest of x, mixed, inner], see tc__fix */
    float *queries;      /* [kv_heads][positions][heads / kv_heads][head_stride], scaled */
    tc__candidate *candidates;
    uint8_t *seen;
    const float *last; /* the logits of the last position evaluated */
};

/* ---- memory ---- */

static size_t cpu_padded(size_t n) {
    return (n + TC__LANES_MAX - 1) / TC__LANES_MAX * TC__LANES_MAX;
}

/* Floats that attention needs: see cpu_attend_queries. */
static size_t cpu_attention_scratch(size_t head_stride) {
    return CPU_QUERIES * (TC__BLOCK * TC__LANES_MAX + CPU_SPAN + head_stride + TC__LANES_MAX);
}

/* The next `bytes` of a block of memory; with memory == NULL only counts. */
static void *cpu_place(unsigned char *memory, size_t *used, size_t bytes) {
    void *place = memory ? memory + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return place;
}

static void cpu_place_vectors(unsigned char *memory, size_t *used, size_t count, size_t width,
                              cpu_vectors *vectors) {
    vectors->stride = cpu_padded(width) + TC__SKEW;
    vectors->data = cpu_place(memory, used, count * vectors->stride * sizeof(float));
}

/* Cuts the workspace (zeroed, or NULL) into its parts; returns the bytes it needs. */
static size_t cpu_lay_out(const tc__device *device, tc__cache *cache, unsigned char *memory) {
    const tc__arch *arch = &device->weights->arch;
    const size_t heads = (size_t)arch->heads * arch->head_dim, hidden = arch->hidden_size;
    size_t used = 0;
    cache->head_stride = cpu_padded(arch->head_dim);
    cpu_place_vectors(memory, &used, CPU_BATCH, hidden, &cache->h);
    cpu_place_vectors(memory, &used, CPU_BATCH, hidden, &cache->x);
    cpu_place_vectors(memory, &used, CPU_BATCH, heads + 2 * (size_t)arch->kv_heads * arch->head_dim,
                      &cache->qkv);
    cpu_place_vectors(memory, &used, CPU_BATCH, heads, &cache->mixed);
    cpu_place_vectors(memory, &used, CPU_BATCH, arch->intermediate_size, &cache->inner);
    cpu_place_vectors(memory, &used, CPU_PIECE, arch->vocab_size, &cache->logits);
    cpu_place_vectors(memory, &used, CPU_BATCH, arch->head_dim, &cache->angles);
    size_t scratch = tc__multiply_scratch(CPU_BATCH);
    if (scratch < cpu_attention_scratch(cache->head_stride))
        scratch = cpu_attention_scratch(cache->head_stride);
    cpu_place_vectors(memory, &used, (size_t)device->threads, scratch, &cache->scratch);
    size_t widest = hidden > heads ? hidden : heads;
    if (widest < arch->intermediate_size) widest = arch->intermediate_size;
    if (!device->kernels->fix) widest = 0;
    cache->fixed = cpu_place(memory, &used, CPU_BATCH * widest * sizeof(float));
    cache->queries =
        cpu_place(memory, &used, CPU_BATCH * arch->heads * cache->head_stride * sizeof(float));
    cache->candidates = cpu_place(memory, &used, arch->vocab_size * sizeof(tc__candidate));
    cache->seen = cpu_place(memory, &used, arch->vocab_size);
    return used;
}

static size_t cpu_kv_bytes_per_token(const tc__device *device) {
    const tc__arch *arch = &device->weights->arch;
    return 2 * (size_t)arch->layers * arch->kv_heads * cpu_padded(arch->head_dim) * sizeof(float);
}

/* Products with keys go in blocks of 16 positions: behind the last one there must be memory. The
 * keys begin at a multiple of 64. */
static size_t cpu_kv_slack(const tc__device *device) {
    return (TC__BLOCK - 1) * cpu_padded(device->weights->arch.head_dim) * sizeof(float) + 64;
}

static size_t cpu_workspace_bytes(const tc__device *device, int ctx_size) {
    tc__cache cache;
    (void)ctx_size;
    return cpu_lay_out(device, &cache, NULL) + cpu_kv_slack(device) + sizeof cache;
}

/* What the system could give, less the weights if they are pages of a file: they are to stay in
 * memory too, and the system counts them as available. */
static size_t cpu_free_bytes(const tc__device *device) {
    size_t bytes = tc__available_memory();
    size_t weights = device->weights->in_file ? device->weights->tensor_bytes : 0;
    return bytes > weights ? bytes - weights : 0;
}

/* ---- opening and closing ---- */

/* Asks the system to read a tensor's pages ahead of their first use; a hint, so errors do not
 * matter. */
static void cpu_read_ahead(const tc__tensor *tensor, size_t page) {
    uintptr_t begin = (uintptr_t)tensor->data / page * page;
    posix_madvise((void *)begin, (uintptr_t)tensor->data + tensor->size - begin,
                  POSIX_MADV_WILLNEED);
}

static void cpu_close(tc__device *device) {
    free(device);
}

static int cpu_open(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                    tc_error *err) {
    const tc__kernels *kernels = NULL;
    *device = NULL;
    if (params->threads < 0 || params->threads > TC__THREADS_MAX)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "threads is %d; expected 1 to %d, or 0 for all processors", params->threads,
                        TC__THREADS_MAX);
    if (weights->head_in_8)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "only a GPU takes an 8-bit head; leave it out, or use --device cuda");
    const char *level = getenv("TINYCHAT_CPU");
    int code = tc__kernels_choose(level && *level ? level : NULL, &kernels, err);
    if (code) return code;
    tc__device *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a device", sizeof *made);
    made->weights = weights;
    made->kernels = kernels;
    made->threads = params->threads ? params->threads : tc__processors();
    snprintf(made->name, sizeof made->name, "CPU (%s, %d thread%s)", kernels->name, made->threads,
             made->threads == 1 ? "" : "s");
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < weights->arch.layers; i++) {
        cpu_read_ahead(weights->layers[i].qkv, page);
        cpu_read_ahead(weights->layers[i].o, page);
        cpu_read_ahead(weights->layers[i].gate_up, page);
        cpu_read_ahead(weights->layers[i].down, page);
    }
    cpu_read_ahead(weights->head, page);
    *device = made;
    return tc__ok(err);
}

static const char *cpu_name(const tc__device *device) {
    return device->name;
}

static const char *cpu_details(const tc__device *device) {
    (void)device;
    return "";
}

static void cpu_cache_close(tc__cache *cache) {
    if (!cache) return;
    tc__team_close(cache->team);
    tc__free_aligned(cache->workspace);
    free(cache->kv_memory);
    free(cache);
}

static int cpu_cache_open(tc__device *device, int ctx_size, tc__cache **cache, tc_error *err) {
    *cache = NULL;
    tc__cache *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a session", sizeof *made);
    made->device = device;
    made->ctx_size = (size_t)ctx_size;
    size_t bytes = cpu_lay_out(device, made, NULL), kv_bytes = 0;
    made->workspace = tc__alloc_aligned(bytes);
    if (!made->workspace) {
        cpu_cache_close(made);
        return tc__fail_memory(err, "a session's workspace", bytes);
    }
    cpu_lay_out(device, made, made->workspace);
    /* From calloc, so that the system provides pages when they are first used. */
    if (tc__mul(made->ctx_size, cpu_kv_bytes_per_token(device), &kv_bytes) &&
        tc__add(kv_bytes, cpu_kv_slack(device), &bytes))
        made->kv_memory = tc__calloc(1, bytes);
    if (!made->kv_memory) {
        cpu_cache_close(made);
        return tc__fail_memory(err, "the KV cache", bytes);
    }
    made->keys = (float *)(((uintptr_t)made->kv_memory + 63) / 64 * 64);
    made->values = made->keys + kv_bytes / 2 / sizeof(float);
    int code = tc__team_open(device->threads, &made->team, err);
    if (code) {
        cpu_cache_close(made);
        return code;
    }
    *cache = made;
    return tc__ok(err);
}

/* ---- the forward pass: what all workers run ---- */

typedef struct cpu_task {
    tc__cache *cache;
    const int32_t *ids;
    size_t n, pos; /* all of this call */
    tc__logits_fn each;
    void *user;
    const tc__flag *cancel;
    int code;     /* only worker 0 writes it */
    bool stop[2]; /* of even and odd steps, see cpu_step */
} cpu_task;

typedef struct cpu_worker {
    cpu_task *task;
    tc__cache *cache;
    const tc__kernels *kernels;
    const tc__arch *arch;
    int index, size;
    unsigned steps;
    float *scratch;
    size_t pos, count; /* of the current batch */
} cpu_worker;

/* Ends a step; false if all are to stop. Worker 0 decides: its verdict is written before the
 * barrier and read after it, into alternating places, as it may already be at the next barrier when
 * a slow worker reads. */
static bool cpu_step(cpu_worker *worker) {
    cpu_task *task = worker->task;
    bool *stop = &task->stop[worker->steps++ % 2];
    if (worker->index == 0) {
        if (tc__flag_get(task->cancel)) task->code = TC_ERR_CANCELLED;
        *stop = task->code != TC_OK;
    }
    tc__team_barrier(worker->cache->team);
    return !*stop;
}

/* This worker's share of a step's items. */
static void cpu_share(const cpu_worker *worker, size_t items, size_t *begin, size_t *end) {
    tc__share(items, worker->index, worker->size, begin, end);
}

/* Cosines and sines of RoPE's angles at a position. */
static void cpu_set_angles(const tc__arch *arch, size_t position, float *angles) {
    const size_t half = arch->head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        double angle = (double)position * arch->frequencies[i];
        angles[i] = (float)(cos(angle) * (double)arch->rope_scale);
        angles[half + i] = (float)(sin(angle) * (double)arch->rope_scale);
    }
}

/* h = the ids' rows of the embedding; the angles of their positions. */
static bool cpu_embed(cpu_worker *worker, const int32_t *ids) {
    const tc__tensor *embed = worker->cache->device->weights->embed;
    const size_t hidden = worker->arch->hidden_size;
    const bool rope = worker->arch->position == TC__POSITION_ROPE;
    size_t p, end;
    for (cpu_share(worker, worker->count, &p, &end); p < end; p++) {
        const uint16_t *row = (const uint16_t *)embed->data + (size_t)ids[p] * hidden;
        float *h = worker->cache->h.data + p * worker->cache->h.stride;
        for (size_t i = 0; i < hidden; i++)
            h[i] = embed->type == TC__F16 ? tc__f16_to_f32(row[i]) : tc__bf16_to_f32(row[i]);
        float *angles = worker->cache->angles.data + p * worker->cache->angles.stride;
        if (rope) cpu_set_angles(worker->arch, worker->pos + p, angles);
    }
    return cpu_step(worker);
}

/* The mean of (h - center)^power, power 1 or 2. */
static double cpu_mean(const float *h, size_t n, double center, int power) {
    double sums[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++) {
            double v = (double)h[i + k] - center;
            sums[k] += power == 2 ? v * v : v;
        }
    for (; i < n; i++) {
        double v = (double)h[i] - center;
        sums[0] += power == 2 ? v * v : v;
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (double)n;
}

/* RMSNorm, or LayerNorm, which takes the mean away first; in the order that a matrix wants:
 *
 *     x = (h - mean) / sqrt(mean((h - mean)^2) + eps) * gain + bias
 */
static void cpu_norm(uint32_t kind, const float *h, const tc__tensor *gains,
                     const tc__tensor *biases, float eps, tc__order order, float *x) {
    const size_t n = gains->rows;
    const float *gain = (const float *)gains->data;
    const float *bias = biases ? (const float *)biases->data : NULL;
    const double mean = kind == TC__NORM_LAYER ? cpu_mean(h, n, 0, 1) : 0;
    const float scale = (float)(1 / sqrt(cpu_mean(h, n, mean, 2) + (double)eps));
    for (size_t i = 0; i < n; i += 4) {
        float v[4] = {0};
        const size_t end = n - i < 4 ? n - i : 4;
        for (size_t k = 0; k < end; k++) {
            v[k] = (float)((double)h[i + k] - mean) * scale * gain[i + k];
            if (bias) v[k] += bias[i + k];
        }
        tc__put4(order, x, i, v);
    }
}

/* x[0 .. count-1] = the normed h[first ..], for `matrix`. */
static bool cpu_normalise(cpu_worker *worker, const tc__tensor *gains, const tc__tensor *biases,
                          const tc__tensor *matrix, size_t first, size_t count) {
    const tc__cache *cache = worker->cache;
    size_t p, end;
    for (cpu_share(worker, count, &p, &end); p < end; p++)
        cpu_norm(worker->arch->norm, cache->h.data + (first + p) * cache->h.stride, gains, biases,
                 worker->arch->norm_eps, tc__order_of(matrix), cache->x.data + p * cache->x.stride);
    return cpu_step(worker);
}

/* The products of a matrix with `count` vectors, this worker's row blocks. */
static bool cpu_multiply_by(cpu_worker *worker, const tc__tensor *matrix, const cpu_vectors *x,
                            size_t count, tc__rows_fn take, void *user) {
    const bool fixes = tc__fixes(worker->kernels, matrix);
    float *fixed = worker->cache->fixed;
    size_t begin, end;
    if (fixes) {
        cpu_share(worker, matrix->columns / matrix->group_size * count, &begin, &end);
        tc__fix(worker->kernels, matrix, begin, end, x->data, x->stride, count, fixed);
        if (!cpu_step(worker)) return false;
    }
    cpu_share(worker, (matrix->rows + TC__BLOCK - 1) / TC__BLOCK, &begin, &end);
    tc__multiply_rows(worker->kernels, matrix, begin, end, fixes ? fixed : x->data, x->stride,
                      count, worker->scratch, take, user);
    return cpu_step(worker);
}

/* Where products go, and what is done to them on the way. */
typedef struct cpu_target {
    const cpu_vectors *to;
    const tc__tensor *bias; /* NULL: none */
    float clip;             /* 0: none */
} cpu_target;

static void cpu_store(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_target *target = user;
    const float *bias = target->bias ? (const float *)target->bias->data + row : NULL;
    const float clip = target->clip;
    float *to = target->to->data + vector * target->to->stride + row;
    for (size_t i = 0; i < rows; i++) {
        float v = bias ? y[i] + bias[i] : y[i];
        to[i] = clip > 0 ? (v < -clip ? -clip : v > clip ? clip : v) : v;
    }
}

static void cpu_add(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_vectors *to = user;
    float *sum = to->data + vector * to->stride + row;
    for (size_t i = 0; i < rows; i++) sum[i] += y[i];
}

typedef struct cpu_mlp {
    const tc__kernels *kernels;
    const tc__arch *arch;
    const cpu_vectors *to;
    const tc__tensor *act_scales; /* NULL: none */
    tc__order order;              /* of down */
} cpu_mlp;

/* silu(v) = v / (1 + exp(-v)), for n <= TC__LANES_MAX elements. */
static void cpu_silu(const tc__kernels *kernels, float *v, size_t n) {
    float e[TC__LANES_MAX] = {0};
    for (size_t i = 0; i < n; i++) e[i] = -v[i];
    kernels->exponential(e, n, 0);
    for (size_t i = 0; i < n; i++) v[i] /= 1 + e[i];
}

/* gelu(v) = v / 2 (1 + erf(v / sqrt(2))) = max(v, 0) - |v| / 2 erfc(|v| / sqrt(2)), where erfc(x)
 * is exp(-x^2) times a polynomial in t = 1 / (1 + 0.3275911 x) (Abramowitz and Stegun, 7.1.26: the
 * error is below 1.5e-7); n <= TC__LANES_MAX. */
static void cpu_gelu(const tc__kernels *kernels, float *v, size_t n) {
    float e[TC__LANES_MAX] = {0};
    for (size_t i = 0; i < n; i++) e[i] = -0.5f * v[i] * v[i];
    kernels->exponential(e, n, 0);
    for (size_t i = 0; i < n; i++) {
        const float size = fabsf(v[i]), t = 1 / (1 + 0.23164189f * size);
        const float p = (1.061405429f * t - 1.453152027f) * t + 1.421413741f;
        const float tail = ((p * t - 0.284496736f) * t + 0.254829592f) * t * e[i];
        v[i] = (v[i] > 0 ? v[i] : 0) - 0.5f * size * tail;
    }
}

/* The inner activations: act(up), or act(gate) * up out of blocks of 8 rows of gate and the same 8
 * of up; divided by act_scales. Rows come in eights. */
static void cpu_take_inner(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_mlp *mlp = user;
    const bool gated = mlp->arch->gated;
    const size_t n = gated ? rows / 2 : rows, first = gated ? row / 2 : row;
    float v[TC__BLOCK];
    memcpy(v, y, n * sizeof *v);
    if (mlp->arch->activation == TC__ACT_GELU)
        cpu_gelu(mlp->kernels, v, n);
    else
        cpu_silu(mlp->kernels, v, n);
    for (size_t i = 0; gated && i < n; i++) v[i] *= y[n + i];
    if (mlp->act_scales) {
        const float *scales = (const float *)mlp->act_scales->data + first;
        for (size_t i = 0; i < n; i++) v[i] /= scales[i];
    }
    float *x = mlp->to->data + vector * mlp->to->stride;
    for (size_t i = 0; i < n; i += 4) tc__put4(mlp->order, x, first + i, v + i);
}

/* RoPE, rotate-half: element i turns with element i + half. */
static void cpu_turn(const float *from, const float *angles, size_t half, float scale, float *to) {
    for (size_t i = 0; i < half; i++) {
        float c = angles[i] * scale, s = angles[half + i] * scale;
        to[i] = from[i] * c - from[half + i] * s;
        to[half + i] = from[i] * s + from[half + i] * c;
    }
}

/* One query or key: its norm, if it has one, and its position, if that is a turn. */
static void cpu_place_head(const cpu_worker *worker, const float *from, const tc__tensor *norm,
                           const float *angles, float scale, float *to) {
    const size_t head_dim = worker->arch->head_dim;
    if (norm) {
        cpu_norm(TC__NORM_RMS, from, norm, NULL, worker->arch->norm_eps, TC__ORDER_PLAIN,
                 worker->scratch);
        from = worker->scratch;
    }
    if (worker->arch->position == TC__POSITION_ROPE)
        cpu_turn(from, angles, head_dim / 2, scale, to);
    else
        for (size_t i = 0; i < head_dim; i++) to[i] = from[i] * scale;
}

static float *cpu_kv_row(const cpu_worker *worker, float *base, size_t layer, size_t kv_head,
                         size_t position) {
    const tc__cache *cache = worker->cache;
    size_t head = layer * worker->arch->kv_heads + kv_head;
    return base + (head * cache->ctx_size + position) * cache->head_stride;
}

/* From qkv: queries, scaled by 1 / sqrt(head_dim); keys and values into the cache. */
static bool cpu_place_heads(cpu_worker *worker, size_t layer) {
    const tc__cache *cache = worker->cache;
    const tc__layer *tensors = &cache->device->weights->layers[layer];
    const size_t heads = worker->arch->heads, kv_heads = worker->arch->kv_heads;
    const size_t head_dim = worker->arch->head_dim, group = heads / kv_heads;
    const size_t parts = heads + 2 * kv_heads;
    const float scale = (float)(1 / sqrt((double)head_dim));
    size_t item, end;
    for (cpu_share(worker, worker->count * parts, &item, &end); item < end; item++) {
        size_t p = item / parts, part = item % parts;
        const float *from = cache->qkv.data + p * cache->qkv.stride + part * head_dim;
        const float *angles = cache->angles.data + p * cache->angles.stride;
        if (part < heads) {
            size_t query = (part / group * worker->count + p) * group + part % group;
            cpu_place_head(worker, from, tensors->q_norm, angles, scale,
                           cache->queries + query * cache->head_stride);
        } else if (part < heads + kv_heads) {
            cpu_place_head(worker, from, tensors->k_norm, angles, 1,
                           cpu_kv_row(worker, cache->keys, layer, part - heads, worker->pos + p));
        } else {
            memcpy(
                cpu_kv_row(worker, cache->values, layer, part - heads - kv_heads, worker->pos + p),
                from, head_dim * sizeof *from);
        }
    }
    return cpu_step(worker);
}

/* ALiBi: the scores of the keys that lie `distance`, distance - 1, ... before the query. */
static void cpu_penalise(float *scores, size_t n, float slope, size_t distance) {
    for (size_t j = 0; j < n; j++) scores[j] -= slope * (float)(distance - j);
}

/* Softmax goes on: `n` more scores and their values, given the largest score and the total weight
 * so far. `out` is the weighted sum of the values, not yet divided by the total. */
static void cpu_absorb(const tc__kernels *kernels, float *scores, size_t n, const float *values,
                       size_t stride, float *largest, float *total, float *out) {
    float top = *largest;
    for (size_t j = 0; j < n; j++)
        if (scores[j] > top) top = scores[j];
    if (top > *largest) {
        float shrink = expf(*largest - top);
        for (size_t i = 0; i < stride; i++) out[i] *= shrink;
        *total *= shrink;
        *largest = top;
    }
    *total += kernels->exponential(scores, n, top);
    kernels->blend(scores, n, values, stride, stride, out);
}

/* Attention of queries first .. first + count - 1 of a KV head (positions and the heads of its
 * group, the latter varying faster), position by position of the cache in spans that begin at
 * multiples of CPU_SPAN whatever the batch is. */
static void cpu_attend_queries(cpu_worker *worker, size_t layer, size_t kv_head, size_t first,
                               size_t count, tc__order order) {
    const tc__cache *cache = worker->cache;
    const tc__kernels *kernels = worker->kernels;
    const tc__arch *arch = worker->arch;
    const size_t group = arch->heads / arch->kv_heads, lanes = kernels->lanes;
    const size_t head_dim = arch->head_dim, stride = cache->head_stride;
    const size_t steps = (head_dim + lanes - 1) / lanes * lanes;
    const float *queries = cache->queries + (kv_head * worker->count * group + first) * stride;
    const float *keys = cpu_kv_row(worker, cache->keys, layer, kv_head, 0);
    const float *values = cpu_kv_row(worker, cache->values, layer, kv_head, 0);
    float *sums = worker->scratch, *scores = sums + CPU_QUERIES * TC__BLOCK * TC__LANES_MAX;
    float *out = scores + CPU_QUERIES * CPU_SPAN;
    float *largest = out + CPU_QUERIES * stride, *total = largest + CPU_QUERIES;
    memset(out, 0, count * stride * sizeof *out);
    for (size_t i = 0; i < count; i++) largest[i] = -INFINITY, total[i] = 0;

    const size_t last = worker->pos + (first + count - 1) / group;
    for (size_t span = 0; span <= last; span += CPU_SPAN) {
        for (size_t row = 0; row < CPU_SPAN && span + row <= last; row += TC__BLOCK) {
            memset(sums, 0, count * TC__BLOCK * lanes * sizeof *sums);
            tc__multiply_tile(kernels, keys + (span + row) * stride, stride, steps, queries, stride,
                              count, sums);
            for (size_t i = 0; i < count; i++)
                kernels->reduce(sums + i * TC__BLOCK * lanes, scores + i * CPU_SPAN + row);
        }
        for (size_t i = 0; i < count; i++) {
            size_t position = worker->pos + (first + i) / group;
            if (position < span) continue;
            size_t n = position - span < CPU_SPAN ? position - span + 1 : CPU_SPAN;
            if (arch->position == TC__POSITION_ALIBI)
                cpu_penalise(scores + i * CPU_SPAN, n,
                             arch->slopes[kv_head * group + (first + i) % group], position - span);
            cpu_absorb(kernels, scores + i * CPU_SPAN, n, values + span * stride, stride,
                       &largest[i], &total[i], out + i * stride);
        }
    }
    for (size_t i = 0; i < count; i++) {
        size_t position = (first + i) / group, head = kv_head * group + (first + i) % group;
        float *x = cache->mixed.data + position * cache->mixed.stride;
        for (size_t d = 0; d < head_dim; d++)
            x[tc__ordered(order, head * head_dim + d)] = out[i * stride + d] / total[i];
    }
}

static bool cpu_attend(cpu_worker *worker, size_t layer, const tc__tensor *o) {
    const size_t kv_heads = worker->arch->kv_heads;
    const size_t each = worker->count * (worker->arch->heads / kv_heads);
    /* Queries that go together: many share a pass over the cache, but all workers need some. */
    size_t queries = (each * kv_heads + (size_t)worker->size - 1) / (size_t)worker->size;
    if (queries > CPU_QUERIES) queries = CPU_QUERIES;
    if (queries > each) queries = each;
    const size_t pieces = (each + queries - 1) / queries;
    size_t item, end;
    for (cpu_share(worker, kv_heads * pieces, &item, &end); item < end; item++) {
        size_t first = item % pieces * queries;
        size_t count = each - first < queries ? each - first : queries;
        cpu_attend_queries(worker, layer, item / pieces, first, count, tc__order_of(o));
    }
    return cpu_step(worker);
}

/* The MLP's norm; one that has none of its own takes attention's. */
static bool cpu_normalise_mlp(cpu_worker *worker, const tc__layer *layer) {
    const bool own = layer->mlp_norm != NULL;
    return cpu_normalise(worker, own ? layer->mlp_norm : layer->attn_norm,
                         own ? layer->mlp_norm_bias : layer->attn_norm_bias, layer->gate_up, 0,
                         worker->count);
}

/* A block. The MLP starts from what attention has added to, or with `parallel` from the same h. */
static bool cpu_layer(cpu_worker *worker, size_t index) {
    tc__cache *cache = worker->cache;
    const tc__arch *arch = worker->arch;
    const tc__layer *layer = &cache->device->weights->layers[index];
    const size_t n = worker->count;
    cpu_target qkv = {&cache->qkv, layer->qkv_bias, arch->clip_qkv};
    cpu_mlp mlp = {worker->kernels, arch, &cache->inner, layer->act_scales,
                   tc__order_of(layer->down)};
    return cpu_normalise(worker, layer->attn_norm, layer->attn_norm_bias, layer->qkv, 0, n) &&
           cpu_multiply_by(worker, layer->qkv, &cache->x, n, cpu_store, &qkv) &&
           cpu_place_heads(worker, index) && cpu_attend(worker, index, layer->o) &&
           (!arch->parallel || cpu_normalise_mlp(worker, layer)) &&
           cpu_multiply_by(worker, layer->o, &cache->mixed, n, cpu_add, &cache->h) &&
           (arch->parallel || cpu_normalise_mlp(worker, layer)) &&
           cpu_multiply_by(worker, layer->gate_up, &cache->x, n, cpu_take_inner, &mlp) &&
           cpu_multiply_by(worker, layer->down, &cache->inner, n, cpu_add, &cache->h);
}

/* Logits of the batch's positions from `first` on, handed over if they are wanted. */
static bool cpu_output(cpu_worker *worker, size_t first) {
    tc__cache *cache = worker->cache;
    cpu_task *task = worker->task;
    const tc__weights *weights = cache->device->weights;
    cpu_target logits = {&cache->logits, NULL, 0};
    for (size_t n; first < worker->count; first += n) {
        n = worker->count - first < CPU_PIECE ? worker->count - first : CPU_PIECE;
        if (!cpu_normalise(worker, weights->norm, weights->norm_bias, weights->head, first, n) ||
            !cpu_multiply_by(worker, weights->head, &cache->x, n, cpu_store, &logits))
            return false;
        if (worker->index == 0) {
            cache->last = cache->logits.data + (n - 1) * cache->logits.stride;
            for (size_t i = 0; task->each && i < n && !task->code; i++)
                if (task->each(task->user, worker->pos + first + i,
                               cache->logits.data + i * cache->logits.stride,
                               (int)worker->arch->vocab_size))
                    task->code = TC_ERR_CANCELLED;
        }
        if (!cpu_step(worker)) return false;
    }
    return true;
}

static void cpu_forward(void *user, int index) {
    cpu_task *task = user;
    tc__cache *cache = task->cache;
    const tc__weights *weights = cache->device->weights;
    cpu_worker worker = {task,
                         cache,
                         cache->device->kernels,
                         &weights->arch,
                         index,
                         cache->device->threads,
                         0,
                         cache->scratch.data + (size_t)index * cache->scratch.stride,
                         task->pos,
                         0};
    for (size_t done = 0; done < task->n; done += worker.count, worker.pos += worker.count) {
        worker.count = task->n - done < CPU_BATCH ? task->n - done : CPU_BATCH;
        if (!cpu_embed(&worker, task->ids + done)) return;
        for (size_t layer = 0; layer < weights->arch.layers; layer++)
            if (!cpu_layer(&worker, layer)) return;
        bool final = done + worker.count == task->n;
        if ((task->each || final) && !cpu_output(&worker, task->each ? 0 : worker.count - 1))
            return;
    }
}

static int cpu_eval(tc__cache *cache, const int32_t *ids, size_t n, size_t pos, tc__logits_fn each,
                    void *user, const tc__flag *cancel, tc_error *err) {
    cpu_task task = {cache, ids, n, pos, each, user, cancel, TC_OK, {false, false}};
    tc__team_run(cache->team, cpu_forward, &task);
    if (task.code) return tc__fail(err, task.code, "the evaluation was cancelled");
    return tc__ok(err);
}

static const float *cpu_logits(tc__cache *cache) {
    return cache->last;
}

static int cpu_sample(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                      size_t n_context, double u, int32_t *id, tc_error *err) {
    return tc__sample(cache->last, (int)cache->device->weights->arch.vocab_size, sampling, context,
                      n_context, u, cache->candidates, cache->seen, id, err);
}

/* ---- measuring ---- */

typedef struct cpu_reading {
    const uint64_t *words;
    size_t chunks; /* of 8 words */
    int size;
    uint64_t sum; /* so that the reads count for something */
} cpu_reading;

static void cpu_read(void *user, int index) {
    cpu_reading *reading = user;
    uint64_t sums[8] = {0};
    size_t i, end;
    tc__share(reading->chunks, index, reading->size, &i, &end);
    for (; i < end; i++)
        for (int k = 0; k < 8; k++) sums[k] += reading->words[8 * i + k];
    for (int k = 1; k < 8; k++) sums[0] += sums[k];
    __atomic_add_fetch(&reading->sum, sums[0], __ATOMIC_RELAXED);
}

static int cpu_read_bandwidth(tc__device *device, size_t bytes, double *bytes_per_second,
                              tc_error *err) {
    enum { TURNS = 7 };
    double rates[TURNS];
    uint64_t *words = tc__alloc_aligned(bytes);
    if (!words) return tc__fail_memory(err, "the read loop", bytes);
    tc__team *team;
    int code = tc__team_open(device->threads, &team, err);
    if (code) {
        tc__free_aligned(words);
        return code;
    }
    cpu_reading reading = {words, bytes / 64, device->threads, 0};
    for (int i = 0; i < TURNS; i++) {
        double start = tc_seconds();
        tc__team_run(team, cpu_read, &reading);
        double rate = (double)reading.chunks * 64 / (tc_seconds() - start);
        int at = i; /* insertion sort */
        for (; at > 0 && rates[at - 1] > rate; at--) rates[at] = rates[at - 1];
        rates[at] = rate;
    }
    tc__team_close(team);
    tc__free_aligned(words);
    *bytes_per_second = rates[TURNS / 2];
    return tc__ok(err);
}

const tc__backend *tc__cpu_backend(void) {
    static const tc__backend backend = {cpu_open,
                                        cpu_close,
                                        cpu_name,
                                        cpu_details,
                                        cpu_kv_bytes_per_token,
                                        cpu_workspace_bytes,
                                        cpu_free_bytes,
                                        cpu_cache_open,
                                        cpu_cache_close,
                                        cpu_eval,
                                        cpu_logits,
                                        cpu_sample,
                                        cpu_read_bandwidth,
                                        NULL};
    return &backend;
}

/* ======== src/kernels.c ======== */


/* The CUDA source as string literals, one per line. ISO C99 promises literals of 4095 characters
 * only; the warning about longer ones is excused here and nowhere else. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverlength-strings"
#endif
static const struct {
    const char *name, *text;
} kernels_files[] = {
#include "kernels.cu.inc"
};
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

const char *tc_kernel_source(int index, const char **name) {
    if (index < 0 || (size_t)index >= TC_COUNT(kernels_files)) return NULL;
    if (name) *name = kernels_files[index].name;
    return kernels_files[index].text;
}

/* ======== src/gpu_driver.c ======== */


#include <dlfcn.h>
#include <glob.h>

/* ISO C has no cast from an object pointer to a function pointer; POSIX's dlsym needs one. */
static bool gpu_symbol(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

/* ---- the driver ---- */

static const char *gpu_load_driver(tc__cu *cu) {
#define GPU_LOAD(member, symbol, arguments)                                                        \
    if (!gpu_symbol(cu->library, symbol, &cu->member)) return symbol;
    TC__CU_FUNCTIONS(GPU_LOAD)
#undef GPU_LOAD
    return NULL;
}

/* Why cuInit failed, for the common reasons. */
static void gpu_cannot_start(const tc__cu *cu, tc__cu_result result, tc_error *err) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (result == TC__CU_NO_DEVICE && visible)
        tc__fail(
            err, TC_ERR_DEVICE,
            "the NVIDIA driver shows no GPU; CUDA_VISIBLE_DEVICES is '%.200s', which may hide them",
            visible);
    else if (result == TC__CU_NO_DEVICE)
        tc__fail(err, TC_ERR_DEVICE,
                 "there is no NVIDIA GPU that the driver can use (nvidia-smi shows what it sees)");
    else if (result == TC__CU_DRIVER_MISMATCH)
        tc__fail(
            err, TC_ERR_DEVICE,
            "the NVIDIA driver's library and its kernel module have different versions, as after "
            "an update; restart the machine");
    else
        tc__cu_check(cu, result, "starting the NVIDIA driver", err);
}

int tc__cu_open(tc__cu *cu, tc_error *err) {
    memset(cu, 0, sizeof *cu);
    cu->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!cu->library)
        return tc__fail(err, TC_ERR_DEVICE,
                        "no NVIDIA driver: libcuda.so.1 was not found by the dynamic linker; "
                        "install the NVIDIA driver, or use --device cpu");
    const char *missing = gpu_load_driver(cu);
    int version = 0;
    tc__cu_result result = missing ? 0 : cu->init(0);
    if (!missing) cu->driver_version(&version);
    if (missing) {
        tc__fail(err, TC_ERR_DEVICE,
                 "the NVIDIA driver is too old: libcuda.so.1 lacks %s; driver 520 (CUDA 11.8) or "
                 "newer is needed",
                 missing);
    } else if (result) {
        gpu_cannot_start(cu, result, err);
    } else {
        return tc__ok(err);
    }
    tc__cu_close(cu);
    return TC_ERR_DEVICE;
}

void tc__cu_close(tc__cu *cu) {
    if (cu->library) dlclose(cu->library);
    memset(cu, 0, sizeof *cu);
}

int tc__cu_check(const tc__cu *cu, tc__cu_result result, const char *what, tc_error *err) {
    if (!result) return TC_OK;
    const char *text = NULL;
    if (cu->error_text(result, &text) || !text) text = "unknown error";
    return tc__fail(err, result == TC__CU_OUT_OF_MEMORY ? TC_ERR_MEMORY : TC_ERR_DEVICE,
                    "%s failed: %s (CUDA error %d)", what, text, result);
}

/* ---- NVRTC ---- */

static bool gpu_load_nvrtc(tc__nvrtc *nvrtc) {
#define GPU_LOAD(member, symbol, arguments)                                                        \
    if (!gpu_symbol(nvrtc->library, symbol, &nvrtc->member)) return false;
    TC__NVRTC_FUNCTIONS(GPU_LOAD)
#undef GPU_LOAD
    return nvrtc->version(&nvrtc->major, &nvrtc->minor) == 0;
}

/* A search for NVRTC, and what it passed over. */
typedef struct gpu_search {
    tc__nvrtc *nvrtc;
    int driver; /* as in tc__nvrtc_open */
    int newer_major, newer_minor;
    char newer[512]; /* the first one that is newer than the driver; "" */
} gpu_search;

static bool gpu_try_nvrtc(gpu_search *search, const char *path) {
    tc__nvrtc *nvrtc = search->nvrtc;
    nvrtc->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!nvrtc->library) return false;
    snprintf(nvrtc->path, sizeof nvrtc->path, "%s", path);
    const bool good = gpu_load_nvrtc(nvrtc);
    const bool newer = good && search->driver && nvrtc->major > search->driver / 1000;
    if (good && !newer) return true;
    if (newer && !search->newer[0]) {
        search->newer_major = nvrtc->major, search->newer_minor = nvrtc->minor;
        snprintf(search->newer, sizeof search->newer, "%s", path);
    }
    dlclose(nvrtc->library);
    nvrtc->library = NULL;
    return false;
}

/* Tries every file that matches, the last of the sorted names (the newest version) first. */
static bool gpu_glob_nvrtc(gpu_search *search, const char *pattern) {
    glob_t found;
    bool good = false;
    if (glob(pattern, 0, NULL, &found)) return false;
    for (size_t i = found.gl_pathc; i > 0 && !good; i--)
        if (!strstr(found.gl_pathv[i - 1], "builtins") && !strstr(found.gl_pathv[i - 1], ".alt."))
            good = gpu_try_nvrtc(search, found.gl_pathv[i - 1]);
    globfree(&found);
    return good;
}

/* The folders below a root (an environment variable's value, or a path) that may hold it. */
static bool gpu_search_root(gpu_search *search, const char *root) {
    static const char *const below[] = {
        "lib64/libnvrtc.so*",
        "lib/libnvrtc.so*",
        "lib/*-linux-gnu/libnvrtc.so*",
        "targets/*/lib/libnvrtc.so*",
        "lib/python3*/site-packages/nvidia/*/lib/libnvrtc.so*",
        "lib/python3*/dist-packages/nvidia/*/lib/libnvrtc.so*",
    };
    char pattern[1024];
    if (!root || !*root) return false;
    for (size_t i = 0; i < TC_COUNT(below); i++) {
        snprintf(pattern, sizeof pattern, "%s/%s", root, below[i]);
        if (gpu_glob_nvrtc(search, pattern)) return true;
    }
    return false;
}

static bool gpu_search_everywhere(gpu_search *search) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2",
                                        "libnvrtc.so"};
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV",
                                            "CONDA_PREFIX"};
    static const char *const roots[] = {"/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda",
                                        "/usr/local", "/usr"};
    const char *home = getenv("HOME");
    char local[512] = "";
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (gpu_try_nvrtc(search, names[i])) return true;
    for (size_t i = 0; i < TC_COUNT(variables); i++)
        if (gpu_search_root(search, getenv(variables[i]))) return true;
    if (home) snprintf(local, sizeof local, "%s/.local", home);
    if (gpu_search_root(search, local)) return true;
    for (size_t i = 0; i < TC_COUNT(roots); i++)
        if (gpu_search_root(search, roots[i])) return true;
    return false;
}

int tc__nvrtc_open(tc__nvrtc *nvrtc, int driver, tc_error *err) {
    gpu_search search = {nvrtc, driver, 0, 0, ""};
    const char *chosen = getenv("TINYCHAT_NVRTC");
    const char *package = driver / 1000 == 11 ? "cu11" : "cu12";
    memset(nvrtc, 0, sizeof *nvrtc);
    const bool named = chosen && *chosen;
    if (named ? gpu_try_nvrtc(&search, chosen) : gpu_search_everywhere(&search)) return tc__ok(err);
    if (search.newer[0])
        return tc__fail(
            err, TC_ERR_DEVICE,
            "NVRTC %d.%d (%s) is newer than what the driver runs, CUDA %d.%d, and there is "
            "no other; update the driver, or: pip install nvidia-cuda-nvrtc-%s",
            search.newer_major, search.newer_minor, search.newer, driver / 1000, driver % 1000 / 10,
            package);
    if (named)
        return tc__fail(err, TC_ERR_DEVICE, "TINYCHAT_NVRTC names %s, which is not a usable NVRTC",
                        chosen);
    return tc__fail(
        err, TC_ERR_DEVICE,
        "NVRTC (libnvrtc.so.13, .12, .11.2) was not found by the dynamic linker, under "
        "CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX, ~/.local, /usr/local/cuda or /usr; the "
        "driver does not bring it: pip install nvidia-cuda-nvrtc-%s, or name the file in "
        "TINYCHAT_NVRTC, or bring kernels from another machine (--export-kernels)",
        package);
}

void tc__nvrtc_close(tc__nvrtc *nvrtc) {
    if (nvrtc->library) dlclose(nvrtc->library);
    memset(nvrtc, 0, sizeof *nvrtc);
}

/* ======== src/jit.c ======== */


#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <sys/stat.h>

#define JIT_MAGIC "TCJIT001" /* 8 bytes, no terminator in the file */
#define JIT_MAX_FILES 16     /* of the sources */
#define JIT_MAX_PROGRAMS 32
#define JIT_THREADS 6

/* ---- the key ---- */

/* FNV-1a, 64 bits, from two starting points: 128 bits name the input. Guards against mix-ups, not
 * against an attacker who can write to the user's cache folder. */
static void jit_hash(uint64_t hash[2], const char *text) {
    for (; *text; text++)
        for (int i = 0; i < 2; i++) hash[i] = (hash[i] ^ (unsigned char)*text) * 0x100000001B3ull;
    for (int i = 0; i < 2; i++) hash[i] *= 0x100000001B3ull; /* ends differ from continuations */
}

/* The source files: the built-in ones, or those of the folder TINYCHAT_KERNELS while developing. */
typedef struct jit_sources {
    const char *names[JIT_MAX_FILES], *texts[JIT_MAX_FILES];
    tc__buf files[JIT_MAX_FILES];
    int count;
} jit_sources;

static int jit_read_file(const char *folder, const char *name, tc__buf *out, tc_error *err) {
    char path[1024];
    tc__map map;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    tc__buf_add(out, map.data, map.size);
    tc__map_close(&map);
    return out->failed ? tc__fail_memory(err, "a kernel source", out->len) : TC_OK;
}

static void jit_free_sources(jit_sources *sources) {
    for (int i = 0; i < JIT_MAX_FILES; i++) tc__buf_free(&sources->files[i]);
}

/* On failure nothing is held. */
static int jit_read_sources(jit_sources *sources, tc_error *err) {
    const char *folder = getenv("TINYCHAT_KERNELS");
    memset(sources, 0, sizeof *sources);
    for (int i = 0; i < JIT_MAX_FILES; i++) {
        const char *name, *text = tc_kernel_source(i, &name);
        if (!text) break;
        sources->names[i] = name;
        sources->texts[i] = text;
        sources->count = i + 1;
        if (!folder || !*folder) continue;
        int code = jit_read_file(folder, name, &sources->files[i], err);
        if (code) {
            jit_free_sources(sources);
            return code;
        }
        sources->texts[i] = sources->files[i].data;
    }
    return TC_OK;
}

/* ---- the cache ---- */

void tc__jit_folder(char *path, size_t size) {
    const char *own = getenv("TINYCHAT_CACHE"), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    path[0] = 0;
    if (own && *own)
        snprintf(path, size, "%s", own);
    else if (xdg && *xdg)
        snprintf(path, size, "%s/tinychat", xdg);
    else if (home && *home)
        snprintf(path, size, "%s/.cache/tinychat", home);
}

static void jit_make_folders(char *path) {
    for (char *slash = path + 1; *slash; slash++)
        if (*slash == '/') {
            *slash = 0;
            mkdir(path, 0700);
            *slash = '/';
        }
    mkdir(path, 0700);
}

typedef struct jit_entry { /* before the image in a cache file */
    char magic[8];
    uint64_t key[2], size;
    uint32_t crc, nvrtc; /* the image's; the version, with JIT_LESS if it knew less than was asked */
} jit_entry;
#define JIT_LESS 0x80000000u

static bool jit_cache_read(const char *path, const uint64_t key[2], tc__buf *image,
                           uint32_t *nvrtc) {
    tc__map map;
    jit_entry entry;
    if (tc__map_open(path, &map, NULL)) return false;
    bool good = map.size > sizeof entry;
    if (good) {
        memcpy(&entry, map.data, sizeof entry);
        const uint8_t *bytes = map.data + sizeof entry;
        good = memcmp(entry.magic, JIT_MAGIC, 8) == 0 && entry.key[0] == key[0] &&
               entry.key[1] == key[1] && entry.size == map.size - sizeof entry &&
               entry.crc == tc__crc32(0, bytes, map.size - sizeof entry);
        if (good) tc__buf_add(image, bytes, map.size - sizeof entry);
        good = good && !image->failed;
        *nvrtc = good ? entry.nvrtc : 0;
    }
    tc__map_close(&map);
    return good;
}

static void jit_cache_write(const char *path, const uint64_t key[2], const tc__buf *image,
                            uint32_t nvrtc) {
    tc__replace file;
    jit_entry entry;
    memset(&entry, 0, sizeof entry);
    memcpy(entry.magic, JIT_MAGIC, sizeof entry.magic);
    memcpy(entry.key, key, sizeof entry.key);
    entry.size = image->len;
    entry.crc = tc__crc32(0, image->data, image->len);
    entry.nvrtc = nvrtc;
    if (tc__replace_open(&file, path, NULL)) return;
    bool good = fwrite(&entry, sizeof entry, 1, file.file) == 1 &&
                fwrite(image->data, image->len, 1, file.file) == 1;
    if (good)
        tc__replace_commit(&file, NULL); /* a full disk only means no cache */
    else
        tc__replace_abort(&file);
}

/* ---- compiling ---- */

typedef struct jit_job {
    tc__jit_program *program;
    const tc__jit_target *target;
    char arch[32]; /* what NVRTC is asked for: "sm_90a", or of the newest it knows "compute_90" */
    bool as_ptx;
    bool less; /* than the target: NVRTC is too old for it */
    const tc__nvrtc *nvrtc;
    const jit_sources *sources;
} jit_job;

/* The first line of the compiler's log that speaks of an error. */
static int jit_complaint(const jit_job *job, tc__nvrtc_program handle, int status, tc_error *err) {
    size_t size = 0;
    char *log = NULL, *line = NULL;
    if (job->nvrtc->log_size(handle, &size) == 0 && (log = tc__calloc(size + 1, 1)) != NULL &&
        job->nvrtc->log(handle, log) == 0)
        line = strstr(log, "error") ? log : NULL;
    for (char *at = log; line && at && *at; at++)
        if (strncmp(at, "error", 5) == 0) {
            for (line = at; line > log && line[-1] != '\n';) line--;
            break;
        }
    tc__fail(err, TC_ERR_DEVICE, "NVRTC %d.%d (%s) cannot compile the %s kernels for %s: %.600s",
             job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->program->name, job->arch,
             line          ? line
             : status == 5 ? "an option was not accepted"
                           : "no message");
    free(log);
    return TC_ERR_DEVICE;
}

static int jit_take_image(const jit_job *job, tc__nvrtc_program handle, tc_error *err) {
    const tc__nvrtc *nvrtc = job->nvrtc;
    bool ptx = job->as_ptx;
    size_t size = 0;
    if ((ptx ? nvrtc->ptx_size(handle, &size) : nvrtc->cubin_size(handle, &size)) || !size)
        return tc__fail(err, TC_ERR_DEVICE, "NVRTC gave no image for the %s kernels",
                        job->program->name);
    char *bytes = malloc(size);
    if (!bytes) return tc__fail_memory(err, "compiled kernels", size);
    int status = ptx ? nvrtc->ptx(handle, bytes) : nvrtc->cubin(handle, bytes);
    if (!status) tc__buf_add(&job->program->image, bytes, size);
    free(bytes);
    if (status || job->program->image.failed) return tc__fail_memory(err, "compiled kernels", size);
    return TC_OK;
}

static void *jit_compile(void *argument) {
    jit_job *job = argument;
    tc_error *err = &job->program->error;
    tc__nvrtc_program handle = NULL;
    char arch[64], limit[64];
    snprintf(arch, sizeof arch, "--gpu-architecture=%s", job->arch);
    snprintf(limit, sizeof limit, "-DSHARED_LIMIT=%d", job->target->shared_limit);
    const char *options[] = {arch, limit, "--std=c++17"};
    char name[64];
    snprintf(name, sizeof name, "%s.cu", job->program->name);
    int status = job->nvrtc->create(&handle, job->program->text, name, job->sources->count,
                                    job->sources->texts, job->sources->names);
    if (status) {
        tc__fail(err, TC_ERR_DEVICE, "NVRTC cannot create a program (error %d)", status);
        return NULL;
    }
    status = job->nvrtc->compile(handle, TC_COUNT(options), options);
    if (status)
        jit_complaint(job, handle, status, err);
    else
        jit_take_image(job, handle, err);
    job->nvrtc->destroy(&handle);
    return NULL;
}

static void jit_key(uint64_t key[2], const tc__jit_program *program, const tc__jit_target *target,
                    const jit_sources *sources) {
    char numbers[128];
    key[0] = 0xCBF29CE484222325ull;
    key[1] = 0x84222325CBF29CE4ull;
    snprintf(numbers, sizeof numbers, "%d %d %d %d %d " TC_VERSION, target->arch, target->as_ptx,
             target->specific, target->driver, target->shared_limit);
    jit_hash(key, numbers);
    jit_hash(key, program->name);
    jit_hash(key, program->text);
    for (int i = 0; i < sources->count; i++) {
        jit_hash(key, sources->names[i]);
        jit_hash(key, sources->texts[i]);
    }
}

/* What NVRTC is asked for. Older than the GPU: the newest architecture that it knows, as PTX, which
 * the driver turns into machine code. The targets of one architecture only came with NVRTC 12. */
static int jit_fit(jit_job *job, tc_error *err) {
    int count = 0, archs[128], newest = 0;
    bool known = false;
    if (job->nvrtc->arch_count(&count) || count < 1 || count > (int)TC_COUNT(archs) ||
        job->nvrtc->archs(archs))
        count = 0;
    for (int i = 0; i < count; i++) {
        known |= archs[i] == job->target->arch;
        if (archs[i] <= job->target->arch && archs[i] > newest) newest = archs[i];
    }
    if (!known && newest < 80)
        return tc__fail(
            err, TC_ERR_DEVICE,
            "NVRTC %d.%d (%s) knows no architecture from 8.0 to the GPU's %d.%d; install a "
            "newer one: pip install nvidia-cuda-nvrtc-cu12",
            job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->target->arch / 10,
            job->target->arch % 10);
    job->as_ptx = job->target->as_ptx || !known;
    bool specific = job->target->specific && !job->as_ptx && job->nvrtc->major >= 12;
    job->less = job->as_ptx != job->target->as_ptx || specific != job->target->specific;
    snprintf(job->arch, sizeof job->arch, "%s_%d%s", job->as_ptx ? "compute" : "sm",
             known ? job->target->arch : newest, specific ? "a" : "");
    return TC_OK;
}

/* A remark where kernels are not what they could be. */
static void jit_tell(const jit_job *job, const tc_model_params *params) {
    char line[640];
    if (!params || !params->log || !job->less) return;
    snprintf(line, sizeof line,
             "NVRTC %d.%d (%s) is older than the GPU: the kernels are made for %s%s",
             job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->arch,
             job->as_ptx ? " and translated by the driver" : " and slower than they could be");
    params->log(params->user, line);
}

/* Jobs for a few threads, each of which takes the next one. The compiler holds about 30 MB for
 * each: so few that a machine with many processors does not need a GB. */
typedef struct jit_queue {
    jit_job *jobs[JIT_MAX_PROGRAMS];
    size_t n, next, done;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} jit_queue;

static void *jit_work(void *argument) {
    jit_queue *queue = argument;
    pthread_mutex_lock(&queue->lock);
    while (queue->next < queue->n) {
        jit_job *job = queue->jobs[queue->next++];
        pthread_mutex_unlock(&queue->lock);
        jit_compile(job);
        pthread_mutex_lock(&queue->lock);
        queue->done++;
        pthread_cond_signal(&queue->changed);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

/* Tells the caller of each program that is done. True if no more are wanted. */
static bool jit_watch(jit_queue *queue, const tc_model_params *params) {
    bool cancelled = false;
    pthread_mutex_lock(&queue->lock);
    for (size_t told = 0; told < queue->n && !cancelled;) {
        while (queue->done == told) pthread_cond_wait(&queue->changed, &queue->lock);
        told = queue->done;
        pthread_mutex_unlock(&queue->lock);
        cancelled =
            params && params->progress &&
            params->progress(params->user, (double)told / (double)queue->n, "compiling kernels");
        pthread_mutex_lock(&queue->lock);
    }
    if (cancelled) queue->n = queue->next; /* those that have begun are awaited */
    pthread_mutex_unlock(&queue->lock);
    return cancelled;
}

static int jit_run(jit_queue *queue, const tc_model_params *params, tc_error *err) {
    pthread_t threads[JIT_THREADS];
    int running = 0;
    const int most = tc__processors() < JIT_THREADS ? tc__processors() : JIT_THREADS;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, NULL);
    while (running < most && !pthread_create(&threads[running], NULL, jit_work, queue)) running++;
    if (!running) jit_work(queue);
    const bool cancelled = jit_watch(queue, params);
    while (running > 0) pthread_join(threads[--running], NULL);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
#ifdef __GLIBC__
    malloc_trim(0); /* what the compiler's threads have freed stays with the process else */
#endif
    return cancelled ? tc__fail(err, TC_ERR_CANCELLED, "cancelled while compiling kernels") : TC_OK;
}

static uint32_t jit_version(const tc__nvrtc *nvrtc) {
    return (uint32_t)(nvrtc->major * 1000 + nvrtc->minor);
}

/* Takes back what an NVRTC that was too old for the GPU has made, if now there is another one.
 * `made`: of each program, what the cache says of it. */
static bool jit_drop_outdated(tc__jit_program *programs, const uint32_t *made, size_t n,
                              int driver) {
    tc__nvrtc nvrtc;
    tc_error err;
    bool dropped = false;
    uint32_t all = 0;
    for (size_t i = 0; i < n; i++) all |= made[i];
    if (!(all & JIT_LESS) || tc__nvrtc_open(&nvrtc, driver, &err)) return false;
    for (size_t i = 0; i < n; i++) {
        if (!(made[i] & JIT_LESS) || made[i] == (jit_version(&nvrtc) | JIT_LESS)) continue;
        tc__buf_free(&programs[i].image);
        programs[i].cached = false;
        dropped = true;
    }
    tc__nvrtc_close(&nvrtc);
    return dropped;
}

static int jit_compile_missing(jit_job *jobs, size_t n, const tc_model_params *params,
                               uint32_t *version, tc_error *err) {
    tc__nvrtc nvrtc;
    jit_queue queue;
    memset(&queue, 0, sizeof queue);
    int code = tc__nvrtc_open(&nvrtc, jobs->target->driver, err);
    if (code) return code;
    *version = jit_version(&nvrtc);
    for (size_t i = 0; i < n && !code; i++) {
        if (jobs[i].program->cached) continue;
        jobs[i].nvrtc = &nvrtc;
        code = jit_fit(&jobs[i], err);
        if (!code && !queue.n) jit_tell(&jobs[i], params);
        queue.jobs[queue.n++] = &jobs[i];
    }
    if (!code) code = jit_run(&queue, params, err);
    for (size_t i = 0; i < n && !code; i++) {
        code = jobs[i].program->error.code;
        if (code && err) *err = jobs[i].program->error;
    }
    tc__nvrtc_close(&nvrtc);
    return code;
}

int tc__jit(tc__jit_program *programs, size_t n, const tc__jit_target *target,
            const tc_model_params *progress, tc_error *err) {
    jit_sources sources;
    jit_job jobs[JIT_MAX_PROGRAMS];
    uint64_t keys[JIT_MAX_PROGRAMS][2];
    char folder[768], paths[JIT_MAX_PROGRAMS][1024];
    uint32_t made[JIT_MAX_PROGRAMS] = {0};
    bool missing = false;
    memset(jobs, 0, sizeof jobs);
    int code = n > JIT_MAX_PROGRAMS ? TC_ERR_ARGUMENT : jit_read_sources(&sources, err);
    if (code) return code;
    tc__jit_folder(folder, sizeof folder);
    for (size_t i = 0; i < n; i++) {
        jit_key(keys[i], &programs[i], target, &sources);
        snprintf(paths[i], sizeof paths[i], "%s/%s-%s%d%s-%016llx.bin", folder, programs[i].name,
                 target->as_ptx ? "compute" : "sm", target->arch, target->specific ? "a" : "",
                 (unsigned long long)keys[i][0]);
        programs[i].cached =
            folder[0] && jit_cache_read(paths[i], keys[i], &programs[i].image, &made[i]);
        missing |= !programs[i].cached;
        jobs[i].program = &programs[i];
        jobs[i].target = target;
        jobs[i].sources = &sources;
    }
    missing |= jit_drop_outdated(programs, made, n, target->driver);
    if (missing) {
        uint32_t version = 0;
        code = jit_compile_missing(jobs, n, progress, &version, err);
        if (!code && folder[0]) jit_make_folders(folder);
        for (size_t i = 0; i < n && !code && folder[0]; i++)
            if (!programs[i].cached)
                jit_cache_write(paths[i], keys[i], &programs[i].image,
                                jobs[i].less ? version | JIT_LESS : version);
    }
    jit_free_sources(&sources);
    return code;
}

/* ---- carried in a file ---- */

#define JIT_BUNDLE_MAGIC "TCKERN01"

typedef struct jit_bundle { /* before the rest of the file */
    char magic[8];
    char what[240]; /* NUL-terminated */
    uint32_t crc;   /* of what follows */
    uint32_t count; /* of the programs */
    uint64_t size;  /* of the rest */
} jit_bundle;

typedef struct jit_carried { /* `count` of them; their images follow behind the last */
    uint64_t key[2], size;
} jit_carried;

static uint32_t jit_bundle_crc(const jit_bundle *head, const void *rest, size_t size) {
    return tc__crc32(tc__crc32(0, &head->count, sizeof head->count), rest, size);
}

/* Of a program for any driver: the file may go to a machine with another one. */
static void jit_carried_key(uint64_t key[2], const tc__jit_program *program,
                            const tc__jit_target *target, const jit_sources *sources) {
    tc__jit_target any = *target;
    any.driver = 0;
    jit_key(key, program, &any, sources);
}

int tc__jit_export(const char *path, const char *what, const tc__jit_program *programs, size_t n,
                   const tc__jit_target *target, tc_error *err) {
    jit_bundle head;
    jit_sources sources;
    tc__replace file;
    tc__buf rest = {NULL, 0, 0, false};
    int code = jit_read_sources(&sources, err);
    if (code) return code;
    for (size_t i = 0; i < n; i++) {
        jit_carried entry = {{0, 0}, programs[i].image.len};
        jit_carried_key(entry.key, &programs[i], target, &sources);
        tc__buf_add(&rest, &entry, sizeof entry);
    }
    for (size_t i = 0; i < n; i++)
        tc__buf_add(&rest, programs[i].image.data, programs[i].image.len);
    jit_free_sources(&sources);
    memset(&head, 0, sizeof head);
    memcpy(head.magic, JIT_BUNDLE_MAGIC, sizeof head.magic);
    snprintf(head.what, sizeof head.what, "%s", what);
    head.count = (uint32_t)n;
    head.size = rest.len;
    if (rest.failed) return tc__fail_memory(err, "compiled kernels", rest.len);
    head.crc = jit_bundle_crc(&head, rest.data, rest.len);
    code = tc__replace_open(&file, path, err);
    if (!code) {
        fwrite(&head, sizeof head, 1, file.file); /* the commit looks whether all went well */
        fwrite(rest.data, rest.len, 1, file.file);
        code = tc__replace_commit(&file, err);
    }
    tc__buf_free(&rest);
    return code;
}

/* The header, after all of the file was checked. */
static int jit_bundle_check(const tc__map *map, const char *path, jit_bundle *head, tc_error *err) {
    if (map->size >= sizeof *head) memcpy(head, map->data, sizeof *head);
    if (map->size < sizeof *head || memcmp(head->magic, JIT_BUNDLE_MAGIC, sizeof head->magic))
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: not a file of compiled kernels; chat --export-kernels writes one",
                        path);
    const uint8_t *rest = map->data + sizeof *head;
    bool whole = head->size == map->size - sizeof *head && head->count <= JIT_MAX_PROGRAMS &&
                 head->count * sizeof(jit_carried) <= head->size &&
                 head->crc == jit_bundle_crc(head, rest, (size_t)head->size) &&
                 !head->what[sizeof head->what - 1];
    if (!whole)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: the file of compiled kernels is damaged; copy or export it again",
                        path);
    return TC_OK;
}

/* The image with this key; NULL if the file has none. */
static const uint8_t *jit_bundle_find(const tc__map *map, const jit_bundle *head,
                                      const uint64_t key[2], size_t *size) {
    const uint8_t *entries = map->data + sizeof *head;
    size_t at = sizeof *head + head->count * sizeof(jit_carried);
    for (uint32_t i = 0; i < head->count; i++) {
        jit_carried entry;
        memcpy(&entry, entries + i * sizeof entry, sizeof entry);
        if (entry.size > map->size - at) return NULL;
        *size = (size_t)entry.size;
        if (entry.key[0] == key[0] && entry.key[1] == key[1]) return map->data + at;
        at += (size_t)entry.size;
    }
    return NULL;
}

int tc__jit_import(const char *path, const char *what, tc__jit_program *programs, size_t n,
                   const tc__jit_target *target, tc_error *err) {
    jit_bundle head;
    jit_sources sources;
    tc__map map;
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    code = jit_bundle_check(&map, path, &head, err);
    if (!code) code = jit_read_sources(&sources, err);
    for (size_t i = 0; i < n && !code; i++) {
        uint64_t key[2];
        size_t size = 0;
        jit_carried_key(key, &programs[i], target, &sources);
        const uint8_t *image = jit_bundle_find(&map, &head, key, &size);
        if (image) tc__buf_add(&programs[i].image, image, size);
        if (!image)
            code = tc__fail(err, TC_ERR_UNSUPPORTED,
                            "%s holds kernels for %s; needed are those for %s; export them anew",
                            path, head.what, what);
        else if (programs[i].image.failed)
            code = tc__fail_memory(err, "compiled kernels", size);
        programs[i].cached = image != NULL;
        if (i + 1 == n || code) jit_free_sources(&sources);
    }
    tc__map_close(&map);
    return code;
}

/* ======== src/gpu_programs.c ======== */


#include <math.h>

static const char *const programs_roles[TC__ROLES] = {"qkv", "o", "gate_up", "down"};
static const char *const programs_to[TC__ROLES] = {"TO_VECTORS", "TO_RESIDUAL", "TO_OPERAND",
                                                   "TO_RESIDUAL"};

const char *tc__role_name(int role) {
    return programs_roles[role];
}

const tc__tensor *tc__role_matrix(const tc__layer *layer, int role) {
    const tc__tensor *matrices[TC__ROLES] = {layer->qkv, layer->o, layer->gate_up, layer->down};
    return matrices[role];
}

/* bfloat16 becomes binary16 on the way to the GPU: one kind. */
static uint32_t programs_type(const tc__tensor *matrix) {
    return matrix->type == TC__BF16 ? TC__F16 : matrix->type;
}

int tc__kind_of(const tc__kinds *kinds, int role, const tc__tensor *matrix) {
    for (int i = 0; i < kinds->count[role]; i++)
        if (kinds->kind[role][i].type == programs_type(matrix) &&
            kinds->kind[role][i].group_size == matrix->group_size)
            return i;
    return -1;
}

static int programs_check(const tc__tensor *matrix, tc_error *err) {
    if (matrix->columns % 32 == 0) return TC_OK;
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "tensor '%.*s' has %zu columns; the GPU engine needs a multiple of 32; use "
                    "--device cpu",
                    (int)matrix->name_len, matrix->name, matrix->columns);
}

static int programs_add(tc__kinds *kinds, int role, const tc__tensor *matrix, tc_error *err) {
    int code = programs_check(matrix, err), n = kinds->count[role];
    if (code || tc__kind_of(kinds, role, matrix) >= 0) return code;
    if (n == TC__MAX_KINDS)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "the model mixes more than %d kinds of %s matrices", TC__MAX_KINDS,
                        programs_roles[role]);
    kinds->kind[role][n].type = programs_type(matrix);
    kinds->kind[role][n].group_size = matrix->group_size;
    kinds->count[role]++;
    return TC_OK;
}

int tc__kinds_find(const tc__weights *weights, tc__kinds *kinds, tc_error *err) {
    memset(kinds, 0, sizeof *kinds);
    uint32_t head_dim = weights->arch.head_dim;
    if (head_dim % 16 || head_dim > 256)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "head_dim is %u; the GPU engine needs a multiple of 16 up to 256; use "
                        "--device cpu",
                        (unsigned)head_dim);
    int code = programs_check(weights->head, err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++)
        for (int role = 0; role < TC__ROLES && !code; role++)
            code = programs_add(kinds, role, tc__role_matrix(&weights->layers[l], role), err);
    return code;
}

/* ---- source ---- */

/* The constants every program of this model begins with. */
/* Whether attention runs in an SM beside the products of both sides: behind qkv in a parallel block,
 * with heads so small that it needs few registers. */
static bool programs_beside(const tc__arch *arch) {
    return arch->parallel && arch->head_dim <= 64;
}

static void programs_constants(const tc__weights *weights, int sm_count, tc__buf *text) {
    const tc__arch *arch = &weights->arch;
    tc__buf_printf(text,
                   "#define SM_COUNT %d\n#define HIDDEN %u\n#define INTERMEDIATE %u\n"
                   "#define HEADS %u\n#define KV_HEADS %u\n#define HEAD_DIM %u\n#define VOCAB %u\n",
                   sm_count, (unsigned)arch->hidden_size, (unsigned)arch->intermediate_size,
                   (unsigned)arch->heads, (unsigned)arch->kv_heads, (unsigned)arch->head_dim,
                   (unsigned)arch->vocab_size);
    tc__buf_printf(text, "#define ALIBI %d\n#define QK_NORM %d\n#define ROPE_SCALE %.9ef\n",
                   arch->position == TC__POSITION_ALIBI, weights->layers[0].q_norm != NULL,
                   (double)arch->rope_scale);
    tc__buf_printf(text, "#define ATTENTION_BESIDE %d\n", programs_beside(arch));
    tc__buf_printf(text, "#define NORM %s\n#define NORM_EPS %.9ef\n",
                   arch->norm == TC__NORM_LAYER ? "NORM_LAYER" : "NORM_RMS",
                   (double)arch->norm_eps);
    tc__buf_printf(text, "#define ACTIVATION %s\n#define GATED %d\n#define CLIP_QKV %.9ef\n",
                   arch->activation == TC__ACT_GELU ? "ACT_GELU" : "ACT_SILU", arch->gated,
                   (double)arch->clip_qkv);
    tc__buf_str(text, "#include \"instances.cuh\"\n");
}

/* The columns in a unit of a kind's matrix: the group, or of binary16 64, or 32 where 64 does not
 * divide. */
static unsigned programs_unit(const tc__weights *weights, const tc__kinds *kinds, int role, int i) {
    size_t columns = tc__role_matrix(&weights->layers[0], role)->columns;
    if (kinds->kind[role][i].type == TC__W4) return (unsigned)kinds->kind[role][i].group_size;
    return columns % 64 ? 32 : 64;
}

static const char *programs_type_name(const tc__kinds *kinds, int role, int i) {
    return kinds->kind[role][i].type == TC__W4 ? "W4" : "F16";
}

/* "typedef W4<4096, 128> qkv_0_matrix; DECODE_PRODUCT(qkv_0, qkv_0_matrix, 12288, 1, 0, IN_RMS,
 * OUT_QKV, NO_PAIR)" and the like, and for several vectors the same with EachPick and EACH_PRODUCT.
 * Products of a layer come from the SIDEs of instances.cuh in turn. In a parallel block qkv and up
 * both need x alone, and down can begin when o can. */
static void programs_decode(const tc__weights *weights, const tc__kinds *kinds, int role, int i,
                            tc__buf *text) {
    const tc__arch *arch = &weights->arch;
    const tc__tensor *matrix = tc__role_matrix(&weights->layers[0], role);
    const char *norm = arch->norm == TC__NORM_LAYER ? "IN_LAYER" : "IN_RMS";
    const char *up = arch->gated ? "OUT_GATED" : "OUT_ACT";
    const char *first = arch->parallel ? "PAIR_FIRST" : "NO_PAIR";
    const char *second = arch->parallel ? "PAIR_SECOND" : "NO_PAIR";
    const struct {
        const char *in, *out, *pair;
        int side;
    } how[TC__ROLES] = {{norm, "OUT_QKV", first, programs_beside(arch) ? 2 : 0},
                        {"IN_PLAIN", "OUT_ADD", first, arch->parallel ? 0 : 1},
                        {norm, up, second, arch->parallel ? 1 : 0},
                        {"IN_PLAIN", "OUT_ADD", second, 1}};
    const char *name = programs_roles[role];
    const int limbs = role == TC__QKV ? 2 : 1; /* scores of attention are sensitive */
    if (kinds->kind[role][i].type == TC__W4)
        tc__buf_printf(text, "typedef W4<%zu, %u> %s_%d_matrix;\n", matrix->columns,
                       (unsigned)kinds->kind[role][i].group_size, name, i);
    else
        tc__buf_printf(text, "typedef F16<%zu> %s_%d_matrix;\n", matrix->columns, name, i);
    tc__buf_printf(text, "DECODE_PRODUCT(%s_%d, %s_%d_matrix, %zu, 1, %d, %s, %s, %s)\n", name, i,
                   name, i, matrix->rows, how[role].side, how[role].in, how[role].out,
                   how[role].pair);
    if (kinds->kind[role][i].type == TC__W4)
        tc__buf_printf(text, "typedef EachPick<W4Short<%zu, %u, %d>, ", matrix->columns,
                       (unsigned)kinds->kind[role][i].group_size, limbs);
    else
        tc__buf_printf(text, "typedef EachPick<F16Short<%zu, %d>, ", matrix->columns, limbs);
    tc__buf_printf(text, "%s_%d_matrix, %zu, %s> few_%s_%d_each;\n", name, i, matrix->rows,
                   how[role].in, name, i);
    tc__buf_printf(text,
                   "EACH_PRODUCT(few_%s_%d, few_%s_%d_each, %zu, %d, %s, %s, %s)\n", name, i, name,
                   i, matrix->rows, how[role].side, how[role].in, how[role].out, how[role].pair);
}

/* The head for one token and for each of several; in 8 bits, also the kernel that makes it. */
static void programs_head(const tc__weights *weights, const char *norm, tc__buf *text) {
    const size_t rows = weights->head->rows, columns = weights->head->columns;
    const size_t group = tc__head_8_group(weights);
    if (weights->head_in_8)
        tc__buf_printf(text,
                       "QUANTISE_KERNEL(quantise_head, %zu, %zu)\n"
                       "typedef W8<%zu, %zu> head_matrix;\n"
                       "typedef EachPick<W8Short<%zu, %zu, 2>, ",
                       columns, group, columns, group, columns, group);
    else
        tc__buf_printf(text,
                       "typedef F16<%zu> head_matrix;\ntypedef EachPick<F16Short<%zu, 2>, ",
                       columns, columns);
    tc__buf_printf(text, "head_matrix, %zu, %s> head_few;\n", rows, norm);
    tc__buf_printf(text, "DECODE_PRODUCT(head, head_matrix, %zu, 1, 0, %s, OUT_STORE, NO_PAIR)\n",
                   rows, norm);
    tc__buf_printf(text,
                   "EACH_PRODUCT(head_each, head_few, %zu, 0, %s, OUT_STORE, NO_PAIR)\n", rows,
                   norm);
}

void tc__write_decode(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                      tc__buf *text) {
    const char *norm = weights->arch.norm == TC__NORM_LAYER ? "IN_LAYER" : "IN_RMS";
    programs_constants(weights, sm_count, text);
    for (int role = 0; role < TC__ROLES; role++)
        for (int i = 0; i < kinds->count[role]; i++) programs_decode(weights, kinds, role, i, text);
    programs_head(weights, norm, text);
    tc__buf_str(
        text, "KERNEL(embed, 256, 1, EmbedArgs, embed_rows(args, HIDDEN, true))\n"
              "LAUNCH(embed, 1, 256, 0)\n"
              "CLUSTER_KERNEL(attention, DECODE_CLUSTER, DECODE_THREADS, DECODE_RESIDENT, "
              "DecodeAttentionArgs, (attention_decode<1, DECODE_CLUSTER>(args)))\n"
              "LAUNCH_CLUSTERS(attention, KV_HEADS *HEAD_TILES *DECODE_CLUSTER, DECODE_THREADS, "
              "(DecodeRoom<1, DECODE_CLUSTER>::SMEM), 1, DECODE_CLUSTER)\n"
              "KERNEL(attention_few, DECODE_THREADS, 1, DecodeAttentionArgs, "
              "(attention_decode<FEW_TOKENS, 1>(args)))\n"
              "LAUNCH_TOKENS(attention_few, KV_HEADS *HEAD_TILES, DECODE_THREADS, "
              "(DecodeRoom<FEW_TOKENS, 1>::SMEM), FEW_TOKENS)\n"
              "KERNEL(sample_token, SAMPLE_THREADS, 1, SampleArgs, sample(args))\n"
              "LAUNCH(sample_token, SAMPLE_BLOCKS, SAMPLE_THREADS, 0)\n"
              "KERNEL(widen, 256, 1, WidenArgs, bf16_to_f16(args))\n"
              "LAUNCH(widen, 4 * SM_COUNT, 256, 0)\n"
              "KERNEL(read_loop, 512, 1, ReadArgs, read_all(args))\n"
              "LAUNCH(read_loop, 4 * SM_COUNT, 512, 0)\n"
              "KERNEL(random_fill, 512, 1, FillArgs, random_fill_words(args))\n"
              "LAUNCH(random_fill, 4 * SM_COUNT, 512, 0)\n");
}

/* "PREFILL_PRODUCT(t128_qkv_0, W4, 4096, 128, 12288, 128, TO_VECTORS)" and the like. */
static void programs_prefill(const tc__weights *weights, const tc__kinds *kinds, int size,
                             tc__buf *text) {
    for (int role = 0; role < TC__ROLES; role++)
        for (int i = 0; i < kinds->count[role]; i++) {
            const tc__tensor *matrix = tc__role_matrix(&weights->layers[0], role);
            tc__buf_printf(text, "PREFILL_PRODUCT(t%d_%s_%d, %s, %zu, %u, %zu, %d, %s)\n", size,
                           programs_roles[role], i, programs_type_name(kinds, role, i),
                           matrix->columns, programs_unit(weights, kinds, role, i), matrix->rows,
                           size, programs_to[role]);
        }
}

void tc__write_prefill(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                       tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, 128, text);
    tc__buf_str(text,
                "KERNEL(embed_all, 256, 1, EmbedArgs, embed_rows(args, HIDDEN, false))\n"
                "LAUNCH(embed_all, 0, 256, 0)\n"
                "ROWS_KERNEL(rows_hidden, HIDDEN)\n"
                "KERNEL(settle, 256, 1, SettleArgs, settle_operand<INTERMEDIATE>(args))\n"
                "LAUNCH(settle, 0, 256, 0)\n"
                "KERNEL(rope, 256, 1, PrefillAttentionArgs, rope_write(args))\n"
                "LAUNCH(rope, ROPE_PARTS, 256, 0)\n"
                "KERNEL(attention_all, PREFILL_THREADS, 2, PrefillAttentionArgs, "
                "attention_prefill(args))\n"
                "LAUNCH_TOKENS(attention_all, HEADS, PREFILL_THREADS, PREFILL_SMEM, "
                "PREFILL_QUERIES)\n"
                "KERNEL(attention_parts, 256, 1, PrefillAttentionArgs, attention_merge(args))\n"
                "LAUNCH(attention_parts, 0, 256, 0)\n");
}

void tc__write_prefill_wide(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                            tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, 256, text);
}

void tc__write_prefill_few(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                           tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, 16, text);
    programs_prefill(weights, kinds, 64, text);
}

void tc__cut_program(const tc__buf *text, size_t i, size_t n, tc__buf *part) {
    size_t kernels = 0;
    for (size_t at = 0, end; at < text->len; at = end) {
        const char *line = text->data + at;
        const char *newline = memchr(line, '\n', text->len - at);
        end = newline ? (size_t)(newline - text->data) + 1 : text->len;
        bool instance = *line >= 'A' && *line <= 'Z', launch = !strncmp(line, "LAUNCH", 6);
        kernels += instance && !launch;
        if (!instance || (kernels - 1) % n == i) tc__buf_add(part, line, end - at);
    }
}

/* ======== src/cuda.c ======== */



#include <errno.h>
#include <limits.h>
#include <math.h>
#include <unistd.h>

/* The CUDA backend: the model's weights in GPU memory, its kernels compiled for this GPU and these
 * shapes, a token as one CUDA graph. */

#define CUDA_STAGING (4u << 20) /* bytes of one pinned staging buffer */
#define CUDA_STAGES 8           /* staging buffers */
#define CUDA_QUEUED 2           /* that are on their way to the GPU behind the first, at most */
#define CUDA_LOADERS 16         /* threads that load, at most: what the bus asks for */
#define CUDA_PIECE 256          /* prefill goes by multiples of the widest tile's tokens */
#define CUDA_EXPANDING 48       /* see cuda_work */
#define CUDA_OVERLAP_FROM 12030 /* the driver's version that knows dependent launches in graphs */
#define CUDA_PRECISE 256        /* tokens whose queries and keys are computed in two limbs */
#define CUDA_NO_TOKEN INT_MIN   /* host_token while the choice is not made */
#define CUDA_EACH 8             /* positions whose logits are computed at once, at most */
#define CUDA_SHORT 8            /* tokens of a prompt that goes the way of decode, at most */
#define CUDA_FEW_KEYS 256       /* up to these, each of a few tokens has blocks of attention */
#define CUDA_RINGS 104448       /* bytes: about what the rings of a product of decode hold */
#define CUDA_AHEAD 34816        /* that a block brings into L2, at most; a part of its share, */
#define CUDA_AHEAD_FROM 122880  /* from here on if that is long enough (docs/gpu-log.md) */
#define CUDA_FIRST (24 << 20)   /* bytes of weights that come into L2 while a token is chosen */
#define CUDA_SPLIT_KEYS 256     /* that a part of a prefill's keys has at least */

enum { CUDA_DECODE, CUDA_PREFILL, CUDA_WIDE, CUDA_FEW, CUDA_PROGRAMS };
#define CUDA_MODULES 16  /* parts of all programs, at most */
enum { CUDA_SIZES = 4 }; /* of the tiles of a prefill's products: 16, 64, 128 and 256 tokens */

typedef struct cuda_kernel {
    tc__cu_function function;
    int grid, threads, shared;
    int tokens;  /* vectors that one launch takes, or one tile of a prefill's product */
    int cluster; /* blocks that start together, or share row blocks; 0 and 1: any alone */
    int walks;   /* blocks go from tile to tile: no more than fit are started */
} cuda_kernel;

/* The kernels of one kind of matrix (its role, type and group size). */
typedef struct cuda_product {
    cuda_kernel decode, few, prefill[CUDA_SIZES];
} cuda_product;

/* The model's programs, cut into parts: their sources, and the images that come of them. */
typedef struct cuda_programs {
    tc__buf texts[CUDA_MODULES];
    char names[CUDA_MODULES][24];
    tc__jit_program parts[CUDA_MODULES];
    int first[CUDA_PROGRAMS + 1]; /* of each program's parts; the number of all */
} cuda_programs;

typedef struct cuda_device {
    tc__cu cu;
    bool opened; /* cu */
    bool
        integrated; /* the GPU has no memory of its own: the weights lie in memory that it shares */
    tc__cu_device ordinal;
    tc__cu_context context;
    char name[256], details[128], gpu_name[128];
    int sm_count;
    int ahead;  /* bytes of a later matrix that a block of a product brings into L2 */
    int first;  /* bytes of the first ones that come into L2 while a token is chosen */
    int splits; /* parts of the context that decode's attention works on at once */
    tc__jit_target target;
    int few;      /* tokens, up to CUDA_SHORT: products of so many read weights twice at most */
    bool overlap; /* kernels by programmatic dependent launch */
    const tc__weights *weights;
    tc__cu_ptr memory; /* all tensors, in the order of the file */
    size_t memory_bytes;
    tc__cu_ptr positions; /* RoPE's turns or ALiBi's slopes, behind the tensors */
    tc__cu_ptr head_at;   /* the head as its kernels read it */
    tc__cu_module modules[CUDA_MODULES];
    const cuda_programs *programs; /* of the modules; only while kernels are looked up */
    tc__kinds kinds;
    cuda_product products[TC__ROLES][TC__MAX_KINDS];
    cuda_kernel embed, embed_all, head, head_each, attention, attention_few, rope;
    cuda_kernel attention_prefill, attention_parts, sample;
    cuda_kernel rows, settle, widen, quantise_head, read_loop, random_fill;
} cuda_device;

/* Of one draw (src/kernels/sample.cuh). */
typedef struct cuda_sample_settings {
    double u;
    int row, window, top_k;
    float temperature, top_p, min_p, penalty;
    int pad;
} cuda_sample_settings;

typedef struct cuda_cache {
    cuda_device *device;
    int ctx, chunk; /* positions; tokens of one piece of a prefill */
    tc__cu_stream stream;
    /* One token, given or sampled from the logits before it; its logits go to row 0 or to row 1. Of
     * the second kind also what names the choice, whose arguments change, in `sampled`. */
    tc__cu_graph_exec token[2], sampled[2];
    tc__cu_graph graphs[2];
    tc__cu_graph_node choices[2];
    tc__cu_ptr memory;
    size_t memory_bytes;
    /* parts of `memory` */
    tc__cu_ptr kv, ids, state, begun, logits, keys, segments, sample_arrived;
    tc__cu_ptr x[3], qkv, attention, act, parts, arrived;
    /* Prefill: residual; operand of the next product and its scales; the same of the MLP's inner
     * vectors; queries; attention's inputs. */
    tc__cu_ptr wide_x, wide_in, wide_rest, wide_scale, wide_mid, mid_scale, mid_exponents,
        mid_highest;
    tc__cu_ptr wide_q, wide_qkv;
    /* pinned: [CUDA_EACH][vocab]; the choice */
    float *host_logits;
    int *host_token;
    tc__cu_ptr device_token; /* where the GPU sees it */
    int next;           /* the device's State.next */
    bool ahead;         /* the evaluation of the sampled token runs already, into the other row */
    int ahead_pos;
    int32_t ahead_id;
    bool logits_on_host;
    int logits_row; /* of `logits` where the last position asked for lies */
} cuda_cache;

/* ---- arguments of the kernels: the structs of src/kernels ---- */

typedef struct cuda_state {
    int next, pos, token, pad;
} cuda_state;

typedef struct cuda_lines {
    tc__cu_ptr weights;
    int row_blocks, row_bytes, blocks, split, from, most;
} cuda_lines;

typedef struct cuda_product_args {
    tc__cu_ptr weights, in, gamma, beta, extra, out, residual, clear, begun;
    int clears, tokens;
    cuda_lines own, next;
} cuda_product_args;

typedef struct cuda_gemm_args {
    tc__cu_ptr weights, in, rest, scale, out, each, exponents, highest;
    int tokens;
} cuda_gemm_args;

typedef struct cuda_embed_args {
    tc__cu_ptr table, ids, state, out, begun;
    int tokens, pairs;
} cuda_embed_args;

typedef struct cuda_rows_args {
    tc__cu_ptr in, gamma, bias, out, rest, scale;
} cuda_rows_args;

typedef struct cuda_settle_args {
    tc__cu_ptr operand, exponents, highest, scale;
    int tokens;
} cuda_settle_args;

typedef struct cuda_head_args {
    tc__cu_ptr turns, slopes, q_norm, k_norm;
} cuda_head_args;

typedef struct cuda_decode_attention_args {
    tc__cu_ptr qkv, k, v, out, parts, arrived, state;
    cuda_head_args head;
    int ctx;
} cuda_decode_attention_args;

typedef struct cuda_prefill_attention_args {
    tc__cu_ptr qkv, q, k, v, out, vectors, scale, parts, state;
    cuda_head_args head;
    int ctx, tokens, splits;
} cuda_prefill_attention_args;

typedef struct cuda_fill_args {
    tc__cu_ptr data;
    unsigned long long first, count;
    tc__pattern pattern;
} cuda_fill_args;

typedef struct cuda_quantise_args {
    tc__cu_ptr from, to;
    int first;
} cuda_quantise_args;

typedef struct cuda_sample_args {
    tc__cu_ptr logits, keys, segments, arrived, ids, state, host, table, x, begun, weights;
    cuda_sample_settings settings;
    int ctx, pairs, brought, pad;
} cuda_sample_args;

/* ---- the device ---- */

static void cuda_enter(const cuda_device *device) {
    device->cu.context_push(device->context);
}

static void cuda_leave(const cuda_device *device) {
    tc__cu_context previous;
    device->cu.context_pop(&previous);
}

/* The most dynamic shared memory of a block by architecture (CUDA programming guide, table of
 * compute capabilities), for running an older architecture's path on a newer GPU. */
static int cuda_shared_limit(int arch) {
    if (arch == 80 || arch == 87) return 163 << 10;
    if (arch == 86 || arch == 89 || arch >= 120) return 99 << 10;
    return 227 << 10;
}

static int cuda_choose_target(cuda_device *device, tc_error *err) {
    tc__cu *cu = &device->cu;
    int major = 0, minor = 0, limit = 0, l2 = 0;
    cu->device_attribute(&major, TC__CU_ATTRIBUTE_MAJOR, device->ordinal);
    cu->device_attribute(&minor, TC__CU_ATTRIBUTE_MINOR, device->ordinal);
    cu->device_attribute(&limit, TC__CU_ATTRIBUTE_MAX_SHARED, device->ordinal);
    cu->device_attribute(&device->sm_count, TC__CU_ATTRIBUTE_SM_COUNT, device->ordinal);
    cu->device_attribute(&l2, TC__CU_ATTRIBUTE_L2_BYTES, device->ordinal);
    device->first = l2 / 2 < CUDA_FIRST ? l2 / 2 : CUDA_FIRST;
    device->ahead = l2 / 2 / (device->sm_count ? device->sm_count : 1);
    if (device->ahead > CUDA_AHEAD) device->ahead = CUDA_AHEAD;
    cu->driver_version(&device->target.driver);
    const char *forced = getenv("TINYCHAT_INTEGRATED");
    int integrated = forced && strcmp(forced, "1") == 0;
    if (!integrated)
        cu->device_attribute(&integrated, TC__CU_ATTRIBUTE_INTEGRATED, device->ordinal);
    device->integrated = integrated != 0;
    int arch = major * 10 + minor;
    if (arch < 80)
        return tc__fail(err, TC_ERR_DEVICE,
                        "%s has compute capability %d.%d; tinychat needs 8.0 or newer; use "
                        "--device cpu",
                        device->gpu_name, major, minor);
    const char *asked = getenv("TINYCHAT_ARCH");
    if (asked && *asked) {
        int number = 0;
        if (sscanf(asked, "compute_%d", &number) != 1 || number < 80 || number > arch)
            return tc__fail(err, TC_ERR_DEVICE,
                            "TINYCHAT_ARCH is '%s'; expected compute_80 to compute_%d", asked,
                            arch);
        arch = number;
        device->target.as_ptx = true;
        if (cuda_shared_limit(arch) < limit) limit = cuda_shared_limit(arch);
    }
    device->target.arch = arch;
    device->target.specific = arch == 90 && !device->target.as_ptx; /* wgmma: in sm_90a only */
    device->target.shared_limit = limit;
    return TC_OK;
}

/* ---- kernels ---- */

/* The part of a program that instantiates a kernel: its text has "(NAME,". */
static int cuda_part_of(const cuda_programs *all, int program, const char *name) {
    char call[80];
    int part = all->first[program];
    snprintf(call, sizeof call, "(%s,", name);
    while (part + 1 < all->first[program + 1] && !strstr(all->texts[part].data, call)) part++;
    return part;
}

static int cuda_load_kernel(cuda_device *device, int program, const char *name, cuda_kernel *kernel,
                            tc_error *err) {
    tc__cu_module module = device->modules[cuda_part_of(device->programs, program, name)];
    tc__cu *cu = &device->cu;
    char global[80];
    int launch[6] = {0};
    tc__cu_ptr at;
    size_t bytes;
    snprintf(global, sizeof global, "%s_launch", name);
    tc__cu_result result = cu->module_function(&kernel->function, module, name);
    if (!result) result = cu->module_global(&at, &bytes, module, global);
    if (!result && bytes > sizeof launch) bytes = sizeof launch;
    if (!result) result = cu->copy_to_host(launch, at, bytes, NULL);
    if (!result) result = cu->stream_wait(NULL);
    if (!result && launch[2] > 0)
        result = cu->function_set(kernel->function, TC__CU_FUNCTION_MAX_DYNAMIC_SHARED, launch[2]);
    /* the same split of L1 and shared memory for all: an SM must be idle to change it */
    if (!result) result = cu->function_set(kernel->function, TC__CU_FUNCTION_CARVEOUT, 100);
    if (result) return tc__cu_check(cu, result, name, err);
    kernel->grid = launch[0];
    kernel->threads = launch[1];
    kernel->shared = launch[2];
    kernel->tokens = launch[3];
    kernel->cluster = launch[4];
    kernel->walks = launch[5];
    return TC_OK;
}

static int cuda_load_products(cuda_device *device, tc_error *err) {
    char name[64];
    int code = TC_OK;
    device->few = CUDA_SHORT;
    for (int role = 0; role < TC__ROLES && !code; role++)
        for (int i = 0; i < device->kinds.count[role] && !code; i++) {
            cuda_product *product = &device->products[role][i];
            const struct {
                const char *prefix;
                int program;
                cuda_kernel *kernel;
            } kernels[] = {{"", CUDA_DECODE, &product->decode},
                           {"few_", CUDA_DECODE, &product->few},
                           {"t16_", CUDA_FEW, &product->prefill[0]},
                           {"t64_", CUDA_FEW, &product->prefill[1]},
                           {"t128_", CUDA_PREFILL, &product->prefill[2]},
                           {"t256_", CUDA_WIDE, &product->prefill[3]}};
            for (size_t k = 0; k < TC_COUNT(kernels) && !code; k++) {
                snprintf(name, sizeof name, "%s%s_%d", kernels[k].prefix, tc__role_name(role), i);
                code = cuda_load_kernel(device, kernels[k].program, name, kernels[k].kernel, err);
            }
            if (!code && 2 * product->few.tokens < device->few)
                device->few = 2 * product->few.tokens;
        }
    return code;
}

/* Kernels overlap if they wait for each other, which those that an NVRTC older than the GPU made may
 * not do, and the driver knows such launches in graphs. */
static int cuda_load_overlap(cuda_device *device, const tc_model_params *params, tc_error *err) {
    const int driver = device->target.driver;
    char line[160];
    tc__cu *cu = &device->cu;
    int overlap = 0;
    tc__cu_ptr at;
    size_t bytes;
    tc__cu_result result = cu->module_global(&at, &bytes, device->modules[0], "kernels_overlap");
    if (!result) result = cu->copy_to_host(&overlap, at, sizeof overlap, NULL);
    if (!result) result = cu->stream_wait(NULL);
    device->overlap = overlap && driver >= CUDA_OVERLAP_FROM;
    if (overlap && !device->overlap && params->log) {
        snprintf(line, sizeof line,
                 "the driver runs CUDA %d.%d; from 12.3 on kernels overlap, which makes tokens faster",
                 driver / 1000, driver % 1000 / 10);
        params->log(params->user, line);
    }
    return tc__cu_check(cu, result, "kernels_overlap", err);
}

static int cuda_load_kernels(cuda_device *device, const tc_model_params *params, tc_error *err) {
    const struct {
        const char *name;
        int program;
        cuda_kernel *kernel;
    } kernels[] = {
        {"embed", CUDA_DECODE, &device->embed},
        {"head", CUDA_DECODE, &device->head},
        {"head_each", CUDA_DECODE, &device->head_each},
        {"attention", CUDA_DECODE, &device->attention},
        {"attention_few", CUDA_DECODE, &device->attention_few},
        {"sample_token", CUDA_DECODE, &device->sample},
        {"widen", CUDA_DECODE, &device->widen},
        {"read_loop", CUDA_DECODE, &device->read_loop},
        {"random_fill", CUDA_DECODE, &device->random_fill},
        {"embed_all", CUDA_PREFILL, &device->embed_all},
        {"rows_hidden", CUDA_PREFILL, &device->rows},
        {"settle", CUDA_PREFILL, &device->settle},
        {"rope", CUDA_PREFILL, &device->rope},
        {"attention_all", CUDA_PREFILL, &device->attention_prefill},
        {"attention_parts", CUDA_PREFILL, &device->attention_parts},
    };
    int code = cuda_load_overlap(device, params, err);
    if (!code) code = cuda_load_products(device, err);
    for (size_t i = 0; i < TC_COUNT(kernels) && !code; i++)
        code =
            cuda_load_kernel(device, kernels[i].program, kernels[i].name, kernels[i].kernel, err);
    if (!code && device->weights->head_in_8)
        code = cuda_load_kernel(device, CUDA_DECODE, "quantise_head", &device->quantise_head, err);
    /* one block of attention per SM: more would wait for each other's room */
    if (!code) device->splits = device->sm_count / device->attention.grid;
    if (device->splits < 1) device->splits = 1;
    return code;
}

static void cuda_free_programs(cuda_programs *all) {
    for (int i = 0; i < CUDA_MODULES; i++) {
        tc__buf_free(&all->parts[i].image);
        tc__buf_free(&all->texts[i]);
    }
}

/* Parts so many that none takes much longer to compile than the others. */
static int cuda_write_programs(const cuda_device *device, cuda_programs *all, tc_error *err) {
    static const struct {
        const char *name;
        void (*write)(const tc__weights *, const tc__kinds *, int sm_count, tc__buf *);
        int parts;
    } writers[CUDA_PROGRAMS] = {{"decode", tc__write_decode, 5},
                                {"prefill", tc__write_prefill, 3},
                                {"wide", tc__write_prefill_wide, 4},
                                {"few", tc__write_prefill_few, 2}};
    int code = TC_OK, n = 0;
    memset(all, 0, sizeof *all);
    for (int program = 0; program < CUDA_PROGRAMS && !code; program++) {
        tc__buf whole = {NULL, 0, 0, false};
        writers[program].write(device->weights, &device->kinds, device->sm_count, &whole);
        all->first[program] = n;
        for (int i = 0; i < writers[program].parts; i++, n++) {
            tc__buf *text = &all->texts[n];
            tc__cut_program(&whole, (size_t)i, (size_t)writers[program].parts, text);
            snprintf(all->names[n], sizeof all->names[n], "%s-%d", writers[program].name, i + 1);
            all->parts[n].name = all->names[n];
            all->parts[n].text = text->data;
            if (whole.failed || text->failed)
                code = tc__fail_memory(err, "kernel sources", text->len);
        }
        tc__buf_free(&whole);
    }
    all->first[CUDA_PROGRAMS] = n;
    return code;
}

/* Whose kernels these are, for people who carry them to another machine. */
static void cuda_describe_kernels(const cuda_device *device, char *text, size_t size) {
    const tc__arch *arch = &device->weights->arch;
    char precision[48];
    tc__precision_name(device->weights, precision, sizeof precision);
    snprintf(text, size,
             "tinychat %s, %s_%d%s with %d SMs, %s, hidden size %u, MLP %u, %u/%u heads",
             TC_VERSION, device->target.as_ptx ? "compute" : "sm", device->target.arch,
             device->target.specific ? "a" : "", device->sm_count, precision,
             (unsigned)arch->hidden_size, (unsigned)arch->intermediate_size, (unsigned)arch->heads,
             (unsigned)arch->kv_heads);
}

static int cuda_compile(cuda_device *device, const tc_model_params *params, tc_error *err) {
    cuda_programs all;
    char what[240];
    if (params->progress && params->progress(params->user, 0, "preparing kernels"))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled while preparing kernels");
    int code = cuda_write_programs(device, &all, err);
    cuda_describe_kernels(device, what, sizeof what);
    const int n = all.first[CUDA_PROGRAMS];
    if (!code)
        code = params->kernels ? tc__jit_import(params->kernels, what, all.parts, (size_t)n,
                                                &device->target, err)
                               : tc__jit(all.parts, (size_t)n, &device->target, params, err);
    for (int i = 0; i < n && !code; i++)
        code = tc__cu_check(&device->cu,
                            device->cu.module_load(&device->modules[i], all.parts[i].image.data),
                            "loading kernels", err);
    device->programs = &all;
    if (!code) code = cuda_load_kernels(device, params, err);
    device->programs = NULL;
    cuda_free_programs(&all);
    return code;
}

/* Out of the cache, or compiled once more. */
static int cuda_export_kernels(tc__device *handle, const char *path, tc_error *err) {
    const cuda_device *device = (const cuda_device *)handle;
    cuda_programs all;
    char what[240];
    int code = cuda_write_programs(device, &all, err);
    const size_t n = (size_t)all.first[CUDA_PROGRAMS];
    cuda_describe_kernels(device, what, sizeof what);
    if (!code) code = tc__jit(all.parts, n, &device->target, NULL, err);
    if (!code) code = tc__jit_export(path, what, all.parts, n, &device->target, err);
    cuda_free_programs(&all);
    return code;
}

/* ---- launches ---- */

/* Launches with `args` as the kernel's one argument. grid_x 0: the kernel's own. `overlap`: its
 * blocks may start while the kernel before it still works (from sm_90 on). */
static tc__cu_result cuda_launch(cuda_device *device, const cuda_kernel *kernel, int grid_x,
                                 int grid_y, void *args, tc__cu_stream stream, bool overlap) {
    tc__cu_launch_attribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = TC__CU_LAUNCH_PROGRAMMATIC;
    attribute.value.value = 1;
    tc__cu_launch_config config;
    memset(&config, 0, sizeof config);
    config.grid_x = (unsigned)(grid_x ? grid_x : kernel->grid);
    config.grid_y = (unsigned)grid_y;
    config.grid_z = 1;
    config.block_x = (unsigned)kernel->threads;
    config.block_y = config.block_z = 1;
    config.shared_bytes = (unsigned)kernel->shared;
    config.stream = stream;
    config.attributes = &attribute;
    config.attribute_count = overlap && device->overlap ? 1 : 0;
    void *arguments[] = {args};
    return device->cu.launch(&config, kernel->function, arguments, NULL);
}

/* ---- loading ---- */

static size_t cuda_kv_bytes(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    const tc__arch *arch = &device->weights->arch;
    return (size_t)arch->layers * 2 * arch->kv_heads * arch->head_dim * 2;
}

static size_t cuda_align(size_t bytes) {
    return (bytes + 255) & ~(size_t)255;
}

/* Where a tensor lies in GPU memory: the file's order and alignment. */
static tc__cu_ptr cuda_tensor(const cuda_device *device, const tc__tensor *tensor) {
    return device->memory + tensor->offset;
}

/* The same of a tensor that may be missing. */
static tc__cu_ptr cuda_vector(const cuda_device *device, const tc__tensor *tensor) {
    return tensor ? cuda_tensor(device, tensor) : 0;
}

/* A team that loads the tensor data in pieces. Workers from 1 on read a part of each piece, as far
 * ahead as there is room; worker 0 passes piece after piece on to the GPU. So nobody waits for the
 * slowest reader of a piece but the copy itself. */
typedef struct cuda_loader {
    cuda_device *device;
    const tc_model_params *params;
    size_t pieces; /* of CUDA_STAGING bytes */
    uint8_t *stages; /* CUDA_STAGES pieces, to be pinned; NULL: they are read to their place */
    bool pinned;
    tc__cu_event copied[CUDA_STAGES];
    tc__team *team;
    int readers, counts; /* that are open: read[0] .. read[CUDA_STAGES - 1], room */
    tc__count read[CUDA_STAGES], room; /* parts read into each stage; pieces that may be read */
    tc__flag short_read, stop;
    int code; /* worker 0's */
    tc_error *err;
} cuda_loader;

static size_t cuda_piece_bytes(const cuda_loader *loader, size_t piece) {
    const size_t left = loader->device->weights->data_bytes - piece * CUDA_STAGING;
    return left < CUDA_STAGING ? left : CUDA_STAGING;
}

static uint8_t *cuda_piece_room(const cuda_loader *loader, size_t piece) {
    if (loader->stages) return loader->stages + piece % CUDA_STAGES * CUDA_STAGING;
    return (uint8_t *)(uintptr_t)loader->device->memory + piece * CUDA_STAGING;
}

/* From a file tensor data is read, not copied out of the mapping: each page of that costs a fault,
 * for which many threads wait for each other. False: the file ends too early. */
static bool cuda_read(const tc__weights *weights, size_t at, size_t bytes, uint8_t *to) {
    if (!weights->in_file) memcpy(to, weights->data + at, bytes);
    while (weights->in_file && bytes > 0) {
        const ssize_t n = pread(weights->fd, to, bytes, (off_t)(weights->data_at + at));
        if (n == 0 || (n < 0 && errno != EINTR)) return false;
        if (n > 0) at += (size_t)n, to += n, bytes -= (size_t)n;
    }
    return true;
}

static void cuda_read_parts(cuda_loader *loader, int reader) {
    for (size_t piece = 0; piece < loader->pieces; piece++) {
        size_t begin, end;
        tc__count_wait(&loader->room, (unsigned)piece + 1);
        if (tc__flag_get(&loader->stop)) return;
        tc__share(cuda_piece_bytes(loader, piece), reader, loader->readers, &begin, &end);
        if (!cuda_read(loader->device->weights, piece * CUDA_STAGING + begin, end - begin,
                       cuda_piece_room(loader, piece) + begin))
            tc__flag_set(&loader->short_read, true);
        tc__count_add(&loader->read[piece % CUDA_STAGES], 1);
    }
}

static int cuda_pin(cuda_loader *loader) {
    const tc__cu *cu = &loader->device->cu;
    tc__cu_result result = cu->host_register(loader->stages, CUDA_STAGES * CUDA_STAGING, 0);
    loader->pinned = !result;
    for (int i = 0; i < CUDA_STAGES && !result; i++)
        result = cu->event_create(&loader->copied[i], 2 /* no timing */);
    return tc__cu_check(cu, result, "pinning memory of the CPU", loader->err);
}

/* Queues a piece's copy to the GPU; then those before it, but for the last few, are done. */
static int cuda_copy(cuda_loader *loader, size_t piece) {
    const tc__cu *cu = &loader->device->cu;
    tc__cu_result result = cu->copy_to_device(
        loader->device->memory + piece * CUDA_STAGING, cuda_piece_room(loader, piece),
        cuda_piece_bytes(loader, piece), NULL);
    if (!result) result = cu->event_record(loader->copied[piece % CUDA_STAGES], NULL);
    if (!result && piece >= CUDA_QUEUED)
        result = cu->event_wait(loader->copied[(piece - CUDA_QUEUED) % CUDA_STAGES]);
    return tc__cu_check(cu, result, "copying weights", loader->err);
}

static int cuda_loaded(const tc_model_params *params, size_t at, size_t total, tc_error *err) {
    if (params->progress && params->progress(params->user, (double)at / (double)total, "loading"))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled while loading");
    return TC_OK;
}

/* While memory is pinned the readers fill it already. */
static int cuda_pass_on(cuda_loader *loader) {
    int code = loader->stages ? cuda_pin(loader) : TC_OK;
    for (size_t piece = 0; piece < loader->pieces && !code; piece++) {
        const size_t before = piece / CUDA_STAGES, bytes = cuda_piece_bytes(loader, piece);
        tc__count_wait(&loader->read[piece % CUDA_STAGES],
                       (unsigned)((before + 1) * (size_t)loader->readers));
        if (tc__flag_get(&loader->short_read))
            return tc__fail(loader->err, TC_ERR_IO,
                            "the model file cannot be read to its end: was it changed?");
        if (loader->stages) code = cuda_copy(loader, piece);
        if (!loader->stages || piece >= CUDA_QUEUED) tc__count_add(&loader->room, 1);
        if (!code)
            code = cuda_loaded(loader->params, piece * CUDA_STAGING + bytes,
                               loader->device->weights->data_bytes, loader->err);
    }
    return code;
}

static void cuda_load_worker(void *user, int worker) {
    cuda_loader *loader = user;
    if (worker > 0) {
        cuda_read_parts(loader, worker - 1);
        return;
    }
    loader->code = cuda_pass_on(loader);
    tc__flag_set(&loader->stop, true);
    tc__count_add(&loader->room, (unsigned)loader->pieces); /* nobody waits any longer */
}

static int cuda_loader_open(cuda_loader *loader, cuda_device *device,
                            const tc_model_params *params, tc_error *err) {
    const int processors = tc__processors();
    const int workers = processors > CUDA_LOADERS ? CUDA_LOADERS : processors > 1 ? processors : 2;
    void *stages = NULL;
    memset(loader, 0, sizeof *loader);
    loader->device = device, loader->params = params, loader->err = err;
    loader->readers = workers - 1;
    loader->pieces = (device->weights->data_bytes + CUDA_STAGING - 1) / CUDA_STAGING;
    for (int i = 0; i <= CUDA_STAGES; i++, loader->counts++)
        if (!tc__count_open(i < CUDA_STAGES ? &loader->read[i] : &loader->room, workers))
            return tc__fail(err, TC_ERR_MEMORY, "loading: no memory for a mutex");
    tc__count_add(&loader->room, CUDA_STAGES);
    if (!device->integrated && posix_memalign(&stages, 4096, CUDA_STAGES * CUDA_STAGING))
        return tc__fail_memory(err, "staging buffers", CUDA_STAGES * CUDA_STAGING);
    loader->stages = stages;
    return tc__team_open(workers, &loader->team, err);
}

static void cuda_loader_close(cuda_loader *loader) {
    const tc__cu *cu = &loader->device->cu;
    tc__team_close(loader->team);
    for (int i = 0; i < CUDA_STAGES; i++)
        if (loader->copied[i]) cu->event_destroy(loader->copied[i]);
    for (int i = 0; i < loader->counts; i++)
        tc__count_close(i < CUDA_STAGES ? &loader->read[i] : &loader->room);
    if (loader->pinned) cu->host_unregister(loader->stages);
    free(loader->stages);
}

/* Loads the tensor data that a file, or the caller's memory, holds: through pinned buffers, or where
 * the CPU and the GPU share memory to where the kernels find it. */
static int cuda_load_data(cuda_device *device, const tc_model_params *params, tc_error *err) {
    cuda_loader loader;
    int code = cuda_loaded(params, 0, 1, err);
    if (code) return code;
    code = cuda_loader_open(&loader, device, params, err);
    if (!code) {
        tc__team_run(loader.team, cuda_load_worker, &loader);
        const tc__cu_result last = device->cu.stream_wait(NULL); /* before the buffers go */
        code = loader.code ? loader.code
                           : tc__cu_check(&device->cu, last, "copying weights", err);
    }
    cuda_loader_close(&loader);
    return code;
}

static int cuda_fill(cuda_device *device, const tc__tensor *tensor, tc_error *err) {
    if (!tensor) return TC_OK;
    cuda_fill_args args = {cuda_tensor(device, tensor), tensor->offset / 8, tensor->size / 8,
                           tc__shape_pattern(tensor)};
    return tc__cu_check(&device->cu,
                        cuda_launch(device, &device->random_fill, 0, 1, &args, NULL, false),
                        "making random weights", err);
}

/* Weights that no file holds: random numbers, the same ones that the CPU makes. */
static int cuda_fill_all(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    const tc__tensor *beside[] = {weights->embed, weights->norm, weights->norm_bias,
                                  weights->head == weights->embed ? NULL : weights->head};
    int code = TC_OK;
    for (size_t i = 0; i < TC_COUNT(beside) && !code; i++) code = cuda_fill(device, beside[i], err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++) {
        const tc__layer *layer = &weights->layers[l];
        const tc__tensor *tensors[] = {
            layer->attn_norm, layer->attn_norm_bias, layer->qkv,        layer->qkv_bias,
            layer->q_norm,    layer->k_norm,         layer->o,          layer->mlp_norm,
            layer->gate_up,   layer->mlp_norm_bias,  layer->act_scales, layer->down};
        for (size_t i = 0; i < TC_COUNT(tensors) && !code; i++)
            code = cuda_fill(device, tensors[i], err);
    }
    if (!code)
        code =
            tc__cu_check(&device->cu, device->cu.stream_wait(NULL), "making random weights", err);
    return code;
}

/* bfloat16 tensors become binary16 in place. */
static int cuda_widen(cuda_device *device, const tc__tensor *tensor, tc_error *err) {
    struct {
        tc__cu_ptr data;
        unsigned long long count;
    } args = {cuda_tensor(device, tensor), tensor->rows * tensor->columns};
    if (tensor->type != TC__BF16) return TC_OK;
    return tc__cu_check(
        &device->cu,
        cuda_launch(device, &device->widen, 4 * device->sm_count, 1, &args, NULL, false),
        "converting bfloat16", err);
}

static int cuda_widen_all(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    int code = cuda_widen(device, weights->embed, err);
    if (!code && weights->head != weights->embed) code = cuda_widen(device, weights->head, err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++)
        for (int role = 0; role < TC__ROLES && !code; role++)
            code = cuda_widen(device, tc__role_matrix(&weights->layers[l], role), err);
    if (!code) code = tc__cu_check(&device->cu, device->cu.stream_wait(NULL), "converting", err);
    return code;
}

/* The head in 8 bits, where it was or apart. Each launch takes as many row blocks as fit where those
 * before them were. */
static int cuda_quantise_head(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    const size_t blocks = (weights->head->rows + TC__UNIT_ROWS - 1) / TC__UNIT_ROWS;
    const size_t bytes = tc__head_8_bytes(weights) / blocks;
    const size_t before = 2 * TC__UNIT_ROWS * weights->head->columns; /* of a row block, too */
    cuda_quantise_args args = {cuda_tensor(device, weights->head), device->head_at, 0};
    tc__cu_result result = TC_OK;
    for (size_t first = 0, end; first < blocks && !result; first = end) {
        end = first * before / bytes;
        if (end <= first) end = first + 1;
        if (end > blocks) end = blocks;
        args.first = (int)first;
        result = cuda_launch(device, &device->quantise_head, (int)(end - first), 1, &args, NULL,
                             false);
    }
    if (!result) result = device->cu.stream_wait(NULL);
    return tc__cu_check(&device->cu, result, "making 8 bits of the head", err);
}

/* Bytes of what attention knows of positions. */
static size_t cuda_position_bytes(const tc__arch *arch) {
    return arch->position == TC__POSITION_ALIBI ? 4 * (size_t)arch->heads
                                                : 8 * (size_t)(arch->head_dim / 2);
}

/* ALiBi's slopes, or for every pair of a head the turns per position: whole turns do not matter, so
 * the fraction is kept, times 2^64. */
static int cuda_load_positions(cuda_device *device, tc_error *err) {
    const tc__arch *arch = &device->weights->arch;
    const void *from = arch->slopes;
    uint64_t turns[128]; /* head_dim is at most 256 on the GPU */
    if (arch->position != TC__POSITION_ALIBI) {
        for (size_t i = 0; i < arch->head_dim / 2; i++) {
            double turn = arch->frequencies[i] * 0.15915494309189535; /* 1 / (2 pi) */
            turns[i] = (uint64_t)ldexp(turn - floor(turn), 64);
        }
        from = turns;
    }
    tc__cu_result result =
        device->cu.copy_to_device(device->positions, from, cuda_position_bytes(arch), NULL);
    return tc__cu_check(&device->cu, result, "copying RoPE's frequencies or ALiBi's slopes", err);
}

/* Memory that a new allocation could take. Where the GPU uses the system's, the driver leaves out
 * what the system would give back: the files it has cached, the model's own first of all. */
static size_t cuda_room(const cuda_device *device) {
    size_t free_bytes = 0, total = 0;
    device->cu.memory_info(&free_bytes, &total);
    if (!device->integrated) return free_bytes;
    const size_t available = tc__available_memory(), most = available < total ? available : total;
    return free_bytes > most ? free_bytes : most;
}

static int cuda_fail_weights(const cuda_device *device, tc_error *err) {
    const double kv = (double)cuda_kv_bytes((const tc__device *)device);
    return tc__fail(err, TC_ERR_MEMORY,
                    "out of GPU memory: the weights alone need %.2f GiB (and 1024 positions of KV "
                    "cache %.2f GiB); %s has %.2f GiB free: no --max-seq-len fits",
                    (double)device->memory_bytes / 0x1p30, 1024 * kv / 0x1p30, device->gpu_name,
                    (double)cuda_room(device) / 0x1p30);
}

/* Memory for all tensors, and behind them for positions and for an 8-bit head whose numbers the
 * embedding keeps. Integrated: for the CPU alone so far. */
static int cuda_allocate(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    const tc__arch *arch = &weights->arch;
    /* kernels read whole 16-row blocks: the last matrix may be read up to 15 rows past its end */
    const size_t slack = 32 * ((size_t)arch->hidden_size + arch->intermediate_size);
    const size_t tensors = cuda_align(weights->data_bytes + slack);
    const size_t positions = cuda_align(cuda_position_bytes(arch));
    const size_t apart = weights->head_apart_bytes;
    device->memory_bytes = tensors + positions + apart;
    const tc__cu *cu = &device->cu;
    const tc__cu_result result =
        device->integrated
            ? cu->allocate_managed(&device->memory, device->memory_bytes, TC__CU_ATTACH_HOST)
            : cu->allocate(&device->memory, device->memory_bytes);
    device->positions = device->memory + tensors;
    const size_t from_first = device->memory_bytes - weights->layers[0].qkv->offset;
    if ((size_t)device->first > from_first) device->first = (int)from_first;
    device->head_at = apart ? device->positions + positions : cuda_tensor(device, weights->head);
    if (result == TC__CU_OUT_OF_MEMORY) return cuda_fail_weights(device, err);
    return tc__cu_check(cu, result, "allocating memory for the weights", err);
}

static int cuda_load(cuda_device *device, const tc_model_params *params, tc_error *err) {
    const bool random = !device->weights->data;
    int code = cuda_allocate(device, err);
    if (!code && !random) code = cuda_load_data(device, params, err);
    if (!code && device->integrated) /* from here on the GPU's */
        code = tc__cu_check(&device->cu,
                            device->cu.stream_attach(NULL, device->memory, 0, TC__CU_ATTACH_GLOBAL),
                            "sharing memory", err);
    if (!code) code = cuda_load_positions(device, err);
    if (!code) code = random ? cuda_fill_all(device, err) : cuda_widen_all(device, err);
    return code || !device->weights->head_in_8 ? code : cuda_quantise_head(device, err);
}

/* ---- opening ---- */

static void cuda_close(tc__device *handle) {
    cuda_device *device = (cuda_device *)handle;
    if (!device) return;
    tc__cu *cu = &device->cu;
    if (device->context) {
        cuda_enter(device);
        for (int i = 0; i < CUDA_MODULES; i++)
            if (device->modules[i]) cu->module_unload(device->modules[i]);
        if (device->memory) cu->release(device->memory);
        cuda_leave(device);
        cu->context_release(device->ordinal);
    }
    if (device->opened) tc__cu_close(cu);
    free(device);
}

/* "cuda" or "cuda:N" to a device. */
static int cuda_choose_device(cuda_device *device, const char *name, tc_error *err) {
    tc__cu *cu = &device->cu;
    int count = 0, index = 0;
    if (name && strncmp(name, "cuda:", 5) == 0) {
        char *end;
        long n = strtol(name + 5, &end, 10);
        if (*end || end == name + 5 || n < 0 || n > 1024)
            return tc__fail(err, TC_ERR_ARGUMENT, "device '%s': expected cuda or cuda:N", name);
        index = (int)n;
    }
    int code = tc__cu_check(cu, cu->device_count(&count), "counting GPUs", err);
    if (code) return code;
    if (index >= count)
        return tc__fail(err, TC_ERR_DEVICE,
                        "there is no GPU %d: the driver shows %d (CUDA_VISIBLE_DEVICES hides GPUs)",
                        index, count);
    tc__cu_result result = cu->device_get(&device->ordinal, index);
    if (!result)
        result = cu->device_name(device->gpu_name, sizeof device->gpu_name, device->ordinal);
    if (!result) code = cuda_choose_target(device, err);
    if (code) return code;
    if (!result) result = cu->context_retain(&device->context, device->ordinal);
    return tc__cu_check(cu, result, "opening the GPU", err);
}

/* What a benchmark's reader wants to know besides the device's name. */
static void cuda_write_details(cuda_device *device) {
    const int version = device->target.driver;
    char line[256] = "", release[32] = "";
    int khz = 0;
    FILE *file = fopen("/proc/driver/nvidia/version", "r");
    if (file && !fgets(line, sizeof line, file)) line[0] = 0;
    if (file) fclose(file);
    for (const char *at = strpbrk(line, "0123456789"); at; at = strpbrk(at, "0123456789")) {
        const size_t length = strspn(at, "0123456789."); /* "NVRM version: ... 580.65.06 ..." */
        if (at[-1] == ' ' && memchr(at, '.', length) && length < sizeof release) {
            snprintf(release, sizeof release, "%.*s ", (int)length, at);
            break;
        }
        at += length;
    }
    device->cu.device_attribute(&khz, TC__CU_ATTRIBUTE_CLOCK_KHZ, device->ordinal);
    snprintf(device->details, sizeof device->details, "driver %s(CUDA %d.%d), up to %d MHz",
             release, version / 1000, version % 1000 / 10, khz / 1000);
}

static int cuda_open(const tc__weights *weights, const tc_model_params *params, tc__device **out,
                     tc_error *err) {
    cuda_device *device = tc__calloc(1, sizeof *device);
    *out = NULL;
    if (!device) return tc__fail_memory(err, "a device", sizeof *device);
    device->weights = weights;
    int code = tc__cu_open(&device->cu, err);
    device->opened = code == TC_OK;
    if (!code) code = cuda_choose_device(device, params->device, err);
    if (!code) {
        cuda_enter(device);
        code = tc__kinds_find(device->weights, &device->kinds, err);
        if (!code) code = cuda_compile(device, params, err);
        if (!code) code = cuda_load(device, params, err);
        cuda_leave(device);
    }
    if (code) {
        cuda_close((tc__device *)device);
        return code;
    }
    snprintf(device->name, sizeof device->name, "%s (%s_%d%s, %d SMs%s)", device->gpu_name,
             device->target.as_ptx ? "compute" : "sm", device->target.arch,
             device->target.specific ? "a" : "", device->sm_count,
             device->integrated ? ", shared memory" : "");
    cuda_write_details(device);
    *out = (tc__device *)device;
    return tc__ok(err);
}

static const char *cuda_details(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    return device->details;
}

static const char *cuda_name(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    return device->name;
}

/* ---- a session's memory ---- */

/* Cuts the next part off. */
static tc__cu_ptr cuda_cut(tc__cu_ptr base, size_t *at, size_t bytes) {
    tc__cu_ptr part = base + *at;
    *at += cuda_align(bytes);
    return part;
}

/* Pairs of products (PAIR_FIRST and PAIR_SECOND of product_decode.cuh): two in a parallel block. */
static int cuda_pairs(const tc__arch *arch) {
    return arch->parallel ? 2 * (int)arch->layers : 0;
}

/* An operand of a prefill's product (src/kernels/rows.cuh): tiles of 128 vectors x 64 columns, and
 * one more, because a stage may end behind the last. */
static size_t cuda_operand_bytes(size_t tokens, size_t columns) {
    return (tokens / 128 * ((columns + 63) / 64) + 1) * (128 * 64 * 2);
}

/* Lays the parts out from `base`, for prefill pieces of `chunk` tokens (a multiple of CUDA_PIECE);
 * returns the bytes. */
static size_t cuda_layout(cuda_cache *cache, const cuda_device *device, tc__cu_ptr base, int ctx,
                          int chunk) {
    const tc__arch *arch = &device->weights->arch;
    size_t at = 0, tokens = (size_t)chunk, hidden = arch->hidden_size;
    size_t heads = (size_t)arch->heads * arch->head_dim;
    size_t qkv = heads + 2 * (size_t)arch->kv_heads * arch->head_dim;
    size_t inner = arch->intermediate_size;
    size_t cluster = device->attention.cluster > 1 ? (size_t)device->attention.cluster : 1;
    size_t tiles = (size_t)device->attention.grid / cluster; /* of up to 8 heads */
    cache->kv = cuda_cut(base, &at, cuda_kv_bytes((const tc__device *)device) * (size_t)ctx);
    cache->ids = cuda_cut(base, &at, sizeof(int) * (size_t)ctx);
    cache->state = cuda_cut(base, &at, sizeof(cuda_state));
    cache->begun = cuda_cut(base, &at, 4 * (size_t)cuda_pairs(arch));
    cache->logits = cuda_cut(base, &at, 4 * CUDA_EACH * (size_t)arch->vocab_size);
    cache->keys = cuda_cut(base, &at, 4 * (size_t)arch->vocab_size);
    cache->segments =
        cuda_cut(base, &at, 16 * (size_t)(device->sample.grid * device->sample.threads / 32));
    cache->sample_arrived = cuda_cut(base, &at, 4);
    for (int i = 0; i < 3; i++) cache->x[i] = cuda_cut(base, &at, 4 * hidden);
    cache->qkv = cuda_cut(base, &at, 4 * qkv);
    cache->attention = cuda_cut(base, &at, 4 * CUDA_SHORT * heads);
    cache->act = cuda_cut(base, &at, 4 * CUDA_SHORT * inner);
    cache->parts =
        cuda_cut(base, &at, 4 * tiles * (size_t)device->splits * 8 * (arch->head_dim + 2));
    cache->arrived = cuda_cut(base, &at, 4 * tiles);
    cache->wide_x = cuda_cut(base, &at, 4 * tokens * hidden);
    cache->wide_in =
        cuda_cut(base, &at, cuda_operand_bytes(tokens, hidden > heads ? hidden : heads));
    cache->wide_rest = cuda_cut(base, &at, cuda_operand_bytes(CUDA_PRECISE, hidden));
    cache->wide_scale = cuda_cut(base, &at, 4 * tokens);
    cache->mid_scale = cuda_cut(base, &at, 4 * tokens);
    cache->mid_highest = cuda_cut(base, &at, 4 * tokens);
    cache->mid_exponents = cuda_cut(base, &at, tokens * (inner / 8));
    cache->wide_q = cuda_cut(base, &at, 2 * tokens * heads);
    size_t mid = at; /* the MLP's inner vectors share their room with attention's inputs */
    cache->wide_mid = cuda_cut(base, &mid, cuda_operand_bytes(tokens, inner));
    if (arch->parallel) at = mid; /* both at once */
    cache->wide_qkv = cuda_cut(base, &at, 4 * tokens * qkv);
    if (mid > at) at = mid;
    return at;
}

/* Prefill pieces: as many tokens, up to 2048, as 192 MiB hold and the context needs. */
static int cuda_chunk(const cuda_device *device, int ctx) {
    cuda_cache cache;
    size_t fixed = cuda_layout(&cache, device, 0, ctx, 0);
    int chunk = 2048;
    while (chunk - CUDA_PIECE >= ctx) chunk -= CUDA_PIECE;
    while (chunk > CUDA_PIECE && cuda_layout(&cache, device, 0, ctx, chunk) - fixed > (size_t)192
                                                                                          << 20)
        chunk -= CUDA_PIECE;
    return chunk;
}

static size_t cuda_workspace(const tc__device *handle, int ctx) {
    const cuda_device *device = (const cuda_device *)handle;
    cuda_cache cache;
    return cuda_layout(&cache, device, 0, ctx, cuda_chunk(device, ctx)) -
           cuda_align(cuda_kv_bytes((const tc__device *)device) * (size_t)ctx);
}

static size_t cuda_free_bytes(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    cuda_enter(device);
    const size_t room = cuda_room(device);
    cuda_leave(device);
    return room;
}

static void cuda_cache_close(tc__cache *handle) {
    cuda_cache *cache = (cuda_cache *)handle;
    if (!cache) return;
    tc__cu *cu = &cache->device->cu;
    cuda_enter(cache->device);
    if (cache->stream) cu->stream_wait(cache->stream);
    for (int row = 0; row < 2; row++) {
        if (cache->token[row]) cu->graph_exec_destroy(cache->token[row]);
        if (cache->sampled[row]) cu->graph_exec_destroy(cache->sampled[row]);
        if (cache->graphs[row]) cu->graph_destroy(cache->graphs[row]);
    }
    if (cache->stream) cu->stream_destroy(cache->stream);
    if (cache->memory) cu->release(cache->memory);
    if (cache->host_logits) cu->host_release(cache->host_logits);
    if (cache->host_token) cu->host_release(cache->host_token);
    cuda_leave(cache->device);
    free(cache);
}

/* ---- decode ---- */

/* Which matrix of a layer comes when; an exchange of two, so also when a matrix comes. */
static int cuda_role_of(const cuda_device *device, int place) {
    const int parallel[TC__ROLES] = {TC__QKV, TC__GATE_UP, TC__O, TC__DOWN};
    return device->weights->arch.parallel ? parallel[place] : place;
}

/* The kernel of a layer's product of one token or a few. */
static const cuda_kernel *cuda_short_kernel(const cuda_device *device, int role,
                                            const tc__tensor *matrix, int tokens) {
    const cuda_product *product =
        &device->products[role][tc__kind_of(&device->kinds, role, matrix)];
    return tokens == 1 ? &product->decode : &product->few;
}

/* What each block may bring into L2 of number `nth` of the layers' matrices in the order of their
 * use: what follows what the rings of its kernel hold by then. Nothing if that is not worth it: too
 * little follows, or no 4-bit matrix does; or several vectors wait for the memory, as in a short
 * prompt where kernels overlap. */
static cuda_lines cuda_lines_of(const cuda_cache *cache, uint32_t nth, int tokens) {
    const cuda_device *device = cache->device;
    const tc__weights *weights = device->weights;
    const uint32_t l = nth / TC__ROLES;
    cuda_lines lines = {0, 0, 0, 0, 1, 0, device->ahead};
    if (l >= weights->arch.layers || (device->overlap && tokens > 1)) return lines;
    const int role = cuda_role_of(device, (int)(nth % TC__ROLES));
    const tc__tensor *matrix = tc__role_matrix(&weights->layers[l], role);
    const cuda_kernel *kernel = cuda_short_kernel(device, role, matrix, tokens);
    if (matrix->type != TC__W4) return lines;
    lines.weights = cuda_tensor(device, matrix);
    lines.row_blocks = (int)(matrix->rows / TC__UNIT_ROWS);
    lines.row_bytes = (int)(matrix->size / (size_t)lines.row_blocks);
    if (kernel->cluster > 1) lines.split = kernel->cluster;
    lines.blocks = kernel->grid / lines.split;
    const int share = (int)(matrix->size / (size_t)lines.blocks);
    const int held = lines.split * (device->overlap ? CUDA_RINGS : CUDA_RINGS / 6);
    const int brought = lines.split * lines.most, from = lines.split * CUDA_AHEAD_FROM;
    lines.from = share - brought < from ? share - brought : from;
    if (lines.from < held) lines.from = held;
    if (share - lines.from < brought / 2) lines.blocks = 0;
    return lines;
}

/* What the product of matrix `nth` brings into L2: at its end a part of the next matrix, or if the
 * rings hold that, of the one after it, and then the next product brings nothing. Where gate_up waits
 * for o beside it in its SM, it brings a part of its own matrix meanwhile, and no other product does:
 * the memory has little else to do then. */
static void cuda_bring(const cuda_cache *cache, uint32_t nth, int tokens, cuda_product_args *args) {
    const cuda_device *device = cache->device;
    const bool waits = device->overlap && !device->weights->arch.parallel;
    const cuda_lines own = cuda_lines_of(cache, nth, tokens);
    uint32_t next = nth + 1;
    if (waits && nth % TC__ROLES == 2) args->own = own;
    if (nth > 0 && !own.blocks) return;
    if (!cuda_lines_of(cache, next, tokens).blocks) next++;
    if (!waits || next % TC__ROLES != 2) args->next = cuda_lines_of(cache, next, tokens);
}

/* A product of the vectors at args.in, up to CUDA_SHORT: as many at once as its kernel takes. */
static tc__cu_result cuda_product_decode(cuda_cache *cache, uint32_t l, int role,
                                         cuda_product_args args, int tokens) {
    cuda_device *device = cache->device;
    const tc__tensor *matrix = tc__role_matrix(&device->weights->layers[l], role);
    const cuda_kernel *kernel = cuda_short_kernel(device, role, matrix, tokens);
    const bool gated = role == TC__GATE_UP && device->weights->arch.gated;
    const size_t width = gated ? matrix->rows / 2 : matrix->rows;
    tc__cu_result result = TC_OK;
    args.weights = cuda_tensor(device, matrix);
    cuda_bring(cache, l * TC__ROLES + (uint32_t)cuda_role_of(device, role), tokens, &args);
    args.begun = cache->begun + 4 * (2 * l + (role == TC__O || role == TC__DOWN)); /* in a pair */
    for (int t = 0; t < tokens && !result; t += kernel->tokens) {
        args.tokens = tokens - t < kernel->tokens ? tokens - t : kernel->tokens;
        result = cuda_launch(device, kernel, 0, 1, &args, cache->stream, true);
        args.in += 4 * (size_t)kernel->tokens * matrix->columns;
        args.out += 4 * (size_t)kernel->tokens * width;
        args.residual += 4 * (size_t)kernel->tokens * width;
    }
    return result;
}

static tc__cu_result cuda_head(cuda_cache *cache, const cuda_kernel *kernel, tc__cu_ptr x,
                               int tokens, int row, bool overlap) {
    const tc__weights *weights = cache->device->weights;
    cuda_product_args args = {.weights = cache->device->head_at,
                              .in = x,
                              .gamma = cuda_tensor(cache->device, weights->norm),
                              .beta = cuda_vector(cache->device, weights->norm_bias),
                              .out = cache->logits + 4 * (size_t)row * weights->arch.vocab_size,
                              .tokens = tokens};
    return cuda_launch(cache->device, kernel, 0, 1, &args, cache->stream, overlap);
}

/* How a layer makes queries and keys of its projections. */
static cuda_head_args cuda_head_of(const cuda_device *device, const tc__layer *layer) {
    bool alibi = device->weights->arch.position == TC__POSITION_ALIBI;
    cuda_head_args head = {alibi ? 0 : device->positions, alibi ? device->positions : 0,
                           cuda_vector(device, layer->q_norm), cuda_vector(device, layer->k_norm)};
    return head;
}

/* The vectors of one token, or of up to CUDA_SHORT. A layer takes x to mid and that to next: of one
 * token, where halves of a product's columns meet in zeros, three places; else all the same. */
typedef struct cuda_vectors {
    tc__cu_ptr x, mid, next, qkv, attention, act;
    int tokens;
    size_t pos; /* of the first; of one token 0: the device knows it */
} cuda_vectors;

static tc__cu_ptr cuda_keys(const cuda_cache *cache, uint32_t l, tc__cu_ptr *values) {
    const size_t layers = cache->device->weights->arch.layers;
    const size_t bytes =
        cuda_kv_bytes((const tc__device *)cache->device) / layers * (size_t)cache->ctx;
    *values = cache->kv + l * bytes + bytes / 2;
    return cache->kv + l * bytes;
}

/* One token, or a few behind few keys. */
static tc__cu_result cuda_attend_few(cuda_cache *cache, uint32_t l, const cuda_vectors *v) {
    cuda_device *device = cache->device;
    const cuda_kernel *one = &device->attention, *few = &device->attention_few;
    cuda_decode_attention_args args = {
        v->qkv,         0,
        0,              v->attention,
        cache->parts,   cache->arrived,
        cache->state,   cuda_head_of(device, &device->weights->layers[l]),
        cache->ctx};
    args.k = cuda_keys(cache, l, &args.v);
    if (v->tokens == 1)
        return cuda_launch(device, one, 0, device->splits, &args, cache->stream, true);
    return cuda_launch(device, few, few->grid * v->tokens, 1, &args, cache->stream, true);
}

/* Into how many parts blocks share a prefill's keys: as many as bring two blocks to every SM, have
 * CUDA_SPLIT_KEYS keys each, and fit where the projections were. */
static int cuda_prefill_splits(const cuda_cache *cache, const tc__layer *layer, int tokens,
                               int tiles, size_t pos) {
    const tc__arch *arch = &cache->device->weights->arch;
    const size_t floats = (size_t)tokens * arch->heads * (arch->head_dim + 2); /* of a part */
    const size_t most = (size_t)cache->chunk * layer->qkv->rows / floats;
    const size_t keys = (pos + (size_t)tokens) / CUDA_SPLIT_KEYS;
    size_t splits = 2 * (size_t)cache->device->sm_count / ((size_t)tiles * arch->heads);
    if (splits > keys) splits = keys;
    if (splits > most) splits = most;
    return splits > 1 ? (int)splits : 1;
}

/* From the projections in wide_qkv, the first at `pos`: results in wide_in, or as `vectors`. */
static tc__cu_result cuda_attend_many(cuda_cache *cache, uint32_t l, int tokens, size_t pos,
                                      tc__cu_ptr vectors) {
    cuda_device *device = cache->device;
    const tc__arch *arch = &device->weights->arch;
    const tc__layer *layer = &device->weights->layers[l];
    const int tile = device->attention_prefill.tokens, tiles = (tokens + tile - 1) / tile;
    cuda_prefill_attention_args args = {
        cache->wide_qkv, cache->wide_q,     0,   0,      cache->wide_in,
        vectors,         cache->wide_scale, cache->wide_qkv, cache->state,
        cuda_head_of(device, layer), cache->ctx, tokens, 1};
    args.k = cuda_keys(cache, l, &args.v);
    args.splits = cuda_prefill_splits(cache, layer, tokens, tiles, pos);
    tc__cu_result result =
        cuda_launch(device, &device->rope, 0, tokens, &args, cache->stream, true);
    if (!result)
        result = cuda_launch(device, &device->attention_prefill, (int)arch->heads * args.splits,
                             tiles, &args, cache->stream, true);
    if (!result && args.splits > 1)
        result = cuda_launch(device, &device->attention_parts, (tokens * (int)arch->heads + 7) / 8,
                             1, &args, cache->stream, true);
    return result;
}

/* A layer of one token or a few. In a parallel block the MLP reads x before attention adds to it;
 * qkv, attention and up overlap, since up needs x alone, as do o and down (PAIR_FIRST and
 * PAIR_SECOND of product_decode.cuh). */
static tc__cu_result cuda_token_layer(cuda_cache *cache, uint32_t l, const cuda_vectors *v) {
    cuda_device *device = cache->device;
    const tc__arch *arch = &device->weights->arch;
    const tc__layer *layer = &device->weights->layers[l];
    const tc__tensor *mlp_norm = layer->mlp_norm ? layer->mlp_norm : layer->attn_norm;
    const tc__tensor *mlp_bias = layer->mlp_norm ? layer->mlp_norm_bias : layer->attn_norm_bias;
    cuda_product_args qkv = {.in = v->x,
                             .gamma = cuda_tensor(device, layer->attn_norm),
                             .beta = cuda_vector(device, layer->attn_norm_bias),
                             .extra = cuda_vector(device, layer->qkv_bias),
                             .out = v->qkv};
    cuda_product_args o = {.in = v->attention, .out = v->mid, .residual = v->x};
    cuda_product_args up = {.in = arch->parallel ? v->x : v->mid,
                            .gamma = cuda_tensor(device, mlp_norm),
                            .beta = cuda_vector(device, mlp_bias),
                            .extra = cuda_vector(device, layer->act_scales),
                            .out = v->act};
    cuda_product_args down = {.in = v->act, .out = v->next, .residual = v->mid};
    if (v->mid != v->x) { /* nobody reads these any more when the product is done */
        qkv.clear = v->mid, up.clear = v->next;
        qkv.clears = up.clears = (int)arch->hidden_size;
    }
    tc__cu_result result = cuda_product_decode(cache, l, TC__QKV, qkv, v->tokens);
    if (!result)
        result = v->pos + (size_t)v->tokens <= CUDA_FEW_KEYS
                     ? cuda_attend_few(cache, l, v)
                     : cuda_attend_many(cache, l, v->tokens, v->pos, v->attention);
    if (!result && arch->parallel)
        result = cuda_product_decode(cache, l, TC__GATE_UP, up, v->tokens);
    if (!result) result = cuda_product_decode(cache, l, TC__O, o, v->tokens);
    if (!result && !arch->parallel)
        result = cuda_product_decode(cache, l, TC__GATE_UP, up, v->tokens);
    return result ? result : cuda_product_decode(cache, l, TC__DOWN, down, v->tokens);
}

/* What chooses a token. `begin`: and does the first step of its evaluation, while weights come into
 * L2. */
static cuda_sample_args cuda_choice(const cuda_cache *cache, const cuda_sample_settings *settings,
                                    bool begin) {
    const cuda_device *device = cache->device;
    const tc__weights *weights = device->weights;
    cuda_sample_args args = {cache->logits,
                             cache->keys,
                             cache->segments,
                             cache->sample_arrived,
                             cache->ids,
                             cache->state,
                             cache->device_token,
                             begin ? cuda_tensor(device, weights->embed) : 0,
                             cache->x[0],
                             cache->begun,
                             cuda_tensor(device, weights->layers[0].qkv),
                             *settings,
                             cache->ctx,
                             cuda_pairs(&weights->arch),
                             begin ? device->first : 0,
                             0};
    return args;
}

static tc__cu_result cuda_choose(const cuda_cache *cache, const cuda_sample_settings *settings,
                                 bool begin) {
    cuda_sample_args args = cuda_choice(cache, settings, begin);
    return cuda_launch(cache->device, &cache->device->sample, 0, 1, &args, cache->stream, false);
}

/* The same with other settings for what was recorded. */
static tc__cu_result cuda_change_choice(cuda_cache *cache, int row,
                                        const cuda_sample_settings *settings) {
    const cuda_kernel *kernel = &cache->device->sample;
    cuda_sample_args args = cuda_choice(cache, settings, true);
    void *arguments[] = {&args};
    const tc__cu_kernel_node node = {kernel->function, (unsigned)kernel->grid, 1, 1,
                                     (unsigned)kernel->threads, 1, 1, (unsigned)kernel->shared,
                                     arguments, NULL};
    return cache->device->cu.graph_exec_set_kernel(cache->sampled[row], cache->choices[row], &node);
}

static cuda_embed_args cuda_embed(const cuda_cache *cache, tc__cu_ptr out, int tokens) {
    const tc__weights *weights = cache->device->weights;
    cuda_embed_args args = {cuda_tensor(cache->device, weights->embed), cache->ids, cache->state,
                            out, cache->begun, tokens, cuda_pairs(&weights->arch)};
    return args;
}

/* The launches of one token, that at ids[state.next] or (`sampled`) one that is chosen first; its
 * logits into a row. */
static tc__cu_result cuda_token(cuda_cache *cache, int row, bool sampled) {
    cuda_device *device = cache->device;
    cuda_embed_args embed = cuda_embed(cache, cache->x[0], 1);
    cuda_vectors v = {0, 0, cache->x[0], cache->qkv, cache->attention, cache->act, 1, 0};
    const cuda_sample_settings none = {0};
    tc__cu_result result =
        sampled ? cuda_choose(cache, &none, true)
                : cuda_launch(device, &device->embed, 1, 1, &embed, cache->stream, false);
    for (uint32_t l = 0; l < device->weights->arch.layers && !result; l++) {
        v.x = v.next, v.mid = cache->x[(2 * l + 1) % 3], v.next = cache->x[(2 * l + 2) % 3];
        result = cuda_token_layer(cache, l, &v);
    }
    return result ? result : cuda_head(cache, &device->head, v.next, 1, row, true);
}

/* Records one token's launches as a graph. */
static int cuda_record(cuda_cache *cache, int row, bool sampled, tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    tc__cu_graph graph = NULL;
    tc__cu_result result = cu->capture_begin(cache->stream, 1 /* thread-local */);
    if (!result) {
        result = cuda_token(cache, row, sampled);
        tc__cu_result end = cu->capture_end(cache->stream, &graph);
        if (!result) result = end;
    }
    tc__cu_graph_exec *exec = sampled ? &cache->sampled[row] : &cache->token[row];
    if (!result) result = cu->graph_instantiate(exec, graph, 0);
    if (!result && sampled) {
        size_t count = 1; /* the choice comes first */
        result = cu->graph_roots(graph, &cache->choices[row], &count);
        cache->graphs[row] = graph;
    } else if (graph) {
        cu->graph_destroy(graph);
    }
    return tc__cu_check(cu, result, "recording a token's kernels", err);
}

static int cuda_cache_open(tc__device *handle, int ctx, tc__cache **out, tc_error *err) {
    cuda_device *device = (cuda_device *)handle;
    tc__cu *cu = &device->cu;
    cuda_cache *cache = tc__calloc(1, sizeof *cache);
    *out = NULL;
    if (!cache) return tc__fail_memory(err, "a session", sizeof *cache);
    cache->device = device;
    cache->ctx = ctx;
    cache->chunk = cuda_chunk(device, ctx);
    cache->memory_bytes = cuda_layout(cache, device, 0, ctx, cache->chunk);
    size_t logits = 4 * CUDA_EACH * (size_t)device->weights->arch.vocab_size;
    cuda_enter(device);
    tc__cu_result result = cu->allocate(&cache->memory, cache->memory_bytes);
    if (!result) cuda_layout(cache, device, cache->memory, ctx, cache->chunk);
    if (!result) result = cu->host_allocate((void **)&cache->host_logits, logits, 0);
    if (!result) result = cu->host_allocate((void **)&cache->host_token, sizeof(int), 0);
    if (!result) result = cu->host_device_pointer(&cache->device_token, cache->host_token, 0);
    if (!result) result = cu->stream_create(&cache->stream, 1 /* does not wait for stream 0 */);
    if (!result) result = cu->fill_bytes(cache->memory, 0, cache->memory_bytes, cache->stream);
    int code = tc__cu_check(cu, result, "allocating the KV cache and workspace", err);
    for (int row = 0; row < 2 && !code; row++) {
        code = cuda_record(cache, row, false, err);
        if (!code) code = cuda_record(cache, row, true, err);
    }
    cuda_leave(device);
    if (code) {
        cuda_cache_close((tc__cache *)cache);
        return code;
    }
    *out = (tc__cache *)cache;
    return tc__ok(err);
}

/* ---- prefill ---- */

/* The time that a product takes, in some unit: what the fullest SM has to do. A block's work grows
 * with its tokens; expanding its weights is as much as some more. */
static double cuda_work(const cuda_device *device, const cuda_kernel *kernel, int tokens) {
    int blocks = kernel->grid * ((tokens + kernel->tokens - 1) / kernel->tokens);
    int of_an_sm = (blocks + device->sm_count - 1) / device->sm_count;
    return (double)of_an_sm * (kernel->tokens + CUDA_EXPANDING) / kernel->grid;
}

static tc__cu_result cuda_gemm(cuda_cache *cache, int role, const tc__tensor *matrix,
                               cuda_gemm_args *args) {
    cuda_device *device = cache->device;
    cuda_product *product = &device->products[role][tc__kind_of(&device->kinds, role, matrix)];
    /* the two smaller sizes of queries, keys and values have two limbs */
    bool precise = args->tokens <= CUDA_PRECISE;
    int first = role == TC__QKV && !precise ? 2 : 0;
    int end = role == TC__QKV && precise ? 2 : CUDA_SIZES;
    const cuda_kernel *kernel = &product->prefill[first];
    for (int i = first + 1; i < end; i++) /* between equals the larger tile reads less */
        if (cuda_work(device, &product->prefill[i], args->tokens) <=
            cuda_work(device, kernel, args->tokens))
            kernel = &product->prefill[i];
    args->weights = cuda_tensor(device, matrix);
    int columns = (args->tokens + kernel->tokens - 1) / kernel->tokens, blocks = kernel->grid;
    if (kernel->walks) {
        int most = device->sm_count / kernel->cluster * kernel->cluster;
        blocks = blocks * columns < most ? blocks * columns : most;
        columns = 1;
    }
    return cuda_launch(device, kernel, blocks, columns, args, cache->stream, true);
}

static tc__cu_result cuda_norm(cuda_cache *cache, const tc__tensor *gamma, const tc__tensor *bias,
                               int tokens) {
    cuda_device *device = cache->device;
    cuda_rows_args args = {cache->wide_x,
                           cuda_tensor(device, gamma),
                           cuda_vector(device, bias),
                           cache->wide_in,
                           tokens <= CUDA_PRECISE ? cache->wide_rest : 0,
                           cache->wide_scale};
    return cuda_launch(device, &device->rows, tokens, 1, &args, cache->stream, true);
}

/* From the normed vectors in wide_in: attention, added to wide_x. `pos`: of the first token. */
static tc__cu_result cuda_prefill_attention(cuda_cache *cache, uint32_t l, int tokens, size_t pos) {
    cuda_device *device = cache->device;
    const tc__layer *layer = &device->weights->layers[l];
    cuda_gemm_args qkv = {
        0, cache->wide_in, cache->wide_rest, cache->wide_scale, cache->wide_qkv, 0, 0, 0, tokens};
    cuda_gemm_args o = {0, cache->wide_in, 0, cache->wide_scale, cache->wide_x, 0, 0, 0, tokens};
    qkv.each = cuda_vector(device, layer->qkv_bias);
    tc__cu_result result = cuda_gemm(cache, TC__QKV, layer->qkv, &qkv);
    if (!result) result = cuda_attend_many(cache, l, tokens, pos, 0);
    return result ? result : cuda_gemm(cache, TC__O, layer->o, &o);
}

/* From the normed vectors in wide_in: the MLP's inner vectors in wide_mid. */
static tc__cu_result cuda_prefill_up(cuda_cache *cache, const tc__layer *layer, int tokens) {
    cuda_device *device = cache->device;
    cuda_gemm_args up = {0,
                         cache->wide_in,
                         0,
                         cache->wide_scale,
                         cache->wide_mid,
                         cuda_vector(device, layer->act_scales),
                         cache->mid_exponents,
                         cache->mid_highest,
                         tokens};
    cuda_settle_args settle = {cache->wide_mid, cache->mid_exponents, cache->mid_highest,
                               cache->mid_scale, tokens};
    tc__cu_result result = cuda_gemm(cache, TC__GATE_UP, layer->gate_up, &up);
    if (result) return result;
    return cuda_launch(device, &device->settle, (tokens + 7) / 8, 1, &settle, cache->stream, true);
}

/* From there: the MLP's result, added to wide_x. */
static tc__cu_result cuda_prefill_down(cuda_cache *cache, const tc__layer *layer, int tokens) {
    cuda_gemm_args down = {0, cache->wide_mid, 0, cache->mid_scale, cache->wide_x, 0, 0, 0, tokens};
    return cuda_gemm(cache, TC__DOWN, layer->down, &down);
}

static tc__cu_result cuda_prefill_layer(cuda_cache *cache, uint32_t l, int tokens, size_t pos) {
    const tc__layer *layer = &cache->device->weights->layers[l];
    const tc__tensor *norm = layer->attn_norm, *norm_bias = layer->attn_norm_bias;
    const tc__tensor *mlp_norm = layer->mlp_norm ? layer->mlp_norm : norm;
    const tc__tensor *mlp_bias = layer->mlp_norm ? layer->mlp_norm_bias : norm_bias;
    tc__cu_result result = TC_OK;
    if (cache->device->weights->arch.parallel) { /* the MLP before wide_x and wide_in change */
        result = cuda_norm(cache, mlp_norm, mlp_bias, tokens);
        if (!result) result = cuda_prefill_up(cache, layer, tokens);
        if (!result && mlp_norm != norm) result = cuda_norm(cache, norm, norm_bias, tokens);
        if (!result) result = cuda_prefill_attention(cache, l, tokens, pos);
    } else {
        result = cuda_norm(cache, norm, norm_bias, tokens);
        if (!result) result = cuda_prefill_attention(cache, l, tokens, pos);
        if (!result) result = cuda_norm(cache, mlp_norm, mlp_bias, tokens);
        if (!result) result = cuda_prefill_up(cache, layer, tokens);
    }
    return result ? result : cuda_prefill_down(cache, layer, tokens);
}

/* All positions' logits of the vectors in wide_x, a few at a time. */
static int cuda_each(cuda_cache *cache, int tokens, size_t pos, tc__logits_fn each, void *user,
                     tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    const tc__arch *arch = &cache->device->weights->arch;
    const int step = cache->device->head_each.tokens;
    for (int t = 0; t < tokens; t += step) {
        int n = tokens - t < step ? tokens - t : step;
        size_t bytes = 4 * (size_t)n * arch->vocab_size;
        tc__cu_result result =
            cuda_head(cache, &cache->device->head_each,
                      cache->wide_x + 4 * (size_t)t * arch->hidden_size, n, 0, false);
        if (!result)
            result = cu->copy_to_host(cache->host_logits, cache->logits, bytes, cache->stream);
        if (!result) result = cu->stream_wait(cache->stream);
        if (result) return tc__cu_check(cu, result, "computing logits", err);
        cache->logits_row = n - 1;
        for (int i = 0; i < n; i++)
            if (each(user, pos + (size_t)(t + i), cache->host_logits + (size_t)i * arch->vocab_size,
                     (int)arch->vocab_size))
                return tc__fail(err, TC_ERR_CANCELLED, "cancelled by the caller");
    }
    return TC_OK;
}

/* Puts ids at pos and tells the device where the evaluation begins. */
static tc__cu_result cuda_place(cuda_cache *cache, const int32_t *ids, size_t n, size_t pos) {
    tc__cu *cu = &cache->device->cu;
    cuda_state state = {(int)pos, (int)pos, 0, 0};
    tc__cu_result result = TC_OK;
    if (cache->next != (int)pos)
        result = cu->copy_to_device(cache->state, &state, sizeof state, cache->stream);
    if (!result) result = cu->copy_to_device(cache->ids + 4 * pos, ids, 4 * n, cache->stream);
    cache->next = (int)pos;
    return result;
}

static int cuda_prefill(cuda_cache *cache, const int32_t *ids, int n, size_t pos, bool last,
                        tc__logits_fn each, void *user, tc_error *err) {
    cuda_device *device = cache->device;
    tc__cu *cu = &device->cu;
    const tc__arch *arch = &device->weights->arch;
    cuda_embed_args embed = cuda_embed(cache, cache->wide_x, n);
    cuda_state begin = {(int)pos, (int)pos, 0, 0}, end = {(int)pos + n, (int)pos, 0, 0};
    tc__cu_result result = cu->copy_to_device(cache->state, &begin, sizeof begin, cache->stream);
    if (!result)
        result = cu->copy_to_device(cache->ids + 4 * pos, ids, 4 * (size_t)n, cache->stream);
    if (!result)
        result = cuda_launch(device, &device->embed_all, n, 1, &embed, cache->stream, false);
    const tc__cu_ptr x = cache->wide_x;
    const cuda_vectors few = {x, x, x, cache->wide_qkv, cache->attention, cache->act, n, pos};
    for (uint32_t l = 0; l < arch->layers && !result; l++)
        result = n <= device->few ? cuda_token_layer(cache, l, &few)
                                  : cuda_prefill_layer(cache, l, n, pos);
    if (!result && each) {
        int code = cuda_each(cache, n, pos, each, user, err);
        if (code) return code;
    } else if (!result && last) {
        result = cuda_head(cache, &device->head,
                           cache->wide_x + 4 * (size_t)(n - 1) * arch->hidden_size, 1, 0, false);
        cache->logits_row = 0;
    }
    if (!result) result = cu->copy_to_device(cache->state, &end, sizeof end, cache->stream);
    cache->next = (int)pos + n;
    return tc__cu_check(cu, result, "prefill", err);
}

/* Where an evaluation ahead puts its logits, so that those it was sampled from stay. */
static int cuda_other_row(const cuda_cache *cache) {
    return cache->logits_row == 0 ? 1 : 0;
}

static int cuda_decode(cuda_cache *cache, int32_t id, size_t pos, tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    if (cache->ahead && cache->ahead_pos == (int)pos && cache->ahead_id == id) {
        cache->ahead = false; /* it runs already */
        cache->logits_row = cuda_other_row(cache);
        return TC_OK;
    }
    cache->logits_row = 0;
    tc__cu_result result = cuda_place(cache, &id, 1, pos);
    if (!result) result = cu->graph_launch(cache->token[0], cache->stream);
    cache->next = (int)pos + 1;
    cache->ahead = false;
    return tc__cu_check(cu, result, "evaluating a token", err);
}

static const float *cuda_logits(tc__cache *handle) {
    cuda_cache *cache = (cuda_cache *)handle;
    tc__cu *cu = &cache->device->cu;
    size_t bytes = 4 * (size_t)cache->device->weights->arch.vocab_size;
    if (cache->logits_on_host) return cache->host_logits;
    cuda_enter(cache->device);
    tc__cu_result result =
        cu->copy_to_host(cache->host_logits, cache->logits + (size_t)cache->logits_row * bytes,
                         bytes, cache->stream);
    if (!result) result = cu->stream_wait(cache->stream);
    cuda_leave(cache->device);
    cache->logits_on_host = !result;
    return result ? NULL : cache->host_logits;
}

/* The logits of one position to the caller of tc_eval_all. */
static int cuda_hand_over(cuda_cache *cache, size_t pos, tc__logits_fn each, void *user,
                          tc_error *err) {
    const float *logits = cuda_logits((tc__cache *)cache);
    if (!logits) return tc__fail(err, TC_ERR_DEVICE, "copying logits from the GPU failed");
    if (each(user, pos, logits, (int)cache->device->weights->arch.vocab_size))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled by the caller");
    return TC_OK;
}

static int cuda_eval(tc__cache *handle, const int32_t *ids, size_t n, size_t pos,
                     tc__logits_fn each, void *user, const tc__flag *cancel, tc_error *err) {
    cuda_cache *cache = (cuda_cache *)handle;
    int code = TC_OK;
    cuda_enter(cache->device);
    cache->logits_on_host = false;
    if (n == 1) {
        code = cuda_decode(cache, ids[0], pos, err);
        if (!code && each) code = cuda_hand_over(cache, pos, each, user, err);
    } else {
        cache->ahead = false;
        for (size_t at = 0, piece; at < n && !code; at += piece) {
            const size_t left = n - at, most = (size_t)cache->chunk;
            /* no piece of one token: its products would add to x, not to zeros (cuda_vectors) */
            piece = left <= most ? left : left == most + 1 ? most - 1 : most;
            if (tc__flag_get(cancel)) code = tc__fail(err, TC_ERR_CANCELLED, "cancelled");
            if (!code)
                code = cuda_prefill(cache, ids + at, (int)piece, pos + at, at + piece == n, each,
                                    user, err);
            if (!code)
                code = tc__cu_check(&cache->device->cu,
                                    cache->device->cu.stream_wait(cache->stream), "prefill", err);
        }
    }
    cuda_leave(cache->device);
    return code;
}

/* ---- sampling ---- */

/* Waits for the choice, which stands amid a graph: it comes through host memory. */
static tc__cu_result cuda_chosen(const cuda_cache *cache, int *token) {
    volatile const int *chosen = cache->host_token;
    for (unsigned spins = 1;; spins++) {
        *token = *chosen;
        if (*token != CUDA_NO_TOKEN) return TC_OK;
        if (spins % 65536) continue; /* now and then, whether the GPU still works on it */
        tc__cu_result result = cache->device->cu.stream_query(cache->stream);
        *token = *chosen;
        if (result != TC__CU_NOT_READY && (result || *token == CUDA_NO_TOKEN))
            return result ? result : TC__CU_UNKNOWN;
    }
}

/* Queues the choice of the next token and, behind it, that token's evaluation: the GPU goes on
 * while the host looks at the token. An evaluation that nobody asks for is overwritten later. */
static int cuda_sample(tc__cache *handle, const tc_sampling *sampling, const int32_t *context,
                       size_t n_context, double u, int32_t *id, tc_error *err) {
    cuda_cache *cache = (cuda_cache *)handle;
    cuda_device *device = cache->device;
    tc__cu *cu = &device->cu;
    tc__cu_result result = TC_OK;
    int token = CUDA_NO_TOKEN;
    (void)context; /* the device holds the same ids */
    cuda_enter(device);
    if (cache->ahead) { /* a second draw from the same logits: start over behind them */
        cuda_state state = {cache->ahead_pos, cache->ahead_pos, 0, 0};
        result = cu->copy_to_device(cache->state, &state, sizeof state, cache->stream);
        cache->next = cache->ahead_pos;
    }
    const cuda_sample_settings settings = {
        u, cache->logits_row, (int)n_context, sampling->top_k, sampling->temperature,
        sampling->top_p, sampling->min_p, sampling->repeat_penalty, 0};
    *cache->host_token = CUDA_NO_TOKEN;
    bool ahead = cache->next < cache->ctx;
    const int row = cuda_other_row(cache);
    if (!result && ahead) result = cuda_change_choice(cache, row, &settings);
    if (!result && ahead) result = cu->graph_launch(cache->sampled[row], cache->stream);
    if (!result && !ahead) result = cuda_choose(cache, &settings, false);
    if (!result) result = cuda_chosen(cache, &token);
    cuda_leave(device);
    if (result) return tc__cu_check(cu, result, "sampling", err);
    cache->ahead = ahead;
    cache->ahead_pos = cache->next;
    cache->ahead_id = token;
    if (ahead) cache->next++;
    if (token < 0)
        return tc__fail(err, TC_ERR_NUMERIC, "the logit of token %d is not a finite number",
                        -1 - token);
    *id = token;
    return tc__ok(err);
}

/* ---- measuring ---- */

static int cuda_read_bandwidth(tc__device *handle, size_t bytes, double *rate, tc_error *err) {
    cuda_device *device = (cuda_device *)handle;
    tc__cu *cu = &device->cu;
    tc__cu_event start = NULL, end = NULL;
    float best[9];
    struct {
        tc__cu_ptr data, out;
        unsigned long long bytes;
    } args = {device->memory, 0, 0};
    args.bytes = (bytes && bytes < device->memory_bytes ? bytes : device->memory_bytes) & ~15ull;
    cuda_enter(device);
    tc__cu_result result = cu->event_create(&start, 0);
    if (!result) result = cu->event_create(&end, 0);
    for (size_t i = 0; i < TC_COUNT(best) && !result; i++) {
        result = cu->event_record(start, NULL);
        if (!result) result = cuda_launch(device, &device->read_loop, 0, 1, &args, NULL, false);
        if (!result) result = cu->event_record(end, NULL);
        if (!result) result = cu->event_wait(end);
        if (!result) result = cu->event_milliseconds(&best[i], start, end);
    }
    if (start) cu->event_destroy(start);
    if (end) cu->event_destroy(end);
    cuda_leave(device);
    if (result) return tc__cu_check(cu, result, "measuring bandwidth", err);
    for (size_t i = 1; i < TC_COUNT(best); i++)
        for (size_t j = i; j > 0 && best[j] < best[j - 1]; j--) {
            float swap = best[j];
            best[j] = best[j - 1], best[j - 1] = swap;
        }
    *rate = (double)args.bytes / (1e-3 * best[TC_COUNT(best) / 2]);
    return tc__ok(err);
}

const tc__backend *tc__cuda_backend(void) {
    static const tc__backend backend = {
        cuda_open,      cuda_close,      cuda_name,           cuda_details,        cuda_kv_bytes,
        cuda_workspace, cuda_free_bytes, cuda_cache_open,     cuda_cache_close,    cuda_eval,
        cuda_logits,    cuda_sample,     cuda_read_bandwidth, cuda_export_kernels,
    };
    return &backend;
}

/* ======== src/session.c ======== */


#define SESSION_DEFAULT_CTX 4096 /* the default context, unless model or memory allow less */
#define SESSION_LEAST_CTX 256    /* a smaller one is not chosen unasked: it would surprise */

tc_session_params tc_session_default_params(void) {
    tc_session_params params = {-1};
    return params;
}

/* ---- how large a context fits ---- */

static size_t session_workspace_bytes(const tc_model *model, int ctx_size) {
    size_t bytes = (size_t)ctx_size * sizeof(int32_t) + sizeof(tc_session);
    size_t backend = model->backend->workspace_bytes(model->device, ctx_size);
    return tc__add(bytes, backend, &bytes) ? bytes : SIZE_MAX;
}

static size_t session_kv_bytes(const tc_model *model, int ctx_size) {
    size_t bytes = model->backend->kv_bytes_per_token(model->device);
    return tc__mul(bytes, (size_t)ctx_size, &bytes) ? bytes : SIZE_MAX;
}

static bool session_fits(const tc_model *model, int ctx_size, size_t room) {
    size_t bytes = 0;
    return tc__add(session_kv_bytes(model, ctx_size), session_workspace_bytes(model, ctx_size),
                   &bytes) &&
           bytes <= room;
}

/* The largest context of at most `limit` positions that fits into `room` bytes; 0 if none does. */
static int session_largest(const tc_model *model, int limit, size_t room) {
    int fits = 0, too_large = limit + 1;
    while (too_large - fits > 1) {
        int middle = fits + (too_large - fits) / 2;
        if (session_fits(model, middle, room))
            fits = middle;
        else
            too_large = middle;
    }
    return fits;
}

static const char *session_size_text(size_t bytes, char text[24]) {
    bool large = bytes >= (size_t)1 << 30;
    snprintf(text, 24, large ? "%.2f GiB" : "%.2f MiB",
             (double)bytes / (large ? 1 << 30 : 1 << 20));
    return text;
}

static int session_fail_memory(const tc_model *model, int ctx_size, size_t room, tc_error *err) {
    char kv[24], workspace[24], weights[24], available[24], advice[64];
    int largest = session_largest(model, ctx_size, room);
    if (largest >= ctx_size) /* there seemed to be room, but the system gave none */
        snprintf(advice, sizeof advice, "ask for a smaller context");
    else if (largest > 0)
        snprintf(advice, sizeof advice, "the largest --max-seq-len that fits is %d", largest);
    else
        snprintf(advice, sizeof advice, "not even one position fits");
    return tc__fail(err, TC_ERR_MEMORY,
                    "out of memory: a context of %d positions needs %s of KV cache and %s of "
                    "workspace besides %s of weights; %s are available; %s",
                    ctx_size, session_size_text(session_kv_bytes(model, ctx_size), kv),
                    session_size_text(session_workspace_bytes(model, ctx_size), workspace),
                    session_size_text(model->weights.tensor_bytes, weights),
                    session_size_text(room, available), advice);
}

static const char *session_limit(const tc_model *model, char text[TC__LIMIT_TEXT]) {
    const unsigned window = (unsigned)model->weights.arch.sliding_window;
    if (!window) return "the model's maximum";
    snprintf(
        text, TC__LIMIT_TEXT,
        "the model's maximum: it has a sliding window of %u positions, and to forget what lies "
        "further back is not supported",
        window);
    return text;
}

const char *tc__context_limit(const tc_session *session, char text[TC__LIMIT_TEXT]) {
    const bool largest = session->ctx_size == (int)session->model->weights.arch.max_seq_len;
    return largest ? session_limit(session->model, text) : NULL;
}

/* Turns what the caller asked for into a number of positions that should fit. */
static int session_choose_ctx(const tc_model *model, int asked, int *ctx_size, tc_error *err) {
    int most = (int)model->weights.arch.max_seq_len;
    char limit[TC__LIMIT_TEXT];
    size_t room = model->backend->free_bytes(model->device);
    if (asked < -1 || asked > most)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "context size %d; expected 1 to %d (%s), 0 for that maximum or -1 for the "
                        "default",
                        asked, most, session_limit(model, limit));
    if (asked >= 0) {
        *ctx_size = asked ? asked : most;
        return session_fits(model, *ctx_size, room)
                   ? TC_OK
                   : session_fail_memory(model, *ctx_size, room, err);
    }
    int wanted = most < SESSION_DEFAULT_CTX ? most : SESSION_DEFAULT_CTX;
    int least = wanted < SESSION_LEAST_CTX ? wanted : SESSION_LEAST_CTX;
    *ctx_size = session_largest(model, wanted, room - room / 8); /* leave some to the others */
    return *ctx_size >= least ? TC_OK : session_fail_memory(model, wanted, room, err);
}

/* ---- opening and closing ---- */

int tc_session_open(tc_model *model, const tc_session_params *params, tc_session **session,
                    tc_error *err) {
    int ctx_size = 0, code = tc__need(session, "session", err);
    if (code) return code;
    *session = NULL;
    code = tc__need(model, "model", err);
    if (!code) code = session_choose_ctx(model, params ? params->ctx_size : -1, &ctx_size, err);
    if (code) return code;
    tc_session *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a session", sizeof *made);
    made->model = model;
    made->ctx_size = ctx_size;
    made->seed = tc__random_seed();
    made->ids = tc__calloc((size_t)ctx_size, sizeof *made->ids);
    code = made->ids ? model->backend->cache_open(model->device, ctx_size, &made->cache, err)
                     : TC_ERR_MEMORY;
    if (code == TC_ERR_MEMORY)
        session_fail_memory(model, ctx_size, model->backend->free_bytes(model->device), err);
    if (code) {
        tc_session_close(made);
        return code;
    }
    *session = made;
    return tc__ok(err);
}

void tc_session_close(tc_session *session) {
    if (!session) return;
    if (session->cache) session->model->backend->cache_close(session->cache);
    free(session->ids);
    free(session);
}

tc_session_info tc_session_get_info(const tc_session *session) {
    tc_session_info info = {0, 0, 0};
    if (!session) return info;
    info.ctx_size = session->ctx_size;
    info.kv_bytes = session_kv_bytes(session->model, session->ctx_size);
    info.workspace_bytes = session_workspace_bytes(session->model, session->ctx_size);
    return info;
}

/* ---- evaluating ---- */

static int session_fail_context(const tc_session *session, size_t n, tc_error *err) {
    char text[TC__LIMIT_TEXT];
    const char *limit = tc__context_limit(session, text);
    return tc__fail(err, TC_ERR_CONTEXT,
                    "%zu tokens after the %zu in the context do not fit; the context has %d "
                    "positions%s%s; truncate it%s",
                    n, session->length, session->ctx_size, limit ? ", " : "", limit ? limit : "",
                    limit ? "" : " or open a larger one");
}

static int session_check(const tc_session *session, const int32_t *ids, size_t n, tc_error *err) {
    int code = tc__need(session, "session", err);
    if (code) return code;
    int vocab_size = (int)session->model->weights.arch.vocab_size;
    if (n == 0 || !ids) return tc__fail(err, TC_ERR_ARGUMENT, "evaluate: no token ids given");
    if (n > (size_t)session->ctx_size - session->length)
        return session_fail_context(session, n, err);
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || ids[i] >= vocab_size)
            return tc__fail(err, TC_ERR_ARGUMENT,
                            "evaluate: token id %d at index %zu; expected 0 to %d", (int)ids[i], i,
                            vocab_size - 1);
    return TC_OK;
}

static int session_eval(tc_session *session, const int32_t *ids, size_t n, tc__logits_fn each,
                        void *user, tc_error *err) {
    int code = session_check(session, ids, n, err);
    if (code) return code;
    if (tc__flag_get(&session->cancel)) {
        code = tc__fail(err, TC_ERR_CANCELLED, "the evaluation was cancelled");
    } else {
        session->has_logits = false;
        code = session->model->backend->eval(session->cache, ids, n, session->length, each, user,
                                             &session->cancel, err);
    }
    if (code == TC_ERR_CANCELLED) tc__flag_set(&session->cancel, false);
    if (code) return code;
    memcpy(session->ids + session->length, ids, n * sizeof *ids);
    session->length += n;
    session->has_logits = true;
    return tc__ok(err);
}

int tc_eval(tc_session *session, const int32_t *ids, size_t n, tc_error *err) {
    return session_eval(session, ids, n, NULL, NULL, err);
}

int tc_eval_all(tc_session *session, const int32_t *ids, size_t n,
                int (*fn)(void *user, size_t position, const float *logits, int vocab_size),
                void *user, tc_error *err) {
    int code = tc__need(fn != NULL, "fn", err);
    return code ? code : session_eval(session, ids, n, fn, user, err);
}

const float *tc_logits(tc_session *session) {
    return session && session->has_logits ? session->model->backend->logits(session->cache) : NULL;
}

void tc_session_cancel(tc_session *session) {
    if (session) tc__flag_set(&session->cancel, true);
}

/* ---- sampling ---- */

uint64_t tc_session_seed(tc_session *session, uint64_t seed) {
    if (!session) return seed;
    session->seed = seed == TC_SEED_RANDOM ? tc__random_seed() : seed;
    session->draws = 0;
    return session->seed;
}

int tc_sample(tc_session *session, const tc_sampling *sampling, int32_t *id, tc_error *err) {
    tc_sampling defaults = tc_default_sampling();
    if (!sampling) sampling = &defaults;
    int code = tc__need(session && id, session ? "id" : "session", err);
    if (!code) code = tc__sampling_check(sampling, err);
    if (code) return code;
    if (!session->has_logits)
        return tc__fail(err, TC_ERR_ARGUMENT, "tc_sample: there are no logits; evaluate first");
    size_t n = session->length;
    if (sampling->repeat_last_n >= 0 && n > (size_t)sampling->repeat_last_n)
        n = (size_t)sampling->repeat_last_n;
    bool greedy = tc__sampling_greedy(sampling);
    double u = greedy ? 0 : tc__random(session->seed, session->draws);
    code = session->model->backend->sample(session->cache, sampling,
                                           session->ids + (session->length - n), n, u, id, err);
    if (!code && !greedy) session->draws++;
    return code;
}

/* ---- the ids in the KV cache ---- */

size_t tc_kv_length(const tc_session *session) {
    return session ? session->length : 0;
}

const int32_t *tc_kv_ids(const tc_session *session) {
    return session ? session->ids : NULL;
}

void tc_kv_truncate(tc_session *session, size_t length) {
    if (!session || length >= session->length) return;
    session->length = length;
    session->has_logits = false;
}

/* ======== src/chat.c ======== */


/* One finished turn, owned. */
typedef struct chat_turn {
    tc__buf user, reply; /* data is never NULL */
    tc__ids ids;         /* the reply as generated; empty: it is encoded from its text */
    bool ended;          /* the last of ids is the stop id that ended the reply */
} chat_turn;

typedef struct chat_turns {
    chat_turn *data;
    size_t len, cap;
} chat_turns;

struct tc_chat {
    tc_model *model;
    tc_session *session;
    const tc__template *chat_template; /* the model's or a built-in one */
    char *system;                      /* NULL: the template's own */
    char **stops;                      /* NULL-terminated: the template's and the caller's */
    tc_sampling sampling;              /* its seed is the session's */
    int max_tokens, context_policy;
    chat_turns turns;
};

/* ---- turns ---- */

static void chat_turn_free(chat_turn *turn) {
    tc__buf_free(&turn->user);
    tc__buf_free(&turn->reply);
    tc__ids_free(&turn->ids);
    memset(turn, 0, sizeof *turn);
}

/* Texts of a new turn; false when memory is short. */
static bool chat_turn_make(chat_turn *turn, const char *user, size_t user_len, const char *reply,
                           size_t reply_len) {
    memset(turn, 0, sizeof *turn);
    tc__buf_add(&turn->user, user, user_len);
    tc__buf_add(&turn->reply, reply, reply_len);
    return !turn->user.failed && !turn->reply.failed;
}

/* Room for one more turn, so that a later chat_turns_push cannot fail. */
static bool chat_turns_reserve(chat_turns *turns) {
    size_t bytes;
    if (turns->len < turns->cap) return true;
    size_t cap = turns->cap + turns->cap / 2 + 8;
    if (!tc__mul(cap, sizeof *turns->data, &bytes)) return false;
    chat_turn *data = realloc(turns->data, bytes);
    if (!data) return false;
    turns->data = data;
    turns->cap = cap;
    return true;
}

/* Takes over what `turn` owns. */
static void chat_turns_push(chat_turns *turns, chat_turn *turn) {
    turns->data[turns->len++] = *turn;
    memset(turn, 0, sizeof *turn);
}

/* Removes turns [from, to). */
static void chat_turns_remove(chat_turns *turns, size_t from, size_t to) {
    for (size_t i = from; i < to; i++) chat_turn_free(&turns->data[i]);
    if (to > from && to < turns->len)
        memmove(turns->data + from, turns->data + to, (turns->len - to) * sizeof *turns->data);
    turns->len -= to - from;
}

static void chat_turns_free(chat_turns *turns) {
    chat_turns_remove(turns, 0, turns->len);
    free(turns->data);
    memset(turns, 0, sizeof *turns);
}

/* ---- opening and closing ---- */

tc_chat_params tc_chat_default_params(void) {
    tc_chat_params params = {-1, NULL, NULL, tc_default_sampling(), 0, TC_CONTEXT_SHIFT, NULL};
    return params;
}

const char *tc_template_name(int index) {
    const tc__template *found = index < 0 ? NULL : tc__template_at(index);
    return found ? found->name : NULL;
}

static int chat_find_template(tc_chat *chat, const char *name, tc_error *err) {
    chat->chat_template = name ? tc__template_find(name) : &chat->model->chat_template;
    if (!chat->chat_template && strcmp(name, chat->model->chat_template.name) == 0)
        chat->chat_template = &chat->model->chat_template;
    if (chat->chat_template) return TC_OK;
    tc__buf known = {NULL, 0, 0, false};
    for (int i = 0; tc_template_name(i); i++)
        tc__buf_printf(&known, "%s%s", i ? ", " : "", tc_template_name(i));
    int code = tc__fail(err, TC_ERR_ARGUMENT, "unknown chat template '%s'; known: %s", name,
                        known.failed ? "(out of memory)" : known.data);
    tc__buf_free(&known);
    return code;
}

/* A template that was made for another tokenizer: the model cannot say that its reply is over. */
static int chat_check_template(const tc_chat *chat, tc_error *err) {
    size_t len;
    int32_t id;
    const tc__template *own = &chat->model->chat_template, *chosen = chat->chat_template;
    const char *mark = tc__template_closing_text(chosen, &len);
    if (!mark || chat->stops[0] || strcmp(chosen->name, own->name) == 0 ||
        tc__template_closing(chosen, chat->model->tokenizer, &id))
        return TC_OK;
    return tc__fail(
        err, TC_ERR_ARGUMENT,
        "chat template '%s' does not fit: it ends replies with '%.*s', and the tokenizer of "
        "this model has no such special token; take the model file's own template, '%s', or give "
        "a stop string",
        chosen->name, (int)len, mark, own->name);
}

/* Adds copies of a NULL-terminated array's strings to chat->stops, which has room. */
static bool chat_copy_stops(tc_chat *chat, size_t *n, const char *const *stops) {
    for (; stops && *stops; stops++) {
        if (!**stops) continue;
        chat->stops[*n] = tc__copy(*stops, strlen(*stops));
        if (!chat->stops[*n]) return false;
        ++*n;
    }
    return true;
}

static int chat_set_stops(tc_chat *chat, const char *const *extra, tc_error *err) {
    size_t room = TC__MAX_STOP_STRINGS + 1, n = 0;
    for (const char *const *stop = extra; stop && *stop; stop++) room++;
    chat->stops = tc__calloc(room, sizeof *chat->stops);
    if (chat->stops && chat_copy_stops(chat, &n, chat->chat_template->stop_strings) &&
        chat_copy_stops(chat, &n, extra))
        return TC_OK;
    return tc__fail_memory(err, "the stop strings", room * sizeof *chat->stops);
}

static int chat_open(tc_chat *chat, const tc_chat_params *params, tc_error *err) {
    tc_session_params session_params = tc_session_default_params();
    session_params.ctx_size = params->ctx_size;
    chat->sampling = params->sampling;
    chat->max_tokens = params->max_tokens;
    chat->context_policy = params->context_policy;
    int code = tc__need_tokenizer(chat->model, err);
    if (!code) code = tc__sampling_check(&params->sampling, err);
    if (!code && params->context_policy != TC_CONTEXT_SHIFT &&
        params->context_policy != TC_CONTEXT_STOP)
        code = tc__fail(err, TC_ERR_ARGUMENT,
                        "context_policy is %d; expected TC_CONTEXT_SHIFT or TC_CONTEXT_STOP",
                        params->context_policy);
    if (!code) code = chat_find_template(chat, params->template_name, err);
    if (!code) code = chat_set_stops(chat, params->stop, err);
    if (!code) code = chat_check_template(chat, err);
    if (!code) code = tc_chat_set_system(chat, params->system, err);
    if (!code) code = tc_session_open(chat->model, &session_params, &chat->session, err);
    if (!code) tc_session_seed(chat->session, params->sampling.seed);
    return code;
}

int tc_chat_open(tc_model *model, const tc_chat_params *params, tc_chat **chat, tc_error *err) {
    tc_chat_params defaults = tc_chat_default_params();
    int code = tc__need(chat, "chat", err);
    if (code) return code;
    *chat = NULL;
    code = tc__need(model, "model", err);
    if (code) return code;
    tc_chat *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a chat", sizeof *made);
    made->model = model;
    code = chat_open(made, params ? params : &defaults, err);
    if (code) {
        tc_chat_close(made);
        return code;
    }
    *chat = made;
    return tc__ok(err);
}

void tc_chat_close(tc_chat *chat) {
    if (!chat) return;
    chat_turns_free(&chat->turns);
    for (char **stop = chat->stops; stop && *stop; stop++) free(*stop);
    free(chat->stops);
    free(chat->system);
    tc_session_close(chat->session);
    free(chat);
}

/* ---- rendering ---- */

/* The ids of turns [first, base), then, unless `user` is NULL, of a turn that awaits its reply. */
static int chat_render(const tc_chat *chat, size_t first, size_t base, const char *user,
                       size_t user_len, tc__ids *ids, tc_error *err) {
    size_t n = base - first;
    tc__turn *views = tc__calloc(n + 1, sizeof *views);
    if (!views) return tc__fail_memory(err, "the prompt", (n + 1) * sizeof *views);
    for (size_t i = 0; i < n; i++) {
        const chat_turn *turn = &chat->turns.data[first + i];
        views[i].user = turn->user.data;
        views[i].user_len = turn->user.len;
        views[i].reply = turn->reply.data;
        views[i].reply_len = turn->reply.len;
        views[i].ids = turn->ids.len ? turn->ids.data : NULL;
        views[i].n_ids = turn->ids.len;
        views[i].ended = turn->ended;
        views[i].has_reply = true;
    }
    if (user) {
        views[n].user = user;
        views[n++].user_len = user_len;
    }
    const char *system = tc_chat_system(chat);
    ids->len = 0;
    int code = tc__render(chat->chat_template, chat->model->tokenizer, system, strlen(system),
                          views, n, ids, err);
    if (!code && ids->failed) code = tc__fail_memory(err, "the prompt's token ids", ids->len);
    free(views);
    return code;
}

int tc_chat_render(const tc_chat *chat, const char *user_text, size_t len, int32_t *ids, size_t cap,
                   size_t *n, tc_error *err) {
    int code = tc__need(chat && n, chat ? "n" : "chat", err);
    if (code) return code;
    *n = 0;
    code = tc__need(ids || !cap, "ids", err);
    if (code) return code;
    tc__ids found = {NULL, 0, 0, false};
    code = chat_render(chat, 0, chat->turns.len, user_text, len, &found, err);
    if (!code) {
        *n = found.len;
        if (found.len && found.len <= cap) memcpy(ids, found.data, found.len * sizeof *ids);
    }
    tc__ids_free(&found);
    return code ? code : tc__ok(err);
}

/* Finds the smallest number of oldest turns, at least 1, whose absence makes the prompt at most
 * `goal` ids long; leaves that prompt in `ids`. *drop = 0 if there is none. */
static int chat_drop_until(const tc_chat *chat, size_t base, const tc__buf *user, size_t goal,
                           size_t *drop, tc__ids *ids, tc_error *err) {
    size_t too_few = 0, enough = base;
    int code = chat_render(chat, base, base, user->data, user->len, ids, err);
    if (code || ids->len > goal) {
        *drop = 0;
        return code;
    }
    while (enough - too_few > 1) {
        size_t middle = too_few + (enough - too_few) / 2;
        if ((code = chat_render(chat, middle, base, user->data, user->len, ids, err)) != TC_OK)
            return code;
        if (ids->len > goal)
            too_few = middle;
        else
            enough = middle;
    }
    *drop = enough;
    return chat_render(chat, enough, base, user->data, user->len, ids, err);
}

/* The prompt for `user` after turns [0, base), with as many of the oldest left out as the policy
 * documented at tc_chat_params demands. */
static int chat_prompt(const tc_chat *chat, size_t base, const tc__buf *user, size_t *drop,
                       tc__ids *ids, tc_error *err) {
    size_t ctx = (size_t)chat->session->ctx_size, quarter = ctx / 4, room = quarter;
    if (chat->max_tokens > 0 && (size_t)chat->max_tokens < room) room = (size_t)chat->max_tokens;
    *drop = 0;
    int code = chat_render(chat, 0, base, user->data, user->len, ids, err);
    if (code) return code;
    if (chat->context_policy == TC_CONTEXT_SHIFT && base > 0 && ids->len + room > ctx) {
        code = chat_drop_until(chat, base, user, ctx - room - quarter, drop, ids, err);
        if (!code && !*drop) code = chat_drop_until(chat, base, user, ctx - room, drop, ids, err);
        if (!code && !*drop) {
            *drop = base;
            code = chat_render(chat, base, base, user->data, user->len, ids, err);
        }
    }
    if (!code && ids->len == 0) code = tc__fail(err, TC_ERR_ARGUMENT, "the prompt is empty");
    if (code || ids->len <= ctx) return code;
    char text[TC__LIMIT_TEXT];
    const char *limit = tc__context_limit(chat->session, text);
    return tc__fail(
        err, TC_ERR_CONTEXT, "the prompt has %zu tokens, the context %zu%s%s; shorten the text%s%s",
        ids->len, ctx, limit ? ", " : "", limit ? limit : "",
        base > *drop ? ", drop earlier turns" : "", limit ? "" : " or use a larger context");
}

/* ---- one reply ---- */

typedef struct chat_run {
    tc_chat *chat;
    chat_turn *turn; /* the turn in the making */
    tc_text_fn on_text;
    void *user;
    bool refused; /* on_text asked to stop */
    tc__decoder decoder;
    tc__stream stream;
    tc__buf raw; /* bytes of the current token */
} chat_run;

/* A reply begins a text of its own, without the space that SentencePiece puts before a first word,
 * if the template has that space; else its text follows the prompt's directly. */
static tc__decoder chat_decoder(const tc_chat *chat) {
    static const char trim[] = "{trim}";
    const char *pattern = chat->chat_template->reply, *end = strstr(pattern, "{reply}");
    size_t len = end ? (size_t)(end - pattern) : 0, mark = sizeof trim - 1;
    if (len >= mark && memcmp(pattern + len - mark, trim, mark) == 0) len -= mark;
    return tc__decoder_make(chat->model->tokenizer, len > 0 && pattern[len - 1] == ' ');
}

/* Hands the text from byte `from` on to the caller. */
static void chat_show(chat_run *run, size_t from) {
    const tc__buf *text = &run->turn->reply;
    if (run->on_text && !run->refused && text->len > from)
        run->refused = run->on_text(run->user, text->data + from, text->len - from) != 0;
}

/* Turns one token into text. */
static int chat_take(chat_run *run, int32_t id, tc_error *err) {
    tc__buf *text = &run->turn->reply;
    size_t from = text->len;
    run->raw.len = 0;
    tc__decode_one(&run->decoder, id, &run->raw, NULL);
    tc__stream_feed(&run->stream, run->raw.data, run->raw.len, text);
    if (run->raw.failed || text->failed) return tc__fail_memory(err, "the reply's text", text->len);
    chat_show(run, from);
    return TC_OK;
}

/* Samples, shows and evaluates tokens until something ends the reply. The logits are there. */
static int chat_decode(chat_run *run, tc_reply *reply, double started, tc_error *err) {
    tc_chat *chat = run->chat;
    tc_session *session = chat->session;
    double first = 0;
    for (;;) {
        int32_t id = 0;
        int code = tc_sample(session, &chat->sampling, &id, err);
        if (code) return code;
        double now = tc_seconds();
        if (reply->reply_tokens++ == 0) first = now;
        reply->ttft_seconds = first - started;
        reply->decode_seconds = now - first;
        tc__ids_push(&run->turn->ids, id);
        if (run->turn->ids.failed) return tc__fail_memory(err, "the reply's token ids", sizeof id);

        reply->stop = TC_STOP_ID;
        run->turn->ended = tc_is_stop_id(chat->model, id) != 0;
        if (run->turn->ended) return TC_OK;
        if ((code = chat_take(run, id, err)) != TC_OK) return code;
        reply->stop = TC_STOP_STRING;
        if (run->stream.stopped) return TC_OK;
        reply->stop = TC_STOP_CANCELLED;
        if (run->refused) return TC_OK;
        reply->stop = TC_STOP_LENGTH;
        if (chat->max_tokens > 0 && reply->reply_tokens >= (size_t)chat->max_tokens) return TC_OK;
        reply->stop = TC_STOP_CONTEXT;
        if (session->length == (size_t)session->ctx_size) return TC_OK;

        code = tc_eval(session, &id, 1, err);
        reply->stop = TC_STOP_CANCELLED;
        if (code) return code == TC_ERR_CANCELLED ? TC_OK : code;
    }
}

/* Evaluates what the KV cache does not hold of the prompt, but at least its last id. */
static int chat_prefill(tc_session *session, const tc__ids *prompt, tc_reply *reply,
                        tc_error *err) {
    size_t same = 0, most = session->length < prompt->len ? session->length : prompt->len;
    while (same < most && session->ids[same] == prompt->data[same]) same++;
    if (same == prompt->len && same > 0) same--;
    tc_kv_truncate(session, same);
    reply->prompt_tokens = prompt->len;
    reply->reused_tokens = same;
    double start = tc_seconds();
    int code = tc_eval(session, prompt->data + same, prompt->len - same, err);
    reply->prefill_seconds = tc_seconds() - start;
    return code;
}

/* How many of the bytes `raw` the first `text_len` bytes of their text stand for: a malformed byte
 * became U+FFFD, which has three. */
static size_t chat_raw_length(const tc__buf *raw, size_t text_len) {
    size_t at = 0, text = 0;
    while (at < raw->len && text < text_len) {
        uint32_t code;
        size_t n = tc__utf8_decode(raw->data + at, raw->len - at, &code);
        text += code == UINT32_MAX ? 3 : n;
        at += n;
    }
    return at;
}

/* After a stop string: keeps the ids whose bytes lie before it. What the next token has before it
 * is encoded anew, so that the ids spell exactly the text and the KV cache fits up to there. A
 * reply that begins with such a token keeps no ids: it is encoded from its text with the
 * template. */
static int chat_cut_ids(const tc_chat *chat, chat_turn *turn, tc_error *err) {
    size_t n = turn->ids.len, kept = 0;
    tc__buf raw = {NULL, 0, 0, false};
    size_t *ends = tc__calloc(n, sizeof *ends); /* bytes up to the end of each token */
    tc__decoder decoder = chat_decoder(chat);
    for (size_t i = 0; ends && i < n; i++) {
        tc__decode_one(&decoder, turn->ids.data[i], &raw, NULL);
        ends[i] = raw.len;
    }
    int code = TC_OK;
    if (!ends || raw.failed) {
        code = tc__fail_memory(err, "the reply's token ids", n * sizeof *ends);
    } else {
        size_t end = chat_raw_length(&raw, turn->reply.len);
        while (kept < n && ends[kept] <= end) kept++;
        turn->ids.len = kept;
        tc__span rest = {raw.data, 0, false};
        if (kept) {
            rest.text += ends[kept - 1];
            rest.len = end - ends[kept - 1];
        }
        if (rest.len)
            code = tc__encode(chat->model->tokenizer, &rest, 1, TC__AFTER_TEXT, &turn->ids, err);
        if (!code && turn->ids.failed)
            code = tc__fail_memory(err, "the reply's token ids", rest.len);
    }
    tc__buf_free(&raw);
    free(ends);
    return code;
}

/* Prefill and decoding of turn->user after the prompt. On success the turn is complete. */
static int chat_run_reply(chat_run *run, const tc__ids *prompt, tc_reply *reply, double started,
                          tc_error *err) {
    chat_turn *turn = run->turn;
    int code = chat_prefill(run->chat->session, prompt, reply, err);
    if (code == TC_ERR_CANCELLED) {
        reply->stop = TC_STOP_CANCELLED;
        return TC_OK;
    }
    if (!code) code = chat_decode(run, reply, started, err);
    if (code) return code;
    if (reply->stop == TC_STOP_STRING) return chat_cut_ids(run->chat, turn, err);
    size_t from = turn->reply.len;
    tc__stream_end(&run->stream, &turn->reply);
    if (turn->reply.failed) return tc__fail_memory(err, "the reply's text", turn->reply.len);
    chat_show(run, from);
    return TC_OK;
}

/* Generates a reply to turn->user after turns [0, base) and, if that works, makes it the turn that
 * follows them. Takes over what `turn` owns in any case. */
static int chat_generate(tc_chat *chat, size_t base, chat_turn *turn, tc_text_fn on_text,
                         void *user, tc_reply *reply, tc_error *err) {
    double started = tc_seconds();
    size_t drop = 0;
    tc__ids prompt = {NULL, 0, 0, false};
    chat_run run;
    memset(&run, 0, sizeof run);
    run.chat = chat;
    run.turn = turn;
    run.on_text = on_text;
    run.user = user;
    run.decoder = chat_decoder(chat);
    tc__stream_init(&run.stream, (const char *const *)chat->stops);

    int code = TC_OK;
    if (!chat_turns_reserve(&chat->turns))
        code = tc__fail_memory(err, "the conversation", sizeof *chat->turns.data);
    if (!code) code = chat_prompt(chat, base, &turn->user, &drop, &prompt, err);
    if (!code) code = chat_run_reply(&run, &prompt, reply, started, err);
    if (!code) {
        chat_turns_remove(&chat->turns, base, chat->turns.len);
        chat_turns_remove(&chat->turns, 0, drop);
        reply->dropped_turns = (int)drop;
        reply->text = turn->reply.data;
        reply->len = turn->reply.len;
        chat_turns_push(&chat->turns, turn);
    }
    tc__flag_set(&chat->session->cancel, false); /* a request was for this reply */
    tc__stream_free(&run.stream);
    tc__buf_free(&run.raw);
    tc__ids_free(&prompt);
    chat_turn_free(turn);
    return code ? code : tc__ok(err);
}

/* Also where *reply of the caller is filled: all zero after an error. */
static int chat_reply(tc_chat *chat, size_t base, const char *text, size_t len, tc_text_fn on_text,
                      void *user, tc_reply *reply, tc_error *err) {
    chat_turn turn;
    tc_reply report, zero;
    memset(&zero, 0, sizeof zero);
    report = zero;
    int code;
    if (chat_turn_make(&turn, text, len, "", 0)) {
        code = chat_generate(chat, base, &turn, on_text, user, &report, err);
    } else {
        chat_turn_free(&turn);
        code = tc__fail_memory(err, "the new turn", len);
    }
    if (reply) *reply = code ? zero : report;
    return code;
}

int tc_chat_send(tc_chat *chat, const char *text, size_t len, tc_text_fn on_text, void *user,
                 tc_reply *reply, tc_error *err) {
    int code = tc__need(chat && (text || !len), chat ? "text" : "chat", err);
    if (code && reply) memset(reply, 0, sizeof *reply);
    if (code) return code;
    return chat_reply(chat, chat->turns.len, text, len, on_text, user, reply, err);
}

int tc_chat_regenerate(tc_chat *chat, tc_text_fn on_text, void *user, tc_reply *reply,
                       tc_error *err) {
    if (tc_chat_turns(chat) == 0) {
        if (reply) memset(reply, 0, sizeof *reply);
        int code = tc__need(chat, "chat", err);
        if (code) return code;
        return tc__fail(err, TC_ERR_ARGUMENT, "there is no reply yet to generate again");
    }
    const chat_turn *last = &chat->turns.data[chat->turns.len - 1];
    return chat_reply(chat, chat->turns.len - 1, last->user.data, last->user.len, on_text, user,
                      reply, err);
}

void tc_chat_cancel(tc_chat *chat) {
    if (chat) tc_session_cancel(chat->session);
}

/* ---- the conversation ---- */

int tc_chat_add_turn(tc_chat *chat, const char *user_text, size_t user_len, const char *reply_text,
                     size_t reply_len, tc_error *err) {
    bool given = (user_text || !user_len) && (reply_text || !reply_len);
    int code = tc__need(chat && given, chat ? "a text" : "chat", err);
    if (code) return code;
    chat_turn turn;
    if (chat_turn_make(&turn, user_text, user_len, reply_text, reply_len) &&
        chat_turns_reserve(&chat->turns)) {
        chat_turns_push(&chat->turns, &turn);
        return tc__ok(err);
    }
    chat_turn_free(&turn);
    return tc__fail_memory(err, "the new turn", user_len);
}

int tc_chat_undo(tc_chat *chat) {
    if (tc_chat_turns(chat) == 0) return 0;
    chat_turns_remove(&chat->turns, chat->turns.len - 1, chat->turns.len);
    return 1;
}

void tc_chat_reset(tc_chat *chat) {
    if (chat) chat_turns_remove(&chat->turns, 0, chat->turns.len);
}

int tc_chat_set_system(tc_chat *chat, const char *system, tc_error *err) {
    int code = tc__need(chat, "chat", err);
    if (code) return code;
    char *copy = system ? tc__copy(system, strlen(system)) : NULL;
    if (system && !copy) return tc__fail_memory(err, "the system text", strlen(system));
    free(chat->system);
    chat->system = copy;
    return tc__ok(err);
}

const char *tc_chat_system(const tc_chat *chat) {
    if (!chat) return "";
    return chat->system ? chat->system : chat->chat_template->system;
}

const char *tc_chat_template(const tc_chat *chat) {
    return chat ? chat->chat_template->name : "";
}

tc_sampling tc_chat_get_sampling(const tc_chat *chat) {
    if (!chat) return tc_default_sampling();
    tc_sampling sampling = chat->sampling;
    sampling.seed = chat->session->seed;
    return sampling;
}

int tc_chat_set_sampling(tc_chat *chat, const tc_sampling *sampling, tc_error *err) {
    int code = tc__need(chat && sampling, chat ? "sampling" : "chat", err);
    if (!code) code = tc__sampling_check(sampling, err);
    if (code) return code;
    chat->sampling = *sampling;
    if (sampling->seed != chat->session->seed) tc_session_seed(chat->session, sampling->seed);
    return tc__ok(err);
}

void tc_chat_set_max_tokens(tc_chat *chat, int max_tokens) {
    if (chat) chat->max_tokens = max_tokens;
}

size_t tc_chat_turns(const tc_chat *chat) {
    return chat ? chat->turns.len : 0;
}

static const char *chat_text(const tc__buf *text, size_t *len) {
    if (len) *len = text ? text->len : 0;
    return text ? text->data : NULL;
}

const char *tc_chat_user_text(const tc_chat *chat, size_t index, size_t *len) {
    return chat_text(index < tc_chat_turns(chat) ? &chat->turns.data[index].user : NULL, len);
}

const char *tc_chat_reply_text(const tc_chat *chat, size_t index, size_t *len) {
    return chat_text(index < tc_chat_turns(chat) ? &chat->turns.data[index].reply : NULL, len);
}

tc_session *tc_chat_session(tc_chat *chat) {
    return chat ? chat->session : NULL;
}

/* ---- the conversation file (docs/format.md): writing ---- */

#define CHAT_FILE_LINE "tinychat conversation 1"

static void chat_write_block(FILE *file, const char *name, const char *text, size_t len) {
    fprintf(file, "%s %zu\n", name, len);
    fwrite(text, 1, len, file);
    fputc('\n', file);
}

static void chat_write_turn(FILE *file, const chat_turn *turn) {
    chat_write_block(file, "user", turn->user.data, turn->user.len);
    chat_write_block(file, "reply", turn->reply.data, turn->reply.len);
    if (turn->ids.len == 0) return;
    fprintf(file, "ids %zu %d\n", turn->ids.len, turn->ended ? 1 : 0);
    for (size_t i = 0; i < turn->ids.len; i++)
        fprintf(file, "%s%ld", i ? " " : "", (long)turn->ids.data[i]);
    fputc('\n', file);
}

int tc_chat_save(const tc_chat *chat, const char *path, tc_error *err) {
    tc__replace replace;
    int code = tc__need(chat && path, chat ? "path" : "chat", err);
    if (!code) code = tc__replace_open(&replace, path, err);
    if (code) return code;
    fprintf(replace.file, "%s\nmodel %016llx\n", CHAT_FILE_LINE,
            (unsigned long long)chat->model->file.fingerprint);
    if (chat->system) chat_write_block(replace.file, "system", chat->system, strlen(chat->system));
    for (size_t i = 0; i < chat->turns.len; i++)
        chat_write_turn(replace.file, &chat->turns.data[i]);
    return tc__replace_commit(&replace, err);
}

/* ---- the conversation file: reading ---- */

typedef struct chat_reader {
    const tc_chat *chat;
    const char *path;
    const char *start, *at, *end; /* the mapped file */
    bool same_model;
    tc_error *err;
} chat_reader;

/* "path: line 3 (byte 41): expected this, found 'that'" */
static int chat_bad(const chat_reader *reader, const char *expected) {
    size_t line = 1, found = 0, left = (size_t)(reader->end - reader->at);
    for (const char *c = reader->start; c < reader->at; c++) line += *c == '\n';
    while (found < left && found < 40 && reader->at[found] != '\n') found++;
    return tc__fail(
        reader->err, TC_ERR_FORMAT, "%s: line %zu (byte %zu): expected %s, found %s%.*s%s",
        reader->path, line, (size_t)(reader->at - reader->start), expected,
        left ? "'" : "the end of the file", (int)found, found ? reader->at : "", left ? "'" : "");
}

/* Skips `text` if it comes next. */
static bool chat_skip(chat_reader *reader, const char *text) {
    size_t len = strlen(text);
    if ((size_t)(reader->end - reader->at) < len || memcmp(reader->at, text, len) != 0)
        return false;
    reader->at += len;
    return true;
}

/* A decimal number of at most `most`; false (and nothing skipped) if there is none. */
static bool chat_read_number(chat_reader *reader, size_t most, size_t *number) {
    const char *at = reader->at;
    size_t value = 0;
    for (; at < reader->end && *at >= '0' && *at <= '9'; at++) {
        size_t digit = (size_t)(*at - '0');
        if (value > (most - digit) / 10 || digit > most) return false;
        value = 10 * value + digit;
    }
    if (at == reader->at) return false;
    reader->at = at;
    *number = value;
    return true;
}

/* "<number>\n<that many bytes>\n": the rest of a block whose name was skipped. */
static int chat_read_block(chat_reader *reader, const char **text, size_t *len) {
    if (!chat_read_number(reader, (size_t)(reader->end - reader->at), len))
        return chat_bad(reader, "a number of bytes no larger than the file");
    if (!chat_skip(reader, "\n")) return chat_bad(reader, "the end of the line");
    if ((size_t)(reader->end - reader->at) < *len)
        return chat_bad(reader, "as many bytes as the line before says");
    *text = reader->at;
    reader->at += *len;
    return chat_skip(reader, "\n") ? TC_OK : chat_bad(reader, "a newline at the end of the block");
}

/* "<count> <ended>\n<ids>\n". With another model they are read but not kept. */
static int chat_read_ids(chat_reader *reader, chat_turn *turn) {
    const tc_model *model = reader->chat->model;
    size_t count, ended, id = 0;
    size_t most = reader->same_model ? model->weights.arch.vocab_size - 1 : INT32_MAX;
    if (!chat_read_number(reader, (size_t)(reader->end - reader->at), &count) || count == 0)
        return chat_bad(reader, "a number of ids from 1 on");
    if (!chat_skip(reader, " ") || !chat_read_number(reader, 1, &ended) || !chat_skip(reader, "\n"))
        return chat_bad(reader, "0 or 1 and the end of the line");
    for (size_t i = 0; i < count; i++) {
        if (i && !chat_skip(reader, " ")) return chat_bad(reader, "a space and another id");
        if (!chat_read_number(reader, most, &id))
            return chat_bad(reader, "an id of the model's vocabulary");
        if (reader->same_model) tc__ids_push(&turn->ids, (int32_t)id);
    }
    if (turn->ids.failed) return tc__fail_memory(reader->err, "the reply's token ids", count);
    turn->ended = reader->same_model && ended;
    if (turn->ended && !tc_is_stop_id(model, (int32_t)id))
        return chat_bad(reader, "a stop id of the model before here");
    return chat_skip(reader, "\n") ? TC_OK : chat_bad(reader, "the end of the line");
}

static int chat_read_turn(chat_reader *reader, chat_turns *turns) {
    const char *user = NULL, *reply = NULL;
    size_t user_len = 0, reply_len = 0;
    if (!chat_skip(reader, "user ")) return chat_bad(reader, "'user'");
    int code = chat_read_block(reader, &user, &user_len);
    if (code) return code;
    if (!chat_skip(reader, "reply ")) return chat_bad(reader, "'reply'");
    if ((code = chat_read_block(reader, &reply, &reply_len)) != TC_OK) return code;
    chat_turn turn;
    if (!chat_turn_make(&turn, user, user_len, reply, reply_len) || !chat_turns_reserve(turns))
        code = tc__fail_memory(reader->err, "the conversation", user_len + reply_len);
    else if (chat_skip(reader, "ids "))
        code = chat_read_ids(reader, &turn);
    if (!code) chat_turns_push(turns, &turn);
    chat_turn_free(&turn);
    return code;
}

/* The two lines at the top and the system text (*system NULL: the template's own). */
static int chat_read_head(chat_reader *reader, char **system) {
    char model[32];
    const char *text;
    size_t len;
    snprintf(model, sizeof model, "model %016llx\n",
             (unsigned long long)reader->chat->model->file.fingerprint);
    if (!chat_skip(reader, CHAT_FILE_LINE "\n")) return chat_bad(reader, "'" CHAT_FILE_LINE "'");
    reader->same_model = chat_skip(reader, model);
    if (!reader->same_model) {
        if (!chat_skip(reader, "model ")) return chat_bad(reader, "'model'");
        for (int i = 0; i < 16; i++, reader->at++)
            if (reader->at == reader->end || !strchr("0123456789abcdef", *reader->at) ||
                !*reader->at)
                return chat_bad(reader, "16 hexadecimal digits");
        if (!chat_skip(reader, "\n")) return chat_bad(reader, "the end of the line");
    }
    if (!chat_skip(reader, "system ")) return TC_OK;
    int code = chat_read_block(reader, &text, &len);
    if (code) return code;
    if (memchr(text, 0, len))
        return chat_bad(reader, "a system text without NUL bytes before here");
    *system = tc__copy(text, len);
    return *system ? TC_OK : tc__fail_memory(reader->err, "the system text", len);
}

int tc_chat_load(tc_chat *chat, const char *path, tc_error *err) {
    tc__map map;
    int code = tc__need(chat && path, chat ? "path" : "chat", err);
    if (!code) code = tc__map_open(path, &map, err);
    if (code) return code;
    chat_reader reader;
    memset(&reader, 0, sizeof reader);
    reader.chat = chat;
    reader.path = path;
    reader.start = reader.at = map.size ? (const char *)map.data : "";
    reader.end = reader.start + map.size;
    reader.err = err;
    chat_turns turns = {NULL, 0, 0};
    char *system = NULL;
    code = chat_read_head(&reader, &system);
    while (!code && reader.at < reader.end) code = chat_read_turn(&reader, &turns);
    tc__map_close(&map);
    if (code) {
        chat_turns_free(&turns);
        free(system);
        return code;
    }
    chat_turns_free(&chat->turns);
    chat->turns = turns;
    free(chat->system);
    chat->system = system;
    return tc__ok(err);
}

#undef CHAT_FILE_LINE

/* ======== src/selftest.c ======== */


#include <limits.h>
#include <math.h>
#include <pthread.h>

/* The self-test: small models of every kind, with random weights, on the GPU and on the CPU. Each
 * row is a model with kernels of its own, which take seconds to compile the first time, so several
 * are worked on at once. */

#define SELFTEST_LIMIT 5e-3   /* relative L2 error of a position's logits */
#define SELFTEST_LIMIT_8 2e-2 /* with a head in 8 bits; the CPU's has what the file has */
#define SELFTEST_DRAWS 40     /* choices compared for each way of sampling */
#define SELFTEST_VOCAB 397    /* a prime: no tile divides it */
#define SELFTEST_PROMPT 48    /* tokens, of a model file */

/* What LLaMA, MPT and Falcon have. */
#define SELFTEST_LLAMA .norm_eps = 1e-5, .rope_theta = 1e4, .gated = 1
#define SELFTEST_MPT                                                                               \
    .norm_eps = 1e-5, .norm = TC__NORM_LAYER, .position = TC__POSITION_ALIBI,                      \
    .activation = TC__ACT_GELU
#define SELFTEST_FALCON                                                                            \
    .norm_eps = 1e-5, .rope_theta = 1e4, .norm = TC__NORM_LAYER, .norm_bias = true,                \
    .activation = TC__ACT_GELU, .parallel = 1

typedef struct selftest_case {
    const char *what; /* that is tried here first of all */
    int group_size;   /* 0: W16A16 */
    int tokens;
    bool sampling; /* choices are compared instead of logits */
    tc__shape_spec spec;
} selftest_case;

/* Sizes: hidden, MLP, layers, heads, KV heads, head size; then what differs from zero. */
#define SELFTEST_ROW(what, group_size, tokens, ...)                                                \
    {                                                                                              \
        what, group_size, tokens, false, {                                                         \
            "self-test", "self-test", __VA_ARGS__                                                  \
        }                                                                                          \
    }
#define SELFTEST_SIZES(hidden, inner, layers, heads, kv_heads, head_dim)                           \
    hidden, inner, layers, heads, kv_heads, head_dim, SELFTEST_VOCAB, 0

/* The slow ones first, so that none is left alone at the end; but the very first is small: what is
 * wrong with the machine shows there. */
static const selftest_case selftest_cases[] = {
    SELFTEST_ROW("SiLU-gated MLP, RMSNorm", 128, 300, SELFTEST_SIZES(256, 384, 2, 4, 4, 64),
                 SELFTEST_LLAMA),
    SELFTEST_ROW("a layer of LLaMA-2-7B", 128, 80, SELFTEST_SIZES(4096, 11008, 1, 32, 32, 128),
                 SELFTEST_LLAMA),
    SELFTEST_ROW("long context", 128, 4096, SELFTEST_SIZES(256, 256, 1, 4, 1, 128), SELFTEST_LLAMA),
    SELFTEST_ROW("long context, ALiBi", 0, 4096, SELFTEST_SIZES(128, 96, 1, 4, 4, 64),
                 SELFTEST_MPT),
    SELFTEST_ROW("large tiles", 128, 1024, SELFTEST_SIZES(256, 3328, 1, 2, 1, 128), SELFTEST_LLAMA),
    SELFTEST_ROW("large tiles, large heads", 0, 1024, SELFTEST_SIZES(128, 3328, 1, 2, 2, 256),
                 SELFTEST_LLAMA),
    {"sampling",
     128,
     SELFTEST_DRAWS,
     true,
     {"self-test", "self-test", 128, 128, 1, 2, 2, 64, 50021, 0, SELFTEST_LLAMA}},
    SELFTEST_ROW("ALiBi, GELU, act scales, clipping", 128, 700,
                 SELFTEST_SIZES(512, 384, 2, 4, 4, 128), SELFTEST_MPT, .clip_qkv = 0.2,
                 .act_scales = true, .tied = true),
    SELFTEST_ROW("parallel, LayerNorm with bias", 64, 700, SELFTEST_SIZES(320, 640, 2, 5, 1, 64),
                 SELFTEST_FALCON, .shared_norm = true, .tied = true, .act_scales = true),
    SELFTEST_ROW("parallel, two norms", 0, 300, SELFTEST_SIZES(160, 96, 2, 6, 2, 80),
                 SELFTEST_FALCON),
    SELFTEST_ROW("biases of q, k and v", 128, 700, SELFTEST_SIZES(384, 256, 2, 14, 2, 64),
                 SELFTEST_LLAMA, .qkv_bias = true),
    SELFTEST_ROW("norms of q and k", 64, 300, SELFTEST_SIZES(128, 192, 2, 4, 2, 128),
                 SELFTEST_LLAMA, .qk_norm = true),
    SELFTEST_ROW("GELU-gated MLP", 32, 300, SELFTEST_SIZES(96, 160, 2, 4, 1, 112), SELFTEST_LLAMA,
                 .activation = TC__ACT_GELU),
    SELFTEST_ROW("odd sizes", 64, 300, SELFTEST_SIZES(192, 320, 2, 4, 2, 80), SELFTEST_LLAMA,
                 .tied = true),
    SELFTEST_ROW("odd sizes", 0, 300, SELFTEST_SIZES(160, 96, 2, 9, 1, 96), SELFTEST_LLAMA),
    SELFTEST_ROW("large heads", 64, 300, SELFTEST_SIZES(256, 192, 1, 6, 1, 256), SELFTEST_LLAMA),
};
enum { SELFTEST_CASES = TC_COUNT(selftest_cases) };

/* ---- comparing ---- */

/* A model on the device under test and on the CPU, with a session on each. */
typedef struct selftest_pair {
    tc_model *models[2];
    tc_session *sessions[2];
} selftest_pair;

static void selftest_close(selftest_pair *pair) {
    for (int i = 0; i < 2; i++) {
        tc_session_close(pair->sessions[i]);
        tc_model_close(pair->models[i]);
    }
}

static int selftest_sessions(selftest_pair *pair, int tokens, tc_error *err) {
    tc_session_params params = {tokens};
    int code = TC_OK;
    for (int i = 0; i < 2 && !code; i++)
        code = tc_session_open(pair->models[i], &params, &pair->sessions[i], err);
    return code;
}

/* Relative L2 error; infinite if a number is not finite. */
static double selftest_distance(const float *got, const float *want, size_t n) {
    double difference = 0, size = 0;
    for (size_t i = 0; i < n; i++) {
        const double delta = (double)got[i] - want[i];
        difference += delta * delta;
        size += (double)want[i] * want[i];
    }
    const double error = sqrt(difference / size);
    return isfinite(error) ? error : (double)INFINITY;
}

static int selftest_keep(void *user, size_t position, const float *logits, int vocab_size) {
    memcpy((float *)user + position * (size_t)vocab_size, logits, (size_t)vocab_size * 4);
    return 0;
}

typedef struct selftest_check {
    const float *want; /* [tokens, vocab] */
    double worst;
} selftest_check;

static int selftest_compare(void *user, size_t position, const float *logits, int vocab_size) {
    selftest_check *check = user;
    const size_t n = (size_t)vocab_size;
    const double error = selftest_distance(logits, check->want + position * n, n);
    if (error > check->worst) check->worst = error;
    return 0;
}

/* In one prefill, then in pieces of all lengths that are treated differently, then one by one. */
static int selftest_logits(selftest_pair *pair, const int32_t *ids, size_t n, float *want,
                           tc_selftest_row *row, tc_error *err) {
    static const size_t pieces[] = {1, 2, 5, 8, 17, 64, 33, 128, 1, 300};
    tc_session *session = pair->sessions[0];
    selftest_check prefill = {want, 0}, decode = {want, 0};
    int code = tc_eval_all(pair->sessions[1], ids, n, selftest_keep, want, err);
    if (!code) code = tc_eval_all(session, ids, n, selftest_compare, &prefill, err);
    tc_kv_truncate(session, 0);
    for (size_t at = 0, i = 0; at < n && !code; at += pieces[i++ % TC_COUNT(pieces)]) {
        const size_t piece = pieces[i % TC_COUNT(pieces)], left = n - at;
        code = tc_eval_all(session, ids + at, piece < left ? piece : left, selftest_compare,
                           &prefill, err);
    }
    tc_kv_truncate(session, 0);
    for (size_t at = 0; at < n && !code; at++) {
        code = tc_eval(session, ids + at, 1, err);
        const float *logits = code ? NULL : tc_logits(session);
        if (logits)
            selftest_compare(&decode, at, logits, tc_model_get_info(pair->models[0]).vocab_size);
        else if (!code)
            code = tc__fail(err, TC_ERR_DEVICE, "copying logits from the GPU failed");
    }
    row->prefill_error = prefill.worst;
    row->decode_error = decode.worst;
    row->ok = prefill.worst <= row->limit && decode.worst <= row->limit;
    return code;
}

/* Draws from the device's logits, there and by the CPU's sampler: the share that differs. Single
 * draws may fall on the other side of a border, as the device computes in binary32. */
static int selftest_sampling(selftest_pair *pair, const int32_t *ids, size_t n,
                             tc_selftest_row *row, tc_error *err) {
    const tc_sampling ways[] = {tc_default_sampling(),
                                {0, 1, 0, 0, 1.3f, 64, 1},
                                {1, 1, 0, 0, 1, -1, 1},
                                {1.5f, 0.9f, 0, 0.02f, 1.1f, -1, 1}};
    tc_session *session = pair->sessions[0];
    const int vocab = tc_model_get_info(pair->models[0]).vocab_size;
    tc__candidate *candidates = tc__calloc((size_t)vocab, sizeof *candidates);
    uint8_t *seen = tc__calloc((size_t)vocab, 1);
    int code = candidates && seen ? TC_OK : tc__fail_memory(err, "sampling", (size_t)vocab);
    int draws = 0, different = 0;
    for (size_t way = 0; way < TC_COUNT(ways) && !code; way++) {
        const tc_sampling *sampling = &ways[way];
        tc_kv_truncate(session, 0);
        tc_session_seed(session, 1);
        for (size_t i = 0; i < n && !code; i++) {
            int32_t id = 0, want = 0;
            code = tc_eval(session, ids + i, 1, err);
            const size_t last =
                sampling->repeat_last_n < 0 ? i + 1 : (size_t)sampling->repeat_last_n;
            const size_t window = last < i + 1 ? last : i + 1;
            const float *logits = code ? NULL : tc_logits(session);
            if (!code && !logits) code = tc__fail(err, TC_ERR_DEVICE, "no logits from the GPU");
            if (!code)
                code = tc__sample(logits, vocab, sampling, tc_kv_ids(session) + i + 1 - window,
                                  window, tc__random(1, i), candidates, seen, &want, err);
            if (!code) code = tc_sample(session, sampling, &id, err);
            draws++;
            different += id != want;
        }
    }
    free(candidates);
    free(seen);
    row->decode_error = draws ? (double)different / draws : 0;
    row->limit = 0.05;
    row->ok = row->decode_error <= row->limit;
    return code;
}

/* Fills in what a row says about its model and compares. */
static int selftest_run(selftest_pair *pair, bool sampling, int tokens, tc_selftest_row *row,
                        tc_error *err) {
    const tc_model_info info = tc_model_get_info(pair->models[0]);
    const size_t n = (size_t)tokens, vocab = (size_t)info.vocab_size;
    int32_t *ids = tc__calloc(n, sizeof *ids);
    float *want = sampling ? NULL : tc__calloc(n * vocab, sizeof *want);
    int code = ids && (want || sampling)
                   ? selftest_sessions(pair, tokens, err)
                   : tc__fail_memory(err, "the self-test", n * vocab * sizeof *want);
    for (size_t i = 0; i < n && !code; i++)
        ids[i] = (int32_t)(tc__random(1, i) * (double)info.vocab_size);
    if (!code)
        code = sampling ? selftest_sampling(pair, ids, n, row, err)
                        : selftest_logits(pair, ids, n, want, row, err);
    free(ids);
    free(want);
    return code;
}

/* ---- the table ---- */

typedef struct selftest_result {
    tc_selftest_row row;
    char name[128], shape[128], device[256];
    tc_error error;
    bool done;
} selftest_result;

typedef struct selftest_work {
    const tc__backend *backend;
    int most_tokens;
    const tc_model_params *params; /* of the caller, for the progress callback */
    selftest_result results[SELFTEST_CASES];
    pthread_mutex_t lock;
    pthread_cond_t changed;
    int next;
    bool stop;
} selftest_work;

static void selftest_describe(const tc_model *model, const char *what, int tokens,
                              selftest_result *result) {
    const tc_model_info info = tc_model_get_info(model);
    snprintf(result->name, sizeof result->name, "%s %s", info.precision, what);
    snprintf(result->shape, sizeof result->shape, "%dx%u, %d/%d heads of %d", info.hidden_size,
             (unsigned)model->weights.arch.intermediate_size, info.heads, info.kv_heads,
             info.head_dim);
    snprintf(result->device, sizeof result->device, "%s", info.device);
    result->row.tokens = tokens;
}

/* One row, by one thread of the CPU. */
static int selftest_case_run(const selftest_work *work, const selftest_case *test,
                             selftest_result *result) {
    const char *precision = test->group_size ? "w4a16" : "w16a16";
    tc_model_params params = tc_model_default_params();
    tc__shape_spec spec = test->spec;
    selftest_pair pair = {{NULL, NULL}, {NULL, NULL}};
    tc_error *err = &result->error;
    params.device = work->params->device;
    params.threads = 1;
    const int tokens = test->tokens < work->most_tokens ? test->tokens : work->most_tokens;
    spec.max_seq_len = (uint32_t)tokens;
    snprintf(result->name, sizeof result->name, "%s", test->what);
    int code = tc__model_open_spec(work->backend, &spec, precision, test->group_size, &params,
                                   &pair.models[0], err);
    if (!code)
        code = tc__model_open_spec(tc__cpu_backend(), &spec, precision, test->group_size, &params,
                                   &pair.models[1], err);
    if (!code) {
        selftest_describe(pair.models[0], test->what, tokens, result);
        code = selftest_run(&pair, test->sampling, tokens, &result->row, err);
    }
    selftest_close(&pair);
    return code;
}

static void selftest_finish(selftest_result *result, int code) {
    tc_selftest_row *row = &result->row;
    row->name = result->name;
    row->shape = result->shape;
    row->device = result->device;
    row->error = code ? result->error.message : NULL;
    if (code) row->ok = 0;
}

static void *selftest_worker(void *argument) {
    selftest_work *work = argument;
    for (;;) {
        pthread_mutex_lock(&work->lock);
        const int i = work->stop ? SELFTEST_CASES : work->next++;
        pthread_mutex_unlock(&work->lock);
        if (i >= SELFTEST_CASES) return NULL;
        selftest_result *result = &work->results[i];
        const int code = selftest_case_run(work, &selftest_cases[i], result);
        pthread_mutex_lock(&work->lock);
        selftest_finish(result, code);
        result->done = true;
        pthread_cond_broadcast(&work->changed);
        pthread_mutex_unlock(&work->lock);
    }
}

/* Hands the rows over in their order, as they come. */
static int selftest_hand_over(selftest_work *work, void (*row)(void *, const tc_selftest_row *),
                              void *user, tc_error *err) {
    const tc_model_params *params = work->params;
    for (int i = 0; i < SELFTEST_CASES; i++) {
        pthread_mutex_lock(&work->lock);
        while (!work->results[i].done) pthread_cond_wait(&work->changed, &work->lock);
        pthread_mutex_unlock(&work->lock);
        row(user, &work->results[i].row);
        if (params->progress &&
            params->progress(params->user, (i + 1.0) / SELFTEST_CASES, "self-test"))
            return tc__fail(err, TC_ERR_CANCELLED, "the self-test was cancelled");
    }
    return TC_OK;
}

static int selftest_table(selftest_work *work, void (*row)(void *, const tc_selftest_row *),
                          void *user, tc_error *err) {
    pthread_t threads[SELFTEST_CASES];
    int count = work->params->threads ? work->params->threads : tc__processors(), running = 0;
    if (count > SELFTEST_CASES) count = SELFTEST_CASES;
    pthread_mutex_init(&work->lock, NULL);
    pthread_cond_init(&work->changed, NULL);
    while (running < count && !pthread_create(&threads[running], NULL, selftest_worker, work))
        running++;
    if (!running) selftest_worker(work);
    int code = selftest_hand_over(work, row, user, err);
    pthread_mutex_lock(&work->lock);
    work->stop = true;
    pthread_mutex_unlock(&work->lock);
    while (running > 0) pthread_join(threads[--running], NULL);
    pthread_cond_destroy(&work->changed);
    pthread_mutex_destroy(&work->lock);
    return code;
}

/* ---- entry points ---- */

int tc__selftest_with(const tc__backend *backend, int most_tokens, const tc_model_params *params,
                      void (*row)(void *user, const tc_selftest_row *row), void *user,
                      tc_error *err) {
    selftest_work *work = tc__calloc(1, sizeof *work);
    if (!work) return tc__fail_memory(err, "the self-test", sizeof *work);
    work->backend = backend;
    work->most_tokens = most_tokens;
    work->params = params;
    for (int i = 0; i < SELFTEST_CASES; i++) work->results[i].row.limit = SELFTEST_LIMIT;
    selftest_result *first = &work->results[0];
    int code = selftest_case_run(work, &selftest_cases[0], first);
    if (code == TC_ERR_DEVICE) { /* the machine, not a kernel */
        if (err) *err = first->error;
    } else {
        selftest_finish(first, code);
        first->done = true;
        work->next = 1;
        code = selftest_table(work, row, user, err);
    }
    free(work);
    return code ? code : tc__ok(err);
}

int tc__selftest_model(const tc__backend *backend, const char *path, const tc_model_params *params,
                       void (*row)(void *user, const tc_selftest_row *row), void *user,
                       tc_error *err) {
    selftest_pair pair = {{NULL, NULL}, {NULL, NULL}};
    selftest_result *result = tc__calloc(1, sizeof *result);
    tc_model_params exact = *params;
    if (!result) return tc__fail_memory(err, "the self-test", sizeof *result);
    exact.head_bits = 0;
    result->row.limit = params->head_bits ? SELFTEST_LIMIT_8 : SELFTEST_LIMIT;
    int code = tc__model_open_with(backend, path, params, &pair.models[0], err);
    if (!code) code = tc__model_open_with(tc__cpu_backend(), path, &exact, &pair.models[1], err);
    if (!code) {
        const tc_model_info info = tc_model_get_info(pair.models[0]);
        const int tokens = info.max_seq_len < SELFTEST_PROMPT ? info.max_seq_len : SELFTEST_PROMPT;
        selftest_describe(pair.models[0], info.name, tokens, result);
        code = selftest_run(&pair, false, tokens, &result->row, &result->error);
        selftest_finish(result, code);
        row(user, &result->row);
        code = TC_OK;
    }
    selftest_close(&pair);
    free(result);
    return code ? code : tc__ok(err);
}

int tc_selftest(const char *path, const tc_model_params *params,
                void (*row)(void *user, const tc_selftest_row *row), void *user, tc_error *err) {
    tc_model_params own = params ? *params : tc_model_default_params();
    int code = tc__need(row != NULL, "row", err);
    if (code) return code;
    if (!own.device || strcmp(own.device, "auto") == 0) own.device = "cuda";
    if (strncmp(own.device, "cuda", 4))
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "device '%s': the self-test compares a GPU with the CPU; expected cuda or "
                        "cuda:N",
                        own.device);
    if (!path && own.head_bits)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "head_bits is %d: an 8-bit head is for a model, not for the self-test without "
                        "one",
                        own.head_bits);
    return path ? tc__selftest_model(tc__cuda_backend(), path, &own, row, user, err)
                : tc__selftest_with(tc__cuda_backend(), INT_MAX, &own, row, user, err);
}

/* ======== src/doctor.c ======== */


#include <errno.h>
#include <unistd.h>

typedef struct doctor_state {
    void (*line)(void *user, const char *text);
    void *user;
    tc__cu cu;
    int version; /* of the driver; 0: there is none */
    int arch;    /* of GPU 0; 0 if it cannot be used */
    bool nvrtc;  /* it is there and compiles */
} doctor_state;

/* A line: what it is about, in a column of its own, and the facts. */
static void doctor_say(const doctor_state *doctor, const char *what, const char *format, ...)
    TC_PRINTF(3, 4);
static void doctor_say(const doctor_state *doctor, const char *what, const char *format, ...) {
    char facts[1280], text[1312];
    va_list args;
    if (!doctor->line) return; /* only the answer is wanted */
    va_start(args, format);
    vsnprintf(facts, sizeof facts, format, args);
    va_end(args);
    snprintf(text, sizeof text, "%-11s %s", what, facts);
    doctor->line(doctor->user, text);
}

/* The file behind a library that is loaded (its name carries the driver's version), as Linux knows
 * it; elsewhere, and if it is not found, `otherwise`. */
static void doctor_file(const char *library, const char *otherwise, char *path, size_t size) {
    char line[1024];
    FILE *maps = fopen("/proc/self/maps", "r");
    snprintf(path, size, "%s", otherwise);
    while (maps && fgets(line, sizeof line, maps)) {
        char *name = strchr(line, '/'), *file = strrchr(line, '/');
        if (!name || strncmp(file + 1, library, strlen(library))) continue;
        snprintf(path, size, "%.*s", (int)strcspn(name, "\n"), name);
        break;
    }
    if (maps) fclose(maps);
}

/* ---- the GPU's side ---- */

/* Opens the GPU as a model would, which shows what is free, and leaves it as it was. */
static int doctor_gpu_memory(const tc__cu *cu, tc__cu_device device, size_t *free_bytes,
                             tc_error *err) {
    tc__cu_context context;
    size_t total;
    int code = tc__cu_check(cu, cu->context_retain(&context, device), "opening the GPU", err);
    if (code) return code;
    tc__cu_result result = cu->context_push(context);
    if (!result) {
        tc__cu_context previous;
        result = cu->memory_info(free_bytes, &total);
        cu->context_pop(&previous);
    }
    cu->context_release(device);
    return tc__cu_check(cu, result, "asking the GPU for its memory", err);
}

/* One GPU; its architecture, or 0 if it cannot be used. */
static int doctor_gpu(const doctor_state *doctor, int index) {
    const tc__cu *cu = &doctor->cu;
    tc__cu_device device = 0;
    char what[32], name[128] = "?";
    int major = 0, minor = 0, sms = 0, integrated = 0;
    size_t total = 0, free_bytes = 0;
    tc_error reason;
    snprintf(what, sizeof what, "GPU %d", index);
    tc__cu_result result = cu->device_get(&device, index);
    if (!result) result = cu->device_name(name, sizeof name, device);
    if (!result) result = cu->device_attribute(&major, TC__CU_ATTRIBUTE_MAJOR, device);
    if (!result) result = cu->device_attribute(&minor, TC__CU_ATTRIBUTE_MINOR, device);
    if (!result) result = cu->device_attribute(&sms, TC__CU_ATTRIBUTE_SM_COUNT, device);
    if (!result) result = cu->device_attribute(&integrated, TC__CU_ATTRIBUTE_INTEGRATED, device);
    if (!result) result = cu->device_memory(&total, device);
    int code = tc__cu_check(cu, result, "asking the driver about the GPU", &reason);
    int arch = 10 * major + minor;
    if (!code && arch < 80)
        code = tc__fail(&reason, TC_ERR_DEVICE, "compute capability 8.0 or newer is needed");
    if (!code) code = doctor_gpu_memory(cu, device, &free_bytes, &reason);
    doctor_say(doctor, what, "%s, compute capability %d.%d, %d SMs, %.1f GiB of %smemory", name,
               major, minor, sms, (double)total / (1 << 30), integrated ? "the system's " : "");
    if (code)
        doctor_say(doctor, "", "cannot be used: %s", reason.message);
    else
        doctor_say(doctor, "", "%.1f GiB of it are free", (double)free_bytes / (1 << 30));
    return code ? 0 : arch;
}

static void doctor_driver(doctor_state *doctor) {
    char path[1024];
    int count = 0;
    tc_error reason;
    if (tc__cu_open(&doctor->cu, &reason)) {
        doctor_say(doctor, "driver", "%s", reason.message);
        return;
    }
    doctor->cu.driver_version(&doctor->version);
    doctor_file("libcuda.so", "libcuda.so.1", path, sizeof path);
    doctor_say(doctor, "driver", "CUDA %d.%d, %s", doctor->version / 1000,
               doctor->version % 1000 / 10, path);
    tc__cu_result result = doctor->cu.device_count(&count);
    if (tc__cu_check(&doctor->cu, result, "counting GPUs", &reason))
        doctor_say(doctor, "GPU", "%s", reason.message);
    else if (count == 0)
        doctor_say(doctor, "GPU", "the driver shows none (CUDA_VISIBLE_DEVICES hides GPUs)");
    for (int i = 0; i < count; i++) {
        int arch = doctor_gpu(doctor, i);
        if (i == 0) doctor->arch = arch;
    }
    tc__cu_close(&doctor->cu);
}

/* ---- NVRTC ---- */

/* Compiles a kernel: only that shows whether its libnvrtc-builtins is there. */
static bool doctor_compiles(const tc__nvrtc *nvrtc, int arch, char *complaint, size_t size) {
    static const char source[] =
        "extern \"C\" __global__ void probe(float *x) { *x = __expf(*x); }\n";
    tc__nvrtc_program program = NULL;
    char option[48];
    size_t length = 0;
    snprintf(option, sizeof option, "--gpu-architecture=sm_%d", arch);
    const char *options[] = {option};
    int status = nvrtc->create(&program, source, "probe.cu", 0, NULL, NULL);
    snprintf(complaint, size, "error %d", status);
    if (status) return false;
    status = nvrtc->compile(program, 1, options);
    snprintf(complaint, size, "error %d", status);
    if (status && !nvrtc->log_size(program, &length) && length > 1 && length < size)
        nvrtc->log(program, complaint);
    complaint[strcspn(complaint, "\n")] = 0;
    nvrtc->destroy(&program);
    return status == 0;
}

static void doctor_nvrtc(doctor_state *doctor) {
    tc__nvrtc nvrtc;
    tc_error err;
    char path[1024], complaint[1024];
    int count = 0, archs[128] = {0}, newest = 0;
    if (tc__nvrtc_open(&nvrtc, doctor->version, &err)) {
        doctor_say(doctor, "NVRTC", "%s", err.message);
        return;
    }
    if (!nvrtc.arch_count(&count) && count > 0 && count <= (int)TC_COUNT(archs) &&
        !nvrtc.archs(archs))
        for (int i = 0; i < count; i++) newest = archs[i] > newest ? archs[i] : newest;
    doctor_file("libnvrtc.so", nvrtc.path, path, sizeof path);
    doctor_say(doctor, "NVRTC", "%d.%d, %s, for GPUs up to sm_%d", nvrtc.major, nvrtc.minor, path,
               newest);
    doctor->nvrtc = doctor_compiles(&nvrtc, newest, complaint, sizeof complaint);
    if (!doctor->nvrtc) doctor_say(doctor, "", "cannot compile: %s", complaint);
    if (doctor->nvrtc && doctor->arch > newest)
        doctor_say(doctor, "", "older than GPU 0: the driver translates kernels for sm_%d", newest);
    tc__nvrtc_close(&nvrtc);
}

/* ---- the rest ---- */

/* Cuts a path down to the folder that exists. */
static void doctor_existing(char *path) {
    while (access(path, F_OK)) {
        char *slash = strrchr(path, '/');
        if (!slash) {
            strcpy(path, ".");
        } else if (slash == path) {
            path[1] = 0;
            return;
        } else {
            *slash = 0;
        }
    }
}

/* Whether files can be made in the cache's folder, or the folder itself if it is not there yet. */
static void doctor_cache(const doctor_state *doctor) {
    char folder[768], parent[768];
    tc__jit_folder(folder, sizeof folder);
    if (!*folder) {
        doctor_say(doctor, "cache", "none: HOME is not set; every start on a GPU compiles");
        return;
    }
    snprintf(parent, sizeof parent, "%s", folder);
    doctor_existing(parent);
    if (access(parent, W_OK | X_OK) == 0)
        doctor_say(doctor, "cache", "%s, %s", folder,
                   strcmp(parent, folder) ? "will be made when it is needed" : "writable");
    else
        doctor_say(doctor, "cache", "%s cannot be written: %s: %s; every start on a GPU compiles",
                   folder, parent, strerror(errno));
}

static void doctor_cpu(const doctor_state *doctor) {
    const char *level = getenv("TINYCHAT_CPU");
    const tc__kernels *kernels;
    tc_error err;
    if (tc__kernels_choose(level && *level ? level : NULL, &kernels, &err))
        doctor_say(doctor, "CPU", "%s", err.message);
    else
        doctor_say(doctor, "CPU", "%s kernels, %d thread%s, %.1f GiB of memory available",
                   kernels->name, tc__processors(), tc__processors() == 1 ? "" : "s",
                   (double)tc__available_memory() / (1 << 30));
}

static void doctor_environment(const doctor_state *doctor) {
    static const char *const names[] = {
        "CUDA_VISIBLE_DEVICES", "CUDA_HOME",      "TINYCHAT_ARCH", "TINYCHAT_NVRTC",
        "TINYCHAT_KERNELS",     "TINYCHAT_CACHE", "TINYCHAT_CPU",  "TINYCHAT_INTEGRATED"};
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (getenv(names[i]))
            doctor_say(doctor, "environment", "%s=%s", names[i], getenv(names[i]));
}

int tc_doctor(void (*line)(void *user, const char *text), void *user) {
    doctor_state doctor;
    memset(&doctor, 0, sizeof doctor);
    doctor.line = line;
    doctor.user = user;
    doctor_say(&doctor, "tinychat", "%s", TC_VERSION);
    doctor_driver(&doctor);
    doctor_nvrtc(&doctor);
    doctor_cache(&doctor);
    doctor_cpu(&doctor);
    doctor_environment(&doctor);
    if (doctor.arch && doctor.nvrtc)
        doctor_say(&doctor, "device auto", "takes GPU 0");
    else if (doctor.arch)
        doctor_say(&doctor, "device auto",
                   "takes GPU 0 for models whose kernels are in the cache, "
                   "else the CPU: NVRTC cannot be used");
    else
        doctor_say(&doctor, "device auto", "takes the CPU: there is no GPU 0 that can be used");
    return doctor.arch && doctor.nvrtc;
}

/* ======== src/api.c ======== */


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
