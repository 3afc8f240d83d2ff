"""``make gpu-check``: on a machine with a GPU, build, compare bits, sanitize, write results.

Uses the python it is started with and installs nothing from a network: torch, triton, numpy,
pybind11, cmake, ninja, setuptools and pytest must be there. Results go to the folder named by $OUT
(default build/gpu-check): gpu_check.json and the logs. Each part has a time limit; together they
stay under 8 minutes. Exit status 0 only if every part passed.
"""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[1]
OUT = Path(os.environ.get("OUT", ROOT / "build" / "gpu-check"))
INSTALL = [sys.executable, "-m", "pip", "install", "--no-build-isolation", "--no-deps", "--quiet"]
PYTEST = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
# Triton compiles a kernel for each combination. The profiler of test_gpu.py stays alone.
WORKERS = ["-n", str(min(8, os.cpu_count() or 1))] if importlib.util.find_spec("xdist") else []
SMALL = (
    "from fusedstep import testing\n"
    "chosen = ('adamw', 'madam-paper', 'avagrad-released', 'lamb')\n"
    "for case in (c for c in testing.CASES if c.id in chosen):\n"
    "    for mode in testing.MODES[:1] + testing.MODES[-1:]:\n"
    "        testing.run(case, mode, 'ragged', 'cuda', 'cuda', steps=3)\n"
)


def part(name: str, command: list[str], limit: int, **environment: str) -> dict:
    """Run one command; its log goes to OUT/<name>.log."""
    begin = time.monotonic()
    log = OUT / f"{name}.log"
    with log.open("w") as file:
        try:
            status = subprocess.run(
                command, cwd=ROOT, env={**os.environ, **environment}, timeout=limit,
                stdout=file, stderr=subprocess.STDOUT,
            ).returncode  # fmt: skip
        except (subprocess.TimeoutExpired, FileNotFoundError) as error:
            status = f"{type(error).__name__}: {error}"
    lines = log.read_text(errors="replace").splitlines()
    result = {"status": status, "seconds": round(time.monotonic() - begin, 1)}
    result["command"] = " ".join(word if "\n" not in word else "'...'" for word in command)
    result["last_lines"] = lines[-3:]
    print(f"{name}: {'passed' if status == 0 else f'FAILED ({status})'}, {result['seconds']} s")
    return result


def machine() -> dict[str, str]:
    import torch
    import triton

    nvcc = shutil.which("nvcc")
    told = (
        subprocess.run([nvcc, "--version"], capture_output=True, text=True).stdout if nvcc else ""
    )
    driver = subprocess.run(
        ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"],
        capture_output=True, text=True,
    ).stdout.strip()  # fmt: skip
    return {
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else "none",
        "driver": driver,
        "python": sys.version.split()[0],
        "torch": torch.__version__,
        "triton": triton.__version__,
        "nvcc": (re.findall(r"V([\d.]+)", told) or ["none"])[0],
    }


def main() -> int:
    OUT.mkdir(parents=True, exist_ok=True)
    results = {"machine": machine()}
    results["build"] = part("build", [*INSTALL, "--editable", "."], 150, FUSEDSTEP_CUDA="ON")
    files = ("tests/test_bits.py", "tests/test_sums.py", "tests/test_cbrt.py")
    matrix = [*PYTEST, *WORKERS, *files]
    for backend, limit in (("cuda", 80), ("triton", 130)):
        results[f"bits_{backend}"] = part(
            f"bits_{backend}", [*matrix, "-k", f"{backend} and not emulated"], limit
        )
    results["gpu"] = part("gpu", [*PYTEST, "tests/test_gpu.py"], 40)
    for tool in ("memcheck", "racecheck"):
        command = [
            "compute-sanitizer",
            "--tool",
            tool,
            "--error-exitcode",
            "9",
            sys.executable,
            "-c",
            SMALL,
        ]
        results[tool] = part(tool, command, 40)
    (OUT / "gpu_check.json").write_text(json.dumps(results, indent=2) + "\n")
    failed = [name for name, r in results.items() if r.get("status", 0) != 0]
    print(f"results: {OUT / 'gpu_check.json'}; failed: {', '.join(failed) or 'none'}")
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
