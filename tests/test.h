/* test - the few macros every test program uses. A program is a list of TEST functions run by
 * TEST_MAIN; each test counts once as passed, failed or skipped. The last line of the output is
 * "N passed, N failed, N skipped" and the exit code is 1 if any failed.
 *
 *     TEST(decodes_half_precision) { CHECK(tc__f16_to_f32(0x3c00) == 1.0f); }
 *     TEST_MAIN(RUN(decodes_half_precision))
 */
#ifndef TEST_H
#define TEST_H

#include <stdio.h>
#include <stdlib.h>
#include <string.h>

static int test_passed_, test_failed_, test_skipped_; /* tests */
static int test_bad_, test_skip_;                     /* state of the running test */

#define TEST(name) static void name(void)

/* Reports and goes on, so that one run shows every failure. */
#define CHECK(condition)                                                                           \
    ((condition) ? (void)0                                                                         \
                 : (void)(test_bad_++,                                                             \
                          fprintf(stderr, "%s:%d: CHECK(%s)\n", __FILE__, __LINE__, #condition)))

/* CHECK with the facts: CHECK_MSG(a == b, "a %d, b %d", a, b). */
#define CHECK_MSG(condition, ...)                                                                  \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_bad_++;                                                                           \
            fprintf(stderr, "%s:%d: CHECK(%s): ", __FILE__, __LINE__, #condition);                 \
            fprintf(stderr, __VA_ARGS__);                                                          \
            fputc('\n', stderr);                                                                   \
        }                                                                                          \
    } while (0)

/* Leaves the running test at once when there is no point in going on. */
#define REQUIRE(condition)                                                                         \
    do {                                                                                           \
        if (!(condition)) {                                                                        \
            test_bad_++;                                                                           \
            fprintf(stderr, "%s:%d: REQUIRE(%s)\n", __FILE__, __LINE__, #condition);               \
            return;                                                                                \
        }                                                                                          \
    } while (0)

/* Leaves the running test as skipped; the reason is printed. */
#define SKIP(...)                                                                                  \
    do {                                                                                           \
        test_skip_ = 1;                                                                            \
        printf("  skipped, because ");                                                             \
        printf(__VA_ARGS__);                                                                       \
        putchar('\n');                                                                             \
        return;                                                                                    \
    } while (0)

static void test_run_(const char *name, void (*test)(void)) {
    test_bad_ = test_skip_ = 0;
    test();
    if (test_bad_) {
        test_failed_++;
        printf("  FAILED %s\n", name);
    } else if (test_skip_) {
        test_skipped_++;
        printf("  skip   %s\n", name);
    } else {
        test_passed_++;
        printf("  ok     %s\n", name);
    }
    fflush(stdout);
}

#define RUN(name) test_run_(#name, name);

#define TEST_MAIN(runs)                                                                            \
    int main(void) {                                                                               \
        runs printf("%d passed, %d failed, %d skipped\n", test_passed_, test_failed_,              \
                    test_skipped_);                                                                \
        return test_failed_ != 0;                                                                  \
    }

#endif /* TEST_H */
