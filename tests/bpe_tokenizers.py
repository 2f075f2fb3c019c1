"""tokenizer.json files for tests: the real pipelines of the families with small vocabularies, trained here by the
tokenizers package on text that is made up from words of many languages. Used by make_tokenizer_goldens.py and
tokenizer_differential.py; the same version of the package makes the same files.
"""
import json
import random
import tempfile

from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers

LLAMA3 = (r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+"
          r"|\s+(?!\S)|\s+")
QWEN2 = LLAMA3.replace(r"\p{N}{1,3}", r"\p{N}")
GPT2 = r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"

WORDS = """the a of to and in is that it for on with as was are this be have from at by not you all we an which can
don't I'm it's we've you'll they'd HE'S I'LL more will one about there their other when who some time into what could
model token weight memory group scale zero layer head cache prompt answer question reader paper river garden window
Überraschung größer Straße naïve café señor façade élève москва привет мир язык книга українська ελληνικά γλώσσα
日本語 東京 世界 你好 我们 中文 模型 한국어 안녕하세요 세계 مرحبا العربية كتاب שלום עברית हिन्दी नमस्ते ไทย สวัสดี Việt ngữ
🙂 🎉 🦙 👩‍💻 2024 1999 10 3.14 1,000,000 0x1F def return self. -> == != <= += // /* */ {} [] () "quoted" 'single' <b>""".split()


def corpus(count=4000):
    rng = random.Random(7)
    for i in range(count):
        line = rng.choice(["", "", " ", "    ", "\t", "        "]) + " ".join(rng.choices(WORDS, k=rng.randint(2, 12)))
        yield line + rng.choice([".", "!", "?", "...", ";", ":\n", ",\r\n", "", "  ", "\n\n", " \n"])


def byte_level(normalizer, pre_tokenizer, size):
    tokenizer = Tokenizer(models.BPE())
    if normalizer:
        tokenizer.normalizer = normalizer
    tokenizer.pre_tokenizer = pre_tokenizer
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False,
                                  initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()))
    tokenizer.train_from_iterator(corpus(), trainer)
    return tokenizer


def split(expression):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(expression), "isolated"),
                                    pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def special(text, **flags):
    return AddedToken(text, special=True, normalized=False, **flags)


def neox(size):
    """GPT-NeoX: NFC, runs of spaces that are added tokens; MPT-chat's two; and tokens with every flag."""
    tokenizer = byte_level(normalizers.NFC(), pre_tokenizers.ByteLevel(add_prefix_space=False), size)
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|padding|>")])
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in range(24, 1, -1)])
    tokenizer.add_tokens([AddedToken("<|im_start|>", normalized=True, special=False),
                          AddedToken("<|im_end|>", normalized=True, special=False),
                          AddedToken("e\u0301\u4e2d", normalized=True, special=False),
                          AddedToken("garden", normalized=False, special=False, single_word=True),
                          AddedToken("<left>", normalized=False, special=False, lstrip=True),
                          AddedToken("<both>", normalized=False, special=False, lstrip=True, rstrip=True)])
    return tokenizer


def falcon(size):
    tokenizer = byte_level(None, pre_tokenizers.Sequence([
        pre_tokenizers.Punctuation("contiguous"), pre_tokenizers.ByteLevel(add_prefix_space=False),
        pre_tokenizers.Digits(individual_digits=False),
        pre_tokenizers.Split(Regex("[0-9][0-9][0-9]"), "isolated")]), size)
    tokenizer.add_special_tokens([special(">>TITLE<<"), special("<|endoftext|>")])
    return tokenizer


