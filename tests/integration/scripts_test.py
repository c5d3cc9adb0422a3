"""tests/run and what it installs with, on a machine made of stand-ins.

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
                     "deploy/lib/build.sh"):
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
