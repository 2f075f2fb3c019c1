#include "cpu_kernels.h"
#include "gpu_driver.h"
#include "jit.h"
#include "threads.h"

#include <errno.h>
#include <unistd.h>

typedef struct doctor_state {
    void (*line)(void *user, const char *text);
    void *user;
    tc__cu cu;
    int version; /* of the driver; 0: there is none */
    int arch;    /* of GPU 0; 0 if it cannot be used */
    bool nvrtc;  /* it is there and compiles */
} doctor_state;

/* A line: what it is about, in a column of its own, and the facts. */
static void doctor_say(const doctor_state *doctor, const char *what, const char *format, ...)
    TC_PRINTF(3, 4);
static void doctor_say(const doctor_state *doctor, const char *what, const char *format, ...) {
    char facts[1280], text[1312];
    va_list args;
    if (!doctor->line) return; /* only the answer is wanted */
    va_start(args, format);
    vsnprintf(facts, sizeof facts, format, args);
    va_end(args);
    snprintf(text, sizeof text, "%-11s %s", what, facts);
    doctor->line(doctor->user, text);
}

/* The file behind a library that is loaded (its name carries the driver's version), as Linux knows
 * it; elsewhere, and if it is not found, `otherwise`. */
static void doctor_file(const char *library, const char *otherwise, char *path, size_t size) {
    char line[1024];
    FILE *maps = fopen("/proc/self/maps", "r");
    snprintf(path, size, "%s", otherwise);
    while (maps && fgets(line, sizeof line, maps)) {
        char *name = strchr(line, '/'), *file = strrchr(line, '/');
        if (!name || strncmp(file + 1, library, strlen(library))) continue;
        snprintf(path, size, "%.*s", (int)strcspn(name, "\n"), name);
        break;
    }
    if (maps) fclose(maps);
}

/* ---- the GPU's side ---- */

/* Opens the GPU as a model would, which shows what is free, and leaves it as it was. */
static int doctor_gpu_memory(const tc__cu *cu, tc__cu_device device, size_t *free_bytes,
                             tc_error *err) {
    tc__cu_context context;
    size_t total;
    int code = tc__cu_check(cu, cu->context_retain(&context, device), "opening the GPU", err);
    if (code) return code;
    tc__cu_result result = cu->context_push(context);
    if (!result) {
        tc__cu_context previous;
        result = cu->memory_info(free_bytes, &total);
        cu->context_pop(&previous);
    }
    cu->context_release(device);
    return tc__cu_check(cu, result, "asking the GPU for its memory", err);
}

/* One GPU; its architecture, or 0 if it cannot be used. */
static int doctor_gpu(const doctor_state *doctor, int index) {
    const tc__cu *cu = &doctor->cu;
    tc__cu_device device = 0;
    char what[32], name[128] = "?";
    int major = 0, minor = 0, sms = 0, integrated = 0;
    size_t total = 0, free_bytes = 0;
    tc_error reason;
    snprintf(what, sizeof what, "GPU %d", index);
    tc__cu_result result = cu->device_get(&device, index);
    if (!result) result = cu->device_name(name, sizeof name, device);
    if (!result) result = cu->device_attribute(&major, TC__CU_ATTRIBUTE_MAJOR, device);
    if (!result) result = cu->device_attribute(&minor, TC__CU_ATTRIBUTE_MINOR, device);
    if (!result) result = cu->device_attribute(&sms, TC__CU_ATTRIBUTE_SM_COUNT, device);
    if (!result) result = cu->device_attribute(&integrated, TC__CU_ATTRIBUTE_INTEGRATED, device);
    if (!result) result = cu->device_memory(&total, device);
    int code = tc__cu_check(cu, result, "asking the driver about the GPU", &reason);
    int arch = 10 * major + minor;
    if (!code && arch < 80)
        code = tc__fail(&reason, TC_ERR_DEVICE, "compute capability 8.0 or newer is needed");
    if (!code) code = doctor_gpu_memory(cu, device, &free_bytes, &reason);
    doctor_say(doctor, what, "%s, compute capability %d.%d, %d SMs, %.1f GiB of %smemory", name,
               major, minor, sms, (double)total / (1 << 30), integrated ? "the system's " : "");
    if (code)
        doctor_say(doctor, "", "cannot be used: %s", reason.message);
    else
        doctor_say(doctor, "", "%.1f GiB of it are free", (double)free_bytes / (1 << 30));
    return code ? 0 : arch;
}

static void doctor_driver(doctor_state *doctor) {
    char path[1024];
    int count = 0;
    tc_error reason;
    if (tc__cu_open(&doctor->cu, &reason)) {
        doctor_say(doctor, "driver", "%s", reason.message);
        return;
    }
    doctor->cu.driver_version(&doctor->version);
    doctor_file("libcuda.so", "libcuda.so.1", path, sizeof path);
    doctor_say(doctor, "driver", "CUDA %d.%d, %s", doctor->version / 1000,
               doctor->version % 1000 / 10, path);
    tc__cu_result result = doctor->cu.device_count(&count);
    if (tc__cu_check(&doctor->cu, result, "counting GPUs", &reason))
        doctor_say(doctor, "GPU", "%s", reason.message);
    else if (count == 0)
        doctor_say(doctor, "GPU", "the driver shows none (CUDA_VISIBLE_DEVICES hides GPUs)");
    for (int i = 0; i < count; i++) {
        int arch = doctor_gpu(doctor, i);
        if (i == 0) doctor->arch = arch;
    }
    tc__cu_close(&doctor->cu);
}

/* ---- NVRTC ---- */

