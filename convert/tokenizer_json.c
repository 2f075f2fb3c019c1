#include "tokenizer_json.h"

#include "json.h"
#include "src/split.h"
#include "src/unicode.h"
#include "src/vocabulary.h"

#define JSON_SPACE "\xE2\x96\x81" /* U+2581 */

typedef struct bpe_reader {
    const char *path;
    json_doc doc;
    tokenizer_import *import;
    uint32_t vocab_size;
    bool has_alphabet; /* import->bytes is known */
    tc__buf *notes;
    tc_error *err;
    tc__buf texts;   /* the pieces as the file writes them, NUL between them */
    size_t *offsets; /* [import->count] into texts; SIZE_MAX: no piece */
    uint32_t *slots; /* 1 + id by the text's hash; open addressing */
    uint32_t slot_mask;
} bpe_reader;

static int bpe_refuse(bpe_reader *r, const char *part, const char *what) {
    return tc__fail(r->err, TC_ERR_UNSUPPORTED,
                    "%s: the %s '%.200s' is not supported; supported: the tokenizers of MPT, "
                    "Falcon, LLaMA-2 and 3, Mistral, Qwen 2 and 3 (--no-tokenizer converts for use "
                    "with token ids)",
                    r->path, part, what);
}

static int bpe_damaged(bpe_reader *r, const char *what) {
    return tc__fail(r->err, TC_ERR_FORMAT, "%s: %s", r->path, what);
}

static const json_value *bpe_get(const bpe_reader *r, const json_value *object, const char *key) {
    return json_get(&r->doc, object, key);
}

static bool bpe_is(const bpe_reader *r, const json_value *object, const char *key,
                   const char *text) {
    return json_is(&r->doc, bpe_get(r, object, key), text);
}

static bool bpe_flag(const bpe_reader *r, const json_value *object, const char *key,
                     bool fallback) {
    bool value = fallback;
    json_bool(bpe_get(r, object, key), &value);
    return value;
}

/* Refuses a part by its "type". */
static int bpe_refuse_type(bpe_reader *r, const char *part, const json_value *value) {
    tc__buf name = {0};
    json_string(&r->doc, bpe_get(r, value, "type"), &name);
    int code = bpe_refuse(r, part, name.len ? name.data : "without a type");
    tc__buf_free(&name);
    return code;
}

/* Calls `each` for the members of a Sequence, or for the part itself; null is no part. */
static int bpe_each(bpe_reader *r, const json_value *part, const char *list,
                    int (*each)(bpe_reader *r, const json_value *part)) {
    if (json_type(part) == JSON_MISSING || json_type(part) == JSON_NULL) return TC_OK;
    if (!bpe_is(r, part, "type", "Sequence")) return each(r, part);
    const json_value *members = bpe_get(r, part, list);
    int code = TC_OK;
    for (const json_value *item = json_first(members); item && !code;
         item = json_next(members, item))
        code = each(r, item);
    return code;
}

static int bpe_set_alphabet(bpe_reader *r, bool bytes) {
    if (r->has_alphabet && r->import->bytes != bytes)
        return bpe_damaged(r, "mixes ByteLevel with U+2581 for spaces");
    r->has_alphabet = true;
    r->import->bytes = bytes;
    return TC_OK;
}

/* ---- normalizer ---- */

static int bpe_normalizer(bpe_reader *r, const json_value *part) {
    if (bpe_is(r, part, "type", "NFC")) {
        r->import->nfc = true;
        return TC_OK;
    }
    if (bpe_is(r, part, "type", "Prepend") && bpe_is(r, part, "prepend", JSON_SPACE)) {
        r->import->dummy_prefix = r->import->legacy = true;
        return bpe_set_alphabet(r, false);
    }
    if (bpe_is(r, part, "type", "Replace") && bpe_is(r, part, "content", JSON_SPACE) &&
        json_is(&r->doc, bpe_get(r, bpe_get(r, part, "pattern"), "String"), " "))
        return bpe_set_alphabet(r, false);
    return bpe_refuse_type(r, "normalizer", part);
}

/* ---- pre-tokenizer ---- */

