"""Step 3b: frames of 32 ms in; out comes when the user begins, pauses, goes on and is done.

Whether a frame is speech says Silero VAD (github.com/snakers4/silero-vad, MIT), whose weights lie
in its wheel: a spectrum, four convolutions, an LSTM cell. It is computed here in numpy: half the
time of the scripted module, the state is a value that can be copied, the same bits in every
process, and one network serves all sessions (and threads). The only clock is samples heard.
"""

import warnings
from dataclasses import dataclass
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from thinktalk.options import SemanticVad, ServerVad

Floats = NDArray[np.float32]
Detection = ServerVad | SemanticVad
Mark = Literal["began", "paused", "went_on", "ended"]

HZ = 16_000
FRAME_SAMPLES = 512  # 32 ms, the only length that Silero takes at 16 kHz

HYSTERESIS = 0.15  # speech once begun goes on until the probability falls so far below threshold
LOWEST_THRESHOLD = 0.01
FEWEST_SPEECH_FRAMES = 3  # 96 ms: a shorter sound is a click or a cough, and begins nothing
# How long a pause may be at most in the semantic mode, and where the model is sure that all is said
LONGEST_PAUSE_MS = {"low": 8000, "medium": 4000, "auto": 4000, "high": 2000}
SHORTEST_PAUSE_MS = 300


class Turn:
    """One session's turn taking. Frames of the user's sound go in, in order, without a gap.

    quiet -began-> speech -paused-> pause -went_on-> speech ..., and from speech or pause -ended->
    quiet. All positions are samples at 16 kHz from the session's start.

    position: of the next frame. speech_start: where the speech began that `began` reports.
    """

    def __init__(self, detection: Detection, *, position: int = 0, speaking: bool = False):
        self.detection = detection
        self.position = position
        self.speech_start: int | None = None  # of the speech, or of what may become it
        self._phase: Literal["quiet", "speech", "pause"] = "speech" if speaking else "quiet"
        self._silent_since: int | None = position if speaking else None
        self._completeness: float | None = None
        self._memory = silero().start()

    def hear(self, frame: Floats) -> Mark | None:
        """The next frame, float32 [512]; what is known after it."""
        probability, self._memory = silero().listen(frame, self._memory)
        return self.follow(probability)

    def follow(self, probability: float) -> Mark | None:
        """The same from the probability that the next frame is speech."""
        start, self.position = self.position, self.position + FRAME_SAMPLES
        loud = probability >= self.detection.threshold
        lower = max(self.detection.threshold - HYSTERESIS, LOWEST_THRESHOLD)
        silent = not loud and probability < lower
        if self._phase == "speech":
            if loud:
                self._silent_since = None
            elif silent and self._silent_since is None:
                self._silent_since = start
            return self._after_silence()
        if silent:
            self.speech_start = None
        elif loud and self.speech_start is None:
            self.speech_start = start
        if self.speech_start is None:
            return self._after_silence() if self._phase == "pause" else None
        if self.position - self.speech_start < FEWEST_SPEECH_FRAMES * FRAME_SAMPLES:
            return None  # even if the pause is long enough by now: first see what this becomes
        mark: Mark = "went_on" if self._phase == "pause" else "began"
        self._phase, self._silent_since = "speech", None
        return mark

    def judge(self, completeness: float) -> Mark | None:
        """How complete (0 to 1) what was said sounds to the model; "ended" if that decides it.

        Counts for the pause that goes on, in the semantic mode; otherwise it comes too late.
        """
        assert 0 <= completeness <= 1, completeness
        if self._phase != "pause" or isinstance(self.detection, ServerVad):
            return None
        self._completeness = completeness
        return self._after_silence() if self.speech_start is None else None

    def state(self) -> dict[str, Any]:
        """All that `from_state` needs besides the settings: an array (copied), numbers and None."""
        return {
            "position": self.position,
            "speech_start": self.speech_start,
            "phase": self._phase,
            "silent_since": self._silent_since,
            "completeness": self._completeness,
            "memory": np.concatenate(self._memory),
        }

    @classmethod
    def from_state(cls, state: dict[str, Any], *, detection: Detection) -> "Turn":
        """Hears the same from here on as the one whose `state` this is."""
        turn = cls(detection, position=state["position"])
        turn.speech_start = state["speech_start"]
        turn._phase = state["phase"]
        turn._silent_since = state["silent_since"]
        turn._completeness = state["completeness"]
        turn._memory = Memory(*np.split(state["memory"], [CONTEXT_SAMPLES, -WIDTH]))
        return turn

    def _after_silence(self) -> Mark | None:
        """Whether the silence is long enough by now for a pause, or for the end of the turn."""
        if self._silent_since is None:
            return None
        silence_ms = (self.position - self._silent_since) * 1000 / HZ
        mark: Mark | None = None
        if silence_ms >= self._allowed_ms():
            mark, self._phase, self._silent_since = "ended", "quiet", None
        elif self._phase == "speech" and silence_ms >= self.detection.early_ms:
            mark, self._phase = "paused", "pause"
        if mark:
            self.speech_start, self._completeness = None, None
        return mark

    def _allowed_ms(self) -> float:
        """The pause that ends the turn."""
        if isinstance(self.detection, ServerVad):
            return self.detection.silence_duration_ms
        longest = LONGEST_PAUSE_MS[self.detection.eagerness]
        if self._completeness is None:
            return longest
        # Every tenth that the model is surer makes the pause shorter by the same factor.
        shortest = min(max(SHORTEST_PAUSE_MS, self.detection.early_ms), longest)
        return longest * (shortest / longest) ** self._completeness


