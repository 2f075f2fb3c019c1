// The kernels of the products, the norms and the activations on the emulated GPU, against sums in
// binary64. test_emulated.sh compiles this with a model's constants (NORM, ACTIVATION, GATED,
// CLIP_QKV), as src/gpu_programs.c writes them.
#include "prelude.cuh"

#define SHARED_LIMIT (227 * 1024)
#define NORM_EPS 1e-5f
#include "product_decode.cuh"
#include "product_prefill.cuh"
#include "product_short.cuh"
#include "product_wgmma.cuh"
#include "rows.cuh"
#include "test.h"

// ---- numbers ----

static u64 random_state = 1;
static float random_number() { // -1 to 1
    random_state = random_state * 6364136223846793005ull + 1442695040888963407ull;
    return (float)(random_state >> 40) / 0x800000 - 1;
}
static double rounded(double v) {
    return f16_to_f32(f32_to_f16((float)v));
}

static double activated(double v) {
    return ACTIVATION == ACT_GELU ? 0.5 * v * (1 + erf(v * M_SQRT1_2)) : v / (1 + exp(-v));
}

// The place of a number in an operand, as rows.cuh describes it.
static size_t place(int columns, int t, int c) {
    const int chunk = c / 32 % 2 * 4 + c / 4 % 2 * 2 + c / 2 % 2;
    const size_t tile = (size_t)(t / 128) * ((columns + 63) / 64) + c / 64;
    return tile * 8192 + t % 128 * 64 + (chunk ^ t % 8) * 8 + c / 8 % 4 * 2 + c % 2;
}
static size_t operand_size(int columns, int tokens) {
    return ((size_t)(tokens + 255) / 256 * 2 * ((columns + 63) / 64) + 1) * 8192;
}

struct Matrix {
    int columns;
    std::vector<u8> bytes;
    std::vector<double> numbers; // [rows][columns]

    double at(int row, int column) const { return numbers[(size_t)row * columns + column]; }
};

// Row-major binary16; what lies behind it is not a number.
static Matrix binary16_matrix(int rows, int columns) {
    const size_t stored = (size_t)(rows + 15) / 16 * 16 * columns;
    Matrix m = {columns, std::vector<u8>(stored * 2 + 65536, 0xff), std::vector<double>(stored)};
    for (size_t i = 0; i < stored; i++) {
        const u16 h = f32_to_f16(0.1f * random_number());
        memcpy(&m.bytes[2 * i], &h, 2);
        m.numbers[i] = f16_to_f32(h);
    }
    return m;
}

// One unit of W4, by the formulas of docs/format.md.
static void fill_unit(Matrix &m, int rows, int block, int unit, int group) {
    u8 *bytes = &m.bytes[((size_t)block * (m.columns / group) + unit) * (8 * group + 64)];
    memset(bytes, 0, 8 * group + 64);
    for (int r = 0; r < 16; r++) {
        const float scale = 16 * block + r < rows ? 0.01f + 0.008f * random_number() : 0;
        const float zero = (float)(int)(7.5f + 7.4f * random_number());
        const u16 pair[2] = {f32_to_f16(scale), f32_to_f16(zero)};
        memcpy(bytes + 8 * group + 8 * (r % 8) + 4 * (r / 8), pair, 4);
        for (int c = 0; c < group; c++) {
            const int q = min((int)(8 + 8 * random_number()), 15);
            const int w = c / 32 * 2 + c / 4 % 2, lane = r % 8 * 4 + c / 8 % 4;
            const int nibble = r / 8 + c / 2 % 2 * 2 + c % 2 * 4;
            const int at = group == 32 ? 8 * lane + 4 * w
                           : w < 4     ? 16 * lane + 4 * w
                                       : 512 + 16 * lane + 4 * (w - 4);
            bytes[at + nibble / 2] |= (u8)(q << nibble % 2 * 4);
            m.numbers[((size_t)block * 16 + r) * m.columns + unit * group + c] =
                f16_to_f32(pair[0]) * (q - zero);
        }
    }
}
static Matrix w4_matrix(int rows, int columns, int group) {
    const int blocks = (rows + 15) / 16, units = columns / group;
    Matrix m = {columns, std::vector<u8>((size_t)blocks * units * (8 * group + 64) + 65536, 0xff),
                std::vector<double>((size_t)blocks * 16 * columns)};
    for (int b = 0; b < blocks; b++)
        for (int u = 0; u < units; u++) fill_unit(m, rows, b, u, group);
    return m;
}

