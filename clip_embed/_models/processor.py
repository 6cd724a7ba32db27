"""What a folder says about its images: how they are resized and cropped, and how pixels are scaled."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from clip_embed._models.folder import processor_config
from clip_embed._models.loading import of_transformers
from clip_embed._types import Float32, ImageSpec, Resample, UInt8
from clip_embed.errors import ModelUnsupported

if TYPE_CHECKING:
    import torch
    from PIL import Image

_SCALING = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
# What the processors do where a folder's configuration leaves it out.
_CLIP: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_SIGLIP = _CLIP | {
    "size": {"height": 224, "width": 224},
    "do_center_crop": False,
    "image_mean": [0.5, 0.5, 0.5],
    "image_std": [0.5, 0.5, 0.5],
}
_KNOWN = {
    **dict.fromkeys(
        ("CLIPImageProcessor", "CLIPImageProcessorFast", "CLIPImageProcessorPil", "CLIPFeatureExtractor"),
        _CLIP,
    ),
    **dict.fromkeys(("SiglipImageProcessor", "SiglipImageProcessorFast", "SiglipImageProcessorPil"), _SIGLIP),
}
_RESAMPLE: dict[int, Resample] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}


@dataclass(frozen=True, slots=True)
class Scaling:
    """From uint8 to what the image tower takes: times `factor`, minus `mean`, by `std`; None is left out."""

    factor: float | None
    mean: list[float] | None
    std: list[float] | None

    def on(self, device: str) -> Callable[[torch.Tensor], torch.Tensor]:
        """Return what makes uint8 (n, height, width, 3) on a device float32 (n, 3, height, width) there."""
        import torch

        mean, std = (
            torch.tensor(values, dtype=torch.float32, device=device).view(1, 3, 1, 1)
            for values in (self.mean or [0, 0, 0], self.std or [1, 1, 1])
        )

        def scaled(pixels: torch.Tensor) -> torch.Tensor:
            batch = pixels.permute(0, 3, 1, 2).to(torch.float32)
            if self.factor is not None:
                batch *= self.factor
            return batch if self.mean is None else (batch - mean) / std

        return scaled


@dataclass(frozen=True, slots=True)
class Processor:
    """An image processor: the spec of its images, the scaling of their pixels, and what `space` needs."""

    spec: ImageSpec
    scaling: Scaling
    facts: object

    def check(self) -> None:
        """Raise ModelUnsupported where the processor's own code gives other pixels than assumed."""
        if isinstance(self.spec.prepare, OwnCode):
            self.spec.prepare.check(self.scaling)


def read_processor(tower: Path, image_size: int, folder: Path, default: str) -> Processor:
    """Read the image processor of a folder, whose image tower takes squares of `image_size`.

    `default` is the family's processor, where the folder names none. One that is not known runs by its
    own code in transformers. Raises ModelUnsupported where images would be of no fixed or a wrong size.
    """
    stated = processor_config(tower)
    kind = stated.get("image_processor_type") or stated.get("feature_extractor_type") or default
    if kind not in _KNOWN:
        return _own_processor(tower, kind, stated, image_size)
    config = _KNOWN[kind] | {name: value for name, value in stated.items() if value is not None}
    spec = _image_spec(config, image_size, folder)
    facts = [spec.size, spec.crop, spec.resample, *(config[name] for name in _SCALING)]
    return Processor(spec, _scaling(config), facts)


def _image_spec(config: dict[str, Any], image_size: int, folder: Path) -> ImageSpec:
    size, crop = config["size"], config["crop_size"]
    crop_size = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    if isinstance(size, dict):
        sizes = cast("dict[str, int]", size)
        size = sizes["shortest_edge"] if "shortest_edge" in sizes else (sizes["height"], sizes["width"])
    if not config["do_resize"] or (isinstance(size, int) and not config["do_center_crop"]):
        raise ModelUnsupported(f"{folder}: its image processor gives images of no fixed size")
    spec = ImageSpec(size, crop_size if config["do_center_crop"] else None, _RESAMPLE[config["resample"]])
    given, wanted = spec.crop or spec.size, (image_size, image_size)
    if given != wanted:
        raise ModelUnsupported(f"{folder}: preprocessing gives {given}, the image tower takes {wanted}")
    return spec


