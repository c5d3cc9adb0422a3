"""A plain client of expertmesh.expert.v1, from the published proto alone."""

import queue

import grpc
import numpy as np

import expertmesh_testing  # noqa: F401  makes the generated classes importable
import safetensors_files
from expertmesh.expert.v1 import expert_pb2 as pb
from expertmesh.expert.v1 import expert_pb2_grpc

METHOD = "/expertmesh.expert.v1.ExpertService/Forward"


def encode(array, data_type):
    if data_type == pb.DATA_TYPE_INT8:
        return round_to_int8(array).tobytes()
    if data_type == pb.DATA_TYPE_BF16:
        array = safetensors_files.f32_to_bf16(array)
    return np.ascontiguousarray(array).tobytes()


def _int8_rows(hidden_size):
    return np.dtype([("scale", "<f4"), ("codes", "i1", hidden_size)])


def round_to_int8(tokens):
    """Rows as DATA_TYPE_INT8 has them."""
    rows = np.zeros(len(tokens), _int8_rows(tokens.shape[1]))
    largest = np.abs(tokens).max(axis=1, keepdims=True)
    rows["scale"] = largest[:, 0] / np.float32(127)
    rows["codes"] = np.rint(tokens * (np.float32(127) / largest))
    return rows


def widen_int8(rows):
    return rows["scale"][:, None] * rows["codes"].astype(np.float32)


def decode(result):
    if result.data_type == pb.DATA_TYPE_INT8:
        return widen_int8(np.frombuffer(result.hidden_states,
                                        _int8_rows(result.hidden_size)))
    if result.data_type == pb.DATA_TYPE_BF16:
        rows = safetensors_files.bf16_to_f32(
            np.frombuffer(result.hidden_states, "<u2"))
    else:
        rows = np.frombuffer(result.hidden_states, "<f4")
    return rows.reshape(result.num_rows, result.hidden_size)


def make_batch(number, layer, tokens, rows_of_expert,
               data_type=pb.DATA_TYPE_F32):
    """tokens [n, hidden] float32; rows_of_expert: token indices by expert."""
    batch = pb.ExpertBatch(
        sequence_number=number, layer=layer, data_type=data_type,
        num_tokens=tokens.shape[0], hidden_size=tokens.shape[1],
        group_offsets=[0], hidden_states=encode(tokens, data_type))
    for expert, rows in sorted(rows_of_expert.items()):
        batch.expert_ids.append(expert)
        batch.row_token.extend(rows)
        batch.group_offsets.append(len(batch.row_token))
    return batch


class ForwardStream:
    """One Forward stream of ExpertBatch messages, or of raw bytes."""

    def __init__(self, channel, raw=False):
        self._outgoing = queue.Queue()
        requests = iter(self._outgoing.get, None)
        if raw:
            method = channel.stream_stream(
                METHOD, request_serializer=lambda x: x,
                response_deserializer=pb.ExpertResult.FromString)
            self.call = method(requests)
        else:
            self.call = expert_pb2_grpc.ExpertServiceStub(channel).Forward(
                requests)

    def send(self, message):
        self._outgoing.put(message)

    def receive(self):
        return next(self.call)

    def ask(self, batch):
        self.send(batch)
        return self.receive()

    def close(self):
        self._outgoing.put(None)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()
        self.call.cancel()


def watch_state(channel, interval_ms=0):
    return expert_pb2_grpc.ExpertServiceStub(channel).WatchState(
        pb.WatchStateRequest(interval_ms=interval_ms))


def slots_message(slots):
    """{layer: experts} as the orders carry it."""
    return [pb.HostedExperts(layer=layer, expert_ids=experts)
            for layer, experts in sorted(slots.items())]


def load_experts(channel, slots, epoch=0):
    """Loads; returns all progress messages."""
    return list(expert_pb2_grpc.ExpertServiceStub(channel).LoadExperts(
        pb.LoadExpertsRequest(slots=slots_message(slots), epoch=epoch)))


def unload_experts(channel, slots, epoch=0):
    return expert_pb2_grpc.ExpertServiceStub(channel).UnloadExperts(
        pb.UnloadExpertsRequest(slots=slots_message(slots), epoch=epoch))


def drain(channel, draining=True):
    expert_pb2_grpc.ExpertServiceStub(channel).Drain(
        pb.DrainRequest(drain=draining))


def hosted(state):
    """{layer: experts} of an EndpointState."""
    return {entry.layer: list(entry.expert_ids) for entry in state.hosted}


def health(channel, service=""):
    """grpc.health.v1 by its bytes: 1 is SERVING, 2 is NOT_SERVING."""
    request = b"\x0a" + bytes([len(service)]) + service.encode() \
        if service else b""
    check = channel.unary_unary("/grpc.health.v1.Health/Check",
                                request_serializer=lambda x: x,
                                response_deserializer=lambda x: x)
    return check(request, timeout=30)[1]


def connect(service):
    return grpc.insecure_channel(service.address)
