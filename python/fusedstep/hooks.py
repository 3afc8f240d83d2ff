"""Hooks and profilers around a step, at no cost where there are none."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar

import torch
from torch.optim.optimizer import (
    Optimizer,
    _global_optimizer_post_hooks,
    _global_optimizer_pre_hooks,
)

P = ParamSpec("P")
R = TypeVar("R")


def with_hooks(step: Callable[P, R]) -> Callable[P, R]:
    """Wrap ``step(self, closure=None)`` as torch wraps every optimizer's: run hooks, and show its
    name to a profiler. That costs as much as a hundred small tensors, so it is left out where there
    is neither hook nor profiler; also where a subclass overrides ``step``: torch wraps that itself,
    and hooks would run twice."""
    hooked = Optimizer.profile_hook_step(step)

    @functools.wraps(step)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> R:
        self: Any = args[0]
        if (
            self._optimizer_step_pre_hooks
            or self._optimizer_step_post_hooks
            or _global_optimizer_pre_hooks
            or _global_optimizer_post_hooks
            or torch.autograd._profiler_enabled()
        ) and not _wrapped_by_torch(type(self).step):
            return hooked(*args, **kwargs)
        return step(*args, **kwargs)

    wrapper.__dict__.update(hooked=True, runs_own_hooks=True)  # else torch would wrap it again
    return wrapper


def _wrapped_by_torch(step) -> bool:
    return getattr(step, "hooked", False) and not getattr(step, "runs_own_hooks", False)
