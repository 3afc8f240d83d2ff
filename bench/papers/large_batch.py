"""Masked-language pretraining at a large batch: how low, up to which rate, with what warm-up."""

from __future__ import annotations

import math

import fusedstep
import torch
from torch import Tensor

from .experiment import Claim, Row, Table, Task, number, or_inf
from .language import VOCAB, batches, bert, blocks, held_out_loss, masked_loss, unigram_loss
from .plotting import colour
from .runs import OURS

NUMBER = 10
TITLE = "Large-batch pretraining of a small BERT"
PAPER = "MaxVA, section 5.4; LaProp, section 5.4 and appendix C.5; MADGRAD, section 7.5"
CLAIM = """\
MaxVA: at a large batch MAdam and LaMAdam pretrain BERT to a loss that is no higher than Adam's,
and tolerate rates about four times as large. LaProp: it needs no warm-up where Adam does; the
paper's appendix C.5 takes part of this back. MADGRAD: its loss is comparable to Adam's or lower."""
SETTING = """\
A BERT of 2 layers of width 64 on the documentation that comes with Python: 5,467 blocks of 32
tokens, batches of 256 of them, which is 4.7 % of all, 300 steps. The rate rises linearly over
the first 30 steps (with warm-up) or begins at its largest (without), then falls linearly to 0.
Gradients are clipped to a norm of 1. Weight decay 0.1, decoupled, on all weights but biases and
those of LayerNorm; "Adam" is AdamW. LaProp does not multiply its decay by the rate, so it is set
to 0.1 times the rate of the step. AvaGrad is AvaGradW with eps 1e-4; its rates are about 2048
times Adam's, so its decay is 0.1 / 2048. MADGRAD's averaging draws weights back to a sum that
does not decay, so 0.1 takes a few per cent off them at most. Otherwise betas and eps are the
classes' defaults. Rates are powers of two; sizes, grids and AvaGrad's eps were chosen by single
runs; the criteria after those, before the full run. The unigram line is the held-out loss of the
words' frequencies. A rate diverges if the loss of any seed ends above that line minus 0.1 nats,
as it does for a model that has lost the context. "Largest" is the last rate before the first
that diverges, going up from the best. Losses are held-out ones after the last step, mean and
range over seeds."""
WHY = """\
Too large a rate does not blow up here: the model ends at the unigram line and ignores the
context. With warm-up MAdam tolerates four times Adam's largest rate, as the paper says, but only
because of one seed: with the other, Adam still learns at twice its largest rate. Without warm-up
MAdam tolerates no more than Adam. Nor does it turn the larger rate into a lower loss: from 2^-8
to 2^-6 its curve is nearly flat, and above Adam's least. Its second moment is larger and its
steps shorter (see 11), so part of the factor of four is a change of scale. LaMAdam tolerates
twice Adam's rate with and without warm-up, and also ends above Adam. LaProp, well below Adam
with warm-up and a little below without, gains from a warm-up, while Adam's best is the same
either way: the opposite of the claim. In the authors' own logs of RoBERTa with beta2 = 0.999
Adam trains without warm-up, too, to a loss about 0.1 above LaProp's. With warm-up, LaProp is
within the limit at 2^-6 by only 0.02, in one seed. MADGRAD is lowest both ways, at the largest
rate that it tolerates. AdaMomentum needs smaller rates: it divides by the second moment of the
momentum, and its first steps are ten times lr. LAMB is better without warm-up, and tolerates
twice the rate there. All this rests on two seeds, two layers and 300 steps; the papers' models,
batches and runs are many times larger, and a warm-up may do more for them."""
LARGER = """\
As above, but on a GPU, with 4 layers of width 256, batches of 512 blocks, 200 steps, one seed,
rates a fourth as large, and the documentation of another Python, 5,688 blocks. Matrix products
round float32 to TF32; the optimizers use the GPU's backend. Again MADGRAD is lowest, at the
largest rate that it tolerates, LaProp next; MAdam and LaMAdam end above Adam. With warm-up they
and LaProp tolerate twice Adam's largest rate, not four times; without, MAdam alone does; at the
small size LaMAdam alone did. A warm-up lowers the best loss of all but LAMB and AvaGrad: Adam's
by 2 %, as claimed and unlike above, but LaProp's by 7 %, which is the opposite of the claim.
LAMB again tolerates twice the rate without warm-up, but barely."""
SEEDS = 2
SIZE = (10, 4.2)
RATES = {  # by their base-2 logarithms
    "Adam": range(-9, -3),
    "MAdam": range(-9, -3),
    "LaMAdam": range(-9, -3),
    "LaProp": range(-9, -3),
    "AdaMomentum": range(-12, -6),
    "LAMB": range(-8, -2),
    "MADGRAD": range(-8, -2),
    "AvaGrad": range(2, 8),
}
OPTIMIZERS = {
    "Adam": (fusedstep.AdamW, {}),
    "AvaGrad": (fusedstep.AvaGradW, {"eps": 1e-4}),
    "MADGRAD": (fusedstep.MADGRAD, {"decoupled_weight_decay": True}),
}
LIKE_ADAM = ("MAdam", "LaMAdam", "LaProp", "AdaMomentum")  # their rates are on its scale
SCALE = {"AvaGrad": 2048}  # of its rates by Adam's
SMALL = {"width": 64, "layers": 2, "device": "cpu"}
LARGE = {"width": 256, "layers": 4, "device": "cuda", "batch": 512,
         "steps": 200, "runs": 1}  # fmt: skip
