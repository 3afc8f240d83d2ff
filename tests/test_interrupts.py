"""Whatever is interrupted, at whatever line, has happened or has not: training goes on from either.

A trace function raises KeyboardInterrupt before a line of the package, as Ctrl-C does.
"""

import copy
import functools
import os
import sys
from itertools import count

import fusedstep
import pytest
import torch
from fusedstep import testing

from tests.training import assert_same, give_gradients, model, stored, train

PACKAGE = os.path.dirname(fusedstep.__file__)

# LAMB's step is left out: it makes two passes, and an interrupt may come between them.
KINDS = {
    "adamw": (fusedstep.AdamW, torch.float32, {"amsgrad": True}),
    "capturable": (fusedstep.AdamW, torch.float32, {"capturable": True}),
    "masters": (fusedstep.MAdam, torch.bfloat16, {"master_weights": True}),
    "clipped": (fusedstep.MADGRAD, torch.float32, {"max_grad_norm": 0.5}),
    "sums": (fusedstep.AvaGrad, torch.float32, {"skip_nonfinite": True}),
}


class World:
    """Parameters that have made some steps and have their next gradients, and an optimizer."""

    def __init__(self, kind, steps):
        self.kind, (cls, dtype, options) = kind, KINDS[kind]
        self.params = model((4, 5), (300,), (3,), dtype=dtype)
        groups = [{"params": self.params[:1]}, {"params": self.params[1:2], "lr": 0.01}]
        self.optimizer = cls(groups, **options)
        train(self.optimizer, self.params, steps)
        give_gradients(self.params, steps)

    def after_training(self):
        train(self.optimizer, self.params, 2, seed=7)
        return stored(self.optimizer, self.params)


@functools.cache
def saved(kind):
    """A checkpoint of five steps, with another rate."""
    optimizer = World(kind, 5).optimizer
    optimizer.param_groups[0]["lr"] = 0.25
    return optimizer.state_dict()


def step(world):
    world.optimizer.step()


def load(world):
    world.optimizer.load_state_dict(saved(world.kind))


def add_group(world):
    world.optimizer.add_param_group({"params": world.params[2:], "lr": 0.1})


def make_copy(world):
    copy.deepcopy(world.optimizer)


# By name: the steps made before it, what is done, and from one line that is tried to the next.
ACTIONS = {
    "a first step": (0, step, 13),
    "a step": (2, step, 1),
    "loading": (2, load, 5),
    "a group": (2, add_group, 1),
    "a copy": (2, make_copy, 1),
}


def interrupts(action, line):
    """Whether ``action()`` reaches that many of the package's lines; it is interrupted there."""
    lines, before = count(1), sys.gettrace()

    def each_line(frame, event, _):
        if event == "line" and next(lines) == line:
            sys.settrace(before)
            raise KeyboardInterrupt
        return each_line

    def each_call(frame, *_):
        return each_line if frame.f_code.co_filename.startswith(PACKAGE) else None

    sys.settrace(each_call)
    try:
        action()
    except KeyboardInterrupt:
        return True
    finally:
        sys.settrace(before)
    assert next(lines) <= line, "the interrupt was swallowed"
    return False


@pytest.mark.filterwarnings("ignore:.*edited or loaded since the last step")  # they are, here
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("kind", KINDS)
def test_what_is_interrupted_has_happened_or_has_not(kind, action):
    steps, act, stride = ACTIONS[action]
    undone, done = World(kind, steps), World(kind, steps)
    act(done)
    undone, done = undone.after_training(), done.after_training()
    for line in count(1, stride):
        world = World(kind, steps)
        if not interrupts(functools.partial(act, world), line):
            break
        found = world.after_training()
        if testing.differences(found, undone):
            assert_same(found, done)
    assert line > 10 * stride, "few lines were tried"
