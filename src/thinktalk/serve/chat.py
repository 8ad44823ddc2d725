"""/v1/chat/completions: one request, one session of the engine, one reply; whole or as a stream."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import OrderedDict
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from thinktalk.live import api
from thinktalk.media.encode import encode
from thinktalk.options import GREEDY, Sampling, Settings
from thinktalk.serve.limits import read_body
from thinktalk.serve.metrics import Metrics
from thinktalk.serve.reply import (
    End,
    Part,
    Sound,
    SoundWriter,
    Stream,
    Words,
    reply_parts,
    sse,
    while_connected,
)
from thinktalk.serve.schema import (
    ApiError,
    ChatRequest,
    chat_usage,
    new_id,
    now,
    parsed,
    refused,
    voice_name,
)
from thinktalk.serve.sessions import Sessions
from thinktalk.serve.sources import Sources

AUDIO_KEPT_S = 3600  # how long the sound of a reply may be referred to by its id
AUDIO_KEPT = 10_000  # ids; the oldest go first
# Keys of messages that come back from clients and say nothing to the model.
SILENT_KEYS = ("refusal", "annotations", "function_call", "audio", "reasoning")


@dataclass
class Completion:
    """What a reply has come to, and how its pieces look on the wire."""

    asked: ChatRequest
    model: str
    id: str = field(default_factory=lambda: new_id("chatcmpl-"))
    audio_id: str = field(default_factory=lambda: new_id("audio_"))
    created: int = field(default_factory=now)
    text: str = ""
    sounds: list[np.ndarray] = field(default_factory=list)
    calls: list[dict[str, Any]] = field(default_factory=list)
    end: End | None = None

    def take(self, part: Part) -> None:
        match part:
            case Words():
                self.text += part.text
            case Sound():
                self.sounds.append(part.samples)
            case api.ToolCall():
                self.calls.append(tool_call(part))
            case End():
                self.end = part

    def chunk(self, delta: dict[str, Any], finish: str | None = None) -> dict[str, Any]:
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
        return self._frame("chat.completion.chunk", [choice])

    def usage_chunk(self) -> dict[str, Any]:
        assert self.end is not None
        usage = chat_usage(self.end.usage)
        return self._frame("chat.completion.chunk", []) | {"usage": usage}

    def whole(self, *, data: bytes, expires_at: int) -> dict[str, Any]:
        """The reply in one piece; data: the sound file."""
        assert self.end is not None
        message: dict[str, Any] = {"role": "assistant", "content": self.text, "refusal": None}
        if self.asked.speaks:
            message["content"] = None
            message["audio"] = {
                "id": self.audio_id,
                "data": base64.b64encode(data).decode(),
                "expires_at": expires_at,
                "transcript": self.text,
            }
        if self.calls:
            message["tool_calls"] = self.calls
            message["content"] = self.text or None
        choice = {
            "index": 0,
            "message": message,
            "logprobs": None,
            "finish_reason": self.end.finish,
        }
        return self._frame("chat.completion", [choice]) | {"usage": chat_usage(self.end.usage)}

    def _frame(self, kind: str, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return {
            "id": self.id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": choices,
        }


class Chat:
    """The endpoint."""

    def __init__(self, sessions: Sessions, *, sources: Sources, metrics: Metrics):
        self.sessions, self.sources, self.metrics = sessions, sources, metrics
        self._spoken: OrderedDict[str, tuple[int, str]] = OrderedDict()  # id -> expiry, words

    async def complete(self, request: Request) -> Response:
        body = await read_body(request, self.sessions.limits)
        async with while_connected(request):
            asked = await asyncio.to_thread(_read, body)
            parts = self._parts(asked, await self.sources.in_worker(self._messages, asked))
            completion = Completion(asked, self.sessions.engine.model_name)
            try:
                if not asked.stream:
                    async for part in parts:
                        completion.take(part)
                    return JSONResponse(await self._whole(completion))
                await anext(parts)  # what is refused is refused with its own status
            except BaseException:
                await parts.aclose()
                raise
        return Stream(self._stream(completion, parts), source=parts)

    async def _parts(
        self, asked: ChatRequest, messages: Sequence[Mapping[str, Any]]
    ) -> AsyncGenerator[Part, None]:
        """A session's reply to the messages; the session ends with the iteration."""
        system, rest = split_system(messages)
        watch = self.metrics.stopwatch("chat")
        talk = await self.sessions.open(self._settings(asked, system), wait=True)
        try:
            for group in grouped(rest):
                talk.session.add_message(group)
            talk.session.respond()
            tools = bool(talk.session.settings.tools)
            async for part in reply_parts(talk, watch=watch, stops=asked.stops, tools=tools):
                yield part
        finally:
            talk.close()

    async def _whole(self, completion: Completion) -> dict[str, Any]:
        data, expires_at = b"", 0
        if completion.asked.speaks:
            samples = np.concatenate([np.zeros(0, np.float32), *completion.sounds])
            assert completion.asked.audio is not None
            name = completion.asked.audio.format
            name = "pcm" if name == "pcm16" else name
            data = await asyncio.to_thread(encode, samples, format=name)
            expires_at = self._remember(completion)
        return completion.whole(data=data, expires_at=expires_at)

    async def _stream(
        self, completion: Completion, parts: AsyncGenerator[Part, None]
    ) -> AsyncIterator[bytes]:
        """OpenAI's chunks."""
        asked = completion.asked
        content = None if asked.speaks else ""
        yield sse(completion.chunk({"role": "assistant", "content": content, "refusal": None}))
        try:
            async for delta in self._deltas(completion, parts):
                yield sse(completion.chunk(delta))
        except ApiError as error:
            yield sse(error.body)
            return
        assert completion.end is not None
        yield sse(completion.chunk({}, completion.end.finish))
        if asked.stream_options is not None and asked.stream_options.include_usage:
            yield sse(completion.usage_chunk())
        yield sse("[DONE]")

    async def _deltas(
        self, completion: Completion, parts: AsyncIterator[Part]
    ) -> AsyncIterator[dict[str, Any]]:
        asked, name = completion.asked, {"id": completion.audio_id}
        writer = SoundWriter(asked.audio.format) if asked.speaks and asked.audio else None

        def sound(data: bytes) -> dict[str, Any]:
            return {"audio": {**name, "data": base64.b64encode(data).decode()}}

        async for part in parts:
            completion.take(part)
            completion.sounds.clear()
            if isinstance(part, Words) and asked.speaks:
                yield {"audio": {**name, "transcript": part.text}}
            elif isinstance(part, Words):
                yield {"content": part.text}
            elif isinstance(part, Sound) and writer is not None:
                if data := await writer.push(part.samples):
                    yield sound(data)
            elif isinstance(part, api.ToolCall):
                number = len(completion.calls) - 1
                yield {"tool_calls": [{"index": number, **completion.calls[-1]}]}
        if writer is not None:
            if data := await writer.finish():
                yield sound(data)
            yield {"audio": {**name, "expires_at": self._remember(completion)}}

    # ---- from the request to the engine

    def _settings(self, asked: ChatRequest, system: str | None) -> Settings:
        tokens = asked.max_completion_tokens or asked.max_tokens
        voices = tuple(self.sessions.engine.voices)
        base = Settings()
        return Settings(
            voice=voice_name(asked.audio.voice, voices) if asked.speaks and asked.audio else "",
            speak=asked.speaks,
            system=system,
            tools=tuple(asked.tools or ()) if asked.tool_choice != "none" else (),
            text=sampling(asked),
            max_text_tokens=base.max_text_tokens if tokens is None else tokens,
            seed=asked.seed or 0,
        )

    def _messages(self, asked: ChatRequest) -> list[dict[str, Any]]:
        """The messages with all media loaded. Blocks."""
        hears = asked.use_audio_in_video
        for key, value in (asked.mm_processor_kwargs or {}).items():
            if key != "use_audio_in_video":
                raise refused(f"mm_processor_kwargs.{key}", "only use_audio_in_video is")
            hears = bool(value)
        messages = []
        for number, given in enumerate(asked.messages):
            where = f"messages.{number}"
            message = {key: value for key, value in given.items() if value is not None}
            if (audio := message.get("audio")) and not message.get("content"):
                message["content"] = self._recall(audio, where)
            message = {key: value for key, value in message.items() if key not in SILENT_KEYS}
            message = self.sources.message(message, where=where)
            for part in message.get("content") or ():
                if hears is not None and isinstance(part, dict) and part["type"] == "video":
                    part.setdefault("audio_in_video", hears)
            messages.append(message)
        return messages

    def _remember(self, completion: Completion) -> int:
        """Keeps what a reply said under its audio id; returns until when."""
        expires_at = now() + AUDIO_KEPT_S
        self._spoken[completion.audio_id] = expires_at, completion.text
        while len(self._spoken) > AUDIO_KEPT or next(iter(self._spoken.values()))[0] < now():
            self._spoken.popitem(last=False)
        return expires_at

    def _recall(self, audio: Any, where: str) -> str:
        name = audio.get("id") if isinstance(audio, Mapping) else None
        expires_at, text = self._spoken.get(str(name), (0, ""))
        if expires_at < now():
            message = f"{where}.audio.id {name!r} is unknown or has expired; send the text instead"
            raise ApiError(400, message, code="invalid_value", param=f"{where}.audio.id")
        return text


