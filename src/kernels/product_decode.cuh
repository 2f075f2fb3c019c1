// product_decode - y = W x for one activation vector: the kernel of decoding. With the matrices of
// product_short.cuh it takes up to eight vectors.
//
// Bound by reading W once. A block owns whole 16-row blocks of W, and each of its warps a range of
// their columns (WarpShare). A warp goes through its units (16 rows x 128 columns, or fewer) row
// block by row block; they come through its own ring in shared memory that cp.async keeps full.
// Weights depend on nothing, so the ring is filled before the kernel waits for its predecessor:
// memory works on while one kernel ends and the next prepares its vector. Of that a warp needs its
// own columns only, which it prepares itself, so it waits for no other warp until its sums are
// done.
//
// A unit goes through the tensor cores, 16 rows as the A operand. 4-bit weights stay whole numbers:
// the vectors become fixed-point numbers with a scale per group, three digits to base 256 (22 bits
// and sign), and each digit is a column of B. All products and sums within a group are exact; the
// zero point is taken off by the sum of the group's activations. So do 8-bit weights. Binary16
// weights take each number of a vector as a sum of two binary16 (22 bits), again in two columns.
// Partial sums of the warps meet in shared memory and are added pair by pair, always the same ones:
// the same input gives the same bits.
//
// With SPLIT above 1 so many blocks share row blocks, each with a part of the columns. It prepares
// that part of the vectors alone, has room for deeper rings, and row blocks go out more evenly. Of
// several vectors the sums meet within a cluster (product_short.cuh). Of one vector two blocks each
// add theirs to memory that holds zero: of two numbers the order does not matter.
//
// Launch: BLOCKS blocks (at most SPLIT per row block) of WARPS * 32 threads, SMEM bytes; of several
// vectors in clusters of SPLIT blocks.
// Bytes moved: the matrix once; the vectors once per block or cluster (from L2); in a cluster every
// block's sums once to another's; and into L2 the parts of matrices that BroughtLines names.

#ifndef TC_PRODUCT_DECODE
#define TC_PRODUCT_DECODE

#include "prelude.cuh"
#include "rows.cuh"

// The vectors as they are, or RMSNorm or LayerNorm of them.
enum { IN_PLAIN, IN_RMS, IN_LAYER };
// What becomes of a row's sum: stored; with bias and clipping; added to the residual; act(gate) *
// up of rows interleaved in eights; act. The last two are divided by `extra`, if there is one.
enum { OUT_STORE, OUT_QKV, OUT_ADD, OUT_GATED, OUT_ACT };
enum { ACT_SILU, ACT_GELU };
constexpr int WIDE_NORM = 6144; // numbers; LayerNorm of more lacks registers
// Two products of which the second, too, reads what was there before the first, and writes nothing
// that the first reads, are a pair: when the first has waited, it tells the second that it has
// begun, and the second waits at its end. Attention may stand between them.
enum { NO_PAIR, PAIR_FIRST, PAIR_SECOND };

// How `blocks` share row blocks: the first ones have one more than the others. The SM that is done
// last with the kernel before gets the last block, so it has least to do.
struct RowShare {
    int first, rows;
    __device__ __forceinline__ RowShare(int row_blocks, int least, int blocks, int block)
        : first(least * block + min(block, row_blocks - least * blocks)),
          rows(least + (block < row_blocks - least * blocks)) {}
};

// A matrix, and what each of this product's blocks brings into L2 of it: `most` bytes of a block's
// share, from `from` on. No more than a line of 128 bytes for each thread.
struct BroughtLines {
    const u8 *weights;
    int row_blocks, row_bytes; // bytes of a row block
    int blocks;                // that share the row blocks evenly; 0: nothing is brought
    int split;                 // times so many blocks, each with a part of the columns
    int from, most;

    static constexpr u32 NONE = 0xffffffff;
    // Where this thread's line begins, or NONE. Few instructions: a vector may be waiting.
    __device__ __forceinline__ u32 line() const {
        if ((int)blockIdx.x >= blocks * split) return NONE;
        const int block = quotient(blockIdx.x, split), part = (int)blockIdx.x - block * split;
        const RowShare share(row_blocks, quotient(row_blocks, blocks), blocks, block);
        const int begin = from + part * most, at = begin + 128 * (int)threadIdx.x;
        return at < min(begin + most, share.rows * row_bytes) ? (u32)share.first * row_bytes + at
                                                              : NONE;
    }
    __device__ __forceinline__ void bring(u32 line) const {
        if (line != NONE) prefetch_l2(weights + line);
    }

  private:
    // Of numbers below 2^20, rounded down; the half makes up for the reciprocal's error.
    static __device__ __forceinline__ int quotient(int a, int b) {
        return (int)__fdividef((float)a + 0.5f, (float)b);
    }
};

struct ProductArgs {
    const u8 *weights;
    const float *in;    // [T][K]
    const float *gamma; // [K] with a norm
    const float *beta;  // [K] with IN_LAYER, or null
    const float *extra; // OUT_QKV: bias [ROWS]; OUT_GATED, OUT_ACT: divisors; or null
    float *out;         // [T][ROWS], or [T][ROWS / 2] with OUT_GATED; zeros where halves meet
    const float *residual; // OUT_ADD: [T][ROWS]; may be `out` where no halves meet
    float *clear;          // [clears] become zero: in them a later product's halves meet
    u32 *begun;            // of a pair: not zero when the vectors of both are there
    int clears;
    int tokens; // vectors in use, at most T
    BroughtLines own, next; // of this matrix, before the wait; of a later one, at the end
};

