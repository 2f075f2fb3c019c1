#!/usr/bin/env python3
"""Makes tests/data/quant: tiny checkpoints whose 4-bit numbers are known (tests/test_quantise.c).

    pip install torch numpy safetensors compressed-tensors     (and what make_data.py needs)
    python3 tests/make_quant_data.py [FOLDER]

The files are committed; make never runs this script. Versions used: torch 2.15.0, safetensors
0.8.0, compressed-tensors 0.20.0. Each folder has digest.json: per linear layer of the checkpoint
the CRC-32 of q (bytes [n][k]), of the zero points (bytes [n][k/group]) and of the scales (binary16
[n][k/group]), and per vector of the model file the CRC-32 of its binary32 numbers.

    ct-*        compressed-tensors, written by that package and read back by it
    gptq, gptq-v2, gptq-act-order
                packed as AutoGPTQ does: eight columns in a word, zero points less one (v1)
    falcon-40b-a, -b
                grouped rows of q, k and v in two packings of AWQ
    search-*    fp16 checkpoints with AWQ search results: the digest is computed with torch's own
                binary16 arithmetic, one operation of llm-awq's apply_awq at a time
"""
import json
import pathlib
import sys
import zlib

import numpy as np
import torch
from safetensors.torch import save_file

import make_data

GROUP = 32
LINEARS = {"self_attn.q_proj": (64, 64), "self_attn.k_proj": (32, 64),
           "self_attn.v_proj": (32, 64), "self_attn.o_proj": (64, 64),
           "mlp.gate_proj": (96, 64), "mlp.up_proj": (96, 64), "mlp.down_proj": (64, 96)}
CONFIG = {"model_type": "llama", "hidden_size": 64, "intermediate_size": 96,
          "num_hidden_layers": 1, "num_attention_heads": 2, "num_key_value_heads": 1,
          "vocab_size": 32, "rms_norm_eps": 1e-5, "eos_token_id": 2}


def crc(array):
    return f"{zlib.crc32(np.ascontiguousarray(array).tobytes()):08x}"


def digest(q, z, s):
    return {"n": q.shape[0], "k": q.shape[1], "q_crc32": crc(q.astype(np.uint8)),
            "z_crc32": crc(z.astype(np.uint8)), "s_crc32": crc(s.astype(np.float16))}


def write(folder, config, tensors, linears, vectors=None):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous() for k, v in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(config, indent=1) + "\n")
    (folder / "digest.json").write_text(
        json.dumps({"linears": linears, "vectors": vectors or {}}, indent=1) + "\n")


def rest_of_llama(dtype, generator):
    def random(*shape):
        return torch.randn(*shape, generator=generator).to(dtype)
    return {"model.embed_tokens.weight": random(32, 64), "lm_head.weight": random(32, 64),
            "model.norm.weight": random(64), "model.layers.0.input_layernorm.weight": random(64),
            "model.layers.0.post_attention_layernorm.weight": random(64)}


# ---- compressed-tensors --------------------------------------------------------------------------

def scale_and_zero(weight, groups, symmetric):
    """Ranges that contain 0, as llm-compressor's minmax observer has them: scale, signed zero."""
    w = weight.float().reshape(weight.shape[0], groups, -1)
    low, high = w.amin(-1).clamp(max=0), w.amax(-1).clamp(min=0)
    if symmetric:
        scale = torch.maximum(-low, high) * 2 / 15
        return scale.to(weight.dtype), torch.zeros(scale.shape, dtype=torch.int8)
    scale = ((high - low) / 15).to(weight.dtype)
    return scale, (-8 - torch.round(low / scale.float())).clamp(-8, 7).to(torch.int8)