// A binary16 matrix in 8 bits: the kernel's bytes, and the numbers by formulas: of each row and group
// a scale, the largest / 127 in binary16, and the nearest whole numbers. The kernel may write where
// it reads, if row blocks before are done.
template <int K, int GROUP> static Matrix w8_matrix(int rows) {
    const int blocks = (rows + 15) / 16, row_bytes = K / GROUP * (16 * GROUP + 32);
    Matrix m = binary16_matrix(rows, K);
    for (int r = 0; r < 16 * blocks; r++)
        for (int g = 0; g < K / GROUP; g++) {
            double *v = &m.numbers[(size_t)r * K + g * GROUP], top = 0;
            for (int c = 0; c < GROUP; c++) top = std::max(top, fabs(v[c]));
            const double scale = rounded(top / 127);
            for (int c = 0; c < GROUP; c++) v[c] = scale * rint(v[c] / scale);
        }
    const std::vector<u8> before = m.bytes;
    std::vector<u8> apart(before.size(), 0xff);
    auto run = [&](u8 *to, int first, int count) {
        const QuantiseArgs args = {(const u16 *)m.bytes.data(), to, first};
        emulated_launch({(unsigned)count, 1, 1}, QUANTISE_THREADS, 1,
                        [&] { quantise_rows<K, GROUP>(args); });
    };
    run(apart.data(), 0, blocks);
    CHECK(m.bytes == before);
    // in its place: as many row blocks at once as fit where those before were
    for (int first = 0, count; first < blocks; first += count) {
        count = std::max(1, std::min(blocks, first * 32 * K / row_bytes) - first);
        run(m.bytes.data(), first, count);
    }
    CHECK(!memcmp(m.bytes.data(), apart.data(), (size_t)blocks * row_bytes));
    m.bytes = apart;
    return m;
}

// ---- products ----

// What a product is asked for, and what it gave. `group` 0: binary16.
struct Product {
    const char *name;
    int rows, columns, group, tokens, out;
    bool two_limbs;
    float size = 1; // of the vectors' numbers

    int width() const { return out == TO_OPERAND && GATED ? rows / 2 : rows; }
    double error(std::function<void(const GemmArgs &)> run,
                 std::function<void(const SettleArgs &)> settle) const;
};

// The largest relative error of a token's results.
double Product::error(std::function<void(const GemmArgs &)> run,
                      std::function<void(const SettleArgs &)> settle) const {
    Matrix m = group ? w4_matrix(rows, columns, group) : binary16_matrix(rows, columns);
    std::vector<double> x((size_t)tokens * columns), want(rows);
    std::vector<u16> in(operand_size(columns, tokens), 0x7e00), rest = in; // padded with NaN
    std::vector<u16> operand(operand_size(width(), tokens));
    std::vector<float> scale(operand_size(1, tokens), NAN), each(rows), settled(tokens);
    std::vector<float> vectors((size_t)tokens * rows, 0.5f);
    std::vector<u8> exponents((size_t)tokens * (width() / 8));
    std::vector<int> highest(tokens);
    for (int t = 0; t < tokens; t++) {
        scale[t] = (float)(1 << t % 4);
        for (int c = 0; c < columns; c++) {
            const float v = size * random_number();
            in[place(columns, t, c)] = f32_to_f16(v);
            rest[place(columns, t, c)] = f32_to_f16((float)(v - rounded(v)));
            x[(size_t)t * columns + c] = two_limbs ? v : rounded(v);
        }
    }
    for (float &v : each) v = 1.5f + random_number();
    if (!two_limbs)
        for (double &v : m.numbers) v = rounded(v);
    void *to = out == TO_OPERAND ? (void *)operand.data() : vectors.data();
    run({m.bytes.data(), in.data(), rest.data(), scale.data(), to,
         out == TO_RESIDUAL ? nullptr : each.data(), exponents.data(), highest.data(), tokens});
    if (out == TO_OPERAND) {
        const SettleArgs args = {operand.data(), exponents.data(), highest.data(), settled.data(),
                                 tokens};
        emulated_launch({(unsigned)(tokens + 7) / 8, 1, 1}, 256, 1, [&] { settle(args); });
        for (u8 e : exponents) CHECK(e == 0);
    }
    double worst = 0;
    for (int t = 0; t < tokens; t++) {
        double off = 0, sum = 0;
        for (int r = 0; r < rows; r++) {
            want[r] = 0;
            for (int c = 0; c < columns; c++) want[r] += m.at(r, c) * x[(size_t)t * columns + c];
            want[r] *= scale[t];
        }
        for (int n = 0; n < width(); n++) {
            double v = want[n], got = out == TO_OPERAND
                                          ? f16_to_f32(operand[place(width(), t, n)]) * settled[t]
                                          : vectors[(size_t)t * rows + n];
            if (out == TO_RESIDUAL) v += 0.5;
            if (out == TO_VECTORS) v += each[n];
            if (out == TO_VECTORS && CLIP_QKV > 0) v = fmax(fmin(v, CLIP_QKV), -CLIP_QKV);
            if (out == TO_OPERAND && GATED)
                v = activated(want[n / 8 * 16 + n % 8]) * want[n / 8 * 16 + 8 + n % 8] / each[n];
            if (out == TO_OPERAND && !GATED) v = activated(v) / each[n];
            off += (got - v) * (got - v), sum += v * v;
        }
        worst = std::max(worst, sqrt(off / sum));
        if (!(off <= sum)) worst = INFINITY; // also NaN
    }
    return worst;
}

