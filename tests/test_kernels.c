/* The kernels' source compiles for every architecture, without register spills and within the
 * architecture's shared memory. NVRTC needs no GPU for that; the engine's own search finds it. */
#include "src/gpu_driver.h"
#include "src/gpu_programs.h"
#include "src/shapes.h"
#include "src/threads.h"
#include "compiled.h"
#include "test.h"

#include <ctype.h>
#include <pthread.h>

/* A sanitizer finds nothing in NVRTC: there one small model is enough. */
#if defined(__SANITIZE_ADDRESS__)
#define FEW 1
#else
#define FEW 0
#endif

/* Bytes of shared memory that a block may have (CUDA programming guide, compute capabilities), and
 * the multiprocessors of a usual GPU. */
static const struct arch {
    const char *name;
    int number, shared, sm_count;
} archs[] = {
    {"sm_80", 80, 163 << 10, 108},   /* A100 */
    {"sm_86", 86, 99 << 10, 82},     /* RTX 3090 */
    {"sm_87", 87, 163 << 10, 16},    /* Orin */
    {"sm_89", 89, 99 << 10, 128},    /* RTX 4090 */
    {"sm_90", 90, 227 << 10, 132},   /* the portable path of H100 and H200 */
    {"sm_90a", 90, 227 << 10, 132},  /* H100, H200 */
    {"sm_100", 100, 227 << 10, 148}, /* B200 */
    {"sm_120", 120, 99 << 10, 170},  /* RTX 5090 */
};
enum { ARCHS = sizeof archs / sizeof *archs };

static bool nvrtc_knows(const tc__nvrtc *nvrtc, const struct arch *arch) {
    int count = 0, known[64];
    if (nvrtc->arch_count(&count) || count > 64 || nvrtc->archs(known)) return false;
    if (strchr(arch->name, 'a') && nvrtc->major < 12) return false;
    for (int i = 0; i < count; i++)
        if (known[i] == arch->number) return true;
    return false;
}

/* ---- the source ---- */

TEST(kernel_sources_stand_alone) {
    const char *name = NULL, *text = tc_kernel_source(0, &name);
    REQUIRE(text && name && strcmp(name, "prelude.cuh") == 0);
    for (int i = 0; (text = tc_kernel_source(i, &name)) != NULL; i++) {
        CHECK_MSG(!strstr(text, "#include <"), "%s includes a header from elsewhere", name);
        CHECK_MSG(i == 0 || !strstr(text, "asm"), "%s has inline PTX; it belongs in the prelude",
                  name);
    }
    CHECK(tc_kernel_source(-1, NULL) == NULL);
    CHECK(tc_kernel_source(1000, NULL) == NULL);
}

