"""Several devices, recordings, checks on load and lack of memory, with CPUs in the place of GPUs."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ImageBatchError, ModelError
from clip_embed._engine.device import device_name, suggest_batch_size
from clip_embed._engine.lanes import Lane
from clip_embed._models import placing
from clip_embed._models.low_precision import products_for_patches
from clip_embed._models.model_folder import ModelFolder
from clip_embed.testing import FakeModel

Float32 = npt.NDArray[np.float32]
TWO = ["cpu", "cpu"]
TIMEOUT = 120  # seconds until a deadlock becomes a failure
TEXTS = ["a red car", "the dog", "x"]


class Gpu(Lane):
    """A device of a test: records, counts its calls, and may run out of memory or fail."""

    records = True
    most = 1000
    error: Exception | None = None
    wrong: Callable[[torch.Tensor], torch.Tensor] = staticmethod(lambda rows: rows)

    def __init__(self, tower: Any, device: str) -> None:  # noqa: ANN401
        super().__init__(self._limited, device)
        self._real = tower
        self.plain: list[int] = []
        self.replayed: list[int] = []
        self.cleared = 0

    def _limited(self, staged: torch.Tensor) -> torch.Tensor:
        if self.error is not None:
            raise self.error
        if len(staged) > self.most:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        self.plain.append(len(staged))
        return self._real(staged)

    def _record(self, staged: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        def replay(staged: torch.Tensor) -> torch.Tensor:
            self.replayed.append(len(staged))
            return self.wrong(self._real(staged))

        return replay

    def _clear(self) -> None:
        super()._clear()
        self.cleared += 1


class Memory:
    """What the lanes of one device share: so many images at once, those of a batch until it is done."""

    def __init__(self, images: int) -> None:
        self.refused = 0
        self._free = images
        self._lock = threading.Lock()

    def run(self, tower: Callable[[torch.Tensor], torch.Tensor], staged: torch.Tensor) -> torch.Tensor:
        """Compute, long enough for the other lane to come across."""
        with self._lock:
            if len(staged) > self._free:
                self.refused += 1
                raise torch.OutOfMemoryError("CUDA out of memory")
            self._free -= len(staged)
        try:
            time.sleep(0.02)
            return tower(staged)
        finally:
            with self._lock:
                self._free += len(staged)


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[Gpu]]:
    """Put a `Gpu` on each device, and list them."""
    opened: list[Gpu] = []

    def open_lane(tower: Any, device: str) -> Lane:  # noqa: ANN401
        opened.append(Gpu(tower, device))
        return opened[-1]

    monkeypatch.setattr(placing, "open_lane", open_lane)
    return opened


@pytest.fixture(scope="module")
def photos(photo: Callable[..., Image.Image]) -> list[Image.Image]:
    """Thirty photos, no two alike."""
    return [photo(320, 240, seed) for seed in range(30)]


@pytest.fixture(scope="module")
def expected(clip_folder: Path, photos: list[Image.Image]) -> Float32:
    """Their vectors on one CPU in float32."""
    return ClipEmbedder(clip_folder, device="cpu", precision="fp32", cache=None).embed_images(photos)


def embedder(folder: Path, precision: Any = "fp32", batch_size: int = 4) -> ClipEmbedder:  # noqa: ANN401
    """Embed on two devices."""
    return ClipEmbedder(folder, device=TWO, precision=precision, batch_size=batch_size, cache=None)


def test_two_devices_share_the_images(
    gpus: list[Gpu], clip_folder: Path, photos: list[Image.Image], expected: Float32
) -> None:
    """Both embed, the rows are those of one device in the input's order, and texts are embedded as well."""
    clip = embedder(clip_folder)
    clip.load()
    for gpu in gpus:
        gpu.plain.clear()
        gpu.replayed.clear()
    np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    assert (clip.device, len(gpus)) == ("cpu,cpu", 2)
    assert all(sum(gpu.plain + gpu.replayed) >= 8 for gpu in gpus)
    one = ClipEmbedder(clip_folder, device="cpu", precision="fp32", cache=None)
    np.testing.assert_allclose(clip.embed_texts(TEXTS), one.embed_texts(TEXTS), atol=1e-5)
    assert clip.logit_scale == one.logit_scale