// Fixed-point vectors and weights of 4 bits in units (docs/format.md), or of 8 bits (of the head:
// rows.cuh makes them). DIGITS: of an activation.
//
// In shared memory a vector is cut into chunks of 64 columns (32 with groups of 32). A chunk holds
// for every digit, the leading one first, 4 runs: run c has the digits of columns 8c .. 8c + 7 of
// each 32, in the order of the nibbles in a weight word. So one load gives a lane its part of B.
template <int K_, int GROUP_, int DIGITS_, int SPLIT_, int BITS_> struct Quantised {
    static constexpr int K = K_, GROUP = GROUP_, DIGITS = DIGITS_, SPLIT = SPLIT_, BITS = BITS_;
    // Smaller units make up 128 columns together: here these are one, the last one of a row block
    // what is left.
    static constexpr int GROUPS = 128 / GROUP;
    static constexpr int WEIGHT_BYTES = 2 * BITS * GROUP; // of a group; then scales (and zeros)
    static constexpr int GROUP_BYTES = WEIGHT_BYTES + (BITS == 4 ? 64 : 32);
    static constexpr int UNITS = (K + 127) / 128, CHUNK_UNITS = 1; // of a row block, of 128 columns
    static constexpr int LAST_GROUPS = K / GROUP - (UNITS - 1) * GROUPS;
    static constexpr bool PARTIAL = LAST_GROUPS != GROUPS;
    static constexpr int WORDS = BITS * GROUP / 64, B_WORDS = GROUP / 16; // of a lane and group
    static constexpr int UNIT_BYTES = GROUPS * GROUP_BYTES, ROW_BYTES = K / GROUP * GROUP_BYTES;
    static constexpr int COLUMNS = SPLIT == 1 ? K : (UNITS + SPLIT - 1) / SPLIT * 128; // of a block
    // registers of a unit's columns of the vector, if they are few enough to be kept
    static constexpr int HELD = GROUPS > 2 ? 0 : 8 + 2 * GROUPS;
    static constexpr int MOST_WARPS = 16;
    static constexpr bool BRINGS = BITS == 4; // a later matrix into L2
    static constexpr int CHUNK = GROUP == 32 ? 32 : 64, RUN = CHUNK / 4;
    typedef Quantised<K, GROUP, 2, SPLIT, BITS> Coarser;
    template <int BLOCKS> using Split = Quantised<K, GROUP, DIGITS, BLOCKS, BITS>;
    static_assert(K % GROUP == 0 && (GROUP == 32 || GROUP == 64 || GROUP == 128), "group size");

    // Bytes of the vector, and of what is known of its groups: a scale, and that times -sum, of
    // digits 0 and 1, and of digit 2.
    template <int T> struct Layout {
        static_assert(T == 1, "one vector at a time");
        static constexpr int X = (COLUMNS * DIGITS + 127) / 128 * 128;
        static constexpr int INFO = 16 * (COLUMNS / GROUP);
    };
    static constexpr int X_STEP = 128 * DIGITS, INFO_STEP = 2048 / GROUP; // of 128 columns

    const u8 *at; // of the next unit to copy, this lane's first bytes
    int own;      // bytes of a unit from these on
    u32 ring, words, scales;
    u32 x, info; // this lane's column of B; of its columns of the result
    i32 radix;   // these joined: the first times radix and the second

    static constexpr int STEP = UNIT_BYTES; // from a unit to the next of the row block

    __device__ __forceinline__ void open(const u8 *weights, i64 row_block, int unit, u32 to) {
        const u32 lane = threadIdx.x & 31;
        at = weights + row_block * ROW_BYTES + unit * UNIT_BYTES + 16 * lane;
        own = (int)keep(UNIT_BYTES - 16 * lane);
        ring = keep(to + 16 * lane);
        words = keep(to + (WORDS == 2 ? 8 : 16) * lane);
        scales = keep(to + WEIGHT_BYTES + (BITS == 4 ? 8 : 4) * (lane >> 2));
    }
    // The digits are the columns of B (beyond them the last one again), so a lane's two columns of
    // the result are digits 0 and 1, or twice digit 2.
    template <int T> __device__ __forceinline__ void look_at(u32 vector, u32 infos, int) {
        const u32 lane = threadIdx.x & 31, column = lane >> 2, pair = lane & 3;
        x = keep(vector + min((int)column, DIGITS - 1) * CHUNK + RUN * pair);
        info = keep(infos + (pair ? 8 : 0));
        radix = keep(pair ? 0 : 256);
    }
    // Starts copying the unit into the slot, where it lies as in memory. `last`: of its row block.
    __device__ __forceinline__ void copy(u32 slot, bool last) const {
        const int missing = PARTIAL && last ? UNIT_BYTES - LAST_GROUPS * GROUP_BYTES : 0;
#pragma unroll
        for (int i = 0; i < UNIT_BYTES; i += 512)
            if (!PARTIAL && i + 512 <= UNIT_BYTES)
                copy_async_16_of_128(ring + slot + i, at + i);
            else
                copy_async_16_of_128_if(i < own - missing, ring + slot + i, at + i);
    }
    // Groups of a unit.
    static __device__ __forceinline__ int groups_of(int unit) {
        return PARTIAL && unit == UNITS - 1 ? LAST_GROUPS : GROUPS;
    }

    // A unit's weights, and the columns of the vector that they meet, in registers: then its slot
    // is free.
    struct Weights {
        u32 q[2 * BITS];
        uint2 sz[GROUPS]; // (scale, zero) of rows r and r + 8
    };
    struct Columns {
        u32 b[8];
        float scale[GROUPS], less[GROUPS]; // known of the groups
    };
    __device__ __forceinline__ void load(u32 slot, Weights &w) const {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            load_words(words + slot + g * GROUP_BYTES, w.q + g * WORDS);
            w.sz[g] = load_scales(scales + slot + g * GROUP_BYTES);
        }
    }
    __device__ __forceinline__ void load_group(int unit, int g, Columns &c) const {
        const u32 from = x + (unit * 128 + g * GROUP) * DIGITS;
        u32 *b = c.b + g * B_WORDS;
#pragma unroll
        for (int k = 0; k < B_WORDS; k += 4) {
            if (GROUP == 32) {
                const uint2 v = load_shared_8(from);
                b[0] = v.x, b[1] = v.y;
            } else {
                const uint4 v = load_shared_16(from + k / 4 * (CHUNK * DIGITS));
                b[k] = v.x, b[k + 1] = v.y, b[k + 2] = v.z, b[k + 3] = v.w;
            }
        }
        const uint2 known = load_shared_8(info + (unit * GROUPS + g) * 16);
        c.scale[g] = __uint_as_float(known.x), c.less[g] = __uint_as_float(known.y);
    }
    __device__ __forceinline__ void load(int unit, Columns &c) const {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) load_group(unit, g, c);
    }
    // Adds the unit's sums of rows r and r + 8.
    __device__ __forceinline__ void multiply(const Weights &w, const Columns &c,
                                             float sum[2]) const {
#pragma unroll
        for (int g = 0; g < GROUPS; g++) multiply_group(w, c, g, sum);
    }
    // The same of number `unit` of its row block.
    template <int T>
    __device__ __forceinline__ void multiply(const Weights &w, int unit, float sum[2]) const {
        Columns c;
#pragma unroll
        for (int g = 0; g < GROUPS; g++) {
            if (g >= groups_of(unit)) break;
            load_group(unit, g, c);
            multiply_group(w, c, g, sum);
        }
    }
    // The lanes of digits 0 and 1 hold one part of a sum, those of digit 2 the other.
    template <int T> static __device__ __forceinline__ void finish(float sum[4]) {
        sum[0] += __shfl_xor_sync(0xffffffffu, sum[0], 1);
        sum[1] += __shfl_xor_sync(0xffffffffu, sum[1], 1);
    }

    // Four neighbouring columns as digits, and of their group the largest number and the sums of
    // digits 0 and 1 (`high`) and of digit 2 (`low`). Lane l has columns 4l .. 4l + 3 of a chunk of
    // 128, so a group is a number of neighbouring lanes. With two digits the first is missing: they
    // are `middle` and `last`, and `low` is the sum of the numbers.
    struct Placed {
        u32 first, middle, last, top;
        i32 low, high;
    };
    static constexpr int TOP = DIGITS == 3 ? 21 : 13;
    // 2^-exponent brings the largest of the group to 2^TOP .. 2^(TOP + 1), but for exponents that
    // binary32 does not have.
    static __device__ __forceinline__ int exponent_of(u32 top) {
        return min(max((int)(top >> 23) - 127 - TOP, -100), 127 - TOP);
    }
    template <int T> static __device__ __forceinline__ Placed prepare(float4 v) {
        const float most =
            max_or_nan(max_or_nan(fabsf(v.x), fabsf(v.y)), max_or_nan(fabsf(v.z), fabsf(v.w)));
        Placed p;
        p.top = group_max(__float_as_uint(most));
        const float down = __uint_as_float((u32)(127 - exponent_of(p.top)) << 23);
        // 1.5 * 2^23 + n has n in its low bits; half of each digit's range more, and the low bytes
        // are the digits, 128 too large each
        const u32 half = (DIGITS == 3 ? 0x808080 : 0x8080) - 0x4b400000;
        const u32 m0 = __float_as_uint(__fmaf_rn(v.x, down, 12582912.0f)) + half;
        const u32 m1 = __float_as_uint(__fmaf_rn(v.y, down, 12582912.0f)) + half;
        const u32 m2 = __float_as_uint(__fmaf_rn(v.z, down, 12582912.0f)) + half;
        const u32 m3 = __float_as_uint(__fmaf_rn(v.w, down, 12582912.0f)) + half;
        const u32 even = __byte_perm(m0, m2, 0x5140), odd = __byte_perm(m1, m3, 0x5140);
        p.last = __byte_perm(even, odd, 0x5410) ^ 0x80808080;
        p.middle = __byte_perm(even, odd, 0x7632) ^ 0x80808080;
        p.first = 0;
        if (DIGITS == 3)
            p.first =
                __byte_perm(__byte_perm(m0, m2, 0x0062), __byte_perm(m1, m3, 0x0062), 0x5410) ^
                0x80808080;
        p.high = 256 * byte_sum(p.first) + byte_sum(p.middle), p.low = byte_sum(p.last);
        if (DIGITS == 2) p.low += 256 * p.high;
        p.low = group_sum(p.low);
        if (DIGITS == 3) p.high = group_sum(p.high);
        return p;
    }
    // Where this lane's columns of a chunk of 128 lie from the chunk's start on, and their group.
    static __device__ __forceinline__ u32 place() {
        const u32 at = 4 * (threadIdx.x & 31);
        return at / CHUNK * (CHUNK * DIGITS) + at % CHUNK / 8 % 4 * RUN + at % CHUNK / 32 * 8 +
               at % 8;
    }
    static __device__ __forceinline__ u32 info_place() {
        return (threadIdx.x & 31) / LANES * 16;
    }
    template <int T>
    static __device__ __forceinline__ void store(const Placed &p, u8 *x, u8 *info) {
        if (DIGITS == 3) *(u32 *)x = p.first;
        *(u32 *)(x + (DIGITS - 2) * CHUNK) = p.middle;
        *(u32 *)(x + (DIGITS - 1) * CHUNK) = p.last;
        if ((threadIdx.x & 31) % LANES) return;
        // an infinity or NaN stays such
        const u32 bits = p.top < 0x7f800000 ? (u32)(127 + exponent_of(p.top)) << 23 : p.top;
        const float one = __uint_as_float(bits);
        const float high = one * 256, less = one * -(float)p.low;
        *(float4 *)info = DIGITS == 3 ? make_float4(high, high * -(float)p.high, one, less)
                                      : make_float4(one, less, 0, 0);
    }

  protected:
    static constexpr float HIGH_ROWS = BITS == 4 ? 0.0625f : 1;
    // Over the lanes of a group. redux would take the groups of a warp one after the other.
    static constexpr int LANES = GROUP / 4;
    static __device__ __forceinline__ u32 group_max(u32 v) {
        if (LANES == 32) return __reduce_max_sync(0xffffffffu, v);
#pragma unroll
        for (int o = LANES / 2; o > 0; o >>= 1) v = max(v, __shfl_xor_sync(0xffffffffu, v, o));
        return v;
    }
    static __device__ __forceinline__ i32 group_sum(i32 v) {
        if (LANES == 32) return __reduce_add_sync(0xffffffffu, v);
#pragma unroll
        for (int o = LANES / 2; o > 0; o >>= 1) v += __shfl_xor_sync(0xffffffffu, v, o);
        return v;
    }
    __device__ __forceinline__ void multiply_group(const Weights &w, const Columns &c, int g,
                                                   float sum[2]) const {
        i32 d[4] = {0, 0, 0, 0};
#pragma unroll
        for (int k = g * B_WORDS; k < (g + 1) * B_WORDS; k += 2) {
            if constexpr (BITS == 8) {
                mma_16x8x32(d, w.q + 2 * k, c.b[k], c.b[k + 1]);
            } else {
                // 32 columns: two words are an A operand, low nibbles rows r, high ones (times 16)
                // rows r + 8
                const u32 a[4] = {w.q[k] & 0x0f0f0f0f, w.q[k] & 0xf0f0f0f0, w.q[k + 1] & 0x0f0f0f0f,
                                  w.q[k + 1] & 0xf0f0f0f0};
                mma_16x8x32(d, a, c.b[k], c.b[k + 1]);
            }
        }
        const float s0 = f16_to_f32((u16)w.sz[g].x), z0 = f16_to_f32((u16)(w.sz[g].x >> 16));
        const float s1 = f16_to_f32((u16)w.sz[g].y), z1 = f16_to_f32((u16)(w.sz[g].y >> 16));
        const float scale = c.scale[g], less = c.less[g];
        sum[0] += s0 * (z0 * less + (float)(d[0] * radix + d[1]) * scale);
        sum[1] += s1 * (z1 * less + (float)(d[2] * radix + d[3]) * (scale * HIGH_ROWS));
    }
    static __device__ __forceinline__ uint2 load_scales(u32 from) {
        if (BITS == 4) return load_shared_8(from);
        const u32 two = __float_as_uint(load_shared_f32(from)), zero = 0x58000000; // 128
        return make_uint2((two & 0xffff) | zero, two >> 16 | zero);
    }
    static __device__ __forceinline__ void load_words(u32 from, u32 *q) {
        if constexpr (BITS == 8) {
#pragma unroll
            for (int k = 0; k < WORDS; k += 4) {
                const uint4 v = load_shared_16(from + 128 * k);
                q[k] = v.x, q[k + 1] = v.y, q[k + 2] = v.z, q[k + 3] = v.w;
            }
            return;
        }
        if (GROUP == 32) {
            const uint2 v = load_shared_8(from);
            q[0] = v.x, q[1] = v.y;
            return;
        }
        const uint4 v = load_shared_16(from);
        q[0] = v.x, q[1] = v.y, q[2] = v.z, q[3] = v.w;
        if (GROUP < 128) return;
        const uint4 w = load_shared_16(from + 512);
        q[4] = w.x, q[5] = w.y, q[6] = w.z, q[7] = w.w;
    }
};
template <int K, int GROUP, int DIGITS = 3, int SPLIT = 1>
using W4 = Quantised<K, GROUP, DIGITS, SPLIT, 4>;
template <int K, int GROUP, int DIGITS = 3, int SPLIT = 1>
using W8 = Quantised<K, GROUP, DIGITS, SPLIT, 8>;

