"""AvaGrad's grid: learning rate by eps, which Adam couples."""

from __future__ import annotations

import math
import random
import statistics
from itertools import product

import fusedstep
import torch
from torch import Tensor
from torch.nn import functional as F

from .experiment import Claim, Row, Table, Task, number, with_error
from .networks import Networks, cross_entropy, digits
from .plotting import colour
from .runs import OURS

NUMBER = 8
TITLE = "Learning rate by eps"
PAPER = "AvaGrad, figure 1, sections 6 and 7"
CLAIM = """\
Adam's best learning rate follows eps, so good pairs lie on a diagonal of the grid; AvaGrad's
best rate is the same for all eps, so the two can be searched one after the other, in far fewer
trials. With a large eps, adaptive methods are as good as with a small one or better."""
SETTING = """\
A convolutional network (3x3 to 8 channels, 2x2 mean, 3x3 to 16, 2x2 mean, linear) on
scikit-learn's digits in place of CIFAR, batches of 32, 150 steps, constant rates, no decay, no
schedule; Adam and AvaGrad with betas (0.9, 0.999). Numbers are held-out losses, the mean over
seeds ± half their range. A search draws random pairs of the grid, or goes by coordinates: all
rates at a random eps, then all eps at the best of these rates, then anew; its loss above the
grid's least is the mean of 300 searches."""
WHY = """\
AvaGrad does what it promises: its best rates stay within a factor of ten over ten decades of
eps, where Adam's span three and a half, and a search by coordinates pays. Two reservations.
Below eps = 1e-4 one of the three networks does not learn (hence the ±). A look at its states
showed why: a few nearly silent channels had second moments whose root was a thousandth of the
others', ten weights made up nine tenths of the norm of the rates, and all others hardly moved.
These moments were not 0, so `skip_zero_second_moment=True` (the last columns) does not help; a
larger eps does. And Adam is no better here with a large eps than with a small one; the paper
finds that on ImageNet and CIFAR, where SGD is the method to beat."""
SEEDS = 3
SIZE = (10, 3.4)
RATES = [10 ** (i / 2) for i in range(-8, 7)]
EPSILONS = [1e-8, 1e-6, 1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0, 100.0]
QUICK_RATES, QUICK_EPSILONS = [0.01, 0.1, 1.0, 10.0], [1e-4, 1e-2, 1.0, 100.0]
BATCH = 32
SKIPS = "AvaGrad, zeros left out"
SEARCHES, TRIALS = 300, 60
BY_COORDINATES, RANDOM = "by coordinates", "random"


class ConvNets(Networks):
    """[lines, runs] networks. A convolution is a product with patches."""

    def __init__(self, lines: int, runs: int):
        self.shape, self.tensors = (lines, runs), []
        generator = torch.Generator().manual_seed(0)
        for sizes in ((9, 8), (72, 16), (64, 10)):
            self._add_layer(*sizes, generator)

    def logits(self, images: Tensor) -> Tensor:
        lines, runs = self.shape
        w1, b1, w2, b2, w3, b3 = (tensor.x for tensor in self.tensors)
        n = images.shape[-2]
        x = F.unfold(images.reshape(-1, 1, 8, 8), 3, padding=1)  # [.., 9, 64]
        x = x.transpose(1, 2).reshape(*images.shape[:-2], n * 64, 9)
        x = F.relu(x @ w1 + b1).view(lines, runs, n, 4, 2, 4, 2, 8).mean((4, 6))
        x = x.reshape(-1, 4, 4, 8).permute(0, 3, 1, 2)
        x = F.unfold(x, 3, padding=1).transpose(1, 2).reshape(lines, runs, n * 16, 72)
        x = F.relu(x @ w2 + b2).view(lines, runs, n, 2, 2, 2, 2, 16).mean((4, 6))
        return x.reshape(lines, runs, n, 64) @ w3 + b3


def tasks(quick: bool, seeds: int) -> list[Task]:
    rates, epsilons = (QUICK_RATES, QUICK_EPSILONS) if quick else (RATES, EPSILONS)
    size = {"runs": 1 if quick else seeds, "steps": 80 if quick else 150}
    columns = {"Adam": epsilons, "AvaGrad": epsilons}
    columns |= {} if quick else {SKIPS: epsilons[:3]}
    return [
        {"optimizer": name, "rates": rates, "epsilons": own, **size}
        for name, own in columns.items()
    ]


def run(task: Task) -> dict:
    grid = list(product(task["rates"], task["epsilons"]))
    # A network for each pair and seed: AvaGrad's norm goes over all parameters of an optimizer.
    networks = ConvNets(len(grid) * task["runs"], 1)
    for tensor, fresh in zip(networks.tensors, ConvNets(1, task["runs"]).tensors):
        tensor.x.data.copy_(fresh.x.data[0].repeat(len(grid), *[1] * (fresh.x.ndim - 2))[:, None])
    pairs = [{"lr": rate, "eps": eps} for rate, eps in grid for _ in range(task["runs"])]
    groups = networks.groups(*pairs)
    if task["optimizer"] == "Adam":
        optimizers = [fusedstep.Adam(groups, **OURS)]
    else:
        skips = task["optimizer"] == SKIPS
        optimizers = [
            fusedstep.AvaGrad([group], skip_zero_second_moment=skips, **OURS) for group in groups
        ]
    images, labels, held_images, held_labels = digits()
    generator = torch.Generator().manual_seed(0)
    for _ in range(task["steps"]):
        index = torch.randint(len(images), (BATCH,), generator=generator)
        networks.backward(images[index], labels[index])
        for optimizer in optimizers:
            optimizer.step()
    with torch.no_grad():
        parts = zip(held_images.split(33), held_labels.split(33))
        losses = torch.stack([cross_entropy(networks.logits(some), those) for some, those in parts])
    shape = (len(task["rates"]), len(task["epsilons"]), task["runs"])
    loss = losses.mean(0).view(shape).nan_to_num(nan=math.inf)
    return {"loss": loss.mean(-1), "spread": loss.amax(-1) - loss.amin(-1)}


