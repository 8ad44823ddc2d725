"""What makes long turns, long replies and long calls bearable, as counters: nothing waits for the
end of anything, and nothing grows without bound."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from live_stage import Stage, in_order, load, names, of_kind, push
from omni_cases import sound

from thinktalk.live import api, turn
from thinktalk.live.conversation import CONTEXT_SHARE, Conversation
from thinktalk.live.session import LiveSession
from thinktalk.options import ServerVad

HZ = 16_000
MINUTE = np.tile(sound(4.0), 15)


def first_sound(stage: Stage, session: LiveSession) -> list[api.Event]:
    """Ticks until the first sound is told; everything that is told by then."""
    events: list[api.Event] = []
    while not of_kind(events, api.AudioDelta):
        assert stage.run(1)
        events += stage.so_far(session)
    return events


def test_sound_begins_long_before_the_text_ends(stage: Stage) -> None:
    """At the first sound of a reply of 60 ids, at most 38 of them have been written."""
    session = stage.open(max_codec_ids=60)
    stage.run()
    session.say("x" * 60)
    first_sound(stage, session)
    counters, reply = stage.engine.counters, stage.of(session).replies.current
    assert reply is not None and counters["thinker_steps"] <= 38
    assert len(reply.codec_ids) <= 36, "two blocks, and one that waits for the next tick"
    assert len(stage.replies(stage.told(session))) == 1
    assert counters["thinker_steps"] == 61


def test_text_is_told_id_by_id(stage: Stage) -> None:
    """The Thinker and the Talker advance in lockstep: text k comes with codec id k - 1."""
    session = stage.open(max_codec_ids=60)
    session.say("abcdefghij")
    pace = []
    for _ in range(12):
        stage.run(1)
        reply = stage.of(session).replies.current
        assert reply is not None
        text = "".join(e.text for e in of_kind(stage.so_far(session), api.TextDelta))
        pace.append((text, len(reply.codec_ids)))
    assert pace == [*((c, n) for n, c in enumerate("abcdefghij")), ("", 10), ("", 11)]


@pytest.mark.parametrize("seconds", [2, 120])
def test_what_remains_at_the_end_of_a_turn(stage: Stage, seconds: int) -> None:
    """After two minutes in real time as after two seconds: the open window, at most 200 frames of
    mel and 60 positions, and no more work than that until the reply begins."""
    session = stage.open()
    wave = np.concatenate([MINUTE, MINUTE, sound(1.9)])[-round((seconds + 1.9) * HZ) :]
    for start in range(0, len(wave), HZ // 50):
        session.push_audio(wave[start : start + HZ // 50], sample_rate=HZ)
        stage.run(1)
    memory, counters = stage.memory(session), stage.engine.counters
    assert memory.num_waiting == 0 and memory.length > 25 * seconds
    assert counters["encoded_pieces"] == seconds / 2
    session.commit()
    stage.engine.intake()
    header = memory.items[-1].pieces[0].ids  # 12 ids in bytes, 3 with a trained tokenizer
    assert memory.num_waiting - len(header) + 3 <= 60
    assert sum(m.shape[1] for piece in memory.queue for m in piece.mels) == 190
    before, waiting = counters["prefill_positions"], memory.num_waiting
    assert stage.run(1) and stage.of(session).replies.current is not None
    assert counters["prefill_positions"] - before == waiting, "all in the tick of the commit"
    assert counters["thinker_steps"] == 1
    assert len(stage.replies(stage.told(session))) == 1
    usage_cached = memory.length - memory.items[-1].num_ids + len(header) - waiting
    assert usage_cached > 25 * seconds


def loudness(self: turn.Silero, frame: np.ndarray, memory: turn.Memory) -> tuple[float, object]:
    """A detector that is quick: whatever is not silent is speech."""
    return (0.95 if np.abs(frame).max() > 0.01 else 0.02), memory


def test_a_call_of_an_hour(tiny_checkpoint: Callable[[str], Path], monkeypatch) -> None:
    """36 turns through a context that holds three: whole turns are forgotten, oldest first, between
    replies, and told; every turn is answered; positions, blocks and the ear stay bounded."""
    monkeypatch.setattr(turn.Silero, "listen", loudness)
    monkeypatch.setattr(Conversation, "_context", 1200)
    stage = Stage(load(tiny_checkpoint("7b")), max_sessions=1, cache_positions=1600)
    detection = ServerVad(silence_duration_ms=600)
    session = stage.open(turn_detection=detection, max_text_tokens=12, max_codec_ids=3)
    events: list[api.Event] = []
    longest = 0
    for number in range(36):
        speech = sound(4.0)[: 4 * HZ - 160 * number]
        call = np.concatenate(
            [np.tile(speech, 3), np.zeros(100 * HZ - 3 * len(speech), np.float32)]
        )
        for start in range(0, len(call), HZ // 4):
            session.push_audio(call[start : start + HZ // 4], sample_rate=HZ)
            stage.run(4)
            longest = max(longest, stage.memory(session).length)
        events += stage.so_far(session)
        if number % 10 == 0:
            stage.run()
            stage.check(session)
            state = stage.of(session).listener.state()
            assert state["clip"] is None and len(state["held"]) < HZ
    events += stage.told(session)
    assert stage.of(session).listener.now_s == pytest.approx(3600)
    assert not of_kind(events, api.Failed) and in_order(events)
    assert len(stage.replies(events)) == len(of_kind(events, api.TurnCommitted)) == 36
    assert {said.done.status for said in stage.replies(events)} <= {"completed", "incomplete"}
    assert longest < CONTEXT_SHARE * 1200 + 400
    dropped = of_kind(events, api.HistoryDropped)
    assert len(dropped) > 8
    said = [e.item for e in events if isinstance(e, api.TurnCommitted | api.ResponseStarted)]
    gone = [item for event in dropped for item in event.items]
    assert gone == said[: len(gone)] and len(gone) % 2 == 0
    for event in dropped:
        before = names(events[: events.index(event)])
        assert before.count("ResponseStarted") == before.count("ResponseDone")
    stage.close()


def test_forgetting_costs_the_kept_half_once(tiny_checkpoint, monkeypatch) -> None:
    """The system prompt stays in the caches; what is kept is prefilled again, in bounded ticks."""
    monkeypatch.setattr(Conversation, "_context", 1200)
    stage = Stage(load(tiny_checkpoint("7b")), max_sessions=1)
    session = stage.open(max_text_tokens=3, max_codec_ids=2)
    stage.run()
    counters = stage.engine.counters
    for number in range(20):
        push(session, sound(4.0))
        session.commit(item=str(number))
        before = counters["prefill_positions"]
        events = stage.told(session)
        if of_kind(events, api.HistoryDropped):
            break
        assert counters["prefill_positions"] - before < 160
    system, kept = stage.memory(session).items[0].num_ids, stage.memory(session).length
    spent = counters["prefill_positions"] - before
    assert kept - system <= spent <= kept - system + 160 and kept < 0.6 * 1200
    assert stage.memory(session).items[1].role == "user"
    stage.check(session)
    stage.close()
