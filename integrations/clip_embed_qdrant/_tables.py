"""Images in tables and in any iterable."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import pyarrow as pa

from clip_embed._images.source import describe
from clip_embed.arrow import Column, image_values
from clip_embed_qdrant._entries import (
    Entry,
    File,
    Locate,
    Source,
    damaged,
    local_entry,
    normal_key,
    plain_payload,
)

_BROKEN = (OSError, EOFError, pa.ArrowException)
_ROWS = 64  # of a table at once: an image may lie in each

Columns = tuple[str, str, Sequence[str] | None]
"""Names of the columns with image, key and payload; None for all others that a payload can hold."""
Batches = Callable[[], Iterator[pa.RecordBatch]]


def parquet(name: str, files: Sequence[File], columns: Columns) -> Source:
    """The rows of Parquet files; paths are relative to the folder of each."""
    import pyarrow.parquet as pq

    reader = cast("Any", pq).ParquetFile

    def batches(file: File) -> Iterator[pa.RecordBatch]:
        with file.open() as stream, reader(stream) as opened:
            yield from opened.iter_batches(batch_size=_ROWS)

    def total() -> int | None:
        count = 0
        try:
            for file in files:
                with file.open() as stream:
                    count += reader(stream).metadata.num_rows
        except _BROKEN:  # it will be listed as failed
            return None
        return count

    return Source(name, partial(_of_files, files, batches, columns), total)


def csv(name: str, files: Sequence[File], columns: Columns) -> Source:
    """The rows of CSV files with a header; paths are relative to the folder of each."""
    from pyarrow import csv as reader

    def batches(file: File) -> Iterator[pa.RecordBatch]:
        with file.open() as stream:
            names = cast("Any", reader).open_csv(stream).schema.names
        # A key is a text, 007 is not 7. Columns that are not taken along cannot do any harm.
        wanted = [*columns[:2], *(names if columns[2] is None else columns[2])]
        options = reader.ConvertOptions(
            column_types=dict.fromkeys(columns[:2], pa.string()),
            include_columns=[each for each in dict.fromkeys(wanted) if each in names],
        )
        with file.open() as stream:
            try:
                for batch in cast("Any", reader).open_csv(stream, convert_options=options):
                    yield from _sliced(batch)
            except pa.ArrowInvalid as error:
                way = "name the columns to take along by payload=, or give a table with the right types"
                raise pa.ArrowInvalid(f"{file.name}: {error}: {way}") from error

    root = files[0].folder if len(files) == 1 else None
    return Source(name, partial(_of_files, files, batches, columns), lambda: None, root)


def arrow(source: Any, columns: Columns) -> Source:  # noqa: ANN401 - whatever hands out an Arrow stream
    """The rows of an Arrow table, dataset or reader, or of what exports Arrow (DuckDB, polars, pandas)."""
    used = isinstance(source, pa.RecordBatchReader)

    def batches() -> Iterator[pa.RecordBatch]:
        if hasattr(source, "scanner"):
            reader = source.scanner(batch_size=_ROWS).to_reader()
        elif hasattr(source, "to_arrow_reader"):  # a DuckDB relation
            reader = source.to_arrow_reader(2048)
        else:
            reader = pa.RecordBatchReader.from_stream(source)
        for batch in reader:
            yield from _sliced(batch)

    total = source.num_rows if isinstance(source, (pa.Table, pa.RecordBatch)) else None
    rows = partial(_rows, batches, columns, local_entry)
    return Source(type(source).__name__, rows, lambda: total, repeatable=not used)


def is_arrow(source: object) -> bool:
    """Whether something hands out rows in Arrow's form."""
    return any(hasattr(source, name) for name in ("__arrow_c_stream__", "to_arrow_reader", "scanner"))


def iterable(source: Iterable[object], columns: Columns) -> Source:
    """(key, image) pairs, (key, image, payload) triples or mappings with the columns."""
    total = len(source) if isinstance(source, Sized) else None
    repeatable = not isinstance(source, Iterator)
    return Source(
        type(source).__name__, partial(_items, source, columns), lambda: total, repeatable=repeatable
    )


def _sliced(batch: pa.RecordBatch) -> Iterator[pa.RecordBatch]:
    return (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))


