"""Models of the Hugging Face hub: found in its local cache without the network, or downloaded into it.

A name is `owner/model` or `owner/model@revision`: a branch, a tag or a commit. What the cache holds
is taken as it is, without asking whether there is something newer; `download` asks.
"""

from __future__ import annotations

import glob
import hashlib
import re
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partialmethod
from importlib import import_module
from pathlib import Path, PurePosixPath
from typing import Any, cast

from clip_embed._models.folder import is_complete
from clip_embed._models.hub_errors import WAYS_OUT, reason
from clip_embed.errors import ModelNotFound

_NAME = re.compile(r"(?P<repo>[\w-][\w.-]*(/[\w.-]+)?)(@(?P<revision>[\w-][\w./-]*))?")
_SMALL = (".json", ".txt", ".model")
_LICENCES = ("licence", "license", "notice")
_WEIGHTS = (
    re.compile(r"model(-\d+-of-\d+)?\.safetensors"),
    re.compile(r"pytorch_model(-\d+-of-\d+)?\.bin"),
)
_MODULE = re.compile(r"\d+_\w+")  # a folder of sentence-transformers: 0_CLIPModel


@dataclass(frozen=True, slots=True)
class HubName:
    """A model of the hub, perhaps of one revision."""

    repo: str
    revision: str | None = None

    def __str__(self) -> str:
        return f"{self.repo}@{self.revision}" if self.revision else self.repo


@dataclass(frozen=True, slots=True)
class RemoteFile:
    """A file of a model on the hub."""

    path: str
    size: int
    sha256: str | None
    """None for a small file that git itself keeps."""


def parse_name(text: str) -> HubName | None:
    """Return the parts of a hub name, or None where the text cannot be one."""
    match = _NAME.fullmatch(text)
    return HubName(match["repo"], match["revision"]) if match else None


def obtain(name: HubName) -> Path:
    """Return the local folder of a model: from the cache without any network call, else downloaded."""
    return cached(name) or download(name)


def cached(name: HubName) -> Path | None:
    """Return the model's folder in the hub's local cache if all that is needed is there; asks nobody."""
    from huggingface_hub import try_to_load_from_cache
    from huggingface_hub.errors import HFValidationError

    for file in ("modules.json", "config.json"):
        try:
            found = try_to_load_from_cache(name.repo, file, revision=name.revision)
        except HFValidationError:
            return None
        if isinstance(found, str) and is_complete(Path(found).parent):
            return Path(found).parent
    return None


def download(name: HubName) -> Path:
    """Ask the hub for a model and return its folder in the local cache, with all that is needed.

    Shows a progress bar on a terminal. What is there already is not fetched again, and a download
    that broke off goes on where it stopped. Raises ModelNotFound with the ways out.
    """
    from huggingface_hub.errors import HfHubHTTPError

    # The network's own errors, and what comes of an answer that is not the hub's: of a login page, say.
    network = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    failures: tuple[type[Exception], ...] = (*network, OSError, ValueError, KeyError, TypeError)
    try:
        folder = _download(name)
    except failures as error:
        raise ModelNotFound(
            f"there is no local copy of the model '{name}': {reason(name, error)}\n{WAYS_OUT}"
        ) from error
    if not is_complete(folder):
        raise ModelNotFound(
            f"the model '{name}' lacks a configuration, an image processor, a tokenizer or weights that "
            f"transformers reads: {folder}\n{WAYS_OUT}"
        )
    return folder


def _download(name: HubName) -> Path:
    from huggingface_hub import (
        HfApi,
        constants,
        hf_hub_download,  # pyright: ignore[reportUnknownVariableType]
        snapshot_download,  # pyright: ignore[reportUnknownVariableType]
    )

    timeout = constants.HF_HUB_ETAG_TIMEOUT
    info = HfApi().model_info(name.repo, revision=name.revision, files_metadata=True, timeout=timeout)
    if info.sha is None or info.siblings is None:
        raise ValueError("the answer lists no files")
    found = [
        RemoteFile(each.rfilename, each.size or 0, each.lfs.sha256 if each.lfs else None)
        for each in info.siblings
    ]
    small, weights = needed(found)
    # Weights come last, and only with them the name points to the new files: what has weights is whole.
    for file in small:
        if file.sha256 is not None:
            _fetch_blob(name.repo, info.sha, file)
    folder = snapshot_download(
        name.repo,
        revision=info.sha,
        allow_patterns=[glob.escape(file.path) for file in small],
        tqdm_class=_no_bar(),
    )
    for file in weights:
        if file.sha256 is not None:
            _fetch_blob(name.repo, info.sha, file)
        hf_hub_download(name.repo, file.path, revision=name.revision)
    return Path(folder)


