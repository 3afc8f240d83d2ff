"""LaMAdam."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from .madam import MAdam
from .options import Hyper, Options


class LaMAdam(MAdam):
    r"""MAdam's second moment with LaProp's order: normalise the gradient, then average.

    .. code-block:: text

        beta, u, v, w  as in MAdam
        m = beta1 m + (1-beta1) g / (sqrt(v) + eps);  p = p - lr wd p - lr/(1-beta1^t) m     paper
        m = beta1 m + (1-beta1) lr g / (sqrt(v) + eps);  L = beta1 L + (1-beta1) lr
        p = p - lr wd p - lr/L m                                                           released

    The forms are equal at a constant learning rate; over a warm-up and decay they are not. With
    lr = 0 (or L = 0) the released form does not move.

    Args:
        params, lr, beta1, weight_decay, decoupled_weight_decay, delta, beta2_init, maximize,
            max_grad_norm, form, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.MAdam`.
        beta2_range: (.5, .98) by default.
        eps: 1e-15 by default; added to sqrt(v).
        amsgrad: divide by the running maximum of v (in the released code this flag does nothing).

    State: as :class:`~fusedstep.MAdam`, and ``lr_ema`` (L), float64, advanced only by steps that
    update the parameter. 44 (52) bytes per float32 parameter and step; 36 (44) once ``beta_prod``
    is 0.

    Source: Zhu et al., "MaxVA: Fast Adaptation of Step Sizes by Maximizing Observed Variance of
    Gradients" (2020), Algorithm 2.
    """

    rule = "lamadam"
    constants = ("amsgrad",)
    hypers = (*MAdam.hypers, "released")
    carried = {**MAdam.carried, "lr_ema": 0.0}

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        beta1: Hyper = 0.9,
        beta2_range: tuple[Hyper, Hyper] = (0.5, 0.98),
        eps: Hyper = 1e-15,
        weight_decay: Hyper = 0.0,
        decoupled_weight_decay: bool = True,
        amsgrad: bool = False,
        delta: Hyper | None = None,
        beta2_init: Hyper | None = None,
        **common: Unpack[Options],
    ):
        super().__init__(
            params, lr, beta1, beta2_range, eps, weight_decay, decoupled_weight_decay, amsgrad,
            delta, beta2_init, **common,
        )  # fmt: skip
