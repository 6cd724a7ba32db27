"""CLIP from a folder: both layouts, the space, and the same vectors as transformers itself."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from clip_embed import ClipEmbedder, Model, ModelUnsupported
from clip_embed._models import space as space_module
from clip_embed._models.model_folder import ModelFolder

Photo = Callable[..., Image.Image]
EditJson = Callable[[Path, dict[str, object]], None]
Float32 = npt.NDArray[np.float32]

TEXTS = ["", "a red car", "the dog", "ein grünes Haus", "🚗 日本", "\0", "A  RED\ncar", "x" * 60]


@pytest.fixture(scope="module")
def reference(clip_folder: Path) -> tuple[Any, Any]:
    """transformers' own CLIPModel and CLIPProcessor (PIL backend) of the folder."""
    from transformers import CLIPModel, CLIPProcessor, CLIPTokenizer
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    images = CLIPImageProcessorPil.from_pretrained(clip_folder)
    tokenizer = CLIPTokenizer.from_pretrained(clip_folder)
    model = CLIPModel.from_pretrained(clip_folder, dtype=torch.float32).eval()
    return model, CLIPProcessor(image_processor=images, tokenizer=tokenizer)


def unit(output: Any) -> Float32:  # noqa: ANN401 - a tensor, or an output that holds one
    """float32 rows of unit length."""
    rows: Float32 = getattr(output, "pooler_output", output).numpy()
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


@torch.inference_mode()
def text_reference(reference: tuple[Any, Any], texts: list[str]) -> Float32:
    """Embed texts one by one, without padding, cut at 77 tokens."""
    model, processor = reference
    inputs = [
        processor.tokenizer(text, truncation=True, max_length=77, return_tensors="pt") for text in texts
    ]
    return np.concatenate([unit(model.get_text_features(**each)) for each in inputs])


@torch.inference_mode()
def image_reference(reference: tuple[Any, Any], images: list[Image.Image]) -> Float32:
    """Embed images one by one in float32."""
    model, processor = reference
    inputs = [processor.image_processor(image, return_tensors="pt") for image in images]
    return np.concatenate([unit(model.get_image_features(**each)) for each in inputs])


@pytest.fixture(scope="module")
def photos(photo: Photo) -> list[Image.Image]:
    """Photos of several shapes, also smaller than the model's input."""
    sizes = [(320, 240), (240, 320), (224, 224), (500, 90), (50, 400), (64, 48), (1, 1), (30, 225)]
    return [photo(*size, seed) for seed, size in enumerate(sizes)]


def test_images_as_transformers_embeds_them(
    tiny: ClipEmbedder, reference: tuple[Any, Any], photos: list[Image.Image]
) -> None:
    """Every vector within 1e-5 of the PIL image processor and the float32 forward pass."""
    np.testing.assert_allclose(tiny.embed_images(photos), image_reference(reference, photos), atol=1e-5)


def test_texts_as_transformers_embeds_them(tiny: ClipEmbedder, reference: tuple[Any, Any]) -> None:
    """Every vector within 1e-5, padded in a batch or not."""
    expected = text_reference(reference, TEXTS)
    np.testing.assert_allclose(tiny.embed_texts(TEXTS), expected, atol=1e-5)
    assert len(np.unique(expected.round(4), axis=0)) >= 7  # "a red car" and "A  RED\ncar" are one text


def test_batch_size_and_order_do_not_show(clip_folder: Path, photos: list[Image.Image]) -> None:
    """In exact precision a vector moves by at most 1e-5, whatever it is computed beside."""
    whole = ClipEmbedder(clip_folder, device="cpu", precision="exact", cache=None, batch_size=8)
    expected, texts = whole.embed_images(photos), whole.embed_texts(TEXTS)
    for size in (1, 3, 5):
        clip = ClipEmbedder(clip_folder, device="cpu", precision="exact", cache=None, batch_size=size)
        np.testing.assert_allclose(clip.embed_images(photos[::-1])[::-1], expected, atol=1e-5)
    np.testing.assert_allclose(whole.embed_texts(TEXTS[::-1])[::-1], texts, atol=1e-5)
    alone = np.concatenate([whole.embed_texts([text]) for text in TEXTS])
    np.testing.assert_allclose(alone, texts, atol=1e-5)


