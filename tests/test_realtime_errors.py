"""What the Realtime dialect refuses, how it says so, and that it goes on; noise, too.

A scripted engine stands in for the model; the socket is real."""

import json
from collections.abc import Iterator
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from realtime_client import Client, realtime
from scripted_engine import ScriptedEngine
from serving import serving

from thinktalk.serve.realtime_commands import HANDLERS


def hearing(**inputs: Any) -> dict[str, Any]:
    return {"type": "realtime", "audio": {"input": inputs}}


@pytest.fixture(scope="module")
def url() -> Iterator[str]:
    with serving(ScriptedEngine()) as address:
        yield address


@pytest.fixture(scope="module")
def shared(url: str) -> Iterator[Client]:
    """One session for all mistakes: it goes on after each of them."""
    with realtime(url) as client:
        yield client


@pytest.mark.parametrize(
    "session, code, param",
    [
        ({}, "invalid_value", "session.type"),
        ({"type": "other"}, "invalid_value", "session.type"),
        ({"type": "realtime", "colour": 1}, "unknown", "session.colour"),
        ({"type": "realtime", "output_modalities": ["text", "audio"]}, "invalid_value", None),
        ({"type": "realtime", "prompt": {"id": "x"}}, "unsupported_value", "session.prompt"),
        ({"type": "realtime", "truncation": "disabled"}, "unsupported_value", None),
        ({"type": "realtime", "tool_choice": "required"}, "unsupported_value", None),
        ({"type": "realtime", "tools": [{"type": "mcp"}]}, "unsupported_value", None),
        ({"type": "realtime", "tools": [{"type": "function"}]}, "invalid_value", None),
        ({"type": "realtime", "max_output_tokens": 0}, "invalid_value", None),
        ({"type": "realtime", "include": ["x"]}, "unsupported_value", "session.include"),
        ({"type": "realtime", "audio": {"output": {"voice": "Zed"}}}, "invalid_value", "voice"),
        ({"type": "realtime", "audio": {"output": {"speed": 1.5}}}, "unsupported_value", None),
        (
            hearing(format={"type": "audio/pcm", "rate": 8000}),
            "integer_below_min_value",
            "session.audio.input.format.rate",
        ),
        (
            hearing(turn_detection={"type": "server_vad", "threshold": 7}),
            "invalid_value",
            None,
        ),
        (
            hearing(turn_detection={"type": "semantic_vad", "silence_duration_ms": 7}),
            "invalid_value",
            "session.audio.input.turn_detection.silence_duration_ms",
        ),
        (
            hearing(turn_detection={"type": "server_vad", "idle_timeout_ms": 6000}),
            "unsupported_value",
            None,
        ),
    ],
)
def test_updates_refused(shared: Client, session: Any, code: str, param: str | None) -> None:
    shared.send("session.update", session=session, event_id="mine")
    error = shared.until("error")["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", code)
    assert error["event_id"] == "mine" and (param is None or error["param"] == param)
    shared.setup()  # and the session goes on


def test_updates_merge(client: Client) -> None:
    turns = {"type": "server_vad", "silence_duration_ms": 900}
    client.setup(instructions="a", audio={"input": {"turn_detection": turns}})
    turns = {"type": "server_vad", "threshold": 0.7}
    session = client.setup(audio={"input": {"turn_detection": turns}}, tracing="auto")
    detection = session["audio"]["input"]["turn_detection"]
    assert (detection["threshold"], detection["silence_duration_ms"]) == (0.7, 900)
    assert session["instructions"] == "a" and session["tracing"] is None
    session = client.setup(instructions="", audio={"output": {"voice": "ash"}})
    assert session["instructions"] == "" and session["audio"]["output"]["voice"] == "Ethan"


def test_the_voice_stays_once_heard(client: Client) -> None:
    client.setup(audio={"output": {"voice": "Ethan"}})
    client.send("response.create")
    client.until("response.done")
    voice = {"type": "realtime", "audio": {"output": {"voice": "Chelsie"}}}
    client.send("session.update", session=voice)
    assert client.until("error")["error"]["code"] == "cannot_update_voice"


