/* Fuzzes the JSON reader. What it accepts must hang together: every value is reached exactly once,
 * every string decodes to valid UTF-8, every look-up ends. */
#include "driver.h"

#include "convert/json.h"

static void use_string(const json_doc *doc, const json_value *value) {
    tc__buf text = {0};
    uint32_t code;
    if (!json_string(doc, value, &text) || text.failed) abort();
    for (size_t i = 0; i < text.len;) {
        i += tc__utf8_decode(text.data + i, text.len - i, &code);
        if (code == UINT32_MAX) abort();
    }
    if (text.len == strlen(text.data) && !json_is(doc, value, text.data)) abort();
    tc__buf_free(&text);
}

/* Returns the number of values below and including this one. */
static size_t use(const json_doc *doc, const json_value *value) {
    size_t seen = 1, count = 0;
    int64_t integer;
    double real;
    bool flag;
    if (json_int(doc, value, &integer) && !json_double(doc, value, &real)) abort();
    if (json_bool(value, &flag) && json_type(value) != JSON_BOOL) abort();
    if (json_type(value) == JSON_STRING) use_string(doc, value);
    for (const json_value *item = json_first(value); item; item = json_next(value, item), count++) {
        seen += use(doc, item); /* no deeper than JSON_MAX_DEPTH */
        if (json_type(value) == JSON_OBJECT) seen += use(doc, json_member(item));
    }
    if (count != json_count(value) || seen != value->span) abort();
    json_get(doc, value, "dtype");
    return seen;
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size) {
    json_doc doc;
    tc_error err;
    int code = json_parse("fuzz", (const char *)data, size, &doc, &err);
    if (code != err.code) abort();
    if (code) return 0;
    if (use(&doc, json_root(&doc)) != doc.count) abort();
    json_close(&doc);
    return 0;
}
