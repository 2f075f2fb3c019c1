#include "gpu_driver.h"
#include "gpu_programs.h"
#include "jit.h"
#include "shapes.h"
#include "threads.h"

#include "backend.h"

#include <errno.h>
#include <limits.h>
#include <math.h>
#include <unistd.h>

/* The CUDA backend: the model's weights in GPU memory, its kernels compiled for this GPU and these
 * shapes, a token as one CUDA graph. */

#define CUDA_STAGING (4u << 20) /* bytes of one pinned staging buffer */
#define CUDA_STAGES 8           /* staging buffers */
#define CUDA_QUEUED 2           /* that are on their way to the GPU behind the first, at most */
#define CUDA_LOADERS 16         /* threads that load, at most: what the bus asks for */
#define CUDA_PIECE 256          /* prefill goes by multiples of the widest tile's tokens */
#define CUDA_EXPANDING 48       /* see cuda_work */
#define CUDA_OVERLAP_FROM 12030 /* the driver's version that knows dependent launches in graphs */
#define CUDA_PRECISE 256        /* tokens whose queries and keys are computed in two limbs */
#define CUDA_NO_TOKEN INT_MIN   /* host_token while the choice is not made */
#define CUDA_EACH 8             /* positions whose logits are computed at once, at most */
#define CUDA_SHORT 8            /* tokens of a prompt that goes the way of decode, at most */
#define CUDA_FEW_KEYS 256       /* up to these, each of a few tokens has blocks of attention */
#define CUDA_RINGS 104448       /* bytes: about what the rings of a product of decode hold */
#define CUDA_AHEAD 34816        /* that a block brings into L2, at most; a part of its share, */
#define CUDA_AHEAD_FROM 122880  /* from here on if that is long enough (docs/gpu-log.md) */
#define CUDA_FIRST (24 << 20)   /* bytes of weights that come into L2 while a token is chosen */
#define CUDA_SPLIT_KEYS 256     /* that a part of a prefill's keys has at least */

enum { CUDA_DECODE, CUDA_PREFILL, CUDA_WIDE, CUDA_FEW, CUDA_PROGRAMS };
#define CUDA_MODULES 16  /* parts of all programs, at most */
enum { CUDA_SIZES = 4 }; /* of the tiles of a prefill's products: 16, 64, 128 and 256 tokens */

typedef struct cuda_kernel {
    tc__cu_function function;
    int grid, threads, shared;
    int tokens;  /* vectors that one launch takes, or one tile of a prefill's product */
    int cluster; /* blocks that start together, or share row blocks; 0 and 1: any alone */
    int walks;   /* blocks go from tile to tile: no more than fit are started */
} cuda_kernel;

/* The kernels of one kind of matrix (its role, type and group size). */
typedef struct cuda_product {
    cuda_kernel decode, few, prefill[CUDA_SIZES];
} cuda_product;

/* The model's programs, cut into parts: their sources, and the images that come of them. */
typedef struct cuda_programs {
    tc__buf texts[CUDA_MODULES];
    char names[CUDA_MODULES][24];
    tc__jit_program parts[CUDA_MODULES];
    int first[CUDA_PROGRAMS + 1]; /* of each program's parts; the number of all */
} cuda_programs;

typedef struct cuda_device {
    tc__cu cu;
    bool opened; /* cu */
    bool
        integrated; /* the GPU has no memory of its own: the weights lie in memory that it shares */
    tc__cu_device ordinal;
    tc__cu_context context;
    char name[256], details[128], gpu_name[128];
    int sm_count;
    int ahead;  /* bytes of a later matrix that a block of a product brings into L2 */
    int first;  /* bytes of the first ones that come into L2 while a token is chosen */
    int splits; /* parts of the context that decode's attention works on at once */
    tc__jit_target target;
    int few;      /* tokens, up to CUDA_SHORT: products of so many read weights twice at most */
    bool overlap; /* kernels by programmatic dependent launch */
    const tc__weights *weights;
    tc__cu_ptr memory; /* all tensors, in the order of the file */
    size_t memory_bytes;
    tc__cu_ptr positions; /* RoPE's turns or ALiBi's slopes, behind the tensors */
    tc__cu_ptr head_at;   /* the head as its kernels read it */
    tc__cu_module modules[CUDA_MODULES];
    const cuda_programs *programs; /* of the modules; only while kernels are looked up */
    tc__kinds kinds;
    cuda_product products[TC__ROLES][TC__MAX_KINDS];
    cuda_kernel embed, embed_all, head, head_each, attention, attention_few, rope;
    cuda_kernel attention_prefill, attention_parts, sample;
    cuda_kernel rows, settle, widen, quantise_head, read_loop, random_fill;
} cuda_device;

/* Of one draw (src/kernels/sample.cuh). */
typedef struct cuda_sample_settings {
    double u;
    int row, window, top_k;
    float temperature, top_p, min_p, penalty;
    int pad;
} cuda_sample_settings;

typedef struct cuda_cache {
    cuda_device *device;
    int ctx, chunk; /* positions; tokens of one piece of a prefill */
    tc__cu_stream stream;
    /* One token, given or sampled from the logits before it; its logits go to row 0 or to row 1. Of
     * the second kind also what names the choice, whose arguments change, in `sampled`. */
    tc__cu_graph_exec token[2], sampled[2];
    tc__cu_graph graphs[2];
    tc__cu_graph_node choices[2];
    tc__cu_ptr memory;
    size_t memory_bytes;
    /* parts of `memory` */
    tc__cu_ptr kv, ids, state, begun, logits, keys, segments, sample_arrived;
    tc__cu_ptr x[3], qkv, attention, act, parts, arrived;
    /* Prefill: residual; operand of the next product and its scales; the same of the MLP's inner
     * vectors; queries; attention's inputs. */
    tc__cu_ptr wide_x, wide_in, wide_rest, wide_scale, wide_mid, mid_scale, mid_exponents,
        mid_highest;
    tc__cu_ptr wide_q, wide_qkv;
    /* pinned: [CUDA_EACH][vocab]; the choice */
    float *host_logits;
    int *host_token;
    tc__cu_ptr device_token; /* where the GPU sees it */
    int next;           /* the device's State.next */
    bool ahead;         /* the evaluation of the sampled token runs already, into the other row */
    int ahead_pos;
    int32_t ahead_id;
    bool logits_on_host;
    int logits_row; /* of `logits` where the last position asked for lies */
} cuda_cache;

/* ---- arguments of the kernels: the structs of src/kernels ---- */

typedef struct cuda_state {
    int next, pos, token, pad;
} cuda_state;

typedef struct cuda_lines {
    tc__cu_ptr weights;
    int row_blocks, row_bytes, blocks, split, from, most;
} cuda_lines;

typedef struct cuda_product_args {
    tc__cu_ptr weights, in, gamma, beta, extra, out, residual, clear, begun;
    int clears, tokens;
    cuda_lines own, next;
} cuda_product_args;

typedef struct cuda_gemm_args {
    tc__cu_ptr weights, in, rest, scale, out, each, exponents, highest;
    int tokens;
} cuda_gemm_args;

typedef struct cuda_embed_args {
    tc__cu_ptr table, ids, state, out, begun;
    int tokens, pairs;
} cuda_embed_args;

typedef struct cuda_rows_args {
    tc__cu_ptr in, gamma, bias, out, rest, scale;
} cuda_rows_args;

typedef struct cuda_settle_args {
    tc__cu_ptr operand, exponents, highest, scale;
    int tokens;
} cuda_settle_args;

typedef struct cuda_head_args {
    tc__cu_ptr turns, slopes, q_norm, k_norm;
} cuda_head_args;

typedef struct cuda_decode_attention_args {
    tc__cu_ptr qkv, k, v, out, parts, arrived, state;
    cuda_head_args head;
    int ctx;
} cuda_decode_attention_args;

typedef struct cuda_prefill_attention_args {
    tc__cu_ptr qkv, q, k, v, out, vectors, scale, parts, state;
    cuda_head_args head;
    int ctx, tokens, splits;
} cuda_prefill_attention_args;

typedef struct cuda_fill_args {
    tc__cu_ptr data;
    unsigned long long first, count;
    tc__pattern pattern;
} cuda_fill_args;

typedef struct cuda_quantise_args {
    tc__cu_ptr from, to;
    int first;
} cuda_quantise_args;

typedef struct cuda_sample_args {
    tc__cu_ptr logits, keys, segments, arrived, ids, state, host, table, x, begun, weights;
    cuda_sample_settings settings;
    int ctx, pairs, brought, pad;
} cuda_sample_args;

/* ---- the device ---- */

static void cuda_enter(const cuda_device *device) {
    device->cu.context_push(device->context);
}

static void cuda_leave(const cuda_device *device) {
    tc__cu_context previous;
    device->cu.context_pop(&previous);
}

/* The most dynamic shared memory of a block by architecture (CUDA programming guide, table of
 * compute capabilities), for running an older architecture's path on a newer GPU. */
static int cuda_shared_limit(int arch) {
    if (arch == 80 || arch == 87) return 163 << 10;
    if (arch == 86 || arch == 89 || arch >= 120) return 99 << 10;
    return 227 << 10;
}

static int cuda_choose_target(cuda_device *device, tc_error *err) {
    tc__cu *cu = &device->cu;
    int major = 0, minor = 0, limit = 0, l2 = 0;
    cu->device_attribute(&major, TC__CU_ATTRIBUTE_MAJOR, device->ordinal);
    cu->device_attribute(&minor, TC__CU_ATTRIBUTE_MINOR, device->ordinal);
    cu->device_attribute(&limit, TC__CU_ATTRIBUTE_MAX_SHARED, device->ordinal);
    cu->device_attribute(&device->sm_count, TC__CU_ATTRIBUTE_SM_COUNT, device->ordinal);
    cu->device_attribute(&l2, TC__CU_ATTRIBUTE_L2_BYTES, device->ordinal);
    device->first = l2 / 2 < CUDA_FIRST ? l2 / 2 : CUDA_FIRST;
    device->ahead = l2 / 2 / (device->sm_count ? device->sm_count : 1);
    if (device->ahead > CUDA_AHEAD) device->ahead = CUDA_AHEAD;
    cu->driver_version(&device->target.driver);
    const char *forced = getenv("TINYCHAT_INTEGRATED");
    int integrated = forced && strcmp(forced, "1") == 0;
    if (!integrated)
        cu->device_attribute(&integrated, TC__CU_ATTRIBUTE_INTEGRATED, device->ordinal);
    device->integrated = integrated != 0;
    int arch = major * 10 + minor;
    if (arch < 80)
        return tc__fail(err, TC_ERR_DEVICE,
                        "%s has compute capability %d.%d; tinychat needs 8.0 or newer; use "
                        "--device cpu",
                        device->gpu_name, major, minor);
    const char *asked = getenv("TINYCHAT_ARCH");
    if (asked && *asked) {
        int number = 0;
        if (sscanf(asked, "compute_%d", &number) != 1 || number < 80 || number > arch)
            return tc__fail(err, TC_ERR_DEVICE,
                            "TINYCHAT_ARCH is '%s'; expected compute_80 to compute_%d", asked,
                            arch);
        arch = number;
        device->target.as_ptx = true;
        if (cuda_shared_limit(arch) < limit) limit = cuda_shared_limit(arch);
    }
    device->target.arch = arch;
    device->target.specific = arch == 90 && !device->target.as_ptx; /* wgmma: in sm_90a only */
    device->target.shared_limit = limit;
    return TC_OK;
}

