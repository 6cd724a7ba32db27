"""The link to a CUDA device, with the CPU behind the calls that it makes of CUDA."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import numpy as np
import pytest
import torch
from PIL import Image

from clip_embed import ImagePolicy, ImageSpec
from clip_embed._engine.link import CudaLink, open_link
from clip_embed._images.gpu_resize import GpuResize
from clip_embed._images.pixels import Stored, fit


class Stream:
    """As of CUDA."""

    def __init__(self, device: str, priority: int) -> None:
        self.device = torch.device("cpu")
        self.asked = (device, priority)


class Event:
    """As of CUDA; says when it is waited for."""

    waited = 0

    def __init__(self, *, blocking: bool) -> None:
        assert blocking

    def record(self, stream: Stream) -> None:
        """As of CUDA."""

    def synchronize(self) -> None:
        """As of CUDA."""
        Event.waited += 1


@pytest.fixture
def cuda(monkeypatch: pytest.MonkeyPatch) -> None:
    """The calls that a link makes of CUDA, with the CPU behind them."""
    monkeypatch.setattr(torch.cuda, "Stream", Stream)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "device", lambda _: nullcontext())
    monkeypatch.setattr(torch.cuda, "stream", lambda _: nullcontext())
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda *shape, pin_memory=False, **more: empty(*shape, **more))


@pytest.mark.usefixtures("cuda")
def test_a_link_to_cuda_takes_arrays_of_any_shapes(photo: Callable[..., Image.Image]) -> None:
    """One transfer of all of them, memory that grows and is used again, views, and read-only arrays."""
    link = open_link("cuda:1", -1)
    assert isinstance(link, CudaLink)
    assert link.stream.asked == ("cuda:1", -1)
    rng = np.random.default_rng(0)
    for shapes in ([(4, 5, 3)], [(7, 2, 3), (4, 5, 3), (1, 1, 3)], [(2, 2, 3)]):
        arrays = [rng.integers(0, 256, shape, np.uint8) for shape in shapes]
        arrays[0] = arrays[0][:, ::-1]
        arrays[-1].flags.writeable = False
        with link.active():
            sent = link.send(arrays)
            kept = [tensor.clone() for tensor in sent]
            fetched = link.fetch([tensor.float() + 1 for tensor in sent])
        for array, tensor, found in zip(arrays, kept, fetched, strict=True):
            np.testing.assert_array_equal(tensor.numpy(), array)
            np.testing.assert_array_equal(found, array.astype(np.float32) + 1)
    spec, policy = ImageSpec(224, (224, 224)), ImagePolicy()
    pictures = [np.array(photo(320 + 16 * seed, 240)) for seed in range(4)]
    sizes = [(picture.shape[1], picture.shape[0]) for picture in pictures]
    decoded = [Stored(picture, size, size, 1) for picture, size in zip(pictures, sizes, strict=True)]
    resize = GpuResize(["cuda"], spec, policy)
    before = Event.waited
    for each, found in zip(decoded, resize.fit(decoded), strict=True):
        assert np.abs(found.astype(int) - fit(each, spec, policy)).mean() <= 0.3
    assert Event.waited == before + 1  # for all sizes together
