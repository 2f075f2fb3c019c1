#!/usr/bin/env python3
"""Makes the small tokenizers of tests/data and what the sentencepiece and tokenizers packages say about them.

    python3 tests/make_tokenizer_goldens.py [spm] [bpe]     # from the repository root; default both
                                                            # pip install sentencepiece protobuf tokenizers

spm_small.model  flags as LLaMA's (BPE, identity, byte fallback, dummy prefix, split digits), and on top what LLaMA
                 does not have: user-defined pieces that overlap, control pieces, UNUSED pieces of several depths and
                 equal scores, so that every branch of the algorithm is taken
spm_unk.model    no byte fallback, no dummy prefix, a surface of its own for unknown pieces
spm_*.golden     lines "encode HEX: IDS" and "decode IDS: HEX"; the texts include malformed UTF-8
bpe_*.json       tokenizer.json files of the kinds in bpe_tokenizers.py
bpe_*.golden     the same, and "special HEX: IDS" with special tokens recognised

The same versions of the packages make the same files; the tests read them with a C compiler alone.
"""
import json
import pathlib
import random
import sys
import tempfile

import sentencepiece
from sentencepiece import sentencepiece_model_pb2 as proto

import bpe_tokenizers

DATA = pathlib.Path(__file__).resolve().parent / "data"

WORDS = """the a of to and in is that it for on with as was are this be have from at by not you all we an which can
more has will one about there their other when who its some time into what could them then now only your than also
model token weight memory group scale zero layer head cache prompt answer question reader writer paper river garden
window yellow silver mountain harbour station market library teacher doctor engine kernel thread signal number
quick brown fox jumps over lazy dog seven thirteen hundred thousand hello world please thank answer 2024 1999 10 3.14
Überraschung größer naïve café señor façade москва привет мир 東京 日本 你好 世界 안녕 🙂 🎉""".split()


def corpus(rng):
    for i in range(6000):
        words = rng.choices(WORDS, k=rng.randint(3, 14))
        line = " ".join(words)
        if i % 5 == 0:
            line = " " * rng.choice([2, 4, 8]) + line
        if i % 3 == 0:
            line = line.capitalize() + rng.choice([".", "!", "?", "...", ";"])
        yield line


def train(path, **options):
    rng = random.Random(1)
    with tempfile.TemporaryDirectory() as folder:
        text = pathlib.Path(folder) / "corpus.txt"
        text.write_text("\n".join(corpus(rng)), encoding="utf-8")
        sentencepiece.SentencePieceTrainer.train(
            input=str(text), model_prefix=str(pathlib.Path(folder) / "m"), model_type="bpe",
            normalization_rule_name="identity", remove_extra_whitespaces=False, split_digits=True,
            allow_whitespace_only_pieces=True, num_threads=1, minloglevel=2, **options)
        model = proto.ModelProto()
        model.ParseFromString((pathlib.Path(folder) / "m.model").read_bytes())
    model.trainer_spec.input[:] = []
    model.trainer_spec.model_prefix = ""
    return model


