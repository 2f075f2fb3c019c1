// rows - the steps between products: token ids to vectors, vectors to binary16.

#ifndef TC_ROWS
#define TC_ROWS

#include "prelude.cuh"

enum { NORM_RMS, NORM_LAYER }; // NORM is one of these

// Shared memory that qkv leaves to attention beside it, with the 1 KB that the SM keeps for a
// block. Where an SM has little there is no room for a third.
constexpr int BESIDE_ROOM = 24 << 10;
constexpr bool ROOM_BESIDE = KERNELS_OVERLAP && SHARED_LIMIT >= (200 << 10);

// What changes from token to token lies in device memory, so that one graph serves them all.
struct State {
    int next;  // positions in the KV cache; the next evaluation begins here
    int pos;   // where the running evaluation began
    int token; // what sample chose last; -1 - id: the logit of id is not a finite number
    int pad;
};

struct EmbedArgs {
    const u16 *table; // [VOCAB][HIDDEN] binary16
    const int *ids;   // [ctx] the tokens of the context
    State *state;
    float *out; // [tokens][HIDDEN]
    u32 *begun; // [pairs] become zero
    int tokens, pairs;
};

// No pair of products (product_decode.cuh) has begun. By a block, before the token's next kernel.
__device__ __forceinline__ void clear_begun(u32 *begun, int pairs) {
    if ((int)threadIdx.x >= pairs) return;
    for (int i = threadIdx.x; i < pairs; i += blockDim.x) begun[i] = 0;
    __threadfence();
}

// The first step of an evaluation: vectors of tokens next .. next + tokens - 1, and the counters.
// Launch: one block per token. Bytes moved: one row of the table per token.
__device__ __forceinline__ void embed_rows(const EmbedArgs &args, int hidden, bool advance) {
    wait_for_previous();
    const int pos = args.state->next;
    const u16 *row = args.table + (long long)args.ids[pos + blockIdx.x] * hidden;
    float *out = args.out + (long long)blockIdx.x * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) out[i] = f16_to_f32(row[i]);
    __syncthreads();
    // with several blocks the others still read `next`: advance_state follows as its own launch
    if (advance && threadIdx.x == 0) {
        args.state->pos = pos;
        args.state->next = pos + 1;
        __threadfence();
    }
    if (blockIdx.x == 0) clear_begun(args.begun, args.pairs);
    // Not before: no kernel of this token starts before this, so any may read all that at once.
    __syncthreads();
    launch_dependents();
}

// ---- the vectors of a prefill as B operands ----
//
// Binary16 in tiles of 128 vectors x 64 columns (16 KB), for ldmatrix and wgmma alike: tile (t /
// 128, c / 64) of vector t and column c is number t / 128 * operand_slices(columns) + c / 64. A
// vector has 128 bytes of a tile, as eight chunks of 16 bytes; chunk i lies at i ^ (t & 7), so that
// eight vectors' chunks i lie in different banks. Within 32 columns the order is that of the words
// of a W4 unit (docs/format.md): a lane's eight neighbouring columns are its parts of two steps of
// mma.

__device__ constexpr int operand_slices(int columns) {
    return (columns + 63) / 64;
}

// The place of column c of vector t; c + 1 lies beside it when c is even.
__device__ __forceinline__ u16 *operand_at(u16 *operand, int columns, int t, int c) {
    const int chunk = (c >> 5 & 1) * 4 + (c >> 1 & 3);
    return operand + ((i64)(t >> 7) * operand_slices(columns) + (c >> 6)) * 8192 + (t & 127) * 64 +
           ((chunk ^ (t & 7)) << 3) + (c >> 3 & 3) * 2 + (c & 1);
}

// The power of two 2^e, e = 0 to 110, that brings `top` below 2^15. Small vectors stay as they are.
__device__ __forceinline__ int operand_exponent(float top) {
    const int e = (int)(__float_as_uint(top) >> 23) - 127 - 14;
    return min(max(e, 0), 110);
}
__device__ __forceinline__ float power_of_two(int e) {
    return __uint_as_float((u32)(127 + e) << 23);
}

// What two numbers rounded to binary16 leave out.
__device__ __forceinline__ u32 rest_of_f16x2(float x, float y, u32 rounded) {
    return f32_to_f16x2(x - f16_to_f32((u16)rounded), y - f16_to_f32((u16)(rounded >> 16)));
}

