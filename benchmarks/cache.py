"""What the cache on disk costs and saves: lookups, inserts and bytes a row at a million entries.

    python benchmarks/cache.py [--rows 1000000] [--dim 512] [--dir DIR]

One thread, one process. Lookups are of random keys; "cold" is a connection of its own after the rows
were written, from the page cache of the system. The share of embedding time is that of hashing, lookup and
insert beside decoding and the forward pass, for 640 × 480 JPEGs and, where it is installed, the
offline model; each part is timed in this run.
"""

from __future__ import annotations

import argparse
import hashlib
import io
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from clip_embed import ClipEmbedder, EmbeddingCache, MissingExtra
from clip_embed._cache.disk import ROWS_PER_COMMIT, DiskCache
from clip_embed.testing import FakeModel

LOOKUPS = 20_000
PHOTOS = 64


def key(number: int) -> bytes:
    """The key of a row: as random as a digest, and made again from its number."""
    return hashlib.blake2b(number.to_bytes(8, "big"), digest_size=20).digest()


def fill(cache: DiskCache, rows: int, dim: int) -> Iterator[tuple[int, float]]:
    """Put rows in and commit; yield (rows so far, seconds) for each tenth."""
    vector = np.random.default_rng(0).standard_normal(dim).astype(np.float32)
    tenth = max(rows // 10, ROWS_PER_COMMIT)
    for first in range(0, rows, tenth):
        keys = [key(number) for number in range(first, min(rows, first + tenth))]
        start = time.perf_counter()
        for name in keys:
            cache.put(name, vector)
        cache.commit()
        yield first + len(keys), (time.perf_counter() - start) / len(keys)


def look_up(get: Callable[[list[bytes]], object], numbers: np.ndarray, extra: int) -> float:
    """Seconds of a lookup of one key and `extra` keys that are not there."""
    absent = [key(-1 - place & 0xFFFFFFFFFF) for place in range(extra)]
    names = [[key(int(number)), *absent] for number in numbers]
    start = time.perf_counter()
    for each in names:
        get(each)
    return (time.perf_counter() - start) / len(names)


def measure_file(path: Path, rows: int, dim: int) -> tuple[float, float]:
    """Print inserts, lookups and bytes a row; return the seconds of a lookup and of an insert."""
    cache = DiskCache(path, 1 << 40)
    inserts: list[float] = []
    for count, seconds in fill(cache, rows, dim):
        inserts.append(seconds)
        print(f"  {count:>9,} rows: {1 / seconds:9,.0f} inserts/s")
    journal = path.with_name(path.name + "-wal").stat().st_size
    cache.close()
    size = path.stat().st_size
    print(f"  {size / rows:,.0f} bytes a row ({size / 2**30:.2f} GiB), journal {journal / 2**20:.0f} MiB")
    rng = np.random.default_rng(1)
    hit = look_up(cache.get, rng.integers(0, rows, LOOKUPS), 0)
    six = look_up(cache.get, rng.integers(0, rows, LOOKUPS), 5)
    miss = look_up(cache.get, rng.integers(rows, 2 * rows, LOOKUPS), 0)
    both = EmbeddingCache(path)
    few = rng.integers(0, rows, 1000)
    look_up(both.get, few, 0)
    memory = look_up(both.get, few, 0)
    for name, seconds in (("hit", hit), ("hit, 6 keys", six), ("miss", miss), ("in memory", memory)):
        print(f"  lookup, {name:12} {1 / seconds:9,.0f}/s  ({seconds * 1e6:.1f} µs)")
    cache.close()
    return hit, sum(inserts) / len(inserts)


def photos() -> list[bytes]:
    """JPEGs of 640 × 480, no two alike."""
    rng = np.random.default_rng(0)
    encoded: list[bytes] = []
    y, x = np.mgrid[0:480, 0:640]
    for _ in range(PHOTOS):
        waves = 128 + 90 * np.sin(x[..., None] / rng.uniform(9, 60, 3) + y[..., None] / rng.uniform(9, 60, 3))
        noisy = np.clip(waves + rng.normal(0, 8, (480, 640, 3)), 0, 255).astype(np.uint8)
        Image.fromarray(noisy).save(buffer := io.BytesIO(), "JPEG", quality=88)
        encoded.append(buffer.getvalue())
    return encoded


def seconds_of(work: Callable[[], object]) -> float:
    """The least of three runs."""
    taken: list[float] = []
    for _ in range(3):
        start = time.perf_counter()
        work()
        taken.append(time.perf_counter() - start)
    return min(taken)


def measure_share(folder: Path, lookup: float, insert: float) -> None:
    """Print what the cache costs a fresh image, and saves a known one."""
    images = photos()
    hashing = seconds_of(lambda: [hashlib.sha256(image).digest() for image in images]) / PHOTOS
    print(f"  {sum(map(len, images)) / PHOTOS / 1000:.0f} KB a photo, hashed in {hashing * 1e6:.0f} µs")
    models: dict[str, object] = {"decoding alone (FakeModel)": FakeModel()}
    try:
        ClipEmbedder("offline")
        models["offline model"] = "offline"
    except MissingExtra:
        print("  (offline model: not installed)")
    for number, (name, model) in enumerate(models.items()):
        clip = ClipEmbedder(model, device="cpu", cache=None)  # type: ignore[arg-type]
        clip.load()
        fresh = seconds_of(lambda clip=clip: clip.embed_images(images)) / PHOTOS
        kept = ClipEmbedder(model, device="cpu", cache=folder / f"{number}.cache")  # type: ignore[arg-type]
        kept.embed_images(images)
        again = ClipEmbedder(model, device="cpu", cache=folder / f"{number}.cache")  # type: ignore[arg-type]
        known = seconds_of(lambda again=again: again.embed_images(images)) / PHOTOS
        cost = hashing + lookup + insert
        print(
            f"  {name}: {fresh * 1e3:.2f} ms a photo, {known * 1e3:.3f} ms where it is known; hashing, lookup"
        )
        print(f"    and insert take {cost * 1e6:.0f} µs, {cost / fresh:.1%} of that")


def main() -> None:
    """Print all of it."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000)
    parser.add_argument("--dim", type=int, default=512)
    parser.add_argument("--dir", type=Path, help="where the file is made; default: a temporary folder")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.dir) as folder:
        print(f"{options.rows:,} vectors of {options.dim} dimensions, float32")
        lookup, insert = measure_file(Path(folder, "bench.cache"), options.rows, options.dim)
        print("share of the time of embedding")
        measure_share(Path(folder), lookup, insert)


if __name__ == "__main__":
    main()
