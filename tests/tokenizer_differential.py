#!/usr/bin/env python3
"""Compares tinychat's tokenizers with the tokenizers and sentencepiece packages on random texts and random ids.

    pip install tokenizers sentencepiece
    python3 tests/tokenizer_differential.py [TOKENIZER ...] [--count 100000] [--seed 1]     # from the repository root

TOKENIZER is a tokenizer.model, a tokenizer.json, or a name of bpe_tokenizers.KINDS, which trains one; default: those
of ../shared/tokenizers and all the names. Each is converted with convert/convert into a model file with a few zeroes
for weights, and used through the C API. Compared are:

    text  as a person's: special tokens stay text          (encode_special_tokens; sentencepiece's encode)
    text  as a template's: special tokens are recognised   (not for tokenizer.model: transformers' part)
    bytes with malformed UTF-8, against the text in which each malformed byte is U+FFFD
    ids   decoded

Exit status 1 if anything differs; the first differences are printed.
"""
import argparse
import ctypes
import json
import pathlib
import random
import struct
import subprocess
import sys
import tempfile
import time
import unicodedata

import bpe_tokenizers

SHARED = pathlib.Path("../shared/tokenizers")
MALFORMED = [b"\xff", b"\xc0\x80", b"\xe2\x82", b"\xf0\x9f\x99", b"\xed\xa0\x80", b"\xf4\x90\x80\x80", b"\x80", b"\xe2"]


def build_library(folder):
    path = folder / "libtinychat.so"
    sources = sorted(map(str, pathlib.Path("src").glob("*.c")))
    subprocess.run(["cc", "-std=c99", "-O2", "-shared", "-fPIC", "-I.", "-Isrc", *sources, "-lm", "-ldl", "-lpthread",
                    "-o", str(path)], check=True)
    return ctypes.CDLL(str(path))


