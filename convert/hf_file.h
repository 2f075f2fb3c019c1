/* hf_file - reading a JSON file of a Hugging Face folder: members by path, with null counting as
 * absent, and messages that name file and key. The file's name is part of every message.
 */
#ifndef CONVERT_HF_FILE_H
#define CONVERT_HF_FILE_H

#include "json.h"

typedef struct hf_file {
    const char *path;
    json_doc doc;
    const json_value *root;
    tc__buf *notes; /* remarks for people, a line each */
    tc_error *err;
} hf_file;

/* The value of "key" or "object.key" in `object`; NULL if absent or null. */
const json_value *hf_get(const hf_file *file, const json_value *object, const char *key);

/* The error "file: 'key' is not `expected`" (FORMAT). */
int hf_bad(const hf_file *file, const char *key, const char *expected);

/* A positive finite number; *out is kept if there is none. */
int hf_double(const hf_file *file, const json_value *object, const char *key, double *out);

/* A string, lower case, cut to fit; "" if absent or no string. */
void hf_word(const hf_file *file, const json_value *value, char *out, size_t size);

/* Whether the value is that number, or that truth value. */
bool hf_equals(const hf_file *file, const json_value *value, double number);

#endif /* CONVERT_HF_FILE_H */
