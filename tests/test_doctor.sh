#!/bin/sh
# chat --doctor with a driver and an NVRTC of our own making, so that every answer can be had on a
# machine without a GPU. Run from the project's folder:
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
int cuDriverGetVersion(int *v) { *v = 12040; return 0; }
int cuDeviceGetCount(int *n) { *n = GPUS; return 0; }
int cuDeviceGet(int *device, int i) { *device = i; return 0; }
int cuDeviceGetName(char *name, int len, int device) { strcpy(name, device ? "Old" : "New"); return len - len; }
int cuDeviceGetAttribute(int *v, int what, int device) {
    *v = what == 75 ? (device ? 7 : MAJOR) : what == 76 ? (device ? 5 : 0) : 132;
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
int nvrtcVersion(int *major, int *minor) { *major = 12; *minor = 4; return 0; }
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

# doctor NAME STATUS LINE... with GPUS, MAJOR, MEMORY and COMPILES set: the exit status, and lines
# that the output must hold (as basic regular expressions, whole lines).
doctor() {
    name=$1 status=$2
    shift 2
    "${CC:-cc}" -shared -fPIC "-DGPUS=$GPUS" "-DMAJOR=$MAJOR" "-DMEMORY=$MEMORY" "$work/driver.c" \
        -o "$work/libcuda.so.1" 2> "$work/log" &&
        "${CC:-cc}" -shared -fPIC "-DCOMPILES=$COMPILES" "$work/nvrtc.c" -o "$work/libnvrtc.so" \
            2> "$work/log" || { cat "$work/log"; fail "$name"; return; }
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
GPUS=2 MAJOR=9 MEMORY=0 COMPILES=0
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
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
