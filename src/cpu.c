#include "backend.h"
#include "cpu_kernels.h"
#include "threads.h"

#include <math.h>
#include <sys/mman.h>
#include <unistd.h>

/* The CPU backend. Weights are used where they lie, in the mapped file. All workers of a session's
 * team run the same forward pass and share out the items of each step (row blocks, positions,
 * heads); a barrier ends the step. No number depends on who computes it or on what is computed
 * beside it, so results are bit-equal for any number of threads and any cut of the ids into calls.
 *
 * Activations, sums and the KV cache are fp32 (inside a product with 4-bit weights also fixed point
 * of that precision, see cpu_fixed.h); angles and the means of norms are double.
 * (With keys and values rounded to binary16 the small models of tests/data miss the accuracy of
 * 1e-3 that the tests ask for: 2.7e-3 instead of 1e-5.) */

#define CPU_BATCH 64   /* positions that go through a layer together */
#define CPU_PIECE 8    /* positions whose logits are computed together */
#define CPU_SPAN 32    /* positions of the KV cache that attention takes together */
#define CPU_QUERIES 24 /* queries that do so together */

struct tc__device {
    const tc__weights *weights;
    const tc__kernels *kernels;
    int threads;
    char name[64];
};

/* Vectors of floats, `stride` apart. */
typedef struct cpu_vectors {
    float *data;
    size_t stride;
} cpu_vectors;

struct tc__cache {
    const tc__device *device;
    tc__team *team;
    /* The KV cache: [layers][kv_heads][ctx_size][head_stride], heads padded with zeros. */
    float *keys, *values;
    size_t ctx_size, head_stride;
    void *kv_memory, *workspace;
    cpu_vectors h;       /* [CPU_BATCH][hidden] the residual stream */
    cpu_vectors x;       /* [CPU_BATCH][hidden] normalised, in the order of the next matrix */
    cpu_vectors qkv;     /* [CPU_BATCH][(heads + 2 kv_heads) head_dim] */
    cpu_vectors mixed;   /* [CPU_BATCH][heads head_dim] out of attention, in o's order */
    cpu_vectors inner;   /* [CPU_BATCH][intermediate] the MLP's activations, in down's order */
    cpu_vectors logits;  /* [CPU_PIECE][vocab_size] */
    cpu_vectors angles;  /* [CPU_BATCH][head_dim] RoPE: cosines, then sines, of each position */
    cpu_vectors scratch; /* [threads] */
    float *fixed;        /* [CPU_BATCH][widest of x, mixed, inner], see tc__fix */
    float *queries;      /* [kv_heads][positions][heads / kv_heads][head_stride], scaled */
    tc__candidate *candidates;
    uint8_t *seen;
    const float *last; /* the logits of the last position evaluated */
};

/* ---- memory ---- */

static size_t cpu_padded(size_t n) {
    return (n + TC__LANES_MAX - 1) / TC__LANES_MAX * TC__LANES_MAX;
}

/* Floats that attention needs: see cpu_attend_queries. */
static size_t cpu_attention_scratch(size_t head_stride) {
    return CPU_QUERIES * (TC__BLOCK * TC__LANES_MAX + CPU_SPAN + head_stride + TC__LANES_MAX);
}

/* The next `bytes` of a block of memory; with memory == NULL only counts. */
static void *cpu_place(unsigned char *memory, size_t *used, size_t bytes) {
    void *place = memory ? memory + *used : NULL;
    *used += (bytes + 63) / 64 * 64;
    return place;
}

static void cpu_place_vectors(unsigned char *memory, size_t *used, size_t count, size_t width,
                              cpu_vectors *vectors) {
    vectors->stride = cpu_padded(width) + TC__SKEW;
    vectors->data = cpu_place(memory, used, count * vectors->stride * sizeof(float));
}

