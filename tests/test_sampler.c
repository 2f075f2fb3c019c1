/* The sampler against a second implementation written from the text at tc_sampling in tinychat.h,
 * and against statistics. */
#include "sampler.h"

#include "test.h"

#include <math.h>

enum { MAX_VOCAB = 131072, MAX_CONTEXT = 256 };

static tc__candidate candidates[MAX_VOCAB];
static uint8_t seen[MAX_VOCAB];

static tc_sampling plain(void) {
    tc_sampling sampling = {1, 1, 0, 0, 1, -1, 0};
    return sampling;
}

static int sample(const float *logits, int n, const tc_sampling *sampling, const int32_t *context,
                  size_t n_context, double u, int32_t *id) {
    tc_error err;
    return tc__sample(logits, n, sampling, context, n_context, u, candidates, seen, id, &err);
}

/* ---- the second implementation ---- */

typedef struct choice {
    double probability;
    int id;
} choice;

static int by_probability(const void *a, const void *b) {
    const choice *x = a, *y = b;
    if (x->probability != y->probability) return x->probability < y->probability ? 1 : -1;
    return x->id - y->id;
}

/* Steps 1 to 7 with a full sort. Sets *margin to how near u was to another answer. */
static int naive(const float *logits, int n, const tc_sampling *s, const int32_t *context,
                 size_t n_context, double u, double *margin) {
    double *values = malloc((size_t)n * sizeof *values), largest = -INFINITY, sum = 0;
    choice *sorted = malloc((size_t)n * sizeof *sorted);
    bool greedy = s->temperature < 1e-5f;
    *margin = 1;
    for (int i = 0; i < n; i++) {
        values[i] = greedy ? logits[i] : (double)logits[i] / s->temperature;
        bool met = false;
        for (size_t c = 0; c < n_context; c++) met |= context[c] == i;
        if (met && values[i] > 0)
            values[i] /= s->repeat_penalty;
        else if (met)
            values[i] *= s->repeat_penalty;
        if (values[i] > largest) largest = values[i];
    }
    for (int i = 0; i < n; i++) sum += exp(values[i] - largest);
    for (int i = 0; i < n; i++) {
        sorted[i].probability = greedy ? values[i] : exp(values[i] - largest) / sum;
        sorted[i].id = i;
    }
    qsort(sorted, (size_t)n, sizeof *sorted, by_probability);
    int kept = greedy ? 1 : n, answer = sorted[0].id;
    double mass = 0;
    if (s->top_p < 1 && !greedy)
        for (kept = 0; kept < n && mass < s->top_p; kept++) {
            double before = s->top_p - mass;
            mass += sorted[kept].probability;
            if (before < *margin) *margin = before; /* nearly enough already */
            if (fabs(s->top_p - mass) < *margin) *margin = fabs(s->top_p - mass);
        }
    if (s->top_k > 0 && kept > s->top_k) kept = s->top_k;
    int probable = 1;
    while (probable < kept && sorted[probable].probability >= s->min_p * sorted[0].probability)
        probable++;
    if (s->min_p > 0) kept = probable;
    mass = 0;
    for (int i = 0; i < kept; i++) mass += sorted[i].probability;
    double reached = 0, target = u * mass;
    for (int i = 0; i < kept && !greedy; i++) {
        reached += sorted[i].probability;
        if (i + 1 < kept && fabs(reached - target) < *margin) *margin = fabs(reached - target);
        answer = sorted[i].id;
        if (reached > target) break;
    }
    free(values);
    free(sorted);
    return answer;
}

/* A generator of its own for the test data. */
static uint32_t random_state = 1;
static uint32_t random_bits(void) {
    random_state ^= random_state << 13;
    random_state ^= random_state >> 17;
    random_state ^= random_state << 5;
    return random_state;
}
static double random_uniform(void) {
    return random_bits() / 4294967296.0;
}

/* ---- tests ---- */

/* The first outputs of SplitMix64 for the seed 1234567, as published with the reference code. */
TEST(random_numbers_are_splitmix64) {
    static const uint64_t published[] = {6457827717110365317u, 3203168211198807973u,
                                         9817491932198370423u, 4593380528125082431u,
                                         16408922859458223821u};
    for (size_t i = 0; i < TC_COUNT(published); i++)
        CHECK(tc__random(1234567, i) == (double)(published[i] >> 11) / 9007199254740992.0);
    double low = 1, high = 0, mean = 0;
    for (uint64_t i = 0; i < 100000; i++) {
        double u = tc__random(42, i);
        if (u < low) low = u;
        if (u > high) high = u;
        mean += u / 100000;
    }
    CHECK_MSG(low >= 0 && high < 1 && fabs(mean - 0.5) < 0.005, "%g %g %g", low, high, mean);
    CHECK(tc__random_seed() != tc__random_seed());
    CHECK(tc__random_seed() != TC_SEED_RANDOM);
}

