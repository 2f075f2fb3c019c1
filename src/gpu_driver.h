/* gpu_driver - the CUDA driver and NVRTC, opened at run time. Nothing else knows their symbols.
 *
 * The few declarations needed are written out here, so that no CUDA header is needed to build. They
 * follow the CUDA 11.8 to 13 ABI; functions that came later (launch attributes) are optional.
 */
#ifndef TC_GPU_DRIVER_H
#define TC_GPU_DRIVER_H

#include "base.h"

typedef int tc__cu_result; /* 0 is success */
typedef int tc__cu_device;
typedef unsigned long long tc__cu_ptr; /* an address in device memory */
typedef struct tc__cu_context_ *tc__cu_context;
typedef struct tc__cu_module_ *tc__cu_module;
typedef struct tc__cu_function_ *tc__cu_function;
typedef struct tc__cu_stream_ *tc__cu_stream;
typedef struct tc__cu_event_ *tc__cu_event;
typedef struct tc__cu_graph_ *tc__cu_graph;
typedef struct tc__cu_graph_exec_ *tc__cu_graph_exec;
typedef struct tc__cu_graph_node_ *tc__cu_graph_node;

/* CUlaunchAttribute and CUlaunchConfig: 4-byte id, padding, a 64-byte union. */
typedef struct tc__cu_launch_attribute {
    int id;
    char pad[4];
    union {
        char bytes[64];
        int value;
    } value;
} tc__cu_launch_attribute;

typedef struct tc__cu_launch_config {
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    tc__cu_stream stream;
    tc__cu_launch_attribute *attributes;
    unsigned attribute_count;
} tc__cu_launch_config;

/* CUDA_KERNEL_NODE_PARAMS, the first version. */
typedef struct tc__cu_kernel_node {
    tc__cu_function function;
    unsigned grid_x, grid_y, grid_z, block_x, block_y, block_z, shared_bytes;
    void **arguments, **extra;
} tc__cu_kernel_node;

enum { /* numbers of the driver's enumerations */
       TC__CU_OUT_OF_MEMORY = 2,
       TC__CU_NO_DEVICE = 100,
       TC__CU_DRIVER_MISMATCH = 803,
       TC__CU_NOT_READY = 600,
       TC__CU_UNKNOWN = 999,
       TC__CU_ATTRIBUTE_MAX_SHARED = 97, /* per block, opt-in */
       TC__CU_ATTRIBUTE_SM_COUNT = 16,
       TC__CU_ATTRIBUTE_CLOCK_KHZ = 13,
       TC__CU_ATTRIBUTE_L2_BYTES = 38,
       TC__CU_ATTRIBUTE_INTEGRATED = 18,
       TC__CU_ATTACH_GLOBAL = 1, /* managed memory: any stream may use it */
       TC__CU_ATTACH_HOST = 2,   /* no stream uses it; the CPU may while kernels run */
       TC__CU_ATTRIBUTE_MAJOR = 75,
       TC__CU_ATTRIBUTE_MINOR = 76,
       TC__CU_FUNCTION_LOCAL_BYTES = 3,
       TC__CU_FUNCTION_REGISTERS = 4,
       TC__CU_FUNCTION_MAX_DYNAMIC_SHARED = 8,
       TC__CU_FUNCTION_CARVEOUT = 9,  /* per cent of L1 that is shared memory */
       TC__CU_LAUNCH_PROGRAMMATIC = 6 /* programmatic stream serialization */
};

