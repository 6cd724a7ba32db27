"""Putting the functions into a database, and taking them out again."""

from __future__ import annotations

import threading
import weakref
from contextlib import suppress
from typing import Any, cast

import duckdb
from duckdb.func import ARROW, SPECIAL

from clip_embed import ClipEmbedder, ClipEmbedError, SpaceMismatch
from clip_embed._default import default_embedder
from clip_embed_duckdb import _interrupts
from clip_embed_duckdb._functions import make_functions
from clip_embed_duckdb._macros import add_macros, remove_macros
from clip_embed_duckdb._slot import OnError, Slot, State, find_tokens

# DuckDB keeps a raw pointer to a callable, which must outlive every database: never remove one.
_SLOTS: dict[str, Slot] = {}
_LOCK = threading.Lock()
# Of connections that embed outside of queries, in databases without the functions.
_STOPS = weakref.WeakKeyDictionary[duckdb.DuckDBPyConnection, _interrupts.Stops]()
_INTERRUPT = duckdb.DuckDBPyConnection.interrupt
_TAKEN = "SELECT function_name FROM duckdb_functions() WHERE list_contains(?, function_name)"


def register(
    con: duckdb.DuckDBPyConnection,
    embedder: ClipEmbedder | None = None,
    *,
    on_error: OnError = "null",
    progress: bool = True,
) -> None:
    """Add the SQL functions of clip-embed to the database of a connection.

    >>> import duckdb
    >>> from clip_embed import ClipEmbedder
    >>> from clip_embed_duckdb import register
    >>> con = duckdb.connect()
    >>> register(con, ClipEmbedder("offline"))
    >>> con.execute("CREATE TABLE photos AS SELECT file AS img FROM glob('photos/*.jpg')")
    >>> con.sql("SELECT * FROM photos ORDER BY clip_sim(img, 'red car')")

    - `clip_sim(img, query)` STRUCT(distance FLOAT, score FLOAT): `ORDER BY` it, best match first.
    - `clip_score(img, query)` FLOAT: cosine similarity, larger is more alike.
    - `clip_image(img)`, `clip_text(text)` FLOAT[d]: vectors of unit length, to keep in a column.
    - `clip_label(img, ['cat', 'dog'])` VARCHAR: the label that fits best; `clip_labels` all of them as
      STRUCT(label VARCHAR, probability FLOAT)[], best first. As `ClipEmbedder.classify`: probabilities
      share an image among the labels given, one of none of them included.
    - `clip_predict(img, 'birds.classifier')` VARCHAR: the likeliest label by what `clip_embed.fit` has
      learned: the classifier's file, which DuckDB must be allowed to read, or its name of `add_classifier`.
    - `clip_moderate(img, 'policy.json')` STRUCT(verdict VARCHAR, reason VARCHAR, scores MAP(VARCHAR, FLOAT)):
      as `clip_embed.moderate`, by a policy's file, its JSON, or 'starter'. One that failed is 'unchecked'.
    - `clip_error(img)` VARCHAR: why an image failed, NULL if it did not; it never raises for one.
    - `clip_embedding(img)` STRUCT(vector FLOAT[d], error VARCHAR): both at once; it never raises either.
    - `FROM clip_search('photos', 'img', 'red car', k := 10)`: the best k rows of a table or view with
      their `score`, best first, none without a score. Names as in SQL: `'my.db.photos'`, `'"a.b"'`. With
      `rescore := 'emb'` the best 10 × k rows by `img` are scored again by the column `emb`, as for vectors
      kept as TINYINT[d]. A column of the table that is called `score` becomes `score_1`.

    `img` is a BLOB, a VARCHAR path, a STRUCT(bytes BLOB, path VARCHAR) of which bytes come
    first, or a stored vector FLOAT[d], TINYINT[d], FLOAT[] or DOUBLE[]; `query` is a text or a vector, so
    `clip_score(img, clip_image('query.jpg'))` compares images. NULL gives NULL, and so does an
    image that failed, unless `on_error="raise"`. A path DuckDB may not read always raises.

    An image is embedded once, by its content, as long as the embedder's cache keeps it: not again for
    a second expression, query, connection or, with a cache on disk, process. A file that DuckDB
    finds with the size and time of its last reading is not read again; one that was written in the five
    seconds before is. After two seconds a line on a terminal's or notebook's stderr says how many images
    are done; `progress=False` switches it off. Ctrl-C ends a query within a moment where `register`
    was called in the main thread (which sets `signal.set_wakeup_fd`, unless the program has). So does
    `con.interrupt()` from another thread: DuckDB's own waits for 2,048 rows, so `register` replaces the
    method by `clip_embed_duckdb.interrupt`, which also tells the functions.

    The default embedder is that of the model in CLIP_EMBED_MODEL, else of CLIP ViT-B/32. The
    functions belong to the database, so its other connections have them too; they are not
    saved in its file: a view that uses them says "Scalar Function with name clip_score does not
    exist" after the file is reopened, until `register` is called. Calling it again is cheap and
    replaces the embedder and `on_error`. A transaction that has already read the catalog sees
    the functions when it is over. Raises SpaceMismatch where the new embedder has another
    dimension and the connection that registered first is gone: only through it does DuckDB
    remove the old functions.

    `clip_search` is a TEMP macro and so belongs to `con` alone, and so do those through which `clip_sim` and
    `clip_score` have DuckDB itself compare stored vectors, on all its threads: register other connections
    and cursors of the database as well to have them there. Where `con` has an open result or an aborted
    transaction none can be made, and where you have a macro of such a name it is not: a warning then says
    what to do.
    Table and columns are constants (`?` does in `con.execute`); the query may be any expression.

    Limits. SQL sees only values: the dimension of stored vectors is checked, whether they come
    from the same model is not. `SELECT *` with ORDER BY and no LIMIT sorts the BLOBs too: keep
    photos in files, or select the columns you need. DuckDB may compute one expression twice and
    in any order: put cheap predicates into a subquery with the filter first. A table below
    122,880 rows runs on one thread of DuckDB, but images are decoded in parallel inside. Files
    are read through DuckDB with the `file_search_path` that `con` had when it was registered
    (unless it had an open result); URLs of any scheme are not read.
    """
    if on_error not in ("null", "raise"):
        raise ValueError(f"on_error must be 'null' or 'raise', not {on_error!r}")
    if not hasattr(con, "duplicate"):  # SQLAlchemy's connection is no DuckDBPyConnection, but acts as one
        raise TypeError(
            f"con must be a connection to DuckDB, not {type(con).__name__}: register(duckdb.connect())"
        )
    if embedder is None:
        embedder = default_embedder()
    elif not isinstance(embedder, ClipEmbedder):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise TypeError(
            f"embedder must be a ClipEmbedder, not {type(embedder).__name__}: "
            "register(con, ClipEmbedder('offline'))"
        )
    dim = embedder.dim
    _hear_interrupts()
    with _LOCK:
        slot = find_slot(con)
        if slot is None:
            _check_names(con)
        elif slot.dim != dim:
            if not _remove(slot):
                raise SpaceMismatch(
                    f"the functions in this database give FLOAT[{slot.dim}], this embedder {dim} dimensions, "
                    "and the connection that registered first, which could remove them, is gone: reopen the "
                    "database, or give an embedder of the same dimension"
                )
            slot = None
        if slot is None:
            slot = _create(con, dim)
        slot.state = State(embedder, on_error)
        slot.progress.enabled = progress
        slot.add(con)
        with suppress(duckdb.Error):  # an open result: it keeps what it had
            slot.search_path = con.sql("SELECT current_setting('file_search_path')").fetchall()[0][0]
    add_macros(con, dim)


