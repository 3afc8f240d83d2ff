"""The compiled GPU kernels, run without a GPU: PTX is translated to C++ and executed."""

from __future__ import annotations

import ctypes
import hashlib
import os
import subprocess
from pathlib import Path

from .parse import parse
from .translate import translate

HERE = Path(__file__).parent
BUILD = HERE.parents[1] / "build" / "ptx"
TEMPLATE = """#include "machine.h"
using namespace ptx;
static Task kernel(Thread& thread) {{
{source}
}}
extern "C" const char* run(unsigned grid, std::size_t shared, const unsigned char* parameters,
                           const Range* ranges, std::size_t count, unsigned seed) {{
  return launch(kernel, grid, {threads}, shared, parameters, ranges, count, seed);
}}
"""


class Kernel:
    """A kernel of a PTX file.

    Args:
        ptx: the file's text.
        name: the entry's.
        shared: bytes of shared memory that a launch gives it beside what it declares.
    """

    def __init__(self, ptx: str, name: str, shared: int = 0):
        entry = parse(ptx, name)
        self.parameters, self._shared = entry.parameters, entry.shared + shared
        source = TEMPLATE.format(source=translate(entry), threads=entry.threads)
        self._run = ctypes.CDLL(str(_compiled(source))).run
        self._run.restype = ctypes.c_char_p

    def __call__(self, grid: int, parameters: bytes, memory: list[tuple[int, int]], seed: int):
        """Run it; raises on what a GPU would do wrong.

        Args:
            parameters: as they lie in the kernel's parameter space.
            memory: address and size of all that it may touch.
            seed: of the order in which blocks and warps take turns.
        """
        ends: list[int] = []  # of ranges that do not overlap, their begin and end
        for begin, size in sorted(memory):
            if ends and begin < ends[-1]:
                ends[-1] = max(ends[-1], begin + size)
            elif size:
                ends += begin, begin + size
        failed = self._run(
            ctypes.c_uint(grid),
            ctypes.c_size_t(self._shared),
            parameters,
            (ctypes.c_uint64 * len(ends))(*ends),
            ctypes.c_size_t(len(ends) // 2),
            ctypes.c_uint(seed),
        )
        if failed is not None:
            raise RuntimeError(failed.decode())


def _compiled(source: str) -> Path:
    text = "".join([source, *(path.read_text() for path in sorted(HERE.glob("*.h")))])
    BUILD.mkdir(parents=True, exist_ok=True)
    path = BUILD / f"{hashlib.sha256(text.encode()).hexdigest()[:24]}.so"
    if not path.exists():
        mine = path.with_suffix(f".{os.getpid()}")
        command = [os.environ.get("CXX", "g++"), "-std=c++20", "-O1", "-ffp-contract=off", "-w"]
        command += ["-fPIC", "-shared", f"-I{HERE}", "-x", "c++", "-", "-o", str(mine)]
        subprocess.run(command, input=source, text=True, check=True)
        mine.rename(path)
    return path
