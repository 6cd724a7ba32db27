"""The SQL functions over Arrow columns."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, cast

import duckdb
import numpy as np
import pyarrow as pa

from clip_embed import Classification
from clip_embed.arrow import vector_array
from clip_embed.errors import ClipEmbedError
from clip_embed_duckdb._columns import Column, Kind  # DuckDB evaluates the annotations: not only for typing
from clip_embed_duckdb._embed import Call
from clip_embed_duckdb._predict import decide, predict
from clip_embed_duckdb._slot import OnError, Slot
from clip_embed_duckdb._spaces import fits_space
from clip_embed_duckdb._stored import Bools, Float32, Vectors

_LABELS = pa.list_(pa.struct([pa.field("label", pa.string()), pa.field("probability", pa.float32())]))


def make_functions(slot: Slot) -> dict[str, tuple[Callable[..., Any], str]]:
    """Return name -> (callable over Arrow columns, SQL return type), for one database.

    They refer to the slot and look up its state on each call, so a state can be replaced.
    """

    def clip_sim(img: Column, query: Column) -> Column:
        return _run(slot, "clip_sim", _sim, img, query)

    def clip_score(img: Column, query: Column) -> Column:
        return _run(slot, "clip_score", _score, img, query)

    def clip_image(img: Column) -> Column:
        return _run(slot, "clip_image", _image, img)

    def clip_text(text: Column) -> Column:
        return _run(slot, "clip_text", _text, text)

    def clip_label(img: Column, labels: Column) -> Column:
        return _run(slot, "clip_label", _label, img, labels)

    def clip_labels(img: Column, labels: Column) -> Column:
        return _run(slot, "clip_labels", _labels, img, labels)

    def clip_predict(img: Column, classifier: Column) -> Column:
        return _run(slot, "clip_predict", predict, img, classifier)

    def clip_moderate(img: Column, policy: Column) -> Column:
        return _run(slot, "clip_moderate", decide, img, policy)

    def clip_error(img: Column) -> Column:
        return _run(slot, "clip_error", _error, img, on_error="null")

    def clip_embedding(img: Column) -> Column:
        return _run(slot, "clip_embedding", _embedding, img, on_error="null")

    def clip_fits(keys: Column, table: Column, space: Column) -> Column:
        return _run(slot, "clip_embedding", fits_space, keys, table, space)

    def clip_query(function: Column, query: Column) -> Column:
        name = str(function[0]) if len(function) else ""
        return _run(slot, name, _query, query)

    vector = f"FLOAT[{slot.dim}]"
    return {
        "clip_sim": (clip_sim, "STRUCT(distance FLOAT, score FLOAT)"),
        "clip_score": (clip_score, "FLOAT"),
        "clip_image": (clip_image, vector),
        "clip_text": (clip_text, vector),
        "clip_label": (clip_label, "VARCHAR"),
        "clip_labels": (clip_labels, "STRUCT(label VARCHAR, probability FLOAT)[]"),
        "clip_predict": (clip_predict, "VARCHAR"),
        "clip_moderate": (
            clip_moderate,
            "STRUCT(verdict VARCHAR, reason VARCHAR, scores MAP(VARCHAR, FLOAT))",
        ),
        "clip_error": (clip_error, "VARCHAR"),
        "clip_embedding": (clip_embedding, f"STRUCT(vector {vector}, error VARCHAR)"),
        "_clip_fits": (clip_fits, "BOOLEAN"),
        "_clip_query": (clip_query, vector),  # the last: see _register._remove
    }


def _run(
    slot: Slot, name: str, compute: Callable[..., Column], *columns: Column, on_error: OnError | None = None
) -> Column:
    state = slot.state
    if state is None:
        raise ClipEmbedError(
            f"{name} was unregistered in this database: call clip_embed_duckdb.register(con)"
        )
    with slot.running() as check:
        how = state.on_error if on_error is None else on_error
        try:
            result = compute(Call(name, slot, state, how, check), *columns)
        except duckdb.PermissionException as error:
            # Neither our query nor the lines of code that asked it: they tell what kind of file it is.
            raise duckdb.PermissionException(str(error).splitlines()[0]) from None
    # A copy in Arrow's own memory: DuckDB 1.5 has Arrow's threads free it, for NumPy's they would ask for the
    # interpreter, and where that ends just then the process aborts.
    return pa.concat_arrays([result])


def _sim(call: Call, img: Column, query: Column) -> Column:
    distances, missing = _distances(call, img, query)
    parts = [pa.array(distances), pa.array(np.float32(1) - distances)]
    struct = cast("Any", pa.StructArray)
    return struct.from_arrays(parts, ["distance", "score"], mask=pa.array(missing))


def _score(call: Call, img: Column, query: Column) -> Column:
    distances, missing = _distances(call, img, query)
    return pa.array(np.float32(1) - distances, mask=missing)


def _image(call: Call, img: Column) -> Column:
    images = call.images(img)
    return vector_array(images.units(), images.valid)


def _text(call: Call, text: Column) -> Column:
    return _unit_rows(*call.queries(text, texts_only=True))


def _query(call: Call, query: Column) -> Column:
    """For a macro in SQL: texts embedded, vectors as they are, of unit length."""
    return _unit_rows(*call.queries(query))


def _unit_rows(vectors: Vectors, present: Bools) -> Column:
    """Return the vector of each row, or one for all rows, where there is one."""
    return vector_array(np.broadcast_to(vectors.units(), (len(present), vectors.rows.shape[1])), present)


def _label(call: Call, img: Column, labels: Column) -> Column:
    return _classify(call, img, labels, lambda found: pa.array(found.best), pa.string())


def _labels(call: Call, img: Column, labels: Column) -> Column:
    return _classify(call, img, labels, _ranked, _LABELS)


def _ranked(found: Classification) -> Column:
    """Return the labels of each image, best first, as a list of structs."""
    order = np.argsort(-found.probabilities, axis=1, kind="stable")
    names = pa.array(found.labels).take(order.reshape(-1))
    shares = pa.array(np.take_along_axis(found.probabilities, order, axis=1).reshape(-1))
    ends = np.arange(len(order) + 1, dtype=np.int32) * len(found.labels)
    struct, lists = cast("Any", pa.StructArray), cast("Any", pa.ListArray)
    return lists.from_arrays(pa.array(ends), struct.from_arrays([names, shares], ["label", "probability"]))


def _classify(
    call: Call, img: Column, labels: Column, say: Callable[[Classification], Column], kind: Kind
) -> Column:
    """Classify images, each set of labels at once; what `say` makes of it goes to the rows it belongs to."""
    sets = call.labels(labels)
    images = call.images(img)
    units = images.units()
    answers: list[Any] = [pa.nulls(0, kind)]
    place_of = np.full(len(img), -1, np.int64)
    for names, rows in sets:
        rows = rows[images.valid[rows]]
        try:
            found = call.state.load().classify(units[rows], names)
        except ValueError as error:
            raise ValueError(f"{call.name}: {error}") from None
        place_of[rows] = np.arange(len(rows)) + sum(map(len, answers))
        answers.append(say(found).cast(kind))
    places = cast("Any", pa.array(place_of, mask=place_of < 0))
    return pa.concat_arrays(answers).take(places)


def _error(call: Call, img: Column) -> Column:
    return _reasons(call.images(img))


def _embedding(call: Call, img: Column) -> Column:
    images = call.images(img)
    parts = [vector_array(images.units(), images.valid), _reasons(images)]
    return cast("Any", pa.StructArray).from_arrays(parts, ["vector", "error"])


def _reasons(images: Vectors) -> Column:
    return pa.array([images.reasons.get(row) for row in range(len(images.rows))], pa.string())


def _distances(call: Call, img: Column, query: Column) -> tuple[Float32, Bools]:
    """1 - cosine, float32 (n,), and bool (n,) where an image or a query is missing.

    The score is 1 - distance, not the cosine itself: the rounding of the one is then that of
    the other, and the two never order a pair of images differently.
    """
    queries, present = call.queries(query)
    images = call.images(img)
    return np.float32(1) - images.cosines(queries), ~(images.valid & present)
