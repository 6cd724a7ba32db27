"""From image files to CLIP vectors on a CPU: clip-embed beside the libraries that do the same.

    pip install clip-embed fastembed onnx onnxruntime onnxscript
    python benchmarks/cpu.py --cache ~/.cache/clip-embed-benchmarks

All contenders take the same files, the same random weights of the shape of ViT-B/32 and the same cores,
with their default settings, each in a process of its own. Loading and one pass over the set come first and
are not counted; the vectors of that pass are compared with the reference, transformers' PIL image processor
and a forward pass in float32, and a contender whose vectors are wrong is not timed. Then every round runs
every contender once, in an order that rotates; files come from the page cache. A ratio is the median of the
ratios within the rounds, so that what slows the whole machine down for a while slows both sides.
"""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import click
import image_sets
import numpy as np
import random_clip
import report
from peers import MORE_PEERS, PEERS, WRONG, Contender, Float32, contenders, serve

# Cosine to the reference after the mean vector is taken off. A change of one grey level in single pixels
# gives 0.9999, the bilinear filter 0.990, the nearest one 0.89: float32 and bfloat16 pass, those do not.
EXACT_BOUND, FAST_BOUND = 0.999, 0.98
PRECISIONS = ("auto", "exact", "fp32", "bf16", "int8")
SPAWN = multiprocessing.get_context("spawn")


class Failed(Exception):
    """A contender cannot run; says why."""


class Runner:
    """A contender in its own process."""

    def __init__(self, contender: Contender, folder: Path) -> None:
        self.contender = contender
        self._connection, theirs = SPAWN.Pipe()
        self._process = SPAWN.Process(target=serve, args=(theirs, contender, folder))
        self._process.start()
        theirs.close()
        try:
            self.settings: dict[str, object] = _answer(self._connection)
        except Failed:
            self.close()
            raise

    def ask(self, request: object) -> Any:  # noqa: ANN401 - see peers.serve
        """The answer to one request; raises Failed."""
        self._connection.send(request)
        return _answer(self._connection)

    def close(self) -> None:
        """End the process."""
        with contextlib.suppress(OSError):
            self._connection.send(None)
        self._process.join(20)
        self._process.kill()


def _answer(connection: Connection) -> Any:  # noqa: ANN401 - see peers.serve
    try:
        answer = connection.recv()
    except EOFError:
        raise Failed("its process ended") from None
    if isinstance(answer, str):
        raise Failed(answer)
    return answer


def reference(folder: Path, paths: list[str]) -> tuple[Float32, dict[str, float]]:
    """Vectors of the reference, and the cosines of the wrong ways that the check must find."""
    runner = Runner(Contender("reference", "reference"), folder)
    try:
        right: Float32 = runner.ask(paths)[0]
        wrong = {name: agreement(runner.ask((name, paths)), right) for name in WRONG}
    finally:
        runner.close()
    click.echo("  cosines of wrong vectors: " + ", ".join(f"{n} {value:.4f}" for n, value in wrong.items()))
    bounds = {name: EXACT_BOUND if name == "bilinear" else FAST_BOUND for name in WRONG}
    if missed := [name for name, value in wrong.items() if value >= bounds[name]]:
        raise click.ClickException(f"on these images the check lets wrong vectors pass: {', '.join(missed)}")
    return right, wrong


def agreement(vectors: Float32, right: Float32) -> float:
    """Smallest cosine over the images, of unit vectors less the mean vector of the reference."""
    if vectors.shape != right.shape or not np.isfinite(vectors).all():
        return -1.0
    vectors, right = (each / np.linalg.norm(each, axis=1, keepdims=True) for each in (vectors, right))
    vectors, right = vectors - right.mean(axis=0), right - right.mean(axis=0)
    norms = np.linalg.norm(vectors, axis=1) * np.linalg.norm(right, axis=1)
    return float(((vectors * right).sum(axis=1) / norms).min())


@contextlib.contextmanager
def checked(
    wanted: list[Contender], folder: Path, paths: list[str], right: Float32, outcome: dict[str, Any]
) -> Iterator[list[Runner]]:
    """Start the contenders, warm them up, compare their vectors; those that pass are yielded."""
    passed: list[Runner] = []
    try:
        for contender in wanted:
            bound = EXACT_BOUND if contender.exact else FAST_BOUND
            facts: dict[str, object] = {"bound": bound}
            outcome["contenders"][contender.name] = facts
            try:
                runner = Runner(contender, folder)
                passed.append(runner)
                facts["cosine"] = cosine = agreement(runner.ask(paths)[0], right)
                facts["settings"] = runner.settings
                if not cosine >= bound:  # NaN included
                    raise Failed(f"wrong vectors: cosine {cosine:.4f} < {bound}")  # noqa: TRY301
                click.echo(f"  {contender.name}: cosine {cosine:.6f} ≥ {bound}")
            except Failed as error:
                facts["left_out"] = str(error)
                click.echo(f"  {contender.name} is left out: {error}")
                if passed and passed[-1].contender is contender:
                    passed.pop().close()
        yield passed
    finally:
        for runner in passed:
            runner.close()


