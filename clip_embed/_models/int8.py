"""A CLIP image tower in int8, and the proof that it still gives the vectors of float32.

The int8 products of torch's oneDNN do it, so nothing is exported and nothing more is installed. Weights have
one scale for each output channel, activations one for each token; outlier channels are moved into
the weights beforehand. Layer norms, attention, residual stream and projection stay in float32.
"""

from __future__ import annotations

from copy import deepcopy
from dataclasses import dataclass
from typing import Any, cast

import numpy as np
import torch
from torch import nn

from clip_embed._models.low_precision import fold_quick_gelu, layers_of
from clip_embed._types import UInt8
from clip_embed.errors import ModelError

_ONEDNN: Any = torch.ops.onednn
_GAMMA_REACH = 3.0  # standard deviations of a channel that its scale has room for
_MIGRATION = 0.5  # how much of an outlier moves into the weights: SmoothQuant's alpha
_CHECK_IMAGES = 8
MIN_COSINE = 0.995
MIN_CENTRED_COSINE = 0.98
MAX_COMPANY = 1e-5


@dataclass(frozen=True, slots=True)
class Fidelity:
    """How far int8 vectors are from those of float32, over one set of images."""

    cosine: float
    """The smallest cosine."""
    centred: float
    """The smallest cosine after the mean of the float32 vectors is taken away from both."""
    company: float
    """The largest change of a component between an image alone and in a batch."""

    @property
    def passes(self) -> bool:
        """True within all three bounds; a NaN is in none."""
        return (
            self.cosine >= MIN_COSINE and self.centred >= MIN_CENTRED_COSINE and self.company <= MAX_COMPANY
        )


@torch.inference_mode()
def use_int8(model: Any, pixels: torch.Tensor) -> Fidelity:  # noqa: ANN401 - transformers' CLIPModel
    """Let the image tower of a CLIPModel compute in int8, in place, if it gives the same vectors so.

    `pixels` float32 (n, 3, height, width), normalised, are what it is tried on. Raises ModelError
    with the figures, the model as it was, where a bound is not held.
    """
    original = model.vision_model
    expected = _vectors(model, pixels)
    model.vision_model = deepcopy(original)
    to_int8(model.vision_model)
    found = _compare(expected, _vectors(model, pixels), _vectors(model, pixels[:1]))
    if not found.passes:
        model.vision_model = original
        raise ModelError(
            f"int8 moves this model's vectors too far from float32: smallest cosine {found.cosine:.4f} "
            f"(at least {MIN_COSINE}), after subtracting the mean {found.centred:.4f} (at least "
            f"{MIN_CENTRED_COSINE}), change with the batch {found.company:.1e} (at most {MAX_COMPANY}); "
            "take precision 'auto', 'bf16' or 'fp32'"
        )
    return found


def photo_like(size: tuple[int, int], count: int = _CHECK_IMAGES) -> UInt8:
    """Return the fixed images of the check: uint8 (count, *size, 3), light, shapes, texture and grain."""
    rng = np.random.default_rng(20)
    y, x = (np.linspace(0, 1, edge, dtype=np.float32) for edge in size)
    y, x = y[:, None, None], x[None, :, None]
    images: list[UInt8] = []
    for _ in range(count):
        tilt, waves, base = rng.uniform(-90, 90, (2, 3)), rng.uniform(2, 40, (2, 3)), rng.uniform(60, 200, 3)
        image = base + tilt[0] * x + tilt[1] * y
        image = image + rng.uniform(5, 40) * np.sin(waves[0] * 6.28 * x) * np.cos(waves[1] * 6.28 * y)
        for _ in range(8):
            (cx, cy), (w, h) = rng.uniform(0, 1, 2), rng.uniform(0.05, 0.3, 2)
            colour = rng.uniform(0, 255, 3)
            image = np.where(((x - cx) / w) ** 2 + ((y - cy) / h) ** 2 < 1, colour, image)
        image = image + rng.normal(0, rng.uniform(1, 12), image.shape)
        images.append(np.clip(image, 0, 255).astype(np.uint8))
    return np.stack(images)


