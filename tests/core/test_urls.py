"""Images from URLs: off by default; on, they come from public addresses only and within limits.

The servers are real ones on the loopback. The check of the address, which rightly refuses them, is
the only thing that is replaced, and only where a test is about something else.
"""

from __future__ import annotations

import gzip
import io
import socket
import ssl
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from PIL import Image

from clip_embed import ClipEmbedder, ImageError, ImageFailure, ImagePolicy
from clip_embed._images import urls as _urls
from clip_embed._images.source import read_encoded
from clip_embed.testing import FakeModel

Serve = Callable[[socket.socket, str], None]
ON = ImagePolicy(urls=True, max_seconds=20)


def picture() -> bytes:
    """A small PNG."""
    stream = io.BytesIO()
    Image.new("RGB", (20, 10), (200, 30, 40)).save(stream, "PNG")
    return stream.getvalue()


PNG = picture()


class Server:
    """Answers each connection by a function of (connection, path); notes what was asked."""

    def __init__(self, serve: Serve, context: ssl.SSLContext | None = None) -> None:
        self.heads: list[str] = []
        self.failures: list[OSError] = []
        self._serve = serve
        self._context = context
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listening.getsockname()[1]
        self._thread = threading.Thread(target=self._run, daemon=True)
        self._thread.start()

    def url(self, path: str = "/cat.png", host: str = "127.0.0.1") -> str:
        """A URL of this server."""
        return f"{'https' if self._context else 'http'}://{host}:{self.port}{path}"

    def close(self) -> None:
        """Stop listening."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
        self._thread.join()

    def _run(self) -> None:
        while True:
            try:
                connection, _ = self._listening.accept()
            except OSError:
                return
            try:
                if self._context:
                    connection = self._context.wrap_socket(connection, server_side=True)
                with connection:
                    self._answer(connection)
            except OSError as error:  # the client left, or did not like the certificate
                self.failures.append(error)

    def _answer(self, connection: socket.socket) -> None:
        head = b""
        while not head.endswith(b"\r\n\r\n"):
            block = connection.recv(4096)
            if not block:
                return
            head += block
        self.heads.append(head.decode("ascii"))
        self._serve(connection, head.split(b" ")[1].decode("ascii"))
        connection.shutdown(socket.SHUT_WR)


def answer(body: bytes = PNG, status: str = "200 OK", **headers: object) -> Serve:
    """Serve one answer; the length is stated unless another one is."""
    stated = {"Content_Length": len(body), **headers}
    lines = "".join(
        f"{name.replace('_', '-')}: {value}\r\n" for name, value in stated.items() if value is not None
    )
    message = f"HTTP/1.1 {status}\r\n{lines}\r\n".encode("latin-1") + body
    return lambda connection, _path: connection.sendall(message)


@contextmanager
def server(serve: Serve, context: ssl.SSLContext | None = None) -> Iterator[Server]:
    """Run a server for a while."""
    running = Server(serve, context)
    try:
        yield running
    finally:
        running.close()


@pytest.fixture
def _loopback_is_public(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let 127.0.0.1 through, and nothing else that is not public."""
    check = _urls._is_public
    monkeypatch.setattr(_urls, "_is_public", lambda address: address == "127.0.0.1" or check(address))


reachable = pytest.mark.usefixtures("_loopback_is_public")


def fails(url: str, policy: ImagePolicy = ON) -> ImageFailure:
    """Embed an image that must fail, and return how."""
    with ClipEmbedder(FakeModel(), policy=policy).stream_images([url]) as stream:
        batch = next(stream)
    assert len(batch.indices) == 0
    return batch.failures[0]


@reachable
@pytest.mark.parametrize("as_mapping", [False, True])
def test_off_by_default(as_mapping: bool) -> None:
    """Nothing is asked of the server; the failure says how to turn it on."""
    with server(answer()) as host:
        source = {"path": host.url()} if as_mapping else host.url()
        with pytest.raises(ImageError, match=r"ImagePolicy\(urls=True\)") as caught:
            read_encoded(source, ImagePolicy())
        assert host.heads == []
    assert not caught.value.retryable


