"""The boundary of the live engine: sessions take sound, pictures and words, and give events.

No torch here, so a server may import it. All methods return at once and may be called from any
thread; the work is done by the engine's thread, and what happens comes as events, in order. Bad
input is answered by a `Failed` event and changes nothing; only a closed session raises.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from thinktalk.options import Settings

Status = Literal["completed", "cancelled", "incomplete", "failed"]
Reason = Literal[
    "", "turn_detected", "client_cancelled", "max_output_tokens", "context_full", "closed", "error"
]


class EngineFullError(RuntimeError):
    """The engine holds as many sessions as it may: try again later, or raise max_sessions."""


class SessionClosedError(RuntimeError):
    """The session was closed; open a new one."""


# ---- events


@dataclass(frozen=True)
class Event:
    """session: who it is for. generation: grows with every interruption; an event stamped with an
    older number than the newest one seen must not be played or shown any more."""

    session: str
    generation: int


@dataclass(frozen=True)
class SpeechStarted(Event):
    """The user began to speak, `audio_ms` into the session's sound (prefix padding included).

    Comes before the ResponseDone of a reply that it stops."""

    item: str
    audio_ms: int


@dataclass(frozen=True)
class SpeechStopped(Event):
    item: str
    audio_ms: int


@dataclass(frozen=True)
class TurnCommitted(Event):
    """A user's turn, or a message that was added, is part of the conversation now."""

    item: str
    previous: str | None
    role: str = "user"


@dataclass(frozen=True)
class InputCleared(Event):
    """What was pushed since the last commit is forgotten."""


@dataclass(frozen=True)
class InputTranscript(Event):
    """What the user said, as the model heard it: a piece, or with `done` the whole text."""

    item: str
    text: str
    done: bool = False


@dataclass(frozen=True)
class ResponseStarted(Event):
    """A reply begins; `item` is what it will be called in the conversation."""

    response: str
    item: str


@dataclass(frozen=True)
class TextDelta(Event):
    """The next characters of the reply; never half a character."""

    response: str
    item: str
    text: str


@dataclass(frozen=True)
class AudioDelta(Event):
    """The next samples of the reply: float32 [n] at 24 kHz."""

    response: str
    item: str
    samples: NDArray[np.float32]


@dataclass(frozen=True)
class ToolCall(Event):
    """The reply wants a function called; answer with push_tool_result(call_id, ...)."""

    response: str
    item: str
    call_id: str
    name: str
    arguments: Mapping[str, Any]


@dataclass(frozen=True)
class Usage:
    """Tokens by modality; cached: of the input, already in the cache when the turn ended."""

    input_text: int = 0
    input_audio: int = 0
    input_image: int = 0
    cached: int = 0
    output_text: int = 0
    output_audio: int = 0


@dataclass(frozen=True)
class ResponseDone(Event):
    """The reply is over. text: all of it, whether or not it was heard; audio_ms: sound sent."""

    response: str
    item: str
    status: Status
    reason: Reason
    text: str
    audio_ms: int
    usage: Usage = field(default_factory=Usage)


@dataclass(frozen=True)
class Truncated(Event):
    """The conversation now ends this reply where `audio_ms` of it had been heard: after `text`."""

    item: str
    audio_ms: int
    text: str


@dataclass(frozen=True)
class ItemDeleted(Event):
    item: str


@dataclass(frozen=True)
class HistoryDropped(Event):
    """The oldest turns were forgotten, because the context was nearly full."""

    items: tuple[str, ...]
    positions: int


@dataclass(frozen=True)
class Updated(Event):
    settings: Settings


@dataclass(frozen=True)
class Failed(Event):
    """Something that was asked for was not done, or (fatal) the session is over.

    code: a short name for programs, such as "invalid_audio"; message: what is wrong and what to do.
    """

    code: str
    message: str
    param: str | None = None
    fatal: bool = False


@dataclass(frozen=True)
class Saved(Event):
    path: str


@dataclass(frozen=True)
class Closed(Event):
    """The last event of every session."""


# ---- sessions


