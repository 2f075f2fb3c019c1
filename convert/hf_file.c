#include "hf_file.h"

#include <ctype.h>
#include <math.h>

const json_value *hf_get(const hf_file *file, const json_value *object, const char *key) {
    const char *point = strchr(key, '.');
    char outer[64];
    if (point) {
        snprintf(outer, sizeof outer, "%.*s", (int)(point - key), key);
        object = hf_get(file, object, outer);
        key = point + 1;
    }
    const json_value *value = json_get(&file->doc, object, key);
    return json_type(value) == JSON_NULL ? NULL : value;
}

int hf_bad(const hf_file *file, const char *key, const char *expected) {
    return tc__fail(file->err, TC_ERR_FORMAT, "%s: '%s' is not %s", file->path, key, expected);
}

int hf_double(const hf_file *file, const json_value *object, const char *key, double *out) {
    const json_value *value = hf_get(file, object, key);
    if (value && (!json_double(&file->doc, value, out) || !(*out > 0) || !isfinite(*out)))
        return hf_bad(file, key, "a positive number");
    return TC_OK;
}

void hf_word(const hf_file *file, const json_value *value, char *out, size_t size) {
    tc__buf text = {0};
    out[0] = 0;
    if (json_string(&file->doc, value, &text) && !text.failed && text.data) {
        snprintf(out, size, "%s", text.data);
        for (char *c = out; *c; c++) *c = (char)tolower((unsigned char)*c);
    }
    tc__buf_free(&text);
}

bool hf_equals(const hf_file *file, const json_value *value, double number) {
    bool flag;
    double found;
    if (json_bool(value, &flag)) return (flag ? 1 : 0) == number;
    return json_double(&file->doc, value, &found) && found == number;
}
