"""Cases, shapes, gradients and the comparison by bits: shared by tests, bench and ``verify``.

A *cell* is (case, mode, shape set, backend). :func:`run` plays the same scenario in every cell:
two groups with different hyper-parameters, a missing gradient, a changed learning rate, a scaled
step and a skipped one, gradients with zeros, subnormals, huge values, inf and NaN.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product
from typing import Any

import torch

import fusedstep

from .reference.multi_tensor_apply import CHUNK, facts

_SECOND = (("lr", 3e-4), ("maximize", True))


@dataclass(frozen=True)
class Case:
    """An algorithm with options; ``id`` reads like ``madam-released-amsgrad``."""

    id: str
    cls: type[Any]
    options: tuple[tuple[str, Any], ...] = ()
    second_group: tuple[tuple[str, Any], ...] = _SECOND


def _cases(name: str, cls: type, second=(), common=(), **axes: tuple) -> list[Case]:
    """A case for every combination of the options in ``axes``; ids name what is chosen."""
    cases = []
    for values in product(*axes.values()):
        chosen = dict(zip(axes, values, strict=True))
        words = [v if isinstance(v, str) else k for k, v in chosen.items() if v]
        options = (*common, *chosen.items())
        cases.append(Case("-".join([name, *words]), cls, options, (*_SECOND, *second)))
    return cases


_COUPLED, _DECAY = (("decoupled_weight_decay", False),), (("weight_decay", 0.1),)
_FADED = (*_SECOND, ("form", "released"), ("amsgrad", True), *_COUPLED)
_FORMS, _FLAG = ("paper", "released"), (False, True)
CASES: list[Case] = [
    *_cases("adamw", fusedstep.AdamW, (), _DECAY, amsgrad=_FLAG),
    *_cases("adam", fusedstep.Adam, (), _DECAY, amsgrad=_FLAG),
    Case("adamw-capturable", fusedstep.AdamW, (("capturable", True),)),  # options in tensors
    *_cases("madam", fusedstep.MAdam, _COUPLED, _DECAY, form=_FORMS, amsgrad=_FLAG),
    *_cases("lamadam", fusedstep.LaMAdam, _COUPLED, _DECAY, form=_FORMS, amsgrad=_FLAG),
    # beta_prod vanishes within the scenario, so the column is no longer read
    Case("madam-faded", fusedstep.MAdam, (("beta2_range", (1e-5, 2e-5)), *_DECAY), _FADED),
    Case(
        "lamadam-faded",
        fusedstep.LaMAdam,
        (("beta2_range", (1e-5, 2e-5)), ("beta2_init", 1e-3), *_DECAY),
        _FADED,
    ),
    *_cases(
        "laprop", fusedstep.LaProp, (), (("weight_decay", 1e-3), ("centered_start", 2)),
        form=_FORMS, amsgrad=_FLAG, centered=_FLAG,
    ),
    *_cases("adamomentum", fusedstep.AdaMomentum, _COUPLED, _DECAY, amsgrad=_FLAG),
    *_cases("avagrad", fusedstep.AvaGrad, (("eps", 1e-3),), _DECAY, form=_FORMS),
    *_cases("avagradw", fusedstep.AvaGradW, (), _DECAY, form=_FORMS),
    Case("avagrad-skip_zero", fusedstep.AvaGrad, (("skip_zero_second_moment", True),)),
    *_cases("delayed_adam", fusedstep.DelayedAdam, (), _DECAY),
    *_cases(
        "madgrad", fusedstep.MADGRAD, (("decoupled_weight_decay", True),), _DECAY, form=_FORMS
    ),
    Case("madgrad-momentum0", fusedstep.MADGRAD, (("momentum", 0.0),)),
    *_cases("lamb", fusedstep.LAMB, (("weight_decay", 0.0),)),
    # one norm over both groups, by which only the first is clipped
    Case("adamw-clipped", fusedstep.AdamW, (("max_grad_norm", 1.0),), (("max_grad_norm", None),)),
    Case("laprop-clipped", fusedstep.LaProp, (("max_grad_norm", 1e9), ("form", "released"))),
]  # fmt: skip


@dataclass(frozen=True)
class Mode:
    """Dtypes of parameter and gradient, and the optimizer options that change stored dtypes."""

    id: str
    param: torch.dtype
    grad: torch.dtype
    options: dict[str, Any] = field(default_factory=dict, hash=False)

    @property
    def supported(self) -> bool:
        """Whether this torch lets a parameter have a gradient of another dtype (2.10 and later)."""
        return self.param is self.grad or hasattr(torch.Tensor, "grad_dtype")

    def parameter(self, values: torch.Tensor) -> torch.nn.Parameter:
        """A parameter of these values, whose gradient may have the mode's dtype."""
        p = torch.nn.Parameter(values)
        if self.param is not self.grad:
            p.grad_dtype = self.grad
        return p


