# Sourced: sets TINYCHAT_FIXTURES to a folder with the unpacked checkpoints written by the original
# llm-awq code, where ../shared/fixtures has them (tests that need them are skipped elsewhere).
if [ -z "${TINYCHAT_FIXTURES:-}" ] && [ -d ../shared/fixtures ] && command -v xz > /dev/null; then
    TINYCHAT_FIXTURES=$PWD/build/fixtures
    mkdir -p "$TINYCHAT_FIXTURES"
    for archive in ../shared/fixtures/*.tar.xz; do
        name=${archive##*/}
        name=${name%.tar.xz}
        if [ ! -e "$TINYCHAT_FIXTURES/$name/.unpacked" ]; then
            tar xJf "$archive" -C "$TINYCHAT_FIXTURES" && : > "$TINYCHAT_FIXTURES/$name/.unpacked"
        fi
    done
    export TINYCHAT_FIXTURES
fi
