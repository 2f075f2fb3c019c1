#!/bin/sh
# chat --doctor, and what is said when a GPU cannot be used, with a driver and an NVRTC of our own
# making, so that every answer can be had on a machine without a GPU. Run from the project's folder:
#     sh tests/test_doctor.sh BUILD_FOLDER
set -u
build=${1:-build/release}
chat=${TINYCHAT_CHAT:-$build/chat}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0

# Every function that src/gpu_driver.h names returns 0; those below do what they say.
cat > "$work/driver.c" <<'END'
#include <stddef.h>
#include <string.h>
int cuInit(unsigned flags) { return INIT + 0 * (int)flags; }
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuDeviceGetCount(int *n) { *n = GPUS; return 0; }
int cuDeviceGet(int *device, int i) { *device = i; return 0; }
int cuDeviceGetName(char *name, int len, int device) { strcpy(name, device ? "Old" : "New"); return len - len; }
int cuDeviceGetAttribute(int *v, int what, int device) {
    *v = what == 75 ? (device ? 7 : MAJOR) : what == 76 ? (device ? 5 : 0) : what == 18 ? 0 : 132;
    return 0;
}
int cuDeviceTotalMem_v2(size_t *bytes, int device) { *bytes = (size_t)(80 - device) << 30; return 0; }
int cuMemGetInfo_v2(size_t *left, size_t *all) { *left = (size_t)70 << 30; *all = 0; return MEMORY; }
int cuGetErrorString(int code, const char **text) { *text = code == 2 ? "out of memory" : "?"; return 0; }
END
sed -n 's/.*F([a-z_]*, "\(cu[A-Z][A-Za-z0-9_]*\)".*/\1/p' src/gpu_driver.h | while read -r name; do
    grep -q "int $name(" "$work/driver.c" || echo "int $name(void) { return 0; }"
done > "$work/rest.c"
cat "$work/rest.c" >> "$work/driver.c"
cat > "$work/nvrtc.c" <<'END'
#include <stddef.h>
#include <string.h>
static const char text[] = "nvrtc: error: failed to open libnvrtc-builtins.so.12.4.\nmore";
int nvrtcVersion(int *major, int *minor) { *major = NVRTC; *minor = 4; return 0; }
int nvrtcGetNumSupportedArchs(int *n) { *n = 2; return 0; }
int nvrtcGetSupportedArchs(int *archs) { archs[0] = 80; archs[1] = 90; return 0; }
int nvrtcCompileProgram(void) { return COMPILES; }
int nvrtcGetProgramLogSize(void *program, size_t *size) { *size = sizeof text + 0 * !program; return 0; }
int nvrtcGetProgramLog(void *program, char *to) { memcpy(to, text, sizeof text + 0 * !program); return 0; }
END
sed -n 's/.*F([a-z_]*, "\(nvrtc[A-Za-z0-9_]*\)".*/\1/p' src/gpu_driver.h | while read -r name; do
    grep -q "int $name(" "$work/nvrtc.c" || echo "int $name(void) { return 0; }"
done > "$work/rest.c"
cat "$work/rest.c" >> "$work/nvrtc.c"

# Builds both with GPUS, MAJOR, MEMORY, INIT, COMPILES and NVRTC as they are set.
libraries() {
    "${CC:-cc}" -shared -fPIC "-DGPUS=$GPUS" "-DMAJOR=$MAJOR" "-DMEMORY=$MEMORY" "-DINIT=$INIT" \
        "$work/driver.c" -o "$work/libcuda.so.1" 2> "$work/log" &&
        "${CC:-cc}" -shared -fPIC "-DCOMPILES=$COMPILES" "-DNVRTC=$NVRTC" "$work/nvrtc.c" \
            -o "$work/libnvrtc.so" 2> "$work/log"
}

# refuses NAME WORDS...: a model on the GPU ends with exit code 4 and one line that holds the words.
refuses() {
    name=$1
    shift
    LD_LIBRARY_PATH=$work TINYCHAT_NVRTC=${nvrtc-$work/libnvrtc.so} TINYCHAT_CACHE=$work/cache \
        "$chat" --bench tiny --device cuda > "$work/out" 2> "$work/log"
    found=$?
    good=yes
    [ "$found" -eq 4 ] && [ "$(wc -l < "$work/log")" -eq 1 ] || { echo "exit status $found"; good=; }
    for words in "$@"; do
        grep -q "$words" "$work/log" || { echo "missing: $words"; good=; }
    done
    if [ -n "$good" ]; then
        echo "  ok     $name"
        passed=$((passed + 1))
    else
        cat "$work/out" "$work/log"
        fail "$name"
    fi
}

