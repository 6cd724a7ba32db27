"""Models from the hub, end to end: a real client against a hub on loopback that counts what it serves.

The client runs in processes of its own, because huggingface_hub reads its environment once.
`pytest tests/core/test_hub.py -k transcript -s` prints the calls of a first and a second start.
"""

from __future__ import annotations

import os
import re
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hub_server import Hub

from clip_embed._models.hub import HubName, RemoteFile, needed, parse_name
from clip_embed._models.model_folder import ModelFolder

Client = Callable[..., subprocess.CompletedProcess[str]]

WHOLE = """
import sys, warnings, numpy as np
from clip_embed import ClipEmbedder
clip = ClipEmbedder(sys.argv[1], device="cpu", precision="exact")
image = np.arange(60 * 50 * 3, dtype=np.uint8).reshape(1, 60, 50, 3)
print(clip.space, float(clip.scores(image, ["a red car"])[0, 0]))
"""
OPEN = """
import sys, time
from clip_embed import ClipEmbedder, ModelNotFound
import huggingface_hub, huggingface_hub.hf_api
huggingface_hub.constants.DOWNLOAD_CHUNK_SIZE = 65_536  # what is kept of a broken download is whole pieces
started = time.perf_counter()
try:
    print(ClipEmbedder(sys.argv[1]).model._tower)
except ModelNotFound as error:
    print(error)
    sys.exit(3)
finally:
    print("seconds", time.perf_counter() - started, file=sys.stderr)
"""


@pytest.mark.parametrize("name", ["owner/clip", "owner/siglip", "owner/sentence"])
def test_transcript_of_two_starts(name: str, hub: Hub, client: Client, siglip_folder: Path) -> None:
    """The first start fetches what is needed; the second makes no call at all and gives the same."""
    first = client(WHOLE, name)
    assert first.returncode == 0, first.stderr
    print(f"\nfirst start of {name}\n{hub.transcript()}")
    assert hub.calls
    hub.calls.clear()
    second = client(WHOLE, name)
    print(f"second start\n{hub.transcript()}")
    assert (second.returncode, second.stdout) == (0, first.stdout)
    assert hub.calls == []
    if name == "owner/siglip":
        assert first.stdout.split()[0] == ModelFolder(siglip_folder).space


