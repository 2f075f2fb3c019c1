// product_decode - y = W x for one to eight activation vectors: the kernel of decoding.
//
// Bound by reading W once. A block owns whole 16-row blocks of W and with them a contiguous range
// of units (16 rows x one group); its warps cut that range into equal contiguous parts. Every lane
// copies its own bytes of a unit into a ring in shared memory with cp.async and reads only those
// back, so the loop has no barrier. The ring is filled before the kernel waits for its
// predecessor: weights depend on nothing.
//
// A unit goes through the tensor cores: 16 rows as the A operand, up to 8 vectors as the columns of
// B. Vectors are binary16 with a power-of-two scale per group, so that no activation overflows.
// Partial sums of the warps meet in shared memory and are added in the order of the warps: the same
// input always gives the same bits.
//
// Launch: BLOCKS blocks (at most one per row block) of WARPS * 32 threads, SMEM bytes.
// Bytes moved: the matrix once; the vectors once per block (from L2).

#ifndef TC_PRODUCT_DECODE
#define TC_PRODUCT_DECODE

#include "prelude.cuh"

enum { IN_PLAIN, IN_NORM };            // the vectors as they are, or RMSNorm of them
enum { OUT_STORE, OUT_ADD, OUT_SILU }; // store; add to what is there; silu(gate) * up

struct ProductArgs {
    const u8 *weights;
    const float *in;    // [T][K]
    const float *gamma; // [K] with IN_NORM
    float *out;         // [T][ROWS], or [T][ROWS / 2] with OUT_SILU
    int tokens;         // vectors in use, at most T
};

// One matrix in W4 units (docs/format.md): what a lane copies and how it becomes A operands.
template <int K_, int GROUP_> struct W4 {
    static constexpr int K = K_, GROUP = GROUP_;
    static constexpr int UNITS = K / GROUP;  // of a row block
    static constexpr int WORDS = GROUP / 16; // u32 words of a lane
    static constexpr int UNIT_BYTES = 8 * GROUP + 64;
    static constexpr int SLOT = 32 * (4 * WORDS + 8); // a ring slot: words, then scales and zeros
    static_assert(K % GROUP == 0 && (GROUP == 32 || GROUP == 64 || GROUP == 128), "group size");

    const u8 *at;    // this lane's words of the next unit
    u32 scales_at;   // from there to its scales
    u32 own16, own8; // this lane's words and scales in slot 0 of the ring

    __device__ W4(const u8 *weights, long long row_block, int unit, u32 ring) {
        const u32 lane = threadIdx.x & 31, word_bytes = GROUP == 32 ? 8 : 16;
        at = weights + (row_block * UNITS + unit) * UNIT_BYTES + word_bytes * lane;
        scales_at = keep(8 * GROUP + 8 * (lane >> 2) - word_bytes * lane);
        own16 = keep(ring + word_bytes * lane);
        own8 = keep(ring + 128 * WORDS + 8 * lane);
    }
    // Starts copying the next unit into the ring slot at byte `slot`.
    __device__ __forceinline__ void copy(u32 slot) {
        if (GROUP == 32) {
            copy_async_8(own16 + slot, at);
        } else {
            copy_async_16(own16 + slot, at);
            if (GROUP == 128) copy_async_16(own16 + slot + 512, at + 512);
        }
        copy_async_8(own8 + slot, at + (i32)scales_at);
        at += UNIT_BYTES;
    }
    // acc += the unit in the slot times the vectors; x: this lane's column of B at the unit. With
    // T == 1 all columns are the same and only the first is kept.
    template <int T>
    __device__ __forceinline__ void multiply(u32 slot, u32 x, float scale0, float scale1,
                                             float acc[4]) const {
        u32 q[8];
        if (GROUP == 32) {
            uint2 v = load_shared_8(own16 + slot);
            q[0] = v.x, q[1] = v.y;
        } else {
            uint4 v = load_shared_16(own16 + slot);
            q[0] = v.x, q[1] = v.y, q[2] = v.z, q[3] = v.w;
            if (GROUP == 128) {
                v = load_shared_16(own16 + slot + 512);
                q[4] = v.x, q[5] = v.y, q[6] = v.z, q[7] = v.w;
            }
        }
        uint2 sz = load_shared_8(own8 + slot); // (scale, zero) of rows r, r + 8
        u32 low = f16x2_add(f16x2_high(sz.x), 0x64006400);  // 1024 + zero
        u32 high = f16x2_sub(0xd400d400, f16x2_high(sz.y)); // -(64 + zero)
        float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0}; // two chains hide mma's latency
#pragma unroll
        for (int k = 0; k < WORDS; k += 2) {
            uint4 b = load_shared_16(x + 32 * k);
            u32 a[4];
            w4_to_f16x2(q[k], low, high, a);
            mma_16x8x16(even, a, b.x, b.y);
            w4_to_f16x2(q[k + 1], low, high, a);
            mma_16x8x16(odd, a, b.z, b.w);
        }
        float s0 = f16_to_f32((u16)sz.x), s1 = f16_to_f32((u16)sz.y);
        acc[0] += s0 * scale0 * (even[0] + odd[0]);
        acc[2] += s1 * scale0 * (even[2] + odd[2]);
        if (T == 1) return;
        acc[1] += s0 * scale1 * (even[1] + odd[1]);
        acc[3] += s1 * scale1 * (even[3] + odd[3]);
    }
};

