"""PTX as C++: an array for each kind of register, a statement for each instruction, which calls
what machine.h has. What compilers do not make of our kernels raises Unknown."""

from __future__ import annotations

import re
from itertools import count

from .kinds import bits_of, cpp, unsigned, width
from .parse import Entry, Instruction, Unknown, operands

SPECIAL = {f"%{name}.x": f"thread.{name}" for name in ("tid", "ctaid", "ntid", "nctaid")}
ALIKE = {  # by what one method translates, and what it is given
    **{name: ("infix", sign) for name, sign in zip(("add", "sub", "div", "rem"), "+-/%")},
    **{name: ("bitwise", sign) for name, sign in zip(("and", "or", "xor"), "&|^")},
    **{name: ("integer", f"std::{name}") for name in ("min", "max")},
    "abs": ("function", "std::abs({})"),
    "sqrt": ("function", "std::sqrt({})"),
    "rcp": ("function", "1 / {}"),
    "shl": ("integer", "shift_left"),
    "shr": ("integer", "shift_right"),
    "bfe": ("integer", "extract"),
    "bfi": ("integer", "insert"),
}
COMPARED = {"eq": "==", "ne": "!=", "lt": "<", "le": "<=", "gt": ">", "ge": ">="}


def translate(entry: Entry) -> str:
    """The body of a C++ coroutine that does what the kernel does."""
    return _Translator(entry).body()


def parts_of(operand: str) -> tuple[str, ...]:
    """The elements of a vector; of another operand, itself."""
    return operands(operand[1:-1]) if operand[0] == "{" else (operand,)


