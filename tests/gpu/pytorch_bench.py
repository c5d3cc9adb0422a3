#!/usr/bin/env python3
"""The feed-forward of ffn_bench.cc's layers in PyTorch, in bf16, for comparison.

    pytorch_bench.py --out FILE [--seconds N]
    pytorch_bench.py --check     # small layers on the CPU: do the methods agree?

Methods, all of which take rows that are gathered by expert already, but for
transformers', which begin and end with tokens in order:

  matmul            torch.matmul for each expert that has rows
  grouped_mm        torch._grouped_mm over all experts
  matmul_graph, grouped_mm_graph       the same, replayed as a CUDA graph
  transformers_eager, transformers_grouped_mm, transformers_batched_mm
                    Qwen3MoeExperts of transformers 5, by implementation

As in ffn_bench.cc, all experts of one layer are on the device, each of 16
batches has other experts by chance, times are of events around all of them, and
all weights are the same number (random ones cost more power, so fewer clocks).

FILE has {"torch", "transformers", "device", "cases": {"Decode/mixtral/1":
{METHOD: {"microseconds": N} or {"error": TEXT}}}}, or {"not_installed": TEXT}.
It is written after each case. Cases that do not fit in --seconds are left out.
"""

import argparse
import json
import os
import pathlib
import random
import sys
import time

FILL = 0x3c  # both bytes of every number
TURNS = 16
MEASURED_SECONDS = 0.15  # of one method and case
# Of weights that transformers_batched_mm may copy in one call.
MOST_BATCHED_BYTES = 8 << 30

# Name, hidden and intermediate size, experts, experts of a token.
MODELS = [("qwen3_30b", 2048, 768, 128, 8),
          ("mixtral", 4096, 14336, 8, 2),
          ("deepseek_v3", 7168, 2048, 256, 8)]
SMALL_MODELS = [("small", 64, 32, 8, 2)]
TOKENS = {"Decode": (1, 4, 32), "Prefill": (512, 2048)}


class Layer:
    """The weights of all experts of one layer, gate and up together."""

    def __init__(self, torch, model, device, filled):
        self.name, self.hidden, self.intermediate, self.experts, self.top_k = model
        def weights(*shape):
            if not filled:
                return (torch.randn(shape, device=device) / 8).bfloat16()
            return filled_with(torch, shape, device)
        self.gate_up = weights(self.experts, 2 * self.intermediate, self.hidden)
        self.down = weights(self.experts, self.hidden, self.intermediate)
        self.expert_bytes = 6 * self.hidden * self.intermediate


def filled_with(torch, shape, device):
    return torch.full((*shape[:-1], 2 * shape[-1]), FILL, dtype=torch.uint8,
                      device=device).view(torch.bfloat16)


class Batch:
    """Tokens whose experts are chosen by chance, and their rows by expert."""

    def __init__(self, torch, layer, tokens, seed, device, filled):
        chance = random.Random(seed)
        chosen = [chance.sample(range(layer.experts), layer.top_k)
                  for _ in range(tokens)]
        rows = sorted((expert, token) for token, experts in enumerate(chosen)
                      for expert in experts)
        self.x = (filled_with(torch, (tokens, layer.hidden), device) if filled
                  else torch.randn(tokens, layer.hidden, device=device).bfloat16())
        self.topk_ids = torch.tensor(chosen, device=device)
        self.topk_weights = torch.full((tokens, layer.top_k), 1 / layer.top_k,
                                       dtype=torch.bfloat16, device=device)
        self.row_token = torch.tensor([token for _, token in rows], device=device)
        self.rows = self.x[self.row_token]
        counts = [0] * layer.experts
        for expert, _ in rows:
            counts[expert] += 1
        ends, end = [], 0
        self.groups = []  # expert, first row, row after the last
        for expert, count in enumerate(counts):
            if count:
                self.groups.append((expert, end, end + count))
            end += count
            ends.append(end)
        self.ends = torch.tensor(ends, dtype=torch.int32, device=device)


def matmul(torch, layer, batch):
    out = torch.empty_like(batch.rows)
    for expert, first, last in batch.groups:
        gate, up = torch.matmul(batch.rows[first:last],
                                layer.gate_up[expert].t()).chunk(2, dim=-1)
        torch.matmul(torch.nn.functional.silu(gate) * up, layer.down[expert].t(),
                     out=out[first:last])
    return out


def grouped_mm(torch, layer, batch):
    multiply = getattr(torch, "_grouped_mm", None) or \
        torch.nn.functional.grouped_mm
    gate, up = multiply(batch.rows, layer.gate_up.transpose(-2, -1),
                        offs=batch.ends).chunk(2, dim=-1)
    return multiply(torch.nn.functional.silu(gate) * up,
                    layer.down.transpose(-2, -1), offs=batch.ends)


def transformers_experts(torch, layer, implementation):
    """A module of transformers with the layer's weights."""
    from transformers import Qwen3MoeConfig
    from transformers.models.qwen3_moe import modeling_qwen3_moe
    config = Qwen3MoeConfig(
        hidden_size=layer.hidden, moe_intermediate_size=layer.intermediate,
        num_experts=layer.experts, num_experts_per_tok=layer.top_k)
    config._experts_implementation = implementation
    with torch.device("meta"):  # its own weights take no memory
        module = modeling_qwen3_moe.Qwen3MoeExperts(config)
    for name, weights in (("gate_up_proj", layer.gate_up),
                          ("down_proj", layer.down)):
        if getattr(module, name).shape != weights.shape:
            raise RuntimeError(f"{name} is {tuple(getattr(module, name).shape)}")
        setattr(module, name, torch.nn.Parameter(weights, requires_grad=False))
    return module.eval()


