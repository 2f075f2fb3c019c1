// product_wgmma - Y = X W' for many vectors on sm_90a: the kernels of prefill where there is wgmma.
//
// A tile of the result is 128 rows x TOKENS tokens. Three warpgroups: the first brings stages of
// columns into a ring, the other two multiply, 64 rows each. Weights become binary16 A operands
// (scale * (q - zero), rounded once) in registers while the tensor cores work on the operands
// before; the vectors are B operands in shared memory, laid out by rows.cuh so that a stage is
// copied as it lies. The multiplying warpgroups run apart by up to the depth of the ring: one
// stores its results while the other has the tensor cores.
//
// product_wgmma, for many tokens, is bound by arithmetic. Its blocks go from tile to tile; those of
// a cluster take neighbouring rows and share the tokens: each copies its share of the vectors into
// all.
// Launch: clusters of CLUSTER blocks of 384 threads, at most one block per SM, SMEM bytes.
// Bytes moved: W once per token tile, X once per 128 CLUSTER rows (mostly from L2), Y once.
//
// product_few, for few tokens, is bound by reading W. A block has one tile and, of SPLITS blocks in
// a cluster, its part of the columns; the ring begins to fill with weights before the kernel waits
// for its predecessor. The parts are added in the order of the columns: the same input always gives
// the same bits. With two LIMBS it is as good as in binary32, as product_prefill is. Tiles are
// HEIGHT row blocks high: 8, two blocks to an SM, or 12, one to an SM.
// Launch: (row tiles * SPLITS, token tiles) blocks of 128 + 32 HEIGHT threads in clusters of
// SPLITS, SMEM bytes. Bytes moved: W once per token tile, X once per 16 HEIGHT rows (from L2), Y
// once.

#ifndef TC_PRODUCT_WGMMA
#define TC_PRODUCT_WGMMA

#include "prelude.cuh"
#include "product_prefill.cuh"

#ifdef TC_HOPPER

// The words of 64 columns of a row block, and how they become A operands.
template <int K_, int GROUP_> struct W4Slices {
    static constexpr int K = K_, GROUP = GROUP_, UNIT_BYTES = 8 * GROUP + 64;
    static constexpr int STAGE_COLUMNS = 128;
    static constexpr int BLOCK_BYTES = STAGE_COLUMNS / GROUP * UNIT_BYTES; // of 16 rows in a stage
    static constexpr bool BULK = true;                // they come as bulk copies
    static constexpr int UNITS = GROUP == 32 ? 2 : 1; // that 64 columns touch

    struct Raw {
        u32 q[4];
        uint2 scales[UNITS];
    };
    // A copying thread's part of stage k of HEIGHT row blocks: each of the four warps copies a
    // quarter. Those past the end repeat the last. With the last stage that may be more than there
    // is of a row.
    template <int HEIGHT>
    static __device__ __forceinline__ void copy(u32 shared, const u8 *weights, int first, int last,
                                                int k, u32 barrier) {
        if (!elect_one()) return;
#pragma unroll
        for (int i = 0; i < HEIGHT / 4; i++) {
            const int b = threadIdx.x / 32 * (HEIGHT / 4) + i;
            const i64 unit = (i64)min(first + b, last) * (K / GROUP) + k * (STAGE_COLUMNS / GROUP);
            copy_bulk(shared + b * BLOCK_BYTES, weights + unit * UNIT_BYTES, BLOCK_BYTES, barrier);
        }
    }
    // Slice h (64 columns) of the stage of the row block at `shared`.
    static __device__ __forceinline__ void fetch(u32 shared, int lane, int h, Raw &r) {
        if (GROUP == 32) {
#pragma unroll
            for (int i = 0; i < UNITS; i++) {
                const u32 unit = shared + (2 * h + i) * UNIT_BYTES;
                const uint2 v = load_shared_8(unit + 8 * lane);
                r.q[2 * i] = v.x, r.q[2 * i + 1] = v.y;
                r.scales[i] = load_shared_8(unit + 8 * GROUP + 8 * (lane >> 2));
            }
        } else {
            const u32 unit = shared + 64 * h / GROUP * UNIT_BYTES;
            const uint4 v = load_shared_16(unit + (GROUP == 128 ? 512 * h : 0) + 16 * lane);
            r.q[0] = v.x, r.q[1] = v.y, r.q[2] = v.z, r.q[3] = v.w;
            r.scales[0] = load_shared_8(unit + 8 * GROUP + 8 * (lane >> 2));
        }
    }
    // a[4 i] to a[4 i + 3]: the A operand of step i of 16 columns, rounded to binary16.
    static __device__ __forceinline__ void expand(const Raw &r, u32 (&a)[16]) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const W4Scales z(r.scales[u]);
#pragma unroll
            for (int i = 4 / UNITS * u; i < 4 / UNITS * (u + 1); i++) z.expand(r.q[i], a + 4 * i);
        }
    }
    // The same without the scales, which are those of rows r and r + 8 of each unit: exact.
    static __device__ __forceinline__ void expand_exactly(const Raw &r, u32 (&a)[16],
                                                          float2 (&scales)[UNITS]) {
#pragma unroll
        for (int u = 0; u < UNITS; u++) {
            const W4Scales z(r.scales[u]);
            scales[u] = make_float2(f16_to_f32((u16)r.scales[u].x), f16_to_f32((u16)r.scales[u].y));
#pragma unroll
            for (int i = 4 / UNITS * u; i < 4 / UNITS * (u + 1); i++)
                w4_to_f16x2(r.q[i], z.low, z.high, a + 4 * i);
        }
    }
};

