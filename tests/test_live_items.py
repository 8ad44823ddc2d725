"""Commands that change a conversation, and those that transcribe: events, errors and effect."""

import numpy as np
import pytest
from live_stage import Stage, answered, load, names, of_kind, push
from omni_cases import sound

import thinktalk
from thinktalk.live import api, sessions
from thinktalk.live.session import LiveSession
from thinktalk.options import Sampling, ServerVad


def test_truncate(stage: Stage) -> None:
    session = stage.open(max_codec_ids=50)
    session.say("The quick brown fox jumps over the lazy dog.")
    done = stage.reply(session).done
    assert done.audio_ms == 1000
    stage.memory(session).items[-1].speech_ms = 1000  # as if the speech were complete
    for audio_ms, text in ((700, "The quick brown fox jumps over"), (450, "The quick brown fox")):
        session.truncate(done.item, audio_ms)
        [cut] = stage.told(session)
        assert cut == api.Truncated(session.id, 0, done.item, audio_ms, text)
        assert stage.text_of(session) == f"<|im_start|>assistant\n{text}<|im_end|>\n"
        stage.check(session)
    session.truncate(done.item, 0)
    stage.told(session)
    assert stage.text_of(session) == "<|im_start|>assistant\n<|im_end|>\n"


def test_what_cannot_be_truncated(stage: Stage, session: LiveSession) -> None:
    done = answered(stage, session)
    session.truncate(done.item, done.audio_ms + 1)
    assert stage.failure(session, "invalid_value").param == "audio_end_ms"
    session.truncate(done.item, -1)
    stage.failure(session, "invalid_value")
    session.truncate("nobody", 0)
    stage.failure(session, "item_not_found")
    for role in ("user", "assistant"):
        item = session.add_message({"role": role, "content": "Words."})
        stage.told(session)
        session.truncate(item, 0)
        assert stage.failure(session, "invalid_value").param == "item_id"
    silent = stage.open(speak=False)
    item = answered(stage, silent).item
    silent.truncate(item, 0)
    stage.failure(silent, "invalid_value")
    session.say("More and more words.")
    stage.run(3)
    current = stage.of(session).replies.current
    assert current is not None
    session.truncate(current.item.id, 0)
    session.delete(current.item.id)
    failed = of_kind(stage.told(session), api.Failed)
    assert [f.code for f in failed] == ["invalid_value"] * 2


def test_truncate_one_reply_while_another_goes_on(stage: Stage) -> None:
    """Its place in the caches is behind what is cut: it must not notice, and all follow later."""
    replies = []
    for cuts in (False, True):
        session = stage.open(max_text_tokens=10, max_codec_ids=26)
        first = answered(stage, session)
        session.push_text("And then?")
        session.commit(item="turn")
        stage.run(5)
        if cuts:
            session.truncate(first.item, 100)
            session.delete("turn")
        replies.append(stage.replies(stage.told(session))[-1])
        stage.check(session)
    assert replies[0].ids == replies[1].ids
    assert [item.id for item in stage.memory(session).items].count("turn") == 0


def test_delete(stage: Stage, session: LiveSession) -> None:
    item = session.add_message({"role": "user", "content": "Words."})
    session.push_text("Open.")
    session.delete(item)
    session.delete(item)
    stage.run(1)
    draft = stage.of(session).draft.item
    assert draft is not None
    session.delete(draft.id)
    told = stage.told(session)
    assert names(told) == ["TurnCommitted", "ItemDeleted", "Failed", "Failed"]
    assert [f.code for f in of_kind(told, api.Failed)] == ["item_not_found", "invalid_value"]
    session.delete("system")
    stage.failure(session, "item_not_found")


def test_update(stage: Stage, session: LiveSession) -> None:
    """Takes effect with the next reply, or the next sound."""
    first = answered(stage, session)
    session.update(voice="Ethan", text=Sampling(temperature=1.0), max_codec_ids=3)
    session.push_text("And?")
    session.commit()
    told = stage.told(session)
    assert names(told)[0] == "Updated" and stage.replies(told)[0].codec_ids[2:] != []
    assert session.settings.voice == "Ethan" and session.settings.max_codec_ids == 3
    assert of_kind(told, api.Updated)[0].settings == session.settings
    assert len(stage.replies(told)[0].codec_ids) == 3 and first.audio_ms == 280
    session.update(system="Other.", tools=())
    assert names(stage.told(session)) == ["Updated"]
    session.update(turn_detection=ServerVad())
    push(session, np.zeros(16_000, np.float32), size=320)
    assert names(stage.told(session)) == ["Updated"]
    session.commit()
    stage.failure(session, "input_audio_buffer_commit_empty")


BAD = [
    {"voice": "Nobody"}, {"nonsense": 1}, {"max_text_tokens": 0},
    {"max_codec_ids": "many"}, {"camera_fps": 1000.0}, {"system": "x" * 20_000},
]  # fmt: skip


@pytest.mark.parametrize("changes", BAD)
def test_wrong_settings(stage: Stage, session: LiveSession, changes: dict) -> None:
    before = session.settings
    session.update(**changes)
    assert stage.failure(session, "invalid_value").param == next(iter(changes))
    assert session.settings == before
    if "speak" not in changes:
        with pytest.raises((ValueError, TypeError)):
            stage.engine.open(**changes)


def test_transcribe(stage: Stage, session: LiveSession, monkeypatch) -> None:
    """A reply beside the conversation, as generate gives it, while the session goes on."""
    monkeypatch.setattr(sessions, "MAX_TRANSCRIPT_TOKENS", 9)
    system, request = sessions.TRANSCRIPTION
    push(session, sound(2.4))
    session.commit(item="spoken")
    session.transcribe("spoken")
    events = stage.told(session)
    pieces = of_kind(events, api.InputTranscript)
    parts = [{"type": "audio", "audio": sound(2.4)}, {"type": "text", "text": request}]
    talk = [{"role": "system", "content": system}, {"role": "user", "content": parts}]
    answer = thinktalk.generate(stage.model, talk, speak=False, max_text_tokens=9)
    assert {piece.item for piece in pieces} == {"spoken"}
    assert "".join(piece.text for piece in pieces if not piece.done) == answer.text
    assert pieces[-1] == api.InputTranscript(session.id, 0, "spoken", answer.text, True)
    assert len(stage.replies(events)) == 1
    assert len(stage.memory(session).items) == 3 and len(stage.engine.conversations) == 1


def test_what_cannot_be_transcribed(stage: Stage, session: LiveSession) -> None:
    session.push_text("Words.")
    session.commit(item="words", respond=False)
    session.transcribe("words")
    session.transcribe("nobody")
    push(session, sound(2.4))
    stage.run(1)
    draft = stage.of(session).draft.item
    assert draft is not None
    session.transcribe(draft.id)
    failed = of_kind(stage.told(session), api.Failed)
    assert [f.code for f in failed] == ["item_not_found"] * 3


def test_more_transcriptions_than_slots(tiny_checkpoint, monkeypatch) -> None:
    monkeypatch.setattr(sessions, "MAX_TRANSCRIPT_TOKENS", 3)
    stage = Stage(load(tiny_checkpoint("7b")), max_sessions=1)
    session = stage.open()
    for n in range(5):
        push(session, sound(0.2 + n / 10))
        session.commit(item=str(n), respond=False)
        session.transcribe(str(n))
    session.respond()
    events = stage.told(session)
    done = [e.item for e in of_kind(events, api.InputTranscript) if e.done]
    assert sorted(done) == list("01234") and len(stage.replies(events)) == 1
    session.transcribe("0")
    session.close()
    stage.close()