def needed(files: Sequence[RemoteFile]) -> tuple[list[RemoteFile], list[RemoteFile]]:
    """Return the small files and the weights that loading needs, of all that a model has on the hub.

    Weights are model.safetensors, in one piece or in shards, and only where there is none of these
    pytorch_model.bin; no other runtime's, and none beside the folders that modules.json speaks of.
    """
    placed = [(file, PurePosixPath(file.path)) for file in files]
    root = PurePosixPath()
    modules = {path.parent for _, path in placed if _MODULE.fullmatch(path.parent.as_posix())}
    if not any(path == root / "modules.json" for _, path in placed):
        modules = set[PurePosixPath]()
    small = [
        file
        for file, path in placed
        if path.parent in {root, *modules}
        and (path.suffix in _SMALL or path.name.lower().startswith(_LICENCES))
    ]
    for homes in (modules, {root}):
        for pattern in _WEIGHTS:
            weights = [file for file, path in placed if path.parent in homes and pattern.fullmatch(path.name)]
            if weights:
                return small, weights
    return small, []


def model_files(folder: Path) -> list[Path]:
    """Return what of a model's folder loading needs, as paths relative to it."""
    there = [file.relative_to(folder) for file in folder.rglob("*") if file.is_file()]
    small, weights = needed([RemoteFile(file.as_posix(), 0, None) for file in sorted(there)])
    return [Path(file.path) for file in (*small, *weights)]


def model_size(folder: Path) -> int:
    """Return the bytes of what loading needs."""
    return sum((folder / file).stat().st_size for file in model_files(folder))


def copy_model(source: Path, target: Path) -> int:
    """Make `target` a plain folder with the model in `source`, and return how many files were copied.

    Files that are there already, of the same size and time, stay. Raises FileExistsError where the
    folder holds anything else: two models must not get mixed.
    """
    files = model_files(source)
    expected = {target / file for file in files}
    strange = [file for file in target.rglob("*") if file.is_file() and file not in expected]
    if strange := [file for file in strange if file.suffix != ".incomplete"]:
        raise FileExistsError(f"{target} holds other files ({strange[0].name}): give an empty folder")
    copied = 0
    for file in files:
        there, wanted = target / file, (source / file).stat()
        if there.is_file():
            found = there.stat()
            if (found.st_size, int(found.st_mtime)) == (wanted.st_size, int(wanted.st_mtime)):
                continue
        there.parent.mkdir(parents=True, exist_ok=True)
        partial = there.with_name(f"{there.name}.incomplete")
        shutil.copy2(source / file, partial)
        partial.replace(there)
        copied += 1
    return copied


def _fetch_blob(repo: str, commit: str, file: RemoteFile) -> None:
    """Bring a large file into the hub's cache, where huggingface_hub will find it by its digest.

    huggingface_hub itself begins anew after an interruption; here the next call asks for the rest, by
    plain HTTP from the endpoint, which mirrors and proxies know.
    """
    from huggingface_hub import constants, hf_hub_url
    from huggingface_hub.file_download import http_get, repo_folder_name  # pyright: ignore[reportUnknownVariableType]

    utils: Any = import_module("huggingface_hub.utils")  # does not declare what it exports
    digest = cast("str", file.sha256)
    place = repo_folder_name(repo_id=repo, repo_type="model")
    blob = Path(constants.HF_HUB_CACHE) / place / "blobs" / digest
    lock = Path(constants.HF_HUB_CACHE) / ".locks" / place / f"{digest}.lock"  # the hub's own
    for folder in (blob.parent, lock.parent):
        folder.mkdir(parents=True, exist_ok=True)
    with utils.WeakFileLock(lock):
        if blob.exists():
            return
        partial = blob.with_name(f"{digest}.incomplete")
        with partial.open("ab") as stream:
            if (have := stream.tell()) > file.size:
                have = stream.truncate(0)
            url = hf_hub_url(repo, file.path, revision=commit)
            options: dict[str, Any] = {"resume_size": have, "expected_size": file.size}
            http_get(url, stream, headers=utils.build_hf_headers(), displayed_filename=file.path, **options)
        with partial.open("rb") as stream:
            right = hashlib.file_digest(stream, "sha256").hexdigest() == digest
        if not right:
            partial.unlink()
            raise ValueError(f"{file.path} arrived damaged and was thrown away: try again")
        partial.replace(blob)


def _no_bar() -> Any:  # noqa: ANN401 - a class of tqdm's
    """Return a progress bar that is none, for files that take no time."""
    bar: Any = import_module("tqdm.auto").tqdm
    return type("Silent", (bar,), {"__init__": partialmethod(bar.__init__, disable=True)})
