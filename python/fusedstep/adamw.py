"""AdamW and Adam."""

from __future__ import annotations

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from . import checks
from .optimizer import FusedOptimizer
from .options import Hyper, Options


class AdamW(FusedOptimizer):
    r"""Adam with decoupled weight decay.

    .. code-block:: text

        p = p (1 - lr wd)
        m = beta1 m + (1 - beta1) g
        v = beta2 v + (1 - beta2) g^2
        p = p - lr/(1 - beta1^t) m / (sqrt(v)/sqrt(1 - beta2^t) + eps)

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of ``exp_avg`` (m) and ``exp_avg_sq`` (v), in [0, 1).
        eps: added to the root of the second moment; >= 0.
        weight_decay: wd, multiplied by ``lr``; decoupled from the gradient.
        amsgrad: divide by the running maximum of v (``max_exp_avg_sq``).
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`. Both forms are the same
            here.

    State: ``step`` int64; ``exp_avg``, ``exp_avg_sq`` (and ``max_exp_avg_sq``) like the parameter,
    in float32 (float64 for float64). 28 (36) bytes per float32 parameter and step. The state dict
    of :class:`torch.optim.AdamW` loads.

    Source: Kingma & Ba, "Adam" (2015), Algorithm 1; Loshchilov & Hutter, "Decoupled Weight Decay
    Regularization" (2019), Algorithm 2, with the decay multiplied by ``lr`` as in torch.
    """

    rule = "adamw"
    like_torchs = True
    constants = ("amsgrad",)
    hypers = ("lr", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay")
    _decoupled = True

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 1e-2,
        amsgrad: bool = False,
        **common: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "decoupled_weight_decay": self._decoupled,
        }
        super().__init__(params, defaults, **common)

    def check_group(self, where, group):
        super().check_group(where, group)
        twin = "Adam" if self._decoupled else "AdamW"
        checks.decay_of_its_own(where, group, self._decoupled, twin)


class Adam(AdamW):
    """Adam with coupled weight decay, ``g = g + wd p``; otherwise as :class:`AdamW`.

    Source: Kingma & Ba, "Adam" (2015), Algorithm 1. ``weight_decay`` is 0 by default.
    """

    _decoupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 0.0,
        amsgrad: bool = False,
        **common: Unpack[Options],
    ):
        super().__init__(params, lr, betas, eps, weight_decay, amsgrad, **common)
