/* random_checkpoint - writes the model.safetensors of tests/data/families: of each only the header
 * is stored, the numbers follow a rule. tests/make_family_data.py is its specification, and made
 * the references with a writer of its own.
 */
#ifndef TEST_RANDOM_CHECKPOINT_H
#define TEST_RANDOM_CHECKPOINT_H

#include "convert/json.h"

/* SplitMix64's output number n, started at 0. */
static inline uint64_t random_checkpoint_hash(uint64_t n) {
    uint64_t z = (n + 1) * 0x9e3779b97f4a7c15u;
    z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9u;
    z = (z ^ z >> 27) * 0x94d049bb133111ebu;
    return z ^ z >> 31;
}

static inline bool random_checkpoint_is_table(const char *name) {
    static const char *const tables[] = {"wte", "word_embeddings", "embed_tokens", "lm_head"};
    for (size_t i = 0; i < TC_COUNT(tables); i++)
        if (strstr(name, tables[i])) return true;
    return false;
}

/* A tensor's numbers: center + k / 2^shift, k of outputs first, first + 1, ..., rounded down to a
 * multiple of 2^drop. */
typedef struct random_checkpoint_rule {
    uint64_t first, count;
    int shift, drop;
    float center;
    bool bf16;
} random_checkpoint_rule;

static inline random_checkpoint_rule
random_checkpoint_rule_of(const json_doc *doc, const json_value *key, uint64_t seed) {
    const json_value *entry = json_member(key), *shape = json_get(doc, entry, "shape");
    const bool bf16 = json_is(doc, json_get(doc, entry, "dtype"), "BF16");
    random_checkpoint_rule rule = {seed, 1, 12, bf16 ? 5 : 0, 0, bf16};
    int64_t number = 0;
    tc__buf name = {0};
    json_string(doc, key, &name);
    for (const json_value *item = json_first(shape); item; item = json_next(shape, item))
        if (json_int(doc, item, &number)) rule.count *= (uint64_t)number;
    if (json_count(shape) == 2) { /* number: the columns */
        rule.shift = random_checkpoint_is_table(name.data) ? 7 : 9;
        for (int64_t power = 1; power < number; power *= 4) rule.shift++;
        rule.drop = bf16 ? 3 : 0;
    } else if (name.len < 5 || strcmp(name.data + name.len - 5, ".bias")) {
        rule.center = 1;
        rule.drop = bf16 ? 5 : 2;
    }
    if (json_int(doc, json_first(json_get(doc, entry, "data_offsets")), &number))
        rule.first += (uint64_t)number / 2;
    tc__buf_free(&name);
    return rule;
}

static inline void random_checkpoint_tensor(const random_checkpoint_rule *rule, FILE *out) {
    for (uint64_t j = 0; j < rule->count; j++) {
        int k = (int)(random_checkpoint_hash(rule->first + j) >> 53);
        k = (k >> rule->drop << rule->drop) - 1024;
        float value = rule->center + (float)k / (float)(1 << rule->shift);
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t half = rule->bf16 ? (uint16_t)(bits >> 16) : tc__f32_to_f16(value);
        fwrite(&half, sizeof half, 1, out);
    }
}

/* Writes `path` from the header in `header_path`. */
static inline bool random_checkpoint_write(const char *header_path, const char *path) {
    json_doc doc;
    tc__buf seed = {0};
    tc_error err;
    FILE *out = fopen(path, "wb");
    if (!out || json_open(header_path, &doc, &err)) {
        if (out) fclose(out);
        return false;
    }
    const json_value *root = json_root(&doc), *key;
    json_string(&doc, json_get(&doc, json_get(&doc, root, "__metadata__"), "seed"), &seed);
    const uint64_t first = seed.data ? strtoull(seed.data, NULL, 10) : 0;
    const uint64_t length = doc.map.size;
    fwrite(&length, sizeof length, 1, out);
    fwrite(doc.map.data, 1, doc.map.size, out);
    for (key = json_first(root); key; key = json_next(root, key)) {
        if (json_is(&doc, key, "__metadata__")) continue;
        random_checkpoint_rule rule = random_checkpoint_rule_of(&doc, key, first);
        random_checkpoint_tensor(&rule, out);
    }
    bool good = seed.data && !ferror(out);
    good &= fclose(out) == 0;
    tc__buf_free(&seed);
    json_close(&doc);
    return good;
}

#endif /* TEST_RANDOM_CHECKPOINT_H */
