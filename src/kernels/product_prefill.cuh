// product_prefill - Y = X W' for many vectors: the kernel of prefill, on the same weights as decode.
//
// Bound by arithmetic. A block computes ROWS_TILE x TOKENS_TILE of the result; 8 warps, a stage of
// one group of columns at a time, STAGES deep through cp.async. Weights are turned into binary16 A
// operands (scale * (q - zero), rounded once) in registers; each lane's part of B is eight
// neighbouring columns of a vector, which is the order of the words of a W4 unit.
//
//   shared memory of a stage: the units of the tile as they lie in memory, then the vectors as
//   slices of 32 columns: slice s, vector t at s * (64 * TOKENS_TILE + 64) + 64 t.
//
// Launch: (row tiles, token tiles) blocks of 256 threads, SMEM bytes.
// Bytes moved: W once per token tile, X once per row tile (mostly from L2), Y once.

#ifndef TC_PRODUCT_PREFILL
#define TC_PRODUCT_PREFILL

#include "prelude.cuh"

struct GemmArgs {
    const u8 *weights;
    const u16 *in;      // [tokens][K] binary16
    const float *scale; // [tokens] or null: 1
    float *out;         // [tokens][ROWS], or [tokens][ROWS / 2] with OUT_GATED
    int tokens;
};

template <int K_, int GROUP_> struct W4Tile {
    static constexpr int K = K_, GROUP = GROUP_, UNITS = K / GROUP, WORDS = GROUP / 16;
    static constexpr int UNIT_BYTES = 8 * GROUP + 64;
    static constexpr int STAGE_COLUMNS = GROUP;
    static constexpr int BLOCK_BYTES = UNIT_BYTES; // of 16 rows in a stage

    // Copies the units of `blocks` row blocks at stage k; row blocks past the end repeat the last.
    static __device__ void copy(u32 shared, const u8 *weights, int first, int blocks, int last,
                                int k) {
        constexpr int CHUNKS = UNIT_BYTES / 16;
        for (int c = threadIdx.x; c < blocks * CHUNKS; c += 256) {
            const int b = c / CHUNKS, at = c % CHUNKS;
            const long long unit = (long long)min(first + b, last) * UNITS + k;
            copy_async_16(shared + b * UNIT_BYTES + 16 * at, weights + unit * UNIT_BYTES + 16 * at);
        }
    }
    // The A operands of row block at `shared`, columns 32 s to 32 s + 31 of the stage.
    struct Scales {
        u32 low, high, s0, s1;
    };
    static __device__ Scales scales(u32 shared, int lane) {
        uint2 sz = load_shared_8(shared + 8 * GROUP + 8 * (lane >> 2));
        Scales r;
        r.low = f16x2_add(f16x2_high(sz.x), 0x64006400);
        r.high = f16x2_sub(0xd400d400, f16x2_high(sz.y));
        r.s0 = __byte_perm(sz.x, sz.x, 0x1010);
        r.s1 = __byte_perm(sz.y, sz.y, 0x1010);
        return r;
    }
    static __device__ void load(u32 shared, int lane, int s, const Scales &z, u32 a[4], u32 b[4]) {
        uint2 q;
        if (GROUP == 32)
            q = load_shared_8(shared + 8 * lane);
        else
            q = load_shared_8(shared + 512 * (s >> 1) + 16 * lane + 8 * (s & 1));
        expand(q.x, z, a);
        expand(q.y, z, b);
    }
    static __device__ void expand(u32 word, const Scales &z, u32 a[4]) {
        w4_to_f16x2(word, z.low, z.high, a);
        a[0] = f16x2_mul(a[0], z.s0), a[2] = f16x2_mul(a[2], z.s0);
        a[1] = f16x2_mul(a[1], z.s1), a[3] = f16x2_mul(a[3], z.s1);
    }
};

template <int K_, int GROUP_> struct F16Tile {
    static constexpr int K = K_, GROUP = GROUP_, UNITS = K / GROUP;
    static constexpr int STAGE_COLUMNS = GROUP;
    static constexpr int BLOCK_BYTES = 32 * GROUP; // as slices of 32 columns: 16 rows x 64 bytes

    static __device__ void copy(u32 shared, const u8 *weights, int first, int blocks, int last,
                                int k) {
        constexpr int CHUNKS = GROUP / 8; // of a row
        for (int c = threadIdx.x; c < blocks * 16 * CHUNKS; c += 256) {
            const int row = c / CHUNKS, at = c % CHUNKS, b = row >> 4;
            const long long r = (long long)min(first + b, last) * 16 + (row & 15);
            copy_async_16(shared + b * BLOCK_BYTES + 1024 * (at >> 2) + 64 * (row & 15) +
                              16 * (at & 3),
                          weights + (r * K + k * GROUP + 8 * at) * 2);
        }
    }
    struct Scales {};
    static __device__ Scales scales(u32, int) { return Scales(); }
    static __device__ void load(u32 shared, int lane, int s, const Scales &, u32 a[4], u32 b[4]) {
        uint4 r0 = load_shared_16(shared + 1024 * s + 64 * (lane >> 2) + 16 * (lane & 3));
        uint4 r8 = load_shared_16(shared + 1024 * s + 512 + 64 * (lane >> 2) + 16 * (lane & 3));
        a[0] = r0.x, a[1] = r8.x, a[2] = r0.y, a[3] = r8.y;
        b[0] = r0.z, b[1] = r8.z, b[2] = r0.w, b[3] = r8.w;
    }
};

