/* architectures - what the kernels of decode use on GPUs of each architecture, and how long a token
 * should take there. Needs NVRTC but no GPU: it compiles what the engine would compile, and asks
 * the compiler.
 *
 *     build/release/bench/architectures [SHAPE [w4a16|w16a16 [GPU]]]
 *
 * SHAPE is a built-in one (llama-2-7b), GPU a name or an architecture of the table below (all of
 * them). Prints Markdown: for each GPU a table of all kernels in the program of decode, then the
 * predictions with their model. GPUs for which it cannot be compiled are left out, and named. Exit
 * status: 1 if there are such or nothing worked, 2 for a wrong argument, 3 without NVRTC.
 */
#include "src/gpu_programs.h"
#include "src/shapes.h"
#include "src/threads.h"
#include "tests/compiled.h"

#include <pthread.h>

/* ---- GPUs ---- */

/* Limits of a multiprocessor (CUDA programming guide, compute capabilities). A block can have all
 * of the shared memory but 1 KB, which the system keeps for itself of every block. Every
 * architecture here has 64 K registers. */
typedef struct architecture {
    const char *name;
    int shared_kb, warps, blocks;
    bool overlap; /* kernels overlap (KERNELS_OVERLAP of src/kernels) */
} architecture;

static const architecture sm_80 = {"sm_80", 164, 64, 32, false},
                          sm_86 = {"sm_86", 100, 48, 16, false},
                          sm_87 = {"sm_87", 164, 48, 16, false},
                          sm_89 = {"sm_89", 100, 48, 24, false},
                          sm_90a = {"sm_90a", 228, 64, 32, true};

/* Multiprocessors and bandwidth: the makers' data sheets. */
typedef struct gpu {
    const char *name;
    const architecture *arch;
    int sm_count;
    double gbs;
} gpu;

static const gpu gpus[] = {
    {"A100 40GB", &sm_80, 108, 1555}, {"RTX 3090", &sm_86, 82, 936},
    {"RTX A6000", &sm_86, 84, 768},   {"Jetson AGX Orin", &sm_87, 16, 204.8},
    {"RTX 4090", &sm_89, 128, 1008},  {"H100 SXM", &sm_90a, 132, 3352},
    {"H200", &sm_90a, 132, 4800},
};
enum { GPUS = TC_COUNT(gpus), RESERVED = 1024, SM_REGISTERS = 64 << 10, MOST_KERNELS = 64 };

/* The first GPU for which the same program is compiled. */
static int gpu_like(int i) {
    int first = 0;
    while (gpus[first].arch != gpus[i].arch || gpus[first].sm_count != gpus[i].sm_count) first++;
    return first;
}

/* ---- the model of the prediction ---- */

/* A token takes as long as it takes to read its weights and its KV cache, and what each of its
 * dependent steps costs beyond that. A step cannot begin before the one before it is done: of a
 * layer each product and the attention, then the head and the choice of the next token. */

/* Of the data sheet's bandwidth: the read loop reaches 91 % on an H100 and 97 % on an H200. */
static const double reached = 0.93;

/* In microseconds. `apart`: attention as a kernel of the H100 that does not overlap, and for
 * products what this and the choice leave of LLaMA-2-7B's 1.66 ms there through compute_80.
 * `overlapping`: attention and the choice as measured on an H100; for products what these leave of
 * LLaMA-2-7B's 1.34 ms there, so that the H100's own time is no prediction. */
typedef struct step_costs {
    double product, attention, choice;
} step_costs;

static const step_costs apart = {2.1, 5.4, 11}, overlapping = {0.4, 2.3, 11};

/* TinyChat's method: the median of 200 tokens behind a context of 4. */
static const double positions = 4 + 200 / 2;

/* README of llm-awq's TinyChat, ms per token. */
static const struct {
    const char *shape, *precision, *gpu;
    double ms;
} published[] = {
    {"llama-2-7b", "w4a16", "RTX A6000", 8.71},
    {"llama-2-7b", "w4a16", "RTX 4090", 6.02},
    {"llama-2-7b", "w4a16", "Jetson AGX Orin", 33.07},
};

