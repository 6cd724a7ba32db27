"""How much memory a stream of distinct images leaves behind: the slope per 100,000 images.

    python benchmarks/memory.py

One process streams 1,000, 10,000 and 100,000 small PNGs, no two alike, one in a hundred corrupt,
through a model without weights and without a cache, after a warm-up of 2,000. The images are
made as they are read, so that only what the library keeps can grow. The slope is that of a line
through the resident memory over the last 90 % of each run.
"""

from __future__ import annotations

import os
import struct
import time
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel

PAGE = os.sysconf("SC_PAGE_SIZE")
SIDE = 16
HEADER = struct.pack(">IIBBBBB", SIDE, SIDE, 8, 2, 0, 0, 0)


def resident_mb() -> float:
    """Resident memory of this process (Linux), in MB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * PAGE / 1e6


def chunk(name: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + name + body + struct.pack(">I", zlib.crc32(name + body))


def images(count: int, first: int) -> Iterator[bytes]:
    """PNGs of one colour with their number in the first pixels, one in a hundred cut short."""
    for number in range(first, first + count):
        row = bytes([0]) + struct.pack(">I", number) + bytes([number % 251]) * (3 * SIDE - 4)
        parts = [chunk(b"IHDR", HEADER), chunk(b"IDAT", zlib.compress(row * SIDE, 1)), chunk(b"IEND", b"")]
        png = b"\x89PNG\r\n\x1a\n" + b"".join(parts)
        yield png[:60] if number % 100 == 0 else png


def stream(clip: ClipEmbedder, count: int, first: int) -> tuple[list[int], list[float]]:
    """Stream `count` images; return how many were done, and the memory then, at 200 points."""
    done = 0
    counts: list[int] = []
    memory: list[float] = []
    with clip.stream_images(images(count, first)) as batches:
        for batch in batches:
            done += len(batch.indices) + len(batch.failures)
            if done * 200 // count > len(counts):
                counts.append(done)
                memory.append(resident_mb())
    return counts, memory


def main() -> None:
    """Print one line for each length."""
    clip = ClipEmbedder(FakeModel(), device="cpu", cache=None)
    stream(clip, 2_000, 0)
    first = 2_000
    print(f"{'images':>8} {'MB at start':>12} {'MB at end':>10} {'MB per 100,000':>15} {'µs per image':>13}")
    for count in (1_000, 10_000, 100_000):
        start = time.perf_counter()
        counts, memory = stream(clip, count, first)
        first += count
        settled = len(counts) // 10
        slope = np.polyfit(counts[settled:], memory[settled:], 1)[0] * 100_000
        took = (time.perf_counter() - start) / count * 1e6
        print(f"{count:8,} {memory[0]:12.1f} {memory[-1]:10.1f} {slope:15.2f} {took:13.0f}")


if __name__ == "__main__":
    main()
