"""Chat messages in; text, control tokens and media in prompt order out: the official template.

Also the way back: tool calls in a reply. The layout of turns and media is Qwen2.5-Omni's, that of
tools is Qwen2.5's, which the checkpoints were trained on, too.
"""

from __future__ import annotations

import json
import re
from collections import deque
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from thinktalk.media.source import medium_of

DEFAULT_SYSTEM_PROMPT = "You are a helpful assistant."
SPEECH_SYSTEM_PROMPT = (
    "You are Qwen, a virtual human developed by the Qwen Team, Alibaba Group, capable of perceiving"
    " auditory and visual inputs, as well as generating text and speech."
)
TOOLS_BEFORE = (
    "\n\n# Tools\n\nYou may call one or more functions to assist with the user query.\n\n"
    "You are provided with function signatures within <tools></tools> XML tags:\n<tools>"
)
TOOLS_BETWEEN = (
    "\n</tools>\n\nFor each function call, return a json object with function name and arguments "
    "within <tool_call></tool_call> XML tags:\n<tool_call>\n"
)
TOOLS_AFTER = '{"name": <function-name>, "arguments": <args-json-object>}\n</tool_call>'

ROLES = ("system", "user", "assistant", "tool")
MESSAGE_KEYS = frozenset({"role", "content", "name", "tool_calls", "tool_call_id"})
MARKERS = {
    "image": ("<|vision_bos|>", "<|vision_eos|>"),
    "video": ("<|vision_bos|>", "<|vision_eos|>"),
    "audio": ("<|audio_bos|>", "<|audio_eos|>"),
}
PART_KINDS = {
    **dict.fromkeys(("text", "input_text", "output_text"), "text"),
    **dict.fromkeys(("image", "image_url", "input_image"), "image"),
    **dict.fromkeys(("audio", "audio_url", "input_audio"), "audio"),
    **dict.fromkeys(("video", "video_url", "input_video"), "video"),
}
# Options of a medium, in the spellings of the official tools and in ours -> ours.
_PIXELS = {name: name for name in ("min_pixels", "max_pixels", "resized_height", "resized_width")}
OPTIONS = {
    "image": {**_PIXELS, "detail": None},  # OpenAI clients send detail; there is no such choice
    "audio": {
        **{"start": "start", "end": "end", "sample_rate": "sample_rate"},
        **{"audio_start": "start", "audio_end": "end"},
    },
    "video": {
        **_PIXELS,
        **{name: name for name in ("fps", "num_frames", "min_frames", "max_frames")},
        **{name: name for name in ("start", "end", "total_pixels", "audio_in_video")},
        **{"nframes": "num_frames", "video_start": "start", "video_end": "end"},
        **{"use_audio_in_video": "audio_in_video", "sound": "sound"},
    },
}
CALL_MARK = "<tool_call>"
_CALL = re.compile(rf"{CALL_MARK}\s*(?=\{{)")

Message = Mapping[str, Any]


@dataclass(frozen=True)
class Control:
    """An added token that the template itself writes."""

    name: str


@dataclass(frozen=True)
class Medium:
    """A picture, recording or film to be loaded, and how."""

    kind: str  # "image", "audio" or "video"
    source: Any
    options: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class ToolCall:
    """A function that the model wants to have called."""

    name: str
    arguments: dict[str, Any]


Piece = str | Control | Medium


def render(
    messages: Sequence[Message],
    *,
    system: str | None = None,
    tools: Sequence[Mapping[str, Any]] | None = None,
    reply: bool = True,
) -> list[Piece]:
    """Return the prompt of a conversation; reply opens the assistant's next turn at its end.

    system is used if the first message is not a system message. Raises ValueError naming the
    message for anything that the template cannot write.
    """
    if not messages:
        raise ValueError("there are no messages; give at least one")
    turns = [_turn(message, number) for number, message in enumerate(messages, 1)]
    if turns[0][0] != "system":
        prompt = DEFAULT_SYSTEM_PROMPT if system is None else system
        turns.insert(0, ("system", [prompt]))
    if tools:
        turns[0] = ("system", [*turns[0][1], *_tool_prompt(tools)])
    out: list[Piece] = []
    for number, (role, body) in enumerate(turns):
        before = turns[number - 1][0] if number else None
        after = turns[number + 1][0] if number + 1 < len(turns) else None
        if role != "tool":
            out += [Control("<|im_start|>"), f"{role}\n", *body, Control("<|im_end|>"), "\n"]
            continue
        if before != "tool":  # results of one round of calls share a user turn
            out += [Control("<|im_start|>"), "user"]
        out += ["\n<tool_response>\n", *body, "\n</tool_response>"]
        if after != "tool":
            out += [Control("<|im_end|>"), "\n"]
    if reply:
        out += [Control("<|im_start|>"), "assistant\n"]
    return out


