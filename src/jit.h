/* jit - from CUDA source to a loadable image: compiled once per GPU architecture and model shape,
 * kept in a cache on disk, or carried in a file to machines without a compiler.
 *
 * The cache is a convenience that is never trusted and never needed: an entry carries its key and a
 * checksum, anything that does not fit is compiled anew, and a folder that cannot be written only
 * costs the next start time. A hit does not open NVRTC, unless it is what one too old for the GPU
 * has made: then another one makes it anew.
 */
#ifndef TC_JIT_H
#define TC_JIT_H

#include "gpu_driver.h"

typedef struct tc__jit_target {
    int arch;         /* 90 for compute capability 9.0 */
    bool as_ptx;      /* PTX instead of machine code (TINYCHAT_ARCH, or NVRTC older than the GPU) */
    bool specific;    /* machine code with what only this very architecture has: sm_90a, where the
                         kernels see __CUDA_ARCH_FEAT_SM90_ALL; plain sm_90 if NVRTC is too old */
    int driver;       /* the driver's version: part of the key */
    int shared_limit; /* bytes of dynamic shared memory a block may ask for */
} tc__jit_target;

typedef struct tc__jit_program {
    const char *name; /* for messages and the cache's file name: "decode" */
    const char *text; /* the instances: source that includes the kernels' files */
    tc__buf image;    /* out: cubin or PTX; owned by the caller */
    bool cached;      /* out: it came from the cache */
    tc_error error;   /* out */
} tc__jit_program;

/* Compiles n programs, those that the cache lacks side by side. `progress` (NULL: none): whose
 * callback is told of each and may cancel. Errors: DEVICE (NVRTC missing or the compiler's first
 * complaint, with file and line), MEMORY, CANCELLED. */
TC_INTERNAL int tc__jit(tc__jit_program *programs, size_t n, const tc__jit_target *target,
                        const tc_model_params *progress, tc_error *err);

/* Kernels carried in a file to a machine without NVRTC. `what` tells people whose they are:
 * version, architecture, model. They fit the same sources, sizes and architecture, under any
 * driver. tc__jit_export writes the programs' images (tc__jit has made them). Errors:
 * IO, MEMORY. */
TC_INTERNAL int tc__jit_export(const char *path, const char *what, const tc__jit_program *programs,
                               size_t n, const tc__jit_target *target, tc_error *err);
/* tc__jit_import takes all images from the file. Errors: IO, FORMAT (no such file, damaged),
 * UNSUPPORTED (for another machine, model or version), MEMORY. */
TC_INTERNAL int tc__jit_import(const char *path, const char *what, tc__jit_program *programs,
                               size_t n, const tc__jit_target *target, tc_error *err);

/* The cache's folder into path: TINYCHAT_CACHE, $XDG_CACHE_HOME/tinychat or ~/.cache/tinychat; ""
 * if there is none. */
TC_INTERNAL void tc__jit_folder(char *path, size_t size);

#endif /* TC_JIT_H */
