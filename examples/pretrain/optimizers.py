"""From a name on the command line to an optimizer class that is known to work."""

import importlib
import sys
from argparse import Namespace
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch.optim import Optimizer

from .options import Refusal


class Setting(NamedTuple):
    """Defaults for what the command line leaves out, found by a few short runs."""

    lr: float = 3e-3
    weight_decay: float = 0.1
    option: dict[str, Any] = {}


SETTINGS = {
    "MAdam": Setting(1e-2),
    "LaMAdam": Setting(1e-2),
    "LaProp": Setting(5e-3, 1e-4),  # a decay that is not multiplied by lr
    "AdaMomentum": Setting(1e-3),
    "AvaGrad": Setting(1.0, 0.0, {"eps": 1e-3}),
    "AvaGradW": Setting(1.0, 1e-4, {"eps": 1e-3}),
    "DelayedAdam": Setting(5e-3, 0.0),
    "MADGRAD": Setting(1e-2, 0.0),
    "LAMB": Setting(2e-2),
}


def find_optimizer(name: str) -> type[Optimizer]:
    """A class of fusedstep by its name in any case, or of any module by its dotted path."""
    module_name, _, class_name = name.rpartition(".")
    module = import_module(name, module_name or "fusedstep")
    if module_name:
        found = getattr(module, class_name, None)
    else:
        found = public_optimizers(module).get(name.lower())
    if not is_optimizer(found):
        known = ", ".join(public_optimizers(module)) or "none"
        raise Refusal(
            f"--optimizer {name}: no optimizer of that name in {module.__name__}; "
            f"it has {known}, and others go by their dotted path, as torch.optim.AdamW"
        )
    return found


def import_module(name: str, module_name: str) -> ModuleType:
    try:
        return importlib.import_module(module_name)
    except ImportError as error:
        raise Refusal(
            f"--optimizer {name}: {module_name} cannot be imported ({error}); "
            "install it with pip, or give a dotted path such as torch.optim.AdamW"
        ) from error


def public_optimizers(module: ModuleType) -> dict[str, type[Optimizer]]:
    """The module's optimizers by lower-case name."""
    public = {name: getattr(module, name) for name in sorted(getattr(module, "__all__", ()))}
    return {name.lower(): value for name, value in public.items() if is_optimizer(value)}


def is_optimizer(value: object) -> bool:
    return isinstance(value, type) and issubclass(value, Optimizer) and value is not Optimizer


def is_fused(optimizer_class: type[Optimizer]) -> bool:
    return optimizer_class.__module__.partition(".")[0] == "fusedstep"


def complete(options: Namespace, optimizer_class: type[Optimizer]) -> None:
    """Fill in the optimizer's defaults for what the command line leaves out."""
    known = is_fused(optimizer_class)
    setting = SETTINGS.get(optimizer_class.__name__, Setting()) if known else Setting()
    if options.lr is None:
        options.lr = setting.lr
    if options.weight_decay is None:
        options.weight_decay = setting.weight_decay
    for name in ("lr", "weight_decay"):
        if name in dict(options.option):
            raise Refusal(f"--option {name}: pass --{name.replace('_', '-')} instead")
    options.option = list({**setting.option, **dict(options.option)}.items())


def try_optimizer(optimizer_class: type[Optimizer], options: Namespace, device: torch.device):
    """One step on a tiny layer, so that a wrong argument is reported now and in one line."""
    layer = torch.nn.Linear(2, 2, device=device)
    layer(torch.ones(1, 2, device=device)).sum().backward()
    groups = [
        {"params": [layer.weight], "weight_decay": options.weight_decay},
        {"params": [layer.bias], "weight_decay": 0.0},
    ]
    try:
        optimizer_class(groups, lr=options.lr, **dict(options.option)).step()
    except (TypeError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        arguments = "".join(f" --option {name}={value}" for name, value in options.option)
        raise Refusal(
            f"--optimizer {options.optimizer} --lr {options.lr:g} "
            f"--weight-decay {options.weight_decay:g}{arguments}: "
            f"{optimizer_class.__name__} says {reason!r}; change the argument it names"
        ) from error


def backend_of(optimizer: Optimizer) -> str:
    """Who computed the steps: fusedstep's backend, or torch."""
    if not is_fused(type(optimizer)):
        return type(optimizer).__module__.partition(".")[0]
    (name,) = optimizer.backends_in_use.values()
    return name


def qualified_name(optimizer_class: type[Optimizer]) -> str:
    """The shortest dotted path: `torch.optim.AdamW`, though it lives in `torch.optim.adamw`."""
    name = optimizer_class.__qualname__
    path = optimizer_class.__module__
    while (parent := path.rpartition(".")[0]) and hasattr(sys.modules.get(parent), name):
        path = parent
    return f"{path}.{name}"
