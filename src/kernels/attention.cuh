// attention - grouped-query attention over the KV cache: one kernel for decode, two for prefill.
//
// KV cache of a layer: K and V, each [KV_HEADS][ctx][HEAD_DIM] binary16, K after RoPE. Scores, the
// softmax and its sums are binary32; the products go through the tensor cores in binary16. RoPE is
// the rotate-half of Hugging Face checkpoints: (x[i], x[i + HEAD_DIM / 2]) turns by pos * theta^(-2i
// / HEAD_DIM); angles come in turns per position and are reduced in binary64, exact at any position.

#ifndef TC_ATTENTION
#define TC_ATTENTION

#include "prelude.cuh"
#include "rows.cuh"

constexpr int HALF = HEAD_DIM / 2;
constexpr int GROUP_HEADS = HEADS / KV_HEADS;         // query heads of one KV head
constexpr int HEAD_TILES = (GROUP_HEADS + 15) / 16;   // in tiles of 16 rows
constexpr int HEAD_STRIDE = HEAD_DIM + 8;             // halfs of a row in shared memory: 16 bytes
                                                      // off, so that ldmatrix has no bank conflicts
constexpr int QKV_ROWS = (HEADS + 2 * KV_HEADS) * HEAD_DIM;
// exp(x) is computed as exp2(x * log2(e)); the factor goes into the queries
#define SCORE_SCALE (1.4426950408889634f * rsqrtf((float)HEAD_DIM))

// Sine and cosine of the HALF angles at `pos`; turns[i] = theta^(-2i / HEAD_DIM) / (2 pi).
__device__ __forceinline__ void rope_angles(const double *turns, int pos, float2 *angles) {
    for (int i = threadIdx.x; i < HALF; i += blockDim.x) {
        double t = turns[i] * pos;
        t -= floor(t);
        sincospif(2.0f * (float)t, &angles[i].x, &angles[i].y);
    }
}

// S[16 rows][16 keys] = Q K' for one warp: q in shared memory [16][HEAD_STRIDE], k [16][HEAD_STRIDE].
__device__ __forceinline__ void scores_16x16(u32 q, u32 k, int lane, float s[2][4]) {
    const u32 q_row = q + 2 * (((lane & 7) + 8 * (lane >> 3 & 1)) * HEAD_STRIDE + 8 * (lane >> 4));
    const u32 k_row = k + 2 * (((lane & 7) + 8 * (lane >> 4)) * HEAD_STRIDE + 8 * (lane >> 3 & 1));
#pragma unroll
    for (int c = 0; c < 4; c++) s[0][c] = s[1][c] = 0;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 16; d++) {
        u32 a[4], b[4];
        load_matrix_x4(a, q_row + 32 * d);
        load_matrix_x4(b, k_row + 32 * d);
        mma_16x8x16(s[0], a, b[0], b[1]);
        mma_16x8x16(s[1], a, b[2], b[3]);
    }
}

// The running softmax of a warp: rows lane / 4 and lane / 4 + 8. The sums are per lane until the end.
struct Softmax {
    float top[2], sum[2];
    float out[HEAD_DIM / 8][4];

    __device__ __forceinline__ void clear() {
        top[0] = top[1] = -1e30f;
        sum[0] = sum[1] = 0;
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 8; d++)
#pragma unroll
            for (int c = 0; c < 4; c++) out[d][c] = 0;
    }
    // Adds KEYS * 8 keys: s becomes their probabilities; out is brought to the new maximum.
    template <int KEYS> __device__ __forceinline__ void add(float s[KEYS][4]) {
#pragma unroll
        for (int h = 0; h < 2; h++) {
            float t = top[h];
#pragma unroll
            for (int k = 0; k < KEYS; k++) t = fmaxf(t, fmaxf(s[k][2 * h], s[k][2 * h + 1]));
            t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 1));
            t = fmaxf(t, __shfl_xor_sync(0xffffffffu, t, 2));
            const float down = exp2f(top[h] - t);
            top[h] = t;
            sum[h] *= down;