// The same for a row-major binary16 matrix.
template <int K_, int GROUP_> struct F16Slices {
    static constexpr int K = K_, GROUP = GROUP_;
    static constexpr int STAGE_COLUMNS = 64, ROW_BYTES = 128 + 64; // so that rows differ in banks
    static constexpr int BLOCK_BYTES = 16 * ROW_BYTES, UNITS = 1;
    static constexpr bool BULK = false;

    struct Raw {
        u32 at; // the operands are ready: they come when their registers are free
    };
    // Bulk copies of 128 bytes take too long each; every copying thread arrives at the barrier.
    template <int HEIGHT>
    static __device__ __forceinline__ void copy(u32 shared, const u8 *weights, int first, int last,
                                                int k, u32 barrier) {
        const int at = threadIdx.x & 7; // of the eight 16-byte parts of a row
#pragma unroll 2
        for (int r = threadIdx.x >> 3; r < 16 * HEIGHT; r += 16) {
            const i64 row = (i64)min(first + r / 16, last) * 16 + r % 16;
            copy_async_16(shared + r * ROW_BYTES + 16 * at,
                          weights + (row * K + k * 64 + 8 * at) * 2);
        }
        copy_async_arrive(barrier);
    }
    static __device__ __forceinline__ void fetch(u32 shared, int lane, int, Raw &r) {
        r.at = shared + (lane >> 2) * ROW_BYTES + 16 * (lane & 3);
    }
    static __device__ __forceinline__ void expand(const Raw &r, u32 (&a)[16]) {
#pragma unroll
        for (int i = 0; i < 2; i++) {
            const uint4 r0 = load_shared_16(r.at + 64 * i);
            const uint4 r8 = load_shared_16(r.at + 8 * ROW_BYTES + 64 * i);
            u32 *to = a + 8 * i;
            to[0] = r0.x, to[1] = r8.x, to[2] = r0.y, to[3] = r8.y;
            to[4] = r0.z, to[5] = r8.z, to[6] = r0.w, to[7] = r8.w;
        }
    }
    static __device__ __forceinline__ void expand_exactly(const Raw &r, u32 (&a)[16],
                                                          float2 (&scales)[UNITS]) {
        expand(r, a);
        scales[0] = make_float2(1, 1);
    }
};

