"""Runs the real binaries in tests: start, wait until ready, talk, stop.

Tests are told by environment variables where things are:
  EXPERTMESH_BIN       folder of the binaries
  EXPERTMESH_STUBS     folder of the Python classes generated from protos/
  EXPERTMESH_SOURCE    the repository's root
"""

import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time
import unittest
import urllib.request

BIN = pathlib.Path(os.environ["EXPERTMESH_BIN"])
SOURCE = pathlib.Path(os.environ["EXPERTMESH_SOURCE"])
DEMO_MODEL = SOURCE / "deploy" / "demo_model"
GOLDENS = SOURCE / "tests" / "golden"
sys.path.insert(0, os.environ["EXPERTMESH_STUBS"])

# Generous: sanitizer builds on a busy machine are slow.
START_SECONDS = 120
STOP_SECONDS = 60


class StartError(Exception):
    """A service ended instead of becoming ready."""


def wait_until(condition, seconds=START_SECONDS, what="a condition"):
    """The first true value of condition(), which is asked again and again."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        value = condition()
        if value:
            return value
        time.sleep(0.01)
    raise TimeoutError(f"waited {seconds} s for {what}")


def is_running(pid):
    """Whether the process lives (a zombie does not)."""
    try:
        stat = pathlib.Path(f"/proc/{pid}/stat").read_text()
    except OSError:
        return False
    return stat.rsplit(")", 1)[1].split()[0] != "Z"


class Service:
    """A binary that writes a ready file. A context manager: stops at the end."""

    def __init__(self, command, env=None, wait=True):
        self._folder = tempfile.TemporaryDirectory(prefix="expertmesh-test-")
        self._admin_channel = None
        self.ready_file = pathlib.Path(self._folder.name) / "ready.json"
        self._log_path = pathlib.Path(self._folder.name) / "log"
        with open(self._log_path, "wb") as log:
            self.process = subprocess.Popen(
                [str(part) for part in command] +
                ["--ready-file", str(self.ready_file)],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log,
                # A service killed outright leaves its files to us.
                env={**os.environ, "TMPDIR": self._folder.name,
                     **(env or {})})
        if wait:
            self.await_ready()

    def await_ready(self):
        try:
            wait_until(self._ready_or_ended, what="a service to be ready")
        except BaseException:
            self.stop(signal.SIGKILL)
            raise

    def _ready_or_ended(self):
        if self.ready_file.exists():
            return True
        if self.process.poll() is not None:
            raise StartError(self.log())
        return False

    @property
    def ready(self):
        """What the ready file says now."""
        return json.loads(self.ready_file.read_text())

    @property
    def address(self):
        return self.ready["grpc"]

    @property
    def admin_address(self):
        """Of a router: where operators reach it."""
        return self.ready["admin"]

    def admin_channel(self):
        """To the admin API of a router; closed with it."""
        if self._admin_channel is None:
            import grpc  # not every user has it
            self._admin_channel = grpc.insecure_channel(self.admin_address)
        return self._admin_channel

    @property
    def metrics_url(self):
        return self.ready["metrics"]

    def metrics(self):
        """Values of its series, by series as Prometheus writes them."""
        with urllib.request.urlopen(self.metrics_url,
                                    timeout=START_SECONDS) as page:
            lines = page.read().decode().splitlines()
        return {series: float(value) for series, value in
                (line.rsplit(" ", 1) for line in lines
                 if not line.startswith("#"))}

    @property
    def pid(self):
        return self.process.pid

    def log(self):
        """All that it wrote so far."""
        return self._log_path.read_text(errors="replace")

    def await_log(self, pattern):
        """The match of a pattern that it is to have written: lines may come
        after what they tell of."""
        try:
            return wait_until(lambda: re.search(pattern, self.log()))
        except TimeoutError:
            raise AssertionError(f"no {pattern} in {self.log()}") from None

    def stop(self, number=signal.SIGTERM):
        """Signals, waits, and returns the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(number)
        try:
            return self.process.wait(timeout=STOP_SECONDS)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise

    def __enter__(self):
        return self

    def __exit__(self, *_):
        if self._admin_channel is not None:
            self._admin_channel.close()
        self.stop()
        self._folder.cleanup()


def serve(model=DEMO_MODEL, expert_services=2, *flags):
    """Router and experts by the launcher, on free ports."""
    return Service([BIN / "expertmesh", "serve", "--model", model,
                    "--expert-services", expert_services,
                    "--listen", "127.0.0.1:0", *flags])


def expert(model=DEMO_MODEL, *flags):
    return Service([BIN / "expertmesh-expert", "--model", model,
                    "--listen", "127.0.0.1:0",
                    "--metrics-listen", "127.0.0.1:0", *flags])


def router(model, expert_addresses, *flags):
    return Service([BIN / "expertmesh-router", "--model", model,
                    "--experts-at", ",".join(expert_addresses),
                    "--listen", "127.0.0.1:0",
                    "--metrics-listen", "127.0.0.1:0", *flags])


def cli(*arguments, stdin=None, check=True, seconds=START_SECONDS, env=None):
    """Runs `expertmesh`, with `env` added to the environment; returns its
    CompletedProcess with text output."""
    done = subprocess.run([str(BIN / "expertmesh"), *map(str, arguments)],
                          input=stdin, capture_output=True, text=True,
                          timeout=seconds, env={**os.environ, **(env or {})},
                          **({} if stdin is not None
                             else {"stdin": subprocess.DEVNULL}))
    if check and done.returncode != 0:
        raise AssertionError(
            f"expertmesh {' '.join(map(str, arguments))} exited with "
            f"{done.returncode}: {done.stderr}")
    return done


def main():
    unittest.main(verbosity=2)