def test_long_texts_are_cut_with_one_warning(tiny: ClipEmbedder, reference: tuple[Any, Any]) -> None:
    """Beyond 77 tokens a text is cut as transformers cuts it, and the warning says how many were."""
    long = ["qx" * 60, "a red car " * 40]
    exact = " ".join(["car"] * 75)  # 75 tokens and the two ends: it fits
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        got = tiny.embed_texts(["short", *long, exact])
    assert len(caught) == 1
    assert str(caught[0].message).startswith("2 of 4 texts are longer than the 77 tokens")
    assert repr(long[0][:60]) in str(caught[0].message)
    np.testing.assert_allclose(got, text_reference(reference, ["short", *long, exact]), atol=1e-5)
    assert np.abs(got[1] - tiny.embed_texts([long[0][:40]])[0]).max() > 1e-3


def test_texts_with_surrogates(tiny: ClipEmbedder) -> None:
    """A lone surrogate, as in odd file names, is a U+FFFD to the tokenizer."""
    np.testing.assert_array_equal(tiny.embed_texts(["car\udcff"]), tiny.embed_texts(["car\ufffd"]))


def test_both_layouts_are_one_model(
    clip_folder: Path, sentence_folder: Path, tmp_path: Path, photos: list[Image.Image]
) -> None:
    """The layouts of transformers, of the hub and of SentenceTransformer.save: one space, one vector."""
    from sentence_transformers import SentenceTransformer

    SentenceTransformer(str(clip_folder), device="cpu").save(str(tmp_path / "saved"))
    expected = ClipEmbedder(clip_folder, device="cpu")
    for folder in (sentence_folder, tmp_path / "saved"):
        clip = ClipEmbedder(str(folder), device="cpu")
        assert (clip.space, clip.dim) == (expected.space, 48)
        got = clip.embed_images(photos)  # batches form as images come, so to rounding only
        np.testing.assert_allclose(got, expected.embed_images(photos), atol=1e-5)
        np.testing.assert_array_equal(clip.embed_texts(TEXTS), expected.embed_texts(TEXTS))
    assert isinstance(expected.model, Model)


