"""Samples in, mel spectrograms out: the Thinker's ear (16 kHz) and the voice's shape (24 kHz).

Shapes: n samples, F frames of 10 ms. Facts: model.md 3.1, checked against WhisperFeatureExtractor.
"""

from functools import cache
from typing import Any

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view
from numpy.typing import NDArray

Floats = NDArray[np.float32]

EAR_HZ = 16_000
EAR_WINDOW_SAMPLES = 400
EAR_HOP_SAMPLES = 160
EAR_BINS = 128
EAR_REACH_SAMPLES = EAR_WINDOW_SAMPLES // 2  # a frame sees this much on both sides of its centre
EAR_FLOOR = 1e-10  # power below this counts as silence
EAR_RANGE = 8.0  # decades kept below the loudest bin
EAR_LONGEST_S = 300  # the reference hears no more of a clip
ENCODER_WINDOW_FRAMES = 200  # 2 s, what the audio encoder takes at a time
ENCODER_WINDOW_SAMPLES = ENCODER_WINDOW_FRAMES * EAR_HOP_SAMPLES
NUM_FRAMES_AFTER = 2  # frames past the last one that still hear the end of a wave

VOICE_HZ = 24_000
VOICE_WINDOW_SAMPLES = 1024
VOICE_HOP_SAMPLES = 240
VOICE_BINS = 80
VOICE_FLOOR = 1e-5  # magnitude

FRAMES_AT_A_TIME = 4096  # bounds the memory of a long recording, changes no number


