// The kernels of attention on the emulated GPU, against the formulas in binary64. test_emulated.sh
// compiles this for one shape at a time: HEADS, KV_HEADS, HEAD_DIM, ALIBI, QK_NORM and
// ATTENTION_BESIDE are its constants.
#include "prelude.cuh"

#define SHARED_LIMIT (227 * 1024)
#define NORM NORM_RMS
#define NORM_EPS 1e-5f
#define ROPE_SCALE 1.25f
#include "attention.cuh"
#include "test.h"

/* Rounding to binary16: of the result of a prefill and of its probabilities, whose errors are
 * independent; of nothing but keys and values, which the formulas see too, in decode. */
#define PREFILL_TOLERANCE 8e-4
#define DECODE_TOLERANCE 4e-6

static double uniform() { /* in (-1, 1) */
    static u64 state = 1;
    state = state * 6364136223846793005u + 1442695040888963407u;
    return (double)(state >> 11) / 4503599627370496.0 - 1;
}

// About normal.
static double normal() { return uniform() + uniform() + uniform(); }

static struct Model {
    double frequency[HALF];
    u64 turns[HALF];
    float slopes[HEADS], q_norm[HEAD_DIM], k_norm[HEAD_DIM];
} model;

static void model_fill() {
    for (int i = 0; i < HALF; i++) {
        model.frequency[i] = pow(10000, -2.0 * i / HEAD_DIM);
        model.turns[i] = (u64)ldexp(model.frequency[i] / (2 * M_PI), 64);
    }
    for (int h = 0; h < HEADS; h++) model.slopes[h] = (float)pow(2, -8.0 * (h + 1) / HEADS);
    for (float &gamma : model.q_norm) gamma = (float)(1 + 0.3 * uniform());
    for (float &gamma : model.k_norm) gamma = (float)(1 + 0.3 * uniform());
}

// What attention sees of a projected vector.
static std::vector<double> turned(const float *in, const float *gamma, int pos) {
    std::vector<double> x(in, in + HEAD_DIM), out(HEAD_DIM);
    double square = 0;
    for (double value : x) square += value * value;
    for (int i = 0; QK_NORM && i < HEAD_DIM; i++)
        x[i] *= gamma[i] / sqrt(square / HEAD_DIM + NORM_EPS);
    if (ALIBI) return x;
    for (int i = 0; i < HALF; i++) {
        const double c = ROPE_SCALE * cos(pos * model.frequency[i]);
        const double s = ROPE_SCALE * sin(pos * model.frequency[i]);
        out[i] = x[i] * c - x[i + HALF] * s;
        out[i + HALF] = x[i] * s + x[i + HALF] * c;
    }
    return out;
}

// One head's result for a query at pos.
static std::vector<double> attended(const std::vector<double> &q, int head, int pos, const u16 *k,
                                    const u16 *v) {
    std::vector<double> scores(pos + 1), out(HEAD_DIM);
    double top = -INFINITY, sum = 0;
    for (int j = 0; j <= pos; j++) {
        for (int i = 0; i < HEAD_DIM; i++) scores[j] += q[i] * f16_to_f32(k[j * HEAD_DIM + i]);
        scores[j] /= sqrt(HEAD_DIM);
        if (ALIBI) scores[j] += (double)model.slopes[head] * (j - pos);
        top = fmax(top, scores[j]);
    }
    for (int j = 0; j <= pos; j++) sum += exp(scores[j] - top);
    for (int j = 0; j <= pos; j++)
        for (int i = 0; i < HEAD_DIM; i++)
            out[i] += exp(scores[j] - top) / sum * f16_to_f32(v[j * HEAD_DIM + i]);
    return out;
}

// `tokens` behind pos earlier ones, on memory that is NaN where nothing has been written.
struct Case {
    int pos, tokens, splits, ctx;
    std::vector<float> qkv, out, scale;
    std::vector<u16> k, v, q, operand;
    std::vector<float4> parts;
    std::vector<u32> arrived;
    State state;

