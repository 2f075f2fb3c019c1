/* The kernels' source compiles for every architecture, without register spills and within the
 * architecture's shared memory; and the cache of compiled kernels. NVRTC needs no GPU for that; the
 * engine's own search finds it. */
#include "program.h"
#include "src/gpu_programs.h"
#include "src/jit.h"
#include "src/shapes.h"
#include "src/threads.h"
#include "test.h"

#include <elf.h>
#include <pthread.h>

/* A sanitizer finds nothing in NVRTC: there one architecture is enough. */
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
    "    float4 f = load_float4_l2(sums + 4 * lane);\n"
    "    w4_to_f16x2(v.x, f16x2_add(u.x, w.y), f16x2_high(w.z), a);\n"
    "    float d[4] = {load_shared_f32(at), f.x, load_f32_l2(sums), 0};\n"
    "    mma_16x8x16(d, a, f16x2_sub(b[0], c[0]), f16x2_mul(b[1], c[2]));\n"
    "    const float4 g = load_shared_float4(at);\n"
    "    i32 n[4] = {(i32)load_u32_l2(in), (i32)load_u32_host(in + 1), 0, 0};\n"
    "    mma_16x8x32(n, a, b[0], b[1]);\n"
    "    d[0] += g.x + n[0] + f16_to_f32(f32_to_f16(d[1])) + bf16_to_f32((u16)v.y);\n"
    "    float2 h = load_float2_l2(sums + 2 * lane);\n"
    "    d[3] = h.x + exp2_fast(h.y) + arrive(out + 40) + warp_uniform(7);\n"
    "    out[lane] = f32_to_f16x2(d[0], d[1]) + f16x2_fma(a[0], a[1], b[3]) + and_or(u.y, 15, "
    "64);\n"
    "    sums[0] = warp_sum(d[2]);\n"
    "    store_u32_host(out + 41, lane);\n"
    "    sums[1] = warp_max(max_or_nan(d[3], d[2]));\n"
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
    "    warps_sync<128>(1);\n"
    "    out[threadIdx.x] = few[1] + some[2] + narrow[7] + wide[9] + load_cluster_16(at, rank).x;\n"
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

/* Where a model's programs are compiled. EVERYWHERE: the families. APART: other sizes of them (and
 * Mistral, which is LLaMA 3 with a smaller vocabulary), and shapes that no family has; for sm_86,
 * whose blocks have the least shared memory, and for sm_90a, which has kernels of its own. */
enum where { EVERYWHERE, APART };
enum { BINARY16 = -1 };