#define BPE_CONTRACTIONS "'s|'t|'re|'ve|'m|'ll|'d"
#define BPE_TAIL "| ?[^\\s\\p{L}\\p{N}]+[\\r\\n]*|\\s*[\\r\\n]+|\\s+(?!\\S)|\\s+"

static int bpe_split(bpe_reader *r, const json_value *part) {
    static const struct {
        const char *expression;
        int split;
    } known[] = {
        {BPE_CONTRACTIONS "| ?\\p{L}+| ?\\p{N}+| ?[^\\s\\p{L}\\p{N}]+|\\s+(?!\\S)|\\s+",
         TC__SPLIT_GPT2},
        {"(?i:" BPE_CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}{1,3}" BPE_TAIL,
         TC__SPLIT_LLAMA3},
        {"(?i:" BPE_CONTRACTIONS ")|[^\\r\\n\\p{L}\\p{N}]?\\p{L}+|\\p{N}" BPE_TAIL,
         TC__SPLIT_QWEN2},
    };
    const json_value *regex = bpe_get(r, bpe_get(r, part, "pattern"), "Regex");
    bool invert = bpe_flag(r, part, "invert", false);
    tc__buf text = {0};
    /* the expressions match everything: keeping the matches alone is the same */
    bool isolated = bpe_is(r, part, "behavior", invert ? "Removed" : "Isolated");
    for (size_t i = 0; i < TC_COUNT(known) && isolated; i++)
        if (json_is(&r->doc, regex, known[i].expression)) {
            r->import->split = known[i].split;
            return TC_OK;
        }
    json_string(&r->doc, regex, &text);
    int code = bpe_refuse(r, isolated ? "pre-tokenizer with the expression" : "pre-tokenizer",
                          isolated && text.len ? text.data : "Split");
    tc__buf_free(&text);
    return code;
}

/* ByteLevel writes bytes as characters and, unless told not to, cuts as GPT-2 does before. */
static int bpe_byte_level(bpe_reader *r, const json_value *part) {
    if (bpe_flag(r, part, "add_prefix_space", true))
        return bpe_refuse(r, "pre-tokenizer", "ByteLevel with add_prefix_space");
    if (bpe_flag(r, part, "use_regex", true)) {
        if (r->import->split != TC__SPLIT_NONE)
            return bpe_refuse(r, "pre-tokenizer", "ByteLevel with use_regex behind a Split");
        r->import->split = TC__SPLIT_GPT2;
    }
    return bpe_set_alphabet(r, true);
}

static int bpe_metaspace(bpe_reader *r, const json_value *part) {
    tokenizer_import *import = r->import;
    bool old_prefix = bpe_flag(r, part, "add_prefix_space", true); /* before prepend_scheme */
    bool always = bpe_is(r, part, "prepend_scheme", "always");
    bool never = bpe_is(r, part, "prepend_scheme", "never");
    bool given = json_type(bpe_get(r, part, "prepend_scheme")) == JSON_STRING;
    if (!bpe_is(r, part, "replacement", JSON_SPACE))
        return bpe_refuse(r, "pre-tokenizer", "Metaspace with another character");
    if (bpe_flag(r, part, "split", true))
        return bpe_refuse(r, "pre-tokenizer", "Metaspace that splits");
    import->dummy_prefix = given ? !never : old_prefix;
    import->legacy = given ? always : old_prefix; /* a prefix for each run between special tokens */
    import->single_prefix = true;
    return bpe_set_alphabet(r, false);
}

static int bpe_pre_tokenizer(bpe_reader *r, const json_value *part) {
    if (bpe_is(r, part, "type", "Split")) return bpe_split(r, part);
    if (bpe_is(r, part, "type", "ByteLevel")) return bpe_byte_level(r, part);
    if (bpe_is(r, part, "type", "Metaspace")) return bpe_metaspace(r, part);
    return bpe_refuse_type(r, "pre-tokenizer", part);
}

