"""The playroom's films: what moves, what changes when, and that files keep the times."""

import numpy as np
import pytest

from thinktalk.media.video import load_video
from thinktalk.playroom import films, sounds
from thinktalk.playroom.films import Film
from thinktalk.playroom.scenes import COLOUR_VALUES
from thinktalk.playroom.words import COLOURS, MOTIONS, SHAPES, SOUNDS

HZ = 16_000


def rng_of(*seed: int) -> np.random.Generator:
    return np.random.default_rng(list(seed))


def spot(frame: np.ndarray) -> tuple[np.ndarray, int]:
    """(centre (x, y) of what differs from the ground, its number of pixels)."""
    mask = np.abs(frame.astype(int) - frame[0, 0]).max(-1) > 35
    rows, columns = np.nonzero(mask)
    return np.array((columns.mean(), rows.mean())), len(rows)


def moved(frames: np.ndarray) -> str:
    """The motion that first and last frame show, as one of the page's seven."""
    (first, before), (last, after) = spot(frames[0]), spot(frames[-1])
    height, width = frames.shape[1:3]
    x, y = (last - first) / (width, height)
    if max(before, after) > 2.2 * min(before, after):
        return "grows" if after > before else "shrinks"
    if max(abs(x), abs(y)) < 0.02:
        return "stays still"
    assert max(abs(x), abs(y)) > 0.22, (x, y)  # visible at a glance
    assert min(abs(x), abs(y)) < 0.02
    if abs(x) > abs(y):
        return "moves right" if x > 0 else "moves left"
    return "moves down" if y > 0 else "moves up"


def nearest_colour(frame: np.ndarray) -> str:
    """The colour of what stands out from the ground."""
    mask = np.abs(frame.astype(int) - frame[0, 0]).max(-1) > 35
    value = np.median(frame[mask], 0)
    return min(COLOURS, key=lambda c: float(np.abs(value - np.array(COLOUR_VALUES[c])).max()))


def state_at(film: Film, time_s: float) -> tuple[float, str, str]:
    return [state for state in film.states if state[0] <= time_s + 1e-6][-1]


def when(seed: int, *, question: np.ndarray | None = None) -> Film:
    sound, colour, shape = SOUNDS[seed % 8], COLOURS[seed * 3 % 8], SHAPES[seed % 6]
    return films.when_film(
        rng_of(seed), shape=shape, sound=sound, colour=colour, split="test", question=question
    )


def order(seed: int, *, question: np.ndarray | None = None) -> Film:
    heard = SOUNDS[seed % 8], SOUNDS[(seed + 3) % 8]
    return films.order_film(rng_of(seed), heard=heard, split="test", question=question)


@pytest.mark.parametrize("motion", MOTIONS)
@pytest.mark.parametrize("split", ["train", "test"])
def test_motions_are_what_they_are_called(motion: str, split: str) -> None:
    for seed in range(6):
        film = films.motion_film(
            rng_of(seed, len(motion)),
            colour=COLOURS[seed],
            shape=SHAPES[seed],
            motion=motion,
            split="train" if split == "train" else "test",
        )
        assert film.sound is None and 2 <= film.seconds <= 4 and 2 <= film.fps <= 8
        assert moved(film.frames) == motion
        if motion.startswith("moves"):
            path = np.array([spot(frame)[0] for frame in film.frames])
            steps = np.diff(path, axis=0).sum(1)
            assert (steps >= -1.5).all() or (steps <= 1.5).all()  # never back
        if motion == "stays still":
            assert (film.frames == film.frames[0]).all()


def test_colour_at_the_onset_is_the_answer() -> None:
    places = set()
    for seed in range(40):
        film = when(seed)
        ((onset_s, sound),) = film.events
        assert sound == SOUNDS[seed % 8] and 4 <= film.seconds <= 8
        assert state_at(film, onset_s)[1] == COLOURS[seed * 3 % 8]
        changes = [start for start, _, _ in film.states[1:]]
        assert min(abs(change - onset_s) for change in changes) >= 0.3
        lengths = np.diff([0.0, *changes, film.seconds])
        assert lengths.min() >= 1 - 1e-6 and lengths.max() <= 2 + 1e-6
        assert len({colour for _, colour, _ in film.states}) == len(film.states)
        places.add(film.states.index(state_at(film, onset_s)))
    assert len(places) >= 4  # not always the first colour


