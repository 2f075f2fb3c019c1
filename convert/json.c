#include "src/base.h"

#include "json.h"

#include <locale.h>
#include <math.h>

#define JSON_MAX_NUMBER 400 /* characters of a number; the longest useful double has under 350 */

typedef struct json_parser {
    const char *file;
    const char *text;
    size_t len, at;
    json_doc *doc;
    size_t cap;
    uint32_t open[JSON_MAX_DEPTH]; /* indices of the containers around `at` */
    int depth;
    tc_error *err;
} json_parser;

static int json_fail(json_parser *p, const char *what) {
    size_t line = 1, column = 1;
    for (size_t i = 0; i < p->at && i < p->len; i++) {
        column++;
        if (p->text[i] == '\n') line++, column = 1;
    }
    return tc__fail(p->err, TC_ERR_FORMAT, "%s: not valid JSON at line %zu, column %zu: %s",
                    p->file, line, column, what);
}

/* Appends a value that begins at `start`; its `span` is right for scalars. */
static int json_add(json_parser *p, json_kind kind, size_t start, size_t length) {
    json_doc *doc = p->doc;
    if (doc->count == p->cap) {
        size_t cap = p->cap ? 2 * p->cap : 64;
        if (cap > JSON_MAX_VALUES)
            return tc__fail(p->err, TC_ERR_UNSUPPORTED, "%s: JSON with more than %u values",
                            p->file, JSON_MAX_VALUES);
        json_value *values = realloc(doc->values, cap * sizeof *values);
        if (!values) return tc__fail_memory(p->err, p->file, cap * sizeof *values);
        doc->values = values;
        p->cap = cap;
    }
    json_value value = {(uint32_t)start, (uint32_t)length, 1, (uint8_t)kind, 0};
    doc->values[doc->count++] = value;
    return TC_OK;
}

static void json_space(json_parser *p) {
    while (p->at < p->len && memchr(" \t\n\r", p->text[p->at], 4)) p->at++;
}

/* The character at the cursor, 0 at the end (a NUL in the text fits nowhere either). */
static char json_peek(const json_parser *p) {
    return p->at < p->len ? p->text[p->at] : 0;
}

static int json_hex4(const char *s, uint32_t *value) {
    *value = 0;
    for (int i = 0; i < 4; i++) {
        char c = s[i];
        uint32_t digit = c >= '0' && c <= '9'   ? (uint32_t)(c - '0')
                         : c >= 'a' && c <= 'f' ? (uint32_t)(c - 'a' + 10)
                         : c >= 'A' && c <= 'F' ? (uint32_t)(c - 'A' + 10)
                                                : 16;
        if (digit == 16) return 0;
        *value = *value << 4 | digit;
    }
    return 1;
}

/* Decodes the escape at s (a backslash). Returns the bytes it takes, 0 if it is malformed. */
static size_t json_escape(const char *s, size_t len, uint32_t *code) {
    static const char names[] = "\"\\/bfnrt", codes[] = "\"\\/\b\f\n\r\t";
    uint32_t low;
    if (len < 2 || !s[1]) return 0;
    const char *name = strchr(names, s[1]);
    if (name) {
        *code = (uint8_t)codes[name - names];
        return 2;
    }
    if (s[1] != 'u' || len < 6 || !json_hex4(s + 2, code)) return 0;
    if (*code < 0xD800 || *code > 0xDFFF) return 6;
    if (*code > 0xDBFF || len < 12 || s[6] != '\\' || s[7] != 'u' || !json_hex4(s + 8, &low) ||
        low < 0xDC00 || low > 0xDFFF)
        return 0;
    *code = 0x10000 + ((*code - 0xD800) << 10) + (low - 0xDC00);
    return 12;
}

/* At a quote: checks the string and adds it. */
static int json_scan_string(json_parser *p) {
    size_t start = ++p->at;
    bool escaped = false;
    while (p->at < p->len && p->text[p->at] != '"') {
        uint32_t code;
        size_t left = p->len - p->at, used;
        unsigned char c = (unsigned char)p->text[p->at];
        if (c < 0x20) return json_fail(p, "a control character in a string");
        if (c == '\\') {
            escaped = true;
            used = json_escape(p->text + p->at, left, &code);
            if (!used) return json_fail(p, "a malformed escape");
        } else if (c < 0x80) {
            used = 1;
        } else {
            used = tc__utf8_decode(p->text + p->at, left, &code);
            if (code == UINT32_MAX) return json_fail(p, "a string that is not valid UTF-8");
        }
        p->at += used;
    }
    if (p->at == p->len) return json_fail(p, "the text ends inside a string");
    int code = json_add(p, JSON_STRING, start, p->at - start);
    if (code) return code;
    p->doc->values[p->doc->count - 1].escaped = escaped;
    p->at++;
    return TC_OK;
}

static size_t json_digits(json_parser *p) {
    size_t start = p->at;
    while (json_peek(p) >= '0' && json_peek(p) <= '9') p->at++;
    return p->at - start;
}

