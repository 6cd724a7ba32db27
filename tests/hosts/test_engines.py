"""The recipes for engines: each gives what one process gives. The env engines has them all."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

import clip_embed.demo
from clip_embed import ClipEmbedder
from clip_embed.arrow import embed_images, read_vectors, stamp_vectors

EXAMPLES = Path(__file__).parents[2] / "examples"
RECIPES = {
    "spark_files": "pyspark",
    "dask_files": "dask",
    "polars_files": "polars",
    "daft_files": "daft",
    "ray_two_stages": "ray",
}
KEEP_THE_STAMP = ("dask_files", "ray_two_stages")


@pytest.fixture(scope="module")
def clip() -> ClipEmbedder:
    """The embedder of one process."""
    return ClipEmbedder("offline", cache=None)


@pytest.fixture
def paths(photos: Path, tmp_path: Path) -> list[str | None]:
    """All photos of the demo, one that is no picture, one that is missing and a null, in three files."""
    found = [*map(str, clip_embed.demo.photos()), str(photos / "torn.jpg"), str(photos / "gone.jpg"), None]
    (tmp_path / "files").mkdir()
    for part in range(3):
        pq.write_table(pa.table({"path": found[part::3]}), tmp_path / "files" / f"{part}.parquet")
    return found


def lines_of(name: str) -> int:
    """How many lines of code a recipe has, docstrings and blank lines left out."""
    text = (EXAMPLES / f"{name}.py").read_text("utf-8")
    documented = [
        node.body[0] for node in ast.walk(ast.parse(text)) if isinstance(node, (ast.Module, ast.FunctionDef))
    ]
    left_out = {line for node in documented for line in range(node.lineno, (node.end_lineno or 0) + 1)}
    return sum(
        bool(line.strip()) for number, line in enumerate(text.splitlines(), 1) if number not in left_out
    )


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_gives_the_vectors_of_one_process(
    name: str, paths: list[str | None], clip: ClipEmbedder, tmp_path: Path
) -> None:
    """Every row is there once, with its vector or its reason, and the stamp where the engine keeps it."""
    if importlib.util.find_spec(RECIPES[name]) is None:
        pytest.skip(f"needs {RECIPES[name]}: the env engines has it")
    if name == "spark_files" and not shutil.which("java"):
        pytest.skip("Spark needs Java: apt-get install -y openjdk-17-jre-headless")
    run(name, tmp_path)
    vectors, errors = embed_images(pa.array(paths), clip)
    expected = pa.table(
        {"path": paths, "embedding": stamp_vectors(vectors, clip), "embedding_error": errors}
    ).sort_by("path")
    found = pq.read_table(tmp_path / "out").sort_by("path")
    for column in ("path", "embedding_error"):
        assert found[column].to_pylist() == expected[column].to_pylist()
    rows, valid = read_vectors(expected["embedding"], clip)
    if name in KEEP_THE_STAMP:  # pytest fails on the warning that there is none
        others, others_valid = read_vectors(found["embedding"], clip)
    else:
        with pytest.warns(UserWarning, match="nothing says which model"):
            others, others_valid = read_vectors(found["embedding"], clip)
    assert others_valid.tolist() == valid.tolist()
    assert valid.sum() == len(paths) - 3
    largest = np.abs(others - rows).max()
    print(f"\n{name}: {lines_of(name)} lines, {len(rows)} rows, vectors within {largest:.1e}")
    assert largest < 1e-5


def run(name: str, folder: Path) -> None:
    """Run a recipe as a program, in another folder; its threads and its Java see two cores."""
    environment = os.environ | {
        "PYSPARK_PYTHON": sys.executable,
        "PYSPARK_SUBMIT_ARGS": "--master local[2] --conf spark.ui.enabled=false pyspark-shell",
        "RAY_ADDRESS": "local",  # not one that a cluster of somebody else left behind
        "RAY_USAGE_STATS_ENABLED": "0",
        "DO_NOT_TRACK": "true",
    }
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), str(folder / "files"), str(folder / "out")]
    done = subprocess.run(  # noqa: S603
        command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_short(name: str) -> None:
    """At most 15 lines of code."""
    assert lines_of(name) <= 15
