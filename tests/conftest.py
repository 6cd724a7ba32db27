"""What the tests share: images like photos, a tiny CLIP in both layouts of folders, no network."""

from __future__ import annotations

import importlib.util
import io
import json
import os
import shutil
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

os.environ["HF_HUB_OFFLINE"] = "1"  # huggingface_hub reads it once, when it is imported
os.environ["HF_HUB_DISABLE_PROGRESS_BARS"] = "1"

import numpy as np
import pytest
from PIL import Image, ImageDraw

from clip_embed import ClipEmbedder
from clip_embed.testing import FakeModel

Photo = Callable[..., Image.Image]
Encode = Callable[..., bytes]

_MERGES = ["r e", "re d</w>", "c a", "ca r</w>", "t h", "th e</w>", "d o", "do g</w>"]
_START, _END = "<|startoftext|>", "<|endoftext|>"


@pytest.fixture(autouse=True, scope="session")
def _private_cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """Keep what the library remembers on disk out of the user's own cache folder."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CLIP_EMBED_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield


@pytest.fixture(autouse=True, scope="session")
def _ctrl_c() -> None:
    """Let Ctrl-C do what it does at a terminal: a shell has what it runs in the background ignore it."""
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture
def qdrant() -> Iterator[Any]:
    """A Qdrant server on ports of its own: `.url`, `.grpc_port`, and faults (tests/qdrant/wire)."""
    if "qdrant_wire" not in sys.modules:
        file = Path(__file__).parent / "qdrant" / "wire" / "__init__.py"
        spec = importlib.util.spec_from_file_location("qdrant_wire", file)
        assert spec
        assert spec.loader
        sys.modules["qdrant_wire"] = module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    with sys.modules["qdrant_wire"].serve() as server:
        yield server


@pytest.fixture(scope="session")
def photo() -> Photo:
    """Make an image like a photo: `photo(width, height, seed)`, no two sides or channels alike."""
    return _photo


def _photo(width: int = 96, height: int = 64, seed: int = 0) -> Image.Image:
    rng = np.random.default_rng(seed)
    y, x = np.mgrid[0:height, 0:width].astype(np.float32)
    y, x = y / max(1, height - 1), x / max(1, width - 1)
    tilt = rng.uniform(0.3, 1.0, (2, 3))
    waves = rng.uniform(2, 9, (2, 3))
    smooth = 110 * (x[..., None] * tilt[0] + y[..., None] * tilt[1])
    texture = 35 * np.sin(waves[0] * 6.28 * x[..., None]) * np.cos(waves[1] * 6.28 * y[..., None])
    pixels = smooth + texture + np.array([60, 30, 0]) + rng.normal(0, 7, (height, width, 3))
    image = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    draw = ImageDraw.Draw(image)
    for _ in range(6):
        left, top = rng.uniform(0, 0.6, 2) * (width, height)
        right, bottom = (left, top) + rng.uniform(0.1, 0.4, 2) * (width, height)
        colour = tuple(int(value) for value in rng.integers(0, 256, 3))
        (draw.ellipse if rng.random() < 0.5 else draw.rectangle)((left, top, right, bottom), fill=colour)
    for column in range(0, width // 2, 4):  # like lines of text, in one corner only
        draw.line((column, height * 0.7, column + 1, height * 0.7 + rng.uniform(2, 9)), fill=(15, 15, 25))
    return image


@pytest.fixture(scope="session")
def encode() -> Encode:
    """Write an image to bytes: `encode(image, "JPEG", quality=90)`."""
    return _encode


def _encode(image: Image.Image, format: str = "PNG", **options: object) -> bytes:  # noqa: A002
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


@pytest.fixture
def fake() -> FakeModel:
    """A model without weights."""
    return FakeModel()


@pytest.fixture
def clip(fake: FakeModel) -> ClipEmbedder:
    """An embedder over `fake`, with batches of 4 and 2 decode threads."""
    return ClipEmbedder(fake, batch_size=4, workers=2)


@pytest.fixture
def decode_threads() -> Callable[[], list[str]]:
    """Return a function that names the decode threads that are alive."""
    return lambda: [each.name for each in threading.enumerate() if each.name.startswith("clip-embed")]


@pytest.fixture(scope="session")
def clip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny CLIP with random weights in the layout of transformers; do not change it, copy it."""
    return _write_clip(tmp_path_factory.mktemp("model") / "tiny-clip")


@pytest.fixture(scope="session")
def sentence_folder(clip_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The same model as the hub's sentence-transformers/clip-ViT-B-32 is laid out."""
    folder = tmp_path_factory.mktemp("model") / "tiny-sentence-clip"
    shutil.copytree(clip_folder, folder / "0_CLIPModel")
    module = {"idx": 0, "name": "0", "path": "0_CLIPModel", "type": "sentence_transformers.models.CLIPModel"}
    (folder / "modules.json").write_text(json.dumps([module]))
    return folder


@pytest.fixture
def own_folder(clip_folder: Path, tmp_path: Path) -> Path:
    """A copy of `clip_folder` that a test may change."""
    return shutil.copytree(clip_folder, tmp_path / "own-clip")


@pytest.fixture
def edit_json() -> Callable[..., None]:
    """Change values in a JSON file: `edit_json(file, {"a.b": 1})`."""
    return _edit_json


def _edit_json(file: Path, changes: dict[str, object]) -> None:
    content: dict[str, Any] = json.loads(file.read_text())
    for path, value in changes.items():
        *parents, name = path.split(".")
        place = content
        for parent in parents:
            place = place[parent]
        place[name] = value
    file.write_text(json.dumps(content))


@pytest.fixture(scope="session")
def tiny(clip_folder: Path) -> ClipEmbedder:
    """The tiny CLIP in exact precision, loaded once, without a cache."""
    return ClipEmbedder(clip_folder, device="cpu", precision="exact", cache=None, batch_size=8)


def _write_clip(folder: Path) -> Path:
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = _tokenizer(folder / "parts")
    tower: dict[str, int] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    ends = {"eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.pad_token_id}
    texts = {**tower, **ends, "bos_token_id": tokenizer.bos_token_id, "vocab_size": len(tokenizer)}
    images = {**tower, "image_size": 224, "patch_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = CLIPModel(CLIPConfig(text_config=texts, vision_config=images, projection_dim=48))
        with torch.no_grad():  # the initialisation is so narrow that all vectors would be alike
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.mul_(3)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer).save_pretrained(folder)
    shutil.rmtree(folder / "parts")
    return folder


def _tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers' CLIPTokenizer
    """A byte-level BPE like CLIP's own, with a handful of merges."""
    from transformers import CLIPTokenizer

    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    letters = [chr(byte) for byte in printable] + [chr(256 + n) for n in range(256 - len(printable))]
    words = [*letters, *(letter + "</w>" for letter in letters)]
    words += [merge.replace(" ", "") for merge in _MERGES] + [_START, _END]
    folder.mkdir(parents=True)
    (folder / "vocab.json").write_text(json.dumps({word: n for n, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n" + "\n".join(_MERGES) + "\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)
