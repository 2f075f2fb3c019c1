// product_prefill - Y = X W' for many vectors: the kernel of prefill, on the same weights as
// decode.
//
// Bound by arithmetic. A block computes ROWS_TILE x TOKENS_TILE of the result; 8 warps, stages of
// 64 or 128 columns, STAGES deep through cp.async. Weights are turned into binary16 A operands
// (scale * (q - zero), rounded once) in registers; the vectors are B operands as rows.cuh lays them
// out.
//
//   shared memory of a stage: the units of the tile as they lie in memory, then the vectors' tiles
//   of 64 columns as they lie in memory.
//
// With two LIMBS the product is as good as in binary32: what binary16 leaves out of vectors and of
// weights takes part too.
//
// Launch: (row tiles, token tiles) blocks of 256 threads, SMEM bytes.
// Bytes moved: W once per token tile, X once per row tile (mostly from L2), Y once.

#ifndef TC_PRODUCT_PREFILL
#define TC_PRODUCT_PREFILL

#include "prelude.cuh"
#include "product_decode.cuh"
#include "rows.cuh"

// What becomes of the results: vectors (bias added, clipped); added to vectors; the activation of
// them, as the operand of the next product.
enum { TO_VECTORS, TO_RESIDUAL, TO_OPERAND };

struct GemmArgs {
    const u8 *weights;
    const u16 *in;      // an operand of K columns
    const u16 *rest;    // with two LIMBS: another, what binary16 leaves out of the vectors
    const float *scale; // [tokens], readable to the end of the last tile
    void *out;          // [tokens][ROWS] binary32, or an operand
    const float
        *each;     // of every row what is added (TO_VECTORS), what it is divided by (TO_OPERAND);
                   // or null
    u8 *exponents; // TO_OPERAND: see settle_operand
    int *highest;
    int tokens;
};

// ---- results ----

// A warp's 16 x 8 COLUMNS results of a row block: acc[4 j + c] is row lane / 4 and token first + 8
// j + 2 (lane % 4) + c, acc[4 j + c + 2] the same of row lane / 4 + 8.
template <int ROWS, int COLUMNS, int OUT>
__device__ __forceinline__ void store_vectors(const GemmArgs &args, const float (&acc)[4 * COLUMNS],
                                              int block, int first) {
    const int lane = threadIdx.x & 31, t0 = first + 2 * (lane & 3), left = args.tokens - t0;
    const int n = 16 * block + (lane >> 2);
    const bool valid = n < ROWS, valid8 = n + 8 < ROWS;
    float *out = (float *)args.out + (i64)t0 * ROWS + n;
    float bias = 0, bias8 = 0;
    if (OUT == TO_VECTORS && args.each) {
        if (valid) bias = args.each[n];
        if (valid8) bias8 = args.each[n + 8];
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const float2 scale = *(const float2 *)(args.scale + t0 + 8 * j);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            float *to = out + (8 * j + c) * ROWS;
            float low = acc[4 * j + c] * (c ? scale.y : scale.x) + bias;
            float high = acc[4 * j + c + 2] * (c ? scale.y : scale.x) + bias8;
            if (OUT == TO_VECTORS && CLIP_QKV > 0) {
                low = fminf(fmaxf(low, -CLIP_QKV), CLIP_QKV);
                high = fminf(fmaxf(high, -CLIP_QKV), CLIP_QKV);
            }
            if (8 * j + c >= left) continue;
            if (OUT == TO_RESIDUAL) { // every number has one addend: the order does not matter
                if (valid) atomicAdd(to, low);
                if (valid8) atomicAdd(to + 8, high);
            } else {
                if (valid) to[0] = low;
                if (valid8) to[8] = high;
            }
        }
    }
}

// Brings eight numbers of each of two tokens below 2^15 and notes by how much, as settle_operand
// wants it. t: the first of the two.
template <int WIDTH>
__device__ __forceinline__ void bring_down(const GemmArgs &args, float *v, int eight, int t) {
#pragma unroll
    for (int c = 0; c < 2; c++) {
        float top = fabsf(v[c]);
#pragma unroll
        for (int o = 4; o < 32; o *= 2) top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
        const int e = operand_exponent(top);
        v[c] *= power_of_two(-e);
        if (e == 0 || (threadIdx.x & 28) || t + c >= args.tokens || 8 * eight >= WIDTH) continue;
        args.exponents[(i64)(t + c) * (WIDTH / 8) + eight] = (u8)e;
        atomicMax(args.highest + t + c, e);
    }
}

