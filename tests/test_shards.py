"""DTensors: every process steps the part it holds, to the bits of a step on the whole tensor."""

import math
import weakref
from functools import partial
from itertools import product

import fusedstep
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fusedstep.gather import Gatherer
from torch.distributed.checkpoint import DefaultLoadPlanner
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.fsdp.sharded_grad_scaler import ShardedGradScaler
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests.distributed import (
    distribute,
    gathered,
    give_sixteenths,
    parts,
    spawn,
    train_both,
    with_gradients,
)
from tests.training import (
    CLASSES,
    WITHOUT_SUMS,
    assert_same,
    give_gradients,
    model,
    network,
    root,
    stored,
)

# The second process holds nothing of the third tensor, and less than the first of the others.
SHAPES = (5, 4), (20_001, 3), (1,), (7,)
LAYOUTS = [Shard(0)], [Shard(0)], [Shard(0)], [Replicate()]


def parts_take_the_whole_tensors_steps(mesh_shape, layouts):
    mesh = init_device_mesh("cpu", mesh_shape)
    for cls in WITHOUT_SUMS:
        for dtype, options in (
            (torch.float32, {}),
            (torch.float32, {"backend": "reference"}),
            (torch.bfloat16, {"master_weights": True, "state_dtype": torch.bfloat16}),
        ):
            whole = model(*SHAPES, dtype=dtype)
            params = distribute(whole, mesh, layouts)
            train_both(partial(cls, weight_decay=0.1, **options), params, whole)


@pytest.mark.parametrize(
    "world, mesh, layouts",
    [
        pytest.param(2, (2,), LAYOUTS, id="sharded"),
        pytest.param(2, (2,), ([Shard(1)], [Shard(1)], [Replicate()], None), id="columns"),
        pytest.param(
            4, (2, 2), [[Replicate(), *layout] for layout in LAYOUTS], id="sharded-and-replicated"
        ),
    ],
)
def test_parts_take_the_whole_tensors_steps(world, mesh, layouts):
    spawn(parts_take_the_whole_tensors_steps, mesh, layouts, world=world)


def norms_are_those_of_whole_tensors(mesh_shape, layouts, classes):
    mesh = init_device_mesh("cpu", mesh_shape)
    for cls, form, backend in product(classes, ("paper", "released"), ("auto", "reference")):
        options = {"weight_decay": 0.5, "form": form, "backend": backend, "max_grad_norm": 1.0}
        if cls is fusedstep.LAMB:  # u is then 1 or -1, and half a sixteenth
            options |= {"betas": (0.0, 0.0), "eps": 0.0}
        if issubclass(cls, fusedstep.AvaGrad):  # eta is then a power of 2
            options |= {"betas": (0.0, 0.0), "eps": 1 / 16, "max_grad_norm": math.inf}
        whole = [*model(*SHAPES[:2]), *model(*SHAPES[2:], dtype=torch.bfloat16)]  # two launches
        for p in whole:
            p.data = (p.data * 16).round() / 16
        parts_of, of = train_both(
            lambda params: cls([{"params": []}, {"params": params}], **options),  # noqa: B023
            distribute(whole, mesh, layouts),
            whole,
            steps=1 if cls is fusedstep.LAMB else 4,
            give=give_sixteenths,
        )
        assert parts_of.last_grad_norm == of.last_grad_norm


@pytest.mark.parametrize(
    "world, mesh, layouts",
    [
        pytest.param(2, (2,), LAYOUTS, id="sharded"),
        pytest.param(2, (2,), ([Shard(0)], None, [Shard(0)], None), id="some"),
        pytest.param(
            4,
            (2, 2),
            ([Shard(0), Shard(1)], [Replicate(), Shard(0)], [Shard(0), Replicate()], None),
            id="in-several-ways",
        ),
    ],
)
def test_norms_are_those_of_whole_tensors(world, mesh, layouts):
    classes = [cls for cls in CLASSES if not issubclass(cls, fusedstep.AvaGrad)]
    spawn(norms_are_those_of_whole_tensors, mesh, layouts, classes, world=world)