def in_tokens(torch, layer, batch, rows):
    """Sums of rows over each token's experts."""
    sums = torch.zeros(batch.x.shape, dtype=torch.float32, device=rows.device)
    return sums.index_add_(0, batch.row_token, rows.float() / layer.top_k)


def methods_for(torch, layer, tokens):
    """By name: a function that makes the function of a batch to be timed."""
    methods = {"matmul": lambda: lambda batch: matmul(torch, layer, batch),
               "grouped_mm": lambda: lambda batch: grouped_mm(torch, layer, batch)}
    implementations = ["eager", "grouped_mm"]
    if tokens * layer.top_k * layer.expert_bytes <= MOST_BATCHED_BYTES:
        implementations.append("batched_mm")
    for implementation in implementations:
        def make(implementation=implementation):
            module = transformers_experts(torch, layer, implementation)
            return lambda batch: module(batch.x, batch.topk_ids,
                                        batch.topk_weights)
        methods[f"transformers_{implementation}"] = make
    return methods


def microseconds(torch, run_turns):
    """Of one turn, by events around all of them, again and again."""
    run_turns()
    torch.cuda.synchronize()
    start = torch.cuda.Event(enable_timing=True)
    end = torch.cuda.Event(enable_timing=True)
    total, count = 0.0, 0  # milliseconds, turns
    while count < 2 * TURNS or total < 1e3 * MEASURED_SECONDS:
        start.record()
        run_turns()
        end.record()
        end.synchronize()
        total += start.elapsed_time(end)
        count += TURNS
    return 1e3 * total / count


def as_graph(torch, run_turns):
    """The same work as one CUDA graph."""
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        run_turns()  # whatever is set up once
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        run_turns()
    return graph.replay


def measure_case(torch, layer, tokens):
    """{method: {"microseconds"} or {"error"}}."""
    batches = [Batch(torch, layer, tokens, seed, "cuda", filled=True)
               for seed in range(TURNS)]
    methods = methods_for(torch, layer, tokens)
    case = {}

    def turns(name):
        run = methods[name]()
        def run_turns():
            for batch in batches:
                run(batch)
        return run_turns

    def measure(name, make):
        try:
            case[name] = {"microseconds": microseconds(torch, make())}
        except Exception as error:  # whatever this version of PyTorch lacks
            case[name] = {"error": as_text(error)}

    for name in methods:
        measure(name, lambda: turns(name))
    # Last, since a capture that fails may leave the device unwell.
    for name in "matmul", "grouped_mm":
        if "microseconds" in case[name]:
            measure(f"{name}_graph", lambda: as_graph(torch, turns(name)))
    return case


def as_text(error):
    return f"{type(error).__name__}: {error}"[:500]


def measure_all(torch, seconds, out):
    end = time.monotonic() + seconds
    results = {"torch": torch.__version__, "transformers": version_of_transformers(),
               "device": torch.cuda.get_device_name(), "cases": {}}
    for model in MODELS:
        measure_model(torch, model, end, out, results)
        torch.cuda.empty_cache()


def measure_model(torch, model, end, out, results):
    """Adds its cases to the results, until the time `end`."""
    layer = None
    for kind, tokens in [(kind, n) for kind in TOKENS for n in TOKENS[kind]]:
        if time.monotonic() > end:
            break
        try:
            layer = layer or Layer(torch, model, "cuda", filled=True)
            case = measure_case(torch, layer, tokens)
        except Exception as error:  # too little memory, for example
            case = {"all": {"error": as_text(error)}}
        results["cases"][f"{kind}/{model[0]}/{tokens}"] = case
        write(out, results)


def version_of_transformers():
    try:
        import transformers
        return transformers.__version__
    except Exception as error:
        return as_text(error)


def check(torch):
    """Whether the methods agree, on the CPU."""
    torch.manual_seed(1)
    failed = False
    for model in SMALL_MODELS:
        layer = Layer(torch, model, "cpu", filled=False)
        for tokens in 1, 30:
            batch = Batch(torch, layer, tokens, tokens, "cpu", filled=False)
            want = in_tokens(torch, layer, batch, matmul(torch, layer, batch))
            for name, make in methods_for(torch, layer, tokens).items():
                got = make()(batch)
                if not name.startswith("transformers"):
                    got = in_tokens(torch, layer, batch, got)
                off = float((got.float() - want).norm() / want.norm())
                print(f"{name}, {tokens} tokens: off by {off:.1e}")
                failed |= not off < 2e-2
    return 1 if failed else 0


def write(path, results):
    new = path.with_name(path.name + ".new")
    new.write_text(json.dumps(results, indent=1) + "\n")
    os.replace(new, path)


def parse_arguments():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=pathlib.Path, metavar="FILE",
                        default="pytorch.json", help="default: pytorch.json")
    parser.add_argument("--seconds", type=float, default=120,
                        help="after which no case is begun; default: 120")
    parser.add_argument("--check", action="store_true",
                        help="see above; needs no GPU")
    return parser.parse_args()


def main():
    arguments = parse_arguments()
    try:
        import torch
    except ImportError as error:
        write(arguments.out, {"not_installed": f"no PyTorch: {error}"})
        return 0
    with torch.no_grad():
        if arguments.check:
            return check(torch)
        if not torch.cuda.is_available():
            write(arguments.out, {"not_installed": f"PyTorch {torch.__version__} "
                                  "finds no CUDA device"})
            return 0
        measure_all(torch, arguments.seconds, arguments.out)
    return 0


if __name__ == "__main__":
    sys.exit(main())
