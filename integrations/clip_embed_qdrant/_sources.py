"""What may be given to `ingest`, by what it looks like."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import cast

from clip_embed._images.source import describe
from clip_embed._types import ImagePolicy
from clip_embed_qdrant import _files, _tables
from clip_embed_qdrant._entries import Source

_TARS = (".tar", ".tar.gz", ".tgz")


def open_source(
    source: object,
    *,
    columns: _tables.Columns,
    policy: ImagePolicy,
    storage_options: Mapping[str, object] | None = None,
) -> Source:
    """Return a folder, pattern, URL, table, tar file or iterable as a source; nothing is read yet.

    Raises FileNotFoundError for a path where nothing is, TypeError for what is no source.
    """
    given: object = source
    if isinstance(source, Source):
        return source
    if isinstance(source, (str, Path)):
        text = str(source)
        if "://" in text:
            return _files.remote(text, policy, storage_options)
        if not Path(source).exists() and _files.is_pattern(text):
            return _matches(text, policy)
        return _path(Path(source), columns, policy)
    if _tables.is_arrow(source):
        return _tables.arrow(source, columns)
    if isinstance(source, Iterable) and not isinstance(source, (bytes, Mapping)):
        return _tables.iterable(cast("Iterable[object]", source), columns)
    raise TypeError(
        f"{describe(given)} is no source: give a folder, a pattern, a URL, a table, "
        "a Parquet, CSV or tar file, or an iterable of (key, image)"
    )


def _path(path: Path, columns: _tables.Columns, policy: ImagePolicy) -> Source:
    if path.is_dir():
        return _files.folder(path)
    if not path.exists():
        raise FileNotFoundError(f"there is no {path}")
    name = path.name.lower()
    if name.endswith(".parquet"):
        return _tables.parquet(path, columns)
    if name.endswith(".csv"):
        return _tables.csv(path, columns)
    if name.endswith(_TARS):
        return _tables.tar([path], policy)
    raise TypeError(
        f"{path} is no source: give a folder, a pattern, or a Parquet, CSV or tar file; a single image as "
        "[(key, path)]"
    )


def _matches(text: str, policy: ImagePolicy) -> Source:
    if text.lower().endswith(_TARS):
        import glob

        return _tables.tar([Path(name) for name in sorted(glob.glob(text, recursive=True))], policy)  # noqa: PTH207
    return _files.pattern(text)
