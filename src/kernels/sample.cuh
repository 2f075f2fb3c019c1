// sample - the next token from the logits, in the order that tinychat.h documents at tc_sampling.
//
// A few blocks share the vocabulary: every warp takes one segment of it, puts the logits' keys
// (floats as integers in the same order, after temperature and penalty) into global memory and
// reduces them to the segment's largest and its mass. The block that finishes last chooses. The
// top_k-th largest of the segments' maxima bounds the top_k-th largest of all, so it has to look at
// top_k segments only, and into those, for a few more candidates than top_k.
// Probabilities there are integers, exp(x - max) * 2^40: their sums do not depend on the order of
// the additions, so the same seed gives the same token.

#ifndef TC_SAMPLE
#define TC_SAMPLE

#include "prelude.cuh"
#include "rows.cuh"

constexpr int SAMPLE_THREADS = 1024, SAMPLE_BLOCKS = 8;
constexpr int SEGMENTS = SAMPLE_BLOCKS * SAMPLE_THREADS / 32;            // one for each warp
constexpr int LANE_KEYS = (VOCAB + 32 * SEGMENTS - 1) / (32 * SEGMENTS); // of a segment
constexpr int SEGMENT = 32 * LANE_KEYS;
constexpr int SAMPLE_LIST = 1024; // candidates that are sorted at once

struct SampleSegment {
    u64 best;   // the largest key << 32 | ~its id: the lower id wins
    float mass; // sum of exp(x - the largest)
    float pad;
};

// The parameters of one draw, in host memory: a graph that is launched again and again finds new
// ones.
struct SampleSettings {
    double u;          // the random number
    int row;           // of the logits
    int window, top_k; // how many last tokens the penalty looks at, below 0: all; top_k 0: off
    float temperature, top_p, min_p, penalty;
    int pad;
};

struct SampleArgs {
    const float *logits;     // rows of VOCAB
    u32 *keys;               // [VOCAB] workspace
    SampleSegment *segments; // [SEGMENTS] workspace
    u32 *arrived;            // zero; left zero
    int *ids;                // [ctx] the tokens of the context; the new one is appended
    State *state;
    const SampleSettings *settings;
    u32 *host;        // an int in pinned host memory: the token for the host
    const u16 *table; // [VOCAB][HIDDEN] binary16, to begin the token's evaluation; null: not to
    float *x;         // [HIDDEN] its vector
    u32 *begun;       // [pairs] become zero then
    int ctx, pairs;
};

// Floats as integers in the same order.
__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x);
    return bits ^ ((u32)((i32)bits >> 31) | 0x80000000u);
}
__device__ __forceinline__ float float_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
constexpr float MASS_ONE = 1099511627776.0f; // 2^40
__device__ __forceinline__ u64 mass_of(u32 key, float top) {
    return (u64)(__expf(float_of(key) - top) * MASS_ONE);
}

__device__ __forceinline__ u64 warp_max_u64(u64 v) {
    for (int o = 16; o > 0; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, o));
    return v;
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
    v = warp_max_u64(v);
    if ((threadIdx.x & 31) == 0) shared[threadIdx.x >> 5] = v;
    __syncthreads();
    v = warp_max_u64(shared[threadIdx.x & 31]);
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
__device__ int draw_by_bisection(const u32 *keys, const SampleSettings &set, float top, u64 total,
                                 u32 lowest, u64 *shared) {
    const u64 k = set.top_k > 0 ? set.top_k : ~0ull;
    const u64 p = set.top_p < 1 ? (u64)((double)set.top_p * (double)total) : ~0ull;
    u64 n, m, cut = 0, found = 0;
    for (int bit = 31; bit >= 0; bit--) { // the highest t with everything above it NOT enough, + 1
        const u64 t = cut | 1ull << bit;
        above(keys, (u32)(t - 1), top, shared, &n, &m);
        if (n >= k || m >= p) cut = t; // t - 1 is below the last key kept
    }
    if (cut < lowest) cut = lowest;
    above(keys, (u32)cut, top, shared, &n, &m);
    const u64 one = mass_of((u32)cut, top);
    u64 ties = 0;
    for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS) ties += keys[i] == (u32)cut;
    ties = block_sum(ties, shared);
    if (k - n < ties) ties = k - n;
    while (ties > 1 && m + (ties - 1) * one >= p) ties--;
    const u64 r = (u64)(set.u * (double)(m + ties * one));
    for (int bit = 31; bit >= 0; bit--) {
        const u64 t = found | 1ull << bit;
        u64 dn, dm;
        above(keys, (u32)(t - 1), top, shared, &dn, &dm);
        if (dm > r) found = t;
    }
    if (found < cut) found = cut;
    above(keys, (u32)found, top, shared, &n, &m);
    const u64 each = mass_of((u32)found, top);
    u64 skip = each ? (r - m) / each : 0; // so many equal keys with lower ids come before
    __shared__ int chosen;
    if (threadIdx.x == 0) {
        chosen = 0;
        for (int i = 0; i < VOCAB; i++)
            if (keys[i] == (u32)found) {
                chosen = i;
                if (skip-- == 0) break;
            }
    }
    __syncthreads();
    return chosen;
}