TEST(filters_equal_a_full_sort) {
    static const float temperatures[] = {0, 1e-6f, 0.1f, 0.7f, 1, 1.5f, 100};
    static const float top_ps[] = {1, 2, 0.95f, 0.5f, 0.1f, 1e-9f, 0.999999f};
    static const int top_ks[] = {0, 1, 2, 5, 40, 1000};
    static const float min_ps[] = {0, 0.01f, 0.2f, 1};
    static const float penalties[] = {1, 1.1f, 2, 0.5f};
    float logits[300];
    int32_t context[MAX_CONTEXT];
    int compared = 0, near = 0;
    for (int round = 0; round < 6000; round++) {
        int n = 1 + (int)(random_bits() % 300);
        double spread = random_bits() % 2 ? 3 : 20;
        bool ties = random_bits() % 3 == 0;
        for (int i = 0; i < n; i++) {
            logits[i] = (float)((random_uniform() + random_uniform() - 1) * spread);
            if (ties) logits[i] = floorf(logits[i]);
        }
        size_t n_context = random_bits() % MAX_CONTEXT;
        for (size_t i = 0; i < n_context; i++) context[i] = (int32_t)(random_bits() % (uint32_t)n);
        tc_sampling s = plain();
        s.temperature = temperatures[random_bits() % TC_COUNT(temperatures)];
        s.top_p = top_ps[random_bits() % TC_COUNT(top_ps)];
        s.top_k = top_ks[random_bits() % TC_COUNT(top_ks)];
        s.min_p = min_ps[random_bits() % TC_COUNT(min_ps)];
        s.repeat_penalty = penalties[random_bits() % TC_COUNT(penalties)];
        for (int draw = 0; draw < 4; draw++) {
            double u = random_uniform(), margin;
            int32_t id = -1;
            int expected = naive(logits, n, &s, context, n_context, u, &margin);
            CHECK(sample(logits, n, &s, context, n_context, u, &id) == TC_OK);
            compared++;
            if (margin < 1e-11)
                near++; /* rounding decides: both answers are right */
            else
                CHECK_MSG(id == expected, "T %g p %g k %d min %g pen %g n %d u %.17g: %d, not %d",
                          s.temperature, s.top_p, s.top_k, s.min_p, s.repeat_penalty, n, u, (int)id,
                          expected);
        }
    }
    CHECK_MSG(near < compared / 20, "%d of %d draws could not be compared", near, compared);
    for (int i = 0; i < 300; i++) REQUIRE(seen[i] == 0);
}

TEST(a_large_vocabulary_gives_the_same_ids) {
    enum { N = MAX_VOCAB };
    float *logits = malloc(N * sizeof *logits);
    static const int32_t context[] = {5, 100000, 5, 131071};
    REQUIRE(logits);
    for (int i = 0; i < N; i++) logits[i] = (float)(random_uniform() * 12);
    tc_sampling s[4] = {tc_default_sampling(), plain(), plain(), plain()};
    s[2].top_p = 0.9f;
    s[3].min_p = 0.3f;
    for (size_t k = 0; k < 4; k++)
        for (int draw = 0; draw < 3; draw++) {
            double u = random_uniform(), margin;
            int32_t id = -1;
            int expected = naive(logits, N, &s[k], context, 4, u, &margin);
            CHECK(sample(logits, N, &s[k], context, 4, u, &id) == TC_OK);
            CHECK_MSG(id == expected || margin < 1e-11, "case %zu: %d, not %d", k, (int)id,
                      expected);
        }
    /* Many unlikely ids that are likely together: they come in the order of their ids. */
    for (int i = 0; i < N; i++) logits[i] = i == 7 ? 0 : -12;
    double tail = exp(-12), all = 1 + (N - 1) * tail;
    for (int draw = 0; draw < 5; draw++) {
        int32_t id = -1, expected = 20000 * draw + 1000;
        double u = (1 + (expected - 0.5) * tail) / all; /* one id before it is 7 */
        CHECK(sample(logits, N, &s[1], NULL, 0, u, &id) == TC_OK);
        CHECK_MSG(id == expected, "%d, not %d", (int)id, (int)expected);
    }
    free(logits);
}

