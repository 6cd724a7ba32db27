"""Files are read under DuckDB's own rules: what it forbids, no function reads."""

from __future__ import annotations

import io
import os
import re
import socket
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImagePolicy
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

DENIED = "PermissionException: .*disabled by configuration"


def write(path: Path, colour: str) -> Path:
    """Write an image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", (20, 20), colour).save(out, "PNG")
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(out.getvalue())
    return path


def opened(**settings: object) -> duckdb.DuckDBPyConnection:
    """Return a connection with these settings and the functions."""
    con = duckdb.connect()
    for name, value in settings.items():
        con.execute(f"SET {name} = {value}")
    register(con, ClipEmbedder(FakeModel()))
    return con


@pytest.fixture
def caged(tmp_path: Path) -> Iterator[duckdb.DuckDBPyConnection]:
    """A connection that may read tmp_path/in only; in/a.png is red, tmp_path/secret.png blue."""
    write(tmp_path / "in" / "a.png", "red")
    write(tmp_path / "secret.png", "blue")
    with opened(allowed_directories=[str(tmp_path / "in")], enable_external_access=False) as con:
        yield con


def score(con: duckdb.DuckDBPyConnection, path: Path | str, text: str = "red") -> float | None:
    """Return the score of one path."""
    row = con.execute("SELECT clip_score(?, ?)", [str(path), text]).fetchone()
    assert row is not None
    return None if row[0] is None else float(row[0])


@pytest.mark.parametrize("on_error", ["null", "raise"])
@pytest.mark.parametrize(
    "expression",
    [
        "clip_score(p, 'x')",
        "clip_sim(p, 'x')",
        "clip_image({'path': p})",
        "clip_label(p, ['x', 'y'])",
        "clip_labels(p, ['x', 'y'])",
        "clip_error(p)",
        "clip_score(clip_text('x'), clip_image(p))",
    ],
)
def test_no_external_access(tmp_path: Path, expression: str, on_error: Literal["null", "raise"]) -> None:
    """Without external access every function raises for a path, and does not tell what exists."""
    there, missing = write(tmp_path / "a.png", "red"), tmp_path / "missing.png"
    with duckdb.connect(config={"enable_external_access": False}) as con:
        register(con, ClipEmbedder(FakeModel()), on_error=on_error)
        for path in (there, missing):
            with pytest.raises(duckdb.InvalidInputException, match=DENIED):
                con.execute(f"SELECT {expression} FROM (SELECT ? p)", [str(path)]).fetchall()
        blob = there.read_bytes()
        assert con.execute("SELECT clip_score(?::BLOB, 'red') IS NOT NULL", [blob]).fetchall() == [(True,)]


def test_the_plainest_query_is_refused() -> None:
    """A file that everybody has, and the settings that everybody knows."""
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("SET enable_external_access=false")
        with pytest.raises(duckdb.InvalidInputException, match=DENIED):
            con.execute("SELECT clip_score('/etc/hostname', 'x')").fetchall()


def test_disabled_filesystems(tmp_path: Path) -> None:
    """Where the local file system is switched off, no path is read and nothing told about it."""
    path = write(tmp_path / "a.png", "red")
    with opened(disabled_filesystems="'LocalFileSystem'") as con:
        for name in (path, tmp_path / "missing.png"):
            with pytest.raises(duckdb.InvalidInputException, match=r"PermissionException: .*LocalFileSystem"):
                con.execute("SELECT clip_error(?)", [str(name)]).fetchall()


def test_allowed_directories(caged: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Files below an allowed folder are read, others raise, also where both are in one chunk."""
    inside, outside = tmp_path / "in" / "a.png", tmp_path / "secret.png"
    assert score(caged, inside) is not None
    assert score(caged, tmp_path / "in" / "missing.png") is None
    with pytest.raises(duckdb.InvalidInputException, match=DENIED):
        score(caged, outside)
    with pytest.raises(duckdb.InvalidInputException, match=DENIED):
        caged.execute("SELECT clip_error(unnest(?))", [[str(inside), str(outside)]]).fetchall()


