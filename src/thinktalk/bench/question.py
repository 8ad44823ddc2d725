"""A number of seconds in, the sound of a question out, at 16 kHz: from a file, or made up.

The made-up one is vowels in a falling voice with some hiss: no words, but the voice activity
detector takes it for speech, and it is the same on every machine.
"""

import numpy as np
from numpy.typing import NDArray

from thinktalk.media.decode import load_audio
from thinktalk.media.mel import EAR_HZ

Floats = NDArray[np.float32]

SEED = 2  # the sound is one that the detector does not doubt anywhere
SYLLABLE_S = 0.18
PHRASE_S = 1.3  # the pitch falls over a phrase, then starts again
VOWELS_HZ = ((700, 1200, 2600), (300, 2200, 3000), (450, 900, 2400), (500, 1800, 2500))
FORMANT_SHAPES = ((1.0, 60.0), (0.6, 90.0), (0.3, 120.0))  # strength, half width in Hz
HIGHEST_HZ = 7000
QUIET = 0.05  # of the peak: what is below counts as silence when the end of the voice is sought


def load_question(source: str | None, *, seconds: float) -> Floats:
    """A file, said again and again until it is long enough, or without one `made_up`."""
    if source is None:
        return made_up(seconds)
    sound, count = load_audio(source), round(seconds * EAR_HZ)
    if not len(sound):
        raise ValueError(f"{source} holds no sound; give a recording of speech")
    return np.tile(sound, -(-count // len(sound)))[:count]


def made_up(seconds: float) -> Floats:
    random = np.random.default_rng(SEED)
    time_s = np.arange(round(seconds * EAR_HZ)) / EAR_HZ
    num_syllables = int(seconds / SYLLABLE_S) + 2
    centres_s = (np.arange(num_syllables) + 0.5) * SYLLABLE_S
    vowels = np.array(VOWELS_HZ)[random.integers(0, len(VOWELS_HZ), num_syllables)]
    formants = [np.interp(time_s, centres_s, vowels[:, k]) for k in range(3)]
    pitch_hz = 130 - 25 * (time_s % PHRASE_S) / PHRASE_S + 3 * np.sin(2 * np.pi * 5 * time_s)
    phase = 2 * np.pi * np.cumsum(pitch_hz) / EAR_HZ
    voice = np.zeros_like(time_s)
    for harmonic in range(1, 50):
        hz = harmonic * pitch_hz
        gain = sum(
            strength / (1 + ((hz - formant) / width) ** 2)
            for formant, (strength, width) in zip(formants, FORMANT_SHAPES, strict=True)
        )
        voice += gain * np.sin(harmonic * phase) * (hz < HIGHEST_HZ) / harmonic**0.2
    voice *= np.clip(1.6 * np.abs(np.sin(np.pi * time_s / SYLLABLE_S)), 0.15, 1)
    noise = random.standard_normal(len(time_s))
    hissing = np.interp(time_s, centres_s, random.random(num_syllables)) > 0.7
    sound = voice / np.abs(voice).max() + 0.05 * np.diff(noise, append=0) * hissing
    return (0.4 * sound + 0.001 * noise).astype(np.float32)


def voiced_s(sound: Floats) -> float:
    """Where the last sample lies that is not quiet, in seconds from the start."""
    loud = np.flatnonzero(np.abs(sound) > QUIET * np.abs(sound).max())
    return (int(loud[-1]) + 1) / EAR_HZ
