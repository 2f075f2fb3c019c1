#!/bin/sh
# "make gpu-bench": how fast the built-in shapes are on this GPU, with random weights made there, and how
# long a model file takes to its first token. One run after the other: nothing disturbs a measurement.
# The results are files, bench/results/GPU/*.json; bench/report.py makes tables and charts of them, and
# prints the tables last.
#
#   SHAPES    "NAME:PRECISION ..." instead of all shapes in 4 bits and four of them in 16, and four with
#             an 8-bit head ("NAME:PRECISION:int8"): about 140 s on an H100, with the start-up
#   STARTUP   the shape of the file, "" for none [llama-2-7b]
#   MODELS    a folder for that file, which should be in memory [/dev/shm]
set -u
results=bench/results
shapes=${SHAPES-"llama-2-7b:w4a16 llama-2-7b:w16a16 mpt-7b:w4a16 mpt-7b:w16a16 llama-3-8b:w4a16
llama-3-8b:w16a16 qwen2.5-7b:w4a16 qwen2.5-7b:w16a16 falcon-7b:w4a16 mistral-7b:w4a16 qwen3-8b:w4a16
llama-3.2-1b:w4a16 llama-2-13b:w4a16 mpt-30b:w4a16 llama-2-70b:w4a16
llama-3-8b:w4a16:int8 qwen2.5-7b:w4a16:int8 qwen3-8b:w4a16:int8 llama-3.2-1b:w4a16:int8"}
startup=${STARTUP-llama-2-7b}
tools=build/release/bench
begun=$(date +%s)
failed=0

report() {
    if command -v python3 > /dev/null; then
        python3 bench/report.py "$@"
    else
        echo "no Python 3 here: the results are in $results, without tables and charts"
    fi
}

device=$(./chat --doctor | sed -n 's/^GPU 0  *\([^,]*\), compute.*/\1/p')
if ! ./chat --doctor > /dev/null; then
    echo "no GPU here that can be used: nothing to measure (./chat --doctor says more)"
    echo "the tables of the results that are there:"
    report --print
    exit
fi
folder=$results/$(echo "$device" | tr 'A-Z ' 'a-z-' | tr -cd 'a-z0-9-')
mkdir -p "$folder"
echo "$device: results in $folder"

# bench_shape NAME PRECISION [HEAD]
bench_shape() {
    out=$folder/$1-$2${3:+-$3-head}.json
    if ./chat --bench "$1" --precision "$2" ${3:+--head "$3"} --device cuda --json -q \
        > "$out.new" 2> "$out.log"; then
        mv "$out.new" "$out"
        echo "  $*"
    else
        echo "  $*: $(tail -n 1 "$out.log")"
        # memory that is too small for a model is a fact, not a failure
        grep -q 'out of .*memory' "$out.log" || failed=$((failed + 1))
    fi
    rm -f "$out.new" "$out.log"
}

# bench_startup SHAPE: with nothing in the caches of compiled code, and with everything there.
bench_startup() {
    model=${MODELS:-/dev/shm}/tinychat-$$.bin cache=$(mktemp -d)
    cold= warm=
    "$tools/make_model" "$1" w4a16 "$model" &&
        cold=$(CUDA_CACHE_DISABLE=1 TINYCHAT_CACHE=$cache "$tools/startup" "$model" 1) &&
        warm=$(TINYCHAT_CACHE=$cache "$tools/startup" "$model" 5) &&
        printf '{"startup": "%s", "bytes": %s,\n "cold": %s,\n "warm": %s}\n' "$1" \
            "$(wc -c < "$model")" "$cold" "$warm" > "$folder/startup.json" || failed=$((failed + 1))
    rm -rf "$model" "$cache"
    echo "  start-up of $1"
}

for shape in $shapes; do
    IFS=:
    # shellcheck disable=SC2086
    set -- $shape
    unset IFS
    bench_shape "$@"
done
[ -z "$startup" ] || bench_startup "$startup"
report
echo "all of it in $(($(date +%s) - begun)) s; $failed failed"
[ $failed -eq 0 ]
