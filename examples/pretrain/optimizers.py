"""From a name on the command line to an optimizer class that is known to work."""

import importlib
import sys
from argparse import Namespace
from types import ModuleType

import torch
from torch.optim import Optimizer

from .options import Refusal


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


def try_optimizer(optimizer_class: type[Optimizer], options: Namespace, device: torch.device):
    """One step on a tiny layer, so that a wrong argument is told now and in one line."""
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


def backend_of(optimizer: Optimizer, device: torch.device) -> str:
    """Who computes the step: the backend fusedstep picks for the device, or torch."""
    package = type(optimizer).__module__.partition(".")[0]
    if package != "fusedstep":
        return package
    return importlib.import_module("fusedstep.backends").choose(optimizer.backend, device).name


def qualified_name(optimizer_class: type[Optimizer]) -> str:
    """The shortest dotted path: `torch.optim.AdamW`, though it lives in `torch.optim.adamw`."""
    name = optimizer_class.__qualname__
    path = optimizer_class.__module__
    while (parent := path.rpartition(".")[0]) and hasattr(sys.modules.get(parent), name):
        path = parent
    return f"{path}.{name}"
