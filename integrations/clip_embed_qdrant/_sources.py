"""What may be given to `ingest`, by what it looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import cast

from clip_embed._images.source import describe
from clip_embed._types import ImagePolicy
from clip_embed_qdrant import _tables, _tars
from clip_embed_qdrant._entries import File, Source
from clip_embed_qdrant._files import expanded, folder, local_files, pattern
from clip_embed_qdrant._remote import Remote

_TARS = (".tar", ".tar.gz", ".tgz")
EMPTY = "the source is empty: give a folder, a pattern, a URL or a file; the current folder is '.'"
_CONTAINERS = (".parquet", ".csv", *_TARS)


def open_source(
    source: object,
    *,
    columns: _tables.Columns,
    policy: ImagePolicy,
    storage_options: Mapping[str, object] | None = None,
) -> Source:
    """Return a folder, pattern, URL, table, tar file or iterable as a source; nothing is read yet.

    Raises FileNotFoundError for a path where nothing is, ValueError for an empty text, which would mean
    the current folder, TypeError for what is no source.
    """
    given: object = source
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, Path)):
        text = str(source)
        if not text:
            raise ValueError(EMPTY)
        if "://" in text:
            return _behind_url(text, columns, policy, storage_options)
        return _here(text, columns, policy)
    if _tables.is_arrow(source):
        return _tables.arrow(source, columns)
    if isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        return _tables.iterable(cast("Iterable[object]", source), columns)
    raise TypeError(
        f"{describe(given)} is no source: give a folder, a pattern, a URL, a table, "
        "a Parquet, CSV or tar file, or an iterable of (key, image)"
    )


def _here(text: str, columns: _tables.Columns, policy: ImagePolicy) -> Source:
    if Path(text).is_dir():
        return folder(Path(text))
    if text.lower().endswith(_CONTAINERS):
        return _contents(text, local_files(text), columns, policy)
    found = pattern(text)
    if found:
        return found
    if not Path(text).exists():
        raise FileNotFoundError(f"there is no {text}")
    raise TypeError(
        f"{text} is no source: give a folder, a pattern, or a Parquet, CSV or tar file; a single image as "
        "[(key, path)]"
    )


def _behind_url(
    url: str, columns: _tables.Columns, policy: ImagePolicy, options: Mapping[str, object] | None
) -> Source:
    if not url.lower().endswith(_CONTAINERS):
        return Remote(url, policy, options).images()
    files = [file for each in expanded(url) for file in Remote(each, policy, options).files()]
    return _contents(url, files, columns, policy)


def _contents(name: str, files: Sequence[File], columns: _tables.Columns, policy: ImagePolicy) -> Source:
    """Return what is in files of the kind that the name says."""
    if name.lower().endswith(_TARS):
        return _tars.tar(name, files, policy)
    kind = _tables.csv if name.lower().endswith(".csv") else _tables.parquet
    return kind(name, files, columns)
