"""The caches follow the items: whatever is added, removed or taken back, both networks hold what
a fresh session with the same items would hold."""

import numpy as np
import pytest
import torch
from live_stage import Stage, names, of_kind, push, rows
from omni_cases import sound
from tiny import GEOMETRIES

from thinktalk.live import api
from thinktalk.live.history import Item, Piece
from thinktalk.live.memory import Memory
from thinktalk.live.session import LiveSession

TOLERANCE = 1e-4  # rounding depends on how many rows a product has
PICTURE = np.random.default_rng(0).integers(0, 255, (84, 56, 3), np.uint8)


both = pytest.mark.parametrize("stage", GEOMETRIES, indirect=True)


def fresh(stage: Stage, session: LiveSession) -> LiveSession:
    """A session that is given another's items anew, as one stretch of prompt."""
    twin = stage.open(seed=99)
    memory = stage.memory(twin)
    stage.run()
    ids = [Piece([0])]  # makes sync see that nothing of the past is right
    memory.items = [Item("x", "x", ids)]
    memory.sync()
    pieces = [piece for item in stage.memory(session).items for piece in item.pieces]
    memory.items = [Item("x", "x", pieces)]
    memory.sync()
    stage.run()
    return twin


def same_caches(stage: Stage, session: LiveSession) -> None:
    """Keys and values of both networks are those of a fresh session with these items."""
    stage.run()
    stage.check(session)
    twin = fresh(stage, session)
    ours, theirs = stage.memory(session), stage.memory(twin)
    assert ours.length == theirs.length == ours.thinker_row.length == ours.talker_row.length
    assert (ours.track, ours.top) == (theirs.track, theirs.top)
    for pool, one, other in (
        (ours.thinker, ours.thinker_row, theirs.thinker_row),
        (ours.talker, ours.talker_row, theirs.talker_row),
    ):
        assert pool is not None
        ours_rows, theirs_rows = rows(pool, one), rows(pool, other)
        torch.testing.assert_close(ours_rows, theirs_rows, rtol=TOLERANCE, atol=TOLERANCE)
    twin.close()
    stage.run()


def talk(stage: Stage, session: LiveSession) -> None:
    """A turn with everything in it, its reply, and a second question."""
    push(session, sound(2.3))
    session.push_image(PICTURE)
    session.push_text("What do you see?")
    session.commit(item="first")
    assert "ResponseDone" in names(stage.told(session))
    session.push_text("And now?")
    session.commit(item="second")
    assert "ResponseDone" in names(stage.told(session))


@both
def test_turns_and_replies(stage: Stage) -> None:
    """Replies, whose rows came one by one and with their speech behind them, count as prompt."""
    session = stage.open()
    talk(stage, session)
    roles = [item.role for item in stage.memory(session).items]
    assert roles == ["system", "user", "assistant", "user", "assistant"]
    same_caches(stage, session)


def test_nothing_is_computed_twice(stage: Stage) -> None:
    """A second turn costs its own positions and the end of the reply before it."""
    session = stage.open()
    stage.run()
    talk(stage, session)
    before = stage.engine.counters["prefill_positions"]
    session.push_text("Why?")
    session.commit()
    stage.told(session)
    items = stage.memory(session).items
    reply_end = items[-3].pieces[-1].ids
    header = items[-1].pieces[0].ids
    new = len(reply_end) + items[-2].num_ids + len(header)
    last_end = len(items[-1].pieces[-1].ids)  # is prefilled as soon as the reply is over
    counted = stage.engine.counters["prefill_positions"] - before
    assert counted == new - len(reply_end) + last_end < 40


@pytest.mark.parametrize("item", ["first", "second"])
def test_an_item_is_deleted(stage: Stage, item: str) -> None:
    session = stage.open()
    talk(stage, session)
    before = stage.memory(session).length
    session.delete(item)
    assert names(stage.told(session)) == ["ItemDeleted"]
    assert item not in [known.id for known in stage.memory(session).items]
    assert stage.memory(session).length < before
    same_caches(stage, session)


def test_another_system_prompt(stage: Stage) -> None:
    session = stage.open()
    talk(stage, session)
    session.update(system="You are a cat.")
    stage.told(session)
    [piece] = stage.memory(session).items[0].pieces
    assert stage.engine.kit.tokenizer.decode(piece.ids) == "system\nYou are a cat.\n"
    same_caches(stage, session)


def test_a_message_comes_before_the_open_turn(stage: Stage) -> None:
    """The turn that is being given is always the last item."""
    session = stage.open()
    push(session, sound(4.5))
    stage.run()
    session.add_message({"role": "user", "content": "By the way."}, item="note")
    stage.run()
    session.commit(item="turn", respond=False)
    stage.told(session)
    assert [item.id for item in stage.memory(session).items][1:] == ["note", "turn"]
    same_caches(stage, session)