typedef struct token_cost {
    int products, attentions, choices; /* dependent steps */
    double gb;                         /* weights and KV cache */
} token_cost;

static token_cost token_cost_of(const tc__weights *weights) {
    const tc__arch *arch = &weights->arch;
    const double numbers = 2.0 * arch->layers * arch->kv_heads * arch->head_dim; /* a position's */
    token_cost cost = {TC__ROLES * (int)arch->layers + 1, (int)arch->layers, 1, 0};
    cost.gb = 1e-9 * ((double)weights->bytes_per_token + positions * 2 * numbers);
    return cost;
}

/* Milliseconds. */
static double reading_time(const token_cost *cost, const gpu *on) {
    return 1e3 * cost->gb / (reached * on->gbs);
}

static double steps_time(const token_cost *cost, const gpu *on) {
    const step_costs *step = on->arch->overlap ? &overlapping : &apart;
    return 1e-3 * (cost->products * step->product + cost->attentions * step->attention +
                   cost->choices * step->choice);
}

/* ---- kernels ---- */

/* Bytes that a block keeps on their way from memory, in words of the program itself, by what makes
 * a kernel. What is not here but has dynamic shared memory may have a ring too: the table shows a
 * "?". */
enum { NOTHING, WEIGHTS, KEYS };
static const struct {
    const char *mark; /* in the line that makes the kernel */
    int what;
    const char *bytes;
} rings[] = {
    {"DECODE_PRODUCT(", WEIGHTS,
     "name##_pick::WARPS * name##_pick::RING * name##_pick::Matrix::UNIT_BYTES"},
    {"EACH_PRODUCT(", WEIGHTS,
     "name##_pick::WARPS * name##_pick::RING * name##_pick::Matrix::UNIT_BYTES"},
    {"attention_decode<", KEYS, "DECODE_RINGS"},
};

typedef struct kernel {
    char name[64];
    int what;                            /* is in its ring */
    int grid, threads, dynamic, vectors; /* NAME_launch */
    int registers, fixed;                /* of a thread; bytes of shared memory */
    int ring;                            /* bytes */
    int fit, resident;                   /* blocks of a multiprocessor */
} kernel;

typedef struct job {
    const gpu *gpu;
    tc__buf text; /* owned, as `out` */
    kernel kernels[MOST_KERNELS];
    int count;
    compiled out;
    char complaint[512]; /* "": none */
} job;

static int at_most(int a, int b) {
    return a < b ? a : b;
}

/* Registers go to warps in steps of 256, from four parts of the multiprocessor; shared memory goes
 * to blocks in steps of 128 bytes. */
static int blocks_that_fit(const kernel *k, const architecture *arch) {
    const int warps = (k->threads + 31) / 32, registers = (32 * k->registers + 255) / 256 * 256;
    const int shared = (k->dynamic + k->fixed + RESERVED + 127) / 128 * 128;
    int fit = at_most(arch->blocks, arch->warps / warps);
    fit = at_most(fit, SM_REGISTERS / 4 / registers * 4 / warps);
    return at_most(fit, (arch->shared_kb << 10) / shared);
}

/* Finds the kernels in the program's lines, and has it export the sizes of their rings. */
static bool job_write(job *j, const tc__weights *weights, const tc__kinds *kinds) {
    for (int i = 0; i < (int)TC_COUNT(rings); i++)
        tc__buf_printf(&j->text, "#define RING_%d(name) %s\n", i, rings[i].bytes);
    tc__write_decode(weights, kinds, j->gpu->sm_count, &j->text);
    if (j->text.failed) return false;
    const size_t end = j->text.len;
    for (size_t at = 0, next; at < end && j->count < MOST_KERNELS; at = next) {
        char line[512];
        kernel *k = &j->kernels[j->count];
        next = at + strcspn(j->text.data + at, "\n") + 1;
        snprintf(line, sizeof line, "%.*s", (int)(next - at), j->text.data + at);
        if (*line < 'A' || *line > 'Z' || !strncmp(line, "LAUNCH", 6)) continue;
        if (sscanf(line, "%*[A-Z_](%63[a-z0-9_],", k->name) != 1) continue;
        for (int i = 0; i < (int)TC_COUNT(rings) && !k->what; i++) {
            if (!strstr(line, rings[i].mark)) continue;
            k->what = rings[i].what;
            tc__buf_printf(&j->text, "extern \"C\" __device__ int %s_ring = RING_%d(%s);\n",
                           k->name, i, k->name);
        }
        j->count++;
    }
    return !j->text.failed;
}

