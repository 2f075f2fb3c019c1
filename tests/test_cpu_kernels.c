/* The CPU backend against arithmetic in double precision that is written here from docs/format.md
 * and the definition of the model, for every kernel set that this processor has; and the promise
 * that no result depends on how work is cut into calls or shared between threads, bit for bit. */
#include "src/backend.h"
#include "src/cpu_kernels.h"
#include "test.h"

#include <math.h>

static const char *const levels[] = {"portable", "avx2", "avx512", "avx512vnni", "neon"};
#define LEVELS (sizeof levels / sizeof *levels)

/* The kernel set of this name, or NULL if the processor lacks it. */
static const tc__kernels *level_kernels(const char *level) {
    const tc__kernels *kernels = NULL;
    return tc__kernels_choose(level, &kernels, NULL) == TC_OK ? kernels : NULL;
}

/* ---- random numbers ---- */

static uint32_t random_bits(void) {
    static uint64_t state = 0x9E3779B97F4A7C15u;
    state ^= state << 13, state ^= state >> 7, state ^= state << 17;
    return (uint32_t)(state >> 32);
}
static double random_in(double least, double most) {
    return least + (most - least) * random_bits() / 4294967296.0;
}
static size_t random_below(size_t n) {
    return random_bits() % n;
}

/* ---- half precision, from its definition ---- */

static double half_value(uint16_t half) {
    int exponent = half >> 10 & 31, fraction = half & 1023;
    double magnitude = exponent == 31 ? fraction ? NAN : INFINITY
                       : exponent     ? ldexp(1024 + fraction, exponent - 25)
                                      : ldexp(fraction, -24);
    return half & 0x8000 ? -magnitude : magnitude;
}
static double bfloat_value(uint16_t bits) {
    int exponent = bits >> 7 & 255, fraction = bits & 127;
    double magnitude = exponent == 255 ? fraction ? NAN : INFINITY
                       : exponent      ? ldexp(128 + fraction, exponent - 134)
                                       : ldexp(fraction, -133);
    return bits & 0x8000 ? -magnitude : magnitude;
}

/* ---- matrices ---- */

/* A tensor with random contents and the values it stands for. */
typedef struct matrix {
    tc__tensor tensor;
    double *values; /* [rows][columns] */
} matrix;

static void put_half(uint8_t *to, uint16_t half) {
    to[0] = (uint8_t)half;
    to[1] = (uint8_t)(half >> 8);
}

/* One unit of 16 rows x g columns as docs/format.md has it; v(row, column) gets the values. */
static void fill_unit(uint8_t *unit, unsigned g, double amplitude, size_t rows_left, double *v,
                      size_t columns) {
    uint16_t scale[16];
    unsigned zero[16];
    for (unsigned r = 0; r < 16; r++) {
        /* around amplitude / 8, which makes weights of about +-amplitude; 0 beyond the matrix */
        scale[r] = r < rows_left ? tc__f32_to_f16((float)(amplitude / 8 * random_in(0.5, 1.5))) : 0;
        zero[r] = (unsigned)random_below(16);
        uint8_t *pair = unit + 8 * g + 8 * (r % 8) + 4 * (r / 8);
        put_half(pair, scale[r]);
        put_half(pair + 2, tc__f32_to_f16((float)zero[r]));
    }
    for (unsigned l = 0; l < 32; l++)
        for (unsigned w = 0; w < g / 16; w++) {
            uint32_t word = random_bits();
            uint8_t *at = g == 32 ? unit + 8 * l + 4 * w
                          : w < 4 ? unit + 16 * l + 4 * w
                                  : unit + 512 + 16 * l + 4 * (w - 4);
            for (unsigned b = 0; b < 4; b++) at[b] = (uint8_t)(word >> 8 * b);
            for (unsigned e = 0; e < 8; e++) {
                unsigned row = (l >> 2) + 8 * (e & 1);
                unsigned column =
                    32 * (w >> 1) + 8 * (l & 3) + 4 * (w & 1) + 2 * (e >> 1 & 1) + (e >> 2);
                if (row < rows_left)
                    v[row * columns + column] =
                        half_value(scale[row]) * ((double)(word >> 4 * e & 15) - zero[row]);
            }
        }
}

static void matrix_make(matrix *m, uint32_t type, unsigned g, size_t rows, size_t columns,
                        double amplitude) {
    memset(m, 0, sizeof *m);
    m->tensor.type = type;
    m->tensor.group_size = type == TC__W4 ? g : 0;
    m->tensor.rows = rows;
    m->tensor.columns = columns;
    size_t blocks = (rows + 15) / 16;
    m->tensor.size = type == TC__W4 ? blocks * (columns / g) * (8 * g + 64) : rows * columns * 2;
    uint8_t *data = malloc(m->tensor.size); /* exactly, so that sanitizers see reads beyond it */
    m->tensor.data = data;
    m->values = calloc(rows * columns, sizeof *m->values);
    if (type == TC__W4) {
        for (size_t b = 0; b < blocks; b++)
            for (size_t j = 0; j < columns / g; j++)
                fill_unit(data + (b * (columns / g) + j) * (8 * g + 64), g, amplitude,
                          rows - 16 * b, m->values + 16 * b * columns + j * g, columns);
        return;
    }
    for (size_t i = 0; i < rows * columns; i++) {
        float value = (float)(amplitude * random_in(-1, 1));
        uint32_t bits;
        memcpy(&bits, &value, sizeof bits);
        uint16_t half = type == TC__F16 ? tc__f32_to_f16(value) : (uint16_t)(bits >> 16);
        put_half(data + 2 * i, half);
        m->values[i] = type == TC__F16 ? half_value(half) : bfloat_value(half);
    }
}

static void matrix_free(matrix *m) {
    free((void *)m->tensor.data);
    free(m->values);
}

/* Vectors in natural order and in the order of a matrix, as the kernels want them. */
typedef struct vectors {
    float *plain, *ordered;
    size_t count, columns, stride;
} vectors;

