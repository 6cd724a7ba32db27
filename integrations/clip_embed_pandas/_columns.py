"""Which columns of a frame hold images or vectors, and what is in them."""

from __future__ import annotations

from collections.abc import Generator, Hashable, Iterator, Mapping
from itertools import islice
from typing import Any, cast

import numpy as np
import pandas as pd
import pyarrow as pa

from clip_embed._frames.columns import (
    LOOKED_AT,
    Content,
    Rows,
    choose,
    content_of_type,
    content_of_values,
    image_items,
    is_nothing,
    list_names,
    no_images,
    vectors_or_numbers,
    warn_replaced,
)
from clip_embed._images.source import ImageInput
from clip_embed.arrow import Column, stamp_text


def pick(
    frame: pd.DataFrame, column: Hashable | None, *wanted: Content, dim: int | None = None
) -> tuple[Hashable, Any]:
    """Return the name and the Series of a column: the one that is named, else the only one that fits.

    `wanted` says what it may hold, in order of preference, `dim` which vectors without a stamp are meant,
    others being numbers. Raises ValueError where none or several fit.
    """
    if column is not None:
        return column, _named(frame, column)
    contents: list[Content] = [_meant(series, dim) for series in _all(frame)]
    place = choose(
        list(frame.columns),
        contents,
        wanted,
        empty=not len(frame),
        look=lambda at: _values(frame.iloc[:, at]),
    )
    return frame.columns[place], frame.iloc[:, place]


def first_images(frame: pd.DataFrame) -> Hashable | None:
    """Return the first column that holds images, None where there is none."""
    for name, series in zip(frame.columns, _all(frame), strict=True):
        if content(series) == "images":
            return name
    return None


def full_name(frame: pd.DataFrame, name: str) -> Hashable:
    """Return the name of a column of ours as the frame has names: of several levels, or just one."""
    levels = frame.columns.nlevels
    return name if levels == 1 else (name, *[""] * (levels - 1))


def add(frame: pd.DataFrame, columns: Mapping[str, Any], *, into: bool = False) -> None:
    """Add results to a frame; warn where they replace what is no earlier result. `into` as there."""
    earlier: dict[str, bool] = {}
    kept = {name: frame[full] for name in columns if (full := full_name(frame, name)) in frame.columns}
    for name, values in columns.items():
        frame[full_name(frame, name)] = values
        if name in kept:
            earlier[name] = _is_alike(kept[name], frame[full_name(frame, name)])
    if len(kept) < len(columns):  # whole numbers alone do not show that they are groups of ours
        earlier |= {name: False for name in kept if getattr(kept[name].dtype, "kind", "") == "i"}
    warn_replaced([name for name in kept if not earlier[name]], into=into)


def _is_alike(old: Any, new: Any) -> bool:  # noqa: ANN401 - two Series, or a frame where a name stands twice
    if isinstance(old, pd.DataFrame):
        return False
    kinds = [isinstance(cast("object", each.dtype), pd.CategoricalDtype) for each in (old, new)]
    return all(kinds) or old.dtype == new.dtype or content(old) == content(new) == "vectors"


def content(series: Any) -> Content:  # noqa: ANN401 - a Series
    """Say what a column holds, by its type and where that does not tell by its first values."""
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return content(pd.Series(dtype.categories))
    kind = _content_of_dtype(dtype)
    if kind == "other" and _is_all_missing(series):
        return "nothing"
    if kind is not None:
        return kind
    return content_of_values(_values(series))


def _values(series: Any) -> list[object]:  # noqa: ANN401
    """Return some values of a column that stand for something."""
    return list(islice((value for value in series.array if not is_missing(value)), LOOKED_AT))


def _meant(series: Any, dim: int | None) -> Content:  # noqa: ANN401
    """Return `content`, lists of floats that are no vectors of ours told from those that are."""
    kind = content(series)
    if kind != "vectors":
        return kind
    dtype = getattr(series.dtype, "pyarrow_dtype", None)
    size = getattr(dtype, "list_size", None)
    if size is None:
        size = next((len(value) for value in series.array if not is_missing(value)), None)
    return vectors_or_numbers(dtype is not None and stamp_text(dtype) is not None, size, dim)


def images_of(series: Any, where: str) -> Generator[tuple[Rows, ImageInput]]:  # noqa: ANN401
    """Yield each image of a column with the rows that show it; missing values are left out.

    A path or a category that stands in several rows comes once. Raises TypeError at once where the
    column cannot hold images; `where` names it.
    """
    dtype = series.dtype
    if isinstance(dtype, pd.CategoricalDtype):
        return _categories(series)
    kind = _content_of_dtype(dtype)
    if kind == "vectors" or (kind == "other" and not _is_all_missing(series)):
        raise no_images(where, "vectors already" if kind == "vectors" else dtype)
    return image_items(None if is_missing(value) else value for value in series.array)


def vector_column(series: Any) -> Column | None:  # noqa: ANN401
    """Return a column of vectors as Arrow's, without a copy where it is one; None where it holds none."""
    if isinstance(series.dtype, pd.ArrowDtype):
        if content_of_type(series.dtype.pyarrow_dtype) != "vectors":
            return None
        return cast("Column", series.array.__arrow_array__())
    if content(series) != "vectors":
        return None
    rows = [None if is_missing(value) else np.asarray(value, np.float32) for value in series.array]
    return cast("Column", pa.chunked_array([pa.array(rows, pa.list_(pa.float32()))]))


def is_missing(value: object) -> bool:
    """Whether a value of a column stands for nothing: None, NaN, NA, or a struct of nothing."""
    return value is pd.NA or value is pd.NaT or is_nothing(value)


def _categories(series: Any) -> Generator[tuple[Rows, ImageInput]]:  # noqa: ANN401
    codes = series.cat.codes.to_numpy()
    for code, value in enumerate(series.cat.categories):
        if len(rows := np.flatnonzero(codes == code)):
            yield rows.tolist(), value


def _all(frame: pd.DataFrame) -> Iterator[Any]:
    """Yield the columns by place: two may have one name."""
    return (frame.iloc[:, place] for place in range(frame.shape[1]))


def _named(frame: pd.DataFrame, column: Hashable) -> Any:  # noqa: ANN401
    if isinstance(column, (list, pd.Index)):
        raise TypeError(f"column must be the name of one column, not {column!r}: column={column[0]!r}")
    if column not in frame.columns:
        raise ValueError(f"there is no column {column!r}; the columns are {list_names(frame.columns)}")
    found: Any = frame[column]
    if isinstance(found, pd.DataFrame):
        message = f"{found.shape[1]} columns are called {column!r}: rename all but one"
        raise ValueError(message)  # noqa: TRY004 - the name is at fault, not a type
    return found


def _content_of_dtype(dtype: Any) -> Content | None:  # noqa: ANN401
    """Say what a column of a type holds; None where its values must be looked at."""
    if isinstance(dtype, pd.ArrowDtype):
        return content_of_type(dtype.pyarrow_dtype)
    return None if isinstance(dtype, pd.StringDtype) or dtype == np.dtype(object) else "other"


def _is_all_missing(series: Any) -> bool:  # noqa: ANN401
    """Whether no value is known: empty cells of a CSV file, and no cells at all, are numbers to pandas."""
    if not len(series):
        return bool(series.dtype == np.dtype(float))
    return is_missing(series.iloc[0]) and bool(series.isna().all())
