"""DTensors that a step cannot take: one clear error each, or they are left alone; and processes
that have nothing to add."""

import fusedstep
import pytest
import torch
import torch.distributed as dist
from fusedstep import shards
from torch.distributed.device_mesh import DeviceMesh, init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel
from torch.distributed.tensor import DTensor, Partial, Replicate, Shard, distribute_tensor

from tests.distributed import parts, spawn, train_both, with_gradients
from tests.training import network


def a_mean_over_parts_and_wholes_is_refused():
    _, params = parts(init_device_mesh("cpu", (2,)), ((4,), [Shard(0)]), ((3,), None))
    for cls in (fusedstep.AvaGrad, fusedstep.AvaGradW):
        with pytest.raises(NotImplementedError, match="parameters 0 and 1 .* in different ways"):
            cls(params).step()


def test_a_mean_over_parts_and_wholes_is_refused():
    spawn(a_mean_over_parts_and_wholes_is_refused)


def processes_need_not_be_on_a_mesh():
    mesh = DeviceMesh("cpu", [0, 1])
    _, params = parts(mesh, ((4,), [Shard(0)]))
    fusedstep.LAMB(params, max_grad_norm=None).step()
    clipping = fusedstep.AdamW(params, max_grad_norm=1.0)
    if mesh.get_coordinate() is not None:
        clipping.step()
    else:
        with pytest.raises(NotImplementedError, match="of which this process is not a part"):
            clipping.step()


def test_processes_need_not_be_on_a_mesh():
    spawn(processes_need_not_be_on_a_mesh, world=3)


def a_process_without_a_gradient_adds_nothing_to_a_mean():
    _, (p, q) = parts(init_device_mesh("cpu", (2,)), ((4,), [Shard(0)]), ((6,), [Shard(0)]))
    groups = [{"params": [p]}, {"params": [q]}]  # each has a mean of its own
    optimizer = fusedstep.AvaGrad(groups, form="released")
    for counted in (4, 2):
        optimizer.step()
        assert [int(group["eta_sq_sum"][1]) for group in optimizer.param_groups] == [counted, 6]
        if dist.get_rank() == 1:
            p.grad = None


def test_a_process_without_a_gradient_adds_nothing_to_a_mean():
    spawn(a_process_without_a_gradient_adds_nothing_to_a_mean)


def a_norm_of_fsdp1s_parts_is_refused():
    for original in False, True:
        cpu = torch.device("cpu")
        net = FullyShardedDataParallel(network(), use_orig_params=original, device_id=cpu)
        net(torch.ones(2, 5)).square().mean().backward()
        for cls, options, what in (
            (fusedstep.LAMB, {"max_grad_norm": None}, "LAMB"),
            (fusedstep.AvaGrad, {}, "AvaGrad"),
            (fusedstep.AdamW, {"max_grad_norm": 1.0}, "max_grad_norm"),
            (fusedstep.AdamW, {"skip_nonfinite": True}, "skip_nonfinite"),
        ):
            optimizer = cls(net.parameters(), **options)
            with pytest.raises(NotImplementedError, match=f"{what} would take the norm of"):
                optimizer.step()
            assert not optimizer.state
        fusedstep.AdamW(net.parameters()).step()


@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::UserWarning")  # FSDP1 is old
def test_a_norm_of_fsdp1s_parts_is_refused():
    spawn(a_norm_of_fsdp1s_parts_is_refused)
    spawn(one_process_has_all_of_fsdp1s, world=1)


def one_process_has_all_of_fsdp1s():
    net = FullyShardedDataParallel(network(), device_id=torch.device("cpu"))
    net(torch.ones(2, 5)).square().mean().backward()
    fusedstep.LAMB(net.parameters()).step()


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
    with pytest.raises(ValueError, match=r"a part of shape \(3,\), but \(4,\) of its gradient"):
        fusedstep.AdamW([p]).step()


def test_numbers_are_not_distributed(alone):
    params = with_gradients((4,))
    number = distribute_tensor(torch.tensor(0.5), alone, [Replicate()])
    with pytest.raises(ValueError, match="lr is a DTensor on cpu, without memory of its own"):
        fusedstep.AdamW(params, lr=number).step()
    optimizer = fusedstep.AdamW(params)
    optimizer.found_inf = number
    with pytest.raises(TypeError, match="a step takes None or a plain tensor"):
        optimizer.step()
    optimizer = fusedstep.AdamW(params)
    optimizer.state[params[0]]["step"] = number
    with pytest.raises(ValueError, match="state step is a DTensor, but .* Pass a 0-d tensor"):
        optimizer.step()


@pytest.mark.parametrize("layout", [[Partial()], [Replicate(), Partial()]], ids=len)
@pytest.mark.usefixtures("alone")
def test_summands_are_no_parameters(layout):
    mesh = init_device_mesh("cpu", (1,) * len(layout))
    p = torch.nn.Parameter(DTensor.from_local(torch.ones(4), mesh, layout))
    p.grad = p.detach().clone()
    with pytest.raises(ValueError, match="with placements .*Partial.* a summand of every element"):
        fusedstep.AdamW([p]).step()


def test_a_state_that_is_not_distributed_is_refused(alone):
    _, params = parts(alone, ((4,), [Shard(0)]))
    optimizer = fusedstep.AdamW(params)
    optimizer.state[params[0]]["exp_avg"] = torch.zeros(4)
    before = params[0].full_tensor().clone()
    with pytest.raises(ValueError, match="is a DTensor on .* state exp_avg is a plain tensor"):
        optimizer.step()
    assert torch.equal(params[0].full_tensor(), before)


def test_a_plain_parameter_takes_no_distributed_state(alone):
    params = with_gradients((4,))
    optimizer = fusedstep.AdamW(params)
    optimizer.state[params[0]]["exp_avg"] = distribute_tensor(torch.zeros(4), alone, [Shard(0)])
    with pytest.raises(ValueError, match="is not a DTensor, but its state exp_avg is a DTensor on"):
        optimizer.step()


def test_a_plan_sees_a_gradient_that_is_not_distributed_as_planned(alone):
    _, params = parts(alone, ((4,), [Shard(0)]), ((4,), None))
    optimizer = fusedstep.AdamW(params)
    optimizer.step()
    grads = [p.grad for p in params]
    for p, own, other in zip(params, grads, grads[::-1], strict=True):
        p.grad = other
        with pytest.raises(ValueError, match="its gradient is a (plain tensor|DTensor on)"):
            optimizer.step()
        p.grad = own
    optimizer.step()
    assert [int(optimizer.state[p]["step"]) for p in params] == [2, 2]


def test_a_parameter_may_be_of_a_class_of_its_own_before_there_are_distributed_ones(monkeypatch):
    monkeypatch.setattr(shards, "dtensor_type", lambda: None)
    p = type("Own", (torch.nn.Parameter,), {})(torch.ones(3))
    p.grad = torch.ones(3)
    fusedstep.AdamW([p]).step()
    assert (p != 1.0).all()


def test_a_mesh_of_one_process_cuts_nothing(alone):
    whole, params = parts(alone, ((4,), [Shard(0)]), ((3,), None))
    train_both(fusedstep.AvaGrad, params, whole)
