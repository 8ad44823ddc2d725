"""/v1/realtime: one WebSocket, two loops; and calls that survive a broken connection for a while.

The receive loop reads client events and carries them out; the send loop empties the outbox that the
translation of the engine's events fills.
"""

from __future__ import annotations

import asyncio
import json
import logging
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from starlette.websockets import WebSocket, WebSocketDisconnect

from thinktalk.live.api import Event, SessionClosedError
from thinktalk.options import ServerVad, Settings
from thinktalk.serve.limits import MB, Allowance, Limits, SlowReaderError
from thinktalk.serve.metrics import Metrics
from thinktalk.serve.outbox import Outbox
from thinktalk.serve.realtime_commands import carry_out
from thinktalk.serve.realtime_config import Config
from thinktalk.serve.realtime_desk import Desk, wire_session
from thinktalk.serve.realtime_events import Translator
from thinktalk.serve.realtime_state import State
from thinktalk.serve.schema import ApiError, new_id, now, voice_name
from thinktalk.serve.sessions import Sessions, Talk
from thinktalk.serve.sources import Sources

log = logging.getLogger("thinktalk.serve")

NORMAL, GOING_AWAY, POLICY, SERVER_ERROR, TRY_LATER = 1000, 1001, 1008, 1011, 1013
REPLACED = 4001  # another connection took the session up


class Call:
    """One Realtime session on the server: the engine's session and what the wire knows of it."""

    def __init__(self, realtime: Realtime, config: Config):
        self.realtime, self.id, self.token = realtime, new_id("sess_"), new_id("resume_")
        self.closed: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        limits = realtime.limits
        outbox = Outbox(max_unsent=int(limits.unread_mb * MB), on_overflow=lambda: self.end(POLICY))
        self.state = State(
            id=self.id,
            model=realtime.model,
            config=config,
            outbox=outbox,
            metrics=realtime.metrics,
            transcribe=lambda item: self.desk.session.transcribe(item),
            end=self.end,
            rate_limits=realtime.rate_limits,
            conversation=new_id("conv_"),
            extras={
                "expires_at": now() + int(limits.session_s),
                "resume": {"token": self.token, "seconds": limits.resume_s},
            },
        )
        self.translate = Translator(self.state)
        self.desk: Desk
        self.connection: asyncio.Future[int] | None = None  # resolved to a close code to end it
        self.detached: asyncio.TimerHandle | None = None
        self._talk: Talk | None = None
        self._expiry = asyncio.get_running_loop().call_later(limits.session_s, self._expire)

    async def begin(self, *, wait: bool = False) -> None:
        """Gets a session of the engine. Raises ApiError when there is none."""
        realtime = self.realtime
        settings = self.state.config.settings(realtime.base)
        self.desk = Desk(
            talk=await self._open(settings, wait=wait),
            state=self.state,
            sessions=realtime.sessions,
            sources=realtime.sources,
            allowance=Allowance(realtime.limits.audio_s),
            base=realtime.base,
            reopen=self._reopen,
            silent=not settings.speak,
        )

    def end(self, code: int) -> None:
        """Ends the call for good; its connection is closed with this code."""
        if self.closed.done():
            return
        self.closed.set_result(code)
        self._expiry.cancel()
        self.realtime.forget(self)
        for side in self.state.sides.values():
            side.close()
        if self._talk is not None:
            self._talk.close()

    async def _open(self, settings: Settings, *, wait: bool = False) -> Talk:
        def deliver(event: Event) -> None:
            ours = event.session == (self._talk and self._talk.session.id)
            if ours and not self.closed.done():
                self.translate(event)

        self._talk = await self.realtime.sessions.open(settings, wait=wait, deliver=deliver)
        return self._talk

    async def _reopen(self, settings: Settings) -> Talk:
        """Exchanges the engine's session for one of another kind, before anything was said."""
        if self._talk is not None:
            self._talk.close()
        self._talk = None  # from here on nobody listens to the old one
        try:
            return await self._open(settings, wait=True)
        except ApiError:
            self.end(TRY_LATER)
            raise

    def _expire(self) -> None:
        if not self.closed.done():
            limit = self.realtime.limits.session_s
            message = f"Your session hit the maximum duration of {limit:g} seconds."
            self.state.fail(ApiError(400, message, code="session_expired"))
            self.end(NORMAL)


