#include "jit.h"
#include "threads.h"

#include <errno.h>
#ifdef __GLIBC__
#include <malloc.h>
#endif
#include <pthread.h>
#include <sys/stat.h>

#define JIT_MAGIC "TCJIT001" /* 8 bytes, no terminator in the file */
#define JIT_MAX_FILES 16     /* of the sources */
#define JIT_MAX_PROGRAMS 32
#define JIT_THREADS 6

/* ---- the key ---- */

/* FNV-1a, 64 bits, from two starting points: 128 bits name the input. Guards against mix-ups, not
 * against an attacker who can write to the user's cache folder. */
static void jit_hash(uint64_t hash[2], const char *text) {
    for (; *text; text++)
        for (int i = 0; i < 2; i++) hash[i] = (hash[i] ^ (unsigned char)*text) * 0x100000001B3ull;
    for (int i = 0; i < 2; i++) hash[i] *= 0x100000001B3ull; /* ends differ from continuations */
}

/* The source files: the built-in ones, or those of the folder TINYCHAT_KERNELS while developing. */
typedef struct jit_sources {
    const char *names[JIT_MAX_FILES], *texts[JIT_MAX_FILES];
    tc__buf files[JIT_MAX_FILES];
    int count;
} jit_sources;

static int jit_read_file(const char *folder, const char *name, tc__buf *out, tc_error *err) {
    char path[1024];
    tc__map map;
    snprintf(path, sizeof path, "%s/%s", folder, name);
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    tc__buf_add(out, map.data, map.size);
    tc__map_close(&map);
    return out->failed ? tc__fail_memory(err, "a kernel source", out->len) : TC_OK;
}

static void jit_free_sources(jit_sources *sources) {
    for (int i = 0; i < JIT_MAX_FILES; i++) tc__buf_free(&sources->files[i]);
}

/* On failure nothing is held. */
static int jit_read_sources(jit_sources *sources, tc_error *err) {
    const char *folder = getenv("TINYCHAT_KERNELS");
    memset(sources, 0, sizeof *sources);
    for (int i = 0; i < JIT_MAX_FILES; i++) {
        const char *name, *text = tc_kernel_source(i, &name);
        if (!text) break;
        sources->names[i] = name;
        sources->texts[i] = text;
        sources->count = i + 1;
        if (!folder || !*folder) continue;
        int code = jit_read_file(folder, name, &sources->files[i], err);
        if (code) {
            jit_free_sources(sources);
            return code;
        }
        sources->texts[i] = sources->files[i].data;
    }
    return TC_OK;
}

/* ---- the cache ---- */

void tc__jit_folder(char *path, size_t size) {
    const char *own = getenv("TINYCHAT_CACHE"), *xdg = getenv("XDG_CACHE_HOME");
    const char *home = getenv("HOME");
    path[0] = 0;
    if (own && *own)
        snprintf(path, size, "%s", own);
    else if (xdg && *xdg)
        snprintf(path, size, "%s/tinychat", xdg);
    else if (home && *home)
        snprintf(path, size, "%s/.cache/tinychat", home);
}

static void jit_make_folders(char *path) {
    for (char *slash = path + 1; *slash; slash++)
        if (*slash == '/') {
            *slash = 0;
            mkdir(path, 0700);
            *slash = '/';
        }
    mkdir(path, 0700);
}

typedef struct jit_entry { /* before the image in a cache file */
    char magic[8];
    uint64_t key[2], size;
    uint32_t crc, nvrtc; /* the image's; the version, with JIT_LESS if it knew less than was asked */
} jit_entry;
#define JIT_LESS 0x80000000u

