"""Caches with less room than the sessions want: who gives way, what is told, and that all go on.

The tiny checkpoint's default system prompt takes 171 positions, a block has 64, a letter is one.
"""

import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from live_stage import Stage, goes_on, load, names, of_kind, push
from omni_cases import sound

from thinktalk.live import api
from thinktalk.live.session import LiveSession


def small(tiny_checkpoint: Callable[[str], Path], **options: Any) -> Stage:
    return Stage(load(tiny_checkpoint("7b")), **options)


def test_a_full_cache_shortens_a_reply(tiny_checkpoint) -> None:
    """There is no room for all of it: it ends there; its neighbour is not touched."""
    stage = small(tiny_checkpoint, max_sessions=2, cache_positions=64 * 7)
    one = stage.open(max_codec_ids=5)
    stage.run()
    other = stage.open()
    one.say("x" * 400)
    stage.run(20)
    other.push_text("x" * 90)
    other.commit(respond=False)
    events = stage.told(one)
    [said] = stage.replies(events)
    assert (said.done.status, said.done.reason) == ("incomplete", "context_full")
    assert not of_kind(events, api.Failed)
    assert 40 < len(said.text_ids) < 300
    assert names(stage.told(other)) == ["TurnCommitted"]
    assert len(stage.memory(one).items) == 2, "and it stays in the conversation, with its end"
    stage.check(one)
    stage.check(other)
    one.close()
    stage.run()
    stage.of(other).settings = stage.open().settings
    goes_on(stage, other)
    stage.close()


def test_a_full_talker_cache_ends_speech(tiny_checkpoint) -> None:
    stage = small(tiny_checkpoint, max_sessions=1, cache_positions=64 * 5)
    who = stage.open(max_text_tokens=3, max_codec_ids=300)
    who.push_text("What?")
    who.commit()
    [said] = stage.replies(stage.told(who))
    assert (said.done.status, said.done.reason) == ("incomplete", "context_full")
    assert 100 < len(said.codec_ids) < 200
    stage.check(who)
    stage.close()


def test_a_full_cache_forgets_old_turns(tiny_checkpoint) -> None:
    stage = small(tiny_checkpoint, max_sessions=1, cache_positions=64 * 7)
    who = stage.open(system="Short.")
    for number in range(4):
        who.push_text(f"{number}: " + "x" * 100)
        who.commit(item=f"{number}", respond=False)
    events = stage.told(who)
    [dropped] = of_kind(events, api.HistoryDropped)
    assert dropped.items == ("0", "1", "2") and dropped.positions > 300
    assert not of_kind(events, api.Failed)
    goes_on(stage, who)
    stage.close()


def test_a_turn_that_no_cache_can_hold(tiny_checkpoint) -> None:
    """It is told and forgotten, once; what was asked about it is over."""
    stage = small(tiny_checkpoint, max_sessions=1, cache_positions=64 * 6)
    who = stage.open(system="Short.")
    who.push_text("x" * 600)
    who.commit(item="long")
    events = stage.told(who)
    told = ["TurnCommitted", "ResponseStarted", "ResponseDone", "Failed", "ItemDeleted"]
    assert names(events)[:5] == told and stage.replies(events)[0].done.status == "failed"
    [failed] = of_kind(events, api.Failed)
    assert failed.code == "cache_full" and "cache_positions" in failed.message
    goes_on(stage, who)
    stage.close()


def test_a_session_without_room_for_itself(tiny_checkpoint) -> None:
    stage = small(tiny_checkpoint, max_sessions=2, cache_positions=64)
    who = stage.open()
    events = stage.told(who)
    assert names(events) == ["Failed", "Closed"]
    assert of_kind(events, api.Failed)[0].fatal
    stage.close()


def ask(who: LiveSession, letters: int, **options: Any) -> None:
    who.push_text("x" * letters)
    who.commit(**options)


def test_a_small_session_is_not_starved(tiny_checkpoint) -> None:
    """One that holds most of the cache forgets a turn that it could keep while it was alone; its
    neighbour, within its share, says what it would say alone."""
    alone = small(tiny_checkpoint, max_sessions=1)
    ask(fresh := alone.open(system="Short."), 30)
    expected = alone.reply(fresh)
    alone.close()
    stage = small(tiny_checkpoint, max_sessions=2, cache_positions=64 * 8)
    greedy = stage.open(system="Short.")
    ask(greedy, 380, item="long", respond=False)
    assert names(stage.told(greedy)) == ["TurnCommitted"]
    other = stage.open(system="Short.")
    ask(other, 30)
    assert stage.reply(other).ids == expected.ids
    events = stage.told(greedy)
    assert names(events) == ["Failed", "ItemDeleted"]
    assert of_kind(events, api.Failed)[0].code == "cache_full"
    goes_on(stage, greedy)
    stage.close()


def test_a_system_prompt_is_never_given_up(tiny_checkpoint) -> None:
    """The fullest has nothing else: so the next one gives way."""
    stage = small(tiny_checkpoint, max_sessions=3, cache_positions=64 * 9)
    fullest, greedy = stage.open(system="x" * 220), stage.open(system="Short.")
    ask(greedy, 190, respond=False)
    assert names(stage.told(greedy)) == ["TurnCommitted"]
    blocks = [len(stage.memory(who).thinker_row.blocks) for who in (fullest, greedy)]
    assert sum(blocks) == 8 and min(blocks) > 3
    other = stage.open(system="Short.")
    ask(other, 60)
    assert len(stage.reply(other).codec_ids) == 14
    assert names(stage.told(greedy)) == ["Failed", "ItemDeleted"]
    assert stage.told(fullest) == []
    stage.close()