static vectors vectors_make(const tc__tensor *m, size_t count) {
    vectors x = {NULL, NULL, count, m->columns, (m->columns + 15) / 16 * 16 + 16};
    x.plain = calloc(count * x.columns, sizeof *x.plain);
    x.ordered = tc__alloc_aligned(count * x.stride * sizeof *x.ordered);
    for (size_t i = 0; i < count * x.columns; i++) {
        x.plain[i] = (float)random_in(-1, 1);
        x.ordered[i / x.columns * x.stride + tc__ordered(tc__order_of(m), i % x.columns)] =
            x.plain[i];
    }
    return x;
}
static void vectors_free(vectors *x) {
    free(x->plain);
    tc__free_aligned(x->ordered);
}

/* What tc__multiply_rows hands over. */
typedef struct results {
    float *y; /* [count][rows] */
    int *times;
    size_t rows;
} results;

static void results_take(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    results *r = user;
    for (size_t i = 0; i < rows; i++) {
        if (row + i >= r->rows) {
            CHECK_MSG(0, "row %zu of %zu", row + i, r->rows);
            return;
        }
        r->y[vector * r->rows + row + i] = y[i];
        r->times[vector * r->rows + row + i]++;
    }
}

static results multiply(const tc__kernels *kernels, const matrix *m, const vectors *x, size_t first,
                        size_t count) {
    size_t rows = m->tensor.rows, blocks = (rows + 15) / 16, middle = random_below(blocks + 1);
    results r = {calloc(count * rows, sizeof(float)), calloc(count * rows, sizeof(int)), rows};
    float *scratch = tc__alloc_aligned(tc__multiply_scratch(count) * sizeof *scratch);
    const float *from = x->ordered + first * x->stride;
    float *fixed = NULL;
    if (tc__fixes(kernels, &m->tensor)) {
        size_t groups = count * (m->tensor.columns / m->tensor.group_size);
        size_t half = random_below(groups + 1);
        fixed = tc__alloc_aligned(count * m->tensor.columns * sizeof *fixed);
        tc__fix(kernels, &m->tensor, half, groups, from, x->stride, count, fixed);
        tc__fix(kernels, &m->tensor, 0, half, from, x->stride, count, fixed);
        from = fixed;
    }
    tc__multiply_rows(kernels, &m->tensor, 0, middle, from, x->stride, count, scratch, results_take,
                      &r);
    tc__multiply_rows(kernels, &m->tensor, middle, blocks, from, x->stride, count, scratch,
                      results_take, &r);
    tc__free_aligned(scratch);
    tc__free_aligned(fixed);
    for (size_t i = 0; i < count * rows; i++) CHECK(r.times[i] == 1);
    return r;
}
static void results_free(results *r) {
    free(r->y);
    free(r->times);
}

/* Largest error of the products, relative to the sum of the magnitudes of their terms. */
static double results_error(const results *r, const matrix *m, const vectors *x, size_t first,
                            size_t count) {
    double worst = 0;
    for (size_t v = 0; v < count; v++)
        for (size_t row = 0; row < r->rows; row++) {
            double sum = 0, size = 0;
            for (size_t k = 0; k < x->columns; k++) {
                double term =
                    m->values[row * x->columns + k] * x->plain[(first + v) * x->columns + k];
                sum += term;
                size += fabs(term);
            }
            double error = fabs(r->y[v * r->rows + row] - sum) / (size > 0 ? size : 1);
            if (!(error <= worst)) worst = error; /* also if it is no number */
        }
    return worst;
}

/* All products one by one and together, in every kernel set: right, and equal to the last bit. */
static void check_products(uint32_t type, unsigned g, size_t rows, size_t columns,
                           const size_t *counts, size_t n_counts) {
    matrix m;
    matrix_make(&m, type, g, rows, columns, 1);
    size_t most = 0;
    for (size_t i = 0; i < n_counts; i++) most = counts[i] > most ? counts[i] : most;
    vectors x = vectors_make(&m.tensor, most);
    for (size_t l = 0; l < LEVELS; l++) {
        const tc__kernels *kernels = level_kernels(levels[l]);
        if (!kernels) continue;
        results all = multiply(kernels, &m, &x, 0, most);
        double error = results_error(&all, &m, &x, 0, most < 3 ? most : 3);
        CHECK_MSG(error < 1e-6, "%s: type %u g%u [%zu, %zu]: error %g", levels[l], (unsigned)type,
                  g, rows, columns, error);
        for (size_t i = 0; i < n_counts; i++) {
            size_t first = random_below(most - counts[i] + 1);
            results part = multiply(kernels, &m, &x, first, counts[i]);
            CHECK_MSG(memcmp(part.y, all.y + first * rows, counts[i] * rows * sizeof(float)) == 0,
                      "%s: type %u g%u [%zu, %zu]: %zu vectors are not the same as among %zu",
                      levels[l], (unsigned)type, g, rows, columns, counts[i], most);
            results_free(&part);
        }
        results_free(&all);
    }
    vectors_free(&x);
    matrix_free(&m);
}

TEST(products_of_w4) {
    static const unsigned groups[] = {32, 64, 128};
    static const size_t rows[] = {1, 8, 15, 16, 17, 33, 48};
    static const size_t counts[] = {1, 2, 3, 4, 5, 6, 7, 8, 13};
    for (size_t i = 0; i < TC_COUNT(groups); i++)
        for (size_t r = 0; r < TC_COUNT(rows); r++) {
            static const size_t multiples[] = {1, 2, 3, 5, 9};
            for (size_t k = 0; k < TC_COUNT(multiples); k++)
                check_products(TC__W4, groups[i], rows[r], multiples[k] * groups[i], counts,
                               TC_COUNT(counts));
        }
}

TEST(products_of_halves) {
    static const size_t rows[] = {1, 4, 15, 16, 17, 35};
    static const size_t columns[] = {1, 7, 8, 15, 16, 31, 32, 64, 96, 100, 300, 515, 1031};
    static const size_t counts[] = {1, 2, 3, 4, 5, 7, 12};
    for (size_t r = 0; r < TC_COUNT(rows); r++)
        for (size_t k = 0; k < TC_COUNT(columns); k++) {
            check_products(TC__F16, 0, rows[r], columns[k], counts, TC_COUNT(counts));
            check_products(TC__BF16, 0, rows[r], columns[k], counts, TC_COUNT(counts));
        }
}

