#!/bin/sh
# The attention kernels on the CPU (tests/emulator.h), for shapes with every head size, against the
# formulas. Run from the project's folder:
#     sh tests/test_attention.sh BUILD_FOLDER
# CXX names the C++ compiler; without one the tests are skipped.
set -u
build=${1:-build/release}
passed=0 failed=0 skipped=0
compiler=
for name in ${CXX:-} c++ g++ clang++; do
    if command -v "$name" > /dev/null; then compiler=$name && break; fi
done

# heads, KV heads, head size, ALiBi, norms of queries and keys
while read -r heads kv_heads size alibi norm; do
    name="attention $heads:$kv_heads of $size"
    program=$build/tests/attention_$size
    if [ -z "$compiler" ]; then
        echo "  skip   $name: there is no C++ compiler"
        skipped=$((skipped + 1))
    elif "$compiler" -std=c++17 -O2 -w -DHEADS="$heads" -DKV_HEADS="$kv_heads" -DHEAD_DIM="$size" \
        -DALIBI="$alibi" -DQK_NORM="$norm" tests/attention.cc -o "$program" && "$program"; then
        echo "  ok     $name"
        passed=$((passed + 1))
    else
        echo "  FAILED $name"
        failed=$((failed + 1))
    fi
done << LIST
2 2 32 0 0
9 1 64 0 0
2 1 80 0 1
3 1 96 1 0
2 2 112 1 1
4 2 128 0 1
2 1 256 0 0
LIST
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
