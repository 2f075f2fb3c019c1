// instances - the macros with which the engine instantiates kernels for a model's shapes. Each
// kernel NAME comes with NAME_launch: {grid x (0: the caller's), threads, dynamic shared memory,
// tokens that one launch, or one row of its grid, takes}, and perhaps {blocks of a cluster, ...}.

#ifndef TC_INSTANCES
#define TC_INSTANCES

#include "attention.cuh"
#include "product_decode.cuh"
#include "product_prefill.cuh"
#include "product_short.cuh"
#include "product_wgmma.cuh"
#include "rows.cuh"
#include "sample.cuh"

// The host asks for overlap of kernels that can wait for each other only.
extern "C" __device__ int kernels_overlap = KERNELS_OVERLAP;

#define KERNEL(name, threads, blocks, Args, body)                                                  \
    extern "C" __global__ void __launch_bounds__(threads, blocks)                                  \
        name(const __grid_constant__ Args args) {                                                  \
        body;                                                                                      \
    }
#define LAUNCH_TOKENS(name, grid, threads, shared, tokens)                                         \
    extern "C" __device__ int name##_launch[4] = {grid, threads, shared, tokens};
#define LAUNCH(name, grid, threads, shared) LAUNCH_TOKENS(name, grid, threads, shared, 1)

template <bool first, class A, class B> struct Choose { typedef A type; };
template <class A, class B> struct Choose<false, A, B> { typedef B type; };

#ifdef TC_HOPPER
#define IN_CLUSTERS_OF(blocks) __cluster_dims__(blocks, 1, 1)
#else
#define IN_CLUSTERS_OF(blocks)
#endif

// NAME_launch has one number more: blocks of a cluster, or that share row blocks.
#define CLUSTER_KERNEL(name, cluster, threads, blocks, Args, body)                                 \
    extern "C" __global__ void IN_CLUSTERS_OF(cluster) __launch_bounds__(threads, blocks)          \
        name(const __grid_constant__ Args args) {                                                  \
        body;                                                                                      \
    }
#define LAUNCH_CLUSTERS(name, grid, threads, shared, tokens, cluster)                              \
    extern "C" __device__ int name##_launch[5] = {grid, threads, shared, tokens, cluster};

// ---- products of decode ----