/* ---- kernels ---- */

/* The part of a program that instantiates a kernel: its text has "(NAME,". */
static int cuda_part_of(const cuda_programs *all, int program, const char *name) {
    char call[80];
    int part = all->first[program];
    snprintf(call, sizeof call, "(%s,", name);
    while (part + 1 < all->first[program + 1] && !strstr(all->texts[part].data, call)) part++;
    return part;
}

static int cuda_load_kernel(cuda_device *device, int program, const char *name, cuda_kernel *kernel,
                            tc_error *err) {
    tc__cu_module module = device->modules[cuda_part_of(device->programs, program, name)];
    tc__cu *cu = &device->cu;
    char global[80];
    int launch[6] = {0};
    tc__cu_ptr at;
    size_t bytes;
    snprintf(global, sizeof global, "%s_launch", name);
    tc__cu_result result = cu->module_function(&kernel->function, module, name);
    if (!result) result = cu->module_global(&at, &bytes, module, global);
    if (!result && bytes > sizeof launch) bytes = sizeof launch;
    if (!result) result = cu->copy_to_host(launch, at, bytes, NULL);
    if (!result) result = cu->stream_wait(NULL);
    if (!result && launch[2] > 0)
        result = cu->function_set(kernel->function, TC__CU_FUNCTION_MAX_DYNAMIC_SHARED, launch[2]);
    /* the same split of L1 and shared memory for all: an SM must be idle to change it */
    if (!result) result = cu->function_set(kernel->function, TC__CU_FUNCTION_CARVEOUT, 100);
    if (result) return tc__cu_check(cu, result, name, err);
    kernel->grid = launch[0];
    kernel->threads = launch[1];
    kernel->shared = launch[2];
    kernel->tokens = launch[3];
    kernel->cluster = launch[4];
    kernel->walks = launch[5];
    return TC_OK;
}

static int cuda_load_products(cuda_device *device, tc_error *err) {
    char name[64];
    int code = TC_OK;
    device->few = CUDA_SHORT;
    for (int role = 0; role < TC__ROLES && !code; role++)
        for (int i = 0; i < device->kinds.count[role] && !code; i++) {
            cuda_product *product = &device->products[role][i];
            const struct {
                const char *prefix;
                int program;
                cuda_kernel *kernel;
            } kernels[] = {{"", CUDA_DECODE, &product->decode},
                           {"few_", CUDA_DECODE, &product->few},
                           {"t16_", CUDA_FEW, &product->prefill[0]},
                           {"t64_", CUDA_FEW, &product->prefill[1]},
                           {"t128_", CUDA_PREFILL, &product->prefill[2]},
                           {"t256_", CUDA_WIDE, &product->prefill[3]}};
            for (size_t k = 0; k < TC_COUNT(kernels) && !code; k++) {
                snprintf(name, sizeof name, "%s%s_%d", kernels[k].prefix, tc__role_name(role), i);
                code = cuda_load_kernel(device, kernels[k].program, name, kernels[k].kernel, err);
            }
            if (!code && 2 * product->few.tokens < device->few)
                device->few = 2 * product->few.tokens;
        }
    return code;
}

/* Kernels overlap if they wait for each other, which those that an NVRTC older than the GPU made may
 * not do, and the driver knows such launches in graphs. */
static int cuda_load_overlap(cuda_device *device, const tc_model_params *params, tc_error *err) {
    const int driver = device->target.driver;
    char line[160];
    tc__cu *cu = &device->cu;
    int overlap = 0;
    tc__cu_ptr at;
    size_t bytes;
    tc__cu_result result = cu->module_global(&at, &bytes, device->modules[0], "kernels_overlap");
    if (!result) result = cu->copy_to_host(&overlap, at, sizeof overlap, NULL);
    if (!result) result = cu->stream_wait(NULL);
    device->overlap = overlap && driver >= CUDA_OVERLAP_FROM;
    if (overlap && !device->overlap && params->log) {
        snprintf(line, sizeof line,
                 "the driver runs CUDA %d.%d; from 12.3 on kernels overlap, which makes tokens faster",
                 driver / 1000, driver % 1000 / 10);
        params->log(params->user, line);
    }
    return tc__cu_check(cu, result, "kernels_overlap", err);
}

static int cuda_load_kernels(cuda_device *device, const tc_model_params *params, tc_error *err) {
    const struct {
        const char *name;
        int program;
        cuda_kernel *kernel;
    } kernels[] = {
        {"embed", CUDA_DECODE, &device->embed},
        {"head", CUDA_DECODE, &device->head},
        {"head_each", CUDA_DECODE, &device->head_each},
        {"attention", CUDA_DECODE, &device->attention},
        {"attention_few", CUDA_DECODE, &device->attention_few},
        {"sample_token", CUDA_DECODE, &device->sample},
        {"widen", CUDA_DECODE, &device->widen},
        {"read_loop", CUDA_DECODE, &device->read_loop},
        {"random_fill", CUDA_DECODE, &device->random_fill},
        {"embed_all", CUDA_PREFILL, &device->embed_all},
        {"rows_hidden", CUDA_PREFILL, &device->rows},
        {"settle", CUDA_PREFILL, &device->settle},
        {"rope", CUDA_PREFILL, &device->rope},
        {"attention_all", CUDA_PREFILL, &device->attention_prefill},
        {"attention_parts", CUDA_PREFILL, &device->attention_parts},
    };
    int code = cuda_load_overlap(device, params, err);
    if (!code) code = cuda_load_products(device, err);
    for (size_t i = 0; i < TC_COUNT(kernels) && !code; i++)
        code =
            cuda_load_kernel(device, kernels[i].program, kernels[i].name, kernels[i].kernel, err);
    if (!code && device->weights->head_in_8)
        code = cuda_load_kernel(device, CUDA_DECODE, "quantise_head", &device->quantise_head, err);
    /* one block of attention per SM: more would wait for each other's room */
    if (!code) device->splits = device->sm_count / device->attention.grid;
    if (device->splits < 1) device->splits = 1;
    return code;
}

static void cuda_free_programs(cuda_programs *all) {
    for (int i = 0; i < CUDA_MODULES; i++) {
        tc__buf_free(&all->parts[i].image);
        tc__buf_free(&all->texts[i]);
    }
}

/* Parts so many that none takes much longer to compile than the others. */
static int cuda_write_programs(const cuda_device *device, cuda_programs *all, tc_error *err) {
    static const struct {
        const char *name;
        void (*write)(const tc__weights *, const tc__kinds *, int sm_count, tc__buf *);
        int parts;
    } writers[CUDA_PROGRAMS] = {{"decode", tc__write_decode, 5},
                                {"prefill", tc__write_prefill, 3},
                                {"wide", tc__write_prefill_wide, 4},
                                {"few", tc__write_prefill_few, 2}};
    int code = TC_OK, n = 0;
    memset(all, 0, sizeof *all);
    for (int program = 0; program < CUDA_PROGRAMS && !code; program++) {
        tc__buf whole = {NULL, 0, 0, false};
        writers[program].write(device->weights, &device->kinds, device->sm_count, &whole);
        all->first[program] = n;
        for (int i = 0; i < writers[program].parts; i++, n++) {
            tc__buf *text = &all->texts[n];
            tc__cut_program(&whole, (size_t)i, (size_t)writers[program].parts, text);
            snprintf(all->names[n], sizeof all->names[n], "%s-%d", writers[program].name, i + 1);
            all->parts[n].name = all->names[n];
            all->parts[n].text = text->data;
            if (whole.failed || text->failed)
                code = tc__fail_memory(err, "kernel sources", text->len);
        }
        tc__buf_free(&whole);
    }
    all->first[CUDA_PROGRAMS] = n;
    return code;
}

/* Whose kernels these are, for people who carry them to another machine. */
static void cuda_describe_kernels(const cuda_device *device, char *text, size_t size) {
    const tc__arch *arch = &device->weights->arch;
    char precision[48];
    tc__precision_name(device->weights, precision, sizeof precision);
    snprintf(text, size,
             "tinychat %s, %s_%d%s with %d SMs, %s, hidden size %u, MLP %u, %u/%u heads",
             TC_VERSION, device->target.as_ptx ? "compute" : "sm", device->target.arch,
             device->target.specific ? "a" : "", device->sm_count, precision,
             (unsigned)arch->hidden_size, (unsigned)arch->intermediate_size, (unsigned)arch->heads,
             (unsigned)arch->kv_heads);
}

static int cuda_compile(cuda_device *device, const tc_model_params *params, tc_error *err) {
    cuda_programs all;
    char what[240];
    if (params->progress && params->progress(params->user, 0, "preparing kernels"))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled while preparing kernels");
    int code = cuda_write_programs(device, &all, err);
    cuda_describe_kernels(device, what, sizeof what);
    const int n = all.first[CUDA_PROGRAMS];
    if (!code)
        code = params->kernels ? tc__jit_import(params->kernels, what, all.parts, (size_t)n,
                                                &device->target, err)
                               : tc__jit(all.parts, (size_t)n, &device->target, params, err);
    for (int i = 0; i < n && !code; i++)
        code = tc__cu_check(&device->cu,
                            device->cu.module_load(&device->modules[i], all.parts[i].image.data),
                            "loading kernels", err);
    device->programs = &all;
    if (!code) code = cuda_load_kernels(device, params, err);
    device->programs = NULL;
    cuda_free_programs(&all);
    return code;
}

/* Out of the cache, or compiled once more. */
static int cuda_export_kernels(tc__device *handle, const char *path, tc_error *err) {
    const cuda_device *device = (const cuda_device *)handle;
    cuda_programs all;
    char what[240];
    int code = cuda_write_programs(device, &all, err);
    const size_t n = (size_t)all.first[CUDA_PROGRAMS];
    cuda_describe_kernels(device, what, sizeof what);
    if (!code) code = tc__jit(all.parts, n, &device->target, NULL, err);
    if (!code) code = tc__jit_export(path, what, all.parts, n, &device->target, err);
    cuda_free_programs(&all);
    return code;
}

