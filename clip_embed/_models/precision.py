"""Which precision a model computes in: what was asked for, held against what the device does natively.

fp32 is the reference forward pass, and "exact" is fp32 with the reference preprocessing as well.
bf16, fp16 and int8 make other roundings of the same vectors: the space does not change.
"""

from __future__ import annotations

import platform
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, cast, get_args

from clip_embed._engine.device import device_kind

Precision = Literal["auto", "exact", "fp32", "bf16", "fp16", "int8"]
PRECISIONS: tuple[str, ...] = get_args(Precision)
FULL = ("exact", "fp32")
"""The two that compute in float32."""


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What a device computes in instructions of its own that are faster than those of float32."""

    bf16: bool
    """Matrix products of bfloat16: AMX, AMD's AVX512-BF16, Arm's BF16, or a GPU that has them."""
    int8: bool
    """Matrix products of int8 on a CPU: VNNI or AMX-INT8."""


@dataclass(frozen=True, slots=True)
class Resolved:
    """A precision that is not "auto", and in words why it is this one."""

    name: str
    reason: str


def check_precision(precision: object) -> None:
    """Raise ValueError for anything but a known name; imports nothing."""
    if precision not in PRECISIONS:
        *names, last = (repr(name) for name in PRECISIONS)
        raise ValueError(f"precision must be {', '.join(names)} or {last}, not {precision!r}")


def resolve(precision: str, device: str, can: Capabilities | None = None) -> Resolved:
    """Return the precision that `device` (never "auto") will compute in.

    "auto" becomes bf16 where the device computes it faster, else fp32; any other name is taken as it is.
    Raises ValueError for fp16 on a CPU, and for int8 on a GPU or on a CPU without int8 products.
    """
    check_precision(precision)
    if precision in FULL:
        return Resolved(precision, "asked for")
    kind = device_kind(device)
    if precision == "fp16" and kind == "cpu":
        raise ValueError(
            "precision 'fp16' is not offered on a CPU, where float16 is no faster than float32: "
            "take 'auto', 'bf16' or 'fp32'"
        )
    if precision == "fp16":
        return Resolved(precision, "asked for")
    can = can or capabilities(device)
    if precision == "auto":
        if can.bf16:
            return Resolved("bf16", f"this {kind} computes faster in bfloat16")
        return Resolved("fp32", f"this {kind} does not compute faster in bfloat16")
    if precision == "bf16":
        return Resolved(
            precision, "asked for" + ("" if can.bf16 else f", though it is slower than fp32 on this {kind}")
        )
    if device != "cpu":
        raise ValueError(f"precision 'int8' is for a CPU, not for {device}: take 'auto' or 'bf16'")
    if not can.int8:
        raise ValueError(
            "precision 'int8' needs a CPU with int8 products (VNNI or AMX) and a torch that uses them; "
            "without them it would be slow, and sums overflow: take 'auto' or 'fp32'"
        )
    return Resolved(precision, "asked for")


def capabilities(device: str) -> Capabilities:
    """Ask torch what `device` (never "auto") has natively; what an old torch cannot tell is missing."""
    import torch

    kind = device_kind(device)
    if kind == "cuda":
        return Capabilities(torch.cuda.is_bf16_supported(including_emulation=False), int8=False)
    if kind == "cpu":
        # torch emulates bfloat16 products behind the same calls, so the instructions are asked for.
        # Intel's AVX512-BF16 without AMX takes 1.5 times as long as float32, AMD's takes half as long.
        arm = platform.machine() in ("aarch64", "arm64")
        arm_bf16 = arm and _says(getattr(torch.ops, "mkldnn", None), "_is_mkldnn_bf16_supported")
        avx_bf16 = _says(torch.cpu, "_is_avx512_bf16_supported")
        x86_bf16 = avx_bf16 and (_says(torch.cpu, "_is_amx_tile_supported") or _is_amd())
        mkldnn = _says(torch.backends.mkldnn, "is_available")
        int8 = _says(torch.cpu, "_is_vnni_supported") and hasattr(torch.ops.onednn, "qlinear_pointwise")
        return Capabilities(mkldnn and (x86_bf16 or arm_bf16), mkldnn and int8)
    return Capabilities(bf16=False, int8=False)


def leaves_avx512_unused() -> bool:
    """Whether torch multiplies float32 on this CPU without instructions that it has, and oneDNN with them."""
    import torch

    onednn = _says(torch.backends.mkldnn, "is_available") and hasattr(torch.ops.mkldnn, "_linear_pointwise")
    return onednn and _is_amd() and _says(torch.cpu, "_is_avx512_supported")


def _is_amd() -> bool:
    """Whether the CPU names AMD as its maker: Windows says so in `platform`, Linux in a file."""
    if "AuthenticAMD" in platform.processor():
        return True
    try:
        return "AuthenticAMD" in Path("/proc/cpuinfo").read_text("utf-8", "replace")
    except OSError:
        return False


def _says(owner: object, question: str) -> bool:
    """Ask one of torch's yes-or-no functions that not every version has."""
    function = cast("Callable[[], bool] | None", getattr(owner, question, None))
    return function is not None and bool(function())