def test_two_real_lanes_in_bfloat16(clip_folder: Path, photos: list[Image.Image], expected: Float32) -> None:
    """Without a fake: each device has its own copy in the precision asked for, checked when it loads."""
    clip = embedder(clip_folder, "bf16")
    rows = clip.embed_images(photos)
    assert (rows * expected).sum(axis=1).min() >= 0.999
    assert np.abs(rows - expected).max() > 1e-4
    assert clip.model.notes == []  # type: ignore[attr-defined]


def test_an_error_of_one_device_reaches_the_caller(
    gpus: list[Gpu], clip_folder: Path, photos: list[Image.Image], decode_threads: Callable[[], list[str]]
) -> None:
    """It is raised as it is, naming the device; no thread stays, and the embedder goes on afterwards."""
    clip = embedder(clip_folder)
    clip.load()
    gpus[1].error = RuntimeError("CUDA error: an illegal memory access was encountered")
    with pytest.raises(RuntimeError, match="illegal memory access") as caught:
        clip.embed_images(photos)
    assert caught.value.__notes__[0] == "on device cpu"
    assert decode_threads() == []
    gpus[1].error = None
    assert len(clip.embed_images(photos)) == len(photos)


def test_a_shape_that_comes_again_is_recorded(
    gpus: list[Gpu], clip_folder: Path, photos: list[Image.Image]
) -> None:
    """Once the plain way, once recorded and compared, then replayed, each shape for itself."""
    embedder(clip_folder).load()
    gpu, pixels = gpus[0], np.zeros((5, 224, 224, 3), np.uint8)
    gpu.plain.clear()
    gpu.replayed.clear()
    rows = [gpu(pixels) for _ in range(4)] + [gpu(pixels[:3])]
    assert (gpu.plain, gpu.replayed) == ([5, 5, 3], [5, 5, 5])
    np.testing.assert_allclose(rows[3], rows[0], atol=1e-6)
    gpu.make_room()
    gpu(pixels)
    assert gpu.cleared == 1
    assert gpu.plain[-1] == 5


