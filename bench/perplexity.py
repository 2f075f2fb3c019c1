#!/usr/bin/env python3
"""Perplexity of a model on a text. Needs nothing but Python 3 and ./chat.

    python3 bench/perplexity.py MODEL TEXT [--window TOKENS] [FLAGS OF CHAT...]
    python3 bench/perplexity.py MODEL TEXT --replies MARK [FLAGS OF CHAT...]

The text's tokens are cut into windows [512] and each is evaluated on its own; the perplexity is exp of
the mean of -log p of every token but the first of each. With --replies each line is a window, in which
text such as <s> is the special token, and only what follows MARK counts.

What --head int8 does to the demo model, on questions and answers that it was not trained on:
    awk -F '\\t' '!/^#/ && NF == 3 { print "<s>[INST] " $2 " [/INST] " $3 "</s>" }' \\
        models/questions.tsv > questions.txt
    python3 bench/perplexity.py models/demo.bin questions.txt --replies '[/INST]' [--head int8]
"""
import array
import math
import os
import subprocess
import sys


def run(arguments, data):
    done = subprocess.run(arguments, input=data, stdout=subprocess.PIPE)
    if done.returncode:
        sys.exit(done.returncode)  # chat has said why
    return done.stdout


def surprise(row, token):
    """-log p of a token by its position's logits."""
    top = max(row)
    return top + math.log(sum(math.exp(v - top) for v in row)) - row[token]


class Window:
    """Tokens, of which those from `first` on count."""

    def __init__(self, ids, first=1):
        self.ids, self.first = ids, first

    def surprise(self, chat, flags):
        """The sum of -log p."""
        logits = array.array("f", run(chat + flags + ["--ids", "-", "--logits", "-"],
                                      " ".join(map(str, self.ids)).encode()))
        if sys.byteorder == "big":
            logits.byteswap()
        n = len(logits) // len(self.ids)
        return sum(surprise(logits[(i - 1) * n:i * n], self.ids[i])
                   for i in range(self.first, len(self.ids)))


def tokenize(chat, text, *flags):
    return [int(word) for word in run(chat + ["--tokenize", *flags], text).split()]


def windows_of_lines(chat, text, mark):
    windows = []
    for line in text.splitlines():
        at = line.find(mark)
        if at < 0:
            sys.exit(f"a line has no '{mark.decode()}': {line.decode(errors='replace')}")
        before = tokenize(chat, line[:at + len(mark)], "--special")
        ids = tokenize(chat, line, "--special")
        if ids[:len(before)] != before:
            sys.exit(f"'{mark.decode()}' is within a token: {line.decode(errors='replace')}")
        windows.append(Window(ids, len(before)))
    return windows


def take(flags, name, otherwise):
    """The value of a flag of this script, which is taken out of those for chat."""
    if name not in flags:
        return otherwise
    at = flags.index(name)
    if at + 1 == len(flags):
        sys.exit(f"{name} needs a value")
    value = flags[at + 1]
    del flags[at:at + 2]
    return value


def main():
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    (model, path), flags = sys.argv[1:3], sys.argv[3:]
    size, mark = take(flags, "--window", "512"), take(flags, "--replies", None)
    if not size.isdecimal() or int(size) < 2:
        sys.exit(f"--window: expected a whole number of at least 2, got '{size}'")
    window = int(size)
    chat = [os.environ.get("TINYCHAT_CHAT", "./chat"), model, "-q"]
    try:
        with open(path, "rb") as file:
            text = file.read()
    except OSError as error:
        sys.exit(str(error))
    if mark:
        windows = windows_of_lines(chat, text, mark.encode())
    else:
        ids = tokenize(chat, text)
        windows = [Window(ids[at:at + window]) for at in range(0, len(ids), window)]
    windows = [w for w in windows if len(w.ids) > w.first]
    count = sum(len(w.ids) - w.first for w in windows)
    if not count:
        sys.exit(f"{path}: no tokens that count")
    total = sum(w.surprise(chat, flags) for w in windows)
    print(f"perplexity {math.exp(total / count):.5f} of {count} tokens in {len(windows)} windows")


if __name__ == "__main__":
    main()
