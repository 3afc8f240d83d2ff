"""``make gpu-check``: on a machine with a GPU, build, compare bits, sanitize, measure.

Uses the python it is started with and installs nothing from a network: torch, triton, numpy,
pybind11, cmake, ninja, setuptools, pytest, rich and matplotlib must be there. Results go to the
folder named by $OUT (default build/gpu-check): gpu_check.json, the logs, and the benchmark's
results of record for this machine. All of it ends within 8 minutes: a part whose time is up is
interrupted. Exit status 0 only if every part passed.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build" / "gpu-check"))
GRACE = 10  # seconds, for a part that is interrupted
INSTALL = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--quiet"]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# In parallel, because Triton compiles a kernel for each combination.
WORKERS = ["-n", str(min(14, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
BENCH = [sys.executable, "-m", "bench", "--device", "cuda", "--record", "--rounds", "7"]
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
    "        for shapes in ('ragged', 'bucket'):\n"
    "            testing.run(case, mode, shapes, 'cuda', 'cuda', steps=3)\n"
)


@dataclass(frozen=True)
class Part:
    """A command, the seconds that it may take, and what it adds to the environment."""

    command: list[str]
    limit: float
    environment: dict[str, str] = field(default_factory=dict)


def tests(*names: str) -> Part:
    chosen = ["-k", "(cuda or triton) and not emulated"]
    return Part([*PYTEST, *WORKERS, *(f"tests/test_{name}.py" for name in names), *chosen], 240)


def sanitizer(tool: str) -> Part:
    command = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "9"]
    # torch's cache of memory would hide an access beyond a tensor.
    exact = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
    return Part([*command, sys.executable, "-c", SMALL], 150, exact)


def bench(name: str, *words: str) -> Part:
    return Part([*BENCH, "--out", str(OUT / f"{name}.json"), *words], 120)


# Parts of one stage run side by side, the stages one after another; what measures runs alone.
STAGES: list[dict[str, Part]] = [
    {"build": Part([*INSTALL, "--editable", "."], 120, {"FUSEDSTEP_CUDA": "ON"})},
    {
        "machine": Part([sys.executable, "-c", MACHINE], 60),
        "tests": tests("gpu", "bits", "sums", "norms", "fading", "layout", "cbrt", "own_backend"),
        "memcheck": sanitizer("memcheck"),
        "racecheck": sanitizer("racecheck"),
    },
    {"bench_f32": bench("bench_f32", "--set", "bert-large", "gpt2-xl", "--peers", "torch-fused",
                        "torch-foreach", "torch-optimi", "flashoptim", "bitsandbytes", "timm")},
    {"bench_host": bench("bench_host", "--set", "bert-large-bucket", "tiny", "bert-base",
                         "--algorithms", "adamw", "madam", "lamb")},
    {"bench_dtypes": bench("bench_dtypes", "--set", "bert-large", "--peers", "none", "--dtype",
                           "bf16", "f16", "bf16-master", "bf16-state16")},
]  # fmt: skip


def result(name: str, part: Part, end: float) -> dict:
    """Run a part, for its limit and until ``end`` at most; its log goes to OUT/<name>.log."""
    begin, log = time.monotonic(), OUT / f"{name}.log"
    limit = min(part.limit, end - begin)
    if limit <= 0:
        status = "no time left"
    else:
        status = run(part.command, limit, log, {**os.environ, **part.environment})
    lines = log.read_text(errors="replace").splitlines() if log.exists() else []
    found = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    found["command"] = " ".join(word if "\n" not in word else "'...'" for word in part.command)
    found["last_lines"] = lines[-3:]
    said = "passed" if status == 0 else f"FAILED ({status})"
    print(f"{name}: {said}, {found['seconds']} s", flush=True)
    return found


def run(command: list[str], limit: float, log: Path, environment: dict[str, str]) -> int | str:
    """Run a command; return its exit status, or what stopped it. It is interrupted first, so that
    it can report what it has."""
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


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    known = [name for stage in STAGES for name in stage]
    parser.add_argument("--only", nargs="+", choices=known, default=known, help="parts to run")
    parser.add_argument(
        "--seconds", type=float, default=465, help="limit for all parts; default: 465"
    )
    chosen = parser.parse_args(arguments)
    # A shell's background jobs ignore interrupts, and the parts would inherit that.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    end = time.monotonic() + chosen.seconds
    OUT.mkdir(parents=True, exist_ok=True)
    results = {}
    for stage in STAGES:
        parts = {name: part for name, part in stage.items() if name in chosen.only}
        with ThreadPoolExecutor(len(stage)) as pool:
            done = pool.map(lambda item: result(*item, end), parts.items())
            results |= zip(parts, done, strict=True)
    for path in (ROOT / "bench" / "results").glob("nvidia-*"):
        shutil.copy(path, OUT)
    (OUT / "gpu_check.json").write_text(json.dumps(results, indent=2) + "\n")
    failed = [name for name, found in results.items() if found["status"] != 0]
    print(f"results: {OUT / 'gpu_check.json'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
