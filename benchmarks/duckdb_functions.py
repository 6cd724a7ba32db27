"""What the functions of clip_embed_duckdb cost beside the bare embedder, and how much memory they take.

    python benchmarks/duckdb_functions.py throughput [--model offline] [--images 200] [--rounds 3]
    python benchmarks/duckdb_functions.py overhead [--images 4096]
    python benchmarks/duckdb_functions.py memory [--images 2000]

throughput: fresh images to scores, from a folder of paths, a table of BLOBs and Parquet with row groups of
50, each beside `ClipEmbedder.scores` on the same images in the same round; the order of the contenders
rotates. Nothing is cached. The target is 95 % of the embedder.

overhead: our own cost of one image with a model that answers at once, beyond decode alone: the same pixels
made from bytes in memory, by one thread, in the same round. So reading files, DuckDB, digests, threads,
batches and scores all count as ours. Small PNGs and no cache, so that nothing hides it. The target is 100 µs.
Also the second query, which embeds nothing. Several threads take turns on the cores, so on a machine that
does other work the processor time tells more than the wall time.

memory: the peak of `SELECT file, clip_score(…) ORDER BY clip_sim(…) LIMIT 5` over JPEGs of three megabytes,
by path and in Parquet with row groups of 50, each in a process of its own. The files are one photo with
distinct bytes behind it, so nothing is found in a cache. DuckDB's own share is that of a query that only
reads the same bytes.
"""

from __future__ import annotations

import io
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import click
import duckdb
import numpy as np
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed._images.pixels import prepare_pixels
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

TEXT = "a red car"
ROW_GROUP = 50
SMALL, LARGE = 57_000, 3_000_000


def jpeg(width: int, height: int, size: int, seed: int) -> bytes:
    """A JPEG of a scene with detail, of about so many bytes."""
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    scene = np.stack([90 + 60 * np.sin(x / 37), 128 + 80 * np.cos(y / 23), (x + y) % 256], axis=2)
    encoded, amount = b"", 4.0
    while len(encoded) < 0.9 * size:
        noisy = scene + amount * rng.standard_normal((height, width, 1), np.float32)
        image = Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))
        image.save(buffer := io.BytesIO(), "JPEG", quality=88)
        encoded, amount = buffer.getvalue(), amount * 1.2
    return encoded


def write(
    folder: Path, count: int, image: Callable[[int], bytes], suffix: str, *, whole: bool = True
) -> None:
    """Write images into folder/files, and Parquet beside them: with row groups of 50, and as DuckDB does."""
    files = folder / "files"
    files.mkdir()
    for number in range(count):
        (files / f"{number:05}{suffix}").write_bytes(image(number))
    with duckdb.connect(config={"threads": 1, "preserve_insertion_order": True}) as con:
        photos = f"(SELECT filename AS file, content AS img FROM read_blob('{files}/*'))"
        forms = {"photos": f"ROW_GROUP_SIZE {ROW_GROUP}, "} | ({"whole": ""} if whole else {})
        for name, rows in forms.items():
            con.execute(f"COPY {photos} TO '{folder}/{name}.parquet' ({rows}COMPRESSION uncompressed)")


def sources(folder: Path) -> dict[str, tuple[str, str]]:
    """Contender -> (relation, image column)."""
    return {
        "paths": (f"glob('{folder}/files/*')", "file"),
        "BLOB table": ("photos", "img"),
        "Parquet": (f"'{folder}/whole.parquet'", "img"),
        f"Parquet, {ROW_GROUP} rows": (f"'{folder}/photos.parquet'", "img"),
    }


def in_sql(folder: Path, clip: ClipEmbedder, relation: str, column: str) -> tuple[float, float]:
    """Seconds, and seconds of processor time, of one query over all images."""
    with duckdb.connect() as con:
        if relation == "photos":
            con.execute(f"CREATE TABLE photos AS FROM '{folder}/photos.parquet'")
        register(con, clip, progress=False)
        return timed(partial(fetch, con, scoring(relation, column)))


def scoring(relation: str, column: str) -> str:
    """The query that is timed."""
    return f"SELECT {column}, clip_score({column}, '{TEXT}') FROM {relation}"