typedef struct model {
    const char *shape; /* a built-in one, or that of `spec` */
    const char *precision;
    enum where where;
    const tc__shape_spec *spec;
    int others[TC__MAX_KINDS - 1]; /* kinds of layers 1, 2, ... where they differ: a group size */
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

static const model models[] = {{"llama-2-7b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"llama-3-8b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"mistral-7b", "w4a16", APART, NULL, {0}},
                               {"qwen2.5-7b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"qwen3-8b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"mpt-7b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"mpt-30b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"falcon-7b", "w4a16", EVERYWHERE, NULL, {0}},
                               {"falcon-40b", "w4a16", EVERYWHERE, &falcon_40b, {0}},
                               {"llama-2-7b", "w16a16", EVERYWHERE, NULL, {0}},
                               {"small", "w4a16", EVERYWHERE, &small_mixed, {64, BINARY16}},
                               {"llama-2-13b", "w4a16", APART, NULL, {0}},
                               {"llama-2-70b", "w4a16", APART, NULL, {0}},
                               {"llama-3.2-1b", "w4a16", APART, NULL, {0}},
                               {"small", "w4a16", APART, &small_80, {0}},
                               {"small", "w4a16", APART, &small_256, {0}},
                               {"small", "w4a16", APART, &small_plain, {BINARY16}}};
enum { MODELS = sizeof models / sizeof *models };

/* The tables of a model; `weights` points into `file`. */
static int model_open(const model *m, tc__model_file *file, tc__weights *weights, tc_error *err) {
    const int group = m->others[0] ? 32 : 0;
    tc_model_params params = tc_model_default_params();
    int code = m->spec ? tc__shape_make(m->spec, m->precision, group, false, &params, file, err)
                       : tc__shape_open(m->shape, m->precision, group, false, &params, file, err);
    if (code) return code;
    code = tc__weights_open(file, weights, err);
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
    if (FEW) return m == models && arch->number == 86;
    if (only) return !strcmp(only, "all") || !strcmp(only, arch->name);
    return m->where == EVERYWHERE || arch->number == 86 || !strcmp(arch->name, "sm_90a");
}

/* ---- compiling one ---- */

typedef struct job {
    char model[64];
    const char *program;
    tc__buf text; /* owned */
    const struct arch *arch;
    /* out */
    int status;
    char *log;
    uint8_t *image;
    size_t image_bytes;
} job;

/* As src/jit.c does, but with the assembler's report. */
static void job_compile(job *j, const tc__nvrtc *nvrtc) {
    const char *names[16], *texts[16];
    char arch[64], limit[64];
    const char *options[] = {arch, limit, "--std=c++17", "--ptxas-options=-v"};
    tc__nvrtc_program handle = NULL;
    int count = 0;
    size_t size = 0;
    while (count < 16 && (texts[count] = tc_kernel_source(count, &names[count]))) count++;
    snprintf(arch, sizeof arch, "--gpu-architecture=%s", j->arch->name);
    snprintf(limit, sizeof limit, "-DSHARED_LIMIT=%d", j->arch->shared);
    j->status = nvrtc->create(&handle, j->text.data, "model.cu", count, texts, names);
    if (j->status) return;
    j->status = nvrtc->compile(handle, TC_COUNT(options), options);
    if (!nvrtc->log_size(handle, &size) && (j->log = calloc(size + 1, 1)))
        nvrtc->log(handle, j->log);
    if (!j->status && !nvrtc->cubin_size(handle, &size) && (j->image = malloc(size))) {
        j->image_bytes = size;
        j->status = nvrtc->cubin(handle, (char *)j->image);
    }
    nvrtc->destroy(&handle);
}

static void job_free(job *j) {
    tc__buf_free(&j->text);
    free(j->log);
    free(j->image);
    j->log = NULL, j->image = NULL;
}

/* ---- checking what came out ---- */

/* The four numbers of NAME_launch in a cubin: an initialised variable, found by its symbol. */
static bool launch_numbers(const job *j, const char *kernel, int numbers[4]) {
    const Elf64_Ehdr *header = (const void *)j->image;
    const Elf64_Shdr *sections = (const void *)(j->image + header->e_shoff);
    char name[80];
    snprintf(name, sizeof name, "%s_launch", kernel);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const void *)(j->image + sections[i].sh_offset);
        const char *names = (const char *)j->image + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++) {
            if (strcmp(names + symbols[k].st_name, name)) continue;
            const Elf64_Shdr *section = &sections[symbols[k].st_shndx];
            if (section->sh_type == SHT_NOBITS || symbols[k].st_size < 16) return false;
            memcpy(numbers, j->image + section->sh_offset + symbols[k].st_value, 16);
            return true;
        }
    }
    return false;
}

/* One kernel's part of the assembler's report:
 *     Function properties for NAME / N bytes stack frame, N bytes spill stores, N bytes spill loads
 *     Used N registers, used N barriers, N bytes smem, ... */
