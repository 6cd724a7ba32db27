"""How long a million, a hundred million and ten thousand million images take, and what their vectors need.

    python benchmarks/scale.py                      # the tables
    python benchmarks/scale.py --write docs         # into docs/scale.md, and its chart
    python benchmarks/scale.py --set gpu_hour=2.5   # with a figure of your own

The figures that go in are those that were measured (read from benchmarks/results/), those that others
published, and assumptions, each marked as what it is. What comes out beyond one machine is an estimate: a
simulation hands pieces of work to nodes as Ray does, lets nodes be lost and pieces be repeated, and holds
them to the slowest of decoding, forward pass, network and object store. The one case that was measured, two
actors of one core (benchmarks/ray_stage.py), is simulated too, to be seen beside its measurement.
"""

from __future__ import annotations

import heapq
import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import click
import numpy as np
import scale_page

RESULTS = Path(__file__).parent / "results"
SIZES = (10**6, 10**8, 10**10)
DIM = 512  # of ViT-B/32
PIECES = 20_000  # of a large job: more change nothing
ROWS = 256  # in a piece of clip_embed_ray


@dataclass(frozen=True)
class Figure:
    """A number that goes in."""

    value: float
    unit: str
    kind: str
    """measured, published or assumed"""
    source: str


def figures() -> dict[str, Figure]:
    """All that goes in, by name."""
    cpu, stored = _result("cpu"), _result("quantization")
    summary, made = cpu["sets"]["small"]["summary"], cpu["sets"]["small"]["files"]
    rate = summary["clip-embed"]["images_per_s"] / cpu["about"]["machine"]["cores"]
    size = made["mean_bytes"]
    ways, dim = stored["stored"], stored["dim"]
    small = {name: ways[name]["bytes"]["quantized"] / dim for name in ("int8", "binary")}
    graph, index = stored["graph"]["bytes"], stored["graph"]["index_cpu_ms"]
    gpu = _result("gpu")
    rates = {(row["part"], row["contender"]): row.get("images_per_s") for row in gpu["rows"]}
    forward = rates["forward ViT-B/32", "bf16"]
    whole = rates["small", "clip-embed"] / gpu["about"]["machine"]["cores"]
    rows = [
        ("core_rate", rate, "images/s", "measured", "ViT-B/32 on a core with AMX: `benchmarks/cpu.py`"),
        ("image_bytes", size, "bytes", "measured", "640 × 480 JPEG: `benchmarks/image_sets.py`"),
        ("pixel_bytes", 224 * 224 * 3, "bytes", "measured", "`clip_embed.arrow.prepare`"),
        ("decode_rate", whole, "images/s", "measured", "JPEG to vector, a virtual core beside an H200"),
        ("ray_overhead", *_overhead()),
        ("client_rate", 46_371, "points/s", "measured", "one client: `benchmarks/qdrant.py upload`"),
        ("int8_bytes", small["int8"], "bytes", "measured", "a dimension: `benchmarks/quantization.py`"),
        ("binary_bytes", small["binary"], "bytes", "measured", "a dimension: the same"),
        ("graph_bytes", graph, "bytes", "measured", "a vector, 16 links, among 100,000: the same"),
        ("index_ms", index, "CPU ms", "measured", "a vector, among 100,000: the same"),
        ("gpu_rate", forward, "images/s", "measured", "ViT-B/32 forward pass, H200: `benchmarks/gpu.py`"),
        ("store_gets", 5_500, "GET/s", "published", "of a prefix of Amazon S3"),
        ("get_price", 0.4, "$/million", "published", "GET requests of Amazon S3"),
        ("store_prefixes", 16, "", "assumed", "that the images lie under"),
        ("images_per_get", 1, "", "assumed", "a file each; hundreds in tar or Parquet files"),
        ("gpu_cores", 16, "cores", "assumed", "of a GPU's node"),
        ("cpu_cores", 16, "cores", "assumed", "of a node without"),
        ("network", 25e9 / 8, "bytes/s", "assumed", "of a node: 25 Gbit/s"),
        ("start_s", 60, "s", "assumed", "until a new node embeds"),
        ("node_hours", 200, "hours", "assumed", "until a node is lost (spot)"),
        ("spread", 0.1, "", "assumed", "deviation of a piece's time"),
        ("gpu_hour", 1.0, "$/hour", "assumed", "GPU node"),
        ("cpu_hour", 0.6, "$/hour", "assumed", "CPU node"),
        ("memory_hour", 0.008, "$/GB and hour", "assumed", "a server's memory, its cores included"),
        ("disk_month", 0.10, "$/GB and month", "assumed", "SSD"),
        ("server_bytes", 256e9, "bytes", "assumed", "memory of a Qdrant server"),
        ("filled", 0.75, "", "assumed", "of it by vectors"),
        ("copies", 2, "", "assumed", "of each shard"),
        ("shard_vectors", 50e6, "", "assumed", "in one shard at most"),
        ("point_bytes", 40, "bytes", "assumed", "a vector: ids and versions in memory"),
    ]
    return {name: Figure(*rest) for name, *rest in rows}


def _result(name: str) -> dict[str, Any]:
    """What a benchmark has left; empty where it has not run."""
    file = RESULTS / f"{name}.json"
    return json.loads(file.read_text("utf-8")) if file.exists() else {}


def _overhead() -> tuple[float, str, str, str]:
    if ray := _result("ray"):
        return max(0.0, ray["overhead"]), "", "measured", "two actors: `benchmarks/ray_stage.py`"
    return 0.15, "", "assumed", "not measured yet: `benchmarks/ray_stage.py`"


