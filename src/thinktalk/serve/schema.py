"""The shapes of the HTTP API: what requests may say, what replies and errors look like.

A field that is not listed is an error that names it. Fields that OpenAI's clients send and that
change nothing here are listed as such; everything else that is not offered is refused in words.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Mapping
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from thinktalk.live.api import Failed, Usage

# Voices of OpenAI's that stock clients ask for by default -> the official voice of that kind.
OPENAI_VOICES = {
    **dict.fromkeys(("alloy", "coral", "fable", "marin", "nova", "sage", "shimmer"), "Chelsie"),
    **dict.fromkeys(("ash", "ballad", "cedar", "echo", "onyx", "verse"), "Ethan"),
}
# Codes of the engine's Failed events that are not the server's mistake -> the HTTP status.
CALLER_MISTAKES = {
    "context_full": 422,
    "context_length_exceeded": 422,
    "input_audio_buffer_commit_empty": 422,
    "invalid_audio": 422,
    "invalid_image": 422,
    "invalid_media": 422,
    "invalid_message": 400,
    "invalid_value": 400,
    "item_not_found": 400,
    "overloaded": 503,
    "turn_too_long": 422,
}

Shape = TypeVar("Shape", bound=BaseModel)


class ApiError(Exception):
    """A request that is not served: the HTTP status and OpenAI's four fields."""

    def __init__(
        self,
        status: int,
        message: str,
        *,
        code: str | None = None,
        param: str | None = None,
        headers: Mapping[str, str] | None = None,
    ):
        super().__init__(message)
        self.status, self.message, self.code, self.param = status, message, code, param
        self.headers = dict(headers or {})

    @property
    def body(self) -> dict[str, Any]:
        kind = "invalid_request_error"
        if self.status in (401, 403):
            kind = "authentication_error"
        elif self.status == 429:
            kind = "rate_limit_error"
        elif self.status >= 500:
            kind = "server_error"
        error = {"message": self.message, "type": kind, "param": self.param, "code": self.code}
        return {"error": error}


def refused(param: str, remedy: str) -> ApiError:
    """The error for something that OpenAI has and this server does not."""
    return ApiError(400, f"{param} is not offered: {remedy}", code="unsupported_value", param=param)


def failed(event: Failed) -> ApiError:
    """The error for what the engine did not do."""
    status = CALLER_MISTAKES.get(event.code, 500)
    return ApiError(status, event.message, code=event.code, param=event.param)


def parsed(schema: type[Shape], body: bytes) -> Shape:
    """The body as what it should be. Raises ApiError naming the first thing that is wrong."""
    try:
        return schema.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error) from None


