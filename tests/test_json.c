/* The JSON reader of convert. */
#include "convert/json.h"
#include "test.h"

#include <locale.h>

/* Parses a copy of exactly the text's size, so that the sanitizers see a read past its end. */
static int parse(const char *text, size_t len, json_doc *doc, tc_error *err) {
    char *copy = malloc(len ? len : 1);
    memcpy(copy, text, len);
    int code = json_parse("test.json", copy, len, doc, err);
    if (code) free(copy);
    return code;
}

static int parse_text(const char *text, json_doc *doc, tc_error *err) {
    return parse(text, strlen(text), doc, err);
}

static void done(json_doc *doc) {
    free((void *)(uintptr_t)doc->text);
    json_close(doc);
}

TEST(reads_a_config) {
    json_doc doc;
    tc_error err;
    int64_t number = 0;
    bool flag = false;
    double real = 0;
    REQUIRE(
        !parse_text(" {\"hidden_size\": 4096, \"tie\": true, \"eps\": 1e-05, \"scaling\": null,\n"
                    "  \"ids\": [1, -2, []], \"deep\": {\"a\": {\"b\": 7}}, \"name\": \"LLaMA\"}\n",
                    &doc, &err));
    const json_value *root = json_root(&doc);
    CHECK(json_type(root) == JSON_OBJECT && json_count(root) == 7);
    CHECK(json_int(&doc, json_get(&doc, root, "hidden_size"), &number) && number == 4096);
    CHECK(json_bool(json_get(&doc, root, "tie"), &flag) && flag);
    CHECK(json_double(&doc, json_get(&doc, root, "eps"), &real) && real == 1e-05);
    CHECK(json_type(json_get(&doc, root, "scaling")) == JSON_NULL);
    CHECK(json_type(json_get(&doc, root, "absent")) == JSON_MISSING);
    CHECK(json_is(&doc, json_get(&doc, root, "name"), "LLaMA"));
    CHECK(!json_is(&doc, json_get(&doc, root, "name"), "LLaM"));
    CHECK(!json_is(&doc, json_get(&doc, root, "name"), "LLaMA2"));
    const json_value *deep = json_get(&doc, json_get(&doc, root, "deep"), "a");
    CHECK(json_int(&doc, json_get(&doc, deep, "b"), &number) && number == 7);
    CHECK(json_get(&doc, json_get(&doc, json_get(&doc, root, "x"), "y"), "z") == NULL);

    const json_value *ids = json_get(&doc, root, "ids"), *item = json_first(ids);
    CHECK(json_count(ids) == 3);
    CHECK(json_int(&doc, item, &number) && number == 1);
    item = json_next(ids, item);
    CHECK(json_int(&doc, item, &number) && number == -2);
    item = json_next(ids, item);
    CHECK(json_type(item) == JSON_ARRAY && json_count(item) == 0 && !json_first(item));
    CHECK(json_next(ids, item) == NULL);
    done(&doc);
}

TEST(walks_objects_by_key) {
    json_doc doc;
    char seen[64] = "";
    REQUIRE(!parse_text("{\"a\":[1,{\"x\":2}],\"b\":{},\"c\":3}", &doc, NULL));
    const json_value *root = json_root(&doc);
    for (const json_value *key = json_first(root); key; key = json_next(root, key)) {
        tc__buf name = {0};
        CHECK(json_string(&doc, key, &name));
        strcat(seen, name.data);
        strcat(seen, json_type(json_member(key)) == JSON_NUMBER ? "# " : "  ");
        tc__buf_free(&name);
    }
    CHECK_MSG(!strcmp(seen, "a  b  c# "), "%s", seen);
    done(&doc);
}

TEST(last_of_equal_keys_wins) {
    json_doc doc;
    int64_t number = 0;
    REQUIRE(!parse_text("{\"a\":1,\"b\":5,\"a\":2}", &doc, NULL));
    CHECK(json_int(&doc, json_get(&doc, json_root(&doc), "a"), &number) && number == 2);
    done(&doc);
}