// A row-major binary16 matrix of a multiple of 16 rows; a unit is 16 rows x 64 columns, whole lines
// of the cache, or 32 columns where 64 does not divide. A vector in shared memory is two planes:
// its numbers rounded to binary16, and what that leaves out; a scale per unit's columns brings the
// largest to 2^10 .. 2^11, far from both ends of binary16.
template <int K_, int SPLIT_ = 1> struct F16 {
    static constexpr int K = K_, GROUP = K % 64 ? 32 : 64, DIGITS = 2, SPLIT = SPLIT_;
    static constexpr int UNITS = K / GROUP, CHUNK_UNITS = 128 / GROUP; // of 128 columns
    static constexpr int UNIT_BYTES = 32 * GROUP, ROW_BYTES = 32 * K;
    static constexpr int COLUMNS = SPLIT == 1 ? K : ((K + 127) / 128 + SPLIT - 1) / SPLIT * 128;
    static constexpr int HELD = 0;        // a unit's columns of the vector are not kept
    static constexpr int MOST_WARPS = 14; // large units: fewer rings, so that they are deeper
    static constexpr bool BRINGS = false; // it was slower
    typedef F16<K, SPLIT> Coarser;
    template <int BLOCKS> using Split = F16<K, BLOCKS>;
    static_assert(K % GROUP == 0, "K must be a multiple of 32");

    static constexpr int PLANE = (2 * COLUMNS + 127) / 128 * 128 + 64; // planes differ in banks
    template <int T> struct Layout {
        static_assert(T == 1, "one vector at a time");
        static constexpr int X = 2 * PLANE, INFO = 4 * UNITS + 4;
    };
    static constexpr int X_STEP = 256, INFO_STEP = 512 / GROUP; // of 128 columns

    static constexpr int STEP = 2 * GROUP;

    const u8 *at; // this lane's bytes of the next unit
    u32 own, x, scale;

    __device__ __forceinline__ void open(const u8 *weights, i64 row_block, int unit, u32 to) {
        const u32 lane = threadIdx.x & 31;
        at = weights + ((row_block * 16 + (lane >> 2)) * K + unit * GROUP + 8 * (lane & 3)) * 2;
        own = keep(to + 16 * lane);
    }
    template <int T> __device__ __forceinline__ void look_at(u32 vector, u32 scales, int) {
        const u32 lane = threadIdx.x & 31, column = lane >> 2, pair = lane & 3;
        x = keep(vector + (column & 1) * PLANE + 16 * pair);
        scale = keep(scales);
    }
    __device__ __forceinline__ void copy(u32 slot, bool) const {
#pragma unroll
        for (int i = 0; i < GROUP / 32; i++) {
            copy_async_16_of_256(own + slot + 1024 * i, at + 64 * i);
            copy_async_16_of_256(own + slot + 1024 * i + 512, at + 64 * i + 16LL * K);
        }
    }
    // A unit's weights in registers: of each 32 columns two A operands. Then its slot is free.
    struct Weights {
        u32 a[GROUP / 32][4], b[GROUP / 32][4];
    };
    struct Columns {};
    __device__ __forceinline__ void load(u32 slot, Weights &w) const {
#pragma unroll
        for (int i = 0; i < GROUP / 32; i++) {
            const uint4 r0 = load_shared_16(own + slot + 1024 * i);
            const uint4 r8 = load_shared_16(own + slot + 1024 * i + 512);
            w.a[i][0] = r0.x, w.a[i][1] = r8.x, w.a[i][2] = r0.y, w.a[i][3] = r8.y;
            w.b[i][0] = r0.z, w.b[i][1] = r8.z, w.b[i][2] = r0.w, w.b[i][3] = r8.w;
        }
    }
    // As of W4.
    template <int T>
    __device__ __forceinline__ void multiply(const Weights &w, int unit, float sum[2]) const {
        float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0}; // two chains hide mma's latency
#pragma unroll
        for (int i = 0; i < GROUP / 32; i++) {
            const uint4 b = load_shared_16(x + 2 * GROUP * unit + 64 * i);
            mma_16x8x16(d, w.a[i], b.x, b.y);
            mma_16x8x16(e, w.b[i], b.z, b.w);
        }
        const float f = load_shared_f32(scale + 4 * unit);
        sum[0] += f * ((d[0] + e[0]) + (d[1] + e[1]));
        sum[1] += f * ((d[2] + e[2]) + (d[3] + e[3]));
    }
    template <int T> static __device__ __forceinline__ void finish(float *) {}

    struct Placed {
        u32 top01, top23, rest01, rest23;
        int exponent;
    };
    template <int T> static __device__ __forceinline__ Placed prepare(float4 v) {
        float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
#pragma unroll
        for (int o = GROUP / 8; o > 0; o >>= 1)
            most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
        Placed p;
        p.exponent = min(max((int)(__float_as_uint(most) >> 23) - 127 - 10, -100), 117);
        const float down = __uint_as_float((u32)(127 - p.exponent) << 23);
        v.x *= down, v.y *= down, v.z *= down, v.w *= down;
        p.top01 = f32_to_f16x2(v.x, v.y), p.top23 = f32_to_f16x2(v.z, v.w);
        p.rest01 =
            f32_to_f16x2(v.x - f16_to_f32((u16)p.top01), v.y - f16_to_f32((u16)(p.top01 >> 16)));
        p.rest23 =
            f32_to_f16x2(v.z - f16_to_f32((u16)p.top23), v.w - f16_to_f32((u16)(p.top23 >> 16)));
        return p;
    }
    // As of W4.
    static __device__ __forceinline__ u32 place() {
        return 8 * (threadIdx.x & 31);
    }
    static __device__ __forceinline__ u32 info_place() {
        return 4 * (threadIdx.x & 31) / GROUP * 4;
    }
    template <int T>
    static __device__ __forceinline__ void store(const Placed &p, u8 *x, u8 *info) {
        *(uint2 *)x = make_uint2(p.top01, p.top23);
        *(uint2 *)(x + PLANE) = make_uint2(p.rest01, p.rest23);
        if (4 * (threadIdx.x & 31) % GROUP == 0)
            *(float *)info = __uint_as_float((u32)(127 + p.exponent) << 23);
    }
};

