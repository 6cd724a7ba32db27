"""From image files to CLIP vectors on a GPU: one command, one table.

    python benchmarks/gpu.py --cache ~/.cache/clip-embed-benchmarks

It makes files and random weights (ViT-B/32, ViT-L/14) first, once. Every figure is of one run, in one process
and on all cores; files come from the page cache. Rows of a set:

decode alone    the fast codec in a process for each core but two, and nothing else: the one ceiling where the
                GPU resizes; where it does not, the resize belongs to it
forward alone   decoded images through the image tower, lanes side by side: the other ceiling
the peers       sentence-transformers and transformers as their users call them
clip-embed      the default, without nvJPEG, with the resize on the cores, and with threads; "of ceiling" is
                against the lower one

Below: fidelity of each precision against transformers' PIL processor and a float32 forward pass on the CPU
(cosine after the mean is taken off; the same check must fail on wrong pixels), what company in a batch
changes, and a run that begins with a batch far too large for the memory it may use. A part that fails says so
in its row; what there is no time for is left out. `--device cpu --tiny` shows that the command itself works.
"""

from __future__ import annotations

import json
import logging
import multiprocessing
import os
import signal
import sys
import time
import warnings
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import click
import gpu_table
import image_sets
import numpy as np
import peers
import random_clip
from cpu import EXACT_BOUND, FAST_BOUND, agreement
from gpu_run import Run, release, timed

from clip_embed import ClipEmbedder, ImagePolicy, ImageSpec
from clip_embed._engine.cores import limit_torch, usable_cores
from clip_embed._images.gpu_jpeg import GpuJpeg
from clip_embed._images.on_gpu import OnGpu, nothing_on_gpu
from clip_embed._images.pixels import decode_for, fit
from clip_embed._images.source import read_encoded

STREAM = {"small": 24_000, "small-rich": 16_000, "large": 1_500}
PEER = {"small": 512, "small-rich": 512, "large": 48}
SPEC = ImageSpec(224, (224, 224))
DECODE, WITH_RESIZE = "decode alone", "decode and resize alone"
COMPANY = {"exact": 1e-5, "fp32": 1e-5, "bf16": 5e-3, "fp16": 5e-3}


def decode_some(paths: Sequence[str], *, resize: bool) -> int:
    """Decode files as clip-embed does, and resize them or not, in a process of its own."""
    limit_torch(1)
    policy = ImagePolicy()
    memory = np.empty(16 * 1024 * 1024, np.uint8)
    done = 0
    for path in paths:
        decoded = decode_for(None, read_encoded(path, policy), SPEC, policy, exact=False, into=memory)
        done += len(fit(decoded, SPEC, policy)) > 0 if resize else 1
    return done


