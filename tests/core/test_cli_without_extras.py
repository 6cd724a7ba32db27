"""The command line where no extra is installed."""

from __future__ import annotations

import sys

import pytest
from click.testing import CliRunner

from clip_embed.cli import main


@pytest.mark.parametrize("arguments", [["demo"], ["sql", "-c", "SELECT 1"]])
def test_missing_duckdb_names_its_extra(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """One line says what to install; no traceback."""
    for name in [name for name in sys.modules if name.partition(".")[0] in {"duckdb", "clip_embed_duckdb"}]:
        monkeypatch.delitem(sys.modules, name)
    for name in ("clip_embed.demo._run", "clip_embed._cli.sql"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "duckdb", None)
    result = CliRunner().invoke(main, arguments)
    assert result.exit_code == 1
    assert "pip install 'clip-embed[" in result.stderr
    assert "Traceback" not in result.output


def test_models_need_no_extra() -> None:
    """The table of models is there without any."""
    assert CliRunner().invoke(main, ["models"]).exit_code == 0