// One row-major binary16 matrix of a multiple of 16 rows; a unit is 16 rows x GROUP columns.
template <int K_, int GROUP_> struct F16 {
    static constexpr int K = K_, GROUP = GROUP_;
    static constexpr int UNITS = K / GROUP;
    static constexpr int SLOT = 32 * GROUP; // 8 columns of two rows per lane and 32 columns
    static_assert(K % GROUP == 0 && GROUP % 32 == 0, "K must be a multiple of 32");

    const u8 *at;
    u32 own;
    int unit;

    __device__ F16(const u8 *weights, long long row_block, int first, u32 ring) {
        const u32 lane = threadIdx.x & 31;
        unit = first;
        at = weights + ((row_block * 16 + (lane >> 2)) * K + first * GROUP + 8 * (lane & 3)) * 2;
        own = keep(ring + 16 * lane);
    }
    __device__ __forceinline__ void copy(u32 slot) {
#pragma unroll
        for (int k = 0; k < GROUP / 32; k++) {
            copy_async_16(own + slot + 1024 * k, at + 64 * k);
            copy_async_16(own + slot + 1024 * k + 512, at + 64 * k + 16LL * K);
        }
        at += 2 * GROUP;
        if (++unit == UNITS) unit = 0, at += 15LL * 2 * K; // the next row block
    }
    template <int T>
    __device__ __forceinline__ void multiply(u32 slot, u32 x, float scale0, float scale1,
                                             float acc[4]) const {
        float even[4] = {0, 0, 0, 0}, odd[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = 0; k < GROUP / 32; k++) {
            uint4 b = load_shared_16(x + 64 * k);
            uint4 r0 = load_shared_16(own + slot + 1024 * k);
            uint4 r8 = load_shared_16(own + slot + 1024 * k + 512);
            u32 a[4] = {r0.x, r8.x, r0.y, r8.y}, c[4] = {r0.z, r8.z, r0.w, r8.w};
            mma_16x8x16(even, a, b.x, b.y);
            mma_16x8x16(odd, c, b.z, b.w);
        }
        acc[0] += scale0 * (even[0] + odd[0]);
        acc[2] += scale0 * (even[2] + odd[2]);
        if (T == 1) return;
        acc[1] += scale1 * (even[1] + odd[1]);
        acc[3] += scale1 * (even[3] + odd[3]);
    }
};

// Shared memory of a block, in this order: the vectors, their scales, the partial sums, the ring.
template <class M, int ROWS, int T, int WARPS, int DEPTH, int BLOCKS> struct ProductShape {
    static constexpr int ROW_BLOCKS = (ROWS + 15) / 16;
    static constexpr int BLOCK_ROWS = (ROW_BLOCKS + BLOCKS - 1) / BLOCKS; // row blocks of a block
    static constexpr int X_STRIDE = M::K + 32; // halfs: 64 bytes off, so columns differ in banks
    static constexpr int S_STRIDE = M::UNITS + 1;
    static constexpr int X_BYTES = (2 * T * X_STRIDE + 127) / 128 * 128;
    static constexpr int S_BYTES = (4 * T * S_STRIDE + 127) / 128 * 128;
    static constexpr int RED_BYTES = (BLOCK_ROWS + WARPS) * T * 16 * 4;
    static constexpr int SMEM = X_BYTES + S_BYTES + RED_BYTES + WARPS * DEPTH * M::SLOT;
};

