"""Images from http and https URLs, where the policy allows them: public addresses only, within limits.

Whoever can name a URL could have this machine ask its own network for what only it may see. So a
name is resolved once, each address it has must be public, and the connection goes to the address that
was checked; a redirect begins anew. Nothing is sent but the request: no cookies, no credentials, no
referrer. Proxies of the environment are not used: they would resolve the name a second time.
"""

from __future__ import annotations

import http.client
import io
import socket
import ssl
import threading
from functools import cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from queue import Empty, SimpleQueue
from time import monotonic
from typing import Any, cast
from urllib.parse import SplitResult, quote, urljoin, urlsplit

from clip_embed._images.files import check_bytes
from clip_embed._types import ImagePolicy
from clip_embed.errors import ImageError

_MAX_REDIRECTS = 5
_BLOCK = 64 * 1024
_REDIRECTS = (301, 302, 303, 307, 308)
_MAY_PASS = (408, 425, 429)  # and whatever begins with 5
# What of IPv6 is given to hosts, and what in it carries an IPv4 address or is set aside.
_GLOBAL6 = IPv6Network("2000::/3")
_SPECIAL6 = [IPv6Network(net) for net in ("2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20")]
_RELAYS4 = IPv4Network("192.88.99.0/24")
_HEADERS = "User-Agent: clip-embed\r\nAccept: image/*\r\nAccept-Encoding: identity\r\nConnection: close\r\n"
_SAFE = "/%:@!$&'()*+,;=~-._?#[]"  # what a URL may hold and what is escaped already


class _Deadline:
    """The time that is left for one URL, redirects included."""

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._end = monotonic() + seconds

    def left(self) -> float:
        """Return the seconds left; ImageError where there are none."""
        left = self._end - monotonic()
        if left <= 0:
            raise self.passed()
        return left

    def passed(self) -> ImageError:
        return ImageError(
            f"fetching the URL took longer than max_seconds = {self._seconds:g}", retryable=True
        )


class _Wire(io.RawIOBase):
    """What arrives on a connected socket; each operation ends by the deadline."""

    def __init__(self, sock: socket.socket, deadline: _Deadline) -> None:
        self._sock = sock
        self._deadline = deadline

    def makefile(self, _mode: str) -> io.BufferedReader:
        """Return itself, buffered; the one thing that http.client asks a socket for."""
        return io.BufferedReader(self)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:  # noqa: ANN401 - any writable buffer
        self._sock.settimeout(self._deadline.left())
        return self._sock.recv_into(buffer)

    def send(self, data: bytes) -> None:
        """Send all of it."""
        self._sock.settimeout(self._deadline.left())
        self._sock.sendall(data)

    def close(self) -> None:
        super().close()
        self._sock.close()


def fetch(url: str, policy: ImagePolicy) -> bytes:
    """Return what a URL holds, at most `policy.max_bytes` and within `policy.max_seconds`.

    Raises ImageError: retryable where the host or the way to it is at fault (a timeout, a broken
    connection, status 408, 425, 429 or 5xx), not where the policy or any other status says no.
    """
    deadline = _Deadline(policy.max_seconds)
    previous: SplitResult | None = None
    for _ in range(_MAX_REDIRECTS + 1):
        target = _checked_url(url)
        if previous is not None and (previous.scheme, target.scheme) == ("https", "http"):
            raise ImageError("the URL redirects from https to http")
        try:
            answer = _request(target, policy, deadline)
        except ImageError:
            raise
        except TimeoutError:
            raise deadline.passed() from None
        except ssl.SSLCertVerificationError as error:
            raise ImageError(f"the host's certificate is not valid: {error.verify_message}") from None
        except UnicodeError as error:
            raise ImageError(f"not a valid URL: {error}") from None
        except (OSError, http.client.HTTPException) as error:
            reason = f"cannot fetch the URL: {str(error) or type(error).__name__}"
            raise ImageError(reason, retryable=True) from None
        if isinstance(answer, bytes):
            return answer
        previous, url = target, urljoin(url, answer)
    raise ImageError(f"the URL redirects more than {_MAX_REDIRECTS} times")


def _checked_url(url: str) -> SplitResult:
    if any(ord(letter) < 32 or ord(letter) == 127 for letter in url):
        raise ImageError("not a valid URL: it holds control characters")
    try:
        parts = urlsplit(url)
        port = parts.port
    except ValueError as error:
        raise ImageError(f"not a valid URL: {error}") from None
    if parts.scheme not in ("http", "https"):
        raise ImageError(f"the URL leads to {parts.scheme or 'nothing'}:, only http and https are fetched")
    if "@" in parts.netloc:
        raise ImageError("the URL holds credentials; fetch the file yourself and give its bytes")
    if not parts.hostname or port == 0:
        raise ImageError("not a valid URL: it names no host")
    return parts


