"""The public names, and what importing them costs."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

import clip_embed
import clip_embed.errors
import clip_embed.testing

HEAVY = ["torch", "sentence_transformers", "transformers", "pyarrow", "duckdb", "pandas", "qdrant_client"]


def test_public_names() -> None:
    """`__all__` is sorted, complete and pinned: a change here is a change of the public contract."""
    assert clip_embed.__all__ == [
        "Accuracy",
        "Calibration",
        "Category",
        "Classification",
        "Classifier",
        "ClipEmbedError",
        "ClipEmbedder",
        "Decision",
        "Duplicates",
        "EmbeddedBatch",
        "EmbeddingCache",
        "ImageBatchError",
        "ImageError",
        "ImageFailure",
        "ImagePolicy",
        "ImageSpec",
        "ImageStream",
        "LabelReport",
        "Matches",
        "MissingExtra",
        "Model",
        "ModelError",
        "ModelForked",
        "ModelNotFound",
        "ModelUnsupported",
        "ModerationPolicy",
        "Profile",
        "Relevance",
        "Retrieval",
        "SpaceMismatch",
        "Stamp",
        "Training",
        "adopt",
        "calibrate",
        "diverse",
        "duplicates",
        "evaluate_retrieval",
        "explain_labels",
        "fit",
        "fit_relevance",
        "moderate",
        "similar",
        "train",
    ]
    assert clip_embed.__all__ == sorted(clip_embed.__all__)
    assert all(hasattr(clip_embed, name) for name in clip_embed.__all__)
    assert clip_embed.testing.__all__ == ["FakeModel"]
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text("utf-8"))["project"]
    assert clip_embed.__version__ == project["version"]


def test_errors_have_one_base() -> None:
    """Every error is a ClipEmbedError, and stands in the tree of the module's docstring."""
    tree = clip_embed.errors.__doc__ or ""
    for name in clip_embed.errors.__all__:
        assert issubclass(getattr(clip_embed.errors, name), clip_embed.ClipEmbedError)
        assert name in tree
        assert name in clip_embed.__all__


@pytest.mark.parametrize("module", ["clip_embed", "clip_embed.testing"])
def test_import_loads_nothing_heavy(module: str) -> None:
    """Torch and all its company load on first use, not on import."""
    code = f"import sys, {module}; print(sorted(set({HEAVY}) & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"


def test_a_fake_model_needs_no_torch() -> None:
    """With an own model, a device and a batch size, nothing heavy is loaded by embedding either."""
    code = (
        "import sys, numpy; from clip_embed import ClipEmbedder; from clip_embed.testing import FakeModel;"
        "clip = ClipEmbedder(FakeModel(), batch_size=2);"
        "clip.scores(numpy.zeros((3, 8, 8, 3), 'uint8'), ['red']);"
        f"print(sorted(set({HEAVY}) & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == "[]"
