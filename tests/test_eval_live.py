"""Questions through a live engine: what is pushed, and what counts as the answer."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from eval_teacher import Teacher, no_tick

import thinktalk
from thinktalk.eval import live
from thinktalk.live import api
from thinktalk.live.api import Engine
from thinktalk.options import Settings
from thinktalk.playroom import cases, speech, talk

ANY = {"session": "s", "generation": 0}
CLOSED = api.Closed(**ANY)
TURN = api.TurnCommitted(**ANY, item="turn", previous=None)
EMPTY = api.Failed(**ANY, code=live.NOTHING_HEARD, message="nothing was pushed")


def done(text: str, status: api.Status = "completed") -> api.ResponseDone:
    return api.ResponseDone(
        **ANY, response="r", item="i", status=status, reason="", text=text, audio_ms=0
    )


class Scripted:
    """An engine and its only session: keeps what it is given, tells what it was told to tell."""

    id = "s"

    def __init__(self, *events: api.Event):
        self.told = [*events, CLOSED]
        self.done: list[tuple[str, Any]] = []
        self.settings = Settings()

    def open(self, settings: Settings) -> "Scripted":
        self.settings = settings
        return self

    def events(self) -> Iterator[api.Event]:
        while self.told:
            yield self.told.pop(0)

    def add_message(self, message: dict[str, Any]) -> str:
        self.done.append(("message", message))
        return f"added {len(self.done)}"

    def __getattr__(self, name: str) -> Callable[..., None]:
        return lambda *values, **options: self.done.append((name, values[0] if values else options))


def ask(engine: Scripted, task: str, *, number: int = 0) -> Any:
    example = cases.make(seed=1, split="test", number=number, task=task, asked="spoken")
    return live.ask(cast(Engine, engine), example, rng=np.random.default_rng(0))


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(speech, "ask", lambda text, **_: np.full(8000, 0.1, np.float32))


@pytest.mark.usefixtures("quick")
def test_sound_comes_in_pieces_and_silence_behind_it() -> None:
    engine = Scripted(TURN, done("the star is blue."))
    assert ask(engine, "colour").text == "the star is blue."
    names = [name for name, _ in engine.done]
    assert names[0] == "push_media" and names[-2:] == ["commit", "close"]
    pieces = [value for name, value in engine.done if name == "push_audio"]
    assert all(len(piece) < 960 for piece in pieces)
    heard = np.concatenate(pieces)
    assert len(heard) == 8000 + 32_000 and heard[:8000].all() and not heard[8000:].any()
    settings = engine.settings
    assert settings.turn_detection == live.TURNS and not settings.speak
    assert live.TURNS.early_ms < live.TURNS.silence_duration_ms < 1000 * live.SILENCE_S


@pytest.mark.usefixtures("quick")
def test_earlier_turns_are_messages_and_systems_are_settings() -> None:
    engine = Scripted(TURN, done("it is white."))
    ask(engine, "look and talk")
    assert [v["role"] for name, v in engine.done if name == "message"] == ["user", "assistant"]
    engine = Scripted(TURN, done("my name is ben."))
    ask(engine, "persona")
    assert engine.settings.system and not any(name == "message" for name, _ in engine.done)


@pytest.mark.usefixtures("quick")
def test_what_counts_as_the_answer() -> None:
    assert ask(Scripted(TURN, done("half", "cancelled"), done("whole")), "add").text == "whole"
    assert ask(Scripted(TURN, EMPTY, done("late")), "add").text == "late"  # the turn was over
    assert ask(Scripted(EMPTY), "add").text == ""  # nothing was heard
    added = api.TurnCommitted(**ANY, item="added 1", previous=None)
    assert ask(Scripted(added, EMPTY), "look and talk").text == ""
    broken = api.Failed(**ANY, code="out_of_memory", message="no blocks are left")
    with pytest.raises(RuntimeError, match="no blocks are left"):
        ask(Scripted(broken), "add")


@pytest.mark.usefixtures("quick")
def test_tools_are_offered_called_and_answered() -> None:
    call = api.ToolCall(**ANY, response="r", item="i", call_id="c", name="get_time", arguments={})
    numbers = {}
    for number in range(20):
        example = cases.make(seed=1, split="test", number=number, task="tool")
        numbers.setdefault(example.case.answer == talk.TOOL_CALL, number)
    engine = Scripted(TURN, call, done(""))
    answer = ask(engine, "tool", number=numbers[True])
    assert [(c.name, c.arguments) for c in answer.tool_calls] == [("get_time", {})]
    assert engine.settings.tools == (talk.GET_TIME,)
    engine = Scripted(done("it is four o'clock."))
    assert ask(engine, "tool", number=numbers[False]).text
    assert [name for name, _ in engine.done] == ["message"] * 3 + ["respond", "close"]


@pytest.mark.usefixtures("quick")
def test_live_rows_stand_beside_offline_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    teacher = Teacher(monkeypatch)
    monkeypatch.setattr(live, "TASKS", ("add", "dictation"))
    answers = iter([True, False, True, True])

    class Answering(Scripted):
        def open(self, settings: Settings) -> "Scripted":
            text = teacher.cases[-1].answer if next(answers) else "no."
            self.told = [TURN, done(text), CLOSED]
            return self

    rows = list(live.live(None, count=4, seed=1, tick=no_tick, engine=cast(Engine, Answering())))
    assert [(row.name, row.value) for row in rows] == [
        ("add", 100), ("dictation", 50), ("in all", 75), ("same text as offline", 75),
    ]  # fmt: skip
    assert rows[2].ceiling == 100
    # offline, too, a dictation and its question are one recording
    contents = [messages[-1]["content"] for messages in teacher.asked[1::2]]
    assert [[part["type"] for part in content] for content in contents] == [["audio"]] * 2
    assert len(contents[0][0]["audio"]) == 16_000


def test_a_real_engine_answers(tiny_checkpoint: Callable[[str], Path]) -> None:
    engine = thinktalk.live(thinktalk.load(tiny_checkpoint("7b")), max_sessions=1)
    for number, task in enumerate(("add", "shape")):  # one after the other in a single place
        example = cases.make(seed=1, split="test", number=number, task=task, asked="spoken")
        assert live.ask(engine, example, rng=np.random.default_rng(0)).text
    engine.close()
