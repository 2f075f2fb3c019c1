#!/usr/bin/env python3
"""Makes tests/data/families/*: a small checkpoint of every family with transformers' logits.

    python3 tests/make_family_data.py [FOLDER]              (default: data/families beside this script)
    python3 tests/make_family_data.py --checkpoints FOLDER  writes whole checkpoints, nothing else

The files are committed; make never runs this script. It is deterministic: the same versions give
the same bytes. Versions used for the committed files: Python 3.11, torch 2.15.0, transformers 5.24.0,
numpy 2.4.

The weights are random, made by a rule that tests/random_checkpoint.h knows too, so that only the
checkpoint's config.json and the header of its model.safetensors are stored. The header's metadata
name a seed. Element j of a tensor whose data begin at byte o is made of the number k, the upper 11
bits of SplitMix64's output number seed + o / 2 + j (the first is number 0, and it is started at 0),
less 1024 (-1024 <= k < 1024):

    matrices        k / 2^(9 + s), s the smallest with 4^s >= columns; tables of tokens: 4 times that
    *.bias          k / 4096
    other vectors   1 + k / 4096, k rounded down to a multiple of 4 first

and in bfloat16 k is rounded down to a multiple of 8 (vectors: 32) first. All of them are exact.

The logits are those of transformers, which reads the checkpoint by itself, in fp32 with eager
attention; run w16 on the weights as they are, run w4 on the weights rounded to nearest, as convert
--quantize rtn does it: a range that contains 0, a binary16 scale and a zero point for each group.

What is checked before anything is written: margins wide enough to compare argmax and greedy ids, that fp64 agrees with fp32, and that each family's typical mistakes are far outside the
tolerance that the tests use.
"""
import json
import math
import pathlib
import shutil
import struct
import sys
import tempfile
from unittest import mock

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM
from transformers.models.mpt import modeling_mpt
from transformers.utils import logging

TOKENS = ("wte", "word_embeddings", "embed_tokens", "lm_head")  # tables of tokens
SPREAD = 0x9E3779B97F4A7C15
METADATA = "__metadata__"

# ---- the rule ------------------------------------------------------------------------------------


def numbers(first, count):
    """k of SplitMix64's outputs first, first + 1, ... (counted from 0, started at 0)."""
    with np.errstate(over="ignore"):
        z = (np.arange(count, dtype=np.uint64) + np.uint64(first + 1)) * np.uint64(SPREAD)
        z = (z ^ z >> np.uint64(30)) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ z >> np.uint64(27)) * np.uint64(0x94D049BB133111EB)
        z = z ^ z >> np.uint64(31)
    return (z >> np.uint64(53)).astype(np.int64) - 1024


