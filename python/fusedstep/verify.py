"""``python -m fusedstep verify``: every available backend gives the reference's bits, here."""

from __future__ import annotations

import random
import time
from itertools import cycle

import torch

from . import testing
from .backends import BACKENDS, available_backends

SHAPE_SETS = ("ragged", "misaligned", "empty")


def _device(backend: str) -> str | None:
    """Where to run a backend: on a GPU if it serves one."""
    for device in ("cuda", "cpu"):
        if device == "cuda" and not torch.cuda.is_available():
            continue
        if BACKENDS[backend].why_not(torch.device(device)) is None:
            return device
    return None


def verify(seconds: float = 15.0) -> bool:
    """Compare backends with the reference, cell by cell, and print a table.

    Args:
        seconds: after this time only the first cells, one for each case, are still compared; the
            table says how many were compared.

    Returns:
        Whether every compared cell was equal and every available backend was compared.
    """
    names = [n for n, why in available_backends().items() if why is None and n != "reference"]
    modes = [mode for mode in testing.MODES if mode.supported]
    # A slow machine, too, sees every case and, among them, every mode.
    always = [(c, m, SHAPE_SETS[0]) for c, m in zip(testing.CASES, cycle(modes), strict=False)]
    others = [(c, m, SHAPE_SETS[0]) for m in modes for c in testing.CASES]
    others += [(c, modes[0], shapes) for shapes in SHAPE_SETS[1:] for c in testing.CASES]
    others = [cell for cell in others if cell not in always]
    random.Random(0).shuffle(others)
    cells = [*always, *others]
    compared, wrong = dict.fromkeys(names, 0), dict.fromkeys(names, 0)
    first_difference = {}
    begin = time.monotonic()
    for i, (case, mode, shapes) in enumerate(cells):
        if i >= len(always) and time.monotonic() - begin > seconds:
            break
        want = testing.run(case, mode, shapes, "reference")
        for name in names:
            lines = testing.differences(testing.run(case, mode, shapes, name, _device(name)), want)
            compared[name] += 1
            wrong[name] += bool(lines)
            if lines:
                first_difference.setdefault(name, f"{case.id}, {mode.id}, {shapes}: {lines[0]}")
    print(f"{'backend':<10} {'device':<6} {'cells':>9} {'different':>9}")
    for name in names:
        print(f"{name:<10} {_device(name):<6} {compared[name]:>4}/{len(cells):<4} {wrong[name]:>9}")
    for name, line in first_difference.items():
        print(f"{name}: {line}")
    for name, why in available_backends().items():
        if why is not None:
            print(f"{name:<10} not compared: {why}")
    good = bool(names) and not any(wrong.values()) and all(compared.values())
    print("every compared cell has the reference's bits" if good else "NOT VERIFIED")
    return good
