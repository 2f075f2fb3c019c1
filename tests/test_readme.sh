#!/bin/sh
# README.md against the project: its program is examples/minimal.c and works as it says; the files,
# make targets, flags and commands that it and docs/ name exist. Run from the project's folder:
#     sh tests/test_readme.sh BUILD_FOLDER
set -u
build=${1:-build/release}
chat=${TINYCHAT_CHAT:-$build/chat}
convert=${TINYCHAT_CONVERT:-$build/convert/convert}
TEST_WRAPPER=${TEST_WRAPPER:-} # names an emulator in cross builds
pages="README.md docs/chat.md docs/checkpoints.md docs/families.md docs/format.md models/README.md"
work=$(mktemp -d) || exit 1
trap 'rm -rf "$work"' EXIT
passed=0 failed=0 skipped=0

. tests/check.sh

# code LANGUAGE PAGE: the lines of the page's code blocks in that language.
code() {
    awk -v want="$1" '
        /^ *```/ { inside = !inside; sub(/^ *```/, ""); language = $0; next }
        inside && language == want' "$2"
}

# inline PAGE: what stands between single back quotes outside code blocks, one a line.
inline() {
    awk '/^ *```/ { inside = !inside; next } !inside' "$1" | tr '\n' ' ' | tr '`' '\n' |
        awk 'NR % 2 == 0'
}

# commands PAGE: command lines, without comments and quoted arguments; a word a line, each behind
# the program's name: "./chat -p".
commands() {
    { code sh "$1"; inline "$1"; } | sed 's/^ *//; s/"[^"]*"/TEXT/g; s/  *#.*//' |
        awk '$1 == "./chat" || $1 == "convert/convert" || $1 == "make" {
                 for (i = 2; i <= NF; i++) print $1, $i
             }'
}

the_program_is_examples_minimal_c() {
    code c README.md > "$work/readme.c"
    diff "$work/readme.c" examples/minimal.c || { echo "fix: copy examples/minimal.c to README.md"; return 1; }
}

# In a folder with nothing but the three files and the program, by the README's own command line.
the_program_works_as_the_readme_says() {
    mkdir -p "$work/drop" || return 1
    code c README.md > "$work/drop/minimal.c"
    cp tinychat.h tinychat.c kernels.cu.inc "$work/drop" || { echo "fix: make amalgamate"; return 1; }
    code sh README.md | grep '^cc ' > "$work/cc" || { echo "no line begins with 'cc '"; return 1; }
    sed "s|^cc |${CC:-cc} |" "$work/cc" > "$work/command"
    (cd "$work/drop" && sh -e "$work/command") || return 1
    minimal="$TEST_WRAPPER $work/drop/minimal"
    $minimal "$work/none.bin" > "$work/answer" && { echo "success without a model"; return 1; }
    grep -q 'none.bin' "$work/answer" || { cat "$work/answer"; return 1; }
    [ -e models/demo.bin ] || { echo "models/demo.bin is not here" > "$work/skip"; return 0; }
    $minimal models/demo.bin "What is the capital of France?" > "$work/answer" ||
        { cat "$work/answer"; return 1; }
    grep -q '[a-z]' "$work/answer" || { echo "an empty answer"; return 1; }
}

the_files_it_names_exist() {
    awk '/^## / { here = $0 == "## What is where" } here' README.md > "$work/map.md"
    code "" "$work/map.md" | awk '{ print $1 }' > "$work/files"
    [ "$(wc -l < "$work/files")" -ge 10 ] || { echo "no list of files under 'What is where'"; return 1; }
    missing=0
    while read -r file; do
        [ -e "$file" ] || { echo "README.md names $file, which is not there"; missing=1; }
    done < "$work/files"
    return $missing
}

the_links_lead_somewhere() {
    missing=0
    for page in $pages; do
        [ -e "$page" ] || { echo "$page is not there"; missing=1; continue; }
        for link in $(grep -o '\]([^)]*)' "$page" | sed 's/^](//; s/)$//'); do
            case $link in
            http*) continue ;;
            \#*) target=$page anchor=${link#\#} ;;
            *\#*) target=$(dirname "$page")/${link%%\#*} anchor=${link#*\#} ;;
            *) target=$(dirname "$page")/$link anchor= ;;
            esac
            [ -e "$target" ] || { echo "$page: no file $link"; missing=1; continue; }
            [ -z "$anchor" ] || sed -n 's/^##* //p' "$target" | tr 'A-Z ' 'a-z-' | tr -d './' |
                grep -qxF -e "$anchor" || { echo "$page: no heading $link"; missing=1; }
        done
    done
    return $missing
}

the_make_targets_exist() {
    for page in $pages; do commands "$page"; done | awk '$1 == "make" { print $2 }' |
        grep -v -e = -e '^-' | sort -u > "$work/targets"
    [ -s "$work/targets" ] || { echo "no make targets found in the README"; return 1; }
    missing=0
    while read -r target; do
        grep -Eq "^$target( |:)" Makefile || { echo "no target '$target' in the Makefile"; missing=1; }
    done < "$work/targets"
    return $missing
}

# Every flag behind ./chat and convert/convert, and every other one in back quotes, is in the help.
# Flags with an underscore are llm-awq's; --local-dir is hf's, and never in back quotes alone.
the_flags_and_commands_exist() {
    $TEST_WRAPPER "$chat" --help | tr -s ' ,' '\n' | sort -u > "$work/chat" || return 1
    $TEST_WRAPPER "$convert" --help | tr -s ' ,[]' '\n' | sort -u > "$work/convert" || return 1
    sort -u "$work/chat" "$work/convert" > "$work/both"
    grep -qxF -e --temp "$work/chat" && grep -qxF -e --hf "$work/convert" || { echo "no help"; return 1; }
    missing=0
    for page in $pages; do
        { commands "$page" | sed -n 's|^./chat \(-[^=]*\).*|chat \1|p; s|^convert/convert \(-[^=]*\).*|convert \1|p'
          inline "$page" | tr ' ' '\n' | sed -n 's|^\(--[a-z][a-z-]*\)$|both \1|p; s|^\(/[a-z][a-z]*\)$|chat \1|p'
        } | sort -u > "$work/flags"
        while read -r program flag; do
            grep -qxF -e "$flag" "$work/$program" || { echo "$page: $flag is in no --help ($program)"; missing=1; }
        done < "$work/flags"
    done
    return $missing
}

check the_program_is_examples_minimal_c the_program_is_examples_minimal_c
check the_program_works_as_the_readme_says the_program_works_as_the_readme_says
check the_files_it_names_exist the_files_it_names_exist
check the_links_lead_somewhere the_links_lead_somewhere
check the_make_targets_exist the_make_targets_exist
check the_flags_and_commands_exist the_flags_and_commands_exist
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
