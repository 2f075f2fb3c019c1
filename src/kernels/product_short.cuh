// product_short - the matrices of product_decode.cuh for up to eight vectors at once: short
// prompts.
//
// Still bound by reading W once, and the same kernel, product_decode, reads it. But eight vectors
// are much to fetch and to prepare for every block. So where there are clusters, the SPLIT blocks
// of one share row blocks, each with its part of the columns: it prepares that part of the vectors,
// and has room for more of them. The blocks' sums, and what the norms need to know of whole
// vectors, meet through the cluster's shared memory.
//
// Each vector is a column of B, so the eight columns of one mma serve up to eight vectors.
// Quantised weights go into it as they are, as subnormal numbers; their zero, times the sum of the
// vector's group, and their scale meet the sums of a group in binary32. The vectors' numbers have a
// power-of-two scale for every group, which brings the largest to 2^10 .. 2^11, far from both ends
// of binary16, and are sums of LIMBS binary16: two (22 bits), or one where shared memory has no
// room for more.

#ifndef TC_PRODUCT_SHORT
#define TC_PRODUCT_SHORT

#include "prelude.cuh"
#include "product_decode.cuh"
#include "product_prefill.cuh"
#include "rows.cuh"

// Vectors of K columns in groups, of which a block has its part of SPLIT, whole chunks of 128. In
// shared memory a vector is a plane for each limb; lane l wants vector l / 4 and, of each 32
// columns, the eight from 8 (l % 4) on, as does the A operand. Of each group (scale, sum) is known.
template <int K, int GROUP, int LIMBS, int SPLIT> struct ShortVectors {
    static constexpr int CHUNKS = ((K + 127) / 128 + SPLIT - 1) / SPLIT;
    static constexpr int COLUMNS = SPLIT == 1 ? K : 128 * CHUNKS; // of a block, at most
    static constexpr int PLANE = 2 * COLUMNS;                     // bytes
    template <int T> struct Layout {
        static constexpr int X = (LIMBS * PLANE + 127) / 128 * 128 + 64; // vectors differ in banks
        static constexpr int INFO = 8 * (COLUMNS / GROUP) + 8;
    };
    u32 x, known0, known1; // of this lane's vector; of the two of its results

    template <int T> __device__ __forceinline__ void look_at(u32 vectors, u32 known, int tokens) {
        const int lane = threadIdx.x & 31, column = lane >> 2, pair = lane & 3;
        x = keep(vectors + min(column, tokens - 1) * Layout<T>::X + 16 * pair);
        known0 = keep(known + min(2 * pair, tokens - 1) * Layout<T>::INFO);
        known1 = keep(known + min(2 * pair + 1, tokens - 1) * Layout<T>::INFO);
    }
    // d and e += rows times 32 columns, number `part` of the vectors: two chains hide mma's
    // latency.
    __device__ __forceinline__ void step(int part, const u32 a[4], const u32 b[4], float d[4],
                                         float e[4]) const {
#pragma unroll
        for (int limb = 0; limb < LIMBS; limb++) {
            const uint4 v = load_shared_16(x + limb * PLANE + 64 * part);
            mma_16x8x16(d, a, v.x, v.y);
            mma_16x8x16(e, b, v.z, v.w);
        }
    }
    template <int T> static __device__ __forceinline__ void finish(float *) {}

    struct Placed {
        u32 limbs[LIMBS][2];
        int exponent;
    };
    template <int T> static __device__ __forceinline__ Placed prepare(float4 v) {
        float most = fmaxf(fmaxf(fabsf(v.x), fabsf(v.y)), fmaxf(fabsf(v.z), fabsf(v.w)));
        if (GROUP == 128) { // the order of positive numbers is that of their bits
            most = __uint_as_float(__reduce_max_sync(0xffffffffu, __float_as_uint(most)));
        } else {
#pragma unroll
            for (int o = GROUP / 8; o > 0; o >>= 1)
                most = fmaxf(most, __shfl_xor_sync(0xffffffffu, most, o));
        }
        Placed p;
        p.exponent = min(max((int)(__float_as_uint(most) >> 23) - 127 - 10, -100), 117);
        const float down = __uint_as_float((u32)(127 - p.exponent) << 23);
        v.x *= down, v.y *= down, v.z *= down, v.w *= down;
        p.limbs[0][0] = f32_to_f16x2(v.x, v.y), p.limbs[0][1] = f32_to_f16x2(v.z, v.w);
        if constexpr (LIMBS == 2) {
            p.limbs[1][0] = rest_of_f16x2(v.x, v.y, p.limbs[0][0]);
            p.limbs[1][1] = rest_of_f16x2(v.z, v.w, p.limbs[0][1]);
        }
        return p;
    }
    // As of W4 and F16.
    static constexpr int X_STEP = 256, INFO_STEP = 1024 / GROUP;
    static __device__ __forceinline__ u32 place() { return 8 * (threadIdx.x & 31); }
    static __device__ __forceinline__ u32 info_place() {
        return 4 * (threadIdx.x & 31) / GROUP * 8;
    }
    template <int T>
    static __device__ __forceinline__ void store(const Placed &p, u8 *x, u8 *info) {
#pragma unroll
        for (int limb = 0; limb < LIMBS; limb++)
            *(uint2 *)(x + limb * PLANE) = make_uint2(p.limbs[limb][0], p.limbs[limb][1]);
        if (4 * (threadIdx.x & 31) % GROUP == 0)
            *(float *)info = __uint_as_float((u32)(127 + p.exponent) << 23);
    }
};

