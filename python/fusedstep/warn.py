"""Warnings that name the line of whoever uses the package."""

import os
import sys
import warnings

import torch

_WITHIN = tuple(os.path.dirname(os.path.abspath(f)) + os.sep for f in (__file__, torch.__file__))


def warn(message: str) -> None:
    """Issue a ``UserWarning`` as of the nearest caller outside of torch and this package: hooks,
    schedulers and scalers wrap ``step`` in any number of calls."""
    level, frame = 1, sys._getframe()
    while frame.f_back is not None and frame.f_code.co_filename.startswith(_WITHIN):
        level, frame = level + 1, frame.f_back
    warnings.warn(message, stacklevel=level)