// One vector to binary16 with a scale per group; returns this thread's part of its sum of squares.
// A lane takes four columns; a group is a power of two of lanes, so shuffles stay inside it.
// All loads of a stretch are on their way before the first is used.
template <class M, int WARPS, int IN>
__device__ __forceinline__ float product_load(const float *in, const float *gamma, u16 *x,
                                              float *scales) {
    constexpr int GROUP_LANES = M::GROUP / 4, STEP = WARPS * 128;
    constexpr int STEPS = (M::K + STEP - 1) / STEP, STRETCH = STEPS < 3 ? STEPS : 3;
    float sum = 0;
#pragma unroll 1
    for (int base = threadIdx.x * 4; base < (M::K + 127) / 128 * 128; base += STRETCH * STEP) {
        float4 v[STRETCH], g[STRETCH];
#pragma unroll
        for (int k = 0; k < STRETCH; k++) {
            v[k] = make_float4(0, 0, 0, 0);
            g[k] = v[k];
            if (base + k * STEP < M::K) {
                v[k] = load_float4_l2(in + base + k * STEP);
                if (IN == IN_NORM) g[k] = *(const float4 *)(gamma + base + k * STEP);
            }
        }
#pragma unroll
        for (int k = 0; k < STRETCH; k++) {
            const int i = base + k * STEP;
            if ((i & ~127) >= M::K) break; // a whole warp at a time
            if (IN == IN_NORM && i < M::K) {
                sum += v[k].x * v[k].x + v[k].y * v[k].y + v[k].z * v[k].z + v[k].w * v[k].w;
                v[k].x *= g[k].x, v[k].y *= g[k].y, v[k].z *= g[k].z, v[k].w *= g[k].w;
            }
            float top = fmaxf(fmaxf(fabsf(v[k].x), fabsf(v[k].y)),
                              fmaxf(fabsf(v[k].z), fabsf(v[k].w)));
#pragma unroll
            for (int o = GROUP_LANES / 2; o > 0; o >>= 1)
                top = fmaxf(top, __shfl_xor_sync(0xffffffffu, top, o));
            // 2^-e brings the largest of the group to 1024..2047: far from both ends of binary16
            int e = (int)(__float_as_uint(top) >> 23) - 127 - 10;
            e = min(max(e, -100), 110);
            const float down = __uint_as_float((u32)(127 - e) << 23);
            if (i < M::K) {
                *(uint2 *)(x + i) = make_uint2(f32_to_f16x2(v[k].x * down, v[k].y * down),
                                               f32_to_f16x2(v[k].z * down, v[k].w * down));
                if (threadIdx.x % GROUP_LANES == 0)
                    scales[i / M::GROUP] = __uint_as_float((u32)(127 + e) << 23);
            }
        }
    }
    return sum;
}

