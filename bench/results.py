"""Results files: rows, and the runs they come from with machine, versions and command."""

from __future__ import annotations

import csv
import datetime
import io
import json
import os
import platform
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import fusedstep
import torch

from . import peers

ROOT = Path(__file__).parents[1]
OF_RECORD = ROOT / "bench" / "results"
KEY = (
    "set", "maker", "algorithm", "form", "backend", "dtype", "device", "threads", "phase",
)  # fmt: skip


def _said(*command: str) -> str:
    """What a command prints, or nothing where it cannot be run."""
    if shutil.which(command[0]) is None:
        return ""
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() if done.returncode == 0 else ""


def machine(device: torch.device) -> dict[str, Any]:
    """The parts of this machine that a step's time depends on."""
    cpu = re.search(r"^model name\s*:\s*(.+)$", _read("/proc/cpuinfo"), re.M)
    caches = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        level, kind = _read(index / "level").strip(), _read(index / "type").strip()
        caches[f"L{level} {kind.lower()}"] = _read(index / "size").strip()
    pages = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    found = {
        "cpu": cpu[1] if cpu else platform.processor() or platform.machine(),
        "cores": os.cpu_count(),
        "caches": caches,
        "memory_gb": round(pages / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
    }
    if device.type == "cuda":
        query = ("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        found["gpu"] = torch.cuda.get_device_name()
        found["driver"] = _said(*query).partition("\n")[0]
    return found


def title_of(machine: dict[str, Any]) -> str:
    return machine.get("gpu") or f"{machine['cpu']}, {machine['cores']} cores"


def name_of(machine: dict[str, Any]) -> str:
    """A file's name for a machine: ``amd-epyc-2-cores``, ``nvidia-h200``."""
    return re.sub(r"[^a-z0-9]+", "-", title_of(machine).lower()).strip("-")


def versions() -> dict[str, str]:
    compiler = _said(os.environ.get("CXX", "c++"), "--version").partition("\n")[0]
    nvcc = re.search(r"V([\d.]+)", _said("nvcc", "--version"))
    revision = _said("git", "rev-parse", "--short=12", "HEAD")
    # Newly recorded rows are left out, as they change nothing that is measured.
    here = ("--", ".", ":!bench/results")
    changed = _said("git", "status", "--porcelain", "--untracked-files=no", *here)
    found = {
        "fusedstep": fusedstep.__version__,
        "revision": revision + (" with changes" if changed else ""),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda or "",
        "nvcc": nvcc[1] if nvcc else "",
        "compiler": compiler,
    }
    others = ("triton", "numpy", *(peer.distribution for peer in peers.PEERS.values()))
    found |= {name: peers.installed(name) for name in others if name not in found}
    return {name: value for name, value in found.items() if value}


def document(rows: list[dict], device: torch.device, command: str) -> dict[str, Any]:
    """A results file's content. Every row names the run that it comes from."""
    time = datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%d %H:%M:%S UTC")
    run = {"time": time, "command": command, "versions": versions()}
    return {
        "machine": machine(device),
        "runs": {time: run},
        "rows": [{**row, "run": time} for row in rows],
    }


def key(row: dict[str, Any]) -> tuple:
    return tuple(row[name] for name in KEY)


def merged(old: dict[str, Any], new: dict[str, Any]) -> dict[str, Any]:
    """Both files' rows; of two with the same key the new one. Runs without rows are dropped."""
    rows = {key(row): row for row in (*old["rows"], *new["rows"])}
    used = {row["run"] for row in rows.values()}
    runs = {**old["runs"], **new["runs"]}
    return {
        "machine": new["machine"],
        "runs": {name: run for name, run in runs.items() if name in used},
        "rows": sorted(rows.values(), key=lambda row: tuple(map(str, key(row)))),
    }


def check_place(path: Path) -> None:
    """Require that rows can be written to a file, before they are measured for hours."""
    fits = path.suffix == ".json" and not path.is_dir() and not path.with_suffix(".csv").is_dir()
    try:
        if fits:
            path.parent.mkdir(parents=True, exist_ok=True)
            fits = os.access(path.parent, os.W_OK)
    except OSError:
        fits = False
    if not fits:
        raise ValueError(f"--out is {path}; name a .json file in a folder that can be written to")


def write_whole(path: Path, text: str) -> None:
    """Write a file so that an interruption leaves a whole one, the old or the new."""
    path.parent.mkdir(parents=True, exist_ok=True)
    fresh = path.with_suffix(".new")
    fresh.write_text(text, encoding="utf-8")
    fresh.replace(path)


def write(path: Path, content: dict[str, Any]) -> None:
    """The JSON file, and the rows as CSV beside it, each with its run's command and versions."""
    write_whole(path, json.dumps(content, indent=1) + "\n")
    table = []
    for row in content["rows"]:
        run = content["runs"][row["run"]]
        named = {f"version {name}": value for name, value in run["versions"].items()}
        table.append({**row, **named, "machine": name_of(content["machine"])})
        table[-1]["command"] = run["command"]
    columns = list(dict.fromkeys(name for row in table for name in row))
    text = io.StringIO()
    writer = csv.DictWriter(text, columns)
    writer.writeheader()
    writer.writerows(table)
    write_whole(path.with_suffix(".csv"), text.getvalue())


def read(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text())
        return {name: content[name] for name in ("machine", "runs", "rows")}
    except (json.JSONDecodeError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not hold results of this program ({error!r})") from None


def disturbed(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Rows of a run during which something else held a core of the CPU: either work that all rows
    share took more than twice as long as in another row, or torch's fused AdamW moved less than a
    quarter of the yardstick's bytes per second. (It waits for all threads after every tensor, and
    then takes 20 times as long.) Ratios to such times say nothing."""
    least: dict[tuple, float] = {}
    for row in rows:
        if (seconds := _common(row)) is not None:
            least[_place(row)] = min(seconds, least.get(_place(row), seconds))

    def is_disturbed(row: dict[str, Any]) -> bool:
        seconds = _common(row)
        if seconds is not None and seconds > 2 * least[_place(row)]:
            return True
        if row["device"] != "cpu" or not row.get("bandwidth_vs_torch_fused"):
            return False
        baseline = row["bytes_per_second"] / row["bandwidth_vs_torch_fused"]
        return baseline < 0.25 * row["yardstick"]

    return [row for row in rows if is_disturbed(row)]


def _place(row: dict[str, Any]) -> tuple:
    return tuple(row[name] for name in ("set", "dtype", "threads", "phase"))


def _common(row: dict[str, Any]) -> float | None:
    """Seconds of the work that rows on a CPU share, whatever their algorithm: the rest of a
    training step, or torch's fused step of the same model; None where caches decide."""
    if row["device"] != "cpu":
        return None
    if row["phase"] == "training":
        return row["seconds"] - row["optimizer_seconds"]
    return row["baseline_seconds"] if row["phase"] == "step" else None


def record(content: dict[str, Any], folder: Path = OF_RECORD) -> Path:
    """Merge rows that are not :func:`disturbed` into the machine's results of record."""
    path = folder / f"{name_of(content['machine'])}.json"
    dropped = disturbed(content["rows"])
    content = {**content, "rows": [row for row in content["rows"] if row not in dropped]}
    if path.exists():
        content = merged(read(path), content)
    write(path, content)
    return path


def of_record(folder: Path = OF_RECORD) -> dict[str, dict[str, Any]]:
    """Every machine's results of record."""
    files = [path for path in sorted(folder.glob("*.json")) if not path.stem.startswith("papers")]
    return {path.stem: read(path) for path in files}


def _read(file: str | Path) -> str:
    try:
        return Path(file).read_text()
    except OSError:
        return ""
