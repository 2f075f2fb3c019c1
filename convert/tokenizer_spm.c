#include "tokenizer_spm.h"

#include "src/vocabulary.h"

#define SPM_MAX_PIECES (1u << 21)

/* ---- protocol buffers ---- */

/* One field: its number, and its value as a number (types 0, 1, 5) or bytes (type 2). */
typedef struct spm_field {
    uint64_t number;
    int type;
    uint64_t value;
    const uint8_t *bytes;
    size_t len;
} spm_field;

static uint64_t spm_varint(tc__cursor *cursor) {
    uint64_t value = 0;
    for (unsigned shift = 0; shift < 64; shift += 7) {
        const uint8_t *byte = tc__take(cursor, 1);
        if (!byte) return 0;
        value |= (uint64_t)(*byte & 127) << shift;
        if (*byte < 128) return value;
    }
    cursor->failed = true; /* longer than any number */
    return 0;
}

/* The next field; false at the end or, with cursor->failed, at damage. */
static bool spm_next(tc__cursor *cursor, spm_field *field) {
    if (tc__cursor_left(cursor) == 0 || cursor->failed) return false;
    uint64_t tag = spm_varint(cursor);
    field->number = tag >> 3;
    field->type = (int)(tag & 7);
    field->value = 0;
    field->bytes = NULL;
    field->len = 0;
    if (field->type == 0) {
        field->value = spm_varint(cursor);
    } else if (field->type == 1) {
        field->value = tc__take_u64(cursor);
    } else if (field->type == 5) {
        field->value = tc__take_u32(cursor);
    } else if (field->type == 2) {
        uint64_t len = spm_varint(cursor);
        if (len > tc__cursor_left(cursor)) cursor->failed = true;
        field->len = (size_t)len;
        if (!cursor->failed) field->bytes = tc__take(cursor, field->len);
    } else {
        cursor->failed = true; /* groups: not in any tokenizer */
    }
    if (field->number == 0) cursor->failed = true;
    return !cursor->failed;
}

/* ---- tokenizer.model ---- */

/* What the specs of a ModelProto say, with protobuf's defaults for what they leave out. */
typedef struct spm_specs {
    uint64_t model_type; /* 1 unigram, 2 BPE, 3 word, 4 char */
    bool suffix, byte_fallback;
    int32_t unk_id, bos_id, eos_id;
    bool dummy_prefix, extra_whitespace, escape;
    bool charsmap, denormalizer;
    const char *normalizer;
    size_t normalizer_len;
} spm_specs;

static bool spm_piece(const spm_field *message, tokenizer_import *import) {
    tc__cursor cursor = tc__cursor_make(message->bytes, message->len);
    spm_field field;
    const uint8_t *text = NULL;
    size_t len = 0;
    uint32_t score = 0; /* the bits of a float */
    uint8_t type = TC__PIECE_NORMAL;
    while (spm_next(&cursor, &field)) {
        if (field.number == 1 && field.type == 2) text = field.bytes, len = field.len;
        if (field.number == 2 && field.type == 5) score = (uint32_t)field.value;
        if (field.number == 3 && field.type == 0) {
            if (field.value < TC__PIECE_NORMAL || field.value > TC__PIECE_BYTE) return false;
            type = (uint8_t)field.value;
        }
    }
    if (cursor.failed || len == 0 || import->count == SPM_MAX_PIECES) return false;
    writer_add_string(&import->pieces, (const char *)text, len);
    tc__buf_add(&import->scores, &score, sizeof score);
    tc__buf_add(&import->types, &type, 1);
    import->count++;
    return true;
}

static bool spm_trainer(const spm_field *message, tokenizer_import *import, spm_specs *specs) {
    tc__cursor cursor = tc__cursor_make(message->bytes, message->len);
    spm_field field;
    while (spm_next(&cursor, &field)) {
        if (field.type == 0) {
            int32_t id = (int32_t)(uint32_t)field.value;
            if (field.number == 3) specs->model_type = field.value;
            if (field.number == 24) specs->suffix = field.value != 0;
            if (field.number == 35) specs->byte_fallback = field.value != 0;
            if (field.number == 40) specs->unk_id = id;
            if (field.number == 41) specs->bos_id = id;
            if (field.number == 42) specs->eos_id = id;
        } else if (field.number == 44 && field.type == 2) {
            import->unk_surface.len = 0;
            tc__buf_add(&import->unk_surface, field.bytes, field.len);
        }
    }
    return !cursor.failed;
}

static bool spm_normalizer(const spm_field *message, spm_specs *specs) {
    tc__cursor cursor = tc__cursor_make(message->bytes, message->len);
    spm_field field;
    while (spm_next(&cursor, &field)) {
        if (field.number == 1 && field.type == 2) {
            specs->normalizer = (const char *)field.bytes;
            specs->normalizer_len = field.len;
        }
        if (field.number == 2 && field.type == 2) specs->charsmap = field.len != 0;
        if (field.type != 0) continue;
        if (field.number == 3) specs->dummy_prefix = field.value != 0;
        if (field.number == 4) specs->extra_whitespace = field.value != 0;
        if (field.number == 5) specs->escape = field.value != 0;
    }
    return !cursor.failed;
}

