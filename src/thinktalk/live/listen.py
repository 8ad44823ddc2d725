"""Step 3a: a microphone's samples in; 2 s mel windows and the course of the user's turn out.

Everything is counted in samples at 16 kHz since the session began, so what comes out depends on
the sound alone, not on the pieces in which it came, nor on any wall clock.
"""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from numbers import Real
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from thinktalk.live.turn import FEWEST_SPEECH_FRAMES, FRAME_SAMPLES, Detection, Mark, Turn
from thinktalk.media.mel import EAR_HZ, ENCODER_WINDOW_SAMPLES, RunningMel
from thinktalk.options import SemanticVad, ServerVad

Floats = NDArray[np.float32]

LOWEST_RATE_HZ, HIGHEST_RATE_HZ = 8_000, 192_000
LOUDEST_SAMPLE = 16.0  # 24 dB over full scale: floats beyond are samples in another unit
FEWEST_FRAMES = 3  # of a mel that makes a token: one or two frames make none

_NOTHING = np.zeros(0, np.float32)
_DETECTIONS = {kind.__name__: kind for kind in (ServerVad, SemanticVad)}


# ---- what a listener says


@dataclass(frozen=True)
class Began:
    """A clip begins. What was heard before start_s belongs to no clip."""

    start_s: float


@dataclass(frozen=True, eq=False)
class Heard:
    """A full window of the clip: mel float32 [128,200], from start_s on."""

    start_s: float
    mel: Floats


@dataclass(frozen=True, eq=False)
class Paused:
    """Speech was silent for early_ms. tail: mel [128,F] of the open window, from tail_start_s on,
    as if the clip ended at at_s; None if it makes no token.

    If the turn ends in this pause, then the clip does end here: `Ended` has this tail again.
    """

    at_s: float
    tail: Floats | None
    tail_start_s: float


@dataclass(frozen=True)
class WentOn:
    """Speech again (or the pause lost its meaning): the clip goes on, the pause is part of it."""

    at_s: float


@dataclass(frozen=True, eq=False)
class Ended:
    """The turn is over, decided at at_s; the clip ends at end_s, which is earlier after a pause.

    tail, tail_start_s: as in `Paused`. whole: the clip normalised with its own maximum, if the
    listener is exact and the clip not longer than the reference hears.
    """

    at_s: float
    end_s: float
    tail: Floats | None
    tail_start_s: float
    whole: Floats | None


Signal = Began | Heard | Paused | WentOn | Ended


@dataclass
class Clip:
    start: int  # sample
    mel: RunningMel

    @property
    def end(self) -> int:
        return self.start + self.mel.num_samples

    @property
    def open_start(self) -> int:
        """Where the open window starts."""
        return self.start + self.mel.num_windows * ENCODER_WINDOW_SAMPLES

    def tail(self) -> Floats | None:
        mel = self.mel.tail()
        return mel if mel.shape[1] >= FEWEST_FRAMES else None


# ---- the listener


