"""That training raises recall@1 on held-out pairs, and that it does not where captions are shuffled.

    pip install '.[train]'
    python benchmarks/training.py --cache DIR [--epochs 80]

Pairs are drawings of emoji and their Unicode names. A small CLIP of random weights, which knows nothing and
needs no download, learns those of two vendors (Noto, Apache-2.0; Twemoji, CC-BY 4.0) and is judged by those
of a third (Fluent, MIT) of the same things. Shuffled captions are the same drawings with names of others,
for as many steps; the best epoch counts in both.
"""

from __future__ import annotations

import argparse
import shutil
import subprocess
import tarfile
import tempfile
import time
import unicodedata
from pathlib import Path

import numpy as np
from PIL import Image
from random_clip import byte_tokenizer

from clip_embed import Training, train

VENDORS = {
    "google": ("emoji-datasource-google@16.0.0", "package/img/google/64/{}.png"),
    "twitter": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/{}.png"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/{}.webp"),
}
RANGES = ((0x1F32D, 0x1F380), (0x1F400, 0x1F440), (0x1F680, 0x1F6A6), (0x1F950, 0x1F96F), (0x1F980, 0x1F9B0))
PIXELS = 64


def fetch(cache: Path) -> None:
    """Download and unpack the drawings that are not there yet."""
    for vendor, (package, _) in VENDORS.items():
        if not (cache / vendor).exists():
            with tempfile.TemporaryDirectory() as download:
                subprocess.run(["npm", "pack", package], cwd=download, check=True, capture_output=True)
                with tarfile.open(next(Path(download).glob("*.tgz"))) as archive:
                    archive.extractall(cache / vendor, filter="data")


def drawings(cache: Path, to: Path) -> dict[str, list[tuple[Path, str]]]:
    """Vendor -> (drawing on white, its Unicode name), of what all three have."""
    found: dict[str, list[tuple[Path, str]]] = {vendor: [] for vendor in VENDORS}
    for code in (code for first, last in RANGES for code in range(first, last)):
        sources = {vendor: cache / vendor / path.format(f"{code:x}") for vendor, (_, path) in VENDORS.items()}
        if not all(path.exists() for path in sources.values()):
            continue
        for vendor, source in sources.items():
            file = to / f"{vendor}-{code:x}.png"
            with Image.open(source) as image:
                picture = image.convert("RGBA").resize((PIXELS, PIXELS))
            white = Image.new("RGBA", picture.size, "white")
            Image.alpha_composite(white, picture).convert("RGB").save(file)
            found[vendor].append((file, unicodedata.name(chr(code)).lower()))
    return found


def write_model(folder: Path) -> None:
    """A CLIP of two layers and random weights for pictures of 64 pixels."""
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = byte_tokenizer(folder)
    tower = {
        "hidden_size": 128,
        "intermediate_size": 256,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    torch.manual_seed(0)
    config = CLIPConfig(
        text_config={**tower, **ends, "vocab_size": len(tokenizer)},
        vision_config={**tower, "image_size": PIXELS, "patch_size": 16},
        projection_dim=128,
    )
    CLIPModel(config).save_pretrained(folder)
    images = CLIPImageProcessorPil(
        size={"shortest_edge": PIXELS}, crop_size={"height": PIXELS, "width": PIXELS}
    )
    CLIPProcessor(image_processor=images, tokenizer=tokenizer).save_pretrained(folder)


def main() -> None:
    """Print both results."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=80)
    options = parser.parse_args()
    fetch(options.cache)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "pictures").mkdir()
        (work / "start").mkdir()
        found = drawings(options.cache, work / "pictures")
        write_model(work / "start")
        learned = found["google"] + found["twitter"]
        names = [name for _, name in learned]
        shuffled = np.random.default_rng(0).permutation(names).tolist()
        held_out = found["fluent"]

        def run(captions: list[str]) -> Training:
            shutil.rmtree(work / "learned", ignore_errors=True)
            return train(
                work / "start",
                [(path, caption) for (path, _), caption in zip(learned, captions, strict=True)],
                work / "learned",
                held_out=held_out,
                epochs=options.epochs,
                batch_size=128,
                chunk_size=64,
                learning_rate=1e-3,
                patience=options.epochs,
                progress=lambda epoch, recall: print(f"  epoch {epoch}: {recall:.1%}", flush=True),
            )

        for what, captions in (("their names", names), ("shuffled names", shuffled)):
            start = time.perf_counter()
            print(f"{what}: {run(captions)}, {time.perf_counter() - start:.0f} s", flush=True)


if __name__ == "__main__":
    main()