@pytest.mark.parametrize("ticks", [1, 3, 9, 30])
def test_a_reply_is_stopped(stage: Stage, ticks: int) -> None:
    """At any step: the Thinker keeps what it was fed, the Talker's speech goes."""
    session = stage.open(max_text_tokens=20, max_codec_ids=60)
    session.push_text("What?")
    session.commit()
    stage.run(ticks)
    session.cancel()
    events = stage.told(session)
    assert names(events)[-2:] == ["ResponseDone", "Truncated"]
    [truncated] = of_kind(events, api.Truncated)
    assert (truncated.audio_ms > 0) == (ticks == 30)
    same_caches(stage, session)


@both
def test_a_reply_is_cut_back(stage: Stage) -> None:
    session = stage.open(max_text_tokens=24, max_codec_ids=40)
    talk(stage, session)
    for number in (2, 4):
        item = stage.memory(session).items[number]
        before = item.num_ids
        session.truncate(item.id, item.audio_ms // 2)
        [event] = stage.told(session)
        assert isinstance(event, api.Truncated) and item.text.startswith(event.text)
        assert item.num_ids < before
        same_caches(stage, session)


def test_a_whole_reply_is_left_alone(stage: Stage) -> None:
    """Truncated where it ends: no cache is touched."""
    session = stage.open()
    talk(stage, session)
    item = stage.memory(session).items[2]
    item.audio_ms = item.speech_ms = len(item.text_ids)  # as if the speech had said all
    marks = list(stage.memory(session).past)
    session.truncate(item.id, item.audio_ms)
    stage.told(session)
    assert stage.memory(session).past == marks


def test_ids_that_mean_media_can_be_said(stage: Stage, monkeypatch) -> None:
    """A model may choose a placeholder's id: it is fed back, and after a cut again, as text."""
    config, tokenizer = stage.model.config.thinker_config, stage.engine.kit.tokenizer
    said = [*config.media_token_ids, config.vision_start_token_id, 72, config.audio_start_token_id]
    session = stage.open()
    memory = stage.memory(session)
    with monkeypatch.context() as patch:
        patch.setattr(tokenizer, "encode", lambda text: said if text == "it" else [198])
        session.say("it")
        events = stage.told(session)
    assert memory.items[-1].text_ids == tuple(said)
    same_caches(stage, session)
    session.delete(memory.items[0].id)  # refused: the system prompt is no item of the caller's
    assert names(stage.told(session)) == ["Failed"] and names(events)[-1] == "ResponseDone"
    session.update(system="Again.")
    same_caches(stage, session)


@both
def test_a_fork_is_the_same_and_its_own(stage: Stage) -> None:
    session = stage.open()
    talk(stage, session)
    twin = session.fork()
    twin.push_text("Only here.")
    twin.commit()
    stage.told(twin)
    assert "Only here." in stage.text_of(twin) and "Only here." not in stage.text_of(session)
    same_caches(stage, session)
    same_caches(stage, twin)


def test_the_oldest_turns_are_forgotten(stage: Stage) -> None:
    session = stage.open()
    for number in range(4):
        session.push_text(f"Question {number}?")
        session.commit(item=f"turn {number}")
        stage.told(session)
    memory = stage.memory(session)
    gone = memory.forget_oldest(memory.length - 45)
    assert [item.role for item in gone] == ["user", "assistant"] * 2
    assert gone[0].id == "turn 0" and memory.items[1].id == "turn 2"
    same_caches(stage, session)
    memory.forget_oldest(0)
    assert [item.id for item in memory.items if item.role == "user"] == ["turn 3"]
    same_caches(stage, session)


def test_replies_to_nothing_are_turns(stage: Stage) -> None:
    session = stage.open()
    for _ in range(3):
        session.say("One more.")
        stage.told(session)
    memory = stage.memory(session)
    assert len(memory.items) == 4 and len(memory.forget_oldest(0)) == 2
    same_caches(stage, session)


def test_a_long_turn_loses_its_oldest_windows(stage: Stage) -> None:
    session = stage.open()
    push(session, sound(9.0))
    session.commit(respond=False)
    stage.run()
    memory = stage.memory(session)
    before = memory.length
    assert memory.shorten_last(60)
    assert before - memory.length == 100, "two windows of 50 tokens"
    same_caches(stage, session)
    assert memory.shorten_last(10_000) and not memory.shorten_last(1)
    same_caches(stage, session)


def test_sync_in_the_middle_of_a_prefill(stage: Stage) -> None:
    """What was half taken in stays; what was queued comes anew."""
    session = stage.open()
    session.push_text("word " * 300)
    session.commit(item="long", respond=False)
    stage.run(1)
    memory = stage.memory(session)
    assert 0 < memory.done < memory.num_waiting
    done = memory.done
    session.add_message({"role": "user", "content": "More."}, item="more")
    stage.run(1)
    assert memory.done > done or not memory.done
    same_caches(stage, session)
    session.delete("long")
    same_caches(stage, session)


def test_an_empty_memory_syncs(stage: Stage) -> None:
    thinker, talker = stage.engine.memory_pools
    memory = Memory(stage.model.config.thinker_config, thinker=thinker, talker=talker)
    memory.sync()
    assert (memory.length, memory.num_waiting, memory.upcoming(10)) == (0, 0, [])
    assert not memory.at_barrier
