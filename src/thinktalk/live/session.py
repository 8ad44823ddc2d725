"""The caller's side of a session: any thread in, commands for the engine's thread out, events back.

Commands of a session are carried out in the order in which they were given, also when one of them
has to wait for a file that is being read.
"""

import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.live import api
from thinktalk.live.conversation import Conversation
from thinktalk.live.replies import Request
from thinktalk.media.chat import Control, Medium, render
from thinktalk.media.decode import load_image
from thinktalk.media.image import Processor, resize
from thinktalk.media.source import medium_of
from thinktalk.media.video import video_size
from thinktalk.options import Settings

if TYPE_CHECKING:
    from thinktalk.live.sessions import Sessions

MAX_WAITING_COMMANDS = 20_000  # of one session; more means that the engine cannot keep up
MAX_WAITING_EVENTS = 20_000  # of one session; a reply waits while nobody takes its events
MARKERS = {"audio": "audio", "image": "vision", "video": "vision"}

Command = Callable[[Conversation], None]


class Outbox:
    """Events on their way from the engine's thread to whoever iterates over them."""

    def __init__(self) -> None:
        self._events: deque[api.Event] = deque()
        self._condition = threading.Condition()
        self.is_closed = False

    @property
    def has_events(self) -> bool:
        return bool(self._events)

    @property
    def is_full(self) -> bool:
        return len(self._events) >= MAX_WAITING_EVENTS

    def put(self, event: api.Event) -> None:
        with self._condition:
            if not self.is_closed:
                self._events.append(event)
                self.is_closed = isinstance(event, api.Closed)
                self._condition.notify_all()

    def purge(self, response: str) -> int:
        """Drops a reply's sound that nobody has taken yet; returns how many samples that were."""
        with self._condition:
            dropped = 0
            for _ in range(len(self._events)):
                event = self._events.popleft()
                if isinstance(event, api.AudioDelta) and event.response == response:
                    dropped += len(event.samples)
                else:
                    self._events.append(event)
            return dropped

    def get(self, timeout_s: float | None) -> api.Event | None:
        """The next event; None after the time-out, or when there will be none."""
        with self._condition:
            self._condition.wait_for(lambda: self._events or self.is_closed, timeout_s)
            return self._events.popleft() if self._events else None


@dataclass
class Waiting:
    """A command, and the media it needs, if any are still being read."""

    run: Callable[[Conversation, Any], None]
    media: Future | None = None
    # it, and what was asked for before it, is done even if the session is closed meanwhile
    even_if_closed: bool = False
    dropped: Callable[[], object] | None = None  # called if it will never be done


