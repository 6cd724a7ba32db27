"""Which device a model runs on."""

from __future__ import annotations


def resolve_device(device: str) -> str:
    """Turn "auto" into the best device there is: cuda (ROCm too), xpu, mps, else cpu.

    A device that is named is taken as it is; ValueError where torch cannot use it.
    """
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    kind = device.partition(":")[0]
    if not available.get(kind, False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(
            f"device {device!r} cannot be used by this build of torch {torch.__version__}; there is: {there}"
        )
    return device
