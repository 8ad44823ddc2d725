"""How many tokens a medium will take, from its header alone: batches are planned before decoding.

The same for every process. Exact for pictures, PCM and given arrays; for compressed sound and films
as exact as their headers, which is a token or two.
"""

from __future__ import annotations

import wave
from collections.abc import Mapping
from fractions import Fraction
from typing import Any, BinaryIO

import numpy as np
from PIL import Image, UnidentifiedImageError

from thinktalk.config import ThinkerConfig
from thinktalk.media.chat import Medium
from thinktalk.media.decode import PICTURE_FORMATS, container, translated
from thinktalk.media.film import FRAME_FACTOR, Sampling, is_picture
from thinktalk.media.image import Processor, image_size
from thinktalk.media.mel import EAR_HZ
from thinktalk.media.prompt import PIXEL_OPTIONS, num_audio_tokens
from thinktalk.media.source import Opened, open_source, source_name
from thinktalk.media.video import video_size

FRAME_OPTIONS = ("fps", "num_frames", "min_frames", "max_frames")


def num_tokens(
    medium: Medium, *, config: ThinkerConfig, processor: Processor, audio_in_video: bool
) -> int | None:
    """Ids between the markers of a medium; None if its header does not tell.

    Raises ValueError for a medium that is missing, of another kind, or too short.
    """
    if medium.kind == "image":
        limits = _chosen(medium.options, ("min_pixels", "max_pixels"))
        h, w = _fixed(medium.options, processor) or image_size(
            *picture_sides(medium.source), processor=processor, **limits
        )
        return h * w // processor.cell**2
    if medium.kind == "audio":
        seconds = sound_seconds(medium.source, rate=int(medium.options.get("sample_rate", EAR_HZ)))
        count = None if seconds is None else _sound_tokens(seconds, medium.options)
        if count == 0:
            raise ValueError(f"{source_name(medium.source)} is shorter than 30 ms; leave it out")
        return count
    return _video_tokens(medium, config, processor, audio_in_video)


def picture_sides(source: Any) -> tuple[int, int]:
    """The sides of a picture in pixels; which is which does not matter for the number of tokens."""
    if isinstance(source, Image.Image):
        return source.size
    if isinstance(source, np.ndarray):
        sides = [side for side in source.shape if side not in (1, 3, 4)]
        return (sides[0], sides[1]) if len(sides) == 2 else (source.shape[0], source.shape[1])
    with open_source(source) as opened, translated(opened, "picture"):
        try:
            with Image.open(opened.file, formats=PICTURE_FORMATS) as image:
                return image.size
        except UnidentifiedImageError:
            remedy = "use PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"
            raise opened.refuse("is not a picture of a known kind", remedy) from None


def sound_seconds(source: Any, *, rate: int = EAR_HZ) -> Fraction | None:
    """How long a recording is; rate is that of a bare array. None if its header does not tell."""
    if isinstance(source, tuple | np.ndarray):
        array, rate = source if isinstance(source, tuple) else (source, rate)
        return Fraction(max(array.shape), rate)
    with open_source(source) as opened:
        if (seconds := _wav_seconds(opened.file)) is not None:
            return seconds
        opened.file.seek(0)
        return _stated_seconds(opened)


def _wav_seconds(file: BinaryIO) -> Fraction | None:
    """Of a plain WAV file, for which FFmpeg needs thirty times as long; None for others."""
    try:
        with wave.open(file) as sound:
            count, size = sound.getnframes(), sound.getnchannels() * sound.getsampwidth()
            whole = count * size <= file.seek(0, 2)  # else its header did not know the length
            return Fraction(count, sound.getframerate()) if whole else None
    except (wave.Error, EOFError):
        return None


def _stated_seconds(opened: Opened) -> Fraction | None:
    with container(opened, "sound") as media:
        stream = media.streams.best("audio")
        if stream is None:
            raise opened.refuse("has no sound", "give a recording")
        if stream.duration and stream.time_base:
            return stream.duration * stream.time_base
        return Fraction(media.duration, 1_000_000) if media.duration else None


