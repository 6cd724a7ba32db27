"""Forks, signals, interpreter exit and threads, each in a process of its own: nothing hangs."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]

TIMEOUT = 90  # seconds until a hang becomes a failure
needs_fork = pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
needs_signals = pytest.mark.skipif(sys.platform == "win32", reason="needs signals that can be handled")

BEGIN = """
import io, os, sys, threading, time, traceback
import numpy as np
from PIL import Image
from clip_embed import ClipEmbedder, EmbeddingCache, ModelForked
from clip_embed.testing import FakeModel

def png(seed):
    noise = np.random.default_rng(seed).integers(0, 256, (60, 80, 3), np.uint8)
    Image.fromarray(noise).save(buffer := io.BytesIO(), "PNG")
    return buffer.getvalue()

png(0)  # which imports what Pillow needs: a fork during an import of the user's own is not ours to mend

def forked(work):
    # Run in a forked child; return its exit code. It ends as those of multiprocessing do: what the libraries
    # below Python do at the end of a program hung now and then where torch had computed before the fork.
    if (child := os.fork()) == 0:
        try:
            code = work() or 0
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        os._exit(code)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def refused(*calls):
    # Whether each of the calls raises ModelForked.
    for call in calls:
        try:
            call()
        except ModelForked as error:
            assert "spawn" in str(error) or "stream" in str(error)
        else:
            return False
    return True
"""


def run(code: str, *arguments: object, timeout: float = TIMEOUT) -> subprocess.CompletedProcess[str]:
    """Run a program to its end; it must say nothing on stderr but what torch's libraries say."""
    command = [sys.executable, "-W", "ignore", "-c", BEGIN + code, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=timeout)  # noqa: S603
    assert "Traceback" not in done.stderr, done.stderr
    assert "Exception" not in done.stderr, done.stderr
    return done


# --- forks ---------------------------------------------------------------------------------------

AFTER_USE = """
images = [png(n) for n in range(20)]
clip = ClipEmbedder(sys.argv[1], device="cpu", cache=None)
clip.embed_images(images)

def child():
    assert refused(lambda: clip.embed_images(images), lambda: clip.embed_texts(["red"]), clip.load)
    fresh = ClipEmbedder(sys.argv[1], device="cpu", cache=None)
    assert refused(lambda: fresh.embed_images(images), lambda: fresh.embed_texts(["red"]), fresh.load)

print([forked(child) for _ in range(2)], clip.embed_images(images[:1]).shape)
"""


@needs_fork
def test_a_fork_after_use(clip_folder: Path) -> None:
    """In the child a loaded model is refused, and so is one made there: torch would hang now and then."""
    assert run(AFTER_USE, clip_folder).stdout == "[0, 0] (1, 48)\n"


AFTER_OTHERS_USE = """
import sentence_transformers, torch
torch.set_num_threads(2)
if sys.argv[2] == "computed":
    (torch.randn(2000, 2000) @ torch.randn(2000, 2000)).sum()
clip = ClipEmbedder(sys.argv[1], device="cpu", cache=None)
print(clip.dim, bool(clip.space), clip.recipe.split()[1], flush=True)  # else each child says it again
images = [png(n) for n in range(20)]
big = np.random.default_rng(0).integers(0, 256, (3, 224, 224, 3), np.uint8)

def child():
    if sys.argv[2] == "computed" and refused(lambda: clip.embed_images(images), clip.load):
        return
    assert clip.embed_images(images).shape == (20, 48)
    assert clip.embed_images(big).shape == (3, 48)
    assert clip.embed_texts(["a text long enough for several threads " * 3] * 9).shape == (9, 48)

print([forked(child) for _ in range(3)])
"""


@needs_fork
@pytest.mark.parametrize("others", ["imported", "computed"])
def test_a_fork_before_the_model_is_loaded(others: str, clip_folder: Path) -> None:
    """An embedder that was asked for its space only works in each child, or says that torch was used."""
    assert run(AFTER_OTHERS_USE, clip_folder, others).stdout == "48 True pixels=fast\n[0, 0, 0]\n"


