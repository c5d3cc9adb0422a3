"""The kernel tests under compute-sanitizer: bad accesses, and races."""

import glob
import os
import pathlib
import re
import shutil
import tempfile

from steps.programs import (MOST_SAID, Failed, attempt, environment,
                            gtest_output, read_json, run_command, skipped)

PROGRAM = "cuda_kernels_test"
TOOLS = ("memcheck", "racecheck")
FOUND_SOMETHING = 99
PART_SECONDS = 90
# It ends with this, unless the machine does not let it look into kernels (some
# virtual ones), which is no finding.
SUMMARY = re.compile(r"(?:ERROR|RACECHECK) SUMMARY: (\d+)")
CANNOT = ("Device not supported", "Internal Sanitizer Error",
          "terminated before first instrumented API call")


def find_sanitizer():
    """Its path, or None."""
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"),
             "/usr/local/cuda", *sorted(glob.glob("/usr/local/cuda-*"),
                                        reverse=True), "/opt/cuda"]
    folders = [os.environ.get("PATH", "")]
    for home in filter(None, homes):
        folders += [f"{home}/bin", f"{home}/compute-sanitizer",
                    f"{home}/extras/compute-sanitizer"]
    return shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def parse_tests(listed):
    """Full names of what --gtest_list_tests wrote."""
    names, suite = [], None
    for line in listed.splitlines():
        name = line.partition("#")[0].rstrip()
        if name.startswith("  ") and suite:
            names.append(suite + name.strip())
        elif name.endswith("."):
            suite = name
    return names


def parts_of(names):
    """Tests by the format of weights that they are for, so that what there is
    no time for is known: {"bf16": [...], ..., "others": [...]}."""
    parts = {}
    for name in names:
        parts.setdefault(name.rpartition("/")[2] if name.count("/") > 1
                         else "others", []).append(name)
    return parts


def check(sanitizer, tool, program, tests, bundle, seconds, record):
    """Whether the tool finds nothing in these tests, and they pass; None where
    it cannot tell."""
    with tempfile.TemporaryDirectory() as folder:
        output = pathlib.Path(folder) / "output.json"
        code, out, errors = run_command(
            [sanitizer, "--tool", tool, "--error-exitcode",
             str(FOUND_SOMETHING), program, "--gtest_filter=" + ":".join(tests),
             *gtest_output(output)], seconds, cwd=folder,
            env=environment(bundle))
        ran = (read_json(output) or {}).get("tests", 0)
    said = out + errors
    found = SUMMARY.search(said)
    record["tests"] = ran
    if code == 0 and ran == len(tests) and found and int(found[1]) == 0:
        return True
    record["exit_code"] = code
    record["said"] = said[-MOST_SAID:]
    if not found or any(text in said for text in CANNOT):
        record["skipped"] = "compute-sanitizer cannot look into this device"
        return None
    return False


def run_sanitizer(bundle, budget):
    """A record for each tool and part of the tests."""
    sanitizer = find_sanitizer()
    program = bundle / "tests/bin" / PROGRAM
    if sanitizer is None:
        yield skipped("compute-sanitizer", "compute-sanitizer is not installed")
        return
    parts = {}

    def list_parts(record):
        code, listed, errors = run_command(
            [program, "--gtest_list_tests"], budget.for_one(PART_SECONDS),
            env=environment(bundle))
        parts.update(parts_of(parse_tests(listed)))
        if code != 0 or not parts:
            raise Failed(f"{PROGRAM} lists no tests: {errors}")
        record["parts"] = parts
        return True

    yield attempt("compute-sanitizer", budget, list_parts)
    for tool in TOOLS:
        for part, tests in parts.items():
            record = attempt(f"{tool} {part}", budget, lambda record: check(
                sanitizer, tool, program, tests, bundle,
                budget.for_one(PART_SECONDS), record))
            yield record
            if "skipped" in record:
                return