def _of_files(
    files: Sequence[File], batches: Callable[[File], Iterator[pa.RecordBatch]], columns: Columns
) -> Iterator[Entry]:
    """Yield the rows of each file; one that cannot be read further is a failure, and the next follow."""
    for file in files:
        try:
            yield from _rows(partial(batches, file), columns, file.locate)
        except pa.ArrowInvalid as error:
            if file.name.lower().endswith(".csv"):  # its types are to be mended, by whoever gives it
                raise
            yield damaged(file, error, retryable=False)
        except _BROKEN as error:
            yield damaged(file, error, retryable=False)
        except ValueError as error:
            raise ValueError(f"{file.name}: {error}") from error


def _rows(batches: Batches, columns: Columns, locate: Locate) -> Iterator[Entry]:
    image, key, _ = columns
    number = 0
    for batch in batches():
        missing = [name for name in (image, key) if name not in batch.schema.names]
        if missing:
            raise ValueError(
                f"there is no column {missing[0]!r}; name those of images and keys by image= and key= among "
                f"{', '.join(batch.schema.names)}"
            )
        names = _payload_names(batch.schema, columns)
        payloads = cast("list[dict[str, object]]", batch.select(names).to_pylist()) if names else None
        keys = cast("list[object]", batch.column(key).to_pylist())
        images = image_values(cast("Column", batch.column(image)))
        for place, value in enumerate(images):
            payload = payloads[place] if payloads else {}
            yield _row_entry(keys[place], value, payload, locate, number)
            number += 1


def _payload_names(schema: Any, columns: Columns) -> list[str]:  # noqa: ANN401 - of pyarrow
    image, key, wanted = columns
    if wanted is not None:
        if missing := [name for name in wanted if name not in schema.names]:
            raise ValueError(f"there is no column {missing[0]!r}; there are {', '.join(schema.names)}")
        return list(wanted)
    return [field.name for field in schema if field.name not in (image, key) and _is_plain(field.type)]


def _is_plain(kind: Any) -> bool:  # noqa: ANN401 - a type of pyarrow
    if pa.types.is_list(kind):
        return _is_plain(kind.value_type) and not pa.types.is_floating(kind.value_type)  # no vectors
    tests = (
        "boolean",
        "integer",
        "floating",
        "string",
        "large_string",
        "string_view",
        "date",
        "timestamp",
        "decimal",
    )
    return any(getattr(pa.types, f"is_{test}")(kind) for test in tests)


def _row_entry(
    key: object, image: object, payload: Mapping[str, object], locate: Locate, number: int
) -> Entry:
    if key is None or key == "":
        row, what = f"row {number}", "NULL" if key is None else "empty"
        return Entry(row, problem=f"the key is {what}", retryable=False, name=row)
    name = normal_key(str(key))
    if image is None:
        return Entry(name, problem="the image is NULL", retryable=False, name=name)
    if isinstance(image, Mapping):
        fields = cast("Mapping[str, object]", image)
        image = fields["bytes"] if fields.get("bytes") is not None else fields.get("path")
    try:
        plain = plain_payload(payload)
    except ValueError as error:
        return Entry(name, problem=str(error), retryable=False, name=name)
    if isinstance(image, str) and image.lower().startswith(("http://", "https://")):
        return Entry(name, image, "url", plain)
    if isinstance(image, (str, Path)):
        return replace(locate(str(image)), key=name, payload=plain)
    return Entry(name, image, None, plain, name=f"{name} ({describe(image)})")


def _items(source: Iterable[object], columns: Columns) -> Iterator[Entry]:
    image, key, wanted = columns
    for number, given in enumerate(source):
        item: Any = given
        if isinstance(given, Mapping):
            row = cast("Mapping[str, object]", item)
            if missing := [name for name in (image, key, *(wanted or ())) if name not in row]:
                raise ValueError(f"item {number} has no {missing[0]!r}; it has {', '.join(row)}")
            names = [name for name in row if name not in (image, key)] if wanted is None else wanted
            yield _row_entry(row[key], row[image], {name: row[name] for name in names}, local_entry, number)
            continue
        size = len(item) if isinstance(given, tuple) else 0
        payload: object = item[2] if size == 3 else dict[str, object]()
        if size not in (2, 3) or not isinstance(payload, Mapping):
            what = describe(item) if size != 3 else f"a triple that ends in {describe(payload)}"
            raise TypeError(f"item {number} is {what}: give (key, image), (key, image, payload) or mappings")
        yield _row_entry(item[0], item[1], cast("Mapping[str, object]", payload), local_entry, number)
