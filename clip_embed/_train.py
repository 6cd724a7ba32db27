"""Fine-tuning: a CLIP learns from images and captions of your own, by sentence-transformers' trainer."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from clip_embed._embedder import ClipEmbedder
from clip_embed._engine.device import resolve_device
from clip_embed._evaluate import rank
from clip_embed._images.pixels import prepare_pixels
from clip_embed._images.source import read_encoded
from clip_embed._models.hub import obtain
from clip_embed._models.loading import no_progress_bar
from clip_embed._models.opening import check_model, hub_name
from clip_embed._types import Float32, ImagePolicy, ImageSpec
from clip_embed._vectors import unit_rows
from clip_embed.errors import ImageError, MissingExtra, ModelUnsupported

Pair = tuple[str | Path, str]
_Open = Callable[[Path], Image.Image]
_METRIC = "recall"
_FEWEST = 2  # images on each side
_JUDGED = 256  # images that are in memory together


@dataclass(frozen=True, slots=True)
class Training:
    """What came of a training: recall@1 of the held-out pairs, mean of both directions."""

    folder: Path
    """The model: `ClipEmbedder(folder)` loads it."""
    space: str
    """Another one than before: vectors made by the old model are refused."""
    pairs: int
    held_out: int
    """How many pairs the recall is measured on, which training did not see: neither caption nor image."""
    chance: float
    before: float
    after: float
    epochs: int
    """How many it took: training ends early where recall no longer rises."""

    def __str__(self) -> str:
        return (
            f"{self.pairs:,} pairs, {self.epochs} epochs: recall@1 of {self.held_out:,} held-out pairs "
            f"{self.before:.1%} → {self.after:.1%} (chance {self.chance:.1%})"
        )


def train(
    model: str | Path,
    pairs: Sequence[Pair],
    target: str | Path,
    *,
    held_out: Sequence[Pair] | float = 0.1,
    epochs: int = 10,
    batch_size: int = 256,
    chunk_size: int = 32,
    learning_rate: float = 1e-5,
    patience: int = 2,
    seed: int = 0,
    device: str = "auto",
    policy: ImagePolicy | None = None,
    progress: Callable[[int, float], object] | None = None,
) -> Training:
    """Train a CLIP on (image file, caption) pairs, so that each image finds its caption and the reverse.

    >>> train("sentence-transformers/clip-ViT-B-32", pairs, "my-clip")
    >>> ClipEmbedder("my-clip")

    `model` is a hub name or a local folder, `target` a folder that is not there yet. Each of the
    `batch_size` captions of a batch competes for each image, so large batches teach more; memory holds
    `chunk_size` at a time (cached gradients). After each epoch recall@1 is measured on `held_out`: pairs, or
    the share of the images that is drawn and kept from training with all their captions. Training ends when
    it has not risen for `patience` epochs, and the best epoch is kept, which may be the model as it was.
    Equal captions, and captions of one image, count as wrong for each other where they meet in a batch: few
    are harmless, classes are better learned by `fit`. `progress` is told the recall after each epoch, 0 being
    the model as it was.

    Raises ImageError for a file that cannot be used, before anything is trained; ValueError for fewer than
    two images on a side, or one on both, FileExistsError, MissingExtra without accelerate and datasets,
    ModelUnsupported for "offline", else as `ClipEmbedder`.
    """
    folder, goal = _source(model), Path(target)
    if goal.exists():
        raise FileExistsError(f"{goal} is there already: give a folder that is not")
    libraries = _libraries()
    learned, judged = _split([(Path(path), caption) for path, caption in pairs], held_out, seed)
    open_image = partial(_open, policy=policy or ImagePolicy(), spec=ClipEmbedder(folder).model.image_spec)
    for path in dict.fromkeys(path for path, _ in (*learned, *judged)):
        open_image(path)
    used = resolve_device(device)
    student = _student(libraries, folder, used)
    kind: Any = type("Recall", (_Recall, libraries["evaluator"]), {})  # the trainer asks for its base
    recall = kind(judged, open_image, progress)
    before = float(recall(student)[_METRIC])
    goal.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{goal.name}-", dir=goal.parent) as scratch:
        arguments = {
            "output_dir": scratch,
            "num_train_epochs": epochs,
            "per_device_train_batch_size": min(batch_size, len(learned)),
            "learning_rate": learning_rate,
            "seed": seed,
        }
        scale = ClipEmbedder(folder, device="cpu", cache=None).logit_scale
        trainer = libraries["trainer"](
            model=student,
            args=libraries["arguments"](**arguments, **_settings(used)),
            train_dataset=_dataset(libraries, learned, open_image),
            evaluator=recall,
            loss=_loss(libraries, student, scale, chunk_size),
            callbacks=[libraries["stop"](early_stopping_patience=patience)],
        )
        trainer.remove_callback(libraries["printer"])
        with no_progress_bar():
            trainer.train()
        after = max(recall.history[1:], default=before)
        best = student if after > before else _student(libraries, folder, "cpu")
        _save(best, Path(scratch, "model"), goal)
    space, chance = ClipEmbedder(goal).space, 1 / len({path for path, _ in judged})
    done = len(recall.history) - 1
    return Training(goal, space, len(learned), len(judged), chance, before, max(after, before), done)


def _source(model: str | Path) -> Path:
    """Return the folder of a model, from the hub's cache where it is a name."""
    if model == "offline" or not isinstance(model, (str, Path)):  # pyright: ignore[reportUnnecessaryIsInstance]
        raise ModelUnsupported(
            "only a CLIP or SigLIP from a folder or the hub can be trained; the model 'offline' is made of "
            "parts of packages"
        )
    check_model(model)
    name = hub_name(model)
    return obtain(name) if name else Path(model).expanduser()