def run_set(wanted: list[Contender], folder: Path, paths: list[str], rounds: int) -> dict[str, Any]:
    """Check, then time: everything that one image set says about the contenders."""
    outcome: dict[str, Any] = {"contenders": {}, "rounds": []}
    right, outcome["wrong_ways"] = reference(folder, paths)
    with checked(wanted, folder, paths, right, outcome) as runners:
        for number in range(rounds):
            start = number % max(1, len(runners))
            for runner in runners[start:] + runners[:start]:
                vectors, wall, cpu, peak = runner.ask(paths)
                if not agreement(vectors, right) >= outcome["contenders"][runner.contender.name]["bound"]:
                    raise click.ClickException(
                        f"{runner.contender.name}: right when checked, wrong when timed"
                    )
                timing = {"wall_s": wall, "cpu_s": cpu, "peak_bytes": peak, "load": os.getloadavg()[0]}
                outcome["rounds"].append({"round": number, "contender": runner.contender.name} | timing)
            click.echo(f"  round {number + 1} of {rounds}")
    return outcome


def prepare(folder: Path, peers: tuple[str, ...]) -> None:
    """Write the models; in a process of its own, so that no contender's memory has a part in it."""
    os.environ["TRANSFORMERS_VERBOSITY"] = "error"
    logging.disable(logging.WARNING)
    warnings.simplefilter("ignore")
    clip = random_clip.clip_folder(folder)
    if "fastembed" in peers:
        try:
            random_clip.onnx_folder(clip)
        except ImportError as error:
            click.echo(f"FastEmbed needs a package to export the weights: {error}")


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), required=True, help="Folder for model and images.")
@click.option(
    "--peers", multiple=True, type=click.Choice(PEERS + MORE_PEERS), default=PEERS, show_default=True
)
@click.option(
    "--precision",
    multiple=True,
    type=click.Choice(PRECISIONS),
    default=("auto",),
    show_default=True,
    help="Of clip-embed; one row each.",
)
@click.option(
    "--sets",
    multiple=True,
    type=click.Choice(list(image_sets.SETS)),
    default=list(image_sets.SETS),
    show_default=True,
)
@click.option("--images", type=click.IntRange(8), help="Files of each set; default: each set's own count.")
@click.option("--rounds", type=click.IntRange(1), default=5, show_default=True)
@click.option("--cores", type=click.IntRange(1), help="Use so many cores; default: all. Linux only.")
@click.option(
    "--out",
    type=click.Path(path_type=Path),
    default="benchmarks/results",
    show_default=True,
    help="Folder for cpu.json and cpu.svg.",
)
def main(
    cache: Path,
    peers: tuple[str, ...],
    precision: tuple[str, ...],
    sets: tuple[str, ...],
    images: int | None,
    rounds: int,
    cores: int | None,
    out: Path,
) -> None:
    """Compare clip-embed with its peers; each option with a choice may be given several times."""
    if cores:
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:cores])
    cache.mkdir(parents=True, exist_ok=True)
    writer = SPAWN.Process(target=prepare, args=(cache, peers))
    writer.start()
    writer.join()
    if writer.exitcode:
        raise click.ClickException("the model could not be written")
    folder = random_clip.clip_folder(cache)
    settings = {"peers": peers, "precision": precision, "rounds": rounds}
    results: dict[str, Any] = {"about": report.about(), "settings": settings, "sets": {}}
    for name in sets:
        paths = image_sets.files(image_sets.SETS[name], images or image_sets.SETS[name].images, cache)
        facts = image_sets.describe(image_sets.SETS[name], paths)
        click.echo(f"{name}: {facts}")
        outcome = run_set(contenders(peers, precision), folder, [str(path) for path in paths], rounds)
        results["sets"][name] = {"files": facts} | outcome
        results["sets"][name]["summary"] = report.summary(results["sets"][name])
    click.echo(report.table(results))
    report.write(results, out)


if __name__ == "__main__":
    main()