@pytest.mark.parametrize(
    "event, code",
    [
        ({"type": "nonsense"}, "invalid_value"),
        ({}, "invalid_value"),
        ([], "invalid_value"),
        ({"type": "input_audio_buffer.append"}, "invalid_value"),
        ({"type": "input_audio_buffer.append", "audio": "%%%"}, "invalid_value"),
        ({"type": "input_audio_buffer.commit"}, "input_audio_buffer_commit_empty"),
        ({"type": "input_image_buffer.append", "image": "aGk="}, "invalid_image"),
        ({"type": "input_image_buffer.append", "image": "aGk=", "time_ms": -1}, "invalid_value"),
        ({"type": "conversation.item.create"}, "invalid_value"),
        ({"type": "conversation.item.create", "item": {"type": "mcp_call"}}, "unsupported_value"),
        ({"type": "conversation.item.truncate", "item_id": "x"}, "item_truncate_invalid_item_id"),
        ({"type": "conversation.item.delete", "item_id": "x"}, "item_delete_invalid_item_id"),
        ({"type": "conversation.item.delete"}, "item_delete_invalid_item_id"),
        ({"type": "response.create", "response": {"metadata": {"a": 1}}}, "invalid_value"),
        ({"type": "response.create", "response": {"colour": 1}}, "invalid_value"),
        ({"type": "response.cancel"}, "response_cancel_not_active"),
        ({"type": "output_audio_buffer.clear"}, "invalid_value"),
    ],
    ids=str,
)
def test_events_refused(shared: Client, event: Any, code: str) -> None:
    shared.connection._connection.send(json.dumps(event))
    assert shared.until("error")["error"]["code"] == code
    shared.setup()


@pytest.mark.parametrize(
    "text", ["{", "null", "7", '"x"', "[" * 10_000, "NaN", '"\\ud800"', b"\x00"], ids=repr
)
def test_no_events_at_all(shared: Client, text: str | bytes) -> None:
    shared.connection._connection.send(text)
    shared.until("error")
    shared.setup()


def test_items_have_one_place_and_one_name(client: Client) -> None:
    item = {"type": "message", "role": "user", "content": [{"type": "input_text", "text": "a"}]}
    client.send("conversation.item.create", item=item | {"id": "a"}, previous_item_id="root")
    client.until("conversation.item.done")
    client.send("conversation.item.create", item=item | {"id": "a"}, event_id="twice")
    error = client.until("error")["error"]
    assert (error["code"], error["event_id"]) == ("item_create_duplicate_item_id", "twice")
    client.send("conversation.item.create", item=item, previous_item_id="unknown")
    assert client.until("error")["error"]["param"] == "previous_item_id"
    client.send("conversation.item.create", item=item, previous_item_id="a")
    assert client.until("conversation.item.added")["previous_item_id"] == "a"
    client.send("conversation.item.create", item=item | {"id": "b"}, previous_item_id="a")
    client.send("conversation.item.create", item=item | {"id": "c"}, previous_item_id="root")
    assert client.until("conversation.item.added")["previous_item_id"] == "a"
    assert client.until("conversation.item.added")["previous_item_id"] is None


def test_truncating_what_was_not_said(client: Client) -> None:
    client.speak()
    user = client.until("conversation.item.done")["item"]["id"]
    client.until("response.done")
    reply = client.seen[-1]["response"]["output"][0]["id"]
    truncate = {"content_index": 0, "audio_end_ms": 4000}
    client.send("conversation.item.truncate", item_id=reply, **truncate)
    message = client.until("error")["error"]["message"]
    assert message == "Audio content of 400ms is already shorter than 4000ms"
    client.send("conversation.item.truncate", item_id=user, **truncate)
    message = client.until("error")["error"]["message"]
    assert message == "Only model output audio messages can be truncated"


# ---- noise

EVENTS = st.dictionaries(
    st.sampled_from(
        "type event_id session audio item item_id previous_item_id response image time_ms "
        "content_index audio_end_ms response_id".split()
    ),
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats(-9, 9) | st.text(max_size=9)
        | st.sampled_from(["realtime", "message", "user", "input_text", "root", "none"]),
        lambda inner: st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["type", "id", "role", "content", "audio", "input", "text", "tools"]),
            inner,
            max_size=4,
        ),
        max_leaves=6,
    ),
)  # fmt: skip


@settings(max_examples=15, deadline=None)
@given(events=st.lists(st.tuples(st.sampled_from(sorted(HANDLERS)), EVENTS), max_size=8))
def test_noise_is_answered_and_survived(url: str, events: list[tuple[str, Any]]) -> None:
    with realtime(url) as client:
        for kind, event in events:
            client.connection._connection.send(json.dumps({**event, "type": kind}))
        client.send("conversation.item.retrieve", item_id="no such", event_id="the end")
        while client.seen[-1].get("error", {}).get("event_id") != "the end":
            event = client.read()
            assert event.get("error", {}).get("type") != "server_error", event
