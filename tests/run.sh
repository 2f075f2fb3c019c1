#!/bin/sh
# Runs test programs one after another and adds up their closing lines.
#     sh tests/run.sh BUILD_FOLDER PROGRAM...
# Each program prints "N passed, N failed, N skipped" last; one that does not (a crash, say) counts
# as a failure. The seconds that each took are said, and are in BUILD_FOLDER/tests/seconds.txt. Exit
# status 1 if anything failed.
build=$1
shift
TINYCHAT_CHAT=${TINYCHAT_CHAT:-$build/chat}
TINYCHAT_CONVERT=${TINYCHAT_CONVERT:-$build/convert/convert}
export TINYCHAT_CHAT TINYCHAT_CONVERT
. tests/fixtures.sh

passed=0 failed=0 skipped=0
log=$build/tests/log.txt
: > "$log.all"
: > "$build/tests/seconds.txt"
for program in "$@" tests/test_*.sh; do
    [ -e "$program" ] || continue
    echo "== ${program##*/}"
    start=$(date +%s)
    case $program in
    *.sh) sh "$program" "$build" > "$log" 2>&1 ;;
    *) $TEST_WRAPPER "$program" > "$log" 2>&1 ;;
    esac
    status=$?
    seconds=$(($(date +%s) - start))
    echo "$seconds ${program##*/}" >> "$build/tests/seconds.txt"
    cat "$log"
    [ $seconds -lt 2 ] || echo "   $seconds s"
    cat "$log" >> "$log.all"
    line=$(tail -n 1 "$log" | grep -E '^[0-9]+ passed, [0-9]+ failed, [0-9]+ skipped$')
    if [ -z "$line" ] || { [ $status -ne 0 ] && [ "${line#*, 0 failed}" != "$line" ]; }; then
        echo "   did not finish (exit status $status)"
        failed=$((failed + 1))
        continue
    fi
    passed=$((passed + $(echo "$line" | cut -d' ' -f1)))
    failed=$((failed + $(echo "$line" | cut -d' ' -f3)))
    skipped=$((skipped + $(echo "$line" | cut -d' ' -f5)))
done
echo "$passed passed, $failed failed, $skipped skipped"
[ $failed -eq 0 ]