// A ring that holds stages of HEIGHT row blocks and TOKENS tokens (LIMBS times), in BYTES of shared
// memory; the vectors of a stage go to SHARERS blocks.
template <class M_, int HEIGHT_, int TOKENS_, int LIMBS_, int SHARERS_, int BYTES>
struct WgmmaRing {
    typedef M_ M;
    static constexpr int HEIGHT = HEIGHT_, TOKENS = TOKENS_, LIMBS = LIMBS_, SHARERS = SHARERS_;
    static constexpr int SLICES = M::STAGE_COLUMNS / 64; // of a stage
    static constexpr int SLICE_BYTES = 128 * TOKENS, LIMB_BYTES = SLICES * SLICE_BYTES;
    static constexpr int B_BYTES = LIMBS * LIMB_BYTES, A_BYTES = HEIGHT * M::BLOCK_BYTES;
    static constexpr int STAGES_OF_K = (M::K + M::STAGE_COLUMNS - 1) / M::STAGE_COLUMNS;
    static constexpr int FIT = (BYTES - 256) / (A_BYTES + B_BYTES), STAGES = FIT < 8 ? FIT : 8;
    static constexpr int SMEM = STAGES * (A_BYTES + B_BYTES) + 256;
    static_assert(M::K % 64 == 0, "whole slices");
    static_assert(STAGES >= 2, "the tile is too large for this GPU");

    u32 base, full, empty; // the vectors, the weights; the barriers, and one more behind them
    int slot = 0;          // the place in the ring
    u32 parity = 0;        // of the phase that its barriers are in

    __device__ __forceinline__ explicit WgmmaRing(u32 shared) {
        base = shared; // a multiple of 1024
        full = base + STAGES * (A_BYTES + B_BYTES), empty = full + 8 * STAGES;
    }
    __device__ __forceinline__ u32 added() const { return empty + 8 * STAGES; } // see few_add
    __device__ __forceinline__ void make() const { // by one thread
        for (int i = 0; i < STAGES; i++) {
            barrier_init(full + 8 * i, M::BULK ? 1 : 1 + 128);
            barrier_init(empty + 8 * i, HEIGHT * (32 + SHARERS - 1)); // see release
        }
        barrier_init_fence();
    }
    __device__ __forceinline__ u32 vectors() const { return base + slot * B_BYTES; }
    __device__ __forceinline__ u32 weights() const {
        return base + STAGES * B_BYTES + slot * A_BYTES;
    }
    __device__ __forceinline__ void next() {
        if (++slot == STAGES) slot = 0, parity ^= 1;
    }
    // For the copying threads: waits for room, announces a stage and copies its weights.
    __device__ __forceinline__ void fill(const u8 *matrix, int first, int last, int k) const {
        barrier_wait(empty + 8 * slot, parity ^ 1); // at first the ring is empty
        if (threadIdx.x == 0) barrier_expect(full + 8 * slot, (M::BULK ? A_BYTES : 0) + B_BYTES);
        M::template copy<HEIGHT>(weights(), matrix, first, last, k, full + 8 * slot);
    }
    // For a multiplying warp: gives the slot back. Every lane arrives by itself, so that what it
    // has read is ordered before what is copied there next, in this block; in the others of the
    // cluster it is the warp that has done with their share of the vectors.
    __device__ __forceinline__ void release(int slot) const {
        const u32 lane = threadIdx.x & 31;
        barrier_arrive(empty + 8 * slot);
        if (SHARERS > 1 && lane < SHARERS && lane != cluster_rank())
            barrier_arrive_at(empty + 8 * slot, lane);
    }
};

template <int TOKENS, int ADD = 1>
__device__ __forceinline__ void wgmma(float (&d)[TOKENS / 2], const u32 *a, u64 b) {
    static_assert(ADD || TOKENS <= 64, "only for few tokens");
    if constexpr (TOKENS == 256) wgmma_64x256x16(d, a, b);
    if constexpr (TOKENS == 128) wgmma_64x128x16(d, a, b);
    if constexpr (TOKENS == 64) wgmma_64x64x16<ADD>(d, a, b);
    if constexpr (TOKENS == 16) wgmma_64x16x16<ADD>(d, a, b);
}

