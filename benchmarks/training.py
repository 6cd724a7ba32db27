"""That training raises recall@1 on held-out pairs, and that it does not where captions are shuffled.

    pip install '.[train]'
    python benchmarks/training.py --cache DIR [--epochs 80] [--rounds 3] [--write docs]

Pairs are drawings of emoji and their Unicode names. A small CLIP of random weights, which knows nothing and
needs no download, learns those of two vendors (Noto, Apache-2.0; Twemoji, CC-BY 4.0). Of a third vendor's
drawings (Fluent, MIT) of the same things one half chooses the epoch and the other, which nothing else sees,
judges. Shuffled captions are the same drawings with names of others, for as many steps. Each is done
--rounds times with other weights, another shuffle and other halves. --write puts figures and a picture of
the last round into docs/fine-tuning.md.
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
from pages import Section, write
from PIL import Image
from random_clip import byte_tokenizer

from clip_embed import ClipEmbedder, Retrieval, evaluate_retrieval, similar, train

VENDORS = {
    "google": ("emoji-datasource-google@16.0.0", "package/img/google/64/{}.png"),
    "twitter": ("emoji-datasource-twitter@16.0.0", "package/img/twitter/64/{}.png"),
    "fluent": ("@lobehub/fluent-emoji-3d@1.1.0", "package/assets/{}.webp"),
}
RANGES = ((0x1F32D, 0x1F380), (0x1F400, 0x1F440), (0x1F680, 0x1F6A6), (0x1F950, 0x1F96F), (0x1F980, 0x1F9B0))
PIXELS = 64
SHOWN = (3, 5)  # queries, answers to each

Pairs = list[tuple[Path, str]]


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


def write_model(folder: Path, seed: int) -> None:
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
    torch.manual_seed(seed)
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


def recall(found: Retrieval, k: int) -> float:
    """Return recall@k of a test, the mean of both directions."""
    return (found.text_to_image(k) + found.image_to_text(k)) / 2


def line(name: str, rounds: list[Retrieval]) -> str:
    """Return the mean recall@1 and @5 of the rounds, and each round's recall@1."""
    means = " / ".join(f"{np.mean([recall(found, k) for found in rounds]):.1%}" for k in (1, 5))
    return f"{name:16} {means}  (@1 of each round {', '.join(f'{recall(found, 1):.1%}' for found in rounds)})"


def judge(model: Path, pairs: Pairs) -> Retrieval:
    """Measure a model on pairs."""
    clip = ClipEmbedder(model, cache=None)
    return evaluate_retrieval(clip, [path for path, _ in pairs], [caption for _, caption in pairs])


def answers(model: Path, pairs: Pairs, what: str) -> list[tuple[str, Pairs]]:
    """Return for the first queries, in an order drawn by lot, the first answers with their names."""
    clip = ClipEmbedder(model, cache=None)
    images = clip.embed_images([path for path, _ in pairs])
    queries, most = SHOWN
    wanted = [caption for _, caption in pairs[:queries]]
    found = [similar(clip, images, clip.embed_texts([text]), k=most) for text in wanted]
    return [
        (f"{what}: {text}", [pairs[place] for place, _ in matches])
        for text, matches in zip(wanted, found, strict=True)
    ]


def learn(work: Path, captions: list[str], files: list[Path], choosing: Pairs, epochs: int) -> None:
    """Train work/start on pairs into work/learned."""
    shutil.rmtree(work / "learned", ignore_errors=True)
    train(
        work / "start",
        list(zip(files, captions, strict=True)),
        work / "learned",
        held_out=choosing,
        epochs=epochs,
        batch_size=128,
        chunk_size=64,
        learning_rate=1e-3,
        patience=epochs,
    )


def main() -> None:
    """Print what was learned, and write it where asked to."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--epochs", type=int, default=80)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", type=Path, metavar="DOCS")
    options = parser.parse_args()
    fetch(options.cache)
    with tempfile.TemporaryDirectory() as scratch:
        work = Path(scratch)
        (work / "pictures").mkdir()
        (work / "start").mkdir()
        found = drawings(options.cache, work / "pictures")
        learned = found["google"] + found["twitter"]
        files, names = [path for path, _ in learned], [name for _, name in learned]
        results: dict[str, list[Retrieval]] = {"before": [], "shuffled names": [], "their names": []}
        for seed in range(options.rounds):
            write_model(work / "start", seed)
            lot = np.random.default_rng(seed)
            third = [found["fluent"][place] for place in lot.permutation(len(found["fluent"]))]
            choosing, judging = third[: len(third) // 2], third[len(third) // 2 :]
            results["before"].append(judge(work / "start", judging))
            for kind, captions in (
                ("shuffled names", lot.permutation(names).tolist()),
                ("their names", names),
            ):
                start = time.perf_counter()
                learn(work, captions, files, choosing, options.epochs)
                results[kind].append(judge(work / "learned", judging))
                print(f"round {seed}, {kind}: {recall(results[kind][-1], 1):.1%}, ", end="", flush=True)
                print(f"{time.perf_counter() - start:.0f} s")
        lines = [
            f"recall@1 / @5 of {len(judging)} held-out pairs, mean of {options.rounds} rounds",
            f"chance           {1 / len(judging):.1%} / {5 / len(judging):.1%}",
            *(line(kind, rounds) for kind, rounds in results.items()),
        ]
        print("\n".join(lines))
        if options.write:
            before, after = (
                answers(work / folder, judging, what)
                for folder, what in (("start", "before"), ("learned", "after"))
            )
            rows = [row for pair in zip(before, after, strict=True) for row in pair]
            write(Section("fine-tuning", lines, rows), options.write, "a small CLIP of random weights")


if __name__ == "__main__":
    main()