/* The numbers of a kernel of the assembler's report. */
static bool job_take(job *j, const compiled_kernel *from) {
    char symbol[80];
    int launch[4], i = 0;
    while (i < j->count && strcmp(j->kernels[i].name, from->name)) i++;
    if (i == j->count || from->registers <= 0) return false;
    kernel *k = &j->kernels[i];
    snprintf(symbol, sizeof symbol, "%s_launch", k->name);
    if (!compiled_numbers(&j->out, symbol, launch, 4)) return false;
    k->grid = launch[0], k->threads = launch[1], k->dynamic = launch[2], k->vectors = launch[3];
    k->registers = from->registers, k->fixed = from->shared;
    snprintf(symbol, sizeof symbol, "%s_ring", k->name);
    if (k->what && !compiled_numbers(&j->out, symbol, &k->ring, 1)) return false;
    k->fit = blocks_that_fit(k, j->gpu->arch);
    k->resident = k->fit; /* a grid of 0: the engine decides */
    if (k->grid) k->resident = at_most(k->fit, (k->grid + j->gpu->sm_count - 1) / j->gpu->sm_count);
    return true;
}

static void job_run(job *j, const tc__nvrtc *nvrtc) {
    const architecture *arch = j->gpu->arch;
    compiled_kernel from;
    int found = 0;
    j->out =
        compiled_make(nvrtc, j->text.data, arch->name, (arch->shared_kb << 10) - RESERVED, NULL);
    const char *log = j->out.log ? j->out.log : "", *error = strstr(log, "error");
    if (j->out.status) {
        snprintf(j->complaint, sizeof j->complaint, ": NVRTC %d.%d does not compile it: %.300s",
                 nvrtc->major, nvrtc->minor, error ? error : log);
        j->complaint[strcspn(j->complaint, "\n")] = 0;
        return;
    }
    for (const char *at = log; compiled_next(&at, &from) && !*j->complaint; found++)
        if (!job_take(j, &from))
            snprintf(j->complaint, sizeof j->complaint,
                     ": kernel %s is not in the program's lines, or lacks %s_launch", from.name,
                     from.name);
    if (!*j->complaint && found != j->count)
        snprintf(j->complaint, sizeof j->complaint, ": %d kernels in the program, %d in the report",
                 j->count, found);
}

/* ---- all jobs, side by side ---- */

typedef struct queue {
    const tc__nvrtc *nvrtc;
    pthread_mutex_t lock;
    job *jobs; /* [GPUS]; those without a GPU have nothing to do */
    int next;
} queue;

static void *queue_work(void *argument) {
    queue *q = argument;
    for (;;) {
        pthread_mutex_lock(&q->lock);
        job *j = q->next < GPUS ? &q->jobs[q->next++] : NULL;
        pthread_mutex_unlock(&q->lock);
        if (!j) return NULL;
        if (j->gpu && !*j->complaint) job_run(j, q->nvrtc);
    }
}

static void queue_run(queue *q) {
    pthread_t threads[GPUS];
    int n = at_most(tc__processors(), GPUS), running = 0;
    pthread_mutex_init(&q->lock, NULL);
    while (running < n && !pthread_create(&threads[running], NULL, queue_work, q)) running++;
    if (!running) queue_work(q);
    while (running > 0) pthread_join(threads[--running], NULL);
    pthread_mutex_destroy(&q->lock);
}

/* ---- tables ---- */

