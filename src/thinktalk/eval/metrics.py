"""Scores: texts in, numbers out; waves in, pitch in Hz out. Numpy only."""

import unicodedata
from collections.abc import Sequence

import numpy as np

FRAME_S = 0.01  # distance of pitch estimates
WINDOW_S = 0.04
LOWEST_HZ, HIGHEST_HZ = 60.0, 350.0
PERIODICITY = 0.15  # yin: a frame is voiced where its normalised difference falls below this
SILENCE_RMS = 0.01  # of full scale 1
MARKS = ".,;:!?\u2026\u2014\u2013\u3002\uff0c\uff1b\uff1a\uff01\uff1f\u3001"  # where people pause
SHORTEST_PAUSE_S = 0.085  # what a mark asks for at least; closures of stops may be as long
STRAY_PAUSE_S = 0.2  # from here on nothing but a pause is silent
PAUSE_DEPTH_DB = 30.0  # below the loud frames
PAUSE_TOLERANCE = 0.2  # share of the utterance


def normalise(text: str) -> str:
    """Lower case, no punctuation, single spaces: the form in which answers are compared."""
    text = unicodedata.normalize("NFC", text).lower()
    kept = (c if not unicodedata.category(c).startswith(("P", "S")) else "" for c in text)
    return " ".join("".join(kept).split())


def exact(answer: str, wanted: str) -> bool:
    """Whether two texts are equal after `normalise`."""
    return normalise(answer) == normalise(wanted)


def word_errors(said: Sequence[str], wanted: Sequence[str]) -> int:
    """Least number of words to insert, delete or replace to turn `said` into `wanted`."""
    row = list(range(len(wanted) + 1))
    for i, word in enumerate(said, 1):
        diagonal, row[0] = row[0], i
        for j, target in enumerate(wanted, 1):
            replaced = diagonal + (word != target)
            diagonal, row[j] = row[j], min(replaced, row[j] + 1, row[j - 1] + 1)
    return row[-1]


def word_error_rate(said: Sequence[str], wanted: Sequence[str]) -> float:
    """Errors over all pairs of texts, divided by all wanted words (texts are normalised here).

    Raises ValueError where the lists differ in length or no word is wanted.
    """
    if len(said) != len(wanted):
        raise ValueError(f"{len(said)} texts cannot be compared with {len(wanted)}")
    pairs = [
        (normalise(a).split(), normalise(b).split()) for a, b in zip(said, wanted, strict=True)
    ]
    words = sum(len(target) for _, target in pairs)
    if not words:
        raise ValueError("the word error rate needs at least one wanted word")
    return sum(word_errors(a, b) for a, b in pairs) / words