@reachable
def test_an_image_is_fetched() -> None:
    """It gives the vector of its bytes; the request carries nothing that tells of the user."""
    clip = ClipEmbedder(FakeModel(), policy=ON)
    with server(answer()) as host:
        vectors = clip.embed_images([host.url("/a b/ä.png?x=1#top"), {"path": host.url()}, PNG])
    assert (vectors == vectors[2]).all()
    first = min(host.heads).split("\r\n")  # the two are fetched at the same time
    assert first[0] == "GET /a%20b/%C3%A4.png?x=1 HTTP/1.1"
    assert sorted(line.split(":")[0] for line in first[1:] if line) == [
        "Accept", "Accept-Encoding", "Connection", "Host", "User-Agent",
    ]  # fmt: skip
    assert "Accept-Encoding: identity" in first


@reachable
def test_the_content_is_cached_and_the_failure_is_not() -> None:
    """A second fetch of the same bytes is not decoded again; a 404 that becomes an image is embedded."""
    answers = [answer(b"", "404 Not Found"), answer(), answer()]
    fake = FakeModel()
    clip = ClipEmbedder(fake, policy=ON)
    with server(lambda connection, path: answers.pop(0)(connection, path)) as host:
        with clip.stream_images([host.url()]) as stream:
            assert next(stream).failures[0].reason == "the host answered 404 Not Found"
        clip.embed_images([host.url()])
        clip.embed_images([host.url()])
    assert sum(fake.calls[0]) == 1


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f.1", "0.0.0.0",  # noqa: S104
        "10.0.0.8", "172.16.3.4",
        "192.168.1.1", "169.254.169.254", "100.64.0.1", "192.0.2.1", "198.18.0.1", "224.0.0.1", "240.0.0.1",
        "255.255.255.255", "192.88.99.1", "[::1]", "[::]", "[fe80::1]", "[fc00::1]", "[ff02::1]",
        "[::ffff:8.8.8.8]", "[::ffff:127.0.0.1]", "[::8.8.8.8]", "[64:ff9b::808:808]", "[64:ff9b:1::1]",
        "[2002:808:808::1]", "[2001:0:808:808::1]", "[2001:db8::1]", "[3fff::1]", "[fec0::1]", "[100::1]",
    ],
)  # fmt: skip
def test_an_address_that_is_not_public_is_refused(host: str) -> None:
    """However it is written: loopback, private, link-local, CGNAT, multicast, reserved, IPv4 inside IPv6."""
    with server(answer()) as there:
        failure = fails(there.url(host=host))
        assert there.heads == []
    assert "not public" in failure.reason or (":" in host and "cannot fetch" in failure.reason)


def test_public_addresses_pass() -> None:
    """The check is no wall: usual addresses of the internet pass."""
    for address in ("8.8.8.8", "1.1.1.1", "185.199.108.133", "2606:4700::1111", "2a00:1450:4001::1"):
        assert _urls._is_public(address), address


