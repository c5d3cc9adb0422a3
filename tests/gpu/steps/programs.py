"""Commands that may take so long and no longer, and records of what came of
them.

A record has `name`, `seconds` and `passed`: true, false, or null with the
reason in `skipped` (something is not installed here) or `not_run` (no time
was left). `said` is what a failed one wrote.
"""

import json
import os
import pathlib
import signal
import subprocess
import tempfile
import time

TEST_SECONDS = 180  # of one program; more is taken for a hang
LEAST_SECONDS = 3   # nothing is begun with less
MOST_SAID = 4000    # characters of what a failed program wrote


class Failed(Exception):
    """Something did not do what it should."""


class Budget:
    """The time that all of it may take."""

    def __init__(self, seconds):
        self._seconds = seconds
        self._begun = time.monotonic()

    def spent(self):
        return time.monotonic() - self._begun

    def left(self):
        return self._seconds - self.spent()

    def for_one(self, most):
        """Seconds for a command that may take `most`."""
        return max(0.1, min(most, self.left()))


def attempt(name, budget, work):
    """The record of work(record), which says whether it passed, or raises."""
    record = {"name": name, "passed": None}
    if budget.left() < LEAST_SECONDS:
        return {**record, "not_run": "no time was left"}
    begun = time.monotonic()
    try:
        record["passed"] = work(record)
    except (Failed, OSError, ValueError, KeyError) as error:
        if budget.left() <= 0:
            record["not_run"] = "it was not done when the time was over"
        else:
            record["passed"] = False
            record["said"] = f"{type(error).__name__}: {error}"[-MOST_SAID:]
    record["seconds"] = round(time.monotonic() - begun, 3)
    return record


def skipped(name, why):
    return {"name": name, "passed": None, "skipped": why}


def run_command(command, seconds, **popen):
    """(exit code, standard output, standard error). Raises Failed where it
    takes longer; then whatever it started is ended, too."""
    with subprocess.Popen(
            [str(part) for part in command], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
            encoding="utf-8", errors="replace", start_new_session=True, **popen) as process:
        try:
            out, errors = process.communicate(timeout=seconds)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise Failed(f"{pathlib.Path(command[0]).name} ran longer than "
                             f"{seconds:.0f} s") from None
            raise
        return process.returncode, out, errors


def read_json(path):
    """What a program wrote; None where it did not finish that."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def environment(bundle):
    """Programs find the bundle's libraries, and what they found before."""
    before = os.environ.get("LD_LIBRARY_PATH")
    return {**os.environ,
            "LD_LIBRARY_PATH": f"{bundle}/lib" + (f":{before}" if before else ""),
            "EXPERTMESH_EXPERT_BINARY": f"{bundle}/bin/expertmesh-expert",
            "EXPERTMESH_GOLDENS": f"{bundle}/tests/golden"}


def run_program(command, output_flags, env, seconds, record):
    """Whether it ended well. `output_flags` of the file that it is to write,
    which goes into the record, as does what it said where it failed."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "output.json"
        try:
            code, out, errors = run_command(
                [*command, *output_flags(output)], seconds, cwd=folder,
                env=env)
        finally:
            # Also of one that was too slow: its last test tells something.
            record["output"] = read_json(output)
    record["exit_code"] = code
    if code != 0:
        record["said"] = (out + errors)[-MOST_SAID:]
    return code == 0


def gtest_output(path):
    return [f"--gtest_output=json:{path}"]


def run_tests(bundle, budget):
    """A record for each test program: those of kernels, then whole models."""
    paths = sorted((bundle / "tests/bin").glob("*_test"),
                   key=lambda path: (path.name.startswith("golden"), path.name))
    for path in paths:
        yield attempt(path.name, budget, lambda record: run_program(
            [path], gtest_output, environment(bundle),
            budget.for_one(TEST_SECONDS), record))
