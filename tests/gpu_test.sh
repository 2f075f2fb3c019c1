#!/bin/sh
# "make gpu-test": everything that needs an NVIDIA GPU, and a short table last; exit status 1 if a
# part failed. Without a GPU it says so, runs what needs none and exits 0. Logs stay in
# build/gpu-test. Parts run side by side: they compare numbers, never times.
#
#   TINYCHAT_FIXTURES          unpacked checkpoints, or else
#   TINYCHAT_FIXTURE_ARCHIVES  a folder with their .tar.xz [../shared/fixtures]
#   TINYCHAT_GPU_ARCHS         architectures whose path is run besides the GPU's own ["80 86 87 89 90"]
#   TINYCHAT_GPU_TOOLS         tools of compute-sanitizer ["memcheck racecheck"]
#   TINYCHAT_GPU_SECONDS       time limit of each part [600]
set -u
work=build/gpu-test
archives=${TINYCHAT_FIXTURE_ARCHIVES:-../shared/fixtures}
archs=${TINYCHAT_GPU_ARCHS-80 86 87 89 90}
tools=${TINYCHAT_GPU_TOOLS-memcheck racecheck}
limit=${TINYCHAT_GPU_SECONDS:-600}
jobs=$(nproc 2> /dev/null || echo 2)
tests=build/release/tests
rm -rf $work
mkdir -p $work

now() { date +%s; }
begun=$(now)

# run NAME COMMAND...: the command's output into a log, its status and seconds beside it.
run() {
    name=$1 start=$(now)
    shift
    case $1 in
        carry_kernels) (carry_kernels) ;;
        *) timeout -k 5 "$limit" "$@" ;;
    esac > "$work/$name.log" 2>&1
    echo "$? $(($(now) - start))" > "$work/$name.status"
}

closing_line() { tail -n 1 "$1" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$'; }

# The largest errors that a log reports: "worst prefill 1.2e-03 decode 1.1e-03".
worst() {
    awk '{ gsub(/;/, "")
           for (i = 1; i < NF; i++)
               if (($i == "prefill" || $i == "decode") && $(i + 1) + 0 >= most[$i] + 0)
                   most[$i] = $(i + 1) }
         END { if ("decode" in most)
                   printf "worst prefill %s decode %s", most["prefill"], most["decode"] }' "$1"
}

passed=0 failed=0 skipped=0
: > $work/table
# count NAME PASSED FAILED SKIPPED REMARK: a line of the table.
count() {
    seconds=$(cut -d' ' -f2 "$work/$1.status" 2> /dev/null)
    verdict=PASS
    [ "$2" -gt 0 ] || verdict=SKIP
    [ "$3" -eq 0 ] || verdict=FAIL
    printf '%s  %-21s %3d passed %3d failed %3d skipped %4s s  %s\n' \
        $verdict "$1" "$2" "$3" "$4" "${seconds:--}" "$5" >> $work/table
    passed=$((passed + $2)) failed=$((failed + $3)) skipped=$((skipped + $4))
    if [ "$3" -gt 0 ]; then
        echo "== $1 failed; the end of $work/$1.log:"
        tail -n 25 "$work/$1.log"
    fi
}

# count_tests NAME: a test program's part, by its closing line.
count_tests() {
    read -r status seconds < "$work/$1.status"
    line=$(closing_line "$work/$1.log")
    if [ "$status" -eq 124 ] || [ "$status" -eq 137 ]; then
        count "$1" 0 1 0 "did not finish within $limit s"
    elif [ -z "$line" ] || { [ "$status" -ne 0 ] && [ "${line#*, 0 failed}" != "$line" ]; }; then
        count "$1" 0 1 0 "ended with status $status"
    else
        # shellcheck disable=SC2086
        set -- "$1" $line
        count "$1" "$2" "$4" "$6" "$(worst "$work/$1.log")"
    fi
}