TEST(products_of_a_large_model) {
    static const size_t counts[] = {1, 2, 33, 64, 67, 130};
    check_products(TC__W4, 128, 17, 11008, counts, TC_COUNT(counts));
    check_products(TC__W4, 64, 17, 11008, counts, TC_COUNT(counts));
    check_products(TC__W4, 32, 17, 4096, counts, TC_COUNT(counts));
    check_products(TC__F16, 0, 17, 4096, counts, TC_COUNT(counts));
    check_products(TC__BF16, 0, 17, 4096, counts, TC_COUNT(counts));
}

TEST(every_number_of_vectors) {
    size_t counts[130];
    for (size_t i = 0; i < TC_COUNT(counts); i++) counts[i] = i + 1;
    check_products(TC__W4, 128, 18, 384, counts, TC_COUNT(counts));
    check_products(TC__W4, 32, 16, 96, counts, TC_COUNT(counts));
    check_products(TC__F16, 0, 18, 41, counts, TC_COUNT(counts));
}

/* A vector with a single 1 picks one column: every weight comes out exactly. */
TEST(weights_are_exact) {
    static const unsigned groups[] = {32, 64, 128};
    for (size_t i = 0; i < TC_COUNT(groups); i++)
        for (size_t count = 1; count <= 7; count += 6)
            for (size_t l = 0; l < LEVELS; l++) {
                const tc__kernels *kernels = level_kernels(levels[l]);
                if (!kernels) continue;
                matrix m;
                size_t columns = 2 * groups[i], wrong = 0;
                matrix_make(&m, TC__W4, groups[i], 19, columns, 1);
                vectors x = vectors_make(&m.tensor, count);
                for (size_t column = 0; column < columns; column++) {
                    memset(x.ordered, 0, count * x.stride * sizeof *x.ordered);
                    for (size_t v = 0; v < count; v++)
                        x.ordered[v * x.stride + tc__ordered(tc__order_of(&m.tensor), column)] = 1;
                    results r = multiply(kernels, &m, &x, 0, count);
                    for (size_t y = 0; y < count * 19; y++)
                        wrong += r.y[y] != m.values[y % 19 * columns + column];
                    results_free(&r);
                }
                CHECK_MSG(wrong == 0, "%s: g%u: %zu wrong weights with %zu vectors", levels[l],
                          groups[i], wrong, count);
                vectors_free(&x);
                matrix_free(&m);
            }
}

/* Fixed point, from its definition in cpu_fixed.h: three limbs, their sums, and a step that is the
 * smallest power of two with which the largest number fits. */
static void check_fixed(const tc__kernels *kernels, unsigned g, const float *x) {
    float fixed[128], step;
    int16_t sums[4];
    const int8_t *limbs = (const int8_t *)fixed;
    double largest = 0, error = 0;
    long total[3] = {0, 0, 0};
    kernels->fix(x, g, fixed);
    memcpy(&step, limbs + 3 * g, sizeof step);
    memcpy(sums, limbs + 3 * g + sizeof step, sizeof sums);
    for (unsigned i = 0; i < g; i++) {
        /* a pair's chunk of 4 * places elements: element places * m + p is byte 4 p + m */
        unsigned places = g == 32 ? 8 : 16, in = i % (4 * places);
        const int8_t *limb = limbs + i - in + 4 * (in % places) + in / places;
        double value = 65536.0 * limb[0] + 256.0 * limb[g] + limb[2 * g];
        error = fmax(error, fabs(value * (double)step - (double)x[i]));
        largest = fmax(largest, fabs((double)x[i]));
        for (unsigned k = 0; k < 3; k++) total[k] += limb[(2 - k) * g];
    }
    for (unsigned k = 0; k < 3; k++) CHECK(sums[k] == total[k]);
    CHECK(sums[3] == 0);
    CHECK_MSG(error <= (double)step / 2, "error %g, step %g", error, (double)step);
    CHECK_MSG((double)step == ldexp(1, -126) || largest >= (double)step * 0x7f0000 / 2,
              "largest %g, step %g", largest, (double)step);
}

TEST(fixed_point) {
    static const unsigned groups[] = {32, 64, 128};
    const tc__kernels *kernels = level_kernels("avx512vnni");
    if (!kernels) return;
    for (size_t i = 0; i < TC_COUNT(groups); i++) {
        const unsigned g = groups[i];
        float x[128] = {0}, fixed[128], step;
        check_fixed(kernels, g, x);
        for (int e = -149; e < 126; e++) { /* every exponent; the largest on and around powers */
            for (unsigned k = 0; k < g; k++) x[k] = (float)ldexp(random_in(-1, 1), e);
            for (int n = 0; n < 6; n++) {
                static const double largest[] = {1,        1.5,         0x1.fcp0, 0x1.fdfdfcp0,
                                                 0x1.fep0, 0x1.fffffep0};
                x[random_below(g)] = (float)ldexp(n % 2 ? largest[n] : -largest[n], e);
                check_fixed(kernels, g, x);
            }
        }
        for (unsigned k = 0; k < g; k++) x[k] = k % 3 ? 0x7f7f7f : -0x7f7f7f;
        check_fixed(kernels, g, x);
        const float none[] = {NAN, INFINITY, -INFINITY};
        for (size_t k = 0; k < TC_COUNT(none); k++) {
            x[random_below(g)] = none[k];
            kernels->fix(x, g, fixed);
            memcpy(&step, (const uint8_t *)fixed + 3 * g, sizeof step);
            CHECK(isnan(step));
        }
    }
}