template <class M, int ROWS, int T, int WARPS, int DEPTH, int BLOCKS, int IN, int OUT>
__device__ __forceinline__ void product_decode(const ProductArgs &args) {
    typedef ProductShape<M, ROWS, T, WARPS, DEPTH, BLOCKS> S;
    extern __shared__ __align__(128) u8 smem[];
    u16 *x = (u16 *)smem;
    float *scales = (float *)(smem + S::X_BYTES);
    float *red = (float *)(smem + S::X_BYTES + S::S_BYTES);
    __shared__ float squares[T][WARPS];
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const u32 ring = shared_address(smem + S::X_BYTES + S::S_BYTES + S::RED_BYTES) +
                     warp * (DEPTH * M::SLOT);

    // this block's row blocks and this warp's part of their units
    const int first_row = (int)((long long)S::ROW_BLOCKS * blockIdx.x / gridDim.x);
    const int rows = (int)((long long)S::ROW_BLOCKS * (blockIdx.x + 1) / gridDim.x) - first_row;
    const int begin = rows * M::UNITS * warp / WARPS, end = rows * M::UNITS * (warp + 1) / WARPS;
    M matrix(args.weights, first_row + begin / M::UNITS, begin % M::UNITS, ring);
#pragma unroll
    for (int i = 0; i < DEPTH; i++) {
        if (begin + i < end) matrix.copy(i * M::SLOT);
        copy_async_commit();
    }
    if (IN == IN_NORM)
        for (int i = threadIdx.x * 32; i < M::K; i += WARPS * 1024) prefetch_l2(args.gamma + i);
    wait_for_previous();
    launch_dependents();
    const int tokens = T == 1 ? 1 : args.tokens;
    for (int t = 0; t < tokens; t++) {
        float sum = product_load<M, WARPS, IN>(args.in + (long long)t * M::K, args.gamma,
                                               x + t * S::X_STRIDE, scales + t * S::S_STRIDE);
        if (IN == IN_NORM) {
            sum = warp_sum(sum);
            if (lane == 0) squares[t][warp] = sum;
        }
    }
    __syncthreads();

    // the columns of B: lane l holds column l / 4; columns beyond the last vector repeat one
    const int t = T > 1 && (lane >> 2) < tokens ? lane >> 2 : 0;
    const int t0 = 2 * (lane & 3) < tokens ? 2 * (lane & 3) : 0; // columns of this lane's sums
    const int t1 = 2 * (lane & 3) + 1 < tokens ? 2 * (lane & 3) + 1 : 0;
    const u32 column = keep(shared_address(x) + 2 * t * S::X_STRIDE + 16 * (lane & 3));
    const u32 scale0 = keep(shared_address(scales) + (T == 1 ? 0 : 4 * t0 * S::S_STRIDE));
    const u32 scale1 = T == 1 ? 0 : keep(shared_address(scales) + 4 * t1 * S::S_STRIDE);
    float acc[4] = {0, 0, 0, 0};
    int row = begin / M::UNITS, unit = begin % M::UNITS, i = begin;
    auto flush = [&]() { // this warp's part of row block `row` into its slot of the partial sums
        float *slot = red + (row + warp) * (T * 16) + (lane >> 2);
        const int t = 2 * (lane & 3);
        if (t < T) slot[t * 16] = acc[0], slot[t * 16 + 8] = acc[2];
        if (t + 1 < T) slot[t * 16 + 16] = acc[1], slot[t * 16 + 24] = acc[3];
        acc[0] = acc[1] = acc[2] = acc[3] = 0;
    };
    auto step = [&](int d) { // the unit in slot d, and the refill of the slot
        copy_async_wait<DEPTH - 1>();
        matrix.template multiply<T>(d * M::SLOT, column + 2 * M::GROUP * unit,
                                    load_shared_f32(scale0 + 4 * unit),
                                    T == 1 ? 0 : load_shared_f32(scale1 + 4 * unit), acc);
        if (i + d + DEPTH < end) matrix.copy(d * M::SLOT);
        copy_async_commit();
        if (++unit == M::UNITS) {
            flush();
            unit = 0, row++;
        }
    };
    for (; i + DEPTH <= end; i += DEPTH) {
#pragma unroll
        for (int d = 0; d < DEPTH; d++) step(d);
    }
#pragma unroll
    for (int d = 0; d < DEPTH - 1; d++)
        if (i + d < end) step(d);
    if (unit != 0 && begin < end) flush();
    __syncthreads();

    // add the warps' parts of each row in the order of the warps
    for (int o = threadIdx.x; o < rows * 16 * T; o += WARPS * 32) {
        const int r = o / (16 * T), t = o / 16 % T, n = o % 16;
        if (t >= tokens || (OUT == OUT_SILU && n >= 8)) continue;
        float sum = 0, up = 0, scale = 1;
        // warp w has units total * w / WARPS to total * (w + 1) / WARPS - 1: those with units here
        const int total = rows * M::UNITS;
        const int from = ((r * M::UNITS + 1) * WARPS - 1) / total;
        const int to = ((r + 1) * M::UNITS * WARPS - 1) / total;
        for (int w = from; w <= to; w++) {
            if (total * w / WARPS == total * (w + 1) / WARPS) continue; // a warp without units
            const float *slot = red + (r + w) * (T * 16) + t * 16 + n;
            sum += slot[0];
            if (OUT == OUT_SILU) up += slot[8];
        }
        if (IN == IN_NORM) {
            float squared = 0;
            for (int w = 0; w < WARPS; w++) squared += squares[t][w];
            scale = rsqrtf(squared / M::K + NORM_EPS);
        }
        sum *= scale;
        if (OUT == OUT_SILU) {
            const int j = (first_row + r) * 8 + n;
            if (2 * j < ROWS)
                args.out[(long long)t * (ROWS / 2) + j] = sum / (1 + __expf(-sum)) * (up * scale);
        } else {
            const int y = (first_row + r) * 16 + n;
            float *out = args.out + (long long)t * ROWS + y;
            if (y < ROWS) *out = OUT == OUT_ADD ? *out + sum : sum;
        }
    }
}

#endif // TC_PRODUCT_DECODE
