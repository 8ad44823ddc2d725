"""The measurements of `thinktalk eval playroom`, on models whose answers are known."""

import json
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from thinktalk.eval import run, tasks
from thinktalk.media.chat import parse_tool_calls
from thinktalk.playroom import speech, talk

Messages = list[dict[str, Any]]


def key_of(messages: Messages) -> str:
    """What a typed conversation asks, as one string."""
    return json.dumps(messages, sort_keys=True)


def typed_answers() -> dict[str, talk.Case]:
    """Every finite held-out case by its conversation."""
    listed = [case for task in tasks.TYPED_TASKS for case in talk.cases("test", task)]
    return {key_of(tasks.messages_of(case)): case for case in listed}


def oracle(messages: Messages, *, voice: str = "Chelsie", speak: bool = False, **_: Any) -> Any:
    """Answers typed questions as the page wants them, in flite's own voice."""
    question, pace = messages[-1]["content"], 1.0
    for name, stretch in talk.STRETCH.items():
        if question.startswith(f"say {name}: "):
            pace = stretch
    if question.startswith("say"):
        text = question.partition(": ")[2]
    else:
        text = typed_answers()[key_of(messages)].answer
    audio = np.zeros(0, np.float32)
    if speak and text != talk.TOOL_CALL:
        audio = speech.speak(text, voice=voice, stretch=pace)
    return SimpleNamespace(
        text=text, audio=audio, sample_rate=24_000, tool_calls=parse_tool_calls(text)
    )


def use(monkeypatch: pytest.MonkeyPatch, answer: Callable[..., Any]) -> None:
    monkeypatch.setattr(
        tasks, "generate", lambda model, messages, **options: answer(messages, **options)
    )


def no_tick() -> None:
    """The tests need no progress bar."""


def test_perfect_typed_answers_count_fully(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, oracle)
    rows = list(tasks.answers(None, cases=39, seed=1, voices=None, tick=no_tick))
    assert [row.name for row in rows] == [*tasks.TYPED_TASKS, "in all"]
    assert all(row.value == 100 and not row.misses for row in rows)
    assert [row.cases for row in rows] == [3] * 13 + [39]


def test_wrong_answers_are_counted_and_kept(monkeypatch: pytest.MonkeyPatch) -> None:
    def half_right(messages: Messages, **options: Any) -> Any:
        said = oracle(messages, **options)
        if not said.text.startswith("the"):
            said.text, said.tool_calls = "i am not sure.", []
        return said

    use(monkeypatch, half_right)
    rows = {
        row.name: row for row in tasks.answers(None, cases=26, seed=1, voices=None, tick=no_tick)
    }
    assert rows["capital"].value == rows["german"].value == 100
    assert rows["add"].value == 0 and len(rows["add"].misses) == 2
    assert rows["add"].misses[0]["said"] == "i am not sure."
    right = sum(row.value * row.cases for name, row in rows.items() if name != "in all") / 26
    assert rows["in all"].value == pytest.approx(right)


def test_spoken_questions_are_sound_in_the_split_voices(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Messages] = []

    def deaf(messages: Messages, **_: Any) -> Any:
        asked.append(messages)
        return SimpleNamespace(
            text="", audio=np.zeros(0, np.float32), sample_rate=24_000, tool_calls=[]
        )

    use(monkeypatch, deaf)
    ticks: list[int] = []
    rows = list(
        tasks.answers(None, cases=16, seed=1, voices="unseen", tick=lambda: ticks.append(1))
    )
    assert len(ticks) == 16 and {row.group for row in rows} == {"spoken, unseen voices"}
    assert [row.name for row in rows] == [*talk.TASKS, "in all"] and rows[-1].value == 0
    for messages in asked:
        users = [m["content"] for m in messages if m["role"] == "user"]
        assert all(part["type"] == "audio" for content in users for part in content)
        assert all(part["audio"].dtype == np.float32 for content in users for part in content)


def test_flites_own_speech_reaches_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, oracle)
    rows = list(tasks.reply_speech(None, cases=6, seed=1, voice="Ethan", tick=no_tick))
    for row in rows:
        assert row.value == row.ceiling
    assert [row.unit for row in rows] == ["%", "%", "x", "Hz"]
    assert rows[0].value < 40 and rows[2].value == 1.0 and 110 < rows[3].value < 135


