// attention - grouped-query attention over the KV cache: one kernel for decode, two for prefill.
//
// KV cache of a layer: K and V, each [KV_HEADS][ctx][HEAD_DIM] binary16, K after RoPE. Scores, the
// softmax and its sums are binary32; the products go through the tensor cores in binary16.
//
// Of the model (constants): ALIBI 0: RoPE, the rotate-half of Hugging Face checkpoints: (x[i],
// x[i + HEAD_DIM / 2]) turns by pos * frequency[i], times ROPE_SCALE; 1: slope * distance is added
// to the scores. QK_NORM 1: each head's query and key go through an RMSNorm first.

#ifndef TC_ATTENTION
#define TC_ATTENTION

#include "prelude.cuh"
#include "rows.cuh"

constexpr int HALF = HEAD_DIM / 2;
constexpr int GROUP_HEADS = HEADS / KV_HEADS;       // query heads of one KV head
constexpr int HEAD_TILES = (GROUP_HEADS + 7) / 8;   // in tiles of 8, for decode
constexpr int HEAD_STRIDE = HEAD_DIM + 8;           // halfs of a row in shared memory: 16 bytes
                                                    // off, so ldmatrix has no bank conflicts
constexpr int QKV_ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
constexpr float NO_SCORE = -1e30f; // of a key that a query does not see
constexpr float LOG2_E = 1.4426950408889634f;
// exp(x) is computed as exp2(x * log2(e)); the factor goes into the queries
#define SCORE_SCALE (LOG2_E * rsqrtf((float)HEAD_DIM))

// ---- queries and keys ----

// What turns projections into queries and keys. Of the model; what it lacks is null.
struct HeadArgs {
    const u64 *turns;             // [HALF] RoPE's turns per position, the fraction, times 2^64
    const float *slopes;          // [HEADS] of ALiBi
    const float *q_norm, *k_norm; // [HEAD_DIM] of this layer
};

// Sine and cosine of the HALF angles at `pos`, by all threads of a block. In 64-bit fixed point the
// product with a position loses nothing but whole turns.
__device__ __forceinline__ void rope_angles(const u64 *turns, int pos, float2 *angles) {
    if constexpr (!ALIBI)
        for (int i = threadIdx.x; i < HALF; i += blockDim.x) {
            const int t = (int)(turns[i] * (u64)pos >> 32); // of half turns, times 2^31
            float s, c;
            sincospif(t * 0x1p-31f, &s, &c);
            angles[i] = make_float2(s * ROPE_SCALE, c * ROPE_SCALE);
        }
}

__device__ __forceinline__ void rope_turn(float2 angle, float &x, float &y) {
    const float low = x * angle.y - y * angle.x;
    y = x * angle.x + y * angle.y;
    x = low;
}

// One head's vector in a warp: lane l holds the numbers d = 2 l + 64 i and d + 1, and those HALF
// behind them, with which RoPE turns them.
struct HeadVector {
    static constexpr int N = (HALF + 63) / 64;
    float2 low[N], high[N];

    __device__ __forceinline__ static bool has(int d) { return HALF % 64 == 0 || d < HALF; }

    __device__ __forceinline__ void load(const float *in, int lane) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int d = 2 * lane + 64 * i;
            low[i] = has(d) ? load_float2_l2(in + d) : make_float2(0, 0);
            high[i] = has(d) ? load_float2_l2(in + d + HALF) : make_float2(0, 0);
        }
    }
    __device__ __forceinline__ void norm(const float *gamma, int lane) {
        float sum = 0;
#pragma unroll
        for (int i = 0; i < N; i++)
            sum += low[i].x * low[i].x + low[i].y * low[i].y + high[i].x * high[i].x +
                   high[i].y * high[i].y;
        const float rms = rsqrtf(warp_sum(sum) / HEAD_DIM + NORM_EPS);
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int d = 2 * lane + 64 * i;
            if (!has(d)) continue;
            low[i].x *= rms * gamma[d], low[i].y *= rms * gamma[d + 1];
            high[i].x *= rms * gamma[d + HALF], high[i].y *= rms * gamma[d + HALF + 1];
        }
    }
    __device__ __forceinline__ void turn(const float2 *angles, int lane) {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int d = 2 * lane + 64 * i;
            if (!has(d)) continue;
            rope_turn(angles[d], low[i].x, high[i].x);
            rope_turn(angles[d + 1], low[i].y, high[i].y);
        }
    }
    __device__ __forceinline__ void store(u16 *to, float scale, int lane) const {
#pragma unroll
        for (int i = 0; i < N; i++) {
            const int d = 2 * lane + 64 * i;
            if (!has(d)) continue;
            *(u32 *)(to + d) = f32_to_f16x2(low[i].x * scale, low[i].y * scale);
            *(u32 *)(to + d + HALF) = f32_to_f16x2(high[i].x * scale, high[i].y * scale);
        }
    }
};

// A thread's place when several copy vectors of a head into shared memory, 16 bytes each: it stays
// in its column and takes every so many rows. Where rows do not divide the threads some have no
// place.
struct CopyPlace {
    static constexpr int CHUNKS = HEAD_DIM / 8;
    int row, at;
    __device__ __forceinline__ explicit CopyPlace(int thread)
        : row(thread / CHUNKS), at(8 * (thread % CHUNKS)) {}
    __device__ __forceinline__ u32 shared() const { return 2 * (row * HEAD_STRIDE + at); }
    __device__ __forceinline__ i64 global(int stride) const { return (i64)row * stride + at; }
};

// Starts copying ROWS vectors by THREADS threads. `to` and `from` are at this thread's place;
// `count` vectors exist, the others become zeros.
template <int ROWS, int THREADS>
__device__ __forceinline__ void copy_rows(u32 to, const u16 *from, int stride, int count, int row) {
    constexpr int AT_ONCE = THREADS / CopyPlace::CHUNKS;
    const int left = count - row; // against constants: row + r would take a register each
    if (THREADS % CopyPlace::CHUNKS && row >= AT_ONCE) return;
#pragma unroll
    for (int r = 0; r < ROWS; r += AT_ONCE)
        if (ROWS % AT_ONCE == 0 || row + r < ROWS)
            copy_async_16_or_zero(to + 2 * r * HEAD_STRIDE, from + r * stride, r < left);
}