class Realtime:
    """All calls of a server, and the WebSocket endpoint."""

    def __init__(
        self, sessions: Sessions, *, sources: Sources, metrics: Metrics, max_sessions: int
    ):
        self.sessions, self.sources, self.metrics = sessions, sources, metrics
        self.limits: Limits = sessions.limits
        self.max_sessions = max_sessions
        self.base = Settings(turn_detection=ServerVad())
        self.calls: dict[str, Call] = {}  # by resume token
        sessions.evict = self.evict

    @property
    def model(self) -> str:
        return self.sessions.engine.model_name

    def first_config(self, setup: Mapping[str, Any] | None, *, kind: str = "realtime") -> Config:
        """The configuration before any session.update; setup comes with an ephemeral key."""
        voices = tuple(self.sessions.engine.voices)
        config = Config(voice=voice_name(None, voices) if voices else "")
        if not voices:
            config = config.changed({"type": "realtime", "output_modalities": ["text"]}, voices=())
        if setup:
            return config.changed(setup, voices=voices)
        return config if kind == "realtime" else config.changed({"type": kind}, voices=voices)

    async def serve(self, socket: WebSocket, *, setup: Mapping[str, Any] | None) -> None:
        """One connection, from its first event to its close."""
        offered = socket.scope.get("subprotocols") or []
        await socket.accept(subprotocol="realtime" if "realtime" in offered else None)
        try:
            call = await self._call_for(socket, setup)
        except ApiError as error:
            self.metrics.connections.labels("refused").inc()
            inner = error.body["error"] | {"event_id": None}
            text = {"type": "error", "event_id": new_id("event_"), "error": inner}
            await socket.send_text(json.dumps(text))
            await socket.close(TRY_LATER if error.status == 429 else POLICY, error.message[:120])
            return
        await self._attach(call, socket)

    async def open(self, config: Config, *, wait: bool = False) -> Call:
        """A new call. Raises ApiError."""
        call = Call(self, config)
        await call.begin(wait=wait)
        self.calls[call.token] = call
        return call

    async def _call_for(self, socket: WebSocket, setup: Mapping[str, Any] | None) -> Call:
        """The call that a connection takes up or begins."""
        query = socket.query_params
        if token := query.get("resume"):
            call = self.calls.get(token)
            if call is None or call.closed.done():
                raise ApiError(404, "this session is over; open a new one", code="resume_failed")
            if call.connection is not None and not call.connection.done():
                call.connection.set_result(REPLACED)
                while call.connection is not None:
                    await asyncio.sleep(0.01)
            if not call.state.outbox.rewind(query.get("after")):
                message = "events behind that one are not kept; open a new session"
                raise ApiError(404, message, code="resume_failed")
            self.metrics.connections.labels("resumed").inc()
            return call
        kind = "transcription" if query.get("intent") == "transcription" else "realtime"
        call = await self.open(self.first_config(setup, kind=kind))
        self.metrics.connections.labels("opened").inc()
        return call

    async def _attach(self, call: Call, socket: WebSocket) -> None:
        """Serves a call over a connection until one of them ends."""
        call.connection = asyncio.get_running_loop().create_future()
        if call.detached is not None:
            call.detached.cancel()
        hello = {"type": "session.created", "event_id": new_id("event_")}
        code, broken = SERVER_ERROR, True
        try:
            await socket.send_text(json.dumps({**hello, "session": wire_session(call.desk)}))
            code, broken = await self._talk(call, socket)
        except (WebSocketDisconnect, SlowReaderError, OSError):
            pass
        except Exception:
            log.exception("realtime session %s failed", call.id)
            call.end(SERVER_ERROR)
        finally:
            call.connection = None
            if not broken:
                call.end(code)
            elif not call.closed.done():
                self._detach(call)
        if socket.client_state.name == "CONNECTED":
            await _close(socket, call.closed.result() if call.closed.done() else code)

    async def _talk(self, call: Call, socket: WebSocket) -> tuple[int, bool]:
        """Both loops, until the first reason to stop: a close code, and whether the call may be
        taken up again."""
        assert call.connection is not None
        receiver = asyncio.create_task(receive_loop(call, socket, self.limits.idle_s))
        sender = asyncio.create_task(call.state.outbox.run(socket.send_text))
        tasks: set[asyncio.Future[Any]] = {receiver, sender, call.connection, call.closed}
        try:
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if call.closed in done:
                async with asyncio.timeout(1):  # the last words: why it ended
                    await call.state.outbox.empty()
                return call.closed.result(), False
            if call.connection in done:
                return call.connection.result(), True
            if sender in done:
                sender.result()  # raises
            return receiver.result()
        except TimeoutError:
            return call.closed.result(), False
        finally:
            for task in (receiver, sender):
                task.cancel()
            await asyncio.gather(receiver, sender, return_exceptions=True)

    def _detach(self, call: Call) -> None:
        """The connection broke: the call waits for its client to come back."""
        self.metrics.connections.labels("broken").inc()
        loop = asyncio.get_running_loop()
        call.detached = loop.call_later(self.limits.resume_s, call.end, GOING_AWAY)

    def evict(self) -> bool:
        """Ends the call that has waited longest for its client; False if none waits."""
        waiting = [call for call in self.calls.values() if call.connection is None]
        if waiting:
            waiting[0].end(GOING_AWAY)
        return bool(waiting)

    def forget(self, call: Call) -> None:
        self.calls.pop(call.token, None)

    def rate_limits(self) -> list[dict[str, Any]]:
        """How many sessions there may be, and how many are free."""
        remaining = max(0, self.max_sessions - self.sessions.num_open)
        limits = {"limit": self.max_sessions, "remaining": remaining, "reset_seconds": 0.0}
        return [{"name": "requests", **limits}]

    def close(self) -> None:
        """Ends all calls, when the server stops."""
        for call in list(self.calls.values()):
            call.end(GOING_AWAY)