def make_compressed(root, name, dtype, symmetric, strategy, old_zeros=False, actorder=None):
    from compressed_tensors.compressors import PackedQuantizationCompressor as Compressor
    from compressed_tensors.compressors import unpack_from_int32
    from compressed_tensors.quantization import QuantizationArgs, QuantizationScheme
    args = QuantizationArgs(num_bits=4, type="int", symmetric=symmetric, strategy=strategy,
                            group_size=GROUP if strategy == "group" else None)
    scheme = QuantizationScheme(targets=["Linear"], weights=args)
    generator = torch.Generator().manual_seed(7)
    tensors, linears = rest_of_llama(dtype, generator), {}
    for linear, (n, k) in LINEARS.items():
        weight = (torch.randn(n, k, generator=generator) * 0.05).to(dtype)
        groups = k // GROUP if strategy == "group" else 1
        scale, zero = scale_and_zero(weight, groups, symmetric)
        packed = Compressor.compress(
            {"weight": weight, "weight_scale": scale, "weight_zero_point": zero}, scheme)
        q = unpack_from_int32(packed["weight_packed"], 4, torch.Size((n, k)))
        back = Compressor.decompress(packed, scheme)["weight"].float().numpy()
        s = scale.float().numpy().astype(np.float16)
        assert (s.astype(np.float32) == scale.float().numpy()).all()
        per_column = np.repeat(s.astype(np.float32), k // groups, 1), \
            np.repeat(zero.numpy(), k // groups, 1)
        ours = per_column[0] * (q.numpy().astype(np.float32) - per_column[1])
        assert (torch.from_numpy(ours).to(dtype).float().numpy() == back).all()
        if old_zeros:  # before April 2025
            packed["weight_zero_point"] = zero
        if actorder:
            packed["weight_g_idx"] = torch.randperm(k, generator=generator).to(torch.int32) // GROUP
        for part, tensor in packed.items():
            tensors[f"model.layers.0.{linear}.{part}"] = tensor
        group = min(k // groups, 32)  # whole rows of 64 and 96 columns become groups
        group = 64 if k // groups == 64 else group
        times = k // groups // group
        linears[f"model.layers.0.{linear}"] = digest(
            q.numpy() + 8, np.repeat(zero.numpy() + 8, times, 1), np.repeat(s, times, 1))
    quant = {"quant_method": "compressed-tensors", "format": "pack-quantized",
             "quantization_status": "compressed", "ignore": ["lm_head"],
             "config_groups": {"group_0": {
                 "targets": ["Linear"], "input_activations": None, "output_activations": None,
                 "weights": {"num_bits": 4, "type": "int", "symmetric": symmetric,
                             "strategy": strategy, "group_size": args.group_size,
                             "actorder": actorder}}}}
    write(root / name, dict(CONFIG, quantization_config=quant), tensors, linears)


# ---- GPTQ ----------------------------------------------------------------------------------------

def make_gptq(root, name, checkpoint_format, shuffled=False):
    generator = torch.Generator().manual_seed(8)
    tensors, linears = rest_of_llama(torch.float16, generator), {}
    for linear, (n, k) in LINEARS.items():
        q = torch.randint(0, 16, (n, k), generator=generator).numpy()
        z = torch.randint(0 if checkpoint_format == "gptq_v2" else 1, 16, (n, k // GROUP),
                          generator=generator).numpy()
        s = (torch.rand(n, k // GROUP, generator=generator) * 0.01 + 0.001).half().numpy()
        stored = z if checkpoint_format == "gptq_v2" else z - 1
        words = make_data.pack_b_matrix(q).T           # word [k / 8][n]: eight columns of a row
        zeros = make_data.pack_b_matrix(stored.T)      # word [group][n / 8]: eight rows
        for i in range(0, n, 7):                       # the published formulas, element by element
            for j in range(0, k, 5):
                assert words[j >> 3][i] >> np.uint32(4 * (j & 7)) & np.uint32(15) == q[i][j]
            assert zeros[0][i >> 3] >> np.uint32(4 * (i & 7)) & np.uint32(15) == stored[i][0]
        g_idx = torch.arange(k) // GROUP
        if shuffled:
            g_idx = g_idx[torch.randperm(k, generator=generator)]
        parts = {"qweight": make_data.signed(words), "qzeros": make_data.signed(zeros),
                 "scales": torch.from_numpy(np.ascontiguousarray(s.T)),
                 "g_idx": g_idx.to(torch.int32),
                 "bias": torch.zeros(n, dtype=torch.float16)}  # AutoGPTQ gives every layer one
        for part, tensor in parts.items():
            tensors[f"model.layers.0.{linear}.{part}"] = tensor
        linears[f"model.layers.0.{linear}"] = digest(q, z, s)
    quant = {"quant_method": "gptq", "bits": 4, "group_size": GROUP, "sym": False,
             "desc_act": shuffled, "checkpoint_format": checkpoint_format}
    write(root / name, dict(CONFIG, quantization_config=quant), tensors, linears)


# ---- Falcon-40B in two packings ------------------------------------------------------------------

FALCON = {"self_attention.query_key_value": (16 * (4 + 2 * 2), 64),
          "self_attention.dense": (64, 64), "mlp.dense_h_to_4h": (256, 64),
          "mlp.dense_4h_to_h": (64, 256)}


def make_falcon(root, packing):
    generator = torch.Generator().manual_seed(9)
    tensors, linears = {}, {}

    def random(*shape):
        return torch.randn(*shape, generator=generator).half()
    tensors["transformer.word_embeddings.weight"] = random(32, 64)
    for norm in ("transformer.ln_f", "transformer.h.0.ln_attn", "transformer.h.0.ln_mlp"):
        tensors[norm + ".weight"], tensors[norm + ".bias"] = random(64), random(64)
    for linear, (n, k) in FALCON.items():
        m = make_data.quantise(random(n, k) * 0.05, GROUP)
        for part, tensor in make_data.pack(m, packing).items():
            tensors[f"transformer.h.0.{linear}.{part}"] = tensor
        linears[f"transformer.h.0.{linear}"] = digest(m["q"], m["z"], m["s"])
    tensors["transformer.h.0.mlp.act.scales"] = torch.ones(256).half()
    config = {"model_type": "RefinedWeb", "architectures": ["RWForCausalLM"], "hidden_size": 64,
              "n_layer": 1, "n_head": 4, "n_head_kv": 2, "vocab_size": 32, "bias": False,
              "alibi": False, "parallel_attn": True, "layer_norm_epsilon": 1e-5,
              "eos_token_id": 11}
    write(root / f"falcon-40b-{packing}", config, tensors, linears)


# ---- AWQ search results --------------------------------------------------------------------------

class Model:
    """apply_awq on a dictionary of fp16 tensors, each operation rounded by torch."""

    def __init__(self, tensors, prefix, generator):
        self.tensors, self.prefix, self.generator = dict(tensors), prefix, generator
        self.search = {"scale": [], "clip": []}

    def scale(self, before, layers, count):
        s = (torch.rand(count, generator=self.generator) * 1.5 + 0.4).half()
        names = tuple(self.prefix + layer for layer in layers)
        self.search["scale"].append((self.prefix + before, names, s))
        t, module = self.tensors, self.prefix + before
        if module + ".weight" not in t:           # an activation
            t[module + ".scales"] = s
        elif t[module + ".weight"].dim() == 1:    # a norm
            t[module + ".weight"] = t[module + ".weight"] / s
            if module + ".bias" in t:
                t[module + ".bias"] = t[module + ".bias"] / s
        else:
            weight = t[module + ".weight"].clone()
            weight[-count:] = weight[-count:] / s.view(-1, 1)
            t[module + ".weight"] = weight
            if module + ".bias" in t:
                t[module + ".bias"] = t[module + ".bias"] / s
        for name in names:
            t[name + ".weight"] = t[name + ".weight"] * s.view(1, -1)

    def clip(self, layer):
        name = self.prefix + layer
        w = self.tensors[name + ".weight"]
        grouped = w.reshape(w.shape[0], -1, GROUP)
        share = torch.rand(grouped.shape[:2], generator=self.generator) * 0.4 + 0.6
        limit = (grouped.abs().amax(-1).float() * share).half().unsqueeze(-1)
        self.search["clip"].append((name, limit))
        self.tensors[name + ".weight"] = \
            torch.clamp(grouped, -limit, limit).reshape(w.shape).contiguous()


def make_search(root, name, config, tensors, prefix, linears, steps, clips, vectors, generator):
    model = Model(tensors, prefix, generator)
    for step in steps:
        model.scale(*step)
    for layer in clips:
        model.clip(layer)
    digests = {}
    for linear in linears:
        m = make_data.quantise(model.tensors[prefix + linear + ".weight"], GROUP)
        digests[prefix + linear] = digest(m["q"], m["z"], m["s"])
    results = {file: crc(torch.cat([model.tensors[prefix + part] for part in parts])
                         .float().numpy()) for file, parts in vectors.items()}
    write(root / name, config, tensors, digests, results)
    torch.save(model.search, root / name / "search.pt")


def make_search_qwen2(root):
    """As many KV heads as heads, so that v_proj (with its bias) is divided for o_proj."""
    generator = torch.Generator().manual_seed(10)
    tensors = rest_of_llama(torch.float16, generator)
    shapes = dict(LINEARS, **{"self_attn.k_proj": (64, 64), "self_attn.v_proj": (64, 64)})
    for linear, shape in shapes.items():
        tensors[f"model.layers.0.{linear}.weight"] = \
            (torch.randn(*shape, generator=generator) * 0.05).half()
    for part in "qkv":
        tensors[f"model.layers.0.self_attn.{part}_proj.bias"] = \
            torch.randn(64, generator=generator).half()
    tensors["model.layers.0.mlp.gate_proj.weight"][3, :32] = 0.25     # a group of one number
    tensors["model.layers.0.mlp.gate_proj.weight"][4, :32].abs_()     # and one of one sign
    qkv = [f"self_attn.{part}_proj" for part in "qkv"]
    steps = [("input_layernorm", qkv, 64), ("self_attn.v_proj", ["self_attn.o_proj"], 64),
             ("post_attention_layernorm", ["mlp.gate_proj", "mlp.up_proj"], 64),
             ("mlp.up_proj", ["mlp.down_proj"], 96)]
    clips = ["self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj",
             "mlp.down_proj"]
    vectors = {"0.attn_norm": ["input_layernorm.weight"],
               "0.mlp_norm": ["post_attention_layernorm.weight"],
               "0.qkv_bias": [f"{part}.bias" for part in qkv]}
    make_search(root, "search-qwen2", dict(CONFIG, model_type="qwen2", num_key_value_heads=2),
                tensors, "model.layers.0.", shapes, steps, clips, vectors, generator)


def make_search_mpt(root):
    """Fused q, k and v, of which only v is divided; and scales of the activation."""
    generator = torch.Generator().manual_seed(11)
    shapes = {"attn.Wqkv": (192, 64), "attn.out_proj": (64, 64), "ffn.up_proj": (256, 64),
              "ffn.down_proj": (64, 256)}
    tensors = {"transformer.wte.weight": torch.randn(32, 64, generator=generator).half()}
    for norm in ("norm_f", "blocks.0.norm_1", "blocks.0.norm_2"):
        tensors[f"transformer.{norm}.weight"] = torch.randn(64, generator=generator).half()
    for linear, shape in shapes.items():
        tensors[f"transformer.blocks.0.{linear}.weight"] = \
            (torch.randn(*shape, generator=generator) * 0.05).half()
    steps = [("norm_1", ["attn.Wqkv"], 64), ("attn.Wqkv", ["attn.out_proj"], 64),
             ("norm_2", ["ffn.up_proj"], 64), ("ffn.act", ["ffn.down_proj"], 256)]
    vectors = {"0.attn_norm": ["norm_1.weight"], "0.mlp_norm": ["norm_2.weight"],
               "0.act_scales": ["ffn.act.scales"]}
    config = {"model_type": "mpt", "d_model": 64, "n_layers": 1, "n_heads": 2, "vocab_size": 32,
              "max_seq_len": 128, "attn_config": {"alibi": True}, "eos_token_id": 0}
    make_search(root, "search-mpt", config, tensors, "transformer.blocks.0.", shapes, steps,
                ["attn.out_proj", "ffn.up_proj", "ffn.down_proj"], vectors, generator)


def main():
    here = pathlib.Path(__file__).resolve().parent / "data" / "quant"
    root = pathlib.Path(sys.argv[1]) if len(sys.argv) > 1 else here
    make_data.check_golden_vectors()
    make_compressed(root, "ct-sym", torch.float16, True, "group")
    make_compressed(root, "ct-asym", torch.bfloat16, False, "group")
    make_compressed(root, "ct-asym-bytes", torch.float16, False, "group", old_zeros=True)
    make_compressed(root, "ct-channel", torch.float16, True, "channel")
    make_compressed(root, "ct-act-order", torch.float16, True, "group", actorder="group")
    make_gptq(root, "gptq", "gptq")
    make_gptq(root, "gptq-v2", "gptq_v2")
    make_gptq(root, "gptq-act-order", "gptq", shuffled=True)
    make_falcon(root, "a")
    make_falcon(root, "b")
    make_search_qwen2(root)
    make_search_mpt(root)


if __name__ == "__main__":
    main()
