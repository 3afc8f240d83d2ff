"""What is measured: our algorithms as the package lists them, and the dtype modes of its tests."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

import fusedstep
import torch
from fusedstep import testing
from fusedstep.backends import BACKENDS
from fusedstep.optimizer import FusedOptimizer

OURS = "fusedstep"
ALGORITHMS: dict[str, type[FusedOptimizer]] = {
    name: getattr(fusedstep, name)
    for name in fusedstep.__all__
    if isinstance(getattr(fusedstep, name), type)
}
MODES = {mode.id: mode for mode in testing.MODES}
LONG_DTYPES = {"float32": "f32", "float64": "f64", "bfloat16": "bf16", "float16": "f16"}

Groups = list[dict[str, Any]]


@dataclass(frozen=True)
class Contender:
    """One side of a comparison: it builds an optimizer over given parameter groups."""

    maker: str  # OURS, or a peer's name
    algorithm: str  # our class's name
    build: Callable[[Groups], torch.optim.Optimizer] = field(compare=False, repr=False)
    backend: str = ""
    form: str = ""
    mode: testing.Mode = MODES["f32"]
    fades: bool = False  # measured once the columns that fade are no longer read

    @property
    def label(self) -> str:
        words = (self.maker, self.algorithm, self.form, self.backend, self.mode.id)
        return " ".join(word for word in words if word)


def fading(cls: type[FusedOptimizer]) -> list[str]:
    """The states that a carried bound lets a step leave out once they hold zeros."""
    return [name.removesuffix("_bound") for name in cls.carried if name.endswith("_bound")]


def fade(optimizer: FusedOptimizer) -> None:
    """Bring the state to where its fading columns are no longer read."""
    for state in optimizer.state.values():
        for name in fading(type(optimizer)):
            state[name].zero_()
            state[f"{name}_bound"].zero_()


def find(name: str) -> tuple[type[FusedOptimizer], str, dict[str, Any]]:
    """Class, form and options that a name stands for: a class, or a case of the bit matrix.

    Raises:
        ValueError: neither has this name.
    """
    for cls in ALGORITHMS.values():
        if name.lower() == cls.__name__.lower():
            return cls, "paper", {}
    for case in testing.CASES:
        if name.lower() == case.id:
            return case.cls, case.id.partition("-")[2] or "paper", dict(case.options)
    raise ValueError(
        f"there is no algorithm {name!r}; there are {', '.join(ALGORITHMS)}, and the cases "
        f"{', '.join(case.id for case in testing.CASES if '-' in case.id)}"
    )


def ours(name: str, backend: str, mode: testing.Mode) -> list[Contender]:
    """An algorithm on a backend; where it has a state that fades, also faded."""
    cls, form, options = find(name)

    def build(groups: Groups) -> FusedOptimizer:
        return cls(groups, backend=backend, **options, **mode.options)

    whole = Contender(OURS, cls.__name__, build, backend, form, mode)
    name = "faded" if form == "paper" else f"{form}-faded"
    return [whole, replace(whole, form=name, fades=True)] if fading(cls) else [whole]


def mode(name: str) -> testing.Mode:
    """A dtype mode by its id, or by torch's names and ``+``: ``bfloat16+master``.

    Raises:
        ValueError: no mode has this name.
    """
    first, *rest = name.lower().replace("+", "-").replace("fp", "f").split("-")
    known = "-".join([LONG_DTYPES.get(first, first), *rest])
    if known not in MODES:
        raise ValueError(f"there is no dtype {name!r}; there are {', '.join(MODES)}")
    return MODES[known]


def backends(device: torch.device) -> list[str]:
    """The backends that serve a device, without slow ones, which exist to compare bits with."""
    served = [name for name, backend in BACKENDS.items() if backend.why_not(device) is None]
    slow = {"reference", *(["triton"] if device.type == "cpu" else [])}
    return [name for name in served if name not in slow]


def backend(name: str, device: torch.device) -> str:
    """Check a backend's name, and that it serves the device.

    Raises:
        ValueError: it does not.
    """
    name = name if name in BACKENDS else name.lower()
    if name not in BACKENDS:
        raise ValueError(f"there is no backend {name!r}; there are {', '.join(BACKENDS)}")
    reason = BACKENDS[name].why_not(device)
    if reason:
        raise ValueError(f"backend {name!r} cannot run on {device.type}: {reason}")
    return name