static void print_kernels(const job *j, const bool wanted[GPUS]) {
    const architecture *arch = j->gpu->arch;
    const char *separator = "\n### ";
    for (int i = 0; i < GPUS; i++)
        if (wanted[i] && &gpus[gpu_like(i)] == j->gpu) {
            printf("%s%s", separator, gpus[i].name);
            separator = ", ";
        }
    printf(" (%s): %d SMs, each with %d KB of shared memory, %d warps and %d blocks\n\n",
           arch->name, j->gpu->sm_count, arch->shared_kb, arch->warps, arch->blocks);
    printf(
        "| kernel | vectors | blocks | threads | registers | shared bytes: static + dynamic "
        "| blocks of an SM: room for | there | occupancy | on their way: of a block | of an SM |\n"
        "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int i = 0; i < j->count; i++) {
        const kernel *k = &j->kernels[i];
        printf("| %s | %d | %d | %d | %d | %d + %d | %d | %d | %.0f %% | ", k->name, k->vectors,
               k->grid, k->threads, k->registers, k->fixed, k->dynamic, k->fit, k->resident,
               100.0 * k->resident * ((k->threads + 31) / 32) / arch->warps);
        if (k->ring)
            printf("%d | %d |\n", k->ring, k->resident * k->ring);
        else
            printf(k->dynamic ? "? | ? |\n" : "- | - |\n");
    }
}

/* Least and most KB on their way to an SM, of kernels for one vector. */
static void print_rings(const job *j, int what) {
    int least = 0, most = 0;
    for (int i = 0; i < j->count; i++) {
        const kernel *k = &j->kernels[i];
        const int bytes = k->resident * k->ring;
        if (k->what != what || k->vectors != 1) continue;
        if (!least || bytes < least) least = bytes;
        if (bytes > most) most = bytes;
    }
    if (!most)
        printf(" - |");
    else if (least == most)
        printf(" %.0f |", most / 1024.0);
    else
        printf(" %.0f to %.0f |", least / 1024.0, most / 1024.0);
}

static void print_costs(const char *how, const step_costs *step) {
    printf("%s: %.1f us for a product, %.1f for attention, %.0f for the choice of a token", how,
           step->product, step->attention, step->choice);
}

static void print_published(const char *shape, const char *precision, const char *on) {
    size_t i = 0;
    while (i < TC_COUNT(published) &&
           (strcmp(published[i].shape, shape) || strcmp(published[i].precision, precision) ||
            strcmp(published[i].gpu, on)))
        i++;
    if (i < TC_COUNT(published))
        printf(" %.2f |\n", published[i].ms);
    else
        printf(" - |\n");
}

static void print_predictions(const job *jobs, const bool wanted[GPUS], const token_cost *cost,
                              const char *shape, const char *precision) {
    printf("\n### ms per token of %s %s, predicted\n\n", shape, precision);
    printf("%.3f GB (weights, and KV cache of %.0f positions) at %.0f %% of the data sheet's "
           "bandwidth, and what %d dependent steps\ncost beyond reading (%d products, %d times "
           "attention, %d choice of a token).\n",
           cost->gb, positions, 100 * reached, cost->products + cost->attentions + cost->choices,
           cost->products, cost->attentions, cost->choices);
    print_costs("Where kernels do not overlap", &apart);
    print_costs(";\nfrom sm_90 on", &overlapping);
    printf(".\nThe H100's time is no prediction: the costs from sm_90 on were taken from it.\n\n");
    printf(
        "| GPU | | GB/s | KB on their way to an SM: weights | keys and values | dependent steps | "
        "reading | steps | predicted | published for TinyChat |\n"
        "|---|---|--:|--:|--:|--:|--:|--:|--:|--:|\n");
    for (int i = 0; i < GPUS; i++) {
        const double reading = reading_time(cost, &gpus[i]), steps = steps_time(cost, &gpus[i]);
        if (!wanted[i] || *jobs[gpu_like(i)].complaint) continue;
        printf("| %s | %s | %g |", gpus[i].name, gpus[i].arch->name, gpus[i].gbs);
        print_rings(&jobs[gpu_like(i)], WEIGHTS);
        print_rings(&jobs[gpu_like(i)], KEYS);
        printf(" %d | %.2f | %.2f | %.2f |", cost->products + cost->attentions + cost->choices,
               reading, steps, reading + steps);
        print_published(shape, precision, gpus[i].name);
    }
}

