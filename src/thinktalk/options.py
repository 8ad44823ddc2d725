"""What a caller may choose: how ids are drawn, how turns end, how a session behaves. No torch."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal


@dataclass(frozen=True)
class Sampling:
    """How ids are chosen. temperature 0 is greedy; top_k 0 and top_p 1 keep everything."""

    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    repetition_penalty: float = 1.0

    def __post_init__(self) -> None:
        if not 0 <= self.temperature < math.inf:
            raise ValueError(f"temperature is {self.temperature}; use 0 (greedy) or more")
        if self.top_k < 0:
            raise ValueError(f"top_k is {self.top_k}; use 0 (off) or more")
        if not 0 < self.top_p <= 1:
            raise ValueError(f"top_p is {self.top_p}; use a value above 0 and up to 1 (off)")
        if not 0 < self.repetition_penalty < math.inf:
            raise ValueError(f"repetition_penalty is {self.repetition_penalty}; 1 turns it off")


GREEDY = Sampling()
OFFICIAL_SPEECH = Sampling(temperature=0.9, top_k=40, top_p=0.8, repetition_penalty=1.05)
DEFAULT_VOICE = "Chelsie"


@dataclass(frozen=True)
class ServerVad:
    """A turn ends after so much silence. The names are those of OpenAI's Realtime API.

    threshold: speech probability of the detector above which a frame is speech, 0 to 1.
    prefix_padding_ms: sound before the detected start that belongs to the turn.
    silence_duration_ms: silence after which the turn is over.
    early_ms: silence after which the reply may begin to be thought, to be thrown away if the user
        goes on; at or above silence_duration_ms nothing is thought early.
    create_response: answer when a turn is over; interrupt_response: stop a reply when the user
        begins to speak.
    """

    threshold: float = 0.5
    prefix_padding_ms: int = 300
    silence_duration_ms: int = 500
    early_ms: int = 200
    create_response: bool = True
    interrupt_response: bool = True

    def __post_init__(self) -> None:
        if not 0 < self.threshold < 1:
            raise ValueError(f"threshold is {self.threshold}; use a value between 0 and 1")
        for name in ("prefix_padding_ms", "silence_duration_ms", "early_ms"):
            if not 0 <= getattr(self, name) <= 10_000:
                raise ValueError(f"{name} is {getattr(self, name)}; use 0 to 10000")


@dataclass(frozen=True)
class SemanticVad:
    """A turn ends when the pause is long enough for how complete the model finds what was said.

    eagerness: "low", "medium", "high" or "auto" (= medium) sets how long a pause may be at most:
    8, 4 or 2 s. The rest as in ServerVad.
    """

    eagerness: Literal["low", "medium", "high", "auto"] = "auto"
    threshold: float = 0.5
    prefix_padding_ms: int = 300
    early_ms: int = 200
    create_response: bool = True
    interrupt_response: bool = True

    def __post_init__(self) -> None:
        if self.eagerness not in ("low", "medium", "high", "auto"):
            raise ValueError(f"eagerness is {self.eagerness!r}; use low, medium, high or auto")
        ServerVad(self.threshold, self.prefix_padding_ms, early_ms=self.early_ms)


@dataclass(frozen=True)
class Settings:
    """How a session behaves; `Session.update` changes single fields.

    voice: a name that the checkpoint knows. speak: whether replies are spoken; a session
    that was opened silent stays so. system: None is the official prompt that goes with `speak` when
    the session is opened. tools: functions as
    OpenAI clients describe them. turn_detection: None is push-to-talk, where `commit` ends a turn.
    text, speech: how text and codec ids are drawn. max_text_tokens, max_codec_ids: the longest
    reply. seed: reply number n of the session draws with seed + n. camera_fps: frames a second
    that the model sees of what push_image gives with a time.
    exact_ear: encode every finished turn again with the loudest sound of the whole turn, as the
    reference does; costs the head start of listening.
    """

    voice: str = DEFAULT_VOICE
    speak: bool = True
    system: str | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    turn_detection: ServerVad | SemanticVad | None = None
    text: Sampling = GREEDY
    speech: Sampling = OFFICIAL_SPEECH
    max_text_tokens: int = 1024
    max_codec_ids: int = 4096
    seed: int = 0
    camera_fps: float = 2.0
    exact_ear: bool = False

    def __post_init__(self) -> None:
        for name in ("max_text_tokens", "max_codec_ids"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not 0.5 <= self.camera_fps <= 30:
            raise ValueError(f"camera_fps is {self.camera_fps}; use 0.5 to 30")