class Listener:
    """One session's ear: sound in, signals out.

    With a detection, clips are the user's turns: from the start of speech less the prefix padding
    to the pause that ends the turn. Without, a clip goes from the first sample after the last
    commit or clear to the next commit.

    Bounded: outside of a clip at most the prefix padding and 128 ms are held; in a clip one window
    of samples and the pause (at most 10 s); for an exact one its logs, up to 300 s (15 MB).
    """

    def __init__(self, detection: Detection | None, *, exact: bool = False):
        self._exact = exact
        self._rate = RateChanger()
        self._turn = None if detection is None else Turn(detection)
        self._count = 0  # samples received
        self._clip: Clip | None = None
        self._pausing = False  # the clip may be over: what follows is held back from it
        self._held = _NOTHING  # the newest samples that are in no clip, up to _frame
        self._frame = _NOTHING  # what is there of the detector's next frame, up to _count

    @property
    def now_s(self) -> float:
        """Seconds of sound received, less up to 40 ms inside the change of rate."""
        return self._count / EAR_HZ

    def push(
        self, samples: NDArray[Any] | bytes | bytearray | memoryview, *, sample_rate: int = 24_000
    ) -> list[Signal]:
        """More sound: float32 in -1..1 or int16 [n], or PCM16 bytes, of any length, at any rate
        from 8 to 192 kHz, which may change.

        Raises ValueError for anything else; then nothing was consumed.
        """
        wave = as_wave(samples, sample_rate=sample_rate)
        return self._hear(self._rate.push(wave, sample_rate=sample_rate))

    def commit(self) -> list[Signal]:
        """Ends the open clip now: `Ended`, after what the last samples make; nothing if there is
        less than 30 ms of it. In a pause the clip ends where the pause was reported."""
        if self._turn is None:
            signals = self._hear(self._rate.flush())
        elif self._clip is None:
            return []
        else:
            self._settle()
            signals = [] if self._pausing else self._feed()
        if self._clip is not None and self._clip.mel.num_frames >= FEWEST_FRAMES:
            signals.append(self._end())
        self._restart(self._turn and self._turn.detection)
        return signals

    def clear(self) -> None:
        """Forgets the open clip, and all sound before this moment."""
        self._settle()
        self._clip, self._pausing, self._held = None, False, _NOTHING
        self._restart(self._turn and self._turn.detection)

    def judge(self, completeness: float) -> list[Signal]:
        """How complete (0 to 1) the model finds what was said, asked for at `Paused`: the surer it
        is, the shorter the pause that ends the turn (semantic detection). `Ended` if it is long
        enough already."""
        mark = self._turn.judge(completeness) if self._turn else None
        return self._follow(mark) if mark else []

    def update(self, detection: Detection | None) -> list[Signal]:
        """Other settings from this sample on. An open clip stays open: with the first detection it
        counts as speech, which silence ends; without a detection it waits for `commit`."""
        signals: list[Signal] = []
        if self._turn and detection:
            self._turn.detection = detection
        elif self._turn:
            self._settle()
            if self._pausing:
                signals.append(self._go_on())
            elif self._clip is None and self._turn.speech_start is not None:
                signals.append(self._begin(self._turn.speech_start - self._padding))
            if self._clip is not None:
                signals += self._feed()
            self._held, self._turn = _NOTHING, None
        else:
            self._restart(detection)
        return signals

    def state(self) -> dict[str, Any]:
        """All that `from_state` needs: arrays (copied) and what JSON knows, nested.

        What is inside the change of rate (up to 40 ms) is not in it.
        """
        turn, clip = self._turn, self._clip
        detection = turn and {"kind": type(turn.detection).__name__, **asdict(turn.detection)}
        return {
            "exact": self._exact,
            "detection": detection,
            "turn": turn and turn.state(),
            "count": self._count,
            "clip": clip and {"start": clip.start, "mel": clip.mel.state()},
            "pausing": self._pausing,
            "held": self._held.copy(),
            "frame": self._frame.copy(),
        }

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> "Listener":
        """Hears the same from here on as the one whose `state` this is."""
        listener = cls(None, exact=state["exact"])
        if state["detection"] is not None:
            fields = dict(state["detection"])
            detection = _DETECTIONS[fields.pop("kind")](**fields)
            listener._turn = Turn.from_state(state["turn"], detection=detection)
        if state["clip"] is not None:
            mel = RunningMel.from_state(state["clip"]["mel"])
            listener._clip = Clip(state["clip"]["start"], mel)
        listener._count, listener._pausing = state["count"], state["pausing"]
        listener._held, listener._frame = state["held"], state["frame"]
        return listener

    def _hear(self, wave: Floats) -> list[Signal]:
        """Samples at 16 kHz: frame by frame into the detector, or straight into a clip."""
        signals: list[Signal] = []
        if self._turn is None and len(wave):
            if self._clip is None:
                signals.append(self._begin(self._count))
            self._count += len(wave)
            self._held = wave
            return signals + self._feed()
        while self._turn and len(wave):
            room = FRAME_SAMPLES - len(self._frame)
            piece, wave = wave[:room], wave[room:]
            self._frame = np.concatenate([self._frame, piece])
            self._count += len(piece)
            if len(piece) == room:
                mark = self._turn.hear(self._frame)
                self._held, self._frame = np.concatenate([self._held, self._frame]), _NOTHING
                signals += self._follow(mark)
        return signals

    def _follow(self, mark: Mark | None) -> list[Signal]:
        """What the detector's opinion of the newest frame means for the clip."""
        signals: list[Signal] = []
        if mark == "began":
            assert self._turn and self._turn.speech_start is not None
            signals.append(self._begin(self._turn.speech_start - self._padding))
        elif mark == "went_on":
            signals.append(self._go_on())
        if self._clip is None:
            self._held = self._held[-self._padding - FEWEST_SPEECH_FRAMES * FRAME_SAMPLES :]
            return signals
        if not self._pausing:
            signals += self._feed()
        if mark == "paused":
            self._pausing = True
            start_s = self._clip.open_start / EAR_HZ
            signals.append(Paused(self.now_s, self._clip.tail(), start_s))
        elif mark == "ended":
            signals.append(self._end())
        return signals

    def _begin(self, start: int) -> Began:
        start = max(start, self._count - len(self._held))
        self._held = self._held[len(self._held) - (self._count - start) :]
        self._clip = Clip(start, RunningMel(keep=self._exact))
        return Began(start / EAR_HZ)

    def _feed(self) -> list[Signal]:
        """All that is held becomes part of the clip."""
        assert self._clip
        held, self._held = self._held, _NOTHING
        first = self._clip.open_start
        return [
            Heard((first + number * ENCODER_WINDOW_SAMPLES) / EAR_HZ, mel)
            for number, mel in enumerate(self._clip.mel.push(held))
        ]

    def _go_on(self) -> WentOn:
        self._pausing = False
        return WentOn(self.now_s)

    def _end(self) -> Ended:
        assert self._clip
        clip, self._clip, self._pausing = self._clip, None, False
        end_s, start_s = clip.end / EAR_HZ, clip.open_start / EAR_HZ
        return Ended(self.now_s, end_s, clip.tail(), start_s, clip.mel.whole())

    def _settle(self) -> None:
        """What is inside the change of rate, or of an unfinished frame, counts as held."""
        rest = self._rate.flush()
        self._count += len(rest)
        self._held, self._frame = np.concatenate([self._held, self._frame, rest]), _NOTHING

    def _restart(self, detection: Detection | None) -> None:
        """The detector begins anew with the next sample."""
        speaking = self._clip is not None
        self._turn = detection and Turn(detection, position=self._count, speaking=speaking)

    @property
    def _padding(self) -> int:
        assert self._turn
        return self._turn.detection.prefix_padding_ms * EAR_HZ // 1000