/* Uses every function of the prelude, so that each one's PTX is assembled. */
static const char probe[] =
    "#include \"prelude.cuh\"\n"
    "extern \"C\" __global__ void probe(u32 *out, const u32 *in, float *sums, bool valid) {\n"
    "    __shared__ __align__(16) u32 tile[32 * 4 * 4];\n"
    "    const u32 lane = threadIdx.x, at = keep(shared_address(&tile[4 * lane]));\n"
    "    u32 a[4], b[4], c[4];\n"
    "    copy_async_16(at, in + 4 * lane);\n"
    "    copy_async_16_or_zero(at + 1024, in + 4 * lane, valid);\n"
    "    copy_async_16_of_128(at, in);\n"
    "    copy_async_16_of_256(at, in);\n"
    "    copy_async_16_of_128_if(lane < 4, at + 16, in);\n"
    "    prefetch_l2(in);\n"
    "    copy_async_commit();\n"
    "    copy_async_wait<0>();\n"
    "    wait_for_previous();\n"
    "    launch_dependents();\n"
    "    __syncthreads();\n"
    "    load_matrix_x4(b, at);\n"
    "    load_matrix_x4_trans(c, at + 512);\n"
    "    uint4 v = load_stream(in + 4 * lane), w = load_shared_16(at);\n"
    "    uint2 u = load_shared_8(at);\n"
    "    float4 f = load_float4_l2(keep((const float *)sums) + 4 * lane);\n"
    "    w4_to_f16x2(v.x, f16x2_add(u.x, w.y), f16x2_high(w.z), a);\n"
    "    float d[4] = {load_shared_f32(at), f.x, load_f32_l2(sums), 0};\n"
    "    mma_16x8x16(d, a, f16x2_sub(b[0], c[0]), f16x2_mul(b[1], c[2]));\n"
    "    const float4 g = load_shared_float4(at);\n"
    "    i32 n[4] = {(i32)load_u32_l2(in), 0, 0, 0};\n"
    "    mma_16x8x32(n, a, b[0], b[1]);\n"
    "    d[0] += g.x + n[0] + f16_to_f32(f32_to_f16(d[1])) + bf16_to_f32((u16)v.y);\n"
    "    float2 h = load_float2_l2(sums + 2 * lane);\n"
    "    d[3] = h.x + exp2_fast(h.y) + arrive(out + 40) + warp_uniform(7) + byte_sum(u.x);\n"
    "    out[lane] = f32_to_f16x2(d[0], d[1]) + f16x2_fma(a[0], a[1], b[3]) + and_or(u.y, 15, "
    "64);\n"
    "    sums[0] = warp_sum(d[2]);\n"
    "    add_f32(sums + 2, d[1]);\n"
    "    store_u32_host(out + 41, lane);\n"
    "    if (!told(out + 42)) tell(out + 42);\n"
    "    sums[1] = warp_max(max_or_nan(d[3], d[2]));\n"
    "    store_shared_f32(at, d[2]);\n"
    "}\n"
    "#ifdef TC_HOPPER\n"
    "extern \"C\" __global__ void __cluster_dims__(2, 1, 1) __launch_bounds__(128)\n"
    "    hopper(float *out, const u8 *in) {\n"
    "    __shared__ __align__(1024) u8 tile[32768];\n"
    "    __shared__ u64 barrier;\n"
    "    const u32 at = shared_address(tile), b = shared_address(&barrier), rank = "
    "cluster_rank();\n"
    "    const u32 a[4] = {rank, 1, 2, 3};\n"
    "    float few[8], some[32], narrow[64], wide[128];\n"
    "    if (threadIdx.x == 0) barrier_init(b, 131), barrier_init_fence();\n"
    "    cluster_sync();\n"
    "    registers_down_to<160>();\n"
    "    if (threadIdx.x < 32 && elect_one()) {\n"
    "        barrier_expect(b, 16384 + 8192 * 2);\n"
    "        copy_bulk(at, in, 16384, b);\n"
    "        copy_bulk_multicast(at + 16384 + 8192 * rank, in, 8192, b, 3);\n"
    "    }\n"
    "    if (threadIdx.x < 2) barrier_arrive_at(b, threadIdx.x), barrier_arrive(b);\n"
    "    copy_async_arrive(b);\n"
    "    barrier_wait(b, 0);\n"
    "    registers_up_to<240>();\n"
    "    wgmma_fence();\n"
    "    wgmma_64x16x16(few, a, wgmma_operand(at));\n"
    "    wgmma_64x64x16(some, a, wgmma_operand(at));\n"
    "    wgmma_64x128x16(narrow, a, wgmma_operand(at));\n"
    "    wgmma_64x256x16(wide, a, wgmma_operand(at));\n"
    "    wgmma_commit();\n"
    "    wgmma_wait<0>();\n"
    "    keep_all(few), keep_all(some), keep_all(narrow), keep_all(wide);\n"
    "    out[threadIdx.x] = few[1] + some[2] + narrow[7] + wide[9];\n"
    "    cluster_arrive();\n"
    "    cluster_wait();\n"
    "    give_4(at, b, rank ^ 1, few[2]);\n"
    "    give_8(at + 8, b, rank ^ 1, make_float2(few[3], few[4]));\n"
    "    give_16(at + 16, b, rank ^ 1, make_float4(few[4], few[5], few[6], few[7]));\n"
    "}\n"
    "#endif\n";

TEST(the_probe_calls_every_function_of_the_prelude) {
    static const char mark[] = "__device__ __forceinline__";
    const char *text = tc_kernel_source(0, NULL);
    int functions = 0;
    for (const char *at = strstr(text, mark); at; at = strstr(at + 1, mark), functions++) {
        const char *end = at + strcspn(at, "("), *begin = end;
        char name[64];
        while (begin[-1] != ' ' && begin[-1] != '*') begin--;
        snprintf(name, sizeof name, "%.*s", (int)(end - begin), begin);
        CHECK_MSG(strstr(probe, name), "the probe does not call %s", name);
    }
    CHECK(functions > 20);
}

