#!/usr/bin/env python3
"""Makes tests/data/llama-*: small checkpoints in every format that convert reads, and references.

    python3 tests/make_data.py [FOLDER]        (default: the data folder beside this script)

The files are committed; make never runs this script. It is deterministic: the same versions give
the same bytes. Versions used for the committed files: Python 3.11.7, torch 2.15.0, transformers
5.24.0, sentencepiece 0.2.3, safetensors 0.8.0, numpy 2.4.6.

What is checked before anything is written: the packers against golden vectors that the original
packers produced, and every packed tensor by unpacking it with the published formulas. What is
checked of the references: that their margins are wide enough to compare argmax and greedy ids,
that fp64 agrees with fp32, and that a model with a typical mistake (wrong RoPE base, wrong GQA
mapping, a wrong group, ...) is far outside the tolerance that the tests use.

The models have random weights. Per model:

    llama-small   GQA, untied, with a SentencePiece tokenizer. fp16 and bf16 safetensors, two
                  pytorch_model shards; group size 64 in packings A, B, C, as a legacy stream, as a
                  split folder, as AutoAWQ gemm safetensors, and with one layer left in fp16;
                  group size 32 in packing B.
    llama-128     MHA, tied, group size 128 in packings A (as a Hugging Face pytorch_model.bin),
                  B and C. Its config.json is of the transformers 5 kind (rope_parameters, dtype).
    llama-rows    One group per row, of 128 and 384 columns, in packings A (AutoAWQ, group size -1),
                  B and C; must be expanded to groups of 128.
    llama-256     Group size 256, packing B; must be expanded to 128.
    llama-odd     MQA, row counts that are no multiple of 16, group size 32 in packing C,
                  rope_theta 500000, and a sequence that fills the context to its last position.
    llama-odd16   fp16, no dimension a multiple of 16, head_dim not hidden_size / heads.
"""
import io
import json
import pathlib
import pickle
import shutil
import struct
import sys

import numpy as np
import sentencepiece
import torch
from safetensors.torch import save_file
from transformers import AutoConfig, LlamaForCausalLM

LINEARS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
           "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]
NORMS = ["input_layernorm", "post_attention_layernorm"]

# ---- the three packings --------------------------------------------------------------------------
# Integers q [n, k] and zero points z [n, k / g] in 0..15, scales s [n, k / g] fp16; the weight is
# s * (q - z). Every packer has an unpacker written from the formulas for one element.

ORDER_A = [0, 2, 4, 6, 1, 3, 5, 7]    # nibble i of a word of packing A holds column ORDER_A[i]
INVERSE_A = [0, 4, 1, 5, 2, 6, 3, 7]  # column i lies in nibble INVERSE_A[i]


def join_nibbles(nibbles, dtype):
    """[..., nibbles of one word] -> [...]: the first nibble is the lowest."""
    word = np.zeros(nibbles.shape[:-1], dtype)
    for i in range(nibbles.shape[-1]):
        word |= nibbles[..., i].astype(dtype) << dtype(4 * i)
    return word


