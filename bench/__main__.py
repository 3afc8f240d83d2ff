"""Measure optimizer steps beside torch's fused AdamW and other projects' optimizers.

    python -m bench --set bert-base tiny --algorithms madam,laprop --peers torch,timm --plot
    python -m bench growth --plot      time and memory as parameters, tensors, groups grow
    python -m bench training           the optimizer's share of a small BERT's training step
    python -m bench self-check         check that a slow-down put in is seen, and none where none is
    python -m bench tables             rewrite README's and docs/speed.md's tables

On a busy machine, trust ratios within one run, not times.
"""

from __future__ import annotations

import argparse
import importlib
import math
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from . import contenders, device, pages, parameter_sets, peers, results, tables, training
from .contenders import Contender
from .measure import Run, Task, measure
from .self_check import self_check

DEFAULTS = {  # sets and algorithms, by command
    None: (["bert-base", "tiny"], list(contenders.ALGORITHMS)),
    "growth": (["parameters", "tensors", "groups"], ["AdamW"]),
    "training": (["small-bert"], list(contenders.ALGORITHMS)),
    "self-check": (["tiny"], ["AdamW"]),
}
COMMON = {"algorithms", "backends", "import", "device", "threads"}
ROWS = {"peers", "rounds", "out", "gate", "plot", "record"}  # options of commands that write rows
TAKEN = {  # options that each command accepts
    None: COMMON | ROWS | {"set", "dtype"},
    "growth": COMMON | ROWS | {"set", "dtype"},
    "training": COMMON | ROWS,  # its model is in float32
    "self-check": COMMON | {"set", "dtype"},
    "tables": set(),
}


def words(values: list[str]) -> list[str]:
    """The entries of an option's list, separated by spaces or commas."""
    return [word for value in values for word in value.split(",") if word]


def make_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bench",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Separate the entries of a list by spaces or commas.",
    )
    known = [name for name in TAKEN if name]
    parser.add_argument("command", nargs="?", choices=known, help="default: measure")
    several = {"nargs": "+", "metavar": "NAME"}
    parser.add_argument("--set", **several, help=parameter_sets.HELP)
    parser.add_argument(
        "--algorithms", **several, help="classes, or cases of the bit matrix such as madam-released"
    )
    parser.add_argument("--backends", **several, help="default: those that serve the device")
    parser.add_argument(
        "--import", **several, default=[], help="modules that register backends of your own"
    )
    parser.add_argument(
        "--peers", **several, default=["torch"], help=f"all, none, torch, {', '.join(peers.PEERS)}"
    )
    parser.add_argument("--dtype", **several, default=["f32"], help=", ".join(contenders.MODES))
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    rounds = "measurements of a step; ten times as many for small sets"
    parser.add_argument("--rounds", type=int, default=11, help=rounds)
    parser.add_argument("--threads", nargs="+", help="numbers of CPU threads; default: torch's")
    parser.add_argument(
        "--out", type=Path, default=Path("build/bench.json"), help="for the rows, also as .csv"
    )
    parser.add_argument(
        "--gate",
        type=float,
        default=0.0,
        metavar="RATIO",
        help="fail if our AdamW has less than this share of the speed of torch's fused one",
    )
    parser.add_argument("--plot", action="store_true", help="draw pictures, beside --out")
    parser.add_argument("--record", action="store_true", help="merge rows into bench/results/")
    return parser


