"""Which columns hold images or vectors, and what is in them."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping
from itertools import islice
from pathlib import Path, PurePath
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import pandas as pd
import pyarrow as pa
from PIL import Image

from clip_embed._cli.folder_index import SUFFIXES
from clip_embed._images.source import ImageInput
from clip_embed.arrow import Column

Content = Literal["images", "vectors", "nothing", "other"]
Rows: TypeAlias = "list[int]"
_LOOKED_AT = 20  # values of a column, to tell what it holds


def pick(frame: pd.DataFrame, column: Hashable | None, wanted: tuple[Content, ...]) -> tuple[Hashable, Any]:
    """Return the name and the Series of a column: the one that is named, else the only one that fits.

    `wanted` says what a column may hold, in order of preference. Raises ValueError where none or several
    fit, and lists them.
    """
    if column is not None:
        return column, _named(frame, column)
    contents = [content(series) for series in _all(frame)]
    for kind in wanted:
        found = [place for place, each in enumerate(contents) if each == kind]
        if not found and kind == "images" and "vectors" not in contents:
            # Without a single value a column cannot show what it is meant for.
            found = [place for place, each in enumerate(contents) if each == "nothing"]
            found = found if len(found) == 1 else []
        if len(found) == 1:
            return frame.columns[found[0]], frame.iloc[:, found[0]]
        if found:
            names = ", ".join(repr(frame.columns[place]) for place in found)
            raise ValueError(f"several columns hold {kind}: {names}; say which one: column={frame.columns[found[0]]!r}")
    raise ValueError(_none_fits(frame, contents, wanted))


def first_images(frame: pd.DataFrame) -> Hashable | None:
    """Return the first column that holds images, None where there is none."""
    for name, series in zip(frame.columns, _all(frame), strict=True):
        if content(series) == "images":
            return name
    return None


def content(series: Any) -> Content:  # noqa: ANN401 - a Series
    """Say what a column holds, by its type and its first values; texts are images by their suffix."""
    dtype = series.dtype
    if isinstance(dtype, pd.ArrowDtype) and (kind := _of_arrow(dtype.pyarrow_dtype)) is not None:
        return kind
    if isinstance(dtype, pd.CategoricalDtype):
        return content(pd.Series(dtype.categories))
    if not _may_hold_objects(dtype):
        return "other"
    values = list(islice((value for value in series.array if not is_missing(value)), _LOOKED_AT))
    if not values:
        return "nothing"
    if all(isinstance(value, str) and not is_image_path(value) for value in values):
        return "other"
    if all(_is_vector(value) for value in values):
        return "vectors"
    return "images" if all(_is_image(value) for value in values) else "other"


def image_items(series: Any, where: str) -> Generator[tuple[Rows, ImageInput]]:  # noqa: ANN401
    """Yield each image of a column with the rows that show it; missing values are left out.

    A path that stands in several rows, and a category, is given once. Raises TypeError at once where
    the column cannot hold images.
    """
    dtype = series.dtype
    kind = _of_arrow(dtype.pyarrow_dtype) if isinstance(dtype, pd.ArrowDtype) else None
    if kind in ("vectors", "other") or not (isinstance(dtype, pd.CategoricalDtype) or kind or _may_hold_objects(dtype)):
        instead = "vectors already" if kind == "vectors" else f"{dtype}"
        raise TypeError(
            f"{where} holds {instead}, not images: paths, bytes, PIL images, uint8 arrays (height, width, 3) "
            "or structs with 'bytes' or 'path'"
        )
    return _items(series)


def vector_column(series: Any) -> Column | None:  # noqa: ANN401
    """Return a column of vectors as Arrow's, without a copy where it is one; None where it holds none."""
    if isinstance(series.dtype, pd.ArrowDtype):
        if _of_arrow(series.dtype.pyarrow_dtype) != "vectors":
            return None
        return cast("Column", series.array.__arrow_array__())
    if content(series) != "vectors":
        return None
    rows = [None if is_missing(value) else np.asarray(value, np.float32) for value in series.array]
    return cast("Column", pa.array(rows, pa.list_(pa.float32())))