// Eight columns of the operand, number `eight`, from acc[4 j + c].
template <int WIDTH, int COLUMNS>
__device__ __forceinline__ void store_eight(const GemmArgs &args, float (&acc)[4 * COLUMNS],
                                            int eight, int first) {
    const int lane = threadIdx.x & 31, t0 = first + 2 * (lane & 3), n = 8 * eight + (lane >> 2);
    const bool odd = lane >> 2 & 1;
    float top = 0;
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        top = fmaxf(top, fmaxf(fabsf(acc[4 * j]), fabsf(acc[4 * j + 1])));
    if (__any_sync(0xffffffffu, top >= 32768.0f)) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++) bring_down<WIDTH>(args, acc + 4 * j, eight, t0 + 8 * j);
    }
    // neighbouring lanes exchange, so that each has two columns of one token
    const int t = t0 + odd;
    u16 *out = operand_at((u16 *)args.out, WIDTH, t, n & ~1);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const float other = __shfl_xor_sync(0xffffffffu, odd ? acc[4 * j] : acc[4 * j + 1], 4);
        const u32 two = odd ? f32_to_f16x2(other, acc[4 * j + 1]) : f32_to_f16x2(acc[4 * j], other);
        if (n < WIDTH && t + 8 * j < args.tokens)
            *(u32 *)(out + j / 16 * (operand_slices(WIDTH) * 8192) + j % 16 * 512) = two;
    }
}

template <int ROWS, int COLUMNS>
__device__ __forceinline__ void store_operand(const GemmArgs &args, float (&acc)[4 * COLUMNS],
                                              int block, int first) {
    constexpr int WIDTH = GATED ? ROWS / 2 : ROWS;
    const int lane = threadIdx.x & 31, t0 = first + 2 * (lane & 3);
    const int n = (GATED ? 8 : 16) * block + (lane >> 2);
    float f = 1, f8 = 1;
    if (args.each) {
        if (n < WIDTH) f = 1 / args.each[n];
        if (!GATED && n + 8 < WIDTH) f8 = 1 / args.each[n + 8];
    }
#pragma unroll
    for (int j = 0; j < COLUMNS; j++) {
        const float2 scale = *(const float2 *)(args.scale + t0 + 8 * j);
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const float s = c ? scale.y : scale.x;
            const float low = acc[4 * j + c] * s, high = acc[4 * j + c + 2] * s;
            acc[4 * j + c] = activation(low) * (GATED ? high * f : f);
            acc[4 * j + c + 2] = GATED ? 0 : activation(high) * f8;
        }
    }
    store_eight<WIDTH, COLUMNS>(args, acc, GATED ? block : 2 * block, first);
    if constexpr (!GATED) {
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
            acc[4 * j] = acc[4 * j + 2], acc[4 * j + 1] = acc[4 * j + 3];
        store_eight<WIDTH, COLUMNS>(args, acc, 2 * block + 1, first);
    }
}

template <int ROWS, int COLUMNS, int OUT>
__device__ __forceinline__ void store_results(const GemmArgs &args, float (&acc)[4 * COLUMNS],
                                              int block, int first) {
    if (OUT == TO_OPERAND)
        store_operand<ROWS, COLUMNS>(args, acc, block, first);
    else
        store_vectors<ROWS, COLUMNS, OUT>(args, acc, block, first);
}

// ---- weights ----

// The A operands of a W4 unit: scale * (q - zero).
struct W4Scales {
    u32 low, high, s0, s1;

    __device__ __forceinline__ explicit W4Scales(uint2 sz) { // (scale, zero) of rows r, r + 8
        low = f16x2_add(f16x2_high(sz.x), 0x64006400);       // 1024 + zero
        high = f16x2_sub(0xd400d400, f16x2_high(sz.y));      // -(64 + zero)
        s0 = __byte_perm(sz.x, sz.x, 0x1010);
        s1 = __byte_perm(sz.y, sz.y, 0x1010);
    }
    __device__ __forceinline__ void expand(u32 word, u32 a[4]) const {
        w4_to_f16x2(word, low, high, a);
        a[0] = f16x2_mul(a[0], s0), a[2] = f16x2_mul(a[2], s0);
        a[1] = f16x2_mul(a[1], s1), a[3] = f16x2_mul(a[3], s1);
    }
    // The same, and in `rest` what binary16 leaves out, exactly.
    __device__ __forceinline__ void expand(u32 word, u32 a[4], u32 rest[4]) const {
        u32 d[4];
        w4_to_f16x2(word, low, high, d);
#pragma unroll
        for (int i = 0; i < 4; i++) {
            const u32 s = i % 2 ? s1 : s0;
            a[i] = f16x2_mul(d[i], s);
            rest[i] = f16x2_fma(d[i], s, a[i] ^ 0x80008000);
        }
    }
};

