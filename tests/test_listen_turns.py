"""Turns of real speech: where they start and end, what a pause is, what noise is not."""

import numpy as np
import pytest
from spoken import HZ, bits, clips, hear, kinds, noise, said, silence, talk

from thinktalk.live.listen import Began, Ended, Heard, Listener, Paused
from thinktalk.media.mel import log_mel
from thinktalk.options import SemanticVad, ServerVad

VAD = ServerVad()
QUESTIONS = ("What colour is the circle?", "Six.", "No.", "Please count the little red squares.")
VOICES = ("slt", "rms", "awb", "kal16")
START_LATE_MS, START_EARLY_MS = 350, 150  # of `Began`, after and before the first phone starts
STOP_EARLY_MS, STOP_LATE_MS = 50, 250  # of `Ended`, around the last phone's end + the silence


@pytest.mark.parametrize("level_db", [-20, -35])
@pytest.mark.parametrize("noise_db", [-60, -10])
def test_speech_starts_and_stops_where_it_does(level_db: int, noise_db: int) -> None:
    """noise_db: against the speech. Nothing begins in a second of this noise before the speech."""
    for text in QUESTIONS:
        for voice in VOICES:
            speech, first_s, last_s = said(text, voice)
            speech = speech * np.float32(10 ** (level_db / 20) / np.sqrt(np.mean(speech**2)))
            wave = np.concatenate([silence(1), speech, silence(1.2)])
            rms = 10 ** ((level_db + noise_db) / 20)
            wave += noise(len(wave) / HZ, rms=rms, seed=len(text))
            listener, heard = Listener(VAD), []
            for start in range(0, len(wave), 320):
                signals = listener.push(wave[start : start + 320], sample_rate=HZ)
                heard += [(listener.now_s, signal) for signal in signals]
            case = (text, voice, [(time_s, type(signal).__name__) for time_s, signal in heard])
            began = [pair for pair in heard if isinstance(pair[1], Began)]
            ended = [signal for _, signal in heard if isinstance(signal, Ended)]
            assert len(began) == len(ended) == 1, case
            late_ms = 1000 * (began[0][0] - 1 - first_s)
            assert -START_EARLY_MS <= late_ms <= START_LATE_MS, case
            assert began[0][1].start_s <= 1 + first_s, "the padding holds the first phone"
            after_ms = 1000 * (ended[0].at_s - 1 - last_s) - VAD.silence_duration_ms
            assert -STOP_EARLY_MS <= after_ms <= STOP_LATE_MS, case


@pytest.mark.parametrize("level_db", [-20, -30, -45])
def test_noise_and_clicks_are_no_speech(level_db: int) -> None:
    wave = noise(20, rms=10 ** (level_db / 20))
    rng = np.random.default_rng(level_db + 100)
    for start in range(0, len(wave) - HZ, HZ // 2):
        size = int(rng.integers(20, HZ // 10))
        wave[start : start + size] += 0.5 * rng.standard_normal(size) * np.geomspace(1, 0.01, size)
    assert hear(wave.clip(-1, 1), VAD) == []


def test_a_pause_that_is_not_the_end() -> None:
    signals = hear(talk(), VAD)
    turn = "Began Paused WentOn Paused Ended"
    assert kinds(signals) == f"{turn} Began Paused Ended", kinds(signals)
    paused, ended = (s for s in signals[-2:] if isinstance(s, Paused | Ended))
    assert isinstance(paused, Paused) and isinstance(ended, Ended)
    assert ended.end_s == paused.at_s and ended.at_s > ended.end_s
    assert bits(ended.tail) == bits(paused.tail) and paused.tail_start_s == ended.tail_start_s


def test_tail_of_a_pause_is_the_clip_so_far() -> None:
    start_s, windows, pauses = 0.0, 0, 0
    for signal in hear(talk(), VAD):
        if isinstance(signal, Began):
            start_s, windows = signal.start_s, 0
        windows += isinstance(signal, Heard)
        if isinstance(signal, Paused):
            pauses += 1
            clip = talk()[round(start_s * HZ) : round(signal.at_s * HZ)]
            offline = log_mel(clip, maximum="running")[:, 200 * windows :]
            assert signal.tail is not None
            np.testing.assert_array_equal(signal.tail, offline[:, : signal.tail.shape[1]])
    assert pauses == 3


def test_turns_share_no_sound() -> None:
    """With ten seconds of padding the second turn starts where the first one has ended."""
    (_, end, *_), (start, *_) = clips(hear(talk(), ServerVad(prefix_padding_ms=10_000)))
    assert start == end
    (first, *_), _ = clips(hear(talk(), ServerVad(prefix_padding_ms=0)))
    (padded, *_), _ = clips(hear(talk(), ServerVad(prefix_padding_ms=300)))
    assert first - padded == 0.3 * HZ


def test_semantic_turns_follow_the_judgement() -> None:
    assert kinds(hear(talk(), SemanticVad())) == "Began Paused WentOn Paused WentOn Paused"
    for size in (320, 5000):
        listener, signals = Listener(SemanticVad()), []
        for start in range(0, len(talk()), size):
            for signal in listener.push(talk()[start : start + size], sample_rate=HZ):
                signals.append(signal)
                if isinstance(signal, Paused):  # only the last pause sounds complete
                    signals += listener.judge(1.0 if signal.at_s > 6 else 0.1)
        assert kinds(signals) == "Began Paused WentOn Paused WentOn Paused Ended"
    silent_s = signals[-1].at_s - signals[-2].at_s  # type: ignore[union-attr]
    assert silent_s <= 0.3 - 0.2 + 5000 / HZ