#pragma unroll
            for (int d = 0; d < HEAD_DIM / 8; d++) out[d][2 * h] *= down, out[d][2 * h + 1] *= down;
#pragma unroll
            for (int k = 0; k < KEYS; k++) {
                s[k][2 * h] = exp2f(s[k][2 * h] - t);
                s[k][2 * h + 1] = exp2f(s[k][2 * h + 1] - t);
                sum[h] += s[k][2 * h] + s[k][2 * h + 1];
            }
        }
    }
    // out += P V for 16 keys; v in shared memory [16][HEAD_STRIDE].
    __device__ __forceinline__ void weigh(const float p[2][4], u32 v, int lane) {
        u32 a[4] = {f32_to_f16x2(p[0][0], p[0][1]), f32_to_f16x2(p[0][2], p[0][3]),
                    f32_to_f16x2(p[1][0], p[1][1]), f32_to_f16x2(p[1][2], p[1][3])};
        const u32 row = v + 2 * (((lane & 7) + 8 * (lane >> 3 & 1)) * HEAD_STRIDE + 8 * (lane >> 4));
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 16; d++) {
            u32 b[4];
            load_matrix_x4_trans(b, row + 32 * d);
            mma_16x8x16(out[2 * d], a, b[0], b[1]);
            mma_16x8x16(out[2 * d + 1], a, b[2], b[3]);
        }
    }
    __device__ __forceinline__ void finish() { // the sums over the four lanes of a row
#pragma unroll
        for (int h = 0; h < 2; h++) {
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 1);
            sum[h] += __shfl_xor_sync(0xffffffffu, sum[h], 2);
        }
    }
};

// ---- decode: one token ----

struct DecodeAttentionArgs {
    const float *qkv; // [QKV_ROWS] before RoPE
    u16 *k, *v;       // this layer's cache
    float *out;       // [HEADS * HEAD_DIM]
    float *parts;     // [KV_HEADS * HEAD_TILES][SPLITS][16][HEAD_DIM + 2]
    u32 *arrived;     // [KV_HEADS * HEAD_TILES], zero; left zero
    const State *state;
    const double *turns; // [HALF] of RoPE
    int ctx;
};

// RoPE, the KV write and attention of one token. A block takes one KV head (16 of its query heads)
// and one part of the keys, its warps 16 keys of a tile each; the block that arrives last adds the
// parts in their order. Launch: (KV_HEADS * HEAD_TILES, SPLITS) blocks of 2 * TILE_KEYS threads.
// Bytes moved: K and V up to the position once per HEAD_TILES.
constexpr int TILE_KEYS = HEAD_DIM <= 128 ? 64 : 32;
constexpr int DECODE_WARPS = TILE_KEYS / 16;
constexpr int DECODE_THREADS = DECODE_WARPS * 32;
constexpr int DECODE_TILE = 2 * TILE_KEYS * HEAD_STRIDE; // bytes of a tile of K (or V)
constexpr int DECODE_SMEM = 4 * DECODE_TILE + 2 * 16 * HEAD_STRIDE + 2 * 2 * HEAD_STRIDE;

// Starts copying keys (or values) first .. first + TILE_KEYS - 1. The new one lies in `fresh`, keys
// past it become zeros.
__device__ __forceinline__ void decode_copy(u8 *tile, const u16 *cache, const u16 *fresh, int first,
                                            int pos) {
    constexpr int CHUNKS = HEAD_DIM / 8;
    for (int c = threadIdx.x; c < TILE_KEYS * CHUNKS; c += DECODE_THREADS) {
        const int key = c / CHUNKS, at = c % CHUNKS;
        u16 *to = (u16 *)tile + key * HEAD_STRIDE + 8 * at;
        const bool old = first + key < pos;
        if (first + key == pos)
            *(uint4 *)to = *(const uint4 *)(fresh + 8 * at);
        else
            copy_async_16_or_zero(shared_address(to),
                                  cache + (long long)(old ? first + key : 0) * HEAD_DIM + 8 * at, old);
    }
}

