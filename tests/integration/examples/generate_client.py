"""Streams generated text from an Expertmesh router.

    protoc -I protos --python_out=stubs --grpc_out=stubs \
        --plugin=protoc-gen-grpc=$(which grpc_python_plugin) \
        protos/expertmesh/v1/generation.proto
    PYTHONPATH=stubs python3 generate_client.py 127.0.0.1:50051 "ROMEO:"
"""

import sys

import grpc
from expertmesh.v1 import generation_pb2, generation_pb2_grpc


def main(address, prompt):
    with grpc.insecure_channel(address) as channel:
        stub = generation_pb2_grpc.GenerationServiceStub(channel)
        request = generation_pb2.GenerateRequest(text=prompt, max_tokens=64,
                                                 temperature=0)
        for response in stub.Generate(request, timeout=60):
            print(response.text, end="", flush=True)
            if response.HasField("routing"):
                print(f"\n{response.usage.generated_tokens} tokens, "
                      f"{response.routing.primary} expert rows",
                      file=sys.stderr)


if __name__ == "__main__":
    main(*sys.argv[1:])
