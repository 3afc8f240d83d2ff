"""``python -m bench``: our steps against torch's fused AdamW, interleaved in one process.

Writes one JSON file (--out) with every row, the machine, versions and the command. Ratios of one
run mean something; absolute times of a shared machine do not.
"""

from __future__ import annotations

import argparse
import json
import platform
import statistics
import sys
import time
from pathlib import Path

import fusedstep
import torch

from bench.parameter_sets import SETS, groups

TORCH_BYTES = 28  # per float32 parameter: p, m, v both ways, g once


def build(make, shapes, device):
    """An optimizer over fresh parameters in two groups, with gradients."""
    parameters = [
        [torch.nn.Parameter(torch.randn(shape, device=device)) for shape in group]
        for group in groups(shapes)
    ]
    optimizer = make(
        [
            {"params": p, "weight_decay": wd}
            for p, wd in zip(parameters, (0.01, 0.0), strict=True)
            if p
        ]
    )
    flat = [p for group in parameters for p in group]
    for p in flat:
        p.grad = torch.randn_like(p)
    return optimizer, flat


def seconds(optimizer, params, fresh: bool, synchronize) -> float:
    if fresh:
        optimizer.zero_grad(set_to_none=True)
        for p in params:
            p.grad = torch.ones_like(p)
    synchronize()
    begin = time.perf_counter()
    optimizer.step()
    synchronize()
    return time.perf_counter() - begin


def compare(name: str, shapes, device: str, rounds: int, fresh: bool) -> dict:
    """Medians of one optimizer and torch's fused AdamW, A B A B."""
    synchronize = torch.cuda.synchronize if device == "cuda" else lambda: None
    ours, our_params = build(getattr(fusedstep, name), shapes, device)
    theirs, their_params = build(lambda g: torch.optim.AdamW(g, fused=True), shapes, device)
    for _ in range(2):
        seconds(ours, our_params, fresh, synchronize)
        seconds(theirs, their_params, fresh, synchronize)
    a, b = [], []
    for _ in range(rounds):
        a.append(seconds(ours, our_params, fresh, synchronize))
        b.append(seconds(theirs, their_params, fresh, synchronize))
    moved = ours.bytes_moved()
    torch_moved = TORCH_BYTES * sum(p.numel() for p in their_params)
    ours_s, theirs_s = statistics.median(a), statistics.median(b)
    return {
        "optimizer": name,
        "launches": len(ours._plan.launches),
        "tensors": len(our_params),
        "bytes": moved,
        "seconds": ours_s,
        "spread": (max(a) - min(a)) / ours_s,
        "torch_fused_adamw_seconds": theirs_s,
        "torch_spread": (max(b) - min(b)) / theirs_s,
        "time_ratio": ours_s / theirs_s,
        "bandwidth_ratio": (moved / ours_s) / (torch_moved / theirs_s),
    }


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m bench", description=__doc__)
    parser.add_argument("--set", nargs="+", choices=SETS, default=["tiny", "bert-base"])
    parser.add_argument("--algorithms", nargs="+", default=["AdamW", "MAdam", "LaMAdam"])
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--out", type=Path, default=Path("build/bench.json"))
    args = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    result = {
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
        "machine": {
            "processor": platform.processor() or platform.machine(),
            "threads": torch.get_num_threads(),
            "device": torch.cuda.get_device_name() if device == "cuda" else "cpu",
        },
        "versions": {
            "fusedstep": fusedstep.__version__,
            "torch": torch.__version__,
            "python": platform.python_version(),
        },
        "rows": [],
    }
    print("set        optimizer launches  time / torch  bandwidth / torch")
    for chosen in args.set:
        host = max(torch.Size(s).numel() for s in SETS[chosen]) < 1000
        for name in args.algorithms:
            row = compare(name, SETS[chosen], device, args.rounds * (10 if host else 1), fresh=host)
            result["rows"].append({"set": chosen, **row})
            print(
                f"{chosen:<10} {name:<8} {row['launches']:>8} {row['time_ratio']:>13.3f} "
                f"{row['bandwidth_ratio']:>18.3f}"
            )
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=2) + "\n")
    print(f"rows: {args.out}")


if __name__ == "__main__":
    main()