TEST(greedy_takes_the_lowest_id_among_equals) {
    float logits[] = {-1, 3, 2.5f, 3, 3, -7};
    tc_sampling s = plain();
    int32_t id = -1;
    s.temperature = 0;
    s.top_k = 3; /* has no effect */
    CHECK(sample(logits, 6, &s, NULL, 0, 0.999, &id) == TC_OK && id == 1);
    s.temperature = 9e-6f;
    CHECK(sample(logits, 6, &s, NULL, 0, 0.999, &id) == TC_OK && id == 1);
    logits[1] = 2.75f;
    CHECK(sample(logits, 6, &s, NULL, 0, 0, &id) == TC_OK && id == 3);
    CHECK(sample(logits, 1, &s, NULL, 0, 0, &id) == TC_OK && id == 0);
}

TEST(penalty_counts_each_id_once) {
    /* 1.2 / 1.1 = 1.09: below 1.1 only if the penalty is applied, above 1.05 only if once. */
    const float logits[] = {1.2f, 1.05f, 1.1f};
    const int32_t thrice[] = {0, 0, 0}, all[] = {2, 0, 2, 0};
    tc_sampling s = plain();
    int32_t id = -1;
    s.temperature = 0;
    s.repeat_penalty = 1.1f;
    CHECK(sample(logits, 3, &s, NULL, 0, 0, &id) == TC_OK && id == 0);
    CHECK(sample(logits, 3, &s, thrice, 3, 0, &id) == TC_OK && id == 2);
    CHECK(sample(logits, 3, &s, all, 4, 0, &id) == TC_OK && id == 0); /* 1.0909, 1.05, 1.0 */
    s.repeat_penalty = 1;
    CHECK(sample(logits, 3, &s, thrice, 3, 0, &id) == TC_OK && id == 0);
}

TEST(penalty_lowers_negative_logits_too) {
    const float logits[] = {-1.0f, -1.05f, 0};
    const int32_t first[] = {0}, zero[] = {2, 0};
    tc_sampling s = plain();
    int32_t id = -1;
    s.temperature = 0;
    s.repeat_penalty = 1.1f;
    CHECK(sample(logits, 2, &s, NULL, 0, 0, &id) == TC_OK && id == 0);
    CHECK(sample(logits, 2, &s, first, 1, 0, &id) == TC_OK && id == 1);
    CHECK(sample(logits, 3, &s, zero, 2, 0, &id) == TC_OK && id == 2); /* 0 stays 0 */
    s.repeat_penalty = 0.5f; /* a bonus: -1.05 becomes -0.525 */
    const int32_t second[] = {1};
    CHECK(sample(logits, 2, &s, second, 1, 0, &id) == TC_OK && id == 1);
}

/* The exact distribution on paper: logits ln(1), ln(2), ln(4), ln(8) at temperature 1. */
TEST(filters_keep_what_the_manual_says) {
    const float logits[] = {0, 0.6931472f, 1.3862944f, 2.0794415f}; /* 1, 2, 4, 8 of 15 */
    static const struct {
        float top_p;
        int top_k;
        float min_p;
        int kept;
    } cases[] = {
        {1, 0, 0, 4},      {0.53f, 0, 0, 1},  {0.54f, 0, 0, 2}, /* 8/15 = 0.533 */
        {0.79f, 0, 0, 2},  {0.81f, 0, 0, 3},  {0.99f, 0, 0, 4}, {1e-30f, 0, 0, 1},
        {1, 3, 0, 3},      {1, 1, 0, 1},      {1, 9, 0, 4},     {0.81f, 2, 0, 2},
        {1, 0, 0.126f, 3}, {1, 0, 0.124f, 4}, {1, 0, 1, 1},     {0.54f, 3, 0.2f, 2},
    };
    for (size_t k = 0; k < TC_COUNT(cases); k++) {
        tc_sampling s = plain();
        s.top_p = cases[k].top_p;
        s.top_k = cases[k].top_k;
        s.min_p = cases[k].min_p;
        bool met[4] = {false, false, false, false};
        for (int step = 0; step < 1000; step++) {
            int32_t id = -1;
            REQUIRE(sample(logits, 4, &s, NULL, 0, step / 1000.0, &id) == TC_OK);
            REQUIRE(id >= 0 && id < 4);
            met[id] = true;
        }
        int kept = met[0] + met[1] + met[2] + met[3];
        CHECK_MSG(kept == cases[k].kept && met[3], "case %zu keeps %d", k, kept);
    }
    int32_t id = -1;
    tc_sampling s = plain();
    CHECK(sample(logits, 4, &s, NULL, 0, 8.0 / 15 - 1e-6, &id) == TC_OK && id == 3);
    CHECK(sample(logits, 4, &s, NULL, 0, 8.0 / 15 + 1e-6, &id) == TC_OK && id == 2);
    CHECK(sample(logits, 4, &s, NULL, 0, 14.0 / 15 + 1e-6, &id) == TC_OK && id == 0);
    const float equal[] = {5, 5, 5, 5}; /* u = 1/4 is the first that belongs to the second id */
    for (int i = 0; i < 4; i++)
        for (s.top_k = 0; s.top_k <= 4; s.top_k += 4)
            CHECK(sample(equal, 4, &s, NULL, 0, i / 4.0, &id) == TC_OK && id == i);
}

