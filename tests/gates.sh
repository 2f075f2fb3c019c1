#!/bin/sh
# The gates of "make check" that are not test programs. Each prints "ok" or what is wrong and how to
# mend it; the closing line counts them like tests. Exit status 1 if one failed.
set -u
passed=0 failed=0 skipped=0
work=build/gates
rm -rf $work
mkdir -p $work
jobs=${JOBS:-$(nproc 2> /dev/null || echo 2)}

gate() { # gate NAME COMMAND...
    name=$1
    shift
    start=$(date +%s)
    if "$@" > $work/log 2>&1; then
        echo "  ok     $name, $(($(date +%s) - start)) s"
        passed=$((passed + 1))
    else
        cat $work/log
        echo "  FAILED $name"
        failed=$((failed + 1))
    fi
}
skip() {
    echo "  skip   $1: $2"
    skipped=$((skipped + 1))
}

generated_files_are_fresh() {
    sh src/amalgamate.sh $work || return 1
    for file in tinychat.c kernels.cu.inc; do
        cmp $file $work/$file || { echo "fix: make amalgamate"; return 1; }
    done
}

# Modules, amalgamation, converter and tests without a single warning. Clang finds its own before it
# makes code, gcc some of them while it does.
no_warnings() { # no_warnings COMPILER
    flags="-std=c99 -pedantic -Wall -Wextra -Werror -O2 -I. -Isrc -Iconvert -Itests"
    [ "$1" = gcc ] || flags="$flags -fsyntax-only"
    for file in main.c tinychat.c src/*.c convert/*.c tests/*.c tests/fuzz/*.c bench/*.c examples/*.c; do
        [ -e "$file" ] && echo "$file"
    done | xargs -P "$jobs" -I{} sh -c "$1 $flags -c {} -o \$(mktemp $work/XXXXXX) || exit 255"
}

header_is_clean() { # header_is_clean COMPILER LANGUAGE STANDARD
    printf '#include "tinychat.h"\n#include "tinychat.h"\n' > $work/header.txt
    $1 -x "$2" -std="$3" -pedantic -Wall -Wextra -Werror -I. -fsyntax-only $work/header.txt
}

# What a user does: three files in a folder, one command.
drop_in_builds() {
    mkdir -p $work/drop && cp main.c tinychat.h tinychat.c kernels.cu.inc $work/drop || return 1
    (cd $work/drop && "${CC:-cc}" -O2 main.c tinychat.c -lm -ldl -lpthread -o chat && ./chat --version)
}

# Every symbol of the object is the library's own: prefixed tc_, hidden ones included.
symbols_have_the_prefix() {
    "${CC:-cc}" -O2 -I. -c tinychat.c -o $work/tinychat.o || return 1
    nm -g --defined-only $work/tinychat.o | awk '$3 !~ /^tc_[a-z]/ { print $3; bad = 1 } END { exit bad }' || return 1
    for object in build/release/src/*.o; do
        nm -g --defined-only "$object" | awk -v o="$object" '$3 !~ /^tc_/ { print o, $3; bad = 1 } END { exit bad }' || return 1
    done
}

# The library neither prints, exits nor touches signals or the locale.
no_forbidden_calls() {
    ! nm -u $work/tinychat.o | grep -wE 'exit|_exit|abort|printf|puts|putchar|signal|sigaction|setlocale|umask|system|popen'
}

sanitizers_are_silent() {
    make --no-print-directory -j"$jobs" config=sanitize tests build/sanitize/chat build/sanitize/convert/convert > $work/build.log 2>&1 ||
        { tail -n 40 $work/build.log; return 1; }
    programs='' with_nvrtc=''
    for program in tests/test_*.sh tests/test_*.c; do
        case $program in
        tests/test_emulated.sh) continue ;; # a compiler of its own: it was there in "make test"
        *.c) program=build/sanitize/${program%.c} ;;
        esac
        case $program in
        */test_kernels | */test_jit | */test_loading | */test_fake_gpu | */test_architectures.sh)
            with_nvrtc="$with_nvrtc $program" ;;
        *) programs="$programs $program" ;;
        esac
    done
    # shellcheck disable=SC2086
    sh tests/run.sh build/sanitize $programs || return 1
    # NVRTC leaks
    # shellcheck disable=SC2086
    ASAN_OPTIONS=detect_leaks=0 sh tests/run.sh build/sanitize $with_nvrtc
}

# A few changes of every input; "make fuzz" makes more.
fuzz_targets_find_nothing() {
    make --no-print-directory -j"$jobs" fuzz MUTATIONS=100
}

aarch64_agrees() {
    cc=aarch64-linux-gnu-gcc
    $cc -std=c99 -pedantic -Wall -Wextra -Werror -O2 -static -I. -Isrc -Itests tests/test_cpu_kernels.c src/*.c \
        -lm -ldl -lpthread -o $work/test_cpu_aarch64 2> $work/neon.log || { cat $work/neon.log; return 1; }
    qemu-aarch64 $work/test_cpu_aarch64
}

echo "== gates"
gate generated_files_are_fresh generated_files_are_fresh
for compiler in gcc clang; do
    if command -v $compiler > /dev/null; then
        gate "no_warnings_with_$compiler" no_warnings $compiler
        gate "header_is_c99_with_$compiler" header_is_clean $compiler c c99
    else
        skip "no_warnings_with_$compiler" "$compiler is not installed"
    fi
done
if command -v g++ > /dev/null; then
    gate header_is_cxx header_is_clean g++ c++ c++11
else
    skip header_is_cxx "g++ is not installed"
fi
gate drop_in_builds drop_in_builds
gate symbols_have_the_prefix symbols_have_the_prefix
gate no_forbidden_calls no_forbidden_calls
gate sanitizers_are_silent sanitizers_are_silent
gate fuzz_targets_find_nothing fuzz_targets_find_nothing
if command -v aarch64-linux-gnu-gcc > /dev/null && command -v qemu-aarch64 > /dev/null; then
    gate aarch64_agrees aarch64_agrees
else
    skip aarch64_agrees "aarch64-linux-gnu-gcc or qemu-aarch64 is not installed"
fi
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
