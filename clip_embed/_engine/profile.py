"""Measures where the time from images to vectors goes, stage by stage."""

from __future__ import annotations

import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from typing import cast

import numpy as np

from clip_embed._engine.decode_processes import DecodeProcesses
from clip_embed._engine.pipeline import ImageStream
from clip_embed._engine.prepared import Decoded, Prepare, Prepared, beside, in_halves, one_by_one
from clip_embed._engine.towers import Towers
from clip_embed._engine.verdict import STAGES, Profile
from clip_embed._images.gpu_jpeg import GpuJpeg
from clip_embed._images.on_gpu import OnGpu
from clip_embed._images.pixels import Stored, decode_for, fit
from clip_embed._images.source import read_encoded
from clip_embed._types import Float32, ImagePolicy, Model, UInt8
from clip_embed.errors import ImageError

_START = 60  # seconds that decode processes may take to start
_KEPT = 256  # decoded images that the forward pass alone is measured with; more are taken from them again


class _Stopwatch:
    """Seconds by stage; each thread counts its own."""

    def __init__(self) -> None:
        self._seconds: defaultdict[tuple[int, str], float] = defaultdict(float)

    @contextmanager
    def stage(self, name: str) -> Generator[None]:
        """Count the time of the block for a stage, less what is counted for others inside it."""
        start, inside = time.perf_counter(), self.own()
        try:
            yield
        finally:
            self.add(name, time.perf_counter() - start - (self.own() - inside))

    def add(self, name: str, seconds: float) -> None:
        """Count seconds of the calling thread for a stage."""
        self._seconds[threading.get_ident(), name] += seconds

    def own(self) -> float:
        """Return what the calling thread has counted so far."""
        return sum(self._seconds.get((threading.get_ident(), name), 0.0) for name in STAGES)

    def stages(self) -> dict[str, float]:
        """Return the seconds of all threads by stage, once they are at rest."""
        return {
            stage: sum(seconds for (_, name), seconds in self._seconds.items() if name == stage)
            for stage in STAGES
        }


class _TimedModel:
    """A model whose image tower is timed."""

    def __init__(self, model: Model, watch: _Stopwatch) -> None:
        self._model = model
        self._watch = watch
        self.dim, self.space, self.image_spec = model.dim, model.space, model.image_spec
        self.parallel = getattr(model, "parallel", False)
        self.lanes: int = getattr(model, "lanes", 0)
        self.emptied = getattr(model, "emptied", nullcontext)
        self.embed_texts = model.embed_texts

    def embed_images(self, pixels: UInt8, /) -> Float32:
        with self._watch.stage("forward"):
            return self._model.embed_images(pixels)


