"""Films of the playroom: shapes that move or change, with sounds, out of a random generator.

Frame k is shown from k / fps on; what changes, changes on a frame. Sound is float32 at 16 kHz and
as long as the frames. A question may be part of the sound; it stands behind the events.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from av.video.frame import VideoFrame
from av.video.stream import VideoStream

from thinktalk.playroom import scenes, sounds
from thinktalk.playroom.scenes import Floats, Pixels
from thinktalk.playroom.sounds import Samples
from thinktalk.playroom.speech import INPUT_HZ
from thinktalk.playroom.talk import Split
from thinktalk.playroom.words import COLOURS, SHAPES

RATES = (2, 3, 4, 5, 6, 8)  # frames per second
MOTION_S, EVENT_S = (2.0, 4.0), (4.0, 8.0)  # how long films are
STATE_S = (1.0, 2.0)  # how long a colour or a shape stays
FROM_CHANGE_S = 0.32  # between an event that is asked for and any change; the page asks 0.3
BETWEEN_S = 0.4  # between the end of an event and what follows
BEFORE_S, AFTER_S = 0.3, 0.15  # before the first event, after what comes last
LEAST_WAY = 0.3  # of the side: how far a moving shape moves
GROWTH = (1.7, 2.4)
ORDER_EVENT_S = 0.8  # the longest event where there are two
# Of x264. The slower presets are not only slow: with adaptive quantisation about one file in a
# hundred came out differently (x264 of PyAV 18).
CODEC = {"preset": "ultrafast", "crf": "20"}
SOUND_BITS = 64_000  # per second


@dataclass(frozen=True)
class Film:
    """frames: uint8 [n,H,W,3]. sound: float32 [m] at 16 kHz or None.

    states: (start in s, colour, shape) of everything that is shown, in order, the first at 0.
    events: (onset in s, sound) of what is heard, without a question.
    """

    frames: Pixels
    fps: int
    sound: Samples | None
    states: tuple[tuple[float, str, str], ...]
    events: tuple[tuple[float, str], ...] = ()

    @property
    def seconds(self) -> float:
        return len(self.frames) / self.fps

    def mp4(self) -> bytes:
        """The film as an MP4 file, its sound as AAC; the same bytes every time."""
        file = io.BytesIO()
        with av.open(file, "w", format="mp4") as out:
            pictures = out.add_stream("libx264", rate=self.fps)
            assert isinstance(pictures, VideoStream)
            _, pictures.height, pictures.width, _ = self.frames.shape
            pictures.pix_fmt, pictures.time_base = "yuv420p", Fraction(1, self.fps)
            pictures.options = {**CODEC}
            pictures.codec_context.thread_count = 1
            voice = out.add_stream("aac", rate=INPUT_HZ, layout="mono") if self._heard else None
            for number, pixels in enumerate(self.frames):
                frame = VideoFrame.from_ndarray(pixels, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, self.fps)
                out.mux(pictures.encode(frame))
            out.mux(pictures.encode(None))
            if voice is not None and self.sound is not None:
                assert isinstance(voice, AudioStream)
                voice.bit_rate = SOUND_BITS
                sound = AudioFrame.from_ndarray(self.sound[None], format="fltp", layout="mono")
                sound.sample_rate, sound.pts = INPUT_HZ, 0
                out.mux(voice.encode(sound))
                out.mux(voice.encode(None))
        return file.getvalue()

    @property
    def _heard(self) -> bool:
        return self.sound is not None and len(self.sound) > 0


def motion_film(
    rng: np.random.Generator,
    *,
    colour: str,
    shape: str,
    motion: str,
    split: Split,
    question: Samples | None = None,
) -> Film:
    """A shape that moves, grows, shrinks or stays still; without sound but for a question."""
    asked_s = 0.0 if question is None else len(question) / INPUT_HZ + BEFORE_S + AFTER_S
    fps, count = _length(rng, MOTION_S, least_s=asked_s)
    height, width = _even_sides(rng)
    value = scenes.colour_value(rng, colour)
    ground = scenes.ground_value(rng, [value])
    form = _form(rng, shape, split)
    centres, sizes = _way(rng, form, motion, height=height, width=width)
    frames = np.tile(scenes.plain(ground, height=height, width=width), (count, 1, 1, 1))
    for frame, share in zip(frames, _progress(rng, count, split), strict=True):
        centre = centres[0] + share * (centres[1] - centres[0])
        size = float(sizes[0] + share * (sizes[1] - sizes[0]))
        scenes.paint(frame, form, centre=centre, size=size, value=value)
    sound = None
    if question is not None:
        latest_s = count / fps - len(question) / INPUT_HZ - AFTER_S
        onset_s = float(rng.uniform(min(BEFORE_S, latest_s), latest_s))
        sound = sounds.record(sounds.place([(onset_s, question)], seconds=count / fps), rng=rng)
    return Film(frames, fps, sound, ((0.0, colour, shape),))


def when_film(
    rng: np.random.Generator,
    *,
    shape: str,
    sound: str,
    colour: str,
    split: Split,
    question: Samples | None = None,
) -> Film:
    """A shape changes its colour every second or two; the sound begins while it has `colour`."""
    event = sounds.make(sound, rng=rng)
    asked_s = 0.0 if question is None else BETWEEN_S + len(question) / INPUT_HZ
    behind_s = len(event) / INPUT_HZ + asked_s + AFTER_S
    fps, count = _length(rng, EVENT_S, least_s=2 * FROM_CHANGE_S + behind_s)
    starts = _changes(rng, count, fps=fps)
    latest_s = count / fps - behind_s
    windows = [
        (number, start + FROM_CHANGE_S, min(end - FROM_CHANGE_S, latest_s))
        for number, (start, end) in enumerate(zip(starts, [*starts[1:], count / fps], strict=True))
    ]
    windows = [window for window in windows if window[1] <= window[2]]
    chosen, earliest_s, until_s = windows[rng.integers(len(windows))]
    onset_s = float(rng.uniform(earliest_s, until_s))
    others = [c for c in rng.permutation(COLOURS).tolist() if c != colour]
    colours = [*others[:chosen], colour, *others[chosen : len(starts) - 1]]
    states = tuple((start, c, shape) for start, c in zip(starts, colours, strict=True))
    frames = _stills(rng, states, count=count, fps=fps, split=split)
    placed = [(onset_s, event)]
    if question is not None:
        placed.append((onset_s + len(event) / INPUT_HZ + BETWEEN_S, _as_loud(rng, question)))
    track = sounds.record(sounds.place(placed, seconds=count / fps), rng=rng)
    return Film(frames, fps, track, states, ((onset_s, sound),))


def order_film(
    rng: np.random.Generator,
    *,
    heard: Sequence[str],
    split: Split,
    question: Samples | None = None,
) -> Film:
    """Two or more sounds one after the other, shapes that change in between."""
    events = [sounds.make(sound, rng=rng, longest_s=ORDER_EVENT_S) for sound in heard]
    lengths_s = [len(event) / INPUT_HZ for event in events]
    between_s = BETWEEN_S * (len(events) - 1)
    asked_s = 0.0 if question is None else BETWEEN_S + len(question) / INPUT_HZ
    rest_s = BEFORE_S + sum(lengths_s) + asked_s + AFTER_S
    fps, count = _length(rng, EVENT_S, least_s=rest_s + STATE_S[1])
    free_s = count / fps - rest_s - between_s
    starts = _changes(rng, count, fps=fps)
    while True:
        onsets = BEFORE_S + np.sort(rng.uniform(0, free_s, len(events)))
        onsets[1:] += np.cumsum(lengths_s[:-1]) + BETWEEN_S * np.arange(1, len(events))
        if any(onsets[0] < start <= onsets[-1] for start in starts):
            break
    colours = _neighbours_differ(rng, COLOURS, len(starts))
    shapes = _neighbours_differ(rng, SHAPES, len(starts))
    states = tuple(zip(starts, colours, shapes, strict=True))
    frames = _stills(rng, states, count=count, fps=fps, split=split)
    placed = list(zip(onsets.tolist(), events, strict=True))
    if question is not None:
        placed.append((placed[-1][0] + lengths_s[-1] + BETWEEN_S, _as_loud(rng, question)))
    track = sounds.record(sounds.place(placed, seconds=count / fps), rng=rng)
    return Film(frames, fps, track, states, tuple(zip(onsets.tolist(), heard, strict=True)))


# ---- time


def _length(
    rng: np.random.Generator, limits: tuple[float, float], *, least_s: float
) -> tuple[int, int]:
    """(frames per second, number of frames) of a film; a long question may make it longer."""
    fps = int(rng.choice(RATES))
    least = max(limits[0], least_s)
    seconds = rng.uniform(least, max(limits[1], least))
    return fps, int(np.ceil(seconds * fps))


def _changes(rng: np.random.Generator, count: int, *, fps: int) -> list[float]:
    """When states begin, in s: all on frames, each 1 to 2 s long, as many as there are colours."""
    least, most = int(np.ceil(STATE_S[0] * fps)), int(STATE_S[1] * fps)
    numbers = range(-(-count // most), min(count // least, len(COLOURS)) + 1)
    number = int(rng.choice(numbers))
    lengths = np.full(number, least)
    for _ in range(count - number * least):
        lengths[rng.choice(np.flatnonzero(lengths < most))] += 1
    return [float(start / fps) for start in (0, *np.cumsum(lengths)[:-1])]


def _neighbours_differ(rng: np.random.Generator, options: Sequence[str], count: int) -> list[str]:
    """`count` random options, no two neighbours alike."""
    found = [str(rng.choice(options))]
    while len(found) < count:
        found.append(str(rng.choice([o for o in options if o != found[-1]])))
    return found


def _progress(rng: np.random.Generator, count: int, split: Split) -> Floats:
    """How far a motion has come at every frame, 0 to 1; in training it may pause at its ends."""
    ends = np.sort(rng.uniform(0, 0.2, 2)) if split == "train" and rng.random() < 0.4 else (0, 0)
    shares = np.linspace(0, 1, count)
    return np.clip((shares - ends[0]) / (1 - ends[0] - ends[1]), 0, 1)


def _as_loud(rng: np.random.Generator, question: Samples) -> Samples:
    """A question about as loud as the events, whose peak is 1."""
    return question * np.float32(rng.uniform(0.5, 1.2) / max(float(np.abs(question).max()), 1e-6))


# ---- pictures


def _even_sides(rng: np.random.Generator) -> tuple[int, int]:
    """Sides of a frame; the codec wants them even."""
    height, width = scenes.sides(rng)
    return height // 2 * 2, width // 2 * 2


def _form(rng: np.random.Generator, shape: str, split: Split) -> Floats:
    turn = rng.uniform(-scenes.TURN, scenes.TURN)
    return scenes.turned(scenes.outline(rng, shape, split=split), turn)


def _way(
    rng: np.random.Generator, form: Floats, motion: str, *, height: int, width: int
) -> tuple[Floats, Floats]:
    """Centres [2,2] (x, y) and sizes [2] at the beginning and at the end."""
    side = min(height, width)
    half = form.max(0)  # of the box of a shape of size 1
    margin, frame = scenes.MARGIN, np.array((width, height))
    size = rng.uniform(scenes.LEAST_SHARE, 0.34) * side
    sizes = np.full(2, size)
    if motion in ("grows", "shrinks"):
        small = rng.uniform(scenes.LEAST_SHARE, 0.26) * side
        large = min(small * rng.uniform(*GROWTH), (frame / (2 * half) - 2 * margin).min())
        sizes = np.array((small, large) if motion == "grows" else (large, small))
    reach = half * sizes.max() + margin
    centre = rng.uniform(reach, frame - reach)
    centres = np.stack((centre, centre))
    if motion.startswith("moves"):
        axis = 0 if motion in ("moves left", "moves right") else 1
        room = frame[axis] - 2 * reach[axis]
        way = rng.uniform(min(LEAST_WAY * frame[axis], room), room)
        start = rng.uniform(reach[axis], frame[axis] - reach[axis] - way)
        ends = (
            (start, start + way)
            if motion in ("moves right", "moves down")
            else (start + way, start)
        )
        centres[:, axis] = ends
    return centres, sizes


def _stills(
    rng: np.random.Generator,
    states: Sequence[tuple[float, str, str]],
    *,
    count: int,
    fps: int,
    split: Split,
) -> Pixels:
    """Frames of a shape that stands still while its colour, or what it is, changes."""
    height, width = _even_sides(rng)
    values = {colour: scenes.colour_value(rng, colour) for _, colour, _ in states}
    ground = scenes.ground_value(rng, list(values.values()))
    forms = {shape: _form(rng, shape, split) for _, _, shape in states}
    size = rng.uniform(scenes.LEAST_SHARE + 0.03, scenes.MOST_SHARE) * min(height, width)
    half = np.max([form.max(0) for form in forms.values()], 0) * size
    reach = np.minimum(half + scenes.MARGIN, np.array((width, height)) / 2)
    centre = rng.uniform(reach, np.array((width, height)) - reach)
    frames = np.tile(scenes.plain(ground, height=height, width=width), (count, 1, 1, 1))
    borders = [round(start * fps) for start, _, _ in states] + [count]
    for (_, colour, shape), first, behind in zip(states, borders, borders[1:], strict=False):
        scenes.paint(frames[first], forms[shape], centre=centre, size=size, value=values[colour])
        frames[first:behind] = frames[first]
    return frames