def edit_small(model):
    """UNUSED pieces and equal scores, which training does not make."""
    normal = [p for p in model.pieces if p.type == p.NORMAL]
    for piece in normal:
        if piece.score < -40:  # in dozens of equal scores
            piece.score = -40 - (int(-piece.score - 40) // 12) * 12
    for piece in normal[10:400:7]:
        piece.type = piece.UNUSED
    single = [p for p in normal if len(p.piece) == 1]
    single[5].type = single[5].UNUSED  # cannot be taken apart
    for text in ("king", "oing", "ing=", "a<to", "==a"):  # would join with a user-defined piece, which must not
        piece = model.pieces.add()
        piece.piece, piece.score, piece.type = text, -0.5, piece.NORMAL
    model.trainer_spec.vocab_size = len(model.pieces)


def texts(rng, model, count):
    """Random texts: pieces, words, spaces, special-looking text, random characters and bytes."""
    pieces = [p.piece.replace("\u2581", " ").encode() for p in model.pieces]
    special = ["king", "oing==a<to", "<s>", "</s>", "<unk>", "<0x41>", "<|turn|>", "<tool>", "<tool", "<tool_call>", "\u2581", "\0", "\n",
               "\r\n", "\t", "\u3000", "\ufffd", "e\u0301", "\u200b", "\ufeff"]
    for _ in range(count):
        out = b""
        for _ in range(rng.choice([1, 2, 4, 8, 16])):
            kind = rng.randrange(9)
            if kind < 3:
                out += rng.choice(pieces)
            elif kind == 3:
                out += rng.choice(WORDS).encode() + b" "
            elif kind == 4:
                out += b" " * rng.choice([1, 1, 2, 3, 9])
            elif kind == 5:
                out += rng.choice(special).encode()
            elif kind == 6:
                out += chr(rng.choice([rng.randrange(0x20, 0x7f), rng.randrange(0x80, 0xd800),
                                       rng.randrange(0xe000, 0x110000)])).encode()
            elif kind == 7:
                out += bytes(rng.randrange(256) for _ in range(rng.randrange(1, 5)))
            else:
                whole = chr(rng.choice([0xe9, 0x20ac, 0x1f642, 0x800, 0x10000])).encode()
                out += whole[:rng.randrange(1, len(whole))]
        yield out


FIXED = [b"", b" ", b"  ", b"a", b" a", b"a ", b"\xff", b"a\xffb", b"\xc0\x80", b"\xc1\xbf", b"\xed\xa0\x80",
         b"\xf4\x90\x80\x80", b"\xf5\x80\x80\x80", b"\xe2\x82", b"\xe2\x82a", b"\xf0\x9f\x99", b"\xf0\x9f\x99\xf0\x9f\x99\x82",
         b"\xe0\x9f\xbf", b"\xf0\x8f\xbf\xbf", b"\x80", b"\xef\xbf\xbd", b"\xe2\x96\x81", b"a\0b", b"</s>", b"<s>hi</s>",
         b" " * 40, b"a" * 40, b"ab" * 20, b"<tool><tool_call><tool", b"12345 678", b"Hello, world!\n\n  Bye.\t"]


def golden(path, model, rng, encodes, decodes):
    processor = sentencepiece.SentencePieceProcessor(model_proto=model.SerializeToString())
    lines = []
    for text in FIXED + list(texts(rng, model, encodes)):
        lines.append("encode %s: %s" % (text.hex(), " ".join(map(str, processor.encode(text)))))
    bytes_ = [i for i, p in enumerate(model.pieces) if p.type == p.BYTE]
    for _ in range(decodes):
        ids = []
        for _ in range(rng.choice([1, 2, 3, 6, 12])):
            kind = rng.randrange(6)
            if kind == 0 and bytes_:
                ids += [rng.choice(bytes_) for _ in range(rng.randrange(1, 4))]
            elif kind == 1 and bytes_:
                ids += [bytes_[b] for b in chr(rng.choice([0x41, 0xe9, 0x20ac, 0x1f642])).encode()]
            elif kind == 2:
                ids.append(rng.randrange(3))
            else:
                ids.append(rng.randrange(len(model.pieces)))
        lines.append("decode %s: %s" % (" ".join(map(str, ids)), processor.decode(ids).encode().hex()))
    path.write_text("\n".join(lines) + "\n")


def make_spm():
    small = train(DATA, vocab_size=1000, byte_fallback=True, character_coverage=0.9985,
                  user_defined_symbols=["<tool>", "<tool_call>", "<to", "==", "===", "\u2581\u2581code", "ing", "東"],
                  control_symbols=["<|turn|>", "<|end|>"])
    edit_small(small)
    unk = train(DATA, vocab_size=400, byte_fallback=False, character_coverage=0.98, add_dummy_prefix=False,
                unk_surface="[?]")
    for name, model, encodes, decodes in (("small", small, 450, 200), ("unk", unk, 120, 60)):
        kinds = {t: sum(p.type == t for p in model.pieces) for t in range(1, 7)}
        (DATA / f"spm_{name}.model").write_bytes(model.SerializeToString())
        golden(DATA / f"spm_{name}.golden", model, random.Random(2), encodes, decodes)
        print(f"spm_{name}.model: {len(model.pieces)} pieces, by type {kinds}", file=sys.stderr)


def bpe_golden(path, tokenizer, rng, count):
    ids_of = sorted(tokenizer.get_vocab(with_added_tokens=True).values())
    pieces = [tokenizer.decode([i], skip_special_tokens=False) for i in ids_of]
    # what tinychat does not make out of a person's text although the file does not call it special
    marks = [t.content for t in tokenizer.get_added_tokens_decoder().values()
             if not t.special and t.content[0] in "<[" and t.content[-1] in ">]"]
    lines = []
    for i in range(count):
        text = bpe_tokenizers.random_text(rng, pieces) if i else ""
        for kind in ("encode", "special"):
            tokenizer.encode_special_tokens = kind == "encode"
            if kind == "special" or not any(mark in text for mark in marks):
                ids = tokenizer.encode(text, add_special_tokens=False).ids
                lines.append("%s %s: %s" % (kind, text.encode().hex(), " ".join(map(str, ids))))
        ids = [rng.choice(ids_of) for _ in range(rng.choice([1, 2, 5, 12]))]
        lines.append("decode %s: %s" % (" ".join(map(str, ids)), tokenizer.decode(ids).encode().hex()))
    path.write_text("\n".join(lines) + "\n")


def make_bpe():
    for name in bpe_tokenizers.KINDS:
        tokenizer = bpe_tokenizers.make(name, 700)
        path = DATA / f"bpe_{name}.json"
        tokenizer.save(str(path), pretty=False)
        if name == "falcon":  # how the package wrote merges before 0.20
            description = json.loads(path.read_text())
            description["model"]["merges"] = [" ".join(pair) for pair in description["model"]["merges"]]
            path.write_text(json.dumps(description, ensure_ascii=False, separators=(",", ":")))
        bpe_golden(DATA / f"bpe_{name}.golden", tokenizer, random.Random(3), 120)


def main():
    kinds = sys.argv[1:] or ["spm", "bpe"]
    if "spm" in kinds:
        make_spm()
    if "bpe" in kinds:
        make_bpe()


main()
