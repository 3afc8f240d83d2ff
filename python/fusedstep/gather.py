"""Whether a plan still fits, and where a step's gradients are: checked in every step.

csrc/gather.h confirms that all is as planned; what it cannot confirm is checked here.
"""

from __future__ import annotations

import weakref
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from . import memory, native, shards
from .launch import DTYPE_CODES, Launch
from .sparse import Touched
from .watch import Watch

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer


class Gatherer:
    """What a plan was built on, and whether it still is so. Keeps no state alive.

    Args:
        launches: the plan's, which still have their entries.
        touched: by parameter, what its sparse gradient touches; such a plan is for one step.
        sharing: parameters, by index, whose memory others share: if one has a gradient, plan anew.
        names: of what optimizers keep in states. What other code keeps there may change.
        by_address: whether the launches' backends take addresses, not tensors.
    """

    def __init__(
        self,
        optimizer: FusedOptimizer,
        launches: list[Launch],
        touched: dict[int, Touched],
        sharing: set[int],
        names: set[str],
        by_address: bool,
    ):
        self._launches, self._touched = launches, touched
        self._streams = _streams(launch.device for launch in launches)
        grad_dtypes = {e.index: launch.grad_dtype for launch in launches for e in launch.entries}
        for i in sharing:
            del grad_dtypes[i]  # so that no gradient fits
        lists = _lists(optimizer)
        self._lost: list[weakref.ref] = []  # tensors of the plan that no longer exist
        self._lists = Watch(lists)
        self._state = Watch(optimizer.state, only=(*names,), lost=self._lost)
        self._sums = Watch(optimizer.kept_sums(), lost=self._lost)
        self._params = [p for params in lists for p in params]
        self._dtypes = [grad_dtypes.get(i) for i in range(len(self._params))]
        # Parameters that have stepped but are in no launch: whether they belong in one may change
        # with their memory.
        aside = (p for p, dtype in zip(self._params, self._dtypes, strict=True) if dtype is None)
        self._aside = [p for p in aside if "step" in optimizer.state.get(p, {})]
        self._looked = [*map(_look, self._aside)]
        # A state may keep its tensor and lose its memory (`t.data = ...`). If one does, usually all
        # do, and looking at all would take as long as the rest of a small step.
        ends = [e for launch in launches for e in (launch.entries[0], launch.entries[-1])]
        held = [t for e in ends for t in (e.step, *e.states, e.master, *e.carried)]
        fixed = [t for t in (*held, *optimizer.kept_sums()) if t is not None]
        self._fixed = [weakref.ref(t, self._lost.append) for t in fixed]
        self._basis, self._native = self._basis_now(), None
        if by_address:
            codes = [-1 if dtype is None else DTYPE_CODES[dtype] for dtype in self._dtypes]
            places = [0] * len(codes)
            for launch in launches:
                for i, place in launch.gradient_places():
                    places[i] = place
            self._native = _native_gatherer(self._params, codes, places, fixed)

    def gather(self, optimizer: FusedOptimizer, captured: bool = False) -> tuple[int, list] | None:
        """Enter this step's gradients into the launches' tables; return how many there are, and the
        gradients, to be kept while the tables have their addresses; or None where the plan no
        longer fits."""
        if (
            self._lost  # checked first: a tensor that is gone must not be looked for
            # Tables return to the stream that they were made on, while another may still read them,
            # unless a graph that captured them keeps them.
            or (self._streams and not captured and self._streams != _streams(self._streams))
            or not self._lists.holds(_lists(optimizer))
            or not self._state.holds(optimizer.state)
            or not self._sums.holds(optimizer.kept_sums())
            or (self._aside and [*map(_look, self._aside)] != self._looked)
        ):
            return None
        if self._native is not None:
            try:
                found = self._native.gather()
            except (RuntimeError, BufferError):
                found = None  # a tensor that does not describe itself
            if found is not None:
                return found
        return self._gather_each()

    @torch.no_grad()
    def _gather_each(self) -> tuple[int, list] | None:
        """The same, tensor by tensor, and gradients may have another layout."""
        try:
            if self._basis_now() != self._basis:
                return None
        except RuntimeError:
            return None  # memory without an address
        grads = [
            self._touched[i].grad if i in self._touched else p.grad
            for i, p in enumerate(self._params)
        ]
        if not self._fit(grads):
            return None
        for launch in self._launches:
            launch.set_gradients(grads)
        return sum(g is not None for g in grads), grads

    def _basis_now(self) -> list[Any]:
        """What the tables depend on, of every parameter that is in one, and of their states."""
        params = zip(self._params, self._dtypes, strict=True)
        basis: list[Any] = [_look(p) for p, dtype in params if dtype]
        return basis + [t.data_ptr() for ref in self._fixed if (t := ref()) is not None]

    def _fit(self, grads: list[torch.Tensor | None]) -> bool:
        """Give gradients their parameter's layout and sign; False where one is not as planned."""
        for i, g in enumerate(grads):
            if g is None or i in self._touched:
                continue
            p = self._params[i]
            if shards.mesh_of(g) != shards.mesh_of(p):
                return False
            g, p = shards.local(shards.distributed_like(g, p)), shards.local(p)
            grads[i] = g
            if memory.is_sparse(g) or memory.is_missing(g):
                return False
            if (g.dtype, g.shape, g.device) != (self._dtypes[i], p.shape, p.device):
                return False
            if not memory.same_layout(p, g):
                grads[i] = torch.empty_like(p, dtype=g.dtype).copy_(g)
        return True


def _native_gatherer(
    params: list[torch.Tensor], dtypes: list[int], places: list[int], fixed: list[torch.Tensor]
):
    """What reads and checks gradients without Python's attribute calls (csrc/gather.h); None before
    torch 2.10, and where a parameter is no tensor or overrides ``grad``."""
    if native.module is None or not hasattr(torch.Tensor, "__dlpack_c_exchange_api__"):
        return None
    try:
        dtensor = shards.dtensor_type()
        return native.module.Gatherer(torch.Tensor, dtensor, params, dtypes, places, fixed)
    except (ImportError, RuntimeError, BufferError):  # of tensors that do not describe themselves
        return None


def _streams(devices: Iterable[torch.device]) -> dict[torch.device, torch.Stream]:
    """The current stream of every GPU among some devices."""
    return {
        device: torch.cuda.current_stream(device) for device in devices if device.type == "cuda"
    }


def _look(p: torch.Tensor) -> tuple | None:
    """What of a parameter a plan depends on; None where it has no address."""
    try:
        p = shards.local(p)
        return p.data_ptr(), *p.shape, *p.stride(), p.dtype, p.device
    except RuntimeError:
        return None


def _lists(optimizer: FusedOptimizer) -> list[list[torch.Tensor]]:
    return [group["params"] for group in optimizer.param_groups]
