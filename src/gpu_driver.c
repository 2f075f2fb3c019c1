#include "gpu_driver.h"

#include <dlfcn.h>
#include <glob.h>

/* ISO C has no cast from an object pointer to a function pointer; POSIX's dlsym needs one. */
static bool gpu_symbol(void *library, const char *name, void *function) {
    void *address = dlsym(library, name);
    memcpy(function, &address, sizeof address);
    return address != NULL;
}

/* ---- the driver ---- */

static const char *gpu_load_driver(tc__cu *cu) {
#define GPU_LOAD(member, symbol, arguments)                                                        \
    if (!gpu_symbol(cu->library, symbol, &cu->member)) return symbol;
    TC__CU_FUNCTIONS(GPU_LOAD)
#undef GPU_LOAD
    return NULL;
}

int tc__cu_open(tc__cu *cu, tc_error *err) {
    memset(cu, 0, sizeof *cu);
    cu->library = dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL);
    if (!cu->library)
        return tc__fail(err, TC_ERR_DEVICE,
                        "no NVIDIA driver: libcuda.so.1 was not found by the dynamic linker; "
                        "install the NVIDIA driver, or use --device cpu");
    const char *missing = gpu_load_driver(cu);
    int version = 0;
    tc__cu_result result = missing ? 0 : cu->init(0);
    if (!missing) cu->driver_version(&version);
    if (missing) {
        tc__fail(err, TC_ERR_DEVICE,
                 "the NVIDIA driver is too old: libcuda.so.1 lacks %s; driver 520 (CUDA 11.8) or "
                 "newer is needed",
                 missing);
    } else if (result) {
        tc__cu_check(cu, result, "starting the NVIDIA driver", err);
    } else {
        return tc__ok(err);
    }
    tc__cu_close(cu);
    return TC_ERR_DEVICE;
}

void tc__cu_close(tc__cu *cu) {
    if (cu->library) dlclose(cu->library);
    memset(cu, 0, sizeof *cu);
}

int tc__cu_check(const tc__cu *cu, tc__cu_result result, const char *what, tc_error *err) {
    if (!result) return TC_OK;
    const char *text = NULL;
    if (cu->error_text(result, &text) || !text) text = "unknown error";
    return tc__fail(err, result == TC__CU_OUT_OF_MEMORY ? TC_ERR_MEMORY : TC_ERR_DEVICE,
                    "%s failed: %s (CUDA error %d)", what, text, result);
}

/* ---- NVRTC ---- */

static bool gpu_load_nvrtc(tc__nvrtc *nvrtc) {
#define GPU_LOAD(member, symbol, arguments)                                                        \
    if (!gpu_symbol(nvrtc->library, symbol, &nvrtc->member)) return false;
    TC__NVRTC_FUNCTIONS(GPU_LOAD)
#undef GPU_LOAD
    return nvrtc->version(&nvrtc->major, &nvrtc->minor) == 0;
}

static bool gpu_try_nvrtc(tc__nvrtc *nvrtc, const char *path) {
    nvrtc->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!nvrtc->library) return false;
    snprintf(nvrtc->path, sizeof nvrtc->path, "%s", path);
    if (gpu_load_nvrtc(nvrtc)) return true;
    dlclose(nvrtc->library);
    nvrtc->library = NULL;
    return false;
}

/* Tries every file that matches, the last of the sorted names (the newest version) first. */
static bool gpu_glob_nvrtc(tc__nvrtc *nvrtc, const char *pattern) {
    glob_t found;
    bool good = false;
    if (glob(pattern, 0, NULL, &found)) return false;
    for (size_t i = found.gl_pathc; i > 0 && !good; i--)
        if (!strstr(found.gl_pathv[i - 1], "builtins") && !strstr(found.gl_pathv[i - 1], ".alt."))
            good = gpu_try_nvrtc(nvrtc, found.gl_pathv[i - 1]);
    globfree(&found);
    return good;
}

/* The folders below a root (an environment variable's value, or a path) that may hold it. */
static bool gpu_search_nvrtc(tc__nvrtc *nvrtc, const char *root) {
    static const char *const below[] = {
        "lib64/libnvrtc.so*",
        "lib/libnvrtc.so*",
        "targets/*/lib/libnvrtc.so*",
        "lib/python3*/site-packages/nvidia/*/lib/libnvrtc.so*",
        "lib/python3*/dist-packages/nvidia/*/lib/libnvrtc.so*",
    };
    char pattern[1024];
    if (!root || !*root) return false;
    for (size_t i = 0; i < TC_COUNT(below); i++) {
        snprintf(pattern, sizeof pattern, "%s/%s", root, below[i]);
        if (gpu_glob_nvrtc(nvrtc, pattern)) return true;
    }
    return false;
}

int tc__nvrtc_open(tc__nvrtc *nvrtc, tc_error *err) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2",
                                        "libnvrtc.so"};
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV",
                                            "CONDA_PREFIX"};
    static const char *const roots[] = {"/usr/local/cuda", "/opt/cuda", "/usr/local", "/usr"};
    memset(nvrtc, 0, sizeof *nvrtc);
    const char *chosen = getenv("TINYCHAT_NVRTC"), *home = getenv("HOME");
    if (chosen && *chosen) {
        if (gpu_try_nvrtc(nvrtc, chosen)) return tc__ok(err);
        return tc__fail(err, TC_ERR_DEVICE, "TINYCHAT_NVRTC names %s, which is not a usable NVRTC",
                        chosen);
    }
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (gpu_try_nvrtc(nvrtc, names[i])) return tc__ok(err);
    for (size_t i = 0; i < TC_COUNT(variables); i++)
        if (gpu_search_nvrtc(nvrtc, getenv(variables[i]))) return tc__ok(err);
    char local[512] = "";
    if (home) snprintf(local, sizeof local, "%s/.local", home);
    if (gpu_search_nvrtc(nvrtc, local)) return tc__ok(err);
    for (size_t i = 0; i < TC_COUNT(roots); i++)
        if (gpu_search_nvrtc(nvrtc, roots[i])) return tc__ok(err);
    return tc__fail(err, TC_ERR_DEVICE,
                    "NVRTC (libnvrtc.so.13, .12, .11.2) was not found by the dynamic linker, under "
                    "CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX, ~/.local, /usr/local/cuda or /usr; the "
                    "driver does not bring it: pip install nvidia-cuda-nvrtc-cu12, or name the "
                    "file in TINYCHAT_NVRTC");
}

void tc__nvrtc_close(tc__nvrtc *nvrtc) {
    if (nvrtc->library) dlclose(nvrtc->library);
    memset(nvrtc, 0, sizeof *nvrtc);
}