// Grid x and y, threads, blocks of a cluster.
struct Launch {
    int x, y, threads, cluster;
};

template <class M, int ROWS, int OUT>
static void check(const char *name, int group, int tokens, int limbs, float size, Launch launch,
                  void (*kernel)(const GemmArgs &)) {
    const Product p = {name, ROWS, M::K, group, tokens, OUT, limbs == 2, size};
    const dim3 grid = {(unsigned)launch.x, (unsigned)launch.y, 1};
    double error = 0;
    for (int late = 0; late < 2; late++) {
        emulated.late = late;
        const double e = p.error(
            [&](const GemmArgs &args) {
                emulated_launch(grid, launch.threads, launch.cluster, [&] { kernel(args); });
            },
            [](const SettleArgs &args) { settle_operand<GATED ? ROWS / 2 : ROWS>(args); });
        error = std::max(error, e);
    }
    // sums in binary32; an operand is rounded to binary16
    const double allowed = OUT == TO_OPERAND ? 6e-4 : 4e-6;
    printf("    %-40s %4d tokens  %.1e\n", name, tokens, error);
    CHECK_MSG(error <= allowed, "%s, %d tokens: relative error %.1e", name, tokens, error);
}

template <class M, int ROWS, int TILE, int TOKENS, int LIMBS, int OUT>
static void portable(const char *name, int group, int tokens, float size = 1) {
    const Launch launch = {((ROWS + 15) / 16 * 16 + TILE - 1) / TILE,
                           (tokens + TOKENS - 1) / TOKENS, 256, 1};
    check<M, ROWS, OUT>(name, group, tokens, LIMBS, size, launch,
                        product_prefill<M, ROWS, TILE, TOKENS, LIMBS, 3, OUT>);
}
template <class M, int ROWS, int TOKENS, int LIMBS, int SPLITS, int OUT, int HEIGHT = 8>
static void few(const char *name, int group, int tokens, float size = 1) {
    const int tiles = (ROWS + 16 * HEIGHT - 1) / (16 * HEIGHT);
    const Launch launch = {tiles * SPLITS, (tokens + TOKENS - 1) / TOKENS, 128 + 32 * HEIGHT,
                           SPLITS};
    check<M, ROWS, OUT>(name, group, tokens, LIMBS, size, launch,
                        product_few<M, ROWS, HEIGHT, TOKENS, LIMBS, SPLITS, OUT>);
}
template <class M, int ROWS, int TOKENS, int CLUSTER, int OUT>
static void many(const char *name, int group, int tokens, float size = 1) {
    const Launch launch = {2 * CLUSTER, 1, 384, CLUSTER}; // two clusters for all tiles
    check<M, ROWS, OUT>(name, group, tokens, 1, size, launch,
                        product_wgmma<M, ROWS, TOKENS, CLUSTER, OUT>);
}

TEST(portable_products) {
    portable<W4Tile<256, 128>, 80, 64, 16, 1, TO_VECTORS>("g128", 128, 21);
    portable<W4Tile<256, 128>, 80, 64, 16, 2, TO_VECTORS>("g128, two limbs", 128, 21);
    portable<W4Tile<160, 32>, 72, 64, 64, 2, TO_VECTORS>("g32, two limbs", 32, 70);
    portable<W4Tile<192, 64>, 128, 64, 64, 1, TO_RESIDUAL>("g64, residual", 64, 130);
    portable<F16Tile<96, 32>, 96, 64, 64, 2, TO_VECTORS>("binary16, two limbs", 0, 33);
    portable<F16Tile<128, 64>, 256, 128, 128, 1, TO_OPERAND>("binary16, operand", 0, 140);
    portable<W4Tile<128, 128>, 256, 256, 128, 1, TO_OPERAND>("g128, large operand", 128, 130, 600);
}

