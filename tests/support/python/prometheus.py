"""A Prometheus of its own that scrapes what a test started."""

import json
import math
import pathlib
import shutil
import socket
import subprocess
import tempfile
import urllib.error
import urllib.parse
import urllib.request

from expertmesh_testing import wait_until

INSTALL = "there is no prometheus here; apt-get install prometheus"


def is_installed():
    return shutil.which("prometheus") and shutil.which("promtool")


def _free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Prometheus:
    """A context manager. `jobs`: URLs of /metrics by job. `rules`: files."""

    def __init__(self, jobs, rules=(), interval="1s"):
        self._folder = tempfile.TemporaryDirectory(prefix="prometheus-")
        folder = pathlib.Path(self._folder.name)
        self._targets = folder / "targets.json"
        self.set_targets(jobs)
        config = {
            "global": {"scrape_interval": interval,
                       "evaluation_interval": interval},
            "rule_files": [str(file) for file in rules],
            # Jobs are labels of the file, which may change while it runs.
            "scrape_configs": [{
                "job_name": "file",
                "file_sd_configs": [{"files": [str(self._targets)],
                                     "refresh_interval": "1s"}]}],
        }
        (folder / "prometheus.yml").write_text(json.dumps(config))
        # It cannot be told to choose a port and to say which.
        self.url = f"http://127.0.0.1:{_free_port()}"
        with open(folder / "log", "wb") as log:
            self.process = subprocess.Popen(
                ["prometheus", f"--config.file={folder}/prometheus.yml",
                 f"--storage.tsdb.path={folder}/data",
                 "--web.listen-address=" + self.url.removeprefix("http://")],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log)
        try:
            wait_until(self._is_ready, 60, "Prometheus")
        except BaseException:
            self.__exit__()
            raise

    def set_targets(self, jobs):
        groups = [{"targets": [self._host(url) for url in urls],
                   "labels": {"job": job}} for job, urls in jobs.items()]
        new = self._targets.with_suffix(".new")
        new.write_text(json.dumps(groups))
        new.rename(self._targets)

    @staticmethod
    def _host(url):
        return urllib.parse.urlparse(url).netloc

    def _is_ready(self):
        if self.process.poll() is not None:
            log = pathlib.Path(self._folder.name) / "log"
            raise RuntimeError(f"prometheus ended: {log.read_text()[-500:]}")
        try:
            with urllib.request.urlopen(self.url + "/-/ready", timeout=5):
                return True
        except OSError:
            return False

    def get(self, path, **parameters):
        """`data` of what the API answers."""
        url = (f"{self.url}/api/v1/{path}?"
               f"{urllib.parse.urlencode(parameters)}")
        try:
            with urllib.request.urlopen(url, timeout=60) as page:
                return json.load(page)["data"]
        except urllib.error.HTTPError as error:
            raise ValueError(f"{parameters}: {error.read().decode()}") from None

    def query(self, expr):
        """(labels, value) of each series that has a value, now."""
        samples = ((each["metric"], float(each["value"][1]))
                   for each in self.get("query", query=expr)["result"])
        return [(labels, value) for labels, value in samples
                if not math.isnan(value)]

    def query_range(self, expr, start, end, step):
        """(labels, [(time, value)]) of each series."""
        found = self.get("query_range", query=expr, start=start, end=end,
                         step=step)["result"]
        return [(each["metric"], [(float(t), float(v))
                                  for t, v in each["values"]])
                for each in found]

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait(timeout=60)
        self._folder.cleanup()
