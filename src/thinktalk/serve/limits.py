"""How much one caller may ask for, and what happens beyond: sizes, lengths, times, slow readers."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, fields, replace
from typing import Any

from starlette.requests import Request

from thinktalk.serve.schema import ApiError

Scope = MutableMapping[str, Any]
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]

MB = 1 << 20
MEGAPIXEL = 1_000_000


@dataclass(frozen=True)
class Limits:
    """Every limit by name; `--limit NAME=NUMBER` changes one.

    image_mb, audio_mb, video_mb: bytes of one medium; image_megapixels: of one picture or frame;
    audio_s, video_s: length of one recording or film; frames: pictures in one list of frames.
    request_mb: one HTTP request; body_s: time to send it. message_mb: one WebSocket message.
    queue: requests that may wait for a free session, queue_s: how long they wait.
    session_s, idle_s: how long a Realtime session may last, and be silent on the wire.
    resume_s: how long a broken Realtime connection may be taken up again.
    unread_mb, unread_s: what a client may leave unread, and for how long.
    secrets: ephemeral keys that may be valid at a time.
    """

    image_mb: float = 10
    image_megapixels: float = 64
    audio_mb: float = 10
    audio_s: float = 180
    video_mb: float = 150
    video_s: float = 40
    frames: float = 128
    request_mb: float = 220
    body_s: float = 120
    message_mb: float = 16
    queue: float = 32
    queue_s: float = 10
    session_s: float = 3600
    idle_s: float = 900
    resume_s: float = 60
    unread_mb: float = 32
    unread_s: float = 30
    secrets: float = 10_000

    def __post_init__(self) -> None:
        for field in fields(self):
            if not getattr(self, field.name) >= 0:
                raise ValueError(f"the limit {field.name} is {getattr(self, field.name)}")

    def changed(self, words: Sequence[str]) -> Limits:
        """These limits with some changed: "image_mb=20". Raises ValueError naming what is wrong."""
        known = {field.name for field in fields(self)}
        values: dict[str, float] = {}
        for word in words:
            name, _, number = word.partition("=")
            if name not in known:
                raise ValueError(f"unknown limit {name!r}; known are {', '.join(sorted(known))}")
            try:
                values[name] = float(number)
            except ValueError:
                raise ValueError(f"the limit {word!r} has no number; write {name}=10") from None
        return replace(self, **values)


def too_large(what: str, limit_mb: float) -> ApiError:
    return ApiError(
        413, f"{what} is larger than {limit_mb:g} MB; make it smaller", code="too_large"
    )


async def read_body(request: Request, limits: Limits) -> bytes:
    """The whole body, as long as it keeps to the limits; ApiError 413 or 408."""
    async with in_time(limits):
        return await bounded(request, max_mb=limits.request_mb).body()


@asynccontextmanager
async def in_time(limits: Limits) -> AsyncIterator[None]:
    """For reading a request: ApiError 408 when it takes too long."""
    try:
        async with asyncio.timeout(limits.body_s):
            yield
    except TimeoutError:
        message = f"the request did not arrive within {limits.body_s:g} s; send less at once"
        raise ApiError(408, message) from None


def bounded(request: Request, *, max_mb: float) -> Request:
    """The request, whose body raises ApiError 413 as soon as it is too large."""
    stated = request.headers.get("content-length", "")
    if stated.isdigit() and int(stated) > max_mb * MB:
        raise too_large("the request", max_mb)
    size = 0

    async def receive() -> Message:
        nonlocal size
        message = await request.receive()
        size += len(message.get("body", b""))
        if size > max_mb * MB:
            raise too_large("the request", max_mb)
        return message

    return Request(request.scope, receive)


class SlowReaderError(Exception):
    """A client left a reply unread for too long."""


class Patience:
    """ASGI middleware: a client that leaves a reply unread for too long is left."""

    def __init__(self, app: App, *, seconds: float):
        self.app, self.seconds = app, seconds

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async def send_in_time(message: Message) -> None:
            try:
                async with asyncio.timeout(self.seconds):
                    await send(message)
            except TimeoutError:
                raise SlowReaderError from None

        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
            return
        try:
            await self.app(scope, receive, send_in_time)
        except* SlowReaderError:  # the connection ends with this call
            pass


class Allowance:
    """Sound may come as fast as it likes until it is `burst_s` ahead of its own time; then its
    sender has to wait. So nobody fills the engine with hours of sound at once."""

    def __init__(self, burst_s: float):
        self.burst_s = burst_s
        self.ahead_s, self.since = 0.0, asyncio.get_running_loop().time()

    def take(self, seconds: float) -> float:
        """Seconds that the caller has to sleep before more is read."""
        now = asyncio.get_running_loop().time()
        self.ahead_s = max(0.0, self.ahead_s - (now - self.since)) + seconds
        self.since = now
        return max(0.0, self.ahead_s - self.burst_s)
