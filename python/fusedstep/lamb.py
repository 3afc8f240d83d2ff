"""LAMB."""

from __future__ import annotations

import torch
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .optimizer import FusedOptimizer
from .options import Hyper, OptionsButClipping


class LAMB(FusedOptimizer):
    r"""Adam's direction, scaled for every tensor to the length of the parameter.

    .. code-block:: text

        g = g min(1, max_grad_norm / (norm of all gradients + 1e-6))
        m = beta1 m + (1 - beta1) g;  v = beta2 v + (1 - beta2) g^2
        u = m/(1 - beta1^t) / (sqrt(v)/sqrt(1 - beta2^t) + eps) + wd p
        p = p - lr ||p||/||u|| u         ratio 1 where wd = 0 or a norm is 0

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of ``exp_avg`` (m) and ``exp_avg_sq`` (v), in [0, 1).
        eps: added to the root of the second moment; >= 0.
        weight_decay: wd.
        max_grad_norm: 1.0 by default; None: no clipping. See
            :class:`~fusedstep.optimizer.FusedOptimizer`.
        maximize, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`. Both forms are the same
            here.

    State: ``step`` int64; ``exp_avg``, ``exp_avg_sq`` in float32 (float64 for float64). Two passes:
    44 bytes per float32 parameter and step, 40 without clipping.

    Source: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes"
    (2020), Algorithm 2, with phi the identity. Departures, as in NVIDIA's ``FusedLAMB``: gradients
    are clipped, and the ratio is 1 where wd = 0.
    """

    rule = "lamb"
    hypers = ("lr", "beta1", "beta2", "eps", "weight_decay", "exp_avg_is_bfloat16")
    passes = (0, 1)

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-6,
        weight_decay: Hyper = 0.01,
        *,
        max_grad_norm: Hyper | None = 1.0,
        **common: Unpack[OptionsButClipping],
    ):
        defaults = {"lr": lr, "betas": betas, "eps": eps, "weight_decay": weight_decay}
        super().__init__(params, defaults, max_grad_norm=max_grad_norm, **common)

    def segments(self):
        return list(range(sum(len(group["params"]) for group in self.param_groups)))

    def other_hypers(self, group):
        return {"exp_avg_is_bfloat16": self.state_dtype is torch.bfloat16}
