"""The reference engine: one tensor at a time, in the order of docs/numerics.md."""

from dataclasses import dataclass
from importlib import import_module
from types import ModuleType

import numpy as np

from .numerics import check_environment, div, narrow, select, sqrt, square, tree, widen

CHUNK = 16384  # elements; a constant of the law (N7), kChunk in csrc/core/launch.h
OWN_HYPERS = 2  # of a row, before the rule's: maximize, max_grad_norm; kRuleHyper there


@dataclass(frozen=True)
class Facts:
    """What a rule is for a variant, and what holds where its module says nothing (RuleDefaults in
    csrc/core/rule.h). A module has these names, with a value or a tuple of one for each variant."""

    HYPERS: int
    STATES: int
    CARRIED: int = 0
    FADING: int = -1
    SUMS: int = 0
    EMITS: bool = False
    COUNTED: bool = False
    KEEPS_ABSENT: bool = False
    READS_GRAD: bool = True
    READS_PARAM: bool = True
    MOVES_PARAM: bool = True
    READ_ONLY: int = 0
    SERVES_ALL: bool = False
    COUNTS_ALL: bool = False

    @property
    def takes(self) -> tuple[int, int, int]:
        """How many hyper-parameters, states and carried scalars a kernel takes."""
        return self.HYPERS, self.STATES, self.CARRIED

    @property
    def keeps_sums(self) -> bool:
        """Whether a segment's sums stay where their count is 0: then nobody took part."""
        return self.COUNTED and not self.KEEPS_ABSENT


def module_of(rule: str) -> ModuleType:
    return import_module(f"{__package__}.{rule}")


def facts(rule: str, variant: int) -> Facts:
    said = {n: v for n, v in vars(module_of(rule)).items() if n in Facts.__dataclass_fields__}
    return Facts(**{n: v[variant] if isinstance(v, tuple) else v for n, v in said.items()})


def gradient_coefficient(maximize: float, max_grad_norm: float, norm_sq: float | None):
    """``min(1, max_grad_norm / (norm + 1e-6))``, negative where the step ascends."""
    coefficient = np.float64(1.0)
    if norm_sq is not None and max_grad_norm != np.inf:
        coefficient = np.float64(max_grad_norm) / (sqrt(np.float64(norm_sq)) + 1e-6)
        coefficient = select(coefficient > 1.0, 1.0, coefficient)
    return -coefficient if maximize else coefficient


def chunk_sums(out: np.ndarray) -> list[np.float64]:
    """The sum of squares of every chunk of a tensor (N7)."""
    squares = square(out)
    return [tree(squares[i : i + CHUNK]) for i in range(0, len(squares), CHUNK)]


def step_tensor(
    rule, variant, opmath, *, hyper, t, carried, grad, param, states, master, grad_scale, norm_sq,
    sums,
):  # fmt: skip
    """One pass over one tensor.

    Args:
        rule: stem of the rule's module.
        variant: bit mask of the rule's template constants.
        opmath: ``np.float32`` or ``np.float64``.
        hyper: float64 row: maximize, max_grad_norm, the rule's hyper-parameters.
        t: the count of this step, from 1.
        carried: float64 scalars carried from step to step.
        grad, param, master: ``(dtype name, array)``, bfloat16 as uint16 bits; grad is None where
            the rule reads none, master where there is none.
        states: list of ``(dtype name, array)``.
        grad_scale: float32 loss scale, or None.
        norm_sq: squared norm to clip by, or None.
        sums: float64 ``[SUMS]`` of the tensor's segment before this pass, or None.

    Returns:
        ``(param, master, states, carried, partial)``: new arrays of the given dtypes, and float64
        ``[SUMS, chunks]``, what the pass adds to the sums.
    """
    check_environment()
    module, rule_facts = module_of(rule), facts(rule, variant)
    carried = np.array(carried, dtype=np.float64)
    with_sums = [np.asarray(sums), variant] if rule_facts.SUMS else []
    out: list = [[]] if rule_facts.SUMS else []
    hyper = np.asarray(hyper, dtype=np.float64)
    with np.errstate(all="ignore"):
        s = module.scalars(hyper[OWN_HYPERS:], int(t), carried, opmath, *with_sums)
        g = None
        if grad is not None:
            g = widen(grad[1], grad[0], opmath)
            if grad_scale is not None:
                g = div(g, opmath(grad_scale))
            g = g * opmath(gradient_coefficient(hyper[0], hyper[1], norm_sq))
        dtype, memory = master or param
        p = widen(memory, dtype, opmath)
        state = [widen(array, dtype, opmath) for dtype, array in states]
        p = module.update(s, g, p, state, variant, *out)
        return (
            narrow(p, param[0]),
            None if master is None else narrow(p, master[0]),
            [narrow(x, dtype) for x, (dtype, _) in zip(state, states, strict=False)],
            carried,
            [chunk_sums(column) for column in out[0]] if out else [],
        )
