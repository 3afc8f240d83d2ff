"""``python -m fusedstep verify``: every available backend gives the reference's bits, here."""

from __future__ import annotations

import random
import time
from itertools import cycle

import torch

from . import testing
from .backends import BACKENDS, available_backends, why_unavailable

SHAPE_SETS = ("ragged", "misaligned", "bucket", "empty")


def device_of(backend: str) -> str:
    """Where to run a backend that is available: on a GPU if it serves one."""
    gpu = torch.cuda.is_available() and BACKENDS[backend].why_not(torch.device("cuda")) is None
    return "cuda" if gpu else "cpu"


def _cells() -> list[tuple[testing.Case, testing.Mode, str]]:
    """All cells. First each class once, then each case, on a cycle of modes, then the rest mixed: a
    slow backend, too, sees many algorithms and dtypes."""
    modes = testing.MODES
    classes = {case.cls: case for case in reversed(testing.CASES)}.values()
    cases = sorted(testing.CASES, key=lambda case: case not in classes)
    first = [(c, m, SHAPE_SETS[0]) for c, m in zip(cases, cycle(modes), strict=False)]
    others = [(c, m, SHAPE_SETS[0]) for m in modes for c in testing.CASES]
    others += [(c, modes[0], shapes) for shapes in SHAPE_SETS[1:] for c in testing.CASES]
    others = [cell for cell in others if cell not in first]
    random.Random(0).shuffle(others)
    return [*first, *others]


def verify(seconds: float) -> bool:
    """Compare backends with the reference, cell by cell, and print a table.

    Args:
        seconds: of comparing, shared evenly among the backends; the table says how many cells each
            had time for.

    Returns:
        Whether every compared cell was equal and every available backend was compared.
    """
    names = [name for name in available_backends() if name != "reference"]
    cells = _cells()
    compared, wrong = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    left = dict.fromkeys(names, seconds / max(len(names), 1))
    first_difference: dict[str, str] = {}
    for case, mode, shapes in cells:
        running = [name for name in names if left[name] > 0]
        if not running:
            break
        begin = time.monotonic()
        want = testing.run(case, mode, shapes, "reference")
        shared = (time.monotonic() - begin) / len(running)
        for name in running:
            begin = time.monotonic()
            got = testing.run(case, mode, shapes, name, device_of(name))
            lines = testing.differences(got, want)
            left[name] -= shared + time.monotonic() - begin
            compared[name] += 1
            wrong[name] += bool(lines)
            if lines:
                first_difference.setdefault(name, f"{case.id}, {mode.id}, {shapes}: {lines[0]}")
    print(f"{'backend':<10} {'device':<6} {'cells':>9} {'different':>9}")
    for name in names:
        share = f"{compared[name]:>4}/{len(cells):<4}"
        print(f"{name:<10} {device_of(name):<6} {share} {wrong[name]:>9}")
    for name, line in first_difference.items():
        print(f"{name}: {line}")
    for name, why in why_unavailable().items():
        if why is not None:
            print(f"{name:<10} not compared: {why}")
    good = bool(names) and not any(wrong.values()) and all(compared.values())
    print("every compared cell has the reference's bits" if good else "NOT VERIFIED")
    return good
