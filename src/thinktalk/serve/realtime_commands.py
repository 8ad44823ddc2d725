"""The client's side of the Realtime protocol: every event a client may send, carried out.

A handler raises ApiError for what it does not do; the receive loop tells it and goes on.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from thinktalk.serve.realtime_desk import Desk, apply, wire_session
from thinktalk.serve.realtime_items import pcm, read_item
from thinktalk.serve.realtime_responses import response_cancel, response_create
from thinktalk.serve.schema import ApiError, new_id
from thinktalk.serve.sources import decode_base64

MAX_APPEND_CHARS = 15 << 20
MIN_COMMIT_MS = 100
MAX_WAIT_S = 5.0  # at a time, of a client whose sound is too far ahead; then it is asked again


async def carry_out(desk: Desk, event: Any) -> None:
    """Does what one client event asks for. Raises ApiError."""
    if not isinstance(event, dict):
        raise ApiError(400, "an event is a JSON object; send one", code="invalid_value")
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


async def output_clear(desk: Desk, event: Mapping[str, Any]) -> None:
    """For WebRTC and telephones, where the server holds the sound that is not played yet."""
    if desk.state.player is None:
        message = "output_audio_buffer.clear is for WebRTC; over a WebSocket you hold the sound"
        raise ApiError(400, message, code="invalid_value", param="type")
    desk.state.player.clear()


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