/* Punctuation(Contiguous), ByteLevel, Digits(not individual), Split([0-9][0-9][0-9], Isolated). */
static bool bpe_is_falcon(const bpe_reader *r, const json_value *part) {
    const json_value *list = bpe_get(r, part, "pretokenizers"), *items[4];
    if (json_count(list) != 4) return false;
    items[0] = json_first(list);
    for (int i = 1; i < 4; i++) items[i] = json_next(list, items[i - 1]);
    return bpe_is(r, items[0], "type", "Punctuation") &&
           bpe_is(r, items[0], "behavior", "Contiguous") &&
           bpe_is(r, items[1], "type", "ByteLevel") &&
           !bpe_flag(r, items[1], "add_prefix_space", true) &&
           bpe_flag(r, items[1], "use_regex", true) && bpe_is(r, items[2], "type", "Digits") &&
           !bpe_flag(r, items[2], "individual_digits", false) &&
           bpe_is(r, items[3], "type", "Split") && bpe_is(r, items[3], "behavior", "Isolated") &&
           !bpe_flag(r, items[3], "invert", false) &&
           json_is(&r->doc, bpe_get(r, bpe_get(r, items[3], "pattern"), "Regex"),
                   "[0-9][0-9][0-9]");
}

/* ---- post-processor and decoder ---- */

/* What a TemplateProcessing puts before a text is its BOS. */
static int bpe_template(bpe_reader *r, const json_value *part) {
    const json_value *single = bpe_get(r, part, "single");
    bool behind = false;
    tc__buf name = {0};
    int code = TC_OK;
    for (const json_value *item = json_first(single); item && !code;
         item = json_next(single, item)) {
        const json_value *special = bpe_get(r, item, "SpecialToken");
        if (json_type(special) == JSON_MISSING) {
            behind = true;
            continue;
        }
        name.len = 0;
        json_string(&r->doc, bpe_get(r, special, "id"), &name);
        if (name.failed) {
            code = tc__fail_memory(r->err, "a special token", name.len);
            break;
        }
        const json_value *tokens = bpe_get(r, part, "special_tokens");
        const json_value *ids = bpe_get(r, bpe_get(r, tokens, name.len ? name.data : ""), "ids");
        if (behind) {
            tc__buf_printf(r->notes,
                           "%s: '%.80s' behind a text is ignored: a chat template places it\n",
                           r->path, name.data ? name.data : "");
        } else if (r->import->add_bos || json_count(ids) != 1 ||
                   !json_int(&r->doc, json_first(ids), &r->import->bos_id)) {
            code = bpe_refuse(r, "post-processor", "TemplateProcessing with several first tokens");
        } else {
            r->import->add_bos = true;
        }
    }
    tc__buf_free(&name);
    return code;
}

static int bpe_post_processor(bpe_reader *r, const json_value *part) {
    if (bpe_is(r, part, "type", "ByteLevel")) return TC_OK; /* only moves offsets */
    if (bpe_is(r, part, "type", "TemplateProcessing")) return bpe_template(r, part);
    return bpe_refuse_type(r, "post-processor", part);
}

/* The decoders undo the alphabet: which ones it takes is clear, others would do something else. */
static int bpe_decoder(bpe_reader *r, const json_value *part) {
    static const char *const characters[] = {"Replace", "ByteFallback", "Fuse", "Strip",
                                             "Metaspace"};
    if (r->import->bytes && bpe_is(r, part, "type", "ByteLevel")) return TC_OK;
    for (size_t i = 0; i < TC_COUNT(characters) && !r->import->bytes; i++)
        if (bpe_is(r, part, "type", characters[i])) return TC_OK;
    return bpe_refuse_type(r, "decoder", part);
}

/* ---- vocabulary ---- */

static uint32_t bpe_hash(const char *text, size_t len) {
    return tc__crc32(0, text, len) * 0x9E3779B1u;
}

static const char *bpe_piece(const bpe_reader *r, uint32_t id) {
    return r->texts.data + r->offsets[id];
}

/* The place of a text in the table: of its id or of the gap where it belongs. */
static uint32_t *bpe_slot(const bpe_reader *r, const char *text, size_t len) {
    uint32_t i = bpe_hash(text, len) & r->slot_mask;
    for (; r->slots[i]; i = (i + 1) & r->slot_mask) {
        const char *piece = bpe_piece(r, r->slots[i] - 1);
        if (!strncmp(piece, text, len) && !piece[len]) break;
    }
    return &r->slots[i];
}