static bool spm_denormalizer(const spm_field *message, spm_specs *specs) {
    spm_specs own = {0};
    bool good = spm_normalizer(message, &own);
    specs->denormalizer = own.charsmap;
    return good;
}

/* False if the bytes are no ModelProto. */
static bool spm_model(const uint8_t *bytes, size_t len, tokenizer_import *import,
                      spm_specs *specs) {
    tc__cursor cursor = tc__cursor_make(bytes, len);
    spm_field field;
    bool good = true;
    while (good && spm_next(&cursor, &field)) {
        if (field.type != 2) continue;
        if (field.number == 1) good = spm_piece(&field, import);
        if (field.number == 2) good = spm_trainer(&field, import, specs);
        if (field.number == 3) good = spm_normalizer(&field, specs);
        if (field.number == 5) good = spm_denormalizer(&field, specs);
    }
    return good && !cursor.failed && import->count > 0;
}

static int spm_refuse(const char *path, const char *what, tc_error *err) {
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "%s: %s is not supported; supported: BPE without normalisation, as in LLaMA's "
                    "tokenizer.model (--no-tokenizer converts for use with token ids)",
                    path, what);
}

static int spm_check(const char *path, const tokenizer_import *import, const spm_specs *specs,
                     tc_error *err) {
    static const char *const types[] = {"this model type", "a unigram model", "BPE", "a word model",
                                        "a character model"};
    bool bytes = memchr(import->types.data, TC__PIECE_BYTE, import->count) != NULL;
    if (specs->model_type != 2)
        return spm_refuse(path, types[specs->model_type < TC_COUNT(types) ? specs->model_type : 0],
                          err);
    if (specs->charsmap) {
        char what[128];
        int len = specs->normalizer_len < 64 ? (int)specs->normalizer_len : 64;
        snprintf(what, sizeof what, "the normalisation '%.*s' (a character map)", len,
                 specs->normalizer ? specs->normalizer : "");
        return spm_refuse(path, what, err);
    }
    if (specs->denormalizer) return spm_refuse(path, "a denormaliser (a character map)", err);
    if (specs->suffix) return spm_refuse(path, "white space treated as a suffix", err);
    if (specs->extra_whitespace) return spm_refuse(path, "removal of extra white space", err);
    if (!specs->escape) return spm_refuse(path, "white space that is not escaped", err);
    if (bytes != specs->byte_fallback)
        return spm_refuse(
            path, bytes ? "byte pieces without byte_fallback" : "byte_fallback without byte pieces",
            err);
    return TC_OK;
}

/* An id of the specs: -1 unless it is one of the pieces. */
static int64_t spm_id(const tokenizer_import *import, int32_t id) {
    return id >= 0 && (uint32_t)id < import->count ? id : -1;
}

static int spm_read_model(const char *path, tokenizer_import *import, tc_error *err) {
    tc__map map;
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    spm_specs specs = {0};
    specs.model_type = 1; /* protobuf's defaults */
    specs.bos_id = 1;
    specs.eos_id = 2;
    specs.dummy_prefix = specs.extra_whitespace = specs.escape = true;
    tc__buf_str(&import->unk_surface, " \xe2\x81\x87 ");
    if (map.size > strlen(LFS_START) && !memcmp(map.data, LFS_START, strlen(LFS_START)))
        code = tc__fail(err, TC_ERR_UNSUPPORTED, "%s: " LFS_POINTER, path);
    else if (!spm_model(map.data, map.size, import, &specs))
        code =
            tc__fail(err, TC_ERR_FORMAT,
                     "%s: not a SentencePiece model (or damaged); expected the tokenizer.model of "
                     "a LLaMA or LLaMA-2 model",
                     path);
    else if (import->pieces.failed || import->scores.failed || import->types.failed ||
             import->unk_surface.failed)
        code = tc__fail_memory(err, "the tokenizer", map.size);
    else
        code = spm_check(path, import, &specs, err);
    import->unk_id = spm_id(import, specs.unk_id);
    import->bos_id = spm_id(import, specs.bos_id);
    import->eos_id = spm_id(import, specs.eos_id);
    import->spm_prefix = specs.dummy_prefix;
    tc__map_close(&map);
    return code;
}

int tokenizer_spm_read(const char *path, uint32_t vocab_size, tokenizer_import *import,
                       tc_error *err) {
    int code = spm_read_model(path, import, err);
    if (!code && import->count > vocab_size)
        code = tc__fail(err, TC_ERR_FORMAT,
                        "%s: %u pieces, but the model has %u embeddings; is it another model's "
                        "tokenizer?",
                        path, (unsigned)import->count, (unsigned)vocab_size);
    return code;
}