// ---- decode: one token, or a few at the beginning ----

struct DecodeAttentionArgs {
    const float *qkv; // [tokens][QKV_ROWS] before RoPE
    u16 *k, *v;       // this layer's cache
    float *out;       // [tokens][HEADS * HEAD_DIM]
    float *parts;     // [KV_HEADS * HEAD_TILES][SPLITS][DECODE_PARTIAL]
    u32 *arrived;     // [KV_HEADS * HEAD_TILES], zero; left zero
    const State *state;
    HeadArgs head;
    int ctx;
};

// A warp works on units of 16 keys: they flow through its own ring in shared memory, K and V apart,
// and nothing in the loop waits for another warp.
constexpr int UNIT_KEYS = 16;
constexpr int DECODE_WARPS = 4;
constexpr int DECODE_THREADS = DECODE_WARPS * 32;
constexpr int DECODE_SLOT = 2 * UNIT_KEYS * HEAD_STRIDE; // bytes of a unit's keys (or values)
// Where it runs beside two products (instances.cuh) it has little room, and up to 96 registers: as
// if five of its blocks were to share an SM.
constexpr bool DECODE_BESIDE = ATTENTION_BESIDE && ROOM_BESIDE;
constexpr int DECODE_RESIDENT = DECODE_BESIDE ? 5 : 1;
constexpr int DECODE_SLOTS = // of a warp: K and V of one or two units
    HEAD_DIM <= 128 && !DECODE_BESIDE ? 4 : 2;
constexpr int DECODE_RINGS = DECODE_WARPS * DECODE_SLOTS * DECODE_SLOT;
// Adding parts costs a trip to L2 and back three times: up to ALONE units for each, a block, or a
// cluster's blocks do all of a head themselves, beyond them a part has at least as many as their
// rings hold.
constexpr int DECODE_ALONE = 16, DECODE_PART = DECODE_WARPS * DECODE_SLOTS / 2;
// Blocks of a cluster, which add what they have in the first one's shared memory: where few heads
// leave SMs for them.
constexpr int DECODE_PLACES = SM_COUNT / (KV_HEADS * HEAD_TILES);
#ifdef TC_HOPPER
constexpr int DECODE_CLUSTER =
    DECODE_PLACES >= 28 && !DECODE_BESIDE ? 4 : DECODE_PLACES >= 14 ? 2 : 1;
#else
constexpr int DECODE_CLUSTER = 1;
#endif

// Tokens that one launch takes at most, and the new keys that a warp of it prepares at once.
constexpr int FEW_TOKENS = 8, FEW_AT_ONCE = HEAD_DIM <= 128 ? 4 : 1;

// Up to 8 heads' queries as the A operand of mma: row r is head r's in binary16 and row r + 8 what
// that leaves out, so scores see 22 bits of the queries at no cost.
__device__ __forceinline__ void decode_queries(const DecodeAttentionArgs &args, int token,
                                               int first, int heads, const float2 *angles,
                                               u32 q[HEAD_DIM / 16][4]) {
    constexpr int N = HEAD_DIM / 8;
    const int lane = threadIdx.x & 31, at = 2 * (lane & 3);
    // rows without a head repeat the last one's; nobody reads their results
    const float *in =
        args.qkv + token * QKV_ROWS + (first + min(lane >> 2, heads - 1)) * HEAD_DIM + at;
    float2 x[N];
#pragma unroll
    for (int c = 0; c < N; c++) x[c] = load_float2_l2(in + 8 * c);
    float scale = SCORE_SCALE;
    if constexpr (QK_NORM) {
        float sum = 0;
#pragma unroll
        for (int c = 0; c < N; c++) sum += x[c].x * x[c].x + x[c].y * x[c].y;
        sum += __shfl_xor_sync(0xffffffffu, sum, 1);
        sum += __shfl_xor_sync(0xffffffffu, sum, 2);
        scale *= rsqrtf(sum / HEAD_DIM + NORM_EPS);
#pragma unroll
        for (int c = 0; c < N; c++) {
            const float2 gamma = *(const float2 *)(args.head.q_norm + 8 * c + at);
            x[c].x *= gamma.x, x[c].y *= gamma.y;
        }
    }
    if constexpr (!ALIBI)
#pragma unroll
        for (int c = 0; c < N / 2; c++) {
            const float4 a = *(const float4 *)(angles + 8 * c + at);
            rope_turn(make_float2(a.x, a.y), x[c].x, x[c + N / 2].x);
            rope_turn(make_float2(a.z, a.w), x[c].y, x[c + N / 2].y);
        }
#pragma unroll
    for (int c = 0; c < N; c++) {
        const float a = x[c].x * scale, b = x[c].y * scale;
        u32 *to = q[c / 2] + 2 * (c & 1);
        to[0] = f32_to_f16x2(a, b);
        to[1] = rest_of_f16x2(a, b, to[0]);
    }
}

// scores[n] of 16 keys in a slot: lane l has head l / 4 and keys 8 n + 2 (l % 4) + {0, 1}.
__device__ __forceinline__ void decode_scores(const u32 q[HEAD_DIM / 16][4], u32 slot,
                                              float scores[2][2]) {
    const int lane = threadIdx.x & 31;
    const u32 row = slot + 2 * (((lane & 7) + 8 * (lane >> 4)) * HEAD_STRIDE + 8 * (lane >> 3 & 1));
    float s[2][2][4] = {}; // sums over even and odd steps: shorter chains
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; d++) {
        u32 b[4];
        load_matrix_x4(b, row + 32 * d);
        mma_16x8x16(s[d & 1][0], q[d], b[0], b[1]);
        mma_16x8x16(s[d & 1][1], q[d], b[2], b[3]);
    }
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int c = 0; c < 2; c++)
            scores[n][c] = (s[0][n][c] + s[1][n][c]) + (s[0][n][c + 2] + s[1][n][c + 2]);
}

