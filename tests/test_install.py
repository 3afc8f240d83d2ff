"""Installing and importing where something is missing: it works without it, or says what to do."""

import os
import shutil
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TOOLS = Path(sys.executable).parent  # cmake and ninja
NVCC = shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def environment(path, **more):
    hidden = "CUDACXX", "CUDA_HOME", "CUDA_PATH", "CXX", "FUSEDSTEP_CUDA", "FUSEDSTEP_CUDA_ARCHS"
    kept = {name: value for name, value in os.environ.items() if name not in hidden}
    return {**kept, "PATH": path, **more}


def tool(folder, name, script):
    """A program of that name, for PATH."""
    file = folder / name
    file.write_text(f"#!/bin/sh\n{script}\n", encoding="ascii")
    file.chmod(0o755)
    return str(file)


def configure(folder, option, hide_nvcc=True, architectures="", **variables):
    """Let CMake find its tools, as the first part of `pip install .` does."""
    path = os.pathsep.join([str(folder.parent), str(TOOLS), os.environ.get("PATH", os.defpath)])
    ignored = ["/usr/local/cuda/bin", *([str(Path(NVCC).parent)] if NVCC else [])]
    command = [
        *("cmake", "-S", ROOT, "-B", folder, "-G", "Ninja", "-DBUILD_TESTING=OFF"),
        f"-DPython_EXECUTABLE={sys.executable}",
        f"-DFUSEDSTEP_CUDA={option}",
        f"-DFUSEDSTEP_CUDA_ARCHS={architectures}",
        f"-DCMAKE_IGNORE_PATH={';'.join(ignored) if hide_nvcc else ''}",
    ]
    done = subprocess.run(
        command, env=environment(path, **variables), capture_output=True, text=True
    )
    return done.returncode, " ".join((done.stdout + done.stderr).split())


@pytest.fixture
def broken_nvcc(tmp_path):
    (tmp_path / "broken").mkdir()
    return tool(tmp_path / "broken", "nvcc", "echo 'unsupported GNU version' >&2; exit 1")


def test_without_a_cuda_toolkit_the_cpu_kernels_are_built(tmp_path):
    status, told = configure(tmp_path / "build", "AUTO")
    assert status == 0
    assert "building without CUDA kernels: no nvcc was found (PATH, CUDACXX, CUDA_HOME," in told


def test_with_an_unusable_nvcc_the_cpu_kernels_are_built(tmp_path, broken_nvcc):
    status, told = configure(tmp_path / "build", "AUTO", CUDACXX=broken_nvcc)
    assert status == 0
    assert "nvcc does not compile a small program (1: unsupported GNU version)" in told
    assert "The CPU and Triton backends are unaffected." in told


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize("word", ["9.0", "80,90", "hopper", "35", "all"])
def test_architectures_that_are_none_are_told(tmp_path, word):
    status, told = configure(tmp_path / "build", "ON", False, architectures=f"80;{word}")
    assert status != 0
    assert f"FUSEDSTEP_CUDA_ARCHS has {word}, which {NVCC} or these kernels do not serve" in told


def test_cuda_that_was_asked_for_and_is_unusable_is_an_error(tmp_path, broken_nvcc):
    status, told = configure(tmp_path / "build", "ON", CUDACXX=broken_nvcc)
    assert status != 0
    assert "FUSEDSTEP_CUDA=ON, but" in told and "unsupported GNU version" in told
    assert "Install a CUDA toolkit" in told


@pytest.mark.skipif(NVCC is None, reason="no nvcc")
@pytest.mark.parametrize(
    "gpus, built",
    [
        (r"9.0\n9.0\n", "90"),
        (r"12.0\n9.0\n6.1\n", "90;120-real"),  # beside a display card that no kernel serves
        (r"3.5\n", "75;80-real;90-real;100-real"),
        (r"", "75;80-real;90-real;100-real"),
    ],
)
def test_kernels_are_built_for_the_gpus_that_the_compiler_knows(tmp_path, gpus, built):
    if "sm_120" not in subprocess.check_output([NVCC, "--list-gpu-code"], text=True):
        pytest.skip("this nvcc does not know all of them")
    known = r"printf 'sm_60\nsm_75\nsm_80\nsm_90\nsm_90a\nsm_100\nsm_120\n'"
    tool(tmp_path, "nvcc", f'[ "$1" = --list-gpu-code ] && exec {known}\nexec {NVCC} "$@"')
    tool(tmp_path, "nvidia-smi", f"printf '{gpus}'")
    status, told = configure(tmp_path / "build", "ON", hide_nvcc=False)
    assert status == 0
    assert f"fusedstep: CUDA kernels for {built} " in told


