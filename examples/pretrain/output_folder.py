"""The output folder of a run: what it holds, when it may be cleared, and where to resume from."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

from .options import Refusal

RUN = "run.json"
RESULTS = "results.json"
PICTURE = "loss.png"
CHECKPOINT = re.compile(r"checkpoint-(\d+)")


def checkpoint_steps(folder: Path) -> dict[int, Path]:
    """Complete checkpoints by step; Trainer writes trainer_state.json last."""
    states = folder.glob("checkpoint-*/trainer_state.json")
    found = ((CHECKPOINT.fullmatch(state.parent.name), state.parent) for state in states)
    return {int(match[1]): path for match, path in found if match}


def start_run(folder: Path, run: dict[str, Any]) -> None:
    """Make the folder ready for a fresh run, clearing the files of an earlier one and no others."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        clear_earlier_run(folder)
        (folder / RUN).write_text(json.dumps(run, indent=2) + "\n", encoding="utf-8")
    except OSError as error:
        raise Refusal(
            f"--output {folder}: cannot be written ({error.strerror}); choose another folder"
        ) from error


def clear_earlier_run(folder: Path) -> None:
    ours = sorted(
        path
        for path in folder.iterdir()
        if path.name in (RUN, RESULTS, PICTURE) or CHECKPOINT.fullmatch(path.name)
    )
    if not ours:
        return
    names = ", ".join(path.name for path in ours)
    if not (folder / RUN).is_file():
        raise Refusal(
            f"--output {folder}: holds {names} but no {RUN}, so this program did not write them; "
            "choose another folder"
        )
    print(f"{folder}: cleared the earlier run's {names}")
    for path in ours:
        shutil.rmtree(path) if path.is_dir() else path.unlink()


def last_checkpoint(folder: Path) -> tuple[int, Path]:
    checkpoints = checkpoint_steps(folder)
    if not checkpoints or not (folder / RUN).is_file():
        raise Refusal(
            f"--resume: no checkpoint of a run in {folder}; start without --resume, "
            "or name the run's folder with --output"
        )
    return max(checkpoints.items())


def check_same_run(folder: Path, run: dict[str, Any]) -> None:
    try:
        earlier = dict(json.loads((folder / RUN).read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise Refusal(f"--resume: {folder / RUN} is damaged; start anew without --resume") from None
    for name, value in run.items():
        if earlier.get(name) != value:
            raise Refusal(
                f"--resume: the run in {folder} has {name} {earlier.get(name)}, not {value}; "
                "resume with the options it was started with, or start anew without --resume"
            )