// A warp's sums of a row block to their place. Lane l has row l / 4 of the block and that + 8.
template <int T>
__device__ __forceinline__ void store_part(float *part, const float *sum, int lane) {
    const int pair = lane & 3;
    part += lane >> 2;
    if (T == 1) {
        if (pair == 0) part[0] = sum[0], part[8] = sum[1];
        return;
    }
    if (2 * pair < T) part[32 * pair] = sum[0], part[32 * pair + 8] = sum[2];
    if (2 * pair + 1 < T) part[32 * pair + 16] = sum[1], part[32 * pair + 24] = sum[3];
}

// How warps share row blocks: every warp has one of RANGES ranges of columns, whole chunks of 128.
// PARTS of them are a block's; the SPLIT blocks of a cluster have theirs one after the other. With
// few columns there are fewer ranges than warps, and TEAMS of PARTS warps take row blocks in turn;
// the warps of a range then share its chunks of the vector, too.
template <class M, int WARPS> struct WarpShare {
    static constexpr int CHUNKS = (M::K + 127) / 128, SPLIT = M::SPLIT;
    static constexpr int OWN_CHUNKS = (CHUNKS + SPLIT - 1) / SPLIT; // of a block, at most
    static __device__ constexpr int parts() {
        int n = WARPS;
        while (n > 1 && n * SPLIT > CHUNKS) n /= 2;
        return n;
    }
    static constexpr int PARTS = parts(), RANGES = PARTS * SPLIT, TEAMS = WARPS / PARTS;
    static constexpr int MOST = (CHUNKS + RANGES - 1) / RANGES;   // chunks of a range
    static constexpr int STEPS = (MOST + TEAMS - 1) / TEAMS;      // of these a warp prepares
    static constexpr bool EVEN = STEPS * WARPS * SPLIT == CHUNKS; // every warp has so many
    static constexpr bool UNIFORM = // all ranges have so many units:
        CHUNKS % RANGES == 0 && M::UNITS == CHUNKS * M::CHUNK_UNITS;
    static constexpr int UNITS = M::UNITS / RANGES;

    static __device__ __forceinline__ int first_chunk(int range) { return CHUNKS * range / RANGES; }
    static __device__ __forceinline__ int first_unit(int range) {
        if (UNIFORM) return UNITS * range;
        return min(first_chunk(range) * M::CHUNK_UNITS, M::UNITS);
    }
    // Of this block: its place in the cluster; where the chunks of the block at `rank` begin.
    static __device__ __forceinline__ int rank() { return SPLIT == 1 ? 0 : blockIdx.x % SPLIT; }
    static __device__ __forceinline__ int first_of(int rank) {
        return SPLIT == 1 ? rank * CHUNKS : first_chunk(rank * PARTS);
    }
    static __device__ __forceinline__ int part_of(int warp) {
        return TEAMS == 1 ? warp : warp % PARTS;
    }
    static __device__ __forceinline__ int range_of(int warp) {
        return rank() * PARTS + part_of(warp);
    }
    static __device__ __forceinline__ int team_of(int warp) {
        return TEAMS == 1 ? 0 : warp / PARTS;
    }
    // Columns of the chunks from `begin` to `end`.
    static __device__ __forceinline__ int columns_between(int begin, int end) {
        return min(128 * end, M::K) - 128 * begin;
    }
    // Columns that a warp prepares.
    static __device__ __forceinline__ int columns_of(int warp) {
        const int range = range_of(warp), end = first_chunk(range + 1);
        if (TEAMS == 1) return columns_between(first_chunk(range), end);
        int columns = 0;
        for (int chunk = first_chunk(range) + team_of(warp); chunk < end; chunk += TEAMS)
            columns += min(128, M::K - 128 * chunk);
        return columns;
    }
};

// Shared memory of a block, in this order: the vectors, what is known of their groups, the moments
// of the norm, the partial sums, in a cluster the block's sums, the rings. RING: units of a warp's.
template <class M, int ROWS, int T, int WARPS, int RING, int BLOCKS, int IN> struct ProductShape {
    typedef WarpShare<M, WARPS> Share;
    static constexpr int ROW_BLOCKS = (ROWS + 15) / 16, CLUSTERS = BLOCKS / M::SPLIT;
    static constexpr bool HALVES = T == 1 && M::SPLIT > 1; // the sums of two blocks meet in memory
    static constexpr int CLUSTER = T == 1 ? 1 : M::SPLIT;  // those of so many in shared memory
    // Beside products that take LayerNorm of so wide a vector, 14 warps of 72 registers, there are
    // 56 for these.
    static constexpr bool SPARES =
        NORM == NORM_LAYER && IN == IN_PLAIN && ROWS > WIDE_NORM && ROWS % 2048;
    // A warp keeps the vector's columns in registers.
    static constexpr bool HOLDS = T == 1 && Share::UNIFORM && M::K % 128 == 0 && M::HELD > 0 &&
                                  Share::UNITS * M::HELD <= 24 && !SPARES;
    static __device__ __forceinline__ int rank() { return CLUSTER == 1 ? 0 : Share::rank(); }
    static constexpr int BLOCK_ROWS = (ROW_BLOCKS + CLUSTERS - 1) / CLUSTERS; // of a block
    static __device__ constexpr int align(int bytes) { return (bytes + 127) / 128 * 128; }
    static constexpr int X = 0;
    static constexpr int INFO = align(T * M::template Layout<T>::X);
    static constexpr int MOMENTS = INFO + align(T * M::template Layout<T>::INFO);
    static constexpr int ENTRIES = // of a token; those of T > 1: ProductVectors
        IN == IN_PLAIN ? 0 : T == 1 ? WARPS : Share::OWN_CHUNKS + 1 + M::SPLIT;
    static constexpr int BARRIERS = CLUSTER > 1 ? 16 : 0; // see ProductVectors
    static constexpr int SUMS = MOMENTS + align(8 * T * ENTRIES + BARRIERS);

    // row blocks whose partial sums there is room for before they are added up, as many of each
    // team: about 16 KB; of several vectors 32 KB, or up to 96 that rings of four units leave
    static constexpr int ROW_SUMS = Share::PARTS * T * 16 * 4, BESIDE = 17 << 10; // those that meet
    static constexpr int LEFT = SHARED_LIMIT - SUMS - BESIDE - 4 * WARPS * M::UNIT_BYTES;
    static constexpr int LEAST = 32 / T, FIT = LEFT / ROW_SUMS < 96 / T ? LEFT / ROW_SUMS : 96 / T;
    static constexpr int ROUNDS = (T == 1 ? 16 : FIT > LEAST ? FIT : LEAST) / Share::TEAMS;
    static constexpr int MOST = Share::TEAMS * (ROUNDS ? ROUNDS : 1);
    static constexpr int SPAN = BLOCK_ROWS < MOST ? BLOCK_ROWS : MOST;
    // row blocks after which the blocks of a cluster add their sums, about 16 KB: whole spans
    static constexpr int SPANS = (BLOCK_ROWS + SPAN - 1) / SPAN, ROOM = 256 / T / SPAN;
    static constexpr int MEET = SPAN * (SPANS < ROOM ? SPANS : ROOM ? ROOM : 1);
    static constexpr int STORED = (MEET + CLUSTER - 1) / CLUSTER; // by a block of the cluster
    static constexpr int GIVEN = CLUSTER == 1 ? 0 : CLUSTER * STORED * T * 16 * 4;
    static constexpr int BLOCK_SUMS = SUMS + align(SPAN * ROW_SUMS);
    static constexpr int RINGS = BLOCK_SUMS + align(GIVEN);
    static constexpr int SMEM = RINGS + WARPS * RING * M::UNIT_BYTES;
};

