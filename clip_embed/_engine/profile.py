"""Where the time from images to vectors goes, stage by stage, and what to do about it."""

from __future__ import annotations

import dataclasses
import threading
import time
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any, cast

import numpy as np

from clip_embed._engine.pipeline import ImageStream, Prepared
from clip_embed._engine.towers import Towers
from clip_embed._images.pixels import decode_for, fit
from clip_embed._images.source import read_encoded
from clip_embed._types import Float32, ImagePolicy, Model, UInt8
from clip_embed.errors import ImageError

STAGES = ("read", "decode", "resize", "copy", "forward", "hand-over")
_KEPT = 256  # decoded images that the forward pass alone is measured with; more are taken from them again
_BAR = 24


@dataclass(frozen=True, slots=True)
class Profile:
    """Where the time from images to vectors went; `print` shows it as a table with a verdict.

    Files come as the system gives them: those it has in its page cache are read fast.
    """

    images: int
    """Images that were given."""
    failed: int
    """Those among them that gave no vector."""
    seconds: float
    """Wall time of the whole run; the weights were loaded before."""
    stages: Mapping[str, float]
    """Seconds of threads for each of `STAGES`: their sum is more than `seconds` where cores share work."""
    decode_alone: float
    """Images per second read, decoded and resized, with no forward pass."""
    forward_alone: float
    """Images per second through the image tower, decoded beforehand; 0 where no image could be decoded."""
    device: str
    precision: str
    batch_size: int
    workers: int
    """Threads that read and decode."""

    @property
    def images_per_second(self) -> float:
        """From images to vectors, everything included."""
        return self.images / self.seconds

    @property
    def ceiling(self) -> float:
        """Images per second that the two halves would give without a loss between them.

        On a CPU they share the cores; a GPU works beside them, so the slower half decides.
        """
        if not self.forward_alone:
            return self.decode_alone
        if self.device == "cpu":
            return 1 / (1 / self.decode_alone + 1 / self.forward_alone)
        return min(self.decode_alone, self.forward_alone)

    @property
    def verdict(self) -> str:
        """What decides the speed, in a sentence, and what would help."""
        parts = {
            "read": self._share("read"),
            "decode": self._share("decode", "resize"),
            "forward": self._share("copy", "forward"),
            "hand-over": self._share("hand-over"),
        }
        bound = max(parts, key=lambda part: parts[part])
        why = f"{parts[bound]:.0%} of the work is {_MEANING[bound]}"
        if self.device != "cpu" and bound in ("decode", "forward"):
            bound = "decode" if self.decode_alone < self.forward_alone else "forward"
            why = (
                f"{_MEANING['decode']} give at most {self.decode_alone:,.0f} images/s, "
                f"{_MEANING['forward']} {self.forward_alone:,.0f}"
            )
        return f"{bound}-bound: {why}. {self._advice(bound)}"

    def _share(self, *names: str) -> float:
        return sum(self.stages[name] for name in names) / sum(self.stages.values())

    def _advice(self, bound: str) -> str:
        if bound == "forward" and self.device == "cpu":
            faster = 'precision="auto", ' if self.precision == "exact" else ""
            return f"Faster: {faster}a GPU, more cores, or a smaller model."
        return _ADVICE[bound]

    def as_dict(self) -> dict[str, Any]:
        """Everything, verdict and rates included, as JSON has it."""
        facts = dataclasses.asdict(self) | {"stages": dict(self.stages)}
        return facts | {
            "images_per_second": self.images_per_second,
            "ceiling": self.ceiling,
            "verdict": self.verdict,
        }

    def __str__(self) -> str:
        failed = f", {self.failed:,} of them failed" if self.failed else ""
        total, most = sum(self.stages.values()), max(self.stages.values())
        rows = [
            f"{name:<9}  {1000 * seconds / self.images:8.2f}  {seconds / total:6.1%}  "
            + "█" * round(_BAR * seconds / most)
            for name, seconds in self.stages.items()
        ]
        return "\n".join(
            (
                f"{self.images:,} images{failed}: {self.images_per_second:,.1f} images/s on {self.device} in "
                f"{self.precision}, batches of {self.batch_size}, {self.workers} threads for decoding",
                "",
                "stage      ms/image   share",
                *(row.rstrip() for row in rows),
                "",
                f"decoding alone {self.decode_alone:,.1f} images/s, forward pass alone "
                f"{self.forward_alone:,.1f}; together at most {self.ceiling:,.1f}, of which "
                f"{self.images_per_second / self.ceiling:.0%} are reached",
                self.verdict,
            )
        )


