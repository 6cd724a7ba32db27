"""The interactive shell of `clip-embed sql`: what is typed, and a real terminal."""

from __future__ import annotations

import _thread
import io
import os
import re
import select
import signal
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

pytest.importorskip("prompt_toolkit", reason="needs the extra shell")

from PIL import Image
from prompt_toolkit.application import create_app_session
from prompt_toolkit.completion import CompleteEvent
from prompt_toolkit.document import Document
from prompt_toolkit.input import create_pipe_input
from prompt_toolkit.output import DummyOutput

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed._cli.answers import BoxWriter
from clip_embed._cli.page import PageWriter
from clip_embed._cli.shell import Shell, Words, is_complete
from clip_embed._cli.signals import plain_interrupts
from clip_embed._cli.sql import Runner
from clip_embed._types import Float32, UInt8
from clip_embed.cli import main
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

CTRL_C, CTRL_D, CTRL_R, ENTER, UP = "\x03", "\x04", "\x12", "\r", "\x1b[A"


@pytest.fixture
def con() -> Iterator[duckdb.DuckDBPyConnection]:
    """A database with the functions and one table, with names that need quotes."""
    con = duckdb.connect()
    register(con, ClipEmbedder(FakeModel()))
    con.execute('CREATE TABLE photos (file VARCHAR, "taken on" DATE)')
    con.execute("CREATE VIEW favourites AS FROM photos")
    yield con
    con.close()


def type_in(con: duckdb.DuckDBPyConnection, text: str) -> None:
    """Run a shell in which this is typed, then Ctrl-D."""

    def page(file: Path) -> PageWriter:
        return PageWriter(file, con, ImagePolicy(), latest=True)

    with create_pipe_input() as keys, create_app_session(input=keys, output=DummyOutput()):
        keys.send_text(text + CTRL_D)
        Shell(Runner(con, [BoxWriter(timed=True)]), "memory", page).run()


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_EMBED_CACHE", str(tmp_path / "cache"))


@pytest.mark.parametrize("leave", [CTRL_C, ENTER], ids=["Ctrl-C", "Enter"])
def test_a_search_that_finds_nothing(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str], leave: str
) -> None:
    """However Ctrl-R is left, the session goes on, without a traceback."""
    type_in(con, f"{CTRL_R}nothing{leave}{leave}SELECT 'last' || 2;{ENTER}")
    shown = capsys.readouterr()
    assert "last2" in shown.out
    assert "Unhandled" not in shown.out + shown.err


