"""One pretraining run: text to blocks, blocks through Hugging Face's Trainer, figures out of it."""

import hashlib
import math
import os
from argparse import Namespace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from torch.optim import Optimizer
from transformers import ProgressCallback, Trainer, TrainingArguments, set_seed
from transformers.utils.logging import disable_progress_bar

from .callbacks import LossBar, StepTimer, StopAfter
from .corpus import python_documentation, read_text
from .mlm import (
    ReplayableMasking,
    Split,
    build_bert,
    cut_blocks,
    fast_tokenizer,
    held_out_metrics,
    score_targets,
    split_blocks,
    train_wordpiece,
    unigram_log_probs,
)
from .optimizers import (
    backend_of,
    complete,
    find_optimizer,
    is_fused,
    qualified_name,
    try_optimizer,
)
from .options import Refusal
from .output_folder import check_same_run, last_checkpoint, start_run

CLIP_NORM = 1.0
EVAL_BATCH = 64  # masks belong to batches: another size would be another held-out set
LOG_POINTS, EVAL_POINTS = 300, 15
# Options that may differ when a run is resumed; text may move, but its blocks must be the same.
OF_THE_MOMENT = {"device", "output", "resume", "stop_after", "text"}


def pretrain(options: Namespace) -> dict[str, Any]:
    """Run as the options say; return the figures of the run."""
    device = pick_device(options.device)
    optimizer_class = find_optimizer(options.optimizer)
    complete(options, optimizer_class)
    try_optimizer(optimizer_class, options, device)
    if options.resume:
        last_checkpoint(options.output)

    wordpiece, split = load_blocks(options)
    run = describe_run(options, qualified_name(optimizer_class), split)
    checkpoint = prepare_output(options, run)

    set_seed(options.seed)
    trainer = build_trainer(options, device, optimizer_class, wordpiece, split)
    optimizer = trainer.create_optimizer()
    timer = StepTimer(optimizer, device)
    trainer.add_callback(timer)
    if options.stop_after:
        trainer.add_callback(StopAfter(options.stop_after))
    outcome = trainer.train(resume_from_checkpoint=checkpoint and str(checkpoint))
    return figures(trainer, timer) | {
        "seconds": outcome.metrics["train_runtime"],
        "backend": backend_of(optimizer),
        "run": run,
    }


def pick_device(name: str) -> torch.device:
    if name == "cpu":
        return torch.device("cpu")
    # Show it one GPU: Trainer would spread the batch over all.
    os.environ["CUDA_VISIBLE_DEVICES"] = os.environ.get("CUDA_VISIBLE_DEVICES", "0").split(",")[0]
    # On a GPU, equal runs have equal bits only with deterministic kernels.
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    if not torch.cuda.is_available():
        if name == "auto":
            return torch.device("cpu")
        raise Refusal("--device cuda: torch finds no CUDA GPU here; use --device cpu or auto")
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.utils.deterministic.fill_uninitialized_memory = False
    return torch.device("cuda")


def load_blocks(options: Namespace) -> tuple[Tokenizer, Split]:
    documents = read_text(options.text) if options.text else python_documentation()
    wordpiece = train_wordpiece(documents, options.vocab)
    split = split_blocks(cut_blocks(documents, wordpiece, options.length))
    if len(split.train) < options.batch_size or not len(split.held_out):
        source = " ".join(map(str, options.text)) if options.text else "Python's documentation"
        raise Refusal(
            f"--text {source}: makes {len(split.train)} training and {len(split.held_out)} "
            f"held-out blocks of {options.length} tokens where {options.batch_size} and 1 are the "
            "least; give more text, or a smaller --length or --batch-size"
        )
    print(
        f"{len(documents):,} documents: {len(split.train):,} training and "
        f"{len(split.held_out):,} held-out blocks of {options.length} tokens"
    )
    return wordpiece, split


def describe_run(options: Namespace, optimizer_name: str, split: Split) -> dict[str, Any]:
    """What must stay the same for a resumed run to equal the uninterrupted one."""
    run = {name: value for name, value in vars(options).items() if name not in OF_THE_MOMENT}
    run["optimizer"] = optimizer_name
    run["option"] = [f"{name}={value}" for name, value in options.option]
    digest = hashlib.sha256()
    for blocks in split:
        digest.update(blocks.numpy().tobytes())
    run["corpus"] = digest.hexdigest()[:16]
    return run


