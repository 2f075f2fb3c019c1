/* json - a small strict JSON reader: one flat array of 16-byte values over the text, built in one
 * pass without recursion. For config.json, index files, safetensors headers, tokenizer.json.
 *
 * Strict: RFC 8259, valid UTF-8, escaped surrogates only in pairs, no byte order mark, no NaN, no
 * trailing comma, nothing after the value; nesting up to JSON_MAX_DEPTH. A key that occurs twice in
 * an object is not an error: json_get gives the last one, as Python does; a reader for which it
 * matters (safetensors) walks the object and looks for itself.
 *
 * Every function accepts NULL for a value, which means "not there": json_type gives JSON_MISSING
 * (a JSON null is JSON_NULL), json_get and json_first give NULL, the readers false. So look-ups
 * chain: json_int(doc, json_get(doc, json_get(doc, root, "a"), "b"), &number).
 */
#ifndef CONVERT_JSON_H
#define CONVERT_JSON_H

#include "src/base.h"

/* What stands in place of a large file after a clone without git-LFS, and what to say about it. */
#define LFS_START "version https://git-lfs"
#define LFS_POINTER "is a git-LFS pointer, not the file itself: fetch the file with 'git lfs pull'"

#define JSON_MAX_DEPTH 64
#define JSON_MAX_VALUES (4u << 20) /* 64 MB; a tokenizer.json of 256k pieces has 2.3 million */

typedef enum json_kind {
    JSON_MISSING,
    JSON_NULL,
    JSON_BOOL,
    JSON_NUMBER,
    JSON_STRING,
    JSON_ARRAY,
    JSON_OBJECT
} json_kind;

/* Private to json.c. The children of a container follow it; object: key, value, key, value. */
typedef struct json_value {
    uint32_t start;  /* offset of the text; of a string without its quotes */
    uint32_t length; /* bytes of the text; containers: elements or members; bool: 0 or 1 */
    uint32_t span;   /* values that it consists of: itself and all that it contains */
    uint8_t kind;    /* json_kind */
    uint8_t escaped; /* a string that contains a backslash */
} json_value;

typedef struct json_doc {
    const char *text; /* not owned unless `map` holds it */
    json_value *values;
    size_t count;
    tc__map map; /* of json_open */
} json_doc;

/* Parses len bytes of text, which must stay where they are while the document is used. `file` is
 * only for messages. Errors: FORMAT (with line and column), UNSUPPORTED (more values, depth or
 * bytes than above), MEMORY. On failure *doc is empty. */
int json_parse(const char *file, const char *text, size_t len, json_doc *doc, tc_error *err);

/* The same for a file. Errors: also IO. */
int json_open(const char *path, json_doc *doc, tc_error *err);

/* Frees; harmless on an empty document. */
void json_close(json_doc *doc);

const json_value *json_root(const json_doc *doc);
json_kind json_type(const json_value *value);

/* Elements of an array, members of an object, otherwise 0. */
size_t json_count(const json_value *value);

/* The member of that name; NULL if there is none or `object` is no object. Linear in its size. */
const json_value *json_get(const json_doc *doc, const json_value *object, const char *key);

/* Walks the elements of an array or the KEYS of an object (json_member gives a key's value):
 *     for (item = json_first(list); item; item = json_next(list, item)) */
const json_value *json_first(const json_value *container);
const json_value *json_next(const json_value *container, const json_value *item);
const json_value *json_member(const json_value *key);

/* Whether the value is a string equal to the (NUL-terminated) text. */
bool json_is(const json_doc *doc, const json_value *value, const char *text);

/* Appends a string's characters as UTF-8; they may contain NUL (from \u0000). False if it is no
 * string; running out of memory shows in out->failed. */
bool json_string(const json_doc *doc, const json_value *value, tc__buf *out);

/* A number without fraction and exponent that fits; exact. */
bool json_int(const json_doc *doc, const json_value *value, int64_t *out);

/* Any number that does not overflow, rounded to nearest, whatever the locale. */
bool json_double(const json_doc *doc, const json_value *value, double *out);

bool json_bool(const json_value *value, bool *out);

/* What a message says of a value: a scalar as it stands there, else "a list", "an object" or
 * "missing". */
void json_show(const json_doc *doc, const json_value *value, char *out, size_t size);

#endif /* CONVERT_JSON_H */
