"""A long query ends where it is interrupted, in the middle of a chunk, and leaves all usable."""

from __future__ import annotations

import io
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from pathlib import Path
from typing import Any

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedder
from clip_embed._types import Float32, UInt8
from clip_embed.testing import FakeModel
from clip_embed_duckdb import Materialized, follow, interrupt, materialize, register
from clip_embed_duckdb._chunks import rare_checkpoints, transaction
from clip_embed_duckdb._slot import Slot

ALL = 120
needs_triggers = pytest.mark.skipif(duckdb.__version__ < "2", reason="DuckDB before 2.0 has no triggers")


class Held(FakeModel):
    """A model that waits after so many images until it is let go, and then takes its time."""

    def __init__(self, after: int = 8) -> None:
        super().__init__()
        self._after = after
        self.reached, self.go_on = threading.Event(), threading.Event()

    def embed_images(self, pixels: UInt8, /) -> Float32:
        """Embed, with a pause."""
        if self.images >= self._after:
            self.reached.set()
            assert self.go_on.wait(60)
            time.sleep(0.01)
        return super().embed_images(pixels)

    @property
    def images(self) -> int:
        """How many images it has seen."""
        return sum(self.calls[0])


def picture(number: int) -> bytes:
    """Return a PNG unlike that of any other number."""
    out = io.BytesIO()
    Image.new("RGB", (9, 9), (number % 256, number // 256, 7)).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def model() -> Iterator[Held]:
    """A held model, which is let go at the end."""
    model = Held()
    yield model
    model.go_on.set()


@pytest.fixture(params=[1, 2, 4], ids=lambda threads: f"{threads} threads")
def con(request: pytest.FixtureRequest, model: Held) -> Iterator[duckdb.DuckDBPyConnection]:
    """Table photos with ALL images, functions of the held model, in batches of 4."""
    with duckdb.connect(config={"threads": request.param}) as con:
        con.execute("CREATE TABLE photos AS SELECT unnest(?::BLOB[]) AS img", [[*map(picture, range(ALL))]])
        register(con, ClipEmbedder(model, batch_size=4, workers=2))
        yield con


def in_thread(work: Callable[[], object]) -> threading.Thread:
    """Run something in a thread of its own."""
    thread = threading.Thread(target=work)
    thread.start()
    return thread


QUERY = "SELECT sum(clip_score(img, 'red')) FROM photos"


@pytest.mark.parametrize("how", [interrupt, lambda con: con.interrupt()], ids=["ours", "DuckDB's"])
def test_interrupt_from_another_thread(
    con: duckdb.DuckDBPyConnection, model: Held, how: Callable[[duckdb.DuckDBPyConnection], None]
) -> None:
    """Either ends a query while the model holds its third batch; the connection stays usable."""

    def stop() -> None:
        assert model.reached.wait(60)
        how(con)

    other = in_thread(stop)
    with pytest.raises((duckdb.InterruptException, duckdb.InvalidInputException), match=r"(?i)interrupt"):
        con.execute(QUERY)
    assert not model.go_on.is_set()  # so the query did not wait for the model
    other.join()
    assert con.execute("SELECT count(*) FROM photos").fetchall() == [(ALL,)]
    model.go_on.set()
    assert con.execute(QUERY).fetchall()[0][0] is not None
    assert model.images < ALL + 50  # what was done before the interrupt is not done again


def fill(con: duckdb.DuckDBPyConnection, clip: ClipEmbedder) -> Materialized:
    """Embed a table outside of a query; its database need not have the functions."""
    return materialize(con, "photos", "img", embedder=clip, progress=False)


def keep(con: duckdb.DuckDBPyConnection, clip: ClipEmbedder) -> Materialized:
    """The same in a table beside it, which needs them."""
    register(con, clip, progress=False)
    return follow(con, "photos", "img", key="id", progress=False)


@pytest.mark.parametrize("how", [interrupt, lambda con: con.interrupt()], ids=["ours", "DuckDB's"])
@pytest.mark.parametrize("work", [fill, pytest.param(keep, marks=needs_triggers)])
def test_interrupt_of_what_runs_outside_of_a_query(
    work: Callable[[duckdb.DuckDBPyConnection, ClipEmbedder], Materialized],
    how: Callable[[duckdb.DuckDBPyConnection], None],
) -> None:
    """`materialize` and `follow` end as a query does; what is committed stays, and the next call goes on."""
    model = Held(after=40)  # so in the second chunk
    clip = ClipEmbedder(model, batch_size=8, cache=None)

    def stop() -> None:
        assert model.reached.wait(60)
        how(con)

    with duckdb.connect() as con:
        con.execute(
            "CREATE TABLE photos AS SELECT unnest(?::BLOB[]) AS img, unnest(range(?)) AS id",
            [[*map(picture, range(ALL))], ALL],
        )
        other = in_thread(stop)
        with pytest.raises(duckdb.InterruptException, match="the next call goes on"):
            work(con, clip)
        assert not model.go_on.is_set()
        other.join()
        model.go_on.set()
        again = work(con, clip)
        assert again.done + again.skipped == ALL
        assert again.skipped == 32


def test_interrupt_reaches_the_queries_beside(con: duckdb.DuckDBPyConnection, model: Held) -> None:
    """A query of another connection that uses the functions ends too, and no later one."""
    cursor, errors = con.cursor(), list[str]()

    def run() -> None:
        try:
            cursor.execute(QUERY).fetchall()
        except duckdb.Error as error:
            errors.append(str(error))

    beside = in_thread(run)
    assert model.reached.wait(60)
    interrupt(con)
    beside.join(60)
    assert len(errors) == 1
    model.go_on.set()
    run()
    assert len(errors) == 1


def test_a_call_that_begins_after_an_interrupt_goes_on() -> None:
    """Where calls overlap without a pause, an interrupt ends those that run, and no later one."""
    slot = Slot(16)
    with slot.running() as first:
        slot.stops.stop()
        with slot.running() as second:
            second()
            with pytest.raises(KeyboardInterrupt, match="was interrupted"):
                first()
            second()


def test_interrupt_without_a_query(con: duckdb.DuckDBPyConnection, model: Held) -> None:
    """Where nothing runs, and where nothing is registered, it changes nothing for what comes."""
    interrupt(con)
    model.go_on.set()
    assert con.execute(QUERY).fetchall()[0][0] is not None
    with duckdb.connect() as other:
        interrupt(other)
        assert other.execute("SELECT 1").fetchall() == [(1,)]


class Unlucky:
    """A connection of which each method is interrupted the first time, before or after its work.

    `sql`, which only asks, is not.
    """

    def __init__(self, con: duckdb.DuckDBPyConnection, *, done: bool) -> None:
        self._con, self._done = con, done
        self._met = {"sql"}

    def __getattr__(self, name: str) -> Callable[..., object]:
        def call(*args: object, **named: object) -> object:
            first = name not in self._met
            self._met.add(name)
            if first and not self._done:
                raise duckdb.InterruptException("Interrupted!")
            result = getattr(self._con, name)(*args, **named)
            if first and name in ("begin", "execute"):  # what else is done is over
                raise duckdb.InterruptException("Interrupted!")
            return result

        return call


@pytest.mark.parametrize("done", [False, True])
def test_an_interrupt_of_what_cleans_up(done: bool) -> None:
    """No transaction stays open, whether BEGIN was interrupted before or after its work, or ROLLBACK."""
    with duckdb.connect() as con:
        unlucky: Any = Unlucky(con, done=done)
        with pytest.raises(duckdb.InterruptException), transaction(unlucky):
            raise AssertionError
        with pytest.raises(duckdb.ConversionException), transaction(unlucky):
            con.execute("CREATE TABLE lost AS SELECT 'x'::INT AS i")
        con.begin()
        con.commit()
        assert con.execute("FROM duckdb_tables()").fetchall() == []


@pytest.mark.parametrize("done", [False, True])
def test_an_interrupt_of_a_setting(done: bool) -> None:
    """It is not lost, and the setting is as before, whether SET was interrupted before or after its work."""
    kept = "SELECT current_setting('checkpoint_threshold')"
    with duckdb.connect() as con:
        unlucky: Any = Unlucky(con, done=done)
        before = con.execute(kept).fetchall()
        with pytest.raises(duckdb.InterruptException), rare_checkpoints(unlucky):
            raise AssertionError
        assert con.execute(kept).fetchall() == before
        with rare_checkpoints(unlucky):
            assert con.execute(kept).fetchall() != before
        assert con.execute(kept).fetchall() == before


def test_calls_at_once_leave_the_setting_as_it_was() -> None:
    """One that begins while another runs takes its value for no one's wish, whichever ends first."""
    kept = "SELECT current_setting('checkpoint_threshold')"
    with duckdb.connect() as con, con.cursor() as other:
        before = con.execute(kept).fetchall()
        first, second = ExitStack(), ExitStack()
        first.enter_context(rare_checkpoints(con))
        second.enter_context(rare_checkpoints(other))
        assert con.execute(kept).fetchall() != before
        first.close()
        second.close()
        assert con.execute(kept).fetchall() == before


def test_interrupts_without_a_pause(tmp_path: Path) -> None:
    """They meet what cleans up as well, and still leave no transaction open, no view and no setting."""
    path = tmp_path / "a.png"
    path.write_bytes(picture(1))
    over = threading.Event()
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()), progress=False)
        con.execute("CREATE TABLE t AS SELECT ? AS img FROM range(300)", [str(path)])
        kept = "SELECT current_setting('checkpoint_threshold')"
        views = "SELECT count(*) FROM duckdb_views() WHERE view_name LIKE '_clip_embed%'"
        before = con.execute(kept).fetchall()

        def insist() -> None:
            while not over.wait(0.0002):
                con.interrupt()

        for number in range(10):
            over.clear()
            thread = threading.Timer(number * 0.02, insist)
            thread.start()
            with suppress(duckdb.Error, KeyboardInterrupt):
                materialize(con, "t", "img", into=f"v{number}", progress=False)
            over.set()
            thread.join()
            assert con.execute("SELECT count(*) FROM t").fetchall() == [(300,)]
            assert con.execute(kept).fetchall() == before
            assert con.execute(views).fetchall() == [(0,)]