// In pairs, then pairs of these, and so on: no long chain. The array is lost.
template <int N> __device__ __forceinline__ float sum_in_pairs(float (&v)[N]) {
#pragma unroll
    for (int step = 1; step < N; step *= 2)
#pragma unroll
        for (int i = 0; i + step < N; i += 2 * step) v[i] += v[i + step];
    return v[0];
}

// Brings the vectors into shared memory as M wants them, chunk by chunk. With one token all loads
// of a warp are on their way before the first is used, and gamma and beta, which depend on nothing,
// come before the wait: as far as there are registers, or else into L2. RMSNorm's factor is left
// for the end; LayerNorm is done here.
template <class M, int T, int WARPS, int IN> struct ProductVectors {
    typedef WarpShare<M, WARPS> Share;
    static constexpr int K = M::K, SPLIT = M::SPLIT;
    static constexpr int STEPS = T * Share::STEPS; // chunks of a warp
    static constexpr bool EARLY = T == 1 && IN != IN_PLAIN;
    static constexpr int MOST = T > 1 ? 8 : 9; // loads that there are registers for (eight_sums)
    static constexpr int PASSES = EARLY ? 1 : (STEPS + MOST - 1) / MOST;
    static constexpr int STRETCH = (STEPS + PASSES - 1) / PASSES; // loads on their way at once
    // chunks whose instructions mix before the first is stored
    static constexpr int LATER = T > 1 ? 0 : STRETCH < 3 ? STRETCH - 1 : 2;
    // The moments' entries of a token: one for each warp or for each of the block's chunks. Behind
    // those of all of several tokens there is one of each for every block of the cluster, and with
    // LayerNorm their mean and reciprocal deviation. In a cluster two barriers follow: of the sums
    // and moments that blocks give to each other, and of the moments with LayerNorm.
    static constexpr int ENTRIES = T == 1 ? WARPS : Share::OWN_CHUNKS;
    static constexpr int OF_BLOCKS = T * ENTRIES, NORMS = OF_BLOCKS + SPLIT * T;
    static constexpr int BARRIERS = IN == IN_PLAIN ? 0 : NORMS + T;

    // steps whose gamma and beta come early; with LayerNorm registers are scarce. Several vectors
    // have the same ones.
    static constexpr bool SAME = T > 1 && IN != IN_PLAIN && Share::STEPS <= 2;
    static constexpr int LAYER_GAMMAS = WARPS <= 12 && STEPS <= 3 ? STEPS : STEPS > 3 ? 0 : 2;
    static constexpr int GAMMAS = SAME                           ? Share::STEPS
                                  : !EARLY                       ? 0
                                  : IN != IN_LAYER || STEPS < 2 ? STEPS
                                                                 : LAYER_GAMMAS;
    static constexpr int BETAS =
        IN == IN_LAYER && (SAME || (EARLY && GAMMAS == STEPS)) ? GAMMAS : 0;
    static_assert(!SAME || STRETCH % Share::STEPS == 0, "a stretch has whole vectors");

    const float *in; // this lane's columns of its first chunk
    int origin;      // of this block's chunks
    int first, end;  // of this warp's; they are TEAMS apart
    float4 gamma[GAMMAS ? GAMMAS : 1], beta[BETAS ? BETAS : 1];

    __device__ __forceinline__ explicit ProductVectors(const ProductArgs &args) {
        const int warp = threadIdx.x >> 5, range = Share::range_of(warp);
        origin = Share::first_of(Share::rank());
        first = Share::first_chunk(range) + Share::team_of(warp);
        end = Share::first_chunk(range + 1);
        in = keep(args.in + column_of(0));
    }
    static __device__ __forceinline__ float4 constant(const float *from, int i, float otherwise) {
        if (!from || i >= K) return make_float4(otherwise, otherwise, otherwise, otherwise);
        return *(const float4 *)(from + i);
    }
    __device__ __forceinline__ void load_constants(const ProductArgs &args) {
#pragma unroll
        for (int k = 0; k < (EARLY ? STEPS : GAMMAS); k++) {
            const int i = inside(k) ? column_of(k) : K;
            if (k < GAMMAS) gamma[k] = constant(args.gamma, i, 1);
            if (k < BETAS) beta[k] = constant(args.beta, i, 0);
            if (i < K && k >= GAMMAS) prefetch_l2(args.gamma + i);
            if (i < K && k >= BETAS && args.beta) prefetch_l2(args.beta + i);
        }
    }
    // The mean of `all` columns and their squares about it, out of the same of parts of them.
    template <class Entry, class Columns>
    static __device__ __forceinline__ float2 united(int entries, int all, const Entry &entry,
                                                    const Columns &columns) {
        float mean = 0, squares = 0;
        for (int e = threadIdx.x & 31; e < entries; e += 32) mean += entry(e).x * columns(e);
        mean = warp_sum(mean) / all;
        for (int e = threadIdx.x & 31; e < entries; e += 32) {
            const float off = entry(e).x - mean;
            squares += entry(e).y + off * off * columns(e);
        }
        return make_float2(mean, warp_sum(squares));
    }
    // Mean and reciprocal deviation.
    static __device__ __forceinline__ float2 norm_of(float2 m) {
        return make_float2(m.x, rsqrtf(m.y / K + NORM_EPS));
    }
    static __device__ __forceinline__ int chunks_of_block() {
        if (SPLIT == 1) return Share::CHUNKS;
        return Share::first_of(Share::rank() + 1) - Share::first_of(Share::rank());
    }
    static __device__ __forceinline__ float sum_of(float4 v) {
        return (v.x + v.y) + (v.z + v.w);
    }
    static __device__ __forceinline__ float squares_of(float4 v, float mean) {
        v.x -= mean, v.y -= mean, v.z -= mean, v.w -= mean;
        return (v.x * v.x + v.y * v.y) + (v.z * v.z + v.w * v.w);
    }
    static __device__ __forceinline__ void affine(float4 &v, float4 g, float4 b) {
        v.x = v.x * g.x + b.x, v.y = v.y * g.y + b.y, v.z = v.z * g.z + b.z, v.w = v.w * g.w + b.w;
    }

    // What a warp prepares in step `step`: its chunk number `nth` of a token; false: none is left.
    __device__ __forceinline__ bool chunk_of(int step, int tokens, int *token, int *nth) const {
        *token = T == 1 ? 0 : step / Share::STEPS;
        *nth = T == 1 ? step : step % Share::STEPS;
        return (Share::EVEN || first + *nth * Share::TEAMS < end) && (T == 1 || *token < tokens);
    }
    // This lane's first column of a chunk, and whether it lies in the vector.
    __device__ __forceinline__ int column_of(int nth) const {
        return 128 * (first + Share::TEAMS * nth) + 4 * (threadIdx.x & 31);
    }
    __device__ __forceinline__ bool inside(int nth) const {
        return (K % 128 == 0 || column_of(nth) < K) &&
               (Share::EVEN || first + nth * Share::TEAMS < end);
    }
    __device__ __forceinline__ float4 fetch(int step, int tokens) const {
        int t, nth;
        if (chunk_of(step, tokens, &t, &nth) && inside(nth))
            return load_float4_l2(in + (i64)t * K + 128 * Share::TEAMS * nth);
        return make_float4(0, 0, 0, 0);
    }
    __device__ __forceinline__ void fetch_all(float4 v[STRETCH], int from, int tokens) const {
#pragma unroll
        for (int k = 0; k < STRETCH; k++) v[k] = fetch(from + k, tokens);
    }

    // `meanwhile` is called while loads are on their way, with the number of the pass. FETCHED: the
    // first stretch is there or on its way.
    template <bool FETCHED, class Meanwhile>
    __device__ __forceinline__ void load(const ProductArgs &args, int tokens, float4 v[STRETCH],
                                         u8 *x, u8 *infos, float2 *moments,
                                         const Meanwhile &meanwhile) const {
        typedef typename M::template Layout<T> L;
        const int warp = threadIdx.x >> 5, lane = threadIdx.x & 31;
        x += keep((first - origin) * M::X_STEP + M::place());
        infos += keep((first - origin) * M::INFO_STEP + M::info_place());
        float squares = 0; // T == 1
        if (T > 1 && IN == IN_LAYER && PASSES > 1) { // too much to keep in registers
#pragma unroll 1
            for (int from = 0; from < STEPS; from += STRETCH) {
                fetch_all(v, from, tokens);
                note_moments(v, from, tokens, moments);
            }
            unite_moments(tokens, moments);
        }
#pragma unroll 1
        for (int from = 0; from < STEPS; from += STRETCH) {
            if (!FETCHED || from > 0) fetch_all(v, from, tokens);
            meanwhile(from / STRETCH);
            if (T == 1 && IN == IN_LAYER) normalise(v, moments);
            if (T > 1 && IN == IN_RMS) note_squares(v, from, tokens, moments);
            if (T > 1 && IN == IN_LAYER && PASSES == 1) {
                note_moments(v, from, tokens, moments);
                unite_moments(tokens, moments);
            }
            typename M::Placed placed[STRETCH];
#pragma unroll
            for (int k = 0; k < STRETCH + LATER; k++) {
                int t, nth;
                if (k < STRETCH) {
                    const bool some = chunk_of(from + k, tokens, &t, &nth);
                    if (IN == IN_RMS && T == 1) squares += squares_of(v[k], 0);
                    if (IN == IN_LAYER && T > 1 && some)
                        shift(v[k], moments[NORMS + t], inside(nth));
                    if (IN != IN_PLAIN) {
                        const int i = some ? column_of(nth) : K, c = SAME ? k % Share::STEPS : k;
                        affine(v[k], c < GAMMAS ? gamma[c] : constant(args.gamma, i, 1),
                               IN != IN_LAYER ? make_float4(0, 0, 0, 0)
                               : c < BETAS    ? beta[c]
                                              : constant(args.beta, i, 0));
                    }
                    placed[k] = M::template prepare<T>(v[k]);
                }
                const int made = k - LATER;
                if (made >= 0 && chunk_of(from + made, tokens, &t, &nth) && inside(nth))
                    M::template store<T>(placed[made],
                                         x + nth * Share::TEAMS * M::X_STEP + t * L::X,
                                         infos + nth * Share::TEAMS * M::INFO_STEP + t * L::INFO);
            }
        }
        if (T == 1 && IN == IN_RMS) {
            squares = warp_sum(squares);
            if (lane == 0) ((float *)moments)[warp] = squares; // close together: few loads later
        }
    }
    // Several tokens: what the matrix wants to know beside the numbers, of the chunks that this
    // warp has prepared.
    __device__ __forceinline__ void note_sums(const M &matrix, int tokens) const {
        __syncwarp();
#pragma unroll 1
        for (int c = first; c < end; c += Share::TEAMS)
            for (int u = c * M::CHUNK_UNITS; u < min((c + 1) * M::CHUNK_UNITS, M::UNITS); u++)
                matrix.note_sums(u, tokens);
    }
    // A token's sum of squares in this block, for all blocks of the cluster: one warp's work for
    // each, when all have noted theirs.
    static __device__ __forceinline__ void give_squares(float2 *moments) {
        const int t = threadIdx.x >> 5;
        if (t >= T) return;
        float squares = 0;
        for (int e = threadIdx.x & 31; e < chunks_of_block(); e += 32)
            squares += moments[t * ENTRIES + e].x;
        give(moments, t, make_float2(warp_sum(squares), 0));
    }
    // RMSNorm's factor of a token.
    static __device__ __forceinline__ float factor(const float2 *moments, int token) {
        constexpr int N = T > 1 ? SPLIT : WARPS;
        float squares[N] = {};
        if constexpr (T == 1) {
#pragma unroll
            for (int e = 0; e < N; e++) squares[e] = ((const float *)moments)[e];
        } else if constexpr (SPLIT > 1) {
#pragma unroll
            for (int r = 0; r < N; r++) squares[r] = moments[OF_BLOCKS + r * T + token].x;
        } else {
#pragma unroll 8
            for (int e = 0; e < ENTRIES; e++) squares[0] += moments[token * ENTRIES + e].x;
        }
        return rsqrtf(sum_in_pairs(squares) / K + NORM_EPS);
    }

  private:
    // This block's moments of a token, to all blocks of the cluster.
    static __device__ __forceinline__ void give(float2 *moments, int token, float2 m) {
        const int lane = threadIdx.x & 31, at = OF_BLOCKS + Share::rank() * T + token;
        const u32 barrier = shared_address(moments + BARRIERS) + (IN == IN_LAYER ? 8 : 0);
        if (lane < SPLIT) give_8(shared_address(moments + at), barrier, lane, m);
    }
    static __device__ __forceinline__ void shift(float4 &v, float2 m, bool inside) {
        const float s = inside ? m.y : 0; // columns past the end stay zero
        v.x = (v.x - m.x) * s, v.y = (v.y - m.x) * s, v.z = (v.z - m.x) * s, v.w = (v.w - m.x) * s;
    }
    // Eight sums over the lanes at once, of which lane l gets number l / 4.
    static __device__ __forceinline__ float eight_sums(float s[8]) {
        const int lane = threadIdx.x & 31;
#pragma unroll
        for (int n = 4; n > 0; n /= 2) {
            const bool upper = lane & 4 * n;
#pragma unroll
            for (int k = 0; k < n; k++) {
                const float given = __shfl_xor_sync(0xffffffffu, upper ? s[k] : s[k + n], 4 * n);
                s[k] = (upper ? s[k + n] : s[k]) + given;
            }
        }
        s[0] += __shfl_xor_sync(0xffffffffu, s[0], 2);
        return s[0] + __shfl_xor_sync(0xffffffffu, s[0], 1);
    }
    // Several tokens: the squares of a stretch's chunks. Lane 4k has those of chunk number k.
    __device__ __forceinline__ void note_squares(const float4 v[STRETCH], int from, int tokens,
                                                 float2 *moments) const {
        const int lane = threadIdx.x & 31;
        float s[8];
#pragma unroll
        for (int k = 0; k < 8; k++) s[k] = k < STRETCH ? squares_of(v[k], 0) : 0;
        const float squares = eight_sums(s);
        int t, nth;
        if (chunk_of(from + lane / 4, tokens, &t, &nth) && lane % 4 == 0 && lane / 4 < STRETCH)
            moments[entry_of(t, nth)].x = squares;
    }
    // The same of the means and of the squares about them.
    __device__ __forceinline__ void note_moments(const float4 v[STRETCH], int from, int tokens,
                                                 float2 *moments) const {
        const int lane = threadIdx.x & 31;
        float s[8];
#pragma unroll
        for (int k = 0; k < 8; k++) s[k] = k < STRETCH ? sum_of(v[k]) : 0;
        int t, nth;
        const bool some = chunk_of(from + lane / 4, tokens, &t, &nth) && lane / 4 < STRETCH;
        const float sum = eight_sums(s);
        const float mean = some ? sum / min(128, K - 128 * (first + nth * Share::TEAMS)) : 0;
#pragma unroll
        for (int k = 0; k < 8; k++) {
            const float m = __shfl_sync(0xffffffffu, mean, 4 * k);
            int of, chunk;
            chunk_of(from + k, tokens, &of, &chunk);
            s[k] = k < STRETCH && inside(chunk) ? squares_of(v[k], m) : 0;
        }
        const float squares = eight_sums(s);
        if (some && lane % 4 == 0) moments[entry_of(t, nth)] = make_float2(mean, squares);
    }
    __device__ __forceinline__ int entry_of(int token, int nth) const {
        return token * ENTRIES + first - origin + nth * Share::TEAMS;
    }
    // What LayerNorm needs of each token, out of the chunks of all blocks: one warp's work for
    // each.
    __device__ __forceinline__ void unite_moments(int tokens, float2 *moments) const {
        static_assert(T <= WARPS, "a warp for each token");
        const int t = threadIdx.x >> 5, lane = threadIdx.x & 31;
        float2 m = make_float2(0, 0);
        __syncthreads();
        if (t < tokens) {
            const int chunks = chunks_of_block();
            m = united(
                chunks, Share::columns_between(origin, origin + chunks),
                [&](int e) { return moments[t * ENTRIES + e]; },
                [&](int e) { return min(128, K - 128 * (origin + e)); });
            if (SPLIT > 1) give(moments, t, m);
        }
        if constexpr (SPLIT > 1) {
            const u32 barrier = shared_address(moments + BARRIERS) + 8;
            if (threadIdx.x == 0) barrier_expect(barrier, 8 * tokens * SPLIT);
            barrier_wait(barrier, 0);
            if (t < tokens)
                m = united(
                    SPLIT, K, [&](int r) { return moments[OF_BLOCKS + r * T + t]; },
                    [&](int r) {
                        return Share::columns_between(Share::first_of(r), Share::first_of(r + 1));
                    });
        }
        if (t < tokens && lane == 0) moments[NORMS + t] = norm_of(m);
        __syncthreads();
    }
    // One token: the warps' moments, a barrier, and the vector normalised in registers.
    __device__ __forceinline__ void normalise(float4 v[STRETCH], float2 *moments) const {
        const int warp = threadIdx.x >> 5;
        float sum = 0, squares = 0;
#pragma unroll
        for (int k = 0; k < STRETCH; k++) sum += sum_of(v[k]);
        const float mean = warp_sum(sum) / max(Share::columns_of(warp), 1);
#pragma unroll
        for (int k = 0; k < STRETCH; k++)
            if (inside(k)) squares += squares_of(v[k], mean);
        squares = warp_sum(squares);
        if ((threadIdx.x & 31) == 0) moments[warp] = make_float2(mean, squares);
        __syncthreads();
        const float2 m = norm_of(united(
            WARPS, K, [&](int e) { return moments[e]; },
            [&](int e) { return Share::columns_of(e); }));
#pragma unroll
        for (int k = 0; k < STRETCH; k++) shift(v[k], m, inside(k));
    }
};

