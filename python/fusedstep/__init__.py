"""Fused optimizers for pretraining transformers: one step, one launch, the same bits everywhere."""

from .adamw import Adam, AdamW
from .backends import available_backends
from .lamadam import LaMAdam
from .madam import MAdam
from .version import __version__

__all__ = ["Adam", "AdamW", "LaMAdam", "MAdam", "__version__", "available_backends"]
