"""Which devices a model runs on, and how many images one takes at once.

Several devices are one name with commas, "cuda:0,cuda:1": so they travel in settings and reports.
"""

from __future__ import annotations

from collections.abc import Sequence

_BYTES_PER_IMAGE = 64 * 1024 * 1024  # of free memory, where nobody has measured: a large tower, with room
_SHARE = 0.25  # of the free memory that a batch may take: two lanes have a plain pass and a recording each
_MOST = 256  # images; a GPU is no faster with more (benchmarks/gpu.py)


def device_name(device: str | Sequence[str]) -> str:
    """Return one name for one or several devices of torch; ValueError for what cannot work together."""
    if isinstance(device, str):
        return device
    names = list(device)
    if not names or not all(isinstance(name, str) and name for name in names):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ValueError(f'device must be a name, or names as in ["cuda:0", "cuda:1"], not {device!r}')
    if len(names) > 1 and "auto" in names:
        raise ValueError('device "auto" is one device: name each of several, as in ["cuda:0", "cuda:1"]')
    if len({device_kind(name) for name in names}) > 1:
        raise ValueError(f"devices of several kinds give vectors of several precisions: {', '.join(names)}")
    return ",".join(names)


def devices_of(name: str) -> list[str]:
    """Return the single devices that a name stands for."""
    return name.split(",")


def device_kind(name: str) -> str:
    """Return "cuda", "xpu", "mps" or "cpu"; several devices are of one kind."""
    return name.partition(",")[0].partition(":")[0]


def is_gpu(name: str) -> bool:
    """Whether a device computes beside the processor's cores."""
    return device_kind(name) != "cpu"


def resolve_device(device: str) -> str:
    """Turn "auto" into the best device there is: cuda (ROCm too), xpu, mps, else cpu.

    A device that is named is taken as it is; ValueError where torch cannot use it.
    """
    if device_kind(device) == "cpu":
        return device if "," in device else "cpu"  # "cpu:0" is the same
    import torch

    available = {
        "cuda": torch.cuda.is_available(),
        "xpu": torch.xpu.is_available(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if device == "auto":
        return next(name for name, there in available.items() if there)
    if not available.get(device_kind(device), False):
        there = ", ".join(name for name, is_there in available.items() if is_there)
        raise ValueError(
            f"device {device!r} cannot be used by this build of torch {torch.__version__}; there is: {there}"
        )
    return device


def suggest_batch_size(device: str, bytes_per_image: int | None = None) -> int:
    """Return how many images to run at once.

    On a CPU the time of an image is flat around 8 (benchmarks/pipeline.py). On a GPU what the free
    memory of the fullest holds, as a power of two; where that is too much, it is halved later on.
    `bytes_per_image` is what a forward pass was seen to take.
    """
    if not is_gpu(device):
        return 8
    if device_kind(device) != "cuda":
        return 64
    free = min(free_memory(each) for each in devices_of(device))
    images = int(free * _SHARE) // bytes_per_image if bytes_per_image else free // _BYTES_PER_IMAGE
    return 1 << max(8, min(_MOST, images)).bit_length() - 1


def free_memory(device: str) -> int:
    """Return the bytes that a CUDA device has left, those that torch keeps for itself among them."""
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def stable_shape(rows: int, batch_size: int, device: str) -> int:
    """Return with how many rows a batch of so many had better run.

    A GPU prepares its kernels for every shape anew, so it gets powers of two; a CPU pays for each row.
    """
    if not is_gpu(device) or rows >= batch_size:
        return rows
    return min(batch_size, 1 << (rows - 1).bit_length())
