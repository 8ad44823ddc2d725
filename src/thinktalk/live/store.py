"""A conversation in a folder: session.json and cache.safetensors out, and back in any process; or
in a twin of this process, which shares its blocks.

The caches are saved as they are, so a resumed session goes on bit-equal, even in the middle of a
turn. A reply in progress is not saved: wait for it or cancel it.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from thinktalk.live.conversation import Conversation
from thinktalk.live.history import Item, Mark, Piece, flat
from thinktalk.live.listen import Listener
from thinktalk.model.tmrope import Track
from thinktalk.options import Sampling, SemanticVad, ServerVad, Settings
from thinktalk.weights import LoadedModel

FORMAT = 1
JSON_FILE, TENSOR_FILE = "session.json", "cache.safetensors"
ARRAY = "array"  # in the JSON: the name of a tensor in the other file


@dataclass(frozen=True)
class Saved:
    settings: Settings
    facts: dict[str, Any]
    tensors: dict[str, Tensor]


def write(conversation: Conversation, folder: Path, *, model: LoadedModel) -> None:
    """Raises ValueError while a reply is in progress or pushed media wait for the turn's end."""
    conversation.forget_early()
    if conversation.replies.current is not None:
        raise ValueError("a reply is in progress; wait for its end, or cancel it, and save then")
    if conversation.draft.later:
        raise ValueError("something was pushed while sound was open; commit the turn and save then")
    memory = conversation.memory
    tensors: dict[str, Tensor] = {}
    pieces = list(flat(memory.items))
    pieces.append(conversation.draft.composer.piece)
    facts = {
        "format": FORMAT,
        "model": _fingerprint(model),
        "settings": _settings_json(conversation.settings),
        "pieces": [_piece_json(p, f"piece.{n}", tensors) for n, p in enumerate(pieces)],
        "items": [_item_json(item) for item in memory.items],
        "num_past": len(memory.past),
        "tracks": [(mark.start, asdict(mark.track), mark.top) for mark in memory.past],
        "end": (memory.boundary, memory.done, asdict(memory.track), memory.top),
        "draft": _pack(conversation.draft.state(), "draft", tensors),
        "sounding": conversation.sounding,
        "listener": _pack(conversation.listener.state(), "listener", tensors),
        "replies": conversation.replies.count,
    }
    rows = [("thinker", memory.thinker, memory.thinker_row)]
    if memory.talker is not None:
        rows.append(("talker", memory.talker, memory.talker_row))
    for name, pool, row in rows:
        tensors[f"{name}.keys"], tensors[f"{name}.values"] = pool.read(row)
    for number, (tracks, positions) in enumerate(memory.to_tell):
        tensors[f"to_tell.{number}"], tensors[f"to_tell_at.{number}"] = tracks, positions
    if memory.hidden is not None:
        tensors["hidden"] = memory.hidden
    folder.mkdir(parents=True, exist_ok=True)
    save_file({k: v.contiguous().cpu() for k, v in tensors.items()}, folder / TENSOR_FILE)
    (folder / JSON_FILE).write_text(json.dumps(facts), encoding="utf-8")


def read(folder: Path, *, model: LoadedModel) -> Saved:
    """Raises ValueError for what is no saved session, or one of another model."""
    try:
        facts = json.loads((folder / JSON_FILE).read_text(encoding="utf-8"))
        tensors = load_file(folder / TENSOR_FILE)
    except (OSError, ValueError, SafetensorError) as error:
        raise ValueError(f"{folder} holds no saved session ({error})") from error
    if facts.get("format") != FORMAT:
        raise ValueError(f"{folder} was saved in format {facts.get('format')}, not {FORMAT}")
    if facts["model"] != _fingerprint(model):
        raise ValueError(f"{folder} was saved with another model; load that one to resume it")
    return Saved(_settings_of(facts["settings"]), facts, tensors)


def restore(conversation: Conversation, saved: Saved) -> None:
    """Makes a new conversation the saved one; OutOfBlocksError if the caches have no room for it:
    then it is still new, and this may be tried again."""
    facts, tensors, memory = saved.facts, saved.tensors, conversation.memory
    for name, pool in (("thinker", memory.thinker), ("talker", memory.talker)):
        if pool is not None:
            row = getattr(memory, f"{name}_row")
            pool.write(row, tensors[f"{name}.keys"], tensors[f"{name}.values"])
    device = memory.thinker.device
    pieces = [_piece_of(p, f"piece.{n}", tensors, device) for n, p in enumerate(facts["pieces"])]
    rest = iter(pieces)
    for entry in facts["items"]:
        count = entry.pop("num_pieces")
        entry["text_ids"] = tuple(entry["text_ids"])
        memory.items.append(Item(**entry, pieces=[next(rest) for _ in range(count)]))
    memory.past = [
        Mark(piece, start, _track(track), top)
        for piece, (start, track, top) in zip(pieces, facts["tracks"], strict=False)
    ]
    memory.boundary, memory.done, track, memory.top = facts["end"]
    memory.track = _track(track)
    memory.queue.extend(list(flat(memory.items))[facts["num_past"] :])
    number = 0
    while f"to_tell.{number}" in tensors:
        tracks = tensors[f"to_tell.{number}"].to(device)
        memory.to_tell.append((tracks, tensors[f"to_tell_at.{number}"]))
        number += 1
    if "hidden" in tensors:
        memory.hidden = tensors["hidden"].to(device)
    conversation.listener = Listener.from_state(_unpack(facts["listener"], tensors))
    conversation.replies.count = facts["replies"]
    conversation.draft.restore(_unpack(facts["draft"], tensors), next(rest))
    conversation.sounding = facts["sounding"]