/* The largest sums there can be: no integer overflows. */
TEST(extreme_products) {
    static const unsigned groups[] = {32, 64, 128};
    for (size_t i = 0; i < TC_COUNT(groups); i++)
        for (unsigned kind = 0; kind < 8; kind++) {
            const unsigned g = groups[i], q = kind & 1 ? 15 : 0, zero = kind & 2 ? 15 : 0;
            const float value = kind & 4 ? -0x7f7f7fp-20f : 0x7f7f7fp-20f;
            matrix m;
            matrix_make(&m, TC__W4, g, 16, g, 1);
            uint8_t *unit = (uint8_t *)m.tensor.data;
            memset(unit, (int)(q * 17), 8 * (size_t)g);
            for (unsigned r = 0; r < 16; r++) {
                put_half(unit + 8 * g + 4 * r, tc__f32_to_f16(0.5f));
                put_half(unit + 8 * g + 4 * r + 2, tc__f32_to_f16((float)zero));
            }
            for (size_t k = 0; k < 16 * (size_t)g; k++) m.values[k] = 0.5 * ((double)q - zero);
            vectors x = vectors_make(&m.tensor, 5);
            for (size_t k = 0; k < 5 * (size_t)g; k++)
                x.plain[k] = x.ordered[k / g * x.stride + k % g] = value;
            for (size_t l = 0; l < LEVELS; l++) {
                const tc__kernels *kernels = level_kernels(levels[l]);
                if (!kernels) continue;
                results r = multiply(kernels, &m, &x, 0, 5);
                double error = results_error(&r, &m, &x, 0, 5);
                CHECK_MSG(error < 1e-6, "%s: g%u, %u - %u: error %g", levels[l], g, q, zero, error);
                results_free(&r);
            }
            vectors_free(&x);
            matrix_free(&m);
        }
}

/* All 65536 halves of both kinds. */
TEST(halves_are_exact) {
    uint16_t *halves = malloc(65536 * sizeof *halves);
    const uint16_t *rows[16];
    float *tile = tc__alloc_aligned(65536 * sizeof *tile);
    for (unsigned i = 0; i < 65536; i++) halves[i] = (uint16_t)i;
    for (unsigned r = 0; r < 16; r++) rows[r] = halves + 4096 * r;
    for (int bf16 = 0; bf16 < 2; bf16++)
        for (size_t l = 0; l < LEVELS; l++) {
            const tc__kernels *kernels = level_kernels(levels[l]);
            if (!kernels) continue;
            kernels->half_expand[bf16](rows, 4096, tile, 4096);
            size_t wrong = 0;
            for (unsigned i = 0; i < 65536; i++) {
                double want = bf16 ? bfloat_value((uint16_t)i) : half_value((uint16_t)i);
                bool same = isnan(want) ? isnan(tile[i])
                                        : tile[i] == want && !signbit(tile[i]) == !signbit(want);
                wrong += !same;
            }
            CHECK_MSG(wrong == 0, "%s: %s: %zu wrong halves", levels[l], bf16 ? "bf16" : "f16",
                      wrong);
        }
    free(halves);
    tc__free_aligned(tile);
}

TEST(orders_are_permutations) {
    const tc__order orders[] = {TC__ORDER_PLAIN, TC__ORDER_W4_32, TC__ORDER_W4_64};
    for (size_t o = 0; o < TC_COUNT(orders); o++) {
        float a[256] = {0}, b[256] = {0};
        for (size_t i = 0; i < 256; i++) {
            REQUIRE(tc__ordered(orders[o], i) < 256);
            a[tc__ordered(orders[o], i)] = (float)i + 1;
        }
        for (size_t i = 0; i < 256; i++) CHECK(a[i] > 0);
        for (size_t i = 0; i < 256; i += 4) {
            float four[4] = {(float)i + 1, (float)i + 2, (float)i + 3, (float)i + 4};
            tc__put4(orders[o], b, i, four);
        }
        CHECK(memcmp(a, b, sizeof a) == 0);
    }
}

TEST(exponential) {
    for (size_t l = 0; l < LEVELS; l++) {
        const tc__kernels *kernels = level_kernels(levels[l]);
        if (!kernels) continue;
        for (size_t n = 1; n <= 64; n++) {
            float in[64], out[64], shift = (float)random_in(-5, 5);
            for (size_t i = 0; i < 64; i++)
                out[i] = in[i] = (float)random_in(-1, 1) * (n % 2 ? 10 : 80);
            double sum = 0, total = kernels->exponential(out, n, shift);
            for (size_t i = 0; i < (n + 15) / 16 * 16; i++) {
                double want = i < n ? exp((double)(float)(in[i] - shift)) : 0;
                sum += want;
                CHECK_MSG(fabs(out[i] - want) <= 3e-7 * want, "%s: exp(%g) = %g", levels[l],
                          in[i] - shift, out[i]);
            }
            CHECK(fabs(total - sum) <= 2e-6 * sum);
        }
        float ends[16] = {-200, 100, NAN};
        kernels->exponential(ends, 3, 0);
        CHECK(ends[0] >= 0 && ends[0] < 1e-37f);
        CHECK(ends[1] > 1e38f && isnan(ends[2]));
    }
}

TEST(blend) {
    static const size_t widths[] = {16, 48, 64, 128, 144};
    for (size_t l = 0; l < LEVELS; l++) {
        const tc__kernels *kernels = level_kernels(levels[l]);
        if (!kernels) continue;
        for (size_t w = 0; w < TC_COUNT(widths); w++)
            for (size_t n = 1; n < 40; n += 7) {
                size_t width = widths[w], stride = width + 16;
                float p[40], *rows = malloc(n * stride * sizeof *rows), out[144];
                for (size_t i = 0; i < n; i++) p[i] = (float)random_in(0, 1);
                for (size_t i = 0; i < n * stride; i++) rows[i] = (float)random_in(-1, 1);
                for (size_t i = 0; i < width; i++) out[i] = 0.5f;
                kernels->blend(p, n, rows, stride, width, out);
                for (size_t i = 0; i < width; i++) {
                    double want = 0.5;
                    for (size_t j = 0; j < n; j++) want += (double)p[j] * rows[j * stride + i];
                    CHECK(fabs(out[i] - want) < 1e-5);
                }
                free(rows);
            }
    }
}