/* ---- models ---- */

/* Where a model's kernels are compiled. MOST: not for sm_87, which differs from sm_80 in its number of
 * SMs alone; LLaMA-2-7B, MPT-7B and Falcon-7B are there for all. APART: shapes that no family has, heads in 8 bits, and in 16
 * bits all but LLaMA-2-7B, MPT-7B and Falcon-7B, from whose products theirs differ in size alone; for
 * sm_86, whose blocks have the least shared memory, and for sm_90a, which has kernels of its own. */
enum where { EVERYWHERE, MOST, APART };
enum { BINARY16 = -1 };

typedef struct model {
    const char *shape; /* a built-in one, or that of `spec` */
    const char *precision;
    enum where where;
    const tc__shape_spec *spec;
    bool wide; /* vectors of 28672 numbers and more, in full: too many for GPUs with 99 KB of
                  shared memory, or nearly so. No such GPU has room for the weights either, but
                  for the 96 GB of the largest sm_120 */
    int others[TC__MAX_KINDS - 1]; /* kinds of layers 1, 2, ... where they differ: a group size */
    bool head_in_8;
} model;

static const tc__shape_spec falcon_40b = {"falcon-40b",
                                          "falcon",
                                          8192,
                                          32768,
                                          60,
                                          128,
                                          8,
                                          64,
                                          65024,
                                          2048,
                                          1e-5,
                                          10000,
                                          .norm = TC__NORM_LAYER,
                                          .norm_bias = true,
                                          .activation = TC__ACT_GELU,
                                          .parallel = 1};
static const tc__shape_spec small_mixed = {
    "small, g32, g64, w16", "llama", 512, 1408, 3, 8, 2, 64, 32000, 4096, 1e-5, 10000, .gated = 1};
static const tc__shape_spec small_80 = {
    "small, head 80", "llama", 640, 1280, 1, 8, 8, 80, 4000, 4096, 1e-5, 10000, .gated = 1};
static const tc__shape_spec small_256 = {
    "small, head 256", "llama", 512, 1024, 1, 9, 1, 256, 4000, 4096, 1e-5, 10000, .gated = 1};
static const tc__shape_spec small_plain = {"small, g32, w16, not gated",
                                           "falcon",
                                           480,
                                           1952,
                                           2,
                                           6,
                                           1,
                                           80,
                                           4000,
                                           4096,
                                           1e-5,
                                           10000,
                                           .norm = TC__NORM_LAYER,
                                           .activation = TC__ACT_GELU,
                                           .parallel = 1};

static const model models[] = {{"falcon-40b", "w4a16", MOST, &falcon_40b, false, {0}, false},
                               {"falcon-40b", "w16a16", APART, &falcon_40b, true, {0}, false},
                               {"small", "w4a16", EVERYWHERE, &small_mixed, false, {64, BINARY16},
                                false},
                               {"small", "w4a16", APART, &small_80, false, {0}, false},
                               {"small", "w4a16", APART, &small_256, false, {0}, false},
                               {"small", "w4a16", APART, &small_plain, false, {BINARY16}, false},
                               {"llama-3-8b", "w4a16", APART, NULL, false, {0}, true},
                               {"falcon-7b", "w4a16", APART, NULL, false, {0}, true}};

/* Model i: the built-in shapes, in both precisions, and then those of the table. False: no more. */
static bool model_at(size_t i, model *m) {
    size_t shapes = 0;
    while (tc_shape_name((int)shapes)) shapes++;
    if (i < 2 * shapes) {
        const char *shape = tc_shape_name((int)(i / 2));
        *m = (model){shape, i % 2 ? "w16a16" : "w4a16", EVERYWHERE, NULL, false, {0}, false};
        const bool typical = !strcmp(shape, "llama-2-7b") || !strcmp(shape, "mpt-7b") ||
                             !strcmp(shape, "falcon-7b");
        if (!typical) m->where = i % 2 || !strcmp(shape, "tiny") ? APART : MOST;
        m->wide = i % 2 && (!strcmp(shape, "llama-2-70b") || !strcmp(shape, "mpt-30b"));
    } else if (i - 2 * shapes < TC_COUNT(models)) {
        *m = models[i - 2 * shapes];
    } else {
        return false;
    }
    return true;
}

