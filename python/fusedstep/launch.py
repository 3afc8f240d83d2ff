"""One launch's tables: tensor lists, chunks, hyper-parameters, and what a step changes in them."""

from __future__ import annotations

from dataclasses import dataclass, field
from itertools import compress
from typing import Any, NamedTuple

import numpy as np
import torch

from . import checks
from .reference.multi_tensor_apply import OWN_HYPERS, Facts, facts
from .step_table import StepTable
from .sums import Norm, Sums, chunk_counts, first_slots

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}
NUMBERS = {float, int, bool}  # a row of other types, np.float64 too, is searched for tensors


def opmath_of(param_dtype: torch.dtype) -> torch.dtype:
    """What a parameter's step is computed in (N1)."""
    return torch.float64 if param_dtype is torch.float64 else torch.float32


class Kind(NamedTuple):
    """What all tensors of one launch have in common."""

    device: torch.device
    variant: int  # bit mask of the rule's template constants
    param_dtype: torch.dtype
    grad_dtype: torch.dtype
    exp_avg_dtype: torch.dtype
    master: bool


@dataclass(eq=False)
class Pass:
    """A kernel to run over the tables of one launch."""

    rule: str
    variant: int
    facts: Facts  # the rule's, for this variant
    sums: Sums | None = None
    segment: torch.Tensor | None = None  # [N] int64, where there are sums
    prepared: Any = None  # what its backend keeps


@dataclass(eq=False)
class Entry:
    """One tensor of a launch: the memory that its step reads and writes."""

    index: int  # in the flat list of the optimizer's parameters
    group: int
    param: torch.Tensor
    master: torch.Tensor | None
    step: torch.Tensor
    states: list[torch.Tensor]
    carried: list[torch.Tensor]


def chunk_table(numels: list[int]) -> np.ndarray:
    """Rows (tensor, chunk within the tensor), int32 ``[chunks, 2]``; sizes beyond 2^32 are fine."""
    counts = chunk_counts(numels)
    tensors = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(first_slots(numels), counts)
    return np.stack([tensors, np.arange(len(tensors)) - first], axis=1).astype(np.int32)


