"""Files of deploy/ that other programs read."""

import json
import re
import shutil
import subprocess
import tempfile
import unittest

import expertmesh_testing as et

DEPLOY = et.SOURCE / "deploy"
COMPOSE = ["docker", "compose", "-f", DEPLOY / "compose.yaml", "--profile",
           "load", "config", "--format", "json"]


def run(*command):
    return subprocess.run([str(part) for part in command],
                          capture_output=True, text=True)


def has_compose():
    return shutil.which("docker") and run("docker", "compose",
                                          "version").returncode == 0


@unittest.skipUnless(has_compose(), "docker compose is not installed")
class ComposeTest(unittest.TestCase):

    @classmethod
    def setUpClass(cls):
        done = run(*COMPOSE)
        if done.returncode != 0:
            raise AssertionError(done.stderr)
        cls.services = json.loads(done.stdout)["services"]

    def test_everything_is_confined_and_published_here_alone(self):
        for name, service in self.services.items():
            with self.subTest(name):
                self.assertTrue(service["read_only"])
                self.assertEqual(service["cap_drop"], ["ALL"])
                self.assertTrue(all(port["host_ip"] == "127.0.0.1"
                                    for port in service.get("ports", ())))

    def test_our_programs_take_the_flags(self):
        """As far as to where the model is not there."""
        for name, binary in (("router", "expertmesh-router"),
                             ("expert-base", "expertmesh-expert"),
                             ("expert-hot", "expertmesh-expert")):
            with self.subTest(name):
                flags = [re.sub(r"^(--model=).*", r"\1/no/such/model", flag)
                         for flag in self.services[name]["command"]]
                flags = [re.sub(r"^(--(weights-from|\w+-listen|listen)=).*",
                                r"\g<1>127.0.0.1:1", flag) for flag in flags]
                if any(f.startswith("--weights-from") for f in flags):
                    flags.append("--weights-wait=0")
                done = run(et.BIN / binary, *flags)
                # Not 2, which a flag that is wrong gives.
                self.assertEqual(done.returncode, 1, done.stderr)

    def test_the_mesh_file_fits_the_demo_model(self):
        with tempfile.TemporaryDirectory() as folder:
            mesh = f"{folder}/mesh.json"
            text = (DEPLOY / "mesh.json").read_text()
            with open(mesh, "w") as file:
                file.write(re.sub(r"dns:///[\w-]+:50052",
                                  lambda m: f"127.0.0.1:{len(m[0])}", text))
            router = et.Service(
                [et.BIN / "expertmesh-router", "--model", et.DEMO_MODEL,
                 "--mesh-config", mesh, "--control", "--listen",
                 "127.0.0.1:0"], wait=False)
            self.addCleanup(router.__exit__, None, None, None)
            router.await_log("listening")


class PrometheusTest(unittest.TestCase):

    def test_promtool_takes_the_configuration(self):
        done = run("promtool", "check", "config", "--syntax-only",
                   DEPLOY / "prometheus" / "prometheus.yml")
        self.assertEqual(done.returncode, 0, done.stderr)


if __name__ == "__main__":
    et.main()