AMID_LOADING = """
loading, go_on = threading.Event(), threading.Event()

class Slow(FakeModel):
    def load(self):
        loading.set()
        go_on.wait()

clip = ClipEmbedder(Slow())
thread = threading.Thread(target=clip.load)
thread.start()
loading.wait()
other = ClipEmbedder(FakeModel())
calls = clip.load, lambda: clip.embed_texts(["a"]), lambda: other.embed_texts(["a"])
code = forked(lambda: not refused(*calls))
go_on.set()
thread.join()
print(code, clip.embed_texts(["a"]).shape, other.embed_texts(["a"]).shape)
"""


@needs_fork
def test_a_fork_while_another_thread_loads() -> None:
    """Imports and locks may be half done in the child, so it is told; the parent goes on."""
    assert run(AMID_LOADING).stdout == "0 (1, 16) (1, 16)\n"


AMID_EMBEDDING = """
path = sys.argv[1]
shared = EmbeddingCache(path, memory_bytes=100_000)
ended = threading.Event()

def keep_busy(number):
    clip, round = ClipEmbedder(FakeModel(), batch_size=2, workers=2, cache=shared), 0
    while not ended.is_set():
        round += 1
        clip.embed_images([png(1000 * number + 10 * round + n) for n in range(5)])
        clip.embed_texts([f"{number} {round} {n}" for n in range(50)])

threads = [threading.Thread(target=keep_busy, args=(number,)) for number in range(3)]
for thread in threads:
    thread.start()
waiting = ClipEmbedder(FakeModel(), cache=shared)
texts = [f"child {n}" for n in range(300)]
expected = ClipEmbedder(FakeModel(), cache=None).embed_texts(texts)

def child():
    np.testing.assert_array_equal(waiting.embed_texts(texts), expected)
    assert ClipEmbedder(FakeModel(), cache=shared, workers=2).embed_images([png(7), png(8)]).shape == (2, 16)
    assert len(shared) >= 300

codes = []
for _ in range(20):
    time.sleep(0.01)
    codes.append(forked(child))
ended.set()
for thread in threads:
    thread.join()
shared.close()
clip = ClipEmbedder(model := FakeModel(), cache=path)
np.testing.assert_array_equal(clip.embed_texts(texts), expected)
print(set(codes), model.calls[1])
"""


@needs_fork
def test_forks_while_threads_embed_and_write(tmp_path: Path) -> None:
    """Twenty children of a busy process use the same cache on disk; every lock is free, nothing is lost."""
    done = run(AMID_EMBEDDING, tmp_path / "photos.cache")
    assert done.stdout == "{0} []\n"
    assert done.stderr == ""


AMID_STREAM = """
clip = ClipEmbedder(FakeModel(), batch_size=2, workers=2)
stream = clip.stream_images(png(n) for n in range(60))
seen = len(next(stream).indices)

def child():
    assert refused(lambda: next(stream), lambda: clip.stream_images([]))
    stream.close()
    assert ClipEmbedder(FakeModel()).embed_images([png(1)]).shape == (1, 16)

def leaving():
    pass  # with the stream as it is

codes = [forked(child), forked(leaving)]
seen += sum(len(batch.indices) for batch in stream)
print(codes, seen, [each.name for each in threading.enumerate()])
"""


@needs_fork
def test_a_fork_in_mid_stream() -> None:
    """The child is told that the stream is not its own, and ends; the parent's stream goes on."""
    assert run(AMID_STREAM).stdout == "[0, 0] 60 ['MainThread']\n"


POOL = """
import multiprocessing, sentence_transformers
clip = ClipEmbedder(sys.argv[1], device="cpu", cache=None)
def work(n):
    return clip.embed_images([png(n)])[0]
with multiprocessing.get_context("fork").Pool(3) as pool:
    got = np.stack(pool.map(work, range(9)))
print(np.abs(got - np.stack([work(n) for n in range(9)])).max() < 1e-5)
"""


@needs_fork
def test_a_pool_of_forked_workers(clip_folder: Path) -> None:
    """One embedder, not loaded yet, in three workers of multiprocessing gives one process's vectors."""
    assert run(POOL, clip_folder).stdout == "True\n"


# --- the end of the interpreter ---------------------------------------------------------------------


