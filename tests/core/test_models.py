"""Which model, which device: what is wrong with a request is said at once, and nothing takes its place."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from clip_embed import ClipEmbedder, ModelError, ModelNotFound
from clip_embed._engine.device import resolve_device
from clip_embed._models.opening import DEFAULT_MODEL, default_model
from clip_embed.testing import FakeModel


@pytest.mark.parametrize(
    ("option", "value", "message"),
    [
        ("precision", "fp64", "precision must be .* not 'fp64'"),
        ("precision", None, "precision must be .* not None"),
        ("batch_size", 0, "batch_size must be .* not 0"),
        ("batch_size", -3, "batch_size must be .* not -3"),
        ("batch_size", 2.5, r"batch_size must be .* not 2\.5"),
        ("batch_size", "big", "batch_size must be .* not 'big'"),
        ("workers", 0, "workers must be .* not 0"),
        ("workers", None, "workers must be .* not None"),
    ],
)
def test_wrong_options(option: str, value: object, message: str) -> None:
    """The constructor's ValueError names the option, what it may be and what it was."""
    with pytest.raises(ValueError, match=message):
        ClipEmbedder(FakeModel(), **{option: value})  # type: ignore[arg-type]


@pytest.mark.parametrize("model", [None, 7, object(), FakeModel, ["offline"], b"offline"])
def test_what_is_no_model(model: object) -> None:
    """The constructor's TypeError names the five members, and the type that was given."""
    with pytest.raises(TypeError, match=r"dim, space, image_spec, embed_images and embed_texts, not \w+"):
        ClipEmbedder(model)  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["/no/such/folder", "./no-such-folder", "~/no-such-folder-here", "a/b/c"])
@pytest.mark.parametrize("kind", [str, Path])
def test_a_missing_folder(name: str, kind: type[str | Path]) -> None:
    """The constructor's ModelNotFound names the folder and lists the ways out."""
    with pytest.raises(ModelNotFound, match="no such model folder: ") as caught:
        ClipEmbedder(kind(name))
    assert all(way in str(caught.value) for way in ('"offline"', "a local folder", "download"))


@pytest.mark.parametrize("name", ["nobody/no-such-clip", "no-such-clip", "-bad--name..", DEFAULT_MODEL])
def test_an_unreachable_hub(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without network and local copy: ModelNotFound with the ways out, and never a substitute."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    clip = ClipEmbedder(name)
    image = np.zeros((1, 8, 8, 3), np.uint8)
    for use in (lambda: clip.dim, lambda: clip.space, clip.load, lambda: clip.embed_images(image)):
        with pytest.raises(ModelNotFound, match=re.escape(repr(name))) as caught:
            use()
        assert all(way in str(caught.value) for way in ('"offline"', "a local folder", "download"))
        assert isinstance(caught.value, ModelError)


def test_a_folder_comes_before_a_hub_name(clip_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A relative folder that is there is taken, though its name could be one of the hub."""
    monkeypatch.chdir(clip_folder.parent)
    assert ClipEmbedder(clip_folder.name).space == ClipEmbedder(clip_folder).space


def test_the_constructor_is_cheap(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name is neither downloaded nor opened before it is needed."""

    def no_opening(*_: object) -> None:
        raise AssertionError("opened")

    monkeypatch.setattr("clip_embed._embedder.open_model", no_opening)
    assert repr(ClipEmbedder("some/model")) == "ClipEmbedder('some/model', device='auto', precision='auto')"


def test_the_default_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """CLIP_EMBED_MODEL names it for the command line and the integrations; empty counts as not set."""
    monkeypatch.delenv("CLIP_EMBED_MODEL", raising=False)
    assert default_model() == DEFAULT_MODEL == "sentence-transformers/clip-ViT-B-32"
    monkeypatch.setenv("CLIP_EMBED_MODEL", "")
    assert default_model() == DEFAULT_MODEL
    monkeypatch.setenv("CLIP_EMBED_MODEL", "/models/clip")
    assert default_model() == "/models/clip"


def test_device_auto_takes_the_best_there_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cuda before xpu before mps before cpu."""
    there: set[str] = set()
    for kind, place in (("cuda", "cuda"), ("xpu", "xpu"), ("mps", "backends.mps")):
        monkeypatch.setattr(f"torch.{place}.is_available", lambda kind=kind: kind in there)
    for better in ("cpu", "mps", "xpu", "cuda"):
        there.add(better)
        assert resolve_device("auto") == better
        assert ClipEmbedder(FakeModel()).device == better


def test_a_named_device_is_taken_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """A device that this torch cannot use is a ValueError that lists what there is; none is swapped in."""
    for place in ("cuda", "xpu", "backends.mps"):
        monkeypatch.setattr(f"torch.{place}.is_available", lambda: False)
    assert resolve_device("cpu") == "cpu"
    for device in ("cuda", "cuda:1", "mps", "tpu", ""):
        with pytest.raises(ValueError, match=rf"device '{device}' cannot be used .*there is: cpu$"):
            _ = ClipEmbedder(FakeModel(), device=device).device
    monkeypatch.setattr("torch.cuda.is_available", lambda: True)
    assert resolve_device("cuda:1") == "cuda:1"
