"""A small BERT on the documentation that comes with Python: the parts of examples/pretrain, whose
imports take seconds and wait until they are used."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor

LENGTH, VOCAB, DOCUMENTS = 32, 2000, 600


@cache
def blocks(device: str = "cpu") -> tuple[Tensor, Tensor]:
    """Blocks of token ids [n, LENGTH] on a device: training, then held out."""
    from examples.pretrain import corpus, mlm

    documents = corpus.python_documentation()[:DOCUMENTS]
    wordpiece = mlm.train_wordpiece(documents, VOCAB)
    cut = mlm.split_blocks(mlm.cut_blocks(documents, wordpiece, LENGTH))
    return tuple(part.to(device) for part in cut)


def bert(seed: int, width: int = 64, layers: int = 2) -> torch.nn.Module:
    from examples.pretrain import mlm

    torch.manual_seed(seed)
    return mlm.build_bert(VOCAB, width, layers, LENGTH)


def masked(ids: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Inputs with 15 % of the words replaced by [MASK], and labels for those words alone."""
    from examples.pretrain import mlm

    drawn = torch.rand(ids.shape, generator=generator, device=ids.device) < 0.15
    targets = drawn & (ids >= len(mlm.SPECIAL_TOKENS))
    return ids.masked_fill(targets, mlm.MASK), ids.masked_fill(~targets, mlm.NOT_A_TARGET)


def batches(seed: int, size: int, train: Tensor | None = None):
    """Endless masked batches of training blocks, drawn on the device that the blocks are on."""
    train = blocks()[0] if train is None else train
    generator = torch.Generator(train.device).manual_seed(seed)
    while True:
        index = torch.randint(len(train), (size,), generator=generator, device=train.device)
        yield masked(train[index], generator)


def masked_loss(model: torch.nn.Module, inputs: Tensor, labels: Tensor) -> Tensor:
    """The model's loss in a third of the time: logits of the masked words only."""
    from examples.pretrain import mlm

    asked = labels != mlm.NOT_A_TARGET
    states = model.bert(input_ids=inputs).last_hidden_state
    return torch.nn.functional.cross_entropy(model.cls(states[asked]), labels[asked])


@torch.no_grad()
def held_out_mean(loss: Callable[[Tensor, Tensor], Tensor], held_out: Tensor) -> float:
    """On the same masks every time."""
    inputs, labels = masked(held_out, torch.Generator(held_out.device).manual_seed(0))
    losses = [float(loss(*some)) for some in zip(inputs.split(64), labels.split(64))]
    return sum(losses) / len(losses)


def held_out_loss(model: torch.nn.Module, held_out: Tensor | None = None) -> float:
    held_out = blocks()[1] if held_out is None else held_out
    return held_out_mean(
        lambda inputs, labels: model(input_ids=inputs, labels=labels).loss, held_out
    )


def unigram_loss(train: Tensor, held_out: Tensor) -> float:
    """Held-out loss of the words' frequencies: what a model that ignores context can reach."""
    from examples.pretrain import mlm

    log_probs = torch.from_numpy(mlm.unigram_log_probs(train.cpu(), VOCAB)).to(train.device)
    return held_out_mean(
        lambda _, labels: -log_probs[labels[labels != mlm.NOT_A_TARGET]].mean(), held_out
    )