TEST(products_for_few_tokens) {
    few<W4Slices<1024, 128>, 144, 16, 1, 1, TO_VECTORS>("g128", 128, 9);
    few<W4Slices<1024, 128>, 144, 64, 2, 4, TO_VECTORS>("g128, two limbs, 4 parts", 128, 70);
    few<W4Slices<2048, 128>, 128, 16, 2, 1, TO_VECTORS>("g128, two limbs, long", 128, 5);
    few<W4Slices<1088, 64>, 128, 64, 2, 4, TO_VECTORS>("g64, odd slices, two limbs", 64, 66);
    few<W4Slices<576, 32>, 128, 16, 2, 1, TO_VECTORS>("g32, odd slices, two limbs", 32, 16);
    few<F16Slices<1344, 64>, 128, 64, 2, 2, TO_VECTORS>("binary16, odd, two limbs", 0, 64);
    few<F16Slices<64, 64>, 64, 16, 2, 1, TO_VECTORS>("binary16, one slice", 0, 3);
    few<W4Slices<1024, 128>, 256, 16, 1, 4, TO_OPERAND>("g128, operand, 4 parts", 128, 15);
    few<W4Slices<1024, 128>, 256, 64, 1, 2, TO_OPERAND>("g128, large operand", 128, 64, 300);
    few<W4Slices<2816, 128>, 128, 64, 1, 4, TO_RESIDUAL>("g128, residual", 128, 64);
    few<W4Slices<1024, 128>, 600, 64, 1, 1, TO_OPERAND, 12>("g128, 12 high", 128, 70);
    few<W4Slices<1088, 64>, 592, 64, 2, 2, TO_VECTORS, 12>("g64, 12 high, two limbs", 64, 64);
    few<F16Slices<1344, 64>, 400, 64, 1, 4, TO_RESIDUAL, 12>("binary16, 12 high", 0, 64);
    few<W4Slices<1024, 128>, 300, 16, 2, 2, TO_VECTORS, 12>("g128, 12 high, two limbs", 128, 13);
    few<W4Slices<2816, 128>, 300, 64, 1, 8, TO_RESIDUAL, 12>("g128, 12 high, 8 parts", 128, 64);
    few<W4Slices<2112, 64>, 144, 16, 1, 8, TO_RESIDUAL>("g64, odd slices, 8 parts", 64, 11);
}

TEST(products_for_many_tokens) {
    many<W4Slices<1088, 64>, 272, 128, 2, TO_VECTORS>("g64, odd slices", 64, 300);
    many<W4Slices<512, 128>, 256, 256, 2, TO_OPERAND>("g128, large operand", 128, 270, 400);
    many<F16Slices<192, 64>, 300, 128, 2, TO_RESIDUAL>("binary16, residual", 0, 130);
    many<W4Slices<256, 32>, 600, 128, 4, TO_VECTORS>("g32, clusters of 4", 32, 130);
}

// ---- norms ----

template <int K> static void check_rows(float size, float peak) {
    enum { TOKENS = 9 };
    std::vector<float> in(TOKENS * K), gamma(K), bias(K), scale(TOKENS);
    std::vector<u16> out(operand_size(K, TOKENS)), rest = out;
    for (float &v : in) v = size * (random_number() + 0.3f);
    for (int c = 0; c < K; c++) gamma[c] = 1 + random_number(), bias[c] = random_number();
    in[5] = peak;
    const RowsArgs args = {in.data(),  gamma.data(), bias.data(),
                           out.data(), rest.data(),  scale.data()};
    emulated_launch({TOKENS, 1, 1}, 256, 1, [&] { rows_to_operand<K>(args); });
    double worst[2] = {0, 0}; // of the operand alone, and with what it leaves out
    for (int t = 0; t < TOKENS; t++) {
        const float *x = &in[t * K];
        double mean = 0, squares = 0, off[2] = {0, 0}, sum = 0;
        for (int c = 0; c < K && NORM == NORM_LAYER; c++) mean += (double)x[c] / K;
        for (int c = 0; c < K; c++) squares += (x[c] - mean) * (x[c] - mean) / K;
        for (int c = 0; c < K; c++) {
            const size_t at = place(K, t, c);
            const double v = (x[c] - mean) / sqrt(squares + NORM_EPS) * gamma[c] +
                             (NORM == NORM_LAYER ? bias[c] : 0);
            const double high = f16_to_f32(out[at]), low = f16_to_f32(rest[at]);
            off[0] += pow(high * scale[t] - v, 2), off[1] += pow((high + low) * scale[t] - v, 2);
            sum += v * v;
        }
        for (int i = 0; i < 2; i++) worst[i] = std::max(worst[i], sqrt(off[i] / sum));
    }
    printf("    %d columns: %.1e, in two limbs %.1e\n", K, worst[0], worst[1]);
    CHECK(worst[0] <= 6e-4 && worst[1] <= 1e-6);
}

