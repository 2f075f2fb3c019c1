// sample - the next token from the logits, in the order that tinychat.h documents at tc_sampling.
//
// Nothing else of the token can be done meanwhile, so what counts is how many steps follow on each
// other. Blocks share the vocabulary: every warp takes one segment of it, puts the logits' keys
// (floats as integers in the same order, after temperature and penalty) into global memory and
// reduces them to the segment's largest and its mass. The block that arrives last chooses. The
// top_k-th largest of the maxima of some segments bounds the top_k-th largest of all, so it has to
// look into about top_k segments only, and there for a few more candidates than top_k. The others
// bring weights into L2 that the token's first products will read.
// Probabilities there are integers, exp(x - max) * 2^40: their sums do not depend on the order of
// the additions, so the same seed gives the same token.

#ifndef TC_SAMPLE
#define TC_SAMPLE

#include "prelude.cuh"
#include "rows.cuh"

constexpr int SAMPLE_THREADS = 1024, SAMPLE_BLOCKS = 32;
constexpr int SEGMENTS = SAMPLE_BLOCKS * SAMPLE_THREADS / 32;            // one for each warp
constexpr int LANE_KEYS = (VOCAB + 32 * SEGMENTS - 1) / (32 * SEGMENTS); // of a segment
constexpr int SEGMENT = 32 * LANE_KEYS, USED_SEGMENTS = (VOCAB + SEGMENT - 1) / SEGMENT;
constexpr int SAMPLE_LIST = 1024; // candidates that are sorted at once

struct SampleSegment {
    u64 best;   // the largest key << 32 | ~its id: the lower id wins
    float mass; // sum of exp(x - the largest)
    float pad;
};

// The parameters of one draw.
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
    u32 *host;         // an int in pinned host memory: the token for the host
    const u16 *table;  // [VOCAB][HIDDEN] binary16, to begin the token's evaluation; null: not to
    float *x;          // [HIDDEN] its vector
    u32 *begun;        // [pairs] become zero then
    const u8 *weights; // of which `brought` bytes go into L2
    SampleSettings set;
    int ctx, pairs, brought;
};

// Floats as integers in the same order; -0 is 0.
__device__ __forceinline__ u32 key_of(float x) {
    u32 bits = __float_as_uint(x + 0.0f);
    return bits ^ ((u32)((i32)bits >> 31) | 0x80000000u);
}
__device__ __forceinline__ float float_of(u32 key) {
    return __uint_as_float(key & 0x80000000u ? key ^ 0x80000000u : ~key);
}
constexpr float MASS_ONE = 1099511627776.0f; // 2^40
__device__ __forceinline__ u64 mass_of(u32 key, float top) {
    return (u64)(__expf(float_of(key) - top) * MASS_ONE);
}

// The largest upper half, and the largest lower one with it.
__device__ __forceinline__ u64 warp_max_u64(u64 v) {
    const u32 high = __reduce_max_sync(0xffffffffu, (u32)(v >> 32));
    const u32 low = __reduce_max_sync(0xffffffffu, (u32)(v >> 32) == high ? (u32)v : 0);
    return (u64)high << 32 | low;
}
__device__ __forceinline__ u64 warp_sum_u64(u64 v) {
    for (int o = 16; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
    return v;
}

// ---- the rare case: more than SAMPLE_LIST tokens are in play ----

// Keys: how many, and their mass.
struct SampleCount {
    u64 keys, mass;
};

// Of a block's threads; all of them get the sum.
__device__ __forceinline__ u64 block_sum(u64 v) {
    __shared__ u64 sums[32];
    v = warp_sum_u64(v);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = v;
    __syncthreads();
    v = warp_sum_u64(sums[threadIdx.x & 31]);
    __syncthreads();
    return v;
}
// The keys strictly above t.
__device__ __noinline__ SampleCount above(const u32 *keys, u32 t, float top) {
    u64 n = 0, m = 0;
    for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS)
        if (keys[i] > t) n++, m += mass_of(keys[i], top);
    n = block_sum(n);
    return {n, block_sum(m)};
}

