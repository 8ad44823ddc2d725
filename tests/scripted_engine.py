"""An engine without a model: it keeps the promises of live.api, and its replies are scripts.

For tests of the server: order of events, errors, interruptions, leaks. Sound above a level counts
as speech; a reply is a list of steps that a test hands in.
"""

import threading
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import fields, replace
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
from scripted_steps import HELLO, Break, Call, Item, Reply, Say, Sing, Step, Wait

from thinktalk.live import api
from thinktalk.options import ServerVad, Settings

SPEECH_LEVEL = 0.02
VOICE_HZ = 24_000
Script = Callable[["ScriptedSession"], Sequence[Step]]


class ScriptedEngine:
    """script: what a session answers, from its messages. transcript: what it hears in all sound."""

    def __init__(
        self,
        script: Script = lambda _: HELLO,
        *,
        max_sessions: int = 4,
        voices: tuple[str, ...] = ("Chelsie", "Ethan"),
        transcript: str = "what did you say",
    ):
        self.script, self.max_sessions, self.transcript = script, max_sessions, transcript
        self._voices = voices
        self.sessions: dict[str, ScriptedSession] = {}
        self.opened: list[ScriptedSession] = []
        self.lock = threading.Lock()
        self.is_closed = False
        self.say_ms = 300  # of sound when words are given

    @property
    def voices(self) -> Sequence[str]:
        return self._voices

    @property
    def model_name(self) -> str:
        return "scripted"

    def open(self, settings: Settings | None = None, **changes: Any) -> "ScriptedSession":
        settings = replace(settings or Settings(), **changes)
        if settings.speak and settings.voice not in self._voices:
            raise ValueError(f"unknown voice {settings.voice!r}")
        return self.register(ScriptedSession(self, settings))

    def register(self, session: "ScriptedSession") -> "ScriptedSession":
        with self.lock:
            if len(self.sessions) >= self.max_sessions:
                raise api.EngineFullError("full")
            self.sessions[session.id] = session
            self.opened.append(session)
        session.thread.start()
        return session

    def resume(self, path: str | Path) -> "ScriptedSession":
        raise ValueError(f"nothing was saved in {path}")

    def stats(self) -> Mapping[str, float]:
        return {"sessions": len(self.sessions), "blocks": 8, "thinker_blocks_free": 8}

    def close(self) -> None:
        self.is_closed = True
        for session in list(self.sessions.values()):
            session.close()