def test_space_and_dim_need_no_sentence_transformers(clip_folder: Path) -> None:
    """They are read from the files, before anything is loaded."""
    code = (
        "import sys; from clip_embed import ClipEmbedder; clip = ClipEmbedder(sys.argv[1]);"
        "print(clip.dim, clip.space, 'sentence_transformers' in sys.modules, 'transformers' in sys.modules)"
    )
    done = subprocess.run(  # noqa: S603
        [sys.executable, "-c", code, str(clip_folder)], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["48", ModelFolder(clip_folder).space, "False", "False"]


def change_weight(folder: Path) -> None:
    """Change one number of one tensor."""
    tensors = load_file(folder / "model.safetensors")
    tensors["visual_projection.weight"][0, 0] += 1e-3
    save_file(tensors, folder / "model.safetensors")


def set_json(name: str, changes: dict[str, object]) -> Callable[[Path, EditJson], None]:
    """Return a change of a JSON file of the folder."""
    return lambda folder, edit: edit(folder / name, changes)


CHANGES: dict[str, Callable[[Path, EditJson], None]] = {
    "one weight": lambda folder, _: change_weight(folder),
    "image activation": set_json("config.json", {"vision_config.hidden_act": "gelu"}),
    "text activation": set_json("config.json", {"text_config.hidden_act": "gelu"}),
    "heads": set_json("config.json", {"vision_config.num_attention_heads": 2}),
    "end token": set_json("config.json", {"text_config.eos_token_id": 3}),
    "size": set_json("processor_config.json", {"image_processor.size": {"shortest_edge": 256}}),
    "mean": set_json("processor_config.json", {"image_processor.image_mean": [0.5, 0.5, 0.5]}),
    "resample": set_json("processor_config.json", {"image_processor.resample": 2}),
    "normalisation": set_json("processor_config.json", {"image_processor.do_normalize": False}),
    "merges": set_json("tokenizer.json", {"model.merges": [["r", "e"]]}),
}


@pytest.mark.parametrize("change", CHANGES)
def test_space_changes_with_what_moves_a_vector(
    change: str, own_folder: Path, clip_folder: Path, edit_json: EditJson
) -> None:
    """Weights, flags, preprocessing and tokenizer are each part of the space."""
    before = ModelFolder(own_folder).space
    assert before == ModelFolder(clip_folder).space
    CHANGES[change](own_folder, edit_json)
    assert ModelFolder(own_folder).space != before


def test_space_changes_with_the_crop(own_folder: Path, edit_json: EditJson) -> None:
    """Crop and image size, which must fit each other, are part of the space."""
    before = ModelFolder(own_folder).space
    edit_json(own_folder / "config.json", {"vision_config.image_size": 192})
    with pytest.raises(ModelUnsupported, match=r"gives \(224, 224\), the image tower takes \(192, 192\)"):
        ModelFolder(own_folder)
    crop = {"image_processor.crop_size": {"height": 192, "width": 192}}
    edit_json(own_folder / "processor_config.json", crop)
    assert ModelFolder(own_folder).space != before


def test_the_space_of_clip_is_what_it_was(clip_folder: Path) -> None:
    """Written out: stored vectors of a CLIP folder stay comparable whatever else is learned to load."""
    config = json.loads((clip_folder / "config.json").read_text())
    tokenizer = json.loads((clip_folder / "tokenizer.json").read_text())
    flags = ("hidden_act", "num_attention_heads", "layer_norm_eps")
    mean, std = (
        [0.48145466, 0.4578275, 0.40821073],
        [0.26862954, 0.26130258, 0.27577711],
    )
    facts = {
        "text": {
            name: config["text_config"][name] for name in (*flags, "max_position_embeddings", "eos_token_id")
        },
        "image": {name: config["vision_config"][name] for name in (*flags, "image_size")},
        "pixels": [224, [224, 224], "bicubic", True, 1 / 255, True, mean, std],
        "tokenizer": {
            name: value
            for name, value in tokenizer.items()
            if name not in ("padding", "truncation", "version")
        },
    }
    weights = space_module.checkpoint_digest([clip_folder / "model.safetensors"])
    assert ModelFolder(clip_folder).space == space_module.space_of("clip", weights, 48, facts)


def test_space_is_the_contents_not_the_files(
    own_folder: Path, clip_folder: Path, edit_json: EditJson
) -> None:
    """Another order of tensors, metadata, spelling of the configuration or time changes nothing."""
    tensors = load_file(own_folder / "model.safetensors")
    backwards = {name: tensors[name].clone() for name in reversed(tensors)}
    save_file(backwards, own_folder / "model.safetensors", metadata={"format": "pt", "note": "copied"})
    os.utime(own_folder / "model.safetensors", ns=(1, 1))
    (own_folder / "model.fp16.safetensors").write_bytes(b"a variant that is not loaded")
    edit_json(own_folder / "config.json", {"transformers_version": "9", "_name_or_path": "elsewhere"})
    processor = json.loads((own_folder / "processor_config.json").read_text())["image_processor"]
    flat = {**processor, "size": 224, "crop_size": 224}
    (own_folder / "preprocessor_config.json").write_text(json.dumps(flat, indent=4))
    (own_folder / "processor_config.json").unlink()
    edit_json(own_folder / "tokenizer.json", {"truncation": None, "padding": None})
    (own_folder / "README.md").write_text("a copy")
    assert ModelFolder(own_folder).space == ModelFolder(clip_folder).space


def test_pytorch_weights_are_accepted(
    own_folder: Path, clip_folder: Path, photos: list[Image.Image], tiny: ClipEmbedder
) -> None:
    """pytorch_model.bin with the same tensors is the same space and gives the same vectors."""
    tensors = load_file(own_folder / "model.safetensors")
    (own_folder / "model.safetensors").unlink()
    torch.save(tensors, own_folder / "pytorch_model.bin")
    clip = ClipEmbedder(own_folder, device="cpu", precision="exact")
    assert clip.space == ModelFolder(clip_folder).space
    np.testing.assert_allclose(clip.embed_images(photos), tiny.embed_images(photos), atol=1e-6)


def test_sharded_weights_are_one_checkpoint(own_folder: Path, clip_folder: Path) -> None:
    """Shards hash as the whole."""
    tensors = load_file(own_folder / "model.safetensors")
    names = sorted(tensors)
    (own_folder / "model.safetensors").unlink()
    for number, part in enumerate((names[::2], names[1::2]), 1):
        shard = {name: tensors[name] for name in part}
        save_file(shard, own_folder / f"model-0000{number}-of-00002.safetensors")
    assert ModelFolder(own_folder).space == ModelFolder(clip_folder).space


def test_the_digest_is_remembered_until_the_file_changes(
    own_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are read once for each size and time of the file; a broken memory is no error."""
    monkeypatch.setenv("CLIP_EMBED_CACHE", str(tmp_path / "cache"))
    reads: list[Path] = []
    load = space_module._load_tensors
    monkeypatch.setattr(space_module, "_load_tensors", lambda file: reads.append(file) or load(file))
    first = ModelFolder(own_folder).space
    assert [ModelFolder(own_folder).space for _ in range(3)] == [first] * 3
    assert len(reads) == 1
    assert len(list((tmp_path / "cache" / "digests").iterdir())) == 1
    change_weight(own_folder)
    assert ModelFolder(own_folder).space != first
    assert len(reads) == 2
    monkeypatch.setenv("CLIP_EMBED_CACHE", str(own_folder / "config.json"))  # no folder
    assert ModelFolder(own_folder).space != first
    assert len(reads) == 3


BROKEN: dict[str, tuple[Callable[[Path], object], str]] = {
    "empty": (lambda folder: (shutil.rmtree(folder), folder.mkdir()), "has no config.json"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "broken JSON": (lambda folder: (folder / "config.json").write_text("{"), "config.json is not valid JSON"),
    "binary": (lambda folder: (folder / "config.json").write_bytes(b"\xff\xfe\0"), "not valid JSON"),
    "a list": (lambda folder: (folder / "config.json").write_text("[]"), "config.json holds no JSON object"),
    "no type": (lambda folder: (folder / "config.json").write_text("{}"), "model of no stated type"),
    "no processor": (lambda folder: (folder / "processor_config.json").unlink(), "no processor_config.json"),
    "no weights": (
        lambda folder: (folder / "model.safetensors").unlink(),
        "neither model.safetensors nor pytorch_model.bin",
    ),
    "no modules": (lambda folder: (folder / "modules.json").write_text("[]"), "lists no modules"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_folders_that_are_no_model(case: str, own_folder: Path) -> None:
    """ModelUnsupported names the file and what is wrong with it, before anything is loaded."""
    change, message = BROKEN[case]
    change(own_folder)
    clip = ClipEmbedder(own_folder)
    for use in (lambda: clip.dim, lambda: clip.space, clip.load, lambda: clip.embed_texts(["red"])):
        with pytest.raises(ModelUnsupported, match=message) as caught:
            use()
        assert str(own_folder) in str(caught.value)


@pytest.mark.parametrize("name", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("content", [b"", b"version https://git-lfs.github.com/spec/v1\n", b"\0" * 500])
def test_weights_that_are_no_weights(name: str, content: bytes, own_folder: Path) -> None:
    """A pointer of Git LFS or half a download is named, not a decoder's error."""
    (own_folder / "model.safetensors").unlink()
    (own_folder / name).write_bytes(content)
    with pytest.raises(ModelUnsupported, match=rf"{name} holds no readable tensors"):
        _ = ModelFolder(own_folder).space


@pytest.mark.parametrize("kind", ["siglip2", "bert", "chinese_clip"])
def test_other_models_are_named_and_refused(kind: str, own_folder: Path, edit_json: EditJson) -> None:
    """A folder of another type of model is not loaded as if it were CLIP."""
    edit_json(own_folder / "config.json", {"model_type": kind})
    with pytest.raises(ModelUnsupported, match=f"holds a '{kind}'"):
        ModelFolder(own_folder)


def test_what_would_change_the_vectors_is_refused(own_folder: Path, edit_json: EditJson) -> None:
    """A free size and modules behind the towers are errors."""
    module = {"idx": 1, "name": "1", "path": "1_Dense", "type": "sentence_transformers.models.Dense"}
    own = {**module, "path": "", "type": "sentence_transformers.models.CLIPModel"}
    (own_folder / "modules.json").write_text(json.dumps([own, module]))
    with pytest.raises(ModelUnsupported, match=r"adds sentence_transformers\.models\.Dense"):
        ModelFolder(own_folder)
    normalize = {**module, "type": "sentence_transformers.models.Normalize"}
    (own_folder / "modules.json").write_text(json.dumps([own, normalize]))
    assert ModelFolder(own_folder).dim == 48
    edit_json(own_folder / "processor_config.json", {"image_processor.do_center_crop": False})
    with pytest.raises(ModelUnsupported, match="images of no fixed size"):
        ModelFolder(own_folder)
