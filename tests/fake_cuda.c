/* fake_cuda - a libcuda.so.1 that computes nothing but keeps memory, counts what is held and fails where
 * it is told to, for tests of everything around the kernels on machines without a GPU
 * (test_loading.c builds it). Kernels that are launched do nothing; copies out of and beyond what was
 * allocated are errors, as they are on a GPU.
 */
#include <elf.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

typedef unsigned long long address;
enum { INVALID = 1, NO_MEMORY = 2, NOT_FOUND = 500, ILLEGAL_ADDRESS = 700, TOLD_TO = 999 };

/* What the tests set and look at, by dlsym. */
typedef struct fake_driver {
    size_t memory; /* of the GPU */
    int integrated;
    long fail_at; /* the call, from now on, that fails with TOLD_TO; 0: none */
    long calls;   /* that may fail, so far */
    size_t allocated, pinned, most_pinned;
    int allocations, managed, pinned_blocks, modules, streams, events, graphs, contexts, pushed;
    int errors;             /* calls that were wrong: a driver's tools would report them */
    const uint8_t *largest; /* the largest allocation that is held */
    size_t largest_bytes;
} fake_driver;
fake_driver fake_cuda = {.memory = (size_t)8 << 30};

#define MAY_FAIL                                                                                   \
    do {                                                                                           \
        fake_cuda.calls++;                                                                         \
        if (fake_cuda.fail_at && --fake_cuda.fail_at == 0) return TOLD_TO;                         \
    } while (0)

/* The code of a call that no correct program makes. */
static int wrong(int code) {
    fake_cuda.errors += code != 0;
    return code;
}

/* ---- memory: what may be copied to and from ---- */

typedef struct block {
    uint8_t *data;
    size_t bytes;
    int managed, image;
    struct block *next;
} block;
static block *blocks;

static void find_largest(void) {
    fake_cuda.largest = NULL;
    fake_cuda.largest_bytes = 0;
    for (block *b = blocks; b; b = b->next)
        if (!b->image && b->bytes > fake_cuda.largest_bytes)
            fake_cuda.largest = b->data, fake_cuda.largest_bytes = b->bytes;
}

static block *add_block(size_t bytes, int managed, int image) {
    block *b = calloc(1, sizeof *b);
    b->data = calloc(1, bytes + 256);
    b->bytes = bytes, b->managed = managed, b->image = image;
    b->next = blocks;
    blocks = b;
    return b;
}

static int remove_block(const void *data) {
    for (block **at = &blocks; *at; at = &(*at)->next)
        if ((*at)->data == data) {
            block *b = *at;
            *at = b->next;
            free(b->data);
            free(b);
            return 1;
        }
    return 0;
}

static int allowed(address at, size_t bytes) {
    for (block *b = blocks; b; b = b->next)
        if (at >= (address)(uintptr_t)b->data &&
            at + bytes <= (address)(uintptr_t)b->data + b->bytes)
            return 1;
    return 0;
}

static int allocate(address *pointer, size_t bytes, int managed) {
    MAY_FAIL;
    if (bytes > fake_cuda.memory - fake_cuda.allocated) return NO_MEMORY;
    *pointer = (address)(uintptr_t)add_block(bytes, managed, 0)->data;
    fake_cuda.allocated += bytes;
    fake_cuda.allocations++;
    fake_cuda.managed += managed;
    find_largest();
    return 0;
}