def as_messages(inputs: str | Sequence[Any]) -> list[Message]:
    """Return chat messages as they are, or one user message of a plain list.

    In a plain list strings are media by their extension (paths, URLs, data URIs) and text
    otherwise; arrays are sound [n], pictures [H,W,3] or frames [n,H,W,3].
    """
    items: list[Any] = [inputs] if isinstance(inputs, str) else list(inputs)
    if items and all(isinstance(item, Mapping) for item in items):
        return items
    if any(isinstance(item, Mapping) for item in items):
        raise ValueError("give either chat messages or a plain list of texts and media, not both")
    parts: list[dict[str, Any]] = []
    for item in items:
        kind = _kind_of(item)
        if kind == "text" and parts and parts[-1]["type"] == "text":
            parts[-1]["text"] += "\n" + item
        else:
            parts.append({"type": kind, kind: item})
    return [{"role": "user", "content": parts}]


class SpokenIds:
    """The text of a reply in, id by id; how many of the ids are for the ear out.

    Those are the ids before the first tool call, which is for programs, and none if there are no
    words before it. count: ids that are certain to be spoken. ended: a call has begun, so that no
    more will be.
    """

    def __init__(self) -> None:
        self.count = 0
        self.ended = False
        self._text = ""  # of the ids that are not certain
        self._lengths: deque[int] = deque()  # characters of each of them

    def push(self, text: str) -> None:
        """The characters that the next id completes, often none."""
        if self.ended:
            return
        self._text += text
        self._lengths.append(len(text))
        call = _CALL.search(self._text)
        self.ended = call is not None
        words = call.start() if call else _begin_of_call(self._text)
        if not self.count and self._text[:words].isspace():
            return  # before a call it is not worth a voice
        while self._lengths and self._lengths[0] <= words:
            length = self._lengths.popleft()
            words -= length
            self._text = self._text[length:]
            self.count += 1

    def finish(self) -> None:
        """Nothing follows: what might have become a call has not."""
        if not self.ended:
            self.count += len(self._lengths)
            self._lengths.clear()


def parse_tool_calls(text: str) -> list[ToolCall]:
    """Return the well-formed tool calls of a reply, in order; what is malformed stays text."""
    calls, place = [], 0
    while match := _CALL.search(text, place):
        place = match.end()
        try:
            call, place = json.JSONDecoder().raw_decode(text, place)
        except ValueError:
            continue
        name, arguments = call.get("name"), call.get("arguments", {})
        if isinstance(name, str) and isinstance(arguments, dict):
            calls.append(ToolCall(name, arguments))
    return calls


def _begin_of_call(text: str) -> int:
    """Where the end of a text begins that may turn out to be a tool call; its length if none."""
    place = text.rfind(CALL_MARK[0])
    rest = text[place:] if place >= 0 else ""
    if rest and (CALL_MARK.startswith(rest) or rest.rstrip() == CALL_MARK):
        return place
    return len(text)


def _turn(message: Message, number: int) -> tuple[str, list[Piece]]:
    """Check one message and return its role and body."""
    role = message.get("role")
    where = f"message {number} ({role})"
    if role == "developer":
        role = "system"
    if role not in ROLES:
        raise ValueError(f"message {number} has the role {role!r}; give one of {', '.join(ROLES)}")
    if unknown := set(message) - MESSAGE_KEYS:
        raise ValueError(f"{where} has the unknown key {sorted(unknown)[0]!r}; remove it")
    body = _content(message.get("content"), where)
    calls = message.get("tool_calls") or []
    if calls and role != "assistant":
        raise ValueError(f"{where} has tool_calls, which only the assistant makes; remove them")
    if role == "user" and not any(not isinstance(p, str) or p.strip() for p in body):
        raise ValueError(f"{where} is empty; give it text or media")
    for call in calls:
        body += ["\n"] if body else []
        body += [Control("<tool_call>"), f"\n{_call_text(call, where)}\n", Control("</tool_call>")]
    return role, body


def _content(content: Any, where: str) -> list[Piece]:
    if content is None or content == "":
        return []
    if isinstance(content, str):
        return [content]
    if not isinstance(content, Sequence):
        raise ValueError(
            f"{where} has content of type {type(content).__name__}; give text or a list"
        )
    pieces: list[Piece] = []
    for part in content:
        piece = part if isinstance(part, str) else _part(part, where)
        if isinstance(piece, Medium):
            before, after = MARKERS[piece.kind]
            pieces += [Control(before), piece, Control(after)]
        else:
            pieces.append(piece)
    return pieces


