"""deploy/compose.yaml's services with their flags, names and ports, as processes
of a network of their own, and Prometheus on its configuration."""

import private_network

# Before anything starts a thread.
NO_NETWORK = private_network.enter()

import json
import pathlib
import shutil
import subprocess
import tempfile
import unittest
import urllib.parse
import urllib.request

import expertmesh_testing as et
import name_server

DEPLOY = et.SOURCE / "deploy"
# One address for each container.
ADDRESSES = {"router": "127.0.1.1", "expert-base": "127.0.1.2",
             "expert-hot": "127.0.1.3", "prometheus": "127.0.1.4"}
PROGRAMS = {"router": "expertmesh-router", "expert-base": "expertmesh-expert",
            "expert-hot": "expertmesh-expert", "load": "expertmesh"}


def compose_services():
    """As docker compose reads them; None where it is not installed."""
    try:
        done = subprocess.run(
            ["docker", "compose", "-f", DEPLOY / "compose.yaml", "--profile",
             "load", "config", "--format", "json"],
            capture_output=True, text=True)
    except FileNotFoundError:
        return None
    if subprocess.run(["docker", "compose", "version"],
                      capture_output=True).returncode != 0:
        return None
    if done.returncode != 0:
        raise AssertionError(done.stderr)
    return json.loads(done.stdout)["services"]


SERVICES = compose_services()


@unittest.skipIf(NO_NETWORK, NO_NETWORK)
@unittest.skipUnless(SERVICES, "docker compose is not installed")
class ComposeMeshTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        folder = tempfile.TemporaryDirectory()
        cls.addClassCleanup(folder.cleanup)
        cls.root = pathlib.Path(folder.name)
        names = cls.enterClassContext(name_server.NameServer())
        for name, address in ADDRESSES.items():
            names.set(name, address)
        cls.start("expert-base")
        router = cls.start("router")
        # One that comes earlier ends, and its engine starts it again.
        router.await_log("listening")
        cls.start("expert-hot").await_ready()
        router.await_ready()
        cls.start_prometheus()

    @classmethod
    def flags(cls, name):
        """With the container's own address, and files where they are here."""
        service = SERVICES[name]
        mounts = {mount["target"]: mount["source"]
                  for mount in service.get("volumes", ())}
        # tmpfs: "TARGET:OPTIONS".
        for target in service.get("tmpfs", ()):
            mounts[target.split(":")[0]] = str(cls.root / name)
            (cls.root / name).mkdir(exist_ok=True)
        flags = []
        for flag in service["command"]:
            flag = flag.replace("0.0.0.0", ADDRESSES.get(name, ""))
            for target, source in mounts.items():
                flag = flag.replace(f"={target}", f"={source}")
            flags.append(flag)
        return flags

    @classmethod
    def start(cls, name):
        service = et.Service([et.BIN / PROGRAMS[name], *cls.flags(name)],
                             wait=False)
        cls.addClassCleanup(service.__exit__)
        return service

    @classmethod
    def start_prometheus(cls):
        text = (DEPLOY / "prometheus/prometheus.yml").read_text()
        config = cls.root / "prometheus.yml"
        config.write_text(
            text.replace("/etc/prometheus/rules",
                         str(et.SOURCE / "helm/expertmesh/rules"))
            .replace("localhost:9090", f"{ADDRESSES['prometheus']}:9090")
            .replace("_interval: 5s", "_interval: 1s"))
        log = open(cls.root / "prometheus.log", "wb")
        cls.addClassCleanup(log.close)
        process = subprocess.Popen(
            ["prometheus", f"--config.file={config}",
             f"--storage.tsdb.path={cls.root}/data",
             f"--web.listen-address={ADDRESSES['prometheus']}:9090"],
            stdout=log, stderr=log)
        cls.addClassCleanup(process.wait)
        cls.addClassCleanup(process.terminate)

    def ask(self, path, **query):
        url = (f"http://{ADDRESSES['prometheus']}:9090/api/v1/{path}?" +
               urllib.parse.urlencode(query))
        try:
            with urllib.request.urlopen(url, timeout=et.STOP_SECONDS) as page:
                return json.load(page)["data"]
        except OSError:  # not up yet
            return None

    def series(self, query):
        return (self.ask("query", query=query) or {}).get("result")

    def test_the_router_is_well_by_its_own_check(self):
        check = SERVICES["router"]["healthcheck"]["test"]
        self.assertEqual(check[:2], ["CMD", "/usr/bin/expertmesh"])
        flags = [flag.replace("127.0.0.1", ADDRESSES["router"])
                 for flag in check[2:]]
        et.cli(*flags)

    def test_prometheus_scrapes_every_service(self):
        wanted = {("expertmesh-router", None), ("expertmesh-expert", "base"),
                  ("expertmesh-expert", "hot"), ("prometheus", None)}

        def up():
            found = {(s["metric"]["job"], s["metric"].get("pool"))
                     for s in self.series("up == 1") or ()}
            return found == wanted
        et.wait_until(up, what=f"targets {wanted}")

    def test_its_rules_are_those_of_the_chart(self):
        groups = et.wait_until(lambda: self.ask("rules"),
                               what="Prometheus")["groups"]
        self.assertEqual({pathlib.Path(group["file"]).name for group in groups},
                         {path.name for path in
                          (et.SOURCE / "helm/expertmesh/rules").glob("*.yaml")})

    def test_load_makes_copies_in_the_hot_pool(self):
        # The load's own flags, for 40 requests instead of an hour.
        flags = [flag for flag in self.flags("load")
                 if not flag.startswith(("--duration=", "--request-rate="))]
        et.cli(*flags, "--requests=40", "--request-rate=20")
        et.wait_until(
            lambda: any(float(s["value"][1]) >= 40 for s in self.series(
                'sum(expertmesh_router_requests_total{code="OK"})') or ()),
            what="40 requests in Prometheus")
        et.cli("placement", "rebalance", "--admin",
               f"{ADDRESSES['router']}:50053")
        et.wait_until(
            lambda: any(float(s["value"][1]) > 0 for s in self.series(
                'expertmesh_expert_loaded_slots{pool="hot"}') or ()),
            what="slots in the hot pool")


if __name__ == "__main__":
    et.main()