/* ---- all of it ---- */

static int fail(int status, const char *what, const char *message) {
    fprintf(stderr, "architectures: %s%s\n", what, message);
    return status;
}

/* Compiles the programs of the wanted GPUs. */
static int compile(job jobs[GPUS], const bool wanted[GPUS], const tc__weights *weights,
                   const tc__kinds *kinds, const tc__nvrtc *nvrtc) {
    queue q = {.nvrtc = nvrtc, .jobs = jobs};
    int status = 0;
    for (int i = 0; i < GPUS; i++) {
        job *j = &jobs[gpu_like(i)];
        if (!wanted[i] || j->gpu) continue;
        j->gpu = &gpus[gpu_like(i)];
        if (!job_write(j, weights, kinds))
            snprintf(j->complaint, sizeof j->complaint, ": out of memory");
    }
    queue_run(&q);
    for (int i = 0; i < GPUS; i++)
        if (*jobs[i].complaint) status = fail(1, jobs[i].gpu->name, jobs[i].complaint);
    return status;
}

static int show(const tc__weights *weights, const bool wanted[GPUS], const char *shape,
                const char *precision) {
    static job jobs[GPUS];
    tc__nvrtc nvrtc;
    tc__kinds kinds;
    tc_error err;
    if (tc__kinds_find(weights, &kinds, &err)) return fail(1, "", err.message);
    if (tc__nvrtc_open(&nvrtc, 0, &err)) return fail(3, "", err.message);
    int status = compile(jobs, wanted, weights, &kinds, &nvrtc), done = 0;
    for (int i = 0; i < GPUS; i++) done += jobs[i].gpu && !*jobs[i].complaint;
    if (done) {
        const token_cost cost = token_cost_of(weights);
        printf("The kernels of decode, %s %s, compiled by NVRTC %d.%d. Blocks: of one launch; "
               "attention has more of them behind\nmany keys, until every SM has one.\n",
               shape, precision, nvrtc.major, nvrtc.minor);
        for (int i = 0; i < GPUS; i++)
            if (jobs[i].gpu && !*jobs[i].complaint) print_kernels(&jobs[i], wanted);
        print_predictions(jobs, wanted, &cost, shape, precision);
    }
    for (int i = 0; i < GPUS; i++) {
        tc__buf_free(&jobs[i].text);
        compiled_free(&jobs[i].out);
    }
    tc__nvrtc_close(&nvrtc);
    return status;
}

int main(int argc, char **argv) {
    const char *shape = argc > 1 ? argv[1] : "llama-2-7b";
    const char *precision = argc > 2 ? argv[2] : "w4a16", *only = argc > 3 ? argv[3] : NULL;
    tc_model_params params = tc_model_default_params();
    tc__model_file file;
    tc__weights weights;
    tc_error err;
    bool wanted[GPUS], any = false;
    int status = 1;
    for (int i = 0; i < GPUS; i++) {
        wanted[i] = !only || !strcmp(only, gpus[i].name) || !strcmp(only, gpus[i].arch->name);
        any |= wanted[i];
    }
    if (argc > 4) return fail(2, "", "expected [SHAPE [w4a16|w16a16 [GPU]]]");
    if (!any) return fail(2, "there is no GPU or architecture in its table that is called ", only);
    if (tc__shape_open(shape, precision, 0, false, &params, &file, &err))
        return fail(2, "", err.message);
    if (tc__weights_open(&file, &weights, &err)) {
        fail(status, "", err.message);
    } else {
        status = show(&weights, wanted, shape, precision);
        tc__weights_close(&weights);
    }
    tc__model_file_close(&file);
    return status;
}
