/* tokenizer - SentencePiece BPE, see tokenizer.h. The order of work below: tables, opening, the
 * encoder of one run, spans and special pieces, decoding. */
#include "tokenizer.h"

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
