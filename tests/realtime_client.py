"""A Realtime client for tests: OpenAI's own SDK, and a strict look at everything it receives."""

import base64
import json
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from openai import OpenAI
from openai.resources.realtime.realtime import RealtimeConnection
from openai.types.realtime import RealtimeServerEvent
from pydantic import Field, TypeAdapter

VOICE_HZ = 24_000
HANGS_S = 300.0  # nothing waits this long unless it hangs
SERVER_EVENT = TypeAdapter(Annotated[RealtimeServerEvent, Field(discriminator="type")])
GOLDEN_PATH = Path(__file__).parent / "golden" / "realtime.jsonl"
GOLDEN = [json.loads(line) for line in GOLDEN_PATH.read_text().splitlines()]
KEYS = {event["type"]: event.keys() for event in GOLDEN}
Event = dict[str, Any]


class Client:
    """Reads events one by one; each must be of OpenAI's types, with the golden events' keys, and
    have an id of its own. What was read stays in `seen`."""

    def __init__(self, connection: RealtimeConnection):
        self.connection = connection
        self.seen: list[Event] = []

    def send(self, kind: str, **fields: Any) -> None:
        self.connection.send({"type": kind, **fields})  # type: ignore[arg-type]

    def read(self) -> Event:
        stuck = threading.Timer(HANGS_S, self.connection.close)
        stuck.start()
        try:
            event = json.loads(self.connection.recv_bytes())
        finally:
            stuck.cancel()
        check(event)
        assert event["event_id"] not in {e["event_id"] for e in self.seen}
        self.seen.append(event)
        return event

    def until(self, kind: str) -> Event:
        """Reads up to the next event of a kind."""
        while (event := self.read())["type"] != kind:
            assert event["type"] != "error" or kind == "error", event
        return event

    def kinds(self) -> list[str]:
        """The types of all events so far, repetitions of deltas left out."""
        kinds = [event["type"] for event in self.seen]
        return [k for n, k in enumerate(kinds) if not (k.endswith("delta") and k in kinds[:n])]

    def of(self, kind: str) -> list[Event]:
        return [event for event in self.seen if event["type"] == kind]

    def setup(self, **session: Any) -> Event:
        """session.update and its answer."""
        self.send("session.update", session={"type": "realtime", **session})
        return self.until("session.updated")["session"]

    def speak(self, seconds: float = 0.3, *, silence: float = 0.7, level: float = 0.5) -> None:
        """A tone and silence, as a microphone would send them but faster."""
        self.push(np.concatenate((tone(seconds, level), np.zeros(int(silence * VOICE_HZ)))))

    def push(self, wave: np.ndarray, *, step_s: float = 0.1) -> None:
        step = round(step_s * VOICE_HZ)
        for start in range(0, len(wave), step):
            self.send("input_audio_buffer.append", audio=pcm(wave[start : start + step]))

    def sound(self) -> np.ndarray:
        """All sound of replies, int16 [n]."""
        deltas = [event["delta"] for event in self.of("response.output_audio.delta")]
        return np.frombuffer(b"".join(map(base64.b64decode, deltas)), "<i2")


@contextmanager
def realtime(url: str, *, key: str = "none", **query: str) -> Iterator[Client]:
    """A connection, greeted."""
    sdk = _sdk(url, key)
    model = query.pop("model", "gpt-realtime")
    manager = sdk.realtime.connect(model=model, extra_query=query)
    with manager as connection:
        client = Client(connection)
        client.until("session.created")
        yield client


@lru_cache
def _sdk(url: str, key: str) -> OpenAI:
    return OpenAI(api_key=key, base_url=f"{url}/v1", max_retries=0)  # slow to make


def check(event: Event) -> None:
    """Of OpenAI's types, with exactly the golden event's keys, nothing null that may not be."""
    SERVER_EVENT.validate_python(event, strict=True)
    kind = event["type"]
    if kind in KEYS and kind != "error":
        assert event.keys() == KEYS[kind], kind
    item = event.get("item", {})
    assert None not in item.values(), event
    for part in [*item.get("content", []), *([event["part"]] if "part" in event else [])]:
        nulls = {key for key, value in part.items() if value is None}
        assert nulls <= ({"transcript"} if part["type"] == "input_audio" else set()), event


def tone(seconds: float, level: float = 0.5) -> np.ndarray:
    return level * np.sin(np.arange(round(seconds * VOICE_HZ)) * 0.1)


def pcm(wave: np.ndarray) -> str:
    levels = np.clip(np.round(wave * 32_767), -32_768, 32_767)
    return base64.b64encode(levels.astype("<i2").tobytes()).decode()


def is_subsequence(kinds: Sequence[str], of: Sequence[str]) -> bool:
    """Whether `kinds` occur in this order."""
    rest = iter(of)
    return all(kind in rest for kind in kinds)


def message(words: str) -> Event:
    return {"type": "message", "role": "user", "content": [text(words)]}


def text(words: str) -> dict[str, str]:
    return {"type": "input_text", "text": words}
