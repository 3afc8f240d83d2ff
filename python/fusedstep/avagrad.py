"""AvaGrad and AvaGradW."""

from __future__ import annotations

import math

import torch
from torch.optim.optimizer import ParamsT
from typing_extensions import Unpack

from . import checks
from .optimizer import FusedOptimizer
from .options import Hyper, Options


class AvaGrad(FusedOptimizer):
    r"""Delayed Adam whose per-coordinate rates eta are divided by their root mean square.

    .. code-block:: text

        eta = 1/(sqrt(v) + eps)
        m = beta1 m + (1 - beta1) g
        p = p - lr eta / sqrt(mean over all parameters of eta^2) m               form="paper"
        v = beta2 v + (1 - beta2) g^2
        t > 1: p = p - lr gamma/(1 - beta1^t) m / (sqrt(v)/sqrt(1 - beta2^(t-1)) + eps)   released
        v as above;  gamma = (mean over the group of q^-2)^(-1/2),
        q = sqrt(v before)/sqrt(1 - beta2^t) + eps,  for the step after

    The mean of the next step is summed while v is in registers: one pass over memory.

    Args:
        params: parameters or parameter groups, all of one ``form`` and on one device (in the
            released form, each group on one).
        lr: learning rate.
        betas: decay rates of ``exp_avg`` (m) and ``exp_avg_sq`` (v), in [0, 1).
        eps: added to the root of the second moment; > 0, also when rounded to float32 (float64).
            The mean sees a change of a 0-d tensor one step late.
        weight_decay: wd, added to the gradient as ``wd p`` (AvaGradW: decay before the step).
        skip_zero_second_moment: leave coordinates whose v is 0 out of the mean. One coordinate that
            never had a gradient has eta = 1/eps, which dominates the mean where eps is small.
        form: ``"paper"`` (Algorithm 1) or ``"released"`` (the authors' code).
        maximize, max_grad_norm, backend, master_weights, state_dtype, skip_nonfinite,
            capturable: see :class:`~fusedstep.optimizer.FusedOptimizer`.

    State: ``step`` int64; ``exp_avg``, ``exp_avg_sq`` in float32 (float64 for float64); in the
    released form each group keeps ``eta_sq_sum``, float64 (sum, count), for gamma. 28 bytes per
    float32 parameter and step.

    Source: Savarese et al., "Domain-Independent Dominance of Adaptive Methods" (2021), Algorithm 1.
    """

    rule = "avagrad"
    constants = ("released",)
    hypers = (
        "lr", "beta1", "beta2", "eps", "weight_decay", "decoupled_weight_decay",
        "skip_zero_second_moment",
    )  # fmt: skip
    surveyed_states = ("exp_avg_sq",)
    _decoupled = False

    def __init__(
        self,
        params: ParamsT,
        lr: Hyper = 0.1,
        betas: tuple[Hyper, Hyper] = (0.9, 0.999),
        eps: Hyper = 0.1,
        weight_decay: Hyper = 0.0,
        skip_zero_second_moment: bool = False,
        **common: Unpack[Options],
    ):
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "skip_zero_second_moment": skip_zero_second_moment,
            "decoupled_weight_decay": self._decoupled,
        }
        super().__init__(params, defaults, **common)

    @property
    def survey(self):  # type: ignore[override]  # elsewhere it is a constant
        """The paper's mean is that of v now; released code takes the group's, a step old."""
        released = any(group["form"] == "released" for group in self.param_groups)
        return None if released else 2

    def segments(self):
        groups = self.param_groups
        forms = {group["form"] for group in groups}
        if len(forms) > 1:
            raise ValueError(
                f"{type(self).__name__}: groups have different forms, but the paper's mean covers "
                f"all of them. Use one form, or an optimizer for each."
            )
        released = "released" in forms
        return [g if released else 0 for g, group in enumerate(groups) for _ in group["params"]]

    def segment_totals(self, device):
        if self.survey is not None:
            return None
        totals = []
        for group in self.param_groups:
            kept = group.get("eta_sq_sum", torch.zeros(2, device=device)).double()
            if any(p.device == device for p in group["params"]):
                # a copy: a group made from another's options must not share its sum
                kept = group["eta_sq_sum"] = kept.to(device, copy=True)
            totals.append(kept.to(device))
        return totals

    def kept_sums(self):
        return [group.get("eta_sq_sum") for group in self.param_groups]

    def surveyed_on(self):
        return tuple(
            value for g in self.param_groups for value in (g["eps"], g["skip_zero_second_moment"])
        )

    def check_group(self, where, group):
        super().check_group(where, group)
        twin = "AvaGrad" if self._decoupled else "AvaGradW"
        checks.decay_of_its_own(where, group, self._decoupled, twin)
        scaled = group["form"] == "released"  # eps, by the root of v's bias correction
        smallest = math.sqrt(checks.least_bias_correction(group["betas"][1])) if scaled else 1.0
        checks.eps_above_rounding(where, group["eps"], smallest, group["params"])
        if "eta_sq_sum" in group:
            checks.kept_sums(where, "eta_sq_sum", group["eta_sq_sum"])


class AvaGradW(AvaGrad):
    """AvaGrad with decoupled weight decay, ``p = p (1 - lr wd)`` before the step; otherwise as
    :class:`AvaGrad`, with the same arguments.

    Source: as :class:`AvaGrad`'s, with the decay of Loshchilov & Hutter (2019), Algorithm 2.
    """

    _decoupled = True