def fork(conversation: Conversation, twin: Conversation) -> None:
    """Gives a new conversation the past of one; a reply in progress stays behind."""
    conversation.forget_early()
    reply = conversation.replies.current
    twin.memory.copy(conversation.memory, without=None if reply is None else reply.item)
    twin.listener = Listener.from_state(conversation.listener.state())
    twin.replies.count, twin.sounding = conversation.replies.count, conversation.sounding
    twin.draft.copy(conversation.draft)


# ---- parts


def _fingerprint(model: LoadedModel) -> dict[str, Any]:
    weight = model.omni.thinker.model.embed_tokens.weight
    sample = weight.flatten()[:: max(1, weight.numel() // 64)][:64].float().cpu()
    return {
        "config": model.config.to_dict(),
        "weights": sample.tolist(),
        "dtype": str(weight.dtype),
    }


def _settings_json(settings: Settings) -> dict[str, Any]:
    facts = asdict(settings)
    if settings.turn_detection is not None:
        facts["turn_detection"]["type"] = type(settings.turn_detection).__name__
    return facts


def _settings_of(facts: Mapping[str, Any]) -> Settings:
    facts = dict(facts)
    detection = facts.pop("turn_detection")
    if detection is not None:
        kind = {"ServerVad": ServerVad, "SemanticVad": SemanticVad}[detection.pop("type")]
        detection = kind(**detection)
    facts["text"], facts["speech"] = Sampling(**facts["text"]), Sampling(**facts["speech"])
    facts["tools"] = tuple(facts["tools"])
    return Settings(**facts, turn_detection=detection)


def _item_json(item: Item) -> dict[str, Any]:
    facts = asdict(replace(item, pieces=[]))
    del facts["pieces"]
    return facts | {"num_pieces": len(item.pieces)}


def _piece_json(piece: Piece, name: str, tensors: dict[str, Tensor]) -> dict[str, Any]:
    for number, values in enumerate(piece.features or ()):
        if values is not None:
            tensors[f"{name}.feature.{number}"] = values
    for number, mel in enumerate(piece.mels):
        tensors[f"{name}.mel.{number}"] = mel
    for kind, media in (("image", piece.images), ("video", piece.videos)):
        for number, (patches, grid) in enumerate(media):
            tensors[f"{name}.{kind}.{number}"] = patches
            tensors[f"{name}.{kind}_grid.{number}"] = grid
    return {
        "ids": piece.ids,
        "clips": piece.clips,
        "continues": piece.continues,
        "image_grids": piece.image_grids,
        "is_plain": piece.is_plain,
        "has_features": piece.features is not None,
    }


def _piece_of(
    facts: Mapping[str, Any], name: str, tensors: Mapping[str, Tensor], device: Any
) -> Piece:
    def listed(kind: str) -> list[Tensor]:
        names = (f"{name}.{kind}.{number}" for number in range(len(tensors)))
        return [tensors[n] for n in names if n in tensors]

    def clip(value: Any) -> tuple[tuple[int, int, int], float]:
        return (value[0][0], value[0][1], value[0][2]), value[1]

    piece = Piece(
        facts["ids"],
        mels=listed("mel"),
        images=list(zip(listed("image"), listed("image_grid"), strict=True)),
        videos=list(zip(listed("video"), listed("video_grid"), strict=True)),
        clips=[clip(value) for value in facts["clips"]],
        continues=facts["continues"] and clip(facts["continues"]),
        image_grids=[(grid[0], grid[1], grid[2]) for grid in facts["image_grids"]],
        is_plain=facts["is_plain"],
    )
    if facts["has_features"]:
        found = [tensors.get(f"{name}.feature.{number}") for number in range(3)]
        moved = [None if values is None else values.to(device) for values in found]
        piece.features = moved[0], moved[1], moved[2]
    return piece


def _track(facts: Mapping[str, Any]) -> Track:
    frame = facts["frame"]
    return Track(**{**facts, "frame": frame and (frame[0], frame[1])})


def _pack(value: Any, name: str, tensors: dict[str, Tensor]) -> Any:
    """JSON of nested dictionaries whose arrays go into the other file."""
    if isinstance(value, np.ndarray):
        tensors[name] = torch.from_numpy(value)
        return {ARRAY: name}
    if isinstance(value, Mapping):
        return {key: _pack(inner, f"{name}.{key}", tensors) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [_pack(inner, f"{name}.{n}", tensors) for n, inner in enumerate(value)]
    return value.item() if isinstance(value, np.generic) else value


def _unpack(value: Any, tensors: Mapping[str, Tensor]) -> Any:
    if isinstance(value, dict) and set(value) == {ARRAY}:
        return tensors[value[ARRAY]].numpy()
    if isinstance(value, dict):
        return {key: _unpack(inner, tensors) for key, inner in value.items()}
    return [_unpack(inner, tensors) for inner in value] if isinstance(value, list) else value