def _request(target: SplitResult, policy: ImagePolicy, deadline: _Deadline) -> bytes | str:
    """Return the content, or the URL that the host redirects to."""
    with _connect(target, deadline) as wire:
        wire.send(_head(target))
        response = http.client.HTTPResponse(cast("socket.socket", wire), method="GET")
        response.begin()
        location = response.getheader("Location")
        if response.status in _REDIRECTS and location:
            return quote(location.encode("latin-1", "replace"), safe=_SAFE)
        return _content(response, policy)


def _head(target: SplitResult) -> bytes:
    path = quote(target.path or "/", safe=_SAFE) + (
        "?" + quote(target.query, safe=_SAFE) if target.query else ""
    )
    host = cast("str", target.hostname)
    name = f"[{host}]" if ":" in host else host.encode("idna").decode("ascii")
    port = "" if target.port is None else f":{target.port}"
    return f"GET {path} HTTP/1.1\r\nHost: {name}{port}\r\n{_HEADERS}\r\n".encode("ascii")


def _content(response: http.client.HTTPResponse, policy: ImagePolicy) -> bytes:
    status = response.status
    if status != 200:
        passing = status in _MAY_PASS or status >= 500
        raise ImageError(f"the host answered {status} {response.reason}".rstrip(), retryable=passing)
    for header in ("Content-Encoding", "Transfer-Encoding"):
        coding = response.getheader(header, "identity").lower()
        if coding != "identity" and (header, coding) != ("Transfer-Encoding", "chunked"):
            raise ImageError(f"the host sent the file as {coding}, which was not asked for")
    expected = response.length
    check_bytes(expected or 0, policy)
    blocks: list[bytes] = []
    size = 0
    while block := response.read(min(_BLOCK, policy.max_bytes + 1 - size)):
        blocks.append(block)
        size += len(block)
        check_bytes(size, policy)
    if expected is not None and size < expected:
        raise ImageError(f"the connection ended after {size:,} of {expected:,} bytes", retryable=True)
    return b"".join(blocks)


def _connect(target: SplitResult, deadline: _Deadline) -> _Wire:
    """Connect to the first of the host's addresses that answers; all of them must be public."""
    host = cast("str", target.hostname)
    tls = target.scheme == "https"
    port = target.port or (443 if tls else 80)
    addresses = _resolve(host, port, deadline)
    for _, address in addresses:
        if not _is_public(address[0]):
            raise ImageError("the URL's host has an address that is not public")
    failure: OSError = OSError("the host has no address")
    for family, address in addresses:
        sock = socket.socket(family, socket.SOCK_STREAM)
        try:
            sock.settimeout(deadline.left())
            sock.connect(address)
            if tls:
                sock.settimeout(deadline.left())
                sock = _tls().wrap_socket(sock, server_hostname=host)
        except (OSError, ImageError) as error:
            sock.close()
            if isinstance(error, (ImageError, ssl.SSLError)):
                raise
            failure = error
        else:
            return _Wire(sock, deadline)
    raise failure


def _resolve(host: str, port: int, deadline: _Deadline) -> list[tuple[int, tuple[Any, ...]]]:
    """Return family and address of each of the host's addresses.

    The system's resolver cannot be stopped; where it takes too long, its thread is left to end by itself.
    """
    found: SimpleQueue[list[Any] | OSError | UnicodeError] = SimpleQueue()

    def ask() -> None:
        try:
            found.put(socket.getaddrinfo(host, port, type=socket.SOCK_STREAM))
        except (OSError, UnicodeError) as error:
            found.put(error)

    threading.Thread(target=ask, name="clip-embed-resolver", daemon=True).start()
    try:
        answer = found.get(timeout=deadline.left())
    except Empty:
        raise deadline.passed() from None
    if isinstance(answer, (OSError, UnicodeError)):
        raise answer
    return [(entry[0], entry[4]) for entry in answer]


def _is_public(address: str) -> bool:
    """Whether an address belongs to the internet at large, and to one host."""
    try:
        found = ip_address(address)
    except ValueError:  # one that is bound to an interface
        return False
    if isinstance(found, IPv4Address):
        special = found.is_multicast or found.is_reserved or found in _RELAYS4
        return found.is_global and not special
    return _is_public6(found)


def _is_public6(address: IPv6Address) -> bool:
    return (
        address.scope_id is None
        and address in _GLOBAL6
        and address.is_global
        and not any(address in net for net in _SPECIAL6)
    )


@cache
def _tls() -> ssl.SSLContext:
    return ssl.create_default_context()
