"""The files of a model's folder, in the layouts of transformers and of sentence-transformers."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, cast

from clip_embed._models.space import file_digest
from clip_embed.errors import ModelUnsupported

_VOCABULARIES = ("vocab.json", "merges.txt", "spiece.model")
_PROCESSORS = ("preprocessor_config.json", "processor_config.json")
_WEIGHTS = (("model.safetensors", "model-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*.bin"))


def read_object(file: Path) -> dict[str, Any]:
    """Return the JSON object in a file; ModelUnsupported names the file where there is none."""
    content = _read_json(file)
    if not isinstance(content, dict):
        raise ModelUnsupported(f"{file} holds no JSON object")
    return cast("dict[str, Any]", content)


def _read_json(file: Path) -> object:
    try:
        return json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelUnsupported(f"{file.parent} has no {file.name}: it is not the folder of a model") from None
    except ValueError as error:
        raise ModelUnsupported(f"{file} is not valid JSON: {error}") from None


def stated(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration says about the names in `defaults`, its own words first."""
    return {name: default if config.get(name) is None else config[name] for name, default in defaults.items()}


def tower_folder(folder: Path) -> Path:
    """Return where transformers' files lie: the folder itself, or the first module of modules.json."""
    if not (folder / "modules.json").is_file():
        return folder
    modules = cast("list[dict[str, str]]", _read_json(folder / "modules.json"))
    if not modules or not isinstance(modules, list):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelUnsupported(f"{folder / 'modules.json'} lists no modules")
    extra = [module["type"] for module in modules[1:] if not module["type"].endswith("Normalize")]
    if extra:
        raise ModelUnsupported(f"{folder} adds {', '.join(extra)} behind its towers, which is not supported")
    return folder / modules[0]["path"]


def processor_config(tower: Path) -> dict[str, Any]:
    """Return what the folder says about its image processor."""
    if (tower / "preprocessor_config.json").is_file():
        return read_object(tower / "preprocessor_config.json")
    return cast("dict[str, Any]", read_object(tower / "processor_config.json").get("image_processor") or {})


def tokenizer_facts(tower: Path) -> dict[str, Any]:
    """Return what decides the tokens of a text: not the layout of files, nor padding and truncation."""
    if not (tower / "tokenizer.json").is_file():
        return {name: file_digest(tower / name) for name in _VOCABULARIES if (tower / name).is_file()}
    tokenizer = read_object(tower / "tokenizer.json")
    return {
        name: value for name, value in tokenizer.items() if name not in ("padding", "truncation", "version")
    }


def pad_token(tower: Path) -> str | None:
    """Return the token that texts are padded with, where the folder names one."""
    for name in ("tokenizer_config.json", "special_tokens_map.json"):
        if (tower / name).is_file() and (token := read_object(tower / name).get("pad_token")) is not None:
            return cast("dict[str, str]", token)["content"] if isinstance(token, dict) else str(token)
    return None


def weight_files(tower: Path) -> list[Path]:
    """Return the shards of the checkpoint that transformers would load; none may be missing."""
    for whole, shards in _WEIGHTS:
        files = [tower / whole] if (tower / whole).is_file() else sorted(tower.glob(shards))
        if not files:
            continue
        index = tower / f"{whole}.index.json"
        if files != [tower / whole] and index.is_file():
            listed = cast("dict[str, str]", read_object(index).get("weight_map") or {})
            if missing := sorted(set(listed.values()) - {file.name for file in files}):
                raise ModelUnsupported(f"{tower} has no {missing[0]}, which its {index.name} lists")
        return files
    raise ModelUnsupported(f"{tower} has neither model.safetensors nor pytorch_model.bin")


def is_complete(folder: Path) -> bool:
    """Whether a folder has configuration, image processor, tokenizer and all weights."""
    try:
        tower = tower_folder(folder)
        read_object(tower / "config.json")
        weight_files(tower)
    except ModelUnsupported:
        return False
    names = {file.name for file in tower.iterdir()}
    has_tokenizer = bool(names & {"tokenizer.json", "spiece.model"}) or names >= {"vocab.json", "merges.txt"}
    return has_tokenizer and bool(names & set(_PROCESSORS))