template <int K_, int GROUP_> struct W4Tile {
    static constexpr int K = K_, GROUP = GROUP_, UNIT_BYTES = 8 * GROUP + 64;
    static constexpr int STAGE_COLUMNS = GROUP < 64 ? 64 : GROUP;
    static constexpr int BLOCK_BYTES = STAGE_COLUMNS / GROUP * UNIT_BYTES; // of 16 rows in a stage
    static constexpr bool EXACT = false;                                   // in binary16

    // Copies the units of `blocks` row blocks at stage k; row blocks past the end repeat the last.
    static __device__ void copy(u32 shared, const u8 *weights, int first, int blocks, int last,
                                int k) {
        constexpr int CHUNKS = BLOCK_BYTES / 16, UNITS = STAGE_COLUMNS / GROUP;
        for (int c = threadIdx.x; c < blocks * CHUNKS; c += 256) {
            const int b = c / CHUNKS, at = c % CHUNKS;
            if (K % STAGE_COLUMNS && k * UNITS + at * 16 / UNIT_BYTES >= K / GROUP) continue;
            const i64 unit = (i64)min(first + b, last) * (K / GROUP) + k * UNITS;
            copy_async_16(shared + b * BLOCK_BYTES + 16 * at,
                          weights + unit * UNIT_BYTES + 16 * at);
        }
    }
    // The A operands of the row block at `shared`, columns 32 s to 32 s + 31 of the stage: a and
    // b, and what they leave out with two LIMBS.
    template <int LIMBS>
    static __device__ __forceinline__ void load(u32 shared, int lane, int s, u32 a[4], u32 b[4],
                                                u32 rest_a[4], u32 rest_b[4]) {
        const u32 unit = shared + 32 * s / GROUP * UNIT_BYTES;
        const int pair = 32 * s % GROUP / 32; // of the unit's words
        const W4Scales z(load_shared_8(unit + 8 * GROUP + 8 * (lane >> 2)));
        const uint2 q = load_shared_8(
            GROUP == 32 ? unit + 8 * lane : unit + 512 * (pair >> 1) + 16 * lane + 8 * (pair & 1));
        if (LIMBS == 1) {
            z.expand(q.x, a);
            z.expand(q.y, b);
        } else {
            z.expand(q.x, a, rest_a);
            z.expand(q.y, b, rest_b);
        }
    }
};

template <int K_, int GROUP_> struct F16Tile {
    static constexpr int K = K_, GROUP = GROUP_, STAGE_COLUMNS = 64;
    static constexpr bool EXACT = true;
    static constexpr int BLOCK_BYTES = 32 * 64; // as slices of 32 columns: 16 rows x 64 bytes

    static __device__ void copy(u32 shared, const u8 *weights, int first, int blocks, int last,
                                int k) {
        for (int c = threadIdx.x; c < blocks * 16 * 8; c += 256) {
            const int row = c >> 3, at = c & 7, b = row >> 4;
            if (K % 64 && 64 * k + 8 * at >= K) continue;
            const i64 r = (i64)min(first + b, last) * 16 + (row & 15);
            copy_async_16(shared + b * BLOCK_BYTES + 1024 * (at >> 2) + 64 * (row & 15) +
                              16 * (at & 3),
                          weights + (r * K + k * 64 + 8 * at) * 2);
        }
    }
    template <int LIMBS>
    static __device__ __forceinline__ void load(u32 shared, int lane, int s, u32 a[4], u32 b[4],
                                                u32 *, u32 *) {
        uint4 r0 = load_shared_16(shared + 1024 * s + 64 * (lane >> 2) + 16 * (lane & 3));
        uint4 r8 = load_shared_16(shared + 1024 * s + 512 + 64 * (lane >> 2) + 16 * (lane & 3));
        a[0] = r0.x, a[1] = r8.x, a[2] = r0.y, a[3] = r8.y;
        b[0] = r0.z, b[1] = r8.z, b[2] = r0.w, b[3] = r8.w;
    }
};

// ---- the product ----

template <class M, int ROWS_TILE, int TOKENS_TILE, int LIMBS, int STAGES> struct GemmShape {
    static constexpr int TILES = M::STAGE_COLUMNS / 64; // of a limb of the vectors' operand
    static constexpr int A_BYTES = ROWS_TILE / 16 * M::BLOCK_BYTES;
    static constexpr int STAGE = (A_BYTES + 127) / 128 * 128 + LIMBS * TILES * 128 * TOKENS_TILE;
    static constexpr int SMEM = STAGES * STAGE;
};

