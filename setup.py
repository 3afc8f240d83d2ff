"""A thin driver: CMake builds fusedstep._native, setuptools packs it. See CMakeLists.txt.

FUSEDSTEP_CUDA=AUTO|ON|OFF and FUSEDSTEP_CUDA_ARCHS="80;90" are read from the environment.
"""

import os
import shutil
import subprocess
import sys
from pathlib import Path

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

ROOT = Path(__file__).resolve().parent
DEFAULTS = {"FUSEDSTEP_CUDA": "AUTO", "FUSEDSTEP_CUDA_ARCHS": ""}
# What CMake takes from the environment when its folder begins, and not again.
FLAGS = ("CXXFLAGS", "LDFLAGS", "CUDAFLAGS")
TAKEN = ("CXX", "CUDACXX", "CUDAHOSTCXX", "CUDA_HOME", "CUDA_PATH", *FLAGS)


class BuildWithCMake(build_ext):
    def build_extension(self, ext: Extension) -> None:
        import pybind11

        if not (os.environ.get("CXX") or any(map(shutil.which, ("c++", "g++", "clang++")))):
            sys.exit(
                "fusedstep needs a C++17 compiler and found none (c++, g++, clang++ or $CXX). "
                "Install one, for example `apt install g++`, and run the same command again."
            )
        target = Path(self.get_ext_fullpath(ext.name)).resolve().parent
        build = ROOT / "build" / f"cmake-{sys.implementation.cache_tag}"  # kept: rebuilds are short
        forget_unless_made_for(build, repr([str(ROOT), *map(os.environ.get, TAKEN)]))
        # All are named, because the folder remembers those of the last build.
        options = {name: os.environ.get(name, default) for name, default in DEFAULTS.items()}
        options |= {
            "Python_EXECUTABLE": sys.executable,
            "pybind11_DIR": pybind11.get_cmake_dir(),
            "CMAKE_MAKE_PROGRAM": shutil.which("ninja") or "ninja",  # the last build's may be gone
            "BUILD_TESTING": "OFF",
        }
        definitions = [f"-D{name}={value}" for name, value in options.items()]
        cmake("-S", ROOT, "-B", build, "-G", "Ninja", *definitions)
        cmake("--build", build)
        cmake("--install", build, "--prefix", target)


def forget_unless_made_for(build: Path, maker: str) -> None:
    """CMake keeps to the compilers, flags and checkout that its folder began with."""
    stamp = build / "made-for"
    if build.exists() and not (stamp.exists() and stamp.read_text() == maker):
        shutil.rmtree(build)
    build.mkdir(parents=True, exist_ok=True)
    stamp.write_text(maker)


def cmake(*arguments: object) -> None:
    if subprocess.run(["cmake", *map(str, arguments)]).returncode != 0:
        sys.exit("fusedstep was not built; the lines above say why.")


setup(
    ext_modules=[Extension("fusedstep._native", sources=[])],
    cmdclass={"build_ext": BuildWithCMake},
)
