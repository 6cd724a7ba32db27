"""Float32 products of a tower by oneDNN, on CPUs where torch's own are slow.

On x86 torch multiplies float32 by Intel's MKL, which leaves AVX-512 unused on AMD's CPUs; oneDNN, which is in
torch as well, takes half of the time there. Both round alike, vectors differ by some 1e-7.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import nn

from clip_embed._models.precision import leaves_avx512_unused


class _Linear(nn.Linear):
    """A linear layer whose product oneDNN computes; for inference only."""

    def forward(self, input: torch.Tensor) -> torch.Tensor:  # noqa: A002 - the name of nn.Linear's
        """float32 (..., inputs) -> float32 (..., outputs)."""
        product: Any = torch.ops.mkldnn._linear_pointwise
        return cast("torch.Tensor", product(input, self.weight, self.bias, "none", [], ""))


def use_onednn(model: nn.Module) -> None:
    """Let float32 linear layers of a model on the CPU multiply by oneDNN, in place, where that is faster."""
    if not leaves_avx512_unused():
        return
    for layer in model.modules():
        if type(layer) is nn.Linear and layer.weight.dtype == torch.float32:
            layer.__class__ = _Linear  # its weights and its place in the model stay as they are