template <class M, int ROWS, int ROWS_TILE, int TOKENS_TILE, int LIMBS, int STAGES, int OUT>
__device__ __forceinline__ void product_prefill(const GemmArgs &args) {
    typedef GemmShape<M, ROWS_TILE, TOKENS_TILE, LIMBS, STAGES> S;
    extern __shared__ __align__(128) u8 smem[];
    constexpr int WARPS_M = 4, WARPS_N = 2;
    constexpr int BLOCKS = ROWS_TILE / 16 / WARPS_M;   // row blocks of a warp
    constexpr int COLUMNS = TOKENS_TILE / 8 / WARPS_N; // 8-token columns of a warp
    constexpr int STAGES_OF_K = (M::K + M::STAGE_COLUMNS - 1) / M::STAGE_COLUMNS;
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wm = warp % WARPS_M, wn = warp / WARPS_M;
    const int first_block = blockIdx.x * (ROWS_TILE / 16), last_block = (ROWS + 15) / 16 - 1;
    const int first_token = blockIdx.y * TOKENS_TILE;
    const u32 base = shared_address(smem), b_at = base + (S::A_BYTES + 127) / 128 * 128;
    static_assert(128 % TOKENS_TILE == 0, "tokens of one tile of the operand");

    auto copy = [&](int k) {
        const u32 stage = k % STAGES * S::STAGE;
        M::copy(base + stage, args.weights, first_block, ROWS_TILE / 16, last_block, k);
        const i64 from = (first_token & 127) * 64 +
                         ((i64)(first_token >> 7) * operand_slices(M::K) + k * S::TILES) * 8192;
#pragma unroll
        for (int i = 0; i < LIMBS * S::TILES; i++)
#pragma unroll
            for (int c = threadIdx.x; c < TOKENS_TILE * 8; c += 256)
                copy_async_16(b_at + stage + i * (128 * TOKENS_TILE) + 16 * c,
                              (i < S::TILES ? args.in : args.rest) + from + i % S::TILES * 8192 +
                                  8 * c);
    };
    wait_for_previous();
    launch_dependents();
#pragma unroll
    for (int k = 0; k < STAGES - 1; k++) {
        if (k < STAGES_OF_K) copy(k);
        copy_async_commit();
    }
    float acc[BLOCKS][4 * COLUMNS];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int c = 0; c < 4 * COLUMNS; c++) acc[i][c] = 0;

    const int row = lane & 7; // of ldmatrix: vector l % 8, chunk l / 8 of the four of 32 columns
    const u32 chunk = (lane >> 3 ^ row) << 4, b_row = wn * COLUMNS * 8 * 128 + row * 128;
    for (int k = 0; k < STAGES_OF_K; k++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); // stage k is there, and every warp has left stage k - 1
        if (k + STAGES - 1 < STAGES_OF_K) copy(k + STAGES - 1);
        copy_async_commit();
        const u32 stage = k % STAGES * S::STAGE;
        const u32 a_base = base + stage + wm * BLOCKS * M::BLOCK_BYTES;
#pragma unroll
        for (int s = 0; s < 2 * S::TILES; s++) {
            if (M::K % M::STAGE_COLUMNS && k * M::STAGE_COLUMNS + 32 * s >= M::K) break;
            u32 b[COLUMNS][4];
            const u32 b_from =
                b_at + stage + (s >> 1) * (128 * TOKENS_TILE) + b_row + (chunk ^ (s & 1) << 6);
#pragma unroll
            for (int j = 0; j < COLUMNS; j++) load_matrix_x4(b[j], b_from + 1024 * j);
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                u32 first[4], second[4], first_rest[4], second_rest[4];
                M::template load<LIMBS>(a_base + i * M::BLOCK_BYTES, lane, s, first, second,
                                        first_rest, second_rest);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++)
                    mma_16x8x16(acc[i] + 4 * j, first, b[j][0], b[j][1]);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++)
                    mma_16x8x16(acc[i] + 4 * j, second, b[j][2], b[j][3]);
                if (LIMBS == 1) continue;
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) {
                    u32 r[4];
                    load_matrix_x4(r, b_from + S::TILES * (128 * TOKENS_TILE) + 1024 * j);
                    mma_16x8x16(acc[i] + 4 * j, first, r[0], r[1]);
                    mma_16x8x16(acc[i] + 4 * j, second, r[2], r[3]);
                    if (M::EXACT) continue;
                    mma_16x8x16(acc[i] + 4 * j, first_rest, b[j][0], b[j][1]);
                    mma_16x8x16(acc[i] + 4 * j, second_rest, b[j][2], b[j][3]);
                }
            }
        }
    }
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
        store_results<ROWS, COLUMNS, OUT>(args, acc[i], first_block + wm * BLOCKS + i,
                                          first_token + wn * COLUMNS * 8);
}

#endif // TC_PRODUCT_PREFILL
