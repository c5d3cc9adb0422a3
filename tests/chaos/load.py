"""Clients that ask, and compare every answer with the undisturbed one."""

import dataclasses
import random
import threading
import time

import grpc

import expertmesh_testing as et
from expertmesh.v1 import generation_pb2 as pb
from expertmesh.v1 import generation_pb2_grpc

# Longest silence of a stream before it counts as hanging: the time that the
# router lets rows wait for somebody, and as much again for a busy machine.
HANG_SECONDS = 20
# A stream that goes on for so long, however lively, has lost its way.
REQUEST_SECONDS = 300


def make_requests(seed, count):
    """Different prompts, lengths and seeds; greedy and sampled."""
    rng = random.Random(seed)
    texts = [path.read_text() for path in
             sorted(et.DEMO_MODEL.glob("heldout*.txt"))]
    return [_make_request(rng, f"chaos-{i}", rng.choice(texts))
            for i in range(count)]


def _make_request(rng, name, text):
    size = rng.choice((3, 20, 80, 300, 900))
    begin = rng.randrange(len(text) - size)
    request = pb.GenerateRequest(
        request_id=name, text=text[begin:begin + size], temperature=0,
        max_tokens=rng.randrange(8, 97), ignore_eos=rng.random() < 0.8,
        logprobs=rng.randrange(4))
    if rng.random() < 0.2:
        request.prompt_logprobs = 1
    if rng.random() < 0.5:
        request.temperature = rng.uniform(0.5, 1.3)
        request.seed = rng.randrange(1 << 32)
        request.top_k = rng.choice((0, 5, 40))
        request.top_p = rng.choice((0.8, 0.95, 1))
        request.repetition_penalty = rng.choice((1, 1.2))
    return request


@dataclasses.dataclass
class Answer:
    token_ids: list
    text: str
    # Messages as bytes: equal only if every bit is.
    logprobs: list
    prompt_logprobs: list
    finish_reason: int

    @classmethod
    def of(cls, responses):
        return cls(
            [i for r in responses for i in r.token_ids],
            "".join(r.text for r in responses),
            [p.SerializeToString() for r in responses for p in r.logprobs],
            [p.SerializeToString() for r in responses
             for p in r.prompt_logprobs],
            responses[-1].finish_reason if responses else 0)

    def difference(self, other):
        """What differs first, in words; empty: nothing does."""
        for field in dataclasses.fields(self):
            mine, theirs = (getattr(a, field.name) for a in (self, other))
            if mine == theirs:
                continue
            if not isinstance(mine, list):
                return f"{field.name}: {mine!r} instead of {theirs!r}"
            at = next((i for i, (a, b) in enumerate(zip(mine, theirs))
                       if a != b), min(len(mine), len(theirs)))
            return (f"{field.name} from [{at}] on: {mine[at:at + 3]} instead "
                    f"of {theirs[at:at + 3]}, {len(mine)} instead of "
                    f"{len(theirs)}")
        return ""


@dataclasses.dataclass
class Gap:
    """Between two messages with tokens of one request."""
    ended_at: float
    seconds: float
    request_id: str


class Failure(Exception):
    """What the test is there to find."""


class Load:
    """Threads that ask without pause until they are told to stop. What goes
    wrong first is in `failure`, and ends them all."""

    def __init__(self, channels, requests, clients, seed, began):
        # Clients take them in turn.
        self._stubs = [generation_pb2_grpc.GenerationServiceStub(channel)
                       for channel in channels]
        self.requests = requests
        self.expected = {}
        self.failure = None
        self.ended = threading.Event()  # by a failure
        self._clients = clients
        self._seed = seed
        self._began = began  # of the run, to which times are told
        self._lock = threading.Lock()
        self.completed = 0
        self.tokens = []  # (when, how many)
        self.gaps = []
        self._active = {}  # client -> (call, request, last heard)

    def record(self):
        """Asks each request once, undisturbed; keeps the answers."""
        waiting = list(self.requests)

        def ask(client, _):
            while True:
                with self._lock:
                    if not waiting or self.ended.is_set():
                        return
                    request = waiting.pop()
                answer = self._ask(client, request)
                if answer is None:
                    return
                self.expected[request.request_id] = answer
        self._run(ask, lambda: None)

    def run(self, meanwhile):
        """Asks at random while meanwhile() goes on, and finishes what is under
        way then."""
        stop = threading.Event()

        def ask(client, rng):
            while not stop.is_set() and not self.ended.is_set():
                request = rng.choice(self.requests)
                answer = self._ask(client, request)
                if answer is None:
                    return
                wrong = answer.difference(self.expected[request.request_id])
                if wrong:
                    self._fail(request, f"another answer: {wrong}")

        def then_stop():
            try:
                meanwhile()
            finally:
                stop.set()
        self._run(ask, then_stop)

    def _run(self, ask, meanwhile):
        rng = random.Random(self._seed)
        threads = [threading.Thread(
            target=ask, args=(i, random.Random(rng.random())), daemon=True)
            for i in range(self._clients)]
        over = threading.Event()
        watchdog = threading.Thread(target=self._watch, args=(over,),
                                    daemon=True)
        watchdog.start()
        for thread in threads:
            thread.start()
        try:
            meanwhile()
        finally:
            for thread in threads:
                thread.join()
            over.set()
            watchdog.join()
        if self.failure is not None:
            raise self.failure

    def _watch(self, over):
        """No stream may be silent for long."""
        while not over.wait(0.25):
            now = time.monotonic()
            with self._lock:
                silent = [(call, request, heard) for call, request, heard
                          in self._active.values()
                          if now - heard > HANG_SECONDS]
            for call, request, heard in silent:
                self._fail(request, f"silent for {now - heard:.1f} s")
                call.cancel()

    def _ask(self, client, request):
        stub = self._stubs[client % len(self._stubs)]
        call = stub.Generate(request, timeout=REQUEST_SECONDS)
        responses, last = [], None
        try:
            self._hear(client, call, request)
            for response in call:
                now = self._hear(client, call, request)
                responses.append(response)
                if not response.token_ids:
                    continue
                self.tokens.append((now, len(response.token_ids)))
                if last is not None:
                    self.gaps.append(Gap(now, now - last, request.request_id))
                last = now
        except grpc.RpcError as error:
            self._fail(request, f"{error.code().name}: {error.details()} after "
                       f"{len(responses)} messages")
            return None
        finally:
            with self._lock:
                self._active.pop(client, None)
        with self._lock:
            self.completed += 1
        return Answer.of(responses)

    def _hear(self, client, call, request):
        now = time.monotonic()
        with self._lock:
            self._active[client] = (call, request, now)
        return now

    def _fail(self, request, what):
        with self._lock:
            if self.failure is None:
                self.failure = Failure(
                    f"request {request.request_id} at "
                    f"{time.monotonic() - self._began:.3f}: {what}\n{request}")
        self.ended.set()

    # --- Figures. ---

    def tokens_per_second(self, begin, end):
        return sum(n for at, n in list(self.tokens) if begin <= at < end) / \
            (end - begin)

    def gaps_between(self, begin, end):
        """Seconds, ascending."""
        return sorted(g.seconds for g in list(self.gaps)
                      if begin <= g.ended_at < end)


def quantile(ascending, q):
    return ascending[int(q * (len(ascending) - 1))] if ascending else 0.0
