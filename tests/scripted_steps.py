"""What the scripted engine's conversations and replies are made of."""

import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

HANGS_S = 120.0  # nothing takes this long unless it hangs


@dataclass(frozen=True)
class Say:
    text: str


@dataclass(frozen=True)
class Sing:
    """Sound of a reply: a tone of so many milliseconds."""

    ms: int


@dataclass(frozen=True)
class Call:
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Wait:
    """Goes on when the test sets the event."""

    event: threading.Event


@dataclass(frozen=True)
class Break:
    """The session dies."""


Step = Say | Sing | Call | Wait | Break
HELLO: tuple[Step, ...] = (Say("hello "), Sing(200), Say("there."), Sing(200))


@dataclass
class Reply:
    response: str
    item: str
    steps: deque[Step]
    speak: bool
    text: str = ""
    num_samples: int = 0


@dataclass
class Item:
    id: str
    role: str
    content: Any = None
    audio_ms: int = 0
    text: str = ""


def until(condition: Callable[[], bool]) -> None:
    """Waits for something that happens in another thread."""
    began = time.monotonic()
    while not condition():
        assert time.monotonic() - began < HANGS_S, "it never happens"
        time.sleep(0.002)
