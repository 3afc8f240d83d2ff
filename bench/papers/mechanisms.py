"""What MaxVA and MADGRAD say of their own inner workings, checked as they run."""

from __future__ import annotations

import statistics

import fusedstep
import torch

from .experiment import Claim, Row, Table, Task, number, with_range
from .plotting import band
from .runs import OURS, marks

NUMBER = 11
TITLE = "Inner workings, watched on real gradients"
PAPER = "MaxVA, section 3, figures 3 and 8; MADGRAD, sections 5.4 and 5.5.4"
CLAIM = """\
MaxVA: if R, the squared deviation of a gradient divided by the variance, is at most 1, beta is
the upper end of its range; no beta is below 1/(1 + w); at t = 2 it is 1/(2 - beta_1); w never
falls; MAdam's average step differs from Adam's over training. MADGRAD: its averaging is
momentum; with its weights and cube root, gradients of constant size make steps of constant size."""
SETTING = """\
A BERT of 2 layers of width 64 on the documentation that comes with Python, batches of 16 blocks
of 32 tokens, rate 1e-3, beta1 = 0.9, Adam's beta2 = 0.999, MAdam's betas in [0.5, 0.999], the
first (beta_1) 0.9; eps = 1e-8 in both. beta is the quotient of the stored beta_prod after and
before a step, wherever that was at least 1e-3 before; an allowance of 1e-5 is made for its
float32. The average step is the mean over all weights of their change divided by the rate; mean
over seeds. The paper's figures show how steps differ; assumed: MAdam's are shorter, as its
second moment is larger. MADGRAD: float64, gradients of a noisy quadratic."""
WHY = """\
The statements on beta and w are consequences of equation 7, and the kernels satisfy them on
every element that was looked at. A second moment chosen for the largest variance is larger, so
MAdam's steps are shorter at an equal rate, and its training loss is higher in all three seeds.
So it may tolerate larger rates; with a warm-up it does (see 10)."""
SEEDS = 3
SIZE = (10, 3.2)
RATE, HIGH, FIRST = 1e-3, 0.999, 0.9
ALLOWANCE = 1e-5


def tasks(quick: bool, seeds: int) -> list[Task]:
    steps, seeds = (12, 1) if quick else (300, seeds)
    trained = [
        {"optimizer": name, "seed": seed, "steps": steps}
        for seed in range(seeds)
        for name in ("Adam", "MAdam")
    ]
    return [*trained, {"optimizer": "MADGRAD", "seed": 0, "steps": 10 * steps}]


def run(task: Task) -> dict:
    return madgrad(task["steps"]) if task["optimizer"] == "MADGRAD" else train(task)


def train(task: Task) -> dict:
    from .language import batches, bert  # transformers takes seconds to load

    model, draws = bert(task["seed"]), batches(task["seed"], 16)
    params = [p for p in model.parameters() if p.requires_grad]
    ours = {"lr": RATE, "eps": 1e-8, **OURS}
    if task["optimizer"] == "Adam":
        optimizer = fusedstep.Adam(params, betas=(0.9, 0.999), **ours)
    else:
        optimizer = fusedstep.MAdam(
            params, beta1=0.9, beta2_range=(0.5, HIGH), beta2_init=FIRST, **ours
        )
    seen = Seen()
    at, curve, total, count = marks(task["steps"], 40), [], 0.0, sum(p.numel() for p in params)
    for step in range(1, task["steps"] + 1):
        inputs, labels = next(draws)
        optimizer.zero_grad()
        loss = model(input_ids=inputs, labels=labels).loss
        loss.backward()
        before = [p.detach().clone() for p in params]
        watched = [dict(optimizer.state[p]) for p in params] if task["optimizer"] == "MAdam" else []
        watched = [{name: value.clone() for name, value in state.items()} for state in watched]
        optimizer.step()
        for p, old in zip(params, watched):
            if step > 1:
                seen.look(p.grad, old, optimizer.state[p], step)
        total += sum(float((p.detach() - old).abs().sum()) for p, old in zip(params, before)) / RATE
        if step in at:
            curve.append(total / count / (step - (at[at.index(step) - 1] if step > 1 else 0)))
            total = 0.0
    return {"step": curve, "loss": float(loss.detach()), "seen": seen.counts}


class Seen:
    """How many elements were looked at, and how many were not as the paper says."""

    def __init__(self):
        self.counts = {name: [0, 0] for name in ("high", "low", "second", "weight")}

    def count(self, name: str, wrong: torch.Tensor) -> None:
        self.counts[name][0] += wrong.numel()
        self.counts[name][1] += int(wrong.sum())

    def look(self, g: torch.Tensor, old: dict, new: dict, step: int) -> None:
        known = old["beta_prod"] >= 1e-3
        g, u, s, q, after = (
            x[known].double()
            for x in (g, old["grad_mean"], old["grad_var"], old["beta_prod"], new["beta_prod"])
        )
        self.count("weight", after > q)
        beta, w, d = after / q, 1 - q, (g - u).square()
        # A gradient equal to its mean to the last digit makes R 0 / 0; beta is then the low end.
        moved = (d > 0) & (d + s > 1e-30)
        self.count("high", ((beta - HIGH).abs() > ALLOWANCE)[moved & (d <= s)])
        floor = torch.clamp(1 / (1 + w), max=HIGH) - ALLOWANCE
        self.count("low", (beta < floor)[moved])
        if step == 2:
            self.count("second", ((beta - 1 / (2 - FIRST)).abs() > ALLOWANCE)[moved])


