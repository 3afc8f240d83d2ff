"""Processes of one group, and DTensors that train beside the whole tensors they are parts of."""

import os
import time

import pytest
import torch
import torch.distributed as dist
from torch.distributed.tensor import DTensor, distribute_tensor

from tests.training import assert_same, give_gradients, model, stored


def spawn(function, *args, world=2, patience=300):
    """Run a function in processes of one group; raise what one of them raised."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    arguments = (world, store.port, function, args)
    running = torch.multiprocessing.spawn(_enter, arguments, nprocs=world, join=False)
    until = time.monotonic() + patience
    while not running.join(timeout=1.0):
        if time.monotonic() > until:
            for process in running.processes:
                process.kill()
            pytest.fail(f"processes did not end within {patience} s: they wait for each other")


def _enter(rank, world, port, function, args):
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    function(*args)
    dist.barrier()  # none ends while another still needs it
    dist.destroy_process_group()
    os._exit(0)  # at the interpreter's own exit a thread of torch's may abort the process


def distribute(tensors, mesh, layouts):
    """Parameters of these values; a layout of None is a tensor that is no DTensor."""
    params = []
    for t, layout in zip(tensors, layouts, strict=True):
        values = t.detach().clone()
        values = values if layout is None else distribute_tensor(values, mesh, layout)
        params.append(torch.nn.Parameter(values))
    return params


def give_parts(params, whole):
    """Give distributed parameters the gradients of the whole ones."""
    for p, w in zip(params, whole, strict=True):
        p.grad = w.grad
        if isinstance(p, DTensor):
            p.grad = distribute_tensor(w.grad, p.device_mesh, p.placements)


def with_gradients(*shapes, **how):
    params = model(*shapes, **how)
    give_gradients(params)
    return params


def parts(mesh, *cut, **how):
    """Parameters of shapes with their gradients: whole, and in the layouts that go with shapes."""
    shapes, layouts = zip(*cut, strict=True)
    whole = with_gradients(*shapes, **how)
    params = distribute(whole, mesh, layouts)
    give_parts(params, whole)
    return whole, params


def give_sixteenths(params, seed=0):
    """Gradients of 1, 3, 7, ... 63 sixteenths of either sign. Their squares are summed without
    rounding, in any order, and so are the squares of 1 / (|g| + 1/16)."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        power = 2 ** torch.randint(1, 7, p.shape, generator=generator)
        sign = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
        p.grad = (sign * (power - 1)).to(p.dtype) / 16


def gathered(optimizer, params):
    """What `stored` gives, with whole tensors."""
    found = stored(optimizer, params)
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}


def train_both(make, params, whole, steps=4, give=give_gradients):
    """Train parts and the whole with the same gradients, and compare all they store. A scaler skips
    the third step."""
    parts_of, of = make(params), make(whole)
    for t in range(steps):
        give(whole, seed=t)
        give_parts(params, whole)
        parts_of.found_inf = of.found_inf = torch.tensor(float(t == 2))
        of.step()
        parts_of.step()
    assert_same(gathered(parts_of, params), stored(of, whole))
    return parts_of, of
