"""AvaGrad's counterexample to Adam: one gradient in 500 is large and points the other way."""

from __future__ import annotations

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task, number, with_error
from .plotting import COLOURS, band
from .runs import OURS, Runs, marks, standard_error

NUMBER = 7
TITLE = "A rare large gradient, which Adam divides by itself"
PAPER = "AvaGrad, sections 4 and 8, equation 11 and figure 3"
CLAIM = """\
To be minimised over w in [0, 1]: E f, where f is 999 w^2 / 2 with probability 1/500, else -w.
Adam does not approach the stationary point; AMSGrad, DelayedAdam and Adam with eps_t = sqrt(t^3)
do."""
SETTING = """\
The gradient of E f is 999/500 (w - 0.4995). beta1 = 0, beta2 = 0.99, eps = 1e-8, w projected to
[0, 1] after every step, float64. Assumed: starts evenly spaced in [0, 1]; learning rates
a/sqrt(t) with each a of the table; for the growing eps a times eps_t/sqrt(t), as without that
factor all its steps together have a bounded length (the row "constant rate"). Each point of a
curve averages squared gradients since the point before, the table those of the last sixth of all
steps; means over runs ± standard error."""
WHY = """\
Adam divides the rare gradient by a second moment that it has just raised, so its step is at most
ten times the rate where a fair share would be hundreds: w drifts to 1, or jumps between the
ends. DelayedAdam's second moment, one step late, does not contain the gradient that it divides;
AMSGrad's, which never falls, and one that a growing eps drowns hardly depend on it."""
SEEDS = 100
SIZE = (6.4, 3.6)
SCALES = [1e-3, 1e-2, 0.1, 1.0, 10.0]
STATIONARY = 499 / 999
METHODS = (
    "Adam",
    "AMSGrad",
    "DelayedAdam",
    "Adam, growing eps",
    "Adam, growing eps, constant rate",
)


def tasks(quick: bool, seeds: int) -> list[Task]:
    size = {"runs": 20 if quick else seeds, "steps": 20_000 if quick else 100_000}
    methods = METHODS[:3] if quick else METHODS
    return [{"method": name, "scales": SCALES, **size} for name in methods]


def build(method: str, groups: list[dict], eps: torch.Tensor) -> torch.optim.Optimizer:
    common = {"betas": (0.0, 0.99), **OURS}
    if method == "DelayedAdam":
        return fusedstep.DelayedAdam(groups, eps=1e-8, **common)
    growing = "growing" in method
    return fusedstep.Adam(
        groups, eps=eps if growing else 1e-8, amsgrad=method == "AMSGrad", **common
    )


def run(task: Task) -> dict:
    generator = torch.Generator().manual_seed(0)
    method, scales = task["method"], torch.tensor(task["scales"], dtype=torch.float64)
    starts = torch.linspace(0, 1, task["runs"], dtype=torch.float64)
    runs = Runs(starts.expand(len(scales), -1))
    # As tensors, which every step reads anew.
    rate, eps = scales.clone(), torch.ones((), dtype=torch.float64)
    optimizer = build(method, runs.groups(*({"lr": one} for one in rate)), eps)
    w, grad = runs.x, runs.x.grad
    at, total, last, curve = marks(task["steps"]), torch.zeros_like(w), 0, []
    for step in range(1, task["steps"] + 1):
        rare = torch.rand(task["runs"], generator=generator) < 1 / 500
        grad.copy_(torch.where(rare, 999 * w, -1.0))
        total += (999 / 500 * (w - STATIONARY)).square()
        eps.fill_(step**1.5)
        if not method.endswith("constant rate"):
            torch.mul(scales, (step if "growing" in method else step**-0.5), out=rate)
        optimizer.step()
        w.clamp_(0, 1)
        if step in at:
            mean, last = total / (step - last), step
            total.zero_()
            curve.append(torch.stack((mean.mean(-1), standard_error(mean)), -1))
    # [scales][mean, standard error][marks]
    return {"squared gradient": torch.stack(curve).permute(1, 2, 0), "w": w.mean(-1)}


def best(row: Row) -> int:
    ends = [middle[-1] for middle, _ in row["result"]["squared gradient"]]
    return ends.index(min(ends))


def end(row: Row, i: int) -> float:
    return row["result"]["squared gradient"][i][0][-1]


def claims(rows: list[Row]) -> list[Claim]:
    of = {row["task"]["method"]: row for row in rows}
    lowest = {name: end(row, best(row)) for name, row in of.items()}

    def falls(name: str) -> Claim:
        holds = lowest[name] < lowest["Adam"] / 4
        asserted = name == "DelayedAdam"
        return Claim(f"{name}: the best is below a quarter of Adam's best", holds, asserted)

    # The squared gradient is 1 at w = 0 or 1, and 1/3 on average where w stays at its start.
    return [
        Claim(
            "Adam's squared gradient ends above 0.3 at every rate",
            lowest["Adam"] > 0.3,
            asserted=True,
        ),
        *(falls(name) for name in METHODS[1:4] if name in of),
    ]


def tables(rows: list[Row]) -> list[Table]:
    lines = []
    for row in rows:
        cells = [row["task"]["method"]]
        for middle, error in row["result"]["squared gradient"]:
            cells.append(with_error(middle[-1], error[-1]))
        lines.append([*cells, number(row["result"]["w"][best(row)])])
    scales = [f"a = {scale:g}" for scale in SCALES]
    return [Table(["mean squared gradient", *scales, "last w of the best"], lines)]


def draw(rows: list[Row], figure) -> None:
    axis = figure.add_subplot()
    for i, row in enumerate(rows):
        line = best(row)
        label = f"{row['task']['method']}, a = {SCALES[line]:g}"
        at = marks(row["task"]["steps"])
        band(axis, at, *row["result"]["squared gradient"][line], label=label, color=COLOURS[i])
    axis.set(xscale="log", yscale="log", xlabel="step", ylabel="squared gradient")
    axis.legend()
