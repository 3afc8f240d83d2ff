"""Small models and their training, shared by the tests of behaviour."""

import contextlib
import inspect
import io
import warnings

import fusedstep
import pytest
import torch
from fusedstep import testing
from fusedstep.options import Options
from fusedstep.reference.multi_tensor_apply import facts

from tests.conftest import TESTED_BACKENDS

CLASSES = sorted({case.cls for case in testing.CASES}, key=lambda cls: cls.__name__)
WITHOUT_SUMS = [cls for cls in CLASSES if not facts(cls.rule, 0).SUMS]
every_class = pytest.mark.parametrize("cls", CLASSES, ids=lambda cls: cls.__name__.lower())

# Triton's interpreter takes long for a launch: only one class with one pass, and one with sums, two
# passes and clipping. The bit matrix has all of them.
on_every_backend = pytest.mark.parametrize(
    "cls, backend",
    [
        pytest.param(cls, backend, id=f"{cls.__name__.lower()}-{backend}")
        for backend in TESTED_BACKENDS
        for cls in ((fusedstep.AdamW, fusedstep.LAMB) if backend == "triton" else CLASSES)
    ],
)


def name_of(value):
    """A test's name for a dict of options; of other parameters pytest makes its own."""
    return "-".join(value) or "plain" if isinstance(value, dict) else None


def arguments(cls):
    """A constructor's arguments and defaults, but for parameters and where and how to compute."""
    names = {*inspect.signature(cls).parameters, *Options.__annotations__}
    return {name: value for name, value in cls(model()).defaults.items() if name in names}


def model(*shapes, dtype=torch.float32, device="cpu", seed=0):
    generator = torch.Generator().manual_seed(seed)
    shapes = shapes or ((4, 5), (6,), (1,))
    return [
        torch.nn.Parameter(torch.randn(s, generator=generator).to(device, dtype)) for s in shapes
    ]


def parameters(sizes, device="cpu", dtypes=(torch.float32,)):
    """Flat ones of these sizes, with gradients; their dtypes take turns."""
    generator = torch.Generator().manual_seed(1)
    params = []
    for i, n in enumerate(sizes):
        dtype = dtypes[i % len(dtypes)]
        values = torch.randn(n, generator=generator, dtype=torch.float64)
        params.append(torch.nn.Parameter(values.to(device, dtype)))
        params[-1].grad = torch.randn(n, generator=generator, dtype=torch.float64).to(device, dtype)
    return params


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))


def give_gradients(params, seed=0):
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        p.grad = torch.randn(p.shape, generator=generator).to(p.device, p.dtype)


def imaginary_part(values, device="cpu"):
    """Of a conjugated tensor: a view of memory that holds the values' negatives."""
    values = -torch.tensor(values, device=device)
    return torch.complex(torch.zeros_like(values), values).conj().imag


def root(value):
    """The root as torch computes it, which on some processors is not the nearest float64."""
    return torch.tensor(value, dtype=torch.float64).sqrt()


def train(optimizer, params, steps, seed=0):
    for t in range(steps):
        give_gradients(params, seed + t)
        optimizer.step()


def stored(optimizer, params):
    result = {f"param {i}": p.detach().clone() for i, p in enumerate(params)}
    for i, p in enumerate(params):
        result |= {f"{i} {name}": v.clone() for name, v in optimizer.state[p].items()}
    for i, group in enumerate(optimizer.param_groups):
        sums = {n: v for n, v in group.items() if isinstance(v, torch.Tensor) and v.ndim}
        result |= {f"group {i} {name}": v.clone() for name, v in sums.items()}
    return result


def saved_and_loaded(value):
    file = io.BytesIO()
    torch.save(value, file)
    file.seek(0)
    return torch.load(file, map_location="cpu", weights_only=True)


@contextlib.contextmanager
def no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


@contextlib.contextmanager
def nothing_moves(params):
    before = [p.detach().clone() for p in params]
    yield
    assert all(map(torch.equal, params, before))


def assert_same(got, want):
    """Every bit, whichever devices they are on."""
    on_host = ({name: value.cpu() for name, value in found.items()} for found in (got, want))
    lines = testing.differences(*on_host)
    assert not lines, "\n".join(lines)