// A warp's running softmax of up to 8 heads: lane l has head l / 4. The sums are per lane until the
// end; out has the values weighed with the probabilities in binary16 and with what that leaves out.
struct DecodeSoftmax {
    float top, sum, out[HEAD_DIM / 8][4];

    __device__ __forceinline__ void clear() {
        top = NO_SCORE, sum = 0;
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
            for (int c = 0; c < 4; c++) out[d][c] = 0;
    }
    // Scores become the A operand of probabilities; out is brought to the new maximum.
    __device__ __forceinline__ void add(const float s[2][2], u32 p[4]) {
        float t = fmaxf(fmaxf(s[0][0], s[0][1]), fmaxf(s[1][0], s[1][1]));
        t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 1));
        t = fmaxf(top, fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 2)));
        const float down = exp2_fast(top - t);
        if (__any_sync(0xffffffffu, t > top)) {
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
                for (int c = 0; c < 4; c++) out[d][c] *= down;
        }
        top = t, sum *= down;
#pragma unroll
        for (int n = 0; n < 2; n++) {
            const float x = exp2_fast(s[n][0] - t), y = exp2_fast(s[n][1] - t);
            sum += x + y;
            p[2 * n] = f32_to_f16x2(x, y);
            p[2 * n + 1] = rest_of_f16x2(x, y, p[2 * n]);
        }
    }
    // out += P V for the 16 values in a slot.
    __device__ __forceinline__ void weigh(const u32 p[4], u32 slot) {
        const int lane = threadIdx.x & 31;
        const u32 row =
            slot + 2 * (((lane & 7) + 8 * (lane >> 3 & 1)) * HEAD_STRIDE + 8 * (lane >> 4));
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 16; d++) {
            u32 b[4];
            load_matrix_x4_trans(b, row + 32 * d);
            mma_16x8x16(out[2 * d], p, b[0], b[1]);
            mma_16x8x16(out[2 * d + 1], p, b[2], b[3]);
        }
    }
};

// Four numbers of a head's result that a warp or a block has from its keys.
struct Partial {
    float top, sum;
    float4 out;
    // Adding in a fixed order gives the same bits every time.
    __device__ __forceinline__ void add(float t, float s, float4 o) {
        const float higher = fmaxf(top, t), f = exp2_fast(top - higher), g = exp2_fast(t - higher);
        top = higher;
        sum = sum * f + s * g;
        out.x = out.x * f + o.x * g, out.y = out.y * f + o.y * g;
        out.z = out.z * f + o.z * g, out.w = out.w * f + o.w * g;
    }
    __device__ __forceinline__ float4 result() const {
        const float f = 1 / sum;
        return make_float4(out.x * f, out.y * f, out.z * f, out.w * f);
    }
};
// A block's partial results in memory: out [8][HEAD_DIM], tops [8], sums [8].
constexpr int DECODE_PARTIAL = 8 * (HEAD_DIM + 2);

// The last block of a head tile adds all blocks' partial results.
__device__ __forceinline__ void decode_add_parts(const float *parts, int n, int heads, float *out) {
    constexpr int AT_ONCE = 8; // loads in flight
    for (int i = 4 * threadIdx.x; i < heads * HEAD_DIM; i += 4 * DECODE_THREADS) {
        const int top = 8 * HEAD_DIM + i / HEAD_DIM;
        Partial all = {NO_SCORE, 0, {0, 0, 0, 0}};
        for (int p = 0; p < n; p += AT_ONCE) {
            float tops[AT_ONCE], sums[AT_ONCE];
            float4 outs[AT_ONCE];
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++) {
                const float *part = parts + min(p + k, n - 1) * DECODE_PARTIAL;
                tops[k] = load_f32_l2(part + top);
                sums[k] = load_f32_l2(part + top + 8);
                outs[k] = load_float4_l2(part + i);
            }
#pragma unroll
            for (int k = 0; k < AT_ONCE; k++)
                if (p + k < n) all.add(tops[k], sums[k], outs[k]);
        }
        *(float4 *)(out + i) = all.result();
    }
}

// What a block's warps share beside the rings.
struct DecodeShared {
    float tops[DECODE_WARPS][8], sums[DECODE_WARPS][8];
    bool last; // of the blocks of a head tile
};

// Shared memory of a block: the rings, what the warps share, the angles of the new tokens, and in a
// cluster a barrier and what its blocks give to the first: of each out [heads][HEAD_DIM], then
// (top, sum) [heads].
template <int TOKENS, int CLUSTER> struct DecodeRoom {
    static __device__ constexpr int align(int bytes) { return (bytes + 15) / 16 * 16; }
    static constexpr int SHARED = DECODE_RINGS;
    static constexpr int ANGLES = SHARED + align((int)sizeof(DecodeShared));
    static constexpr int BARRIER = ANGLES + align(8 * TOKENS * HALF), FIRST = BARRIER + 16;
    static constexpr int MOST_HEADS = GROUP_HEADS < 8 ? GROUP_HEADS : 8; // of a tile
    static constexpr int STATS = 4 * MOST_HEADS * HEAD_DIM, GIVEN = align(STATS + 8 * MOST_HEADS);
    static constexpr int SMEM = CLUSTER == 1 ? BARRIER : FIRST + CLUSTER * GIVEN;
    static_assert(!DECODE_BESIDE || TOKENS > 1 || SMEM + 1024 <= BESIDE_ROOM, "room");
};