def options(arguments: list[str] | None) -> argparse.Namespace:
    """The command line, checked as far as nothing has to be measured for it.

    Raises:
        ValueError: an option that cannot be met; the message says what can.
    """
    parser = make_parser()
    chosen = parser.parse_args(arguments)
    if chosen.rounds < 2:
        raise ValueError(f"--rounds is {chosen.rounds}; a median and quartiles need at least 2")
    if not math.isfinite(chosen.gate):
        raise ValueError(f"--gate is {chosen.gate}; pass a share such as 0.8")
    given = {name for name, value in vars(chosen).items() if value != parser.get_default(name)}
    taken = TAKEN[chosen.command]
    if unused := sorted(f"--{name}" for name in given - taken - {"command"}):
        raise ValueError(f"{chosen.command} does not take {', '.join(unused)}; leave that out")
    if (chosen.plot or chosen.command == "tables") and find_spec("matplotlib") is None:
        raise ValueError("pictures need matplotlib; pip install matplotlib")
    if "out" in taken:
        results.check_place(chosen.out)
    modules = words(getattr(chosen, "import"))
    if chosen.record:
        if modules:
            raise ValueError("--record keeps rows of fusedstep's own kernels; leave out --import")
        results.of_record()  # a damaged file is reported before anything is measured
    import_all(modules)
    return chosen


def import_all(modules: list[str]) -> None:
    """Import modules that register backends of users' own."""
    for module in modules:
        if module.endswith(".py") or not all(word.isidentifier() for word in module.split(".")):
            raise ValueError(f"--import is {module}; pass the name of a module, without .py")
        try:
            importlib.import_module(module)
        except ModuleNotFoundError as error:  # of the module, or of what it imports
            remedy = "put its folder in PYTHONPATH" if error.name == module else "install that"
            raise ValueError(f"--import is {module}: {error}; {remedy}") from error


def threads(values: list[str] | None) -> list[int]:
    if values is None:
        return [torch.get_num_threads()]
    found, cores = words(values), os.cpu_count() or 1
    if not all(word.isdecimal() and 0 < int(word) <= cores for word in found):
        raise ValueError(f"--threads is {' '.join(found)!r}; pass numbers from 1 to {cores}")
    return sorted({int(word) for word in found})


def make_tasks(chosen: argparse.Namespace, where: torch.device) -> list[Task]:
    """Every combination that was asked for, without peers that are not installed.

    Raises:
        ValueError: a name that does not exist; the message lists those that do.
    """
    sets, names = DEFAULTS[chosen.command]
    sets, names = words(chosen.set or sets), words(chosen.algorithms or names)
    backends = [contenders.backend(name, where) for name in words(chosen.backends or [])]
    backends = backends or contenders.backends(where)
    others = [peer for name in words(chosen.peers) for peer in peers.names(name)]
    others = [peer for peer in dict.fromkeys(others) if peers.version(peer) is not None]
    found = []
    for count, name, mode in product(threads(chosen.threads), sets, words(chosen.dtype)):
        mode = contenders.mode(mode)
        trains = chosen.command == "training"
        for parameter_set in [training.parameter_set()] if trains else parameter_sets.parse(name):
            # Peers' growth is of interest over tensors alone: elsewhere it is a straight line, too.
            rivals = [] if name in ("parameters", "groups") else others
            for contender in entrants(names, backends, rivals, mode):
                if not (contender.fades and (trains or parameter_set.small)):
                    found.append(Task(parameter_set, contender, count))
    if not found:
        raise ValueError("there is nothing to measure; name sets, algorithms and a dtype")
    return list(dict.fromkeys(found))  # what was named twice is measured once


def entrants(names: list[str], backends: list[str], others: list[str], mode) -> list[Contender]:
    """Ours and the peers' of some algorithms in one dtype mode."""
    found = [
        one
        for name, backend in product(names, backends)
        for one in contenders.ours(name, backend, mode)
    ]
    classes = dict.fromkeys(one.algorithm for one in found)
    rivals = (peers.contender(peer, name, mode) for name, peer in product(classes, others))
    return [*found, *(rival for rival in rivals if rival is not None)]