def decode_alone(run: Run, sets: Sequence[str]) -> None:
    """Measure the codec in a pool of processes, without the resize and with it."""
    processes = max(1, usable_cores() - 2)

    def measure(name: str, way: str) -> None:
        paths = run.paths(name, 16 if run.tiny else STREAM[name] // 2)
        size = 4 if name == "large" else 64
        pieces = [paths[at : at + size] for at in range(0, len(paths), size)]
        work = partial(decode_some, resize=way == WITH_RESIZE)
        list(pool.map(work, pieces[: 2 * processes]))
        found = timed(lambda: list(pool.map(work, pieces)), len(paths))
        run.ceilings[f"{name}, {way}"] = float(str(found["images_per_s"]))
        run.note(name, way, **found | {"note": f"{processes} processes"})

    with ProcessPoolExecutor(processes, multiprocessing.get_context("spawn")) as pool:
        for name in sets:
            for way in (DECODE, WITH_RESIZE):
                run.do(name, way, partial(measure, name, way))


def forward_alone(run: Run, shape: str, precision: str) -> None:
    """Measure the image tower over images that are decoded, with recordings and without."""
    clip = run.embedder(shape, precision)
    model: Any = clip.model
    pixels = np.random.default_rng(0).integers(0, 256, (clip._towers.batch_size, 224, 224, 3), np.uint8)
    batches = 2 if run.tiny else (100 if shape == "ViT-B/32" else 20)
    lanes = max(1, clip._towers.lanes)

    def work() -> None:
        with ThreadPoolExecutor(lanes) as pool:
            list(pool.map(lambda _: model.embed_images(pixels), range(batches)))

    for _ in range(3):
        work() if run.tiny else [model.embed_images(pixels) for _ in range(lanes)]
    found = timed(work, batches * len(pixels))
    note = f"batches of {len(pixels)}, {lanes} lanes; " + ("; ".join(model.notes) or "all checks held")
    run.note(f"forward {shape}", clip.precision, **found | {"note": note})
    if precision == "auto":
        run.ceilings[shape] = float(str(found["images_per_s"]))
    for lane in model._placed.images._lanes if model._placed else ():
        lane._plain_only = True
    if lanes > 1:
        run.note(f"forward {shape}", f"{clip.precision}, no graphs", **timed(work, batches * len(pixels)))


def peer_rows(run: Run, shape: str, name: str) -> None:
    """Measure sentence-transformers and transformers as their users call them."""
    part = name if shape == "ViT-B/32" else f"{name}, {shape}"

    def measure(contender: str, open_peer: Callable[[Path, str], Callable[[list[str]], object]]) -> None:
        paths = run.paths(name, 16 if run.tiny else PEER[name])
        embed = open_peer(random_clip.shaped_folder(run.cache, shape), run.device)
        embed(paths[:8])
        run.note(part, contender, **timed(lambda: embed(paths), len(paths)))

    for contender, open_peer in (
        ("sentence-transformers", open_sentence_transformers),
        ("transformers", open_transformers),
    ):
        run.do(part, contender, partial(measure, contender, open_peer))


def open_sentence_transformers(folder: Path, device: str) -> Callable[[list[str]], object]:
    """The call of its documentation."""
    from PIL import Image
    from sentence_transformers import SentenceTransformer

    model: Any = SentenceTransformer(str(folder), device=device, local_files_only=True)
    return lambda paths: model.encode([Image.open(path) for path in paths], show_progress_bar=False)


def open_transformers(folder: Path, device: str) -> Callable[[list[str]], object]:
    """The loop that transformers' documentation shows, in batches of 64 on the device."""
    import torch
    from PIL import Image
    from transformers import CLIPModel, CLIPProcessor

    processor: Any = CLIPProcessor.from_pretrained(folder)
    model: Any = CLIPModel.from_pretrained(folder).eval()
    model.to(device)

    def embed(paths: list[str]) -> None:
        with torch.inference_mode():
            for start in range(0, len(paths), 64):
                images = [Image.open(path).convert("RGB") for path in paths[start : start + 64]]
                inputs = processor(images=images, return_tensors="pt").to(device)
                output = model.get_image_features(**inputs)
                getattr(output, "pooler_output", output).cpu()

    return embed


def own_rows(run: Run, shape: str, names: Sequence[str]) -> None:
    """Measure clip-embed on files: by threads or processes, with what a GPU does beside them and without."""
    clip = run.embedder(shape)
    towers = clip._through_cache()
    processes, there = towers.processes, towers.open_on_gpu()
    if processes:
        processes.wait(120)
    none = "left out here"
    ways: dict[str, tuple[Any, OnGpu]] = {"clip-embed": (processes, there)}
    for note in there.notes(run.device):
        run.note("on the GPU", "clip-embed", note=note)
    if isinstance(there.jpeg, GpuJpeg):
        ways |= {
            "without nvJPEG": (processes, OnGpu(none, there.resize)),
            "threads and nvJPEG": (None, there),
        }
    if there.resizer:
        ways["all on the cores"] = (processes, nothing_on_gpu(none))
    if processes:
        ways["threads alone"] = (None, nothing_on_gpu(none))

    def measure(part: str, way: str, name: str) -> None:
        towers.processes, towers._on_gpu = used, on_gpu = ways[way]
        paths = run.paths(name, 16 if run.tiny else STREAM[name])
        paths = paths if used or not processes else paths[: len(paths) // 4]
        embedded(clip, paths[: len(paths) // 4])
        found = timed(lambda: embedded(clip, paths), len(paths))
        decode = run.ceilings.get(f"{name}, {DECODE if on_gpu.resizer else WITH_RESIZE}", np.inf)
        share = float(str(found["images_per_s"])) / min(decode, run.ceilings.get(shape, np.inf))
        run.note(part, way, **found | {"of_ceiling": share, "note": f"{clip.precision} on {clip.device}"})

    for name in names:
        part = name if shape == "ViT-B/32" else f"{name}, {shape}"
        for way in ways:
            run.do(part, way, partial(measure, part, way, name))


def embedded(clip: ClipEmbedder, paths: list[str]) -> None:
    """Embed, holding one batch at a time; every image must get its vector."""
    with clip.stream_images(paths) as stream:
        count = sum(len(batch.vectors) for batch in stream)
    if count != len(paths):
        raise ValueError(f"{count} vectors of {len(paths)} images")


def fidelity(run: Run) -> None:
    """Hold each precision against the reference, and each vector alone against itself in company."""
    folder = random_clip.shaped_folder(run.cache, "tiny" if run.tiny else "ViT-B/32")
    paths = sorted(set(run.paths("small", 8 if run.tiny else 64)))
    opened = peers.open_reference(peers.Contender("reference", "reference"), folder)
    right = opened.embed(paths)
    for wrong, embed in opened.others.items():
        value = agreement(embed(paths), right)
        caught = value < (EXACT_BOUND if wrong == "bilinear" else FAST_BOUND)
        run.note("fidelity", f"wrong: {wrong}", cosine=value, note="found" if caught else "NOT FOUND")

    def measure(precision: str) -> None:
        clip = run.embedder("tiny" if run.tiny else "ViT-B/32", precision)
        vectors = clip.embed_images(paths)
        value = agreement(vectors, right)
        alone = np.concatenate([clip.embed_images([path]) for path in paths[:7]])
        mixed = clip.embed_images(paths[::-1] + paths[:5])[: len(paths)][::-1]
        company = max(float(np.abs(alone - vectors[:7]).max()), float(np.abs(mixed - vectors).max()))
        bound = EXACT_BOUND if precision == "exact" else FAST_BOUND
        holds = value >= bound and company <= COMPANY[precision]
        note = f"at least {bound}, company at most {COMPANY[precision]}: {'holds' if holds else 'FAILS'}"
        notes: list[str] = getattr(clip.model, "notes", [])
        run.note("fidelity", precision, cosine=value, company=company, note="; ".join([note, *notes]))

    for precision in ("exact", "fp32", "bf16") + (("fp16",) if run.device != "cpu" else ()):
        run.do("fidelity", precision, partial(measure, precision))


def out_of_memory(run: Run) -> None:
    """Start with a batch far too large for what the process may allocate: the vectors must be the same."""
    import torch

    part = "out of memory"
    if not torch.cuda.is_available() or run.device == "cpu":
        run.note(part, "batch of 4096", note="left out: this needs a GPU")
        return
    folder = random_clip.shaped_folder(run.cache, "ViT-B/32")
    paths = run.paths("small", 2048)
    usual = run.embedder("ViT-B/32").embed_images(paths)
    release()
    counts: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: counts.append(record.getMessage())  # type: ignore[method-assign]
    logging.getLogger("clip_embed").addHandler(handler)
    clip = ClipEmbedder(folder, device=run.device, batch_size=4096, cache=None)
    clip.load()
    total = torch.cuda.get_device_properties(run.device).total_memory
    torch.cuda.set_per_process_memory_fraction((torch.cuda.memory_reserved() + 3 * 2**28) / total)
    try:
        vectors = clip.embed_images(paths)
    finally:
        torch.cuda.set_per_process_memory_fraction(1.0)
        logging.getLogger("clip_embed").removeHandler(handler)
    moved = float(np.abs(vectors - usual).max())
    halved = [count for count in counts if "no memory for" in count]
    note = f"{'holds' if moved <= COMPANY['bf16'] and halved else 'FAILS'}: halved {len(halved)} times"
    run.note(part, "batch of 4096", company=moved, note=note)


def measure(run: Run, sets: Sequence[str]) -> None:
    """Run all parts: the ceilings and clip-embed, then what no run has come to yet, then the rest."""
    shape = "tiny" if run.tiny else "ViT-B/32"
    large_sets = [name for name in sets if name != "small-rich" and not run.tiny]

    def forward(shape: str, precision: str) -> None:
        run.do(f"forward {shape}", precision, partial(forward_alone, run, shape, precision))

    def own(shape: str, names: Sequence[str]) -> None:
        run.do(f"files, {shape}", "clip-embed", partial(own_rows, run, shape, names))

    decode_alone(run, sets)
    forward(shape, "auto")
    own(shape, sets)
    run.do("out of memory", "batch of 4096", partial(out_of_memory, run))
    if large_sets:
        forward("ViT-L/14", "auto")
        own("ViT-L/14", large_sets)
    for precision in ("fp32", "fp16") if run.device != "cpu" else ():
        forward(shape, precision)
    for name in sets:
        peer_rows(run, shape, name)
    run.do("fidelity", "all", partial(fidelity, run))
    for name in large_sets:
        peer_rows(run, "ViT-L/14", name)


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for models and images.")
@click.option("--device", default="cuda", show_default=True)
@click.option("--tiny", is_flag=True, help="A tiny model and a few images: only whether all of it runs.")
@click.option("--minutes", default=7.0, show_default=True, help="Begin nothing after this time.")
@click.option("--out", type=click.Path(path_type=Path), help="Also write the figures to this JSON file.")
@click.argument("sets", nargs=-1, type=click.Choice(list(image_sets.SETS)))
def main(
    cache: Path, device: str, tiny: bool, minutes: float, out: Path | None, sets: tuple[str, ...]
) -> None:
    """Measure on the image SETS, all of them by default, and print the table."""
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    warnings.simplefilter("ignore")
    cache.mkdir(parents=True, exist_ok=True)
    run = Run(cache, device, tiny, time.monotonic() + 60 * minutes)
    about = gpu_table.hardware(device)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # what there is so far is printed all the same
    try:
        measure(run, sets or tuple(image_sets.SETS))
    finally:
        click.echo(f"{json.dumps(about)}\n\n{gpu_table.table(run.rows)}")
        if out:
            gpu_table.write(about, run.rows, out)


if __name__ == "__main__":
    main()
