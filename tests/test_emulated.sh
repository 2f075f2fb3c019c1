#!/bin/sh
# The kernels of the products on a processor: src/kernels as they are, on the prelude of
# tests/emulated, for the constants of two kinds of model. Needs a C++ compiler.
#     sh tests/test_emulated.sh BUILD_FOLDER
set -u
build=${1:-build/release}
cxx=${CXX:-c++}
work=$build/tests/emulated
if ! command -v "$cxx" > /dev/null; then
    echo "  skip   the kernels on a processor (no C++ compiler)"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
rm -rf "$work"
mkdir -p "$work"
for file in rows product_decode product_prefill product_short product_wgmma; do
    sed 's/extern __shared__ .* smem\[\];/u8 *smem = emulated.now->block->shared;/' \
        "src/kernels/$file.cuh" > "$work/$file.cuh"
done
cp tests/emulated/prelude.cuh tests/emulated/products.cpp tests/test.h "$work"

passed=0 failed=0 skipped=0
# kind NAME FLAGS...: compiles and runs the tests with these constants.
kind() {
    echo "  -- $1"
    name=$1
    shift
    if ! "$cxx" -std=c++17 -O1 -w "$@" -o "$work/$name" "$work/products.cpp"; then
        echo "  FAILED $name does not compile"
        failed=$((failed + 1))
        return
    fi
    "$work/$name" > "$work/log" 2>&1
    cat "$work/log"
    line=$(tail -n 1 "$work/log" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$')
    if [ -z "$line" ]; then
        echo "  FAILED $name did not finish"
        failed=$((failed + 1))
        return
    fi
    passed=$((passed + $(echo "$line" | cut -d' ' -f1)))
    failed=$((failed + $(echo "$line" | cut -d' ' -f3)))
    skipped=$((skipped + $(echo "$line" | cut -d' ' -f5)))
}
kind llama -DNORM=NORM_RMS -DACTIVATION=ACT_SILU -DGATED=1 -DCLIP_QKV=0.0f
kind mpt -DNORM=NORM_LAYER -DACTIVATION=ACT_GELU -DGATED=0 -DCLIP_QKV=1.5f
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
