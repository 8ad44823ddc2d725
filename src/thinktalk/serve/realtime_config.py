"""How a Realtime session is set up: OpenAI's session object, merged, checked and made Settings.

`Config.changed` applies a session.update: only keys that are present change anything. What is not
offered is refused with its reason; what changes nothing is echoed as it really is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from pydantic import Field, ValidationError

from thinktalk.options import SemanticVad, ServerVad, Settings
from thinktalk.serve.schema import ApiError, Strict, invalid, refused, voice_name

PCM_HZ = 24_000
DEFAULT_TURNS = ServerVad()
Format = Literal["audio/pcm", "audio/pcmu", "audio/pcma"]
Modality = Literal["audio", "text"]


class FormatPatch(Strict):
    type: Format
    rate: int | None = None


class Transcription(Strict):
    """language and prompt are accepted and change nothing: the model hears the language itself."""

    model: str | None = None
    language: str | None = None
    prompt: str | None = None
    delay: str | None = None
    keywords: list[str] | None = None
    languages: list[str] | None = None


class TurnPatch(Strict):
    type: Literal["server_vad", "semantic_vad"]
    threshold: float | None = None
    prefix_padding_ms: int | None = None
    silence_duration_ms: int | None = None
    idle_timeout_ms: int | None = None
    eagerness: Literal["low", "medium", "high", "auto"] | None = None
    create_response: bool | None = None
    interrupt_response: bool | None = None


class InputPatch(Strict):
    format: FormatPatch | None = None
    noise_reduction: dict[str, Any] | None = None
    transcription: Transcription | None = None
    turn_detection: TurnPatch | None = None


class OutputPatch(Strict):
    format: FormatPatch | None = None
    voice: str | dict[str, Any] | None = None
    speed: float | None = None


class AudioPatch(Strict):
    input: InputPatch | None = None
    output: OutputPatch | None = None


class SessionPatch(Strict):
    type: Literal["realtime", "transcription"]
    model: str | None = None
    instructions: str | None = None
    output_modalities: list[Modality] | None = None
    audio: AudioPatch | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    max_output_tokens: int | Literal["inf"] | None = None
    parallel_tool_calls: bool | None = None
    truncation: Any = None
    tracing: Any = None
    include: list[str] | None = None
    prompt: Any = None
    reasoning: Any = None
    # what session.created tells, for clients that send it back
    id: str | None = None
    object: str | None = None
    expires_at: int | None = Field(default=None)
    resume: Any = None


@dataclass(frozen=True)
class Config:
    """What is in force."""

    voice: str
    kind: Literal["realtime", "transcription"] = "realtime"
    modality: Modality = "audio"
    instructions: str = ""
    input_format: Format = "audio/pcm"
    output_format: Format = "audio/pcm"
    transcribes: bool = False
    turns: ServerVad | SemanticVad | None = field(default=DEFAULT_TURNS)
    tools: tuple[Mapping[str, Any], ...] = ()
    tool_choice: Literal["auto", "none"] = "auto"
    max_output_tokens: int | Literal["inf"] = "inf"

    def changed(self, session: Any, *, voices: tuple[str, ...], prefix: str = "session") -> Config:
        """This configuration with a session.update applied. Raises ApiError naming the field."""
        try:
            patch = SessionPatch.model_validate(session)
        except ValidationError as error:
            raise invalid(error, prefix=prefix) from None
        _check_offered(patch)
        config = replace(self, kind=patch.type)
        given = patch.model_fields_set
        if "instructions" in given:
            config = replace(config, instructions=patch.instructions or "")
        if patch.output_modalities is not None:
            config = replace(config, modality=_modality(patch.output_modalities))
        if "tools" in given:
            config = replace(config, tools=tuple(map(_tool, patch.tools or ())))
        if "tool_choice" in given:
            config = replace(config, tool_choice=_tool_choice(patch.tool_choice))
        if "max_output_tokens" in given:
            config = replace(config, max_output_tokens=_max_tokens(patch.max_output_tokens))
        if patch.audio is not None and patch.audio.input is not None:
            config = config._hearing(patch.audio.input)
        if patch.audio is not None and patch.audio.output is not None:
            config = config._speaking(patch.audio.output, voices)
        if config.kind == "transcription":
            return replace(config, transcribes=True, modality="text")
        return config

    def settings(self, base: Settings) -> Settings:
        """The engine's settings; base gives what the protocol has no words for."""
        tokens = self.max_output_tokens
        turns = self.turns
        if self.kind == "transcription" and turns is not None:
            turns = replace(turns, create_response=False)
        return replace(
            base,
            voice=self.voice,
            speak=self.modality == "audio",
            system=self.instructions or base.system,
            tools=self.tools if self.tool_choice == "auto" else (),
            turn_detection=turns,
            max_text_tokens=base.max_text_tokens if tokens == "inf" else tokens,
        )

    def wire(self, *, session: str, model: str, **more: Any) -> dict[str, Any]:
        """OpenAI's session object."""
        audio_in = {
            "format": wire_format(self.input_format),
            "transcription": {"model": model} if self.transcribes else None,
            "noise_reduction": None,
            "turn_detection": _wire_turns(self.turns),
        }
        if self.kind == "transcription":
            return {
                "type": "transcription",
                "object": "realtime.transcription_session",
                "id": session,
                "audio": {"input": audio_in},
                "include": None,
                **more,
            }
        return {
            "type": "realtime",
            "object": "realtime.session",
            "id": session,
            "model": model,
            "output_modalities": [self.modality],
            "instructions": self.instructions,
            "audio": {"input": audio_in, "output": self.wire_output() | {"speed": 1.0}},
            "tools": list(self.tools),
            "tool_choice": self.tool_choice,
            "max_output_tokens": self.max_output_tokens,
            "truncation": "auto",
            "tracing": None,
            "prompt": None,
            "include": None,
            **more,
        }

    def wire_output(self) -> dict[str, Any]:
        return {"format": wire_format(self.output_format), "voice": self.voice}

    def _hearing(self, patch: InputPatch) -> Config:
        config, given = self, patch.model_fields_set
        if patch.format is not None:
            config = replace(config, input_format=_format(patch.format, "input"))
        if "transcription" in given:
            config = replace(config, transcribes=patch.transcription is not None)
        if "turn_detection" in given:
            config = replace(config, turns=_turns(patch.turn_detection, before=self.turns))
        return config

    def _speaking(self, patch: OutputPatch, voices: tuple[str, ...]) -> Config:
        config = self
        if patch.format is not None:
            config = replace(config, output_format=_format(patch.format, "output"))
        if patch.voice is not None:
            config = replace(config, voice=voice_name(patch.voice, voices))
        if patch.speed not in (None, 1):
            raise refused("session.audio.output.speed", "the voice has one pace; use 1")
        return config


