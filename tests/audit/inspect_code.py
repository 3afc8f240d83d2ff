"""What compiled device code may not contain (N3, docs/numerics.md), and where the disassembler is.

Look in PTX: in SASS, the expansions of division and square root consist of fma and approximations.
"""

import importlib.util
import re
import shutil
import subprocess
from pathlib import Path

FORBIDDEN = {
    "contraction": r"\bfma\.|\bmad\.(?:\w+\.)*f(?:32|64)\b",
    "what ptxas may contract": r"\b(?:add|sub|mul)\.f(?:32|64)\b",  # without .rn
    "approximation": r"\.approx\b|\bdiv\.full\b",
    "flush to zero": r"\.ftz\b",
    "local memory": r"\b(?:ld|st)\.local\b|\.local\s+\.align",
}


def forbidden(ptx: str) -> list[str]:
    """The lines of `ptx` that break the law, each with the reason."""
    return [
        f"{reason}, line {number}: {line.strip()}"
        for number, line in enumerate(ptx.splitlines(), 1)
        for reason, pattern in FORBIDDEN.items()
        if re.search(pattern, line)
    ]


def disassembler(name: str) -> str | None:
    """`cuobjdump` or `nvdisasm`: on PATH, else the copy in triton's package."""
    if found := shutil.which(name):
        return found
    triton = importlib.util.find_spec("triton")
    if triton is None or triton.origin is None:
        return None
    packaged = Path(triton.origin).parent / "backends/nvidia/bin" / name
    return str(packaged) if packaged.exists() else None


def sass(cubin: Path) -> str:
    """The machine code of a cubin, one instruction a line."""
    command = [disassembler("cuobjdump"), "-sass", str(cubin)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout


def loops(machine_code: str) -> list[list[str]]:
    """The instructions of each loop, from where a branch backwards leads to that branch."""
    found = re.findall(r"/\*([0-9a-f]{4,5})\*/\s+(.*?);", machine_code)
    code = [(int(address, 16), instruction) for address, instruction in found]
    result = []
    for end, instruction in code:
        branch = re.search(r"\bBRA\b.*\b0x([0-9a-f]+)", instruction)
        if branch and (begin := int(branch[1], 16)) < end:
            result.append([inside for address, inside in code if begin <= address <= end])
    return result
