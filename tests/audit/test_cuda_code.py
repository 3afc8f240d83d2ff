"""The CUDA kernels, compiled offline for four generations: under the numerics law; and executed,
with the reference's bits."""

import re
import shutil
import subprocess
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from fusedstep import testing

from tests.audit.inspect_code import disassembler, forbidden, sass
from tests.ptx import Kernel
from tests.ptx.backends import CudaPtx, assert_same_bits, cells
from tests.test_bits import WITNESSES

REPOSITORY = Path(__file__).resolve().parents[2]
KERNELS = sorted((REPOSITORY / "kernels").glob("*.cu"))
ARCHITECTURES = ("sm_75", "sm_80", "sm_90", "sm_100")

pytestmark = pytest.mark.skipif(
    shutil.which("nvcc") is None, reason="no nvcc on PATH: the CUDA kernels cannot be compiled"
)
each_kernel = pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.stem)
each_architecture = pytest.mark.parametrize("architecture", ARCHITECTURES)


def numerics_flags() -> list[str]:
    text = (REPOSITORY / "cmake/numerics.cmake").read_text()
    flags = re.search(r"set\(FUSEDSTEP_CUDA_NUMERICS\s+([^)]*)\)", text)
    assert flags and flags[1].split(), "cmake/numerics.cmake no longer sets FUSEDSTEP_CUDA_NUMERICS"
    return flags[1].split()


@cache
def compiled(kernel: Path, architecture: str) -> tuple[str, str, str]:
    """PTX, SASS (empty without a disassembler) and what ptxas reports."""
    flags = ["-std=c++17", "-arch", architecture, *numerics_flags(), "-DNDEBUG"]
    flags += [f"-I{REPOSITORY / 'csrc'}", f"-I{REPOSITORY / 'kernels'}"]
    with TemporaryDirectory() as folder:
        cubin = Path(folder, f"{kernel.stem}.{architecture}.cubin")
        command = ["nvcc", *flags, kernel, "-cubin", "-o", cubin, "-Xptxas", "-v"]
        command += ["-keep", "-keep-dir", folder]
        result = subprocess.run(command, capture_output=True, text=True)
        assert result.returncode == 0 and "warning #" not in result.stderr, result.stderr
        ptx = Path(folder, f"{kernel.stem}.ptx").read_text()
        return ptx, sass(cubin) if disassembler("cuobjdump") else "", result.stderr


def only_reads(function: str) -> bool:
    """Whether a kernel sums and moves nothing: the norm of gradients, AvaGrad's survey."""
    return bool(re.search(r"GradNormI|AvaGradI[fd]Lj[23]", function.split("\n")[0]))


@pytest.fixture
def code(kernel, architecture):
    return compiled(kernel, architecture)


@each_architecture
@each_kernel
def test_ptx_obeys_the_numerics_law(code, kernel):
    ptx, _, _ = code
    assert not forbidden(ptx)
    assert "div.rn.f32" in ptx  # at least by the loss scale
    assert ("sqrt.rn.f64" in ptx) == (kernel.stem != "grad_norm")  # whose prologue is empty


@each_architecture
@each_kernel
def test_next_to_nothing_spills(code, architecture):
    """Columns stay in registers; at the limit of 80 a few other values may not."""
    _, _, report = code
    functions = re.findall(
        r"entry function '\w*?\d([A-Z][A-Za-z]+)I([fd])Lj(\d)\w*'.*?"
        r"(\d+) bytes stack frame.*?"
        r"Used (\d+) registers",
        report,
        re.DOTALL,
    )
    assert len(functions) == report.count("Compiling entry function") > 0
    print()
    for rule, opmath, variant, frame, registers in sorted(functions):
        print(f"{architecture:7}{rule:9}{opmath}{variant}{registers:>5} registers")
        which = f"{rule}, {opmath}, variant {variant}"
        assert int(frame) <= 32, f"{which}: {frame} bytes of memory; resident() limits registers"


@each_architecture
@each_kernel
def test_accesses_are_16_bytes_wide(code):
    ptx, machine_code, _ = code
    for entry in ptx.split(".entry ")[1:]:
        assert re.search(r"ld\.global\.v4\.[ubf]32|ld\.global\.v2\.[ubf]64", entry)
        assert only_reads(entry) or re.search(
            r"st\.global\.v4\.[ubf]32|st\.global\.v2\.[ubf]64", entry
        )
    assert "ld.global.nc" not in ptx  # counts are written by the last block of the same launch
    if not machine_code:
        pytest.skip("no cuobjdump on PATH or in triton's package: only PTX was inspected")
    for function in machine_code.split("Function :")[1:]:
        assert re.search(r"LDG\.E\.128", function)
        assert only_reads(function) or re.search(r"STG\.E\.128", function)


def entry_of(ptx: str, variant: int, opmath: str) -> str:
    """The name of a rule's kernel in its PTX."""
    [name] = re.findall(rf"\.entry (\w+apply_kernel\w+I{opmath}Lj{variant}E\w+)\(", ptx)
    return name


@cache
def kernel_of(architecture: str, rule: str, variant: int, opmath: str) -> Kernel:
    """What runs the compiled code of one kernel."""
    ptx, _, _ = compiled(REPOSITORY / "kernels" / f"{rule}.cu", architecture)
    return Kernel(ptx, entry_of(ptx, variant, opmath))


def executing(architecture: str) -> CudaPtx:
    """A backend that runs what was compiled for an architecture."""
    return CudaPtx(
        lambda launch, work: kernel_of(
            architecture, work.rule, work.variant, "d" if launch.float64 else "f"
        )
    )


@pytest.mark.parametrize("case, mode, shapes", cells(testing.MODES))
def test_bits(case, mode, shapes):
    assert_same_bits(executing("sm_90"), case, mode, shapes)


@pytest.mark.parametrize("architecture", [each for each in ARCHITECTURES if each != "sm_90"])
@pytest.mark.parametrize("name", WITNESSES)
def test_bits_of_other_generations(name, architecture):
    case = next(case for case in testing.CASES if case.id == name)
    assert_same_bits(executing(architecture), case, testing.MODES[0], "bucket")