/* The tables of a model; `weights` points into `file`. */
static int model_open(const model *m, tc__model_file *file, tc__weights *weights, tc_error *err) {
    const int group = m->others[0] ? 32 : 0;
    tc_model_params params = tc_model_default_params();
    int code = m->spec ? tc__shape_make(m->spec, m->precision, group, false, &params, file, err)
                       : tc__shape_open(m->shape, m->precision, group, false, &params, file, err);
    if (code) return code;
    code = tc__weights_open(file, weights, err);
    if (!code && m->head_in_8) tc__weights_head_in_8(weights);
    for (int i = 0; !code && i < TC__MAX_KINDS - 1 && m->others[i]; i++)
        for (int role = 0; role < TC__ROLES; role++) {
            const tc__tensor *matrix = tc__role_matrix(&weights->layers[i + 1], role);
            tc__tensor *other = &file->tensors[matrix - file->tensors];
            other->type = m->others[i] == BINARY16 ? TC__F16 : TC__W4;
            other->group_size = m->others[i] == BINARY16 ? 0 : (uint32_t)m->others[i];
        }
    return code;
}

/* Whether a model is compiled for an architecture. TINYCHAT_TEST_ARCH in the environment names one
 * for all models ("sm_90a"), or is "all": then every model is compiled for every architecture. */
static bool model_wants(const model *m, const struct arch *arch) {
    const char *only = getenv("TINYCHAT_TEST_ARCH");
    if (FEW) return !strcmp(m->shape, "tiny") && arch->number == 86;
    if (m->wide && arch->shared <= 99 << 10) return false;
    if (only) return !strcmp(only, "all") || !strcmp(only, arch->name);
    if (m->where == MOST) return arch->number != 87;
    return m->where == EVERYWHERE || arch->number == 86 || !strcmp(arch->name, "sm_90a");
}

/* ---- the kernels of models ---- */

/* Models have kernels in common; of those that are the same one is compiled. That is sure because a
 * kernel is compiled with no more than what it is compared by: the lines that make it and the
 * constants of the model that its area may use. The headers of other areas are empty then, and what
 * uses a constant that is not its own does not compile. Constants in the lines themselves have
 * become numbers. */
typedef struct area {
    const char *name;
    const char *mark;       /* in the lines of its kernels; the last area takes what is left */
    const char *missing[2]; /* headers */
} area;

enum { ATTENTION, SAMPLING, OTHERS, AREAS, NONE = AREAS };
static const area areas[AREAS] = {{"attention", "AttentionArgs", {"sample.cuh", ""}},
                                  {"sampling", "SampleArgs", {"attention.cuh", ""}},
                                  {"others", "", {"attention.cuh", "sample.cuh"}}};

/* The constants that one area, or none, may use. All others are everybody's. */
static const struct {
    const char *name;
    int area;
} own_constants[] = {
    {"HEADS", ATTENTION}, {"KV_HEADS", ATTENTION}, {"HEAD_DIM", ATTENTION},
    {"ALIBI", ATTENTION}, {"QK_NORM", ATTENTION},  {"ROPE_SCALE", ATTENTION},
    {"VOCAB", SAMPLING},  {"HIDDEN", SAMPLING},    {"INTERMEDIATE", NONE},
    {"ATTENTION_BESIDE", ATTENTION},
};

enum { LINE = 512 };

/* The next line at *text, with its newline; false at the end. */
static bool line_next(const char **text, char line[LINE]) {
    size_t len = strcspn(*text, "\n");
    if (!**text) return false;
    if (len > LINE - 2) len = LINE - 2; /* does not compile then */
    snprintf(line, LINE, "%.*s\n", (int)len, *text);
    *text += len + ((*text)[len] == '\n');
    return true;
}

static size_t word_length(const char *text) {
    size_t n = 0;
    while (isalnum((unsigned char)text[n]) || text[n] == '_') n++;
    return n;
}

static bool has_word(const char *text, const char *word, size_t len) {
    for (size_t n; *text; text += n ? n : 1) {
        n = word_length(text);
        if (n == len && !memcmp(text, word, len)) return true;
    }
    return false;
}

