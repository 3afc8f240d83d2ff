"""PTX's types: ``pred``, and ``f32``, ``u64``, ``b16`` and so on."""

from __future__ import annotations

import re

from .parse import Unknown


def cpp(kind: str) -> str:
    """The C++ type for a PTX type."""
    if re.fullmatch(r"pred|f(16|32|64)|[bus](8|16|32|64)", kind) is None:
        raise Unknown(kind)
    if kind == "pred":
        return "bool"
    if kind[0] == "f":
        return kind
    return f"std::{'' if kind[0] == 's' else 'u'}int{width(kind)}_t"


def width(kind: str) -> int:
    return int(kind[1:])


def bits_of(kind: str) -> str:
    return kind if kind == "pred" else f"b{width(kind)}"


def unsigned(kind: str) -> str:
    """The type in which sums and products wrap around."""
    return f"u{width(kind)}" if kind[0] == "s" else kind
