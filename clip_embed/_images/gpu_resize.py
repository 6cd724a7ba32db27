"""Resize on a GPU what the cores decode: of their time for a small photo a quarter goes into the resize.

The two passes of Pillow, across and then down, each rounded to grey levels. Every device is held against the
CPU before it is used, in pixels and in time, and is not used where it does not hold. What it does not take,
or fails on, is resized on the CPU.
"""

from __future__ import annotations

import logging
import time
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from queue import SimpleQueue
from typing import TYPE_CHECKING, NamedTuple, TypeGuard, cast

import numpy as np

from clip_embed._engine.link import Link, open_link
from clip_embed._images.jpeg import has_codec
from clip_embed._images.pixels import Stored, fit
from clip_embed._images.resize import FAST_FILTERS
from clip_embed._models.fidelity import photo_like
from clip_embed._types import ImagePolicy, ImageSpec, UInt8

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

MAX_GREY = 0.05
"""Mean difference from the CPU's pixels, in grey levels. Rounding alone comes to 0.01, a resize in one pass,
or without rounding between the two, to 0.1 and more."""
MAX_BYTES = 64 * 1024 * 1024
"""Of one decoded image: on the device it takes some eight times as much while it is resized."""
_LINKS = 4  # of a device: one copies while another computes
_PASS_BYTES = 8 * 1024 * 1024  # decoded images that are resized at once
_FIRST = -1  # of all streams: a thread waits for it, and with it a core
_TRIES = 3  # of the check of its time: the fastest counts
_TURNED = 6  # EXIF's orientation of a camera held upright


class Job(NamedTuple):
    """What images have in common that are resized at once."""

    shape: tuple[int, ...]
    """Of the decoded pixels."""
    extent: tuple[float, float]
    """(width, height) of what the image covers of them."""
    target: tuple[int, int]
    """(width, height) that it gets."""


class GpuResize:
    """Resizes decoded images on one or several devices, for any number of threads."""

    def __init__(self, devices: Sequence[str], spec: ImageSpec, policy: ImagePolicy) -> None:
        self._spec = spec
        self._policy = policy
        self._devices = devices
        self._free: SimpleQueue[Link] = SimpleQueue()
        for _ in range(_LINKS):
            for device in devices:
                self._free.put(open_link(device, _FIRST))

    def takes(self, decoded: object) -> TypeGuard[Stored]:
        """Whether a decoded image is for `fit`."""
        return is_for_gpu(decoded, self._spec)

    def fit(self, decoded: Sequence[Stored]) -> list[UInt8]:
        """Return what a model takes of images that it `takes`, uint8 (height, width, 3), in order."""
        link = self._free.get()
        try:
            return self._fit(decoded, link)
        except RuntimeError as error:  # of memory, or a size that its kernels do not take
            logger.info("%d images are resized on the CPU: %s", len(decoded), first_line(error))
            return [fit(each, self._spec, self._policy) for each in decoded]
        finally:
            self._free.put(link)

    def check(self) -> str | None:
        """Resize fixed images on each device and on the CPU; return why this is not to be used."""
        for device in self._devices:
            if why := self._check(open_link(device, _FIRST)):
                return f"{why} (on {device})" if len(self._devices) > 1 else why
        return None

    def _fit(self, decoded: Sequence[Stored], link: Link) -> list[UInt8]:
        import torch

        pictures = [cast("UInt8", each.picture) for each in decoded]
        jobs = {
            place: Job(picture.shape, each.extent, each.target(self._spec))
            for place, (each, picture) in enumerate(zip(decoded, pictures, strict=True))
        }
        parts = together(jobs)
        small: list[torch.Tensor] = []
        with torch.inference_mode(), link.active():
            sent = link.send(pictures)
            for job, places in parts:
                planes = torch.stack([sent[place] for place in places]).permute(0, 3, 1, 2)
                small.append(resize_on(planes, job.extent, job.target, self._spec.resample))
            fetched = link.fetch(small)
        rows: dict[int, UInt8] = {}
        for (_, places), pixels in zip(parts, fetched, strict=True):
            for place, row in zip(places, pixels, strict=True):
                rows[place] = decoded[place].finish(row, self._spec, self._policy.background)
        return [np.ascontiguousarray(rows[place]) for place in range(len(decoded))]

    def _check(self, link: Link) -> str | None:
        decoded = _check_images()
        try:
            found = self._fit(decoded, link)
        except RuntimeError as error:
            return f"it fails: {first_line(error)}"
        right = [fit(each, self._spec, self._policy) for each in decoded]
        off = max(float(np.abs(a.astype(np.float32) - b).mean()) for a, b in zip(found, right, strict=True))
        if not off <= MAX_GREY:
            return f"its pixels are {off:.2f} grey levels from the CPU's on average (at most {MAX_GREY})"
        there = _seconds(lambda: self._fit(decoded, link)) / len(decoded)
        here = _seconds(lambda: [fit(each, self._spec, self._policy) for each in decoded]) / len(decoded)
        if there >= here:
            return f"an image takes {1000 * there:.2f} ms there and {1000 * here:.2f} ms on a core"
        logger.info("resize: an image takes %.2f ms there, %.2f ms on a core", 1000 * there, 1000 * here)
        return None