class RateChanger:
    """Any rate in, 16 kHz out: the same samples as soxr (HQ) of the whole, however it was cut.

    Up to 40 ms stay inside between calls.
    """

    def __init__(self) -> None:
        self._rate_hz = EAR_HZ
        self._stream: soxr.ResampleStream | None = None

    def push(self, wave: Floats, *, sample_rate: int) -> Floats:
        rest = _NOTHING
        if sample_rate != self._rate_hz:
            rest, self._rate_hz = self.flush(), sample_rate
        if sample_rate == EAR_HZ:
            return np.concatenate([rest, wave])
        if self._stream is None:
            self._stream = soxr.ResampleStream(sample_rate, EAR_HZ, 1, dtype="float32")
        return np.concatenate([rest, self._stream.resample_chunk(wave)])

    def flush(self) -> Floats:
        """What is left inside; the next sample begins a new wave."""
        stream, self._stream = self._stream, None
        return _NOTHING if stream is None else stream.resample_chunk(_NOTHING, last=True)


def as_wave(samples: NDArray[Any] | bytes | bytearray | memoryview, *, sample_rate: int) -> Floats:
    """Float32 [n] of what a caller may push; ValueError says what is wrong with it."""
    known = isinstance(sample_rate, Real) and LOWEST_RATE_HZ <= sample_rate <= HIGHEST_RATE_HZ
    if not known:
        raise ValueError(
            f"the sample rate is {sample_rate} Hz; sound of {LOWEST_RATE_HZ} to {HIGHEST_RATE_HZ}"
            " Hz can be heard"
        )
    if isinstance(samples, bytes | bytearray | memoryview):
        size = memoryview(samples).nbytes
        if size % 2:
            raise ValueError(f"PCM16 has two bytes a sample, this piece has {size} bytes")
        samples = np.frombuffer(samples, "<i2")
    if not isinstance(samples, np.ndarray) or samples.dtype not in (np.float32, np.int16):
        kind = samples.dtype if isinstance(samples, np.ndarray) else type(samples).__name__
        raise ValueError(f"sound is an array of float32 or int16, or PCM16 bytes, not {kind}")
    if samples.ndim != 1:
        raise ValueError(f"sound is one row of mono samples, this array has shape {samples.shape}")
    if samples.dtype == np.int16:
        return samples.astype(np.float32) / np.float32(32768)
    # the comparison is false for NaN, too
    if len(samples) and not float(np.abs(samples).max()) <= LOUDEST_SAMPLE:
        raise ValueError("float samples lie in -1..1; this piece has NaN, infinite or huge ones")
    return samples