__device__ __forceinline__ void attention_decode(const DecodeAttentionArgs &args) {
    extern __shared__ __align__(128) u8 smem[];
    u8 *k_tile = smem, *v_tile = smem + 2 * DECODE_TILE; // two of each
    u16 *q = (u16 *)(smem + 4 * DECODE_TILE);             // [16][HEAD_STRIDE]
    u16 *fresh = q + 16 * HEAD_STRIDE;                    // the new key, then the new value
    __shared__ float tops[DECODE_WARPS][16], sums[DECODE_WARPS][16];
    __shared__ float2 angles[HALF];
    __shared__ bool last;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int kv = blockIdx.x / HEAD_TILES, head_tile = blockIdx.x % HEAD_TILES;
    const int heads = min(16, GROUP_HEADS - 16 * head_tile);
    const int first_head = kv * GROUP_HEADS + 16 * head_tile;
    wait_for_previous();
    launch_dependents();
    const int pos = args.state->pos;
    const int tiles = pos / TILE_KEYS + 1, parts = min((int)gridDim.y, tiles);
    if ((int)blockIdx.y >= parts) return;
    const int begin = tiles * blockIdx.y / parts, end = tiles * (blockIdx.y + 1) / parts;
    u16 *k_cache = args.k + (long long)kv * args.ctx * HEAD_DIM;
    u16 *v_cache = args.v + (long long)kv * args.ctx * HEAD_DIM;

    const float *new_k = args.qkv + (HEADS + kv) * HEAD_DIM;
    const float *new_v = new_k + KV_HEADS * HEAD_DIM;
    rope_angles(args.turns, pos, angles);
    for (int i = heads * (HEAD_STRIDE / 2) + threadIdx.x; i < 16 * (HEAD_STRIDE / 2);
         i += DECODE_THREADS)
        ((u32 *)q)[i] = 0; // rows without a head
    __syncthreads();
    for (int i = threadIdx.x; i < (heads + 1) * HALF; i += DECODE_THREADS) {
        const int h = i / HALF, d = i % HALF; // the query heads, then the key
        const float s = angles[d].x, c = angles[d].y;
        const float *in = h < heads ? args.qkv + (first_head + h) * HEAD_DIM : new_k;
        const float x = in[d], y = in[d + HALF], scale = h < heads ? SCORE_SCALE : 1.0f;
        u16 *to = h < heads ? q + h * HEAD_STRIDE : fresh;
        to[d] = f32_to_f16((x * c - y * s) * scale);
        to[d + HALF] = f32_to_f16((x * s + y * c) * scale);
    }
    for (int d = threadIdx.x; d < HEAD_DIM; d += DECODE_THREADS)
        fresh[HEAD_STRIDE + d] = f32_to_f16(new_v[d]);
    __syncthreads();
    if (end == tiles && head_tile == 0)
        for (int d = threadIdx.x; d < HEAD_DIM; d += DECODE_THREADS) {
            k_cache[(long long)pos * HEAD_DIM + d] = fresh[d];
            v_cache[(long long)pos * HEAD_DIM + d] = fresh[HEAD_STRIDE + d];
        }

    Softmax softmax;
    softmax.clear();
    decode_copy(k_tile, k_cache, fresh, begin * TILE_KEYS, pos);
    decode_copy(v_tile, v_cache, fresh + HEAD_STRIDE, begin * TILE_KEYS, pos);
    copy_async_commit();
    for (int t = begin; t < end; t++) {
        const int stage = (t - begin) & 1;
        if (t + 1 < end) {
            decode_copy(k_tile + (stage ^ 1) * DECODE_TILE, k_cache, fresh, (t + 1) * TILE_KEYS, pos);
            decode_copy(v_tile + (stage ^ 1) * DECODE_TILE, v_cache, fresh + HEAD_STRIDE,
                        (t + 1) * TILE_KEYS, pos);
        }
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const u32 at = stage * DECODE_TILE + 2 * warp * 16 * HEAD_STRIDE;
        float s[2][4];
        scores_16x16(shared_address(q), shared_address(k_tile) + at, lane, s);
        const int key = t * TILE_KEYS + warp * 16 + 2 * (lane & 3);
#pragma unroll
        for (int n = 0; n < 2; n++)
#pragma unroll
            for (int c = 0; c < 4; c++)
                if (key + 8 * n + (c & 1) > pos) s[n][c] = -1e30f;
        // a warp whose keys all lie past the position has nothing to add
        if (t * TILE_KEYS + warp * 16 <= pos) {
            softmax.add<2>(s);
            softmax.weigh(s, shared_address(v_tile) + at, lane);
        }
        __syncthreads();
    }
    softmax.finish();

    // the warps' parts to one: out in shared memory [DECODE_WARPS][16][HEAD_DIM]
    float *outs = (float *)smem;
    const int r = lane >> 2;
#pragma unroll
    for (int d = 0; d < HEAD_DIM / 8; d++) {
        float *o = outs + (warp * 16 + r) * HEAD_DIM + 8 * d + 2 * (lane & 3);
        o[0] = softmax.out[d][0], o[1] = softmax.out[d][1];
        o[8 * HEAD_DIM] = softmax.out[d][2], o[8 * HEAD_DIM + 1] = softmax.out[d][3];
    }
    if ((lane & 3) == 0) {
        tops[warp][r] = softmax.top[0], tops[warp][r + 8] = softmax.top[1];
        sums[warp][r] = softmax.sum[0], sums[warp][r + 8] = softmax.sum[1];
    }
    __syncthreads();
    constexpr int PART = 16 * (HEAD_DIM + 2);
    float *part = args.parts + ((long long)blockIdx.x * gridDim.y + blockIdx.y) * PART;
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += DECODE_THREADS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float top = -1e30f, sum = 0, o = 0;
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) top = fmaxf(top, tops[w][h]);
#pragma unroll
        for (int w = 0; w < DECODE_WARPS; w++) {
            const float f = exp2f(tops[w][h] - top);
            sum += sums[w][h] * f;
            o += outs[(w * 16 + h) * HEAD_DIM + d] * f;
        }
        if (parts == 1) {
            args.out[(first_head + h) * HEAD_DIM + d] = o / sum;
        } else {
            part[h * (HEAD_DIM + 2) + d] = o;
            if (d == 0) part[h * (HEAD_DIM + 2) + HEAD_DIM] = top, part[h * (HEAD_DIM + 2) + HEAD_DIM + 1] = sum;
        }
    }
    if (parts == 1) return;
    __threadfence();
    __syncthreads();
    if (threadIdx.x == 0) last = atomicAdd(&args.arrived[blockIdx.x], 1u) == (u32)parts - 1;
    __syncthreads();
    if (!last) return;
    __threadfence();
    if (threadIdx.x == 0) args.arrived[blockIdx.x] = 0;
    part = args.parts + (long long)blockIdx.x * gridDim.y * PART;
    for (int i = threadIdx.x; i < heads * HEAD_DIM; i += DECODE_THREADS) {
        const int h = i / HEAD_DIM, d = i % HEAD_DIM;
        float top = -1e30f, sum = 0, o = 0;
        for (int p = 0; p < parts; p++)
            top = fmaxf(top, load_f32_l2(part + p * PART + h * (HEAD_DIM + 2) + HEAD_DIM));
        for (int p = 0; p < parts; p++) {
            const float *from = part + p * PART + h * (HEAD_DIM + 2);
            const float f = exp2f(load_f32_l2(from + HEAD_DIM) - top);
            sum += load_f32_l2(from + HEAD_DIM + 1) * f;
            o += load_f32_l2(from + d) * f;
        }
        args.out[(first_head + h) * HEAD_DIM + d] = o / sum;
    }
}

