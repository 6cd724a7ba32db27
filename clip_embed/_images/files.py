"""Files read within the policy: what is checked is the very file that is opened."""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

# Opening a pipe that somebody put in the place of a file must not wait for a writer.
_READ = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)


def read_file(path: Path, policy: ImagePolicy) -> bytes:
    """Return the content of a regular file, at most one byte more than `policy.max_bytes`.

    Raises ImageError where it cannot be read or the policy forbids it.
    """
    try:
        descriptor = _open(path) if policy.roots is None else _open_below_roots(path, policy)
        try:
            return _read(descriptor, policy)
        finally:
            os.close(descriptor)
    except ImageError:
        raise
    except FileNotFoundError:
        hint = _hint(str(path))
        raise ImageError(f"no such file{hint}", retryable=not hint) from None
    except OSError as error:
        reason = f"cannot read the file: {error.strerror or error}"
        raise ImageError(reason, retryable=error.errno != errno.ENAMETOOLONG) from None
    except (ValueError, RuntimeError) as error:  # a null byte in the name, a loop of symbolic links
        raise ImageError(f"cannot read the file: {error}") from None


def _hint(name: str) -> str:
    """Say what a name was not taken for."""
    if name.startswith("~"):
        return "; ~ is not expanded: give the whole path, os.path.expanduser(path)"
    return "; file: URLs are not read: give the path alone" if name.lower().startswith("file:") else ""


def check_bytes(size: int, policy: ImagePolicy) -> None:
    """Raise ImageError where a file of so many bytes is too large."""
    if size > policy.max_bytes:
        raise ImageError(f"{size:,} bytes are more than the policy's max_bytes = {policy.max_bytes:,}")


def resolve_below_roots(path: Path, policy: ImagePolicy) -> tuple[Path, Path]:
    """Return the real path of a file and the root that it lies below; ImageError where there is none."""
    real = path.resolve()
    for root in map(Path.resolve, map(Path, policy.roots or ())):
        if real.is_relative_to(root):
            return real, root
    raise ImageError("the file lies outside the policy's roots")


def _read(descriptor: int, policy: ImagePolicy) -> bytes:
    size = _checked(os.fstat(descriptor)).st_size
    check_bytes(size, policy)
    content = os.read(descriptor, size + 1)
    if len(content) == size:
        return content
    rest = policy.max_bytes + 1 - len(content)  # it grows or shrinks, or is one of /proc, whose size is 0
    with open(descriptor, "rb", closefd=False) as file:
        return content + file.read(rest)


def _open(path: Path) -> int:
    _checked(path.stat())  # opening a device alone may do something
    return os.open(path, _READ)


def _open_below_roots(path: Path, policy: ImagePolicy) -> int:
    """Open a file whose real path lies below a root, without following any link on the way down.

    Whoever puts a link in the place of a folder or of the file after the check makes the opening fail.
    """
    real, root = resolve_below_roots(path, policy)
    parts = real.relative_to(root).parts
    if os.open not in os.supports_dir_fd or not parts:  # Windows has no way down by descriptors
        return _open(real)
    folder = os.open(root, _FOLDER)
    try:
        for part in parts[:-1]:
            inner = os.open(part, _FOLDER | _NO_LINK, dir_fd=folder)
            os.close(folder)
            folder = inner
        _checked(os.stat(parts[-1], dir_fd=folder, follow_symlinks=False))
        return os.open(parts[-1], _READ | _NO_LINK, dir_fd=folder)
    finally:
        os.close(folder)


def _checked(facts: os.stat_result) -> os.stat_result:
    """Return the facts of a regular file; reading a pipe or a device may never end."""
    if stat.S_ISLNK(facts.st_mode):
        raise OSError(errno.ELOOP, os.strerror(errno.ELOOP))
    if not stat.S_ISREG(facts.st_mode):
        raise ImageError("it is a folder" if stat.S_ISDIR(facts.st_mode) else "it is not a regular file")
    return facts
