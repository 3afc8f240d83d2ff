"""``python -m fusedstep``: version and backends; ``python -m fusedstep verify``: compare bits."""

from __future__ import annotations

import argparse
import sys

import torch

from .backends import why_unavailable
from .version import __version__


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m fusedstep", description=__doc__)
    parser.add_argument("command", nargs="?", choices=["verify"], help="compare all backends' bits")
    parser.add_argument("--seconds", type=float, help="how long to verify; default: 12")
    chosen = parser.parse_args()
    seconds = 12.0 if chosen.seconds is None else chosen.seconds
    if not seconds > 0:
        parser.error(f"--seconds is {seconds}; pass a number above 0")
    if chosen.command == "verify":
        from .verify import verify

        try:
            return 0 if verify(seconds) else 1
        except KeyboardInterrupt:
            print("interrupted: NOT VERIFIED", file=sys.stderr)
            return 130
    if chosen.seconds is not None:
        parser.error("--seconds goes with verify; leave it out")
    print(f"fusedstep {__version__}, torch {torch.__version__}")
    for name, why in why_unavailable().items():
        print(f"  {name:<10} {'available' if why is None else f'unavailable: {why}'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