TEST(norms) {
    check_rows<512>(1, 0);
    check_rows<160>(100, 0);
    check_rows<1440>(1e4f, 1e10f);
}

// ---- decode ----

// Of the kind that M takes.
template <class M> static Matrix matrix_of(int rows, int group) {
    if (!group) return binary16_matrix(rows, M::K);
    if constexpr (M::UNIT_BYTES > 2048) return w8_matrix<M::K, M::GROUP>(rows);
    return w4_matrix(rows, M::K, group);
}

template <class M, int ROWS, int T, int WARPS, int RING, int BLOCKS, int IN, int OUT,
          int PAIR = NO_PAIR>
static void check_decode(const char *name, int group, int tokens, double allowed = 2e-6) {
    constexpr int K = M::K, WIDTH = OUT == OUT_GATED ? ROWS / 2 : ROWS;
    static_assert(ProductShape<M, ROWS, T, WARPS, RING, BLOCKS, IN>::SMEM <= SHARED_LIMIT, "fits");
    const Matrix m = matrix_of<M>(ROWS, group);
    std::vector<float> in(T * K), gamma(K), beta(K), extra(ROWS), out(T * ROWS);
    std::vector<float> residual(T * ROWS), clear(700);
    for (float &v : in) v = random_number();
    for (int c = 0; c < K; c++) gamma[c] = 1 + random_number(), beta[c] = random_number();
    for (float &v : extra) v = 1.5f + random_number();
    // Of the matrix itself, in the shares of 3 blocks, it brings into L2 what fits the shares.
    const int row_blocks = (ROWS + 15) / 16, sharing = K % 3 ? 3 : 0, split = T == 1 ? M::SPLIT : 1;
    auto lines = [&](int from, int most) {
        return BroughtLines{m.bytes.data(), row_blocks, M::ROW_BYTES, sharing, split, from, most};
    };
    const BroughtLines own = lines(300, 400), next = lines(1000, 700);
    u32 begun = 0;
    const ProductArgs args = {m.bytes.data(),   in.data(),    gamma.data(),
                              beta.data(),      extra.data(), out.data(),
                              residual.data(),  clear.data(), &begun,
                              T == 1 ? 600 : 0, tokens,       own,
                              next};
    auto wanted = [&](std::set<const u8 *> &set, const BroughtLines &some) {
        for (int block = 0; block < std::min(BLOCKS, sharing * split) && M::BRINGS; block++) {
            const int share = block / split, first = some.from + some.most * (block % split);
            const int more = row_blocks % 3; // the first ones have one more
            const i64 from = (i64)(row_blocks / 3 * share + std::min(share, more)) * M::ROW_BYTES;
            const i64 to = from + (i64)(row_blocks / 3 + (share < more)) * M::ROW_BYTES;
            for (i64 at = from + first; at < std::min(from + first + some.most, to); at += 128)
                set.insert(m.bytes.data() + at);
        }
    };
    auto brought = [&] { // without gamma and beta
        std::set<const u8 *> set = emulated.prefetched;
        set.erase(set.begin(), set.lower_bound(m.bytes.data()));
        set.erase(set.lower_bound(m.bytes.data() + m.bytes.size()), set.end());
        return set;
    };
    std::set<const u8 *> early_lines, all_lines;
    if (T == 1) wanted(early_lines, own);
    all_lines = early_lines;
    wanted(all_lines, next);
    emulated.prefetched.clear();
    const std::vector<float> given = in;
    std::vector<float> early;
    for (int late = 0; late < 2; late++) {
        std::fill(out.begin(), out.end(), NAN);
        std::fill(residual.begin(), residual.end(), NAN);
        std::fill(clear.begin(), clear.end(), 1.0f);
        std::fill(in.begin(), in.end(), NAN);
        begun = 0;
        emulated.late = late;
        auto begin = [&] { // the vectors are there
            std::copy(given.begin(), given.end(), in.begin());
            begun = PAIR == PAIR_SECOND;
        };
        emulated.telling = begin;
        emulated.previous = [&] {
            const std::set<const u8 *> seen = brought();
            CHECK_MSG(late || std::includes(early_lines.begin(), early_lines.end(), seen.begin(),
                                            seen.end()),
                      "%s: it brings a later matrix before it has waited", name);
            if (PAIR != PAIR_SECOND) begin();
            std::fill(out.begin(), out.end(), 0.0f);
            std::fill(residual.begin(), residual.end(), 0.5f);
        };
        emulated_launch({BLOCKS, 1, 1}, 32 * WARPS, M::SPLIT, [&] {
            product_decode<M, ROWS, T, WARPS, RING, BLOCKS, IN, OUT, PAIR>(args);
        });
        if (!late) early = out;
        CHECK_MSG(begun == (PAIR != NO_PAIR), "%s: it does not tell that it has begun", name);
        CHECK_MSG(std::count(clear.begin(), clear.begin() + args.clears, 0.0f) == args.clears &&
                      clear[args.clears] == 1,
                  "%s: clears", name);
    }
    CHECK_MSG(!memcmp(early.data(), out.data(), 4 * out.size()),
              "%s: it does not wait for its copies", name);
    CHECK_MSG(brought() == all_lines, "%s: %zu lines brought into L2, %zu expected", name,
              brought().size(), all_lines.size());
    double worst = 0;
    for (int t = 0; t < tokens; t++) {
        std::vector<double> x(K), y(ROWS);
        double mean = 0, squares = 0, off = 0, sum = 0;
        for (int c = 0; c < K && IN == IN_LAYER; c++) mean += (double)in[t * K + c] / K;
        for (int c = 0; c < K; c++) squares += pow(in[t * K + c] - mean, 2) / K;
        for (int c = 0; c < K; c++)
            x[c] = IN == IN_PLAIN ? in[t * K + c]
                                  : (in[t * K + c] - mean) / sqrt(squares + NORM_EPS) * gamma[c] +
                                        (IN == IN_LAYER ? beta[c] : 0);
        for (int r = 0; r < ROWS; r++)
            for (int c = 0; c < K; c++) y[r] += m.at(r, c) * x[c];
        for (int n = 0; n < WIDTH; n++) {
            double v = y[n];
            if (OUT == OUT_QKV) v += extra[n];
            if (OUT == OUT_QKV && CLIP_QKV > 0) v = fmax(fmin(v, CLIP_QKV), -CLIP_QKV);
            if (OUT == OUT_ADD) v += 0.5;
            if (OUT == OUT_GATED)
                v = activated(y[n / 8 * 16 + n % 8]) * y[n / 8 * 16 + 8 + n % 8] / extra[n];
            if (OUT == OUT_ACT) v = activated(v) / extra[n];
            off += pow(out[t * WIDTH + n] - v, 2), sum += v * v;
        }
        worst = std::max(worst, off <= sum ? sqrt(off / sum) : INFINITY);
    }
    printf("    %-40s %4d tokens  %.1e\n", name, tokens, worst);
    CHECK_MSG(worst <= allowed, "%s: relative error %.1e", name, worst);
}

