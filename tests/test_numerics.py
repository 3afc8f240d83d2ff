"""Primitives of the numerics law, reached through whole steps as a user would."""

import ctypes
import ctypes.util
import math
import platform
import threading

import fusedstep
import numpy as np
import pytest
import torch
from fusedstep import testing
from fusedstep.reference import numerics

from tests.conftest import TESTED_BACKENDS

NARROW = {"bf16": torch.bfloat16, "f16": torch.float16}


def patterns() -> torch.Tensor:
    """float32 bit patterns: all exponents, values halfway between 16-bit neighbours, specials."""
    high = torch.arange(0, 1 << 16, 7, dtype=torch.int64) << 16
    low = torch.tensor(
        [0, 1, 0x0FFF, 0x1000, 0x1001, 0x2FFF, 0x3000, 0x7FFF, 0x8000, 0x8001, 0xFFFF]
    )
    bits = (high[:, None] | low).flatten()
    return torch.where(bits >= 1 << 31, bits - (1 << 32), bits).to(torch.int32).view(torch.float32)


def still(params, **options):
    """An optimizer whose step changes no parameter, only stores it anew."""
    for p in params:
        p.grad = torch.zeros_like(p)
    return fusedstep.AdamW(params, lr=0.0, weight_decay=0.0, **options)


@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW)
def test_every_16_bit_value_survives_a_still_step(dtype, backend, device):
    bits = torch.arange(-(1 << 15), 1 << 15, dtype=torch.int32).to(torch.int16)
    p = torch.nn.Parameter(bits.view(dtype).to(device))
    still([p], backend=backend).step()
    assert testing.difference("p", p.detach().cpu(), bits.view(dtype)) is None


@pytest.mark.parametrize("backend", [*TESTED_BACKENDS, "reference"])
@pytest.mark.parametrize("dtype", NARROW.values(), ids=NARROW)
def test_rounding_to_16_bits_is_to_nearest_even(dtype, backend, device):
    p = torch.nn.Parameter(torch.zeros(len(patterns()), dtype=dtype, device=device))
    optimizer = still([p], backend=backend, master_weights=True)
    optimizer.step()
    optimizer.state[p]["master_param"].copy_(patterns())
    optimizer.step()
    assert testing.difference("p", p.detach().cpu(), patterns().to(dtype)) is None


def test_power_is_exact_where_powers_are():
    for t in (0, 1, 10, 1074):
        assert numerics.power(np.float64(0.5), t) == 2.0**-t
    want = float(np.longdouble(0.999) ** 5000)
    assert numerics.power(np.float64(0.999), 5000) == pytest.approx(want, rel=1e-13)


def test_max_and_clip_of_nan():
    nan = np.float32("nan")
    assert numerics.max(np.float32(1), nan) == 1 and np.isnan(numerics.max(nan, np.float32(1)))
    assert numerics.clip(nan, np.float32(0.5), np.float32(0.9)) == np.float32(0.5)


CASE = testing.Case("madam", fusedstep.MAdam)
F32, BF16 = testing.MODES[0], next(m for m in testing.MODES if m.id == "bf16-master")


@pytest.fixture
def flushing():
    if not torch.set_flush_denormal(True):
        pytest.fail("this processor cannot flush denormals: the test would show nothing")
    yield
    torch.set_flush_denormal(False)


def run_while(switch, mode, case=CASE):
    """Six steps, each in a floating-point environment that is switched on and off around it."""
    scenario = testing.Scenario(case, mode, "chunk", "cpu")
    plain_step = scenario.optimizer.step

    def step():
        switch(True)
        try:
            plain_step()
            assert switch.is_on(), "the caller's environment was not restored"
        finally:
            switch(False)

    scenario.optimizer.step = step
    return scenario.play()


class Flushing:
    def __call__(self, on):
        torch.set_flush_denormal(on)

    def is_on(self):
        return torch.tensor([1e-45]).mul(1).item() == 0


class Rounding:
    """Rounding to nearest, or in another direction, by this processor's number for it."""

    def __init__(self, direction):
        self.direction, self.libm = direction, ctypes.CDLL(ctypes.util.find_library("m"))

    def __call__(self, on):
        assert self.libm.fesetround(self.direction if on else 0) == 0

    def is_on(self):
        return self.libm.fegetround() == self.direction


@pytest.mark.parametrize("mode", [F32, BF16], ids=lambda m: m.id)
def test_flush_denormal_changes_nothing(mode, flushing):
    torch.set_flush_denormal(False)
    want = testing.run(CASE, mode, "chunk", "cpu")
    assert not testing.differences(run_while(Flushing(), mode), want)