static void check_kernel(const job *j, const char *report, const char *end) {
    int stack = -1, stores = -1, loads = -1, registers = -1, fixed = 0, launch[4];
    char kernel[64] = "";
    sscanf(report, "Function properties for %63s", kernel);
    for (const char *at = report; at < end; at++) {
        if (!strncmp(at, "bytes stack", 11)) {
            const char *line = at;
            while (line[-1] != '\n') line--;
            sscanf(line, "ptxas . %d bytes stack frame, %d bytes spill stores, %d", &stack, &stores,
                   &loads);
        }
        sscanf(at, "Used %d registers", &registers);
        if (!strncmp(at, " bytes smem", 11)) {
            const char *number = at;
            while (number[-1] >= '0' && number[-1] <= '9') number--;
            fixed = atoi(number);
        }
    }
    CHECK_MSG(registers > 0 && stack >= 0 && loads >= 0, "%s: no report of its registers", kernel);
    /* choosing a token is not bound by its instructions; nothing else may use local memory */
    bool hot = strcmp(kernel, "sample_token") != 0;
    CHECK_MSG(!hot || (stack == 0 && stores == 0 && loads == 0),
              "%s %s: %s uses local memory: stack %d, spills %d and %d bytes", j->model,
              j->arch->name, kernel, stack, stores, loads);
    bool found = launch_numbers(j, kernel, launch);
    CHECK_MSG(found, "%s %s: there is no %s_launch", j->model, j->arch->name, kernel);
    if (!found) return;
    CHECK_MSG(launch[2] >= 0 && launch[2] + fixed <= j->arch->shared,
              "%s %s: %s needs %d + %d bytes of shared memory; there are %d", j->model,
              j->arch->name, kernel, launch[2], fixed, j->arch->shared);
    CHECK_MSG(launch[1] >= 32 && launch[1] <= 1024 && launch[1] * registers <= 65536,
              "%s %s: %s has %d threads of %d registers", j->model, j->arch->name, kernel,
              launch[1], registers);
}

/* Returns the number of kernels. */
static int check_job(const job *j) {
    static const char mark[] = "Function properties for ";
    int kernels = 0;
    CHECK_MSG(j->status == 0 && j->image, "%s %s for %s does not compile:\n%s", j->model,
              j->program, j->arch->name, j->log ? j->log : "");
    if (j->status || !j->image || !j->log) return 0;
    for (const char *at = strstr(j->log, mark), *next; at; at = next) {
        next = strstr(at + 1, mark);
        check_kernel(j, at, next ? next : at + strlen(at));
        kernels++;
    }
    CHECK_MSG(kernels > 0, "%s %s: the assembler reports no kernel", j->model, j->program);
    return kernels;
}

/* ---- compiling many ---- */

