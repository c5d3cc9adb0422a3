"""An expert service that announces what it is told and answers nonsense.

No answer could be taken for a good one: none is OK with the right shape, except
where all values are not finite.
"""

import concurrent.futures
import threading
import time

import grpc

import expertmesh_testing  # noqa: F401  makes the generated classes importable
from expertmesh.expert.v1 import expert_pb2 as pb

_SERVICE = "expertmesh.expert.v1.ExpertService"
_STATE_SECONDS = 0.2


class GarbageService:

    def __init__(self, rng):
        self.state = b""
        self.kinds = NONSENSE
        self._rng = rng
        self._lock = threading.Lock()
        handlers = {
            "Forward": grpc.stream_stream_rpc_method_handler(self._forward),
            "WatchState": grpc.unary_stream_rpc_method_handler(self._watch),
        }
        # Streams of connections that were reset may linger.
        self._server = grpc.server(
            concurrent.futures.ThreadPoolExecutor(max_workers=64))
        self._server.add_generic_rpc_handlers(
            (grpc.method_handlers_generic_handler(_SERVICE, handlers),))
        self.address = ("127.0.0.1",
                        self._server.add_insecure_port("127.0.0.1:0"))
        self._server.start()

    def _watch(self, _, context):
        while context.is_active():
            yield self.state
            time.sleep(_STATE_SECONDS)

    def _forward(self, requests, context):
        for request in requests:
            with self._lock:
                kind = self._rng.choice(self.kinds)
                answers = list(kind(self._rng, pb.ExpertBatch.FromString(
                    request)))
            for answer in answers:
                if answer is None:
                    context.abort(grpc.StatusCode.UNKNOWN, "nonsense")
                yield answer if isinstance(answer, bytes) \
                    else answer.SerializeToString()


def _result(batch, code=pb.CODE_OK, **fields):
    return pb.ExpertResult(sequence_number=batch.sequence_number, code=code,
                           **fields)


def _random_bytes(rng, _):
    yield rng.randbytes(rng.choice((0, 1, 7, 100, 5000)))


def _cut_short(rng, batch):
    whole = _result(batch, hidden_states=rng.randbytes(4096))
    yield whole.SerializeToString()[:rng.randrange(1, 4096)]


def _wrong_rows(rng, batch):
    rows = rng.choice((0, 1 << 31, len(batch.row_token) + 1))
    yield _result(batch, data_type=batch.data_type, num_rows=rows,
                  hidden_size=batch.hidden_size,
                  hidden_states=rng.randbytes(min(rows, 64) * 16))


def _wrong_payload(rng, batch):
    yield _result(batch, data_type=batch.data_type,
                  num_rows=len(batch.row_token),
                  hidden_size=batch.hidden_size,
                  hidden_states=rng.randbytes(rng.randrange(64)))


def _never_sent(rng, batch):
    answer = _result(batch)
    answer.sequence_number = rng.randrange(1 << 64)
    yield answer


def _refused(rng, batch):
    yield _result(batch, rng.choice((0, 2, 3, 4, 5, 6, 7, 99)),
                  message="nonsense")


def _answered_twice(rng, batch):
    for _ in range(2):
        yield _result(batch, pb.CODE_RESOURCE_EXHAUSTED,
                      credit_rows=rng.randrange(1 << 32))


def _unanswered(_, __):
    return ()


def _aborted(_, __):
    yield None


def _not_finite(rng, batch):
    value = rng.choice((b"\xc0\x7f", b"\x80\x7f"))  # NaN, infinity; as f32, NaN
    if batch.data_type == pb.DATA_TYPE_INT8:
        row = b"\x00\x00" + value + bytes(batch.hidden_size)
    elif batch.data_type == pb.DATA_TYPE_F32:
        row = value * (2 * batch.hidden_size)
    else:
        row = value * batch.hidden_size
    rows = len(batch.row_token)
    yield _result(batch, data_type=batch.data_type, num_rows=rows,
                  hidden_size=batch.hidden_size, hidden_states=row * rows)


NOT_FINITE = (_not_finite,)
NONSENSE = (_random_bytes, _cut_short, _wrong_rows, _wrong_payload,
            _never_sent, _refused, _answered_twice, _unanswered, _aborted)