def invalid(error: ValidationError, *, prefix: str = "") -> ApiError:
    """The first complaint of a schema as one sentence."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    param = ".".join([prefix, *map(str, first["loc"])]).strip(".")
    if first["type"] == "extra_forbidden":
        return ApiError(400, f"unknown field {param!r}; remove it", code="unknown", param=param)
    return ApiError(
        400, f"{param or 'the body'}: {first['msg']}", code="invalid_value", param=param
    )


def voice_name(asked: str | Mapping[str, Any] | None, voices: tuple[str, ...]) -> str:
    """The checkpoint's voice for what a client asked: its own name in any case, OpenAI's names,
    nothing at all. Raises ApiError for others."""
    if isinstance(asked, Mapping):
        asked = asked.get("id")
    if not voices:
        raise ApiError(400, "the loaded checkpoint has no voices; ask for text", param="voice")
    if not asked:
        return "Chelsie" if "Chelsie" in voices else voices[0]
    known = {name.lower(): name for name in voices}
    if isinstance(asked, str) and (name := known.get(asked.lower())):
        return name
    if official := OPENAI_VOICES.get(str(asked).lower()):
        return official if official in voices else voices[0]
    message = f"unknown voice {asked!r}; choose one of {', '.join(voices)}"
    raise ApiError(400, message, code="invalid_value", param="voice")


def new_id(kind: str) -> str:
    """A name nobody can guess: chatcmpl-..., audio_..., ek_..."""
    return f"{kind}{secrets.token_hex(12)}"


def now() -> int:
    return int(time.time())


class Strict(BaseModel):
    model_config = ConfigDict(extra="forbid")


# ---- /v1/chat/completions


class AudioOut(Strict):
    voice: str | dict[str, Any] | None = None
    format: Literal["wav", "mp3", "flac", "opus", "aac", "pcm16", "pcm"] = "wav"


class StreamOptions(Strict):
    include_usage: bool = False
    include_obfuscation: bool | None = None


class ChatRequest(Strict):
    messages: list[dict[str, Any]] = Field(min_length=1)
    model: str | None = None
    modalities: list[Literal["text", "audio"]] | None = None
    audio: AudioOut | None = None
    stream: bool = False
    stream_options: StreamOptions | None = None
    max_tokens: int | None = Field(default=None, ge=1)
    max_completion_tokens: int | None = Field(default=None, ge=1)
    temperature: float | None = Field(default=None, ge=0, le=2)
    top_p: float | None = Field(default=None, gt=0, le=1)
    seed: int | None = None
    stop: str | list[str] | None = None
    tools: list[dict[str, Any]] | None = None
    tool_choice: str | dict[str, Any] | None = None
    parallel_tool_calls: bool | None = None
    # ours, beside OpenAI's
    top_k: int | None = Field(default=None, ge=0)
    repetition_penalty: float | None = Field(default=None, gt=0, le=10)
    use_audio_in_video: bool | None = None
    mm_processor_kwargs: dict[str, Any] | None = None
    # refused unless they ask for nothing
    n: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = None
    logit_bias: dict[str, float] | None = None
    frequency_penalty: float | None = None
    presence_penalty: float | None = None
    response_format: dict[str, Any] | None = None
    functions: list[Any] | None = None
    function_call: Any = None
    prediction: Any = None
    web_search_options: Any = None
    moderation: Any = None
    # accepted, and without effect
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None
    prompt_cache_retention: str | None = None
    prompt_cache_options: Any = None
    reasoning_effort: str | None = None
    verbosity: str | None = None

    @property
    def speaks(self) -> bool:
        return "audio" in (self.modalities or ())

    @property
    def stops(self) -> list[str]:
        return [self.stop] if isinstance(self.stop, str) else list(self.stop or ())

    def check(self) -> None:
        """Raises ApiError for what is well formed but not offered."""
        if self.n not in (None, 1):
            raise refused("n", "one reply is made per request; send the request again for more")
        if self.logprobs or self.top_logprobs:
            raise refused("logprobs", "leave it out")
        for name in ("frequency_penalty", "presence_penalty"):
            if getattr(self, name):
                raise refused(name, "use repetition_penalty, or leave it out")
        if (self.response_format or {"type": "text"}).get("type") != "text":
            raise refused("response_format", "replies are free text")
        for name in ("functions", "function_call"):
            if getattr(self, name):
                raise refused(name, "use tools and tool_choice")
        for name in ("logit_bias", "prediction", "web_search_options", "moderation"):
            if getattr(self, name):
                raise refused(name, "leave it out")
        if self.tools and self.tool_choice not in (None, "auto", "none"):
            raise refused("tool_choice", "the model chooses freely: use auto or none")
        if self.modalities is not None and not self.modalities:
            raise ApiError(400, "modalities is empty; ask for text, audio or both")
        if self.speaks and self.audio is None:
            raise ApiError(
                400, "modalities has audio: give audio: {voice, format}, too", param="audio"
            )
        if len(self.stops) > 4 or "" in self.stops:
            raise ApiError(400, "stop may hold up to 4 strings, none empty", param="stop")


# ---- /v1/audio


class SpeechRequest(Strict):
    input: str = Field(min_length=1, max_length=4096)
    model: str | None = None
    voice: str | dict[str, Any] | None = None
    instructions: str | None = None
    response_format: Literal["mp3", "opus", "aac", "flac", "wav", "pcm"] = "mp3"
    speed: float | None = None
    stream_format: Literal["audio", "sse"] = "audio"
    seed: int | None = None

    def check(self) -> None:
        """Raises ApiError for what is well formed but not offered."""
        if self.speed not in (None, 1):
            raise refused("speed", "the voice has one pace; use 1")
        if self.instructions:
            raise refused("instructions", "the voice does not follow them; leave them out")
        if not self.input.strip():
            raise ApiError(400, "input has no words", code="invalid_value", param="input")


# ---- /v1/realtime/client_secrets


class Expiry(Strict):
    anchor: Literal["created_at"] = "created_at"
    seconds: int = Field(default=600, ge=10, le=7200)


class SecretRequest(Strict):
    expires_after: Expiry = Expiry()
    session: dict[str, Any] | None = None


# ---- replies


def chat_usage(usage: Usage) -> dict[str, Any]:
    """OpenAI's usage of a chat completion."""
    prompt = usage.input_text + usage.input_audio + usage.input_image
    completion = usage.output_text + usage.output_audio
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "prompt_tokens_details": {
            "text_tokens": usage.input_text,
            "audio_tokens": usage.input_audio,
            "image_tokens": usage.input_image,
            "cached_tokens": usage.cached,
        },
        "completion_tokens_details": {
            "text_tokens": usage.output_text,
            "audio_tokens": usage.output_audio,
            "reasoning_tokens": 0,
        },
    }


def realtime_usage(usage: Usage) -> dict[str, Any]:
    """The Realtime API's usage of a response."""
    inputs = usage.input_text + usage.input_audio + usage.input_image
    outputs = usage.output_text + usage.output_audio
    return {
        "total_tokens": inputs + outputs,
        "input_tokens": inputs,
        "output_tokens": outputs,
        "input_token_details": {
            "text_tokens": usage.input_text,
            "audio_tokens": usage.input_audio,
            "image_tokens": usage.input_image,
            "cached_tokens": usage.cached,
        },
        "output_token_details": {
            "text_tokens": usage.output_text,
            "audio_tokens": usage.output_audio,
        },
    }