int cuMemAlloc_v2(address *pointer, size_t bytes) {
    return allocate(pointer, bytes, 0);
}
int cuMemAllocManaged(address *pointer, size_t bytes, unsigned flags) {
    return flags == 1 || flags == 2 ? allocate(pointer, bytes, 1) : wrong(INVALID);
}
int cuMemFree_v2(address pointer) {
    for (block *b = blocks; b; b = b->next)
        if (b->data == (uint8_t *)(uintptr_t)pointer && !b->image) {
            fake_cuda.allocated -= b->bytes;
            fake_cuda.allocations--;
            fake_cuda.managed -= b->managed;
            remove_block(b->data);
            find_largest();
            return 0;
        }
    return wrong(INVALID);
}
int cuMemGetInfo_v2(size_t *free_bytes, size_t *total) {
    *total = fake_cuda.memory;
    *free_bytes = fake_cuda.memory - fake_cuda.allocated;
    return 0;
}
int cuMemHostAlloc(void **pointer, size_t bytes, unsigned flags) {
    MAY_FAIL;
    size_t *b = calloc(1, bytes + 64);
    *b = bytes + 0 * flags;
    *pointer = b + 8;
    fake_cuda.pinned += bytes;
    fake_cuda.pinned_blocks++;
    if (fake_cuda.pinned > fake_cuda.most_pinned) fake_cuda.most_pinned = fake_cuda.pinned;
    return 0;
}
int cuMemFreeHost(void *pointer) {
    size_t *b = (size_t *)pointer - 8;
    fake_cuda.pinned -= *b;
    fake_cuda.pinned_blocks--;
    free(b);
    return 0;
}
int cuMemHostGetDevicePointer_v2(address *pointer, void *host, unsigned flags) {
    *pointer = (address)(uintptr_t)host + 0 * flags;
    return 0;
}
int cuMemcpyHtoDAsync_v2(address to, const void *from, size_t bytes, void *stream) {
    MAY_FAIL;
    (void)stream;
    if (!allowed(to, bytes)) return wrong(ILLEGAL_ADDRESS);
    memcpy((void *)(uintptr_t)to, from, bytes);
    return 0;
}
int cuMemcpyDtoHAsync_v2(void *to, address from, size_t bytes, void *stream) {
    MAY_FAIL;
    (void)stream;
    if (!allowed(from, bytes)) return wrong(ILLEGAL_ADDRESS);
    memcpy(to, (const void *)(uintptr_t)from, bytes);
    return 0;
}
int cuMemsetD8Async(address to, unsigned char value, size_t bytes, void *stream) {
    MAY_FAIL;
    (void)stream;
    if (!allowed(to, bytes)) return wrong(ILLEGAL_ADDRESS);
    memset((void *)(uintptr_t)to, value, bytes);
    return 0;
}

/* ---- modules: cubins, whose symbols are looked up ---- */

static const Elf64_Sym *find_symbol(const uint8_t *image, const char *name, int type) {
    const Elf64_Ehdr *header = (const void *)image;
    const Elf64_Shdr *sections = (const void *)(image + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const void *)(image + sections[i].sh_offset);
        const char *names = (const char *)image + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++)
            if (ELF64_ST_TYPE(symbols[k].st_info) == type &&
                strcmp(names + symbols[k].st_name, name) == 0)
                return &symbols[k];
    }
    return NULL;
}

int cuModuleLoadData(void **module, const void *image) {
    const Elf64_Ehdr *header = image;
    const Elf64_Shdr *sections = (const void *)((const uint8_t *)image + header->e_shoff);
    size_t bytes = header->e_shoff + (size_t)header->e_shnum * header->e_shentsize;
    MAY_FAIL;
    if (memcmp(header->e_ident, ELFMAG, SELFMAG)) return wrong(INVALID);
    for (int i = 0; i < header->e_shnum; i++)
        if (sections[i].sh_type != SHT_NOBITS &&
            sections[i].sh_offset + sections[i].sh_size > bytes)
            bytes = sections[i].sh_offset + sections[i].sh_size;
    *module = memcpy(add_block(bytes, 0, 1)->data, image, bytes);
    fake_cuda.modules++;
    return 0;
}
int cuModuleUnload(void *module) {
    fake_cuda.modules--;
    return wrong(remove_block(module) ? 0 : INVALID);
}
int cuModuleGetFunction(const void **function, const uint8_t *module, const char *name) {
    MAY_FAIL;
    *function = find_symbol(module, name, STT_FUNC);
    return wrong(*function ? 0 : NOT_FOUND);
}
int cuModuleGetGlobal_v2(address *pointer, size_t *bytes, const uint8_t *module, const char *name) {
    const Elf64_Sym *symbol = find_symbol(module, name, STT_OBJECT);
    MAY_FAIL;
    if (!symbol) return wrong(NOT_FOUND);
    const Elf64_Ehdr *header = (const void *)module;
    const Elf64_Shdr *sections = (const void *)(module + header->e_shoff);
    *pointer =
        (address)(uintptr_t)(module + sections[symbol->st_shndx].sh_offset + symbol->st_value);
    *bytes = symbol->st_size;
    return 0;
}
int cuFuncSetAttribute(void *function, int attribute, int value) {
    MAY_FAIL;
    return wrong(function && (attribute != 8 || value <= 227 << 10) ? 0 : INVALID);
}
int cuFuncGetAttribute(int *value, int attribute, void *function) {
    *value = 0 * attribute;
    return wrong(function ? 0 : INVALID);
}
int cuLaunchKernelEx(const unsigned *config, void *function, void **arguments, void **extra) {
    MAY_FAIL;
    (void)extra;
    int good = function && arguments && arguments[0] && config[0] && config[1] && config[2] &&
               config[3] && config[3] * config[4] * config[5] <= 1024 && config[6] <= 227 << 10;
    return wrong(good ? 0 : INVALID);
}