typedef struct queue {
    const tc__nvrtc *nvrtc;
    pthread_mutex_t lock;
    job *jobs;
    size_t n, next;
    int kernels; /* of programs that are done */
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
        q->kernels += check_job(j);
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

static job *queue_add(queue *q, const char *model, const char *program, const struct arch *arch) {
    q->jobs = realloc(q->jobs, (q->n + 1) * sizeof *q->jobs);
    job *j = &q->jobs[q->n++];
    memset(j, 0, sizeof *j);
    snprintf(j->model, sizeof j->model, "%s", model);
    j->program = program, j->arch = arch;
    return j;
}

/* The programs of a model for one architecture. */
static void queue_add_model(queue *q, const char *name, const tc__weights *weights,
                            const struct arch *arch) {
    static const struct {
        const char *name;
        void (*write)(const tc__weights *, const tc__kinds *, int sm_count, tc__buf *);
    } programs[] = {{"decode", tc__write_decode},
                    {"prefill", tc__write_prefill},
                    {"wide", tc__write_prefill_wide},
                    {"few", tc__write_prefill_few}};
    tc__kinds kinds;
    tc_error err;
    int code = tc__kinds_find(weights, &kinds, &err);
    CHECK_MSG(code == TC_OK, "%s: %s", name, err.message);
    for (size_t i = 0; i < TC_COUNT(programs) && !code; i++) {
        job *j = queue_add(q, name, programs[i].name, arch);
        programs[i].write(weights, &kinds, arch->sm_count, &j->text);
    }
}

static void queue_finish(queue *q) {
    double start = tc_seconds();
    queue_run(q);
    printf("    %zu programs, %d kernels in %.0f s\n", q->n, q->kernels, tc_seconds() - start);
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
        job j = {"probe", "probe", {NULL, 0, 0, false}, &archs[i], 0, NULL, NULL, 0};
        tc__buf_str(&j.text, probe);
        job_compile(&j, &nvrtc);
        CHECK_MSG(j.status == 0 && j.image_bytes > 0, "%s: %s", archs[i].name, j.log ? j.log : "");
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
    for (const model *m = models; m < models + MODELS; m++) {
        tc__model_file file;
        tc__weights weights;
        char name[64];
        int code = model_open(m, &file, &weights, &err);
        CHECK_MSG(code == TC_OK, "%s: %s", m->shape, err.message);
        if (code) continue;
        snprintf(name, sizeof name, "%s %s", m->spec ? m->spec->name : m->shape, m->precision);
        for (const struct arch *arch = archs; arch < archs + ARCHS; arch++)
            if (nvrtc_knows(&nvrtc, arch) && model_wants(m, arch))
                queue_add_model(&q, name, &weights, arch);
        tc__weights_close(&weights);
        tc__model_file_close(&file);
    }
    queue_finish(&q);
    tc__nvrtc_close(&nvrtc);
}

TEST(the_demo_model_compiles) {
    queue q = {0};
    tc__nvrtc nvrtc;
    tc__model_file file;
    tc__weights weights;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    q.nvrtc = &nvrtc;
    int code = tc__model_file_open("models/demo.bin", &file, &err);
    if (!code) code = tc__weights_open(&file, &weights, &err);
    CHECK_MSG(code == TC_OK, "%s", err.message);
    if (!code) {
        for (size_t i = 0; i < ARCHS; i++)
            if (archs[i].number == 86) queue_add_model(&q, "demo", &weights, &archs[i]);
        queue_finish(&q);
        tc__weights_close(&weights);
    }
    tc__model_file_close(&file);
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

/* ---- the cache ---- */

/* A folder for kernel sources and one for the cache, named in the environment. */
typedef struct place {
    char folder[PROGRAM_PATH], cache[PROGRAM_PATH + 8];
} place;

static const tc__jit_target jit_target = {80, false, false, 99000, 163 << 10};
static const char jit_text[] =
    "#include \"prelude.cuh\"\n"
    "extern \"C\" __global__ void f(float *x) { x[0] = warp_sum(x[threadIdx.x]); }\n";

static bool place_open(place *p) {
    if (!program_folder(p->folder)) return false;
    snprintf(p->cache, sizeof p->cache, "%s/cache", p->folder);
    setenv("TINYCHAT_CACHE", p->cache, 1);
    return true;
}

static void place_close(const place *p) {
    unsetenv("TINYCHAT_CACHE");
    unsetenv("TINYCHAT_KERNELS");
    program_remove_folder(p->cache);
    program_remove_folder(p->folder);
}

/* Compiles one program into `image`; `nvrtc` false: in a world without NVRTC. */
static int jit_once(const char *text, const tc__jit_target *target, bool nvrtc, tc__buf *image,
                    bool *cached, tc_error *err) {
    const char *chosen = getenv("TINYCHAT_NVRTC");
    char *kept = chosen ? tc__copy(chosen, strlen(chosen)) : NULL;
    tc__jit_program program;
    memset(&program, 0, sizeof program);
    program.name = "test";
    program.text = text;
    if (!nvrtc) setenv("TINYCHAT_NVRTC", "/nonexistent/libnvrtc.so", 1);
    int code = tc__jit(&program, 1, target, NULL, err);
    if (!nvrtc && kept)
        setenv("TINYCHAT_NVRTC", kept, 1);
    else if (!nvrtc)
        unsetenv("TINYCHAT_NVRTC");
    free(kept);
    *cached = program.cached;
    tc__buf_free(image);
    *image = program.image;
    return code;
}

/* The only file in a folder. False unless there is exactly one. */
static bool only_file(const char *folder, char path[3 * PROGRAM_PATH]) {
    DIR *dir = opendir(folder);
    struct dirent *entry;
    int files = 0;
    while (dir && (entry = readdir(dir)) != NULL)
        if (entry->d_name[0] != '.' || strlen(entry->d_name) > 2) {
            snprintf(path, 3 * PROGRAM_PATH, "%s/%s", folder, entry->d_name);
            files++;
        }
    if (dir) closedir(dir);
    return files == 1;
}

static void write_file(const char *path, const void *bytes, size_t len) {
    FILE *file = fopen(path, "wb");
    CHECK(file && fwrite(bytes, 1, len, file) == len);
    if (file) CHECK(fclose(file) == 0);
}

static bool need_nvrtc(tc_error *err) {
    tc__nvrtc nvrtc;
    int code = tc__nvrtc_open(&nvrtc, 0, err);
    if (!code) tc__nvrtc_close(&nvrtc);
    return code == TC_OK;
}

TEST(a_hit_needs_no_nvrtc) {
    tc__jit_target other = jit_target;
    tc__buf first = {0}, again = {0};
    bool cached;
    tc_error err;
    place p;
    char other_text[sizeof jit_text + 8];
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    CHECK_MSG(jit_once(jit_text, &jit_target, true, &first, &cached, &err) == TC_OK, "%s",
              err.message);
    CHECK(!cached && first.len > 500 && !memcmp(first.data, "\177ELF", 4));
    CHECK_MSG(jit_once(jit_text, &jit_target, false, &again, &cached, &err) == TC_OK, "%s",
              err.message);
    CHECK(cached && again.len == first.len && !memcmp(again.data, first.data, first.len));

    /* whatever the image depends on is part of the key */
    snprintf(other_text, sizeof other_text, "%s//\n", jit_text);
    CHECK(jit_once(other_text, &jit_target, false, &again, &cached, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "TINYCHAT_NVRTC"), "%s", err.message);
    other.arch = 86;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    other = jit_target, other.driver++;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    other = jit_target, other.shared_limit--;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    other = jit_target, other.as_ptx = true;
    CHECK(jit_once(jit_text, &other, false, &again, &cached, &err) == TC_ERR_DEVICE);
    CHECK(jit_once(jit_text, &other, true, &again, &cached, &err) == TC_OK && !cached);
    CHECK(again.data && strstr(again.data, ".target sm_80"));
    tc__buf_free(&first);
    tc__buf_free(&again);
    place_close(&p);
}

/* What only sm_90a has is there where it is asked for, in an image of its own. */
TEST(the_target_of_one_architecture_is_apart) {
    static const char text[] = "extern \"C\" __global__ void f(int *x) {\n"
                               "#ifdef __CUDA_ARCH_FEAT_SM90_ALL\n"
                               "    asm volatile(\"wgmma.fence.sync.aligned;\");\n"
                               "#endif\n"
                               "}\n";
    tc__jit_target target = {90, false, false, 99000, 227 << 10};
    tc__buf plain = {0}, specific = {0};
    bool cached;
    place p;
    tc__nvrtc nvrtc;
    tc_error err;
    if (tc__nvrtc_open(&nvrtc, 0, &err)) SKIP("%s (needs NVRTC)", err.message);
    int major = nvrtc.major;
    tc__nvrtc_close(&nvrtc);
    if (major < 12) SKIP("NVRTC %d does not know sm_90a", major);
    REQUIRE(place_open(&p));
    CHECK(jit_once(text, &target, true, &plain, &cached, &err) == TC_OK && !cached);
    target.specific = true;
    CHECK_MSG(jit_once(text, &target, true, &specific, &cached, &err) == TC_OK, "%s", err.message);
    CHECK(!cached);
    CHECK(plain.len && specific.len &&
          (plain.len != specific.len || memcmp(plain.data, specific.data, plain.len)));
    tc__buf_free(&plain);
    tc__buf_free(&specific);
    place_close(&p);
}

/* What came out of tc__jit_import is what went into tc__jit_export, or a reason is given. */
static void check_import(const char *path, const char *text, const tc__jit_target *target,
                         int expected, const char *words, const tc__buf *image) {
    tc__jit_program program;
    tc_error err = {0, ""};
    memset(&program, 0, sizeof program);
    program.name = "test", program.text = text;
    int code = tc__jit_import(path, "another world", &program, 1, target, &err);
    CHECK_MSG(code == expected, "%d: %s", code, err.message);
    CHECK_MSG(!code || strstr(err.message, words), "%s", err.message);
    CHECK(
        code || !image ||
        (program.image.len == image->len && !memcmp(program.image.data, image->data, image->len)));
    tc__buf_free(&program.image);
}

TEST(kernels_can_be_carried_to_another_machine) {
    static const char other_text[] = "extern \"C\" __global__ void g() {}\n";
    tc__jit_target target = jit_target, other = jit_target;
    tc__jit_program programs[2];
    char path[2 * PROGRAM_PATH];
    tc__buf bytes = {0};
    tc__map map;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    memset(programs, 0, sizeof programs);
    programs[0].name = programs[1].name = "test";
    programs[0].text = jit_text, programs[1].text = other_text;
    REQUIRE(tc__jit(programs, 2, &target, NULL, &err) == TC_OK);
    snprintf(path, sizeof path, "%s/kernels", p.folder);
    CHECK(tc__jit_export(path, "this world", programs, 2, &target, &err) == TC_OK);
    unsetenv("TINYCHAT_CACHE");
    setenv("TINYCHAT_NVRTC", "/nonexistent/libnvrtc.so", 1);
    target.driver = 12080; /* another driver may take them */
    check_import(path, jit_text, &target, TC_OK, "", &programs[0].image);
    check_import(path, other_text, &target, TC_OK, "", &programs[1].image);
    other.arch = 86;
    check_import(path, jit_text, &other, TC_ERR_UNSUPPORTED,
                 "kernels for this world; needed are those for another world", NULL);
    check_import(path, "\n", &target, TC_ERR_UNSUPPORTED, "export them anew", NULL);
    REQUIRE(tc__map_open(path, &map, &err) == TC_OK);
    tc__buf_add(&bytes, map.data, map.size);
    tc__map_close(&map);
    for (size_t at = 0; at < bytes.len; at += at < 600 ? 1 : 401) { /* a byte is wrong */
        bytes.data[at] ^= 4;
        write_file(path, bytes.data, bytes.len);
        bool text = at >= 8 && at < 248; /* for people: any text will do */
        if (!text) check_import(path, jit_text, &target, TC_ERR_FORMAT, path, NULL);
        bytes.data[at] ^= 4;
    }
    for (size_t len = 0; len < bytes.len; len += len < 600 ? 7 : 401) { /* the end is missing */
        write_file(path, bytes.data, len);
        check_import(path, jit_text, &target, TC_ERR_FORMAT, path, NULL);
    }
    check_import("/nonexistent/kernels", jit_text, &target, TC_ERR_IO, "/nonexistent", NULL);
    unsetenv("TINYCHAT_NVRTC");
    for (int i = 0; i < 2; i++) tc__buf_free(&programs[i].image);
    tc__buf_free(&bytes);
    place_close(&p);
}

TEST(damaged_cache_files_are_compiled_anew) {
    tc__buf good = {0}, image = {0};
    char path[3 * PROGRAM_PATH] = "";
    bool cached;
    tc__map map;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    CHECK(jit_once(jit_text, &jit_target, true, &good, &cached, &err) == TC_OK);
    REQUIRE(only_file(p.cache, path));
    REQUIRE(tc__map_open(path, &map, &err) == TC_OK);
    size_t n = map.size;
    uint8_t *entry = malloc(n + 1);
    memcpy(entry, map.data, n);
    entry[n] = 0;
    tc__map_close(&map);

    /* not trusted: without NVRTC every one of these is an error */
    for (size_t at = 0; at < n; at += at < 64 ? 1 : n / 50) {
        entry[at] ^= 0x10;
        write_file(path, entry, n);
        entry[at] ^= 0x10;
        if (at >= 36 && at < 40) continue; /* NVRTC's version: for people */
        CHECK_MSG(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE,
                  "byte %zu of %zu may be wrong", at, n);
    }
    for (size_t length = 0; length <= n + 1; length += length < 64 ? 7 : n / 20) {
        if (length == n) continue;
        write_file(path, entry, length);
        CHECK_MSG(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE,
                  "%zu of %zu bytes are enough", length, n);
    }
    write_file(path, entry, n + 1);
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE);

    /* compiled anew, and the file is whole again */
    CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK && !cached);
    CHECK(image.len == good.len && !memcmp(image.data, good.data, good.len));
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_OK && cached);

    /* an intact entry under another's name */
    CHECK(unlink(path) == 0);
    CHECK(jit_once(probe, &jit_target, true, &image, &cached, &err) == TC_OK && !cached);
    CHECK(only_file(p.cache, path));
    write_file(path, entry, n);
    CHECK(jit_once(probe, &jit_target, false, &image, &cached, &err) == TC_ERR_DEVICE);
    free(entry);
    tc__buf_free(&good);
    tc__buf_free(&image);
    place_close(&p);
}