def tensor_bytes(name, entry, seed):
    shape, bf16 = entry["shape"], entry["dtype"] == "BF16"
    k = numbers(seed + entry["data_offsets"][0] // 2, math.prod(shape))
    if len(shape) == 2:
        k &= -8 if bf16 else -1
        shift = 9 + next(s for s in range(32) if 4 ** s >= shape[1])
        shift -= 2 * any(x in name for x in TOKENS)
        values = np.ldexp(k.astype(np.float32), -shift)
    elif name.endswith(".bias"):
        values = np.ldexp((k & (-32 if bf16 else -1)).astype(np.float32), -12)
    else:
        values = 1 + np.ldexp((k & (-32 if bf16 else -4)).astype(np.float32), -12)
    if bf16:
        bits = values.astype("<f4").view("<u4")
        assert not (bits & 0xFFFF).any(), name
        return (bits >> 16).astype("<u2").tobytes()
    halves = values.astype("<f2")
    assert (halves.astype(np.float32) == values).all(), name
    return halves.tobytes()


def header_of(shapes, dtype):
    header, end = {METADATA: {"format": "pt"}}, 0
    for name, shape in shapes.items():
        begin, end = end, end + 2 * math.prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    return header


def save_json(value, path):
    text = json.dumps(value, separators=(",", ":")).replace(',"', ',\n"')
    path.write_text(text + "\n")


def save_checkpoint(folder, config, header):
    folder.mkdir(parents=True)
    save_json(config, folder / "config.json")
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    with open(folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, entry in header.items():
            if name != METADATA:
                file.write(tensor_bytes(name, entry, int(header[METADATA]["seed"])))


# ---- the families --------------------------------------------------------------------------------


def mpt(hidden, heads, clip):
    return {"architectures": ["MPTForCausalLM"],
            "attn_config": {"alibi": True, "alibi_bias_max": 8, "attn_impl": "torch",
                            "attn_pdrop": 0, "attn_type": "multihead_attention",
                            "attn_uses_sequence_id": False, "clip_qkv": clip, "prefix_lm": False,
                            "qk_ln": False, "softmax_scale": None},
            "d_model": hidden, "emb_pdrop": 0, "embedding_fraction": 1.0, "expansion_ratio": 4,
            "learned_pos_emb": True, "logit_scale": None, "max_seq_len": 256, "model_type": "mpt",
            "n_heads": heads, "n_layers": 2, "no_bias": True,
            "norm_type": "low_precision_layernorm", "resid_pdrop": 0, "torch_dtype": "float16",
            "use_cache": False, "vocab_size": 160}


def falcon(hidden, heads, **more):
    return {"alibi": False, "apply_residual_connection_post_layernorm": False,
            "architectures": ["FalconForCausalLM"], "attention_dropout": 0.0, "bias": False,
            "bos_token_id": 11, "eos_token_id": 11, "hidden_dropout": 0.0, "hidden_size": hidden,
            "layer_norm_epsilon": 1e-05, "model_type": "falcon", "multi_query": True,
            "new_decoder_architecture": False, "num_attention_heads": heads,
            "num_hidden_layers": 2, "parallel_attn": True, "torch_dtype": "float16",
            "use_cache": True, "vocab_size": 160} | more


def llama(model_type, hidden, inner, heads, kv_heads, **more):
    name = {"llama": "Llama", "mistral": "Mistral", "qwen2": "Qwen2", "qwen3": "Qwen3"}[model_type]
    return {"architectures": [name + "ForCausalLM"], "attention_dropout": 0.0, "bos_token_id": 1,
            "eos_token_id": 2, "hidden_act": "silu", "hidden_size": hidden,
            "intermediate_size": inner, "max_position_embeddings": 256, "model_type": model_type,
            "num_attention_heads": heads, "num_hidden_layers": 2, "num_key_value_heads": kv_heads,
            "rms_norm_eps": 1e-05, "rope_theta": 10000.0, "tie_word_embeddings": False,
            "torch_dtype": "float16", "use_cache": True, "vocab_size": 160} | more


LLAMA3 = {"factor": 8.0, "high_freq_factor": 4.0, "low_freq_factor": 1.0,
          "original_max_position_embeddings": 64, "rope_type": "llama3"}
YARN = {"factor": 4.0, "original_max_position_embeddings": 64, "type": "yarn"}

ALIBI = modeling_mpt.build_mpt_alibi_tensor

# name: config, lengths of sequences, mistakes (changes of the config that must be seen)
FAMILIES = {
    "mpt": (mpt(384, 6, 1.5), (9, 100), {  # heads that are no power of two; clipping that bites
        "no clipping": {"attn_config": {"clip_qkv": None}},
        "ALiBi's slopes": {},
        "epsilon 10 times": {"layer_norm_epsilon": 1e-4}}),
    "mpt-112": (mpt(448, 4, None), (9, 100), {  # the head size of the 30B
        "ALiBi's slopes": {}}),
    "falcon": (falcon(320, 5, num_kv_heads=5), (9, 100), {  # 7B: one norm, one KV head, not five
        "RoPE's base": {"rope_theta": 12000.0},
        "SiLU": {"activation": "silu"}}),
    "falcon-new": (falcon(512, 8, new_decoder_architecture=True, num_kv_heads=2), (9, 100), {  # 40B
        "RoPE's base": {"rope_theta": 12000.0}}),
    "llama3": (llama("llama", 256, 512, 4, 2, rope_theta=500000.0, rope_scaling=LLAMA3,
                     tie_word_embeddings=True, torch_dtype="bfloat16",
                     max_position_embeddings=512, eos_token_id=[2, 5, 6]), (9, 100), {
        "no scaling": {"rope_scaling": None}}),
    "llama-linear": (llama("llama", 320, 640, 4, 4,  # head size 80
                           rope_scaling={"factor": 4.0, "type": "linear"}), (9, 100), {
        "no scaling": {"rope_scaling": None}}),
    "llama-dynamic": (llama("llama", 256, 512, 2, 1, head_dim=256, max_position_embeddings=64,
                            rope_scaling={"factor": 2.0, "type": "dynamic"}), (9, 64), {
        "linear": {"rope_scaling": {"factor": 2.0, "type": "linear"}}}),
    "mistral": (llama("mistral", 256, 768, 8, 2, head_dim=64, sliding_window=48,
                      max_position_embeddings=1024, rope_theta=1000000.0), (9, 48), {
        "RoPE's base": {"rope_theta": 10000.0}}),
    "qwen2-yarn": (llama("qwen2", 384, 768, 4, 1, rope_scaling=YARN, rope_theta=1000000.0,
                         rms_norm_eps=1e-06, max_window_layers=2, sliding_window=32,
                         use_sliding_window=False), (9, 100), {  # head size 96
        "no scaling": {"rope_scaling": None},
        "no attention factor": {"rope_scaling": YARN | {"attention_factor": 1.0}}}),
    "qwen3": (llama("qwen3", 256, 768, 4, 2, attention_bias=False, head_dim=128,
                    rms_norm_eps=1e-06, rope_theta=1000000.0, tie_word_embeddings=True), (9, 100), {
        "RoPE's base": {"rope_theta": 10000.0}}),
}


GROUPS = {"llama3": 128, "qwen2-yarn": 32}  # the others: 64
STEPS = {"w16": 1, "w4": 8}                 # of the positions that are stored


def shapes_of(config):
    """Names and shapes of a checkpoint's tensors, as the model that transformers makes has them."""
    with tempfile.TemporaryDirectory() as folder:
        (pathlib.Path(folder) / "config.json").write_text(json.dumps(config))
        model = AutoModelForCausalLM.from_config(AutoConfig.from_pretrained(folder))
    shapes, seen = {}, set()
    for name, tensor in model.state_dict().items():
        if tensor.data_ptr() not in seen:  # not the tied head
            shapes[name] = tuple(tensor.shape)
        seen.add(tensor.data_ptr())
    return shapes


# ---- 4 bits ----------------------------------------------------------------------------------------


def rounded(weight, group):
    """Nearest of scale * (q - zero), q and zero in 0..15, for each group of columns."""
    w = weight.float().reshape(weight.shape[0], -1, group)
    low, high = w.amin(-1, keepdim=True).clamp(max=0), w.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(0, 15)
    return (scale * (((w / scale).round() + zero).clamp(0, 15) - zero)).reshape(weight.shape)


@torch.no_grad()
def round_weights(model, group):
    for name, parameter in model.named_parameters():
        if parameter.ndim == 2 and not any(x in name for x in TOKENS):
            parameter.copy_(rounded(parameter, group))
    return model


# ---- references ----------------------------------------------------------------------------------


def load(folder, dtype=torch.float32):
    return AutoModelForCausalLM.from_pretrained(folder, dtype=dtype,
                                                attn_implementation="eager").eval()


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


def sequences_of(config, lengths, seed):
    rng = np.random.default_rng(seed)
    return {f"len{n}": [int(x) for x in rng.integers(3, config["vocab_size"], n)] for n in lengths}


def reference(checkpoint, sequences, group=None):
    """Logits of each sequence and the greedy continuation; None if the margins are too small."""
    model, exact = load(checkpoint), load(checkpoint, torch.float64)
    if group:
        model, exact = round_weights(model, group), round_weights(exact, group)
    logits, margin = {}, 1e9
    for name, ids in sequences.items():
        logits[name] = logits_of(model, ids)
        assert relative_error(logits[name].double(), logits_of(exact, ids)) < 2e-5, checkpoint
        top = logits[name].topk(2).values
        margin = min(margin, ((top[:, 0] - top[:, 1]) / logits[name].std(-1)).min().item())
    prompt = next(iter(sequences))
    ids, margins = greedy(model, sequences[prompt], 16)
    if margin < 2e-3 or min(margins) < 0.01:
        return None
    return logits, {"prompt": prompt, "ids": ids, "top1_minus_top2": margins}


def slopes_of_a_mistake(mistake):
    """transformers takes no notice of alibi_bias_max, so that a wrong one has to be smuggled in."""
    if mistake != "ALiBi's slopes":
        return ALIBI
    return lambda heads, length, alibi_bias_max=8, device=None: ALIBI(heads, length, 7.9, device)


def check_mistakes(folder, config, header, sequences, right, mistakes):
    name, ids = list(sequences.items())[-1]
    for mistake, change in mistakes.items():
        wrong = json.loads(json.dumps(config))
        for key, value in change.items():
            wrong[key] = wrong[key] | value if key == "attn_config" else value
        shutil.rmtree(folder)
        save_checkpoint(folder, wrong, header)
        with mock.patch.object(modeling_mpt, "build_mpt_alibi_tensor", slopes_of_a_mistake(mistake)):
            error = relative_error(logits_of(load(folder), ids), right[name])
        print(f"    {mistake:20} {error:.1e}")
        assert error > 2e-3, mistake


def make(name, root):
    config, lengths, mistakes = FAMILIES[name]
    header = header_of(shapes_of(config), "BF16" if config["torch_dtype"] == "bfloat16" else "F16")
    for seed in range(0, 64 << 32, 1 << 32):
        with tempfile.TemporaryDirectory() as temporary:
            checkpoint = pathlib.Path(temporary) / "hf"
            sequences = sequences_of(config, lengths, seed)
            header[METADATA]["seed"] = str(seed)
            save_checkpoint(checkpoint, config, header)
            group = GROUPS.get(name, 64)
            made = {"w16": reference(checkpoint, sequences),
                    "w4": reference(checkpoint, sequences, group)}
            if None in made.values():
                continue
            logits = made["w16"][0]
            print(f"{name}: seed {seed >> 32} << 32, logits {logits[f'len{lengths[0]}'].std():.2f}")
            check_mistakes(checkpoint, config, header, sequences, logits, mistakes)
        break
    folder = root / name
    (folder / "refs").mkdir(parents=True)
    save_json(config, folder / "config.json")
    save_json(header, folder / "header.json")
    ids = sorted(int(x) for x in np.random.default_rng(1).choice(config["vocab_size"], 48, False))
    runs = {run: {"logits": {}, "greedy": continuation} for run, (_, continuation) in made.items()}
    runs["w4"]["group_size"] = group
    for run, (logits, _) in made.items():
        for sequence, values in logits.items():
            file = f"refs/{run}_{sequence}.f32"
            positions = list(range(0, len(values), STEPS[run]))
            values = values[positions]
            values[:, ids].numpy().astype("<f4").tofile(folder / file)
            runs[run]["logits"][sequence] = {
                "file": file, "positions": positions, "argmax": values.argmax(-1).tolist(),
                "logsumexp": [round(x, 5) for x in values.logsumexp(-1).tolist()]}
    save_json({"about": "fp32 logits of transformers with eager attention, for vocab_ids; argmax "
                        "and logsumexp over the whole vocabulary",
               "vocab_ids": ids, "sequences": sequences, "runs": runs},
              folder / "refs" / "refs.json")


def main():
    torch.set_num_threads(1)
    logging.set_verbosity_error()
    logging.disable_progress_bar()
    data = pathlib.Path(__file__).parent / "data" / "families"
    if sys.argv[1:2] == ["--checkpoints"]:
        for folder in sorted(data.iterdir()):
            config, header = (json.loads((folder / f"{x}.json").read_text())
                              for x in ("config", "header"))
            save_checkpoint(pathlib.Path(sys.argv[2]) / folder.name, config, header)
        return
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else data
    shutil.rmtree(root, ignore_errors=True)
    for name in FAMILIES:
        make(name, root)
    print(f"{sum(f.stat().st_size for f in root.glob('**/*') if f.is_file())} bytes")


if __name__ == "__main__":
    main()