def grid_of(row: Row) -> list[list[float]]:
    """Losses [rates][epsilons], capped at that of guessing, also where not finite."""
    worst = math.log(10)
    return [[worst if x is None else min(x, worst) for x in line] for line in row["result"]["loss"]]


def best_rates(row: Row) -> list[float]:
    """The best rate for each eps."""
    return [row["task"]["rates"][column.index(min(column))] for column in zip(*grid_of(row))]


def decades(values: list[float]) -> float:
    return math.log10(max(values) / min(values))


def regret(row: Row, way: str) -> list[float]:
    """The best loss so far minus the grid's least, after each trial: the mean over searches."""
    grid, chance = grid_of(row), random.Random(0)
    height, width = len(grid), len(grid[0])
    least, curves = min(map(min, grid)), []
    for _ in range(SEARCHES):
        trials = []
        while len(trials) < TRIALS:
            if way == BY_COORDINATES:
                j = chance.randrange(width)
                trials += [grid[k][j] for k in chance.sample(range(height), height)]
                i = min(range(height), key=lambda k: grid[k][j])
                trials += [grid[i][k] for k in chance.sample(range(width), width)]
            else:
                trials.append(grid[chance.randrange(height)][chance.randrange(width)])
        curves.append([min(trials[: n + 1]) - least for n in range(TRIALS)])
    return [statistics.mean(values) for values in zip(*curves)]


def searches(rows: list[Row]) -> list[tuple[str, str, list[float]]]:
    """Of Adam and AvaGrad, in both ways: the name, the way, and the regret."""
    ways = product(rows[:2], (BY_COORDINATES, RANDOM))
    return [(row["task"]["optimizer"], way, regret(row, way)) for row, way in ways]


def claims(rows: list[Row]) -> list[Claim]:
    adam, avagrad, *_ = rows
    epsilons = adam["task"]["epsilons"]
    large = [rate for rate, eps in zip(best_rates(adam), epsilons) if eps >= 0.01]
    moved = decades(best_rates(avagrad))
    said = [
        Claim(
            "Adam's best rate moves by 2 decades or more from eps = 0.01 to 100",
            decades(large) >= 2,
            asserted=True,
        ),
        Claim(
            "AvaGrad's best rate stays within one decade, over all eps", moved <= 1, asserted=True
        ),
    ]
    if len(adam["task"]["rates"]) == len(RATES):
        column = {eps: min(c) for eps, c in zip(epsilons, zip(*grid_of(adam)))}
        good = min(value for eps, value in column.items() if eps >= 0.1)
        coordinates, chance = (regret(avagrad, way) for way in (BY_COORDINATES, RANDOM))
        count = len(RATES) + len(EPSILONS)
        said += [
            Claim(
                "Adam's least loss at eps >= 0.1 is no higher than at 1e-8", good <= column[1e-8]
            ),
            Claim(
                f"AvaGrad by coordinates is nearer the grid's least after {count} trials than at "
                "random",
                coordinates[count - 1] < chance[count - 1],
            ),
            Claim(
                f"and nearer than Adam by coordinates after {count} trials",
                coordinates[count - 1] < regret(adam, BY_COORDINATES)[count - 1],
            ),
        ]
    return said


def tables(rows: list[Row]) -> list[Table]:
    made = []
    for row in rows:
        body = []
        for j, eps in enumerate(row["task"]["epsilons"]):
            column = [line[j] for line in grid_of(row)]
            i = column.index(min(column))
            loss = with_error(column[i], row["result"]["spread"][i][j] / 2)
            body.append([f"{eps:g}", number(row["task"]["rates"][i]), loss])
        made.append(body)
    blank = [["", "", ""]] * len(EPSILONS)
    made = [(body + blank)[: len(made[0])] for body in made]
    body = [[lines[0][0], *(cell for line in lines for cell in line[1:])] for lines in zip(*made)]
    names = [row["task"]["optimizer"] for row in rows]
    header = ["eps", *(f"{name}: {what}" for name in names for what in ("best lr", "its loss"))]
    trials = (5, 10, 24, 48)
    left = [
        [f"{name}, {way}", *(number(curve[n - 1]) for n in trials)]
        for name, way, curve in searches(rows)
    ]
    return [
        Table(header, body),
        Table(["loss above the grid's least after trials", *map(str, trials)], left),
    ]


def draw(rows: list[Row], figure) -> None:
    *grids, search = figure.subplots(1, 3)
    for axis, row in zip(grids, rows):
        axis.imshow(grid_of(row), origin="lower", aspect="auto", cmap="viridis_r")
        task = row["task"]
        epsilons, rates = [f"{eps:g}" for eps in task["epsilons"]], list(map(number, task["rates"]))
        axis.set_xticks(range(len(epsilons)), epsilons, fontsize=7)
        axis.set_yticks(range(len(rates)), rates, fontsize=7)
        axis.set(title=f"{task['optimizer']}: held-out loss", xlabel="eps", ylabel="lr")
        axis.grid(False)
    for name, way, curve in searches(rows):
        style, label = "-" if way == BY_COORDINATES else ":", f"{name}, {way}"
        search.plot(range(1, TRIALS + 1), curve, style, color=colour(name), label=label)
    search.set(yscale="log", xlabel="trials", title="loss above the grid's least")
    search.legend()
