"""Towers and tokenizer from local files: quiet, without the network and without code from the folder."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any

from clip_embed._models.folder import read_object
from clip_embed.errors import ModelUnsupported


def of_transformers(name: str) -> Any:  # noqa: ANN401 - its annotations are incomplete
    """Return a class of transformers, imported now: it takes seconds."""
    return getattr(import_module("transformers"), name)


def load_towers(tower: Path) -> Any:  # noqa: ANN401 - transformers' CLIPModel or SiglipModel
    """Return the model in float32 and evaluation mode on the CPU."""
    import torch

    with no_progress_bar():
        model = of_transformers("AutoModel").from_pretrained(
            tower, dtype=torch.float32, local_files_only=True, trust_remote_code=False
        )
    return model.eval()


def load_tokenizer(tower: Path) -> Any:  # noqa: ANN401 - a tokenizer of transformers
    """Return the tokenizer of a folder; ModelUnsupported says what it lacks.

    SigLIP's own class reads spiece.model by a library that is not required here; tokenizer.json
    is the same vocabulary.
    """
    file = tower / "tokenizer_config.json"
    config = read_object(file) if file.is_file() else {}
    kind = str(config.get("tokenizer_class"))
    if "auto_map" in config:
        raise ModelUnsupported(
            f"{tower}: its tokenizer {kind} is code that comes with the model (auto_map), which clip-embed "
            "never runs"
        )
    from_json = kind in ("SiglipTokenizer", "SiglipTokenizerFast") and (tower / "tokenizer.json").is_file()
    loader = of_transformers("PreTrainedTokenizerFast" if from_json else "AutoTokenizer")
    options = {} if from_json else {"trust_remote_code": False}
    try:
        tokenizer = loader.from_pretrained(tower, local_files_only=True, **options)
    except (ImportError, ValueError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelUnsupported(f"{tower}: its tokenizer {kind} cannot be loaded here: {reason}") from error
    if tokenizer.pad_token is None:
        raise ModelUnsupported(f"{tower}: its tokenizer names no token to pad texts with")
    return tokenizer


@contextmanager
def no_progress_bar() -> Generator[None]:
    """Keep transformers from drawing a bar while it reads a local file."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        if shown:
            logging.enable_progress_bar()  # type: ignore[no-untyped-call]