# ---- the network

SPECTRUM_HOP, SPECTRUM_BINS = 128, 129
CONTEXT_SAMPLES = 64  # of the frame before
EDGE_SAMPLES = 64  # mirrored at the end of a frame
WIDTH = 128  # of the LSTM cell
STRIDES = (1, 2, 2, 1)  # of the convolutions


class Memory(NamedTuple):
    """What the network keeps from frame to frame; never written to."""

    context: Floats  # [64]
    hidden: Floats  # [128]
    cell: Floats  # [128]


@dataclass(frozen=True)
class Silero:
    """Silero VAD for 16 kHz; equal to the scripted module up to rounding."""

    basis: Floats  # [2*129, 256] cosines and sines under a Hann window
    kernels: tuple[tuple[Floats, Floats], ...]  # [out, 3*in] and [out, 1] of each convolution
    gates: tuple[Floats, Floats]  # ([4*128, input 128 + hidden 128], [4*128]): i, f, g, o
    output: tuple[Floats, float]

    def start(self) -> Memory:
        return Memory(np.zeros(CONTEXT_SAMPLES, np.float32), *np.zeros((2, WIDTH), np.float32))

    def listen(self, frame: Floats, memory: Memory) -> tuple[float, Memory]:
        """The probability of speech in a frame [512], and the memory for the next one."""
        assert frame.shape == (FRAME_SAMPLES,) and frame.dtype == np.float32, frame.shape
        mirrored = frame[-2 : -2 - EDGE_SAMPLES : -1]
        hops = np.concatenate([memory.context, frame, mirrored]).reshape(-1, SPECTRUM_HOP)
        spectrum = self.basis @ np.concatenate([hops[:-1].T, hops[1:].T])  # windows of two hops
        x = np.sqrt(spectrum[:SPECTRUM_BINS] ** 2 + spectrum[SPECTRUM_BINS:] ** 2)  # [129,4]
        for (weight, bias), stride in zip(self.kernels, STRIDES, strict=True):
            x = np.maximum(weight @ _neighbours(x, stride) + bias, 0)  # -> [128,1]
        weight, bias = self.gates
        i, f, g, o = np.split(weight @ np.concatenate([x[:, 0], memory.hidden]) + bias, 4)
        cell = _sigmoid(f) * memory.cell + _sigmoid(i) * np.tanh(g)
        hidden = _sigmoid(o) * np.tanh(cell)
        weight, bias = self.output
        probability = _sigmoid(weight @ np.maximum(hidden, 0) + bias)
        return float(probability), Memory(frame[-CONTEXT_SAMPLES:].copy(), hidden, cell)


@cache
def silero() -> Silero:
    """The one network of this process, from the installed silero-vad.

    The package itself stays unimported: its import sets torch's number of threads to 1.
    """
    package = find_spec("silero_vad")
    if package is None or not package.submodule_search_locations:
        raise ImportError("the turn detector is missing: pip install silero-vad")
    path = Path(package.submodule_search_locations[0]) / "data" / "silero_vad.jit"
    with warnings.catch_warnings():
        # torch wants new files to be exported in another way; the wheel has this one
        warnings.simplefilter("ignore", DeprecationWarning)
        script = torch.jit.load(str(path), map_location="cpu")
    weights = {
        name.removeprefix("_model."): tensor.numpy()
        for name, tensor in script.state_dict().items()
        if name.startswith("_model.")  # the rest is the network for 8 kHz
    }
    kernels = []
    for number in range(len(STRIDES)):
        weight = weights[f"encoder.{number}.reparam_conv.weight"]
        bias = weights[f"encoder.{number}.reparam_conv.bias"]
        flat = weight.transpose(0, 2, 1).reshape(len(weight), -1)
        kernels.append((flat, bias[:, None]))
    return Silero(
        basis=weights["stft.forward_basis_buffer"][:, 0],
        kernels=tuple(kernels),
        gates=(
            np.hstack([weights["decoder.rnn.weight_ih"], weights["decoder.rnn.weight_hh"]]),
            weights["decoder.rnn.bias_ih"] + weights["decoder.rnn.bias_hh"],
        ),
        output=(
            weights["decoder.decoder.2.weight"].ravel(),
            float(weights["decoder.decoder.2.bias"][0]),
        ),
    )


def _neighbours(x: Floats, stride: int) -> Floats:
    """[C,T] -> [3*C,T/stride]: the columns before, at and after every place, zeros at the edges."""
    num_channels, num_columns = x.shape
    padded = np.zeros((num_channels, num_columns + 2), np.float32)
    padded[:, 1:-1] = x
    return np.concatenate([padded[:, k : k + num_columns : stride] for k in range(3)])


def _sigmoid(x: Floats) -> Floats:
    return np.float32(0.5) + np.float32(0.5) * np.tanh(np.float32(0.5) * x)
