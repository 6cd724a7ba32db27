"""A tiny SigLIP, for the tests of the core."""

from __future__ import annotations

import json
import string
from pathlib import Path

import pytest


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
