"""Many small networks trained at once, on scikit-learn's handwritten digits."""

from __future__ import annotations

import itertools
from functools import cache
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .runs import Runs

HELD_OUT = 297  # images


@cache
def digits() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Images [n, 64], of mean 0 and deviation 1 overall, and labels: training, then held out."""
    from sklearn.datasets import load_digits

    found = load_digits()
    images = torch.from_numpy(found.data).float()
    labels = torch.from_numpy(found.target).long()
    images = (images - images.mean()) / images.std()
    order = torch.randperm(len(images), generator=torch.Generator().manual_seed(0))
    images, labels = images[order], labels[order]
    return images[HELD_OUT:], labels[HELD_OUT:], images[:HELD_OUT], labels[:HELD_OUT]


class Networks:
    """Fully connected ReLU networks [lines, runs], He's initial weights, the same in all lines.

    A line is a parameter group: see :class:`Runs`.
    """

    def __init__(self, lines: int, runs: int, widths: list[int]):
        self.shape, self.tensors = (lines, runs), []
        for i, sizes in enumerate(itertools.pairwise(widths)):
            self._add_layer(*sizes, torch.Generator().manual_seed(i))

    def _add_layer(self, fan_in: int, fan_out: int, generator: torch.Generator) -> None:
        runs = self.shape[1]
        weight = torch.randn(runs, fan_in, fan_out, generator=generator)
        self._add(weight * (2 / fan_in) ** 0.5)
        self._add(torch.zeros(runs, 1, fan_out))

    def _add(self, start: Tensor) -> None:
        self.tensors.append(Runs(start.expand(self.shape[0], *start.shape)))
        self.tensors[-1].x.requires_grad_()

    def groups(self, *options: dict[str, Any]) -> list[dict[str, Any]]:
        params = zip(*(tensor.lines for tensor in self.tensors))
        return [{"params": list(own), **more} for own, more in zip(params, options, strict=True)]

    def logits(self, images: Tensor) -> Tensor:
        """[lines, runs, n, classes], from images [n, 64] shared by all, or [runs, n, 64]."""
        x = images.expand(*self.shape, *images.shape[-2:])
        pairs = list(zip(self.tensors[::2], self.tensors[1::2], strict=True))
        for weight, bias in pairs[:-1]:
            x = F.relu(x @ weight.x + bias.x)
        weight, bias = pairs[-1]
        return x @ weight.x + bias.x

    def losses(self, images: Tensor, labels: Tensor) -> Tensor:
        """The cross entropy of each network, [lines, runs]."""
        return cross_entropy(self.logits(images), labels)

    def backward(self, images: Tensor, labels: Tensor) -> Tensor:
        """Fill the gradients; returns the losses. One that is not finite affects no other."""
        for tensor in self.tensors:
            tensor.x.grad.zero_()
        losses = self.losses(images, labels)
        losses.sum().backward()
        return losses.detach()


def cross_entropy(logits: Tensor, labels: Tensor) -> Tensor:
    labels = labels.expand(logits.shape[:-1])
    return -logits.log_softmax(-1).gather(-1, labels[..., None])[..., 0].mean(-1)


def batches(runs: int, size: int):
    """Endless batches, drawn separately for each run: images [runs, size, 64] and labels."""
    images, labels, *_ = digits()
    generator = torch.Generator().manual_seed(0)
    while True:
        index = torch.randint(len(images), (runs, size), generator=generator)
        yield images[index], labels[index]
