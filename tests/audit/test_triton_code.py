"""The Triton kernels compiled offline: nothing of what N3 forbids, no spills, wide accesses.

Compiling needs triton, but no GPU. It happens in a process of its own, because this one may have
imported the kernels for the interpreter.
"""

import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from fusedstep import testing
from fusedstep.reference.multi_tensor_apply import OWN_HYPERS, facts

# mode: opmath, param, grad, exp_avg, masters
MODES = {
    "f32": ("float32", "float32", "float32", "float32", False),
    "f64": ("float64", "float64", "float64", "float64", False),
    "f16": ("float32", "float16", "float16", "float32", False),
    "bf16-master": ("float32", "bfloat16", "float32", "bfloat16", True),
}
VARIANTS = {  # of every rule, how many
    path.stem: int((re.search(r"kVariants = (\d+)", path.read_text()) or ("", 1))[1])
    for path in sorted((Path(__file__).parents[2] / "csrc" / "rules").glob("*.h"))
}
KERNELS = [
    f"sm_90 {rule} {variant} {mode}"
    for rule, variants in VARIANTS.items()
    for variant in range(variants)
    for mode in MODES
] + [
    f"{arch} {rule} 0 {mode}"
    for arch in ("sm_80", "sm_100")
    for rule in VARIANTS
    for mode in ("f32", "bf16-master")
]
# columns of a row that are the rule's
HYPERS = {case.cls.rule: len(case.cls.hypers) for case in testing.CASES}
SIZES = {"float16": 2, "bfloat16": 2, "float32": 4, "float64": 8}
OPCODES = {"div.rn.f32", "div.rn.f64", "sqrt.rn.f32", "sqrt.rn.f64"}

TABLES = {
    "address": "*i64", "grad": "*i64", "numel": "*i64", "row": "*i64", "chunk": "*i32",
    "hyper": "*fp64", "source": "*i64", "grad_scale": "*fp32", "found_inf": "*fp32",
    "grad_norm_sq": "*fp64", "ticket": "*i32", "tensors": "i32", "chunks": "i32",
}  # fmt: skip


def compile_kernel(name: str, folder: Path) -> None:
    """Writes the kernel's PTX and cubin: the one that takes a loss scale and can be skipped."""
    import torch
    import triton
    from fusedstep.kernels import enqueue as engine
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    arch, rule, variant, mode = name.split()
    fields = ("opmath", "param_dtype", "grad_dtype", "exp_avg_dtype")
    dtypes = {field: getattr(torch, dtype) for field, dtype in zip(fields, MODES[mode])}
    work = SimpleNamespace(rule=rule, variant=int(variant), facts=facts(rule, int(variant)))
    launch = SimpleNamespace(
        row_size=OWN_HYPERS + HYPERS.get(rule, 0), master=MODES[mode][-1], **dtypes
    )
    constants = engine.constants(launch, work)
    sums = {
        "partial": "*fp64", "slots": "i32", "slot": "*i64", "segment": "*i64",
        "segment_begin": "*i64", "segment_chunks": "*i64", "segment_sums": "*i64",
        "segment_result": "*i64", "arrived": "*i32",
    }  # fmt: skip
    if not constants["SUMS"]:
        constants |= dict.fromkeys(sums)
    arguments = TABLES | sums | dict.fromkeys(constants, "constexpr")
    signature = {key: arguments[key] for key in engine.multi_tensor_apply.arg_names}
    source = ASTSource(engine.multi_tensor_apply, signature, constants)
    target = GPUTarget("cuda", int(arch.removeprefix("sm_")), 32)
    kernel = triton.compile(source, target=target, options=engine.options(launch, work))
    (folder / f"{name}.ptx").write_text(kernel.asm["ptx"])
    (folder / f"{name}.cubin").write_bytes(kernel.asm["cubin"])


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    pytest.importorskip("triton")
    folder = tmp_path_factory.mktemp("triton")
    command = [sys.executable, __file__, str(folder)]
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


if __name__ == "__main__":
    for kernel in KERNELS:
        compile_kernel(kernel, Path(sys.argv[1]))
