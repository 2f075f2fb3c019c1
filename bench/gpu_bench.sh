#!/bin/sh
# "make gpu-bench": how fast the built-in shapes are on this GPU, with random weights made there. Each
# shape is a process of its own; all the tables follow each other.
set -u
if ! nvidia-smi -L > /dev/null 2>&1; then
    echo "no NVIDIA GPU here: nothing to measure"
    exit 0
fi
for shape in ${SHAPES:-"llama-2-7b:w4a16 llama-2-7b:w16a16 llama-2-13b:w4a16 llama-3-8b:w4a16"}; do
    ./chat --bench "${shape%%:*}" --precision "${shape##*:}" --device cuda 2> build/gpu-bench.log ||
        tail -n 1 build/gpu-bench.log
    echo
done
