"""File names, labels and an index that are markup, in a browser: none of it runs or becomes an element."""

from __future__ import annotations

import html
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pandas as pd
import polars as pl
import pytest
from PIL import Image

import clip_embed_pandas as cp
import clip_embed_polars
from clip_embed import ClipEmbedder

BROWSER = next(
    filter(None, map(shutil.which, ["chromium", "chromium-browser", "google-chrome", "chrome"])), None
)
RUN = "document.documentElement.id='ran'"
NAMES = [
    f'"><img src=x onerror="{RUN}">.png',
    f"'><svg onload={RUN}>.png",
    f'x" onerror="{RUN}" onload="{RUN}" data-y="&quot;.png',
    f"<script>{RUN}<!--.png",
    "<style>body{display:none}<&amp;.png",  # these bytes are no image
]
CALM = ["a.png", "b.png", "c.png", "d.png", "e.png"]
TEXT = f"</div></span></title></style><script>{RUN}</script>"

pytestmark = pytest.mark.skipif(BROWSER is None, reason="needs chromium or Chrome on the PATH")


@pytest.fixture(autouse=True)
def _in_use(clip: ClipEmbedder) -> Iterator[None]:
    cp.use(clip)
    yield
    cp.use(None)


@dataclass
class Page(HTMLParser):
    """What a browser made of a page: its elements with their attributes, in order, and what it reads."""

    elements: list[tuple[str, dict[str, str | None]]] = field(default_factory=list)
    words: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        super().__init__()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Note an element."""
        self.elements.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        """Note a text."""
        self.words.append(data)

    @property
    def ran(self) -> bool:
        """Whether a script of ours ran."""
        return any(attributes.get("id") == "ran" for _, attributes in self.elements)

    @property
    def shape(self) -> list[tuple[str, list[str]]]:
        """The elements and the names of their attributes."""
        return [(tag, sorted(attributes)) for tag, attributes in self.elements]


def open_in_browser(file: Path) -> Page:
    """Let a page load, run what it runs, and take what has become of it."""
    options = ["--headless", "--no-sandbox", "--disable-gpu", "--virtual-time-budget=2000", "--dump-dom"]
    done = subprocess.run(  # noqa: S603
        [str(BROWSER), *options, f"--user-data-dir={file.parents[1] / 'profile'}", file.as_uri()],
        capture_output=True,
        text=True,
        check=True,
        timeout=120,
    )
    page = Page()
    page.feed(done.stdout)
    return page


def results(names: list[str], text: str, folder: Path) -> tuple[str, str]:
    """Everything that a notebook shows of images of these names, by pandas and by polars; and a map alone."""
    folder.mkdir()
    for name in names[:-1]:
        Image.new("RGB", (40, 30), "red").save(folder / name)
    (folder / names[-1]).write_bytes(b"<script>no picture</script>")
    paths = [str(folder / name) for name in names]
    labels = [text, "x"]
    failed = f"1 of {len(names)} images failed"
    with pytest.warns(UserWarning, match=failed):
        frame = cp.embed(pd.DataFrame({"img": paths, text: text}, index=[text] * len(names)), "img")
    with pytest.warns(UserWarning, match=failed):
        table = clip_embed_polars.embed(pl.DataFrame({"img": paths}), "img")
    kinds = frame.clip.classify(labels)
    shown: list[Any] = [
        frame.clip.search("red"),
        kinds,
        frame.clip.duplicates(),
        cp.gallery(pd.DataFrame(kinds), column="img"),
        frame.clip.failures(),
        frame.clip.plot(),
        clip_embed_polars.gallery(clip_embed_polars.classify(table, labels)),
        clip_embed_polars.plot(table),
    ]
    return "".join(each._repr_html_() for each in shown), frame.clip.plot().svg


def open_page(markup: str, folder: Path) -> Page:
    """Open markup as the output of a cell in a page."""
    (folder / "page.html").write_text(f"<!doctype html><meta charset=utf-8><body>{markup}", "utf-8")
    return open_in_browser(folder / "page.html")


def test_names_and_texts_are_only_read(tmp_path: Path) -> None:
    """Pages of hostile names have the very elements of pages of harmless ones, and show them as written."""
    pages: list[list[Page]] = []
    for names, text, folder in ((CALM, "calm", tmp_path / "calm"), (NAMES, TEXT, tmp_path / "hostile")):
        markup, svg = results(names, text, folder)
        (folder / "map.svg").write_text(svg, "utf-8")
        pages.append([open_page(markup, folder), open_in_browser(folder / "map.svg")])
    for calm, hostile in zip(*pages, strict=True):
        assert not hostile.ran
        assert hostile.shape == calm.shape
        assert "script" not in dict(hostile.elements)
        for _, attributes in hostile.elements:
            for name in attributes.keys() & {"src", "href"}:
                assert str(attributes[name]).startswith("data:image/jpeg;base64,")
    page, drawing = pages[1]
    assert sum(tag == "img" for tag, _ in page.elements) == 20
    assert sum(tag == "image" for tag, _ in page.elements) == 8
    for words, names in ((page.words, [*NAMES, TEXT]), (drawing.words, [*NAMES[:-1], TEXT])):
        assert not [name for name in names if name not in "".join(words)]


@pytest.mark.parametrize("name", ["name", "text"])
def test_without_escaping_they_run(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The check can fail: where nothing is escaped, the same name and text run and add elements."""
    as_it_is: Callable[..., str] = lambda text, quote=True: text  # noqa: E731
    monkeypatch.setattr(html, "escape", as_it_is)
    given = ([NAMES[0], *CALM[1:]], "calm") if name == "name" else (CALM, TEXT)
    markup, _ = results(*given, tmp_path / name)
    page = open_page(markup, tmp_path / name)
    assert page.ran
    assert ("script" in dict(page.elements)) == (name == "text")
