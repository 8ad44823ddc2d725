"""The eight sounds of the playroom, synthesised: a random generator in, float32 at 16 kHz out.

`make` gives one event with peak 1; `place` puts events on a silent track; `record` gives a track
the level, the noise and the light reverberation of a recording; `single` and `row` do all that.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from thinktalk.playroom.speech import INPUT_HZ, reverberate
from thinktalk.playroom.words import COUNTED_SOUNDS, SOUNDS

Samples = NDArray[np.float32]
Wave = NDArray[np.float64]

# seconds of one event
DURATIONS_S = {
    "beep": (0.15, 0.3),
    "bell": (0.6, 1.2),
    "buzzer": (0.3, 1.2),
    "click": (0.4, 1.2),
    "siren": (0.5, 1.2),
    "whistle": (0.3, 1.2),
    "drum": (0.3, 0.6),
    "rain": (0.4, 1.2),
}
LONGEST_COUNTED_S = 0.8  # of events that are counted: a clip of six stays below ten seconds
GAP_S = (0.22, 0.6)  # between counted events; the page asks 0.2
AROUND_S = (0.05, 0.4)  # before the first and after the last event
# Of rows whose sounds are asked for as "sounds": so rows of one kind have every number, too.
ALIKE_SHARE = 0.6
RAMP_S = 0.008  # tones begin and end without a click
PEAK_DB = (-20.0, -2.0)  # of a recording
NOISE_SHARE, NOISE_DB = 0.7, (15.0, 45.0)  # how often there is noise; below the events
REVERBERANT_SHARE = 0.25

# Partials of bells, as multiples of the strike note: tuned bells, bars, and plates.
PARTIALS = (
    (0.5, 1.0, 1.2, 1.5, 2.0, 2.51, 2.66, 3.01, 4.1),
    (1.0, 2.76, 5.4, 8.93),
    (1.0, 1.58, 2.24, 2.92, 3.46, 4.15),
)


def make(sound: str, *, rng: np.random.Generator, longest_s: float = 1.2) -> Samples:
    """One event of a sound, its peak 1: float32 [n] at 16 kHz. Raises ValueError for others."""
    if sound not in SOUNDS:
        raise ValueError(f"unknown sound {sound!r}: choose one of {', '.join(SOUNDS)}")
    least, most = DURATIONS_S[sound]
    seconds = rng.uniform(least, max(least, min(most, longest_s)))
    wave = _MAKERS[sound](np.arange(round(seconds * INPUT_HZ)) / INPUT_HZ, rng)
    return (wave / np.abs(wave).max()).astype(np.float32)


def single(sound: str, *, rng: np.random.Generator) -> Samples:
    """A recording of one event."""
    event = make(sound, rng=rng)
    before, after = rng.uniform(*AROUND_S, 2)
    seconds = before + len(event) / INPUT_HZ + after
    return record(place([(float(before), event)], seconds=seconds), rng=rng)


def any_kinds(*, count: int, rng: np.random.Generator) -> list[str]:
    """`count` sounds, of one kind or of several."""
    if rng.random() < ALIKE_SHARE:
        return [str(rng.choice(list(COUNTED_SOUNDS)))] * count
    return [str(kind) for kind in rng.choice(list(COUNTED_SOUNDS), size=count)]


def among(sound: str, *, count: int, other: str, rng: np.random.Generator) -> list[str]:
    """`count` times a sound, with one to three of another between or around."""
    kinds = [sound] * count + [other] * int(rng.integers(1, 4))
    return [str(kind) for kind in rng.permutation(kinds)]


def row(kinds: Sequence[str], *, rng: np.random.Generator) -> Samples:
    """A recording of these sounds, one after the other; of a kind they are as alike as a bell is
    to itself."""
    events = {kind: make(kind, rng=rng, longest_s=LONGEST_COUNTED_S) for kind in sorted(set(kinds))}
    return _in_a_row([events[kind] for kind in kinds], rng=rng)


def _in_a_row(events: Sequence[Samples], *, rng: np.random.Generator) -> Samples:
    """A recording of the events, one after the other."""
    placed, now_s = [], float(rng.uniform(*AROUND_S))
    gap_s = float(rng.uniform(*GAP_S))
    for event in events:
        placed.append((now_s, event * np.float32(rng.uniform(0.75, 1.0))))
        now_s += len(event) / INPUT_HZ + max(gap_s * float(rng.uniform(0.8, 1.25)), GAP_S[0])
    last_s = placed[-1][0] + len(events[-1]) / INPUT_HZ
    return record(place(placed, seconds=last_s + float(rng.uniform(*AROUND_S))), rng=rng)


def place(events: Sequence[tuple[float, Samples]], *, seconds: float) -> Samples:
    """A track of so many seconds with every (onset in s, samples) added in its place."""
    track = np.zeros(round(seconds * INPUT_HZ), np.float32)
    for onset_s, event in events:
        start = round(onset_s * INPUT_HZ)
        kept = event[: max(len(track) - start, 0)]
        track[start : start + len(kept)] += kept
    return track


def record(track: Samples, *, rng: np.random.Generator) -> Samples:
    """The track with a recording's level, noise and, now and then, a bit of a room."""
    samples = track.astype(np.float64)
    if rng.random() < REVERBERANT_SHARE:
        samples = reverberate(samples, rng=rng)
    loud = samples[np.abs(samples) > 0.02 * np.abs(samples).max()]
    if rng.random() < NOISE_SHARE:
        noise_db = -rng.uniform(*NOISE_DB)
        level = np.sqrt(np.mean(loud**2)) * 10 ** (noise_db / 20)
        samples = samples + level * rng.standard_normal(len(samples))
    samples *= 10 ** (rng.uniform(*PEAK_DB) / 20) / np.abs(samples).max()
    return samples.astype(np.float32)