/* ---- launches ---- */

/* Launches with `args` as the kernel's one argument. grid_x 0: the kernel's own. `overlap`: its
 * blocks may start while the kernel before it still works (from sm_90 on). */
static tc__cu_result cuda_launch(cuda_device *device, const cuda_kernel *kernel, int grid_x,
                                 int grid_y, void *args, tc__cu_stream stream, bool overlap) {
    tc__cu_launch_attribute attribute;
    memset(&attribute, 0, sizeof attribute);
    attribute.id = TC__CU_LAUNCH_PROGRAMMATIC;
    attribute.value.value = 1;
    tc__cu_launch_config config;
    memset(&config, 0, sizeof config);
    config.grid_x = (unsigned)(grid_x ? grid_x : kernel->grid);
    config.grid_y = (unsigned)grid_y;
    config.grid_z = 1;
    config.block_x = (unsigned)kernel->threads;
    config.block_y = config.block_z = 1;
    config.shared_bytes = (unsigned)kernel->shared;
    config.stream = stream;
    config.attributes = &attribute;
    config.attribute_count = overlap && device->overlap ? 1 : 0;
    void *arguments[] = {args};
    return device->cu.launch(&config, kernel->function, arguments, NULL);
}

/* ---- loading ---- */

static size_t cuda_kv_bytes(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    const tc__arch *arch = &device->weights->arch;
    return (size_t)arch->layers * 2 * arch->kv_heads * arch->head_dim * 2;
}

static size_t cuda_align(size_t bytes) {
    return (bytes + 255) & ~(size_t)255;
}

/* Where a tensor lies in GPU memory: the file's order and alignment. */
static tc__cu_ptr cuda_tensor(const cuda_device *device, const tc__tensor *tensor) {
    return device->memory + tensor->offset;
}

/* The same of a tensor that may be missing. */
static tc__cu_ptr cuda_vector(const cuda_device *device, const tc__tensor *tensor) {
    return tensor ? cuda_tensor(device, tensor) : 0;
}

/* A team that loads the tensor data in pieces. Workers from 1 on read a part of each piece, as far
 * ahead as there is room; worker 0 passes piece after piece on to the GPU. So nobody waits for the
 * slowest reader of a piece but the copy itself. */
typedef struct cuda_loader {
    cuda_device *device;
    const tc_model_params *params;
    size_t pieces; /* of CUDA_STAGING bytes */
    uint8_t *stages; /* CUDA_STAGES pieces, to be pinned; NULL: they are read to their place */
    bool pinned;
    tc__cu_event copied[CUDA_STAGES];
    tc__team *team;
    int readers, counts; /* that are open: read[0] .. read[CUDA_STAGES - 1], room */
    tc__count read[CUDA_STAGES], room; /* parts read into each stage; pieces that may be read */
    tc__flag short_read, stop;
    int code; /* worker 0's */
    tc_error *err;
} cuda_loader;

static size_t cuda_piece_bytes(const cuda_loader *loader, size_t piece) {
    const size_t left = loader->device->weights->data_bytes - piece * CUDA_STAGING;
    return left < CUDA_STAGING ? left : CUDA_STAGING;
}

static uint8_t *cuda_piece_room(const cuda_loader *loader, size_t piece) {
    if (loader->stages) return loader->stages + piece % CUDA_STAGES * CUDA_STAGING;
    return (uint8_t *)(uintptr_t)loader->device->memory + piece * CUDA_STAGING;
}

/* From a file tensor data is read, not copied out of the mapping: each page of that costs a fault,
 * for which many threads wait for each other. False: the file ends too early. */
static bool cuda_read(const tc__weights *weights, size_t at, size_t bytes, uint8_t *to) {
    if (!weights->in_file) memcpy(to, weights->data + at, bytes);
    while (weights->in_file && bytes > 0) {
        const ssize_t n = pread(weights->fd, to, bytes, (off_t)(weights->data_at + at));
        if (n == 0 || (n < 0 && errno != EINTR)) return false;
        if (n > 0) at += (size_t)n, to += n, bytes -= (size_t)n;
    }
    return true;
}

static void cuda_read_parts(cuda_loader *loader, int reader) {
    for (size_t piece = 0; piece < loader->pieces; piece++) {
        size_t begin, end;
        tc__count_wait(&loader->room, (unsigned)piece + 1);
        if (tc__flag_get(&loader->stop)) return;
        tc__share(cuda_piece_bytes(loader, piece), reader, loader->readers, &begin, &end);
        if (!cuda_read(loader->device->weights, piece * CUDA_STAGING + begin, end - begin,
                       cuda_piece_room(loader, piece) + begin))
            tc__flag_set(&loader->short_read, true);
        tc__count_add(&loader->read[piece % CUDA_STAGES], 1);
    }
}

static int cuda_pin(cuda_loader *loader) {
    const tc__cu *cu = &loader->device->cu;
    tc__cu_result result = cu->host_register(loader->stages, CUDA_STAGES * CUDA_STAGING, 0);
    loader->pinned = !result;
    for (int i = 0; i < CUDA_STAGES && !result; i++)
        result = cu->event_create(&loader->copied[i], 2 /* no timing */);
    return tc__cu_check(cu, result, "pinning memory of the CPU", loader->err);
}

/* Queues a piece's copy to the GPU; then those before it, but for the last few, are done. */
static int cuda_copy(cuda_loader *loader, size_t piece) {
    const tc__cu *cu = &loader->device->cu;
    tc__cu_result result = cu->copy_to_device(
        loader->device->memory + piece * CUDA_STAGING, cuda_piece_room(loader, piece),
        cuda_piece_bytes(loader, piece), NULL);
    if (!result) result = cu->event_record(loader->copied[piece % CUDA_STAGES], NULL);
    if (!result && piece >= CUDA_QUEUED)
        result = cu->event_wait(loader->copied[(piece - CUDA_QUEUED) % CUDA_STAGES]);
    return tc__cu_check(cu, result, "copying weights", loader->err);
}

static int cuda_loaded(const tc_model_params *params, size_t at, size_t total, tc_error *err) {
    if (params->progress && params->progress(params->user, (double)at / (double)total, "loading"))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled while loading");
    return TC_OK;
}

/* While memory is pinned the readers fill it already. */
static int cuda_pass_on(cuda_loader *loader) {
    int code = loader->stages ? cuda_pin(loader) : TC_OK;
    for (size_t piece = 0; piece < loader->pieces && !code; piece++) {
        const size_t before = piece / CUDA_STAGES, bytes = cuda_piece_bytes(loader, piece);
        tc__count_wait(&loader->read[piece % CUDA_STAGES],
                       (unsigned)((before + 1) * (size_t)loader->readers));
        if (tc__flag_get(&loader->short_read))
            return tc__fail(loader->err, TC_ERR_IO,
                            "the model file cannot be read to its end: was it changed?");
        if (loader->stages) code = cuda_copy(loader, piece);
        if (!loader->stages || piece >= CUDA_QUEUED) tc__count_add(&loader->room, 1);
        if (!code)
            code = cuda_loaded(loader->params, piece * CUDA_STAGING + bytes,
                               loader->device->weights->data_bytes, loader->err);
    }
    return code;
}

static void cuda_load_worker(void *user, int worker) {
    cuda_loader *loader = user;
    if (worker > 0) {
        cuda_read_parts(loader, worker - 1);
        return;
    }
    loader->code = cuda_pass_on(loader);
    tc__flag_set(&loader->stop, true);
    tc__count_add(&loader->room, (unsigned)loader->pieces); /* nobody waits any longer */
}

static int cuda_loader_open(cuda_loader *loader, cuda_device *device,
                            const tc_model_params *params, tc_error *err) {
    const int processors = tc__processors();
    const int workers = processors > CUDA_LOADERS ? CUDA_LOADERS : processors > 1 ? processors : 2;
    void *stages = NULL;
    memset(loader, 0, sizeof *loader);
    loader->device = device, loader->params = params, loader->err = err;
    loader->readers = workers - 1;
    loader->pieces = (device->weights->data_bytes + CUDA_STAGING - 1) / CUDA_STAGING;
    for (int i = 0; i <= CUDA_STAGES; i++, loader->counts++)
        if (!tc__count_open(i < CUDA_STAGES ? &loader->read[i] : &loader->room, workers))
            return tc__fail(err, TC_ERR_MEMORY, "loading: no memory for a mutex");
    tc__count_add(&loader->room, CUDA_STAGES);
    if (!device->integrated && posix_memalign(&stages, 4096, CUDA_STAGES * CUDA_STAGING))
        return tc__fail_memory(err, "staging buffers", CUDA_STAGES * CUDA_STAGING);
    loader->stages = stages;
    return tc__team_open(workers, &loader->team, err);
}

static void cuda_loader_close(cuda_loader *loader) {
    const tc__cu *cu = &loader->device->cu;
    tc__team_close(loader->team);
    for (int i = 0; i < CUDA_STAGES; i++)
        if (loader->copied[i]) cu->event_destroy(loader->copied[i]);
    for (int i = 0; i < loader->counts; i++)
        tc__count_close(i < CUDA_STAGES ? &loader->read[i] : &loader->room);
    if (loader->pinned) cu->host_unregister(loader->stages);
    free(loader->stages);
}

/* Loads the tensor data that a file, or the caller's memory, holds: through pinned buffers, or where
 * the CPU and the GPU share memory to where the kernels find it. */
static int cuda_load_data(cuda_device *device, const tc_model_params *params, tc_error *err) {
    cuda_loader loader;
    int code = cuda_loaded(params, 0, 1, err);
    if (code) return code;
    code = cuda_loader_open(&loader, device, params, err);
    if (!code) {
        tc__team_run(loader.team, cuda_load_worker, &loader);
        const tc__cu_result last = device->cu.stream_wait(NULL); /* before the buffers go */
        code = loader.code ? loader.code
                           : tc__cu_check(&device->cu, last, "copying weights", err);
    }
    cuda_loader_close(&loader);
    return code;
}

static int cuda_fill(cuda_device *device, const tc__tensor *tensor, tc_error *err) {
    if (!tensor) return TC_OK;
    cuda_fill_args args = {cuda_tensor(device, tensor), tensor->offset / 8, tensor->size / 8,
                           tc__shape_pattern(tensor)};
    return tc__cu_check(&device->cu,
                        cuda_launch(device, &device->random_fill, 0, 1, &args, NULL, false),
                        "making random weights", err);
}

