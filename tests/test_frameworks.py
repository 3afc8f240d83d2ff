"""PyTorch Lightning and Accelerate train to the same bits as a loop written by hand."""

import contextlib

import fusedstep
import lightning
import pytest
import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState
from lightning.pytorch.plugins import MixedPrecision

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


def by_lightning(cls, options, **settings):
    module = Module(cls, options)
    trainer = lightning.Trainer(
        max_epochs=1, accelerator="cpu", **dict.fromkeys(QUIET, False), **settings
    )
    trainer.fit(module, torch.utils.data.DataLoader(BATCHES, batch_size=None))
    return module.net.state_dict()


quiet = pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")


@quiet
@every_class
def test_lightning_clips_by_the_optimizers_norm(cls):
    options = {"lr": 0.05, "max_grad_norm": 0.1}
    assert_same(by_lightning(cls, options), by_hand(cls, options))


@quiet
@every_class
def test_lightning_may_clip_itself(cls):
    options = {"lr": 0.05, "max_grad_norm": None}
    got = by_lightning(cls, options, gradient_clip_val=0.1)
    assert_same(got, by_hand(cls, options, clip=0.1))


@quiet
def test_lightning_accumulates_gradients():
    options = {"lr": 0.05, "max_grad_norm": 0.1}
    got = by_lightning(fusedstep.MAdam, options, accumulate_grad_batches=2)
    assert_same(got, by_hand(fusedstep.MAdam, options, every=2))


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


@every_class
def test_accelerate_accumulates_gradients(cls):
    options = {"lr": 0.05, "max_grad_norm": 0.1}
    AcceleratorState._reset_state(reset_partial_state=True)  # of a Trainer that ran before
    GradientState._reset_state()
    accelerator = Accelerator(cpu=True, gradient_accumulation_steps=2)
    net = network()
    net, optimizer = accelerator.prepare(net, cls(net.parameters(), **options))
    for batch in BATCHES:
        with accelerator.accumulate(net):
            accelerator.backward(loss_of(net, batch))
            optimizer.step()
            optimizer.zero_grad()
    assert_same(net.state_dict(), by_hand(cls, options, every=2))
