"""Any recording, picture or film in, plain arrays out; whatever cannot be read is refused.

Sound goes through PyAV and soxr, pictures through Pillow. Every refusal is one ValueError sentence.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from fractions import Fraction
from typing import Any

import av
import numpy as np
import soxr
from av.audio.frame import AudioFrame
from av.container import InputContainer
from av.error import FFmpegError
from av.stream import Stream
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from thinktalk.media.image import Bytes, Floats
from thinktalk.media.mel import EAR_HZ
from thinktalk.media.source import Opened, Source, open_source, refusal

Sound = Source | NDArray[Any] | tuple[NDArray[Any], int]
Picture = Source | NDArray[Any] | Image.Image

MAX_CHANNELS = 8
SPARE_PACKETS, DAMAGED_SHARE = 2, 0.1  # fewer damaged packets than these sum to are skipped
SECONDS_PER_TOKEN = Fraction(1, 25)
MISSING_SECONDS, MISSING_SHARE = Fraction(1, 5), Fraction(1, 20)  # more than both: truncated

# Containers whose header tells how long they should be; in others a cut cannot be noticed.
STATES_LENGTH = frozenset({"wav", "w64", "flac", "mov", "matroska", "avi", "asf", "aiff", "caf"})
UNKNOWN_RIFF_BYTES = 0x7FFF0000  # writers that stream put this much or more in the length field
TEXT_CODECS = frozenset({"ansi", "bintext", "xbin", "idf"})  # what FFmpeg makes of plain text
PICTURE_FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "AVIF", "JPEG2000", "PPM", "TGA")
PICTURE_FORMATS += ("ICO",)
WIDE_GREY_MODES = frozenset({"I;16", "I;16B", "I;16L", "I;16N", "I", "F"})


def load_audio(
    source: Sound,
    *,
    start: float | None = None,
    end: float | None = None,
    sample_rate: int = EAR_HZ,
    max_seconds: float | None = None,
) -> Floats:
    """Return a recording, or a film's sound, as mono float32 [n] at sample_rate.

    Arrays are [n], [n,channels] or [channels,n], float in -1..1 or integers, at sample_rate unless
    given as (array, rate). start and end cut a segment, in seconds. Channels are averaged, as the
    official tools do. Raises ValueError for what cannot be read or lasts longer than max_seconds.
    """
    first, last = segment(start, end)
    if isinstance(source, tuple | np.ndarray):
        array, rate = source if isinstance(source, tuple) else (source, sample_rate)
        name, wave = "the given array", _from_array(array)
        wave = wave[int(first * rate) : None if last is None else int(last * rate)]
    else:
        with open_source(source) as opened:
            name = opened.name
            wave, rate = read_sound(opened, start=first, end=last, max_seconds=max_seconds)
    if max_seconds is not None and len(wave) > max_seconds * rate:
        raise too_long(name, max_seconds)
    if not len(wave):
        raise refusal(name, "has no samples in this segment", "check start and end")
    if not np.isfinite(wave).all():
        raise refusal(name, "contains samples that are not numbers", "record or export it again")
    return resample(wave, before=rate, after=sample_rate)


def resample(wave: Floats, *, before: int, after: int) -> Floats:
    """Return the wave [n] at another rate, ceil(n * after / before) samples long."""
    if before == after:
        return wave
    if before <= 0:
        raise ValueError(f"the sample rate is {before} Hz; give the rate of the recording")
    num_samples = -(-len(wave) * after // before)
    out = np.asarray(soxr.resample(wave, before, after, quality="HQ"), np.float32)[:num_samples]
    return np.pad(out, (0, num_samples - len(out)))


def load_image(source: Picture) -> Bytes:
    """Return a picture as RGB uint8 [H,W,3], upright, transparent parts white.

    Arrays are uint8 [H,W], [H,W,1|3|4] or [3,H,W], or float in 0..1 of these shapes. Of an animated
    picture the first frame counts. Raises ValueError for what cannot be read.
    """
    if isinstance(source, np.ndarray):
        return _picture_array(source)
    if isinstance(source, Image.Image):
        return upright_rgb(source)
    with open_source(source) as opened:
        return read_picture(opened)


def read_picture(opened: Opened) -> Bytes:
    """Decode the (first) picture of an open file to uint8 [H,W,3]."""
    with translated(opened, "picture"):
        try:
            with Image.open(opened.file, formats=PICTURE_FORMATS) as image:
                return upright_rgb(image)
        except UnidentifiedImageError:
            raise opened.refuse(
                "is not a picture of a known kind", "use PNG, JPEG, WebP, GIF, BMP, TIFF or AVIF"
            ) from None


def upright_rgb(image: Image.Image) -> Bytes:
    """Turn a picture as its EXIF says, lay it on white and return RGB uint8 [H,W,3]."""
    if image.mode in WIDE_GREY_MODES:
        image = Image.fromarray(_eight_bit(np.asarray(image)))
    image = ImageOps.exif_transpose(image)
    if image.has_transparency_data:
        coloured = image.convert("RGBA")
        image = Image.new("RGB", image.size, (255, 255, 255))
        image.paste(coloured, mask=coloured.getchannel("A"))
    return np.array(image.convert("RGB"))


def segment(start: float | None, end: float | None) -> tuple[Fraction, Fraction | None]:
    """Check a segment in seconds and return it exactly; ValueError if it is empty or negative."""
    for name, value in (("start", start), ("end", end)):
        if value is not None and not 0 <= value < float("inf"):
            raise ValueError(f"{name} is {value} s; give a time of 0 s or later")
    first = Fraction(str(start or 0))
    last = None if end is None else Fraction(str(end))
    if last is not None and last <= first:
        raise ValueError(f"the segment from {start or 0} s to {end} s is empty; end must be later")
    return first, last


def too_long(name: str, max_seconds: float) -> ValueError:
    """The refusal of a recording that would not fit."""
    return refusal(
        name, f"lasts longer than {max_seconds:.0f} s", "give start and end to take a part of it"
    )


@contextmanager
def translated(opened: Opened, noun: str) -> Iterator[None]:
    """Turn the many exceptions of decoders into one sentence."""
    try:
        yield
    except FFmpegError as error:
        reason = error.strerror or "unreadable"
        raise opened.refuse(
            f"cannot be read as {noun} ({reason})", "it may be corrupt, truncated or another kind"
        ) from error
    except Image.DecompressionBombError as error:
        raise opened.refuse("has too many pixels", "make it smaller") from error
    except (OSError, SyntaxError, EOFError, struct.error, LookupError, RuntimeError) as error:
        raise opened.refuse(
            f"is a corrupt or truncated {noun} ({error})", "get or save it again"
        ) from error


@contextmanager
def container(opened: Opened, noun: str) -> Iterator[InputContainer]:
    """Open a sound or film; nested files (playlists) are never followed."""
    with translated(opened, noun):
        opened.file.seek(0)
        closed = {"protocol_whitelist": ""}
        media = av.open(opened.file, "r", metadata_errors="ignore", options=closed)
        try:
            yield media
        finally:
            media.close()


def read_sound(
    opened: Opened,
    *,
    start: Fraction,
    end: Fraction | None,
    origin: Fraction | None = None,
    max_seconds: float | None = None,
) -> tuple[Floats, int]:
    """Decode a segment of the best sound track: mono float32 [n], empty beyond its end, and rate.

    start and end count from the first sample, or, for the sound of a film, from the film's origin.
    """
    pieces: list[Floats] = []
    rate, num_samples, whole = 0, 0, True
    with container(opened, "sound") as media:
        stream = media.streams.best("audio")
        if stream is None:
            raise opened.refuse("has no sound", "give a recording, or send it as what it is")
        if stream.codec_context is None:
            raise opened.refuse("has sound of an unknown codec", "convert it, to WAV for example")
        health = Health(opened, "sound")
        for frame in health.frames(media.demux(stream)):
            if not pieces:
                rate, late = frame.sample_rate, _lateness(frame, origin)
                pieces.append(np.zeros(max(0, int(late * rate)), np.float32))
                num_samples, early = len(pieces[0]), max(0, -late)
                start, end = start + early, end if end is None else end + early
            if frame.sample_rate != rate:
                raise opened.refuse("changes its sample rate on the way", "convert it first")
            pieces.append(_mono(frame))
            num_samples += frame.samples
            if end is not None and num_samples >= end * rate:
                whole = False
                break
            if max_seconds is not None and num_samples > (start + Fraction(max_seconds)) * rate:
                raise too_long(opened.name, max_seconds)
        health.check(num_frames=num_samples)
        if whole:
            found = Fraction(num_samples, rate)
            check_length(opened, media, stated=_stated_seconds(media, stream), found=found)
    wave = np.concatenate(pieces)
    return wave[int(start * rate) : None if end is None else int(end * rate)], rate


def _stated_seconds(media: InputContainer, stream: Stream) -> Fraction:
    """How long the header says the sound is; 0 if it does not say."""
    if stream.duration and stream.time_base:
        return stream.duration * stream.time_base
    if media.duration and len(media.streams) == 1:
        return Fraction(media.duration, 1_000_000)
    return Fraction(0)


def _lateness(frame: AudioFrame, origin: Fraction | None) -> Fraction:
    """How much later than a film's pictures its sound begins, in seconds; 0 below one token."""
    if origin is None or frame.time is None:
        return Fraction(0)
    late = Fraction(frame.time).limit_denominator(1_000_000) - origin
    return late if abs(late) >= SECONDS_PER_TOKEN else Fraction(0)


