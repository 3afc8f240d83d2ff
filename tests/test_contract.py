"""The layers hold: arrows one way, every stem in every layer, nothing left over."""

import ast
import inspect
import re
import subprocess
from itertools import count
from pathlib import Path
from typing import get_args, get_type_hints

import fusedstep
import numpy as np
import pytest
import torch
from fusedstep import testing
from fusedstep.backends import CpuBackend
from fusedstep.make_plan import GRAD_NORM
from fusedstep.optimizer import FusedOptimizer
from fusedstep.reference import multi_tensor_apply as reference

from tests import emulation
from tests.conftest import TESTED_BACKENDS, device_of

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "python" / "fusedstep"
LAYERS = (
    "csrc/rules/{}.h", "csrc/cpu/{}.cpp", "kernels/{}.cu", "kernels/{}.py",
    "python/fusedstep/{}.py", "python/fusedstep/reference/{}.py", "docs/algorithms/{}.md",
)  # fmt: skip
OPTIMIZERS = [
    cls for cls in map(fusedstep.__dict__.get, fusedstep.__all__) if isinstance(cls, type)
]
RULES = sorted({cls.rule for cls in OPTIMIZERS})


def tracked(*patterns: str) -> list[Path]:
    listed = ["git", "ls-files", "--cached", "--others", "--exclude-standard", *patterns]
    names = subprocess.run(
        listed, cwd=ROOT, check=True, capture_output=True, text=True
    ).stdout.split()
    return [ROOT / name for name in names if (ROOT / name).exists()]


def includes(path: Path) -> set[str]:
    return set(re.findall(r'#include [<"](.+?)[>"]', path.read_text()))


def imports(path: Path) -> set[str]:
    """Modules a file imports, relative ones as ``fusedstep.…`` or ``fusedstep.reference.…``."""
    package = "fusedstep.reference" if path.parent.name == "reference" else "fusedstep"
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = {0: "", 1: package, 2: "fusedstep"}[node.level]
            module = ".".join(part for part in (base, node.module) if part)
            found |= {module} if node.module else {f"{module}.{alias.name}" for alias in node.names}
    return found


@pytest.mark.parametrize("rule", RULES)
def test_every_stem_is_in_every_layer(rule):
    missing = [layer.format(rule) for layer in LAYERS if not (ROOT / layer.format(rule)).exists()]
    assert not missing


@pytest.mark.parametrize("cls", OPTIMIZERS, ids=lambda cls: cls.__name__)
def test_every_class_is_compared_with_its_paper(cls):
    tests = [path.read_text() for path in (ROOT / "tests").glob("test_paper*.py")]
    assert any(re.search(rf"""(fusedstep\.|"){cls.__name__}\b""", text) for text in tests)


def test_every_rule_in_a_layer_has_a_class():
    stems = {path.stem for path in (ROOT / "csrc/rules").iterdir()}
    stems |= {path.stem for path in (ROOT / "kernels").glob("*.cu")}
    assert stems == {*RULES, GRAD_NORM}
    assert {path.stem for path in (ROOT / "docs/algorithms").iterdir()} == set(RULES)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_constructors_say_what_they_take(cls):
    """For type checkers, editors and command lines that are made from signatures."""
    hints = get_type_hints(cls.__init__)
    own = inspect.signature(cls).parameters
    assert hints.keys() == own.keys()
    base = inspect.signature(FusedOptimizer).parameters.values()
    common = {each.name for each in base if each.kind is inspect.Parameter.KEYWORD_ONLY}
    assert common == {*own, *get_type_hints(get_args(hints["common"])[0])} & common


def test_every_template_constant_is_in_the_bit_matrix():
    for cls in OPTIMIZERS:
        seen = set()
        for case in testing.CASES:
            if case.cls is cls:
                p = torch.nn.Parameter(torch.ones(1))
                optimizer = cls([p], **dict(case.options))
                seen.add(optimizer.variant(optimizer.param_groups[0]))
        assert seen == set(range(1 << len(cls.constants))), cls


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_both_forms_are_in_the_bit_matrix(cls):
    options = [dict(case.options) for case in testing.CASES if case.cls is cls]
    differ = "released" in (*cls.hypers, *cls.constants)
    assert {each.get("form", "paper") for each in options} == {"paper", *["released"] * differ}


