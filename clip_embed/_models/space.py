"""The fingerprint that says which vectors may be compared.

It is made of the weights' own names and bytes and of everything else that moves a vector:
tower flags, preprocessing, tokenizer and its length. Two copies of one checkpoint have one
space, wherever they lie.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import pickle
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from clip_embed.errors import ModelUnsupported

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)

SCHEMA = 1


def cache_dir() -> Path:
    """Return the folder for what can be made again: CLIP_EMBED_CACHE, else the user's cache folder."""
    if chosen := os.environ.get("CLIP_EMBED_CACHE"):
        return Path(chosen)
    if base := os.environ.get("XDG_CACHE_HOME") or os.environ.get("LOCALAPPDATA"):
        return Path(base) / "clip-embed"
    try:
        return Path.home() / ".cache" / "clip-embed"
    except RuntimeError:  # a user without a home
        return Path(tempfile.gettempdir()) / "clip-embed"


def space_of(name: str, weights: str, dim: int, facts: Mapping[str, object]) -> str:
    """Return a space: `name:dim:digest` over the weights' digest and JSON-able facts."""
    text = json.dumps({"schema": SCHEMA, "weights": weights, "dim": dim, "facts": facts}, sort_keys=True)
    return f"{name}:{dim}:{hashlib.sha256(text.encode()).hexdigest()[:16]}"


def checkpoint_digest(files: Sequence[Path]) -> str:
    """Return the SHA-256 of all tensors (name, type, shape, bytes; sorted by name) of a checkpoint.

    `files` are its safetensors or PyTorch shards, read without running any pickled code. A large
    checkpoint takes about a second, so the answer is remembered under the files' sizes and
    modification times. Raises ModelUnsupported where a file is damaged.
    """
    stats = [(str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns) for file in sorted(files)]
    key = hashlib.sha256(json.dumps(stats).encode()).hexdigest()
    memo = cache_dir() / "digests" / key
    try:
        return memo.read_text("ascii")
    except OSError:
        digest = _digest_tensors(files)
    try:
        memo.parent.mkdir(parents=True, exist_ok=True)
        partial = memo.with_suffix(f".{os.getpid()}")
        partial.write_text(digest, "ascii")
        partial.replace(memo)
    except OSError as error:
        logger.debug("cannot remember the digest of %s: %s", files[0], error)
    return digest


def file_digest(file: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _digest_tensors(files: Sequence[Path]) -> str:
    import torch

    digest = hashlib.sha256()
    tensors = [named for file in files for named in _load_tensors(file).items()]
    for name, tensor in sorted(tensors, key=lambda named: named[0]):
        digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
        digest.update(tensor.contiguous().flatten().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _load_tensors(file: Path) -> dict[str, torch.Tensor]:
    """Map a shard's tensors into memory."""
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file  # pyright: ignore[reportUnknownVariableType]

    try:
        if file.suffix == ".safetensors":
            return load_file(file)
        loaded = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
        return cast("dict[str, torch.Tensor]", loaded)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError) as error:
        raise ModelUnsupported(f"{file} holds no readable tensors: {error}") from error
