#include "base.h"

/* The CUDA source as string literals, one per line. ISO C99 promises literals of 4095 characters
 * only; the warning about longer ones is excused here and nowhere else. */
#if defined(__GNUC__)
#pragma GCC diagnostic push
#pragma GCC diagnostic ignored "-Woverlength-strings"
#endif
static const struct {
    const char *name, *text;
} kernels_files[] = {
#include "kernels.cu.inc"
};
#if defined(__GNUC__)
#pragma GCC diagnostic pop
#endif

const char *tc_kernel_source(int index, const char **name) {
    if (index < 0 || (size_t)index >= TC_COUNT(kernels_files)) return NULL;
    if (name) *name = kernels_files[index].name;
    return kernels_files[index].text;
}
