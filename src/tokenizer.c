/* tokenizer - see tokenizer.h. The order of work below: normalising a run, its symbols, merging
 * them, words, added tokens, spans, decoding. */
#include "tokenizer.h"

#include "split.h"
#include "unicode.h"
#include "vocabulary.h"

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
