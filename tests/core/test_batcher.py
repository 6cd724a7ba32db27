"""Threads share batches: fewer device calls, the same vectors, an error only where it belongs."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image

from clip_embed import ClipEmbedder, ImageBatchError, ModelError
from clip_embed._engine.batcher import Batcher, Halving, is_out_of_memory
from clip_embed._engine.device import stable_shape, suggest_batch_size
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
UInt8 = npt.NDArray[np.uint8]
Float32 = npt.NDArray[np.float32]

THREADS = 8
TIMEOUT = 20  # seconds until a deadlock becomes a failure


class Busy(FakeModel):
    """Its first call takes until all the other threads wait; `fail` may raise for the rows of a call."""

    def __init__(self, fail: Callable[[int, Sequence[str]], None] = lambda count, texts: None) -> None:
        super().__init__()
        self.clip = ClipEmbedder(self, batch_size=64, workers=1, cache=None, device="cpu")
        self._fail = fail

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Wait for company if it is the first call."""
        self._wait(0)
        return super().embed_images(pixels)

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """Wait for company if it is the first call."""
        self._wait(1)
        self._fail(len(self.calls[1]), texts)
        return super().embed_texts(texts)

    def _wait(self, tower: int) -> None:
        batcher = (self.clip._towers._images, self.clip._towers._texts)[tower]
        deadline = time.monotonic() + TIMEOUT
        while not self.calls[tower] and len(batcher._waiting) < THREADS:
            assert time.monotonic() < deadline
            time.sleep(0.001)


def in_threads(work: Callable[[int], Float32]) -> list[Future[Float32]]:
    """Call `work(0)` to `work(7)` at once, each in a thread of its own; all are done on return."""
    with ThreadPoolExecutor(THREADS) as pool:
        futures = [pool.submit(work, number) for number in range(THREADS)]
        for future in futures:
            future.exception(TIMEOUT)
    return futures


def text_vector(text: str) -> Float32:
    """What one thread gets for the text."""
    return ClipEmbedder(FakeModel()).embed_texts([text])


def test_texts_of_eight_threads_are_two_device_calls() -> None:
    """What waits while the model is busy runs in one batch, and everyone gets their own vectors."""
    model = Busy()
    futures = in_threads(lambda n: model.clip.embed_texts([f"text {n}"]))
    assert model.calls[1] == [1, 7]
    for number, future in enumerate(futures):
        np.testing.assert_array_equal(future.result(), text_vector(f"text {number}"))


def test_one_text_of_eight_threads_is_embedded_once() -> None:
    """Threads that ask for one text at once share its vector."""
    model = Busy()
    for future in in_threads(lambda _: model.clip.embed_texts(["a red car"])):
        np.testing.assert_array_equal(future.result(), text_vector("a red car"))
    assert model.calls[1] == [1, 1]


def test_images_of_eight_threads_are_two_device_calls(photo: Photo) -> None:
    """The same for images, up to the batch size."""
    model, images = Busy(), [photo(24, 16, seed) for seed in range(THREADS)]
    futures = in_threads(lambda n: model.clip.embed_images([images[n]]))
    assert model.calls[0] == [1, 7]
    expected = ClipEmbedder(FakeModel()).embed_images(images)
    for number, future in enumerate(futures):
        np.testing.assert_allclose(future.result()[0], expected[number], atol=1e-6)


def test_company_stays_within_the_batch_size() -> None:
    """Calls share a batch as long as it has room; the rows of one call stay together."""
    seen: list[int] = []

    def run(rows: Sequence[int]) -> list[Float32 | MemoryError]:
        while not seen and len(batcher._waiting) < THREADS:
            time.sleep(0.001)
        seen.append(len(rows))
        return [np.full(1, row, np.float32) for row in rows]

    batcher = Batcher[int](run, threading.Lock())
    futures = in_threads(lambda n: np.concatenate(batcher.embed([n, n, n], batch_size=7)))  # type: ignore[arg-type]
    assert seen == [3, 6, 6, 6, 3]
    assert [future.result().tolist() for future in futures] == [[n, n, n] for n in range(THREADS)]


