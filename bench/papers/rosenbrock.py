"""LaProp's noisy valley: with which nu, at beta1 = 0.9, runs reach the end of it."""

from __future__ import annotations

from itertools import product

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task
from .plotting import COLOURS
from .runs import OURS, Runs

NUMBER = 4
TITLE = "A noisy Rosenbrock valley"
PAPER = "LaProp, section 4.1, figures 2 and 8"
CLAIM = """\
With beta1 = 0.9, Adam needs a large beta2 (nu in the paper) where there is noise, and AMSGrad
becomes slow; LaProp converges for every nu. At noise 0.12 and more only LaProp converges."""
SETTING = """\
The function is (1 - x + e1)^2 + 100 (y - x^2 + e2)^2, with e1 and e2 drawn anew in each step,
the start (0, 0); float64. Assumed: e1 and e2 uniform in [-noise, noise]; a run has converged at
the step from which it stays within 0.1 of (1, 1), if it does so for a twentieth of all steps or
more; three constant learning rates. Numbers are the steps to converge, the median over runs; a
run that does not converge counts as infinite, and a dash means that half or more do not."""
WHY = """\
With little noise LaProp keeps its promise that beta1 and nu may be chosen freely. At noise 0.08
it needs a nu below 0.99, at 0.14 one below 0.9; with 0.999, its default, it converges where Adam
does, and as fast. A small nu is best for it: each quotient is then near the sign of a gradient,
so a large gradient counts no more than others. Adam with small nu divides the momentum of large
gradients by the second moment of a small one, and jumps. With smaller rates and more steps Adam
and AMSGrad may converge at noise 0.12, too: that LaProp alone does is true only of this number
of steps and these rates."""
SEEDS = 20
SIZE = (10, 3.4)
RATES = [0.003, 0.01, 0.03]
NOISES = [0.04, 0.06, 0.08, 0.1, 0.12, 0.14]
NUS = [0.0, 0.3, 0.5, 0.7, 0.9, 0.95, 0.99, 0.999]
OPTIMIZERS = ("Adam", "AMSGrad", "LaProp")


def tasks(quick: bool, seeds: int) -> list[Task]:
    size = {"runs": 5 if quick else seeds, "steps": 6000 if quick else 20_000}
    axes = {"rates": RATES[1:2], "noises": NOISES[:1], "nus": NUS[:6]} if quick else {
        "rates": RATES, "noises": NOISES, "nus": NUS,
    }  # fmt: skip
    return [{"optimizer": name, **axes, **size} for name in OPTIMIZERS]


def build(name: str, groups: list[dict]) -> torch.optim.Optimizer:
    if name == "LaProp":
        return fusedstep.LaProp(groups, **OURS)
    return fusedstep.Adam(groups, amsgrad=name == "AMSGrad", **OURS)


def lines(task: Task) -> list[tuple[float, float, float]]:
    return list(product(task["rates"], task["noises"], task["nus"]))


def run(task: Task) -> dict:
    generator = torch.Generator().manual_seed(0)
    of, count = lines(task), task["runs"]
    runs = Runs(torch.zeros(len(of), 2, count, dtype=torch.float64))
    groups = runs.groups(*({"lr": rate, "betas": (0.9, nu)} for rate, _, nu in of))
    optimizer = build(task["optimizer"], groups)
    (x, y), (dx, dy) = runs.x.unbind(1), runs.x.grad.unbind(1)
    size = torch.tensor([noise for _, noise, _ in of], dtype=torch.float64)[:, None]
    outside = torch.zeros_like(x)  # the last step at which each run was outside
    for step in range(1, task["steps"] + 1):
        # All lines see the same draws, at the size of their noise.
        e1, e2 = torch.rand(2, count, generator=generator, dtype=torch.float64) * 2 - 1
        a, b = 1 - x + size * e1, y - x * x + size * e2
        torch.sub(-2 * a, 400 * x * b, out=dx)
        torch.mul(b, 200, out=dy)
        optimizer.step()
        outside[(x - 1).square() + (y - 1).square() > 0.01] = step
    arrived = outside <= 0.95 * task["steps"]
    return {"steps": outside.quantile(0.5, -1) + 1, "arrived": arrived.double().mean(-1)}


