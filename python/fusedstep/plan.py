"""The plan of a step: which tensors, in which launches, with which tables.

A plan is built once and kept until a parameter moves, a gradient appears where there was none, or
the optimizer drops it (a group added, a state loaded). In a step only gradient addresses and
hyper-parameters are brought up to date.
"""

from __future__ import annotations

import operator
from dataclasses import dataclass, field
from functools import cache
from typing import NamedTuple

import numpy as np
import torch

from . import checks

CHUNK = 16384  # elements; the numerics law's constant (N7), kChunk in csrc/core/tensor_lists.h
DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


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

    @property
    def opmath(self) -> torch.dtype:
        return opmath_of(self.param_dtype)


class Entry(NamedTuple):
    """One tensor of a launch: the memory its step reads and writes."""

    index: int  # in the flat list of the optimizer's parameters
    group: int
    param: torch.Tensor
    master: torch.Tensor | None
    step: torch.Tensor
    states: list[torch.Tensor]
    carried: list[torch.Tensor]

    def bytes_moved(self, grad_dtype: torch.dtype) -> int:
        """Bytes one step reads and writes for this tensor: states, p, master both, g read."""
        both = [self.param, *self.states] if self.master is None else [self.master, *self.states]
        size = sum(2 * t.element_size() for t in both) + grad_dtype.itemsize
        if self.master is not None:
            size += self.param.element_size()
        return size * self.param.numel()


@cache
def native():
    """The compiled module, or None where it is not built."""
    try:
        from . import _native
    except ImportError:
        return None
    return _native


@cache
def gatherer():
    """Reads gradients without Python's own attribute calls; None before torch 2.10."""
    if native() is None or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return None
    return native().Gatherer(torch.Tensor)


