"""Files read through DuckDB, so that its rules of access hold for them too.

`read_blob` drops a missing file without a word, fails as a whole where one file cannot be read,
and takes a name for a pattern. So files are asked for in groups, matched by name, and what a
group did not give is asked for alone; a name with wildcards is quoted, and always asked alone.
"""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePath
from typing import Any

import duckdb

from clip_embed import ImagePolicy
from clip_embed.errors import ImageError

_SIZE = "SELECT filename, size FROM read_blob(?)"
_CONTENT = "SELECT filename, content FROM read_blob(?)"
# A file that cannot be read; PermissionException and the rest say that the query may not go on.
_UNREADABLE = (duckdb.IOException, duckdb.InvalidInputException)
_WILDCARD = re.compile(r"[*?[]")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z][\w+.-]*:")  # a root, a drive or a scheme
_FILE_SCHEME = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)
_GROUP_FILES = 32
_GROUP_BYTES = 16 * 1024 * 1024

_Read = tuple[str, bytes | ImageError]


class FileReader:
    """Reads files in small groups; `con` belongs to the reader alone."""

    def __init__(self, con: duckdb.DuckDBPyConnection, search_path: str, policy: ImagePolicy) -> None:
        self._con = con
        self._folders = [folder for folder in search_path.split(",") if folder]
        self._policy = policy

    def read(self, paths: Sequence[str]) -> Iterator[_Read]:
        """Yield each path with its content or why it cannot be read, in any order.

        At most one group of contents is in memory. Raises duckdb.PermissionException where
        DuckDB's settings forbid a path.
        """
        group: list[tuple[str, str]] = []
        waiting = 0
        for path, name, size in self._sizes(paths):
            if isinstance(name, ImageError):
                yield path, name
                continue
            if group and (len(group) == _GROUP_FILES or waiting + size > _GROUP_BYTES):
                yield from self._contents(group)
                group, waiting = [], 0
            group.append((path, name))
            waiting += size
        yield from self._contents(group)

    def _sizes(self, paths: Sequence[str]) -> Iterator[tuple[str, str | ImageError, int]]:
        """Yield path, full name and size of each file; no content is read."""
        known = self._ask_group(_SIZE, [path for path in paths if self._is_plain(path)])
        for path in paths:
            try:
                name, size = (
                    (path, known[path]) if path in known else self._ask(_SIZE, self._candidates(path))
                )
                self._check_policy(name, size)
            except ImageError as error:
                yield path, error, 0
            else:
                yield path, name, size

    def _contents(self, group: Sequence[tuple[str, str]]) -> Iterator[_Read]:
        names = [name for _, name in group if not _WILDCARD.search(name)]
        known = self._ask_group(_CONTENT, names)
        for path, name in group:
            if name in known:
                yield path, known[name]
                continue
            try:
                yield path, self._ask(_CONTENT, [name])[1]
            except ImageError as error:
                yield path, error

    def _ask_group(self, query: str, names: Sequence[str]) -> dict[str, Any]:
        """Ask for files together; empty where one of them spoils the answer."""
        try:
            return dict(self._con.execute(query, [names]).fetchall()) if names else {}
        except _UNREADABLE:
            return {}

    def _ask(self, query: str, names: Sequence[str]) -> tuple[str, Any]:
        """Ask for the first of some names that is a file; ImageError where none is."""
        if any(_never_ends(name) for name in names):
            raise ImageError("it is not a regular file")
        try:
            rows = self._con.execute(query, [[_quote(name) for name in names]]).fetchall()
        except _UNREADABLE as error:
            reason = str(error).strip().splitlines()[0]
            raise ImageError(f"cannot read the file: {reason}", retryable=True) from None
        wanted = {PurePath(name).name for name in names}
        for name, value in rows:
            if PurePath(name).name in wanted:
                return name, value
        raise ImageError("no such file", retryable=True)

    def _is_plain(self, path: str) -> bool:
        relative = self._folders and not _ABSOLUTE.match(path)
        return not (relative or _WILDCARD.search(path) or _is_url(path) or _never_ends(path))

    def _candidates(self, path: str) -> list[str]:
        """Return where a path may lie: below the working folder, then below the search path."""
        if _is_url(path):
            raise ImageError("URLs are not read; download the file and give its path or its bytes")
        if _ABSOLUTE.match(path):
            return [path]
        return [path, *(f"{folder}/{path}" for folder in self._folders)]

    def _check_policy(self, name: str, size: int) -> None:
        """Raise ImageError where the policy forbids a file, as far as its name and size tell."""
        if size > self._policy.max_bytes:
            limit = f"the policy's max_bytes = {self._policy.max_bytes:,}"
            raise ImageError(f"{size:,} bytes are more than {limit}")
        roots = self._policy.roots
        if roots is not None:
            file = Path(name).resolve()
            if not any(file.is_relative_to(Path(root).resolve()) for root in roots):
                raise ImageError("the file lies outside the policy's roots")


def _is_url(path: str) -> bool:
    return path.lower().startswith(("http://", "https://"))


def _never_ends(name: str) -> bool:
    """Whether it names a pipe, a device or a socket: DuckDB would wait for it, or fill the memory."""
    try:
        mode = os.stat(_FILE_SCHEME.sub("", name)).st_mode  # noqa: PTH116 - Path() changes some names
    except (OSError, ValueError):
        return False
    return not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def _quote(name: str) -> str:
    """Return the pattern that matches this name and no other."""
    if not _WILDCARD.search(name):
        return name
    if "\\" in name and os.sep != "\\":
        # DuckDB takes the backslash for an escape, and has none for the backslash itself.
        raise ImageError("DuckDB cannot read a name with both a backslash and one of * ? [")
    return _WILDCARD.sub(lambda match: f"[{match[0]}]", name)