def variants(rule):
    """The variants of a rule that are compiled."""
    found = []
    with pytest.raises(RuntimeError, match="kernel"):
        for variant in count():
            CpuBackend().kernel(rule, variant, False)
            found.append(variant)
    assert found
    return found


@pytest.mark.parametrize("rule", [*RULES, GRAD_NORM])
def test_a_rule_moves_what_its_facts_say(rule):
    """Its spellings agree in facts, so that bits would not tell; bytes are counted from them."""
    module = reference.module_of(rule)
    for variant in variants(rule):
        own, values = reference.facts(rule, variant), np.random.default_rng(0).random
        sums, out = ([np.ones(own.SUMS), variant], [[]]) if own.SUMS else ([], [])
        s = module.scalars(values(own.HYPERS), 3, values(own.CARRIED), np.float64, *sums)
        g, p, *states = values((2 + own.STATES, 50))
        g = 100 * g  # so that maxima move
        after = [*states]
        moved = module.update(s, g, p, after, variant, *out)
        changed = [not np.array_equal(*pair) for pair in zip(after, states, strict=True)]
        assert changed == [k < own.STATES - own.READ_ONLY for k in range(own.STATES)], variant
        assert np.array_equal(moved, p) != own.MOVES_PARAM, variant


def test_levels_are_told_once_and_the_widest_last():
    levels = CpuBackend().module.cpu_levels()
    assert levels == sorted(set(levels)), "generic, x86_64_v3, ..."


@pytest.mark.parametrize("rule", [*RULES, GRAD_NORM])
def test_every_spelling_of_a_rule_states_the_same_facts(rule):
    for variant in variants(rule):
        want = vars(reference.facts(rule, variant))
        for kernel in (CpuBackend().kernel, emulation.load().cuda_kernel):
            for found in (kernel(rule, variant, float64) for float64 in (False, True)):
                assert {name: getattr(found, name.lower()) for name in want} == want


@pytest.mark.parametrize("more", ["hypers", "states", "carried"])
@pytest.mark.parametrize("backend", [*TESTED_BACKENDS, "reference"])
def test_a_class_that_differs_from_its_kernel_is_refused(more, backend):
    """A stale build, or a rule whose files disagree, would move memory that is another's."""

    class Other(fusedstep.LaProp):
        hypers = fusedstep.LaProp.hypers + ("lr",) * (more == "hypers")
        carried = fusedstep.LaProp.carried | ({"more": 0.0} if more == "carried" else {})

        def state_fills(self, group):
            return super().state_fills(group) | ({"more": 0.0} if more == "states" else {})

    p = torch.nn.Parameter(torch.ones(100, device=device_of(backend)))
    p.grad = torch.ones_like(p)
    optimizer = Other([p], backend=backend)
    with pytest.raises(RuntimeError, match=r"laprop: .* has \(.*the kernel takes \(7, 2, 2\)"):
        optimizer.step()
    assert torch.equal(p, torch.ones_like(p))


def test_exp_avg_is_the_first_state():
    for cls in OPTIMIZERS:
        p = torch.nn.Parameter(torch.ones(1))
        optimizer = cls([p])
        states = list(optimizer.state_fills(optimizer.param_groups[0]))
        assert "exp_avg" not in states[1:], "state_dtype narrows the first column"


def test_reference_imports_numpy_and_itself_only():
    allowed = {"numpy", "dataclasses", "types", "importlib"}
    for path in (PACKAGE / "reference").glob("*.py"):
        outside = {name for name in imports(path) if not name.startswith("fusedstep.reference")}
        assert outside <= allowed, path


