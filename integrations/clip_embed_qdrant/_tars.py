"""Images in tar files, as webdataset writes them: the files of one stem are one sample."""

from __future__ import annotations

import json
import tarfile
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import PurePosixPath
from typing import Any, Self, cast

from clip_embed._images.folders import is_image_name
from clip_embed._types import ImagePolicy
from clip_embed_qdrant._entries import (
    Entry,
    File,
    Source,
    damaged,
    file_state,
    normal_key,
    plain_payload,
)

_Sample = list[tuple[tarfile.TarInfo, bytes | None]]
_Content = Callable[[], bytes | None]
_BROKEN = (OSError, EOFError, ValueError, tarfile.TarError)
_errors = cast("Any", tarfile)  # which does not list all of its own
_NO_HEADER: tuple[type[Exception], ...] = (_errors.InvalidHeaderError, _errors.TruncatedHeaderError)
_DAMAGED_HEADER: type[Exception] = _errors.SubsequentHeaderError
_CUT_OFF = "the tar file cannot be read further, so that files beside this image may be missing"


class _Member(tarfile.TarInfo):
    """A member; a header that is damaged or cut off is an error, where tarfile sees the end of the file."""

    @classmethod
    def fromtarfile(cls, tarfile: tarfile.TarFile) -> Self:
        """Return the next one."""
        try:
            return super().fromtarfile(tarfile)
        except _NO_HEADER as error:
            raise _DAMAGED_HEADER(str(error)) from error


def tar(name: str, files: Sequence[File], policy: ImagePolicy) -> Source:
    """The images in tar files, compressed or not; a JSON, text or class file beside one is its payload."""
    return Source(name, partial(_members, files, policy), lambda: None)


def _members(files: Sequence[File], policy: ImagePolicy) -> Iterator[Entry]:
    for file in files:
        sample: _Sample = []
        try:
            with (
                file.open() as stream,
                tarfile.open(fileobj=stream, mode="r|*", tarinfo=_Member) as opened,
            ):
                for member, content in _read(opened, policy):
                    if sample and _stem(sample[0][0].name) != _stem(member.name):
                        yield from _sample(file, sample)
                        sample = []
                    sample.append((member, content()))
        except _BROKEN as error:
            yield from _sample(file, sample, _CUT_OFF)
            yield damaged(file, error, retryable=True)
        else:
            yield from _sample(file, sample)


def _read(opened: tarfile.TarFile, policy: ImagePolicy) -> Iterator[tuple[tarfile.TarInfo, _Content]]:
    """Yield the files and what reads each; None is read of one that is too large."""
    while (member := opened.next()) is not None:
        cast("Any", opened).members.clear()  # it would remember every one
        if member.isfile():
            content = opened.extractfile(member) if member.size <= policy.max_bytes else None
            yield member, content.read if content else lambda: None


def _stem(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_name(path.name.partition(".")[0]))


def _sample(file: File, members: _Sample, cut_off: str | None = None) -> Iterator[Entry]:
    """Yield the images among the files of one sample, each with the payload of the others."""
    problem = cut_off
    try:
        payload = plain_payload(_beside(members))
    except ValueError as error:
        payload, problem = {}, problem or str(error)
    for member, content in members:
        if not is_image_name(member.name):
            continue
        key = normal_key(f"{file.name}/{member.name}")
        reason = problem
        if content is None:
            reason = f"{member.size:,} bytes are more than the policy's max_bytes"
        state = file_state(member.size, int(member.mtime * 1_000_000_000))
        facts = {"path": key, "size": member.size} | payload
        yield Entry(key, content, state, facts, problem=reason, retryable=reason == _CUT_OFF, name=key)


def _beside(members: _Sample) -> dict[str, object]:
    """Return what the files beside an image say; ValueError that names one which cannot be read."""
    payload: dict[str, object] = {}
    for member, content in members:
        suffix = PurePosixPath(member.name).suffix.lower()
        try:
            if suffix == ".json" and content is not None:
                given = json.loads(content)
                payload |= given if isinstance(given, dict) else {"json": given}
            elif suffix in (".txt", ".cls") and content is not None:
                text = content.decode().strip()
                payload[suffix[1:]] = int(text) if suffix == ".cls" else text
        except ValueError as error:
            raise ValueError(f"{member.name}: {error}") from error
    return payload