static bool jit_cache_read(const char *path, const uint64_t key[2], tc__buf *image,
                           uint32_t *nvrtc) {
    tc__map map;
    jit_entry entry;
    if (tc__map_open(path, &map, NULL)) return false;
    bool good = map.size > sizeof entry;
    if (good) {
        memcpy(&entry, map.data, sizeof entry);
        const uint8_t *bytes = map.data + sizeof entry;
        good = memcmp(entry.magic, JIT_MAGIC, 8) == 0 && entry.key[0] == key[0] &&
               entry.key[1] == key[1] && entry.size == map.size - sizeof entry &&
               entry.crc == tc__crc32(0, bytes, map.size - sizeof entry);
        if (good) tc__buf_add(image, bytes, map.size - sizeof entry);
        good = good && !image->failed;
        *nvrtc = good ? entry.nvrtc : 0;
    }
    tc__map_close(&map);
    return good;
}

static void jit_cache_write(const char *path, const uint64_t key[2], const tc__buf *image,
                            uint32_t nvrtc) {
    tc__replace file;
    jit_entry entry;
    memset(&entry, 0, sizeof entry);
    memcpy(entry.magic, JIT_MAGIC, sizeof entry.magic);
    memcpy(entry.key, key, sizeof entry.key);
    entry.size = image->len;
    entry.crc = tc__crc32(0, image->data, image->len);
    entry.nvrtc = nvrtc;
    if (tc__replace_open(&file, path, NULL)) return;
    bool good = fwrite(&entry, sizeof entry, 1, file.file) == 1 &&
                fwrite(image->data, image->len, 1, file.file) == 1;
    if (good)
        tc__replace_commit(&file, NULL); /* a full disk only means no cache */
    else
        tc__replace_abort(&file);
}

/* ---- compiling ---- */

typedef struct jit_job {
    tc__jit_program *program;
    const tc__jit_target *target;
    char arch[32]; /* what NVRTC is asked for: "sm_90a", or of the newest it knows "compute_90" */
    bool as_ptx;
    bool less; /* than the target: NVRTC is too old for it */
    const tc__nvrtc *nvrtc;
    const jit_sources *sources;
} jit_job;

/* The first line of the compiler's log that speaks of an error. */
static int jit_complaint(const jit_job *job, tc__nvrtc_program handle, int status, tc_error *err) {
    size_t size = 0;
    char *log = NULL, *line = NULL;
    if (job->nvrtc->log_size(handle, &size) == 0 && (log = tc__calloc(size + 1, 1)) != NULL &&
        job->nvrtc->log(handle, log) == 0)
        line = strstr(log, "error") ? log : NULL;
    for (char *at = log; line && at && *at; at++)
        if (strncmp(at, "error", 5) == 0) {
            for (line = at; line > log && line[-1] != '\n';) line--;
            break;
        }
    tc__fail(err, TC_ERR_DEVICE, "NVRTC %d.%d (%s) cannot compile the %s kernels for %s: %.600s",
             job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->program->name, job->arch,
             line          ? line
             : status == 5 ? "an option was not accepted"
                           : "no message");
    free(log);
    return TC_ERR_DEVICE;
}

static int jit_take_image(const jit_job *job, tc__nvrtc_program handle, tc_error *err) {
    const tc__nvrtc *nvrtc = job->nvrtc;
    bool ptx = job->as_ptx;
    size_t size = 0;
    if ((ptx ? nvrtc->ptx_size(handle, &size) : nvrtc->cubin_size(handle, &size)) || !size)
        return tc__fail(err, TC_ERR_DEVICE, "NVRTC gave no image for the %s kernels",
                        job->program->name);
    char *bytes = malloc(size);
    if (!bytes) return tc__fail_memory(err, "compiled kernels", size);
    int status = ptx ? nvrtc->ptx(handle, bytes) : nvrtc->cubin(handle, bytes);
    if (!status) tc__buf_add(&job->program->image, bytes, size);
    free(bytes);
    if (status || job->program->image.failed) return tc__fail_memory(err, "compiled kernels", size);
    return TC_OK;
}