def test_babble_is_far_from_the_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def babble(messages: Messages, **options: Any) -> Any:
        said = oracle(messages, **options)
        said.audio = said.audio[::-1].copy()
        return said

    use(monkeypatch, babble)
    row = next(tasks.reply_speech(None, cases=6, seed=1, voice="Chelsie", tick=no_tick))
    assert row.ceiling is not None and row.value > row.ceiling + 40 and row.misses


def test_pace_compares_slow_with_quick(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, oracle)
    ratio, reached = tasks.pace(None, cases=2, seed=1, voice="Chelsie", tick=no_tick)
    assert ratio.value == ratio.ceiling and 1.5 < ratio.value < 1.9 and reached.value == 100

    def steady(messages: Messages, **options: Any) -> Any:
        said = oracle(messages, **options)
        said.audio = np.zeros(24_000, np.float32)
        return said

    use(monkeypatch, steady)
    ratio, reached = tasks.pace(None, cases=2, seed=1, voice="Chelsie", tick=no_tick)
    assert (ratio.value, reached.value) == (1.0, 0.0)


class Echo(nn.Module):
    """A vocoder that knows the wave which its mel was made from, at another gain."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(0.5))
        self.wave = np.zeros(0, np.float32)

    def forward(self, mel: torch.Tensor) -> torch.Tensor:
        assert mel.shape == (1, 80, len(self.wave) // 240), mel.shape
        return self.gain * torch.from_numpy(self.wave)[None]


def test_vocoder_pitch_is_compared_with_the_true_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()
    model = SimpleNamespace(
        omni=SimpleNamespace(token2wav=SimpleNamespace(code2wav_bigvgan_model=echo))
    )

    def speak(text: str, *, voice: str) -> np.ndarray:
        echo.wave = speech.utter(text, voice=voice).samples
        return echo.wave

    monkeypatch.setattr(tasks.speech, "speak", speak)
    (row,) = tasks.vocoder(model, cases=2, seed=1, voice="Ethan", tick=no_tick)
    assert row.value == 100
    monkeypatch.setattr(echo, "forward", lambda mel: 0 * mel.sum((0, 1)).repeat(240))
    (row,) = tasks.vocoder(model, cases=2, seed=1, voice="Ethan", tick=no_tick)
    assert row.value == 0


def test_table_and_files(tmp_path: Path) -> None:
    rows = [
        tasks.Row("typed", "in all", 200, 97.5),
        tasks.Row("reply speech", "Ethan, median pitch", 100, 118.2, "Hz", 121.7),
    ]
    assert run.table(rows).splitlines()[2:] == [
        "| typed | in all | 200 | 97.5 % |  |",
        "| reply speech | Ethan, median pitch | 100 | 118 Hz | 122 Hz |",
    ]
    run.save(rows, tmp_path / "out", cases=200, seed=1)
    report = json.loads((tmp_path / "out" / "results.json").read_text("utf-8"))
    assert report["rows"][1]["ceiling"] == 121.7 and report["cases"] == 200
    assert (tmp_path / "out" / "results.md").read_text("utf-8").startswith("| group |")


def test_whole_suite_ticks_as_often_as_it_says(monkeypatch: pytest.MonkeyPatch) -> None:
    steps: list[str] = []

    def fake(name: str) -> Callable[..., Any]:
        def measure(model: Any, *, cases: int, tick: Callable[[], Any], **_: Any) -> Any:
            for _step in range(cases):
                steps.append(name)
                tick()
            yield tasks.Row(name, name, cases, 1.0)

        return measure

    for name in ("answers", "reply_speech", "pace", "vocoder"):
        monkeypatch.setattr(tasks, name, fake(name))
    rows = run.run(None, suite="playroom", cases=20)
    assert len(steps) == run.num_steps(20) == 3 * 20 + 2 * (10 + 2 + 2)
    assert [row.name for row in rows] == ["answers"] * 3 + ["reply_speech", "pace", "vocoder"] * 2


def test_unusable_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown suite 'chess': choose one of playroom"):
        run.run(None, suite="chess")
    with pytest.raises(ValueError, match="cases must be at least 1"):
        run.run(None, suite="playroom", cases=0)
