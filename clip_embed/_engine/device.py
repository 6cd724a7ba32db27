"""Which device a model runs on, and how many images it takes at once."""

from __future__ import annotations

_BYTES_PER_IMAGE = 64 * 1024 * 1024  # of free memory: activations of a large tower, with room to spare


def resolve_device(device: str) -> str:
    """Turn "auto" into the best device there is: cuda (ROCm too), xpu, mps, else cpu.

    A device that is named is taken as it is; ValueError where torch cannot use it.
    """
    if device == "cpu":
        return device
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


def suggest_batch_size(device: str) -> int:
    """Return how many images to run at once.

    On a CPU the time of an image is flat around 8 (benchmarks/pipeline.py). On a GPU what the free
    memory holds, as a power of two; where that is too much, it is halved later on.
    """
    if device == "cpu":
        return 8
    if device.partition(":")[0] != "cuda":
        return 64
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    images = max(8, min(256, free // _BYTES_PER_IMAGE))
    return 1 << images.bit_length() - 1


def stable_shape(rows: int, batch_size: int, device: str) -> int:
    """Return with how many rows a batch of so many had better run.

    A GPU prepares its kernels for every shape anew, so it gets powers of two; a CPU pays for each row.
    """
    if device == "cpu" or rows >= batch_size:
        return rows
    return min(batch_size, 1 << (rows - 1).bit_length())