def _libraries() -> dict[str, Any]:
    """Return what is needed of the libraries; MissingExtra where one is not installed."""
    for name in ("accelerate", "datasets"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            if error.name != name:
                raise
            raise MissingExtra(name, "train", "training") from error
    base = import_module("sentence_transformers")
    inner = f"{base.__name__}.sentence_transformer"
    return {
        "dataset": import_module("datasets").Dataset,
        "stop": import_module("transformers").EarlyStoppingCallback,
        "printer": import_module("transformers").PrinterCallback,
        "loss": import_module(f"{inner}.losses").CachedMultipleNegativesRankingLoss,
        "evaluator": import_module("sentence_transformers.base.evaluation").BaseEvaluator,
        "model": base.SentenceTransformer,
        "trainer": base.SentenceTransformerTrainer,
        "arguments": base.SentenceTransformerTrainingArguments,
    }


def _settings(device: str) -> dict[str, object]:
    """Return what no caller chooses: judged after each epoch, the best one kept, nothing sent."""
    return {
        "warmup_steps": 0.1,
        "eval_strategy": "epoch",
        "save_strategy": "epoch",
        "save_total_limit": 1,
        "save_only_model": True,
        "load_best_model_at_end": True,
        "metric_for_best_model": f"eval_{_METRIC}",
        "greater_is_better": True,
        "remove_unused_columns": False,
        "logging_strategy": "no",
        "report_to": "none",
        "use_cpu": device == "cpu",
        "bf16": device.startswith("cuda"),
        "dataloader_pin_memory": device.startswith("cuda"),
        "disable_tqdm": True,
    }


def _student(libraries: dict[str, Any], folder: Path, device: str) -> Any:  # noqa: ANN401 - a SentenceTransformer
    with no_progress_bar():
        return libraries["model"](str(folder), device=device, local_files_only=True, trust_remote_code=False)


def _loss(libraries: dict[str, Any], student: Any, scale: float, chunk_size: int) -> Any:  # noqa: ANN401
    """Return the contrastive loss, in both directions, gradients cached `chunk_size` pairs at a time."""
    return libraries["loss"](
        student,
        scale=scale,
        mini_batch_size=chunk_size,
        directions=("query_to_doc", "doc_to_query"),
        partition_mode="per_direction",
    )


def _save(model: Any, draft: Path, goal: Path) -> None:  # noqa: ANN401 - a SentenceTransformer
    """Write a model's folder, which is there whole or not at all."""
    with no_progress_bar():
        model.save(str(draft), create_model_card=False)
    draft.rename(goal)


def _split(
    pairs: list[tuple[Path, str]], held_out: Sequence[Pair] | float, seed: int
) -> tuple[list[tuple[Path, str]], list[tuple[Path, str]]]:
    """Return pairs to learn from and pairs to judge by, of other images."""
    if isinstance(held_out, (int, float)):
        if not 0 < held_out < 1:
            raise ValueError(f"held_out must be a share between 0 and 1, or pairs, not {held_out}")
        files = list(dict.fromkeys(path for path, _ in pairs))
        order: list[int] = np.random.default_rng(seed).permutation(len(files)).tolist()
        kept = {files[place] for place in order[: max(_FEWEST, round(len(files) * held_out))]}
        learned = [pair for pair in pairs if pair[0] not in kept]
        judged = [pair for pair in pairs if pair[0] in kept]
    else:
        learned, judged = pairs, [(Path(path), caption) for path, caption in held_out]
    sides = [{path for path, _ in side} for side in (learned, judged)]
    if both := sides[0] & sides[1]:
        raise ValueError(f"{min(both)} is to be learned from, and held out: keep it on one side")
    if min(map(len, sides)) < _FEWEST:
        raise ValueError(f"{len(sides[0])} images to learn from and {len(sides[1])} held out are too few")
    if empty := [path for path, caption in (*learned, *judged) if not caption.strip()]:
        raise ValueError(f"the caption of {empty[0]} is empty")
    return learned, judged


def _open(path: Path, *, policy: ImagePolicy, spec: ImageSpec) -> Image.Image:
    """Return an image as the embedder sees it, in the model's size, so that large batches of photos fit.

    Raises ImageError that names the file.
    """
    try:
        pixels = prepare_pixels(path, read_encoded(path, policy), spec, policy)
    except ImageError as error:
        raise ImageError(f"{path}: {error}", retryable=error.retryable) from None
    return Image.fromarray(np.ascontiguousarray(pixels))


def _dataset(libraries: dict[str, Any], pairs: list[tuple[Path, str]], open_image: _Open) -> Any:  # noqa: ANN401
    """Return pairs that are read when they are needed; a caption is marked as a text, whatever is in it."""

    def read(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
        images = [open_image(Path(path)) for path in batch["image"]]
        return {"image": images, "caption": [{"text": caption} for caption in batch["caption"]]}

    rows = {"image": [str(path) for path, _ in pairs], "caption": [caption for _, caption in pairs]}
    return libraries["dataset"].from_dict(rows).with_transform(read)


class _Recall:
    """Measures recall@1 of held-out pairs, mean of both directions, and remembers it."""

    def __init__(
        self,
        pairs: list[tuple[Path, str]],
        open_image: _Open,
        progress: Callable[[int, float], object] | None,
    ) -> None:
        super().__init__()
        self.primary_metric = _METRIC
        self.history: list[float] = []
        self._open, self._progress = open_image, progress
        self._files = list(dict.fromkeys(path for path, _ in pairs))
        place = {path: place for place, path in enumerate(self._files)}
        self._owners = np.array([place[path] for path, _ in pairs], np.int64)
        self._captions = [{"text": caption} for _, caption in pairs]

    def __call__(self, model: Any, *_: object, **__: object) -> dict[str, float]:  # noqa: ANN401
        blocks = [self._files[start : start + _JUDGED] for start in range(0, len(self._files), _JUDGED)]
        images = [_vectors(model, [self._open(path) for path in block]) for block in blocks]
        captions = _vectors(model, self._captions)
        found = rank(np.concatenate(images), captions, self._owners, captions[:0])
        self.history.append((found.text_to_image(1) + found.image_to_text(1)) / 2)
        if self._progress is not None:
            self._progress(len(self.history) - 1, self.history[-1])
        return {_METRIC: self.history[-1]}


def _vectors(model: Any, inputs: list[Any]) -> Float32:  # noqa: ANN401
    """Return the unit vectors of images or captions by the model as it is now."""
    return unit_rows(model.encode(inputs, show_progress_bar=False).astype(np.float32))