@pytest.mark.parametrize("model", ["FakeModel()", "sys.argv[1]"])
def test_the_end_with_an_unfinished_stream(model: str, clip_folder: Path, tmp_path: Path) -> None:
    """The program ends without a word, and what was embedded is in the file."""
    code = f"""
cache = EmbeddingCache({str(tmp_path / "photos.cache")!r})
clip = ClipEmbedder({model}, device="cpu", batch_size=4, cache=cache)
stream = clip.stream_images(png(n) for n in range(10_000))
print(len(next(stream).indices) > 0)
"""
    done = run(code, clip_folder)
    assert (done.returncode, done.stdout) == (0, "True\n")
    assert run(f"print(len(EmbeddingCache({str(tmp_path / 'photos.cache')!r})) > 0)").stdout == "True\n"


@pytest.mark.parametrize("daemon", [False, True])
@pytest.mark.parametrize("model", ["FakeModel()", "sys.argv[1]"])
def test_the_end_with_live_threads(daemon: bool, model: str, clip_folder: Path) -> None:
    """A thread of the user's finishes after the main thread; a daemon is left where it is; no traceback."""
    code = f"""
clip = ClipEmbedder({model}, device="cpu", batch_size=4, workers=2, cache=None)
clip.load()  # some libraries cannot be imported any more once the main thread has ended
begun = threading.Event()
def images():
    for n in range({5000 if daemon else 100}):
        begun.set()
        yield png(n)
def work():
    print(len(clip.embed_images(images())))
threading.Thread(target=work, daemon={daemon}).start()
begun.wait()
"""
    done = run(code, clip_folder)
    assert (done.returncode, done.stdout) == (0, "" if daemon else "100\n")


# --- signals -----------------------------------------------------------------------------------------


def test_the_library_installs_no_handlers() -> None:
    """Importing and embedding leave the handlers of signals as they were."""
    code = """
import signal
before = [signal.getsignal(number) for number in sorted(signal.valid_signals())]
ClipEmbedder(FakeModel()).embed_images([png(1)])
print(before == [signal.getsignal(number) for number in sorted(signal.valid_signals())])
"""
    assert run(code).stdout == "True\n"


ENDLESS = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests in the background inherit that it is ignored
cache = EmbeddingCache(sys.argv[2])
model = FakeModel() if sys.argv[1] == "fake" else sys.argv[1]
clip = ClipEmbedder(model, device="cpu", batch_size=4, cache=cache)
clip.load()
def images():
    for n in range(100_000):
        if n == 200:  # more than are under way at once, so some are done
            print("begun", flush=True)
        yield png(n)
try:
    clip.embed_images(images())
except KeyboardInterrupt:
    names = [each.name for each in threading.enumerate()]
    cache.close()
    print(len(cache) > 0, names, flush=True)
    sys.exit(130)