static void *jit_compile(void *argument) {
    jit_job *job = argument;
    tc_error *err = &job->program->error;
    tc__nvrtc_program handle = NULL;
    char arch[64], limit[64];
    snprintf(arch, sizeof arch, "--gpu-architecture=%s", job->arch);
    snprintf(limit, sizeof limit, "-DSHARED_LIMIT=%d", job->target->shared_limit);
    const char *options[] = {arch, limit, "--std=c++17"};
    char name[64];
    snprintf(name, sizeof name, "%s.cu", job->program->name);
    int status = job->nvrtc->create(&handle, job->program->text, name, job->sources->count,
                                    job->sources->texts, job->sources->names);
    if (status) {
        tc__fail(err, TC_ERR_DEVICE, "NVRTC cannot create a program (error %d)", status);
        return NULL;
    }
    status = job->nvrtc->compile(handle, TC_COUNT(options), options);
    if (status)
        jit_complaint(job, handle, status, err);
    else
        jit_take_image(job, handle, err);
    job->nvrtc->destroy(&handle);
    return NULL;
}

static void jit_key(uint64_t key[2], const tc__jit_program *program, const tc__jit_target *target,
                    const jit_sources *sources) {
    char numbers[128];
    key[0] = 0xCBF29CE484222325ull;
    key[1] = 0x84222325CBF29CE4ull;
    snprintf(numbers, sizeof numbers, "%d %d %d %d %d " TC_VERSION, target->arch, target->as_ptx,
             target->specific, target->driver, target->shared_limit);
    jit_hash(key, numbers);
    jit_hash(key, program->name);
    jit_hash(key, program->text);
    for (int i = 0; i < sources->count; i++) {
        jit_hash(key, sources->names[i]);
        jit_hash(key, sources->texts[i]);
    }
}

/* What NVRTC is asked for. Older than the GPU: the newest architecture that it knows, as PTX, which
 * the driver turns into machine code. The targets of one architecture only came with NVRTC 12. */
static int jit_fit(jit_job *job, tc_error *err) {
    int count = 0, archs[128], newest = 0;
    bool known = false;
    if (job->nvrtc->arch_count(&count) || count < 1 || count > (int)TC_COUNT(archs) ||
        job->nvrtc->archs(archs))
        count = 0;
    for (int i = 0; i < count; i++) {
        known |= archs[i] == job->target->arch;
        if (archs[i] <= job->target->arch && archs[i] > newest) newest = archs[i];
    }
    if (!known && newest < 80)
        return tc__fail(
            err, TC_ERR_DEVICE,
            "NVRTC %d.%d (%s) knows no architecture from 8.0 to the GPU's %d.%d; install a "
            "newer one: pip install nvidia-cuda-nvrtc-cu12",
            job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->target->arch / 10,
            job->target->arch % 10);
    job->as_ptx = job->target->as_ptx || !known;
    bool specific = job->target->specific && !job->as_ptx && job->nvrtc->major >= 12;
    job->less = job->as_ptx != job->target->as_ptx || specific != job->target->specific;
    snprintf(job->arch, sizeof job->arch, "%s_%d%s", job->as_ptx ? "compute" : "sm",
             known ? job->target->arch : newest, specific ? "a" : "");
    return TC_OK;
}

/* A remark where kernels are not what they could be. */
static void jit_tell(const jit_job *job, const tc_model_params *params) {
    char line[640];
    if (!params || !params->log || !job->less) return;
    snprintf(line, sizeof line,
             "NVRTC %d.%d (%s) is older than the GPU: the kernels are made for %s%s",
             job->nvrtc->major, job->nvrtc->minor, job->nvrtc->path, job->arch,
             job->as_ptx ? " and translated by the driver" : " and slower than they could be");
    params->log(params->user, line);
}

/* Jobs for a few threads, each of which takes the next one. The compiler holds about 30 MB for
 * each: so few that a machine with many processors does not need a GB. */
typedef struct jit_queue {
    jit_job *jobs[JIT_MAX_PROGRAMS];
    size_t n, next, done;
    pthread_mutex_t lock;
    pthread_cond_t changed;
} jit_queue;