class ScriptedSession:
    """See api.Session. Commands and steps of a reply are done by one thread, in turn."""

    numbers = count(1)

    def __init__(self, engine: ScriptedEngine, settings: Settings):
        self.engine, self._settings, self.speaks = engine, settings, settings.speak
        self._id = f"engine{next(self.numbers)}"
        self.generation = 0
        self.items: list[Item] = []
        self.frames: list[tuple[np.ndarray, float | None]] = []
        self.reply: Reply | None = None
        self.wanted: deque[tuple[str, str | None]] = deque()
        self.samples_heard = 0
        self._open: Item | None = None  # the turn
        self._silence_ms = 0.0
        self._heard_ms = 0.0
        self._inbox: deque[Callable[[], None]] = deque()
        self._events: deque[api.Event] = deque()
        self._condition = threading.Condition()
        self._is_closing = self.is_over = False
        self.never = threading.Event()  # for a Wait that only an interruption ends
        self.thread = threading.Thread(target=self._work, name=self._id, daemon=True)

    @property
    def id(self) -> str:
        return self._id

    @property
    def settings(self) -> Settings:
        return self._settings

    # ---- from any thread

    def push_audio(self, samples: Any, *, sample_rate: int = VOICE_HZ) -> None:
        if isinstance(samples, bytes):
            samples = np.frombuffer(samples, "<i2")
        scale = 32_768 if samples.dtype == np.int16 else 1
        sound = samples.astype(np.float32) / scale
        self._post(lambda: self._hear(sound, sample_rate))

    def push_image(self, image: Any, *, time_s: float | None = None) -> None:
        self._post(lambda: self.frames.append((image, time_s)))

    def push_text(self, text: str) -> None:
        self._post(lambda: self._add("user", text, None))

    def push_media(self, source: Any, *, kind: str | None = None, **options: Any) -> None:
        self._post(lambda: self._add("user", (kind, source, options), None))

    def push_tool_result(self, call_id: str, output: str) -> None:
        self._post(lambda: self._add("tool", output, None))

    def add_message(
        self, message: Any, *, item: str | None = None, after: str | None = None
    ) -> str:
        name = item or f"{self._id}_item{next(self.numbers)}"
        last = message if isinstance(message, Mapping) else message[-1]
        self._post(lambda: self._add(str(last["role"]), message, name, after))
        return name

    def clear(self) -> None:
        self._post(self._clear)

    def commit(self, *, item: str | None = None, respond: bool = True) -> None:
        self._post(lambda: self._commit(item, respond))

    def respond(
        self,
        *,
        text: str | None = None,
        speak: bool = True,
        max_text_tokens: int | None = None,
        max_codec_ids: int | None = None,
    ) -> str:
        name = f"{self._id}_resp{next(self.numbers)}"
        self._post(lambda: self._respond(name, text, speak))
        return name

    def say(self, text: str) -> str:
        return self.respond(text=text)

    def transcribe(self, item: str) -> None:
        self._post(lambda: self._transcribe(item))

    def cancel(self) -> None:
        self._post(self._cancel)

    def truncate(self, item: str, audio_ms: int) -> None:
        self._post(lambda: self._truncate(item, audio_ms))

    def delete(self, item: str) -> None:
        self._post(lambda: self._delete(item))

    def update(self, **changes: Any) -> None:
        assert changes.keys() <= {f.name for f in fields(Settings)}
        assert self.speaks or not changes.get("speak"), "it was opened silent"
        self._post(lambda: self._update(changes))

    def fork(self) -> "ScriptedSession":
        twin = ScriptedSession(self.engine, self._settings)
        twin.items = [replace(item) for item in self.items]
        return self.engine.register(twin)

    def save(self, path: str | Path) -> None:
        self._post(lambda: self._tell(api.Saved, path=str(path)))

    def close(self) -> None:
        with self._condition:
            self._is_closing = True
            self._condition.notify_all()

    def events(self, *, timeout_s: float | None = None) -> Iterator[api.Event]:
        while True:
            with self._condition:
                if not self._condition.wait_for(lambda: self._events, timeout_s):
                    return
                event = self._events.popleft()
            yield event
            if isinstance(event, api.Closed):
                return

    def _post(self, command: Callable[[], None]) -> None:
        with self._condition:
            if self._is_closing:
                raise api.SessionClosedError(self._id)
            self._inbox.append(command)
            self._condition.notify_all()

    # ---- the session's thread

    def _work(self) -> None:
        while not self._is_closing:
            with self._condition:
                self._condition.wait_for(lambda: self._inbox or self._is_closing, 0.002)
                command = self._inbox.popleft() if self._inbox else None
            if command is not None:
                command()
            elif self.reply is not None:
                self._step(self.reply)
        if self.reply is not None:
            self._finish("cancelled", "closed")
        with self.engine.lock:
            self.engine.sessions.pop(self._id, None)
        self.is_over = True
        self._tell(api.Closed)

    def _step(self, reply: Reply) -> None:
        if not reply.steps:
            return self._finish("completed", "")
        match step := reply.steps[0]:
            case Say():
                reply.text += step.text
                self._tell(api.TextDelta, **self._of(reply), text=step.text)
            case Sing() if reply.speak:
                num = step.ms * VOICE_HZ // 1000
                wave = np.sin(np.arange(num) * 0.1).astype(np.float32) / 4
                reply.num_samples += num
                self._tell(api.AudioDelta, **self._of(reply), samples=wave)
            case Call():
                name = f"call{next(self.numbers)}"
                call = {"call_id": name, "name": step.name, "arguments": step.arguments}
                self._tell(api.ToolCall, **self._of(reply), **call)
            case Wait():
                if not step.event.is_set():
                    return
            case Break():
                message = "the engine made a mistake"
                self._tell(api.Failed, code="server_error", message=message, fatal=True)
                self._is_closing = True
        reply.steps.popleft()

    def _finish(self, status: api.Status, reason: api.Reason) -> None:
        reply, self.reply = self.reply, None
        assert reply is not None
        audio_ms = 1000 * reply.num_samples // VOICE_HZ
        item = Item(reply.item, "assistant", reply.text, audio_ms, reply.text)
        self.items.append(item)
        usage = api.Usage(
            input_text=7, input_audio=5, output_text=3, output_audio=audio_ms // 20, cached=2
        )
        self._tell(
            api.ResponseDone, **self._of(reply), status=status, reason=reason, text=reply.text,
            audio_ms=audio_ms, usage=usage,
        )  # fmt: skip
        if self.wanted and status == "completed":
            self._begin(*self.wanted.popleft())

    def _begin(self, name: str, text: str | None, speak: bool = True) -> None:
        said = None if text is None else (Say(text), Sing(self.engine.say_ms))
        steps = deque(said or self.engine.script(self))
        item = f"{self._id}_item{next(self.numbers)}"
        self.reply = Reply(name, item, steps, speak and self._settings.speak)
        self._tell(api.ResponseStarted, **self._of(self.reply))

    def _respond(self, name: str, text: str | None, speak: bool) -> None:
        if self.reply is not None:
            code = "conversation_already_has_active_response"
            return self._fail(code, "Conversation already has an active response in progress")
        self._begin(name, text, speak)

    def _hear(self, sound: np.ndarray, rate: int) -> None:
        """Speech begins and ends with the loudness of what is pushed, piece by piece of 20 ms."""
        turns = self._settings.turn_detection
        for start in range(0, len(sound), rate // 50):
            piece = sound[start : start + rate // 50]
            at_ms = round(1000 * self.samples_heard / VOICE_HZ)
            self.samples_heard += len(piece) * VOICE_HZ // rate
            self._heard_ms += 1000 * len(piece) / rate
            if turns is None:
                continue
            loud = float(np.abs(piece).max()) > SPEECH_LEVEL
            self._silence_ms = 0.0 if loud else self._silence_ms + 1000 * len(piece) / rate
            if loud and self._open is None:
                interrupts = self.reply is not None and turns.interrupt_response
                self.generation += interrupts
                self._open = Item(f"{self._id}_item{next(self.numbers)}", "user")
                self._tell(api.SpeechStarted, item=self._open.id, audio_ms=at_ms)
                if interrupts:
                    self._interrupt("turn_detected")
            pause_ms = turns.silence_duration_ms if isinstance(turns, ServerVad) else 300
            if self._open is not None and self._silence_ms >= pause_ms:
                self._tell(api.SpeechStopped, item=self._open.id, audio_ms=at_ms)
                self._commit(None, turns.create_response)

    def _commit(self, name: str | None, respond: bool) -> None:
        detects = self._settings.turn_detection is not None
        if (self._open is None and detects) or self._heard_ms < 30:
            return self._fail("input_audio_buffer_commit_empty", "nothing was pushed")
        item = self._open or Item(name or f"{self._id}_item{next(self.numbers)}", "user")
        self._open, self._heard_ms = None, 0.0
        self._commit_item(item)
        if respond and self.reply is None:
            self._begin(f"{self._id}_resp{next(self.numbers)}", None)
        elif respond:
            self.wanted.append((f"{self._id}_resp{next(self.numbers)}", None))

    def _add(self, role: str, content: Any, name: str | None, after: str | None = None) -> None:
        name = name or f"{self._id}_item{next(self.numbers)}"
        if any(item.id == name for item in self.items):
            return self._fail("item_create_duplicate_item_id", f"there is an item {name}")
        names = ["root", *(item.id for item in self.items)]
        place = len(self.items) if after is None else names.index(after)
        self._commit_item(Item(name, role, content), place)

    def _commit_item(self, item: Item, place: int | None = None) -> None:
        place = len(self.items) if place is None else place
        previous = self.items[place - 1].id if place else None
        self.items.insert(place, item)
        self._tell(api.TurnCommitted, item=item.id, previous=previous, role=item.role)

    def _clear(self) -> None:
        self._open, self._heard_ms, self._silence_ms = None, 0.0, 0.0
        self._tell(api.InputCleared)

    def _cancel(self) -> None:
        if self.reply is None:
            code = "response_cancel_not_active"
            return self._fail(code, "Cancellation failed: no active response found")
        self._interrupt("client_cancelled")

    def _interrupt(self, reason: api.Reason) -> None:
        self.generation += reason == "client_cancelled"
        self.wanted.clear()
        self._finish("cancelled", reason)
        item = self.items[-1]
        heard_ms = item.audio_ms // 2
        self._tell(api.Truncated, item=item.id, audio_ms=heard_ms, text="hel")

    def _truncate(self, name: str, audio_ms: int) -> None:
        item = next((item for item in self.items if item.id == name), None)
        if item is None or item.role != "assistant":
            return self._fail("invalid_value", "Only model output audio messages can be truncated")
        if audio_ms > item.audio_ms:
            message = f"Audio content of {item.audio_ms}ms is already shorter than {audio_ms}ms"
            return self._fail("invalid_value", message, param="audio_end_ms")
        item.text = item.text[: len(item.text) * audio_ms // max(1, item.audio_ms)]
        self._tell(api.Truncated, item=name, audio_ms=audio_ms, text=item.text)

    def _delete(self, name: str) -> None:
        if all(item.id != name for item in self.items):
            return self._fail("item_not_found", f"there is no item {name}")
        self.items = [item for item in self.items if item.id != name]
        self._tell(api.ItemDeleted, item=name)

    def _update(self, changes: Mapping[str, Any]) -> None:
        self._settings = replace(self._settings, **changes)
        self._tell(api.Updated, settings=self._settings)

    def _transcribe(self, name: str) -> None:
        words = self.engine.transcript.split(" ")
        for number, word in enumerate(words):
            self._tell(api.InputTranscript, item=name, text=word if not number else f" {word}")
        self._tell(api.InputTranscript, item=name, text=self.engine.transcript, done=True)

    def _of(self, reply: Reply) -> dict[str, str]:
        return {"response": reply.response, "item": reply.item}

    def _fail(self, code: str, message: str, *, param: str | None = None) -> None:
        self._tell(api.Failed, code=code, message=message, param=param)

    def _tell(self, kind: type[api.Event], **values: Any) -> None:
        with self._condition:
            self._events.append(kind(self._id, self.generation, **values))
            self._condition.notify_all()