/* Draws of one id each from fresh seeds and from one sequence; 99.9 % limit of chi-square. */
TEST(draws_have_the_right_frequencies) {
    enum { N = 8, DRAWS = 40000 };
    const float logits[N] = {0, 1, -2, 0.5f, 2, 2, -1, 1.5f};
    const int32_t context[] = {4, 7};
    static const double limit[N] = {0, 10.83, 13.82, 16.27, 18.47, 20.52, 22.46, 24.32};
    for (int k = 0; k < 6; k++) {
        tc_sampling s = plain();
        s.temperature = k % 2 ? 0.7f : 1.3f;
        s.repeat_penalty = k >= 2 ? 1.5f : 1;
        s.top_k = k == 4 ? 5 : 0;
        double p[N], sum = 0, chi = 0;
        int counts[N] = {0}, order[N], kept = s.top_k ? s.top_k : N;
        for (int i = 0; i < N; i++) {
            double value = logits[i] / (double)s.temperature;
            if (k >= 2 && (i == 4 || i == 7)) value /= (double)s.repeat_penalty;
            p[i] = exp(value);
            int at = i;
            for (; at > 0 && p[order[at - 1]] < p[i]; at--) order[at] = order[at - 1];
            order[at] = i;
        }
        for (int i = kept; i < N; i++) p[order[i]] = 0;
        for (int i = 0; i < N; i++) sum += p[i];
        for (int draw = 0; draw < DRAWS; draw++) {
            int32_t id = -1;
            double u = k < 3 ? tc__random((uint64_t)draw, 0) : tc__random(7, (uint64_t)draw);
            REQUIRE(sample(logits, N, &s, context, 2, u, &id) == TC_OK);
            counts[id]++;
        }
        for (int i = 0; i < N; i++) {
            double expected = DRAWS * p[i] / sum;
            if (p[i] == 0)
                CHECK_MSG(counts[i] == 0, "case %d: id %d is filtered out", k, i);
            else
                chi += (counts[i] - expected) * (counts[i] - expected) / expected;
        }
        CHECK_MSG(chi < limit[kept - 1], "case %d: chi-square %.1f", k, chi);
    }
}

TEST(extreme_values_are_no_trouble) {
    float logits[] = {-1e30f, 3.4e38f, -3.4e38f, 1e30f, 0};
    const int32_t context[] = {0, 1, 2, 3, 4};
    static const float temperatures[] = {0, 1e-5f, 1, 3.4e38f};
    static const float penalties[] = {1, 1e-30f, 3.4e38f};
    for (size_t t = 0; t < TC_COUNT(temperatures); t++)
        for (size_t p = 0; p < TC_COUNT(penalties); p++)
            for (int step = 0; step < 50; step++) {
                tc_sampling s = tc_default_sampling();
                s.temperature = temperatures[t];
                s.repeat_penalty = penalties[p];
                int32_t id = -1;
                double u = step == 49 ? 1 - 0x1p-53 : step / 49.0;
                REQUIRE(sample(logits, 5, &s, context, 5, u, &id) == TC_OK);
                REQUIRE(id >= 0 && id < 5);
                /* Far ahead, unless both temperature and penalty level everything out. */
                if (t < 2 || (t == 2 && p < 2)) CHECK(id == 1);
            }
    float one = -1e30f;
    int32_t id = -1;
    tc_sampling s = tc_default_sampling();
    CHECK(sample(&one, 1, &s, context, 1, 1 - 0x1p-53, &id) == TC_OK && id == 0);
    float equal[1000] = {0};
    s = plain();
    s.temperature = 3.4e38f; /* uniform, whatever the logits are */
    for (int i = 0; i < 1000; i++) equal[i] = (float)i;
    CHECK(sample(equal, 1000, &s, NULL, 0, 0, &id) == TC_OK && id >= 0);
    CHECK(sample(equal, 1000, &s, NULL, 0, 1 - 0x1p-53, &id) == TC_OK && id < 1000);
}