/* Cuts the workspace (zeroed, or NULL) into its parts; returns the bytes it needs. */
static size_t cpu_lay_out(const tc__device *device, tc__cache *cache, unsigned char *memory) {
    const tc__arch *arch = &device->weights->arch;
    const size_t heads = (size_t)arch->heads * arch->head_dim, hidden = arch->hidden_size;
    size_t used = 0;
    cache->head_stride = cpu_padded(arch->head_dim);
    cpu_place_vectors(memory, &used, CPU_BATCH, hidden, &cache->h);
    cpu_place_vectors(memory, &used, CPU_BATCH, hidden, &cache->x);
    cpu_place_vectors(memory, &used, CPU_BATCH, heads + 2 * (size_t)arch->kv_heads * arch->head_dim,
                      &cache->qkv);
    cpu_place_vectors(memory, &used, CPU_BATCH, heads, &cache->mixed);
    cpu_place_vectors(memory, &used, CPU_BATCH, arch->intermediate_size, &cache->inner);
    cpu_place_vectors(memory, &used, CPU_PIECE, arch->vocab_size, &cache->logits);
    cpu_place_vectors(memory, &used, CPU_BATCH, arch->head_dim, &cache->angles);
    size_t scratch = tc__multiply_scratch(CPU_BATCH);
    if (scratch < cpu_attention_scratch(cache->head_stride))
        scratch = cpu_attention_scratch(cache->head_stride);
    cpu_place_vectors(memory, &used, (size_t)device->threads, scratch, &cache->scratch);
    size_t widest = hidden > heads ? hidden : heads;
    if (widest < arch->intermediate_size) widest = arch->intermediate_size;
    if (!device->kernels->fix) widest = 0;
    cache->fixed = cpu_place(memory, &used, CPU_BATCH * widest * sizeof(float));
    cache->queries =
        cpu_place(memory, &used, CPU_BATCH * arch->heads * cache->head_stride * sizeof(float));
    cache->candidates = cpu_place(memory, &used, arch->vocab_size * sizeof(tc__candidate));
    cache->seen = cpu_place(memory, &used, arch->vocab_size);
    return used;
}

static size_t cpu_kv_bytes_per_token(const tc__device *device) {
    const tc__arch *arch = &device->weights->arch;
    return 2 * (size_t)arch->layers * arch->kv_heads * cpu_padded(arch->head_dim) * sizeof(float);
}

/* Products with keys go in blocks of 16 positions: behind the last one there must be memory. The
 * keys begin at a multiple of 64. */
static size_t cpu_kv_slack(const tc__device *device) {
    return (TC__BLOCK - 1) * cpu_padded(device->weights->arch.head_dim) * sizeof(float) + 64;
}

static size_t cpu_workspace_bytes(const tc__device *device, int ctx_size) {
    tc__cache cache;
    (void)ctx_size;
    return cpu_lay_out(device, &cache, NULL) + cpu_kv_slack(device) + sizeof cache;
}

/* What the system could give, less the weights if they are pages of a file: they are to stay in
 * memory too, and the system counts them as available. */
static size_t cpu_free_bytes(const tc__device *device) {
    size_t bytes = tc__available_memory();
    size_t weights = device->weights->in_file ? device->weights->tensor_bytes : 0;
    return bytes > weights ? bytes - weights : 0;
}

/* ---- opening and closing ---- */

/* Asks the system to read a tensor's pages ahead of their first use; a hint, so errors do not
 * matter. */
static void cpu_read_ahead(const tc__tensor *tensor, size_t page) {
    uintptr_t begin = (uintptr_t)tensor->data / page * page;
    posix_madvise((void *)begin, (uintptr_t)tensor->data + tensor->size - begin,
                  POSIX_MADV_WILLNEED);
}

static void cpu_close(tc__device *device) {
    free(device);
}

static int cpu_open(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                    tc_error *err) {
    const tc__kernels *kernels = NULL;
    *device = NULL;
    if (params->threads < 0 || params->threads > TC__THREADS_MAX)
        return tc__fail(err, TC_ERR_ARGUMENT,
                        "threads is %d; expected 1 to %d, or 0 for all processors", params->threads,
                        TC__THREADS_MAX);
    if (weights->head_in_8)
        return tc__fail(err, TC_ERR_UNSUPPORTED,
                        "only a GPU takes an 8-bit head; leave it out, or use --device cuda");
    const char *level = getenv("TINYCHAT_CPU");
    int code = tc__kernels_choose(level && *level ? level : NULL, &kernels, err);
    if (code) return code;
    tc__device *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a device", sizeof *made);
    made->weights = weights;
    made->kernels = kernels;
    made->threads = params->threads ? params->threads : tc__processors();
    snprintf(made->name, sizeof made->name, "CPU (%s, %d thread%s)", kernels->name, made->threads,
             made->threads == 1 ? "" : "s");
    size_t page = (size_t)sysconf(_SC_PAGESIZE);
    for (uint32_t i = 0; i < weights->arch.layers; i++) {
        cpu_read_ahead(weights->layers[i].qkv, page);
        cpu_read_ahead(weights->layers[i].o, page);
        cpu_read_ahead(weights->layers[i].gate_up, page);
        cpu_read_ahead(weights->layers[i].down, page);
    }
    cpu_read_ahead(weights->head, page);
    *device = made;
    return tc__ok(err);
}

