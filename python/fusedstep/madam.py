"""MAdam."""

from __future__ import annotations

from typing import ClassVar

from torch import Tensor
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from . import checks
from .optimizer import FusedOptimizer
from .options import Hyper, Options


class MAdam(FusedOptimizer):
    r"""Adam whose second moment uses, per coordinate, the beta that maximises observed variance.

    .. code-block:: text

        beta = ((g-u)^2 + v - u^2) / (w((g-u)^2 - v + u^2) + (g-u)^2 + v - u^2 + delta)    eq. 7
        beta = clip(beta, lo, hi);  beta = beta2_init at t = 1
        w u = beta w u + (1-beta) g;  w v = beta w v + (1-beta) g^2;  w = beta w + (1-beta)
        m = beta1 m + (1-beta1) g
        p = p - lr wd p - lr sqrt(w)/(1-beta1^t) m / (sqrt(w v) + eps)      form="paper"
        p = p - lr wd p - lr/(1-beta1^t) m / (sqrt(v) + eps)                form="released"

    Args:
        params: parameters or parameter groups.
        lr: learning rate.
        beta1: decay rate of ``exp_avg`` (m), in [0, 1).
        beta2_range: (lo, hi) of the per-coordinate beta, 0 < lo <= hi <= 1.
        eps: >= 0; added to sqrt(w v) (paper) or sqrt(v) (released).
        weight_decay: wd.
        decoupled_weight_decay: decay the parameter before the step (paper, sec. 5) instead of
            adding ``wd p`` to the gradient.
        amsgrad: divide by the running maximum of v (``max_exp_avg_sq``).
        delta: added to eq. 7's denominator, on the scale of squared gradients. None: 0 in the paper
            form, 1e-16 in the released form, where it is not negligible once gradients are below
            about 1e-6.
        beta2_init: beta at t = 1; None: hi, or 0.9 where hi = 1.
        form: ``"paper"`` (Algorithm 1) or ``"released"`` (the authors' code).
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`.

    State: ``step`` int64; ``exp_avg``, ``grad_mean`` (u), ``grad_var`` (v - u^2), ``beta_prod``
    (1 - w, the product of the betas) and ``max_exp_avg_sq`` with amsgrad, like the parameter in
    float32 (float64 for float64); ``beta_prod_bound`` float64, a bound on ``beta_prod``. 44 (52)
    bytes per float32 parameter and step; 36 (44) once the bound shows that ``beta_prod`` is 0.

    Source: Zhu et al., "MaxVA: Fast Adaptation of Step Sizes by Maximizing Observed Variance of
    Gradients" (2020), Algorithm 1. Departure: mean, variance and product of betas are stored
    instead of the weighted sums; the same real numbers, without cancellation.
    """

    rule = "madam"
    constants: ClassVar[tuple[str, ...]] = ("amsgrad", "released")
    hypers: ClassVar[tuple[str, ...]] = (
        "lr", "beta1", "beta2_lo", "beta2_hi", "beta2_init", "eps", "weight_decay",
        "decoupled_weight_decay", "delta",
    )  # fmt: skip
    carried = {"beta_prod_bound": 1.0}

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 1e-3,
        beta1: Hyper = 0.9,
        beta2_range: tuple[Hyper, Hyper] = (0.5, 0.999),
        eps: Hyper = 1e-8,
        weight_decay: Hyper = 0.0,
        decoupled_weight_decay: bool = True,
        amsgrad: bool = False,
        delta: Hyper | None = None,
        beta2_init: Hyper | None = None,
        **common: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "beta1": beta1,
            "beta2_range": beta2_range,
            "eps": eps,
            "weight_decay": weight_decay,
            "decoupled_weight_decay": decoupled_weight_decay,
            "amsgrad": amsgrad,
            "delta": delta,
            "beta2_init": beta2_init,
        }
        super().__init__(params, defaults, **common)

    def state_fills(self, group):
        states = {"exp_avg": 0.0, "grad_mean": 0.0, "grad_var": 0.0, "beta_prod": 1.0}
        return {**states, "max_exp_avg_sq": 0.0} if group["amsgrad"] else states

    def other_hypers(self, group):
        lo, hi = group["beta2_range"]
        delta, init = group["delta"], group["beta2_init"]
        if delta is None:
            delta = 1e-16 if group["form"] == "released" else 0.0
        if init is None:
            init = -1.0
        return {"beta2_lo": lo, "beta2_hi": hi, "beta2_init": init, "delta": delta}

    def check_group(self, where, group):
        super().check_group(where, group)
        checks.hyper_in(where, "beta1", group["beta1"], 0.0, 1.0)
        lo, hi = checks.pair(where, "beta2_range", group["beta2_range"])
        checks.hyper_in(where, "beta2_range[1]", hi, 0.0, 1.0, low_open=True, high_open=False)
        top = 1.0 if isinstance(hi, Tensor) else float(hi)
        checks.hyper_in(where, "beta2_range[0]", lo, 0.0, top, low_open=True, high_open=False)
        if group["delta"] is not None:
            checks.hyper_in(where, "delta", group["delta"], 0.0)
        if group["beta2_init"] is not None:
            checks.hyper_in(where, "beta2_init", group["beta2_init"], 0.0, 1.0)
