/* split - see split.h. The expressions below are those of the families' tokenizer.json. */
#include "split.h"

#include "unicode.h"

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
