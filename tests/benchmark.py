"""What the tests of the benchmark share: little work, its program, and rows as it makes them."""

import pytest

from bench import __main__ as command
from bench import device


@pytest.fixture(autouse=True)
def little_work(monkeypatch):
    for clock in (device.Cpu, device.Cuda):
        monkeypatch.setattr(clock, "BYTES", 12 * 1024)


def bench(tmp_path, *arguments):
    out = tmp_path / "rows.json"
    common = ["--device", "cpu", "--backends", "cpu", "--out", str(out)]
    return command.main([*common, *map(str, arguments)]), out


def row(**changes):
    facts = {
        "set": "bert-base", "maker": "fusedstep", "algorithm": "AdamW", "form": "paper",
        "backend": "cpu", "dtype": "f32", "device": "cpu", "threads": 2, "phase": "step",
        "tensors": 10, "parameters": 1000, "groups": 2, "bytes": 28_000, "seconds": 2.0,
        "q1": 1.9, "q3": 2.1, "rounds": 5, "baseline_seconds": 3.0, "baseline_bytes": 28_000,
        "yardstick": 28_000.0, "held_bytes": 16_000, "peak_extra_bytes": None, "launches": 1,
    }  # fmt: skip
    return {**facts, **changes}


def peer_row(maker, **changes):
    return row(maker=maker, form="", backend="", **changes)