static void *jit_work(void *argument) {
    jit_queue *queue = argument;
    pthread_mutex_lock(&queue->lock);
    while (queue->next < queue->n) {
        jit_job *job = queue->jobs[queue->next++];
        pthread_mutex_unlock(&queue->lock);
        jit_compile(job);
        pthread_mutex_lock(&queue->lock);
        queue->done++;
        pthread_cond_signal(&queue->changed);
    }
    pthread_mutex_unlock(&queue->lock);
    return NULL;
}

/* Tells the caller of each program that is done. True if no more are wanted. */
static bool jit_watch(jit_queue *queue, const tc_model_params *params) {
    bool cancelled = false;
    pthread_mutex_lock(&queue->lock);
    for (size_t told = 0; told < queue->n && !cancelled;) {
        while (queue->done == told) pthread_cond_wait(&queue->changed, &queue->lock);
        told = queue->done;
        pthread_mutex_unlock(&queue->lock);
        cancelled =
            params && params->progress &&
            params->progress(params->user, (double)told / (double)queue->n, "compiling kernels");
        pthread_mutex_lock(&queue->lock);
    }
    if (cancelled) queue->n = queue->next; /* those that have begun are awaited */
    pthread_mutex_unlock(&queue->lock);
    return cancelled;
}

static int jit_run(jit_queue *queue, const tc_model_params *params, tc_error *err) {
    pthread_t threads[JIT_THREADS];
    int running = 0;
    const int most = tc__processors() < JIT_THREADS ? tc__processors() : JIT_THREADS;
    pthread_mutex_init(&queue->lock, NULL);
    pthread_cond_init(&queue->changed, NULL);
    while (running < most && !pthread_create(&threads[running], NULL, jit_work, queue)) running++;
    if (!running) jit_work(queue);
    const bool cancelled = jit_watch(queue, params);
    while (running > 0) pthread_join(threads[--running], NULL);
    pthread_cond_destroy(&queue->changed);
    pthread_mutex_destroy(&queue->lock);
#ifdef __GLIBC__
    malloc_trim(0); /* what the compiler's threads have freed stays with the process else */
#endif
    return cancelled ? tc__fail(err, TC_ERR_CANCELLED, "cancelled while compiling kernels") : TC_OK;
}

static uint32_t jit_version(const tc__nvrtc *nvrtc) {
    return (uint32_t)(nvrtc->major * 1000 + nvrtc->minor);
}

/* Takes back what an NVRTC that was too old for the GPU has made, if now there is another one.
 * `made`: of each program, what the cache says of it. */
static bool jit_drop_outdated(tc__jit_program *programs, const uint32_t *made, size_t n,
                              int driver) {
    tc__nvrtc nvrtc;
    tc_error err;
    bool dropped = false;
    uint32_t all = 0;
    for (size_t i = 0; i < n; i++) all |= made[i];
    if (!(all & JIT_LESS) || tc__nvrtc_open(&nvrtc, driver, &err)) return false;
    for (size_t i = 0; i < n; i++) {
        if (!(made[i] & JIT_LESS) || made[i] == (jit_version(&nvrtc) | JIT_LESS)) continue;
        tc__buf_free(&programs[i].image);
        programs[i].cached = false;
        dropped = true;
    }
    tc__nvrtc_close(&nvrtc);
    return dropped;
}

static int jit_compile_missing(jit_job *jobs, size_t n, const tc_model_params *params,
                               uint32_t *version, tc_error *err) {
    tc__nvrtc nvrtc;
    jit_queue queue;
    memset(&queue, 0, sizeof queue);
    int code = tc__nvrtc_open(&nvrtc, jobs->target->driver, err);
    if (code) return code;
    *version = jit_version(&nvrtc);
    for (size_t i = 0; i < n && !code; i++) {
        if (jobs[i].program->cached) continue;
        jobs[i].nvrtc = &nvrtc;
        code = jit_fit(&jobs[i], err);
        if (!code && !queue.n) jit_tell(&jobs[i], params);
        queue.jobs[queue.n++] = &jobs[i];
    }
    if (!code) code = jit_run(&queue, params, err);
    for (size_t i = 0; i < n && !code; i++) {
        code = jobs[i].program->error.code;
        if (code && err) *err = jobs[i].program->error;
    }
    tc__nvrtc_close(&nvrtc);
    return code;
}