def fetch(con: duckdb.DuckDBPyConnection, query: str) -> list[tuple[object, ...]]:
    """Run a query and take all its rows."""
    return con.execute(query).fetchall()


def timed(work: Callable[[], object]) -> tuple[float, float]:
    """Seconds and seconds of processor time."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def rounds_of(
    folder: Path, clip: ClipEmbedder, rounds: int, alone: Callable[[], object] | None = None
) -> dict[str, list[tuple[float, float]]]:
    """Contender -> (seconds, processor seconds) of each round; the first is what the others are held to."""
    files = sorted((folder / "files").iterdir())
    runs: dict[str, Callable[[], tuple[float, float]]] = {}
    if alone is not None:
        runs["decode alone"] = lambda: timed(alone)
    runs["ClipEmbedder.scores"] = lambda: timed(lambda: clip.scores(files, [TEXT]))
    for name, (relation, column) in sources(folder).items():
        runs[name] = partial(in_sql, folder, clip, relation, column)
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in runs}
    names = list(runs)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            taken[name].append(runs[name]())
    return taken


class AtOnce(FakeModel):
    """A model that answers at once."""

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """All images alike."""
        return np.ones((len(pixels), self.dim), np.float32)


def decode_all(images: list[bytes], clip: ClipEmbedder) -> None:
    """Make the model's pixels of encoded images, by one thread."""
    for image in images:
        prepare_pixels(image, image, clip.model.image_spec, clip.policy)


@click.group()
def main() -> None:
    """What SQL costs beside the bare embedder."""


@main.command()
@click.option("--model", default="offline", show_default=True)
@click.option("--images", default=200, show_default=True, type=click.IntRange(min=1))
@click.option("--rounds", default=3, show_default=True, type=click.IntRange(min=1))
def throughput(model: str, images: int, rounds: int) -> None:
    """Images per second, and the share of the embedder's own, paired within each round."""
    clip = ClipEmbedder(model, cache=None)
    clip.load()
    clip.classify(np.ones((1, clip.dim), np.float32), ["warm", "up"])
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, images, lambda number: jpeg(640, 480, SMALL, number), ".jpg")
        clip.scores(sorted((folder / "files").iterdir())[:32], [TEXT])
        taken = rounds_of(folder, clip, rounds)
    base = taken["ClipEmbedder.scores"]
    print(
        f"{images} JPEGs of 640 × 480, {model} on {clip.device}, DuckDB {duckdb.__version__}, {rounds} rounds"
    )
    print(f"{'':24}{'images/s':>10}{'share':>9}{'of CPU time':>13}")
    for contender, times in taken.items():
        share = statistics.median(b[0] / t[0] for b, t in zip(base, times, strict=True))
        cpu = statistics.median(b[1] / t[1] for b, t in zip(base, times, strict=True))
        speed = images / statistics.median(wall for wall, _ in times)
        print(f"{contender:24}{speed:10.1f}{share:9.1%}{cpu:13.1%}")


@main.command()
@click.option("--images", default=4096, show_default=True, type=click.IntRange(min=1))
@click.option("--rounds", default=5, show_default=True, type=click.IntRange(min=1))
def overhead(images: int, rounds: int) -> None:
    """Microseconds of our own for one image, beyond decode alone, with a model that answers at once."""
    clip = ClipEmbedder(AtOnce(), cache=None)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write(folder, images, small_png, ".png")
        for file in (folder / "files").iterdir():
            os.utime(file, (10**9, 10**9))  # old enough to be known again by its time
        contents = [file.read_bytes() for file in sorted((folder / "files").iterdir())]
        clip.scores(contents[:32], [TEXT])
        taken = rounds_of(folder, clip, rounds, partial(decode_all, contents, clip))
        again = second_queries(folder, rounds)
    base = taken["decode alone"]
    print(f"{images} PNGs of 16 × 16, a model that answers at once, DuckDB {duckdb.__version__}")
    print(f"{'µs an image':24}{'wall':>9}{'beyond':>9}{'CPU':>9}{'beyond':>9}")
    for contender, times in (taken | again).items():
        cells: list[str] = []
        for kind in (0, 1):
            spent = statistics.median(each[kind] for each in times)
            own = statistics.median(t[kind] - b[kind] for b, t in zip(base, times, strict=True))
            beyond = f"{own / images * 1e6:9.1f}" if contender in taken else f"{'':9}"
            cells.append(f"{spent / images * 1e6:9.1f}{beyond}")
        print(f"{contender:24}" + "".join(cells))