def run(measure: Callable[..., Iterator[Task]], tasks: list[Task], *how: Any) -> Run:
    done = Run()
    # Drawn between tasks only: a thread that draws would disturb what is measured.
    with tables.bar(auto_refresh=False) as progress:
        bar = progress.add_task("", total=len(tasks))
        # A batch system ends a job by SIGTERM: an interrupt, too.
        before = signal.signal(signal.SIGTERM, signal.default_int_handler)
        try:
            for i, task in enumerate(measure(done, tasks, *how)):
                progress.update(bar, completed=i, description=task.label, refresh=True)
        except KeyboardInterrupt:
            done.interrupted = True
            progress.console.print("interrupted; what was measured before follows")
        finally:
            signal.signal(signal.SIGTERM, before)
    return done


def report(done: Run, chosen: argparse.Namespace, where: torch.device, command: str) -> None:
    console = Console(width=None if sys.stdout.isatty() else 200)
    for table in tables.terminal(done.rows):
        console.print(table)
    for line in tables.complaints(done):
        console.print(line, style="yellow", soft_wrap=True, markup=False)
    for row in results.disturbed(done.rows):
        who = f"{tables.who(row)} {tables.algorithm(row)}, {row['set']}, {row['dtype']}"
        console.print(f"disturbed by other programs, measure again: {who}", style="yellow")
    if not done.rows:
        console.print(f"no rows: {chosen.out} stays as it was", soft_wrap=True)
        return
    content = results.document(done.rows, where, command)
    results.write(chosen.out, content)
    console.print(f"rows: {chosen.out}, {chosen.out.with_suffix('.csv')}", soft_wrap=True)
    if chosen.record:
        console.print(f"results of record: {results.record(content)}", soft_wrap=True)
    if chosen.plot:
        from .plots import draw  # matplotlib takes a second to load

        pictures = draw(done.rows, chosen.out.parent, f"{chosen.out.stem}-")
        console.print(f"pictures: {', '.join(map(str, pictures)) or 'none for these rows'}")


def slower(rows: list[dict], gate: float) -> Iterator[str]:
    """A line for each step of our AdamW below ``gate`` times the speed of torch's fused one."""
    for row in rows:
        if row["maker"] == contenders.OURS and row["algorithm"] == "AdamW":
            share = row["vs_torch_fused"]
            if row["phase"] in ("step", "fresh", "unchanged") and share < gate:
                where = f"{row['set']}, {row['dtype']}, {row['backend']}, {row['phase']}"
                yield f"below the gate of {gate}: AdamW, {where}: {share:.2f} of torch's fused"


def main(arguments: list[str] | None = None) -> int:
    try:
        chosen = options(arguments)
        if chosen.command == "tables":
            changed = pages.write_pages()
            print(f"rewritten: {', '.join(page.name for page in changed) or 'nothing had changed'}")
            return 0
        where = device.choose(chosen.device)
        tasks = make_tasks(chosen, where)
        absent = [peer for peer in peers.PEERS if peers.version(peer) is None]
    except ValueError as error:
        print(f"python -m bench: {error}", file=sys.stderr)
        return 2
    clock = device.clock(where)
    if chosen.command == "self-check":
        ours = [task for task in tasks if task.contender.maker == contenders.OURS]
        return 0 if all([self_check(task, clock) for task in ours]) else 1
    if absent and words(chosen.peers) != ["none"]:
        print(f"absent: {', '.join(absent)} (make build/peers, then PYTHONPATH=build/peers)")
    given = sys.argv[1:] if arguments is None else arguments
    # Recorded without the folder of --out, which means nothing on other machines.
    named = [word.replace(str(chosen.out), chosen.out.name) for word in given]
    command = shlex.join(["python", "-m", "bench", *named])
    way = training.measure if chosen.command == "training" else measure
    done = run(way, tasks, clock, chosen.rounds)
    report(done, chosen, where, command)
    too_slow = list(slower(done.rows, chosen.gate))
    print(*too_slow, sep="\n", end="\n" if too_slow else "")
    if done.interrupted:
        return 130
    ours_failed = any(label.startswith(contenders.OURS) for label in done.failed)
    return 1 if ours_failed or too_slow or not done.rows else 0


if __name__ == "__main__":
    sys.exit(main())