TEST(unknown_kernels_are_refused) {
    const tc__kernels *kernels;
    tc_error err;
    CHECK(tc__kernels_choose("mmx", &kernels, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "mmx") && strstr(err.message, "portable"), "%s", err.message);
    CHECK(tc__kernels_choose(NULL, &kernels, &err) == TC_OK && kernels->lanes >= 4);
}

/* ---- a small model and its plain forward pass ---- */

enum { MATRICES = 4, LAYERS_MAX = 2, HALF_MAX = 16 }; /* of a layer: qkv, o, gate_up, down */

#define THETA 1e4
#define LLAMA(hidden, inner, n_layers, n_heads, n_kv_heads, dim, vocab, positions, eps)            \
    {                                                                                              \
        .hidden_size = hidden, .intermediate_size = inner, .layers = n_layers, .heads = n_heads,   \
        .kv_heads = n_kv_heads, .head_dim = dim, .vocab_size = vocab, .max_seq_len = positions,    \
        .gated = true, .norm_eps = eps, .rope_scale = 1                                            \
    }

typedef struct model {
    tc__weights weights;
    tc__layer layers[LAYERS_MAX];
    matrix embed, head, matrices[LAYERS_MAX][MATRICES];
    matrix norms[2 * LAYERS_MAX + 1]; /* attn, mlp of each layer; final */
    double frequencies[HALF_MAX];
} model;

/* A norm's weights: binary32. */
static void norm_make(matrix *m, size_t n) {
    memset(m, 0, sizeof *m);
    float *data = malloc(n * sizeof *data);
    m->values = calloc(n, sizeof *m->values);
    for (size_t i = 0; i < n; i++) m->values[i] = data[i] = (float)random_in(0.5, 1.5);
    m->tensor.type = TC__F32;
    m->tensor.rows = n;
    m->tensor.columns = 1;
    m->tensor.data = (const uint8_t *)data;
    m->tensor.size = n * sizeof *data;
}

/* type of the layers' matrices, TC__W4 with group size g; embedding and head are BF16 and F16.
 * `spread` scales q and k: larger makes attention more selective. */
static void model_make(model *m, const tc__arch *arch, uint32_t type, unsigned g, double spread) {
    memset(m, 0, sizeof *m);
    tc__weights *w = &m->weights;
    size_t hidden = arch->hidden_size, heads = (size_t)arch->heads * arch->head_dim;
    size_t qkv = heads + 2 * (size_t)arch->kv_heads * arch->head_dim;
    w->arch = *arch;
    w->arch.frequencies = m->frequencies;
    for (size_t i = 0; i < arch->head_dim / 2; i++)
        m->frequencies[i] = pow(THETA, -2.0 * (double)i / arch->head_dim);
    w->layers = m->layers;
    matrix_make(&m->embed, TC__BF16, 0, arch->vocab_size, hidden, 1);
    matrix_make(&m->head, TC__F16, 0, arch->vocab_size, hidden, 1);
    norm_make(&m->norms[2 * LAYERS_MAX], hidden);
    w->embed = &m->embed.tensor;
    w->head = &m->head.tensor;
    w->norm = &m->norms[2 * LAYERS_MAX].tensor;
    for (size_t l = 0; l < arch->layers; l++) {
        matrix *of = m->matrices[l];
        matrix_make(&of[0], type, g, qkv, hidden, spread / sqrt((double)hidden));
        matrix_make(&of[1], type, g, hidden, heads, 1 / sqrt((double)heads));
        matrix_make(&of[2], type, g, 2 * (size_t)arch->intermediate_size, hidden,
                    2 / sqrt((double)hidden));
        matrix_make(&of[3], type, g, hidden, arch->intermediate_size,
                    1 / sqrt((double)arch->intermediate_size));
        norm_make(&m->norms[2 * l], hidden);
        norm_make(&m->norms[2 * l + 1], hidden);
        m->layers[l] = (tc__layer){.attn_norm = &m->norms[2 * l].tensor,
                                   .qkv = &of[0].tensor,
                                   .o = &of[1].tensor,
                                   .mlp_norm = &m->norms[2 * l + 1].tensor,
                                   .gate_up = &of[2].tensor,
                                   .down = &of[3].tensor};
    }
}

static void model_free(model *m) {
    matrix_free(&m->embed);
    matrix_free(&m->head);
    for (size_t i = 0; i < TC_COUNT(m->norms); i++) matrix_free(&m->norms[i]);
    for (size_t l = 0; l < m->weights.arch.layers; l++)
        for (size_t i = 0; i < MATRICES; i++) matrix_free(&m->matrices[l][i]);
}

static void plain_norm(const matrix *gamma, const double *h, size_t n, double eps, double *x) {
    double sum = 0;
    for (size_t i = 0; i < n; i++) sum += h[i] * h[i];
    for (size_t i = 0; i < n; i++) x[i] = h[i] / sqrt(sum / (double)n + eps) * gamma->values[i];
}

static void plain_product(const matrix *m, const double *x, double *y) {
    for (size_t r = 0; r < m->tensor.rows; r++) {
        y[r] = 0;
        for (size_t k = 0; k < m->tensor.columns; k++)
            y[r] += m->values[r * m->tensor.columns + k] * x[k];
    }
}

static void plain_rope(double *head, size_t head_dim, double position) {
    for (size_t i = 0; i < head_dim / 2; i++) {
        double angle = position * pow(THETA, -2.0 * (double)i / (double)head_dim);
        double a = head[i], b = head[i + head_dim / 2];
        head[i] = a * cos(angle) - b * sin(angle);
        head[i + head_dim / 2] = a * sin(angle) + b * cos(angle);
    }
}

/* Attention of one query over the positions whose keys and values are given ([n][width]), besides
 * `empty` positions where both are zero. */