struct RowsArgs {
    const float *in;    // [rows][K]
    const float *gamma; // [K]
    const float *bias;  // [K] with LayerNorm, or null
    u16 *out;           // an operand of K columns
    u16 *rest;          // another: what binary16 leaves out of the numbers; or null
    float *scale;       // [rows] a power of two: (out + rest) * scale is the vector
};

// Sum over a block of 256 threads; every thread gets it. `room` is for eight numbers.
__device__ __forceinline__ float block_sum(float v, float *room) {
    v = warp_sum(v);
    if ((threadIdx.x & 31) == 0) room[threadIdx.x >> 5] = v;
    __syncthreads();
    v = 0;
    for (int w = 0; w < 8; w++) v += room[w];
    return v;
}

// The norm in binary32, then binary16 with a power-of-two scale per vector, so nothing overflows.
// Launch: one block of 256 threads per vector. Bytes moved: 4 K read, 2 K or 4 K written.
template <int K> __device__ __forceinline__ void rows_to_operand(const RowsArgs &args) {
    constexpr int PARTS = (K + 1023) / 1024; // of a thread, four columns each
    __shared__ float sums[8], squares[8], tops[8];
    const float *in = args.in + (i64)blockIdx.x * K;
    const int first = 4 * threadIdx.x;
    float4 v[PARTS], gamma[PARTS];
#pragma unroll
    for (int p = 0; p < PARTS; p++) // depends on nothing
        if (first + 1024 * p < K) gamma[p] = *(const float4 *)(args.gamma + first + 1024 * p);
    wait_for_previous();
    launch_dependents();
#pragma unroll
    for (int p = 0; p < PARTS; p++)
        v[p] = first + 1024 * p < K ? load_float4_l2(in + first + 1024 * p) : float4{0, 0, 0, 0};
    if (NORM == NORM_LAYER) {
        float sum = 0;
#pragma unroll
        for (int p = 0; p < PARTS; p++) sum += v[p].x + v[p].y + v[p].z + v[p].w;
        const float mean = block_sum(sum, sums) / K;
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            if (first + 1024 * p < K)
                v[p].x -= mean, v[p].y -= mean, v[p].z -= mean, v[p].w -= mean;
    }
    float square = 0;
#pragma unroll
    for (int p = 0; p < PARTS; p++)
        square += v[p].x * v[p].x + v[p].y * v[p].y + v[p].z * v[p].z + v[p].w * v[p].w;
    const float f = rsqrtf(block_sum(square, squares) / K + NORM_EPS);
    float top = 0;
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const int i = first + 1024 * p;
        if (i >= K) break;
        const float4 g = gamma[p];
        v[p].x *= f * g.x, v[p].y *= f * g.y, v[p].z *= f * g.z, v[p].w *= f * g.w;
        if (NORM == NORM_LAYER && args.bias) {
            const float4 b = *(const float4 *)(args.bias + i);
            v[p].x += b.x, v[p].y += b.y, v[p].z += b.z, v[p].w += b.w;
        }
        top = fmaxf(fmaxf(fmaxf(top, fabsf(v[p].x)), fabsf(v[p].y)),
                    fmaxf(fabsf(v[p].z), fabsf(v[p].w)));
    }
    top = warp_max(top);
    if ((threadIdx.x & 31) == 0) tops[threadIdx.x >> 5] = top;
    __syncthreads();
    for (int w = 0; w < 8; w++) top = fmaxf(top, tops[w]);
    const int e = operand_exponent(top);
    const float down = power_of_two(-e);
    if (threadIdx.x == 0) args.scale[blockIdx.x] = power_of_two(e);
#pragma unroll
    for (int p = 0; p < PARTS; p++) {
        const int i = first + 1024 * p;
        if (i >= K) break;
        v[p].x *= down, v[p].y *= down, v[p].z *= down, v[p].w *= down;
        const uint2 two = make_uint2(f32_to_f16x2(v[p].x, v[p].y), f32_to_f16x2(v[p].z, v[p].w));
        *(u32 *)operand_at(args.out, K, blockIdx.x, i) = two.x;
        *(u32 *)operand_at(args.out, K, blockIdx.x, i + 2) = two.y;
        if (!args.rest) continue;
        *(u32 *)operand_at(args.rest, K, blockIdx.x, i) = rest_of_f16x2(v[p].x, v[p].y, two.x);
        *(u32 *)operand_at(args.rest, K, blockIdx.x, i + 2) = rest_of_f16x2(v[p].z, v[p].w, two.y);
    }
}