def wire_format(name: Format) -> dict[str, Any]:
    return {"type": name, "rate": PCM_HZ} if name == "audio/pcm" else {"type": name}


def _check_offered(patch: SessionPatch) -> None:
    if patch.prompt is not None:
        raise refused("session.prompt", "stored prompts do not exist here; use instructions")
    if patch.include:
        raise refused("session.include", "log probabilities are not computed; leave it out")
    if patch.truncation not in (None, "auto"):
        raise refused("session.truncation", "the oldest turns go when the context is full: auto")
    turns = patch.audio.input.turn_detection if patch.audio and patch.audio.input else None
    if turns is not None and turns.idle_timeout_ms is not None:
        raise refused(
            "session.audio.input.turn_detection.idle_timeout_ms", "the model speaks when spoken to"
        )


def _format(patch: FormatPatch, where: str) -> Format:
    if patch.type == "audio/pcm" and patch.rate not in (None, PCM_HZ):
        raise ApiError(
            400,
            f"Expected a value >= {PCM_HZ}: audio/pcm is spoken at {PCM_HZ} Hz",
            code="integer_below_min_value",
            param=f"session.audio.{where}.format.rate",
        )
    return patch.type


def _turns(
    patch: TurnPatch | None, *, before: ServerVad | SemanticVad | None
) -> ServerVad | SemanticVad | None:
    """The detector asked for; of the same kind as before, only what is given changes."""
    if patch is None:
        return None
    where = "session.audio.input.turn_detection"
    kind = ServerVad if patch.type == "server_vad" else SemanticVad
    values = patch.model_dump(exclude_none=True, exclude={"type", "idle_timeout_ms"})
    alien = {"silence_duration_ms"} if kind is SemanticVad else {"eagerness"}
    if wrong := alien & values.keys():
        name = sorted(wrong)[0]
        message = f"{patch.type} has no {name}; leave it out"
        raise ApiError(400, message, code="invalid_value", param=f"{where}.{name}")
    try:
        return replace(before if isinstance(before, kind) else kind(), **values)
    except ValueError as error:
        raise ApiError(400, str(error), code="invalid_value", param=where) from None


def _wire_turns(turns: ServerVad | SemanticVad | None) -> dict[str, Any] | None:
    if turns is None:
        return None
    common = {
        "create_response": turns.create_response,
        "interrupt_response": turns.interrupt_response,
    }
    if isinstance(turns, SemanticVad):
        return {"type": "semantic_vad", "eagerness": turns.eagerness, **common}
    return {
        "type": "server_vad",
        "threshold": turns.threshold,
        "prefix_padding_ms": turns.prefix_padding_ms,
        "silence_duration_ms": turns.silence_duration_ms,
        "idle_timeout_ms": None,
        **common,
    }


def _modality(asked: list[Modality]) -> Modality:
    if len(asked) != 1:
        message = 'output_modalities is ["audio"] (its words come as a transcript) or ["text"]'
        raise ApiError(400, message, code="invalid_value", param="session.output_modalities")
    return asked[0]


def _tool(tool: dict[str, Any]) -> dict[str, Any]:
    if tool.get("type", "function") != "function":
        raise refused("session.tools", f"tools of type {tool['type']!r} are not; use functions")
    if not isinstance(tool.get("name"), str) or not tool["name"]:
        message = "a tool has no name; give every function one"
        raise ApiError(400, message, code="invalid_value", param="session.tools")
    return {"type": "function", **tool}


def _tool_choice(choice: Any) -> Literal["auto", "none"]:
    if choice in (None, "", "auto"):
        return "auto"
    if choice != "none":
        raise refused("session.tool_choice", "the model chooses freely: use auto or none")
    return "none"


def _max_tokens(value: int | str | None) -> int | Literal["inf"]:
    if value is None or value == "inf":
        return "inf"
    if not 1 <= int(value) <= 4096:
        param = "session.max_output_tokens"
        raise ApiError(400, "give 1 to 4096, or inf", code="invalid_value", param=param)
    return int(value)
