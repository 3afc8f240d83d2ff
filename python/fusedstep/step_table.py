"""The table of what changes from step to step, on the host and on the device."""

from __future__ import annotations

import torch


class StepTable:
    """int64 ``[size]``, filled anew by the host for every step and brought over by one copy.

    Attributes:
        host: where the host writes.
        device: what kernels read; on a CPU the same memory.
    """

    def __init__(self, size: int, device: torch.device):
        self.device = torch.zeros(size, dtype=torch.int64, device=device)
        self.shared = device.type == "cpu"
        self.host = self.device if self.shared else torch.zeros_like(self.device, device="cpu")
        self._sent: torch.Tensor | None = self.host.clone()  # what the device has, if known
        self._spare: torch.Tensor | None = None  # pinned in advance: a capture cannot do it

    def send(self) -> None:
        """Bring what has changed to the device: at most one copy."""
        if self.shared or (self._sent is not None and torch.equal(self.host, self._sent)):
            return
        # Pinned memory of torch's allocator is not handed out again before the copy has ended.
        self.device.copy_(self.host.pin_memory(), non_blocking=True)
        if self._sent is not None:
            self._sent.copy_(self.host)
        if self._spare is None:
            with torch.inference_mode(False):
                self._spare = self.host.pin_memory()

    def can_capture(self) -> bool:
        return self._spare is not None

    def capture(self) -> torch.Tensor:
        """``send`` for a CUDA graph that is being captured: each of its replays will bring over the
        table as it is now, from the memory returned, which must live as long as the graph."""
        captured, self._spare = self._spare, None
        assert captured is not None, "asked can_capture first"
        self._sent = None  # from now on a replay may run between two steps
        captured.copy_(self.host)
        self.device.copy_(captured, non_blocking=True)
        return captured
