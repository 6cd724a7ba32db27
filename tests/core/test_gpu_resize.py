"""Resize on a device, with a CPU in its place: Pillow's pixels, who checks it, and what is not for it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._cache.towers import CachedTowers
from clip_embed._engine import decode_processes, decode_worker, pipeline, prepared
from clip_embed._engine.decode_processes import DecodeProcesses
from clip_embed._engine.link import Link
from clip_embed._engine.prepared import Decoded, Prepared, in_halves
from clip_embed._images import gpu_resize as _gpu_resize
from clip_embed._images import on_gpu as _on_gpu
from clip_embed._images.gpu_resize import MAX_GREY, GpuResize, open_gpu_resize, resize_on
from clip_embed._images.on_gpu import OnGpu
from clip_embed._images.pixels import Stored, decode_for, fit
from clip_embed.errors import ImageError

UInt8 = npt.NDArray[np.uint8]
Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]
SPEC = ImageSpec(224, (224, 224))
POLICY = ImagePolicy()
TURN = 0x0112  # EXIF's orientation
TIMEOUT = 60  # seconds until a deadlock becomes a failure

pytest.importorskip("simplejpeg", reason="this needs clip-embed[fast]")


class Counted(GpuResize):
    """Counts the images that it resizes."""

    def __init__(self, spec: ImageSpec = SPEC) -> None:
        super().__init__(["cpu"], spec, POLICY)
        self.images = 0
        self._counting = threading.Lock()

    def fit(self, decoded: Sequence[Stored]) -> list[UInt8]:
        """As of `GpuResize`."""
        with self._counting:
            self.images += len(decoded)
        return super().fit(decoded)


def planes(image: Image.Image | UInt8) -> torch.Tensor:
    """As `resize_on` takes it."""
    return torch.from_numpy(np.array(image))[None].permute(0, 3, 1, 2)


def stored(file: bytes, spec: ImageSpec = SPEC) -> Stored:
    """Decode as the fast way does."""
    decoded = decode_for(None, file, spec, POLICY, exact=False)
    assert isinstance(decoded, Stored)
    return decoded


@pytest.mark.parametrize("resample", ["bicubic", "bilinear"])
@pytest.mark.parametrize("size", [(640, 480), (333, 500), (160, 120), (1999, 1500)])
def test_it_is_pillows(resample: str, size: tuple[int, int], photo: Photo) -> None:
    """Both passes, rounded in between, edges that overshoot among them; the other filter is far away."""
    image = photo(*size)
    for short in (224, 60):
        target = (short * size[0] // min(size), short * size[1] // min(size))
        for extent in (size, (size[0] - 0.75, size[1] - 0.5)):
            small = resize_on(planes(image), extent, target, resample).numpy()[0]
            filters = Image.Resampling[resample.upper()]
            right = np.asarray(image.resize(target, filters, box=(0, 0, *extent)))
            assert small.dtype == np.uint8
            assert np.abs(small.astype(int) - right).max() <= 2
            assert np.abs(small.astype(int) - right).mean() <= 0.02
        wrong = resize_on(planes(image), size, target, "bilinear" if resample == "bicubic" else "bicubic")
        assert np.abs(wrong.numpy()[0].astype(int) - right).mean() >= 0.2


@pytest.mark.parametrize(
    "spec",
    [
        SPEC,
        ImageSpec((224, 192)),
        ImageSpec((224, 224), pad=True),
        ImageSpec(96, (128, 128), "bilinear"),
    ],
    ids=["crop", "stretch", "pad", "small in a large crop"],
)
def test_many_at_once_are_each_what_the_cpu_gives(spec: ImageSpec, photo: Photo, encode: Encode) -> None:
    """Sizes that come again and others, scaled by the decoder and not, each orientation: in order."""
    files: list[bytes] = []
    for turn in range(1, 9):
        exif = Image.Exif()
        exif[TURN] = turn
        size = (640, 480) if turn % 2 else (1601, 1203)
        files.append(encode(photo(*size, turn), "JPEG", exif=exif))
    files += [encode(photo(320, 240, seed), "JPEG", quality=90) for seed in range(20)]
    decoded = [stored(file, spec) for file in files]
    resize = GpuResize(["cpu"], spec, POLICY)
    assert all(resize.takes(each) for each in decoded)
    for each, found in zip(decoded, resize.fit(decoded), strict=True):
        right = fit(each, spec, POLICY)
        assert found.flags.c_contiguous
        assert found.shape == right.shape
        assert np.abs(found.astype(int) - right).mean() <= 0.3  # the two passes in another order
        assert np.abs(found[:, ::-1].astype(int) - right).mean() > 1


def test_what_is_not_for_it(photo: Photo, encode: Encode, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other formats, long strips, the reference's pixels, and what would fill the device."""
    resize = GpuResize(["cpu"], SPEC, POLICY)
    assert resize.takes(stored(encode(photo(320, 240), "JPEG")))
    assert not resize.takes(stored(encode(photo(320, 240), "PNG")))
    assert not resize.takes(stored(encode(photo(3000, 60), "JPEG")))
    assert not resize.takes(decode_for(None, encode(photo(320, 240), "JPEG"), SPEC, POLICY, exact=True))
    monkeypatch.setattr(_gpu_resize, "MAX_BYTES", 320 * 240 * 3 - 1)
    assert not resize.takes(stored(encode(photo(320, 240), "JPEG")))