def pauses(samples: np.ndarray, *, sample_hz: int) -> list[tuple[float, float]]:
    """The silences inside a spoken wave, each at least SHORTEST_PAUSE_S long: (start, end) in
    seconds of sound, the silence before the first and after the last word left out."""
    hop = round(FRAME_S * sample_hz)
    frames = samples[: len(samples) // hop * hop].astype(np.float64).reshape(-1, hop)
    level = 10 * np.log10(np.square(frames).mean(1) + 1e-12)
    if not len(level):
        return []
    sounding = np.flatnonzero(level > np.percentile(level, 95) - PAUSE_DEPTH_DB)
    gaps = np.flatnonzero(np.diff(sounding) * FRAME_S > SHORTEST_PAUSE_S)
    first = sounding[0]
    return [
        (float(sounding[g] + 1 - first) * FRAME_S, float(sounding[g + 1] - first) * FRAME_S)
        for g in gaps.tolist()
    ]


def pause_errors(samples: np.ndarray, text: str, *, sample_hz: int) -> int:
    """Marks of the text without a pause, and long pauses without a mark.

    Marks and pauses are compared in order, by how much of the letters and of the sound lies before
    them; up to PAUSE_TOLERANCE apart they are the same. The mark at the end does not count, nor do
    pauses below STRAY_PAUSE_S where there is no mark.
    """
    letters = [c.isalnum() for c in text.rstrip(MARKS + " ")]
    total = max(sum(letters), 1)
    marks = [sum(letters[:at]) / total for at, c in enumerate(text[: len(letters)]) if c in MARKS]
    found = pauses(samples, sample_hz=sample_hz)
    silent = sum(end - start for start, end in found)
    sounding = max(len(samples) / sample_hz - silent, FRAME_S)
    row, before = list(range(len(marks) + 1)), 0.0  # as word_errors, but nothing is replaced
    for start, end in found:
        place, stray = (start - before) / sounding, end - start > STRAY_PAUSE_S
        before += end - start
        diagonal, row[0] = row[0], row[0] + stray
        for j, mark in enumerate(marks, 1):
            fits = abs(place - mark) <= PAUSE_TOLERANCE
            choices = [row[j] + stray, row[j - 1] + 1, *([diagonal] if fits else [])]
            diagonal, row[j] = row[j], min(choices)
    return row[-1]


def pitch(samples: np.ndarray, *, sample_hz: int) -> np.ndarray:
    """Pitch in Hz every 10 ms, 0 where unvoiced: float64 [frames], by yin (de Cheveigné 2002)."""
    window, hop = round(WINDOW_S * sample_hz), round(FRAME_S * sample_hz)
    shortest, longest = int(sample_hz / HIGHEST_HZ), int(sample_hz / LOWEST_HZ)
    starts = range(0, len(samples) - window - longest, hop)
    return np.array(
        [
            _frame_pitch(samples[s : s + window + longest].astype(np.float64), window, shortest)
            for s in starts
        ]
    ) * float(sample_hz)


def _frame_pitch(stretch: np.ndarray, window: int, shortest: int) -> float:
    """1 / period in samples of one frame, 0 where unvoiced; stretch: window + longest lag."""
    frame = stretch[:window]
    energy = float(frame @ frame)
    if energy < window * SILENCE_RMS**2:
        return 0.0
    squares = np.concatenate(([0.0], np.cumsum(stretch**2)))
    shifted = squares[window:] - squares[:-window]  # energy of the frame at every lag
    difference = energy + shifted - 2 * np.correlate(stretch, frame, "valid")
    lags = np.arange(1, len(difference))
    normal = difference[1:] * lags / np.maximum(np.cumsum(difference[1:]), 1e-12)
    below = np.flatnonzero(normal[shortest - 1 :] < PERIODICITY)
    if not len(below):
        return 0.0
    best = int(below[0]) + shortest - 1
    while best + 1 < len(normal) and normal[best + 1] < normal[best]:
        best += 1
    return 1.0 / (best + 1 + _parabola(normal, best))


def _parabola(values: np.ndarray, at: int) -> float:
    """Offset of the minimum between samples, from the parabola through three points."""
    if at == 0 or at == len(values) - 1:
        return 0.0
    before, here, after = values[at - 1 : at + 2]
    bend = before - 2 * here + after
    return float(0.5 * (before - after) / bend) if bend > 0 else 0.0


def pitch_agreement(
    samples: np.ndarray, reference: np.ndarray, *, sample_hz: int, tolerance: float = 0.05
) -> float:
    """Share of the reference's voiced frames whose pitch in `samples` lies within 5 %.

    Both waves must be aligned in time. Raises ValueError where the reference has no voiced frame.
    """
    here, there = pitch(samples, sample_hz=sample_hz), pitch(reference, sample_hz=sample_hz)
    frames = min(len(here), len(there))
    voiced = there[:frames] > 0
    if not voiced.any():
        raise ValueError("the reference has no voiced frame, so pitch cannot be compared")
    near = np.abs(here[:frames] - there[:frames]) <= tolerance * there[:frames]
    return float(near[voiced].mean())