@cache
def _check_images() -> tuple[Stored, ...]:
    """Return fixed images: upright ones, and one of a camera held upright, scaled by the decoder."""
    pictures = list(photo_like((480, 640)))
    upright = [Stored(picture, (640, 480), (640, 480), 1) for picture in pictures]
    return (*upright, Stored(pictures[0], (639.25, 479.5), (2557, 1918), _TURNED))


def _seconds(work: Callable[[], object]) -> float:
    """Return how long it takes where nothing disturbs it."""
    taken: list[float] = []
    for _ in range(_TRIES):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def is_for_gpu(decoded: object, spec: ImageSpec) -> TypeGuard[Stored]:
    """Whether a decoded image is for a GPU to resize: an array, as the fast codec gives it, no long strip."""
    return (
        isinstance(decoded, Stored)
        and isinstance(decoded.picture, np.ndarray)
        and decoded.nbytes <= MAX_BYTES
        and not decoded.is_long(spec)
    )


def together(jobs: Mapping[int, Job]) -> list[tuple[Job, list[int]]]:
    """Return the places of equal jobs, as many together as one pass takes."""
    alike: defaultdict[Job, list[int]] = defaultdict(list)
    for place, job in jobs.items():
        alike[job].append(place)
    parts: list[tuple[Job, list[int]]] = []
    for job, places in alike.items():
        most = max(1, _PASS_BYTES // int(np.prod(job.shape)))
        parts += [(job, places[at : at + most]) for at in range(0, len(places), most)]
    return parts


def resize_on(
    pixels: torch.Tensor, extent: tuple[float, float], size: tuple[int, int], resample: str
) -> torch.Tensor:
    """Resize uint8 (n, 3, height, width) to `size`, with antialiasing: uint8 (n, height, width, 3).

    `extent` and `size` are (width, height). The extent is what the images cover of their pixels. `resample`
    is one of FAST_FILTERS. It runs on the device of the pixels, in float32: GPUs have no such kernel for
    integers.
    """
    import torch

    (across, down), (width, height) = extent, size
    planes = pixels.to(torch.float32, memory_format=torch.contiguous_format)
    planes = _resized(planes, (planes.shape[2], width), (planes.shape[2], across), resample)
    planes = _resized(planes, (height, width), (down, width), resample)
    return planes.to(torch.uint8).permute(0, 2, 3, 1)


def _resized(
    planes: torch.Tensor, size: tuple[int, int], extent: tuple[float, float], resample: str
) -> torch.Tensor:
    """Resize float32 (n, 3, height, width) to `size`, (height, width) as `extent`, rounded to grey levels."""
    from torch.nn.functional import interpolate

    if tuple(planes.shape[2:]) == extent:
        planes = interpolate(planes, size=size, mode=resample, antialias=True)
    else:
        # interpolate() rounds the size down: without the tiny surplus a row might go missing.
        factors = (size[0] / extent[0] * (1 + 1e-9), size[1] / extent[1] * (1 + 1e-9))
        planes = interpolate(planes, scale_factor=factors, mode=resample, antialias=True)
    return planes[:, :, : size[0], : size[1]].add_(0.5).floor_().clamp_(0, 255)  # halves up, as Pillow


def open_gpu_resize(devices: Sequence[str], spec: ImageSpec, policy: ImagePolicy) -> GpuResize | str:
    """Return what resizes on these devices and was checked, or why there is none."""
    if spec.prepare or spec.resample not in FAST_FILTERS:
        return "it cannot do this model's preprocessing"
    if not has_codec():
        return "it is for what clip-embed[fast] decodes, which is not installed"
    found = GpuResize(devices, spec, policy)
    if why := found.check():
        logger.warning("no resize on %s: %s", ",".join(devices), why)
        return why
    return found


def first_line(error: Exception) -> str:
    """Return the first line of what an error of a device says."""
    return next(iter(str(error).splitlines()), type(error).__name__)