static void plain_attention(const double *query, const double *keys, const double *values, size_t n,
                            size_t width, size_t head_dim, size_t empty, double *out) {
    double *scores = calloc(n, sizeof *scores), top = 0, total;
    for (size_t j = 0; j < n; j++) {
        for (size_t d = 0; d < head_dim; d++) scores[j] += query[d] * keys[j * width + d];
        scores[j] /= sqrt((double)head_dim);
        if (scores[j] > top) top = scores[j];
    }
    total = (double)empty * exp(-top);
    for (size_t d = 0; d < head_dim; d++) out[d] = 0;
    for (size_t j = 0; j < n; j++) {
        double weight = exp(scores[j] - top);
        total += weight;
        for (size_t d = 0; d < head_dim; d++) out[d] += weight * values[j * width + d];
    }
    for (size_t d = 0; d < head_dim; d++) out[d] /= total;
    free(scores);
}

/* logits [n][vocab] of ids at the given positions (ascending). Positions in between hold zeros. */
static void plain_forward(const model *m, const int32_t *ids, const size_t *positions, size_t n,
                          double *logits) {
    const tc__arch *a = &m->weights.arch;
    const size_t hidden = a->hidden_size, head_dim = a->head_dim, inter = a->intermediate_size;
    const size_t heads = a->heads * head_dim, kv = a->kv_heads * head_dim;
    double *h = calloc(n * hidden, sizeof *h), *x = calloc(hidden, sizeof *x);
    double *qkv = calloc(n * (heads + 2 * kv), sizeof *qkv), *mixed = calloc(heads, sizeof *mixed);
    double *keys = calloc(n * kv, sizeof *keys), *values = calloc(n * kv, sizeof *values);
    double *gate_up = calloc(2 * inter, sizeof *gate_up), *gated = calloc(inter, sizeof *gated);
    double *y = calloc(hidden, sizeof *y);
    for (size_t p = 0; p < n; p++)
        memcpy(h + p * hidden, m->embed.values + (size_t)ids[p] * hidden, hidden * sizeof *h);
    for (size_t l = 0; l < a->layers; l++) {
        const matrix *of = m->matrices[l];
        for (size_t p = 0; p < n; p++) {
            double *q = qkv + p * (heads + 2 * kv);
            plain_norm(&m->norms[2 * l], h + p * hidden, hidden, a->norm_eps, x);
            plain_product(&of[0], x, q);
            for (size_t i = 0; i < a->heads + a->kv_heads; i++)
                plain_rope(q + i * head_dim, head_dim, (double)positions[p]);
            memcpy(keys + p * kv, q + heads, kv * sizeof *keys);
            memcpy(values + p * kv, q + heads + kv, kv * sizeof *values);
        }
        for (size_t p = 0; p < n; p++) {
            for (size_t i = 0; i < a->heads; i++) {
                size_t of_group = i / (a->heads / a->kv_heads) * head_dim;
                plain_attention(qkv + p * (heads + 2 * kv) + i * head_dim, keys + of_group,
                                values + of_group, p + 1, kv, head_dim, positions[p] - p,
                                mixed + i * head_dim);
            }
            plain_product(&of[1], mixed, y);
            for (size_t i = 0; i < hidden; i++) h[p * hidden + i] += y[i];
            plain_norm(&m->norms[2 * l + 1], h + p * hidden, hidden, a->norm_eps, x);
            plain_product(&of[2], x, gate_up);
            for (size_t i = 0; i < inter; i++) { /* rows interleaved in eights */
                double gate = gate_up[i / 8 * 16 + i % 8], up = gate_up[i / 8 * 16 + 8 + i % 8];
                gated[i] = gate / (1 + exp(-gate)) * up;
            }
            plain_product(&of[3], gated, y);
            for (size_t i = 0; i < hidden; i++) h[p * hidden + i] += y[i];
        }
    }
    for (size_t p = 0; p < n; p++) {
        plain_norm(&m->norms[2 * LAYERS_MAX], h + p * hidden, hidden, a->norm_eps, x);
        plain_product(&m->head, x, logits + p * a->vocab_size);
    }
    free(h), free(x), free(qkv), free(mixed), free(keys), free(values);
    free(gate_up), free(gated), free(y);
}

/* ---- the backend on it ---- */

static tc__device *device_open(const model *m, const char *level, int threads) {
    tc_model_params params = tc_model_default_params();
    tc__device *device = NULL;
    tc_error err;
    params.threads = threads;
    setenv("TINYCHAT_CPU", level, 1);
    int code = tc__cpu_backend()->open(&m->weights, &params, &device, &err);
    unsetenv("TINYCHAT_CPU");
    CHECK_MSG(code == TC_OK, "%s", err.message);
    return device;
}

/* Collects logits handed over for positions next, next + 1, ... */
typedef struct collected {
    float *logits; /* [positions][vocab] */
    size_t next, stop_at;
    tc__flag *raise; /* set instead of returning non-zero */
} collected;

static int collect(void *user, size_t position, const float *logits, int vocab_size) {
    collected *c = user;
    CHECK_MSG(position == c->next, "position %zu came, not %zu", position, c->next);
    memcpy(c->logits + position * (size_t)vocab_size, logits, (size_t)vocab_size * sizeof(float));
    if (++c->next != c->stop_at) return 0;
    if (!c->raise) return 1;
    tc__flag_set(c->raise, true);
    return 0;
}

/* Evaluates ids in pieces of at most `piece` (0: of random sizes), each either with all logits or
 * with the last only, and compares with `want` bit for bit. */
static void check_cut(const model *m, const char *level, int threads, const int32_t *ids, size_t n,
                      size_t piece, bool every, const float *want) {
    const tc__backend *cpu = tc__cpu_backend();
    const size_t vocab = m->weights.arch.vocab_size;
    tc__flag cancel = {0};
    tc__device *device = device_open(m, level, threads);
    tc__cache *cache = NULL;
    REQUIRE(device && cpu->cache_open(device, (int)n, &cache, NULL) == TC_OK);
    collected c = {calloc(n * vocab, sizeof(float)), 0, 0, NULL};
    for (size_t pos = 0, now; pos < n; pos += now) {
        now = piece ? piece : 1 + random_below(40);
        if (now > n - pos) now = n - pos;
        CHECK(cpu->eval(cache, ids + pos, now, pos, every ? collect : NULL, &c, &cancel, NULL) ==
              TC_OK);
        if (every)
            CHECK_MSG(memcmp(c.logits + pos * vocab, want + pos * vocab,
                             now * vocab * sizeof(float)) == 0,
                      "%s: logits %zu to %zu depend on the cut", level, pos, pos + now - 1);
        CHECK_MSG(
            memcmp(cpu->logits(cache), want + (pos + now - 1) * vocab, vocab * sizeof(float)) == 0,
            "%s, %d threads: the logits after %zu depend on the cut or on the threads", level,
            threads, pos + now - 1);
    }
    free(c.logits);
    cpu->cache_close(cache);
    cpu->close(device);
}