def test_frames_show_the_states_and_sound_the_events() -> None:
    for seed in range(10):
        film = when(seed)
        for number, frame in enumerate(film.frames):
            assert nearest_colour(frame) == state_at(film, number / film.fps)[1]
        assert film.sound is not None and len(film.sound) == round(film.seconds * HZ)
        onset = round(film.events[0][0] * HZ)
        before, after = film.sound[:onset], film.sound[onset : onset + 3200]
        assert np.abs(after).max() > 4 * np.abs(before).max()


def test_two_sounds_come_in_order_with_a_change_between() -> None:
    for seed in range(30):
        film = order(seed)
        (first_s, first), (second_s, second) = film.events
        assert (first, second) == (SOUNDS[seed % 8], SOUNDS[(seed + 3) % 8])
        assert 4 <= film.seconds <= 8 and second_s - first_s > 0.5
        assert any(first_s < start <= second_s for start, _, _ in film.states)
        for one, other in zip(film.states, film.states[1:], strict=False):
            assert one[1] != other[1] and one[2] != other[2]


@pytest.mark.parametrize("seconds", [1.5, 3.4, 7.0])
def test_question_inside_a_film_stands_behind_the_events(
    seconds: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sounds, "record", lambda track, rng: track)
    question = np.full(round(seconds * HZ), 0.5, np.float32)
    for seed in range(6):
        for film in (when(seed, question=question), order(seed, question=question)):
            assert film.sound is not None
            # the question is the longest part that is level, and all of it is there
            bends = np.flatnonzero(np.abs(np.diff(film.sound)) > 1e-7)
            lengths = np.diff(bends) * (film.sound[bends[:-1] + 1] > 0.1)
            longest = int(lengths.argmax())
            start, end = bends[longest], bends[longest + 1]
            assert end - start == len(question) and film.seconds <= max(8.0, seconds + 5)
            assert start / HZ > film.events[-1][0] + 0.4
        motion = films.motion_film(
            rng_of(seed), colour="red", shape="star", motion="grows", split="test",
            question=question,
        )  # fmt: skip
        assert motion.sound is not None and motion.seconds >= seconds
        assert (motion.sound == 0.5).sum() == len(question) and moved(motion.frames) == "grows"


@pytest.mark.parametrize("seed", [0, 1, 2, 7, 11])
def test_mp4_keeps_pictures_and_times(seed: int) -> None:
    film = when(seed)
    content = film.mp4()
    assert content == film.mp4()
    read = load_video(content, fps=float(film.fps))
    count = len(film.frames) // 2 * 2
    assert len(read.frames) == count and read.fps == pytest.approx(film.fps, rel=0.08)
    chosen = np.linspace(0, len(film.frames) - 1, count).round().astype(int)
    for number, frame in zip(chosen, read.frames, strict=True):
        colour = state_at(film, number / film.fps)[1]
        assert nearest_colour(frame) == colour
    first, size = spot(film.frames[0])[0].round().astype(int), film.frames.shape[1]
    seen = read.frames[0][first[1], first[0]].astype(int)
    wanted = np.array(COLOUR_VALUES[film.states[0][1]])
    assert np.abs(seen - wanted).max() <= 30 and size == read.frames.shape[1]
    assert read.sound is not None and film.sound is not None
    assert abs(len(read.sound) - len(film.sound)) <= HZ / film.fps
    lag = shift(film.sound, read.sound[: len(film.sound)])
    assert abs(lag) < 0.01  # far less than a frame


def shift(original: np.ndarray, copy: np.ndarray) -> float:
    """By how many seconds the copy is late: the peak of the correlation of their levels."""
    size = min(len(original), len(copy)) // 32 * 32
    levels = [np.abs(wave[:size]).reshape(-1, 32).max(1) for wave in (original, copy)]
    levels = [level - level.mean() for level in levels]
    match = np.correlate(levels[1], levels[0], "full")
    return float(match.argmax() - (len(levels[0]) - 1)) * 32 / HZ


def test_silent_films_have_no_sound_track() -> None:
    film = films.motion_film(
        rng_of(1), colour="red", shape="heart", motion="moves up", split="test"
    )
    read = load_video(film.mp4(), fps=float(film.fps))
    assert read.sound is None and moved(read.frames) == "moves up"


def test_films_repeat() -> None:
    one, other = when(5), when(5)
    assert one.states == other.states and one.events == other.events
    assert np.array_equal(one.frames, other.frames)
    assert one.sound is not None and other.sound is not None
    assert np.array_equal(one.sound, other.sound)