// top_k is off or large: bisection over the keys, first for the last key that is kept, then for the
// key that the random number falls on.
__device__ __noinline__ int draw_by_bisection(const u32 *keys, const SampleSettings &set, float top,
                                              u64 total, u32 lowest) {
    const u64 k = set.top_k > 0 ? set.top_k : ~0ull;
    const u64 p = set.top_p < 1 ? (u64)((double)set.top_p * (double)total) : ~0ull;
    u64 cut = 0, found = 0;
    for (int bit = 31; bit >= 0; bit--) { // the highest t with everything above it NOT enough, + 1
        const u64 t = cut | 1ull << bit;
        const SampleCount c = above(keys, (u32)(t - 1), top);
        if (c.keys >= k || c.mass >= p) cut = t; // t - 1 is below the last key kept
    }
    if (cut < lowest) cut = lowest;
    const SampleCount kept = above(keys, (u32)cut, top);
    const u64 one = mass_of((u32)cut, top);
    u64 ties = 0;
    for (int i = threadIdx.x; i < VOCAB; i += SAMPLE_THREADS) ties += keys[i] == (u32)cut;
    ties = block_sum(ties);
    if (k - kept.keys < ties) ties = k - kept.keys;
    while (ties > 1 && kept.mass + (ties - 1) * one >= p) ties--;
    const u64 r = (u64)(set.u * (double)(kept.mass + ties * one));
    for (int bit = 31; bit >= 0; bit--) {
        const u64 t = found | 1ull << bit;
        if (above(keys, (u32)(t - 1), top).mass > r) found = t;
    }
    if (found < cut) found = cut;
    const u64 before = above(keys, (u32)found, top).mass, each = mass_of((u32)found, top);
    u64 skip = each ? (r - before) / each : 0; // so many equal keys with lower ids come before
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

// ---- the logits' keys ----

// Steps 1 and 2 for this block's part of the vocabulary: its keys and segments. A logit that is not
// finite becomes the largest of its segment, with a key that no number has.
__device__ __forceinline__ void scan(const SampleArgs &args, int length, bool greedy) {
    constexpr int PART = SAMPLE_THREADS / 32 * SEGMENT;
    const SampleSettings &set = args.set;
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
#pragma unroll 1
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

// ---- the choice, by one block ----
//
// Its code is not in the SM when the token needs it, and has to come from memory like the weights:
// so it is short, and loops that take few turns are not unrolled.

// What the block's threads share. Thread i has segment i.
struct SampleRoom {
    u64 bests[32], masses[32], sums[32]; // of warps
    u64 list[SAMPLE_LIST], sorted[SAMPLE_LIST];
    u32 tops[SEGMENTS]; // the largest keys of groups of segments
    int order[SEGMENTS];
    u64 whole;
    u32 bound;
    int segments, listed, chosen;
};

// Groups have 2^shift segments: the fewer there are, the sooner they are compared, and the more
// candidates there are.
__device__ __forceinline__ int group_shift(int k) {
    int shift = USED_SEGMENTS > 512 ? 3 : USED_SEGMENTS > 256 ? 2 : USED_SEGMENTS > 128 ? 1 : 0;
    while (shift > 0 && k > 3 * (USED_SEGMENTS >> shift) / 4) shift--;
    return shift;
}

// Notes the k-th largest of the groups' keys, if there are so many, as room.bound. `top`: of this
// thread's group; as many threads as a group has segments count the groups before it.
__device__ __forceinline__ void note_bound(SampleRoom &room, u32 top, int shift, int k) {
    const int i = threadIdx.x, size = 1 << shift, first = i & (size - 1), mine = i >> shift;
    const int groups = (USED_SEGMENTS + size - 1) >> shift;
    int before = 0;
    if (mine < groups)
#pragma unroll 4
        for (int j = first; j < groups; j += size)
            before += room.tops[j] > top || (room.tops[j] == top && j < mine);
    for (int o = 1; o < size; o *= 2) before += __shfl_xor_sync(0xffffffffu, before, o);
    if (mine < groups && first == 0 && before == k - 1) room.bound = top;
}

// Where this thread writes, if it wants to, in a list that so many have been written into.
__device__ __forceinline__ int list_place(int *count, bool wants) {
    const u32 all = __ballot_sync(0xffffffffu, wants), lane = threadIdx.x & 31;
    int at = 0;
    if (all && lane == 0) at = atomicAdd(count, __popc(all));
    return __shfl_sync(0xffffffffu, at, 0) + __popc(all & ((1u << lane) - 1));
}

// The keys from `bound` on, with their ids as in SampleSegment, to the list: those of the segments
// that have one, which are room.order.
__device__ __forceinline__ void collect(const SampleArgs &args, SampleRoom &room, u32 bound) {
    constexpr int AT_ONCE = LANE_KEYS > 2 ? 4 : 2; // loads
    const int all = room.segments * SEGMENT;
#pragma unroll 1
    for (int from = threadIdx.x; from < all; from += AT_ONCE * SAMPLE_THREADS) {
        u32 keys[AT_ONCE];
        int ids[AT_ONCE];
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const int at = from + j * SAMPLE_THREADS;
            ids[j] = at < all ? room.order[at / SEGMENT] * SEGMENT + at % SEGMENT : VOCAB;
            keys[j] = ids[j] < VOCAB ? load_u32_l2(args.keys + ids[j]) : 0;
        }
#pragma unroll
        for (int j = 0; j < AT_ONCE; j++) {
            const bool candidate = ids[j] < VOCAB && keys[j] >= bound;
            const int at = list_place(&room.listed, candidate);
            if (candidate && at < SAMPLE_LIST) room.list[at] = (u64)keys[j] << 32 | (u32)~ids[j];
        }
    }
}

// The list in order, the largest first: some neighbouring threads count those before each. No two
// are equal.
__device__ __forceinline__ void sort_list(SampleRoom &room, int n) {
    int lanes = 1; // for each
    while (lanes < 32 && 2 * lanes * n <= SAMPLE_THREADS) lanes *= 2;
    const int mine = threadIdx.x / lanes, first = threadIdx.x & (lanes - 1);
    const u64 candidate = mine < n ? room.list[mine] : 0;
    int before = 0;
    if (mine < n)
#pragma unroll 1
        for (int j = first; j < n; j += lanes) before += room.list[j] > candidate;
    for (int o = 1; o < lanes; o *= 2) before += __shfl_xor_sync(0xffffffffu, before, o);
    if (mine < n && first == 0) room.sorted[before] = candidate;
}

// The sum of this thread's number and those of the threads before it.
__device__ __forceinline__ u64 sum_up_to(SampleRoom &room, u64 v) {
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
#pragma unroll 1
    for (int o = 1; o < 32; o *= 2) {
        const u64 other = __shfl_up_sync(0xffffffffu, v, o);
        if (lane >= o) v += other;
    }
    if (lane == 31) room.sums[warp] = v;
    __syncthreads();
#pragma unroll 1
    for (int w = 0; w < warp; w++) v += room.sums[w];
    return v;
}

// Of the sorted list, steps 4 to 7.
__device__ __forceinline__ int draw(const SampleSettings &set, SampleRoom &room, int n, int k,
                                    float top, u64 total) {
    const int i = threadIdx.x;
    const u64 mass = i < n ? mass_of((u32)(room.sorted[i] >> 32), top) : 0;
    const u64 end = sum_up_to(room, mass), before = end - mass;
    const double p = set.top_p < 1 ? (double)set.top_p * (double)total : 1e300;
    const bool kept = i < n && i < k && (i == 0 || (double)before < p);
    const bool next = i + 1 < n && i + 1 < k && (double)end < p; // is kept, too
    if (kept && !next) room.whole = end;
    __syncthreads();
    const u64 r = (u64)(set.u * (double)room.whole);
    if (kept && before <= r && r < end) room.chosen = (int)~(u32)room.sorted[i];
    __syncthreads();
    return room.chosen;
}

// Steps 3 to 7.
__device__ __forceinline__ int choose(const SampleArgs &args, bool greedy) {
    __shared__ SampleRoom room;
    const SampleSettings &set = args.set;
    const int i = threadIdx.x, lane = i & 31, warp = i >> 5;
    static_assert(SAMPLE_THREADS == SEGMENTS && SAMPLE_THREADS >= SAMPLE_LIST, "threads");
    const int k = set.top_k > 0 && set.top_k < VOCAB ? set.top_k : VOCAB, shift = group_shift(k);
    const float4 segment = load_float4_l2((const float *)(args.segments + i));
    const u64 mine = (u64)__float_as_uint(segment.y) << 32 | __float_as_uint(segment.x);
    const u32 key = (u32)(mine >> 32);
    u32 group = key; // the largest of this thread's group
    for (int o = 1; o < 1 << shift; o *= 2)
        group = max(group, __shfl_xor_sync(0xffffffffu, group, o));
    if ((i & ((1 << shift) - 1)) == 0) room.tops[i >> shift] = group;
    const u64 of_warp = warp_max_u64(mine);
    if (lane == 0) room.bests[warp] = of_warp;
    if (i == 0) room.bound = 0, room.segments = room.listed = 0, room.chosen = -1;
    __syncthreads();

    const u64 best = warp_max_u64(room.bests[lane]);
    const int largest = (int)~(u32)best;
    if (best >> 32 == 0xffffffffu) return -1 - largest;
    if (greedy) return largest;
    const float top = float_of((u32)(best >> 32));
    u64 mass = 0;
    if (mine) mass = (u64)(segment.z * __expf(float_of(key) - top) * MASS_ONE);
    mass = warp_sum_u64(mass);
    if (lane == 0) room.masses[warp] = mass;
    note_bound(room, group, shift, k);
    __syncthreads();

    const u64 total = warp_sum_u64(room.masses[lane]); // of the whole vocabulary
    const u32 lowest = set.min_p > 0 ? key_of(top + __logf(set.min_p)) : 0;
    const u32 bound = max(lowest, room.bound);
    const bool has = i < USED_SEGMENTS && key >= bound;
    const int place = list_place(&room.segments, has);
    if (has) room.order[place] = i;
    __syncthreads();
    collect(args, room, bound);
    __syncthreads();
    const int n = room.listed;
    if (n > SAMPLE_LIST) return draw_by_bisection(args.keys, set, top, total, lowest);
    sort_list(room, n);
    __syncthreads();
    return draw(set, room, n, k, top, total);
}

// The chosen token to the host and to the context, and the first step of its evaluation (what
// embed_rows does for a token that the host knows). No kernel of the token starts before this one
// has ended: this block leaves no room for another on its SM, so two of the next would share one.
__device__ __forceinline__ void finish(const SampleArgs &args, int token, int length) {
    if (threadIdx.x == 0) {
        store_u32_host(args.host, (u32)token);
        *args.arrived = 0;
        args.state->token = token;
        if (token >= 0 && length < args.ctx) args.ids[length] = token;
        if (args.table) args.state->next = length + 1;
    }
    if (!args.table) return;
    const uint2 *row = (const uint2 *)(args.table + (i64)(token < 0 ? -1 - token : token) * HIDDEN);
#pragma unroll 1
    for (int i = threadIdx.x; i < HIDDEN / 4; i += SAMPLE_THREADS) {
        const uint2 v = row[i];
        *(float4 *)(args.x + 4 * i) =
            make_float4(f16_to_f32((u16)v.x), f16_to_f32((u16)(v.x >> 16)), f16_to_f32((u16)v.y),
                        f16_to_f32((u16)(v.y >> 16)));
    }
}

// This block's share of the weights that come into L2: lines of 128 bytes.
__device__ __forceinline__ void bring_first(const SampleArgs &args) {
    constexpr int STEP = 128 * SAMPLE_BLOCKS * SAMPLE_THREADS;
    for (int at = 128 * (blockIdx.x * SAMPLE_THREADS + threadIdx.x); at < args.brought; at += STEP)
        prefetch_l2(args.weights + at);
}

// Launch: SAMPLE_BLOCKS blocks of SAMPLE_THREADS threads. Bytes moved: the logits once, their keys
// once written and those of about top_k segments read; nearly all of `brought` into L2.
__device__ __forceinline__ void sample(const SampleArgs &args) {
    __shared__ bool last;
    wait_for_previous();
    const int length = args.state->next;
    const bool greedy = args.set.temperature < 1e-5f;
    if (args.table && blockIdx.x == 0) { // later kernels read these before their wait
        if (threadIdx.x == 0) args.state->pos = length;
        clear_begun(args.begun, args.pairs);
    }
    scan(args, length, greedy);
    __syncthreads();
    if (threadIdx.x == 0) last = arrive(args.arrived) == SAMPLE_BLOCKS - 1;
    __syncthreads();
    if (last)
        finish(args, choose(args, greedy), length);
    else
        bring_first(args);
}

#endif // TC_SAMPLE
