"""DTensors: every process steps the part it holds, to the bits of a step on the whole tensor."""

import datetime
from functools import partial

import fusedstep
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fusedstep.plan import Plan
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests.training import CLASSES, assert_same, give_gradients, model, stored

# The second process holds nothing of the third tensor, and less than the first of the others.
SHAPES = (5, 4), (20_001, 3), (1,), (7,)
LAYOUTS = [Shard(0)], [Shard(0)], [Shard(0)], [Replicate()]
SPREAD = [cls for cls in CLASSES if not issubclass(cls, fusedstep.AvaGrad)]
WITHOUT_SUMS = [cls for cls in SPREAD if cls is not fusedstep.LAMB]


def spawn(function, *args, world=2):
    """Run a function in processes of one group; raise what one of them raised."""
    store = dist.TCPStore("localhost", 0, is_master=True, wait_for_workers=False)
    torch.multiprocessing.spawn(_enter, (world, store.port, function, args), nprocs=world)


def _enter(rank, world, port, function, args):
    torch.set_num_threads(1)
    store = dist.TCPStore("localhost", port)
    patience = datetime.timedelta(seconds=60)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=patience)
    try:
        function(*args)
    finally:
        dist.destroy_process_group()


@pytest.fixture
def alone():
    """A process group of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    yield init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def distribute(tensors, mesh, layouts=LAYOUTS):
    """Parameters of these values; a layout of None is a tensor that is no DTensor."""
    params = []
    for t, layout in zip(tensors, layouts, strict=True):
        values = t.detach().clone()
        values = values if layout is None else distribute_tensor(values, mesh, layout)
        params.append(torch.nn.Parameter(values))
    return params


def give_parts(params, whole):
    """The gradients of whole parameters to distributed ones."""
    for p, w in zip(params, whole, strict=True):
        p.grad = w.grad
        if isinstance(p, DTensor):
            p.grad = distribute_tensor(w.grad, p.device_mesh, p.placements)


def with_gradients(*shapes):
    params = model(*shapes)
    give_gradients(params)
    return params


def give_odd_sixteenths(params, seed=0):
    """Gradients whose squares are summed without rounding, in any order; none is 0."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        odd = 2 * torch.randint(-40, 40, p.shape, generator=generator) + 1
        p.grad = odd.to(p.dtype) / 16


def gathered(optimizer, params):
    """What `stored` gives, of the whole tensors."""
    found = stored(optimizer, params)
    return {n: t.full_tensor() if isinstance(t, DTensor) else t for n, t in found.items()}


def train_both(make, params, whole, steps=3, give=give_gradients):
    """Train parts and the whole with the same gradients, and compare all they store."""
    parts_of, of = make(params), make(whole)
    for t in range(steps):
        give(whole, seed=t)
        give_parts(params, whole)
        of.step()
        parts_of.step()
    assert_same(gathered(parts_of, params), stored(of, whole))
    return parts_of, of


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


def norms_are_those_of_whole_tensors(mesh_shape, layouts):
    mesh = init_device_mesh("cpu", mesh_shape)
    for cls in SPREAD:
        for backend in ("auto", "reference"):
            options = {"max_grad_norm": 1.0, "weight_decay": 0.5, "backend": backend}
            if cls is fusedstep.LAMB:  # whose u is then 1 or -1, and half a sixteenth
                options |= {"betas": (0.0, 0.0), "eps": 0.0}
            whole = model(*SHAPES)
            for p in whole:
                p.data = (p.data * 16).round() / 16
            parts_of, of = train_both(
                partial(cls, **options),
                distribute(whole, mesh, layouts),
                whole,
                steps=1 if cls is fusedstep.LAMB else 3,
                give=give_odd_sixteenths,
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
    spawn(norms_are_those_of_whole_tensors, mesh, layouts, world=world)


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(5, 7), torch.nn.Tanh(), torch.nn.Linear(7, 1))


def load(folder, net, optimizer):
    found = dict(zip(("model", "optimizer"), get_state_dict(net, optimizer)))
    dcp.load(found, checkpoint_id=folder)
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


@pytest.mark.filterwarnings("ignore:torch.distributed is")  # says the checkpoint: so it is meant
def test_a_fully_sharded_model_trains(tmp_path):
    spawn(a_fully_sharded_model_trains, tmp_path)
    for cls in WITHOUT_SUMS:  # what two processes have saved, one loads
        net = network()
        optimizer = cls(net.parameters())
        load(tmp_path / cls.__name__, net, optimizer)
        want = torch.load(tmp_path / f"{cls.__name__}.pt", weights_only=True)
        assert_same(stored(optimizer, list(net.parameters())), want)


def gradients_come_as_they_are_distributed():
    mesh = init_device_mesh("cpu", (2,))
    whole = model((6, 4), (8,))
    params = distribute(whole, mesh, ([Shard(0)], [Replicate()]))
    for t in range(3):
        give_gradients(whole, seed=t)
        by_columns = distribute_tensor(whole[0].grad, mesh, [Shard(1)])
        summands = DTensor.from_local(whole[1].grad / 2, mesh, [Partial()])
        params[0].grad, params[1].grad = by_columns, summands
        if t == 0:
            optimizer, of = fusedstep.MAdam(params), fusedstep.MAdam(whole)
        optimizer.step()
        of.step()
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
        monkeypatch.setattr(Plan, "_collect_each", None)
    params[0].grad = distribute_tensor(whole[0].grad, alone, [Replicate()])
    with pytest.raises(TypeError, match="not callable"):
        optimizer.step()  # cut in another way than its parameter: Python's business


def test_a_mean_over_parts_is_refused(alone):
    params = distribute(model((4,)), alone, [[Shard(0)]])
    give_parts(params, with_gradients((4,)))
    for cls in (fusedstep.AvaGrad, fusedstep.AvaGradW):
        with pytest.raises(NotImplementedError, match="parameter 0 is a DTensor .* mean over"):
            cls(params).step()


def test_summands_are_no_parameters(alone):
    p = torch.nn.Parameter(DTensor.from_local(torch.ones(4), alone, [Partial()]))
    p.grad = p.detach().clone()
    with pytest.raises(ValueError, match=r"parameter 0 is a DTensor with placements .*Partial"):
        fusedstep.AdamW([p]).step()


def test_a_state_that_is_not_distributed_is_refused(alone):
    whole = with_gradients((4,))
    params = distribute(whole, alone, [[Shard(0)]])
    give_parts(params, whole)
    optimizer = fusedstep.AdamW(params)
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(4)
    before = params[0].full_tensor().clone()
    with pytest.raises(ValueError, match="is a DTensor on .* state exp_avg a tensor that is none"):
        optimizer.step()
    assert torch.equal(params[0].full_tensor(), before)


def test_a_plain_parameter_takes_no_distributed_state(alone):
    params = with_gradients((4,))
    optimizer = fusedstep.AdamW(params)
    optimizer.state[params[0]]["exp_avg"] = distribute_tensor(torch.zeros(4), alone, [Shard(0)])
    with pytest.raises(ValueError, match="is no DTensor and has as state exp_avg a DTensor on"):
        optimizer.step()