TEST(products_of_decode) {
    check_decode<W4<512, 128>, 144, 1, 16, 4, 5, IN_RMS, OUT_QKV>("g128, RMSNorm", 128, 1);
    check_decode<W4<512, 128>, 144, 1, 8, 3, 9, IN_LAYER, OUT_ACT>("g128, LayerNorm", 128, 1);
    check_decode<W4<320, 64>, 160, 1, 16, 4, 3, IN_PLAIN, OUT_ADD>("g64", 64, 1);
    check_decode<W4<1664, 64>, 96, 1, 12, 4, 4, IN_LAYER, OUT_ACT>("g64 in pairs", 64, 1);
    check_decode<W4<256, 32>, 96, 1, 16, 4, 4, IN_RMS, OUT_QKV>("g32 in fours", 32, 1);
    check_decode<W4<1600, 64>, 96, 1, 12, 4, 4, IN_RMS, OUT_ADD>("g64, 13 chunks", 64, 1);
    check_decode<W4<224, 32>, 96, 1, 16, 4, 6, IN_RMS, OUT_GATED>("g32, gated", 32, 1);
    check_decode<W8<512, 128>, 150, 1, 14, 4, 5, IN_RMS, OUT_STORE>("8 bits", 128, 1);
    check_decode<W8<2240, 64>, 80, 1, 16, 4, 2, IN_LAYER, OUT_STORE>("8 bits, g64", 64, 1);
    check_decode<W8<352, 32>, 40, 1, 16, 4, 3, IN_RMS, OUT_STORE>("8 bits, g32", 32, 1);
    check_decode<F16<352>, 80, 1, 16, 4, 5, IN_RMS, OUT_STORE>("binary16", 0, 1);
    check_decode<F16<320>, 80, 1, 16, 4, 5, IN_LAYER, OUT_STORE>("binary16, wider units", 0, 1);
    check_decode<F16<2176>, 80, 1, 16, 4, 2, IN_LAYER, OUT_STORE>("binary16, wider units", 0, 1);
    check_decode<F16Short<2176, 2>, 80, 2, 16, 4, 2, IN_LAYER, OUT_STORE>("binary16, wider units", 0, 2);
    check_decode<W4<2176, 128>, 384, 1, 16, 4, 1, IN_RMS, OUT_QKV>("g128, one block", 128, 1);
}

