/* backend - what the session asks of a device. Two structs of functions and nothing else: the
 * session never knows which device it talks to. The CPU is one backend, a CUDA GPU another.
 */
#ifndef TC_BACKEND_H
#define TC_BACKEND_H

#include "arch.h"
#include "sampler.h"

typedef struct tc__device tc__device; /* a model's weights on a device */
typedef struct tc__cache tc__cache;   /* a session's KV cache and workspace there */

typedef int (*tc__logits_fn)(void *user, size_t position, const float *logits, int vocab_size);

typedef struct tc__backend {
    /* Makes the weights usable. `threads` as in tc_model_params. The weights outlive the device. */
    int (*open)(const tc__weights *weights, const tc_model_params *params, tc__device **device,
                tc_error *err);
    void (*close)(tc__device *device);

    /* For people: "CPU (AVX-512, 8 threads)". Lives as long as the device. */
    const char *(*name)(const tc__device *device);
    /* For people, what figures depend on besides: "driver 580.65 (CUDA 13.0), up to 1980
     * MHz"; "". */
    const char *(*details)(const tc__device *device);

    /* Bytes of KV cache per position, and bytes of everything else a session needs with this
     * context size. */
    size_t (*kv_bytes_per_token)(const tc__device *device);
    size_t (*workspace_bytes)(const tc__device *device, int ctx_size);
    /* Memory that a new session could take now. */
    size_t (*free_bytes)(const tc__device *device);

    /* An empty cache of ctx_size positions. Errors: MEMORY. */
    int (*cache_open)(tc__device *device, int ctx_size, tc__cache **cache, tc_error *err);
    void (*cache_close)(tc__cache *cache);

    /* Evaluates n >= 1 ids at positions pos .. pos + n - 1 (the cache holds pos positions, ids and
     * sizes were checked). Without `each`, computes the logits of the last one; with it, all of
     * them, handed over in order. Looks at *cancel between pieces of work and returns CANCELLED
     * when it is raised. */
    int (*eval)(tc__cache *cache, const int32_t *ids, size_t n, size_t pos, tc__logits_fn each,
                void *user, const tc__flag *cancel, tc_error *err);
    /* The logits [vocab_size] of the last position evaluated, in host memory until the
     * next call. */
    const float *(*logits)(tc__cache *cache);
    /* Chooses the next token from those logits: context and u as in tc__sample. */
    int (*sample)(tc__cache *cache, const tc_sampling *sampling, const int32_t *context,
                  size_t n_context, double u, int32_t *id, tc_error *err);

    /* Median bytes per second of a plain read loop over `bytes` of the device's memory. */
    int (*read_bandwidth)(tc__device *device, size_t bytes, double *bytes_per_second,
                          tc_error *err);
    /* Writes the kernels compiled for this model to a file (tc_model_params.kernels); NULL where
     * nothing is compiled. */
    int (*export_kernels)(tc__device *device, const char *path, tc_error *err);
} tc__backend;

/* Each backend casts the two handles to types of its own. */
TC_INTERNAL const tc__backend *tc__cpu_backend(void);
TC_INTERNAL const tc__backend *tc__cuda_backend(void);

#endif /* TC_BACKEND_H */
