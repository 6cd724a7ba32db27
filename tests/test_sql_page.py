"""Answers as a page: thumbnails, nothing of what is shown taken for markup, bounded."""

from __future__ import annotations

import io
import re
from html.parser import HTMLParser
from pathlib import Path

import duckdb
import pytest
from PIL import Image

from clip_embed import ClipEmbedError, ImagePolicy
from clip_embed._cli import page as pages
from clip_embed._cli.page import PageWriter
from clip_embed._cli.sql import Runner

HOSTILE = """"><img src=x onerror=alert(1)><script>alert('2')</script>'.png"""


class Seen(HTMLParser):
    """Lists the elements of a page and its texts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.texts: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.texts.append(data)

    def count(self, tag: str) -> int:
        """Return how many elements of a name there are."""
        return sum(name == tag for name, _ in self.elements)


def picture(colour: str, size: tuple[int, int] = (40, 30)) -> bytes:
    """Return an image of one colour."""
    out = io.BytesIO()
    Image.new("RGB", size, colour).save(out, "PNG")
    return out.getvalue()


@pytest.fixture
def con() -> duckdb.DuckDBPyConnection:
    """A database in memory with a table of one picture and one broken one."""
    con = duckdb.connect()
    con.execute("CREATE TABLE photos (name VARCHAR, img BLOB)")
    con.executemany(
        "INSERT INTO photos VALUES (?, ?)", [("red", picture("red", (400, 300))), ("torn", b"no picture")]
    )
    return con


def write(con: duckdb.DuckDBPyConnection, script: str, file: Path, *, latest: bool = False) -> Seen:
    """Run a script that must succeed and read its page."""
    page = PageWriter(file, con, ImagePolicy(), latest=latest)
    assert Runner(con, [page]).run(script)
    assert latest or page.write()
    return Seen(file.read_text("utf-8"))


def test_blobs_structs_paths_and_lists_are_thumbnails(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Whatever the functions take as an image is shown as one; a broken one says why in its place."""
    (tmp_path / "a.png").write_bytes(picture("blue"))
    page = tmp_path / "page.html"
    shown = write(con, "SELECT * FROM photos", page)
    assert shown.count("img") == 1
    assert dict(shown.elements)["img"]["width"] == "320"
    assert any("not an image" in text for text in shown.texts)
    for expression, count in {
        "{'bytes': img, 'path': name}": 1,
        f"{{'bytes': NULL::BLOB, 'path': '{tmp_path}/a.png'}}": 1,
        f"'{tmp_path}/a.png'": 1,
        f"['{tmp_path}/a.png', '{tmp_path}/missing.png']": 1,
        "[{'bytes': img}, {'bytes': img}]": 2,
        f"'{tmp_path}/missing.png'": 0,
        "clip": 0,
        "repeat([img], 40)": 12,
    }.items():
        query = f"SELECT {expression} AS it FROM (SELECT *, 'x' AS clip FROM photos WHERE name = 'red')"
        assert write(con, query, page).count("img") == count, expression


def test_nothing_that_is_shown_is_markup(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Texts, file names, column names and the query itself stay texts, in elements and in attributes."""
    (tmp_path / HOSTILE.replace("/", "_")).write_bytes(picture("red"))
    con.execute("CREATE TABLE t AS SELECT ? AS hostile, 0 AS n", [HOSTILE])
    script = f"""
    SELECT hostile, {{'bytes': (SELECT img FROM photos WHERE name = 'red'), 'path': hostile}} AS s,
           [hostile] AS l, MAP {{hostile: hostile}} AS m, hostile AS "<b onclick='x'>",
           '{HOSTILE.replace("'", "''")}'
    FROM t;
    SELECT * FROM glob('{tmp_path}/*.png');
    """
    shown = write(con, script, tmp_path / "page.html")
    assert {name for name, _ in shown.elements}.isdisjoint({"script", "b"})
    assert shown.count("img") == 2
    for name, attributes in shown.elements:
        assert not [each for each in attributes if each.startswith("on")], name
        if name == "img":
            assert re.fullmatch(r"data:image/jpeg;base64,[\w+/=]+", attributes["src"] or "")
    assert any(HOSTILE in text for text in shown.texts)


def test_files_are_read_as_duckdb_allows(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A page shows no file that the database may not read: the path alone stands there."""
    (tmp_path / "secret.png").write_bytes(picture("red"))
    con.execute("SET enable_external_access = false")
    shown = write(con, f"SELECT '{tmp_path}/secret.png' AS path", tmp_path / "page.html")
    assert shown.count("img") == 0
    assert any("secret.png" in text for text in shown.texts)


def test_a_page_is_bounded_in_rows_and_bytes(
    con: duckdb.DuckDBPyConnection, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Beyond the bounds it ends, and says so; pictures load as they come into view."""
    page = tmp_path / "page.html"
    shown = write(con, "FROM range(5000)", page)
    assert shown.count("tr") == 1 + 1000
    assert "the first 1,000 rows" in shown.texts
    monkeypatch.setattr(pages, "BYTES", 20_000)
    shown = write(con, "SELECT img FROM photos, range(500) WHERE name = 'red'; FROM range(10)", page)
    assert 2 < shown.count("img") < 30
    assert page.stat().st_size < 30_000
    assert all(facts["loading"] == "lazy" for name, facts in shown.elements if name == "img")


def test_a_page_has_all_answers_or_the_latest(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A script's page has a section for each result; in the shell it is that of the last."""
    page = tmp_path / "page.html"
    script = "SELECT 1; CREATE TABLE t AS SELECT 2; SELECT 3 WHERE false"
    assert write(con, script, page).count("section") == 2
    latest = write(con, "SELECT 1; SELECT 'last'", page, latest=True)
    assert latest.count("section") == 1
    assert "last" in latest.texts


def test_an_error_keeps_the_page_of_what_went_well(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """A statement that fails half-way leaves no half section."""
    page = tmp_path / "page.html"
    writer = PageWriter(page, con, ImagePolicy())
    assert not writer.write()
    assert not Runner(con, [writer]).run("SELECT 'good'; SELECT error('boom')")
    assert writer.write()
    shown = Seen(page.read_text("utf-8"))
    assert shown.count("section") == 1
    assert "good" in shown.texts


def test_a_page_without_a_place_is_refused_at_once(con: duckdb.DuckDBPyConnection, tmp_path: Path) -> None:
    """Before the query, which may take an hour."""
    with pytest.raises(ClipEmbedError, match=r"cannot write .*page\.html: .*nope is no folder"):
        PageWriter(tmp_path / "nope" / "page.html", con, ImagePolicy())