/* Weights that no file holds: random numbers, the same ones that the CPU makes. */
static int cuda_fill_all(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    const tc__tensor *beside[] = {weights->embed, weights->norm, weights->norm_bias,
                                  weights->head == weights->embed ? NULL : weights->head};
    int code = TC_OK;
    for (size_t i = 0; i < TC_COUNT(beside) && !code; i++) code = cuda_fill(device, beside[i], err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++) {
        const tc__layer *layer = &weights->layers[l];
        const tc__tensor *tensors[] = {
            layer->attn_norm, layer->attn_norm_bias, layer->qkv,        layer->qkv_bias,
            layer->q_norm,    layer->k_norm,         layer->o,          layer->mlp_norm,
            layer->gate_up,   layer->mlp_norm_bias,  layer->act_scales, layer->down};
        for (size_t i = 0; i < TC_COUNT(tensors) && !code; i++)
            code = cuda_fill(device, tensors[i], err);
    }
    if (!code)
        code =
            tc__cu_check(&device->cu, device->cu.stream_wait(NULL), "making random weights", err);
    return code;
}

/* bfloat16 tensors become binary16 in place. */
static int cuda_widen(cuda_device *device, const tc__tensor *tensor, tc_error *err) {
    struct {
        tc__cu_ptr data;
        unsigned long long count;
    } args = {cuda_tensor(device, tensor), tensor->rows * tensor->columns};
    if (tensor->type != TC__BF16) return TC_OK;
    return tc__cu_check(
        &device->cu,
        cuda_launch(device, &device->widen, 4 * device->sm_count, 1, &args, NULL, false),
        "converting bfloat16", err);
}

static int cuda_widen_all(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    int code = cuda_widen(device, weights->embed, err);
    if (!code && weights->head != weights->embed) code = cuda_widen(device, weights->head, err);
    for (uint32_t l = 0; l < weights->arch.layers && !code; l++)
        for (int role = 0; role < TC__ROLES && !code; role++)
            code = cuda_widen(device, tc__role_matrix(&weights->layers[l], role), err);
    if (!code) code = tc__cu_check(&device->cu, device->cu.stream_wait(NULL), "converting", err);
    return code;
}

/* The head in 8 bits, where it was or apart. Each launch takes as many row blocks as fit where those
 * before them were. */
static int cuda_quantise_head(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    const size_t blocks = (weights->head->rows + TC__UNIT_ROWS - 1) / TC__UNIT_ROWS;
    const size_t bytes = tc__head_8_bytes(weights) / blocks;
    const size_t before = 2 * TC__UNIT_ROWS * weights->head->columns; /* of a row block, too */
    cuda_quantise_args args = {cuda_tensor(device, weights->head), device->head_at, 0};
    tc__cu_result result = TC_OK;
    for (size_t first = 0, end; first < blocks && !result; first = end) {
        end = first * before / bytes;
        if (end <= first) end = first + 1;
        if (end > blocks) end = blocks;
        args.first = (int)first;
        result = cuda_launch(device, &device->quantise_head, (int)(end - first), 1, &args, NULL,
                             false);
    }
    if (!result) result = device->cu.stream_wait(NULL);
    return tc__cu_check(&device->cu, result, "making 8 bits of the head", err);
}

/* Bytes of what attention knows of positions. */
static size_t cuda_position_bytes(const tc__arch *arch) {
    return arch->position == TC__POSITION_ALIBI ? 4 * (size_t)arch->heads
                                                : 8 * (size_t)(arch->head_dim / 2);
}

/* ALiBi's slopes, or for every pair of a head the turns per position: whole turns do not matter, so
 * the fraction is kept, times 2^64. */
static int cuda_load_positions(cuda_device *device, tc_error *err) {
    const tc__arch *arch = &device->weights->arch;
    const void *from = arch->slopes;
    uint64_t turns[128]; /* head_dim is at most 256 on the GPU */
    if (arch->position != TC__POSITION_ALIBI) {
        for (size_t i = 0; i < arch->head_dim / 2; i++) {
            double turn = arch->frequencies[i] * 0.15915494309189535; /* 1 / (2 pi) */
            turns[i] = (uint64_t)ldexp(turn - floor(turn), 64);
        }
        from = turns;
    }
    tc__cu_result result =
        device->cu.copy_to_device(device->positions, from, cuda_position_bytes(arch), NULL);
    return tc__cu_check(&device->cu, result, "copying RoPE's frequencies or ALiBi's slopes", err);
}

/* Memory that a new allocation could take. Where the GPU uses the system's, the driver leaves out
 * what the system would give back: the files it has cached, the model's own first of all. */
static size_t cuda_room(const cuda_device *device) {
    size_t free_bytes = 0, total = 0;
    device->cu.memory_info(&free_bytes, &total);
    if (!device->integrated) return free_bytes;
    const size_t available = tc__available_memory(), most = available < total ? available : total;
    return free_bytes > most ? free_bytes : most;
}

static int cuda_fail_weights(const cuda_device *device, tc_error *err) {
    const double kv = (double)cuda_kv_bytes((const tc__device *)device);
    return tc__fail(err, TC_ERR_MEMORY,
                    "out of GPU memory: the weights alone need %.2f GiB (and 1024 positions of KV "
                    "cache %.2f GiB); %s has %.2f GiB free: no --max-seq-len fits",
                    (double)device->memory_bytes / 0x1p30, 1024 * kv / 0x1p30, device->gpu_name,
                    (double)cuda_room(device) / 0x1p30);
}

/* Memory for all tensors, and behind them for positions and for an 8-bit head whose numbers the
 * embedding keeps. Integrated: for the CPU alone so far. */
static int cuda_allocate(cuda_device *device, tc_error *err) {
    const tc__weights *weights = device->weights;
    const tc__arch *arch = &weights->arch;
    /* kernels read whole 16-row blocks: the last matrix may be read up to 15 rows past its end */
    const size_t slack = 32 * ((size_t)arch->hidden_size + arch->intermediate_size);
    const size_t tensors = cuda_align(weights->data_bytes + slack);
    const size_t positions = cuda_align(cuda_position_bytes(arch));
    const size_t apart = weights->head_apart_bytes;
    device->memory_bytes = tensors + positions + apart;
    const tc__cu *cu = &device->cu;
    const tc__cu_result result =
        device->integrated
            ? cu->allocate_managed(&device->memory, device->memory_bytes, TC__CU_ATTACH_HOST)
            : cu->allocate(&device->memory, device->memory_bytes);
    device->positions = device->memory + tensors;
    const size_t from_first = device->memory_bytes - weights->layers[0].qkv->offset;
    if ((size_t)device->first > from_first) device->first = (int)from_first;
    device->head_at = apart ? device->positions + positions : cuda_tensor(device, weights->head);
    if (result == TC__CU_OUT_OF_MEMORY) return cuda_fail_weights(device, err);
    return tc__cu_check(cu, result, "allocating memory for the weights", err);
}

static int cuda_load(cuda_device *device, const tc_model_params *params, tc_error *err) {
    const bool random = !device->weights->data;
    int code = cuda_allocate(device, err);
    if (!code && !random) code = cuda_load_data(device, params, err);
    if (!code && device->integrated) /* from here on the GPU's */
        code = tc__cu_check(&device->cu,
                            device->cu.stream_attach(NULL, device->memory, 0, TC__CU_ATTACH_GLOBAL),
                            "sharing memory", err);
    if (!code) code = cuda_load_positions(device, err);
    if (!code) code = random ? cuda_fill_all(device, err) : cuda_widen_all(device, err);
    return code || !device->weights->head_in_8 ? code : cuda_quantise_head(device, err);
}

/* ---- opening ---- */

static void cuda_close(tc__device *handle) {
    cuda_device *device = (cuda_device *)handle;
    if (!device) return;
    tc__cu *cu = &device->cu;
    if (device->context) {
        cuda_enter(device);
        for (int i = 0; i < CUDA_MODULES; i++)
            if (device->modules[i]) cu->module_unload(device->modules[i]);
        if (device->memory) cu->release(device->memory);
        cuda_leave(device);
        cu->context_release(device->ordinal);
    }
    if (device->opened) tc__cu_close(cu);
    free(device);
}

/* "cuda" or "cuda:N" to a device. */
static int cuda_choose_device(cuda_device *device, const char *name, tc_error *err) {
    tc__cu *cu = &device->cu;
    int count = 0, index = 0;
    if (name && strncmp(name, "cuda:", 5) == 0) {
        char *end;
        long n = strtol(name + 5, &end, 10);
        if (*end || end == name + 5 || n < 0 || n > 1024)
            return tc__fail(err, TC_ERR_ARGUMENT, "device '%s': expected cuda or cuda:N", name);
        index = (int)n;
    }
    int code = tc__cu_check(cu, cu->device_count(&count), "counting GPUs", err);
    if (code) return code;
    if (index >= count)
        return tc__fail(err, TC_ERR_DEVICE,
                        "there is no GPU %d: the driver shows %d (CUDA_VISIBLE_DEVICES hides GPUs)",
                        index, count);
    tc__cu_result result = cu->device_get(&device->ordinal, index);
    if (!result)
        result = cu->device_name(device->gpu_name, sizeof device->gpu_name, device->ordinal);
    if (!result) code = cuda_choose_target(device, err);
    if (code) return code;
    if (!result) result = cu->context_retain(&device->context, device->ordinal);
    return tc__cu_check(cu, result, "opening the GPU", err);
}

/* What a benchmark's reader wants to know besides the device's name. */
static void cuda_write_details(cuda_device *device) {
    const int version = device->target.driver;
    char line[256] = "", release[32] = "";
    int khz = 0;
    FILE *file = fopen("/proc/driver/nvidia/version", "r");
    if (file && !fgets(line, sizeof line, file)) line[0] = 0;
    if (file) fclose(file);
    for (const char *at = strpbrk(line, "0123456789"); at; at = strpbrk(at, "0123456789")) {
        const size_t length = strspn(at, "0123456789."); /* "NVRM version: ... 580.65.06 ..." */
        if (at[-1] == ' ' && memchr(at, '.', length) && length < sizeof release) {
            snprintf(release, sizeof release, "%.*s ", (int)length, at);
            break;
        }
        at += length;
    }
    device->cu.device_attribute(&khz, TC__CU_ATTRIBUTE_CLOCK_KHZ, device->ordinal);
    snprintf(device->details, sizeof device->details, "driver %s(CUDA %d.%d), up to %d MHz",
             release, version / 1000, version % 1000 / 10, khz / 1000);
}

