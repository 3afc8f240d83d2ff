"""Fused optimizers for pretraining transformers: few launches, the same bits everywhere."""

from .adamomentum import AdaMomentum
from .adamw import Adam, AdamW
from .avagrad import AvaGrad, AvaGradW
from .backends import available_backends, why_unavailable
from .delayed_adam import DelayedAdam
from .lamadam import LaMAdam
from .lamb import LAMB
from .laprop import LaProp
from .madam import MAdam
from .madgrad import MADGRAD
from .version import __version__

__all__ = [
    "LAMB",
    "MADGRAD",
    "AdaMomentum",
    "Adam",
    "AdamW",
    "AvaGrad",
    "AvaGradW",
    "DelayedAdam",
    "LaMAdam",
    "LaProp",
    "MAdam",
    "__version__",
    "available_backends",
    "why_unavailable",
]
