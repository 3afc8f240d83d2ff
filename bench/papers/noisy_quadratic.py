"""MaxVA's noisy quadratic: how low the loss ends at each learning rate."""

from __future__ import annotations

import statistics
from itertools import product

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task, number
from .plotting import band, colour
from .runs import Runs, standard_error

NUMBER = 2
TITLE = "A noisy quadratic"
PAPER = "MaxVA, section 4.2 (the model of Zhang et al. 2019)"
CLAIM = """\
Over a sweep of learning rates MAdam ends at an average loss 30 to 40 % below that of Adam with
its best beta2, with a smaller standard error."""
SETTING = """\
Loss E (h_1 (x_1 - c_1)^2 + h_2 (x_2 - c_2)^2) / 2 without its constant, c_i normal with
deviation sigma_i and drawn anew in each step, float64. Assumed: h, sigma and the number of steps
as in the table, start at (1, 1), 17 constant rates from 1e-4 to 1, beta1 = 0; MAdam's betas in
[0.5, 1]; Adam's beta2 the best of 0.5, 0.9, 0.99 and 0.999 at each rate. Losses are means over
the runs of the mean over the last tenth of the steps, ± standard error; the best rate has the
lowest mean."""
WHY = """\
At equal rates MAdam's loss is far lower, but mostly since its second moment, which grows at once
and fades slowly, makes its steps shorter: Adam's best rate is a half to a third of MAdam's. With
a fine grid of rates for both, what is left is some ten per cent and, where curvatures differ a
hundredfold and steps are few, a loss. A coarser grid, or one that ends above Adam's best rate,
would show the paper's 30 to 40 %; we do not know its grid."""
SEEDS = 100
SIZE = (10, 3.4)
RATES = [round(10 ** (-4 + i / 4), 7) for i in range(17)]
BETAS = [0.5, 0.9, 0.99, 0.999]
PROBLEMS = [
    {"h": h, "sigma": sigma, "steps": steps}
    for h, sigma in (([1.0, 1.0], [0.1, 1.0]), ([1.0, 0.1], [1.0, 1.0]), ([1.0, 0.01], [0.1, 1.0]))
    for steps in (100, 1000, 10_000)
]
PATHS = 200  # steps of the trajectories that are drawn


def tasks(quick: bool, seeds: int) -> list[Task]:
    problems = PROBLEMS[1:2] if quick else PROBLEMS
    return [
        {"optimizer": name, **problem, "runs": 20 if quick else seeds}
        for problem, name in product(problems, ("Adam", "MAdam"))
    ]


def lines(task: Task) -> list[tuple[float, float | None]]:
    return list(product(RATES, BETAS if task["optimizer"] == "Adam" else [None]))


def build(task: Task, runs: Runs) -> torch.optim.Optimizer:
    common, of = {"form": "paper", "backend": "cpu"}, lines(task)
    if task["optimizer"] == "MAdam":
        groups = runs.groups(*({"lr": rate} for rate, _ in of))
        return fusedstep.MAdam(groups, beta1=0.0, beta2_range=(0.5, 1.0), **common)
    groups = runs.groups(*({"lr": rate, "betas": (0.0, beta)} for rate, beta in of))
    return fusedstep.Adam(groups, **common)


def run(task: Task) -> dict:
    generator = torch.Generator().manual_seed(0)
    h, sigma = (torch.tensor(task[name], dtype=torch.float64)[:, None] for name in ("h", "sigma"))
    runs = Runs(torch.ones(len(lines(task)), 2, task["runs"], dtype=torch.float64))
    optimizer = build(task, runs)
    x, total, paths = runs.x, 0.0, []
    tail = task["steps"] // 10
    for step in range(task["steps"]):
        noise = torch.randn(2, task["runs"], generator=generator, dtype=torch.float64)
        torch.mul(h, x - sigma * noise, out=x.grad)
        optimizer.step()
        if step < PATHS:
            paths.append(x[..., 0].clone())
        if step >= task["steps"] - tail:
            total = total + (h * x * x).sum(1) / 2
    loss = total / tail
    best = int(loss.mean(-1).argmin())
    path = torch.stack(paths)[:, best]
    return {"loss": loss.mean(-1), "error": standard_error(loss), "best": best, "path": path}


