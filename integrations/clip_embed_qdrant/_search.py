"""From a question to a vector, and from points to hits."""

from __future__ import annotations

import html
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import cast

import numpy as np
import numpy.typing as npt

from clip_embed import ClipEmbedder, ImagePolicy, SpaceMismatch
from clip_embed._cli.gallery import Tile, write_gallery
from clip_embed._images.source import ImageInput
from clip_embed._ranking import LEAST_CANDIDATES, steer
from clip_embed._types import Float32
from clip_embed._vectors import has_direction, unit_rows
from clip_embed_qdrant._duplicates import content_of, same_content
from clip_embed_qdrant._entries import normal_key, point_id
from clip_embed_qdrant._filters import All, Condition, HasId, Not
from clip_embed_qdrant._sink import KEY, OURS, Found, Payload, Query, Sink

_DUPLICATES = 10_000  # that are looked for, of all hits together

Example = str | npt.NDArray[np.floating]
"""The key of a stored image, or a vector (d,)."""


@dataclass(frozen=True, slots=True)
class Hit:
    """An image that a search found."""

    key: str
    score: float
    """Cosine similarity."""
    payload: Payload
    duplicates: tuple[str, ...] = ()
    """Keys of other images with the same content, where `ingest` was told to link them."""


class Hits(list[Hit]):
    """Hits, best first; in a notebook they show as a gallery.

    >>> hits = store.search(text="red car")
    >>> hits.to_html("cars.html")
    """

    def __init__(
        self, hits: Iterable[Hit], *, title: str = "", sources: Mapping[str, str] | None = None
    ) -> None:
        super().__init__(hits)
        self._title = title
        self._sources = dict(sources or {})

    def to_html(self, file: str | Path) -> None:
        """Write a page of thumbnails; an image that is no longer where it was says so."""
        roots = [root for root in self._sources.values() if "://" not in root]
        policy = ImagePolicy(roots=roots)  # a key is the word of whoever wrote the store
        tiles = [Tile(self._image(hit.key), hit.key, hit.score) for hit in self]
        write_gallery(Path(file), self._title, f"{len(self)} hits", tiles, policy)

    def _image(self, key: str) -> str | Path:
        """Return where the image of a key was when it was ingested."""
        prefixes = [prefix for prefix in self._sources if key.startswith(prefix)]
        if not prefixes:
            return key
        prefix = max(prefixes, key=len)
        return Path(self._sources[prefix], key.removeprefix(prefix))

    def _repr_html_(self) -> str:
        with tempfile.TemporaryDirectory() as folder:
            page = Path(folder) / "page.html"
            self.to_html(page)
            content = html.escape(page.read_text("utf-8"))
        height = 90 + 220 * -(-len(self) // 5)
        return (
            f'<iframe srcdoc="{content}" sandbox="" width="100%" height="{height}" style="border:0"></iframe>'
        )


def check_numbers(k: int, group_size: int, diversity: float | None) -> None:
    """Raise ValueError for numbers that mean nothing."""
    if k < 1 or group_size < 1:
        raise ValueError(f"k and group_size must be at least 1, not {min(k, group_size)}")
    if diversity is not None and not 0 <= diversity <= 1:
        raise ValueError(f"diversity must lie between 0 and 1, not {diversity}")


def query_vector(
    embedder: ClipEmbedder,
    sink: Sink,
    *,
    text: str | None,
    image: ImageInput | None,
    vector: npt.NDArray[np.floating] | None,
    like: Sequence[Example],
    unlike: Sequence[Example],
) -> tuple[Float32, list[str]]:
    """Return the unit vector (d,) that a search asks for, and the ids of the stored images it names.

    Text, image, vector and what is liked are averaged; what is not liked is taken from twice that.
    """
    rows: list[Float32] = []
    if text is not None:
        rows.append(embedder.embed_texts([text])[0])
    if image is not None:
        rows.append(embedder.embed_images([image])[0])
    if vector is not None:
        rows.append(_unit(vector, embedder.dim))
    liked, liked_ids = _examples(like, embedder.dim, sink, "like")
    unliked, unliked_ids = _examples(unlike, embedder.dim, sink, "unlike")
    rows += liked
    if not rows and not unliked:
        raise ValueError("search for what? Give text=, image=, vector= or like=")
    none = np.empty((0, embedder.dim), np.float32)
    unit = steer(np.stack(rows) if rows else none, np.stack(unliked) if unliked else none)
    return unit, liked_ids + unliked_ids


def _examples(
    examples: Sequence[Example], dim: int, sink: Sink, name: str
) -> tuple[list[Float32], list[str]]:
    if isinstance(examples, (str, bytes)):
        raise TypeError(f"{name} must be a list of keys; for a single one wrap it in a list: [{examples!r}]")
    keys = {point_id(normal_key(each)): each for each in examples if isinstance(each, str)}
    found = {point.id: point.vector for point in sink.fetch(list(keys))} if keys else {}
    if missing := [key for id_, key in keys.items() if found.get(id_) is None]:
        raise ValueError(f"{name}: there is no image {missing[0]!r} in {sink.where}")
    vectors = [_unit(each, dim) for each in examples if not isinstance(each, str)]
    return vectors + [vector for vector in found.values() if vector is not None], list(keys)


def _unit(vector: npt.NDArray[np.floating], dim: int) -> Float32:
    row = np.asarray(vector, np.float32)
    if row.ndim != 1:
        raise ValueError(f"a vector must be one row of numbers, not an array of shape {row.shape}")
    if len(row) != dim:
        raise SpaceMismatch(f"the vector has {len(row)} dimensions, those of the store have {dim}")
    unit: Float32 = unit_rows(row[None])[0]
    if not has_direction(unit):
        raise ValueError("the vector is not finite, or all zeros")
    return unit


def without(condition: Condition | None, ids: list[str]) -> Condition | None:
    """Return the filter that also leaves out some points."""
    if not ids:
        return condition
    others = Not(HasId(tuple(ids)))
    return others if condition is None else All((condition, others))


def run_query(sink: Sink, query: Query, group_by: str | None, group_size: int) -> list[Hit]:
    """Return the hits of a query: one for each content, for each value of `group_by` at most `group_size`."""
    limit = query.limit if group_by is None else 4 * query.limit * group_size
    while True:
        found = sink.query(replace(query, limit=limit, candidates=max(LEAST_CANDIDATES, 4 * limit)))
        chosen = _one_of_each(found)
        if group_by is not None:
            chosen = _few_of_each(chosen, group_by, group_size)
        if len(chosen) >= query.limit or len(found) < limit:
            return _hits(sink, chosen[: query.limit])
        limit *= 4


def _one_of_each(points: list[Found]) -> list[Found]:
    """Leave out images of the same content as one before."""
    seen: set[str] = set()
    chosen: list[Found] = []
    for point in points:
        content = content_of(point.payload)
        if content is None or content not in seen:
            chosen.append(point)
        if content is not None:
            seen.add(content)
    return chosen


def _few_of_each(points: list[Found], field: str, size: int) -> list[Found]:
    counts: dict[object, int] = {}
    chosen: list[Found] = []
    for point in points:
        value = _value(point.payload, field)
        counts[value] = counts.get(value, 0) + 1
        if counts[value] <= size:
            chosen.append(point)
    return chosen


def _value(payload: Payload, field: str) -> object:
    value = cast("object", payload.get(field))
    return tuple(cast("list[object]", value)) if isinstance(value, list) else value


def _hits(sink: Sink, points: list[Found]) -> list[Hit]:
    alike: dict[str | None, list[str]] = {}
    condition = same_content(point.payload for point in points)
    if condition is not None:
        for point in sink.matching(condition, _DUPLICATES):
            alike.setdefault(content_of(point.payload), []).append(_key(point))
    hits: list[Hit] = []
    for point in points:
        payload = {name: value for name, value in point.payload.items() if name not in OURS}
        others = (key for key in alike.get(content_of(point.payload), ()) if key != _key(point))
        hits.append(Hit(_key(point), point.score, payload, tuple(sorted(others))))
    return hits


def _key(point: Found) -> str:
    return str(point.payload.get(KEY, point.id))
