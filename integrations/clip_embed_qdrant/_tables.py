"""Images in tables, in tar files and in any iterable."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Sized
from functools import partial
from pathlib import Path, PurePosixPath
from typing import Any, cast

import pyarrow as pa

from clip_embed._images.folders import is_image_name
from clip_embed._images.source import describe
from clip_embed._types import ImagePolicy
from clip_embed.arrow import Column, image_values
from clip_embed_qdrant._entries import Entry, Source, file_state, normal_key, plain_payload, stat_state

_ROWS = 64  # of a table at once: an image may lie in each

Columns = tuple[str, str, Sequence[str] | None]
"""Names of the columns with image, key and payload; None for all others that a payload can hold."""
Batches = Callable[[], Iterator[pa.RecordBatch]]


def parquet(file: Path, columns: Columns) -> Source:
    """The rows of a Parquet file."""
    import pyarrow.parquet as pq

    def batches() -> Iterator[pa.RecordBatch]:
        with pq.ParquetFile(file) as opened:
            yield from cast("Any", opened).iter_batches(batch_size=_ROWS)

    rows = partial(_rows, batches, columns, file.absolute().parent)
    return Source(str(file), rows, lambda: pq.ParquetFile(file).metadata.num_rows)


def csv(file: Path, columns: Columns) -> Source:
    """The rows of a CSV file with a header; paths are relative to its folder."""
    from pyarrow import csv as reader

    def batches() -> Iterator[pa.RecordBatch]:
        with cast("Any", reader).open_csv(file) as opened:
            for batch in opened:
                yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))

    return Source(str(file), partial(_rows, batches, columns, file.absolute().parent), lambda: None)


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
            yield from (batch.slice(start, _ROWS) for start in range(0, batch.num_rows, _ROWS))

    total = source.num_rows if isinstance(source, (pa.Table, pa.RecordBatch)) else None
    return Source(
        type(source).__name__, partial(_rows, batches, columns, None), lambda: total, repeatable=not used
    )


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


def tar(files: Sequence[Path], policy: ImagePolicy) -> Source:
    """The images in tar files, compressed or not; a JSON, text or class file beside one is its payload."""
    return Source(str(files[0]), partial(_members, files, policy), lambda: None)


def _rows(batches: Batches, columns: Columns, folder: Path | None) -> Iterator[Entry]:
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
            yield _row_entry(keys[place], value, payload, folder, number)
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
    key: object, image: object, payload: Mapping[str, object], folder: Path | None, number: int
) -> Entry:
    if key is None:
        return Entry(f"row {number}", problem="the key is NULL", retryable=False, name=f"row {number}")
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
    if isinstance(image, (str, Path)):
        is_url = isinstance(image, str) and image.lower().startswith(("http://", "https://"))
        path = image if is_url or folder is None else folder / image
        return Entry(name, path, "url" if is_url else stat_state(Path(path)) or "missing", plain)
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
            yield _row_entry(row[key], row[image], {name: row[name] for name in names}, None, number)
            continue
        size = len(item) if isinstance(given, tuple) else 0
        if size not in (2, 3):
            raise TypeError(
                f"item {number} is {describe(item)}: give (key, image), (key, image, payload) or mappings"
            )
        yield _row_entry(item[0], item[1], item[2] if size == 3 else {}, None, number)


def _members(files: Sequence[Path], policy: ImagePolicy) -> Iterator[Entry]:
    for file in files:
        with tarfile.open(file, "r|*") as opened:
            sample: list[tuple[tarfile.TarInfo, bytes | None]] = []
            while (member := opened.next()) is not None:
                cast("Any", opened).members.clear()  # it would remember every one
                if not member.isfile():
                    continue
                if sample and _stem(sample[0][0].name) != _stem(member.name):
                    yield from _sample(file, sample)
                    sample = []
                stream = opened.extractfile(member) if member.size <= policy.max_bytes else None
                sample.append((member, stream.read() if stream else None))
            yield from _sample(file, sample)


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _sample(file: Path, members: list[tuple[tarfile.TarInfo, bytes | None]]) -> Iterator[Entry]:
    """Yield the images among the files of one sample, each with the payload of the others."""
    payload: dict[str, object] = {}
    problem = None
    for member, content in members:
        suffix = PurePosixPath(member.name).suffix.lower()
        try:
            if suffix == ".json" and content is not None:
                given = json.loads(content)
                payload |= given if isinstance(given, dict) else {"json": given}
            elif suffix in (".txt", ".cls") and content is not None:
                text = content.decode().strip()
                payload[suffix[1:]] = int(text) if suffix == ".cls" else text
        except ValueError as error:
            problem = f"{member.name}: {error}"
    for member, content in members:
        if not is_image_name(member.name):
            continue
        key = normal_key(f"{file.name}/{member.name}")
        if content is None:
            problem = f"{member.size:,} bytes are more than the policy's max_bytes"
        if problem:
            yield Entry(key, problem=problem, retryable=False, name=key)
            continue
        entry = _row_entry(key, content, {"path": key, "size": member.size} | payload, None, 0)
        state = file_state(member.size, int(member.mtime * 1_000_000_000))
        yield Entry(
            entry.key, entry.image, state, entry.payload, problem=entry.problem, retryable=False, name=key
        )
