"""What the commands refuse before they begin, in a line, with exit code 1 or 2."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from clip_embed.cli import main


def run(*arguments: object) -> Result:
    """Run `clip-embed` in this process, as a program without a terminal."""
    return CliRunner().invoke(main, [str(each) for each in arguments])


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("no/f.parquet", "there is no folder"),
        ("f.csv", "ends in .parquet"),
        ("file/f.parquet", "there is no folder"),
    ],
)
def test_a_file_that_cannot_be_written(pictures: Path, tmp_path: Path, name: str, message: str) -> None:
    """It is refused before anything is embedded."""
    (tmp_path / "file").write_text("")
    store = tmp_path / "s.clip"
    for command in (
        ("ingest", pictures, "--to", store, "--model", "offline", "--failures", tmp_path / name),
        ("embed", pictures, "--model", "offline", "-o", tmp_path / name),
    ):
        result = run(*command)
        assert (result.exit_code, message in " ".join(result.stderr.split())) == (2, True), result.output
    assert not store.exists()


def test_sources_that_are_none(pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Damaged, unsuitable, or behind a package that is missing: a line, and no traceback."""
    store = tmp_path / "s.clip"
    assert run("ingest", pictures, "--to", store, "--model", "offline").exit_code == 0
    (tmp_path / "damaged.tar").write_bytes(b"x" * 2000)
    (tmp_path / "damaged.parquet").write_bytes(b"x" * 2000)
    (tmp_path / "other.csv").write_text("a,b\n1,2\n")
    (tmp_path / "note.txt").write_text("")
    for name, code in (("damaged.tar", 1), ("damaged.parquet", 1), ("other.csv", 2), ("note.txt", 2)):
        for command in (("verify", store), ("prune", store, "--yes", "--other-source")):
            options = [*command[2:]]
            result = run(*command[:2], tmp_path / name, *options)
            assert result.exit_code == code, (name, command, result.output)
            assert isinstance(result.exception, SystemExit)
            assert name in result.stderr
    monkeypatch.setitem(sys.modules, "s3fs", None)
    result = run("ingest", "s3://bucket/x", "--to", store)
    assert (result.exit_code, "s3fs" in result.stderr) == (1, True), result.output
    assert isinstance(result.exception, SystemExit)
    result = run("copy", store, "--to", tmp_path / "other.clip", "--collection", "z")
    assert (result.exit_code, "is no server" in " ".join(result.stderr.split())) == (2, True), result.output