// Keys and values of the new tokens at positions `from` to `last`, of which the first is `begin`,
// into their rows in shared memory and, once per KV head, the last into the cache, if it is this
// block's token `own`. rows: those of position `unit` and the 15 behind it. The zeros that were
// copied there must have arrived.
template <int AT_ONCE>
__device__ __forceinline__ void decode_new_keys(const DecodeAttentionArgs &args, int kv, int begin,
                                                int from, int last, int own, bool write,
                                                const float2 *angles, u16 *rows, int unit) {
    const int lane = threadIdx.x & 31;
    for (int p = from; p <= last; p += AT_ONCE) {
        HeadVector k[AT_ONCE], v[AT_ONCE];
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            const int token = min(p + i, last) - begin;
            const float *in = args.qkv + token * QKV_ROWS + (HEADS + kv) * HEAD_DIM;
            k[i].load(in, lane);
            v[i].load(in + KV_HEADS * HEAD_DIM, lane);
        }
#pragma unroll
        for (int i = 0; i < AT_ONCE; i++) {
            if (p + i > last) break;
            const i64 at = ((i64)kv * args.ctx + p + i) * HEAD_DIM;
            u16 *row = rows + (p + i - unit) * HEAD_STRIDE;
            if constexpr (QK_NORM) k[i].norm(args.head.k_norm, lane);
            if constexpr (!ALIBI) k[i].turn(angles + (p + i - begin) * HALF, lane);
            k[i].store(row, 1, lane);
            v[i].store(row + DECODE_SLOT / 2, 1, lane);
            if (write && p + i == own)
                k[i].store(args.k + at, 1, lane), v[i].store(args.v + at, 1, lane);
        }
    }
}

// ALiBi, and the keys that do not exist yet; `past` is how far the unit's first key lies behind the
// token.
__device__ __forceinline__ void decode_mask(float s[2][2], int past, float slope) {
    past += 2 * (threadIdx.x & 3);
#pragma unroll
    for (int n = 0; n < 2; n++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            if constexpr (ALIBI) s[n][c] += slope * (float)(past + 8 * n + c);
            if (past + 8 * n + c > 0) s[n][c] = NO_SCORE;
        }
}

// What the warps have to one; what the `blocks` of a cluster have: the first adds it; and what the
// `parts` of the keys have: the last block to arrive adds it.
template <class Room, int CLUSTER>
__device__ __forceinline__ void decode_finish(const DecodeAttentionArgs &args,
                                              const DecodeSoftmax &softmax, u8 *smem, int token,
                                              int first_head, int heads, int blocks, int parts) {
    const bool together = CLUSTER > 1 && blocks > 1;
    DecodeShared &shared = *(DecodeShared *)(smem + Room::SHARED);
    constexpr int OUTS = DECODE_SLOTS * DECODE_SLOT / 4; // a warp's [8][HEAD_DIM] in its ring
    float *rings = (float *)smem;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int tile = blockIdx.x / CLUSTER, rank = blockIdx.x % CLUSTER;
    float sum = softmax.sum;
    sum += __shfl_xor_sync(0xffffffffu, sum, 1);
    sum += __shfl_xor_sync(0xffffffffu, sum, 2);
    if (lane >> 2 < heads) {
        float *to = rings + warp * OUTS + (lane >> 2) * HEAD_DIM + 2 * (lane & 3);
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 8; d++)
            *(float2 *)(to + 8 * d) = make_float2(softmax.out[d][0] + softmax.out[d][2],
                                                  softmax.out[d][1] + softmax.out[d][3]);
        if ((lane & 3) == 0)
            shared.tops[warp][lane >> 2] = softmax.top, shared.sums[warp][lane >> 2] = sum;
    }
    __syncthreads();
    float *out = args.out + (token * HEADS + first_head) * HEAD_DIM;
    float *tile_parts = args.parts + (i64)tile * gridDim.y * DECODE_PARTIAL;
    float *part = tile_parts + blockIdx.y * DECODE_PARTIAL;
    auto store = [&](int i, const Partial &all) { // four numbers, as a result or as a part of it
        *(float4 *)(parts == 1 ? out + i : part + i) = parts == 1 ? all.result() : all.out;
        if (parts > 1 && i % HEAD_DIM == 0) {
            part[8 * HEAD_DIM + i / HEAD_DIM] = all.top;
            part[8 * HEAD_DIM + 8 + i / HEAD_DIM] = all.sum;
        }
    };
    if (together) cluster_wait(); // the first one has begun
    for (int i = 4 * threadIdx.x; i < heads * HEAD_DIM; i += 4 * DECODE_THREADS) {
        const int h = i / HEAD_DIM;
        Partial all = {NO_SCORE, 0, {0, 0, 0, 0}};
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++)
            all.add(shared.tops[w][h], shared.sums[w][h], *(const float4 *)(rings + w * OUTS + i));
        if (together) {
            const u32 barrier = shared_address(smem + Room::BARRIER);
            const u32 to = shared_address(smem + Room::FIRST) + rank * Room::GIVEN;
            give_16(to + 4 * i, barrier, 0, all.out);
            if (i % HEAD_DIM == 0)
                give_8(to + Room::STATS + 8 * h, barrier, 0, make_float2(all.top, all.sum));
        } else {
            store(i, all);
        }
    }
    if (together) {
        if (rank) return;
        const u32 barrier = shared_address(smem + Room::BARRIER);
        if (threadIdx.x == 0) barrier_expect(barrier, blocks * heads * (4 * HEAD_DIM + 8));
        barrier_wait(barrier, 0);
        for (int i = 4 * threadIdx.x; i < heads * HEAD_DIM; i += 4 * DECODE_THREADS) {
            Partial all = {NO_SCORE, 0, {0, 0, 0, 0}};
            for (int b = 0; b < blocks; b++) {
                const u8 *from = smem + Room::FIRST + b * Room::GIVEN;
                const float2 stat = *(const float2 *)(from + Room::STATS + 8 * (i / HEAD_DIM));
                all.add(stat.x, stat.y, *(const float4 *)(from + 4 * i));
            }
            store(i, all);
        }
    }
    if (parts == 1) return;
    __syncthreads();
    if (threadIdx.x == 0) {
        shared.last = arrive(&args.arrived[tile]) == (u32)parts - 1;
        if (shared.last) args.arrived[tile] = 0;
    }
    __syncthreads();
    if (shared.last) decode_add_parts(tile_parts, parts, heads, out);
}

