"""Decode processes: the same outcomes as threads, and none of them left behind, whatever happens."""

from __future__ import annotations

import gc
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, EmbeddedBatch
from clip_embed._engine import decode_processes, pipeline
from clip_embed._engine.decode_processes import Chunk, DecodeProcesses
from clip_embed._images.source import Encoded
from clip_embed.errors import ImageError

Float32 = npt.NDArray[np.float32]
COUNT = 60
TIMEOUT = 20

pytestmark = pytest.mark.skipif(not hasattr(os, "memfd_create"), reason="shared memory without a name: Linux")


@pytest.fixture(autouse=True, scope="module")
def _as_on_a_large_gpu_machine() -> Iterator[None]:
    """Let a CPU be fed like a GPU, by one process of four threads, from the first image on."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(decode_processes, "is_gpu", lambda _: True)
        patch.setattr(decode_processes, "_FEW_CORES", 4)
        patch.setattr(decode_processes, "_START_AFTER", 0)
        patch.setattr(decode_processes, "_THREADS", 4)
        patch.setattr(pipeline.ImageStream, "_rhythm", lambda _: (pipeline.AT_ONCE, 100))
        yield


@pytest.fixture(scope="module")
def files(photo: Callable[..., Image.Image], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """JPEG files, no two alike; one is cut short, one is no image, one is not there."""
    folder = tmp_path_factory.mktemp("photos")
    paths = [folder / f"{seed:02}.jpg" for seed in range(COUNT)]
    for seed, path in enumerate(paths):
        photo(640, 480, seed).save(path, quality=90)
    paths[7].write_bytes(paths[7].read_bytes()[:2000])
    paths[20].write_bytes(b"no image")
    paths[33].unlink()
    return paths


@pytest.fixture(scope="module")
def expected(clip_folder: Path, files: list[Path]) -> EmbeddedBatch:
    """What threads make of them."""
    clip = ClipEmbedder(clip_folder, device="cpu", precision="fp32", cache=None, workers=2)
    assert clip._through_cache().processes is None
    return joined(clip, files)


@pytest.fixture(scope="module")
def clip(clip_folder: Path) -> Iterator[ClipEmbedder]:
    """An embedder whose decode process is ready."""
    yield (clip := ready(clip_folder))
    processes(clip).close()


def ready(folder: Path, cache: Any = None) -> ClipEmbedder:  # noqa: ANN401
    """Open an embedder and wait for its process."""
    clip = ClipEmbedder(folder, device="cpu", precision="fp32", workers=4, cache=cache)
    clip.load()
    processes(clip).wait(60)
    return clip


def processes(clip: ClipEmbedder) -> DecodeProcesses:
    """The processes of an embedder."""
    found = clip._through_cache().processes
    assert found is not None
    return found


def ids(clip: ClipEmbedder) -> list[int]:
    """Their ids."""
    return [process.pid for process in processes(clip)._state.processes]


def joined(clip: ClipEmbedder, images: list[Any]) -> EmbeddedBatch:
    """Embed and put the batches together."""
    with clip.stream_images([(number, image) for number, image in enumerate(images)]) as stream:
        batches = list(stream)
    return EmbeddedBatch(
        np.concatenate([batch.indices for batch in batches]),
        np.concatenate([batch.vectors for batch in batches]),
        tuple(failure for batch in batches for failure in batch.failures),
        tuple(key for batch in batches for key in batch.keys),
    )


def assert_same(got: EmbeddedBatch, expected: EmbeddedBatch) -> None:
    """The same rows, keys and failures in the same order."""
    assert got.indices.tolist() == list(got.keys) == expected.indices.tolist()
    np.testing.assert_allclose(got.vectors, expected.vectors, atol=1e-5)
    assert [(each.index, each.reason, each.retryable, each.key) for each in got.failures] == [
        (each.index, each.reason, each.retryable, each.key) for each in expected.failures
    ]


@pytest.fixture
def chunks(monkeypatch: pytest.MonkeyPatch) -> list[Chunk | None]:
    """What the processes gave for each chunk; None where threads had to."""
    seen: list[Chunk | None] = []
    decode = DecodeProcesses.decode

    def spy(self: DecodeProcesses, *arguments: Any) -> Chunk | None:  # noqa: ANN401
        seen.append(decode(self, *arguments))
        return seen[-1]

    monkeypatch.setattr(DecodeProcesses, "decode", spy)
    return seen


def fetched(path: Path) -> bytes:
    """What an integration reads."""
    if not path.exists():
        raise ImageError("no such file", retryable=True)
    return path.read_bytes()


def gone(process: int) -> bool:
    """Whether a process has ended; one that nobody has waited for counts as ended."""
    try:
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] in "ZX"
    except FileNotFoundError:
        return True


def assert_gone(pids: list[int]) -> None:
    """All of them end within the time."""
    deadline = time.monotonic() + TIMEOUT
    assert pids
    while not all(map(gone, pids)):
        assert time.monotonic() < deadline, f"still there: {pids}"
        time.sleep(0.05)


def test_paths_bytes_and_the_rest(
    clip: ClipEmbedder, files: list[Path], expected: EmbeddedBatch, chunks: list[Chunk | None]
) -> None:
    """Vectors, keys, order and failures are those of threads, whatever names the image."""
    assert_same(joined(clip, files), expected)
    assert len([chunk for chunk in chunks if chunk]) == 4  # 60 images in chunks of 16
    mixed: list[Any] = [str(path) for path in files]
    for place in range(0, COUNT, 4):
        if place not in (7, 20, 33):
            mixed[place] = files[place].read_bytes()
            mixed[place + 1] = {"path": mixed[place + 1], "label": object()}
            mixed[place + 2] = {"bytes": files[place + 2].read_bytes() if place != 18 else b"no image"}
    assert_same(joined(clip, mixed), expected)
    mixed[40] = Image.open(files[40])
    mixed[41] = np.asarray(Image.open(files[41]))
    assert_same(joined(clip, mixed), expected)
    assert [chunk for chunk in chunks if chunk is None] == [None]  # the chunk of those two
    assert sum(all(chunk.seconds) for chunk in chunks if chunk) == 11


def test_what_is_known_is_not_decoded_and_nothing_stays(
    clip_folder: Path, files: list[Path], expected: EmbeddedBatch, chunks: list[Chunk | None]
) -> None:
    """Vectors and failures come from the cache the second time; the processes end with their embedder."""
    clip = ready(clip_folder, "memory")
    assert_same(joined(clip, files), expected)
    first = len(chunks)
    again: list[Any] = [Encoded(partial(fetched, path), str(path)) for path in files]
    assert_same(joined(clip, again), expected)
    assert len(chunks) == 2 * first
    seconds = [chunk for chunk in chunks[first:] if chunk]  # none for the chunk of what cannot be fetched
    assert len(seconds) == 3
    assert not any(isinstance(pixels, np.ndarray) for chunk in seconds for pixels in chunk.pixels)
    assert [len(each.digest) for each in again].count(32) == COUNT - 1
    pids = ids(clip)
    chunks.clear()  # what they hold of failures leads to the embedder
    seconds.clear()
    del clip
    gc.collect()  # its process ends with the embedder, and is waited for
    assert_gone(pids)
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)


def test_a_fetch_that_fails(clip: ClipEmbedder, files: list[Path], chunks: list[Chunk | None]) -> None:
    """The others of its chunk are not lost, and nothing is fetched that was fetched before."""

    def fail() -> bytes:
        raise ImageError("the bucket is closed", retryable=True)

    images: list[Any] = [Encoded(path.read_bytes, str(path)) for path in files[:7]]
    images[3] = Encoded(fail, "four")
    got = joined(clip, images)
    assert [(each.index, each.reason) for each in got.failures] == [(3, "the bucket is closed")]
    assert got.indices.tolist() == [0, 1, 2, 4, 5, 6]
    assert chunks == [None]


def test_relative_paths_follow_the_folder(
    clip: ClipEmbedder, files: list[Path], expected: EmbeddedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that is there already looks where the program is by now."""
    monkeypatch.chdir(files[0].parent)
    assert_same(joined(clip, [path.name for path in files]), expected)


