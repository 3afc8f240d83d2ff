"""The front end: a ``torch.optim.Optimizer`` that hands the whole model to one launch."""

from __future__ import annotations

from collections import defaultdict
from numbers import Real
from typing import Any, ClassVar

import torch

from . import checks, state_tensors
from .backends import BACKENDS, choose
from .plan import Entry, Kind, Launch, Plan, opmath_of
from .state_tensors import Slot

FORMS = ("paper", "released")


class FusedOptimizer(torch.optim.Optimizer):
    """Base of all optimizers. A subclass names its columns and checks its hyper-parameters.

    Args:
        params: parameters or parameter groups. float32, float64, bfloat16 or float16, dense.
        defaults: the subclass's hyper-parameters.
        backend: ``"auto"`` (cuda, else triton, on GPUs; cpu on CPUs), ``"cuda"``, ``"triton"``,
            ``"cpu"`` or ``"reference"``. Never changes a result.
        master_weights: keep a float32 copy of 16-bit parameters in the state and update that.
        state_dtype: ``torch.bfloat16`` stores ``exp_avg`` in bfloat16; None: like the arithmetic
            (float32, or float64 for float64 parameters).

    ``lr``, ``weight_decay``, ``eps`` and betas may be floats or 0-d float32 or float64 tensors.
    Values of tensors are not checked, which would wait for the device.
    """

    rule: ClassVar[str]  # stem of the algorithm in every room
    constants: ClassVar[tuple[str, ...]] = ()  # bits of the kernel variant, lowest first
    hypers: ClassVar[tuple[str, ...]]  # columns of a row of hyper-parameters
    carried: ClassVar[dict[str, float]] = {}  # float64 scalars per parameter and where they start

    _step_supports_amp_scaling = True

    def __init__(
        self,
        params,
        defaults: dict[str, Any],
        *,
        backend: str = "auto",
        master_weights: bool = False,
        state_dtype: torch.dtype | None = None,
    ):
        checks.one_of(type(self).__name__, "state_dtype", state_dtype, (None, torch.bfloat16))
        checks.one_of(type(self).__name__, "backend", backend, ("auto", *BACKENDS))
        self.backend, self.master_weights, self.state_dtype = backend, master_weights, state_dtype
        self._plan: Plan | None = None
        self._checked: list[tuple] = []  # variant and hyper-parameters of groups that passed
        self._loading: dict[str, Any] | None = None  # what load_state_dict was given, while it runs
        super().__init__(params, defaults)

    # What a subclass provides

    def states(self, group: dict[str, Any]) -> dict[str, float]:
        """State names in column order and what they are filled with; ``exp_avg`` first."""
        raise NotImplementedError

    def hyper_values(self, group: dict[str, Any]) -> tuple:
        """The row's floats or 0-d tensors, in the order of ``hypers``."""
        raise NotImplementedError

    def variant(self, group: dict[str, Any]) -> int:
        """The kernel's template constants as a bit mask."""
        mask = 0
        for bit, name in enumerate(self.constants):
            chosen = group["form"] == "released" if name == "released" else group[name]
            mask |= bool(chosen) << bit
        return mask

    def check_group(self, where: str, group: dict[str, Any]) -> None:
        """Raise on a hyper-parameter outside its range."""
        checks.hyper_in(where, "lr", group["lr"], 0.0)
        checks.hyper_in(where, "weight_decay", group["weight_decay"], 0.0)
        if "eps" in group:
            checks.hyper_in(where, "eps", group["eps"], 0.0)
        checks.one_of(where, "form", group["form"], FORMS)

    # The step

    @torch.no_grad()
    def step(self, closure=None):
        """Update all parameters that have a gradient; a step happens whole or not at all.

        Args:
            closure: reevaluates the model and returns the loss; optional.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError, RuntimeError, NotImplementedError: a gradient, parameter or
                hyper-parameter that kernels cannot serve. Raised before anything is written.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        groups = [group["params"] for group in self.param_groups]
        rows = self._checked_rows()
        now = None
        if self._plan is not None and self._plan.keeps(self.state):
            now = self._plan.collect(groups)
        if now is None:
            self._plan = self._make_plan([p for group in groups for p in group])
            now = self._plan.collect(groups)
        addresses, grads = now
        _refuse_capture(self._plan.launches)
        # torch.amp.GradScaler sets these for the time of a step and deletes them afterwards.
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        for launch in self._plan.launches:
            for row, group in enumerate(launch.groups):
                launch.set_hypers(row, rows[group])
            launch.send(addresses)
            launch.grads = grads
            launch.grad_scale = _amp_tensor(grad_scale, launch.device)
            launch.found_inf = _amp_tensor(found_inf, launch.device)
            try:
                choose(self.backend, launch.device).apply(launch)
            finally:
                launch.grads = None  # or they would outlive zero_grad
        return loss

    def _checked_rows(self) -> list[tuple]:
        """Every group's hyper-parameters, checked where they changed."""
        rows = [tuple(self.hyper_values(group)) for group in self.param_groups]
        seen = [(self.variant(g), *row) for g, row in zip(self.param_groups, rows)]
        if not _same_rows(seen, self._checked):
            for i, group in enumerate(self.param_groups):
                self.check_group(self._where(i), group)
            if [row[0] for row in seen] != [row[0] for row in self._checked]:
                self._plan = None  # another kernel
            self._checked = seen
        return rows

    def _where(self, group: int, param: int | None = None) -> str:
        place = f"{type(self).__name__}, group {group}"
        return place if param is None else f"{place}, parameter {param}"

    def _make_plan(self, params: list[torch.Tensor]) -> Plan:
        """Check every parameter and gradient, then make missing states, then the tables."""
        places = [
            (g, i) for g, group in enumerate(self.param_groups) for i in range(len(group["params"]))
        ]
        wanted = [
            (index, p) for index, p in enumerate(params) if p.grad is not None or self.state.get(p)
        ]
        for index, p in wanted:
            where = self._where(*places[index])
            checks.parameter(where, p)
            choose(self.backend, p.device)
            if p.grad is not None:
                checks.gradient(where, p, p.grad)
            group = self.param_groups[places[index][0]]
            state_tensors.check(where, self.state.get(p, {}), p, self.state_layout(p, group))
        checks.no_overlap([(self._where(*places[index]), p) for index, p in wanted])

        kinds: dict[Kind, list[Entry]] = {}
        for index, p in wanted:
            group = self.param_groups[places[index][0]]
            state = self.state[p]
            state_tensors.complete(state, p, self.state_layout(p, group))
            entry = Entry(
                index=index,
                group=places[index][0],
                param=p,
                master=state["master_param"] if self.has_master(p) else None,
                step=state["step"],
                states=[state[name] for name in self.states(group)],
                carried=[state[name] for name in self.carried],
            )
            kind = Kind(
                device=p.device,
                variant=self.variant(group),
                param_dtype=p.dtype,
                grad_dtype=p.dtype if p.grad is None else p.grad.dtype,
                exp_avg_dtype=entry.states[0].dtype,
                master=entry.master is not None,
            )
            kinds.setdefault(kind, []).append(entry)
        launches = [
            Launch(self.rule, kind, entries, sorted({e.group for e in entries}), len(self.hypers))
            for kind, entries in kinds.items()
        ]
        return Plan(params, launches, self.state)

    # State

    def has_master(self, p: torch.Tensor) -> bool:
        return self.master_weights and p.dtype.itemsize == 2

    def state_layout(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, Slot]:
        """What the state of a parameter holds, by name."""
        opmath = opmath_of(p.dtype)
        layout = {"step": Slot(torch.int64, 0, scalar=True)}
        layout |= {name: Slot(opmath, fill) for name, fill in self.states(group).items()}
        if "exp_avg" in layout and self.state_dtype is not None and opmath is torch.float32:
            layout["exp_avg"] = layout["exp_avg"]._replace(dtype=self.state_dtype)
        for name, fill in self.carried.items():
            layout[name] = Slot(torch.float64, fill, scalar=True)
        if self.has_master(p):
            layout["master_param"] = Slot(torch.float32, None)
        return layout

    @torch.no_grad()
    def resync_master(self) -> None:
        """Copy parameters into their float32 masters, after an edit of the parameters from outside
        (``model.load_state_dict``); without it the next step would undo the edit."""
        for p, state in self.state.items():
            if "master_param" in state:
                state["master_param"].copy_(p)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; the group is refused whole where a hyper-parameter is out of range."""
        super().add_param_group(param_group)
        self._plan = None
        try:
            self.check_group(self._where(len(self.param_groups) - 1), self.param_groups[-1])
        except Exception:
            self.param_groups.pop()
            raise

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their precision: they are not cast to the parameter's dtype.

        States written by ``torch.optim`` classes of the same algorithm load too; what they lack
        (group entries, states) starts at its default.
        """
        hook = self.register_load_state_dict_pre_hook(
            lambda _, loaded: setattr(self, "_loading", loaded)
        )
        try:
            super().load_state_dict(state_dict)
        finally:
            hook.remove()
            self._loading = None

    def __getstate__(self) -> dict[str, Any]:
        own = ("backend", "master_weights", "state_dtype")
        return {**super().__getstate__(), **{name: getattr(self, name) for name in own}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = getattr(self, "_loading", None)
        if loading is not None:
            # torch has cast these to the parameter's dtype: take the loaded ones instead.
            state = {**state, "state": self._adopt(loading, state["param_groups"])}
        super().__setstate__(state)
        self._plan, self._checked = None, []
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _adopt(self, loaded: dict[str, Any], groups: list[dict[str, Any]]) -> dict:
        """Loaded states for this optimizer's parameters, by parameter."""
        result = defaultdict(dict)
        for saved, group in zip(loaded["param_groups"], groups, strict=True):
            for key, p in zip(saved["params"], group["params"], strict=True):
                if key in loaded["state"]:
                    layout = self.state_layout(p, {**self.defaults, **group})
                    where = f"{type(self).__name__}, parameter {key!r}"
                    result[p] = state_tensors.adopt(where, p, loaded["state"][key], layout)
        return result


def _same_rows(rows: list[tuple], others: list[tuple]) -> bool:
    """Equality that never compares tensors by value, which would wait for the device."""
    return len(rows) == len(others) and all(
        all(
            a is b or (isinstance(a, Real) and isinstance(b, Real) and a == b)
            for a, b in zip(*pair)
        )
        for pair in zip(rows, others)
    )


def _amp_tensor(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device, torch.float32)


def _refuse_capture(launches: list[Launch]) -> None:
    on_cuda = any(launch.device.type == "cuda" for launch in launches)
    if on_cuda and torch.cuda.is_current_stream_capturing():
        raise RuntimeError(
            "optimizer.step() was called while a CUDA graph is being captured, which is not "
            "supported yet. Capture forward and backward, and step outside of the graph."
        )