    Case(int pos, int tokens, int splits)
        : pos(pos), tokens(tokens), splits(splits), ctx(pos + tokens + 37),
          qkv((size_t)tokens * QKV_ROWS), out((size_t)tokens * HEADS * HEAD_DIM, NAN), scale((size_t)tokens),
          k((size_t)KV_HEADS * ctx * HEAD_DIM, 0x7e00), v(k), q((size_t)tokens * HEADS * HEAD_DIM),
          operand((size_t)(tokens + 127) / 128 * operand_slices(HEADS * HEAD_DIM) * 8192),
          parts((size_t)splits * max(tokens, 8) * HEADS * 8 * (HEAD_DIM + 2) / 4,
                float4{NAN, NAN, NAN, NAN}),
          arrived(KV_HEADS * HEAD_TILES * 8), state{pos, pos, 0, 0} {
        for (float &x : qkv) x = (float)(1.5 * normal());
        for (int kv = 0; kv < KV_HEADS; kv++)
            for (int i = 0; i < pos * HEAD_DIM; i++) {
                k[(size_t)kv * ctx * HEAD_DIM + i] = f32_to_f16((float)normal());
                v[(size_t)kv * ctx * HEAD_DIM + i] = f32_to_f16((float)normal());
            }
    }
    HeadArgs head() const { return {model.turns, model.slopes, model.q_norm, model.k_norm}; }
    float *parts_at() { return (float *)parts.data(); }

    static void launch(int x, int y, int threads, std::function<void()> kernel, int cluster = 1) {
        emulated_launch({(unsigned)x, (unsigned)y, 1}, threads, cluster, kernel);
    }
    void decode() {
        DecodeAttentionArgs args = {qkv.data(), k.data(), v.data(), out.data(), parts_at(),
                                    arrived.data(), &state, head(), ctx};
        launch(
            KV_HEADS * HEAD_TILES * DECODE_CLUSTER, splits, DECODE_THREADS,
            [&] { attention_decode<1, DECODE_CLUSTER>(args); }, DECODE_CLUSTER);
    }
    void few() {
        DecodeAttentionArgs args = {qkv.data(), k.data(), v.data(), out.data(), parts_at(),
                                    arrived.data(), &state, head(), ctx};
        launch(KV_HEADS * HEAD_TILES * tokens, 1, DECODE_THREADS,
               [&] { attention_decode<FEW_TOKENS, 1>(args); });
    }
    void prefill() {
        PrefillAttentionArgs args = {qkv.data(), q.data(), k.data(), v.data(), operand.data(),
                                     as_vectors() ? out.data() : nullptr, scale.data(), parts_at(),
                                     &state, head(), ctx, tokens, splits};
        const int tiles = (tokens + PREFILL_QUERIES - 1) / PREFILL_QUERIES;
        launch(ROPE_PARTS, tokens, 256, [&] { rope_write(args); });
        launch(HEADS * splits, tiles, PREFILL_THREADS, [&] { attention_prefill(args); });
        if (splits > 1) launch((tokens * HEADS + 7) / 8, 1, 256, [&] { attention_merge(args); });
    }
    bool as_vectors() const { return tokens <= 8; } // as a prefill of few tokens asks for
    double result(bool prefill, int t, int head, int i) {
        if (!prefill || as_vectors()) return out[((size_t)t * HEADS + head) * HEAD_DIM + i];
        return f16_to_f32(*operand_at(operand.data(), HEADS * HEAD_DIM, t, head * HEAD_DIM + i));
    }
    // Numbers of the cache that are wrong; all others must be as they were.
    int wrong_in_cache(std::vector<u16> k_before, std::vector<u16> v_before) const {
        int wrong = 0;
        for (int t = 0; t < tokens; t++)
            for (int kv = 0; kv < KV_HEADS; kv++) {
                const float *in = &qkv[(size_t)t * QKV_ROWS + (HEADS + kv) * HEAD_DIM];
                const std::vector<double> key = turned(in, model.k_norm, pos + t);
                for (int i = 0; i < HEAD_DIM; i++) {
                    const size_t at = ((size_t)kv * ctx + pos + t) * HEAD_DIM + i;
                    wrong += !(fabs(f16_to_f32(k[at]) - key[i]) <= 1e-3 * fabs(key[i]) + 4e-6);
                    wrong += v[at] != f32_to_f16(in[KV_HEADS * HEAD_DIM + i]);
                    k_before[at] = k[at], v_before[at] = v[at];
                }
            }
        return wrong + (k_before != k) + (v_before != v);
    }
    // Relative L2 error of the results; of many tokens some are looked at.
    double error(bool prefill) {
        double difference = 0, size = 0;
        for (int t = 0; t < tokens; t++)
            for (int h = 0; h < HEADS; h++) {
                if (tokens > 40 && (7 * t + h) % 11 && t < tokens - 1) continue;
                const float *in = &qkv[(size_t)t * QKV_ROWS + h * HEAD_DIM];
                const size_t cache = (size_t)(h / GROUP_HEADS) * ctx * HEAD_DIM;
                const std::vector<double> want =
                    attended(turned(in, model.q_norm, pos + t), h, pos + t, &k[cache], &v[cache]);
                for (int i = 0; i < HEAD_DIM; i++) {
                    const double delta = result(prefill, t, h, i) - want[i];
                    difference += delta * delta, size += want[i] * want[i];
                }
            }
        return sqrt(difference / size);
    }
};

