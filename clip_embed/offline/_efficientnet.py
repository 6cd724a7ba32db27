"""EfficientNet-Lite2 as the image tower runs it; the only use of `efficientnet_lite_pytorch`.

That package of 2020 is maintained by nobody, and writes its layers for training. For vectors they are put
together here: the same features to 1e-5, in a third of the time on a CPU.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from itertools import pairwise
from typing import Any, cast

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from clip_embed.offline._packages import IMAGE_TOWER_CODE, IMAGE_WEIGHTS

_WIDE = 5
"""Blocks at the beginning whose results are large, up to 6.5 MB for an image."""
_SLICE = 8
"""Images that a CPU takes through the other blocks at once; through the first ones it takes each alone. More
are no faster, and what layers give does not fit the memory that the process keeps then: it asks the system
for new pages each time, and that takes longer than the products."""

_LARGEST_KEPT = 31 * 1024 * 1024  # bytes; glibc does not learn from a block of 32 MB
Features = Callable[[torch.Tensor], torch.Tensor]


def load_efficientnet(device: str) -> tuple[Features, nn.Linear]:
    """Return what gives the feature map, float32 (n, 3, 260, 260) -> (n, 1280, 9, 9), and the classifier.

    It reads and gives channels last on a CPU, channels first elsewhere.
    Raises ModelUnsupported where the weights are not those that the model was made for.
    """
    network = import_module(IMAGE_TOWER_CODE).EfficientNet.from_name("efficientnet-lite2")
    network.load_state_dict(torch.load(IMAGE_WEIGHTS.checked_path(), map_location="cpu", weights_only=True))
    network.eval().requires_grad_(False)
    _fold_batch_norms(network)
    _clamp_in_place(network)
    _pad_in_convolutions(network)
    if device != "cpu":
        _replace(network, _Product, lambda layer: layer.groups == 1)
    elif cast("Any", torch.backends.mkldnn).is_available():
        _replace(network, _Pointwise, lambda layer: layer.kernel_size == (1, 1))
    network.to(device)
    blocks = list(network.get_submodule("_blocks").children())
    wide = nn.Sequential(*_parts(network, "_conv_stem", "_bn0", "_swish"), *blocks[:_WIDE])
    narrow = nn.Sequential(*blocks[_WIDE:], *_parts(network, "_conv_head", "_bn1", "_swish"))
    classifier = network.get_submodule("_fc")
    if device != "cpu":
        return nn.Sequential(wide, narrow), classifier
    _keep_memory()
    return _in_slices(wide, narrow), classifier


def _parts(network: nn.Module, *names: str) -> list[nn.Module]:
    return [network.get_submodule(name) for name in names]


def _fold_batch_norms(network: nn.Module) -> None:
    """Put each batch norm into the convolution before it; they stand together in their module."""
    for module in network.modules():
        for (name, layer), (next_name, following) in pairwise(list(module.named_children())):
            if isinstance(layer, nn.Conv2d) and isinstance(following, nn.BatchNorm2d):
                setattr(module, name, fuse_conv_bn_eval(layer, following))
                setattr(module, next_name, nn.Identity())


def _clamp_in_place(network: nn.Module) -> None:
    """Let ReLU6 change what it is given, which nothing else reads."""
    for module in network.modules():
        if isinstance(module, nn.ReLU6):
            module.inplace = True


def _pad_in_convolutions(network: nn.Module) -> None:
    """Let convolutions pad what they read themselves, where all sides get the same: one copy less."""
    for module in network.modules():
        padding = getattr(module, "static_padding", None)
        if isinstance(module, nn.Conv2d) and isinstance(padding, nn.ZeroPad2d):
            left, right, top, bottom = padding.padding
            if left == right and top == bottom:
                module.padding = (top, left)
                module.static_padding = nn.Identity()


def _in_slices(wide: nn.Module, narrow: nn.Module) -> Features:
    def features(images: torch.Tensor) -> torch.Tensor:
        each = [images[at : at + 1] for at in range(len(images))]  # images[at] would lose the layout
        slices = (each[at : at + _SLICE] for at in range(0, len(each), _SLICE))
        return torch.cat([narrow(torch.cat([wide(image) for image in few])) for few in slices])

    return features


def _keep_memory() -> None:
    """Have the C library keep memory that layers free, instead of asking the system for it anew each time.

    glibc keeps up to twice the size of the largest block that was freed, of those below 32 MB, for the whole
    process; elsewhere this does nothing.
    """
    torch.empty(_LARGEST_KEPT, dtype=torch.uint8)


class _Pointwise(nn.Module):
    """A convolution of 1 × 1 by oneDNN.

    With one thread torch itself takes it only for 16 images and more, and for fewer a product that takes
    twice the time.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, layer.bias

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (n, inputs, h, w) -> (n, outputs, h, w)."""
        convolve: Any = torch.ops.aten.mkldnn_convolution
        return cast("torch.Tensor", convolve(hidden, self.weight, self.bias, [0, 0], [1, 1], [1, 1], 1))


class _Product(nn.Module):
    """A convolution as a matrix product: the same sums, and in float32 on any device.

    torch lets cuDNN round the inputs of convolutions to TF32 unless told otherwise for the whole process,
    which takes some photos' vectors to a cosine of 0.9991 with float32's. The convolutions left are those of
    each channel by itself: torch has a kernel of its own for them, as long as channels come first.
    """

    def __init__(self, layer: nn.Conv2d) -> None:
        super().__init__()
        self.weight, self.bias = layer.weight, cast("torch.Tensor", layer.bias)
        self._pad = cast("nn.Module", layer.static_padding)
        self._unfold = (
            nn.Flatten(2)
            if layer.kernel_size == (1, 1)
            else nn.Unfold(layer.kernel_size, padding=cast("Any", layer.padding), stride=layer.stride)
        )
        self._stride = layer.stride[0]

    def forward(self, hidden: torch.Tensor) -> torch.Tensor:
        """float32 (n, inputs, h, h) -> (n, outputs, h / stride, h / stride)."""
        edge = -(-hidden.shape[2] // self._stride)
        columns = self._unfold(self._pad(hidden))
        weight = self.weight.flatten(1).expand(len(hidden), -1, -1)
        products = torch.baddbmm(self.bias[:, None], weight, columns)
        return products.reshape(*products.shape[:2], edge, edge)


def _replace(
    network: nn.Module, by: Callable[[nn.Conv2d], nn.Module], which: Callable[[nn.Conv2d], bool]
) -> None:
    """Put another module in the place of the convolutions chosen."""
    for module in network.modules():
        for name, layer in list(module.named_children()):
            if isinstance(layer, nn.Conv2d) and which(layer):
                setattr(module, name, by(layer))
