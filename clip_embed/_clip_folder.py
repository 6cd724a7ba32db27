"""CLIP from a local folder, loaded by sentence-transformers."""

from __future__ import annotations

import json
import warnings
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from clip_embed._device import resolve_device
from clip_embed._precision import FULL, resolve
from clip_embed._space import checkpoint_digest, file_digest, space_of
from clip_embed._types import Float32, ImageSpec, Resample, UInt8
from clip_embed.errors import ModelUnsupported

if TYPE_CHECKING:
    import torch

# CLIPImageProcessor's own defaults, for what a folder's configuration leaves out.
_PROCESSOR_DEFAULTS: dict[str, Any] = {
    "do_resize": True,
    "size": {"shortest_edge": 224},
    "resample": 3,
    "do_center_crop": True,
    "crop_size": {"height": 224, "width": 224},
    "do_rescale": True,
    "rescale_factor": 1 / 255,
    "do_normalize": True,
    "image_mean": [0.48145466, 0.4578275, 0.40821073],
    "image_std": [0.26862954, 0.26130258, 0.27577711],
}
_PROCESSORS = {
    "CLIPImageProcessor",
    "CLIPImageProcessorFast",
    "CLIPImageProcessorPil",
    "CLIPFeatureExtractor",
}
_RESAMPLE: dict[int, Resample] = {
    0: "nearest",
    1: "lanczos",
    2: "bilinear",
    3: "bicubic",
    4: "box",
    5: "hamming",
}
# What moves a vector without changing the shape of a weight, and CLIP's own defaults for it.
_TEXT_DEFAULTS: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "num_attention_heads": 8,
    "layer_norm_eps": 1e-5,
    "max_position_embeddings": 77,
    "eos_token_id": 49407,
}
_VISION_DEFAULTS: dict[str, Any] = {
    "hidden_act": "quick_gelu",
    "num_attention_heads": 12,
    "layer_norm_eps": 1e-5,
    "image_size": 224,
}
_TEXT_BATCH_SIZE = 256
_TOKENIZER_FILES = ("vocab.json", "merges.txt")
_WEIGHTS = (("model.safetensors", "model-*.safetensors"), ("pytorch_model.bin", "pytorch_model-*.bin"))


class ClipFolder:
    """A `Model`: CLIP's two towers from a transformers or sentence-transformers folder.

    The constructor reads the configuration, `space` hashes the weights, `load` loads them.
    In "int8" only the image tower is int8; texts, of which there are few, stay in float32.
    Raises ModelUnsupported where the folder is not one of a CLIP model.
    """

    parallel = True  # `embed_images` may be called by several threads at once

    def __init__(self, folder: Path, device: str = "cpu", precision: str = "fp32") -> None:
        self._folder = folder
        self._device = device
        self._asked_precision = precision
        self._tower = _tower_folder(folder)
        self._config = _read_object(self._tower / "config.json")
        if self._config.get("model_type") != "clip":
            raise ModelUnsupported(
                f"{folder} holds a {self._config.get('model_type', 'model of no stated type')!r}; "
                "folders of type 'clip' can be loaded"
            )
        self._texts = _stated(self._config.get("text_config") or {}, _TEXT_DEFAULTS)
        self._images = _stated(self._config.get("vision_config") or {}, _VISION_DEFAULTS)
        self._processor = _processor_config(self._tower)
        self._weights = _weight_files(self._tower)
        self.image_spec = _image_spec(self._processor, self._images["image_size"], folder)
        self.dim = int(self._config.get("projection_dim", 512))

    @property
    def space(self) -> str:
        """Digest of weights, tower flags, preprocessing and tokenizer."""
        return self._space

    @cached_property
    def _space(self) -> str:
        spec = self.image_spec
        scaling = ("do_rescale", "rescale_factor", "do_normalize", "image_mean", "image_std")
        facts = {
            "text": self._texts,
            "image": self._images,
            "pixels": [spec.size, spec.crop, spec.resample, *(self._processor[name] for name in scaling)],
            "tokenizer": _tokenizer_facts(self._tower),
        }
        return space_of("clip", checkpoint_digest(self._weights), self.dim, facts)

    @cached_property
    def precision(self) -> str:
        """What the forward pass computes in, "auto" resolved; ValueError where the device has it not."""
        return resolve(self._asked_precision, resolve_device(self._device)).name

    def load(self) -> None:
        """Load the weights; idempotent. Raises ModelError where int8 moves this model's vectors too far."""
        _ = self._towers

    @cached_property
    def _towers(self) -> Any:  # noqa: ANN401 - transformers' CLIPModel, imported late
        import torch
        from sentence_transformers import SentenceTransformer

        device, precision = resolve_device(self._device), self.precision
        loaded = SentenceTransformer(
            str(self._folder), device=device, local_files_only=True, model_kwargs={"dtype": torch.float32}
        )
        transformer: Any = loaded[0]
        self._tokenizer = transformer.tokenizer
        self._text_length = min(
            int(self._tokenizer.model_max_length), int(self._texts["max_position_embeddings"])
        )
        mean, std = (
            torch.tensor(self._processor[name], dtype=torch.float32, device=device).view(1, 3, 1, 1)
            for name in ("image_mean", "image_std")
        )
        self._mean, self._std = mean, std
        towers = transformer.model.eval()
        if precision == "int8":
            from clip_embed._int8 import photo_like, use_int8

            edge = self._images["image_size"]
            use_int8(towers, self._normalised(photo_like((edge, edge))))
        elif precision not in FULL:
            from clip_embed._low_precision import use_dtype

            use_dtype(towers, precision)
        return towers

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """uint8 (n, height, width, 3) RGB -> float32 (n, dim), in order, not normalised."""
        import torch

        towers = self._towers
        with torch.inference_mode():
            return _to_numpy(towers.get_image_features(pixel_values=self._normalised(pixels)))

    def _normalised(self, pixels: UInt8) -> torch.Tensor:
        """uint8 (n, height, width, 3) -> float32 (n, 3, height, width), on the device, normalised."""
        import torch

        batch = torch.as_tensor(pixels).to(self._mean.device).permute(0, 3, 1, 2).to(torch.float32)
        if self._processor["do_rescale"]:
            batch *= self._processor["rescale_factor"]
        return (batch - self._mean) / self._std if self._processor["do_normalize"] else batch

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """m texts -> float32 (m, dim), in order, not normalised; warns once if any had to be cut."""
        import torch

        _ = self._towers
        self._warn_of_cuts(texts)
        with torch.inference_mode():
            starts = range(0, len(texts), _TEXT_BATCH_SIZE)
            return np.concatenate(
                [self._embed_text_batch(texts[at : at + _TEXT_BATCH_SIZE]) for at in starts]
            )

    def _embed_text_batch(self, texts: Sequence[str]) -> Float32:
        tokens = self._tokenizer(
            list(texts), padding=True, truncation=True, max_length=self._text_length, return_tensors="pt"
        ).to(self._mean.device)
        return _to_numpy(
            self._towers.get_text_features(
                input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
            )
        )

    def _warn_of_cuts(self, texts: Sequence[str]) -> None:
        """Warn of texts that are longer than the text tower reads."""
        # A token is at least one byte, two are start and end; lower case may take more bytes.
        suspects = [text for text in texts if 2 * len(text.encode()) > self._text_length - 2]
        if not suspects:
            return
        lengths = [len(ids) for ids in self._tokenizer(suspects, verbose=False)["input_ids"]]
        cut = [text for text, length in zip(suspects, lengths, strict=True) if length > self._text_length]
        if cut:
            warnings.warn(
                f"{len(cut)} of {len(texts)} texts are longer than the {self._text_length} tokens that the "
                f"model reads and were cut there, the first: {cut[0][:60]!r}…",
                UserWarning,
                stacklevel=2,
            )


