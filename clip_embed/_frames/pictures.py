"""Rows as pictures: a gallery and a scatter, as markup for a notebook."""

from __future__ import annotations

import html
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from numbers import Real
from pathlib import Path
from typing import cast

import numpy as np

from clip_embed._cli.gallery import STYLE, Tile, figure
from clip_embed._engine.cores import usable_cores
from clip_embed._images.source import ImageInput
from clip_embed._images.thumbnail import make_thumbnail
from clip_embed._types import Float32, ImagePolicy
from clip_embed.errors import ImageError

SHOWN = 24
"""How many pictures a gallery shows in a notebook; the others are not even read."""
_EDGE = 200
# Nested, so that it holds for the gallery alone and not for the notebook around it.
_SCOPED = f"""<style>.clip-embed-gallery {{
--line: #8884; --soft: #888; font: 13px/1.4 system-ui, sans-serif; max-width: 1180px;
{STYLE}
figure img, figure .none {{ margin: 0 }} p {{ margin: .4rem 0 0 }}
}}</style>"""
_WIDTH, _HEIGHT, _MARGIN = 900, 600, 34
_THUMBS, _THUMB, _STEPS = 240, 56, 40
_NAMED = 2000  # dots that have a name to show; of more together only the places fit into a notebook
_DENSITY = 1.5  # pixels of a thumbnail for each of the drawing: sharp on most screens


def gallery_markup(marked: Sequence[tuple[str, Tile]], total: int, policy: ImagePolicy, more: str) -> str:
    """Return tiles, each with its mark, as HTML; `more` says how the rest of `total` can be seen."""

    def draw(pair: tuple[str, Tile]) -> str:
        return figure(*pair, policy, _EDGE)

    with ThreadPoolExecutor(usable_cores()) as pool:
        figures = list(pool.map(draw, marked))
    rest = ""
    if total > len(marked):
        rest = f"<p>the first {len(marked):,} of {total:,}; <code>{html.escape(more)}</code> shows more</p>"
    page = f'<div class="clip-embed-gallery">{_SCOPED}<main>{"".join(figures)}</main>{rest}</div>'
    return _encodable(page)


def make_tile(image: ImageInput | None, facts: Mapping[str, object], score: object) -> Tile:
    """Return the tile of an image, None is one without a picture; its name and what else is known under it.

    A score that is no number is one of the facts; facts that are None are not shown.
    """
    number = float(score) if isinstance(score, Real) else None
    known = dict(facts) if number is not None else {**facts, "score": score}
    texts = [
        fact if isinstance(fact, str) else f"{name} {fact}"
        for name, fact in known.items()
        if fact is not None
    ]
    return Tile(image, " · ".join(filter(None, [short_name(image), *texts])), number)


def short_name(image: object) -> str:
    """Return how a picture is called under it: its file name, or nothing."""
    path = cast("dict[str, object]", image).get("path") if isinstance(image, dict) else image
    return Path(path).name if isinstance(path, (str, Path)) else ""


@dataclass(frozen=True, slots=True)
class Scatter:
    """A map of images: `svg` is the picture, which a notebook shows and `save` writes."""

    svg: str

    def _repr_html_(self) -> str:
        return f'<div style="max-width: {_WIDTH}px">{self.svg}</div>'

    def __repr__(self) -> str:
        return f"Scatter({len(self.svg):,} bytes of SVG; .save('map.svg') writes it)"

    def save(self, file: str | Path) -> None:
        """Write the map as an SVG file without references to anything outside it; browsers show it."""
        Path(file).write_text(self.svg, "utf-8")


def draw_map(
    points: Float32, images: Callable[[int], ImageInput | None], labels: Sequence[str], policy: ImagePolicy
) -> Scatter:
    """Draw n images at their points (n, 2), none where NaN: up to 240 thumbnails, the others as dots.

    `images` gives the image of a row, None where it has none; `labels` and names show under the pointer,
    those of dots where there are at most 2,000.
    """
    rows = np.flatnonzero(~np.isnan(points[:, 0])).tolist()
    pictures = [images(row) for row in rows]
    names = [f"{labels[row]} {short_name(image)}".strip() for row, image in zip(rows, pictures, strict=True)]
    return _draw(points[rows], pictures, names, policy)


