#!/bin/sh
# The script that makes tables and charts of the benchmark's results, with results that the program
# prints here: every figure arrives, and the charts are well-formed.
#     sh tests/test_report.sh BUILD_FOLDER
set -u
chat=${TINYCHAT_CHAT:-${1:-build/release}/chat}
if [ -n "${TEST_WRAPPER:-}" ] || ! command -v python3 > /dev/null; then
    echo "  skip   the_report: needs Python 3"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

. tests/check.sh

results=$work/results/some-gpu
mkdir -p "$results"
cp bench/report.py bench/peers.json "$work"

# the smallest shape's figures under a name that the charts know
measure() {
    "$chat" --bench tiny --precision "$1" --device cpu -t 1 --json -q > "$work/tiny.json" &&
        sed 's/"model": "tiny"/"model": "llama-2-7b"/; s/"device": "[^"]*"/"device": "NVIDIA H200"/' \
            "$work/tiny.json" > "$results/$1.json"
}
all_is_there() {
    python3 "$work/report.py" > "$work/out" && diff "$work/out" - << END
$(tail -n +3 "$results/README.md")

END
    grep -q '^| llama-2-7b W4A16 g128 ' "$work/out" && grep -q '^| llama-2-7b W16A16 ' "$work/out" &&
        grep -q '^| warm .* 0.250 |' "$work/out" &&
        grep -q '^| decode, .* of floor at 4670 GB/s |$' "$work/out"
}
# A result with an 8-bit head: in its own table, beside the same shape without, and nowhere else.
eight_bit_heads_have_their_table() {
    python3 - "$results/w4a16.json" "$results/w4a16-int8-head.json" << 'END'
import json, sys
data = json.load(open(sys.argv[1]))
data["precision"] += ", int8 head"
for t in data["timings"]:
    t["ms_per_token"] *= 0.8
json.dump(data, open(sys.argv[2], "w"))
END
    python3 "$work/report.py" --print > "$work/heads"
    status=$?
    rm "$results/w4a16-int8-head.json"
    [ $status -eq 0 ] && [ "$(grep -c 'int8' "$work/heads")" -eq 1 ] &&
        [ "$(grep -c '^| llama-2-7b W4A16 g128, context 4 .* -20 % |$' "$work/heads")" -eq 1 ]
}
# The time of a short prompt, as decode steps too, and to the first token.
short_prompts_are_measured_in_steps() {
    python3 - "$results/w4a16.json" "$work/out" << 'END'
import json, sys
timings = json.load(open(sys.argv[1]))["timings"]
step = next(t["ms_per_token"] for t in timings if t["what"] == "decode" and t["context"] == 4)
lines = [line for line in open(sys.argv[2]) if line.startswith("| llama-2-7b W4A16 g128 ")]
cells = [cell.strip() for cell in lines[1].split("|")]
for tokens, cell in ((8, cells[2]), (64, cells[3])):
    t = next(t for t in timings if t["tokens"] == tokens)
    whole = t["ms_per_token"] * tokens
    expected = "%.2f (%.2fx), %.2f" % (whole, whole / step, t["ttft_ms"])
    assert cell == expected, (tokens, cell, expected)
END
}
charts_are_well_formed() {
    for chart in floor precision replies; do
        python3 -c 'import sys, xml.dom.minidom; xml.dom.minidom.parse(sys.argv[1])' \
            "$results/$chart.svg" || return 1
    done
    [ "$(grep -c '<animate' "$results/replies.svg")" -gt 200 ] && grep -q tinychat "$results/floor.svg"
}
# The demo model knows the answer, and not another one.
perplexity_tells_right_from_wrong() {
    printf '<s>[INST] What is the capital of %s? [/INST] The capital of %s is %s.</s>\n' \
        France France Paris Italy Italy Rome > "$work/right"
    sed 's/Paris/Rome/; t; s/Rome/Paris/' "$work/right" > "$work/wrong"
    for text in right wrong; do
        TINYCHAT_CHAT=$chat python3 bench/perplexity.py models/demo.bin "$work/$text" \
            --replies '[/INST]' --device cpu > "$work/$text.out" || return 1
    done
    cat "$work"/*.out
    awk '{ p[NR] = $2 } END { exit !(p[1] >= 1 && p[1] < 1.05 && p[2] > 2) }' \
        "$work/right.out" "$work/wrong.out"
}
# A text of which nothing is known, in windows: as its logits say.
perplexity_is_that_of_the_logits() {
    head -c 600 README.md > "$work/text"
    TINYCHAT_CHAT=$chat python3 bench/perplexity.py models/demo.bin "$work/text" --window 1000 \
        --device cpu > "$work/text.out" || return 1
    "$chat" models/demo.bin -q --device cpu --tokenize < "$work/text" > "$work/ids" &&
        "$chat" models/demo.bin -q --device cpu --ids "$work/ids" --logits "$work/logits" || return 1
    python3 - "$work" << 'END'
import math, struct, sys
work = sys.argv[1]
ids = [int(i) for i in open(work + "/ids").read().split()]
data = open(work + "/logits", "rb").read()
n = len(data) // 4 // len(ids)
product = 1.0
for i, token in enumerate(ids[1:]):
    p = [math.exp(v) for v in struct.unpack_from(f"<{n}f", data, 4 * n * i)]
    product *= (p[token] / sum(p)) ** (-1 / (len(ids) - 1))
said = float(open(work + "/text.out").read().split()[1])
assert abs(said / product - 1) < 1e-4, (said, product)
END
}
nothing_is_no_error() {
    rm -r "$work/results" && python3 "$work/report.py" | grep -q 'no results yet'
}

cat > "$results/startup.json" << 'END'
{"startup": "llama-2-7b", "bytes": 1000000000,
 "cold": {"plain_copy_gbs": 50, "runs": [{"gpu_s": 1, "kernels_s": 1, "loading_s": 1, "load_gbs": 1, "first_token_s": 1, "total_s": 4}]},
 "warm": {"plain_copy_gbs": 50, "runs": [{"gpu_s": 0.1, "kernels_s": 0.05, "loading_s": 0.05, "load_gbs": 20, "first_token_s": 0.05, "total_s": 0.25}]}}
END
check w4_is_measured measure w4a16
check w16_is_measured measure w16a16
check all_figures_are_there all_is_there
check eight_bit_heads_have_their_table eight_bit_heads_have_their_table
check short_prompts_are_measured_in_steps short_prompts_are_measured_in_steps
check the_charts_are_well_formed charts_are_well_formed
check perplexity_tells_right_from_wrong perplexity_tells_right_from_wrong
check perplexity_is_that_of_the_logits perplexity_is_that_of_the_logits
check no_results_are_no_error nothing_is_no_error
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
