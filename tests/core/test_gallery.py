"""The HTML gallery."""

from __future__ import annotations

import base64
import io
import re
from pathlib import Path

from PIL import Image

from clip_embed._cli.gallery import Tile, write_gallery


def test_gallery_is_one_file_with_small_thumbnails(tmp_path: Path) -> None:
    """Each picture is inlined as a JPEG of at most 320 pixels; nothing outside is referred to."""
    photo = tmp_path / "photo.png"
    Image.new("RGBA", (1200, 700), (200, 0, 0, 128)).save(photo)
    page = tmp_path / "gallery.html"
    write_gallery(page, "red", "SELECT 1", [Tile(photo, "photo.png", 0.5), Tile(photo.read_bytes(), "bytes")])
    text = page.read_text("utf-8")
    pictures = re.findall(r'src="data:image/jpeg;base64,([^"]+)"', text)
    assert len(pictures) == 2
    with Image.open(io.BytesIO(base64.b64decode(pictures[0]))) as thumbnail:
        assert thumbnail.size == (320, 187)
    assert not re.search("https?:|file:", text)
    assert "default-src 'none'" in text
    assert text.count("<b>0.500</b>") == 1


def test_names_are_escaped_and_a_broken_image_says_why(tmp_path: Path) -> None:
    """File names cannot inject markup; a tile without a picture shows the reason."""
    page = tmp_path / "gallery.html"
    write_gallery(page, "<script>", "a < b", [Tile(b"junk", '"><img src=x onerror=alert(1)>.jpg', 0.1)])
    text = page.read_text("utf-8")
    assert "<script>" not in text
    assert "<img" not in text
    assert "not an image" in text