def llama3(size):
    tokenizer = byte_level(None, split(LLAMA3), size)
    tokenizer.add_special_tokens([special(f"<|{name}|>") for name in (
        "begin_of_text", "end_of_text", "start_header_id", "end_header_id", "eot_id", "eom_id")])
    bos = tokenizer.token_to_id("<|begin_of_text|>")
    tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=False),
        processors.TemplateProcessing(single="<|begin_of_text|> $A", pair="<|begin_of_text|> $A <|begin_of_text|> $B",
                                      special_tokens=[("<|begin_of_text|>", bos)])])
    description = json.loads(tokenizer.to_str())
    description["model"]["ignore_merges"] = True
    # some pieces that merging cannot reach, which ignore_merges finds all the same
    vocab, merges = description["model"]["vocab"], description["model"]["merges"]
    made = {(m if isinstance(m, str) else " ".join(m)).replace(" ", "") for m in merges[-len(merges) // 8::3]}
    description["model"]["merges"] = [m for m in merges
                                      if (m if isinstance(m, str) else " ".join(m)).replace(" ", "") not in made
                                      or len(m) % 2]
    assert made <= set(vocab)
    return Tokenizer.from_str(json.dumps(description))


def qwen2(size):
    tokenizer = byte_level(normalizers.NFC(), split(QWEN2), size)
    tokenizer.add_special_tokens([special("<|endoftext|>"), special("<|im_start|>"), special("<|im_end|>")])
    tokenizer.add_tokens([AddedToken(text, normalized=False, special=False)
                          for text in ("<tool_call>", "</tool_call>", "<think>", "</think>")])
    return tokenizer


def sentencepiece_kind(size, first=False):
    """LLaMA-2's tokenizer.json: characters, U+2581 for spaces, bytes for what is no piece. `first`: the newer form,
    with Metaspace; else Prepend and Replace."""
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>", fuse_unk=True, byte_fallback=True))
    replace = normalizers.Replace(" ", "\u2581")
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("\u2581"), replace])
    trainer = trainers.BpeTrainer(vocab_size=size, show_progress=False, limit_alphabet=150, special_tokens=[
        "<unk>", "<s>", "</s>"] + [f"<0x{i:02X}>" for i in range(256)])
    tokenizer.train_from_iterator((line[:60] for line in corpus()), trainer)
    description = json.loads(tokenizer.to_str())
    description["model"].update(byte_fallback=True, fuse_unk=True, unk_token="<unk>")
    description["added_tokens"] = [t for t in description["added_tokens"] if t["id"] < 3]
    description["decoder"] = {"type": "Sequence", "decoders": [
        {"type": "Replace", "pattern": {"String": "\u2581"}, "content": " "}, {"type": "ByteFallback"}, {"type": "Fuse"},
        {"type": "Strip", "content": " ", "start": 1, "stop": 0}]}
    bos = {"SpecialToken": {"id": "<s>", "type_id": 0}}
    text = [{"Sequence": {"id": part, "type_id": i}} for i, part in enumerate("AB")]
    description["post_processor"] = {
        "type": "TemplateProcessing", "single": [bos, text[0]],
        "pair": [bos, text[0], {"SpecialToken": {"id": "<s>", "type_id": 1}}, text[1]],
        "special_tokens": {"<s>": {"id": "<s>", "ids": [1], "tokens": ["<s>"]}}}
    if first:
        description["normalizer"] = None
        description["pre_tokenizer"] = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first",
                                        "split": False}
    return Tokenizer.from_str(json.dumps(description))


KINDS = {"neox": neox, "falcon": falcon, "llama3": llama3, "qwen2": qwen2, "llama2json": sentencepiece_kind,
         "metaspace": lambda size: sentencepiece_kind(size, first=True)}


def make(kind, size):
    return KINDS[kind](size)


# ---- random texts ----

AWKWARD = ["\u2581", "\0", "\n", "\r\n", "\r", "\t", "\x0b", "\x1c", "\x85", "\u00a0", "\u3000", "\ufffd", "\ufeff",
           "e\u0301", "\u0301", "\u0323\u0307", "\u1100\u1161\u11a8", "\uac00\u11a8", "\u0958", "\u2126", "\u200d",
           "\u017f", "'\u017f", "'s", "'S", "'Re", "'LL", "'ve", "'d", "'x", "\u2019s", "<s>", "</s>", "<unk>", "<0x41>",
           "[INST]", "<|endoftext|>", "<|im_end|>", "<|eot_id|>", "<think>", "<left>", "<both>", " garden", "garden",
           "e\u0301\u4e2d", "\u00e9\u4e2d", ">>TITLE<<", "1", "12", "123", "12345", "1234567", "\u00b2\u00b3", "\u0661\u0662", "\u2163",
           "!", "...", "::", "->", "=====", "#include <", "    return x;\n", "\n\n\n", " \n ", "\t\t", "a" * 30]
RANGES = [(0x20, 0x7f), (0x20, 0x7f), (0x80, 0x250), (0x300, 0x370), (0x370, 0x500), (0x5d0, 0x700), (0x900, 0xa00),
          (0x1100, 0x1200), (0x1e00, 0x2070), (0x2190, 0x2600), (0x3040, 0x3100), (0x4e00, 0x9fff), (0xac00, 0xd7a3),
          (0xf900, 0xfb00), (0x1d100, 0x1d200), (0x1f300, 0x1f700), (0, 0xd800), (0xe000, 0x110000)]


def random_text(rng, pieces):
    out = ""
    for _ in range(rng.choice([1, 2, 4, 8, 20])):
        kind = rng.randrange(8)
        if kind < 2:
            out += rng.choice(pieces)
        elif kind == 2:
            out += " " * rng.choice([1, 1, 2, 3, 5, 24, 30])
        elif kind == 3:
            out += rng.choice(WORDS) + rng.choice(["", " "])
        elif kind == 4:
            out += rng.choice(AWKWARD)
        elif kind == 5:
            out += str(rng.randrange(10 ** rng.randrange(1, 9)))
        else:
            low, high = rng.choice(RANGES)
            out += "".join(chr(rng.randrange(low, high)) for _ in range(rng.randrange(1, 5)))
    return out
