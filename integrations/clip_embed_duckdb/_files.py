"""Files read through DuckDB, so that its rules of access hold for them too.

`read_blob` drops a missing file without a word, fails as a whole where one file cannot be read,
and takes a name for a pattern. So files are asked for in groups, matched by name, and what a
group did not give is asked for alone; a name with wildcards is quoted, and always asked alone.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

import duckdb

from clip_embed import ImagePolicy
from clip_embed._images.files import check_bytes, resolve_below_roots
from clip_embed.errors import ImageError
from clip_embed_duckdb._digests import make_stamp, now
from clip_embed_duckdb._names import is_absolute, is_folder, is_pattern, never_ends, quote, remote_schemes

_FACTS = "SELECT filename, size, epoch_us(last_modified) FROM read_blob(?)"  # reads no content
_CONTENT = "SELECT filename, content FROM read_blob(?)"
_ALIVE = "SELECT 1"
_LIST = "SELECT file FROM glob(?)"  # opens nothing, and is refused where reading would be
# The query may not go on; anything else, also what a file system of the user's raises, is about one file.
_FATAL = (
    duckdb.PermissionException,
    duckdb.InterruptException,
    duckdb.ConnectionException,
    duckdb.OutOfMemoryException,
    duckdb.InternalException,
    duckdb.FatalException,
)
_GROUP_FILES = 64
_GROUP_BYTES = 16 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class File:
    """A file that DuckDB lets this query read."""

    path: str
    """As the query names it."""
    name: str
    """As DuckDB found it."""
    size: int
    stamp: bytes
    """Says that it is as it was; empty where nothing does."""


class FileReader:
    """Reads files in small groups; `con` belongs to the reader alone."""

    def __init__(self, con: duckdb.DuckDBPyConnection, search_path: str, policy: ImagePolicy) -> None:
        self._con = con
        self._folders = [folder for folder in search_path.split(",") if folder]
        self._policy = policy

    def find(self, paths: Sequence[str]) -> Iterator[tuple[str, File | ImageError]]:
        """Yield each path with its file or why it cannot be read; no content is read.

        Raises duckdb.PermissionException where DuckDB's settings forbid a path.
        """
        asked = now()
        known = self._ask_group(_FACTS, [path for path in paths if self._is_plain(path)])
        for path in paths:
            try:
                if path in known:
                    name, size, modified = known[path]
                else:
                    asked = now()
                    name, size, modified = self._ask(_FACTS, self._candidates(path))
                check_bytes(size, self._policy)
                if self._policy.roots is not None:
                    resolve_below_roots(Path(name), self._policy)
                yield path, File(path, name, size, make_stamp(name, size, modified, asked))
            except ImageError as error:
                yield path, error

    def read(self, files: Iterable[File]) -> Iterator[tuple[File, bytes | ImageError]]:
        """Yield each file with its content or why it cannot be read; one group is in memory at a time."""
        group: list[File] = []
        for file in files:
            if group and (
                len(group) == _GROUP_FILES or sum(each.size for each in group) + file.size > _GROUP_BYTES
            ):
                yield from self._contents(group)
                group = []
            group.append(file)
        yield from self._contents(group)

    def _contents(self, group: Sequence[File]) -> Iterator[tuple[File, bytes | ImageError]]:
        known = self._ask_group(_CONTENT, [file.name for file in group if not is_pattern(file.name)])
        for file in group:
            try:
                _, content = known.pop(file.name, None) or self._ask(_CONTENT, [file.name])
                yield file, content
            except ImageError as error:
                yield file, error

    def _ask_group(self, query: str, names: Sequence[str]) -> dict[str, Any]:
        """Ask for files together: name -> row; empty where one of them spoils the answer."""
        try:
            rows = self._con.execute(query, [names]).fetchall() if names else []
        except duckdb.Error as error:
            if isinstance(error, _FATAL):
                raise
            return {}
        return {row[0]: row for row in rows}

    def _ask(self, query: str, names: Sequence[str]) -> Any:  # noqa: ANN401 - a row of the query
        """Ask for the first of some names that is a file; ImageError where none is."""
        patterns = [quote(name) for name in names]
        if any(never_ends(name) for name in names):
            self._con.execute(_LIST, [patterns]).fetchall()
            raise ImageError("it is not a regular file")
        try:
            rows = self._con.execute(query, [patterns]).fetchall()
        except duckdb.Error as error:
            if isinstance(error, _FATAL):
                raise
            self._con.execute(_ALIVE)  # ConnectionException where another thread has closed it meanwhile
            reason = str(error).strip().splitlines()[0]
            raise ImageError(f"cannot read the file: {reason}", retryable=True) from None
        wanted = {PurePath(name).name for name in names}
        for row in rows:
            if PurePath(row[0]).name in wanted:
                return row
        raise ImageError(_why_missing(names), retryable=True)

    def _is_plain(self, path: str) -> bool:
        relative = self._folders and not is_absolute(path)
        return not (relative or is_pattern(path) or self._is_remote(path) or never_ends(path))

    def _is_remote(self, name: str) -> bool:
        """Whether it is a URL, and no file system that the user registered reads such."""
        schemes = remote_schemes(name)
        return bool(schemes) and schemes.isdisjoint(self._con.list_filesystems())

    def _candidates(self, path: str) -> list[str]:
        """Return where a path may lie: below the working folder, then below the search path."""
        names = [path]
        if not is_absolute(path):
            names += [f"{folder}/{path}" for folder in self._folders]
        near = [name for name in names if not self._is_remote(name)]
        if not near:
            raise ImageError(
                "URLs are not read; give the path of a file, or its bytes: read_blob reads what DuckDB can"
            )
        return near


def _why_missing(names: Sequence[str]) -> str:
    """Say why DuckDB, which may read them, finds no file of these names."""
    if any(map(is_folder, names)):
        return "it is a folder, no file: glob('folder/*') lists its files"
    if is_pattern(names[0]):
        return "no such file: where it is a pattern, give it to glob(), which lists the files"
    return "no such file"