SHIFT = -2  # of the larger size's rates, as powers of two
DECAY, MARGIN, GUESSING = 0.1, 0.1, math.log(VOCAB)
Found = dict[bool, dict[str, dict[int, Row]]]  # by warm-up, optimizer, logarithm of the rate


def tasks(quick: bool, seeds: int) -> list[Task]:
    batch, steps, seeds = (64, 12, 1) if quick else (256, 300, seeds)
    size = {"batch": batch, "steps": steps, "runs": seeds}
    return [
        {"optimizer": name, "log2 lr": at, "warmup": steps // 10 if warmed else 0, **size}
        for name, rates in RATES.items()
        for warmed in (True, False)
        for at in (rates[1:2] if quick else rates)
    ]


def larger_tasks() -> list[Task]:
    """From the middle of the grids outwards: an interrupted run then has the most useful rows."""
    found = [
        (abs(2 * at - min(rates) - max(rates)), not warmup,
         {"optimizer": name, "log2 lr": at + SHIFT, "warmup": warmup, **LARGE})
        for name, rates in RATES.items()
        for warmup in (LARGE["steps"] // 10, 0)
        for at in rates
    ]  # fmt: skip
    return [task for *_, task in sorted(found, key=lambda one: one[:2])]


def run(task: Task) -> dict:
    task = SMALL | task
    data = blocks(task["device"])
    losses = [train(task, seed, *data) for seed in range(task["runs"])]
    found = {"losses": losses, "line": unigram_loss(*data), "blocks": len(data[0])}
    gpu = {"gpu": torch.cuda.get_device_name()} if task["device"] == "cuda" else {}
    return found | gpu


def train(task: Task, seed: int, data: Tensor, held_out: Tensor) -> float:
    model = bert(seed, task["width"], task["layers"]).to(task["device"])
    draws, backend = batches(seed, task["batch"], data), OURS["backend"]
    if task["device"] == "cuda":
        backend = "auto"
        torch.set_float32_matmul_precision("high")
    make, options = OPTIMIZERS.get(task["optimizer"], (None, {}))
    decayed = {"params": [p for p in model.parameters() if p.ndim > 1]}
    others = {"params": [p for p in model.parameters() if p.ndim == 1], "weight_decay": 0.0}
    make = make or getattr(fusedstep, task["optimizer"])
    optimizer = make([decayed, others], max_grad_norm=1.0, **options, **OURS | {"backend": backend})
    for step in range(task["steps"]):
        rate = 2.0 ** task["log2 lr"] * share(step, task["steps"], task["warmup"])
        decay = rate * DECAY if task["optimizer"] == "LaProp" else DECAY
        for group in optimizer.param_groups:
            group["lr"] = rate
        optimizer.param_groups[0]["weight_decay"] = decay / SCALE.get(task["optimizer"], 1)
        optimizer.zero_grad()
        loss = masked_loss(model, *next(draws))
        if not loss.isfinite():
            return math.inf
        loss.backward()
        optimizer.step()
    return held_out_loss(model, held_out)


def share(step: int, steps: int, warmup: int) -> float:
    """The rate divided by its largest: linear up to 1, then down to 0 after the last step."""
    return min((step + 1) / (warmup + 1), (steps - step) / (steps - warmup))


def by_warmup(rows: list[Row]) -> Found:
    found: Found = {True: {}, False: {}}
    for row in rows:
        task = row["task"]
        found[task["warmup"] > 0].setdefault(task["optimizer"], {})[task["log2 lr"]] = row
    return found


def losses(row: Row) -> list[float]:
    return list(map(or_inf, row["result"]["losses"]))


def mean(row: Row) -> float:
    return sum(losses(row)) / len(losses(row))


def best(at: dict[int, Row]) -> int:
    return min(at, key=lambda rate: mean(at[rate]))


def largest(at: dict[int, Row]) -> int | None:
    """The last rate before the first that diverges, upwards from the best; None if that does."""
    found = None
    for rate in sorted(rate for rate in at if rate >= best(at)):
        if max(losses(at[rate])) > at[rate]["result"]["line"] - MARGIN:
            break
        found = rate
    return found


def times(one: dict[int, Row], other: dict[int, Row]) -> float:
    """How many times as large a rate one tolerates as the other; 0 if it tolerates none."""
    ours, theirs = largest(one), largest(other)
    return 0.0 if ours is None or theirs is None else 2.0 ** (ours - theirs)


def claims(rows: list[Row]) -> list[Claim]:
    found = by_warmup(rows)
    least = {w: {name: mean(at[best(at)]) for name, at in found[w].items()} for w in found}
    warm, cold = least[True], least[False]
    every = max(*warm.values(), *cold.values())
    said = [Claim("every optimizer's best ends below what guessing gives", every < GUESSING, True)]
    for name in ("MAdam", "LaMAdam"):
        more = times(found[True][name], found[True]["Adam"])
        said += [
            Claim(
                f"with warm-up, {name}'s best is no higher than Adam's", warm[name] <= warm["Adam"]
            ),
            Claim(f"with warm-up, {name} tolerates at least twice Adam's largest rate", more >= 2),
            Claim("and four times", more >= 4),
        ]
    laprop, adam, madgrad = ((warm[name], cold[name]) for name in ("LaProp", "Adam", "MADGRAD"))
    said += [
        Claim("LaProp's best without warm-up is within 1 % of its best with or lower",
              laprop[1] <= 1.01 * laprop[0]),
        Claim("Adam's best without is over 1 % above its best with", adam[1] > 1.01 * adam[0]),
        Claim("LaProp's best without is no higher than Adam's best with", laprop[1] <= adam[0]),
        Claim("with warm-up, MADGRAD's best is at most 2 % above Adam's",
              madgrad[0] <= 1.02 * adam[0]),
        Claim("and lower than Adam's", madgrad[0] < adam[0]),
    ]  # fmt: skip
    return said


def tables(rows: list[Row]) -> list[Table]:
    found = by_warmup(rows)
    low, high = [], []
    for name in RATES:
        lows, highs = [name], [name]
        for at in (found[True].get(name), found[False].get(name)):
            if not at:
                lows, highs = [*lows, "", ""], [*highs, ""]
                continue
            row, top = at[best(at)], largest(at)
            end = f" ({min(losses(row)):.3f}-{max(losses(row)):.3f})"
            lows += [f"{mean(row):.3f}{end if len(losses(row)) > 1 else ''}", f"2^{best(at)}"]
            none = "none" if top is None else f"2^{top}"
            highs.append(f"at least {none}" if top == max(at) else none)
        for warmed in (True, False):
            known = name in LIKE_ADAM and {name, "Adam"} <= found[warmed].keys()
            more = f"{times(found[warmed][name], found[warmed]['Adam']):g}" if known else ""
            highs.append(more)
        low.append(lows)
        high.append(highs)
    line = number(rows[0]["result"]["line"])
    return [
        Table([f"best held-out loss (unigram line {line})", "with warm-up", "at lr",
               "without", "at lr"], low),
        Table(["largest lr that does not diverge", "with warm-up", "without",
               "by Adam's, with", "without"], high),
    ]  # fmt: skip


def draw(rows: list[Row], figure) -> None:
    axes = figure.subplots(1, 2, sharey=True)
    line = rows[0]["result"]["line"]
    for axis, (warmed, found) in zip(axes, by_warmup(rows).items()):
        for name, at in found.items():
            scale = SCALE.get(name, 1)
            kept = [rate for rate in sorted(at) if math.isfinite(mean(at[rate]))]
            middle = [mean(at[rate]) for rate in kept]
            ends = [
                [mean(at[rate]) - min(losses(at[rate])) for rate in kept],
                [max(losses(at[rate])) - mean(at[rate]) for rate in kept],
            ]
            axis.errorbar(
                [2.0**rate / scale for rate in kept], middle, ends, marker="o", markersize=3.5,
                linewidth=1.2, elinewidth=0.8, color=colour(name),
                label=name if scale == 1 else f"{name}, lr / {scale}",
            )  # fmt: skip
        axis.axhline(line, color="grey", linestyle="--", linewidth=0.8, label="unigram line")
        axis.set_xscale("log", base=2)
        axis.set(xlabel="lr", title="with warm-up" if warmed else "without")
    axes[0].set(ylabel="held-out loss", ylim=(None, line + 0.28))
    figure.legend(*axes[1].get_legend_handles_labels(), loc="outside lower center", ncols=9)
