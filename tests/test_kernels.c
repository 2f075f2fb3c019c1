/* The kernels' source compiles for every architecture: NVRTC needs no GPU for that. Looks for NVRTC
 * in TINYCHAT_NVRTC (a file), then under the usual names of the dynamic linker. */
#include "test.h"
#include "tinychat.h"

#include <dlfcn.h>

typedef struct program_ *program;
typedef struct nvrtc {
    int (*version)(int *major, int *minor);
    int (*create)(program *, const char *source, const char *name, int, const char *const *sources,
                  const char *const *names);
    int (*compile)(program, int n_options, const char *const *options);
    int (*log_size)(program, size_t *);
    int (*log)(program, char *);
    int (*cubin_size)(program, size_t *);
    int (*destroy)(program *);
    int (*arch_count)(int *);
    int (*archs)(int *);
} nvrtc;

/* ISO C has no cast from an object pointer to a function pointer; POSIX's dlsym needs one. */
static int symbol(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

static int open_nvrtc(nvrtc *rtc) {
    const char *names[] = {getenv("TINYCHAT_NVRTC"), "libnvrtc.so.13",   "libnvrtc.so.12",
                           "libnvrtc.so.11.2",       "libnvrtc.so",
                           "/usr/local/cuda/lib64/libnvrtc.so"};
    void *library = NULL;
    for (size_t i = 0; i < sizeof names / sizeof *names && !library; i++)
        if (names[i]) library = dlopen(names[i], RTLD_NOW | RTLD_LOCAL);
    return library && symbol(library, "nvrtcVersion", &rtc->version) &&
           symbol(library, "nvrtcCreateProgram", &rtc->create) &&
           symbol(library, "nvrtcCompileProgram", &rtc->compile) &&
           symbol(library, "nvrtcGetProgramLogSize", &rtc->log_size) &&
           symbol(library, "nvrtcGetProgramLog", &rtc->log) &&
           symbol(library, "nvrtcGetCUBINSize", &rtc->cubin_size) &&
           symbol(library, "nvrtcDestroyProgram", &rtc->destroy) &&
           symbol(library, "nvrtcGetNumSupportedArchs", &rtc->arch_count) &&
           symbol(library, "nvrtcGetSupportedArchs", &rtc->archs);
}

/* Uses every function of the prelude, so that each one's PTX is assembled. */
static const char probe[] =
    "#include \"prelude.cuh\"\n"
    "extern \"C\" __global__ void probe(u32 *out, const u32 *in, float *sums) {\n"
    "    __shared__ __align__(16) u32 tile[32 * 4 * 2];\n"
    "    u32 lane = threadIdx.x, a[4], b[4];\n"
    "    copy_async_16(shared_address(&tile[4 * lane]), in + 4 * lane);\n"
    "    copy_async_commit();\n"
    "    copy_async_wait<0>();\n"
    "    __syncthreads();\n"
    "    load_matrix_x4(b, shared_address(&tile[4 * lane]));\n"
    "    uint4 v = load_stream(in + 4 * lane);\n"
    "    w4_to_f16x2(v.x, a);\n"
    "    float d[4] = {0, 0, 0, 0};\n"
    "    mma_16x8x16(d, a, b[0], f16x2_mul(b[1], b[2]));\n"
    "    d[0] += f16_to_f32(f32_to_f16(d[1])) + bf16_to_f32((u16)v.y);\n"
    "    out[lane] = f32_to_f16x2(d[0], d[1]) + f16x2_fma(a[0], a[1], b[3]);\n"
    "    sums[0] = warp_sum(d[2]);\n"
    "    sums[1] = warp_max(d[3]);\n"
    "}\n";

static void compile_for(const nvrtc *rtc, int arch) {
    char option[64];
    snprintf(option, sizeof option, "--gpu-architecture=sm_%d", arch);
    const char *options[] = {option, "--std=c++17"};
    const char *name;
    const char *prelude = tc_kernel_source(0, &name);
    program p = NULL;
    REQUIRE(rtc->create(&p, probe, "probe.cu", 1, &prelude, &name) == 0);
    int status = rtc->compile(p, 2, options);
    size_t size = 0;
    if (status != 0 && rtc->log_size(p, &size) == 0) {
        char *log = malloc(size + 1);
        if (log && rtc->log(p, log) == 0) fprintf(stderr, "sm_%d: %s\n", arch, log);
        free(log);
    }
    CHECK_MSG(status == 0, "sm_%d does not compile", arch);
    CHECK(rtc->cubin_size(p, &size) == 0 && size > 0);
    rtc->destroy(&p);
}

TEST(kernels_compile_for_every_architecture) {
    nvrtc rtc;
    if (!open_nvrtc(&rtc)) SKIP("NVRTC was not found (needs NVRTC)");
    int major = 0, minor = 0, count = 0, archs[64];
    REQUIRE(rtc.version(&major, &minor) == 0);
    REQUIRE(rtc.arch_count(&count) == 0 && count > 0 && count <= 64 && rtc.archs(archs) == 0);
    static const int wanted[] = {80, 86, 87, 89, 90, 100, 120};
    printf("  NVRTC %d.%d:", major, minor);
    for (size_t i = 0; i < sizeof wanted / sizeof *wanted; i++) {
        int known = 0;
        for (int k = 0; k < count; k++) known |= archs[k] == wanted[i];
        if (known) printf(" sm_%d", wanted[i]);
        /* 100 and 120 came with NVRTC 12.8; the others every supported NVRTC must know */
        CHECK_MSG(known || wanted[i] >= 100, "this NVRTC does not know sm_%d", wanted[i]);
        if (known) compile_for(&rtc, wanted[i]);
    }
    printf("\n");
}

TEST(kernel_sources_are_listed_by_name) {
    const char *name = NULL;
    const char *text = tc_kernel_source(0, &name);
    REQUIRE(text && name);
    CHECK(strcmp(name, "prelude.cuh") == 0);
    CHECK(strstr(text, "#include <") == NULL);
    CHECK(tc_kernel_source(-1, NULL) == NULL);
    CHECK(tc_kernel_source(1000, NULL) == NULL);
}

TEST_MAIN(RUN(kernels_compile_for_every_architecture) RUN(kernel_sources_are_listed_by_name))