def test_only_what_is_needed_is_fetched(hub: Hub, client: Client) -> None:
    """No weights of other runtimes or in a second form; each file once; no bar off a terminal."""
    done = client(OPEN, "owner/clip")
    assert done.returncode == 0, done.stderr
    assert hub.fetched() == {
        "LICENSE",
        "config.json",
        "model.safetensors",
        "processor_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    }
    assert len([call for call in hub.calls if call.method == "GET" and "model.safetensors" in call.path]) == 1
    assert "%" not in done.stderr


def test_which_files_are_needed() -> None:
    """Shards and modules are taken whole; pytorch_model.bin only where there is no safetensors beside it."""

    def taken(*paths: str) -> tuple[list[str], list[str]]:
        small, weights = needed([RemoteFile(path, 1, None) for path in paths])
        return [file.path for file in small], [file.path for file in weights]

    shards = ["model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"]
    assert taken(*shards, "pytorch_model.bin", "open_clip_model.safetensors") == ([], shards)
    assert taken("pytorch_model.bin", "model.fp16.safetensors", "x/a.json") == (
        [],
        ["pytorch_model.bin"],
    )
    module = ["modules.json", "0_CLIPModel/config.json", "0_CLIPModel/vocab.json"]
    bins = ["0_CLIPModel/pytorch_model.bin", "model.safetensors"]
    assert taken(*module, *bins) == (module, ["0_CLIPModel/pytorch_model.bin"])
    flat = ["modules.json", "config.json", "1_Pooling/config.json"]
    assert taken(*flat, "model.safetensors") == (flat, ["model.safetensors"])
    assert taken("onnx/config.json", "onnx/model.safetensors", "photo.png") == ([], [])


def test_a_bar_on_a_terminal(hub: Hub, hub_environment: dict[str, str]) -> None:
    """A person sees how far the weights are."""
    pty, termios = pytest.importorskip("pty"), pytest.importorskip("termios")
    master, slave = pty.openpty()
    termios.tcsetwinsize(slave, (24, 100))
    command = [sys.executable, "-c", OPEN, "owner/clip"]
    with subprocess.Popen(command, stdout=slave, stderr=slave, env=hub_environment) as process:  # noqa: S603
        os.close(slave)
        shown = b""
        try:
            while part := os.read(master, 4096):
                shown += part
        except OSError:  # how a terminal ends
            pass
        os.close(master)
    assert process.returncode == 0, shown
    assert re.search(rb"model\.safetensors: +100%", shown)


def test_a_cut_connection_is_taken_up(hub: Hub, client: Client) -> None:
    """Where the connection breaks in the middle, the same start asks for the rest."""
    hub.faults.break_after = 393_216
    done = client(OPEN, "owner/clip")
    assert done.returncode == 0, done.stderr
    ranges = [call.range for call in hub.calls if "safetensors" in call.path and call.method == "GET"]
    assert ranges[:2] == [None, "bytes=393216-"]


def kill_in_the_middle(hub: Hub, environment: dict[str, str], code: str, name: str) -> None:
    """Start a download and kill it without warning when 196,608 bytes of the weights are written."""
    hub.faults.stall_after = 196_608
    command = [sys.executable, "-c", code, name]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen(command, **pipes, env=environment) as process:  # noqa: S603
        try:
            while not half_done(environment):
                assert process.poll() is None, process.communicate()
                time.sleep(0.05)
        finally:
            process.kill()
    hub.faults.stall_after = None
    hub.calls.clear()


def half_done(environment: dict[str, str]) -> bool:
    """Whether the first pieces of the weights are there."""
    found = Path(environment["HF_HOME"]).rglob("*.incomplete")
    try:
        return any(file.stat().st_size == 196_608 for file in found)
    except FileNotFoundError:  # a small file is done
        return False


def interrupted(hub: Hub, environment: dict[str, str], name: str) -> None:
    """Leave a download of a model in the middle of its weights."""
    kill_in_the_middle(hub, environment, OPEN, name)


def test_a_killed_download_goes_on(hub: Hub, client: Client, hub_environment: dict[str, str]) -> None:
    """The second start asks for a Range, ends right, and the third asks nothing."""
    interrupted(hub, hub_environment, "owner/clip")
    done = client(WHOLE, "owner/clip")
    assert done.returncode == 0, done.stderr
    [call] = [call for call in hub.calls if "safetensors" in call.path and call.method == "GET"]
    assert (call.range, call.status) == ("bytes=196608-", 206)
    size = (next(iter(hub.repositories["owner/clip"].folders.values())) / "model.safetensors").stat().st_size
    assert call.sent == size - 196_608
    assert not list(Path(hub_environment["HF_HOME"]).rglob("*.incomplete"))
    print("\nsecond start after kill -9\n" + hub.transcript())


@pytest.mark.parametrize("fault", ["no_range", "damage"])
def test_what_is_taken_up_is_checked(
    fault: str, hub: Hub, client: Client, hub_environment: dict[str, str]
) -> None:
    """A server without ranges sends it whole; other bytes are thrown away, not loaded."""
    interrupted(hub, hub_environment, "owner/clip")
    setattr(hub.faults, fault, True)
    done = client(OPEN, "owner/clip")
    assert not list(Path(hub_environment["HF_HOME"]).rglob("*.incomplete"))
    if fault == "damage":
        assert done.returncode == 3
        assert "model.safetensors arrived damaged" in done.stdout
        hub.faults.damage = False
        done = client(OPEN, "owner/clip")
    assert done.returncode == 0, done.stderr
    assert ModelFolder(Path(done.stdout.strip())).dim == 48


def test_an_interrupted_download_is_not_taken_for_whole(
    hub: Hub, client: Client, hub_environment: dict[str, str]
) -> None:
    """Nor by the name of its commit; without a hub the error says so, with the ways out."""
    interrupted(hub, hub_environment, "owner/clip")
    for name in ("owner/clip", "owner/clip@" + "b" * 40):
        done = client(OPEN, name, HF_HUB_OFFLINE="1")
        assert done.returncode == 3
        assert "HF_HUB_OFFLINE is set" in done.stdout
        assert "Ways out" in done.stdout


def test_an_older_copy_stays_in_use_until_the_new_one_is_whole(
    hub: Hub, client: Client, hub_environment: dict[str, str]
) -> None:
    """A broken update leaves what was there."""
    repository = hub.repositories["owner/clip"]
    repository.refs["main"] = "a" * 40
    assert client(OPEN, "owner/clip").returncode == 0
    weights = repository.folders["b" * 40] / "model.safetensors"
    weights.write_bytes(weights.read_bytes() + b" ")
    repository.refs["main"] = "b" * 40
    code = "import sys, huggingface_hub.constants as constants; constants.DOWNLOAD_CHUNK_SIZE = 65_536\n"
    code += "from clip_embed._models import hub as _hub; _hub.download(_hub.HubName(sys.argv[1]))"
    kill_in_the_middle(hub, hub_environment, code, "owner/clip")
    done = client(OPEN, "owner/clip", HF_HUB_OFFLINE="1")
    assert done.returncode == 0, done.stdout
    assert Path(done.stdout.strip()).name == "a" * 40


def test_revisions(hub: Hub, client: Client) -> None:
    """name@branch, name@tag and name@commit are pinned; a pinned commit starts without a call too."""
    spaces = {}
    for name in ("owner/clip", "owner/clip@v1", "owner/clip@" + "a" * 40):
        done = client(OPEN, name)
        assert done.returncode == 0, done.stderr
        spaces[name] = ModelFolder(Path(done.stdout.strip())).space
        hub.calls.clear()
        assert client(OPEN, name).stdout == done.stdout
        assert hub.calls == []
    assert len(set(spaces.values())) == 2
    assert spaces["owner/clip@v1"] == spaces["owner/clip@" + "a" * 40]


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("owner/model", HubName("owner/model")),
        ("model@v1.0", HubName("model", "v1.0")),
        ("owner/model@refs/pr/3", HubName("owner/model", "refs/pr/3")),
        ("owner/model@", None),
        ("@v1", None),
        ("a/b/c", None),
        ("./owner", None),
        ("owner/model@-x y", None),
    ],
)
def test_names(text: str, name: HubName | None) -> None:
    """A revision comes behind an @."""
    assert parse_name(text) == name


