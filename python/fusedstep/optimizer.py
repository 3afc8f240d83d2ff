"""The front end: a ``torch.optim.Optimizer`` that hands the whole model to one launch."""

from __future__ import annotations

from collections.abc import Callable
from functools import cached_property
from typing import Any

import torch
from torch.optim.optimizer import ParamsT

from . import checks, graphs, options, shards
from .hooks import with_hooks
from .keeps_state import KeepsState
from .make_plan import make_plan
from .options import Hyper
from .plan import Plan
from .warn import warn
from .watch import Watch, require


class FusedOptimizer(KeepsState):
    """Base of all optimizers. A subclass names its columns and checks its hyper-parameters.

    Args:
        params: parameters or parameter groups: dense float32, float64, bfloat16 or float16. Each
            process updates the part of a ``DTensor`` that it holds. Given ``named_parameters()``,
            errors use the names.
        defaults: the subclass's hyper-parameters.
        maximize: ascend instead of descend. Default: False.
        max_grad_norm: clip gradients, within the step and without writing them, by one norm over
            all groups of the optimizer: ``g *= min(1, max_grad_norm / (norm + 1e-6))``, the formula
            of ``torch.nn.utils.clip_grad_norm_``. None (default): no clipping; inf: only measure.
        form: ``"paper"`` (default), the paper's algorithm, or ``"released"``, its authors' code,
            where that was published and differs.
        backend: ``"auto"`` (default: cuda, else triton, on GPUs; cpu on CPUs), ``"cuda"``,
            ``"triton"``, ``"cpu"``, ``"reference"``, or one that was registered. The choice among
            these five never changes a result.
        master_weights: keep a float32 copy of 16-bit parameters in the state and update that.
            Default: False. No effect on other parameters.
        state_dtype: ``torch.bfloat16`` stores ``exp_avg`` in bfloat16, except that of float64
            parameters. None (default): float32, or float64 for float64 parameters.
        skip_nonfinite: skip a step if the norm of all gradients is infinite or NaN (its square may
            overflow in float64): nothing changes, as when a ``GradScaler`` skips, and the host
            does not wait. Reads gradients twice, as ``max_grad_norm`` does. Default: False.
        capturable: keep ``lr``, ``weight_decay``, ``eps``, ``max_grad_norm``, betas and a
            ``momentum`` above 0 in 0-d float64 tensors on the parameters' device, which replays of
            a CUDA graph follow; other options stay as captured. Default: False. Changes no result.

    Hyper-parameters may be floats or 0-d float32 or float64 tensors. A tensor's value is not
    checked, because reading it would make the host wait for the device. ``backend``,
    ``master_weights``, ``state_dtype`` and ``skip_nonfinite`` may be assigned between steps; so
    may ``capturable``, for groups that are added or loaded later.

    Raises:
        TypeError, ValueError: an unknown argument, a value outside its range, or no parameters.
    """

    backends_in_use: dict[str, str]  #: what runs the steps, by device: {"cuda:0": "triton"}

    def __init__(
        self,
        params: ParamsT,
        defaults: dict[str, Any],
        *,
        maximize: bool = False,
        max_grad_norm: Hyper | None = None,
        form: str = "paper",
        backend: str = "auto",
        master_weights: bool = False,
        state_dtype: torch.dtype | None = None,
        skip_nonfinite: bool = False,
        capturable: bool = False,
        **unknown: Any,
    ):
        if unknown:
            raise TypeError(options.unknown_arguments(type(self), unknown))
        self._captured, self._norm_sq, self.backends_in_use = [], None, {}
        self.backend, self.master_weights, self.state_dtype = backend, master_weights, state_dtype
        self.skip_nonfinite, self.capturable = skip_nonfinite, capturable
        common = {"maximize": maximize, "max_grad_norm": max_grad_norm, "form": form}
        super().__init__(params, {**defaults, **common, "algorithm": self.rule})

    def _forget(self) -> None:
        """Drop what was derived from groups and states: they are new, loaded or assigned."""
        self._plan: Plan | None = None
        self._options: Watch | None = None  # of groups whose hyper-parameters are checked
        self._constant: Watch | None = None  # the same without lr, which a schedule replaces
        self._rows: list[tuple] = []  # those hyper-parameters
        self._kernels: list[tuple] = []  # by group, what its kernel depends on

    # The step

    _asked_to_unscale = False  # by a scaler, which then sets found_inf for the step

    @cached_property  # so that it can be overridden by assignment: the scaler then unscales
    def _step_supports_amp_scaling(self) -> bool:
        """Whether ``step`` may do what torch.amp.GradScaler's ``unscale_`` does: not for FSDP1's
        parameters, whose scaler tells the other processes of an infinity in ``unscale_``, and not
        in a wrapper that subclasses us, which would keep the scale to itself."""
        if options.is_wrapper(self):
            return False
        params = (p for group in self.param_groups for p in group["params"])
        self._asked_to_unscale = not any(map(shards.is_flattened, params))
        return self._asked_to_unscale

    @torch._disable_dynamo  # torch.compile breaks its graph here, as at torch's add_param_group
    @with_hooks
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Update all parameters that have a gradient. A step happens whole or not at all, unless an
        interrupt, or a failure of Triton's compiler or of communication, ends it between passes.

        Args:
            closure: reevaluates the model and returns the loss; optional.

        Returns:
            The closure's loss, or None.

        Raises:
            ValueError, TypeError, RuntimeError, NotImplementedError: a gradient, parameter or
                hyper-parameter that kernels cannot serve. Raised before anything is written.

        Warns:
            UserWarning: it undoes an edit of parameters with masters, outdates a CUDA graph, or has
                not been given a GradScaler's scale.
        """
        if capturing := graphs.capturing():
            graphs.check(self)
        if self._asked_to_unscale:
            self._warn_of_a_lost_scale()
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        rows = self._checked_rows()
        plan = self._plan
        now = None if plan is None else plan.gatherer.gather(self, capturing or self._in_graph)
        if capturing:
            graphs.check_plan(self, plan if now else None)
        if plan is None or now is None:
            graphs.warn_of_replays(self)
            self._plan = plan = None
            plan = make_plan(self)
            self.backends_in_use = plan.backends_in_use
            now = plan.gatherer.gather(self)
            if now is None:
                raise RuntimeError(
                    f"{type(self).__name__}: a parameter or gradient changed while its step was "
                    f"being planned. Do not train a model from several threads at once."
                )
        present, grads = now
        if present:
            if not capturing and plan.write_counts.edited():
                self._warn_of_edits(plan)
            self._plan = None  # a step that fails may leave sums half done: plan anew then
            self._run(plan, rows, grads, present, capturing)
        self._plan = plan.for_later()
        return loss

    def _run(
        self, plan: Plan, rows: list[tuple], grads: list, present: int, capturing: bool
    ) -> None:
        # torch.amp.GradScaler sets these for the time of a step and deletes them afterwards.
        grad_scale, found_inf = getattr(self, "grad_scale", None), getattr(self, "found_inf", None)
        if grad_scale is not None:
            checks.amp_tensor("grad_scale", grad_scale)
        if found_inf is not None:
            checks.amp_tensor("found_inf", found_inf)
        try:
            for launch in plan.launches:
                launch.set_rows(rows)
                launch.grads = grads
                launch.take_amp(grad_scale, found_inf)
            if capturing:
                graphs.capture(self, plan, rows, grad_scale, found_inf)
            else:
                for launch in plan.launches:
                    launch.step_table.send()
            plan.write_counts.announce_step()
            for each in plan.rounds(self, capturing):
                each.run()
        finally:
            for launch in plan.launches:
                launch.grads = []  # or they would outlive zero_grad
        for touched in plan.touched.values():
            touched.put_back()
        if plan.grad_norm_sq is not None:
            self._norm_sq = plan.grad_norm_sq
        plan.write_counts.count_step(present)

    def _warn_of_a_lost_scale(self) -> None:
        """Warn if a scaler has asked whether this step unscales, and its scale is lost."""
        if getattr(self, "found_inf", None) is None and self._step_supports_amp_scaling:
            warn(
                f"{type(self).__name__}: a GradScaler has asked whether step() unscales gradients, "
                f"and no scale has arrived: if they are scaled, they are used so. A wrapper with a "
                f"step() of its own must pass on grad_scale and found_inf; or assign "
                f"`optimizer._step_supports_amp_scaling = False`: then the scaler unscales."
            )
        self._asked_to_unscale = False  # last, as a warning may raise

    def _checked_rows(self) -> list[tuple]:
        """Every group's hyper-parameters: checked, and in a new list, if an option changed."""
        if self._options is not None and self._options.holds(self.param_groups):
            return self._rows
        groups = self.param_groups
        if self._constant is not None and self._constant.holds(groups):
            for i, group in enumerate(groups):
                options.check_rate(self.where(i), group)
        else:
            require(type(self).__name__, 'its "param_groups"', groups, list)
            for i, group in enumerate(groups):
                require(self.where(i), "it", group, dict)
                self.check_group(self.where(i), group)
            kernels = [(self.variant(g), g["max_grad_norm"] is None) for g in groups]
            if kernels != self._kernels:
                self._plan = None
            self._kernels, self._constant = kernels, Watch(groups, without=("params", "lr"))
        self._rows = [(g["maximize"], options.clip_at(g), *self._hyper_values(g)) for g in groups]
        self._options = Watch(groups, without=("params",))
        return self._rows

    def bytes_moved(self) -> int:
        """Bytes of parameters, gradients and states that a step in this process reads and writes if
        no column has faded; 0 while none is planned (at first, and with sparse gradients)."""
        return sum(launch.bytes_moved() for launch in self._plan.launches) if self._plan else 0

    @property
    def last_grad_norm(self) -> torch.Tensor | None:
        """The norm of all gradients before clipping, 0-d float64 on the parameters' device, for
        logging: reading its value waits for the step. It is of the last step, skipped or not, with
        a gradient and ``max_grad_norm`` or ``skip_nonfinite``; None before such a step."""
        return None if self._norm_sq is None else self._norm_sq[0].sqrt()

    # State

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """As torch's; if a hyper-parameter is out of range, the whole group is refused."""
        super().add_param_group(param_group)
        group, where = self.param_groups[-1], self.where(len(self.param_groups) - 1)
        options.make_plain(group, self.defaults)
        self._plan = None
        try:
            options.check_choices(where, group, self._choices())
            self.check_group(where, group)
        except Exception:
            self.param_groups.pop()
            raise
        if self.capturable:
            graphs.make_live(group, self.defaults)
        options.warn_of_unknown(where, group, self.defaults)  # last, as a warning may raise