# count_tool TOOL: each of its cases passed only if the tool itself says that it found nothing.
count_tool() {
    tool_passed=0 tool_failed=0 remark= slowest=0
    for case in $cases; do
        part=$1-$case
        read -r status seconds < "$work/$part.status"
        [ "$seconds" -gt "$slowest" ] && slowest=$seconds
        summary=$(grep -hE '(ERROR|RACECHECK) SUMMARY' "$work/$part.tool" | tail -n 1 | sed 's/^=* *//')
        if grep -qiE 'device not supported' "$work/$part.tool" "$work/$part.log"; then
            echo "0 $slowest" > "$work/$1.status"
            count "$1" 0 0 1 "NOT RUN: the tool refuses this device"
            return
        elif [ "$status" -eq 0 ] && echo "$summary" | grep -qE 'SUMMARY: 0 (errors|hazards)' &&
            closing_line "$work/$part.log" | grep -q '^1 passed, 0 failed'; then
            tool_passed=$((tool_passed + 1))
        else
            tool_failed=$((tool_failed + 1))
            [ "$status" -eq 124 ] || [ "$status" -eq 137 ] && summary="not finished in $limit s"
            remark="$remark case $case: ${summary:-status $status, no summary};"
            { cat "$work/$part.log"; head -n 40 "$work/$part.tool"; } >> "$work/$1.log"
        fi
    done
    echo "0 $slowest" > "$work/$1.status"
    count "$1" $tool_passed $tool_failed 0 "${remark:-$summary}"
}

