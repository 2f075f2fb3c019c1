/* The tokenizer against the sentencepiece and tokenizers packages (goldens of
 * tests/make_tokenizer_goldens.py), the cases of ../shared/tokenizers where they are, and its own
 * rules: special tokens, spans, prefixes, damaged metadata, time; and what convert makes of a
 * tokenizer.json. */
#include "base.h"
#include "tokenizer.h"
#include "vocabulary.h"
#include "tokenizer_json.h"
#include "spm_file.h"
#include "test.h"

#include <time.h>

#define SMALL "tests/data/spm_small.model"
#define SHARED "../shared/tokenizers/"
#define LLAMA2 SHARED "llama2/"
#define BPE(name) "tests/data/bpe_" name ".json"
#define BPE_VOCAB 70000u /* more than any of them has */

static tc__tokenizer *open_or_die(spm_file *spm, const char *path, bool legacy) {
    tc__tokenizer *tokenizer = NULL;
    tc_error err = {0};
    memset(spm, 0, sizeof *spm);
    if (!spm_open(spm, path, legacy) ||
        tc__tokenizer_open(&spm->file, spm->n_pieces, &tokenizer, &err)) {
        fprintf(stderr, "%s: %s\n", path, err.message);
        exit(1);
    }
    return tokenizer;
}

/* A tokenizer.json as convert stores it: its metadata, in memory that a test may change. */
static bool bpe_open(spm_file *spm, const char *path) {
    tokenizer_import import;
    tokenizer_metas metas;
    tc__buf notes = {0};
    tc_error err = {0};
    memset(spm, 0, sizeof *spm);
    memset(&import, 0, sizeof import);
    int code = tokenizer_json_read(path, BPE_VOCAB, &import, &notes, &err);
    if (code) fprintf(stderr, "%s\n", err.message);
    tokenizer_import_metas(&import, &metas);
    for (size_t i = 0; i < metas.count && !code; i++)
        spm_set(spm, metas.metas[i].key, metas.metas[i].type, metas.metas[i].count,
                metas.metas[i].value, metas.metas[i].size);
    tokenizer_import_free(&import);
    tc__buf_free(&notes);
    return !code;
}

static tc__tokenizer *bpe_open_or_die(spm_file *spm, const char *path) {
    tc__tokenizer *tokenizer = NULL;
    tc_error err = {0};
    if (!bpe_open(spm, path) || tc__tokenizer_open(&spm->file, BPE_VOCAB, &tokenizer, &err)) {
        fprintf(stderr, "%s: %s\n", path, err.message);
        exit(1);
    }
    return tokenizer;
}

static tc__ids encode(const tc__tokenizer *tokenizer, const char *text, size_t len, bool trusted,
                      int before) {
    tc__ids ids = {0};
    tc__span span = {text, len, trusted};
    CHECK(tc__encode(tokenizer, &span, 1, before, &ids, NULL) == TC_OK);
    return ids;
}

/* Compares with ids written as "1 2 3". */
static bool gives(const tc__tokenizer *tokenizer, const char *text, bool trusted, int before,
                  const char *expected) {
    char shown[512];
    tc__ids want = {0}, ids = encode(tokenizer, text, strlen(text), trusted, before);
    const char *rest = expected;
    spm_numbers(&rest, &want);
    bool same = spm_same_ids(&ids, &want);
    if (!same)
        fprintf(stderr, "\"%s\": %s; expected %s\n", text, spm_show(&ids, shown, sizeof shown),
                expected);
    tc__ids_free(&ids);
    tc__ids_free(&want);
    return same;
}

/* ---- against the packages ---- */

static void check_encode(const tc__tokenizer *tokenizer, const char *line, bool trusted) {
    char got[400], want_text[400];
    tc__buf text = {0};
    tc__ids want = {0};
    const char *at = line;
    spm_hex(&at, &text);
    at++; /* ':' */
    spm_numbers(&at, &want);
    tc__ids ids = encode(tokenizer, text.data, text.len, trusted, TC__AT_START);
    CHECK_MSG(spm_same_ids(&ids, &want), "encode %.200s: %s; expected %s", line,
              spm_show(&ids, got, sizeof got), spm_show(&want, want_text, sizeof want_text));
    tc__ids_free(&ids);
    tc__ids_free(&want);
    tc__buf_free(&text);
}

static void check_decode(const tc__tokenizer *tokenizer, const char *line) {
    tc__buf want = {0}, text = {0};
    tc__ids ids = {0};
    const char *at = line;
    spm_numbers(&at, &ids);
    at += 2; /* ": " */
    spm_hex(&at, &want);
    CHECK(tc__decode(tokenizer, ids.data, ids.len, &text, NULL) == TC_OK);
    CHECK_MSG(text.len == want.len && (!want.len || !memcmp(text.data, want.data, want.len)),
              "decode %.200s: \"%s\"", line, text.data ? text.data : "");
    tc__ids_free(&ids);
    tc__buf_free(&want);
    tc__buf_free(&text);
}

static int check_lines(const tc__tokenizer *tokenizer, const char *golden) {
    tc__buf lines = spm_read(golden);
    int n = 0;
    for (char *line = lines.data ? strtok(lines.data, "\n") : NULL; line;
         line = strtok(NULL, "\n"), n++) {
        if (!strncmp(line, "encode ", 7))
            check_encode(tokenizer, line + 7, false);
        else if (!strncmp(line, "special ", 8))
            check_encode(tokenizer, line + 8, true);
        else
            check_decode(tokenizer, line + 7);
    }
    tc__buf_free(&lines);
    return n;
}

