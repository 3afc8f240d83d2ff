"""What a version keeps of the ones before: their checkpoints load, and within a minor version
training goes on from them with the same bits.

``python -m tests.test_versions`` writes the file of the present version, once, when it is released;
CHANGELOG.md says what may change then.
"""

import copy
from pathlib import Path

import fusedstep
import pytest
import torch
from fusedstep.testing import CASES, MODES

from tests.training import assert_same

FOLDER = Path(__file__).parent / "checkpoints"
CELLS = {
    f"{case.id}-{mode.id}": (case, mode)
    for case in CASES
    for mode in MODES
    if mode.id == "f32" or (mode.id == "bf16-master" and not case.id.endswith("amsgrad"))
}


def numbers(shape, seed, dtype):
    """Some that are exact in every dtype, and the same in every version of torch."""
    return ((torch.arange(shape.numel()) * 37 + seed * 11) % 101 - 50).view(shape).div(64).to(dtype)


def made(case, mode, backend):
    shapes = [torch.Size((5,)), torch.Size((2, 3))]
    params = [mode.parameter(numbers(shape, 0, mode.param)) for shape in shapes]
    groups = [{"params": params[:1]}, {"params": params[1:], **dict(case.second_group)}]
    options = {**mode.options, **dict(case.options)}
    return params, case.cls(groups, backend=backend, **options)


def stepped(params, optimizer, steps):
    for t in steps:
        for p in params:
            p.grad = numbers(p.shape, t, p.dtype)
        optimizer.step()


def values(params):
    return {f"param {i}": p.detach().clone() for i, p in enumerate(params)}


def record(case, mode):
    params, optimizer = made(case, mode, "reference")
    stepped(params, optimizer, range(1, 4))
    before, saved = values(params), copy.deepcopy(optimizer.state_dict())
    stepped(params, optimizer, range(4, 6))
    return {"before": before, "optimizer": saved, "after": values(params)}


def minor(version):
    return version.split(".")[:2]


SAVED = {path.stem: torch.load(path, weights_only=True) for path in FOLDER.glob("*.pt")}


@pytest.mark.parametrize("backend", ["reference", "cpu"])
@pytest.mark.parametrize("version, cell", [(v, cell) for v in SAVED for cell in SAVED[v]])
def test_training_goes_on_from_a_checkpoint(version, cell, backend):
    saved = SAVED[version][cell]
    params, optimizer = made(*CELLS[cell], backend)
    with torch.no_grad():
        for p, value in zip(params, saved["before"].values(), strict=True):
            p.copy_(value)
    optimizer.load_state_dict(saved["optimizer"])
    stepped(params, optimizer, range(4, 6))
    if minor(version) == minor(fusedstep.__version__):
        assert_same(values(params), saved["after"])


def test_the_present_version_has_a_checkpoint_of_every_cell():
    assert SAVED[fusedstep.__version__].keys() == CELLS.keys()


if __name__ == "__main__":
    FOLDER.mkdir(exist_ok=True)
    records = {name: record(*cell) for name, cell in CELLS.items()}
    torch.save(records, FOLDER / f"{fusedstep.__version__}.pt")