async def receive_loop(call: Call, socket: WebSocket, idle_s: float) -> tuple[int, bool]:
    """Client events, one after the other; a mistake is told and the session goes on. Returns a
    close code, and whether the call may be taken up again."""
    while True:
        try:
            async with asyncio.timeout(idle_s):
                message = await socket.receive()
        except TimeoutError:
            return NORMAL, False
        if message["type"] == "websocket.disconnect":
            return NORMAL, message.get("code") != NORMAL
        try:
            await obey(call, message.get("text"))
        except SessionClosedError:
            return GOING_AWAY, False


async def obey(call: Call, text: str | None) -> None:
    """Carries out one client event, or tells why not."""
    event: Any = None
    try:
        event = await parse(text)
        await carry_out(call.desk, event)
    except ApiError as error:
        name = event.get("event_id") if isinstance(event, dict) else None
        call.state.fail(error, name if isinstance(name, str) else None)


LARGE_CHARS = 1 << 20  # JSON beyond this is parsed beside the loop


async def parse(text: str | None) -> Any:
    """One message as JSON. Raises ApiError."""
    if text is None:
        raise ApiError(400, "events are JSON text, not bytes", code="invalid_value")
    try:
        if len(text) > LARGE_CHARS:
            return await asyncio.to_thread(_loads, text)
        return _loads(text)
    except (ValueError, RecursionError):
        message = "this is not valid JSON; send one object a message"
        raise ApiError(400, message, code="invalid_json") from None


def _loads(text: str) -> Any:
    """Strict JSON: no NaN, no halves of characters, which nothing behind could write out again."""
    event = json.loads(text, parse_constant=_no_number)
    if "\\u" in text:
        json.dumps(event, ensure_ascii=False).encode()
    return event


def _no_number(name: str) -> float:
    raise ValueError(f"{name} is no JSON")


async def _close(socket: WebSocket, code: int) -> None:
    with suppress(RuntimeError, OSError):  # it has gone in the meantime
        await socket.close(code)
