"""The ear: what it hears depends on the sound alone, is what generate hears, and stays small."""

import json
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import soxr
from hypothesis import given, settings
from hypothesis import strategies as st
from spoken import HZ, clips, hear, kinds, noise, plain, push, said, silence, talk

from thinktalk.live.listen import Began, Ended, Listener, Paused
from thinktalk.live.turn import Detection
from thinktalk.media.mel import log_mel
from thinktalk.options import SemanticVad, ServerVad

VAD = ServerVad()


# ---- the same sound, however it was cut


@pytest.mark.parametrize("rate", [8000, 16000, 24000, 44100, 48000])
@pytest.mark.parametrize("detection", [None, VAD], ids=["push-to-talk", "vad"])
def test_pieces_change_nothing(rate: int, detection: Detection | None) -> None:
    wave = soxr.resample(talk(), HZ, rate)
    whole = hear(wave, detection, rate=rate)
    assert len(whole) > 3
    for size in (rate // 50, 2 * rate, 1023):
        pieces = hear(wave, detection, rate=rate, size=size)
        assert plain(pieces) == plain(whole), f"pieces of {size}"


@pytest.mark.parametrize("detection", [None, VAD], ids=["push-to-talk", "vad"])
def test_single_samples_change_nothing(detection: Detection | None) -> None:
    wave = np.concatenate([silence(0.05), said("Yes.")[0], silence(0.6)])
    signals = hear(wave, detection)
    assert kinds(signals).endswith("Ended")
    assert plain(hear(wave, detection, size=1)) == plain(signals)


@settings(max_examples=15, deadline=None)
@given(st.lists(st.integers(0, 8 * HZ), max_size=40), st.sampled_from([None, VAD, SemanticVad()]))
def test_any_pieces_change_nothing(cuts: list[int], detection: Detection | None) -> None:
    listener, signals = Listener(detection), []
    for start, end in pairwise([0, *sorted(cuts), len(talk())]):
        signals += listener.push(talk()[start:end], sample_rate=HZ)
    if not detection:
        signals += listener.commit()
    assert plain(signals) == plain(hear(talk(), detection))


def test_kinds_of_samples() -> None:
    pcm = np.round(talk() * 32767).astype(np.int16)
    signals = plain(hear(pcm, VAD))
    assert plain(hear(pcm.astype(np.float32) / 32768, VAD)) == signals
    strided = np.repeat(pcm.astype(np.float32) / 32768, 2)[::2]
    assert plain(hear(strided, VAD)) == signals
    assert plain(hear(strided, None, rate=24_000)) == plain(hear(pcm, None, rate=24_000))
    for piece in (pcm.tobytes(), bytearray(pcm.tobytes()), memoryview(pcm.tobytes())):
        assert plain(Listener(VAD).push(piece, sample_rate=HZ)) == signals


# ---- the same numbers as offline


@pytest.mark.parametrize("rate", [16000, 24000, 44100])
def test_mel_of_a_commit_is_that_of_the_clip(rate: int) -> None:
    wave = soxr.resample(talk(), HZ, rate)
    offline = wave if rate == HZ else soxr.resample(wave, rate, HZ)
    ((start, end, mel, _),) = clips(hear(wave, None, rate=rate, size=rate // 50))
    assert (start, end) == (0, len(offline))
    np.testing.assert_array_equal(mel, log_mel(offline, maximum="running"))


def test_mel_of_turns_is_that_of_their_clips() -> None:
    found = list(clips(hear(talk(), VAD, size=320, exact=True)))
    assert len(found) == 2
    for start, end, mel, ended in found:
        clip = talk()[start:end]
        np.testing.assert_array_equal(mel, log_mel(clip, maximum="running"))
        assert ended.whole is not None
        np.testing.assert_array_equal(ended.whole, log_mel(clip, maximum="clip"))
    assert all(ended.whole is None for *_, ended in clips(hear(talk(), VAD)))


@pytest.mark.parametrize("num_samples", [480, 31_999, 32_000, 32_001, 32_039, 32_040, 32_361])
def test_lengths_around_a_window(num_samples: int) -> None:
    """Frames that make no token (one or two in a window) are the only ones that may be missing."""
    wave = noise(3, rms=0.1)[:num_samples]
    signals = hear(wave, None, exact=True)
    ((_, end, mel, ended),) = clips(signals)
    offline = log_mel(wave, maximum="running")
    missing = offline.shape[1] - mel.shape[1]
    assert end == num_samples and missing in {0, offline.shape[1] % 200} and missing < 3
    np.testing.assert_array_equal(mel, offline[:, : mel.shape[1]])
    assert ended.whole is not None
    np.testing.assert_array_equal(ended.whole, log_mel(wave))


# ---- what the caller decides


def test_commit_and_clear_without_detection() -> None:
    listener = Listener(None)
    assert listener.commit() == []
    assert kinds(listener.push(silence(0.01), sample_rate=HZ)) == "Began"
    assert listener.commit() == []  # too short, but not lost
    listener.push(noise(1, rms=0.1), sample_rate=HZ)
    assert [s.end_s for s in listener.commit() if isinstance(s, Ended)] == [1.01]
    listener.push(talk(), sample_rate=HZ)
    listener.clear()
    assert listener.commit() == []
    signals = [*listener.push(talk(), sample_rate=HZ), *listener.commit()]
    assert kinds(signals) == "Began Ended"
    assert signals[0] == Began(1.01 + len(talk()) / HZ)
    assert next(clips(signals))[2].tobytes() == next(clips(hear(talk(), None)))[2].tobytes()


def test_commit_with_detection() -> None:
    listener, middle = Listener(VAD), round(1.5 * HZ) + 77  # while somebody speaks
    assert listener.commit() == []
    begun = listener.push(talk()[:middle], sample_rate=HZ)
    assert kinds(begun) == "Began"
    ended = listener.commit()
    ((start, end, mel, _),) = clips(begun + ended)
    assert end == middle
    np.testing.assert_array_equal(mel, log_mel(talk()[start:end], maximum="running"))
    after = listener.push(talk()[middle:], sample_rate=HZ)
    assert isinstance(after[0], Began) and after[0].start_s >= middle / HZ


def test_commit_waits_for_no_sound_inside_the_change_of_rate() -> None:
    """24 kHz, in the middle of a word: the last 40 ms are in the clip, and in no other one."""
    wave = soxr.resample(talk(), HZ, 24_000)
    listener, middle = Listener(VAD), round(1.5 * 24_000)
    signals = [*push(listener, wave[:middle], size=480, rate=24_000), *listener.commit()]
    assert listener.now_s == 1.5
    ((start, end, mel, _),) = clips(signals)
    assert end == 1.5 * HZ
    clip = soxr.resample(wave[:middle], 24_000, HZ)[start:]
    np.testing.assert_array_equal(mel, log_mel(clip, maximum="running"))


def test_commit_in_a_pause_ends_the_clip_there() -> None:
    listener = Listener(ServerVad(silence_duration_ms=5000))
    signals = listener.push(talk(), sample_rate=HZ)
    assert isinstance(signals[-1], Paused)
    (ended,) = listener.commit()
    assert isinstance(ended, Ended) and ended.end_s == signals[-1].at_s < ended.at_s


def test_clear_forgets_the_speech_before() -> None:
    listener = Listener(ServerVad(prefix_padding_ms=10_000))
    listener.push(talk()[: 4 * HZ], sample_rate=HZ)
    listener.clear()
    signals = listener.push(talk()[4 * HZ :], sample_rate=HZ)
    assert isinstance(signals[0], Began) and signals[0].start_s == 4.0


def test_detection_comes_and_goes() -> None:
    listener = Listener(None)
    signals = listener.push(talk()[: 2 * HZ], sample_rate=HZ)
    assert listener.update(VAD) == []
    signals += listener.push(talk()[2 * HZ : 4 * HZ], sample_rate=HZ)
    assert kinds(signals) == "Began Paused WentOn Paused Ended" and signals[0] == Began(0.0)
    signals = listener.push(talk()[4 * HZ : 6 * HZ], sample_rate=HZ)
    assert kinds(signals) == "Began"
    assert listener.update(None) == []
    signals += listener.push(talk()[6 * HZ :], sample_rate=HZ) + listener.commit()
    ((start, end, mel, _),) = clips(signals)
    assert end == len(talk()), "nothing is lost, nothing ends by itself"
    np.testing.assert_array_equal(mel, log_mel(talk()[start:], maximum="running"))


def test_other_settings_count_at_once() -> None:
    listener = Listener(ServerVad(silence_duration_ms=5000))
    listener.push(talk(), sample_rate=HZ)
    assert listener.update(VAD) == []
    assert kinds(listener.push(silence(0.05), sample_rate=HZ)) == "Ended"


def test_push_to_talk_loses_no_first_word() -> None:
    """The detection goes when it has seen two frames of speech, too few to tell."""
    (began,) = (s for s in hear(talk()[: 2 * HZ], VAD) if isinstance(s, Began))
    listener, two = Listener(VAD), round((began.start_s + 0.3) * HZ) + 1100
    assert listener.push(talk()[:two], sample_rate=HZ) == []
    assert listener.update(None) == [began]
    assert [s.end_s for s in listener.commit() if isinstance(s, Ended)] == [two / HZ]
    noisy = Listener(VAD)  # but without speech, what was before is forgotten
    noisy.push(noise(1, rms=0.01), sample_rate=HZ)
    assert noisy.update(None) == []
    assert noisy.push(noise(1, rms=0.01), sample_rate=HZ)[0] == Began(1.0)


def test_push_to_talk_in_a_pause_goes_on() -> None:
    listener = Listener(ServerVad(silence_duration_ms=5000))
    listener.push(talk(), sample_rate=HZ)
    assert kinds(listener.update(None)) == "WentOn"
    assert [s.end_s for s in listener.commit() if isinstance(s, Ended)] == [len(talk()) / HZ]


def test_rates_may_change() -> None:
    listener, at = Listener(None), [0, 2 * HZ, 5 * HZ, 6 * HZ, len(talk())]
    signals, parts = [], []
    for rate, (start, end) in zip((24_000, HZ, 8000, 48_000), pairwise(at), strict=True):
        part = soxr.resample(talk()[start:end], HZ, rate)
        signals += push(listener, part, size=rate // 50, rate=rate)
        parts.append(part if rate == HZ else soxr.resample(part, rate, HZ))
    ((_, _, mel, _),) = clips(signals + listener.commit())
    assert listener.now_s == pytest.approx(len(talk()) / HZ, abs=1e-3)
    np.testing.assert_array_equal(mel, log_mel(np.concatenate(parts), maximum="running"))


# ---- memory, errors, copies


def weight(state: Any) -> int:
    """Numbers held in arrays."""
    if isinstance(state, dict):
        return sum(map(weight, state.values()))
    return state.size if isinstance(state, np.ndarray) else 0


def test_memory_is_bounded() -> None:
    speech, pauses = np.resize(talk()[:HZ], 20 * HZ), np.resize(talk(), 30 * HZ)
    for detection, wave, bound_s in (
        (VAD, noise(20, rms=0.01), 0.3 + 0.2),
        (ServerVad(prefix_padding_ms=2000), noise(20, rms=0.01), 2 + 0.2),
        (None, speech, 2.1),
        (ServerVad(threshold=0.001), speech, 2.1),
        (ServerVad(silence_duration_ms=3000), pauses, 2.1 + 3),
    ):
        listener = Listener(detection)
        for start in range(0, len(wave), 8000):
            listener.push(wave[start : start + 8000], sample_rate=HZ)
            assert weight(listener.state()) < bound_s * HZ, detection


@pytest.mark.parametrize(
    ("samples", "rate", "message"),
    [
        (np.array([0, np.nan], np.float32), HZ, "NaN"),
        (np.array([0, -np.inf], np.float32), HZ, "infinite"),
        (np.array([0, 20_000], np.float32), HZ, "huge"),
        (np.zeros((2, 480), np.float32), HZ, "mono"),
        (np.zeros(480, np.float64), HZ, "float64"),
        (np.zeros(480, np.uint8), HZ, "uint8"),
        ([0.0] * 480, HZ, "list"),
        (b"abc", HZ, "3 bytes"),
        (silence(0.1), 7999, "7999"),
        (silence(0.1), 192_001, "192001"),
        (silence(0.1), float("nan"), "nan"),
        (silence(0.1), "16000", "16000"),
    ],
)
def test_what_cannot_be_heard(samples: Any, rate: Any, message: str) -> None:
    listener = Listener(VAD)
    signals = listener.push(talk()[:30_001], sample_rate=HZ)
    with pytest.raises(ValueError, match=message):
        listener.push(samples, sample_rate=rate)
    assert listener.push(np.zeros(0, np.int16), sample_rate=HZ) == []
    signals += listener.push(talk()[30_001:], sample_rate=HZ)
    assert plain(signals) == plain(hear(talk(), VAD)), "a refused piece leaves no trace"


def stored(state: Any, arrays: list[np.ndarray]) -> Any:
    """A state as JSON, its arrays apart: an array becomes the list of its number."""
    if isinstance(state, dict):
        return {name: stored(inner, arrays) for name, inner in state.items()}
    if isinstance(state, np.ndarray):
        arrays.append(state)
        return [len(arrays) - 1]
    return state


def loaded(state: Any, arrays: list[np.ndarray]) -> Any:
    if isinstance(state, dict):
        return {name: loaded(inner, arrays) for name, inner in state.items()}
    return arrays[state[0]] if isinstance(state, list) else state


@settings(max_examples=12, deadline=None)
@given(
    st.integers(0, 8 * HZ),
    st.sampled_from([None, VAD, SemanticVad("high", early_ms=100)]),
    st.booleans(),
)
def test_a_restored_listener_goes_on_bit_equal(
    cut_at: int, detection: Detection | None, exact: bool
) -> None:
    listener, arrays = Listener(detection, exact=exact), []
    head = listener.push(talk()[:cut_at], sample_rate=HZ)
    text = json.dumps(stored(listener.state(), arrays), allow_nan=False)
    arrays = [array.copy() for array in arrays]
    rest = listener.push(talk()[cut_at:], sample_rate=HZ) + listener.commit()
    twin = Listener.from_state(loaded(json.loads(text), arrays))
    assert twin.now_s == min(cut_at, len(talk())) / HZ
    assert plain(twin.push(talk()[cut_at:], sample_rate=HZ) + twin.commit()) == plain(rest)
    whole = Listener(detection, exact=exact)
    assert plain(whole.push(talk(), sample_rate=HZ) + whole.commit()) == plain(head + rest)


def test_a_pause_is_restored_too() -> None:
    at_s = [s.at_s for s in hear(talk(), VAD) if isinstance(s, Paused)][1]  # the turn's end
    for cut_at in (round(at_s * HZ), round(at_s * HZ) + 1000):
        listener = Listener(VAD)
        assert isinstance(listener.push(talk()[:cut_at], sample_rate=HZ)[-1], Paused)
        twin = Listener.from_state(listener.state())
        rest = listener.push(talk()[cut_at:], sample_rate=HZ)
        assert plain(twin.push(talk()[cut_at:], sample_rate=HZ)) == plain(rest)