__device__ __forceinline__ float activation(float x) {
    return ACTIVATION == ACT_GELU ? 0.5f * x * (1 + erff(x * 0.70710678f))
                                  : __fdividef(x, 1 + __expf(-x));
}

// What becomes of the sums of a block's row blocks, SPAN of them at a time. The parts of each,
// which its warps have, are added and stored. In a cluster every block's sums go to the one that
// stores them, block r of the cluster every SPLITth row block from the r-th on, and MEET row blocks
// meet at a time; RMSNorm's squares come with the first ones.
template <class M, int ROWS, int T, int WARPS, int RING, int BLOCKS, int IN, int OUT>
struct ProductSums {
    typedef ProductShape<M, ROWS, T, WARPS, RING, BLOCKS, IN> S;
    typedef ProductVectors<M, T, WARPS, IN> Vectors;
    static constexpr int SPLIT = S::CLUSTER, PARTS = S::Share::PARTS;
    static_assert(WARPS * 32 % (16 * T) == 0, "a thread stores numbers of one token");

    const ProductArgs &args;
    float2 *moments;
    float *parts;   // [PARTS][SPAN][T][16]
    float *given;   // in a cluster, by each of its blocks: [SPLIT][STORED][T][16]
    int first_row, rows, tokens; // row blocks; vectors in use
    int rank, token;             // in the cluster; whose numbers this thread stores
    u32 barrier, parity;         // of what is given
    float kept;                  // what the first sum that this thread stores meets
    float known;                 // RMSNorm's factor of this thread's token

