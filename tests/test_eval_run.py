"""The measurements of `thinktalk eval playroom`, on models whose answers are known."""

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from eval_teacher import Echo, Teacher, no_tick

from thinktalk.eval import live, run, tasks, times, voices
from thinktalk.playroom import cases, senses, speech, talk


@pytest.fixture
def teacher(monkeypatch: pytest.MonkeyPatch) -> Teacher:
    return Teacher(monkeypatch)


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Speech costs no time."""
    monkeypatch.setattr(speech, "ask", lambda text, **_: np.full(1600, 0.1, np.float32))


def rows_of(rows: Iterator[tasks.Row]) -> dict[str, tasks.Row]:
    return {row.name: row for row in rows}


def test_perfect_typed_answers_count_fully(teacher: Teacher) -> None:
    rows = list(tasks.typed(None, count=39, seed=1, tick=no_tick))
    assert [row.name for row in rows] == [*tasks.TYPED_TASKS, "in all"]
    assert all(row.value == 100 and not row.misses for row in rows)
    assert [row.cases for row in rows] == [3] * 13 + [39]
    assert all(isinstance(part, str) or part["type"] == "text" for part in teacher.parts())


def test_wrong_answers_are_counted_and_kept(teacher: Teacher) -> None:
    teacher.answer = lambda text: text if text.startswith("the") else "i am not sure."
    rows = rows_of(tasks.typed(None, count=26, seed=1, tick=no_tick))
    assert rows["capital"].value == rows["german"].value == 100
    assert rows["add"].value == rows["tool"].value == 0 and len(rows["add"].misses) == 2
    assert rows["add"].misses[0]["said"] == "i am not sure."
    right = sum(row.value * row.cases for name, row in rows.items() if name != "in all") / 26
    assert rows["in all"].value == pytest.approx(right)


def test_spoken_questions_are_sound_in_the_split_voices(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoken: list[str] = []

    def ask(text: str, *, rng: np.random.Generator, voice: str) -> np.ndarray:
        spoken.append(voice)
        return np.zeros(1600, np.float32)

    monkeypatch.setattr(speech, "ask", ask)
    teacher.answer = lambda text: ""
    ticks: list[int] = []
    rows = list(tasks.spoken(None, count=16, seed=1, voices="unseen", tick=lambda: ticks.append(1)))
    assert len(ticks) == 16 and {row.group for row in rows} == {"spoken, unseen voices"}
    assert [row.name for row in rows] == [*talk.TASKS, "in all"] and rows[-1].value == 0
    assert set(spoken) <= set(speech.UNSEEN_VOICES)
    for messages in teacher.asked:
        users = [m["content"] for m in messages if m["role"] == "user"]
        assert all(part["type"] == "audio" for content in users for part in content)


@pytest.mark.usefixtures("quick")
def test_single_tasks_are_asked_in_turn_and_written_words_counted(teacher: Teacher) -> None:
    teacher.answer = lambda text: text.replace("the ", "a ") if "said" in text else text
    asked = {"dictation": run.TYPED, "persona": (*run.TYPED, *run.SPOKEN)}
    rows = list(tasks.single(None, count=8, seed=1, tick=no_tick, group="g", asked=asked))
    assert [row.name for row in rows] == ["dictation", "dictation, word error rate", "persona"]
    assert [row.group for row in rows] == ["g"] * 3 and rows[2].value == 100
    wanted = [case.answer.removeprefix("you said: ") for case in teacher.cases[:8]]
    wrong = sum(text.split().count("the") for text in wanted)
    words = sum(len(text.split()) for text in wanted)
    assert rows[1].value == pytest.approx(100 * wrong / words) and wrong
    ways = [messages[-1]["content"][0]["type"] for messages in teacher.asked[8:]]
    assert ways == ["text", "audio"] * 4


@pytest.mark.usefixtures("quick")
def test_questions_about_media_may_be_asked_aloud_and_inside(teacher: Teacher) -> None:
    kinds = 11
    rows = list(tasks.aloud(None, count=2 * kinds, seed=1, tick=no_tick))
    assert [row.cases for row in rows] == [2] * kinds + [2 * kinds]
    assert all(row.value == 100 for row in rows)
    shown = [[part["type"] for part in messages[0]["content"]] for messages in teacher.asked]
    assert all(types[-1] == "audio" for types in shown[:kinds])
    assert shown[kinds:].count(["video"]) == 3  # motion, when, order: asked inside


@pytest.mark.usefixtures("quick")
def test_look_and_talk_goes_on_from_the_models_own_answer(teacher: Teacher) -> None:
    rows = rows_of(tasks.look_and_talk(None, count=3, seed=1, tick=no_tick))
    assert rows["first answer"].value == rows["both answers"].value == 100
    teacher.answer = lambda text: text.replace("i see", "there is")
    teacher.asked.clear()
    rows = rows_of(tasks.look_and_talk(None, count=3, seed=1, tick=no_tick))
    assert rows["first answer"].value == rows["both answers"].value == 0
    assert len(rows["both answers"].misses) == 3 and len(teacher.asked) == 6
    assert teacher.asked[1][1]["content"].startswith("there is a white")


# ---- speech


def test_flites_own_speech_reaches_the_ceiling(teacher: Teacher) -> None:
    rows = list(voices.reply_speech(None, count=6, seed=1, voice="Ethan", tick=no_tick))
    for row in rows:
        assert row.value == row.ceiling
    assert [row.unit for row in rows] == ["%", "%", "x", "Hz"]
    assert rows[0].value < 40 and rows[2].value == 1.0 and 110 < rows[3].value < 135


def test_speech_is_measured_against_the_reply_even_if_that_is_wrong(teacher: Teacher) -> None:
    teacher.answer = lambda text: "the happy lion is in the middle."
    row = next(voices.reply_speech(None, count=4, seed=1, voice="Ethan", tick=no_tick))
    assert row.value == row.ceiling and row.value < 30


def test_babble_is_far_from_the_ceiling(teacher: Teacher) -> None:
    teacher.sound = lambda samples: samples[::-1].copy()
    row = next(voices.reply_speech(None, count=6, seed=1, voice="Chelsie", tick=no_tick))
    assert row.ceiling is not None and row.value > row.ceiling + 40 and row.misses


def test_pace_compares_slow_with_quick(teacher: Teacher) -> None:
    ratio, reached = voices.pace(None, count=2, seed=1, voice="Chelsie", tick=no_tick)
    assert ratio.value == ratio.ceiling and 1.5 < ratio.value < 1.9 and reached.value == 100
    teacher.sound = lambda samples: np.zeros(24_000, np.float32)
    ratio, reached = voices.pace(None, count=2, seed=1, voice="Chelsie", tick=no_tick)
    assert (ratio.value, reached.value) == (1.0, 0.0)


def test_vocoder_pitch_is_compared_with_the_true_wave(monkeypatch: pytest.MonkeyPatch) -> None:
    echo = Echo()
    token2wav = SimpleNamespace(code2wav_bigvgan_model=echo)
    model = SimpleNamespace(omni=SimpleNamespace(token2wav=token2wav))

    def speak(text: str, *, voice: str) -> np.ndarray:
        echo.wave = speech.utter(text, voice=voice).samples
        return echo.wave

    monkeypatch.setattr(voices.speech, "speak", speak)
    (row,) = voices.vocoder(model, count=2, seed=1, voice="Ethan", tick=no_tick)
    assert row.value == 100
    monkeypatch.setattr(echo, "forward", lambda mel: 0 * mel.sum((0, 1)).repeat(240))
    (row,) = voices.vocoder(model, count=2, seed=1, voice="Ethan", tick=no_tick)
    assert row.value == 0


# ---- the whole


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


@pytest.mark.usefixtures("quick")
def test_every_group_ticks_as_often_as_it_says(
    teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fake(model: Any, *, count: int, tick: Callable[[], Any], **_: Any) -> Iterator[tasks.Row]:
        for _step in range(count):
            tick()
        yield tasks.Row("fake", "fake", count, 1.0)

    for module, name in ((voices, "reply_speech"), (voices, "pace"), (voices, "vocoder"),
                         (times, "when"), (live, "live")):  # fmt: skip
        monkeypatch.setattr(module, name, fake)
    for name, group in run.groups().items():
        ticks: list[int] = []
        rows = list(
            run.measure(None, {name: group}, cases=4, seed=1, tick=lambda: ticks.append(1))  # noqa: B023
        )
        assert len(ticks) == group.steps(4) and rows, name
    assert run.groups()["speech"].count(200) == run.groups()["pace"].count(200) == 100


def test_every_task_has_a_row_of_its_own() -> None:
    alone = {*run.SAID, *run.SEEN, *run.HEARD, *run.WATCHED, "when", "look and talk"}
    assert set(senses.TASKS) <= alone
    assert {"repeat", "dictation", "transcribe", "who", "persona", "tool"} <= alone
    assert set(cases.TASKS) <= alone | set(tasks.TYPED_TASKS)


def test_only_what_is_asked_for_is_measured(teacher: Teacher, tmp_path: Path) -> None:
    rows = run.run(None, suite="playroom", cases=2, only=("seen",), out=tmp_path, seed=1)
    assert [row.name for row in rows] == list(run.SEEN)
    assert all(row.value == 100 and row.cases == 2 for row in rows)
    assert len((tmp_path / "results.md").read_text("utf-8").splitlines()) == 2 + len(rows)


def test_unusable_requests_are_refused() -> None:
    with pytest.raises(ValueError, match="unknown suite 'chess': choose one of playroom"):
        run.run(None, suite="chess")
    with pytest.raises(ValueError, match="cases must be at least 1"):
        run.run(None, suite="playroom", cases=0)
    with pytest.raises(ValueError, match=r"unknown group 'smell': choose of typed, .*live"):
        run.run(None, suite="playroom", only=("smell",))
    with pytest.raises(ValueError, match="needs a live engine"):
        run.run(None, suite="playroom", only=("live",))
