/* The stream against a reference that has the whole text at once, at every way of cutting it. */
#include "base.h"
#include "stream.h"
#include "test.h"

#define FFFD "\xEF\xBF\xBD"

/* The text that bytes are: U+FFFD for each malformed byte. */
static tc__buf decoded(const char *bytes, size_t len) {
    tc__buf text = {0};
    for (size_t i = 0, n; i < len; i += n) {
        uint32_t code;
        n = tc__utf8_decode(bytes + i, len - i, &code);
        tc__buf_add(&text, code == UINT32_MAX ? FFFD : bytes + i, code == UINT32_MAX ? 3 : n);
    }
    return text;
}

/* What should be shown of a whole reply: its text up to the stop string that is complete first (the
 * longest of those). Written from the header, not from the code: searches every end and start. */
static bool reference(const char *bytes, size_t len, const char *const *stops, tc__buf *out) {
    tc__buf text = decoded(bytes, len);
    for (size_t end = 1; end <= text.len; end++)
        for (size_t begin = 0; begin < end; begin++)
            for (size_t s = 0; stops && stops[s]; s++)
                if (strlen(stops[s]) == end - begin &&
                    !memcmp(text.data + begin, stops[s], end - begin)) {
                    tc__buf_add(out, text.data, begin);
                    tc__buf_free(&text);
                    return true;
                }
    if (text.len) tc__buf_add(out, text.data, text.len);
    tc__buf_free(&text);
    return false;
}

/* True if some bytes behind these would make one character of them all: tries the second bytes at
 * the borders of what UTF-8 allows. */
static bool may_become_a_character(const char *bytes, size_t len) {
    static const char seconds[] = "\x80\x8F\x90\x9F\xA0\xBF";
    for (size_t total = len + 1; total <= 4; total++)
        for (size_t i = 0; i < 6; i++) {
            uint32_t code;
            char whole[4] = "\x80\x80\x80\x80";
            memcpy(whole, bytes, len);
            if (len == 1) whole[1] = seconds[i];
            if (tc__utf8_decode(whole, total, &code) == total && code != UINT32_MAX) return true;
        }
    return false;
}

/* How many bytes may be shown of a reply that has begun like this and has met no stop string: all
 * whole characters but those that begin a stop string. Neither more nor fewer are. */
static size_t may_be_shown(const char *bytes, size_t len, const char *const *stops) {
    size_t unfinished = 0, held = 0;
    for (size_t n = 1; n <= 3 && n <= len; n++)
        if (may_become_a_character(bytes + len - n, n)) unfinished = n;
    tc__buf text = decoded(bytes, len - unfinished);
    for (size_t s = 0; stops && stops[s]; s++)
        for (size_t k = 1; k < strlen(stops[s]) && k <= text.len; k++)
            if (k > held && !memcmp(text.data + text.len - k, stops[s], k)) held = k;
    size_t shown = text.len - held;
    tc__buf_free(&text);
    return shown;
}

static bool whole_characters(const char *text, size_t len) {
    for (size_t i = 0; i < len;) {
        uint32_t code;
        i += tc__utf8_decode(text + i, len - i, &code);
        if (code == UINT32_MAX) return false;
    }
    return true;
}

/* Feeds bytes in pieces that end where `cuts` has a bit set (bit i: after byte i; the pattern
 * repeats for long texts) and compares what was shown, at the end and meanwhile. */
static void check_cut(const char *bytes, size_t len, const char *const *stops, uint32_t cuts,
                      const tc__buf *want, bool stopped) {
    tc__stream stream;
    tc__buf out = {0};
    tc__stream_init(&stream, stops);
    for (size_t i = 0, from = 0; i < len; i++) {
        if (i + 1 < len && !(cuts >> (i % 20) & 1)) continue;
        tc__stream_feed(&stream, bytes + from, i + 1 - from, &out);
        from = i + 1;
        CHECK_MSG(out.len <= want->len && (!out.len || !memcmp(out.data, want->data, out.len)),
                  "showed \"%s\" too early, cuts %x", out.data, cuts);
        CHECK(whole_characters(out.data, out.len));
        CHECK_MSG(stream.stopped || out.len == may_be_shown(bytes, from, stops),
                  "showed %zu bytes of %zu, cuts %x", out.len, from, cuts);
    }
    tc__stream_end(&stream, &out);
    CHECK_MSG(out.len == want->len && (!out.len || !memcmp(out.data, want->data, out.len)) &&
                  stream.stopped == stopped,
              "\"%s\", stopped %d, cuts %x; expected \"%s\", %d", out.data ? out.data : "",
              stream.stopped, cuts, want->data ? want->data : "", stopped);
    tc__buf_free(&out);
    tc__stream_free(&stream);
}

