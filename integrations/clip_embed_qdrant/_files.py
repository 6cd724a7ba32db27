"""Images in folders, behind patterns and in the file systems that fsspec knows."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, cast

from clip_embed import MissingExtra
from clip_embed._images.folders import find_images, is_image_name
from clip_embed._types import ImagePolicy
from clip_embed_qdrant._entries import Entry, Source, file_state, normal_key

_MAGIC = re.compile(r"[*?\[]")
# In the order of how well they tell a changed file.
_STATES = ("ETag", "etag", "md5Hash", "content_md5", "sha256", "mtime", "LastModified", "last_modified",
           "updated", "created")  # fmt: skip


def folder(root: Path) -> Source:
    """All image files below a folder, in the file system's order; links to folders are not followed."""
    root = root.absolute()
    return Source(str(root), partial(_below, root), partial(_count_below, root), str(root))


def pattern(text: str) -> Source:
    """The files that a pattern of `glob` names; keys are relative to the folder before its first wildcard."""
    parts = Path(text).parts
    first = next(place for place, part in enumerate(parts) if _MAGIC.search(part))
    root = Path(*parts[:first]).absolute() if first else Path.cwd()
    everything = Path(text).suffix in ("", ".*")  # photos/**/* means the images among them

    def entries() -> Iterator[Entry]:
        for name in glob.iglob(text, recursive=True):  # noqa: PTH207 - Path.glob takes no absolute pattern
            path = Path(name).absolute()
            if (everything and not is_image_name(name)) or path.is_dir():
                continue
            facts = path.stat() if path.exists() else None
            yield _file_entry(path.relative_to(root).as_posix(), str(path), facts)

    return Source(text, entries, lambda: None, str(root))


def is_pattern(text: str) -> bool:
    """Whether a text has wildcards."""
    return bool(_MAGIC.search(text))


def remote(url: str, policy: ImagePolicy, options: Mapping[str, object] | None) -> Source:
    """The image files below a URL of fsspec, or those that match it where it has wildcards.

    A folder is listed at a time; files are read when they are to be embedded, several at once.
    """
    try:
        core = cast("Any", import_module("fsspec.core"))
        utils = cast("Any", import_module("fsspec.utils"))
    except ModuleNotFoundError as error:
        raise MissingExtra("fsspec", "qdrant", "reading images from a URL") from error
    opened, path = core.url_to_fs(url, **{"use_listings_cache": False, **(options or {})})
    path = str(path).rstrip("/")
    wanted = re.compile(utils.glob_translate(path)) if is_pattern(path) else None
    root = path
    while is_pattern(root):
        root = root.rpartition("/")[0]
    everything = wanted is None or PurePosixPath(path).suffix in ("", ".*")

    def entries() -> Iterator[Entry]:
        for _, _, files in opened.walk(root, detail=True, on_error="raise"):
            for facts in cast("dict[str, dict[str, Any]]", files).values():
                name = str(facts["name"])
                if (wanted and not wanted.match(name)) or (everything and not is_image_name(name)):
                    continue
                yield _remote_entry(opened, name, facts, root, policy)

    return Source(url, entries, lambda: None, str(opened.unstrip_protocol(root)))


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


def _remote_entry(opened: Any, name: str, facts: dict[str, Any], root: str, policy: ImagePolicy) -> Entry:  # noqa: ANN401
    key = normal_key(name.removeprefix(root).lstrip("/"))
    size = facts.get("size")
    shown = str(opened.unstrip_protocol(name))
    if isinstance(size, int) and size > policy.max_bytes:
        reason = f"{size:,} bytes are more than the policy's max_bytes = {policy.max_bytes:,}"
        return Entry(key, problem=reason, retryable=False, name=shown)
    known = next((facts[field] for field in _STATES if facts.get(field) is not None), None)
    return Entry(
        key,
        state=None if known is None else f"{size}-{known}",
        payload={"path": key, "size": size},
        read=partial(opened.cat_file, name),
        name=shown,
    )
