#include "sampler.h"

#include <fcntl.h>
#include <math.h>
#include <time.h>
#include <unistd.h>

#define SAMPLER_GREEDY_BELOW 1e-5f
#define SAMPLER_LIKELY 0x1p-16 /* relative to the most probable id; affects speed only */

tc_sampling tc_default_sampling(void) {
    tc_sampling sampling = {0.7f, 0.95f, 40, 0.0f, 1.10f, -1, TC_SEED_RANDOM};
    return sampling;
}

int tc__sampling_check(const tc_sampling *sampling, tc_error *err) {
    const struct {
        const char *name, *range;
        double value;
        bool good; /* written so that NaN is not */
    } rules[] = {
        {"temperature", "finite and at least 0", sampling->temperature,
         sampling->temperature >= 0 && isfinite(sampling->temperature)},
        {"top_p", "above 0", sampling->top_p, sampling->top_p > 0},
        {"top_k", "at least 0", sampling->top_k, sampling->top_k >= 0},
        {"min_p", "0 to 1", sampling->min_p, sampling->min_p >= 0 && sampling->min_p <= 1},
        {"repeat_penalty", "finite and above 0", sampling->repeat_penalty,
         sampling->repeat_penalty > 0 && isfinite(sampling->repeat_penalty)},
        {"repeat_last_n", "at least -1", sampling->repeat_last_n, sampling->repeat_last_n >= -1},
    };
    for (size_t i = 0; i < TC_COUNT(rules); i++)
        if (!rules[i].good)
            return tc__fail(err, TC_ERR_ARGUMENT, "sampling: %s is %g; expected %s", rules[i].name,
                            rules[i].value, rules[i].range);
    return TC_OK;
}

bool tc__sampling_greedy(const tc_sampling *sampling) {
    return sampling->temperature < SAMPLER_GREEDY_BELOW;
}

/* ---- random numbers ---- */

static uint64_t sampler_mix(uint64_t z) {
    z = (z ^ (z >> 30)) * UINT64_C(0xBF58476D1CE4E5B9);
    z = (z ^ (z >> 27)) * UINT64_C(0x94D049BB133111EB);
    return z ^ (z >> 31);
}

double tc__random(uint64_t seed, uint64_t index) {
    uint64_t bits = sampler_mix(seed + (index + 1) * UINT64_C(0x9E3779B97F4A7C15));
    return (double)(bits >> 11) * 0x1p-53;
}

uint64_t tc__random_seed(void) {
    uint64_t seed = 0;
    int fd = open("/dev/urandom", O_RDONLY | O_CLOEXEC);
    bool good = fd >= 0 && read(fd, &seed, sizeof seed) == (ssize_t)sizeof seed;
    if (fd >= 0) close(fd);
    if (!good) { /* no such device (a bare container): time and process still differ between runs */
        struct timespec now;
        clock_gettime(CLOCK_REALTIME, &now);
        seed = sampler_mix((uint64_t)now.tv_sec << 30 ^ (uint64_t)now.tv_nsec);
        seed = sampler_mix(seed + (uint64_t)getpid());
    }
    return seed == TC_SEED_RANDOM ? 0 : seed;
}

/* ---- steps 1 and 2: temperature and repetition penalty ---- */

static int sampler_scale(const float *logits, int vocab_size, double temperature,
                         tc__candidate *candidates, tc_error *err) {
    for (int i = 0; i < vocab_size; i++) {
        if (!isfinite(logits[i]))
            return tc__fail(
                err, TC_ERR_NUMERIC,
                "the model computed a logit that is not finite: id %d has %g; the model "
                "file may be damaged (verify it) or its numbers overflow",
                i, (double)logits[i]);
        candidates[i].value = logits[i] / temperature;
        candidates[i].id = i;
    }
    return TC_OK;
}

static void sampler_penalize(const int32_t *context, size_t n_context, double penalty,
                             tc__candidate *candidates, uint8_t *seen) {
    for (size_t i = 0; i < n_context; i++) {
        if (seen[context[i]]) continue;
        seen[context[i]] = 1;
        double *value = &candidates[context[i]].value;
        *value = *value > 0 ? *value / penalty : *value * penalty;
    }
    for (size_t i = 0; i < n_context; i++) seen[context[i]] = 0;
}

/* ---- steps 3 to 7: from the distribution to one id ---- */