# doctor NAME STATUS LINE... with GPUS, MAJOR and so on set: the exit status, and lines
# that the output must hold (as basic regular expressions, whole lines).
doctor() {
    name=$1 status=$2
    shift 2
    libraries || { cat "$work/log"; fail "$name"; return; }
    LD_LIBRARY_PATH=$work TINYCHAT_NVRTC=$work/libnvrtc.so TINYCHAT_CACHE=$work/cache/of \
        "$chat" --doctor > "$work/out" 2> "$work/log"
    found=$?
    good=yes
    [ "$found" -eq "$status" ] || { echo "exit status $found, expected $status"; good=; }
    for line in "$@"; do
        grep -qx "$line" "$work/out" || { echo "missing: $line"; good=; }
    done
    if [ -n "$good" ]; then
        echo "  ok     $name"
        passed=$((passed + 1))
    else
        cat "$work/out" "$work/log"
        fail "$name"
    fi
}
fail() {
    echo "  FAILED $1"
    failed=$((failed + 1))
}

if [ -n "${TEST_WRAPPER:-}" ] || ! command -v "${CC:-cc}" > /dev/null; then
    echo "  skip   doctor: needs a compiler for this machine"
    echo "0 passed, 0 failed, 1 skipped"
    exit 0
fi
GPUS=2 MAJOR=9 MEMORY=0 INIT=0 COMPILES=0 NVRTC=12
doctor a_gpu_that_can_be_used 0 \
    "driver      CUDA 12.4, .*libcuda.so.1" \
    "GPU 0       New, compute capability 9.0, 132 SMs, 80.0 GiB of memory" \
    "            70.0 GiB of it are free" \
    "GPU 1       Old, compute capability 7.5, 132 SMs, 79.0 GiB of memory" \
    "            cannot be used: compute capability 8.0 or newer is needed" \
    "NVRTC       12.4, .*libnvrtc.so, for GPUs up to sm_90" \
    "cache       $work/cache/of, will be made when it is needed" \
    "environment TINYCHAT_CACHE=$work/cache/of" \
    "device auto takes GPU 0"
MAJOR=7
doctor a_gpu_that_is_too_old 4 "device auto takes the CPU: there is no GPU 0 that can be used"
MAJOR=12
doctor a_gpu_newer_than_nvrtc 0 "            older than GPU 0: .*sm_90" "device auto takes GPU 0"
MAJOR=9 MEMORY=2
doctor a_gpu_that_is_full 4 "            cannot be used: .*out of memory (CUDA error 2)"
MEMORY=0 COMPILES=7
doctor nvrtc_without_builtins 4 \
    "            cannot compile: nvrtc: error: failed to open libnvrtc-builtins.so.12.4." \
    "device auto takes GPU 0 for models whose kernels are in the cache, else the CPU: .*"
GPUS=0 COMPILES=0
doctor no_gpu 4 "GPU         the driver shows none (CUDA_VISIBLE_DEVICES hides GPUs)"
GPUS=1 INIT=100
doctor a_driver_without_a_gpu 4 "driver      there is no NVIDIA GPU that the driver can use .*"
CUDA_VISIBLE_DEVICES=7 && export CUDA_VISIBLE_DEVICES
refuses hidden_gpus "shows no GPU; CUDA_VISIBLE_DEVICES is '7'"
unset CUDA_VISIBLE_DEVICES
refuses no_gpu_at_all "there is no NVIDIA GPU"
INIT=803 && libraries
refuses a_driver_half_updated "restart the machine"
INIT=999 && libraries
refuses a_driver_that_fails "starting the NVIDIA driver failed: ? (CUDA error 999)"
INIT=0 MAJOR=7 && libraries
refuses an_old_gpu "New has compute capability 7.0; tinychat needs 8.0 or newer"
MAJOR=9 NVRTC=13 && libraries
refuses nvrtc_newer_than_the_driver "NVRTC 13.4 (.*) is newer than what the driver runs, CUDA 12.4" \
    "pip install nvidia-cuda-nvrtc-cu12"
NVRTC=12 COMPILES=6 && libraries
refuses nvrtc_without_its_builtins "cannot compile the .* kernels for sm_90a: nvrtc: error: failed to open"
nvrtc=$work/nothing.so
refuses nvrtc_not_there "TINYCHAT_NVRTC names $work/nothing.so"
unset nvrtc
sed 's/int cuLaunchKernelEx(/int cuLaunchKernel(/' "$work/driver.c" > "$work/old.c" && mv "$work/old.c" "$work/driver.c"
libraries
refuses an_old_driver "the NVIDIA driver is too old: libcuda.so.1 lacks cuLaunchKernelEx; driver 520"
rm "$work/libcuda.so.1"
[ -e /proc/driver/nvidia/version ] || refuses no_driver "no NVIDIA driver: libcuda.so.1 was not found"
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
