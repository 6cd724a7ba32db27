"""The public names, and what is said where a library is missing."""

from __future__ import annotations

import subprocess
import sys

import pytest

import clip_embed_qdrant
from clip_embed import ClipEmbedError
from clip_embed_qdrant._entries import normal_key, point_id


def test_public_names() -> None:
    """`__all__` is sorted and pinned; the errors are those of the library's tree."""
    assert clip_embed_qdrant.__all__ == [
        "Comparison",
        "Failures",
        "Hit",
        "Hits",
        "ImageStore",
        "IngestFailure",
        "IngestReport",
        "IngestStopped",
        "Migration",
        "Status",
        "StoreError",
        "StoreLocked",
        "Verification",
    ]
    assert all(hasattr(clip_embed_qdrant, name) for name in clip_embed_qdrant.__all__)
    assert issubclass(clip_embed_qdrant.IngestStopped, clip_embed_qdrant.StoreError)
    assert issubclass(clip_embed_qdrant.StoreError, ClipEmbedError)


@pytest.mark.parametrize("library", ["qdrant_client", "qdrant_edge"])
def test_a_missing_library_names_the_extra(library: str) -> None:
    """And only that library does: one that is missing below it is named itself."""
    script = (
        "import sys\n"
        "class Block:\n"
        "    def find_spec(self, name, *rest):\n"
        f"        if name == {library!r}: raise ModuleNotFoundError(name=name)\n"
        "sys.meta_path.insert(0, Block())\n"
        "from clip_embed import MissingExtra\n"
        "try: import clip_embed_qdrant\n"
        "except MissingExtra as error: print(error)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)  # noqa: S603
    name = {"qdrant_client": "qdrant-client", "qdrant_edge": "qdrant-edge-py"}[library]
    assert f"{name}, which is not installed: pip install 'clip-embed[qdrant]'" in done.stdout


def test_ids_never_change() -> None:
    """The id of a key is what it was in every store that there is."""
    assert point_id("a/b.jpg") == "88157e2f-4ac7-57c5-bc89-88c26711dff4"
    assert point_id(normal_key("e\u0301.jpg")) == point_id("\u00e9.jpg")
