// product_short - the matrices of product_decode.cuh for up to eight vectors at once: short
// prompts.
//
// Still bound by reading W once, and the same kernel, product_decode, reads it. But eight vectors
// are much to fetch and to prepare for every block. So where there are clusters, the SPLIT blocks
// of one share row blocks, each with its part of the columns: it prepares that part of the vectors,
// and has room for more of them. The blocks' sums, and what the norms need to know of whole
// vectors, meet through the cluster's shared memory.
//
// Each vector is a column of B, so the eight columns of one mma serve up to eight vectors. 4-bit
// weights become the exact numbers q - zero in binary16; their scale meets the sums of a group in
// binary32. The vectors' numbers have a power-of-two scale for every group, which brings the
// largest to 2^10 .. 2^11, far from both ends of binary16, and are sums of LIMBS binary16: two (22
// bits), or one where shared memory has no room for more.

#ifndef TC_PRODUCT_SHORT
#define TC_PRODUCT_SHORT

#include "prelude.cuh"
#include "product_decode.cuh"
#include "product_prefill.cuh"
#include "rows.cuh"

// Vectors of K columns in groups, of which a block has its part of SPLIT, whole chunks of 128. In
// shared memory a vector is a plane for each limb; lane l wants vector l / 4 and, of each 32
// columns, the eight from 8 (l % 4) on, as does the A operand.
template <int K, int GROUP, int LIMBS, int SPLIT> struct ShortVectors {
    static constexpr int CHUNKS = ((K + 127) / 128 + SPLIT - 1) / SPLIT;
    static constexpr int COLUMNS = SPLIT == 1 ? K : 128 * CHUNKS; // of a block, at most
    static constexpr int PLANE = 2 * COLUMNS;                     // bytes
    template <int T> struct Layout {
        static constexpr int X = (LIMBS * PLANE + 127) / 128 * 128 + 64; // vectors differ in banks
        static constexpr int INFO = 4 * (COLUMNS / GROUP) + 4;
    };
    u32 x, scale0, scale1; // of this lane's vector; of the two of its results

    template <int T> __device__ __forceinline__ void look_at(u32 vectors, u32 scales, int tokens) {
        const int lane = threadIdx.x & 31, column = lane >> 2, pair = lane & 3;
        x = keep(vectors + min(column, tokens - 1) * Layout<T>::X + 16 * pair);
        scale0 = keep(scales + min(2 * pair, tokens - 1) * Layout<T>::INFO);
        scale1 = keep(scales + min(2 * pair + 1, tokens - 1) * Layout<T>::INFO);
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
    // Adds the sums of a group, with its vectors' scales and those of the rows r and r + 8.
    __device__ __forceinline__ void add(int group, float row, float row8, const float d[4],
                                        const float e[4], float sum[4]) const {
        const float f0 = load_shared_f32(scale0 + 4 * group);
        const float f1 = load_shared_f32(scale1 + 4 * group);
        sum[0] += row * f0 * (d[0] + e[0]), sum[1] += row * f1 * (d[1] + e[1]);
        sum[2] += row8 * f0 * (d[2] + e[2]), sum[3] += row8 * f1 * (d[3] + e[3]);
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
    static constexpr int X_STEP = 256, INFO_STEP = 512 / GROUP;
    static __device__ __forceinline__ u32 place() { return 8 * (threadIdx.x & 31); }
    static __device__ __forceinline__ u32 info_place() {
        return 4 * (threadIdx.x & 31) / GROUP * 4;
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

template <int K, int GROUP, int LIMBS, int SPLIT = 1>
struct W4Short : ShortMatrix<W4<K, GROUP>, LIMBS, SPLIT> {
    typedef W4<K, GROUP> Units;
    typedef W4Short<K, GROUP, 1, SPLIT> Coarser;
    template <int BLOCKS> using Split = W4Short<K, GROUP, LIMBS, BLOCKS>;

    template <int T>
    __device__ __forceinline__ void multiply(u32 slot, int unit, float sum[4]) const {
        sum[0] = sum[1] = sum[2] = sum[3] = 0;
#pragma unroll
        for (int g = 0; g < Units::GROUPS; g++) {
            if (g >= Units::groups_of(unit)) break;
            const u32 at = slot + g * Units::GROUP_BYTES;
            const int group = unit * Units::GROUPS + g;
            const W4Scales z(load_shared_8(this->scales + at));
            float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
            u32 q[8], a[4], b[4];
            Units::load_words(this->words + at, q);
#pragma unroll
            for (int i = 0; i < GROUP / 32; i++) {
                w4_to_f16x2(q[2 * i], z.low, z.high, a);
                w4_to_f16x2(q[2 * i + 1], z.low, z.high, b);
                this->step(group * (GROUP / 32) + i, a, b, d, e);
            }
            this->add(group, f16_to_f32((u16)z.s0), f16_to_f32((u16)z.s1), d, e, sum);
        }
    }
};

template <int K, int LIMBS, int SPLIT = 1>
struct F16Short : ShortMatrix<F16<K>, LIMBS, SPLIT> {
    typedef F16Short<K, 1, SPLIT> Coarser;
    template <int BLOCKS> using Split = F16Short<K, LIMBS, BLOCKS>;

    template <int T>
    __device__ __forceinline__ void multiply(u32 slot, int unit, float sum[4]) const {
        constexpr int PARTS = F16<K>::GROUP / 32; // of a unit
        float d[4] = {0, 0, 0, 0}, e[4] = {0, 0, 0, 0};
#pragma unroll
        for (int i = 0; i < PARTS; i++) {
            u32 a[4], b[4];
            this->load_rows(slot, i, a, b);
            this->step(unit * PARTS + i, a, b, d, e);
        }
        sum[0] = sum[1] = sum[2] = sum[3] = 0;
        this->add(unit, 1, 1, d, e, sum);
    }
};

#endif // TC_PRODUCT_SHORT