TEST(decodes_escapes) {
    static const struct {
        const char *text, *expected;
        size_t len;
    } cases[] = {{"\"\"", "", 0},
                 {"\"a\\n\\t\\\"\\\\\\/\\b\\f\\r\"", "a\n\t\"\\/\b\f\r", 9},
                 {"\"\\u0041\\u00e9\\u20AC\"", "A\xc3\xa9\xe2\x82\xac", 6},
                 {"\"\\ud83d\\ude00!\"", "\xf0\x9f\x98\x80!", 5},
                 {"\"x\\u0000y\"", "x\0y", 3},
                 {"\"\xf0\x9f\x98\x80\"", "\xf0\x9f\x98\x80", 4}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        json_doc doc;
        tc__buf text = {0};
        REQUIRE(!parse_text(cases[i].text, &doc, NULL));
        CHECK(json_string(&doc, json_root(&doc), &text));
        CHECK_MSG(text.len == cases[i].len && !memcmp(text.data, cases[i].expected, text.len),
                  "case %zu", i);
        if (!memchr(cases[i].expected, 0, cases[i].len))
            CHECK(json_is(&doc, json_root(&doc), cases[i].expected));
        CHECK(!json_is(&doc, json_root(&doc), "something else"));
        tc__buf_free(&text);
        done(&doc);
    }
}

TEST(refuses_what_is_not_json) {
    static const char *const cases[] = {"",
                                        "   ",
                                        "{",
                                        "[",
                                        "[1,",
                                        "[1,]",
                                        "{\"a\"}",
                                        "{\"a\":}",
                                        "{\"a\":1,}",
                                        "{a:1}",
                                        "{'a':1}",
                                        "[1 2]",
                                        "1 2",
                                        "[1]]",
                                        "nul",
                                        "truee",
                                        "True",
                                        "NaN",
                                        "Infinity",
                                        "-",
                                        "-Infinity",
                                        "01",
                                        "1.",
                                        ".5",
                                        "1e",
                                        "1e+",
                                        "+1",
                                        "0x10",
                                        "\"abc",
                                        "\"a\nb\"",
                                        "\"\\x\"",
                                        "\"\\u12\"",
                                        "\"\\u12g4\"",
                                        "\"\\ud800\"",
                                        "\"\\udc00\"",
                                        "\"\\ud800\\u0041\"",
                                        "\"\\ud800x",
                                        "\"\xff\"",
                                        "\"\xc0\x80\"",
                                        "\"\xed\xa0\x80\"",
                                        "\"\xe2\x82",
                                        "\xef\xbb\xbf{}",
                                        "{\"a\":1]",
                                        "[1}",
                                        "// x\n1",
                                        "{\"a\" 1}",
                                        "{1:2}",
                                        "\"\\"};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        json_doc doc;
        tc_error err;
        CHECK_MSG(parse_text(cases[i], &doc, &err) == TC_ERR_FORMAT, "%s", cases[i]);
        CHECK(strstr(err.message, "test.json") && doc.values == NULL);
    }
    json_doc doc;
    tc_error err;
    CHECK(parse("1\0", 2, &doc, &err) == TC_ERR_FORMAT);
    CHECK(parse_text("{\n  \"a\": 1,\n  b\n}", &doc, &err) == TC_ERR_FORMAT);
    CHECK_MSG(strstr(err.message, "line 3, column 3"), "%s", err.message);
}

TEST(limits_nesting) {
    tc__buf text = {0};
    json_doc doc;
    for (int i = 0; i < JSON_MAX_DEPTH; i++) tc__buf_str(&text, "[");
    for (int i = 0; i < JSON_MAX_DEPTH; i++) tc__buf_str(&text, "]");
    REQUIRE(!parse(text.data, text.len, &doc, NULL));
    done(&doc);
    tc__buf_free(&text);
    for (int i = 0; i < 100000; i++) tc__buf_str(&text, "[");
    CHECK(parse(text.data, text.len, &doc, NULL) == TC_ERR_UNSUPPORTED);
    tc__buf_free(&text);
}

TEST(integers_are_exact) {
    static const struct {
        const char *text;
        bool good;
        int64_t value;
    } cases[] = {{"0", true, 0},
                 {"-0", true, 0},
                 {"9007199254740993", true, 9007199254740993},
                 {"9223372036854775807", true, INT64_MAX},
                 {"-9223372036854775808", true, INT64_MIN},
                 {"9223372036854775808", false, 0},
                 {"-9223372036854775809", false, 0},
                 {"99999999999999999999999", false, 0},
                 {"1.0", false, 0},
                 {"1e3", false, 0},
                 {"\"1\"", false, 0},
                 {"true", false, 0},
                 {"null", false, 0}};
    for (size_t i = 0; i < TC_COUNT(cases); i++) {
        json_doc doc;
        int64_t value = 77;
        REQUIRE(!parse_text(cases[i].text, &doc, NULL));
        bool good = json_int(&doc, json_root(&doc), &value);
        CHECK_MSG(good == cases[i].good && value == (good ? cases[i].value : 77), "%s",
                  cases[i].text);
        done(&doc);
    }
}

