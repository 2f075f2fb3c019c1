/* unicode - see unicode.h. */
#include "unicode.h"

#include "unicode_tables.h"

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
