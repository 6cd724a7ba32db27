"""The records and the one protocol that the parts share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from numbers import Integral, Real
from pathlib import Path
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from PIL import Image

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Resample = Literal["nearest", "box", "bilinear", "hamming", "bicubic", "lanczos"]


@dataclass(frozen=True, slots=True)
class ImageSpec:
    """How any decoded image becomes the uint8 (height, width, 3) that a model takes.

    The image is resized with antialiasing to `size`, then its centre is cut out (if `crop`).
    Scaling to [0, 1], mean and standard deviation are the model's own business.
    """

    size: int | tuple[int, int]
    """An int is the length of the shorter edge, aspect kept; a pair is the (height, width)."""
    crop: tuple[int, int] | None = None
    """(height, width) of the centre crop; where the image is smaller, zeros are added around it."""
    resample: Resample = "bicubic"
    pad: bool = False
    """Fit the image into the (height, width) of `size`, aspect kept, centred on the background."""
    prepare: Callable[[Image.Image], UInt8] | None = None
    """Replaces all the steps: an upright RGB image in, uint8 (height, width, 3) out."""

    def __post_init__(self) -> None:
        """Refuse a spec that gives images of different shapes, which make no batch."""
        if isinstance(self.size, int) and not (self.crop or self.pad or self.prepare):
            raise ValueError(
                "a spec with one number for size needs crop, pad or prepare: images would differ in shape"
            )

    @property
    def shape(self) -> tuple[int, int]:
        """(height, width) of every image that the model takes."""
        if self.prepare is not None:
            from PIL import Image

            height, width = self.prepare(Image.new("RGB", (64, 64))).shape[:2]
            return height, width
        if self.crop and not self.pad:
            return self.crop
        return (self.size, self.size) if isinstance(self.size, int) else self.size


@dataclass(frozen=True, slots=True)
class ImagePolicy:
    """What may be read as an image, and how it is made RGB. Safe by default."""

    max_pixels: int = 89_478_485
    """Larger images are refused before they are decoded (decompression bombs), arrays and PIL images
    too. One image takes up to 25 bytes a pixel in memory while it is decoded. The default is Pillow's;
    to go beyond it, raise `PIL.Image.MAX_IMAGE_PIXELS` as well."""
    max_bytes: int = 256 * 1024 * 1024
    """Larger files and byte strings are refused before they are read."""
    roots: Sequence[str | Path] | None = None
    """If given, only files below these folders are read, symbolic links and `..` resolved."""
    urls: bool = False
    """Fetch strings that begin with http:// or https://, from public addresses only; docs/safety.md."""
    background: tuple[int, int, int] = (255, 255, 255)
    """RGB colour that transparent pixels are laid over and squares are padded with."""
    exif: bool = True
    """Turn the image as its EXIF orientation says."""
    max_seconds: float = 30
    """Time for fetching one URL, and for decoding one image as far as its decoder can be stopped."""

    def __post_init__(self) -> None:
        """Refuse what would silently mean something else."""
        if isinstance(self.roots, (str, Path)):
            raise TypeError("roots must be a list of folders; for a single one wrap it in a list: [folder]")
        for name, kind in (("max_pixels", Integral), ("max_bytes", Integral), ("max_seconds", Real)):
            if not isinstance(value := getattr(self, name), kind):
                number = "a whole number" if kind is Integral else "a number"
                raise TypeError(f"{name} must be {number}, not {value!r}")
        if not all(isinstance(channel, Integral) for channel in self.background):
            raise TypeError(f"background must be three whole numbers, not {self.background!r}")
        if self.max_pixels < 1 or self.max_bytes < 1:
            raise ValueError("max_pixels and max_bytes must be at least 1")
        if not self.max_seconds > 0:
            raise ValueError(f"max_seconds must be more than 0, not {self.max_seconds}")
        if len(self.background) != 3 or not all(0 <= channel <= 255 for channel in self.background):
            raise ValueError(f"background must be three numbers from 0 to 255, not {self.background}")


@dataclass(frozen=True, slots=True)
class ImageFailure:
    """One image that could not be embedded."""

    index: int
    """Position in the input, from 0."""
    source: str
    """The path, or what kind of value it was."""
    reason: str
    retryable: bool
    """True where the same input may work later: a missing file, a permission."""
    key: object = None
    """The key that came with the image, if any."""

    def __str__(self) -> str:
        return f"image {self.index} ({self.source}): {self.reason}"


@dataclass(frozen=True, slots=True)
class EmbeddedBatch:
    """Vectors of consecutive inputs, and the inputs among them that failed, in input order."""

    indices: npt.NDArray[np.int64]
    """(k,): positions in the input of the rows of `vectors`, ascending."""
    vectors: Float32
    """float32 (k, d), rows of unit length."""
    failures: tuple[ImageFailure, ...] = ()
    keys: tuple[object, ...] = field(default=())
    """(k,): the key of each row where the input was (key, image) pairs, else None each."""


@runtime_checkable
class Model(Protocol):
    """What `ClipEmbedder` needs from a model; write these five and nothing else.

    `dim` and `space` must be known without a forward pass. The two methods may be called from
    several threads, one call at a time, with at least one row. Rows need not be of unit length:
    the embedder normalises them. One whose `embed_images` may run in several threads at once says so
    by an attribute `parallel = True`: on a CPU it then gets one batch for each core.
    """

    @property
    def dim(self) -> int:
        """Dimension of the vectors."""
        ...

    @property
    def space(self) -> str:
        """Says which vectors may be compared: equal strings, comparable vectors."""
        ...

    @property
    def image_spec(self) -> ImageSpec:
        """How an image becomes the uint8 array that `embed_images` takes."""
        ...

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """uint8 (n, height, width, 3) RGB -> float32 (n, dim), in order."""
        ...

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """m texts, any number of them -> float32 (m, dim), in order."""
        ...