int tc__jit(tc__jit_program *programs, size_t n, const tc__jit_target *target,
            const tc_model_params *progress, tc_error *err) {
    jit_sources sources;
    jit_job jobs[JIT_MAX_PROGRAMS];
    uint64_t keys[JIT_MAX_PROGRAMS][2];
    char folder[768], paths[JIT_MAX_PROGRAMS][1024];
    uint32_t made[JIT_MAX_PROGRAMS] = {0};
    bool missing = false;
    memset(jobs, 0, sizeof jobs);
    int code = n > JIT_MAX_PROGRAMS ? TC_ERR_ARGUMENT : jit_read_sources(&sources, err);
    if (code) return code;
    tc__jit_folder(folder, sizeof folder);
    for (size_t i = 0; i < n; i++) {
        jit_key(keys[i], &programs[i], target, &sources);
        snprintf(paths[i], sizeof paths[i], "%s/%s-%s%d%s-%016llx.bin", folder, programs[i].name,
                 target->as_ptx ? "compute" : "sm", target->arch, target->specific ? "a" : "",
                 (unsigned long long)keys[i][0]);
        programs[i].cached =
            folder[0] && jit_cache_read(paths[i], keys[i], &programs[i].image, &made[i]);
        missing |= !programs[i].cached;
        jobs[i].program = &programs[i];
        jobs[i].target = target;
        jobs[i].sources = &sources;
    }
    missing |= jit_drop_outdated(programs, made, n, target->driver);
    if (missing) {
        uint32_t version = 0;
        code = jit_compile_missing(jobs, n, progress, &version, err);
        if (!code && folder[0]) jit_make_folders(folder);
        for (size_t i = 0; i < n && !code && folder[0]; i++)
            if (!programs[i].cached)
                jit_cache_write(paths[i], keys[i], &programs[i].image,
                                jobs[i].less ? version | JIT_LESS : version);
    }
    jit_free_sources(&sources);
    return code;
}

/* ---- carried in a file ---- */

#define JIT_BUNDLE_MAGIC "TCKERN01"

typedef struct jit_bundle { /* before the rest of the file */
    char magic[8];
    char what[240]; /* NUL-terminated */
    uint32_t crc;   /* of what follows */
    uint32_t count; /* of the programs */
    uint64_t size;  /* of the rest */
} jit_bundle;

typedef struct jit_carried { /* `count` of them; their images follow behind the last */
    uint64_t key[2], size;
} jit_carried;

static uint32_t jit_bundle_crc(const jit_bundle *head, const void *rest, size_t size) {
    return tc__crc32(tc__crc32(0, &head->count, sizeof head->count), rest, size);
}

/* Of a program for any driver: the file may go to a machine with another one. */
static void jit_carried_key(uint64_t key[2], const tc__jit_program *program,
                            const tc__jit_target *target, const jit_sources *sources) {
    tc__jit_target any = *target;
    any.driver = 0;
    jit_key(key, program, &any, sources);
}