TEST(a_logit_that_is_no_number_is_an_error) {
    static const float bad[] = {NAN, INFINITY, -INFINITY};
    for (size_t b = 0; b < TC_COUNT(bad); b++)
        for (int at = 0; at < 5; at++)
            for (int greedy = 0; greedy < 2; greedy++) {
                float logits[] = {1, 2, 3, 4, 5};
                logits[at] = bad[b];
                logits[4] = bad[(b + 1) % 3];
                tc_sampling s = tc_default_sampling();
                if (greedy) s.temperature = 0;
                tc_error err;
                int32_t id = -1;
                CHECK(tc__sample(logits, 5, &s, NULL, 0, 0.5, candidates, seen, &id, &err) ==
                      TC_ERR_NUMERIC);
                char name[16];
                snprintf(name, sizeof name, "id %d ", at);
                CHECK_MSG(err.code == TC_ERR_NUMERIC && strstr(err.message, name), "%s",
                          err.message);
            }
}

TEST(parameters_out_of_range_are_named) {
    static const struct {
        const char *name;
        float temperature, top_p;
        int top_k;
        float min_p, penalty;
        int last_n;
    } cases[] = {
        {"temperature", -0.1f, 1, 0, 0, 1, -1},
        {"temperature", NAN, 1, 0, 0, 1, -1},
        {"temperature", INFINITY, 1, 0, 0, 1, -1},
        {"top_p", 1, 0, 0, 0, 1, -1},
        {"top_p", 1, -1, 0, 0, 1, -1},
        {"top_p", 1, NAN, 0, 0, 1, -1},
        {"top_k", 1, 1, -1, 0, 1, -1},
        {"min_p", 1, 1, 0, -0.1f, 1, -1},
        {"min_p", 1, 1, 0, 1.1f, 1, -1},
        {"min_p", 1, 1, 0, NAN, 1, -1},
        {"repeat_penalty", 1, 1, 0, 0, 0, -1},
        {"repeat_penalty", 1, 1, 0, 0, NAN, -1},
        {"repeat_penalty", 1, 1, 0, 0, -1, -1},
        {"repeat_penalty", 1, 1, 0, 0, INFINITY, -1},
        {"repeat_last_n", 1, 1, 0, 0, 1, -2},
    };
    tc_error err;
    for (size_t k = 0; k < TC_COUNT(cases); k++) {
        tc_sampling s = {cases[k].temperature,
                         cases[k].top_p,
                         cases[k].top_k,
                         cases[k].min_p,
                         cases[k].penalty,
                         cases[k].last_n,
                         1};
        CHECK(tc__sampling_check(&s, &err) == TC_ERR_ARGUMENT);
        CHECK_MSG(strstr(err.message, cases[k].name), "%s", err.message);
    }
    tc_sampling s = tc_default_sampling();
    CHECK(tc__sampling_check(&s, &err) == TC_OK);
    CHECK(s.temperature == 0.7f && s.top_p == 0.95f && s.top_k == 40 && s.min_p == 0 &&
          s.repeat_penalty == 1.10f && s.repeat_last_n == -1 && s.seed == TC_SEED_RANDOM);
}

/* clang-format off */
TEST_MAIN(
    RUN(random_numbers_are_splitmix64)
    RUN(filters_equal_a_full_sort)
    RUN(a_large_vocabulary_gives_the_same_ids)
    RUN(greedy_takes_the_lowest_id_among_equals)
    RUN(penalty_counts_each_id_once)
    RUN(penalty_lowers_negative_logits_too)
    RUN(filters_keep_what_the_manual_says)
    RUN(draws_have_the_right_frequencies)
    RUN(extreme_values_are_no_trouble)
    RUN(a_logit_that_is_no_number_is_an_error)
    RUN(parameters_out_of_range_are_named))
