"""Reads and writes safetensors with NumPy alone, as an independent check."""

import contextlib
import json
import os
import pathlib
import struct
import tempfile

import numpy as np


def read(path):
    """All tensors as float32 arrays, by name."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + header_bytes])
    header.pop("__metadata__", None)
    tensors = {}
    for name, entry in header.items():
        begin, end = (8 + header_bytes + x for x in entry["data_offsets"])
        raw = data[begin:end]
        if entry["dtype"] == "F32":
            values = np.frombuffer(raw, "<f4")
        elif entry["dtype"] == "F16":
            values = np.frombuffer(raw, "<f2").astype(np.float32)
        else:
            assert entry["dtype"] == "BF16", entry
            values = bf16_to_f32(np.frombuffer(raw, "<u2"))
        tensors[name] = values.reshape(entry["shape"])
    return tensors


def write_f32(path, shapes, fill):
    """Writes float32 tensors one after the other.

    `shapes`: shape by name; `fill(name, shape)` gives the values. Returns the
    bytes of each tensor in the file, (begin, end) by name.
    """
    header, ranges, offset = {}, {}, 0
    for name, shape in shapes.items():
        size = 4 * int(np.prod(shape))
        header[name] = {"dtype": "F32", "shape": list(shape),
                        "data_offsets": [offset, offset + size]}
        ranges[name] = (offset, offset + size)
        offset += size
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        for name, shape in shapes.items():
            file.write(fill(name, shape).astype("<f4").tobytes())
    start = 8 + len(text)
    return {name: (start + a, start + b) for name, (a, b) in ranges.items()}


def widen(path, chosen):
    """Rewrites a file with its BF16 tensors `chosen(name)` as F32."""
    data = path.read_bytes()
    (header_bytes,) = struct.unpack_from("<Q", data)
    header = json.loads(data[8:8 + header_bytes])
    header.pop("__metadata__", None)
    blobs, offset = [], 0
    for name, entry in header.items():
        begin, end = (8 + header_bytes + x for x in entry["data_offsets"])
        blob = data[begin:end]
        if chosen(name):
            assert entry["dtype"] == "BF16", entry
            entry["dtype"] = "F32"
            blob = bf16_to_f32(np.frombuffer(blob, "<u2")).tobytes()
        entry["data_offsets"] = [offset, offset + len(blob)]
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    path.write_bytes(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def write_checkpoint(folder, like, hidden, intermediate, experts, layers):
    """A random f32 checkpoint of these sizes, else as the Qwen3-MoE one `like`.

    Returns the bytes of each tensor in its file, (begin, end) by name.
    """
    config = json.loads((like / "config.json").read_text())
    config.update(hidden_size=hidden, num_hidden_layers=layers,
                  moe_intermediate_size=intermediate, num_experts=experts)
    (folder / "config.json").write_text(json.dumps(config))
    head, vocab = config["head_dim"], config["vocab_size"]
    q = head * config["num_attention_heads"]
    kv = head * config["num_key_value_heads"]
    h, n = hidden, intermediate
    shapes = {"model.embed_tokens.weight": (vocab, h),
              "lm_head.weight": (vocab, h), "model.norm.weight": (h,)}
    for layer in range(layers):
        part = {
            "input_layernorm": (h,), "post_attention_layernorm": (h,),
            "self_attn.q_proj": (q, h), "self_attn.k_proj": (kv, h),
            "self_attn.v_proj": (kv, h), "self_attn.o_proj": (h, q),
            "self_attn.q_norm": (head,), "self_attn.k_norm": (head,),
            "mlp.gate": (experts, h)}
        for e in range(experts):
            part.update({f"mlp.experts.{e}.gate_proj": (n, h),
                         f"mlp.experts.{e}.up_proj": (n, h),
                         f"mlp.experts.{e}.down_proj": (h, n)})
        shapes.update({f"model.layers.{layer}.{name}.weight": shape
                       for name, shape in part.items()})
    random = np.random.default_rng(3)
    return write_f32(
        folder / "model.safetensors", shapes,
        lambda _, shape: random.standard_normal(shape, np.float32))


@contextlib.contextmanager
def temporary_checkpoint(*arguments):
    """Folder and tensors of write_checkpoint, removed at the end."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as name:
        folder = pathlib.Path(name)
        yield folder, write_checkpoint(folder, *arguments)


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values):
    """To nearest, ties to even; the bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