@pytest.mark.parametrize(
    "wrong",
    [
        pytest.param(lambda rows: rows.flip(0), id="rows of other images"),
        pytest.param(torch.zeros_like, id="zeros"),
        pytest.param(lambda rows: rows * float("nan"), id="NaN"),
        pytest.param(lambda rows: rows + 0.01 * rows.abs().max(), id="moved by a hundredth"),
    ],
)
def test_a_wrong_recording_is_not_used(
    wrong: Callable[[torch.Tensor], torch.Tensor],
    gpus: list[Gpu],
    clip_folder: Path,
    photos: list[Image.Image],
    expected: Float32,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The vectors are the plain pass's, a warning gives the figure, and the profile repeats it."""
    monkeypatch.setattr(Gpu, "wrong", staticmethod(wrong))
    clip = embedder(clip_folder)
    np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    assert len(warnings) == 2  # one a device
    assert all(
        "no CUDA graphs on cpu: a recorded forward pass moved a vector by" in each for each in warnings
    )
    assert "no CUDA graphs on cpu" in str(clip.profile(photos[:8]))


def test_a_recording_that_fails_is_done_without(
    gpus: list[Gpu],
    clip_folder: Path,
    photos: list[Image.Image],
    expected: Float32,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """One warning with torch's reason for each device, and the plain pass from there on."""

    def fail(*_: object) -> None:
        raise RuntimeError("operation not permitted when stream is capturing\nmore")

    monkeypatch.setattr(Gpu, "_record", fail)
    clip = embedder(clip_folder)
    for _ in range(2):
        np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    warnings = [record.message for record in caplog.records if record.levelno == logging.WARNING]
    reason = "recording the forward pass failed: operation not permitted when stream is capturing"
    assert warnings == [f"no CUDA graphs on cpu: {reason}"] * 2


def test_a_precision_that_does_not_hold_is_not_used(
    gpus: list[Gpu],
    clip_folder: Path,
    photos: list[Image.Image],
    expected: Float32,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A device whose bfloat16 gives other vectors computes in float32, and says so with the figures."""

    def spoil(model: Any, precision: str) -> None:  # noqa: ANN401
        model.vision_model.encoder.layers[0].mlp.fc1.weight.data.neg_()

    monkeypatch.setattr(placing, "use_dtype", spoil)
    clip = embedder(clip_folder, "bf16")
    np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    message = "bf16 on cpu moves vectors too far from float32 on the CPU: smallest cosine"
    assert sum(message in record.message for record in caplog.records) == 2
    assert message in str(clip.profile(photos[:8]))
    monkeypatch.setattr(placing, "use_dtype", lambda *_: None)
    assert embedder(clip_folder, "bf16").model.load() is None  # type: ignore[attr-defined, func-returns-value]


def test_spoilt_texts_are_found_too(
    gpus: list[Gpu], clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A device that reads images well and texts wrongly is found by its texts."""

    def spoil(model: Any, precision: str) -> None:  # noqa: ANN401
        model.text_model.encoder.layers[0].mlp.fc1.weight.data.neg_()

    monkeypatch.setattr(placing, "use_dtype", spoil)
    clip = embedder(clip_folder, "bf16")
    clip.load()
    assert len(clip.model.notes) == 2  # type: ignore[attr-defined]


def test_a_device_that_is_wrong_in_float32_is_refused(
    clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """There is nothing to fall back to: ModelError with the figures, on each try."""
    monkeypatch.setattr(Gpu, "_limited", lambda self, staged: self._real(staged).roll(1, dims=0))
    monkeypatch.setattr(placing, "open_lane", Gpu)
    for precision in ("exact", "bf16"):
        clip = embedder(clip_folder, precision)
        for _ in range(2):
            with pytest.raises(ModelError, match=r"on cpu moves vectors too far .* take another device"):
                clip.load()


def test_a_batch_far_too_large_finishes_with_the_same_vectors(
    gpus: list[Gpu], clip_folder: Path, photos: list[Image.Image], expected: Float32
) -> None:
    """A lack of memory halves the batch until it fits, and lets go of what was kept, on both devices."""
    clip = embedder(clip_folder, batch_size=4096)
    clip.load()
    for gpu in gpus:
        gpu.most = 3
        gpu.plain.clear()
        gpu.replayed.clear()
    np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    assert max(size for gpu in gpus for size in gpu.plain + gpu.replayed) == 3
    assert sum(gpu.cleared for gpu in gpus) > 0


@pytest.mark.parametrize(("batch_size", "room"), [(16, 8), (8, 8), (8, 12), (1, 1)])
def test_lanes_that_share_memory_lose_nothing(
    batch_size: int,
    room: int,
    gpus: list[Gpu],
    clip_folder: Path,
    photos: list[Image.Image],
    expected: Float32,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """What fits alone has its vector, though the other lane fills the memory whenever it computes."""
    clip = embedder(clip_folder, batch_size=batch_size)
    clip.load()
    memory = Memory(room)
    monkeypatch.setattr(Gpu, "records", False)
    for gpu in gpus:
        gpu._tower = partial(memory.run, gpu._real)
    with ThreadPoolExecutor(2) as pool:  # two streams, which also give up at the same moment
        runs = [pool.submit(clip.embed_images, photos) for _ in range(2)]
        for run in runs:
            np.testing.assert_allclose(run.result(TIMEOUT), expected, atol=1e-5)
    assert memory.refused > 0


def test_a_row_that_never_fits_leaves_the_lanes_to_the_others(
    gpus: list[Gpu], clip_folder: Path, photos: list[Image.Image], expected: Float32
) -> None:
    """Both lanes come back after each failure, also that of a batch that raises something else."""
    clip = embedder(clip_folder)
    clip.load()
    for gpu in gpus:
        gpu.most = 0
    with pytest.raises(ImageBatchError, match="30 of 30"):
        clip.embed_images(photos)
    for gpu in gpus:
        gpu.most = 1000
    np.testing.assert_allclose(clip.embed_images(photos), expected, atol=1e-5)
    assert clip.model._placed.images._free.qsize() == 2  # type: ignore[attr-defined]


@pytest.mark.parametrize("hidden", [False, True])
def test_no_memory_for_a_recording_keeps_that_size_from_being_recorded(
    hidden: bool, gpus: list[Gpu], clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It stays with the plain pass, without another try; smaller ones are recorded, and nothing is noted."""
    embedder(clip_folder).load()
    gpu, pixels, record = gpus[0], np.zeros((6, 224, 224, 3), np.uint8), Gpu._record
    tried: list[int] = []

    def fail(lane: Gpu, staged: torch.Tensor) -> Callable[[torch.Tensor], torch.Tensor]:
        tried.append(len(staged))
        if len(staged) <= 3:
            return record(lane, staged)
        try:
            raise torch.OutOfMemoryError("CUDA out of memory")
        finally:
            if hidden:
                raise RuntimeError("operation failed due to a previous error during capture")

    monkeypatch.setattr(Gpu, "_record", fail)
    gpu.replayed.clear()
    for count in (6, 6, 6, 6, 3, 3, 3):
        gpu(pixels[:count])
    assert tried == [6, 3]
    assert gpu.replayed == [3, 3]
    assert gpu.notes == []


def test_patches_by_a_product(clip_folder: Path, siglip_folder: Path) -> None:
    """The product gives the convolution's sums, with and without a bias, also where pixels are left over."""
    for folder, edge in ((clip_folder, 224), (siglip_folder, 192)):
        tower = deepcopy(ModelFolder(folder, "cpu")._towers.vision_model).double()
        pixels = torch.randn(2, 3, edge + 7, edge, dtype=torch.float64)
        with torch.no_grad():
            before = tower.embeddings.patch_embedding(pixels)
            products_for_patches(tower)
            after = tower.embeddings.patch_embedding(pixels)
        assert not isinstance(tower.embeddings.patch_embedding, torch.nn.Conv2d)
        torch.testing.assert_close(after, before, rtol=1e-9, atol=1e-9)


def test_names_of_devices() -> None:
    """Several become one name; what cannot work together is refused with the way out."""
    assert device_name(["cuda:0", "cuda:1"]) == "cuda:0,cuda:1"
    assert device_name(["cuda:1"]) == device_name("cuda:1") == "cuda:1"
    for bad in ([], [1], [""]):
        with pytest.raises(ValueError, match="device must be a name, or names as in"):
            device_name(bad)  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="name each of several"):
        device_name(["auto", "cuda:1"])
    with pytest.raises(ValueError, match=r"several kinds .*: cuda:0, cpu"):
        ClipEmbedder(FakeModel(), device=["cuda:0", "cpu"])
    with pytest.raises(ValueError, match="a FakeModel runs on one device, not on cpu,cpu"):
        ClipEmbedder(FakeModel(), device=TWO)


def test_the_batch_size_follows_what_was_measured(monkeypatch: pytest.MonkeyPatch) -> None:
    """A quarter of the free memory of the fullest device, a power of two from 8 to 256."""
    free = {"cuda:0": 16 << 30, "cuda:1": 4 << 30}
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda device: (free[device], 80 << 30))
    assert suggest_batch_size("cuda:0", 100 << 20) == 32
    assert suggest_batch_size("cuda:0,cuda:1", 100 << 20) == 8
    assert suggest_batch_size("cuda:0", 1 << 10) == 256
