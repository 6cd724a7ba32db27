"""A stage of actors: each keeps its model, takes Arrow tables and gives Arrow tables."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias, cast

import pyarrow as pa
import ray
from ray.data import ActorPoolStrategy, Dataset

from clip_embed import ClipEmbedder
from clip_embed._default import default_embedder
from clip_embed._types import Model

AnyModel: TypeAlias = str | Path | Model | ClipEmbedder | None
Work: TypeAlias = Callable[[pa.Table], Iterator[pa.Table]]

ROWS = 256  # in one piece of work: small enough to be shared out evenly, and to be lost
_CORES = 4  # of an actor on a large machine: a model for each core would fill its memory


@dataclass(frozen=True, slots=True)
class Actors:
    """How many actors there are, and what each has; None where the cluster is to decide."""

    concurrency: int | tuple[int, int] | None
    num_cpus: float | None
    num_gpus: float | None

    def run(
        self, dataset: Dataset, column: str, embedder: ClipEmbedder, begin: Callable[[ClipEmbedder], Work]
    ) -> Dataset:
        """Return the dataset of what the actors make of the tables in which `column` holds images.

        Each actor calls `begin` once, with the embedder as its own process has it.
        """
        if not ray.is_initialized():
            cast("Any", ray).init()
        cpus, gpus, threads = self._resources()
        # The stage travels as a class: arguments of an actor are lost with the node that holds them.
        stage: Dataset = _map_blocks(_in_pieces(dataset, column))(
            _stage(embedder, begin, threads),
            batch_format="pyarrow",
            batch_size=None,  # a block as it is: Ray bounds it in bytes
            compute=self._pool(),
            num_cpus=cpus,
            num_gpus=gpus,
        )
        return stage

    def _resources(self) -> tuple[float, float, int]:
        """Return the CPUs and GPUs that one actor asks for, and how many threads it decodes with.

        Beside a GPU it asks for one CPU, whatever it uses: Ray keeps a part of the CPUs for the operators
        after it, and would leave GPUs idle whose actors want all the others. On a cluster of one CPU it asks
        for none: what reads the images would wait for ever.
        """
        nodes = [node["Resources"] for node in cast("Any", ray).nodes() if node["Alive"]]
        gpus = self.num_gpus
        if gpus is None:
            gpus = 1 if any(node.get("GPU") for node in nodes) else 0
        if self.num_cpus is not None:
            return self.num_cpus, gpus, max(1, int(self.num_cpus))
        alone = sum(node.get("CPU", 0) for node in nodes) < 2
        if gpus:  # its share of the cores of its node, less one for what else Ray does
            shares = [node["CPU"] * gpus / node["GPU"] for node in nodes if node.get("GPU")]
            return 0 if alone else 1, gpus, max(1, int(min(shares, default=2)) - 1)
        cores = max((node.get("CPU", 1) for node in nodes), default=1)
        used = _CORES if cores >= 2 * _CORES else 1
        return 0 if alone else used, gpus, used

    def _pool(self) -> ActorPoolStrategy:
        """Begin with one actor: a pool that takes all cores at once leaves none to read with, for good."""
        fewest, most = self.concurrency if isinstance(self.concurrency, tuple) else (1, self.concurrency)
        return ActorPoolStrategy(min_size=fewest, max_size=most)


def the_embedder(model: AnyModel) -> ClipEmbedder:
    """Return the embedder of a model; None is the default one."""
    if model is None:
        return default_embedder()
    return model if isinstance(model, ClipEmbedder) else ClipEmbedder(model)


def require(names: list[str], columns: list[str]) -> None:
    """Raise ValueError where one of the columns is not there."""
    if missing := [name for name in columns if name not in names]:
        raise ValueError(f"there is no column {missing[0]!r}; there are {', '.join(names)}")


def _map_blocks(dataset: Dataset) -> Callable[..., Dataset]:
    """Return `map_batches` as Ray's own operators have it: with GPUs the public one wants a number of rows.

    That would gather blocks of large images until they have so many rows, however many bytes those are.
    """
    for name in (
        "map_batches_internal",
        "_map_batches_without_batch_size_validation",
    ):  # the second one in Ray 2.50
        if found := getattr(dataset, name, None):
            return cast("Callable[..., Dataset]", found)
    return cast("Callable[..., Dataset]", cast("Any", dataset).map_batches)


def _in_pieces(dataset: Dataset, column: str) -> Dataset:
    """Split long lists of paths, which Ray takes for little work; images by value come in small blocks."""
    schema: Any = dataset.schema(fetch_if_missing=False)
    if schema is None:
        return dataset
    require(schema.names, [column])
    kind = schema.types[schema.names.index(column)]
    if isinstance(kind, pa.DataType) and (pa.types.is_string(kind) or pa.types.is_large_string(kind)):
        return dataset.repartition(target_num_rows_per_block=ROWS)
    return dataset


def _stage(embedder: ClipEmbedder, begin: Callable[[ClipEmbedder], Work], threads: int) -> type:
    settings = embedder.settings
    if settings.workers == "auto":
        settings = settings._replace(workers=threads)

    class Stage:
        def __init__(self) -> None:
            self._work = begin(ClipEmbedder(**settings._asdict()))

        def __call__(self, table: pa.Table) -> Iterator[pa.Table]:
            for start in range(0, max(1, table.num_rows), ROWS):
                yield from self._work(table.slice(start, ROWS))

    return Stage
