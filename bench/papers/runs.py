"""Many runs as one tensor: what the experiments share."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

OURS = {"form": "paper", "backend": "cpu"}  # how every experiment builds our classes


class Runs:
    """Runs in lines: each line is a parameter, so it can be a group with its own learning rate,
    and one optimizer steps all runs of all lines.

    Only for optimizers in which no element's step depends on other elements.
    """

    def __init__(self, start: Tensor):
        self.x = start.detach().clone()  # [lines, ...]
        self.x.grad = torch.zeros_like(self.x)
        self.lines = [torch.nn.Parameter(line) for line in self.x]
        for line, grad in zip(self.lines, self.x.grad):
            line.grad = grad

    def groups(self, *options: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"params": [line], **own} for line, own in zip(self.lines, options, strict=True)]


def marks(steps: int, count: int = 60) -> list[int]:
    """Steps to record at: the first, the last, and between them evenly on a log scale."""
    return sorted({round(math.exp(math.log(steps) * i / (count - 1))) for i in range(count)})


def standard_error(values: Tensor) -> Tensor:
    return values.std(-1) / math.sqrt(values.shape[-1])