def _scaling(config: dict[str, Any]) -> Scaling:
    factor = float(config["rescale_factor"]) if config["do_rescale"] else None
    if not config["do_normalize"]:
        return Scaling(factor, None, None)
    return Scaling(factor, config["image_mean"], config["image_std"])


def _own_processor(tower: Path, kind: str, stated: dict[str, Any], image_size: int) -> Processor:
    if "auto_map" in stated:
        raise ModelUnsupported(
            f"{tower}: its image processor {kind} is code that comes with the model (auto_map), which "
            "clip-embed never runs; CLIPImageProcessor, SiglipImageProcessor and the like can be used"
        )
    own = OwnCode(tower, kind, (image_size, image_size))
    spec = ImageSpec((image_size, image_size), prepare=own)
    return Processor(spec, own.scaling, {"own": kind, "config": stated})


class OwnCode:
    """An image processor of transformers as an `ImageSpec.prepare`: an RGB image in, uint8 pixels out."""

    def __init__(self, tower: Path, kind: str, size: tuple[int, int]) -> None:
        self._tower, self._kind, self._size = tower, kind, size

    @cached_property
    def _processor(self) -> Any:  # noqa: ANN401 - a processor of transformers, imported late
        try:
            return of_transformers("AutoImageProcessor").from_pretrained(
                self._tower, backend="pil", trust_remote_code=False, local_files_only=True
            )
        except (ImportError, ValueError, OSError) as error:
            raise self._unfit(
                f"transformers cannot load it here ({str(error).strip().splitlines()[0]})"
            ) from error

    @property
    def scaling(self) -> Scaling:
        """As the processor itself was configured, its class's defaults included."""
        names = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        return _scaling({name: getattr(self._processor, name, None) for name in names})

    def __call__(self, image: Image.Image) -> UInt8:
        """RGB image -> uint8 (height, width, 3); ModelUnsupported where it is not that."""
        pixels = self._values(image, do_rescale=False, do_normalize=False)
        rounded = pixels.round()
        if pixels.shape != (3, *self._size) or np.abs(pixels - rounded).max() > 1e-3:
            raise self._unfit(
                f"it gives {pixels.shape}, the image tower takes whole numbers {(3, *self._size)}"
            )
        return np.ascontiguousarray(rounded.clip(0, 255).astype(np.uint8).transpose(1, 2, 0))

    def _values(self, image: Image.Image, **steps: bool) -> Float32:
        output = self._processor(image, return_tensors="np", **steps)
        if "pixel_values" not in output or np.asarray(output["pixel_values"]).ndim != 4:
            raise self._unfit("it gives no pixels of one image")
        return np.asarray(output["pixel_values"][0], np.float32)

    def check(self, scaling: Scaling) -> None:
        """Compare, on images of three shapes, our scaling of its pixels with what it gives by itself."""
        from PIL import Image

        rng = np.random.default_rng(7)
        for height, width in ((97, 160), (160, 97), (self._size[0] * 2, self._size[1] * 2)):
            image = Image.fromarray(rng.integers(0, 256, (height, width, 3), np.uint8))
            scaled = self(image).transpose(2, 0, 1).astype(np.float32)
            if scaling.factor is not None:
                scaled = scaled * scaling.factor
            if scaling.mean is not None and scaling.std is not None:
                mean, std = (
                    np.asarray(each, np.float32)[:, None, None] for each in (scaling.mean, scaling.std)
                )
                scaled = (scaled - mean) / std
            if np.abs(scaled - self._values(image)).max() > 1e-4:
                raise self._unfit("its scaling of pixels is more than a factor, a mean and a deviation")

    def _unfit(self, reason: str) -> ModelUnsupported:
        return ModelUnsupported(f"{self._tower}: image processor {self._kind} cannot be used: {reason}")
