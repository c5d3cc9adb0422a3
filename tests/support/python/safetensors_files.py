"""Reads and writes safetensors with NumPy alone, as an independent check."""

import json
import struct

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


def bf16_to_f32(bits):
    return (bits.astype(np.uint32) << 16).view(np.float32)


def f32_to_bf16(values):
    """To nearest, ties to even; the bits as uint16."""
    bits = np.ascontiguousarray(values, np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