static int check_goldens(const char *model, const char *golden) {
    spm_file spm;
    tc__tokenizer *tokenizer = open_or_die(&spm, model, false);
    int n = check_lines(tokenizer, golden);
    tc__tokenizer_close(tokenizer);
    spm_close(&spm);
    return n;
}

TEST(equals_sentencepiece) {
    CHECK(check_goldens(SMALL, "tests/data/spm_small.golden") > 600);
}

TEST(equals_sentencepiece_without_byte_fallback) {
    CHECK(check_goldens("tests/data/spm_unk.model", "tests/data/spm_unk.golden") > 150);
}

TEST(equals_tokenizers) {
    static const char *const kinds[] = {"neox",  "falcon",     "llama3",
                                        "qwen2", "llama2json", "metaspace"};
    for (size_t i = 0; i < TC_COUNT(kinds); i++) {
        char path[100];
        spm_file spm;
        snprintf(path, sizeof path, "tests/data/bpe_%s.json", kinds[i]);
        tc__tokenizer *tokenizer = bpe_open_or_die(&spm, path);
        snprintf(path, sizeof path, "tests/data/bpe_%s.golden", kinds[i]);
        int n = check_lines(tokenizer, path);
        CHECK_MSG(n > 330, "%s: %d lines", kinds[i], n);
        tc__tokenizer_close(tokenizer);
        spm_close(&spm);
    }
}

/* The texts and ids of a folder of ../shared/tokenizers, and back. */
static void check_cases(const tc__tokenizer *tokenizer, const char *folder) {
    static const char separator[] = "\n__ggml_vocab_test__\n";
    char path[100];
    snprintf(path, sizeof path, "%scases.inp", folder);
    tc__buf texts = spm_read(path);
    snprintf(path, sizeof path, "%scases.out", folder);
    tc__buf lines = spm_read(path);
    const char *text = texts.data, *line = lines.data;
    int n = 0;
    while (text) {
        char got[400];
        const char *end = strstr(text, separator);
        size_t len = end ? (size_t)(end - text) : strlen(text);
        tc__ids want = {0}, ids = encode(tokenizer, text, len, false, TC__AT_START);
        tc__buf back = {0};
        spm_numbers(&line, &want);
        CHECK_MSG(spm_same_ids(&ids, &want), "%s case %d \"%.*s\": %s", folder, n, (int)len, text,
                  spm_show(&ids, got, sizeof got));
        CHECK(tc__decode(tokenizer, ids.data, ids.len, &back, NULL) == TC_OK);
        CHECK_MSG(back.len == len && !memcmp(back.len ? back.data : "", text, len), "%s case %d",
                  folder, n);
        tc__ids_free(&ids);
        tc__ids_free(&want);
        tc__buf_free(&back);
        if (*line == '\n') line++;
        text = end ? end + sizeof separator - 1 : NULL;
        n++;
    }
    CHECK_MSG(n == 47, "%s: %d cases", folder, n);
    tc__buf_free(&texts);
    tc__buf_free(&lines);
}

static bool is_there(const char *path) {
    FILE *file = fopen(path, "rb");
    if (file) fclose(file);
    return file != NULL;
}

TEST(passes_the_llama2_cases) {
    if (!is_there(LLAMA2 "cases.inp")) SKIP("there is no " LLAMA2 "cases.inp");
    spm_file spm;
    tc__tokenizer *tokenizer = open_or_die(&spm, LLAMA2 "tokenizer.model", false);
    check_cases(tokenizer, LLAMA2);
    tc__tokenizer_close(tokenizer);
    spm_close(&spm);
}

/* Opening takes 5 to 10 ms; the bound is for sanitizers. */
static void check_shared_bpe(const char *json, const char *folder) {
    spm_file spm;
    tc__tokenizer *tokenizer = bpe_open_or_die(&spm, json), *again = NULL;
    check_cases(tokenizer, folder);
    clock_t begin = clock();
    CHECK(tc__tokenizer_open(&spm.file, BPE_VOCAB, &again, NULL) == TC_OK);
    double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
    CHECK_MSG(seconds < 1, "%s opens in %.3f s", json, seconds);
    tc__tokenizer_close(again);
    tc__tokenizer_close(tokenizer);
    spm_close(&spm);
}

TEST(passes_the_mpt_cases) {
    if (!is_there(SHARED "mpt/cases.inp")) SKIP("there is no " SHARED "mpt/cases.inp");
    check_shared_bpe(SHARED "mpt/tokenizer.json", SHARED "mpt/");
}

TEST(passes_the_falcon_cases) {
    if (!is_there(SHARED "falcon/cases.inp")) SKIP("there is no " SHARED "falcon/cases.inp");
    check_shared_bpe(SHARED "falcon/tokenizer.json", SHARED "falcon/");
}

