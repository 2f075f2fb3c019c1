/* fake_cuda - what tests set and see of the driver that fake_cuda.c makes. It is built as a
 * libcuda.so.1: fake_cuda_open loads it, and the engine's own search then finds it loaded already
 * (programs that a test starts find it by LD_LIBRARY_PATH).
 */
#ifndef FAKE_CUDA_H
#define FAKE_CUDA_H

#include "src/base.h"

#include <dlfcn.h>
#include <unistd.h>

enum { FAKE_TOLD_TO_FAIL = 9999 }; /* the result of a call that was told to fail */

typedef struct fake_driver {
    /* The machine. At first as FAKE_CUDA_DEVICES, _ARCH, _SMS, _SHARED (bytes; 0: as the
     * architecture has them), _INTEGRATED, _DRIVER, _INIT (cuInit's result) and _MEMORY (bytes of
     * each GPU) say. */
    int devices, arch, sm_count, shared, integrated, driver, init;
    size_t memory;
    /* The call, from now on, that fails; 0: none. Of fail_function, or of any that may fail. At
     * first FAKE_CUDA_FAIL=FUNCTION:N. */
    long fail_at;
    char fail_function[48];
    long calls; /* that may fail, so far */
    /* What is held, and the most that ever was. */
    size_t allocated, most_allocated, pinned, most_pinned;
    int allocations, managed, pinned_blocks, modules, streams, events, graphs, contexts, pushed;
    const uint8_t *largest; /* the largest allocation that is held */
    size_t largest_bytes;
    long launches, captured, graph_launches; /* kernels, kernels recorded, graphs */
    long alone;                              /* prompts, or pieces of one, of one token: embed_all */
    char last_cluster[64];                   /* the last kernel launched in clusters */
    int wrong;           /* calls that a real driver would have refused, or worse */
    char complaint[512]; /* about the first of them */
} fake_driver;

/* What a library that is loaded names "fake_cuda" and "fake_cuda_depth": contexts pushed by the
 * calling thread; "fake_cuda_report": a line about what is wrong or still held, "" if nothing is. */
typedef int fake_depth_fn(void);
typedef const char *fake_report_fn(void);

/* The folder of what the Makefile has built beside this test program; false if that cannot be told. */
static inline bool fake_cuda_folder(char *path, size_t size) {
    const ssize_t n = readlink("/proc/self/exe", path, size - 1);
    if (n <= 0 || (size_t)n > size - 16) return false;
    path[n] = 0;
    strcpy(strrchr(path, '/') + 1, "fake");
    return true;
}

/* Loads the driver for good. NULL, with a line on stderr, if that is not possible. */
static inline fake_driver *fake_cuda_open(void) {
    char path[1024];
    if (!fake_cuda_folder(path, sizeof path)) return NULL;
    snprintf(path + strlen(path), sizeof path - strlen(path), "/libcuda.so.1");
    void *library = dlopen(path, RTLD_NOW | RTLD_LOCAL);
    fake_driver *driver = library ? dlsym(library, "fake_cuda") : NULL;
    /* by its soname the engine gets the same one */
    void *again = driver ? dlopen("libcuda.so.1", RTLD_NOW | RTLD_LOCAL) : NULL;
    if (!again || again != library) fprintf(stderr, "%s: %s\n", path, library ? "" : dlerror());
    return again == library ? driver : NULL;
}

#endif /* FAKE_CUDA_H */