/* ---- handles that are only counted ---- */

#define MAKE(function, arguments, counter)                                                         \
    int function arguments {                                                                       \
        MAY_FAIL;                                                                                  \
        *made = &fake_cuda.counter;                                                                \
        fake_cuda.counter++;                                                                       \
        return 0;                                                                                  \
    }
#define DROP(function, type, counter)                                                              \
    int function(type handle) {                                                                    \
        (void)handle;                                                                              \
        fake_cuda.counter--;                                                                       \
        return 0;                                                                                  \
    }
MAKE(cuStreamCreate, (void **made, unsigned flags __attribute__((unused))), streams)
DROP(cuStreamDestroy_v2, void *, streams)
MAKE(cuEventCreate, (void **made, unsigned flags __attribute__((unused))), events)
DROP(cuEventDestroy_v2, void *, events)
MAKE(cuStreamEndCapture, (void *stream __attribute__((unused)), void **made), graphs)
DROP(cuGraphDestroy, void *, graphs)
MAKE(cuGraphInstantiateWithFlags,
     (void **made, void *graph __attribute__((unused)),
      unsigned long long flags __attribute__((unused))),
     graphs)
DROP(cuGraphExecDestroy, void *, graphs)
MAKE(cuDevicePrimaryCtxRetain, (void **made, int device __attribute__((unused))), contexts)
DROP(cuDevicePrimaryCtxRelease_v2, int, contexts)

int cuCtxPushCurrent_v2(void *context) {
    (void)context;
    fake_cuda.pushed++;
    return 0;
}
int cuCtxPopCurrent_v2(void **context) {
    *context = NULL;
    fake_cuda.pushed--;
    return 0;
}

/* ---- the rest ---- */

int cuInit(unsigned flags) {
    return 0 * (int)flags;
}
int cuDriverGetVersion(int *version) {
    *version = 99000;
    return 0;
}
int cuDeviceGetCount(int *count) {
    *count = 1;
    return 0;
}
int cuDeviceGet(int *device, int index) {
    *device = index;
    return 0;
}
int cuDeviceGetName(char *name, int length, int device) {
    strncpy(name, "Fake GPU", (size_t)(length - device));
    return 0;
}
int cuDeviceGetAttribute(int *value, int attribute, int device) {
    *value = attribute == 75   ? 9
             : attribute == 76 ? 0
             : attribute == 16 ? 132
             : attribute == 97 ? 227 << 10
             : attribute == 18 ? fake_cuda.integrated
                               : 0 * device;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) {
    *bytes = fake_cuda.memory + 0 * (size_t)device;
    return 0;
}
int cuStreamSynchronize(void *stream) {
    (void)stream;
    MAY_FAIL;
    return 0;
}
int cuStreamAttachMemAsync(void *stream, address at, size_t bytes, unsigned flags) {
    MAY_FAIL;
    (void)stream, (void)bytes;
    return wrong(flags == 1 && allowed(at, 1) ? 0 : INVALID);
}
int cuStreamBeginCapture_v2(void *stream, int mode) {
    (void)stream, (void)mode;
    MAY_FAIL;
    return 0;
}
int cuEventRecord(void *event, void *stream) {
    (void)event, (void)stream;
    MAY_FAIL;
    return 0;
}
int cuEventSynchronize(void *event) {
    (void)event;
    MAY_FAIL;
    return 0;
}
int cuEventElapsedTime(float *ms, void *a, void *b) {
    (void)a, (void)b;
    *ms = 1;
    return 0;
}
int cuGraphLaunch(void *graph, void *stream) {
    (void)graph, (void)stream;
    MAY_FAIL;
    return 0;
}
/* NVRTC asks for the driver's own cache through it. */
int cuGetExportTable(const void **export_table, const void *id) {
    *export_table = NULL;
    return id ? NOT_FOUND : INVALID;
}
int cuGetErrorString(int code, const char **text) {
    *text = code == NO_MEMORY ? "out of memory"
            : code == TOLD_TO ? "told to fail"
                              : "another error";
    return 0;
}
