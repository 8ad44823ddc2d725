"""What the columns and turns of a row are called: everybody's names in, one set of names out.

LLaMA-Factory names columns in dataset_info.json; without it the usual names of LLaMA-Factory and
ms-swift are found out. The names that come out are those of `standard`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

Raw = Mapping[str, Any]

INFO_FILE = "dataset_info.json"
MEDIA = ("images", "videos", "audios")
OURS = ("speech", "codes", "speaker", "rejected_speech", "rejected_codes", "rejected_speaker")
# our name -> what else the column may be called, the first that is there counts
ALIASES = {
    "messages": ("messages", "conversations", "conversation", "chosen_messages"),
    "system": ("system", "system_prompt"),
    "images": ("images", "image"),
    "videos": ("videos", "video"),
    "audios": ("audios", "audio"),
    "label": ("kto_tag", "label"),
}
AS_THEY_ARE = (
    *("tools", "chosen", "rejected", "rejected_messages", "rejected_response"),
    *(f"rejected_{name}" for name in MEDIA),
    *("chat_template_kwargs", "objects", *OURS),
)
QUESTIONS = ("query", "prompt", "question", "problem", "input")
ANSWERS = ("output", "response", "answer", "completion", "target")
LISTS_OF_TURNS = ("messages", "chosen", "rejected", "rejected_messages", "rejected_response")

# dataset_info.json: the columns that an entry without "columns" has, and the tags of turns
DEFAULT_COLUMNS = {
    "prompt": "instruction", "query": "input", "response": "output", "messages": "conversations",
}  # fmt: skip
DEFAULT_TAGS = {
    "role_tag": "from", "content_tag": "value", "user_tag": "human", "assistant_tag": "gpt",
    "observation_tag": "observation", "function_tag": "function_call", "system_tag": "system",
}  # fmt: skip
ROLE_OF_TAG = {
    "user_tag": "user", "assistant_tag": "assistant", "observation_tag": "tool",
    "function_tag": "tool_call", "system_tag": "system",
}  # fmt: skip
COLUMNS = frozenset(
    "prompt query response history messages system tools chosen rejected kto_tag".split()
).union(MEDIA)


@dataclass(frozen=True)
class Schema:
    """An entry of dataset_info.json: file_name, how its columns are called, and its turns."""

    name: str
    file_name: str
    alpaca: bool
    ranking: bool
    columns: Mapping[str, str] = field(default_factory=lambda: DEFAULT_COLUMNS)
    tags: Mapping[str, str] = field(default_factory=lambda: DEFAULT_TAGS)

    @classmethod
    def from_entry(cls, name: str, entry: Raw) -> Schema:
        """Raises ValueError for entries of data that are not on this disk, and for unknown ones."""
        if not isinstance(entry.get("file_name"), str):
            raise ValueError(
                f"{INFO_FILE}: {name} has no file_name, so it is not on this disk; download it, "
                "or give it as an object of the datasets library"
            )
        formatting = entry.get("formatting", "alpaca")
        if formatting not in ("alpaca", "sharegpt", "openai"):
            raise ValueError(f"{INFO_FILE}: {name} has the unknown formatting {formatting!r}")
        columns = entry.get("columns", DEFAULT_COLUMNS)
        if unknown := set(columns) - COLUMNS:
            raise ValueError(f"{INFO_FILE}: {name} has the unknown column {sorted(unknown)[0]!r}")
        tags = entry.get("tags", {})
        if unknown := set(tags) - set(DEFAULT_TAGS):
            raise ValueError(f"{INFO_FILE}: {name} has the unknown tag {sorted(unknown)[0]!r}")
        alpaca, ranking = formatting == "alpaca", bool(entry.get("ranking"))
        return cls(name, entry["file_name"], alpaca, ranking, columns, DEFAULT_TAGS | tags)


def read_info(folder: Path) -> dict[str, Raw]:
    """The entries of a folder's dataset_info.json by name."""
    path = folder / INFO_FILE
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}); correct it") from None
    if not isinstance(entries, dict):
        raise ValueError(f"{path} is not an object of entries; correct it")
    return entries


def standard(raw: Raw, schema: Schema | None) -> dict[str, Any]:
    """The row with standard names; a column that is missing or null is left out.

    messages, system, tools, images, videos, audios; chosen, rejected, rejected_messages,
    rejected_response, rejected_images, ...; label (bool); chat_template_kwargs; speech, codes,
    speaker and rejected_ of them; extra, a dict of all other columns.
    """
    row, used = _found_out(raw) if schema is None else _named(raw, schema)
    if row.get("objects"):
        raise ValueError("grounding objects are not supported; write the boxes into the texts")
    tags = None if schema is None else schema.tags
    for name in LISTS_OF_TURNS:
        if name in row:
            row[name] = _with_turns_named(row[name], tags)
    extra = {name: value for name, value in raw.items() if name not in used}
    return {name: value for name, value in row.items() if value is not None} | {"extra": extra}


