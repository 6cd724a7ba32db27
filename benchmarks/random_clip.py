"""A CLIP in the shape of ViT-B/32 with random weights: as fast as the trained one, and never downloaded.

Beside it one in the shape of ViT-L/14 and a tiny one for gpu.py, and a smaller SigLIP, in the shape of
ViT-S/16, for the figures of fidelity.

The weights are drawn so that its vectors tell images apart. As transformers draws them, all vectors lie
within a narrow cone and follow little but the mean colour of the patches: a photo resized by the wrong filter
would pass for the right one. So weights are drawn wider, and the filters that read the patches sum to
zero, as those of trained towers nearly do: detail counts, and the check of vectors in cpu.py has teeth.
"""

from __future__ import annotations

import importlib.util
import json
import shutil
import string
from pathlib import Path
from typing import Any

RECIPE = "1"  # in the name of the folder: count it up when a change gives other weights
SEED = 20
WIDER = 4
WIDER_SIGLIP = 1.2  # transformers draws its weights wider to begin with
_TINY = {"hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2, "num_attention_heads": 4}
SHAPES: dict[str, dict[str, Any]] = {
    "ViT-B/32": {},
    "ViT-L/14": {
        "vision": {
            "hidden_size": 1024,
            "intermediate_size": 4096,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "patch_size": 14,
        },
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12},
        "dim": 768,
        "wider": 2,
    },
    "tiny": {"vision": _TINY, "text": _TINY, "dim": 48},
}
ONNX_NEEDS = ("onnx", "onnxruntime", "onnxscript")


def clip_folder(cache: Path) -> Path:
    """The folder of the model below `cache`, as transformers and sentence-transformers read it."""
    folder = cache / f"random-clip-vit-b-32-{RECIPE}"
    if not folder.exists():
        part = _emptied(folder.with_suffix(".part"))
        _write_clip(part)
        part.rename(folder)
    return folder


def shaped_folder(cache: Path, shape: str) -> Path:
    """The folder of a CLIP in one of `SHAPES` below `cache`."""
    if shape == "ViT-B/32":
        return clip_folder(cache)
    folder = cache / f"random-clip-{shape.lower().replace('/', '-')}-{RECIPE}"
    if not folder.exists():
        part = _emptied(folder.with_suffix(".part"))
        _write_clip(part, **SHAPES[shape])
        part.rename(folder)
    return folder


def siglip_folder(cache: Path) -> Path:
    """The folder of the SigLIP below `cache`."""
    folder = cache / f"random-siglip-vit-s-16-{RECIPE}"
    if not folder.exists():
        part = _emptied(folder.with_suffix(".part"))
        _write_siglip(part)
        part.rename(folder)
    return folder


def onnx_folder(clip: Path) -> Path:
    """The image tower of `clip` as FastEmbed reads it: model.onnx and preprocessor_config.json.

    Raises ImportError where a package that the export needs is missing.
    """
    folder = clip.with_name(f"{clip.name}-onnx")
    if not folder.exists():
        for name in ONNX_NEEDS:
            if importlib.util.find_spec(name) is None:
                raise ImportError(f"No module named {name!r}", name=name)
        part = _emptied(folder.with_suffix(".part"))
        _write_onnx(clip, part)
        part.rename(folder)
    return folder


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _write_clip(
    folder: Path,
    vision: dict[str, int] | None = None,
    text: dict[str, int] | None = None,
    dim: int = 512,
    wider: float = WIDER,
) -> None:
    import torch
    from transformers import CLIPConfig, CLIPModel, CLIPProcessor
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = byte_tokenizer(folder)
    ends = {name: getattr(tokenizer, name) for name in ("bos_token_id", "eos_token_id", "pad_token_id")}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        texts = {**(text or {}), **ends}
        model = CLIPModel(  # every other default is ViT-B/32
            CLIPConfig(text_config=texts, vision_config=vision or {}, projection_dim=dim)
        )
    _widen(model, wider)
    model.save_pretrained(folder)
    CLIPProcessor(image_processor=CLIPImageProcessorPil(), tokenizer=tokenizer).save_pretrained(folder)


def _write_siglip(folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast, SiglipConfig, SiglipModel
    from transformers.models.siglip.image_processing_pil_siglip import SiglipImageProcessorPil

    letters = [*string.ascii_letters, *string.digits, *string.punctuation, "▁"]
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((letter, -7.0) for letter in letters)]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=2))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=64, **dict.fromkeys(("pad_token", "eos_token"), "</s>")
    ).save_pretrained(folder)
    tower = {
        "hidden_size": 384,
        "intermediate_size": 1536,
        "num_hidden_layers": 12,
        "num_attention_heads": 6,
    }
    ends = {"vocab_size": len(pieces), "bos_token_id": 1, "eos_token_id": 1, "pad_token_id": 1}
    with torch.random.fork_rng():
        torch.manual_seed(SEED)
        model = SiglipModel(SiglipConfig(text_config={**tower, **ends}, vision_config=tower))
    _widen(model, WIDER_SIGLIP)
    model.save_pretrained(folder)
    SiglipImageProcessorPil().save_pretrained(folder)


def _widen(model: Any, times: float) -> None:  # noqa: ANN401 - a model of transformers
    """Let the vectors tell images apart, but not follow every rounding."""
    import torch

    with torch.no_grad():
        for weight in model.parameters():
            if weight.ndim > 1:
                weight.mul_(times)
        patches = model.vision_model.embeddings.patch_embedding.weight
        patches.sub_(patches.mean((2, 3), keepdim=True)).mul_(times)


def byte_tokenizer(folder: Path) -> Any:  # noqa: ANN401 - transformers' CLIPTokenizer
    """CLIP's tokenizer without merges: every byte is a token. No text is timed here."""
    from transformers import CLIPTokenizer

    printable = {*range(33, 127), *range(161, 173), *range(174, 256)}
    rest = [byte for byte in range(256) if byte not in printable]
    letters = [chr(byte) for byte in sorted(printable)] + [chr(256 + place) for place in range(len(rest))]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    (folder / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (folder / "merges.txt").write_text("#version: 0.2\n")
    return CLIPTokenizer.from_pretrained(folder, model_max_length=77)


def _write_onnx(clip: Path, folder: Path) -> None:
    import torch
    from transformers import CLIPVisionModelWithProjection

    class ImageTower(torch.nn.Module):
        """Pixels in, the projected vector out: the one output that FastEmbed takes."""

        def __init__(self) -> None:
            super().__init__()
            self.model = CLIPVisionModelWithProjection.from_pretrained(clip).eval()

        def forward(self, pixel_values: torch.Tensor) -> torch.Tensor:
            """(n, 3, 224, 224) -> (n, 512)."""
            return self.model(pixel_values=pixel_values).image_embeds

    torch.onnx.export(
        ImageTower().eval(),
        (torch.zeros(2, 3, 224, 224),),
        str(folder / "model.onnx"),
        input_names=["pixel_values"],
        output_names=["image_embeds"],
        dynamic_shapes={"pixel_values": {0: torch.export.Dim("batch", min=1, max=4096)}},
        dynamo=True,
        external_data=False,
        verbose=False,
    )
    configuration = {
        "image_processor_type": "CLIPImageProcessor",
        "do_resize": True,
        "size": {"shortest_edge": 224},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(configuration))
