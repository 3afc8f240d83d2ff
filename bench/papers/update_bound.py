"""LaProp's bound on a step, and Adam's steps where beta1 is above the root of beta2."""

from __future__ import annotations

import math
from itertools import product
from statistics import median_high

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task, number, or_inf
from .networks import Networks, batches, digits
from .plotting import colour
from .runs import OURS, marks

NUMBER = 5
TITLE = "Adam's divergence and LaProp's bound"
PAPER = "LaProp, figure 1, table 1 and Proposition 1"
CLAIM = """\
With mu and nu for beta1 and beta2, Adam may diverge where mu > sqrt(nu), and does when training
a two-layer ReLU network with mu = 0.9 and nu = 0.7. No step of LaProp is longer than lr / sqrt(1
- nu), whatever mu."""
SETTING = """\
A 64-64-10 ReLU network on scikit-learn's digits, float32, batches of 64, constant rate 1e-2, no
decay. Assumed: the digits in place of MNIST, width, rate, eps = 1e-15 for LaProp (inside the
root) and 1e-8 for Adam. "Longest step" is the largest change of any weight in any step and run,
less an allowance for one rounding of the weight, divided by lr; losses are the training set's at
the end, the median over runs and the worst."""
WHY = """\
The bound is a theorem: each gradient is divided by a second moment that contains it with weight
1 - nu. At nu < 0.81 the trace of a large gradient in Adam's momentum outlives that in the second
moment, and their quotient grows by a factor of mu / sqrt(nu) in every step of small gradients.
At nu = 0.5 the factor is 1.27, which ends in numbers like 1e8; at 0.7 it is 1.08, and new
gradients come back soon enough. There divergence means that the loss leaves a good solution in
bursts, and returns to it."""
SEEDS = 10
SIZE = (10, 3.2)
RATE = 1e-2
NUS = [0.0, 0.3, 0.5, 0.7, 0.8, 0.9, 0.99, 0.999]


def tasks(quick: bool, seeds: int) -> list[Task]:
    size = {"runs": 2 if quick else seeds, "steps": 300 if quick else 3000}
    return [{"optimizer": name, "nus": NUS, **size} for name in ("Adam", "LaProp")]


def run(task: Task) -> dict:
    networks = Networks(len(task["nus"]), task["runs"], [64, 64, 10])
    groups = networks.groups(*({"betas": (0.9, nu)} for nu in task["nus"]))
    optimizer = getattr(fusedstep, task["optimizer"])(groups, lr=RATE, **OURS)
    longest = torch.zeros(len(task["nus"]))
    draws, at, curve = batches(task["runs"], 64), marks(task["steps"], 100), []
    for step in range(1, task["steps"] + 1):
        losses = networks.backward(*next(draws))
        before = [tensor.x.detach().clone() for tensor in networks.tensors]
        optimizer.step()
        for old, tensor in zip(before, networks.tensors):
            new = tensor.x.detach()
            moved = (new - old).abs() - 2.0**-23 * torch.maximum(new.abs(), old.abs())
            longest = torch.maximum(longest, moved.flatten(1).max(-1)[0] / RATE)
        if step in at:
            curve.append(losses)
    with torch.no_grad():
        final = networks.losses(*digits()[:2])
    quantiles = torch.stack(curve, -1).quantile(torch.tensor([0.5, 1.0]), 1).permute(1, 0, 2)
    return {"longest": longest, "final": final, "curve": quantiles}  # [nus][median, worst][marks]


def by_nu(rows: list[Row]) -> dict[tuple[str, float], dict]:
    return {
        (row["task"]["optimizer"], nu): {name: found[i] for name, found in row["result"].items()}
        for row in rows
        for i, nu in enumerate(row["task"]["nus"])
    }


def limit(nu: float) -> float:
    return 1 / math.sqrt(1 - nu)


def claims(rows: list[Row]) -> list[Claim]:
    of = by_nu(rows)
    final = {key: [or_inf(value) for value in line["final"]] for key, line in of.items()}
    share = max(or_inf(of["LaProp", nu]["longest"]) / limit(nu) for nu in NUS)
    small = [nu for nu in NUS if nu < 0.81]
    worst = max(max(final["LaProp", nu]) for nu in small)
    median = {key: median_high(losses) for key, losses in final.items()}
    return [
        Claim(
            "No step of LaProp exceeds lr / sqrt(1 - nu) by more than 1e-5 of it",
            share <= 1 + 1e-5, asserted=True,
        ),
        Claim(
            "Adam has a step of over ten times that bound at nu = 0.7",
            or_inf(of["Adam", 0.7]["longest"]) > 10 * limit(0.7), asserted=True,
        ),
        Claim("Adam's median loss at nu = 0.7 ends above that of guessing, log 10",
              median["Adam", 0.7] > math.log(10)),
        Claim("and at every smaller nu",
              min(median["Adam", nu] for nu in NUS if nu < 0.7) > math.log(10)),
        Claim("at nu = 0.7 it ends above a hundred times that at nu = 0.9",
              median["Adam", 0.7] > 100 * median["Adam", 0.9]),
        Claim("all runs of LaProp at nu < 0.81 end below a tenth of log 10",
              worst < math.log(10) / 10),
    ]  # fmt: skip


def tables(rows: list[Row]) -> list[Table]:
    of, body = by_nu(rows), []
    for nu in NUS:
        cells = [f"{nu:g}", number(limit(nu))]
        for name in ("Adam", "LaProp"):
            line = of[name, nu]
            final = list(map(or_inf, line["final"]))
            ends = f"{number(median_high(final))}, {number(max(final))}"
            cells += [number(or_inf(line["longest"])), ends]
        body.append(cells)
    header = ["nu", "1 / sqrt(1 - nu)"]
    for name in ("Adam", "LaProp"):
        header += [f"{name}: longest step / lr", "loss: median, worst"]
    return [Table(header, body)]


def draw(rows: list[Row], figure) -> None:
    of = by_nu(rows)
    loss, length = figure.subplots(1, 2)
    at = marks(rows[0]["task"]["steps"], 100)
    for name, (nu, style) in product(("Adam", "LaProp"), ((0.7, "-"), (0.999, ":"))):
        middle = of[name, nu]["curve"][0]
        loss.plot(at, middle, style, color=colour(name), label=f"{name}, nu {nu:g}", linewidth=1)
    loss.set(xscale="log", yscale="log", xlabel="step", ylabel="loss of a batch, median")
    for name in ("Adam", "LaProp"):
        length.plot([of[name, nu]["longest"] for nu in NUS], "o-", color=colour(name), label=name)
    length.plot([limit(nu) for nu in NUS], "k--", label="1 / sqrt(1 - nu)")
    length.set_xticks(range(len(NUS)), [f"{nu:g}" for nu in NUS])
    length.set(yscale="log", xlabel="nu", ylabel="longest step / lr")
    loss.legend()
    length.legend()
