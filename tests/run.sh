#!/bin/sh
# Runs test programs and scripts, as many at a time as there are processors (or JOBS), and adds up
# their closing lines. What they print comes in the order in which they are named.
#     sh tests/run.sh BUILD_FOLDER PROGRAM...
# Each prints "N passed, N failed, N skipped" last; one that does not (a crash, say) counts as a
# failure. Exit status 1 if anything failed.
build=$1
shift
jobs=${JOBS:-$(nproc 2> /dev/null || echo 2)}
TINYCHAT_CHAT=${TINYCHAT_CHAT:-$build/chat}
TINYCHAT_CONVERT=${TINYCHAT_CONVERT:-$build/convert/convert}
TEST_WRAPPER=${TEST_WRAPPER:-}
logs=$build/tests/logs
export TINYCHAT_CHAT TINYCHAT_CONVERT TEST_WRAPPER build logs
. tests/fixtures.sh
rm -rf "$logs"
mkdir -p "$logs"

# Of each: what it prints, and its exit status and seconds.
run='
log=$logs/${1##*/} start=$(date +%s)
case $1 in
*.sh) sh "$1" "$build" ;;
*) $TEST_WRAPPER "$1" ;;
esac > "$log" 2>&1
echo "$? $(($(date +%s) - start))" > "$log.new"
mv "$log.new" "$log.status"'

print() {
    for program in "$@"; do
        log=$logs/${program##*/}
        while [ ! -e "$log.status" ]; do sleep 1; done
        read -r status seconds < "$log.status"
        echo "== ${program##*/}, $seconds s"
        cat "$log"
        closing "$log" > /dev/null || echo "   did not finish (exit status $status)"
    done
}

# The closing line of a log; false unless it and the exit status agree.
closing() {
    read -r status seconds < "$1.status"
    line=$(tail -n 1 "$1" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$') || return 1
    echo "$line"
    [ "$status" -eq 0 ] || [ "${line#*, 0 failed}" = "$line" ]
}

print "$@" &
trap 'kill $! 2> /dev/null' EXIT
trap 'exit 130' INT TERM
printf '%s\n' "$@" | xargs -P "$jobs" -I{} sh -c "$run" run {}
wait

passed=0 failed=0 skipped=0
for program in "$@"; do
    if line=$(closing "$logs/${program##*/}"); then
        passed=$((passed + $(echo "$line" | cut -d' ' -f1)))
        failed=$((failed + $(echo "$line" | cut -d' ' -f3)))
        skipped=$((skipped + $(echo "$line" | cut -d' ' -f5)))
    else
        failed=$((failed + 1))
    fi
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
