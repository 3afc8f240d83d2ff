"""Mixed precision as people run it: GradScaler, Accelerate, clipping. A bad step is skipped."""

import fusedstep
import pytest
import torch
from accelerate import Accelerator
from accelerate.optimizer import AcceleratedOptimizer
from fusedstep.backends import BACKENDS

from tests.conftest import device_of
from tests.training import (
    assert_same,
    every_class,
    give_gradients,
    model,
    no_warning,
    nothing_moves,
    on_every_backend,
    stored,
    train,
)


def skip(optimizer, params, found_inf):
    """Take a step that must change nothing."""
    want = stored(optimizer, params)
    for p in params:
        p.grad = torch.full_like(p, float("inf"))
    optimizer.grad_scale = torch.tensor(4.0, device=params[0].device)
    optimizer.found_inf = torch.tensor(found_inf, device=params[0].device)
    optimizer.step()
    optimizer.grad_scale = optimizer.found_inf = None
    assert_same(stored(optimizer, params), want)


# Scalers add up what devices have found, so found_inf may be 2; it need not be whole either.
FOUND = [1e-3, 1.0, 2.0, float("inf"), float("nan")]


@on_every_backend
def test_any_found_inf_skips_everything(cls, backend, device):
    params, others = model(device=device), model()
    optimizer, unskipped = cls(params, backend=backend), cls(others, backend="reference")
    train(optimizer, params, 1)
    for found_inf in FOUND:
        skip(optimizer, params, found_inf)
    train(optimizer, params, 1, seed=1)
    train(unskipped, others, 2)
    assert_same(stored(optimizer, params), stored(unskipped, others))
    for found_inf in FOUND:
        skip(unskipped, others, found_inf)  # the reference, too


@on_every_backend
def test_a_scale_of_another_dtype(cls, backend, device):
    """Its memory would be read as a float32."""
    results = []
    for dtype in (torch.float32, torch.float64):
        params = model(device=device)
        optimizer = cls(params, backend=backend)
        optimizer.grad_scale = torch.tensor(4.0, dtype=dtype, device=device)
        optimizer.found_inf = torch.tensor(0.0, dtype=dtype, device=device)
        train(optimizer, params, 2)
        results.append(stored(optimizer, params))
    assert_same(*results)


@pytest.mark.parametrize(
    "dtype, options",
    [(torch.float32, {}), (torch.bfloat16, {}), (torch.float32, {"max_grad_norm": 0.5})],
    ids=["f32", "bf16", "clipped"],
)
@pytest.mark.parametrize("unscale_first", [False, True], ids=["in_the_step", "unscale_first"])
@every_class
def test_two_hundred_scaled_steps_equal_the_unscaled_run(cls, unscale_first, dtype, options):
    """A scale that is a power of two leaves the norm and every bit as they are without it."""
    scaled, plain = model(dtype=dtype), model(dtype=dtype)
    a, b = cls(scaled, **options), cls(plain, **options)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=7)
    scales = set()
    for t in range(200):
        a.zero_grad()
        give_gradients(plain, t)
        loss = sum((p * q.grad).sum() for p, q in zip(scaled, plain, strict=True))
        scaler.scale(loss).backward()
        overflow = t % 11 == 5
        if overflow:
            scaled[t % len(scaled)].grad.view(-1)[0] = float("inf")
        if unscale_first:
            scaler.unscale_(a)
        scaler.step(a)
        scaler.update()
        scales.add(scaler.get_scale())
        if not overflow:
            b.step()
            if options:
                norm = b.last_grad_norm
                assert torch.equal(a.last_grad_norm, norm) and norm > 0.5
    assert len(scales) > 1
    counts = {int(a.state[p]["step"]) for p in scaled}
    assert counts == {182}, "18 steps had an inf"
    assert_same(stored(a, scaled), stored(b, plain))


@on_every_backend
def test_a_gradient_is_unscaled_before_it_is_clipped(cls, backend, device):
    """A scale that is no power of two shows the order of the roundings."""
    found = []
    for by, where in ((backend, device), ("reference", "cpu")):
        params = model(device=where)
        optimizer = cls(params, backend=by, max_grad_norm=0.5)
        optimizer.grad_scale = torch.tensor(3.0, device=where)
        train(optimizer, params, 2)
        found.append(stored(optimizer, params))
    assert_same(*found)


@every_class
def test_one_step_equals_unscale_clip_and_step(cls):
    """`max_grad_norm` with a scaler, against torch's three calls."""
    ours, theirs = model(dtype=torch.float64), model(dtype=torch.float64)
    a, b = cls(ours, max_grad_norm=0.5), cls(theirs, max_grad_norm=None)
    scalers = [torch.amp.GradScaler("cpu", init_scale=1024.0) for _ in "ab"]
    for t in range(5):
        for scaler, optimizer, params in zip(scalers, (a, b), (ours, theirs), strict=True):
            scaler.scale(torch.zeros(1))
            give_gradients(params, t)
            for p in params:
                p.grad.mul_(1024.0)
            if optimizer is b:
                scaler.unscale_(optimizer)
                norm = torch.nn.utils.clip_grad_norm_(params, 0.5)
            scaler.step(optimizer)
            scaler.update()
        torch.testing.assert_close(a.last_grad_norm, norm, rtol=1e-12, atol=0)
        assert norm > 0.5
    torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-9)


