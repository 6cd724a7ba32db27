"""Rows that a notebook shows as pictures."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, cast

import pandas as pd

from clip_embed import ImagePolicy
from clip_embed._cli.gallery import Tile
from clip_embed._frames.pictures import SHOWN, gallery_markup, make_tile
from clip_embed._frames.session import the_embedder
from clip_embed_pandas._columns import first_images, full_name, is_missing


@dataclass(frozen=True, slots=True)
class Look:
    """Which columns make a picture's tile."""

    image: Hashable | None = None
    """None: the first column that holds images."""
    score: str | None = None
    texts: tuple[str, ...] = ()
    policy: ImagePolicy | None = None
    """What may be read for a picture; None: that of the embedder in use."""


class Gallery(pd.DataFrame):
    """A DataFrame that a notebook shows as pictures; everywhere else, and in all it does, a DataFrame.

    What its methods return are plain DataFrames. `gallery` makes one of any frame with images.
    """

    _metadata: ClassVar[list[str]] = ["_look"]
    _look: Look | None = None

    @property
    def _constructor(self) -> Callable[..., pd.DataFrame]:
        return pd.DataFrame

    def _repr_html_(self) -> str | None:
        """Return the pictures of the first rows; None where pandas is not to show HTML."""
        look, image = self._look or Look(), self._image_column()
        if image is None:
            return cast("str | None", cast("Any", super())._repr_html_())
        shown = pd.DataFrame(self.iloc[:SHOWN])
        tiles = [_tile(shown, row, image, look) for row in range(len(shown))]
        policy = look.policy or the_embedder(None).policy
        return gallery_markup(tiles, len(self), policy, f"gallery(result.iloc[{SHOWN}:])")

    def _image_column(self) -> Hashable | None:
        """Return the column of the pictures, None where a table is to be shown."""
        if self._look is None or not pd.get_option("display.notebook_repr_html"):
            return None
        named = self._look.image is not None and self._look.image in self.columns
        return self._look.image if named else first_images(self)

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[pd.DataFrame]]:
        """Be a plain DataFrame in a pickle, which others may read without this package."""
        return copy.copy, (self.copy(deep=False),)


def as_gallery(
    frame: pd.DataFrame,
    *,
    image: Hashable | None = None,
    score: str | None = None,
    texts: Sequence[str] = (),
    policy: ImagePolicy | None = None,
) -> Gallery:
    """Return a frame as a gallery of its column `image`, by default the first that holds images."""
    result = Gallery(frame)
    result.attrs.update(frame.attrs)
    result._look = Look(image, score, tuple(texts), policy)  # pyright: ignore[reportPrivateUsage]
    return result


def _tile(frame: pd.DataFrame, row: int, column: Hashable, look: Look) -> tuple[str, Tile]:
    """Return a row's label in the index, and its tile; of columns that are gone meanwhile nothing."""
    names: list[Hashable] = list(frame.columns)

    def value(name: Hashable) -> Any:  # noqa: ANN401
        found: Any = frame.iloc[row, names.index(name)] if name in names else None
        return None if is_missing(found) else found

    texts = {name: value(full_name(frame, name)) for name in look.texts}
    score = None if look.score is None else value(full_name(frame, look.score))
    return str(frame.index[row]), make_tile(value(column), texts, score)
