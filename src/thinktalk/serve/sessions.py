"""Sessions of the engine on the event loop: who gets one, who waits, and how events come over.

An engine's session is read by a thread of its own, which blocks; its events are handed to the loop.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import AsyncIterator, Callable

from thinktalk.live.api import Closed, Engine, EngineFullError, Event, Session
from thinktalk.options import Settings
from thinktalk.serve.limits import Limits
from thinktalk.serve.schema import ApiError

RETRY_AFTER_S = 2


class Talk:
    """A session and its way onto the loop. `deliver` is called on the loop with every event; the
    default keeps them for `events`."""

    def __init__(
        self,
        session: Session,
        *,
        on_closed: Callable[[], None],
        deliver: Callable[[Event], None] | None = None,
    ):
        self.session = session
        self._loop = asyncio.get_running_loop()
        self._queue: asyncio.Queue[Event] = asyncio.Queue()
        self._deliver = deliver or self._queue.put_nowait
        self._on_closed = on_closed
        threading.Thread(target=self._follow, name=f"events {session.id}", daemon=True).start()

    async def events(self) -> AsyncIterator[Event]:
        """Every event until the session is closed."""
        while not isinstance(event := await self._queue.get(), Closed):
            yield event

    def close(self) -> None:
        self.session.close()

    def _follow(self) -> None:
        for event in self.session.events():
            try:
                self._loop.call_soon_threadsafe(self._hand_over, event)
            except RuntimeError:  # the loop ended before the engine did
                return

    def _hand_over(self, event: Event) -> None:
        if isinstance(event, Closed):
            self._on_closed()
        self._deliver(event)


class Sessions:
    """Opens sessions, and lets requests wait in line while the engine is full."""

    def __init__(self, engine: Engine, limits: Limits):
        self.engine, self.limits = engine, limits
        self.num_open = 0
        self._line: list[asyncio.Future[None]] = []
        # Set by the Realtime registry: ends a session that only waits to be resumed.
        self.evict: Callable[[], bool] = lambda: False

    @property
    def num_waiting(self) -> int:
        return len(self._line)

    async def open(
        self,
        settings: Settings,
        *,
        wait: bool,
        deliver: Callable[[Event], None] | None = None,
    ) -> Talk:
        """A new session. Raises ApiError: 400 for settings that the engine does not take, 429 if
        it stays full."""
        deadline = asyncio.get_running_loop().time() + (self.limits.queue_s if wait else 0)
        while True:
            try:
                return self.follow(self.engine.open(settings), deliver=deliver)
            except ValueError as error:
                raise ApiError(400, str(error), code="invalid_value") from None
            except EngineFullError:
                evicted = self.evict()
                late = asyncio.get_running_loop().time() >= deadline
                if (late or self.num_waiting >= self.limits.queue) and not evicted:
                    raise self.full() from None
            await self._next_free(deadline)

    def follow(self, session: Session, *, deliver: Callable[[Event], None] | None = None) -> Talk:
        """Brings the events of a session onto the loop, a forked one for example."""
        self.num_open += 1
        return Talk(session, on_closed=self._closed, deliver=deliver)

    @staticmethod
    def full() -> ApiError:
        message = "all sessions are taken; try again in a moment"
        headers = {"Retry-After": str(RETRY_AFTER_S)}
        return ApiError(429, message, code="session_limit_reached", headers=headers)

    async def _next_free(self, deadline: float) -> None:
        """Waits in line until a session ends, or for a moment beyond the deadline after an
        eviction."""
        place: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._line.append(place)
        try:
            seconds = max(1.0, deadline - asyncio.get_running_loop().time())
            await asyncio.wait_for(place, seconds)
        except TimeoutError:
            pass
        finally:
            if place in self._line:
                self._line.remove(place)

    def _closed(self) -> None:
        self.num_open -= 1
        if self._line:
            place = self._line.pop(0)
            if not place.done():
                place.set_result(None)