static int cuda_open(const tc__weights *weights, const tc_model_params *params, tc__device **out,
                     tc_error *err) {
    cuda_device *device = tc__calloc(1, sizeof *device);
    *out = NULL;
    if (!device) return tc__fail_memory(err, "a device", sizeof *device);
    device->weights = weights;
    int code = tc__cu_open(&device->cu, err);
    device->opened = code == TC_OK;
    if (!code) code = cuda_choose_device(device, params->device, err);
    if (!code) {
        cuda_enter(device);
        code = tc__kinds_find(device->weights, &device->kinds, err);
        if (!code) code = cuda_compile(device, params, err);
        if (!code) code = cuda_load(device, params, err);
        cuda_leave(device);
    }
    if (code) {
        cuda_close((tc__device *)device);
        return code;
    }
    snprintf(device->name, sizeof device->name, "%s (%s_%d%s, %d SMs%s)", device->gpu_name,
             device->target.as_ptx ? "compute" : "sm", device->target.arch,
             device->target.specific ? "a" : "", device->sm_count,
             device->integrated ? ", shared memory" : "");
    cuda_write_details(device);
    *out = (tc__device *)device;
    return tc__ok(err);
}

static const char *cuda_details(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    return device->details;
}

static const char *cuda_name(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    return device->name;
}

/* ---- a session's memory ---- */

/* Cuts the next part off. */
static tc__cu_ptr cuda_cut(tc__cu_ptr base, size_t *at, size_t bytes) {
    tc__cu_ptr part = base + *at;
    *at += cuda_align(bytes);
    return part;
}

/* Pairs of products (PAIR_FIRST and PAIR_SECOND of product_decode.cuh): two in a parallel block. */
static int cuda_pairs(const tc__arch *arch) {
    return arch->parallel ? 2 * (int)arch->layers : 0;
}

/* An operand of a prefill's product (src/kernels/rows.cuh): tiles of 128 vectors x 64 columns, and
 * one more, because a stage may end behind the last. */
static size_t cuda_operand_bytes(size_t tokens, size_t columns) {
    return (tokens / 128 * ((columns + 63) / 64) + 1) * (128 * 64 * 2);
}

/* Lays the parts out from `base`, for prefill pieces of `chunk` tokens (a multiple of CUDA_PIECE);
 * returns the bytes. */
static size_t cuda_layout(cuda_cache *cache, const cuda_device *device, tc__cu_ptr base, int ctx,
                          int chunk) {
    const tc__arch *arch = &device->weights->arch;
    size_t at = 0, tokens = (size_t)chunk, hidden = arch->hidden_size;
    size_t heads = (size_t)arch->heads * arch->head_dim;
    size_t qkv = heads + 2 * (size_t)arch->kv_heads * arch->head_dim;
    size_t inner = arch->intermediate_size;
    size_t cluster = device->attention.cluster > 1 ? (size_t)device->attention.cluster : 1;
    size_t tiles = (size_t)device->attention.grid / cluster; /* of up to 8 heads */
    cache->kv = cuda_cut(base, &at, cuda_kv_bytes((const tc__device *)device) * (size_t)ctx);
    cache->ids = cuda_cut(base, &at, sizeof(int) * (size_t)ctx);
    cache->state = cuda_cut(base, &at, sizeof(cuda_state));
    cache->begun = cuda_cut(base, &at, 4 * (size_t)cuda_pairs(arch));
    cache->logits = cuda_cut(base, &at, 4 * CUDA_EACH * (size_t)arch->vocab_size);
    cache->keys = cuda_cut(base, &at, 4 * (size_t)arch->vocab_size);
    cache->segments =
        cuda_cut(base, &at, 16 * (size_t)(device->sample.grid * device->sample.threads / 32));
    cache->sample_arrived = cuda_cut(base, &at, 4);
    for (int i = 0; i < 3; i++) cache->x[i] = cuda_cut(base, &at, 4 * hidden);
    cache->qkv = cuda_cut(base, &at, 4 * qkv);
    cache->attention = cuda_cut(base, &at, 4 * CUDA_SHORT * heads);
    cache->act = cuda_cut(base, &at, 4 * CUDA_SHORT * inner);
    cache->parts =
        cuda_cut(base, &at, 4 * tiles * (size_t)device->splits * 8 * (arch->head_dim + 2));
    cache->arrived = cuda_cut(base, &at, 4 * tiles);
    cache->wide_x = cuda_cut(base, &at, 4 * tokens * hidden);
    cache->wide_in =
        cuda_cut(base, &at, cuda_operand_bytes(tokens, hidden > heads ? hidden : heads));
    cache->wide_rest = cuda_cut(base, &at, cuda_operand_bytes(CUDA_PRECISE, hidden));
    cache->wide_scale = cuda_cut(base, &at, 4 * tokens);
    cache->mid_scale = cuda_cut(base, &at, 4 * tokens);
    cache->mid_highest = cuda_cut(base, &at, 4 * tokens);
    cache->mid_exponents = cuda_cut(base, &at, tokens * (inner / 8));
    cache->wide_q = cuda_cut(base, &at, 2 * tokens * heads);
    size_t mid = at; /* the MLP's inner vectors share their room with attention's inputs */
    cache->wide_mid = cuda_cut(base, &mid, cuda_operand_bytes(tokens, inner));
    if (arch->parallel) at = mid; /* both at once */
    cache->wide_qkv = cuda_cut(base, &at, 4 * tokens * qkv);
    if (mid > at) at = mid;
    return at;
}

/* Prefill pieces: as many tokens, up to 2048, as 192 MiB hold and the context needs. */
static int cuda_chunk(const cuda_device *device, int ctx) {
    cuda_cache cache;
    size_t fixed = cuda_layout(&cache, device, 0, ctx, 0);
    int chunk = 2048;
    while (chunk - CUDA_PIECE >= ctx) chunk -= CUDA_PIECE;
    while (chunk > CUDA_PIECE && cuda_layout(&cache, device, 0, ctx, chunk) - fixed > (size_t)192
                                                                                          << 20)
        chunk -= CUDA_PIECE;
    return chunk;
}

static size_t cuda_workspace(const tc__device *handle, int ctx) {
    const cuda_device *device = (const cuda_device *)handle;
    cuda_cache cache;
    return cuda_layout(&cache, device, 0, ctx, cuda_chunk(device, ctx)) -
           cuda_align(cuda_kv_bytes((const tc__device *)device) * (size_t)ctx);
}

static size_t cuda_free_bytes(const tc__device *handle) {
    const cuda_device *device = (const cuda_device *)handle;
    cuda_enter(device);
    const size_t room = cuda_room(device);
    cuda_leave(device);
    return room;
}

static void cuda_cache_close(tc__cache *handle) {
    cuda_cache *cache = (cuda_cache *)handle;
    if (!cache) return;
    tc__cu *cu = &cache->device->cu;
    cuda_enter(cache->device);
    if (cache->stream) cu->stream_wait(cache->stream);
    for (int row = 0; row < 2; row++) {
        if (cache->token[row]) cu->graph_exec_destroy(cache->token[row]);
        if (cache->sampled[row]) cu->graph_exec_destroy(cache->sampled[row]);
        if (cache->graphs[row]) cu->graph_destroy(cache->graphs[row]);
    }
    if (cache->stream) cu->stream_destroy(cache->stream);
    if (cache->memory) cu->release(cache->memory);
    if (cache->host_logits) cu->host_release(cache->host_logits);
    if (cache->host_token) cu->host_release(cache->host_token);
    cuda_leave(cache->device);
    free(cache);
}

/* ---- decode ---- */

/* Which matrix of a layer comes when; an exchange of two, so also when a matrix comes. */
static int cuda_role_of(const cuda_device *device, int place) {
    const int parallel[TC__ROLES] = {TC__QKV, TC__GATE_UP, TC__O, TC__DOWN};
    return device->weights->arch.parallel ? parallel[place] : place;
}

/* The kernel of a layer's product of one token or a few. */
static const cuda_kernel *cuda_short_kernel(const cuda_device *device, int role,
                                            const tc__tensor *matrix, int tokens) {
    const cuda_product *product =
        &device->products[role][tc__kind_of(&device->kinds, role, matrix)];
    return tokens == 1 ? &product->decode : &product->few;
}

/* What each block may bring into L2 of number `nth` of the layers' matrices in the order of their
 * use: what follows what the rings of its kernel hold by then. Nothing if that is not worth it: too
 * little follows, or no 4-bit matrix does; or several vectors wait for the memory, as in a short
 * prompt where kernels overlap. */
static cuda_lines cuda_lines_of(const cuda_cache *cache, uint32_t nth, int tokens) {
    const cuda_device *device = cache->device;
    const tc__weights *weights = device->weights;
    const uint32_t l = nth / TC__ROLES;
    cuda_lines lines = {0, 0, 0, 0, 1, 0, device->ahead};
    if (l >= weights->arch.layers || (device->overlap && tokens > 1)) return lines;
    const int role = cuda_role_of(device, (int)(nth % TC__ROLES));
    const tc__tensor *matrix = tc__role_matrix(&weights->layers[l], role);
    const cuda_kernel *kernel = cuda_short_kernel(device, role, matrix, tokens);
    if (matrix->type != TC__W4) return lines;
    lines.weights = cuda_tensor(device, matrix);
    lines.row_blocks = (int)(matrix->rows / TC__UNIT_ROWS);
    lines.row_bytes = (int)(matrix->size / (size_t)lines.row_blocks);
    if (kernel->cluster > 1) lines.split = kernel->cluster;
    lines.blocks = kernel->grid / lines.split;
    const int share = (int)(matrix->size / (size_t)lines.blocks);
    const int held = lines.split * (device->overlap ? CUDA_RINGS : CUDA_RINGS / 6);
    const int brought = lines.split * lines.most, from = lines.split * CUDA_AHEAD_FROM;
    lines.from = share - brought < from ? share - brought : from;
    if (lines.from < held) lines.from = held;
    if (share - lines.from < brought / 2) lines.blocks = 0;
    return lines;
}

/* What the product of matrix `nth` brings into L2: at its end a part of the next matrix, or if the
 * rings hold that, of the one after it, and then the next product brings nothing. Where gate_up waits
 * for o beside it in its SM, it brings a part of its own matrix meanwhile, and no other product does:
 * the memory has little else to do then. */
static void cuda_bring(const cuda_cache *cache, uint32_t nth, int tokens, cuda_product_args *args) {
    const cuda_device *device = cache->device;
    const bool waits = device->overlap && !device->weights->arch.parallel;
    const cuda_lines own = cuda_lines_of(cache, nth, tokens);
    uint32_t next = nth + 1;
    if (waits && nth % TC__ROLES == 2) args->own = own;
    if (nth > 0 && !own.blocks) return;
    if (!cuda_lines_of(cache, next, tokens).blocks) next++;
    if (!waits || next % TC__ROLES != 2) args->next = cuda_lines_of(cache, next, tokens);
}