def test_a_killed_process_is_done_without(
    clip_folder: Path,
    files: list[Path],
    expected: EmbeddedBatch,
    chunks: list[Chunk | None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """What it was asked for is decoded here, with a warning; nothing is lost and nothing waits."""
    clip = ready(clip_folder)
    os.kill(ids(clip)[0], signal.SIGKILL)
    assert_same(joined(clip, files), expected)
    assert not any(chunks)
    assert any("a decode process is gone" in record.message for record in caplog.records)
    caplog.clear()
    assert_same(joined(clip, files), expected)
    assert [record for record in caplog.records if record.levelno == logging.WARNING] == []


def test_one_that_cannot_be_started(
    clip_folder: Path, files: list[Path], expected: EmbeddedBatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without another Python, or with one that ends at once, threads do it all."""
    for executable in ("/no/such/python", "/bin/false"):
        monkeypatch.setattr(sys, "executable", executable)
        assert_same(joined(ready(clip_folder), files), expected)


_PROGRAM = """
import itertools, sys
from clip_embed import ClipEmbedder
from clip_embed._engine import decode_processes
decode_processes.is_gpu = lambda _: True
decode_processes._FEW_CORES, decode_processes._START_AFTER = 4, 0
clip = ClipEmbedder(sys.argv[1], device="cpu", precision="fp32", workers=4, cache=None)
clip.load()
processes = clip._through_cache().processes
processes.wait(60)
print(*(each.pid for each in processes._state.processes), flush=True)
with clip.stream_images(itertools.cycle([sys.argv[2]])) as stream:
    for number, batch in enumerate(stream):
        if number == 3:
            print("running", flush=True)
"""


@pytest.mark.parametrize(
    "name", ["SIGKILL", *(pytest.param(name, marks=pytest.mark.stress) for name in ("SIGTERM", "SIGINT"))]
)
def test_a_program_that_is_ended_leaves_no_process(name: str, clip_folder: Path, files: list[Path]) -> None:
    """In the middle of a stream: killed, ended, or by Ctrl-C, which reaches all of its process group."""
    with subprocess.Popen(  # noqa: S603 - this Python, with code of ours
        [sys.executable, "-c", _PROGRAM, str(clip_folder), str(files[0])],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as program:
        assert program.stdout is not None
        pids = [int(pid) for pid in program.stdout.readline().split()]
        assert program.stdout.readline() == "running\n"
        os.killpg(program.pid, getattr(signal, name))
        _, errors = program.communicate(timeout=TIMEOUT)
    assert_gone(pids)
    assert program.returncode in (-getattr(signal, name), 1)
    assert errors.count("Traceback") == (name == "SIGINT")  # that of the program, none of its processes