def every_mode() -> list[Mode]:
    """Those that this torch does not support, too."""
    modes = [
        Mode("f32", torch.float32, torch.float32),
        Mode("f32-state16", torch.float32, torch.float32, {"state_dtype": torch.bfloat16}),
        Mode("f64", torch.float64, torch.float64),
    ]
    for name, dtype in (("bf16", torch.bfloat16), ("f16", torch.float16)):
        master, state16 = {"master_weights": True}, {"state_dtype": torch.bfloat16}
        modes += [
            Mode(name, dtype, dtype),
            Mode(f"{name}-grad32", dtype, torch.float32),
            Mode(f"{name}-master", dtype, dtype, master),
            Mode(f"{name}-state16", dtype, dtype, state16),
            Mode(f"{name}-grad32-master-state16", dtype, torch.float32, {**master, **state16}),
        ]
    return modes


MODES: list[Mode] = [mode for mode in every_mode() if mode.supported]

SHAPES: dict[str, list[tuple[int, ...]]] = {
    "ragged": [(1,), (7,), (1023,), (1025,), (33, 31), ()],
    "empty": [(0,), (5,), (0, 3), (130,), (0,)],
    "chunk": [(CHUNK - 1,), (CHUNK,), (CHUNK + 1,), (2 * CHUNK + 1029,)],
    "misaligned": [(1,), (64,), (1024,), (2051,)],
    "bucket": [(3,), (9003,), (2051,), (64,)],
    "strided": [(2, 3, 4, 5), (6, 4), (2, 3, 2, 2, 2), (1, 5, 1, 7)],
    "swarm": [(1 + i % 9,) for i in range(200)],
}


def _layout(shape: tuple[int, ...], shapes: str, i: int) -> torch.Tensor:
    """Uninitialised float32 memory of a shape in the layout its set is about."""
    if shapes == "misaligned":
        return torch.empty(shape[0] + 3)[1 + i % 2 : 1 + i % 2 + shape[0]]
    if shapes == "strided":
        formats = {4: torch.channels_last, 5: torch.channels_last_3d}
        if len(shape) in formats and i != 3:
            return torch.empty(shape).to(memory_format=formats[len(shape)])
        return torch.empty(shape[::-1]).permute(*range(len(shape))[::-1])
    return torch.empty(shape)


def _gradient_layouts(layouts: list[torch.Tensor], shapes: str) -> list[torch.Tensor]:
    """In a bucket, gradients are parts of one memory, as those of ``DistributedDataParallel`` with
    ``gradient_as_bucket_view`` and of ``fully_shard`` are; else they lie as parameters do."""
    if shapes != "bucket":
        return layouts
    sizes = [layout.numel() for layout in layouts]
    return list(torch.empty(sum(sizes)).split(sizes))


