"""The client's side of the Realtime protocol: every event a client may send, carried out.

A handler raises ApiError for what it does not do; the receive loop tells it and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from thinktalk.live.api import EngineFullError, Session
from thinktalk.options import Settings
from thinktalk.serve.limits import Allowance
from thinktalk.serve.realtime_config import PCM_HZ, Config
from thinktalk.serve.realtime_events import Translator
from thinktalk.serve.realtime_items import pcm, read_item
from thinktalk.serve.realtime_state import State
from thinktalk.serve.schema import ApiError, new_id, refused
from thinktalk.serve.sessions import Sessions, Talk
from thinktalk.serve.sources import Sources, decode_base64

MAX_APPEND_CHARS = 15 << 20
MIN_COMMIT_MS = 100
MAX_METADATA = 16
MAX_WAIT_S = 5.0  # at a time, of a client whose sound is too far ahead; then it is asked again
RESPONSE_FIELDS = frozenset(
    "audio conversation input instructions max_output_tokens metadata output_modalities "
    "parallel_tool_calls prompt reasoning tool_choice tools".split()
)


@dataclass
class Desk:
    """What handlers work with: the engine's session, the state on the wire, the server's rules.

    untouched: nothing was pushed or asked yet, so that the session may still be exchanged for one
    of another kind. heard_ms: sound since the last commit; now_ms: all sound so far.
    """

    talk: Talk
    state: State
    sessions: Sessions
    sources: Sources
    allowance: Allowance
    base: Settings
    reopen: Callable[[Settings], Awaitable[Talk]]
    untouched: bool = True
    heard_ms: float = 0.0
    now_ms: float = 0.0
    odd: bytes = b""

    @property
    def session(self) -> Session:
        return self.talk.session

    @property
    def voices(self) -> tuple[str, ...]:
        return tuple(self.sessions.engine.voices)

    def hear(self, samples: NDArray[np.int16], *, rate: int = PCM_HZ) -> float:
        """Sound [n] of the user; returns how many seconds it is."""
        self.untouched = False
        self.session.push_audio(samples, sample_rate=rate)
        self.heard_ms += 1000 * len(samples) / rate
        self.now_ms += 1000 * len(samples) / rate
        return len(samples) / rate


async def carry_out(desk: Desk, event: Any) -> None:
    """Does what one client event asks for. Raises ApiError."""
    if not isinstance(event, dict):
        raise ApiError(400, "an event is a JSON object", code="invalid_value")
    kind = event.get("type")
    handler = HANDLERS.get(kind) if isinstance(kind, str) else None
    if handler is None:
        known = ", ".join(sorted(HANDLERS))
        message = f"unknown event type {kind!r}; known are {known}"
        raise ApiError(400, message, code="invalid_value", param="type")
    if not isinstance(event.get("event_id"), str):
        event = {**event, "event_id": None}
    await handler(desk, event)


# ---- the session


async def session_update(desk: Desk, event: Mapping[str, Any]) -> None:
    state = desk.state
    config = state.config.changed(event.get("session"), voices=desk.voices)
    await apply(desk, config)
    state.emit("session.updated", session=wire_session(desk))


async def apply(desk: Desk, config: Config) -> None:
    """Puts a configuration in force. Raises ApiError for what cannot change any more."""
    before = desk.state.config
    if config.voice != before.voice and desk.state.spoke:
        message = "the voice cannot change once it was heard; open another session"
        raise ApiError(400, message, code="cannot_update_voice", param="session.audio.output.voice")
    if config.kind != before.kind and not desk.untouched:
        message = "session.type cannot change once something was said"
        raise ApiError(400, message, code="invalid_value", param="session.type")
    settings = config.settings(desk.base)
    current = before.settings(desk.base)
    if settings.speak != desk.session.settings.speak:
        if desk.untouched:
            desk.talk = await desk.reopen(settings)
        elif settings.speak:
            message = "a conversation that began as text stays so; open another session"
            raise ApiError(400, message, code="invalid_value", param="session.output_modalities")
    names = {field.name for field in fields(Settings)} - {"speak"}
    changes = {
        name: getattr(settings, name)
        for name in names
        if getattr(settings, name) != getattr(current, name)
    }
    if changes:
        desk.session.update(**changes)
    desk.state.config = config


def wire_session(desk: Desk) -> dict[str, Any]:
    state = desk.state
    return state.config.wire(session=state.id, model=state.model, **state.extras)


# ---- the input buffer


async def audio_append(desk: Desk, event: Mapping[str, Any]) -> None:
    audio = event.get("audio")
    if isinstance(audio, str) and len(audio) > MAX_APPEND_CHARS:
        limit = MAX_APPEND_CHARS >> 20
        raise ApiError(413, f"audio is larger than {limit} MiB; send it in pieces", param="audio")
    data = desk.odd + decode_base64(audio, where="audio")
    samples, rate = pcm(data, desk.state.config.input_format)
    is_pcm = desk.state.config.input_format == "audio/pcm"
    desk.odd = data[-1:] if is_pcm and len(data) % 2 else b""
    if not len(samples):
        return
    if wait_s := desk.allowance.take(desk.hear(samples, rate=rate)):
        await asyncio.sleep(min(wait_s, MAX_WAIT_S))


async def audio_commit(desk: Desk, event: Mapping[str, Any]) -> None:
    if desk.heard_ms < MIN_COMMIT_MS:
        message = (
            "Error committing input audio buffer: buffer too small. Expected at least "
            f"{MIN_COMMIT_MS}ms of audio, but buffer only has {desk.heard_ms:.2f}ms of audio."
        )
        raise ApiError(400, message, code="input_audio_buffer_commit_empty")
    desk.state.committed_s = desk.heard_ms / 1000
    desk.heard_ms, desk.odd = 0.0, b""
    desk.state.asked["commit"] = event.get("event_id")
    desk.session.commit(respond=False)


async def audio_clear(desk: Desk, _: Mapping[str, Any]) -> None:
    desk.heard_ms, desk.odd = 0.0, b""
    desk.session.clear()


async def image_append(desk: Desk, event: Mapping[str, Any]) -> None:
    """Ours: a frame of a camera or screen, at a time of the session's sound (default: now)."""
    time_ms = event.get("time_ms", desk.now_ms)
    if not isinstance(time_ms, int | float) or isinstance(time_ms, bool) or not time_ms >= 0:
        message = "time_ms is a time of the session's sound in milliseconds"
        raise ApiError(400, message, code="invalid_value", param="time_ms")
    image = await desk.sources.in_worker(desk.sources.image, event.get("image"), where="image")
    desk.untouched = False
    desk.session.push_image(image, time_s=time_ms / 1000)


