"""What Ray costs: two actors of one core each, beside one process with both cores.

    python benchmarks/ray_stage.py --cache ~/.cache/clip-embed-benchmarks --images 20000

Both take the same table of paths, embed with the same model without a cache, and write the same Parquet
columns. One process does half of the files, then Ray does all of them, then the process the other half, so
that a drift of the machine meets both. The clock runs from the first row that is asked for to the last that
is written; each side loads its weights inside it (Ray twice). What Ray takes to start is told apart.

The pictures are parts of the demo's photos at 320 × 240; one in a thousand is no picture. Rows are exact
where keys, failures with their reasons, and vectors within 1e-5 are those of the one process.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image
from report import about

from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images, read_vectors, stamp_vectors
from clip_embed.demo import photos

SIZE = (320, 240)
DAMAGED = 1000  # one in so many
PIECE = 2000  # rows that one process writes at once
TOLERANCE = 1e-5


def make_files(folder: Path, count: int) -> list[str]:
    """The first `count` pictures of a folder, no two alike; what is missing is made."""
    folder.mkdir(parents=True, exist_ok=True)
    paths = [folder / f"{number:05}.jpg" for number in range(count)]
    if all(path.exists() for path in paths):
        return [str(path) for path in paths]
    sources = [Image.open(path).convert("RGB") for path in photos()]
    for number, path in enumerate(paths):
        rng = np.random.default_rng([11, number])
        photo = sources[number % len(sources)]
        width = rng.uniform(0.4, 1) * min(photo.width, photo.height * SIZE[0] / SIZE[1])
        height = width * SIZE[1] / SIZE[0]
        left, top = rng.uniform(0, 1, 2) * (photo.width - width, photo.height - height)
        part = photo.resize(SIZE, Image.Resampling.BILINEAR, box=(left, top, left + width, top + height))
        part.save(path, quality=int(rng.integers(80, 92)))
        if number % DAMAGED == DAMAGED - 1:
            path.write_bytes(path.read_bytes()[:200])
    return [str(path) for path in paths]


def alone(clip: ClipEmbedder, table: pa.Table, out: Path) -> None:
    """Embed in this process, with all its cores."""
    out.mkdir(parents=True, exist_ok=True)
    for start in range(0, table.num_rows, PIECE):
        part = table.slice(start, PIECE)
        vectors, errors = embed_images(part["path"], clip)
        columns = {"path": part["path"], "embedding": stamp_vectors(vectors, clip), "embedding_error": errors}
        pq.write_table(pa.table(columns), out / f"{part['path'][0].as_py().rsplit('/', 1)[-1]}.parquet")


def with_ray(model: str, folder: Path, cpus: int) -> None:
    """Embed in two actors of a cluster of this machine's own, and print what it took."""
    import ray

    from clip_embed_ray import embed

    def run() -> None:
        dataset = ray.data.read_parquet(str(folder / "files.parquet"))
        clip = ClipEmbedder(model, cache=None)
        done = embed(dataset, "path", model=clip, concurrency=(2, 2), num_cpus=1)
        done.write_parquet(str(folder / "ray"), concurrency=1)

    start = seconds_of(lambda: ray.init("local", num_cpus=cpus, include_dashboard=False, log_to_driver=False))
    ray.data.DataContext.get_current().enable_progress_bars = False
    print(json.dumps({"start_s": start, "run_s": seconds_of(run)}))


def seconds_of(work: Callable[[], object]) -> float:
    """How long a piece of work takes."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def read_sorted(out: Path) -> pa.Table:
    """All rows of a folder of Parquet files, by path."""
    return pq.read_table(out).sort_by("path")


def compare(ours: pa.Table, rays: pa.Table, clip: ClipEmbedder) -> dict[str, float]:
    """Count what differs, and by how much vectors do."""
    same = {name: ours[name].to_pylist() == rays[name].to_pylist() for name in ("path", "embedding_error")}
    rows, valid = read_vectors(ours["embedding"], clip)
    other, other_valid = read_vectors(rays["embedding"], clip)
    if not all(same.values()) or (valid != other_valid).any():
        raise SystemExit(f"the rows are not those of one process: {same}")
    largest = float(np.abs(rows - other).max())
    if largest > TOLERANCE:
        raise SystemExit(f"a vector differs by {largest}")
    return {"rows": len(rows), "failed": int((~valid).sum()), "largest_difference": largest}


def both(model: str, folder: Path, paths: list[str], cpus: int) -> dict[str, Any]:
    """Half in one process, all in Ray, the other half in one process; rows compared."""
    clip = ClipEmbedder(model, cache=None)
    table, half = pa.table({"path": paths}), len(paths) // 2
    pq.write_table(table, folder / "files.parquet")
    first = seconds_of(clip.load) + seconds_of(lambda: alone(clip, table.slice(0, half), folder / "alone"))
    command = [sys.executable, __file__, "--only-ray", str(folder), "--model", model, "--cpus", str(cpus)]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    rays = json.loads(done.stdout.splitlines()[-1])
    total = first + seconds_of(lambda: alone(clip, table.slice(half), folder / "alone"))
    exact = compare(read_sorted(folder / "alone"), read_sorted(folder / "ray"), clip)
    return {"alone_s": total, "ray_s": rays["run_s"], "ray_start_s": rays["start_s"]} | exact


@click.command()
@click.option("--cache", type=click.Path(path_type=Path), help="Folder for the pictures.")
@click.option("--images", default=20_000, show_default=True, type=click.IntRange(min=100))
@click.option("--model", default="offline", show_default=True)
@click.option("--cpus", default=3, show_default=True, help="Cores that Ray is told of: one to write with.")
@click.option("--out", type=click.Path(path_type=Path), help="Write the result here, as JSON.")
@click.option(
    "--keep", type=click.Path(path_type=Path, exists=True), help="Leave the vectors in this folder."
)
@click.option("--only-ray", type=click.Path(path_type=Path), hidden=True)
def main(
    cache: Path | None,
    images: int,
    model: str,
    cpus: int,
    out: Path | None,
    keep: Path | None,
    only_ray: Path | None,
) -> None:
    """Print and keep what Ray adds."""
    if only_ray:
        return with_ray(model, only_ray, cpus)
    if cache is None:
        raise click.UsageError("--cache is needed")
    paths = make_files(cache / "ray-1", images)
    with tempfile.TemporaryDirectory() as folder:
        found = both(model, keep or Path(folder), paths, cpus)
    for side in ("alone", "ray"):
        print(f"{side:6s} {images / found[f'{side}_s']:6.1f} images/s")
    overhead = found["ray_s"] / found["alone_s"] - 1
    print(f"Ray adds {overhead:.1%}")
    difference = found["largest_difference"]
    print(f"{found['rows']:,} rows, {found['failed']} failed, vectors within {difference:.1e}")
    result = {"about": about(), "images": images, "model": model, "cpus": cpus, "overhead": overhead} | found
    if out:
        out.write_text(json.dumps(result, indent=1) + "\n", "utf-8")
    return None


if __name__ == "__main__":
    main()
