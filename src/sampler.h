/* sampler - from logits to the next token, in the order that tinychat.h documents at tc_sampling.
 */
#ifndef TC_SAMPLER_H
#define TC_SAMPLER_H

#include "base.h"

/* ARGUMENT with the parameter's name, value and range if one is out of range. */
TC_INTERNAL int tc__sampling_check(const tc_sampling *sampling, tc_error *err);

/* True if these parameters pick the largest logit: no random number is used up. */
TC_INTERNAL bool tc__sampling_greedy(const tc_sampling *sampling);

/* Uniform in [0, 1): draw number `index` of the sequence `seed`. A pure function with 53 random
 * bits, so that any backend can compute it: output number `index` of SplitMix64 started at `seed`
 * (Steele, Lea, Flood, "Fast splittable pseudorandom number generators", 2014). */
TC_INTERNAL double tc__random(uint64_t seed, uint64_t index);

/* A seed from the operating system; never TC_SEED_RANDOM. */
TC_INTERNAL uint64_t tc__random_seed(void);

/* Workspace of one session's sampling: [vocab_size] entries. `value` is first the logit after
 * temperature and penalty, then the probability relative to the most probable id. Binary64, so that
 * no finite logit overflows whatever the parameters are. */
typedef struct tc__candidate {
    double value;
    int32_t id;
} tc__candidate;

/* Chooses a token. context [n_context]: the ids that the repetition penalty looks at (already cut
 * to repeat_last_n; all in the vocabulary). u: the random number of this draw, used once; greedy
 * ignores it. `sampling` has passed tc__sampling_check. candidates and seen ([vocab_size] bytes,
 * all zero, left all zero): workspace.
 * Costs O(vocab_size), plus O(log vocab_size) for each id that the filters keep.
 * Errors: NUMERIC if a logit is not finite (names the first id). */
TC_INTERNAL int tc__sample(const float *logits, int vocab_size, const tc_sampling *sampling,
                           const int32_t *context, size_t n_context, double u,
                           tc__candidate *candidates, uint8_t *seen, int32_t *id, tc_error *err);

#endif /* TC_SAMPLER_H */