#define TC__CU_FUNCTIONS(F)                                                                        \
    F(init, "cuInit", (unsigned flags))                                                            \
    F(driver_version, "cuDriverGetVersion", (int *version))                                        \
    F(device_count, "cuDeviceGetCount", (int *count))                                              \
    F(device_get, "cuDeviceGet", (tc__cu_device * device, int ordinal))                            \
    F(device_name, "cuDeviceGetName", (char *name, int len, tc__cu_device device))                 \
    F(device_attribute, "cuDeviceGetAttribute", (int *value, int attribute, tc__cu_device device)) \
    F(device_memory, "cuDeviceTotalMem_v2", (size_t * bytes, tc__cu_device device))                \
    F(context_retain, "cuDevicePrimaryCtxRetain",                                                  \
      (tc__cu_context * context, tc__cu_device device))                                            \
    F(context_release, "cuDevicePrimaryCtxRelease_v2", (tc__cu_device device))                     \
    F(context_push, "cuCtxPushCurrent_v2", (tc__cu_context context))                               \
    F(context_pop, "cuCtxPopCurrent_v2", (tc__cu_context * context))                               \
    F(memory_info, "cuMemGetInfo_v2", (size_t * free_bytes, size_t * total))                       \
    F(allocate, "cuMemAlloc_v2", (tc__cu_ptr * pointer, size_t bytes))                             \
    F(allocate_managed, "cuMemAllocManaged", (tc__cu_ptr * pointer, size_t bytes, unsigned flags)) \
    F(release, "cuMemFree_v2", (tc__cu_ptr pointer))                                               \
    F(host_allocate, "cuMemHostAlloc", (void **pointer, size_t bytes, unsigned flags))             \
    F(host_release, "cuMemFreeHost", (void *pointer))                                              \
    F(host_register, "cuMemHostRegister_v2", (void *pointer, size_t bytes, unsigned flags))        \
    F(host_unregister, "cuMemHostUnregister", (void *pointer))                                     \
    F(host_device_pointer, "cuMemHostGetDevicePointer_v2",                                         \
      (tc__cu_ptr * pointer, void *host, unsigned flags))                                          \
    F(copy_to_device, "cuMemcpyHtoDAsync_v2",                                                      \
      (tc__cu_ptr to, const void *from, size_t bytes, tc__cu_stream stream))                       \
    F(copy_to_host, "cuMemcpyDtoHAsync_v2",                                                        \
      (void *to, tc__cu_ptr from, size_t bytes, tc__cu_stream stream))                             \
    F(fill_bytes, "cuMemsetD8Async",                                                               \
      (tc__cu_ptr to, unsigned char value, size_t bytes, tc__cu_stream stream))                    \
    F(stream_create, "cuStreamCreate", (tc__cu_stream * stream, unsigned flags))                   \
    F(stream_destroy, "cuStreamDestroy_v2", (tc__cu_stream stream))                                \
    F(stream_wait, "cuStreamSynchronize", (tc__cu_stream stream))                                  \
    F(stream_query, "cuStreamQuery", (tc__cu_stream stream))                                       \
    F(stream_attach, "cuStreamAttachMemAsync",                                                     \
      (tc__cu_stream stream, tc__cu_ptr pointer, size_t bytes, unsigned flags))                    \
    F(event_create, "cuEventCreate", (tc__cu_event * event, unsigned flags))                       \
    F(event_destroy, "cuEventDestroy_v2", (tc__cu_event event))                                    \
    F(event_record, "cuEventRecord", (tc__cu_event event, tc__cu_stream stream))                   \
    F(event_wait, "cuEventSynchronize", (tc__cu_event event))                                      \
    F(event_milliseconds, "cuEventElapsedTime",                                                    \
      (float *milliseconds, tc__cu_event start, tc__cu_event end))                                 \
    F(module_load, "cuModuleLoadData", (tc__cu_module * module, const void *image))                \
    F(module_unload, "cuModuleUnload", (tc__cu_module module))                                     \
    F(module_global, "cuModuleGetGlobal_v2",                                                       \
      (tc__cu_ptr * pointer, size_t * bytes, tc__cu_module module, const char *name))              \
    F(module_function, "cuModuleGetFunction",                                                      \
      (tc__cu_function * function, tc__cu_module module, const char *name))                        \
    F(function_set, "cuFuncSetAttribute", (tc__cu_function function, int attribute, int value))    \
    F(function_get, "cuFuncGetAttribute", (int *value, int attribute, tc__cu_function function))   \
    F(launch, "cuLaunchKernelEx",                                                                  \
      (const tc__cu_launch_config *config, tc__cu_function function, void **arguments,             \
       void **extra))                                                                              \
    F(capture_begin, "cuStreamBeginCapture_v2", (tc__cu_stream stream, int mode))                  \
    F(capture_end, "cuStreamEndCapture", (tc__cu_stream stream, tc__cu_graph * graph))             \
    F(graph_instantiate, "cuGraphInstantiateWithFlags",                                            \
      (tc__cu_graph_exec * exec, tc__cu_graph graph, unsigned long long flags))                    \
    F(graph_roots, "cuGraphGetRootNodes",                                                          \
      (tc__cu_graph graph, tc__cu_graph_node * nodes, size_t * count))                             \
    F(graph_exec_set_kernel, "cuGraphExecKernelNodeSetParams",                                     \
      (tc__cu_graph_exec exec, tc__cu_graph_node node, const tc__cu_kernel_node *kernel))          \
    F(graph_destroy, "cuGraphDestroy", (tc__cu_graph graph))                                       \
    F(graph_exec_destroy, "cuGraphExecDestroy", (tc__cu_graph_exec exec))                          \
    F(graph_launch, "cuGraphLaunch", (tc__cu_graph_exec exec, tc__cu_stream stream))               \
    F(error_text, "cuGetErrorString", (tc__cu_result result, const char **text))

