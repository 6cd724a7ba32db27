"""How much a warm text query costs beyond the bare text tower: what an interactive search waits for.

    python benchmarks/text_query.py --cache ~/.cache/clip-embed-benchmarks

The bare tower is transformers' tokenizer and `get_text_features` for one text at a time, on the same
random weights in the shape of ViT-B/32 and in the same precision. Every text is a new one, so that no cache
helps. The two take turns, query by query; the ratio is that of the medians of CPU time and of wall time.
"""

from __future__ import annotations

import logging
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import random_clip

from clip_embed import ClipEmbedder
from clip_embed.demo import captions


def bare_tower(clip: ClipEmbedder, folder: Path) -> Callable[[str], object]:
    """What a program without clip-embed does for one text."""
    import torch
    from transformers import AutoTokenizer, CLIPModel

    tokenizer: Any = AutoTokenizer.from_pretrained(folder)
    model: Any = CLIPModel.from_pretrained(folder, dtype=torch.float32).eval()
    if clip.precision == "bf16":
        from clip_embed._models.low_precision import use_dtype

        use_dtype(model, "bf16")

    def embed(text: str) -> object:
        with torch.inference_mode():
            output = model.get_text_features(**tokenizer([text], padding=True, return_tensors="pt"))
            return torch.nn.functional.normalize(getattr(output, "pooler_output", output)).float().numpy()

    return embed


def timed(work: Callable[[str], object], text: str) -> tuple[float, float]:
    """Wall and CPU seconds of one query."""
    wall, cpu = time.perf_counter(), time.process_time()
    work(text)
    return time.perf_counter() - wall, time.process_time() - cpu


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for the model.")
@click.option("--queries", default=200, show_default=True, type=click.IntRange(min=10))
@click.option("--threads", type=click.IntRange(min=1), help="Threads of torch; default: its own.")
def main(cache: Path, queries: int, threads: int | None) -> None:
    """Compare one-text queries with the bare text tower."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    import torch

    if threads:
        torch.set_num_threads(threads)
    folder = random_clip.clip_folder(cache)
    words = list(captions().values())
    for precision in ("fp32", "auto"):
        clip = ClipEmbedder(folder, device="cpu", precision=precision)  # type: ignore[arg-type]
        bare = bare_tower(clip, folder)
        texts = [f"{words[number % len(words)]} {number}" for number in range(queries + 10)]
        contenders: tuple[Callable[[str], object], ...] = (lambda text, c=clip: c.embed_texts([text]), bare)
        times: list[list[tuple[float, float]]] = [[], []]
        for number, text in enumerate(texts):
            for place in (0, 1) if number % 2 else (1, 0):
                times[place].append(timed(contenders[place], text))
        (our_wall, our_cpu), (their_wall, their_cpu) = (
            [1000 * statistics.median(each[kind] for each in kept[10:]) for kind in (0, 1)] for kept in times
        )
        click.echo(
            f"{clip.precision}, {torch.get_num_threads()} threads: clip-embed {our_wall:.2f} ms, bare tower "
            f"{their_wall:.2f} ms: {our_wall / their_wall:.3f} of its wall time, "
            f"{our_cpu / their_cpu:.3f} of its CPU time"
        )


if __name__ == "__main__":
    main()