def test_an_error_reaches_only_its_caller() -> None:
    """Where a shared batch fails, each part runs alone: the other seven get their vectors."""

    def fail(_: int, texts: Sequence[str]) -> None:
        if "text 5" in texts:
            raise LookupError("text 5")

    model = Busy(fail)
    futures = in_threads(lambda n: model.clip.embed_texts([f"text {n}"]))
    assert isinstance(futures[5].exception(), LookupError)
    for number in {*range(THREADS)} - {5}:
        np.testing.assert_array_equal(futures[number].result(), text_vector(f"text {number}"))
    assert model.clip._towers._texts._waiting == []


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit])
def test_an_interrupted_leader_leaves_the_others_a_new_one(error: type[BaseException]) -> None:
    """The thread that ran the shared batch is interrupted; the others are served, and share again."""

    def fail(calls: int, texts: Sequence[str]) -> None:
        if len(texts) == THREADS - 1:
            raise error

    model = Busy(fail)
    futures = in_threads(lambda n: model.clip.embed_texts([f"text {n}"]))
    assert [type(future.exception()) for future in futures if future.exception()] == [error]
    for number, future in enumerate(futures):
        if not future.exception():
            np.testing.assert_array_equal(future.result(), text_vector(f"text {number}"))
    assert model.calls[1] == [1, 6]


@pytest.mark.skipif(not hasattr(signal, "pthread_kill"), reason="needs signals to a thread")
def test_ctrl_c_while_another_thread_has_the_model() -> None:
    """The waiting thread is interrupted at once and takes its call along."""
    signal.siginterrupt(signal.SIGINT, True)  # polars, where a test has imported it, lets locks wait on
    entered, leave = threading.Event(), threading.Event()

    class Held(FakeModel):
        """Its calls take until they are let go."""

        def embed_texts(self, texts: Sequence[str], /) -> Float32:
            """Wait."""
            entered.set()
            assert leave.wait(TIMEOUT)
            return super().embed_texts(texts)

    model = Held()
    clip = ClipEmbedder(model, cache=None)
    waiting = clip._towers._texts._waiting

    def interrupt() -> None:
        while len(waiting) < 2:
            time.sleep(0.001)
        time.sleep(0.5)  # from being listed to waiting; in the moment between Python misses a signal
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGINT)

    with ThreadPoolExecutor(2) as pool:
        other = pool.submit(clip.embed_texts, ["red"])
        assert entered.wait(TIMEOUT)
        pool.submit(interrupt)
        with pytest.raises(KeyboardInterrupt):
            clip.embed_texts(["blue"])
        assert len(waiting) == 1
        leave.set()
        np.testing.assert_array_equal(other.result(TIMEOUT), text_vector("red"))
    assert model.calls[1] == [1]


class Small:
    """A tower for `most` rows at a time; rows of `heavy` fit at no size."""

    def __init__(self, most: int, *heavy: int, error: Exception | None = None) -> None:
        self.sizes: list[int] = []
        self._most = most
        self._heavy = set(heavy)
        self._error = error or MemoryError("no more")

    def __call__(self, rows: Sequence[int]) -> Float32:
        """Row n is [n]."""
        self.sizes.append(len(rows))
        if len(rows) > self._most or self._heavy & set(rows):
            raise self._error
        return np.array(rows, np.float32)[:, None]


OUT_OF_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    RuntimeError("MPS backend out of memory (MPS allocated: 8.00 GB)"),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory"),
    RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
    RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
    RuntimeError("cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_HOST_ALLOCATION_FAILED"),
    RuntimeError("Invalid buffer size: 24.00 GiB"),
    RuntimeError("level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)"),
    RuntimeError("level_zero backend failed with error: 40 (UR_RESULT_ERROR_OUT_OF_RESOURCES)"),
]


@pytest.mark.parametrize("error", OUT_OF_MEMORY, ids=str)
def test_out_of_memory_halves_and_goes_on(error: Exception) -> None:
    """No row is lost, the order stays, and later batches begin with the size that fitted."""
    small = Small(5, error=error)
    run = Halving[int](small)
    for _ in range(2):
        assert [row.tolist() for row in run(range(32)) if not isinstance(row, MemoryError)] == [
            [float(n)] for n in range(32)
        ]
    assert small.sizes == [32, 16, 8] + [4] * 16