    __device__ __forceinline__ ProductSums(const ProductArgs &args, u8 *smem)
        : args(args), moments((float2 *)(smem + S::MOMENTS)), parts((float *)(smem + S::SUMS)),
          given((float *)(smem + S::BLOCK_SUMS)), tokens(T == 1 ? 1 : args.tokens), rank(S::rank()),
          token(T == 1 ? 0 : threadIdx.x / 16 % T),
          barrier(shared_address(moments + Vectors::BARRIERS)), parity(0), kept(0), known(1) {
        if constexpr (SPLIT > 1) {
            if (threadIdx.x == 0) barrier_init(barrier, 1), barrier_init(barrier + 8, 1);
            barrier_init_fence();
            cluster_arrive();
        }
    }
    // How many of `rows` row blocks this block stores.
    __device__ __forceinline__ int stored(int rows) const {
        return SPLIT == 1 ? rows : (rows - rank + SPLIT - 1) / SPLIT;
    }
    // The row whose sum this thread stores first, if it stores any (but with OUT_GATED).
    __device__ __forceinline__ int own_row() const {
        return (first_row + threadIdx.x / (16 * T) * SPLIT + rank) * 16 + threadIdx.x % 16;
    }
    __device__ __forceinline__ bool stores() const {
        return threadIdx.x < stored(rows) * 16 * T && own_row() < ROWS && token < tokens;
    }
    // What the first sum meets, in time for the end: a constant, or the residual when it is there.
    __device__ __forceinline__ void fetch_constant() {
        if ((OUT == OUT_QKV || OUT == OUT_ACT) && args.extra && stores())
            kept = args.extra[own_row()];
    }
    __device__ __forceinline__ void fetch_residual() {
        if (OUT == OUT_ADD && stores())
            kept = load_f32_l2(args.residual + (i64)token * ROWS + own_row());
    }
    // Some row blocks, of which `from` came before, when all warps have stored their parts.
    __device__ __forceinline__ void pass_on(int from, int some) {
        if constexpr (SPLIT == 1) {
            if (IN == IN_RMS && T > 1 && from == 0) known = Vectors::factor(moments, token);
            store<PARTS, S::SPAN>(parts, from, some);
            if (from + S::SPAN < rows) __syncthreads();
        } else {
            meet(from, some);
        }
    }

  private:
    // That of one token comes while its sums are on their way.
    __device__ __forceinline__ float factor() const {
        return IN == IN_RMS && T == 1 ? Vectors::factor(moments, 0) : known;
    }
    __device__ __forceinline__ void give(int from, int some) const {
        float *mine = given + rank * S::STORED * 16 * T; // each block has its place there
        for (int o = threadIdx.x; o < some * 16 * T; o += WARPS * 32) {
            float y[PARTS];
#pragma unroll
            for (int p = 0; p < PARTS; p++) y[p] = parts[p * S::SPAN * T * 16 + o];
            const int row = from + o / (16 * T);
            float *to = mine + row / SPLIT * (16 * T) + o % (16 * T);
            give_4(shared_address(to), barrier, row % SPLIT, sum_in_pairs(y));
        }
    }
    // The block's own sums first; those of the cluster's blocks when there are enough.
    __device__ __forceinline__ void meet(int from, int some) {
        const int noted = from % S::MEET, end = from + some;
        give(noted, some);
        if (IN == IN_RMS && from == 0) Vectors::give_squares(moments);
        if (end < rows && end % S::MEET) {
            __syncthreads();
            return;
        }
        const bool norm = IN == IN_RMS && from == noted; // moments come with the first sums
        if (threadIdx.x == 0)
            barrier_expect(barrier, SPLIT * (64 * T * stored(noted + some) + (norm ? 8 * T : 0)));
        barrier_wait(barrier, parity);
        parity ^= 1;
        if (norm) known = Vectors::factor(moments, token);
        store<SPLIT, S::STORED>(given, from - noted, noted + some);
        if (end < rows) cluster_sync(); // before the others' next ones come
    }
    // Adds N parts of each number of `some` row blocks, [PART_ROWS][T][16] apart, and stores.
    template <int N, int PART_ROWS>
    __device__ __forceinline__ void store(const float *sums, int from, int some) const {
        constexpr int OUT_ROWS = OUT == OUT_GATED ? ROWS / 2 : ROWS;
        const int numbers = stored(some) * 16 * T;
        for (int o = threadIdx.x; (o & ~31) < numbers; o += WARPS * 32) { // whole warps shuffle
            const int r = o / (16 * T) * SPLIT + rank, t = T == 1 ? 0 : o / 16 % T, n = o % 16;
            const int row = (first_row + from + r) * (OUT == OUT_GATED ? 8 : 16) + n;
            float y = 0;
            if (o < numbers) {
                float v[N];
#pragma unroll
                for (int p = 0; p < N; p++)
                    v[p] = sums[((p * PART_ROWS + r / SPLIT) * T + t) * 16 + n];
                y = sum_in_pairs(v) * factor();
            }
            const float up = OUT == OUT_GATED ? __shfl_xor_sync(0xffffffffu, y, 8) : 0;
            if (o >= numbers || t >= tokens || (OUT == OUT_GATED && n >= 8) || row >= OUT_ROWS)
                continue;
            const i64 at = (i64)t * OUT_ROWS + row;
            y = finished(y, up, row, at, from == 0 && o == threadIdx.x);
            if (S::HALVES)
                add_f32(args.out + at, y);
            else
                args.out[at] = y;
        }
    }
    // The number at `at`, out of the sum of its row; `early`: `kept` is what it meets.
    __device__ __forceinline__ float finished(float y, float up, int row, i64 at,
                                              bool early) const {
        if (OUT == OUT_ADD && (!S::HALVES || S::Share::rank() == 0))
            y += early ? kept : load_f32_l2(args.residual + at);
        if (OUT == OUT_QKV) {
            if (args.extra) y += early ? kept : args.extra[row];
            if (CLIP_QKV > 0) y = fminf(fmaxf(y, -CLIP_QKV), CLIP_QKV);
        }
        if (OUT == OUT_GATED) y = activation(y) * up;
        if (OUT == OUT_ACT) y = activation(y);
        if ((OUT == OUT_GATED || OUT == OUT_ACT) && args.extra)
            y /= OUT == OUT_ACT && early ? kept : args.extra[row];
        return y;
    }
};

