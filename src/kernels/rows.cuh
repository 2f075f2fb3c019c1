// rows - the steps between products: token ids to vectors, vectors to binary16.

#ifndef TC_ROWS
#define TC_ROWS

#include "prelude.cuh"

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
    int tokens;
};

// The first step of an evaluation: vectors of tokens next .. next + tokens - 1, and the counters.
// Launch: one block per token. Bytes moved: one row of the table per token.
__device__ __forceinline__ void embed_rows(const EmbedArgs &args, int hidden, bool advance) {
    wait_for_previous();
    launch_dependents();
    const int pos = args.state->next;
    const u16 *row = args.table + (long long)args.ids[pos + blockIdx.x] * hidden;
    float *out = args.out + (long long)blockIdx.x * hidden;
    for (int i = threadIdx.x; i < hidden; i += blockDim.x) out[i] = f16_to_f32(row[i]);
    __syncthreads();
    // with several blocks the others still read `next`: advance_state follows as its own launch
    if (advance && threadIdx.x == 0) {
        args.state->pos = pos;
        args.state->next = pos + 1;
    }
}

struct RowsArgs {
    const float *in;    // [rows][K]
    const float *gamma; // [K], or null: no norm
    u16 *out;           // [rows][K] binary16
    float *scale;       // [rows] a power of two: out * scale is the vector
};

// The vectors of a prefill as B operands: RMSNorm (with gamma) in binary32, then binary16 with a
// power-of-two scale per vector that brings its largest number below 2^15, so nothing overflows.
// Launch: one block of 256 threads per vector. Bytes moved: 4 K read (twice, from L2), 2 K written.
template <int K> __device__ __forceinline__ void rows_to_f16(const RowsArgs &args) {
    __shared__ float sums[8], tops[8];
    const float *in = args.in + (long long)blockIdx.x * K;
    u16 *out = args.out + (long long)blockIdx.x * K;
    wait_for_previous();
    launch_dependents();
    float sum = 0, top = 0;
    for (int i = threadIdx.x * 4; i < K; i += 1024) {
        float4 v = load_float4_l2(in + i), g = {1, 1, 1, 1};
        if (args.gamma) g = *(const float4 *)(args.gamma + i);
        sum += v.x * v.x + v.y * v.y + v.z * v.z + v.w * v.w;
        top = fmaxf(fmaxf(top, fabsf(v.x * g.x)), fabsf(v.y * g.y));
        top = fmaxf(fmaxf(top, fabsf(v.z * g.z)), fabsf(v.w * g.w));
    }
    sum = warp_sum(sum);
    top = warp_max(top);
    if ((threadIdx.x & 31) == 0) sums[threadIdx.x >> 5] = sum, tops[threadIdx.x >> 5] = top;
    __syncthreads();
    sum = top = 0;
    for (int w = 0; w < 8; w++) sum += sums[w], top = fmaxf(top, tops[w]);
    const float rms = args.gamma ? rsqrtf(sum / K + NORM_EPS) : 1.0f;
    int e = (int)(__float_as_uint(top * rms) >> 23) - 127 - 14;
    e = min(max(e, 0), 110); // small vectors stay as they are
    const float down = __uint_as_float((u32)(127 - e) << 23);
    if (threadIdx.x == 0) args.scale[blockIdx.x] = __uint_as_float((u32)(127 + e) << 23);
    for (int i = threadIdx.x * 4; i < K; i += 1024) {
        float4 v = load_float4_l2(in + i), g = {1, 1, 1, 1};
        if (args.gamma) g = *(const float4 *)(args.gamma + i);
        // the factors in this order: rms * down is exact up to one rounding and cannot overflow
        const float f = rms * down;
        *(uint2 *)(out + i) = make_uint2(f32_to_f16x2(v.x * g.x * f, v.y * g.y * f),
                                         f32_to_f16x2(v.z * g.z * f, v.w * g.w * f));
    }
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

struct FillArgs {
    u64 *data;                         // a tensor
    u64 first, count;                  // its first word in the block of all tensors; its words
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
