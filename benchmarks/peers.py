"""The contenders of cpu.py, each as its users call it, and the process that one of them runs in."""

from __future__ import annotations

import os
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

Float32 = npt.NDArray[np.float32]
Embed = Callable[[list[str]], Float32]

PEERS = ("sentence-transformers", "fastembed", "transformers-8", "transformers-16", "clip-embed")
MORE_PEERS = ("sentence-transformers-bf16",)
WRONG = ("mirrored", "BGR", "nearest", "bilinear")


@dataclass(frozen=True)
class Contender:
    """One entry of the table: a library with its settings."""

    name: str
    library: str
    batch: int | None = None
    precision: str = "auto"
    exact: bool = True
    """Whether it claims the reference's own pixels and float32."""


@dataclass
class Opened:
    """A contender with its weights loaded."""

    embed: Embed
    settings: dict[str, object] = field(default_factory=dict)
    others: dict[str, Embed] = field(default_factory=dict)
    """Wrong ways to embed, which the check of vectors must find; the reference alone has them."""


def contenders(peers: tuple[str, ...], precisions: tuple[str, ...]) -> list[Contender]:
    """What runs: each peer once, clip-embed once per precision."""
    found: list[Contender] = []
    for peer in peers:
        if peer == "clip-embed":
            for precision in precisions:
                name = peer if precision == "auto" else f"{peer} {precision}"
                found.append(Contender(name, peer, precision=precision, exact=precision == "exact"))
        elif peer.startswith("transformers-"):
            found.append(Contender(peer, "transformers", batch=int(peer.rpartition("-")[2])))
        elif peer.endswith("-bf16"):
            found.append(Contender(peer, peer.removesuffix("-bf16"), precision="bf16", exact=False))
        else:
            found.append(Contender(peer, peer))
    return found


def open_clip_embed(contender: Contender, folder: Path) -> Opened:
    """ClipEmbedder with its default settings; the same files come again, so nothing may be remembered."""
    from clip_embed import ClipEmbedder

    precision: Any = contender.precision
    clip = ClipEmbedder(folder, precision=precision, cache=None, device="cpu")
    clip.load()
    return Opened(clip.embed_images, {"precision": clip.precision, "cache": None})


def open_sentence_transformers(contender: Contender, folder: Path) -> Opened:
    """Encode the paths with the default batch size, 32."""
    from sentence_transformers import SentenceTransformer

    options = {"dtype": "bfloat16"} if contender.precision == "bf16" else None
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True, model_kwargs=options)
    return Opened(lambda paths: np.asarray(model.encode(paths, show_progress_bar=False), np.float32))


def open_fastembed(contender: Contender, folder: Path) -> Opened:
    """FastEmbed's own entry for CLIP ViT-B/32, told to read its files from our folder; batch size 16.

    `add_custom_model` is there for texts only (0.9.1), `specific_model_path` for every model.
    """
    from fastembed import ImageEmbedding
    from random_clip import onnx_folder

    path = str(onnx_folder(folder))
    model = ImageEmbedding("Qdrant/clip-ViT-B-32-vision", specific_model_path=path)
    return Opened(lambda paths: np.stack(list(model.embed(paths))))


def open_transformers(contender: Contender, folder: Path) -> Opened:
    """The loop that transformers' documentation shows, in batches."""
    import torch
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    processor: Any = CLIPProcessor.from_pretrained(folder)
    model = CLIPModel.from_pretrained(folder).eval()
    step = contender.batch or 16

    def embed(paths: list[str]) -> Float32:
        vectors: list[Float32] = []
        with torch.inference_mode():
            for start in range(0, len(paths), step):
                images = [Image.open(path).convert("RGB") for path in paths[start : start + step]]
                output: Any = model.get_image_features(**processor(images=images, return_tensors="pt"))
                vectors.append(getattr(output, "pooler_output", output).numpy())
        return np.concatenate(vectors)

    return Opened(embed, {"image processor": type(processor.image_processor).__name__})