def subnormals():
    """A parameter whose first moment will be subnormal, of more chunks than one thread takes before
    another has begun."""
    p = torch.nn.Parameter(torch.ones(1 << 20))
    p.grad = torch.full_like(p, 1e-38)
    return p, fusedstep.AdamW([p])


@pytest.mark.parametrize("threads", [1, 2])
def test_no_chunk_is_flushed(threads, flushing):
    torch.set_flush_denormal(False)
    before, (p, optimizer) = torch.get_num_threads(), subnormals()
    torch.set_flush_denormal(True)
    torch.set_num_threads(threads)
    optimizer.step()
    torch.set_num_threads(before)
    torch.set_flush_denormal(False)
    assert (optimizer.state[p]["exp_avg"] != 0).all()


def test_a_denormal_found_inf_skips(flushing):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = fusedstep.AdamW([p])
    optimizer.found_inf = torch.ones((), dtype=torch.int32).view(torch.float32)
    optimizer.step()
    assert torch.equal(p, torch.ones(3))


DIRECTIONS = {  # <fenv.h>: down, up, to zero
    "x86_64": (0x400, 0x800, 0xC00),
    "aarch64": (0x800000, 0x400000, 0xC00000),
}


@pytest.mark.parametrize("direction", DIRECTIONS.get(platform.machine(), ()), ids=hex)
def test_sums_are_rounded_to_nearest_too(direction):
    lamb = next(case for case in testing.CASES if case.id == "lamb")
    want = testing.run(lamb, F32, "chunk", "cpu")
    assert not testing.differences(run_while(Rounding(direction), F32, lamb), want)


@pytest.mark.parametrize("direction", DIRECTIONS.get(platform.machine(), ()), ids=hex)
def test_another_rounding_changes_nothing_and_the_reference_refuses_it(direction):
    switch, want = Rounding(direction), testing.run(CASE, F32, "chunk", "cpu")
    assert not testing.differences(run_while(switch, F32), want)
    (p,) = params = [torch.nn.Parameter(torch.ones(3))]
    p.grad = torch.ones(3)
    optimizer = fusedstep.AdamW(params, backend="reference")
    switch(True)
    try:
        with pytest.raises(RuntimeError, match=r"rounding to nearest.* fesetround\(FE_TONEAREST\)"):
            optimizer.step()
    finally:
        switch(False)
    assert torch.equal(p, torch.ones(3))


def test_the_reference_refuses_to_flush(flushing):
    p = torch.nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    with pytest.raises(RuntimeError, match=r"set_flush_denormal\(False\)"):
        fusedstep.AdamW([p], backend="reference").step()
    assert torch.equal(p, torch.ones(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_zeros_keep_their_signs_where_something_is_negated(dtype, backend, device):
    def stepped(by, where):
        zero = torch.full((9,), -0.0, dtype=dtype, device=where)
        p, q = torch.nn.Parameter(zero.clone()), torch.nn.Parameter(zero.clone())
        p.grad, q.grad = torch.ones_like(p), torch.ones_like(q)
        madgrad = fusedstep.MADGRAD([p], lr=0.0, momentum=0.0, backend=by)  # sum is 0: x0 = p + 0
        # a coefficient of 0: the norm is infinite
        adamw = fusedstep.AdamW([q], backend=by, maximize=True, max_grad_norm=1.0)
        adamw.step()
        adamw.state[q]["exp_avg"].fill_(-0.0)
        q.grad[0] = math.inf
        madgrad.step()
        adamw.step()
        return torch.cat([p.detach(), adamw.state[q]["exp_avg"][1:]]).cpu()

    got, want = stepped(backend, device), stepped("reference", "cpu")
    assert testing.difference("zeros", got, want) is None
    assert (want == 0).all() and not want.signbit().all()


def test_threads_that_torch_started_while_it_flushed_do_not_flush():
    found = []

    def run():
        torch.set_flush_denormal(True)
        torch.ones(1 << 20).add(1)  # starts this thread's workers, which flush as it does
        torch.set_flush_denormal(False)
        p, optimizer = subnormals()
        optimizer.step()
        found.append(optimizer.state[p]["exp_avg"])
        found.append(testing.run(CASE, F32, "chunk", "cpu"))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert (found[0] != 0).all()  # compared here: that thread's workers flush still
    assert not testing.differences(found[1], testing.run(CASE, F32, "chunk", "reference"))