def madgrad(steps: int) -> dict:
    generator = torch.Generator().manual_seed(0)
    size = {"dtype": torch.float64, "generator": generator}
    h = torch.logspace(-2, 0, 50, dtype=torch.float64)
    with_momentum, without, sizes = (
        torch.nn.Parameter(torch.ones(50, dtype=torch.float64)) for _ in range(3)
    )
    ours = {"lr": 0.01, "eps": 0.0, **OURS}
    averaged = fusedstep.MADGRAD([with_momentum], momentum=0.9, **ours)
    points = fusedstep.MADGRAD([without], momentum=0.0, **ours)
    alone = fusedstep.MADGRAD([sizes], momentum=0.0, **ours)
    # The same for descent without adaptivity, where it is the well-known momentum.
    sgd = torch.nn.Parameter(torch.ones(50, dtype=torch.float64))
    momentum = torch.optim.SGD([sgd], lr=0.001, momentum=0.9)
    x = z = torch.ones(50, dtype=torch.float64)
    mean, worst, worst_sgd, moves = without.detach().clone(), 0.0, 0.0, []
    for step in range(1, steps + 1):
        noise = torch.randn(50, **size)
        with_momentum.grad = h * (with_momentum.detach() - noise)
        without.grad = with_momentum.grad.clone()
        averaged.step()
        points.step()
        mean = 0.9 * mean + 0.1 * without.detach()
        worst = max(worst, float((mean - with_momentum.detach()).abs().max()))

        sgd.grad = h * (sgd.detach() - noise)
        z = z - 0.001 / (1 - 0.9) * h * (x - noise)
        x = 0.9 * x + 0.1 * z
        momentum.step()
        worst_sgd = max(worst_sgd, float((x - sgd.detach()).abs().max()))

        # Gradients of constant size and alternating sign: each undoes the one before.
        before = sizes.detach().clone()
        sizes.grad = torch.full((50,), 2.0 if step % 2 else -2.0, dtype=torch.float64)
        alone.step()
        moves.append(float((sizes.detach() - before).abs().mean()))
    half = moves[len(moves) // 2 :]
    return {"average": worst, "momentum": worst_sgd, "drift": max(half) / min(half) - 1}


def parts(rows: list[Row]) -> tuple[dict[str, list[Row]], dict, dict]:
    """Rows of training by optimizer, the counts summed over MAdam's, and MADGRAD's result."""
    of = {name: [r for r in rows if r["task"]["optimizer"] == name] for name in ("Adam", "MAdam")}
    counts = {
        name: [sum(row["result"]["seen"][name][i] for row in of["MAdam"]) for i in range(2)]
        for name in ("high", "low", "second", "weight")
    }
    return of, counts, next(r for r in rows if r["task"]["optimizer"] == "MADGRAD")["result"]


def mean_steps(rows: list[Row]) -> list[list[float]]:
    """Over seeds, at each mark."""
    return [list(values) for values in zip(*(row["result"]["step"] for row in rows))]


def claims(rows: list[Row]) -> list[Claim]:
    of, counts, inner = parts(rows)
    adam, madam = (statistics.mean(mean_steps(of[name])[-1]) for name in ("Adam", "MAdam"))
    said = {
        "high": "R <= 1 gives the upper end",
        "low": "no beta is below 1/(1 + w), or the upper end where that is lower",
        "second": "at t = 2 beta is 1/(2 - beta_1)",
        "weight": "w never falls",
    }
    return [
        *(Claim(f"MaxVA: {text}", counts[name][0] > 0 and not counts[name][1], asserted=True)
          for name, text in said.items()),
        Claim("MaxVA: MAdam's average step ends shorter than Adam's", madam < adam),
        Claim("MADGRAD: with momentum its points are the moving average of those without, to 1e-9",
              inner["average"] < 1e-9, asserted=True),
        Claim("MADGRAD: for plain descent that average is SGD with momentum, to 1e-12",
              inner["momentum"] < 1e-12, asserted=True),
        Claim("MADGRAD: steps of gradients of constant size differ by less than 1 % over the last "
              "half", inner["drift"] < 0.01),
    ]  # fmt: skip


def tables(rows: list[Row]) -> list[Table]:
    of, counts, inner = parts(rows)
    names = {"high": "R <= 1", "low": "lower bound", "second": "t = 2", "weight": "w"}
    body = [[names[name], f"{n:,}", f"{wrong:,}"] for name, (n, wrong) in counts.items()]
    steps = []
    for name, found in of.items():
        values = mean_steps(found)
        chosen = [values[0], values[len(values) // 2], values[-1]]
        steps.append([name, *map(with_range, chosen)])
    differences = [number(inner[name]) for name in ("average", "momentum", "drift")]
    return [
        Table(["MaxVA, statement on", "elements looked at", "not so"], body),
        Table(["average step by the rate (range over seeds)", "first", "middle mark", "last"],
              steps),
        Table(["MADGRAD: largest difference from its average", "of SGD's", "steps differ by"],
              [differences]),
    ]  # fmt: skip


def draw(rows: list[Row], figure) -> None:
    of, *_ = parts(rows)
    axis = figure.add_subplot()
    at = marks(rows[0]["task"]["steps"], 40)
    for name, found in of.items():
        values = mean_steps(found)
        spread = [(max(v) - min(v)) / 2 for v in values]
        band(axis, at, [statistics.mean(v) for v in values], spread, label=name)
    axis.set(xscale="log", yscale="log", xlabel="step", ylabel="average step by the rate")
    axis.legend()