class Health:
    """Counts what a decoder could not use; a little damage is skipped, more is refused."""

    def __init__(self, opened: Opened, noun: str) -> None:
        self.opened, self.noun = opened, noun
        self.num_packets = self.num_damaged = 0

    def frames(self, packets: Iterator[av.Packet]) -> Iterator[Any]:
        """Decode packets one by one, passing over damaged ones."""
        for packet in packets:
            self.num_packets += 1
            try:
                yield from packet.decode()
            except FFmpegError:
                self.num_damaged += 1

    def check(self, *, num_frames: int) -> None:
        """Raise ValueError if nothing came out, or too much was damaged."""
        if self.num_damaged > SPARE_PACKETS + DAMAGED_SHARE * self.num_packets or (
            self.num_damaged and not num_frames
        ):
            raise self.opened.refuse(
                f"is corrupt or truncated ({self.num_damaged} of {self.num_packets} packets of "
                f"{self.noun} cannot be decoded)",
                "get or save it again",
            )
        if not num_frames:
            raise self.opened.refuse(f"contains no {self.noun}", "check how it was recorded")


def check_length(
    opened: Opened, media: InputContainer, *, stated: Fraction, found: Fraction
) -> None:
    """Raise ValueError if a file ends well before its header says."""
    kinds = set(media.format.name.split(","))
    missing = stated - found
    cut = kinds & STATES_LENGTH and missing > max(MISSING_SECONDS, stated * MISSING_SHARE)
    if cut or (kinds & {"wav", "avi"} and _riff_is_short(opened)):
        promise = f", its header promises {float(stated):.1f} s" if cut else ""
        raise opened.refuse(
            f"is truncated: it ends after {float(found):.1f} s{promise}", "get the whole file"
        )