// What a product asks for. Where kernels overlap (sm_90 on) a block works while one of the next
// product fills its ring in the same SM, but two blocks of one product must never meet in an SM:
// all the others would wait for them. So products alternate between two SIDES: one (1) asks for a
// little more than half of the SM's shared memory, the other (0) for the rest. (An SM has 1 KB more
// than a block may ask for, and keeps 1 KB of it for each block.) A product of side 2 asks for less
// than one of side 0, and for 64 registers: attention finds room in an SM beside it and one of side
// 1, if both have 12 warps. A vector too large for its side gets fewer digits. ZEROS: the result
// goes to where zeros are, so that halves of the columns can meet there.
template <class Whole, int ROWS, int T, int SIDE, int IN, bool ZEROS> struct DecodePick {
    static constexpr bool HALVES = ZEROS && Whole::K > 128 && SM_COUNT > 1;
    typedef typename Choose<HALVES, typename Whole::template Split<2>, Whole>::type M;
    static constexpr int SPLIT = M::SPLIT, ROW_BLOCKS = (ROWS + 15) / 16;
    static constexpr int CLUSTERS = SM_COUNT / SPLIT;
    static constexpr int BLOCKS = SPLIT * (ROW_BLOCKS < CLUSTERS ? ROW_BLOCKS : CLUSTERS);
    static constexpr int LARGE = SHARED_LIMIT / 2 + 2560, SMALL = SHARED_LIMIT - 1024 - LARGE;

    // 12 to 16 warps, as share out the chunks of a vector best; of several vectors 12 or 16.
    template <class N> static __device__ constexpr int warps() {
        constexpr int CHUNKS = ((N::K + 127) / 128 + SPLIT - 1) / SPLIT; // of a block
        constexpr bool MANY_OF_A_WARP = IN != IN_PLAIN && CHUNKS > 4 * N::MOST_WARPS; // registers
        int best = T == 1 && CHUNKS >= 16 && !MANY_OF_A_WARP ? N::MOST_WARPS : 16;
        for (int n = T == 1 ? best - 1 : 12; n >= 12 && CHUNKS >= 16; n--)
            if (n * ((CHUNKS + n - 1) / n) < best * ((CHUNKS + best - 1) / best)) best = n;
        return best;
    }
    static constexpr bool BESIDE = ROOM_BESIDE && T == 1 && SIDE == 2 && warps<M>() <= 12;
    static constexpr int SHARE = !KERNELS_OVERLAP || T > 1 ? 0
                                 : SIDE == 1               ? LARGE
                                                           : SMALL - (BESIDE ? BESIDE_ROOM : 0);
    template <class N, int WARPS, int R>
    using Shape = ProductShape<N, ROWS, T, WARPS, R, BLOCKS, IN>;
    // Units of the deepest ring that fits, up to 104 KB in all, or 87 of several vectors, which a
    // longer queue at the memory would hold up. Not above 0: nothing fits.
    template <class N, int WARPS> static __device__ constexpr int ring(int limit) {
        const int fit = (limit - Shape<N, WARPS, 0>::SMEM) / (WARPS * N::UNIT_BYTES);
        const int most = 16 * (T == 1 ? 6 : 5) * 1088 / (WARPS * N::UNIT_BYTES);
        return fit < most ? fit : most;
    }
    typedef typename M::Coarser Coarse;
    static constexpr bool SHARED = ring<Coarse, warps<Coarse>()>(SHARE) >= 2;
    static constexpr int LIMIT = SHARED ? SHARE : SHARED_LIMIT;
    static constexpr bool FINE = ring<M, warps<M>()>(LIMIT) >= 2;
    typedef typename Choose<FINE, M, Coarse>::type Matrix;
    static constexpr int MANY = warps<Matrix>();
    static constexpr int WARPS = ring<Matrix, MANY>(LIMIT) >= 2 ? MANY : 8;
    static constexpr int RING = ring<Matrix, WARPS>(LIMIT);
    static constexpr bool FITS = RING > 0;
    static constexpr int SMEM = SHARED ? SHARE : Shape<Matrix, WARPS, FITS ? RING : 1>::SMEM;
    // LayerNorm of so wide a vector takes a few registers more than two blocks leave, with binary16
    // weights everywhere, with others from sm_100 on.
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    static constexpr bool SCARCE = true;
#else
    static constexpr bool SCARCE = !Matrix::BRINGS;
#endif
    static constexpr bool CROWDED = SCARCE && IN == IN_LAYER && Matrix::K > 7168;
    static constexpr int RESIDENT = SHARED && !CROWDED ? 2 : 1;
    // Threads of a block that its registers have to do for: each quarter of an SM has its own, and
    // every fourth warp. LayerNorm of a wide vector takes more, and its neighbours less (56).
    static constexpr bool LACKS = IN == IN_LAYER && Matrix::K > WIDE_NORM;
    static constexpr bool SPARES = Shape<Matrix, WARPS, FITS ? RING : 1>::SPARES;
    static constexpr int BOUND =
        BESIDE ? 512 : LACKS ? 32 * WARPS : SPARES ? 576 : (WARPS + 3) / 4 * 128;
};

