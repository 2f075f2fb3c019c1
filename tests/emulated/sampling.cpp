// The choice of a token on the emulated GPU, against the steps of tinychat.h in binary64.
// test_emulated.sh compiles this for some sizes of the vocabulary (VOCAB).
#include "prelude.cuh"

#define SHARED_LIMIT (99 * 1024)
#define HIDDEN 64
#define NORM NORM_RMS
#define NORM_EPS 1e-5f
#include "sample.cuh"
#include "test.h"

enum { LENGTH = 90, CTX = 100, PAIRS = 70, BROUGHT = 5000 * 128 + 40 };

static u64 random_state = 1;
static double random_number() { // 0 to 1
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (double)(random_state >> 11) / 9007199254740992.0;
}

// What the kernel works on.
struct Context {
    std::vector<float> logits = std::vector<float>(2 * VOCAB, NAN), x = std::vector<float>(HIDDEN);
    std::vector<u32> keys = std::vector<u32>(VOCAB), begun = std::vector<u32>(PAIRS);
    std::vector<SampleSegment> segments = std::vector<SampleSegment>(SEGMENTS);
    std::vector<int> ids = std::vector<int>(CTX);
    std::vector<u16> table = std::vector<u16>((size_t)VOCAB * HIDDEN);
    std::vector<u8> weights = std::vector<u8>(BROUGHT);
    State state = {LENGTH, 0, 0, 0};
    u32 arrived = 0, host = 0;

    Context() {
        for (size_t i = 0; i < table.size(); i++) table[i] = f32_to_f16((float)(i % 1000));
        for (int i = 0; i < LENGTH; i++) ids[i] = (int)(random_number() * VOCAB);
    }
    // The row of logits, of which some are equal.
    void fill(int row, bool ties) {
        for (int i = 0; i < VOCAB; i++) {
            const double v = 6 * (random_number() + random_number() + random_number()) - 9;
            logits[(size_t)row * VOCAB + i] = (float)(ties ? rint(v) : v);
        }
    }
    int run(const SampleSettings &set) {
        const SampleArgs args = {logits.data(), keys.data(),    segments.data(), &arrived,
                                 ids.data(),    &state,         &host,           table.data(),
                                 x.data(),      begun.data(),   weights.data(),  set,
                                 CTX,           PAIRS,          BROUGHT};
        state = {LENGTH, 0, 0, 0};
        std::fill(begun.begin(), begun.end(), 1u);
        emulated.prefetched.clear();
        emulated.previous = [&] { arrived = 0; };
        emulated_launch({SAMPLE_BLOCKS, 1, 1}, SAMPLE_THREADS, 1, [&] { sample(args); });
        return (int)host;
    }
};

// The tokens after steps 1 to 6 in their order, with their probabilities.
struct Candidate {
    int id;
    double x, p;
};
static std::vector<Candidate> candidates(const Context &c, const SampleSettings &set) {
    std::vector<Candidate> all(VOCAB);
    const bool greedy = set.temperature < 1e-5f;
    const int window = set.window < 0 || set.window > LENGTH ? LENGTH : set.window;
    const std::set<int> seen(c.ids.begin() + LENGTH - window, c.ids.begin() + LENGTH);
    double sum = 0, before = 0;
    for (int i = 0; i < VOCAB; i++) {
        double v = c.logits[(size_t)set.row * VOCAB + i];
        if (!greedy) v /= set.temperature;
        if (seen.count(i)) v = v > 0 ? v / set.penalty : v * set.penalty;
        all[i] = {i, v, 0};
    }
    std::stable_sort(all.begin(), all.end(),
                     [](const Candidate &a, const Candidate &b) { return a.x > b.x; });
    for (Candidate &a : all) sum += a.p = exp(a.x - all[0].x);
    size_t n = 0;
    const size_t k = greedy ? 1 : set.top_k ? set.top_k : VOCAB;
    while (n < k && n < all.size() && (n == 0 || before < set.top_p * sum || set.top_p >= 1) &&
           all[n].p >= set.min_p)
        before += all[n++].p;
    all.resize(n);
    return all;
}

static int drawn(const std::vector<Candidate> &all, double u) {
    double sum = 0, before = 0;
    for (const Candidate &a : all) sum += a.p;
    for (const Candidate &a : all) {
        before += a.p;
        if (u * sum < before) return a.id;
    }
    return all.back().id;
}