# ---- the conversation


async def item_create(desk: Desk, event: Mapping[str, Any]) -> None:
    state = desk.state
    message, item = await desk.sources.in_worker(
        read_item,
        event.get("item"),
        new_id=lambda: new_id("item_"),
        sources=desk.sources,
        sound=state.config.input_format,
    )
    if item["id"] in state.items or item["id"] in state.pending:
        text = f"Error adding item: an item with the id {item['id']} already exists."
        raise ApiError(400, text, code="item_create_duplicate_item_id", param="item.id")
    after = _place(desk, event.get("previous_item_id"))
    desk.untouched = False
    state.pending[item["id"]] = item
    state.asked["create"] = event.get("event_id")
    desk.session.add_message(message, item=item["id"], after=after)


async def item_retrieve(desk: Desk, event: Mapping[str, Any]) -> None:
    item = _known(desk, event, "item_retrieve_invalid_item_id")
    desk.state.emit("conversation.item.retrieved", item=desk.state.items.by_id[item])


async def item_delete(desk: Desk, event: Mapping[str, Any]) -> None:
    item = _known(desk, event, "item_delete_invalid_item_id")
    desk.session.delete(desk.state.aliases.get(item, item))


async def item_truncate(desk: Desk, event: Mapping[str, Any]) -> None:
    state = desk.state
    item = _known(desk, event, "item_truncate_invalid_item_id")
    audio_ms = event.get("audio_end_ms")
    if not isinstance(audio_ms, int) or isinstance(audio_ms, bool) or audio_ms < 0:
        message = "audio_end_ms is a whole number of milliseconds"
        raise ApiError(400, message, code="invalid_value", param="audio_end_ms")
    if event.get("content_index", 0) != 0:
        raise ApiError(400, "content_index is 0 here", code="invalid_value", param="content_index")
    if state.items.by_id[item].get("role") != "assistant":
        message = "Only model output audio messages can be truncated"
        raise ApiError(400, message, code="invalid_value", param="item_id")
    state.asked["truncate"] = event.get("event_id")
    state.truncates.append((item, audio_ms))
    desk.session.truncate(item, audio_ms)


