"""Spoken turns for the tests of listening, and their signals in a form that can be compared."""

from collections.abc import Iterator
from functools import cache
from typing import Any

import numpy as np

from thinktalk.live.listen import Began, Ended, Heard, Listener, Signal
from thinktalk.live.turn import Detection
from thinktalk.playroom.speech import flite

HZ = 16_000


@cache
def said(text: str, voice: str = "slt") -> tuple[np.ndarray, float, float]:
    """flite's wave at 16 kHz, and when (s) its first phone starts and its last one ends."""
    wave, phones = flite(text, voice=voice)
    spoken = [phone for phone in phones if phone[0] != "pau"]
    return wave, spoken[0][1], spoken[-1][2]


def silence(seconds: float) -> np.ndarray:
    return np.zeros(round(seconds * HZ), np.float32)


def noise(seconds: float, *, rms: float, seed: int = 0) -> np.ndarray:
    """Pink-like noise, as rooms make it."""
    white = np.fft.rfft(np.random.default_rng(seed).standard_normal(round(seconds * HZ)))
    wave = np.fft.irfft(white / np.sqrt(1 + np.arange(len(white))), round(seconds * HZ))
    return (wave * rms / np.sqrt(np.mean(wave**2))).astype(np.float32)


@cache
def talk() -> np.ndarray:
    """Two turns, the first one with a pause of 0.35 s in it; 8 s."""
    first, again, second = (
        said(text)[0] for text in ("What colour is", "the big circle?", "Tell me a story, please.")
    )
    parts = [silence(0.7), first, silence(0.1), again, silence(1.0), second, silence(1.0)]
    wave = np.concatenate(parts)
    return wave + noise(len(wave) / HZ, rms=1e-4)


def hear(
    wave: np.ndarray,
    detection: Detection | None,
    *,
    size: int | None = None,
    rate: int = HZ,
    exact: bool = False,
) -> list[Signal]:
    """All signals of a wave that is pushed in pieces of `size`; without a detection, committed."""
    listener = Listener(detection, exact=exact)
    signals = list(push(listener, wave, size=size, rate=rate))
    return signals if detection else signals + listener.commit()


def push(
    listener: Listener, wave: np.ndarray, *, size: int | None = None, rate: int = HZ
) -> Iterator[Signal]:
    for start in range(0, len(wave), size or len(wave)):
        yield from listener.push(wave[start : start + (size or len(wave))], sample_rate=rate)


def plain(signals: list[Signal]) -> list[Any]:
    """What can be compared with ==, to the bit."""
    return [(type(signal).__name__, bits(vars(signal))) for signal in signals]


def bits(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return value.shape, value.dtype, value.tobytes()
    if isinstance(value, dict):
        return {name: bits(inner) for name, inner in value.items()}
    return value


def kinds(signals: list[Signal]) -> str:
    return " ".join(type(signal).__name__ for signal in signals if not isinstance(signal, Heard))


def clips(signals: list[Signal]) -> Iterator[tuple[int, int, np.ndarray, Ended]]:
    """(first sample, end, mel) of every clip, and its end."""
    start, mels = 0, []
    for signal in signals:
        if isinstance(signal, Began):
            start, mels = round(signal.start_s * HZ), []
        elif isinstance(signal, Heard):
            assert signal.start_s == (start + 2 * HZ * len(mels)) / HZ
            assert signal.mel.shape == (128, 200)
            mels.append(signal.mel)
        elif isinstance(signal, Ended):
            if signal.tail is not None:
                assert signal.tail_start_s == (start + 2 * HZ * len(mels)) / HZ
                mels.append(signal.tail)
            yield start, round(signal.end_s * HZ), np.concatenate(mels, axis=1), signal
