"""The two frozen networks: EfficientNet-Lite2 for images, all-MiniLM-L6-v2 for texts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from clip_embed._models.loading import no_progress_bar
from clip_embed._types import Float32, UInt8
from clip_embed._warn import warn_caller
from clip_embed.offline._packages import TEXT_WEIGHTS, TOKENIZER

if TYPE_CHECKING:
    from sentence_transformers import SentenceTransformer
    from torch import Tensor

IMAGE_SIZE = 260
"""Height and width of the image tower's input, in pixels."""
TEXT_TOKENS = 256
"""What the text tower reads of a text, the two tokens at the ends counted."""
PIXEL_MEAN, PIXEL_SCALE = 127.0, 128.0
"""(pixel - mean) / scale is what EfficientNet-Lite was trained on, the same for each channel."""
CAM_CLASSES = 3
"""How many of the likeliest classes the class activation map is taken of."""


@dataclass(frozen=True, slots=True)
class ImageFeatures:
    """What one forward pass of the image tower gives, all float32, in input order."""

    features: Float32
    """(n, 1280): mean of the last feature map over its positions."""
    focused: Float32
    """(n, 1280): the same mean, each position weighted by the class activation map."""
    logits: Float32
    """(n, 1000): scores of the ImageNet-1k classes, before softmax."""
    activation: Float32
    """(n, 9, 9): class activation map of the likeliest classes, at least 0, largest value 1."""


class ImageTower:
    """EfficientNet-Lite2 in evaluation mode on one device."""

    def __init__(self, device: str) -> None:
        from clip_embed.offline._efficientnet import load_efficientnet

        self._device = device
        self._feature_map, self.classifier = load_efficientnet(device)

    def __call__(self, pixels: UInt8) -> ImageFeatures:
        """uint8 (n, 260, 260, 3) RGB -> the features of n images."""
        import torch

        with torch.inference_mode():
            inputs = torch.tensor(pixels, device=self._device).permute(0, 3, 1, 2).float()
            layout = torch.channels_last if self._device == "cpu" else torch.contiguous_format
            inputs = ((inputs - PIXEL_MEAN) / PIXEL_SCALE).contiguous(memory_format=layout)
            feature_map = self._feature_map(inputs)
            features = feature_map.mean(dim=(2, 3))
            logits = self.classifier(features)
            activation = _class_activation(feature_map, logits, self.classifier.weight)
            focused = torch.einsum("nchw,nhw->nc", feature_map, activation)
            focused /= activation.sum(dim=(1, 2)).clamp(min=1)[:, None]
        return ImageFeatures(_array(features), _array(focused), _array(logits), _array(activation))


class TextTower:
    """all-MiniLM-L6-v2 in evaluation mode on one device."""

    def __init__(self, device: str) -> None:
        self._encoder = _load_minilm(device)

    def __call__(self, texts: Sequence[str], *, shown: Sequence[str] | None = None) -> Float32:
        """m texts -> float32 (m, 384), rows of unit length, in order; equal texts are encoded once.

        Texts of more than 256 tokens are cut there, with one UserWarning for the whole call, which quotes
        `shown`: the texts as the user wrote them, where `texts` are parts of them.
        """
        unique = list(dict.fromkeys(texts))
        self._warn_of_cut(texts, texts if shown is None else shown)
        vectors = self._encoder.encode(  # pyright: ignore[reportUnknownMemberType]
            unique, show_progress_bar=False, convert_to_numpy=True, normalize_embeddings=True
        )
        row = {text: position for position, text in enumerate(unique)}
        return np.asarray(vectors, dtype=np.float32)[[row[text] for text in texts]]

    def _warn_of_cut(self, texts: Sequence[str], shown: Sequence[str]) -> None:
        tokenizer = self._encoder.tokenizer
        rows = tokenizer(list(texts), truncation=False, padding=False, verbose=False)["input_ids"]
        cut = [position for position, row in enumerate(rows) if len(row) > TEXT_TOKENS]
        if cut:
            warn_caller(
                f"{len(cut)} of {len(texts)} texts are longer than the {TEXT_TOKENS} tokens that the offline "
                f"model reads and were cut; the first is text {cut[0]}: {shown[cut[0]][:60]!r}…"
            )


def _class_activation(feature_map: Tensor, logits: Tensor, class_weights: Tensor) -> Tensor:
    """Where the likeliest classes are seen: float32 (n, h, w), at least 0, largest value 1.

    The classifier is linear in the feature map, so the map weighted by a class's weights says how much
    each position speaks for the class (class activation mapping, Zhou et al. 2016). The classes count by
    their probability, which keeps the map steady where two of them are close.
    """
    import torch

    top = logits.softmax(dim=1).topk(CAM_CLASSES, dim=1)
    shares = top.values / top.values.sum(dim=1, keepdim=True)
    weights = torch.einsum("nk,nkc->nc", shares, class_weights[top.indices])
    activation = torch.einsum("nchw,nc->nhw", feature_map, weights).clamp(min=0)
    return activation / activation.amax(dim=(1, 2), keepdim=True).clamp(min=1e-6)


def _load_minilm(device: str) -> SentenceTransformer:
    """all-MiniLM-L6-v2 with its checked weights and tokenizer, read from its package only."""
    from sentence_transformers import SentenceTransformer

    from clip_embed._models.onednn import use_onednn

    TOKENIZER.checked_path()
    folder = TEXT_WEIGHTS.checked_path().parent
    with no_progress_bar():
        encoder = SentenceTransformer(str(folder), device=device, local_files_only=True).eval()
    if device == "cpu":
        use_onednn(encoder)
    return encoder


def _array(tensor: Tensor) -> Float32:
    return tensor.float().cpu().numpy()
