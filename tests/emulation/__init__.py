"""The CUDA kernels' own source, compiled by the C++ compiler and run by host threads.

`load()` builds and imports an extension module like `fusedstep._native` whose CUDA kernels take
addresses of host memory. With FUSEDSTEP_SANITIZE in the environment (`make sanitize`) it is built
with those sanitizers, and the tests take all native code from it.
"""

import fcntl
import functools
import importlib.util
import os
import shutil
import subprocess
import sys
import sysconfig
from importlib.machinery import ExtensionFileLoader
from pathlib import Path
from types import ModuleType

REPOSITORY = Path(__file__).resolve().parents[2]
NAME = "_emulated"
SANITIZERS = os.environ.get("FUSEDSTEP_SANITIZE", "")


def _run(*command: str) -> None:
    environment = dict(os.environ)
    environment["PATH"] = os.pathsep.join([str(Path(sys.executable).parent), environment["PATH"]])
    tool = shutil.which(command[0], path=environment["PATH"])
    if tool is None:
        raise RuntimeError(f"building {NAME} needs {command[0]}, which is not on PATH")
    result = subprocess.run(
        [tool, *command[1:]],
        env=environment,
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    if result.returncode != 0:
        raise RuntimeError(f"building {NAME} failed: {' '.join(command)}\n{result.stdout}")


def build() -> Path:
    """The folder of the module, which is brought up to date."""
    folder = REPOSITORY / "build" / ("sanitized" if SANITIZERS else "emulated")
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        configure = [
            *("cmake", "--fresh", "-G", "Ninja", "-S", str(REPOSITORY), "-B", str(folder)),
            f"-DPython_EXECUTABLE={sys.executable}",
            f"-DFUSEDSTEP_MODULE_NAME={NAME}",
            f"-DFUSEDSTEP_SANITIZE={SANITIZERS}",
            f"-DBUILD_TESTING={'ON' if SANITIZERS else 'OFF'}",
            "-DFUSEDSTEP_EMULATE_CUDA=ON",
        ]
        # CMake keeps to the checkout, the interpreter, the compiler and the flags that its folder
        # began with.
        stamp, taken = folder / "made-for", map(os.environ.get, ("CXX", "CXXFLAGS", "LDFLAGS"))
        maker = repr([*configure, *taken])
        if not (stamp.exists() and stamp.read_text() == maker):
            print("building the emulated CUDA kernels: minutes, once", file=sys.__stderr__)
            _run(*configure)
            stamp.write_text(maker)
        _run("cmake", "--build", str(folder))
    return folder


@functools.cache
def load() -> ModuleType:
    path = str(build() / (NAME + sysconfig.get_config_var("EXT_SUFFIX")))
    spec = importlib.util.spec_from_file_location(
        NAME, path, loader=ExtensionFileLoader(NAME, path)
    )
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module
