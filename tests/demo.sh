#!/bin/sh
# "make demo": a chat with the small model that ships. Without a terminal (in a script, in CI) it
# asks three fixed questions instead.
if [ -t 0 ] && [ -t 1 ]; then
    exec ./chat models/demo.bin
fi
for question in "What is the capital of France?" "What is 23 plus 45?" "What is tinychat?"; do
    echo "> $question"
    ./chat models/demo.bin --temp 0 -p "$question" || exit 1
done