#define DECODE_PRODUCT(name, M, ROWS, T, SIDE, IN, OUT, PAIR)                                      \
    typedef DecodePick<M, ROWS, T, SIDE, IN, OUT == OUT_ADD> name##_pick;                          \
    static_assert(name##_pick::FITS, "the matrix is too wide for this GPU");                       \
    KERNEL(name, (name##_pick::BOUND), (name##_pick::RESIDENT), ProductArgs,                       \
           (product_decode<name##_pick::Matrix, ROWS, T, name##_pick::WARPS, name##_pick::RING,    \
                           name##_pick::BLOCKS, IN, OUT, PAIR>(args)))                             \
    LAUNCH_CLUSTERS(name, name##_pick::BLOCKS, name##_pick::WARPS * 32, name##_pick::SMEM, T,      \
                    name##_pick::SPLIT)

// Up to 8 vectors at once: as many as shared memory holds beside rings of two units. Where there is
// no room for two, one by one with the matrix One. Two blocks of a cluster share the columns; not
// four: the SMs of a GPC come in twos but not always in fours, and an H100 does not hold 32 such
// clusters at once, so that the last would wait for the first.
template <class M, class One, int ROWS, int IN> struct EachPick {
#ifdef TC_HOPPER
    static constexpr int CHUNKS = (M::K + 127) / 128;
    static constexpr int SPLIT = CHUNKS < 4 ? 1 : 2;
#else
    static constexpr int SPLIT = 1;
#endif
    typedef typename M::template Split<SPLIT> Part;
    template <int T> static constexpr bool HOLDS =
        DecodePick<Part, ROWS, T, 0, IN, false>::RING >= 2;
    static constexpr int T = HOLDS<8> ? 8 : HOLDS<4> ? 4 : HOLDS<2> ? 2 : 1;
    typedef typename Choose<(T > 1), Part, One>::type Matrix;
};

#define EACH_PRODUCT(name, Each, ROWS, SIDE, IN, OUT, PAIR)                                        \
    typedef DecodePick<Each::Matrix, ROWS, Each::T, SIDE, IN, false> name##_pick;                  \
    static_assert(name##_pick::FITS, "the matrix is too wide for this GPU");                       \
    CLUSTER_KERNEL(name, name##_pick::SPLIT, (name##_pick::WARPS * 32), (name##_pick::RESIDENT),   \
                   ProductArgs,                                                                    \
                   (product_decode<name##_pick::Matrix, ROWS, Each::T, name##_pick::WARPS,         \
                                   name##_pick::RING, name##_pick::BLOCKS, IN, OUT, PAIR>(args)))  \
    LAUNCH_CLUSTERS(name, name##_pick::BLOCKS, name##_pick::WARPS * 32, name##_pick::SMEM,         \
                    Each::T, name##_pick::SPLIT)

// ---- the head in 8 bits ----

#define QUANTISE_KERNEL(name, K, GROUP)                                                            \
    KERNEL(name, QUANTISE_THREADS, 1, QuantiseArgs, (quantise_rows<K, GROUP>(args)))               \
    LAUNCH(name, 0, QUANTISE_THREADS, 0)

// ---- products of prefill: tiles of 16, 64, 128 or 256 tokens (SIZE) ----

// Scores of attention are sensitive: for few tokens the product that gives queries and keys has two
// limbs.
template <int SIZE, int OUT>
static constexpr int LIMBS_OF = SIZE < 128 && OUT == TO_VECTORS ? 2 : 1;

// As many stages, 2 to 4, as fit. The largest size has tiles of more rows instead of more tokens;
// from sm_100 on the compiler lacks registers for 256.
template <class M, int ROWS, int SIZE, int OUT> struct PortableProduct {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 1000
    static constexpr int MOST_ROWS = 192;
#else
    static constexpr int MOST_ROWS = 256;
#endif
    static constexpr int TILE = SIZE < 128 ? 64 : SIZE == 128 ? 128 : MOST_ROWS;
    static constexpr int TOKENS = SIZE < 128 ? SIZE : 128, THREADS = 256, CLUSTER = 1, PER_SM = 1;
    static constexpr int LIMBS = LIMBS_OF<SIZE, OUT>;
    template <int D> using Shape = GemmShape<M, TILE, TOKENS, LIMBS, D>;
    static constexpr int STAGES = Shape<4>::SMEM <= SHARED_LIMIT   ? 4
                                  : Shape<3>::SMEM <= SHARED_LIMIT ? 3
                                                                   : 2;
    static constexpr int SMEM = Shape<STAGES>::SMEM;
    static constexpr int BLOCKS = ((ROWS + 15) / 16 * 16 + TILE - 1) / TILE;
    static constexpr bool WALKS = false;
    static_assert(SMEM <= SHARED_LIMIT, "the tile is too large for this GPU");

    static __device__ __forceinline__ void run(const GemmArgs &args) {
        product_prefill<M, ROWS, TILE, TOKENS, LIMBS, STAGES, OUT>(args);
    }
};

#ifdef TC_HOPPER
template <class M, int ROWS, int SIZE, int OUT> struct WgmmaProduct {
    static constexpr int TOKENS = SIZE, THREADS = 384, CLUSTER = 2, PER_SM = 1;
    static constexpr int SMEM = WgmmaShape<M, TOKENS, CLUSTER>::SMEM;
    static constexpr int BLOCKS = CLUSTER * WgmmaTiles<ROWS, TOKENS, CLUSTER>::ROW_TILES;
    static constexpr bool WALKS = true;

    static __device__ __forceinline__ void run(const GemmArgs &args) {
        product_wgmma<M, ROWS, TOKENS, CLUSTER, OUT>(args);
    }
};

// How high tiles are, and into how many parts columns are split: what takes least time.
template <class M, int ROWS, int SIZE, int OUT> struct FewProduct {
    static constexpr int LIMBS = LIMBS_OF<SIZE, OUT>, PAIRS = M::K / 128;
    static __device__ constexpr int blocks(int height, int splits) {
        return ((ROWS + 15) / 16 + height - 1) / height * splits;
    }
    // In units of what a row block of 128 columns takes on a full SM, 0.04 us; all of it measured on
    // an H200 (docs/gpu-log.md). Clusters of four and more leave SMs of some GPCs without work.
    // `rows`: a block has so many row blocks, or takes the time of so many.
    static __device__ constexpr int time(int height, int splits) {
        const int sms = splits > 2 ? SM_COUNT * 10 / 11 : SM_COUNT, of_an_sm = height == 8 ? 2 : 1;
        const int ends = splits == 1 ? 40 : splits == 2 ? 55 : splits == 4 ? 90 : 220;
        int sum = 0;
        for (int left = blocks(height, splits); left > 0; left -= of_an_sm * sms) {
            const int rows = height > 8 ? height : left > sms ? 16 : 10;
            sum += ends + PAIRS * rows / splits;
            if (height > 8 && left > sms) sum += 60; // no block fills its ring meanwhile
        }
        return sum;
    }
    static __device__ constexpr int splits(int height) {
        int best = 1;
        for (int s = 2; s <= 8 && 2 * s <= PAIRS; s *= 2)
            if (time(height, s) < time(height, best)) best = s;
        return best;
    }
    static constexpr int HEIGHT = time(12, splits(12)) < time(8, splits(8)) ? 12 : 8;
    static constexpr int SPLITS = splits(HEIGHT), PER_SM = HEIGHT == 8 ? 2 : 1;
    static constexpr int TOKENS = SIZE, THREADS = 128 + 32 * HEIGHT, CLUSTER = SPLITS;
    static constexpr int SMEM = FewShape<M, HEIGHT, TOKENS, LIMBS>::SMEM;
    static constexpr int BLOCKS = blocks(HEIGHT, SPLITS);
    static constexpr bool WALKS = false;

    static __device__ __forceinline__ void run(const GemmArgs &args) {
        product_few<M, ROWS, HEIGHT, TOKENS, LIMBS, SPLITS, OUT>(args);
    }
};
template <class M, int ROWS, int SIZE, int OUT> struct FewOrMany {
    typedef WgmmaProduct<M, ROWS, SIZE, OUT> type;
};
template <class M, int ROWS, int OUT> struct FewOrMany<M, ROWS, 16, OUT> {
    typedef FewProduct<M, ROWS, 16, OUT> type;
};
template <class M, int ROWS, int OUT> struct FewOrMany<M, ROWS, 64, OUT> {
    typedef FewProduct<M, ROWS, 64, OUT> type;
};
template <bool wgmma, class Slices, class Tile, int ROWS, int SIZE, int OUT> struct PrefillPick {
    typedef typename FewOrMany<Slices, ROWS, SIZE, OUT>::type type;
};
template <class Slices, class Tile, int ROWS, int SIZE, int OUT>
struct PrefillPick<false, Slices, Tile, ROWS, SIZE, OUT> {
    typedef PortableProduct<Tile, ROWS, SIZE, OUT> type;
};

#define PREFILL_PICK(TYPE, K, GROUP, ROWS, SIZE, OUT)                                              \
    PrefillPick<K % 64 == 0, TYPE##Slices<K, GROUP>, TYPE##Tile<K, GROUP>, ROWS, SIZE, OUT>::type
#else
#define PREFILL_PICK(TYPE, K, GROUP, ROWS, SIZE, OUT)                                              \
    PortableProduct<TYPE##Tile<K, GROUP>, ROWS, SIZE, OUT>
#endif

// NAME_launch: {blocks for one tile of tokens, threads, dynamic shared memory, tokens of a tile,
// blocks of a cluster, whether blocks walk from tile to tile}.
#define PREFILL_PRODUCT(name, TYPE, K, GROUP, ROWS, SIZE, OUT)                                     \
    typedef PREFILL_PICK(TYPE, K, GROUP, ROWS, SIZE, OUT) name##_pick;                             \
    CLUSTER_KERNEL(name, name##_pick::CLUSTER, name##_pick::THREADS, name##_pick::PER_SM,          \
                   GemmArgs, name##_pick::run(args))                                               \
    extern "C" __device__ int name##_launch[6] = {name##_pick::BLOCKS, name##_pick::THREADS,       \
                                                  name##_pick::SMEM, name##_pick::TOKENS,          \
                                                  name##_pick::CLUSTER, name##_pick::WALKS};

#define ROWS_KERNEL(name, K)                                                                       \
    KERNEL(name, 256, 1, RowsArgs, rows_to_operand<K>(args))                                       \
    LAUNCH(name, 0, 256, 0)

#endif // TC_INSTANCES
