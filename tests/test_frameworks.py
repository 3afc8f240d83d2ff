"""PyTorch Lightning and Accelerate train to the same bits as a loop written by hand."""

import contextlib
from functools import partial
from pathlib import Path
from unittest import mock

import fusedstep
import lightning
import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator, FullyShardedDataParallelPlugin, ParallelismConfig
from accelerate.state import AcceleratorState, DistributedType, GradientState, PartialState
from lightning.pytorch.plugins import MixedPrecision
from torch.distributed.tensor import DTensor

from tests.distributed import gathered, spawn
from tests.training import assert_same, every_class, network

BATCHES = list(torch.randn(6, 8, 5, generator=torch.Generator().manual_seed(0)))


def loss_of(net, batch):
    return (net(batch) - batch.sum(1, keepdim=True)).square().mean()


def by_hand(cls, options, every=1, clip=None, autocast=contextlib.nullcontext):
    """Step on every so many batches; return the weights."""
    net = network()
    optimizer = cls(net.parameters(), **options)
    for i, batch in enumerate(BATCHES, 1):
        with autocast():
            loss = loss_of(net, batch)
        (loss / every).backward()
        if i % every == 0:
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(net.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return net.state_dict()


class Module(lightning.LightningModule):
    def __init__(self, cls, options):
        super().__init__()
        self.net, self.cls, self.options = network(), cls, options

    def training_step(self, batch, _):
        return loss_of(self.net, batch)

    def configure_optimizers(self):
        return self.cls(self.net.parameters(), **self.options)


QUIET = ("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary")


def by_lightning(cls, options, module=Module, **settings):
    module = module(cls, options)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", **dict.fromkeys(QUIET, False), **settings
    )
    trainer.fit(module, torch.utils.data.DataLoader(BATCHES, batch_size=None))
    return module.net.state_dict()


quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


WAYS = {  # the optimizer's limit, the trainer's settings, and what they are by hand
    "the optimizer clips": (0.1, {}, {}),
    "lightning clips": (None, {"gradient_clip_val": 0.1}, {"clip": 0.1}),
    "lightning accumulates": (0.1, {"accumulate_grad_batches": 2}, {"every": 2}),
}


@quiet
@pytest.mark.parametrize("limit, settings, way", WAYS.values(), ids=WAYS)
@every_class
def test_lightning_trains_as_by_hand(cls, limit, settings, way):
    options = {"lr": 0.05, "max_grad_norm": limit}
    assert_same(by_lightning(cls, options, **settings), by_hand(cls, options, **way))


@quiet
def test_lightnings_wrapper_hands_on_what_is_asked_of_it():
    """It makes itself a subclass of the optimizer's class, and has none of its attributes."""
    seen = []

    class Looks(Module):
        def on_train_batch_end(self, *_):
            wrapper = self.optimizers()
            inner = wrapper.optimizer
            assert wrapper is not inner and wrapper.last_grad_norm == inner.last_grad_norm > 0
            assert wrapper.backends_in_use == inner.backends_in_use == {"cpu": "cpu"}
            assert (wrapper.backend, wrapper.master_weights) == ("auto", False)
            seen.append(wrapper.state_dtype)

    by_lightning(fusedstep.AdamW, {"max_grad_norm": 1.0, "state_dtype": torch.bfloat16}, Looks)
    assert seen == [torch.bfloat16] * len(BATCHES)


def wrapped_by_fabric(net):
    fabric = lightning.Fabric(accelerator="cpu", devices=1)
    return fabric.setup(net, fusedstep.AdamW(net.parameters()))[1]


@quiet
def test_an_option_assigned_to_a_wrapper_is_refused():
    """The wrapper would have it, and the optimizer not."""
    wrapped = wrapped_by_fabric(network())
    with pytest.raises(AttributeError, match="skip_nonfinite has no effect on the wrapper"):
        wrapped.skip_nonfinite = True
    assert not wrapped.skip_nonfinite
    wrapped.optimizer.skip_nonfinite = True
    assert wrapped.skip_nonfinite


@quiet
def test_a_scaler_unscales_for_a_wrapper():
    """Lightning's is a subclass of the optimizer's class, and keeps what a scaler sets on it."""
    steps = []
    for scale in (1.0, 256.0):
        net = network()
        wrapped, scaler = wrapped_by_fabric(net), torch.amp.GradScaler("cpu", init_scale=scale)
        scaler.scale(loss_of(net, BATCHES[0])).backward()
        scaler.step(wrapped)
        steps.append(net.state_dict())
    assert_same(*steps)


