"""Benchmarks in the time that there is, as shares of what the device reaches at
best, and beside PyTorch."""

import os

from steps.programs import (Failed, attempt, environment, run_command,
                            run_program)

GROUP_SECONDS = 120
# Of one case. More says little, less is noise.
LONGEST_CASE = 0.5
SHORTEST_CASE = 0.05
# A case takes so many times its own time: runs that find how often to repeat
# it, weights that are laid out anew for each.
TIMES_CASE = 6
# Left for what comes after the benchmarks.
PYTORCH_SECONDS = 120
SANITIZER_SECONDS = 90

MICROSECONDS = {"ns": 1e-3, "us": 1, "ms": 1e3, "s": 1e6}


def case_name(name):
    """Without what the library adds about its clock."""
    return name.removesuffix("/manual_time")


def group_of(name):
    """Cases that run as one process: Decode/mixtral, CopyBandwidth."""
    return "/".join(case_name(name).split("/")[:2])


def list_cases(path, bundle, budget, record):
    code, out, errors = run_command([path, "--benchmark_list_tests"],
                                    budget.for_one(GROUP_SECONDS),
                                    env=environment(bundle))
    record["cases"] = out.split()
    if code != 0 or not record["cases"]:
        raise Failed(f"it lists no benchmarks: {errors}")
    return True


def benchmark_output(path):
    return [f"--benchmark_out={path}", "--benchmark_out_format=json"]


def run_benchmarks(bundle, budget):
    """A record for each group of each program."""
    for path in sorted((bundle / "tests/bin").glob("*_bench")):
        listed = attempt(path.name, budget, lambda record: list_cases(
            path, bundle, budget, record))
        yield listed
        cases = listed.get("cases", [])
        time = budget.left() - PYTORCH_SECONDS - SANITIZER_SECONDS
        seconds = min(LONGEST_CASE, max(
            SHORTEST_CASE, time / TIMES_CASE / max(1, len(cases))))
        for group in dict.fromkeys(group_of(case) for case in cases):
            flags = [f"--benchmark_filter=^{group}(/|$)",
                     f"--benchmark_min_time={seconds:.3f}"]
            yield attempt(
                f"{path.name} {group}", budget, lambda record: run_program(
                    [path, *flags], benchmark_output, environment(bundle),
                    budget.for_one(GROUP_SECONDS), record))


def measure_pytorch(bundle, budget, python, record):
    seconds = budget.for_one(PYTORCH_SECONDS)
    # With the libraries that PyTorch brings, not the bundle's.
    passed = run_program(
        [python, bundle / "tests/pytorch_bench.py",
         "--seconds", f"{0.8 * seconds:.0f}"],
        lambda path: ["--out", path], os.environ, seconds, record)
    reason = (record["output"] or {}).get("not_installed")
    if passed and reason:
        record["skipped"] = reason
        return None
    return passed


def run_pytorch(bundle, budget, python):
    """The record of pytorch_bench.py, where there is a PyTorch to run it."""
    yield attempt("pytorch_bench", budget, lambda record: measure_pytorch(
        bundle, budget, python, record))


def outputs(runs, prefix):
    """What runs of such names wrote."""
    return [run["output"] for run in runs
            if run["name"].startswith(prefix) and run.get("output")]


def best_of_pytorch(case):
    """(method, microseconds) of the fastest, or None."""
    times = [(method["microseconds"], name) for name, method in case.items()
             if "microseconds" in method]
    return min(times)[::-1] if times else None


def summarise(runs):
    """Times by case, as shares of the ceilings and beside PyTorch:

      ceilings   bytes and operations a second that the device reaches
      cases      microseconds; of decode cases weights_bytes_per_second and
                 share_of_copy, of prefill cases operations_per_second and
                 share_of_gemm; of those in bf16, where PyTorch was measured,
                 pytorch: its best method, its microseconds, and speed: how
                 many times as fast as that ours is; of --numerics=fast
                 speed_beside_invariant; or an error
    """
    measured = {case_name(case["name"]): case
                for output in outputs(runs, "cuda_ffn_bench")
                for case in output.get("benchmarks", [])}
    theirs = {name: case for output in outputs(runs, "pytorch_bench")
              for name, case in output.get("cases", {}).items()}
    copy = measured.get("CopyBandwidth", {}).get("bytes_per_second")
    gemm = measured.get("LargeGemm", {}).get("operations")
    cases = {}
    for name, case in measured.items():
        kind, *rest = name.split("/")
        if kind not in ("Decode", "Prefill", "Batch"):
            continue
        if case.get("error_occurred"):
            cases[name] = {"error": case["error_message"]}
            continue
        found = {"microseconds":
                 case["real_time"] * MICROSECONDS[case["time_unit"]]}
        if kind == "Decode":
            found["weights_bytes_per_second"] = case["weights_bytes"]
            found["share_of_copy"] = copy and case["weights_bytes"] / copy
        elif kind == "Prefill":
            found["operations_per_second"] = case["operations"]
            found["share_of_gemm"] = gemm and case["operations"] / gemm
        if rest[1:2] == ["bf16_fast"]:
            invariant = cases.get(name.replace("bf16_fast", "bf16"), {})
            if "microseconds" in invariant:
                found["speed_beside_invariant"] = (
                    invariant["microseconds"] / found["microseconds"])
        if rest[1:2] in (["bf16"], ["bf16_fast"]):
            best = best_of_pytorch(
                theirs.get(f"{kind}/{rest[0]}/{rest[-1]}", {}))
            if best:
                found["pytorch"] = {
                    "method": best[0], "microseconds": best[1],
                    "speed": best[1] / found["microseconds"]}
        cases[name] = found
    return {"ceilings": {"copy_bytes_per_second": copy,
                         "gemm_operations_per_second": gemm}, "cases": cases}


def table(summary):
    """The same as lines of text."""
    ceilings = summary["ceilings"]
    for value, unit, what in (
            (ceilings["copy_bytes_per_second"], "TB/s", "copies"),
            (ceilings["gemm_operations_per_second"], "TFLOP/s", "large GEMM")):
        yield (f"{what}: {value / 1e12:.2f} {unit}" if value
               else f"{what}: not measured")
    yield f"{'case':34}{'us':>10}  {'share':16}against PyTorch"
    for name, case in summary["cases"].items():
        if "error" in case:
            yield f"{name:34}  {case['error']}"
            continue
        share = ""
        for what in "copy", "gemm":
            if case.get(f"share_of_{what}"):
                share = f"{case[f'share_of_{what}']:.2f} of {what}"
        if "speed_beside_invariant" in case:
            share += f", {case['speed_beside_invariant']:.2f} x invariant"
        beside = case.get("pytorch")
        yield (f"{name:34}{case['microseconds']:10.1f}  {share:16}" +
               (f"{beside['speed']:.2f} x {beside['method']}" if beside
                else "")).rstrip()
