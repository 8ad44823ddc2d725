"""The same questions through a live engine: sound in small pieces, turns found by the detector, the
reply begun in the first short pause; beside what `generate` answers to the same recordings."""

from collections.abc import Iterator
from typing import Any

import numpy as np

from thinktalk.eval.tasks import (
    MAX_TEXT_TOKENS,
    Marks,
    Row,
    Tick,
    is_right,
    percent,
    reply,
)
from thinktalk.generate import Answer
from thinktalk.live.api import Engine, Failed, ResponseDone, Session, ToolCall, TurnCommitted
from thinktalk.media import chat
from thinktalk.media.mel import EAR_HZ
from thinktalk.options import ServerVad, Settings
from thinktalk.playroom import cases, senses, talk
from thinktalk.playroom.cases import Example

TASKS = (*talk.TASKS, *(task for task, kind in senses.MEDIUM.items() if kind == "image"))
# A sentence to write down and the question about it are one turn, so its pause must not end it.
TURNS = ServerVad(silence_duration_ms=1500)
PIECE_SAMPLES = (160, 960)  # of the microphone: 10 to 60 ms
SILENCE_S = 2.0  # behind a question
NOTHING_HEARD = "input_audio_buffer_commit_empty"


def live(model: Any, *, count: int, seed: int, tick: Tick, engine: Engine) -> Iterator[Row]:
    """Spoken questions, also about pictures; the ceiling is `generate` with the same ones."""
    marks, offline, same = Marks(), [], []
    for number in range(count):
        example = cases.make(
            seed=seed,
            split="test",
            number=number,
            task=TASKS[number % len(TASKS)],
            asked="spoken",
        )
        said = ask(engine, example, rng=np.random.default_rng([seed, number]))
        alone = reply(model, _in_one_piece(example.messages), case=example.case)
        marks.said.setdefault(example.case.task, []).append((example.case, said))
        offline.append(is_right(alone, example.case))
        same.append(said.text == alone.text)
        tick()
    group = "live engine, chunked, early thinking"
    yield from marks.rows(group)
    every = marks.in_all(group)
    yield Row(group, every.name, every.cases, every.value, ceiling=percent(offline))
    yield Row(group, "same text as offline", count, percent(same), ceiling=100.0)


def ask(engine: Engine, example: Example, *, rng: np.random.Generator) -> Answer:
    """What a new session of the engine answers; an empty answer where it heard no question."""
    *before, last = example.messages
    system = before.pop(0)["content"] if before and before[0]["role"] == "system" else None
    settings = Settings(
        speak=False,
        system=system,
        tools=example.case.tools or (),
        turn_detection=TURNS,
        max_text_tokens=MAX_TEXT_TOKENS,
    )
    session = engine.open(settings)
    known = {session.add_message(message) for message in before}
    if last["role"] == "user":
        _push(session, last["content"], rng=rng)
        session.commit()
    else:
        known.add(session.add_message(last))
        session.respond()
    answer = _answer(session, known)
    session.close()
    for _ in session.events():
        pass  # until it is closed, and its place is free
    return answer


def _push(session: Session, parts: list[dict[str, Any]], *, rng: np.random.Generator) -> None:
    """A user's turn as a page would send it, and silence behind what was said."""
    for part in parts:
        if part["type"] == "text":
            session.push_text(part["text"])
        elif part["type"] == "audio":
            _play(session, part["audio"], rng=rng)
        else:
            session.push_media(part[part["type"]], kind=part["type"])
    if any(part["type"] == "audio" for part in parts):
        _play(session, np.zeros(round(SILENCE_S * EAR_HZ), np.float32), rng=rng)


def _play(session: Session, samples: np.ndarray, *, rng: np.random.Generator) -> None:
    start = 0
    while start < len(samples):
        end = start + int(rng.integers(*PIECE_SAMPLES))
        session.push_audio(samples[start:end], sample_rate=EAR_HZ)
        start = end


def _answer(session: Session, known: set[str]) -> Answer:
    """The first whole reply; `known` are the messages that were added."""
    calls: list[chat.ToolCall] = []
    committed = False
    for event in session.events():
        if isinstance(event, ToolCall):
            calls.append(chat.ToolCall(event.name, dict(event.arguments)))
        elif isinstance(event, TurnCommitted):
            committed |= event.item not in known
        elif isinstance(event, ResponseDone) and event.status != "cancelled":
            return Answer(event.text, np.zeros(0, np.float32), [], [], calls)
        elif isinstance(event, Failed) and not (event.code == NOTHING_HEARD and committed):
            if event.code != NOTHING_HEARD:
                raise RuntimeError(f"the engine failed: {event.message}")
            break
    return Answer("", np.zeros(0, np.float32), [], [], [])


def _in_one_piece(messages: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The messages with neighbouring recordings as one, as a microphone hears them."""
    out = []
    for message in messages:
        parts = message["content"]
        sounds = [p["audio"] for p in parts if isinstance(p, dict) and p["type"] == "audio"]
        if len(sounds) > 1:
            others = [p for p in parts if p["type"] != "audio"]
            parts = [*others, {"type": "audio", "audio": np.concatenate(sounds)}]
        out.append(message | {"content": parts})
    return out
