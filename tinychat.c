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
#ifndef _FILE_OFFSET_BITS
#define _FILE_OFFSET_BITS 64
#endif
#if defined(__BYTE_ORDER__) && __BYTE_ORDER__ != __ORDER_LITTLE_ENDIAN__
#error "tinychat files are little-endian and are mapped in place: big-endian hosts are not supported"
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

/* Fills *err (NULL allowed) with a code and a printf-style message, cut to fit and with control
 * characters replaced by '?' (names out of files end up in messages); returns the code. */
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

/* Bytes of memory that the system could give without swapping; all there is where it does not say. */
TC_INTERNAL size_t tc__available_memory(void);

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
TC_INTERNAL void tc__map_close(tc__map *map);

/* A file written beside its destination and renamed over it by tc__replace_commit (after fsync), so
 * that `path` always holds either the old or the complete new bytes. tc__replace_abort removes the
 * temporary file; both close it. Only regular files are replaced, and links themselves, not what
 * they point to. Errors: IO. */
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
TC_INTERNAL size_t tc__tensor_bytes(uint32_t type, uint32_t group_size, size_t rows, size_t columns);

typedef struct tc__tensor {
    const char *name; /* not NUL-terminated */
    size_t name_len;
    uint32_t type;       /* TC__F32, ... */
    uint32_t group_size; /* of W4, else 0 */
    size_t rows, columns; /* a vector has columns == 1 */
    const uint8_t *data; /* in the mapped file; a multiple of 256 from its start. NULL: nowhere */
    size_t offset;       /* from the first tensor's data */
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


/* What a block computes is data: no code asks for a family's name. The values are those of the model
 * file's keys (docs/format.md). */
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
    const tc__tensor *embed, *head;       /* head == embed when tied */
    const tc__tensor *norm, *norm_bias;   /* [hidden], the final norm */
    tc__layer *layers;                     /* [arch.layers] */
    /* Of all tensors, in the file's order, gaps included; NULL: random numbers, made on the device
     * (shapes.h). */
    const uint8_t *data;
    bool in_file; /* data are pages of a file: the system counts them as available memory */
    size_t data_bytes;
    size_t parameters;                     /* weights, embeddings included */
    size_t layer_parameters;               /* of these, in the matrices of the layers */
    size_t tensor_bytes;                   /* of all tensors */
    size_t bytes_per_token;                /* read to decode one token, KV cache excluded */
} tc__weights;

/* Reads arch.* (an unknown arch.* key is refused by name), finds every tensor of the family and
 * checks its type and full shape. On failure nothing is held. The file must outlive the weights.
 * Errors: FORMAT, UNSUPPORTED, MEMORY. */
TC_INTERNAL int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err);
TC_INTERNAL void tc__weights_close(tc__weights *weights);

/* "W4A16 g128", "W16A16", ... into text. */
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
 * where hash(n) is the output of SplitMix64 in the state n * 0x9e3779b97f4a7c15, for n >= 1 thus its
 * n-th output when started at 0.
 * One rule for all types, so that the GPU needs one kernel:
 *     norm         1.0
 *     binary16     both signs, 2^-7 <= magnitude < 2^-6
 *     W4           any q; scale 0.002; zero 7 in rows 0-7, 8 in rows 8-15: the mean is 0 */
typedef struct tc__pattern {
    unsigned long long unit, random, mask, bits, tail;
} tc__pattern;

TC_INTERNAL tc__pattern tc__shape_pattern(const tc__tensor *tensor);

/* Makes the tables of a shape; release with tc__model_file_close. precision and group_size as in
 * tc_model_open_shape. With `in_memory` the tensors' data are made too, by params->threads threads
 * (0: one per processor), and params->progress is told and may cancel; else there are no data.
 * Errors: ARGUMENT (unknown name, precision or group size), UNSUPPORTED (a family that is to come),
 * MEMORY, CANCELLED. */
TC_INTERNAL int tc__shape_open(const char *name, const char *precision, int group_size,
                               bool in_memory, const tc_model_params *params, tc__model_file *file,
                               tc_error *err);

#endif /* TC_SHAPES_H */

/* ======== src/tokenizer.h ======== */

/* tokenizer - text to token ids and back: SentencePiece BPE, exactly as the sentencepiece library
 * does it (identity normalisation, byte fallback), plus special pieces cut out of trusted text.
 *
 * One run of text is escaped (space -> U+2581), gets a dummy prefix where asked, and malformed
 * UTF-8 becomes U+FFFD byte by byte. It is cut into characters (or user-defined pieces, longest
 * first, which never merge); then the pair of neighbours whose joined piece scores highest, the
 * leftmost among equals, is merged until none is left. A heap keeps that at O(n log n). What is no
 * piece is spelled in byte pieces or, in a vocabulary without them, becomes the unknown id, once
 * per stretch.
 *
 * One deliberate difference: a control or unknown piece is never made out of a run of text, not
 * even one of a single character (where sentencepiece would).
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

/* The longest special piece that the text begins with: its length in bytes and *id; 0 if none.
 * Special are control pieces, the unknown piece and added tokens. */
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
    bool at_start; /* the next text piece loses its dummy prefix */
} tc__decoder;

/* A decoder at the start of a text, or (at_start false) one that continues earlier tokens. */
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

/* ======== src/template.h ======== */

/* template - chat templates as data: four patterns with {system}, {user}, {reply} (docs/format.md),
 * and the rendering of a conversation to spans of trusted and untrusted bytes.
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
    const char *stop_strings[TC__MAX_STOP_STRINGS + 1]; /* NULL-terminated */
} tc__template;

/* The built-in templates by index (NULL past the end) and by name (NULL if unknown):
 * "llama-2", "vicuna", "human" (TinyChat's "### Human" one-shot), "plain". */
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
 * is left out instead.
 * Errors: MEMORY, ARGUMENT (text too long). */
TC_INTERNAL int tc__render(const tc__template *chat_template, const tc__tokenizer *tokenizer,
                           const char *system, size_t system_len, const tc__turn *turns,
                           size_t n_turns, tc__ids *ids, tc_error *err);

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

/* threads - a team of workers for one session's computations.
 *
 * One task at a time runs on all workers at once; inside it the workers keep step with a barrier.
 * A waiting worker spins for some tens of microseconds (a barrier then costs about one) and sleeps
 * after that, so an idle team uses no processor time. The caller is worker 0: a team of one has no
 * thread of its own and every call below is then a plain function call.
 */
#ifndef TC_THREADS_H
#define TC_THREADS_H


#define TC__THREADS_MAX 512

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

/* The number of processors online, at least 1. */
TC_INTERNAL int tc__processors(void);

#endif /* TC_THREADS_H */

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
} tc__kernels;

/* The best set for this processor, or the one named by `level` ("portable", "avx2", "avx512",
 * "neon"); NULL for the best. Errors: DEVICE (unknown, or this processor lacks it). */
TC_INTERNAL int tc__kernels_choose(const char *level, const tc__kernels **kernels, tc_error *err);

/* The products of a tile with any number of vectors: see `multiply`. */
TC_INTERNAL void tc__multiply_tile(const tc__kernels *kernels, const float *tile, size_t stride,
                                   size_t n, const float *x, size_t x_stride, size_t count,
                                   float *sums);

/* Receives 16 rows (fewer at the end of the matrix) of product number `vector`. */
typedef void (*tc__rows_fn)(void *user, size_t vector, size_t row, size_t rows, const float *y);

/* Floats of scratch memory (64-byte aligned) that tc__multiply_rows needs for `count` vectors. */
TC_INTERNAL size_t tc__multiply_scratch(size_t count);

/* Products of row blocks [begin, end) of the matrix with `count` vectors, handed to `take`. Every
 * weight is read from memory once and in the file's order: 17/32 bytes each for W4 with group size
 * 128, 2 bytes each for halves; vectors, tiles and sums are to stay in the caches. */
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
    /* The logits [vocab_size] of the last position evaluated, in host memory until the next call. */
    const float *(*logits)(tc__cache *cache);
    /* Chooses the next token from those logits: context and u as in tc__sample. */
    int (*sample)(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                  size_t n_context, double u, int32_t *id, tc_error *err);

    /* Median bytes per second of a plain read loop over `bytes` of the device's memory. */
    int (*read_bandwidth)(tc__device *device, size_t bytes, double *bytes_per_second,
                          tc_error *err);
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

enum { /* numbers of the driver's enumerations */
    TC__CU_OUT_OF_MEMORY = 2,
    TC__CU_NOT_READY = 600,
    TC__CU_ATTRIBUTE_MAX_SHARED = 97, /* per block, opt-in */
    TC__CU_ATTRIBUTE_SM_COUNT = 16,
    TC__CU_ATTRIBUTE_CLOCK_KHZ = 13,
    TC__CU_ATTRIBUTE_INTEGRATED = 18,
    TC__CU_ATTRIBUTE_MAJOR = 75,
    TC__CU_ATTRIBUTE_MINOR = 76,
    TC__CU_FUNCTION_LOCAL_BYTES = 3,
    TC__CU_FUNCTION_REGISTERS = 4,
    TC__CU_FUNCTION_MAX_DYNAMIC_SHARED = 8,
    TC__CU_FUNCTION_CARVEOUT = 9, /* per cent of L1 that is shared memory */
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
    F(context_retain, "cuDevicePrimaryCtxRetain", (tc__cu_context * context, tc__cu_device device)) \
    F(context_release, "cuDevicePrimaryCtxRelease_v2", (tc__cu_device device))                     \
    F(context_push, "cuCtxPushCurrent_v2", (tc__cu_context context))                               \
    F(context_pop, "cuCtxPopCurrent_v2", (tc__cu_context * context))                               \
    F(memory_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t *total))                        \
    F(allocate, "cuMemAlloc_v2", (tc__cu_ptr * pointer, size_t bytes))                             \
    F(release, "cuMemFree_v2", (tc__cu_ptr pointer))                                               \
    F(host_allocate, "cuMemHostAlloc", (void **pointer, size_t bytes, unsigned flags))             \
    F(host_release, "cuMemFreeHost", (void *pointer))                                              \
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
    F(event_create, "cuEventCreate", (tc__cu_event * event, unsigned flags))                       \
    F(event_destroy, "cuEventDestroy_v2", (tc__cu_event event))                                    \
    F(event_record, "cuEventRecord", (tc__cu_event event, tc__cu_stream stream))                   \
    F(event_wait, "cuEventSynchronize", (tc__cu_event event))                                      \
    F(event_milliseconds, "cuEventElapsedTime",                                                    \
      (float *milliseconds, tc__cu_event start, tc__cu_event end))                                 \
    F(module_load, "cuModuleLoadData", (tc__cu_module * module, const void *image))                \
    F(module_unload, "cuModuleUnload", (tc__cu_module module))                                     \
    F(module_global, "cuModuleGetGlobal_v2",                                                          \
      (tc__cu_ptr * pointer, size_t *bytes, tc__cu_module module, const char *name))               \
    F(module_function, "cuModuleGetFunction",                                                      \
      (tc__cu_function * function, tc__cu_module module, const char *name))                        \
    F(function_set, "cuFuncSetAttribute", (tc__cu_function function, int attribute, int value))    \
    F(function_get, "cuFuncGetAttribute", (int *value, int attribute, tc__cu_function function))   \
    F(launch, "cuLaunchKernelEx",                                                                  \
      (const tc__cu_launch_config *config, tc__cu_function function, void **arguments,             \
       void **extra))                                                                              \
    F(capture_begin, "cuStreamBeginCapture_v2", (tc__cu_stream stream, int mode))                  \
    F(capture_end, "cuStreamEndCapture", (tc__cu_stream stream, tc__cu_graph *graph))              \
    F(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (tc__cu_graph_exec * exec, tc__cu_graph graph, unsigned long long flags))                    \
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
    F(log_size, "nvrtcGetProgramLogSize", (tc__nvrtc_program program, size_t *size))               \
    F(log, "nvrtcGetProgramLog", (tc__nvrtc_program program, char *text))                          \
    F(cubin_size, "nvrtcGetCUBINSize", (tc__nvrtc_program program, size_t *size))                  \
    F(cubin, "nvrtcGetCUBIN", (tc__nvrtc_program program, char *image))                            \
    F(ptx_size, "nvrtcGetPTXSize", (tc__nvrtc_program program, size_t *size))                      \
    F(ptx, "nvrtcGetPTX", (tc__nvrtc_program program, char *image))

typedef struct tc__nvrtc {
    void *library;
    char path[512]; /* where it was found */
    int major, minor;
#define TC__NVRTC_MEMBER(member, symbol, arguments) int(*member) arguments;
    TC__NVRTC_FUNCTIONS(TC__NVRTC_MEMBER)
#undef TC__NVRTC_MEMBER
} tc__nvrtc;

/* Looks for NVRTC: TINYCHAT_NVRTC (a file), the dynamic linker's names, CUDA_HOME and CUDA_PATH, the
 * usual folders, Python's packages under VIRTUAL_ENV, CONDA_PREFIX, ~/.local and /usr. Errors:
 * DEVICE, saying where it looked and how to install it. */
TC_INTERNAL int tc__nvrtc_open(tc__nvrtc *nvrtc, tc_error *err);
TC_INTERNAL void tc__nvrtc_close(tc__nvrtc *nvrtc);

#endif /* TC_GPU_DRIVER_H */

/* ======== src/jit.h ======== */

/* jit - from CUDA source to a loadable image: compiled once per GPU architecture and model shape,
 * kept in a cache on disk.
 *
 * The cache is a convenience that is never trusted and never needed: an entry carries its key and a
 * checksum, anything that does not fit is compiled anew, and a folder that cannot be written only
 * costs the next start time. A hit does not open NVRTC.
 */
#ifndef TC_JIT_H
#define TC_JIT_H


