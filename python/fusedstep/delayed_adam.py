"""Delayed Adam."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .optimizer import FusedOptimizer
from .options import Hyper, Options


class DelayedAdam(FusedOptimizer):
    r"""Adam that divides by the second moment of the step before.

    .. code-block:: text

        m = beta1 m + (1 - beta1) g
        p = p - lr/(1 - beta1^t) m / (sqrt(v)/sqrt(1 - beta2^(t-1)) + eps)    where v > 0
        v = beta2 v + (1 - beta2) g^2

    The first step only accumulates: v is 0 then.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of ``exp_avg`` (m) and ``exp_avg_sq`` (v), in [0, 1).
        eps: added to the root of the second moment; >= 0.
        weight_decay: wd, added to the gradient as ``wd p``.
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`. Both forms are the same
            here.

    State: ``step`` int64; ``exp_avg``, ``exp_avg_sq`` in float32 (float64 for float64). 28 bytes
    per float32 parameter and step.

    Source: Savarese et al., "Domain-Independent Dominance of Adaptive Methods" (2021), section 8.
    Departure: coordinates whose v is still 0 take no step.
    """

    rule = "delayed_adam"
    hypers = ("lr", "beta1", "beta2", "eps", "weight_decay")

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 0.0,
        **common: Unpack[Options],
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, **common)
