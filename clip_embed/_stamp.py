"""What travels with stored vectors, so that those of another space are refused wherever they come back."""

from __future__ import annotations

import base64
import binascii
import json
import logging
from dataclasses import dataclass, field
from typing import Protocol, cast

import numpy as np

from clip_embed._types import Float32
from clip_embed._vectors import unit_rows
from clip_embed._warn import warn_caller
from clip_embed.demo import captions, photos
from clip_embed.errors import SpaceMismatch

logger = logging.getLogger(__name__)

MIN_COSINE = 0.995
_SCHEMA = 1
# Of the demo's photos and captions; a test pins the bytes of these files. Other ones need another schema.
_PROBES = (
    "aeroplane.jpg", "car_silver_pickup.jpg", "dogs_window.jpg", "fig_bowl.jpg",
    "honey_bee.jpg", "louvre.jpg", "mountain_path.jpg", "panda.jpg",
)  # fmt: skip


class _Embedder(Protocol):
    """What is needed of a ClipEmbedder."""

    @property
    def dim(self) -> int: ...
    @property
    def space(self) -> str: ...
    def stamp(self) -> Stamp: ...


@dataclass(frozen=True, slots=True, eq=False)
class Stamp:
    """Says which vectors may be compared with those it stands beside."""

    space: str
    recipe: str
    """How the vectors were computed: provenance, never a reason to refuse them."""
    probe: Float32 = field(repr=False)
    """float32 (16, d), unit rows: the vectors of 8 fixed photos and 8 fixed texts.

    Repackaged weights have another `space` and the same vectors; by these they are known again.
    """

    @property
    def dim(self) -> int:
        """Dimension d of the vectors."""
        return len(self.probe[0])

    def to_json(self) -> str:
        """Return the stamp as text; the probe is kept in float16."""
        probe = base64.b64encode(self.probe.astype("<f2").tobytes()).decode("ascii")
        facts = {"schema": _SCHEMA, "space": self.space, "recipe": self.recipe, "dim": self.dim}
        return json.dumps(facts | {"probe": probe})

    @classmethod
    def from_json(cls, text: str | bytes) -> Stamp:
        """Return the stamp that `to_json` wrote; ValueError where it is none, or one of a later version."""
        try:
            facts = cast("dict[str, object]", json.loads(text))
            known = {_SCHEMA: 2 * len(_PROBES)}[cast("int", facts["schema"])]
            probe = np.frombuffer(base64.b64decode(str(facts["probe"]), validate=True), "<f2")
            rows = probe.reshape(known, int(str(facts["dim"])))
            return cls(str(facts["space"]), str(facts["recipe"]), unit_rows(rows.astype(np.float32)))
        except (ValueError, KeyError, TypeError, binascii.Error) as error:
            raise ValueError(
                f"this is no stamp of clip-embed, or one of a later version: {error!r}"
            ) from error


def probe_images() -> list[bytes]:
    """The encoded photos of the probe."""
    found = {path.name: path for path in photos()}
    return [found[name].read_bytes() for name in _PROBES]


def probe_texts() -> list[str]:
    """The texts of the probe."""
    return [captions()[name] for name in _PROBES]


def check_stamp(stamp: Stamp | None, dim: int, embedder: _Embedder, where: str) -> None:
    """Refuse vectors of dimension `dim` that must not be compared with those of `embedder`.

    `where` names them in messages. Without a stamp, vectors of the right dimension are let pass with a
    UserWarning. Raises SpaceMismatch for another dimension, or another space whose probe differs.
    """
    if dim != embedder.dim:
        raise SpaceMismatch(
            f"{where}: the vectors have {dim} dimensions, those of this model {embedder.dim}: they were "
            "made by another model"
        )
    if stamp is None:
        warn_caller(
            f"{where}: nothing says which model made these vectors; they are taken for those of this one "
            "because their dimension fits"
        )
        return
    if stamp.space == embedder.space:
        return
    cosine = float((stamp.probe * embedder.stamp().probe).sum(axis=1).min())
    if not cosine >= MIN_COSINE:
        raise SpaceMismatch(
            f"{where}: these vectors are of the space {stamp.space}, this model gives {embedder.space}; on 8 "
            f"photos and 8 texts they agree to a cosine of {cosine:.3f}, {MIN_COSINE} are needed. Embed the "
            "images with this model, or load the one that made the vectors."
        )
    logger.info("%s: space %s agrees with %s (cosine %.4f)", where, stamp.space, embedder.space, cosine)