// Starts copying a warp's first units, from `next` on, into its ring; returns the one after them.
__device__ __forceinline__ int decode_fill(u32 ring, const CopyPlace &place, const u16 *keys,
                                           const u16 *values, int next, int end, int known) {
#pragma unroll
    for (int s = 0; s < DECODE_SLOTS; s++) {
        const i64 at = (i64)next * UNIT_KEYS;
        if (next < end)
            copy_rows<UNIT_KEYS, 32>(
                ring + s * DECODE_SLOT + place.shared(),
                (s & 1 ? values : keys) + at * HEAD_DIM + place.global(HEAD_DIM), HEAD_DIM,
                known - (int)at, place.row);
        copy_async_commit();
        if (s & 1) next += DECODE_WARPS;
    }
    return next;
}

// RoPE, the KV write and attention of one token, or of up to TOKENS behind few keys: then each
// block prepares all the new keys that its token sees. A block takes up to 8 heads of one KV head
// of a token and one part of the keys, which the blocks of a cluster share; its warps share the
// block's units, add what each has, and the block that arrives last adds the parts. Launch:
// (KV_HEADS * HEAD_TILES * CLUSTER, SPLITS) blocks of DECODE_THREADS in clusters, at most one block
// per SM in all; or (KV_HEADS * HEAD_TILES * tokens, 1) with CLUSTER 1; SMEM bytes of DecodeRoom.
// Bytes moved: K and V up to the position once per HEAD_TILES and token.
template <int TOKENS, int CLUSTER>
__device__ __forceinline__ void attention_decode(const DecodeAttentionArgs &args) {
    typedef DecodeRoom<TOKENS, CLUSTER> Room;
    extern __shared__ __align__(128) u8 smem[];
    float2 *angles = (float2 *)(smem + Room::ANGLES);
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int tile = blockIdx.x / CLUSTER, rank = blockIdx.x % CLUSTER;
    const int token = TOKENS == 1 ? 0 : tile / (KV_HEADS * HEAD_TILES);
    const int kv = tile / HEAD_TILES % KV_HEADS, head_tile = tile % HEAD_TILES;
    const int heads = min(8, GROUP_HEADS - 8 * head_tile);
    const int first_head = kv * GROUP_HEADS + 8 * head_tile;
    // Before the wait: everything but the new tokens' projections. This kernel may start while
    // others of its token still run, but none starts before the first, embed_rows or sample, has
    // written the position; and the cache of earlier positions comes from earlier tokens, which had
    // finished before that.
    const int known = (int)load_u32_l2((const u32 *)&args.state->pos); // keys in the cache
    const int pos = known + token, units = pos / UNIT_KEYS + 1;
    constexpr int ALONE = CLUSTER * DECODE_ALONE, PART = CLUSTER * DECODE_PART;
    const int parts = units <= ALONE ? 1 : min((int)gridDim.y, (units + PART - 1) / PART);
    const int blocks = min(CLUSTER, (units + DECODE_WARPS - 1) / DECODE_WARPS); // with work
    if ((int)blockIdx.y >= parts || rank >= blocks) return;
    launch_dependents(); // the next kernel has weights to load
    if (CLUSTER > 1 && blocks > 1) {
        if (threadIdx.x == 0) barrier_init(shared_address(smem + Room::BARRIER), 1);
        barrier_init_fence();
        cluster_arrive();
    }
    const int share = blockIdx.y * blocks + rank, shares = parts * blocks;
    const int begin = (int)((i64)units * share / shares);
    const int end = (int)((i64)units * (share + 1) / shares);
    const u16 *k_cache = args.k + (i64)kv * args.ctx * HEAD_DIM;
    const u16 *v_cache = args.v + (i64)kv * args.ctx * HEAD_DIM;
    u8 *const slots = smem + warp * DECODE_SLOTS * DECODE_SLOT;
    const u32 ring = shared_address(slots);
    const CopyPlace place(lane);
    // the unit to copy next
    int next = decode_fill(ring, place, k_cache, v_cache, begin + warp, end, known);
    for (int t = 0; t <= token; t++)
        rope_angles(args.head.turns, known + t, angles + t * HALF);
    float slope = 0;
    if constexpr (ALIBI)
        slope = LOG2_E * args.head.slopes[first_head + min(lane >> 2, heads - 1)];
    __syncthreads();
    wait_for_previous();

    u32 q[HEAD_DIM / 16][4];
    decode_queries(args, token, first_head, heads, angles + token * HALF, q);
    DecodeSoftmax softmax;
    softmax.clear();
    u32 slot = ring;
    for (int u = begin + warp; u < end; u += DECODE_WARPS) {
        const int first = u * UNIT_KEYS;
        const bool more = next < end;
        const i64 next_at = (i64)next * UNIT_KEYS * HEAD_DIM + place.global(HEAD_DIM);
        copy_async_wait<DECODE_SLOTS - 1>();
        if (first + UNIT_KEYS > known) { // the last keys and values of this unit are new
            copy_async_wait<DECODE_SLOTS - 2>(); // the values too
            __syncwarp();
            decode_new_keys<TOKENS == 1 ? 1 : FEW_AT_ONCE>(
                args, kv, known, max(first, known), min(first + UNIT_KEYS - 1, pos), pos,
                head_tile == 0, angles, (u16 *)(slots + (slot - ring)), first);
        }
        __syncwarp();
        float s[2][2];
        decode_scores(q, slot, s);
        __syncwarp();
        if (more)
            copy_rows<UNIT_KEYS, 32>(slot + place.shared(), k_cache + next_at, HEAD_DIM,
                                     known - next * UNIT_KEYS, place.row);
        copy_async_commit();
        decode_mask(s, first - pos, slope);
        u32 p[4];
        softmax.add(s, p);
        copy_async_wait<DECODE_SLOTS - 1>();
        __syncwarp();
        softmax.weigh(p, slot + DECODE_SLOT);
        __syncwarp();
        if (more)
            copy_rows<UNIT_KEYS, 32>(slot + DECODE_SLOT + place.shared(), v_cache + next_at,
                                     HEAD_DIM, known - next * UNIT_KEYS, place.row);
        copy_async_commit();
        next += DECODE_WARPS;
        if (DECODE_SLOTS == 4) slot = 2 * ring + 2 * DECODE_SLOT - slot;
    }
    decode_finish<Room, CLUSTER>(args, softmax, smem, token, first_head, heads, blocks, parts);
}

