# check.sh - for the tests that are shell scripts: `. tests/check.sh`, with a folder of the test's
# own in $work and the counts in $passed and $failed.

# check NAME COMMAND...: the test NAME passes if the command succeeds; else its output is shown.
check() {
    name=$1
    shift
    if "$@" > "$work/log" 2>&1; then
        echo "  ok     $name"
        passed=$((passed + 1))
    else
        cat "$work/log"
        echo "  FAILED $name"
        failed=$((failed + 1))
    fi
}
