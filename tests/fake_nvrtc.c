/* fake_nvrtc - a libnvrtc.so that hands everything on to the real one, which FAKE_NVRTC_REAL names, but
 * lies about itself as it is told, for tests of what the engine does with other versions:
 *   FAKE_NVRTC_VERSION  13000 for 13.0
 *   FAKE_NVRTC_NEWEST   the newest architecture that it knows
 *   FAKE_NVRTC_QUICK    1: PTX where machine code was asked for, which is made several times as fast;
 *                       fake_cuda.c reads both
 */
#include "src/gpu_driver.h"

#include <dlfcn.h>

static tc__nvrtc real;

/* The real one stays loaded: what it keeps for good would look like a leak if it were unloaded. */
static bool begin(void) {
    const char *path = getenv("FAKE_NVRTC_REAL");
    if (!real.library && path) real.library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!real.library) return false;
#define LOOK_UP(member, symbol, arguments)                                                         \
    {                                                                                              \
        void *address = dlsym(real.library, symbol);                                               \
        memcpy((void *)&real.member, &address, sizeof address);                                    \
        if (!address) return false;                                                                \
    }
    TC__NVRTC_FUNCTIONS(LOOK_UP)
#undef LOOK_UP
    return true;
}

static int number(const char *name) {
    const char *text = getenv(name);
    return text ? atoi(text) : 0;
}

#define FUNCTION(name, arguments)                                                                  \
    int name arguments;                                                                            \
    int name arguments

FUNCTION(nvrtcVersion, (int *major, int *minor)) {
    const int version = number("FAKE_NVRTC_VERSION");
    const int status = begin() ? real.version(major, minor) : 7;
    if (version) *major = version / 1000, *minor = version % 1000;
    return status;
}
static int known(int *archs, int *count) {
    const int newest = number("FAKE_NVRTC_NEWEST");
    int n = 0, status = real.arch_count(&n), all[128];
    if (!status) status = n > 128 ? 1 : real.archs(all);
    *count = 0;
    for (int i = 0; i < n && !status; i++) {
        if (newest && all[i] > newest) continue;
        if (archs) archs[*count] = all[i];
        ++*count;
    }
    return status;
}
FUNCTION(nvrtcGetNumSupportedArchs, (int *count)) {
    return known(NULL, count);
}
FUNCTION(nvrtcGetSupportedArchs, (int *archs)) {
    int count;
    return known(archs, &count);
}
FUNCTION(nvrtcCreateProgram, (tc__nvrtc_program * program, const char *source, const char *name,
                              int headers, const char *const *texts, const char *const *names)) {
    return real.create(program, source, name, headers, texts, names);
}
FUNCTION(nvrtcDestroyProgram, (tc__nvrtc_program * program)) {
    return real.destroy(program);
}
FUNCTION(nvrtcCompileProgram, (tc__nvrtc_program program, int count, const char *const *options)) {
    const char *changed[16];
    char arch[64];
    for (int i = 0; i < count && i < 16; i++) {
        const char *sm = strstr(options[i], "=sm_");
        changed[i] = options[i];
        if (!sm || !number("FAKE_NVRTC_QUICK")) continue;
        snprintf(arch, sizeof arch, "--gpu-architecture=compute_%s", sm + 4);
        changed[i] = arch;
    }
    return real.compile(program, count < 16 ? count : 16, changed);
}
FUNCTION(nvrtcGetProgramLogSize, (tc__nvrtc_program program, size_t *size)) {
    return real.log_size(program, size);
}
FUNCTION(nvrtcGetProgramLog, (tc__nvrtc_program program, char *text)) {
    return real.log(program, text);
}
FUNCTION(nvrtcGetCUBINSize, (tc__nvrtc_program program, size_t *size)) {
    return (number("FAKE_NVRTC_QUICK") ? real.ptx_size : real.cubin_size)(program, size);
}
FUNCTION(nvrtcGetCUBIN, (tc__nvrtc_program program, char *image)) {
    return (number("FAKE_NVRTC_QUICK") ? real.ptx : real.cubin)(program, image);
}
FUNCTION(nvrtcGetPTXSize, (tc__nvrtc_program program, size_t *size)) {
    return real.ptx_size(program, size);
}
FUNCTION(nvrtcGetPTX, (tc__nvrtc_program program, char *image)) {
    return real.ptx(program, image);
}