@quiet
def test_lightning_with_a_scaler_clips_in_the_step():
    """Its own clipping, there, refuses optimizers that unscale in their step."""
    options = {"lr": 0.05, "max_grad_norm": 0.1}

    def precision():
        return MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=256.0))

    def autocast():
        return torch.autocast("cpu", torch.float16)

    got = by_lightning(fusedstep.LaProp, options, plugins=[precision()])
    assert_same(got, by_hand(fusedstep.LaProp, options, autocast=autocast))
    with pytest.raises(RuntimeError, match="does not allow for gradient clipping"):
        by_lightning(fusedstep.LaProp, options, plugins=[precision()], gradient_clip_val=0.1)


def forget_accelerators():
    """Forget what Accelerate keeps between accelerators, a Trainer's too."""
    AcceleratorState._reset_state(reset_partial_state=True)
    GradientState._reset_state()


@every_class
def test_accelerate_accumulates_gradients(cls):
    options = {"lr": 0.05, "max_grad_norm": 0.1}
    forget_accelerators()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = network()
    net, optimizer = accelerator.prepare(net, cls(net.parameters(), **options))
    for batch in BATCHES:
        with accelerator.accumulate(net):
            accelerator.backward(loss_of(net, batch))
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net.state_dict(), by_hand(cls, options, every=2))


SHARDED = [
    (fusedstep.MAdam, "SHARDED_STATE_DICT"),
    (fusedstep.MAdam, "FULL_STATE_DICT"),
    (fusedstep.AvaGrad, "FULL_STATE_DICT"),
    (fusedstep.LaProp, "SHARDED_STATE_DICT"),
    (fusedstep.LAMB, "SHARDED_STATE_DICT"),
    (fusedstep.MADGRAD, "SHARDED_STATE_DICT"),
]


def sharded_by_accelerate(cls, folder, state_dict_type, resume):
    """Train with FSDP2, from the start or from the checkpoint in the middle; return all stored."""
    forget_accelerators()
    plugin = FullyShardedDataParallelPlugin(fsdp_version=2, state_dict_type=state_dict_type)
    mesh = ParallelismConfig(dp_shard_size=2)  # of the accelerator's device; alone, FSDP takes GPUs
    accelerator = Accelerator(
        fsdp_plugin=plugin, parallelism_config=mesh, gradient_accumulation_steps=2
    )
    net = network()
    net, optimizer = accelerator.prepare(
        net, cls(net.parameters(), lr=0.05, weight_decay=0.01, max_grad_norm=0.1)
    )
    params = list(net.parameters())
    assert all(isinstance(p, DTensor) for p in params)
    if resume:
        accelerator.load_state(folder)
    for i, batch in enumerate(BATCHES):
        if resume and i < 4:
            continue
        with accelerator.accumulate(net):
            accelerator.backward(loss_of(net, batch + dist.get_rank()))
            optimizer.step()
            optimizer.zero_grad()
        if not resume and i == 3:
            accelerator.save_state(folder)
    return gathered(optimizer.optimizer, params)


def accelerate_shards_saves_and_goes_on(folder):
    # It never shards over processes without GPUs, so it is told that these have some.
    backend = mock.patch.object(
        PartialState, "_prepare_backend", lambda *_, **__: ("gloo", DistributedType.MULTI_GPU)
    )
    device = mock.patch.object(
        PartialState, "set_device", lambda self: setattr(self, "device", torch.device("cpu"))
    )
    rank = {"RANK": str(dist.get_rank()), "LOCAL_RANK": str(dist.get_rank()), "WORLD_SIZE": "2"}
    with backend, device, mock.patch.dict("os.environ", rank):
        for cls, kind in SHARDED:
            run = partial(sharded_by_accelerate, cls, folder / f"{cls.__name__}-{kind}", kind)
            whole = run(resume=False)
            assert_same(run(resume=True), whole)


def test_accelerate_shards_saves_and_goes_on(tmp_path):
    spawn(accelerate_shards_saves_and_goes_on, tmp_path)


def test_the_examples_trainer_leaves_gradients_to_the_step(monkeypatch, tmp_path):
    """Trainer measures and multiplies them for its log, even where it does not clip."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    from pretrain.training import StepClips
    from transformers import TrainingArguments

    class Small(StepClips):
        def compute_loss(self, model, inputs, **_):
            return loss_of(model, inputs["x"])

    def clip(*_, **__):
        raise AssertionError("gradients are gone through")

    monkeypatch.setattr(torch.nn.utils, "clip_grad_norm_", clip)
    settings = {"max_steps": 3, "logging_steps": 1, "save_strategy": "no", "report_to": "none"}
    settings |= {"use_cpu": True, "remove_unused_columns": False, "disable_tqdm": True}
    trainer = Small(
        model=network(),
        args=TrainingArguments(tmp_path, max_grad_norm=0.0, **settings),
        train_dataset=[{"x": row} for row in BATCHES[0]],
        optimizer_cls_and_kwargs=(fusedstep.MAdam, {"lr": 0.05, "max_grad_norm": 0.1}),
    )
    trainer.train()
    logged = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    assert len(logged) == 2, "the first step has none before it"
    assert all(norm > 0 for norm in logged)