// ---- prefill: many tokens ----

struct PrefillAttentionArgs {
    const float *qkv; // [tokens][QKV_ROWS] before RoPE
    u16 *q;           // [tokens][HEADS * HEAD_DIM] after RoPE, scaled
    u16 *k, *v;       // this layer's cache
    u16 *out;         // an operand of HEADS * HEAD_DIM columns (means of values: cannot overflow)
    float *scale;     // [tokens] set to 1: out is ready for the next product
    const State *state;
    const double *turns; // [HALF] of RoPE
    int ctx, tokens;
};

// RoPE and the KV write of a prefill. Launch: one block of 256 threads per token.
__device__ __forceinline__ void rope_write(const PrefillAttentionArgs &args) {
    wait_for_previous();
    launch_dependents();
    __shared__ float2 angles[HALF];
    const int t = blockIdx.x, pos = args.state->pos + t;
    const float *in = args.qkv + (long long)t * QKV_ROWS;
    if (threadIdx.x == 0) args.scale[t] = 1;
    rope_angles(args.turns, pos, angles);
    __syncthreads();
    for (int i = threadIdx.x; i < (HEADS + KV_HEADS) * HALF; i += 256) {
        const int h = i / HALF, d = i % HALF;
        const float s = angles[d].x, c = angles[d].y;
        const float x = in[h * HEAD_DIM + d], y = in[h * HEAD_DIM + d + HALF];
        const float scale = h < HEADS ? SCORE_SCALE : 1.0f;
        u16 *to = h < HEADS ? args.q + ((long long)t * HEADS + h) * HEAD_DIM
                            : args.k + ((long long)(h - HEADS) * args.ctx + pos) * HEAD_DIM;
        to[d] = f32_to_f16((x * c - y * s) * scale);
        to[d + HALF] = f32_to_f16((x * s + y * c) * scale);
    }
    for (int i = threadIdx.x; i < KV_HEADS * HEAD_DIM; i += 256)
        args.v[((long long)(i / HEAD_DIM) * args.ctx + pos) * HEAD_DIM + i % HEAD_DIM] =
            f32_to_f16(in[(HEADS + KV_HEADS) * HEAD_DIM + i]);
}