def is_missing(value: object) -> bool:
    """Whether a value of a column stands for nothing: None, NaN, NA, or a struct of nothing."""
    if value is None or value is pd.NA or value is pd.NaT:
        return True
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return fields.get("bytes") is None and fields.get("path") is None
    return isinstance(value, float) and value != value


def is_image_path(text: str) -> bool:
    """Whether a text ends as the name of an image does."""
    return PurePath(text).suffix.lower() in SUFFIXES


def _items(series: Any) -> Generator[tuple[Rows, ImageInput]]:  # noqa: ANN401
    if isinstance(series.dtype, pd.CategoricalDtype):
        codes = series.cat.codes.to_numpy()
        for code, value in enumerate(series.cat.categories):
            if len(rows := np.flatnonzero(codes == code)):
                yield rows.tolist(), value
        return
    paths: dict[object, Rows] = {}
    for row, value in enumerate(cast("Iterator[Any]", series.array)):
        if isinstance(value, (str, Path)):
            paths.setdefault(value, []).append(row)
        elif not is_missing(value):
            yield [row], value
    for path, rows in paths.items():
        yield rows, cast("ImageInput", path)


def _all(frame: pd.DataFrame) -> Iterator[Any]:
    """Yield the columns by place: two may have one name."""
    return (frame.iloc[:, place] for place in range(frame.shape[1]))


def _named(frame: pd.DataFrame, column: Hashable) -> Any:  # noqa: ANN401
    if column not in frame.columns:
        raise ValueError(f"there is no column {column!r}; the columns are {_list(frame)}")
    found: Any = frame[column]
    if isinstance(found, pd.DataFrame):
        raise ValueError(f"{found.shape[1]} columns are called {column!r}: rename all but one")
    return found


def _list(frame: pd.DataFrame) -> str:
    return ", ".join(repr(name) for name in frame.columns) or "none"


def _none_fits(frame: pd.DataFrame, contents: list[Content], wanted: tuple[Content, ...]) -> str:
    texts = [
        repr(name)
        for name, kind, series in zip(frame.columns, contents, _all(frame), strict=True)
        if kind in ("other", "nothing") and _may_hold_objects(series.dtype)
    ]
    hint = f"; where {' or '.join(texts)} has paths, say so: column={texts[0]}" if texts else ""
    return f"no column holds {' or '.join(reversed(wanted))}; the columns are {_list(frame)}{hint}"


def _of_arrow(kind: Any) -> Content | None:  # noqa: ANN401 - a pa.DataType
    """Say what an Arrow type holds; None where its values must be looked at."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "vectors" if types.is_floating(kind.value_type) else "other"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "images"
    if types.is_struct(kind):
        return "images" if {"bytes", "path"} & {field.name for field in list(kind)} else "other"
    if types.is_dictionary(kind):
        return _of_arrow(kind.value_type)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return None if texts or types.is_null(kind) else "other"


def _may_hold_objects(dtype: Any) -> bool:  # noqa: ANN401
    if isinstance(dtype, pd.ArrowDtype):
        return _of_arrow(dtype.pyarrow_dtype) is None
    return isinstance(dtype, pd.StringDtype) or dtype == np.dtype(object)


def _is_image(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 3 and value.dtype == np.uint8
    if isinstance(value, str):
        return is_image_path(value)
    return isinstance(value, (bytes, Path, Image.Image, Mapping))


def _is_vector(value: object) -> bool:
    if isinstance(value, np.ndarray):
        return value.ndim == 1 and value.dtype.kind == "f"
    numbers = cast("list[object]", value) if isinstance(value, list) else []
    return bool(numbers) and all(isinstance(number, float) for number in numbers)