// Steps 1 and 2 for this block's part of the vocabulary: its keys and segments. A logit that is not
// finite becomes the largest of its segment, with a key that no number has.
__device__ __forceinline__ void sample_scan(const SampleArgs &args, const SampleSettings &set,
                                            int length, bool greedy) {
    constexpr int PART = SAMPLE_THREADS / 32 * SEGMENT;
    __shared__ u32 seen[PART / 32]; // bit i: the part's i-th id is in the penalty's window
    const int part = blockIdx.x * PART, lane = threadIdx.x & 31;
    const int segment = blockIdx.x * (SAMPLE_THREADS / 32) + (threadIdx.x >> 5);
    const float *logits = args.logits + (i64)set.row * VOCAB;
    float x[LANE_KEYS];
#pragma unroll
    for (int j = 0; j < LANE_KEYS; j++) {
        const int id = segment * SEGMENT + 32 * j + lane;
        x[j] = id < VOCAB ? load_f32_l2(logits + id) : 0;
    }
    for (int i = threadIdx.x; i < PART / 32; i += SAMPLE_THREADS) seen[i] = 0;
    __syncthreads();
    if (set.penalty != 1.0f) {
        const int from = set.window < 0 || set.window > length ? 0 : length - set.window;
        for (int i = from + threadIdx.x; i < length; i += SAMPLE_THREADS) {
            const int at = args.ids[i] - part;
            if (at >= 0 && at < PART) atomicOr(&seen[at >> 5], 1u << (at & 31));
        }
    }
    __syncthreads();
    u64 best = 0;
#pragma unroll
    for (int j = 0; j < LANE_KEYS; j++) {
        const int id = segment * SEGMENT + 32 * j + lane;
        const bool finite = fabsf(x[j]) <= 3.4028234e38f;
        if (!greedy) x[j] = x[j] / set.temperature;
        if (seen[(id - part) >> 5] >> (id & 31) & 1)
            x[j] = x[j] > 0 ? x[j] / set.penalty : x[j] * set.penalty;
        const u32 key = key_of(x[j]);
        if (id >= VOCAB) continue;
        args.keys[id] = key;
        best = max(best, (u64)(finite ? key : 0xffffffffu) << 32 | (u32)~id);
    }
    best = warp_max_u64(best);
    float mass = 0;
    const float top = float_of((u32)(best >> 32));
#pragma unroll
    for (int j = 0; j < LANE_KEYS; j++)
        if (segment * SEGMENT + 32 * j + lane < VOCAB) mass += __expf(x[j] - top);
    mass = warp_sum(mass);
    if (lane == 0) {
        args.segments[segment].best = best;
        args.segments[segment].mass = mass;
    }
}