def pairs(rows: list[Row]) -> list[tuple[Row, Row]]:
    """Adam's and MAdam's row of each problem."""
    return list(zip(rows[::2], rows[1::2], strict=True))


def by_rate(row: Row) -> list[tuple[float, float]]:
    """Loss and error at each rate, with the best beta2."""
    found = zip(lines(row["task"]), row["result"]["loss"], row["result"]["error"])
    at = {}
    for (rate, _), loss, error in found:
        at[rate] = min(at.get(rate, (float("inf"), 0.0)), (loss, error))
    return list(at.values())


def least(row: Row) -> tuple[float, float]:
    return min(by_rate(row))


def at_equal_rates(adam: Row, madam: Row) -> float:
    """The median over the rates of MAdam's loss by Adam's."""
    ratios = [ours[0] / theirs[0] for theirs, ours in zip(by_rate(adam), by_rate(madam))]
    return statistics.median(ratios)


def claims(rows: list[Row]) -> list[Claim]:
    best = [(least(adam), least(madam)) for adam, madam in pairs(rows)]
    ratio = max(ours[0] / theirs[0] for theirs, ours in best)
    equal = max(at_equal_rates(*pair) for pair in pairs(rows) if pair[0]["task"]["steps"] >= 1000)
    return [
        Claim("each at its best rate, MAdam's loss is lower in all lines of the table", ratio < 1),
        Claim("it is at least 30 % lower in all of them", ratio <= 0.7),
        Claim("its standard error is smaller in all", all(o[1] < t[1] for t, o in best)),
        Claim(
            "at equal rates it is 30 % lower, the median over rates, from 1000 steps on",
            equal <= 0.7,
        ),
    ]


def tables(rows: list[Row]) -> list[Table]:
    body = []
    for adam, madam in pairs(rows):
        task, (theirs, their_error), (ours, our_error) = adam["task"], least(adam), least(madam)
        rate, beta = lines(task)[adam["result"]["best"]]
        body.append([
            f"h {task['h']}, sigma {task['sigma']}, {task['steps']} steps",
            f"{number(theirs)} ± {number(their_error)}", f"{number(rate)}, {beta:g}",
            f"{number(ours)} ± {number(our_error)}",
            number(lines(madam["task"])[madam["result"]["best"]][0]),
            f"{ours / theirs - 1:+.0%}", f"{at_equal_rates(adam, madam) - 1:+.0%}",
        ])  # fmt: skip
    header = ["problem", "Adam", "at lr, beta2", "MAdam", "at lr", "best to best", "at equal rates"]
    return [Table(header, body)]


def draw(rows: list[Row], figure) -> None:
    chosen = pairs(rows)[-2:] + pairs(rows)[:1]
    *sweeps, paths = figure.subplots(1, len(chosen))
    for axis, (adam, madam) in zip(sweeps, chosen):
        for row in (adam, madam):
            band(axis, RATES, *zip(*by_rate(row)), label=row["task"]["optimizer"])
        task = adam["task"]
        axis.set(xscale="log", yscale="log", xlabel="lr", ylabel="loss")
        axis.set_title(f"h {task['h']}, sigma {task['sigma']}, {task['steps']} steps", fontsize=8)
    for row in chosen[-1]:
        name = row["task"]["optimizer"]
        label = f"{name}, its best rate"
        paths.plot(*zip(*row["result"]["path"]), color=colour(name), label=label, linewidth=0.8)
    paths.set_title(f"a run's first steps, {chosen[-1][0]['task']['steps']} at most", fontsize=8)
    paths.set(xlabel="x_1", ylabel="x_2")
    sweeps[0].legend()
    paths.legend()
