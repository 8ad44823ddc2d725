"""Bad input, full caches, slow listeners, failing networks: a clear event, and the others go on."""

import logging
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from live_stage import SHORT, Stage, goes_on, load, names, of_kind, push
from omni_cases import sound

from thinktalk.live import api, conversation, draft, replies, session
from thinktalk.live.engine import Engine
from thinktalk.live.session import LiveSession

PICTURE = np.zeros((56, 56, 3), np.uint8)
Act = Callable[[LiveSession], Any]


# ---- bad input

NOISE = np.random.default_rng(0).standard_normal(320).astype(np.float32)
AUDIO: dict[str, Act] = {
    "NaN": lambda s: s.push_audio(np.full(320, np.nan, np.float32)),
    "infinite": lambda s: s.push_audio(NOISE * np.float32(np.inf)),
    "not in -1..1": lambda s: s.push_audio(NOISE * 1000),
    "rate too low": lambda s: s.push_audio(NOISE, sample_rate=100),
    "rate too high": lambda s: s.push_audio(NOISE, sample_rate=10**7),
    "no rate": lambda s: s.push_audio(NOISE, sample_rate="fast"),  # type: ignore[arg-type]
    "stereo": lambda s: s.push_audio(np.zeros((2, 320), np.float32)),
    "doubles": lambda s: s.push_audio(NOISE.astype(np.float64)),
    "odd bytes": lambda s: s.push_audio(b"\x00" * 3),
    "a list": lambda s: s.push_audio([0.0, 1.0]),  # type: ignore[arg-type]
}
MEDIA: dict[str, Act] = {
    "no file": lambda s: s.push_media("/nowhere/to/be/found.wav"),
    "no kind": lambda s: s.push_media(b"bytes"),
    "no sound": lambda s: s.push_media(b"no sound at all", kind="audio"),
    "no picture": lambda s: s.push_image(b"no picture at all"),
    "nothing": lambda s: s.push_image(None),
    "a number": lambda s: s.push_media(5, kind="video"),
    "a wrong option": lambda s: s.push_media(sound(0.1), kind="audio", start="soon"),
    "too short": lambda s: s.push_media(sound(0.01), kind="audio"),
    "no role": lambda s: s.add_message({"content": "x"}),
    "an unknown key": lambda s: s.add_message({"role": "user", "content": "x", "mood": "good"}),
    "no words": lambda s: s.add_message({"role": "user", "content": ""}),
    "too long": lambda s: s.add_message({"role": "user", "content": "x" * 40_000}),
    "no message": lambda s: s.add_message([]),
}
FRAMES: dict[str, Act] = {
    "future": lambda s: s.push_image(PICTURE, time_s=60.0),
    "past": lambda s: s.push_image(PICTURE, time_s=-60.0),
    "NaN": lambda s: s.push_image(PICTURE, time_s=float("nan")),
}
TEXT: dict[str, Act] = {
    "pushed": lambda s: s.push_text("x" * 40_000),
    "to be said": lambda s: s.say("x" * 40_000),
}
CASES = [
    (code, name, act)
    for code, cases in {
        "invalid_audio": AUDIO,
        "invalid_media": MEDIA,
        "invalid_image": FRAMES,
        "text_too_long": TEXT,
    }.items()
    for name, act in cases.items()
]


def test_bad_input_is_told_and_nothing_else(stage: Stage) -> None:
    """None of it changes what the next reply is, here or beside."""
    who, neighbour = stage.open(), stage.open()
    push(who, sound(0.1))
    neighbour.push_text("What?")
    neighbour.commit()
    for code, name, act in CASES:
        act(who)
        [failed] = stage.told(who)
        assert isinstance(failed, api.Failed) and failed.code == code, (name, failed)
        assert failed.message and not failed.fatal, name
    push(who, sound(0.1))
    who.commit()
    said, beside = stage.reply(who), stage.reply(neighbour)
    fresh = stage.open()
    push(fresh, np.concatenate([sound(0.1)] * 2))
    fresh.commit()
    assert said.ids == stage.reply(fresh).ids
    fresh.close()
    fresh = stage.open()
    fresh.push_text("What?")
    fresh.commit()
    assert beside.ids == stage.reply(fresh).ids


def test_frames_out_of_order(stage: Stage) -> None:
    who = stage.open()
    push(who, sound(1.0))
    for time_s in (0.5, 0.9, 0.6):
        who.push_image(PICTURE, time_s=time_s)
    assert "in order" in stage.failure(who, "invalid_image").message


def test_many_words_are_too_long_together(stage: Stage) -> None:
    who = stage.open()
    for _ in range(3):
        who.push_text("x" * 15_000)
    stage.failure(who, "text_too_long")
    assert stage.of(who).draft.composer.words == "user\n" + "x" * 30_000
    who.clear()
    stage.told(who)
    goes_on(stage, who)


def test_what_goes_wrong_ends_that_session_only(stage: Stage, monkeypatch, caplog) -> None:
    """A command that raises what nobody expects."""
    caplog.set_level(logging.CRITICAL)
    who, neighbour = stage.open(), stage.open()
    twin = who.fork()
    stage.run()
    monkeypatch.setattr(stage.of(who).draft, "put", lambda *_: 1 / 0)
    who.push_text("Bang.")
    who.push_text("Never done.")
    lost = who.fork()
    events = stage.told(who)
    assert names(events) == ["Failed", "Closed"]
    [failed] = of_kind(events, api.Failed)
    assert failed.fatal and failed.code == "server_error" and "division" in failed.message
    assert names(stage.told(lost)) == ["Failed", "Closed"], "a fork of it cannot be made any more"
    with pytest.raises(api.SessionClosedError):
        who.push_text("x")
    goes_on(stage, neighbour)
    goes_on(stage, twin)