typedef struct tc__cu {
    void *library;
#define TC__CU_MEMBER(member, symbol, arguments) tc__cu_result(*member) arguments;
    TC__CU_FUNCTIONS(TC__CU_MEMBER)
#undef TC__CU_MEMBER
} tc__cu;

/* Opens libcuda and initialises it. Errors: DEVICE (no driver, too old, no device), with the facts
 * and the remedy in one line. */
TC_INTERNAL int tc__cu_open(tc__cu *cu, tc_error *err);
TC_INTERNAL void tc__cu_close(tc__cu *cu);

/* TC_OK, or DEVICE (MEMORY when the device is out of memory) with what was tried and the driver's
 * words for `result`. */
TC_INTERNAL int tc__cu_check(const tc__cu *cu, tc__cu_result result, const char *what,
                             tc_error *err);

/* ---- NVRTC ---- */

typedef struct tc__nvrtc_program_ *tc__nvrtc_program;

#define TC__NVRTC_FUNCTIONS(F)                                                                     \
    F(version, "nvrtcVersion", (int *major, int *minor))                                           \
    F(arch_count, "nvrtcGetNumSupportedArchs", (int *count))                                       \
    F(archs, "nvrtcGetSupportedArchs", (int *archs))                                               \
    F(create, "nvrtcCreateProgram",                                                                \
      (tc__nvrtc_program * program, const char *source, const char *name, int headers,             \
       const char *const *texts, const char *const *names))                                        \
    F(destroy, "nvrtcDestroyProgram", (tc__nvrtc_program * program))                               \
    F(compile, "nvrtcCompileProgram",                                                              \
      (tc__nvrtc_program program, int count, const char *const *options))                          \
    F(log_size, "nvrtcGetProgramLogSize", (tc__nvrtc_program program, size_t * size))              \
    F(log, "nvrtcGetProgramLog", (tc__nvrtc_program program, char *text))                          \
    F(cubin_size, "nvrtcGetCUBINSize", (tc__nvrtc_program program, size_t * size))                 \
    F(cubin, "nvrtcGetCUBIN", (tc__nvrtc_program program, char *image))                            \
    F(ptx_size, "nvrtcGetPTXSize", (tc__nvrtc_program program, size_t * size))                     \
    F(ptx, "nvrtcGetPTX", (tc__nvrtc_program program, char *image))

typedef struct tc__nvrtc {
    void *library;
    char path[512]; /* where it was found */
    int major, minor;
#define TC__NVRTC_MEMBER(member, symbol, arguments) int(*member) arguments;
    TC__NVRTC_FUNCTIONS(TC__NVRTC_MEMBER)
#undef TC__NVRTC_MEMBER
} tc__nvrtc;

/* Looks for NVRTC: TINYCHAT_NVRTC (a file), the dynamic linker's names, CUDA_HOME and CUDA_PATH,
 * the usual folders, Python's packages under VIRTUAL_ENV, CONDA_PREFIX, ~/.local and /usr. driver:
 * the driver's version; an NVRTC of a later major version is passed over, as that driver could not
 * load what it makes; 0: there is no driver, any will do. Errors: DEVICE, saying where it looked
 * and how to install it. */
TC_INTERNAL int tc__nvrtc_open(tc__nvrtc *nvrtc, int driver, tc_error *err);
TC_INTERNAL void tc__nvrtc_close(tc__nvrtc *nvrtc);

#endif /* TC_GPU_DRIVER_H */
