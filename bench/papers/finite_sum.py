"""MaxVA's finite sum: eleven functions whose sum has its minimum at 0."""

from __future__ import annotations

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task, number
from .plotting import between
from .runs import OURS, Runs, marks

NUMBER = 1
TITLE = "Eleven functions, of which Adam hears ten"
PAPER = "MaxVA, section 4.1, equation 12 (a problem of Chen et al. 2019)"
CLAIM = """\
Adam diverges for every learning rate in [1e-4, 1]; AMSGrad (learning rate 0.8) and MAdam (1.2)
converge, MAdam to lower values late in training. The sum S1 of squared steps and the sum S2 of
changes of the effective rate stay small for the two that converge."""
SETTING = """\
One function is `5.5 x^2`, the ten others `-0.5 x^2`, where `|x| <= 1`; outside, `11 |x| - 5.5`
and `0.5 - |x|`. Their sum is `0.5 x^2` and `|x| - 0.5`. Each step draws one of the eleven. As in
the authors' script: start at x = 2, beta1 = 0, beta2 = 0.9 for Adam and AMSGrad, MAdam's betas
in [0.5, 1], constant rates. The script's MAdam, unlike ours, is not Algorithm 1: its rate is 1,
whatever it is given, and it measures a gradient's deviation from the weighted sum of gradients,
not from their mean. Ours: 20,000 steps, not 100,000; float64; also beta2 = 0.99 and 0.999, and a
grid of rates. S1 = sum of (x_t - x_(t-1))^2, S2 = sum of |a_t - a_(t-1)|, a_t = step / gradient.
Medians over runs, with quartiles in parentheses."""
WHY = """\
At beta2 = 0.9 the second moment forgets a gradient of 11 within a few steps. So that gradient is
divided by a second moment that contains it, the ten of -1 by ones that do not, and the eleven
steps add up to one away from 0. At 0.99 and 0.999 most of eleven steps share one second moment;
Adam then converges at middling rates and fails at large ones. So the paper's statement depends
on the beta2 of the authors' script. AMSGrad's median ends near 0, but not all of its runs do, as
the last column shows. Ends far below 1e-16 arise because near 0 the gradient is a multiple of x:
they show for how long and how fast x shrank, not a precision."""
SEEDS = 100
SIZE = (10, 3.2)
RATES = [1e-4, 1e-3, 1e-2, 0.1, 0.2, 0.4, 0.8, 1.0]
BETAS = [0.9, 0.99, 0.999]
SUMS = ("S1", "S2")
START, LOW = 2.0, 0.01


def tasks(quick: bool, seeds: int) -> list[Task]:
    size = {"runs": 20 if quick else seeds, "steps": 4000 if quick else 20_000}
    adams = [{"lr": lr, "beta2": beta} for lr in RATES for beta in BETAS]
    madams = [{"lr": lr} for lr in [0.1, 0.2, 0.4, 0.8, 1.2]]
    lines = {"Adam": adams, "AMSGrad": adams, "MAdam": madams}
    return [{"optimizer": name, "lines": own, **size} for name, own in lines.items()]


def build(name: str, runs: Runs, lines: list[dict]) -> torch.optim.Optimizer:
    if name == "MAdam":
        options = [{"lr": line["lr"], "beta1": 0.0, "beta2_range": (0.5, 1.0)} for line in lines]
        return fusedstep.MAdam(runs.groups(*options), **OURS)
    options = [{"lr": line["lr"], "betas": (0.0, line["beta2"])} for line in lines]
    return fusedstep.Adam(runs.groups(*options), amsgrad=name == "AMSGrad", **OURS)


def objective(x: torch.Tensor) -> torch.Tensor:
    return torch.where(x.abs() <= 1, 0.5 * x * x, x.abs() - 0.5)


