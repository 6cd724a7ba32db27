"""nvJPEG's place in the pipe, with libjpeg-turbo in its place: what it is given, and who checks it."""

from __future__ import annotations

import io
import logging
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._cache import towers as _towers
from clip_embed._cache.towers import CachedTowers
from clip_embed._engine import decode_processes, pipeline
from clip_embed._engine import profile as _profile
from clip_embed._engine.prepared import Prepare, Prepared, beside
from clip_embed._engine.verdict import STAGES
from clip_embed._images import gpu_jpeg as _gpu_jpeg
from clip_embed._images import on_gpu as _on_gpu
from clip_embed._images.gpu_jpeg import GpuJpeg, open_gpu_jpeg
from clip_embed._images.on_gpu import OnGpu, nothing_on_gpu
from clip_embed._images.pixels import prepare_pixels
from clip_embed.errors import ImageError

UInt8 = npt.NDArray[np.uint8]
Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
SPEC = ImageSpec(224, (224, 224))
POLICY = ImagePolicy()
TIMEOUT = 20  # seconds until a deadlock becomes a failure


class Codec:
    """Decodes like the CPU, spoils what it decoded, and counts."""

    def __init__(self, spoil: Callable[[torch.Tensor], torch.Tensor] = lambda pixels: pixels) -> None:
        self.files = 0
        self.used = threading.Event()
        self._spoil = spoil

    def __call__(self, files: Sequence[bytes]) -> list[torch.Tensor]:
        """JPEG files -> uint8 (3, height, width) each."""
        self.files += len(files)
        self.used.set()
        pixels = [np.asarray(Image.open(io.BytesIO(file)).convert("RGB")).copy() for file in files]
        return [self._spoil(torch.from_numpy(each).permute(2, 0, 1)) for each in pixels]


def decoder(codec: Codec, spec: ImageSpec = SPEC) -> GpuJpeg:
    """Decode on the CPU."""
    return GpuJpeg(codec, spec, POLICY)


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
    small = GpuJpeg(codec, SPEC, ImagePolicy(max_pixels=1000))
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
    why = open_gpu_jpeg("cpu", SPEC, POLICY)
    assert f"no nvJPEG on cpu: {why}" in caplog.text
    monkeypatch.setattr(_gpu_jpeg, "_nvjpeg", lambda _: Codec())
    assert isinstance(open_gpu_jpeg("cpu", SPEC, POLICY), GpuJpeg)