/* -1 if it is no piece. */
static int64_t bpe_find(const bpe_reader *r, const char *text, size_t len) {
    return (int64_t)*bpe_slot(r, text, len) - 1;
}

/* The number of pieces: one more than the highest id. */
static int bpe_count(bpe_reader *r, const json_value *vocab) {
    int64_t highest = -1;
    for (const json_value *item = json_first(vocab); item; item = json_next(vocab, item)) {
        int64_t id = -1;
        if (!json_int(&r->doc, json_member(item), &id) || id < 0)
            return bpe_damaged(r, "an id of the vocabulary is no number");
        if (id > highest) highest = id;
    }
    if (json_type(vocab) != JSON_OBJECT || highest < 0)
        return bpe_damaged(r, "model.vocab is not an object of ids");
    if (highest >= r->vocab_size)
        return tc__fail(r->err, TC_ERR_FORMAT,
                        "%s: %lld pieces, but the model has %u embeddings; is it another model's "
                        "tokenizer?",
                        r->path, (long long)highest + 1, (unsigned)r->vocab_size);
    r->import->count = (uint32_t)(highest + 1);
    return TC_OK;
}

static int bpe_read_vocab(bpe_reader *r, const json_value *vocab) {
    int code = bpe_count(r, vocab);
    if (code) return code;
    size_t n = r->import->count, slots = 16;
    while (slots < 2 * json_count(vocab)) slots *= 2;
    r->offsets = tc__calloc(n, sizeof *r->offsets);
    r->slots = tc__calloc(slots, sizeof *r->slots);
    r->slot_mask = (uint32_t)(slots - 1);
    if (!r->offsets || !r->slots) return tc__fail_memory(r->err, "the vocabulary", 8 * n);
    for (size_t i = 0; i < n; i++) r->offsets[i] = SIZE_MAX;
    for (const json_value *item = json_first(vocab); item; item = json_next(vocab, item)) {
        int64_t id = 0;
        size_t at = r->texts.len;
        json_int(&r->doc, json_member(item), &id);
        json_string(&r->doc, item, &r->texts);
        tc__buf_add(&r->texts, "", 1);
        if (r->texts.failed) return tc__fail_memory(r->err, "the vocabulary", r->texts.len);
        size_t len = r->texts.len - 1 - at;
        uint32_t *slot = bpe_slot(r, r->texts.data + at, len);
        if (r->offsets[id] != SIZE_MAX || *slot || strlen(r->texts.data + at) != len)
            return tc__fail(r->err, TC_ERR_FORMAT,
                            "%s: '%.80s' (id %lld) is twice in model.vocab, or its id is", r->path,
                            r->texts.data + at, (long long)id);
        r->offsets[id] = at;
        *slot = (uint32_t)id + 1;
    }
    return TC_OK;
}

/* The byte that byte-level BPE writes as this character: itself if it is printable and not in the
 * way, else one of the characters from U+0100 on. -1 for any other character. */
static int bpe_byte(uint32_t code) {
    static const struct { int first, last; } own[] = {{0x21, 0x7E}, {0xA1, 0xAC}, {0xAE, 0xFF}};
    for (size_t i = 0; i < TC_COUNT(own); i++)
        if (code >= (uint32_t)own[i].first && code <= (uint32_t)own[i].last) return (int)code;
    int left = (int)code - 0x100;
    for (int byte = 0; code >= 0x100 && code < 0x144 && byte < 256; byte++) {
        bool printable = false;
        for (size_t i = 0; i < TC_COUNT(own); i++)
            printable = printable || (byte >= own[i].first && byte <= own[i].last);
        if (!printable && left-- == 0) return byte;
    }
    return -1;
}