/* Appends a line in which the constants of a program have become their values. */
static void add_line(tc__buf *out, const char *program, const char *line) {
    for (size_t n; *line; line += n) {
        char name[64], value[64], other[LINE];
        const char *at = program;
        bool found = false;
        n = word_length(line);
        while (n && !found && line_next(&at, other))
            found = sscanf(other, "#define %63s %63[^\n]", name, value) == 2 && strlen(name) == n &&
                    !memcmp(name, line, n);
        if (!n) n = 1;
        tc__buf_add(out, found ? value : line, found ? strlen(value) : n);
    }
}

/* Appends the types that a line names and that stand before `end`, each behind those it names. */
static void add_types(tc__buf *out, const char *program, const char *end, const char *line) {
    char type[LINE];
    for (const char *at = program, *begin = at; line_next(&at, type) && begin < end; begin = at) {
        if (strncmp(type, "typedef ", 8)) continue;
        const char *stop = strchr(type, ';'), *name = stop;
        while (word_length(name - 1)) name--;
        if (!has_word(line, name, (size_t)(stop - name))) continue;
        add_types(out, program, begin, type);
        add_line(out, program, type);
    }
}

/* Appends what makes a kernel: its types, its line, and the LAUNCH that `next` may begin with. */
static void add_kernel(tc__buf *out, const char *program, const char *line, const char *next) {
    char launch[LINE];
    add_types(out, program, next, line);
    add_line(out, program, line);
    if (!strncmp(next, "LAUNCH", 6) && line_next(&next, launch)) add_line(out, program, launch);
}

static int area_of(const char *line) {
    int i = 0;
    while (!strstr(line, areas[i].mark)) i++;
    return i;
}

/* Appends the beginning of a program for the kernels of an area. */
static void add_constants(tc__buf *out, const char *program, int area) {
    char line[LINE], name[64];
    while (line_next(&program, line)) {
        bool own = true;
        if (sscanf(line, "#define %63s", name) != 1) continue;
        for (size_t i = 0; i < TC_COUNT(own_constants); i++)
            own &= strcmp(name, own_constants[i].name) || own_constants[i].area == area;
        if (own) tc__buf_str(out, line);
    }
    tc__buf_str(out, "#include \"instances.cuh\"\n");
}

/* What has been compiled: kernels, and with what. */
typedef struct seen {
    char **keys; /* owned */
    size_t n;
} seen;

/* False if it is there already. */
static bool seen_add(seen *all, const char *arch, const tc__buf *constants, const tc__buf *kernel) {
    tc__buf key = {0};
    tc__buf_printf(&key, "%s\n%s%s", arch, constants->data, kernel->data);
    bool found = key.failed;
    for (size_t i = 0; i < all->n && !found; i++) found = !strcmp(all->keys[i], key.data);
    if (found) {
        tc__buf_free(&key);
        return false;
    }
    all->keys = realloc(all->keys, (all->n + 1) * sizeof *all->keys);
    all->keys[all->n++] = key.data;
    return true;
}

static void seen_free(seen *all) {
    for (size_t i = 0; i < all->n; i++) free(all->keys[i]);
    free(all->keys);
}

/* ---- compiling one ---- */

typedef struct job {
    char model[64];
    const area *area;
    tc__buf text; /* owned */
    int kernels;
    const struct arch *arch;
    compiled out;
} job;

static void job_compile(job *j, const tc__nvrtc *nvrtc) {
    j->out = compiled_make(nvrtc, j->text.data, j->arch->name, j->arch->shared,
                           j->area ? j->area->missing : NULL);
}

static void job_free(job *j) {
    tc__buf_free(&j->text);
    compiled_free(&j->out);
}

/* ---- checking what came out ---- */

