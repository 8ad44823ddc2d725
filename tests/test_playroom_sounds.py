"""The playroom's sounds, told apart and counted by what an ear would go by."""

from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from thinktalk.playroom import cases, sounds
from thinktalk.playroom.sounds import Samples
from thinktalk.playroom.talk import Case
from thinktalk.playroom.words import COUNTED_SOUNDS, SOUNDS

HZ = 16_000


def event(sound: str, seed: int) -> Samples:
    return sounds.make(sound, rng=np.random.default_rng([len(sound), ord(sound[1]), seed]))


def spectrum(wave: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(frequencies, power, which sums to 1)."""
    power = np.abs(np.fft.rfft(wave * np.hanning(len(wave)))) ** 2
    return np.fft.rfftfreq(len(wave), 1 / HZ), power / power.sum()


def between(wave: np.ndarray, low_hz: float, high_hz: float) -> float:
    """Share of the power between two frequencies."""
    hz, power = spectrum(wave)
    return float(power[(hz >= low_hz) & (hz <= high_hz)].sum())


def pitch_track(wave: np.ndarray) -> np.ndarray:
    """The strongest frequency of every 20 ms."""
    frames = [wave[k : k + 640] for k in range(0, len(wave) - 640, 320)]
    found = []
    for frame in frames:
        power = np.abs(np.fft.rfft(frame * np.hanning(640), 8192)) ** 2
        found.append(power.argmax() * HZ / 8192)
    return np.array(found)


def loudness(wave: np.ndarray, step: int = 80) -> np.ndarray:
    """The peak of every 5 ms."""
    return np.abs(wave[: len(wave) // step * step].reshape(-1, step)).max(1)


def rises(level: np.ndarray, *, high: float, low: float) -> np.ndarray:
    """Where the level comes above `high` after it was below `low`."""
    found, waiting = [], True
    for place, value in enumerate(level):
        if waiting and value > high:
            found.append(place)
        waiting = value < low if value < low or value > high else waiting
    return np.array(found)


def onsets(wave: np.ndarray) -> np.ndarray:
    """When it gets loud out of silence, in s."""
    return rises(loudness(wave), high=0.2, low=0.05) * 0.005


def flatness(wave: np.ndarray) -> float:
    """1 for white noise, 0 for a tone: geometric over arithmetic mean of 1-6 kHz in bands."""
    hz, power = spectrum(wave)
    bands = [power[(hz >= f) & (hz < f + 250)].sum() + 1e-12 for f in range(1000, 5800, 250)]
    return float(np.exp(np.mean(np.log(bands))) / np.mean(bands))


def guess(wave: np.ndarray) -> str:
    """Which sound this is, by rules that an outsider could have written from the page."""
    quiet = (loudness(wave) < 0.05).mean()
    track = pitch_track(wave)
    if flatness(wave) > 0.4 and between(wave, 950, 6200) > 0.9 and quiet < 0.3:
        return "rain"
    if quiet > 0.5 and len(onsets(wave)) > 1:
        return "click"
    if between(wave, 40, 140) > 0.5 and loudness(wave)[-20:].mean() < 0.25:
        return "drum"
    if between(wave, 1400, 2700) > 0.8 and np.ptp(track) < 0.12 * track.mean():
        return "whistle"
    if between(wave, 450, 1300) > 0.9:
        if np.ptp(track) > 250 and np.abs(np.diff(track)).max() < 150:
            return "siren"
        if np.ptp(track) < 10 and loudness(wave)[len(loudness(wave)) // 2 :].max() > 0.9:
            return "beep"
    return "bell" if loudness(wave)[-30:].max() < 0.3 else "buzzer"


@pytest.mark.parametrize("sound", SOUNDS)
def test_sounds_are_told_apart(sound: str) -> None:
    assert [guess(event(sound, seed)) for seed in range(25)] == [sound] * 25


@pytest.mark.parametrize("sound", SOUNDS)
def test_events_last_as_long_as_the_page_says(sound: str) -> None:
    least, most = (0.15, 0.3) if sound == "beep" else (0.3, 1.2)
    for seed in range(20):
        wave = event(sound, seed)
        assert wave.dtype == np.float32 and np.abs(wave).max() == pytest.approx(1)
        assert least - 1e-3 <= len(wave) / HZ <= most + 1e-3
        assert np.array_equal(wave, event(sound, seed))
        assert len(wave) != len(event(sound, seed + 100))


def test_tones_have_the_frequencies_of_the_page() -> None:
    for seed in range(20):
        assert 700 <= np.median(pitch_track(event("beep", seed))) <= 1200
        assert 1480 <= np.median(pitch_track(event("whistle", seed))) <= 2520
        track = pitch_track(event("siren", seed))
        assert 450 <= track.min() < 700 and 850 < track.max() <= 1230
        # a square wave: its fundamental and the third harmonic, a third as high
        hz, power = spectrum(event("buzzer", seed))
        low = (hz > 85) & (hz < 185)
        fundamental = hz[low][power[low].argmax()]
        third = power[np.abs(hz - 3 * fundamental) < 8].sum() / power[low].sum()
        assert 85 <= fundamental <= 185 and 0.03 < third < 0.25


def test_clicks_come_in_trains() -> None:
    for seed in range(20):
        starts = onsets(event("click", seed))
        assert len(starts) >= 3 and np.ptp(np.diff(starts)) <= 0.011
        assert 3.9 <= 1 / np.diff(starts).mean() <= 12.5


def test_bells_ring_inharmonically_and_die_away() -> None:
    for seed in range(20):
        level = loudness(event("bell", seed), 800)
        assert level[0] > 0.5 and level[-1] < 0.2 * level[0]
        assert between(event("bell", seed), 150, 8000) > 0.9
        hz, power = spectrum(event("bell", seed)[:2400])  # higher partials die first
        loud = hz[power > 0.01 * power.max()]
        assert loud.max() - loud.min() > 100  # more than one partial


@pytest.mark.parametrize("sound", COUNTED_SOUNDS)
@pytest.mark.parametrize("count", [1, 3, 6])
def test_repeated_events_can_be_counted(
    sound: str, count: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    placed: list[tuple[float, Samples]] = []
    original = sounds.place

    def place(events: list[tuple[float, Samples]], *, seconds: float) -> Samples:
        placed.extend(events)
        return original(events, seconds=seconds)

    monkeypatch.setattr(sounds, "place", place)
    wave = sounds.row([sound] * count, rng=np.random.default_rng([count, len(sound)]))
    assert len(placed) == count and len(wave) < 10 * HZ
    for (before_s, one), (onset_s, _) in pairwise(placed):
        assert onset_s - before_s - len(one) / HZ >= 0.2
    # as an ear would: rises of the smoothed level out of the pauses
    level = np.convolve(loudness(wave, 160), np.ones(5) / 5, "same")
    top = level.max()
    assert len(rises(level, high=0.35 * top, low=0.25 * top)) == count


def test_sounds_of_any_kind_are_alike_or_not() -> None:
    rows = [sounds.any_kinds(count=4, rng=np.random.default_rng(seed)) for seed in range(200)]
    assert all(len(kinds) == 4 and set(kinds) <= set(COUNTED_SOUNDS) for kinds in rows)
    alike = [kinds[0] for kinds in rows if len(set(kinds)) == 1]
    assert 90 < len(alike) < 150 and set(alike) == set(COUNTED_SOUNDS)


def test_sounds_of_a_kind_are_made_once(monkeypatch: pytest.MonkeyPatch) -> None:
    kinds: list[str] = []
    original = sounds.make

    def make(sound: str, **options: Any) -> Samples:
        kinds.append(sound)
        return original(sound, **options)

    monkeypatch.setattr(sounds, "make", make)
    wave = sounds.row(["drum", "bell", "drum", "drum"], rng=np.random.default_rng(0))
    assert sorted(kinds) == ["bell", "drum"] and len(wave) < 10 * HZ


def test_one_kind_stands_among_others(monkeypatch: pytest.MonkeyPatch) -> None:
    rows: list[list[Samples]] = []
    original = sounds._in_a_row

    def in_a_row(events: list[Samples], **options: Any) -> Samples:
        rows.append(events)
        return original(events, **options)

    monkeypatch.setattr(sounds, "_in_a_row", in_a_row)
    orders, others = set(), set()
    for seed in range(12):
        case = Case("how often", None, (), "", shown=("beep", "four", "drum"))
        cases.recording(np.random.default_rng(seed), case)
        kinds = [id(event) for event in rows[-1]]
        (beep,) = {id(event) for event in rows[-1] if between(event, 600, 1300) > 0.9}
        assert kinds.count(beep) == 4 and len(set(kinds)) == 2
        orders.add(tuple(kind == beep for kind in kinds))
        others.add(len(kinds) - 4)
    assert others == {1, 2, 3} and len(orders) > 8


def test_recordings_differ_in_level_and_noise() -> None:
    def draw(seed: int) -> Samples:
        return sounds.single("bell", rng=np.random.default_rng(seed))

    peaks = [float(np.abs(draw(seed)).max()) for seed in range(30)]
    floors = [float(np.abs(draw(seed)[:400]).max()) for seed in range(30)]
    assert 0.09 < min(peaks) < 0.3 and 0.5 < max(peaks) <= 0.8
    assert sum(floor == 0 for floor in floors) > 3 and max(floors) < 0.3
    assert np.array_equal(draw(1), draw(1))


def test_what_does_not_fit_on_a_track_is_cut() -> None:
    track = sounds.place([(0.5, np.ones(HZ, np.float32))], seconds=1.0)
    assert len(track) == HZ and track[: HZ // 2].max() == 0 and track[HZ // 2 :].min() == 1


def test_unknown_sound_names_the_known_ones() -> None:
    with pytest.raises(ValueError, match=r"unknown sound 'moo'.*siren"):
        sounds.make("moo", rng=np.random.default_rng(0))
