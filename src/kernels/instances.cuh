// instances - the macros with which the engine instantiates kernels for a model's shapes. Each kernel
// NAME comes with NAME_launch: {grid x (0: the caller's), threads, dynamic shared memory}.

#ifndef TC_INSTANCES
#define TC_INSTANCES

#include "attention.cuh"
#include "product_decode.cuh"
#include "product_prefill.cuh"
#include "rows.cuh"
#include "sample.cuh"

#define KERNEL(name, threads, blocks, Args, body)                                                  \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        name(const __grid_constant__ Args args) {                                                  \
        body;                                                                                      \
    }
#define LAUNCH(name, grid, threads, shared)                                                        \
    extern "C" __device__ int name##_launch[4] = {grid, threads, shared, 1};

// The deepest ring, up to 4, that leaves room for two blocks in an SM (one works, the next one's
// ring fills already); else the deepest that fits at all, with half the warps if need be.
template <class M, int ROWS, int T> struct DecodePick {
    static constexpr int BLOCKS = (ROWS + 15) / 16 < SM_COUNT ? (ROWS + 15) / 16 : SM_COUNT;
    template <int W, int D> using Shape = ProductShape<M, ROWS, T, W, D, BLOCKS>;
    static constexpr int LIMIT = SHARED_LIMIT - 1024, HALF_SM = SHARED_LIMIT / 2 - 2048;
    static constexpr int WARPS = Shape<16, 2>::SMEM <= LIMIT ? 16 : 8;
    static constexpr int DEPTH = Shape<WARPS, 4>::SMEM <= HALF_SM   ? 4
                                 : Shape<WARPS, 3>::SMEM <= HALF_SM ? 3
                                 : Shape<WARPS, 4>::SMEM <= LIMIT   ? 4
                                 : Shape<WARPS, 3>::SMEM <= LIMIT   ? 3
                                 : Shape<WARPS, 2>::SMEM <= LIMIT   ? 2
                                                                    : 1;
    static constexpr int SMEM = Shape<WARPS, DEPTH>::SMEM;
    static constexpr int RESIDENT = SMEM <= HALF_SM ? 2 : 1;
    static constexpr bool FITS = SMEM <= LIMIT;
};

#define DECODE_PRODUCT(name, M, ROWS, T, IN, OUT)                                                  \
    typedef DecodePick<M, ROWS, T> name##_pick;                                                    \
    static_assert(name##_pick::FITS, "the matrix is too wide for this GPU");                       \
    KERNEL(name, (name##_pick::WARPS * 32), (name##_pick::RESIDENT), ProductArgs,                  \
           (product_decode<M, ROWS, T, name##_pick::WARPS, name##_pick::DEPTH,                     \
                           name##_pick::BLOCKS, IN, OUT>(args)))                                   \
    extern "C" __device__ int name##_launch[4] = {name##_pick::BLOCKS, name##_pick::WARPS * 32,    \
                                                  name##_pick::SMEM, T};

// As many vectors at once, up to 8, as shared memory holds.
template <class M, int ROWS> struct EachPick {
    static constexpr int T = DecodePick<M, ROWS, 8>::FITS   ? 8
                             : DecodePick<M, ROWS, 4>::FITS ? 4
                             : DecodePick<M, ROWS, 2>::FITS ? 2
                                                            : 1;
};

// As many stages, 2 to 4, as fit.
template <class M, int RT, int TT> struct PrefillPick {
    template <int D> using Shape = GemmShape<M, RT, TT, D>;
    static constexpr int STAGES = Shape<4>::SMEM <= SHARED_LIMIT   ? 4
                                  : Shape<3>::SMEM <= SHARED_LIMIT ? 3
                                                                   : 2;
    static constexpr int SMEM = Shape<STAGES>::SMEM;
    static_assert(SMEM <= SHARED_LIMIT, "the tile is too large for this GPU");
};

// Rows of the larger tile. From sm_100 on the compiler lacks registers for 256.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
#define WIDE_ROWS 192
#else
#define WIDE_ROWS 256
#endif

#define PREFILL_PRODUCT(name, M, ROWS, RT, OUT)                                                    \
    KERNEL(name, 256, 1, GemmArgs,                                                                 \
           (product_prefill<M, ROWS, RT, 128, PrefillPick<M, RT, 128>::STAGES, OUT>(args)))        \
    LAUNCH(name, (((ROWS + 15) / 16 * 16 + RT - 1) / RT), 256, (PrefillPick<M, RT, 128>::SMEM))

#define ROWS_KERNEL(name, K)                                                                       \
    KERNEL(name, 256, 1, RowsArgs, rows_to_f16<K>(args))                                           \
    LAUNCH(name, 0, 256, 0)

#endif // TC_INSTANCES