TEST(a_cache_that_cannot_be_written_costs_only_time) {
    char path[3 * PROGRAM_PATH];
    tc__buf image = {0};
    bool cached;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    snprintf(path, sizeof path, "%s/file", p.folder);
    write_file(path, "", 0);
    snprintf(path, sizeof path, "%s/file/below", p.folder); /* no folder can be made there */
    const char *const folders[] = {path, "/proc/tinychat", "/dev/null"};
    for (size_t i = 0; i < TC_COUNT(folders); i++) {
        setenv("TINYCHAT_CACHE", folders[i], 1);
        CHECK_MSG(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK, "%s: %s",
                  folders[i], err.message);
        CHECK(!cached && image.len > 500);
    }
    setenv("TINYCHAT_CACHE", p.cache, 1);
    CHECK(mkdir(p.cache, 0700) == 0);
    if (geteuid() != 0) { /* root may write anywhere */
        CHECK(chmod(p.cache, 0500) == 0);
        CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK && !cached);
        CHECK(chmod(p.cache, 0700) == 0);
    }
    CHECK(!only_file(p.cache, path)); /* nothing is left behind */
    tc__buf_free(&image);
    place_close(&p);
}

/* The folders by which the cache is found, in this order; none at all is no error. */
TEST(the_cache_is_where_it_is_expected) {
    static const char *const names[] = {"TINYCHAT_CACHE", "XDG_CACHE_HOME", "HOME"};
    static const char *const values[] = {"/a/own", "/a/xdg", "/a/home"};
    static const char *const want[] = {"/a/own", "/a/xdg/tinychat", "/a/home/.cache/tinychat", ""};
    char *kept[3], path[256];
    for (int i = 0; i < 3; i++) {
        const char *value = getenv(names[i]);
        kept[i] = value ? tc__copy(value, strlen(value)) : NULL;
        setenv(names[i], values[i], 1);
    }
    for (int i = 0; i <= 3; i++) {
        tc__jit_folder(path, sizeof path);
        CHECK_MSG(!strcmp(path, want[i]), "%s, not %s", path, want[i]);
        if (i < 3) setenv(names[i], "", 1); /* empty is as good as not set */
    }
    for (int i = 0; i < 3; i++) {
        unsetenv(names[i]);
        if (kept[i]) setenv(names[i], kept[i], 1);
        free(kept[i]);
    }
}