def _draw(
    points: Float32, images: Sequence[ImageInput | None], names: Sequence[str], policy: ImagePolicy
) -> Scatter:
    spread = np.linspace(0, len(points) - 1, min(_THUMBS, len(points)))
    shown = np.unique(spread.astype(np.int64))
    places = _fit(points)
    places[shown] = _push_apart(places[shown])
    others = np.setdiff1d(np.arange(len(points)), shown).tolist()
    named = len(others) <= _NAMED
    dots = [_dot(places[row], names[row]) for row in others] if named else [_nameless(places[others])]

    def draw(row: int) -> str:
        image = images[row]
        return (
            _dot(places[row], names[row])
            if image is None
            else _picture(places[row], image, names[row], policy)
        )

    with ThreadPoolExecutor(usable_cores()) as pool:
        pictures = list(pool.map(draw, shown.tolist()))
    svg = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="100%">'
        "<style>.clip-embed-photo { transform-box: fill-box; transform-origin: center }"
        " .clip-embed-photo:hover { transform: scale(2.2) }</style>"
        f'<rect width="{_WIDTH}" height="{_HEIGHT}" rx="8" fill="#8881"/>{"".join([*dots, *pictures])}</svg>'
    )
    return Scatter(_encodable(svg))


def _encodable(markup: str) -> str:
    """Return markup that can be sent as UTF-8: a file name need not be."""
    return markup.encode("utf-8", "replace").decode("utf-8")


def _fit(points: Float32) -> Float32:
    """Return the points in pixels of the drawing: each axis spread over all of it, y upwards."""
    if not len(points):
        return points
    low, high = points.min(axis=0), points.max(axis=0)
    shares = np.where(high > low, (points - low) / np.where(high > low, high - low, 1), np.float32(0.5))
    shares[:, 1] = 1 - shares[:, 1]
    return np.asarray(_MARGIN + shares * (np.array([_WIDTH, _HEIGHT]) - 2 * _MARGIN), np.float32)


def _push_apart(places: Float32) -> Float32:
    """Return places of pictures moved a little where they lie upon each other; not far, not all apart."""
    moved = places.copy()
    for _ in range(_STEPS):
        gaps = moved[:, None] - moved[None]
        near = np.clip(1 - np.abs(gaps) / _THUMB, 0, 1).min(axis=2)
        np.fill_diagonal(near, 0)
        away = np.where(
            gaps == 0, np.sign(np.arange(len(moved))[:, None] - np.arange(len(moved)))[..., None], gaps
        )
        push = (near[..., None] * away / np.maximum(np.abs(away).max(axis=2, keepdims=True), 1)).sum(axis=1)
        moved += np.clip(push * _THUMB / 8, -_THUMB / 4, _THUMB / 4) + (places - moved) * 0.02
    edge = np.array([_MARGIN, _MARGIN])
    return np.asarray(np.clip(moved, edge, np.array([_WIDTH, _HEIGHT]) - edge), np.float32)


def _dot(place: Float32, name: str) -> str:
    x, y = place.tolist()
    return (
        f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="#4c78a8" fill-opacity=".6">'
        f"<title>{html.escape(name)}</title></circle>"
    )


def _nameless(places: Float32) -> str:
    """Return dots like those with names, at a tenth of the bytes."""
    marks = "".join(f"M{x:.0f} {y:.0f}h0" for x, y in places.tolist())
    look = 'stroke="#4c78a8" stroke-opacity=".6" stroke-width="6" stroke-linecap="round"'
    return f'<path d="{marks}" {look}/>'


def _picture(place: Float32, image: ImageInput, name: str, policy: ImagePolicy) -> str:
    try:
        small = make_thumbnail(image, policy, round(_DENSITY * _THUMB))
    except ImageError as error:
        return _dot(place, f"{name}: {error}")
    width, height = small.width / _DENSITY, small.height / _DENSITY
    x, y = place[0] - width / 2, place[1] - height / 2
    box = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}"'
    return (
        f'<g class="clip-embed-photo"><title>{html.escape(name)}</title><image {box} href="{small.url}"/>'
        f'<rect {box} fill="none" stroke="#fff" stroke-width="1.5"/></g>'
    )
