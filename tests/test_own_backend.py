"""Backends of users' own: docs/kernels.md."""

import json
import pickle
import runpy
import sys
from pathlib import Path

import fusedstep
import pytest
from fusedstep import testing
from fusedstep.backends import BACKENDS, Backend, CpuBackend, TritonBackend, register
from fusedstep.reference_backend import ReferenceBackend

from bench import __main__ as command
from tests.benchmark import little_work  # noqa: F401, a fixture
from tests.conftest import TESTED_BACKENDS, device_of
from tests.test_docs import ROOT, add_named_blocks
from tests.training import assert_same, give_gradients, model, stored, train

# One for each way to have states, counts and carried scalars, and one that is refused.
EXAMPLES = ("adamw-capturable", "lamadam-faded", "madgrad-paper", "lamb")


@pytest.fixture(autouse=True)
def known():
    """Forget, after each test, what it registered."""
    before = dict(BACKENDS)
    yield
    BACKENDS.clear()
    BACKENDS.update(before)


class Tensors(ReferenceBackend):
    name = "tensors"


class Level(CpuBackend):
    name = "level"


@pytest.mark.parametrize("mine", [Tensors, Level])
def test_a_registered_backend_takes_steps(mine):
    """Also the second step of one that takes tensors, which a plan keeps for it."""
    register(mine())
    runs = {}
    for name in (mine.name, "reference"):
        params = model()
        optimizer = fusedstep.MAdam(params, backend=name)
        train(optimizer, params, 3)
        assert optimizer.backends_in_use == {"cpu": name}
        assert "Launch(" in repr(optimizer._plan.launches), "with and without its entries"
        runs[name] = stored(optimizer, params)
    assert_same(*runs.values())
    assert mine.name in fusedstep.available_backends()


def test_another_of_the_same_name_takes_its_place():
    first, second = Level(), Level()
    register(first)
    register(second)
    assert BACKENDS["level"] is second


@pytest.mark.parametrize("name", ["auto", "cpu"])
def test_a_name_that_is_taken_is_refused(name, monkeypatch):
    monkeypatch.setattr(Level, "name", name)
    before = dict(BACKENDS)
    with pytest.raises(ValueError, match=f"the name '{name}' is taken: fusedstep has auto, cuda"):
        register(Level())
    assert before == BACKENDS


class Unnamed(Backend):
    why_not = prepare = apply = None


@pytest.mark.parametrize("bad", [Level, Unnamed(), object()], ids=["class", "unnamed", "other"])
def test_what_is_no_backend_is_refused(bad):
    with pytest.raises(TypeError, match="is no backend. Register an object, not its class, that"):
        register(bad)


def test_one_that_lacks_a_function_cannot_be_made():
    class Half(Backend):
        name = "half"
        why_not = prepare = None

    with pytest.raises(TypeError, match="abstract .*apply"):
        Half()


def test_tensors_that_were_not_asked_for_are_missed():
    """A backend that went over none of them would leave out the second step unseen."""

    class Forgetful(Tensors):
        name, takes_tensors = "forgetful", False

    register(Forgetful())
    params = model()
    optimizer = fusedstep.AdamW(params, backend="forgetful")
    train(optimizer, params, 1)
    before = stored(optimizer, params)
    with pytest.raises(RuntimeError, match="entries after its first step.* Set takes_tensors"):
        train(optimizer, params, 1)
    assert_same(stored(optimizer, params), before)


def test_one_that_was_pickled_elsewhere_is_missed_by_name():
    register(Level())
    params = model()
    optimizer = pickle.loads(pickle.dumps(fusedstep.AdamW(params, backend="level")))
    del BACKENDS["level"]
    give_gradients(optimizer.param_groups[0]["params"])
    with pytest.raises(RuntimeError, match="backend 'level' is not registered here. Import the"):
        optimizer.step()


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    """A folder with the files of the page."""
    add_named_blocks(ROOT / "docs" / "kernels.md", tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "persistent", raising=False)  # another test's
    return tmp_path


needs_triton = pytest.mark.skipif("triton" not in TESTED_BACKENDS, reason="it is in Triton")


@needs_triton
@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # the interpreter's, of inf and NaN
def test_the_pages_triton_kernel_has_the_references_bits(folder, request, monkeypatch, capsys):
    if not request.config.getoption("--full-matrix"):
        some = [case for case in testing.CASES if case.id in EXAMPLES]
        monkeypatch.setattr(testing, "CASES", some)
    runpy.run_path(str(folder / "compare.py"))
    said = dict(line.split(": ", 1) for line in capsys.readouterr().out.splitlines())
    assert len(said) == 2 * len(testing.CASES)
    served = [words for words in said.values() if words == "equal"]
    refused = [words for words in said.values() if words.startswith("persistent: only float32")]
    assert len(served) >= 6 and len(refused) >= 2 and len(served + refused) == len(said)


@needs_triton
def test_what_inherits_tritons_need_not_ask_it_first():
    class Anywhere(TritonBackend):
        name = "anywhere"

        def why_not(self, device):
            return None

    register(Anywhere())
    found = []
    for name, device in (("anywhere", device_of("triton")), ("reference", "cpu")):
        optimizer = fusedstep.AdamW(params := model(device=device), backend=name)
        train(optimizer, params, 1)
        found.append(stored(optimizer, params))
    assert_same(*found)


@needs_triton
def test_the_pages_triton_kernel_is_measured(folder, capsys):
    rows = folder / "rows.json"
    arguments = ["--import", "persistent", "--backends", "persistent", "--set", "2x300"]
    more = ["--algorithms", "AdamW", "--peers", "none", "--rounds", "2", "--out", str(rows)]
    assert command.main([*arguments, *more]) == 0, capsys.readouterr()
    ours = json.loads(rows.read_text())["rows"]
    assert {row["backend"] for row in ours} == {"persistent"}


def test_one_that_leaves_out_steps_is_not_measured(tmp_path, capsys):
    """Otherwise it would be the fastest."""

    class Idle(Tensors):
        name = "idle"

        def apply(self, launch, work):
            pass

    register(Idle())
    rows = ["--set", "2x300", "--algorithms", "AdamW", "--peers", "none", "--rounds", "2"]
    assert command.main([*rows, "--backends", "idle", "--out", str(tmp_path / "rows.json")]) == 1
    assert "after 3 steps the counts are {0}" in capsys.readouterr().out