def test_an_error_ends_only_its_own_call(con: duckdb.DuckDBPyConnection, model: Held) -> None:
    """A forbidden file in one query disturbs no query that shares the stream with it."""
    model.go_on.set()
    results: list[object] = []
    beside = in_thread(lambda: results.append(con.cursor().execute(QUERY).fetchall()))
    con.execute("SET enable_external_access = false")
    for _ in range(5):
        with pytest.raises(duckdb.InvalidInputException, match="PermissionException"):
            con.execute("SELECT clip_score('/etc/hostname', 'x')").fetchall()
    beside.join()
    assert len(results) == 1


def test_a_model_that_fails_on_one_query(con: duckdb.DuckDBPyConnection) -> None:
    """What a model raises for the images of one query reaches that query alone."""

    class Picky(FakeModel):
        def embed_images(self, pixels: UInt8, /) -> Float32:
            time.sleep(0.01)
            if (pixels.reshape(len(pixels), -1, 3).max(axis=1) == (255, 255, 255)).all(axis=1).any():
                raise ArithmeticError("I do not like white")
            return super().embed_images(pixels)

    out = io.BytesIO()
    Image.new("RGB", (9, 9), "white").save(out, "PNG")
    results: list[object] = []
    register(con, ClipEmbedder(Picky(), batch_size=4, workers=2))
    beside = in_thread(lambda: results.append(con.cursor().execute(QUERY).fetchall()))
    for _ in range(3):
        with pytest.raises(duckdb.InvalidInputException, match="I do not like white"):
            con.cursor().execute("SELECT clip_score(?::BLOB, 'x')", [out.getvalue()]).fetchall()
    beside.join()
    assert len(results) == 1