def in_one_pass(
    pixels: torch.Tensor, _: tuple[float, float], size: tuple[int, int], resample: str
) -> torch.Tensor:
    """Both directions at once, rounded at the end: near, and not near enough."""
    from torch.nn.functional import interpolate

    small = interpolate(pixels.float(), size=size[::-1], mode=resample, antialias=True)
    return small.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def spoilt(spoil: Callable[[torch.Tensor], torch.Tensor]) -> Callable[..., torch.Tensor]:
    """The right pixels, spoilt."""
    return lambda *arguments: spoil(resize_on(*arguments))


WRONG: dict[str, Callable[..., torch.Tensor]] = {
    "one pass": in_one_pass,
    "mirrored": spoilt(lambda small: small.flip(2)),
    "BGR": spoilt(lambda small: small.flip(3)),
    "another row": spoilt(lambda small: small.roll(1, dims=1)),
    "rows out of order": spoilt(lambda small: small.flip(0)),
    "darker": spoilt(lambda small: small - small.clamp(max=1)),
    "zeros": spoilt(torch.zeros_like),
    "bilinear": lambda pixels, extent, size, _: resize_on(pixels, extent, size, "bilinear"),
    "the extent forgotten": lambda pixels, _, size, resample: resize_on(
        pixels, (pixels.shape[3], pixels.shape[2]), size, resample
    ),
}