static const char *cpu_name(const tc__device *device) {
    return device->name;
}

static const char *cpu_details(const tc__device *device) {
    (void)device;
    return "";
}

static void cpu_cache_close(tc__cache *cache) {
    if (!cache) return;
    tc__team_close(cache->team);
    tc__free_aligned(cache->workspace);
    free(cache->kv_memory);
    free(cache);
}

static int cpu_cache_open(tc__device *device, int ctx_size, tc__cache **cache, tc_error *err) {
    *cache = NULL;
    tc__cache *made = tc__calloc(1, sizeof *made);
    if (!made) return tc__fail_memory(err, "a session", sizeof *made);
    made->device = device;
    made->ctx_size = (size_t)ctx_size;
    size_t bytes = cpu_lay_out(device, made, NULL), kv_bytes = 0;
    made->workspace = tc__alloc_aligned(bytes);
    if (!made->workspace) {
        cpu_cache_close(made);
        return tc__fail_memory(err, "a session's workspace", bytes);
    }
    cpu_lay_out(device, made, made->workspace);
    /* From calloc, so that the system provides pages when they are first used. */
    if (tc__mul(made->ctx_size, cpu_kv_bytes_per_token(device), &kv_bytes) &&
        tc__add(kv_bytes, cpu_kv_slack(device), &bytes))
        made->kv_memory = tc__calloc(1, bytes);
    if (!made->kv_memory) {
        cpu_cache_close(made);
        return tc__fail_memory(err, "the KV cache", bytes);
    }
    made->keys = (float *)(((uintptr_t)made->kv_memory + 63) / 64 * 64);
    made->values = made->keys + kv_bytes / 2 / sizeof(float);
    int code = tc__team_open(device->threads, &made->team, err);
    if (code) {
        cpu_cache_close(made);
        return code;
    }
    *cache = made;
    return tc__ok(err);
}

/* ---- the forward pass: what all workers run ---- */

typedef struct cpu_task {
    tc__cache *cache;
    const int32_t *ids;
    size_t n, pos; /* all of this call */
    tc__logits_fn each;
    void *user;
    const tc__flag *cancel;
    int code;     /* only worker 0 writes it */
    bool stop[2]; /* of even and odd steps, see cpu_step */
} cpu_task;

typedef struct cpu_worker {
    cpu_task *task;
    tc__cache *cache;
    const tc__kernels *kernels;
    const tc__arch *arch;
    int index, size;
    unsigned steps;
    float *scratch;
    size_t pos, count; /* of the current batch */
} cpu_worker;

/* Ends a step; false if all are to stop. Worker 0 decides: its verdict is written before the
 * barrier and read after it, into alternating places, as it may already be at the next barrier when
 * a slow worker reads. */
static bool cpu_step(cpu_worker *worker) {
    cpu_task *task = worker->task;
    bool *stop = &task->stop[worker->steps++ % 2];
    if (worker->index == 0) {
        if (tc__flag_get(task->cancel)) task->code = TC_ERR_CANCELLED;
        *stop = task->code != TC_OK;
    }
    tc__team_barrier(worker->cache->team);
    return !*stop;
}

/* This worker's share of a step's items. */
static void cpu_share(const cpu_worker *worker, size_t items, size_t *begin, size_t *end) {
    tc__share(items, worker->index, worker->size, begin, end);
}

/* Cosines and sines of RoPE's angles at a position. */
static void cpu_set_angles(const tc__arch *arch, size_t position, float *angles) {
    const size_t half = arch->head_dim / 2;
    for (size_t i = 0; i < half; i++) {
        double angle = (double)position * arch->frequencies[i];
        angles[i] = (float)(cos(angle) * (double)arch->rope_scale);
        angles[half + i] = (float)(sin(angle) * (double)arch->rope_scale);
    }
}

/* h = the ids' rows of the embedding; the angles of their positions. */
static bool cpu_embed(cpu_worker *worker, const int32_t *ids) {
    const tc__tensor *embed = worker->cache->device->weights->embed;
    const size_t hidden = worker->arch->hidden_size;
    const bool rope = worker->arch->position == TC__POSITION_ROPE;
    size_t p, end;
    for (cpu_share(worker, worker->count, &p, &end); p < end; p++) {
        const uint16_t *row = (const uint16_t *)embed->data + (size_t)ids[p] * hidden;
        float *h = worker->cache->h.data + p * worker->cache->h.stride;
        for (size_t i = 0; i < hidden; i++)
            h[i] = embed->type == TC__F16 ? tc__f16_to_f32(row[i]) : tc__bf16_to_f32(row[i]);
        float *angles = worker->cache->angles.data + p * worker->cache->angles.stride;
        if (rope) cpu_set_angles(worker->arch, worker->pos + p, angles);
    }
    return cpu_step(worker);
}