/* A product of the vectors at args.in, up to CUDA_SHORT: as many at once as its kernel takes. */
static tc__cu_result cuda_product_decode(cuda_cache *cache, uint32_t l, int role,
                                         cuda_product_args args, int tokens) {
    cuda_device *device = cache->device;
    const tc__tensor *matrix = tc__role_matrix(&device->weights->layers[l], role);
    const cuda_kernel *kernel = cuda_short_kernel(device, role, matrix, tokens);
    const bool gated = role == TC__GATE_UP && device->weights->arch.gated;
    const size_t width = gated ? matrix->rows / 2 : matrix->rows;
    tc__cu_result result = TC_OK;
    args.weights = cuda_tensor(device, matrix);
    cuda_bring(cache, l * TC__ROLES + (uint32_t)cuda_role_of(device, role), tokens, &args);
    args.begun = cache->begun + 4 * (2 * l + (role == TC__O || role == TC__DOWN)); /* in a pair */
    for (int t = 0; t < tokens && !result; t += kernel->tokens) {
        args.tokens = tokens - t < kernel->tokens ? tokens - t : kernel->tokens;
        result = cuda_launch(device, kernel, 0, 1, &args, cache->stream, true);
        args.in += 4 * (size_t)kernel->tokens * matrix->columns;
        args.out += 4 * (size_t)kernel->tokens * width;
        args.residual += 4 * (size_t)kernel->tokens * width;
    }
    return result;
}

static tc__cu_result cuda_head(cuda_cache *cache, const cuda_kernel *kernel, tc__cu_ptr x,
                               int tokens, int row, bool overlap) {
    const tc__weights *weights = cache->device->weights;
    cuda_product_args args = {.weights = cache->device->head_at,
                              .in = x,
                              .gamma = cuda_tensor(cache->device, weights->norm),
                              .beta = cuda_vector(cache->device, weights->norm_bias),
                              .out = cache->logits + 4 * (size_t)row * weights->arch.vocab_size,
                              .tokens = tokens};
    return cuda_launch(cache->device, kernel, 0, 1, &args, cache->stream, overlap);
}

/* How a layer makes queries and keys of its projections. */
static cuda_head_args cuda_head_of(const cuda_device *device, const tc__layer *layer) {
    bool alibi = device->weights->arch.position == TC__POSITION_ALIBI;
    cuda_head_args head = {alibi ? 0 : device->positions, alibi ? device->positions : 0,
                           cuda_vector(device, layer->q_norm), cuda_vector(device, layer->k_norm)};
    return head;
}

/* The vectors of one token, or of up to CUDA_SHORT. A layer takes x to mid and that to next: of one
 * token, where halves of a product's columns meet in zeros, three places; else all the same. */
typedef struct cuda_vectors {
    tc__cu_ptr x, mid, next, qkv, attention, act;
    int tokens;
    size_t pos; /* of the first; of one token 0: the device knows it */
} cuda_vectors;

static tc__cu_ptr cuda_keys(const cuda_cache *cache, uint32_t l, tc__cu_ptr *values) {
    const size_t layers = cache->device->weights->arch.layers;
    const size_t bytes =
        cuda_kv_bytes((const tc__device *)cache->device) / layers * (size_t)cache->ctx;
    *values = cache->kv + l * bytes + bytes / 2;
    return cache->kv + l * bytes;
}

/* One token, or a few behind few keys. */
static tc__cu_result cuda_attend_few(cuda_cache *cache, uint32_t l, const cuda_vectors *v) {
    cuda_device *device = cache->device;
    const cuda_kernel *one = &device->attention, *few = &device->attention_few;
    cuda_decode_attention_args args = {
        v->qkv,         0,
        0,              v->attention,
        cache->parts,   cache->arrived,
        cache->state,   cuda_head_of(device, &device->weights->layers[l]),
        cache->ctx};
    args.k = cuda_keys(cache, l, &args.v);
    if (v->tokens == 1)
        return cuda_launch(device, one, 0, device->splits, &args, cache->stream, true);
    return cuda_launch(device, few, few->grid * v->tokens, 1, &args, cache->stream, true);
}

/* Into how many parts blocks share a prefill's keys: as many as bring two blocks to every SM, have
 * CUDA_SPLIT_KEYS keys each, and fit where the projections were. */
static int cuda_prefill_splits(const cuda_cache *cache, const tc__layer *layer, int tokens,
                               int tiles, size_t pos) {
    const tc__arch *arch = &cache->device->weights->arch;
    const size_t floats = (size_t)tokens * arch->heads * (arch->head_dim + 2); /* of a part */
    const size_t most = (size_t)cache->chunk * layer->qkv->rows / floats;
    const size_t keys = (pos + (size_t)tokens) / CUDA_SPLIT_KEYS;
    size_t splits = 2 * (size_t)cache->device->sm_count / ((size_t)tiles * arch->heads);
    if (splits > keys) splits = keys;
    if (splits > most) splits = most;
    return splits > 1 ? (int)splits : 1;
}

/* From the projections in wide_qkv, the first at `pos`: results in wide_in, or as `vectors`. */
static tc__cu_result cuda_attend_many(cuda_cache *cache, uint32_t l, int tokens, size_t pos,
                                      tc__cu_ptr vectors) {
    cuda_device *device = cache->device;
    const tc__arch *arch = &device->weights->arch;
    const tc__layer *layer = &device->weights->layers[l];
    const int tile = device->attention_prefill.tokens, tiles = (tokens + tile - 1) / tile;
    cuda_prefill_attention_args args = {
        cache->wide_qkv, cache->wide_q,     0,   0,      cache->wide_in,
        vectors,         cache->wide_scale, cache->wide_qkv, cache->state,
        cuda_head_of(device, layer), cache->ctx, tokens, 1};
    args.k = cuda_keys(cache, l, &args.v);
    args.splits = cuda_prefill_splits(cache, layer, tokens, tiles, pos);
    tc__cu_result result =
        cuda_launch(device, &device->rope, 0, tokens, &args, cache->stream, true);
    if (!result)
        result = cuda_launch(device, &device->attention_prefill, (int)arch->heads * args.splits,
                             tiles, &args, cache->stream, true);
    if (!result && args.splits > 1)
        result = cuda_launch(device, &device->attention_parts, (tokens * (int)arch->heads + 7) / 8,
                             1, &args, cache->stream, true);
    return result;
}

/* A layer of one token or a few. In a parallel block the MLP reads x before attention adds to it;
 * qkv, attention and up overlap, since up needs x alone, as do o and down (PAIR_FIRST and
 * PAIR_SECOND of product_decode.cuh). */
static tc__cu_result cuda_token_layer(cuda_cache *cache, uint32_t l, const cuda_vectors *v) {
    cuda_device *device = cache->device;
    const tc__arch *arch = &device->weights->arch;
    const tc__layer *layer = &device->weights->layers[l];
    const tc__tensor *mlp_norm = layer->mlp_norm ? layer->mlp_norm : layer->attn_norm;
    const tc__tensor *mlp_bias = layer->mlp_norm ? layer->mlp_norm_bias : layer->attn_norm_bias;
    cuda_product_args qkv = {.in = v->x,
                             .gamma = cuda_tensor(device, layer->attn_norm),
                             .beta = cuda_vector(device, layer->attn_norm_bias),
                             .extra = cuda_vector(device, layer->qkv_bias),
                             .out = v->qkv};
    cuda_product_args o = {.in = v->attention, .out = v->mid, .residual = v->x};
    cuda_product_args up = {.in = arch->parallel ? v->x : v->mid,
                            .gamma = cuda_tensor(device, mlp_norm),
                            .beta = cuda_vector(device, mlp_bias),
                            .extra = cuda_vector(device, layer->act_scales),
                            .out = v->act};
    cuda_product_args down = {.in = v->act, .out = v->next, .residual = v->mid};
    if (v->mid != v->x) { /* nobody reads these any more when the product is done */
        qkv.clear = v->mid, up.clear = v->next;
        qkv.clears = up.clears = (int)arch->hidden_size;
    }
    tc__cu_result result = cuda_product_decode(cache, l, TC__QKV, qkv, v->tokens);
    if (!result)
        result = v->pos + (size_t)v->tokens <= CUDA_FEW_KEYS
                     ? cuda_attend_few(cache, l, v)
                     : cuda_attend_many(cache, l, v->tokens, v->pos, v->attention);
    if (!result && arch->parallel)
        result = cuda_product_decode(cache, l, TC__GATE_UP, up, v->tokens);
    if (!result) result = cuda_product_decode(cache, l, TC__O, o, v->tokens);
    if (!result && !arch->parallel)
        result = cuda_product_decode(cache, l, TC__GATE_UP, up, v->tokens);
    return result ? result : cuda_product_decode(cache, l, TC__DOWN, down, v->tokens);
}

/* What chooses a token. `begin`: and does the first step of its evaluation, while weights come into
 * L2. */
static cuda_sample_args cuda_choice(const cuda_cache *cache, const cuda_sample_settings *settings,
                                    bool begin) {
    const cuda_device *device = cache->device;
    const tc__weights *weights = device->weights;
    cuda_sample_args args = {cache->logits,
                             cache->keys,
                             cache->segments,
                             cache->sample_arrived,
                             cache->ids,
                             cache->state,
                             cache->device_token,
                             begin ? cuda_tensor(device, weights->embed) : 0,
                             cache->x[0],
                             cache->begun,
                             cuda_tensor(device, weights->layers[0].qkv),
                             *settings,
                             cache->ctx,
                             cuda_pairs(&weights->arch),
                             begin ? device->first : 0,
                             0};
    return args;
}

static tc__cu_result cuda_choose(const cuda_cache *cache, const cuda_sample_settings *settings,
                                 bool begin) {
    cuda_sample_args args = cuda_choice(cache, settings, begin);
    return cuda_launch(cache->device, &cache->device->sample, 0, 1, &args, cache->stream, false);
}

/* The same with other settings for what was recorded. */
static tc__cu_result cuda_change_choice(cuda_cache *cache, int row,
                                        const cuda_sample_settings *settings) {
    const cuda_kernel *kernel = &cache->device->sample;
    cuda_sample_args args = cuda_choice(cache, settings, true);
    void *arguments[] = {&args};
    const tc__cu_kernel_node node = {kernel->function, (unsigned)kernel->grid, 1, 1,
                                     (unsigned)kernel->threads, 1, 1, (unsigned)kernel->shared,
                                     arguments, NULL};
    return cache->device->cu.graph_exec_set_kernel(cache->sampled[row], cache->choices[row], &node);
}

static cuda_embed_args cuda_embed(const cuda_cache *cache, tc__cu_ptr out, int tokens) {
    const tc__weights *weights = cache->device->weights;
    cuda_embed_args args = {cuda_tensor(cache->device, weights->embed), cache->ids, cache->state,
                            out, cache->begun, tokens, cuda_pairs(&weights->arch)};
    return args;
}

/* The launches of one token, that at ids[state.next] or (`sampled`) one that is chosen first; its
 * logits into a row. */