TEST(processes_may_start_at_once) {
    char path[3 * PROGRAM_PATH];
    tc__buf image = {0};
    bool cached;
    tc_error err;
    place p;
    pid_t children[4];
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    fflush(NULL);
    for (size_t i = 0; i < TC_COUNT(children); i++) {
        children[i] = fork();
        if (children[i] == 0) {
            int code = jit_once(jit_text, &jit_target, true, &image, &cached, &err);
            if (code) fprintf(stderr, "%s\n", err.message);
            _exit(code || image.len < 500);
        }
    }
    for (size_t i = 0; i < TC_COUNT(children); i++) {
        int status = -1;
        CHECK(waitpid(children[i], &status, 0) == children[i] && status == 0);
    }
    CHECK(only_file(p.cache, path));
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_OK && cached);
    tc__buf_free(&image);
    place_close(&p);
}

/* ---- messages ---- */

/* Copies the kernel sources into the folder; line `broken` of the prelude becomes nonsense. */
static void copy_sources(const char *folder, int broken) {
    const char *name, *text;
    char path[2 * PROGRAM_PATH];
    for (int i = 0; (text = tc_kernel_source(i, &name)) != NULL; i++) {
        tc__buf copy = {0};
        int line = 1;
        for (; *text; text++) {
            if (i == 0 && line == broken) {
                tc__buf_str(&copy, "this is no code;\n");
                text = strchr(text, '\n');
            } else {
                tc__buf_add(&copy, text, 1);
            }
            line += *text == '\n';
        }
        snprintf(path, sizeof path, "%s/%s", folder, name);
        write_file(path, copy.data, copy.len);
        tc__buf_free(&copy);
    }
}