struct SettleArgs {
    u16 *operand;  // of K columns
    u8 *exponents; // [tokens][K / 8]
    int *highest;  // [tokens]
    float *scale;  // [tokens]
    int tokens;
};

// A product that writes an operand cannot know a vector's largest number before the whole vector is
// there. It writes numbers as they are, except that eight neighbours with one from 2^15 on are
// brought below by a power of two of their own, 2^exponent, and `highest` is the largest exponent
// of the vector. Here such vectors, which are rare, get one scale. Exponents are left zero.
// Launch: blocks of 256 threads, a warp per vector. Bytes moved: 8 per vector.
template <int K> __device__ __forceinline__ void settle_operand(const SettleArgs &args) {
    const int t = blockIdx.x * 8 + (threadIdx.x >> 5), lane = threadIdx.x & 31;
    wait_for_previous();
    launch_dependents();
    if (t >= args.tokens) return;
    const int highest = args.highest[t];
    if (lane == 0) args.scale[t] = power_of_two(highest);
    if (highest == 0) return;
    u8 *exponents = args.exponents + (i64)t * (K / 8);
    for (int i = lane; i < K / 8; i += 32) {
        const float down = power_of_two(exponents[i] - highest);
        exponents[i] = 0;
#pragma unroll
        for (int c = 8 * i; c < 8 * i + 8; c += 2) {
            u32 *at = (u32 *)operand_at(args.operand, K, t, c);
            *at = f32_to_f16x2(f16_to_f32((u16)*at) * down, f16_to_f32((u16)(*at >> 16)) * down);
        }
    }
    __syncwarp();
    if (lane == 0) args.highest[t] = 0;
}

struct WidenArgs {
    u16 *data;
    u64 count;
};

// bfloat16 to binary16 in place, once after loading. Numbers below 2^-14 lose bits that no product
// would notice; larger ones than binary16 has become infinite, which the logits' check reports.
__device__ __forceinline__ void bf16_to_f16(const WidenArgs &args) {
    for (u64 i = blockIdx.x * 256ull + threadIdx.x; i < args.count; i += gridDim.x * 256ull)
        args.data[i] = f32_to_f16(bf16_to_f32(args.data[i]));
}

// Of eight binary16.
__device__ __forceinline__ float largest_of_8(uint4 v) {
    const u32 words[4] = {v.x, v.y, v.z, v.w};
    float top = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        top = max_or_nan(top, max_or_nan(fabsf(f16_to_f32((u16)words[i])),
                                         fabsf(f16_to_f32((u16)(words[i] >> 16)))));
    return top;
}
// Four binary16 / `scale` as whole numbers from 1 to 255, 128 for 0: numbers 0, 2, 1 and 3. The
// quotient of two binary16 is never so near to a half that binary32 rounds it there.
__device__ __forceinline__ u32 quantised_4(u32 v01, u32 v23, float scale) {
    const u16 v[4] = {(u16)v01, (u16)v23, (u16)(v01 >> 16), (u16)(v23 >> 16)};
    u32 word = 0;
#pragma unroll
    for (int i = 0; i < 4; i++)
        word |= (u32)((int)rintf(fminf(fmaxf(f16_to_f32(v[i]) / scale, -127), 127)) + 128) << 8 * i;
    return word;
}

struct QuantiseArgs {
    const u16 *from; // [rows][K] binary16
    u8 *to;          // row blocks of W8 (product_decode.cuh); may be `from`
    int first;       // row block of the first block
};
constexpr int QUANTISE_THREADS = 512;

