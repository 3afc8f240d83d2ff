"""Large tensors, many steps, little memory."""

import gc
import sys
import time

import fusedstep
import numpy as np
import psutil
import torch
from fusedstep.backends import BACKENDS
from fusedstep.launch import chunk_table
from fusedstep.sums import CHUNK, first_slots
from hypothesis import given, settings
from hypothesis import strategies as st

from bench.device import Cpu
from tests.training import every_class, give_gradients, model, on_every_backend, train

LARGE = st.one_of(
    st.integers(0, 3 * CHUNK),
    st.integers(0, 12).map(lambda n: n * CHUNK),
    st.integers(2**31 - 2, 2**31 + 2),
    st.integers(2**32 - CHUNK, 2**34),
)


@settings(derandomize=True, deadline=None, max_examples=50, database=None)
@given(st.lists(LARGE, max_size=5))
def test_chunks_cover_tensors_of_any_size(sizes):
    """Tables alone: nothing of these sizes is allocated."""
    table, slots = chunk_table(sizes).astype(np.int64), first_slots(sizes)
    assert chunk_table(sizes).dtype == np.int32
    begin = 0
    for i, size in enumerate(sizes):
        chunks = -(-size // CHUNK)
        assert slots[i] == begin
        assert (table[begin : begin + chunks, 0] == i).all()
        assert (table[begin : begin + chunks, 1] == np.arange(chunks)).all()
        begin += chunks
    assert begin == len(table)


def move(launch, elements):
    """Let a launch's only tensor begin that many elements before its memory, and end where it did.
    The chunk that is there is then the last of many."""
    chunks = elements // CHUNK
    launch.chunk[:, 1] += chunks
    launch.numel += elements
    launch.slot -= chunks  # its place among the chunk sums is the same
    launch.grad -= elements * launch.grad_dtype.itemsize
    sizes = [launch.param_dtype.itemsize, torch.float32.itemsize * launch.master, 0]
    for column, size in enumerate([*sizes, *launch.state_sizes]):
        launch.address[column] -= elements * size


@on_every_backend
def test_a_chunk_beyond_32_bits_is_found(cls, backend, device, monkeypatch):
    """The last elements of a tensor of more than 2^32, whose others do not exist."""
    apply = BACKENDS[backend].apply

    def apply_far(launch, work):
        move(launch, 2**32 + CHUNK)
        apply(launch, work)
        move(launch, -(2**32 + CHUNK))

    options = {"master_weights": True, "state_dtype": torch.bfloat16, "max_grad_norm": 0.5}
    near, far = (model((100,), dtype=torch.bfloat16, device=device) for _ in range(2))
    for params in (near, far):
        if params is far:
            monkeypatch.setattr(BACKENDS[backend], "apply", apply_far)
        optimizer = cls(params, backend=backend, **options)
        train(optimizer, params, 2)
        assert int(optimizer.state[params[0]]["step"]) == 2
    assert torch.equal(far[0], near[0])


@on_every_backend
def test_a_chunk_may_be_followed_by_more_than_31_bits(cls, backend, device, monkeypatch):
    """The first one of a tensor of more than 2^31 elements, whose others do not exist."""
    apply = BACKENDS[backend].apply

    def apply_first(launch, work):
        launch.numel += 2**31
        apply(launch, work)
        launch.numel -= 2**31

    near, far = (model((CHUNK,), device=device) for _ in range(2))
    for params in (near, far):
        if params is far:
            monkeypatch.setattr(BACKENDS[backend], "apply", apply_first)
        train(cls(params, backend=backend, max_grad_norm=0.5), params, 2)
    assert torch.equal(far[0], near[0])


@every_class
def test_a_thousand_steps_leave_nothing_behind(cls):
    params = model()
    optimizer = cls(params, max_grad_norm=1.0)
    process = psutil.Process()

    def steps(n):
        for t in range(n):
            optimizer.zero_grad(set_to_none=True)
            give_gradients(params, t)
            optimizer.step()
        gc.collect()
        return len(gc.get_objects()), process.memory_info().rss

    steps(50)
    objects, memory = steps(1)
    objects_after, memory_after = steps(1000)
    assert objects_after - objects < 20
    assert memory_after - memory < 4 << 20


@every_class
def test_a_step_needs_no_memory_to_speak_of(cls):
    """Not a copy of the gradients, let alone of the model, which has 16 MB."""
    params = model((1024, 1024), (1024, 2048), (1024, 1024))
    optimizer = cls(params, max_grad_norm=1.0)
    train(optimizer, params, 2)
    assert Cpu().peak_extra_bytes(optimizer.step) <= 1 << 20


@every_class
def test_a_first_step_takes_time_in_proportion_to_the_tensors(cls):
    def first_step(tensors):
        times = []
        for _ in range(2):
            params = model(*[(4,)] * tensors)
            give_gradients(params)
            optimizer = cls(params)
            begin = time.process_time()  # whatever else the machine does
            optimizer.step()
            times.append(time.process_time() - begin)
        return min(times)

    first_step(10)
    assert first_step(1600) < 3 * 16 * first_step(100)  # 256 times as long if it were quadratic


def test_planning_asks_little_of_each_tensor():
    """Measured in calls, as times depend on the machine."""

    def calls(tensors):
        params, found = model(*[(3,)] * tensors), []
        optimizer = fusedstep.AdamW(params)
        train(optimizer, params, 1)
        optimizer._plan = None
        sys.setprofile(lambda frame, event, _: found.append(event))
        optimizer.step()
        sys.setprofile(None)
        return sum(event in ("call", "c_call") for event in found)

    assert calls(200) - calls(100) < 100 * 200