/* Appends the bytes that a piece stands for; false if it has a character that stands for none. */
static bool bpe_to_bytes(const int byte_of[0x144], const char *piece, tc__buf *out) {
    for (size_t i = 0, len = strlen(piece); i < len;) {
        uint32_t code;
        i += tc__utf8_decode(piece + i, len - i, &code);
        int byte = code < 0x144 ? byte_of[code] : -1;
        char c = (char)byte;
        if (byte < 0) return false;
        tc__buf_add(out, &c, 1);
    }
    return true;
}

/* A piece's type if it is one of characters. */
static uint8_t bpe_type(const bpe_reader *r, uint32_t id, bool byte_fallback) {
    const char *text = bpe_piece(r, id);
    tc__piece piece = {text, (uint32_t)strlen(text), 0, 0};
    if (id == r->import->unk_id) return TC__PIECE_UNKNOWN;
    return byte_fallback && tc__byte_value(&piece) >= 0 ? TC__PIECE_BYTE : TC__PIECE_NORMAL;
}

/* The pieces as the model file has them. */
static int bpe_write_pieces(bpe_reader *r, bool byte_fallback) {
    tokenizer_import *import = r->import;
    int byte_of[0x144];
    tc__buf bytes = {0};
    for (uint32_t code = 0; code < TC_COUNT(byte_of); code++) byte_of[code] = bpe_byte(code);
    for (uint32_t id = 0; id < import->count; id++) {
        const char *text = r->offsets[id] == SIZE_MAX ? "" : bpe_piece(r, id);
        uint8_t type = TC__PIECE_NORMAL;
        bytes.len = 0;
        if (!import->bytes)
            type = r->offsets[id] == SIZE_MAX ? type : bpe_type(r, id, byte_fallback);
        else if (bpe_to_bytes(byte_of, text, &bytes))
            text = bytes.data ? bytes.data : "";
        else
            type = TC__PIECE_UNUSED; /* decoding copies it as it is */
        bool mapped = import->bytes && type != TC__PIECE_UNUSED;
        writer_add_string(&import->pieces, text, mapped ? bytes.len : strlen(text));
        tc__buf_add(&import->types, &type, 1);
    }
    tc__buf_free(&bytes);
    return import->pieces.failed || import->types.failed
               ? tc__fail_memory(r->err, "the vocabulary", import->pieces.len)
               : TC_OK;
}

/* ---- merges ---- */

/* Both parts of a merge, "a b" or ["a", "b"], into text with a NUL behind each; the length of the
 * first, SIZE_MAX if it is neither. */
static size_t bpe_parts(const bpe_reader *r, const json_value *merge, tc__buf *text) {
    text->len = 0;
    if (json_type(merge) == JSON_ARRAY) {
        if (json_count(merge) != 2) return SIZE_MAX;
        const json_value *left = json_first(merge), *right = json_next(merge, left);
        size_t len = 0;
        if (!json_string(&r->doc, left, text)) return SIZE_MAX;
        len = text->len;
        tc__buf_add(text, "", 1);
        if (!json_string(&r->doc, right, text)) return SIZE_MAX;
        tc__buf_add(text, "", 1);
        return len;
    }
    if (!json_string(&r->doc, merge, text) || text->failed || !text->data) return SIZE_MAX;
    char *space = strchr(text->data, ' ');
    if (!space || strchr(space + 1, ' ')) return SIZE_MAX;
    *space = 0;
    tc__buf_add(text, "", 1);
    return (size_t)(space - text->data);
}

