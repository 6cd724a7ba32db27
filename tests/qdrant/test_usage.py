"""What the commands refuse before they begin, in a line, with exit code 1 or 2."""

from __future__ import annotations

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