/* Ids of transformers 4.57.6, LlamaTokenizer with use_fast=False, for tokenizer.model. */
TEST(treats_special_pieces_as_transformers_does) {
    static const struct {
        const char *text, *legacy, *modern;
    } cases[] = {
        {"<s>hi", "1 7251", "1 2918"},
        {"<s> hi", "1 29871 7251", "1 7251"},
        {"<s>  hi", "1 259 7251", "1 29871 7251"},
        {" hi", "29871 7251", "29871 7251"},
        {" <s>a", "259 1 263", "259 1 29874"},
        {"A</s>USER: b", "319 2 3148 1001 29901 289", "319 2 11889 29901 289"},
        {"A </s>### Human", "319 29871 2 835 12968", "319 29871 2 2277 29937 12968"},
        {"Hello <s>.", "15043 29871 1 869", "15043 29871 1 29889"},
        {"</s></s>a", "2 2 263", "2 2 29874"},
        {"a</s>\nb", "263 2 29871 13 29890", "263 2 13 29890"},
        {"</s> ", "2 259", "2 29871"},
        {"A</s>", "319 2", "319 2"},
    };
    spm_file spm;
    tc__buf present = spm_read(LLAMA2 "tokenizer.model");
    bool there = present.len > 0;
    tc__buf_free(&present);
    if (!there) SKIP("there is no " LLAMA2 "tokenizer.model");
    for (int legacy = 0; legacy < 2; legacy++) {
        tc__tokenizer *tokenizer = open_or_die(&spm, LLAMA2 "tokenizer.model", legacy);
        for (size_t i = 0; i < TC_COUNT(cases); i++)
            CHECK(gives(tokenizer, cases[i].text, true, TC__AT_START,
                        legacy ? cases[i].legacy : cases[i].modern));
        tc__tokenizer_close(tokenizer);
        spm_close(&spm);
    }
}

/* ---- special pieces and spans ---- */

static tc__ids encode_spans(const tc__tokenizer *tokenizer, const tc__span *spans, size_t n) {
    tc__ids ids = {0};
    CHECK(tc__encode(tokenizer, spans, n, TC__AT_START, &ids, NULL) == TC_OK);
    return ids;
}

static int count(const tc__ids *ids, int32_t id) {
    int n = 0;
    for (size_t i = 0; i < ids->len; i++) n += ids->data[i] == id;
    return n;
}

TEST(finds_special_pieces_in_trusted_bytes_only) {
    spm_file spm;
    tc__tokenizer *t = open_or_die(&spm, SMALL, false);
    const char *text = "<s><unk></s><|turn|>";
    tc__ids ids = encode(t, text, strlen(text), true, TC__AT_START);
    CHECK(ids.len == 4 && ids.data[0] == 1 && ids.data[1] == 0 && ids.data[2] == 2 &&
          ids.data[3] == 3);
    tc__ids_free(&ids);
    ids = encode(t, text, strlen(text), false, TC__AT_START);
    CHECK(!count(&ids, 0) && !count(&ids, 1) && !count(&ids, 2) && !count(&ids, 3));
    tc__ids_free(&ids);

    /* Neither whole, nor from one side or the other, nor from both, does a person make one. */
    const char *eos = "</s>";
    for (size_t from = 0; from <= 4; from++)
        for (size_t to = from; to <= 4; to++) {
            tc__span spans[3] = {
                {eos, from, true}, {eos + from, to - from, false}, {eos + to, 4 - to, true}};
            ids = encode_spans(t, spans, 3);
            CHECK_MSG(count(&ids, 2) == (from == 0 && to == 0) + (from == 4),
                      "</s> by a person from %zu to %zu", from, to);
            tc__ids_free(&ids);
        }
    tc__tokenizer_close(t);
    spm_close(&spm);
}

