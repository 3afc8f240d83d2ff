"""What an algorithm's class declares, and what it may override."""

from __future__ import annotations

from typing import Any, ClassVar

import torch

from . import options
from .backends import BACKENDS
from .launch import opmath_of
from .options import Chosen, OfGroups
from .state_tensors import MASTER, StateSpec


class Algorithm(torch.optim.Optimizer):
    """The part of :class:`~fusedstep.optimizer.FusedOptimizer` that differs from class to class,
    and the options that all have."""

    rule: ClassVar[str]  # stem of the algorithm in every layer
    like_torchs: ClassVar[bool] = False  # whether torch has the same class, whose checkpoints load
    constants: ClassVar[tuple[str, ...]] = ()  # bits of the kernel variant, lowest first
    hypers: ClassVar[tuple[str, ...]]  # the rule's columns of a row of hyper-parameters
    late_states: ClassVar[tuple[str, ...]] = ("max_exp_avg_sq",)  # may begin after the others
    carried: ClassVar[dict[str, float]] = {}  # float64 scalars per parameter and where they start
    passes: ClassVar[tuple[int, ...]] = (0,)  # over memory, in one step: bits added to the variant
    survey: ClassVar[int | None] = None  # bits of the pass that makes the sums a step starts from
    surveyed_states: ClassVar[tuple[str, ...]] = ()  # which it reads

    backend = Chosen(("auto",), BACKENDS)
    master_weights = Chosen((False, True))
    state_dtype = Chosen((None, torch.bfloat16))
    skip_nonfinite = Chosen((False, True))
    capturable = Chosen((False, True))
    maximize, max_grad_norm, form = OfGroups(), OfGroups(), OfGroups()

    def state_fills(self, group: dict[str, Any]) -> dict[str, float | None]:
        """State names in column order, any ``exp_avg`` first, and what they are filled with (None:
        the parameter's value). Here: Adam's."""
        names = ("exp_avg", "exp_avg_sq", "max_exp_avg_sq")
        amsgrad = "amsgrad" in self.constants and group["amsgrad"]
        return dict.fromkeys(names if amsgrad else names[:2], 0.0)

    def state_layout(self, p: torch.Tensor, group: dict[str, Any]) -> dict[str, StateSpec]:
        """What the state of a parameter holds, by name."""
        opmath = opmath_of(p.dtype)
        layout = {"step": StateSpec(torch.int64, 0, scalar=True)}
        for name, fill in self.state_fills(group).items():
            layout[name] = StateSpec(opmath, fill, late=name in self.late_states)
        if "exp_avg" in layout and self.state_dtype is not None and opmath is torch.float32:
            layout["exp_avg"] = layout["exp_avg"]._replace(dtype=self.state_dtype)
        for name, fill in self.carried.items():
            layout[name] = StateSpec(torch.float64, fill, scalar=True)
        if self.master_weights and p.dtype.itemsize == 2:
            layout[MASTER] = StateSpec(torch.float32, None)
        return layout

    def other_hypers(self, group: dict[str, Any]) -> dict[str, Any]:
        """Values of those ``hypers`` that are no entry of the group, nor ``beta1`` and ``beta2``
        (from ``betas``), nor ``released`` (from ``form``). Called only when the group changes."""
        return {}

    def variant(self, group: dict[str, Any]) -> int:
        """The kernel's template constants as a bit mask."""
        mask = 0
        for bit, name in enumerate(self.constants):
            chosen = group["form"] == "released" if name == "released" else group[name]
            mask |= bool(chosen) << bit
        return mask

    def segments(self) -> list[int]:
        """For each parameter, the segment that it is summed in: 0, 1, ..., in order."""
        raise NotImplementedError(f"{type(self).__name__}: the rule sums, so override segments()")

    def segment_totals(self, device: torch.device) -> list[torch.Tensor] | None:
        """Where the sums of every segment are kept, float64 ``[sums]``; None: in the plan."""
        return None

    def kept_sums(self) -> list[torch.Tensor | None]:
        """The totals that groups keep, or None. Replacing one makes a new plan necessary."""
        return []

    def surveyed_on(self) -> tuple:
        """The hyper-parameters that the sums depend on: a survey must follow a change."""
        return ()

    def why_not_sparse(self, group: dict[str, Any]) -> str | None:
        """Why parameters of a group cannot have sparse gradients; None where they can."""
        return "sparse gradients are not supported"

    def check_group(self, where: str, group: dict[str, Any]) -> None:
        """Raise on a hyper-parameter outside its range. Not called if only ``lr`` has changed."""
        options.check_common(where, group, self.defaults)

    def check_state(self, where: str, group: dict[str, Any], state: dict[str, Any]) -> None:
        """Raise if the group's options do not allow a step from a parameter's state."""

    def _hyper_values(self, group: dict[str, Any]) -> tuple:
        known = {**group, "lr": options.rate(group), "released": group["form"] == "released"}
        if "betas" in self.defaults:  # else an entry of a group is its user's own
            known["beta1"], known["beta2"] = group["betas"]
        known |= self.other_hypers(group)
        return tuple(map(known.__getitem__, self.hypers))

    def where(self, group: int, param: int | None = None) -> str:
        """How error messages name a group or a parameter."""
        place = f"{type(self).__name__}, group {group}"
        if param is None:
            return place
        names = self.param_groups[group].get("param_names", ())[param : param + 1]
        return " ".join([f"{place}, parameter {param}", *(f"({name})" for name in names)])

    def needs_norm(self) -> bool:
        clips = any(group["max_grad_norm"] is not None for group in self.param_groups)
        return clips or self.skip_nonfinite

    def _forget(self) -> None:
        """Drop what was derived from groups and states: they are new, loaded or assigned."""
        raise NotImplementedError
