"""nvJPEG's place in the pipe, with libjpeg-turbo in its place: what it is given, and who checks it."""

from __future__ import annotations

import io
import logging
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._cache.towers import CachedTowers
from clip_embed._engine import decode_processes, pipeline
from clip_embed._images import gpu_jpeg as _gpu_jpeg
from clip_embed._images.gpu_jpeg import GpuJpeg, open_gpu_jpeg, resize_on
from clip_embed._images.pixels import prepare_pixels

UInt8 = npt.NDArray[np.uint8]
Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
SPEC = ImageSpec(224, (224, 224))
POLICY = ImagePolicy()


class Codec:
    """Decodes like the CPU, spoils what it decoded, and counts."""

    def __init__(self, spoil: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels) -> None:
        self.files = 0
        self._spoil = spoil

    def __call__(self, files: Sequence[bytes]) -> list[torch.Tensor]:
        """JPEG files -> uint8 (3, height, width) each."""
        self.files += len(files)
        pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).copy() for file in files]
        return [self._spoil(torch.from_numpy(each).permute(2, 0, 1)) for each in pixels]


def decoder(codec: Codec, spec: ImageSpec = SPEC) -> GpuJpeg:
    """Decode on the CPU."""
    return GpuJpeg(codec, "cpu", spec, POLICY)


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (160, 120), (1999, 1500)])
def test_the_resize_on_a_device_is_pillows(resample: str, size: tuple[int, int], photo: Photo) -> None:
    """Antialiased and rounded: at most one grey level from Pillow's, where the other filter is four away."""
    image = photo(*size).point(lambda level: 96 + level // 4)  # no filter overshoots
    pixels = torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)
    for target in ((224, 168), (299, 224)):
        small = resize_on(pixels, target, resample).numpy()
        right = np.asarray(image.resize(target, Image.Resampling[resample.upper()]))
        assert small.dtype == np.uint8
        assert np.abs(small.astype(int) - right).max() <= 1
        wrong = resize_on(pixels, target, "bilinear" if resample == "bicubic" else "bicubic").numpy()
        assert np.abs(wrong.astype(int) - right).max() >= 4