typedef struct tc__jit_target {
    int arch;         /* 90 for compute capability 9.0 */
    bool as_ptx;      /* PTX instead of machine code (TINYCHAT_ARCH, or NVRTC older than the GPU) */
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

/* Compiles n programs, those that the cache lacks side by side. Errors: DEVICE (NVRTC missing or the
 * compiler's first complaint, with file and line), MEMORY. */
TC_INTERNAL int tc__jit(tc__jit_program *programs, size_t n, const tc__jit_target *target,
                        tc_error *err);

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

/* Finds the kinds of all layers' matrices. Errors: UNSUPPORTED (a matrix the kernels cannot take). */
TC_INTERNAL int tc__kinds_find(const tc__weights *weights, tc__kinds *kinds, tc_error *err);
/* The index of a matrix's kind. It must be one of those found. */
TC_INTERNAL int tc__kind_of(const tc__kinds *kinds, int role, const tc__tensor *matrix);

/* Appends the source of the decode kernels and of the prefill kernels. Kernel names: ROLE_KIND for
 * decode, all_ROLE_KIND and wide_ROLE_KIND (tiles of 256 rows) for prefill, and those of the list in
 * gpu_programs.c. NAME_launch holds {grid x, threads, shared bytes, vectors}. */
TC_INTERNAL void tc__write_decode(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                                  tc__buf *text);
TC_INTERNAL void tc__write_prefill(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                                   tc__buf *text);
TC_INTERNAL void tc__write_prefill_wide(const tc__weights *weights, const tc__kinds *kinds,
                                        int sm_count, tc__buf *text);

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

/* UNSUPPORTED if the model has no tokenizer. */
TC_INTERNAL int tc__need_tokenizer(const tc_model *model, tc_error *err);

#endif /* TC_SESSION_H */

/* ======== src/base.c ======== */


#include <errno.h>
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

/* ---- errors ---- */

int tc__fail(tc_error *err, int code, const char *format, ...) {
    if (!err) return code;
    err->code = code;
    va_list args;
    va_start(args, format);
    if (vsnprintf(err->message, sizeof err->message, format, args) < 0) err->message[0] = 0;
    va_end(args);
    for (char *c = err->message; *c; c++)
        if ((unsigned char)*c < 0x20 || *c == 0x7f) *c = '?';
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
    return bytes < SIZE_MAX ? (size_t)bytes : SIZE_MAX;
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

int tc__map_open(const char *path, tc__map *map, tc_error *err) {
    memset(map, 0, sizeof *map);
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
        code = tc__fail(err, TC_ERR_IO, "%s: not a regular file", path);
    else if ((uintmax_t)st.st_size > SIZE_MAX)
        code = tc__fail(err, TC_ERR_IO, "%s: too large for this machine's addresses", path);
    else if (st.st_size &&
             (data = mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_SHARED, fd, 0)) == MAP_FAILED)
        code = tc__fail(err, TC_ERR_IO, "%s: cannot map: %s", path, strerror(errno));
    close(fd);
    if (code) return code;
    map->data = data;
    map->size = (size_t)st.st_size;
    return tc__ok(err);
}

void tc__map_close(tc__map *map) {
    if (map->data) munmap((void *)(uintptr_t)map->data, map->size);
    memset(map, 0, sizeof *map);
}

/* Creates a file that did not exist, beside `path`; leaves its name in replace->temporary, which has
 * `room` bytes. */
static int base_create_beside(tc__replace *replace, size_t room) {
    for (int attempt = 0; attempt < 100; attempt++) {
        snprintf(replace->temporary, room, "%s.tmp-%ld-%d", replace->path, (long)getpid(), attempt);
        int fd = open(replace->temporary, O_WRONLY | O_CREAT | O_EXCL | O_CLOEXEC, 0666);
        if (fd >= 0 || errno != EEXIST) return fd;
    }
    return -1;
}

int tc__replace_open(tc__replace *replace, const char *path, tc_error *err) {
    memset(replace, 0, sizeof *replace);
    struct stat info; /* root could rename over /dev/null, for everyone */
    if (stat(path, &info) == 0 && !S_ISREG(info.st_mode))
        return tc__fail(err, TC_ERR_IO, "%s: is not a regular file, so it is not replaced", path);
    size_t room = strlen(path) + 48;
    replace->path = tc__copy(path, strlen(path));
    replace->temporary = malloc(room);
    if (!replace->path || !replace->temporary) {
        free(replace->path);
        free(replace->temporary);
        memset(replace, 0, sizeof *replace);
        return tc__fail_memory(err, "a file name", room);
    }
    int fd = base_create_beside(replace, room);
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


#define MODEL_FILE_MAX_METAS 4096u
#define MODEL_FILE_MAX_TENSORS 8192u
#define MODEL_FILE_MAX_NAME 256u

/* ---- W4 units ---- */

void tc__unit_place(unsigned group_size, unsigned row, unsigned column, unsigned *byte_offset,
                    unsigned *shift) {
    unsigned lane = (row & 7) * 4 + (column >> 3 & 3);
    unsigned word = (column >> 5) * 2 + (column >> 2 & 1);
    unsigned nibble = (row >> 3) + 2 * (column >> 1 & 1) + 4 * (column & 1);
    unsigned at = group_size == 32 ? 8 * lane + 4 * word
                                   : 512 * (word >> 2) + 16 * lane + 4 * (word & 3);
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
    return tc__fail(err, TC_ERR_FORMAT, "%s: damaged model file: %s; convert or copy it again", path,
                    what);
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
    int code = tc__map_open(path, &file->map, err);
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

/* Every arch.* key of the family; an unknown one would change the numbers, so it is refused. */
static const char *const arch_keys[] = {
    "arch.family",      "arch.hidden_size", "arch.intermediate_size", "arch.layers",
    "arch.heads",       "arch.kv_heads",    "arch.head_dim",          "arch.vocab_size",
    "arch.max_seq_len", "arch.norm_eps",    "arch.rope_theta",
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
    const char *family;
    size_t len;
    int code = tc__meta_text(file, "arch.family", &family, &len, err);
    if (code) return code;
    if (len != 5 || memcmp(family, "llama", 5) != 0)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "model file: model family '%.*s' is not supported; supported: llama",
                        (int)(len < 64 ? len : 64), family);
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

/* Angles per position: theta^(-2i / head_dim). */
static int arch_frequencies(tc__arch *arch, double theta, tc_error *err) {
    size_t half = arch->head_dim / 2;
    arch->frequencies = tc__calloc(half, sizeof *arch->frequencies);
    if (!arch->frequencies) return tc__fail_memory(err, "RoPE's frequencies", half * sizeof(double));
    for (size_t i = 0; i < half; i++)
        arch->frequencies[i] = pow(theta, -2.0 * (double)i / arch->head_dim);
    return TC_OK;
}

static int arch_read(const tc__model_file *file, tc__arch *arch, tc_error *err) {
    double eps = 0, theta = 0;
    int code = arch_check_keys(file, err);
    if (!code) code = arch_read_sizes(file, arch, err);
    if (!code) code = tc__meta_f64(file, "arch.norm_eps", &eps, err);
    if (!code) code = tc__meta_f64(file, "arch.rope_theta", &theta, err);
    if (code) return code;
    arch->norm_eps = (float)eps;
    if (!(eps > 0 && eps < 1) || !(theta >= 1 && isfinite(theta)))
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: norm_eps %g or rope_theta %g is impossible", eps, theta);
    arch->gated = true;
    arch->rope_scale = 1;
    return arch_frequencies(arch, theta, err);
}

static const char *arch_type_name(uint32_t type) {
    return type == TC__F32 ? "F32" : type == TC__F16 ? "F16" : type == TC__BF16 ? "BF16" : "W4";
}

enum { ARCH_NORM, ARCH_TABLE, ARCH_MATRIX }; /* F32; F16 or BF16; F16, BF16 or W4 */

static bool arch_type_suits(int kind, uint32_t type) {
    if (kind == ARCH_NORM) return type == TC__F32;
    return type == TC__F16 || type == TC__BF16 || (kind == ARCH_MATRIX && type == TC__W4);
}

/* Finds "name" (layer < 0) or "layer.name" and checks type and shape. */
static int arch_tensor(const tc__model_file *file, long layer, const char *name, int kind,
                       size_t rows, size_t columns, const tc__tensor **out, tc_error *err) {
    char full[64];
    if (layer < 0)
        snprintf(full, sizeof full, "%s", name);
    else
        snprintf(full, sizeof full, "%ld.%s", layer, name);
    const tc__tensor *tensor = tc__find_tensor(file, full);
    if (!tensor) return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' is missing", full);
    if (!arch_type_suits(kind, tensor->type))
        return tc__fail(err, TC_ERR_FORMAT, "model file: tensor '%s' has type %s; expected %s",
                        full, arch_type_name(tensor->type),
                        kind == ARCH_NORM    ? "F32"
                        : kind == ARCH_TABLE ? "F16 or BF16"
                                             : "W4, F16 or BF16");
    if (tensor->rows != rows || tensor->columns != columns)
        return tc__fail(err, TC_ERR_FORMAT,
                        "model file: tensor '%s' has shape [%zu, %zu]; expected [%zu, %zu]", full,
                        tensor->rows, tensor->columns, rows, columns);
    *out = tensor;
    return TC_OK;
}

static int arch_layer(const tc__model_file *file, const tc__arch *arch, long i, tc__layer *layer,
                      tc_error *err) {
    size_t hidden = arch->hidden_size, intermediate = arch->intermediate_size;
    size_t head_dim = arch->head_dim;
    size_t qkv_rows = (arch->heads + 2 * (size_t)arch->kv_heads) * head_dim;
    const struct {
        const char *name;
        int kind;
        size_t rows, columns;
        const tc__tensor **out;
    } wanted[] = {
        {"attn_norm", ARCH_NORM, hidden, 1, &layer->attn_norm},
        {"qkv", ARCH_MATRIX, qkv_rows, hidden, &layer->qkv},
        {"o", ARCH_MATRIX, hidden, arch->heads * head_dim, &layer->o},
        {"mlp_norm", ARCH_NORM, hidden, 1, &layer->mlp_norm},
        {"gate_up", ARCH_MATRIX, 2 * intermediate, hidden, &layer->gate_up},
        {"down", ARCH_MATRIX, hidden, intermediate, &layer->down},
    };
    for (size_t k = 0; k < TC_COUNT(wanted); k++) {
        int code = arch_tensor(file, i, wanted[k].name, wanted[k].kind, wanted[k].rows,
                               wanted[k].columns, wanted[k].out, err);
        if (code) return code;
    }
    return TC_OK;
}

static void arch_count(const tc__model_file *file, tc__weights *weights) {
    const tc__tensor *last = &file->tensors[file->tensor_count - 1];
    weights->data = file->tensors[0].data;
    weights->data_bytes = last->offset + last->size;
    weights->in_file = file->map.data != NULL;
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

int tc__weights_open(const tc__model_file *file, tc__weights *weights, tc_error *err) {
    memset(weights, 0, sizeof *weights);
    tc__arch *arch = &weights->arch;
    int code = arch_read(file, arch, err);
    if (!code) weights->layers = tc__calloc(arch->layers, sizeof *weights->layers);
    if (!code && !weights->layers)
        code = tc__fail_memory(err, "the table of layers", arch->layers * sizeof(tc__layer));
    if (code) {
        tc__weights_close(weights);
        return code;
    }
    size_t hidden = arch->hidden_size, vocab = arch->vocab_size;
    code = arch_tensor(file, -1, "embed", ARCH_TABLE, vocab, hidden, &weights->embed, err);
    for (uint32_t i = 0; i < arch->layers && !code; i++)
        code = arch_layer(file, arch, (long)i, &weights->layers[i], err);
    if (!code) code = arch_tensor(file, -1, "norm", ARCH_NORM, hidden, 1, &weights->norm, err);
    weights->head = weights->embed;
    if (!code && tc__find_tensor(file, "head"))
        code = arch_tensor(file, -1, "head", ARCH_TABLE, vocab, hidden, &weights->head, err);
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

void tc__precision_name(const tc__weights *weights, char *text, size_t size) {
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

/* ======== src/tokenizer.c ======== */

/* tokenizer - SentencePiece BPE, see tokenizer.h. The order of work below: tables, opening, the
 * encoder of one run, spans and special pieces, decoding. */

#include <math.h>

#define TOKENIZER_SPACE "\xE2\x96\x81"       /* U+2581, what a space is written as in pieces */
#define TOKENIZER_REPLACEMENT "\xEF\xBF\xBD" /* U+FFFD */
#define TOKENIZER_MAX_TEXT (700u << 20)      /* a byte becomes 3 at most; offsets are int32 */

typedef struct tokenizer_piece {
    const char *text; /* in the model file */
    uint32_t len;
    uint32_t rank; /* the lower, the higher the score */
    uint8_t type;
} tokenizer_piece;

/* Pieces that text can become, found by their bytes: open addressing, at most half full. */
typedef struct tokenizer_slot {
    uint32_t hash;
    int32_t id; /* -1: empty */
} tokenizer_slot;

/* Distinct texts in the order of their bytes, for longest-prefix matches. */
typedef struct tokenizer_entry {
    const char *text;
    size_t len;
    int32_t id;
    uint32_t order; /* among equal texts the lowest one counts */
} tokenizer_entry;

typedef struct tokenizer_list {
    tokenizer_entry *at;
    size_t n;
    bool begins[256]; /* some entry begins with this byte */
} tokenizer_list;

struct tc__tokenizer {
    tokenizer_piece *pieces; /* [n_pieces] */
    uint32_t n_pieces, vocab_size;
    uint32_t max_len; /* bytes of the longest piece that text can become */
    tokenizer_slot *slots;
    uint32_t slot_mask;
    tokenizer_list special, user;
    uint8_t *added; /* [vocab_size] 1: an added token */
    int32_t byte_ids[256];
    bool byte_fallback, has_unused;
    bool add_bos, dummy_prefix, legacy;
    int32_t unk_id, bos_id;
    const char *unk_surface;
    size_t unk_surface_len;
};

/* ---- tables ---- */

static uint32_t tokenizer_hash(const char *text, size_t len) {
    uint32_t hash = 2166136261u; /* FNV-1a */
    for (size_t i = 0; i < len; i++) hash = (hash ^ (uint8_t)text[i]) * 16777619u;
    return hash ^ hash >> 15;
}

/* The id of the piece with these bytes among those that text can become; -1 if there is none. */
static int32_t tokenizer_lookup(const tc__tokenizer *t, const char *text, size_t len) {
    if (len > t->max_len) return -1;
    uint32_t hash = tokenizer_hash(text, len);
    for (uint32_t i = hash & t->slot_mask; t->slots[i].id >= 0; i = (i + 1) & t->slot_mask) {
        if (t->slots[i].hash != hash) continue;
        const tokenizer_piece *piece = &t->pieces[t->slots[i].id];
        if (piece->len == len && !memcmp(piece->text, text, len)) return t->slots[i].id;
    }
    return -1;
}

static void tokenizer_insert(tc__tokenizer *t, int32_t id) {
    uint32_t hash = tokenizer_hash(t->pieces[id].text, t->pieces[id].len);
    uint32_t i = hash & t->slot_mask;
    while (t->slots[i].id >= 0) i = (i + 1) & t->slot_mask;
    t->slots[i] = (tokenizer_slot){hash, id};
    if (t->pieces[id].len > t->max_len) t->max_len = t->pieces[id].len;
}

static int tokenizer_compare(const void *left, const void *right) {
    const tokenizer_entry *a = left, *b = right;
    int order = memcmp(a->text, b->text, a->len < b->len ? a->len : b->len);
    if (order) return order;
    if (a->len != b->len) return a->len < b->len ? -1 : 1;
    return a->order < b->order ? -1 : a->order > b->order;
}

static void tokenizer_list_sort(tokenizer_list *list) {
    size_t kept = 0;
    if (list->n) qsort(list->at, list->n, sizeof *list->at, tokenizer_compare);
    for (size_t i = 0; i < list->n; i++) {
        const tokenizer_entry *e = &list->at[i], *last = kept ? &list->at[kept - 1] : NULL;
        if (last && last->len == e->len && !memcmp(last->text, e->text, e->len)) continue;
        list->begins[(uint8_t)e->text[0]] = true;
        list->at[kept++] = *e;
    }
    list->n = kept;
}

static void tokenizer_list_add(tokenizer_list *list, const char *text, size_t len, int32_t id) {
    list->at[list->n] = (tokenizer_entry){text, len, id, (uint32_t)list->n};
    list->n++;
}

/* The longest entry that text begins with: its length, 0 if none. Byte by byte, the entries that
 * share the bytes so far are a shrinking range of the sorted list. */
static size_t tokenizer_longest(const tokenizer_list *list, const char *text, size_t len,
                                int32_t *id) {
    size_t best = 0, low = 0, high = list->n;
    if (!len || !list->begins[(uint8_t)text[0]]) return 0;
    for (size_t depth = 0; low < high; depth++) {
        if (list->at[low].len == depth) {
            best = depth;
            *id = list->at[low++].id;
        }
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

/* ---- opening ---- */

/* Maps a score to a number that is lower the higher the score is; -0 equals 0. */
static uint32_t tokenizer_rank(float score) {
    uint32_t bits;
    score += 0.0f;
    memcpy(&bits, &score, sizeof bits);
    return bits & 0x80000000u ? bits : ~(bits | 0x80000000u);
}

static bool tokenizer_is_utf8(const char *text, size_t len) {
    uint32_t code;
    for (size_t i = 0; i < len;) {
        i += tc__utf8_decode(text + i, len - i, &code);
        if (code == UINT32_MAX) return false;
    }
    return true;
}

/* The value of a piece "<0x1F>"; -1 if it is not written like that. */
static int tokenizer_byte_value(const tokenizer_piece *piece) {
    static const char digits[] = "0123456789ABCDEF";
    if (piece->len != 6 || memcmp(piece->text, "<0x", 3) || piece->text[5] != '>') return -1;
    const char *high = memchr(digits, piece->text[3], 16),
               *low = memchr(digits, piece->text[4], 16);
    return high && low ? (int)(high - digits) * 16 + (int)(low - digits) : -1;
}

/* A metadata array of `type` with `count` elements (SIZE_MAX: any number but none). */
static int tokenizer_array(const tc__model_file *file, const char *key, uint32_t type, size_t count,
                           const tc__meta **meta, tc_error *err) {
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

static int tokenizer_flag(const tc__model_file *file, const char *key, bool fallback, bool *flag,
                          tc_error *err) {
    uint32_t value;
    int code = tc__meta_u32_or(file, key, fallback, &value, err);
    if (!code && value > 1)
        code = tc__fail(err, TC_ERR_FORMAT, "model file: metadata '%s' is %u; expected 0 or 1", key,
                        value);
    *flag = value == 1;
    return code;
}

static int tokenizer_id(const tc__tokenizer *t, const tc__model_file *file, const char *key,
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

/* Text, score and type of every piece. */
static int tokenizer_read_pieces(tc__tokenizer *t, const tc__model_file *file, tc_error *err) {
    const tc__meta *texts, *scores, *types;
    int code = tokenizer_array(file, "tokenizer.pieces", TC__META_STRINGS, SIZE_MAX, &texts, err);
    if (code) return code;
    size_t n = texts->count;
    if ((code = tokenizer_array(file, "tokenizer.scores", TC__META_F32, n, &scores, err)) ||
        (code = tokenizer_array(file, "tokenizer.types", TC__META_BYTES, n, &types, err)))
        return code;
    if (n > t->vocab_size)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: %zu pieces do not fit into the model's vocabulary of %u", n,
                        t->vocab_size);
    t->pieces = tc__calloc(n, sizeof *t->pieces);
    if (!t->pieces) return tc__fail_memory(err, "the tokenizer", n * sizeof *t->pieces);
    t->n_pieces = (uint32_t)n;

    tc__cursor cursor = tc__cursor_make(texts->value, texts->size);
    for (size_t i = 0; i < n; i++) {
        tokenizer_piece *piece = &t->pieces[i];
        size_t len = 0;
        float score;
        memcpy(&score, scores->value + 4 * i, sizeof score);
        piece->type = types->value[i];
        piece->rank = tokenizer_rank(score);
        if (!tc__next_string(&cursor, &piece->text, &len) || !len || len > TC__MAX_PIECE)
            return tc__fail(err, TC_ERR_FORMAT,
                            "tokenizer: piece %zu has %zu bytes; expected 1..%u", i, len,
                            TC__MAX_PIECE);
        piece->len = (uint32_t)len;
        if (!tokenizer_is_utf8(piece->text, len))
            return tc__fail(err, TC_ERR_FORMAT, "tokenizer: piece %zu is not UTF-8", i);
        if (!isfinite(score))
            return tc__fail(err, TC_ERR_FORMAT, "tokenizer: the score of piece %zu is not finite",
                            i);
        if (piece->type < TC__PIECE_NORMAL || piece->type > TC__PIECE_BYTE)
            return tc__fail(err, TC_ERR_FORMAT, "tokenizer: piece %zu has type %u; expected 1..6",
                            i, piece->type);
    }
    return TC_OK;
}

/* The added tokens of the checkpoint, into the list of special pieces, before the pieces: what
 * they say about a text counts. */
static int tokenizer_read_added(tc__tokenizer *t, const tc__model_file *file, tc_error *err) {
    const tc__meta *ids = NULL, *texts = NULL;
    size_t n = 0;
    int code;
    if (tc__find_meta(file, "tokenizer.added_ids") ||
        tc__find_meta(file, "tokenizer.added_pieces")) {
        if ((code =
                 tokenizer_array(file, "tokenizer.added_ids", TC__META_U32, SIZE_MAX, &ids, err)) ||
            (code = tokenizer_array(file, "tokenizer.added_pieces", TC__META_STRINGS, ids->count,
                                    &texts, err)))
            return code;
        n = ids->count;
    }
    t->added = tc__calloc(t->vocab_size, 1);
    t->special.at = tc__calloc(n + t->n_pieces, sizeof *t->special.at);
    t->user.at = tc__calloc(t->n_pieces, sizeof *t->user.at);
    if (!t->added || !t->special.at || !t->user.at)
        return tc__fail_memory(err, "the tokenizer's lists",
                               (n + 2 * (size_t)t->n_pieces) * sizeof *t->special.at);

    tc__cursor cursor = tc__cursor_make(texts ? texts->value : NULL, texts ? texts->size : 0);
    for (size_t i = 0; i < n; i++) {
        uint32_t id = tc__meta_u32_at(ids, i);
        const char *text;
        size_t len = 0;
        if (id >= t->vocab_size)
            return tc__fail(err, TC_ERR_FORMAT,
                            "tokenizer: added token %u is outside the vocabulary of %u", id,
                            t->vocab_size);
        if (!tc__next_string(&cursor, &text, &len) || !len || !tokenizer_is_utf8(text, len))
            return tc__fail(err, TC_ERR_FORMAT, "tokenizer: added token %u has no UTF-8 text", id);
        tokenizer_list_add(&t->special, text, len, (int32_t)id);
        t->added[id] = 1;
    }
    return TC_OK;
}

/* Sorts the pieces into the hash table, the lists and the byte table. */
static int tokenizer_index(tc__tokenizer *t, tc_error *err) {
    size_t slots = 16;
    unsigned bytes = 0;
    while (slots < 2 * (size_t)t->n_pieces) slots *= 2;
    t->slots = tc__calloc(slots, sizeof *t->slots);
    if (!t->slots) return tc__fail_memory(err, "the tokenizer's table", slots * sizeof *t->slots);
    t->slot_mask = (uint32_t)(slots - 1);
    for (size_t i = 0; i < slots; i++) t->slots[i].id = -1;
    for (unsigned i = 0; i < 256; i++) t->byte_ids[i] = -1;

    for (uint32_t i = 0; i < t->n_pieces; i++) {
        const tokenizer_piece *piece = &t->pieces[i];
        int32_t id = (int32_t)i;
        if (piece->type == TC__PIECE_CONTROL || piece->type == TC__PIECE_UNKNOWN) {
            tokenizer_list_add(&t->special, piece->text, piece->len, id);
        } else if (piece->type == TC__PIECE_BYTE) {
            int value = tokenizer_byte_value(piece);
            if (value < 0 || t->byte_ids[value] >= 0)
                return tc__fail(err, TC_ERR_FORMAT,
                                "tokenizer: byte piece %u is \"%.*s\"; expected "
                                "each of <0x00> to <0xFF> once",
                                i, (int)piece->len, piece->text);
            t->byte_ids[value] = id;
            bytes++;
        } else {
            int32_t other = tokenizer_lookup(t, piece->text, piece->len);
            if (other >= 0)
                return tc__fail(err, TC_ERR_FORMAT, "tokenizer: pieces %d and %u are both \"%.*s\"",
                                other, i, (int)piece->len, piece->text);
            tokenizer_insert(t, id);
            if (piece->type == TC__PIECE_USER)
                tokenizer_list_add(&t->user, piece->text, piece->len, id);
            if (piece->type == TC__PIECE_UNUSED) t->has_unused = true;
        }
    }
    tokenizer_list_sort(&t->special);
    tokenizer_list_sort(&t->user);
    t->byte_fallback = bytes == 256;
    if (bytes && !t->byte_fallback)
        return tc__fail(err, TC_ERR_FORMAT, "tokenizer: %u byte pieces; expected all 256 or none",
                        bytes);
    if (!t->byte_fallback && t->unk_id < 0)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: neither byte pieces nor an unknown piece (tokenizer.unk_id)");
    return TC_OK;
}

static int tokenizer_build(tc__tokenizer *t, const tc__model_file *file, tc_error *err) {
    int code;
    if ((code = tokenizer_flag(file, "tokenizer.add_bos", false, &t->add_bos, err)) ||
        (code = tokenizer_flag(file, "tokenizer.dummy_prefix", true, &t->dummy_prefix, err)) ||
        (code = tokenizer_flag(file, "tokenizer.legacy", true, &t->legacy, err)) ||
        (code = tokenizer_id(t, file, "tokenizer.unk_id", &t->unk_id, err)) ||
        (code = tokenizer_id(t, file, "tokenizer.bos_id", &t->bos_id, err)) ||
        (code = tc__meta_text(file, "tokenizer.unk_surface", &t->unk_surface, &t->unk_surface_len,
                              err)) ||
        (code = tokenizer_read_pieces(t, file, err)) || (code = tokenizer_read_added(t, file, err)))
        return code;
    if (t->add_bos && t->bos_id < 0)
        return tc__fail(err, TC_ERR_FORMAT,
                        "tokenizer: asks for a BOS token but has none (tokenizer.bos_id)");
    return tokenizer_index(t, err);
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
    if (len != 7 || memcmp(type, "spm-bpe", 7))
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "model file: tokenizer type \"%.*s\"; this version knows spm-bpe",
                        len < 64 ? (int)len : 64, type);
    if (vocab_size > INT32_MAX)
        return tc__fail(err, TC_ERR_FORMAT, "model file: a vocabulary of %u is too large",
                        vocab_size);
    tc__tokenizer *t = tc__calloc(1, sizeof *t);
    if (!t) return tc__fail_memory(err, "the tokenizer", sizeof *t);
    t->vocab_size = vocab_size;
    if ((code = tokenizer_build(t, file, err))) {
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
    free(tokenizer->special.at);
    free(tokenizer->user.at);
    free(tokenizer->added);
    free(tokenizer);
}

int32_t tc__tokenizer_bos(const tc__tokenizer *tokenizer) {
    return tokenizer->bos_id;
}

bool tc__tokenizer_adds_bos(const tc__tokenizer *tokenizer) {
    return tokenizer->add_bos;
}

size_t tc__special_at(const tc__tokenizer *tokenizer, const char *text, size_t len, int32_t *id) {
    return tokenizer_longest(&tokenizer->special, text, len, id);
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
    char *text; /* [len] escaped */
    size_t len, text_cap;
    tokenizer_symbol *symbols;
    size_t n_symbols, symbol_cap;
    tokenizer_pair *heap; /* binary, the least key on top */
    size_t n_heap, heap_cap;
    /* [n_pieces], NULL without UNUSED pieces: where a join to this UNUSED piece was, 0 if there was
     * none. It is one place: the joins inside a piece do not depend on what is around it. */
    uint32_t *splits;
    bool failed;
} tokenizer_run;

static void tokenizer_run_free(tokenizer_run *run) {
    free(run->text);
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

/* Writes the run's text: the prefix, U+2581 for spaces, U+FFFD for malformed bytes. */
static void tokenizer_escape(tokenizer_run *run, const char *text, size_t len, bool prefix) {
    uint32_t code;
    run->len = 0;
    run->text = tokenizer_room(run, run->text, &run->text_cap, 3 * len + 3, 1);
    if (run->failed) return;
    char *out = run->text;
    if (prefix) {
        memcpy(out, TOKENIZER_SPACE, 3);
        out += 3;
    }
    for (size_t i = 0, n; i < len; i += n) {
        n = tc__utf8_decode(text + i, len - i, &code);
        bool replaced = code == ' ' || code == UINT32_MAX;
        memcpy(out,
               code == ' ' ? TOKENIZER_SPACE
               : replaced  ? TOKENIZER_REPLACEMENT
                           : text + i,
               replaced ? 3 : n);
        out += replaced ? 3 : n;
    }
    run->len = (size_t)(out - run->text);
}

/* Cuts the run's text into characters and user-defined pieces. */
static void tokenizer_split(tokenizer_run *run) {
    const tc__tokenizer *t = run->t;
    run->n_symbols = 0;
    for (size_t i = 0, n; i < run->len; i += n) {
        uint32_t code;
        int32_t id = -1, index = (int32_t)run->n_symbols;
        run->symbols = tokenizer_room(run, run->symbols, &run->symbol_cap, run->n_symbols + 1,
                                      sizeof *run->symbols);
        if (run->failed) return;
        n = tokenizer_longest(&t->user, run->text + i, run->len - i, &id);
        bool frozen = n > 0;
        if (!frozen) {
            n = tc__utf8_decode(run->text + i, run->len - i, &code);
            id = tokenizer_lookup(t, run->text + i, n);
        }
        run->symbols[run->n_symbols++] =
            (tokenizer_symbol){index - 1, index + 1, (uint32_t)i, (uint32_t)n, id, frozen};
    }
    if (run->n_symbols) run->symbols[run->n_symbols - 1].next = -1;
}

static void tokenizer_sift_down(tokenizer_pair *heap, size_t n, size_t i) {
    tokenizer_pair moving = heap[i];
    for (size_t child; (child = 2 * i + 1) < n; i = child) {
        if (child + 1 < n && heap[child + 1].key < heap[child].key) child++;
        if (moving.key <= heap[child].key) break;
        heap[i] = heap[child];
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
    int32_t id = tokenizer_lookup(run->t, run->text + a->at, a->len + b->len);
    if (id < 0) return false;
    if (run->splits && run->t->pieces[id].type == TC__PIECE_UNUSED) run->splits[id] = a->len;
    run->heap = tokenizer_room(run, run->heap, &run->heap_cap, run->n_heap + 1, sizeof *run->heap);
    if (run->failed) return false;
    run->heap[run->n_heap++] = (tokenizer_pair){
        (uint64_t)run->t->pieces[id].rank << 32 | (uint32_t)left, a->len + b->len, id};
    return true;
}

static void tokenizer_push(tokenizer_run *run, int32_t left) {
    if (left < 0 || !tokenizer_consider(run, left)) return;
    size_t i = run->n_heap - 1;
    tokenizer_pair moving = run->heap[i];
    for (; i && moving.key < run->heap[(i - 1) / 2].key; i = (i - 1) / 2)
        run->heap[i] = run->heap[(i - 1) / 2];
    run->heap[i] = moving;
}

static void tokenizer_merge(tokenizer_run *run) {
    tokenizer_symbol *symbols = run->symbols;
    run->n_heap = 0;
    for (size_t i = 0; i < run->n_symbols && !run->failed; i++) tokenizer_consider(run, (int32_t)i);
    for (size_t i = run->n_heap / 2; i-- > 0;) tokenizer_sift_down(run->heap, run->n_heap, i);

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
            tokenizer_emit(run, text, left, tokenizer_lookup(t, text, left), ids, after_unk);
            tokenizer_emit(run, right, len - left, tokenizer_lookup(t, right, len - left), ids,
                           after_unk);
            return;
        }
        id = -1;
    }
    if (id >= 0) {
        tc__ids_push(ids, id);
    } else if (t->byte_fallback) {
        for (uint32_t i = 0; i < len; i++) tc__ids_push(ids, t->byte_ids[(uint8_t)text[i]]);
    } else if (!*after_unk) {
        tc__ids_push(ids, t->unk_id);
    }
    *after_unk = id < 0;
}

static void tokenizer_encode_run(tokenizer_run *run, const char *text, size_t len, bool prefix,
                                 tc__ids *ids) {
    const tc__tokenizer *t = run->t;
    bool after_unk = false;
    if (!len || run->failed) return;
    tokenizer_escape(run, text, len, prefix && t->dummy_prefix);
    if (!run->failed) tokenizer_split(run);
    if (!run->failed) tokenizer_merge(run);
    if (run->failed) return;
    for (int32_t i = 0; i >= 0; i = run->symbols[i].next) {
        const tokenizer_symbol *s = &run->symbols[i];
        tokenizer_emit(run, run->text + s->at, s->len, s->id, ids, &after_unk);
    }
}

/* ---- spans ---- */

/* Walks the joined text: special pieces where the bytes are trusted, runs between them. */
static void tokenizer_encode_text(tokenizer_run *run, const char *text, const tc__span *spans,
                                  size_t n_spans, int before, tc__ids *ids) {
    size_t start = 0, at = 0, end = 0; /* of the run, of the search, of trusted bytes in a row */
    for (size_t s = 0; s < n_spans; s++) {
        end += spans[s].len;
        if (spans[s].trusted && s + 1 < n_spans && spans[s + 1].trusted) continue;
        while (at < end) {
            int32_t id;
            size_t len = spans[s].trusted ? tc__special_at(run->t, text + at, end - at, &id) : 0;
            if (!len) {
                at = spans[s].trusted ? at + 1 : end;
                continue;
            }
            tokenizer_encode_run(
                run, text + start, at - start,
                before == TC__AT_START || (before == TC__AFTER_SPECIAL && run->t->legacy), ids);
            tc__ids_push(ids, id);
            before = TC__AFTER_SPECIAL;
            start = at += len;
        }
    }
    tokenizer_encode_run(run, text + start, end - start,
                         before == TC__AT_START || (before == TC__AFTER_SPECIAL && run->t->legacy),
                         ids);
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
    tc__decoder decoder = {tokenizer, at_start && tokenizer->dummy_prefix};
    return decoder;
}

static bool tokenizer_is_byte(const tc__tokenizer *t, int32_t id) {
    return (uint32_t)id < t->n_pieces && !t->added[id] && t->pieces[id].type == TC__PIECE_BYTE;
}

void tc__decode_one(tc__decoder *decoder, int32_t id, tc__buf *bytes, bool *special) {
    const tc__tokenizer *t = decoder->tokenizer;
    const tokenizer_piece *piece = (uint32_t)id < t->n_pieces ? &t->pieces[id] : NULL;
    bool silent = t->added[id] || (piece && piece->type == TC__PIECE_CONTROL);
    size_t before = bytes->len;
    if (special) *special = silent;
    if (silent || !piece) return;
    if (piece->type == TC__PIECE_BYTE) {
        char byte = (char)tokenizer_byte_value(piece);
        tc__buf_add(bytes, &byte, 1);
    } else if (piece->type == TC__PIECE_UNKNOWN) {
        tc__buf_add(bytes, t->unk_surface, t->unk_surface_len);
    } else {
        const char *text = piece->text, *end = text + piece->len;
        if (decoder->at_start && piece->len >= 3 && !memcmp(text, TOKENIZER_SPACE, 3)) {
            decoder->at_start = false;
            text += 3;
        }
        while (text < end) {
            bool space = end - text >= 3 && !memcmp(text, TOKENIZER_SPACE, 3);
            tc__buf_add(bytes, space ? " " : text, 1);
            text += space ? 3 : 1;
        }
    }
    if (bytes->len > before) decoder->at_start = false;
}

int tc__decode(const tc__tokenizer *tokenizer, const int32_t *ids, size_t n, tc__buf *text,
               tc_error *err) {
    tc__decoder decoder = tc__decoder_make(tokenizer, true);
    tc__buf bytes = {0}; /* a stretch of byte pieces */
    for (size_t i = 0; i < n; i++)
        if (ids[i] < 0 || (uint32_t)ids[i] >= tokenizer->vocab_size)
            return tc__fail(err, TC_ERR_ARGUMENT,
                            "token id %d at index %zu is outside the vocabulary of %u", ids[i], i,
                            tokenizer->vocab_size);
    for (size_t i = 0; i < n;) {
        if (!tokenizer_is_byte(tokenizer, ids[i])) {
            tc__decode_one(&decoder, ids[i++], text, NULL);
            continue;
        }
        bytes.len = 0;
        while (i < n && tokenizer_is_byte(tokenizer, ids[i]))
            tc__decode_one(&decoder, ids[i++], &bytes, NULL);
        for (size_t at = 0, len; at < bytes.len && !bytes.failed; at += len) {
            uint32_t code;
            len = tc__utf8_decode(bytes.data + at, bytes.len - at, &code);
            bool bad = code == UINT32_MAX;
            tc__buf_add(text, bad ? TOKENIZER_REPLACEMENT : bytes.data + at, bad ? 3 : len);
        }
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

static const tc__template template_table[] = {
    /* The chat_template of meta-llama/Llama-2-*-chat-hf: system block and user text are stripped as
     * one string, and each turn opens with a BOS of its own. */
    {.name = "llama-2",
     .first = "<s>[INST] {trim}{user}{/trim} [/INST]",
     .first_system = "<s>[INST] {trim}<<SYS>>\n{system}\n<</SYS>>\n\n{user}{/trim} [/INST]",
     .next = "<s>[INST] {trim}{user}{/trim} [/INST]",
     .reply = " {trim}{reply}{/trim} </s>",
     .system = "",
     .stop_strings = {NULL}},
    /* FastChat's vicuna_v1.1 (Vicuna 1.1 and 1.5), which TinyChat uses as well. */
    {.name = "vicuna",
     .first = "USER: {user} ASSISTANT:",
     .first_system = "{system} USER: {user} ASSISTANT:",
     .next = "USER: {user} ASSISTANT:",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = TEMPLATE_SYSTEM("user"),
     .stop_strings = {NULL}},
    /* TinyChat's for every other LLaMA. The stop string is ours: a model that writes it has begun
     * to speak for the person (TinyChat lets it). */
    {.name = "human",
     .first = TEMPLATE_ONE_SHOT "### Human: {user}\n### Assistant:",
     .first_system = "{system}\n" TEMPLATE_ONE_SHOT "### Human: {user}\n### Assistant:",
     .next = "### Human: {user}\n### Assistant:",
     .reply = " {trim}{reply}{/trim}</s>",
     .system = TEMPLATE_SYSTEM("human"),
     .stop_strings = {"### Human:", NULL}},
    /* For models without a chat format: the model continues the text; a further turn goes on behind
     * it on a new line. */
    {.name = "plain",
     .first = "{user}",
     .first_system = "{system}\n{user}",
     .next = "\n{user}",
     .reply = "{reply}",
     .system = "",
     .stop_strings = {NULL}},
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
       TEMPLATE_TRIM_END = 16
};

/* The placeholder at the beginning of a text and its length; TEMPLATE_TEXT if there is none. */
static int template_mark(const char *text, size_t *len) {
    static const struct {
        const char *mark;
        int part;
    } marks[] = {{"{system}", TEMPLATE_HAS_SYSTEM},
                 {"{user}", TEMPLATE_HAS_USER},
                 {"{reply}", TEMPLATE_HAS_REPLY},
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
    } texts[] = {{"chat.template", -1},
                 {"chat.first", TEMPLATE_HAS_USER},
                 {"chat.first_system", TEMPLATE_HAS_SYSTEM | TEMPLATE_HAS_USER},
                 {"chat.next", TEMPLATE_HAS_USER},
                 {"chat.reply", TEMPLATE_HAS_REPLY},
                 {"chat.system", -1}};
    size_t offsets[TC_COUNT(texts)], n_stops;
    for (size_t i = 0; i < TC_COUNT(texts); i++) {
        const char *text;
        size_t len;
        int code = tc__meta_text(file, texts[i].key, &text, &len, err);
        offsets[i] = storage->len;
        if (code || (code = template_store(texts[i].key, text, len, storage, err))) return code;
        if (texts[i].wanted >= 0 &&
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

/* Appends the spans of a pattern. */
static void template_expand(template_render *r, const char *pattern, const char *system,
                            size_t system_len, const tc__turn *turn) {
    const char *text;
    size_t len;
    int part;
    while (template_next(&pattern, &part, &text, &len)) switch (part) {
        case TEMPLATE_HAS_SYSTEM: template_span(r, system, system_len, false); break;
        case TEMPLATE_HAS_USER: template_span(r, turn->user, turn->user_len, false); break;
        case TEMPLATE_HAS_REPLY: template_span(r, turn->reply, turn->reply_len, false); break;
        case TEMPLATE_TRIM: template_trim_begin(r, true); break;
        case TEMPLATE_TRIM_END: template_trim(r); break;
        default: template_span(r, text, len, true);
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
    while (template_next(&pattern, &part, &text, &len) && part != TEMPLATE_HAS_REPLY)
        if (part != TEMPLATE_TEXT) *trimming = part == TEMPLATE_TRIM;
    return pattern;
}

/* Behind the first special piece of a pattern; NULL if it has none. */
static const char *template_behind_special(const tc__tokenizer *tokenizer, const char *pattern,
                                           bool *trimming) {
    const char *text;
    size_t len;
    int part;
    int32_t id;
    while (template_next(&pattern, &part, &text, &len)) {
        for (size_t i = 0, n; i < len && part == TEMPLATE_TEXT; i++)
            if ((n = tc__special_at(tokenizer, text + i, len - i, &id))) return text + i + n;
        if (part != TEMPLATE_TEXT) *trimming = part == TEMPLATE_TRIM;
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
    const char *there = template_behind_special(r->tokenizer, behind, &trimming_there);
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

int tc__render(const tc__template *chat_template, const tc__tokenizer *tokenizer,
               const char *system, size_t system_len, const tc__turn *turns, size_t n_turns,
               tc__ids *ids, tc_error *err) {
    template_render r = {.tokenizer = tokenizer, .ids = ids, .before = TC__AT_START};
    const char *opening = system && system_len ? chat_template->first_system : chat_template->first;
    int32_t bos = tc__tokenizer_bos(tokenizer), id;
    int code = TC_OK;
    bool has_bos = tc__special_at(tokenizer, opening, strlen(opening), &id) && id == bos;
    if (tc__tokenizer_adds_bos(tokenizer) && !has_bos) tc__ids_push(ids, bos);
    for (size_t i = 0; i < n_turns && !code; i++) {
        const tc__turn *turn = &turns[i];
        template_expand(&r, i ? chat_template->next : opening, system, system_len, turn);
        if (turn->has_reply && turn->ids)
            code = template_generated(&r, chat_template->reply, turn, err);
        else if (turn->has_reply)
            template_expand(&r, chat_template->reply, NULL, 0, turn);
    }
    if (!code) code = template_flush(&r, err);
    free(r.spans);
    return code ? code : tc__ok(err);
}

#undef TEMPLATE_SYSTEM
#undef TEMPLATE_ONE_SHOT

/* ======== src/stream.c ======== */

/* stream - see stream.h. */

/* True if these bytes, too few for a character, may still become one. */
static bool stream_unfinished(const char *s, size_t len) {
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
        else if (!at_end && stream_unfinished(stream->partial, stream->n_partial))
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


#include <pthread.h>
#include <signal.h>
#include <unistd.h>

/* Turns of the waiting loop before a worker sleeps, 20 to 100 us with the processor's pause. */
#define THREADS_SPIN 2000

/* A number that only grows and that workers wait for. */
typedef struct threads_event {
    unsigned count;
    int sleepers;
    pthread_mutex_t mutex;
    pthread_cond_t changed;
} threads_event;

typedef struct threads_worker {
    tc__team *team;
    pthread_t thread;
    int index;
} threads_worker;

struct tc__team {
    int size, spin;
    threads_event start, arrival;
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

/* Waits until the event's count is no longer `old`. The order of "sleepers++, look at count" here
 * and "count++, look at sleepers" in threads_advance (both sequentially consistent) makes sure that
 * one of the two sees the other. */
static void threads_wait(threads_event *event, unsigned old, int spin) {
    for (int i = 0; i < spin; i++) {
        if (__atomic_load_n(&event->count, __ATOMIC_ACQUIRE) != old) return;
        threads_pause();
    }
    pthread_mutex_lock(&event->mutex);
    __atomic_add_fetch(&event->sleepers, 1, __ATOMIC_SEQ_CST);
    while (__atomic_load_n(&event->count, __ATOMIC_SEQ_CST) == old)
        pthread_cond_wait(&event->changed, &event->mutex);
    __atomic_sub_fetch(&event->sleepers, 1, __ATOMIC_SEQ_CST);
    pthread_mutex_unlock(&event->mutex);
}

static void threads_advance(threads_event *event) {
    __atomic_add_fetch(&event->count, 1, __ATOMIC_SEQ_CST);
    if (__atomic_load_n(&event->sleepers, __ATOMIC_SEQ_CST) == 0) return;
    pthread_mutex_lock(&event->mutex);
    pthread_cond_broadcast(&event->changed);
    pthread_mutex_unlock(&event->mutex);
}

static bool threads_event_open(threads_event *event) {
    if (pthread_mutex_init(&event->mutex, NULL)) return false;
    if (pthread_cond_init(&event->changed, NULL) == 0) return true;
    pthread_mutex_destroy(&event->mutex);
    return false;
}

static void threads_event_close(threads_event *event) {
    pthread_cond_destroy(&event->changed);
    pthread_mutex_destroy(&event->mutex);
}

void tc__team_barrier(tc__team *team) {
    if (team->size == 1) return;
    unsigned now = __atomic_load_n(&team->arrival.count, __ATOMIC_ACQUIRE);
    if (__atomic_add_fetch(&team->arrived, 1, __ATOMIC_ACQ_REL) == team->size) {
        __atomic_store_n(&team->arrived, 0, __ATOMIC_RELAXED); /* published by the advance */
        threads_advance(&team->arrival);
    } else {
        threads_wait(&team->arrival, now, team->spin);
    }
}

/* ---- the team ---- */

static void *threads_main(void *argument) {
    threads_worker *worker = argument;
    tc__team *team = worker->team;
    for (unsigned seen = 0;; seen++) {
        threads_wait(&team->start, seen, team->spin);
        if (team->quit) return NULL;
        team->task(team->user, worker->index);
        tc__team_barrier(team);
    }
}

void tc__team_run(tc__team *team, void (*task)(void *user, int worker), void *user) {
    team->task = task;
    team->user = user;
    if (team->size > 1) threads_advance(&team->start);
    task(user, 0);
    tc__team_barrier(team);
}

/* Ends and joins the first `started` threads (worker 0 counts as one). */
static void threads_end(tc__team *team, int started) {
    team->quit = true;
    threads_advance(&team->start);
    for (int i = 1; i < started; i++) pthread_join(team->workers[i].thread, NULL);
    threads_event_close(&team->start);
    threads_event_close(&team->arrival);
    free(team);
}

int tc__team_open(int size, tc__team **team, tc_error *err) {
    size_t bytes = sizeof **team + (size_t)size * sizeof(threads_worker);
    tc__team *made = tc__calloc(1, bytes);
    *team = NULL;
    if (!made) return tc__fail_memory(err, "a team of threads", bytes);
    made->size = size;
    /* With more workers than processors the one that is waited for needs the processor. */
    made->spin = size <= tc__processors() ? THREADS_SPIN : 0;
    if (!threads_event_open(&made->start)) {
        free(made);
        return tc__fail(err, TC_ERR_MEMORY, "threads: no memory for a mutex");
    }
    if (!threads_event_open(&made->arrival)) {
        threads_event_close(&made->start);
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
    long count = sysconf(_SC_NPROCESSORS_ONLN);
    return count < 1 ? 1 : count > TC__THREADS_MAX ? TC__THREADS_MAX : (int)count;
}

/* ======== src/shapes.c ======== */



#define SHAPES_NAME_ROOM 24 /* of a tensor: "79.mlp_norm" */
#define SHAPES_METAS 13
#define SHAPES_PER_LAYER 6
#define SHAPES_BESIDE 3 /* embed, norm, head */

/* In the order of shapes_keys. */
enum { SHAPES_HIDDEN, SHAPES_INTERMEDIATE, SHAPES_LAYERS, SHAPES_HEADS, SHAPES_KV_HEADS };
enum { SHAPES_HEAD_DIM = 5, SHAPES_VOCAB, SHAPES_MAX_SEQ, SHAPES_SIZES };
static const char *const shapes_keys[SHAPES_SIZES] = {
    "arch.hidden_size", "arch.intermediate_size", "arch.layers",     "arch.heads",
    "arch.kv_heads",    "arch.head_dim",          "arch.vocab_size", "arch.max_seq_len"};

typedef struct shapes_shape {
    const char *name, *family; /* as model files spell it; one that the engine lacks: to come */
    uint32_t sizes[SHAPES_SIZES];
    double norm_eps, rope_theta;
} shapes_shape;

/* Sizes out of the models' config.json. All rows are multiples of 16. */
static const shapes_shape shapes_table[] = {
    {"llama-2-7b", "llama", {4096, 11008, 32, 32, 32, 128, 32000, 4096}, 1e-5, 10000},
    {"llama-2-13b", "llama", {5120, 13824, 40, 40, 40, 128, 32000, 4096}, 1e-5, 10000},
    {"llama-2-70b", "llama", {8192, 28672, 80, 64, 8, 128, 32000, 4096}, 1e-5, 10000},
    {"llama-3-8b", "llama", {4096, 14336, 32, 32, 8, 128, 128256, 8192}, 1e-5, 500000},
    {"tiny", "llama", {256, 512, 2, 4, 2, 64, 512, 256}, 1e-5, 10000},
    {"mpt-7b", "mpt", {0}, 0, 0},
    {"mpt-30b", "mpt", {0}, 0, 0},
    {"falcon-7b", "falcon", {0}, 0, 0},
    {"qwen2.5-7b", "qwen2", {0}, 0, 0},
};

const char *tc_shape_name(int index, int *supported) {
    if (index < 0 || (size_t)index >= TC_COUNT(shapes_table)) return NULL;
    if (supported) *supported = shapes_table[index].sizes[SHAPES_HIDDEN] > 0;
    return shapes_table[index].name;
}

/* The refusal of an unknown name. */
static int shapes_unknown(const char *name, tc_error *err) {
    tc__buf names = {NULL, 0, 0, false};
    for (int i = 0, good; tc_shape_name(i, &good); i++)
        if (good) tc__buf_printf(&names, "%s%s", names.len ? ", " : "", tc_shape_name(i, NULL));
    int code = names.failed ? tc__fail_memory(err, "a list of names", names.len)
                            : tc__fail(err, TC_ERR_ARGUMENT,
                                       "there is no built-in shape '%.80s'; expected one of %s",
                                       name, names.data);
    tc__buf_free(&names);
    return code;
}

static int shapes_find(const char *name, const shapes_shape **shape, tc_error *err) {
    size_t i = 0;
    while (i < TC_COUNT(shapes_table) && strcmp(shapes_table[i].name, name)) i++;
    if (i == TC_COUNT(shapes_table)) return shapes_unknown(name, err);
    *shape = &shapes_table[i];
    if ((*shape)->sizes[SHAPES_HIDDEN]) return TC_OK;
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "shape '%s' comes with the model family '%s', which this version lacks", name,
                    (*shape)->family);
}

static int shapes_check_precision(const char *precision, int *group_size, uint32_t *type,
                                  tc_error *err) {
    *type = TC__W4;
    if (strcmp(precision, "w16a16") == 0)
        *type = TC__F16;
    else if (strcmp(precision, "w4a16"))
        return tc__fail(err, TC_ERR_ARGUMENT, "precision '%.80s'; expected w4a16 or w16a16",
                        precision);
    if (*type == TC__W4 && *group_size == 0) *group_size = 128;
    bool known = *group_size == 32 || *group_size == 64 || *group_size == 128;
    if (*type == TC__W4 ? known : *group_size == 0) return TC_OK;
    return tc__fail(err, TC_ERR_ARGUMENT, "group size %d with precision %s; expected %s",
                    *group_size, precision, *type == TC__W4 ? "32, 64 or 128" : "none");
}

/* ---- the tables ---- */

static tc__meta *shapes_meta(tc__model_file *file, const char *key, uint32_t type,
                             const void *value, size_t count, size_t size) {
    tc__meta *meta = &file->metas[file->meta_count++];
    meta->key = key;
    meta->key_len = strlen(key);
    meta->type = type;
    meta->count = count;
    meta->value = value;
    meta->size = size;
    return meta;
}

static void shapes_text(tc__model_file *file, const char *key, const char *text) {
    shapes_meta(file, key, TC__META_BYTES, text, strlen(text), strlen(text));
}

static void shapes_metas(const shapes_shape *shape, tc__model_file *file) {
    shapes_text(file, "general.name", shape->name);
    shapes_text(file, "arch.family", shape->family);
    shapes_text(file, "tokenizer.type", "none");
    for (size_t i = 0; i < SHAPES_SIZES; i++)
        shapes_meta(file, shapes_keys[i], TC__META_U32, &shape->sizes[i], 1, sizeof(uint32_t));
    shapes_meta(file, "arch.norm_eps", TC__META_F64, &shape->norm_eps, 1, sizeof(double));
    shapes_meta(file, "arch.rope_theta", TC__META_F64, &shape->rope_theta, 1, sizeof(double));
}

/* The next tensor; `name` has its room in *names, which moves on. */
static void shapes_tensor(tc__model_file *file, char **names, long layer, const char *name,
                          uint32_t type, uint32_t group_size, size_t rows, size_t columns) {
    tc__tensor *tensor = &file->tensors[file->tensor_count++];
    size_t end = file->tensor_count > 1 ? tensor[-1].offset + tensor[-1].size : 0;
    if (layer < 0)
        snprintf(*names, SHAPES_NAME_ROOM, "%s", name);
    else
        snprintf(*names, SHAPES_NAME_ROOM, "%ld.%s", layer, name);
    tensor->name = *names;
    tensor->name_len = strlen(*names);
    *names += SHAPES_NAME_ROOM;
    tensor->type = type;
    tensor->group_size = type == TC__W4 ? group_size : 0;
    tensor->rows = rows;
    tensor->columns = columns;
    tensor->offset = (end + TC__DATA_ALIGN - 1) & ~(size_t)(TC__DATA_ALIGN - 1);
    tensor->size = tc__tensor_bytes(type, tensor->group_size, rows, columns);
}

static void shapes_tensors(const shapes_shape *shape, uint32_t type, uint32_t group_size,
                           char *names, tc__model_file *file) {
    const uint32_t *sizes = shape->sizes;
    size_t hidden = sizes[SHAPES_HIDDEN], vocab = sizes[SHAPES_VOCAB];
    size_t heads = (size_t)sizes[SHAPES_HEADS] * sizes[SHAPES_HEAD_DIM];
    size_t qkv = heads + 2 * (size_t)sizes[SHAPES_KV_HEADS] * sizes[SHAPES_HEAD_DIM];
    size_t inner = sizes[SHAPES_INTERMEDIATE];
    shapes_tensor(file, &names, -1, "embed", TC__F16, 0, vocab, hidden);
    for (long l = 0; l < (long)sizes[SHAPES_LAYERS]; l++) {
        shapes_tensor(file, &names, l, "attn_norm", TC__F32, 0, hidden, 1);
        shapes_tensor(file, &names, l, "qkv", type, group_size, qkv, hidden);
        shapes_tensor(file, &names, l, "o", type, group_size, hidden, heads);
        shapes_tensor(file, &names, l, "mlp_norm", TC__F32, 0, hidden, 1);
        shapes_tensor(file, &names, l, "gate_up", type, group_size, 2 * inner, hidden);
        shapes_tensor(file, &names, l, "down", type, group_size, hidden, inner);
    }
    shapes_tensor(file, &names, -1, "norm", TC__F32, 0, hidden, 1);
    shapes_tensor(file, &names, -1, "head", TC__F16, 0, vocab, hidden);
}

/* ---- the weights ---- */

tc__pattern tc__shape_pattern(const tc__tensor *tensor) {
    /* halves of a W4 unit's tail, the lowest first: scale 0.002, zero 7, scale 0.002, zero 8 */
    tc__pattern w4 = {tensor->group_size + 8, tensor->group_size, UINT64_MAX, 0,
                      0x4800181947001819u};
    tc__pattern halves = {1, 1, 0x83ff83ff83ff83ffu, 0x2000200020002000u, 0};
    tc__pattern ones = {1, 0, 0, 0, 0x3f8000003f800000u};
    return tensor->type == TC__W4 ? w4 : tensor->type == TC__F16 ? halves : ones;
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

int tc__shape_open(const char *name, const char *precision, int group_size, bool in_memory,
                   const tc_model_params *params, tc__model_file *file, tc_error *err) {
    const shapes_shape *shape = NULL;
    uint32_t type = 0;
    memset(file, 0, sizeof *file);
    int code = shapes_find(name, &shape, err);
    if (!code) code = shapes_check_precision(precision, &group_size, &type, err);
    if (code) return code;
    size_t tensors = SHAPES_BESIDE + SHAPES_PER_LAYER * (size_t)shape->sizes[SHAPES_LAYERS];
    file->metas = tc__calloc(SHAPES_METAS, sizeof *file->metas);
    file->tensors = tc__calloc(tensors, sizeof *file->tensors);
    file->names = tc__calloc(tensors, SHAPES_NAME_ROOM);
    if (file->metas && file->tensors && file->names) {
        shapes_metas(shape, file);
        shapes_tensors(shape, type, (uint32_t)group_size, file->names, file);
        if (in_memory) code = shapes_make_data(name, params, file, err);
    } else {
        code = tc__fail_memory(err, "a shape", tensors * sizeof *file->tensors);
    }
    if (code) tc__model_file_close(file);
    return code ? code : tc__ok(err);
}

/* ======== src/cpu_kernels.c ======== */


#include <math.h>

#if defined(__x86_64__)
#define CPU_X86 1
#include <cpuid.h>
#include <immintrin.h>
#elif defined(__aarch64__)
#define CPU_NEON 1
#include <arm_neon.h>
#endif

/* Columns expanded at a time, a multiple of every group size: 16 rows of them stay in the nearest
 * caches. Their sums are loaded and stored once in 32 steps. */
#define CPU_TILE(lanes) (32 * (lanes))

/* Bytes that the software prefetch runs ahead in a product with one vector: in the one stream of W4
 * units, and in each of four streams of halves. */
#define CPU_AHEAD_W4 8192
#define CPU_AHEAD_HALVES 2048

#define CPU_ALIGNED __attribute__((aligned(64))) /* a cache line, the longest vector */

#define CPU_INLINE static inline __attribute__((always_inline))

/* A loop over i = 0 .. n-1 with a constant n <= 16 that must become straight-line code, so that the
 * arrays of vectors it indexes live in registers. */
#if defined(__clang__)
#define CPU_TIMES(i, n) _Pragma("clang loop unroll(full)") for (unsigned i = 0; i < (n); i++)
#else
#define CPU_TIMES(i, n) _Pragma("GCC unroll 16") for (unsigned i = 0; i < (n); i++)
#endif

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
        for (size_t i = 0; i < n; i += LANES) {                                                    \
            cpu_##level##_f x = cpu_##level##_load(p + i) - cpu_##level##_set1(shift);             \
            cpu_##level##_store(p + i, cpu_##level##_exp(x));                                      \
        }                                                                                          \
        for (size_t i = n; i % TC__LANES_MAX; i++) p[i] = 0;                                       \
        cpu_##level##_f sums = cpu_##level##_set1(0);                                              \
        for (size_t i = 0; i < n; i += LANES) sums += cpu_##level##_load(p + i);                   \
        float sum = 0;                                                                             \
        for (int i = 0; i < LANES; i++) sum += sums[i];                                            \
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

/* MOST: of CPU_MULTIPLY_MOST; WIDTH: of CPU_BLEND; SINGLE: see tc__kernels. */
#define CPU_SET(level, NAME, TARGET, LANES, MOST, WIDTH, SINGLE)                                   \
    CPU_HALVES(level, TARGET, LANES, f16)                                                          \
    CPU_HALVES(level, TARGET, LANES, bf16)                                                         \
    CPU_ATTENTION(level, TARGET, LANES, WIDTH)                                                     \
    static const tc__kernels cpu_##level = {                                                       \
        NAME,                                                                                      \
        #level,                                                                                    \
        LANES,                                                                                     \
        SINGLE,                                                                                    \
        MOST,                                                                                      \
        cpu_##level##_w4_sums,                                                                     \
        {cpu_##level##_f16_sums, cpu_##level##_bf16_sums},                                         \
        cpu_##level##_w4_expand,                                                                   \
        {cpu_##level##_f16_expand, cpu_##level##_bf16_expand},                                     \
        {CPU_MULTIPLIES_##MOST(level)},                                                            \
        cpu_##level##_reduce,                                                                      \
        cpu_##level##_exponential,                                                                 \
        cpu_##level##_blend,                                                                       \
    };

CPU_SET(portable, "portable", CPU_PORTABLE, 4, 3, 4, 1)
#if CPU_NEON
CPU_SET(neon, "NEON", CPU_NEON_TARGET, 4, 6, 8, 1)
#endif
#if CPU_X86
CPU_SET(avx2, "AVX2", CPU_AVX2, 8, 3, 8, 1)
CPU_SET(avx512, "AVX-512", CPU_AVX512, 16, 6, 8, 3)
#endif

/* Whether this processor and its operating system have what the set needs. */
static bool cpu_has(const tc__kernels *kernels) {
#if CPU_X86
    unsigned a, b, c, d;
    if (kernels == &cpu_avx2 || kernels == &cpu_avx512)
        if (!__builtin_cpu_supports("avx2") || !__builtin_cpu_supports("fma") ||
            !__get_cpuid(1, &a, &b, &c, &d) || !(c & bit_F16C))
            return false;
    if (kernels == &cpu_avx512)
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512dq") &&
               __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl");
#else
    (void)kernels;
#endif
    return true;
}

int tc__kernels_choose(const char *level, const tc__kernels **kernels, tc_error *err) {
    static const tc__kernels *const sets[] = {
#if CPU_X86
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

/* ---- whole products ---- */

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

size_t tc__multiply_scratch(size_t count) {
    return TC__BLOCK * (CPU_TILE(TC__LANES_MAX) + count * TC__LANES_MAX);
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

void tc__multiply_rows(const tc__kernels *kernels, const tc__tensor *matrix, size_t begin,
                       size_t end, const float *x, size_t x_stride, size_t count, float *scratch,
                       tc__rows_fn take, void *user) {
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

/* ======== src/cpu.c ======== */


#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

/* The CPU backend. Weights are used where they lie, in the mapped file. All workers of a session's
 * team run the same forward pass and share out the items of each step (row blocks, positions,
 * heads); a barrier ends the step. No number depends on who computes it or on what is computed
 * beside it, so results are bit-equal for any number of threads and any cut of the ids into calls.
 *
 * Activations, sums and the KV cache are fp32; angles and the mean squares of norms are double.
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
    cpu_vectors gated;   /* [CPU_BATCH][intermediate] silu(gate) * up, in down's order */
    cpu_vectors logits;  /* [CPU_PIECE][vocab_size] */
    cpu_vectors angles;  /* [CPU_BATCH][head_dim] cosines, then sines, of the positions' angles */
    cpu_vectors scratch; /* [threads] */
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
    cpu_place_vectors(memory, &used, CPU_BATCH, arch->intermediate_size, &cache->gated);
    cpu_place_vectors(memory, &used, CPU_PIECE, arch->vocab_size, &cache->logits);
    cpu_place_vectors(memory, &used, CPU_BATCH, arch->head_dim, &cache->angles);
    size_t scratch = tc__multiply_scratch(CPU_BATCH);
    if (scratch < cpu_attention_scratch(cache->head_stride))
        scratch = cpu_attention_scratch(cache->head_stride);
    cpu_place_vectors(memory, &used, (size_t)device->threads, scratch, &cache->scratch);
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

/* h = the ids' rows of the embedding; the angles of their positions. */
static bool cpu_embed(cpu_worker *worker, const int32_t *ids) {
    const tc__tensor *embed = worker->cache->device->weights->embed;
    const size_t hidden = worker->arch->hidden_size, half = worker->arch->head_dim / 2;
    size_t p, end;
    for (cpu_share(worker, worker->count, &p, &end); p < end; p++) {
        const uint16_t *row = (const uint16_t *)embed->data + (size_t)ids[p] * hidden;
        float *h = worker->cache->h.data + p * worker->cache->h.stride;
        for (size_t i = 0; i < hidden; i++)
            h[i] = embed->type == TC__F16 ? tc__f16_to_f32(row[i]) : tc__bf16_to_f32(row[i]);
        float *angles = worker->cache->angles.data + p * worker->cache->angles.stride;
        for (size_t i = 0; i < half; i++) {
            double angle = (double)(worker->pos + p) * worker->arch->frequencies[i];
            angles[i] = (float)cos(angle);
            angles[half + i] = (float)sin(angle);
        }
    }
    return cpu_step(worker);
}

/* RMSNorm: x = h / sqrt(mean(h^2) + eps) * gamma, in the order that a matrix wants. */
static void cpu_norm(const float *h, const float *gamma, size_t n, float eps, tc__order order,
                     float *x) {
    double sums[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++) sums[k] += (double)h[i + k] * h[i + k];
    for (; i < n; i++) sums[0] += (double)h[i] * h[i];
    double mean = ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (double)n;
    float scale = (float)(1 / sqrt(mean + (double)eps));
    for (i = 0; i + 4 <= n; i += 4) {
        float v[4];
        for (size_t k = 0; k < 4; k++) v[k] = h[i + k] * scale * gamma[i + k];
        tc__put4(order, x, i, v);
    }
    for (; i < n; i++) x[tc__ordered(order, i)] = h[i] * scale * gamma[i];
}

/* x[0 .. count-1] = the normed h[first ..], for `matrix`. */
static bool cpu_normalise(cpu_worker *worker, const tc__tensor *gamma, const tc__tensor *matrix,
                          size_t first, size_t count) {
    const tc__cache *cache = worker->cache;
    size_t p, end;
    for (cpu_share(worker, count, &p, &end); p < end; p++)
        cpu_norm(cache->h.data + (first + p) * cache->h.stride, (const float *)gamma->data,
                 worker->arch->hidden_size, worker->arch->norm_eps, tc__order_of(matrix),
                 cache->x.data + p * cache->x.stride);
    return cpu_step(worker);
}

/* The products of a matrix with `count` vectors, this worker's row blocks. */
static bool cpu_multiply_by(cpu_worker *worker, const tc__tensor *matrix, const cpu_vectors *x,
                            size_t count, tc__rows_fn take, void *user) {
    size_t begin, end;
    cpu_share(worker, (matrix->rows + TC__BLOCK - 1) / TC__BLOCK, &begin, &end);
    tc__multiply_rows(worker->kernels, matrix, begin, end, x->data, x->stride, count,
                      worker->scratch, take, user);
    return cpu_step(worker);
}

static void cpu_store(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_vectors *to = user;
    memcpy(to->data + vector * to->stride + row, y, rows * sizeof *y);
}

static void cpu_add(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_vectors *to = user;
    float *sum = to->data + vector * to->stride + row;
    for (size_t i = 0; i < rows; i++) sum[i] += y[i];
}

typedef struct cpu_gate {
    const tc__kernels *kernels;
    const cpu_vectors *to;
    tc__order order;
} cpu_gate;

/* A block of gate_up is 8 rows of gate and the same 8 of up: silu(g) u = g / (1 + exp(-g)) u. */
static void cpu_silu(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_gate *gate = user;
    float e[TC__LANES_MAX] = {0};
    (void)rows; /* always 16 */
    for (int i = 0; i < 8; i++) e[i] = -y[i];
    gate->kernels->exponential(e, 8, 0);
    for (int i = 0; i < 8; i++) e[i] = y[i] / (1 + e[i]) * y[8 + i];
    float *x = gate->to->data + vector * gate->to->stride;
    tc__put4(gate->order, x, row / 2, e);
    tc__put4(gate->order, x, row / 2 + 4, e + 4);
}

/* RoPE, rotate-half: element i turns with element i + half. */
static void cpu_turn(const float *from, const float *angles, size_t half, float scale, float *to) {
    for (size_t i = 0; i < half; i++) {
        float c = angles[i] * scale, s = angles[half + i] * scale;
        to[i] = from[i] * c - from[half + i] * s;
        to[half + i] = from[i] * s + from[half + i] * c;
    }
}

static float *cpu_kv_row(const cpu_worker *worker, float *base, size_t layer, size_t kv_head,
                         size_t position) {
    const tc__cache *cache = worker->cache;
    size_t head = layer * worker->arch->kv_heads + kv_head;
    return base + (head * cache->ctx_size + position) * cache->head_stride;
}

/* From qkv: turned queries, scaled by 1 / sqrt(head_dim); turned keys and values into the cache. */
static bool cpu_place_heads(cpu_worker *worker, size_t layer) {
    const tc__cache *cache = worker->cache;
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
            cpu_turn(from, angles, head_dim / 2, scale,
                     cache->queries + query * cache->head_stride);
        } else if (part < heads + kv_heads) {
            cpu_turn(from, angles, head_dim / 2, 1,
                     cpu_kv_row(worker, cache->keys, layer, part - heads, worker->pos + p));
        } else {
            memcpy(
                cpu_kv_row(worker, cache->values, layer, part - heads - kv_heads, worker->pos + p),
                from, head_dim * sizeof *from);
        }
    }
    return cpu_step(worker);
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
    const size_t group = worker->arch->heads / worker->arch->kv_heads, lanes = kernels->lanes;
    const size_t head_dim = worker->arch->head_dim, stride = cache->head_stride;
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

static bool cpu_layer(cpu_worker *worker, size_t index) {
    tc__cache *cache = worker->cache;
    const tc__layer *layer = &cache->device->weights->layers[index];
    const size_t n = worker->count;
    cpu_gate gate = {worker->kernels, &cache->gated, tc__order_of(layer->down)};
    return cpu_normalise(worker, layer->attn_norm, layer->qkv, 0, n) &&
           cpu_multiply_by(worker, layer->qkv, &cache->x, n, cpu_store, &cache->qkv) &&
           cpu_place_heads(worker, index) && cpu_attend(worker, index, layer->o) &&
           cpu_multiply_by(worker, layer->o, &cache->mixed, n, cpu_add, &cache->h) &&
           cpu_normalise(worker, layer->mlp_norm, layer->gate_up, 0, n) &&
           cpu_multiply_by(worker, layer->gate_up, &cache->x, n, cpu_silu, &gate) &&
           cpu_multiply_by(worker, layer->down, &cache->gated, n, cpu_add, &cache->h);
}

/* Logits of the batch's positions from `first` on, handed over if they are wanted. */
static bool cpu_output(cpu_worker *worker, size_t first) {
    tc__cache *cache = worker->cache;
    cpu_task *task = worker->task;
    const tc__weights *weights = cache->device->weights;
    for (size_t n; first < worker->count; first += n) {
        n = worker->count - first < CPU_PIECE ? worker->count - first : CPU_PIECE;
        if (!cpu_normalise(worker, weights->norm, weights->head, first, n) ||
            !cpu_multiply_by(worker, weights->head, &cache->x, n, cpu_store, &cache->logits))
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
                                        cpu_kv_bytes_per_token,
                                        cpu_workspace_bytes,
                                        cpu_free_bytes,
                                        cpu_cache_open,
                                        cpu_cache_close,
                                        cpu_eval,
                                        cpu_logits,
                                        cpu_sample,
                                        cpu_read_bandwidth};
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
        tc__cu_check(cu, result, "starting the NVIDIA driver", err);
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

static bool gpu_try_nvrtc(tc__nvrtc *nvrtc, const char *path) {
    nvrtc->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!nvrtc->library) return false;
    snprintf(nvrtc->path, sizeof nvrtc->path, "%s", path);
    if (gpu_load_nvrtc(nvrtc)) return true;
    dlclose(nvrtc->library);
    nvrtc->library = NULL;
    return false;
}

/* Tries every file that matches, the last of the sorted names (the newest version) first. */
static bool gpu_glob_nvrtc(tc__nvrtc *nvrtc, const char *pattern) {
    glob_t found;
    bool good = false;
    if (glob(pattern, 0, NULL, &found)) return false;
    for (size_t i = found.gl_pathc; i > 0 && !good; i--)
        if (!strstr(found.gl_pathv[i - 1], "builtins") && !strstr(found.gl_pathv[i - 1], ".alt."))
            good = gpu_try_nvrtc(nvrtc, found.gl_pathv[i - 1]);
    globfree(&found);
    return good;
}

/* The folders below a root (an environment variable's value, or a path) that may hold it. */
static bool gpu_search_nvrtc(tc__nvrtc *nvrtc, const char *root) {
    static const char *const below[] = {
        "lib64/libnvrtc.so*",
        "lib/libnvrtc.so*",
        "targets/*/lib/libnvrtc.so*",
        "lib/python3*/site-packages/nvidia/*/lib/libnvrtc.so*",
        "lib/python3*/dist-packages/nvidia/*/lib/libnvrtc.so*",
    };
    char pattern[1024];
    if (!root || !*root) return false;
    for (size_t i = 0; i < TC_COUNT(below); i++) {
        snprintf(pattern, sizeof pattern, "%s/%s", root, below[i]);
        if (gpu_glob_nvrtc(nvrtc, pattern)) return true;
    }
    return false;
}

int tc__nvrtc_open(tc__nvrtc *nvrtc, tc_error *err) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2",
                                        "libnvrtc.so"};
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV",
                                            "CONDA_PREFIX"};
    static const char *const roots[] = {"/usr/local/cuda", "/opt/cuda", "/usr/local", "/usr"};
    memset(nvrtc, 0, sizeof *nvrtc);
    const char *chosen = getenv("TINYCHAT_NVRTC"), *home = getenv("HOME");
    if (chosen && *chosen) {
        if (gpu_try_nvrtc(nvrtc, chosen)) return tc__ok(err);
        return tc__fail(err, TC_ERR_DEVICE, "TINYCHAT_NVRTC names %s, which is not a usable NVRTC",
                        chosen);
    }
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (gpu_try_nvrtc(nvrtc, names[i])) return tc__ok(err);
    for (size_t i = 0; i < TC_COUNT(variables); i++)
        if (gpu_search_nvrtc(nvrtc, getenv(variables[i]))) return tc__ok(err);
    char local[512] = "";
    if (home) snprintf(local, sizeof local, "%s/.local", home);
    if (gpu_search_nvrtc(nvrtc, local)) return tc__ok(err);
    for (size_t i = 0; i < TC_COUNT(roots); i++)
        if (gpu_search_nvrtc(nvrtc, roots[i])) return tc__ok(err);
    return tc__fail(err, TC_ERR_DEVICE,
                    "NVRTC (libnvrtc.so.13, .12, .11.2) was not found by the dynamic linker, under "
                    "CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX, ~/.local, /usr/local/cuda or /usr; the "
                    "driver does not bring it: pip install nvidia-cuda-nvrtc-cu12, or name the "
                    "file in TINYCHAT_NVRTC");
}

void tc__nvrtc_close(tc__nvrtc *nvrtc) {
    if (nvrtc->library) dlclose(nvrtc->library);
    memset(nvrtc, 0, sizeof *nvrtc);
}

/* ======== src/jit.c ======== */


#include <errno.h>
#include <pthread.h>
#include <sys/stat.h>

#define JIT_MAGIC "TCJIT001" /* 8 bytes, no terminator in the file */
#define JIT_MAX_FILES 16

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
    uint32_t crc, nvrtc;
} jit_entry;

static bool jit_cache_read(const char *path, const uint64_t key[2], tc__buf *image) {
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
    int arch;    /* what NVRTC is asked for: the target's, or the newest it knows */
    bool as_ptx;
    const tc__nvrtc *nvrtc;
    const jit_sources *sources;
    pthread_t thread;
    bool running;
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
    tc__fail(err, TC_ERR_DEVICE, "NVRTC %d.%d (%s) cannot compile the %s kernels for %s_%d: %.600s",
             job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->program->name,
             job->as_ptx ? "compute" : "sm", job->arch,
             line ? line : status == 5 ? "an option was not accepted" : "no message");
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
    if (status || job->program->image.failed)
        return tc__fail_memory(err, "compiled kernels", size);
    return TC_OK;
}

static void *jit_compile(void *argument) {
    jit_job *job = argument;
    tc_error *err = &job->program->error;
    tc__nvrtc_program handle = NULL;
    char arch[64], limit[64];
    snprintf(arch, sizeof arch, "--gpu-architecture=%s_%d", job->as_ptx ? "compute" : "sm",
             job->arch);
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
    snprintf(numbers, sizeof numbers, "%d %d %d %d " TC_VERSION, target->arch, target->as_ptx,
             target->driver, target->shared_limit);
    jit_hash(key, numbers);
    jit_hash(key, program->name);
    jit_hash(key, program->text);
    for (int i = 0; i < sources->count; i++) {
        jit_hash(key, sources->names[i]);
        jit_hash(key, sources->texts[i]);
    }
}

/* NVRTC older than the GPU: the newest architecture that it knows, as PTX, which the driver turns
 * into machine code. */
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
        return tc__fail(err, TC_ERR_DEVICE,
                        "NVRTC %d.%d (%s) knows no architecture from 8.0 to the GPU's %d.%d; install a "
                        "newer one: pip install nvidia-cuda-nvrtc-cu12",
                        job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path,
                        job->target->arch / 10, job->target->arch % 10);
    job->arch = known ? job->target->arch : newest;
    job->as_ptx = job->target->as_ptx || !known;
    return TC_OK;
}

static int jit_compile_missing(jit_job *jobs, size_t n, uint32_t *version, tc_error *err) {
    tc__nvrtc nvrtc;
    int code = tc__nvrtc_open(&nvrtc, err);
    if (code) return code;
    *version = (uint32_t)(nvrtc.major * 1000 + nvrtc.minor);
    for (size_t i = 0; i < n; i++) {
        if (jobs[i].program->cached) continue;
        jobs[i].nvrtc = &nvrtc;
        code = jit_fit(&jobs[i], err);
        if (code) break;
        jobs[i].running = pthread_create(&jobs[i].thread, NULL, jit_compile, &jobs[i]) == 0;
        if (!jobs[i].running) jit_compile(&jobs[i]);
    }
    for (size_t i = 0; i < n; i++) {
        if (jobs[i].running) pthread_join(jobs[i].thread, NULL);
        if (!code && jobs[i].program->error.code) {
            code = jobs[i].program->error.code;
            if (err) *err = jobs[i].program->error;
        }
        jobs[i].nvrtc = NULL;
    }
    tc__nvrtc_close(&nvrtc);
    return code;
}

int tc__jit(tc__jit_program *programs, size_t n, const tc__jit_target *target, tc_error *err) {
    jit_sources sources;
    jit_job jobs[JIT_MAX_FILES] = {{0}};
    uint64_t keys[JIT_MAX_FILES][2];
    char folder[768], paths[JIT_MAX_FILES][1024];
    bool missing = false;
    int code = n > JIT_MAX_FILES ? TC_ERR_ARGUMENT : jit_read_sources(&sources, err);
    if (code) return code;
    tc__jit_folder(folder, sizeof folder);
    for (size_t i = 0; i < n; i++) {
        jit_key(keys[i], &programs[i], target, &sources);
        snprintf(paths[i], sizeof paths[i], "%s/%s-%s%d-%016llx.bin", folder, programs[i].name,
                 target->as_ptx ? "compute" : "sm", target->arch, (unsigned long long)keys[i][0]);
        programs[i].cached = folder[0] && jit_cache_read(paths[i], keys[i], &programs[i].image);
        missing |= !programs[i].cached;
        jobs[i].program = &programs[i];
        jobs[i].target = target;
        jobs[i].sources = &sources;
    }
    if (missing) {
        uint32_t version = 0;
        code = jit_compile_missing(jobs, n, &version, err);
        if (!code && folder[0]) jit_make_folders(folder);
        for (size_t i = 0; i < n && !code && folder[0]; i++)
            if (!programs[i].cached) jit_cache_write(paths[i], keys[i], &programs[i].image, version);
    }
    jit_free_sources(&sources);
    return code;
}

/* ======== src/gpu_programs.c ======== */


#include <math.h>

static const char *const programs_roles[TC__ROLES] = {"qkv", "o", "gate_up", "down"};
static const char *const programs_in[TC__ROLES] = {"IN_NORM", "IN_PLAIN", "IN_NORM", "IN_PLAIN"};
static const char *const programs_out[TC__ROLES] = {"OUT_STORE", "OUT_ADD", "OUT_SILU", "OUT_ADD"};

const char *tc__role_name(int role) { return programs_roles[role]; }

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
        return tc__fail(err, TC_ERR_UNSUPPORTED, "the model mixes more than %d kinds of %s matrices",
                        TC__MAX_KINDS, programs_roles[role]);
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
static void programs_constants(const tc__weights *weights, int sm_count, tc__buf *text) {
    const tc__arch *arch = &weights->arch;
    tc__buf_printf(text,
                   "#define SM_COUNT %d\n#define HIDDEN %u\n#define INTERMEDIATE %u\n"
                   "#define HEADS %u\n#define KV_HEADS %u\n#define HEAD_DIM %u\n#define VOCAB %u\n",
                   sm_count, (unsigned)arch->hidden_size, (unsigned)arch->intermediate_size,
                   (unsigned)arch->heads, (unsigned)arch->kv_heads, (unsigned)arch->head_dim,
                   (unsigned)arch->vocab_size);
    tc__buf_printf(text, "#define NORM_EPS %.9ef\n#include \"instances.cuh\"\n",
                   (double)arch->norm_eps);
}

/* "typedef W4<4096, 128> qkv_0_matrix;" and the like. A binary16 matrix is read in units of 64
 * columns, or 32 where 64 does not divide. */
static void programs_matrix(const tc__weights *weights, const tc__kinds *kinds, int role, int i,
                            const char *suffix, tc__buf *text) {
    size_t columns = tc__role_matrix(&weights->layers[0], role)->columns;
    bool w4 = kinds->kind[role][i].type == TC__W4;
    tc__buf_printf(text, "typedef %s%s<%zu, %u> %s_%d_matrix;\n", w4 ? "W4" : "F16", suffix, columns,
                   w4 ? (unsigned)kinds->kind[role][i].group_size : columns % 64 ? 32u : 64u,
                   programs_roles[role], i);
}

void tc__write_decode(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                      tc__buf *text) {
    const tc__tensor *head = weights->head;
    programs_constants(weights, sm_count, text);
    for (int role = 0; role < TC__ROLES; role++)
        for (int i = 0; i < kinds->count[role]; i++) {
            programs_matrix(weights, kinds, role, i, "", text);
            tc__buf_printf(text, "DECODE_PRODUCT(%s_%d, %s_%d_matrix, %zu, 1, %s, %s)\n",
                           programs_roles[role], i, programs_roles[role], i,
                           tc__role_matrix(&weights->layers[0], role)->rows, programs_in[role],
                           programs_out[role]);
        }
    tc__buf_printf(text,
                   "typedef F16<%zu, %u> head_matrix;\n"
                   "typedef EachPick<head_matrix, %zu> each_pick;\n",
                   head->columns, head->columns % 64 ? 32u : 64u, head->rows);
    tc__buf_printf(text,
                   "DECODE_PRODUCT(head, head_matrix, %zu, 1, IN_NORM, OUT_STORE)\n"
                   "DECODE_PRODUCT(head_each, head_matrix, %zu, each_pick::T, IN_NORM, OUT_STORE)\n",
                   head->rows, head->rows);
    tc__buf_str(text,
                "KERNEL(embed, 256, 1, EmbedArgs, embed_rows(args, HIDDEN, true))\n"
                "LAUNCH(embed, 1, 256, 0)\n"
                "KERNEL(attention, DECODE_THREADS, 1, DecodeAttentionArgs, attention_decode(args))\n"
                "LAUNCH(attention, KV_HEADS *HEAD_TILES, DECODE_THREADS, DECODE_SMEM)\n"
                "KERNEL(sample_token, SAMPLE_THREADS, 1, SampleArgs, sample(args))\n"
                "LAUNCH(sample_token, 1, SAMPLE_THREADS, 0)\n"
                "KERNEL(widen, 256, 1, WidenArgs, bf16_to_f16(args))\n"
                "LAUNCH(widen, 4 * SM_COUNT, 256, 0)\n"
                "KERNEL(read_loop, 512, 1, ReadArgs, read_all(args))\n"
                "LAUNCH(read_loop, 4 * SM_COUNT, 512, 0)\n"
                "KERNEL(random_fill, 512, 1, FillArgs, random_fill_words(args))\n"
                "LAUNCH(random_fill, 4 * SM_COUNT, 512, 0)\n");
}

static void programs_prefill(const tc__weights *weights, const tc__kinds *kinds, const char *prefix,
                             const char *tile_rows, tc__buf *text) {
    for (int role = 0; role < TC__ROLES; role++)
        for (int i = 0; i < kinds->count[role]; i++) {
            programs_matrix(weights, kinds, role, i, "Tile", text);
            tc__buf_printf(text, "PREFILL_PRODUCT(%s_%s_%d, %s_%d_matrix, %zu, %s, %s)\n", prefix,
                           programs_roles[role], i, programs_roles[role], i,
                           tc__role_matrix(&weights->layers[0], role)->rows, tile_rows,
                           programs_out[role]);
        }
}

void tc__write_prefill(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                       tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, "all", "128", text);
    tc__buf_str(text,
                "KERNEL(embed_all, 256, 1, EmbedArgs, embed_rows(args, HIDDEN, false))\n"
                "LAUNCH(embed_all, 0, 256, 0)\n"
                "ROWS_KERNEL(rows_hidden, HIDDEN)\n"
                "ROWS_KERNEL(rows_intermediate, INTERMEDIATE)\n"
                "KERNEL(rope, 256, 1, PrefillAttentionArgs, rope_write(args))\n"
                "LAUNCH(rope, 0, 256, 0)\n"
                "KERNEL(attention_all, 128, 1, PrefillAttentionArgs, attention_prefill(args))\n"
                "LAUNCH(attention_all, 0, 128, PREFILL_SMEM)\n");
}

void tc__write_prefill_wide(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                            tc__buf *text) {
    programs_constants(weights, sm_count, text);
    programs_prefill(weights, kinds, "wide", "WIDE_ROWS", text);
}

/* ======== src/cuda.c ======== */



#include <math.h>

/* The CUDA backend: the model's weights in GPU memory, its kernels compiled for this GPU and these
 * shapes, a token as one CUDA graph. */

#define CUDA_STAGING (16u << 20) /* bytes of one of the two pinned staging buffers */
#define CUDA_EACH 8              /* positions whose logits are computed at once, at most */

enum { CUDA_DECODE, CUDA_PREFILL, CUDA_WIDE, CUDA_PROGRAMS };

typedef struct cuda_kernel {
    tc__cu_function function;
    int grid, threads, shared;
    int tokens; /* vectors that one launch takes */
} cuda_kernel;

/* The kernels of one kind of matrix (its role, type and group size). */
typedef struct cuda_product {
    cuda_kernel decode, prefill, prefill_wide; /* wide: tiles of 256 rows, for many tokens */
} cuda_product;

typedef struct cuda_device {
    tc__cu cu;
    bool opened; /* cu */
    tc__cu_device ordinal;
    tc__cu_context context;
    char name[256], gpu_name[128];
    int sm_count;
    int splits; /* parts of the context that decode's attention works on at once */
    tc__jit_target target;
    bool overlap; /* programmatic dependent launch */
    const tc__weights *weights;
    tc__cu_ptr memory; /* all tensors, in the order of the file */
    size_t memory_bytes;
    tc__cu_ptr turns; /* [head_dim / 2] binary64: RoPE's turns per position, after the tensors */
    tc__cu_module modules[CUDA_PROGRAMS];
    tc__kinds kinds;
    cuda_product products[TC__ROLES][TC__MAX_KINDS];
    cuda_kernel embed, embed_all, head, head_each, attention, rope, attention_prefill, sample;
    cuda_kernel rows_hidden, rows_intermediate, widen, read_loop, random_fill;
} cuda_device;

typedef struct cuda_cache {
    cuda_device *device;
    int ctx, chunk; /* positions; tokens of one piece of a prefill */
    tc__cu_stream stream;
    tc__cu_event sampled;
    tc__cu_graph_exec token[2]; /* one token; its logits go to row 0 or to row 1 */
    tc__cu_ptr memory;
    size_t memory_bytes;
    /* parts of `memory` */
    tc__cu_ptr kv, ids, state, logits, keys, x, qkv, attention, act, parts, arrived;
    tc__cu_ptr wide_x, wide_in, wide_q, wide_out, wide_scale;
    float *host_logits; /* pinned, [CUDA_EACH][vocab] */
    int *host_token;    /* pinned */
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

typedef struct cuda_product_args {
    tc__cu_ptr weights, in, gamma, out;
    int tokens;
} cuda_product_args;

typedef struct cuda_gemm_args {
    tc__cu_ptr weights, in, scale, out;
    int tokens;
} cuda_gemm_args;

typedef struct cuda_embed_args {
    tc__cu_ptr table, ids, state, out;
    int tokens;
} cuda_embed_args;

typedef struct cuda_rows_args {
    tc__cu_ptr in, gamma, out, scale;
} cuda_rows_args;

typedef struct cuda_decode_attention_args {
    tc__cu_ptr qkv, k, v, out, parts, arrived, state, turns;
    int ctx;
} cuda_decode_attention_args;

typedef struct cuda_prefill_attention_args {
    tc__cu_ptr qkv, q, k, v, out, scale, state, turns;
    int ctx, tokens;
} cuda_prefill_attention_args;

typedef struct cuda_fill_args {
    tc__cu_ptr data;
    unsigned long long first, count;
    tc__pattern pattern;
} cuda_fill_args;

typedef struct cuda_sample_args {
    tc__cu_ptr logits, keys, ids, state, host;
    int window, ctx, top_k;
    float temperature, top_p, min_p, penalty;
    double u;
} cuda_sample_args;

/* ---- the device ---- */

static void cuda_enter(const cuda_device *device) { device->cu.context_push(device->context); }

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
    int major = 0, minor = 0, limit = 0;
    cu->device_attribute(&major, TC__CU_ATTRIBUTE_MAJOR, device->ordinal);
    cu->device_attribute(&minor, TC__CU_ATTRIBUTE_MINOR, device->ordinal);
    cu->device_attribute(&limit, TC__CU_ATTRIBUTE_MAX_SHARED, device->ordinal);
    cu->device_attribute(&device->sm_count, TC__CU_ATTRIBUTE_SM_COUNT, device->ordinal);
    cu->driver_version(&device->target.driver);
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
                            "TINYCHAT_ARCH is '%s'; expected compute_80 to compute_%d", asked, arch);
        arch = number;
        device->target.as_ptx = true;
        if (cuda_shared_limit(arch) < limit) limit = cuda_shared_limit(arch);
    }
    device->target.arch = arch;
    device->target.shared_limit = limit;
    device->overlap = arch >= 90;
    return TC_OK;
}

/* ---- kernels ---- */

static int cuda_load_kernel(cuda_device *device, int program, const char *name,
                            cuda_kernel *kernel, tc_error *err) {
    tc__cu_module module = device->modules[program];
    tc__cu *cu = &device->cu;
    char global[80];
    int launch[4];
    tc__cu_ptr at;
    size_t bytes;
    snprintf(global, sizeof global, "%s_launch", name);
    tc__cu_result result = cu->module_function(&kernel->function, module, name);
    if (!result) result = cu->module_global(&at, &bytes, module, global);
    if (!result) result = cu->copy_to_host(launch, at, sizeof launch, NULL);
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
    return TC_OK;
}

static int cuda_load_products(cuda_device *device, tc_error *err) {
    char name[64];
    int code = TC_OK;
    for (int role = 0; role < TC__ROLES && !code; role++)
        for (int i = 0; i < device->kinds.count[role] && !code; i++) {
            cuda_product *product = &device->products[role][i];
            const struct {
                const char *prefix;
                int program;
                cuda_kernel *kernel;
            } kernels[] = {{"", CUDA_DECODE, &product->decode},
                           {"all_", CUDA_PREFILL, &product->prefill},
                           {"wide_", CUDA_WIDE, &product->prefill_wide}};
            for (size_t k = 0; k < TC_COUNT(kernels) && !code; k++) {
                snprintf(name, sizeof name, "%s%s_%d", kernels[k].prefix, tc__role_name(role), i);
                code = cuda_load_kernel(device, kernels[k].program, name, kernels[k].kernel, err);
            }
        }
    return code;
}

static int cuda_load_kernels(cuda_device *device, tc_error *err) {
    const struct {
        const char *name;
        int program;
        cuda_kernel *kernel;
    } kernels[] = {
        {"embed", CUDA_DECODE, &device->embed},
        {"head", CUDA_DECODE, &device->head},
        {"head_each", CUDA_DECODE, &device->head_each},
        {"attention", CUDA_DECODE, &device->attention},
        {"sample_token", CUDA_DECODE, &device->sample},
        {"widen", CUDA_DECODE, &device->widen},
        {"read_loop", CUDA_DECODE, &device->read_loop},
        {"random_fill", CUDA_DECODE, &device->random_fill},
        {"embed_all", CUDA_PREFILL, &device->embed_all},
        {"rows_hidden", CUDA_PREFILL, &device->rows_hidden},
        {"rows_intermediate", CUDA_PREFILL, &device->rows_intermediate},
        {"rope", CUDA_PREFILL, &device->rope},
        {"attention_all", CUDA_PREFILL, &device->attention_prefill},
    };
    int code = cuda_load_products(device, err);
    for (size_t i = 0; i < TC_COUNT(kernels) && !code; i++)
        code = cuda_load_kernel(device, kernels[i].program, kernels[i].name, kernels[i].kernel, err);
    /* one block of attention per SM: more would wait for each other's room */
    if (!code) device->splits = device->sm_count / device->attention.grid;
    if (device->splits < 1) device->splits = 1;
    return code;
}

static int cuda_compile(cuda_device *device, const tc_model_params *params, tc_error *err) {
    static const struct {
        const char *name;
        void (*write)(const tc__weights *, const tc__kinds *, int sm_count, tc__buf *);
    } writers[CUDA_PROGRAMS] = {{"decode", tc__write_decode},
                                {"prefill", tc__write_prefill},
                                {"wide", tc__write_prefill_wide}};
    tc__buf texts[CUDA_PROGRAMS];
    tc__jit_program programs[CUDA_PROGRAMS];
    memset(texts, 0, sizeof texts);
    memset(programs, 0, sizeof programs);
    if (params->progress && params->progress(params->user, 0, "preparing the GPU's kernels"))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled while compiling kernels");
    int code = TC_OK;
    for (int i = 0; i < CUDA_PROGRAMS; i++) {
        writers[i].write(device->weights, &device->kinds, device->sm_count, &texts[i]);
        programs[i].name = writers[i].name;
        programs[i].text = texts[i].data;
        if (texts[i].failed) code = tc__fail_memory(err, "kernel sources", texts[i].len);
    }
    if (!code) code = tc__jit(programs, CUDA_PROGRAMS, &device->target, err);
    for (int i = 0; i < CUDA_PROGRAMS && !code; i++)
        code = tc__cu_check(&device->cu,
                            device->cu.module_load(&device->modules[i], programs[i].image.data),
                            "loading kernels", err);
    for (int i = 0; i < CUDA_PROGRAMS; i++) {
        tc__buf_free(&programs[i].image);
        tc__buf_free(&texts[i]);
    }
    return code ? code : cuda_load_kernels(device, err);
}

/* ---- launches ---- */

/* Launches with `args` as the kernel's one argument. grid_x 0: the kernel's own. `overlap`: its
 * blocks may start while the kernel before it still works (from sm_90 on). Allowed only behind a
 * kernel that keeps one block on every SM to its end: behind any other the scheduler puts two
 * blocks of a product on the SMs that are free and leaves the rest idle. */
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

static size_t cuda_align(size_t bytes) { return (bytes + 255) & ~(size_t)255; }

/* Where a tensor lies in GPU memory: the file's order and alignment. */
static tc__cu_ptr cuda_tensor(const cuda_device *device, const tc__tensor *tensor) {
    return device->memory + tensor->offset;
}

typedef struct cuda_copy {
    const uint8_t *from;
    uint8_t *to;
    size_t bytes;
    int workers;
} cuda_copy;

static void cuda_copy_part(void *user, int worker) {
    cuda_copy *copy = user;
    size_t begin, end;
    tc__share(copy->bytes, worker, copy->workers, &begin, &end);
    memcpy(copy->to + begin, copy->from + begin, end - begin);
}

/* Streams the file's tensor data through two pinned buffers: while one is copied to the GPU, a team
 * of threads fills the other from the page cache. */
static int cuda_upload(cuda_device *device, const tc_model_params *params, tc_error *err) {
    tc__cu *cu = &device->cu;
    const uint8_t *from = device->weights->data;
    size_t total = device->weights->data_bytes;
    void *staging[2] = {NULL, NULL};
    tc__cu_event done[2] = {NULL, NULL};
    tc__team *team = NULL;
    int workers = tc__processors() < 8 ? tc__processors() : 8;
    int code = tc__team_open(workers, &team, err);
    for (int i = 0; i < 2 && !code; i++) {
        code = tc__cu_check(cu, cu->host_allocate(&staging[i], CUDA_STAGING, 0),
                            "allocating pinned memory", err);
        if (!code) code = tc__cu_check(cu, cu->event_create(&done[i], 2), "an event", err);
    }
    for (size_t at = 0, piece = 0; at < total && !code; piece++) {
        int i = (int)(piece & 1);
        size_t bytes = total - at < CUDA_STAGING ? total - at : CUDA_STAGING;
        if (piece > 1) code = tc__cu_check(cu, cu->event_wait(done[i]), "copying weights", err);
        cuda_copy copy = {from + at, staging[i], bytes, workers};
        if (!code) tc__team_run(team, cuda_copy_part, &copy);
        if (!code)
            code = tc__cu_check(cu, cu->copy_to_device(device->memory + at, staging[i], bytes, NULL),
                                "copying weights", err);
        if (!code) code = tc__cu_check(cu, cu->event_record(done[i], NULL), "an event", err);
        at += bytes;
        if (!code && params->progress &&
            params->progress(params->user, (double)at / (double)total, "loading"))
            code = tc__fail(err, TC_ERR_CANCELLED, "cancelled while loading");
    }
    tc__cu_result last = cu->stream_wait(NULL);
    if (!code) code = tc__cu_check(cu, last, "copying weights", err);
    for (int i = 0; i < 2; i++) {
        if (done[i]) cu->event_destroy(done[i]);
        if (staging[i]) cu->host_release(staging[i]);
    }
    tc__team_close(team);
    return code;
}

static int cuda_fill(cuda_device *device, const tc__tensor *tensor, tc_error *err) {
    cuda_fill_args args = {cuda_tensor(device, tensor), tensor->offset / 8, tensor->size / 8,
                           tc__shape_pattern(tensor)};
    return tc__cu_check(&device->cu,
                        cuda_launch(device, &device->random_fill, 0, 1, &args, NULL, false),
                        "making random weights", err);
}

/* Weights that no file holds: random numbers, the same ones that the CPU makes. */
static int cuda_fill_all(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    int code = cuda_fill(device, weights->embed, err);
    if (!code) code = cuda_fill(device, weights->norm, err);
    if (!code && weights->head != weights->embed) code = cuda_fill(device, weights->head, err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++) {
        code = cuda_fill(device, weights->layers[l].attn_norm, err);
        if (!code) code = cuda_fill(device, weights->layers[l].mlp_norm, err);
        for (int role = 0; role < TC__ROLES && !code; role++)
            code = cuda_fill(device, tc__role_matrix(&weights->layers[l], role), err);
    }
    if (!code)
        code = tc__cu_check(&device->cu, device->cu.stream_wait(NULL), "making random weights", err);
    return code;
}

/* bfloat16 tensors become binary16 in place. */
static int cuda_widen(cuda_device *device, const tc__tensor *tensor, tc_error *err) {
    struct {
        tc__cu_ptr data;
        unsigned long long count;
    } args = {cuda_tensor(device, tensor), tensor->rows * tensor->columns};
    if (tensor->type != TC__BF16) return TC_OK;
    return tc__cu_check(&device->cu,
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

/* theta^(-2i / head_dim) / (2 pi) for every pair of a head. */
static int cuda_load_turns(cuda_device *device, tc_error *err) {
    const tc__arch *arch = &device->weights->arch;
    double turns[512]; /* head_dim is at most 1024 */
    size_t half = arch->head_dim / 2;
    for (size_t i = 0; i < half; i++)
        turns[i] = arch->frequencies[i] * 0.15915494309189535; /* 1 / (2 pi) */
    tc__cu_result result = device->cu.copy_to_device(device->turns, turns, 8 * half, NULL);
    return tc__cu_check(&device->cu, result, "copying RoPE's frequencies", err);
}

static int cuda_load(cuda_device *device, const tc_model_params *params, tc_error *err) {
    /* kernels read whole 16-row blocks: the last matrix may be read up to 15 rows past its end */
    size_t slack = 32 * ((size_t)device->weights->arch.hidden_size +
                         device->weights->arch.intermediate_size);
    size_t free_bytes = 0, total = 0;
    size_t half = device->weights->arch.head_dim / 2, tensors;
    tensors = cuda_align(device->weights->data_bytes + slack);
    device->memory_bytes = tensors + cuda_align(8 * half);
    device->cu.memory_info(&free_bytes, &total);
    tc__cu_result result = device->cu.allocate(&device->memory, device->memory_bytes);
    if (result == TC__CU_OUT_OF_MEMORY)
        return tc__fail(err, TC_ERR_MEMORY,
                        "out of GPU memory: the weights need %.2f GiB, %s has %.2f of %.2f GiB free",
                        (double)device->memory_bytes / 0x1p30, device->gpu_name,
                        (double)free_bytes / 0x1p30, (double)total / 0x1p30);
    int code = tc__cu_check(&device->cu, result, "allocating memory for the weights", err);
    device->turns = device->memory + tensors;
    if (!code) code = cuda_load_turns(device, err);
    if (!code && !device->weights->data) return cuda_fill_all(device, err);
    if (!code) code = cuda_upload(device, params, err);
    return code ? code : cuda_widen_all(device, err);
}

/* ---- opening ---- */

static void cuda_close(tc__device *handle) {
    cuda_device *device = (cuda_device *)handle;
    if (!device) return;
    tc__cu *cu = &device->cu;
    if (device->context) {
        cuda_enter(device);
        for (int i = 0; i < CUDA_PROGRAMS; i++)
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
    snprintf(device->name, sizeof device->name, "%s (%s_%d, %d SMs)", device->gpu_name,
             device->target.as_ptx ? "compute" : "sm", device->target.arch, device->sm_count);
    *out = (tc__device *)device;
    return tc__ok(err);
}

static const char *cuda_name(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    return device->name;
}

static size_t cuda_kv_bytes(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    const tc__arch *arch = &device->weights->arch;
    return (size_t)arch->layers * 2 * arch->kv_heads * arch->head_dim * 2;
}

/* ---- a session's memory ---- */

/* Cuts the next part off. */
static tc__cu_ptr cuda_cut(tc__cu_ptr base, size_t *at, size_t bytes) {
    tc__cu_ptr part = base + *at;
    *at += cuda_align(bytes);
    return part;
}

/* Lays the parts out from `base`, for prefill pieces of `chunk` tokens; returns the bytes. */
static size_t cuda_layout(cuda_cache *cache, const cuda_device *device, tc__cu_ptr base, int ctx,
                          int chunk) {
    const tc__arch *arch = &device->weights->arch;
    size_t at = 0, tokens = (size_t)chunk, hidden = arch->hidden_size;
    size_t heads = (size_t)arch->heads * arch->head_dim;
    size_t qkv = heads + 2 * (size_t)arch->kv_heads * arch->head_dim;
    size_t inner = arch->intermediate_size;
    size_t widest = hidden > heads ? hidden : heads;
    size_t tiles = (size_t)arch->kv_heads * ((arch->heads / arch->kv_heads + 15) / 16);
    if (inner > widest) widest = inner;
    cache->kv = cuda_cut(base, &at, cuda_kv_bytes((const tc__device *)device) * (size_t)ctx);
    cache->ids = cuda_cut(base, &at, sizeof(int) * (size_t)ctx);
    cache->state = cuda_cut(base, &at, sizeof(cuda_state));
    cache->logits = cuda_cut(base, &at, 4 * CUDA_EACH * (size_t)arch->vocab_size);
    cache->keys = cuda_cut(base, &at, 4 * (size_t)arch->vocab_size);
    cache->x = cuda_cut(base, &at, 4 * hidden);
    cache->qkv = cuda_cut(base, &at, 4 * qkv);
    cache->attention = cuda_cut(base, &at, 4 * heads);
    cache->act = cuda_cut(base, &at, 4 * inner);
    cache->parts = cuda_cut(base, &at, 4 * tiles * (size_t)device->splits * 16 * (arch->head_dim + 2));
    cache->arrived = cuda_cut(base, &at, 4 * tiles);
    cache->wide_x = cuda_cut(base, &at, 4 * tokens * hidden);
    cache->wide_in = cuda_cut(base, &at, 2 * tokens * widest);
    cache->wide_q = cuda_cut(base, &at, 2 * tokens * heads);
    cache->wide_out = cuda_cut(base, &at, 4 * tokens * (qkv > inner ? qkv : inner));
    cache->wide_scale = cuda_cut(base, &at, 4 * tokens);
    return at;
}

/* Prefill pieces: as many tokens, up to 2048, as 192 MiB hold. */
static int cuda_chunk(const cuda_device *device, int ctx) {
    cuda_cache cache;
    size_t fixed = cuda_layout(&cache, device, 0, ctx, 0);
    int chunk = 2048;
    while (chunk > 64 && cuda_layout(&cache, device, 0, ctx, chunk) - fixed > (size_t)192 << 20)
        chunk -= 64;
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
    size_t free_bytes = 0, total = 0;
    cuda_enter(device);
    device->cu.memory_info(&free_bytes, &total);
    cuda_leave(device);
    return free_bytes;
}

static void cuda_cache_close(tc__cache *handle) {
    cuda_cache *cache = (cuda_cache *)handle;
    if (!cache) return;
    tc__cu *cu = &cache->device->cu;
    cuda_enter(cache->device);
    if (cache->stream) cu->stream_wait(cache->stream);
    for (int row = 0; row < 2; row++)
        if (cache->token[row]) cu->graph_exec_destroy(cache->token[row]);
    if (cache->sampled) cu->event_destroy(cache->sampled);
    if (cache->stream) cu->stream_destroy(cache->stream);
    if (cache->memory) cu->release(cache->memory);
    if (cache->host_logits) cu->host_release(cache->host_logits);
    if (cache->host_token) cu->host_release(cache->host_token);
    cuda_leave(cache->device);
    free(cache);
}

/* ---- decode ---- */

static tc__cu_result cuda_product_decode(cuda_cache *cache, int role, const tc__tensor *matrix,
                                         tc__cu_ptr in, const tc__tensor *gamma, tc__cu_ptr out,
                                         bool overlap) {
    cuda_device *device = cache->device;
    cuda_product_args args = {cuda_tensor(device, matrix), in,
                              gamma ? cuda_tensor(device, gamma) : 0, out, 1};
    cuda_kernel *kernel = &device->products[role][tc__kind_of(&device->kinds, role, matrix)].decode;
    return cuda_launch(device, kernel, 0, 1, &args, cache->stream, overlap);
}

static tc__cu_result cuda_head(cuda_cache *cache, const cuda_kernel *kernel, tc__cu_ptr x,
                               int tokens, int row, bool overlap) {
    const tc__weights *weights = cache->device->weights;
    cuda_product_args args = {cuda_tensor(cache->device, weights->head), x,
                              cuda_tensor(cache->device, weights->norm),
                              cache->logits + 4 * (size_t)row * weights->arch.vocab_size, tokens};
    return cuda_launch(cache->device, kernel, 0, 1, &args, cache->stream, overlap);
}

/* The launches of one token: the token at ids[state.next], its logits into a row. */
static tc__cu_result cuda_token(cuda_cache *cache, int row) {
    cuda_device *device = cache->device;
    const tc__weights *weights = device->weights;
    size_t layer_kv = cuda_kv_bytes((const tc__device *)device) / weights->arch.layers * (size_t)cache->ctx;
    cuda_embed_args embed = {cuda_tensor(device, weights->embed), cache->ids, cache->state, cache->x,
                             1};
    tc__cu_result result = cuda_launch(device, &device->embed, 1, 1, &embed, cache->stream, false);
    for (uint32_t l = 0; l < weights->arch.layers && !result; l++) {
        const tc__layer *layer = &weights->layers[l];
        tc__cu_ptr k = cache->kv + l * layer_kv;
        cuda_decode_attention_args attention = {cache->qkv, k, k + layer_kv / 2, cache->attention,
                                                cache->parts, cache->arrived, cache->state,
                                                device->turns, cache->ctx};
        result = cuda_product_decode(cache, TC__QKV, layer->qkv, cache->x, layer->attn_norm,
                                     cache->qkv, l > 0);
        if (!result)
            result = cuda_launch(device, &device->attention, 0, device->splits, &attention,
                                 cache->stream, true);
        if (!result)
            result = cuda_product_decode(cache, TC__O, layer->o, cache->attention, NULL, cache->x,
                                         false);
        if (!result)
            result = cuda_product_decode(cache, TC__GATE_UP, layer->gate_up, cache->x,
                                         layer->mlp_norm, cache->act, true);
        if (!result)
            result = cuda_product_decode(cache, TC__DOWN, layer->down, cache->act, NULL, cache->x,
                                         true);
    }
    return result ? result : cuda_head(cache, &device->head, cache->x, 1, row, true);
}

/* Records one token's launches as a graph. */
static int cuda_record(cuda_cache *cache, int row, tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    tc__cu_graph graph = NULL;
    tc__cu_result result = cu->capture_begin(cache->stream, 1 /* thread-local */);
    if (!result) {
        result = cuda_token(cache, row);
        tc__cu_result end = cu->capture_end(cache->stream, &graph);
        if (!result) result = end;
    }
    if (!result) result = cu->graph_instantiate(&cache->token[row], graph, 0);
    if (graph) cu->graph_destroy(graph);
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
    if (!result) result = cu->stream_create(&cache->stream, 1 /* does not wait for stream 0 */);
    if (!result) result = cu->event_create(&cache->sampled, 2 /* no timing */);
    if (!result)
        result = cu->fill_bytes(cache->memory, 0, cache->memory_bytes, cache->stream);
    int code = tc__cu_check(cu, result, "allocating the KV cache and workspace", err);
    for (int row = 0; row < 2 && !code; row++) code = cuda_record(cache, row, err);
    cuda_leave(device);
    if (code) {
        cuda_cache_close((tc__cache *)cache);
        return code;
    }
    *out = (tc__cache *)cache;
    return tc__ok(err);
}

/* ---- prefill ---- */

static tc__cu_result cuda_gemm(cuda_cache *cache, int role, const tc__tensor *matrix,
                               tc__cu_ptr out, int tokens) {
    cuda_device *device = cache->device;
    cuda_product *product = &device->products[role][tc__kind_of(&device->kinds, role, matrix)];
    cuda_gemm_args args = {cuda_tensor(device, matrix), cache->wide_in, cache->wide_scale, out,
                           tokens};
    int columns = (tokens + 127) / 128;
    /* the larger tile does less work per result, but only pays when it fills the GPU */
    bool wide = 2 * product->prefill_wide.grid * columns >= 3 * device->sm_count;
    return cuda_launch(device, wide ? &product->prefill_wide : &product->prefill, 0, columns, &args,
                       cache->stream, false);
}

static tc__cu_result cuda_rows(cuda_cache *cache, const cuda_kernel *kernel, tc__cu_ptr in,
                               const tc__tensor *gamma, int tokens) {
    cuda_rows_args args = {in, gamma ? cuda_tensor(cache->device, gamma) : 0, cache->wide_in,
                           cache->wide_scale};
    return cuda_launch(cache->device, kernel, tokens, 1, &args, cache->stream, false);
}

static tc__cu_result cuda_prefill_layer(cuda_cache *cache, uint32_t l, int tokens) {
    cuda_device *device = cache->device;
    const tc__arch *arch = &device->weights->arch;
    const tc__layer *layer = &device->weights->layers[l];
    size_t layer_kv = cuda_kv_bytes((const tc__device *)device) / arch->layers * (size_t)cache->ctx;
    tc__cu_ptr k = cache->kv + l * layer_kv;
    cuda_prefill_attention_args attention = {
        cache->wide_out,   cache->wide_q, k,          k + layer_kv / 2, cache->wide_in,
        cache->wide_scale, cache->state,  device->turns, cache->ctx, tokens};
    tc__cu_result result =
        cuda_rows(cache, &device->rows_hidden, cache->wide_x, layer->attn_norm, tokens);
    if (!result) result = cuda_gemm(cache, TC__QKV, layer->qkv, cache->wide_out, tokens);
    if (!result)
        result = cuda_launch(device, &device->rope, tokens, 1, &attention, cache->stream, false);
    if (!result)
        result = cuda_launch(device, &device->attention_prefill, (tokens + 63) / 64,
                             (int)arch->heads, &attention, cache->stream, false);
    if (!result) result = cuda_gemm(cache, TC__O, layer->o, cache->wide_x, tokens);
    if (!result)
        result = cuda_rows(cache, &device->rows_hidden, cache->wide_x, layer->mlp_norm, tokens);
    if (!result) result = cuda_gemm(cache, TC__GATE_UP, layer->gate_up, cache->wide_out, tokens);
    if (!result)
        result = cuda_rows(cache, &device->rows_intermediate, cache->wide_out, NULL, tokens);
    if (!result) result = cuda_gemm(cache, TC__DOWN, layer->down, cache->wide_x, tokens);
    return result;
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
        tc__cu_result result = cuda_head(cache, &cache->device->head_each,
                                         cache->wide_x + 4 * (size_t)t * arch->hidden_size, n, 0, false);
        if (!result)
            result = cu->copy_to_host(cache->host_logits, cache->logits, bytes, cache->stream);
        if (!result) result = cu->stream_wait(cache->stream);
        if (result) return tc__cu_check(cu, result, "computing logits", err);
        cache->logits_row = n - 1;
        for (int i = 0; i < n; i++)
            if (each(user, pos + (size_t)(t + i),
                     cache->host_logits + (size_t)i * arch->vocab_size, (int)arch->vocab_size))
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
    cuda_embed_args embed = {cuda_tensor(device, device->weights->embed), cache->ids, cache->state,
                             cache->wide_x, n};
    cuda_state begin = {(int)pos, (int)pos, 0, 0}, end = {(int)pos + n, (int)pos, 0, 0};
    tc__cu_result result = cu->copy_to_device(cache->state, &begin, sizeof begin, cache->stream);
    if (!result)
        result = cu->copy_to_device(cache->ids + 4 * pos, ids, 4 * (size_t)n, cache->stream);
    if (!result) result = cuda_launch(device, &device->embed_all, n, 1, &embed, cache->stream, false);
    for (uint32_t l = 0; l < arch->layers && !result; l++) result = cuda_prefill_layer(cache, l, n);
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
static int cuda_other_row(const cuda_cache *cache) { return cache->logits_row == 0 ? 1 : 0; }

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
    tc__cu_result result = cu->copy_to_host(
        cache->host_logits, cache->logits + (size_t)cache->logits_row * bytes, bytes, cache->stream);
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

static int cuda_eval(tc__cache *handle, const int32_t *ids, size_t n, size_t pos, tc__logits_fn each,
                     void *user, const tc__flag *cancel, tc_error *err) {
    cuda_cache *cache = (cuda_cache *)handle;
    int code = TC_OK;
    cuda_enter(cache->device);
    cache->logits_on_host = false;
    if (n == 1) {
        code = cuda_decode(cache, ids[0], pos, err);
        if (!code && each) code = cuda_hand_over(cache, pos, each, user, err);
    } else {
        cache->ahead = false;
        for (size_t at = 0; at < n && !code; at += (size_t)cache->chunk) {
            size_t piece = n - at < (size_t)cache->chunk ? n - at : (size_t)cache->chunk;
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

/* Queues the choice of the next token and, behind it, that token's evaluation: the GPU goes on while
 * the host looks at the token. An evaluation that nobody asks for is overwritten later. */
static int cuda_sample(tc__cache *handle, const tc_sampling *sampling, const int32_t *context,
                       size_t n_context, double u, int32_t *id, tc_error *err) {
    cuda_cache *cache = (cuda_cache *)handle;
    cuda_device *device = cache->device;
    tc__cu *cu = &device->cu;
    size_t row = 4 * (size_t)cache->logits_row * device->weights->arch.vocab_size;
    cuda_sample_args args = {cache->logits + row, cache->keys, cache->ids, cache->state, 0,
                             (int)n_context, cache->ctx, sampling->top_k, sampling->temperature,
                             sampling->top_p, sampling->min_p, sampling->repeat_penalty, u};
    (void)context; /* the device holds the same ids */
    cuda_enter(device);
    tc__cu_result result = cu->host_device_pointer(&args.host, cache->host_token, 0);
    if (!result && cache->ahead) { /* a second draw from the same logits: start over behind them */
        cuda_state state = {cache->ahead_pos, cache->ahead_pos, 0, 0};
        result = cu->copy_to_device(cache->state, &state, sizeof state, cache->stream);
        cache->next = cache->ahead_pos;
    }
    if (!result) result = cuda_launch(device, &device->sample, 1, 1, &args, cache->stream, false);
    if (!result) result = cu->event_record(cache->sampled, cache->stream);
    bool ahead = !result && cache->next < cache->ctx;
    if (ahead) result = cu->graph_launch(cache->token[cuda_other_row(cache)], cache->stream);
    if (!result) result = cu->event_wait(cache->sampled);
    cuda_leave(device);
    if (result) return tc__cu_check(cu, result, "sampling", err);
    int token = *(volatile int *)cache->host_token;
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
        cuda_open,      cuda_close,       cuda_name, cuda_kv_bytes, cuda_workspace, cuda_free_bytes,
        cuda_cache_open, cuda_cache_close, cuda_eval, cuda_logits,   cuda_sample,
        cuda_read_bandwidth,
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
    size_t bytes;
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
        snprintf(advice, sizeof advice, "the largest context that fits is %d", largest);
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

/* Turns what the caller asked for into a number of positions that should fit. */
static int session_choose_ctx(const tc_model *model, int asked, int *ctx_size, tc_error *err) {
    int most = (int)model->weights.arch.max_seq_len;
    size_t room = model->backend->free_bytes(model->device);
    if (asked < -1 || asked > most)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "context size %d; expected 1 to %d (the model's maximum), 0 for that "
                        "maximum or -1 for the default",
                        asked, most);
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

static int session_check(const tc_session *session, const int32_t *ids, size_t n, tc_error *err) {
    int code = tc__need(session, "session", err);
    if (code) return code;
    int vocab_size = (int)session->model->weights.arch.vocab_size;
    if (n == 0 || !ids) return tc__fail(err, TC_ERR_ARGUMENT, "evaluate: no token ids given");
    if (n > (size_t)session->ctx_size - session->length)
        return tc__fail(err, TC_ERR_CONTEXT,
                        "%zu tokens after the %zu in the context do not fit; the context has %d "
                        "positions; truncate it or open a larger one",
                        n, session->length, session->ctx_size);
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
    if (!code && ids->len > ctx)
        code = tc__fail(err, TC_ERR_CONTEXT,
                        "the prompt has %zu tokens, the context %zu; shorten the text%s or use a "
                        "larger context",
                        ids->len, ctx, base > *drop ? ", drop earlier turns" : "");
    return code;
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

/* ======== src/doctor.c ======== */


#include <errno.h>
#include <unistd.h>

typedef struct doctor_state {
    void (*line)(void *user, const char *text);
    void *user;
    tc__cu cu;
    int arch;   /* of GPU 0; 0 if it cannot be used */
    bool nvrtc; /* it is there and compiles */
} doctor_state;

/* A line: what it is about, in a column of its own, and the facts. */
static void doctor_say(const doctor_state *doctor, const char *what, const char *format, ...)
    TC_PRINTF(3, 4);
static void doctor_say(const doctor_state *doctor, const char *what, const char *format, ...) {
    char facts[1280], text[1312];
    va_list args;
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
    int major = 0, minor = 0, sms = 0;
    size_t total = 0, free_bytes = 0;
    tc_error reason;
    snprintf(what, sizeof what, "GPU %d", index);
    tc__cu_result result = cu->device_get(&device, index);
    if (!result) result = cu->device_name(name, sizeof name, device);
    if (!result) result = cu->device_attribute(&major, TC__CU_ATTRIBUTE_MAJOR, device);
    if (!result) result = cu->device_attribute(&minor, TC__CU_ATTRIBUTE_MINOR, device);
    if (!result) result = cu->device_attribute(&sms, TC__CU_ATTRIBUTE_SM_COUNT, device);
    if (!result) result = cu->device_memory(&total, device);
    int code = tc__cu_check(cu, result, "asking the driver about the GPU", &reason);
    int arch = 10 * major + minor;
    if (!code && arch < 80)
        code = tc__fail(&reason, TC_ERR_DEVICE, "compute capability 8.0 or newer is needed");
    if (!code) code = doctor_gpu_memory(cu, device, &free_bytes, &reason);
    doctor_say(doctor, what, "%s, compute capability %d.%d, %d SMs, %.1f GiB of memory", name,
               major, minor, sms, (double)total / (1 << 30));
    if (code)
        doctor_say(doctor, "", "cannot be used: %s", reason.message);
    else
        doctor_say(doctor, "", "%.1f GiB of it are free", (double)free_bytes / (1 << 30));
    return code ? 0 : arch;
}

static void doctor_driver(doctor_state *doctor) {
    char path[1024];
    int version = 0, count = 0;
    tc_error reason;
    if (tc__cu_open(&doctor->cu, &reason)) {
        doctor_say(doctor, "driver", "%s", reason.message);
        return;
    }
    doctor->cu.driver_version(&version);
    doctor_file("libcuda.so", "libcuda.so.1", path, sizeof path);
    doctor_say(doctor, "driver", "CUDA %d.%d, %s", version / 1000, version % 1000 / 10, path);
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
    if (tc__nvrtc_open(&nvrtc, &err)) {
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
        doctor_say(doctor, "CPU", "%s kernels, %d threads, %.1f GiB of memory available",
                   kernels->name, tc__processors(), (double)tc__available_memory() / (1 << 30));
}

static void doctor_environment(const doctor_state *doctor) {
    static const char *const names[] = {
        "CUDA_VISIBLE_DEVICES", "CUDA_HOME",      "TINYCHAT_ARCH", "TINYCHAT_NVRTC",
        "TINYCHAT_KERNELS",     "TINYCHAT_CACHE", "TINYCHAT_CPU"};
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
    tc_model_params params = {"auto", 0, NULL, NULL, NULL};
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

/* What to open: a file, or a shape. */
typedef struct api_source {
    const char *path; /* NULL: the shape */
    const char *shape, *precision;
    int group_size;
} api_source;

/* The tables; a shape's weights too if the backend is one that reads them in memory. */
static int api_read_tables(tc_model *model, const api_source *source, const tc_model_params *params,
                           tc_error *err) {
    bool in_memory = model->backend == tc__cpu_backend();
    if (source->path) return tc__model_file_open(source->path, &model->file, err);
    return tc__shape_open(source->shape, source->precision, source->group_size, in_memory, params,
                          &model->file, err);
}

/* Everything but the device. */
static int api_read_model(tc_model *model, const api_source *source, const tc_model_params *params,
                          tc_error *err) {
    int code = api_read_tables(model, source, params, err);
    if (!code) code = tc__weights_open(&model->file, &model->weights, err);
    if (code) return code;
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
    api_source source = {path, NULL, NULL, 0};
    return api_open_on(backend, &source, params, model, err);
}

/* The GPU if it can be used for this model; else the CPU, and why is said. */
static int api_open_auto(const api_source *source, const tc_model_params *params, tc_model **model,
                         tc_error *err) {
    tc_error why;
    int code = api_open_on(tc__cuda_backend(), source, params, model, &why);
    if (code != TC_ERR_DEVICE && code != TC_ERR_UNSUPPORTED && code != TC_ERR_MEMORY) {
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
    api_source source = {path, NULL, NULL, 0};
    int code = tc__need(model, "model", err);
    if (code) return code;
    *model = NULL;
    code = tc__need(path, "path", err);
    return code ? code : api_open(&source, params, model, err);
}

int tc_model_open_shape(const char *name, const char *precision, int group_size,
                        const tc_model_params *params, tc_model **model, tc_error *err) {
    api_source source = {NULL, name, precision ? precision : "w4a16", group_size};
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
    info.template_name = model->tokenizer ? model->chat_template.name : "";
    info.parameters = model->weights.parameters;
    info.layer_parameters = model->weights.layer_parameters;
    info.weight_bytes = model->weights.tensor_bytes;
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
