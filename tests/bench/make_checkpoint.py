#!/usr/bin/env python3
"""Writes a Qwen3-MoE checkpoint with random bf16 weights, for benchmarks.

The default shape has 1.72 B parameters, 0.277 B of them active per token.
Prompts go in as token ids: there is no tokenizer.json. The first --dense-layers
have one feed-forward of the width of all experts a token takes: with all but
one of them dense, a model is the twin of the one without.
"""

import argparse
import json
import pathlib
import struct

import numpy


def feed_forward(prefix, width, hidden):
    yield prefix + "gate_proj.weight", (width, hidden)
    yield prefix + "up_proj.weight", (width, hidden)
    yield prefix + "down_proj.weight", (hidden, width)


def tensors(a):
    """(name, shape) of every tensor, in the order of the file."""
    yield "model.embed_tokens.weight", (a.vocab, a.hidden)
    for layer in range(a.layers):
        prefix = f"model.layers.{layer}."
        attention = prefix + "self_attn."
        yield prefix + "input_layernorm.weight", (a.hidden,)
        yield attention + "q_proj.weight", (a.heads * a.head_dim, a.hidden)
        yield attention + "k_proj.weight", (a.kv_heads * a.head_dim, a.hidden)
        yield attention + "v_proj.weight", (a.kv_heads * a.head_dim, a.hidden)
        yield attention + "o_proj.weight", (a.hidden, a.heads * a.head_dim)
        yield attention + "q_norm.weight", (a.head_dim,)
        yield attention + "k_norm.weight", (a.head_dim,)
        yield prefix + "post_attention_layernorm.weight", (a.hidden,)
        if layer < a.dense_layers:
            yield from feed_forward(prefix + "mlp.", a.top_k * a.expert_width,
                                    a.hidden)
            continue
        yield prefix + "mlp.gate.weight", (a.experts, a.hidden)
        for expert in range(a.experts):
            yield from feed_forward(f"{prefix}mlp.experts.{expert}.",
                                    a.expert_width, a.hidden)
    yield "model.norm.weight", (a.hidden,)
    yield "lm_head.weight", (a.vocab, a.hidden)


def random_bf16(generator, name, shape):
    """Norms near one, the rest near zero, as the upper half of float32."""
    values = generator.standard_normal(shape, dtype=numpy.float32) * 0.02
    if len(shape) == 1:
        values += 1.0
    return (values.view(numpy.uint32) >> 16).astype(numpy.uint16)


def config(a):
    return {
        "architectures": ["Qwen3MoeForCausalLM"], "model_type": "qwen3_moe",
        "hidden_size": a.hidden, "num_hidden_layers": a.layers,
        "num_attention_heads": a.heads, "num_key_value_heads": a.kv_heads,
        "head_dim": a.head_dim,
        "intermediate_size": a.top_k * a.expert_width,
        "moe_intermediate_size": a.expert_width, "num_experts": a.experts,
        "num_experts_per_tok": a.top_k, "norm_topk_prob": True,
        "decoder_sparse_step": 1,
        "mlp_only_layers": list(range(a.dense_layers)),
        "vocab_size": a.vocab, "max_position_embeddings": 4096,
        "rms_norm_eps": 1e-6, "rope_theta": 1000000.0, "hidden_act": "silu",
        "attention_bias": False, "tie_word_embeddings": False,
        "torch_dtype": "bfloat16", "eos_token_id": 0,
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.ArgumentDefaultsHelpFormatter)
    parser.add_argument("folder", type=pathlib.Path)
    for name, value in (("hidden", 1024), ("layers", 16), ("heads", 16),
                        ("kv-heads", 4), ("head-dim", 64), ("experts", 64),
                        ("top-k", 8), ("expert-width", 512), ("vocab", 32000),
                        ("dense-layers", 0), ("seed", 1)):
        parser.add_argument("--" + name, type=int, default=value, help=" ")
    a = parser.parse_args()

    header, offset = {}, 0
    for name, shape in tensors(a):
        size = 2 * int(numpy.prod(shape))
        header[name] = {"dtype": "BF16", "shape": shape,
                        "data_offsets": [offset, offset + size]}
        offset += size
    a.folder.mkdir(parents=True, exist_ok=True)
    (a.folder / "config.json").write_text(json.dumps(config(a), indent=1))
    encoded = json.dumps(header).encode()
    encoded += b" " * (-len(encoded) % 8)
    generator = numpy.random.default_rng(a.seed)
    with open(a.folder / "model.safetensors", "wb") as file:
        file.write(struct.pack("<Q", len(encoded)) + encoded)
        for name, shape in tensors(a):
            file.write(random_bf16(generator, name, shape).tobytes())
    print(f"{a.folder}: {offset / 2e9:.3f} B parameters, {offset / 1e9:.2f} GB")


if __name__ == "__main__":
    main()