_CTRL_C = """
import os, signal, sys, threading, duckdb
sys.path.insert(0, sys.argv[1])
from test_duckdb_interrupts import ALL, QUERY, Held, picture, in_thread
from clip_embed import ClipEmbedder
from clip_embed_duckdb import register
signal.signal(signal.SIGINT, signal.default_int_handler)
model = Held()
con = duckdb.connect(config={"threads": int(sys.argv[2])})
con.execute("CREATE TABLE photos AS SELECT unnest(?::BLOB[]) AS img", [[*map(picture, range(ALL))]])
register(con, ClipEmbedder(model, batch_size=4, workers=2))
in_thread(lambda: model.reached.wait(60) and os.kill(os.getpid(), signal.SIGINT))
try:
    con.execute(QUERY)
except (KeyboardInterrupt, RuntimeError, duckdb.Error) as error:
    print("held" if not model.go_on.is_set() else "too late")
model.go_on.set()
print(con.execute(QUERY).fetchall()[0][0] is not None, model.images < ALL + 50)
"""


@pytest.mark.skipif(sys.platform == "win32", reason="os.kill ends the process there")
@pytest.mark.parametrize("threads", [1, 2, 4])
def test_ctrl_c(threads: int) -> None:
    """Ctrl-C ends the query while the model holds a batch, whichever thread DuckDB runs the function in.

    The next query works, the process ends in order, and nothing is said at its end.
    """
    command = [sys.executable, "-c", _CTRL_C, str(Path(__file__).parent), str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)  # noqa: S603
    assert (done.returncode, done.stdout, done.stderr) == (0, "held\nTrue True\n", "")


def test_the_programs_own_signal_descriptor_is_left_alone() -> None:
    """Where a program has set a descriptor for signals, register leaves it; asyncio works after register."""
    script = (
        "import asyncio, os, signal, socket, duckdb\n"
        "from clip_embed import ClipEmbedder\n"
        "from clip_embed.testing import FakeModel\n"
        "from clip_embed_duckdb import register\n"
        "a, b = socket.socketpair()\n"
        "b.setblocking(False)\n"
        "signal.set_wakeup_fd(b.fileno())\n"
        "with duckdb.connect() as con:\n"
        "    register(con, ClipEmbedder(FakeModel()))\n"
        "assert signal.set_wakeup_fd(-1) == b.fileno()\n"
        "with duckdb.connect() as con:\n"
        "    register(con, ClipEmbedder(FakeModel()))\n"
        "a.close(), b.close()\n"
        "async def main():\n"
        "    loop, told = asyncio.get_running_loop(), asyncio.Event()\n"
        "    loop.add_signal_handler(signal.SIGINT, told.set)\n"
        "    os.kill(os.getpid(), signal.SIGINT)\n"
        "    await asyncio.wait_for(told.wait(), 30)\n"
        "    print('told')\n"
        "if os.name == 'posix': asyncio.run(main())\n"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-W", "error", "-c", script],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, "told\n", "")


def test_interrupt_of_other_connections() -> None:
    """Without the functions it works as before, and a closed connection says that it is closed."""
    register(duckdb.connect(), ClipEmbedder(FakeModel()))
    plain = duckdb.connect()
    plain.interrupt()
    assert plain.execute("SELECT 1").fetchall() == [(1,)]
    plain.close()
    with pytest.raises(duckdb.ConnectionException):
        plain.interrupt()