/* The mean of (h - center)^power, power 1 or 2. */
static double cpu_mean(const float *h, size_t n, double center, int power) {
    double sums[4] = {0, 0, 0, 0};
    size_t i = 0;
    for (; i + 4 <= n; i += 4)
        for (size_t k = 0; k < 4; k++) {
            double v = (double)h[i + k] - center;
            sums[k] += power == 2 ? v * v : v;
        }
    for (; i < n; i++) {
        double v = (double)h[i] - center;
        sums[0] += power == 2 ? v * v : v;
    }
    return ((sums[0] + sums[1]) + (sums[2] + sums[3])) / (double)n;
}

/* RMSNorm, or LayerNorm, which takes the mean away first; in the order that a matrix wants:
 *
 *     x = (h - mean) / sqrt(mean((h - mean)^2) + eps) * gain + bias
 */
static void cpu_norm(uint32_t kind, const float *h, const tc__tensor *gains,
                     const tc__tensor *biases, float eps, tc__order order, float *x) {
    const size_t n = gains->rows;
    const float *gain = (const float *)gains->data;
    const float *bias = biases ? (const float *)biases->data : NULL;
    const double mean = kind == TC__NORM_LAYER ? cpu_mean(h, n, 0, 1) : 0;
    const float scale = (float)(1 / sqrt(cpu_mean(h, n, mean, 2) + (double)eps));
    for (size_t i = 0; i < n; i += 4) {
        float v[4] = {0};
        const size_t end = n - i < 4 ? n - i : 4;
        for (size_t k = 0; k < end; k++) {
            v[k] = (float)((double)h[i + k] - mean) * scale * gain[i + k];
            if (bias) v[k] += bias[i + k];
        }
        tc__put4(order, x, i, v);
    }
}

/* x[0 .. count-1] = the normed h[first ..], for `matrix`. */
static bool cpu_normalise(cpu_worker *worker, const tc__tensor *gains, const tc__tensor *biases,
                          const tc__tensor *matrix, size_t first, size_t count) {
    const tc__cache *cache = worker->cache;
    size_t p, end;
    for (cpu_share(worker, count, &p, &end); p < end; p++)
        cpu_norm(worker->arch->norm, cache->h.data + (first + p) * cache->h.stride, gains, biases,
                 worker->arch->norm_eps, tc__order_of(matrix), cache->x.data + p * cache->x.stride);
    return cpu_step(worker);
}

/* The products of a matrix with `count` vectors, this worker's row blocks. */
static bool cpu_multiply_by(cpu_worker *worker, const tc__tensor *matrix, const cpu_vectors *x,
                            size_t count, tc__rows_fn take, void *user) {
    const bool fixes = tc__fixes(worker->kernels, matrix);
    float *fixed = worker->cache->fixed;
    size_t begin, end;
    if (fixes) {
        cpu_share(worker, matrix->columns / matrix->group_size * count, &begin, &end);
        tc__fix(worker->kernels, matrix, begin, end, x->data, x->stride, count, fixed);
        if (!cpu_step(worker)) return false;
    }
    cpu_share(worker, (matrix->rows + TC__BLOCK - 1) / TC__BLOCK, &begin, &end);
    tc__multiply_rows(worker->kernels, matrix, begin, end, fixes ? fixed : x->data, x->stride,
                      count, worker->scratch, take, user);
    return cpu_step(worker);
}

/* Where products go, and what is done to them on the way. */
typedef struct cpu_target {
    const cpu_vectors *to;
    const tc__tensor *bias; /* NULL: none */
    float clip;             /* 0: none */
} cpu_target;

static void cpu_store(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_target *target = user;
    const float *bias = target->bias ? (const float *)target->bias->data + row : NULL;
    const float clip = target->clip;
    float *to = target->to->data + vector * target->to->stride + row;
    for (size_t i = 0; i < rows; i++) {
        float v = bias ? y[i] + bias[i] : y[i];
        to[i] = clip > 0 ? (v < -clip ? -clip : v > clip ? clip : v) : v;
    }
}

static void cpu_add(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_vectors *to = user;
    float *sum = to->data + vector * to->stride + row;
    for (size_t i = 0; i < rows; i++) sum[i] += y[i];
}

