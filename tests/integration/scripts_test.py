"""tests/run, and what it and others install with, on a machine made of stand-ins.

The scripts run from a copy, with programs of the same names first in PATH.
"""

import os
import pathlib
import shutil
import subprocess
import tempfile
import unittest

import expertmesh_testing as et


class ScriptTest(unittest.TestCase):

    def setUp(self):
        folder = tempfile.TemporaryDirectory()
        self.addCleanup(folder.cleanup)
        self.root = pathlib.Path(folder.name)
        self.policy = self.root / "policy-rc.d"
        self.log = self.root / "log"
        (self.root / "bin").mkdir()
        for name in ("tests/run", "deploy/lib/packages.sh",
                     "deploy/lib/build.sh", "deploy/lib/cuda.sh"):
            copy = self.root / name
            copy.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(et.SOURCE / name, copy)
        self.program("sudo", 'exec "$@"')
        self.program("cmake", "exit 0")
        self.program("dpkg-query", "echo install ok installed")
        self.program("ctest", "exit 0")

    def program(self, name, script):
        path = self.root / "bin" / name
        path.write_text(f"#!/bin/bash\n{script}\n")
        path.chmod(0o755)

    def run_script(self, *command):
        return subprocess.run(
            ["bash", *command], cwd=self.root, capture_output=True, text=True,
            timeout=et.STOP_SECONDS,
            env={**os.environ,
                 "PATH": f"{self.root}/bin:{os.environ['PATH']}",
                 "TMPDIR": str(self.root),
                 "EXPERTMESH_POLICY_FILE": str(self.policy)})


class InstallTest(ScriptTest):

    def install(self, apt_get):
        """Installs a package where none is there."""
        self.program("dpkg-query", "exit 1")
        self.program("apt-get", f'[[ $2 == --simulate ]] && exit 0\n{apt_get}')
        return self.run_script(
            "-c", "source deploy/lib/packages.sh; install_packages some-daemon")

    def test_no_daemon_is_started_meanwhile(self):
        done = self.install(
            f'echo "$@" >{self.log}; {self.policy}; echo $? >>{self.log}')
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertEqual(
            self.log.read_text(),
            "install -y --no-install-recommends some-daemon\n101\n")
        self.assertFalse(self.policy.exists())

    def test_a_failed_install_leaves_no_policy(self):
        done = self.install(f"echo E: no; touch {self.log}; exit 100")
        self.assertEqual(done.returncode, 1)
        self.assertIn("some-daemon", done.stderr)
        self.assertTrue(self.log.exists())
        self.assertFalse(self.policy.exists())

    def test_an_interrupted_install_leaves_no_policy(self):
        done = self.install("[[ $1 == install ]] || exit 0\n"
                            f"[[ -e {self.policy} ]] && touch {self.log}\n"
                            "kill -TERM $PPID; exit 1")
        self.assertEqual(done.returncode, 1)
        self.assertTrue(self.log.exists())
        self.assertFalse(self.policy.exists())

    def test_a_policy_of_the_machine_stays(self):
        self.policy.write_text("#!/bin/sh\nexit 0\n")
        self.assertEqual(self.install("exit 0").returncode, 0)
        self.assertEqual(self.policy.read_text(), "#!/bin/sh\nexit 0\n")


class CudaTest(ScriptTest):
    """deploy/lib/cuda.sh: the toolkit that is there, or that of the wheels."""

    HOME = "build/cuda-toolkit/lib/python3.11/site-packages/nvidia/cu13"

    def setUp(self):
        super().setUp()
        self.program("cmake", f'echo cmake "$@" >>{self.log}')
        # Makes a virtual environment whose pip lays down a toolkit.
        self.program("python3", f"""
mkdir -p "$3/bin"
cat >"$3/bin/pip" <<'PIP'
#!/bin/bash
echo pip "$@" >>{self.log}
mkdir -p {self.root}/{self.HOME}/lib
PIP
chmod +x "$3"/bin/pip""")

    def configure(self, has_cuda):
        done = self.run_script(
            "-c", "set -euo pipefail; source deploy/lib/packages.sh; "
            "source deploy/lib/build.sh; source deploy/lib/cuda.sh; "
            f"has_cuda() {{ {has_cuda}; }}; configure_cuda -DX=1")
        self.assertEqual(done.returncode, 0, done.stderr)
        lines = self.log.read_text().splitlines()
        self.log.unlink()
        return lines

    def test_an_old_toolkit_is_refused(self):
        for version, code in ("12.4", 1), ("12.5", 0), ("13.0", 0):
            self.program("nvcc", f'echo "Cuda release {version}, V{version}.1"')
            done = self.run_script("-c", "source deploy/lib/packages.sh; "
                                   "source deploy/lib/cuda.sh; has_cuda")
            self.assertEqual(done.returncode, code, done.stderr)
            self.assertEqual("12.4" in done.stderr, code == 1, done.stderr)

    def test_a_toolkit_that_is_there_is_taken(self):
        self.assertEqual(self.configure("true"), ["cmake --preset cuda -DX=1"])

    def test_else_the_wheels_are_installed_once(self):
        pip, cmake = self.configure("false")
        self.assertRegex(pip, "nvidia-cuda-nvcc==13")
        self.assertNotIn("://", pip)  # whatever index this machine uses
        self.assertEqual(cmake, "cmake --preset cuda "
                         f"-DCUDAToolkit_ROOT={self.root}/{self.HOME} -DX=1")
        self.assertEqual(self.configure("false"), [cmake])

    def test_a_failed_install_is_tried_again(self):
        good = (self.root / "bin" / "python3").read_text()
        self.program("python3", "echo no such wheel; exit 1")
        done = self.run_script("-c", "source deploy/lib/packages.sh; "
                               "source deploy/lib/cuda.sh; install_cuda")
        self.assertEqual(done.returncode, 1)
        self.assertIn("no such wheel", done.stderr)
        self.assertIn("CUDAToolkit_ROOT", done.stderr)
        (self.root / "bin" / "python3").write_text(good)
        self.assertEqual(len(self.configure("false")), 2)


class RunTest(ScriptTest):

    def setUp(self):
        super().setUp()
        self.failed = (self.root / "build" / "cpu-release" / "Testing" /
                       "Temporary" / "LastTestsFailed.log")
        self.failed.parent.mkdir(parents=True)
        self.failed.write_text("7:of_an_earlier_run\n")

    def test_says_that_no_test_matched(self):
        self.program("ctest", "exit 8")
        done = self.run_script("tests/run", "-R", "nomatch")
        self.assertEqual(done.returncode, 1)
        self.assertNotIn("of_an_earlier_run", done.stdout)
        self.assertIn("none matches -R nomatch", done.stderr)

    def test_names_what_failed(self):
        self.program("ctest", f"echo 8:of_this_run >{self.failed}; exit 8")
        done = self.run_script("tests/run")
        self.assertEqual(done.returncode, 1)
        self.assertIn("      of_this_run\n", done.stdout)
        self.assertIn("--rerun-failed", done.stderr)

    def test_failures_are_there_to_run_again(self):
        self.program("ctest", f"cat {self.failed}")
        done = self.run_script("tests/run", "--rerun-failed")
        self.assertEqual(done.returncode, 0, done.stderr)
        self.assertIn("of_an_earlier_run", done.stdout)


if __name__ == "__main__":
    et.main()