// Units and rings are those of W4 or F16 (Units); the vectors and what is made of them, of
// ShortVectors.
template <class Units, int LIMBS, int SPLIT_>
struct ShortMatrix : Units, ShortVectors<Units::K, Units::GROUP, LIMBS, SPLIT_> {
    static constexpr int SPLIT = SPLIT_;
    typedef ShortVectors<Units::K, Units::GROUP, LIMBS, SPLIT> Vectors;
    template <int T> using Layout = typename Vectors::template Layout<T>;
    using typename Vectors::Placed;
    using Vectors::finish;
    using Vectors::info_place;
    using Vectors::INFO_STEP;
    using Vectors::look_at;
    using Vectors::place;
    using Vectors::prepare;
    using Vectors::step;
    using Vectors::store;
    using Vectors::X_STEP;
};

// The columns of a word (w4_to_f16x2) as the numbers 2^-24 q of rows r and 2^-20 q of rows r + 8:
// to binary16 the bits of a nibble are a subnormal number, exactly, and mma takes such.
__device__ __forceinline__ void w4_to_subnormal(u32 word, u32 a[4]) {
    a[0] = word & 0x000f000f, a[1] = word & 0x00f000f0;
    a[2] = word >> 8 & 0x000f000f, a[3] = word >> 8 & 0x00f000f0;
}

// Of four words of 8 bits two each are the same columns of rows r and r + 8: as 2^-24 q.
__device__ __forceinline__ void w8_to_subnormal(u32 row, u32 row8, u32 a[4]) {
    a[0] = row & 0x00ff00ff, a[1] = row8 & 0x00ff00ff;
    a[2] = row >> 8 & 0x00ff00ff, a[3] = row8 >> 8 & 0x00ff00ff;
}

template <int K, int GROUP, int LIMBS, int SPLIT, int BITS>
struct QuantisedShort : ShortMatrix<Quantised<K, GROUP, 3, 1, BITS>, LIMBS, SPLIT> {
    typedef Quantised<K, GROUP, 3, 1, BITS> Units;
    typedef QuantisedShort<K, GROUP, 1, SPLIT, BITS> Coarser;
    template <int BLOCKS> using Split = QuantisedShort<K, GROUP, LIMBS, BLOCKS, BITS>;