// A multiplying warp's work on one tile: acc = row block `row` of the tile times the vectors, over
// the next 2 * pairs slices of 64 columns, and one more with `tail`. There is one at least.
template <class Ring>
__device__ __forceinline__ void wgmma_tile(Ring &ring, int row, int pairs, bool tail,
                                           float (&acc)[Ring::TOKENS / 2]) {
    typedef typename Ring::M M;
    const int lane = threadIdx.x & 31;
    const u32 row_at = row * M::BLOCK_BYTES;
    u32 a[2][16];
    typename M::Raw raw;
    int before = 0; // the slot of the slice before
    // Multiplies slice h of a stage, whose words are in `raw`; brings those of the next slice.
    auto step = [&](bool first, int h, bool last, u32(&a)[16]) {
        const u64 b = wgmma_operand(ring.vectors()) + h * (Ring::SLICE_BYTES >> 4);
        M::expand(raw, a);
        wgmma_fence();
#pragma unroll
        for (int i = 0; i < 4; i++) wgmma<Ring::TOKENS>(acc, a + 4 * i, b + 2 * i);
        wgmma_commit();
        const int here = ring.slot;
        if (last || h + 1 == Ring::SLICES) ring.next();
        if (!last) {
            if (h + 1 == Ring::SLICES) barrier_wait(ring.full + 8 * ring.slot, ring.parity);
            M::fetch(ring.weights() + row_at, lane, (h + 1) % Ring::SLICES, raw);
        }
        wgmma_wait<1>(); // the slice before: its operands are free
        if (h == 0 && !first) ring.release(before);
        before = here;
    };
#pragma unroll
    for (int i = 0; i < Ring::TOKENS / 2; i++) acc[i] = 0;
    barrier_wait(ring.full + 8 * ring.slot, ring.parity);
    M::fetch(ring.weights() + row_at, lane, 0, raw);
#pragma unroll 1
    for (int i = 0; i < pairs; i++) {
        step(i == 0, 0, false, a[0]);
        step(false, Ring::SLICES - 1, !tail && i + 1 == pairs, a[1]);
    }
    if (tail) {
        wgmma_wait<0>(); // or else the compiler sees no pipeline any more
        step(pairs == 0, 0, true, a[0]);
    }
    wgmma_wait<0>();
    keep_all(acc);
    ring.release(before);
}

// ---- many tokens ----

template <class M, int TOKENS, int CLUSTER>
using WgmmaShape = WgmmaRing<M, 8, TOKENS, 1, CLUSTER, SHARED_LIMIT>;

// The tiles of a cluster, those of the same rows one after the other.
template <int ROWS, int TOKENS, int CLUSTER> struct WgmmaTiles {
    static constexpr int ROW_BLOCKS = (ROWS + 15) / 16, HEIGHT = 8 * CLUSTER; // in row blocks
    static constexpr int ROW_TILES = (ROW_BLOCKS + HEIGHT - 1) / HEIGHT;
    int column_tiles, tile;

    __device__ __forceinline__ explicit WgmmaTiles(int tokens) {
        column_tiles = (tokens + TOKENS - 1) / TOKENS;
        tile = blockIdx.x / CLUSTER;
    }
    __device__ __forceinline__ bool more() const { return tile < column_tiles * ROW_TILES; }
    __device__ __forceinline__ void next() { tile += gridDim.x / CLUSTER; }
    __device__ __forceinline__ int row_block(u32 rank) const {
        return tile / column_tiles * HEIGHT + 8 * (int)rank;
    }
    __device__ __forceinline__ int token() const { return tile % column_tiles * TOKENS; }
};

