/* vocabulary - see vocabulary.h. In order: look-ups, reading the metadata, indexing, opening. */
#include "vocabulary.h"

#include "split.h"

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