def test_plain_files_and_no_others(photo: Photo, encode: Encode) -> None:
    """What nvJPEG reads otherwise than libjpeg-turbo, or without a word about damage, is left to the CPU."""
    image = photo(640, 480)
    turned = Image.Exif()
    turned[0x0112] = 6
    plain = [
        encode(image, "JPEG", subsampling=subsampling, quality=quality)
        for subsampling in (0, 1, 2)
        for quality in (60, 95)
    ]
    others = {
        "progressive": encode(image, "JPEG", progressive=True),
        "CMYK": encode(image.convert("CMYK"), "JPEG"),
        "grey": encode(image.convert("L"), "JPEG"),
        "RGB without YCbCr": encode(image, "JPEG", keep_rgb=True),
        "turned": encode(image, "JPEG", exif=turned),
        "cut short": plain[0][: len(plain[0]) // 2],
        "something behind it": plain[0] + b"more",
        "very long": encode(photo(3000, 60), "JPEG"),
        "PNG": encode(image, "PNG"),
        "nothing": b"",
    }
    codec = Codec()
    found = decoder(codec).decode([*plain, *others.values()])
    assert [pixels is not None for pixels in found] == [True] * len(plain) + [False] * len(others)
    assert codec.files == len(plain)
    for file, pixels in zip(plain, found, strict=False):
        assert pixels is not None
        assert np.abs(pixels.astype(int) - prepare_pixels(None, file, SPEC, POLICY)).mean() <= 0.3
    small = GpuJpeg(codec, "cpu", SPEC, ImagePolicy(max_pixels=1000))
    assert small.decode(plain[:1]) == [None]


WRONG: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {
    "mirrored": lambda pixels: pixels.flip(2),
    "BGR": lambda pixels: pixels.flip(0),
    "grey": lambda pixels: pixels[:1].expand(3, -1, -1),
    "another size": lambda pixels: pixels[:, :-8],
    "a little darker": lambda pixels: pixels - pixels.clamp(max=3),
    "zeros": torch.zeros_like,
}


@pytest.mark.parametrize("wrong", WRONG)
def test_a_decoder_of_other_pixels_is_not_used(
    wrong: str, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The check on opening finds it and says by how much; the right one passes."""
    monkeypatch.setattr(_gpu_jpeg, "_nvjpeg", lambda _: Codec(WRONG[wrong]))
    assert open_gpu_jpeg("cpu", SPEC, POLICY) is None
    assert "no nvJPEG on cpu: it" in caplog.text
    monkeypatch.setattr(_gpu_jpeg, "_nvjpeg", lambda _: Codec())
    assert open_gpu_jpeg("cpu", SPEC, POLICY) is not None


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Not there, or made for another torch: the log says which, and nothing else happens."""
    caplog.set_level(logging.INFO)
    for error in (ImportError("No module named 'torchvision'"), RuntimeError("operator nms does not exist")):

        def fail(_: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(_gpu_jpeg, "import_module", fail)
        assert open_gpu_jpeg("cuda", SPEC, POLICY) is None
        assert f"torchvision cannot be used: {error}" in caplog.text
    assert open_gpu_jpeg("cuda", ImageSpec(224, (224, 224), "lanczos"), POLICY) is None


def test_a_decoder_that_fails_loses_nothing(photo: Photo, encode: Encode) -> None:
    """Lack of memory, or a file that it refuses: the CPU decodes them; so it does while it is busy."""

    def fail(files: Sequence[bytes]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    files = [encode(photo(64, 48, seed), "JPEG") for seed in range(3)]
    assert GpuJpeg(fail, "cpu", SPEC, POLICY).decode(files) == [None] * 3
    busy = decoder(Codec())
    with busy._turn:
        assert busy.decode(files) == [None] * 3
    assert all(pixels is not None for pixels in busy.decode(files))


def test_a_stream_takes_both(
    photo: Photo, encode: Encode, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of all kinds come back in order, with their failures, each decoded by whom it suits."""
    codec = Codec()
    monkeypatch.setattr(CachedTowers, "open_gpu_jpeg", lambda _: decoder(codec))
    for name in ("decode", "wait"):
        monkeypatch.setattr(decode_processes.DecodeProcesses, name, lambda *_: None)
    monkeypatch.setattr(decode_processes, "is_gpu", lambda _: True)
    monkeypatch.setattr(decode_processes, "_FEW_CORES", 1)
    monkeypatch.setattr(pipeline.ImageStream, "_rhythm", lambda _: (pipeline.AT_ONCE, 100))
    kinds = ("JPEG", "PNG", "JPEG", "WebP")
    images: list[object] = [encode(photo(320, 240, seed), kinds[seed % 4]) for seed in range(40)]
    images[5], images[11] = b"junk", np.asarray(photo(30, 20))
    options = {"device": "cpu", "precision": "fp32"}
    for cache in ("memory", None):
        clip = ClipEmbedder(clip_folder, workers=4, cache=cache, **options)  # type: ignore[arg-type]
        with clip.stream_images(images) as stream:  # type: ignore[arg-type]
            batches = list(stream)
        rows = np.concatenate([batch.vectors for batch in batches])
        assert [each.index for batch in batches for each in batch.failures] == [5]
        assert np.concatenate([batch.indices for batch in batches]).tolist() == [*range(5), *range(6, 40)]
        expected = ClipEmbedder(clip_folder, precision="exact", device="cpu").embed_images(
            images[:5] + images[6:]  # type: ignore[arg-type]
        )
        assert (rows * expected).sum(axis=1).min() >= 0.999
        assert codec.files > 0
    codec.files = 0
    profile = clip.profile(images)  # type: ignore[arg-type]
    assert (profile.failed, profile.gpu_jpeg) == (1, True)
    assert codec.files > 0
    assert "4 threads for decoding in 2 processes, nvJPEG beside them" in str(profile)