static tc__cu_result cuda_token(cuda_cache *cache, int row, bool sampled) {
    cuda_device *device = cache->device;
    cuda_embed_args embed = cuda_embed(cache, cache->x[0], 1);
    cuda_vectors v = {0, 0, cache->x[0], cache->qkv, cache->attention, cache->act, 1, 0};
    const cuda_sample_settings none = {0};
    tc__cu_result result =
        sampled ? cuda_choose(cache, &none, true)
                : cuda_launch(device, &device->embed, 1, 1, &embed, cache->stream, false);
    for (uint32_t l = 0; l < device->weights->arch.layers && !result; l++) {
        v.x = v.next, v.mid = cache->x[(2 * l + 1) % 3], v.next = cache->x[(2 * l + 2) % 3];
        result = cuda_token_layer(cache, l, &v);
    }
    return result ? result : cuda_head(cache, &device->head, v.next, 1, row, true);
}

/* Records one token's launches as a graph. */
static int cuda_record(cuda_cache *cache, int row, bool sampled, tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    tc__cu_graph graph = NULL;
    tc__cu_result result = cu->capture_begin(cache->stream, 1 /* thread-local */);
    if (!result) {
        result = cuda_token(cache, row, sampled);
        tc__cu_result end = cu->capture_end(cache->stream, &graph);
        if (!result) result = end;
    }
    tc__cu_graph_exec *exec = sampled ? &cache->sampled[row] : &cache->token[row];
    if (!result) result = cu->graph_instantiate(exec, graph, 0);
    if (!result && sampled) {
        size_t count = 1; /* the choice comes first */
        result = cu->graph_roots(graph, &cache->choices[row], &count);
        cache->graphs[row] = graph;
    } else if (graph) {
        cu->graph_destroy(graph);
    }
    return tc__cu_check(cu, result, "recording a token's kernels", err);
}

static int cuda_cache_open(tc__device *handle, int ctx, tc__cache **out, tc_error *err) {
    cuda_device *device = (cuda_device *)handle;
    tc__cu *cu = &device->cu;
    cuda_cache *cache = tc__calloc(1, sizeof *cache);
    *out = NULL;
    if (!cache) return tc__fail_memory(err, "a session", sizeof *cache);
    cache->device = device;
    cache->ctx = ctx;
    cache->chunk = cuda_chunk(device, ctx);
    cache->memory_bytes = cuda_layout(cache, device, 0, ctx, cache->chunk);
    size_t logits = 4 * CUDA_EACH * (size_t)device->weights->arch.vocab_size;
    cuda_enter(device);
    tc__cu_result result = cu->allocate(&cache->memory, cache->memory_bytes);
    if (!result) cuda_layout(cache, device, cache->memory, ctx, cache->chunk);
    if (!result) result = cu->host_allocate((void **)&cache->host_logits, logits, 0);
    if (!result) result = cu->host_allocate((void **)&cache->host_token, sizeof(int), 0);
    if (!result) result = cu->host_device_pointer(&cache->device_token, cache->host_token, 0);
    if (!result) result = cu->stream_create(&cache->stream, 1 /* does not wait for stream 0 */);
    if (!result) result = cu->fill_bytes(cache->memory, 0, cache->memory_bytes, cache->stream);
    int code = tc__cu_check(cu, result, "allocating the KV cache and workspace", err);
    for (int row = 0; row < 2 && !code; row++) {
        code = cuda_record(cache, row, false, err);
        if (!code) code = cuda_record(cache, row, true, err);
    }
    cuda_leave(device);
    if (code) {
        cuda_cache_close((tc__cache *)cache);
        return code;
    }
    *out = (tc__cache *)cache;
    return tc__ok(err);
}

/* ---- prefill ---- */

/* The time that a product takes, in some unit: what the fullest SM has to do. A block's work grows
 * with its tokens; expanding its weights is as much as some more. */
static double cuda_work(const cuda_device *device, const cuda_kernel *kernel, int tokens) {
    int blocks = kernel->grid * ((tokens + kernel->tokens - 1) / kernel->tokens);
    int of_an_sm = (blocks + device->sm_count - 1) / device->sm_count;
    return (double)of_an_sm * (kernel->tokens + CUDA_EXPANDING) / kernel->grid;
}

static tc__cu_result cuda_gemm(cuda_cache *cache, int role, const tc__tensor *matrix,
                               cuda_gemm_args *args) {
    cuda_device *device = cache->device;
    cuda_product *product = &device->products[role][tc__kind_of(&device->kinds, role, matrix)];
    /* the two smaller sizes of queries, keys and values have two limbs */
    bool precise = args->tokens <= CUDA_PRECISE;
    int first = role == TC__QKV && !precise ? 2 : 0;
    int end = role == TC__QKV && precise ? 2 : CUDA_SIZES;
    const cuda_kernel *kernel = &product->prefill[first];
    for (int i = first + 1; i < end; i++) /* between equals the larger tile reads less */
        if (cuda_work(device, &product->prefill[i], args->tokens) <=
            cuda_work(device, kernel, args->tokens))
            kernel = &product->prefill[i];
    args->weights = cuda_tensor(device, matrix);
    int columns = (args->tokens + kernel->tokens - 1) / kernel->tokens, blocks = kernel->grid;
    if (kernel->walks) {
        int most = device->sm_count / kernel->cluster * kernel->cluster;
        blocks = blocks * columns < most ? blocks * columns : most;
        columns = 1;
    }
    return cuda_launch(device, kernel, blocks, columns, args, cache->stream, true);
}

static tc__cu_result cuda_norm(cuda_cache *cache, const tc__tensor *gamma, const tc__tensor *bias,
                               int tokens) {
    cuda_device *device = cache->device;
    cuda_rows_args args = {cache->wide_x,
                           cuda_tensor(device, gamma),
                           cuda_vector(device, bias),
                           cache->wide_in,
                           tokens <= CUDA_PRECISE ? cache->wide_rest : 0,
                           cache->wide_scale};
    return cuda_launch(device, &device->rows, tokens, 1, &args, cache->stream, true);
}

/* From the normed vectors in wide_in: attention, added to wide_x. `pos`: of the first token. */
static tc__cu_result cuda_prefill_attention(cuda_cache *cache, uint32_t l, int tokens, size_t pos) {
    cuda_device *device = cache->device;
    const tc__layer *layer = &device->weights->layers[l];
    cuda_gemm_args qkv = {
        0, cache->wide_in, cache->wide_rest, cache->wide_scale, cache->wide_qkv, 0, 0, 0, tokens};
    cuda_gemm_args o = {0, cache->wide_in, 0, cache->wide_scale, cache->wide_x, 0, 0, 0, tokens};
    qkv.each = cuda_vector(device, layer->qkv_bias);
    tc__cu_result result = cuda_gemm(cache, TC__QKV, layer->qkv, &qkv);
    if (!result) result = cuda_attend_many(cache, l, tokens, pos, 0);
    return result ? result : cuda_gemm(cache, TC__O, layer->o, &o);
}

/* From the normed vectors in wide_in: the MLP's inner vectors in wide_mid. */
static tc__cu_result cuda_prefill_up(cuda_cache *cache, const tc__layer *layer, int tokens) {
    cuda_device *device = cache->device;
    cuda_gemm_args up = {0,
                         cache->wide_in,
                         0,
                         cache->wide_scale,
                         cache->wide_mid,
                         cuda_vector(device, layer->act_scales),
                         cache->mid_exponents,
                         cache->mid_highest,
                         tokens};
    cuda_settle_args settle = {cache->wide_mid, cache->mid_exponents, cache->mid_highest,
                               cache->mid_scale, tokens};
    tc__cu_result result = cuda_gemm(cache, TC__GATE_UP, layer->gate_up, &up);
    if (result) return result;
    return cuda_launch(device, &device->settle, (tokens + 7) / 8, 1, &settle, cache->stream, true);
}

/* From there: the MLP's result, added to wide_x. */
static tc__cu_result cuda_prefill_down(cuda_cache *cache, const tc__layer *layer, int tokens) {
    cuda_gemm_args down = {0, cache->wide_mid, 0, cache->mid_scale, cache->wide_x, 0, 0, 0, tokens};
    return cuda_gemm(cache, TC__DOWN, layer->down, &down);
}

static tc__cu_result cuda_prefill_layer(cuda_cache *cache, uint32_t l, int tokens, size_t pos) {
    const tc__layer *layer = &cache->device->weights->layers[l];
    const tc__tensor *norm = layer->attn_norm, *norm_bias = layer->attn_norm_bias;
    const tc__tensor *mlp_norm = layer->mlp_norm ? layer->mlp_norm : norm;
    const tc__tensor *mlp_bias = layer->mlp_norm ? layer->mlp_norm_bias : norm_bias;
    tc__cu_result result = TC_OK;
    if (cache->device->weights->arch.parallel) { /* the MLP before wide_x and wide_in change */
        result = cuda_norm(cache, mlp_norm, mlp_bias, tokens);
        if (!result) result = cuda_prefill_up(cache, layer, tokens);
        if (!result && mlp_norm != norm) result = cuda_norm(cache, norm, norm_bias, tokens);
        if (!result) result = cuda_prefill_attention(cache, l, tokens, pos);
    } else {
        result = cuda_norm(cache, norm, norm_bias, tokens);
        if (!result) result = cuda_prefill_attention(cache, l, tokens, pos);
        if (!result) result = cuda_norm(cache, mlp_norm, mlp_bias, tokens);
        if (!result) result = cuda_prefill_up(cache, layer, tokens);
    }
    return result ? result : cuda_prefill_down(cache, layer, tokens);
}

/* All positions' logits of the vectors in wide_x, a few at a time. */
static int cuda_each(cuda_cache *cache, int tokens, size_t pos, tc__logits_fn each, void *user,
                     tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    const tc__arch *arch = &cache->device->weights->arch;
    const int step = cache->device->head_each.tokens;
    for (int t = 0; t < tokens; t += step) {
        int n = tokens - t < step ? tokens - t : step;
        size_t bytes = 4 * (size_t)n * arch->vocab_size;
        tc__cu_result result =
            cuda_head(cache, &cache->device->head_each,
                      cache->wide_x + 4 * (size_t)t * arch->hidden_size, n, 0, false);
        if (!result)
            result = cu->copy_to_host(cache->host_logits, cache->logits, bytes, cache->stream);
        if (!result) result = cu->stream_wait(cache->stream);
        if (result) return tc__cu_check(cu, result, "computing logits", err);
        cache->logits_row = n - 1;
        for (int i = 0; i < n; i++)
            if (each(user, pos + (size_t)(t + i), cache->host_logits + (size_t)i * arch->vocab_size,
                     (int)arch->vocab_size))
                return tc__fail(err, TC_ERR_CANCELLED, "cancelled by the caller");
    }
    return TC_OK;
}

