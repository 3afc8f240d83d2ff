"""A small BERT on the documentation that comes with Python: the parts of examples/pretrain."""

from __future__ import annotations

import sys
from functools import cache

import torch
from torch import Tensor

from ..results import ROOT

LENGTH, VOCAB, DOCUMENTS = 32, 2000, 600


def example(name: str):
    """A module of the example, which is no package of its own."""
    folder = str(ROOT / "examples")
    if folder not in sys.path:
        sys.path.append(folder)
    return __import__(f"pretrain.{name}", fromlist=["*"])


@cache
def blocks() -> tuple[Tensor, Tensor]:
    """Blocks of token ids [n, LENGTH], of training and held out."""
    mlm, documents = example("mlm"), example("corpus").python_documentation()[:DOCUMENTS]
    wordpiece = mlm.train_wordpiece(documents, VOCAB)
    return tuple(mlm.split_blocks(mlm.cut_blocks(documents, wordpiece, LENGTH)))


def bert(seed: int, width: int = 64, layers: int = 2) -> torch.nn.Module:
    torch.manual_seed(seed)
    return example("mlm").build_bert(VOCAB, width, layers, LENGTH)


def masked(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs in which 15 % of the words are [MASK], and labels that are these words alone."""
    mlm = example("mlm")
    targets = (torch.rand(ids.shape, generator=generator) < 0.15) & (ids >= len(mlm.SPECIAL_TOKENS))
    return ids.masked_fill(targets, mlm.MASK), ids.masked_fill(~targets, mlm.NOT_A_TARGET)


def batches(seed: int, size: int):
    """Masked batches of training blocks, for ever."""
    train, _ = blocks()
    generator = torch.Generator().manual_seed(seed)
    while True:
        index = torch.randint(len(train), (size,), generator=generator)
        yield masked(train[index], generator)


@torch.no_grad()
def held_out_loss(model: torch.nn.Module) -> float:
    """On the same masks every time."""
    inputs, labels = masked(blocks()[1], torch.Generator().manual_seed(0))
    losses = [
        float(model(input_ids=some, labels=those).loss)
        for some, those in zip(inputs.split(64), labels.split(64))
    ]
    return sum(losses) / len(losses)