typedef struct cpu_mlp {
    const tc__kernels *kernels;
    const tc__arch *arch;
    const cpu_vectors *to;
    const tc__tensor *act_scales; /* NULL: none */
    tc__order order;              /* of down */
} cpu_mlp;

/* silu(v) = v / (1 + exp(-v)), for n <= TC__LANES_MAX elements. */
static void cpu_silu(const tc__kernels *kernels, float *v, size_t n) {
    float e[TC__LANES_MAX] = {0};
    for (size_t i = 0; i < n; i++) e[i] = -v[i];
    kernels->exponential(e, n, 0);
    for (size_t i = 0; i < n; i++) v[i] /= 1 + e[i];
}

/* gelu(v) = v / 2 (1 + erf(v / sqrt(2))) = max(v, 0) - |v| / 2 erfc(|v| / sqrt(2)), where erfc(x)
 * is exp(-x^2) times a polynomial in t = 1 / (1 + 0.3275911 x) (Abramowitz and Stegun, 7.1.26: the
 * error is below 1.5e-7); n <= TC__LANES_MAX. */
static void cpu_gelu(const tc__kernels *kernels, float *v, size_t n) {
    float e[TC__LANES_MAX] = {0};
    for (size_t i = 0; i < n; i++) e[i] = -0.5f * v[i] * v[i];
    kernels->exponential(e, n, 0);
    for (size_t i = 0; i < n; i++) {
        const float size = fabsf(v[i]), t = 1 / (1 + 0.23164189f * size);
        const float p = (1.061405429f * t - 1.453152027f) * t + 1.421413741f;
        const float tail = ((p * t - 0.284496736f) * t + 0.254829592f) * t * e[i];
        v[i] = (v[i] > 0 ? v[i] : 0) - 0.5f * size * tail;
    }
}

/* The inner activations: act(up), or act(gate) * up out of blocks of 8 rows of gate and the same 8
 * of up; divided by act_scales. Rows come in eights. */
static void cpu_take_inner(void *user, size_t vector, size_t row, size_t rows, const float *y) {
    const cpu_mlp *mlp = user;
    const bool gated = mlp->arch->gated;
    const size_t n = gated ? rows / 2 : rows, first = gated ? row / 2 : row;
    float v[TC__BLOCK];
    memcpy(v, y, n * sizeof *v);
    if (mlp->arch->activation == TC__ACT_GELU)
        cpu_gelu(mlp->kernels, v, n);
    else
        cpu_silu(mlp->kernels, v, n);
    for (size_t i = 0; gated && i < n; i++) v[i] *= y[n + i];
    if (mlp->act_scales) {
        const float *scales = (const float *)mlp->act_scales->data + first;
        for (size_t i = 0; i < n; i++) v[i] /= scales[i];
    }
    float *x = mlp->to->data + vector * mlp->to->stride;
    for (size_t i = 0; i < n; i += 4) tc__put4(mlp->order, x, first + i, v + i);
}

/* RoPE, rotate-half: element i turns with element i + half. */
static void cpu_turn(const float *from, const float *angles, size_t half, float scale, float *to) {
    for (size_t i = 0; i < half; i++) {
        float c = angles[i] * scale, s = angles[half + i] * scale;
        to[i] = from[i] * c - from[half + i] * s;
        to[half + i] = from[i] * s + from[half + i] * c;
    }
}

/* One query or key: its norm, if it has one, and its position, if that is a turn. */
static void cpu_place_head(const cpu_worker *worker, const float *from, const tc__tensor *norm,
                           const float *angles, float scale, float *to) {
    const size_t head_dim = worker->arch->head_dim;
    if (norm) {
        cpu_norm(TC__NORM_RMS, from, norm, NULL, worker->arch->norm_eps, TC__ORDER_PLAIN,
                 worker->scratch);
        from = worker->scratch;
    }
    if (worker->arch->position == TC__POSITION_ROPE)
        cpu_turn(from, angles, head_dim / 2, scale, to);
    else
        for (size_t i = 0; i < head_dim; i++) to[i] = from[i] * scale;
}

static float *cpu_kv_row(const cpu_worker *worker, float *base, size_t layer, size_t kv_head,
                         size_t position) {
    const tc__cache *cache = worker->cache;
    size_t head = layer * worker->arch->kv_heads + kv_head;
    return base + (head * cache->ctx_size + position) * cache->head_stride;
}

