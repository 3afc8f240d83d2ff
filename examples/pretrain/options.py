"""The command line of pretrain_bert.py, read and checked before torch is imported."""

import argparse
import ast
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn


class Refusal(Exception):
    """A request that cannot be met: one line with what, the value, why, and the remedy."""


class OneLineParser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        self.exit(2, f"{self.prog}: error: {message} (--help lists the options)\n")


def whole(lowest: int, highest: int) -> Callable[[str], int]:
    def parse(text: str) -> int:
        if not (text.isdecimal() and lowest <= int(text) <= highest):
            raise argparse.ArgumentTypeError(
                f"{text!r} is out of range; give a whole number from {lowest} to {highest}"
            )
        return int(text)

    return parse


def real(lowest: float, below: float) -> Callable[[str], float]:
    def parse(text: str) -> float:
        try:
            value = float(text)
        except ValueError:
            value = float("nan")
        if not lowest <= value < below:
            raise argparse.ArgumentTypeError(
                f"{text!r} is out of range; give a number from {lowest:g} to below {below:g}"
            )
        return value

    return parse


def assignment(text: str) -> tuple[str, Any]:
    """NAME=VALUE, the value a Python literal or, failing that, the string as it stands."""
    name, equals, value = text.partition("=")
    if not (name.isidentifier() and equals):
        raise argparse.ArgumentTypeError(f"{text!r} is no NAME=VALUE; give one such as eps=1e-6")
    try:
        return name, ast.literal_eval(value)
    except (ValueError, SyntaxError):
        return name, value


def parse_options(documentation: str) -> argparse.Namespace:
    description, _, epilog = documentation.partition("\n\n")
    parser = OneLineParser(
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add_text_and_model(parser.add_argument_group("text and model").add_argument)
    add_optimizer_and_schedule(parser.add_argument_group("optimizer and schedule").add_argument)
    add_run(parser.add_argument_group("run").add_argument)
    return parser.parse_args()


def add_text_and_model(add: Callable[..., Any]) -> None:
    documentation = "[the documentation that comes with Python]"
    files = "UTF-8 files, or folders of .txt, .md and .rst files, to learn from"
    add("--text", type=Path, nargs="+", metavar="PATH", help=f"{files} {documentation}")
    vocab = "size of the WordPiece vocabulary [%(default)s]"
    add("--vocab", type=whole(100, 10**6), default=2000, metavar="N", help=vocab)
    length = "tokens in a block [%(default)s]"
    add("--length", type=whole(8, 8192), default=64, metavar="N", help=length)
    layers = "transformer layers [%(default)s]"
    add("--layers", type=whole(1, 1000), default=2, metavar="N", help=layers)
    width = "hidden units, an attention head for each 64 of them [%(default)s]"
    add("--width", type=whole(1, 65536), default=128, metavar="N", help=width)


def add_optimizer_and_schedule(add: Callable[..., Any]) -> None:
    optimizer = "a class of fusedstep (case is ignored), or a path such as torch.optim.AdamW"
    add("--optimizer", default="madam", metavar="NAME", help=f"{optimizer} [%(default)s]")
    suits = "or as preset for the optimizer"
    rate = f"highest learning rate [3e-3, {suits}]"
    add("--lr", type=real(0, 1e3), metavar="RATE", help=rate)
    decay = f"weight decay of matrices; biases and layer norms have none [0.1, {suits}]"
    add("--weight-decay", type=real(0, 1), metavar="DECAY", help=decay)
    option = "another argument of the optimizer, such as beta1=0.95; may be repeated"
    add("--option", type=assignment, action="append", default=[], metavar="NAME=VALUE", help=option)
    batch = "blocks in a step [%(default)s]"
    add("--batch-size", type=whole(1, 65536), default=32, metavar="N", help=batch)
    steps = "length of the schedule [%(default)s]"
    add("--steps", type=whole(1, 10**9), default=1500, metavar="N", help=steps)
    warmup = "share of the steps in which the rate rises; then it falls to 0 [%(default)s]"
    add("--warmup", type=real(0, 1), default=0.1, metavar="SHARE", help=warmup)
    seed = "seed of weights and of the order of batches [%(default)s]"
    add("--seed", type=whole(0, 2**32 - 1), default=0, metavar="N", help=seed)


def add_run(add: Callable[..., Any]) -> None:
    output = "folder for checkpoints, picture and results [%(default)s]"
    add("--output", type=Path, default=Path("build/pretrain"), metavar="FOLDER", help=output)
    save = "steps between checkpoints [%(default)s]"
    add("--save-every", type=whole(1, 10**9), default=500, metavar="STEPS", help=save)
    stop = "save a checkpoint at this step and end; --resume goes on with the same schedule"
    add("--stop-after", type=whole(1, 10**9), metavar="STEP", help=stop)
    resume = "go on from the last checkpoint in the output folder, bit for bit"
    add("--resume", action="store_true", help=f"{resume}; give the other options as before")
    device = "auto: a GPU if there is one [%(default)s]"
    add("--device", choices=("auto", "cpu", "cuda"), default="auto", help=device)
