"""A film or animation in, the frames worth looking at and the sound out.

PyAV reads films, Pillow animated pictures. How many frames to take follows the official
qwen-omni-utils; where a film keeps no even beat, time decides instead of frame numbers.
"""

from __future__ import annotations

import math
from bisect import bisect_left, bisect_right
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction

import numpy as np
from av.container import InputContainer
from av.stream import Disposition
from av.video.frame import VideoFrame
from av.video.stream import VideoStream
from PIL import Image

from thinktalk.media.decode import (
    DAMAGED_SHARE,
    SPARE_PACKETS,
    TEXT_CODECS,
    Health,
    check_length,
    container,
    read_sound,
    resample,
    translated,
    upright_rgb,
)
from thinktalk.media.image import Bytes, Floats, resize
from thinktalk.media.mel import EAR_HZ
from thinktalk.media.source import Opened

Size = Callable[[int, int, int], tuple[int, int]]  # (num_frames, height, width) -> (h, w)

FRAME_FACTOR = 2  # frames are taken in even numbers
BROWSER_MILLISECONDS = 100  # browsers show an animation frame without duration so long


@dataclass(frozen=True)
class Sampling:
    """How many frames to take: so many a second, or an exact number."""

    fps: float = 2.0
    num_frames: int | None = None
    min_frames: int = 4
    max_frames: int = 768

    def __post_init__(self) -> None:
        if not (0 < self.fps <= 1000):
            raise ValueError(f"fps is {self.fps}, but must be above 0 and at most 1000")
        if self.num_frames is not None and self.num_frames < 1:
            raise ValueError(f"nframes is {self.num_frames}, but must be at least 1")
        for name, value in (("min_frames", self.min_frames), ("max_frames", self.max_frames)):
            if value < 1:
                raise ValueError(f"{name} is {value}, but must be at least 1")

    def count(self, num_source: int, seconds: Fraction) -> int:
        """Frames to take from num_source frames that last so many seconds: even, or 1 of 1."""
        if num_source < FRAME_FACTOR:
            return num_source
        most = num_source // FRAME_FACTOR * FRAME_FACTOR
        if self.num_frames is not None:
            wanted = max(FRAME_FACTOR, round(self.num_frames / FRAME_FACTOR) * FRAME_FACTOR)
            if wanted > most:
                raise ValueError(
                    f"nframes is {self.num_frames}, but there are only {num_source} frames"
                )
            return wanted
        least = math.ceil(self.min_frames / FRAME_FACTOR) * FRAME_FACTOR
        limit = min(self.max_frames // FRAME_FACTOR * FRAME_FACTOR, most)
        number = min(max(self.ideal(seconds), least), limit)
        return max(FRAME_FACTOR, math.floor(number / FRAME_FACTOR) * FRAME_FACTOR)

    def ideal(self, seconds: Fraction) -> float:
        """Frames that the rate asks for, before evenness and limits."""
        return float(seconds * Fraction(self.fps).limit_denominator(1_000_000))

    def true_fps(self, count: int, seconds: Fraction) -> float:
        """The rate of count frames over so many seconds; fps itself if only evenness changed it."""
        if self.num_frames is None and 0 <= self.ideal(seconds) - count < FRAME_FACTOR:
            return self.fps
        return float(count / seconds) if seconds else self.fps


def read_film(
    opened: Opened,
    sampling: Sampling,
    first: Fraction,
    last: Fraction | None,
    *,
    sound: bool,
    size: Size | None,
    max_seconds: float | None,
) -> tuple[Bytes, float, Floats | None]:
    """Return the chosen frames [n,H,W,3] between two instants, their true rate, and the sound.

    The sound is mono 16 kHz, None if the film has none there or it is not asked for.
    """
    index = _scan(opened)
    try:
        chosen, fps = index.pick(sampling, first, last)
    except ValueError as error:
        remedy = f"it has {len(index.times)} frames in {float(index.seconds):.2f} s"
        raise opened.refuse(f"cannot be sampled ({error})", remedy) from None
    frames = _decode_chosen(opened, index, chosen, size)
    wave = None
    if sound and index.has_sound:
        wave, rate = read_sound(
            opened, start=first, end=last, origin=index.origin, max_seconds=max_seconds
        )
        wave = resample(wave, before=rate, after=EAR_HZ) if len(wave) else None
    return frames, fps, wave


def read_animation(
    opened: Opened,
    sampling: Sampling,
    first: Fraction,
    last: Fraction | None,
    *,
    size: Size | None,
) -> tuple[Bytes, float]:
    """Return the chosen frames [n,H,W,3] of an animated picture and their true rate."""
    with translated(opened, "animation"), Image.open(opened.file) as image:
        total = getattr(image, "n_frames", 1)
        if total == 1:
            raise opened.refuse("is a still picture", "send it as an image, not as a video")
        times = [Fraction(0)]
        for number in range(total):
            image.seek(number)
            image.load()
            shown = image.info.get("duration") or BROWSER_MILLISECONDS
            times.append(times[-1] + Fraction(round(shown), 1000))
        index = _Index([], times[:-1], times[-1], None, Fraction(0), False, False)
        try:
            chosen, fps = index.pick(sampling, first, last)
        except ValueError as error:
            remedy = f"it has {total} frames in {float(times[-1]):.2f} s"
            raise opened.refuse(f"cannot be sampled ({error})", remedy) from None
        frames = []
        for number in chosen:
            image.seek(number)
            frames.append(upright_rgb(image.copy()))
    return stacked(sized(frames, size)), fps


def is_picture(opened: Opened) -> bool:
    """True for what Pillow reads better than FFmpeg: still and animated pictures."""
    head = opened.file.read(12)
    opened.file.seek(0)
    return (
        head.startswith((b"GIF8", b"\x89PNG", b"\xff\xd8\xff", b"BM", b"II*\0", b"MM\0*"))
        or (head[:4] == b"RIFF" and head[8:] == b"WEBP")
        or head[4:] in (b"ftypavis", b"ftypavif")
    )


def choose_frames(
    times: list[Fraction], *, seconds: Fraction, rate: Fraction | None, sampling: Sampling
) -> tuple[list[int], float]:
    """Return the indices of the frames to look at, in order, and their true rate per second.

    times are the instants in seconds at which the source's frames appear, seconds the time they
    cover together. rate is the source's constant rate, or None when it varies: then a frame counts
    for as long as it stays on the screen, and may be taken twice.
    """
    if rate is not None:
        seconds = len(times) / rate
        count = sampling.count(len(times), seconds)
        chosen = np.linspace(0, len(times) - 1, count, dtype=np.float32).round().astype(int)
        return chosen.tolist(), sampling.true_fps(count, seconds)
    enough = max(len(times), math.ceil(sampling.ideal(seconds)))  # a held frame may repeat
    count = sampling.count(enough, seconds)
    middles = [times[0] + seconds * Fraction(2 * i + 1, 2 * count) for i in range(count)]
    chosen = np.searchsorted(np.array(times, float), np.array(middles, float), side="right") - 1
    return chosen.tolist(), sampling.true_fps(count, seconds)


def even_rate(times: list[Fraction], stated: Fraction | None) -> Fraction | None:
    """Return the constant rate behind frame times, or None if they do not keep a beat.

    A frame may be one step early or late: containers round times, encoders drop a frame. stated is
    the rate in the file's header, preferred where the times agree with it.
    """
    if len(times) < FRAME_FACTOR:
        return stated or Fraction(1)
    step = (times[-1] - times[0]) / (len(times) - 1)
    if step <= 0 or any(abs(t - times[0] - i * step) > step for i, t in enumerate(times)):
        return None
    measured = 1 / step
    if stated and abs(stated - measured) <= measured / 50:
        return stated
    return measured


@dataclass(frozen=True)
class _Index:
    """Where the frames of a film lie: their keys (time stamps, or numbers) and instants."""

    keys: list[int]
    times: list[Fraction]  # seconds from the first frame
    seconds: Fraction
    rate: Fraction | None
    origin: Fraction  # time stamp of the first frame in seconds
    timed: bool  # keys are time stamps
    has_sound: bool

    def pick(
        self, sampling: Sampling, first: Fraction, last: Fraction | None
    ) -> tuple[list[int], float]:
        """Return the indices to decode between two instants, and their true rate."""
        if self.rate is None:  # a frame stays until the next one: the segment may start within it
            low = max(0, bisect_right(self.times, first) - 1)
        else:
            low = bisect_left(self.times, first)
        high = len(self.times) if last is None else bisect_right(self.times, last)
        if low >= high or first >= self.seconds:
            raise ValueError(f"the segment from {float(first)} s holds no frame")
        times = [max(t, first) for t in self.times[low:high]]
        until = self.seconds if last is None else min(last, self.seconds)
        chosen, fps = choose_frames(
            times, seconds=until - times[0], rate=self.rate, sampling=sampling
        )
        return [low + i for i in chosen], fps


def _scan(opened: Opened) -> _Index:
    """Read all packets, decoding none."""
    with container(opened, "video") as media:
        stream = _film_stream(opened, media)
        stamps: list[int | None] = []
        tail, until, has_sound = 0, Fraction(0), False
        for packet in media.demux():
            if not packet.size or packet.time_base is None:
                continue
            if packet.pts is not None:
                until = max(until, (packet.pts + (packet.duration or 0)) * packet.time_base)
            has_sound |= packet.stream.type == "audio"
            if packet.stream_index == stream.index and not packet.is_discard:
                stamps.append(packet.pts)
                tail = packet.duration or 0
        if not stamps:
            raise opened.refuse("contains no frames", "check how it was recorded")
        begin = Fraction(media.start_time or 0, 1_000_000)
        if media.duration:
            stated = Fraction(media.duration, 1_000_000)
            check_length(opened, media, stated=stated, found=until - begin)
        return _index(stamps, stream, tail, has_sound)


def _index(stamps: list[int | None], stream: VideoStream, tail: int, has_sound: bool) -> _Index:
    known = sorted(stamp for stamp in stamps if stamp is not None)
    timed = len(known) == len(stamps) and len(set(known)) == len(known)
    stated, base = stream.average_rate or stream.base_rate, stream.time_base
    if not timed or base is None:
        known, base, tail = list(range(len(stamps))), 1 / (stated or Fraction(25)), 1
    times = [(stamp - known[0]) * base for stamp in known]
    step = times[-1] / (len(times) - 1) if len(times) > 1 else Fraction(0)
    seconds = times[-1] + (tail * base or step or 1 / (stated or Fraction(25)))
    rate, origin = even_rate(times, stated), known[0] * base if timed else Fraction(0)
    return _Index(known, times, seconds, rate, origin, timed, has_sound)


def _film_stream(opened: Opened, media: InputContainer) -> VideoStream:
    for stream in media.streams.video:
        cover = stream.disposition & Disposition.attached_pic
        codec = stream.codec_context and stream.codec_context.name
        if not cover and codec and codec not in TEXT_CODECS:
            return stream
    kind = "has sound but no pictures" if media.streams.audio else "is not a video of a known kind"
    raise opened.refuse(kind, "send it as what it is, or give another file")


def _decode_chosen(opened: Opened, index: _Index, chosen: list[int], size: Size | None) -> Bytes:
    """Decode from the key frame before the first chosen one to the last: uint8 [n,H,W,3]."""
    wanted = [index.keys[i] for i in chosen]
    frames: list[Bytes] = []
    with container(opened, "video") as media:
        stream = _film_stream(opened, media)
        stream.thread_type = "AUTO"
        if index.timed and chosen[0] > 0:
            media.seek(wanted[0], stream=stream)
        health = Health(opened, "video")
        for number, frame in enumerate(health.frames(media.demux(stream))):
            key = frame.pts if index.timed else number
            if key is None or key < wanted[len(frames)]:
                continue
            pixels = sized([_upright(frame)], _fixed(size, len(chosen)))[0]
            while len(frames) < len(wanted) and key >= wanted[len(frames)]:
                frames.append(pixels)
            if len(frames) == len(wanted):
                break
        health.check(num_frames=len(frames))
    missing = len(wanted) - len(frames)
    if missing > SPARE_PACKETS + DAMAGED_SHARE * len(wanted):
        what = f"is corrupt or truncated ({missing} of {len(wanted)} frames cannot be decoded)"
        raise opened.refuse(what, "get or save it again")
    frames += [frames[-1]] * missing
    return stacked(frames)


def _upright(frame: VideoFrame) -> Bytes:
    """Turn and mirror a decoded frame as its display matrix says: uint8 [H,W,3]."""
    pixels = np.asarray(frame.to_ndarray(format="rgb24"), np.uint8)
    matrix = frame.side_data.get("DISPLAYMATRIX")
    if matrix is None:
        return pixels
    a, b, _, c, d = np.frombuffer(bytes(matrix)[:20], np.int32).tolist()  # x' = ax+cy, y' = bx+dy
    if abs(b) > abs(a):
        pixels, a, d = pixels.swapaxes(0, 1), c, b
    return np.ascontiguousarray(pixels[:: -1 if d < 0 else 1, :: -1 if a < 0 else 1])


def stacked(frames: list[Bytes]) -> Bytes:
    """Stack to [n,H,W,3]; a frame of another size is brought to that of the first."""
    size = frames[0].shape[0], frames[0].shape[1]
    return np.stack([resize(frame, size=size) for frame in frames])


def sized(frames: list[Bytes], size: Size | None) -> list[Bytes]:
    """Bring every frame to the (h, w) that size tells for it; None leaves them as they are."""
    if size is None:
        return frames
    return [resize(f, size=size(len(frames), f.shape[0], f.shape[1])) for f in frames]


def _fixed(size: Size | None, num_frames: int) -> Size | None:
    """The same rule, told how many frames there will be in the end."""
    return None if size is None else lambda _, height, width: size(num_frames, height, width)