def unregister(con: duckdb.DuckDBPyConnection) -> None:
    """Remove the functions from the database of a connection; nothing happens if it has none.

    DuckDB removes a function only through the connection that made it. Where the one that
    registered first is gone, the names stay, and calling them raises an error that says so.
    """
    with _LOCK:
        slot = find_slot(con)
        if slot is not None:
            _remove(slot)
            slot.state = None
            remove_macros(con)


def interrupt(con: duckdb.DuckDBPyConnection) -> None:
    """Stop what a connection is doing, from another thread, within a moment.

    DuckDB looks for an interrupt only between chunks of 2,048 rows, and does not tell the functions of it.
    This tells them: other queries of the database that use them at this moment end, too, and so do
    `materialize` and `follow`. After `register` `con.interrupt()` is this function.
    """
    stops = _STOPS.get(con)
    with suppress(duckdb.Error):  # a closed connection: DuckDB's own method says so
        if slot := find_slot(con):  # first, as it asks a copy of the connection, which is soon in use again
            stops = slot.stops
    _INTERRUPT(con)
    if stops is not None:
        stops.stop()


def stops_of(con: duckdb.DuckDBPyConnection) -> _interrupts.Stops:
    """Return what ends work on a connection outside of queries, where its database has no functions."""
    _hear_interrupts()
    return _STOPS.setdefault(con, _interrupts.Stops())


def _hear_interrupts() -> None:
    _interrupts.watch()
    cast("Any", duckdb.DuckDBPyConnection).interrupt = interrupt  # else the functions never hear of it


def find_slot(con: duckdb.DuckDBPyConnection) -> Slot | None:
    """Return the slot of the database's functions, if it has them."""
    with con.duplicate() as own:
        return next((_SLOTS[token] for token in find_tokens(own) if token in _SLOTS), None)


def _check_names(con: duckdb.DuckDBPyConnection) -> None:
    """Raise where the user's own functions would mix with ours: DuckDB would add an overload."""
    with con.duplicate() as own:
        if taken := own.execute(_TAKEN, [list(make_functions(Slot(1)))]).fetchall():
            raise ClipEmbedError(
                f"the database has a function or macro of its own called {taken[0][0]}: rename or remove it"
            )


def _create(con: duckdb.DuckDBPyConnection, dim: int) -> Slot:
    """Create the functions on a connection of their own: only it can remove them again.

    It lives as long as `con`, whose close() closes it too. An open result of `con` is not in its
    way, nor does a rollback take the functions away.
    """
    own = con.duplicate()
    slot = Slot(dim)
    _SLOTS[slot.token] = slot

    def marker() -> str:
        return slot.token

    create = cast("Any", own).create_function  # its stubs name types that others leave unknown
    for name, (function, returns) in make_functions(slot).items():
        slot.callables[name] = function
        create(name, function, None, returns, type=ARROW, null_handling=SPECIAL)
    slot.callables[slot.token] = marker
    create(slot.token, marker, [], "VARCHAR")
    slot.owner = weakref.ref(own)
    weakref.finalize(con, own.close)
    return slot


def _remove(slot: Slot) -> bool:
    """Remove the functions; False where the connection that could is gone.

    The last that was made goes first, so that the macros of other connections, which ask for that of the
    query before any other, always miss that one. DuckDB names it then; where a macro misses the function
    whose name it bears, DuckDB says instead that the macro "does not support the supplied arguments".
    """
    own = slot.owner()
    if own is None:
        return False
    try:
        for name in reversed(slot.callables):
            own.remove_function(name)
    except duckdb.Error:  # closed, but still referred to
        return False
    return True