/* The order of step 3: the more probable first, the lower id among equals. */
static bool sampler_before(const tc__candidate *a, const tc__candidate *b) {
    return a->value > b->value || (a->value == b->value && a->id < b->id);
}

/* Restores the heap (the first in order on top) below `at`. */
static void sampler_sift(tc__candidate *heap, size_t n, size_t at) {
    tc__candidate moving = heap[at];
    for (size_t child = 2 * at + 1; child < n; child = 2 * at + 1) {
        if (child + 1 < n && sampler_before(&heap[child + 1], &heap[child])) child++;
        if (!sampler_before(&heap[child], &moving)) break;
        heap[at] = heap[child];
        at = child;
    }
    heap[at] = moving;
}

/* Takes candidates in order, at most `limit` of them, none below `floor`, and no more once their
 * sum reaches `goal`. They end up last in the array, the first one in the last place. Returns how
 * many (at least one) and their sum. */
static size_t sampler_take(tc__candidate *heap, size_t n, size_t limit, double floor, double goal,
                           double *sum) {
    size_t taken = 0;
    *sum = 0;
    for (size_t at = n / 2; at-- > 0;) sampler_sift(heap, n, at);
    while (taken < n && taken < limit && (taken == 0 || (heap[0].value >= floor && *sum < goal))) {
        tc__candidate top = heap[0];
        size_t left = n - ++taken;
        heap[0] = heap[left];
        heap[left] = top;
        *sum += top.value;
        if (left) sampler_sift(heap, left, 0);
    }
    return taken;
}

/* Moves the likely ids to the front: of a large vocabulary they are few, and nearly always the only
 * ones worth sorting. Returns how many there are. */
static size_t sampler_likely(tc__candidate *candidates, size_t n) {
    size_t likely = 0;
    for (size_t i = 0; i < n; i++) {
        if (candidates[i].value < SAMPLER_LIKELY) continue;
        tc__candidate found = candidates[i];
        candidates[i] = candidates[likely];
        candidates[likely++] = found;
    }
    return likely;
}

static int32_t sampler_draw(tc__candidate *candidates, size_t n, const tc_sampling *sampling,
                            double total, double u) {
    bool all_k = sampling->top_k == 0 || (size_t)sampling->top_k >= n;
    bool all = all_k && sampling->top_p >= 1 && sampling->min_p == 0;
    /* Nothing is filtered out: sort only as far as the draw reaches, not the whole vocabulary. */
    double goal = all                   ? nextafter(u * total, INFINITY)
                  : sampling->top_p < 1 ? (double)sampling->top_p * total
                                        : INFINITY;
    size_t limit = all_k ? n : (size_t)sampling->top_k, likely = sampler_likely(candidates, n);
    double sum;
    size_t kept = sampler_take(candidates, likely, limit, sampling->min_p, goal, &sum);
    if (kept == likely && likely < n) /* they were not enough */
        kept = sampler_take(candidates, likely = n, limit, sampling->min_p, goal, &sum);
    double target = u * (all ? total : sum), reached = 0;
    const tc__candidate *choice = &candidates[likely - 1];
    for (size_t i = 0; i < kept; i++) {
        const tc__candidate *candidate = &candidates[likely - 1 - i];
        if (candidate->value > 0) choice = candidate; /* rounding never picks an impossible id */
        reached += candidate->value;
        if (target < reached) break;
    }
    return choice->id;
}

int tc__sample(const float *logits, int vocab_size, const tc_sampling *sampling,
               const int32_t *context, size_t n_context, double u, tc__candidate *candidates,
               uint8_t *seen, int32_t *id, tc_error *err) {
    bool greedy = tc__sampling_greedy(sampling);
    int code = sampler_scale(logits, vocab_size, greedy ? 1.0 : (double)sampling->temperature,
                             candidates, err);
    if (code) return code;
    if (sampling->repeat_penalty != 1)
        sampler_penalize(context, n_context, sampling->repeat_penalty, candidates, seen);

    int largest = 0;
    for (int i = 1; i < vocab_size; i++)
        if (candidates[i].value > candidates[largest].value) largest = i;
    *id = largest;
    if (greedy) return tc__ok(err);

    double top = candidates[largest].value, total = 0;
    for (int i = 0; i < vocab_size; i++) {
        candidates[i].value = exp(candidates[i].value - top);
        total += candidates[i].value;
    }
    *id = sampler_draw(candidates, (size_t)vocab_size, sampling, total, u);
    return tc__ok(err);
}