@dataclass(frozen=True, slots=True)
class Profiler:
    """Measures a model that is loaded, on the settings of its embedder."""

    model: Model
    policy: ImagePolicy
    device: str
    precision: str
    batch_size: int
    workers: int
    pad: bool
    with_torch: bool
    on_gpu: OnGpu
    """What a GPU does of decoding and resizing."""
    processes: DecodeProcesses | None = None

    def run(self, images: Iterable[object]) -> Profile:
        """Embed the images three times over: whole, without the forward pass, and without decoding.

        Raises ValueError where there are none.
        """
        sources = list(images)
        if not sources:
            raise ValueError("there are no images to measure with")
        watch, idle = _Stopwatch(), _Stopwatch()
        kept: list[UInt8] = []
        towers, timed = self._towers(self.model), self._towers(_TimedModel(self.model, watch))
        if self.processes is not None:
            self.processes.wait(_START)
        # A first batch prepares what would else be prepared while it is measured.
        first = sources[: self.batch_size]
        self._time(first, self._prepare(idle), self._forward(towers, idle), towers)
        forward, busy = self._forward(timed, watch), time.thread_time()
        seconds, failed = self._time(sources, _keeping(self._prepare(watch), kept), forward, timed)
        watch.add("hand-over", max(0.0, time.thread_time() - busy - watch.own()))
        nothing: Float32 = np.zeros(self.model.dim, np.float32)
        decoding, _ = self._time(
            sources, self._prepare(idle), lambda batch, _: [nothing] * len(batch), towers
        )
        forwarding, count = 0.0, len(sources) - failed
        if kept:
            again = islice(cycle(kept), count)
            forwarding, _ = self._time(again, one_by_one(_decoded), self._forward(towers, idle), towers)
        return Profile(
            images=len(sources),
            failed=failed,
            seconds=seconds,
            stages=watch.stages(),
            decode_alone=len(sources) / decoding,
            forward_alone=count / forwarding if forwarding else 0.0,
            device=self.device,
            precision=self.precision,
            batch_size=self.batch_size,
            workers=self.workers,
            processes=self.processes.count if self.processes else 0,
            gpu_jpeg=isinstance(self.on_gpu.jpeg, GpuJpeg),
            gpu_resize=self.on_gpu.resizer is not None,
            notes=(*getattr(self.model, "notes", ()), *self.on_gpu.notes(self.device)),
        )

    def _towers(self, model: Model) -> Towers:
        return Towers(lambda: model, device=self.device, batch_size=self.batch_size, pad=self.pad)

    def _prepare(self, watch: _Stopwatch) -> Prepare:
        spec, policy, exact = self.model.image_spec, self.policy, self.precision == "exact"
        resizer = self.on_gpu.resizer

        def decode(source: object) -> Prepared | Decoded:
            with watch.stage("read"):
                encoded = read_encoded(source, policy)
            with watch.stage("decode"):
                decoded = decode_for(source, encoded, spec, policy, exact=exact)
            if resizer is not None and resizer.takes(decoded):
                return Decoded(b"", decoded)
            with watch.stage("resize"):
                pixels = fit(decoded, spec, policy, with_torch=self.with_torch)
                return Prepared(b"", np.ascontiguousarray(pixels))

        def resize(decoded: Sequence[Stored]) -> list[UInt8]:
            assert resizer is not None  # noqa: S101 - for the type checkers: else nothing is left for it
            with watch.stage("resize"):
                return resizer.fit(decoded)

        here = in_halves(decode, resize)

        def prepare_all(sources: Sequence[object]) -> list[Prepared | ImageError]:
            chunk = None
            if self.processes is not None:
                chunk = self.processes.decode(sources, lambda _: None, resizer)
            if chunk is None:
                return here(sources)
            for stage, seconds in zip(STAGES, chunk.seconds, strict=False):  # the first three
                watch.add(stage, seconds)
            return [
                ImageError(pixels[0], retryable=pixels[1])
                if isinstance(pixels, tuple)
                else Prepared(b"", pixels)
                for pixels in chunk.pixels
            ]

        if isinstance(self.on_gpu.jpeg, str):
            return prepare_all
        return beside(self.workers, prepare_all, partial(self._by_gpu_jpeg, self.on_gpu.jpeg, watch, here))

    def _by_gpu_jpeg(
        self, gpu_jpeg: GpuJpeg, watch: _Stopwatch, here: Prepare, sources: Sequence[object]
    ) -> list[Prepared | ImageError]:
        """Prepare on the GPU a chunk that no core is free for, and here what is not for it."""
        with watch.stage("read"):
            files = [_file(source, self.policy) for source in sources]
        with watch.stage("decode"):
            decoded = gpu_jpeg.decode(files)
        left = here([source for source, pixels in zip(sources, decoded, strict=True) if pixels is None])
        others = iter(left)
        return [next(others) if pixels is None else Prepared(b"", pixels) for pixels in decoded]

    def _forward(
        self, towers: Towers, watch: _Stopwatch
    ) -> Callable[[Sequence[Prepared], bool], list[Float32 | ImageError]]:
        def forward(batch: Sequence[Prepared], alone: bool) -> list[Float32 | ImageError]:
            with watch.stage("copy"):
                rows = [prepared.pixels for prepared in batch if prepared.pixels is not None]
                vectors = towers.embed_images(rows, alone=alone)
            return [
                ImageError(str(vector), retryable=True) if isinstance(vector, MemoryError) else vector
                for vector in vectors
            ]

        return forward

    def _time(
        self,
        sources: Iterable[object],
        prepare: Prepare,
        forward: Callable[[Sequence[Prepared], bool], list[Float32 | ImageError]],
        towers: Towers,
    ) -> tuple[float, int]:
        """Return the seconds that the pipe takes, and how many images failed."""
        start = time.perf_counter()
        with ImageStream(
            sources,
            prepare=prepare,
            forward=forward,
            streams=towers.lanes or min(self.workers, towers.streams),
            own_threads=bool(towers.lanes),
            dim=self.model.dim,
            batch_size=self.batch_size,
            workers=self.workers + isinstance(self.on_gpu.jpeg, GpuJpeg),
        ) as stream:
            failed = sum(len(batch.failures) for batch in stream)
        return time.perf_counter() - start, failed


def _keeping(prepare: Prepare, kept: list[UInt8]) -> Prepare:
    """Return what prepares, and keeps the first images as the model takes them."""

    def prepare_and_keep(sources: Sequence[object]) -> list[Prepared | ImageError]:
        outcomes = prepare(sources)
        found = [each.pixels for each in outcomes if isinstance(each, Prepared) and each.pixels is not None]
        kept.extend(found[: max(0, _KEPT - len(kept))])
        return outcomes

    return prepare_and_keep


def _file(source: object, policy: ImagePolicy) -> bytes:
    """Return an encoded file; nothing where there is none, and why shows elsewhere."""
    try:
        return read_encoded(source, policy) or b""
    except ImageError:
        return b""


def _decoded(pixels: object) -> Prepared:
    return Prepared(b"", cast("UInt8", pixels))
