#!/bin/sh
# The Makefile: what it would do, which "make -n" says. Run from the project's folder:
#     sh tests/test_make.sh BUILD_FOLDER
set -u
build=${1:-build/release}
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0
unset MAKEFLAGS MFLAGS MAKELEVEL # those of the make that runs the tests

. tests/check.sh

would() {
    make -n "$@" > "$work/would" || { cat "$work/would"; return 1; }
}
says() {
    grep -qF -e "$1" "$work/would" || { echo "not '$1', but:"; tail -n 20 "$work/would"; return 1; }
}

# though the programs in the project's folder are newer than every source
another_config_is_built_and_copied() {
    would config=never-made all && says ' -o build/never-made/chat' && says 'cp build/never-made/chat chat' &&
        says ' -o build/never-made/convert/convert' && says 'cp build/never-made/convert/convert convert/convert'
}

# Of the tests, whose objects nothing names: they are kept.
a_second_make_builds_nothing() {
    case $build in build/*) ;; *) return 0 ;; esac
    would "config=${build#build/}" tests || return 1
    ! grep -e ' -[co] ' "$work/would" && [ -e "$build/tests/test_cli.o" ]
}

folders_may_have_spaces() {
    would DESTDIR='/a folder' PREFIX='/the prefix' install && says 'install -d "/a folder/the prefix/bin"' &&
        says ' "/a folder/the prefix/bin/tinychat"' && says ' "/a folder/the prefix/bin/tinychat-convert"' &&
        would DESTDIR='/a folder' PREFIX='/the prefix' uninstall &&
        says '"/a folder/the prefix/bin/tinychat" "/a folder/the prefix/bin/tinychat-convert"'
}

check another_config_is_built_and_copied another_config_is_built_and_copied
check a_second_make_builds_nothing a_second_make_builds_nothing
check folders_may_have_spaces folders_may_have_spaces
echo "$passed passed, $failed failed, 0 skipped"
[ $failed -eq 0 ]
