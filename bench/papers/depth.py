"""LaProp's very deep networks: the largest rate that learns, by depth."""

from __future__ import annotations

import math
from itertools import product
from statistics import median_high

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task, by_optimizer, number, or_inf
from .networks import Networks, batches, digits
from .plotting import band
from .runs import OURS, marks

NUMBER = 6
TITLE = "Very deep fully connected networks"
PAPER = "LaProp, figure 4"
CLAIM = """\
Fully connected ReLU networks of hundreds of layers, without normalisation or skips, learn with
LaProp where Adam is unstable or fails, and at larger rates."""
SETTING = """\
Layers of width 32 on scikit-learn's digits, He's initial weights, batches of 64, 500 steps of
constant rate, betas (0.9, 0.999) for both, eps 1e-15 for LaProp (inside the root) and 1e-8 for
Adam. Assumed: all sizes; the paper's are MNIST, batches of 1024 and up to 5000 layers. Losses
are the training set's at the end, the median over seeds; a rate "learns" if that is below half
of log 10, the loss of guessing."""
WHY = """\
The direction is the paper's, the contrast is not: LaProp's least median loss is lower at every
depth, by a few tenths or less, but the largest rates that learn, by our criterion and on our
coarse grid, are the same, and at 128 layers 500 steps suffice for neither. Three seeds decide
little at 128 layers: at a rate of 1e-3 two of Adam's three networks and one of LaProp's are
silent, but the lowest loss of the six is Adam's. The paper's thousands of layers and longer
training are out of reach here."""
SEEDS = 3
SIZE = (10, 3.2)
DEPTHS = [8, 32, 128]
RATES = [1e-5, 3e-5, 1e-4, 3e-4, 1e-3, 3e-3, 0.01]
LEARNS = math.log(10) / 2


def tasks(quick: bool, seeds: int) -> list[Task]:
    size = {"runs": 1 if quick else seeds, "steps": 60 if quick else 500}
    depths = DEPTHS[:1] if quick else DEPTHS
    return [
        {"depth": depth, "optimizer": name, **size}
        for depth, name in product(depths, ("Adam", "LaProp"))
    ]


def run(task: Task) -> dict:
    widths = [64, *[32] * task["depth"], 10]
    networks = Networks(len(RATES), task["runs"], widths)
    groups = networks.groups(*({"lr": rate} for rate in RATES))
    optimizer = getattr(fusedstep, task["optimizer"])(groups, betas=(0.9, 0.999), **OURS)
    torch.set_flush_denormal(True)  # gradients of dead networks are subnormal, and slow
    draws, at, curve = batches(task["runs"], 64), marks(task["steps"], 40), []
    for step in range(1, task["steps"] + 1):
        losses = networks.backward(*next(draws))
        optimizer.step()
        if step in at:
            curve.append(losses)
    with torch.no_grad():
        final = networks.losses(*digits()[:2])
    torch.set_flush_denormal(False)
    return {"final": final, "curve": torch.stack(curve).median(-1)[0].T}  # [rates][marks]


def medians(row: Row) -> list[float]:
    return [median_high(map(or_inf, line)) for line in row["result"]["final"]]


def largest(row: Row) -> float:
    """The largest rate that learns, 0 where none does."""
    return max((rate for rate, loss in zip(RATES, medians(row)) if loss < LEARNS), default=0.0)


def claims(rows: list[Row]) -> list[Claim]:
    said = []
    for depth, of in by_optimizer(rows, "depth").items():
        adam, laprop = of["Adam"], of["LaProp"]
        said += [
            Claim(
                f"{depth} layers: LaProp learns at larger rates", largest(laprop) > largest(adam)
            ),
            Claim(
                f"{depth} layers: LaProp's least loss is lower",
                min(medians(laprop)) < min(medians(adam)),
            ),
        ]
    return said


def tables(rows: list[Row]) -> list[Table]:
    body = []
    for row in rows:
        rate = largest(row)
        cells = [f"{row['task']['depth']}, {row['task']['optimizer']}", *map(number, medians(row))]
        body.append([*cells, f"{rate:g}" if rate else "none"])
    header = ["layers; loss at lr", *(f"{rate:g}" for rate in RATES), "largest that learns"]
    return [Table(header, body)]


def draw(rows: list[Row], figure) -> None:
    found = by_optimizer(rows, "depth")
    axes = figure.subplots(1, len(found), sharey=True, squeeze=False)[0]
    for axis, (depth, of) in zip(axes, found.items()):
        for name, row in of.items():
            ends = medians(row)
            i = ends.index(min(ends))
            at = marks(row["task"]["steps"], 40)
            curve = row["result"]["curve"][i]
            label = f"{name}, lr {RATES[i]:g}"
            band(axis, at, curve, [0.0] * len(at), label=label)
        axis.set(title=f"{depth} layers, each at its best rate", xlabel="step", yscale="log")
        axis.legend()
    axes[0].set_ylabel("loss of a batch, median")