def _like(layout: torch.Tensor, values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """``values`` in ``dtype`` with the strides and the storage offset of ``layout``."""
    offset = layout.storage_offset()
    span = 1 + sum((n - 1) * s for n, s in zip(layout.shape, layout.stride(), strict=True) if n)
    memory = torch.empty(
        offset + (span if layout.numel() else 0), dtype=dtype, device=values.device
    )
    result = memory.as_strided(layout.shape, layout.stride(), offset)
    return result.copy_(values)


def gradient(shape: tuple[int, ...], generator: torch.Generator, special: bool) -> torch.Tensor:
    """float64 values over 24 decades; ``special``: every 5th is ±0, subnormal, huge, inf or NaN."""
    exponent = torch.rand(shape, generator=generator, dtype=torch.float64) * 24 - 18
    values = torch.randn(shape, generator=generator, dtype=torch.float64) * 10**exponent
    if special and values.numel():
        small, large = [0.0, -0.0, 1e-45, -1e-39, 1e-310, 6e-8], [3e38, -6.5e4, 1e300]
        never = [torch.inf, -torch.inf, torch.nan]
        odd = torch.tensor([*small, *large, *never], dtype=torch.float64)
        flat = values.view(-1)
        places = torch.arange(0, flat.numel(), 5)
        flat[places] = odd[torch.arange(len(places)) % len(odd)]
    return values


STEPS = 6


@dataclass
class Scenario:
    """A built cell: parameters, optimizer, and the steps to play."""

    case: Case
    mode: Mode
    shapes: str
    backend: str
    device: str = "cpu"

    def __post_init__(self):
        self.generator = torch.Generator().manual_seed(0)
        layouts = [_layout(s, self.shapes, i) for i, s in enumerate(SHAPES[self.shapes])]
        self.gradient_layouts = _gradient_layouts(layouts, self.shapes)
        self.params = []
        for layout in layouts:
            values = torch.randn(layout.shape, generator=self.generator)
            p = _like(layout, values.to(self.device), self.mode.param)
            self.params.append(self.mode.parameter(p))
        half = len(self.params) // 2
        groups = [
            {"params": self.params[:half]},
            {"params": self.params[half:], **dict(self.case.second_group)},
        ]
        options = {**dict(self.case.options), **self.mode.options}
        self.optimizer = self.case.cls(groups, backend=self.backend, **options)

    def step(self, t: int) -> None:
        """Step ``t`` of the scenario, from 0."""
        # A NaN in a norm reaches every parameter, and nothing could be compared after it.
        spreads = facts(self.case.cls.rule, 0).SUMS or "max_grad_norm" in dict(self.case.options)
        special = t == (STEPS - 1 if spreads else 2)
        # for the same reason only special gradients overflow their dtype
        largest = math.inf if special else torch.finfo(self.mode.grad).max
        for i, (p, layout) in enumerate(zip(self.params, self.gradient_layouts, strict=True)):
            g = gradient(p.shape, self.generator, special and i % 2 == 0).to(self.device)
            g = g.clamp(-largest, largest)
            p.grad = None if t == 1 and i % 3 == 1 else _like(layout, g, self.mode.grad)
        if t == 3:
            self.optimizer.param_groups[0]["lr"] = 0.02
        self.optimizer.grad_scale = self.optimizer.found_inf = None
        if t in (3, 4):  # scaled steps, of which the second is skipped
            self.optimizer.grad_scale = torch.tensor(8.0, device=self.device)
            self.optimizer.found_inf = torch.tensor(0.0 if t == 3 else 2.0, device=self.device)
        self.optimizer.step()

    def snapshot(self) -> dict[str, torch.Tensor]:
        """Every stored value: parameters, all of the state, and the norm of the gradients."""
        result = {}
        for i, p in enumerate(self.params):
            result[f"param {i}"] = p.detach().cpu().clone()
            for name, value in self.optimizer.state[p].items():
                result[f"param {i}, {name}"] = value.cpu().clone()
        for g, group in enumerate(self.optimizer.param_groups):
            for name, value in group.items():
                if isinstance(value, torch.Tensor):
                    result[f"group {g}, {name}"] = value.cpu().clone()
        if self.optimizer.last_grad_norm is not None:
            result["last_grad_norm"] = self.optimizer.last_grad_norm.cpu()
        return result

    def play(self, steps: int = STEPS) -> dict[str, torch.Tensor]:
        """Take the steps. Returns snapshots: before the last one, which leaves nothing but NaNs
        where a norm spreads them, and after it."""
        for t in range(steps - 1):
            self.step(t)
        before = {f"before, {name}": value for name, value in self.snapshot().items()}
        self.step(steps - 1)
        return before | self.snapshot()


def run(case: Case, mode: Mode, shapes: str, backend: str, device: str = "cpu", steps: int = STEPS):
    """Play the scenario and return its snapshots."""
    return Scenario(case, mode, shapes, backend, device).play(steps)


def difference(name: str, got: torch.Tensor, want: torch.Tensor) -> str | None:
    """The first element whose bits differ, with value and hex; any NaN equals any NaN (N9)."""
    if (got.dtype, got.shape) != (want.dtype, want.shape):
        return f"{name}: {got.dtype} {tuple(got.shape)} instead of {want.dtype} {tuple(want.shape)}"
    word = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[got.element_size()]
    a, b = got.contiguous().view(-1), want.contiguous().view(-1)
    bits_a, bits_b = a.view(word), b.view(word)
    wrong = (bits_a != bits_b) & ~((a != a) & (b != b))
    if not wrong.any():
        return None
    i = int(wrong.nonzero()[0])
    digits = 2 * got.element_size()
    mask = (1 << 4 * digits) - 1
    shown = [
        f"{x[i].item()!r} (0x{int(w[i]) & mask:0{digits}x})" for x, w in ((a, bits_a), (b, bits_b))
    ]
    return (
        f"{name}: {int(wrong.sum())} of {wrong.numel()} elements differ, the first at {i}: "
        f"{shown[0]} instead of {shown[1]}"
    )


def differences(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> list[str]:
    """What differs between two snapshots, a line each."""
    if got.keys() != want.keys():
        return [f"entries differ: {sorted(got.keys() ^ want.keys())}"]
    found = (difference(name, got[name], want[name]) for name in want)
    return [line for line in found if line]
