"""AdaMomentum's landscapes: four functions of two variables."""

from __future__ import annotations

import math
from itertools import product

import fusedstep
import torch
from torch import Tensor

from .experiment import Claim, Row, Table, Task, by_optimizer, or_inf
from .plotting import colour
from .runs import OURS, Runs

NUMBER = 3
TITLE = "Paths on four functions of two variables"
PAPER = "AdaMomentum, figure 2"
CLAIM = """\
On Sphere, Three-Hump Camel, Beale and Ackley AdaMomentum takes a path to the optimum where
others are slow, overshoot or stop in a local minimum: of SGDM, RMSprop, Adam, AdaBelief and
AdaMomentum, it needs the fewest steps."""
SETTING = """\
No noise, float64, default betas, momentum 0.9; Beale with 2.25, where the paper prints 2.2.
Assumed: starts drawn evenly from a square of half width 2 around the optimum (1 for Ackley);
constant rates from 1e-6 to 1, as the paper's are unknown to us. "Reached" is the first step
within 0.01 of the optimum, "settled" the step from on which a run stays there for at least a
twentieth of all steps; numbers are medians over runs, at the rate where the median is least; a
run that does not get there counts as infinite."""
WHY = """\
Each at its best rate, AdaMomentum settles first on the two bowls, by a few steps, and reaches
the camel's optimum before Adam and AdaBelief, but not by as much as a picture of one path
suggests. In Beale's valley these two tolerate three times its rate and are ahead of it. At equal
rates the first steps decide: RMSprop has no bias correction and begins with ten times its rate.
At a constant rate no optimizer with steps that long settles; and where its momentum passes
through 0, AdaMomentum divides by a small number, which keeps it moving around the optimum of
Ackley."""
SEEDS = 50
SIZE = (10, 2.9)
RATES = [1e-6, 1e-5, 1e-4, 1e-3, 3e-3, 0.01, 0.03, 0.1, 0.3, 1.0]
OPTIMIZERS = ("SGDM", "RMSprop", "Adam", "AdaBelief", "AdaMomentum")


def sphere(x: Tensor, y: Tensor) -> Tensor:
    return x**2 + y**2


def camel(x: Tensor, y: Tensor) -> Tensor:
    return 2 * x**2 - 1.05 * x**4 + x**6 / 6 + x * y + y**2


def beale(x: Tensor, y: Tensor) -> Tensor:
    return (1.5 - x + x * y) ** 2 + (2.25 - x + x * y**2) ** 2 + (2.625 - x + x * y**3) ** 2


def ackley(x: Tensor, y: Tensor) -> Tensor:
    # At 0 the root has no gradient; adding 1e-30 changes no digit elsewhere.
    length = ((x**2 + y**2) / 2 + 1e-30).sqrt()
    waves = (torch.cos(2 * torch.pi * x) + torch.cos(2 * torch.pi * y)) / 2
    return -20 * torch.exp(-0.2 * length) - torch.exp(waves) + torch.e + 20


FUNCTIONS = {  # the optimum, and how far from it runs start
    "Sphere": (sphere, (0.0, 0.0), 2.0),
    "Three-Hump Camel": (camel, (0.0, 0.0), 2.0),
    "Beale": (beale, (3.0, 0.5), 2.0),
    "Ackley": (ackley, (0.0, 0.0), 1.0),
}


class AdaBelief(torch.optim.Optimizer):
    """Zhuang et al. 2020, Algorithm 1, with the eps of their code."""

    def __init__(self, params, lr, betas=(0.9, 0.999), eps=1e-16):
        super().__init__(params, {"lr": lr, "betas": betas, "eps": eps})
        self.t = 0

    @torch.no_grad()
    def step(self):
        self.t += 1
        for group in self.param_groups:
            (beta1, beta2), eps = group["betas"], group["eps"]
            for p in group["params"]:
                state = self.state[p]
                m = state.setdefault("m", torch.zeros_like(p)).lerp_(p.grad, 1 - beta1)
                s = state.setdefault("s", torch.zeros_like(p))
                s.lerp_((p.grad - m).square(), 1 - beta2).add_(eps)
                corrected = (s / (1 - beta2**self.t)).sqrt() + eps
                p -= group["lr"] / (1 - beta1**self.t) * m / corrected


def build(name: str, groups: list[dict]) -> torch.optim.Optimizer:
    if name == "SGDM":
        return torch.optim.SGD(groups, momentum=0.9)
    if name == "RMSprop":
        return torch.optim.RMSprop(groups)
    if name == "AdaBelief":
        return AdaBelief(groups, lr=1e-3)
    return getattr(fusedstep, name)(groups, **OURS)


