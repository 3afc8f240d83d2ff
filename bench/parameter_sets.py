"""Shapes of parameters, in the groups in which a training loop hands them to an optimizer."""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from itertools import chain, pairwise

Shape = tuple[int, ...]


@dataclass(frozen=True)
class ParameterSet:
    name: str
    groups: tuple[tuple[Shape, ...], ...]
    bucket: bool = False  # whether gradients are parts of one buffer, none of which is aligned

    @property
    def tensors(self) -> int:
        return sum(map(len, self.groups))

    @property
    def parameters(self) -> int:
        return sum(math.prod(shape) for shape in chain(*self.groups))

    @property
    def small(self) -> bool:
        """Whether the host's time counts, because no tensor has much work for a device."""
        return max(math.prod(shape) for shape in chain(*self.groups)) < 1000


def bert(vocab: int, hidden: int, layers: int, inner: int, positions: int) -> list[Shape]:
    """BertForPreTraining: embeddings, encoder, pooler, MLM and NSP heads; the decoder is tied."""
    norm = [(hidden,), (hidden,)]

    def linear(rows: int, columns: int) -> list[Shape]:
        return [(rows, columns), (rows,)]

    layer = [
        *(3 * linear(hidden, hidden)), *linear(hidden, hidden), *norm,
        *linear(inner, hidden), *linear(hidden, inner), *norm,
    ]  # fmt: skip
    embeddings = [(vocab, hidden), (positions, hidden), (2, hidden), *norm]
    heads = [*linear(hidden, hidden), *linear(hidden, hidden), *norm, (vocab,), *linear(2, hidden)]
    return [*embeddings, *(layers * layer), *heads]


def gpt2(vocab: int, hidden: int, layers: int, positions: int) -> list[Shape]:
    """GPT2LMHeadModel; the head is tied. Its linear layers store (inputs, outputs)."""
    norm = [(hidden,), (hidden,)]

    def linear(inputs: int, outputs: int) -> list[Shape]:
        return [(inputs, outputs), (outputs,)]

    layer = [
        *norm, *linear(hidden, 3 * hidden), *linear(hidden, hidden),
        *norm, *linear(hidden, 4 * hidden), *linear(4 * hidden, hidden),
    ]  # fmt: skip
    return [(vocab, hidden), (positions, hidden), *(layers * layer), *norm]


MODELS = {
    "bert-base": bert(30_522, 768, 12, 3072, 512),
    "bert-large": bert(30_522, 1024, 24, 4096, 512),
    "gpt2-xl": gpt2(50_257, 1600, 48, 1024),
}
UNIFORM = {"tiny": "400x8", "swarm": "10000x64"}
AXES = {  # what the cost of a step grows with
    "parameters": [f"1x{n}@1" for n in (10**4, 10**5, 10**6, 10**7, 10**8, 4 * 10**8, 10**9)],
    "tensors": [f"{n}x8@1" for n in (10, 30, 100, 300, 1000, 3000, 10_000)],
    "groups": [f"465x8@{n}" for n in (1, 2, 5, 15, 50, 150, 465)],
}
BUCKET = "-bucket"
HELP = (
    f"{', '.join([*MODELS, *UNIFORM])}; a model's name with {BUCKET}: gradients are parts of one "
    f"buffer, not aligned; TENSORSxELEMENTS or TENSORSxELEMENTS@GROUPS; or a series of those: "
    f"{', '.join(AXES)}"
)


def parse(name: str) -> list[ParameterSet]:
    """The sets that a name stands for: one, or the points of an axis.

    Raises:
        ValueError: no set has this name.
    """
    if name in AXES:
        return [parameter_set for point in AXES[name] for parameter_set in parse(point)]
    model = name.removesuffix(BUCKET)
    if model in MODELS:  # decay and no decay, as Trainer makes them
        matrices = tuple(shape for shape in MODELS[model] if len(shape) > 1)
        others = tuple(shape for shape in MODELS[model] if len(shape) == 1)
        return [ParameterSet(name, (matrices, others), bucket=name != model)]
    match = re.fullmatch(r"(\d+)x(\d+)(?:@(\d+))?", UNIFORM.get(name, name))
    tensors, elements = (int(match[1]), int(match[2])) if match else (0, 0)
    groups = int(match[3]) if match and match[3] else min(2, tensors)
    if not 0 < groups <= tensors or elements == 0:
        raise ValueError(f"there is no set {name!r}; there are {HELP}")
    ends = [tensors * i // groups for i in range(groups + 1)]
    return [ParameterSet(name, tuple(((elements,),) * (b - a) for a, b in pairwise(ends)))]