// The head in 8 bits, once after loading: of a row's group a scale, its largest number / 127 in
// binary16, and whole numbers, with 128 added. A group of 16 rows is 16 GROUP bytes, for each 32
// columns 16 of lane l: four columns from 8 (l % 4) on of row l / 4, of row l / 4 + 8, the next
// four of both, each four in the order 0, 2, 1, 3; then 16 scales, those of rows r and r + 8
// together. A block reads all of its row block before it writes, so that it may write where it
// reads. An infinity or NaN makes the scale such. Launch: one block of 512 threads per row block.
// Bytes moved: 32 K read and 16.25 K (with groups of 128) written per row block.
template <int K, int GROUP>
__device__ __forceinline__ void quantise_rows(const QuantiseArgs &args) {
    constexpr int GROUPS = K / GROUP, GROUP_BYTES = 16 * GROUP + 32, WARPS = QUANTISE_THREADS / 32;
    constexpr int STEPS = (GROUPS + WARPS - 1) / WARPS, PARTS = GROUP / 32; // of 32 columns
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5, block = args.first + blockIdx.x;
    uint4 kept[STEPS][PARTS];
    u32 scales[STEPS];
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int group = warp + WARPS * s;
        if (group >= GROUPS) break;
        uint4 v[2][PARTS]; // of rows r and r + 8: 8 numbers of each 32
        u16 scale[2];
        float divisor[2];
#pragma unroll
        for (int r = 0; r < 2; r++) {
            const u16 *row = args.from + ((i64)block * 16 + lane / 4 + 8 * r) * K + group * GROUP;
            float top = 0;
#pragma unroll
            for (int p = 0; p < PARTS; p++) {
                v[r][p] = *(const uint4 *)(row + 32 * p + 8 * (lane & 3));
                top = max_or_nan(top, largest_of_8(v[r][p]));
            }
            top = max_or_nan(top, __shfl_xor_sync(0xffffffffu, top, 1));
            top = max_or_nan(top, __shfl_xor_sync(0xffffffffu, top, 2));
            scale[r] = f32_to_f16(top / 127);
            divisor[r] = scale[r] ? f16_to_f32(scale[r]) : 1; // numbers so small become 0
        }
        scales[s] = (u32)scale[1] << 16 | scale[0];
#pragma unroll
        for (int p = 0; p < PARTS; p++)
            kept[s][p] = make_uint4(quantised_4(v[0][p].x, v[0][p].y, divisor[0]),
                                    quantised_4(v[1][p].x, v[1][p].y, divisor[1]),
                                    quantised_4(v[0][p].z, v[0][p].w, divisor[0]),
                                    quantised_4(v[1][p].z, v[1][p].w, divisor[1]));
    }
    __syncthreads();
#pragma unroll
    for (int s = 0; s < STEPS; s++) {
        const int group = warp + WARPS * s;
        if (group >= GROUPS) break;
        u8 *to = args.to + ((i64)block * GROUPS + group) * GROUP_BYTES;
#pragma unroll
        for (int p = 0; p < PARTS; p++) *(uint4 *)(to + 512 * p + 16 * lane) = kept[s][p];
        if (lane % 4 == 0) *(u32 *)(to + 16 * GROUP + lane) = scales[s];
    }
}

struct FillArgs {
    u64 *data;                          // a tensor
    u64 first, count;                   // its first word in the block of all tensors; its words
    u64 unit, random, mask, bits, tail; // tc__pattern, src/shapes.h
};

// Random weights, bit for bit those of src/shapes.c. Bytes moved: 8 count written.
__device__ __forceinline__ void random_fill_words(const FillArgs &args) {
    for (u64 i = blockIdx.x * 512ull + threadIdx.x; i < args.count; i += gridDim.x * 512ull) {
        u64 z = (args.first + i) * 0x9e3779b97f4a7c15ull; // SplitMix64's output function
        z = (z ^ z >> 30) * 0xbf58476d1ce4e5b9ull;
        z = (z ^ z >> 27) * 0x94d049bb133111ebull;
        z ^= z >> 31;
        args.data[i] = i % args.unit < args.random ? (z & args.mask) | args.bits : args.tail;
    }
}

struct ReadArgs {
    const u8 *data;
    u32 *out; // may be null: never written, but the compiler cannot know
    u64 bytes;
};

// A plain read loop: what the memory can do at best.
__device__ __forceinline__ void read_all(const ReadArgs &args) {
    const u64 step = (u64)gridDim.x * blockDim.x * 16;
    u32 x = 0;
#pragma unroll 8
    for (u64 at = ((u64)blockIdx.x * blockDim.x + threadIdx.x) * 16; at < args.bytes; at += step) {
        uint4 v = load_stream(args.data + at);
        x ^= v.x ^ v.y ^ v.z ^ v.w;
    }
    if (x == 0x12345678 && args.out) *args.out = x;
}

#endif // TC_ROWS
