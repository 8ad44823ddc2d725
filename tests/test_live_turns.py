"""Turns of real speech: when replies begin, count, are thrown away, and are cut in on."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from live_speech import CHUNK, PAUSE_S, VAD, live, paused, question
from live_stage import Said, Stage, names, of_kind
from spoken import HZ, clips, hear, said, silence, talk
from torch import Tensor

import thinktalk
from thinktalk.live import api
from thinktalk.live.conversation import Conversation
from thinktalk.live.replies import Replies
from thinktalk.live.session import LiveSession
from thinktalk.options import SemanticVad, ServerVad

TOLERANCE = 5e-6  # of the largest sample, see test_live_equal


def unthinking(monkeypatch: pytest.MonkeyPatch, thinks: bool) -> None:
    """Pauses are noted, and end clips, but nothing is thought in them."""
    if not thinks:
        monkeypatch.setattr(Conversation, "_paused", lambda *_: None)


def same(first: list[Said], second: list[Said]) -> None:
    assert [said.ids for said in first] == [said.ids for said in second]
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one.wave, other.wave) and one.text == other.text


# ---- turns


def test_turns_are_answered(stage: Stage) -> None:
    """Two turns, each told in order; the first reply is generate's to the detected clip."""
    session = stage.open(turn_detection=VAD)
    events = live(stage, session, talk())
    told = names(events, without=[api.TextDelta, api.AudioDelta])
    turn = "SpeechStarted SpeechStopped TurnCommitted ResponseStarted ResponseDone".split()
    assert told == turn + turn
    started, stopped, committed = (
        of_kind(events, kind) for kind in (api.SpeechStarted, api.SpeechStopped, api.TurnCommitted)
    )
    first, second = stage.replies(events)
    found = list(clips(hear(talk(), VAD)))
    for n, (start, end, _, _) in enumerate(found):
        assert (started[n].audio_ms, stopped[n].audio_ms) == (
            round(1000 * start / HZ),
            round(1000 * end / HZ),
        )
        assert started[n].item == stopped[n].item == committed[n].item
    assert committed[0].previous is None and committed[1].previous == first.done.item
    start, end, *_ = found[0]
    answer = thinktalk.generate(
        stage.model, [talk()[start:end]], max_text_tokens=6, max_codec_ids=14
    )
    assert first.ids == (answer.text_ids, answer.codec_ids)
    assert np.abs(first.wave - answer.audio).max() <= TOLERANCE * np.abs(answer.audio).max()
    assert second.text_ids != first.text_ids and second.done.status == "incomplete"


def test_turns_are_the_same_whatever_the_pieces(stage: Stage) -> None:
    """As many turns, items and sound positions; each turn has the same ids."""
    found = []
    for size in (CHUNK, 3 * HZ, len(question())):
        session = stage.open(turn_detection=VAD)
        for start in range(0, len(question()), size):
            session.push_audio(question()[start : start + size], sample_rate=HZ)
            stage.run(1)
        events = stage.told(session)
        [reply] = stage.replies(events)
        told = [e.audio_ms for e in events if isinstance(e, api.SpeechStarted | api.SpeechStopped)]
        ids = [piece.ids for piece in stage.memory(session).items[1].pieces]
        found.append((told, [i for piece in ids for i in piece], reply.ids, reply.wave.tobytes()))
        session.close()
        stage.run()
    assert found[0] == found[1] == found[2]


def test_a_reply_is_not_always_wanted(stage: Stage) -> None:
    session = stage.open(turn_detection=ServerVad(create_response=False))
    events = live(stage, session, question())
    assert names(events) == ["SpeechStarted", "SpeechStopped", "TurnCommitted"]
    response = session.respond()
    [reply] = stage.replies(stage.told(session))
    assert reply.done.response == response and len(reply.codec_ids) == 14


def test_what_is_pushed_beside_speech_belongs_to_the_turn(stage: Stage) -> None:
    """Words before, in the middle of and right after speech, in this order around the sound."""
    session = stage.open(turn_detection=VAD)
    session.push_text("before ")
    middle = len(question()) // 2
    live(stage, session, question()[:middle])
    session.push_text("in it ")
    live(stage, session, question()[middle:])
    memory, tokenizer = stage.memory(session), stage.engine.kit.tokenizer
    text = tokenizer.decode([i for p in memory.items[1].pieces for i in p.ids], keep_special=True)
    shown = text.replace("<|AUDIO|>", "")
    body = "before <|audio_bos|><|audio_eos|>in it "
    assert shown == f"<|im_start|>user\n{body}<|im_end|>\n"
    assert [item.role for item in memory.items] == ["system", "user", "assistant"]