// Gives the error.
static double check(bool prefill, int pos, int tokens, int splits) {
    Case c(pos, tokens, splits);
    const std::vector<u16> k_before = c.k, v_before = c.v;
    if (prefill)
        c.prefill();
    else if (tokens > 1)
        c.few();
    else
        c.decode();
    const int wrong = c.wrong_in_cache(k_before, v_before);
    const double error = c.error(prefill);
    CHECK_MSG(error <= (prefill ? PREFILL_TOLERANCE : DECODE_TOLERANCE) && !wrong,
              "%d tokens behind %d, %d splits, copies %s: error %.1e, %d numbers of the cache are "
              "wrong",
              tokens, pos, splits, emulated.late ? "late" : "at once", error, wrong);
    for (u32 count : c.arrived) CHECK(count == 0);
    for (float scale : c.scale) CHECK(!prefill || scale == 1);
    return error;
}

TEST(decode) {
    static const int cases[][2] = {{0, 1},   {15, 2},  {16, 1},  {100, 4},  {270, 3},
                                   {700, 5}, {64, 1}, {150, 2}, {1100, 2}, {1500, 1}};
    double worst = 0;
    for (int late = 0; late < 2; late++) {
        emulated.late = late;
        for (const int *at : cases) worst = fmax(worst, check(false, at[0], 1, at[1]));
    }
    printf("    error %.1e\n", worst);
}

TEST(decode_of_a_few) {
    static const int cases[][2] = {{0, 8}, {13, 5}, {16, 2}, {15, 3}, {200, 7}, {30, 8}};
    double worst = 0;
    for (int late = 0; late < 2; late++) {
        emulated.late = late;
        for (const int *at : cases) worst = fmax(worst, check(false, at[0], at[1], 1));
    }
    printf("    error %.1e\n", worst);
}

TEST(prefill) {
    static const int cases[][3] = {{0, 1, 1},     {0, 49, 1},   {63, 2, 1},
                                   {120, 130, 1}, {500, 20, 2}, {300, 3, 4}};
    double worst = 0;
    for (int late = 0; late < 2; late++) {
        emulated.late = late;
        for (const int *at : cases) worst = fmax(worst, check(true, at[0], at[1], at[2]));
    }
    printf("    error %.1e\n", worst);
}

TEST_MAIN(model_fill(); RUN(decode) RUN(decode_of_a_few) RUN(prefill))
