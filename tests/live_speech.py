"""Speech for live sessions, and how it is pushed: for the tests of turns."""

from functools import cache

import numpy as np
from live_stage import Stage, in_order
from spoken import HZ, said, silence

from thinktalk.live import api
from thinktalk.live.session import LiveSession
from thinktalk.options import ServerVad

VAD = ServerVad()
LATE = ServerVad(early_ms=500)  # no thought before the pause that ends a turn
PAUSE_S = 0.4  # behind the last phone: a pause is noted by then, and no turn over
CHUNK = HZ // 50


def live(
    stage: Stage,
    session: LiveSession,
    wave: np.ndarray,
    *,
    ticks: int | None = None,
    size: int = CHUNK,
) -> list[api.Event]:
    """Sound in real time, so many ticks (or as many as help) after every piece; what was told."""
    events = []
    for start in range(0, len(wave), size):
        session.push_audio(wave[start : start + size], sample_rate=HZ)
        stage.read(session)
        stage.run(ticks)
        events += stage.so_far(session)
    stage.check(session)
    assert in_order(events)
    return events


@cache
def question() -> np.ndarray:
    """Half a second of silence, speech, a second of silence."""
    wave, _, end_s = said("What colour is the big circle?")
    return np.concatenate([silence(0.5), wave[: round(end_s * HZ)], silence(1.0)])


@cache
def paused() -> int:
    """The sample of the question where its pause is noted, but not over."""
    return len(question()) - HZ + round(PAUSE_S * HZ)


@cache
def interjection() -> np.ndarray:
    return said("Wait a moment!")[0]
