// sample - the next token from the logits, in the order that tinychat.h documents at tc_sampling.
//
// One block, because the steps depend on each other and the logits (0.1 to 0.6 MB) stay in its L1.
// Probabilities are integers, exp(x - max) * 2^40: their sums do not depend on the order of the
// additions, so the same seed gives the same token.

#ifndef TC_SAMPLE
#define TC_SAMPLE

#include "prelude.cuh"
#include "rows.cuh"

struct SampleArgs {
    const float *logits; // [VOCAB]
    u32 *keys;           // [VOCAB] workspace
    int *ids;            // [ctx] the tokens of the context; the new one is appended
    State *state;
    int *host;           // pinned host memory: the token for the host
    int window;          // how many last tokens the penalty looks at; below 0: all
    int ctx, top_k;      // top_k 0: off
    float temperature, top_p, min_p, penalty;
    double u; // the random number of this draw
};

constexpr int SAMPLE_THREADS = 1024;
constexpr int SAMPLE_LIST = 1024; // candidates that are sorted at once

// Floats as integers in the same order.
__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits ^ ((u32)((i32)bits >> 31) | 0x80000000u);
}
__device__ __forceinline__ float float_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
__device__ __forceinline__ u64 mass_of(u32 key, float top) {
    return (u64)(__expf(float_of(key) - top) * 1099511627776.0f);
}

// Sum and maximum over the block; every thread gets the result.
__device__ __forceinline__ u64 block_sum(u64 v, u64 *shared) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    v = shared[threadIdx.x & 31];
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    __syncthreads();
    return v;
}
__device__ __forceinline__ u64 block_max(u64 v, u64 *shared) {
    for (int o = 16; o > 0; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, o));
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    v = shared[threadIdx.x & 31];
    for (int o = 16; o > 0; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, o));
    __syncthreads();
    return v;
}

// The keys strictly above t: how many, and their mass.
__device__ void above(const u32 *keys, u32 t, float top, u64 *shared, u64 *count, u64 *mass) {
    u64 n = 0, m = 0;
    for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS)
        if (keys[i] > t) n++, m += mass_of(keys[i], top);
    *count = block_sum(n, shared);
    *mass = block_sum(m, shared);
}

// The draw when more than SAMPLE_LIST tokens are in play (top_k off or large): bisection over the
// keys, first for the last key that is kept, then for the key that the random number falls on.
__device__ int draw_by_bisection(const SampleArgs &args, float top, u64 total, u32 lowest,
                                 u64 *shared) {
    const u64 k = args.top_k > 0 ? args.top_k : ~0ull;
    const u64 p = args.top_p < 1 ? (u64)((double)args.top_p * (double)total) : ~0ull;
    u64 n, m, cut = 0, found = 0;
    for (int bit = 31; bit >= 0; bit--) { // the highest t with everything above it NOT enough, + 1
        const u64 t = cut | 1ull << bit;
        above(args.keys, (u32)(t - 1), top, shared, &n, &m);
        if (n >= k || m >= p) cut = t; // t - 1 is below the last key kept
    }
    if (cut < lowest) cut = lowest;
    above(args.keys, (u32)cut, top, shared, &n, &m);
    const u64 one = mass_of((u32)cut, top);
    u64 ties = 0;
    for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS) ties += args.keys[i] == (u32)cut;
    ties = block_sum(ties, shared);
    if (k - n < ties) ties = k - n;
    while (ties > 1 && m + (ties - 1) * one >= p) ties--;
    const u64 r = (u64)(args.u * (double)(m + ties * one));
    for (int bit = 31; bit >= 0; bit--) {
        const u64 t = found | 1ull << bit;
        u64 dn, dm;
        above(args.keys, (u32)(t - 1), top, shared, &dn, &dm);
        if (dm > r) found = t;
    }
    if (found < cut) found = cut;
    above(args.keys, (u32)found, top, shared, &n, &m);
    const u64 each = mass_of((u32)found, top);
    u64 skip = each ? (r - m) / each : 0; // so many equal keys with lower ids come before
    __shared__ int chosen;
    if (threadIdx.x == 0) {
        chosen = 0;
        for (int i = 0; i < VOCAB; i++)
            if (args.keys[i] == (u32)found) {
                chosen = i;
                if (skip-- == 0) break;
            }
    }
    __syncthreads();
    return chosen;
}

// A vocabulary of up to 40 logits per thread stays in registers, a larger one in global memory.
constexpr bool KEYS_IN_REGISTERS = VOCAB <= 40 * SAMPLE_THREADS;
constexpr int KEYS_PER_THREAD = (VOCAB + SAMPLE_THREADS - 1) / SAMPLE_THREADS;

template <class F>
__device__ __forceinline__ void for_each_key(const u32 *registers, const u32 *keys, F f) {
    if (KEYS_IN_REGISTERS) {
#pragma unroll
        for (int j = 0; j < KEYS_PER_THREAD; j++) {
            const int i = j * SAMPLE_THREADS + threadIdx.x;
            if (i < VOCAB) f(i, registers[j]);
        }
    } else {
#pragma unroll 8
        for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS) f(i, keys[i]);
    }
}

