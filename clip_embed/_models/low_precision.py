"""A CLIP tower with its matrix products in bfloat16 or float16.

Only the products change. The residual stream, layer norms, pooling and projection stay in float32:
rounding the stream in each layer costs fidelity and saves no time worth it. The towers are
transformers' own CLIP modules, changed in place; their forward pass is not touched.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, cast

import torch
from torch import nn

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}
_QUICK_GELU = 1.702  # QuickGELU(x) = x * sigmoid(1.702 x) = SiLU(1.702 x) / 1.702


class _NormTo(nn.Module):
    """A layer norm computed in float32 whose output is rounded to `dtype`."""

    def __init__(self, norm: nn.Module, dtype: torch.dtype) -> None:
        super().__init__()
        self._norm, self._dtype = norm, dtype

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """(n, tokens, width) float32 -> the same in `dtype`."""
        normed: torch.Tensor = self._norm(hidden)
        return normed.to(self._dtype)


def use_dtype(model: Any, precision: str) -> None:  # noqa: ANN401 - transformers' CLIPModel
    """Let both towers of a CLIPModel compute in "bf16" or "fp16", in place."""
    for tower in (model.vision_model, model.text_model):
        to_dtype(tower, _DTYPES[precision])


@torch.no_grad()
def to_dtype(tower: nn.Module, dtype: torch.dtype) -> None:
    """Let the layers and the patch embedding of a CLIP tower compute in bfloat16 or float16, in place."""
    for layer in layers_of(tower):
        fold_quick_gelu(layer)
        layer.self_attn.to(dtype)
        layer.mlp.to(dtype)
        layer.layer_norm1 = _NormTo(layer.layer_norm1, dtype)
        layer.layer_norm2 = _NormTo(layer.layer_norm2, dtype)
    patches = getattr(cast("Any", tower).embeddings, "patch_embedding", None)
    if patches is not None:
        patches.to(dtype)


def layers_of(tower: nn.Module) -> Iterator[Any]:
    """Yield transformers' CLIPEncoderLayers, in order."""
    yield from cast("Any", tower).encoder.layers


def fold_quick_gelu(layer: Any) -> None:  # noqa: ANN401 - a CLIPEncoderLayer
    """Turn QuickGELU, three passes over the widest activations, into SiLU in place, which is one."""
    mlp = layer.mlp
    if type(mlp.activation_fn).__name__ != "QuickGELUActivation":
        return
    mlp.fc1.weight *= _QUICK_GELU
    mlp.fc1.bias *= _QUICK_GELU
    mlp.fc2.weight /= _QUICK_GELU
    mlp.activation_fn = nn.SiLU(inplace=True)


def products_for_patches(tower: nn.Module) -> None:
    """Let a tower read its patches by a matrix product, in place: the same sums as its convolution.

    torch lets cuDNN round the inputs of convolutions to TF32 unless told otherwise for the whole process;
    matrix products keep float32.
    """
    embeddings = cast("Any", tower).embeddings
    if isinstance(embeddings.patch_embedding, nn.Conv2d):
        embeddings.patch_embedding = _PatchProduct(embeddings.patch_embedding)


class _PatchProduct(nn.Module):
    """A convolution whose patches do not overlap, as one matrix product."""

    def __init__(self, patches: nn.Conv2d) -> None:
        super().__init__()
        self._edge = patches.kernel_size
        self.weight, self.bias = patches.weight, patches.bias

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """(n, channels, height, width) -> (n, width of the tower, rows of patches, columns)."""
        high, wide = self._edge
        count, channels, height, width = pixels.shape
        rows, columns = height // high, width // wide
        kept = pixels[:, :, : rows * high, : columns * wide]
        parts = kept.reshape(count, channels, rows, high, columns, wide).permute(0, 2, 4, 1, 3, 5)
        products = nn.functional.linear(parts.flatten(3), self.weight.flatten(1), self.bias)
        return products.permute(0, 3, 1, 2)
