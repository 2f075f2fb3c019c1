#!/bin/sh
# Writes tinychat.c and kernels.cu.inc into the folder given as $1 from the modules in src/.
# Pure and line-local: every output line depends on one input line, so that the same input gives the
# same bytes and version control merges the generated files as well as the sources.
set -eu
LC_ALL=C
export LC_ALL
src=$(dirname "$0")
out=$1

# Reading order: each room stands on those before it.
headers="base model_file arch shapes
    unicode unicode_tables split tokenizer vocabulary
    template stream sampler threads cpu_fixed cpu_simd cpu_kernels backend
    gpu_driver jit gpu_programs session"
sources="base model_file arch
    unicode split vocabulary
    tokenizer template stream sampler threads shapes cpu_fixed cpu_kernels
    cpu kernels gpu_driver jit gpu_programs cuda session chat selftest doctor api"
kernels="prelude rows attention product_decode product_prefill product_short product_wgmma sample instances"

{
    echo "/* tinychat.c - generated from src/ by \"make amalgamate\"; change it there. MIT licence. */"
    # a few internal functions serve convert only
    echo "#if defined(__GNUC__)"
    echo "#define TC_INTERNAL __attribute__((unused)) static"
    echo "#else"
    echo "#define TC_INTERNAL static"
    echo "#endif"
    for file in $(for h in $headers; do echo "$h.h"; done; for c in $sources; do echo "$c.c"; done)
    do
        printf '\n/* ======== src/%s ======== */\n\n' "$file"
        # Local headers are already above; the public one and the kernels stay files of their own.
        sed -e '/^#include "tinychat\.h"$/b' -e '/^#include "kernels\.cu\.inc"$/b' \
            -e '/^#include "/d' "$src/$file"
    done
} > "$out/tinychat.c"

{
    echo "/* kernels.cu.inc - generated from src/kernels/ by \"make amalgamate\"; change it there. */"
    for file in $kernels; do
        printf '\n{"%s.cuh",\n' "$file"
        sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' -e 's/^/ "/' -e 's/$/\\n"/' "$src/kernels/$file.cuh"
        echo "},"
    done
} > "$out/kernels.cu.inc"
