#include "tokenizer_import.h"

#include "hf_config.h"
#include "json.h"
#include "src/split.h"
#include "src/vocabulary.h"
#include "tokenizer_json.h"

#define IMPORT_MAX_PIECES (1u << 21)

/* ---- protocol buffers ---- */

/* One field: its number, and its value as a number (types 0, 1, 5) or bytes (type 2). */
typedef struct import_field {
    uint64_t number;
    int type;
    uint64_t value;
    const uint8_t *bytes;
    size_t len;
} import_field;

static uint64_t import_varint(tc__cursor *cursor) {
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
static bool import_next(tc__cursor *cursor, import_field *field) {
    if (tc__cursor_left(cursor) == 0 || cursor->failed) return false;
    uint64_t tag = import_varint(cursor);
    field->number = tag >> 3;
    field->type = (int)(tag & 7);
    field->value = 0;
    field->bytes = NULL;
    field->len = 0;
    if (field->type == 0) {
        field->value = import_varint(cursor);
    } else if (field->type == 1) {
        field->value = tc__take_u64(cursor);
    } else if (field->type == 5) {
        field->value = tc__take_u32(cursor);
    } else if (field->type == 2) {
        uint64_t len = import_varint(cursor);
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
typedef struct import_specs {
    uint64_t model_type; /* 1 unigram, 2 BPE, 3 word, 4 char */
    bool suffix, byte_fallback;
    int32_t unk_id, bos_id, eos_id;
    bool dummy_prefix, extra_whitespace, escape;
    bool charsmap, denormalizer;
    const char *normalizer;
    size_t normalizer_len;
} import_specs;

static bool import_piece(const import_field *message, tokenizer_import *import) {
    tc__cursor cursor = tc__cursor_make(message->bytes, message->len);
    import_field field;
    const uint8_t *text = NULL;
    size_t len = 0;
    uint32_t score = 0; /* the bits of a float */
    uint8_t type = TC__PIECE_NORMAL;
    while (import_next(&cursor, &field)) {
        if (field.number == 1 && field.type == 2) text = field.bytes, len = field.len;
        if (field.number == 2 && field.type == 5) score = (uint32_t)field.value;
        if (field.number == 3 && field.type == 0) {
            if (field.value < TC__PIECE_NORMAL || field.value > TC__PIECE_BYTE) return false;
            type = (uint8_t)field.value;
        }
    }
    if (cursor.failed || len == 0 || import->count == IMPORT_MAX_PIECES) return false;
    writer_add_string(&import->pieces, (const char *)text, len);
    tc__buf_add(&import->scores, &score, sizeof score);
    tc__buf_add(&import->types, &type, 1);
    import->count++;
    return true;
}

static bool import_trainer(const import_field *message, tokenizer_import *import,
                           import_specs *specs) {
    tc__cursor cursor = tc__cursor_make(message->bytes, message->len);
    import_field field;
    while (import_next(&cursor, &field)) {
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

static bool import_normalizer(const import_field *message, import_specs *specs) {
    tc__cursor cursor = tc__cursor_make(message->bytes, message->len);
    import_field field;
    while (import_next(&cursor, &field)) {
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

static bool import_denormalizer(const import_field *message, import_specs *specs) {
    import_specs own = {0};
    bool good = import_normalizer(message, &own);
    specs->denormalizer = own.charsmap;
    return good;
}

/* False if the bytes are no ModelProto. */
static bool import_model(const uint8_t *bytes, size_t len, tokenizer_import *import,
                         import_specs *specs) {
    tc__cursor cursor = tc__cursor_make(bytes, len);
    import_field field;
    bool good = true;
    while (good && import_next(&cursor, &field)) {
        if (field.type != 2) continue;
        if (field.number == 1) good = import_piece(&field, import);
        if (field.number == 2) good = import_trainer(&field, import, specs);
        if (field.number == 3) good = import_normalizer(&field, specs);
        if (field.number == 5) good = import_denormalizer(&field, specs);
    }
    return good && !cursor.failed && import->count > 0;
}

static int import_refuse(const char *path, const char *what, tc_error *err) {
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "%s: %s is not supported; supported: BPE without normalisation, as in LLaMA's "
                    "tokenizer.model (--no-tokenizer converts for use with token ids)",
                    path, what);
}

static int import_check(const char *path, const tokenizer_import *import, const import_specs *specs,
                        tc_error *err) {
    static const char *const types[] = {"this model type", "a unigram model", "BPE", "a word model",
                                        "a character model"};
    bool bytes = memchr(import->types.data, TC__PIECE_BYTE, import->count) != NULL;
    if (specs->model_type != 2)
        return import_refuse(
            path, types[specs->model_type < TC_COUNT(types) ? specs->model_type : 0], err);
    if (specs->charsmap) {
        char what[128];
        int len = specs->normalizer_len < 64 ? (int)specs->normalizer_len : 64;
        snprintf(what, sizeof what, "the normalisation '%.*s' (a character map)", len,
                 specs->normalizer ? specs->normalizer : "");
        return import_refuse(path, what, err);
    }
    if (specs->denormalizer) return import_refuse(path, "a denormaliser (a character map)", err);
    if (specs->suffix) return import_refuse(path, "white space treated as a suffix", err);
    if (specs->extra_whitespace) return import_refuse(path, "removal of extra white space", err);
    if (!specs->escape) return import_refuse(path, "white space that is not escaped", err);
    if (bytes != specs->byte_fallback)
        return import_refuse(
            path, bytes ? "byte pieces without byte_fallback" : "byte_fallback without byte pieces",
            err);
    return TC_OK;
}

/* An id of the specs: -1 unless it is one of the pieces. */
static int64_t import_id(const tokenizer_import *import, int32_t id) {
    return id >= 0 && (uint32_t)id < import->count ? id : -1;
}

static int import_read_model(const char *path, tokenizer_import *import, tc_error *err) {
    tc__map map;
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    import_specs specs = {0};
    specs.model_type = 1; /* protobuf's defaults */
    specs.bos_id = 1;
    specs.eos_id = 2;
    specs.dummy_prefix = specs.extra_whitespace = specs.escape = true;
    tc__buf_str(&import->unk_surface, " \xe2\x81\x87 ");
    if (map.size > strlen(LFS_START) && !memcmp(map.data, LFS_START, strlen(LFS_START)))
        code = tc__fail(err, TC_ERR_UNSUPPORTED, "%s: " LFS_POINTER, path);
    else if (!import_model(map.data, map.size, import, &specs))
        code =
            tc__fail(err, TC_ERR_FORMAT,
                     "%s: not a SentencePiece model (or damaged); expected the tokenizer.model of "
                     "a LLaMA or LLaMA-2 model",
                     path);
    else if (import->pieces.failed || import->scores.failed || import->types.failed ||
             import->unk_surface.failed)
        code = tc__fail_memory(err, "the tokenizer", map.size);
    else
        code = import_check(path, import, &specs, err);
    import->unk_id = import_id(import, specs.unk_id);
    import->bos_id = import_id(import, specs.bos_id);
    import->eos_id = import_id(import, specs.eos_id);
    import->spm_prefix = specs.dummy_prefix;
    tc__map_close(&map);
    return code;
}

/* ---- added tokens ---- */

/* Looks text up among pieces or added tokens; sets *id. */
static bool import_find(const tc__buf *strings, const char *text, size_t len, uint32_t *index) {
    tc__cursor cursor = tc__cursor_make(strings->data, strings->len);
    const char *piece;
    size_t piece_len;
    for (uint32_t i = 0; tc__next_string(&cursor, &piece, &piece_len); i++)
        if (piece_len == len && memcmp(piece, text, len) == 0) {
            *index = i;
            return true;
        }
    return false;
}

static uint32_t import_added_id(const tokenizer_import *import, uint32_t index) {
    uint32_t id;
    memcpy(&id, import->added_ids.data + (size_t)index * sizeof id, sizeof id);
    return id;
}

/* The id that the text of a special token has; -1 if it is no token. */
static int64_t import_lookup(const tokenizer_import *import, const tc__buf *text) {
    uint32_t index;
    const char *bytes = text->data ? text->data : "";
    if (import_find(&import->added, bytes, text->len, &index))
        return import_added_id(import, index);
    if (import_find(&import->pieces, bytes, text->len, &index)) return index;
    return -1;
}

int tokenizer_import_add(tokenizer_import *import, uint32_t vocab_size, int64_t id,
                         const tc__buf *text, uint8_t flags, tc__buf *notes, tc_error *err) {
    uint32_t index;
    if (text->failed) return tc__fail_memory(err, "an added token", text->len);
    if (text->len == 0) return TC_OK;
    if (id < 0 || id >= vocab_size) {
        tc__buf_printf(notes,
                       "added token '%.80s' with id %lld lies outside the model's %u embeddings: "
                       "left out\n",
                       text->data, (long long)id, (unsigned)vocab_size);
        return TC_OK;
    }
    /* control and unknown pieces of SentencePiece are special anyway */
    if (!import->has_merges && id < import->count &&
        (import->types.data[id] == TC__PIECE_CONTROL ||
         import->types.data[id] == TC__PIECE_UNKNOWN) &&
        import_find(&import->pieces, text->data, text->len, &index) && index == (uint32_t)id)
        return TC_OK;
    if (import_find(&import->added, text->data, text->len, &index)) {
        if (import_added_id(import, index) == (uint32_t)id) return TC_OK;
        return tc__fail(err, TC_ERR_FORMAT, "added token '%.80s' has two ids: %u and %lld",
                        text->data, (unsigned)import_added_id(import, index), (long long)id);
    }
    uint32_t number = (uint32_t)id;
    writer_add_string(&import->added, text->data, text->len);
    tc__buf_add(&import->added_ids, &number, sizeof number);
    tc__buf_add(&import->added_flags, &flags, sizeof flags);
    import->added_count++;
    return TC_OK;
}

/* A string, or the "content" of an AddedToken object. */
static void import_content(const json_doc *doc, const json_value *value, tc__buf *text) {
    text->len = 0;
    if (json_type(value) == JSON_OBJECT) value = json_get(doc, value, "content");
    json_string(doc, value, text);
}

/* Remarks on what SentencePiece's path does not do. */
static void import_strips(const json_doc *doc, const json_value *token, const tc__buf *text,
                          bool inside, tc__buf *notes) {
    static const char *const flags[] = {"lstrip", "rstrip", "single_word"};
    for (size_t i = 0; i < TC_COUNT(flags); i++) {
        bool set = false;
        if (json_bool(json_get(doc, token, flags[i]), &set) && set && inside)
            tc__buf_printf(notes,
                           "added token '%.80s' asks for %s, which is not implemented: text "
                           "beside it is taken as it is\n",
                           text->data ? text->data : "", flags[i]);
    }
}

/* added_tokens_decoder: {"32000": {"content": "<pad>", "lstrip": false, ...}} */
static int import_decoder(const json_doc *doc, tokenizer_import *import, uint32_t vocab_size,
                          tc__buf *notes, tc_error *err) {
    const json_value *tokens = json_get(doc, json_root(doc), "added_tokens_decoder");
    tc__buf text = {0}, key = {0};
    int code = TC_OK;
    for (const json_value *item = json_first(tokens); item && !code;
         item = json_next(tokens, item)) {
        const json_value *token = json_member(item);
        if (json_type(tokens) != JSON_OBJECT || json_type(token) != JSON_OBJECT) break;
        key.len = 0;
        json_string(doc, item, &key);
        import_content(doc, token, &text);
        int64_t id = key.len ? strtol(key.data, NULL, 10) : -1;
        bool flagged = import->has_merges && text.len;
        uint8_t flags = flagged ? tokenizer_json_flags(doc, token, &text) : 0;
        if (!import->bytes) flags &= (uint8_t)~TC__ADDED_NORMALIZED;
        code = tokenizer_import_add(import, vocab_size, id, &text, flags, notes, err);
        if (!import->has_merges) import_strips(doc, token, &text, id < vocab_size, notes);
    }
    tc__buf_free(&text);
    tc__buf_free(&key);
    return code;
}

/* added_tokens.json: {"<pad>": 32000} */
static int import_added_file(const char *dir, tokenizer_import *import, uint32_t vocab_size,
                             tc__buf *notes, tc_error *err) {
    char *path = hf_path(dir, "added_tokens.json");
    if (!path) return TC_OK;
    json_doc doc;
    tc__buf text = {0};
    int code = json_open(path, &doc, err);
    const json_value *root = code ? NULL : json_root(&doc);
    for (const json_value *item = json_first(root); item && !code; item = json_next(root, item)) {
        int64_t id = -1;
        text.len = 0;
        json_string(&doc, item, &text);
        if (json_type(root) != JSON_OBJECT || !json_int(&doc, json_member(item), &id))
            code = tc__fail(err, TC_ERR_FORMAT, "%s: expected an object of token ids", path);
        else
            code = tokenizer_import_add(import, vocab_size, id, &text, 0, notes, err);
    }
    tc__buf_free(&text);
    json_close(&doc);
    free(path);
    return code;
}

/* ---- tokenizer_config.json ---- */

/* bos_token and eos_token: as text, which is looked up; null or absent leaves the model's own. They
 * are special whether or not a tokenizer.json says so. */
static int import_named(const json_doc *doc, const char *path, const char *key,
                        tokenizer_import *import, int64_t *id, tc_error *err) {
    tc__buf text = {0};
    import_content(doc, json_get(doc, json_root(doc), key), &text);
    int64_t found = text.len ? import_lookup(import, &text) : *id;
    int code = TC_OK;
    uint32_t index;
    if (found < 0 && text.len)
        code = tc__fail(err, TC_ERR_FORMAT, "%s: '%s' is '%.80s', which is no token", path, key,
                        text.data);
    else if (text.len && import->has_merges &&
             !import_find(&import->added, text.data, text.len, &index))
        code = tokenizer_import_add(import, UINT32_MAX, found, &text, 0, NULL, err);
    *id = found;
    tc__buf_free(&text);
    return code;
}

/* Whether the configuration's add_bos_token counts for a tokenizer.json, and its default: the
 * classes made for one family put the BOS there themselves, whatever the file says. */
static void import_bos_class(const json_doc *doc, tokenizer_import *import) {
    const json_value *root = json_root(doc), *name = json_get(doc, root, "tokenizer_class");
    static const char *const llama[] = {"LlamaTokenizer", "LlamaTokenizerFast",
                                        "CodeLlamaTokenizer", "CodeLlamaTokenizerFast"};
    if (json_is(doc, name, "PreTrainedTokenizerFast")) return;
    for (size_t i = 0; i < TC_COUNT(llama); i++)
        if (json_is(doc, name, llama[i])) import->add_bos = true;
    json_bool(json_get(doc, root, "add_bos_token"), &import->add_bos);
}

static void import_class(const json_doc *doc, const char *path, tc__buf *notes) {
    static const char *const known[] = {"LlamaTokenizer",          "LlamaTokenizerFast",
                                        "PreTrainedTokenizerFast", "LLaMATokenizer",
                                        "CodeLlamaTokenizer",      "TokenizersBackend"};
    const json_value *value = json_get(doc, json_root(doc), "tokenizer_class");
    tc__buf name = {0};
    if (!json_string(doc, value, &name)) return;
    for (size_t i = 0; i < TC_COUNT(known); i++)
        if (json_is(doc, value, known[i])) name.len = 0;
    if (name.len)
        tc__buf_printf(notes, "%s: tokenizer_class '%.80s' is treated as LlamaTokenizer\n", path,
                       name.data);
    tc__buf_free(&name);
}

static int import_config(const json_doc *doc, const char *path, tokenizer_import *import,
                         uint32_t vocab_size, tc__buf *notes, tc_error *err) {
    const json_value *root = json_root(doc);
    if (json_type(root) != JSON_OBJECT)
        return tc__fail(err, TC_ERR_FORMAT, "%s: not a JSON object", path);
    bool prefix = true, add_eos = false;
    json_bool(json_get(doc, root, "add_prefix_space"), &prefix);
    json_bool(json_get(doc, root, "add_eos_token"), &add_eos);
    if (import->has_merges) {
        import_bos_class(doc, import);
    } else {
        json_bool(json_get(doc, root, "add_bos_token"), &import->add_bos);
        json_bool(json_get(doc, root, "legacy"), &import->legacy);
        import->dummy_prefix = import->legacy ? import->spm_prefix : prefix;
        import_class(doc, path, notes);
    }
    if (add_eos)
        tc__buf_printf(notes, "%s: add_eos_token is ignored: a chat template places it\n", path);
    int code = import_decoder(doc, import, vocab_size, notes, err);
    if (!code) code = import_named(doc, path, "bos_token", import, &import->bos_id, err);
    if (!code) code = import_named(doc, path, "eos_token", import, &import->eos_id, err);
    return code;
}

static int import_read_config(const char *dir, tokenizer_import *import, uint32_t vocab_size,
                              tc__buf *notes, tc_error *err) {
    if (!import->has_merges) {
        import->add_bos = import->legacy = true;
        import->dummy_prefix = import->spm_prefix;
    }
    int code = import_added_file(dir, import, vocab_size, notes, err);
    char *path = code ? NULL : hf_path(dir, "tokenizer_config.json");
    if (code) return code;
    if (!path) {
        tc__buf_printf(notes, "%s: no tokenizer_config.json; %s used\n", dir,
                       import->has_merges ? "tokenizer.json alone is"
                                          : "LlamaTokenizer's defaults are");
        return TC_OK;
    }
    json_doc doc;
    code = json_open(path, &doc, err);
    if (!code) code = import_config(&doc, path, import, vocab_size, notes, err);
    json_close(&doc);
    free(path);
    return code;
}

/* ---- the whole ---- */

static int import_missing(const char *dir, tc_error *err) {
    return tc__fail(err, TC_ERR_UNSUPPORTED,
                    "%s: neither tokenizer.model nor tokenizer.json in this folder; add the "
                    "model's, or convert with --no-tokenizer for use with token ids",
                    dir);
}

static void import_meta(tokenizer_metas *m, const char *key, uint32_t type, size_t count,
                        const void *value, size_t size) {
    m->metas[m->count++] = (tc__meta){key, strlen(key), type, count, value, size};
}

static void import_meta_text(tokenizer_metas *m, const char *key, const char *text, size_t len) {
    import_meta(m, key, TC__META_BYTES, len, text, len);
}

void tokenizer_import_metas(const tokenizer_import *import, tokenizer_metas *m) {
    const struct {
        const char *key;
        int64_t value; /* -1: none */
    } numbers[] = {
        {"tokenizer.unk_id", import->unk_id},
        {"tokenizer.bos_id", import->bos_id},
        {"tokenizer.eos_id", import->eos_id},
        {"tokenizer.add_bos", import->add_bos},
        {"tokenizer.dummy_prefix", import->dummy_prefix},
        {"tokenizer.legacy", import->legacy},
        {"tokenizer.nfc", import->nfc ? 1 : -1},
        {"tokenizer.ignore_merges", import->ignore_merges ? 1 : -1},
        {"tokenizer.single_prefix", import->single_prefix ? 1 : -1},
    };
    const char *alphabet = import->bytes ? "bytes" : "characters";
    const char *split = tc__split_name(import->split);
    m->count = 0;
    import_meta_text(m, "tokenizer.type", import->has_merges ? "bpe" : "spm-bpe",
                     import->has_merges ? 3 : 7);
    import_meta(m, "tokenizer.pieces", TC__META_STRINGS, import->count, import->pieces.data,
                import->pieces.len);
    if (import->has_merges) {
        import_meta_text(m, "tokenizer.alphabet", alphabet, strlen(alphabet));
        import_meta_text(m, "tokenizer.split", split, strlen(split));
        import_meta(m, "tokenizer.merges", TC__META_U32, 3 * (size_t)import->merge_count,
                    import->merges.data, import->merges.len);
    } else {
        import_meta(m, "tokenizer.scores", TC__META_F32, import->count, import->scores.data,
                    import->scores.len);
    }
    import_meta_text(m, "tokenizer.types", import->types.data, import->types.len);
    for (size_t i = 0; i < TC_COUNT(numbers); i++) {
        m->numbers[i] = (uint32_t)numbers[i].value;
        if (numbers[i].value >= 0)
            import_meta(m, numbers[i].key, TC__META_U32, 1, &m->numbers[i], sizeof m->numbers[i]);
    }
    import_meta_text(m, "tokenizer.unk_surface", import->unk_surface.data, import->unk_surface.len);
    if (!import->added_count) return;
    import_meta(m, "tokenizer.added_ids", TC__META_U32, import->added_count, import->added_ids.data,
                import->added_ids.len);
    import_meta(m, "tokenizer.added_pieces", TC__META_STRINGS, import->added_count,
                import->added.data, import->added.len);
    if (import->has_merges)
        import_meta(m, "tokenizer.added_flags", TC__META_BYTES, import->added_count,
                    import->added_flags.data, import->added_flags.len);
}

int tokenizer_import_open(const tokenizer_import *import, uint32_t vocab_size,
                          tc__tokenizer **tokenizer, tc_error *err) {
    tokenizer_metas metas;
    tc__model_file file;
    memset(&file, 0, sizeof file);
    tokenizer_import_metas(import, &metas);
    file.metas = metas.metas;
    file.meta_count = metas.count;
    return tc__tokenizer_open(&file, vocab_size, tokenizer, err);
}

/* Whether the engine will take it: better said now than when the model file is opened. */
static int import_try(const char *path, const tokenizer_import *import, uint32_t vocab_size,
                      tc_error *err) {
    tc__tokenizer *tokenizer;
    tc_error why;
    int code = tokenizer_import_open(import, vocab_size, &tokenizer, &why);
    tc__tokenizer_close(tokenizer);
    return code ? tc__fail(err, code, "%s: %s", path, why.message) : TC_OK;
}

/* tokenizer.model and how many pieces it may have. */
static int import_sentencepiece(const char *path, uint32_t vocab_size, tokenizer_import *import,
                                tc_error *err) {
    int code = import_read_model(path, import, err);
    if (!code && import->count > vocab_size)
        code = tc__fail(err, TC_ERR_FORMAT,
                        "%s: %u pieces, but the model has %u embeddings; is it another model's "
                        "tokenizer?",
                        path, (unsigned)import->count, (unsigned)vocab_size);
    return code;
}

/* The list of ids that tiktoken writes under the same name, beside a tokenizer.json. */
static bool import_is_tiktoken(const char *path) {
    tc__map map;
    if (tc__map_open(path, &map, NULL)) return false;
    bool found = map.size > 5 && !memcmp(map.data, "IQ== ", 5);
    tc__map_close(&map);
    return found;
}

int tokenizer_import_read(const char *dir, uint32_t vocab_size, tokenizer_import *import,
                          tc__buf *notes, tc_error *err) {
    memset(import, 0, sizeof *import);
    char *model = hf_path(dir, "tokenizer.model"), *json = hf_path(dir, "tokenizer.json");
    bool use_json = json && (!model || import_is_tiktoken(model));
    const char *path = use_json ? json : model;
    int code = !path      ? import_missing(dir, err)
               : use_json ? tokenizer_json_read(path, vocab_size, import, notes, err)
                          : import_sentencepiece(path, vocab_size, import, err);
    if (!code) code = import_read_config(dir, import, vocab_size, notes, err);
    if (!code && import->add_bos && import->bos_id < 0)
        code = tc__fail(err, TC_ERR_FORMAT, "%s: add_bos_token, but there is no BOS token", path);
    if (!code && (import->added.failed || import->added_ids.failed || import->added_flags.failed ||
                  import->unk_surface.failed))
        code = tc__fail_memory(err, "the added tokens", import->added.len);
    if (!code) code = import_try(path, import, vocab_size, err);
    free(model);
    free(json);
    if (code) tokenizer_import_free(import);
    return code;
}

void tokenizer_import_free(tokenizer_import *import) {
    tc__buf_free(&import->pieces);
    tc__buf_free(&import->scores);
    tc__buf_free(&import->types);
    tc__buf_free(&import->added);
    tc__buf_free(&import->added_ids);
    tc__buf_free(&import->added_flags);
    tc__buf_free(&import->merges);
    tc__buf_free(&import->unk_surface);
}

void tokenizer_import_write(const tokenizer_import *import, writer *w) {
    if (!import) {
        writer_text(w, "tokenizer.type", "none", 4);
        return;
    }
    tokenizer_metas metas;
    tokenizer_import_metas(import, &metas);
    for (size_t i = 0; i < metas.count; i++) writer_meta(w, &metas.metas[i]);
}