class Session(Protocol):
    """One conversation. An open turn collects what is pushed until `commit` or the detector ends
    it; what is pushed is heard and seen at once."""

    @property
    def id(self) -> str: ...

    @property
    def settings(self) -> Settings: ...

    def push_audio(self, samples: NDArray[Any] | bytes, *, sample_rate: int = 24_000) -> None:
        """More of the microphone: float32 in -1..1 or int16 [n], or PCM16 bytes; any length."""
        ...

    def push_image(self, image: Any, *, time_s: float | None = None) -> None:
        """A picture (as decode.load_image takes it). With time_s it is a camera or screen frame at
        this time of the session's sound; without, a still picture in its place of the turn."""
        ...

    def push_text(self, text: str) -> None: ...

    def push_media(self, source: Any, *, kind: str | None = None, **options: Any) -> None:
        """A file, URL or data URI in its place of the turn; options as chat messages have them."""
        ...

    def push_tool_result(self, call_id: str, output: str) -> None:
        """What a called function returned, as a message of its own."""
        ...

    def add_message(
        self,
        message: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        item: str | None = None,
        after: str | None = None,
    ) -> str:
        """A whole message in the official chat format, into the conversation; returns its item.
        Several are one item: results of one round of function calls, which share a turn. after:
        the item behind which it stands, "root" for the beginning; by default the end."""
        ...

    def clear(self) -> None:
        """Forgets the open turn."""
        ...

    def commit(self, *, item: str | None = None, respond: bool = True) -> None:
        """Ends the open turn; TurnCommitted tells its item, which is `item` unless SpeechStarted
        has already named it. Nothing pushed is a Failed("input_audio_buffer_commit_empty")."""
        ...

    def respond(
        self,
        *,
        text: str | None = None,
        speak: bool = True,
        max_text_tokens: int | None = None,
        max_codec_ids: int | None = None,
    ) -> str:
        """Begins a reply; returns the response's id. text: say exactly this instead of thinking.
        speak: False for a reply that is only written, in a session that speaks. Function calls are
        never spoken, and a reply that is nothing else costs no speech.

        While another reply is in progress: Failed("conversation_already_has_active_response").
        """
        ...

    def say(self, text: str) -> str:
        """respond(text=...): the model's voice with the caller's words."""
        ...

    def transcribe(self, item: str) -> None:
        """Has the model write down what was said in an item; comes as InputTranscript events, off
        the replies' path."""
        ...

    def cancel(self) -> None:
        """Stops the reply; Failed("response_cancel_not_active") if there is none."""
        ...

    def truncate(self, item: str, audio_ms: int) -> None:
        """Makes the conversation forget what of a reply was not heard."""
        ...

    def delete(self, item: str) -> None:
        """Removes an item from the conversation."""
        ...

    def update(self, **changes: Any) -> None:
        """Changes fields of the settings; a changed system prompt or tools recompute the cache. A
        session that was opened with speak=False stays silent; another may fall silent for a while
        and speak again."""
        ...

    def fork(self) -> "Session":
        """A second session with the same past, which goes on independently."""
        ...

    def save(self, path: str | Path) -> None:
        """Writes the conversation and its caches into a folder; comes as Saved. Engine.resume
        continues it, in this process or another."""
        ...

    def close(self) -> None: ...

    def events(self, *, timeout_s: float | None = None) -> Iterator[Event]:
        """Yields what happens until Closed; with a time-out, ends when nothing came for so long."""
        ...


class Engine(Protocol):
    """One model and its sessions."""

    @property
    def voices(self) -> Sequence[str]: ...

    @property
    def model_name(self) -> str: ...

    def open(self, settings: Settings | None = None, **changes: Any) -> Session:
        """A new session; changes are fields of Settings. Raises EngineFullError, and ValueError
        for an unknown voice or wrong settings."""
        ...

    def resume(self, path: str | Path) -> Session:
        """The session that was saved there. Raises ValueError if it does not fit this model."""
        ...

    def stats(self) -> Mapping[str, float]:
        """Counters and gauges by name, for monitoring."""
        ...

    def close(self) -> None:
        """Ends all sessions and the engine's thread."""
        ...