static void check_kernel(const job *j, const compiled_kernel *k) {
    char symbol[80];
    int launch[4];
    CHECK_MSG(k->registers > 0 && k->stack >= 0 && k->loads >= 0, "%s: no report of its registers",
              k->name);
    /* choosing a token is not bound by its instructions; nothing else may use local memory */
    bool hot = strcmp(k->name, "sample_token") != 0;
    CHECK_MSG(!hot || (k->stack == 0 && k->stores == 0 && k->loads == 0),
              "%s %s: %s uses local memory: stack %d, spills %d and %d bytes", j->model,
              j->arch->name, k->name, k->stack, k->stores, k->loads);
    snprintf(symbol, sizeof symbol, "%s_launch", k->name);
    bool found = compiled_numbers(&j->out, symbol, launch, 4);
    CHECK_MSG(found, "%s %s: there is no %s", j->model, j->arch->name, symbol);
    if (!found) return;
    CHECK_MSG(launch[2] >= 0 && launch[2] + k->shared <= j->arch->shared,
              "%s %s: %s needs %d + %d bytes of shared memory; there are %d", j->model,
              j->arch->name, k->name, launch[2], k->shared, j->arch->shared);
    CHECK_MSG(launch[1] >= 32 && launch[1] <= 1024 && launch[1] * k->registers <= 65536,
              "%s %s: %s has %d threads of %d registers", j->model, j->arch->name, k->name,
              launch[1], k->registers);
}

static void check_job(const job *j) {
    int kernels = 0;
    const char *at = j->out.log;
    compiled_kernel kernel;
    CHECK_MSG(j->out.status == 0 && j->out.image,
              "%s, %s, for %s does not compile (a constant is undefined? Then it is not among the "
              "area's own_constants of this test):\n%s",
              j->model, j->area->name, j->arch->name, at ? at : "");
    if (j->out.status || !j->out.image) return;
    for (; compiled_next(&at, &kernel); kernels++) check_kernel(j, &kernel);
    CHECK_MSG(kernels == j->kernels, "%s, %s: the assembler reports %d kernels of %d", j->model,
              j->area->name, kernels, j->kernels);
}

/* ---- compiling many ---- */

typedef struct queue {
    const tc__nvrtc *nvrtc;
    pthread_mutex_t lock;
    seen seen;
    job *jobs;
    size_t n, next;
    int kernels, needed; /* that are compiled, and that the models have */
} queue;

static void *queue_work(void *argument) {
    queue *q = argument;
    for (;;) {
        pthread_mutex_lock(&q->lock);
        job *j = q->next < q->n ? &q->jobs[q->next++] : NULL;
        pthread_mutex_unlock(&q->lock);
        if (!j) return NULL;
        job_compile(j, q->nvrtc);
        pthread_mutex_lock(&q->lock);
        check_job(j);
        pthread_mutex_unlock(&q->lock);
        job_free(j);
    }
}

static void queue_run(queue *q) {
    pthread_t threads[16];
    int n = tc__processors() < 16 ? tc__processors() : 16, running = 0;
    pthread_mutex_init(&q->lock, NULL);
    while (running < n && !pthread_create(&threads[running], NULL, queue_work, q)) running++;
    if (!running) queue_work(q);
    while (running > 0) pthread_join(threads[--running], NULL);
    pthread_mutex_destroy(&q->lock);
}

static void queue_add(queue *q, const job *j) {
    q->jobs = realloc(q->jobs, (q->n + 1) * sizeof *q->jobs);
    q->jobs[q->n++] = *j;
    q->kernels += j->kernels;
}

/* Adds the kernels of a program that are new to the jobs of their areas. */
static void jobs_add_program(job jobs[AREAS], seen *seen, const char *program, int *needed) {
    const char *at = program;
    char line[LINE];
    while (line_next(&at, line)) {
        if (!isupper((unsigned char)*line) || !strncmp(line, "LAUNCH", 6)) continue;
        job *j = &jobs[area_of(line)];
        tc__buf constants = {0}, kernel = {0};
        add_constants(&constants, program, area_of(line));
        add_kernel(&kernel, program, line, at);
        ++*needed;
        if (seen_add(seen, j->arch->name, &constants, &kernel)) {
            if (!j->kernels++) tc__buf_str(&j->text, constants.data);
            tc__buf_str(&j->text, kernel.data);
        }
        tc__buf_free(&constants);
        tc__buf_free(&kernel);
    }
}

