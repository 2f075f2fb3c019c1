/* spm_file - for tests: the metadata of a model file made in memory out of a SentencePiece
 * tokenizer.model, by a protobuf walk of its own (convert has another one). Trusts its input: the
 * files are the repository's own and ../shared/tokenizers. */
#ifndef SPM_FILE_H
#define SPM_FILE_H

#include "model_file.h"

#define SPM_MAX_METAS 24

typedef struct spm_file {
    tc__model_file file; /* hand this to tc__tokenizer_open */
    tc__meta metas[SPM_MAX_METAS];
    tc__buf values[SPM_MAX_METAS];
    uint32_t n_pieces;
} spm_file;

/* Adds metadata; what was there under the key is replaced. */
static inline void spm_set(spm_file *spm, const char *key, uint32_t type, size_t count,
                           const void *value, size_t size) {
    size_t i = 0;
    while (i < spm->file.meta_count &&
           (strlen(key) != spm->metas[i].key_len || memcmp(key, spm->metas[i].key, strlen(key))))
        i++;
    if (i == spm->file.meta_count) spm->file.meta_count++;
    if (i == SPM_MAX_METAS) abort();
    spm->values[i].len = 0;
    tc__buf_add(&spm->values[i], value, size);
    spm->metas[i] =
        (tc__meta){key, strlen(key), type, count, (const uint8_t *)spm->values[i].data, size};
    spm->file.metas = spm->metas;
}

static inline void spm_set_u32(spm_file *spm, const char *key, uint32_t value) {
    spm_set(spm, key, TC__META_U32, 1, &value, sizeof value);
}

static inline void spm_set_text(spm_file *spm, const char *key, const char *text) {
    spm_set(spm, key, TC__META_BYTES, strlen(text), text, strlen(text));
}

static inline void spm_remove(spm_file *spm, const char *key) {
    for (size_t i = 0; i < spm->file.meta_count; i++)
        if (strlen(key) == spm->metas[i].key_len && !memcmp(key, spm->metas[i].key, strlen(key)))
            spm->metas[i].key_len = 0;
}

static inline void spm_close(spm_file *spm) {
    for (size_t i = 0; i < SPM_MAX_METAS; i++) tc__buf_free(&spm->values[i]);
}

static inline uint64_t spm_varint(tc__cursor *c) {
    uint64_t value = 0;
    for (unsigned shift = 0;; shift += 7) {
        const uint8_t *byte = tc__take(c, 1);
        if (!byte || shift > 63) return value;
        value |= (uint64_t)(*byte & 0x7F) << shift;
        if (!(*byte & 0x80)) return value;
    }
}

/* The next field: its number, its value (varint, fixed32, length) and, for wire type 2, its bytes;
 * 0 at the end. */
static inline unsigned spm_field(tc__cursor *c, uint64_t *value, tc__cursor *bytes) {
    if (!tc__cursor_left(c)) return 0;
    uint64_t tag = spm_varint(c);
    *value = (tag & 7) == 5 ? tc__take_u32(c) : (tag & 7) == 1 ? tc__take_u64(c) : spm_varint(c);
    if ((tag & 7) == 2) *bytes = tc__cursor_make(tc__take(c, (size_t)*value), (size_t)*value);
    return (unsigned)(tag >> 3);
}

static inline void spm_piece(tc__cursor piece, tc__buf *pieces, tc__buf *scores, tc__buf *types) {
    char type = TC__PIECE_NORMAL;
    uint32_t score = 0, len = 0;
    tc__cursor text = {0}, bytes;
    uint64_t value;
    unsigned field;
    while ((field = spm_field(&piece, &value, &bytes))) {
        if (field == 1) text = bytes, len = (uint32_t)value;
        if (field == 2) score = (uint32_t)value;
        if (field == 3) type = (char)value;
    }
    tc__buf_add(pieces, &len, 4);
    tc__buf_add(pieces, text.at, len);
    tc__buf_add(scores, &score, 4);
    tc__buf_add(types, &type, 1);
}

