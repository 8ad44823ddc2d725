"""response.create and response.cancel: what a single response overrides, and responses apart from
the conversation."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from thinktalk.live.api import EngineFullError, Session
from thinktalk.serve.realtime_config import Config
from thinktalk.serve.realtime_desk import Desk, differences
from thinktalk.serve.realtime_events import Translator
from thinktalk.serve.realtime_items import read_item
from thinktalk.serve.schema import ApiError, new_id, refused

MAX_METADATA = 16
RESPONSE_FIELDS = frozenset(
    "audio conversation input instructions max_output_tokens metadata output_modalities "
    "parallel_tool_calls prompt reasoning tool_choice tools".split()
)


async def response_create(desk: Desk, event: Mapping[str, Any]) -> None:
    state = desk.state
    asked = event.get("response") or {}
    if not isinstance(asked, Mapping):
        raise ApiError(400, "response must be an object", code="invalid_value", param="response")
    if unknown := set(asked) - RESPONSE_FIELDS:
        name = f"response.{sorted(unknown)[0]}"
        raise ApiError(400, f"unknown field {name!r}; remove it", code="invalid_value", param=name)
    if state.config.kind == "transcription":
        message = "a transcription session makes no responses; open one of type realtime"
        raise ApiError(400, message, code="invalid_value")
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
    response = _respond(desk.session, config)
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
    response = _respond(talk.session, config)
    state.metadata[response] = metadata
    state.sides[response] = talk.session


def _respond(session: Session, config: Config) -> str:
    tokens = config.max_output_tokens
    return session.respond(
        speak=config.modality == "audio", max_text_tokens=None if tokens == "inf" else tokens
    )


def _response_config(desk: Desk, asked: Mapping[str, Any]) -> Config:
    """The session's configuration with what a single response overrides."""
    config = desk.state.config
    names = ("instructions", "tools", "tool_choice", "max_output_tokens", "output_modalities")
    names += ("audio", "prompt", "reasoning", "parallel_tool_calls")
    patch = {name: asked[name] for name in names if name in asked}
    changed = config.changed({"type": config.kind, **patch}, voices=desk.voices, prefix="response")
    if changed.voice != config.voice:
        raise refused("response.audio.output.voice", "set the voice of the session")
    if changed.modality == "audio" and desk.silent:
        raise refused("response.output_modalities", "a conversation that began as text stays so")
    return changed


def _engine_changes(desk: Desk, config: Config) -> dict[str, Any]:
    """Fields of the engine's settings in which a response differs from its session."""
    now, then = desk.state.config.settings(desk.base), config.settings(desk.base)
    # a response that is only written needs no change, one that is spoken in a silent session does
    return differences(now, then, ["system", "tools", *(["speak"] if then.speak else [])])


def _metadata(metadata: Any) -> dict[str, str] | None:
    if metadata is None:
        return None
    fits = isinstance(metadata, dict) and len(metadata) <= MAX_METADATA
    if not fits or not all(isinstance(value, str) for value in metadata.values()):
        message = f"metadata holds at most {MAX_METADATA} strings"
        raise ApiError(400, message, code="invalid_value", param="response.metadata")
    return dict(metadata)


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