int tc__jit_export(const char *path, const char *what, const tc__jit_program *programs, size_t n,
                   const tc__jit_target *target, tc_error *err) {
    jit_bundle head;
    jit_sources sources;
    tc__replace file;
    tc__buf rest = {NULL, 0, 0, false};
    int code = jit_read_sources(&sources, err);
    if (code) return code;
    for (size_t i = 0; i < n; i++) {
        jit_carried entry = {{0, 0}, programs[i].image.len};
        jit_carried_key(entry.key, &programs[i], target, &sources);
        tc__buf_add(&rest, &entry, sizeof entry);
    }
    for (size_t i = 0; i < n; i++)
        tc__buf_add(&rest, programs[i].image.data, programs[i].image.len);
    jit_free_sources(&sources);
    memset(&head, 0, sizeof head);
    memcpy(head.magic, JIT_BUNDLE_MAGIC, sizeof head.magic);
    snprintf(head.what, sizeof head.what, "%s", what);
    head.count = (uint32_t)n;
    head.size = rest.len;
    if (rest.failed) return tc__fail_memory(err, "compiled kernels", rest.len);
    head.crc = jit_bundle_crc(&head, rest.data, rest.len);
    code = tc__replace_open(&file, path, err);
    if (!code) {
        fwrite(&head, sizeof head, 1, file.file); /* the commit looks whether all went well */
        fwrite(rest.data, rest.len, 1, file.file);
        code = tc__replace_commit(&file, err);
    }
    tc__buf_free(&rest);
    return code;
}

/* The header, after all of the file was checked. */
static int jit_bundle_check(const tc__map *map, const char *path, jit_bundle *head, tc_error *err) {
    if (map->size >= sizeof *head) memcpy(head, map->data, sizeof *head);
    if (map->size < sizeof *head || memcmp(head->magic, JIT_BUNDLE_MAGIC, sizeof head->magic))
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: not a file of compiled kernels; chat --export-kernels writes one",
                        path);
    const uint8_t *rest = map->data + sizeof *head;
    bool whole = head->size == map->size - sizeof *head && head->count <= JIT_MAX_PROGRAMS &&
                 head->count * sizeof(jit_carried) <= head->size &&
                 head->crc == jit_bundle_crc(head, rest, (size_t)head->size) &&
                 !head->what[sizeof head->what - 1];
    if (!whole)
        return tc__fail(err, TC_ERR_FORMAT,
                        "%s: the file of compiled kernels is damaged; copy or export it again",
                        path);
    return TC_OK;
}

/* The image with this key; NULL if the file has none. */
static const uint8_t *jit_bundle_find(const tc__map *map, const jit_bundle *head,
                                      const uint64_t key[2], size_t *size) {
    const uint8_t *entries = map->data + sizeof *head;
    size_t at = sizeof *head + head->count * sizeof(jit_carried);
    for (uint32_t i = 0; i < head->count; i++) {
        jit_carried entry;
        memcpy(&entry, entries + i * sizeof entry, sizeof entry);
        if (entry.size > map->size - at) return NULL;
        *size = (size_t)entry.size;
        if (entry.key[0] == key[0] && entry.key[1] == key[1]) return map->data + at;
        at += (size_t)entry.size;
    }
    return NULL;
}

int tc__jit_import(const char *path, const char *what, tc__jit_program *programs, size_t n,
                   const tc__jit_target *target, tc_error *err) {
    jit_bundle head;
    jit_sources sources;
    tc__map map;
    int code = tc__map_open(path, &map, err);
    if (code) return code;
    code = jit_bundle_check(&map, path, &head, err);
    if (!code) code = jit_read_sources(&sources, err);
    for (size_t i = 0; i < n && !code; i++) {
        uint64_t key[2];
        size_t size = 0;
        jit_carried_key(key, &programs[i], target, &sources);
        const uint8_t *image = jit_bundle_find(&map, &head, key, &size);
        if (image) tc__buf_add(&programs[i].image, image, size);
        if (!image)
            code = tc__fail(err, TC_ERR_UNSUPPORTED,
                            "%s holds kernels for %s; needed are those for %s; export them anew",
                            path, head.what, what);
        else if (programs[i].image.failed)
            code = tc__fail_memory(err, "compiled kernels", size);
        programs[i].cached = image != NULL;
        if (i + 1 == n || code) jit_free_sources(&sources);
    }
    tc__map_close(&map);
    return code;
}