def _part(part: Any, where: str) -> str | Medium:
    """Read one {"type": ...} part, in the official or OpenAI's spelling."""
    if not isinstance(part, Mapping):
        raise ValueError(f"{where} has a part of type {type(part).__name__}; give {{'type': ...}}")
    name = part.get("type") or next((key for key in part if key in PART_KINDS), None)
    kind = PART_KINDS.get(str(name))
    if kind is None:
        raise ValueError(f"{where} has a part of type {name!r}; give text, image, audio or video")
    rest = {key: value for key, value in part.items() if key != "type"}
    names = [key for key in rest if PART_KINDS.get(key) == kind]
    if len(names) != 1:
        raise ValueError(f"{where} has a part of type {name!r} without its {kind}; add it")
    source = rest.pop(names[0])
    if kind == "text":
        if not isinstance(source, str) or rest:
            raise ValueError(f"{where} has a text part that is not just text; correct it")
        return source
    if isinstance(source, Mapping):  # {"url": ...} or {"data": ..., "format": ...}
        rest |= {key: source[key] for key in source if key not in ("url", "data", "format")}
        source = _nested_source(source, kind, where)
    options = {}
    for key, value in rest.items():
        if key not in OPTIONS[kind]:
            raise ValueError(
                f"{where} has the unknown {kind} option {key!r}; known are "
                f"{', '.join(OPTIONS[kind])}"
            )
        if value is not None and (option := OPTIONS[kind][key]):
            options[option] = value
    return Medium(kind, source, options)


def _nested_source(source: Mapping[str, Any], kind: str, where: str) -> Any:
    if "url" in source:
        return source["url"]
    data = source.get("data")
    if not isinstance(data, str):
        raise ValueError(f"{where} has a part of type {kind} without url or data; add one")
    return data if data.startswith("data:") else f"data:{kind}/{source.get('format')};base64,{data}"


def _tool_prompt(tools: Sequence[Mapping[str, Any]]) -> list[Piece]:
    lines = "".join("\n" + _json(_tool(tool)) for tool in tools)
    call, end = Control("<tool_call>"), Control("</tool_call>")
    before, after = TOOLS_BETWEEN.split("<tool_call></tool_call>")
    middle = after.removesuffix("<tool_call>\n")
    example = TOOLS_AFTER.removesuffix("</tool_call>")
    return [TOOLS_BEFORE + lines + before, call, end, middle, call, "\n" + example, end]


def _tool(tool: Mapping[str, Any]) -> Mapping[str, Any]:
    """Bring a tool to {"type": "function", "function": ...}; the Realtime API has it flat."""
    function = tool.get("function", {key: tool[key] for key in tool if key != "type"})
    if tool.get("type", "function") != "function" or not isinstance(function.get("name"), str):
        raise ValueError(f"the tool {_json(tool)[:200]} is not a function with a name; correct it")
    nested = {"type", "function"} <= tool.keys()
    return tool if nested else {"type": "function", "function": function}


def _call_text(call: Any, where: str) -> str:
    function = call.get("function", call) if isinstance(call, Mapping) else {}
    name, arguments = function.get("name"), function.get("arguments", {})
    if isinstance(arguments, str):
        try:
            arguments = json.loads(arguments or "{}")
        except ValueError:
            raise ValueError(f"{where} has tool call arguments that are not JSON") from None
    if not isinstance(name, str):
        raise ValueError(f"{where} has a tool call without a name; add it")
    return _json({"name": name, "arguments": arguments})


def _json(value: Any) -> str:
    return json.dumps(value, ensure_ascii=False)


def _kind_of(item: Any) -> str:
    """Return the type of part that an item of a plain list stands for."""
    if isinstance(item, str):
        return medium_of(item) or "text"
    if isinstance(item, Path):
        if kind := medium_of(str(item).replace(" ", "_")):
            return kind
        raise ValueError(f"{item} has no extension of a known medium; say what it is in a message")
    if isinstance(item, tuple):
        return "audio"
    if isinstance(item, Image.Image):
        return "image"
    if isinstance(item, np.ndarray) and 1 <= item.ndim <= 4:
        if item.ndim == 2:
            return "image" if item.dtype == np.uint8 else "audio"
        return {1: "audio", 3: "image", 4: "video"}[item.ndim]
    raise ValueError(
        f"an item of type {type(item).__name__} says not what it is; put it in a message, such as "
        "{'role': 'user', 'content': [{'type': 'image', 'image': ...}]}"
    )