// ---- prefill: many tokens ----

struct PrefillAttentionArgs {
    const float *qkv; // [tokens][QKV_ROWS] before RoPE
    u16 *q;           // [tokens][HEADS * HEAD_DIM] after RoPE, scaled
    u16 *k, *v;       // this layer's cache
    u16 *out;         // an operand of HEADS * HEAD_DIM columns (means of values: cannot overflow)
    float *vectors;   // or null; then instead of out: [tokens][HEADS * HEAD_DIM]
    float *scale;     // [tokens] set to 1: out is ready for the next product
    float *parts; // [splits][tokens][HEADS][HEAD_DIM], then [splits][tokens][HEADS] of {top, sum}
    const State *state;
    HeadArgs head;
    int ctx, tokens, splits; // splits: parts of the keys that blocks work on at once
};

constexpr int ROPE_VECTORS = HEADS + 2 * KV_HEADS; // queries, keys and values of a token
constexpr int ROPE_EACH = 3;                       // of a warp
constexpr int ROPE_PARTS = (ROPE_VECTORS + 8 * ROPE_EACH - 1) / (8 * ROPE_EACH);

// RoPE and the KV write of a prefill: a warp takes one head's vector at a time. The position was
// there before the first kernel of the prefill. Launch: (ROPE_PARTS, tokens) blocks of 256 threads.
// Bytes moved: 6 for each number of qkv.
__device__ __forceinline__ void rope_write(const PrefillAttentionArgs &args) {
    __shared__ __align__(16) float2 angles[HALF];
    const int t = blockIdx.y, lane = threadIdx.x & 31;
    const int pos = (int)load_u32_l2((const u32 *)&args.state->pos) + t;
    const int first = blockIdx.x * 8 + (threadIdx.x >> 5);
    const float *in = args.qkv + (i64)t * QKV_ROWS;
    rope_angles(args.head.turns, pos, angles);
    wait_for_previous();
    launch_dependents();
    if (blockIdx.x == 0 && threadIdx.x == 0) args.scale[t] = 1;
    HeadVector vectors[ROPE_EACH];
#pragma unroll
    for (int i = 0; i < ROPE_EACH; i++)
        if (first + i * ROPE_PARTS * 8 < ROPE_VECTORS)
            vectors[i].load(in + (first + i * ROPE_PARTS * 8) * HEAD_DIM, lane);
    __syncthreads();
#pragma unroll
    for (int i = 0; i < ROPE_EACH; i++) {
        const int h = first + i * ROPE_PARTS * 8;
        if (h >= ROPE_VECTORS) break;
        const bool query = h < HEADS, key = !query && h < HEADS + KV_HEADS;
        HeadVector &x = vectors[i];
        if constexpr (QK_NORM)
            if (query || key) x.norm(query ? args.head.q_norm : args.head.k_norm, lane);
        if constexpr (!ALIBI)
            if (query || key) x.turn(angles, lane);
        u16 *to = query ? args.q + ((i64)t * HEADS + h) * HEAD_DIM
                  : key ? args.k + ((i64)(h - HEADS) * args.ctx + pos) * HEAD_DIM
                        : args.v + ((i64)(h - HEADS - KV_HEADS) * args.ctx + pos) * HEAD_DIM;
        x.store(to, query ? SCORE_SCALE : 1.0f, lane);
    }
}

// A block takes one head and 4 warps' queries; a warp 16 or 32 of them: the more, the less often
// shared memory is read for a product, but head size 256 leaves no registers for 32.
constexpr int ROW_TILES = HEAD_DIM <= 128 ? 2 : 1;
constexpr int PREFILL_WARPS = 4;
constexpr int PREFILL_THREADS = PREFILL_WARPS * 32;
constexpr int PREFILL_QUERIES = PREFILL_WARPS * 16 * ROW_TILES;
constexpr int PREFILL_KEYS = HEAD_DIM <= 96 ? 64 : HEAD_DIM <= 128 ? 48 : 32; // of a tile
constexpr int PREFILL_TILE = 2 * PREFILL_KEYS * HEAD_STRIDE;
constexpr int PREFILL_SMEM = 2 * PREFILL_QUERIES * HEAD_STRIDE + 2 * PREFILL_TILE;

// The running softmax of a warp's 16 * ROW_TILES queries: rows lane / 4 + 8 h of each row tile. The
// sums are per lane until the end.
struct PrefillSoftmax {
    static constexpr int N = PREFILL_KEYS / 8;
    float top[ROW_TILES][2], sum[ROW_TILES][2], out[ROW_TILES][HEAD_DIM / 8][4];