# ---- too much to keep up with


def test_nobody_takes_the_events(stage: Stage, monkeypatch) -> None:
    """A reply waits for its listener; the others do not."""
    monkeypatch.setattr(session, "MAX_WAITING_EVENTS", 4)
    who, other = stage.open(max_codec_ids=40), stage.open()
    for one in (who, other):
        one.push_text("What?")
        one.commit()
    taken = []
    for _ in range(200):
        stage.engine.step()
        taken += stage.so_far(other)
    assert len(stage.replies(taken)) == 1
    assert len(who.outbox._events) == 4 and stage.of(who).replies.current is not None
    [said] = stage.replies(stage.told(who))
    fresh = stage.open(max_codec_ids=40)
    monkeypatch.undo()
    fresh.push_text("What?")
    fresh.commit()
    assert said.ids == stage.reply(fresh).ids


def test_commands_pile_up(stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr(session, "MAX_WAITING_COMMANDS", 5)
    who = stage.open()
    for _ in range(6):
        who.push_text("x")
    events = stage.told(who)
    assert [f.code for f in of_kind(events, api.Failed)] == ["overloaded"] * 2
    assert stage.of(who).draft.composer.words == "user\nxxxx", "opening was the fifth"
    goes_on(stage, who)


def test_much_waits_for_the_end_of_a_sound(stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr(draft, "MAX_LATER", 2)
    who = stage.open()
    push(who, sound(0.5))
    for word in ("One. ", "Two. ", "Three."):
        who.push_text(word)
    stage.failure(who, "overloaded")
    who.commit(respond=False)
    stage.told(who)
    assert "One. Two. <|im_end|>" in stage.text_of(who)
    goes_on(stage, who)


def test_many_replies_are_wanted(stage: Stage, monkeypatch) -> None:
    monkeypatch.setattr(replies, "MAX_WANTED", 2)
    who = stage.open()
    for word in ("One.", "Two.", "Three.", "Four."):
        who.push_text(word)
        who.commit()
    events = stage.told(who)
    assert [f.code for f in of_kind(events, api.Failed)] == ["overloaded"]
    assert len(stage.replies(events)) == 3
    goes_on(stage, who)


# ---- failures of the whole engine


def test_a_failing_batch_ends_its_sessions(
    tiny_checkpoint: Callable[[str], Path], monkeypatch, caplog
) -> None:
    """All are told; the engine takes new ones, with all its blocks."""
    caplog.set_level(logging.CRITICAL)
    engine = Engine(load(tiny_checkpoint("7b")), max_sessions=2)
    broken = threading.Event()
    speak = engine.passes.speak

    def sometimes(work: Any) -> Any:
        if work and broken.is_set():
            raise RuntimeError("out of memory")
        return speak(work)

    monkeypatch.setattr(engine.passes, "speak", sometimes)
    broken.set()
    sessions = [engine.open(**SHORT) for _ in range(2)]
    sessions[0].push_text("What?")
    sessions[0].commit()
    for who in sessions:
        events = list(who.events())
        assert names(events)[-2:] == ["Failed", "Closed"]
        assert of_kind(events, api.Failed)[0].fatal
        with pytest.raises(api.SessionClosedError):
            who.commit()
    broken.clear()
    who = engine.open(**SHORT)
    who.push_text("What?")
    who.commit()
    assert next(event for event in who.events() if isinstance(event, api.ResponseDone))
    engine.close()
    while engine.prefixes.drop():
        pass
    assert all(pool.num_free == pool.num_blocks for pool in engine.memory_pools)


@pytest.mark.parametrize("options", [{"max_sessions": 0}, {"cache_positions": -5}])
def test_impossible_engines(stage: Stage, options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        Engine(stage.model, thread=False, **options)


# ---- the length of the context


@pytest.fixture
def narrow(tiny_checkpoint, monkeypatch) -> Stage:
    """A session may have 700 positions, of which 595 are filled before turns are forgotten."""
    stage = Stage(load(tiny_checkpoint("7b")), max_sessions=1)
    monkeypatch.setattr(conversation.Conversation, "_context", 700)
    return stage


def test_a_turn_longer_than_the_context(narrow: Stage) -> None:
    """Sound: its oldest part is forgotten while it is given, and told; the rest is answered."""
    who = narrow.open(system="Short.")
    events = []
    for _ in range(30):
        push(who, sound(2.0))
        narrow.run(5)
        events += narrow.so_far(who)
        assert narrow.memory(who).length < 700
    assert {f.code for f in of_kind(events, api.Failed)} == {"turn_too_long"}
    assert 1 <= len(of_kind(events, api.Failed)) <= 5
    goes_on(narrow, who)
    narrow.close()


def test_all_of_a_long_turn_at_once(narrow: Stage) -> None:
    who = narrow.open(system="Short.")
    push(who, np.tile(sound(2.0), 30))
    who.commit()
    events = narrow.told(who)
    assert "turn_too_long" in [f.code for f in of_kind(events, api.Failed)]
    [said] = narrow.replies(events)
    assert len(said.codec_ids) == 14
    goes_on(narrow, who)
    narrow.close()


def test_a_turn_that_cannot_be_shortened(narrow: Stage) -> None:
    who = narrow.open(system="Short.")
    for _ in range(3):
        who.push_text("x" * 250)
        who.push_image(PICTURE)
    who.commit(item="long")
    events = narrow.told(who)
    assert "turn_too_long" in [f.code for f in of_kind(events, api.Failed)]
    assert narrow.memory(who).length < 700
    goes_on(narrow, who)
    narrow.close()
