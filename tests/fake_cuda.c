/* fake_cuda - a libcuda.so.1 that computes nothing but is as strict as the real one, for tests of
 * everything around the kernels on machines without a GPU. Images are read (cubin and PTX): kernels
 * and variables are found, or not, by their names; launches are held against what the kernel was
 * compiled for and what the GPU has; memory is memory of the host, counted, of which nothing is
 * touched that nobody writes; handles must be alive and of the right kind; contexts are stacks of
 * threads. What a real driver would refuse, or crash on, is an error and a complaint
 * (fake_cuda.h).
 */
#define _DEFAULT_SOURCE /* memory without a file, MAP_NORESERVE */
#include "fake_cuda.h"
#include "src/gpu_driver.h"

#include <elf.h>
#include <pthread.h>
#include <sys/mman.h>

enum {
    INVALID_VALUE = 1,
    NOT_INITIALISED = 3,
    INVALID_DEVICE = 101,
    INVALID_IMAGE = 200,
    INVALID_CONTEXT = 201,
    NO_BINARY = 209,
    INVALID_HANDLE = 400,
    ILLEGAL_ADDRESS = 700,
    NOT_FOUND = 500,
    OUT_OF_RESOURCES = 701,
    CAPTURE_UNSUPPORTED = 900,
    CAPTURE_INVALIDATED = 901
};
#define DEVICES 8

fake_driver fake_cuda;
static bool initialised;
static pthread_mutex_t lock = PTHREAD_MUTEX_INITIALIZER;

/* Remembers a mistake of the caller's; returns the error of the call. */
static tc__cu_result wrong(tc__cu_result result, const char *format, ...) TC_PRINTF(2, 3);
static tc__cu_result wrong(tc__cu_result result, const char *format, ...) {
    va_list args;
    va_start(args, format);
    if (!fake_cuda.wrong++)
        vsnprintf(fake_cuda.complaint, sizeof fake_cuda.complaint, format, args);
    va_end(args);
    return result;
}

/* Begins a call: whether it was told to fail. `may`: it counts among those that may. */
static tc__cu_result enter(const char *function, bool may) {
    pthread_mutex_lock(&lock);
    fake_cuda.calls += may;
    const bool meant = *fake_cuda.fail_function ? !strcmp(fake_cuda.fail_function, function) : may;
    if (meant && fake_cuda.fail_at && --fake_cuda.fail_at == 0) return FAKE_TOLD_TO_FAIL;
    return 0;
}