class _Translator:
    def __init__(self, entry: Entry):
        self.entry = entry
        self.prefixes = {prefix for prefix, _, _ in entry.registers}

    def body(self) -> str:
        kinds = {1: "bool", **{bits: cpp(f"b{bits}") for bits in (16, 32, 64)}}
        declared = [f"{kinds[bits]} {name}[{n}] = {{}};" for name, bits, n in self.entry.registers]
        done = map(self.statement, self.entry.instructions)
        return "\n".join([*declared, *done, "co_return;"])

    def statement(self, at: Instruction) -> str:
        if at.is_label:
            return f"{_label(at.text)}:;"
        try:
            method, *given = ALIKE.get(at.words[0], at.words[:1])
            done = getattr(self, f"op_{method}")(*given, at.words[1:], *at.operands)
        except (Unknown, AttributeError, TypeError, KeyError, ValueError) as error:
            raise Unknown(f"line {at.line}: {at.text} ({error!r})") from error
        if at.guard:
            sign = "!" if at.guard[0] == "!" else ""
            done = f"if ({sign}{self.register(at.guard.lstrip('!'))}) {{ {done} }}"
        return f"thread.line = {at.line}; {done}"

    # Operands

    def register(self, operand: str) -> str:
        prefix, number = re.fullmatch(r"%([a-z]+)(\d+)", operand).groups()
        if prefix not in self.prefixes:
            raise Unknown(operand)
        return f"{prefix}[{number}]"

    def value(self, operand: str, kind: str) -> str:
        """What an operand is, as a PTX type."""
        if operand in SPECIAL:
            return f"{cpp(kind)}({SPECIAL[operand]})"
        if operand[0] == "%":
            return f"as<{cpp(kind)}>({self.register(operand)})"
        if number := re.fullmatch(r"0[fd]([0-9A-Fa-f]+)", operand):  # its bits
            return f"as<{cpp(kind)}>({cpp(bits_of(kind))}(0x{number[1]}u))"
        symbols = self.entry.symbols
        number = symbols[operand] if operand in symbols else int(operand.rstrip("U"), 0)
        return f"{cpp(kind)}({number % 2**64}ull)"

    def bits(self, operand: str, kind: str) -> str:
        return self.value(operand, bits_of(kind))

    def put(self, operand: str, kind: str, expression: str) -> str:
        """A value of a type goes into a register."""
        if operand == "_":
            return ";"
        return f"put({self.register(operand)}, {cpp(kind)}({expression}));"

    def address(self, operand: str) -> str:
        base, offset = re.fullmatch(r"\[\s*([%\w$]+)\s*(?:\+\s*(-?\d+)\s*)?\]", operand).groups()
        return f"({self.value(base, 'u64')} + {int(offset or 0) % 2**64}ull)"

    # Moves

    def op_mov(self, words, to, what):
        [kind] = words
        if what[0] == "{":
            word, parts = bits_of(kind), parts_of(what)
            size = width(kind) // len(parts)
            shifted = (
                f"{cpp(word)}({self.value(p, f'b{size}')}) << {at}"
                for at, p in zip(count(0, size), parts)
            )
            return self.put(to, word, " | ".join(shifted))
        if to[0] == "{":
            whole, parts = self.bits(what, kind), parts_of(to)
            size = width(kind) // len(parts)
            taken = (
                self.put(p, f"b{size}", f"{whole} >> {at}") for at, p in zip(count(0, size), parts)
            )
            return " ".join(taken)
        return self.put(to, bits_of(kind), self.bits(what, kind))

    def op_cvta(self, words, to, what):
        return self.put(to, "u64", self.value(what, "u64"))  # all are global

    def op_cvt(self, words, to, *what):
        *how, into, kind = words
        _only({"rn"}, how)
        if into == "f16x2":
            high, low = (f"std::bit_cast<std::uint16_t>(f16({self.value(w, kind)}))" for w in what)
            return self.put(to, "b32", f"std::uint32_t({high}) << 16 | {low}")
        [one] = what
        return self.put(to, into, self.value(one, kind))

    def op_selp(self, words, to, a, b, test):
        [kind] = words
        chosen = f"{self.register(test)} ? {self.bits(a, kind)} : {self.bits(b, kind)}"
        return self.put(to, bits_of(kind), chosen)

    # Arithmetic

    def op_infix(self, sign, words, to, a, b):
        *how, kind = words
        if words == ("rn", "f32", "f16"):
            return self.put(to, "f32", f"f32({self.value(a, 'f16')}) {sign} {self.value(b, 'f32')}")
        if kind[0] == "f":
            if how != ["rn"]:  # ptxas may contract or approximate
                raise Unknown(sign)
            if kind == "f32x2":
                of = f"{self.value(a, 'b64')}, {self.value(b, 'b64')}"
                return self.put(
                    to, "b64", f"pairs({of}, [](f32 x, f32 y) {{ return x {sign} y; }})"
                )
        elif sign in "/%":
            _only(set(), how)
        else:
            _only({"lo"}, how)
            kind = unsigned(kind)
        return self.put(to, kind, f"{self.value(a, kind)} {sign} {self.value(b, kind)}")

    def op_mul(self, words, to, a, b):
        if words[0] == "wide":
            return self.op_mad(words, to, a, b, "0")
        return self.op_infix("*", words, to, a, b)

    def op_mad(self, words, to, a, b, c):
        how, kind = words
        _only({"wide", "lo"}, [how])
        _only({"u", "s"}, [kind[0]])
        result = f"u{width(kind) * (2 if how == 'wide' else 1)}"
        x, y = (f"{cpp(result)}({self.value(operand, kind)})" for operand in (a, b))
        return self.put(to, result, f"{x} * {y} + {self.value(c, result)}")

    def op_bitwise(self, sign, words, to, a, b):
        [kind] = words
        return self.put(to, kind, f"{self.value(a, kind)} {sign} {self.value(b, kind)}")

    def op_not(self, words, to, a):
        [kind] = words
        return self.put(to, kind, f"{'!' if kind == 'pred' else '~'}{self.value(a, kind)}")

    def op_neg(self, words, to, a):
        [kind] = words
        if kind[0] == "f":  # of a NaN, too
            sign = f"{cpp(bits_of(kind))}(1) << {width(kind) - 1}"
            return self.put(to, bits_of(kind), f"{self.bits(a, kind)} ^ ({sign})")
        return self.put(to, unsigned(kind), f"0 - {self.value(a, unsigned(kind))}")

    def op_function(self, form, words, to, a):
        *how, kind = words
        _only({"rn"}, how)
        return self.put(to, kind, form.format(self.value(a, kind)))

    def op_integer(self, function, words, to, *what):
        [kind] = words
        _only({"u", "s", "b"}, [kind[0]])
        kinds = [kind] * (2 if function in ("std::min", "std::max", "insert") else 1) + ["u32"] * 2
        values = map(self.value, what, kinds)
        return self.put(to, kind, f"{function}({', '.join(values)})")

    def op_prmt(self, words, to, *what):
        _only({"b32"}, words)
        return self.put(to, "b32", f"permute({', '.join(self.value(w, 'b32') for w in what)})")

    def op_setp(self, words, to, a, b):
        how, kind = words
        a, b = self.value(a, kind), self.value(b, kind)
        nan = f"std::isunordered({a}, {b})" if kind[0] == "f" else "false"
        if how.endswith("u"):  # true of NaNs
            return self.put(to, "pred", f"{nan} || {a} {COMPARED[how[:-1]]} {b}")
        return self.put(to, "pred", f"!{nan} && {a} {COMPARED[how]} {b}")

    # Memory

    def _access(self, words, what) -> tuple[str, int, str, tuple[str, ...]]:
        """Suffix of what machine.h calls it; size and type of an element; the elements."""
        *how, kind = (word.split(":")[0] for word in words)
        _only({"global", "shared", "param", "volatile", "v2", "v4"}, how)
        parts = parts_of(what)
        if len(parts) != (4 if "v4" in how else 2 if "v2" in how else 1):
            raise Unknown(what)
        suffix = "_shared" if "shared" in how else "_parameter" if "param" in how else ""
        return suffix, width(kind) // 8, kind, parts

    def op_ld(self, words, to, place):
        suffix, size, kind, parts = self._access(words, to)
        done = " ".join(
            self.put(p, kind, f"thread.load{suffix}<{cpp(kind)}>(place, {size * len(parts)}, {at})")
            for at, p in zip(count(0, size), parts)
        )
        return f"{{ const std::uint64_t place = {self.address(place)}; {done} }}"

    def op_st(self, words, place, what):
        suffix, size, kind, parts = self._access(words, what)
        done = " ".join(
            f"thread.store{suffix}(place, {self.bits(p, kind)}, {size * len(parts)}, {at});"
            for at, p in zip(count(0, size), parts)
        )
        return f"{{ const std::uint64_t place = {self.address(place)}; {done} }}"

    def op_atom(self, words, to, place, more):
        _only({"global", "gpu", "relaxed", "release", "acquire", "acq_rel", "add", "u32"}, words)
        acquires, releases = (
            not {way, "acq_rel"}.isdisjoint(words) for way in ("acquire", "release")
        )
        added = f"{self.address(place)}, {self.value(more, 'u32')}, {acquires:d}, {releases:d}"
        return self.put(to, "u32", f"thread.add({added})")

    def op_fence(self, words):
        _only({"acq_rel", "gpu"}, words)
        return "thread.fence();"

    def op_cp(self, words, *what):
        if words[1] == "commit_group":
            return "thread.commit();"
        if words[1] == "wait_group":
            return f"thread.arrive({int(what[0], 0)});"
        _only({"async", "ca", "cg", "shared", "global"}, words)
        to, place, size, *valid = what
        valid = self.value(valid[0] if valid else size, "u32")
        return f"thread.send({self.address(to)}, {self.address(place)}, {int(size, 0)}, {valid});"

    # Control, and what threads do together

    def op_bra(self, words, label):
        return f"goto {_label(label)};"

    def op_ret(self, words):
        return "co_return;"

    def op_bar(self, words, number):
        if words != ("sync",) or number != "0":
            raise Unknown(number)
        return "co_await barrier(thread);"

    def op_shfl(self, words, to, a, other, clamp, mask):
        _, how, _ = words
        _only({"bfly", "down"}, [how])
        values = (self.value(each, "u32") for each in (a, other, clamp, mask))
        to, _, valid = to.partition("|")
        done = f"co_await exchange(thread, Asks::{how}, {', '.join(values)});"
        done += self.put(to, "b32", "thread.taken[0]")
        return done + (self.put(valid, "pred", "thread.in_range") if valid else "")

    def op_ldmatrix(self, words, to, place):
        if words != ("sync", "aligned", "m8n8", "x4", "shared", "b16"):
            raise Unknown(place)
        taken = (self.put(p, "b32", f"thread.taken[{i}]") for i, p in enumerate(parts_of(to)))
        return f"co_await matrices(thread, {self.address(place)}); {' '.join(taken)}"


def _only(known: set[str], words) -> None:
    if unknown := set(words) - known:
        raise Unknown(unknown)


def _label(name: str) -> str:
    return name.replace("$", "L_")