// The copying threads: this block's rows of the weights, and its share of the vectors into all
// blocks of the cluster.
template <class M, int ROWS, int TOKENS, int CLUSTER>
__device__ __forceinline__ void wgmma_copy(const GemmArgs &args,
                                           WgmmaShape<M, TOKENS, CLUSTER> &ring) {
    typedef WgmmaShape<M, TOKENS, CLUSTER> Ring;
    typedef WgmmaTiles<ROWS, TOKENS, CLUSTER> Tiles;
    constexpr int SHARE = Ring::B_BYTES / CLUSTER, PART = SHARE < 16384 ? SHARE : 16384;
    constexpr int PARTS = SHARE / PART, OF_SLICE = Ring::SLICE_BYTES / PART;
    const u32 rank = cluster_rank();
    const int warp = threadIdx.x >> 5; // which part of the vectors it copies
    const int part = rank * PARTS + warp % PARTS, slice = part / OF_SLICE, at = part % OF_SLICE;
    for (Tiles t(args.tokens); t.more(); t.next()) {
        // parts of one slice are its tokens: 128 of them, or fewer
        const int token = t.token() + at * (PART / 128);
        const u8 *vectors = (const u8 *)args.in + token % 128 * 128 +
                            ((i64)(token / 128) * operand_slices(M::K) + slice) * 16384;
        for (int k = 0; k < Ring::STAGES_OF_K; k++) {
            ring.fill(args.weights, t.row_block(rank), Tiles::ROW_BLOCKS - 1, k);
            if (warp < PARTS && elect_one())
                copy_bulk_multicast(ring.vectors() + slice * Ring::SLICE_BYTES + at * PART,
                                    vectors + (i64)k * Ring::SLICES * 16384, PART,
                                    ring.full + 8 * ring.slot, (1 << CLUSTER) - 1);
            ring.next();
        }
    }
}

template <class M, int ROWS, int TOKENS, int CLUSTER, int OUT>
__device__ __forceinline__ void product_wgmma(const GemmArgs &args) {
    extern __shared__ __align__(128) u8 smem[]; // begins at a multiple of 1024
    WgmmaShape<M, TOKENS, CLUSTER> ring(shared_address(smem));
    if (threadIdx.x == 0) ring.make();
    cluster_sync();
    wait_for_previous();
    launch_dependents();
    if (threadIdx.x < 128) {
        registers_down_to<40>();
        wgmma_copy<M, ROWS, TOKENS, CLUSTER>(args, ring);
    } else {
        registers_up_to<232>();
        const int row = (threadIdx.x >> 5) - 4;
        const u32 rank = cluster_rank();
        for (WgmmaTiles<ROWS, TOKENS, CLUSTER> t(args.tokens); t.more(); t.next()) {
            float acc[TOKENS / 2]; // of this tile only: ptxas must not carry it from tile to tile
            wgmma_tile(ring, row, M::K / 128, M::K / 64 % 2, acc);
            store_results<ROWS, TOKENS / 8, OUT>(args, acc, t.row_block(rank) + row, t.token());
        }
    }
    cluster_sync(); // the other blocks may still copy into this one
}

// ---- few tokens ----

template <class M, int HEIGHT, int TOKENS, int LIMBS>
using FewShape = WgmmaRing<M, HEIGHT, TOKENS, LIMBS, 1,
                           HEIGHT == 8 ? SHARED_LIMIT / 2 - 1024 : SHARED_LIMIT>;

// A block's columns, in pairs of slices: the last block has the odd slice.
template <class M, int SPLITS> struct FewColumns {
    static constexpr int PAIRS = M::K / 128;
    int begin, pairs;
    bool tail;

    __device__ __forceinline__ FewColumns() {
        const int rank = blockIdx.x % SPLITS;
        begin = PAIRS * rank / SPLITS;
        pairs = PAIRS * (rank + 1) / SPLITS - begin;
        tail = M::K / 64 % 2 && rank == SPLITS - 1;
    }
};