def log_mel(wave: Floats, *, maximum: str = "clip") -> Floats:
    """Return the normalised log-mel [128, ceil(n/160)] of a 16 kHz wave [n].

    maximum "clip" clamps 8 decades below the loudest bin of the whole clip, as the reference does;
    "running" clamps each 2 s window below the loudest bin of this and all earlier windows, which
    needs no future. Longer clips than the reference's 300 s are kept whole, not cut.
    """
    if maximum not in ("clip", "running"):
        raise ValueError(f'maximum is "clip" or "running", not {maximum!r}')
    wave = _mono(wave)
    num_frames = -(-len(wave) // EAR_HOP_SAMPLES)
    if num_frames == 0:
        return np.zeros((EAR_BINS, 0), np.float32)
    # The reference pads to 300 s: the frames after the last one are not kept, but they count for
    # the maximum of the clip.
    logs = log_frames(_with_context(wave, num_frames + NUM_FRAMES_AFTER))
    if maximum == "clip":
        return normalise(logs[:, :num_frames], loudest=float(logs.max()))
    loudest, windows = -np.inf, []
    for start in range(0, num_frames, ENCODER_WINDOW_FRAMES):
        window = logs[:, start : min(start + ENCODER_WINDOW_FRAMES, num_frames)]
        loudest = max(loudest, float(window.max()))
        windows.append(normalise(window, loudest=loudest))
    return np.concatenate(windows, axis=1)


class RunningMel:
    """log_mel of a wave that comes in pieces of any length: the same bits, and no future needed.

    Holds one window of samples; with `keep` also the logs of all windows, for `whole`: no more than
    EAR_LONGEST_S of them (51 kB a second). num_windows: finished so far.
    """

    def __init__(self, *, keep: bool = False):
        # the open window with the 200 samples before it, and zeros for what is not there yet
        self._samples = np.zeros(_span(ENCODER_WINDOW_FRAMES + 1 + NUM_FRAMES_AFTER), np.float32)
        self._filled = EAR_REACH_SAMPLES
        self._loudest = -np.inf
        self.num_windows = 0
        self._logs: list[Floats] | None = [] if keep else None

    @property
    def num_samples(self) -> int:
        """Of the wave so far."""
        return self.num_windows * ENCODER_WINDOW_SAMPLES + self._filled - EAR_REACH_SAMPLES

    @property
    def num_frames(self) -> int:
        return -(-self.num_samples // EAR_HOP_SAMPLES)

    def push(self, wave: Floats) -> list[Floats]:
        """More samples [n]; returns the windows [128, 200] that they finish."""
        windows, needed = [], _span(ENCODER_WINDOW_FRAMES)
        while len(wave):
            room = needed - self._filled
            piece, wave = wave[:room], wave[room:]
            self._samples[self._filled : self._filled + len(piece)] = piece
            self._filled += len(piece)
            if self._filled == needed:
                windows.append(self._finish())
        return windows

    def tail(self) -> Floats:
        """The open window [128, 0..200] as if the wave ended here.

        A wave that ends up to 40 samples after its last full window has one frame more in log_mel:
        it makes no token, and is left out here.
        """
        num_frames = min(self._num_open, ENCODER_WINDOW_FRAMES)
        if not num_frames:
            return np.zeros((EAR_BINS, 0), np.float32)
        logs = self._open_logs(num_frames)
        return normalise(logs, loudest=max(self._loudest, float(logs.max())))

    def whole(self) -> Floats | None:
        """log_mel(wave so far, maximum="clip"); None without `keep` or for a too long wave."""
        if self._logs is None:
            return None
        if not self._num_open:
            return np.zeros((EAR_BINS, 0), np.float32)
        tail = self._open_logs(self._num_open + NUM_FRAMES_AFTER)
        logs = np.concatenate([*self._logs, tail], axis=1)
        return normalise(logs[:, : self.num_frames], loudest=float(logs.max()))

    def state(self) -> dict[str, Any]:
        """All that `from_state` needs: arrays (copied), numbers and None."""
        no_logs = np.zeros((EAR_BINS, 0), np.float32)
        return {
            "samples": self._samples[: self._filled].copy(),
            "loudest": self._loudest if self.num_windows else None,
            "num_windows": self.num_windows,
            "logs": None if self._logs is None else np.hstack([no_logs, *self._logs]),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any]) -> "RunningMel":
        """The same bits from here on as the one whose `state` this is."""
        mel = cls(keep=state["logs"] is not None)
        mel._filled = len(state["samples"])
        mel._samples[: mel._filled] = state["samples"]
        mel.num_windows = state["num_windows"]
        mel._loudest = state["loudest"] if mel.num_windows else -np.inf
        if mel._logs is not None and mel.num_windows:
            mel._logs = np.split(state["logs"], mel.num_windows, axis=1)
        return mel

    @property
    def _num_open(self) -> int:
        return self.num_frames - self.num_windows * ENCODER_WINDOW_FRAMES

    def _finish(self) -> Floats:
        logs = self._open_logs(ENCODER_WINDOW_FRAMES)
        self._loudest = max(self._loudest, float(logs.max()))
        if self._logs is not None:
            self._logs.append(logs)
        kept = self._samples[ENCODER_WINDOW_SAMPLES : self._filled].copy()
        self._filled = len(kept)
        self._samples[: self._filled] = kept
        self._samples[self._filled :] = 0
        self.num_windows += 1
        if self.num_windows * ENCODER_WINDOW_SAMPLES >= EAR_LONGEST_S * EAR_HZ:
            self._logs = None
        return normalise(logs, loudest=self._loudest)

    def _open_logs(self, num_frames: int) -> Floats:
        if not self.num_windows:
            _mirror(self._samples)
        return log_frames(self._samples[: _span(num_frames)])


def log_frames(samples: Floats) -> Floats:
    """Return log10 mel power [128, F], not yet normalised, of 160 (F - 1) + 400 samples.

    The samples start 200 before the first frame's centre: context is the caller's business.
    """
    assert samples.dtype == np.float32 and len(samples) >= EAR_WINDOW_SAMPLES, samples.shape
    frames = sliding_window_view(samples, EAR_WINDOW_SAMPLES)[::EAR_HOP_SAMPLES]
    filters = slaney_filters(EAR_BINS, EAR_WINDOW_SAMPLES, EAR_HZ)
    window = _hann(EAR_WINDOW_SAMPLES)
    out = np.empty((EAR_BINS, len(frames)), np.float32)
    # Always products of one shape, whatever the last one's spare rows hold: rounding depends on the
    # shape, and a window shall be the same bits alone, cut short and in a whole clip.
    power = np.zeros((ENCODER_WINDOW_FRAMES, filters.shape[1]), np.float32)
    for start in range(0, len(frames), ENCODER_WINDOW_FRAMES):
        spectrum = np.fft.rfft(frames[start : start + ENCODER_WINDOW_FRAMES] * window)
        count = len(spectrum)
        power[:count] = spectrum.real**2 + spectrum.imag**2
        out[:, start : start + count] = (filters @ power.T)[:, :count]
    return np.log10(np.maximum(out, EAR_FLOOR, out=out), out=out)


def normalise(logs: Floats, *, loudest: float) -> Floats:
    """Clamp log10 power 8 decades below the loudest and scale to about -1.5 .. 1.5."""
    return (np.maximum(logs, np.float32(loudest - EAR_RANGE)) + np.float32(4)) / np.float32(4)


def voice_mel(wave: Floats) -> Floats:
    """Return the natural-log mel [T, 80], T = n // 240, of a 24 kHz wave [n], as BigVGAN reads."""
    wave = _mono(wave)
    num_frames = len(wave) // VOICE_HOP_SAMPLES
    if num_frames == 0:
        return np.zeros((0, VOICE_BINS), np.float32)
    edge = (VOICE_WINDOW_SAMPLES - VOICE_HOP_SAMPLES) // 2
    samples = np.pad(wave, edge, mode="reflect")
    frames = sliding_window_view(samples, VOICE_WINDOW_SAMPLES)[::VOICE_HOP_SAMPLES]
    filters = slaney_filters(VOICE_BINS, VOICE_WINDOW_SAMPLES, VOICE_HZ)
    window = _hann(VOICE_WINDOW_SAMPLES)
    out = np.empty((num_frames, VOICE_BINS), np.float32)
    for start in range(0, num_frames, FRAMES_AT_A_TIME):
        magnitude = np.abs(np.fft.rfft(frames[start : start + FRAMES_AT_A_TIME] * window))
        out[start : start + len(magnitude)] = magnitude @ filters.T
    return np.log(np.maximum(out, VOICE_FLOOR, out=out), out=out)


def _mono(wave: Floats) -> Floats:
    wave = np.asarray(wave, dtype=np.float32)
    if wave.ndim != 1:
        raise ValueError(f"a wave is one row of mono samples, this array has shape {wave.shape}")
    return wave


def _with_context(wave: Floats, num_frames: int) -> Floats:
    """What so many frames see of a wave: mirrored before it, zeros after it."""
    out = np.zeros(_span(num_frames), np.float32)
    body = out[EAR_REACH_SAMPLES:]
    body[: len(wave)] = wave[: len(body)]
    _mirror(out)
    return out


def _mirror(samples: Floats) -> None:
    """Writes the 200 samples before a wave: those after its first one, backwards."""
    samples[:EAR_REACH_SAMPLES] = samples[2 * EAR_REACH_SAMPLES : EAR_REACH_SAMPLES : -1]


def _span(num_frames: int) -> int:
    """Samples that so many frames see."""
    return EAR_HOP_SAMPLES * (num_frames - 1) + EAR_WINDOW_SAMPLES


@cache
def _hann(length: int) -> Floats:
    """Periodic Hann window."""
    phase = 2 * np.pi * np.arange(length) / length
    return (0.5 - 0.5 * np.cos(phase)).astype(np.float32)


@cache
def slaney_filters(num_bins: int, window_samples: int, rate_hz: int) -> Floats:
    """Triangles of unit area in Hz, evenly spaced on Slaney's scale from 0 to half the rate."""
    top = _slaney_mel(rate_hz / 2)
    edges = _slaney_hz(np.linspace(0.0, top, num_bins + 2))
    lines = np.linspace(0, rate_hz / 2, window_samples // 2 + 1)
    rising = (lines - edges[:-2, None]) / np.diff(edges)[:-1, None]
    falling = (edges[2:, None] - lines) / np.diff(edges)[1:, None]
    area = (edges[2:] - edges[:-2])[:, None] / 2
    return (np.maximum(0, np.minimum(rising, falling)) / area).astype(np.float32)


# Slaney's scale: linear (3 mel per 200 Hz) up to 1 kHz, from there 27 mel per factor 6.4.
_BEND_HZ, _BEND_MEL, _MEL_PER_FACTOR = 1000.0, 15.0, 27 / np.log(6.4)


def _slaney_mel(hz: float) -> float:
    if hz < _BEND_HZ:
        return hz * _BEND_MEL / _BEND_HZ
    return _BEND_MEL + _MEL_PER_FACTOR * float(np.log(hz / _BEND_HZ))


def _slaney_hz(mel: NDArray[np.float64]) -> NDArray[np.float64]:
    curved = _BEND_HZ * np.exp((mel - _BEND_MEL) / _MEL_PER_FACTOR)
    return np.where(mel < _BEND_MEL, mel * _BEND_HZ / _BEND_MEL, curved)