static int json_scan_number(json_parser *p) {
    size_t start = p->at;
    if (json_peek(p) == '-') p->at++;
    bool zero = json_peek(p) == '0';
    size_t digits = json_digits(p);
    if (digits == 0) return json_fail(p, "expected a value");
    if (zero && digits > 1) return json_fail(p, "a number with a leading zero");
    if (json_peek(p) == '.') {
        p->at++;
        if (!json_digits(p)) return json_fail(p, "a number without digits after its point");
    }
    if (json_peek(p) == 'e' || json_peek(p) == 'E') {
        p->at++;
        if (json_peek(p) == '+' || json_peek(p) == '-') p->at++;
        if (!json_digits(p)) return json_fail(p, "a number without digits in its exponent");
    }
    if (p->at - start > JSON_MAX_NUMBER) return json_fail(p, "a number of too many digits");
    return json_add(p, JSON_NUMBER, start, p->at - start);
}

static int json_scan_word(json_parser *p) {
    static const struct {
        const char *text;
        json_kind kind;
        uint32_t length;
    } words[] = {{"null", JSON_NULL, 0}, {"true", JSON_BOOL, 1}, {"false", JSON_BOOL, 0}};
    for (size_t i = 0; i < TC_COUNT(words); i++) {
        size_t len = strlen(words[i].text);
        if (p->len - p->at < len || memcmp(p->text + p->at, words[i].text, len)) continue;
        p->at += len;
        return json_add(p, words[i].kind, p->at - len, words[i].length);
    }
    return json_fail(p, "expected a value");
}

/* At the beginning of a value: a scalar is read whole, of a container only the bracket. */
static int json_scan_value(json_parser *p, bool *opened) {
    char c = json_peek(p);
    *opened = c == '{' || c == '[';
    if (c == '"') return json_scan_string(p);
    if (c == '-' || (c >= '0' && c <= '9')) return json_scan_number(p);
    if (!*opened) return json_scan_word(p);
    if (p->depth == JSON_MAX_DEPTH)
        return tc__fail(p->err, TC_ERR_UNSUPPORTED, "%s: JSON nested deeper than %d", p->file,
                        JSON_MAX_DEPTH);
    int code = json_add(p, c == '{' ? JSON_OBJECT : JSON_ARRAY, p->at, 0);
    if (code) return code;
    p->open[p->depth++] = (uint32_t)p->doc->count - 1;
    p->at++;
    return TC_OK;
}

static json_value *json_container(json_parser *p) {
    return &p->doc->values[p->open[p->depth - 1]];
}

/* In an object: the key and the colon of the next member. */
static int json_scan_key(json_parser *p) {
    json_space(p);
    if (json_peek(p) != '"') return json_fail(p, "expected a key in double quotes");
    int code = json_scan_string(p);
    if (code) return code;
    json_space(p);
    if (json_peek(p) != ':') return json_fail(p, "expected a colon after a key");
    p->at++;
    return TC_OK;
}

/* After a bracket that opened a container (`first`) or after a complete value: reads what comes
 * before the next value, closing containers on the way. *more is false at the end of the text. */
static int json_scan_between(json_parser *p, bool first, bool *more) {
    for (; *more = p->depth > 0, *more; first = false) {
        json_value *container = json_container(p);
        bool object = container->kind == JSON_OBJECT;
        json_space(p);
        char c = json_peek(p);
        if (c == (object ? '}' : ']')) {
            if (!first) container->length++;
            container->span = (uint32_t)(p->doc->values + p->doc->count - container);
            p->depth--;
            p->at++;
            continue;
        }
        if (!first) {
            if (c != ',') return json_fail(p, "expected a comma or a closing bracket");
            container->length++;
            p->at++;
        }
        return object ? json_scan_key(p) : TC_OK;
    }
    json_space(p);
    return p->at < p->len ? json_fail(p, "text after the end of the value") : TC_OK;
}

int json_parse(const char *file, const char *text, size_t len, json_doc *doc, tc_error *err) {
    memset(doc, 0, sizeof *doc);
    doc->text = text;
    json_parser parser = {.file = file, .text = text, .len = len, .doc = doc, .err = err};
    if (len > UINT32_MAX)
        return tc__fail(err, TC_ERR_UNSUPPORTED, "%s: JSON of more than 4 GB", file);
    int code = TC_OK;
    for (bool more = true, opened; more && !code;) {
        json_space(&parser);
        code = json_scan_value(&parser, &opened);
        if (!code) code = json_scan_between(&parser, opened, &more);
    }
    if (code) json_close(doc);
    return code ? code : tc__ok(err);
}

int json_open(const char *path, json_doc *doc, tc_error *err) {
    memset(doc, 0, sizeof *doc);
    tc__map map;
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    if (map.size > strlen(LFS_START) && !memcmp(map.data, LFS_START, strlen(LFS_START)))
        code = tc__fail(err, TC_ERR_UNSUPPORTED, "%s: " LFS_POINTER, path);
    else
        code = json_parse(path, map.data ? (const char *)map.data : "", map.size, doc, err);
    if (code)
        tc__map_close(&map);
    else
        doc->map = map;
    return code;
}

