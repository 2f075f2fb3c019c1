/* gpu_programs - which kernels a model needs, as CUDA source: the constants of its shapes, then one
 * line per kernel that instantiates a template of src/kernels. Needs no GPU.
 */
#ifndef TC_GPU_PROGRAMS_H
#define TC_GPU_PROGRAMS_H

#include "arch.h"

/* The four matrices of a block, and how many kinds (type and group size) of one a model may mix. */
enum { TC__QKV, TC__O, TC__GATE_UP, TC__DOWN, TC__ROLES };
#define TC__MAX_KINDS 4

typedef struct tc__kinds {
    struct {
        uint32_t type, group_size;
    } kind[TC__ROLES][TC__MAX_KINDS];
    int count[TC__ROLES];
} tc__kinds;

/* "qkv", "o", "gate_up", "down". */
TC_INTERNAL const char *tc__role_name(int role);
TC_INTERNAL const tc__tensor *tc__role_matrix(const tc__layer *layer, int role);

/* Finds the kinds of all layers' matrices. Errors: UNSUPPORTED (a matrix that the kernels cannot
 * take). */
TC_INTERNAL int tc__kinds_find(const tc__weights *weights, tc__kinds *kinds, tc_error *err);
/* The index of a matrix's kind. It must be one of those found. */
TC_INTERNAL int tc__kind_of(const tc__kinds *kinds, int role, const tc__tensor *matrix);

/* Appends the source of the decode kernels and of the prefill kernels. Kernel names: ROLE_KIND for
 * decode, few_ROLE_KIND for up to 8 tokens, tSIZE_ROLE_KIND for prefill, with tiles of SIZE = 16,
 * 64, 128 and 256 tokens, and those of the list in gpu_programs.c. NAME_launch holds {grid x,
 * threads, shared bytes, vectors, and for few_ROLE and tSIZE what instances.cuh says}. */
TC_INTERNAL void tc__write_decode(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                                  tc__buf *text);
TC_INTERNAL void tc__write_prefill(const tc__weights *weights, const tc__kinds *kinds, int sm_count,
                                   tc__buf *text);
TC_INTERNAL void tc__write_prefill_wide(const tc__weights *weights, const tc__kinds *kinds,
                                        int sm_count, tc__buf *text);
TC_INTERNAL void tc__write_prefill_few(const tc__weights *weights, const tc__kinds *kinds,
                                       int sm_count, tc__buf *text);

/* Cuts a program into parts that can be compiled side by side, with part i of n appended to `part`:
 * the lines that begin with a capital letter instantiate kernels (a LAUNCH those of the line
 * above), and each is in one part; all others are in every part. */
TC_INTERNAL void tc__cut_program(const tc__buf *text, size_t i, size_t n, tc__buf *part);

#endif /* TC_GPU_PROGRAMS_H */