# ---- responses


async def response_create(desk: Desk, event: Mapping[str, Any]) -> None:
    state = desk.state
    asked = event.get("response") or {}
    if not isinstance(asked, Mapping):
        raise ApiError(400, "response must be an object", code="invalid_value", param="response")
    if unknown := set(asked) - RESPONSE_FIELDS:
        name = f"response.{sorted(unknown)[0]}"
        raise ApiError(400, f"unknown field {name!r}; remove it", code="invalid_value", param=name)
    if state.config.kind == "transcription":
        raise ApiError(400, "a transcription session makes no responses", code="invalid_value")
    metadata = _metadata(asked.get("metadata"))
    config = _response_config(desk, asked)
    desk.untouched = False
    if asked.get("conversation") == "none":
        await _out_of_band(desk, asked, config, metadata)
        return
    if asked.get("input"):
        raise refused("response.input", 'it goes with conversation: "none"')
    state.asked["respond"] = event.get("event_id")
    state.stopwatch = state.metrics.stopwatch("realtime")
    changes = _engine_changes(desk, config)
    if changes:
        desk.session.update(**changes)
    tokens = config.max_output_tokens
    response = desk.session.respond(max_text_tokens=None if tokens == "inf" else tokens)
    state.metadata[response] = metadata
    state.wanted.append(response)
    if config != state.config:
        state.configs[response] = config
    if changes:  # what is in force for the session comes back once the reply is over
        before = {name: getattr(state.config.settings(desk.base), name) for name in changes}
        state.restore[response] = lambda: desk.session.update(**before)


async def response_cancel(desk: Desk, event: Mapping[str, Any]) -> None:
    desk.state.asked["cancel"] = event.get("event_id")
    side = desk.state.sides.get(str(event.get("response_id")))
    (side or desk.session).cancel()


async def output_clear(desk: Desk, event: Mapping[str, Any]) -> None:
    """For WebRTC and telephones, where the server holds the sound that is not played yet."""
    if desk.state.player is None:
        message = "output_audio_buffer.clear is for WebRTC; over a WebSocket you hold the sound"
        raise ApiError(400, message, code="invalid_value", param="type")
    desk.state.player.clear()


async def _out_of_band(
    desk: Desk, asked: Mapping[str, Any], config: Config, metadata: dict[str, str] | None
) -> None:
    """A response that belongs to no conversation: in a session of its own, or a fork of this."""
    state = desk.state
    translate = Translator(state, in_conversation=False, config=config)
    if asked.get("input") is None:
        changes = _engine_changes(desk, config)
        try:
            talk = desk.sessions.follow(desk.session.fork(), deliver=translate)
        except EngineFullError:
            raise desk.sessions.full() from None
        if changes:
            talk.session.update(**changes)
    else:
        messages = await _input_messages(desk, asked["input"])
        settings = config.settings(desk.base)
        talk = await desk.sessions.open(settings, wait=False, deliver=translate)
        for message in messages:
            talk.session.add_message(message)
    tokens = config.max_output_tokens
    response = talk.session.respond(max_text_tokens=None if tokens == "inf" else tokens)
    state.metadata[response] = metadata
    state.sides[response] = talk.session


