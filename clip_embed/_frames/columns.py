"""What a column holds, and which one a verb means where none is named."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from math import isnan
from pathlib import Path
from typing import Any, Literal, TypeAlias, cast

import numpy as np
import pyarrow as pa
from PIL import Image

from clip_embed._images.folders import is_image_name
from clip_embed._images.source import ImageInput
from clip_embed._warn import warn_caller

Content = Literal["images", "vectors", "numbers", "nothing", "texts", "mixed", "other"]
"""What a column holds; "numbers" are lists that need not be vectors of ours, "mixed" any objects."""
Rows: TypeAlias = "list[int]"
ERROR = "_error"
"""What the name of the column with reasons ends with, behind that of the vectors."""
LOOKED_AT = 20
"""How many values of a column are looked at, to tell what it holds."""


def choose(
    names: Sequence[object],
    contents: Sequence[Content],
    wanted: Sequence[Content],
    *,
    empty: bool,
    look: Callable[[int], Sequence[object]],
) -> int:
    """Return the place of the only column that holds what is wanted, the first kind of it that there is.

    In an `empty` frame, one without rows, it is the first that may: they all mean the same. Raises ValueError
    where no or several columns do, and lists them; `look` gives some values of a column.
    """
    for kind in wanted:
        found = [place for place, each in enumerate(contents) if each == kind]
        if not found and kind == "images" and (empty or "texts" not in contents):
            nothing = [place for place, each in enumerate(contents) if each == "nothing"]
            if empty or len(nothing) == 1:  # without a value it cannot show what it is for
                found = nothing[:1]
        if len(found) == 1:
            return found[0]
        if found:
            several = ", ".join(repr(names[place]) for place in found)
            raise ValueError(
                f"several columns hold {_called(kind)}: {several}; say which one: column={names[found[0]]!r}"
            )
    texts = [repr(name) for name, kind in zip(names, contents, strict=True) if kind in ("texts", "nothing")]
    hint = f"; where {' or '.join(texts)} has paths, say so: column={texts[0]}" if texts else ""
    if not texts and "mixed" in contents:
        name, values = names[contents.index("mixed")], look(contents.index("mixed"))
        hint = f"; {name!r} holds {_types(values)}: column={name!r} embeds what is an image among them"
    kinds = " or ".join(dict.fromkeys(map(_called, reversed(wanted))))
    raise ValueError(f"no column holds {kinds}; the columns are {list_names(names)}{hint}")


def _types(values: Sequence[object]) -> str:
    """Name the kinds of values for a message."""
    kinds: list[str] = []
    for value in cast("Sequence[Any]", values):
        is_array = type(value) is np.ndarray
        kinds.append(f"{value.dtype} arrays of {value.ndim} dimensions" if is_array else type(value).__name__)
    return " and ".join(sorted({*kinds}))


def _called(kind: Content) -> str:
    return "vectors" if kind == "numbers" else kind


def vectors_or_numbers(is_stamped: bool, dim: int | None, wanted: int | None) -> Content:
    """Say what a column with lists of `dim` floats holds, None where they are not known.

    Vectors are stamped, or have the dimension that is wanted, that of a model.
    """
    return "vectors" if is_stamped or (wanted is not None and dim in (wanted, None)) else "numbers"


def check_into(into: object, images: object) -> None:
    """Raise TypeError for a name of a new column that is no text, ValueError for that of the images."""
    if not isinstance(into, str):
        raise TypeError(f"into must be the name of a new column, a str, not {into!r}")
    if images in (into, f"{into}{ERROR}"):
        raise ValueError(f"into={into!r} would replace the column of images {images!r}: give another name")


def warn_replaced(foreign: Sequence[object], *, into: bool) -> None:
    """Warn that a verb replaces columns which are no earlier results of it; `into` is a way out."""
    if foreign:
        way = ", or give the new one another name: into=" if into else ""
        warn_caller(
            f"replaced by results of the same name: {list_names(foreign)}; rename first to keep it{way}"
        )


def list_names(names: Iterable[object]) -> str:
    """Return the names of columns for a message."""
    return ", ".join(map(repr, names)) or "none"


def content_of_type(kind: Any) -> Content | None:  # noqa: ANN401 - a pa.DataType
    """Say what a column of an Arrow type holds; None where its values must be looked at."""
    types = pa.types
    if types.is_list(kind) or types.is_large_list(kind) or types.is_fixed_size_list(kind):
        return "vectors" if types.is_floating(kind.value_type) else "other"
    if types.is_binary(kind) or types.is_large_binary(kind) or types.is_binary_view(kind):
        return "images"
    if types.is_struct(kind):
        return "images" if {"bytes", "path"} & {field.name for field in _fields(kind)} else "other"
    if types.is_dictionary(kind):
        return content_of_type(kind.value_type)
    texts = types.is_string(kind) or types.is_large_string(kind) or types.is_string_view(kind)
    return None if texts or types.is_null(kind) else "other"


def _fields(struct: Any) -> list[Any]:  # noqa: ANN401 - a pa.StructType
    return [struct.field(place) for place in range(struct.num_fields)]


def content_of_values(values: Sequence[object]) -> Content:
    """Say what a column holds by some of its values; texts are images where they end like a file's name."""
    if not values:
        return "nothing"
    if all(map(_is_image, values)):
        return "images"
    if all(isinstance(value, str) for value in values):
        return "texts"
    return "vectors" if all(map(_is_vector, values)) else "mixed"


def is_nothing(value: object) -> bool:
    """Whether a value stands for no image: None, NaN, or a struct of nothing."""
    if isinstance(value, Mapping):
        fields = cast("Mapping[str, object]", value)
        return fields.get("bytes") is None and fields.get("path") is None
    if isinstance(value, np.floating):
        value = cast("object", value.item())
    return value is None or (isinstance(value, float) and isnan(value))


def image_items(values: Iterable[object]) -> Generator[tuple[Rows, ImageInput]]:
    """Yield each image with the rows that show it: a path that stands in several rows comes once."""
    paths: dict[object, Rows] = {}
    for row, value in enumerate(values):
        if isinstance(value, (str, Path)):
            paths.setdefault(value, []).append(row)
        elif not is_nothing(value):
            yield [row], cast("ImageInput", value)
    for path, rows in paths.items():
        yield rows, cast("ImageInput", path)


def no_images(where: str, found: object) -> TypeError:
    """Return the error for a column that cannot hold images."""
    return TypeError(
        f"{where} holds {found}, not images: paths, bytes, PIL images, uint8 arrays (height, width, 3) "
        "or structs with 'bytes' or 'path'"
    )


def _is_image(value: object) -> bool:
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, np.dtype[Any]]", value)
        return array.ndim == 3 and array.dtype == np.uint8
    if isinstance(value, str):
        return is_image_name(value)
    return isinstance(value, (bytes, Path, Image.Image, Mapping))


def _is_vector(value: object) -> bool:
    if isinstance(value, np.ndarray):
        array = cast("np.ndarray[Any, np.dtype[Any]]", value)
        return array.ndim == 1 and array.dtype.kind == "f"
    numbers = cast("list[object]", value) if isinstance(value, list) else []
    return bool(numbers) and all(isinstance(number, float) for number in numbers)
