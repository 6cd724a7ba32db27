"""Frames as pictures in a notebook."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import polars as pl

from clip_embed import ClipEmbedder
from clip_embed._frames.pictures import SHOWN, Scatter, draw_map, gallery_markup, make_tile
from clip_embed._frames.ranking import Method
from clip_embed._frames.session import the_embedder
from clip_embed_polars._vectors import first_images, pick
from clip_embed_polars._verbs import points_of


@dataclass(frozen=True, slots=True)
class Gallery:
    """A frame that a notebook shows as pictures, and everything else as a table."""

    frame: pl.DataFrame
    column: str

    def __repr__(self) -> str:
        return repr(self.frame)

    def _repr_html_(self) -> str:
        shown = self.frame.head(SHOWN)
        scores = next((name for name in ("score", "probability") if name in shown.columns), None)
        texts = [name for name in ("label", "group") if name in shown.columns]
        tiles = [
            (
                str(row),
                make_tile(
                    values[self.column],
                    {name: values[name] for name in texts},
                    None if scores is None else values[scores],
                ),
            )
            for row, values in enumerate(shown.iter_rows(named=True))
        ]
        more = f"gallery(result[{SHOWN}:])"
        return gallery_markup(tiles, len(self.frame), the_embedder(None).policy, more)


def gallery(frame: pl.DataFrame, *, column: str | None = None) -> Gallery:
    """Return what a notebook shows as the pictures of a frame, in order, with score, label and group.

    `column` names the images, and may be left out where only one column holds some. Pictures are small,
    and made when they are shown: those of the first 24 rows.
    """
    return Gallery(frame, pick(frame, column, "images").name)


def plot(
    frame: pl.DataFrame,
    *,
    method: Method = "pca",
    column: str | None = None,
    image: str | None = None,
    embedder: ClipEmbedder | None = None,
) -> Scatter:
    """Return a map of thumbnails, laid out as by `project`; a notebook shows it, `save` writes an SVG.

    `image` names the column of the pictures, by default the first with images (without one: dots). Of more
    than 240 rows, evenly spread ones are pictures and the others dots. The pointer shows names, up to 2,000
    dots have one, and enlarges.
    """
    clip = the_embedder(embedder)
    points = points_of(frame, method, column, clip)
    pictures = first_images(frame) if image is None else pick(frame, image)

    def image_of(row: int) -> Any:  # noqa: ANN401
        return None if pictures is None else pictures[row]

    return draw_map(points, image_of, [str(row) for row in range(len(frame))], clip.policy)
