"""What an optimizer's state holds, and how it survives saving, loading, copying and pickling."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import chain, compress
from typing import TYPE_CHECKING, Any

import torch

from . import graphs, memory, shards, state_tensors
from .algorithm import Algorithm
from .options import Chosen, make_plain
from .state_tensors import MASTER, StateSpec
from .warn import warn

if TYPE_CHECKING:
    from .plan import Plan


class KeepsState(Algorithm):
    """The part of :class:`~fusedstep.optimizer.FusedOptimizer` that saves, loads and copies: as
    torch's Optimizer, except that loaded states keep their dtype."""

    _captured: list[tuple]  # what CUDA graphs read in their replays
    _in_graph = False  # whether one has captured the present plan
    _norm_sq: torch.Tensor | None  # of the last step
    _plan: Plan | None  # of the next step
    backends_in_use: dict[str, str]
    _loading: dict[str, Any] | None = None  # what load_state_dict was given, while it runs

    @torch.no_grad()
    def resync_master(self) -> None:
        """Copy parameters into their float32 masters. Call it after editing the parameters
        (``model.load_state_dict``); otherwise the next step undoes the edit."""
        for p, state in self.state.items():
            if isinstance(p, torch.Tensor) and MASTER in state and _both_there(p, state[MASTER]):
                state[MASTER].copy_(p)
        if self._plan is not None:
            self._plan.write_counts.mark_in_sync()

    def _warn_of_edits(self, plan: Plan) -> None:
        """Warn if a parameter that is about to be updated differs from its rounded master."""
        counts = plan.write_counts
        pairs = ((p, self.state[p][MASTER]) for p in counts.mastered)
        # Whoever froze a parameter may have moved or freed its master: no step reads it meanwhile.
        different = _different(
            (p, master)
            for p, master in pairs
            if p.grad is not None or (p.device == master.device and _both_there(p, master))
        )
        if any(p.grad is not None for p in different):
            warn(
                f"{type(self).__name__}: 16-bit parameters were edited or loaded since the last "
                f"step, but their float32 masters were not. The step continues from the masters "
                f"and overwrites the edit. After an edit, call `optimizer.resync_master()`."
            )
        counts.mark_in_sync(p for p in different if p.grad is None)  # last, as a warning may raise

    def state_dict(self) -> dict[str, Any]:
        """As torch's; groups name the algorithm that wrote them."""
        # It is an entry of groups, because torch's flattened state dicts keep no others. It is set
        # here, because optimizers of two classes may share a group's dict.
        for group in self.param_groups:
            if group.get("algorithm") != self.rule:
                group["algorithm"] = self.rule
        return super().state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """As torch's, but states keep their precision: they are not cast to the parameter's dtype.

        States written by ``torch.optim`` classes of the same algorithm load, too. Missing group
        entries get their defaults; missing masters and ``max_exp_avg_sq`` start anew.

        Args:
            state_dict: the ``state_dict()`` of an optimizer with as many parameters in as many
                groups. It is not changed.

        Raises:
            ValueError, TypeError: another of fusedstep's algorithms wrote it, a state is incomplete
                or does not fit its parameter, a count is not a number of steps, or a
                hyper-parameter is out of range. Nothing has changed.

        Warns:
            UserWarning: the checkpoint switches clipping off; no state has anything that this class
                keeps, so all start anew; neither fusedstep nor torch's class of the same name seems
                to have written them; or masters of 16-bit parameters are left out, because
                ``master_weights`` is False.
        """

        def keep_from_torch(_, loaded):  # the last hook: earlier ones may have replaced it
            clipped[:] = [group.get("max_grad_norm") for group in self.param_groups]
            if self._loading is None:  # an interrupt may have left an earlier hook of ours
                self._loading = loaded
            return {**loaded, "state": {}}

        self._loading = None
        clipped: list[Any] = []
        hook = self.register_load_state_dict_pre_hook(keep_from_torch)
        try:
            super().load_state_dict(state_dict)
            given = self._loading or state_dict
        finally:
            hook.remove()
            self._loading = None
        for warning in self._load_warnings(given, clipped):
            warn(f"{type(self).__name__}: {warning}")

    def _load_warnings(self, loaded: dict[str, Any], clipped: list[Any]) -> Iterator[str]:
        """Warnings about loaded values that may be a mistake. ``clipped``: max_grad_norm before."""
        limits = zip(clipped, self.param_groups, strict=False)
        lost = [old for old, g in limits if old is not None and g["max_grad_norm"] is None]
        if lost:
            yield (
                f"max_grad_norm was {lost[0]}, and is None after loading: gradients are no longer "
                f"clipped. To clip them, set it again in `param_groups`."
            )
        states = {p: state for p, state in self.state.items() if isinstance(p, torch.Tensor)}
        given = loaded["state"].values()
        masters = any(isinstance(held, dict) and MASTER in held for held in given)
        if masters and not self.master_weights and any(p.dtype.itemsize == 2 for p in states):
            yield (
                f"the loaded states' float32 masters ({MASTER}) are left out: training goes on "
                f"from the 16-bit parameters. To keep them, assign "
                f"`optimizer.master_weights = True` and load again."
            )
        groups = loaded["param_groups"]
        ours = any("form" in group for group in groups)
        torchs = self.like_torchs and all("amsgrad" in group for group in groups)
        names = dict.fromkeys(name for name in chain(*states.values()) if name != MASTER)
        held = ", ".join(map(str, names))
        if held and not any("step" in state for state in states.values()):
            yield (
                f"the loaded states hold {held}, and nothing that this class keeps: moments and "
                f"counts begin anew, with the rates of the loaded groups. Unless the checkpoint "
                f"was saved before a first step, load one that this class saved."
            )
        elif groups and not ours and not torchs:
            yield (
                "another kind of optimizer wrote the checkpoint: its rates, and states of the same "
                "names, are taken and may mean something else here. Load a checkpoint that this "
                "class saved, or the model's weights alone."
            )

    def _choices(self) -> dict[str, Any]:
        """The options that are attributes."""
        own = vars(self).items()
        return {n: value for n, value in own if isinstance(getattr(type(self), n, None), Chosen)}

    def __getstate__(self) -> dict[str, Any]:
        return super().__getstate__() | self._choices()

    def __setstate__(self, state: dict[str, Any]) -> None:
        loading = self._loading
        if loading is None:  # a new object, which has nothing to lose
            vars(self).update(state)
            self._captured, self.backends_in_use = [], {}
        for i, group in enumerate(state["param_groups"]):
            if loading is not None and group.get("algorithm", self.rule) != self.rule:
                raise ValueError(
                    f"{self.where(i)}: {group['algorithm']!r} wrote the checkpoint, whose states "
                    f"mean something else in {self.rule!r}. Load a checkpoint that this class "
                    f"saved, or the model's weights alone."
                )
            for name, value in self.defaults.items():
                group.setdefault(name, value)
            make_plain(group, self.defaults)
            if loading is not None:
                self.check_group(self.where(i), group)
            if self.capturable:
                graphs.make_live(group, self.defaults)
        if loading is not None:
            state = {**state, "state": self._adopt(loading, state["param_groups"])}
        super().__setstate__(state)
        self._norm_sq = None
        self._forget()

    def _adopt(self, loaded: dict[str, Any], groups: list[dict[str, Any]]) -> dict:
        """Loaded states for this optimizer's parameters, by parameter."""
        result: defaultdict[torch.Tensor, dict] = defaultdict(dict)
        known: dict[tuple[int, torch.dtype], dict[str, StateSpec]] = {}
        for g, (saved, group) in enumerate(zip(loaded["param_groups"], groups, strict=True)):
            for k, (key, p) in enumerate(zip(saved["params"], group["params"], strict=True)):
                if key in loaded["state"]:
                    if (g, p.dtype) not in known:
                        known[g, p.dtype] = self.state_layout(p, group)
                    layout, held = known[g, p.dtype], loaded["state"][key]
                    result[p] = state_tensors.adopt(self.where(g, k), p, held, layout)
                    self.check_state(self.where(g, k), group, result[p])
        params = {key for saved in loaded["param_groups"] for key in saved["params"]}
        others = {key: value for key, value in loaded["state"].items() if key not in params}
        return defaultdict(dict, result | others)  # entries of no parameter, which torch keeps


def _different(pairs: Iterable[tuple[torch.Tensor, torch.Tensor]]) -> list[torch.Tensor]:
    """The parameters that differ from their rounded masters (NaNs are equal). Waits for each
    device once."""
    flags: defaultdict[torch.device, list] = defaultdict(list)
    for p, master in pairs:
        held, rounded = shards.local(p), shards.local(master).to(p.dtype)
        unlike = (held != rounded) & ~(held.isnan() & rounded.isnan())
        flags[held.device].append((p, unlike.any()))
    columns = (zip(*found, strict=True) for found in flags.values())
    return [p for params, unlike in columns for p in compress(params, torch.stack(unlike).tolist())]


def _both_there(p: torch.Tensor, master: torch.Tensor) -> bool:
    """Whether a parameter and its master have memory; who froze a parameter may free it."""
    return p.shape == master.shape and not (memory.is_missing(p) or memory.is_missing(master))