def _riff_is_short(opened: Opened) -> bool:
    opened.file.seek(0)
    head = opened.file.read(8)
    stated = int.from_bytes(head[4:8], "little") + 8
    held = opened.file.seek(0, 2)
    return head[:4] == b"RIFF" and held < stated - 1 and stated < UNKNOWN_RIFF_BYTES


def _mono(frame: AudioFrame) -> Floats:
    """Average a frame's channels to float32 [n]."""
    array = frame.to_ndarray()
    if not frame.format.is_planar:
        array = array.reshape(-1, len(frame.layout.channels)).T
    return np.asarray(_as_float(array).mean(axis=0), np.float32)


def _as_float(array: NDArray[Any]) -> Floats:
    """Scale integer samples to -1..1."""
    if array.dtype == np.uint8:
        return (array.astype(np.float32) - np.float32(128)) / np.float32(128)
    if np.issubdtype(array.dtype, np.signedinteger):
        return np.asarray(array / -float(np.iinfo(array.dtype).min), np.float32)
    if np.issubdtype(array.dtype, np.floating):
        return array.astype(np.float32)
    raise ValueError(f"the given samples are {array.dtype}; give float or signed integers")


def _from_array(array: NDArray[Any]) -> Floats:
    array = np.asarray(array)
    wave = _as_float(array)
    if array.ndim == 2 and min(array.shape) <= MAX_CHANNELS:
        wave = np.asarray(wave.mean(axis=int(np.argmin(array.shape))), np.float32)
    elif array.ndim != 1:
        raise ValueError(f"the given sound has shape {array.shape}; give samples [n]")
    if not wave.size:
        raise refusal("the given array", "has no samples", "record something first")
    return wave


def _picture_array(array: NDArray[Any]) -> Bytes:
    if array.ndim == 3 and array.shape[0] in (1, 3, 4) and array.shape[2] not in (1, 3, 4):
        array = array.transpose(1, 2, 0)
    if array.ndim == 3 and array.shape[2] == 1:
        array = array[:, :, 0]
    if array.ndim not in (2, 3) or 0 in array.shape or array.shape[2:] not in ((), (3,), (4,)):
        raise ValueError(f"the given picture has shape {array.shape}; give [height, width, 3]")
    if np.issubdtype(array.dtype, np.floating) and array.min() >= 0 and array.max() <= 1:
        array = (array * 255).round().astype(np.uint8)
    if array.dtype != np.uint8:
        raise ValueError(
            f"the given picture holds {array.dtype} values from {array.min()} to {array.max()}; "
            "give uint8, or float in 0..1"
        )
    return upright_rgb(Image.fromarray(np.ascontiguousarray(array)))


def _eight_bit(grey: NDArray[Any]) -> Bytes:
    """Bring 16-bit, 32-bit or float grey values to 0..255: Pillow itself would cut them off."""
    values = np.nan_to_num(grey.astype(np.float64))
    if np.issubdtype(grey.dtype, np.floating):
        full = 1.0 if values.max() <= 1 else 255.0
    else:
        full = 255.0 if values.max() <= 255 and grey.dtype != np.uint16 else 65535.0
    return np.clip(np.round(values * (255 / full)), 0, 255).astype(np.uint8)
