"""What the example adds to Trainer's loop: step times, a place to stop, and a quieter bar."""

import time
from typing import Any

import torch
from torch.optim import Optimizer
from transformers import (
    ProgressCallback,
    TrainerCallback,
    TrainerControl,
    TrainerState,
    TrainingArguments,
)


class StepTimer(TrainerCallback):
    """Time of whole training steps (forward, backward, clipping, update) and of the update alone.

    Fetching batches, evaluating and saving lie outside. On a GPU the times are those of its stream,
    read from events whenever Trainer has waited for the loss anyway.
    """

    def __init__(self, optimizer: Optimizer, device: torch.device):
        self.cuda = device.type == "cuda"
        self.seconds = {"step": 0.0, "optimizer": 0.0}
        self.steps = 0
        self._open: dict[str, Any] = {}
        self._closed: list[tuple[str, Any, Any]] = []
        optimizer.register_step_pre_hook(lambda *_: self._start("optimizer"))
        optimizer.register_step_post_hook(lambda *_: self._stop("optimizer"))

    def on_step_begin(self, *_: Any, **__: Any) -> None:
        self._start("step")

    def on_step_end(self, *_: Any, **__: Any) -> None:
        self._stop("step")
        self.steps += 1

    def on_log(self, *_: Any, **__: Any) -> None:
        self._read()

    def optimizer_share(self) -> float:
        self._read()
        return self.seconds["optimizer"] / self.seconds["step"]

    def _now(self) -> Any:
        if not self.cuda:
            return time.perf_counter()
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        return event

    def _start(self, name: str) -> None:
        self._open[name] = self._now()

    def _stop(self, name: str) -> None:
        self._closed.append((name, self._open.pop(name), self._now()))

    def _read(self) -> None:
        for name, start, stop in self._closed:
            if self.cuda:
                stop.synchronize()
            self.seconds[name] += start.elapsed_time(stop) / 1e3 if self.cuda else stop - start
        self._closed.clear()


class StopAfter(TrainerCallback):
    """Ends the run at a step with a checkpoint, leaving the schedule as it is."""

    def __init__(self, step: int):
        self.step = step

    def on_step_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **_: Any
    ) -> None:
        if state.global_step >= self.step:
            control.should_save = control.should_training_stop = True


class LossBar(ProgressCallback):
    """Trainer's progress bar, with the losses on it and no further bars or lines between."""

    def on_prediction_step(self, *_: Any, **__: Any) -> None:
        """An evaluation is too short for a bar of its own."""

    def on_train_begin(self, *args: Any, **kwargs: Any) -> None:
        super().on_train_begin(*args, **kwargs)
        self.losses: dict[str, str] = {}

    def on_log(
        self,
        args: TrainingArguments,
        state: TrainerState,
        control: TrainerControl,
        logs: dict[str, float],
        **_: Any,
    ) -> None:
        shown = {"train": logs.get("loss"), "held_out": logs.get("eval_cross_entropy")}
        self.losses |= {name: f"{loss:.3f}" for name, loss in shown.items() if loss is not None}
        if self.training_bar is not None:
            self.training_bar.set_postfix(self.losses, refresh=False)