/* Compiles a kernel: only that shows whether its libnvrtc-builtins is there. */
static bool doctor_compiles(const tc__nvrtc *nvrtc, int arch, char *complaint, size_t size) {
    static const char source[] =
        "extern \"C\" __global__ void probe(float *x) { *x = __expf(*x); }\n";
    tc__nvrtc_program program = NULL;
    char option[48];
    size_t length = 0;
    snprintf(option, sizeof option, "--gpu-architecture=sm_%d", arch);
    const char *options[] = {option};
    int status = nvrtc->create(&program, source, "probe.cu", 0, NULL, NULL);
    snprintf(complaint, size, "error %d", status);
    if (status) return false;
    status = nvrtc->compile(program, 1, options);
    snprintf(complaint, size, "error %d", status);
    if (status && !nvrtc->log_size(program, &length) && length > 1 && length < size)
        nvrtc->log(program, complaint);
    complaint[strcspn(complaint, "\n")] = 0;
    nvrtc->destroy(&program);
    return status == 0;
}

static void doctor_nvrtc(doctor_state *doctor) {
    tc__nvrtc nvrtc;
    tc_error err;
    char path[1024], complaint[1024];
    int count = 0, archs[128] = {0}, newest = 0;
    if (tc__nvrtc_open(&nvrtc, doctor->version, &err)) {
        doctor_say(doctor, "NVRTC", "%s", err.message);
        return;
    }
    if (!nvrtc.arch_count(&count) && count > 0 && count <= (int)TC_COUNT(archs) &&
        !nvrtc.archs(archs))
        for (int i = 0; i < count; i++) newest = archs[i] > newest ? archs[i] : newest;
    doctor_file("libnvrtc.so", nvrtc.path, path, sizeof path);
    doctor_say(doctor, "NVRTC", "%d.%d, %s, for GPUs up to sm_%d", nvrtc.major, nvrtc.minor, path,
               newest);
    doctor->nvrtc = doctor_compiles(&nvrtc, newest, complaint, sizeof complaint);
    if (!doctor->nvrtc) doctor_say(doctor, "", "cannot compile: %s", complaint);
    if (doctor->nvrtc && doctor->arch > newest)
        doctor_say(doctor, "", "older than GPU 0: the driver translates kernels for sm_%d", newest);
    tc__nvrtc_close(&nvrtc);
}

/* ---- the rest ---- */

/* Cuts a path down to the folder that exists. */
static void doctor_existing(char *path) {
    while (access(path, F_OK)) {
        char *slash = strrchr(path, '/');
        if (!slash) {
            strcpy(path, ".");
        } else if (slash == path) {
            path[1] = 0;
            return;
        } else {
            *slash = 0;
        }
    }
}

/* Whether files can be made in the cache's folder, or the folder itself if it is not there yet. */
static void doctor_cache(const doctor_state *doctor) {
    char folder[768], parent[768];
    tc__jit_folder(folder, sizeof folder);
    if (!*folder) {
        doctor_say(doctor, "cache", "none: HOME is not set; every start on a GPU compiles");
        return;
    }
    snprintf(parent, sizeof parent, "%s", folder);
    doctor_existing(parent);
    if (access(parent, W_OK | X_OK) == 0)
        doctor_say(doctor, "cache", "%s, %s", folder,
                   strcmp(parent, folder) ? "will be made when it is needed" : "writable");
    else
        doctor_say(doctor, "cache", "%s cannot be written: %s: %s; every start on a GPU compiles",
                   folder, parent, strerror(errno));
}

static void doctor_cpu(const doctor_state *doctor) {
    const char *level = getenv("TINYCHAT_CPU");
    const tc__kernels *kernels;
    tc_error err;
    if (tc__kernels_choose(level && *level ? level : NULL, &kernels, &err))
        doctor_say(doctor, "CPU", "%s", err.message);
    else
        doctor_say(doctor, "CPU", "%s kernels, %d thread%s, %.1f GiB of memory available",
                   kernels->name, tc__processors(), tc__processors() == 1 ? "" : "s",
                   (double)tc__available_memory() / (1 << 30));
}

static void doctor_environment(const doctor_state *doctor) {
    static const char *const names[] = {
        "CUDA_VISIBLE_DEVICES", "CUDA_HOME",      "TINYCHAT_ARCH", "TINYCHAT_NVRTC",
        "TINYCHAT_KERNELS",     "TINYCHAT_CACHE", "TINYCHAT_CPU",  "TINYCHAT_INTEGRATED"};
    for (size_t i = 0; i < TC_COUNT(names); i++)
        if (getenv(names[i]))
            doctor_say(doctor, "environment", "%s=%s", names[i], getenv(names[i]));
}

int tc_doctor(void (*line)(void *user, const char *text), void *user) {
    doctor_state doctor;
    memset(&doctor, 0, sizeof doctor);
    doctor.line = line;
    doctor.user = user;
    doctor_say(&doctor, "tinychat", "%s", TC_VERSION);
    doctor_driver(&doctor);
    doctor_nvrtc(&doctor);
    doctor_cache(&doctor);
    doctor_cpu(&doctor);
    doctor_environment(&doctor);
    if (doctor.arch && doctor.nvrtc)
        doctor_say(&doctor, "device auto", "takes GPU 0");
    else if (doctor.arch)
        doctor_say(&doctor, "device auto",
                   "takes GPU 0 for models whose kernels are in the cache, "
                   "else the CPU: NVRTC cannot be used");
    else
        doctor_say(&doctor, "device auto", "takes the CPU: there is no GPU 0 that can be used");
    return doctor.arch && doctor.nvrtc;
}