TEST(a_mistake_in_the_source_is_named) {
    char path[2 * PROGRAM_PATH];
    tc__buf image = {0};
    bool cached;
    tc_error err;
    place p;
    if (!need_nvrtc(&err)) SKIP("%s (needs NVRTC)", err.message);
    REQUIRE(place_open(&p));
    setenv("TINYCHAT_KERNELS", p.folder, 1);
    copy_sources(p.folder, 0);
    CHECK_MSG(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_OK, "%s",
              err.message);
    /* the files' text is part of the key, wherever it comes from */
    unsetenv("TINYCHAT_KERNELS");
    CHECK(jit_once(jit_text, &jit_target, false, &image, &cached, &err) == TC_OK && cached);
    setenv("TINYCHAT_KERNELS", p.folder, 1);
    copy_sources(p.folder, 12);
    CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "prelude.cuh(12): error"), "%s", err.message);
    CHECK_MSG(strstr(err.message, "sm_80"), "%s", err.message);
    CHECK_MSG(!strchr(err.message, '\n'), "more than one line: %s", err.message);
    /* the instances' own text has the program's name */
    unsetenv("TINYCHAT_KERNELS");
    CHECK(jit_once("\nnonsense;\n", &jit_target, true, &image, &cached, &err) == TC_ERR_DEVICE);
    CHECK_MSG(strstr(err.message, "test.cu(2): error"), "%s", err.message);
    /* a file that is missing */
    setenv("TINYCHAT_KERNELS", p.folder, 1);
    snprintf(path, sizeof path, "%s/rows.cuh", p.folder);
    CHECK(unlink(path) == 0);
    CHECK(jit_once(jit_text, &jit_target, true, &image, &cached, &err) == TC_ERR_IO);
    CHECK_MSG(strstr(err.message, "rows.cuh"), "%s", err.message);
    tc__buf_free(&image);
    place_close(&p);
}

TEST_MAIN(RUN(programs_are_cut_at_kernels) RUN(kernel_sources_stand_alone)
              RUN(the_probe_calls_every_function_of_the_prelude)
                  RUN(prelude_assembles_for_every_architecture)
                      RUN(models_compile_for_every_architecture) RUN(the_demo_model_compiles)
                          RUN(a_hit_needs_no_nvrtc) RUN(the_target_of_one_architecture_is_apart)
                              RUN(kernels_can_be_carried_to_another_machine)
                                  RUN(damaged_cache_files_are_compiled_anew)
                                      RUN(a_cache_that_cannot_be_written_costs_only_time)
                                          RUN(the_cache_is_where_it_is_expected)
                                              RUN(processes_may_start_at_once)
                                                  RUN(a_mistake_in_the_source_is_named))