// All that the kernel leaves behind.
static void check_traces(const Context &c, int token) {
    CHECK(c.state.token == token && c.state.pos == LENGTH && c.state.next == LENGTH + 1);
    CHECK(c.ids[LENGTH] == token && c.arrived == 0);
    CHECK(std::count(c.begun.begin(), c.begun.end(), 0u) == PAIRS);
    for (int i = 0; i < HIDDEN; i++) CHECK(c.x[i] == (float)(((size_t)token * HIDDEN + i) % 1000));
    const u8 *begin = c.weights.data(), *end = begin + BROUGHT;
    CHECK(!emulated.prefetched.empty() && *emulated.prefetched.begin() >= begin &&
          *emulated.prefetched.rbegin() < end);
    CHECK(emulated.prefetched.size() >= 5001u * (SAMPLE_BLOCKS - 1) / SAMPLE_BLOCKS - 128);
}

TEST(choices) {
    // u, row, window, top_k, temperature, top_p, min_p, penalty
    static const SampleSettings settings[] = {
        {0.3, 0, -1, 40, 0.7f, 0.95f, 0, 1.1f, 0}, {0.9999, 1, 64, 40, 1.5f, 0.95f, 0, 1.3f, 0},
        {0.99, 0, 0, 40, 2, 1, 0, 1.1f, 0},        {0.7, 1, 5, 100, 3, 1, 0, 0.8f, 0},
        {0.8, 0, 200, 300, 5, 1, 0, 1.1f, 0},      {0.5, 1, -1, 0, 1, 0.9f, 0, 1, 0},
        {0.9, 0, -1, 0, 4, 1, 0, 1.1f, 0},         {0.9, 0, -1, 0, 1, 1, 0.05f, 1.1f, 0},
        {0.2, 1, -1, 1, 1, 1, 0, 2, 0},            {0, 0, -1, 40, 0.7f, 0.5f, 0, 1.1f, 0},
        {0.4, 1, -1, 40, 0, 0.9f, 0, 1.5f, 0}};
    Context c;
    int many = 0;
    for (int ties = 0; ties < 2; ties++) {
        c.fill(0, ties), c.fill(1, ties);
        for (const SampleSettings &set : settings) {
            const std::vector<Candidate> all = candidates(c, set);
            const int want = drawn(all, set.u), got = c.run(set);
            many += all.size() > SAMPLE_LIST;
            CHECK_MSG(got == want, "u %g, top_k %d, top_p %g, min_p %g, ties %d: token %d, not %d",
                      set.u, set.top_k, set.top_p, set.min_p, ties, got, want);
            check_traces(c, got);
        }
    }
    printf("    %d of the choices among more than %d\n", many, SAMPLE_LIST);
    CHECK(!many == (VOCAB <= SAMPLE_LIST));
}

// The largest logits far from each other, so that none comes along with another: the last one that
// top_k leaves must be there, whichever top_k is.
TEST(the_last_of_top_k) {
    SampleSettings set = {0.99999, 0, 0, 1, 100, 1, 0, 1, 0};
    Context c;
    const int count = std::min(VOCAB, 300), step = VOCAB / count;
    for (int i = 0; i < VOCAB; i++) c.logits[i] = -1e4f;
    for (int i = 0; i < count; i++) c.logits[i * step] = 10 - 0.01f * (float)i;
    for (int k : {1, 2, 40, 60, 150, 299}) {
        set.top_k = k;
        if (k < count) CHECK_MSG(c.run(set) == (k - 1) * step, "top_k %d: %d", k, (int)c.host);
    }
}

// The lowest id of those whose logit is no finite number.
TEST(numbers_that_are_none_are_told) {
    const SampleSettings set = {0.3, 0, -1, 40, 0.7f, 0.95f, 0, 1.1f, 0};
    for (float bad : {NAN, INFINITY, -INFINITY}) {
        Context c;
        c.fill(0, false);
        c.logits[VOCAB / 2] = c.logits[VOCAB - 1] = bad;
        CHECK_MSG(c.run(set) == -1 - VOCAB / 2, "%d", (int)c.host);
    }
}

TEST_MAIN(RUN(choices) RUN(the_last_of_top_k) RUN(numbers_that_are_none_are_told))
