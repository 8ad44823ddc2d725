"""Conversation items: the client's JSON in, chat messages out, and the list both sides agree on."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.serve import g711
from thinktalk.serve.realtime_config import PCM_HZ, Format
from thinktalk.serve.schema import ApiError, refused
from thinktalk.serve.sources import Sources, decode_base64

ROLES = {
    "user": ("input_text", "input_audio", "input_image", "input_video"),
    "assistant": ("output_text", "output_audio", "text"),
    "system": ("input_text",),
}
MAX_ID_CHARS = 128
# The JS SDK wants a transcript in every part with sound, null where the words are not known.
UNKNOWN_WORDS = {"type": "input_audio", "transcript": None}


@dataclass
class Items:
    """The conversation as the client knows it: items in order, by id."""

    by_id: dict[str, dict[str, Any]] = field(default_factory=dict)

    def add(self, item: dict[str, Any], *, after: str | None) -> str | None:
        """Puts an item behind another (None: at the beginning); returns what it stands behind."""
        items = list(self.by_id.values())
        place = 1 + list(self.by_id).index(after) if after in self.by_id else 0
        items.insert(place, item)
        self.by_id = {known["id"]: known for known in items}
        return after if after in self.by_id else None

    def remove(self, item: str) -> None:
        self.by_id.pop(item, None)

    @property
    def last(self) -> str | None:
        return next(reversed(self.by_id), None)

    def __contains__(self, item: object) -> bool:
        return item in self.by_id

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return iter(self.by_id.values())


def message_item(item: str, role: str, content: list[dict[str, Any]], *, status: str = "completed"):
    """A message as it stands on the wire."""
    return {
        "id": item,
        "object": "realtime.item",
        "type": "message",
        "status": status,
        "role": role,
        "content": content,
    }


def call_item(
    item: str, *, name: str, call_id: str, arguments: str, status: str = "completed"
) -> dict[str, Any]:
    """A function call as it stands on the wire."""
    return {
        "id": item,
        "object": "realtime.item",
        "type": "function_call",
        "status": status,
        "name": name,
        "call_id": call_id,
        "arguments": arguments,
    }


def read_item(
    item: Any, *, new_id: Callable[[], str], sources: Sources, sound: Format, where: str = "item"
) -> tuple[dict[str, Any], dict[str, Any]]:
    """A client's item -> the chat message for the engine, and the item as it is told back.

    Decodes media, so it blocks. sound: the session's input format. Raises ApiError naming the part.
    """
    if not isinstance(item, Mapping):
        raise ApiError(400, f"{where} must be an object", code="invalid_value", param=where)
    name = item.get("id") or new_id()
    if not isinstance(name, str) or len(name) > MAX_ID_CHARS:
        message = f"{where}.id must be a string of at most {MAX_ID_CHARS} characters"
        raise ApiError(400, message, code="invalid_value", param=f"{where}.id")
    kind = item.get("type")
    if kind == "function_call_output":
        return _tool_result(item, name, where)
    if kind == "function_call":
        return _tool_call(item, name, where)
    if kind != "message":
        raise refused(f"{where}.type", "use message, function_call or function_call_output")
    role = item.get("role")
    if role not in ROLES:
        message = f"{where}.role must be user, assistant or system"
        raise ApiError(400, message, code="invalid_value", param=f"{where}.role")
    content = item.get("content")
    if not isinstance(content, list) or not content:
        message = f"{where}.content must be a list with at least one part"
        raise ApiError(400, message, code="invalid_value", param=f"{where}.content")
    parts, told = [], []
    for number, part in enumerate(content):
        place = f"{where}.content.{number}"
        if not isinstance(part, Mapping) or part.get("type") not in ROLES[role]:
            message = f"{place}.type must be one of {', '.join(ROLES[role])}"
            raise ApiError(400, message, code="invalid_value", param=place)
        inner, outer = _part(part, sources, sound, place)
        parts.append(inner)
        told.append(outer)
    return {"role": role, "content": parts}, message_item(name, role, told)


def pcm(data: bytes, sound: Format) -> tuple[NDArray[np.int16], int]:
    """Sound of the wire -> int16 [n] and its rate."""
    if sound == "audio/pcm":
        return np.frombuffer(data[: len(data) // 2 * 2], "<i2"), PCM_HZ
    return g711.decode(data, law=g711.LAWS[sound]), g711.TELEPHONE_HZ


def _part(
    part: Mapping[str, Any], sources: Sources, sound: Format, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """One part of a message -> for the engine, and told back (media are not repeated)."""
    kind = part["type"]
    if kind == "input_image":
        image = sources.image(part.get("image_url"), where=f"{where}.image_url")
        detail = part.get("detail") or "auto"
        return {"type": "image", "image": image}, {"type": kind, "detail": detail}
    if kind == "input_video":
        film = {key: value for key, value in part.items() if key not in ("type", "detail")}
        return sources.part({"type": "video_url", **film}, where=where), {"type": kind}
    if kind == "input_audio":
        data = decode_base64(part.get("audio"), where=f"{where}.audio")
        samples, rate = pcm(data, sound)
        if not 0 < len(samples) <= sources.limits.audio_s * rate:
            limit = sources.limits.audio_s
            message = f"{where}.audio must hold sound of at most {limit:g} s"
            raise ApiError(422, message, code="invalid_value", param=f"{where}.audio")
        told: dict[str, Any] = dict(UNKNOWN_WORDS)
        if isinstance(part.get("transcript"), str):
            told["transcript"] = part["transcript"]
        return {"type": "audio", "audio": samples, "sample_rate": rate}, told
    text = part.get("transcript") if kind == "output_audio" else part.get("text")
    if not isinstance(text, str):
        message = f"{where} has no text; give it as a string"
        raise ApiError(400, message, code="invalid_value", param=where)
    key = "transcript" if kind == "output_audio" else "text"
    return {"type": "text", "text": text}, {"type": kind, key: text}


def _tool_result(
    item: Mapping[str, Any], name: str, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    call_id, output = item.get("call_id"), item.get("output")
    if not isinstance(call_id, str) or not isinstance(output, str):
        message = f"{where} needs call_id and output, both strings"
        raise ApiError(400, message, code="invalid_value", param=where)
    told = {
        "id": name,
        "object": "realtime.item",
        "type": "function_call_output",
        "status": "completed",
        "call_id": call_id,
        "output": output,
    }
    return {"role": "tool", "tool_call_id": call_id, "content": output}, told


def _tool_call(
    item: Mapping[str, Any], name: str, where: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    function, arguments = item.get("name"), item.get("arguments")
    call_id = item.get("call_id") or f"call_{name}"
    if not isinstance(function, str) or not isinstance(arguments, str):
        message = f"{where} needs name and arguments, both strings"
        raise ApiError(400, message, code="invalid_value", param=where)
    try:
        values = json.loads(arguments or "{}")
    except ValueError:
        values = None
    if not isinstance(values, dict):
        message = f"{where}.arguments must be a JSON object"
        raise ApiError(400, message, code="invalid_value", param=f"{where}.arguments")
    call = {
        "id": call_id,
        "type": "function",
        "function": {"name": function, "arguments": arguments or "{}"},
    }
    told = call_item(name, name=function, call_id=str(call_id), arguments=arguments)
    return {"role": "assistant", "content": None, "tool_calls": [call]}, told
