"""The demo model, from a prompt to text: on the GPU, and on the CPU beside it."""

import json
import pathlib
import subprocess
import tempfile
import time

from steps.programs import Failed, attempt, run_command

# Between perplexities on the two devices: orders of sums differ, weights do not.
MOST_PERPLEXITY_DIFFERENCE = 0.005
START_SECONDS = 60
CALL_SECONDS = 120
PROMPT = "ROMEO:\n"
TOKENS = 64
# Requests beside the one that is looked at, which outlast it.
OTHERS = 8
OTHERS_TOKENS = 512


class Mesh:
    """A router and two expert services on `device`. A context manager."""

    def __init__(self, bundle, device, budget):
        self._expertmesh = bundle / "bin/expertmesh"
        self._model = bundle / "demo_model"
        self._device = device
        self._budget = budget
        self._others = []

    def __enter__(self):
        self._folder = tempfile.TemporaryDirectory()
        folder = pathlib.Path(self._folder.name)
        ready = folder / "ready.json"
        self._log = open(folder / "log", "w+", encoding="utf-8",
                         errors="replace")
        # Without the prefix cache a prompt is computed each time.
        self._process = subprocess.Popen(
            [self._expertmesh, "serve", "--model", self._model,
             "--expert-services", "2", "--device", self._device,
             "--prefix-cache", "off", "--listen", "127.0.0.1:0",
             "--ready-file", ready],
            stdin=subprocess.DEVNULL, stdout=self._log, stderr=self._log)
        try:
            self._await(ready.exists, "ready")
            self._address = json.loads(ready.read_text())["grpc"]
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_):
        for process in (*self._others, self._process):
            process.terminate()
        for process in (*self._others, self._process):
            try:
                process.wait(timeout=20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._log.close()
        self._folder.cleanup()

    def _said(self):
        self._log.seek(0)
        return self._log.read()

    def _await(self, condition, what):
        deadline = time.monotonic() + self._budget.for_one(START_SECONDS)
        while not condition():
            ended = self._process.poll() is not None
            if ended or time.monotonic() > deadline:
                why = "it ended" if ended else "it took too long"
                raise Failed(f"serve --device {self._device} is not {what}, "
                             f"{why}: {self._said()}")
            time.sleep(0.02)

    def _generate_command(self, prompt, tokens):
        return [self._expertmesh, "generate", "--server", self._address,
                "--json", f"--prompt={prompt}", "--temperature", "0",
                "--max-tokens", str(tokens), "--ignore-eos"]

    def _call(self, command):
        code, out, errors = run_command(command,
                                        self._budget.for_one(CALL_SECONDS))
        if code != 0:
            raise Failed(f"{command[1]} on {self._device}: {errors}")
        return out

    def generate(self):
        """{"tokens": [...], "text": ...} that greedily follow the prompt."""
        lines = self._call(self._generate_command(PROMPT, TOKENS)).splitlines()
        parts = [json.loads(line) for line in lines]
        tokens = [token for part in parts for token in part.get("tokenIds", [])]
        if len(tokens) != TOKENS:
            raise Failed(f"{len(tokens)} tokens on {self._device}, not {TOKENS}")
        return {"tokens": tokens,
                "text": "".join(part.get("text", "") for part in parts)}

    def start_others(self):
        """Requests that have begun to generate when this returns."""
        text = heldout_texts(self._model)[0].read_text(encoding="utf-8")
        outputs = []
        for i in range(OTHERS):
            prompt = text[200 * i:200 * i + 20 * (i + 1)] or "A"
            outputs.append(pathlib.Path(self._folder.name) / f"other{i}")
            with open(outputs[-1], "w") as out:
                self._others.append(subprocess.Popen(
                    self._generate_command(prompt, OTHERS_TOKENS),
                    stdin=subprocess.DEVNULL, stdout=out, stderr=out))
        self._await(lambda: all(path.stat().st_size for path in outputs),
                    "generating for others")

    def others_running(self):
        return sum(process.poll() is None for process in self._others)

    def score(self, text):
        """The perplexity of a file."""
        out = self._call([self._expertmesh, "score", "--server", self._address,
                          "--json", "--text-file", text])
        return json.loads(out)["perplexity"]


def heldout_texts(model):
    """Files that the model was not trained on."""
    texts = sorted(model.glob("heldout*.txt"))
    if not texts:
        raise Failed(f"{model} has no heldout*.txt")
    return texts


def leading_equal(a, b):
    """How many of the first elements are the same."""
    count = 0
    while count < min(len(a), len(b)) and a[count] == b[count]:
        count += 1
    return count


def generate_on_both(bundle, budget, record):
    """Whether the GPU gives the same tokens again, and in company. The CPU's
    may differ from some token on: they are written down beside them."""
    record["prompt"] = PROMPT
    with Mesh(bundle, "cpu", budget) as mesh:
        on_cpu = mesh.generate()
    record["cpu"] = on_cpu["text"]
    with Mesh(bundle, "cuda", budget) as mesh:
        first = mesh.generate()
        record["cuda"] = first["text"]
        record["leading_tokens_as_on_cpu"] = leading_equal(first["tokens"],
                                                           on_cpu["tokens"])
        record["same_again"] = mesh.generate() == first
        mesh.start_others()
        record["same_beside_others"] = mesh.generate() == first
        # Those that were there all the time.
        record["others"] = mesh.others_running()
    if record["others"] == 0:
        raise Failed("the requests beside it ended before it did")
    return record["same_again"] and record["same_beside_others"]


def score_on_both(bundle, budget, record):
    """Whether perplexities of the held-out texts agree."""
    record["texts"] = {}
    for device in "cpu", "cuda":
        with Mesh(bundle, device, budget) as mesh:
            for text in heldout_texts(bundle / "demo_model"):
                record["texts"].setdefault(text.name, {})[device] = \
                    mesh.score(text)
    for values in record["texts"].values():
        values["difference"] = abs(values["cuda"] / values["cpu"] - 1)
    return all(
        values["difference"] <= MOST_PERPLEXITY_DIFFERENCE
        for values in record["texts"].values())


def run_demo(bundle, budget):
    """Records of the two."""
    yield attempt("generation", budget,
                  lambda record: generate_on_both(bundle, budget, record))
    yield attempt("perplexity", budget,
                  lambda record: score_on_both(bundle, budget, record))