static int bpe_read_merges(bpe_reader *r, const json_value *merges) {
    tc__buf text = {0};
    int code = json_type(merges) == JSON_ARRAY ? TC_OK : bpe_damaged(r, "no list model.merges");
    for (const json_value *item = json_first(merges); item && !code;
         item = json_next(merges, item)) {
        size_t left = bpe_parts(r, item, &text);
        if (text.failed) {
            code = tc__fail_memory(r->err, "a merge", text.len);
        } else if (left == SIZE_MAX) {
            code = tc__fail(r->err, TC_ERR_FORMAT, "%s: merge %u is not a pair of pieces", r->path,
                            (unsigned)r->import->merge_count);
        } else {
            size_t right = text.len - 2 - left;
            int64_t ids[3] = {bpe_find(r, text.data, left),
                              bpe_find(r, text.data + left + 1, right), -1};
            memmove(text.data + left, text.data + left + 1, right + 1);
            ids[2] = bpe_find(r, text.data, left + right);
            uint32_t triple[3] = {(uint32_t)ids[0], (uint32_t)ids[1], (uint32_t)ids[2]};
            tc__buf_add(&r->import->merges, triple, sizeof triple);
            if (ids[0] < 0 || ids[1] < 0 || ids[2] < 0)
                code = tc__fail(r->err, TC_ERR_FORMAT,
                                "%s: merge %u to '%.80s' is not of pieces of the vocabulary",
                                r->path, (unsigned)r->import->merge_count, text.data);
        }
        r->import->merge_count++;
    }
    if (!code && r->import->merges.failed)
        code = tc__fail_memory(r->err, "the merges", r->import->merges.len);
    tc__buf_free(&text);
    return code;
}

/* ---- model ---- */

static int bpe_check_model(bpe_reader *r, const json_value *model) {
    static const char *const affixes[] = {"continuing_subword_prefix", "end_of_word_suffix"};
    double dropout = 0;
    if (!bpe_is(r, model, "type", "BPE") && json_type(bpe_get(r, model, "type")) != JSON_MISSING)
        return bpe_refuse_type(r, "model", model);
    if (json_double(&r->doc, bpe_get(r, model, "dropout"), &dropout) && dropout != 0)
        return bpe_refuse(r, "model", "BPE with dropout");
    for (size_t i = 0; i < TC_COUNT(affixes); i++) {
        const json_value *affix = bpe_get(r, model, affixes[i]);
        if (json_type(affix) == JSON_STRING && !json_is(&r->doc, affix, ""))
            return bpe_refuse(r, "model with", affixes[i]);
    }
    return TC_OK;
}

static int bpe_read_model(bpe_reader *r, const json_value *model) {
    tokenizer_import *import = r->import;
    bool byte_fallback = bpe_flag(r, model, "byte_fallback", false);
    tc__buf unk = {0};
    int code = bpe_check_model(r, model);
    if (!code) code = bpe_read_vocab(r, bpe_get(r, model, "vocab"));
    if (code) return code;
    import->ignore_merges = bpe_flag(r, model, "ignore_merges", false);
    if (json_string(&r->doc, bpe_get(r, model, "unk_token"), &unk) && unk.len)
        import->unk_id = bpe_find(r, unk.data, unk.len);
    tc__buf_add(&import->unk_surface, unk.data, unk.len);
    tc__buf_free(&unk);
    if (import->bytes && byte_fallback)
        return bpe_refuse(r, "model", "BPE over bytes with byte_fallback");
    if (import->unk_id >= 0 && !byte_fallback && !bpe_flag(r, model, "fuse_unk", false))
        return bpe_refuse(r, "model", "BPE with an unk_token that is not fused");
    if (!(code = bpe_write_pieces(r, byte_fallback)))
        code = bpe_read_merges(r, bpe_get(r, model, "merges"));
    return code;
}

/* ---- added tokens ---- */

/* A mark for the model, whatever the file says about it, is one that a person's text must not
 * become: <think>, <|im_start|>, [INST]. Other tokens that are not "special" are text: words, runs
 * of spaces. */
static bool bpe_is_mark(const tc__buf *text) {
    char first = text->data[0], last = text->data[text->len - 1];
    return (first == '<' && last == '>') || (first == '[' && last == ']');
}

uint8_t tokenizer_json_flags(const json_doc *doc, const json_value *token, const tc__buf *text) {
    static const struct {
        const char *key;
        uint8_t flag;
    } flags[] = {{"lstrip", TC__ADDED_LSTRIP},
                 {"rstrip", TC__ADDED_RSTRIP},
                 {"single_word", TC__ADDED_SINGLE_WORD},
                 {"normalized", TC__ADDED_NORMALIZED}};
    bool special = false;
    uint8_t found = 0;
    json_bool(json_get(doc, token, "special"), &special);
    if (!special) found |= TC__ADDED_SHOWN;
    if (!special && !bpe_is_mark(text)) found |= TC__ADDED_TEXT;
    for (size_t i = 0; i < TC_COUNT(flags); i++) {
        bool set = false;
        if (json_bool(json_get(doc, token, flags[i].key), &set) && set) found |= flags[i].flag;
    }
    if (!(found & TC__ADDED_TEXT)) found &= (uint8_t)~TC__ADDED_NORMALIZED;
    return found;
}