def _to_numpy(output: Any) -> Float32:  # noqa: ANN401 - a tensor, or an output that holds one
    tensor = cast("torch.Tensor", getattr(output, "pooler_output", output))
    return np.asarray(tensor.float().cpu().numpy(), np.float32)


def _stated(config: dict[str, Any], defaults: dict[str, Any]) -> dict[str, Any]:
    """Return what a configuration says about the names in `defaults`, its own words first."""
    return {name: default if config.get(name) is None else config[name] for name, default in defaults.items()}


def _tokenizer_facts(tower: Path) -> dict[str, Any]:
    """Return what decides the tokens of a text: not the layout of files, nor padding and truncation."""
    if not (tower / "tokenizer.json").is_file():
        return {name: file_digest(tower / name) for name in _TOKENIZER_FILES if (tower / name).is_file()}
    tokenizer = _read_object(tower / "tokenizer.json")
    return {
        name: value for name, value in tokenizer.items() if name not in ("padding", "truncation", "version")
    }


def _read_object(file: Path) -> dict[str, Any]:
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


def _tower_folder(folder: Path) -> Path:
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


def _processor_config(tower: Path) -> dict[str, Any]:
    """Return the image processor's configuration with CLIP's defaults filled in."""
    if (tower / "preprocessor_config.json").is_file():
        config = _read_object(tower / "preprocessor_config.json")
    else:
        config = cast(
            "dict[str, Any]", _read_object(tower / "processor_config.json").get("image_processor") or {}
        )
    kind = config.get("image_processor_type") or config.get("feature_extractor_type") or "CLIPImageProcessor"
    if kind not in _PROCESSORS:
        raise ModelUnsupported(f"{tower}: image processor {kind} is not supported; CLIPImageProcessor is")
    return _PROCESSOR_DEFAULTS | {name: value for name, value in config.items() if value is not None}


def _image_spec(processor: dict[str, Any], image_size: int, folder: Path) -> ImageSpec:
    size, crop = processor["size"], processor["crop_size"]
    crop_size = (crop, crop) if isinstance(crop, int) else (int(crop["height"]), int(crop["width"]))
    if isinstance(size, dict):
        sizes = cast("dict[str, int]", size)
        size = sizes["shortest_edge"] if "shortest_edge" in sizes else (sizes["height"], sizes["width"])
    if not processor["do_resize"] or (isinstance(size, int) and not processor["do_center_crop"]):
        raise ModelUnsupported(f"{folder}: its image processor gives images of no fixed size")
    spec = ImageSpec(
        size, crop_size if processor["do_center_crop"] else None, _RESAMPLE[processor["resample"]]
    )
    given, wanted = spec.crop or spec.size, (image_size, image_size)
    if given != wanted:
        raise ModelUnsupported(f"{folder}: preprocessing gives {given}, the image tower takes {wanted}")
    return spec


def _weight_files(tower: Path) -> list[Path]:
    """Return the shards of the checkpoint that transformers would load."""
    for whole, shards in _WEIGHTS:
        if files := [tower / whole] if (tower / whole).is_file() else sorted(tower.glob(shards)):
            return files
    raise ModelUnsupported(f"{tower} has neither model.safetensors nor pytorch_model.bin")