    __device__ __forceinline__ void clear() {
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++) {
            top[r][0] = top[r][1] = NO_SCORE;
            sum[r][0] = sum[r][1] = 0;
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
                for (int c = 0; c < 4; c++) out[r][d][c] = 0;
        }
    }
    // Scores become probabilities; out is brought to the new maximum.
    __device__ __forceinline__ void add(float s[ROW_TILES][N][4]) {
        float down[ROW_TILES][2];
        bool higher = false;
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                float t = top[r][h];
#pragma unroll
                for (int n = 0; n < N; n++) t = fmaxf(t, fmaxf(s[r][n][2 * h], s[r][n][2 * h + 1]));
                t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 1));
                t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 2));
                higher |= t > top[r][h];
                down[r][h] = exp2_fast(top[r][h] - t);
                top[r][h] = t;
            }
        if (__any_sync(0xffffffffu, higher)) {
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
                    for (int c = 0; c < 4; c++) out[r][d][c] *= down[r][c >> 1];
        }
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
            for (int h = 0; h < 2; h++) {
                sum[r][h] *= down[r][h];
#pragma unroll
                for (int n = 0; n < N; n++)
#pragma unroll
                    for (int c = 2 * h; c < 2 * h + 2; c++) {
                        s[r][n][c] = exp2_fast(s[r][n][c] - top[r][h]);
                        sum[r][h] += s[r][n][c];
                    }
            }
    }
    // out += P V for a tile of values.
    __device__ __forceinline__ void weigh(const float p[ROW_TILES][N][4], u32 tile, int lane) {
        const u32 row =
            tile + 2 * (((lane & 7) + 8 * (lane >> 3 & 1)) * HEAD_STRIDE + 8 * (lane >> 4));
#pragma unroll
        for (int n = 0; n < N / 2; n++) {
            u32 a[ROW_TILES][4];
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    a[r][c] = f32_to_f16x2(p[r][2 * n + (c >> 1)][2 * (c & 1)],
                                           p[r][2 * n + (c >> 1)][2 * (c & 1) + 1]);
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 16; d++) {
                u32 b[4];
                load_matrix_x4_trans(b, row + 2 * (16 * n * HEAD_STRIDE + 16 * d));
#pragma unroll
                for (int r = 0; r < ROW_TILES; r++) {
                    mma_16x8x16(out[r][2 * d], a[r], b[0], b[1]);
                    mma_16x8x16(out[r][2 * d + 1], a[r], b[2], b[3]);
                }
            }
        }
    }
};

// S = Q K' for one warp: q its rows of queries, k a tile of keys.
__device__ __forceinline__ void prefill_scores(u32 q, u32 k, int lane,
                                               float s[ROW_TILES][PREFILL_KEYS / 8][4]) {
    const u32 q_row = q + 2 * (((lane & 7) + 8 * (lane >> 3 & 1)) * HEAD_STRIDE + 8 * (lane >> 4));
    const u32 k_row = k + 2 * (((lane & 7) + 8 * (lane >> 4)) * HEAD_STRIDE + 8 * (lane >> 3 & 1));
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int n = 0; n < PREFILL_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) s[r][n][c] = 0;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; d++) {
        u32 a[ROW_TILES][4];
#pragma unroll
        for (int r = 0; r < ROW_TILES; r++)
            load_matrix_x4(a[r], q_row + 32 * (r * HEAD_STRIDE + d));
#pragma unroll
        for (int n = 0; n < PREFILL_KEYS / 16; n++) {
            u32 b[4];
            load_matrix_x4(b, k_row + 32 * (n * HEAD_STRIDE + d));
#pragma unroll
            for (int r = 0; r < ROW_TILES; r++) {
                mma_16x8x16(s[r][2 * n], a[r], b[0], b[1]);
                mma_16x8x16(s[r][2 * n + 1], a[r], b[2], b[3]);
            }
        }
    }
}

// What a warp has for its queries, the first of which is token `first`: results, or parts of them.
__device__ __forceinline__ void prefill_store(const PrefillAttentionArgs &args,
                                              const PrefillSoftmax &softmax, int first, int head,
                                              int split, int lane) {
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float sum = softmax.sum[r][h];
            sum += __shfl_xor_sync(0xffffffffu, sum, 1);
            sum += __shfl_xor_sync(0xffffffffu, sum, 2);
            const int t = first + 16 * r + (lane >> 2) + 8 * h;
            if (t >= args.tokens) continue;
            const i64 rows = (i64)args.tokens * HEADS, row = (i64)t * HEADS + head;
            const i64 part = split * rows + row;
            const float f = args.splits > 1 ? 1 : 1 / sum;
            if (args.splits > 1 && (lane & 3) == 0)
                ((float2 *)(args.parts + args.splits * rows * HEAD_DIM))[part] =
                    make_float2(softmax.top[r][h], sum);
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; d++) {
                const float x = softmax.out[r][d][2 * h] * f, y = softmax.out[r][d][2 * h + 1] * f;
                const int at = 8 * d + 2 * (lane & 3);
                if (args.splits > 1)
                    *(float2 *)(args.parts + part * HEAD_DIM + at) = make_float2(x, y);
                else if (args.vectors)
                    *(float2 *)(args.vectors + row * HEAD_DIM + at) = make_float2(x, y);
                else
                    *(u32 *)operand_at(args.out, HEADS * HEAD_DIM, t, head * HEAD_DIM + at) =
                        f32_to_f16x2(x, y);
            }
        }
}

// ALiBi, and the keys that a query does not see; `past` is how far the first key of a warp's tile
// lies behind its first query.
__device__ __forceinline__ void prefill_mask(float s[ROW_TILES][PREFILL_KEYS / 8][4], int past,
                                             float slope, int lane) {
    const float from = (float)(past + 2 * (lane & 3) - (lane >> 2));
#pragma unroll
    for (int r = 0; r < ROW_TILES; r++)
#pragma unroll
        for (int n = 0; n < PREFILL_KEYS / 8; n++)
#pragma unroll
            for (int c = 0; c < 4; c++) {
                const float by = from + (float)(8 * n + (c & 1) - 16 * r - 8 * (c >> 1));
                if constexpr (ALIBI) s[r][n][c] += slope * by;
                if (by > 0) s[r][n][c] = NO_SCORE;
            }
}

