"""The two towers of a model as the embedder uses them: opened late, shared by threads, checked."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from typing import Literal

import numpy as np

from clip_embed._engine.batcher import Batcher, Halving, Outcome
from clip_embed._engine.cores import limit_torch, torch_threads, usable_cores
from clip_embed._engine.device import is_gpu, resolve_device, stable_shape, suggest_batch_size
from clip_embed._engine.fork import computing, is_spent, is_torn, loading, outlive_forks, torch_is_inherited
from clip_embed._types import Float32, Model, UInt8
from clip_embed._vectors import unit_rows
from clip_embed.errors import ModelError, ModelForked

logger = logging.getLogger(__name__)

_TEXTS_PER_BATCH = 256  # that threads share; the texts of one call stay together, however many


class Towers:
    """Embeds rows of any threads: one call at a time, which they share, or one call for each core.

    `opener` opens the model, `device` is where it runs, `batch_size` how many images it takes at once.
    `pad` gives a GPU batches of few different lengths.
    """

    def __init__(
        self,
        opener: Callable[[], Model],
        *,
        device: str,
        batch_size: int | Literal["auto"],
        pad: bool,
    ) -> None:
        self._opener = opener
        self._pad = pad
        self._wanted_device = device
        self._wanted_batch_size: int | Literal["auto"] = batch_size
        self._opened: Model | None = None
        self._pid: int | None = None  # the process in which loading the weights was begun
        self._loaded = False
        self._run_images = Halving(self._embed_pixels, self._emptied)
        self.begin_child()
        outlive_forks(self)

    def begin_child(self) -> None:
        """Make the locks and what waits for them, anew after a fork."""
        self._opening = threading.RLock()
        self._turn = threading.RLock()
        self._cores = threading.Semaphore(usable_cores())
        self._images = Batcher(self._run_images, self._turn)
        self._texts = Batcher(Halving(self._embed_texts, self._emptied), self._turn)

    @property
    def model(self) -> Model:
        """The opened model; its weights may not be loaded yet."""
        if (opened := self._opened) is not None:  # no lock: decode threads ask during a forward pass
            return opened
        self.check_process()
        with self._opening, loading():
            if self._opened is None:
                self._opened = self._opener()
            return self._opened

    @property
    def space(self) -> str:
        """The model's space; its weights may be read for it, but are not loaded."""
        model = self.model
        with self._opening, loading():
            return model.space

    @property
    def logit_scale(self) -> float:
        """What cosine similarities are multiplied by for a softmax: the model's own, or CLIP's limit of 100.

        It is learned with the weights, which are loaded for it.
        """
        self._ensure_loaded()
        return float(getattr(self.model, "logit_scale", 100.0))

    @cached_property
    def device(self) -> str:
        """The device of torch that the model runs on, "auto" resolved."""
        with loading():
            return resolve_device(self._wanted_device)

    @cached_property
    def batch_size(self) -> int:
        """How many images run at once, "auto" resolved; for a GPU the model loads, to be measured."""
        if self._wanted_batch_size != "auto":
            return self._wanted_batch_size
        if not is_gpu(self.device):
            return suggest_batch_size(self.device)
        self._ensure_loaded()
        return suggest_batch_size(self.device, getattr(self.model, "bytes_per_image", None))

    @cached_property
    def lanes(self) -> int:
        """How many batches the model takes side by side on its devices; 0 where it says nothing of that."""
        wanted = int(getattr(self.model, "lanes", 0))
        return wanted if wanted and self.device != "cpu" else 0

    @cached_property
    def streams(self) -> int:
        """How many forward passes run side by side, each on one core; a single one has all of torch's.

        Ask first in a thread of the user's: what torch may use is a matter of the thread.
        """
        if self.lanes:
            return self.lanes
        if not getattr(self.model, "parallel", False) or self.device != "cpu":
            return 1
        with loading():
            return torch_threads()

    def load(self) -> None:
        """Load the weights now rather than on first use; idempotent."""
        self.check_process()
        with self._turn, loading():
            self._pid = os.getpid()
            started = time.perf_counter()
            try:
                load = getattr(self.model, "load", None)
                if callable(load):
                    load()
                self._loaded = True
                seconds = time.perf_counter() - started
                logger.info(
                    "loaded %s on device %s in %.1f s",
                    type(self.model).__name__,
                    self._wanted_device,
                    seconds,
                )
            finally:
                if not self._loaded:
                    self._pid = None

    def check_process(self) -> None:
        """Refuse to use what a fork has left half done; let torch use one thread where its pool is gone."""
        if self._pid not in (None, os.getpid()):
            raise ModelForked(
                "this process was forked after the model was loaded: fork before that, or start workers with "
                'the "spawn" method'
            )
        if is_spent():
            raise ModelForked(
                "this process was forked after torch had computed, and may hang in it: fork before the "
                'first use of torch, or start workers with the "spawn" method'
            )
        if is_torn():
            raise ModelForked(
                "this process was forked while another thread was loading a model: fork before that, "
                'or start workers with the "spawn" method'
            )
        if torch_is_inherited():
            limit_torch(1)

    def embed_images(self, pixels: Sequence[UInt8], *, alone: bool = True) -> list[Outcome]:
        """Return for each uint8 (height, width, 3) the unit vector (d,), or why memory did not suffice.

        A batch that is `alone` has all cores and takes along what waits in other threads; one of
        many takes a core or a lane for itself where the model allows it.
        """
        self._ensure_loaded()
        if alone or self.streams == 1:
            return self._images.embed(pixels, batch_size=self.batch_size)
        if self.lanes:
            return self._run_images(pixels)
        with self._cores:
            limit_torch(1)
            return self._run_images(pixels)

    def embed_texts(self, texts: Sequence[str]) -> list[Outcome]:
        """Return for each text the unit vector (d,), or why memory did not suffice."""
        self._ensure_loaded()
        return self._texts.embed(texts, batch_size=_TEXTS_PER_BATCH)

    def _ensure_loaded(self) -> None:
        """Load first, so that a lack of memory in a tower is one for the batch, not for the weights."""
        self.check_process()
        if not self._loaded:
            self.load()
        computing()

    def _emptied(self) -> AbstractContextManager[object]:
        """Return what the model holds while nothing else computes on its devices, nor is kept there."""
        emptied = getattr(self.model, "emptied", nullcontext)
        return emptied()

    def _embed_pixels(self, rows: Sequence[UInt8]) -> Float32:
        if len(shapes := {image.shape for image in rows}) > 1:
            raise ModelError(f"the prepare of the model's image_spec gave images of several shapes: {shapes}")
        pixels = np.stack(rows)
        if self._pad:
            more = stable_shape(len(rows), self.batch_size, self.device) - len(rows)
            if more:  # never on a CPU
                pixels = np.concatenate([pixels, np.zeros((more, *pixels.shape[1:]), np.uint8)])
        return self._checked(self.model.embed_images(pixels), len(pixels), "embed_images")[: len(rows)]

    def _embed_texts(self, rows: Sequence[str]) -> Float32:
        places = {text: place for place, text in enumerate(dict.fromkeys(rows))}
        vectors = self._checked(self.model.embed_texts(list(places)), len(places), "embed_texts")
        return vectors[[places[text] for text in rows]]

    def _checked(self, given: object, count: int, method: str) -> Float32:
        """Return what a model gave as float32 (count, d), unit rows; ModelError for another shape."""
        vectors = np.asarray(given, np.float32)
        if vectors.shape != (count, self.model.dim):
            raise ModelError(
                f"{type(self.model).__name__}.{method} gave {vectors.shape} for {count} rows of dimension "
                f"{self.model.dim}"
            )
        return unit_rows(vectors)