_MEANING = {
    "read": "reading files",
    "decode": "decoding and resizing",
    "forward": "the forward pass",
    "hand-over": "the thread that hands images in and takes vectors out",
}
_ADVICE = {
    "read": "Faster: a faster or nearer disk, or more workers, which wait for it side by side.",
    "decode": "Faster: JPEG files with clip-embed[fast] installed, smaller originals, or more cores.",
    "forward": "Faster: a smaller model, or more GPUs.",
    "hand-over": "Faster: larger batches, or images as paths rather than decoded.",
}


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

    def run(self, images: Iterable[object]) -> Profile:
        """Embed the images three times over: whole, without the forward pass, and without decoding.

        Raises ValueError where there are none.
        """
        sources = list(images)
        if not sources:
            raise ValueError("there are no images to measure with")
        watch = _Stopwatch()
        kept: list[UInt8] = []
        idle = _Stopwatch()
        towers = self._towers(self.model)
        # A first batch prepares what would else be prepared while it is measured.
        first = sources[: self.batch_size]
        self._time(first, self._prepare(idle, []), self._forward(towers, idle), towers.streams)
        towers = self._towers(_TimedModel(self.model, watch))
        forward, busy = self._forward(towers, watch), time.thread_time()
        seconds, failed = self._time(sources, self._prepare(watch, kept), forward, towers.streams)
        watch.add("hand-over", max(0.0, time.thread_time() - busy - watch.own()))
        nothing: Float32 = np.zeros(self.model.dim, np.float32)
        decoding, _ = self._time(
            sources, self._prepare(idle, []), lambda batch, _: [nothing] * len(batch), towers.streams
        )
        forwarding, count = 0.0, len(sources) - failed
        if kept:
            again = islice(cycle(kept), count)
            forwarding, _ = self._time(again, _decoded, self._forward(towers, idle), towers.streams)
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
        )

    def _towers(self, model: Model) -> Towers:
        return Towers(lambda: model, device=self.device, batch_size=self.batch_size, pad=self.pad)

    def _prepare(self, watch: _Stopwatch, kept: list[UInt8]) -> Callable[[object], Prepared]:
        spec, policy, exact = self.model.image_spec, self.policy, self.precision == "exact"

        def prepare(source: object) -> Prepared:
            with watch.stage("read"):
                encoded = read_encoded(source, policy)
            with watch.stage("decode"):
                decoded = decode_for(source, encoded, spec, policy, exact=exact)
            with watch.stage("resize"):
                pixels = np.ascontiguousarray(fit(decoded, spec, policy, with_torch=self.with_torch))
            if len(kept) < _KEPT:
                kept.append(pixels)
            return Prepared(b"", pixels)

        return prepare

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
        prepare: Callable[[object], Prepared],
        forward: Callable[[Sequence[Prepared], bool], list[Float32 | ImageError]],
        streams: int,
    ) -> tuple[float, int]:
        """Return the seconds that the pipe takes, and how many images failed."""
        start = time.perf_counter()
        with ImageStream(
            sources,
            prepare=prepare,
            forward=forward,
            streams=min(self.workers, streams),
            dim=self.model.dim,
            batch_size=self.batch_size,
            workers=self.workers,
        ) as stream:
            failed = sum(len(batch.failures) for batch in stream)
        return time.perf_counter() - start, failed


def _decoded(pixels: object) -> Prepared:
    return Prepared(b"", cast("UInt8", pixels))