/* Every way of cutting texts of up to 13 bytes; for longer ones each single cut, each period, and
 * byte by byte. */
static void check_text(const char *bytes, size_t len, const char *const *stops) {
    tc__buf want = {0};
    bool stopped = reference(bytes, len, stops, &want);
    if (len <= 13) {
        for (uint32_t cuts = 0; cuts < 1u << len; cuts++)
            check_cut(bytes, len, stops, cuts, &want, stopped);
    } else {
        for (unsigned i = 0; i < 20; i++) check_cut(bytes, len, stops, 1u << i, &want, stopped);
        for (uint32_t cuts = 0; cuts < 1024; cuts++)
            check_cut(bytes, len, stops, cuts * 1025, &want, stopped);
        check_cut(bytes, len, stops, 0xFFFFF, &want, stopped);
    }
    tc__buf_free(&want);
}

static void check(const char *text, const char *const *stops) {
    check_text(text, strlen(text), stops);
}

/* What a stream shows of one text, as a string; compares. */
static bool shows(const char *text, const char *const *stops, const char *expected, bool stopped) {
    tc__buf want = {0};
    bool same = reference(text, strlen(text), stops, &want) == stopped &&
                want.len == strlen(expected) &&
                !memcmp(want.len ? want.data : "", expected, want.len);
    tc__buf_free(&want);
    check(text, stops);
    return same;
}

#define STOPS(...) ((const char *const[]){__VA_ARGS__, NULL})

TEST(shows_whole_characters) {
    check("plain text", NULL);
    check("\xC3\xA9\xE2\x82\xAC\xF0\x9F\x99\x82.", NULL);
    check("\xF0\x9F\x99\x82\xF0\x9F\x99\x82\xF0\x9F\x99\x82\xF0\x9F\x99\x82 and more", NULL);
    check("", NULL);
    check_text("a\0b\0", 4, NULL);
}

TEST(replaces_malformed_bytes) {
    CHECK(shows("\xFF", NULL, FFFD, false));
    CHECK(shows("a\x80"
                "b",
                NULL, "a" FFFD "b", false));
    CHECK(shows("\xE2\x82", NULL, FFFD FFFD, false)); /* unfinished at the end */
    CHECK(shows("\xE2\x82"
                "a",
                NULL, FFFD FFFD "a", false));
    CHECK(shows("\xE2\x82\xE2\x82\xAC", NULL, FFFD FFFD "\xE2\x82\xAC", false));
    CHECK(shows("\xF0\x9F\x99\xC3\xA9", NULL, FFFD FFFD FFFD "\xC3\xA9", false));
    CHECK(shows("\xC0\x80\xC1\xBF", NULL, FFFD FFFD FFFD FFFD, false)); /* overlong */
    CHECK(shows("\xE0\x9F\xBF", NULL, FFFD FFFD FFFD, false));
    CHECK(shows("\xF0\x8F\xBF\xBF", NULL, FFFD FFFD FFFD FFFD, false));
    CHECK(shows("\xED\xA0\x80", NULL, FFFD FFFD FFFD, false));          /* a surrogate */
    CHECK(shows("\xF4\x90\x80\x80", NULL, FFFD FFFD FFFD FFFD, false)); /* above U+10FFFF */
    CHECK(shows("\xF5\x80", NULL, FFFD FFFD, false));
    CHECK(shows("\xEF\xBF\xBD", NULL, FFFD, false));
}

TEST(stops_at_stop_strings) {
    CHECK(shows("one###two", STOPS("###"), "one", true));
    CHECK(shows("one##two#", STOPS("###"), "one##two#", false)); /* a beginning, then none */
    CHECK(shows("one##", STOPS("###"), "one##", false));         /* a beginning at the very end */
    CHECK(shows("###", STOPS("###"), "", true));
    CHECK(shows("a####", STOPS("###"), "a", true));
    CHECK(shows("aab", STOPS("ab"), "a", true));
    CHECK(shows("aaab", STOPS("aab"), "a", true));
    CHECK(shows("ababac", STOPS("abac"), "ab", true));
    CHECK(shows("\n### Human:", STOPS("### Human:"), "\n", true));
    CHECK(shows("x", STOPS("", "x"), "", true)); /* an empty one is ignored */
    CHECK(shows("x", STOPS(""), "x", false));
}

