"""Everything that depends on the device: its clock, its memory, its copies, what a step calls."""

from __future__ import annotations

import gc
import time
import warnings
from collections.abc import Callable
from pathlib import Path

import torch
from fusedstep.optimizer import FusedOptimizer


def choose(name: str) -> torch.device:
    """The device of that name; ``auto``: a GPU where there is one.

    Raises:
        ValueError: torch does not find it.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name not in ("cpu", "cuda"):
        raise ValueError(f"there is no device {name!r}; there are auto, cpu, cuda")
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("torch finds no CUDA device; use --device cpu")
    return torch.device(name)


class Cpu:
    """Times are the host's: a step has ended when it returns."""

    device = torch.device("cpu")
    BYTES = 768 * 2**20  # that the yardstick moves: far beyond any cache

    def synchronize(self) -> None:
        pass

    def seconds(self, step: Callable[[], object]) -> float:
        begin = time.perf_counter()
        step()
        return time.perf_counter() - begin

    def twice(self, step: Callable[[], object]) -> None:
        """Take a step, and wait for as long as it took. (A second one would find warm caches.)"""
        took = self.seconds(step)
        begin = time.perf_counter()
        while time.perf_counter() - begin < took:
            pass

    def yardstick_step(self) -> Callable[[], object]:
        """An in-place add: two streams read, one written, as in an optimizer's step. ``copy_`` also
        reads what it overwrites, so any step in place would beat it."""
        a, b = (torch.ones(self.BYTES // 12) for _ in range(2))
        return lambda: a.add_(b)

    def free_bytes(self) -> int:
        return _bytes_said("/proc/meminfo", "MemAvailable")

    def tidy(self) -> None:
        """Give back the memory of what is no longer used."""
        gc.collect()

    def peak_extra_bytes(self, step: Callable[[], object]) -> int | None:
        """How much more memory a step holds at its peak than before; None if unknown."""
        try:
            Path("/proc/self/clear_refs").write_text("5")  # the peak is counted from here
            before = _bytes_said("/proc/self/status", "VmRSS")
        except OSError:
            return None
        step()
        return max(0, _bytes_said("/proc/self/status", "VmHWM") - before)

    def calls(self, optimizer: torch.optim.Optimizer) -> dict[str, int]:
        """How many kernels a step launches; known of ours alone."""
        if not isinstance(optimizer, FusedOptimizer):
            return {}
        optimizer.step()
        return {"launches": sum(len(r.works) for r in optimizer._plan.rounds(optimizer))}


class Cuda:
    """Times are the device's, between two events. Before the first event the device is kept busy,
    as by a backward pass before a step; a host that needs longer than that shows in the times."""

    device = torch.device("cuda")
    BYTES = 4 * 10**9  # 2 GB read, 2 GB written
    LEAD = 4_000_000  # cycles, about 2 ms

    def synchronize(self) -> None:
        torch.cuda.synchronize()

    def seconds(self, step: Callable[[], object]) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        torch.cuda._sleep(self.LEAD)
        begin.record()
        step()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1e3

    def twice(self, step: Callable[[], object]) -> None:
        step()
        step()

    def yardstick_step(self) -> Callable[[], object]:
        a, b = (torch.ones(self.BYTES // 8, device=self.device) for _ in range(2))
        return lambda: a.copy_(b)

    def free_bytes(self) -> int:
        unused = torch.cuda.memory_reserved() - torch.cuda.memory_allocated()
        return torch.cuda.mem_get_info()[0] + unused

    def tidy(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def peak_extra_bytes(self, step: Callable[[], object]) -> int:
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        step()
        torch.cuda.synchronize()
        return torch.cuda.max_memory_allocated() - before

    def calls(self, optimizer: torch.optim.Optimizer) -> dict[str, int]:
        """Kernels and copies of a step by torch's profiler, and its waits for the device."""
        with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CUDA]) as seen:
            optimizer.step()
            torch.cuda.synchronize()
        names = [event.name for event in seen.events() if event.device_type.name == "CUDA"]
        copies = sum(name.startswith(("Memcpy", "Memset")) for name in names)
        torch.cuda.set_sync_debug_mode("warn")
        try:
            with warnings.catch_warnings(record=True) as waits:
                warnings.simplefilter("always")
                optimizer.step()
        finally:
            torch.cuda.set_sync_debug_mode("default")
        waits = [w for w in waits if "synchroniz" in str(w.message)]
        return {"launches": len(names) - copies, "copies": copies, "synchronisations": len(waits)}


Clock = Cpu | Cuda


def clock(device: torch.device) -> Clock:
    return Cpu() if device.type == "cpu" else Cuda()


def _bytes_said(file: str, entry: str) -> int:
    """An entry of a file such as /proc/meminfo, in bytes."""
    for line in Path(file).read_text().splitlines():
        if line.startswith(f"{entry}:"):
            return int(line.split()[1]) * 1024
    raise OSError(f"{file} has no entry {entry}")