# count_selftest NAME: a row of the self-test is a test.
count_selftest() {
    line=$(grep -E '^[0-9]+ of [0-9]+ ok in ' "$work/$1.log")
    if [ -z "$line" ]; then
        count "$1" 0 1 0 "ended with status $(cut -d' ' -f1 "$work/$1.status")"
    else
        all=${line#* of }
        all=${all%% ok*}
        count "$1" "${line%% of*}" $((all - ${line%% of*})) 0 "${line#* ok in }"
    fi
}

finish() {
    echo "== $1"
    cat $work/table
    echo "all of it in $(($(now) - begun)) s"
    echo "$passed passed, $failed failed, $skipped skipped"
    [ $failed -eq 0 ]
    exit
}

unpack_fixtures() {
    if [ -n "${TINYCHAT_FIXTURES:-}" ] || [ ! -d "$archives" ]; then return; fi
    TINYCHAT_FIXTURES=$PWD/$work/fixtures
    mkdir -p "$TINYCHAT_FIXTURES"
    for archive in "$archives"/*.tar.xz; do
        [ -e "$archive" ] || continue
        if command -v xz > /dev/null; then
            tar xJf "$archive" -C "$TINYCHAT_FIXTURES"
        else
            python3 -c 'import sys, tarfile
tarfile.open(sys.argv[1], "r:xz").extractall(sys.argv[2])' "$archive" "$TINYCHAT_FIXTURES"
        fi || echo "cannot unpack $archive (needs xz or Python with lzma)" &
    done
    wait
    export TINYCHAT_FIXTURES
}

sanitizer() {
    for path in compute-sanitizer "${CUDA_HOME:-/usr/local/cuda}/bin/compute-sanitizer" \
        /usr/local/cuda/compute-sanitizer/compute-sanitizer; do
        command -v "$path" && return
    done
}

# run_tool TOOL CASE: every kernel of a kind of model once, in one process, under the tool.
run_tool() {
    : > "$work/$1-$2.tool"
    run "$1-$2" env TINYCHAT_GPU_QUICK=3 TINYCHAT_GPU_ONE=1 TINYCHAT_GPU_CASE="$2" "$tool" --tool "$1" \
        --error-exitcode 9 --print-limit 10 --log-file "$work/$1-$2.tool" $tests/test_gpu
}

# Kernels exported here work where there is no NVRTC, and only there where they fit.
carry_kernels() {
    file=$work/tiny.kernels
    ./chat --device "$device" --export-kernels "$file" tiny || return 1
    export TINYCHAT_CACHE=$PWD/$work/no-cache TINYCHAT_NVRTC=/nonexistent
    ./chat --device "$device" --bench tiny --kernels "$file" || return 1
    ./chat --device "$device" --bench tiny --precision w16a16 --kernels "$file" 2> "$file.log"
    status=$?
    cat "$file.log"
    [ $status -eq 3 ] && grep -q 'needed are those for' "$file.log" && [ ! -e "$TINYCHAT_CACHE" ]
}

if ! make --no-print-directory -j"$jobs" all $tests/test_gpu $tests/test_kernels \
    $tests/test_loading $tests/test_selftest > $work/build.log 2>&1; then
    tail -n 30 $work/build.log
    echo "0 passed, 1 failed, 0 skipped"
    exit 1
fi
TINYCHAT_CONVERT=$PWD/convert/convert
TINYCHAT_CACHE=$PWD/$work/cache # empty at first: everything is compiled anew
export TINYCHAT_CONVERT TINYCHAT_CACHE
echo "built in $(($(now) - begun)) s"

device=${TINYCHAT_TEST_DEVICE:-cuda}
cases="0 1 2 3 4 5 6 7"
if ! $tests/test_gpu probe > $work/probe.log 2>&1; then
    if nvidia-smi -L 2> /dev/null | grep -q '^GPU'; then
        count probe 0 1 0 "there is a GPU, but it cannot be used"
        finish "GPU tests"
    fi
    echo "no GPU: $(tail -n 1 $work/probe.log)"
    echo "running what needs none:"
    unset TINYCHAT_CACHE
    limit=600
    for name in kernels loading selftest; do
        run $name $tests/test_$name
        cat $work/$name.log
        count_tests $name
    done
    finish "without a GPU"
fi
cat $work/probe.log
unpack_fixtures
TINYCHAT_GPU_REQUIRED=1
export TINYCHAT_GPU_REQUIRED

tool=$(sanitizer)
# the GPU's own path
own_path() {
    (TINYCHAT_GPU_PART=other run native $tests/test_gpu) &
    for name in $tools; do
        for case in $cases; do
            if [ -n "$tool" ]; then run_tool "$name" "$case" & fi
        done
    done
    (run carried carry_kernels) &
    wait
    run selftest ./chat --selftest --device "$device"
}
# memory shared by CPU and GPU, and the other architectures' paths
other_paths() {
    (TINYCHAT_GPU_QUICK=2 TINYCHAT_INTEGRATED=1 run integrated $tests/test_gpu) &
    for arch in $archs; do
        (TINYCHAT_ARCH=compute_$arch && export TINYCHAT_ARCH
         TINYCHAT_GPU_QUICK=1 run "compute_$arch" $tests/test_gpu
         run "selftest_$arch" ./chat --selftest --device "$device") &
    done
    wait
}
# Most of the time goes into compiling; many processors do both at once.
if [ "$jobs" -ge 12 ]; then
    (own_path) &
    (other_paths) &
    wait
else
    (own_path)
    (other_paths)
fi
cat $work/native.log

# what looks at the GPU's free memory, alone
TINYCHAT_GPU_PART=memory run memory $tests/test_gpu
cat $work/memory.log

for name in native memory integrated; do count_tests $name; done
for arch in $archs; do
    if [ "$device" = cpu ] || # trying this script itself
        grep -q "^device: .*compute_$arch" "$work/compute_$arch.log"; then
        count_tests "compute_$arch"
    else
        count "compute_$arch" 0 1 0 "ran on $(grep '^device: ' "$work/compute_$arch.log")"
    fi
done
count_selftest selftest
for arch in $archs; do count_selftest "selftest_$arch"; done
read -r status seconds < $work/carried.status
if [ "$status" -eq 0 ]; then
    count carried 1 0 0 "kernels exported, used without NVRTC, refused for another model"
else
    count carried 0 1 0 "status $status"
fi
for name in $tools; do
    if [ -n "$tool" ]; then
        count_tool "$name"
    else
        count "$name" 0 0 1 "NOT RUN: compute-sanitizer is not installed"
    fi
done
finish "GPU tests: $(sed -n 's/^device: //p' $work/probe.log)"
