"""Images in two dimensions."""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import pandas as pd

from clip_embed import ClipEmbedder
from clip_embed._frames.pictures import Scatter, draw_map
from clip_embed._frames.ranking import Method, project_rows
from clip_embed._frames.session import the_embedder
from clip_embed_pandas._columns import add, first_images, is_missing, pick
from clip_embed_pandas._vectors import Data, as_frame, compared


def project(
    data: Data,
    *,
    method: Method = "pca",
    column: Hashable | None = None,
    embedder: ClipEmbedder | None = None,
) -> pd.DataFrame:
    """Return the frame with `x` and `y`, float32: images that are alike lie close; NaN without a vector.

    `method` is "pca", the two directions in which these images differ most, or "umap", which keeps small
    groups together and needs the extra `umap` (MissingExtra). `column` as in `score`. The same frame gives
    the same places.
    """
    points = project_rows(compared(data, column, the_embedder(embedder)), method)
    frame = as_frame(data)
    add(frame, {"x": points[:, 0], "y": points[:, 1]})
    return frame


def plot(
    data: Data,
    *,
    method: Method = "pca",
    column: Hashable | None = None,
    image: Hashable | None = None,
    embedder: ClipEmbedder | None = None,
) -> Scatter:
    """Return a map of thumbnails, laid out as by `project`; a notebook shows it, `save` writes an SVG.

    `image` names the column of the pictures, by default the first with images (without one: dots). Of more
    than 240 rows, evenly spread ones are pictures and the others dots. The pointer shows names, up to 2,000
    dots have one, and enlarges.
    """
    frame = as_frame(data)
    clip = the_embedder(embedder)
    points = project_rows(compared(data, column, clip), method)
    name = first_images(frame) if image is None else image
    pictures: Any = None if name is None else pick(frame, name, "images")[1]

    def image_of(row: int) -> Any:  # noqa: ANN401
        value = None if pictures is None else pictures.iloc[row]
        return None if is_missing(value) else value

    return draw_map(points, image_of, [str(label) for label in frame.index], clip.policy)
