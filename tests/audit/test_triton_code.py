"""The Triton kernels compiled offline: nothing of what N3 forbids, no spills, wide accesses; and
executed, with the reference's bits."""

import os
import re
import subprocess
import sys
from functools import cache
from pathlib import Path

import pytest
from fusedstep import testing
from fusedstep.reference.multi_tensor_apply import facts

from tests.audit import compile_triton
from tests.audit.compile_triton import KERNELS, MODES
from tests.ptx import Kernel
from tests.ptx.backends import TritonPtx, assert_same_bits, cells

SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
OPCODES = {"div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64"}


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    command = [sys.executable, compile_triton.__file__, str(folder)]
    subprocess.run(command, check=True, env={**os.environ, "TRITON_INTERPRET": "0"})
    return folder


def arrays(rule: str, variant: int, mode: str) -> tuple[list[int], list[int]]:
    """Bytes of an element of each array that is read, and of each that is written."""
    own = facts(rule, variant)
    *dtypes, master = MODES[mode]
    opmath, param, grad, exp_avg = (SIZES[dtype] for dtype in dtypes)
    states = [exp_avg, *[opmath] * (own.STATES - 1)][: own.STATES]
    if own.SERVES_ALL:
        states = states[1:]  # a survey: nobody needs exp_avg, and the compiler leaves it out
    read = [4 if master else param] * own.READS_PARAM + [grad] * own.READS_GRAD + states
    moved = [param, *([4] if master else [])] * own.MOVES_PARAM
    return read, moved + states[: len(states) - own.READ_ONLY]


@pytest.mark.parametrize("name", KERNELS)
def test_code(name, compiled):
    from fusedstep.kernels.multi_tensor_apply import STAGES

    from tests.audit.inspect_code import disassembler, forbidden, loops, sass

    _, rule, variant, mode = name.split()
    ptx = (compiled / f"{name}.ptx").read_text()
    assert not forbidden(ptx)
    assert set(re.findall(r"\b(?:div|sqrt|rsqrt|rcp)\.(?:\w+\.)*f\d+", ptx)) <= OPCODES
    assert not re.search(r"\b(?:sin|cos|ex2|lg2|tanh)\.", ptx)
    if mode == "f16" and facts(rule, int(variant)).MOVES_PARAM:
        assert "cvt.rn.f16.f32" in ptx

    # Full blocks move 16 bytes of opmath for a thread at once, so 8 of a 16-bit array. What is read
    # is on its way to shared memory for as many blocks as there are stages.
    read, written = arrays(rule, int(variant), mode)
    for width, sizes in (("0x10", (4, 8)), ("0x8", (2,))):
        copies = re.findall(rf"\bcp\.async\.\w+\.shared\.global .*, {width}, ", ptx)
        assert len(copies) == STAGES.value * sum(size in sizes for size in read), width
    # Where only the gradient is not aligned, a loop of its own moves all else as wide.
    beside = list(read)
    if facts(rule, int(variant)).READS_GRAD:
        beside.remove(SIZES[MODES[mode][2]])
    else:
        beside.clear()
    count = lambda words: len(re.findall(words, ptx))  # noqa: E731
    wide, half = r"(?:v4\.b32|v2\.b64)\b", r"(?:v2\.b32|v4\.b16)\b"
    for width, sizes in ((wide, (4, 8)), (half, (2,))):
        loads = sum(size in sizes for size in beside)
        stores = sum(size in sizes for size in written) * (2 if beside else 1)
        assert count(rf"\bld\.global\.(?:\w+\.)*{width}") == loads
        assert count(rf"\bst\.global\.(?:\w+\.)*{width}") == stores

    # The limit of registers may cost what a block needs once, but next to nothing in the loop that
    # takes whole blocks, which is the one that copies to shared memory.
    code = sass(compiled / f"{name}.cubin")
    [main_loop] = [loop for loop in loops(code) if any("LDGSTS" in line for line in loop)]
    spilled = [line for line in main_loop if re.search(r"\b(?:LDL|STL)\b", line)]
    usage = [disassembler("cuobjdump"), "-res-usage", str(compiled / f"{name}.cubin")]
    usage = subprocess.run(usage, check=True, capture_output=True, text=True).stdout
    registers, stack, local = map(
        int, re.search(r"REG:(\d+) STACK:(\d+).* LOCAL:(\d+)", usage).groups()
    )
    print(
        f"{name}: {registers} registers, {stack} bytes spilled, {len(spilled)} in the loop", end=" "
    )
    assert len(spilled) < 0.015 * len(main_loop) and stack <= 80 and local == 0, "spills"


@cache
def kernel_of(folder: Path, architecture: str, rule: str, variant: int, dtypes: tuple) -> Kernel:
    """What runs the compiled code of one kernel."""
    [mode] = [mode for mode, own in MODES.items() if own == dtypes]
    file = folder / f"{architecture} {rule} {variant} {mode}.ptx"
    shared = int(file.with_suffix(".shared").read_text())
    return Kernel(file.read_text(), "multi_tensor_apply", shared)


def executing(folder: Path, architecture: str) -> TritonPtx:
    """A backend that runs what was compiled for an architecture."""

    def kernel(launch, work):
        dtypes = launch.opmath, launch.param_dtype, launch.grad_dtype, launch.exp_avg_dtype
        names = *(str(dtype).removeprefix("torch.") for dtype in dtypes), launch.master
        return kernel_of(folder, architecture, work.rule, work.variant, names)

    return TritonPtx(kernel)


@pytest.mark.parametrize(
    "case, mode, shapes", cells(mode for mode in testing.MODES if mode.id in MODES)
)
def test_bits(case, mode, shapes, compiled):
    assert_same_bits(executing(compiled, "sm_90"), case, mode, shapes)


@pytest.mark.parametrize("architecture", ["sm_80", "sm_100"])
@pytest.mark.parametrize("mode_id", ["f32", "bf16-grad32-master-state16"])
def test_bits_of_other_generations(mode_id, architecture, compiled):
    case = next(case for case in testing.CASES if case.id == "adamw")
    mode = next(mode for mode in testing.MODES if mode.id == mode_id)
    assert_same_bits(executing(compiled, architecture), case, mode, "bucket")
