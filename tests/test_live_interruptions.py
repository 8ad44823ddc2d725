"""Speech during a reply: it stops at once, and the conversation knows what was heard of it."""

import numpy as np
import pytest
from live_speech import CHUNK, LATE, VAD, interjection, live, question
from live_stage import Stage, in_order, names, of_kind
from spoken import HZ, silence

from thinktalk.live import api
from thinktalk.options import ServerVad


@pytest.mark.parametrize("begun", [0.02, 0.2, 0.6])
def test_speech_stops_a_reply_within_one_tick(stage: Stage, begun: float) -> None:
    """At different stages of it; the conversation ends it where the user can have heard it to."""
    session = stage.open(turn_detection=LATE, max_text_tokens=30, max_codec_ids=400)
    live(stage, session, question()[: -round(0.3 * HZ)], ticks=1)
    live(stage, session, silence(begun), ticks=1)
    reply = stage.of(session).replies.current
    assert reply is not None
    events, wave = [], interjection()
    for start in range(0, len(wave), CHUNK):
        session.push_audio(wave[start : start + CHUNK], sample_rate=HZ)
        stage.run(1)
        new = stage.so_far(session)
        events += new
        if of_kind(new, api.SpeechStarted):
            break
    assert names(new)[-3:] == ["SpeechStarted", "ResponseDone", "Truncated"]
    assert [event.generation for event in new[-3:]] == [1, 1, 1] and in_order(events)
    [done], [cut] = of_kind(new, api.ResponseDone), of_kind(new, api.Truncated)
    assert (done.status, done.reason) == ("cancelled", "turn_detected")
    heard_from_s, now_s = reply.heard_from_s, stage.of(session).listener.now_s
    since_ms = 0 if heard_from_s is None else round(1000 * (now_s - heard_from_s))
    assert cut.audio_ms == min(done.audio_ms, since_ms)
    item = next(i for i in stage.memory(session).items if i.id == done.item)
    assert item.num_ids < len(reply.text_ids) + 20 and done.text.startswith(cut.text)
    later = stage.told(session)
    assert not of_kind(later, api.AudioDelta) and not of_kind(later, api.TextDelta)
    stage.check(session)


def test_sound_that_nobody_took_is_not_heard(stage: Stage) -> None:
    """What waits in the session when it is cut in on is thrown away."""
    session = stage.open(turn_detection=LATE, max_text_tokens=30, max_codec_ids=200)
    for start in range(0, len(question()), CHUNK):
        session.push_audio(question()[start : start + CHUNK], sample_rate=HZ)
        stage.run(1)
    for start in range(0, len(interjection()), CHUNK):
        session.push_audio(interjection()[start : start + CHUNK], sample_rate=HZ)
        stage.run(1)
    events = stage.so_far(session)
    [done, *_] = of_kind(events, api.ResponseDone)
    assert done.status == "cancelled" and done.audio_ms == 0
    assert not of_kind(events, api.AudioDelta) and in_order(events)


def test_speech_stops_what_still_plays(stage: Stage) -> None:
    """The reply was ready long ago, but at most so much of it can have been heard."""
    session = stage.open(turn_detection=VAD, max_text_tokens=30, max_codec_ids=80)
    [reply] = stage.replies(live(stage, session, question()))
    assert reply.done.audio_ms == 1600 and reply.done.generation == 0
    events = live(stage, session, interjection())
    [started, cut] = events
    assert isinstance(started, api.SpeechStarted) and isinstance(cut, api.Truncated)
    assert cut.item == reply.done.item and cut.generation == started.generation == 1
    assert 500 < cut.audio_ms < 1500 and reply.text.startswith(cut.text) != (cut.text == "")
    assert len(cut.text) < len(reply.text)


def test_what_was_heard_to_its_end_is_left_alone(stage: Stage) -> None:
    session = stage.open(turn_detection=VAD, max_codec_ids=20)
    [reply] = stage.replies(live(stage, session, question()))
    assert reply.done.audio_ms == 400
    events = live(stage, session, np.concatenate([silence(1), interjection()]))
    assert names(events) == ["SpeechStarted"] and events[0].generation == 0


def test_a_reply_that_may_not_be_interrupted(stage: Stage) -> None:
    """The second turn's reply waits for the end of the first."""
    detection = ServerVad(interrupt_response=False, early_ms=500)
    session = stage.open(turn_detection=detection, max_text_tokens=12, max_codec_ids=60)
    wave = np.concatenate([question(), question()])
    events = live(stage, session, wave, ticks=1, size=4 * CHUNK) + stage.told(session)
    first, second = stage.replies(events)
    assert [len(said.codec_ids) for said in (first, second)] == [60, 60]
    told = names(
        events, without=[api.SpeechStarted, api.SpeechStopped, api.TextDelta, api.AudioDelta]
    )
    turn = ["TurnCommitted", "ResponseStarted"]
    assert told == [*turn, "TurnCommitted", "ResponseDone", "ResponseStarted", "ResponseDone"]
    assert {event.generation for event in events} == {0}