TEST(stops_at_overlapping_stop_strings) {
    CHECK(shows("abcd", STOPS("abcd", "bc"), "a", true));     /* complete first */
    CHECK(shows("xabc", STOPS("c", "abc", "bc"), "x", true)); /* complete together: the longest */
    CHECK(shows("abab", STOPS("ba", "abab"), "a", true));
    CHECK(shows("</User", STOPS("</s>", "<|im_end|>", "User"), "</", true));
    CHECK(shows("aaaa", STOPS("aaaaa", "aaaab"), "aaaa", false));
    CHECK(shows("User:", STOPS("User", "User:"), "", true));
}

TEST(stop_strings_hold_characters) {
    const char *euro = "\xE2\x82\xAC";
    CHECK(shows("1\xE2\x82\xAC 2", STOPS(euro), "1", true));
    CHECK(shows("1\xE2\x82\xAD", STOPS(euro), "1\xE2\x82\xAD", false)); /* shares two bytes */
    CHECK(shows("1\xE2\x82", STOPS(euro), "1" FFFD FFFD, false));
    CHECK(shows("a\xE6\x9D\xB1\xE4\xBA\xAC!", STOPS("\xE6\x9D\xB1\xE4\xBA\xAC"), "a", true));
    CHECK(shows("\xE6\x9D\xB1\xE4\xBA", STOPS("\xE6\x9D\xB1\xE4\xBA\xAC"), "\xE6\x9D\xB1" FFFD FFFD,
                false));
    CHECK(shows("a\xFF!", STOPS(FFFD), "a", true)); /* matched against what would be shown */
    CHECK(shows("a\xE2", STOPS(FFFD), "a", true));  /* also when it is only known at the end */
}

/* Random texts over few letters, so that stop strings begin everywhere. */
TEST(random_texts) {
    static const char *atoms[] = {"a",    "b",    "a",    "b", "\xC3\xA9", "\xE2\x82\xAC",
                                  "\xE2", "\x82", "\xFF", " "};
    static const char *const sets[][4] = {{"ab", "aba", NULL},
                                          {"aab", "b\xC3\xA9", "\xE2\x82\xAC\xE2\x82\xAC", NULL},
                                          {"aaa", "bab", "ba\xC3\xA9", NULL},
                                          {FFFD " ", "ab" FFFD, NULL},
                                          {NULL}};
    uint32_t state = 7;
    for (int i = 0; i < 400; i++) {
        tc__buf text = {0};
        while (text.len < 9) {
            state = state * 1664525u + 1013904223u;
            tc__buf_str(&text, atoms[(state >> 16) % TC_COUNT(atoms)]);
        }
        check_text(text.data, text.len, sets[i % 5]);
        tc__buf_free(&text);
    }
}

TEST(nothing_follows_a_stop) {
    tc__stream stream;
    tc__buf out = {0};
    tc__stream_init(&stream, STOPS("stop"));
    tc__stream_feed(&stream, "go stop go", 10, &out);
    CHECK(stream.stopped && out.len == 3);
    tc__stream_feed(&stream, "more", 4, &out);
    tc__stream_end(&stream, &out);
    CHECK(out.len == 3 && !strcmp(out.data, "go "));
    tc__buf_free(&out);
    tc__stream_free(&stream);
}

TEST(reports_memory_failure) {
    tc__stream stream;
    tc__buf out = {0};
    tc__stream_init(&stream, NULL);
    stream.held.failed = true;
    tc__stream_feed(&stream, "x", 1, &out);
    CHECK(out.failed);
    tc__buf_free(&out);
    tc__stream_free(&stream);
}

TEST_MAIN(RUN(shows_whole_characters) RUN(replaces_malformed_bytes) RUN(stops_at_stop_strings)
              RUN(stops_at_overlapping_stop_strings) RUN(stop_strings_hold_characters)
                  RUN(random_texts) RUN(nothing_follows_a_stop) RUN(reports_memory_failure))
