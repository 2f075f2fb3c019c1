#!/bin/sh
# Runs every fuzz target: first its inputs as they are, then random changes of them.
#     sh tests/fuzz/run.sh BUILD_FOLDER [MUTATIONS [SEED]]
# A target that crashes leaves its input in build/fuzz/TARGET/fuzz-input. Exit status 1 if one did.
set -u
build=$PWD/$1
mutations=${2:-1000} seed=${3:-1}
data=$PWD/tests/data
work=$PWD/build/fuzz
rm -rf "$work"
mkdir -p "$work"
[ -z "${TMPDIR:-}" ] && [ -w /dev/shm ] && TMPDIR=/dev/shm && export TMPDIR
failed=0

target() { # target NAME SHARE FILE...: SHARE per cent of the mutations
    name=$1 n=$((mutations * $2 / 100))
    shift 2
    mkdir "$work/$name"
    if (cd "$work/$name" && "$build/tests/fuzz/fuzz_$name" -k -n $n -s "$seed" "$@") > "$work/$name/log" 2>&1; then
        echo "  $name: $(tail -n 1 "$work/$name/log")"
    else
        tail -n 40 "$work/$name/log"
        echo "  $name crashed: $work/$name/fuzz-input"
        failed=1
    fi
}

# Inputs of fuzz_convert, and model files.
mkdir "$work/conversions" "$work/models"
for folder in "$data"/quant/*/; do
    input=$work/conversions/$(basename "$folder")
    { cat "$folder/config.json"; printf '\n--next file--\n'; cat "$folder/model.safetensors"; } > "$input"
    [ -e "$folder/search.pt" ] && { printf '\n--next file--\n'; cat "$folder/search.pt"; } >> "$input"
done
for folder in "$data"/quant/ct-sym "$data"/quant/falcon-40b-b; do
    "$build/convert/convert" --hf "$folder" --no-tokenizer -o "$work/models/${folder##*/}" > "$work/log" 2>&1 ||
        { cat "$work/log"; exit 1; }
done
"$build/convert/convert" --hf "$data/llama-small/hf" --quantize rtn -o "$work/models/llama-small" > "$work/log" 2>&1 ||
    { cat "$work/log"; exit 1; }

target json 500 "$data"/families/*/config.json "$data"/bpe_*.json
target pickle 500 "$data"/checkpoint/*.pt
target containers 500 "$data"/checkpoint/*.pt "$data"/checkpoint/*.safetensors
target checkpoint 100 "$data"/checkpoint/*.pt "$data"/checkpoint/*.safetensors
target tokenizer 30 "$data"/bpe_*.json
target convert 100 "$work"/conversions/*
target model 100 "$work"/models/*
exit $failed
