"""What tests of the core share: a tiny SigLIP, a hub on loopback and a client in a process of its own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

_spec = importlib.util.spec_from_file_location("hub_server", Path(__file__).with_name("hub_server.py"))
assert _spec
assert _spec.loader
hub_server = importlib.util.module_from_spec(_spec)
sys.modules["hub_server"] = hub_server  # so that tests can import it
_spec.loader.exec_module(hub_server)

COMMITS = ("a" * 40, "b" * 40)
Client = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def hub(clip_folder: Path, siglip_folder: Path, sentence_folder: Path, tmp_path: Path) -> Iterator[Any]:
    """A hub that serves owner/clip (two commits, "main" the second), owner/siglip and owner/sentence."""
    first = shutil.copytree(clip_folder, tmp_path / "served" / "clip")
    for name in ("pytorch_model.bin", "tf_model.h5", "flax_model.msgpack", "onnx/model.onnx", "a.png"):
        (first / name).parent.mkdir(exist_ok=True)
        (first / name).write_bytes(b"not needed")
    (first / "LICENSE").write_text("MIT")
    (first / "README.md").write_text("not needed")
    second = shutil.copytree(first, tmp_path / "served" / "clip2")
    config = json.loads((second / "config.json").read_text())
    config["vision_config"]["layer_norm_eps"] = 1e-6
    (second / "config.json").write_text(json.dumps(config))
    repository = hub_server.Repository
    served = hub_server.Hub(
        {
            "owner/clip": repository(
                dict(zip(COMMITS, (first, second), strict=True)), {"v1": COMMITS[0], "main": COMMITS[1]}
            ),
            "owner/siglip": repository({"c" * 40: siglip_folder}, {"main": "c" * 40}),
            "owner/sentence": repository({"d" * 40: sentence_folder}, {"main": "d" * 40}),
        }
    )
    server = served.start()
    served.url = f"http://127.0.0.1:{server.server_port}"
    yield served
    server.shutdown()
    server.server_close()


@pytest.fixture
def hub_environment(hub: Any, tmp_path: Path) -> dict[str, str]:  # noqa: ANN401
    """What the client's environment is: this hub, an empty cache of its own, no proxy, no token."""
    dropped = ("HF_", "HTTP", "http", "ALL_PROXY", "all_proxy", "NO_PROXY", "no_proxy", "SSL_", "REQUESTS_")
    kept = {name: value for name, value in os.environ.items() if not name.startswith(dropped)}
    own = {"HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_DISABLE_TELEMETRY": "1"}
    return kept | own | {"CLIP_EMBED_CACHE": str(tmp_path / "own-cache")}


@pytest.fixture
def client(hub_environment: dict[str, str]) -> Client:
    """Run Python code in a process of its own: `client(code, *arguments, NAME=value)`."""

    def run(code: str, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(  # noqa: S603
            [sys.executable, "-c", code, *arguments],
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
            env=hub_environment | environment,
        )

    return run


@pytest.fixture(scope="session")
def siglip_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny SigLIP with random weights in the layout of transformers; do not change it, copy it."""
    import torch
    from transformers import SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    folder = tmp_path_factory.mktemp("model") / "tiny-siglip"
    folder.mkdir()
    words = _write_tokenizer(folder)
    tower: dict[str, int] = {
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
    }
    texts = {**tower, "vocab_size": words, "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    images = {**tower, "image_size": 192, "patch_size": 32}
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = SiglipModel(SiglipConfig(text_config=texts, vision_config=images))
        with torch.no_grad():  # the initialisation is so narrow that all vectors would be alike
            for weight in model.parameters():
                if weight.ndim > 1:
                    weight.mul_(2)
    model.save_pretrained(folder)
    SiglipImageProcessorPil(size={"height": 192, "width": 192}).save_pretrained(folder)
    return folder


def _write_tokenizer(folder: Path) -> int:
    """Write a Unigram tokenizer like SigLIP's own, </s> also being what texts are padded with."""
    from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, processors

    letters = [*string.ascii_lowercase, *string.digits, *"äöüß▁"]
    words = ["▁a", "▁red", "▁car", "▁the", "▁dog", "▁photo", "▁of", "ing", "er"]
    special = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0)]
    pieces = [*special, *((word, -4.0) for word in words), *((letter, -7.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    punctuation = "[" + "".join(f"\\{each}" for each in string.punctuation) + "]"
    steps = [
        normalizers.Lowercase(),
        normalizers.Replace(Regex(punctuation), ""),
        normalizers.Replace(Regex(r"\s+"), " "),
        normalizers.Strip(),
    ]
    tokenizer.normalizer = normalizers.Sequence(steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    end = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    tokenizer.post_processor = end
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "SiglipTokenizer",
        "model_max_length": 64,
        "model_input_names": ["input_ids"],
        "eos_token": "</s>",
        "pad_token": "</s>",
        "unk_token": "<unk>",
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return len(pieces)


@pytest.fixture(scope="session")
def pictures(photo: Callable[..., Image.Image]) -> list[Image.Image]:
    """Forty images, no two alike."""
    return [photo(24, 16, seed) for seed in range(40)]
