"""Scores against cases worked by hand, and against jiwer."""

import jiwer
import numpy as np
import pytest

from thinktalk.eval.metrics import (
    exact,
    normalise,
    pitch,
    pitch_agreement,
    word_error_rate,
    word_errors,
)

RATE = 24_000


def buzz(hz: float, seconds: float = 0.6) -> np.ndarray:
    """A voice-like tone: ten harmonics of falling strength."""
    t = np.arange(int(seconds * RATE)) / RATE
    return np.sum([0.3 / k * np.sin(2 * np.pi * hz * k * t) for k in range(1, 11)], axis=0)


def test_normalise_removes_case_marks_and_spaces() -> None:
    assert normalise("  Hello,  HOW can i help you?\n") == "hello how can i help you"
    assert normalise("it is four o'clock.") == normalise("It is four o’clock")
    assert normalise("GRÜN, weiß!") == "grün weiß"
    assert normalise("gru\u0308n") == "grün"


def test_exact_match_is_of_whole_texts() -> None:
    assert exact("Three plus four is seven", "three plus four is seven.")
    assert not exact("three plus four is", "three plus four is seven.")
    assert not exact("", "hello.")


@pytest.mark.parametrize(
    ("said", "wanted", "errors"),
    [
        ("", "", 0),
        ("a b c", "a b c", 0),
        ("a c", "a b c", 1),
        ("a b b c", "a b c", 1),
        ("a x c", "a b c", 1),
        ("", "a b c", 3),
        ("c b a", "a b c", 2),
        ("b c d e", "a b c", 3),
    ],
)
def test_word_errors_by_hand(said: str, wanted: str, errors: int) -> None:
    assert word_errors(said.split(), wanted.split()) == errors


def test_word_error_rate_pools_words_and_agrees_with_jiwer() -> None:
    said, wanted = ["The red bird.", "hello", "a b c"], ["the red bird is happy", "hello!", "c"]
    assert word_error_rate(said, wanted) == pytest.approx((2 + 0 + 2) / 7)
    rng = np.random.default_rng(0)
    for _ in range(20):
        a, b = (" ".join(rng.choice(list("abcd"), size=rng.integers(1, 9))) for _ in range(2))
        assert word_error_rate([a], [b]) == pytest.approx(jiwer.wer(b, a))


def test_word_error_rate_refuses_nonsense() -> None:
    with pytest.raises(ValueError, match="1 texts cannot be compared with 2"):
        word_error_rate(["a"], ["a", "b"])
    with pytest.raises(ValueError, match="at least one wanted word"):
        word_error_rate(["a"], ["."])


@pytest.mark.parametrize("hz", [85.0, 104.6, 173.5, 260.0])
def test_pitch_of_known_tones(hz: float) -> None:
    track = pitch(buzz(hz), sample_hz=RATE)
    assert len(track) > 30 and (track > 0).all()
    assert np.abs(track - hz).max() < 0.01 * hz


def test_silence_and_noise_are_unvoiced() -> None:
    rng = np.random.default_rng(0)
    assert not pitch(np.zeros(RATE), sample_hz=RATE).any()
    assert (pitch(0.1 * rng.standard_normal(RATE // 2), sample_hz=RATE) > 0).mean() < 0.05


def test_pitch_agreement_counts_near_frames_only() -> None:
    first, second = buzz(120), buzz(180)
    both = np.concatenate((first, second))
    assert pitch_agreement(both, both, sample_hz=RATE) == 1.0
    assert pitch_agreement(buzz(124), first, sample_hz=RATE) == 1.0
    assert pitch_agreement(buzz(130), first, sample_hz=RATE) == 0.0
    half = pitch_agreement(np.concatenate((first, first)), both, sample_hz=RATE)
    assert half == pytest.approx(0.5, abs=0.06)
    with pytest.raises(ValueError, match="no voiced frame"):
        pitch_agreement(first, np.zeros(RATE), sample_hz=RATE)