@dataclass(eq=False)
class Launch:
    """One apply launch. Tables are int64 unless stated, on ``device``; N tensors, R rows.

    Attributes:
        index: ``[N]``, of every tensor its place among the optimizer's parameters; on the host.
        address: ``[columns, N]``: param, master (0: none), step, states, carried scalars.
        grad: ``[N]``, 0 where a tensor has no gradient in this step.
        numel, row: ``[N]``.
        chunk: ``[chunks, 2]``, see :func:`chunk_table`.
        hyper: ``[R, row_size]`` float64 values: maximize, max_grad_norm, the rule's.
        source: ``[R, row_size]``, 0, or the address of a 0-d tensor to read instead (+1: float64).
        ticket: ``[1]`` int32, counts blocks that have read their counts; 0 between launches.
        slot: ``[N]``, place of the tensor's first chunk among those of all parameters.
        passes: what a step runs, in order.
        norm: the pass that sums squared gradients, or None. norm_sums: what it sums them in.
        survey: the pass that computes the sums a step starts from, or None.
        grad_scale, found_inf: float32 AMP tensors of this step, or None.
        grads: this step's gradients by ``index``, kept while the launch runs, so that another
            thread that drops them does not free them.
    """

    kind: Kind
    held: list[Entry] | None = field(repr=False)  # the entries, until let_go()
    hypers: int  # of the rule
    slot_of: np.ndarray  # of every parameter of the optimizer, its first chunk's slot
    passes: list[Pass] = field(default_factory=list)
    survey: Pass | None = None
    norm: Pass | None = None
    norm_sums: Norm | None = None
    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    grads: list[torch.Tensor | None] = field(default_factory=list)

    def __post_init__(self) -> None:
        numels = [e.param.numel() for e in self.entries]
        addresses = [
            [address_of(t) for t in (e.param, e.master, e.step, *e.states, *e.carried)]
            for e in self.entries
        ]
        first = self.entries[0]  # which all others are like
        self.row_size = OWN_HYPERS + self.hypers
        self.column_counts = self.hypers, len(first.states), len(first.carried)
        self.state_sizes = [state.element_size() for state in first.states]
        self.elements = sum(numels)
        self.index = np.array([e.index for e in self.entries])
        self.chunk = torch.from_numpy(chunk_table(numels)).to(self.device)
        self.address = self._int64(addresses).t().contiguous()
        self.numel = self._int64(numels)
        self.groups = sorted({e.group for e in self.entries})  # the parameter group of each row
        row_of = {group: row for row, group in enumerate(self.groups)}
        self.row = self._int64([row_of[e.group] for e in self.entries])
        self.slot = self._int64(self.slot_of[self.index])
        self.ticket = torch.zeros(1, dtype=torch.int32, device=self.device)

        size = len(numels) + 2 * len(self.groups) * self.row_size
        self.step_table = StepTable(size, self.device)
        self.grad, self.hyper, self.source = self._split(self.step_table.device)
        parts = (part.numpy() for part in self._split(self.step_table.host))
        self._host_grad, self._host_hyper, self._host_source = parts
        self._rows: list[tuple] = []  # of hyper-parameters, by group
        self._with_tensors: list[int] = []  # rows that have any

    device = property(lambda self: self.kind.device)
    opmath = property(lambda self: opmath_of(self.param_dtype))
    float64 = property(lambda self: self.opmath is torch.float64)
    param_dtype = property(lambda self: self.kind.param_dtype)
    grad_dtype = property(lambda self: self.kind.grad_dtype)
    exp_avg_dtype = property(lambda self: self.kind.exp_avg_dtype)
    master = property(lambda self: self.kind.master)

    def _int64(self, values) -> torch.Tensor:
        return torch.tensor(np.asarray(values, dtype=np.int64), device=self.device)

    def _split(self, table: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        shape = (len(self.groups), self.row_size)
        size = shape[0] * shape[1]
        grad, hyper, source = table.split([len(self.index), size, size])
        return grad, hyper.view(torch.float64).view(shape), source.view(shape)

    def plan_pass(self, rule: str, variant: int, sums: Sums | None) -> Pass:
        segment = None if sums is None else self._int64(sums.segments[self.index])
        return Pass(rule, variant, facts(rule, variant), sums, segment)

    def fields(self, work: Pass) -> dict[str, int]:
        """The native ``Launch`` struct's members for a pass, as integers."""
        tables = ("chunk", "numel", "row", "address", "grad", "hyper", "source", "ticket", "slot")
        sums = {}
        if work.sums is not None:
            sums = {"segment": address_of(work.segment), **work.sums.fields()}
        return {
            "tensors": len(self.index),
            "chunks": len(self.chunk),
            "elements": self.elements,
            "row_size": self.row_size,
            **{name: getattr(self, name).data_ptr() for name in tables},
            **sums,
            "param_dtype": DTYPE_CODES[self.param_dtype],
            "grad_dtype": DTYPE_CODES[self.grad_dtype],
            "exp_avg_dtype": DTYPE_CODES[self.exp_avg_dtype],
            "master": self.master,
        }

    def grad_norm_sq(self, work: Pass) -> torch.Tensor | None:
        """The squared norm by which a pass clips gradients: float64 ``[1]``, or None."""
        return None if work is self.norm or self.norm_sums is None else self.norm_sums.total

    def skip_flag(self, work: Pass) -> torch.Tensor | None:
        """The flag that skips a pass, if one can: the pass moves something."""
        return None if work is self.norm or work is self.survey else self.found_inf

    def check_columns(self, rule: str, takes: tuple[int, int, int]) -> None:
        """Require that a kernel takes as many hyper-parameters, states and carried scalars as the
        tables have: else it would write to other memory. One without states fits any tables."""
        if takes[1] and takes != self.column_counts:
            raise RuntimeError(
                f"{rule}: the optimizer's class has {self.column_counts} hyper-parameters, states "
                f"and carried scalars, and the kernel takes {takes}. Build again "
                f"(`pip install .`), or make the rule's files agree."
            )

    def let_go(self) -> None:
        """Forget tensors whose addresses the tables have: a plan must not keep them alive."""
        self.held = None

    @property
    def entries(self) -> list[Entry]:
        """The tensors. Raises once they are let go: going over none would silently be no step."""
        if self.held is None:
            raise RuntimeError(
                "a launch has no entries after its first step, for a backend that takes addresses. "
                "Set takes_tensors = True in the backend's class."
            )
        return self.held

    def bytes_moved(self) -> int:
        """Bytes that a step's passes over all tensors read and write if no column has faded."""
        norm = (self.norm is not None) * self.grad_dtype.itemsize
        return self.elements * sum(map(self._bytes_of, self.passes), norm)

    def _bytes_of(self, work: Pass) -> int:
        """Bytes one pass reads and writes for an element."""
        does, states = work.facts, self.state_sizes[: work.facts.STATES]
        source = torch.float32 if self.master else self.param_dtype
        size = does.READS_GRAD * self.grad_dtype.itemsize
        size += sum(states) + sum(states[: len(states) - does.READ_ONLY])
        size += (does.READS_PARAM + does.MOVES_PARAM) * source.itemsize
        return size + self.master * does.MOVES_PARAM * self.param_dtype.itemsize

    def set_rows(self, rows: list[tuple]) -> None:
        """Enter every group's hyper-parameters. If ``rows`` is the very list given last, only the
        addresses and values of its tensors can have changed."""
        if rows is not self._rows:
            self._rows, own = rows, [rows[group] for group in self.groups]
            self._with_tensors = [
                i for i, row in enumerate(own) if not {*map(type, row)} <= NUMBERS
            ]
            for i in self._with_tensors:
                own[i] = tuple(0.0 if isinstance(v, torch.Tensor) else v for v in own[i])
            self._host_hyper[:], self._host_source[:] = own, 0
        for i in self._with_tensors:
            self._set_tensors(i, rows[self.groups[i]])

    def _set_tensors(self, i: int, row: tuple) -> None:
        """Enter the 0-d tensors of a row: on this device by address, others by value."""
        for j, value in enumerate(row):
            if not isinstance(value, torch.Tensor):
                continue
            address = value.data_ptr()
            if not address or value.ndim or value.dtype not in checks.HYPER_DTYPES:
                # `t.data = u` has changed it since it was checked
                checks.hyper_in(f"group {self.groups[i]}", "a hyper-parameter", value, 0.0)
            if value.device == self.device:
                self._host_source[i, j] = address + (value.dtype is torch.float64)
            else:
                self._host_hyper[i, j], self._host_source[i, j] = value.item(), 0

    def hyper_row(self, group: int) -> list[float]:
        """The values a parameter group is updated with now; reads device tensors."""
        row = self._rows[group]
        return [float(v.detach() if isinstance(v, torch.Tensor) else v) for v in row]

    def take_amp(self, grad_scale: torch.Tensor | None, found_inf: torch.Tensor | None) -> None:
        """Take a step's scale and skip flag as kernels read them."""
        self.grad_scale, self.found_inf = [
            None if t is None else t.to(self.device, torch.float32).resolve_neg()
            for t in (grad_scale, found_inf)
        ]
        if self.norm_sums is not None:
            self.found_inf = self.norm_sums.take_found_inf(self.found_inf)

    def gradient_places(self) -> list[tuple[int, int]]:
        """Of every tensor, its ``index`` and the address of its place in the table of gradients."""
        first = self._host_grad.ctypes.data
        return [(index, first + 8 * i) for i, index in enumerate(self.index.tolist())]

    def set_gradients(self, grads: list[torch.Tensor | None]) -> None:
        """Enter this step's gradients, listed by ``index``."""
        # An empty tensor has no address, yet takes its step: any number but 0 will do.
        found = (grads[index] for index in self.index)
        self._host_grad[:] = [0 if g is None else g.data_ptr() or 1 for g in found]

    def with_gradient(self, of_each: list) -> list:
        """Of a list with one item for each tensor, those of tensors that have a gradient now."""
        return list(compress(of_each, self._host_grad.tolist()))


def address_of(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()