# ---- early thinking


@pytest.mark.parametrize("ticks", [1, 4, None])
def test_what_was_thought_in_a_pause_leaves_no_trace(
    stage: Stage, monkeypatch, ticks: int | None
) -> None:
    """However far it had come when the user went on: ids, sound and caches are those of a session
    that never thinks early, and nobody was told."""
    told = []
    for thinks in (True, False):
        unthinking(monkeypatch, thinks)
        session = stage.open(turn_detection=VAD)
        before = stage.engine.counters["thinker_steps"]
        events = live(stage, session, talk(), ticks=ticks) + stage.told(session)
        stage.check(session)
        items = [(i.role, i.num_ids, i.text) for i in stage.memory(session).items]
        texts = [e.text for e in of_kind(events, api.TextDelta)]
        steps = stage.engine.counters["thinker_steps"] - before
        told.append((stage.replies(events), items, texts, steps))
        count = stage.of(session).replies.count
        assert count == 2
        session.close()
        stage.run()
    (early, *rest, steps), (late, *others, fewer) = told
    same(early, late)
    assert rest == others and (steps > fewer or ticks == 1)


def test_a_thrown_away_thought_frees_its_blocks(stage: Stage) -> None:
    session = stage.open(turn_detection=VAD, max_text_tokens=70, max_codec_ids=70)
    conversation, row = stage.of(session), stage.memory(session).thinker_row
    live(stage, session, question()[: -HZ + HZ // 6])
    before, pieces = list(row.blocks), list(stage.memory(session).items[1].pieces)
    live(stage, session, silence(PAUSE_S - 1 / 6))
    assert conversation.early is not None and conversation.replies.current is None, "all is said"
    assert len(row.blocks) > len(before)
    wave, start_s, _ = said("the big circle?")
    live(stage, session, wave[round(HZ * start_s) :][: HZ // 5])
    item = conversation.draft.item
    assert conversation.early is None and item is stage.memory(session).items[-1]
    assert item is not None and item.pieces == pieces and item.is_open
    assert row.blocks == before


def test_an_early_reply_is_sent_at_once(stage: Stage) -> None:
    """All of it was rendered in the pause: no tick stands between the decision and the sound."""
    session = stage.open(turn_detection=VAD)
    wave = question()
    events: list[api.Event] = []
    for start in range(0, len(wave), CHUNK):
        before = dict(stage.engine.counters)
        session.push_audio(wave[start : start + CHUNK], sample_rate=HZ)
        stage.run()
        new = stage.so_far(session)
        events += new
        if of_kind(new, api.SpeechStopped):
            told = names(new, without=[api.TextDelta, api.AudioDelta])
            assert told == ["SpeechStopped", "TurnCommitted", "ResponseStarted", "ResponseDone"]
            for name in ("thinker_steps", "talker_steps", "voice_blocks"):
                assert stage.engine.counters[name] == before[name], name
    [reply] = stage.replies(events)
    assert len(reply.codec_ids) == 14 and reply.done.audio_ms == 280
    usage = reply.done.usage
    assert usage.input_audio > 50 and usage.input_text > 100 and usage.output_audio == 14
    assert 0 < usage.input_audio + usage.input_text - usage.cached < 60, "the last window is new"


ACTS: dict[str, Callable[[LiveSession], object]] = {
    "text": lambda session: session.push_text("Also this."),
    "message": lambda session: session.add_message({"role": "user", "content": "Note."}),
    "update": lambda session: session.update(voice="Ethan"),
    "another system prompt": lambda session: session.update(system="Short."),
    "fork": lambda session: session.fork().close(),
    "nothing to cancel": lambda session: session.cancel(),
    "nothing to delete": lambda session: session.delete("nobody"),
}


@pytest.mark.parametrize("act, ticks", [*((act, None) for act in ACTS), ("message", 1)])
def test_acts_in_a_pause(stage: Stage, monkeypatch, act: str, ticks: int | None) -> None:
    """Between the pause and the end of the turn anything may be asked for; the reply is what it
    would be without early thinking."""
    told = []
    for thinks in (True, False):
        unthinking(monkeypatch, thinks)
        session = stage.open(turn_detection=VAD)
        live(stage, session, question()[: paused()], ticks=ticks)
        assert (stage.of(session).early is not None) == thinks
        ACTS[act](session)
        events = live(stage, session, question()[paused() :], ticks=ticks) + stage.told(session)
        stage.check(session)
        told.append(stage.replies(events))
        draft = stage.of(session).draft
        assert (draft.item is not None) == (act == "text" and thinks)
        session.close()
        stage.run()
    if act != "text":  # which is too late for an early reply, and in time for a late one
        same(*told)
    assert [len(replies) for replies in told] == [1, 1]


@pytest.mark.parametrize("ticks", [1, None])
def test_commit_in_a_pause(stage: Stage, monkeypatch, ticks: int | None) -> None:
    """The caller knows before the detector: the early reply counts, or no reply is wanted."""
    session = stage.open(turn_detection=VAD)
    live(stage, session, question()[: paused()], ticks=ticks)
    session.commit(respond=False)
    assert names(stage.told(session)) == ["TurnCommitted"]
    assert [item.role for item in stage.memory(session).items] == ["system", "user"]
    session.respond()
    replies = [[stage.reply(session)]]
    session.close()
    for thinks in (True, False):
        unthinking(monkeypatch, thinks)
        session = stage.open(turn_detection=VAD)
        live(stage, session, question()[: paused()], ticks=ticks)
        session.commit()
        events = stage.told(session)
        assert names(events)[0] == "TurnCommitted" and names(events)[-1] == "ResponseDone"
        replies.append(stage.replies(events))
        session.close()
        stage.run()
    same(replies[0], replies[1])
    same(replies[1], replies[2])


def test_clear_in_a_pause(stage: Stage) -> None:
    session = stage.open(turn_detection=VAD)
    live(stage, session, question()[: paused()])
    assert stage.of(session).early is not None
    session.clear()
    assert names(stage.told(session)) == ["InputCleared"]
    assert len(stage.memory(session).items) == 1
    stage.check(session)
    assert live(stage, session, silence(1)) == []
    assert stage.replies(live(stage, session, question()))[0].done.status == "incomplete"


def test_the_model_judges_the_pause(stage: Stage, monkeypatch) -> None:
    """Semantic turns end soon where the model is sure that all is said, else late."""
    ends = {}
    for completeness in (1.0, 0.5, 0.0):
        monkeypatch.setattr(Replies, "completeness", lambda _, value=completeness: value)
        session = stage.open(turn_detection=SemanticVad(eagerness="high"))
        wave = np.concatenate([question(), silence(1.5)])
        for start in range(0, len(wave), CHUNK):
            events = live(stage, session, wave[start : start + CHUNK])
            if of_kind(events, api.SpeechStopped):
                ends[completeness] = start / HZ - len(question()) / HZ + 1
                assert len(stage.replies(events)) == 1
        session.close()
    assert ends[1.0] < 0.5 < ends[0.5] < 1.3 < 1.8 < ends[0.0] < 2.3


def test_completeness_is_the_certainty_of_the_first_words(stage: Stage) -> None:
    session = stage.open(turn_detection=SemanticVad())
    live(stage, session, question()[: paused()], ticks=1)
    stage.run()
    replies, early = stage.of(session).replies, stage.of(session).early
    assert early is not None and early.judged
    assert replies.last is not None and len(replies.last.confidence) == 4
    assert all(value <= 0 for value in replies.last.confidence)


@pytest.mark.parametrize("nothing", [0.01, 0.4, 0.9])
def test_what_is_answered_with_nothing_is_not_complete(
    stage: Stage, monkeypatch, nothing: float
) -> None:
    """A model that is sure of its words, once it says any: the pause ends the turn the later, the
    more likely the reply is empty."""
    vocab = stage.model.config.thinker_config.text_config.vocab_size
    stop = stage.model.config.thinker_config.eos_token_id
    judged: list[float] = []

    def logits(hidden: Tensor) -> Tensor:
        first = stage.engine.counters["thinker_steps"] == 1
        rows = torch.full((len(hidden), vocab), -torch.inf)
        rows[:, 40] = math.log(1 - nothing) if first else 0.0
        rows[:, stop] = math.log(nothing) if first else -torch.inf
        return rows

    monkeypatch.setattr(stage.engine.passes.thinker, "logits", logits)
    session = stage.open(turn_detection=SemanticVad())
    monkeypatch.setattr(stage.of(session).listener, "judge", lambda c: judged.append(c) or [])
    live(stage, session, question()[: paused()])
    certainty = 0.9 if nothing == 0.9 else (1 - nothing) ** (1 / 4)
    assert judged == [pytest.approx(certainty * (1 - nothing), rel=1e-5)]
    reply = stage.of(session).replies.last
    assert reply is not None and bool(reply.text_ids) == (nothing < 0.5)