def test_fast_math_is_not_linked_either(tmp_path):
    """GCC before 13 would link code that makes whoever imports the module flush subnormals."""
    flags = "-Ofast -ffast-math -funsafe-math-optimizations"
    status, told = configure(tmp_path / "build", "OFF", CXXFLAGS=flags)
    assert status == 0, told
    ninja = shutil.which("ninja", path=os.pathsep.join([str(TOOLS), os.environ["PATH"]]))
    listed = [ninja, "-C", tmp_path / "build", "-t", "commands"]
    *_, last = subprocess.check_output(listed, text=True).splitlines()
    link = [word for word in last.split(" && ")[1].split() if not word.endswith(".o")]
    nothing = ["-###", "-x", "c++", os.devnull]
    done = subprocess.run([*link, *nothing], cwd=tmp_path, capture_output=True, text=True)
    assert flags in " ".join(link) and "-shared" in link
    assert done.returncode == 0, done.stderr
    assert "crtfastmath" not in done.stderr


@pytest.fixture
def checkout(tmp_path):
    """What setup.py itself needs, and a cmake that says what it was asked for."""
    for name in ("setup.py", "pyproject.toml", "README.md", "LICENSE"):
        (tmp_path / "checkout").mkdir(exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / "checkout" / name)
    shutil.copytree(ROOT / "python", tmp_path / "checkout" / "python")
    (tmp_path / "tools").mkdir()
    tool(tmp_path / "tools", "cmake", 'echo "$@"; exit ${STATUS:-0}')
    return tmp_path / "checkout"


def build(checkout, path=None, **variables):
    tools = [str(checkout.parent / "tools"), str(TOOLS), os.environ.get("PATH", os.defpath)]
    return subprocess.run(
        [sys.executable, "setup.py", "build_ext", "--build-lib", checkout.parent],
        cwd=checkout,
        env=environment(path or os.pathsep.join(tools), **variables),
        capture_output=True,
        text=True,
    )


def test_options_of_an_earlier_build_are_forgotten(checkout):
    for options in ({"FUSEDSTEP_CUDA": "OFF", "FUSEDSTEP_CUDA_ARCHS": "80"}, {}):
        done = build(checkout, **options)
        assert done.returncode == 0
        for name, default in {"FUSEDSTEP_CUDA": "AUTO", "FUSEDSTEP_CUDA_ARCHS": ""}.items():
            assert f"-D{name}={options.get(name, default)} " in done.stdout


def test_another_compiler_or_place_begins_a_build_anew(checkout):
    def kept(checkout, **variables):
        (folder,) = (checkout / "build").glob("cmake-*")
        (folder / "CMakeCache.txt").touch()
        assert build(checkout, **variables).returncode == 0
        return (folder / "CMakeCache.txt").exists()

    assert build(checkout).returncode == 0
    assert kept(checkout)
    assert not kept(checkout, CXX="clang++") and kept(checkout, CXX="clang++")
    for name in "CXXFLAGS", "LDFLAGS", "CUDACXX", "CUDAHOSTCXX", "CUDAFLAGS", "CUDA_HOME":
        assert not kept(checkout, CXX="clang++", **{name: "-g"}), name
        assert not kept(checkout, CXX="clang++")
    assert not kept(checkout.rename(checkout.parent / "moved"), CXX="clang++")


def test_a_build_that_fails_ends_in_one_line(checkout):
    done = build(checkout, STATUS="1")
    assert done.returncode != 0
    assert done.stderr.endswith("fusedstep was not built; the lines above say why.\n")
    assert "Traceback" not in done.stderr


