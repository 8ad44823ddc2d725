"""What is not spoken: replies that are only written, and function calls. Counted in Talker steps
and voice blocks, which cost most of the time of a reply."""

from pathlib import Path

import numpy as np
import pytest
from live_stage import CALL, Stage, of_kind

from thinktalk.live import api
from thinktalk.live.session import LiveSession


def spent(stage: Stage) -> tuple[int, int]:
    """Steps of the Talker and blocks of the voice so far."""
    return stage.engine.counters["talker_steps"], stage.engine.counters["voice_blocks"]


def ask(session: LiveSession, words: str, *, speak: bool = True) -> None:
    session.push_text(words)
    session.commit(respond=False)
    session.respond(speak=speak)


def test_a_written_reply_in_a_spoken_conversation(stage: Stage) -> None:
    """It costs no speech, and what follows is what would have followed a spoken one."""
    following = []
    for speak in (True, False):
        session = stage.open()
        before = spent(stage)
        ask(session, "One?", speak=speak)
        said = stage.reply(session)
        assert said.text_ids and (spent(stage) != before) == (len(said.wave) > 0) == speak
        assert (said.done.usage.output_audio > 0) == speak
        stage.check(session)
        ask(session, "Two?")
        following.append(stage.reply(session))
    assert following[0].ids == following[1].ids and len(following[1].wave)
    assert np.array_equal(following[0].wave, following[1].wave)


def test_a_session_falls_silent_for_a_while(stage: Stage, tmp_path: Path) -> None:
    session = stage.open()
    session.update(speak=False)
    before = spent(stage)
    ask(session, "One?")
    [said] = stage.replies(stage.told(session))
    assert said.text_ids and not len(said.wave) and spent(stage) == before
    session.save(tmp_path)
    stage.told(session)
    for other in (session, session.fork(), stage.engine.resume(tmp_path)):
        other.update(speak=True)
        ask(other, "Two?")
        [said] = stage.replies(stage.told(other))
        assert len(said.wave)
        stage.check(other)


def test_a_session_that_was_opened_silent_stays_so(stage: Stage) -> None:
    session = stage.open(speak=False)
    session.update(speak=True)
    stage.failure(session, "invalid_value")
    ask(session, "One?", speak=True)
    assert not len(stage.reply(session).wave)


def test_a_function_call_is_not_spoken(stage: Stage) -> None:
    session = stage.open()
    before = spent(stage)
    session.say(f"\n {CALL}")
    events = stage.told(session)
    assert of_kind(events, api.ToolCall) and not of_kind(events, api.AudioDelta)
    assert spent(stage) == before
    [done] = of_kind(events, api.ResponseDone)
    session.truncate(done.item, 0)  # as the user cuts in: the call was made all the same
    [cut] = stage.told(session)
    assert isinstance(cut, api.Truncated) and cut.text == ""
    assert f"\n {CALL}<|im_end|>" in stage.text_of(session)
    stage.check(session)


@pytest.mark.parametrize("words", ["Wait. ", "If a < b, wait: <tool_call> is a tag, 1 <"])
def test_words_before_a_call_are_spoken_as_if_it_were_not_there(stage: Stage, words: str) -> None:
    replies = []
    for text in (words, words + CALL):
        session = stage.open(max_codec_ids=60)
        session.say(text)
        [said] = stage.replies(stage.told(session))
        replies.append(said)
    assert len(replies[0].wave) and replies[0].codec_ids == replies[1].codec_ids
    assert np.array_equal(replies[0].wave, replies[1].wave)


def test_ordinary_words_do_not_wait(stage: Stage) -> None:
    """The Talker begins with the first id that was fed back, as if there were no calls."""
    session = stage.open()
    session.say("Wait.")
    while not spent(stage)[0]:
        stage.run(1)
    assert stage.engine.counters["thinker_steps"] == 2


def test_cut_in_the_words_before_a_call(stage: Stage) -> None:
    """The words that nobody heard are forgotten, the call that was made is not."""
    session = stage.open(max_codec_ids=60)
    session.say(f"Wait a little while. {CALL}")
    [done] = of_kind(stage.told(session), api.ResponseDone)
    session.truncate(done.item, done.audio_ms // 2)
    [cut] = stage.told(session)
    assert isinstance(cut, api.Truncated) and "Wait a little while.".startswith(cut.text)
    assert cut.text and f"assistant\n{cut.text}" in stage.text_of(session)
    assert "while" not in stage.text_of(session) and CALL in stage.text_of(session)
    stage.check(session)


def test_a_call_that_was_interrupted_is_forgotten(stage: Stage) -> None:
    session = stage.open()
    session.say(CALL)
    stage.run(10)
    session.cancel()
    assert not of_kind(stage.told(session), api.ToolCall)
    assert stage.text_of(session) == "<|im_start|>assistant\n<|im_end|>\n"
