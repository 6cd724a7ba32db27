"""The plugin for dbt-duckdb, in a project that dbt runs."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import duckdb
import pytest

pytest.importorskip("dbt.adapters.duckdb", reason="needs dbt-duckdb")

PROJECT = "{name: photos, version: '1.0', profile: photos, models: {+materialized: table}}"
FROM = "FROM glob('photos/*') AS t(file)"
MODELS = {
    "labels": f"SELECT file, clip_label(file, ['car', 'panda', 'rose']) AS label {FROM}",
    "counts": "SELECT label, count(*) AS n FROM {{ ref('labels') }} GROUP BY label",
    "vectors": f"SELECT file, clip_image(file) AS emb, clip_error(file) AS error {FROM}",
    "best": "FROM clip_search('{{ ref(\"vectors\").identifier }}', 'emb', 'a panda', k := 1)",
}


def test_the_recipe(recipe: Callable[[str], str]) -> None:
    """Models use the functions, on each other, in the threads that dbt has."""
    Path("models").mkdir()
    Path("profiles.yml").write_text(recipe("dbt"))
    Path("dbt_project.yml").write_text(PROJECT)
    for name, query in MODELS.items():
        Path("models", f"{name}.sql").write_text(query)
    command = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "run", "--threads", "2"]
    environment = {**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "False"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stdout
    assert "PASS=4" in done.stdout
    with duckdb.connect("photos.duckdb") as con:
        labels = {Path(file).stem: label for file, label in con.sql("FROM labels").fetchall()}
        assert labels == {"car_red_saloon": "car", "panda": "panda", "rose_red": "rose", "torn": None}
        assert con.sql("SELECT n FROM counts WHERE label = 'panda'").fetchall() == [(1,)]
        assert con.sql("SELECT count(emb), count(error) FROM vectors").fetchall() == [(3, 1)]
        assert con.sql("SELECT file FROM best").fetchall() == [("photos/panda.jpg",)]
    assert Path("vectors.cache").exists()
