"""Remote media, without becoming a way into the server's own network.

Only http and https, only addresses of the public internet (unless private ones are allowed), the
same for every redirect; the connection goes to the very address that was checked, so a name that
changes its address in between gains nothing.
"""

from __future__ import annotations

import http.client
import ipaddress
import socket
import ssl
import time
from dataclasses import dataclass
from typing import Literal
from urllib.parse import urljoin, urlsplit

from thinktalk.media.source import source_name
from thinktalk.serve.schema import ApiError

Remote = Literal["off", "public", "any"]

MAX_REDIRECTS = 3
TOTAL_S = 30.0
STEP_BYTES = 1 << 16
# Ranges of IPv6 that carry an IPv4 address to somewhere else.
CARRIERS = tuple(ipaddress.ip_network(net) for net in ("64:ff9b::/96", "2002::/16", "2001::/32"))


@dataclass(frozen=True)
class Address:
    """Where to connect for a URL: the address itself was checked, the name is for TLS and Host."""

    secure: bool
    host: str
    port: int
    ip: str
    path: str


def fetch(url: str, *, max_bytes: int, remote: Remote) -> bytes:
    """Downloads a medium; blocks. Raises ApiError 400 for what may or can not be fetched, and 413
    beyond max_bytes."""
    if remote == "off":
        raise ApiError(400, "media by URL are switched off here; send them as data URIs")
    deadline = time.monotonic() + TOTAL_S
    name = source_name(url)
    for _ in range(MAX_REDIRECTS + 1):
        try:
            answer = _get(resolve(url, remote=remote), max_bytes=max_bytes, deadline=deadline)
        except (OSError, http.client.HTTPException) as error:
            raise ApiError(400, f"{name} could not be downloaded ({error})") from None
        if isinstance(answer, bytes):
            return answer
        url = urljoin(url, answer[0])
    raise ApiError(400, f"{name} redirects too often; give the final address")


def resolve(url: str, *, remote: Remote) -> Address:
    """Looks a URL's host up. Raises ApiError if any of its addresses may not be visited."""
    parts, name = urlsplit(url), source_name(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ApiError(400, f"{name} is not an http or https address", code="invalid_url")
    try:
        port = parts.port or (443 if parts.scheme == "https" else 80)
        found = socket.getaddrinfo(parts.hostname, port, type=socket.SOCK_STREAM)
    except (OSError, ValueError, UnicodeError):
        message = f"{name}: the host is unknown; check the address"
        raise ApiError(400, message, code="invalid_url") from None
    ips = [str(entry[4][0]) for entry in found]
    if remote != "any" and not all(map(is_public, ips)):
        raise ApiError(
            400, f"{name} is not on the public internet; send the data itself", code="invalid_url"
        )
    path = (parts.path or "/") + (f"?{parts.query}" if parts.query else "")
    return Address(parts.scheme == "https", parts.hostname, port, ips[0], path)


def is_public(ip: str) -> bool:
    address = ipaddress.ip_address(ip.split("%")[0])
    if isinstance(address, ipaddress.IPv6Address):
        if address.ipv4_mapped is not None:
            address = address.ipv4_mapped
        elif any(address in net for net in CARRIERS):
            return False
    return address.is_global and not address.is_multicast


def _get(address: Address, *, max_bytes: int, deadline: float) -> bytes | tuple[str]:
    """The body, or (location,) of a redirect."""
    connection = _Pinned(address)
    try:
        connection.request("GET", address.path, headers={"User-Agent": "thinktalk"})
        reply = connection.getresponse()
        if reply.status in (301, 302, 303, 307, 308) and (place := reply.getheader("Location")):
            return (place,)
        if reply.status != 200:
            message = f"{address.host} answered {reply.status}, not the medium; check the address"
            raise ApiError(400, message)
        body = bytearray()
        while chunk := reply.read1(STEP_BYTES):
            body += chunk
            if len(body) > max_bytes:
                limit = max_bytes / (1 << 20)
                message = f"what {address.host} sends is larger than {limit:g} MB; make it smaller"
                raise ApiError(413, message)
            if time.monotonic() > deadline:
                raise ApiError(400, f"{address.host} is too slow; send the data itself")
        return bytes(body)
    finally:
        connection.close()


class _Pinned(http.client.HTTPConnection):
    """A connection to the address that was checked."""

    def __init__(self, address: Address):
        super().__init__(address.host, address.port, timeout=TOTAL_S / 3)
        self._address = address

    def connect(self) -> None:
        plain = socket.create_connection((self._address.ip, self.port), self.timeout)
        if not self._address.secure:
            self.sock = plain
            return
        context = ssl.create_default_context()
        self.sock = context.wrap_socket(plain, server_hostname=self._address.host)
