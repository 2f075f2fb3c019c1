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

/* Why cuInit failed, for the common reasons. */
static void gpu_cannot_start(const tc__cu *cu, tc__cu_result result, tc_error *err) {
    const char *visible = getenv("CUDA_VISIBLE_DEVICES");
    if (result == TC__CU_NO_DEVICE && visible)
        tc__fail(
            err, TC_ERR_DEVICE,
            "the NVIDIA driver shows no GPU; CUDA_VISIBLE_DEVICES is '%.200s', which may hide them",
            visible);
    else if (result == TC__CU_NO_DEVICE)
        tc__fail(err, TC_ERR_DEVICE,
                 "there is no NVIDIA GPU that the driver can use (nvidia-smi shows what it sees)");
    else if (result == TC__CU_DRIVER_MISMATCH)
        tc__fail(
            err, TC_ERR_DEVICE,
            "the NVIDIA driver's library and its kernel module have different versions, as after "
            "an update; restart the machine");
    else
        tc__cu_check(cu, result, "starting the NVIDIA driver", err);
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
        gpu_cannot_start(cu, result, err);
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

/* A search for NVRTC, and what it passed over. */
typedef struct gpu_search {
    tc__nvrtc *nvrtc;
    int driver; /* as in tc__nvrtc_open */
    int newer_major, newer_minor;
    char newer[512]; /* the first one that is newer than the driver; "" */
} gpu_search;

static bool gpu_try_nvrtc(gpu_search *search, const char *path) {
    tc__nvrtc *nvrtc = search->nvrtc;
    nvrtc->library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    if (!nvrtc->library) return false;
    snprintf(nvrtc->path, sizeof nvrtc->path, "%s", path);
    const bool good = gpu_load_nvrtc(nvrtc);
    const bool newer = good && search->driver && nvrtc->major > search->driver / 1000;
    if (good && !newer) return true;
    if (newer && !search->newer[0]) {
        search->newer_major = nvrtc->major, search->newer_minor = nvrtc->minor;
        snprintf(search->newer, sizeof search->newer, "%s", path);
    }
    dlclose(nvrtc->library);
    nvrtc->library = NULL;
    return false;
}

/* Tries every file that matches, the last of the sorted names (the newest version) first. */
static bool gpu_glob_nvrtc(gpu_search *search, const char *pattern) {
    glob_t found;
    bool good = false;
    if (glob(pattern, 0, NULL, &found)) return false;
    for (size_t i = found.gl_pathc; i > 0 && !good; i--)
        if (!strstr(found.gl_pathv[i - 1], "builtins") && !strstr(found.gl_pathv[i - 1], ".alt."))
            good = gpu_try_nvrtc(search, found.gl_pathv[i - 1]);
    globfree(&found);
    return good;
}

/* The folders below a root (an environment variable's value, or a path) that may hold it. */
static bool gpu_search_root(gpu_search *search, const char *root) {
    static const char *const below[] = {
        "lib64/libnvrtc.so*",
        "lib/libnvrtc.so*",
        "lib/*-linux-gnu/libnvrtc.so*",
        "targets/*/lib/libnvrtc.so*",
        "lib/python3*/site-packages/nvidia/*/lib/libnvrtc.so*",
        "lib/python3*/dist-packages/nvidia/*/lib/libnvrtc.so*",
    };
    char pattern[1024];
    if (!root || !*root) return false;
    for (size_t i = 0; i < TC_COUNT(below); i++) {
        snprintf(pattern, sizeof pattern, "%s/%s", root, below[i]);
        if (gpu_glob_nvrtc(search, pattern)) return true;
    }
    return false;
}

static bool gpu_search_everywhere(gpu_search *search) {
    static const char *const names[] = {"libnvrtc.so.13", "libnvrtc.so.12", "libnvrtc.so.11.2",
                                        "libnvrtc.so"};
    static const char *const variables[] = {"CUDA_HOME", "CUDA_PATH", "VIRTUAL_ENV",
                                            "CONDA_PREFIX"};
    static const char *const roots[] = {"/usr/local/cuda", "/usr/local/cuda-*", "/opt/cuda",
                                        "/usr/local", "/usr"};
    const char *home = getenv("HOME");
    char local[512] = "";
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (gpu_try_nvrtc(search, names[i])) return true;
    for (size_t i = 0; i < TC_COUNT(variables); i++)
        if (gpu_search_root(search, getenv(variables[i]))) return true;
    if (home) snprintf(local, sizeof local, "%s/.local", home);
    if (gpu_search_root(search, local)) return true;
    for (size_t i = 0; i < TC_COUNT(roots); i++)
        if (gpu_search_root(search, roots[i])) return true;
    return false;
}

int tc__nvrtc_open(tc__nvrtc *nvrtc, int driver, tc_error *err) {
    gpu_search search = {nvrtc, driver, 0, 0, ""};
    const char *chosen = getenv("TINYCHAT_NVRTC");
    const char *package = driver / 1000 == 11 ? "cu11" : "cu12";
    memset(nvrtc, 0, sizeof *nvrtc);
    const bool named = chosen && *chosen;
    if (named ? gpu_try_nvrtc(&search, chosen) : gpu_search_everywhere(&search)) return tc__ok(err);
    if (search.newer[0])
        return tc__fail(
            err, TC_ERR_DEVICE,
            "NVRTC %d.%d (%s) is newer than what the driver runs, CUDA %d.%d, and there is "
            "no other; update the driver, or: pip install nvidia-cuda-nvrtc-%s",
            search.newer_major, search.newer_minor, search.newer, driver / 1000, driver % 1000 / 10,
            package);
    if (named)
        return tc__fail(err, TC_ERR_DEVICE, "TINYCHAT_NVRTC names %s, which is not a usable NVRTC",
                        chosen);
    return tc__fail(
        err, TC_ERR_DEVICE,
        "NVRTC (libnvrtc.so.13, .12, .11.2) was not found by the dynamic linker, under "
        "CUDA_HOME, VIRTUAL_ENV, CONDA_PREFIX, ~/.local, /usr/local/cuda or /usr; the "
        "driver does not bring it: pip install nvidia-cuda-nvrtc-%s, or name the file in "
        "TINYCHAT_NVRTC, or bring kernels from another machine (--export-kernels)",
        package);
}

void tc__nvrtc_close(tc__nvrtc *nvrtc) {
    if (nvrtc->library) dlclose(nvrtc->library);
    memset(nvrtc, 0, sizeof *nvrtc);
}
