"""What the optimizers' constructors take, and how a step reads it."""

from __future__ import annotations

import inspect
import math
from collections.abc import Collection, Iterable, Sequence
from difflib import get_close_matches
from itertools import chain
from typing import Any, Generic, Literal, TypedDict, TypeVar

import torch

from . import checks
from .warn import warn

FORMS = ("paper", "released")
FLAGS = ("maximize", "amsgrad", "centered", "decoupled_weight_decay", "skip_zero_second_moment")
Hyper = float | torch.Tensor  # a number, or a 0-d float32 or float64 tensor that holds it
Value = TypeVar("Value")


class OptionsButClipping(TypedDict, total=False):
    """What all of them take: see :class:`~fusedstep.optimizer.FusedOptimizer`."""

    maximize: bool
    form: Literal["paper", "released"]
    backend: Literal["auto", "cuda", "triton", "cpu", "reference"] | str
    master_weights: bool
    state_dtype: torch.dtype | None
    skip_nonfinite: bool
    capturable: bool


class Options(OptionsButClipping, total=False):
    """The same with clipping, for which some classes have a default of their own."""

    max_grad_norm: Hyper | None


def is_wrapper(optimizer: Any) -> bool:
    """Whether our constructor has not run: as in Lightning's wrappers, which subclass the
    optimizer's class and forward what they lack; and in a subclass that has yet to call it."""
    return "_captured" not in vars(optimizer)


class Chosen(Generic[Value]):
    """An optimizer's option that is an attribute and may be assigned between steps: the value is
    checked, and the plan is discarded, unless the value is the one that it had.

    Args:
        choices: collections of allowed values, which may grow later.
    """

    def __init__(self, *choices: Iterable[Value]):
        self.choices = choices

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> Value:
        if optimizer is None:
            return self  # type: ignore[return-value]  # of the class itself
        try:
            return vars(optimizer)[self.name]
        except KeyError:  # a wrapper may subclass us and forward what it lacks
            lacks = f"{type(optimizer).__name__!r} object has no attribute {self.name!r}"
            raise AttributeError(lacks) from None

    def __set__(self, optimizer: Any, value: Value) -> None:
        if is_wrapper(optimizer) and hasattr(optimizer, "param_groups"):
            raise AttributeError(
                f"{type(optimizer).__name__} wraps an optimizer, and {self.name} has no effect on "
                f"the wrapper. Assign it to the optimizer itself, which Lightning's wrappers have "
                f"as `optimizer.optimizer`."
            )
        checks.one_of(type(optimizer).__name__, self.name, value, tuple(chain(*self.choices)))
        held = vars(optimizer).get(self.name, self)  # never itself a value
        if held is value and not isinstance(value, str):  # a name may mean another backend by now
            return
        optimizer._forget()  # first: an interrupt must not leave a new value with an old plan
        vars(optimizer)[self.name] = value


class OfGroups:
    """An option of each parameter group, not of the optimizer: assigning it to the optimizer, as
    options of the whole optimizer are, raises an error instead of having no effect."""

    def __set_name__(self, owner: type, name: str) -> None:
        self.name = name

    def __get__(self, optimizer: Any, owner: type | None = None) -> OfGroups:
        if optimizer is None:
            return self
        raise AttributeError(
            f"{type(optimizer).__name__}: {self.name} is an option of each parameter group. Use "
            f"`optimizer.param_groups[i][{self.name!r}]`."
        )

    def __set__(self, optimizer: Any, value: Any) -> None:
        self.__get__(optimizer)


def unknown_arguments(cls: type, unknown: Collection[str]) -> str:
    """The error message for arguments that a class's constructor does not have."""
    named = inspect.signature(cls).parameters.values()
    several = inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD
    known = [p.name for p in named if p.kind not in several]
    known += [name for name in Options.__annotations__ if name not in known]
    given = ", ".join(map(repr, unknown))
    remedies = [_likely(name, known, 0.6) for name in unknown]
    if {"fused", "foreach", "differentiable"} & {*unknown}:
        remedies.append("Leave out what chooses among torch's implementations.")
    if not any(remedies):
        remedies.append("Use one of these, or leave it out.")
    takes = f"{cls.__name__} has no argument {given}. It takes {', '.join(known)}."
    return " ".join([takes, *filter(None, remedies)])


def warn_of_unknown(where: str, group: dict[str, Any], known: Iterable[str]) -> None:
    """Warn of a group's entry that is spelled like an option. Others are its user's."""
    for name in group.keys() - {*known}:
        if isinstance(name, str) and (remedy := _likely(name, known, 0.8)):
            warn(f"{where}: {name!r} is no option, and has no effect. {remedy}")


def _likely(name: str, known: Iterable[str], likeness: float) -> str:
    """The question whether a known name was meant, if one is similar enough."""
    close = get_close_matches(name, [*known], 1, likeness)
    return f"Did you mean {close[0]}?" if close else ""


def check_choices(where: str, group: dict[str, Any], choices: dict[str, Any]) -> None:
    """Raise on an entry of a group that contradicts an option of the whole optimizer."""
    for name, value in choices.items():
        if group.get(name, value) != value:
            raise ValueError(
                f"{where}: {name} is {group[name]!r}, and it is an option of the whole optimizer, "
                f"which has {value!r}. Take it out of the group and pass it to the constructor."
            )


def check_common(where: str, group: dict[str, Any], names: Iterable[str]) -> None:
    """Raise on a common hyper-parameter of a group that is outside its range. ``names`` are all
    that the optimizer's class has; the class checks the others."""
    checks.max_grad_norm(where, group["max_grad_norm"])
    check_rate(where, group)
    checks.hyper_in(where, "weight_decay", group["weight_decay"], 0.0)
    if "eps" in names:
        checks.hyper_in(where, "eps", group["eps"], 0.0)
    if "betas" in names:
        checks.betas(where, group["betas"])
    checks.one_of(where, "form", group["form"], FORMS)
    checks.flags(where, group, *(name for name in FLAGS if name in names))


def check_rate(where: str, group: dict[str, Any]) -> None:
    """Raise on an lr of a group that is below 0 or no number."""
    checks.hyper_in(where, "lr", rate(group), 0.0)


def rate(group: dict[str, Any]) -> Hyper:
    """A group's lr; 0 where rounding took it below 0, as at the end of torch's LinearLR."""
    lr = group["lr"]
    return 0.0 if isinstance(lr, float) and -1e-12 < lr < 0.0 else lr


def clip_at(group: dict[str, Any]) -> Hyper:
    return math.inf if group["max_grad_norm"] is None else group["max_grad_norm"]


def make_plain(group: dict[str, Any], names: Iterable[str]) -> None:
    """Make tuples of the named options of a group that are sequences of another kind, such as
    Hydra's ``ListConfig``: a step sees no change within those."""
    for name in names:
        value = group[name]
        if isinstance(value, Sequence) and not isinstance(value, (str, tuple, list)):
            group[name] = tuple(value)