TEST(spans_are_one_text) {
    static const char text[] =
        "the model's <tool_call> \xE2\x82\xAC 12 \xF0\x9F\x99\x82 answer</s>to it </s>";
    size_t len = sizeof text - 1, cut = len - 14; /* before the first </s> */
    spm_file spm;
    tc__tokenizer *t = open_or_die(&spm, SMALL, false);
    tc__ids whole = encode(t, text, len, true, TC__AT_START);
    for (size_t a = 0; a <= cut; a++)
        for (size_t b = a; b <= cut; b++) { /* a and b also fall inside of characters and pieces */
            tc__span spans[4] = {{text, a, true},
                                 {text + a, b - a, false},
                                 {text + b, cut - b, false},
                                 {text + cut, len - cut, true}};
            tc__ids ids = encode_spans(t, spans, 4);
            CHECK_MSG(spm_same_ids(&ids, &whole), "cut at %zu and %zu", a, b);
            tc__ids_free(&ids);
        }
    for (size_t a = 0; a <= len; a++) { /* trusted spans in a row are one, also inside of </s> */
        tc__span spans[2] = {{text, a, true}, {text + a, len - a, true}};
        tc__ids ids = encode_spans(t, spans, 2);
        CHECK_MSG(spm_same_ids(&ids, &whole), "cut at %zu", a);
        tc__ids_free(&ids);
    }
    tc__ids_free(&whole);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

TEST(added_tokens_are_special_and_the_longest_wins) {
    spm_file spm;
    memset(&spm, 0, sizeof spm);
    REQUIRE(spm_open(&spm, SMALL, false));
    static const char pieces[] = "\2\0\0\0<|\x06\0\0\0<|im|>\7\0\0\0<|im|>x\4\0\0\0</s>";
    uint32_t ids[] = {1005, 1006, 1007, 1008};
    spm_set(&spm, "tokenizer.added_ids", TC__META_U32, 4, ids, sizeof ids);
    spm_set(&spm, "tokenizer.added_pieces", TC__META_STRINGS, 4, pieces, sizeof pieces - 1);
    tc__tokenizer *t;
    CHECK(tc__tokenizer_open(&spm.file, 1008, &t, NULL) == TC_ERR_FORMAT); /* 1008 is outside */
    REQUIRE(tc__tokenizer_open(&spm.file, 1009, &t, NULL) == TC_OK);
    CHECK(gives(t, "<|im|>", true, TC__AT_START, "1006"));
    CHECK(gives(t, "<|im|>x<|<|im|><|end|>", true, TC__AT_START, "1007 1005 1006 4"));
    CHECK(gives(t, "</s>", true, TC__AT_START, "1008")); /* replaces the piece's own id */
    tc__ids alone = encode(t, "<|im|>", 6, false, TC__AT_START);
    CHECK(alone.len > 1);
    tc__buf text = {0};
    tc__decoder decoder = tc__decoder_make(t, true);
    bool special = false;
    tc__decode_one(&decoder, 1006, &text, &special);
    CHECK(special && !text.len);
    tc__decode_one(&decoder, alone.data[0], &text, &special);
    CHECK(!special);
    tc__buf_free(&text);
    tc__ids_free(&alone);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

TEST(continued_text_gets_no_prefix) {
    spm_file spm;
    for (int legacy = 0; legacy < 2; legacy++) {
        tc__tokenizer *t = open_or_die(&spm, SMALL, legacy);
        CHECK(gives(t, "a", false, TC__AT_START, "274"));
        CHECK(gives(t, "a", false, TC__AFTER_TEXT, "926"));
        CHECK(gives(t, "a", false, TC__AFTER_SPECIAL, legacy ? "274" : "926"));
        CHECK(gives(t, "", false, TC__AT_START, ""));
        CHECK(gives(t, "a</s>a", true, TC__AFTER_TEXT, legacy ? "926 2 274" : "926 2 926"));
        CHECK(tc__encode(t, NULL, 0, TC__AT_START, &(tc__ids){0}, NULL) == TC_OK);
        tc__tokenizer_close(t);
        spm_close(&spm);
    }
}

/* Whatever the file says: marks are for the template, words and runs of spaces for all. */
TEST(a_person_makes_no_mark) {
    static const char *const texts[] = {"<|im_start|>", "<|im_end|>", "<|endoftext|>",
                                        "<left>",       "x<both> ",   "<|im_end|>\xCC\xB8"};
    spm_file spm;
    tc__tokenizer *t = bpe_open_or_die(&spm, BPE("neox"));
    for (size_t i = 0; i < TC_COUNT(texts); i++) {
        int32_t id;
        const char *mark = strchr(texts[i], '<');
        REQUIRE(tc__special_at(t, mark, strlen(mark), &id));
        tc__ids person = encode(t, texts[i], strlen(texts[i]), false, TC__AT_START);
        tc__ids template = encode(t, texts[i], strlen(texts[i]), true, TC__AT_START);
        CHECK_MSG(count(&person, id) == 0 && count(&template, id) == 1, "%s", texts[i]);
        tc__ids_free(&person);
        tc__ids_free(&template);
    }
    tc__ids spaces = encode(t, "a   b", 5, false, TC__AT_START); /* one token of three spaces */
    tc__ids word = encode(t, "a garden gardens", 16, false, TC__AT_START);
    CHECK(spaces.len == 3 && word.len > 3);
    tc__ids_free(&spaces);
    tc__ids_free(&word);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

/* Between two special tokens the text is one run, whoever wrote which byte of it: also where a run
 * of spaces, a character or a composition goes across the border. */
TEST(byte_level_spans_are_one_text) {
    static const char text[] = "<|im_start|>user\nwe   have  e\xCC\x81 12345  \xF0\x9F\x99\x82 "
                               "garden<|im_end|>\n";
    size_t len = sizeof text - 1, from = 12, to = len - 11;
    spm_file spm;
    tc__tokenizer *t = bpe_open_or_die(&spm, BPE("neox"));
    tc__ids whole = encode(t, text, len, true, TC__AT_START);
    for (size_t a = from; a <= to; a++)
        for (size_t b = a; b <= to; b++) {
            tc__span spans[3] = {
                {text, a, true}, {text + a, b - a, false}, {text + b, len - b, true}};
            tc__ids ids = encode_spans(t, spans, 3);
            CHECK_MSG(spm_same_ids(&ids, &whole), "cut at %zu and %zu", a, b);
            tc__ids_free(&ids);
        }
    tc__ids_free(&whole);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

/* Malformed UTF-8 is U+FFFD, byte by byte, before anything else looks at it. */
TEST(byte_level_takes_malformed_bytes_for_replacements) {
    static const struct {
        const char *bytes, *meant;
    } cases[] = {{"a\xFF"
                  "b",
                  "a\xEF\xBF\xBD"
                  "b"},
                 {"\xC0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD"},
                 {"\xE2\x82 x", "\xEF\xBF\xBD\xEF\xBF\xBD x"},
                 {"\xED\xA0\x80", "\xEF\xBF\xBD\xEF\xBF\xBD\xEF\xBF\xBD"},
                 {"e\xCC", "e\xEF\xBF\xBD"}};
    static const char *const files[] = {BPE("neox"), BPE("llama3"), BPE("llama2json")};
    for (size_t f = 0; f < TC_COUNT(files); f++) {
        spm_file spm;
        tc__tokenizer *t = bpe_open_or_die(&spm, files[f]);
        for (size_t i = 0; i < TC_COUNT(cases); i++) {
            tc__ids a = encode(t, cases[i].bytes, strlen(cases[i].bytes), false, TC__AT_START);
            tc__ids b = encode(t, cases[i].meant, strlen(cases[i].meant), false, TC__AT_START);
            CHECK_MSG(spm_same_ids(&a, &b), "%s, case %zu", files[f], i);
            tc__ids_free(&a);
            tc__ids_free(&b);
        }
        tc__tokenizer_close(t);
        spm_close(&spm);
    }
}

/* ---- decoding ---- */

TEST(decodes_token_by_token_as_at_once) {
    spm_file spm;
    tc__tokenizer *t = open_or_die(&spm, SMALL, false);
    const char text[] = "  the naive \xE2\x82\xAC\xF0\x9F\xA6\x8A answer";
    tc__ids ids = encode(t, text, sizeof text - 1, false, TC__AT_START);
    for (int start = 0; start < 2; start++) {
        tc__buf out = {0};
        tc__decoder decoder = tc__decoder_make(t, start);
        for (size_t i = 0; i < ids.len; i++) tc__decode_one(&decoder, ids.data[i], &out, NULL);
        CHECK(out.len == sizeof text - (start ? 1 : 0));
        CHECK(!strcmp(out.data + (start ? 0 : 1), text) && (start || out.data[0] == ' '));
        tc__buf_free(&out);
    }
    tc__ids_free(&ids);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

/* A reply's first space goes where the template has one already; half characters come out as they
 * are, for the stream to put together; special tokens have no text, marks that are none do. */
TEST(decodes_byte_level_pieces) {
    spm_file spm;
    tc__tokenizer *t = bpe_open_or_die(&spm, BPE("qwen2"));
    static const char text[] = " \xF0\x9F\xA6\x99 we<think><|im_end|>";
    tc__ids ids = encode(t, text, sizeof text - 1, true, TC__AT_START);
    for (int start = 0; start < 2; start++) {
        static const char whole[] = " \xF0\x9F\xA6\x99 we<think>";
        tc__buf out = {0};
        tc__decoder decoder = tc__decoder_make(t, start);
        bool special = false;
        for (size_t i = 0; i < ids.len; i++) tc__decode_one(&decoder, ids.data[i], &out, &special);
        CHECK(special && !strcmp(out.data, whole + start));
        tc__buf_free(&out);
    }
    tc__ids_free(&ids);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

TEST(refuses_ids_outside_the_vocabulary) {
    spm_file spm;
    tc__tokenizer *t = open_or_die(&spm, SMALL, false);
    tc__buf out = {0};
    tc_error err;
    int32_t ids[] = {300, 1005}, negative = -1;
    CHECK(tc__decode(t, ids, 2, &out, &err) == TC_ERR_ARGUMENT && strstr(err.message, "1005"));
    CHECK(tc__decode(t, &negative, 1, &out, NULL) == TC_ERR_ARGUMENT);
    CHECK(!out.len);
    tc__buf_free(&out);
    tc__tokenizer_close(t);
    spm_close(&spm);
}

/* Every text comes back, byte for byte, when it is UTF-8. */
TEST(round_trips) {
    spm_file spm;
    tc__tokenizer *t = open_or_die(&spm, SMALL, false);
    uint32_t state = 1;
    for (int i = 0; i < 2000; i++) {
        tc__buf text = {0}, back = {0};
        for (int n = 0; n < 12; n++) {
            char utf8[4];
            state = state * 1664525u + 1013904223u;
            uint32_t code = state >> 8;
            code = i % 2 ? code % 0x7F : code % 0x110000;
            if ((code >= 0xD800 && code < 0xE000) || code == 0x2581) code = ' ';
            tc__buf_add(&text, utf8, tc__utf8_encode(code, utf8));
        }
        tc__ids ids = encode(t, text.data, text.len, false, TC__AT_START);
        CHECK(tc__decode(t, ids.data, ids.len, &back, NULL) == TC_OK);
        CHECK(back.len == text.len && !memcmp(back.data, text.data, text.len));
        tc__ids_free(&ids);
        tc__buf_free(&text);
        tc__buf_free(&back);
    }
    tc__tokenizer_close(t);
    spm_close(&spm);
}

/* ---- time ---- */

/* Long runs of one character are where a quadratic search would take hours. The bound leaves room
 * for sanitizers and busy machines: without them each of these takes 0.05 to 0.4 s. */
static void check_time(const tc__tokenizer *t, const char *name) {
    static const char *units[] = {
        " ",  "a",  "ab", "\xE2\x96\x81",   "\xFF", "e\xCC\x81", "\xCC\x81",
        "==", "\n", "1",  "the answer to ", "<",    "'s",        " \n"};
    for (size_t u = 0; u < TC_COUNT(units); u++) {
        tc__buf text = {0};
        while (text.len < 1000000) tc__buf_str(&text, units[u]);
        clock_t begin = clock();
        tc__ids ids = encode(t, text.data, text.len, u % 2, TC__AT_START);
        double seconds = (double)(clock() - begin) / CLOCKS_PER_SEC;
        CHECK_MSG(seconds < 10, "%s, 1 MB of \"%s\": %.1f s", name, units[u], seconds);
        CHECK(ids.len > 0);
        tc__ids_free(&ids);
        tc__buf_free(&text);
    }
}

TEST(long_texts_take_no_time) {
    spm_file spm;
    tc__tokenizer *t = open_or_die(&spm, SMALL, false);
    check_time(t, "spm");
    tc__tokenizer_close(t);
    spm_close(&spm);
}

TEST(long_texts_take_no_time_with_a_table_of_merges) {
    static const char *const files[] = {BPE("neox"), BPE("falcon"), BPE("llama3"), BPE("qwen2"),
                                        BPE("llama2json")};
    for (size_t i = 0; i < TC_COUNT(files); i++) {
        spm_file spm;
        tc__tokenizer *t = bpe_open_or_die(&spm, files[i]);
        check_time(t, files[i]);
        tc__tokenizer_close(t);
        spm_close(&spm);
    }
}

/* ---- damaged metadata ---- */

/* Opens with one change; checks the code and that the message names `word`. */
static void check_refused(spm_file *spm, const char *word, int expected) {
    tc__tokenizer *t;
    tc_error err;
    int code = tc__tokenizer_open(&spm->file, spm->n_pieces, &t, &err);
    CHECK_MSG(code == expected && !t && strstr(err.message, word), "%d: %s; expected %d, \"%s\"",
              code, code ? err.message : "", expected, word);
    tc__tokenizer_close(t);
    spm_close(spm);
    memset(spm, 0, sizeof *spm);
    CHECK(spm_open(spm, SMALL, false));
}

TEST(refuses_damaged_metadata) {
    static const char *required[] = {"tokenizer.type", "tokenizer.pieces", "tokenizer.scores",
                                     "tokenizer.types"};
    spm_file spm;
    memset(&spm, 0, sizeof spm);
    REQUIRE(spm_open(&spm, SMALL, false));
    for (size_t i = 0; i < TC_COUNT(required); i++) {
        spm_remove(&spm, required[i]);
        check_refused(&spm, required[i], TC_ERR_FORMAT);
        spm_set_u32(&spm, required[i], 1);
        check_refused(&spm, required[i], TC_ERR_FORMAT);
    }
    spm_set_text(&spm, "tokenizer.type", "wordpiece");
    check_refused(&spm, "wordpiece", TC_ERR_UNSUPPORTED);
    spm_set_u32(&spm, "tokenizer.bos_id", 1005);
    check_refused(&spm, "tokenizer.bos_id", TC_ERR_FORMAT);
    spm_set_u32(&spm, "tokenizer.legacy", 2);
    check_refused(&spm, "tokenizer.legacy", TC_ERR_FORMAT);
    spm_remove(&spm, "tokenizer.bos_id");
    check_refused(&spm, "tokenizer.bos_id", TC_ERR_FORMAT);

    const tc__meta *meta = tc__find_meta(&spm.file, "tokenizer.types");
    ((uint8_t *)meta->value)[500] = 7; /* the values are this test's own memory */
    check_refused(&spm, "piece 500", TC_ERR_FORMAT);
    meta = tc__find_meta(&spm.file, "tokenizer.types");
    ((uint8_t *)meta->value)[600] = TC__PIECE_BYTE;
    check_refused(&spm, "byte piece 600", TC_ERR_FORMAT);
    meta = tc__find_meta(&spm.file, "tokenizer.types");
    memset((uint8_t *)meta->value + 20, TC__PIECE_CONTROL, 1); /* one of the byte pieces */
    check_refused(&spm, "255 byte pieces", TC_ERR_FORMAT);
    meta = tc__find_meta(&spm.file, "tokenizer.scores");
    memset((uint8_t *)meta->value + 4 * 700, 0xFF, 4);
    check_refused(&spm, "score of piece 700", TC_ERR_FORMAT);

    tc__tokenizer *t;
    tc_error err;
    CHECK(tc__tokenizer_open(&spm.file, 1004, &t, &err) == TC_ERR_FORMAT && !t);
    static const char twins[] = "\1\0\0\0a\1\0\0\0a", broken[] = "\1\0\0\0a\1\0\0\0\xFF";
    static const char types[] = {TC__PIECE_NORMAL, TC__PIECE_NORMAL};
    float scores[2] = {0, 0};
    spm_set(&spm, "tokenizer.types", TC__META_BYTES, 2, types, 2);
    spm_set(&spm, "tokenizer.scores", TC__META_F32, 2, scores, sizeof scores);
    spm_set(&spm, "tokenizer.pieces", TC__META_STRINGS, 2, twins, sizeof twins - 1);
    CHECK(tc__tokenizer_open(&spm.file, 2, &t, &err) == TC_ERR_FORMAT);
    CHECK(tc__tokenizer_open(&spm.file, 9, &t, &err) == TC_ERR_FORMAT &&
          strstr(err.message, "both \"a\""));
    spm_set(&spm, "tokenizer.pieces", TC__META_STRINGS, 2, broken, sizeof broken - 1);
    CHECK(tc__tokenizer_open(&spm.file, 9, &t, &err) == TC_ERR_FORMAT &&
          strstr(err.message, "not UTF-8"));
    spm_set_text(&spm, "tokenizer.type", "none");
    CHECK(tc__tokenizer_open(&spm.file, 9, &t, &err) == TC_OK && !t);
    spm_close(&spm);
}

/* A model file with valid checksums may still say anything: no crash, whatever the bytes are. */
TEST(survives_random_metadata) {
    static const char text[] = "the model's <tool_call> \xE2\x82\xAC 12 king==a answer \xFF</s>";
    uint32_t state = 3;
    int opened = 0;
    for (int i = 0; i < 400; i++) {
        spm_file spm;
        tc__tokenizer *t;
        memset(&spm, 0, sizeof spm);
        REQUIRE(spm_open(&spm, SMALL, false));
        static const char *keys[] = {"tokenizer.pieces", "tokenizer.scores", "tokenizer.types"};
        for (int flips = 0; flips < 1 + i % 10; flips++) {
            const tc__meta *meta = tc__find_meta(&spm.file, keys[i % 3]);
            state = state * 1664525u + 1013904223u;
            size_t at = (state >> 8) % meta->size;
            state = state * 1664525u + 1013904223u;
            ((uint8_t *)meta->value)[at] ^= (uint8_t)(1 << (state >> 29));
        }
        if (!tc__tokenizer_open(&spm.file, spm.n_pieces, &t, NULL) && t) {
            tc__ids ids = encode(t, text, sizeof text - 1, true, TC__AT_START);
            tc__buf back = {0};
            CHECK(tc__decode(t, ids.data, ids.len, &back, NULL) == TC_OK);
            tc__buf_free(&back);
            tc__ids_free(&ids);
            opened++;
        }
        tc__tokenizer_close(t);
        spm_close(&spm);
    }
    CHECK_MSG(opened > 20 && opened < 380, "%d of 400 opened", opened);
}

static void check_bpe_refused(spm_file *spm, const char *word, int expected) {
    tc__tokenizer *t;
    tc_error err;
    int code = tc__tokenizer_open(&spm->file, BPE_VOCAB, &t, &err);
    CHECK_MSG(code == expected && !t && strstr(err.message, word), "%d: %s; expected %d, \"%s\"",
              code, code ? err.message : "", expected, word);
    tc__tokenizer_close(t);
    spm_close(spm);
    CHECK(bpe_open(spm, BPE("llama3")));
}

/* Element i of an array of u32, in the test's own memory. */
static uint32_t *word_of(spm_file *spm, const char *key, size_t i) {
    return (uint32_t *)(uintptr_t)(tc__find_meta(&spm->file, key)->value + 4 * i);
}

TEST(refuses_damaged_merges) {
    static const char *required[] = {"tokenizer.pieces", "tokenizer.types", "tokenizer.merges"};
    spm_file spm;
    REQUIRE(bpe_open(&spm, BPE("llama3")));
    for (size_t i = 0; i < TC_COUNT(required); i++) {
        spm_remove(&spm, required[i]);
        check_bpe_refused(&spm, required[i], TC_ERR_FORMAT);
    }
    spm_set_text(&spm, "tokenizer.split", "gpt5");
    check_bpe_refused(&spm, "'tokenizer.split' is \"gpt5\"", TC_ERR_UNSUPPORTED);
    spm_set_text(&spm, "tokenizer.alphabet", "words");
    check_bpe_refused(&spm, "'tokenizer.alphabet'", TC_ERR_UNSUPPORTED);
    spm_set_text(&spm, "tokenizer.alphabet", "characters");
    check_bpe_refused(&spm, "'tokenizer.split' and", TC_ERR_UNSUPPORTED);
    spm_set_u32(&spm, "tokenizer.nfc", 2);
    check_bpe_refused(&spm, "'tokenizer.nfc'", TC_ERR_FORMAT);
    spm_set_u32(&spm, "tokenizer.dummy_prefix", 1);
    check_bpe_refused(&spm, "'tokenizer.dummy_prefix'", TC_ERR_FORMAT);
    *word_of(&spm, "tokenizer.merges", 3) = BPE_VOCAB;
    check_bpe_refused(&spm, "merge 1 of 70000", TC_ERR_FORMAT);
    *word_of(&spm, "tokenizer.merges", 5) = 0;
    check_bpe_refused(&spm, "is not as long", TC_ERR_FORMAT);
    memcpy(word_of(&spm, "tokenizer.merges", 3), word_of(&spm, "tokenizer.merges", 0), 12);
    check_bpe_refused(&spm, "merge 1 of", TC_ERR_FORMAT);
    uint32_t two[2] = {0, 1};
    spm_set(&spm, "tokenizer.merges", TC__META_U32, 2, two, sizeof two);
    check_bpe_refused(&spm, "three numbers", TC_ERR_FORMAT);
    *word_of(&spm, "tokenizer.added_ids", 0) = BPE_VOCAB;
    check_bpe_refused(&spm, "added token 70000", TC_ERR_FORMAT);
    ((uint8_t *)(uintptr_t)tc__find_meta(&spm.file, "tokenizer.added_flags")->value)[0] = 64;
    check_bpe_refused(&spm, "has flags 64", TC_ERR_FORMAT);
    spm_close(&spm);
}

TEST(survives_random_merges) {
    static const char text[] =
        "don't  <|eot_id|> 12345 \xE6\x88\x91\xE4\xBB\xAC \xFF\r\n e\xCC\x81";
    static const char *const keys[] = {"tokenizer.pieces", "tokenizer.merges", "tokenizer.types",
                                       "tokenizer.added_pieces", "tokenizer.added_flags"};
    static const char *const files[] = {BPE("llama3"), BPE("neox"), BPE("llama2json")};
    uint32_t state = 5;
    int opened = 0;
    for (int i = 0; i < 300; i++) {
        spm_file spm;
        tc__tokenizer *t;
        REQUIRE(bpe_open(&spm, files[i % 3]));
        for (int flips = 0; flips < 1 + i % 4; flips++) {
            const tc__meta *meta = tc__find_meta(&spm.file, keys[i % 5]);
            state = state * 1664525u + 1013904223u;
            size_t at = (state >> 8) % meta->size;
            state = state * 1664525u + 1013904223u;
            ((uint8_t *)(uintptr_t)meta->value)[at] ^= (uint8_t)(1 << (state >> 29));
        }
        if (!tc__tokenizer_open(&spm.file, BPE_VOCAB, &t, NULL) && t) {
            tc__ids ids = encode(t, text, sizeof text - 1, true, TC__AT_START);
            tc__buf back = {0};
            CHECK(tc__decode(t, ids.data, ids.len, &back, NULL) == TC_OK);
            tc__buf_free(&back);
            tc__ids_free(&ids);
            opened++;
        }
        tc__tokenizer_close(t);
        spm_close(&spm);
    }
    CHECK_MSG(opened > 20 && opened < 280, "%d of 300 opened", opened);
}

/* ---- tokenizer.json ---- */

/* Reads a tokenizer.json in which one text is replaced by another. */
static void check_json(const char *path, const char *from, const char *to, const char *word) {
    tc__buf json = spm_read(path), changed = {0}, notes = {0};
    tokenizer_import import;
    tc_error err;
    const char *at = json.data ? strstr(json.data, from) : NULL;
    REQUIRE(at);
    tc__buf_add(&changed, json.data, (size_t)(at - json.data));
    tc__buf_str(&changed, to);
    tc__buf_str(&changed, at + strlen(from));
    memset(&import, 0, sizeof import);
    int code =
        tokenizer_json_parse(path, changed.data, changed.len, BPE_VOCAB, &import, &notes, &err);
    CHECK_MSG((code == TC_ERR_UNSUPPORTED || code == TC_ERR_FORMAT) && strstr(err.message, word) &&
                  strstr(err.message, path),
              "%s -> %s: %s", from, to, code ? err.message : "was accepted");
    tokenizer_import_free(&import);
    tc__buf_free(&json);
    tc__buf_free(&changed);
    tc__buf_free(&notes);
}

TEST(unknown_parts_of_a_tokenizer_json_are_refused_by_name) {
    static const struct {
        const char *path, *from, *to, *word;
    } cases[] = {
        {BPE("qwen2"), "\"NFC\"", "\"NFKC\"", "normalizer 'NFKC'"},
        {BPE("qwen2"), "\"BPE\"", "\"Unigram\"", "model 'Unigram'"},
        {BPE("qwen2"), "\"dropout\":null", "\"dropout\":0.1", "dropout"},
        {BPE("qwen2"), "\"end_of_word_suffix\":null", "\"end_of_word_suffix\":\"</w>\"",
         "end_of_word_suffix"},
        {BPE("qwen2"), "\\\\p{N}|", "\\\\p{N}{1,2}|", "expression '(?i:"},
        {BPE("qwen2"), "\"Isolated\"", "\"MergedWithNext\"", "pre-tokenizer 'Split'"},
        {BPE("qwen2"), "\"use_regex\":false", "\"use_regex\":true", "use_regex"},
        {BPE("neox"), "\"add_prefix_space\":false", "\"add_prefix_space\":true",
         "add_prefix_space"},
        {BPE("neox"), "\"pre_tokenizer\":{\"type\":\"ByteLevel\"",
         "\"pre_tokenizer\":{\"type\":\"BertPreTokenizer\"", "pre-tokenizer 'BertPreTokenizer'"},
        {BPE("neox"), "\"post_processor\":{\"type\":\"ByteLevel\"",
         "\"post_processor\":{\"type\":\"BertProcessing\"", "post-processor 'BertProcessing'"},
        {BPE("neox"), "\"decoder\":{\"type\":\"ByteLevel\"", "\"decoder\":{\"type\":\"WordPiece\"",
         "decoder 'WordPiece'"},
        {BPE("falcon"), "[0-9][0-9][0-9]", "[0-9][0-9]", "pre-tokenizer 'Punctuation'"},
        {BPE("metaspace"), "\"split\":false", "\"split\":true", "Metaspace that splits"},
        {BPE("llama3"), "\"merges\":[", "\"merges\":[\"x\",", "merge 0"},
        {BPE("llama3"), "\"merges\":[", "\"merges\":[[\"x\",\"qqq\"],", "merge 0 to 'xqqq'"},
        {BPE("llama3"), "\"vocab\":{", "\"vocab\":{\"qqq\":99999,", "100000 pieces"},
        {BPE("llama3"), "\"vocab\":{", "\"vocab\":{\"qqq\":5,", "twice"},
        {BPE("llama3"), "\"vocab\":{", "\"vocab\":{\"qqq\":\"5\",", "no number"},
    };
    for (size_t i = 0; i < TC_COUNT(cases); i++)
        check_json(cases[i].path, cases[i].from, cases[i].to, cases[i].word);
}

TEST_MAIN(
    RUN(equals_sentencepiece) RUN(equals_sentencepiece_without_byte_fallback) RUN(equals_tokenizers)
        RUN(passes_the_llama2_cases) RUN(passes_the_mpt_cases) RUN(passes_the_falcon_cases) RUN(
            treats_special_pieces_as_transformers_does)
            RUN(finds_special_pieces_in_trusted_bytes_only) RUN(spans_are_one_text) RUN(
                added_tokens_are_special_and_the_longest_wins) RUN(continued_text_gets_no_prefix)
                RUN(a_person_makes_no_mark) RUN(byte_level_spans_are_one_text)
                    RUN(byte_level_takes_malformed_bytes_for_replacements)
                        RUN(decodes_token_by_token_as_at_once) RUN(decodes_byte_level_pieces)
                            RUN(refuses_ids_outside_the_vocabulary) RUN(round_trips)
                                RUN(long_texts_take_no_time)
                                    RUN(long_texts_take_no_time_with_a_table_of_merges) RUN(
                                        refuses_damaged_metadata) RUN(survives_random_metadata)
                                        RUN(refuses_damaged_merges) RUN(survives_random_merges) RUN(
                                            unknown_parts_of_a_tokenizer_json_are_refused_by_name))
