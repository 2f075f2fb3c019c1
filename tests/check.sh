# check.sh - for the tests that are shell scripts: `. tests/check.sh`, with a folder of the test's
# own in $work and the counts in $passed, $failed and $skipped.

# check NAME COMMAND...: the test NAME passes if the command succeeds; else its output is shown. One
# that cannot be made here writes the reason to $work/skip and succeeds.
check() {
    name=$1
    shift
    rm -f "$work/skip"
    if ! "$@" > "$work/log" 2>&1; then
        cat "$work/log"
        echo "  FAILED $name"
        failed=$((failed + 1))
    elif [ -e "$work/skip" ]; then
        echo "  skip   $name: $(cat "$work/skip")"
        skipped=$((skipped + 1))
    else
        echo "  ok     $name"
        passed=$((passed + 1))
    fi
}
