"""What docs/behind-a-firewall.md says: proxies, a company's certificate, a mirror, a token."""

from __future__ import annotations

import re
import shutil
import socket
import ssl
import subprocess
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from hub_server import Hub

Client = Callable[..., subprocess.CompletedProcess[str]]
PULL = "from clip_embed.cli import main; main(['models', 'pull', 'owner/clip'])"
DOCS = Path(__file__).parents[2] / "docs" / "behind-a-firewall.md"


@pytest.fixture(scope="module")
def authority(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A company's own certificate authority: ca.pem, and hub.pem for the host hub.example that it signed."""
    openssl = shutil.which("openssl")
    if openssl is None:
        pytest.skip("openssl is not there to make certificates with")
    folder = tmp_path_factory.mktemp("authority")
    (folder / "names").write_text("subjectAltName=DNS:hub.example,DNS:localhost")
    new = "req -x509 -newkey rsa:2048 -nodes -days 2 -subj /CN=Company -keyout ca.key -out ca.pem"
    ask = "req -newkey rsa:2048 -nodes -subj /CN=hub.example -keyout hub.key -out hub.csr"
    sign = "x509 -req -in hub.csr -CA ca.pem -CAkey ca.key -CAcreateserial -days 2 -extfile names"
    for command in (new, ask, f"{sign} -out hub.pem"):
        subprocess.run([openssl, *command.split()], cwd=folder, check=True, capture_output=True)  # noqa: S603
    return folder


@pytest.fixture
def secure_port(hub: Hub, authority: Path) -> Iterator[int]:
    """The hub over TLS, with a certificate that only the company's authority vouches for."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(authority / "hub.pem", authority / "hub.key")
    server = hub.start(context)
    yield server.server_port
    server.shutdown()
    server.server_close()


def test_an_unknown_certificate_is_explained(secure_port: int, client: Client) -> None:
    """The error says that it is the certificate, and which variable helps."""
    done = client(PULL, HF_ENDPOINT=f"https://localhost:{secure_port}")
    assert done.returncode == 1
    assert re.search(r"certificate of https://localhost:\d+ is not trusted.*SSL_CERT_FILE", done.stderr)


@pytest.mark.parametrize("variable", ["REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE"])
def test_variables_without_effect(variable: str, secure_port: int, client: Client, authority: Path) -> None:
    """What other libraries read does not help: the page says so."""
    ca = str(authority / "ca.pem")
    done = client(PULL, HF_ENDPOINT=f"https://localhost:{secure_port}", **{variable: ca})
    assert done.returncode == 1


@pytest.mark.parametrize("variable", ["SSL_CERT_FILE", "SSL_CERT_DIR"])
def test_the_companys_certificate(
    variable: str, secure_port: int, hub: Hub, client: Client, authority: Path, tmp_path: Path
) -> None:
    """A file with it, or a folder that `openssl rehash` made."""
    place = authority / "ca.pem"
    if variable == "SSL_CERT_DIR":
        place = tmp_path / "certificates"
        place.mkdir()
        shutil.copy(authority / "ca.pem", place)
        subprocess.run(["openssl", "rehash", place], check=True)  # noqa: S603, S607
    done = client(PULL, HF_ENDPOINT=f"https://localhost:{secure_port}", **{variable: str(place)})
    assert done.returncode == 0, done.stderr
    assert "model.safetensors" in hub.fetched()


def test_a_proxy_for_http(hub: Hub, client: Client) -> None:
    """HTTP_PROXY is where a mirror without TLS is asked for; the mirror's name need not be known here."""
    done = client(PULL, HF_ENDPOINT="http://hub.example", HTTP_PROXY=hub.url)
    assert done.returncode == 0, done.stderr
    assert hub.calls


def test_what_no_proxy_names_is_asked_directly(hub: Hub, client: Client) -> None:
    """NO_PROXY goes before a proxy that does not work."""
    proxy = "http://127.0.0.1:9"
    assert client(PULL, HTTP_PROXY=proxy).returncode == 1
    assert hub.calls == []
    assert client(PULL, HTTP_PROXY=proxy, NO_PROXY="localhost,127.0.0.1").returncode == 0


def test_a_proxy_for_https(secure_port: int, hub: Hub, client: Client, authority: Path) -> None:
    """HTTPS_PROXY opens the tunnel to the hub, whose name only the proxy knows."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        asked: list[bytes] = []
        threading.Thread(target=_tunnel, args=(listening, secure_port, asked), daemon=True).start()
        done = client(
            PULL,
            HF_ENDPOINT="https://hub.example",
            HTTPS_PROXY=f"http://127.0.0.1:{listening.getsockname()[1]}",
            SSL_CERT_FILE=str(authority / "ca.pem"),
        )
    assert done.returncode == 0, done.stderr
    assert asked[0].startswith(b"CONNECT hub.example:443 ")
    assert "model.safetensors" in hub.fetched()


def _tunnel(listening: socket.socket, port: int, asked: list[bytes]) -> None:
    """Answer CONNECT with a connection to a port of loopback, whatever the name was, until it is closed."""
    listening.settimeout(0.2)
    while listening.fileno() >= 0:
        try:
            near, _ = listening.accept()
        except OSError:
            continue
        threading.Thread(target=_connect, args=(near, port, asked), daemon=True).start()


def _connect(near: socket.socket, port: int, asked: list[bytes]) -> None:
    with near, socket.create_connection(("127.0.0.1", port)) as far:
        near.settimeout(None)
        asked.append(near.recv(65_536))
        near.sendall(b"HTTP/1.1 200 Connection established\r\n\r\n")
        back = threading.Thread(target=_pump, args=(far, near), daemon=True)
        back.start()
        _pump(near, far)
        back.join()


def _pump(source: socket.socket, sink: socket.socket) -> None:
    """Hand on bytes until one side ends."""
    try:
        while data := source.recv(65_536):
            sink.sendall(data)
        sink.shutdown(socket.SHUT_WR)
    except OSError:
        return


def test_the_page_names_what_is_tested() -> None:
    """Each variable on the page is one of those above or of test_hub.py."""
    tested = {
        "CLIP_EMBED_MODEL",
        "HF_ENDPOINT",
        "HF_HOME",
        "HF_HUB_DOWNLOAD_TIMEOUT",
        "HF_HUB_ETAG_TIMEOUT",
        "HF_HUB_OFFLINE",
        "HF_TOKEN",
        "HTTPS_PROXY",
        "HTTP_PROXY",
        "NO_PROXY",
        "SSL_CERT_DIR",
        "SSL_CERT_FILE",
    }
    named = set(re.findall(r"\b[A-Z]{2,}(?:_[A-Z]+)+\b", DOCS.read_text("utf-8")))
    assert named - {"REQUESTS_CA_BUNDLE"} == tested
