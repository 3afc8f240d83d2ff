"""CUDA graphs: what a step that is being captured needs, and what a replay then follows.

A captured step reads its tables, counts and 0-d tensors anew in every replay; what the host decides
is decided once, during capture.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

import torch

from .warn import warn
from .watch import contents

if TYPE_CHECKING:
    from .optimizer import FusedOptimizer
    from .plan import Plan


def capturing() -> bool:
    """Whether torch's current stream records a CUDA graph instead of running."""
    return torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing()


def on_gpu(value: Any) -> bool:
    return isinstance(value, torch.Tensor) and value.device.type == "cuda"


def is_live(name: str, value: Any) -> bool:
    """Whether a group's option is one that may change during training."""
    if name == "momentum":  # 0 calls for another kernel
        return isinstance(value, torch.Tensor) or value != 0
    return name in ("lr", "weight_decay", "eps", "max_grad_norm") or name.startswith("beta")


def live_options(group: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A group's live options among ``names``, the optimizer's; other entries are its user's own."""
    return {name: group[name] for name in names if is_live(name, group[name])}


def live_numbers(group: dict[str, Any], names: Iterable[str]) -> dict[str, Any]:
    """A group's live options, pairs taken apart, that are not None."""
    found: dict[str, Any] = {}
    for name, value in live_options(group, names).items():
        if isinstance(value, (tuple, list)):
            found |= {f"{name}[{i}]": part for i, part in enumerate(value)}
        elif value is not None:
            found[name] = value
    return found


@torch.inference_mode(False)  # schedulers write into these outside of inference mode, too
def make_live(group: dict[str, Any], names: Iterable[str]) -> None:
    """Turn a group's live numbers into 0-d float64 tensors beside its parameters, or on the CPU
    where none of these has memory yet."""
    devices = (p.device for p in group["params"] if not p.is_meta)
    device = next(devices, torch.device("cpu"))

    def tensor(value):
        if isinstance(value, torch.Tensor):
            return value.to(device, copy=value.is_inference())
        return None if value is None else torch.tensor(value, dtype=torch.float64, device=device)

    for name, value in live_options(group, names).items():
        several = isinstance(value, (tuple, list))
        group[name] = type(value)(map(tensor, value)) if several else tensor(value)


def check(optimizer: FusedOptimizer) -> None:
    """Raise where a replay would not follow a hyper-parameter, or not take the step at all."""
    for g, group in enumerate(optimizer.param_groups):
        where, stepping = optimizer.where(g), [p for p in group["params"] if p.grad is not None]
        for p in stepping:
            if not on_gpu(p):
                raise RuntimeError(
                    f"{where} has a parameter on {p.device}: a CUDA graph records only work of a "
                    f"GPU, and no replay would update it. Step such parameters outside the graph."
                )
        for name, value in live_numbers(group, optimizer.defaults).items():
            if not on_gpu(value):
                raise RuntimeError(
                    f"{where}: {name} is {value!r}: a CUDA graph would keep this value in all of "
                    f"its replays. Make it a 0-d tensor on the GPU before the capture, for example "
                    f"by building the optimizer with capturable=True once its parameters are "
                    f"on the GPU. (Schedulers that cycle betas or momentum put numbers in place of "
                    f"tensors: pass them cycle_momentum=False.)"
                )
            for p in stepping:
                if p.device != value.device:
                    raise RuntimeError(
                        f"{where}: {name} is a tensor on {value.device}, and a parameter is on "
                        f"{p.device}, whose kernel cannot read it while a CUDA graph is captured. "
                        f"Give the parameters of each device a group of their own."
                    )


def check_plan(optimizer: FusedOptimizer, plan: Plan | None) -> None:
    """Raise where the step would have to be planned during capture."""
    if plan is None or not all(launch.step_table.can_capture() for launch in plan.launches):
        raise RuntimeError(
            f"{type(optimizer).__name__}: this step needs a plan and memory that a CUDA graph "
            f"cannot record. Take a step outside of the graph, with gradients for the same "
            f"parameters, right before each step that is captured. A step with sparse gradients "
            f"cannot be captured."
        )
    for device in {launch.device for launch in plan.launches}:
        with torch.cuda.device(device):
            recorded = capturing()
        if not recorded:
            raise RuntimeError(
                f"{type(optimizer).__name__}: it has parameters on {device}, whose current stream "
                f"is not part of the CUDA graph, and no replay would update them. Let it wait for "
                f"the stream that is captured, or give each device an optimizer of its own."
            )


def capture(optimizer: FusedOptimizer, plan: Plan, *read: Any) -> None:
    """Capture a step's tables, and keep what its replays read, all but gradients, as long as the
    optimizer lives."""
    tables = [launch.step_table.capture() for launch in plan.launches]
    optimizer._captured.append((plan, tables, contents(optimizer.state), *read))
    optimizer._in_graph = True


def warn_of_replays(optimizer: FusedOptimizer) -> None:
    """Warn, once after a capture, of a new plan: replays keep the old one, its sums and counts."""
    if not optimizer._in_graph:
        return
    optimizer._in_graph = False
    warn(
        f"{type(optimizer).__name__}: this step has other parameters, states or options than the "
        f"one that was captured, which replays of the CUDA graph still take. Capture again."
    )
