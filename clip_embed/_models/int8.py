"""A CLIP image tower in int8, and the proof that it still gives the vectors of float32.

The int8 products of torch's oneDNN do it, so nothing is exported and nothing more is installed. Weights have
one scale for each output channel, activations one for each token; outlier channels are moved into
the weights beforehand. Layer norms, attention, residual stream and projection stay in float32.
"""

from __future__ import annotations

from copy import deepcopy
from typing import Any, cast

import torch
from torch import nn

from clip_embed._models.fidelity import Bounds, Fidelity, compare
from clip_embed._models.low_precision import fold_quick_gelu, layers_of
from clip_embed._types import Float32
from clip_embed.errors import ModelError

_ONEDNN: Any = torch.ops.onednn
_GAMMA_REACH = 3.0  # standard deviations of a channel that its scale has room for
_MIDDLE = 128  # what stands for 0 in a row
_MIGRATION = 0.5  # how much of an outlier moves into the weights: SmoothQuant's alpha
_BOUNDS = Bounds(cosine=0.995, centred=0.98, company=1e-5)


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
    found = compare(expected, _vectors(model, pixels), _vectors(model, pixels[:1]))
    if not found.within(_BOUNDS):
        model.vision_model = original
        raise ModelError(
            f"int8 moves this model's vectors too far from float32: {found.against(_BOUNDS)}; "
            "take precision 'auto', 'bf16' or 'fp32'"
        )
    return found


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
        products = self._weight.products((flat / scale).round_().add_(_MIDDLE).to(torch.uint8))
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
        """uint8 (n, inputs), 128 for 0 -> float32 (n, outputs), scaled; the sums themselves are exact.

        VNNI multiplies uint8 by int8. Of int8 by int8 oneDNN has fast products only for AMX.
        """
        product = _ONEDNN.qlinear_pointwise(
            rows, 1.0, _MIDDLE, self._packed, self._scale, self._zero,
            None, 1.0, 0, torch.float32, "none", [], "",
        )  # fmt: skip
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


def _vectors(model: Any, pixels: torch.Tensor) -> Float32:  # noqa: ANN401 - transformers' CLIPModel
    """float32 (n, d)."""
    output = model.get_image_features(pixel_values=pixels)
    return cast("Float32", getattr(output, "pooler_output", output).numpy())