/* The kernels of a model for one architecture, but for those that there are already. */
static void queue_add_model(queue *q, const char *name, const tc__weights *weights,
                            const struct arch *arch) {
    static void (*const programs[])(const tc__weights *, const tc__kinds *, int sm_count,
                                    tc__buf *) = {tc__write_decode, tc__write_prefill,
                                                  tc__write_prefill_wide, tc__write_prefill_few};
    tc__kinds kinds;
    tc_error err;
    job jobs[AREAS];
    memset(jobs, 0, sizeof jobs);
    for (int i = 0; i < AREAS; i++) {
        snprintf(jobs[i].model, sizeof jobs[i].model, "%s", name);
        jobs[i].area = &areas[i], jobs[i].arch = arch;
    }
    int code = tc__kinds_find(weights, &kinds, &err);
    CHECK_MSG(code == TC_OK, "%s: %s", name, err.message);
    for (size_t i = 0; i < TC_COUNT(programs) && !code; i++) {
        tc__buf program = {0};
        programs[i](weights, &kinds, arch->sm_count, &program);
        jobs_add_program(jobs, &q->seen, program.data, &q->needed);
        tc__buf_free(&program);
    }
    for (int i = 0; i < AREAS; i++)
        if (jobs[i].kernels) queue_add(q, &jobs[i]);
}

static void queue_finish(queue *q) {
    double start = tc_seconds();
    queue_run(q);
    printf("    %d kernels, of which %d are the same, in %zu programs in %.0f s\n", q->needed,
           q->needed - q->kernels, q->n, tc_seconds() - start);
    seen_free(&q->seen);
    free(q->jobs);
}

/* ---- the tests of the kernels ---- */

TEST(prelude_assembles_for_every_architecture) {
    tc__nvrtc nvrtc;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    printf("    NVRTC %d.%d, %s\n", nvrtc.major, nvrtc.minor, nvrtc.path);
    for (size_t i = 0; i < ARCHS; i++) {
        /* 90a came with NVRTC 12, 100 and 120 with 12.8; the others every NVRTC must know */
        bool known = nvrtc_knows(&nvrtc, &archs[i]);
        CHECK_MSG(known || archs[i].number >= 100 || strchr(archs[i].name, 'a'),
                  "this NVRTC does not know %s", archs[i].name);
        if (!known) continue;
        job j = {.model = "probe", .arch = &archs[i]};
        tc__buf_str(&j.text, probe);
        job_compile(&j, &nvrtc);
        CHECK_MSG(j.out.status == 0 && j.out.image_bytes > 0, "%s: %s", archs[i].name,
                  j.out.log ? j.out.log : "");
        job_free(&j);
    }
    tc__nvrtc_close(&nvrtc);
}

TEST(models_compile_for_every_architecture) {
    queue q = {0};
    tc__nvrtc nvrtc;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    q.nvrtc = &nvrtc;
    model m;
    for (size_t i = 0; model_at(i, &m); i++) {
        tc__model_file file;
        tc__weights weights;
        char name[64];
        int code = model_open(&m, &file, &weights, &err);
        CHECK_MSG(code == TC_OK, "%s: %s", m.shape, err.message);
        if (code) continue;
        snprintf(name, sizeof name, "%s %s", m.spec ? m.spec->name : m.shape, m.precision);
        for (const struct arch *arch = archs; arch < archs + ARCHS; arch++)
            if (nvrtc_knows(&nvrtc, arch) && model_wants(&m, arch))
                queue_add_model(&q, name, &weights, arch);
        tc__weights_close(&weights);
        tc__model_file_close(&file);
    }
    queue_finish(&q);
    tc__nvrtc_close(&nvrtc);
}

/* What does not fit is no crash and no wrong result: the compiler says so. */
TEST(what_is_too_wide_does_not_compile) {
    tc__nvrtc nvrtc;
    tc_error err;
    model m;
    if (FEW) SKIP("a sanitizer finds nothing in NVRTC");
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    int wide = 0;
    for (size_t i = 0; model_at(i, &m); i++) {
        tc__model_file file;
        tc__weights weights;
        tc__kinds kinds;
        job j = {.model = "wide", .arch = &archs[1]};
        if (!m.wide) continue;
        REQUIRE(model_open(&m, &file, &weights, &err) == TC_OK);
        REQUIRE(tc__kinds_find(&weights, &kinds, &err) == TC_OK);
        tc__write_decode(&weights, &kinds, j.arch->sm_count, &j.text);
        job_compile(&j, &nvrtc);
        const char *log = j.out.log ? j.out.log : "";
        const bool refused = strstr(log, "the matrix is too wide for this GPU");
        CHECK_MSG(!j.out.status != refused, "%s for %s: %s", m.shape, j.arch->name, log);
        CHECK_MSG(refused || !m.spec, "the widest, %s, compiles: not too wide?", m.shape);
        job_free(&j);
        tc__weights_close(&weights);
        tc__model_file_close(&file);
        wide++;
    }
    CHECK(wide == 3);
    tc__nvrtc_close(&nvrtc);
}