ARROWS = {  # file: what it uses of the package
    "native": "",
    "version": "",
    "shards": "",
    "sparse": "",
    "step_table": "",
    "hooks": "",
    "warn": "",
    "options": "checks warn",
    "memory": "shards",
    "write_counts": "native shards",
    "sums": "reference shards",
    "checks": "memory shards",
    "tensor_checks": "memory shards",
    "watch": "native",
    "launch": "checks reference step_table sums",
    "reference_backend": "launch reference sums",
    "backends": "launch native reference_backend",
    "state_tensors": "memory shards tensor_checks",
    "graphs": "optimizer plan warn watch",  # two for annotations
    "algorithm": "backends launch options state_tensors",
    "keeps_state": "algorithm graphs memory options plan state_tensors shards warn",
    "gather": "launch memory native optimizer shards sparse watch",
    "plan": "backends gather launch optimizer sparse write_counts",
    "make_plan": "backends launch memory optimizer plan reference shards sparse state_tensors"
    " sums tensor_checks watch",
    "optimizer": "checks graphs hooks keeps_state make_plan options plan shards warn watch",
    "testing": "reference",
    "verify": "backends testing",
    "__main__": "backends verify version",
}


def test_arrows_in_python():
    for name, arrows in ARROWS.items():
        found = {m.split(".")[1] for m in imports(PACKAGE / f"{name}.py") if "fusedstep." in m}
        assert found == set(arrows.split()), name
    assert ARROWS.keys() == {p.stem for p in PACKAGE.glob("*.py")} - {"__init__", *RULES}


def test_algorithms_use_the_front_end_only():
    for cls in OPTIMIZERS:
        path = PACKAGE / f"{cls.rule}.py"
        used = {m.split(".")[1] for m in imports(path) if m.startswith("fusedstep.")}
        assert used <= {"optimizer", "options", "checks", "warn", *RULES} - {cls.rule}


def test_arrows_in_native_code():
    for path in tracked("csrc/core/*"):
        assert all(not name.startswith(("rules/", "cpu/")) for name in includes(path)), path
    for path in tracked("csrc/rules/*"):
        ours = {name for name in includes(path) if "/" in name}
        assert ours and all(name.startswith("core/") for name in ours), path
    engines = [ROOT / "csrc/cpu/multi_tensor_apply.h", ROOT / "kernels/multi_tensor_apply.cuh"]
    for path in engines:
        assert not any(name.startswith("rules/") for name in includes(path))
        words = set(re.findall(r"\w+", path.read_text().lower()))
        assert not words & {*RULES, *(cls.__name__.lower() for cls in OPTIMIZERS)}, path


def test_python_engines_name_no_rule():
    front = [PACKAGE / f"{name}.py" for name in ARROWS.keys() - {"testing"}]  # which has its cases
    layers = [*(ROOT / "kernels").glob("*.py"), *(PACKAGE / "reference").glob("*.py")]
    engines = [path for path in layers if path.stem not in {*RULES, "maxva"}]
    assert len(engines) > 8
    for path in [*engines, *front]:
        words = set(re.findall(r"\w+", path.read_text().lower()))
        assert not words & set(RULES), path


def test_triton_does_not_tune_by_running():
    """It would run a kernel several times on what the kernel updates in place."""
    assert not [path for path in tracked("kernels/*.py") if "autotune" in path.read_text()]


def test_triton_negates_by_a_primitive():
    """In Triton 3.6 ``-x`` is ``0 - x``, whose zero has another sign."""
    for path in tracked("kernels/*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
                assert isinstance(node.operand, ast.Constant), f"{path}:{node.lineno}"


def test_nobody_imports_tests_or_bench():
    for path in tracked("python/*.py", "kernels/*.py", "examples/*.py"):
        assert not {m.split(".")[0] for m in imports(path)} & {"tests", "bench"}, path


def test_native_code_knows_nothing_of_torch():
    for path in tracked("csrc/*", "kernels/*.cu*", "kernels/*.h", "kernels/*.cpp"):
        assert not any(re.match(r"(torch|ATen|c10)\b", name) for name in includes(path)), path


def test_no_long_file():
    for path in tracked(
        "*.py", "*.h", "*.cpp", "*.cu", "*.cuh", "*.cmake", "CMakeLists.txt", "Makefile"
    ):
        assert len(path.read_text().splitlines()) <= 300, path


def test_nothing_left_over():
    leftover = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b|breakpoint\(\)|/(home|tmp|work)/")
    for path in tracked("*.py", "*.h", "*.cpp", "*.cu", "*.cuh", "*.md", "*.cmake", "Makefile"):
        if path != Path(__file__):
            assert not leftover.search(path.read_text()), path


def test_the_chunk_is_one_constant():
    assert CpuBackend().module.CHUNK == reference.CHUNK
