/* sampler - from logits to the next token, in the order that tinychat.h documents at tc_sampling.
 */
#ifndef TC_SAMPLER_H
#define TC_SAMPLER_H

#include "base.h"

/* ARGUMENT with the parameter's name and its range if one is out of range. */
TC_INTERNAL int tc__sampling_check(const tc_sampling *sampling, tc_error *err);

/* Uniform in [0, 1): draw number `index` of the sequence `seed`. A pure function with 53 random
 * bits (SplitMix64 of seed and index), so that any backend can compute it. */
TC_INTERNAL double tc__random(uint64_t seed, uint64_t index);

/* A seed from the operating system; never TC_SEED_RANDOM. */
TC_INTERNAL uint64_t tc__random_seed(void);

/* Workspace of one session's sampling: [vocab_size] entries. */
typedef struct tc__candidate {
    float logit;
    int32_t id;
} tc__candidate;

/* Chooses a token. context [n_context]: the ids that the repetition penalty looks at (already cut
 * to repeat_last_n). u: the random number of this draw, used once; greedy ignores it.
 * candidates and seen ([vocab_size] bytes, all zero, left all zero): workspace.
 * Errors: NUMERIC if a logit is not finite (names the first id). */
TC_INTERNAL int tc__sample(const float *logits, int vocab_size, const tc_sampling *sampling,
                           const int32_t *context, size_t n_context, double u,
                           tc__candidate *candidates, uint8_t *seen, int32_t *id, tc_error *err);

#endif /* TC_SAMPLER_H */