def test_a_statement_may_take_several_lines(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    """Enter goes on until a semicolon; an error is told and the next statement runs."""
    type_in(con, f"SELECT 6{ENTER}* 7 AS answer;{ENTER}SELEC;{ENTER}SELECT 'still here' AS it;{ENTER}")
    shown = capsys.readouterr()
    assert re.search(r"│ +42 │", shown.out)
    assert "still here" in shown.out
    assert "1 row, 0." in shown.out
    assert shown.err.startswith("Error: Parser Error")


def test_ctrl_c_drops_what_is_typed(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    """The half statement is gone, the session is not."""
    type_in(con, f"SELECT 'dropped'{ENTER}{CTRL_C}SELECT 'next' AS it;{ENTER}")
    shown = capsys.readouterr()
    assert "next" in shown.out
    assert "dropped" not in shown.out
    assert shown.err == ""


def test_the_commands(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """.tables, .schema, .html, .help and .quit do what .help says."""
    page = tmp_path / "page.html"
    typed = [
        ".tables",
        ".schema PHOTOS",
        f".html {page}",
        "SELECT 'on the page';",
        ".html",
        "SELECT 'not there';",
    ]
    type_in(con, ENTER.join([*typed, ".help", ".quit", "SELECT 'never';", ""]))
    shown = capsys.readouterr().out
    assert "favourites" in shown
    assert 'CREATE TABLE photos(file VARCHAR, "taken on" DATE);' in shown
    assert "CREATE VIEW" not in shown
    assert ".schema [NAME]" in shown
    assert "never" not in shown
    assert "on the page" in page.read_text()
    assert "not there" not in page.read_text()


def test_a_command_that_does_nothing_says_why(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    """A command that there is not, or the schema of a table that there is not, is an error that names it."""
    type_in(con, ENTER.join([".dump", ".schema nothing", ".quit", ""]))
    shown = capsys.readouterr()
    assert "there is no command .dump; .help lists" in shown.err
    assert "there is no table or view called nothing" in shown.err
    assert "A statement ends" not in shown.out


def test_a_page_that_cannot_be_written_does_not_end_the_session(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str]
) -> None:
    """The error is told, and the next statement runs."""
    type_in(con, f".html /no/such/folder/x.html{ENTER}SELECT 1;{ENTER}.html{ENTER}SELECT 'next';{ENTER}")
    shown = capsys.readouterr()
    assert "/no/such/folder is no folder to write to" in shown.err
    assert "next" in shown.out


def test_history_outlives_the_session(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """The arrow up brings back a statement of the session before; the file is the user's alone."""
    type_in(con, f"SELECT 'again';{ENTER}")
    assert capsys.readouterr().out.count("again") == 2
    type_in(con, f"{UP}{ENTER}")
    assert capsys.readouterr().out.count("again") == 2
    assert stat.S_IMODE((tmp_path / "cache" / "sql_history").stat().st_mode) == 0o600


def test_no_place_for_a_history(
    con: duckdb.DuckDBPyConnection, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """Where the cache folder cannot be written, the session goes on without."""
    (tmp_path / "cache").write_text("a file where the folder should be")
    type_in(con, f"SELECT 'fine';{ENTER}")
    assert "fine" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("SELECT fi", "file"),
        ("SELECT photos.tak", '"taken on"'),
        ("FROM pho", "photos"),
        ("FROM fav", "favourites"),
        ("SELECT clip_sc", "clip_score"),
        ("SELECT * FROM photos ord", "order"),
        ("SEL", "SELECT"),
        ("SELECT array_cos", "array_cosine_distance"),
    ],
)
def test_completion(typed: str, expected: str, con: duckdb.DuckDBPyConnection) -> None:
    """Columns, tables, views, functions and keywords; keywords follow the case of what is typed."""
    assert expected in complete(Words(con), typed)


OLD = pytest.mark.skipif(
    duckdb.__version__.startswith("1."), reason="DuckDB 1 does not tell an open string or a comment"
)


@pytest.mark.parametrize(
    "typed",
    [
        pytest.param("SELECT 'fi", marks=OLD),
        pytest.param("-- fi", marks=OLD),
        "SELECT ",
        "SELECT 1;",
        "photos.sel",
    ],
)
def test_no_completion_where_it_would_disturb(typed: str, con: duckdb.DuckDBPyConnection) -> None:
    """Nothing in strings, in comments, after a blank; only columns after the dot of a table."""
    assert complete(Words(con), typed) == []


def complete(words: Words, typed: str) -> list[str]:
    """Return what a typed text may become."""
    return [each.text for each in words.get_completions(Document(typed), CompleteEvent())]


def test_completion_sees_what_was_just_made(con: duckdb.DuckDBPyConnection) -> None:
    """A temporary table of the statement before completes at the next prompt; our functions come first."""
    words = Words(con)
    assert complete(words, "SELECT fivef") == []
    con.execute("CREATE TEMP TABLE brandnew AS SELECT 5 AS fivefold")
    words.refresh()
    assert complete(words, "SELECT fivef") == ["fivefold"]
    assert complete(words, "FROM brand") == ["brandnew"]
    assert complete(words, "SELECT c")[0].startswith("clip_")


def test_completion_in_a_failed_transaction(con: duckdb.DuckDBPyConnection) -> None:
    """Where the database answers nothing, completion is quiet."""
    con.execute("BEGIN")
    with pytest.raises(duckdb.Error):
        con.execute("SELECT error('boom')")
    assert complete(Words(con), "SELECT fi") == []


@pytest.mark.parametrize(
    ("text", "ended"),
    [
        ("SELECT 1;", True),
        ("SELECT 1; -- yes", True),
        ("SELECT ';'", False),
        ("SELECT 1; SELECT", False),
        ("SELECT $$;", False),
        ("-- nothing", True),
        (".tables", True),
        ("", True),
    ],
)
def test_enter_knows_the_end_of_a_statement(text: str, ended: bool) -> None:
    """A semicolon within a string or a comment ends nothing."""
    assert is_complete(text) is ended


def test_a_missing_library_names_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    """On a terminal without prompt_toolkit: one line with what to install; -c works all the same."""
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")
    monkeypatch.delitem(sys.modules, "clip_embed._cli.shell")
    monkeypatch.setitem(sys.modules, "prompt_toolkit", None)
    monkeypatch.setattr("clip_embed._cli.session._is_terminal", lambda: True)
    result = CliRunner().invoke(main, ["sql"])
    assert result.exit_code == 1
    assert "pip install 'clip-embed[shell]'" in result.stderr
    assert CliRunner().invoke(main, ["sql", "-c", "SELECT 1"]).exit_code == 0


def test_ctrl_c_reaches_the_functions(con: duckdb.DuckDBPyConnection) -> None:
    """A query stops between two small batches of images, not after DuckDB's 2,048; the next one runs."""

    class Slow(FakeModel):
        def embed_images(self, pixels: UInt8, /) -> Float32:
            begun.set()
            time.sleep(0.05)
            return super().embed_images(pixels)

    begun = threading.Event()
    slow = Slow()
    register(con, ClipEmbedder(slow, batch_size=1, workers=1))
    images = [(png(number),) for number in range(300)]
    con.execute("CREATE TABLE blobs (img BLOB)")
    con.executemany("INSERT INTO blobs VALUES (?)", images)
    runner = Runner(con, [])

    def press() -> None:
        begun.wait()
        _thread.interrupt_main()

    threading.Thread(target=press).start()
    with plain_interrupts(), pytest.raises(KeyboardInterrupt):
        runner.run("SELECT avg(clip_score(img, 'red')) FROM blobs")
    assert 0 < sum(slow.calls[0]) < 100
    assert runner.run("SELECT avg(clip_score(img, 'red')) FROM (FROM blobs LIMIT 1)")


def png(number: int) -> bytes:
    """Return a small image unlike those of other numbers."""
    out = io.BytesIO()
    Image.new("RGB", (8, 8), (number % 256, number // 256, 0)).save(out, "PNG")
    return out.getvalue()


class Terminal:
    """A program on a pseudo-terminal."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self._shown = ""

    def type(self, text: str) -> None:
        """Press these keys."""
        os.write(self._master, text.encode())

    def wait_for(self, text: str, seconds: float = 60) -> str:
        """Return what was shown up to a text, which must come."""
        end = time.monotonic() + seconds
        while text not in self._shown:
            ready, _, _ = select.select([self._master], [], [], max(0, end - time.monotonic()))
            if not ready:
                pytest.fail(f"{text!r} did not come: {self._shown!r}")
            try:
                self._shown += os.read(self._master, 4096).decode("utf-8", "replace")
            except OSError:  # the program has ended
                pytest.fail(f"{text!r} did not come: {self._shown!r}")
        shown, _, self._shown = self._shown.partition(text)
        return shown


@contextmanager
def terminal(*arguments: str) -> Iterator[Terminal]:
    """Start `clip-embed sql` on a terminal of its own."""
    pty = pytest.importorskip("pty", reason="needs pseudo-terminals")
    master, slave = pty.openpty()
    program = (
        "import fcntl, termios, signal; fcntl.ioctl(0, termios.TIOCSCTTY, 0); "
        "signal.signal(signal.SIGINT, signal.default_int_handler); "
        "from clip_embed.cli import run; run()"
    )
    process = subprocess.Popen(  # noqa: S603
        [sys.executable, "-c", program, "sql", "--model", "offline", *arguments],
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
        env={**os.environ, "TERM": "xterm", "PROMPT_TOOLKIT_NO_CPR": "1"},
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        process.kill()
        process.wait()
        os.close(master)


def test_on_a_terminal() -> None:
    """Ctrl-R brings a statement back; Ctrl-C stops a query that would take hours; Ctrl-D ends with code 0."""
    with terminal() as shell:
        shell.wait_for("memory>")
        shell.type("SELECT 'ready' || 1;\r")
        shell.wait_for("ready1")
        shell.wait_for("memory>")
        shell.type(CTRL_R)
        shell.wait_for("search")
        shell.type(f"ready{ENTER}{ENTER}")
        shell.wait_for("ready1")
        shell.type("SELECT 'begun'; SELECT count(*) FROM range(1000000000000) WHERE range % 3 = 7;\r")
        shell.wait_for("│ begun")
        time.sleep(0.3)
        shell.type(CTRL_C)
        shell.wait_for("Interrupted.", 20)
        shell.type("SELECT 'still ' || 'here';\r")
        shell.wait_for("still here")
        shell.wait_for("memory>")
        shell.type(CTRL_D)
        assert shell.process.wait(30) == 0


def test_sigterm_ends_the_prompt() -> None:
    """A terminated session leaves with the exit code of a signal, not with a traceback."""
    with terminal() as shell:
        shell.wait_for("memory>")
        shell.process.send_signal(signal.SIGTERM)
        assert "Traceback" not in shell.wait_for("terminated", 20)
        assert shell.process.wait(30) == 143