def test_old_turns_go_before_replies(tiny_checkpoint) -> None:
    """An idle session with a long past forgets half of it, without harm to anybody."""
    stage = small(tiny_checkpoint, max_sessions=2, cache_positions=64 * 9)
    idle = stage.open(system="Short.")
    for number in range(8):
        ask(idle, 40, item=f"{number}", respond=False)
    stage.told(idle)
    other = stage.open(system="Short.")
    ask(other, 100)
    assert len(stage.reply(other).codec_ids) == 14
    [dropped] = stage.told(idle)
    assert isinstance(dropped, api.HistoryDropped) and dropped.items[0] == "0"
    goes_on(stage, idle)
    stage.close()


def test_a_transcription_without_room(tiny_checkpoint) -> None:
    """Only the transcription fails."""
    stage = small(tiny_checkpoint, max_sessions=1, cache_positions=64 * 5)
    who = stage.open(system="Short.")
    push(who, sound(6.0))
    who.commit(item="spoken", respond=False)
    who.transcribe("spoken")
    events = stage.told(who)
    [failed] = of_kind(events, api.Failed)
    assert failed.code == "transcription_failed" and not failed.fatal
    assert "no room" in failed.message
    assert not [e for e in of_kind(events, api.InputTranscript) if e.done]
    assert stage.memory(who).items[-1].id == "spoken", "it is still known"
    goes_on(stage, who)
    stage.close()


def test_resumed_into_a_full_engine(tiny_checkpoint, tmp_path: Path) -> None:
    """It is told, and nobody else is touched; kept prefixes make room for it."""
    roomy = small(tiny_checkpoint, max_sessions=1)
    ask(saved := roomy.open(system="Short."), 250, respond=False)
    roomy.told(saved)  # all of it is in the caches
    saved.save(tmp_path)
    roomy.told(saved)
    roomy.close()
    stage = small(tiny_checkpoint, max_sessions=2, cache_positions=64 * 9)
    other = stage.open(system="x" * 300)
    stage.run()
    other.close()
    stage.run()
    assert stage.engine.memory_pools[0].num_free < 5
    resumed = stage.engine.resume(tmp_path)
    goes_on(stage, resumed)
    assert len(stage.memory(resumed).items) == 4 and not stage.engine.prefixes.drop()
    late = stage.engine.resume(tmp_path)
    events = stage.told(late)
    assert names(events) == ["Failed", "Closed"]
    [failed] = of_kind(events, api.Failed)
    assert failed.fatal and "cache_positions" in failed.message
    goes_on(stage, resumed)
    stage.close()


@pytest.mark.parametrize("seed", range(4))
def test_crowds_in_a_tiny_cache(tiny_checkpoint, seed: int) -> None:
    """Four sessions that do anything, for a while at once: whatever is committed is answered or
    its loss is told, nobody waits for ever, and no block is lost."""
    dice = random.Random(seed)
    stage = small(tiny_checkpoint, max_sessions=4, cache_positions=64 * dice.choice([8, 12, 16]))
    sessions = [stage.open(system="Short.", max_codec_ids=dice.randint(1, 60)) for _ in range(4)]
    events: dict[str, list[api.Event]] = {who.id: [] for who in sessions}
    asked = 0
    for _ in range(30):
        who = dice.choice(sessions)
        act = dice.choice(["ask", "ask", "tell", "sound", "say", "cancel", "fork", "transcribe"])
        if act in ("ask", "tell"):
            asked += act == "ask"
            ask(who, dice.randint(1, 200), respond=act == "ask")
        elif act == "sound":
            push(who, sound(1.0))
        elif act == "say":
            who.say("x" * dice.randint(1, 150))
        elif act == "fork" and len(stage.engine.sessions) < 4:
            sessions[sessions.index(who)] = twin = who.fork()
            events[twin.id] = []
            who.close()
        elif act == "transcribe" and stage.memory(who).items[1:]:
            who.transcribe(stage.memory(who).items[-1].id)
        else:
            who.cancel()
        stage.run(dice.randint(0, 8))
        for session in sessions:
            events[session.id] += stage.so_far(session)
            if session.id not in stage.engine.sessions:  # it has ended, and said so
                assert names(events[session.id])[-1] == "Closed"
                sessions[sessions.index(session)] = again = stage.open(system="Short.")
                events[again.id] = []
    assert stage.run(3000) < 3000 or not stage.engine.step(), "somebody never comes to an end"
    for session in list(sessions):
        told = events[session.id] + stage.so_far(session)
        begun = [e.response for e in of_kind(told, api.ResponseStarted)]
        done = [e.response for e in of_kind(told, api.ResponseDone)]
        assert begun == done and len(set(done)) == len(done)
        if session.id in stage.engine.sessions:
            stage.check(session)
            assert stage.memory(session).num_waiting == 0
    assert asked
    stage.close()
