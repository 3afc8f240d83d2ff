"""LaProp."""

from __future__ import annotations

from numbers import Real

from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from . import checks
from .optimizer import FusedOptimizer
from .options import Hyper, Options
from .warn import warn


class LaProp(FusedOptimizer):
    r"""Normalise the gradient by its second moment, then average: momentum and adaptivity apart.

    .. code-block:: text

        v = beta2 v + (1 - beta2) g^2;  n = v
        centered, from t > centered_start:  n = v - c^2,  c = beta2 c + (1 - beta2) g
        amsgrad:  vmax = max(vmax, n);  n = vmax
        m = beta1 m + (1 - beta1) lr g / sqrt(n/(1 - beta2^t) + eps)        form="paper"
        p = p - m/(1 - beta1^t)
        m = beta1 m + (1 - beta1) lr g / (sqrt(n/L2) + eps)                 form="released"
        p = p - lr/L1 m,  L1 = beta1 L1 + (1 - beta1) lr,  L2 = beta2 L2 + (1 - beta2)
        p = p (1 - wd)                                                      both, unless lr = 0

    .. warning:: The weight decay is NOT multiplied by the learning rate. With lr = 4e-4, AdamW's
        weight_decay=0.1 corresponds to 4e-5 here.

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        betas: decay rates of ``exp_avg`` (m) and ``exp_avg_sq`` (v), in [0, 1). beta2 = 0 is sign
            descent. The paper form corrects for a constant beta2: under a schedule of beta2, which
            the paper advises, use the released form.
        eps: > 0, also after it is multiplied by 1 - beta2 and rounded to float32 (float64); added
            under the root (paper) or to the root (released).
        weight_decay: wd, LaPropW; after the step and not multiplied by lr.
        amsgrad: divide by the running maximum of n (``max_exp_avg_sq``), AmsProp; with ``centered``
            only once centring has begun.
        centered: divide by the variance instead of the second moment, Centered LaProp.
        centered_start: number of steps before centring begins.
        form: ``"paper"`` (Algorithms 1 to 4) or ``"released"`` (the authors' code).
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`.

    State: ``step`` int64; ``exp_avg``, ``exp_avg_sq`` (centered: ``grad_mean``, ``grad_var``) and
    ``max_exp_avg_sq`` with amsgrad, in float32 (float64 for float64); ``lr_ema`` (L1) and
    ``one_ema`` (L2) float64, advanced only by steps that update the parameter. 28 bytes per float32
    parameter and step, 8 more with ``amsgrad``, 8 more with ``centered``.

    Warns:
        UserWarning: ``weight_decay`` is five times ``lr`` or more, as if it were AdamW's.

    Source: Ziyin, Wang, Ueda, "LaProp: Separating Momentum and Adaptivity in Adam" (2020),
    Algorithms 1 to 4. Departures: centered stores mean and variance, which cannot become negative;
    no decay at lr = 0, and in the released form no step, because torch takes such a step to create
    the states that it loads a distributed checkpoint into.
    """

    rule = "laprop"
    constants = ("amsgrad", "centered")
    hypers = ("lr", "beta1", "beta2", "eps", "weight_decay", "centered_start", "released")
    carried = {"lr_ema": 0.0, "one_ema": 0.0}

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 4e-4,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 1e-15,
        weight_decay: Hyper = 0.0,
        amsgrad: bool = False,
        centered: bool = False,
        centered_start: Hyper = 10,
        **common: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "amsgrad": amsgrad,
            "centered": centered,
            "centered_start": centered_start,
        }
        super().__init__(params, defaults, **common)

    def add_param_group(self, param_group):
        given = {**self.defaults, **param_group} if isinstance(param_group, dict) else {}
        super().add_param_group(param_group)  # which may put tensors in the place of numbers
        where = self.where(len(self.param_groups) - 1)
        _warn_of_decay(where, given["lr"], given["weight_decay"])

    def state_fills(self, group):
        names = ["exp_avg", *(("grad_mean", "grad_var") if group["centered"] else ("exp_avg_sq",))]
        return dict.fromkeys([*names, "max_exp_avg_sq"] if group["amsgrad"] else names, 0.0)

    def check_group(self, where, group):
        super().check_group(where, group)
        checks.hyper_in(where, "weight_decay", group["weight_decay"], 0.0, 1.0, high_open=False)
        checks.hyper_in(where, "centered_start", group["centered_start"], 0.0)
        smallest = checks.least_bias_correction(group["betas"][1])
        checks.eps_above_rounding(where, group["eps"], smallest, group["params"])


def _warn_of_decay(where: str, lr: Hyper, decay: Hyper) -> None:
    if not isinstance(lr, Real) or not isinstance(decay, Real) or not decay >= 5 * lr > 0:
        return
    warn(
        f"{where}: weight_decay is {decay:g}, and LaProp does not multiply it by lr: each step "
        f"takes {decay:.2%} off the weights. To decay as AdamW does with this number, "
        f"pass lr * weight_decay, {lr * decay:g}."
    )