// Causal attention of a prefill by tiles of keys: while the scores are computed the tile's values
// are on their way, and the next tile's keys during softmax and values. Launch: (HEADS * splits,
// query tiles) blocks of PREFILL_THREADS. Few queries behind many keys leave most SMs without work:
// then `splits` blocks share the keys, and attention_merge adds what they have. Bytes moved: K and
// V up to the tile's last query once per tile and head, mostly from L2.
__device__ __forceinline__ void attention_prefill(const PrefillAttentionArgs &args) {
    extern __shared__ __align__(128) u8 smem[];
    constexpr u32 K_TILE = 2 * PREFILL_QUERIES * HEAD_STRIDE, V_TILE = K_TILE + PREFILL_TILE;
    const u32 tiles_at = shared_address(smem); // queries, keys, values
    const int lane = threadIdx.x & 31, warp = warp_uniform(threadIdx.x >> 5);
    const int head = blockIdx.x % HEADS, split = blockIdx.x / HEADS, kv = head / GROUP_HEADS;
    const int first = (gridDim.y - 1 - blockIdx.y) * PREFILL_QUERIES; // the longest start first
    const int warp_first = first + warp * 16 * ROW_TILES;
    const int pos = warp_uniform((int)load_u32_l2((const u32 *)&args.state->pos));
    wait_for_previous();
    launch_dependents();
    const int keys = pos + min(first + PREFILL_QUERIES, args.tokens);
    const int tiles = (keys + PREFILL_KEYS - 1) / PREFILL_KEYS;
    const int begin = tiles * split / args.splits * PREFILL_KEYS;
    // keys from `begin` on, to the end of this split
    int left = min(keys, tiles * (split + 1) / args.splits * PREFILL_KEYS) - begin;
    int past = warp_first < args.tokens ? begin - pos - warp_first : 1 << 20; // no query, no key
    float slope = 0;
    if constexpr (ALIBI) slope = LOG2_E * args.head.slopes[head];
    const CopyPlace place(threadIdx.x);
    const u32 to = tiles_at + place.shared();
    // this thread's place in a tile of keys; the values lie where args.v is from args.k
    u32 from = (u32)(((i64)kv * args.ctx + begin) * HEAD_DIM + place.global(HEAD_DIM));
    copy_rows<PREFILL_QUERIES, PREFILL_THREADS>(
        to, args.q + ((i64)first * HEADS + head) * HEAD_DIM + place.global(HEADS * HEAD_DIM),
        HEADS * HEAD_DIM, args.tokens - first, place.row);
    copy_rows<PREFILL_KEYS, PREFILL_THREADS>(to + K_TILE, args.k + from, HEAD_DIM, left, place.row);
    copy_async_commit();
    copy_rows<PREFILL_KEYS, PREFILL_THREADS>(to + V_TILE, args.v + from, HEAD_DIM, left, place.row);
    copy_async_commit();
    PrefillSoftmax softmax;
    softmax.clear();
    bool first_tile = true; // its values are on their way
    while (left > 0) {
        if (first_tile)
            copy_async_wait<1>();
        else
            copy_async_wait<0>();
        __syncthreads(); // the keys are there, and nobody reads the last values any more
        if (!first_tile)
            copy_rows<PREFILL_KEYS, PREFILL_THREADS>(to + V_TILE, args.v + from, HEAD_DIM, left,
                                                     place.row);
        first_tile = false;
        copy_async_commit();
        float s[ROW_TILES][PREFILL_KEYS / 8][4];
        const bool seen = past < 16 * ROW_TILES; // by any query of this warp
        if (seen)
            prefill_scores(tiles_at + 2 * warp * 16 * ROW_TILES * HEAD_STRIDE, tiles_at + K_TILE,
                           lane, s);
        copy_async_wait<0>();
        __syncthreads(); // the values are there, and nobody reads the keys any more
        left -= PREFILL_KEYS;
        from += PREFILL_KEYS * HEAD_DIM;
        if (left > 0)
            copy_rows<PREFILL_KEYS, PREFILL_THREADS>(to + K_TILE, args.k + from, HEAD_DIM, left,
                                                     place.row);
        copy_async_commit();
        if (seen) {
            if (ALIBI || past + PREFILL_KEYS > 1) prefill_mask(s, past, slope, lane);
            softmax.add(s);
            softmax.weigh(s, tiles_at + V_TILE, lane);
        }
        past += PREFILL_KEYS;
    }
    prefill_store(args, softmax, warp_first, head, split, lane);
}

// Adds the parts of attention_prefill in their order. Launch: blocks of 256 threads for `tokens` *
// HEADS warps. Bytes moved: 4 * splits + 2 for each number of out.
__device__ __forceinline__ void attention_merge(const PrefillAttentionArgs &args) {
    wait_for_previous();
    launch_dependents();
    const i64 rows = (i64)args.tokens * HEADS, row = (i64)blockIdx.x * 8 + (threadIdx.x >> 5);
    if (row >= rows) return;
    const float2 *stats = (const float2 *)(args.parts + args.splits * rows * HEAD_DIM);
    for (int d = 4 * (threadIdx.x & 31); d < HEAD_DIM; d += 128) {
        Partial all = {NO_SCORE, 0, {0, 0, 0, 0}};
#pragma unroll 4
        for (int p = 0; p < args.splits; p++) {
            const i64 part = p * rows + row;
            const float2 stat = load_float2_l2((const float *)(stats + part));
            all.add(stat.x, stat.y, load_float4_l2(args.parts + part * HEAD_DIM + d));
        }
        const float4 o = all.result();
        const int t = (int)(row / HEADS), column = (int)(row % HEADS) * HEAD_DIM + d;
        if (args.vectors) {
            *(float4 *)(args.vectors + row * HEAD_DIM + d) = o;
            continue;
        }
        *(u32 *)operand_at(args.out, HEADS * HEAD_DIM, t, column) = f32_to_f16x2(o.x, o.y);
        *(u32 *)operand_at(args.out, HEADS * HEAD_DIM, t, column + 2) = f32_to_f16x2(o.z, o.w);
    }
}

#endif // TC_ATTENTION