/* From qkv: queries, scaled by 1 / sqrt(head_dim); keys and values into the cache. */
static bool cpu_place_heads(cpu_worker *worker, size_t layer) {
    const tc__cache *cache = worker->cache;
    const tc__layer *tensors = &cache->device->weights->layers[layer];
    const size_t heads = worker->arch->heads, kv_heads = worker->arch->kv_heads;
    const size_t head_dim = worker->arch->head_dim, group = heads / kv_heads;
    const size_t parts = heads + 2 * kv_heads;
    const float scale = (float)(1 / sqrt((double)head_dim));
    size_t item, end;
    for (cpu_share(worker, worker->count * parts, &item, &end); item < end; item++) {
        size_t p = item / parts, part = item % parts;
        const float *from = cache->qkv.data + p * cache->qkv.stride + part * head_dim;
        const float *angles = cache->angles.data + p * cache->angles.stride;
        if (part < heads) {
            size_t query = (part / group * worker->count + p) * group + part % group;
            cpu_place_head(worker, from, tensors->q_norm, angles, scale,
                           cache->queries + query * cache->head_stride);
        } else if (part < heads + kv_heads) {
            cpu_place_head(worker, from, tensors->k_norm, angles, 1,
                           cpu_kv_row(worker, cache->keys, layer, part - heads, worker->pos + p));
        } else {
            memcpy(
                cpu_kv_row(worker, cache->values, layer, part - heads - kv_heads, worker->pos + p),
                from, head_dim * sizeof *from);
        }
    }
    return cpu_step(worker);
}

/* ALiBi: the scores of the keys that lie `distance`, distance - 1, ... before the query. */
static void cpu_penalise(float *scores, size_t n, float slope, size_t distance) {
    for (size_t j = 0; j < n; j++) scores[j] -= slope * (float)(distance - j);
}

/* Softmax goes on: `n` more scores and their values, given the largest score and the total weight
 * so far. `out` is the weighted sum of the values, not yet divided by the total. */
static void cpu_absorb(const tc__kernels *kernels, float *scores, size_t n, const float *values,
                       size_t stride, float *largest, float *total, float *out) {
    float top = *largest;
    for (size_t j = 0; j < n; j++)
        if (scores[j] > top) top = scores[j];
    if (top > *largest) {
        float shrink = expf(*largest - top);
        for (size_t i = 0; i < stride; i++) out[i] *= shrink;
        *total *= shrink;
        *largest = top;
    }
    *total += kernels->exponential(scores, n, top);
    kernels->blend(scores, n, values, stride, stride, out);
}

/* Attention of queries first .. first + count - 1 of a KV head (positions and the heads of its
 * group, the latter varying faster), position by position of the cache in spans that begin at
 * multiples of CPU_SPAN whatever the batch is. */
static void cpu_attend_queries(cpu_worker *worker, size_t layer, size_t kv_head, size_t first,
                               size_t count, tc__order order) {
    const tc__cache *cache = worker->cache;
    const tc__kernels *kernels = worker->kernels;
    const tc__arch *arch = worker->arch;
    const size_t group = arch->heads / arch->kv_heads, lanes = kernels->lanes;
    const size_t head_dim = arch->head_dim, stride = cache->head_stride;
    const size_t steps = (head_dim + lanes - 1) / lanes * lanes;
    const float *queries = cache->queries + (kv_head * worker->count * group + first) * stride;
    const float *keys = cpu_kv_row(worker, cache->keys, layer, kv_head, 0);
    const float *values = cpu_kv_row(worker, cache->values, layer, kv_head, 0);
    float *sums = worker->scratch, *scores = sums + CPU_QUERIES * TC__BLOCK * TC__LANES_MAX;
    float *out = scores + CPU_QUERIES * CPU_SPAN;
    float *largest = out + CPU_QUERIES * stride, *total = largest + CPU_QUERIES;
    memset(out, 0, count * stride * sizeof *out);
    for (size_t i = 0; i < count; i++) largest[i] = -INFINITY, total[i] = 0;

    const size_t last = worker->pos + (first + count - 1) / group;
    for (size_t span = 0; span <= last; span += CPU_SPAN) {
        for (size_t row = 0; row < CPU_SPAN && span + row <= last; row += TC__BLOCK) {
            memset(sums, 0, count * TC__BLOCK * lanes * sizeof *sums);
            tc__multiply_tile(kernels, keys + (span + row) * stride, stride, steps, queries, stride,
                              count, sums);
            for (size_t i = 0; i < count; i++)
                kernels->reduce(sums + i * TC__BLOCK * lanes, scores + i * CPU_SPAN + row);
        }
        for (size_t i = 0; i < count; i++) {
            size_t position = worker->pos + (first + i) / group;
            if (position < span) continue;
            size_t n = position - span < CPU_SPAN ? position - span + 1 : CPU_SPAN;
            if (arch->position == TC__POSITION_ALIBI)
                cpu_penalise(scores + i * CPU_SPAN, n,
                             arch->slopes[kv_head * group + (first + i) % group], position - span);
            cpu_absorb(kernels, scores + i * CPU_SPAN, n, values + span * stride, stride,
                       &largest[i], &total[i], out + i * stride);
        }
    }
    for (size_t i = 0; i < count; i++) {
        size_t position = (first + i) / group, head = kv_head * group + (first + i) % group;
        float *x = cache->mixed.data + position * cache->mixed.stride;
        for (size_t d = 0; d < head_dim; d++)
            x[tc__ordered(order, head * head_dim + d)] = out[i * stride + d] / total[i];
    }
}