/* The kernels of the demo model, for architectures that this NVRTC knows. */
static void compile_demo(const tc__nvrtc *nvrtc, const int *numbers, size_t n) {
    queue q = {0};
    tc__model_file file;
    tc__weights weights;
    tc_error err;
    q.nvrtc = nvrtc;
    int code = tc__model_file_open("models/demo.bin", &file, &err);
    if (!code) code = tc__weights_open(&file, &weights, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    if (!code) {
        for (size_t i = 0; i < ARCHS * n; i++)
            if (archs[i / n].number == numbers[i % n] && nvrtc_knows(nvrtc, &archs[i / n]))
                queue_add_model(&q, "demo", &weights, &archs[i / n]);
        queue_finish(&q);
        tc__weights_close(&weights);
    }
    tc__model_file_close(&file);
}

TEST(the_demo_model_compiles) {
    static const int numbers[] = {86};
    tc__nvrtc nvrtc;
    tc_error err;
    if (FEW) SKIP("a sanitizer finds nothing in NVRTC");
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    compile_demo(&nvrtc, numbers, TC_COUNT(numbers));
    tc__nvrtc_close(&nvrtc);
}

/* People have what came with their driver or their Python environment, back to CUDA 11.8. */
TEST(an_old_nvrtc_compiles) {
    static const int numbers[] = {86, 90};
    const char *old = getenv("TINYCHAT_OLD_NVRTC"), *chosen = getenv("TINYCHAT_NVRTC");
    char kept[1024];
    tc__nvrtc nvrtc;
    tc_error err;
    if (FEW) SKIP("that compiler does not run beside a sanitizer");
    if (!old || !*old) SKIP("TINYCHAT_OLD_NVRTC does not name one, as of CUDA 11.8");
    snprintf(kept, sizeof kept, "%s", chosen ? chosen : "");
    setenv("TINYCHAT_NVRTC", old, 1);
    int code = tc__nvrtc_open(&nvrtc, 0, &err);
    setenv("TINYCHAT_NVRTC", kept, 1);
    if (!chosen) unsetenv("TINYCHAT_NVRTC");
    REQUIRE(code == TC_OK);
    printf("    NVRTC %d.%d, %s\n", nvrtc.major, nvrtc.minor, nvrtc.path);
    CHECK_MSG(nvrtc.major < 12, "NVRTC %d.%d is not old", nvrtc.major, nvrtc.minor);
    compile_demo(&nvrtc, numbers, TC_COUNT(numbers));
    tc__nvrtc_close(&nvrtc);
}

/* Every kernel in one part, with its LAUNCH; everything else in all. */
TEST(programs_are_cut_at_kernels) {
    static const char text[] = "#define A 1\nKERNEL(a)\nLAUNCH(a)\ntypedef int b;\nROWS_KERNEL(c)\n"
                               "KERNEL(d)\nLAUNCH(d)\nF_PRODUCT(e)\n";
    static const char *const parts[] = {
        "#define A 1\nKERNEL(a)\nLAUNCH(a)\ntypedef int b;\nKERNEL(d)\nLAUNCH(d)\n",
        "#define A 1\ntypedef int b;\nROWS_KERNEL(c)\nF_PRODUCT(e)\n"};
    tc__buf whole = {0};
    tc__buf_str(&whole, text);
    for (size_t i = 0; i < TC_COUNT(parts); i++) {
        tc__buf part = {0};
        tc__cut_program(&whole, i, TC_COUNT(parts), &part);
        CHECK_MSG(part.len == strlen(parts[i]) && !memcmp(part.data, parts[i], part.len), "%.*s",
                  (int)part.len, part.data);
        tc__buf_free(&part);
    }
    tc__buf_free(&whole);
}

TEST_MAIN(RUN(programs_are_cut_at_kernels) RUN(kernel_sources_stand_alone)
              RUN(the_probe_calls_every_function_of_the_prelude)
                  RUN(prelude_assembles_for_every_architecture)
                      RUN(models_compile_for_every_architecture)
                          RUN(what_is_too_wide_does_not_compile) RUN(the_demo_model_compiles)
                              RUN(an_old_nvrtc_compiles))