def padded_groups(groups, group_size):
    """Columns of the scales in packings B and C: a multiple of 8 words' worth of zero points."""
    step = {32: 4, 64: 2}.get(group_size, 1)
    return -(-(-(-groups // 8)) // step) * step * 8


def pack_a_matrix(m):
    """[r, c] -> uint32 [r, c / 8]: eight neighbours along c, permuted, in one word."""
    return join_nibbles(m.reshape(m.shape[0], -1, 8)[:, :, ORDER_A], np.uint32)


def pack_b_matrix(m):
    return join_nibbles(m.reshape(m.shape[0], -1, 8), np.uint32)


def position_c(k):
    """Where column k (0..63) of a 64-wide tile lies in the tile's row of packing C."""
    r = k & 31
    return (k & 32) | (((r >> 1) & 3) << 3) | ((r & 1) << 2) | (r >> 3)


def pack_c_matrix(q):
    n, k = q.shape
    columns = np.argsort([position_c(i) for i in range(64)])
    tiles = q.reshape(n // 4, 4, k // 64, 64)[..., columns].transpose(0, 2, 1, 3)
    return join_nibbles(tiles.reshape(-1, 4), np.uint16).reshape(n // 4, k)


def unpack_a(words, column):
    return words[:, column >> 3] >> np.uint32(4 * INVERSE_A[column & 7]) & np.uint32(15)


def unpack_b(words, column):
    return words[:, column >> 3] >> np.uint32(4 * (column & 7)) & np.uint32(15)


def unpack_c(words, n, k):
    flat, columns = words.reshape(-1), words.shape[1]
    p = position_c(k & 63)
    word = (n >> 2) * columns + (k >> 6) * 64 + (n & 3) * 16 + (p >> 2)
    return flat[word] >> np.uint16(4 * (p & 3)) & np.uint16(15)


def check_golden_vectors():
    n, k = np.mgrid[0:32, 0:128]
    q = (k + 5 * n + 3 * (k >> 4)) & 15
    z = ((3 * np.arange(32) + 1) & 15).reshape(32, 1)

    def row(words, count=4):
        return " ".join(f"{int(w):0{2 * words.itemsize}X}" for w in words[:count])

    a, b, c = pack_a_matrix(q.T), pack_b_matrix(q), pack_c_matrix(q[:4, :64])
    assert row(a[0]) == "39F5E4A0 B17D6C28 39F5E4A0 B17D6C28"
    assert row(a[17]) == "7D3928E4 F5B1A06C 7D3928E4 F5B1A06C"
    assert row(pack_a_matrix(z.T)[0]) == "60A43D71 E82CB5F9 60A43D71 E82CB5F9"
    assert row(b[0]) == "76543210 FEDCBA98 A9876543 210FEDCB"
    assert row(b[5]) == "0FEDCBA9 87654321 3210FEDC BA987654"
    zeros = pack_b_matrix(np.pad(z, ((0, 0), (0, 7))))[:5, 0]
    assert row(zeros, 5) == "00000001 00000004 00000007 0000000A 0000000D"
    rows = c.reshape(4, 16)
    assert row(rows[0], 16) == ("B380 C491 D5A2 E6B3 F7C4 08D5 19E6 2AF7 "
                                "19E6 2AF7 3B08 4C19 5D2A 6E3B 7F4C 805D")
    assert row(rows[1], 16) == ("08D5 19E6 2AF7 3B08 4C19 5D2A 6E3B 7F4C "
                                "6E3B 7F4C 805D 916E A27F B380 C491 D5A2")
    assert row(rows[2], 16) == ("5D2A 6E3B 7F4C 805D 916E A27F B380 C491 "
                                "B380 C491 D5A2 E6B3 F7C4 08D5 19E6 2AF7")
    assert row(rows[3], 16) == ("A27F B380 C491 D5A2 E6B3 F7C4 08D5 19E6 "
                                "08D5 19E6 2AF7 3B08 4C19 5D2A 6E3B 7F4C")


def signed(words):
    """numpy's unsigned words as a torch tensor of the signed type that checkpoints use."""
    kind = {2: np.int16, 4: np.int32}[words.itemsize]
    return torch.from_numpy(np.ascontiguousarray(words).view(kind))


def pack(linear, packing):
    """One quantised linear -> its tensors by the last part of their names."""
    q, z, s = linear["q"], linear["z"], linear["s"]
    (n, k), groups = q.shape, z.shape[1]
    if packing == "a":
        words, zeros = pack_a_matrix(q.T), pack_a_matrix(z.T)
        assert all((unpack_a(words, i) == q[i]).all() for i in range(n))
        assert all((unpack_a(zeros, i) == z[i]).all() for i in range(n))
        return {"qweight": signed(words), "qzeros": signed(zeros),
                "scales": torch.from_numpy(np.ascontiguousarray(s.T))}
    width = padded_groups(groups, k // groups)
    scales = np.zeros((n, width), np.float16)
    scales[:, :groups] = s
    if packing == "b":
        words = pack_b_matrix(q)
        zeros = pack_b_matrix(np.pad(z, ((0, 0), (0, width - groups))))
        assert all((unpack_b(words, i) == q[:, i]).all() for i in range(k))
        assert all((unpack_b(zeros, i) == z[:, i]).all() for i in range(groups))
        return {"qweight": signed(words), "qzeros": signed(zeros),
                "scales": torch.from_numpy(scales)}
    assert packing == "c"
    words = pack_c_matrix(q)
    assert all(unpack_c(words, i, j) == q[i, j] for i in range(n) for j in range(k))
    scaled = np.zeros((width, n), np.float16)
    scaled[:groups] = -(s.astype(np.float32) * z).astype(np.float16).T
    back = np.rint(-scaled[:groups].astype(np.float32) / s.T.astype(np.float32))
    assert (back == z.T).all()
    return {"qweight": signed(words), "scales": torch.from_numpy(np.ascontiguousarray(scales.T)),
            "scaled_zeros": torch.from_numpy(scaled)}


# ---- quantisation --------------------------------------------------------------------------------

def quantise(weight, group_size):
    """fp16 [n, k] -> q, z, s as llm-awq's pseudo-quantisation and packer compute them in fp16."""
    n, k = weight.shape
    size = k if group_size == -1 else group_size
    w = weight.reshape(n, k // size, size)
    low, high = w.amin(-1, keepdim=True), w.amax(-1, keepdim=True)
    s = (high - low).clamp(min=1e-5) / 15
    z = (-torch.round(low / s)).clamp(0, 15)
    q = (torch.round(w / s) + z).clamp(0, 15)
    w = (q - z) * s
    assert (torch.round((w + z * s) / s) == q).all()
    return {"q": q.reshape(n, k).numpy().astype(np.uint8), "z": z[..., 0].numpy().astype(np.uint8),
            "s": s[..., 0].numpy()}


def dequantise(linear):
    q, z, s = (linear[x].astype(np.float32) for x in "qzs")
    n, k = q.shape
    w = s[..., None] * (q.reshape(n, s.shape[1], -1) - z[..., None])
    return torch.from_numpy(w.reshape(n, k))


# ---- models --------------------------------------------------------------------------------------

def config_json(hidden, inter, layers, heads, kv_heads, vocab, max_pos, theta=10000.0, eps=1e-5,
                tied=False, head_dim=None, modern=False):
    config = {
        "architectures": ["LlamaForCausalLM"], "attention_bias": False, "bos_token_id": 1,
        "eos_token_id": 2, "hidden_act": "silu", "hidden_size": hidden, "initializer_range": 0.02,
        "intermediate_size": inter, "max_position_embeddings": max_pos, "model_type": "llama",
        "num_attention_heads": heads, "num_hidden_layers": layers, "num_key_value_heads": kv_heads,
        "pretraining_tp": 1, "rms_norm_eps": eps, "tie_word_embeddings": tied, "use_cache": True,
        "vocab_size": vocab}
    if head_dim:
        config["head_dim"] = head_dim
    if modern:
        config |= {"dtype": "float16", "transformers_version": "5.23.0",
                   "rope_parameters": {"rope_theta": theta, "rope_type": "default"}}
    else:
        config |= {"torch_dtype": "float16", "transformers_version": "4.40.0",
                   "rope_scaling": None, "rope_theta": theta}
    return config


def make_weights(config, seed):
    """A state dict in fp16: small embeddings, so that epsilon counts; attention that looks at some
    positions more than at others; scales that differ from row to row and from block to block."""
    rng = torch.Generator().manual_seed(seed)
    h, i, v = config["hidden_size"], config["intermediate_size"], config["vocab_size"]
    d = config.get("head_dim") or h // config["num_attention_heads"]
    qd, kvd = d * config["num_attention_heads"], d * config["num_key_value_heads"]
    shapes = [(qd, h), (kvd, h), (kvd, h), (h, qd), (i, h), (i, h), (h, i)]
    gains = [1.6, 1.6, 1.0, 1.0, 1.0, 1.0, 1.4]

    def matrix(n, k, gain):
        blocks = torch.randn(n, -(-k // 32), generator=rng).mul(0.35).exp()
        w = torch.randn(n, k, generator=rng) * blocks.repeat_interleave(32, 1)[:, :k]
        w *= gain / k ** 0.5
        # One-sided groups, whose zero points are 0 and 15.
        w[2 % n, :k // 2] = w[2 % n, :k // 2].abs() + 0.01
        w[5 % n, k // 2:] = -w[5 % n, k // 2:].abs() - 0.01
        return w.half()

    def norm():
        return (1 + 0.2 * torch.randn(h, generator=rng)).half()

    tied = config["tie_word_embeddings"]  # then small embeddings would make small logits
    state = {"model.embed_tokens.weight":
             (torch.randn(v, h, generator=rng) * (0.1 if tied else 0.02)).half()}
    for layer in range(config["num_hidden_layers"]):
        base = f"model.layers.{layer}."
        for name, (n, k), gain in zip(LINEARS, shapes, gains):
            state[base + name + ".weight"] = matrix(n, k, gain)
        for name in NORMS:
            state[base + name + ".weight"] = norm()
    state["model.norm.weight"] = norm()
    if not tied:
        state["lm_head.weight"] = (torch.randn(v, h, generator=rng) * 3 / h ** 0.5).half()
    return state


def quantise_state(state, group_size, keep=()):
    """-> quantised linears by module name, and everything else. `keep`: modules left in fp16."""
    linears, rest = {}, {}
    for name, tensor in state.items():
        module = name.removesuffix(".weight")
        if any(module.endswith(x) for x in LINEARS) and module not in keep:
            linears[module] = quantise(tensor, group_size)
        else:
            rest[name] = tensor
    return linears, rest


def packed_state(quantised, packing, inv_freq=None):
    """The state dict that the packers write; `inv_freq` adds the buffer of older dumps."""
    linears, rest = quantised
    state = dict(rest)
    for module, linear in linears.items():
        for part, tensor in pack(linear, packing).items():
            state[f"{module}.{part}"] = tensor
        if inv_freq is not None and module.endswith("q_proj"):
            state[module.removesuffix("q_proj") + "rotary_emb.inv_freq"] = inv_freq.clone()
    return dict(sorted(state.items()))


def dequantised_state(quantised):
    linears, rest = quantised
    return rest | {f"{module}.weight": dequantise(x) for module, x in linears.items()}


# ---- files ---------------------------------------------------------------------------------------

def save_legacy(state, path):
    """torch's non-zip format. Its storage keys are memory addresses, in the order of whose digits
    the data lies: they are replaced by numbers in order of first use, so that the file is the same
    in every run."""
    out = io.BytesIO()
    torch.save(state, out, _use_new_zipfile_serialization=False)
    raw = out.getvalue()
    stream = io.BytesIO(raw)

    class Reader(pickle.Unpickler):
        def persistent_load(self, ident):
            keys.setdefault(ident[2], (len(keys), ident))
            return torch.storage.UntypedStorage(0)

        def find_class(self, module, name):
            return (lambda *args: None) if name == "_rebuild_tensor_v2" else super().find_class(
                module, name)

    keys, pickles = {}, []
    for _ in range(5):
        start = stream.tell()
        result = Reader(stream).load()
        pickles.append(raw[start:stream.tell()])
    renamed = {key: str(94000000000000 + 64 * number) for key, (number, _) in keys.items()}
    data = {}
    for key in result:
        count = struct.unpack("<q", stream.read(8))[0]
        size = {"HalfStorage": 2, "FloatStorage": 4, "IntStorage": 4}[keys[key][1][1].__name__]
        data[renamed[key]] = struct.pack("<q", count) + stream.read(count * size)
    assert not stream.read(1)
    for old, new in renamed.items():
        def text(key):
            return b"X" + struct.pack("<I", len(key)) + key.encode()
        assert pickles[3].count(text(old)) == 1
        pickles[3] = pickles[3].replace(text(old), text(new))
    order = sorted(data)
    pickles[4] = pickle.dumps(order, protocol=2)
    path.write_bytes(b"".join(pickles) + b"".join(data[key] for key in order))
    loaded = torch.load(path, weights_only=True)
    assert list(loaded) == list(state) and all(torch.equal(loaded[x], state[x]) for x in state)


def save_pt(state, path):
    torch.save(state, path)
    loaded = torch.load(path, weights_only=True)
    assert all(torch.equal(loaded[x], state[x]) for x in state)


def save_split(state, folder):
    folder.mkdir()
    for key, tensor in state.items():
        torch.save({key: tensor}, folder / f"{key}.pt")


def save_json(value, path):
    path.write_text(json.dumps(value, indent=1) + "\n")


def save_hf(folder, config, state=None):
    folder.mkdir(parents=True)
    save_json(config, folder / "config.json")
    if state is not None:
        save_file(dict(state), folder / "model.safetensors", metadata={"format": "pt"})
        (folder / "model.safetensors").chmod(0o644)


def awq_config(config, group_size, keep=None):
    return config | {"quantization_config": {
        "bits": 4, "group_size": group_size, "modules_to_not_convert": keep,
        "quant_method": "awq", "version": "gemm", "zero_point": True}}


def train_tokenizer(vocab):
    """A SentencePiece model of LLaMA's kind: BPE, identity normalisation, byte fallback."""
    words = ("the model reads the weights and writes one token after another while the cache keeps "
             "what was said before so that the next answer comes at once and nothing is lost "
             "hello how are you what is your name where do they live why not").split()
    rng = np.random.default_rng(5)
    lines = [" ".join(rng.choice(words, 12)) + "." for _ in range(400)]
    out = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=out, model_type="bpe", vocab_size=vocab,
        byte_fallback=True, normalization_rule_name="identity", remove_extra_whitespaces=False,
        add_dummy_prefix=True, character_coverage=0.995, num_threads=1, minloglevel=2,
        allow_whitespace_only_pieces=True, split_digits=True)
    return out.getvalue()


def save_tokenizer(folder, model):
    (folder / "tokenizer.model").write_bytes(model)

    def special(text):
        return {"__type": "AddedToken", "content": text, "lstrip": False, "normalized": False,
                "rstrip": False, "single_word": False}
    save_json({"add_bos_token": True, "add_eos_token": False, "bos_token": special("<s>"),
               "clean_up_tokenization_spaces": False, "eos_token": special("</s>"),
               "legacy": False, "pad_token": None, "sp_model_kwargs": {},
               "tokenizer_class": "LlamaTokenizer", "unk_token": special("<unk>")},
              folder / "tokenizer_config.json")


# ---- references ----------------------------------------------------------------------------------

def load_model(config_folder, state, dtype=torch.float32, **overrides):
    config = AutoConfig.from_pretrained(config_folder)
    config._attn_implementation = "eager"
    for key, value in overrides.items():
        setattr(config, key, value)
    model = LlamaForCausalLM(config).to(dtype).eval()
    missing, unexpected = model.load_state_dict({k: v.to(dtype) for k, v in state.items()},
                                                strict=False)
    assert not unexpected and missing in ([], ["lm_head.weight"]), (missing, unexpected)
    model.tie_weights()
    return model


@torch.no_grad()
def logits_of(model, ids):
    return model(torch.tensor([ids])).logits[0]


def relative_error(a, b):
    """The largest relative L2 error of a position."""
    return ((a - b).norm(dim=-1) / b.norm(dim=-1)).max().item()


def greedy(model, prompt, count):
    ids, margins = list(prompt), []
    for _ in range(count):
        top = logits_of(model, ids)[-1].topk(2)
        ids.append(top.indices[0].item())
        margins.append(round((top.values[0] - top.values[1]).item(), 5))
    return ids[len(prompt):], margins


class References:
    """refs/refs.json of one model folder and the float32 files beside it."""

    def __init__(self, folder, vocab, lengths, seed):
        self.folder = folder / "refs"
        self.folder.mkdir()
        self.rng = np.random.default_rng(seed)
        self.ids = sorted(int(x) for x in self.rng.choice(vocab, 48, replace=False))
        self.sequences = {f"len{n}": [1] + [int(x) for x in self.rng.integers(3, vocab, n - 1)]
                          for n in lengths}
        self.prompt = f"len{lengths[0]}"
        self.runs = {}

    def add(self, name, config_folder, state, about):
        model = load_model(config_folder, state)
        exact = load_model(config_folder, state, torch.float64)
        run = {"about": about, "logits": {}}
        run |= self.fp16_evaluation(model, load_model(config_folder, state, torch.float16))
        worst, margin = 0.0, 1e9
        for sequence, ids in self.sequences.items():
            logits = logits_of(model, ids)
            worst = max(worst, relative_error(logits.double(), logits_of(exact, ids)))
            top = logits.topk(5)
            margin = min(margin, (top.values[:, 0] - top.values[:, 1]).min().item())
            file = f"{name}_{sequence}_logits.f32"
            logits[:, self.ids].numpy().astype("<f4").tofile(self.folder / file)
            entry = {"file": f"refs/{file}", "dtype": "float32 little-endian",
                     "shape": [len(ids), len(self.ids)], "positions": list(range(len(ids))),
                     "argmax": top.indices[:, 0].tolist(),
                     "logsumexp": [round(x, 5) for x in logits.logsumexp(-1).tolist()]}
            if sequence == self.prompt:
                entry["top5_ids"] = top.indices.tolist()
                entry["top5_logits"] = [[round(x, 5) for x in row] for row in top.values.tolist()]
            run["logits"][sequence] = entry
        assert worst < 2e-5 and margin > 1e-3, (name, worst, margin)
        ids, margins = greedy(model, self.sequences[self.prompt], 16)
        assert min(margins) > 0.01, (name, min(margins))  # else choose another seed
        run["greedy"] = {"prompt": self.prompt, "ids": ids, "top1_minus_top2": margins}
        self.runs[name] = run
        print(f"  {name:8} fp32 against fp64 {worst:.1e}, smallest margin: positions {margin:.4f}, "
              f"greedy {min(margins):.3f}")
        self.check_sensitive(name, model, config_folder, state)

    def fp16_evaluation(self, model, half):
        """What transformers itself is off by in fp16: the yardstick of the GPU's 16-bit paths. Over
        the stored ids, the worst position."""
        off = {"fp16_evaluation_max_abs_diff": {}, "fp16_evaluation_max_relative_error": {}}
        for sequence, ids in self.sequences.items():
            want, got = (logits_of(m, ids)[:, self.ids].double() for m in (model, half))
            values = (got - want).abs().max().item(), relative_error(got, want)
            for kind, value in zip(off.values(), values):
                kind[sequence] = float(f"{value:.4g}")
        return off

    def check_sensitive(self, name, model, config_folder, state):
        """Typical mistakes must be far outside the tests' tolerance of 1e-3."""
        ids = list(self.sequences.values())[-1]
        right = logits_of(model, ids)[1:]  # RoPE does not change position 0
        config, d = model.config, model.config.head_dim
        down, k_proj = (f"model.layers.0.{x}.weight" for x in ("mlp.down_proj", "self_attn.k_proj"))

        def error(changes=None, **overrides):
            wrong = load_model(config_folder, state | (changes or {}), **overrides)
            return relative_error(logits_of(wrong, ids)[1:], right)

        theta = config.rope_parameters["rope_theta"]
        block = state[down].clone()
        block[1, :32] *= 1.1
        cases = {"RoPE base 5 % off": error(rope_parameters=config.rope_parameters
                                            | {"rope_theta": 1.05 * theta}),
                 "epsilon 5 times": error(rms_norm_eps=5 * config.rms_norm_eps),
                 "32 columns of a row 10 % off": error({down: block})}
        if config.num_key_value_heads > 1:
            k = state[k_proj]
            cases["two KV heads swapped"] = error({k_proj: torch.cat([k[d:2 * d], k[:d],
                                                                      k[2 * d:]])})
        print("           " + ", ".join(f"{case} {value:.1e}" for case, value in cases.items()))
        assert min(cases.values()) > 2e-3, name

    def save(self):
        value = {"about": "fp32 logits of transformers with eager attention, on the checkpoint's "
                          "weights as they are (w16, bf16) or on s*(q-z) in fp32. Logits are "
                          "stored for vocab_ids; argmax, top5 and logsumexp are over the whole "
                          "vocabulary.",
                 "vocab_ids": self.ids, "sequences": self.sequences, "runs": self.runs}
        text = json.dumps(value, separators=(",", ":")).replace(',"', ',\n"')
        (self.folder / "refs.json").write_text(text + "\n")


# ---- the model folders ---------------------------------------------------------------------------

def make_small(root):
    folder = root / "llama-small"
    config = config_json(64, 128, 2, 4, 2, 320, 2048)
    state = make_weights(config, 11)
    save_hf(folder / "hf", config, state)
    save_tokenizer(folder / "hf", train_tokenizer(320))
    save_hf(folder / "hf-bf16", config | {"torch_dtype": "bfloat16"},
            {k: v.bfloat16() for k, v in state.items()})

    bin_folder = folder / "hf-bin"
    save_hf(bin_folder, config)
    names = sorted(state)
    shards = {"pytorch_model-00001-of-00002.bin": names[:9],
              "pytorch_model-00002-of-00002.bin": names[9:]}
    for file, keys in shards.items():
        save_pt({key: state[key] for key in keys}, bin_folder / file)
    save_json({"metadata": {"total_size": sum(2 * x.numel() for x in state.values())},
               "weight_map": {key: file for file, keys in shards.items() for key in keys}},
              bin_folder / "pytorch_model.bin.index.json")

    inv_freq = 10000.0 ** (-torch.arange(0, 16, 2) / 16)
    g64, g32 = quantise_state(state, 64), quantise_state(state, 32)
    save_pt(packed_state(g64, "a", inv_freq), folder / "g64-a.pt")
    save_pt(packed_state(g64, "b", inv_freq), folder / "g64-b.pt")
    save_pt(packed_state(g64, "c"), folder / "g64-c.pt")
    save_legacy(packed_state(g64, "b", inv_freq), folder / "g64-b-legacy.pt")
    save_split(packed_state(g64, "b", inv_freq), folder / "g64-b-split")
    save_hf(folder / "autoawq", awq_config(config, 64), packed_state(g64, "a"))
    keep = ["model.layers.1.mlp.down_proj"]
    mixed = quantise_state(state, 64, keep)
    save_hf(folder / "autoawq-mixed", awq_config(config, 64, keep), packed_state(mixed, "a"))
    save_pt(packed_state(g32, "b"), folder / "g32-b.pt")

    refs = References(folder, 320, (9, 150), 3)
    hf = folder / "hf"
    refs.add("w16", hf, state, "hf, hf-bin")
    refs.add("bf16", hf, {k: v.bfloat16() for k, v in state.items()}, "hf-bf16")
    refs.add("g64", hf, dequantised_state(g64), "g64-*, autoawq")
    refs.add("g32", hf, dequantised_state(g32), "g32-b")
    refs.add("mixed", hf, dequantised_state(mixed), "autoawq-mixed")
    refs.save()


def make_128(root):
    folder = root / "llama-128"
    config = config_json(128, 256, 1, 4, 4, 101, 512, tied=True, modern=True)
    state = make_weights(config, 21)
    quantised = quantise_state(state, 128)
    save_hf(folder / "hf-awq", config)
    save_pt(packed_state(quantised, "a"), folder / "hf-awq" / "pytorch_model.bin")
    # Tied checkpoints of torch hold the table twice, in one storage.
    tied = packed_state(quantised, "b")
    tied["lm_head.weight"] = tied["model.embed_tokens.weight"]
    save_pt(tied, folder / "g128-b.pt")
    save_pt(packed_state(quantised, "c"), folder / "g128-c.pt")
    refs = References(folder, 101, (9, 150), 1)
    refs.add("g128", folder / "hf-awq", dequantised_state(quantised), "g128-*, hf-awq")
    refs.save()


def make_rows(root):
    folder = root / "llama-rows"
    config = config_json(128, 384, 1, 4, 2, 96, 512, tied=True)
    state = make_weights(config, 31)
    quantised = quantise_state(state, -1)
    save_hf(folder / "autoawq", awq_config(config, -1), packed_state(quantised, "a"))
    save_pt(packed_state(quantised, "b"), folder / "rows-b.pt")
    save_pt(packed_state(quantised, "c"), folder / "rows-c.pt")
    refs = References(folder, 96, (9, 60), 11)
    refs.add("rows", folder / "autoawq", dequantised_state(quantised), "rows-*, autoawq")
    refs.save()


def make_256(root):
    folder = root / "llama-256"
    config = config_json(256, 512, 1, 4, 1, 80, 512, tied=True)
    state = make_weights(config, 41)
    quantised = quantise_state(state, 256)
    save_hf(folder / "hf", config)
    save_pt(packed_state(quantised, "b"), folder / "g256-b.pt")
    refs = References(folder, 80, (9, 60), 5)
    refs.add("g256", folder / "hf", dequantised_state(quantised), "g256-b")
    refs.save()


def make_odd(root):
    folder = root / "llama-odd"
    config = config_json(64, 128, 2, 16, 1, 107, 256, theta=500000.0, eps=1e-6, head_dim=12)
    state = make_weights(config, 51)
    quantised = quantise_state(state, 32)
    save_hf(folder / "hf", config)
    save_pt(packed_state(quantised, "c"), folder / "g32-c.pt")
    refs = References(folder, 107, (9, 256), 11)
    refs.add("g32", folder / "hf", dequantised_state(quantised), "g32-c")
    refs.save()


def make_odd16(root):
    folder = root / "llama-odd16"
    config = config_json(72, 88, 2, 6, 3, 103, 300, head_dim=18)
    state = make_weights(config, 61)
    save_hf(folder / "hf", config, state)
    refs = References(folder, 103, (9, 100), 14)
    refs.add("w16", folder / "hf", state, "hf")
    refs.save()


def main():
    default = pathlib.Path(__file__).parent / "data"
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else default
    torch.manual_seed(0)
    torch.set_num_threads(1)
    check_golden_vectors()
    for make in (make_small, make_128, make_rows, make_256, make_odd, make_odd16):
        name = "llama-" + make.__name__.removeprefix("make_")
        print(name)
        shutil.rmtree(root / name, ignore_errors=True)
        (root / name).mkdir(parents=True)
        make(root)
    print(f"{sum(f.stat().st_size for f in root.glob('llama-*/**/*') if f.is_file())} bytes")


if __name__ == "__main__":
    main()