@pytest.mark.parametrize(
    "mesh, layout",
    [
        pytest.param((2,), [Shard(0)], id="sharded"),
        pytest.param((2, 2), [Replicate(), Shard(0)], id="sharded-and-replicated"),
    ],
)
def test_means_are_those_of_whole_tensors(mesh, layout):
    layouts, classes = [layout] * len(SHAPES), [fusedstep.AvaGrad, fusedstep.AvaGradW]
    spawn(norms_are_those_of_whole_tensors, mesh, layouts, classes, world=math.prod(mesh))


def load(folder, net, optimizer, **options):
    found = dict(zip(("model", "optimizer"), get_state_dict(net, optimizer)))
    dcp.load(found, checkpoint_id=folder, **options)
    set_state_dict(
        net, optimizer, model_state_dict=found["model"], optim_state_dict=found["optimizer"]
    )


def a_fully_sharded_model_trains(folder):
    """With FSDP2's own parameters and gradients, a scaler, and a checkpoint in the middle."""
    for cls in WITHOUT_SUMS:
        net = network()
        whole = [torch.nn.Parameter(p.detach().clone()) for p in net.parameters()]
        for layer in (*net, net):
            fully_shard(layer, mesh=init_device_mesh("cpu", (2,)))
        params = list(net.parameters())
        optimizer, of = cls(params), cls(whole)
        scaler = torch.amp.GradScaler("cpu", init_scale=4.0)
        for t in range(4):
            batch = torch.randn(8, 5, generator=torch.Generator().manual_seed(t + dist.get_rank()))
            scaler.scale(net(batch).square().mean()).backward()
            for p, w in zip(params, whole, strict=True):
                w.grad = p.grad.full_tensor() / scaler.get_scale()
            of.step()
            scaler.step(optimizer)
            scaler.update()
            optimizer.zero_grad()
            if t == 1:
                if dist.get_rank() == 0:
                    torch.save(stored(of, whole), folder / f"{cls.__name__}.pt")
                saved = dict(zip(("model", "optimizer"), get_state_dict(net, optimizer)))
                dcp.save(saved, checkpoint_id=folder / cls.__name__)
                optimizer = cls(params)
                load(folder / cls.__name__, net, optimizer)
        assert_same(gathered(optimizer, params), stored(of, whole))


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # the checkpoint warns, as intended
def test_a_fully_sharded_model_trains(tmp_path):
    spawn(a_fully_sharded_model_trains, tmp_path)
    for cls in WITHOUT_SUMS:  # what two processes have saved, one loads
        net = network()
        optimizer = cls(net.parameters())
        load(tmp_path / cls.__name__, net, optimizer)
        want = torch.load(tmp_path / f"{cls.__name__}.pt", weights_only=True)
        assert_same(stored(optimizer, list(net.parameters())), want)


def no_process_skips_alone():
    """FSDP1 shards without DTensors: its scaler tells the others what one has found."""
    for original in False, True:
        net = FullyShardedDataParallel(
            network(), use_orig_params=original, device_id=torch.device("cpu")
        )
        optimizer = fusedstep.AdamW(net.parameters())
        scaler = ShardedGradScaler("cpu", init_scale=8.0)
        for t in range(4):
            optimizer.zero_grad()
            scaler.scale(net(torch.ones(2, 5)).square().mean()).backward()
            if t == 2 and dist.get_rank() == 0:
                held = next(p for p in net.parameters() if p.grad is not None and p.grad.numel())
                held.grad.view(-1)[0] = torch.inf
            scaler.step(optimizer)
            scaler.update()
        assert scaler.get_scale() == 4.0
        assert {int(state["step"]) for state in optimizer.state.values()} == {3}


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # FSDP1 is old
def test_no_process_skips_alone():
    spawn(no_process_skips_alone)


@pytest.mark.filterwarnings("ignore:torch.distributed is")
def test_a_distributed_checkpoint_of_torchs_class_loads(tmp_path):
    net = network()
    theirs = torch.optim.AdamW(net.parameters())
    net(torch.ones(2, 5)).sum().backward()
    theirs.step()
    dcp.save(dict(zip(("model", "optimizer"), get_state_dict(net, theirs))), checkpoint_id=tmp_path)
    want = {name: theirs.state[p]["exp_avg"].clone() for name, p in net.named_parameters()}
    net.zero_grad()
    ours = fusedstep.AdamW(net.parameters())
    load(tmp_path, net, ours, planner=DefaultLoadPlanner(allow_partial_load=True))
    assert_same({name: ours.state[p]["exp_avg"] for name, p in net.named_parameters()}, want)