def small_png(number: int) -> bytes:
    """A PNG unlike that of any other number."""
    pixels = np.full((16, 16, 3), number % 251, np.uint8)
    pixels[0, 0] = [number >> 16 & 255, number >> 8 & 255, number & 255]
    Image.fromarray(pixels).save(buffer := io.BytesIO(), "PNG", compress_level=1)
    return buffer.getvalue()


def second_queries(folder: Path, rounds: int) -> dict[str, list[tuple[float, float]]]:
    """The same of queries whose images are all known."""
    taken: dict[str, list[tuple[float, float]]] = {}
    with duckdb.connect() as con:
        con.execute(f"CREATE TABLE photos AS FROM '{folder}/photos.parquet'")
        register(con, ClipEmbedder(AtOnce()), progress=False)
        for name, (relation, column) in sources(folder).items():
            query = scoring(relation, column)
            fetch(con, query)
            again = partial(fetch, con, query)
            taken[f"again: {name}"] = [timed(again) for _ in range(rounds)]
    return taken


_QUERIES = {
    "paths": "SELECT file, clip_score(file, $t) FROM glob($f || '/files/*') "
    "ORDER BY clip_sim(file, $t) LIMIT 5",
    "Parquet": "SELECT file, clip_score(img, $t) FROM read_parquet($f || '/photos.parquet') "
    "ORDER BY clip_sim(img, $t) LIMIT 5",
    "Parquet, bytes only": "SELECT max(md5(img)) FROM read_parquet($f || '/photos.parquet')",
}


@main.command()
@click.option("--images", default=2000, show_default=True, type=click.IntRange(min=1))
@click.option("--model", default="fake", show_default=True, help="fake: a model without weights.")
@click.option("--dir", "where", type=click.Path(path_type=Path), help="Where 2 × images × 3 MB find room.")
def memory(images: int, model: str, where: Path | None) -> None:
    """Peak memory, each query in a process of its own."""
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        photo = jpeg(4000, 3000, LARGE, 0)
        write(folder, images, lambda number: photo + number.to_bytes(8, "big"), ".jpg", whole=False)
        print(f"{images} JPEGs of {len(photo) / 1e6:.1f} MB, {model}, DuckDB {duckdb.__version__}")
        print(f"{'':24}{'peak MB':>9}{'above the start':>17}{'seconds':>9}")
        for query in _QUERIES:
            command = [sys.executable, __file__, "one-query", str(folder), query, model]
            before, peak, seconds = map(float, subprocess.check_output(command).split())
            print(f"{query:24}{peak:9,.0f}{peak - before:17,.0f}{seconds:9.1f}")


@main.command(hidden=True)
@click.argument("folder")
@click.argument("query")
@click.argument("model")
def one_query(folder: str, query: str, model: str) -> None:
    """Print the peak memory before one query and after it, in MB, and its seconds."""
    clip = ClipEmbedder(FakeModel() if model == "fake" else model, batch_size=8)
    with duckdb.connect() as con:
        register(con, clip, progress=False)
        clip.embed_images([jpeg(640, 480, SMALL, 0)])
        clip.embed_texts([TEXT])
        before = peak_mb()
        parameters = {"f": folder, "t": TEXT} if "$t" in _QUERIES[query] else {"f": folder}
        seconds, _ = timed(lambda: con.execute(_QUERIES[query], parameters).fetchall())
    print(before, peak_mb(), seconds)


def peak_mb() -> float:
    """The most memory this process has had."""
    status = Path("/proc/self/status")
    if status.exists():  # what getrusage says begins with the memory of the parent
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if "VmHWM" in line) / 1e3
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6


if __name__ == "__main__":
    main()