def _video_tokens(
    medium: Medium, config: ThinkerConfig, processor: Processor, audio_in_video: bool
) -> int | None:
    options, source = medium.options, medium.source
    hear = options.get("audio_in_video", audio_in_video)
    film = _film(source, options, processor)
    if film is None:
        return None
    num_source, seconds, height, width, heard = film
    given = isinstance(source, list | tuple | np.ndarray)
    sampling = Sampling(
        **{
            "fps": processor.video_fps,
            "min_frames": processor.video_min_frames,
            "max_frames": processor.video_max_frames,
            **_chosen(options, FRAME_OPTIONS),
        }
    )
    first, last = _segment(options, seconds)
    within = round(num_source * (last - first) / seconds) if seconds else num_source
    num_frames = num_source if given else sampling.count(within, last - first)
    h, w = _fixed(options, processor) or video_size(
        num_frames, height, width, processor=processor, **_chosen(options, PIXEL_OPTIONS)
    )
    count = -(-num_frames // FRAME_FACTOR) * h * w // processor.cell**2
    if options.get("sound") is not None:
        heard = sound_seconds(options["sound"])
    elif not hear:
        heard = Fraction(0)
    if heard is None:
        return None
    sound = _sound_tokens(heard, options)
    return count + (sound + 2 if sound else 0)  # a sounding video has the audio's markers inside


def _film(
    source: Any, options: Mapping[str, Any], processor: Processor
) -> tuple[int, Fraction, int, int, Fraction] | None:
    """Frames, seconds, height, width, and seconds of sound; None if the header keeps silent.

    Animated pictures keep silent, too: their length is known once they are read.
    """
    if isinstance(source, list | tuple | np.ndarray):
        rate = Fraction(options.get("fps", processor.video_fps)).limit_denominator(1_000_000)
        height, width = picture_sides(source[0])
        return len(source), len(source) / rate, height, width, Fraction(0)
    with open_source(source) as opened:
        if is_picture(opened):
            return None
        with container(opened, "video") as media:
            if not media.streams.video:
                raise opened.refuse("is not a video of a known kind", "give another file")
            stream = media.streams.video[0]
            seconds = Fraction(media.duration or 0, 1_000_000)
            if stream.duration and stream.time_base:
                seconds = stream.duration * stream.time_base
            rate = stream.average_rate or stream.base_rate
            num_frames = stream.frames or (round(seconds * rate) if rate else 0)
            if not num_frames or not seconds or not stream.height:
                return None
            track, heard = media.streams.best("audio"), Fraction(0)
            if track is not None:
                heard = seconds
                if track.duration and track.time_base:
                    heard = track.duration * track.time_base
            return num_frames, seconds, stream.height, stream.width, heard


def _sound_tokens(seconds: Fraction, options: Mapping[str, Any]) -> int:
    first, last = _segment(options, seconds)
    num_samples = (last - first) * EAR_HZ
    return num_audio_tokens(max(0, -(-num_samples.numerator // num_samples.denominator)))


def _segment(options: Mapping[str, Any], seconds: Fraction) -> tuple[Fraction, Fraction]:
    """What start and end leave of so many seconds."""
    first = min(Fraction(str(options.get("start", 0))), seconds)
    end = options.get("end")
    return first, seconds if end is None else min(Fraction(str(end)), seconds)


def _fixed(options: Mapping[str, Any], processor: Processor) -> tuple[int, int] | None:
    if "resized_height" not in options or "resized_width" not in options:
        return None
    height, width = options["resized_height"], options["resized_width"]
    return image_size(height, width, processor=processor)


def _chosen(options: Mapping[str, Any], names: tuple[str, ...]) -> dict[str, Any]:
    return {name: options[name] for name in names if name in options}