// Halves of one vector's columns: of equal and of unequal ranges, a last unit that is not whole, ranges
// of which a warp keeps its columns in registers.
TEST(halves_of_columns) {
    check_decode<W4<1024, 128, 3, 2>, 144, 1, 4, 3, 4, IN_PLAIN, OUT_ADD>("g128", 128, 1);
    check_decode<W4<2176, 128, 3, 2>, 144, 1, 4, 3, 6, IN_PLAIN, OUT_ADD>("odd", 128, 1);
    check_decode<W4<1600, 64, 3, 2>, 80, 1, 4, 3, 4, IN_PLAIN, OUT_ADD>("g64, not whole", 64, 1);
    check_decode<W4<1024, 64, 3, 2>, 80, 1, 4, 3, 4, IN_PLAIN, OUT_ADD>("g64", 64, 1);
    check_decode<W4<1248, 32, 2, 2>, 208, 1, 4, 3, 2, IN_PLAIN, OUT_ADD>("g32, 2 digits", 32, 1, 1e-4);
    check_decode<W4<512, 32, 3, 2>, 80, 1, 8, 3, 2, IN_PLAIN, OUT_ADD>("g32", 32, 1);
    check_decode<F16<1120, 2>, 176, 1, 4, 3, 6, IN_PLAIN, OUT_ADD>("binary16", 0, 1);
    check_decode<W4<1024, 128, 3, 2>, 880, 1, 8, 3, 4, IN_PLAIN, OUT_ADD, PAIR_SECOND>("pair", 128, 1);
}

// The second of a pair reads its vector before the kernel before it has ended, and what its sums are
// added to afterwards.
TEST(pairs_of_decode) {
    check_decode<W4<320, 64>, 160, 1, 16, 4, 3, IN_LAYER, OUT_QKV, PAIR_FIRST>("first", 64, 1);
    check_decode<W4<320, 64>, 160, 1, 16, 4, 3, IN_LAYER, OUT_ACT, PAIR_SECOND>("second", 64, 1);
    check_decode<W4<512, 128>, 800, 1, 16, 4, 2, IN_PLAIN, OUT_ADD, PAIR_SECOND>("sum", 128, 1);
    check_decode<W4Short<512, 128, 2>, 144, 8, 16, 4, 1, IN_PLAIN, OUT_ADD, PAIR_SECOND>("few", 128, 5);
}

// With one limb the vectors are rounded to binary16, by 2^-11 at most.
TEST(products_of_short_prompts) {
    check_decode<W4Short<512, 128, 2>, 144, 8, 16, 4, 5, IN_RMS, OUT_QKV>("g128, RMSNorm", 128, 8);
    check_decode<W4Short<512, 128, 1>, 144, 8, 16, 2, 5, IN_RMS, OUT_STORE>("one limb", 128, 5, 5e-4);
    check_decode<W4Short<512, 128, 2>, 144, 4, 8, 3, 9, IN_LAYER, OUT_ACT>("LayerNorm", 128, 3);
    check_decode<W4Short<1664, 64, 2>, 96, 8, 12, 2, 4, IN_RMS, OUT_QKV>("g64 in pairs", 64, 6);
    check_decode<W4Short<256, 32, 1>, 96, 4, 16, 4, 4, IN_LAYER, OUT_ACT>("g32 in fours", 32, 4, 5e-4);
    check_decode<W4Short<320, 64, 2>, 160, 8, 16, 4, 3, IN_PLAIN, OUT_ADD>("g64", 64, 7);
    check_decode<W4Short<224, 32, 2>, 96, 8, 16, 4, 6, IN_RMS, OUT_GATED>("g32, gated", 32, 2);
    check_decode<W8Short<512, 128, 2>, 150, 8, 16, 4, 5, IN_RMS, OUT_STORE>("8 bits", 128, 7);
    check_decode<W8Short<320, 64, 2>, 40, 8, 16, 4, 3, IN_LAYER, OUT_STORE>("8 bits, g64", 64, 3);
    check_decode<F16Short<352, 2>, 80, 8, 16, 4, 5, IN_RMS, OUT_STORE>("binary16", 0, 7);
    check_decode<F16Short<352, 1>, 80, 8, 16, 4, 5, IN_PLAIN, OUT_ADD>("one limb", 0, 8, 5e-4);
}