def test_a_name_is_resolved_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name whose address changes after the check (DNS rebinding) is connected to as it was checked."""
    resolve = socket.getaddrinfo
    asked: list[str] = []
    connected: list[str] = []

    def rebinding(name: str, port: int, **options: int) -> object:
        asked.append(name)
        return resolve("93.184.216.34" if len(asked) == 1 else "127.0.0.1", port, **options)

    def connect(_sock: socket.socket, address: tuple[str, int]) -> None:
        connected.append(address[0])
        raise ConnectionRefusedError(111, "Connection refused")

    monkeypatch.setattr(socket, "getaddrinfo", rebinding)
    monkeypatch.setattr(socket.socket, "connect", connect)
    failure = fails("http://rebinding.example/cat.png")
    assert (asked, connected) == (["rebinding.example"], ["93.184.216.34"])
    assert failure.retryable


def test_one_address_inside_is_enough_to_refuse(monkeypatch: pytest.MonkeyPatch) -> None:
    """A name with a public and a private address is refused before any of them is tried."""
    resolve = socket.getaddrinfo
    both = [*resolve("93.184.216.34", 80, type=socket.SOCK_STREAM), *resolve("10.0.0.1", 80)]
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: both)
    assert "not public" in fails("http://both.example/cat.png").reason


@reachable
def test_redirects_are_followed_and_checked_anew() -> None:
    """A relative one is followed; one that leads inside, to a file or to credentials is not."""
    refused = {
        "http://10.0.0.1/x": "not public",
        "http://[::1]/x": "not public",
        "file:///etc/passwd": "only http and https",
        "gopher://127.0.0.1/": "only http and https",
        "http://me:secret@127.0.0.1/x": "credentials",
        "http://127.0.0.1:0/x": "names no host",
    }
    for where, reason in refused.items():
        with server(answer(b"", "302 Found", Location=where)) as host:
            failure = fails(host.url())
        assert reason in failure.reason
        assert "secret" not in failure.reason
        assert not failure.retryable
    moved = answer(b"", "301 Moved", Location="/there/kätzchen.png")
    with server(lambda sock, path: (answer() if "there" in path else moved)(sock, path)) as host:
        assert read_encoded(host.url(), ON) == PNG
    with server(answer(b"", "302 Found", Location="/again")) as host:
        assert fails(host.url()).reason == "the URL redirects more than 5 times"
        assert len(host.heads) == 6


@reachable
@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (answer(b"x" * 2000), "2,000 bytes are more"),
        (answer(b"x" * 2000, Content_Length=None), "bytes are more"),
        (answer(b"x", Content_Length=10**15), "bytes are more"),
        (
            answer(
                b"7d0\r\n" + b"x" * 2000 + b"\r\n0\r\n\r\n", Content_Length=None, Transfer_Encoding="chunked"
            ),
            "bytes",
        ),
        (
            answer(b"7fffffffffff\r\n" + b"x" * 2000, Content_Length=None, Transfer_Encoding="chunked"),
            "bytes",
        ),
        (answer(gzip.compress(b"x" * 10**6), Content_Encoding="gzip"), "sent the file as gzip"),
        (answer(b"", Transfer_Encoding="gzip, chunked"), "sent the file as gzip, chunked"),
    ],
)
def test_the_size_is_limited(serve: Serve, reason: str) -> None:
    """Whatever length the host states, or none, or in chunks, or compressed; one more byte ends it."""
    policy = ImagePolicy(urls=True, max_bytes=1500)
    with server(serve) as host:
        failure = fails(host.url(), policy)
    assert reason in failure.reason
    assert not failure.retryable


@reachable
@pytest.mark.parametrize(
    ("serve", "reason"),
    [
        (answer(PNG[:20], Content_Length=len(PNG)), "ended after 20 of"),
        (answer(b"ff\r\nabc", Content_Length=None, Transfer_Encoding="chunked"), "cannot fetch"),
        (lambda sock, _: sock.sendall(b"no http at all\r\n\r\n"), "cannot fetch"),
        (lambda sock, _: sock.sendall(b""), "cannot fetch"),
        (lambda sock, _: sock.sendall(b"HTTP/1.1 200 OK\r\n" + b"A: b\r\n" * 5000 + b"\r\n"), "cannot fetch"),
        (answer(b"", "500 Oh no"), "answered 500 Oh no"),
        (answer(b"", "503 Busy"), "answered 503"),
        (answer(b"", "429 Too Many"), "answered 429"),
    ],
)
def test_what_a_retry_may_mend(serve: Serve, reason: str) -> None:
    """Broken connections, nonsense, and a host that is busy or broken."""
    with server(serve) as host:
        failure = fails(host.url())
    assert reason in failure.reason
    assert failure.retryable


@reachable
@pytest.mark.parametrize(
    "status", ["404 Not Found", "410 Gone", "403 Forbidden", "204 No Content", "304 Same"]
)
def test_what_no_retry_mends(status: str) -> None:
    """The host has said that there is no image."""
    with server(answer(b"", status)) as host:
        failure = fails(host.url())
    assert failure.reason == f"the host answered {status}"
    assert not failure.retryable


@reachable
@pytest.mark.parametrize("where", ["before", "in the head", "in the body", "in the handshake"])
def test_a_host_that_drips_ends_in_time(where: str) -> None:
    """A byte now and then keeps no thread: the time is for all of it together."""
    stop = threading.Event()

    def drip(connection: socket.socket, _path: str) -> None:
        if where == "in the body":
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000\r\n\r\n")
        elif where == "in the head":
            connection.sendall(b"HTTP/1.1 200 OK\r\nA: ")
        while not stop.wait(0.05):
            if where != "before":
                connection.sendall(b"x")

    with server(drip) as host:
        url = host.url().replace("http:", "https:") if where == "in the handshake" else host.url()
        begun = time.monotonic()
        failure = fails(url, ImagePolicy(urls=True, max_seconds=0.5))
        spent = time.monotonic() - begun
        stop.set()
    assert failure.reason == "fetching the URL took longer than max_seconds = 0.5"
    assert failure.retryable
    assert spent >= 0.4


def test_a_resolver_that_hangs_ends_in_time(monkeypatch: pytest.MonkeyPatch) -> None:
    """The system's resolver cannot be stopped, but the image fails in time."""
    release = threading.Event()

    def hang(*_: object, **__: object) -> list[object]:
        release.wait()
        return []

    monkeypatch.setattr(socket, "getaddrinfo", hang)
    failure = fails("http://slow.example/", ImagePolicy(urls=True, max_seconds=0.2))
    release.set()
    assert "took longer" in failure.reason


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://me:secret@example.org/cat.png", "credentials"),
        ("http://@example.org/cat.png", "credentials"),
        ("http:///cat.png", "names no host"),
        ("http://example.org:99999/", "not a valid URL"),
        ("http://[::1/", "not a valid URL"),
        ("http://example.org/\r\nHost: inside", "control characters"),
        ("http://" + "x" * 70 + ".example/", "not a valid URL"),
        ("data:image/png;base64,AAAA", "data: URLs are not read"),
    ],
)
def test_urls_that_are_not_fetched(url: str, reason: str) -> None:
    """Each is a failure with its reason, and no secret in it; nothing is sent anywhere."""
    failure = fails(url)
    assert reason in failure.reason
    assert "secret" not in failure.reason
    assert not failure.retryable


