"""What a run leaves behind: a picture of the losses, results.json, and a table in the terminal."""

import importlib.metadata
import json
import os
import platform
import shlex
import sys
from pathlib import Path
from typing import Any

import matplotlib
import torch
from rich.console import Console
from rich.table import Table

from .output_folder import PICTURE, RESULTS

matplotlib.use("Agg")
from matplotlib import pyplot as plt

PACKAGES = ("fusedstep", "torch", "transformers", "tokenizers", "accelerate", "numpy")


def write_report(folder: Path, figures: dict[str, Any]) -> None:
    draw_losses(folder / PICTURE, figures)
    record = figures | {"machine": machine(), "versions": versions(), "command": command()}
    (folder / RESULTS).write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")
    print_table(figures)
    print(f"picture {folder / PICTURE}, figures {folder / RESULTS}")


def draw_losses(path: Path, figures: dict[str, Any]) -> None:
    figure, axes = plt.subplots(figsize=(8, 4.5), layout="constrained")
    axes.plot(*zip(*figures["training_curve"], strict=True), lw=0.8, alpha=0.7, label="training")
    axes.plot(*zip(*figures["held_out_curve"], strict=True), "o-", ms=4, label="held out")
    unigram = figures["unigram_loss"]
    axes.axhline(unigram, ls="--", color="black", label="unigram line")
    axes.set(
        title=f"BERT, {figures['parameters']:,} parameters, {figures['run']['optimizer']}",
        xlabel="step",
        ylabel="loss of masked tokens, nats",
    )
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def print_table(figures: dict[str, Any]) -> None:
    rows = {
        "held-out loss": f"{figures['held_out_loss']:.3f} nats",
        "unigram line": f"{figures['unigram_loss']:.3f} nats",
        "below the unigram line": f"{figures['nats_below_unigram']:.3f} nats",
        "masked accuracy": f"{figures['masked_accuracy']:.1%}",
        "steps": f"{figures['step']:,} of {figures['steps']:,}",
        "parameters": f"{figures['parameters']:,}",
        "optimizer": f"{figures['run']['optimizer']}, backend {figures['backend']}",
        "optimizer's share of step time": f"{figures['optimizer_share']:.1%}",
        "training time": f"{figures['seconds']:.0f} s",
    }
    table = Table(show_header=False)
    for name, value in rows.items():
        table.add_row(name, value)
    Console().print(table)


def machine() -> dict[str, Any]:
    return {
        "platform": platform.platform(),
        "cpu": torch.backends.cpu.get_cpu_capability(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
    }


def versions() -> dict[str, str | None]:
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            found[package] = None
    return found


def command() -> str:
    return shlex.join([Path(sys.executable).name, *sys.argv])
