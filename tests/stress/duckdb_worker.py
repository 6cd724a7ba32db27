"""One run against DuckDB: threads that query, stop each other's queries, register and lose connections.

    python -X faulthandler tests/stress/duckdb_worker.py 17        # the same seed, the same choices

The last line of the output is a tally in JSON. A wrong value is listed in it, a crash or a hang is
that of the process.
"""

from __future__ import annotations

import collections
import faulthandler
import gc
import io
import json
import random
import sys
import tempfile
import threading
import time
import warnings
from pathlib import Path

import duckdb
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel
from clip_embed_duckdb import interrupt, materialize, register, unregister

THREADS, QUERIES, IMAGES = 8, 50, 40
TEXTS = ("red", "a green tree", "blue", "orange")
# What an interrupted or unlucky query may say; anything else is a finding.
_EXPECTED = (
    "interrupted",
    "Interrupted",
    "INTERRUPT",
    "KeyboardInterrupt",
    "was unregistered in this database",
    "call clip_embed_duckdb.register(con) again",
    "Function with name clip_",  # … does not exist: unregistered by another thread
    "Function with name _clip_query",
    "Conflict on update",
    "write-write conflict",
    "Transaction conflict",
    "Catalog write-write conflict",
    "another transaction",
)


class Run:
    """A database that eight threads use, what each query must give, and the tally."""

    def __init__(self, seed: int, folder: Path) -> None:
        self.seed = seed
        self.tally: collections.Counter[str] = collections.Counter()
        self.findings: list[str] = []
        self.lock = threading.Lock()
        self.clips = [
            ClipEmbedder(FakeModel(), batch_size=4, workers=2, cache=cache) for cache in (None, "memory")
        ]
        self.con = duckdb.connect(str(folder / "stress.db"))
        self.busy: dict[int, duckdb.DuckDBPyConnection] = {}
        self._fill(folder)

    def _fill(self, folder: Path) -> None:
        register(self.con, self.clips[1], progress=False)
        self.con.execute("CREATE TABLE photos (id INT, img BLOB, path VARCHAR, emb FLOAT[16])")
        images: list[bytes] = []
        for number in range(IMAGES):
            out = io.BytesIO()
            Image.new("RGB", (16, 16), (number * 6, 255 - number * 5, number * 37 % 256)).save(out, "PNG")
            images.append(out.getvalue())
            path = folder / f"{number}.png"
            path.write_bytes(images[-1])
            self.con.execute("INSERT INTO photos VALUES (?, ?, ?, NULL)", [number, images[-1], str(path)])
        self.con.execute("INSERT INTO photos VALUES (99, 'broken'::BLOB, '/nowhere.png', NULL)")
        self.con.execute("UPDATE photos SET emb = clip_image(img)")
        scores = self.clips[0].scores(images, TEXTS)
        self.scores = {text: dict(enumerate(scores[:, n].tolist())) for n, text in enumerate(TEXTS)}

    def work(self, number: int) -> None:
        """Run one thread's share."""
        rng = random.Random(self.seed * 100 + number)  # noqa: S311 - choices, no secrets
        con = self.con.cursor()
        for step in range(QUERIES):
            with self.lock:
                self.busy[number] = con
            action = rng.choices(
                (
                    self.scores_of,
                    self.search,
                    self.stop_another,
                    self.register_again,
                    self.lose,
                    self.fill_column,
                ),
                (40, 20, 15, 10, 10, 5),
            )[0]
            try:
                con = action(con, rng, number) or con
                self.count(action.__name__)
            except (duckdb.Error, RuntimeError, KeyboardInterrupt) as error:
                if not any(known in str(error) or known in type(error).__name__ for known in _EXPECTED):
                    self.find(
                        f"thread {number}, step {step}, {action.__name__}: {type(error).__name__}: {error}"
                    )
                self.count("stopped")
        self.close(con, number)

    def scores_of(self, con: duckdb.DuckDBPyConnection, rng: random.Random, _: int) -> None:
        """Score all images by one text and compare with the embedder's own scores."""
        text, column = (
            rng.choice(TEXTS),
            rng.choice(("img", "path", "emb", "{'path': path, 'bytes': NULL::BLOB}")),
        )
        query = f"SELECT id, clip_score({column}, ?), (clip_sim({column}, ?)).score FROM photos"
        self.compare(con.execute(query, [text, text]).fetchall(), text, column)

    def search(self, con: duckdb.DuckDBPyConnection, rng: random.Random, _: int) -> None:
        """Search, and compare scores and order."""
        text, column = rng.choice(TEXTS), rng.choice(("img", "path", "emb"))
        if rng.random() < 0.5:
            register(con, rng.choice(self.clips), progress=False)
        rows = con.execute(
            "SELECT id, score, score FROM clip_search('photos', ?, ?, k := 100)", [column, text]
        ).fetchall()
        self.compare([*rows, (99, None, None)], text, f"clip_search in {column}")
        if [row[1] for row in rows] != sorted((row[1] for row in rows), reverse=True):
            self.find("clip_search: not the best first")

    def stop_another(self, _: duckdb.DuckDBPyConnection, rng: random.Random, number: int) -> None:
        """Interrupt the query of another thread."""
        with self.lock:
            others = [con for thread, con in self.busy.items() if thread != number]
            if others:  # under the lock: its thread may close it as soon as it is not busy
                rng.choice((interrupt, duckdb.DuckDBPyConnection.interrupt))(rng.choice(others))

    def register_again(self, con: duckdb.DuckDBPyConnection, rng: random.Random, _: int) -> None:
        """Register with another embedder, now and then after taking the functions away."""
        if rng.random() < 0.2:
            unregister(con)
        register(con, rng.choice(self.clips), progress=False)

    def lose(
        self, con: duckdb.DuckDBPyConnection, rng: random.Random, number: int
    ) -> duckdb.DuckDBPyConnection:
        """Leave a connection, closed or in the middle of a result, for another one."""
        own = con.cursor()
        register(own, rng.choice(self.clips), progress=False)
        own.execute("SELECT id, clip_score(img, 'red') FROM photos").fetchone()
        if rng.random() < 0.5:
            self.close_once_free(own)
        del own
        gc.collect()
        new = self.con.cursor()
        self.close(con, number)
        return new

    def close(self, con: duckdb.DuckDBPyConnection, number: int) -> None:
        """Close a thread's connection."""
        with self.lock:
            self.busy.pop(number, None)
        self.close_once_free(con)

    def close_once_free(self, con: duckdb.DuckDBPyConnection) -> None:
        """Close a connection, which DuckDB refuses while another query reads files through it."""
        while True:
            try:
                con.close()
            except duckdb.Error as error:
                if type(error).__name__ != "ResourceInUseException":
                    raise
                self.count("closed later")
                time.sleep(0.001)
            else:
                return

    def fill_column(self, con: duckdb.DuckDBPyConnection, rng: random.Random, number: int) -> None:
        """Keep vectors in a table of one's own."""
        table = f"own_{number}_{rng.randrange(10**9)}"
        con.execute(f"CREATE TABLE {table} AS SELECT id, path FROM photos")
        materialize(con, table, "path", embedder=rng.choice(self.clips), progress=False)
        text = rng.choice(TEXTS)
        query = f"SELECT id, clip_score(emb, ?), clip_score(emb, ?) FROM {table}"
        self.compare(con.execute(query, [text, text]).fetchall(), text, "a column")
        con.execute(f"DROP TABLE {table}")

    def compare(self, rows: list[tuple[int, float | None, float | None]], text: str, where: str) -> None:
        """Note each value that is not the embedder's own."""
        if len(rows) != IMAGES + 1:
            self.find(f"{len(rows)} rows")
        for key, *values in rows:
            expected = self.scores[text].get(key)
            for value in values:
                if (value is None) != (expected is None) or (
                    value is not None and expected is not None and abs(value - expected) > 1e-5
                ):
                    self.find(f"{where}, {text}: image {key} has {value} instead of {expected}")
        self.count("compared", len(rows))

    def count(self, what: str, number: int = 1) -> None:
        """Add to the tally."""
        with self.lock:
            self.tally[what] += number

    def find(self, finding: str) -> None:
        """Note what must not be."""
        with self.lock:
            self.findings.append(finding)


def main(seed: int) -> None:
    """Run all threads and print the tally."""
    faulthandler.enable()
    warnings.filterwarnings("ignore", "clip_search was not added", UserWarning)
    faulthandler.dump_traceback_later(240, exit=True)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = Run(seed, Path(folder))
        threading.excepthook = lambda args: run.find(
            f"a thread ended by {args.exc_type.__name__}: {args.exc_value}"
        )
        threads = [threading.Thread(target=run.work, args=(number,)) for number in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        register(run.con, run.clips[1], progress=False)
        run.scores_of(run.con, random.Random(seed), 0)  # noqa: S311 - the database still answers
        run.con.close()
        duckdb.connect(str(Path(folder) / "stress.db"), read_only=True).close()  # nothing keeps it locked
    faulthandler.cancel_dump_traceback_later()
    seconds = round(time.perf_counter() - began, 1)
    print(json.dumps({"seed": seed, "seconds": seconds, **run.tally, "findings": run.findings[:20]}))


if __name__ == "__main__":
    main(int(sys.argv[1]) if len(sys.argv) > 1 else 0)
