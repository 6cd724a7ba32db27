"""`profile`: stages, ceilings and a verdict that follow what is really slow."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImageSpec, Profile
from clip_embed._engine import profile as _profile
from clip_embed.testing import FakeModel

UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

PAUSE = 0.004  # seconds that each image waits in the stage that is made slow
COUNT = 24


class SlowForward(FakeModel):
    """A model whose forward pass takes a while for each image."""

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Embed, slowly."""
        time.sleep(PAUSE * len(pixels))
        return super().embed_images(pixels)


class SlowDecode(FakeModel):
    """A model whose own preprocessing takes a while for each image."""

    def __init__(self) -> None:
        super().__init__(size=8)

        def prepare(image: Image.Image) -> UInt8:
            time.sleep(PAUSE)
            return np.asarray(image.resize((8, 8)))

        self.image_spec = ImageSpec(8, prepare=prepare)


@pytest.fixture(scope="module")
def files(photo: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Small JPEG files, no two alike."""
    folder = tmp_path_factory.mktemp("profile")
    paths = [folder / f"{seed}.jpg" for seed in range(COUNT)]
    for seed, path in enumerate(paths):
        photo(64, 48, seed).save(path)
    return paths


def test_a_slow_forward_pass_is_found(files: list[Path]) -> None:
    """Its stage holds at least the time it slept, its ceiling is the lower one, and the verdict says so."""
    profile = ClipEmbedder(SlowForward()).profile(files)
    assert profile.stages["forward"] >= COUNT * PAUSE
    assert max(profile.stages, key=lambda stage: profile.stages[stage]) == "forward"
    assert profile.forward_alone < profile.decode_alone
    assert profile.verdict.split("%")[1].startswith(" of the work is the forward pass. Faster: ")
    assert profile.verdict.startswith("forward-bound: ")


def test_the_forward_pass_counts_once(files: list[Path]) -> None:
    """Neither the first batch nor the run of the forward pass alone counts among the stages."""
    taken: list[float] = []

    class Timed(SlowForward):
        """Keeps how long each call took."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Embed, slowly."""
            start = time.perf_counter()
            rows = super().embed_images(pixels)
            taken.append(time.perf_counter() - start)
            return rows

    profile = ClipEmbedder(Timed(), batch_size=4, workers=1).profile(files)
    assert len(taken) >= 1 + 2 * COUNT / 4  # the first batch, the whole, and the forward pass alone
    assert profile.stages["forward"] < 0.6 * sum(taken)


def test_slow_preprocessing_is_found(files: list[Path]) -> None:
    """A model's own `prepare` counts as resizing, and makes the run decode-bound."""
    profile = ClipEmbedder(SlowDecode()).profile(files)
    assert profile.stages["resize"] >= COUNT * PAUSE
    assert profile.decode_alone < profile.forward_alone
    assert profile.verdict.startswith("decode-bound: ")


def test_slow_files_are_found(files: list[Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Files that come slowly make it read-bound."""
    read = _profile.read_encoded

    def slowly(*arguments: object) -> bytes | None:
        time.sleep(PAUSE)
        return read(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(_profile, "read_encoded", slowly)
    profile = ClipEmbedder(FakeModel()).profile(files)
    assert profile.stages["read"] >= COUNT * PAUSE
    assert profile.verdict.startswith("read-bound: ")


def test_every_image_counts(files: list[Path]) -> None:
    """All stages are there in order, failures are counted, and the stages cover most of the threads' time."""
    profile = ClipEmbedder(SlowForward(), workers=1).profile([*files, b"no image", "no/such/file"])
    assert (profile.images, profile.failed) == (COUNT + 2, 2)
    assert tuple(profile.stages) == _profile.STAGES
    assert all(seconds >= 0 for seconds in profile.stages.values())
    assert 0.5 < sum(profile.stages.values()) / profile.seconds < 2.5


def test_nothing_is_taken_from_the_cache(files: list[Path]) -> None:
    """Images that are known already are decoded and embedded all the same."""
    clip = ClipEmbedder(SlowForward())
    clip.embed_images(files)
    assert clip.profile(files).stages["forward"] >= COUNT * PAUSE


def test_only_failures(files: list[Path]) -> None:
    """Where nothing could be decoded there is no forward pass to measure, and no division by zero."""
    profile = ClipEmbedder(FakeModel()).profile([b"no image"] * 3)
    assert (profile.failed, profile.forward_alone) == (3, 0.0)
    assert "3 images, 3 of them failed" in str(profile)
    assert profile.ceiling == profile.decode_alone


def test_a_preprocessing_of_another_shape(files: list[Path]) -> None:
    """A model's own `prepare` may give a shape that its spec does not say: nothing else is put into it."""
    shapes: set[tuple[int, ...]] = set()

    class Wide(FakeModel):
        """Takes 4 × 16 pixels, whatever its size."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Remember the shape."""
            shapes.add(pixels.shape[1:])
            return super().embed_images(pixels.reshape(len(pixels), 8, 8, 3))

    model = Wide(size=8)
    model.image_spec = ImageSpec(8, prepare=lambda image: np.asarray(image.resize((16, 4))))
    assert ClipEmbedder(model).profile(files).failed == 0
    assert shapes == {(4, 16, 3)}


def test_no_images() -> None:
    """There is nothing to say about nothing."""
    with pytest.raises(ValueError, match="no images to measure with"):
        ClipEmbedder(FakeModel()).profile([])
    with pytest.raises(TypeError, match="wrap it in a list"):
        ClipEmbedder(FakeModel()).profile("photo.jpg")


def profile_of(device: str, decode_alone: float, forward_alone: float, **stages: float) -> Profile:
    """A profile with these figures."""
    seconds = dict.fromkeys(_profile.STAGES, 0.0) | stages
    return Profile(100, 0, 1.0, seconds, decode_alone, forward_alone, device, "fp32", 8, 2)


def test_a_cpu_shares_its_cores_and_a_gpu_does_not() -> None:
    """The ceiling of a CPU is less than either half; that of a GPU is the slower half."""
    assert profile_of("cpu", 100, 100, forward=1.0).ceiling == pytest.approx(50)
    gpu = profile_of("cuda:0", 100, 1000, decode=1.0, forward=9.0)
    assert gpu.ceiling == 100
    assert gpu.verdict.startswith(
        "decode-bound: decoding and resizing give at most 100 images/s, the forward pass 1,000. Faster: "
    )


def test_as_text_and_as_json(files: list[Path]) -> None:
    """The table has a line for each stage and ends with the verdict; JSON has the same figures."""
    profile = ClipEmbedder(SlowForward()).profile(files)
    lines = str(profile).splitlines()
    assert [line.split()[0] for line in lines[3:9]] == list(_profile.STAGES)
    assert lines[-1] == profile.verdict
    facts = json.loads(json.dumps(profile.as_dict()))
    assert facts["images_per_second"] == pytest.approx(COUNT / facts["seconds"])
    assert facts["stages"] == pytest.approx(dict(profile.stages))