def closed_port() -> str:
    """Return the address of a port of loopback where nothing listens."""
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{taken.getsockname()[1]}"


def set_fault(name: str, value: object) -> Callable[[Hub], None]:
    """Return what lets a hub misbehave."""
    return lambda hub: setattr(hub.faults, name, value)


def change_clip(name: str, value: object) -> Callable[[Hub], None]:
    """Return what changes what the hub demands for owner/clip."""
    return lambda hub: setattr(hub.repositories["owner/clip"], name, value)


def drop_tokenizer(hub: Hub) -> None:
    """Take a needed file away from owner/clip."""
    for folder in hub.repositories["owner/clip"].folders.values():
        (folder / "tokenizer.json").unlink()


def nothing(_: Hub) -> None:
    """Leave the hub as it is."""


Fault = tuple[str, Callable[[Hub], None], dict[str, str], str]
UNREACHED = "the hub cannot be reached at http"
UNSEEN = "no such model: check the name, or set HF_TOKEN"
FAULTS: dict[str, Fault] = {
    "nothing listens": ("owner/clip", nothing, {"HF_ENDPOINT": closed_port()}, UNREACHED),
    "no such host": ("owner/clip", nothing, {"HF_ENDPOINT": "http://hub.invalid"}, UNREACHED),
    "no answer": ("owner/clip", set_fault("hang", True), {"HF_HUB_ETAG_TIMEOUT": "2"}, UNREACHED),
    "broken proxy": ("owner/clip", nothing, {"HTTP_PROXY": closed_port()}, UNREACHED),
    "login page": ("owner/clip", set_fault("login_page", True), {}, "is no hub, perhaps a login page"),
    "down": ("owner/clip", set_fault("status", 503), {}, "the hub refused.*503"),
    "forbidden": ("owner/clip", set_fault("status", 403), {}, "the hub refused.*403"),
    "wrong name": ("owner/clop", nothing, {}, UNSEEN),
    "private": ("owner/clip", change_clip("token", "hf_secret"), {"HF_TOKEN": "hf_other"}, UNSEEN),
    "gated": ("owner/clip", change_clip("gated", True), {}, r"terms.* at http.*/owner/clip, .*HF_TOKEN"),
    "wrong revision": ("owner/clip@v9", nothing, {}, "no revision 'v9'"),
    "impossible name": ("-bad--name..", nothing, {}, "not a name that the hub can have"),
    "not writable": ("owner/clip", nothing, {"HF_HOME": "/proc/nowhere"}, "could not be written"),
    "no model in it": ("owner/clip", drop_tokenizer, {}, "lacks a configuration, .* a tokenizer or weights"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_what_can_go_wrong(fault: str, hub: Hub, client: Client) -> None:
    """Each ends in the error that says what happened and lists the ways out, after few calls."""
    name, break_it, environment, message = FAULTS[fault]
    break_it(hub)
    done = client(OPEN, name, **environment)
    print(f"\n{done.stdout}{done.stderr}")
    assert done.returncode == 3, done.stderr
    assert re.search(message, done.stdout), done.stdout
    assert name in done.stdout
    assert all(way in done.stdout for way in ('"offline"', "local folder", "models pull", "firewall"))
    assert fault in ("no model in it", "not writable") or len(hub.calls) <= 2


def test_a_token_opens_private_and_gated_models(hub: Hub, client: Client) -> None:
    """HF_TOKEN is sent."""
    hub.repositories["owner/clip"].token = "hf_secret"  # noqa: S105
    hub.repositories["owner/clip"].gated = True
    assert client(OPEN, "owner/clip", HF_TOKEN="hf_secret").returncode == 0  # noqa: S106


def test_a_token_stays_with_the_hub(hub: Hub, client: Client, hub_environment: dict[str, str]) -> None:
    """Large files that the hub keeps elsewhere are followed there, ranges too, the token is not."""
    hub.faults.redirect = True
    interrupted(hub, hub_environment | {"HF_TOKEN": "hf_secret"}, "owner/clip")
    done = client(OPEN, "owner/clip", HF_TOKEN="hf_secret")  # noqa: S106
    assert done.returncode == 0, done.stderr
    elsewhere = [call for call in hub.calls if call.path.startswith("/cdn/")]
    assert [call.range for call in elsewhere] == ["bytes=196608-"]
    assert [call.token for call in elsewhere] == [None]
    assert {call.token for call in hub.calls if call not in elsewhere} == {"Bearer hf_secret"}


def test_a_full_disk(hub: Hub, client: Client, hub_environment: dict[str, str]) -> None:
    """What the system says about the file, and where to make room; afterwards it goes on."""
    limit = "import resource, signal; signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
    limit += "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
    done = client(limit + OPEN, "owner/clip")
    assert done.returncode == 3, done.stderr
    assert "could not be written" in done.stdout
    assert hub_environment["HF_HOME"] in done.stdout
    hub.calls.clear()
    assert client(OPEN, "owner/clip").returncode == 0
    assert [call.range for call in hub.calls if call.range]


@pytest.mark.parametrize("blocked", ["", "import sys; sys.modules['hf_xet'] = None\n"])
def test_hf_xet_is_not_needed(blocked: str, hub: Hub, client: Client) -> None:
    """A hub that offers it is asked for plain files all the same, whether that library is there or not."""
    assert client(blocked + OPEN, "owner/clip").returncode == 0
    assert not [call for call in hub.calls if "xet" in call.path]
    assert hub.fetched() >= {"model.safetensors", "tokenizer.json"}


def test_a_second_process_waits_for_the_first(hub: Hub, hub_environment: dict[str, str]) -> None:
    """Two downloads of one model at once fetch its weights once."""
    command = [sys.executable, "-c", OPEN, "owner/clip"]
    both = [subprocess.Popen(command, env=hub_environment, stdout=subprocess.PIPE) for _ in range(2)]  # noqa: S603
    outputs = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert outputs[0] == outputs[1]
    assert len([call for call in hub.calls if call.method == "GET" and "safetensors" in call.path]) == 1
