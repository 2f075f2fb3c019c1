#!/bin/sh
# The table of what the kernels use on each GPU architecture, of the smallest shape on one GPU: every
# kernel of the program is there, within the GPU's limits, and the prediction adds up. Needs NVRTC.
#     sh tests/test_architectures.sh BUILD_FOLDER
set -u
program=${1:-build/release}/bench/architectures
if [ -n "${TEST_WRAPPER:-}" ]; then
    echo "  skip   the_architectures: built for another processor"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

. tests/check.sh

# refused STATUS WORDS ARGUMENT...: one line that has the words, nothing else
refused() {
    expected=$1 words=$2
    shift 2
    "$program" "$@" > "$work/out" 2> "$work/err"
    status=$?
    cat "$work/out" "$work/err"
    [ $status -eq "$expected" ] && [ ! -s "$work/out" ] && [ "$(wc -l < "$work/err")" -eq 1 ] &&
        grep -q "^architectures: .*$words" "$work/err"
}

wrong_arguments_are_refused() {
    refused 2 'no-such-shape' no-such-shape && refused 2 'w3a16' tiny w3a16 &&
        refused 2 'sm_1' tiny w4a16 sm_1 && refused 2 'expected' tiny w4a16 sm_86 more
}
without_nvrtc_it_says_so() {
    TINYCHAT_NVRTC=$work/none refused 3 'NVRTC' tiny w4a16 sm_80
}

# Limits of sm_80: 163 KB of shared memory for a block, 164 KB, 64 K registers and 64 warps an SM.
every_kernel_is_within_the_limits() {
    awk -F'[|+]' '/^### A100/ { here = 1 } /^### ms/ { here = 0 }
        here && $2 ~ /^ [a-z]/ && $2 !~ /kernel/ {
            kernels++
            shared = $7 + $8
            if ($4 < 1 || $5 < 32 || $5 > 1024 || $6 < 1 || shared > 163 * 1024 || $9 < $10 ||
                $10 < 1 || $9 * $5 * $6 > 65536 || $9 * $5 > 2048 || $9 * (shared + 1024) > 164 * 1024 ||
                $12 + 0 > $8 || $13 + 0 != $12 * $10)
                { print "wrong:", $0; bad = 1 }
            if ($12 + 0) rings++
            if ($12 ~ /\?/) { print "bench/architectures.c does not know the ring of:", $0; bad = 1 }
        }
        END { print kernels + 0, "kernels,", rings + 0, "with rings"; exit bad || kernels < 5 || rings < 2 }' \
        "$work/table"
}

# 2 layers: 4 products and one attention of each, the head, the choice
the_prediction_adds_up() {
    awk -F'|' '/^\| A100 40GB / {
            lines++
            if ($7 != 12 || $8 < 0 || $9 <= 0 || $10 - $8 - $9 > 0.011 ||
                $8 + $9 - $10 > 0.011) { print "wrong:", $0; exit 1 }
        }
        END { exit lines != 1 }' "$work/table"
}

# Where kernels overlap, a product fills its ring while the one before it works in the same SM: two
# that follow each other must fit there, and in a parallel block attention beside both. Each quarter
# of an SM has 64 KB of registers for every fourth warp, which get them in steps of 8 for a thread.
neighbours_share_an_sm() { # neighbours_share_an_sm SHAPE FIRST,SECOND[,THIRD]...
    "$program" "$1" w4a16 sm_90a > "$work/neighbours" || return 1
    awk -F'[|+]' -v groups="$2" '
        $2 ~ /^ [a-z]/ && $2 !~ /kernel/ {
            name = $2; gsub(/ /, "", name)
            registers[name] = int(($5 + 127) / 128) * int(($6 + 7) / 8) * 8 * 32
            shared[name] = int(($7 + $8 + 127) / 128) * 128 + 1024
        }
        END {
            n = split(groups, group, " ")
            for (i = 1; i <= n; i++) {
                r = s = 0
                kernels = split(group[i], member, ",")
                for (k = 1; k <= kernels; k++) {
                    if (!registers[member[k]]) { print "no kernel " member[k]; bad = 1 }
                    r += registers[member[k]]; s += shared[member[k]]
                }
                if (r > 16384 || s > 228 * 1024) bad = 1
                print group[i] ": " r " registers of 16384, " s " bytes of " 228 * 1024
            }
            exit bad || !n
        }' "$work/neighbours"
}

check wrong_arguments_are_refused wrong_arguments_are_refused
check without_nvrtc_it_says_so without_nvrtc_it_says_so
"$program" tiny w4a16 sm_80 > "$work/table" 2> "$work/reason"
status=$?
if [ $status -eq 3 ]; then
    echo "  skip   the_table: needs NVRTC: $(cat "$work/reason")"
    skipped=1
elif [ $status -ne 0 ]; then
    cat "$work/reason"
    echo "  FAILED the_table"
    failed=$((failed + 1))
else
    check every_kernel_is_within_the_limits every_kernel_is_within_the_limits
    check the_prediction_adds_up the_prediction_adds_up
    one_after_the_other="qkv_0,o_0 o_0,gate_up_0 gate_up_0,down_0 down_0,qkv_0"
    for shape in qwen2.5-7b mpt-30b; do
        check "neighbours_share_an_sm, $shape" neighbours_share_an_sm $shape "$one_after_the_other"
    done
    check "neighbours_share_an_sm, falcon-7b" neighbours_share_an_sm falcon-7b \
        "qkv_0,attention,gate_up_0 gate_up_0,o_0 o_0,down_0 down_0,attention,qkv_0"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
