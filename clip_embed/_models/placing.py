"""Towers on GPUs: put there in the precision asked for, and held against float32 on the CPU before use.

A driver, a kernel or a rounding that gives wrong vectors gives them silently. So each device embeds eight
fixed images and texts first. Where a bound is not held, the device computes in float32 instead, with a
warning; where that does not hold either, it is not used at all.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from copy import deepcopy
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

from clip_embed._engine.device import device_kind, devices_of
from clip_embed._engine.lanes import CudaLane, Lane, Lanes, Tower, lanes_of
from clip_embed._models import fidelity
from clip_embed._models.fidelity import Check, worst
from clip_embed._models.low_precision import products_for_patches, use_dtype
from clip_embed._models.precision import FULL
from clip_embed._types import Float32, UInt8
from clip_embed.errors import ModelError

logger = logging.getLogger(__name__)


class Ways(NamedTuple):
    """How a model and its device come to vectors."""

    image_tower: Callable[[Any, str], Tower]
    """Makes of both what a lane runs."""
    embed_texts: Callable[[Any, str, Sequence[str]], Float32]
    """Takes both, and m texts -> float32 (m, d)."""


@dataclass(slots=True)
class Placed:
    """The towers on their devices."""

    texts: Any
    """The model whose text tower is used: that on the first device."""
    images: Lanes
    notes: list[str] = field(default_factory=list[str])
    """What did not hold and is not used, in sentences."""
    bytes_per_image: int | None = None
    """What a forward pass takes of the memory of a device, where it can be measured."""


class _OnOne(NamedTuple):
    """A model on one device."""

    model: Any
    lanes: list[Lane]
    notes: list[str]
    bytes_per_image: int | None


def place(
    towers: Any,  # noqa: ANN401 - transformers' CLIPModel or SiglipModel, in float32 on the CPU
    device: str,
    precision: str,
    ways: Ways,
    edge: int,
) -> Placed:
    """Put a copy of `towers` on each device that `device` names; `edge` is the side of its images.

    Raises ModelError with the figures where a device gives other vectors than the CPU even in float32.
    """
    here = Lane(ways.image_tower(towers, "cpu"), "cpu")
    check = Check.of(edge, here, partial(ways.embed_texts, towers, "cpu"))
    placed = [_place_one(towers, name, precision, check, ways) for name in devices_of(device)]
    in_turn = [lane for lanes in zip(*(each.lanes for each in placed), strict=True) for lane in lanes]
    notes = [note for each in placed for note in each.notes]
    measured = [each.bytes_per_image for each in placed if each.bytes_per_image]
    return Placed(placed[0].model, Lanes(in_turn), notes, max(measured, default=None))


def _place_one(
    towers: Any,  # noqa: ANN401
    device: str,
    precision: str,
    check: Check,
    ways: Ways,
) -> _OnOne:
    """Put a copy on one device, in float32 where it does not hold in the precision asked for."""
    notes: list[str] = []
    for way in dict.fromkeys((precision, "fp32")):
        bounds = fidelity.FULL if way in FULL else fidelity.LOW
        model = _on(towers, device, way)
        tower = ways.image_tower(model, device)
        lanes = [open_lane(tower, device) for _ in range(lanes_of(device))]
        used = _bytes_per_image(tower, device, check.pixels)
        found = [check.of_images(lane) for lane in lanes]
        found.append(check.of_texts(partial(ways.embed_texts, model, device)))
        least = worst(found)
        if least.within(bounds):
            logger.info("%s on %s: %s", way, device, least.against(bounds))
            return _OnOne(model, lanes, notes, used)
        figures = f"{way} on {device} moves vectors too far from float32 on the CPU: {least.against(bounds)}"
        if way in FULL:
            raise ModelError(f"{figures}; device, driver or torch computes wrongly: take another device")
        notes.append(f"{figures}; it computes in fp32 instead")
        logger.warning(notes[-1])
    raise AssertionError  # fp32 has returned or raised


def open_lane(tower: Tower, device: str) -> Lane:
    """Return a lane that makes the most of a device."""
    return (CudaLane if device_kind(device) == "cuda" else Lane)(tower, device)


def _on(towers: Any, device: str, precision: str) -> Any:  # noqa: ANN401
    """Return a copy of the towers on a device, in a precision."""
    model = deepcopy(towers).to(device)
    if precision not in FULL:
        use_dtype(model, precision)
    else:
        products_for_patches(model.vision_model)
    return model


def _bytes_per_image(tower: Tower, device: str, pixels: UInt8) -> int | None:
    """Return what one image more takes of a device in a forward pass; None where nothing tells."""
    if device_kind(device) != "cuda":
        return None
    import torch

    peaks: list[int] = []
    with torch.inference_mode():
        for count in (1, 1, len(pixels)):  # the first time libraries take their own
            torch.cuda.reset_peak_memory_stats(device)
            before = torch.cuda.memory_allocated(device)
            tower(torch.as_tensor(pixels[:count]).to(device))
            torch.cuda.synchronize(device)  # also for the lanes' streams, which read the weights
            peaks.append(torch.cuda.max_memory_allocated(device) - before)
    return max(1, (peaks[2] - peaks[1]) // (len(pixels) - 1))
