"""AdaMomentum."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from . import checks
from .optimizer import FusedOptimizer
from .options import Hyper, Options


class AdaMomentum(FusedOptimizer):
    r"""Adam whose second moment averages the squared momentum instead of the squared gradient.

    .. code-block:: text

        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) m^2 + eps
        p = p - lr wd p - lr/(1 - beta1^t) m / (sqrt(v)/sqrt(1 - beta2^t))

    The first step has length lr/(1 - beta1), ten times Adam's at the default: warm up.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of ``exp_avg`` (m) and ``exp_avg_sq`` (v), in [0, 1).
        eps: added to the stored v in every step; > 0, also when rounded to float32 (float64).
        weight_decay: wd.
        decoupled_weight_decay: decay the parameter before the step instead of adding ``wd p`` to
            the gradient. The paper has no decay.
        amsgrad: divide by the running maximum of v (``max_exp_avg_sq``).
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`. Both forms are the same
            here.

    State: as :class:`~fusedstep.AdamW`. 28 (36) bytes per float32 parameter and step.

    Source: Wang et al., "Rethinking Adam: A Twofold Exponential Moving Average Approach" (2021),
    Algorithm 1. Additions: weight decay, amsgrad.
    """

    rule = "adamomentum"
    constants = ("amsgrad",)
    hypers = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay")

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-16,
        weight_decay: Hyper = 0.0,
        decoupled_weight_decay: bool = True,
        amsgrad: bool = False,
        **common: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "amsgrad": amsgrad,
        }
        super().__init__(params, defaults, **common)

    def check_group(self, where, group):
        super().check_group(where, group)
        checks.eps_above_rounding(where, group["eps"], 1.0, group["params"])