def run(task: Task) -> dict:
    generator = torch.Generator().manual_seed(0)
    count = task["runs"]
    runs = Runs(torch.full((len(task["lines"]), count), START, dtype=torch.float64))
    optimizer = build(task["optimizer"], runs, task["lines"])
    x, grad = runs.x, runs.x.grad
    s1, s2, rate = torch.zeros_like(x), torch.zeros_like(x), None
    at, curves = marks(task["steps"]), {"objective": [], "S1": [], "S2": []}
    for step in range(1, task["steps"] + 1):
        first = torch.randint(11, (count,), generator=generator) == 0
        torch.mul(x.clamp(-1, 1), torch.where(first, 11.0, -1.0), out=grad)
        before = x.clone()
        optimizer.step()
        moved = before - x
        s1 += moved * moved
        now = torch.where(grad == 0, 0.0 if rate is None else rate, moved / grad)
        if rate is not None:
            s2 += (now - rate).abs()
        rate = now
        if step in at:
            for name, values in (("objective", objective(x)), ("S1", s1), ("S2", s2)):
                curves[name].append(torch.stack((values.median(-1)[0], *quartiles(values)), -1))
    # [lines][median, quartiles][marks]
    found = {name: torch.stack(of_all).permute(1, 2, 0) for name, of_all in curves.items()}
    return {**found, "low": (objective(x) < LOW).sum(-1)}


def quartiles(values: torch.Tensor) -> torch.Tensor:
    return values.quantile(torch.tensor([0.25, 0.75], dtype=values.dtype), -1)


LARGEST = {"Adam": (1.0, 0.9), "AMSGrad": (0.8, 0.9), "MAdam": (1.2, None)}  # rates of the paper


def lines(rows: list[Row]) -> dict[tuple, dict[str, tuple]]:
    """Each line's part of every result, by optimizer, rate and beta2."""
    found = {}
    for row in rows:
        for i, line in enumerate(row["task"]["lines"]):
            key = (row["task"]["optimizer"], line["lr"], line.get("beta2"))
            found[key] = {what: curves[i] for what, curves in row["result"].items()}
    return found


def end(line: dict, what: str = "objective") -> float:
    return line[what][0][-1]


def claims(rows: list[Row]) -> list[Claim]:
    of = lines(rows)
    adam = {key: end(line) for key, line in of.items() if key[0] == "Adam"}
    ours, other, third = (of[(name, *LARGEST[name])] for name in ("MAdam", "AMSGrad", "Adam"))
    worst = min(end(third, what) / max(end(one, what) for one in (ours, other)) for what in SUMS)
    return [
        Claim(
            "Adam's objective ends above its start of 1.5 at every rate, with beta2 = 0.9",
            min(value for key, value in adam.items() if key[2] == 0.9) > START - 0.5,
            asserted=True,
        ),
        Claim("and with beta2 = 0.99 and 0.999", min(adam.values()) > START - 0.5),
        Claim("AMSGrad's ends below 0.01 at 0.8", end(other) < LOW, asserted=True),
        Claim("MAdam's ends below 0.01 at 1.2", end(ours) < LOW, asserted=True),
        Claim("MAdam's at 1.2 ends lower than AMSGrad's at 0.8", end(ours) < end(other)),
        Claim("Adam's S1 and S2, at 1.0, end above those of both", worst > 1),
    ]


def tables(rows: list[Row]) -> list[Table]:
    of = lines(rows)
    body = []
    for name, (rate, beta) in LARGEST.items():
        line = of[name, rate, beta]
        cells = [f"{name}, lr {rate:g}"]
        for what in ("objective", *SUMS):
            middle, low, high = (number(curve[-1]) for curve in line[what])
            cells.append(f"{middle} ({low} to {high})")
        body.append([*cells, f"{line['low']} of {rows[0]['task']['runs']}"])
    sweep = [
        [
            number(rate),
            *(number(end(of[name, rate, b])) for name in ("Adam", "AMSGrad") for b in BETAS),
        ]
        for rate in RATES
    ]
    header = [f"{name} {beta:g}" for name in ("Adam", "AMSGrad") for beta in BETAS]
    return [
        Table(["at the paper's rates, beta2 = 0.9", "objective", *SUMS, "runs below 0.01"], body),
        Table(["median objective at the end; lr", *header], sweep),
    ]


def draw(rows: list[Row], figure) -> None:
    of = lines(rows)
    at = marks(rows[0]["task"]["steps"])
    for place, what in enumerate(("objective", *SUMS)):
        axis = figure.add_subplot(1, 3, place + 1)
        for name, key in LARGEST.items():
            between(axis, at, *of[(name, *key)][what], label=f"{name}, lr {key[0]:g}")
        axis.set(xscale="log", yscale="log", xlabel="step", title=what)
        axis.set_ylim({"objective": 1e-16, "S1": 0.1, "S2": 0.1}[what], None)
    axis.legend()
