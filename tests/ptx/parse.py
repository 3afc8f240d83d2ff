"""The text of a PTX file: a kernel's parameters, registers, shared memory and instructions."""

from __future__ import annotations

import re
from dataclasses import dataclass

WIDTHS = {"pred": 1, "b16": 16, "b32": 32, "f32": 32, "b64": 64, "f64": 64}


class Unknown(Exception):
    """What is not translated: a directive, an instruction or a form of one."""


@dataclass(frozen=True)
class Instruction:
    """``@%p1 ld.global.v4.b32 {%r1, ...}, [%rd1+16];``, or a label, which is its only word."""

    line: int  # of the file
    text: str
    guard: str = ""  # "%p1" or "!%p1"
    words: tuple[str, ...] = ()  # "ld", "global", "v4", "b32"
    operands: tuple[str, ...] = ()

    @property
    def is_label(self) -> bool:
        return not self.words


@dataclass(frozen=True)
class Entry:
    """A kernel."""

    threads: int  # of a block
    parameters: list[tuple[int, int]]  # offset and size of each
    shared: int  # bytes that it declares
    symbols: dict[str, int]  # offsets of parameters, and places in shared memory
    registers: list[tuple[str, int, int]]  # prefix, width in bits, how many
    instructions: list[Instruction]


def parse(ptx: str, name: str) -> Entry:
    """The kernel of that name."""
    start = re.search(rf"\.entry\s+{re.escape(name)}\s*\(", ptx)
    if start is None:
        raise Unknown(f"no entry {name}")
    begin = ptx.index("\n{", start.end()) + 2
    head, body = ptx[start.end() : begin], ptx[begin : ptx.index("\n}", begin)]
    threads = re.search(r"\.(?:reqntid|maxntid)\s+(\d+)", head)
    if threads is None:
        raise Unknown("a kernel for blocks of any size")
    parameters = _laid_out(r"\.param\s+(?:\.align (\d+) )?\.[bu](\d+)\s+", head)
    of_all = ptx[: ptx.index(".entry")]
    shared = _laid_out(r"\.shared\s+\.align\s+(\d+)\s+\.[buf](\d+)\s+", of_all + body)
    registers = re.findall(r"\.reg\s+\.(\w+)\s+%(\w+)<(\d+)>;", body)
    return Entry(
        threads=int(threads[1]),
        parameters=[(at, size) for at, size in parameters.values()],
        shared=max((at + size for at, size in shared.values()), default=0),
        symbols={name: at for name, (at, _) in (parameters | shared).items()},
        registers=[(prefix, WIDTHS[kind], int(count)) for kind, prefix, count in registers],
        instructions=_instructions(body, ptx[:begin].count("\n") + 1),
    )


def _laid_out(declared: str, text: str) -> dict[str, tuple[int, int]]:
    """Offset and size of variables, one after another. Those of no size are given more memory by
    the launch, behind all others."""
    found, end = {}, 0
    text = re.sub(r"\.ptr\s+\.global\s+\.align \d+\s+", "", text)
    for align, bits, name, count in re.findall(declared + r"([\w$]+)((?:\[\d*\])?)", text):
        size = int(bits) // 8 * int(count[1:-1] or 0 if count else 1)
        step = int(align or size)
        begin = -(-end // step) * step
        found[name], end = (begin, size), begin + size
    return found


def _instructions(body: str, line: int) -> list[Instruction]:
    found, pending = [], ""
    # what nvcc writes to take the upper half of a register
    body = re.sub(r"\{ \.reg \.b\d+ tmp; mov(.*?)tmp(.*?;) \}", r"mov\1_\2", body)
    for number, text in enumerate(body.split("\n"), line):
        text = text.split("//")[0].strip()
        if not pending and re.match(r"\.(?:loc|file|pragma|reg|shared)\b", text):
            continue
        if label := re.fullmatch(r"([\w$]+):", text):
            found.append(Instruction(number, label[1]))
            continue
        *whole, pending = f"{pending} {text}".split(";")
        found += [_instruction(number, each.strip()) for each in whole]
        pending = pending.strip()
    if pending:
        raise Unknown(pending)
    return found


def _instruction(line: int, text: str) -> Instruction:
    parts = re.fullmatch(r"(?:@(!?%\w+)\s+)?([\w.:]+)\s*(.*)", text)
    if parts is None:
        raise Unknown(f"line {line}: {text}")
    guard, words, rest = parts.groups()
    return Instruction(line, text, guard or "", tuple(words.split(".")), operands(rest))


def operands(text: str) -> tuple[str, ...]:
    """Operands apart; vectors in braces and addresses in brackets stay together."""
    return tuple(re.findall(r"\{[^}]*\}|\[[^\]]*\]|[^,\s]+", text))