// In clusters of 2 or 4 blocks, of which each has a part of the columns: as few as one chunk, parts of
// different sizes, a last unit that is not whole; sums that meet once, several times, and of fewer
// row blocks than a cluster has blocks.
TEST(short_prompts_in_clusters) {
    check_decode<W4Short<512, 128, 2, 2>, 144, 8, 16, 4, 4, IN_RMS, OUT_QKV>("g128", 128, 8);
    check_decode<W4Short<2176, 128, 2, 2>, 144, 8, 16, 2, 2, IN_RMS, OUT_STORE>("odd", 128, 5);
    check_decode<W4Short<512, 128, 1, 2>, 80, 8, 8, 2, 2, IN_PLAIN, OUT_ADD>("one limb", 128, 3, 5e-4);
    check_decode<W4Short<1664, 64, 2, 2>, 96, 8, 12, 2, 4, IN_LAYER, OUT_ACT>("g64", 64, 6);
    check_decode<W4Short<1600, 64, 2, 2>, 96, 4, 12, 3, 2, IN_RMS, OUT_GATED>("g64, not whole", 64, 4);
    check_decode<W8Short<1120, 32, 2, 2>, 80, 8, 16, 3, 2, IN_RMS, OUT_STORE>("8 bits", 32, 8);
    check_decode<W4Short<352, 32, 2, 2>, 80, 8, 16, 4, 2, IN_LAYER, OUT_STORE>("g32, not whole", 32, 7);
    check_decode<W4Short<256, 32, 2, 2>, 1280, 8, 8, 2, 2, IN_RMS, OUT_QKV>("meets often", 32, 7);
    check_decode<W4Short<256, 128, 2, 2>, 640, 2, 8, 2, 2, IN_PLAIN, OUT_ADD>("of two", 128, 2);
    check_decode<W4Short<4480, 128, 2, 2>, 32, 8, 16, 2, 4, IN_LAYER, OUT_QKV>("many", 128, 8);
    check_decode<F16Short<352, 2, 2>, 80, 8, 16, 4, 4, IN_RMS, OUT_STORE>("binary16", 0, 7);
    check_decode<F16Short<1216, 2, 2>, 96, 4, 16, 3, 2, IN_LAYER, OUT_GATED>("binary16, gated", 0, 3);
    check_decode<W4Short<512, 128, 2, 4>, 112, 8, 8, 3, 4, IN_RMS, OUT_GATED>("4 blocks", 128, 8);
    check_decode<W4Short<1248, 32, 2, 4>, 48, 8, 16, 4, 8, IN_LAYER, OUT_ACT>("4, g32", 32, 7);
    check_decode<F16Short<608, 2, 4>, 400, 8, 16, 3, 4, IN_PLAIN, OUT_ADD>("4, binary16", 0, 8);
    check_decode<W4Short<512, 128, 2, 2>, 144, 8, 16, 4, 2, IN_LAYER, OUT_ACT, PAIR_SECOND>("pair", 128, 5);
    check_decode<W4Short<512, 128, 2, 2>, 656, 8, 16, 4, 2, IN_PLAIN, OUT_ADD, PAIR_SECOND>("sum", 128, 8);
    check_decode<W4Short<512, 128, 2, 2>, 144, 8, 16, 4, 2, IN_RMS, OUT_QKV, PAIR_FIRST>("first", 128, 5);
}

TEST_MAIN(RUN(portable_products) RUN(products_for_few_tokens) RUN(products_for_many_tokens)
              RUN(norms) RUN(products_of_decode) RUN(halves_of_columns)
              RUN(pairs_of_decode)
              RUN(products_of_short_prompts) RUN(short_prompts_in_clusters))