    // Of each vector, in the columns of a unit, the sum of each group: a product with ones.
    __device__ __forceinline__ void note_sums(int unit, int tokens) const {
        const u32 one = 0x3c003c00, ones[4] = {one, one, one, one};
        for (int g = 0; g < Units::groups_of(unit); g++) {
            const int group = unit * Units::GROUPS + g;
            float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
            for (int i = 0; i < GROUP / 32; i++)
                this->step(group * (GROUP / 32) + i, ones, ones, d, e);
            // all rows are alike: lanes 0 to 3 have the sums of the eight columns of B
            const int token = 2 * (threadIdx.x & 31), end = min(tokens, 8);
            if (token < end) store_shared_f32(this->known0 + 8 * group + 4, d[0] + e[0]);
            if (token + 1 < end) store_shared_f32(this->known1 + 8 * group + 4, d[1] + e[1]);
        }
    }
    template <int T>
    __device__ __forceinline__ void multiply(const typename Units::Weights &weights, int unit,
                                             float sum[4]) const {
#pragma unroll
        for (int g = 0; g < Units::GROUPS; g++) {
            if (g >= Units::groups_of(unit)) break;
            const int group = unit * Units::GROUPS + g;
            float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
            u32 a[4], b[4];
            const u32 *q = weights.q + g * Units::WORDS;
#pragma unroll
            for (int i = 0; i < GROUP / 32; i++) {
                if (BITS == 8) {
                    w8_to_subnormal(q[4 * i], q[4 * i + 1], a);
                    w8_to_subnormal(q[4 * i + 2], q[4 * i + 3], b);
                } else {
                    w4_to_subnormal(q[2 * i], a);
                    w4_to_subnormal(q[2 * i + 1], b);
                }
                this->step(group * (GROUP / 32) + i, a, b, d, e);
            }
            const uint2 sz = weights.sz[g];
            const float s = f16_to_f32((u16)sz.x), zero = f16_to_f32((u16)(sz.x >> 16));
            const float s8 = f16_to_f32((u16)sz.y), zero8 = f16_to_f32((u16)(sz.y >> 16));
            add(group, s * 0x1p24f, s8 * (BITS == 8 ? 0x1p24f : 0x1p20f), s * -zero, s8 * -zero8,
                d, e, sum);
        }
    }

  private:
    // Adds a group's sums of rows r and r + 8 times `row` and `row8`, and the vectors' own sums
    // times `own` and `own8`.
    __device__ __forceinline__ void add(int group, float row, float row8, float own, float own8,
                                        const float d[4], const float e[4], float sum[4]) const {
        const uint2 k0 = load_shared_8(this->known0 + 8 * group);
        const uint2 k1 = load_shared_8(this->known1 + 8 * group);
        const float f0 = __uint_as_float(k0.x), x0 = __uint_as_float(k0.y);
        const float f1 = __uint_as_float(k1.x), x1 = __uint_as_float(k1.y);
        sum[0] += f0 * (row * (d[0] + e[0]) + own * x0);
        sum[1] += f1 * (row * (d[1] + e[1]) + own * x1);
        sum[2] += f0 * (row8 * (d[2] + e[2]) + own8 * x0);
        sum[3] += f1 * (row8 * (d[3] + e[3]) + own8 * x1);
    }
};
template <int K, int GROUP, int LIMBS, int SPLIT = 1>
using W4Short = QuantisedShort<K, GROUP, LIMBS, SPLIT, 4>;
template <int K, int GROUP, int LIMBS, int SPLIT = 1>
using W8Short = QuantisedShort<K, GROUP, LIMBS, SPLIT, 8>;

template <int K, int LIMBS, int SPLIT = 1>
struct F16Short : ShortMatrix<F16<K>, LIMBS, SPLIT> {
    typedef F16Short<K, 1, SPLIT> Coarser;
    template <int BLOCKS> using Split = F16Short<K, LIMBS, BLOCKS>;

    template <int T>
    __device__ __forceinline__ void multiply(const typename F16<K>::Weights &weights, int unit,
                                             float sum[4]) const {
        constexpr int PARTS = F16<K>::GROUP / 32; // of a unit
        float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < PARTS; i++)
            this->step(unit * PARTS + i, weights.a[i], weights.b[i], d, e);
        const float f0 = load_shared_f32(this->known0 + 8 * unit);
        const float f1 = load_shared_f32(this->known1 + 8 * unit);
        sum[0] += f0 * (d[0] + e[0]), sum[1] += f1 * (d[1] + e[1]);
        sum[2] += f0 * (d[2] + e[2]), sum[3] += f1 * (d[3] + e[3]);
    }
    __device__ __forceinline__ void note_sums(int, int) const {} // there is no zero to take away
};

#endif // TC_PRODUCT_SHORT
