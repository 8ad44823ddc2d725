"""One row of training data, in whatever form it was written, in; chat messages and targets out.

Forms: LLaMA-Factory's (sharegpt, openai, alpaca, v1 parts; named by dataset_info.json or found
out), ms-swift's (messages, pairs, query and response), and ours: either of them, where assistant
turns may also carry `speech` (a recording) or `codes` (ids or .npy), and `speaker`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from thinktalk.media.chat import OPTIONS, PART_KINDS
from thinktalk.train.schemas import Raw, Schema, standard

Find = Callable[[Any, str], Any]  # (name in a row, kind) -> a medium; ValueError if it is missing

LISTS = {"image": "images", "video": "videos", "audio": "audios"}
TAG = re.compile("(<image>|<video>|<audio>)")
ROLES = {
    **{role: role for role in ("system", "user", "assistant", "tool")},
    **{"human": "user", "gpt": "assistant", "developer": "system", "observation": "tool"},
    **{"tool_response": "tool", "function_response": "tool"},
    **{"function_call": "call", "tool_call": "call"},
}
WEIGHTS = ("loss", "loss_weight", "loss_scale")  # of a turn: ms-swift's two names and v1's
SPEECH = ("speech", "codes", "speaker")


@dataclass(frozen=True)
class Speech:
    """How an assistant turn sounds: a recording, or the codec ids of one.

    codes: ids, or a .npy source; wave: a source of sound. One of the two is there.
    """

    speaker: str
    codes: Any = None
    wave: Any = None


@dataclass(frozen=True)
class Conversation:
    """Official chat messages; which of them are learned; the speech of some, by their number."""

    messages: tuple[dict[str, Any], ...]
    learned: tuple[bool, ...]
    speech: Mapping[int, Speech] = field(default_factory=dict)


@dataclass(frozen=True)
class Row:
    """One row of training data.

    rejected: what shall become less likely than the conversation (DPO). label: whether the reply is
    wanted (KTO). extra: the columns that nothing here reads. place: file and line.
    Of a row with `rejected` or `label` only what follows the last user message is learned.
    """

    conversation: Conversation
    rejected: Conversation | None = None
    label: bool | None = None
    tools: tuple[Mapping[str, Any], ...] = ()
    extra: Mapping[str, Any] = field(default_factory=dict)
    place: str = ""

    @property
    def is_prompt(self) -> bool:
        """True where no reply is learned: a row to sample replies for."""
        return not any(self.conversation.learned)


def read_row(raw: Raw, *, find: Find, schema: Schema | None = None, place: str = "") -> Row:
    """Return a row of any known form; schema None finds the form out.

    find brings the media named in the row. Raises ValueError for what is wrong, without the place.
    """
    if not isinstance(raw, Mapping):
        raise ValueError(f"it is a {type(raw).__name__}; a row is an object with messages")
    raw = standard(raw, schema)
    options = raw.get("chat_template_kwargs") or {}
    chosen, rejected = _sides(raw)
    media = {kind: _as_list(raw.get(name)) for kind, name in LISTS.items()}
    conversation = _conversation(chosen, media, find, options)
    other = None
    if rejected is not None:
        theirs = {kind: _as_list(raw.get(f"rejected_{name}")) for kind, name in LISTS.items()}
        own = {kind: theirs[kind] or media[kind] for kind in LISTS}
        other = _only_reply(_conversation(rejected, own, find, options))
        conversation = _only_reply(conversation)
        if other == conversation:
            raise ValueError("the chosen and the rejected reply are the same; make them differ")
    label = raw.get("label")
    if label is not None:
        conversation = _only_reply(conversation)
        if not any(conversation.learned):
            raise ValueError("it has a label but no reply; add the assistant's turn")
    return Row(conversation, other, label, _tools(raw.get("tools")), raw.get("extra", {}), place)


def _sides(raw: Raw) -> tuple[list[Raw], list[Raw] | None]:
    """The turns of the conversation, and those of the rejected one."""
    turns = _turns(raw.get("messages") or [])
    if raw.get("system") and not (turns and turns[0]["role"] == "system"):
        turns.insert(0, {"role": "system", "content": raw["system"]})
    chosen, rejected = raw.get("chosen"), raw.get("rejected")
    sides: tuple[list[Raw], list[Raw] | None] = (turns, None)
    if chosen is not None and rejected is not None:
        sides = _continued(turns, chosen), _continued(turns, rejected)
    elif raw.get("rejected_messages") is not None:
        sides = turns, _turns(raw["rejected_messages"])
    elif raw.get("rejected_response") is not None:
        sides = turns, _continued(turns[: _reply_start(turns)], raw["rejected_response"])
    elif any(raw.get(f"rejected_{name}") for name in ("images", "videos", "audios", *SPEECH[:2])):
        sides = turns, list(turns)
    if not sides[0]:
        raise ValueError("it has no messages; give at least one")
    for turns, prefix in zip(sides, ("", "rejected_"), strict=True):
        if turns is not None:
            _spread_speech(turns, raw, prefix)
    return sides


def _turns(messages: Any) -> list[Raw]:
    """Turns with the keys role ("call" is a tool call in writing), content and those of ours."""
    if isinstance(messages, str) or not isinstance(messages, Sequence):
        raise ValueError(f"its messages are a {type(messages).__name__}; give a list of turns")
    turns: list[Raw] = []
    for number, message in enumerate(messages, 1):
        if not isinstance(message, Mapping):
            raise ValueError(f"message {number} is a {type(message).__name__}; give an object")
        if "role" not in message and {"human", "assistant"} & message.keys():
            pair = (("user", message.get("human")), ("assistant", message.get("assistant")))
            turns += [{"role": role, "content": text} for role, text in pair if text is not None]
            continue
        role = message.get("role")
        if role not in ROLES:
            known = ", ".join(ROLES)
            raise ValueError(f"message {number} has the role {role!r}; known are {known}")
        turns.append({**message, "role": ROLES[role]})
    return turns


def _continued(turns: list[Raw], reply: Any) -> list[Raw]:
    """The turns with a reply: a text, a turn, or a list of turns that may begin with the prompt."""
    if isinstance(reply, str):
        return [*turns, {"role": "assistant", "content": reply}]
    more = _turns([reply] if isinstance(reply, Mapping) else reply)
    whole = any(turn["role"] in ("system", "user") for turn in more)
    return more if whole else [*turns, *more]


def _reply_start(turns: Sequence[Raw]) -> int:
    """The number of the turn behind the last user turn."""
    users = [number for number, turn in enumerate(turns) if turn["role"] == "user"]
    return users[-1] + 1 if users else 0


def _spread_speech(turns: list[Raw], raw: Raw, prefix: str) -> None:
    """Hands speech that is given for the whole row to its assistant turns, the last one if one."""
    replies = [number for number, turn in enumerate(turns) if turn["role"] == "assistant"]
    for name in SPEECH:
        value = raw.get(prefix + name)
        if name == "speaker" and value is None:
            value = raw.get("speaker")
        if value is None:
            continue
        own = () if not prefix or name == "speaker" else SPEECH[:2]  # a rejected turn's replaces
        one = not isinstance(value, list) or (name == "codes" and not _is_nested(value))
        if one and name == "speaker":
            value = [value] * len(replies)
        elif one:
            value = [None] * (len(replies) - 1) + [value]
        if len(value) != len(replies):
            raise ValueError(
                f"{prefix}{name} is for {len(value)} turns, but there are {len(replies)} assistant "
                "turns; give one entry (or null) for each"
            )
        for number, entry in zip(replies, value, strict=True):
            kept = {key: v for key, v in turns[number].items() if key not in own or entry is None}
            turns[number] = {name: entry} | kept


def _is_nested(codes: list[Any]) -> bool:
    return any(entry is None or isinstance(entry, list | str) for entry in codes)


def _conversation(
    turns: list[Raw], media: Mapping[str, list[Any]], find: Find, options: Mapping[str, Any]
) -> Conversation:
    shelf = _Shelf(media, find, options)
    messages: list[dict[str, Any]] = []
    learned: list[bool] = []
    speech: dict[int, Speech] = {}
    for turn in turns:
        role = "assistant" if turn["role"] == "call" else turn["role"]
        weight = _is_learned(turn) if role == "assistant" else False
        if turn["role"] == "call":
            content, calls = "", _calls(turn.get("content"))
        else:
            content, written = _without_calls(turn.get("content"))
            content, calls = shelf.parts(content), [*(turn.get("tool_calls") or []), *written]
        follows = messages and role == "assistant" == messages[-1]["role"]
        if follows and weight == learned[-1]:  # parts of one turn, as agents' data have them
            calls = messages[-1].get("tool_calls", []) + calls
            content = _joined(messages[-1]["content"], content)
            del messages[-1], learned[-1]
        message = {"role": role, "content": content}
        if calls:
            message["tool_calls"] = calls
        messages.append(message)
        learned.append(weight)
        if said := _speech(turn, find):
            if role != "assistant":
                raise ValueError(f"a {role} turn has speech; only the assistant's may")
            speech[len(messages) - 1] = said
    shelf.check()
    return Conversation(tuple(messages), tuple(learned), speech)


class _Shelf:
    """The media lists of a row, taken one by one where tags or empty parts stand."""

    def __init__(self, media: Mapping[str, list[Any]], find: Find, options: Mapping[str, Any]):
        self.media, self.find, self.options = media, find, options
        self.taken = dict.fromkeys(media, 0)

    def parts(self, content: Any) -> str | list[dict[str, Any]]:
        """Chat content with every tag replaced by its medium."""
        if content is None:
            return ""
        if isinstance(content, str):
            return self._tagged(content) if TAG.search(content) else content
        if not isinstance(content, Sequence):
            raise ValueError(f"content is a {type(content).__name__}; give text or a list of parts")
        parts = []
        for part in content:
            parts += self._tagged(part) if isinstance(part, str) else [self._part(part)]
        return parts

    def check(self) -> None:
        for kind, sources in self.media.items():
            if self.taken[kind] != len(sources):
                raise ValueError(
                    f"there are {self.taken[kind]} <{kind}> tags for {len(sources)} {LISTS[kind]}; "
                    "every tag needs its file, and every file its tag"
                )

    def _tagged(self, text: str) -> list[dict[str, Any]]:
        parts: list[dict[str, Any]] = []
        # a video's sound is the recording whose tag follows at once
        for piece in re.split("(<video><audio>|<image>|<video>|<audio>)", text):
            if piece == "<video><audio>":
                parts.append(self._sounding())
            elif TAG.fullmatch(piece):
                parts.append(self._medium(piece[1:-1], self._next(piece[1:-1])))
            elif piece:
                parts.append({"type": "text", "text": piece})
        return parts

    def _sounding(self) -> dict[str, Any]:
        video, sound = self._next("video"), self._next("audio")
        part = self._medium("video", video)
        if video == sound and isinstance(video, str):
            return part | {"audio_in_video": True}
        return part | {"sound": self._found(sound, "audio")}

    def _part(self, part: Any) -> dict[str, Any]:
        """A typed part: official, OpenAI's, or v1's with its "value"."""
        if not isinstance(part, Mapping):
            raise ValueError(f"a part of content is a {type(part).__name__}; give an object")
        name = part.get("type") or next((key for key in part if key in PART_KINDS), None)
        kind = PART_KINDS.get(str(name))
        if kind is None:
            known = "text, image, audio, video and their _url"
            raise ValueError(f"content has a part of type {name!r}; known are {known}")
        rest = {key: value for key, value in part.items() if key != "type" and value is not None}
        key = next((key for key in rest if key == "value" or PART_KINDS.get(key) == kind), None)
        source = rest.pop(key) if key else None
        if kind == "text":
            return {"type": "text", "text": source if source is not None else ""}
        if isinstance(source, Mapping) and "url" in source:
            rest |= {key: value for key, value in source.items() if key != "url"}
            source = source["url"]
        medium = self._medium(kind, self._next(kind) if source is None else source)
        if "sound" in rest:
            rest["sound"] = self._found(rest["sound"], "audio")
        return medium | rest

    def _medium(self, kind: str, source: Any) -> dict[str, Any]:
        known = {key: value for key, value in self.options.items() if key in OPTIONS[kind]}
        return {"type": kind, kind: self._found(source, kind), **known}

    def _next(self, kind: str) -> Any:
        number = self.taken[kind]
        self.taken[kind] += 1
        sources = self.media[kind]
        return sources[number] if number < len(sources) else None  # check() counts them all

    def _found(self, source: Any, kind: str) -> Any:
        return None if source is None else self.find(source, kind)


def _is_learned(turn: Raw) -> bool:
    for name in WEIGHTS:
        weight = turn.get(name)
        if weight is None:
            continue
        if weight not in (0, 1):
            raise ValueError(f"a turn has the {name} {weight!r}; only 0 and 1 are supported")
        return bool(weight)
    return True


def _only_reply(conversation: Conversation) -> Conversation:
    start = _reply_start(conversation.messages)
    learned = (number >= start and on for number, on in enumerate(conversation.learned))
    return Conversation(conversation.messages, tuple(learned), conversation.speech)


def _speech(turn: Raw, find: Find) -> Speech | None:
    wave, codes, speaker = (turn.get(name) for name in SPEECH)
    if wave is None and codes is None:
        return None
    if wave is not None and codes is not None:
        raise ValueError("a turn has both speech and codes; give one of them")
    if not isinstance(speaker, str):
        raise ValueError("a turn has speech but no speaker; name the voice")
    if wave is not None:
        return Speech(speaker, wave=find(wave, "audio"))
    return Speech(speaker, codes=find(codes, "codes") if isinstance(codes, str) else codes)


def _without_calls(content: Any) -> tuple[Any, list[Any]]:
    """Content without v1's tool_call parts, and the calls in them."""
    if isinstance(content, str) or not isinstance(content, Sequence):
        return content, []
    is_call = [isinstance(part, Mapping) and part.get("type") == "tool_call" for part in content]
    written = [part for part, call in zip(content, is_call, strict=True) if call]
    rest = [part for part, call in zip(content, is_call, strict=True) if not call]
    return rest, [call for part in written for call in _calls(part.get("value"))]


def _calls(content: Any) -> list[Any]:
    """The calls that a turn holds as JSON: one object or a list of them."""
    calls = _json(content, "a tool call") if isinstance(content, str) else content
    return list(calls) if isinstance(calls, Sequence) else [calls]


def _tools(tools: Any) -> tuple[Mapping[str, Any], ...]:
    if isinstance(tools, str):
        tools = _json(tools, "the list of tools") if tools.strip() else None
    return tuple([tools] if isinstance(tools, Mapping) else tools or ())


def _json(text: str, what: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        raise ValueError(f"{what} is not JSON: {text[:80]!r}; correct it") from None


def _joined(first: str | list[Any], second: str | list[Any]) -> str | list[Any]:
    if isinstance(first, str) and isinstance(second, str):
        return first + second
    lists = ([{"type": "text", "text": c}] if isinstance(c, str) else c for c in (first, second))
    return [part for parts in lists for part in parts if part.get("text") != ""]


def _as_list(value: Any) -> list[Any]:
    """A media column: a list, one medium, or nothing."""
    if value is None:
        return []
    return list(value) if isinstance(value, list | tuple) else [value]
