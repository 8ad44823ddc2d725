"""The detector's network, and turns as they follow from probabilities and from real speech."""

import subprocess
import sys
from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from silero_vad import load_silero_vad

from thinktalk.live.turn import FRAME_SAMPLES, HZ, LONGEST_PAUSE_MS, Detection, Turn, silero
from thinktalk.options import SemanticVad, ServerVad
from thinktalk.playroom.speech import flite

FRAME_MS = 1000 * FRAME_SAMPLES / HZ
LOUD, BETWEEN, SILENT = 0.9, 0.4, 0.1  # threshold 0.5, hysteresis 0.15


def marks(turn: Turn, probabilities: list[float]) -> list[tuple[str, int]]:
    """(mark, number of the frame after which it came)."""
    found = []
    for number, probability in enumerate(probabilities, start=1):
        mark = turn.follow(probability)
        if mark:
            found.append((mark, number))
    return found


def frames(milliseconds: float) -> int:
    """As many frames as are at least that long."""
    return int(np.ceil(milliseconds / FRAME_MS))


@cache
def sentence(voice: str = "slt", text: str = "What colour is the circle?") -> np.ndarray:
    """Half a second of silence, flite's speech (16 kHz), a second of silence."""
    wave, _ = flite(text, voice=voice, timed=False)
    return np.pad(wave, (HZ // 2, HZ)).astype(np.float32)


def cut(wave: np.ndarray) -> np.ndarray:
    return wave[: len(wave) // FRAME_SAMPLES * FRAME_SAMPLES].reshape(-1, FRAME_SAMPLES)


# ---- the network


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # inside of silero_vad
def test_network_equals_the_scripted_module() -> None:
    module: Any = load_silero_vad()
    memory = silero().start()
    rng = np.random.default_rng(0)
    wave = sentence() + rng.normal(0, 1e-3, len(sentence())).astype(np.float32)
    ours, theirs = [], []
    for frame in cut(wave):
        probability, memory = silero().listen(frame, memory)
        ours.append(probability)
        with torch.no_grad():
            theirs.append(float(module(torch.from_numpy(frame), HZ)))
    np.testing.assert_allclose(ours, theirs, atol=1e-5, rtol=0)
    assert max(ours) > 0.95 and ours[-1] < 0.05  # it is a test of speech


def test_streams_share_the_network_without_hearing_each_other() -> None:
    first, second = cut(sentence("slt")), cut(sentence("rms"))
    alone, memory = [], silero().start()
    for frame in first:
        probability, memory = silero().listen(frame, memory)
        alone.append(probability)
    mixed, one, other = [], silero().start(), silero().start()
    buffer = np.zeros(FRAME_SAMPLES, np.float32)  # overwritten: nothing looks back at it
    for frame, foreign in zip(first, np.resize(second, first.shape), strict=True):
        buffer[:] = frame
        probability, one = silero().listen(buffer, one)
        buffer[:] = foreign
        _, other = silero().listen(buffer, other)
        mixed.append(probability)
    assert mixed == alone


def test_loading_leaves_the_threads_of_torch_alone() -> None:
    code = (
        "import sys, torch; torch.set_num_threads(2); from thinktalk.live.turn import silero;"
        " silero(); print(torch.get_num_threads(), 'silero_vad' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["2", "False"], done.stdout
    assert not done.stderr


# ---- turns from probabilities


def test_a_turn() -> None:
    turn = Turn(ServerVad(silence_duration_ms=500, early_ms=200))
    said = marks(turn, [SILENT] * 10 + [LOUD] * 20 + [SILENT] * 40)
    assert said == [("began", 13), ("paused", 30 + frames(200)), ("ended", 30 + frames(500))]


def test_begin_reports_where_the_speech_started() -> None:
    turn = Turn(ServerVad(), position=77)
    assert marks(turn, [SILENT] * 10 + [LOUD] * 3) == [("began", 13)]
    assert turn.speech_start == 77 + 10 * FRAME_SAMPLES


@pytest.mark.parametrize("click", [[LOUD], [LOUD, LOUD], [LOUD, BETWEEN], [BETWEEN] * 50])
def test_clicks_begin_nothing(click: list[float]) -> None:
    assert not marks(Turn(ServerVad()), ([SILENT] * 5 + click) * 20)


@pytest.mark.parametrize("click", [[LOUD], [LOUD, LOUD]])
def test_clicks_in_a_pause_change_nothing(click: list[float]) -> None:
    end = frames(500)
    silence = [SILENT] * end
    silence[10 : 10 + len(click)] = click
    said = marks(Turn(ServerVad()), [LOUD] * 10 + silence)
    assert said == [("began", 3), ("paused", 10 + frames(200)), ("ended", 10 + end)]


def test_a_sound_at_the_end_of_the_pause_is_waited_for() -> None:
    end = frames(500)
    silence = [SILENT] * (end - 1)
    begun = [("began", 3), ("paused", 10 + frames(200))]
    speech = marks(Turn(ServerVad()), [LOUD] * 10 + silence + [LOUD] * 3)
    assert speech == [*begun, ("went_on", 10 + end + 2)]
    click = marks(Turn(ServerVad()), [LOUD] * 10 + silence + [LOUD] * 2 + [SILENT])
    assert click == [*begun, ("ended", 10 + end + 2)]


def test_hysteresis() -> None:
    """Between the thresholds speech goes on, and so does silence."""
    turn = Turn(ServerVad())
    assert marks(turn, [LOUD] + [BETWEEN] * 100) == [("began", 3)]
    assert marks(turn, [SILENT] + [BETWEEN] * 20)[-1] == ("ended", frames(500))


def test_threshold() -> None:
    assert marks(Turn(ServerVad(threshold=0.3)), [BETWEEN] * 3) == [("began", 3)]
    assert not marks(Turn(ServerVad(threshold=0.95)), [LOUD] * 30)
    tiny = Turn(ServerVad(threshold=0.001))  # below the lowest lower threshold
    assert marks(tiny, [0.005] * 3) == [("began", 3)]
    assert not marks(tiny, [0.005] * 30)


@pytest.mark.parametrize("early_ms", [500, 10_000])
def test_nothing_is_early_at_the_end(early_ms: int) -> None:
    said = marks(Turn(ServerVad(early_ms=early_ms)), [LOUD] * 5 + [SILENT] * 30)
    assert [mark for mark, _ in said] == ["began", "ended"]


def test_shortest_times() -> None:
    said = marks(Turn(ServerVad(early_ms=0, silence_duration_ms=1)), [LOUD] * 5 + [SILENT])
    assert said == [("began", 3), ("ended", 6)]
    said = marks(Turn(ServerVad(early_ms=0)), [LOUD] * 5 + [SILENT])
    assert said == [("began", 3), ("paused", 6)]


def test_speaking_from_the_start() -> None:
    assert marks(Turn(ServerVad(), speaking=True), [SILENT] * 16)[-1] == ("ended", frames(500))


# ---- the semantic mode


@pytest.mark.parametrize("eagerness", ["low", "medium", "high", "auto"])
def test_eagerness_sets_the_longest_pause(eagerness: str) -> None:
    longest_ms = {"low": 8000, "medium": 4000, "high": 2000, "auto": 4000}[eagerness]
    turn = Turn(SemanticVad(eagerness=eagerness))  # type: ignore[arg-type]
    said = marks(turn, [LOUD] * 3 + [SILENT] * 300)
    assert said[1:] == [("paused", 3 + frames(200)), ("ended", 3 + frames(longest_ms))]


@pytest.mark.parametrize(
    ("completeness", "allowed_ms"), [(0.0, 4000), (0.5, (4000 * 300) ** 0.5), (1.0, 300)]
)
def test_completeness_shortens_the_pause(completeness: float, allowed_ms: float) -> None:
    turn = Turn(SemanticVad())
    marks(turn, [LOUD] * 3 + [SILENT] * frames(200))
    assert turn.judge(completeness) is None  # 224 ms
    said = marks(turn, [SILENT] * 300)
    assert said == [("ended", frames(allowed_ms) - frames(200))]


def test_a_late_judgement_ends_the_turn_at_once() -> None:
    turn = Turn(SemanticVad())
    marks(turn, [LOUD] * 3 + [SILENT] * 40)
    assert turn.judge(1.0) == "ended"
    assert turn.judge(1.0) is None
    assert marks(turn, [SILENT] * 200 + [LOUD] * 3) == [("began", 203)]


def test_a_judgement_is_of_one_pause() -> None:
    turn = Turn(SemanticVad(early_ms=400))
    marks(turn, [LOUD] * 3 + [SILENT] * frames(400))
    turn.judge(0.9)
    assert marks(turn, [LOUD] * 3) == [("went_on", 3)]
    assert turn.judge(1.0) is None  # too late: speech has gone on
    said = marks(turn, [SILENT] * 200)
    assert said == [("paused", frames(400)), ("ended", frames(4000))]


def test_a_judgement_does_not_cut_off_new_speech() -> None:
    turn = Turn(SemanticVad())
    marks(turn, [LOUD] * 3 + [SILENT] * 40 + [LOUD])
    assert turn.judge(1.0) is None
    assert marks(turn, [LOUD] * 2) == [("went_on", 2)]


def test_pauses_by_time_are_not_judged() -> None:
    turn = Turn(ServerVad(silence_duration_ms=2000))
    marks(turn, [LOUD] * 3 + [SILENT] * 40)
    assert turn.judge(1.0) is None
    assert marks(turn, [SILENT] * 40) == [("ended", frames(2000) - 40)]


def test_new_settings_count_at_once() -> None:
    turn = Turn(SemanticVad(eagerness="low"))
    marks(turn, [LOUD] * 3 + [SILENT] * 50)
    turn.detection = ServerVad()
    assert marks(turn, [SILENT]) == [("ended", 1)]


# ---- any probabilities

PROBABILITIES = st.lists(st.sampled_from([LOUD, BETWEEN, SILENT, 0.5, 0.35]), max_size=400)
DETECTIONS = st.builds(
    ServerVad,
    threshold=st.sampled_from([0.2, 0.5, 0.8]),
    silence_duration_ms=st.integers(0, 1000),
    early_ms=st.integers(0, 1000),
) | st.builds(SemanticVad, st.sampled_from(list(LONGEST_PAUSE_MS)), early_ms=st.integers(0, 3000))
NEXT = {None: "began", "began": "paused ended", "paused": "went_on ended", "ended": "began"}
NEXT["went_on"] = NEXT["began"]


@settings(max_examples=200, deadline=None)
@given(PROBABILITIES, DETECTIONS, st.integers(0, 400))
def test_marks_come_in_order_and_state_is_all(
    probabilities: list[float], detection: Detection, cut_at: int
) -> None:
    turn = Turn(detection)
    said = marks(turn, probabilities)
    before = None
    for mark, _ in said:
        assert mark in NEXT[before].split(), said
        before = mark
    first = Turn(detection)
    head = marks(first, probabilities[:cut_at])
    second = Turn.from_state(first.state(), detection=replace(detection))
    tail = marks(second, probabilities[cut_at:])
    assert head + [(mark, number + cut_at) for mark, number in tail] == said
    assert str(second.state()) == str(turn.state())