def sampling(asked: ChatRequest) -> Sampling:
    """How text is drawn: greedy, unless a client asks for anything else."""
    if asked.temperature is None and asked.top_p is None and not asked.top_k:
        return Sampling(repetition_penalty=asked.repetition_penalty or 1.0)
    return Sampling(
        temperature=1.0 if asked.temperature is None else asked.temperature,
        top_k=asked.top_k or GREEDY.top_k,
        top_p=asked.top_p or GREEDY.top_p,
        repetition_penalty=asked.repetition_penalty or GREEDY.repetition_penalty,
    )


def split_system(
    messages: Sequence[Mapping[str, Any]],
) -> tuple[str | None, list[Mapping[str, Any]]]:
    """The system prompt that a conversation begins with, and the rest."""
    texts: list[str] = []
    rest = list(messages)
    while rest and rest[0].get("role") in ("system", "developer"):
        content = rest.pop(0).get("content") or ""
        parts = [content] if isinstance(content, str) else [p.get("text", "") for p in content]
        texts += parts
    if not rest:
        message = "there is no message to answer; give one of the user's"
        raise ApiError(400, message, code="invalid_value", param="messages")
    return "\n".join(texts) if texts else None, rest


def grouped(messages: Sequence[Mapping[str, Any]]) -> list[Any]:
    """The messages, results of one round of function calls together: they share a turn."""
    groups = groupby(messages, key=lambda message: message.get("role") == "tool")
    out: list[Any] = []
    for is_tool, group in groups:
        out += [list(group)] if is_tool else list(group)
    return out


def tool_call(event: api.ToolCall) -> dict[str, Any]:
    arguments = json.dumps(dict(event.arguments), ensure_ascii=False)
    function = {"name": event.name, "arguments": arguments}
    return {"id": event.call_id, "type": "function", "function": function}


def _read(body: bytes) -> ChatRequest:
    asked = parsed(ChatRequest, body)
    asked.check()
    return asked
