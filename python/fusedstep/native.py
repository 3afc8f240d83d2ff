"""The compiled module, or why it is absent."""

from __future__ import annotations

import importlib
from typing import Any

module: Any = None
why_absent: str | None = None
try:
    module = importlib.import_module("fusedstep._native")
except ImportError as error:
    why_absent = str(error)