/* One model, every kernel set: right at every position, and the same however it is evaluated. */
static void check_model(const tc__arch *arch, uint32_t type, unsigned g) {
    enum { N = 101 }; /* more than a batch, more than three spans of attention */
    model m;
    model_make(&m, arch, type, g, 3);
    const size_t vocab = arch->vocab_size;
    int32_t ids[N];
    size_t positions[N];
    for (size_t i = 0; i < N; i++) {
        ids[i] = (int32_t)random_below(vocab);
        positions[i] = i;
    }
    double *want = calloc(N * vocab, sizeof *want);
    plain_forward(&m, ids, positions, N, want);
    for (size_t l = 0; l < LEVELS; l++) {
        if (!level_kernels(levels[l])) continue;
        const tc__backend *cpu = tc__cpu_backend();
        tc__flag cancel = {0};
        tc__cache *cache = NULL;
        tc__device *device = device_open(&m, levels[l], 1);
        REQUIRE(device && cpu->cache_open(device, N, &cache, NULL) == TC_OK);
        collected c = {calloc(N * vocab, sizeof(float)), 0, 0, NULL};
        CHECK(cpu->eval(cache, ids, N, 0, collect, &c, &cancel, NULL) == TC_OK && c.next == N);
        double worst = 0;
        for (size_t p = 0; p < N; p++) {
            double error = 0, size = 0;
            for (size_t i = p * vocab; i < (p + 1) * vocab; i++) {
                error += (c.logits[i] - want[i]) * (c.logits[i] - want[i]);
                size += want[i] * want[i];
            }
            if (!(sqrt(error / size) <= worst)) worst = sqrt(error / size);
        }
        CHECK_MSG(worst < 2e-5, "%s: type %u g%u: relative error %g", levels[l], (unsigned)type, g,
                  worst);
        static const size_t pieces[] = {1, 2, 5, 16, 33, 64, 100, 0};
        static const int threads[] = {1, 2, 3, 5};
        for (size_t i = 0; i < TC_COUNT(pieces); i++)
            check_cut(&m, levels[l], threads[i % TC_COUNT(threads)], ids, N, pieces[i], i % 3 == 2,
                      c.logits);
        for (size_t i = 1; i < TC_COUNT(threads); i++)
            check_cut(&m, levels[l], threads[i], ids, N, N, true, c.logits);
        free(c.logits);
        cpu->cache_close(cache);
        cpu->close(device);
    }
    free(want);
    model_free(&m);
}

static const tc__arch small = LLAMA(128, 256, 2, 4, 4, 32, 67, 4096, 1e-5f);

TEST(forward_w4_group_128) {
    check_model(&small, TC__W4, 128);
}
TEST(forward_w4_group_64) {
    check_model(&small, TC__W4, 64);
}

TEST(forward_w4_group_32_with_gqa) {
    tc__arch arch = LLAMA(96, 160, 2, 6, 2, 16, 50, 4096, 1e-6f);
    check_model(&arch, TC__W4, 32);
}

TEST(forward_f16_with_odd_sizes) {
    tc__arch arch = LLAMA(42, 24, 2, 3, 1, 10, 33, 4096, 1e-5f);
    check_model(&arch, TC__F16, 0);
    check_model(&arch, TC__BF16, 0);
}

TEST(forward_with_many_queries_per_kv_head) {
    tc__arch arch = LLAMA(64, 32, 1, 40, 2, 6, 20, 4096, 1e-5f);
    check_model(&arch, TC__F16, 0);
}

/* The angle of position 999999 is off by 0.06 in single precision. */
TEST(angles_are_exact_at_a_million) {
    enum { FAR = 999999, VOCAB = 31 };
    tc__arch arch = LLAMA(64, 32, 1, 2, 2, 16, VOCAB, 1 << 20, 1e-5f);
    const int32_t ids[2] = {3, 5};
    const size_t positions[2] = {0, FAR};
    double want[2 * VOCAB];
    model m;
    model_make(&m, &arch, TC__W4, 32, 12);
    plain_forward(&m, ids, positions, 2, want);
    for (size_t l = 0; l < LEVELS; l++) {
        if (!level_kernels(levels[l])) continue;
        const tc__backend *cpu = tc__cpu_backend();
        tc__flag cancel = {0};
        tc__cache *cache = NULL;
        tc__device *device = device_open(&m, levels[l], 1);
        REQUIRE(device && cpu->cache_open(device, FAR + 1, &cache, NULL) == TC_OK);
        for (size_t i = 0; i < 2; i++) {
            double error = 0, size = 0;
            CHECK(cpu->eval(cache, ids + i, 1, positions[i], NULL, NULL, &cancel, NULL) == TC_OK);
            for (size_t v = 0; v < VOCAB; v++) {
                double logit = cpu->logits(cache)[v];
                error += (logit - want[i * VOCAB + v]) * (logit - want[i * VOCAB + v]);
                size += want[i * VOCAB + v] * want[i * VOCAB + v];
            }
            CHECK_MSG(error <= 1e-10 * size, "%s: position %zu: relative error %g", levels[l],
                      positions[i], sqrt(error / size));
        }
        cpu->cache_close(cache);
        cpu->close(device);
    }
    model_free(&m);
}

