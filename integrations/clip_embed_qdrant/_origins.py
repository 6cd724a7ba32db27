"""What a store notes of where its images came from, against a source: what is refused, what is warned of."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import suppress

from clip_embed._warn import warn_caller
from clip_embed_qdrant._entries import Source, normal_key
from clip_embed_qdrant._errors import StoreError


def check_origin(sources: Mapping[str, str], where: str, source: Source, prefix: str) -> None:
    """Raise StoreError where the images below a prefix came from elsewhere: pruned, they would be gone."""
    this, prefix = source.root or source.name, normal_key(prefix)
    expected = _expected(sources, prefix)
    if expected is None:
        given = [each for each, root in sources.items() if each != prefix and _same(root, this)]
        if given:
            raise StoreError(
                f"{where} was filled from {this} with the prefix {given[0]!r}, not {prefix!r}: nothing was "
                "pruned. Give that prefix"
            )
    elif not _same(expected, this):
        raise StoreError(
            f"{where} was filled from {expected} (prefix {prefix!r}), this is {this}: nothing was pruned. "
            "Give that source and its prefix; where this one is to take its place, and what it does not list "
            "is to be removed, say so by other_source=True (--other-source on the command line)"
        )


def check_listed(source: Source) -> None:
    """Raise StoreError where a path, pattern or URL lists nothing; what breaks it, the job itself says."""
    if source.root is None or not source.repeatable:
        return
    with suppress(OSError):
        if next(source.entries(), None) is None:
            raise StoreError(nothing_listed(source, "nothing was done"))


def nothing_listed(source: Source, so: str) -> str:
    """Say that a source lists nothing, and why that may be."""
    hint = (
        "In patterns of images braces stand for themselves: take each ending by itself, or all by **/*"
        if "{" in source.name
        else "Is it mounted?"
    )
    return f"{source.name} lists no images; {so}. {hint}"


def other_prefixes(sources: Mapping[str, str], prefix: str) -> tuple[str, ...]:
    """Return the prefixes below one that have a source of their own."""
    return tuple(each for each in sources if each != prefix and each.startswith(prefix))


def warn_of_other(sources: Mapping[str, str], where: str, root: str, prefix: str) -> None:
    """Warn where the images below a prefix came from elsewhere until now."""
    before = sources.get(prefix)
    if before is not None and before != root:
        warn_caller(
            f"{where} was filled from {before}, this is {root}: an image of the same relative "
            "path replaces the other. If it is not the same collection moved, give each a prefix="
        )


def _expected(sources: Mapping[str, str], prefix: str) -> str | None:
    """Return where the images below a prefix came from: its source, or a folder in that of one above it."""
    above = [each for each in sources if prefix.startswith(each)]
    if not above:
        return None
    nearest = max(above, key=len)
    root, below = sources[nearest], prefix[len(nearest) :].strip("/")
    return f"{root.rstrip('/')}/{below}" if below else root


def _same(first: str, second: str) -> bool:
    """Whether two names are of one folder or URL."""
    if first.rstrip("/") == second.rstrip("/"):
        return True
    if "://" in first or "://" in second:
        return False
    with suppress(OSError, ValueError):
        return os.path.samefile(first, second)  # noqa: PTH121 - texts
    return False
