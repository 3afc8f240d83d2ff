"""The bit matrix: case x mode x backend x shape set, six steps, every stored bit the reference's.

Select with markers, for example ``pytest -m "madam and bf16_master and triton"``.
"""

import re
from functools import cache
from itertools import product

import pytest
import torch
from fusedstep import testing
from fusedstep.testing import CASES, MODES, SHAPES

from tests import emulation
from tests.conftest import TESTED_BACKENDS, device_of

# Emulated by threads, interpreted, compiled for each combination, or sanitized: every case, mode
# and shape set runs there, but not every combination. `pytest --full-matrix` adds the rest.
SLOW = {"cuda-emulated", "triton", *(["cpu"] if emulation.SANITIZERS else [])}
# cases that see more: two states, the most states, sums by group, two passes and clipping
WITNESSES = ("adamw", "lamadam-released-amsgrad", "avagrad-released", "lamb")
EXTREMES = ("f32", "bf16-grad32-master-state16")  # modes that see every shape set


def wanted(case, mode, backend, shapes, full):
    if full:
        return True
    if backend not in SLOW:
        return shapes == "ragged" or mode.id in EXTREMES
    if shapes == "ragged":
        # float32 hides in which order a float64 scalar was computed
        return case.id in WITNESSES or mode.id in ("f32", "f64")
    if shapes == "swarm":  # hundreds of programs, each interpreted
        return case.id == WITNESSES[0] and mode.id == "f32"
    return case.id in WITNESSES and mode.id in EXTREMES


def cells(full):
    for backend, mode, case, shapes in product(TESTED_BACKENDS, MODES, CASES, SHAPES):
        if wanted(case, mode, backend, shapes, full):
            marks = {case.id.split("-")[0], mode.id, backend, shapes}
            yield pytest.param(
                case,
                mode,
                backend,
                shapes,
                id=f"{case.id}-{mode.id}-{backend}-{shapes}",
                marks=[getattr(pytest.mark, mark.replace("-", "_")) for mark in sorted(marks)],
            )


def pytest_generate_tests(metafunc):
    if metafunc.function is test_bits:
        full = metafunc.config.getoption("full_matrix")
        metafunc.parametrize("case, mode, backend, shapes", list(cells(full)))


@cache
def reference(case_id: str, mode_id: str, shapes: str):
    case = next(c for c in CASES if c.id == case_id)
    mode = next(m for m in MODES if m.id == mode_id)
    return testing.run(case, mode, shapes, "reference")


def test_bits(case, mode, backend, shapes):
    got = testing.run(case, mode, shapes, backend, device_of(backend))
    lines = testing.differences(got, reference(case.id, mode.id, shapes))
    assert not lines, "\n".join(lines)


def test_the_comparison_sees_one_bit():
    want = torch.tensor([1.0, -0.0, float("nan"), 2.0])
    got = torch.tensor([1.0, -0.0, -float("nan"), 2.0])
    assert testing.difference("p", got, want) is None
    assert "the first at 1: 0.0 (0x00000000) instead of -0.0 (0x80000000)" in testing.difference(
        "p", got.abs(), want.abs() * torch.tensor([1.0, -1.0, 1.0, 1.0])
    )
    assert testing.difference("p", torch.nextafter(want, want + 1), want)
    assert testing.difference("p", want.double(), want)


def after(case_id, mode_id):
    """The reference's values after the last step."""
    found = reference(case_id, mode_id, "ragged")
    return {name: v for name, v in found.items() if not name.startswith("before, ")}


def test_the_scenario_reaches_what_it_is_about():
    """Specials arrive, a gradient is missing once, a scaled step counts, a skipped one does not."""
    snapshot = after("madam-paper", "f32")
    steps = [int(v) for name, v in snapshot.items() if name.endswith(", step")]
    assert set(steps) == {4, 5}
    values = torch.cat([v.flatten().float() for n, v in snapshot.items() if n.endswith("exp_avg")])
    assert values.isnan().any() and values.isfinite().any()
    for mode, threshold in (("f32", 2.0**-25), ("f64", 2.0**-54)):
        faded = after("madam-faded", mode)
        assert all((v == 0).all() for n, v in faded.items() if n.endswith("beta_prod"))
        last = [v / 2e-5 for n, v in faded.items() if n.endswith("beta_prod_bound")]
        assert min(last) < threshold, "within the last step the column is not read"


@pytest.mark.parametrize("mode", MODES, ids=[mode.id for mode in MODES])
def test_what_is_compared_is_not_all_nan(mode):
    """Any NaN equals any NaN, and a norm spreads one over all parameters."""
    for case in CASES:
        snapshot = testing.run(case, mode, "ragged", "cpu")
        params = [v.flatten() for n, v in snapshot.items() if re.fullmatch(r"before, param \d+", n)]
        assert torch.cat(params).isfinite().double().mean() > 0.9, case.id