def arrivals(rows: list[Row]) -> dict[tuple, float]:
    """Median steps by optimizer, rate, noise and nu, where over half of the runs converge."""
    return {
        (row["task"]["optimizer"], *line): steps
        for row in rows
        for line, steps, share in zip(lines(row["task"]), *row["result"].values(), strict=True)
        if share > 0.5
    }


def claims(rows: list[Row]) -> list[Claim]:
    found, task = arrivals(rows), rows[0]["task"]
    count = {
        name: {
            noise: [key[3] for key in found if key[0] == name and key[2] == noise]
            for noise in task["noises"]
        }
        for name in OPTIMIZERS
    }
    said = []
    for name in ("Adam", "AMSGrad"):
        ours, theirs = (sum(map(len, count[one].values())) for one in ("LaProp", name))
        said.append(
            Claim(
                f"LaProp converges with more choices of rate, noise and nu than {name}",
                ours > theirs,
            )
        )
    quiet, *_ = task["noises"]
    loud = [noise for noise in task["noises"] if noise >= 0.12]
    small = {name: sum(nu <= 0.5 for nu in count[name][quiet]) for name in OPTIMIZERS}
    said.append(
        Claim(
            f"at noise {quiet} and nu <= 0.5 LaProp converges more often than Adam",
            small["LaProp"] > small["Adam"],
            asserted=True,
        )
    )
    if loud:
        arrived = {name: any(count[name][noise] for noise in loud) for name in OPTIMIZERS}
        said += [
            Claim("at noise 0.12 or 0.14 LaProp converges", arrived["LaProp"]),
            Claim("and no other does", not arrived["Adam"] and not arrived["AMSGrad"]),
        ]
        noises = {f"at noise {quiet}": [quiet], "and at every noise": task["noises"]}
        for text, of_these in noises.items():
            every = all(
                any(("LaProp", rate, noise, nu) in found for rate in task["rates"])
                for noise, nu in product(of_these, task["nus"])
            )
            said.append(Claim(f"{text} LaProp converges with every nu, at some rate", every))
    return said


def tables(rows: list[Row]) -> list[Table]:
    found, task = arrivals(rows), rows[0]["task"]
    made = []
    for rate in task["rates"]:
        body = []
        for name, noise in product(OPTIMIZERS, task["noises"]):
            steps = [found.get((name, rate, noise, nu)) for nu in task["nus"]]
            if any(steps):
                body.append([f"{name}, {noise}", *(f"{s:.0f}" if s else "-" for s in steps)])
        header = [f"lr {rate:g}: steps, by noise and nu", *(f"{nu:g}" for nu in task["nus"])]
        made.append(Table(header, body))
    return made


def draw(rows: list[Row], figure) -> None:
    found, task = arrivals(rows), rows[0]["task"]
    axes = figure.subplots(1, len(OPTIMIZERS), sharey=True, squeeze=False)[0]
    for axis, name in zip(axes, OPTIMIZERS):
        for i, noise in enumerate(task["noises"]):
            best = []
            for nu in task["nus"]:
                steps = [found.get((name, rate, noise, nu)) for rate in task["rates"]]
                best.append(min(filter(None, steps), default=float("nan")))
            axis.plot(range(len(best)), best, marker="o", label=f"noise {noise}", color=COLOURS[i])
        axis.set_xticks(range(len(task["nus"])), [f"{nu:g}" for nu in task["nus"]])
        axis.set(title=name, xlabel="nu", ylim=(0, task["steps"]))
    axes[0].set_ylabel("steps, at the best of the rates")
    axes[0].legend()