/* A function of the driver: CALL counts among those that may fail, SAFE does not. */
#define DEFINE(function, may, parameters, arguments)                                               \
    static tc__cu_result do_##function parameters;                                                 \
    tc__cu_result function parameters;                                                             \
    tc__cu_result function parameters {                                                            \
        tc__cu_result result = enter(#function, may);                                              \
        if (!result) result = do_##function arguments;                                             \
        pthread_mutex_unlock(&lock);                                                               \
        return result;                                                                             \
    }                                                                                              \
    static tc__cu_result do_##function parameters
#define CALL(function, parameters, arguments) DEFINE(function, true, parameters, arguments)
#define SAFE(function, parameters, arguments) DEFINE(function, false, parameters, arguments)

/* ---- handles: never freed, so that one that is dead can be told ---- */

enum kind { CONTEXT = 0x7C01, MODULE, FUNCTION, STREAM, EVENT, GRAPH, EXEC };

typedef struct object {
    int kind, device;
    bool alive;
    struct object *next;
} object;
static object *objects;

static const char *kind_name(int kind) {
    static const char *const names[] = {"context", "module", "function",  "stream",
                                        "event",   "graph",  "graph exec"};
    return names[kind - CONTEXT];
}

static bool is(const void *handle, int kind) {
    const object *o = handle;
    return o && o->kind == kind && o->alive;
}

/* ---- contexts ---- */

typedef struct tc__cu_context_ {
    object object;
    int users;
} context;
static context contexts[DEVICES];

typedef struct stack {
    context *at[64];
    int depth;
} stack;
static pthread_key_t stack_key;
static pthread_once_t stack_once = PTHREAD_ONCE_INIT;

static void stack_free(void *s) {
    if (((stack *)s)->depth) wrong(0, "a thread ended with a context pushed");
    free(s);
}
static void stack_make(void) {
    pthread_key_create(&stack_key, stack_free);
}

static stack *my_stack(void) {
    pthread_once(&stack_once, stack_make);
    stack *s = pthread_getspecific(stack_key);
    if (!s && (s = calloc(1, sizeof *s)) != NULL) pthread_setspecific(stack_key, s);
    return s;
}

fake_depth_fn fake_cuda_depth;
int fake_cuda_depth(void) {
    return my_stack()->depth;
}

/* The device of the thread's context; -1 without one, which no caller may be. */
static int current(const char *function) {
    stack *s = my_stack();
    if (s->depth && s->at[s->depth - 1]->object.alive) return s->at[s->depth - 1]->object.device;
    wrong(0, "%s without a context", function);
    return -1;
}

static void *object_new(size_t size, int kind, int device) {
    object *o = calloc(1, size);
    if (!o) abort();
    o->kind = kind, o->device = device, o->alive = true;
    o->next = objects;
    objects = o;
    return o;
}

/* Is this a live handle of its kind in the current context? */
static tc__cu_result check(const void *handle, int kind, const char *function) {
    const int device = current(function);
    if (device < 0) return INVALID_CONTEXT;
    if (!is(handle, kind))
        return wrong(INVALID_HANDLE, "%s: no such %s, or no longer", function, kind_name(kind));
    if (((const object *)handle)->device == device) return 0;
    return wrong(INVALID_CONTEXT, "%s: the %s belongs to another context", function,
                 kind_name(kind));
}

/* ---- memory ---- */

typedef struct block {
    uint8_t *data;
    size_t bytes;
    int device;
    bool managed, of_host; /* managed, and so far for the CPU alone */
    const void *module;    /* whose variables it holds; NULL: allocated */
    struct block *next;
} block;
static block *blocks;
static uint8_t *space, *space_used; /* addresses for the GPUs' memory */
static size_t space_bytes;

enum { PAGE = 65536 };

static bool make_space(void) {
    const int flags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
    for (space_bytes = (size_t)1 << 41; !space && space_bytes > (size_t)1 << 33; space_bytes /= 2) {
        void *at = mmap(NULL, space_bytes, PROT_NONE, flags, -1, 0);
        if (at != MAP_FAILED) {
            space = space_used = at;
            return true;
        }
    }
    return space != NULL;
}

static block *add_block(size_t bytes, int device) {
    const size_t room = (bytes + PAGE - 1) / PAGE * PAGE;
    if (!blocks) space_used = space;
    if ((!space && !make_space()) || room + PAGE > space_bytes - (size_t)(space_used - space))
        return NULL;
    uint8_t *at = mmap(space_used, room, PROT_READ | PROT_WRITE,
                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    block *b = at == MAP_FAILED ? NULL : calloc(1, sizeof *b);
    if (!b) return NULL;
    space_used += room + PAGE; /* between blocks lies nothing */
    b->data = at, b->bytes = bytes, b->device = device;
    b->next = blocks;
    blocks = b;
    return b;
}

static void remove_block(block *b) {
    block **at = &blocks;
    while (*at != b) at = &(*at)->next;
    *at = b->next;
    mmap(b->data, (b->bytes + PAGE - 1) / PAGE * PAGE, PROT_NONE,
         MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
    free(b);
}

static block *find_block(tc__cu_ptr at) {
    for (block *b = blocks; b; b = b->next)
        if (at >= (uintptr_t)b->data && at < (uintptr_t)b->data + b->bytes) return b;
    return NULL;
}

/* May these bytes be copied or set in the current context? */
static tc__cu_result check_memory(tc__cu_ptr at, size_t bytes, const char *function) {
    const int device = current(function);
    const block *b = find_block(at);
    if (device < 0) return INVALID_CONTEXT;
    if (b && b->device == device && bytes <= (uintptr_t)b->data + b->bytes - at) return 0;
    return wrong(ILLEGAL_ADDRESS, "%s: %zu bytes at %#llx lie in no allocation", function, bytes,
                 at);
}

static void count_allocated(block *b, int sign) {
    fake_cuda.allocated += sign > 0 ? b->bytes : -b->bytes;
    fake_cuda.allocations += sign;
    fake_cuda.managed += b->managed ? sign : 0;
    if (fake_cuda.allocated > fake_cuda.most_allocated)
        fake_cuda.most_allocated = fake_cuda.allocated;
    fake_cuda.largest = NULL, fake_cuda.largest_bytes = 0;
    for (const block *x = blocks; x; x = x->next)
        if (!x->module && (sign > 0 || x != b) && x->bytes > fake_cuda.largest_bytes)
            fake_cuda.largest = x->data, fake_cuda.largest_bytes = x->bytes;
}

static bool capturing(void);

static tc__cu_result allocate(tc__cu_ptr *pointer, size_t bytes, bool managed, const char *name) {
    const int device = current(name);
    if (device < 0) return INVALID_CONTEXT;
    if (capturing()) return wrong(CAPTURE_UNSUPPORTED, "%s while capturing", name);
    if (!bytes) return wrong(INVALID_VALUE, "%s of no bytes", name);
    if (fake_cuda.allocated > fake_cuda.memory || bytes > fake_cuda.memory - fake_cuda.allocated)
        return TC__CU_OUT_OF_MEMORY;
    block *b = add_block(bytes, device);
    if (!b) return TC__CU_OUT_OF_MEMORY;
    b->managed = managed;
    count_allocated(b, 1);
    *pointer = (uintptr_t)b->data;
    return 0;
}

CALL(cuMemAlloc_v2, (tc__cu_ptr * pointer, size_t bytes), (pointer, bytes)) {
    return allocate(pointer, bytes, false, "cuMemAlloc");
}
CALL(cuMemAllocManaged, (tc__cu_ptr * pointer, size_t bytes, unsigned flags),
     (pointer, bytes, flags)) {
    if (flags != TC__CU_ATTACH_GLOBAL && flags != TC__CU_ATTACH_HOST)
        return wrong(INVALID_VALUE, "cuMemAllocManaged: flags %u", flags);
    tc__cu_result result = allocate(pointer, bytes, true, "cuMemAllocManaged");
    if (!result) blocks->of_host = flags == TC__CU_ATTACH_HOST;
    return result;
}
SAFE(cuMemFree_v2, (tc__cu_ptr pointer), (pointer)) {
    block *b = find_block(pointer);
    if (current("cuMemFree") < 0) return INVALID_CONTEXT;
    if (!b || b->module || (uintptr_t)b->data != pointer)
        return wrong(INVALID_VALUE, "cuMemFree: nothing was allocated at %#llx", pointer);
    count_allocated(b, -1);
    remove_block(b);
    return 0;
}
SAFE(cuMemGetInfo_v2, (size_t * free_bytes, size_t *total), (free_bytes, total)) {
    if (current("cuMemGetInfo") < 0) return INVALID_CONTEXT;
    *total = fake_cuda.memory;
    *free_bytes =
        fake_cuda.allocated < fake_cuda.memory ? fake_cuda.memory - fake_cuda.allocated : 0;
    return 0;
}

/* Pinned memory: of the heap, so that a sanitizer watches its ends, or the program's own. */
typedef struct pinned {
    void *data;
    size_t bytes;
    bool registered;
    struct pinned *next;
} pinned;
static pinned *pins;

static pinned *pin(void *data, size_t bytes) {
    pinned *p = calloc(1, sizeof *p);
    if (!p || !data) abort();
    p->data = data, p->bytes = bytes;
    p->next = pins;
    pins = p;
    fake_cuda.pinned += bytes;
    fake_cuda.pinned_blocks++;
    if (fake_cuda.pinned > fake_cuda.most_pinned) fake_cuda.most_pinned = fake_cuda.pinned;
    return p;
}
/* False: nothing like it is there. */
static bool unpin(const void *data, bool registered) {
    pinned **at = &pins;
    while (*at && ((*at)->data != data || (*at)->registered != registered)) at = &(*at)->next;
    pinned *p = *at;
    if (!p) return false;
    *at = p->next;
    fake_cuda.pinned -= p->bytes;
    fake_cuda.pinned_blocks--;
    free(p);
    return true;
}

/* Copies out of registered memory are done as late as a driver may: when somebody waits for them. */
typedef struct late_copy {
    void *to;
    const void *from;
    size_t bytes;
} late_copy;
static late_copy *late;
static size_t late_queued, late_done, late_room; /* the first late_done of late_queued are done */

static bool is_registered(const void *at) {
    for (const pinned *p = pins; p; p = p->next)
        if (p->registered && (const char *)at >= (const char *)p->data &&
            (const char *)at < (const char *)p->data + p->bytes)
            return true;
    return false;
}
static void copy_later(void *to, const void *from, size_t bytes) {
    if (late_queued == late_room) {
        late_room = 2 * late_room + 16;
        if (!(late = realloc(late, late_room * sizeof *late))) abort();
    }
    late[late_queued++] = (late_copy){to, from, bytes};
}
static void copies_arrive(size_t until) {
    for (; late_done < until; late_done++)
        memcpy(late[late_done].to, late[late_done].from, late[late_done].bytes);
}

CALL(cuMemHostAlloc, (void **pointer, size_t bytes, unsigned flags), (pointer, bytes, flags)) {
    if (current("cuMemHostAlloc") < 0) return INVALID_CONTEXT;
    if (flags > 7 || !bytes) return wrong(INVALID_VALUE, "cuMemHostAlloc: flags %u", flags);
    if (capturing()) return wrong(CAPTURE_UNSUPPORTED, "cuMemHostAlloc while capturing");
    *pointer = pin(calloc(1, bytes), bytes)->data;
    return 0;
}
SAFE(cuMemFreeHost, (void *pointer), (pointer)) {
    if (current("cuMemFreeHost") < 0) return INVALID_CONTEXT;
    if (!unpin(pointer, false))
        return wrong(INVALID_VALUE, "cuMemFreeHost: nothing is pinned there");
    free(pointer);
    return 0;
}
CALL(cuMemHostRegister_v2, (void *pointer, size_t bytes, unsigned flags),
     (pointer, bytes, flags)) {
    if (current("cuMemHostRegister") < 0) return INVALID_CONTEXT;
    if (flags > 15 || !bytes || !pointer)
        return wrong(INVALID_VALUE, "cuMemHostRegister: flags %u", flags);
    if (capturing()) return wrong(CAPTURE_UNSUPPORTED, "cuMemHostRegister while capturing");
    pin(pointer, bytes)->registered = true;
    return 0;
}
SAFE(cuMemHostUnregister, (void *pointer), (pointer)) {
    if (current("cuMemHostUnregister") < 0) return INVALID_CONTEXT;
    if (!unpin(pointer, true))
        return wrong(INVALID_VALUE, "cuMemHostUnregister: nothing is registered there");
    late_done = late_queued; /* what nobody has waited for is lost */
    return 0;
}
SAFE(cuMemHostGetDevicePointer_v2, (tc__cu_ptr * pointer, void *host, unsigned flags),
     (pointer, host, flags)) {
    for (const pinned *p = pins; p; p = p->next)
        if ((char *)host >= (char *)p->data && (char *)host < (char *)p->data + p->bytes) {
            *pointer = (uintptr_t)host;
            return flags ? wrong(INVALID_VALUE, "cuMemHostGetDevicePointer: flags") : 0;
        }
    return wrong(INVALID_VALUE, "cuMemHostGetDevicePointer: nothing is pinned there");
}

/* ---- streams, events ---- */

typedef struct tc__cu_stream_ {
    object object;
    bool captures, invalid;
    tc__cu_graph graph; /* what it has captured */
    pthread_t by;
} stream;

typedef struct tc__cu_event_ {
    object object;
    bool timing, recorded;
    size_t copies; /* that were queued before it */
} event;

/* Is the calling thread recording a stream? */
static bool capturing(void) {
    for (const object *o = objects; o; o = o->next) {
        const stream *s = (const stream *)o;
        if (is(o, STREAM) && s->captures && pthread_equal(s->by, pthread_self())) return true;
    }
    return false;
}

/* A stream for work that is not captured; NULL is the context's own. */
static tc__cu_result check_stream(stream *s, const char *function) {
    if (!s) return current(function) < 0 ? INVALID_CONTEXT : 0;
    tc__cu_result result = check(s, STREAM, function);
    if (!result && s->captures) {
        s->invalid = true;
        result = wrong(CAPTURE_UNSUPPORTED, "%s on a stream that is being captured", function);
    }
    return result;
}

CALL(cuStreamCreate, (tc__cu_stream * made, unsigned flags), (made, flags)) {
    const int device = current("cuStreamCreate");
    if (device < 0) return INVALID_CONTEXT;
    if (flags > 1) return wrong(INVALID_VALUE, "cuStreamCreate: flags %u", flags);
    *made = object_new(sizeof **made, STREAM, device);
    fake_cuda.streams++;
    return 0;
}
SAFE(cuStreamDestroy_v2, (tc__cu_stream s), (s)) {
    tc__cu_result result = check(s, STREAM, "cuStreamDestroy");
    if (result) return result;
    s->object.alive = false;
    fake_cuda.streams--;
    return 0;
}
CALL(cuStreamSynchronize, (tc__cu_stream s), (s)) {
    tc__cu_result result = check_stream(s, "cuStreamSynchronize");
    if (!result) copies_arrive(late_queued);
    return result;
}
CALL(cuStreamQuery, (tc__cu_stream s), (s)) {
    return check_stream(s, "cuStreamQuery");
}
CALL(cuStreamAttachMemAsync, (tc__cu_stream s, tc__cu_ptr at, size_t bytes, unsigned flags),
     (s, at, bytes, flags)) {
    block *b = find_block(at);
    tc__cu_result result = check_stream(s, "cuStreamAttachMemAsync");
    if (result) return result;
    if (!b || !b->managed || bytes ||
        (flags != TC__CU_ATTACH_GLOBAL && flags != TC__CU_ATTACH_HOST))
        return wrong(INVALID_VALUE, "cuStreamAttachMemAsync: not the whole of managed memory");
    b->of_host = flags == TC__CU_ATTACH_HOST;
    return 0;
}
CALL(cuEventCreate, (tc__cu_event * made, unsigned flags), (made, flags)) {
    const int device = current("cuEventCreate");
    if (device < 0) return INVALID_CONTEXT;
    if (flags > 3) return wrong(INVALID_VALUE, "cuEventCreate: flags %u", flags);
    *made = object_new(sizeof **made, EVENT, device);
    (*made)->timing = !(flags & 2);
    fake_cuda.events++;
    return 0;
}
SAFE(cuEventDestroy_v2, (tc__cu_event e), (e)) {
    tc__cu_result result = check(e, EVENT, "cuEventDestroy");
    if (result) return result;
    e->object.alive = false;
    fake_cuda.events--;
    return 0;
}
CALL(cuEventRecord, (tc__cu_event e, tc__cu_stream s), (e, s)) {
    tc__cu_result result = check(e, EVENT, "cuEventRecord");
    if (!result) result = check_stream(s, "cuEventRecord");
    if (!result) e->recorded = true, e->copies = late_queued;
    return result;
}
CALL(cuEventSynchronize, (tc__cu_event e), (e)) {
    tc__cu_result result = check(e, EVENT, "cuEventSynchronize");
    if (!result) copies_arrive(e->copies);
    return result;
}
CALL(cuEventElapsedTime, (float *milliseconds, tc__cu_event start, tc__cu_event end),
     (milliseconds, start, end)) {
    tc__cu_result result = check(start, EVENT, "cuEventElapsedTime");
    if (!result) result = check(end, EVENT, "cuEventElapsedTime");
    if (result) return result;
    if (!start->timing || !end->timing || !start->recorded || !end->recorded)
        return wrong(INVALID_HANDLE, "cuEventElapsedTime: not recorded with their times");
    *milliseconds = 1;
    return 0;
}

/* ---- copies ---- */

CALL(cuMemcpyHtoDAsync_v2, (tc__cu_ptr to, const void *from, size_t bytes, tc__cu_stream s),
     (to, from, bytes, s)) {
    tc__cu_result result = check_memory(to, bytes, "cuMemcpyHtoDAsync");
    if (!result) result = check_stream(s, "cuMemcpyHtoDAsync");
    if (!result && is_registered(from))
        copy_later((void *)(uintptr_t)to, from, bytes);
    else if (!result)
        memcpy((void *)(uintptr_t)to, from, bytes);
    return result;
}
CALL(cuMemcpyDtoHAsync_v2, (void *to, tc__cu_ptr from, size_t bytes, tc__cu_stream s),
     (to, from, bytes, s)) {
    tc__cu_result result = check_memory(from, bytes, "cuMemcpyDtoHAsync");
    if (!result) result = check_stream(s, "cuMemcpyDtoHAsync");
    if (!result) memcpy(to, (const void *)(uintptr_t)from, bytes);
    return result;
}
/* Zeros are given by giving the pages back: tens of GB cost nothing. */
CALL(cuMemsetD8Async, (tc__cu_ptr at, unsigned char value, size_t bytes, tc__cu_stream s),
     (at, value, bytes, s)) {
    tc__cu_result result = check_memory(at, bytes, "cuMemsetD8Async");
    if (!result) result = check_stream(s, "cuMemsetD8Async");
    if (result) return result;
    uint8_t *from = (uint8_t *)(uintptr_t)at, *end = from + bytes;
    uint8_t *whole = space + ((size_t)(from - space) + PAGE - 1) / PAGE * PAGE;
    uint8_t *last = space + (size_t)(end - space) / PAGE * PAGE;
    if (value || whole >= last || madvise(whole, (size_t)(last - whole), MADV_DONTNEED)) {
        memset(from, value, bytes);
    } else {
        memset(from, 0, (size_t)(whole - from));
        memset(last, 0, (size_t)(end - last));
    }
    return 0;
}

/* ---- modules ---- */

typedef struct tc__cu_function_ {
    object object;
    tc__cu_module module;
    char name[96];
    int fixed_shared, most_threads, registers, cluster, parameter_bytes;
    int most_dynamic; /* shared memory that a launch may ask for */
    struct tc__cu_function_ *next;
} function;

typedef struct variable {
    char name[96];
    tc__cu_ptr at;
    size_t bytes;
    struct variable *next;
} variable;

typedef struct tc__cu_module_ {
    object object;
    function *functions;
    variable *variables;
    block *memory; /* of the variables */
    size_t used;
    int arch; /* that it was compiled for */
} module;

static int shared_limit(void) {
    const int arch = fake_cuda.arch;
    if (fake_cuda.shared) return fake_cuda.shared;
    if (arch < 80) return 64 << 10;
    return arch == 80 || arch == 87                  ? 163 << 10
           : arch == 86 || arch == 89 || arch >= 120 ? 99 << 10
                                                     : 227 << 10;
}

static function *add_function(module *m, const char *name, size_t len) {
    function *f = object_new(sizeof *f, FUNCTION, m->object.device);
    f->module = m;
    snprintf(f->name, sizeof f->name, "%.*s", (int)len, name);
    f->next = m->functions;
    m->functions = f;
    return f;
}

/* Its initial value, zeros where bytes is NULL. */
static bool add_variable(module *m, const char *name, size_t len, const void *bytes, size_t size) {
    if (m->used + size > m->memory->bytes) return false;
    variable *v = calloc(1, sizeof *v);
    if (!v) abort();
    snprintf(v->name, sizeof v->name, "%.*s", (int)len, name);
    v->at = (uintptr_t)m->memory->data + m->used;
    v->bytes = size;
    if (bytes) memcpy(m->memory->data + m->used, bytes, size);
    m->used += (size + 255) & ~(size_t)255;
    v->next = m->variables;
    m->variables = v;
    return true;
}

/* ---- cubins ---- */

typedef struct cubin {
    const uint8_t *bytes;
    const Elf64_Ehdr *header;
    const Elf64_Shdr *sections;
    const char *names; /* of the sections */
} cubin;

static const Elf64_Shdr *cubin_section(const cubin *image, const char *prefix, const char *name) {
    for (int i = 0; i < image->header->e_shnum; i++) {
        const char *at = image->names + image->sections[i].sh_name;
        if (!strncmp(at, prefix, strlen(prefix)) && !strcmp(at + strlen(prefix), name))
            return &image->sections[i];
    }
    return NULL;
}

/* What the compiler wrote down of a kernel: attributes {format, number, 16 bits}, format 4 with as
 * many bytes behind. Numbers: 5 the threads of __launch_bounds__, 0x19 bytes of parameters, 0x3d the
 * cluster's blocks; in .nv.info 0x2f a symbol's registers. */
static void cubin_attributes(const cubin *image, const Elf64_Shdr *section, uint32_t symbol,
                             function *f) {
    if (!section) return;
    const uint8_t *at = image->bytes + section->sh_offset, *end = at + section->sh_size;
    while (end - at >= 4) {
        uint32_t words[3] = {0, 0, 0};
        uint16_t value;
        memcpy(&value, at + 2, 2);
        if (at[0] == 4) memcpy(words, at + 4, value < 12 ? value : 12);
        if (at[0] == 3 && at[1] == 0x19) f->parameter_bytes = value;
        if (at[0] == 4 && at[1] == 0x05) f->most_threads = (int)(words[0] * words[1] * words[2]);
        if (at[0] == 4 && at[1] == 0x3d) f->cluster = (int)words[0];
        if (at[0] == 4 && at[1] == 0x2f && words[0] == symbol) f->registers = (int)words[1];
        at += at[0] == 4 ? 4 + value : 4;
    }
}

static bool cubin_symbols(const cubin *image, const Elf64_Shdr *table, module *m) {
    const Elf64_Sym *symbols = (const void *)(image->bytes + table->sh_offset);
    const char *names = (const char *)image->bytes + image->sections[table->sh_link].sh_offset;
    for (uint32_t k = 0; k < table->sh_size / sizeof *symbols; k++) {
        const char *name = names + symbols[k].st_name;
        const Elf64_Shdr *section = &image->sections[symbols[k].st_shndx];
        if (symbols[k].st_shndx == SHN_UNDEF || symbols[k].st_shndx >= image->header->e_shnum)
            continue;
        if (ELF64_ST_TYPE(symbols[k].st_info) == STT_FUNC && symbols[k].st_other & 0x10) {
            function *f = add_function(m, name, strlen(name));
            const Elf64_Shdr *shared = cubin_section(image, ".nv.shared.", name);
            const int system = fake_cuda.arch >= 90 ? 1024 : 0; /* what no block may ask for */
            f->fixed_shared =
                shared && (int)shared->sh_size > system ? (int)shared->sh_size - system : 0;
            cubin_attributes(image, cubin_section(image, ".nv.info.", name), k, f);
            cubin_attributes(image, cubin_section(image, ".nv.info", ""), k, f);
        } else if (ELF64_ST_TYPE(symbols[k].st_info) == STT_OBJECT &&
                   (section->sh_flags & (SHF_WRITE | SHF_ALLOC)) == (SHF_WRITE | SHF_ALLOC)) {
            const uint8_t *from = image->bytes + section->sh_offset + symbols[k].st_value;
            if (!add_variable(m, name, strlen(name), section->sh_type == SHT_NOBITS ? NULL : from,
                              symbols[k].st_size))
                return false;
        }
    }
    return true;
}

static tc__cu_result load_cubin(module *m, const uint8_t *bytes) {
    const Elf64_Ehdr *header = (const void *)bytes;
    const Elf64_Shdr *sections = (const void *)(bytes + header->e_shoff);
    const cubin image = {bytes, header, sections,
                         (const char *)bytes + sections[header->e_shstrndx].sh_offset};
    if (header->e_machine != 190) return INVALID_IMAGE;          /* EM_CUDA */
    const int shift = header->e_ident[EI_OSABI] == 0x41 ? 8 : 0; /* as of CUDA 13 */
    const int arch = (int)(header->e_flags >> shift & 0xFF);
    if (arch / 10 != fake_cuda.arch / 10 || arch > fake_cuda.arch)
        return wrong(NO_BINARY, "a cubin for sm_%d on a GPU of sm_%d", arch, fake_cuda.arch);
    m->arch = arch;
    for (int i = 0; i < header->e_shnum; i++)
        if (sections[i].sh_type == SHT_SYMTAB && !cubin_symbols(&image, &sections[i], m))
            return INVALID_IMAGE;
    return 0;
}

/* ---- PTX, as NVRTC writes it ---- */

/* The size of "NAME[24]" or "NAME", of elements such as ".b8" and ".u32" before it. */
static size_t ptx_size(const char *type, const char *name) {
    const int bits = atoi(type + 2);
    const size_t len = strcspn(name, "[;= \n");
    return (size_t)bits / 8 * (name[len] == '[' ? strtoul(name + len + 1, NULL, 10) : 1);
}

/* The variable's type in a declaration, and its name: ".global .align 4 .b8 NAME[24] = {...};" */
static const char *ptx_name(const char *line, const char **type) {
    const char *at = line;
    for (*type = NULL; (at = strchr(at, '.')) != NULL; at += strcspn(at, " ")) {
        const char *next = at + strcspn(at, " ");
        if (strchr("busf", at[1]) && at[2] >= '0' && at[2] <= '9') {
            *type = at;
            return next + strspn(next, " ");
        }
    }
    return NULL;
}

static bool ptx_variable(module *m, const char *line) {
    const char *type, *name = ptx_name(line, &type), *values;
    uint8_t bytes[4096] = {0};
    if (!name) return true;
    const size_t size = ptx_size(type, name), len = strcspn(name, "[;= "),
                 end = strcspn(name, "\n");
    const size_t each = (size_t)atoi(type + 2) / 8;
    if (size > sizeof bytes) return true; /* none that anybody asks for */
    if (!(values = memchr(name, '{', end))) values = memchr(name, '=', end);
    for (size_t i = 0; values && i < size; i += each) {
        char *next;
        const long long value = strtoll(values + 1, &next, 10);
        memcpy(bytes + i, &value, each);
        values = *next == ',' ? next : NULL;
    }
    return add_variable(m, name, len, bytes, size);
}

static tc__cu_result load_ptx(module *m, const char *text) {
    const char *target = strstr(text, ".target sm_");
    function *f = NULL;
    bool header = false; /* of f: behind it other functions' parameters may come */
    if (!target) return INVALID_IMAGE;
    m->arch = atoi(target + 11);
    if (m->arch > fake_cuda.arch)
        return wrong(NO_BINARY, "PTX for sm_%d on a GPU of sm_%d", m->arch, fake_cuda.arch);
    for (const char *line = text; line; line = strchr(line, '\n')) {
        if (*line == '\n') line++;
        line += strspn(line, "\t ");
        const char *type, *name;
        if (!strncmp(line, ".visible .entry ", 16)) {
            f = add_function(m, line + 16, strcspn(line + 16, "("));
            header = true;
        } else if (*line == ')') {
            header = false;
        } else if (!strncmp(line, ".global ", 8) || !strncmp(line, ".visible .global ", 17)) {
            if (!ptx_variable(m, line)) return INVALID_IMAGE;
        } else if (header && !strncmp(line, ".param ", 7)) {
            if ((name = ptx_name(line, &type))) f->parameter_bytes += (int)ptx_size(type, name);
        } else if (f && !strncmp(line, ".shared ", 8)) {
            if ((name = ptx_name(line, &type))) f->fixed_shared += (int)ptx_size(type, name);
        } else if (f && !strncmp(line, ".maxntid ", 9)) {
            f->most_threads = atoi(line + 9);
        } else if (f && !strncmp(line, ".reqnctapercluster ", 19)) {
            f->cluster = atoi(line + 19);
        }
    }
    return 0;
}

static void module_drop(module *m) {
    for (function *f = m->functions; f; f = f->next) f->object.alive = false;
    for (variable *v = m->variables, *next; v; v = next) {
        next = v->next;
        free(v);
    }
    m->variables = NULL;
    if (m->memory) remove_block(m->memory);
    m->memory = NULL;
    m->object.alive = false;
}

CALL(cuModuleLoadData, (tc__cu_module * made, const void *image), (made, image)) {
    const int device = current("cuModuleLoadData");
    if (device < 0) return INVALID_CONTEXT;
    module *m = object_new(sizeof *m, MODULE, device);
    m->memory = add_block((size_t)1 << 20, device);
    if (!m->memory) return TC__CU_OUT_OF_MEMORY;
    m->memory->module = m;
    tc__cu_result result =
        memcmp(image, ELFMAG, SELFMAG) ? load_ptx(m, image) : load_cubin(m, image);
    for (function *f = m->functions; f; f = f->next) f->most_dynamic = 49152 - f->fixed_shared;
    if (result) {
        module_drop(m);
        return wrong(result, "cuModuleLoadData: an image that is none");
    }
    *made = m;
    fake_cuda.modules++;
    return 0;
}
SAFE(cuModuleUnload, (tc__cu_module m), (m)) {
    tc__cu_result result = check(m, MODULE, "cuModuleUnload");
    if (result) return result;
    module_drop(m);
    fake_cuda.modules--;
    return 0;
}
CALL(cuModuleGetFunction, (tc__cu_function * found, tc__cu_module m, const char *name),
     (found, m, name)) {
    tc__cu_result result = check(m, MODULE, "cuModuleGetFunction");
    if (result) return result;
    for (function *f = m->functions; f; f = f->next)
        if (!strcmp(f->name, name)) return *found = f, 0;
    return wrong(NOT_FOUND, "there is no kernel '%s' in this module", name);
}
CALL(cuModuleGetGlobal_v2, (tc__cu_ptr * pointer, size_t *bytes, tc__cu_module m, const char *name),
     (pointer, bytes, m, name)) {
    tc__cu_result result = check(m, MODULE, "cuModuleGetGlobal");
    if (result) return result;
    for (const variable *v = m->variables; v; v = v->next)
        if (!strcmp(v->name, name)) return *pointer = v->at, *bytes = v->bytes, 0;
    return wrong(NOT_FOUND, "there is no variable '%s' in this module", name);
}
CALL(cuFuncSetAttribute, (tc__cu_function f, int attribute, int value), (f, attribute, value)) {
    tc__cu_result result = check(f, FUNCTION, "cuFuncSetAttribute");
    if (result) return result;
    if (attribute == TC__CU_FUNCTION_CARVEOUT && value >= -1 && value <= 100) return 0;
    if (attribute != TC__CU_FUNCTION_MAX_DYNAMIC_SHARED || value < 0 ||
        value + f->fixed_shared > shared_limit())
        return wrong(INVALID_VALUE, "%s: attribute %d cannot be %d: a block has %d bytes, %d taken",
                     f->name, attribute, value, shared_limit(), f->fixed_shared);
    f->most_dynamic = value;
    return 0;
}
CALL(cuFuncGetAttribute, (int *value, int attribute, tc__cu_function f), (value, attribute, f)) {
    tc__cu_result result = check(f, FUNCTION, "cuFuncGetAttribute");
    if (!result) *value = attribute == TC__CU_FUNCTION_REGISTERS ? f->registers : 0;
    return result;
}

/* ---- launches ---- */

/* A launch as it was recorded. */
typedef struct node {
    function *function;
    tc__cu_launch_config config;
    uint8_t *parameters;
    struct node *next;
} node;

typedef struct tc__cu_graph_ {
    object object;
    node *nodes;
} graph;

/* The same, instantiated: it keeps the nodes. */
typedef struct tc__cu_graph_exec_ {
    object object;
    graph *of;
    node *nodes;
} graph_exec;

static tc__cu_result check_size(const function *f, const tc__cu_launch_config *c) {
    const unsigned threads = c->block_x * c->block_y * c->block_z;
    const unsigned cluster = f->cluster > 1 ? (unsigned)f->cluster : 1;
    if (!c->grid_x || !c->grid_y || !c->grid_z || c->grid_x > 0x7FFFFFFF || c->grid_y > 65535 ||
        c->grid_z > 65535)
        return wrong(INVALID_VALUE, "%s: a grid of %u x %u x %u", f->name, c->grid_x, c->grid_y,
                     c->grid_z);
    if (!threads || threads > 1024 || (f->most_threads && threads > (unsigned)f->most_threads))
        return wrong(INVALID_VALUE, "%s: a block of %u x %u x %u; compiled for %d", f->name,
                     c->block_x, c->block_y, c->block_z, f->most_threads);
    if ((threads + 31) / 32 * ((unsigned)(f->registers + 7) / 8 * 256) > 65536)
        return wrong(OUT_OF_RESOURCES, "%s: %u threads of %d registers", f->name, threads,
                     f->registers);
    if ((int)c->shared_bytes > f->most_dynamic)
        return wrong(INVALID_VALUE, "%s: %u bytes of shared memory; allowed are %d", f->name,
                     c->shared_bytes, f->most_dynamic);
    if (cluster > 8 || c->grid_x % cluster || (cluster > 1 && fake_cuda.arch < 90))
        return wrong(INVALID_VALUE, "%s: a grid of %u in clusters of %u", f->name, c->grid_x,
                     cluster);
    for (unsigned i = 0; i < c->attribute_count; i++)
        if (c->attributes[i].id != TC__CU_LAUNCH_PROGRAMMATIC || f->module->arch < 90)
            return wrong(INVALID_VALUE, "%s: launch attribute %d, compiled for sm_%d", f->name,
                         c->attributes[i].id, f->module->arch);
    return 0;
}

/* Words that are addresses in the GPU's space must be of memory there; an int of less than SMALL with
 * what lay in the padding behind it is none. The first parameter of each kernel is one. */
enum { SMALL = 1 << 24 };
static tc__cu_result check_addresses(const function *f, const uint8_t *parameters) {
    for (int at = 0; at + 8 <= f->parameter_bytes; at += 8) {
        tc__cu_ptr word;
        memcpy(&word, parameters + at, 8);
        const bool inside = word >= (uintptr_t)space && word < (uintptr_t)(space + space_bytes);
        const block *b = find_block(word);
        const bool ours = b && b->device == f->object.device;
        if (at && (!inside || (!ours && (uint32_t)word < SMALL))) continue;
        if (!ours)
            return wrong(ILLEGAL_ADDRESS, "%s: %#llx at byte %d of its parameters is no address",
                         f->name, word, at);
        if (b->of_host)
            return wrong(ILLEGAL_ADDRESS, "%s: the memory at byte %d is the CPU's", f->name, at);
    }
    return f->parameter_bytes ? 0 : wrong(INVALID_VALUE, "%s has no parameters", f->name);
}

/* All that a kernel does here: it chooses token 0 if it has the address of an int of the host. */
static void run(const function *f, const uint8_t *parameters) {
    for (int at = 0; at + 8 <= f->parameter_bytes; at += 8) {
        tc__cu_ptr word;
        memcpy(&word, parameters + at, 8);
        for (const pinned *p = pins; p; p = p->next)
            if (word == (uintptr_t)p->data && p->bytes == sizeof(int)) *(int *)p->data = 0;
    }
}

static tc__cu_result record(stream *s, function *f, const tc__cu_launch_config *config,
                            const void *parameters) {
    if (config->attribute_count && fake_cuda.driver < 12030)
        return wrong(INVALID_VALUE, "%s: a dependent launch in a graph of CUDA %d", f->name,
                     fake_cuda.driver);
    node *n = calloc(1, sizeof *n), **last = &s->graph->nodes;
    if (!n || !(n->parameters = malloc((size_t)f->parameter_bytes))) abort();
    memcpy(n->parameters, parameters, (size_t)f->parameter_bytes);
    n->function = f, n->config = *config;
    while (*last) last = &(*last)->next;
    *last = n;
    fake_cuda.captured++;
    return 0;
}

CALL(cuLaunchKernelEx,
     (const tc__cu_launch_config *config, tc__cu_function f, void **arguments, void **extra),
     (config, f, arguments, extra)) {
    stream *s = config->stream;
    tc__cu_result result = check(f, FUNCTION, "cuLaunchKernelEx");
    if (!result && s) result = check(s, STREAM, "cuLaunchKernelEx");
    if (!result) result = check_size(f, config);
    if (!result && (extra || !arguments || !arguments[0]))
        result = wrong(INVALID_VALUE, "%s: no arguments", f->name);
    if (!result) result = check_addresses(f, arguments[0]);
    if (!result && f->cluster > 1)
        snprintf(fake_cuda.last_cluster, sizeof fake_cuda.last_cluster, "%.60s", f->name);
    if (result) return result;
    if (s && s->captures) return record(s, f, config, arguments[0]);
    run(f, arguments[0]);
    fake_cuda.launches++;
    fake_cuda.alone += !strcmp(f->name, "embed_all") && config->grid_x == 1;
    return 0;
}

CALL(cuStreamBeginCapture_v2, (tc__cu_stream s, int mode), (s, mode)) {
    tc__cu_result result = check(s, STREAM, "cuStreamBeginCapture");
    if (!result) result = check_stream(s, "cuStreamBeginCapture");
    if (result || mode < 0 || mode > 2) return result ? result : INVALID_VALUE;
    s->captures = true, s->invalid = false;
    s->by = pthread_self();
    s->graph = object_new(sizeof *s->graph, GRAPH, s->object.device);
    s->graph->object.alive = false; /* until the capture ends well */
    return 0;
}

static void free_nodes(node *n) {
    for (node *next; n; n = next) {
        next = n->next;
        free(n->parameters);
        free(n);
    }
}

/* A capture that fails here is over all the same. */
tc__cu_result cuStreamEndCapture(tc__cu_stream s, tc__cu_graph *made);
tc__cu_result cuStreamEndCapture(tc__cu_stream s, tc__cu_graph *made) {
    tc__cu_result failed = enter("cuStreamEndCapture", true);
    tc__cu_result result = check(s, STREAM, "cuStreamEndCapture");
    *made = NULL;
    if (!result && !s->captures)
        result = wrong(INVALID_VALUE, "cuStreamEndCapture: nothing is captured");
    if (!result) {
        s->captures = false;
        if (!failed && s->invalid) failed = CAPTURE_INVALIDATED;
        if (failed) {
            free_nodes(s->graph->nodes);
            s->graph->nodes = NULL;
        } else {
            s->graph->object.alive = true;
            *made = s->graph;
            fake_cuda.graphs++;
        }
        s->graph = NULL;
    }
    pthread_mutex_unlock(&lock);
    return result ? result : failed;
}
/* The first of those that a stream has recorded depends on no other. */
CALL(cuGraphGetRootNodes, (tc__cu_graph g, tc__cu_graph_node *nodes, size_t *count),
     (g, nodes, count)) {
    tc__cu_result result = check(g, GRAPH, "cuGraphGetRootNodes");
    if (!result && *count != 1) result = wrong(INVALID_VALUE, "cuGraphGetRootNodes: not one node");
    if (!result) *nodes = (tc__cu_graph_node)g->nodes;
    return result;
}
/* The first node of the graph that this one was made of, which must still be there. */
CALL(cuGraphExecKernelNodeSetParams,
     (tc__cu_graph_exec g, tc__cu_graph_node n, const tc__cu_kernel_node *kernel),
     (g, n, kernel)) {
    tc__cu_result result = check(g, EXEC, "cuGraphExecKernelNodeSetParams");
    if (!result) result = check(g->of, GRAPH, "cuGraphExecKernelNodeSetParams");
    if (result) return result;
    if ((node *)n != g->of->nodes || g->nodes->function != kernel->function || kernel->extra)
        return wrong(INVALID_VALUE, "cuGraphExecKernelNodeSetParams: another node or kernel");
    tc__cu_launch_config config = g->nodes->config;
    config.grid_x = kernel->grid_x, config.grid_y = kernel->grid_y, config.grid_z = kernel->grid_z;
    config.block_x = kernel->block_x, config.block_y = kernel->block_y;
    config.block_z = kernel->block_z, config.shared_bytes = kernel->shared_bytes;
    result = check_size(kernel->function, &config);
    if (!result) result = check_addresses(kernel->function, kernel->arguments[0]);
    if (result) return result;
    g->nodes->config = config;
    memcpy(g->nodes->parameters, kernel->arguments[0], (size_t)kernel->function->parameter_bytes);
    return 0;
}
SAFE(cuGraphDestroy, (tc__cu_graph g), (g)) {
    tc__cu_result result = check(g, GRAPH, "cuGraphDestroy");
    if (result) return result;
    free_nodes(g->nodes);
    g->nodes = NULL;
    g->object.alive = false;
    fake_cuda.graphs--;
    return 0;
}
CALL(cuGraphInstantiateWithFlags,
     (tc__cu_graph_exec * made, tc__cu_graph g, unsigned long long flags), (made, g, flags)) {
    tc__cu_result result = check(g, GRAPH, "cuGraphInstantiate");
    if (result) return result;
    if (flags || !g->nodes) return wrong(INVALID_VALUE, "cuGraphInstantiate: flags, or empty");
    *made = object_new(sizeof **made, EXEC, g->object.device);
    (*made)->of = g;
    node **last = &(*made)->nodes;
    for (const node *n = g->nodes; n; n = n->next) {
        node *copy = malloc(sizeof *copy);
        if (!copy || !(copy->parameters = malloc((size_t)n->function->parameter_bytes))) abort();
        copy->function = n->function, copy->config = n->config, copy->next = NULL;
        memcpy(copy->parameters, n->parameters, (size_t)n->function->parameter_bytes);
        *last = copy;
        last = &copy->next;
    }
    fake_cuda.graphs++;
    return 0;
}
SAFE(cuGraphExecDestroy, (tc__cu_graph_exec g), (g)) {
    tc__cu_result result = check(g, EXEC, "cuGraphExecDestroy");
    if (result) return result;
    free_nodes(g->nodes);
    g->nodes = NULL;
    g->object.alive = false;
    fake_cuda.graphs--;
    return 0;
}
/* What was recorded must still be there. */
CALL(cuGraphLaunch, (tc__cu_graph_exec g, tc__cu_stream s), (g, s)) {
    tc__cu_result result = check(g, EXEC, "cuGraphLaunch");
    if (!result) result = check_stream(s, "cuGraphLaunch");
    for (const node *n = result ? NULL : g->nodes; n && !result; n = n->next) {
        result = check(n->function, FUNCTION, "cuGraphLaunch");
        if (!result) result = check_addresses(n->function, n->parameters);
        if (!result) run(n->function, n->parameters);
    }
    fake_cuda.graph_launches += !result;
    return result;
}

/* ---- devices and contexts ---- */

static long number(const char *name, long otherwise) {
    const char *text = getenv(name);
    return text && *text ? strtol(text, NULL, 0) : otherwise;
}

__attribute__((constructor)) static void begin(void) {
    const char *fail = getenv("FAKE_CUDA_FAIL"), *colon = fail ? strchr(fail, ':') : NULL;
    fake_cuda.devices = (int)number("FAKE_CUDA_DEVICES", 1);
    fake_cuda.arch = (int)number("FAKE_CUDA_ARCH", 90);
    fake_cuda.sm_count = (int)number("FAKE_CUDA_SMS", 132);
    fake_cuda.shared = (int)number("FAKE_CUDA_SHARED", 0);
    fake_cuda.integrated = (int)number("FAKE_CUDA_INTEGRATED", 0);
    fake_cuda.driver = (int)number("FAKE_CUDA_DRIVER", 99000);
    fake_cuda.init = (int)number("FAKE_CUDA_INIT", 0);
    fake_cuda.memory = (size_t)number("FAKE_CUDA_MEMORY", 8L << 30);
    if (colon) {
        snprintf(fake_cuda.fail_function, sizeof fake_cuda.fail_function, "%.*s",
                 (int)(colon - fail), fail);
        fake_cuda.fail_at = atol(colon + 1);
    }
}

/* What is wrong or still held. */
fake_report_fn fake_cuda_report;
const char *fake_cuda_report(void) {
    static char text[1024];
    const fake_driver *d = &fake_cuda;
    text[0] = 0;
    if (d->wrong)
        snprintf(text, sizeof text, "%d calls were wrong; the first: %s", d->wrong, d->complaint);
    else if (d->allocations || d->pinned_blocks || d->modules || d->streams || d->events ||
             d->graphs || d->contexts || d->pushed)
        snprintf(text, sizeof text,
                 "%d allocations, %d pinned, %d modules, %d streams, %d events, %d graphs, %d "
                 "contexts held; %d pushed",
                 d->allocations, d->pinned_blocks, d->modules, d->streams, d->events, d->graphs,
                 d->contexts, d->pushed);
    return text;
}

__attribute__((destructor)) static void finish(void) {
    if (getenv("FAKE_CUDA_REPORT") && *fake_cuda_report())
        fprintf(stderr, "fake_cuda: %s\n", fake_cuda_report());
    for (object *o = objects, *next; o; o = next) {
        next = o->next;
        free(o);
    }
    if (space) munmap(space, space_bytes);
}

SAFE(cuInit, (unsigned flags), (flags)) {
    initialised = !fake_cuda.init;
    return flags ? INVALID_VALUE : fake_cuda.init;
}
SAFE(cuDriverGetVersion, (int *version), (version)) {
    *version = fake_cuda.driver;
    return 0;
}
SAFE(cuDeviceGetCount, (int *count), (count)) {
    *count = fake_cuda.devices;
    return initialised ? 0 : NOT_INITIALISED;
}
SAFE(cuDeviceGet, (tc__cu_device * device, int index), (device, index)) {
    *device = index;
    return index >= 0 && index < fake_cuda.devices && index < DEVICES ? 0 : INVALID_DEVICE;
}
SAFE(cuDeviceGetName, (char *name, int length, tc__cu_device device), (name, length, device)) {
    snprintf(name, (size_t)length, "Fake GPU");
    return device < fake_cuda.devices ? 0 : INVALID_DEVICE;
}
SAFE(cuDeviceGetAttribute, (int *value, int attribute, tc__cu_device device),
     (value, attribute, device)) {
    switch (attribute) {
    case TC__CU_ATTRIBUTE_MAJOR: *value = fake_cuda.arch / 10; break;
    case TC__CU_ATTRIBUTE_MINOR: *value = fake_cuda.arch % 10; break;
    case TC__CU_ATTRIBUTE_SM_COUNT: *value = fake_cuda.sm_count; break;
    case TC__CU_ATTRIBUTE_MAX_SHARED: *value = shared_limit(); break;
    case TC__CU_ATTRIBUTE_INTEGRATED: *value = fake_cuda.integrated; break;
    case TC__CU_ATTRIBUTE_CLOCK_KHZ: *value = 1980000; break;
    case TC__CU_ATTRIBUTE_L2_BYTES: *value = 40 << 20; break;
    default: return wrong(INVALID_VALUE, "cuDeviceGetAttribute: %d", attribute);
    }
    return device < fake_cuda.devices ? 0 : INVALID_DEVICE;
}
SAFE(cuDeviceTotalMem_v2, (size_t * bytes, tc__cu_device device), (bytes, device)) {
    *bytes = fake_cuda.memory;
    return device < fake_cuda.devices ? 0 : INVALID_DEVICE;
}
CALL(cuDevicePrimaryCtxRetain, (tc__cu_context * made, tc__cu_device device), (made, device)) {
    if (device < 0 || device >= fake_cuda.devices) return INVALID_DEVICE;
    context *c = &contexts[device];
    c->object.kind = CONTEXT, c->object.device = device, c->object.alive = true;
    c->users++;
    fake_cuda.contexts++;
    *made = c;
    return 0;
}
/* The last user's going is the end of all that the context holds: nothing should be left. */
SAFE(cuDevicePrimaryCtxRelease_v2, (tc__cu_device device), (device)) {
    if (device < 0 || device >= DEVICES || !contexts[device].users)
        return wrong(INVALID_CONTEXT, "cuDevicePrimaryCtxRelease: nobody retains it");
    fake_cuda.contexts--;
    if (--contexts[device].users) return 0;
    contexts[device].object.alive = false;
    for (const object *o = objects; o; o = o->next)
        if (o->alive && o->device == device)
            wrong(0, "a %s is left in a context that nobody uses", kind_name(o->kind));
    for (const block *b = blocks; b; b = b->next)
        if (b->device == device) wrong(0, "memory is left in a context that nobody uses");
    return 0;
}
SAFE(cuCtxPushCurrent_v2, (tc__cu_context c), (c)) {
    stack *s = my_stack();
    if (!is(c, CONTEXT)) return wrong(INVALID_CONTEXT, "cuCtxPushCurrent: not a context");
    if (s->depth == (int)TC_COUNT(s->at)) return wrong(INVALID_VALUE, "contexts without an end");
    s->at[s->depth++] = c;
    fake_cuda.pushed++;
    return 0;
}
SAFE(cuCtxPopCurrent_v2, (tc__cu_context * c), (c)) {
    stack *s = my_stack();
    if (!s->depth) return wrong(INVALID_CONTEXT, "cuCtxPopCurrent: the stack is empty");
    *c = s->at[--s->depth];
    fake_cuda.pushed--;
    return 0;
}

/* ---- the rest ---- */

/* NVRTC asks for the driver's own cache through it. */
int cuGetExportTable(const void **export_table, const void *id);
int cuGetExportTable(const void **export_table, const void *id) {
    *export_table = NULL;
    return id ? NOT_FOUND : INVALID_VALUE;
}

tc__cu_result cuGetErrorString(tc__cu_result result, const char **text);
tc__cu_result cuGetErrorString(tc__cu_result result, const char **text) {
    static const struct {
        int result;
        const char *text;
    } known[] = {
        {0, "no error"},
        {INVALID_VALUE, "invalid argument"},
        {TC__CU_OUT_OF_MEMORY, "out of memory"},
        {NOT_INITIALISED, "initialization error"},
        {TC__CU_NO_DEVICE, "no CUDA-capable device is detected"},
        {INVALID_DEVICE, "invalid device ordinal"},
        {INVALID_IMAGE, "device kernel image is invalid"},
        {INVALID_CONTEXT, "invalid device context"},
        {NO_BINARY, "no kernel image is available for execution on the device"},
        {INVALID_HANDLE, "invalid resource handle"},
        {NOT_FOUND, "named symbol not found"},
        {ILLEGAL_ADDRESS, "an illegal memory access was encountered"},
        {OUT_OF_RESOURCES, "too many resources requested for launch"},
        {CAPTURE_UNSUPPORTED, "operation not permitted when stream is capturing"},
        {CAPTURE_INVALIDATED, "operation failed due to a previous error during capture"},
        {FAKE_TOLD_TO_FAIL, "told to fail"},
    };
    for (size_t i = 0; i < TC_COUNT(known); i++)
        if (known[i].result == result) return *text = known[i].text, 0;
    *text = NULL;
    return INVALID_VALUE;
}

/* Each function is of the type that the engine calls: the compiler compares them. */
tc__cu fake_cuda_functions(void);
tc__cu fake_cuda_functions(void) {
    tc__cu cu = {NULL,
                 cuInit,
                 cuDriverGetVersion,
                 cuDeviceGetCount,
                 cuDeviceGet,
                 cuDeviceGetName,
                 cuDeviceGetAttribute,
                 cuDeviceTotalMem_v2,
                 cuDevicePrimaryCtxRetain,
                 cuDevicePrimaryCtxRelease_v2,
                 cuCtxPushCurrent_v2,
                 cuCtxPopCurrent_v2,
                 cuMemGetInfo_v2,
                 cuMemAlloc_v2,
                 cuMemAllocManaged,
                 cuMemFree_v2,
                 cuMemHostAlloc,
                 cuMemFreeHost,
                 cuMemHostRegister_v2,
                 cuMemHostUnregister,
                 cuMemHostGetDevicePointer_v2,
                 cuMemcpyHtoDAsync_v2,
                 cuMemcpyDtoHAsync_v2,
                 cuMemsetD8Async,
                 cuStreamCreate,
                 cuStreamDestroy_v2,
                 cuStreamSynchronize,
                 cuStreamQuery,
                 cuStreamAttachMemAsync,
                 cuEventCreate,
                 cuEventDestroy_v2,
                 cuEventRecord,
                 cuEventSynchronize,
                 cuEventElapsedTime,
                 cuModuleLoadData,
                 cuModuleUnload,
                 cuModuleGetGlobal_v2,
                 cuModuleGetFunction,
                 cuFuncSetAttribute,
                 cuFuncGetAttribute,
                 cuLaunchKernelEx,
                 cuStreamBeginCapture_v2,
                 cuStreamEndCapture,
                 cuGraphInstantiateWithFlags,
                 cuGraphGetRootNodes,
                 cuGraphExecKernelNodeSetParams,
                 cuGraphDestroy,
                 cuGraphExecDestroy,
                 cuGraphLaunch,
                 cuGetErrorString};
    return cu;
}