"""


@needs_signals
@pytest.mark.parametrize("turn", range(3))
@pytest.mark.parametrize("model", ["fake", "tiny"])
def test_an_interrupt_at_any_moment(model: str, turn: int, clip_folder: Path, tmp_path: Path) -> None:
    """Ctrl-C ends a call with KeyboardInterrupt, no thread is left, and what was embedded is kept."""
    name = "fake" if model == "fake" else str(clip_folder)
    process = begin([sys.executable, "-W", "ignore", "-c", BEGIN + ENDLESS, name, str(tmp_path / "c.cache")])
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(random.uniform(0, 0.5))  # noqa: S311
    process.send_signal(signal.SIGINT)
    out, errors = process.communicate(timeout=TIMEOUT)
    assert (process.returncode, out) == (130, "True ['MainThread']\n"), errors
    assert "Traceback" not in errors


@needs_signals
def test_sigterm_ends_a_program_as_ever(tmp_path: Path) -> None:
    """Without a handler it ends at once, and the file of the cache stays sound and of use."""
    file = tmp_path / "c.cache"
    process = begin([sys.executable, "-W", "ignore", "-c", BEGIN + ENDLESS, "fake", str(file)])
    assert process.stdout is not None
    assert process.stdout.readline() == "begun\n"
    time.sleep(1.5)  # rows are committed after a second
    process.terminate()
    process.communicate(timeout=TIMEOUT)
    assert process.returncode == -signal.SIGTERM
    code = f"cache = EmbeddingCache({str(file)!r})\nprint(len(cache) > 0)"
    done = run(code)
    assert (done.stdout, done.stderr) == ("True\n", "")


def begin(command: list[str], **variables: str) -> subprocess.Popen[str]:
    """Start a program, killed at the latest when the tests end."""
    environment = {**os.environ, **variables}
    return subprocess.Popen(  # noqa: S603
        command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


@pytest.fixture(scope="module")
def many_photos(tmp_path_factory: pytest.TempPathFactory, photo: Photo, encode: Encode) -> Path:
    """A folder of 1,500 photos, no two alike, that take a while to decode."""
    folder = tmp_path_factory.mktemp("many")
    content = encode(photo(900, 700, 1).quantize(32))
    for number in range(1500):
        (folder / f"{number:04}.png").write_bytes(content + number.to_bytes(4, "big"))
    return folder


SEARCH = (
    "import sys; from clip_embed.cli import run; sys.argv[0] = 'clip-embed'; "
    "print('begun', file=sys.stderr, flush=True); run()"
)


@needs_signals
@pytest.mark.parametrize("moment", ["before", "loading", "reading"])
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_ends_the_command(
    number: signal.Signals, code: int, moment: str, many_photos: Path, clip_folder: Path, tmp_path: Path
) -> None:
    """One line and its exit code at any moment; no partial file, and what was embedded is kept."""
    command = [sys.executable, "-W", "ignore", "-c", SEARCH, "search", str(many_photos), "a car"]
    process = begin([*command, "--model", str(clip_folder)], CLIP_EMBED_CACHE=str(tmp_path))
    assert process.stderr is not None
    assert process.stderr.readline() == "begun\n"
    if moment != "before":
        assert "Loading" in process.stderr.readline()
    if moment == "reading":
        while "Reading" not in process.stderr.readline():
            pass
        time.sleep(2)
    time.sleep(random.uniform(0, 1))  # noqa: S311
    process.send_signal(number)
    out, errors = process.communicate(timeout=TIMEOUT)
    silent = moment == "before" and process.returncode == -number  # before the command began, or as it ended
    assert process.returncode == code or silent, errors
    assert "Traceback" not in errors
    word = "interrupted" if number == signal.SIGINT else "terminated"
    assert silent or errors.splitlines()[-1] == f"clip-embed: {word}", errors
    assert out == ""
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert all(path.suffix == ".parquet" or path.parent.name == "digests" for path in files)
    assert not any(path.suffix.removeprefix(".").isdigit() for path in files)
    if moment == "reading":
        assert any(path.suffix == ".parquet" for path in files)


# --- several embedders -----------------------------------------------------------------------------


def test_several_embedders_side_by_side(
    clip_folder: Path, photo: Photo, encode: Encode, tmp_path: Path
) -> None:
    """Five embedders of three spaces in ten threads, over one cache: everyone gets their own vectors."""
    images, texts = [encode(photo(60, 40, seed)) for seed in range(16)], ["red", "a dog", "blue"]
    makers: list[Callable[..., ClipEmbedder]] = [
        lambda **o: ClipEmbedder(FakeModel(), **o),
        lambda **o: ClipEmbedder(FakeModel(dim=8), **o),
        lambda **o: ClipEmbedder(clip_folder, device="cpu", precision="fp32", **o),
        lambda **o: ClipEmbedder(clip_folder, device="cpu", precision="exact", **o),
        lambda **o: ClipEmbedder(FakeModel(), precision="exact", **o),
    ]
    alone = [make(cache=None) for make in makers]
    expected = [(clip.embed_images(images), clip.embed_texts(texts)) for clip in alone]
    together = [make(cache=tmp_path / "shared.cache", batch_size=3, workers=2) for make in makers]
    start = threading.Barrier(10)

    def work(thread: int) -> None:
        start.wait()
        for _ in range(3):
            vectors = together[thread % 5].embed_images(images)
            bound = 1e-5 if thread % 5 in (0, 1, 3, 4) else 0.05  # the exact ones may serve the fast
            np.testing.assert_allclose(vectors, expected[thread % 5][0], atol=bound)
            np.testing.assert_allclose(
                together[thread % 5].embed_texts(texts), expected[thread % 5][1], atol=1e-5
            )

    with ThreadPoolExecutor(10) as pool:
        list(pool.map(work, range(10)))