static bool cpu_attend(cpu_worker *worker, size_t layer, const tc__tensor *o) {
    const size_t kv_heads = worker->arch->kv_heads;
    const size_t each = worker->count * (worker->arch->heads / kv_heads);
    /* Queries that go together: many share a pass over the cache, but all workers need some. */
    size_t queries = (each * kv_heads + (size_t)worker->size - 1) / (size_t)worker->size;
    if (queries > CPU_QUERIES) queries = CPU_QUERIES;
    if (queries > each) queries = each;
    const size_t pieces = (each + queries - 1) / queries;
    size_t item, end;
    for (cpu_share(worker, kv_heads * pieces, &item, &end); item < end; item++) {
        size_t first = item % pieces * queries;
        size_t count = each - first < queries ? each - first : queries;
        cpu_attend_queries(worker, layer, item / pieces, first, count, tc__order_of(o));
    }
    return cpu_step(worker);
}

/* The MLP's norm; one that has none of its own takes attention's. */
static bool cpu_normalise_mlp(cpu_worker *worker, const tc__layer *layer) {
    const bool own = layer->mlp_norm != NULL;
    return cpu_normalise(worker, own ? layer->mlp_norm : layer->attn_norm,
                         own ? layer->mlp_norm_bias : layer->attn_norm_bias, layer->gate_up, 0,
                         worker->count);
}

/* A block. The MLP starts from what attention has added to, or with `parallel` from the same h. */
static bool cpu_layer(cpu_worker *worker, size_t index) {
    tc__cache *cache = worker->cache;
    const tc__arch *arch = worker->arch;
    const tc__layer *layer = &cache->device->weights->layers[index];
    const size_t n = worker->count;
    cpu_target qkv = {&cache->qkv, layer->qkv_bias, arch->clip_qkv};
    cpu_mlp mlp = {worker->kernels, arch, &cache->inner, layer->act_scales,
                   tc__order_of(layer->down)};
    return cpu_normalise(worker, layer->attn_norm, layer->attn_norm_bias, layer->qkv, 0, n) &&
           cpu_multiply_by(worker, layer->qkv, &cache->x, n, cpu_store, &qkv) &&
           cpu_place_heads(worker, index) && cpu_attend(worker, index, layer->o) &&
           (!arch->parallel || cpu_normalise_mlp(worker, layer)) &&
           cpu_multiply_by(worker, layer->o, &cache->mixed, n, cpu_add, &cache->h) &&
           (arch->parallel || cpu_normalise_mlp(worker, layer)) &&
           cpu_multiply_by(worker, layer->gate_up, &cache->x, n, cpu_take_inner, &mlp) &&
           cpu_multiply_by(worker, layer->down, &cache->inner, n, cpu_add, &cache->h);
}

/* Logits of the batch's positions from `first` on, handed over if they are wanted. */
static bool cpu_output(cpu_worker *worker, size_t first) {
    tc__cache *cache = worker->cache;
    cpu_task *task = worker->task;
    const tc__weights *weights = cache->device->weights;
    cpu_target logits = {&cache->logits, NULL, 0};
    for (size_t n; first < worker->count; first += n) {
        n = worker->count - first < CPU_PIECE ? worker->count - first : CPU_PIECE;
        if (!cpu_normalise(worker, weights->norm, weights->norm_bias, weights->head, first, n) ||
            !cpu_multiply_by(worker, weights->head, &cache->x, n, cpu_store, &logits))
            return false;
        if (worker->index == 0) {
            cache->last = cache->logits.data + (n - 1) * cache->logits.stride;
            for (size_t i = 0; task->each && i < n && !task->code; i++)
                if (task->each(task->user, worker->pos + first + i,
                               cache->logits.data + i * cache->logits.stride,
                               (int)worker->arch->vocab_size))
                    task->code = TC_ERR_CANCELLED;
        }
        if (!cpu_step(worker)) return false;
    }
    return true;
}