def _found_out(raw: Raw) -> tuple[dict[str, Any], set[str]]:
    """Columns by their usual names, and which were used."""
    row: dict[str, Any] = {name: raw[name] for name in AS_THEY_ARE if name in raw}
    used = set(row)
    for name, aliases in ALIASES.items():
        found = next((alias for alias in aliases if raw.get(alias) is not None), None)
        if found is None or (name == "label" and not isinstance(raw[found], bool)):
            continue  # a label that is no bool is one of another kind of training
        row[name] = raw[found]
        used.add(found)
    if "messages" not in row:
        asked = ["instruction", "input"] if raw.get("instruction") else []
        asked = asked or [name for name in QUESTIONS if raw.get(name)][:1]
        answer = next((name for name in ANSWERS if raw.get(name) is not None), None)
        texts = [raw[name] for name in asked if raw.get(name)]
        answers = [] if answer is None or answer in asked else [raw[answer]]
        row["messages"] = _spelled_out(texts, answers, raw.get("history"))
        used |= {*asked, "history"} | ({answer} if answers and answer else set())
        if not row["messages"] and isinstance(raw.get("text"), str):
            row["messages"] = [{"role": "assistant", "content": raw["text"]}]
            used.add("text")
    return row, used


def _named(raw: Raw, schema: Schema) -> tuple[dict[str, Any], set[str]]:
    """Columns as dataset_info.json names them, and ours; what it does not name does not count."""
    named = {ours: theirs for ours, theirs in schema.columns.items() if theirs in raw}
    row: dict[str, Any] = {name: raw[name] for name in OURS if name in raw}
    row |= {ours: raw[theirs] for ours, theirs in named.items()}
    used = {*row, *named.values()}
    if isinstance(row.get("kto_tag"), bool):
        row["label"] = row["kto_tag"]
    if schema.ranking and not {"chosen", "rejected"} <= row.keys():
        raise ValueError(f"{schema.name} is a ranking dataset, but chosen or rejected is missing")
    if not schema.alpaca:
        if "messages" not in row:
            raise ValueError(f"there is no column {schema.columns.get('messages', 'messages')!r}")
        return row, used
    texts = [row[name] for name in ("prompt", "query") if row.get(name)]
    answers = [row["response"]] if isinstance(row.get("response"), str) else []
    row["messages"] = _spelled_out(texts, answers, row.get("history"))
    if schema.columns.get("prompt") == "text" and not answers:  # a document to learn as it is
        row["messages"] = [{"role": "assistant", "content": texts[0] if texts else ""}]
    return row, used


def _spelled_out(texts: list[str], answers: list[Any], history: Any) -> list[dict[str, Any]]:
    """The turns of an alpaca row; of several answers the first counts."""
    if isinstance(history, str):
        history = json.loads(history) if history.strip() else []
    turns = [pair for pair in history or []] + ([("\n".join(texts),)] if texts else [])
    out = []
    for turn in turns:
        pair = zip(("user", "assistant"), turn, strict=False)
        out += [{"role": role, "content": text} for role, text in pair]
    first = [answer[0] if isinstance(answer, list) and answer else answer for answer in answers]
    return out + [{"role": "assistant", "content": text} for text in first]


def _with_turns_named(turns: Any, tags: Mapping[str, str] | None) -> Any:
    """A turn, or a list of turns, with the keys role and content; texts stay as they are."""
    if isinstance(turns, Mapping):
        columns = list(turns.values())
        if columns and all(isinstance(column, list) for column in columns) and "role" in turns:
            count = len(columns[0])  # the datasets library makes lists of rows rows of lists
            turns = [{name: turns[name][n] for name in turns} for n in range(count)]
        else:
            return _turn_named(turns, tags)
    if isinstance(turns, str) or not isinstance(turns, Sequence):
        return turns
    return [_turn_named(turn, tags) if isinstance(turn, Mapping) else turn for turn in turns]


def _turn_named(turn: Raw, tags: Mapping[str, str] | None) -> Raw:
    tags = tags or ({} if "role" in turn else DEFAULT_TAGS)
    role_key, content_key = tags.get("role_tag", "role"), tags.get("content_tag", "content")
    if role_key not in turn:
        return turn
    roles = {tags[tag]: role for tag, role in ROLE_OF_TAG.items() if tag in tags}
    rest = {key: value for key, value in turn.items() if key not in (role_key, content_key)}
    role = turn[role_key]
    return {"role": roles.get(role, role), "content": turn.get(content_key), **rest}