// wgmma_tile with two limbs of the vectors and exact weights, so that the sums are as good as in
// binary32: those of a group are computed with q - zero and meet their scale afterwards. There are
// no registers for the next operands while the tensor cores work: the other warps fill the gap.
template <class Ring>
__device__ __forceinline__ void few_tile_exact(Ring &ring, int row, int pairs, bool tail,
                                               float (&sum)[Ring::TOKENS / 2]) {
    typedef typename Ring::M M;
    constexpr int STEPS = 4 / M::UNITS; // of a slice, those of one unit
    const int lane = threadIdx.x & 31;
    const u32 row_at = row * M::BLOCK_BYTES;
    float acc[Ring::TOKENS / 2];
    typename M::Raw raw;
    // Slice h of a stage; brings the words of the next. Groups begin and end with it.
    auto step = [&](bool begins, int h, bool ends, bool last) {
        const u64 b = wgmma_operand(ring.vectors()) + h * (Ring::SLICE_BYTES >> 4);
        u32 a[16];
        float2 scales[M::UNITS];
        M::expand_exactly(raw, a, scales);
#pragma unroll
        for (int u = 0; u < M::UNITS; u++) {
            wgmma_fence();
#pragma unroll
            for (int i = u * STEPS; i < (u + 1) * STEPS; i++) {
                if (begins && i == u * STEPS)
                    wgmma<Ring::TOKENS, 0>(acc, a + 4 * i, b + 2 * i);
                else
                    wgmma<Ring::TOKENS>(acc, a + 4 * i, b + 2 * i);
                wgmma<Ring::TOKENS>(acc, a + 4 * i, b + (Ring::LIMB_BYTES >> 4) + 2 * i);
            }
            wgmma_commit();
            wgmma_wait<0>();
            keep_all(acc);
            if (!ends) continue;
#pragma unroll
            for (int i = 0; i < Ring::TOKENS / 2; i++)
                sum[i] += (i & 2 ? scales[u].y : scales[u].x) * acc[i];
        }
        if (last || h + 1 == Ring::SLICES) {
            ring.release(ring.slot);
            ring.next();
            if (!last) barrier_wait(ring.full + 8 * ring.slot, ring.parity);
        }
        if (!last) M::fetch(ring.weights() + row_at, lane, (h + 1) % Ring::SLICES, raw);
    };
    constexpr bool PAIR = M::GROUP == 128; // a group is two slices
#pragma unroll
    for (int i = 0; i < Ring::TOKENS / 2; i++) sum[i] = acc[i] = 0;
    barrier_wait(ring.full + 8 * ring.slot, ring.parity);
    M::fetch(ring.weights() + row_at, lane, 0, raw);
#pragma unroll 1
    for (int i = 0; i < pairs; i++) {
        step(true, 0, !PAIR, false);
        step(!PAIR, Ring::SLICES - 1, true, !tail && i + 1 == pairs);
    }
    if (tail) step(true, 0, true, true);
}

template <int ROWS, int SPLITS, class Ring>
__device__ __forceinline__ void few_copy(const GemmArgs &args, Ring &ring) {
    typedef typename Ring::M M;
    const FewColumns<M, SPLITS> columns;
    const int first = blockIdx.x / SPLITS * Ring::HEIGHT, last = (ROWS + 15) / 16 - 1;
    const int token = blockIdx.y * Ring::TOKENS, begin = columns.begin * 2 / Ring::SLICES;
    const int stages = (2 * columns.pairs + columns.tail + Ring::SLICES - 1) / Ring::SLICES;
    // which slice of which limb of the vectors this warp copies
    const int warp = threadIdx.x >> 5, slice = warp % Ring::SLICES, limb = warp / Ring::SLICES;
    const u8 *vectors = (const u8 *)(limb ? args.rest : args.in) + token % 128 * 128 +
                        ((i64)(token / 128) * operand_slices(M::K) + slice) * 16384;
    auto copy_vectors = [&](const Ring &at, int k) {
        if (limb < Ring::LIMBS && elect_one())
            copy_bulk(at.vectors() + warp * Ring::SLICE_BYTES,
                      vectors + (i64)k * Ring::SLICES * 16384, Ring::SLICE_BYTES,
                      at.full + 8 * at.slot);
    };
    // weights depend on nothing: as many stages of them as the ring holds
    Ring ahead = ring;
    const int early = stages < Ring::STAGES ? stages : Ring::STAGES;
    for (int k = 0; k < early; k++, ahead.next()) ahead.fill(args.weights, first, last, begin + k);
    wait_for_previous();
    launch_dependents();
    for (int k = 0; k < early; k++, ring.next()) copy_vectors(ring, begin + k);
    for (int k = early; k < stages; k++, ring.next()) {
        ring.fill(args.weights, first, last, begin + k);
        copy_vectors(ring, begin + k);
    }
}