# ---- the sounds: t is the time [n] in seconds


def _beep(t: Wave, rng: np.random.Generator) -> Wave:
    return _ramped(np.sin(2 * np.pi * rng.uniform(700, 1200) * t))


def _bell(t: Wave, rng: np.random.Generator) -> Wave:
    ratios = np.array(PARTIALS[rng.integers(len(PARTIALS))])
    ratios = ratios * rng.uniform(0.99, 1.01, len(ratios))
    strike_hz, decay = rng.uniform(350, 1000), rng.uniform(3.5, 5.5) / t[-1]
    wave = np.zeros_like(t)
    for ratio in ratios[ratios * strike_hz < 0.45 * INPUT_HZ]:
        loudness = rng.uniform(0.5, 1.0) / max(ratio, 1.0) ** rng.uniform(0.3, 0.9)
        fall = np.exp(-decay * max(ratio, 1.0) ** 0.6 * t)
        wave += loudness * fall * np.sin(2 * np.pi * ratio * strike_hz * t)
    return _ramped(wave, attack_s=0.002, release_s=0.03)


def _buzzer(t: Wave, rng: np.random.Generator) -> Wave:
    phase = rng.uniform(90, 180) * t % 1
    return _ramped(np.where(phase < rng.uniform(0.42, 0.58), 1.0, -1.0))


def _click(t: Wave, rng: np.random.Generator) -> Wave:
    seconds = len(t) / INPUT_HZ
    rate = rng.uniform(max(4.0, 2.2 / seconds), 12)  # at least three clicks, or it is none
    wave = np.zeros_like(t)
    length = int(rng.integers(1, 33))
    impulse = np.exp(-np.arange(length) / (length / 3))
    if rng.random() < 0.5:
        impulse = impulse * rng.standard_normal(length)
    for onset_s in np.arange(0.0, seconds - length / INPUT_HZ, 1 / rate):
        start = round(onset_s * INPUT_HZ)
        kept = wave[start : start + length]
        kept += impulse[: len(kept)]
    return wave


def _siren(t: Wave, rng: np.random.Generator) -> Wave:
    low, high = rng.uniform(500, 620), rng.uniform(950, 1200)
    sweeps = rng.uniform(1.0, max(1.0, min(3.0, t[-1] / 0.35)))  # up and down again
    turn = 2 * np.pi * sweeps * t / t[-1]
    swing = 0.5 - 0.5 * np.cos(turn)
    if rng.random() < 0.3:  # straight up and straight down
        swing = np.abs((turn / np.pi + 1) % 2 - 1)
        swing = 1 - swing
    return _ramped(np.sin(2 * np.pi * np.cumsum(low + (high - low) * swing) / INPUT_HZ))


def _whistle(t: Wave, rng: np.random.Generator) -> Wave:
    vibrato = rng.uniform(0.01, 0.04) * np.sin(2 * np.pi * rng.uniform(4.5, 8) * t)
    hz = rng.uniform(1500, 2500) * (1 + vibrato)
    breath = rng.uniform(0, 0.06) * rng.standard_normal(len(t))
    return _ramped(np.sin(2 * np.pi * np.cumsum(hz) / INPUT_HZ) + breath, attack_s=0.02)


def _drum(t: Wave, rng: np.random.Generator) -> Wave:
    drop = 1 + rng.uniform(0.2, 0.9) * np.exp(-t / 0.03)  # the skin is tight when it is struck
    hz = rng.uniform(60, 120) * drop
    thump = np.exp(-t / rng.uniform(0.06, 0.15)) * np.sin(2 * np.pi * np.cumsum(hz) / INPUT_HZ)
    hiss = _band(rng.standard_normal(len(t)), low_hz=60, high_hz=rng.uniform(500, 1200))
    hiss *= np.exp(-t / rng.uniform(0.03, 0.1)) / np.abs(hiss).max()
    return _ramped(thump + rng.uniform(0.3, 0.9) * hiss, attack_s=0.001, release_s=0.03)


def _rain(t: Wave, rng: np.random.Generator) -> Wave:
    noise = rng.standard_normal(len(t))
    drops = rng.random(len(t)) < rng.uniform(0, 0.02)
    noise += rng.uniform(0, 6) * drops * rng.standard_normal(len(t))
    return _ramped(_band(noise, low_hz=1000, high_hz=6000), attack_s=0.05, release_s=0.05)


_MAKERS: dict[str, Callable[[Wave, np.random.Generator], Wave]] = {
    "beep": _beep,
    "bell": _bell,
    "buzzer": _buzzer,
    "click": _click,
    "siren": _siren,
    "whistle": _whistle,
    "drum": _drum,
    "rain": _rain,
}


def _ramped(wave: Wave, *, attack_s: float = RAMP_S, release_s: float = RAMP_S) -> Wave:
    """The wave rising from silence and falling back to it."""
    t = np.arange(len(wave)) / INPUT_HZ
    rise = np.clip(t / attack_s, 0, 1)
    fall = np.clip((t[-1] - t) / release_s, 0, 1)
    return wave * np.minimum(rise, fall)


def _band(wave: Wave, *, low_hz: float, high_hz: float) -> Wave:
    """What of the wave lies between two frequencies, with soft edges of a tenth."""
    spectrum = np.fft.rfft(wave)
    hz = np.fft.rfftfreq(len(wave), 1 / INPUT_HZ)
    rise = np.clip((hz - 0.9 * low_hz) / (0.2 * low_hz), 0, 1)
    fall = np.clip((1.1 * high_hz - hz) / (0.2 * high_hz), 0, 1)
    return np.fft.irfft(spectrum * rise * fall, len(wave))