// Steps 3 to 7, by one block.
__device__ __forceinline__ int sample_choose(const SampleArgs &args, const SampleSettings &set,
                                             bool greedy) {
    __shared__ u64 shared[32], best_of[SEGMENTS], sorted_masses[SAMPLE_LIST];
    __shared__ u32 list[SAMPLE_LIST];
    __shared__ int list_ids[SAMPLE_LIST], sorted_ids[SAMPLE_LIST], order[SEGMENTS], listed, chosen;
    const int i = threadIdx.x, lane = i & 31;
    static_assert(SAMPLE_THREADS == 4 * SEGMENTS && SAMPLE_THREADS >= SAMPLE_LIST, "threads");
    float4 segment = {0, 0, 0, 0};
    if (i < SEGMENTS) {
        segment = load_float4_l2((const float *)(args.segments + i));
        best_of[i] = (u64)__float_as_uint(segment.y) << 32 | __float_as_uint(segment.x);
    }
    if (i == 0) listed = 0, chosen = -1;
    const u64 best = block_max(i < SEGMENTS ? best_of[i] : 0, shared);
    const int largest = (int)~(u32)best;
    if (best >> 32 == 0xffffffffu) return -1 - largest;
    if (greedy) return largest;
    const float top = float_of((u32)(best >> 32));
    u64 total = 0; // of the whole vocabulary
    if (i < SEGMENTS && best_of[i])
        total = (u64)(segment.z * __expf(float_of((u32)(best_of[i] >> 32)) - top) * MASS_ONE);
    total = block_sum(total, shared);

    // the segments in the order of their maxima: four threads count those before each
    int rank = 0;
    const u64 mine = best_of[i / 4];
    for (int j = i & 3; j < SEGMENTS; j += 4) rank += best_of[j] > mine;
    rank += __shfl_xor_sync(0xffffffffu, rank, 1);
    rank += __shfl_xor_sync(0xffffffffu, rank, 2);
    // empty segments, all alike, come last
    if ((i & 3) == 0 && (mine || i == 0)) order[rank] = i / 4;
    const int used = (VOCAB + SEGMENT - 1) / SEGMENT;
    __syncthreads();
    const u32 lowest = set.min_p > 0 ? key_of(top + __logf(set.min_p)) : 0;
    const int k = set.top_k > 0 && set.top_k < VOCAB ? set.top_k : VOCAB;
    const u32 bound = k <= used ? max(lowest, (u32)(best_of[order[k - 1]] >> 32)) : lowest;
    for (int r = i >> 5; r < min(k, used); r += SAMPLE_THREADS / 32) {
        const int first = order[r] * SEGMENT;
        if ((u32)(best_of[order[r]] >> 32) < bound) break;
#pragma unroll 4
        for (int j = lane; j < SEGMENT; j += 32) {
            const u32 key = first + j < VOCAB ? load_u32_l2(args.keys + first + j) : 0;
            const bool candidate = first + j < VOCAB && key >= bound;
            const u32 all = __ballot_sync(0xffffffffu, candidate);
            int at = 0;
            if (all && lane == 0) at = atomicAdd(&listed, __popc(all));
            at = __shfl_sync(0xffffffffu, at, 0) + __popc(all & ((1u << lane) - 1));
            if (candidate && at < SAMPLE_LIST) list[at] = key, list_ids[at] = first + j;
        }
    }
    __syncthreads();
    const int n = listed;
    if (n > SAMPLE_LIST) return draw_by_bisection(args.keys, set, top, total, lowest, shared);
    if (i < n) { // place by counting those before it: the list's order does not matter
        int at = 0;
        for (int j = 0; j < n; j++)
            at += list[j] > list[i] || (list[j] == list[i] && list_ids[j] < list_ids[i]);
        sorted_ids[at] = list_ids[i];
        sorted_masses[at] = mass_of(list[i], top);
    }
    __syncthreads();
    u64 before = 0;
    if (i < n)
        for (int j = 0; j < i; j++) before += sorted_masses[j];
    const bool kept =
        i < n && i < k &&
        (i == 0 || set.top_p >= 1 || (double)before < (double)set.top_p * (double)total);
    const u64 end = before + (i < n ? sorted_masses[i] : 0);
    const u64 whole = block_max(kept ? end : 0, shared);
    const u64 r = (u64)(set.u * (double)whole);
    if (kept && before <= r && r < end) chosen = sorted_ids[i];
    __syncthreads();
    return chosen;
}

// The chosen token to the host and to the context, and the first step of its evaluation (what
// embed_rows does for a token that the host knows). No kernel of the token starts before this one
// has ended: this block leaves no room for another on its SM, so two of the next would share one.
__device__ __forceinline__ void sample_finish(const SampleArgs &args, int token, int length) {
    __shared__ int id;
    if (threadIdx.x == 0) {
        store_u32_host(args.host, (u32)token);
        *args.arrived = 0;
        args.state->token = token;
        if (token >= 0 && length < args.ctx) args.ids[length] = token;
        if (args.table) {
            args.state->pos = length;
            args.state->next = length + 1;
            __threadfence(); // later kernels read the position before their wait
        }
        id = token < 0 ? -1 - token : token;
    }
    __syncthreads();
    if (!args.table) return;
    clear_begun(args.begun, args.pairs);
    const uint2 *row = (const uint2 *)(args.table + (i64)id * HIDDEN);
    for (int i = threadIdx.x; i < HIDDEN / 4; i += SAMPLE_THREADS) {
        const uint2 v = row[i];
        *(float4 *)(args.x + 4 * i) =
            make_float4(f16_to_f32((u16)v.x), f16_to_f32((u16)(v.x >> 16)), f16_to_f32((u16)v.y),
                        f16_to_f32((u16)(v.y >> 16)));
    }
}

// Launch: SAMPLE_BLOCKS blocks of SAMPLE_THREADS threads. Bytes moved: the logits once, their keys
// once written and those of top_k segments read.
__device__ __forceinline__ void sample(const SampleArgs &args) {
    __shared__ SampleSettings set;
    __shared__ bool last;
    constexpr int WORDS = sizeof(SampleSettings) / 4;
    if (threadIdx.x < WORDS)
        ((u32 *)&set)[threadIdx.x] = load_u32_host((const u32 *)args.settings + threadIdx.x);
    wait_for_previous();
    const int length = args.state->next;
    __syncthreads();
    const bool greedy = set.temperature < 1e-5f;
    sample_scan(args, set, length, greedy);
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(args.arrived, 1u) == SAMPLE_BLOCKS - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    sample_finish(args, sample_choose(args, set, greedy), length);
}

#endif // TC_SAMPLE