/* Puts ids at pos and tells the device where the evaluation begins. */
static tc__cu_result cuda_place(cuda_cache *cache, const int32_t *ids, size_t n, size_t pos) {
    tc__cu *cu = &cache->device->cu;
    cuda_state state = {(int)pos, (int)pos, 0, 0};
    tc__cu_result result = TC_OK;
    if (cache->next != (int)pos)
        result = cu->copy_to_device(cache->state, &state, sizeof state, cache->stream);
    if (!result) result = cu->copy_to_device(cache->ids + 4 * pos, ids, 4 * n, cache->stream);
    cache->next = (int)pos;
    return result;
}

static int cuda_prefill(cuda_cache *cache, const int32_t *ids, int n, size_t pos, bool last,
                        tc__logits_fn each, void *user, tc_error *err) {
    cuda_device *device = cache->device;
    tc__cu *cu = &device->cu;
    const tc__arch *arch = &device->weights->arch;
    cuda_embed_args embed = cuda_embed(cache, cache->wide_x, n);
    cuda_state begin = {(int)pos, (int)pos, 0, 0}, end = {(int)pos + n, (int)pos, 0, 0};
    tc__cu_result result = cu->copy_to_device(cache->state, &begin, sizeof begin, cache->stream);
    if (!result)
        result = cu->copy_to_device(cache->ids + 4 * pos, ids, 4 * (size_t)n, cache->stream);
    if (!result)
        result = cuda_launch(device, &device->embed_all, n, 1, &embed, cache->stream, false);
    const tc__cu_ptr x = cache->wide_x;
    const cuda_vectors few = {x, x, x, cache->wide_qkv, cache->attention, cache->act, n, pos};
    for (uint32_t l = 0; l < arch->layers && !result; l++)
        result = n <= device->few ? cuda_token_layer(cache, l, &few)
                                  : cuda_prefill_layer(cache, l, n, pos);
    if (!result && each) {
        int code = cuda_each(cache, n, pos, each, user, err);
        if (code) return code;
    } else if (!result && last) {
        result = cuda_head(cache, &device->head,
                           cache->wide_x + 4 * (size_t)(n - 1) * arch->hidden_size, 1, 0, false);
        cache->logits_row = 0;
    }
    if (!result) result = cu->copy_to_device(cache->state, &end, sizeof end, cache->stream);
    cache->next = (int)pos + n;
    return tc__cu_check(cu, result, "prefill", err);
}

/* Where an evaluation ahead puts its logits, so that those it was sampled from stay. */
static int cuda_other_row(const cuda_cache *cache) {
    return cache->logits_row == 0 ? 1 : 0;
}

static int cuda_decode(cuda_cache *cache, int32_t id, size_t pos, tc_error *err) {
    tc__cu *cu = &cache->device->cu;
    if (cache->ahead && cache->ahead_pos == (int)pos && cache->ahead_id == id) {
        cache->ahead = false; /* it runs already */
        cache->logits_row = cuda_other_row(cache);
        return TC_OK;
    }
    cache->logits_row = 0;
    tc__cu_result result = cuda_place(cache, &id, 1, pos);
    if (!result) result = cu->graph_launch(cache->token[0], cache->stream);
    cache->next = (int)pos + 1;
    cache->ahead = false;
    return tc__cu_check(cu, result, "evaluating a token", err);
}

static const float *cuda_logits(tc__cache *handle) {
    cuda_cache *cache = (cuda_cache *)handle;
    tc__cu *cu = &cache->device->cu;
    size_t bytes = 4 * (size_t)cache->device->weights->arch.vocab_size;
    if (cache->logits_on_host) return cache->host_logits;
    cuda_enter(cache->device);
    tc__cu_result result =
        cu->copy_to_host(cache->host_logits, cache->logits + (size_t)cache->logits_row * bytes,
                         bytes, cache->stream);
    if (!result) result = cu->stream_wait(cache->stream);
    cuda_leave(cache->device);
    cache->logits_on_host = !result;
    return result ? NULL : cache->host_logits;
}

/* The logits of one position to the caller of tc_eval_all. */
static int cuda_hand_over(cuda_cache *cache, size_t pos, tc__logits_fn each, void *user,
                          tc_error *err) {
    const float *logits = cuda_logits((tc__cache *)cache);
    if (!logits) return tc__fail(err, TC_ERR_DEVICE, "copying logits from the GPU failed");
    if (each(user, pos, logits, (int)cache->device->weights->arch.vocab_size))
        return tc__fail(err, TC_ERR_CANCELLED, "cancelled by the caller");
    return TC_OK;
}

static int cuda_eval(tc__cache *handle, const int32_t *ids, size_t n, size_t pos,
                     tc__logits_fn each, void *user, const tc__flag *cancel, tc_error *err) {
    cuda_cache *cache = (cuda_cache *)handle;
    int code = TC_OK;
    cuda_enter(cache->device);
    cache->logits_on_host = false;
    if (n == 1) {
        code = cuda_decode(cache, ids[0], pos, err);
        if (!code && each) code = cuda_hand_over(cache, pos, each, user, err);
    } else {
        cache->ahead = false;
        for (size_t at = 0, piece; at < n && !code; at += piece) {
            const size_t left = n - at, most = (size_t)cache->chunk;
            /* no piece of one token: its products would add to x, not to zeros (cuda_vectors) */
            piece = left <= most ? left : left == most + 1 ? most - 1 : most;
            if (tc__flag_get(cancel)) code = tc__fail(err, TC_ERR_CANCELLED, "cancelled");
            if (!code)
                code = cuda_prefill(cache, ids + at, (int)piece, pos + at, at + piece == n, each,
                                    user, err);
            if (!code)
                code = tc__cu_check(&cache->device->cu,
                                    cache->device->cu.stream_wait(cache->stream), "prefill", err);
        }
    }
    cuda_leave(cache->device);
    return code;
}

/* ---- sampling ---- */

/* Waits for the choice, which stands amid a graph: it comes through host memory. */
static tc__cu_result cuda_chosen(const cuda_cache *cache, int *token) {
    volatile const int *chosen = cache->host_token;
    for (unsigned spins = 1;; spins++) {
        *token = *chosen;
        if (*token != CUDA_NO_TOKEN) return TC_OK;
        if (spins % 65536) continue; /* now and then, whether the GPU still works on it */
        tc__cu_result result = cache->device->cu.stream_query(cache->stream);
        *token = *chosen;
        if (result != TC__CU_NOT_READY && (result || *token == CUDA_NO_TOKEN))
            return result ? result : TC__CU_UNKNOWN;
    }
}

/* Queues the choice of the next token and, behind it, that token's evaluation: the GPU goes on
 * while the host looks at the token. An evaluation that nobody asks for is overwritten later. */
static int cuda_sample(tc__cache *handle, const tc_sampling *sampling, const int32_t *context,
                       size_t n_context, double u, int32_t *id, tc_error *err) {
    cuda_cache *cache = (cuda_cache *)handle;
    cuda_device *device = cache->device;
    tc__cu *cu = &device->cu;
    tc__cu_result result = TC_OK;
    int token = CUDA_NO_TOKEN;
    (void)context; /* the device holds the same ids */
    cuda_enter(device);
    if (cache->ahead) { /* a second draw from the same logits: start over behind them */
        cuda_state state = {cache->ahead_pos, cache->ahead_pos, 0, 0};
        result = cu->copy_to_device(cache->state, &state, sizeof state, cache->stream);
        cache->next = cache->ahead_pos;
    }
    const cuda_sample_settings settings = {
        u, cache->logits_row, (int)n_context, sampling->top_k, sampling->temperature,
        sampling->top_p, sampling->min_p, sampling->repeat_penalty, 0};
    *cache->host_token = CUDA_NO_TOKEN;
    bool ahead = cache->next < cache->ctx;
    const int row = cuda_other_row(cache);
    if (!result && ahead) result = cuda_change_choice(cache, row, &settings);
    if (!result && ahead) result = cu->graph_launch(cache->sampled[row], cache->stream);
    if (!result && !ahead) result = cuda_choose(cache, &settings, false);
    if (!result) result = cuda_chosen(cache, &token);
    cuda_leave(device);
    if (result) return tc__cu_check(cu, result, "sampling", err);
    cache->ahead = ahead;
    cache->ahead_pos = cache->next;
    cache->ahead_id = token;
    if (ahead) cache->next++;
    if (token < 0)
        return tc__fail(err, TC_ERR_NUMERIC, "the logit of token %d is not a finite number",
                        -1 - token);
    *id = token;
    return tc__ok(err);
}

/* ---- measuring ---- */

static int cuda_read_bandwidth(tc__device *handle, size_t bytes, double *rate, tc_error *err) {
    cuda_device *device = (cuda_device *)handle;
    tc__cu *cu = &device->cu;
    tc__cu_event start = NULL, end = NULL;
    float best[9];
    struct {
        tc__cu_ptr data, out;
        unsigned long long bytes;
    } args = {device->memory, 0, 0};
    args.bytes = (bytes && bytes < device->memory_bytes ? bytes : device->memory_bytes) & ~15ull;
    cuda_enter(device);
    tc__cu_result result = cu->event_create(&start, 0);
    if (!result) result = cu->event_create(&end, 0);
    for (size_t i = 0; i < TC_COUNT(best) && !result; i++) {
        result = cu->event_record(start, NULL);
        if (!result) result = cuda_launch(device, &device->read_loop, 0, 1, &args, NULL, false);
        if (!result) result = cu->event_record(end, NULL);
        if (!result) result = cu->event_wait(end);
        if (!result) result = cu->event_milliseconds(&best[i], start, end);
    }
    if (start) cu->event_destroy(start);
    if (end) cu->event_destroy(end);
    cuda_leave(device);
    if (result) return tc__cu_check(cu, result, "measuring bandwidth", err);
    for (size_t i = 1; i < TC_COUNT(best); i++)
        for (size_t j = i; j > 0 && best[j] < best[j - 1]; j--) {
            float swap = best[j];
            best[j] = best[j - 1], best[j - 1] = swap;
        }
    *rate = (double)args.bytes / (1e-3 * best[TC_COUNT(best) / 2]);
    return tc__ok(err);
}

const tc__backend *tc__cuda_backend(void) {
    static const tc__backend backend = {
        cuda_open,      cuda_close,      cuda_name,           cuda_details,        cuda_kv_bytes,
        cuda_workspace, cuda_free_bytes, cuda_cache_open,     cuda_cache_close,    cuda_eval,
        cuda_logits,    cuda_sample,     cuda_read_bandwidth, cuda_export_kernels,
    };
    return &backend;
}
