"""Optimizers of other projects that have an algorithm of ours, with the same hyper-parameters.

They are extras of the benchmark (bench/requirements.txt), never dependencies of the package.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.metadata
import importlib.util
import io
import logging
import sys
import types
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from fusedstep import testing

from .contenders import ALGORITHMS, Contender, Groups

# Peers' arguments, and our hyper-parameters that they take.
ADAM = {"lr": "lr", "betas": "betas", "eps": "eps"}
MADGRAD = {"lr": "lr", "momentum": "momentum", "eps": "eps"}
PLAIN = {"quantize": False, "master_weight_bits": None}


@dataclass(frozen=True)
class Entry:
    """How a peer builds an algorithm."""

    place: str  # module:class
    matched: dict[str, str] = field(default_factory=lambda: ADAM)  # its argument: our name
    fixed: dict[str, Any] = field(default_factory=dict)
    on_gpu: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] = field(default_factory=dict)  # set on the optimizer


@dataclass(frozen=True)
class Peer:
    distribution: str
    algorithms: dict[str, Entry]
    packages: tuple[str, ...] = ()  # their __init__ is not run
    compiled: bool = False  # whether torch.compile is put around its steps


def torch_optim(**how: bool) -> Peer:
    algorithms = {name: Entry(f"torch.optim:{name}", fixed=how) for name in ("Adam", "AdamW")}
    return Peer("torch", algorithms)


def compiled(peer: Peer, *algorithms: str) -> Peer:
    """A peer with ``torch.compile`` around its steps, for algorithms that need compiling only once:
    others are compiled again in each step, or break at branches on values and gain nothing."""
    chosen = {name: peer.algorithms[name] for name in algorithms}
    return replace(peer, algorithms=chosen, compiled=True)


def pytorch_optimizer(**how: bool) -> Peer:
    def entry(name: str, matched: dict[str, str] = ADAM, **fixed: Any) -> Entry:
        return Entry(f"pytorch_optimizer:{name}", matched, {**how, **fixed})

    algorithms = {
        "AvaGrad": entry("AvaGrad", weight_decouple=False),
        "AvaGradW": entry("AvaGrad", weight_decouple=True),
        "LAMB": entry("Lamb", {**ADAM, "max_grad_norm": "max_grad_norm"}),
        "LaProp": entry("LaProp", weight_decouple=True),
        "MADGRAD": entry("MADGRAD", MADGRAD),
    }
    return Peer("pytorch_optimizer", algorithms)


TIMM = Peer(
    "timm",
    {
        "LAMB": Entry("timm.optim.lamb:Lamb", {**ADAM, "max_grad_norm": "max_grad_norm"}),
        "LaProp": Entry("timm.optim.laprop:LaProp"),
        "MADGRAD": Entry("timm.optim.madgrad:MADGRAD", MADGRAD),
    },
    # Its models need a torchvision that was built for the very torch in use.
    packages=("timm", "timm.optim"),
)
BASELINE = "torch-fused"
PEERS: dict[str, Peer] = {
    "torch-loop": torch_optim(foreach=False),
    "torch-foreach": torch_optim(foreach=True),
    BASELINE: torch_optim(fused=True),
    "torch-compile": compiled(torch_optim(foreach=True, capturable=True), "Adam", "AdamW"),
    "pytorch_optimizer": pytorch_optimizer(foreach=False),
    "pytorch_optimizer-foreach": pytorch_optimizer(foreach=True),
    "timm": TIMM,
    "timm-compile": compiled(TIMM, "LAMB", "MADGRAD"),
    "madgrad": Peer("madgrad", {"MADGRAD": Entry("madgrad:MADGRAD", MADGRAD)}),
    # By default it uses Triton only for types on a list of torch's that no longer has Parameter.
    "torch-optimi": Peer(
        "torch-optimi",
        {name: Entry(f"optimi:{name}", on_gpu={"triton": True}) for name in ("Adam", "AdamW")},
    ),
    "heavyball": Peer(
        "heavyball",
        {
            name: Entry(f"heavyball:{name}", attributes={"consume_grad": False})
            for name in ("AdamW", "LaProp")
        },
    ),
    "bitsandbytes": Peer(
        "bitsandbytes",
        {
            "Adam": Entry("bitsandbytes.optim:Adam32bit"),
            "AdamW": Entry("bitsandbytes.optim:AdamW32bit"),
            "LAMB": Entry("bitsandbytes.optim:LAMB32bit"),
        },
    ),
    "torchao": Peer("torchao", {"AdamW": Entry("torchao.optim:_AdamW")}),
    "flashoptim": Peer(
        "flashoptim",
        {
            "Adam": Entry("flashoptim:FlashAdam", fixed=PLAIN),
            "AdamW": Entry("flashoptim:FlashAdamW", fixed=PLAIN),
        },
    ),
    "deepspeed": Peer(
        "deepspeed",
        {
            "Adam": Entry("deepspeed.ops.adam:DeepSpeedCPUAdam", fixed={"adamw_mode": False}),
            "AdamW": Entry("deepspeed.ops.adam:DeepSpeedCPUAdam", fixed={"adamw_mode": True}),
        },
    ),
}


def names(name: str) -> list[str]:
    """A peer, or several: ``torch`` (its three modes), ``all``, ``none``.

    Raises:
        ValueError: no peer has this name.
    """
    known = {
        **{peer: [peer] for peer in PEERS},
        "torch": ["torch-loop", "torch-foreach", BASELINE],
        "all": list(PEERS),
        "none": [],
    }
    if name.lower() not in known:
        raise ValueError(
            f"there is no peer {name!r}; there are all, none, torch, {', '.join(PEERS)}"
        )
    return known[name.lower()]


def installed(distribution: str) -> str | None:
    """The version of a distribution that is installed; None where none is."""
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return None


def version(name: str) -> str | None:
    return installed(PEERS[name].distribution)


def contender(name: str, algorithm: str, mode: testing.Mode) -> Contender | None:
    """A peer's version of an algorithm; None where it has none, or no such mode."""
    peer = PEERS[name]
    entry = peer.algorithms.get(algorithm)
    if entry is None or mode.options or mode.param is not mode.grad:
        return None
    ours = ALGORITHMS[algorithm]([torch.nn.Parameter(torch.zeros(1))]).defaults
    options = {theirs: ours[our] for theirs, our in entry.matched.items()} | entry.fixed

    def build(groups: Groups) -> torch.optim.Optimizer:
        p = groups[0]["params"][0]
        own = options | (entry.on_gpu if p.is_cuda else {})
        if peer.compiled:  # a number would be compiled in, and anew when a schedule changes it
            own["lr"] = torch.tensor(own["lr"], device=p.device)
        optimizer = _load(peer, entry.place)(groups, **own)
        for attribute, value in entry.attributes.items():
            setattr(optimizer, attribute, value)
        if peer.compiled:
            torch.compiler.reset()  # torch compiles only so many variants of a function
            optimizer.step = torch.compile(optimizer.step)
        return optimizer

    return Contender(name, algorithm, build, mode=mode)


def baseline(mode: testing.Mode) -> Contender:
    """What every row is compared with: torch's fused AdamW with parameters of the mode's dtype."""
    plain = next(m for m in testing.MODES if m.param is mode.param is m.grad and not m.options)
    return contender(BASELINE, "AdamW", plain)


def _load(peer: Peer, place: str) -> Callable[..., torch.optim.Optimizer]:
    bare = [package for package in peer.packages if package not in sys.modules]
    if bare:
        site = Path(importlib.util.find_spec(bare[0]).origin).parents[1]
        for package in bare:
            sys.modules[package] = types.ModuleType(package)
            sys.modules[package].__path__ = [str(site.joinpath(*package.split(".")))]
    module, _, attribute = place.partition(":")
    with quiet():
        return getattr(importlib.import_module(module), attribute)


@contextlib.contextmanager
def quiet():
    """Keep what libraries say about themselves out of the table."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
