"""One reply of the engine, as HTTP endpoints need it: words, sound and function calls in order.

Stop strings end the words; where the reply is spoken, the words up to there are then spoken anew,
because sound that was made with the rest in mind cannot be cut at a word.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray
from starlette.requests import Request
from starlette.responses import StreamingResponse

from thinktalk.live import api
from thinktalk.media.encode import SoundEncoder
from thinktalk.serve.filters import CallFilter, StopFilter
from thinktalk.serve.limits import Receive, Scope, Send
from thinktalk.serve.metrics import Stopwatch
from thinktalk.serve.schema import ApiError, failed
from thinktalk.serve.sessions import Talk

SSE_HEADERS = {"Cache-Control": "no-cache", "X-Accel-Buffering": "no"}
PLAIN_FORMATS = ("pcm", "wav")  # written without a codec


@dataclass(frozen=True)
class Begun:
    """The reply begins; from here on nothing is refused any more."""


@dataclass(frozen=True)
class Words:
    text: str


@dataclass(frozen=True)
class Sound:
    samples: NDArray[np.float32]  # [n] at 24 kHz


@dataclass(frozen=True)
class End:
    """finish: OpenAI's finish_reason."""

    finish: str
    usage: api.Usage


Part = Begun | Words | Sound | api.ToolCall | End


async def reply_parts(
    talk: Talk, *, watch: Stopwatch, stops: Sequence[str] = (), tools: bool = False
) -> AsyncIterator[Part]:
    """What comes of a reply that was asked for already. Raises ApiError if it fails."""
    stop, calls = StopFilter(stops), CallFilter(active=tools)
    num_calls = 0
    held: list[Sound] = []
    stopped: api.ResponseDone | None = None  # the reply that a stop string ended
    async for event in talk.events():
        match event:
            case api.Failed() if not (stop.stopped and event.code == "response_cancel_not_active"):
                raise failed(event)
            case api.ResponseStarted() if stopped is None:
                yield Begun()
            case api.TextDelta() if not stop.stopped:
                if text := calls.push(stop.push(event.text)):
                    watch.stage("first_text")
                    yield Words(text)
                if stop.stopped:
                    talk.session.cancel()
            case api.AudioDelta() if not stop.stopped or stopped is not None:
                if stops and stopped is None:
                    held.append(Sound(event.samples))
                else:
                    watch.sound(len(event.samples))
                    yield Sound(event.samples)
            case api.ToolCall() if not stop.stopped:
                num_calls += 1
                yield event
            case api.ResponseDone(status="failed"):
                raise ApiError(500, "the reply failed; try again", code=event.reason or None)
            case api.ResponseDone():
                if rest := calls.push(stop.finish()) + calls.finish(calls=num_calls):
                    yield Words(rest)
                speaks = talk.session.settings.speak
                if stop.stopped and stopped is None and speaks and calls.visible.strip():
                    stopped = event
                    talk.session.delete(event.item)
                    talk.session.say(calls.visible)
                    continue
                for sound in held if not stop.stopped else ():
                    watch.sound(len(sound.samples))
                    yield sound
                watch.stage("done")
                yield _end(event, stopped, num_calls)
                return
    raise ApiError(503, "the server is stopping; try again", headers={"Retry-After": "5"})


def _end(event: api.ResponseDone, stopped: api.ResponseDone | None, num_calls: int) -> End:
    usage = event.usage
    if stopped is not None:
        usage = replace(stopped.usage, output_audio=usage.output_audio)
    if num_calls:
        return End("tool_calls", usage)
    return End("length" if event.status == "incomplete" else "stop", usage)


class SoundWriter:
    """Samples in, bytes of a sound file out; codecs work beside the loop."""

    def __init__(self, format: str):
        self._encoder = SoundEncoder("pcm" if format == "pcm16" else format)
        self._plain = format in PLAIN_FORMATS or format == "pcm16"

    async def push(self, samples: NDArray[np.float32]) -> bytes:
        if self._plain:
            return self._encoder.push(samples)
        return await asyncio.to_thread(self._encoder.push, samples)

    async def finish(self) -> bytes:
        return await asyncio.to_thread(self._encoder.finish)


class ClientLeftError(Exception):
    """Nobody waits for the answer any more."""


@asynccontextmanager
async def while_connected(request: Request) -> AsyncIterator[None]:
    """Stops the work inside when the client has gone: raises ClientLeftError."""
    worker = asyncio.current_task()
    assert worker is not None
    left = False

    async def watch() -> None:
        nonlocal left
        while (await request.receive())["type"] != "http.disconnect":
            pass
        left = True
        worker.cancel()

    watcher = asyncio.create_task(watch())
    try:
        yield
    except asyncio.CancelledError:
        if not left:
            raise
        worker.uncancel()
        raise ClientLeftError from None
    finally:
        watcher.cancel()


class Stream(StreamingResponse):
    """A reply that is sent as it is made. However the sending ends, `source`, which holds a session
    of the engine, is closed at once and not when somebody collects it."""

    def __init__(
        self,
        content: AsyncIterator[bytes],
        *,
        source: AsyncGenerator[Any, None],
        media_type: str = "text/event-stream",
    ):
        super().__init__(content, media_type=media_type, headers=SSE_HEADERS)
        self._source = source

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            await self._source.aclose()


def sse(data: dict[str, Any] | str) -> bytes:
    """One server-sent event."""
    text = data if isinstance(data, str) else json.dumps(data, ensure_ascii=False)
    return f"data: {text}\n\n".encode()