static void cpu_forward(void *user, int index) {
    cpu_task *task = user;
    tc__cache *cache = task->cache;
    const tc__weights *weights = cache->device->weights;
    cpu_worker worker = {task,
                         cache,
                         cache->device->kernels,
                         &weights->arch,
                         index,
                         cache->device->threads,
                         0,
                         cache->scratch.data + (size_t)index * cache->scratch.stride,
                         task->pos,
                         0};
    for (size_t done = 0; done < task->n; done += worker.count, worker.pos += worker.count) {
        worker.count = task->n - done < CPU_BATCH ? task->n - done : CPU_BATCH;
        if (!cpu_embed(&worker, task->ids + done)) return;
        for (size_t layer = 0; layer < weights->arch.layers; layer++)
            if (!cpu_layer(&worker, layer)) return;
        bool final = done + worker.count == task->n;
        if ((task->each || final) && !cpu_output(&worker, task->each ? 0 : worker.count - 1))
            return;
    }
}

static int cpu_eval(tc__cache *cache, const int32_t *ids, size_t n, size_t pos, tc__logits_fn each,
                    void *user, const tc__flag *cancel, tc_error *err) {
    cpu_task task = {cache, ids, n, pos, each, user, cancel, TC_OK, {false, false}};
    tc__team_run(cache->team, cpu_forward, &task);
    if (task.code) return tc__fail(err, task.code, "the evaluation was cancelled");
    return tc__ok(err);
}

static const float *cpu_logits(tc__cache *cache) {
    return cache->last;
}

static int cpu_sample(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                      size_t n_context, double u, int32_t *id, tc_error *err) {
    return tc__sample(cache->last, (int)cache->device->weights->arch.vocab_size, sampling, context,
                      n_context, u, cache->candidates, cache->seen, id, err);
}

/* ---- measuring ---- */

typedef struct cpu_reading {
    const uint64_t *words;
    size_t chunks; /* of 8 words */
    int size;
    uint64_t sum; /* so that the reads count for something */
} cpu_reading;

static void cpu_read(void *user, int index) {
    cpu_reading *reading = user;
    uint64_t sums[8] = {0};
    size_t i, end;
    tc__share(reading->chunks, index, reading->size, &i, &end);
    for (; i < end; i++)
        for (int k = 0; k < 8; k++) sums[k] += reading->words[8 * i + k];
    for (int k = 1; k < 8; k++) sums[0] += sums[k];
    __atomic_add_fetch(&reading->sum, sums[0], __ATOMIC_RELAXED);
}

static int cpu_read_bandwidth(tc__device *device, size_t bytes, double *bytes_per_second,
                              tc_error *err) {
    enum { TURNS = 7 };
    double rates[TURNS];
    uint64_t *words = tc__alloc_aligned(bytes);
    if (!words) return tc__fail_memory(err, "the read loop", bytes);
    tc__team *team;
    int code = tc__team_open(device->threads, &team, err);
    if (code) {
        tc__free_aligned(words);
        return code;
    }
    cpu_reading reading = {words, bytes / 64, device->threads, 0};
    for (int i = 0; i < TURNS; i++) {
        double start = tc_seconds();
        tc__team_run(team, cpu_read, &reading);
        double rate = (double)reading.chunks * 64 / (tc_seconds() - start);
        int at = i; /* insertion sort */
        for (; at > 0 && rates[at - 1] > rate; at--) rates[at] = rates[at - 1];
        rates[at] = rate;
    }
    tc__team_close(team);
    tc__free_aligned(words);
    *bytes_per_second = rates[TURNS / 2];
    return tc__ok(err);
}

const tc__backend *tc__cpu_backend(void) {
    static const tc__backend backend = {cpu_open,
                                        cpu_close,
                                        cpu_name,
                                        cpu_details,
                                        cpu_kv_bytes_per_token,
                                        cpu_workspace_bytes,
                                        cpu_free_bytes,
                                        cpu_cache_open,
                                        cpu_cache_close,
                                        cpu_eval,
                                        cpu_logits,
                                        cpu_sample,
                                        cpu_read_bandwidth,
                                        NULL};
    return &backend;
}