@reachable
def test_roots_do_not_turn_urls_on(tmp_path: Path) -> None:
    """URLs need their own word, and with it roots do not stop them."""
    with server(answer()) as host:
        assert "urls=True" in fails(host.url(), ImagePolicy(roots=[tmp_path])).reason
        assert read_encoded(host.url(), ImagePolicy(roots=[tmp_path], urls=True)) == PNG


@reachable
def test_proxies_of_the_environment_are_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name again, unchecked."""
    for name in ("http_proxy", "HTTP_PROXY", "https_proxy", "ALL_PROXY"):
        monkeypatch.setenv(name, "http://127.0.0.1:9")
    with server(answer()) as host:
        assert read_encoded(host.url(), ON) == PNG


@reachable
def test_a_certificate_must_be_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A self-signed one is refused; one that is trusted must name the host."""
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    made = subprocess.run(  # noqa: S603
        ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-days", "2", "-subj", "/CN=localhost",  # noqa: S607
         "-addext", "subjectAltName=DNS:localhost", "-keyout", str(key), "-out", str(certificate)],
        capture_output=True, check=False,
    )  # fmt: skip
    if made.returncode:
        pytest.skip("needs the command openssl")
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    with server(answer(), context) as host:
        assert "certificate is not valid: self" in fails(host.url(host="localhost")).reason
        trusting = ssl.create_default_context(cafile=str(certificate))
        monkeypatch.setattr(_urls, "_tls", lambda: trusting)
        monkeypatch.setattr(_urls, "_is_public", lambda _: True)  # localhost may be ::1 as well
        failure = fails(host.url(host="127.0.0.1"))
        assert "certificate is not valid: IP address mismatch" in failure.reason
        assert not failure.retryable
        assert read_encoded(host.url(host="localhost"), ON) == PNG
        moved = answer(b"", "302 Found", Location="http://127.0.0.1:1/")
    with server(moved, context) as host:
        assert fails(host.url(host="localhost")).reason == "the URL redirects from https to http"


def test_the_module_is_loaded_only_when_a_url_is_fetched() -> None:
    """Neither the import nor files load it, nor an HTTP client."""
    code = """
import sys, clip_embed, clip_embed._images.source
print(*sys.modules.keys() & {"clip_embed._images.urls", "http.client", "ssl"})
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)  # noqa: S603
    assert done.stdout.strip() == ""


@reachable
def test_a_text_is_never_a_path_or_a_url(monkeypatch: pytest.MonkeyPatch) -> None:
    """Texts that look like one are embedded as they stand; nothing is opened, nobody is asked."""
    clip = ClipEmbedder(FakeModel(), policy=ON)
    clip.embed_texts(["warm"])
    opened: list[object] = []

    def note(event: str, arguments: tuple[object, ...]) -> None:
        if watching and (event in ("open", "os.listdir") or event.startswith("socket.")):
            opened.append((event, arguments))

    watching = True
    sys.addaudithook(note)
    with server(answer()) as host:
        opened.clear()
        clip.embed_texts(["/etc/passwd", "../secret.png", "file:///etc/passwd", host.url(), "data:,x"])
        found = list(opened)
        watching = False
        assert host.heads == []
    assert [event for event in found if "accept" not in str(event)] == []