@pytest.fixture
def fast(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The seconds that the check of the time is given: the device's, then the CPU's."""
    seconds = [1.0, 2.0]
    turn = itertools.cycle((0, 1))

    def taken(work: Callable[[], object]) -> float:
        work()
        return seconds[next(turn)]

    monkeypatch.setattr(_gpu_resize, "_seconds", taken)
    return seconds


@pytest.mark.parametrize("wrong", WRONG)
def test_a_device_of_other_pixels_is_not_used(
    wrong: str, fast: list[float], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The check on opening finds it and says by how much; the right one passes."""
    assert isinstance(open_gpu_resize(["cpu"], SPEC, POLICY), GpuResize)
    monkeypatch.setattr(_gpu_resize, "resize_on", WRONG[wrong])
    why = open_gpu_resize(["cpu"], SPEC, POLICY)
    assert f"grey levels from the CPU's on average (at most {MAX_GREY})" in str(why)
    assert f"no resize on cpu: {why}" in caplog.text


def test_a_device_that_is_slower_or_fails_is_not_used(
    fast: list[float], monkeypatch: pytest.MonkeyPatch
) -> None:
    """What it takes and what a core takes are said; with several devices also which it is."""
    fast[:] = [0.018, 0.009]
    assert open_gpu_resize(["cpu"], SPEC, POLICY) == "an image takes 2.00 ms there and 1.00 ms on a core"
    why = "an image takes 2.00 ms there and 1.00 ms on a core (on cpu)"
    assert open_gpu_resize(["cpu", "cpu"], SPEC, POLICY) == why

    def fail(*_: object) -> torch.Tensor:
        raise NotImplementedError("aten::_upsample_bicubic2d_aa is not there for MPS\nsecond line")

    monkeypatch.setattr(_gpu_resize, "resize_on", fail)
    why = "it fails: aten::_upsample_bicubic2d_aa is not there for MPS"
    assert open_gpu_resize(["cpu"], SPEC, POLICY) == why
    lanczos = ImageSpec(224, (224, 224), "lanczos")
    assert open_gpu_resize(["cpu"], lanczos, POLICY) == "it cannot do this model's preprocessing"
    monkeypatch.setattr("clip_embed._images.jpeg._codec", lambda: None)
    assert "clip-embed[fast]" in str(open_gpu_resize(["cpu"], SPEC, POLICY))


def test_a_device_that_fails_later_loses_nothing(
    photo: Photo, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Lack of memory, or a size that its kernels do not take: the CPU resizes, no link is lost."""

    def fail(*_: object) -> torch.Tensor:
        raise torch.OutOfMemoryError("CUDA out of memory")

    decoded = [stored(encode(photo(320, 240, seed), "JPEG")) for seed in range(3)]
    resize = GpuResize(["cpu"], SPEC, POLICY)
    with monkeypatch.context() as patch:
        patch.setattr(_gpu_resize, "resize_on", fail)
        for _ in range(8):  # more often than there are links
            found = resize.fit(decoded)
    for each, pixels in zip(decoded, found, strict=True):
        np.testing.assert_array_equal(pixels, fit(each, SPEC, POLICY))


def test_links_are_shared_by_threads_and_devices(
    photo: Photo, encode: Encode, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Never two threads on one link; two devices get alike much."""
    used: list[str] = []
    monkeypatch.setattr(_gpu_resize, "open_link", lambda device, _: Own(device))

    class Own(Link):
        """Belongs to one thread at a time."""

        def __init__(self, device: str) -> None:
            super().__init__("cpu")
            self._name = device
            self._alone = threading.Lock()

        def send(self, arrays: Sequence[UInt8]) -> list[torch.Tensor]:
            """As of `Link`."""
            assert self._alone.acquire(blocking=False)
            used.append(self._name)
            return super().send(arrays)

        def fetch(self, tensors: Sequence[torch.Tensor]) -> list[npt.NDArray[Any]]:
            """As of `Link`."""
            found = super().fetch(tensors)
            self._alone.release()
            return found

    decoded = [stored(encode(photo(320, 240, seed), "JPEG")) for seed in range(3)]
    resize = GpuResize(["first", "second"], SPEC, POLICY)
    with ThreadPoolExecutor(16) as pool:
        rows = list(pool.map(lambda _: resize.fit(decoded), range(64)))
    assert min(used.count("first"), used.count("second")) >= 8
    assert all(np.array_equal(a, b) for row in rows for a, b in zip(row, rows[0], strict=True))


def test_what_waits_to_be_resized_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    """Failures and what is prepared already keep their places; no more waits than there is room for."""
    monkeypatch.setattr(prepared, "_WAITING_BYTES", 100)
    together: list[int] = []

    def decode(source: object) -> Prepared | Decoded:
        number = int(str(source))
        if number == 3:
            raise ImageError("no image")
        if number % 4 == 2:
            return Prepared(b"here", np.full((1, 1, 3), number, np.uint8))
        return Decoded(b"", Stored(np.full((1, 16, 3), number, np.uint8), (16, 1), (16, 1), 1))

    def resize(decoded: Sequence[Stored]) -> list[UInt8]:
        together.append(len(decoded))
        return [np.asarray(each.picture)[:, :1] for each in decoded]

    outcomes = in_halves(decode, resize)(range(12))
    assert isinstance(outcomes[3], ImageError)
    found = [each.pixels.max() for each in outcomes if isinstance(each, Prepared) and each.pixels is not None]
    assert found == [0, 1, 2, 4, 5, 6, 7, 8, 9, 10, 11]
    assert together == [3, 3, 2]
    assert in_halves(decode, resize)([]) == []
    assert [each.content for each in in_halves(decode, resize)([2]) if isinstance(each, Prepared)] == [
        b"here"
    ]


@pytest.mark.parametrize("by", ["threads", "processes", "processes with little room"])
@pytest.mark.parametrize("cache", ["memory", None])
def test_a_stream_gets_its_pixels_from_it(
    by: str,
    cache: str | None,
    photo: Photo,
    encode: Encode,
    clip_folder: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Files of all kinds come back in order, with their failures, and with the cores' vectors."""
    images: list[Any] = [
        encode(photo(640, 480, seed), "PNG" if seed % 5 == 4 else "JPEG") for seed in range(40)
    ]
    images[5], images[11], images[12] = b"junk", np.asarray(photo(30, 20)), images[10]
    for_gpu = 31 - (cache is not None)  # 40 less 8 PNG and junk; what comes twice is known by then, or not
    options: dict[str, Any] = {"device": "cpu", "precision": "fp32", "workers": 4, "batch_size": 8}
    expected = ClipEmbedder(clip_folder, cache=None, **options).embed_images(images[:5] + images[6:])
    monkeypatch.setattr(pipeline.ImageStream, "_rhythm", lambda _: (4, 100))
    if by != "threads":
        monkeypatch.setattr(decode_processes, "is_gpu", lambda _: True)
        monkeypatch.setattr(decode_processes, "_FEW_CORES", 4)
        monkeypatch.setattr(decode_processes, "_START_AFTER", 0)
    clip = ClipEmbedder(clip_folder, cache=cache, **options)
    resize = Counted(clip.model.image_spec)
    monkeypatch.setattr(CachedTowers, "open_on_gpu", lambda _: OnGpu("not here", resize))
    processes = clip._through_cache().processes
    assert (processes is None) == (by == "threads")
    if by == "processes with little room":
        room = 640 * 480 * 3
        monkeypatch.setattr(decode_worker, "_ROOM", 2 * room)
        monkeypatch.setattr(decode_processes, "_THREADS", 4)
        monkeypatch.setattr(decode_processes, "_CODE", small_room(2 * room))
    if processes is not None:
        processes.wait(TIMEOUT)
    with clip.stream_images(images) as stream:
        batches = list(stream)
    rows = np.concatenate([batch.vectors for batch in batches])
    assert [each.index for batch in batches for each in batch.failures] == [5]
    assert np.concatenate([batch.indices for batch in batches]).tolist() == [*range(5), *range(6, 40)]
    np.testing.assert_allclose(rows, expected, atol=2e-3)
    assert (rows * expected).sum(axis=1).min() >= 0.9999
    if by == "processes with little room":
        assert 8 <= resize.images < for_gpu - 4
    else:
        assert resize.images in (for_gpu, 31)
    assert "resize on the device" in str(clip.profile(images))
    if processes is not None:
        processes.close()


def small_room(room: int) -> str:
    """The program of a decode process whose memory holds so many bytes."""
    start = "from clip_embed._engine.decode_worker import main"
    assert start in decode_processes._CODE
    patched = f"{start}\nfrom clip_embed._engine import decode_worker\ndecode_worker._ROOM = {room}"
    return decode_processes._CODE.replace(start, patched)


def test_where_it_is_opened(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On CUDA, on all devices, for fast pixels; elsewhere there is a reason."""
    asked: list[list[str]] = []
    there = GpuResize(["cpu"], SPEC, POLICY)
    monkeypatch.setattr(_on_gpu, "open_gpu_jpeg", lambda *_: "not here")
    monkeypatch.setattr(_on_gpu, "open_gpu_resize", lambda devices, *_: asked.append(devices) or there)

    def opened(precision: Any) -> OnGpu:  # noqa: ANN401
        clip = ClipEmbedder(clip_folder, device=["cpu", "cpu"], precision=precision, cache=None)
        return clip._through_cache().open_on_gpu()

    assert opened("fp32").resize == "it needs a CUDA device"
    monkeypatch.setattr(_on_gpu, "device_kind", lambda _: "cuda")
    assert opened("fp32") == OnGpu("not here", there)
    assert opened("exact").resize == "its pixels are not the reference's"
    assert asked == [["cpu", "cpu"]]
    assert OnGpu("a", "b").notes("cuda:0,cuda:1") == ["no nvJPEG: a", "no resize on the device: b"]
    assert OnGpu("a", there).notes("cuda") == ["no nvJPEG: a"]


def test_the_profile_knows_the_forward_pass_where_processes_decode(
    photo: Photo, encode: Encode, clip_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images that come from elsewhere are kept for it too."""
    monkeypatch.setattr(decode_processes, "is_gpu", lambda _: True)
    monkeypatch.setattr(decode_processes, "_FEW_CORES", 4)
    clip = ClipEmbedder(clip_folder, device="cpu", precision="fp32", workers=4, cache=None)
    here = DecodeProcesses.decode
    chunks: list[object] = []
    monkeypatch.setattr(
        DecodeProcesses, "decode", lambda *arguments: chunks.append(here(*arguments)) or chunks[-1]
    )
    profile = clip.profile([encode(photo(320, 240, seed), "JPEG") for seed in range(24)])
    assert None not in chunks
    assert profile.forward_alone > 0
    processes = clip._through_cache().processes
    assert processes is not None
    processes.close()