def prepare_output(options: Namespace, run: dict[str, Any]) -> Path | None:
    """Clear the output folder for a fresh run, or find the checkpoint to resume from."""
    if not options.resume:
        start_run(options.output, run)
        return None
    check_same_run(options.output, run)
    step, checkpoint = last_checkpoint(options.output)
    goal = min(options.steps, options.stop_after or options.steps)
    if step >= goal:
        raise Refusal(
            f"--resume: the run in {options.output} is at step {step} of {goal} already; "
            "start anew without --resume"
        )
    print(f"resuming from {checkpoint}")
    return checkpoint


class StepClips(Trainer):
    """A Trainer for optimizers that clip in their step. Even where it does not clip itself, Trainer
    would go through all gradients, measuring and multiplying them, to log their norm."""

    def _get_grad_norm(self, model, grad_norm=None):
        """The norm in the step before."""
        return self.optimizer.optimizer.last_grad_norm


def build_trainer(
    options: Namespace,
    device: torch.device,
    optimizer_class: type[Optimizer],
    wordpiece: Tokenizer,
    split: Split,
) -> Trainer:
    disable_progress_bar()  # of saved files; the one of the training stays
    tokenizer = fast_tokenizer(wordpiece, options.length)
    log_probs = unigram_log_probs(split.train, len(tokenizer))
    arguments = {"lr": options.lr, **dict(options.option)}
    fused = is_fused(optimizer_class)
    if fused:  # clips in the step; Trainer clips for the others
        arguments.setdefault("max_grad_norm", CLIP_NORM)
    trainer = (StepClips if fused else Trainer)(
        model=build_bert(len(tokenizer), options.width, options.layers, options.length),
        args=training_arguments(options, device, 0.0 if fused else CLIP_NORM),
        train_dataset=list(split.train),
        eval_dataset=list(split.held_out),
        processing_class=tokenizer,
        data_collator=ReplayableMasking(tokenizer),
        optimizer_cls_and_kwargs=(optimizer_class, arguments),
        preprocess_logits_for_metrics=score_targets,
        compute_metrics=partial(held_out_metrics, log_probs=log_probs),
    )
    trainer.remove_callback(ProgressCallback)
    trainer.add_callback(LossBar)
    return trainer


def training_arguments(
    options: Namespace, device: torch.device, max_grad_norm: float
) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(options.output),
        max_steps=options.steps,
        per_device_train_batch_size=options.batch_size,
        per_device_eval_batch_size=EVAL_BATCH,
        learning_rate=options.lr,
        weight_decay=options.weight_decay,
        max_grad_norm=max_grad_norm,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(options.warmup * options.steps),
        seed=options.seed,
        use_cpu=device.type == "cpu",
        logging_steps=max(1, options.steps // LOG_POINTS),
        eval_strategy="steps",
        eval_steps=max(1, options.steps // EVAL_POINTS),
        eval_on_start=not options.resume,
        save_steps=options.save_every,
        save_total_limit=2,
        remove_unused_columns=False,
        report_to="none",
    )


def figures(trainer: Trainer, timer: StepTimer) -> dict[str, Any]:
    """What the picture, the table and results.json show."""
    log = trainer.state.log_history
    if not any("eval_loss" in entry for entry in log if entry["step"] == trainer.state.global_step):
        trainer.evaluate()
    evaluations = [entry for entry in log if "eval_loss" in entry]
    last = evaluations[-1]
    return {
        "held_out_loss": last["eval_cross_entropy"],
        "unigram_loss": last["eval_unigram"],
        "nats_below_unigram": last["eval_unigram"] - last["eval_cross_entropy"],
        "masked_accuracy": last["eval_accuracy"],
        "held_out_targets": last["eval_targets"],
        "step": trainer.state.global_step,
        "steps": trainer.state.max_steps,
        "parameters": trainer.model.num_parameters(),
        "device": str(trainer.args.device),
        "optimizer_share": timer.optimizer_share(),
        "timed_steps": timer.steps,
        "training_curve": [(entry["step"], entry["loss"]) for entry in log if "loss" in entry],
        "held_out_curve": [(entry["step"], entry["eval_cross_entropy"]) for entry in evaluations],
    }