def test_dots_do_not_lead_out(caged: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """`..` is resolved before the rule is applied, with and without wildcards in the name."""
    write(tmp_path / "b[1].png", "blue")
    for name in ("secret.png", "b[1].png", "*.png"):
        with pytest.raises(duckdb.InvalidInputException, match=DENIED):
            score(caged, f"{tmp_path}/in/../{name}")


@pytest.mark.parametrize("name", ["link.png", "link[1].png"])
def test_symbolic_links_do_not_lead_out(caged: duckdb.DuckDBPyConnection, tmp_path: Path, name: str) -> None:
    """A link inside an allowed folder to a file outside is refused."""
    (tmp_path / "in" / name).symlink_to(tmp_path / "secret.png")
    with pytest.raises(duckdb.InvalidInputException, match=DENIED):
        score(caged, tmp_path / "in" / name)


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.parametrize("name", ["pipe.png", "p[1].png", "in/link.png", "in/../pipe.png"])
def test_what_a_forbidden_file_is_stays_unknown(
    caged: duckdb.DuckDBPyConnection, tmp_path: Path, name: str
) -> None:
    """A pipe outside, also behind a link, is refused like any file: not even its kind is told."""
    for pipe in ("pipe.png", "p[1].png", "in/own.png"):
        os.mkfifo(tmp_path / pipe)
    (tmp_path / "in" / "link.png").symlink_to(tmp_path / "pipe.png")
    messages: set[str] = set()
    for kind in (name, "secret.png", "missing.png"):
        with pytest.raises(duckdb.InvalidInputException, match=DENIED) as refusal:
            caged.execute("SELECT clip_error(?)", [f"{tmp_path}/{kind}"]).fetchall()
        lines = re.sub(r'"[^"]*"', "the file", str(refusal.value)).splitlines()
        messages.add(
            "\n".join(line for line in lines if DENIED[:10] in line or "/clip_embed_duckdb/" in line)
        )
    assert len(messages) == 1
    told = caged.execute("SELECT clip_error(?)", [f"{tmp_path}/in/own.png"]).fetchall()
    assert told == [("it is not a regular file",)]


def test_a_known_file_stays_closed(tmp_path: Path) -> None:
    """A file whose content is known by its size and time is refused all the same once it is forbidden."""
    path = write(tmp_path / "out" / "a.png", "red")
    os.utime(path, (10**9, 10**9))
    link = tmp_path / "in" / "link.png"
    link.parent.mkdir()
    link.symlink_to(path)
    with opened() as con:
        names = [str(path), str(link), f"{tmp_path}/in/../out/a.png"]
        assert all(score(con, name) is not None for name in names)
        con.execute("SET allowed_directories = [?]", [str(tmp_path / "in")])
        con.execute("SET enable_external_access = false")
        for name in names:
            for expression in ("clip_score(?, 'red')", "clip_error(?)"):
                with pytest.raises(duckdb.InvalidInputException, match=DENIED):
                    con.execute(f"SELECT {expression}", [name]).fetchall()


def test_the_cache_opens_nothing(tmp_path: Path) -> None:
    """A file that another database embedded, with one embedder, stays closed to this one."""
    path = write(tmp_path / "a.png", "red")
    clip = ClipEmbedder(FakeModel())
    with duckdb.connect() as free, duckdb.connect(config={"enable_external_access": False}) as bound:
        register(free, clip)
        register(bound, clip)
        assert score(free, path) is not None
        with pytest.raises(duckdb.InvalidInputException, match=DENIED):
            score(bound, path)


def test_rules_tightened_later_hold(tmp_path: Path) -> None:
    """Access that is switched off after register is off."""
    path = write(tmp_path / "a.png", "red")
    with opened() as con:
        assert score(con, path) is not None
        con.execute("SET enable_external_access = false")
        with pytest.raises(duckdb.InvalidInputException, match=DENIED):
            score(con, path)


@pytest.mark.parametrize("name", ["*.png", "?.png", "a[1].png", "[ab].png", "**", "[!x].png", "[[]a.png"])
def test_a_name_is_no_pattern(tmp_path: Path, name: str) -> None:
    """A name with wildcards never stands for other files; with its own file it is that file."""
    for other in ("a.png", "b.png", "a1.png", "xx.png", "[a.png"):
        write(tmp_path / other, "blue")
    with opened() as con:
        if name != "[[]a.png":
            assert score(con, tmp_path / name) is None
        red = write(tmp_path / name, "red")
        assert score(con, red, "red") == pytest.approx(1, abs=0.05)
        assert score(con, f"{tmp_path}/./{name}", "red") == pytest.approx(1, abs=0.05)


def test_a_folder_with_wildcards(tmp_path: Path) -> None:
    """Wildcards in the name of a folder are letters too."""
    write(tmp_path / "2" / "a.png", "blue")
    with opened() as con:
        assert score(con, tmp_path / "[2]" / "a.png") is None
        red = write(tmp_path / "[2]" / "a.png", "red")
        assert score(con, red, "red") == pytest.approx(1, abs=0.05)


@pytest.mark.skipif("\\" in str(Path("a/b")), reason="the backslash separates folders here")
@pytest.mark.parametrize("name", ["a\\*.png", "a\\[b*]c.png", "\\?.png"])
def test_backslash_and_wildcard(tmp_path: Path, name: str) -> None:
    """A name with both is refused with a reason, as DuckDB has no way to quote it."""
    for other in ("a*.png", "a[bb]c.png", "a.png", "a[zz]c.png", "?.png", name):
        write(tmp_path / other, "blue")
    with opened() as con:
        row = con.execute("SELECT clip_error(?)", [f"{tmp_path}/{name}"]).fetchone()
        assert row is not None
        assert row[0].startswith("DuckDB cannot read a name with both")


def test_no_stranger_reads_the_files(tmp_path: Path) -> None:
    """When the registered connection is gone, no connection of another database reads for it."""
    path = write(tmp_path / "a.png", "red")
    con = duckdb.connect(str(tmp_path / "x.db"))
    other = con.duplicate()
    register(con, ClipEmbedder(FakeModel()))
    del con
    with pytest.raises(duckdb.InvalidInputException, match=r"call clip_embed_duckdb.register\(con\) again"):
        score(other, path)
    assert other.execute("SELECT clip_score(?::BLOB, 'x') > -2", [path.read_bytes()]).fetchall() == [(True,)]
    register(other, ClipEmbedder(FakeModel()))
    assert score(other, path) is not None
    other.close()


@pytest.mark.skipif(sys.platform == "win32", reason="needs named pipes")
@pytest.mark.parametrize("prefix", ["", "file:", "file://", "file://localhost"])
def test_a_pipe_or_a_device_stops_no_query(tmp_path: Path, prefix: str) -> None:
    """DuckDB would wait for the pipe and read the device until the memory is full; each is a failure."""
    os.mkfifo(tmp_path / "pipe.png")
    with opened() as con:
        for name in (f"{tmp_path}/pipe.png", "/dev/zero"):
            row = con.execute("SELECT clip_error(?)", [prefix + name]).fetchone()
            assert row == ("it is not a regular file",)


def test_the_policys_urls_are_not_duckdbs() -> None:
    """With `urls=True` the embedder fetches URLs, SQL still does not: nobody knocks at the server."""
    with socket.create_server(("127.0.0.1", 0)) as server, duckdb.connect() as con:
        server.setblocking(False)
        register(con, ClipEmbedder(FakeModel(), policy=ImagePolicy(urls=True)))
        url = f"http://127.0.0.1:{server.getsockname()[1]}/cat.png"
        for image in ("?", "{'bytes': NULL::BLOB, 'path': ?}"):
            row = con.execute(f"SELECT clip_error({image})", [url]).fetchone()
            assert row is not None
            assert row[0].startswith("URLs are not read")
        with pytest.raises(BlockingIOError):
            server.accept()


def test_a_text_is_never_a_path_or_a_url(tmp_path: Path) -> None:
    """The text of a query is embedded as it stands, also where it names a file or a server."""
    image = write(tmp_path / "a.png", "red").read_bytes()
    opened_files: list[str] = []
    watched = [str(tmp_path / "a.png"), "/etc/passwd"]

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if event in ("open", "socket.connect", "socket.getaddrinfo") and any(
            w in str(arguments) for w in watched
        ):
            opened_files.append(str(arguments))

    with opened(enable_external_access=False) as con:
        sys.addaudithook(note)
        for text in (*watched, f"file://{watched[0]}", "http://127.0.0.1:9/x.png"):
            row = con.execute("SELECT clip_score(?::BLOB, ?), clip_text(?)", [image, text, text]).fetchone()
            assert row is not None
            assert row[0] is not None
        watched.clear()
    assert opened_files == []
