"""What of an image's way to the model a GPU does beside the forward pass, and why it does not do the rest."""

from __future__ import annotations

from dataclasses import dataclass

from clip_embed._engine.device import device_kind, devices_of
from clip_embed._images.gpu_jpeg import GpuJpeg, open_gpu_jpeg
from clip_embed._images.gpu_resize import GpuResize, open_gpu_resize
from clip_embed._types import ImagePolicy, ImageSpec


@dataclass(frozen=True, slots=True)
class OnGpu:
    """What is used, each part checked, or why it is not."""

    jpeg: GpuJpeg | str
    resize: GpuResize | str

    @property
    def resizer(self) -> GpuResize | None:
        """What resizes; None where the cores do."""
        return None if isinstance(self.resize, str) else self.resize

    def notes(self, device: str) -> list[str]:
        """Return in sentences what such a device could do and does not."""
        if device_kind(device) != "cuda":
            return []
        parts = {"nvJPEG": self.jpeg, "resize on the device": self.resize}
        return [f"no {part}: {found}" for part, found in parts.items() if isinstance(found, str)]


def nothing_on_gpu(reason: str) -> OnGpu:
    """Return that the cores do it all, and why."""
    return OnGpu(reason, reason)


def open_on_gpu(device: str, spec: ImageSpec, policy: ImagePolicy) -> OnGpu:
    """Open and check what the devices that `device` names can do; for fast pixels only.

    CUDA alone: elsewhere torch is not made for many threads on one device.
    """
    if device_kind(device) != "cuda":
        return nothing_on_gpu("it needs a CUDA device")
    devices = devices_of(device)
    # torchvision keeps one decoder for all: on one device
    return OnGpu(open_gpu_jpeg(devices[0], spec, policy), open_gpu_resize(devices, spec, policy))
