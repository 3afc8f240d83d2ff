"""MADGRAD."""

from __future__ import annotations

from itertools import chain

import torch
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from . import checks
from .optimizer import FusedOptimizer
from .options import Hyper, Options


class MADGRAD(FusedOptimizer):
    r"""Dual averaging with a cube-root denominator and momentum.

    .. code-block:: text

        lam = lr sqrt(k + 1)                          form="paper"
        lam = (lr + eps) sqrt(k + 1), 0 at lr = 0     form="released"
        nu = nu + lam g^2;  s = s + lam g
        z = x0 - s / (cbrt(nu) + eps)
        p = momentum p + (1 - momentum) z

    k counts the optimizer's steps, those with at least one gradient, from 0: one number for all
    parameters. With momentum 0 there is no x0: it is recovered from p, and coordinates whose
    gradient is 0 keep p exactly.

    Args:
        params: parameters or parameter groups.
        lr: learning rate; its scale differs from Adam's: search anew.
        momentum: in [0, 1). Cannot change between 0 and above after a step.
        weight_decay: wd; the best value is often far lower than for other optimizers.
        eps: added to the cube root; >= 0.
        decoupled_weight_decay: subtract ``lr wd p`` after the step (released: ``(lr + eps) wd p``)
            instead of adding ``wd p`` to the gradient.
        form: ``"paper"`` (Algorithm 1) or ``"released"`` (the authors' code).
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`. ``state_dtype`` has no
            effect: there is no ``exp_avg``.

    Sparse gradients (``torch.sparse_coo``, rows of an embedding) need momentum 0, weight_decay 0
    and neither ``max_grad_norm`` nor ``skip_nonfinite``: only touched rows are read and written.
    Each such step is planned anew.

    State: ``step`` int64 (k + 1 after a step); ``grad_sum_sq`` (nu), ``grad_sum`` (s) and, unless
    momentum is 0, ``x0``, in float32 (float64 for float64). 32 bytes per float32 parameter and
    step, 28 with momentum 0.

    Source: Defazio & Jelassi, "Adaptivity without Compromise" (2021), Algorithm 1. Departure: a
    first step with lr = 0, where z is p, keeps p to the bit, because torch takes such a step to
    create the states that it loads a distributed checkpoint into.
    """

    rule = "madgrad"
    constants = ("without_momentum",)
    hypers = ("lr", "momentum", "weight_decay", "eps", "decoupled_weight_decay", "released")

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-2,
        momentum: Hyper = 0.9,
        weight_decay: Hyper = 0.0,
        eps: Hyper = 1e-6,
        decoupled_weight_decay: bool = False,
        **common: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "momentum": momentum,
            "weight_decay": weight_decay,
            "eps": eps,
            "decoupled_weight_decay": decoupled_weight_decay,
        }
        super().__init__(params, defaults, **common)

    def variant(self, group):
        momentum = group["momentum"]
        return int(not isinstance(momentum, torch.Tensor) and momentum == 0)

    def state_fills(self, group):
        sums = {"grad_sum_sq": 0.0, "grad_sum": 0.0}
        return sums if self.variant(group) else {**sums, "x0": None}

    def state_layout(self, p, group):
        layout = super().state_layout(p, group)
        if not self.state:  # at first none is looked for
            return layout

        def params():  # lazily: usually the first has a count, and this is asked for each group
            return (q for group in self.param_groups for q in group["params"])

        stepping = (q for q in params() if q.grad is not None)  # others may have been left out
        states = (self.state.get(q, {}) for q in chain(stepping, params()))
        count = next((state["step"] for state in states if "step" in state), 0)
        layout["step"] = layout["step"]._replace(fill=count)  # one k for all
        return layout

    def why_not_sparse(self, group):
        if self.variant(group) == 0 or group["weight_decay"] != 0:
            return "sparse gradients need momentum=0 and weight_decay=0"
        reason = "sparse gradients have no norm for max_grad_norm or skip_nonfinite"
        return reason if self.needs_norm() else None

    def check_group(self, where, group):
        super().check_group(where, group)
        checks.hyper_in(where, "momentum", group["momentum"], 0.0, 1.0)

    def check_state(self, where, group, state):
        if "grad_sum" in state and ("x0" in state) == bool(self.variant(group)):
            raise ValueError(
                f"{where}: momentum is {group['momentum']!r}, but the parameter has stepped "
                f"{'with' if self.variant(group) else 'without'} momentum, which keeps another "
                f"state. Give the group that momentum, or build a new optimizer."
            )
