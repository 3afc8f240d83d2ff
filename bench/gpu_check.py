"""``make gpu-check``: on a machine with a GPU, build, compare bits, sanitize, measure.

Uses the python it is started with and installs nothing from a network: torch, triton, numpy,
pybind11, cmake, ninja, setuptools, pytest, rich and matplotlib must be there. Results go to the
folder named by $OUT (default build/gpu-check): gpu_check.json, the logs, and the benchmark's
results of record for this machine. All of it ends within 8 minutes: a part whose time is up is
interrupted. Exit status 0 only if every part passed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build" / "gpu-check"))
SECONDS, GRACE = 465, 10  # for all parts; for one that is interrupted
INSTALL = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--quiet"]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# Triton compiles a kernel for each combination. The profiler of test_gpu.py stays alone.
WORKERS = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
BENCH = [sys.executable, "-m", "bench", "--device", "cuda", "--record"]
MEASURED = {  # the largest models first; what there is no time for is left out
    "bench_f32": ["--set", "bert-large", "--rounds", "7", "--peers", "torch-fused"],
    "bench_bf16": ["--set", "bert-large", "--dtype", "bf16", "--rounds", "5", "--peers", "none"],
    "bench_host": ["--set", "tiny", "bert-base", "--algorithms", "adamw", "madam", "lamb",
                   "--rounds", "7"],
}  # fmt: skip
MACHINE = (
    "import torch\n"
    "from bench import results\n"
    "print({**results.machine(torch.device('cuda')), **results.versions()})\n"
)
SMALL = (
    "from fusedstep import testing\n"
    "chosen = ('adamw', 'madam-paper', 'avagrad-released', 'lamb')\n"
    "for case in (c for c in testing.CASES if c.id in chosen):\n"
    "    for mode in testing.MODES[:1] + testing.MODES[-1:]:\n"
    "        testing.run(case, mode, 'ragged', 'cuda', 'cuda', steps=3)\n"
)
BEGIN = time.monotonic()


def part(name: str, command: list[str], limit: float, **environment: str) -> dict:
    """Run one command, for ``limit`` seconds at most; its log goes to OUT/<name>.log."""
    begin, log = time.monotonic(), OUT / f"{name}.log"
    limit = min(limit, BEGIN + SECONDS - begin)
    if limit <= 0:
        status = "no time left"
    else:
        status = run(command, limit, log, {**os.environ, **environment})
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    result = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    result["command"] = " ".join(word if "\n" not in word else "'...'" for word in command)
    result["last_lines"] = lines[-3:]
    print(f"{name}: {'passed' if status == 0 else f'FAILED ({status})'}, {result['seconds']} s")
    return result


def run(command: list[str], limit: float, log: Path, environment: dict[str, str]) -> int | str:
    """Exit status, or what stopped it: first an interrupt, upon which programs tell what they
    have."""
    with log.open("w") as file:
        try:
            process = subprocess.Popen(
                command, cwd=ROOT, env=environment, stdout=file, stderr=subprocess.STDOUT,
                start_new_session=True,
            )  # fmt: skip
        except FileNotFoundError as error:
            return str(error)
        for signals, seconds in ((None, limit), (signal.SIGINT, GRACE), (signal.SIGKILL, None)):
            if signals is not None:
                os.killpg(process.pid, signals)
            try:
                status = process.wait(seconds)
                return status if signals is None else f"interrupted after {limit:.0f} s"
            except subprocess.TimeoutExpired:
                continue
    raise AssertionError("a killed process ends")


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    results = {"build": part("build", [*INSTALL, "--editable", "."], 120, FUSEDSTEP_CUDA="ON")}
    results["machine"] = part("machine", [sys.executable, "-c", MACHINE], 20)
    results["gpu"] = part("gpu", [*PYTEST, "tests/test_gpu.py"], 50)
    files = ("tests/test_bits.py", "tests/test_sums.py", "tests/test_cbrt.py")
    matrix = [*PYTEST, *WORKERS, *files]
    for backend, limit in (("cuda", 70), ("triton", 110)):
        results[f"bits_{backend}"] = part(
            f"bits_{backend}", [*matrix, "-k", f"{backend} and not emulated"], limit
        )
    for tool in ("memcheck", "racecheck"):
        command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
        results[tool] = part(tool, [*command, sys.executable, "-c", SMALL], 30)
    for name, chosen in MEASURED.items():
        results[name] = part(name, [*BENCH, "--out", str(OUT / f"{name}.json"), *chosen], 70)
    for path in (ROOT / "bench" / "results").glob("nvidia-*"):
        shutil.copy(path, OUT)
    (OUT / "gpu_check.json").write_text(json.dumps(results, indent=2) + "\n")
    failed = [name for name, r in results.items() if r.get("status", 0) != 0]
    print(f"results: {OUT / 'gpu_check.json'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
