"""Images, tables and tar files in the file systems that fsspec knows."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from functools import partial
from importlib import import_module
from typing import Any, cast

from clip_embed import MissingExtra
from clip_embed._images.folders import is_image_name
from clip_embed._types import ImagePolicy
from clip_embed_qdrant._entries import Entry, File, Source, normal_key
from clip_embed_qdrant._errors import StoreError
from clip_embed_qdrant._files import is_pattern, takes_everything

# In the order of how well they tell a changed file.
_STATES = ("ETag", "etag", "md5Hash", "content_md5", "sha256", "mtime", "LastModified", "last_modified",
           "updated", "created")  # fmt: skip


class Remote:
    """What a URL of fsspec names: a folder, a file, or those that match its wildcards.

    Raises FileNotFoundError where nothing is.
    """

    def __init__(self, url: str, policy: ImagePolicy, options: Mapping[str, object] | None) -> None:
        try:
            core = cast("Any", import_module("fsspec.core"))
        except ModuleNotFoundError as error:
            raise MissingExtra("fsspec", "qdrant", "reading images from a URL") from error
        try:
            opened, path = core.url_to_fs(url, **{"use_listings_cache": False, **(options or {})})
        except ImportError as error:  # it says which package
            raise StoreError(f"{url} cannot be read here: {error}, with pip install") from error
        self._system: Any = opened
        self._path = str(path).rstrip("/")
        self._url = url
        self._policy = policy
        self._is_folder = not is_pattern(self._path) and bool(opened.isdir(self._path))
        self._root = self._path if self._is_folder else self._path.rpartition("/")[0]
        while is_pattern(self._root):
            self._root = self._root.rpartition("/")[0]
        if not self._is_folder and not is_pattern(self._path) and not opened.isfile(self._path):
            raise FileNotFoundError(f"there is no {url}")

    def images(self) -> Source:
        """The image files; a folder is listed at a time, several files are read at once when it is time."""
        root = str(self._system.unstrip_protocol(self._root))
        return Source(self._url, self._entries, lambda: None, root, keys_differ=True)

    def files(self) -> list[File]:
        """The tables or tar files."""
        found = sorted(self._system.glob(self._path)) if is_pattern(self._path) else [self._path]
        if not found:
            raise FileNotFoundError(f"nothing matches {self._url}")
        return [
            File(self._key(name), partial(self._system.open, name, "rb"), partial(self._locate, name))
            for name in map(str, found)
        ]

    def _entries(self) -> Iterator[Entry]:
        if not self._is_folder and not is_pattern(self._path):
            yield self._entry(self._path, self._system.info(self._path))
            return
        matches = self._matcher()
        for _, _, files in self._system.walk(self._root, detail=True, on_error="raise"):
            for facts in cast("dict[str, dict[str, Any]]", files).values():
                if matches(str(facts["name"])):
                    yield self._entry(str(facts["name"]), facts)

    def _matcher(self) -> Any:  # noqa: ANN401 - a predicate of names
        wanted = None
        if is_pattern(self._path):
            wanted = re.compile(cast("Any", import_module("fsspec.utils")).glob_translate(self._path))
        everything = self._is_folder or takes_everything(self._path)

        def matches(name: str) -> bool:
            is_image = not everything or is_image_name(name)
            return is_image and (wanted is None or wanted.match(name) is not None)

        return matches

    def _key(self, name: str) -> str:
        return normal_key(name.removeprefix(self._root).lstrip("/"))

    def _entry(self, name: str, facts: dict[str, Any]) -> Entry:
        key, size = self._key(name), facts.get("size")
        shown = str(self._system.unstrip_protocol(name))
        if isinstance(size, int) and size > self._policy.max_bytes:
            reason = f"{size:,} bytes are more than the policy's max_bytes = {self._policy.max_bytes:,}"
            return Entry(key, problem=reason, retryable=False, name=shown)
        known = next((facts[field] for field in _STATES if facts.get(field) is not None), None)
        return Entry(
            key,
            state=None if known is None else f"{size}-{known}",
            payload={"path": key, "size": size},
            read=partial(self._system.cat_file, name),
            name=shown,
        )

    def _locate(self, table: str, path: str) -> Entry:
        """Return the file that a path in a table means; only its content tells whether it has changed."""
        name = path if path.startswith("/") else f"{table.rpartition('/')[0]}/{path}"
        if "://" in path:
            name = str(self._system._strip_protocol(path))
        shown = str(self._system.unstrip_protocol(name))
        return Entry("", read=partial(self._system.cat_file, name), name=shown)
