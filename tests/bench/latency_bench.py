#!/usr/bin/env python3
"""How soon a known prompt answers, and how evenly tokens come beside prompts.

First the time to the first token of a prompt that was sent before, with the
prefix cache and without. Then one request decodes while two clients send new
prompts without pause: the times between its tokens, and prompts served, by
--target-inter-token-latency.
"""

import argparse
import random
import statistics
import threading
import time

import expertmesh_testing as et
import grpc
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

SECONDS = 300
PROMPT_TOKENS = 960
STREAM_TOKENS = 900
CLIENTS = 2


def new_prompt():
    return [random.randrange(256, 1000) for _ in range(PROMPT_TOKENS)]


def generate(stub, ids, max_tokens):
    return stub.Generate(
        pb.GenerateRequest(token_ids=pb.TokenIds(ids=ids), temperature=0,
                           max_tokens=max_tokens, ignore_eos=True),
        timeout=SECONDS)


def first_token_seconds(mesh, ids):
    with grpc.insecure_channel(mesh.address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        last = list(generate(stub, ids, 1))[-1]
    return last.timings.time_to_first_token_seconds


def known_prompts(rounds):
    times = {"on": [], "off": []}
    meshes = {state: et.serve(et.DEMO_MODEL, 1, "--prefix-cache", state)
              for state in times}
    for _ in range(rounds):
        ids = new_prompt()
        for state, mesh in meshes.items():
            first_token_seconds(mesh, ids)
            times[state].append(first_token_seconds(mesh, ids))
    for state, mesh in meshes.items():
        mesh.stop()
        print(f"prefix cache {state}: {PROMPT_TOKENS} known tokens answer in "
              f"{1000 * statistics.median(times[state]):.1f} ms")


def beside_prompts(target):
    """Times between tokens in seconds, and prompts served a second."""
    served = []
    over = threading.Event()

    def send_prompts(address):
        with grpc.insecure_channel(address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            while not over.is_set():
                list(generate(stub, new_prompt(), 1))
                served.append(1)

    gaps = []
    with et.serve(et.DEMO_MODEL, 1, "--target-inter-token-latency",
                  target) as mesh:
        clients = [threading.Thread(target=send_prompts, args=[mesh.address])
                   for _ in range(CLIENTS)]
        with grpc.insecure_channel(mesh.address) as channel:
            stub = generation_pb2_grpc.GenerationServiceStub(channel)
            stream = generate(stub, [300], STREAM_TOKENS)
            next(stream)
            for client in clients:
                client.start()
            begin = at = time.monotonic()
            for _ in stream:
                now = time.monotonic()
                gaps.append(now - at)
                at = now
            rate = len(served) / (at - begin)
        over.set()
        for client in clients:
            client.join()
    return sorted(gaps), rate


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--targets", default="0,0.04,0.02,0.01",
                        help="seconds; 0: none")
    flags = parser.parse_args()
    known_prompts(flags.rounds)
    for target in flags.targets.split(","):
        gaps, rate = beside_prompts(target)
        at = lambda share: 1000 * gaps[int(share * (len(gaps) - 1))]
        print(f"target {target}: {at(0.5):.1f} ms between tokens in the "
              f"middle, {at(0.95):.1f} in 95%, {at(1):.1f} at most; "
              f"{rate:.1f} prompts/s")


if __name__ == "__main__":
    main()