void json_close(json_doc *doc) {
    free(doc->values);
    tc__map_close(&doc->map);
    memset(doc, 0, sizeof *doc);
}

const json_value *json_root(const json_doc *doc) {
    return doc->values;
}

json_kind json_type(const json_value *value) {
    return value ? (json_kind)value->kind : JSON_MISSING;
}

size_t json_count(const json_value *value) {
    return json_type(value) >= JSON_ARRAY ? value->length : 0;
}

const json_value *json_first(const json_value *container) {
    return json_count(container) ? container + 1 : NULL;
}

const json_value *json_next(const json_value *container, const json_value *item) {
    item += container->kind == JSON_OBJECT ? 1 + item[1].span : item->span;
    return item < container + container->span ? item : NULL;
}

const json_value *json_member(const json_value *key) {
    return key ? key + 1 : NULL;
}

const json_value *json_get(const json_doc *doc, const json_value *object, const char *key) {
    const json_value *found = NULL;
    if (json_type(object) != JSON_OBJECT) return NULL;
    for (const json_value *k = json_first(object); k; k = json_next(object, k))
        if (json_is(doc, k, key)) found = json_member(k);
    return found;
}

/* The next piece of a string at *at: a run of plain bytes or one decoded escape (in `decoded`). */
static const char *json_piece(const char *s, size_t len, size_t *at, char decoded[4], size_t *n) {
    uint32_t code = 0;
    const char *run = s + *at;
    if (*run == '\\') {
        *at += json_escape(run, len - *at, &code);
        *n = tc__utf8_encode(code, decoded);
        return decoded;
    }
    const char *slash = memchr(run, '\\', len - *at);
    *n = slash ? (size_t)(slash - run) : len - *at;
    *at += *n;
    return run;
}

bool json_is(const json_doc *doc, const json_value *value, const char *text) {
    if (json_type(value) != JSON_STRING) return false;
    const char *s = doc->text + value->start;
    size_t len = strlen(text), at = 0, n;
    char decoded[4];
    if (!value->escaped) return len == value->length && !memcmp(s, text, len);
    while (at < value->length) {
        const char *piece = json_piece(s, value->length, &at, decoded, &n);
        if (n > len || memcmp(piece, text, n)) return false;
        text += n;
        len -= n;
    }
    return len == 0;
}

bool json_string(const json_doc *doc, const json_value *value, tc__buf *out) {
    if (json_type(value) != JSON_STRING) return false;
    size_t at = 0, n;
    char decoded[4];
    tc__buf_add(out, "", 0); /* so that data is a string even if this one is empty */
    while (at < value->length) {
        const char *piece = json_piece(doc->text + value->start, value->length, &at, decoded, &n);
        tc__buf_add(out, piece, n);
    }
    return true;
}

bool json_int(const json_doc *doc, const json_value *value, int64_t *out) {
    if (json_type(value) != JSON_NUMBER) return false;
    const char *s = doc->text + value->start;
    bool negative = *s == '-';
    uint64_t limit = (uint64_t)INT64_MAX + negative, magnitude = 0;
    for (uint32_t i = negative; i < value->length; i++) {
        if (s[i] < '0' || s[i] > '9') return false;
        uint64_t digit = (uint64_t)(s[i] - '0');
        if (magnitude > (limit - digit) / 10) return false;
        magnitude = 10 * magnitude + digit;
    }
    *out = !negative ? (int64_t)magnitude : magnitude ? -(int64_t)(magnitude - 1) - 1 : 0;
    return true;
}

bool json_double(const json_doc *doc, const json_value *value, double *out) {
    if (json_type(value) != JSON_NUMBER) return false;
    /* strtod expects the decimal point of the locale, which may be several bytes long. */
    char text[JSON_MAX_NUMBER + 32];
    const char *s = doc->text + value->start, *point = localeconv()->decimal_point;
    size_t n = 0, point_len = strlen(point);
    if (point_len > 16) return false;
    for (uint32_t i = 0; i < value->length; i++) {
        if (s[i] == '.') {
            memcpy(text + n, point, point_len);
            n += point_len;
        } else {
            text[n++] = s[i];
        }
    }
    text[n] = 0;
    double number = strtod(text, NULL);
    if (!isfinite(number)) return false;
    *out = number;
    return true;
}

bool json_bool(const json_value *value, bool *out) {
    if (json_type(value) != JSON_BOOL) return false;
    *out = value->length == 1;
    return true;
}

void json_show(const json_doc *doc, const json_value *value, char *out, size_t size) {
    static const char *const words[] = {[JSON_MISSING] = "missing",
                                        [JSON_NULL] = "null",
                                        [JSON_ARRAY] = "a list",
                                        [JSON_OBJECT] = "an object"};
    json_kind kind = json_type(value);
    if (kind == JSON_BOOL)
        snprintf(out, size, "%s", value->length ? "true" : "false");
    else if (kind == JSON_NUMBER || kind == JSON_STRING)
        snprintf(out, size, kind == JSON_STRING ? "'%.*s'" : "%.*s", (int)value->length,
                 doc->text + value->start);
    else
        snprintf(out, size, "%s", words[kind]);
}
