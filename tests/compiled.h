/* compiled - a program of kernels compiled with NVRTC, for which no GPU is needed, with the
 * assembler's report, and what can be read from both: what each kernel uses, and the numbers that
 * the program exports.
 */
#ifndef TEST_COMPILED_H
#define TEST_COMPILED_H

#include "src/gpu_driver.h"

#include <elf.h>

typedef struct compiled {
    int status; /* NVRTC's; 0: there is an image */
    char *log;  /* may be NULL */
    uint8_t *image;
    size_t image_bytes;
} compiled;

/* As src/jit.c does, but with the assembler's report in the log. `missing`: two headers that the
 * program does without, or NULL. Release with compiled_free, whatever the status. */
static inline compiled compiled_make(const tc__nvrtc *nvrtc, const char *text, const char *arch,
                                     int shared_limit, const char *const missing[2]) {
    compiled c = {0, NULL, NULL, 0};
    const char *names[16], *texts[16];
    char target[64], limit[64];
    const char *options[] = {target, limit, "--std=c++17", "--ptxas-options=-v"};
    tc__nvrtc_program handle = NULL;
    int count = 0;
    size_t size = 0;
    for (; count < 16 && (texts[count] = tc_kernel_source(count, &names[count])); count++)
        for (int i = 0; i < 2 && missing; i++)
            if (!strcmp(names[count], missing[i])) texts[count] = "";
    snprintf(target, sizeof target, "--gpu-architecture=%s", arch);
    snprintf(limit, sizeof limit, "-DSHARED_LIMIT=%d", shared_limit);
    c.status = nvrtc->create(&handle, text, "model.cu", count, texts, names);
    if (c.status) return c;
    c.status = nvrtc->compile(handle, TC_COUNT(options), options);
    if (!nvrtc->log_size(handle, &size) && (c.log = calloc(size + 1, 1))) nvrtc->log(handle, c.log);
    if (!c.status && !nvrtc->cubin_size(handle, &size) && (c.image = malloc(size))) {
        c.image_bytes = size;
        c.status = nvrtc->cubin(handle, (char *)c.image);
    }
    if (!c.status && !c.image) c.status = -1;
    nvrtc->destroy(&handle);
    return c;
}

static inline void compiled_free(compiled *c) {
    free(c->log);
    free(c->image);
    c->log = NULL, c->image = NULL;
}

/* The first n numbers of an initialised variable, found by its symbol. False: there is none. */
static inline bool compiled_numbers(const compiled *c, const char *symbol, int *numbers, size_t n) {
    const Elf64_Ehdr *header = (const void *)c->image;
    const Elf64_Shdr *sections = (const void *)(c->image + header->e_shoff);
    for (int i = 0; i < header->e_shnum; i++) {
        if (sections[i].sh_type != SHT_SYMTAB) continue;
        const Elf64_Sym *symbols = (const void *)(c->image + sections[i].sh_offset);
        const char *names = (const char *)c->image + sections[sections[i].sh_link].sh_offset;
        for (size_t k = 0; k < sections[i].sh_size / sizeof *symbols; k++) {
            if (strcmp(names + symbols[k].st_name, symbol)) continue;
            const Elf64_Shdr *section = &sections[symbols[k].st_shndx];
            if (section->sh_type == SHT_NOBITS || symbols[k].st_size < n * sizeof *numbers)
                return false;
            memcpy(numbers, c->image + section->sh_offset + symbols[k].st_value,
                   n * sizeof *numbers);
            return true;
        }
    }
    return false;
}

/* What a kernel uses; -1: the report does not say. */
typedef struct compiled_kernel {
    char name[64];
    int registers;
    int shared; /* bytes, without dynamic ones */
    int stack, stores, loads;
} compiled_kernel;

/* The next kernel of the report at *at, which begins as the log. False: no more. One's part is
 *     Function properties for NAME / N bytes stack frame, N bytes spill stores, N bytes spill loads
 *     Used N registers, used N barriers, N bytes smem, ...
 * Functions that are called have one, too, without registers; their names are mangled: _Z... */
static inline bool compiled_next(const char **at, compiled_kernel *kernel) {
    static const char mark[] = "Function properties for ", called[] = "_Z";
    const char *part = *at ? strstr(*at, mark) : NULL;
    while (part && !strncmp(part + strlen(mark), called, strlen(called)))
        part = strstr(part + 1, mark);
    *kernel = (compiled_kernel){"", -1, 0, -1, -1, -1};
    if (!part) return false;
    *at = strstr(part + 1, mark);
    const char *end = *at ? *at : part + strlen(part);
    sscanf(part, "Function properties for %63s", kernel->name);
    for (; part < end; part++) {
        if (!strncmp(part, "bytes stack", 11)) {
            const char *line = part;
            while (line[-1] != '\n') line--;
            sscanf(line, "ptxas . %d bytes stack frame, %d bytes spill stores, %d", &kernel->stack,
                   &kernel->stores, &kernel->loads);
        }
        sscanf(part, "Used %d registers", &kernel->registers);
        if (!strncmp(part, " bytes smem", 11)) {
            const char *number = part;
            while (number[-1] >= '0' && number[-1] <= '9') number--;
            kernel->shared = atoi(number);
        }
    }
    return true;
}

#endif /* TEST_COMPILED_H */