def test_a_row_that_never_fits_fails_alone() -> None:
    """Its neighbours have vectors, and the batches are as large afterwards as before."""
    small = Small(16, 5)
    run = Halving[int](small)
    outcomes = run(range(16))
    assert [isinstance(outcome, MemoryError) for outcome in outcomes] == [n == 5 for n in range(16)]
    small.sizes.clear()
    run(range(20, 36))
    assert small.sizes == [16]


def test_a_row_that_fits_once_there_is_room_is_tried_again() -> None:
    """What was kept, or another batch, held the memory: with it gone the row has its vector, alone."""
    small, held = Small(0), [0]

    @contextmanager
    def emptied() -> Iterator[None]:
        held.append(1)
        small._most = 1
        yield
        small._most = 0

    rows = Halving[int](small, emptied)(range(2))
    assert [row.tolist() for row in rows if not isinstance(row, MemoryError)] == [[0.0], [1.0]]
    assert small.sizes == [2, 1, 1, 1]  # in company, alone, in company, alone
    assert held == [0, 1, 1]


@pytest.mark.parametrize("error", [RuntimeError("shape mismatch"), ModelError("no"), ValueError("memory")])
def test_other_errors_are_not_taken_for_a_lack_of_memory(error: Exception) -> None:
    """They are raised as they are."""
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)) as caught:
        Halving[int](Small(0, error=error))(range(4))
    assert caught.value is error


def test_out_of_memory_on_one_image_and_one_text(photo: Photo) -> None:
    """An image is a failure that may be tried again; a text is a ModelError that names it."""

    class Full(FakeModel):
        """Has no memory left."""

        def embed_images(self, pixels: UInt8, /) -> Float32:
            """Fail."""
            raise MemoryError("8 bytes short")

        def embed_texts(self, texts: Sequence[str], /) -> Float32:
            """Fail."""
            raise MemoryError("8 bytes short")

    clip = ClipEmbedder(Full(), batch_size=2)
    with pytest.raises(ImageBatchError, match="out of memory on it alone: 8 bytes short") as caught:
        clip.embed_images([photo(8, 8, seed) for seed in range(3)])
    assert [(failure.index, failure.retryable) for failure in caught.value.failures] == [
        (0, True),
        (1, True),
        (2, True),
    ]
    with pytest.raises(ModelError, match="out of memory on the text 'red' alone"):
        clip.embed_texts(["red"])


def test_shapes_and_batch_sizes_of_devices(monkeypatch: pytest.MonkeyPatch) -> None:
    """A GPU gets powers of two, as many as its free memory holds; a CPU exactly the rows there are."""
    assert [stable_shape(rows, 64, "cpu") for rows in (1, 5, 64)] == [1, 5, 64]
    assert [stable_shape(rows, 48, "cuda:0") for rows in (1, 5, 33, 48, 50)] == [1, 8, 48, 48, 50]
    assert suggest_batch_size("cpu") == 8
    for free, size in ((80 << 30, 256), (6 << 30, 64), (1 << 30, 16), (0, 8)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 80 << 30))
        assert suggest_batch_size("cuda") == size
    assert suggest_batch_size("mps") == 64


def test_a_padded_batch_gives_the_rows_asked_for(
    photo: Photo, monkeypatch: pytest.MonkeyPatch, fake: FakeModel
) -> None:
    """On a GPU five images run as eight; five vectors come back, the same."""
    images = [photo(24, 16, seed) for seed in range(5)]
    expected = ClipEmbedder(FakeModel(), batch_size=16).embed_images(images)
    monkeypatch.setattr("clip_embed._engine.towers.resolve_device", lambda _: "cuda")
    clip = ClipEmbedder(fake, batch_size=16)
    monkeypatch.setattr(clip._towers, "_pad", True)  # as for a model that is given by name
    np.testing.assert_allclose(clip.embed_images(images), expected, atol=1e-6)
    assert fake.calls[0] == [8]
