"""Names of files as DuckDB takes them."""

from __future__ import annotations

import os
import re
import stat

from clip_embed.errors import ImageError

_WILDCARD = re.compile(r"[*?[]")
_ABSOLUTE = re.compile(r"[/\\]|[A-Za-z][\w+.-]*:")  # a root, a drive or a scheme
_FILE_SCHEME = re.compile(r"file:(//(localhost)?)?(?=/)", re.IGNORECASE)

# Schemes for which DuckDB loads an extension by itself; one file system of the user's reads all of a set.
_REMOTE = (
    frozenset({"http", "https"}),
    frozenset({"s3", "s3a", "s3n", "r2"}),
    frozenset({"gs", "gcs"}),
    frozenset({"az", "azure", "abfs", "abfss"}),
    frozenset({"hf"}),
)


def is_absolute(name: str) -> bool:
    """Whether a name means the same from every folder: it has a root, a drive or a scheme."""
    return _ABSOLUTE.match(name) is not None


def is_pattern(name: str) -> bool:
    """Whether DuckDB takes a name for that of several files."""
    return _WILDCARD.search(name) is not None


def remote_schemes(name: str) -> frozenset[str]:
    """Return the schemes of its kind where DuckDB would ask a server, for it or for an extension."""
    scheme, found, _ = name.partition("://")
    return next((each for each in _REMOTE if found and scheme.lower() in each), frozenset[str]())


def never_ends(name: str) -> bool:
    """Whether it names a pipe, a device or a socket: DuckDB would wait for it, or fill the memory.

    It tells something about a file, so ask DuckDB first whether that may be known.
    """
    mode = _mode(name)
    return bool(mode) and not (stat.S_ISREG(mode) or stat.S_ISDIR(mode))


def is_folder(name: str) -> bool:
    """Whether it names a folder; ask DuckDB first here, too."""
    return stat.S_ISDIR(_mode(name))


def _mode(name: str) -> int:
    """Return what kind of file it is, 0 for none."""
    try:
        return os.stat(_FILE_SCHEME.sub("", name)).st_mode  # noqa: PTH116 - Path() changes some names
    except (OSError, ValueError):
        return 0


def quote(name: str) -> str:
    """Return the pattern that matches this name and no other; ImageError where DuckDB has none."""
    if not is_pattern(name):
        return name
    if "\\" in name and os.sep != "\\":
        # DuckDB takes the backslash for an escape, and has none for the backslash itself.
        raise ImageError("DuckDB cannot read a name with both a backslash and one of * ? [")
    return _WILDCARD.sub(lambda match: f"[{match[0]}]", name)
