"""From a model's name to an object with the `Model` protocol."""

from __future__ import annotations

import os
from pathlib import Path

from clip_embed._engine.device import devices_of, resolve_device
from clip_embed._models.hub import HubName, obtain, parse_name
from clip_embed._models.hub_errors import WAYS_OUT
from clip_embed._models.precision import FULL, check_precision, resolve
from clip_embed._types import Model
from clip_embed.errors import ModelNotFound

DEFAULT_MODEL = "sentence-transformers/clip-ViT-B-32"


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
    elif hub_name(model) is None and not Path(model).expanduser().is_dir():
        raise ModelNotFound(f"no such model folder: {model}\n{WAYS_OUT}")


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


def check_model_devices(model: object, device: str) -> None:
    """Raise ValueError where a model is to run on several devices that is no CLIP or SigLIP given by name."""
    if len(devices_of(device)) > 1 and (model == "offline" or not isinstance(model, (str, Path))):
        what = "the offline model" if model == "offline" else f"a {type(model).__name__}"
        raise ValueError(f"{what} runs on one device, not on {device}: take one embedder for each")


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
    from clip_embed._models.model_folder import ModelFolder

    name = hub_name(model)
    folder = obtain(name) if name else Path(model).expanduser()
    return ModelFolder(folder, device, precision)


def path_or_model(model: str | Path | Model) -> str | Path | Model:
    """Return a checked model as it is found from any working directory: a folder by its absolute path."""
    if not isinstance(model, (str, Path)) or model == "offline" or hub_name(model) is not None:
        return model
    return Path(model).expanduser().absolute()


def hub_name(model: object) -> HubName | None:
    """Return a hub name's parts, None for anything else; a folder comes first, a Path is always one."""
    return parse_name(model) if isinstance(model, str) and not Path(model).is_dir() else None
