#!/bin/sh
# The kernels of the products, of attention and of sampling on a processor: src/kernels as they are,
# on the prelude of tests/emulated, for the constants of two kinds of model, for every head size and
# for some vocabularies. Needs a C++ compiler.
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
for file in src/kernels/*.cuh; do
    sed 's/extern __shared__ .* smem\[\];/u8 *smem = emulated.now->block->shared;/' \
        "$file" > "$work/${file##*/}"
done
cp tests/emulated/* tests/test.h "$work" # among them another prelude.cuh

passed=0 failed=0 skipped=0
# check PROGRAM NAME FLAGS...: compiles and runs the program with these constants.
check() {
    program=$1 name=$2
    echo "  -- $program, $name"
    shift 2
    if ! "$cxx" -std=c++17 -O1 -U_FORTIFY_SOURCE -w "$@" -o "$work/program" "$work/$program.cpp"; then
        echo "  FAILED $program does not compile"
        failed=$((failed + 1))
        return
    fi
    "$work/program" > "$work/log" 2>&1
    cat "$work/log"
    line=$(tail -n 1 "$work/log" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$')
    if [ -z "$line" ]; then
        echo "  FAILED $program did not finish"
        failed=$((failed + 1))
        return
    fi
    passed=$((passed + $(echo "$line" | cut -d' ' -f1)))
    failed=$((failed + $(echo "$line" | cut -d' ' -f3)))
    skipped=$((skipped + $(echo "$line" | cut -d' ' -f5)))
}
# heads, KV heads, head size, ALiBi, norms of queries and keys, SMs: by how many there are for each KV
# head 1, 2 or 4 blocks share its keys; whether products lie beside it in an SM
attention() {
    check attention "heads $1:$2 of $3, ALiBi $4, norms $5, $6 SMs, beside $7" -DHEADS="$1" \
        -DKV_HEADS="$2" -DHEAD_DIM="$3" -DALIBI="$4" -DQK_NORM="$5" -DSM_COUNT="$6" \
        -DATTENTION_BESIDE="$7"
}
check products llama -DNORM=NORM_RMS -DACTIVATION=ACT_SILU -DGATED=1 -DCLIP_QKV=0.0f
check products mpt -DNORM=NORM_LAYER -DACTIVATION=ACT_GELU -DGATED=0 -DCLIP_QKV=1.5f
for vocabulary in 70 3001 40000; do
    check sampling "$vocabulary tokens" -DVOCAB=$vocabulary
done
attention 2 2 32 0 0 132 0
attention 9 1 64 0 0 56 1
attention 2 1 80 0 1 13 0
attention 3 1 96 1 0 14 0
attention 2 2 112 1 1 28 0
attention 4 2 128 0 1 132 0
attention 2 1 256 0 0 132 0
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
