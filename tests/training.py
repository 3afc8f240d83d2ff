"""Small models and their training, shared by the tests of behaviour."""

import pytest
import torch
from fusedstep import testing

CLASSES = sorted({case.cls for case in testing.CASES}, key=lambda cls: cls.__name__)
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__.lower())


def model(*shapes, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or ((4, 5), (6,), (1,))
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes
    ]


def give_gradients(params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


def train(optimizer, params, steps, seed=0):
    for t in range(steps):
        give_gradients(params, seed + t)
        optimizer.step()


def stored(optimizer, params):
    result = {f"param {i}": p.detach().clone() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        result |= {f"{i} {name}": v.clone() for name, v in optimizer.state[p].items()}
    return result


def assert_same(got, want):
    lines = testing.differences(got, want)
    assert not lines, "\n".join(lines)