// Adds the parts of the blocks of a cluster, in the order of the columns: each block gets those of
// some of the tokens, and stores their sums.
template <int ROWS, int HEIGHT, int TOKENS, int SPLITS, int OUT>
__device__ __forceinline__ void few_add(const GemmArgs &args, u8 *room, u32 barrier,
                                        const float (&acc)[TOKENS / 2], int block, int token) {
    constexpr int THREADS = 32 * HEIGHT, COLUMNS = TOKENS / 8; // of eight tokens
    constexpr int PARTS = SPLITS >= COLUMNS ? COLUMNS : SPLITS >= 4 ? 4 : 2;
    constexpr int PART = COLUMNS / PARTS;
    static_assert(COLUMNS % PARTS == 0, "equal parts");
    const int thread = threadIdx.x - 128, rank = blockIdx.x % SPLITS;
    cluster_arrive();
    cluster_wait(); // all have done with their rings, whose room it is
    const u32 to = shared_address(room) + 16 * (rank * PART * THREADS + thread);
#pragma unroll
    for (int j = 0; j < COLUMNS; j++)
        give_16(to + 16 * THREADS * (j % PART), barrier, j / PART,
                make_float4(acc[4 * j], acc[4 * j + 1], acc[4 * j + 2], acc[4 * j + 3]));
    if (rank >= PARTS) return;
    if (thread == 0) barrier_expect(barrier, 16 * SPLITS * PART * THREADS);
    barrier_wait(barrier, 0);
    float sum[4 * PART] = {};
#pragma unroll
    for (int r = 0; r < SPLITS; r++)
#pragma unroll
        for (int j = 0; j < PART; j++) {
            const float4 v = *(const float4 *)(room + 16 * ((r * PART + j) * THREADS + thread));
            sum[4 * j] += v.x, sum[4 * j + 1] += v.y, sum[4 * j + 2] += v.z, sum[4 * j + 3] += v.w;
        }
    store_results<ROWS, PART, OUT>(args, sum, block, token + 8 * PART * rank);
}

template <class M, int ROWS, int HEIGHT, int TOKENS, int LIMBS, int SPLITS, int OUT>
__device__ __forceinline__ void product_few(const GemmArgs &args) {
    typedef FewShape<M, HEIGHT, TOKENS, LIMBS> Ring;
    extern __shared__ __align__(128) u8 smem[]; // begins at a multiple of 1024
    static_assert(64 * HEIGHT * TOKENS <= Ring::SMEM - 256, "room for the sums");
    Ring ring(shared_address(smem));
    if (threadIdx.x == 0) {
        if (SPLITS > 1) barrier_init(ring.added(), 1);
        ring.make();
    }
    __syncthreads();
    if (threadIdx.x < 128) {
        registers_down_to<32>();
        few_copy<ROWS, SPLITS>(args, ring);
        if (SPLITS > 1) cluster_arrive(), cluster_wait(); // those of few_add
    } else {
        registers_up_to<HEIGHT == 8 ? 104 : 160>();
        const FewColumns<M, SPLITS> columns;
        const int row = (threadIdx.x >> 5) - 4, block = blockIdx.x / SPLITS * HEIGHT + row;
        const int token = blockIdx.y * TOKENS;
        float acc[TOKENS / 2];
        if constexpr (LIMBS == 2)
            few_tile_exact(ring, row, columns.pairs, columns.tail, acc);
        else
            wgmma_tile(ring, row, columns.pairs, columns.tail, acc);
        wait_for_previous();
        if constexpr (SPLITS == 1)
            store_results<ROWS, TOKENS / 8, OUT>(args, acc, block, token);
        else
            few_add<ROWS, HEIGHT, TOKENS, SPLITS, OUT>(args, smem, ring.added(), acc, block, token);
    }
}

#endif // TC_HOPPER
#endif // TC_PRODUCT_WGMMA