def chunk_table(numels: list[int]) -> np.ndarray:
    """Rows (tensor, chunk within the tensor), int32 ``[chunks, 2]``; sizes beyond 2^32 are fine."""
    counts = -(-np.asarray(numels, dtype=np.int64) // CHUNK)
    tensors = np.repeat(np.arange(len(counts)), counts)
    first = np.repeat(np.cumsum(counts) - counts, counts)
    return np.stack([tensors, np.arange(len(tensors)) - first], axis=1).astype(np.int32)


@dataclass
class Launch:
    """One apply launch. Tables are int64 or as said, on ``device``; N tensors, R rows.

    Attributes:
        address: ``[columns, N]``: param, master (0: none), step, states, carried scalars.
        grad: ``[N]``, 0 where a tensor has no gradient in this step.
        numel, row: ``[N]``.
        chunk: ``[chunks, 2]``, see :func:`chunk_table`.
        hyper: ``[R, H]`` float64 values.
        source: ``[R, H]``, 0, or the address of a 0-d tensor to read instead (+1: float64).
        ticket: ``[1]``, counts blocks that have finished; 0 between launches.
        grad_scale, found_inf: float32 AMP tensors of this step, or None.
        grads: this step's gradients by ``Entry.index``, only while the launch runs.
    """

    rule: str
    kind: Kind
    entries: list[Entry]
    groups: list[int]  # the parameter group of each row
    hypers: int
    grad_scale: torch.Tensor | None = None
    found_inf: torch.Tensor | None = None
    grads: list[torch.Tensor | None] | None = None
    handles: dict = field(default_factory=dict)  # what a backend keeps for this launch

    def __post_init__(self):
        n, shape = len(self.entries), (len(self.groups), self.hypers)
        numels = [e.param.numel() for e in self.entries]
        self.elements = sum(numels)
        self.chunk = torch.from_numpy(chunk_table(numels)).to(self.device)
        columns = [
            [_address(t) for t in (e.param, e.master, e.step, *e.states, *e.carried)]
            for e in self.entries
        ]
        rows = [self.groups.index(e.group) for e in self.entries]
        self.address = torch.tensor(columns, dtype=torch.int64).t().contiguous().to(self.device)
        self.numel = torch.tensor(numels, dtype=torch.int64).to(self.device)
        self.row = torch.tensor(rows, dtype=torch.int64).to(self.device)
        self.ticket = torch.zeros(1, dtype=torch.int32, device=self.device)
        self.index = np.array([e.index for e in self.entries])
        # What changes from step to step stands together, so that one copy brings it all.
        self._table = torch.zeros(
            n + 2 * shape[0] * shape[1], dtype=torch.int64, device=self.device
        )
        self.grad, hyper, source = self._split(self._table)
        self.hyper, self.source = hyper.view(torch.float64).view(shape), source.view(shape)
        self._host = (
            self._table
            if self.device.type == "cpu"
            else torch.zeros_like(self._table, device="cpu")
        )
        self._sent = None if self._host is self._table else self._host.clone()
        grad, hyper, source = (part.numpy() for part in self._split(self._host))
        self._host_grad = grad
        self._host_hyper, self._host_source = (
            hyper.view(np.float64).reshape(shape),
            source.reshape(shape),
        )
        self._values: list[tuple] = [()] * len(self.groups)

    device = property(lambda self: self.kind.device)
    variant = property(lambda self: self.kind.variant)
    opmath = property(lambda self: self.kind.opmath)
    float64 = property(lambda self: self.opmath is torch.float64)
    param_dtype = property(lambda self: self.kind.param_dtype)
    grad_dtype = property(lambda self: self.kind.grad_dtype)
    exp_avg_dtype = property(lambda self: self.kind.exp_avg_dtype)
    master = property(lambda self: self.kind.master)

    def _split(self, table: torch.Tensor) -> tuple[torch.Tensor, ...]:
        entries = len(self.groups) * self.hypers
        return table.split([len(self.entries), entries, entries])

    def fields(self) -> dict[str, int]:
        """The native ``Launch`` struct's members, as integers."""
        tables = ("chunk", "numel", "row", "address", "grad", "hyper", "source", "ticket")
        return {
            "tensors": len(self.entries),
            "chunks": len(self.chunk),
            "elements": self.elements,
            **{name: getattr(self, name).data_ptr() for name in tables},
            "param_dtype": DTYPE_CODES[self.param_dtype],
            "grad_dtype": DTYPE_CODES[self.grad_dtype],
            "exp_avg_dtype": DTYPE_CODES[self.exp_avg_dtype],
            "master": int(self.master),
        }

    def bytes_moved(self) -> int:
        """Bytes one step of all tensors moves, by the sizes of its columns; none of them faded."""
        return sum(e.bytes_moved(self.grad_dtype) for e in self.entries)

    def set_hypers(self, row: int, values: tuple) -> None:
        """Bring a row up to date: floats by value, 0-d tensors on this device by address."""
        floats = not any(isinstance(v, torch.Tensor) for v in values)
        if floats and values == self._values[row]:
            return
        self._values[row] = values
        for j, value in enumerate(values):
            by_address = isinstance(value, torch.Tensor) and value.device == self.device
            self._host_hyper[row, j] = 0.0 if by_address else float(value)
            self._host_source[row, j] = (
                value.data_ptr() + (value.dtype is torch.float64) if by_address else 0
            )

    def hyper_row(self, group: int) -> list[float]:
        """The values a parameter group is updated with now; reads device tensors."""
        return [float(value) for value in self._values[self.groups.index(group)]]

    def send(self, addresses: np.ndarray) -> None:
        """Write this step's gradient addresses; at most one copy to the device."""
        self._host_grad[:] = addresses[self.index]
        if self._sent is None or torch.equal(self._host, self._sent):
            return
        # Pinned memory of torch's allocator is not handed out again before the copy has ended.
        self._table.copy_(self._host.pin_memory(), non_blocking=True)
        self._sent.copy_(self._host)


def _address(tensor: torch.Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


class Plan:
    """The launches of one optimizer's step, and the facts they were planned on."""

    def __init__(self, params: list[torch.Tensor], launches: list[Launch], state: dict):
        self.launches = launches
        planned = {e.index: launch.grad_dtype for launch in launches for e in launch.entries}
        self._dtypes = [planned.get(i) for i in range(len(params))]
        codes = [DTYPE_CODES.get(dtype, -1) for dtype in self._dtypes]
        self._planned = np.array([*_addresses_and_sizes(params), codes], dtype=np.int64)
        self._found = np.zeros(len(params), dtype=np.int64)
        self._buffers = len(params), self._planned.ctypes.data, self._found.ctypes.data
        self._state = _objects(state)

    def keeps(self, state: dict) -> bool:
        """Whether the optimizer's state holds the very tensors that the tables address."""
        if native() is not None:
            return native().holds(state, self._state)
        now = _objects(state)
        return len(now) == len(self._state) and all(map(operator.is_, now, self._state))

    def collect(self, groups: list[list[torch.Tensor]]) -> tuple[np.ndarray, list] | None:
        """This step's gradients and their addresses, or None where the plan no longer fits."""
        try:
            if gatherer() is not None:
                grads = gatherer().gather(groups, *self._buffers)
                if grads is not None:
                    return self._found, grads
            params = [p for group in groups for p in group]
            if not np.array_equal(_addresses_and_sizes(params), self._planned[:2]):
                return None
            grads = [p.grad for p in params]
            if not self._fit(params, grads):
                return None
            # An empty tensor has no address, yet takes its step: any number but 0 will do.
            self._found[:] = [0 if g is None else g.data_ptr() or 1 for g in grads]
            return self._found, grads
        except (RuntimeError, BufferError):
            return None  # memory without an address (sparse): planning anew names the parameter

    def _fit(self, params: list[torch.Tensor], grads: list[torch.Tensor | None]) -> bool:
        """Give gradients their parameter's layout; False where one is not as planned."""
        for i, g in enumerate(grads):
            if g is None:
                continue
            if g.dtype is not self._dtypes[i] or g.shape != params[i].shape:
                return False
            if not checks.same_layout(params[i], g):
                grads[i] = torch.empty_like(params[i], dtype=g.dtype).copy_(g)
        return True


def _addresses_and_sizes(params: list[torch.Tensor]) -> list[list[int]]:
    return [[p.data_ptr() for p in params], [p.numel() for p in params]]


def _objects(state: dict) -> list:
    """Every parameter's state dict, followed by what it holds."""
    return [x for inner in state.values() for x in (inner, *inner.values())]
