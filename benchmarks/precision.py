"""What each precision costs and keeps, beside sentence-transformers' own forward pass on the same weights.

    python benchmarks/precision.py [--folder FOLDER] [--rounds 5] [--batch-size 8]

The weights are random in the shape of CLIP ViT-B/32: speed does not depend on their values. They are
made once and kept in FOLDER (by default in the user's cache). One thread; the rounds alternate, so that
a busy neighbour meets all of them; CPU time of this process, forward pass alone, smallest of the rounds.
cosine    smallest over 64 images, to float32
centred   the same after subtracting the mean of the float32 vectors: on random weights only this counts
company   largest change of a component between batches of the size given, of 1 and of 3
ONEDNN_MAX_CPU_ISA=AVX512_CORE_VNNI (AVX512_CORE_BF16) shows what torch's products take without
bfloat16 (without AMX) in the CPU; what "auto" would take there it does not show.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from sentence_transformers import SentenceTransformer
from transformers import CLIPConfig, CLIPModel, CLIPProcessor, CLIPTokenizer
from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

from clip_embed._models.fidelity import photo_like
from clip_embed._models.model_folder import ModelFolder
from clip_embed._models.precision import resolve
from clip_embed._models.space import cache_dir

Float32 = npt.NDArray[np.float32]
UInt8 = npt.NDArray[np.uint8]
Forward = Callable[[UInt8], Float32]
IMAGES = 64


@dataclass
class Contender:
    """One way of computing vectors, and what was measured of it."""

    name: str
    forward: Forward
    milliseconds: list[float] = field(default_factory=list)

    def vectors(self, pixels: UInt8, batch_size: int) -> Float32:
        """float32 (n, d), rows of unit length."""
        starts = range(0, len(pixels), batch_size)
        rows = np.concatenate([self.forward(pixels[at : at + batch_size]) for at in starts])
        lengths: Float32 = np.linalg.norm(rows, axis=1, keepdims=True)
        return np.asarray(rows / lengths, np.float32)


def build(folder: Path) -> Path:
    """Write a CLIP of ViT-B/32's shape with random weights and a small vocabulary, if it is not there."""
    if (folder / "model.safetensors").is_file():
        return folder
    parts = folder.with_name(folder.name + ".parts")
    parts.mkdir(parents=True, exist_ok=True)
    letters = [chr(code) for code in (*range(33, 127), *range(161, 173), *range(174, 256), *range(256, 324))]
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    vocabulary = ",".join(f"{_quoted(word)}:{n}" for n, word in enumerate(words))
    (parts / "vocab.json").write_text(f"{{{vocabulary}}}", "utf-8")
    (parts / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer.from_pretrained(parts, model_max_length=77)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(projection_dim=512))
    with torch.no_grad():  # the initialisation is so narrow that all vectors would be alike
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(3)
    processor: Any = CLIPProcessor
    processor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer).save_pretrained(folder)
    model.save_pretrained(folder)
    shutil.rmtree(parts)
    return folder


def _quoted(word: str) -> str:
    return '"' + word.replace("\\", "\\\\").replace('"', '\\"') + '"'


def reference(folder: Path) -> Forward:
    """sentence-transformers' own forward pass, over pixels that are prepared already."""
    model = SentenceTransformer(str(folder), device="cpu", local_files_only=True)
    normalised = ModelFolder(folder, "cpu")
    normalised.load()

    @torch.inference_mode()
    def forward(pixels: UInt8) -> Float32:
        features: dict[str, Any] = {"pixel_values": normalised._normalised(pixels)}
        features["modality"] = "image"
        embedding: torch.Tensor = model(features)["sentence_embedding"]
        return np.asarray(embedding.numpy(), np.float32)

    return forward


def contenders(folder: Path) -> list[Contender]:
    """sentence-transformers first, then each precision that this CPU offers."""
    found = [Contender("sentence-transformers", reference(folder))]
    for precision in ("fp32", "bf16", "int8"):
        try:
            print(f"{precision}: {resolve(precision, 'cpu').reason}")
        except ValueError as error:
            print(error)
            continue
        model = ModelFolder(folder, "cpu", precision)
        model.load()
        found.append(Contender(precision, model.embed_images))
    print(f"auto: {resolve('auto', 'cpu').name}, {resolve('auto', 'cpu').reason}")
    return found


def measure(all_of_them: list[Contender], pixels: UInt8, rounds: int) -> None:
    """Time one batch each in turn, `rounds` times over, after one that does not count."""
    for turn in range(rounds + 1):
        for contender in all_of_them:
            start = time.process_time()
            contender.forward(pixels)
            if turn:
                contender.milliseconds.append((time.process_time() - start) * 1000 / len(pixels))


def smallest_cosine(left: Float32, right: Float32) -> float:
    """The smallest cosine of two sets of rows."""
    lengths = np.linalg.norm(left, axis=1) * np.linalg.norm(right, axis=1)
    return float(((left * right).sum(axis=1) / lengths).min())


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--folder", type=Path, default=cache_dir() / "benchmarks" / "clip-vit-b-32-random")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--batch-size", type=int, default=8)
    options = parser.parse_args()
    torch.set_num_threads(1)
    print(
        f"{platform.processor() or platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, ", end=""
    )
    print(f"torch {torch.__version__}, batch {options.batch_size}")
    all_of_them = contenders(build(options.folder))
    pixels = photo_like((224, 224), IMAGES)
    measure(all_of_them, pixels[: options.batch_size], options.rounds)
    best = [min(contender.milliseconds) for contender in all_of_them]
    expected = next(each for each in all_of_them if each.name == "fp32").vectors(pixels, options.batch_size)
    mean = expected.mean(axis=0)
    print("precision              CPU-ms/image  speed-up  cosine   centred  company")
    for contender, milliseconds in zip(all_of_them, best, strict=True):
        found = contender.vectors(pixels, options.batch_size)
        company = max(np.abs(contender.vectors(pixels[:12], size) - found[:12]).max() for size in (1, 3))
        print(
            f"{contender.name:21s} {milliseconds:13.1f} {best[0] / milliseconds:8.2f}×  "
            f"{smallest_cosine(found, expected):.5f}  {smallest_cosine(found - mean, expected - mean):.5f}  "
            f"{company:.0e}"
        )


if __name__ == "__main__":
    main()