class RowInt8Linear(nn.Module):
    """A linear layer in int8: one scale for each output channel, and one for each row of the input.

    A row is one token of one image, so a vector does not depend on the other rows of its batch.
    """

    _bias: torch.Tensor

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        weight = linear.weight.detach().float()
        scale = weight.abs().amax(dim=1).clamp(min=1e-12) / 127
        bias = torch.zeros_like(scale) if linear.bias is None else linear.bias.detach().float().clone()  # pyright: ignore[reportUnnecessaryComparison]
        self._weight = Int8Weight((weight / scale[:, None]).round().to(torch.int8), scale)
        self.register_buffer("_bias", bias)

    def forward(self, rows: torch.Tensor) -> torch.Tensor:
        """float32 (..., inputs) -> float32 (..., outputs)."""
        flat = rows.reshape(-1, rows.shape[-1])
        lowest, highest = flat.amin(dim=1, keepdim=True), flat.amax(dim=1, keepdim=True)
        scale = torch.maximum(highest, lowest.neg_()).clamp_(min=1e-12).div_(127)
        products = self._weight.products((flat / scale).round_().to(torch.int8))
        return torch.addcmul(self._bias, products, scale, out=products).view(*rows.shape[:-1], -1)


class Int8Weight:
    """A weight of int8 (outputs, inputs) with a scale (outputs,), in the layout that oneDNN multiplies by.

    torch's `_int_mm` gives the same sums as int32, which takes up to twice as long to write and scale.
    """

    def __init__(self, quantised: torch.Tensor, scale: torch.Tensor) -> None:
        self._scale = scale
        self._zero = torch.zeros(len(scale), dtype=torch.int64)
        self._packed = _ONEDNN.qlinear_prepack(quantised, None)

    def products(self, rows: torch.Tensor) -> torch.Tensor:
        """int8 (n, inputs) -> float32 (n, outputs), scaled; the sums themselves are exact."""
        product = _ONEDNN.qlinear_pointwise(
            rows, 1.0, 0, self._packed, self._scale, self._zero, None, 1.0, 0, torch.float32, "none", [], ""
        )
        return cast("torch.Tensor", product)


@torch.no_grad()
def to_int8(tower: nn.Module) -> None:
    """Let the linear layers of a CLIP tower compute in int8, in place."""
    for layer in layers_of(tower):
        fold_quick_gelu(layer)
        attention, mlp = layer.self_attn, layer.mlp
        _smooth(layer.layer_norm1, [attention.q_proj, attention.k_proj, attention.v_proj])
        _smooth(layer.layer_norm2, [mlp.fc1])
        for name in ("q_proj", "k_proj", "v_proj", "out_proj"):
            setattr(attention, name, RowInt8Linear(getattr(attention, name)))
        mlp.fc1, mlp.fc2 = RowInt8Linear(mlp.fc1), RowInt8Linear(mlp.fc2)


def _smooth(norm: nn.LayerNorm, linears: list[nn.Linear]) -> None:
    """Move the outlier channels of a layer norm's output into the weights behind it (SmoothQuant).

    A row of int8 has one scale, which a single large channel would take for itself. How far a channel
    reaches is known without data: its values have mean beta and standard deviation |gamma|.
    """
    reach = (norm.bias.abs() + _GAMMA_REACH * norm.weight.abs()).clamp(min=1e-5)
    weights = torch.cat([linear.weight for linear in linears]).abs().amax(dim=0).clamp(min=1e-5)
    factor = (reach**_MIGRATION / weights ** (1 - _MIGRATION)).clamp(min=1e-5)
    norm.weight.div_(factor)
    norm.bias.div_(factor)
    for linear in linears:
        linear.weight.mul_(factor)


def _vectors(model: Any, pixels: torch.Tensor) -> torch.Tensor:  # noqa: ANN401 - transformers' CLIPModel
    """float32 (n, d), rows of unit length."""
    output = model.get_image_features(pixel_values=pixels)
    return nn.functional.normalize(getattr(output, "pooler_output", output))


def _compare(expected: torch.Tensor, found: torch.Tensor, first: torch.Tensor) -> Fidelity:
    mean = expected.mean(dim=0)
    cosine = nn.functional.cosine_similarity
    return Fidelity(
        cosine=cosine(expected, found).min().item(),
        centred=cosine(expected - mean, found - mean).min().item(),
        company=(found[:1] - first).abs().max().item(),
    )
