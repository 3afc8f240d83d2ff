"""DTensors: every process steps the part it holds, to the bits of a step on the whole tensor."""

import math
import time
from functools import partial
from itertools import product

import fusedstep
import pytest
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from fusedstep.plan import Plan
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests.training import CLASSES, assert_same, give_gradients, model, stored

# The second process holds nothing of the third tensor, and less than the first of the others.
SHAPES = (5, 4), (20_001, 3), (1,), (7,)
LAYOUTS = [Shard(0)], [Shard(0)], [Shard(0)], [Replicate()]
WITHOUT_SUMS = [cls for cls in CLASSES if not cls.sums]


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


def give_sixteenths(params, seed=0):
    """Gradients whose squares are summed without rounding, in any order, and so are those of their
    inverses when a sixteenth is added: 1, 3, 7, ... 63 sixteenths of either sign."""
    generator = torch.Generator().manual_seed(seed)
    for p in params:
        power = 2 ** torch.randint(1, 7, p.shape, generator=generator)
        sign = torch.randint(0, 2, p.shape, generator=generator) * 2 - 1
        p.grad = (sign * (power - 1)).to(p.dtype) / 16


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


def norms_are_those_of_whole_tensors(mesh_shape, layouts, classes):
    mesh = init_device_mesh("cpu", mesh_shape)
    for cls, form, backend in product(classes, ("paper", "released"), ("auto", "reference")):
        options = {"weight_decay": 0.5, "form": form, "backend": backend, "max_grad_norm": 1.0}
        if cls is fusedstep.LAMB:  # u is then 1 or -1, and half a sixteenth
            options |= {"betas": (0.0, 0.0), "eps": 0.0}
        if issubclass(cls, fusedstep.AvaGrad):  # eta is then a power of 2
            options |= {"betas": (0.0, 0.0), "eps": 1 / 16, "max_grad_norm": math.inf}
        whole = model(*SHAPES)
        for p in whole:
            p.data = (p.data * 16).round() / 16
        parts_of, of = train_both(
            partial(cls, **options),
            distribute(whole, mesh, layouts),
            whole,
            steps=1 if cls is fusedstep.LAMB else 3,
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


def a_mean_over_parts_and_wholes_is_refused():
    whole = with_gradients((4,), (3,))
    params = distribute(whole, init_device_mesh("cpu", (2,)), [[Shard(0)], None])
    give_parts(params, whole)
    for cls in (fusedstep.AvaGrad, fusedstep.AvaGradW):
        with pytest.raises(NotImplementedError, match="parameters 0 and 1 .* in different ways"):
            cls(params).step()


def test_a_mean_over_parts_and_wholes_is_refused():
    spawn(a_mean_over_parts_and_wholes_is_refused)


def processes_need_not_be_on_a_mesh():
    whole = with_gradients((4,))
    mesh = DeviceMesh("cpu", [0])
    params = distribute(whole, mesh, [[Shard(0)]])
    give_parts(params, whole)
    fusedstep.LAMB(params, max_grad_norm=None).step()
    clipping = fusedstep.AdamW(params, max_grad_norm=1.0)
    if dist.get_rank() == 0:
        clipping.step()
    else:
        with pytest.raises(NotImplementedError, match="of which this process is not a part"):
            clipping.step()


def test_processes_need_not_be_on_a_mesh():
    spawn(processes_need_not_be_on_a_mesh)


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
    assert optimizer.last_grad_norm == math.sqrt(8.0)


def test_processes_do_not_wait_for_each_other():
    spawn(processes_do_not_wait_for_each_other, world=4)


class Packed(torch.Tensor):
    """A tensor whose elements only its own code can read, as quantized weights are."""

    @staticmethod
    def __new__(cls, packed):
        return torch.Tensor._make_wrapper_subclass(cls, packed.shape, dtype=torch.float32)

    def __init__(self, packed):
        self.packed = packed

    @classmethod
    def __torch_dispatch__(cls, function, types, args=(), kwargs=None):
        packed = [x.packed if isinstance(x, Packed) else x for x in args]
        result = function(*packed, **(kwargs or {}))
        return cls(result) if isinstance(result, torch.Tensor) else result


def test_parts_that_no_kernel_can_read(alone):
    packed = DTensor.from_local(Packed(torch.ones(4)), alone, [Shard(0)])
    frozen = torch.nn.Parameter(packed, requires_grad=False)
    (p,) = with_gradients((4,))
    before = p.detach().clone()
    fusedstep.AdamW([frozen, p], max_grad_norm=1.0).step()
    assert not torch.equal(p, before)
    trained = torch.nn.Parameter(packed)
    trained.grad = DTensor.from_local(torch.ones(4), alone, [Shard(0)])
    with pytest.raises(ValueError, match="parameter 0 is a DTensor on cpu without memory"):
        fusedstep.AdamW([trained, p]).step()


def test_gradients_are_cut_as_their_parameters(alone):
    p = torch.nn.Parameter(
        DTensor.from_local(torch.ones(3), alone, [Shard(0)], shape=(4,), stride=(1,))
    )
    p.grad = DTensor.from_local(torch.ones(4), alone, [Shard(0)])
    with pytest.raises(ValueError, match=r"process holds \(3,\), and \(4,\) of its gradient"):
        fusedstep.AdamW([p]).step()


def test_numbers_are_not_distributed(alone):
    params = with_gradients((4,))
    number = distribute_tensor(torch.tensor(0.5), alone, [Replicate()])
    with pytest.raises(ValueError, match="lr is a DTensor of dtype torch.float32 and shape"):
        fusedstep.AdamW(params, lr=number).step()
    optimizer = fusedstep.AdamW(params)
    optimizer.found_inf = number
    with pytest.raises(TypeError, match="a step takes None or a plain tensor"):
        optimizer.step()
    optimizer = fusedstep.AdamW(params)
    optimizer.state[params[0]]["step"] = number
    with pytest.raises(ValueError, match="state step a DTensor, where .* Pass a 0-d tensor"):
        optimizer.step()


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
