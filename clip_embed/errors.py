"""Every error the library raises on purpose.

::

    ClipEmbedError
    ├── ImageBatchError      some images of one call failed; the others are in `.batch`
    ├── ImageError           one image cannot be used (a stream turns it into an ImageFailure)
    ├── SpaceMismatch        vectors that must not be compared: another model or dimension
    ├── ModelError           the model cannot be used
    │   ├── ModelNotFound    no such folder, or the hub cannot be reached
    │   ├── ModelUnsupported the folder is there, but holds no image-and-text model we can load
    │   └── ModelForked      the process was forked after a model was loaded or used
    └── MissingExtra         an optional library is not installed; the message names the extra

A wrong call (an unknown option, one image where a list is wanted) raises the built-in
`TypeError` or `ValueError`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from clip_embed._types import EmbeddedBatch, ImageFailure

__all__ = [
    "ClipEmbedError",
    "ImageBatchError",
    "ImageError",
    "MissingExtra",
    "ModelError",
    "ModelForked",
    "ModelNotFound",
    "ModelUnsupported",
    "SpaceMismatch",
]


class ClipEmbedError(Exception):
    """Base of all errors of clip-embed."""


class ImageError(ClipEmbedError, ValueError):
    """One image cannot be used.

    `retryable` is True where the same input may work later (a missing file, a permission,
    a timeout) and False where the content itself is at fault.
    """

    def __init__(self, reason: str, *, retryable: bool = False) -> None:
        super().__init__(reason)
        self.retryable = retryable


class ImageBatchError(ClipEmbedError, ValueError):
    """Some images of one call failed; nothing that succeeded is lost.

    `failures` lists each bad image with its index and reason; `batch` is the EmbeddedBatch
    of the good ones: `batch.indices` (k,) says which inputs `batch.vectors` (k, d) belong to.
    """

    def __init__(self, failures: Sequence[ImageFailure], batch: EmbeddedBatch) -> None:
        self.failures = tuple(failures)
        self.batch = batch
        shown = "\n".join(f"  {failure}" for failure in self.failures[:5])
        more = f"\n  … and {len(self.failures) - 5} more" if len(self.failures) > 5 else ""
        super().__init__(
            f"{len(self.failures)} of {len(self.failures) + len(batch.indices)} images could not be "
            f"embedded:\n{shown}{more}\nThe vectors of the others are in `.batch`; `stream_images` "
            "reports failures without raising."
        )

    def __reduce__(self) -> tuple[type[ImageBatchError], tuple[object, ...]]:
        """Travel between processes with everything."""
        return type(self), (self.failures, self.batch)


class SpaceMismatch(ClipEmbedError, ValueError):
    """Vectors of another model, or of another dimension, must not be compared with these."""


class ModelError(ClipEmbedError, RuntimeError):
    """The model cannot be used."""


class ModelNotFound(ModelError):
    """There is no such folder, or the model hub cannot be reached and holds no local copy."""


class ModelUnsupported(ModelError):
    """The folder does not hold a model with an image tower and a text tower that we can load."""


class ModelForked(ModelError):
    """The process was forked after a model was loaded or used; fork before that, or spawn."""


class MissingExtra(ClipEmbedError, ImportError):
    """An optional library is not installed."""

    def __init__(self, library: str, extra: str, purpose: str) -> None:
        self._given = (library, extra, purpose)
        super().__init__(
            f"{purpose} needs {library}, which is not installed: pip install 'clip-embed[{extra}]'",
            name=library,
        )

    def __reduce__(self) -> tuple[type[MissingExtra], tuple[str, str, str]]:
        """Travel between processes with everything."""
        return type(self), self._given