def test_a_torchvision_without_its_compiled_part(
    photo: Photo, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It imports and knows no such function: that is a reason, and where it comes later the CPU decodes."""

    def fail(files: Sequence[bytes]) -> list[torch.Tensor]:
        raise AttributeError("'_OpNamespace' 'image' object has no attribute 'decode_jpegs_cuda'")

    monkeypatch.setattr(_gpu_jpeg, "_nvjpeg", lambda _: fail)
    why = open_gpu_jpeg("cpu", SPEC, POLICY)
    assert why == "it fails: '_OpNamespace' 'image' object has no attribute 'decode_jpegs_cuda'"
    assert GpuJpeg(fail, SPEC, POLICY).decode([encode(photo(64, 48), "JPEG")]) == [None]


def test_without_torchvision(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    """Not there, or made for another torch: the log says which, and nothing else happens."""
    caplog.set_level(logging.INFO)
    for error in (ImportError("No module named 'torchvision'"), RuntimeError("operator nms does not exist")):

        def fail(_: str, error: Exception = error) -> None:
            raise error

        monkeypatch.setattr(_gpu_jpeg, "import_module", fail)
        assert open_gpu_jpeg("cuda", SPEC, POLICY) == f"torchvision cannot be used: {error}"
        assert f"torchvision cannot be used: {error}" in caplog.text
    lanczos = ImageSpec(224, (224, 224), "lanczos")
    assert open_gpu_jpeg("cuda", lanczos, POLICY) == "it cannot do this model's preprocessing"


def test_a_decoder_that_fails_loses_nothing(photo: Photo, encode: Encode) -> None:
    """Lack of memory, or a file that it refuses: the CPU decodes them; so it does while it is busy."""

    def fail(files: Sequence[bytes]) -> list[torch.Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory")

    files = [encode(photo(64, 48, seed), "JPEG") for seed in range(3)]
    assert GpuJpeg(fail, SPEC, POLICY).decode(files) == [None] * 3
    busy = decoder(Codec())
    with busy._turn:
        assert busy.decode(files) == [None] * 3
    assert all(pixels is not None for pixels in busy.decode(files))


def test_only_what_no_core_is_free_for_goes_elsewhere() -> None:
    """Two cores take two chunks, the third goes elsewhere; a core that is free again takes the next."""
    leave, begun = threading.Event(), threading.Semaphore(0)
    elsewhere: list[object] = []

    def on_cores(sources: Sequence[object]) -> list[Prepared | ImageError]:
        begun.release()
        assert leave.wait(TIMEOUT)
        if sources == ["broken"]:
            raise LookupError
        return []

    prepare = beside(2, on_cores, lambda sources: elsewhere.extend(sources) or [])
    with ThreadPoolExecutor(2) as pool:
        busy = [pool.submit(prepare, [name]) for name in ("broken", "whole")]
        assert all(begun.acquire(timeout=TIMEOUT) for _ in busy)
        prepare(["third", "of another"])
        leave.set()
    assert isinstance(busy[0].exception(), LookupError)
    prepare(["fourth"])
    assert elsewhere == ["third", "of another"]


@pytest.mark.parametrize("by", ["threads", "processes"])
def test_a_stream_takes_both(
    by: str, photo: Photo, encode: Encode, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Files of all kinds come back in order, with their failures, each decoded by whom it suits."""
    codec = Codec()
    monkeypatch.setattr(CachedTowers, "open_on_gpu", lambda _: OnGpu(decoder(codec), "not here"))
    if by == "processes":
        monkeypatch.setattr(decode_processes.DecodeProcesses, "decode", lambda *_: None)
        monkeypatch.setattr(decode_processes.DecodeProcesses, "wait", lambda *_: None)
        monkeypatch.setattr(decode_processes, "is_gpu", lambda _: True)
        monkeypatch.setattr(decode_processes, "_FEW_CORES", 1)
    monkeypatch.setattr(pipeline.ImageStream, "_rhythm", lambda _: (4, 100))
    hold_cores_for(codec, monkeypatch)
    kinds = ("JPEG", "PNG", "JPEG", "WebP")
    images: list[object] = [encode(photo(320, 240, seed), kinds[seed % 4]) for seed in range(40)]
    images[5], images[11] = b"junk", np.asarray(photo(30, 20))
    options = {"device": "cpu", "precision": "fp32", "workers": 4, "batch_size": 40}
    expected = ClipEmbedder(clip_folder, precision="exact", device="cpu").embed_images(
        images[:5] + images[6:]  # type: ignore[arg-type]
    )
    for cache in ("memory", None):
        codec.used.clear()
        clip = ClipEmbedder(clip_folder, cache=cache, **options)  # type: ignore[arg-type]
        with clip.stream_images(images) as stream:  # type: ignore[arg-type]
            batches = list(stream)
        rows = np.concatenate([batch.vectors for batch in batches])
        assert [each.index for batch in batches for each in batch.failures] == [5]
        assert np.concatenate([batch.indices for batch in batches]).tolist() == [*range(5), *range(6, 40)]
        assert (rows * expected).sum(axis=1).min() >= 0.999
    codec.used.clear()
    profile = clip.profile(images)  # type: ignore[arg-type]
    assert (profile.failed, profile.gpu_jpeg) == (1, True)
    named = "4 threads for decoding" + (" in 2 processes" if by == "processes" else "")
    assert f"{named}, nvJPEG beside them" in str(profile)


def hold_cores_for(codec: Codec, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what decodes on cores wait until nvJPEG was given something."""
    for module in (_towers, _profile):
        kept = module.beside

        def waiting(cores: int, on_cores: Prepare, elsewhere: Prepare, kept: Any = kept) -> Prepare:  # noqa: ANN401
            def held(sources: Sequence[object]) -> list[Prepared | ImageError]:
                assert codec.used.wait(TIMEOUT)
                return on_cores(sources)

            return cast("Prepare", kept(cores, held, elsewhere))

        monkeypatch.setattr(module, "beside", waiting)


def test_where_it_is_opened(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, for fast pixels; elsewhere and for the reference's there is a reason and no decoder."""
    there = GpuJpeg(Codec(), SPEC, POLICY)
    monkeypatch.setattr(_on_gpu, "open_gpu_jpeg", lambda *_: there)
    monkeypatch.setattr(_on_gpu, "open_gpu_resize", lambda *_: "not here")

    def opened(precision: Any) -> GpuJpeg | str:  # noqa: ANN401
        clip = ClipEmbedder(clip_folder, device="cpu", precision=precision, cache=None)
        return clip._through_cache().open_on_gpu().jpeg

    assert opened("fp32") == "it needs a CUDA device"
    monkeypatch.setattr(_on_gpu, "device_kind", lambda _: "cuda")
    assert opened("fp32") is there
    assert opened("exact") == "its pixels are not the reference's"


def test_the_profile_says_why_there_is_none(
    photo: Photo, encode: Encode, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a CUDA device it repeats the reason, and names it where decoding is what takes the time."""
    clip = ClipEmbedder(clip_folder, device="cpu", precision="fp32")
    files = [encode(photo(64, 48, seed), "JPEG") for seed in range(4)]
    assert "nvJPEG" not in str(clip.profile(files))
    reason = "torchvision cannot be used: No module named 'torchvision'"
    monkeypatch.setattr(CachedTowers, "open_on_gpu", lambda _: nothing_on_gpu(reason))
    monkeypatch.setattr(_on_gpu, "device_kind", lambda _: "cuda")
    profile = clip.profile(files)
    assert profile.notes == (f"no nvJPEG: {reason}", f"no resize on the device: {reason}")
    assert f"no nvJPEG: {reason}" in str(profile)
    stages = dict.fromkeys(STAGES, 0.0) | {"decode": 1.0}
    on_gpu = replace(profile, device="cuda", decode_alone=1.0, forward_alone=2.0, stages=stages)
    assert "nvJPEG by torchvision with CUDA" in on_gpu.verdict
    assert "nvJPEG" not in replace(on_gpu, gpu_jpeg=True).verdict
    assert "nvJPEG" not in replace(on_gpu, device="mps").verdict
