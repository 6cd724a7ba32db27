"""The families of models that can be loaded, and how the members of each differ from CLIP."""

from __future__ import annotations

import re
import string
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from clip_embed._models.folder import read_object
from clip_embed.errors import ModelUnsupported

_PUNCTUATION = str.maketrans("", "", string.punctuation)


@dataclass(frozen=True, slots=True)
class Family:
    """What models of one `model_type` have in common."""

    name: str
    text: dict[str, Any]
    """What of the text tower moves a vector without changing the shape of a weight, with its defaults."""
    image: dict[str, Any]
    """The same of the image tower."""
    processor: str
    """The image processor where the folder names none."""
    padded: bool
    """The text tower was trained on texts padded to its full length and reads the padding too."""
    dim: Callable[[dict[str, Any], Path], int]
    """Dimension of the vectors, from config.json; ModelUnsupported where the towers do not fit."""


def _clip_dim(config: dict[str, Any], _: Path) -> int:
    return int(config.get("projection_dim", 512))


def _siglip_dim(config: dict[str, Any], folder: Path) -> int:
    """SigLIP has no projection behind its image tower; the text tower ends in the same width."""
    images = cast("dict[str, Any]", config.get("vision_config") or {})
    texts = cast("dict[str, Any]", config.get("text_config") or {})
    width = int(images.get("hidden_size", 768))
    text_width = int(texts.get("projection_size") or texts.get("hidden_size", 768))
    if width != text_width:
        raise ModelUnsupported(f"{folder}: the towers give vectors of {width} and of {text_width} numbers")
    if not images.get("vision_use_head", True):
        raise ModelUnsupported(f"{folder}: its image tower has no pooling head (vision_use_head is false)")
    return width


CLIP = Family(
    name="clip",
    text={
        "hidden_act": "quick_gelu",
        "num_attention_heads": 8,
        "layer_norm_eps": 1e-5,
        "max_position_embeddings": 77,
        "eos_token_id": 49407,
    },
    image={"hidden_act": "quick_gelu", "num_attention_heads": 12, "layer_norm_eps": 1e-5, "image_size": 224},
    processor="CLIPImageProcessor",
    padded=False,
    dim=_clip_dim,
)
_SIGLIP_TOWER = {"hidden_act": "gelu_pytorch_tanh", "num_attention_heads": 12, "layer_norm_eps": 1e-6}
SIGLIP = Family(
    name="siglip",
    text={**_SIGLIP_TOWER, "max_position_embeddings": 64},
    image={**_SIGLIP_TOWER, "image_size": 224},
    processor="SiglipImageProcessor",
    padded=True,
    dim=_siglip_dim,
)
_FAMILIES = {family.name: family for family in (CLIP, SIGLIP)}
_SUPPORTED = "CLIP ('clip') and SigLIP or SigLIP 2 of one image size ('siglip')"


def family_of(config: dict[str, Any], folder: Path) -> Family:
    """Return the family that config.json names; ModelUnsupported says what is supported instead."""
    kind = config.get("model_type", "model of no stated type")
    if (family := _FAMILIES.get(kind)) is not None:
        return family
    why = ""
    if kind == "siglip2":
        why = ": that is SigLIP 2 NaFlex, whose images have no one size"
    elif "auto_map" in config:
        why = ": its model is code that comes with it (auto_map), which clip-embed never runs"
    raise ModelUnsupported(f"{folder} holds a {kind!r}{why}; what can be loaded: {_SUPPORTED}")


def as_trained(family: Family, tower: Path) -> tuple[str, Callable[[str], str]]:
    """Return the name and the function of how a text was written when the tower was trained.

    CLIP's tokenizers see to it themselves. SigLIP's own one takes away capitals and punctuation, but
    tokenizer.json need not; SigLIP 2 was trained on small letters, its Gemma tokenizer keeps capitals.
    """
    if family is CLIP:
        return "as it is", str
    config = tower / "tokenizer_config.json"
    tokenizer = str(read_object(config).get("tokenizer_class")) if config.is_file() else ""
    if tokenizer.startswith("Siglip") and not tokenizer.startswith("Siglip2"):
        return "canonical", _canonical
    return "lower", str.lower


def _canonical(text: str) -> str:
    """Small letters without ASCII punctuation, runs of white space as one blank."""
    return re.sub(r"\s+", " ", text.lower().translate(_PUNCTUATION)).strip()
