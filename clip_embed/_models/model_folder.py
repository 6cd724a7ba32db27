"""The two towers of a model in a local folder, loaded by transformers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from clip_embed._engine.device import devices_of, resolve_device
from clip_embed._engine.lanes import lanes_of
from clip_embed._models.families import as_trained, family_of
from clip_embed._models.folder import (
    pad_token,
    read_object,
    stated,
    tokenizer_facts,
    tower_folder,
    weight_files,
)
from clip_embed._models.loading import load_tokenizer, load_towers
from clip_embed._models.precision import FULL, resolve
from clip_embed._models.processor import read_processor
from clip_embed._models.space import checkpoint_digest, space_of
from clip_embed._types import Float32, UInt8
from clip_embed._warn import warn_caller

if TYPE_CHECKING:
    import torch

    from clip_embed._models.placing import Placed

_TEXT_BATCH_SIZE = 256


class ModelFolder:
    """A `Model`: CLIP's or SigLIP's two towers from a transformers or sentence-transformers folder.

    The constructor reads the configuration, `space` hashes the weights, `load` loads them.
    In "int8" only the image tower is int8; texts, of which there are few, stay in float32.
    Raises ModelUnsupported where the folder is not one of such a model.
    """

    parallel = True  # `embed_images` may be called by several threads at once

    def __init__(self, folder: Path, device: str = "cpu", precision: str = "fp32") -> None:
        self._device = device
        self._asked_precision = precision
        self._tower = tower_folder(folder)
        config = read_object(self._tower / "config.json")
        self._family = family_of(config, folder)
        self._texts = stated(config.get("text_config") or {}, self._family.text)
        self._images = stated(config.get("vision_config") or {}, self._family.image)
        self._processor = read_processor(
            self._tower, self._images["image_size"], folder, self._family.processor
        )
        self._weights = weight_files(self._tower)
        self._text_form, self._as_trained = as_trained(self._family, self._tower)
        self._placed: Placed | None = None
        self.image_spec = self._processor.spec
        self.dim = self._family.dim(config, folder)

    @property
    def space(self) -> str:
        """Digest of weights, tower flags, preprocessing and tokenizer."""
        return self._space

    @cached_property
    def _space(self) -> str:
        facts: dict[str, object] = {
            "text": self._texts,
            "image": self._images,
            "pixels": self._processor.facts,
            "tokenizer": tokenizer_facts(self._tower),
        }
        if self._family.padded:
            facts["padded"] = [self._text_form, pad_token(self._tower)]
        return space_of(self._family.name, checkpoint_digest(self._weights), self.dim, facts)

    @cached_property
    def precision(self) -> str:
        """What the forward pass computes in, "auto" resolved; ValueError where the device has it not."""
        return resolve(self._asked_precision, resolve_device(self._device)).name

    @property
    def logit_scale(self) -> float:
        """What training multiplied cosine similarities by; loads the weights."""
        return float(self._towers.logit_scale.detach().exp())

    def load(self) -> None:
        """Load the weights; idempotent. Raises ModelError where int8 moves this model's vectors too far."""
        _ = self._towers

    @cached_property
    def _scaled(self) -> Callable[[torch.Tensor], torch.Tensor]:
        return self._processor.scaling.on("cpu")

    @property
    def lanes(self) -> int:
        """How many batches run side by side on GPUs, or on several devices; 1 on a CPU."""
        devices = devices_of(resolve_device(self._device))
        return sum(map(lanes_of, devices))

    @property
    def bytes_per_image(self) -> int | None:
        """What an image takes of a GPU's memory, None where it was not measured; loads the weights."""
        _ = self._towers
        return self._placed.bytes_per_image if self._placed else None

    @property
    def notes(self) -> list[str]:
        """What did not hold when it was checked and is not used, in sentences."""
        return [*self._placed.notes, *self._placed.images.notes] if self._placed else []

    def emptied(self) -> AbstractContextManager[object]:
        """Return what to hold so that nothing else computes on the GPUs, nor is kept there."""
        return self._placed.images.emptied() if self._placed else nullcontext()

    @cached_property
    def _towers(self) -> Any:  # noqa: ANN401 - transformers' CLIPModel or SiglipModel, imported late
        device, precision = resolve_device(self._device), self.precision
        self._processor.check()
        self._tokenizer = load_tokenizer(self._tower)
        self._text_length = min(
            int(self._tokenizer.model_max_length), int(self._texts["max_position_embeddings"])
        )
        towers = load_towers(self._tower)
        edge = self._images["image_size"]
        if device != "cpu":
            from clip_embed._models.placing import Ways, place

            ways = Ways(self._image_tower, self._texts_by)
            self._placed = place(towers, device, precision, ways, edge)
            return self._placed.texts
        from clip_embed._models.onednn import use_onednn

        if precision == "int8":
            from clip_embed._models.fidelity import photo_like
            from clip_embed._models.int8 import use_int8

            use_int8(towers, self._normalised(photo_like((edge, edge))))
        elif precision not in FULL:
            from clip_embed._models.low_precision import use_dtype

            use_dtype(towers, precision)
        use_onednn(towers)
        return towers

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """uint8 (n, height, width, 3) RGB -> float32 (n, dim), in order, not normalised."""
        import torch

        towers = self._towers
        if self._placed:
            return self._placed.images(pixels)
        with torch.inference_mode():
            return _to_numpy(towers.get_image_features(pixel_values=self._normalised(pixels)))

    def _image_tower(self, towers: Any, device: str) -> Callable[[torch.Tensor], torch.Tensor]:  # noqa: ANN401
        """Return what makes uint8 (n, height, width, 3) on the device float32 (n, dim) there."""
        scaled = self._processor.scaling.on(device)
        return lambda pixels: _features(towers.get_image_features(pixel_values=scaled(pixels)))

    def _normalised(self, pixels: UInt8) -> torch.Tensor:
        """uint8 (n, height, width, 3) -> float32 (n, 3, height, width), normalised, on the CPU."""
        import torch

        return self._scaled(torch.as_tensor(pixels))

    def embed_texts(self, texts: Sequence[str], /) -> Float32:
        """m texts -> float32 (m, dim), in order, not normalised; warns once if any had to be cut."""
        towers = self._towers
        self._warn_of_cuts(texts)
        device = devices_of(resolve_device(self._device))[0]
        starts = range(0, len(texts), _TEXT_BATCH_SIZE)
        return np.concatenate(
            [self._texts_by(towers, device, texts[at : at + _TEXT_BATCH_SIZE]) for at in starts]
        )

    def _texts_by(self, towers: Any, device: str, texts: Sequence[str]) -> Float32:  # noqa: ANN401
        """A batch of m texts -> float32 (m, dim), by towers on a device."""
        import torch

        padded = self._family.padded
        tokens = self._tokenizer(
            [self._as_trained(text) for text in texts],
            padding="max_length" if padded else True,
            truncation=True,
            max_length=self._text_length,
            return_tensors="pt",
        ).to(device)
        mask = None if padded else tokens["attention_mask"]
        with torch.inference_mode():
            return _to_numpy(towers.get_text_features(input_ids=tokens["input_ids"], attention_mask=mask))

    def _warn_of_cuts(self, texts: Sequence[str]) -> None:
        """Warn of texts that are longer than the text tower reads."""
        # A token is at least one byte, two are start and end; lower case may take more bytes.
        suspects = [text for text in texts if 2 * len(text.encode()) > self._text_length - 2]
        if not suspects:
            return
        rows = self._tokenizer([self._as_trained(text) for text in suspects], verbose=False)["input_ids"]
        cut = [text for text, row in zip(suspects, rows, strict=True) if len(row) > self._text_length]
        if cut:
            warn_caller(
                f"{len(cut)} of {len(texts)} texts are longer than the {self._text_length} tokens that the "
                f"model reads and were cut there, the first: {cut[0][:60]!r}…"
            )


def _features(output: Any) -> torch.Tensor:  # noqa: ANN401 - a tensor, or an output that holds one
    return cast("torch.Tensor", getattr(output, "pooler_output", output)).float()


def _to_numpy(output: Any) -> Float32:  # noqa: ANN401
    return np.asarray(_features(output).cpu().numpy(), np.float32)