TEST(doubles_are_rounded_to_nearest_in_every_locale) {
    static const struct {
        const char *text;
        double value;
    } cases[] = {{"0.1", 0.1},
                 {"-2.5e-3", -2.5e-3},
                 {"10000.0", 10000},
                 {"1e22", 1e22},
                 {"8388608.5", 8388608.5},
                 {"0.30000000000000004", 0.1 + 0.2},
                 {"2.2250738585072011e-308", 2.2250738585072011e-308},
                 {"9007199254740993", 9007199254740992.0},
                 {"5e-324", 5e-324}};
    /* Those of the last three that exist have a decimal comma. */
    static const char *const locales[] = {"C", "de_DE.UTF-8", "de_DE", "fr_FR.UTF-8"};
    for (size_t l = 0; l < TC_COUNT(locales); l++) {
        if (!setlocale(LC_NUMERIC, locales[l])) continue;
        for (size_t i = 0; i < TC_COUNT(cases); i++) {
            json_doc doc;
            double value = 0;
            REQUIRE(!parse_text(cases[i].text, &doc, NULL));
            CHECK(json_double(&doc, json_root(&doc), &value));
            CHECK_MSG(value == cases[i].value, "%s in %s: %.17g", cases[i].text, locales[l], value);
            done(&doc);
        }
    }
    setlocale(LC_NUMERIC, "C");
    json_doc doc;
    double value = 3;
    REQUIRE(!parse_text("1e999", &doc, NULL));
    CHECK(!json_double(&doc, json_root(&doc), &value) && value == 3);
    done(&doc);
}

TEST(survives_truncation_and_flipped_bytes) {
    static const char text[] =
        "{\"w.0\":{\"dtype\":\"F16\",\"shape\":[3,4],\"data_offsets\":[0,24]},\"t\":[true,false,"
        "null,-1.5e+3,\"\\ud83d\\ude00\xc3\xa9\\n\"],\"__metadata__\":{\"format\":\"pt\"}}";
    size_t len = sizeof text - 1;
    json_doc doc;
    for (size_t i = 0; i < len; i++) CHECK(parse(text, i, &doc, NULL) == TC_ERR_FORMAT);
    uint32_t seed = 1;
    for (int round = 0; round < 20000; round++) {
        char copy[sizeof text];
        memcpy(copy, text, sizeof text);
        for (int flip = 0; flip < 1 + round % 3; flip++) {
            seed = seed * 1664525u + 1013904223u;
            copy[(seed >> 8) % len] = (char)(seed >> 24);
        }
        if (!parse(copy, len, &doc, NULL)) done(&doc);
    }
}

TEST(reads_a_large_header_in_linear_time) {
    tc__buf text = {0};
    json_doc doc;
    tc__buf_str(&text, "{");
    for (int i = 0; i < 200000; i++)
        tc__buf_printf(&text,
                       "%s\"model.layers.%d.mlp.down_proj.qweight\":{\"dtype\":\"I32\",\"shape\":"
                       "[11008,512],\"data_offsets\":[%d,%d]}",
                       i ? "," : "", i, i, i + 1);
    tc__buf_str(&text, "}");
    REQUIRE(!text.failed && !json_parse("large", text.data, text.len, &doc, NULL));
    CHECK(json_count(json_root(&doc)) == 200000);
    CHECK(doc.count == 1 + 200000u * 12);
    json_close(&doc);
    tc__buf_free(&text);
}

/* clang-format off */
TEST_MAIN(
    RUN(reads_a_config)
    RUN(walks_objects_by_key)
    RUN(last_of_equal_keys_wins)
    RUN(decodes_escapes)
    RUN(refuses_what_is_not_json)
    RUN(limits_nesting)
    RUN(integers_are_exact)
    RUN(doubles_are_rounded_to_nearest_in_every_locale)
    RUN(survives_truncation_and_flipped_bytes)
    RUN(reads_a_large_header_in_linear_time))