async def _input_messages(desk: Desk, items: Any) -> list[dict[str, Any]]:
    if not isinstance(items, list):
        raise ApiError(400, "input must be a list", code="invalid_value", param="response.input")
    messages = []
    for number, item in enumerate(items):
        where = f"response.input.{number}"
        if isinstance(item, Mapping) and item.get("type") == "item_reference":
            known = desk.state.items.by_id.get(str(item.get("id")))
            if known is None or not (text := spoken_text(known)):
                message = f"{where} refers to no item with known words; turn transcription on"
                raise ApiError(400, message, code="invalid_value", param=where)
            messages.append({"role": known["role"], "content": text})
            continue
        message, _ = await desk.sources.in_worker(
            read_item,
            item,
            new_id=lambda: new_id("item_"),
            sources=desk.sources,
            sound=desk.state.config.input_format,
            where=where,
        )
        messages.append(message)
    return messages


def spoken_text(item: Mapping[str, Any]) -> str:
    """The words of a message on the wire, as far as they are known."""
    parts = item.get("content") or []
    return " ".join(part.get("text") or part.get("transcript") or "" for part in parts).strip()


def _response_config(desk: Desk, asked: Mapping[str, Any]) -> Config:
    """The session's configuration with what a single response overrides."""
    config = desk.state.config
    names = ("instructions", "tools", "tool_choice", "max_output_tokens", "output_modalities")
    names += ("audio", "prompt", "reasoning", "parallel_tool_calls")
    patch = {name: asked[name] for name in names if name in asked}
    changed = config.changed({"type": config.kind, **patch}, voices=desk.voices, prefix="response")
    if changed.voice != config.voice:
        raise refused("response.audio.output.voice", "set the voice of the session")
    if changed.modality == "audio" and not desk.session.settings.speak:
        raise refused("response.output_modalities", "a conversation that began as text stays so")
    return changed


def _engine_changes(desk: Desk, config: Config) -> dict[str, Any]:
    """Fields of the engine's settings in which a response differs from its session."""
    now, then = desk.state.config.settings(desk.base), config.settings(desk.base)
    names = ("system", "tools")
    return {n: getattr(then, n) for n in names if getattr(now, n) != getattr(then, n)}


def _metadata(metadata: Any) -> dict[str, str] | None:
    if metadata is None:
        return None
    fits = isinstance(metadata, dict) and len(metadata) <= MAX_METADATA
    if not fits or not all(isinstance(value, str) for value in metadata.values()):
        message = f"metadata holds at most {MAX_METADATA} strings"
        raise ApiError(400, message, code="invalid_value", param="response.metadata")
    return dict(metadata)


def _known(desk: Desk, event: Mapping[str, Any], code: str) -> str:
    item = event.get("item_id")
    if not isinstance(item, str) or item not in desk.state.items:
        message = f"Item with item_id {item!r} does not exist."
        raise ApiError(400, message, code=code, param="item_id")
    return item


def _place(desk: Desk, previous: Any) -> str | None:
    """The engine's item behind which a new one stands; None for the end."""
    state = desk.state
    if previous is None or previous == "root":
        return previous
    if isinstance(previous, str) and (previous in state.items or previous in state.pending):
        return state.aliases.get(previous, previous)
    message = f"previous_item_id {previous!r} does not exist"
    raise ApiError(400, message, code="invalid_value", param="previous_item_id")


HANDLERS: Mapping[str, Callable[[Desk, Mapping[str, Any]], Awaitable[None]]] = {
    "session.update": session_update,
    "input_audio_buffer.append": audio_append,
    "input_audio_buffer.commit": audio_commit,
    "input_audio_buffer.clear": audio_clear,
    "input_image_buffer.append": image_append,
    "conversation.item.create": item_create,
    "conversation.item.retrieve": item_retrieve,
    "conversation.item.delete": item_delete,
    "conversation.item.truncate": item_truncate,
    "response.create": response_create,
    "response.cancel": response_cancel,
    "output_audio_buffer.clear": output_clear,
}
