"""The reference engine: one tensor at a time, in the order of docs/numerics.md."""

from importlib import import_module

import numpy as np

from .numerics import div, narrow, refuse_flushing, widen


def step_tensor(
    rule, variant, opmath, hyper, t, carried, grad, param, states, master=None, grad_scale=None
):
    """One step of one tensor.

    Args:
        rule: stem of the rule's module.
        variant: bit mask of the rule's template constants.
        opmath: ``np.float32`` or ``np.float64``.
        hyper: float64 row of hyper-parameters; entry 0 is ``maximize``.
        t: the count of this step, from 1.
        carried: float64 scalars carried from step to step.
        grad, param, master: ``(dtype name, array)``, bfloat16 as uint16 bits; master may be None.
        states: list of ``(dtype name, array)``.
        grad_scale: float32 loss scale, or None.

    Returns:
        ``(param, master, states, carried)``, new arrays of the given dtypes.
    """
    refuse_flushing()
    module = import_module(f"{__package__}.{rule}")
    carried = np.array(carried, dtype=np.float64)
    with np.errstate(all="ignore"):
        s = module.scalars(np.asarray(hyper, dtype=np.float64), int(t), carried, opmath)
        g = widen(grad[1], grad[0], opmath)
        if grad_scale is not None:
            g = div(g, opmath(grad_scale))
        g = g * opmath(-1 if hyper[0] else 1)
        dtype, memory = master or param
        p = widen(memory, dtype, opmath)
        state = [widen(array, dtype, opmath) for dtype, array in states]
        p = module.update(s, g, p, state, variant)
        return (
            narrow(p, param[0]),
            None if master is None else narrow(p, master[0]),
            [narrow(x, dtype) for x, (dtype, _) in zip(state, states, strict=True)],
            carried,
        )