def test_a_scaler_that_shall_unscale_itself_does():
    """Some frameworks' clipping wants it so."""
    scaled, plain = model(), model()
    a, b = fusedstep.AdamW(scaled), fusedstep.AdamW(plain)
    a._step_supports_amp_scaling = False
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(torch.zeros(1))
    give_gradients(scaled)
    give_gradients(plain)
    unscaled = [p.grad.clone() for p in scaled]
    for p in scaled:
        p.grad.mul_(256.0)
    scaler.step(a)
    b.step()
    assert all(map(torch.equal, (p.grad for p in scaled), unscaled))
    assert_same(stored(a, scaled), stored(b, plain))


class Forwarding:
    """A wrapper with a step of its own, which gives what it has not from the optimizer."""

    def __init__(self, optimizer):
        self.inner = optimizer

    def __getattr__(self, name):
        return getattr(self.inner, name)

    def step(self):
        self.inner.step()


def test_a_scale_that_a_wrapper_keeps_to_itself_is_told():
    params = model()
    optimizer = fusedstep.AdamW(params)
    wrapped = Forwarding(optimizer)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(torch.zeros(1))
    give_gradients(params, 0)
    with pytest.warns(UserWarning, match="no scale has arrived.* must pass on grad_scale") as told:
        scaler.step(wrapped)
    scaler.update()
    assert [warning.filename for warning in told] == [__file__]


def test_the_remedy_for_a_lost_scale_helps_where_the_warning_was_an_error():
    scaled, plain = model(), model()
    optimizer, unscaled = fusedstep.AdamW(scaled), fusedstep.AdamW(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    scaler.scale(torch.zeros(1))
    give_gradients(plain)
    give_gradients(scaled)
    for p in scaled:
        p.grad.mul_(scaler.get_scale())
    for _ in range(2):  # it is told until something is done about it
        with no_warning(), nothing_moves(scaled), pytest.raises(UserWarning, match="no scale"):
            scaler.step(Forwarding(optimizer))
    optimizer._step_supports_amp_scaling = False
    with no_warning():
        scaler.step(Forwarding(optimizer))
    unscaled.step()
    assert_same(stored(optimizer, scaled), stored(unscaled, plain))


def test_a_scale_that_arrived_without_gradients_is_not_missed_later():
    params = model()
    optimizer = fusedstep.AdamW(params)
    scaler = torch.amp.GradScaler("cpu")
    scaler.scale(torch.zeros(1))
    scaler.step(optimizer)
    with no_warning():
        train(optimizer, params, 1)


def test_accelerate_hands_the_scaler_through():
    """Its wrapper calls step(*args, **kwargs): what a scaler would pass as an argument is lost."""
    Accelerator(cpu=True)  # the wrapper asks for its state
    scaled, plain = model(), model()
    a, b = fusedstep.AdamW(scaled), fusedstep.AdamW(plain)
    scaler = torch.amp.GradScaler("cpu", init_scale=256.0)
    wrapped = AcceleratedOptimizer(a, scaler=scaler)
    for t in range(3):
        give_gradients(scaled, t)
        give_gradients(plain, t)
        scaler.scale(torch.zeros(1))
        for p in scaled:
            p.grad.mul_(256.0 if t != 1 else float("inf"))
        wrapped.step()
        if t == 1:
            scaler.update(256.0)
        else:
            b.step()
    assert_same(stored(a, scaled), stored(b, plain))


def test_a_skipped_step_surveys_all_the_same(backend, device):
    found = []
    for skipped in (False, True):
        params = model(device=device)
        optimizer = fusedstep.AvaGrad(params, backend=backend)
        train(optimizer, params, 2)
        for p in params:
            optimizer.state[p]["exp_avg_sq"].mul_(4.0)
        if skipped:
            optimizer.found_inf = torch.ones((), device=device)
            optimizer.step()
            del optimizer.found_inf
        train(optimizer, params, 1, seed=5)
        found.append(stored(optimizer, params))
    assert_same(*found)


@pytest.mark.parametrize("name", ["grad_scale", "found_inf"])
@pytest.mark.parametrize("size", [0, 2])
def test_what_a_scaler_sets_is_one_number(name, size):
    params = model()
    optimizer = fusedstep.AdamW(params)
    give_gradients(params)
    setattr(optimizer, name, torch.ones(size))
    with pytest.raises(TypeError, match=f"optimizer.{name} is .* one element"):
        optimizer.step()
    assert optimizer.state[params[0]]["step"] == 0


def test_one_flattened_parameter_leaves_unscaling_to_the_scaler():
    params = model()
    assert fusedstep.AdamW(params)._step_supports_amp_scaling
    params[1]._fsdp_flattened = True  # as FullyShardedDataParallel's are
    assert not fusedstep.AdamW(params)._step_supports_amp_scaling


def test_triton_compiles_for_a_scale_only_what_reads_gradients(monkeypatch):
    """Else capturing the first step with a scaler would have to load other kernels, too."""
    if reason := BACKENDS["triton"].why_not(torch.device(device_of("triton"))):
        pytest.skip(reason)
    given = []

    class Kernel:
        def __getitem__(self, grid):
            return lambda *tables, **of: given.append((of["READS_GRAD"], tables[7] is not None))

    monkeypatch.setattr(BACKENDS["triton"].engine, "multi_tensor_apply", Kernel())
    params = model(device=device_of("triton"))
    optimizer = fusedstep.LAMB(params, backend="triton")
    give_gradients(params)
    optimizer.grad_scale = torch.tensor(8.0)
    optimizer.step()
    assert given == [(True, True), (True, True), (False, False)]