// Launch: one block of SAMPLE_THREADS threads. Bytes moved: the logits once.
__device__ __forceinline__ void sample(const SampleArgs &args) {
    __shared__ u32 seen[(VOCAB + 31) / 32]; // bit i: id i is in the penalty's window
    __shared__ u64 shared[32], masses[SAMPLE_LIST], sorted_masses[SAMPLE_LIST];
    __shared__ u32 list[SAMPLE_LIST];
    __shared__ int list_ids[SAMPLE_LIST], sorted_ids[SAMPLE_LIST], listed, chosen;
    const int length = args.state->next;
    const bool greedy = args.temperature < 1e-5f;

    for (int i = threadIdx.x; i < (VOCAB + 31) / 32; i += SAMPLE_THREADS) seen[i] = 0;
    if (threadIdx.x == 0) listed = 0, chosen = -1;
    __syncthreads();
    if (args.penalty != 1.0f) {
        const int from = args.window < 0 || args.window > length ? 0 : length - args.window;
        for (int i = from + threadIdx.x; i < length; i += SAMPLE_THREADS)
            atomicOr(&seen[args.ids[i] >> 5], 1u << (args.ids[i] & 31));
    }
    __syncthreads();

    // steps 1 and 2, and the largest; a logit that is not finite beats everything
    u32 registers[KEYS_IN_REGISTERS ? KEYS_PER_THREAD : 1];
    u64 best = 0;
    u32 mine = 0;
    auto adjust = [&](int i, float x) {
        const bool finite = fabsf(x) <= 3.4028234e38f;
        if (!greedy) x = x / args.temperature;
        if (seen[i >> 5] >> (i & 31) & 1) x = x > 0 ? x / args.penalty : x * args.penalty;
        const u32 key = key_of(x);
        best = max(best, (u64)(finite ? key : 0xffffffffu) << 32 | (u32)~i);
        mine = max(mine, key);
        return key;
    };
    if (KEYS_IN_REGISTERS) {
#pragma unroll
        for (int j = 0; j < KEYS_PER_THREAD; j++) { // all loads first
            const int i = j * SAMPLE_THREADS + threadIdx.x;
            registers[j] = i < VOCAB ? __float_as_uint(args.logits[i]) : 0;
        }
#pragma unroll
        for (int j = 0; j < KEYS_PER_THREAD; j++) {
            const int i = j * SAMPLE_THREADS + threadIdx.x;
            if (i < VOCAB) registers[j] = adjust(i, __uint_as_float(registers[j]));
        }
    } else {
#pragma unroll 8
        for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS)
            args.keys[i] = adjust(i, args.logits[i]);
    }
    best = block_max(best, shared);
    int token = (int)~(u32)best;
    if (best >> 32 == 0xffffffffu) {
        token = -1 - token;
    } else if (!greedy) {
        const float top = float_of((u32)(best >> 32));
        u64 total = 0;
        for_each_key(registers, args.keys, [&](int, u32 key) { total += mass_of(key, top); });
        total = block_sum(total, shared);
        const u32 lowest = args.min_p > 0 ? key_of(top + __logf(args.min_p)) : 0;
        // The top_k-th largest of the threads' maxima bounds the top_k-th largest of all.
        bool small = args.top_k > 0 && args.top_k <= SAMPLE_LIST;
        if (small) {
            u32 bound = 0;
            for (int bit = 31; bit >= 0; bit--) {
                const u32 t = bound | 1u << bit;
                if (__syncthreads_count(mine >= t) >= args.top_k) bound = t;
            }
            bound = max(bound, lowest);
            for_each_key(registers, args.keys, [&](int i, u32 key) {
                if (key < bound) return;
                const int at = atomicAdd(&listed, 1);
                if (at < SAMPLE_LIST) list[at] = key, list_ids[at] = i;
            });
            __syncthreads();
            small = listed <= SAMPLE_LIST;
        }
        if (!small) {
            if (KEYS_IN_REGISTERS) {
                for_each_key(registers, args.keys, [&](int i, u32 key) { args.keys[i] = key; });
                __syncthreads();
            }
            token = draw_by_bisection(args, top, total, lowest, shared);
        } else {
            const int n = listed, i = threadIdx.x;
            if (i < n) masses[i] = mass_of(list[i], top);
            if (i < n) { // place by counting those before it: the list's order does not matter
                int rank = 0;
                for (int j = 0; j < n; j++)
                    rank += list[j] > list[i] || (list[j] == list[i] && list_ids[j] < list_ids[i]);
                sorted_ids[rank] = list_ids[i];
                sorted_masses[rank] = masses[i];
            }
            __syncthreads();
            u64 before = 0;
            if (i < n)
                for (int j = 0; j < i; j++) before += sorted_masses[j];
            const bool kept = i < n && i < args.top_k &&
                              (i == 0 || args.top_p >= 1 ||
                               (double)before < (double)args.top_p * (double)total);
            const u64 end = before + (i < n ? sorted_masses[i] : 0);
            const u64 whole = block_max(kept ? end : 0, shared);
            const u64 r = (u64)(args.u * (double)whole);
            if (kept && before <= r && r < end) chosen = sorted_ids[i];
            __syncthreads();
            token = chosen;
        }
    }
    if (threadIdx.x == 0) {
        args.state->token = token;
        if (token >= 0 && length < args.ctx) args.ids[length] = token;
        *args.host = token;
        __threadfence_system();
    }
}

#endif // TC_SAMPLE