// This block's row blocks (or its cluster's), this warp's units of them, and their way through its
// ring.
template <class M, class S, int RING, bool SECOND> struct ProductUnits {
    typedef typename S::Share Share;
    static constexpr int SLOT = M::UNIT_BYTES;
    M matrix;
    int first_row, rows;     // row blocks
    int first_unit, units;   // of a row block
    int range, left, of_row; // of the columns; units to copy, in all and of the row block
    u32 slot;                // of the next unit to multiply
    typename M::Columns held[S::HOLDS ? Share::UNITS : 1];

    __device__ __forceinline__ void open(const ProductArgs &args, int warp, u32 rings) {
        const int cluster = (int)blockIdx.x / M::SPLIT, team = Share::team_of(warp);
        range = Share::range_of(warp);
        const RowShare share(S::ROW_BLOCKS, S::ROW_BLOCKS / S::CLUSTERS, S::CLUSTERS, cluster);
        first_row = share.first, rows = share.rows;
        first_unit = Share::first_unit(range);
        units = Share::UNIFORM ? Share::UNITS : Share::first_unit(range + 1) - first_unit;
        left = (rows - team + Share::TEAMS - 1) / Share::TEAMS * units;
        of_row = units;
        slot = 0;
        matrix.open(args.weights, first_row + team, first_unit, rings + warp * (RING * SLOT));
    }
    // Copies the next unit, if there is one; `unit`: its number in the row block, where that is
    // known when this is compiled.
    __device__ __forceinline__ void refill(u32 to, int unit = -1) {
        const int to_next_row = Share::TEAMS * M::ROW_BYTES - (units - 1) * M::STEP;
        if (left > 0) {
            left--;
            if (unit < 0) {
                matrix.copy(to, of_row == 1 && range == Share::RANGES - 1);
                matrix.at += --of_row ? M::STEP : to_next_row;
                if (of_row == 0) of_row = units;
            } else {
                matrix.copy(to, false);
                matrix.at += unit + 1 < units ? M::STEP : to_next_row;
            }
        }
        copy_async_commit();
    }
    // Units that come before the vectors are prepared. To prepare several takes as long as to fill
    // half of the ring: that half comes meanwhile, and so it does in the second of a pair, whose
    // vector is there soon. Nearly all of it does where the vectors are there when a kernel starts.
    template <int T>
    static constexpr int AHEAD = !KERNELS_OVERLAP && RING > 2 ? 1
                                 : T > 1                      ? (RING + 1) / 2
                                 : SECOND                     ? RING / 2
                                                              : RING;
    // Where kernels overlap, only about 1 KB of a warp (of several vectors 2) is on its way at
    // once: a longer queue at the memory would hold up the vectors.
    template <int T> __device__ __forceinline__ void fill() {
        constexpr int MUCH = T == 1 ? 1088 : 2 * 1088;
        constexpr int AT_ONCE = SLOT < MUCH ? (MUCH + SLOT / 2) / SLOT : 1;
#pragma unroll
        for (int i = 0; i < AHEAD<T>; i++) {
            if (KERNELS_OVERLAP && i >= AT_ONCE) copy_async_wait<AT_ONCE - 1>();
            refill(i * SLOT);
        }
    }
    // The rest, in so many passes.
    template <int T, int PASSES> __device__ __forceinline__ void fill_more(int pass) {
        constexpr int LATE = RING - AHEAD<T>;
        for (int i = LATE * pass / PASSES; i < LATE * (pass + 1) / PASSES; i++)
            refill((AHEAD<T> + i) * SLOT);
    }
    // The vector has been prepared.
    __device__ __forceinline__ void hold() {
        if constexpr (S::HOLDS)
#pragma unroll
            for (int unit = 0; unit < Share::UNITS; unit++)
                matrix.load(first_unit + unit, held[unit]);
    }
    // The next unit's weights. Its slot is refilled at once, with `unit` as in refill().
    __device__ __forceinline__ void take(typename M::Weights &weights, int unit = -1) {
        copy_async_wait<RING - 1>();
        __syncwarp();
        matrix.load(slot, weights);
        __syncwarp();
        refill(slot, unit);
        slot = slot + SLOT < RING * SLOT ? slot + SLOT : 0;
    }
    // This warp's sums of a row block.
    template <int T> __device__ __forceinline__ void multiply_row(float *sum) {
        typename M::Weights weights;
        if constexpr (S::HOLDS) {
#pragma unroll
            for (int unit = 0; unit < Share::UNITS; unit++) {
                take(weights, (unit + RING) % Share::UNITS);
                matrix.multiply(weights, held[unit], sum);
            }
        } else {
#pragma unroll 1
            for (int unit = 0; unit < units; unit++) {
                take(weights);
                matrix.template multiply<T>(weights, first_unit + unit, sum);
            }
        }
        M::template finish<T>(sum);
    }
};

// The second of a pair: the vectors are there when the first has waited. All its blocks run or have
// run when this kernel starts.
__device__ __forceinline__ void wait_for_first(const ProductArgs &args) {
    if (!KERNELS_OVERLAP) return;
    if (threadIdx.x == 0)
        while (!told(args.begun)) {}
    __syncthreads();
}

template <class M, int ROWS, int T, int WARPS, int RING, int BLOCKS, int IN, int OUT, int PAIR>
__device__ __forceinline__ void product_decode(const ProductArgs &args) {
    typedef ProductShape<M, ROWS, T, WARPS, RING, BLOCKS, IN> S;
    typedef ProductVectors<M, T, WARPS, IN> Vectors;
    typedef typename S::Share Share;
    constexpr bool FETCHED = !KERNELS_OVERLAP && T == 1; // the vector, before the ring
    static_assert(BLOCKS % M::SPLIT == 0 && M::SPLIT <= Share::CHUNKS, "columns for all blocks");
    static_assert(!S::HALVES || (M::SPLIT == 2 && IN == IN_PLAIN && OUT == OUT_ADD), "two sums");
    extern __shared__ __align__(128) u8 smem[];
    const int lane = threadIdx.x & 31, warp = warp_uniform(threadIdx.x >> 5);
    const int part = Share::part_of(warp), team = Share::team_of(warp);
    const u32 base = shared_address(smem);
    launch_dependents();
    ProductSums<M, ROWS, T, WARPS, RING, BLOCKS, IN, OUT> sums(args, smem);
    Vectors vectors(args);
    float4 v[Vectors::STRETCH];
    if (FETCHED) {
        vectors.load_constants(args);
        vectors.fetch_all(v, 0, sums.tokens);
    }
    ProductUnits<M, S, RING, PAIR == PAIR_SECOND> units;
    units.open(args, warp, base + S::RINGS);
    units.template fill<T>();
    sums.first_row = units.first_row, sums.rows = units.rows;
    if (!FETCHED) vectors.load_constants(args); // they, too, depend on nothing
    if (M::BRINGS && T == 1) args.own.bring(args.own.line());
    // between the last unit and the next product's first the memory would have nothing to do
    const u32 line = M::BRINGS ? args.next.line() : BroughtLines::NONE;
    if (PAIR == PAIR_SECOND)
        wait_for_first(args);
    else
        wait_for_previous();
    if (PAIR == PAIR_FIRST && blockIdx.x == 0 && threadIdx.x == 0) tell(args.begun);
    if constexpr (S::CLUSTER > 1) cluster_wait(); // all have begun: what is given to them arrives
    vectors.template load<FETCHED>(
        args, sums.tokens, v, smem + S::X, smem + S::INFO, sums.moments,
        [&](int pass) { units.template fill_more<T, Vectors::PASSES>(pass); });
    if (PAIR != PAIR_SECOND) sums.fetch_residual();
    sums.fetch_constant();
    units.matrix.template look_at<T>(base + S::X - vectors.origin * M::X_STEP,
                                     base + S::INFO - vectors.origin * M::INFO_STEP, sums.tokens);
    if constexpr (T > 1) vectors.note_sums(units.matrix, sums.tokens);
    if (Share::TEAMS > 1)
        __syncthreads();
    else
        __syncwarp();

    units.hold();
    for (int from = 0; from < units.rows; from += S::SPAN) {
        const int some = min(S::SPAN, units.rows - from);
#pragma unroll 1
        for (int row = team; row < some; row += Share::TEAMS) {
            float sum[T == 1 ? 2 : 4] = {};
            units.template multiply_row<T>(sum);
            store_part<T>(sums.parts + (part * S::SPAN + row) * (16 * T), sum, lane);
        }
        if (PAIR == PAIR_SECOND && from == 0) {
            wait_for_previous();
            sums.fetch_residual();
        }
        __syncthreads();
        sums.pass_on(from, some);
    }
    args.next.bring(line);
#pragma unroll 1
    for (int i = blockIdx.x * (WARPS * 32) + threadIdx.x; i < args.clears; i += BLOCKS * WARPS * 32)
        args.clear[i] = 0;
}

#endif // TC_PRODUCT_DECODE