@dataclass(frozen=True)
class Nodes:
    """Machines that embed."""

    name: str
    count: int
    rate: float
    """images/s of each, alone"""
    limit: str
    """What holds it to that"""
    hour: float
    """$"""


def gpu_nodes(given: dict[str, float], count: int) -> Nodes:
    """Nodes of one GPU: as fast as the slowest of what a picture passes through."""
    parts = {
        "forward pass": given["gpu_rate"],
        "decoding": given["decode_rate"] * given["gpu_cores"],
        "network": given["network"] / given["image_bytes"],
        "upload": given["client_rate"],
    }
    limit = min(parts, key=lambda name: parts[name])
    return Nodes(f"{count} GPU", count, parts[limit], limit, given["gpu_hour"])


def cpu_nodes(given: dict[str, float], count: int) -> Nodes:
    """Nodes without: the measured rate of a core holds decoding and forward pass."""
    rate = given["core_rate"] * given["cpu_cores"]
    return Nodes(f"{count} CPU", count, rate, "forward pass", given["cpu_hour"])


@dataclass(frozen=True)
class Job:
    """What became of a job."""

    nodes: Nodes
    images: int
    seconds: float
    repeated: float
    """Share of the work that was done again because a node was lost."""
    limit: str

    requests: float
    """$ for asking the object store"""

    @property
    def dollars(self) -> float:
        """Of the nodes."""
        return self.nodes.count * self.nodes.hour * self.seconds / 3600


def simulate(given: dict[str, float], nodes: Nodes, images: int, seed: int = 0) -> Job:
    """Hand out pieces to nodes until all are done; a lost node's piece goes to another one."""
    rng = np.random.default_rng(seed)
    pieces = max(1, min(PIECES, images // ROWS))
    store = given["store_gets"] * given["store_prefixes"] * given["images_per_get"]
    rate, limit = min((nodes.rate, nodes.limit), (store / nodes.count, "object store"))
    seconds = images / pieces / rate * (1 + given["ray_overhead"])
    free = [(given["start_s"], number) for number in range(nodes.count)]
    lost_at = rng.exponential(given["node_hours"] * 3600, nodes.count)
    waiting, end, repeated = pieces, 0.0, 0.0
    while waiting:
        now, number = heapq.heappop(free)
        done = now + seconds * float(rng.lognormal(0, given["spread"]))
        if done > lost_at[number]:
            repeated += max(0.0, lost_at[number] - now)
            back = max(now, lost_at[number]) + given["start_s"]
            lost_at[number] = back + rng.exponential(given["node_hours"] * 3600)
            heapq.heappush(free, (back, number))
            continue
        waiting, end = waiting - 1, max(end, done)
        heapq.heappush(free, (done, number))
    requests = images / given["images_per_get"] / 1e6 * given["get_price"]
    return Job(nodes, images, end, repeated / (pieces * seconds), limit, requests)


@dataclass(frozen=True)
class Storage:
    """What vectors need in Qdrant, all copies together."""

    name: str
    images: int
    memory: float
    """Bytes."""
    disk: float
    servers: int
    shards: int
    dollars: float
    """A month."""
    index_hours: float
    """Core hours to build the graphs."""


def store(given: dict[str, float], name: str, images: int) -> Storage:
    """Vectors and graph in memory; where they are quantized, the float16 originals on disk."""
    in_memory = {
        "float32": 4 * DIM,
        "float16": 2 * DIM,
        "int8": given["int8_bytes"] * DIM,
        "binary": given["binary_bytes"] * DIM,
    }[name]
    copies = images * given["copies"]
    memory = copies * (in_memory + given["graph_bytes"] + given["point_bytes"])
    disk = memory + (copies * 2 * DIM if name in ("int8", "binary") else 0)
    bought = memory / given["filled"]
    servers = max(int(given["copies"]), -int(-bought // given["server_bytes"]))
    shards = max(servers, -int(-images // given["shard_vectors"]))
    month = bought / 1e9 * given["memory_hour"] * 730 + disk / 1e9 * given["disk_month"]
    return Storage(name, images, memory, disk, servers, shards, month, copies * given["index_ms"] / 3.6e6)


def check(given: dict[str, float]) -> tuple[float, float] | None:
    """images/s of the measured job on two actors, and of its simulation; None where it was not measured."""
    if not (ray := _result("ray")):
        return None
    images = ray["images"]
    two = Nodes("2 actors", 2, images / ray["alone_s"] / 2, "forward pass", 0)
    return images / ray["ray_s"], images / simulate(given | {"start_s": 0.0}, two, images).seconds


@click.command()
@click.option("--set", "changes", multiple=True, metavar="NAME=VALUE", help="Put in another figure; repeat.")
@click.option("--write", type=click.Path(exists=True, path_type=Path), help="Folder with scale.md.")
def main(changes: tuple[str, ...], write: Path | None) -> None:
    """Print the tables, or write them."""
    known = figures()
    for change in changes:
        name, _, value = change.partition("=")
        if name not in known:
            raise click.UsageError(f"there is no figure {name!r}; there are {', '.join(known)}")
        known[name] = replace(known[name], value=float(value), kind="yours", source="--set")
    given = {name: figure.value for name, figure in known.items()}
    kinds = [cpu_nodes(given, 1), *(gpu_nodes(given, count) for count in (1, 8, 64))]
    jobs = [simulate(given, nodes, images) for images in SIZES for nodes in kinds]
    stored = [
        store(given, name, images) for images in SIZES for name in ("float32", "float16", "int8", "binary")
    ]
    scale_page.publish(known, jobs, stored, check(given), _result("quantization"), write)


if __name__ == "__main__":
    main()
