"""The front end: a ``torch.optim.Optimizer`` that hands the whole model to one launch."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from . import checks
from .backends import choose
from .plan import Entry, Kind, Launch, Plan

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
    grad_scale: torch.Tensor | None = None  # set by torch.amp.GradScaler for the time of a step
    found_inf: torch.Tensor | None = None

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
        self.backend, self.master_weights, self.state_dtype = backend, master_weights, state_dtype
        self._plan: Plan | None = None
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
        flags = {"released": group["form"] == "released", **group}
        return sum(bool(flags[name]) << bit for bit, name in enumerate(self.constants))

    def check_group(self, where: str, group: dict[str, Any]) -> None:
        """Raise on a hyper-parameter outside its range."""
        checks.hyper_in(where, "lr", group["lr"], 0.0)
        checks.hyper_in(where, "weight_decay", group["weight_decay"], 0.0)
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
        params = [p for group in self.param_groups for p in group["params"]]
        now = self._plan.collect(params) if self._plan is not None else None
        if now is None:
            self._plan = self._make_plan(params)
            now = self._plan.collect(params)
        addresses, grads = now
        self._set_hypers()
        for launch in self._plan.launches:
            launch.send(addresses)
            launch.grads = grads
            launch.grad_scale = _amp_tensor(self.grad_scale, launch.device)
            launch.found_inf = _amp_tensor(self.found_inf, launch.device)
            try:
                choose(self.backend, launch.device).apply(launch)
            finally:
                launch.grads = None  # or they would outlive zero_grad
        return loss

    def _set_hypers(self) -> None:
        values = {}
        for i, group in enumerate(self.param_groups):
            values[i] = tuple(self.hyper_values(group))
        if values != getattr(self, "_checked", None):
            for i, group in enumerate(self.param_groups):
                self.check_group(self._where(i), group)
            self._checked = values
        for launch in self._plan.launches:
            for row, group in enumerate(launch.groups):
                launch.set_hypers(row, values[group])

    def _where(self, group: int, param: int | None = None) -> str:
        place = f"{type(self).__name__}, group {group}"
        return place if param is None else f"{place}, parameter {param}"

    def _make_plan(self, params: list[torch.Tensor]) -> Plan:
        """Check every parameter and gradient, then make missing states, then the tables."""
        places = [
            (g, i) for g, group in enumerate(self.param_groups) for i in range(len(group["params"]))
        ]
        wanted = [
            (index, p)
            for index, p in enumerate(params)
            if p.grad is not None or self.state.get(p)
        ]
        for index, p in wanted:
            where = self._where(*places[index])
            checks.parameter(where, p)
            choose(self.backend, p.device)
            if p.grad is not None:
                checks.gradient(where, p, p.grad)
        checks.no_overlap([(self._where(*places[index]), p) for index, p in wanted])

        kinds: dict[Kind, list[Entry]] = {}
        for index, p in wanted:
            group = self.param_groups[places[index][0]]
            state = self._complete_state(p, group)
            master = state["master_param"] if self._has_master(p) else None
            states = [state[name] for name in self.states(group)]
            grad_dtype = p.dtype if p.grad is None else p.grad.dtype
            kind = Kind(p.device, self.variant(group), p.dtype, grad_dtype, states[0].dtype, master is not None)
            entry = Entry(
                index, places[index][0], p, master, state["step"], states,
                [state[name] for name in self.carried],
            )  # fmt: skip
            kinds.setdefault(kind, []).append(entry)
        launches = [
            Launch(self.rule, kind, entries, sorted({e.group for e in entries}), len(self.hypers))
            for kind, entries in kinds.items()
        ]
        return Plan(params, launches)

    # State

    def _has_master(self, p: torch.Tensor) -> bool:
        return self.master_weights and p.dtype.itemsize == 2

    def _state_dtypes(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.dtype]:
        opmath = torch.float64 if p.dtype is torch.float64 else torch.float32
        dtypes = dict.fromkeys(self.states(group), opmath)
        if self.state_dtype is not None and opmath is torch.float32:
            dtypes[next(iter(dtypes))] = self.state_dtype
        return dtypes

    def _complete_state(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, torch.Tensor]:
        """The parameter's state, with whatever was missing added."""
        state = self.state[p]
        if "step" not in state:
            state["step"] = torch.zeros((), dtype=torch.int64, device=p.device)
        dtypes = self._state_dtypes(p, group)
        for name, fill in self.states(group).items():
            if name not in state:
                state[name] = torch.full_like(p, fill, dtype=dtypes[name], memory_format=torch.preserve_format)
        for name, fill in self.carried.items():
            if name not in state:
                state[name] = torch.full((), fill, dtype=torch.float64, device=p.device)
        if self._has_master(p) and "master_param" not in state:
            state["master_param"] = p.detach().to(torch.float32, memory_format=torch.preserve_format)
        return state

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
        """As torch's, but states keep their precision instead of being cast to the parameter's dtype.

        States written by ``torch.optim`` classes of the same algorithm load too; what they lack
        (group entries, states) starts at its default.
        """
        hook = self.register_load_state_dict_pre_hook(lambda _, loaded: setattr(self, "_loading", loaded))
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
            state = {**state, "state": self._adopt(loading, state["param_groups"])}
        super().__setstate__(state)
        self._plan = None
        for group in self.param_groups:
            for name, value in self.defaults.items():
                group.setdefault(name, value)

    def _adopt(self, loaded: dict[str, Any], groups: list[dict[str, Any]]) -> dict:
        """Loaded states under this optimizer's parameters: right device, dtype and layout, copied."""
        result = {}
        for saved, group in zip(loaded["param_groups"], groups, strict=True):
            dtypes = {**self.defaults, **group}
            for key, p in zip(saved["params"], group["params"], strict=True):
                if key in loaded["state"]:
                    dtypes = {
                        "step": torch.int64,
                        **dict.fromkeys(self.carried, torch.float64),
                        "master_param": torch.float32,
                        **self._state_dtypes(p, {**self.defaults, **group}),
                    }
                    result[p] = {
                        name: _adopt_value(f"{type(self).__name__}, state {key!r}, {name}", p, value, dtypes.get(name))
                        for name, value in loaded["state"][key].items()
                    }
        return result


def _adopt_value(where: str, p: torch.Tensor, value: Any, dtype: torch.dtype | None) -> Any:
    if dtype is None:  # a stranger's entry: kept as it is
        return value
    value = torch.as_tensor(value)
    shape = () if dtype in (torch.int64,) or value.ndim == 0 else p.shape
    if value.shape != shape and value.numel() != 1:
        raise ValueError(
            f"{where} has shape {tuple(value.shape)}, its parameter {tuple(p.shape)}. "
            f"Load the state of the same model."
        )
    if shape == ():
        return value.reshape(()).to(p.device, dtype, copy=True)
    return torch.empty_like(p, dtype=dtype).copy_(value)


def _amp_tensor(tensor: torch.Tensor | None, device: torch.device) -> torch.Tensor | None:
    return None if tensor is None else tensor.to(device, torch.float32)