def test_without_a_compiler_the_install_says_what_to_install(checkout):
    done = build(checkout, path=str(checkout.parent / "tools"))
    assert done.returncode != 0
    assert "needs a C++17 compiler and found none" in done.stderr
    assert "`apt install g++`" in done.stderr and "Traceback" not in done.stderr


IMPORT = """
import sys
for name in {missing!r}:
    sys.modules[name] = None  # so that importing it fails
import fusedstep, torch
for name, why in fusedstep.why_unavailable().items():
    print(name, why)
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
fusedstep.MAdam([p], backend="reference").step()
print("moved", bool((p != 1).all()))
fusedstep.MAdam([p]).step()
"""


def import_without(*missing):
    return subprocess.run(
        [sys.executable, "-c", IMPORT.format(missing=missing)],
        env={**os.environ, "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )


def test_a_source_archive_has_all_but_what_is_gits(tmp_path):
    said = subprocess.check_output(["git", "ls-files"], cwd=ROOT, text=True)
    names = [name for name in said.split() if name not in (".gitignore", ".ci/run")]
    for name in names:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, tmp_path / name)
    make = "from setuptools import build_meta; build_meta.build_sdist('.')"
    subprocess.run([sys.executable, "-c", make], cwd=tmp_path, check=True, capture_output=True)
    (archive,) = tmp_path.glob("*.tar.gz")
    with tarfile.open(archive) as held:
        found = {name.partition("/")[2] for name in held.getnames()}
    assert len(names) > 80 and set(names) <= found


@pytest.mark.skipif(shutil.which("c++") is None, reason="no C++ compiler")
def test_registering_kernels_computes_nothing():
    """It is compiled for every instruction set, and runs before the processor's is known."""
    command = ["c++", "-std=c++17", "-Icsrc", "-S", "-o", "-", "csrc/cpu/grad_norm.cpp"]
    code = subprocess.check_output(command, cwd=ROOT, text=True)
    assert "register_kernel" in code and "__cxa_guard" not in code


def test_without_triton_the_rest_works():
    done = import_without("triton")
    assert done.returncode == 0, done.stderr
    assert "run `pip install triton`" in done.stdout and "cpu None" in done.stdout


def test_a_numpy_that_breaks_tritons_interpreter_is_told():
    program = """
import numpy, triton, fusedstep
numpy.__version__, triton.__version__ = "2.10.0", "3.6.1"
print(fusedstep.why_unavailable()["triton"])
"""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    told = subprocess.check_output([sys.executable, "-c", program], env=environment, text=True)
    assert "triton 3.6.1 needs numpy before 2.4" in told and "'numpy<2.4'" in told


def test_without_native_code_the_rest_works_and_the_reason_is_told():
    done = import_without("fusedstep._native", "triton")
    assert "moved True" in done.stdout
    assert "cpu fusedstep._native is not built" in done.stdout
    last = done.stderr.splitlines()[-1]
    assert "RuntimeError: no backend can update parameters on cpu: cpu: fusedstep._native" in last
    assert "install a C++ compiler" in last


def test_triton_is_imported_when_it_is_needed_and_interprets_from_then_on():
    """Its import takes as long as all else, and reads TRITON_INTERPRET."""
    program = """
import os, sys, fusedstep, torch
assert "triton" not in sys.modules
p = torch.nn.Parameter(torch.ones(3))
p.grad = torch.ones(3)
os.environ["TRITON_INTERPRET"] = "1"
optimizer = fusedstep.MAdam([p], backend="triton")
optimizer.step()
del os.environ["TRITON_INTERPRET"]
optimizer.step()
assert optimizer.state[p]["step"] == 2
other = fusedstep.LAMB([p], backend="triton")  # whose kernels are defined now
try:
    other.step()
except RuntimeError as error:
    assert "TRITON_INTERPRET has changed" in str(error) and not other.state
else:
    raise AssertionError("it was not told")
"""
    environment = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    subprocess.run([sys.executable, "-c", program], env=environment, check=True)