def write_checkpoint(folder, vocab):
    """A LLaMA of one layer with zeroes for weights."""
    hidden = 64
    config = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": hidden,
              "intermediate_size": hidden, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": vocab,
              "max_position_embeddings": 128, "rms_norm_eps": 1e-5, "tie_word_embeddings": True, "eos_token_id": 0,
              "torch_dtype": "float16"}
    (folder / "config.json").write_text(json.dumps(config))
    layer = "model.layers.0."
    shapes = {"model.embed_tokens.weight": [vocab, hidden], "model.norm.weight": [hidden],
              layer + "input_layernorm.weight": [hidden], layer + "post_attention_layernorm.weight": [hidden]}
    for name in ("self_attn.q", "self_attn.k", "self_attn.v", "self_attn.o", "mlp.gate", "mlp.up", "mlp.down"):
        shapes[f"{layer}{name}_proj.weight"] = [hidden, hidden]
    header, at = {}, 0
    for name, shape in shapes.items():
        size = 2 * shape[0] * (shape[1] if len(shape) > 1 else 1)
        header[name] = {"dtype": "F16", "shape": shape, "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as out:
        out.write(struct.pack("<Q", len(text)) + text)
        out.truncate(8 + len(text) + at)


class Error(ctypes.Structure):
    _fields_ = [("code", ctypes.c_int), ("message", ctypes.c_char * 1012)]


class Chat:
    """The C API, as far as needed here."""

    def __init__(self, library, path):
        self.library, self.model, self.error = library, ctypes.c_void_p(), Error()
        self.ids, self.text = (ctypes.c_int32 * (1 << 20))(), ctypes.create_string_buffer(1 << 20)
        self.check(library.tc_model_open(str(path).encode(), None, ctypes.byref(self.model), ctypes.byref(self.error)))

    def check(self, code):
        if code:
            sys.exit(self.error.message.decode())

    def encode(self, data, special):
        n = ctypes.c_size_t()
        self.check(self.library.tc_tokenize(self.model, data, ctypes.c_size_t(len(data)), 2 if special else 0, self.ids,
                                            ctypes.c_size_t(len(self.ids)), ctypes.byref(n), ctypes.byref(self.error)))
        assert n.value <= len(self.ids)
        return self.ids[:n.value]

    def decode(self, ids):
        n = ctypes.c_size_t()
        self.check(self.library.tc_detokenize(self.model, (ctypes.c_int32 * len(ids))(*ids), ctypes.c_size_t(len(ids)),
                                              self.text, ctypes.c_size_t(len(self.text)), ctypes.byref(n),
                                              ctypes.byref(self.error)))
        return self.text.raw[:n.value]

    def close(self):
        self.library.tc_model_close(self.model)


class SentencePiece:
    def __init__(self, path):
        import sentencepiece
        self.processor = sentencepiece.SentencePieceProcessor(model_file=str(path))
        self.size = self.processor.get_piece_size()
        self.pieces = [self.processor.id_to_piece(i).replace("\u2581", " ") for i in range(self.size)]
        self.ids = range(self.size)
        self.trusted = False

    def encode(self, text, special):
        return self.processor.encode(text)

    def decode(self, ids):
        return self.processor.decode(ids)


class Tokenizers:
    def __init__(self, path):
        import tokenizers
        self.plain = tokenizers.Tokenizer.from_file(str(path))
        self.plain.encode_special_tokens = True
        self.special = tokenizers.Tokenizer.from_file(str(path))
        vocab = self.plain.get_vocab(with_added_tokens=True)
        self.size = max(vocab.values()) + 1
        self.ids = sorted(vocab.values())
        self.pieces = [self.plain.decode([i], skip_special_tokens=False) for i in self.ids]
        # what tinychat keeps from people although the file does not call it special
        self.marks = [t.content for t in self.plain.get_added_tokens_decoder().values()
                      if not t.special and t.content[0] in "<[" and t.content[-1] in ">]"]
        self.trusted = True

    def encode(self, text, special):
        tokenizer = self.special if special else self.plain
        return tokenizer.encode(text, add_special_tokens=False).ids

    def decode(self, ids):
        return self.plain.decode(ids, skip_special_tokens=True)


def spoil(rng, text):
    """Bytes with malformed ones in them, and the text that they mean."""
    data, meant = b"", ""
    for part in [text[i:i + 5] for i in range(0, len(text), 5)]:
        bad = rng.choice(MALFORMED)
        data += part.encode() + bad + b" "
        meant += part + "\ufffd" * len(bad) + " "
    return data, meant


def compare(name, chat, other, count, seed):
    rng, failures, texts = random.Random(seed), 0, 0

    def check(what, given, ours, theirs):
        nonlocal failures
        if ours != theirs:
            failures += 1
            if failures <= 10:
                print(f"{name}: {what} {given!r}\n  tinychat {ours!r}\n  package  {theirs!r}")

    for i in range(count):
        text = bpe_tokenizers.random_text(rng, other.pieces)
        texts += len(text)
        # a person's marks are text for tinychat only
        if not any(mark in text for mark in getattr(other, "marks", [])):
            check("text", text, chat.encode(text.encode(), False), other.encode(text, False))
        # nor does a combining character behind a template's mark take it apart
        composed = unicodedata.normalize("NFC", text)
        whole = all(text.count(mark) == composed.count(mark) for mark in getattr(other, "marks", []))
        if other.trusted and whole:
            check("special", text, chat.encode(text.encode(), True), other.encode(text, True))
        if i % 10 == 0:
            data, meant = spoil(rng, text)
            if not any(mark in meant for mark in getattr(other, "marks", [])):
                check("bytes", data, chat.encode(data, False), other.encode(meant, False))
        ids = [rng.choice(other.ids[:600]) if rng.random() < 0.4 else rng.choice(other.ids)
               for _ in range(rng.choice([1, 2, 5, 20]))]
        check("ids", ids, chat.decode(ids), other.decode(ids).encode())
    print(f"{name}: {count} texts ({texts} characters), {failures} differences", flush=True)
    return failures


def run(library, argument, folder, count, seed):
    path = pathlib.Path(argument)
    if argument in bpe_tokenizers.KINDS:
        path = folder / "tokenizer.json"
        bpe_tokenizers.make(argument, 3000).save(str(path))
    else:
        (folder / path.name).write_bytes(path.read_bytes())
    other = SentencePiece(path) if path.suffix == ".model" else Tokenizers(path)
    if path.suffix == ".model":  # encode's prefix is sentencepiece's own
        (folder / "tokenizer_config.json").write_text('{"tokenizer_class": "LlamaTokenizer", "legacy": true}')
    write_checkpoint(folder, other.size)
    subprocess.run(["convert/convert", "-q", "--hf", str(folder), "-o", str(folder / "model.bin")], check=True)
    start = time.time()
    chat = Chat(library, folder / "model.bin")
    failures = compare(argument, chat, other, count, seed)
    chat.close()
    print(f"  {time.time() - start:.0f} s")
    return failures


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tokenizers", nargs="*")
    parser.add_argument("--count", type=int, default=100000)
    parser.add_argument("--seed", type=int, default=1)
    arguments = parser.parse_args()
    shared = [SHARED / "llama2/tokenizer.model", SHARED / "mpt/tokenizer.json", SHARED / "falcon/tokenizer.json"]
    names = arguments.tokenizers or [str(p) for p in shared if p.exists()] + list(bpe_tokenizers.KINDS)
    failures = 0
    with tempfile.TemporaryDirectory() as top:
        library = build_library(pathlib.Path(top))
        for i, name in enumerate(names):
            folder = pathlib.Path(top) / str(i)
            folder.mkdir()
            failures += run(library, name, folder, arguments.count, arguments.seed)
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
