"""Who may come in: API keys, ephemeral keys, origins and host names, before anything is read.

A page of a foreign site must not use a server that runs on the visitor's machine: requests that
name another origin are refused, and so are names that only pretend to be this machine.
"""

from __future__ import annotations

import hmac
import ipaddress
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import urlsplit

from starlette.datastructures import Headers

from thinktalk.serve.limits import App, Limits, Receive, Scope, Send
from thinktalk.serve.schema import ApiError, new_id, now

KEY_PROTOCOL = "openai-insecure-api-key."
EPHEMERAL = "ek_"
EPHEMERAL_PATHS = ("/v1/realtime", "/v1/realtime/calls")


@dataclass
class Secrets:
    """Ephemeral keys: each opens Realtime sessions of one setup until it expires."""

    limits: Limits
    known: dict[str, tuple[float, Mapping[str, Any]]] = field(default_factory=dict)

    def create(self, seconds: int, setup: Mapping[str, Any]) -> tuple[str, int]:
        """A new key and when it expires. Raises ApiError 429 when there are too many."""
        moment = time.monotonic()
        self.known = {key: value for key, value in self.known.items() if value[0] > moment}
        if len(self.known) >= self.limits.secrets:
            message = "too many ephemeral keys are valid; try again later (--limit secrets=N)"
            raise ApiError(429, message, headers={"Retry-After": "60"})
        key = new_id(EPHEMERAL) + new_id("")
        self.known[key] = moment + seconds, setup
        return key, now() + seconds

    def setup(self, key: str) -> Mapping[str, Any] | None:
        """The session that a key stands for; None if it is unknown or has expired."""
        expiry, setup = self.known.get(key, (0.0, {}))
        return setup if expiry > time.monotonic() else None


class Guard:
    """ASGI middleware. Puts the setup of an ephemeral key into scope["state"]["setup"]."""

    def __init__(self, app: App, *, keys: Sequence[str], origins: Sequence[str], secrets: Secrets):
        self.app, self.secrets = app, secrets
        self.keys = [key.encode() for key in keys]
        self.origins = {origin.rstrip("/").lower() for origin in origins}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        try:
            headers = Headers(scope=scope)
            self._check_origin(headers)
            self._check_key(scope, headers)
        except ApiError as error:
            await refuse(scope, send, error)
            return
        send = self._allowing(headers.get("origin"), send)
        if _is_preflight(scope, headers):
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        await self.app(scope, receive, send)

    def _check_origin(self, headers: Headers) -> None:
        host, origin = headers.get("host", ""), headers.get("origin")
        if not self.keys and not (_is_own_name(host) or self._is_allowed(f"//{host}")):
            message = f"the host name {host!r} is foreign; start the server with --api-key"
            raise ApiError(403, message, code="forbidden_host")
        if origin is None or self._is_allowed(origin):
            return
        if urlsplit(origin).netloc.lower() != host.lower():
            message = f"the origin {origin} is foreign; start the server with --allow-origin"
            raise ApiError(403, message, code="forbidden_origin")

    def _is_allowed(self, origin: str) -> bool:
        names = {urlsplit(allowed).netloc for allowed in self.origins}
        is_host = origin.startswith("//") and urlsplit(origin.lower()).netloc in names
        return "*" in self.origins or origin.lower() in self.origins or is_host

    def _check_key(self, scope: Scope, headers: Headers) -> None:
        path = scope["path"]
        key = given_key(scope, headers)
        if key.startswith(EPHEMERAL) and path in EPHEMERAL_PATHS:
            setup = self.secrets.setup(key)
            if setup is not None:
                scope.setdefault("state", {})["setup"] = setup
                return
        if not self.keys or not path.startswith("/v1/") or _is_preflight(scope, headers):
            return
        matches = [hmac.compare_digest(key.encode(), known) for known in self.keys]
        if not any(matches):
            message = "this server wants an API key; send it as Authorization: Bearer KEY"
            if key:
                message = "this server does not know this API key; ask those who run it for one"
            raise ApiError(
                401, message, code="invalid_api_key", headers={"WWW-Authenticate": "Bearer"}
            )

    def _allowing(self, origin: str | None, send: Send) -> Send:
        """Tells browsers that an allowed origin may read the reply."""
        if origin is None:
            return send

        async def send_allowed(message: Any) -> None:
            if message["type"] == "http.response.start":
                allowed = [
                    (b"access-control-allow-origin", origin.encode()),
                    (b"access-control-allow-headers", b"authorization, content-type"),
                    (b"access-control-allow-methods", b"GET, POST"),
                    (b"access-control-expose-headers", b"location, link, retry-after"),
                    (b"vary", b"Origin"),
                ]
                message["headers"] = [*message.get("headers", []), *allowed]
            await send(message)

        return send_allowed


def given_key(scope: Scope, headers: Headers) -> str:
    """The key that a client shows: a bearer, or in a WebSocket's subprotocols."""
    kind, _, key = headers.get("authorization", "").partition(" ")
    if kind.lower() == "bearer" and key:
        return key.strip()
    for protocol in scope.get("subprotocols") or ():
        if protocol.startswith(KEY_PROTOCOL):
            return protocol.removeprefix(KEY_PROTOCOL)
    return ""


async def refuse(scope: Scope, send: Send, error: ApiError) -> None:
    """Answers a request, or the opening of a WebSocket, with an error."""
    prefix = "websocket.http.response" if scope["type"] == "websocket" else "http.response"
    names = {"content-type": "application/json", **error.headers}
    headers = [(name.lower().encode(), value.encode()) for name, value in names.items()]
    await send({"type": f"{prefix}.start", "status": error.status, "headers": headers})
    body = json.dumps(error.body).encode()
    await send({"type": f"{prefix}.body", "body": body, "more_body": False})


def _is_own_name(host: str) -> bool:
    """Whether a Host header names this machine by address or as localhost, so that no foreign DNS
    entry has led here."""
    name = urlsplit(f"//{host}").hostname or ""
    if name == "localhost" or name.endswith(".localhost"):
        return True
    try:
        ipaddress.ip_address(name)
    except ValueError:
        return False
    return True


def _is_preflight(scope: Scope, headers: Headers) -> bool:
    is_options = scope["type"] == "http" and scope["method"] == "OPTIONS"
    return is_options and "access-control-request-method" in headers