def gradients_come_as_they_are_distributed():
    mesh = init_device_mesh("cpu", (2,))
    whole = model((6, 4), (8,))
    params = distribute(whole, mesh, ([Shard(0)], [Replicate()]))
    for t in range(3):
        give_gradients(whole, seed=t)
        by_columns = distribute_tensor(whole[0].grad, mesh, [Shard(1)])
        summands = DTensor.from_local(whole[1].grad / 2, mesh, [Partial()])
        if t == 2:  # whose sum is under way
            summands = summands.redistribute(mesh, [Replicate()], async_op=True)
        params[0].grad, params[1].grad = by_columns, summands
        if t == 0:
            optimizer, of = fusedstep.MAdam(params), fusedstep.MAdam(whole)
        elif t == 1:  # states, too
            for p, placement in zip(params, (Replicate(), Shard(0))):
                state = optimizer.state[p]
                state["exp_avg"] = state["exp_avg"].redistribute(mesh, [placement])
        optimizer.step()
        of.step()
    assert all(optimizer.state[p]["exp_avg"].placements == p.placements for p in params)
    assert_same(gathered(optimizer, params), stored(of, whole))


def test_gradients_come_as_they_are_distributed():
    spawn(gradients_come_as_they_are_distributed)


def test_parts_are_found_without_python(alone, monkeypatch):
    whole = with_gradients((4,), (3, 2))
    params = distribute(whole, alone, [[Shard(0)], [Replicate()]])
    optimizer = fusedstep.AdamW(params)
    local = [
        distribute_tensor(w.grad, alone, p.placements).to_local() for w, p in zip(whole, params)
    ]
    for grad in local, [g.clone() for g in local]:
        for p, g in zip(params, grad, strict=True):
            p.grad = DTensor(g, p._spec, requires_grad=False)  # as FSDP2 makes gradients
        optimizer.step()
        monkeypatch.setattr(Gatherer, "_gather_each", None)
    params[0].grad = distribute_tensor(whole[0].grad, alone, [Replicate()])
    with pytest.raises(TypeError, match="not callable"):
        optimizer.step()  # cut unlike its parameter: Python handles it


def test_a_plan_keeps_no_part_alive(alone):
    _, params = parts(alone, ((4,), [Shard(0)]))
    optimizer = fusedstep.AdamW(params)
    optimizer.step()
    old = weakref.ref(params[0]._local_tensor)
    params[0]._local_tensor = params[0]._local_tensor.clone()
    assert old() is None
    before = params[0].full_tensor().clone()
    optimizer.step()
    assert (params[0].full_tensor() != before).all()


def test_a_sharded_model_is_converted_after_a_step(alone):
    """torch swaps its parameters, and none that has a weak reference."""
    model = torch.nn.Linear(4, 4)
    fully_shard(model, mesh=alone)
    optimizer = fusedstep.AdamW(model.parameters())
    model(torch.ones(2, 4)).sum().backward()
    optimizer.step()
    optimizer.zero_grad()
    model.to(torch.float64)
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert optimizer.state[model.weight]["step"] == 2


def processes_do_not_wait_for_each_other():
    """Those of a row and of a column have a tensor in common, in no order that all agree on."""
    meshes = init_device_mesh("cpu", (2, 2), mesh_dim_names=("rows", "columns"))
    params = []
    for name in ("rows", "columns"):
        part = torch.nn.Parameter(DTensor.from_local(torch.ones(2), meshes[name], [Shard(0)]))
        part.grad = DTensor.from_local(torch.ones(2), meshes[name], [Shard(0)])
        params.append(part)
    if dist.get_rank() in (1, 2):
        params.reverse()
    optimizer = fusedstep.AdamW(params, max_grad_norm=1.0)
    for _ in range(3):
        optimizer.step()
    assert optimizer.last_grad_norm == root(8.0)


def test_processes_do_not_wait_for_each_other():
    spawn(processes_do_not_wait_for_each_other, world=4)