def tasks(quick: bool, seeds: int) -> list[Task]:
    size = {"rates": RATES, "runs": 5 if quick else seeds, "steps": 500 if quick else 3000}
    functions = list(FUNCTIONS)[:1] if quick else FUNCTIONS
    return [
        {"function": function, "optimizer": name, **size}
        for function, name in product(functions, OPTIMIZERS)
    ]


def run(task: Task) -> dict:
    function, optimum, width = FUNCTIONS[task["function"]]
    generator = torch.Generator().manual_seed(0)
    goal = torch.tensor(optimum, dtype=torch.float64)[:, None]
    starts = torch.rand(2, task["runs"], generator=generator, dtype=torch.float64) * 2 - 1
    rates = task["rates"]
    runs = Runs((goal + width * starts).expand(len(rates), -1, -1))
    optimizer = build(task["optimizer"], runs.groups(*({"lr": rate} for rate in rates)))
    reached, outside = (torch.full((len(rates), task["runs"]), c) for c in (torch.inf, 0.0))
    paths = []
    for step in range(1, task["steps"] + 1):
        if step <= 1000 and step % 10 == 1:
            paths.append(runs.x[..., 0].clone())
        x, y = (part.detach().requires_grad_() for part in runs.x.unbind(1))
        runs.x.grad.copy_(torch.stack(torch.autograd.grad(function(x, y).sum(), (x, y)), 1))
        optimizer.step()
        near = (runs.x - goal).square().sum(1) < 1e-4
        reached[near & reached.isinf()] = step
        outside[~near] = step  # NaN is outside, too
    settled = torch.where(outside <= 0.95 * task["steps"], outside + 1, torch.inf)
    middle = {"reached": reached.median(-1)[0], "settled": settled.median(-1)[0]}
    return {**middle, "path": torch.stack(paths)[:, int(middle["reached"].argmin())]}


def least(row: Row, what: str) -> tuple[float, float]:
    """The fewest steps of all rates, and the rate; infinite where no rate suffices."""
    found = [(or_inf(n), rate) for n, rate in zip(row["result"][what], row["task"]["rates"])]
    return min(found)


def races(of: dict[str, Row]) -> tuple[int, int]:
    """At how many of the rates AdaMomentum reaches the optimum before the other adaptive ones, and
    at how many any of them does."""
    adaptive = [of[name]["result"]["reached"] for name in OPTIMIZERS[1:]]
    steps = [list(map(or_inf, at)) for at in zip(*adaptive)]
    won = sum(ours < min(others) for *others, ours in steps)
    return won, sum(min(at) < math.inf for at in steps)


def claims(rows: list[Row]) -> list[Claim]:
    said = []
    for function, of in by_optimizer(rows, "function").items():
        won, run = races(of)
        text = f"{function}: of the adaptive ones AdaMomentum reaches it first, at over half the "
        said.append(Claim(f"{text}rates at which any does", won > run / 2))
        for what in ("reached", "settled"):
            steps = {name: least(row, what)[0] for name, row in of.items()}
            first = steps["AdaMomentum"] == min(steps.values()) < math.inf
            text = f"{function}: each at its best rate, AdaMomentum has {what} first"
            said.append(Claim(text, first))
    return said


def tables(rows: list[Row]) -> list[Table]:
    body = []
    for function, of in by_optimizer(rows, "function").items():
        for what in ("reached", "settled"):
            cells = [f"{function}, {what}"]
            for row in of.values():
                steps, rate = least(row, what)
                cells.append("-" if steps == math.inf else f"{steps:.0f} (lr {rate:g})")
            body.append([*cells, "{} of {}".format(*races(of)) if what == "reached" else ""])
    header = ["median steps (at rate)", *OPTIMIZERS, "equal rates that AdaMomentum wins"]
    return [Table(header, body)]


def draw(rows: list[Row], figure) -> None:
    found = by_optimizer(rows, "function")
    axes = figure.subplots(1, len(found), squeeze=False)[0]
    for axis, (name, of) in zip(axes, found.items()):
        function, optimum, width = FUNCTIONS[name]
        x, y = (torch.linspace(c - width, c + width, 120) for c in optimum)
        heights = function(x[None, :].double(), y[:, None].double())
        levels = heights.flatten().quantile(torch.linspace(0, 1, 16, dtype=torch.float64))
        axis.contour(x, y, heights, levels=levels.unique(), colors="#cccccc", linewidths=0.5)
        for optimizer, row in of.items():
            path = [point for point in row["result"]["path"] if None not in point]
            axis.plot(*zip(*path), label=optimizer, color=colour(optimizer), linewidth=1)
        axis.plot(*optimum, "k*")
        axis.set(title=name, xlim=(x[0], x[-1]), ylim=(y[0], y[-1]))
        axis.grid(False)
    axes[0].legend()
