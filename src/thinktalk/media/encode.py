"""Samples in, sound files out: WAV, MP3, FLAC, Opus, AAC or bare PCM, at once or piece by piece."""

from __future__ import annotations

import io
import struct
import wave
from pathlib import Path

import av
import numpy as np
from av.audio.frame import AudioFrame
from av.audio.stream import AudioStream
from numpy.typing import NDArray

from thinktalk.media.mel import VOICE_HZ

Floats = NDArray[np.float32]

FULL_SCALE = 32_768
SAMPLE_BYTES = 2
UNKNOWN_BYTES = 0xFFFFFFFF  # a length field that was written before the end was known

# name -> PyAV's container, codec and sample format
CODECS = {
    "mp3": ("mp3", "libmp3lame", "s16p"),
    "flac": ("flac", "flac", "s16"),
    "opus": ("ogg", "libopus", "s16"),
    "aac": ("adts", "aac", "fltp"),
}
FORMATS = ("wav", "pcm", *CODECS)


def write_wav(path: str | Path, samples: Floats, sample_rate: int = VOICE_HZ) -> None:
    """Write float samples [n] in -1..1 as a mono 16-bit WAV file."""
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(SAMPLE_BYTES)
        file.setframerate(sample_rate)
        file.writeframes(to_pcm16(samples))


def encode(samples: Floats, *, format: str = "wav", sample_rate: int = VOICE_HZ) -> bytes:
    """Return a whole sound file ("pcm": 16-bit little-endian samples without header)."""
    if format == "wav":
        pcm = to_pcm16(samples)
        return _wav_header(len(pcm), sample_rate) + pcm
    encoder = SoundEncoder(format, sample_rate=sample_rate)
    return encoder.push(samples) + encoder.finish()


def to_pcm16(samples: Floats) -> bytes:
    """Return 16-bit little-endian samples; what exceeds -1..1 is clipped."""
    levels = np.round(np.asarray(samples, np.float32) * np.float32(FULL_SCALE))
    return np.clip(levels, -FULL_SCALE, FULL_SCALE - 1).astype("<i2").tobytes()


class SoundEncoder:
    """Samples in as they come, bytes of one sound file out as soon as they are fixed.

    A WAV file of unknown length says so in its header, as other streaming writers do.
    """

    def __init__(self, format: str, *, sample_rate: int = VOICE_HZ) -> None:
        if format not in FORMATS:
            raise ValueError(f"unknown sound format {format!r}; give one of {', '.join(FORMATS)}")
        self._rate, self._num_samples = sample_rate, 0
        self._header = _wav_header(UNKNOWN_BYTES, sample_rate) if format == "wav" else b""
        self._stream: AudioStream | None = None
        if format in CODECS:
            container, codec, sample_format = CODECS[format]
            self._file = _Forward()
            self._container = av.open(self._file, "w", format=container)
            stream = self._container.add_stream(codec, rate=sample_rate, layout="mono")
            assert isinstance(stream, AudioStream)
            stream.format = sample_format
            self._stream = stream

    def push(self, samples: Floats) -> bytes:
        """Return the bytes that these samples [n] complete, often none."""
        header, self._header = self._header, b""
        if self._stream is None:
            return header + to_pcm16(samples)
        if len(samples):
            pcm = np.frombuffer(to_pcm16(samples), "<i2")[None]
            frame = AudioFrame.from_ndarray(pcm, format="s16", layout="mono")
            frame.sample_rate, frame.pts = self._rate, self._num_samples
            self._num_samples += len(samples)
            self._container.mux(self._stream.encode(frame))
        return self._file.taken()

    def finish(self) -> bytes:
        """Return the last bytes of the file; the encoder is spent afterwards."""
        header, self._header = self._header, b""
        if self._stream is None:
            return header
        self._container.mux(self._stream.encode(None))
        self._container.close()
        return self._file.taken()


class _Forward:
    """A file for PyAV that can only be written to its end, and hands over what was written."""

    def __init__(self) -> None:
        self._held = io.BytesIO()

    def write(self, data: bytes) -> int:
        return self._held.write(data)

    def taken(self) -> bytes:
        data, self._held = self._held.getvalue(), io.BytesIO()
        return data


def _wav_header(num_bytes: int, sample_rate: int) -> bytes:
    unknown = num_bytes == UNKNOWN_BYTES
    return struct.pack(
        "<4sI4s4sIHHIIHH4sI",
        b"RIFF",
        UNKNOWN_BYTES if unknown else 36 + num_bytes,
        b"WAVE",
        b"fmt ",
        16,
        1,  # PCM
        1,  # channel
        sample_rate,
        sample_rate * SAMPLE_BYTES,
        SAMPLE_BYTES,
        8 * SAMPLE_BYTES,
        b"data",
        num_bytes,
    )
