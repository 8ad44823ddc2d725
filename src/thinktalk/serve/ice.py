"""STUN and TURN servers for WebRTC: `turn:USER:PASSWORD@HOST:PORT` in, what peers want to know out.

They help two peers to meet of which neither can be reached by its own address: STUN tells a peer
its address outside, TURN passes the sound on.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import unquote

PATTERN = re.compile(
    r"(?P<scheme>stuns?|turns?):(?:(?P<user>[^:@]+):(?P<password>[^:@]+)@)?"
    r"(?P<place>[^\[\]?:@/\s]+(?::\d+)?(?:\?transport=(?:udp|tcp))?)"
)


@dataclass(frozen=True)
class IceServer:
    """url: without name and password, which TURN servers want to know."""

    url: str
    username: str | None = None
    credential: str | None = None

    @classmethod
    def parse(cls, word: str) -> IceServer:
        """Raises ValueError, without the password, for what is no address of such a server."""
        match = PATTERN.fullmatch(word)
        if match is None:
            raise ValueError(
                "an ICE server is no address; write stun:HOST:PORT or turn:USER:PASSWORD@HOST:PORT,"
                " signs such as : @ , in name and password as %3A %40 %2C"
            )
        scheme, place, user, password = match.group("scheme", "place", "user", "password")
        url = f"{scheme}:{place}"
        if scheme.startswith("turn") and user is None:
            raise ValueError(f"{url} has no name and password; write turn:USER:PASSWORD@HOST:PORT")
        if scheme.startswith("stun") and user is not None:
            raise ValueError(f"{url} wants no name and password; leave them out")
        return cls(url, user and unquote(user), password and unquote(password))

    def wire(self) -> dict[str, str]:
        """The RTCIceServer of browsers."""
        if self.username is None or self.credential is None:
            return {"urls": self.url}
        return {"urls": self.url, "username": self.username, "credential": self.credential}

    def link(self) -> str:
        """An entry of the header Link, as RFC 9725 (WHIP) has it."""
        fields = [f"<{self.url}>", 'rel="ice-server"']
        if self.username is not None and self.credential is not None:
            fields += [f"username={_quoted(self.username)}"]
            fields += [f"credential={_quoted(self.credential)}", 'credential-type="password"']
        return "; ".join(fields)


def _quoted(text: str) -> str:
    return '"' + re.sub(r'(["\\])', r"\\\1", text) + '"'