/* Reads a tokenizer.model; false if there is no such file. `spm` is zeroed by the caller. */
static inline bool spm_open(spm_file *spm, const char *path, bool legacy) {
    tc__buf pieces = {0}, scores = {0}, types = {0};
    tc__map map;
    if (tc__map_open(path, &map, NULL)) return false;
    tc__cursor model = tc__cursor_make(map.data, map.size), bytes, inner;
    uint64_t value;
    unsigned field, dummy_prefix = 1, unk = 0, bos = 1, eos = 2;
    spm_set(spm, "tokenizer.unk_surface", TC__META_BYTES, 5, " \xE2\x81\x87 ", 5);
    while ((field = spm_field(&model, &value, &bytes))) {
        if (field == 1) spm_piece(bytes, &pieces, &scores, &types), spm->n_pieces++;
        while (field == 2 && (field = spm_field(&bytes, &value, &inner))) {
            if (field == 40) unk = (unsigned)value;
            if (field == 41) bos = (unsigned)value;
            if (field == 42) eos = (unsigned)value;
            if (field == 44)
                spm_set(spm, "tokenizer.unk_surface", TC__META_BYTES, (size_t)value, inner.at,
                        (size_t)value);
            field = 2;
        }
        while (field == 3 && (field = spm_field(&bytes, &value, &inner))) {
            if (field == 3) dummy_prefix = (unsigned)value;
            field = 3;
        }
    }
    tc__map_close(&map);
    spm_set_text(spm, "tokenizer.type", "spm-bpe");
    spm_set(spm, "tokenizer.pieces", TC__META_STRINGS, spm->n_pieces, pieces.data, pieces.len);
    spm_set(spm, "tokenizer.scores", TC__META_F32, spm->n_pieces, scores.data, scores.len);
    spm_set(spm, "tokenizer.types", TC__META_BYTES, spm->n_pieces, types.data, types.len);
    spm_set_u32(spm, "tokenizer.unk_id", unk);
    spm_set_u32(spm, "tokenizer.bos_id", bos);
    spm_set_u32(spm, "tokenizer.eos_id", eos);
    spm_set_u32(spm, "tokenizer.add_bos", 1);
    spm_set_u32(spm, "tokenizer.dummy_prefix", dummy_prefix);
    spm_set_u32(spm, "tokenizer.legacy", legacy);
    tc__buf_free(&pieces);
    tc__buf_free(&scores);
    tc__buf_free(&types);
    return true;
}

/* ---- golden files ---- */

/* Decodes hexadecimal up to the first other character, which *text is left at. */
static inline void spm_hex(const char **text, tc__buf *out) {
    int high, low;
    static const char digits[] = "0123456789abcdef";
    while (**text && strchr(digits, **text)) {
        high = (int)(strchr(digits, (*text)[0]) - digits);
        low = (int)(strchr(digits, (*text)[1]) - digits);
        char byte = (char)(high * 16 + low);
        tc__buf_add(out, &byte, 1);
        *text += 2;
    }
}

/* Decimal numbers separated by spaces, up to the first other character. */
static inline void spm_numbers(const char **text, tc__ids *out) {
    for (;;) {
        while (**text == ' ') ++*text;
        if (**text < '0' || **text > '9') return;
        tc__ids_push(out, (int32_t)strtol(*text, (char **)text, 10));
    }
}

/* A whole file as one NUL-terminated string; empty if there is none. */
static inline tc__buf spm_read(const char *path) {
    tc__buf text = {0};
    tc__map map;
    if (!tc__map_open(path, &map, NULL)) {
        tc__buf_add(&text, map.data, map.size);
        tc__map_close(&map);
    }
    return text;
}

static inline bool spm_same_ids(const tc__ids *a, const tc__ids *b) {
    return a->len == b->len && (!a->len || !memcmp(a->data, b->data, a->len * sizeof *a->data));
}

/* "1 2 3", for messages; as much as fits. */
static inline const char *spm_show(const tc__ids *ids, char *out, size_t size) {
    size_t at = 0;
    out[0] = 0;
    for (size_t i = 0; i < ids->len && at + 16 < size; i++)
        at += (size_t)snprintf(out + at, size - at, "%d ", ids->data[i]);
    return out;
}

#endif /* SPM_FILE_H */
