#!/usr/bin/env python3
"""Writes tests/data/checkpoint: small checkpoints written by PyTorch and the safetensors package,
and beside each a .golden file with what they hold, for tests/test_checkpoint.c.

    pip install torch numpy safetensors
    python3 tests/make_checkpoint_data.py

A line of a .golden file is: dtype [shape] crc32-of-the-elements-in-C-order name. The files are the
same in every run up to the serialization id in PyTorch's zip files and the addresses that serve as
keys in its legacy streams.
"""
import os
import zlib
from collections import OrderedDict

import torch
from safetensors.torch import save_file

HERE = os.path.join(os.path.dirname(os.path.abspath(__file__)), "data", "checkpoint")
DTYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16,
    "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8,
    "U8": torch.uint8, "BOOL": torch.bool,
}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def golden(path, tensors):
    with open(path, "w") as out:
        for name, tensor in tensors:
            plain = tensor.detach().contiguous().clone()
            raw = bytes(plain.reshape(-1).view(torch.uint8).numpy()) if plain.numel() else b""
            shape = ", ".join(str(n) for n in tensor.shape)
            out.write(f"{NAMES[tensor.dtype]} [{shape}] {zlib.crc32(raw):08x} {name}\n")


def numbers(n, dtype):
    values = torch.arange(n) * 7 % 101 - 50
    return (values > 0) if dtype == torch.bool else values.abs().to(dtype) if dtype == torch.uint8 \
        else values.to(dtype)


def state_dict():
    """One tensor of every type, and every way in which tensors share storages."""
    tensors = OrderedDict((f"type.{name}", numbers(24, dtype).reshape(2, 3, 4))
                          for name, dtype in DTYPES.items())
    base = numbers(60, torch.float16)
    tensors["view.whole"] = base
    tensors["view.slice"] = base[17:29]
    tensors["view.transposed"] = base[:48].reshape(6, 8).t()
    tensors["view.every_second"] = base[1::2]
    tensors["view.permuted"] = base.reshape(3, 4, 5).permute(2, 0, 1)
    tensors["view.columns"] = base.reshape(6, 10)[:, 3:7]
    tensors["scalar"] = torch.tensor(3.5)
    tensors["empty"] = torch.zeros(0, 5, dtype=torch.float16)
    tensors["one"] = torch.ones(1, 1, 1, 1, 1, 1, 1, 1)
    tensors["parameter"] = torch.nn.Parameter(numbers(9, torch.float32).reshape(3, 3))
    tensors["tied.a"] = tensors["tied.b"] = numbers(10, torch.bfloat16)
    tensors["имя.重み"] = numbers(3, torch.int16)
    tensors._metadata = OrderedDict([("", {"version": 1}), ("type", {"version": 2})])
    return tensors


def search_result():
    """As llm-awq's --dump_awq; twelve layers, so that the numbers in names have two digits."""
    def ones(n):
        return torch.linspace(0.5, 2, n).half()
    scale, clip = [], []
    for i in range(12):
        layer = f"model.layers.{i}."
        scale.append((layer + "input_layernorm",
                      tuple(layer + f"self_attn.{p}_proj" for p in "qkv"), ones(8 + i)))
        scale.append((layer + "mlp.up_proj", (layer + "mlp.down_proj",), ones(20 - i)))
        clip.append((layer + "self_attn.v_proj", ones(6).reshape(3, 2, 1)))
    names = [(f"scale[{i}] {prev} -> {', '.join(layers)}", t)
             for i, (prev, layers, t) in enumerate(scale)]
    names += [(f"clip[{i}] {layer}", t) for i, (layer, t) in enumerate(clip)]
    return {"scale": scale, "clip": clip}, names


def main():
    os.makedirs(HERE, exist_ok=True)
    os.chdir(HERE)
    tensors = state_dict()
    torch.save(tensors, "types.pt")
    torch.save(tensors, "types-legacy.pt", _use_new_zipfile_serialization=False)
    golden("types.golden", tensors.items())

    plain = {name: t.detach().clone().contiguous() for name, t in tensors.items()}
    save_file(plain, "types.safetensors", metadata={"format": "pt"})

    # More than 1000 entries (SETITEMS comes in batches), more than 256 memo slots; one storage.
    table = numbers(3000, torch.float32)
    many = {f"layers.{i}.weight": table[i:i + i % 40].view(-1, 1) for i in range(1050)}
    torch.save(many, "many.pt")
    golden("many.golden", many.items())

    result, names = search_result()
    torch.save(result, "search.pt")
    golden("search.golden", names)


if __name__ == "__main__":
    main()
