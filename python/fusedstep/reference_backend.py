"""The numpy reference as a backend: tensors to numpy and back."""

from __future__ import annotations

import numpy as np
import torch

from .launch import Entry, Launch, Pass
from .reference.multi_tensor_apply import step_tensor
from .reference.numerics import tree
from .sums import Sums, chunk_counts


class ReferenceBackend:
    """The numpy reference: slow, and the law. CUDA tensors travel to the host and back."""

    name = "reference"
    takes_tensors = True

    def why_not(self, device: torch.device) -> str | None:
        return "meta tensors have no memory" if device.type == "meta" else None

    def prepare(self, launch: Launch, work: Pass) -> None:
        launch.check_columns(work.rule, work.facts.takes)

    def apply(self, launch: Launch, work: Pass) -> None:
        found_inf = launch.skip_flag(work)
        if found_inf is not None and found_inf.item() != 0:
            return
        facts = work.facts
        sums = work.sums if facts.EMITS else None
        counts = chunk_counts([tensor.param.numel() for tensor in launch.entries]).tolist()
        for tensor, chunks in zip(launch.entries, counts, strict=True):
            present = launch.grads[tensor.index] is not None
            served = present or facts.SERVES_ALL
            partial = self._step(launch, work, tensor) if served else 0.0
            if facts.MOVES_PARAM and (present or facts.COUNTS_ALL):
                tensor.step.add_(1)
            if sums is None:
                continue
            sums.arrived[sums.segments[tensor.index]] += chunks
            if served or not facts.KEEPS_ABSENT:
                slot = int(launch.slot_of[tensor.index])
                found = torch.as_tensor(partial, device=launch.device)
                sums.partial[:, slot : slot + chunks] = found
        if sums is not None:
            _finish_sums(launch, sums)

    def _step(self, launch: Launch, work: Pass, tensor: Entry) -> np.ndarray:
        """One pass over one tensor; returns what it adds to the sums of its segment."""
        facts, norm_sq, sums = work.facts, launch.grad_norm_sq(work), None
        if work.sums is not None:
            sums = work.sums.totals[work.sums.segments[tensor.index]].tolist()
        grad = launch.grads[tensor.index] if facts.READS_GRAD else None
        param, master, states, carried, partial = step_tensor(
            work.rule,
            work.variant,
            np.float64 if launch.float64 else np.float32,
            hyper=launch.hyper_row(tensor.group),
            t=tensor.step.item() + 1,
            carried=[c.item() for c in tensor.carried],
            grad=None if grad is None else _to_numpy(grad),
            param=_to_numpy(tensor.param),
            states=[_to_numpy(state) for state in tensor.states],
            master=None if tensor.master is None else _to_numpy(tensor.master),
            grad_scale=None if launch.grad_scale is None else launch.grad_scale.item(),
            norm_sq=None if norm_sq is None else norm_sq.item(),
            sums=sums,
        )
        if facts.MOVES_PARAM:
            _copy_back(tensor.param, param)
            if tensor.master is not None:
                _copy_back(tensor.master, master)
            for target, value in zip(tensor.carried, carried, strict=True):
                target.fill_(float(value))
        moved = facts.STATES - facts.READ_ONLY
        for target, value in zip(tensor.states[:moved], states[:moved], strict=True):
            _copy_back(target, value)
        return np.array(partial, dtype=np.float64)


def _finish_sums(launch: Launch, sums: Sums) -> None:
    """Sum every segment of a launch that is complete."""
    for segment in {int(sums.segments[tensor.index]) for tensor in launch.entries}:
        if sums.arrived[segment].item() == sums.segment_chunks[segment].item():
            sums.arrived[segment] = 0
            begin, end = sums.segment_begin[segment : segment + 2].tolist()
            with np.errstate(all="ignore"):
                found = [float(tree(x)) for x in sums.partial[:, begin:end].cpu().numpy()]
            if not sums.keeps or found[-1] != 0:
                result = sums.results[segment]
                result.copy_(torch.tensor(found, dtype=result.dtype, device=result.device))


def _flat(tensor: torch.Tensor) -> torch.Tensor:
    """A dense tensor's elements in the order of its memory: 1-d view. torch does not count writes
    into it, as it does not count those of kernels: the step does that itself."""
    return tensor.data.as_strided((tensor.numel(),), (1,))


def _to_numpy(tensor: torch.Tensor) -> tuple[str, np.ndarray]:
    flat = _flat(tensor).cpu()
    if tensor.dtype is torch.bfloat16:  # which numpy does not have
        flat = flat.view(torch.uint16)
    return str(tensor.dtype).removeprefix("torch."), flat.numpy()


def _copy_back(target: torch.Tensor, value: np.ndarray) -> None:
    _flat(target).copy_(torch.from_numpy(value).view(target.dtype))
