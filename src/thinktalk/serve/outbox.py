"""What a Realtime client is to be told, in order, over one connection or several.

Sound of a reply that was interrupted is dropped before it is sent. What was sent is kept for a
while, so that a client whose connection broke gets what it may have missed.
"""

from __future__ import annotations

import asyncio
import json
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

KEPT_BYTES = 8 << 20  # of sent events, for a client that takes up a broken connection


@dataclass(frozen=True)
class Entry:
    """id: the event's. reply: the response whose sound this is."""

    id: str
    text: str
    reply: str | None


class Outbox:
    """put is called on the loop by anyone; run sends on one connection at a time."""

    def __init__(self, *, max_unsent: int, on_overflow: Callable[[], None]):
        """max_unsent: bytes that may wait for the client; beyond, on_overflow is called once."""
        self._unsent: deque[Entry] = deque()
        self._sent: deque[Entry] = deque()
        self._unsent_bytes = self._sent_bytes = 0
        self._max_unsent, self._on_overflow = max_unsent, on_overflow
        self._ready = asyncio.Event()
        self._count = 0
        self._stale: set[str] = set()
        self.overflowed = False

    def put(self, kind: str, *, reply: str | None = None, **fields: Any) -> str:
        """Queues one event and returns its id."""
        self._count += 1
        name = f"event_{self._count:08d}"
        event = {"type": kind, "event_id": name, **fields}
        text = json.dumps(event, ensure_ascii=False, separators=(",", ":"))
        self._unsent.append(Entry(name, text, reply))
        self._unsent_bytes += len(text)
        self._ready.set()
        if self._unsent_bytes > self._max_unsent and not self.overflowed:
            self.overflowed = True
            self._on_overflow()
        return name

    def drop_sound(self, reply: str) -> None:
        """Sound of this response that is not sent yet never will be."""
        self._stale.add(reply)

    async def run(self, send: Callable[[str], Awaitable[None]]) -> None:
        """Sends until cancelled; an event counts as sent when `send` returned."""
        while True:
            while self._unsent:
                entry = self._unsent[0]
                if entry.reply is None or entry.reply not in self._stale:
                    await send(entry.text)
                    self._keep(entry)
                self._unsent.popleft()
                self._unsent_bytes -= len(entry.text)
            self._ready.clear()
            await self._ready.wait()

    def rewind(self, last_seen: str | None) -> bool:
        """Makes unsent again what followed the event that a client saw last; False if that event
        is not kept any more. Without a last event, nothing is sent twice."""
        if last_seen is None:
            return True
        if all(entry.id != last_seen for entry in self._sent):
            return False
        while self._sent[-1].id != last_seen:
            entry = self._sent.pop()
            self._sent_bytes -= len(entry.text)
            self._unsent.appendleft(entry)
            self._unsent_bytes += len(entry.text)
        self._ready.set()
        return True

    async def empty(self) -> None:
        """Returns when everything was sent."""
        while self._unsent:
            await asyncio.sleep(0.01)

    def _keep(self, entry: Entry) -> None:
        self._sent.append(entry)
        self._sent_bytes += len(entry.text)
        while self._sent_bytes > KEPT_BYTES:
            self._sent_bytes -= len(self._sent.popleft().text)
