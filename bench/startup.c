/* startup - how long a model takes from the start of a process to its first token, and where the
 * time goes. Each run is a process of its own.
 *
 *     build/release/bench/startup MODEL [RUNS]
 *
 * Prints one line of JSON: the rate of a plain loop that copies pinned memory to the GPU; the rate
 * at which loading copied the file; and of each run the seconds that each step took, one after the
 * other: opening the GPU, preparing kernels, loading weights, and the session with the first token.
 */
#include "src/gpu_driver.h"
#include "tinychat.h"

#include <sys/wait.h>
#include <unistd.h>

typedef struct run {
    double gpu, kernels, loading, first_token, total; /* seconds */
    double load_rate;                                 /* bytes per second */
    char device[256];
} run;

typedef struct watch {
    double kernels, loading, ready; /* when these steps were first heard of */
} watch;

static int on_progress(void *user, double fraction, const char *what) {
    watch *w = user;
    double *step = strstr(what, "kernels")   ? &w->kernels
                   : strcmp(what, "loading") ? &w->ready
                                             : &w->loading;
    if (*step == 0 && (step != &w->ready || fraction == 1)) *step = tc_seconds();
    return 0;
}

static int measure(const char *path, run *r) {
    static const int32_t prompt[] = {1, 2, 3, 4};
    const double start = tc_seconds();
    watch w = {0, 0, 0};
    tc_model_params params = tc_model_default_params();
    tc_model *model;
    tc_session *session;
    tc_error err;
    int32_t id;
    params.device = "cuda";
    params.progress = on_progress;
    params.user = &w;
    int code = tc_model_open(path, &params, &model, &err);
    if (!code) code = tc_session_open(model, NULL, &session, &err);
    if (!code) code = tc_eval(session, prompt, 4, &err);
    if (!code) code = tc_sample(session, NULL, &id, &err);
    const double end = tc_seconds();
    if (code) {
        fprintf(stderr, "startup: %s\n", err.message);
        return code;
    }
    tc_model_info info = tc_model_get_info(model);
    snprintf(r->device, sizeof r->device, "%s", info.device);
    r->gpu = w.kernels - start;
    r->kernels = w.loading - w.kernels;
    r->loading = w.ready - w.loading;
    r->first_token = end - w.ready;
    r->total = end - start;
    r->load_rate = (double)info.weight_bytes / r->loading;
    return 0;
}

/* Bytes per second of copies of 64 MiB from pinned memory, one behind the other. */
static double plain_copy(void) {
    enum { BYTES = 64 << 20, COPIES = 60 };
    tc__cu cu;
    tc__cu_device device;
    tc__cu_context context;
    tc__cu_ptr to = 0;
    void *from = NULL;
    tc_error err;
    double start = 0, end = 0;
    if (tc__cu_open(&cu, &err)) return 0;
    int bad = cu.device_get(&device, 0) || cu.context_retain(&context, device) ||
              cu.context_push(context) || cu.allocate(&to, BYTES) ||
              cu.host_allocate(&from, BYTES, 0);
    if (!bad) memset(from, 1, BYTES);
    for (int i = 0; i <= COPIES && !bad; i++) {
        if (i == 1) {
            bad = cu.stream_wait(NULL);
            start = tc_seconds();
        }
        bad = bad || cu.copy_to_device(to, from, BYTES, NULL);
    }
    bad = bad || cu.stream_wait(NULL);
    end = tc_seconds();
    return bad ? 0 : (double)BYTES * COPIES / (end - start);
}

/* Calls body in a process of its own, which leaves its result in `result`. */
static int apart(int (*body)(const char *, void *), const char *path, void *result, size_t size) {
    int ends[2], status = -1;
    if (pipe(ends)) return 1;
    fflush(NULL);
    pid_t child = fork();
    if (child == 0) _exit(body(path, result) || write(ends[1], result, size) != (ssize_t)size);
    close(ends[1]);
    int bad = child < 0 || read(ends[0], result, size) != (ssize_t)size;
    close(ends[0]);
    if (child > 0) waitpid(child, &status, 0);
    return bad || status;
}

static int measure_apart(const char *path, void *result) {
    return measure(path, result);
}
static int copy_apart(const char *path, void *result) {
    (void)path;
    return (*(double *)result = plain_copy()) <= 0;
}

int main(int argc, char **argv) {
    int runs = argc > 2 ? atoi(argv[2]) : 5;
    double plain = 0;
    if (argc < 2 || runs < 1) {
        fprintf(stderr, "usage: startup MODEL [RUNS]\n");
        return 2;
    }
    if (apart(copy_apart, NULL, &plain, sizeof plain)) return 1;
    printf("{\"plain_copy_gbs\": %.4g, \"runs\": [", plain * 1e-9);
    for (int i = 0; i < runs; i++) {
        run r = {0};
        if (apart(measure_apart, argv[1], &r, sizeof r)) return 1;
        if (i == 0) fprintf(stderr, "%s\n", r.device);
        printf("%s{\"gpu_s\": %.4f, \"kernels_s\": %.4f, \"loading_s\": %.4f, \"load_gbs\": %.4g, "
               "\"first_token_s\": %.4f, \"total_s\": %.4f}",
               i ? ", " : "", r.gpu, r.kernels, r.loading, r.load_rate * 1e-9, r.first_token,
               r.total);
    }
    printf("]}\n");
    return 0;
}
