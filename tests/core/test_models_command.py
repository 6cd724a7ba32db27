"""`clip-embed models` and `models pull`, the latter against a hub on loopback, as a program of its own."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner
from hub_server import Hub

from clip_embed._cli.models import models
from clip_embed._models.catalog import KNOWN_MODELS
from clip_embed._models.hub import copy_model
from clip_embed._models.model_folder import ModelFolder
from clip_embed.cli import main

Client = Callable[..., subprocess.CompletedProcess[str]]
PROGRAM = "from clip_embed.cli import main; main()"


def test_the_table_names_every_model() -> None:
    """One line each, with what decides: dimension, licence, quality, size and cost."""
    shown = CliRunner().invoke(main, ["models"]).stdout
    for model in KNOWN_MODELS:
        line = next(line for line in shown.splitlines() if line.startswith(f"{model.name} "))
        facts = (model.dim, model.pixels, model.licence, model.imagenet, model.coco, model.megabytes)
        assert all(str(fact) in line for fact in facts if fact is not None)


def test_json_says_which_are_here(hub: Hub, client: Client) -> None:
    """Before a download "here" is false, afterwards true; nothing is asked of the hub."""
    name = KNOWN_MODELS[1].name
    hub.repositories[name] = hub.repositories["owner/clip"]

    def here() -> bool:
        listed = json.loads(client(PROGRAM, "models", "--json").stdout)
        return next(model["here"] for model in listed if model["name"] == name)

    assert not here()
    assert hub.calls == []
    assert client(PROGRAM, "models", "pull", name).returncode == 0
    assert here()


def test_pull_says_what_it_did(hub: Hub, client: Client) -> None:
    """Size, commit, place and the next command; a second pull fetches nothing."""
    first = client(PROGRAM, "models", "pull", "owner/clip")
    assert first.returncode == 0, first.stderr
    assert "owner/clip: 1.5 MB, commit bbbbbbbbbbbb\n" in first.stdout
    assert 'clip-embed search PHOTOS "a red car" --model owner/clip\n' in first.stdout
    hub.calls.clear()
    again = client(PROGRAM, "models", "pull", "owner/clip")
    assert "(was there already)" in again.stdout
    assert hub.fetched() == set()


def test_pull_fetches_what_is_newer(hub: Hub, client: Client) -> None:
    """The cache is used without asking; pull is how a newer version comes in."""
    hub.repositories["owner/clip"].refs["main"] = "a" * 40
    assert "commit aaaaaaaaaaaa" in client(PROGRAM, "models", "pull", "owner/clip").stdout
    hub.repositories["owner/clip"].refs["main"] = "b" * 40
    newer = client(PROGRAM, "models", "pull", "owner/clip")
    assert "commit bbbbbbbbbbbb" in newer.stdout
    assert "already" not in newer.stdout


@pytest.mark.parametrize("name", ["owner/clip", "owner/sentence"])
def test_pull_to_a_folder(name: str, hub: Hub, client: Client, tmp_path: Path) -> None:
    """A plain folder, without links, that loads where there is no network; again it copies nothing."""
    folder = tmp_path / "usb" / "model"
    done = client(PROGRAM, "models", "pull", name, "--to", str(folder))
    assert done.returncode == 0, done.stderr
    assert f"--model {folder}" in done.stdout
    files = [file for file in folder.rglob("*") if file.is_file()]
    assert not any(file.is_symlink() for file in files)
    assert not any(file.suffix in (".h5", ".bin", ".onnx", ".msgpack", ".png") for file in files)
    moved = shutil.move(folder, tmp_path / "elsewhere")
    assert ModelFolder(Path(moved)).dim == 48
    shutil.copytree(moved, folder)
    assert "(0 files copied)" in client(PROGRAM, "models", "pull", name, "--to", str(folder)).stdout


def test_pull_without_a_hub_takes_what_is_here(hub: Hub, client: Client, tmp_path: Path) -> None:
    """A copy in the cache is enough for a folder; where there is none, the exit code is 1."""
    assert client(PROGRAM, "models", "pull", "owner/clip").returncode == 0
    hub.faults.status = 503
    folder = tmp_path / "out"
    done = client(PROGRAM, "models", "pull", "owner/clip", "--to", str(folder))
    assert (done.returncode, ModelFolder(folder).dim) == (0, 48)
    assert "taking the one in the cache" in done.stderr
    missing = client(PROGRAM, "models", "pull", "owner/siglip")
    assert missing.returncode == 1
    assert "Ways out" in missing.stderr
    assert "Traceback" not in missing.stderr


def test_pull_of_a_revision(hub: Hub, client: Client) -> None:
    """--revision and @ are the same."""
    for arguments in (["owner/clip", "--revision", "v1"], ["owner/clip@v1"]):
        done = client(PROGRAM, "models", "pull", *arguments)
        assert "owner/clip@v1: 1.5 MB, commit aaaaaaaaaaaa" in done.stdout, done.stderr
        assert "--model owner/clip@v1\n" in done.stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["pull"], "Missing argument"),
        (["pull", "offline"], "pip install"),
        (["pull", "/no/such/name"], "not a name on the hub"),
        (["pull", "owner/clip@v1", "--revision", "v2"], "names a revision"),
        (["pull", "owner/clip", "--revision", "a b"], "cannot be a branch"),
    ],
)
def test_wrong_usage(arguments: list[str], message: str) -> None:
    """Exit code 2, and what is wrong."""
    done = CliRunner().invoke(models, arguments)
    assert done.exit_code == 2
    assert message in done.stderr


def test_a_folder_with_other_files_is_left_alone(clip_folder: Path, tmp_path: Path) -> None:
    """Two models do not get mixed; what an interrupted copy left is replaced."""
    target = tmp_path / "target"
    target.mkdir()
    (target / "model.safetensors.incomplete").write_bytes(b"half")
    assert copy_model(clip_folder, target) == len([*clip_folder.iterdir()])
    assert not [*target.glob("*.incomplete")]
    (target / "vocab.json").write_text("{}")
    with pytest.raises(FileExistsError, match=r"holds other files \(vocab\.json\)"):
        copy_model(clip_folder, target)


def test_every_option_is_documented() -> None:
    """--help says what each command does and every option has a help text."""
    for command in models.commands.values():
        assert command.help
        described = [parameter for parameter in command.params if parameter.param_type_name == "option"]
        assert all(getattr(parameter, "help", None) for parameter in described)