class LiveSession:
    """See api.Session, which this implements."""

    def __init__(self, name: str, settings: Settings, engine: "Sessions", outbox: Outbox):
        self._id, self._engine, self.outbox = name, engine, outbox
        self.current_settings = settings
        self.inbox: deque[Waiting] = deque()
        self._lock = threading.Lock()
        self._is_closed = False

    @property
    def id(self) -> str:
        return self._id

    @property
    def settings(self) -> Settings:
        return self.current_settings

    # ---- what is pushed

    def push_audio(self, samples: NDArray[Any] | bytes, *, sample_rate: int = 24_000) -> None:
        is_pcm = isinstance(samples, bytes | bytearray | memoryview)
        sound = bytes(samples) if is_pcm else np.array(samples)  # a copy: it waits
        self.post(lambda c: c.hear(sound, sample_rate))

    def push_image(self, image: Any, *, time_s: float | None = None) -> None:
        if time_s is None:
            self.push_media(image, kind="image")
            return
        processor = self._engine.kit.processor

        def load() -> NDArray[np.uint8]:
            return _sized(load_image(image), processor)

        def run(conversation: Conversation, frame: NDArray[np.uint8]) -> None:
            conversation.see(frame, time_s)

        self._post_media(load, run)

    def push_text(self, text: str) -> None:
        self.post(lambda c: c.take(text))

    def push_media(self, source: Any, *, kind: str | None = None, **options: Any) -> None:
        found = kind or (medium_of(source) if isinstance(source, str) else None)

        def load() -> Any:
            if found not in MARKERS:
                raise ValueError(f"{source!r} is no known medium; say kind='audio', 'image', ...")
            name = MARKERS[found]
            medium = Medium(found, source, options)
            return self._engine.assemble(
                [Control(f"<|{name}_bos|>"), medium, Control(f"<|{name}_eos|>")], self.settings
            )

        self._post_media(load, lambda c, prompt: c.take(prompt))

    def push_tool_result(self, call_id: str, output: str) -> None:
        self.add_message({"role": "tool", "tool_call_id": call_id, "content": output})

    def add_message(
        self,
        message: Mapping[str, Any] | Sequence[Mapping[str, Any]],
        *,
        item: str | None = None,
        after: str | None = None,
    ) -> str:
        name = item or self._engine.kit.new_id("item")
        messages = [message] if isinstance(message, Mapping) else list(message)

        def load() -> Any:
            # the template would put a system prompt before a conversation that has none
            placeholder = {"role": "system", "content": "-"}
            pieces = render([placeholder, *messages], reply=False)
            skip = next(n for n, p in enumerate(pieces[1:], 1) if p == Control("<|im_start|>"))
            return self._engine.assemble(pieces[skip:], self.settings)

        role = str(messages[-1].get("role")) if messages else ""
        self._post_media(load, lambda c, prompt: c.add(prompt, role=role, item=name, after=after))
        return name

    # ---- what is asked for

    def clear(self) -> None:
        self.post(lambda c: c.clear())

    def commit(self, *, item: str | None = None, respond: bool = True) -> None:
        self.post(lambda c: c.commit(item=item, respond=respond))

    def respond(
        self,
        *,
        text: str | None = None,
        speak: bool = True,
        max_text_tokens: int | None = None,
        max_codec_ids: int | None = None,
    ) -> str:
        name = self._engine.kit.new_id("resp")
        request = Request(name, text, speak, max_text_tokens, max_codec_ids)
        self.post(lambda c: c.respond(request))
        return request.response

    def say(self, text: str) -> str:
        return self.respond(text=text)

    def transcribe(self, item: str) -> None:
        self.post(lambda c: self._engine.transcribe(c, item))

    def cancel(self) -> None:
        self.post(lambda c: c.cancel())

    def truncate(self, item: str, audio_ms: int) -> None:
        self.post(lambda c: c.truncate(item, audio_ms))

    def delete(self, item: str) -> None:
        self.post(lambda c: c.delete(item))

    def update(self, **changes: Any) -> None:
        self.post(lambda c: self._engine.update(self, c, changes))

    def fork(self) -> "LiveSession":
        return self._engine.fork(self)

    def save(self, path: str | Path) -> None:
        folder = Path(path)
        self.post(lambda c: self._engine.save(c, folder), even_if_closed=True)

    def close(self) -> None:
        with self._lock:
            if self._is_closed:
                return
            self._is_closed = True
            while self.inbox and not self.inbox[-1].even_if_closed:
                self.inbox.pop()
            self.inbox.append(Waiting(lambda c, _: self._engine.end(self)))
        self._engine.wake()

    def take(self) -> Waiting | None:
        """The next command, for the engine; None if there is none, or its media are not read."""
        with self._lock:
            if not self.inbox:
                return None
            media = self.inbox[0].media
            return None if media is not None and not media.done() else self.inbox.popleft()

    def shut(self) -> None:
        """Takes no more commands; for the engine, where a session ends on its own."""
        with self._lock:
            self._is_closed = True
            for waiting in self.inbox:
                if waiting.dropped is not None:
                    waiting.dropped()
            self.inbox.clear()

    def events(self, *, timeout_s: float | None = None) -> Iterator[api.Event]:
        while (event := self._next(timeout_s)) is not None:
            yield event
            if isinstance(event, api.Closed):
                return

    # ---- the way to the engine's thread

    def _next(self, timeout_s: float | None) -> api.Event | None:
        if self._engine.has_thread:
            return self.outbox.get(timeout_s)
        # without a thread of its own the engine works while somebody waits for events
        until = None if timeout_s is None else time.monotonic() + timeout_s
        while (event := self.outbox.get(0)) is None and not self.outbox.is_closed:
            if not self._engine.step() and not self.outbox.has_events:
                if not self.inbox or (until is not None and time.monotonic() > until):
                    return None
                time.sleep(0.001)  # a file is being read
        return event

    def post(
        self,
        command: Command,
        *,
        even_if_closed: bool = False,
        dropped: Callable[[], object] | None = None,
    ) -> None:
        """Has a command carried out in its turn; dropped: called if it will never be."""
        waiting = Waiting(lambda c, _: command(c), None, even_if_closed, dropped)
        self._put(lambda: waiting)

    def _post_media(
        self, load: Callable[[], Any], run: Callable[[Conversation, Any], None]
    ) -> None:
        self._put(lambda: Waiting(run, self._engine.in_worker(load)))

    def _put(self, make: Callable[[], Waiting]) -> None:
        with self._lock:
            if self._is_closed:
                raise api.SessionClosedError(f"{self.id} is closed; open a new session")
            if len(self.inbox) < MAX_WAITING_COMMANDS:
                self.inbox.append(make())
            elif not self.outbox.is_full:
                conversation = self._engine.conversations.get(self.id)
                generation = conversation.replies.generation if conversation else 0
                message = "the engine cannot keep up with this session; what was pushed is lost"
                self.outbox.put(api.Failed(self.id, generation, "overloaded", message))
        self._engine.wake()


def _sized(image: NDArray[np.uint8], processor: Processor) -> NDArray[np.uint8]:
    """A camera frame in the size in which the vision encoder takes it."""
    from_size = image.shape[:2]
    size = video_size(processor.temporal_patch_size, *from_size, processor=processor)
    return image if size == from_size else resize(image, size=size)
