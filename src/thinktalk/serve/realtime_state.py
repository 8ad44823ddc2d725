"""What a Realtime conversation is on the wire, whoever changes it: setup, items, what was asked."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from thinktalk.live.api import Session
from thinktalk.serve.metrics import Metrics, Stopwatch
from thinktalk.serve.outbox import Outbox
from thinktalk.serve.realtime_config import Config
from thinktalk.serve.realtime_items import Items
from thinktalk.serve.schema import ApiError


class Player(Protocol):
    """Takes the sound of replies, instead of the wire."""

    def play(self, response: str, item: str, samples: NDArray[np.float32]) -> None: ...

    def finish(self, response: str) -> None:
        """No more sound comes of this response."""
        ...

    def clear(self) -> None:
        """Drops what is not played yet."""
        ...


@dataclass
class State:
    """One Realtime session as the wire knows it. It may outlive a connection.

    pending: items that the engine was given and has not committed yet. truncates: those that the
    client asked for; the engine's own, at interruptions, are not told. asked: the client's event_id
    of the last command of each kind. wanted: responses asked for that have not begun, and of those
    metadata, a config that differs from the session's, and what puts the session's back in force.
    sides: sessions of responses out of band. aliases: function calls -> the reply's item.
    seconds: of sound in users' items; committed_s: in what the client committed last. extras:
    fields that session objects have beside the config.
    """

    id: str
    model: str
    config: Config
    outbox: Outbox
    metrics: Metrics
    transcribe: Callable[[str], None]
    end: Callable[[int], None]
    rate_limits: Callable[[], list[dict[str, Any]]]
    conversation: str = ""
    extras: dict[str, Any] = field(default_factory=dict)
    items: Items = field(default_factory=Items)
    pending: dict[str, dict[str, Any]] = field(default_factory=dict)
    truncates: deque[tuple[str, int]] = field(default_factory=deque)
    asked: dict[str, str | None] = field(default_factory=dict)
    wanted: deque[str] = field(default_factory=deque)
    metadata: dict[str, dict[str, str] | None] = field(default_factory=dict)
    configs: dict[str, Config] = field(default_factory=dict)
    restore: dict[str, Callable[[], None]] = field(default_factory=dict)
    sides: dict[str, Session] = field(default_factory=dict)
    aliases: dict[str, str] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    committed_s: float = 0.0
    stopwatch: Stopwatch | None = None
    spoke: bool = False
    player: Player | None = None  # where the server holds the sound that is not played yet

    def emit(self, kind: str, **fields: Any) -> None:
        self.outbox.put(kind, **fields)

    def fail(self, error: ApiError, event_id: str | None = None) -> None:
        """Tells an error; the session goes on."""
        inner = error.body["error"] | {"event_id": event_id}
        self.emit("error", error=inner)

    def behind(self, item: str | None) -> str | None:
        """The last item on the wire that belongs to an item of the engine: a reply may be several
        (its words and its function calls), or none."""
        if item is None:
            return None
        names = [n for n in self.items.by_id if item in (n, self.aliases.get(n))]
        return names[-1] if names else self.items.last

    def over(self, response: str) -> None:
        """A response is done, or will never begin: what it overrode comes back."""
        if response in self.wanted:
            self.wanted.remove(response)
        self.metadata.pop(response, None)
        self.configs.pop(response, None)
        if restore := self.restore.pop(response, None):
            restore()
        if side := self.sides.pop(response, None):
            side.close()
