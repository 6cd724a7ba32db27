"""Images in folders and behind patterns."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator
from functools import partial
from pathlib import Path, PurePosixPath

from clip_embed._images.folders import find_images, is_image_name
from clip_embed_qdrant._entries import Entry, File, Source, file_state, local_entry, normal_key

_MAGIC = re.compile(r"[*?\[]")
_RANGE = re.compile(r"\{(\d+)\.\.(\d+)\}")


def folder(root: Path) -> Source:
    """All image files below a folder, in the file system's order; links to folders are not followed."""
    root = root.absolute()
    return Source(str(root), partial(_below, root), partial(_count_below, root), str(root), keys_differ=True)


def pattern(text: str) -> Source | None:
    """The files that a pattern of `glob` names, None for what is none or the name of a file.

    Keys are relative to the folder before its first wildcard.
    """
    if not is_pattern(text) or Path(text).exists():
        return None
    root, everything = _root(text), takes_everything(text)

    def entries() -> Iterator[Entry]:
        for name in _matches(text):
            path = Path(name).absolute()
            if (everything and not is_image_name(name)) or path.is_dir():
                continue
            facts = path.stat() if path.exists() else None
            yield _file_entry(path.relative_to(root).as_posix(), str(path), facts)

    return Source(text, entries, lambda: None, str(root), keys_differ=True)


def is_pattern(text: str) -> bool:
    """Whether a text has wildcards."""
    return bool(_MAGIC.search(text))


def takes_everything(pattern: str) -> bool:
    """Whether a pattern leaves open what kind of file it means: photos/**/* are the images among them."""
    return PurePosixPath(pattern).suffix in ("", ".*")


def expanded(text: str) -> list[str]:
    """Return the names that one with a range in braces stands for: train-{000..146}.tar."""
    found = _RANGE.search(text)
    if found is None:
        return [text]
    first, last = found.groups()
    numbers = range(int(first), int(last) + 1)
    before, after = text[: found.start()], text[found.end() :]
    return [name for n in numbers for name in expanded(f"{before}{n:0{len(first)}}{after}")]


def local_files(text: str) -> list[File]:
    """Return the tables or tar files of a path, a pattern or a range in braces.

    Raises FileNotFoundError where one is not there.
    """
    if Path(text).exists():
        paths = [Path(text)]
    elif is_pattern(text):
        paths = [Path(name) for name in sorted(set(_matches(text)))]
    else:
        paths = [Path(name) for name in expanded(text)]
    if missing := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"there is no {missing[0]}")
    if not paths:
        raise FileNotFoundError(f"nothing matches {text}")
    root = _root(text) if is_pattern(text) and not Path(text).exists() else None
    return [_file(path.absolute(), root) for path in paths]


def _matches(text: str) -> Iterator[str]:
    """Yield what a pattern names; ** follows links to folders, but into no folder that it is in already."""
    parts = Path(text).parts
    if "**" not in parts:
        yield from glob.iglob(text)  # noqa: PTH207 - Path.glob takes no absolute pattern
        return
    place = parts.index("**")
    rest = Path(*parts[place + 1 :]) if place + 1 < len(parts) else Path("*")
    for top in _matches(str(Path(*parts[:place]))):
        for below in _folders(top):
            yield from _matches(str(Path(glob.escape(below)) / rest))


def _folders(top: str) -> Iterator[str]:
    """Yield a folder and all below it, without hidden ones and without loops."""
    waiting: list[tuple[str, frozenset[tuple[int, int]]]] = [(top, frozenset())]
    while waiting:
        folder, above = waiting.pop()
        try:
            facts = Path(folder).stat()
            me = (facts.st_dev, facts.st_ino)
            if me in above:
                continue
            with os.scandir(folder) as entries:
                inner = [each.path for each in entries if not each.name.startswith(".") and each.is_dir()]
        except OSError:  # glob passes it over too
            continue
        yield folder
        waiting += [(name, above | {me}) for name in inner]


def _file(path: Path, root: Path | None) -> File:
    folder = str(path.parent)
    name = path.relative_to(root).as_posix() if root else path.name
    return File(name, lambda: path.open("rb"), partial(local_entry, folder=folder), folder)


def _root(pattern: str) -> Path:
    """Return the folder before the first wildcard."""
    parts = Path(pattern).parts
    first = next(place for place, part in enumerate(parts) if _MAGIC.search(part))
    return Path(*parts[:first]).absolute() if first else Path.cwd()


def _below(root: Path) -> Iterator[Entry]:
    if not root.is_dir():
        raise NotADirectoryError(f"there is no folder {root}")
    above = f"{root}{os.sep}"
    for name, facts, error in find_images(root):
        if error:
            yield Entry(normal_key(name), problem=f"cannot read the folder: {error.strerror}", name=name)
        else:
            yield _file_entry(name, above + name, facts)


def _file_entry(name: str, path: str, facts: os.stat_result | None) -> Entry:
    key = normal_key(name)
    if key != name and _has_twin(Path(path), key):
        reason = f"a file of the same name in another Unicode form is stored as {key!r}: rename one of them"
        return Entry(key, problem=reason, retryable=False, name=path)
    if facts is None:  # reading it says why
        return Entry(key, path)
    state = file_state(facts.st_size, facts.st_mtime_ns)
    return Entry(key, path, state, {"path": key, "size": facts.st_size})


def _has_twin(path: Path, key: str) -> bool:
    twin = path.with_name(PurePosixPath(key).name)
    return twin.exists() and not twin.samefile(path)


def _count_below(root: Path) -> int:
    return sum(is_image_name(name) for _, _, names in os.walk(root) for name in names)