/* After a truncation what lay behind it does not matter. */
TEST(old_positions_leave_no_trace) {
    enum { N = 80, KEPT = 37, VOCAB = 67 };
    const tc__backend *cpu = tc__cpu_backend();
    tc__flag cancel = {0};
    model m;
    int32_t ids[N];
    float fresh[VOCAB];
    model_make(&m, &small, TC__W4, 128, 3);
    for (size_t i = 0; i < N; i++) ids[i] = (int32_t)random_below(VOCAB);
    tc__device *device = device_open(&m, "portable", 2);
    tc__cache *cache = NULL;
    REQUIRE(device && cpu->cache_open(device, N, &cache, NULL) == TC_OK);
    CHECK(cpu->eval(cache, ids, KEPT + 5, 0, NULL, NULL, &cancel, NULL) == TC_OK);
    memcpy(fresh, cpu->logits(cache), sizeof fresh);
    for (size_t i = KEPT; i < N; i++) ids[i] ^= 1;
    CHECK(cpu->eval(cache, ids, N, 0, NULL, NULL, &cancel, NULL) == TC_OK);
    for (size_t i = KEPT; i < N; i++) ids[i] ^= 1;
    CHECK(memcmp(fresh, cpu->logits(cache), sizeof fresh) != 0);
    CHECK(cpu->eval(cache, ids + KEPT, 5, KEPT, NULL, NULL, &cancel, NULL) == TC_OK);
    CHECK(memcmp(fresh, cpu->logits(cache), sizeof fresh) == 0);
    cpu->cache_close(cache);
    cpu->close(device);
    model_free(&m);
}

TEST(evaluation_can_be_cancelled) {
    enum { N = 90, VOCAB = 67 };
    const tc__backend *cpu = tc__cpu_backend();
    int32_t ids[N] = {0};
    float logits[N * VOCAB];
    tc_error err;
    model m;
    model_make(&m, &small, TC__W4, 128, 3);
    for (int threads = 1; threads <= 3; threads++) {
        tc__flag cancel = {0};
        tc__device *device = device_open(&m, "portable", threads);
        tc__cache *cache = NULL;
        REQUIRE(device && cpu->cache_open(device, N, &cache, NULL) == TC_OK);
        tc__flag_set(&cancel, true);
        CHECK(cpu->eval(cache, ids, N, 0, NULL, NULL, &cancel, &err) == TC_ERR_CANCELLED);
        tc__flag_set(&cancel, false);
        collected by_result = {logits, 0, 13, NULL};
        CHECK(cpu->eval(cache, ids, N, 0, collect, &by_result, &cancel, &err) == TC_ERR_CANCELLED);
        CHECK_MSG(by_result.next == 13, "%zu positions came", by_result.next);
        collected by_flag = {logits, 0, 13, &cancel};
        CHECK(cpu->eval(cache, ids, N, 0, collect, &by_flag, &cancel, &err) == TC_ERR_CANCELLED);
        CHECK_MSG(by_flag.next < 32, "%zu positions came", by_flag.next);
        tc__flag_set(&cancel, false);
        CHECK(cpu->eval(cache, ids, N, 0, NULL, NULL, &cancel, &err) == TC_OK);
        cpu->cache_close(cache);
        cpu->close(device);
    }
    model_free(&m);
}

TEST(device_facts) {
    const tc__backend *cpu = tc__cpu_backend();
    model m;
    tc_error err;
    model_make(&m, &small, TC__W4, 128, 3);
    tc__device *device = device_open(&m, "portable", 3);
    REQUIRE(device);
    CHECK_MSG(strcmp(cpu->name(device), "CPU (portable, 3 threads)") == 0, "%s", cpu->name(device));
    CHECK(cpu->kv_bytes_per_token(device) == 2 * 2 * 4 * 32 * sizeof(float));
    CHECK(cpu->workspace_bytes(device, 100) > 64 * 128 * sizeof(float));
    CHECK(cpu->free_bytes(device) > (size_t)16 << 20);
    double rate = 0;
    CHECK(cpu->read_bandwidth(device, (size_t)16 << 20, &rate, &err) == TC_OK);
    CHECK_MSG(rate > 1e7 && rate < 1e14, "%g bytes per second", rate);
    tc__cache *cache = NULL;
    REQUIRE(cpu->cache_open(device, 4, &cache, &err) == TC_OK);
    const int32_t id = 1;
    int32_t chosen = -1;
    tc__flag cancel = {0};
    tc_sampling greedy = tc_default_sampling();
    greedy.temperature = 0;
    greedy.repeat_penalty = 1;
    CHECK(cpu->eval(cache, &id, 1, 0, NULL, NULL, &cancel, &err) == TC_OK);
    CHECK(cpu->sample(cache, &greedy, &id, 1, 0.5, &chosen, &err) == TC_OK);
    for (int i = 0; i < (int)small.vocab_size; i++)
        CHECK(cpu->logits(cache)[i] <= cpu->logits(cache)[chosen]);
    cpu->cache_close(cache);
    cpu->close(device);

    tc_model_params params = tc_model_default_params();
    params.threads = -1;
    CHECK(cpu->open(&m.weights, &params, &device, &err) == TC_ERR_ARGUMENT && !device);
    params.threads = 1;
    setenv("TINYCHAT_CPU", "mmx", 1);
    CHECK(cpu->open(&m.weights, &params, &device, &err) == TC_ERR_DEVICE && !device);
    unsetenv("TINYCHAT_CPU");
    model_free(&m);
}

TEST_MAIN(RUN(products_of_w4) RUN(products_of_halves) RUN(products_of_a_large_model)
              RUN(every_number_of_vectors) RUN(weights_are_exact) RUN(fixed_point)
                  RUN(extreme_products) RUN(halves_are_exact) RUN(orders_are_permutations)
                      RUN(exponential) RUN(blend) RUN(unknown_kernels_are_refused)
                          RUN(forward_w4_group_128) RUN(forward_w4_group_64)
                              RUN(forward_w4_group_32_with_gqa) RUN(forward_f16_with_odd_sizes)
                                  RUN(forward_with_many_queries_per_kv_head)
                                      RUN(angles_are_exact_at_a_million)
                                          RUN(old_positions_leave_no_trace)
                                              RUN(evaluation_can_be_cancelled) RUN(device_facts))
