"""The way of one thread at a time to a device and back.

Where torch has CUDA (ROCm too) it copies from pinned memory on a stream of its own, and waits without
keeping a core busy. Other devices, and a CPU in tests, take plain copies.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from itertools import accumulate
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from clip_embed._engine.device import device_kind
from clip_embed._types import UInt8

if TYPE_CHECKING:
    import torch


class Link:
    """Plain copies."""

    def __init__(self, device: str) -> None:
        self.device = device

    def active(self) -> AbstractContextManager[object]:
        """Return what is held while something is sent, computed and fetched."""
        return nullcontext()

    def send(self, arrays: Sequence[UInt8]) -> list[torch.Tensor]:
        """Return uint8 arrays of any shapes as they lie on the device; those sent before are done with."""
        import torch

        ours = [array if array.flags.writeable else array.copy() for array in arrays]
        return [torch.from_numpy(array).to(self.device) for array in ours]  # pyright: ignore[reportUnknownMemberType]

    def fetch(self, tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
        """Return copies of what lies on the device, once it is computed."""
        return [tensor.cpu().numpy().copy() for tensor in tensors]


class CudaLink(Link):
    """A stream, and pinned memory that grows with what is sent."""

    def __init__(self, device: str, priority: int = 0) -> None:
        import torch

        super().__init__(device)
        cuda: Any = torch.cuda  # partly without types
        self.stream = cuda.Stream(device, priority)
        self._pinned = torch.empty(0, dtype=torch.uint8)

    @contextmanager
    def active(self) -> Generator[None]:
        """As of `Link`."""
        import torch

        with torch.cuda.device(self.stream.device), torch.cuda.stream(self.stream):
            yield

    def send(self, arrays: Sequence[UInt8]) -> list[torch.Tensor]:
        """As of `Link`."""
        import torch

        ends = list(accumulate(array.size for array in arrays))
        if self._pinned.numel() < ends[-1]:
            self._pinned = torch.empty(ends[-1], dtype=torch.uint8, pin_memory=True)
        places = [slice(end - array.size, end) for end, array in zip(ends, arrays, strict=True)]
        pinned: UInt8 = self._pinned.numpy()
        for place, array in zip(places, arrays, strict=True):
            np.copyto(pinned[place].reshape(array.shape), array)
        staged = self._pinned[: ends[-1]].to(self.stream.device, non_blocking=True)
        return [staged[place].view(array.shape) for place, array in zip(places, arrays, strict=True)]

    def fetch(self, tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
        """As of `Link`."""
        import torch

        cuda: Any = torch.cuda
        hosts = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
        for host, tensor in zip(hosts, tensors, strict=True):
            host.copy_(tensor, non_blocking=True)
        done = cuda.Event(blocking=True)  # waits without a core of its own
        done.record(self.stream)
        done.synchronize()
        return [host.numpy().copy() for host in hosts]


def open_link(device: str, priority: int = 0) -> Link:
    """Return the best link to a device; work of a lower `priority` comes first where streams compete."""
    return CudaLink(device, priority) if device_kind(device) == "cuda" else Link(device)