// Causal attention of a prefill: a block takes one head and 64 queries, a warp 16 of them; tiles of
// keys stream through shared memory. Launch: (query tiles, HEADS) blocks of 128 threads.
constexpr int PREFILL_KEYS = HEAD_DIM <= 128 ? 64 : 32;
constexpr int PREFILL_TILE = 2 * PREFILL_KEYS * HEAD_STRIDE;
constexpr int PREFILL_SMEM = 4 * PREFILL_TILE + 2 * 64 * HEAD_STRIDE;

// Rows first .. first + ROWS - 1 of [end][stride] into shared memory; rows from `end` on are zeros.
template <int ROWS>
__device__ __forceinline__ void prefill_copy(u8 *tile, const u16 *from, long long stride, int first,
                                             int end) {
    constexpr int CHUNKS = HEAD_DIM / 8;
    for (int c = threadIdx.x; c < ROWS * CHUNKS; c += 128) {
        const int row = c / CHUNKS, at = c % CHUNKS;
        copy_async_16_or_zero(shared_address((u16 *)tile + row * HEAD_STRIDE + 8 * at),
                              from + (long long)min(first + row, end - 1) * stride + 8 * at,
                              first + row < end);
    }
}

__device__ __forceinline__ void attention_prefill(const PrefillAttentionArgs &args) {
    extern __shared__ __align__(128) u8 smem[];
    u8 *k_tile = smem, *v_tile = smem + 2 * PREFILL_TILE, *q_tile = smem + 4 * PREFILL_TILE;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int head = blockIdx.y, kv = head / GROUP_HEADS;
    const int first = (gridDim.x - 1 - blockIdx.x) * 64; // the longest rows start first
    wait_for_previous();
    launch_dependents();
    const int pos = args.state->pos, keys = pos + min(first + 64, args.tokens);
    const u16 *k_cache = args.k + (long long)kv * args.ctx * HEAD_DIM;
    const u16 *v_cache = args.v + (long long)kv * args.ctx * HEAD_DIM;
    prefill_copy<64>(q_tile, args.q + head * HEAD_DIM, HEADS * HEAD_DIM, first, args.tokens);
    prefill_copy<PREFILL_KEYS>(k_tile, k_cache, HEAD_DIM, 0, keys);
    prefill_copy<PREFILL_KEYS>(v_tile, v_cache, HEAD_DIM, 0, keys);
    copy_async_commit();
    Softmax softmax;
    softmax.clear();
    const int tiles = (keys + PREFILL_KEYS - 1) / PREFILL_KEYS;
    for (int t = 0; t < tiles; t++) {
        const int stage = t & 1;
        if (t + 1 < tiles) {
            prefill_copy<PREFILL_KEYS>(k_tile + (stage ^ 1) * PREFILL_TILE, k_cache, HEAD_DIM,
                                       (t + 1) * PREFILL_KEYS, keys);
            prefill_copy<PREFILL_KEYS>(v_tile + (stage ^ 1) * PREFILL_TILE, v_cache, HEAD_DIM,
                                       (t + 1) * PREFILL_KEYS, keys);
        }
        copy_async_commit();
        copy_async_wait<1>();
        __syncthreads();
        const u32 k_at = shared_address(k_tile) + stage * PREFILL_TILE;
        const u32 v_at = shared_address(v_tile) + stage * PREFILL_TILE;
        float s[PREFILL_KEYS / 8][4];
#pragma unroll
        for (int n = 0; n < PREFILL_KEYS / 16; n++)
            scores_16x16(shared_address(q_tile) + 2 * warp * 16 * HEAD_STRIDE,
                         k_at + 2 * n * 16 * HEAD_STRIDE, lane, s + 2 * n);
        // query row r sees keys up to pos + first + r
        const int row = pos + first + warp * 16 + (lane >> 2);
        if (t * PREFILL_KEYS + PREFILL_KEYS > pos + first + warp * 16) {
#pragma unroll
            for (int n = 0; n < PREFILL_KEYS / 8; n++)
#pragma unroll
                for (int c = 0; c < 4; c++)
                    if (t * PREFILL_KEYS + 8 * n + 2 * (lane & 3) + (c & 1) > row + 8 * (c >> 1))
                        s[n][c] = -1e30f;
        }
        softmax.add<PREFILL_KEYS / 8>(s);
#pragma unroll
        for (int n = 0; n < PREFILL_KEYS / 16; n++)
            softmax.weigh(s + 2 * n, v_at + 2 * n * 16 * HEAD_STRIDE, lane);
        __syncthreads();
    }
    softmax.finish();
#pragma unroll
    for (int h = 0; h < 2; h++) {
        const int t = first + warp * 16 + (lane >> 2) + 8 * h;
        if (t >= args.tokens) continue;
        const int column = head * HEAD_DIM + 2 * (lane & 3);
        const float f = 1 / softmax.sum[h];
#pragma unroll
        for (int d = 0; d < HEAD_DIM / 8; d++)
            *(u32 *)operand_at(args.out, HEADS * HEAD_DIM, t, column + 8 * d) =
                f32_to_f16x2(softmax.out[d][2 * h] * f, softmax.out[d][2 * h + 1] * f);
    }
}

#endif // TC_ATTENTION