static int bpe_read_added(bpe_reader *r, const json_value *tokens) {
    tc__buf text = {0}, normalized = {0};
    int code = TC_OK;
    for (const json_value *token = json_first(tokens); token && !code;
         token = json_next(tokens, token)) {
        int64_t id = -1;
        text.len = normalized.len = 0;
        json_string(&r->doc, bpe_get(r, token, "content"), &text);
        if (text.failed) {
            code = tc__fail_memory(r->err, "an added token", text.len);
            break;
        }
        if (!json_int(&r->doc, bpe_get(r, token, "id"), &id) || !text.len) {
            code = bpe_damaged(r, "an added token without id or content");
            break;
        }
        uint8_t flags = tokenizer_json_flags(&r->doc, token, &text);
        if (!r->import->bytes) flags &= (uint8_t)~TC__ADDED_NORMALIZED;
        bool composed = (flags & TC__ADDED_NORMALIZED) && r->import->nfc;
        if (composed) tc__nfc(text.data, text.len, &normalized);
        code = tokenizer_import_add(r->import, r->vocab_size, id, composed ? &normalized : &text,
                                    flags, r->notes, r->err);
    }
    tc__buf_free(&text);
    tc__buf_free(&normalized);
    return code;
}

/* ---- the whole ---- */

static int bpe_read(bpe_reader *r) {
    const json_value *root = json_root(&r->doc);
    const json_value *pre = bpe_get(r, root, "pre_tokenizer");
    int code = bpe_each(r, bpe_get(r, root, "normalizer"), "normalizers", bpe_normalizer);
    if (!code && bpe_is_falcon(r, pre)) {
        r->import->split = TC__SPLIT_FALCON;
        code = bpe_set_alphabet(r, true);
    } else if (!code) {
        code = bpe_each(r, pre, "pretokenizers", bpe_pre_tokenizer);
    }
    if (!code && !r->has_alphabet)
        code = bpe_refuse(r, "pre-tokenizer", "(none that is ByteLevel or Metaspace)");
    if (!code && !r->import->bytes && r->import->nfc) code = bpe_refuse(r, "normalizer", "NFC");
    if (!code)
        code = bpe_each(r, bpe_get(r, root, "post_processor"), "processors", bpe_post_processor);
    if (!code) code = bpe_each(r, bpe_get(r, root, "decoder"), "decoders", bpe_decoder);
    if (!code) code = bpe_read_model(r, bpe_get(r, root, "model"));
    if (!code) code = bpe_read_added(r, bpe_get(r, root, "added_tokens"));
    return code;
}

/* With r->doc open, which is closed. */
static int bpe_import(bpe_reader *r) {
    r->import->has_merges = true;
    r->import->unk_id = r->import->bos_id = r->import->eos_id = -1;
    int code = bpe_read(r);
    tc__buf_free(&r->texts);
    free(r->offsets);
    free(r->slots);
    json_close(&r->doc);
    return code;
}

int tokenizer_json_read(const char *path, uint32_t vocab_size, tokenizer_import *import,
                        tc__buf *notes, tc_error *err) {
    bpe_reader r = {
        .path = path, .import = import, .vocab_size = vocab_size, .notes = notes, .err = err};
    int code = json_open(path, &r.doc, err);
    return code ? code : bpe_import(&r);
}

int tokenizer_json_parse(const char *file, const char *text, size_t len, uint32_t vocab_size,
                         tokenizer_import *import, tc__buf *notes, tc_error *err) {
    bpe_reader r = {
        .path = file, .import = import, .vocab_size = vocab_size, .notes = notes, .err = err};
    int code = json_parse(file, text, len, &r.doc, err);
    return code ? code : bpe_import(&r);
}