template <class M, int ROWS_TILE, int TOKENS_TILE, int STAGES> struct GemmShape {
    static constexpr int SLICES = M::STAGE_COLUMNS / 32;
    static constexpr int SLICE_BYTES = 64 * TOKENS_TILE + 64;
    static constexpr int A_BYTES = ROWS_TILE / 16 * M::BLOCK_BYTES;
    static constexpr int STAGE = (A_BYTES + SLICES * SLICE_BYTES + 127) / 128 * 128;
    static constexpr int SMEM = STAGES * STAGE;
};

template <class M, int ROWS, int ROWS_TILE, int TOKENS_TILE, int STAGES, int OUT>
__device__ __forceinline__ void product_prefill(const GemmArgs &args) {
    typedef GemmShape<M, ROWS_TILE, TOKENS_TILE, STAGES> S;
    extern __shared__ __align__(128) u8 smem[];
    constexpr int WARPS_M = 4, WARPS_N = 2;
    constexpr int BLOCKS = ROWS_TILE / 16 / WARPS_M;   // row blocks of a warp
    constexpr int COLUMNS = TOKENS_TILE / 8 / WARPS_N; // 8-token columns of a warp
    const int lane = threadIdx.x & 31, warp = threadIdx.x >> 5;
    const int wm = warp % WARPS_M, wn = warp / WARPS_M;
    const int first_block = blockIdx.x * (ROWS_TILE / 16), last_block = (ROWS + 15) / 16 - 1;
    const int first_token = blockIdx.y * TOKENS_TILE;
    const u32 base = shared_address(smem);

    auto copy = [&](int k) {
        const u32 stage = base + k % STAGES * S::STAGE;
        M::copy(stage, args.weights, first_block, ROWS_TILE / 16, last_block, k);
        constexpr int CHUNKS = M::STAGE_COLUMNS / 8;
#pragma unroll
        for (int c = threadIdx.x; c < TOKENS_TILE * CHUNKS; c += 256) {
            const int t = c / CHUNKS, at = c % CHUNKS, token = first_token + t;
            copy_async_16_or_zero(
                stage + S::A_BYTES + (at >> 2) * S::SLICE_BYTES + 64 * t + 16 * (at & 3),
                args.in + (long long)min(token, args.tokens - 1) * M::K + k * M::STAGE_COLUMNS +
                    8 * at,
                token < args.tokens);
        }
    };
    wait_for_previous();
    launch_dependents();
#pragma unroll
    for (int k = 0; k < STAGES - 1; k++) {
        if (k < M::UNITS) copy(k);
        copy_async_commit();
    }
    float acc[BLOCKS][COLUMNS][4];
#pragma unroll
    for (int i = 0; i < BLOCKS; i++)
#pragma unroll
        for (int j = 0; j < COLUMNS; j++)
#pragma unroll
            for (int c = 0; c < 4; c++) acc[i][j][c] = 0;

    for (int k = 0; k < M::UNITS; k++) {
        copy_async_wait<STAGES - 2>();
        __syncthreads(); // stage k is there, and every warp has left stage k - 1
        if (k + STAGES - 1 < M::UNITS) copy(k + STAGES - 1);
        copy_async_commit();
        const u32 stage = base + k % STAGES * S::STAGE;
        const u32 a_base = stage + wm * BLOCKS * M::BLOCK_BYTES;
        const u32 b_base = stage + S::A_BYTES + 64 * (wn * COLUMNS * 8 + (lane >> 2)) +
                           16 * (lane & 3);
        typename M::Scales z[BLOCKS];
#pragma unroll
        for (int i = 0; i < BLOCKS; i++) z[i] = M::scales(a_base + i * M::BLOCK_BYTES, lane);
#pragma unroll
        for (int s = 0; s < S::SLICES; s++) {
            uint4 b[COLUMNS];
#pragma unroll
            for (int j = 0; j < COLUMNS; j++)
                b[j] = load_shared_16(b_base + s * S::SLICE_BYTES + 512 * j);
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                u32 first[4], second[4];
                M::load(a_base + i * M::BLOCK_BYTES, lane, s, z[i], first, second);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) mma_16x8x16(acc[i][j], first, b[j].x, b[j].y);
#pragma unroll
                for (int j = 0; j < COLUMNS; j++) mma_16x8x16(acc[i][j], second, b[j].z, b[j].w);
            }
        }
    }

#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
#pragma unroll
        for (int c = 0; c < 2; c++) {
            const int t = first_token + (wn * COLUMNS + j) * 8 + 2 * (lane & 3) + c;
            if (t >= args.tokens) continue;
            const float scale = args.scale ? args.scale[t] : 1.0f;
#pragma unroll
            for (int i = 0; i < BLOCKS; i++) {
                const int block = first_block + wm * BLOCKS + i;
                const float low = acc[i][j][c] * scale, high = acc[i][j][c + 2] * scale;
                if (OUT == OUT_GATED) {
                    const int n = block * 8 + (lane >> 2);
                    if (2 * n < ROWS)
                        args.out[(long long)t * (ROWS / 2) + n] = low / (1 + __expf(-low)) * high;
                } else {
                    const int n = block * 16 + (lane >> 2);
                    float *out = args.out + (long long)t * ROWS + n;
                    if (n < ROWS) out[0] = OUT == OUT_ADD ? out[0] + low : low;
                    if (n + 8 < ROWS) out[8] = OUT == OUT_ADD ? out[8] + high : high;
                }
            }
        }
}

#endif // TC_PRODUCT_PREFILL
