#!/usr/bin/env python3
"""Compares ./chat's tokenizer with the sentencepiece package on random byte strings, valid UTF-8 and not.

    pip install sentencepiece
    python3 tests/tokenizer_differential.py MODEL.bin TOKENIZER.model [--chat ./chat] [--count 500] [--seed 1]

MODEL.bin has to be converted from a checkpoint with that TOKENIZER.model. Two comparisons: the bytes through
--tokenize against encode(), and random ids through --detokenize against decode(). Also checks that --special only adds
special pieces: text between two of them is what --tokenize gives. Exit status 1 and the inputs, as hexadecimal, on a
difference.
"""
import argparse
import random
import subprocess
import sys

import sentencepiece

MALFORMED = [b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe2"]
AWKWARD = ["\u2581", "\0", "\n", "\r\n", "\t", "\u3000", "\ufffd", "\ufeff", "e\u0301", "\u200d", "<s>", "</s>", "<unk>",
           "<0x41>", "[INST]", "12345", " " * 17]
RANGES = [(0x20, 0x7f), (0xa0, 0x250), (0x370, 0x500), (0x5d0, 0x700), (0x900, 0xa00), (0x4e00, 0x9fff),
          (0xac00, 0xd7a3), (0x1f300, 0x1f700), (0x10000, 0x10ffff)]


def random_text(rng, pieces):
    out = b""
    for _ in range(rng.choice([1, 2, 5, 20, 100])):
        kind = rng.randrange(8)
        if kind < 3:
            out += rng.choice(pieces)
        elif kind == 3:
            out += b" " * rng.choice([1, 1, 2, 3, 5])
        elif kind == 4:
            out += chr(rng.randrange(*rng.choice(RANGES))).encode()
        elif kind == 5:
            out += rng.choice(AWKWARD).encode()
        elif kind == 6:
            out += rng.choice(MALFORMED)
        else:
            out += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 4)))
    return out


def random_ids(rng, processor):
    return [rng.randrange(3, 259) if rng.random() < 0.3 else rng.randrange(processor.get_piece_size())
            for _ in range(rng.choice([1, 2, 5, 20]))]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("tokenizer")
    parser.add_argument("--chat", default="./chat")
    parser.add_argument("--count", type=int, default=500)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    processor = sentencepiece.SentencePieceProcessor(model_file=arguments.tokenizer)
    pieces = [processor.id_to_piece(i).replace("\u2581", " ").encode() for i in range(processor.get_piece_size())]
    rng = random.Random(arguments.seed)
    failures = 0

    def chat(flags, stdin):
        return subprocess.run([arguments.chat, arguments.model, *flags], input=stdin, stdout=subprocess.PIPE,
                              check=True).stdout

    def compare(what, given, ours, theirs):
        nonlocal failures
        if ours != theirs:
            failures += 1
            print(f"{what} {given}\n  chat          {ours}\n  sentencepiece {theirs}")

    for _ in range(arguments.count):
        text = random_text(rng, pieces)
        ours = list(map(int, chat(["--tokenize"], text).split()))
        compare("encode", text.hex(), ours, processor.encode(text))

        ids = random_ids(rng, processor)
        decoded = chat(["--detokenize"], " ".join(map(str, ids)).encode())
        compare("decode", ids, decoded, processor.decode(ids).encode())

        # </s> at the end, after text without anything special in it
        plain = random_text(rng, [p for p in pieces if b"<" not in p]).replace(b"<", b"")
        ours = list(map(int, chat(["--tokenize", "--special"], plain + b"</s>").split()))
        compare("encode, special,", plain.hex(), ours, processor.encode(plain) + [processor.eos_id()])

    print(f"{3 * arguments.count} comparisons, {failures} differences (sentencepiece {sentencepiece.__version__})")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