def open_reference(contender: Contender, folder: Path) -> Opened:
    """What vectors are checked against: transformers' PIL image processor and a forward pass in float32."""
    import torch
    from PIL import Image, ImageOps
    from transformers import CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    model = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()

    def embed(paths: list[str], wrong: str = "") -> Float32:
        filters = {"nearest": 0, "bilinear": 2}
        processor: Any = CLIPImageProcessorPil(resample=filters.get(wrong, 3))
        vectors: list[Float32] = []
        with torch.inference_mode():
            for path in paths:
                image = Image.open(path).convert("RGB")
                image = ImageOps.mirror(image) if wrong == "mirrored" else image
                image = Image.merge("RGB", image.split()[::-1]) if wrong == "BGR" else image
                output: Any = model.get_image_features(**processor(images=image, return_tensors="pt"))
                vectors.append(getattr(output, "pooler_output", output).numpy())
        return np.concatenate(vectors)

    others: dict[str, Embed] = {wrong: lambda paths, wrong=wrong: embed(paths, wrong) for wrong in WRONG}
    return Opened(embed, others=others)


OPEN: dict[str, Callable[[Contender, Path], Opened]] = {
    "clip-embed": open_clip_embed,
    "sentence-transformers": open_sentence_transformers,
    "fastembed": open_fastembed,
    "transformers": open_transformers,
    "reference": open_reference,
}


def serve(connection: Connection, contender: Contender, folder: Path) -> None:
    """Run one contender: first sends its settings, then answers lists of paths until None comes.

    A path list is answered by (vectors, wall seconds, CPU seconds, peak bytes); a pair (wrong, paths) by
    the vectors of that wrong way. What fails is sent as text.
    """
    os.environ |= {
        "HF_HUB_OFFLINE": "1",
        "HF_HUB_DISABLE_PROGRESS_BARS": "1",
        "TRANSFORMERS_VERBOSITY": "error",
    }
    try:
        opened = OPEN[contender.library](contender, folder)
        connection.send(opened.settings)
        while (request := connection.recv()) is not None:
            if isinstance(request, tuple):
                connection.send(opened.others[request[0]](request[1]))
            else:
                connection.send(measured(opened.embed, request))
    except Exception as error:  # noqa: BLE001 - a peer may raise anything; the others go on without it
        connection.send(f"{type(error).__name__}: {error}".splitlines()[0])


def measured(embed: Embed, paths: list[str]) -> tuple[Float32, float, float, int]:
    """Vectors, wall seconds, CPU seconds and peak bytes, those of child processes included."""
    cpu, wall = cpu_seconds(), time.perf_counter()
    vectors = embed(paths)
    wall = time.perf_counter() - wall
    return np.asarray(vectors, np.float32), wall, cpu_seconds() - cpu, peak_bytes()


def family() -> list[int]:
    """Ids of this process and of all that it started and that still live; Linux alone says which."""
    found = [os.getpid()]
    for parent in found:
        for listing in Path(f"/proc/{parent}/task").glob("*/children"):
            try:
                found += [int(child) for child in listing.read_text().split()]
            except OSError:  # it ended meanwhile
                continue
    return found


def cpu_seconds() -> float:
    """CPU time, user and system, of this process and of those it started."""
    if not Path("/proc/self/stat").exists():
        return sum(os.times()[:4])
    ticks = 0
    for process in family():
        try:
            fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += sum(int(value) for value in fields[11:15])  # own time, then that of children that ended
    return ticks / os.sysconf("SC_CLK_TCK")


def peak_bytes() -> int:
    """Peak resident memory of this process and those it started; 0 where the system does not say.

    Not `getrusage`: on Linux its peak includes that of the process which started this one.
    """
    peak = 0
    for process in family():
        try:
            lines = Path(f"/proc/{process}/status").read_text().splitlines()
        except OSError:
            continue
        peak += sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM:"))
    return peak
